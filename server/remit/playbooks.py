"""Recovery procedures: written down beforehand, and really carried out, one governed step after another.

A driver over rows, no engine: each step is a governed call under a key made of the run and the step, a
rollback, or a switch, and all three do nothing twice. So a run that was cut short, at whatever point, is
carried on by doing it again. What is done is not done again: what it found is read back from its own record.
What is only looked up is looked up anew, for the answers to reads are not kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from remit.budgets import in_words
from remit.calls import new_call, result_of
from remit.config import Effect, Playbook, PlaybookStep
from remit.config_file import Loaded
from remit.errors import RemitError, StoreUnavailable, WrongState
from remit.identity import Principal
from remit.ids import uuid7
from remit.model import Call, Done, InDoubt, Outcome, Pending, Refused, Scheduled, Unconfirmed
from remit.pipeline import Services, govern, informed
from remit.playbook_runs import Taken
from remit.records import CallQuery, open_records
from remit.refusals import BUSY, STORE_DOWN
from remit.rollback import GONE, Step, plan, price, roll_back
from remit_rbac import EvaluationError, Rung, compile_expression

#: `waits` for a person, or to be sent, and is carried on by running it again; `doubt`: nobody knows whether
#: it happened.
State = Literal["done", "skipped", "failed", "waits", "doubt", "planned"]
#: More calls than one step may take back.
_CALLS_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How one step ended, or would begin."""

    step: str
    state: State
    said: str
    call_id: str | None = None
    #: Of a rollback that is only foreseen: its plan.
    steps: tuple[Step, ...] = ()
    #: What its event says for ever, where `said` has words that a call carried: those can be erased.
    noted: str | None = None
    #: It is on record with what it did.
    recorded: bool = False


@dataclass(slots=True, kw_only=True)
class Run:
    """One run of a playbook, and what its steps have found so far."""

    id: str
    name: str
    inputs: Mapping[str, str]
    #: When it began, also where it is carried on later.
    started_us: int
    on: Services
    loaded: Loaded
    #: The steps that were done when this process took it on, and the call of each that made one.
    done: Mapping[str, str | None] = field(default_factory=dict[str, "str | None"])
    found: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def playbook(self) -> Playbook:
        return self.loaded.config.playbooks[self.name]

    @property
    def principal(self) -> Principal:
        who = self.playbook.runs_as
        return Principal(tenant=who.tenant, agent=who.agent, user=who.user, auth="playbook")

    @property
    def roots(self) -> Mapping[str, Any]:
        return {"inputs": self.inputs, "steps": self.found}


