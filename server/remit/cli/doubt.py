"""`remit doubt`: calls that were sent and whose outcome nobody knows, until a person finds out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from remit.cli.calls import show
from remit.cli.options import (
    CALL_IN_DOUBT,
    WORDS,
    as_option,
    config_option,
    json_option,
    limit_option,
    print_json,
    records,
)

if TYPE_CHECKING:
    from remit.config_file import Loaded
    from remit.probes import Finding


@click.group()
def doubt() -> None:
    """Calls of which nobody knows whether they took effect."""


@doubt.command("list")
@config_option
@json_option
@limit_option
def list_(config_path: Path, as_json: bool, limit: int) -> None:
    """List the calls in doubt, the newest first. Their budget stays held, and equal calls are refused."""
    from remit.cli.output import listing, short, when
    from remit.doubts import GRACE_US
    from remit.ids import now_us
    from remit.records import CallQuery

    with records(config_path) as found:
        rows = found.calls(CallQuery(state="in_doubt"), limit=limit)
        sent = found.calls(CallQuery(state="dispatched"), limit=limit)
    over_us = now_us() - GRACE_US
    if left := sum(call.deadline_us is not None and call.deadline_us < over_us for call in sent):
        click.echo(
            f"remit: {left} calls more were sent, and have no end on record although their time is over:"
            " their process died, or cannot write. A server that runs concludes them (remit serve)",
            err=True,
        )
    listing(
        rows,
        {
            "call": lambda call: short(call.id),
            "sent": lambda call: when(call.dispatched_us),
            "agent": lambda call: call.agent,
            "tool": lambda call: call.tool,
            "why": lambda call: f"{call.error_code}: {call.error}",
        },
        as_json=as_json,
        none="No call is in doubt.",
    )


doubt.add_command(show)


@doubt.command()
@config_option
@json_option
@click.argument("call_id", type=CALL_IN_DOUBT, metavar="CALL")
def probe(config_path: Path, as_json: bool, call_id: str) -> int:
    """Look for the effect of a call where its tool says it shows, and conclude the call if that tells.

    A server does so by itself from time to time. Exits with 0 when the call is resolved, and with 1 when it
    is still in doubt.
    """
    import anyio

    from remit.config_file import load
    from remit.records import open_records

    loaded = load(config_path)
    with open_records(loaded.config.store.location) as written:
        call = written.call(call_id)
        served = written.call(call.of_call) if call.kind == "undo" and call.of_call else None
    found = anyio.run(_probe, loaded, call.id, [call.tool, *([served.tool] if served else [])])
    if as_json:
        print_json(found)
    elif found.state == "in_doubt":
        click.echo(f"{call.tool}: still in doubt, for {found.why}.")
    else:
        click.echo(f"{call.tool}: recorded as {found.state}. {found.why}.")
    return int(found.state == "in_doubt")


async def _probe(loaded: Loaded, call_id: str, tools: Sequence[str]) -> Finding:
    from remit.catalog import rules_for, source_of
    from remit.cli.acting import services_of
    from remit.probes import probe

    names = [*tools]
    for rules in (rules_for(loaded.config, tool) for tool in tools):
        names += [rules.find.call] if rules.find else []
        names += (
            [rules.undo.call, *([rules.undo.verify.call] if rules.undo.verify else [])] if rules.undo else []
        )
    sources = {found[0] for name in names if (found := source_of(loaded.config, name))}
    async with services_of(loaded, sources) as services:
        return await probe(call_id, services)


@doubt.command()
@config_option
@json_option
@as_option
@click.option("--happened", is_flag=True, help="It took effect: its budget is spent.")
@click.option("--did-not-happen", is_flag=True, help="It did not: its budget is released.")
@click.option("--reason", type=WORDS, required=True, help="How you know; recorded.")
@click.option("--force", is_flag=True, help="It did not, although its time is not over yet; recorded.")
@click.argument("call_id", type=CALL_IN_DOUBT, metavar="CALL")
def resolve(
    config_path: Path,
    as_json: bool,
    as_user: str | None,
    happened: bool,
    did_not_happen: bool,
    reason: str,
    force: bool,
    call_id: str,
) -> None:
    """Say what became of a call, once you know. Equal calls may run again then."""
    from remit.cli.acting import in_journal, person
    from remit.config_file import load
    from remit.records import open_records

    if happened == did_not_happen:
        raise click.UsageError("say --happened or --did-not-happen" + (", and not both" if happened else ""))
    if happened and force:
        raise click.UsageError("--force is for --did-not-happen: what happened may be said at any time")
    loaded = load(config_path)
    who = person(loaded, as_user)
    with open_records(loaded.config.store.location, loaded.master_key) as written:
        call = written.call(call_id)
    state = in_journal(
        loaded,
        lambda journal: journal.resolve(call.id, happened=happened, reason=reason, by=who.user, force=force),
    )
    if as_json:
        print_json({"call_id": call.id, "state": state, "by": who.user})
    else:
        click.echo(f"{call.tool}: recorded as {state}.")
