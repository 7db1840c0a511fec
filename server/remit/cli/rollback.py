"""`remit rollback`: take back all that a run did, or an agent, or one tool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click

from remit.cli.options import (
    AGENT,
    CALL_DONE,
    SINCE,
    TOOL,
    ZONE,
    as_option,
    asks,
    config_option,
    json_option,
    print_json,
)
from remit.errors import UnknownRecord

if TYPE_CHECKING:
    from remit.cli.acting import Person
    from remit.config_file import Loaded
    from remit.records import CallQuery, CallRecord, Records
    from remit.rollback import Step

#: More calls than one person can look through: narrow it.
_CALLS_MAX = 10_000


@click.command()
@config_option
@json_option
@as_option
@click.option("--agent", type=AGENT, help="Calls of this agent.")
@click.option("--tool", type=TOOL, help="Calls of this tool; a final * means all that begin so.")
@click.option("--since", "since_us", type=SINCE, help=f"Calls since then: 2h, 7d or a date. {ZONE}")
@click.option("--call", "call_ids", type=CALL_DONE, multiple=True, help="This very call; may be given again.")
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--force", is_flag=True, help="Also what was changed by others since: their change goes too.")
@click.option("--yes", is_flag=True, help="Do not ask before it begins; needed without a terminal.")
@click.argument("run", required=False, metavar="[RUN]")
def rollback(
    config_path: Path,
    as_json: bool,
    as_user: str | None,
    agent: str | None,
    tool: str | None,
    since_us: int | None,
    call_ids: tuple[str, ...],
    only_plan: bool,
    force: bool,
    yes: bool,
    run: str | None,
) -> int:
    """Take many calls back, newest first, each by its registered way.

    RUN, --agent, --tool and --since say which, and narrow it together; --call names calls one by one. Shows
    the plan and asks before it begins. Each undo is governed like any call, so policy must let you `undo` the
    tools. Made again, it goes on where it stopped. What fits and is called meanwhile stays, and is told: stop
    first whoever still calls. Exits with 0 when nothing of the calls is left (or, with --plan, would be), and
    with 1 otherwise, also when a name has no call at all.
    """
    from remit.cli.acting import person
    from remit.config_file import load
    from remit.records import CallQuery
    from remit.rollback import GONE, price

    if not (run or agent or tool or call_ids):
        raise click.UsageError("say what to take back: a RUN, --agent, --tool or --call")
    if call_ids and (run or agent or tool or since_us is not None):
        raise click.UsageError("--call names the calls itself: leave out RUN, --agent, --tool, --since")
    ask = not only_plan and asks(as_json=as_json, yes=yes, instead="--plan, or ")
    loaded = load(config_path)
    who = person(loaded, as_user)
    query = CallQuery(tenant=who.tenant, agent=agent, tool=tool, run=run, since_us=since_us, acted=True)
    steps, meanwhile = anyio.run(_work, loaded, who, query, call_ids, force, only_plan, ask)
    if as_json:
        print_json({"steps": steps, "cost": price(steps), "meanwhile": meanwhile})
    else:
        _show(steps)
        if meanwhile:
            click.echo(
                f"{len(meanwhile)} calls were made meanwhile and stay, the newest is {meanwhile[0]}:"
                " stop who makes them (remit switch on), then give the command again."
            )
    return 0 if all(step.part in GONE for step in steps) and not meanwhile else 1


async def _work(
    loaded: Loaded,
    who: Person,
    query: CallQuery,
    call_ids: Sequence[str],
    force: bool,
    only_plan: bool,
    ask: bool,
) -> tuple[list[Step], list[str]]:
    """Every step as it is planned, or has ended; and the calls that were made while it was gone through."""
    from remit.cli.acting import run_name, services_of
    from remit.cli.output import progress
    from remit.cli.undo import sources_of
    from remit.records import open_records
    from remit.rollback import plan, roll_back

    with open_records(loaded.config.store.location, loaded.master_key) as found:
        calls = _calls(found, query, call_ids)
        ways = [(call, way) for call in calls if (way := found.undo(call.id))]
    sources = {source for call, way in ways for source in sources_of(loaded, call, way)}
    async with services_of(loaded, sources) as services:
        me, run = who.principal(), run_name()
        with (
            open_records(loaded.config.store.location, loaded.master_key) as found,
            progress("looking", len(calls)) as advance,
        ):
            steps = await plan(found, calls, me, run, services, force=force, advance=advance)
        if only_plan or not any(step.is_tried for step in steps):
            return steps, []
        if ask:
            _show(steps)
            click.confirm("Take these back?", abort=True)
        with progress("taking back", len(steps)) as advance:
            steps = await roll_back(steps, me, run, services, force=force, advance=advance)
    known = {call.id for call in calls}
    with open_records(loaded.config.store.location, loaded.master_key) as found:
        now = [] if call_ids else found.calls(query, limit=_CALLS_MAX)
        return steps, [call.id for call in now if call.id not in known]


def _calls(found: Records, query: CallQuery, call_ids: Sequence[str]) -> list[CallRecord]:
    if call_ids:
        chosen = [found.call(start) for start in call_ids]
        if others := [call.id for call in chosen if call.tenant != query.tenant]:
            raise UnknownRecord(f"there is no call {others[0]}")
        return chosen
    calls = found.calls(query, limit=_CALLS_MAX + 1)
    if not calls:
        _refuse_unknown(found, query)
    if len(calls) > _CALLS_MAX:
        raise click.UsageError(f"more than {_CALLS_MAX} calls fit: narrow it with --since or --agent")
    return calls


def _refuse_unknown(found: Records, query: CallQuery) -> None:
    """Raise UnknownRecord when one of the names that were given has no call at all: it is likely mistyped."""
    from remit.records import CallQuery

    tenant = query.tenant
    asked = (
        (query.run, "in run ", CallQuery(tenant=tenant, run=query.run)),
        (query.agent, "of ", CallQuery(tenant=tenant, agent=query.agent)),
        (query.tool, "of ", CallQuery(tenant=tenant, tool=query.tool)),
    )
    for name, where, alone in asked:
        if name and not found.calls(alone, limit=1):
            raise UnknownRecord(f"there is no call {where}{name}: remit calls list shows what was made")


def _show(steps: Sequence[Step]) -> None:
    from remit.budgets import in_words
    from remit.cli.output import exactly, listing, short
    from remit.rollback import price

    listing(
        steps,
        {
            "call": lambda step: short(step.call_id),
            "when": lambda step: exactly(step.dispatched_us),
            "agent": lambda step: step.agent,
            "tool": lambda step: step.tool,
            "touches": lambda step: step.resource,
            "becomes": lambda step: _BECOMES[step.part],
            "cost": lambda step: in_words(step.cost),
            "why": lambda step: step.why,
        },
        as_json=False,
        none="No call there changed anything.",
    )
    counts = Counter(_BECOMES[step.part] for step in steps)
    if steps:
        click.echo(
            f"{len(steps)} calls: " + ", ".join(f"{n} {part}" for part, n in counts.most_common()) + "."
        )
    if cost := in_words(price(steps)):
        click.echo(f"Taking back what can be costs {cost}.")


_BECOMES = {
    "undo": "to undo",
    "done": "undone",
    "failed": "not undone",
    "doubt": "in doubt",
    "waits": "waiting for approval",
    "refused": "refused",
    "conflict": "conflict",
    "open": "open",
    "expired": "expired",
    "impossible": "stays",
}
