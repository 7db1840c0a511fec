"""Taking back many calls: all that a run did, or an agent since a moment, or by one tool.

A rollback is no act of its own. Each call is taken back by the way that was registered with it, newest
first, and each undo is governed like any other call. The plan says beforehand what can be taken back and
what not, why, and at what price: policy is asked, and what the calls left is read. Nothing is stored beside
the undos: made again, a rollback goes on where it stopped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from remit.approvals import votes_needed
from remit.errors import UnknownRecord, WrongState
from remit.identity import Principal
from remit.images import Seen, conflict
from remit.model import (
    Call,
    Done,
    Failed,
    InDoubt,
    Outcome,
    Pending,
    Refused,
    Scheduled,
    Unconfirmed,
    Verdict,
)
from remit.pipeline import Services, changed, decide, obstacle
from remit.records import CallRecord, Records, UndoRecord
from remit.states import ACTED
from remit.undo import overwritten, undo, undo_call
from remit.ways_back import Undoable
from remit_rbac import Rung

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
    #: What the call touched, when its tool says so; without it a conflict with other calls is not noticed.
    resource: str | None
    undo_tool: str | None
    residue: str | None
    until_us: int | None
    #: Later calls on the same thing: those that must be taken back before it, and those that surely stay.
    after: tuple[str, ...] = ()
    in_the_way: tuple[str, ...] = ()
    #: What its undo replaces of others', in words, where somebody insists on it.
    overwrites: str | None = None
    #: What the undo may cost, by unit.
    cost: Mapping[str, int] = field(default_factory=dict[str, int])
    #: How many people must agree to the undo.
    approvals: int = 0
    by_call: str | None = None

    @property
    def is_tried(self) -> bool:
        """Whether a rollback tries it. What policy or the source forbids is refused then, and on record."""
        return self.part in ("undo", "waits", "refused") or (self.part == "conflict" and not self.in_the_way)


def price(steps: Iterable[Step]) -> Mapping[str, int]:
    """What the undos that a plan foresees may cost together, by unit."""
    total: Counter[str] = Counter()
    for step in steps:
        if step.part in ("undo", "waits"):
            total.update(step.cost)
    return total


async def plan(
    records: Records,
    calls: Sequence[CallRecord],
    principal: Principal,
    run: str,
    on: Services,
    *,
    force: bool,
    advance: Callable[[], None] = lambda: None,
) -> list[Step]:
    """What taking `calls` back would come to, in the order in which it would be done: newest first.

    Calls that were never let out, that failed, or that only read are not part of it. With `force`, later
    changes of others stop nothing, and are named as what would be overwritten. Asks policy, and reads what
    the calls left; changes nothing.
    """
    steps: dict[str, Step] = {}
    entries: dict[str, Undoable] = {}
    for call in sorted(calls, key=_moment, reverse=True):
        if call.kind == "call" and call.effect != "read" and call.state in ACTED:
            step = _recorded(call, records.undo(call.id), on.catalog.tools)
            if step.part == "undo" and step.resource is not None:
                step = _in_order(step, records.later_touches(call, step.resource), steps, force=force)
            if step.part in ("undo", "waits"):
                beneath = step.after[0] if step.after else None
                if entry := await on.journal.undoable(call.id, beneath=beneath):
                    above = entries.get(beneath or "")
                    step = await _asked(step, entry, above, principal, run, on, force=force)
                    entries[call.id] = entry
            steps[call.id] = step
        advance()
    return list(steps.values())


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
        if step.is_tried:
            try:
                outcome = await undo(step.call_id, principal, run, on, force=force)
                taken = await _taken(step.call_id, outcome, on)
                step = replace(step, part=taken[0], why=taken[1]) if taken else _ended(step, outcome)
            except (UnknownRecord, WrongState) as error:
                step = replace(step, part="refused", why=_sentence(str(error)))
        ended.append(step)
        advance()
    return ended


async def _taken(call_id: str, outcome: Outcome, on: Services) -> tuple[Part, str] | None:
    """What became of a call that others have begun to take back since it was planned."""
    if not isinstance(outcome, Refused) or outcome.verdict.code != "undo_used":
        return None
    entry = await on.journal.undoable(call_id)
    return _TAKEN.get(entry.state) if entry else None


#: By the state of a way back that was taken.
_TAKEN: Mapping[str, tuple[Part, str]] = {
    "done": ("done", "It has been taken back."),
    "running": ("doubt", "An undo of it is under way: give the command again when that has ended."),
    "indeterminate": ("doubt", "An undo of it was begun, and nobody knows whether it worked (remit doubt)."),
    "failed": ("failed", "An undo of it was tried, and the source refused or the proof failed."),
}


def _moment(call: CallRecord) -> tuple[int, str]:
    return call.dispatched_us or call.created_us, call.id


def _recorded(call: CallRecord, way: UndoRecord | None, tools: Collection[str]) -> Step:
    """What the record says of one call, whatever else was done to the same thing."""
    part, why = _part(call, way, tools)
    return Step(
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
        until_us=way.expires_us if way and part == "undo" else None,
        by_call=way.undo_call if way else None,
    )


def _part(call: CallRecord, way: UndoRecord | None, tools: Collection[str]) -> tuple[Part, str]:
    if call.state == "scheduled":
        return "undo", "It has not been sent yet, and is called off."
    if call.state == "cancelled":
        return "done", "It was called off before it was sent."
    if call.state != "succeeded":
        return "open", "It is not known what it did: resolve it first (remit doubt)."
    if way is None:
        return "impossible", f"Its effect is {call.effect}: no way back was declared."
    if taken := _TAKEN.get(way.state):
        return taken
    match way.state:
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


def _in_order(step: Step, later: Sequence[CallRecord], steps: Mapping[str, Step], *, force: bool) -> Step:
    """The step among what was done to the same thing after it: what goes first, and what stays."""
    first = {it.id: steps[it.id] for it in later if it.id in steps and steps[it.id].part in ("undo", "waits")}
    staying = [it for it in later if it.id not in first]
    if staying and force:
        step = replace(step, in_the_way=tuple(it.id for it in staying))
    elif staying:
        # What is tried, although it is likely to stay, may go after all.
        surely = tuple(it.id for it in staying if it.id not in steps or not steps[it.id].is_tried)
        return replace(step, part="conflict", why=_changed_by(staying[0]), in_the_way=surely)
    if first:
        step = replace(step, after=tuple(first), why=f"{step.why} Call {next(iter(first))} goes before it.")
    if waiting := [it for it in first.values() if it.part == "waits" and not force]:
        why = f"Call {waiting[0].call_id} must be taken back before it, and waits for people to agree."
        return replace(step, part="waits", why=why)
    return step


async def _asked(
    step: Step,
    entry: Undoable,
    above: Undoable | None,
    principal: Principal,
    run: str,
    on: Services,
    *,
    force: bool,
) -> Step:
    """The step once policy was asked, and what the call left was looked at.

    Where the call `above` goes first, nothing can be read yet: then what that one replaced tells.
    """
    try:
        call = undo_call(entry, principal, run, on, force=force)
    except WrongState as error:
        return replace(step, part="impossible", why=_sentence(str(error)))
    decision = decide(call, on)
    verdict = decision.verdict
    if verdict.rung in (Rung.EXECUTE, Rung.APPROVE) and not (call.undoing and call.undoing.cancels):
        step = replace(step, cost=decision.estimates)
        if step.after:
            met = _beneath(call, above, verdict)
            refusal = None if force else met
        else:
            refusal = await obstacle(call, verdict, on)
            insists = force and not refusal and call.undoing
            met = await changed(call, insists, verdict, on) if insists else None
        verdict = refusal or verdict
        if force and not refusal and (over := overwritten(step.in_the_way, met)):
            step = replace(step, overwrites=over, why=f"{step.why} It overwrites {over}.")
    if verdict.rung is Rung.EXECUTE:
        return step
    if verdict.rung is Rung.APPROVE:
        needed = votes_needed(verdict.duties)
        return replace(step, part="waits", why=f"{verdict.reason} {step.why}", approvals=needed)
    return replace(step, part=_refused(verdict), why=verdict.reason)


def _beneath(call: Call, above: Undoable | None, verdict: Verdict) -> Verdict | None:
    """The conflict that will show once `above` is taken back: it did not replace what this call left."""
    undoing = call.undoing
    if undoing is None or above is None or above.before is None or above.after is None:
        return None
    if above.tool != undoing.tool.name or undoing.tool.before is not undoing.tool.after:
        return None  # they were not looked at alike
    return conflict(undoing, Seen(kept=above.before, etag=above.after["replaced"]), verdict)


def _refused(verdict: Verdict) -> Part:
    return "conflict" if verdict.code == "undo_conflict" else "refused"


def _changed_by(later: CallRecord) -> str:
    return f"{later.agent} changed the same thing later ({later.tool}, call {later.id}), and that stays."


def _ended(step: Step, outcome: Outcome) -> Step:
    match outcome:
        case Done() if outcome.undone.get("state") == "done":
            over = f" It overwrote {step.overwrites}." if step.overwrites else ""
            stays = f" What stays: {step.residue}" if step.residue else ""
            part, why = "done", f"Taken back.{over}{stays}"
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
            part, why = _refused(outcome.verdict), outcome.verdict.reason
        case Failed():
            part, why = "failed", f"Nothing was undone: {outcome.message}"
        case InDoubt():
            part, why = "doubt", f"Nobody knows whether it is taken back: {outcome.message}"
    return replace(step, part=part, why=why, by_call=outcome.call_id)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
