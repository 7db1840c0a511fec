"""Does the configuration fit what the sources offer? Asked by an operator, before agents find out.

A running gateway refuses a call whose price or way back cannot be worked out, one call at a time. Here
the same is found at once and for all tools, from their schemas: entries that are about no tool, ways back
that lead nowhere, arguments that a tool does not have. Nothing is called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from remit.budgets import CALLS
from remit.catalog import Catalog, covers, entry_for, prefix_of, rules_for
from remit.config import Effect, Prove, Trigger
from remit.config_file import Loaded
from remit.config_problems import Problem
from remit.model import Lookup, Tool
from remit_adapters.base import Operation
from remit_rbac import Expression, compile_expression
from remit_rbac.kinds import ANY, clashes
from remit_rbac.schemas import argument_kinds
from remit_rbac.syntax import render

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    problem: Problem
    #: It may work all the same.
    warning: bool = False


def misfits(loaded: Loaded, catalog: Catalog, *, absent: Collection[str] = ()) -> Iterator[Misfit]:
    """Everything about `tools` and `budgets` that does not fit. Sources in `absent` could not be asked."""
    config = loaded.config
    prefixes = [prefix_of(config, source) for source in absent]
    unknown = tuple(f"{prefix}." if prefix else "" for prefix in prefixes)

    def may_exist(name: str) -> bool:
        return name.startswith(unknown)

    for pattern in config.tools:
        if not any(covers(pattern, name) for name in catalog.tools) and not may_exist(pattern):
            message = "no source offers such a tool; see `remit tools list` for the names"
            yield Misfit(problem=loaded.problem(("tools", pattern), message))
    for tool in catalog.listed():
        yield from _Fitting(loaded, catalog, tool, may_exist).misfits()
    for flaw in catalog.flaws:
        tool = catalog.tools.get(flaw.name)
        # What a plan of a tool names was looked at above.
        if tool is None or not (tool.undo or tool.before or tool.facts or tool.refinements):
            message = f"{flaw.name} is not exported: {flaw.what}"
            yield Misfit(problem=loaded.problem(("sources", flaw.source), message))
    for name, book in config.playbooks.items():
        for number, step in enumerate(book.steps):
            where = ("playbooks", name, "steps", number)
            tool = catalog.tools.get(step.call or "")
            if step.call and tool is None and not may_exist(step.call):
                yield Misfit(problem=loaded.problem(where, f"no source offers {step.call}"))
            for argument in step.args:
                if tool and argument_kinds(_input(tool), (argument,)) is None:
                    yield Misfit(problem=loaded.problem(where, f"{tool.name} has no argument {argument}"))
        yield from _never_set_off(loaded, catalog, name, book.on, may_exist)
    priced = {CALLS} | {price.unit for tool in catalog.tools.values() for price in tool.prices}
    for number, budget in enumerate(config.budgets):
        if budget.unit not in priced and not absent:
            message = f"no tool has a price in {budget.unit}, so nothing is ever spent here"
            yield Misfit(problem=loaded.problem(("budgets", number, "unit"), message), warning=True)


def _never_set_off(
    loaded: Loaded,
    catalog: Catalog,
    name: str,
    triggers: Sequence[Trigger],
    may_exist: Callable[[str], bool],
) -> Iterator[Misfit]:
    """Triggers of a playbook that are about nothing there is."""
    config = loaded.config
    for number, trigger in enumerate(triggers):
        message = None
        if trigger.failures:
            pattern = trigger.failures.tool
            if not any(covers(pattern, tool) for tool in catalog.tools) and not may_exist(pattern):
                message = f"no source offers {pattern}; see `remit tools list` for the names"
        elif trigger.label:
            if not any(trigger.label in rules.labels for rules in config.tools.values()):
                message = f"no tool has the label {trigger.label}: give it to one, with labels in tools"
        elif (spent := trigger.budget) and not any(
            (budget.scope, budget.unit) == (spent.scope, spent.unit) for budget in config.budgets
        ):
            message = f"no budget limits {spent.unit} of each {spent.scope}: add one to budgets"
        if message:
            yield Misfit(problem=loaded.problem(("playbooks", name, "on", number), message))


@dataclass(frozen=True, slots=True)
class _Fitting:
    """One tool against its own schemas and those of the tools that its way back needs."""

    loaded: Loaded
    catalog: Catalog
    tool: Tool
    may_exist: Callable[[str], bool]

    def misfits(self) -> Iterator[Misfit]:
        # Only a refinement of it may be taken back; all of them are by the same way.
        tool = next((it.tool for it in self.tool.refinements if it.tool.undo), self.tool)
        undo = tool.undo
        own = {"args": _input(tool), "original": None, "before": None, "result": _output(tool)}
        if (key := tool.idempotency_arg) and argument_kinds(_input(tool), (key,)) is None:
            yield self._problem("idempotency_arg", f"the tool has no argument {key}")
        for price in tool.prices:
            yield from self._paths("price", price.estimate, own)
            yield from self._paths("price", price.actual, own)
            if price.unit not in {CALLS, *(budget.unit for budget in self.loaded.config.budgets)}:
                message = f"no budget counts {price.unit}, so what calls cost in it is on no record"
                yield self._problem("price", message, warning=True)
        for refinement in self.tool.refinements:
            yield from self._condition("when", refinement.when)
        yield from self._paths("resource", tool.resource, own)
        yield from self._paths("failed_when", tool.failed_when, own)
        if (key := tool.if_match) and argument_kinds(_input(tool), (key,)) is None:
            yield self._problem("if_match", f"the tool has no argument {key}")
        for field, image in (("before", tool.before), ("after", tool.after)):
            if image and not (field == "after" and image == tool.before):
                yield from self._reads(field, image.lookup)
                yield from self._call(field, image.lookup.tool, image.lookup.arguments, own)
                yield from self._paths(field, image.etag, {"result": self._output_of(image.lookup)})
        if find := tool.find:
            given = {**own, "key": None, "item": None, "result": self._output_of(find.lookup)}
            yield from self._reads("find", find.lookup)
            yield from self._call("find", find.lookup.tool, find.lookup.arguments, given)
            for expression in (find.each, find.match, find.bind, find.complete):
                yield from self._paths("find", expression, given)
        for name in tool.parsed:
            kinds = argument_kinds(_input(tool), (name,))
            if kinds is None or kinds.isdisjoint({"any", "text"}):
                yield self._problem("parse", f"the tool has no argument {name} that is a text")
        looked_up = {**own, **dict.fromkeys(("parsed", "run")), "facts": None, "each": None}
        for wave in tool.facts:
            for fact in wave.values():
                yield from self._reads("facts", fact.lookup)
                yield from self._call("facts", fact.lookup.tool, fact.lookup.arguments, looked_up)
        if undo:
            own["before"] = (
                self._output_of(tool.before.lookup) if tool.before and not tool.before.select else None
            )
            yield from self._call("undo", undo.tool, undo.arguments, own)
        if undo and undo.verify:
            inverse = self.catalog.tools.get(undo.tool)
            later = {**own, "original": _output(tool), "result": inverse and _output(inverse), "before": None}
            yield from self._reads("undo", undo.verify)
            yield from self._call("undo", undo.verify.tool, undo.verify.arguments, later)
            yield from self._paths("undo", undo.expect, {**later, "result": self._output_of(undo.verify)})

        yield from self._trial(rules_for(self.loaded.config, tool.name).prove, own)

    def _trial(self, prove: Prove | None, own: Mapping[str, Schema | None]) -> Iterator[Misfit]:
        """What `remit tools prove` would call and compare."""
        if prove is None:
            return
        if prove.args is not None and (problem := self.tool.problem(prove.args)):
            yield self._problem("prove", f"its args do not fit the tool: {problem}")
        for read in prove.compare:
            given = {name: compile_expression(str(text), roots=("args",)) for name, text in read.args.items()}
            yield from self._reads("prove", Lookup(tool=read.call, arguments=given))
            yield from self._call("prove", read.call, given, own)

    def _call(
        self, field: str, name: str, arguments: Mapping[str, Expression], roots: Mapping[str, Schema | None]
    ) -> Iterator[Misfit]:
        """A call that the gateway will make, `arguments` over `roots`, against the schema of its tool."""
        target = self.catalog.tools.get(name)
        if target is None or target.operation is not Operation.TOOL:
            if not self.may_exist(name):
                lost = "nothing can be looked up there" if field == "facts" else "there is no way back"
                yield self._problem(field, f"no source offers {name}, so {lost}")
            return
        schema = _input(target)
        for argument, expression in arguments.items():
            if argument_kinds(schema, (argument,)) is None:
                yield self._problem(field, f"{name} has no argument {argument}")
            yield from self._paths(field, expression, roots)
        for argument in cast("list[str]", schema.get("required", [])):
            if argument not in arguments:
                yield self._problem(field, f"{name} needs the argument {argument}, which args does not give")

    def _reads(self, field: str, lookup: Lookup) -> Iterator[Misfit]:
        target = self.catalog.tools.get(lookup.tool)
        if target is not None and target.effect is not Effect.READ:
            message = f"{lookup.tool} must be a read: give it effect: read, or name another"
            yield self._problem(field, message)

    def _paths(
        self, field: str, expression: Expression | None, roots: Mapping[str, Schema | None]
    ) -> Iterator[Misfit]:
        """What the expression reads and no schema declares: certain for arguments, likely for results."""
        for root, *path in sorted(expression.paths, key=str) if expression else ():
            schema = roots.get(str(root))
            if schema is None or not path or argument_kinds(schema, tuple(path)) is not None:
                continue
            text = ".".join(map(str, path))
            if root == "args":
                yield self._problem(field, f"the tool has no argument {text}")
            else:
                yield self._problem(field, f"{root}.{text} is not in the declared output", warning=True)

    def _condition(self, field: str, expression: Expression) -> Iterator[Misfit]:
        """A condition on the arguments, with what it compares them with."""
        yield from self._paths(field, expression, {"args": _input(self.tool)})
        schema = _input(self.tool)
        for clash in clashes(expression.node, lambda keys: argument_kinds(schema, keys[1:]) or ANY):
            name = render(clash.node).removeprefix("args.")
            given, used = (" or ".join(sorted(kinds - {"null"})) for kinds in (clash.found, clash.wanted))
            yield self._problem(field, f"{name} is a {given}, and is used here as a {used}")

    def _problem(self, field: str, message: str, *, warning: bool = False) -> Misfit:
        entry = entry_for(self.loaded.config, self.tool.name, field) or self.tool.name
        if entry.endswith("*"):  # it is about several tools
            message = f"{self.tool.name}: {message}"
        return Misfit(problem=self.loaded.problem(("tools", entry, field), message), warning=warning)

    def _output_of(self, lookup: Lookup | None) -> Schema | None:
        target = self.catalog.tools.get(lookup.tool) if lookup else None
        return _output(target) if target else None


def _input(tool: Tool) -> Schema:
    return cast("Schema", tool.definition["inputSchema"])


def _output(tool: Tool) -> Schema | None:
    return cast("Schema | None", tool.definition.get("outputSchema"))
