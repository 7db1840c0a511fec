"""How one call is governed. Read this file first.

1. decide    ask every check, in order; nothing is written.
2. admit     one transaction: hold the budget, store the undo, use the approval, append the intent.
3. execute   the adapter acts. The only step that touches the outside world.
4. settle    one transaction: spend or free the holds, bind the undo to the result, append the outcome.

`govern` is the only way to an adapter: tool calls, resources, prompts, completions, undos and the reads
that the gateway makes for its own plans all pass here. A call that was admitted and never settled is in
doubt; whoever opens the journal next finds it by its missing outcome. So no crash between two steps can
lose an action or a cent without a trace.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast

import anyio
import anyio.lowlevel
import orjson

from remit import approvals, confirmations, refusals, runs, telemetry, unrecorded
from remit.approval_requests import Approved
from remit.budgets import CALLS, Accounts
from remit.calls import fingerprint_of, result_of, subjects_of, worked_out
from remit.catalog import Catalog
from remit.checks.arguments import misfit, unfit
from remit.checks.containment import stopped
from remit.checks.permission import permission
from remit.config import AMOUNT_MAX, Config, Effect
from remit.confirmations import NOBODY_TO_ASK, AskingUser
from remit.context import context_of
from remit.deferred import Waits
from remit.earlier_calls import Repeated
from remit.effects import as_called
from remit.errors import StoreBusy, StoreUnavailable, WrongState
from remit.facts import Facts, parsed_of
from remit.ids import Clock, uuid7
from remit.images import Seen, conflict, seen
from remit.journal import Admitted, Journal, Moved, Saw
from remit.model import (
    OWN_READS,
    Call,
    CallKind,
    Charge,
    Confirmation,
    Done,
    Fact,
    Failed,
    Image,
    InDoubt,
    Lookup,
    Outcome,
    Refused,
    Remedy,
    Scalar,
    Scheduled,
    Unconfirmed,
    Undoing,
    UndoPlan,
    Verdict,
)
from remit.runs import Run
from remit.ways_back import UndoEnd
from remit_adapters.base import NOBODY, Adapter, AdapterError, Caller, Json, Operation, Reply, Request
from remit_rbac import Engine, EvaluationError, Rung

_NOTHING: Json = {}
_NO_LIMIT = nullcontext()


@dataclass(slots=True, kw_only=True)
class Turn:
    """Whose turn it is among the calls of one run that are made one after another."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    #: The calls that have it or wait for it.
    wanted: int = 0


