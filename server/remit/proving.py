"""Trying a way back for real: call, look, take back, look again, on a source that is there for trying.

Every step is a governed call of the person who asks, recorded like any other. What is compared are reads
that the operator declares, before the call and after its undo, byte for byte. A source that is not marked
`staging` is never touched. What comes of it is kept by `proven.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import orjson

from remit.calls import new_call, result_of
from remit.catalog import DECLARED, prefix_of, rules_for, source_of
from remit.config import Compare, Config, Lookup, ToolRules
from remit.derivations import compile_derivation
from remit.effects import as_called
from remit.errors import RemitError, UnknownRecord, WrongState
from remit.identity import Principal
from remit.model import Arguments, Done, Outcome, Tool
from remit.pipeline import Services, govern
from remit.undo import undo
from remit_rbac import EvaluationError, compile_expression

L = TypeVar("L", bound=Lookup)
#: What belongs to money, policy and conflicts stays with the tool in earnest; trying it touches none of them.
_TRIED = (*DECLARED, "idempotency_arg", "timeout", "labels", "prove")
_DIFFERENCES_MAX = 10


class Inconclusive(RemitError):
    """The way back could not be walked to its end, so nothing is known about it. `str()` says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What one trial came to."""

    tool: str
    source: str
    arguments: Arguments
    digest: str
    call_id: str
    undo_call: str
    #: What the undo left otherwise than it was; nothing: it is proven.
    differs: tuple[str, ...]


def staged(config: Config, tool: str, source: str) -> tuple[Config, str]:
    """The configuration in which `source` stands in for the tool's own, and the tool's name there.

    Raises WrongState when `source` is not marked as staging.
    """
    home = source_of(config, tool)
    if home is None:
        raise UnknownRecord(f"no source offers {tool}")
    if source not in config.sources:
        raise UnknownRecord(f"no source is called {source}: there is {', '.join(config.sources)}")
    if not config.sources[source].staging:
        raise WrongState(f"source {source} is not marked staging: true, and a trial really changes things")
    if source == home[0]:
        return config, tool
    move = _Move(prefix_of(config, home[0]), prefix_of(config, source))
    moved = {move(name): _moved(rules, move) for name, rules in config.tools.items() if move(name) != name}
    kept = {name: rules for name, rules in config.tools.items() if not name.startswith(f"{move.to}.")}
    return config.model_copy(update={"tools": {**kept, **moved}}), move(tool)


async def prove(
    tool: str, arguments: Arguments, principal: Principal, run: str, on: Services, *, as_tool: str
) -> Tried:
    """Walk the way of `as_tool`, the name at the staging source, and record what it proves about `tool`.

    Raises Inconclusive when a step is refused or fails in a way that says nothing about the way back.
    """
    trial = _fit_for_trial(as_tool, arguments, on)
    digest = on.catalog.plans[as_tool]
    if on.catalog.plans.get(tool) != digest:
        raise Inconclusive(
            f"{trial.source} does not define {tool}, or what takes it back, as its own source does"
        )
    compared = _compared(rules_for(on.config, as_tool))
    before = await _state(compared, arguments, principal, run, on)
    made = _ended(await _call(trial, arguments, principal, run, on), as_tool)
    if made.undo is None:
        raise Inconclusive(f"call {made.call_id} left nothing to take back")
    if before == await _state(compared, arguments, principal, run, on):
        raise Inconclusive("nothing that is compared shows what the call did, so it would prove nothing")
    taken = _ended(await undo(made.call_id, principal, run, on), "its undo")
    after = await _state(compared, arguments, principal, run, on)
    found = [line for read, state in before.items() for line in _differences(state, after[read], read)]
    if taken.undone.get("state") != "done" and not found:
        found = [f"the undo is {taken.undone.get('state')}, not done"]
    differs = tuple(found[:_DIFFERENCES_MAX])
    await on.journal.note_proof(
        digest=digest,
        tool=tool,
        source=trial.source,
        by=principal.user,
        tenant=principal.tenant,
        call_id=made.call_id,
        differs=differs,
    )
    return Tried(
        tool=tool,
        source=trial.source,
        arguments=arguments,
        digest=digest,
        call_id=made.call_id,
        undo_call=taken.call_id,
        differs=differs,
    )


def _fit_for_trial(name: str, arguments: Arguments, on: Services) -> Tool:
    """The tool as the trial will call it; every tool that the trial needs is of the same, staging source."""
    found = on.catalog.tools.get(name)
    if found is None:
        raise Inconclusive(f"no tool {name} is offered")
    tool = as_called(found, arguments)
    if tool.undo is None:
        raise Inconclusive(f"{name} has no way back with these arguments: its effect is {tool.effect}")
    if problem := tool.problem(arguments):
        raise Inconclusive(f"the arguments do not fit {name}: {problem}")
    named = {tool.undo.tool, *(read.call for read in _compared(rules_for(on.config, name)))}
    named |= {image.lookup.tool for image in (tool.before, tool.after) if image}
    named |= {tool.undo.verify.tool} if tool.undo.verify else set()
    for other in sorted(named):
        needed = on.catalog.tools.get(other)
        if needed is None:
            raise Inconclusive(f"it needs {other}, which is not offered")
        if needed.source != tool.source:
            raise Inconclusive(f"it needs {other} of another source, and only {tool.source} is for trying")
    return tool


def _compared(rules: ToolRules) -> tuple[Compare, ...]:
    """The reads that show the state. Without any that are declared, what `before` reads."""
    if rules.prove and rules.prove.compare:
        return rules.prove.compare
    if rules.before:
        return (Compare(call=rules.before.call, args=rules.before.args, select=rules.before.select),)
    raise Inconclusive("nothing says which reads show what it changes: write prove.compare")


async def _state(
    compared: tuple[Compare, ...], arguments: Arguments, principal: Principal, run: str, on: Services
) -> Mapping[str, Any]:
    """What each read shows now."""
    found: dict[str, Any] = {}
    for number, read in enumerate(compared, 1):
        try:
            given = {
                name: compile_expression(str(text), roots=("args",))(args=arguments)
                for name, text in read.args.items()
            }
            done = _ended(await _call(on.catalog.tools[read.call], given, principal, run, on), read.call)
            answer = result_of(done.reply)[0]
            shown = compile_derivation(read.select)(answer) if read.select else answer
            found[f"{read.call}[{number}]" if len(compared) > 1 else read.call] = shown
        except EvaluationError as error:
            raise Inconclusive(f"what {read.call} shows cannot be compared: {error}") from None
    return found


async def _call(tool: Tool, arguments: Arguments, principal: Principal, run: str, on: Services) -> Outcome:
    call = new_call(
        tool=tool, arguments=arguments, principal=principal, run=run, secret=on.secret, at_us=on.clock()
    )
    return await govern(call, on)


def _ended(outcome: Outcome, what: str) -> Done:
    match outcome:
        case Done() if not outcome.failed and outcome.reply.kind == "complete":
            return outcome
        case Done():
            why = f"{what} was answered with an error: {result_of(outcome.reply)[1][:300]}"
        case _:
            verdict = getattr(outcome, "verdict", None)
            why = f"{what} was not made: {verdict.reason if verdict else getattr(outcome, 'message', '')}"
    raise Inconclusive(f"{why} (call {outcome.call_id})")


def _differences(one: Any, other: Any, path: str) -> Iterator[str]:
    """Where two JSON values differ, a line each: path, what was there, what is there."""
    if isinstance(one, dict) and isinstance(other, dict):
        was, now = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
        for name in sorted(was.keys() | now.keys()):
            yield from _differences(was.get(name, _ABSENT), now.get(name, _ABSENT), f"{path}.{name}")
    elif _shown(one) != _shown(other):
        yield f"{path}: was {_shown(one)}, is {_shown(other)}"


_ABSENT = object()


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


@dataclass(frozen=True, slots=True)
class _Move:
    """From the names of one source to those of another."""

    of: str
    to: str

    def __call__(self, name: str) -> str:
        return f"{self.to}.{name.removeprefix(f'{self.of}.')}" if name.startswith(f"{self.of}.") else name

    def lookup(self, read: L) -> L:
        return read.model_copy(update={"call": self(read.call)})


def _moved(rules: ToolRules, move: _Move) -> ToolRules:
    """What the declaration says of the way back, about the other source's tools."""
    kept = {name: getattr(rules, name) for name in _TRIED if name in rules.model_fields_set}
    for name in ("before", "after"):
        if kept.get(name):
            kept[name] = move.lookup(kept[name])
    if kept.get("undo"):
        verify = rules.undo and rules.undo.verify
        kept["undo"] = move.lookup(kept["undo"]).model_copy(
            update={"verify": move.lookup(verify) if verify else None}
        )
    if kept.get("prove"):
        compare = tuple(move.lookup(read) for read in kept["prove"].compare)
        kept["prove"] = kept["prove"].model_copy(update={"compare": compare})
    return ToolRules.model_construct(set(kept), **kept)
