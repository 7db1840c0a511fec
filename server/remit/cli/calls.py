"""`remit calls`: what agents called, what became of each call, and all that is known about one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remit.cli.options import (
    AGENT,
    CALL,
    ROWS_MAX,
    SINCE,
    TOOL,
    USER,
    ZONE,
    config_option,
    json_option,
    limit_option,
    must_be_in_order,
    print_json,
    records,
)
from remit.states import STATES

if TYPE_CHECKING:
    from remit.chain import EventRow
    from remit.records import CallRecord, Story

_POLL_S = 0.25
#: What a balance can be.
_AMOUNT_MAX = 2**63 - 1
#: What of an event's facts fits on one line.
_TOLD = ("agent", "user", "tool", "code", "error_code", "by", "reason")


@click.group()
def calls() -> None:
    """What agents called, and what became of it."""


@calls.command("list")
@config_option
@json_option
@limit_option
@click.option("--agent", type=AGENT, help="Calls of this agent.")
@click.option("--user", type=USER, help="Calls for this user.")
@click.option("--tenant", metavar="TENANT", help="Calls in this tenant.")
@click.option("--tool", type=TOOL, help="Calls of this tool; a final * means all that begin so.")
@click.option(
    "--verdict", type=click.Choice(["execute", "approve", "advise", "deny"]), help="Calls so decided."
)
@click.option("--state", type=click.Choice(STATES), help="Calls in this state.")
@click.option("--run", metavar="RUN", help="Calls of this piece of work.")
@click.option(
    "--since", "since_us", type=SINCE, help=f"Calls since then: 15m, 24h, 7d or 2026-01-31T09:00. {ZONE}"
)
@click.option("--until", "until_us", type=SINCE, help="Calls before then.")
@click.option("--label", metavar="LABEL", help="Calls of tools with this label today.")
@click.option(
    "--arg",
    "args",
    metavar="NAME=VALUE",
    multiple=True,
    help="Calls whose argument is so, for example customer_id=42, to.country=DE or items.0.sku=pen.",
)
@click.option(
    "--cost-over",
    metavar="UNIT=AMOUNT",
    multiple=True,
    help="Calls that cost more than that, for example eur_cent=500.",
)
def list_(
    config_path: Path,
    as_json: bool,
    limit: int,
    label: str | None,
    args: tuple[str, ...],
    cost_over: tuple[str, ...],
    **wanted: Any,
) -> None:
    """List calls, the newest first. What is said together must all be so.

    Arguments are sealed, so --arg opens those of every call that fits otherwise: say --since or --tool, too.
    """
    from remit.catalog import rules_for
    from remit.cli.output import listing, short, when
    from remit.config_file import load
    from remit.records import CallQuery

    must_be_in_order("--since", wanted["since_us"], "--until", wanted["until_us"])
    wanted["args"] = _pairs("--arg", args, "NAME=VALUE")
    try:
        wanted["cost_over"] = {
            unit: _amount(said) for unit, said in _pairs("--cost-over", cost_over, "UNIT=AMOUNT").items()
        }
    except ValueError:
        raise click.UsageError(
            f"--cost-over: an amount is a whole number of up to {_AMOUNT_MAX}, in the unit's smallest part"
        ) from None
    if label is not None:
        config = load(config_path).config
        with records(config_path) as found:
            labelled = [tool for tool in found.tools() if label in rules_for(config, tool).labels]
        wanted["tools"] = tuple(labelled)
    with records(config_path) as found:
        rows = found.calls(CallQuery(**wanted), limit=limit)
    listing(
        rows,
        {
            "call": lambda call: short(call.id),
            "when": lambda call: when(call.created_us),
            "agent": lambda call: call.agent,
            "for": lambda call: call.user,
            "tool": lambda call: call.tool if call.kind == "call" else f"{call.tool} ({call.kind})",
            "verdict": lambda call: call.verdict,
            "state": lambda call: call.state,
            "code": lambda call: call.error_code or call.code,
            "way back": lambda call: call.way_back,
        },
        as_json=as_json,
        none="No such calls.",
    )


def _pairs(option: str, said: tuple[str, ...], form: str) -> dict[str, str]:
    if wrong := [each for each in said if "=" not in each]:
        raise click.UsageError(f"{option} takes {form}, not {wrong[0]!r}")
    pairs = {name: value for name, _, value in (each.partition("=") for each in said)}
    if len(pairs) < len(said):
        raise click.UsageError(f"{option} says the same name twice, and one of them would not count")
    return pairs


def _amount(said: str) -> int:
    if abs(amount := int(said)) > _AMOUNT_MAX:
        raise ValueError(said)
    return amount


@calls.command()
@config_option
@json_option
@click.argument("call_id", type=CALL, metavar="CALL")
def show(config_path: Path, as_json: bool, call_id: str) -> None:
    """Tell the whole story of one call: who, what, why, what it cost, how it comes back.

    CALL is a call's id, or enough of its beginning.
    """
    from remit.cli.output import facts

    with records(config_path) as found:
        story = found.story(call_id)
    if as_json:
        print_json(story)
    else:
        facts(f"{story.call.tool} {story.call.state}", _told(story))


@calls.command()
@config_option
@json_option
@click.option("--follow", "-f", is_flag=True, help="Go on until interrupted.")
@click.option(
    "--lines", "-n", default=10, show_default=True, type=click.IntRange(0, ROWS_MAX), help="So many at first."
)
def tail(config_path: Path, as_json: bool, follow: bool, lines: int) -> None:
    """Print what happens to calls as it happens, one event a line."""
    from remit.config_file import load
    from remit.records import open_records

    path = load(config_path).config.store.location
    place = None
    while True:
        with open_records(path) as found:
            news, place = found.newest_events(after=place, limit=lines if place is None else 1000)
        for event in news:
            if as_json:
                print_json(json.loads(event.body))
            else:
                click.echo(_line(event))
        if not follow:
            return
        if not news:
            time.sleep(_POLL_S)


def _line(event: EventRow) -> str:
    from remit.cli.output import exactly, short
    from remit.escaping import escaped

    body: dict[str, Any] = json.loads(event.body)
    words = [exactly(event.at_us), event.kind.ljust(22), short(event.call_id).ljust(18)]
    words += [body[name] for name in _TOLD if body.get(name)]
    return escaped(" ".join(map(str, words)))


def _told(story: Story) -> Iterator[tuple[str, object]]:
    """One screen: each line a name and a value; None is left out."""
    from remit.cli.output import as_json_text, exactly, short, voted

    call = story.call
    yield "call", call.id if call.kind == "call" else f"{call.id}, {call.kind} of {call.of_call}"
    yield "who", f"{call.agent} for {call.user}, tenant {call.tenant}, run {call.run} (by {call.auth})"
    yield "client", next((json.loads(event.body).get("client") for event in story.events), None)
    yield "when", _times(call)
    if call.waits_for and call.state == "scheduled":
        yield "waits for", call.waits_for
    yield "tool", f"{call.tool}, {call.effect}, source {call.source}, definition {call.tool_digest[:12]}"
    yield "verdict", f"{call.verdict} ({call.code}): {call.reason}"
    for row in call.policy_rows:
        yield "", row
    yield "policy", call.policy_version[:12] or None
    yield "its words", as_json_text(call.claim) if call.claim else None
    gone = "erased" if story.erased else "expired: no longer kept"
    yield "arguments", as_json_text(story.arguments) if story.arguments is not None else gone
    yield "rules saw", as_json_text(story.context) if story.context is not None else None
    if request := story.approval:
        ends = exactly(request.expires_us)
        yield "approval", f"{request.id} {request.state}, {request.votes_needed} needed, until {ends}"
        for vote in request.votes:
            yield "", voted(vote)
    yield "before", as_json_text(story.before) if story.before is not None else None
    yield "result", _result(story)
    yield "left", as_json_text(story.after) if story.after is not None else None
    yield "error", f"{call.error_code}: {call.error}" if call.error_code else None
    yield "resolved", call.resolution
    for hold in story.holds:
        back = f", {hold.refunded} given back" if hold.refunded else ""
        yield "cost", f"{hold.account}: {hold.posted} of {hold.amount} held ({hold.state}){back}"
    yield "way back", _way_back(story)
    if way := story.undo:
        yield (
            "",
            f"{way.tool} {'' if way.arguments is None else json.dumps(way.arguments, ensure_ascii=False)}",
        )
        yield "touches", way.resource
        yield "stays", way.residue
    for other in story.served_by:
        yield other.kind, f"{other.id} {other.tool} {other.state}"
    yield "trace", call.trace_id
    for event in story.events:
        seal = f"stream {short(event.stream)}, event {event.seq}, {event.hash[:12]}"
        yield "event", f"{exactly(event.at_us)} {event.kind} ({seal})"


def _way_back(story: Story) -> str | None:
    """Its state, and until when that can be: nothing is said of time where it does not matter any more."""
    from remit.cli.output import exactly

    state = story.call.way_back
    if story.undo is None or state not in ("registered", "ready", "conflict", "expired"):
        return state
    return f"{state}, {'since' if state == 'expired' else 'until'} {exactly(story.undo.expires_us)}"


def _times(call: CallRecord) -> str:
    from remit.cli.output import exactly

    told = f"{exactly(call.created_us)}"
    if call.due_us is not None:
        told += f", due {exactly(call.due_us)}"
    if call.dispatched_us is not None:
        told += f", sent after {(call.dispatched_us - call.created_us) / 1000:.1f} ms"
        if call.finished_us is not None:
            told += f", ended after {(call.finished_us - call.dispatched_us) / 1000:.1f} ms more"
    return told


def _result(story: Story) -> object:
    from remit.cli.output import as_json_text

    if story.erased and story.call.result_commit:
        return "erased"
    if story.result is not None:
        return as_json_text(story.result.get("structuredContent", story.result.get("content", story.result)))
    return "not kept: only its digest is" if story.call.result_commit else None
