"""`remit audit hold` and `retain`: what must be kept, and what goes when it is of age."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from remit.cli.options import (
    AGENT,
    CALL,
    SINCE,
    TOOL,
    WORDS,
    ZONE,
    as_option,
    config_option,
    json_option,
    must_be_in_order,
    print_json,
    records,
)

if TYPE_CHECKING:
    from remit.keeping import Scope

_reason = click.option("--reason", type=WORDS, required=True, help="Why, for the record.")


@click.group()
def hold() -> None:
    """Legal holds: what is neither erased nor removed when it is of age, until it is released."""


@hold.command()
@config_option
@json_option
@as_option
@click.option("--tenant", metavar="TENANT", default="", help="There only; else in every tenant.")
@click.option("--subject", metavar="SUBJECT", help="Calls about them: user:alice, customer:42.")
@click.option("--run", metavar="RUN", help="Calls of this piece of work.")
@click.option("--call", type=CALL, help="This call.")
@click.option("--tool", type=TOOL, help="Calls of this tool; a final * means all that begin so.")
@click.option("--agent", type=AGENT, help="Calls of this agent.")
@click.option("--from", "from_us", type=SINCE, help=f"Calls since then, with --to. {ZONE}")
@click.option("--to", "to_us", type=SINCE, help="Calls until then.")
@_reason
def add(
    config_path: Path,
    as_json: bool,
    as_user: str | None,
    tenant: str,
    from_us: int | None,
    to_us: int | None,
    reason: str,
    **targets: str | None,
) -> None:
    """Hold what some calls carried: those of one subject, run, call, tool or agent, or of some time."""
    from remit.cli.acting import in_journal, person
    from remit.config_file import load

    named: list[tuple[Scope, str]] = [
        (scope, name)
        for scope in ("subject", "run", "call", "tool", "agent")
        if (name := targets[scope]) is not None
    ]
    must_be_in_order("--from", from_us, "--to", to_us)
    if from_us is not None and to_us is not None:
        named.append(("time", ""))
    elif from_us is not None or to_us is not None:
        raise click.UsageError("--from and --to go together")
    if len(named) != 1:
        raise click.UsageError("say one of --subject, --run, --call, --tool, --agent, or --from with --to")
    loaded = load(config_path)
    by = person(loaded, as_user).user
    scope, said = named[0]
    target = _whole_id(config_path, said) if scope == "call" else said
    hold_id = in_journal(
        loaded,
        lambda journal: journal.hold(
            tenant=tenant, scope=scope, target=target, from_us=from_us, to_us=to_us, reason=reason, by=by
        ),
    )
    with records(config_path) as found:
        covers = found.covers_a_call(hold_id)
    if as_json:
        print_json({"hold": hold_id, "covers_a_call": covers})
    else:
        click.echo(f"Held: {hold_id}.")
        if not covers:
            click.echo("No call that was made fits it: see that its target is written as in the record.")


def _whole_id(config_path: Path, start: str) -> str:
    with records(config_path) as found:
        return found.call(start).id


@hold.command("list")
@config_option
@json_option
def list_(config_path: Path, as_json: bool) -> None:
    """List every hold that stands."""
    from remit.cli.output import listing, when

    with records(config_path) as found:
        rows = found.legal_holds()
    listing(
        rows,
        {
            "hold": lambda row: row.id,
            "scope": lambda row: row.scope,
            "target": lambda row: row.target or f"{when(row.from_us)} to {when(row.to_us)}",
            "tenant": lambda row: row.tenant or "every",
            "by": lambda row: row.set_by,
            "since": lambda row: when(row.set_us),
            "reason": lambda row: row.reason,
        },
        as_json=as_json,
        none="Nothing is held.",
    )


@hold.command()
@config_option
@json_option
@as_option
@_reason
@click.argument("hold_id", metavar="HOLD")
def release(config_path: Path, as_json: bool, as_user: str | None, reason: str, hold_id: str) -> None:
    """Let go of what a hold covered."""
    from remit.cli.acting import in_journal, person
    from remit.config_file import load

    loaded = load(config_path)
    by = person(loaded, as_user).user
    in_journal(loaded, lambda journal: journal.release(hold_id, reason=reason, by=by))
    if as_json:
        print_json({"hold": hold_id})
    else:
        click.echo("Released.")


@click.command()
@config_option
@json_option
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
def retain(config_path: Path, as_json: bool, dry_run: bool) -> None:
    """Remove what `audit.retention` keeps no longer. A running server does so by itself.

    What calls carried goes when it is of age, before-images when nothing can be put back with them. Calls,
    events and every proof stay; what is held stays.
    """
    import anyio

    from remit.cli.acting import journal_of
    from remit.config_file import load
    from remit.ids import now_us
    from remit.keeping import Kind, sweep

    loaded = load(config_path)
    retention = loaded.config.audit.retention
    with records(config_path) as found:
        removed = found.of_age(retention, now_us()) if dry_run else {}

    async def run() -> dict[Kind, int]:
        async with journal_of(loaded) as journal:
            return await sweep(journal, retention, now_us=now_us())

    if not dry_run:
        removed = anyio.run(run)
    if as_json:
        print_json(removed)
    else:
        word = "Would go" if dry_run else "Gone"
        click.echo(
            f"{word}: what {removed['payloads']} calls carried, and the before-images of {removed['images']}."
        )
