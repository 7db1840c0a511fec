"""Taking back many calls: all that a run did, or an agent since a moment, or by one tool.

A rollback is no act of its own. Each call is taken back by the way that was registered with it, newest
first, and each undo is governed like any other call. The plan says beforehand what can be taken back and
what not, and why. Nothing is stored beside the undos: made again, a rollback goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from remit.errors import UnknownRecord, WrongState
from remit.identity import Principal
from remit.model import Done, Failed, InDoubt, Outcome, Pending, Refused, Scheduled, Unconfirmed
from remit.pipeline import Services
from remit.records import CallRecord, Records, UndoRecord
from remit.undo import undo

#: Every call of a rollback is in exactly one of these.
#: `undo`: will be taken back. `done`: is taken back. `failed`, `doubt`: was tried. `waits`: for a person.
#: `conflict`: a change that stays was made to the same thing later. `open`: nobody knows yet what it did.
#: `expired`: too late. `impossible`: there is no way back.
Part = Literal[
    "undo", "done", "failed", "doubt", "waits", "refused", "conflict", "open", "expired", "impossible"
]
#: The parts that leave nothing of the calls behind.
GONE: frozenset[Part] = frozenset({"undo", "done"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call of a rollback, and what becomes of it."""

    call_id: str
    part: Part
    why: str
    tool: str
    agent: str
    user: str
    dispatched_us: int
    #: What the call touched, when its tool says so; without it a conflict cannot be noticed beforehand.
    resource: str | None
    undo_tool: str | None
    residue: str | None
    by_call: str | None = None


def plan(records: Records, calls: Sequence[CallRecord], tools: Collection[str], *, force: bool) -> list[Step]:
    """What taking `calls` back would come to, in the order in which it would be done: newest first.

    Calls that were never let out, that failed, or that only read are not part of it. `tools` are those of
    the catalog. With `force`, later changes of others are no conflict.
    """
    steps: list[Step] = []
    gone: set[str] = set()
    for call in sorted(calls, key=_moment, reverse=True):
        if call.kind != "call" or call.effect == "read" or call.state not in _ACTED:
            continue
        way = records.undo(call.id)
        part, why = _part(call, way, tools)
        if part == "undo" and not force and way is not None and way.resource is not None:
            later = [touch for touch in records.later_touches(call, way.resource) if touch.id not in gone]
            if later:
                part, why = "conflict", _changed_by(later[0])
        if part in GONE:
            gone.add(call.id)
        steps.append(
            Step(
                call_id=call.id,
                part=part,
                why=why,
                tool=call.tool,
                agent=call.agent,
                user=call.user,
                dispatched_us=_moment(call)[0],
                resource=way.resource if way else None,
                undo_tool=way.tool if way else None,
                residue=way.residue if way else None,
                by_call=way.undo_call if way else None,
            )
        )
    return steps


async def roll_back(
    steps: Sequence[Step],
    principal: Principal,
    run: str,
    on: Services,
    *,
    force: bool,
    advance: Callable[[], None] = lambda: None,
) -> list[Step]:
    """Take back what the plan says can be, in its order; return every step as it ended.

    One that fails stops nothing but what was done to the same thing before it: that is a conflict then.
    """
    ended: list[Step] = []
    for step in steps:
        if step.part == "undo":
            try:
                step = _ended(step, await undo(step.call_id, principal, run, on, force=force))
            except (UnknownRecord, WrongState) as error:
                step = replace(step, part="refused", why=_sentence(str(error)))
        ended.append(step)
        advance()
    return ended


_ACTED = ("scheduled", "cancelled", "dispatched", "in_doubt", "succeeded")


def _moment(call: CallRecord) -> tuple[int, str]:
    return call.dispatched_us or call.created_us, call.id


def _part(call: CallRecord, way: UndoRecord | None, tools: Collection[str]) -> tuple[Part, str]:
    """What can be done about one call, whatever else was done to the same thing."""
    if call.state == "scheduled":
        return "undo", "It has not been sent yet, and is called off."
    if call.state == "cancelled":
        return "done", "It was called off before it was sent."
    if call.state != "succeeded":
        return "open", "It is not known what it did: resolve it first (remit doubt)."
    if way is None:
        return "impossible", f"Its effect is {call.effect}: no way back was declared."
    match way.state:
        case "done":
            return "done", "It has been taken back."
        case "running" | "indeterminate":
            return "doubt", "An undo of it was begun, and nobody knows whether it worked (remit doubt)."
        case "failed":
            return "failed", "An undo of it was tried, and the source refused or the proof failed."
        case "expired" if call.effect == "deferred":
            return "expired", "It was held back, and has been sent: after that it does not come back."
        case "expired":
            return "expired", "The time in which it could be taken back is over."
        case "ready" | "conflict":
            pass
        case _:
            return "impossible", "Its way back could not be worked out from its answer."
    if way.tool not in tools:
        return "impossible", f"{way.tool}, which takes it back, is not available now."
    said = f"{way.tool} takes it back."
    if way.residue:
        said += f" What stays: {way.residue}"
    if way.best_effort:
        said += " Best effort: what somebody wrote in the same moment was not seen."
    return "undo", said


def _changed_by(later: CallRecord) -> str:
    return f"{later.agent} changed the same thing later ({later.tool}, call {later.id}), and that stays."


def _ended(step: Step, outcome: Outcome) -> Step:
    match outcome:
        case Done() if outcome.undone.get("state") == "done":
            part, why = "done", "Taken back." + (f" What stays: {step.residue}" if step.residue else "")
        case Done() if outcome.undone.get("state") == "indeterminate":
            part, why = "doubt", "Nobody knows whether it is taken back: look at the current state."
        case Done():
            part, why = "failed", "The source refused, or the proof failed: look at the current state."
        case Scheduled():
            part, why = "waits", "It is held back itself."
        case Pending():
            part, why = "waits", f"People must agree first: request {outcome.approval_id}."
        case Unconfirmed():
            part, why = "waits", outcome.verdict.reason
        case Refused():
            part = "conflict" if outcome.verdict.code == "undo_conflict" else "refused"
            why = outcome.verdict.reason
        case Failed():
            part, why = "failed", f"Nothing was undone: {outcome.message}"
        case InDoubt():
            part, why = "doubt", f"Nobody knows whether it is taken back: {outcome.message}"
    return replace(step, part=part, why=why, by_call=outcome.call_id)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