def digest(playbook: Playbook) -> str:
    """SHA-256 of a version."""
    text = orjson.dumps(playbook.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()


def given(playbook: Playbook, inputs: Mapping[str, str]) -> Mapping[str, str]:
    """The inputs, when they are those of the playbook. Raises WrongState otherwise."""
    if wrong := sorted(inputs.keys() ^ set(playbook.inputs)):
        known = ", ".join(playbook.inputs) or "none"
        raise WrongState(f"its inputs are {known}; not given, or unknown: {', '.join(wrong)}")
    return inputs


async def begin(
    name: str, inputs: Mapping[str, str], on: Services, loaded: Loaded, *, by: str, anew: bool = False
) -> Run:
    """A new run, or the one with the same version and inputs that has not ended well yet.

    Raises WrongState when the inputs are not its, or another process carries that one out.
    """
    playbook = loaded.config.playbooks[name]
    run = await on.journal.begin_playbook(
        run=uuid7(on.clock()),
        name=name,
        digest=digest(playbook),
        inputs=given(playbook, inputs),
        tenant=playbook.runs_as.tenant,
        by=by,
        anew=anew,
    )
    return taken_on(run, on, loaded)


def taken_on(run: Taken, on: Services, loaded: Loaded) -> Run:
    """A run that is this process's, to be carried out from where it is."""
    return Run(
        id=run.run,
        name=run.name,
        inputs=run.inputs,
        started_us=run.started_us,
        on=on,
        loaded=loaded,
        done=run.done,
    )


async def carry_out(run: Run) -> AsyncGenerator[Ended]:
    """Take every step until one does not end well; each is recorded as it ends.

    Raises WrongState where another process has taken the run over, StoreUnavailable where it cannot be
    recorded, so that it stays to be carried on.
    """
    state: State = "done"
    for step in run.playbook.steps:
        ended = await _read_back(run, step) or await _taken(run, step)
        if not ended.recorded:
            await run.on.journal.note_playbook(
                run=run.id,
                tenant=run.principal.tenant,
                step=step.id,
                state=ended.state,
                said=ended.said if ended.noted is None else ended.noted,
                call_id=ended.call_id,
            )
        yield ended
        if ended.state not in ("done", "skipped"):
            state = ended.state
            break
    await run.on.journal.end_playbook(run=run.id, tenant=run.principal.tenant, state=state)


async def foreseen(run: Run) -> AsyncGenerator[Ended]:
    """What every step would be, without taking one; what depends on earlier steps is not known yet."""
    for step in run.playbook.steps:
        try:
            yield await _planned(run, step)
        except EvaluationError:
            yield Ended(step=step.id, state="planned", said="It depends on what earlier steps find.")
        except WrongState as error:
            yield Ended(step=step.id, state="failed", said=str(error))


async def _read_back(run: Run, step: PlaybookStep) -> Ended | None:
    """How a step ended that is done; None where it is not, or only looked something up."""
    if step.id not in run.done:
        return None
    call_id = run.done[step.id]
    if call_id is not None:
        made = await run.on.journal.recorded(call_id)
        if made is None or made.effect == Effect.READ:
            return None
        reply = await run.on.journal.answer(call_id)
        if (
            reply is not None
        ):  # else it is erased: done is done, and who needs the answer cannot be worked out
            run.found[step.id] = result_of(reply)[0]
    return Ended(step=step.id, state="done", said="Done before.", call_id=call_id)


async def _taken(run: Run, step: PlaybookStep) -> Ended:
    try:
        if step.when is not None and _value(step.when, run.roots) is not True:
            return Ended(step=step.id, state="skipped", said=f"Not the case: {step.when}")
        if step.call is not None:
            return await _call(run, step)
        if step.rollback is not None:
            return await _rollback(run, step)
        return await _switch(run, step)
    except EvaluationError as error:
        return Ended(step=step.id, state="failed", said=f"It cannot be worked out: {error}")
    except StoreUnavailable:
        raise  # it says nothing about the step
    except RemitError as error:
        return Ended(step=step.id, state="failed", said=str(error))


async def _planned(run: Run, step: PlaybookStep) -> Ended:
    said = f"Only if {step.when}. " if step.when else ""
    if step.call is not None:
        decision = await informed(_as_call(run, step), run.on)
        rung = decision.verdict.rung
        said += f"Would call {step.call}: {rung.name.lower()}. {decision.verdict.reason}"
        said += _cost(decision.estimates)
        return Ended(step=step.id, state="planned" if rung > Rung.ADVISE else "failed", said=said)
    if step.rollback is not None:
        steps = await _to_undo(run, step)
        back = sum(each.part in GONE for each in steps)
        said += f"Would take back {back} of {len(steps)} calls.{_cost(price(steps))}"
        for part in dict.fromkeys(each.part for each in steps if each.part not in GONE):
            left = [each for each in steps if each.part == part]
            said += f" {len(left)} {part}: {left[0].tool} (call {left[0].call_id}): {left[0].why}"
        fails = any(each.part not in GONE and each.part != "waits" for each in steps)
        return Ended(step=step.id, state="failed" if fails else "planned", said=said, steps=tuple(steps))
    return Ended(step=step.id, state="planned", said=f"{said}Would stop {_stopped(run, step)[1]}.")


def _as_call(run: Run, step: PlaybookStep) -> Call:
    tool = run.on.catalog.tools.get(step.call or "")
    if tool is None:
        raise WrongState(f"no source offers {step.call}")
    return new_call(
        tool=tool,
        arguments={name: _value(text, run.roots) for name, text in step.args.items()},
        principal=run.principal,
        run=f"playbook-{run.id}",
        secret=run.on.secret,
        at_us=run.on.clock(),
        client_key=f"{run.id}:{step.id}",
    )


async def _call(run: Run, step: PlaybookStep) -> Ended:
    outcome = await govern(_as_call(run, step), run.on)
    if isinstance(outcome, Refused) and outcome.verdict in (STORE_DOWN, BUSY):
        raise StoreUnavailable(outcome.verdict.reason)
    state, said = _told(outcome)
    noted = said if state in ("done", "waits") else ""
    if isinstance(outcome, Done):
        result, text = result_of(outcome.reply)
        run.found[step.id] = result
        if state == "failed":
            said = f"{step.call} was answered with an error: {text[:300]}"
        elif step.expect and _value(step.expect, {**run.roots, "result": result}) is not True:
            state, said = "failed", f"It is not so: {step.expect}"
            noted = said
    return Ended(step=step.id, state=state, said=said, call_id=outcome.call_id, noted=noted)


def _told(outcome: Outcome) -> tuple[State, str]:
    match outcome:
        case Done(failed=False) if outcome.reply.kind == "complete" and not outcome.reply.is_error:
            return "done", "Done before." if outcome.repeated else "Done."
        case Done():
            return "failed", ""
        case Pending():
            return "waits", f"A person must agree first: request {outcome.approval_id}."
        case Scheduled():
            return (
                "waits",
                f"It is held back (call {outcome.call_id}): run this again when it was sent.",
            )
        case InDoubt():
            return "doubt", f"{outcome.message} Resolve it (remit doubt), then run this again."
        case Unconfirmed():
            return "failed", "It asks for a confirmation, and nobody is there to be asked."
        case _:
            verdict = getattr(outcome, "verdict", None)
            if verdict is not None and verdict.code == "in_doubt":
                return "doubt", verdict.reason
            return "failed", verdict.reason if verdict else str(getattr(outcome, "message", ""))


async def _rollback(run: Run, step: PlaybookStep) -> Ended:
    steps = await _to_undo(run, step)
    ended = await roll_back(steps, run.principal, f"playbook-{run.id}", run.on, force=False)
    left = [each for each in ended if each.part not in GONE]
    gone = f"{len(ended) - len(left)} of {len(ended)} calls are taken back."
    if not left:
        return Ended(step=step.id, state="done", said=gone)
    state: State = "waits" if all(each.part == "waits" for each in left) else "failed"
    first = left[0]
    said = f"{gone} {first.tool} (call {first.call_id}): {first.why}"
    return Ended(step=step.id, state=state, said=said, noted=gone)


async def _to_undo(run: Run, step: PlaybookStep) -> list[Step]:
    """The plan of a rollback: calls of others, from `since` before the run began."""
    since = run.started_us - step.since * 1_000_000 if step.since else None
    scope: dict[str, Any] = {str(step.rollback): _target(run, step)}
    query = CallQuery(tenant=run.principal.tenant, since_us=since, acted=True, **scope)
    with open_records(run.loaded.config.store.location, run.loaded.master_key, run.on.clock) as found:
        calls = found.calls(query, limit=_CALLS_MAX + 1)
        if len(calls) > _CALLS_MAX:
            raise WrongState(f"more than {_CALLS_MAX} calls fit: narrow it with since")
        mine = f"playbook-{run.id}"
        calls = [call for call in calls if call.run != mine]
        return await plan(found, calls, run.principal, mine, run.on, force=False)


def _cost(by_unit: Mapping[str, int]) -> str:
    return f" Cost: {cost}." if (cost := in_words(by_unit)) else ""


async def _switch(run: Run, step: PlaybookStep) -> Ended:
    target, what = _stopped(run, step)
    said = await run.on.journal.stop_by_playbook(
        run=run.id,
        tenant=run.principal.tenant,
        step=step.id,
        scope=str(step.stop),
        target=target,
        of_tenant="" if step.stop == "tenant" else run.principal.tenant,
        what=what,
        reason=f"playbook {run.name}, run {run.id}",
        by=run.principal.user,
    )
    return Ended(step=step.id, state="done", said=said, recorded=True)


def _stopped(run: Run, step: PlaybookStep) -> tuple[str, str]:
    """The target of a stop, and what it stops in words: nothing beyond the tenant for which it runs."""
    target, own = _target(run, step), run.principal.tenant
    if step.stop == "tenant" and target != own:
        raise WrongState(f"it runs for tenant {own}, and cannot stop tenant {target}")
    return target, f"all of tenant {own}" if step.stop == "all" else f"{step.stop} {target}"


def _target(run: Run, step: PlaybookStep) -> str:
    return str(_value(step.of, run.roots)) if step.of else ""


def _value(text: str | int, roots: Mapping[str, Any]) -> Any:
    return compile_expression(str(text), roots=("inputs", "steps", "result"))(**roots)