@dataclass(slots=True, kw_only=True)
class Services:
    """What a call is governed with. `policy` and `catalog` are snapshots that the application swaps whole."""

    config: Config
    journal: Journal
    policy: Engine
    catalog: Catalog
    adapters: Mapping[str, Adapter]
    clock: Clock
    #: The key of call fingerprints.
    secret: bytes
    in_flight: dict[str, int]
    #: Takes note of a decision, to be made again under a policy that is tried; None while none is.
    shadow: Callable[[Call, Mapping[str, Any], Engine], None] | None = None
    turns: dict[runs.RunKey, Turn] = field(default_factory=dict[runs.RunKey, Turn])
    accounts: Accounts = field(init=False)

    def __post_init__(self) -> None:
        self.accounts = Accounts(self.config.budgets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Everything that deciding found out: a verdict, and what admitting would write."""

    verdict: Verdict
    #: What the call may cost, by unit; `charges` is that on every account it pays from.
    estimates: Mapping[str, int] = field(default_factory=dict[str, int])
    charges: tuple[Charge, ...] = ()
    plan: UndoPlan | None = None
    #: What the call touches; None also while only its answer can tell.
    touches: str | None = None
    #: What policy saw as `r.ctx`; None when it was not asked.
    context: Mapping[str, Any] | None = None
    facts: Facts | None = None
    #: What the run had come to, as far as it was asked about; None when nothing asks.
    run: Run | None = None
    #: Its tool has facts, and they were not looked up.
    lacks_facts: bool = False

    @property
    def saw(self) -> Saw | None:
        if self.context is None:
            return None
        return Saw(context=self.context, reads=self.facts.reads if self.facts else {})


#: How often a call is decided because its run, or the policy, has moved on meanwhile.
_ATTEMPTS = 16
#: Seconds between two looks at whether another process is done with its call of the same run.
_LOOK_S = 0.05


async def govern(
    call: Call, on: Services, caller: Caller = NOBODY, asking: AskingUser = NOBODY_TO_ASK
) -> Outcome:
    """Run one call through all four steps. The only way to reach an adapter.

    Every outcome is a value; what is raised is cancellation (recorded first) or a bug.
    """
    with _counted(call, on) as crowded, on.journal.under_way(), telemetry.stage("govern", call):
        try:
            steps = _in_turn if call.tool.serial and call.kind == "call" else _in_four_steps
            outcome = await steps(call, crowded, on, caller, asking)
        except StoreBusy:
            outcome = Refused(call_id=call.id, verdict=refusals.BUSY)
        except StoreUnavailable:
            # Nothing was sent: a call whose record cannot be written is not let out.
            outcome = await _unrecorded(call, crowded, on, caller)
    telemetry.count(call, outcome)
    return outcome


async def _unrecorded(call: Call, decided: Decision | None, on: Services, caller: Caller) -> Outcome:
    """Refuse a call that cannot be recorded, but for reads where the operator wants them all the same."""
    if not on.config.store.reads_when_down or not unrecorded.may_go(call, decided or decide(call, on)):
        return Refused(call_id=call.id, verdict=refusals.STORE_DOWN)
    if on.journal.note_unrecorded(call, on.clock()):
        _log.warning("the audit database takes no writes: reads go through, and are only counted")
    request = _request(call, call.id, None, call.tool.timeout_s, on)
    try:
        async with asyncio.timeout(call.tool.timeout_s + 1):
            reply = await on.adapters[call.tool.source].run(request, caller)
    except AdapterError as error:
        return Failed(call_id=call.id, code=error.code, message=error.message, rpc=error.rpc)
    except TimeoutError:
        return Failed(call_id=call.id, code=_LATE[0], message=_LATE[1])
    return Done(call_id=call.id, reply=reply, cost={}, undo=None, failed=reply.is_error, unrecorded=True)


async def _in_turn(
    call: Call, decided: Decision | None, on: Services, caller: Caller, asking: AskingUser
) -> Outcome:
    """The same, once no other call of this run that waits its turn is under way here."""
    key = runs.key_of(call)
    turn = on.turns.setdefault(key, Turn())
    turn.wanted += 1
    try:
        async with turn.lock:
            return await _in_four_steps(call, decided, on, caller, asking)
    finally:
        turn.wanted -= 1
        if not turn.wanted:
            del on.turns[key]


async def _in_four_steps(
    call: Call,
    decided: Decision | None,
    on: Services,
    caller: Caller,
    asking: AskingUser,
    attempts: int = _ATTEMPTS,
) -> Outcome:
    # 1. decide
    with telemetry.stage("decide", call):
        decision = decided or await _decided(call, on)
    verdict = decision.verdict
    telemetry.decided(call, verdict)
    first = decided is None and attempts == _ATTEMPTS and call.kind == "call"
    if on.shadow is not None and first and decision.context is not None and verdict.policy_version:
        on.shadow(call, decision.context, on.policy)
    if verdict.rung in (Rung.DENY, Rung.ADVISE):
        if earlier := await _made_before(call, verdict, on):
            return await _repeat(call, earlier, on)
        await on.journal.refuse(call, verdict, decision.saw)
        return Refused(call_id=call.id, verdict=verdict, advice=_advice(verdict, decision))
    # Before anybody is asked or anything is read: what is taken back by now, or too late, is no conflict.
    if call.undoing and (blocked := await _blocked(call, call.undoing, verdict, on)):
        await on.journal.refuse(call, blocked)
        return Refused(call_id=call.id, verdict=blocked)
    approved: Approved | None = None
    if verdict.rung is Rung.APPROVE and call.scheduled_us is not None:
        if refusal := await approvals.lapsed(call, verdict, decision.saw, on):
            return refusal
    elif verdict.rung is Rung.APPROVE:
        answer = await approvals.ask(call, verdict, decision.estimates, decision.plan, decision.saw, on)
        if isinstance(answer, Repeated):
            return await _repeat(call, answer, on)
        if not isinstance(answer, Approved):
            return answer
        approved = answer
    if call.confirmation and not verdict.owes("confirm"):
        call = replace(call, confirmation=None)  # nobody asked for it, so it stays good
    if verdict.owes("confirm") and not confirmations.holds(call):
        if earlier := await _made_before(call, verdict, on):
            return await _repeat(call, earlier, on)
        answer = await _ask_user(call, decision, on, asking)
        if not isinstance(answer, Confirmation):
            return answer
        # Decided anew: while somebody thought about it, everything may have changed.
        call = replace(call, confirmation=answer)
        return await _in_four_steps(call, None, on, caller, asking, attempts - 1)
    if call.undoing and call.undoing.cancels:
        return await _call_off(call, verdict, approved, on)
    call_id = approved.call_id if approved else call.id
    before, refusal = await _capture(call, call_id, decision, on)
    if refusal:
        if earlier := await _made_before(call, refusal, on):
            return await _repeat(call, earlier, on)
        await on.journal.refuse(call, refusal, decision.saw)
        return Refused(call_id=call.id, verdict=refusal)

    # 2. admit
    with telemetry.stage("admit", call):
        if call.scheduled_us is None:
            admitted = await on.journal.admit(
                call,
                verdict,
                decision.charges,
                decision.plan,
                stopped=stopped,
                in_force=lambda: on.policy.version,
                touches=decision.touches,
                approved=approved,
                before=before.body if before else None,
                saw=decision.saw,
                run=decision.run,
                of_run=_of_run(call, on) if decision.run else None,
            )
        else:
            admitted = await on.journal.let_out(
                call,
                verdict,
                decision.charges,
                stopped=stopped,
                in_force=lambda: on.policy.version,
                plan=decision.plan,
                touches=decision.touches,
                before=before.body if before else None,
                run=decision.run,
                of_run=_of_run(call, on) if decision.run else None,
            )
    if isinstance(admitted, Moved):
        if attempts > 1:
            return await _in_four_steps(call, None, on, caller, asking, attempts - 1)
        admitted = refusals.RESTLESS
    if isinstance(admitted, Verdict) and admitted.rung is Rung.APPROVE:
        # A budget asks for people: the same call once more, with their word.
        return await _in_four_steps(call, replace(decision, verdict=admitted), on, caller, asking, attempts)
    if isinstance(admitted, Verdict):
        await on.journal.refuse(call, admitted, decision.saw)
        return Refused(call_id=call.id, verdict=admitted)
    if isinstance(admitted, Repeated):
        return await _repeat(call, admitted, on)
    if isinstance(admitted, Waits) and admitted.waits_for:
        return Scheduled(call_id=call_id, due_us=admitted.due_us, waits_for=admitted.waits_for)
    telemetry.held(decision.charges)
    if isinstance(admitted, Waits):
        return Scheduled(
            call_id=call_id, due_us=admitted.due_us, cost=decision.estimates, warnings=admitted.warnings
        )

    # 3. execute, 4. settle
    return await _run(call, call_id, admitted, decision, before, on, caller)


async def _decided(call: Call, on: Services) -> Decision:
    """Decide; a call that waits its turn, once no other process has one of the same run under way.

    None can begin between that look and `admit` unnoticed: the run would have moved.
    """
    if not call.tool.serial or call.kind != "call":
        return await informed(call, on)
    run = None
    with anyio.move_on_after(call.tool.timeout_s):
        while (run := await on.journal.turn(call, _serial(on))) is None:  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(_LOOK_S)
    return Decision(verdict=refusals.RESTLESS) if run is None else await informed(call, on, run)


async def informed(call: Call, on: Services, run: Run | None = None) -> Decision:
    """Decide, once the facts that the call's tool declares are looked up.

    Nothing is read for a call that no fact could save: where deciding without them met no condition that
    asks for more, or refused before policy was asked. `run` is what the run has come to, where that is
    known.
    """
    if run is None and _asks_about_run(call, on):
        run = await on.journal.run(call)
    decision = decide(call, on, run=run)
    if not decision.lacks_facts or (decision.verdict.rung is Rung.DENY and not decision.verdict.in_doubt):
        return decision
    facts = await _look_up(call, decision, on)
    return decide(call, on, facts, run) if isinstance(facts, Facts) else Decision(verdict=facts)


def _asks_about_run(call: Call, on: Services) -> bool:
    return call.kind == "call" and (call.tool.reads_run or on.policy.reads("run"))


def _serial(on: Services) -> Callable[[str], bool]:
    """Whether calls of a tool wait for each other."""
    tools = on.catalog.tools
    return lambda name: name in tools and tools[name].serial


def _of_run(call: Call, on: Services) -> Callable[[Run], Run]:
    """What of its run a decision on the call goes by: all of it, or only the calls that it waits for."""
    if _asks_about_run(call, on):
        return lambda run: run
    serial = _serial(on)
    return lambda run: Run(tools={tool: count for tool, count in run.tools.items() if serial(tool)})


def decide(call: Call, on: Services, facts: Facts | None = None, run: Run | None = None) -> Decision:
    """All checks in order; the first that refuses ends it. Reads memory only."""
    parsed: Json = {}
    if refusal := stopped(call, on.journal.switches) or misfit(call):
        return Decision(verdict=refusal)
    if call.tool.parsed and call.kind == "call":
        read = parsed_of(call)
        if isinstance(read, str):
            return Decision(verdict=unfit(read))
        parsed = read
    if call.tool.subject and not call.subjects and call.kind == "call":
        return Decision(verdict=refusals.NO_SUBJECT)
    try:
        estimates = estimates_of(call)
    except EvaluationError:
        return Decision(verdict=refusals.NO_PRICE)
    touches = _touched(call, {"args": call.arguments})
    plan, no_way_back = _plan(call, touches, on)
    context = context_of(
        call,
        on.config,
        estimates,
        undo_ready=plan is not None,
        undo_proven=plan is not None and plan.proof is not None,
        parsed=parsed,
        facts=facts.values if facts else None,
        run=run.seen_by(call) if run else _NOTHING,
    )
    verdict = permission(call, on.policy, context)
    if call.is_held_back and verdict.owes("redact"):
        verdict = refusals.CANNOT_DEFER
    if no_way_back and verdict.rung is not Rung.DENY:
        verdict = replace(
            verdict, rung=Rung.DENY, code="no_way_back", reason=no_way_back, remedy=Remedy.CHANGE
        )
    return Decision(
        verdict=verdict,
        estimates=estimates,
        charges=on.accounts.of_call(call, estimates, _paid_at(call)),
        plan=plan,
        touches=touches,
        context=context if call.kind == "call" or verdict.rung is Rung.APPROVE else None,
        facts=facts,
        run=run,
        lacks_facts=facts is None and bool(call.tool.facts) and call.kind == "call",
    )


def _paid_at(call: Call) -> int:
    """The time whose windows a call pays in: that at which its cost was held."""
    return call.received_us if call.waited or call.scheduled_us is None else call.scheduled_us


async def _ask_user(
    call: Call, decision: Decision, on: Services, asking: AskingUser
) -> Confirmation | Refused | Unconfirmed:
    """What the user of the client says to exactly this call, or what the agent is told until they do."""
    good_for_s = on.config.approvals.pending
    question = confirmations.question(call)
    state: str | None = None
    refusal = refusals.CANNOT_CONFIRM
    if call.confirmation is not None and not call.confirmation.accepted:
        refusal = refusals.NOT_CONFIRMED
    elif question and asking.now:
        with anyio.move_on_after(good_for_s):
            if confirmations.said_yes(await asking.now(question)):
                return confirmations.given(call, on.clock(), accepted=True, good_for_s=good_for_s)
        refusal = refusals.NOT_CONFIRMED
    elif question and asking.again:
        state = confirmations.sealed(call, on.secret, at_us=on.clock(), good_for_s=good_for_s)
        refusal = refusals.UNCONFIRMED if state else refusals.CANNOT_CONFIRM
    refused = replace(
        decision.verdict, rung=Rung.DENY, code=refusal.code, reason=refusal.reason, remedy=refusal.remedy
    )
    await on.journal.refuse(call, refused, decision.saw)
    if state and question:
        return Unconfirmed(call_id=call.id, question=question, state=state, verdict=refused)
    return Refused(call_id=call.id, verdict=refused)


class _StoppedError(AdapterError):
    """An operator has stopped the call while it waited for its source."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason, no_effect=True, code=verdict.code)
        self.verdict = verdict


async def _run(
    call: Call,
    call_id: str,
    admitted: Admitted,
    decision: Decision,
    before: Seen | None,
    on: Services,
    caller: Caller,
) -> Outcome:
    """Execute and settle: from here on something may have happened, and whatever ends this is recorded."""
    harmless = call.tool.effect is Effect.READ
    adapter = on.adapters[call.tool.source]
    seconds = (admitted.deadline_us - on.clock()) / 1_000_000
    if seconds <= 0 or not on.journal.holds_lease:
        # This process slept, and by now others may have concluded that nothing was sent.
        await _settle_failure(call, call_id, _TOO_LATE, on)
        return Failed(call_id=call_id, code=_TOO_LATE[0], message=_TOO_LATE[1])
    try:
        if on.journal.waited:
            await anyio.lowlevel.checkpoint_if_cancelled()
    except BaseException:
        await _settle_failure(call, call_id, ("cancelled", "The caller left before anything was sent."), on)
        raise
    try:
        with telemetry.stage("execute", call):
            async with _NO_LIMIT if adapter.keeps_deadlines else asyncio.timeout(seconds + 1):
                reply = await adapter.run(_request(call, call_id, before, seconds, on), caller)
    except AdapterError as error:
        if error.no_effect or harmless:
            await _settle_failure(call, call_id, (error.code, error.message), on)
            if isinstance(error, _StoppedError):
                return Refused(call_id=call_id, verdict=error.verdict)
            return Failed(call_id=call_id, code=error.code, message=error.message, rpc=error.rpc)
        await _doubt(call, call_id, error.code, error.message, on)
        return InDoubt(call_id=call_id, code=error.code, message=error.message, rpc=error.rpc)
    except BaseException as error:
        # Cancelled, or a bug: nobody can know what the source did, so do not claim to.
        code, message = _LATE if isinstance(error, TimeoutError) else _CUT_SHORT
        if harmless:
            await _settle_failure(call, call_id, (code, message), on)
        else:
            await _doubt(call, call_id, code, message, on)
        if not isinstance(error, TimeoutError):
            raise
        ended = Failed if harmless else InDoubt
        return ended(call_id=call_id, code=code, message=message)
    with telemetry.stage("settle", call):
        try:
            done = await _settle(call, call_id, decision, reply, before, on)
            if done.undone.get("state") == "ready":
                overtaken = replace(decision.verdict, rung=Rung.DENY, code="undo_conflict", reason=_OVERTAKEN)
                return Refused(call_id=call_id, verdict=overtaken)
            return done
        except (StoreUnavailable, WrongState) as error:
            if harmless and on.config.store.reads_when_down:
                return Done(call_id=call_id, reply=reply, cost={}, undo=None, failed=reply.is_error)
            # The effect happened. Its record is owed, and the journal writes it as soon as it can; or the
            # call was given up for dead while this process slept, and stands as others concluded.
            message = _CONCLUDED if isinstance(error, WrongState) else _UNRECORDED
            return InDoubt(call_id=call_id, code="unrecorded", message=message)
        except BaseException:
            # Cut short while the undo was proved, or a bug: what is not recorded by now is in doubt.
            await _doubt(call, call_id, *_CUT_SHORT, on)
            raise


def _request(call: Call, call_id: str, before: Seen | None, seconds: float, on: Services) -> Request:
    """The call as its adapter takes it."""

    def before_sent() -> None:
        # It may have waited for its source, while an operator stopped it, or others gave this process up.
        if refusal := stopped(call, on.journal.switches):
            raise _StoppedError(refusal)
        if call.tool.effect is not Effect.READ and not on.journal.holds_lease:
            code, message = _TOO_LATE
            raise AdapterError(message, no_effect=True, code=code)

    name, arguments = call.tool.own_name, call.arguments
    match call.tool.operation:
        case Operation.TOOL:
            if (key := call.tool.idempotency_arg) and key not in arguments:
                arguments = {**arguments, key: call_id}
            if before and before.etag is not None and (key := call.tool.if_match) and key not in arguments:
                arguments = {**arguments, key: before.etag}
        case Operation.RESOURCE:
            name, arguments = str(arguments["uri"]), {}
        case Operation.PROMPT:
            name, arguments = str(arguments["name"]), arguments["arguments"]
        case Operation.COMPLETE:
            pass
    return Request(
        operation=call.tool.operation,
        name=name,
        arguments=arguments,
        key=call_id,
        deadline_s=seconds,
        meta=telemetry.propagated(call.meta),
        input_responses=call.input_responses,
        request_state=call.request_state,
        before_sent=before_sent,
    )


async def settle_late(call: Call, reply: Reply, before: Seen | None, how: str, on: Services) -> Done:
    """Settle a call in doubt by what was found of its effect, as its answer would have. `how` is recorded.

    Raises WrongState when others have concluded it, StoreUnavailable, EvaluationError without a price.
    """
    touches = _touched(call, {"args": call.arguments})
    plan, _ = _plan(call, touches, on)
    entry = await on.journal.undoable(call.id)
    if (plan and plan.tool) != (entry and entry.undo_tool):
        # Declared anew since: what is worked out by one declaration is not for the way back of another.
        call = replace(call, tool=replace(call.tool, undo=None))
        plan = entry and UndoPlan(tool=entry.undo_tool, resource=entry.resource, expires_us=entry.expires_us)
    decision = Decision(verdict=_SENT, estimates=estimates_of(call), plan=plan, touches=touches)
    return await _settle(call, call.id, decision, reply, before, on, late=how)


async def _settle(
    call: Call,
    call_id: str,
    decision: Decision,
    reply: Reply,
    before: Seen | None,
    on: Services,
    *,
    late: str | None = None,
) -> Done:
    result, text = result_of(reply)
    roots = {"args": call.arguments, "result": result, "before": before and before.kept, "text": text}
    # What was found shows the effect: what it says is no word of the tool's on how the call went.
    failed = reply.is_error or (late is None and _says_failed(call, roots))
    no_effect = failed and (call.tool.errors_have_no_effect or not reply.is_error)
    plan = decision.plan
    if plan is not None:
        # A call that failed, or that the source has not finished, has nothing to take back.
        plan = (
            replace(plan, arguments=None)
            if failed or reply.kind == "input_required"
            else _bound(call, plan, roots)
        )
    left: Seen | None = None
    # What is there by the time that a lost call is found may be another's already.
    if call.tool.after and plan and plan.arguments is not None and late is None:
        read = own_read(call, call_id, call.tool.after.lookup, roots, "after", on)
        left = await _look(call.tool.after, read, on)
    undo_state: UndoEnd | None = None
    error = ("tool_error", text[:500]) if failed else None
    if call.undoing is not None:
        undo_state = "failed" if failed else await took_hold(call, call_id, roots, on)
        if failed and await _overtaken(call, call_id, call.undoing, decision.verdict, before, on):
            undo_state, error = "ready", ("undo_conflict", _OVERTAKEN)
        if undo_state == "indeterminate":
            # It stays open: a later look, or a person, says whether it worked.
            await _doubt(call, call_id, *_UNPROVED, on)
            return Done(
                call_id=call_id,
                reply=reply,
                cost=decision.estimates,
                undo=None,
                undone={"state": undo_state, "residue": call.undoing.residue},
            )
        if undo_state == "done" and call.undoing.tool.after and call.undoing.tool.after.etag:
            left, _ = await _still_as_left(call, call_id, call.undoing, decision.verdict, on)
    costs = {CALLS: 1} if no_effect else _costs(call, decision.estimates, roots, failed=failed)
    settled = await on.journal.settle(
        call,
        call_id=call_id,
        state="failed" if failed else "succeeded",
        costs=costs,
        charges=() if failed else decision.charges,
        reply=orjson.dumps(reply.body),
        error=error,
        plan=plan,
        undo_state=undo_state,
        touches=_touched(call, roots) if decision.touches is None else None,
        after=left.after(before) if left else None,
        resolution=late,
        frees_key=reply.kind == "input_required",
        establishes=_established(call, roots) if not failed and reply.kind == "complete" else None,
    )
    return Done(
        call_id=call_id,
        reply=reply,
        failed=failed,
        cost=costs,
        undo=plan if plan and plan.arguments is not None else None,
        event=settled.event,
        warnings=settled.warnings,
        undone={"state": undo_state, "residue": call.undoing.residue} if call.undoing else {},
    )


def _established(call: Call, roots: Mapping[str, Any]) -> Mapping[str, Scalar] | None:
    """What the success of a call says about its run; what cannot be worked out is not said."""
    if not call.tool.establishes or call.kind != "call":
        return None
    found: dict[str, Scalar] = {}
    for name, expression in call.tool.establishes.items():
        with suppress(EvaluationError):
            if runs.is_scalar(value := expression(**roots)):
                worked_out(value)
                found[name] = value
    return found


async def _settle_failure(call: Call, call_id: str, error: tuple[str, str], on: Services) -> None:
    with suppress(StoreUnavailable, WrongState):  # it is owed then, or was concluded by others
        await on.journal.settle(
            call,
            call_id=call_id,
            state="failed",
            costs={},
            reply=None,
            error=error,
            plan=UndoPlan(tool=call.tool.undo.tool, resource=None, expires_us=0)
            if call.tool.undo and call.kind == "call"
            else None,
            undo_state="ready" if call.kind == "undo" else None,
            frees_key=True,
        )


async def _doubt(call: Call, call_id: str, code: str, message: str, on: Services) -> None:
    with suppress(StoreUnavailable):  # it is owed then
        await on.journal.doubt(call, call_id=call_id, code=code, message=message)


async def _made_before(call: Call, verdict: Verdict, on: Services) -> Repeated | None:
    """The equal call that was let out before, of a call that is not let out as things are now.

    Often it is that one which has changed them: what was taken is not there any more. Who were refused for it
    would try another way. What a switch stops, and whoever has lost the tool altogether, is told nothing.
    """
    who = call.principal
    if not verdict.policy_version or not on.policy.visible(who.tenant, who.agent, who.user, call.tool.name):
        return None
    return await on.journal.repeated(call)


async def _repeat(call: Call, earlier: Repeated, on: Services) -> Outcome:
    """Answer a call that was let out before from its record; never send it again."""
    if earlier.waits is not None:
        waits = earlier.waits
        return Scheduled(call_id=earlier.call_id, due_us=waits.due_us, waits_for=waits.waits_for)
    if earlier.reply is not None:
        return Done(call_id=earlier.call_id, reply=earlier.reply, cost={}, undo=None, repeated=True)
    verdict = {"in_doubt": refusals.IN_DOUBT, "dispatched": refusals.UNDER_WAY}.get(
        earlier.state, refusals.ENDED
    )
    await on.journal.refuse(call, verdict)
    return Refused(call_id=call.id, verdict=verdict)


# The way back.


async def _call_off(call: Call, verdict: Verdict, approved: Approved | None, on: Services) -> Outcome:
    """Take back what has not been sent yet; that is one transaction, and nothing leaves."""
    cancelled = await on.journal.cancel(call, verdict, approved)
    if isinstance(cancelled, Verdict):
        await on.journal.refuse(call, cancelled)
        return Refused(call_id=call.id, verdict=cancelled)
    undone = {"state": "done", "residue": None}
    call_id = approved.call_id if approved else call.id
    return Done(call_id=call_id, reply=Reply(body={}), cost={}, undo=None, event=cancelled, undone=undone)


def _plan(call: Call, touches: str | None, on: Services) -> tuple[UndoPlan | None, str | None]:
    """The undo to register, or a sentence why the declared way back does not exist now."""
    rule = call.tool.undo
    if call.tool.effect is Effect.DEFERRED and call.kind == "call":
        due_us = call.received_us + call.tool.hold_back_s * 1_000_000
        return UndoPlan(tool=call.tool.name, resource=touches, expires_us=due_us, calls_off=True), None
    if rule is None or call.kind != "call":
        return None, None
    if rule.tool not in on.catalog.tools or (
        call.tool.before and call.tool.before.lookup.tool not in on.catalog.tools
    ):
        return None, (
            "This call can only be made while it can be taken back, and the tool that takes it back is not "
            "available now. Try again later, or tell your user."
        )
    return UndoPlan(
        tool=rule.tool,
        resource=touches,
        expires_us=call.received_us + rule.within_s * 1_000_000,
        residue=rule.residue,
        refund=rule.refund,
        proof=on.journal.proofs.get(on.catalog.plans[call.tool.name]),
        best_effort=call.tool.before is not None
        and (call.tool.before.etag is None or call.tool.if_match is None),
    ), None


def _bound(call: Call, plan: UndoPlan, roots: Mapping[str, Any]) -> UndoPlan:
    """The plan with its arguments computed from what came back; without them it can never run."""
    if call.tool.undo is None:
        return plan
    try:
        arguments = {name: expression(**roots) for name, expression in call.tool.undo.arguments.items()}
        worked_out(arguments)
    except EvaluationError:
        return plan
    resource = _touched(call, roots) if plan.resource is None else plan.resource
    return plan.bound(arguments, resource)


def _touched(call: Call, roots: Mapping[str, Any]) -> str | None:
    """What the call touches, by the operator's word; undoing is accounted for by what it undoes."""
    if call.tool.resource is None or call.kind != "call" or call.tool.effect is Effect.READ:
        return None
    try:
        return str(call.tool.resource(**roots))
    except EvaluationError:
        return None  # it needs the result: asked again when that is known


async def _capture(
    call: Call, call_id: str, decision: Decision, on: Services
) -> tuple[Seen | None, Verdict | None]:
    """What the call will replace, or the refusal when it cannot be read.

    For an undo also the refusal when it is not what the call that it takes back has left.
    """
    if call.undoing is not None:
        return await _still_as_left(call, call_id, call.undoing, decision.verdict, on)
    image = call.tool.before
    if image is None or call.kind != "call":
        return None, None
    read = own_read(call, call_id, image.lookup, {"args": call.arguments}, "before", on)
    if read and decision.facts and (key := _what(read)) in decision.facts.answers:
        before = seen(image, decision.facts.answers[key])  # the very read that a fact needed
    else:
        before = await _look(image, read, on)
    if before is None:
        return None, replace(
            decision.verdict,
            rung=Rung.DENY,
            code="no_before_image",
            reason="What this call would replace could not be read first, so it could not be taken back. "
            "Check the arguments, or try again later.",
            remedy=Remedy.CHANGE,
        )
    return before, None


async def _still_as_left(
    call: Call, call_id: str, undoing: Undoing, verdict: Verdict, on: Services
) -> tuple[Seen | None, Verdict | None]:
    """What is there of what the call changed; and the refusal to replace it, unless a person insists."""
    image = undoing.tool.after
    if image is None:
        return None, None
    roots = {"args": undoing.arguments, "result": undoing.result, "before": undoing.before}
    now = await _look(image, own_read(call, call_id, image.lookup, roots, "after", on), on)
    return now, None if undoing.forced else conflict(undoing, now, verdict)


async def _overtaken(
    call: Call, call_id: str, undoing: Undoing, verdict: Verdict, before: Seen | None, on: Services
) -> bool:
    """Whether an undo that was made on one version was refused since somebody else has written meanwhile."""
    if before is None or before.etag is None or call.tool.if_match is None:
        return False
    now, _ = await _still_as_left(call, call_id, undoing, verdict, on)
    return now is not None and now.etag != before.etag and now.kept != undoing.before


async def _blocked(call: Call, undoing: Undoing, verdict: Verdict, on: Services) -> Verdict | None:
    """The refusal of an undo that the record alone tells; calling off is decided by the race for it.

    Where people are asked, that is looked up with their answer: it goes by when they were asked.
    """
    if undoing.cancels or verdict.rung is Rung.APPROVE:
        return None
    return await on.journal.undo_obstacle(call, verdict)


async def obstacle(call: Call, verdict: Verdict, on: Services) -> Verdict | None:
    """The refusal that this undo would meet now, although policy lets it be. Reads, and changes nothing."""
    if call.undoing is None:
        return None
    if refusal := await on.journal.undo_obstacle(call, verdict):
        return refusal
    return None if call.undoing.forced else await changed(call, call.undoing, verdict, on)


async def changed(call: Call, undoing: Undoing, verdict: Verdict, on: Services) -> Verdict | None:
    """The conflict of this undo with what is there now, also where somebody insists on it. Reads only."""
    return (await _still_as_left(call, call.id, replace(undoing, forced=False), verdict, on))[1]


async def _look(image: Image, read: Call | None, on: Services) -> Seen | None:
    done = await answered(read, on)
    return seen(image, result_of(done.reply)[0]) if done else None


async def took_hold(call: Call, call_id: str, roots: Mapping[str, Any], on: Services) -> UndoEnd:
    """Whether the world shows that the undo recorded as `call_id` worked.

    Without a declared proof, the source's word counts.
    """
    assert call.undoing is not None  # noqa: S101 - an undo call is built with it
    rule = call.undoing.tool.undo
    if rule is None or rule.verify is None or rule.expect is None:
        return "done"
    mine = {
        **roots,
        "args": call.undoing.arguments,
        "before": call.undoing.before,
        "original": call.undoing.result,
    }
    done = await answered(own_read(call, call_id, rule.verify, mine, "verify", on), on)
    if done is None:
        return "indeterminate"
    try:
        return "done" if rule.expect(**{**mine, "result": result_of(done.reply)[0]}) is True else "failed"
    except EvaluationError:
        return "indeterminate"


async def _look_up(call: Call, decision: Decision, on: Services) -> Facts | Verdict:
    """The facts of the call, or the refusal when one of them cannot be had in the call's own time."""
    values: dict[str, Any] = {}
    reads: dict[str, str] = {}
    answers: dict[tuple[str, bytes], Any] = {}
    ids: dict[tuple[str, bytes], str] = {}
    # A call that people are asked about, or have agreed to, has its record already.
    serves = await on.journal.asked_as(call) or call.id
    own_error = ""
    context = decision.context or _NOTHING
    roots = {"args": call.arguments, **{name: context.get(name, {}) for name in ("parsed", "run")}}

    async def ask(read: Call) -> None:
        nonlocal own_error
        outcome = await govern(read, on)
        if done := _clean(outcome):
            answers[_what(read)], ids[_what(read)] = result_of(done.reply)[0], done.call_id
        elif isinstance(outcome, Done) and _what(read) == _what(call):
            own_error = result_of(outcome.reply)[1]  # what the call itself would be answered

    async def look_up(name: str, fact: Fact) -> None:
        here = {**roots, "facts": known}
        with suppress(EvaluationError):
            elements = [None] if fact.each is None else _listed(fact.each(**here), on.config.limits.facts)
            wanted = [
                own_read(call, serves, fact.lookup, {**here, "each": each}, "fact", on) for each in elements
            ]
            unread = {_what(read): read for read in wanted if read and _what(read) not in answers}
            async with anyio.create_task_group() as tasks:
                for read in unread.values():
                    tasks.start_soon(ask, read)
            found = [_what(read) for read in wanted if read and _what(read) in answers]
            if len(found) < len(elements):
                return
            kept = [fact.select(answers[what]) if fact.select else answers[what] for what in found]
            values[name] = kept[0] if fact.each is None else kept
            names = [name] if fact.each is None else [f"{name}[{n}]" for n in range(len(found))]
            reads.update(zip(names, (ids[what] for what in found), strict=True))

    with anyio.move_on_after(call.tool.timeout_s):
        for wave in call.tool.facts:
            known = dict(values)
            async with anyio.create_task_group() as tasks:
                for name, fact in wave.items():
                    tasks.start_soon(look_up, name, fact)
            if missing := [name for name in wave if name not in values]:
                return _unknown_facts(decision.verdict, missing, own_error)
        return Facts(values=values, reads=reads, answers=answers)
    late = [name for wave in call.tool.facts for name in wave if name not in values]
    return _unknown_facts(decision.verdict, late)


def _listed(value: Any, most: int) -> list[Any]:
    """What to look up something for, one by one. Raises EvaluationError when it is no list, or too long."""
    if not isinstance(value, list) or len(elements := cast("list[Any]", value)) > most:
        raise EvaluationError(f"facts are looked up for a list of at most {most}")
    return elements


def _unknown_facts(verdict: Verdict, names: Sequence[str], own_error: str = "") -> Verdict:
    return Verdict(
        rung=Rung.DENY,
        code="no_facts",
        reason=own_error[:500]
        or f"What decides about this call could not be looked up ({', '.join(names)}). Check that the "
        "arguments name things that exist, or try again later.",
        remedy=Remedy.CHANGE,
        policy_version=verdict.policy_version,
    )


def _what(read: Call) -> tuple[str, bytes]:
    return read.tool.name, read.arguments_json


def own_read(
    call: Call, call_id: str, lookup: Lookup, roots: Mapping[str, Any], kind: CallKind, on: Services
) -> Call | None:
    """A read of the gateway's own that serves the call recorded as `call_id`; None when it cannot be made."""
    tool = on.catalog.tools.get(lookup.tool)
    if tool is None:
        return None
    try:
        arguments = {name: expression(**roots) for name, expression in lookup.arguments.items()}
        arguments_json = worked_out(arguments)
    except EvaluationError:
        return None
    tool = as_called(tool, arguments)
    if tool.effect is not Effect.READ:
        return None
    now = on.clock()
    return replace(
        call,
        id=uuid7(now),
        kind=kind,
        of_call=call_id,
        undoing=None,
        tool=tool,
        arguments=arguments,
        arguments_json=arguments_json,
        fingerprint=fingerprint_of(on.secret, call.principal, tool.name, arguments),
        received_us=now,
        scheduled_us=None,
        waited=False,
        client_key=None,
        claim={},
        confirmation=None,
        input_responses=None,
        request_state=None,
        subjects=tuple(dict.fromkeys((*call.subjects, *subjects_of(tool, arguments)))),
    )


async def answered(read: Call | None, on: Services) -> Done | None:
    """What a read of the gateway's own found; None when it gave no answer that could be built on."""
    return _clean(await govern(read, on)) if read else None


def _clean(outcome: Outcome) -> Done | None:
    if not isinstance(outcome, Done) or outcome.reply.is_error or outcome.reply.kind != "complete":
        return None
    return None if outcome.failed else outcome


# What a call costs, and what policy may know about it.


def _costs(
    call: Call, estimates: Mapping[str, int], roots: Mapping[str, Any], *, failed: bool
) -> Mapping[str, int]:
    """What the call really cost, by unit. Where that cannot be told, what it was held to cost: never less."""
    costs = dict(estimates)
    for price in call.tool.prices:
        if price.actual is not None and not failed:
            with suppress(EvaluationError):
                costs[price.unit] = _amount(price.actual(**roots))
    return costs


def _amount(value: Any) -> int:
    """A price as an amount: a whole number from 0 to 2^53-1. Raises EvaluationError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= AMOUNT_MAX:
        raise EvaluationError("a price is a whole number from 0 to 2^53-1")
    return value


def estimates_of(call: Call) -> Mapping[str, int]:
    """What to hold for the call, by unit. Raises EvaluationError when its arguments do not tell."""
    # The gateway's own reads are none of the calls that an agent is allowed: an undo is proved also when
    # that was its last.
    free = (CALLS,) if call.kind in OWN_READS else ()
    return {
        price.unit: _amount(price.estimate(args=call.arguments))
        for price in call.tool.prices
        if price.unit not in free
    }


def _says_failed(call: Call, roots: Mapping[str, Any]) -> bool:
    """Whether the tool's own rule reads the answer as a failure."""
    if call.tool.failed_when is None:
        return False
    try:
        return call.tool.failed_when(**roots) is True
    except EvaluationError:
        return False


def _advice(verdict: Verdict, decision: Decision) -> Mapping[str, Any] | None:
    if verdict.rung is not Rung.ADVISE:
        return None
    return describe(decision)


def describe(decision: Decision) -> Mapping[str, Any]:
    """What a call would be, without making it: how far it may go, its price, its way back."""
    verdict, plan = decision.verdict, decision.plan
    return {
        "verdict": verdict.rung.name.lower(),
        "code": verdict.code,
        "reason": verdict.reason,
        "cost": decision.estimates,
        "confirm": verdict.owes("confirm"),
        "held_back_until_us": plan.expires_us if plan and plan.calls_off else None,
        "undo": _way_back(plan) if plan else None,
    }


def _way_back(plan: UndoPlan) -> Json:
    """How a call would come back, and how sure that is: by a proof, or by the operator's word."""
    if plan.calls_off:
        return {"calls_off": True, "until_us": plan.expires_us}
    proof = plan.proof
    return {
        "tool": plan.tool,
        "until_us": plan.expires_us,
        "confidence": "proven" if proof else "claimed",
        **({"proven_us": proof.at_us, "proof": proof.digest} if proof else {}),
        "best_effort": plan.best_effort,
        "residue": plan.residue,
        "refund": plan.refund,
    }


@contextmanager
def _counted(call: Call, on: Services) -> Generator[Decision | None]:
    """Count the call among its agent's and its source's; yields the refusal when one has too many."""
    limits = on.config.limits
    keys = [
        (f"agent {call.principal.tenant}/{call.principal.agent}", limits.per_agent),
        (f"source {call.tool.source}", limits.per_source),
    ]
    if call.kind != "call" or call.scheduled_us is not None:
        keys = []  # it runs inside a call that is counted, or was when it was let in
    full = any(on.in_flight.get(key, 0) >= most for key, most in keys)
    if full:
        yield Decision(verdict=refusals.CROWDED)
        return
    for key, _ in keys:
        on.in_flight[key] = on.in_flight.get(key, 0) + 1
    try:
        yield None
    finally:
        for key, _ in keys:
            on.in_flight[key] -= 1
            if not on.in_flight[key]:
                del on.in_flight[key]


_log = logging.getLogger(__name__)
_LATE = ("timeout", "The call did not end in time.")
_UNPROVED = ("unproved", "The source answered, but whether that was undone could not be looked at.")
_CUT_SHORT = ("interrupted", "The call was cut short.")
_OVERTAKEN = "Somebody has changed the same thing in that very moment, so nothing was undone: ask a person."
_TOO_LATE = ("too_late", "The time of the call was over before it was sent.")
_SENT = Verdict(rung=Rung.EXECUTE, code="allowed", reason="It was sent.", remedy=Remedy.STOP)
_UNRECORDED = "The source answered, but the answer could not be recorded yet."
_CONCLUDED = "The source answered late: others have concluded how this call ended, and that is on record."
