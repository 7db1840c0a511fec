"""Finding out what became of a call in doubt: a read of the gateway's own looks for its effect.

A tool says with `find` where its effect shows. What is found there settles the call as its answer would have;
what is certainly not there ends it as failed; anything else leaves it in doubt, for a later look or a person.
Nobody looks before the call's deadline: until then a process that sleeps may still send it.

The application has one Prober for each server; `remit doubt probe` looks at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from remit import telemetry
from remit.calls import recorded_call, result_of, worked_out
from remit.doubts import GRACE_US
from remit.effects import as_recorded
from remit.errors import UnknownRecord, WrongState
from remit.images import Seen
from remit.model import Call, FindRule, Recorded, Tool
from remit.pipeline import Services, answered, own_read, settle_late, took_hold
from remit.undo import undo_call
from remit_adapters.base import Json, Reply
from remit_rbac import EvaluationError

#: Calls looked at in one round.
_ROUND = 8
_PAUSE_US = 30_000_000
_PAUSE_MAX_US = 3_600_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    call_id: str
    #: `in_doubt`: nothing could be concluded.
    state: Literal["succeeded", "failed", "in_doubt"]
    #: A sentence for people.
    why: str


@dataclass(slots=True, kw_only=True)
class Prober:
    """Looks after the calls in doubt that nobody has resolved, less and less often."""

    #: By call: when it is looked at next, and the pause after that.
    _waits: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    async def round(self, on: Services) -> list[Finding]:
        """Look at some of them. Raises StoreUnavailable."""
        now = on.clock()
        open_calls = await on.journal.in_doubt(before_us=now - GRACE_US)
        telemetry.in_doubt(len(open_calls))
        self._waits = {call_id: wait for call_id, wait in self._waits.items() if call_id in open_calls}
        due = [
            call_id
            for call_id, (kind, name) in open_calls.items()
            if (kind == "undo" or _can_tell(on.catalog.tools.get(name)))
            # No pause is longer: it began before the clock was set back.
            and not now < self._waits.get(call_id, (0, 0))[0] <= now + _PAUSE_MAX_US
        ]
        found: list[Finding] = []
        for call_id in due[:_ROUND]:
            pause_us = self._waits.get(call_id, (0, _PAUSE_US))[1]
            self._waits[call_id] = now + pause_us, min(2 * pause_us, _PAUSE_MAX_US)
            try:
                found.append(await probe(call_id, on))
            except (UnknownRecord, WrongState):
                continue  # somebody else has concluded it
        return found


def _can_tell(tool: Tool | None) -> bool:
    return tool is not None and tool.find is not None


async def probe(call_id: str, on: Services) -> Finding:
    """Look what became of one call in doubt, and conclude it if that shows.

    Raises UnknownRecord, WrongState when it is not in doubt or may still be sent, StoreUnavailable.
    """
    found = await on.journal.recorded(call_id)
    if found is None:
        raise UnknownRecord(f"there is no call {call_id}")
    if found.state != "in_doubt":
        raise WrongState(f"this call is not in doubt: it is {found.state}")
    if found.deadline_us is None or found.deadline_us + GRACE_US > on.clock():
        raise WrongState("this call may still be under way: look again when its time is over")
    if found.kind == "undo":
        return await _probe_undo(found, on)
    tool = on.catalog.tools.get(found.tool)
    tool = tool and as_recorded(tool, found.effect)
    if tool is None or tool.find is None:
        return _unsure(found, f"{found.tool} does not say how its effect is found (tools: find)")
    if found.arguments is None:
        return _unsure(found, "its exact arguments are not kept")
    call = recorded_call(found, tool)
    return await _probe_call(call, found, tool.find, on)


async def _probe_call(call: Call, found: Recorded, rule: FindRule, on: Services) -> Finding:
    key = call.arguments.get(call.tool.idempotency_arg or "", call.id)
    roots = {"args": call.arguments, "before": found.before, "key": key}
    done = await answered(own_read(call, call.id, rule.lookup, roots, "probe", on), on)
    if done is None:
        return _unsure(found, f"{rule.lookup.tool} gave no answer to go by")
    by = f"{rule.lookup.tool} (call {done.call_id})"
    try:
        items = _matching(rule, {**roots, "result": result_of(done.reply)[0]})
        if len(items) == 1:
            reply = _reply(rule.bind(**roots, item=items[0]))
        elif items:
            return _unsure(found, f"{len(items)} of what {rule.lookup.tool} shows could be it")
        elif rule.complete is None or rule.complete(result=result_of(done.reply)[0]) is not True:
            return _unsure(found, f"{rule.lookup.tool} does not show it, which proves nothing")
        else:
            reason = "it is not there, and the call can no longer arrive"
            state = await on.journal.resolve(call.id, happened=False, reason=reason, by=by)
            return Finding(call_id=call.id, state=cast("Any", state), why=f"{by}: {reason}")
        before = Seen(kept=found.before) if found.before is not None else None
        await settle_late(call, reply, before, f"{by} found it", on)
    except EvaluationError:
        return _unsure(found, f"what {rule.lookup.tool} shows cannot be compared with the call")
    return Finding(call_id=call.id, state="succeeded", why=f"{by} found it")


def _matching(rule: FindRule, roots: Json) -> list[Any]:
    """The items that the call made. Raises EvaluationError when there is nothing to compare."""
    items = roots["result"] if rule.each is None else rule.each(**roots)
    if rule.each is None:
        items = [items]
    elif not isinstance(items, list):
        raise EvaluationError("there is no list to look through")
    matching: list[Any] = []
    for item in cast("list[Any]", items):
        answer = rule.match(**roots, item=item)
        if not isinstance(answer, bool):
            raise EvaluationError("a match is true or false")
        if answer:
            matching.append(item)
    return matching


async def _probe_undo(found: Recorded, on: Services) -> Finding:
    """An undo in doubt has worked when the proof that its tool declares says so now. Raises WrongState.

    Unless a later call may be what the proof shows: it can have written just what the undo would have.
    """
    entry = await on.journal.undoable(found.of_call or "")
    if entry is None:
        return _unsure(found, "the way back that it took is not known any more")
    call = replace(undo_call(entry, found.principal, found.run, on, force=False), id=found.call_id)
    rule = call.undoing and call.undoing.tool.undo
    if rule is None or rule.verify is None:
        return _unsure(found, f"{entry.tool} does not say how its undo is proved (undo: verify)")
    if await took_hold(call, call.id, {"args": call.arguments}, on) != "done":
        return _unsure(found, f"{rule.verify.tool} does not show that it worked")
    if await on.journal.changed_since(entry.call_id, entry.tenant):
        return _unsure(found, f"what {rule.verify.tool} shows may be what a later call did to the same thing")
    reason = "what its tool asks for as a proof is true now"
    await on.journal.resolve(found.call_id, happened=True, reason=reason, by=rule.verify.tool)
    return Finding(call_id=found.call_id, state="succeeded", why=f"{rule.verify.tool}: {reason}")


def _reply(made: Any) -> Reply:
    """What was found, in the place of the answer that was lost. Raises EvaluationError."""
    body: dict[str, Any] = {
        "content": [{"type": "text", "text": worked_out(made).decode()}],
        "isError": False,
    }
    if isinstance(made, dict):
        body["structuredContent"] = made
    return Reply(body=body)


def _unsure(found: Recorded, why: str) -> Finding:
    return Finding(call_id=found.call_id, state="in_doubt", why=why)
