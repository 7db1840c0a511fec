"""`remit doubt`: calls that were sent and whose outcome nobody knows, until a person finds out."""

from __future__ import annotations

from pathlib import Path

import click

from remit.cli.calls import show
from remit.cli.options import (
    CALL_IN_DOUBT,
    as_option,
    config_option,
    json_option,
    limit_option,
    print_json,
    records,
)


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
    from remit.records import CallQuery

    with records(config_path) as found:
        rows = found.calls(CallQuery(state="in_doubt"), limit=limit)
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
@as_option
@click.option("--happened", "found", flag_value="happened", help="It took effect: its budget is spent.")
@click.option("--did-not-happen", "found", flag_value="not", help="It did not: its budget is released.")
@click.option("--reason", required=True, help="How you know; recorded.")
@click.argument("call_id", type=CALL_IN_DOUBT, metavar="CALL")
def resolve(
    config_path: Path, as_json: bool, as_user: str | None, found: str | None, reason: str, call_id: str
) -> None:
    """Say what became of a call, once you know. Equal calls may run again then."""
    from remit.cli.acting import in_journal, person
    from remit.config_file import load
    from remit.records import open_records

    if found is None:
        raise click.UsageError("say --happened or --did-not-happen")
    loaded = load(config_path)
    who = person(loaded, as_user)
    with open_records(loaded.config.store.path) as written:
        call = written.call(call_id)
    state = in_journal(
        loaded,
        lambda journal: journal.resolve(call.id, happened=found == "happened", reason=reason, by=who.user),
    )
    if as_json:
        print_json({"call_id": call.id, "state": state, "by": who.user})
    else:
        click.echo(f"{call.tool}: recorded as {state}.")
