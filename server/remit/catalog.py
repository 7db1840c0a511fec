"""All that is exported at one moment: an immutable snapshot, replaced whole when a source changes.

A tool is complete when it gets here: its schema compiled, its expressions parsed, its effect class
decided by the operator. What cannot be made complete is left out and named in `problems`. Who may see
which entry is policy, asked elsewhere.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import orjson
from pydantic import BaseModel, ValidationError

from remit import config
from remit.arguments import Problem, SchemaRefused, anything, checker
from remit.budgets import CALLS
from remit.config import Config, Effect, ToolRules
from remit.derivations import compile_derivation
from remit.effects import of_class
from remit.model import Fact, FindRule, Image, Lookup, PriceRule, Refinement, Tool, UndoRule
from remit_adapters.base import Json, Offer, Operation
from remit_rbac import Expression, compile_expression

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A resource or a resource template. Its URI is the source's own."""

    source: str
    uri: str
    definition: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    name: str
    source: str
    own_name: str
    definition: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """Why something a source offers is not exported. For operators."""

    source: str
    name: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    #: Every operation by exported name; beside the tools, `<prefix>.resources.read` and its like.
    tools: Mapping[str, Tool]
    resources: tuple[Resource, ...] = ()
    templates: tuple[Resource, ...] = ()
    prompts: Mapping[str, Prompt]
    #: Sources that answer completions, and that take subscriptions.
    completes: frozenset[str] = frozenset()
    subscribes: frozenset[str] = frozenset()
    #: What a proof of a way back is about: SHA-256 of its declaration and of the definitions that it needs.
    plans: Mapping[str, str] = field(default_factory=dict[str, str])
    flaws: tuple[Flaw, ...] = ()

    def listed(self) -> tuple[Tool, ...]:
        """What `tools/list` may show, by name."""
        return tuple(tool for tool in self.tools.values() if tool.operation is Operation.TOOL)


#: The policy name of an operation that is not a tool: the prefix and this.
OPERATION_NAMES = {
    Operation.RESOURCE: "resources.read",
    Operation.PROMPT: "prompts.get",
    Operation.COMPLETE: "completion.complete",
}


def prefix_of(settings: Config, source: str) -> str:
    prefix = settings.sources[source].prefix
    return source if prefix is None else prefix


def source_of(settings: Config, name: str) -> tuple[str, str] | None:
    """The source that would export `name`, and its own name for it; None when no source would."""
    for source in settings.sources:
        prefix = prefix_of(settings, source)
        if not prefix or name.startswith(f"{prefix}."):
            return source, name.removeprefix(f"{prefix}.") if prefix else name
    return None


def exported(prefix: str, own_name: str) -> str:
    return f"{prefix}.{own_name}" if prefix else own_name


def build(settings: Config, offers: Mapping[str, Offer]) -> Catalog:
    """The catalog of everything that the connected sources offer."""
    tools: dict[str, Tool] = {}
    prompts: dict[str, Prompt] = {}
    resources: list[Resource] = []
    templates: list[Resource] = []
    flaws: list[Flaw] = []
    looks_like: dict[str, str] = {}
    for source, offer in offers.items():
        prefix = prefix_of(settings, source)
        for definition in _formed("Tool", source, prefix, offer.tools, flaws):
            own_name: str = definition["name"]
            name = exported(prefix, own_name)
            if not own_name or not _NAME.fullmatch(name):
                flaws.append(
                    Flaw(source=source, name=name, what="its name is not A-Z a-z 0-9 _ . - (1 to 128)")
                )
                continue
            if name.startswith("remit."):
                flaws.append(Flaw(source=source, name=name, what="remit.* are Remit's own tools"))
                continue
            twin = looks_like.setdefault(_folded(name), name)
            if name in tools or twin != name:
                flaws.append(
                    Flaw(source=source, name=name, what=f"its name is, or looks like, that of {twin}")
                )
                continue
            try:
                tools[name] = _tool(settings, source, name, own_name, definition)
            except SchemaRefused as refusal:
                flaws.append(Flaw(source=source, name=name, what=str(refusal)))
        for operation, suffix in OPERATION_NAMES.items():
            name = exported(prefix, suffix)
            if name in tools:
                flaws.append(
                    Flaw(source=source, name=name, what="a tool must not have the name of an operation")
                )
            tools[name] = _operation(settings, source, name, operation)
        for definition in _formed("Prompt", source, prefix, offer.prompts, flaws):
            own_name = definition["name"]
            name = exported(prefix, own_name)
            prompts[name] = Prompt(
                name=name, source=source, own_name=own_name, definition={**definition, "name": name}
            )
        resources += [
            Resource(source=source, uri=it["uri"], definition=it)
            for it in _formed("Resource", source, prefix, offer.resources, flaws)
        ]
        templates += [
            Resource(source=source, uri=it["uriTemplate"], definition=it)
            for it in _formed("ResourceTemplate", source, prefix, offer.resource_templates, flaws)
        ]
    for tool in tools.values():
        flaws += _dangling(tool, tools)
    return Catalog(
        tools=dict(sorted(tools.items())),
        resources=tuple(resources),
        templates=tuple(templates),
        prompts=dict(sorted(prompts.items())),
        completes=frozenset(source for source, offer in offers.items() if offer.completes),
        subscribes=frozenset(source for source, offer in offers.items() if offer.subscribes),
        plans={tool.name: _plan_digest(settings, tool, tools) for tool in tools.values() if _back(tool)},
        flaws=tuple(flaws),
    )


def _formed(
    kind: Literal["Tool", "Prompt", "Resource", "ResourceTemplate"],
    source: str,
    prefix: str,
    definitions: Sequence[Json],
    flaws: list[Flaw],
) -> Iterator[Json]:
    """The definitions that have the form of their kind; one without it would spoil every source's list."""
    if not definitions:
        return
    import mcp_types  # here, for it takes long to load and nobody needs it before a source is connected

    form: type[BaseModel] = getattr(mcp_types, kind)
    for definition in definitions:
        try:
            form.model_validate(definition, by_name=False)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            name = exported(prefix, str(definition.get("name", "")))
            flaws.append(Flaw(source=source, name=name, what=f"its {where} is not what MCP says it must be"))
        else:
            yield definition


def rules_for(settings: Config, name: str) -> ToolRules:
    """What the configuration says about `name`: the most specific entry wins, field by field."""
    merged: dict[str, Any] = {}
    for pattern in _entries(settings, name):
        rules = settings.tools[pattern]
        merged |= {field: getattr(rules, field) for field in rules.model_fields_set}
    return ToolRules.model_construct(None, **{**_NO_RULES, **merged})


def entry_for(settings: Config, name: str, field: str) -> str | None:
    """The entry of `tools` that says what `field` is for `name`; None when none does."""
    entries = reversed(_entries(settings, name))
    return next((pattern for pattern in entries if field in settings.tools[pattern].model_fields_set), None)


def covers(pattern: str, name: str) -> bool:
    """Whether an entry of `tools` is about `name`."""
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _entries(settings: Config, name: str) -> list[str]:
    """The entries about `name`, the most specific last."""
    return sorted(
        (pattern for pattern in settings.tools if covers(pattern, name)),
        key=lambda pattern: (not pattern.endswith("*"), len(pattern)),
    )


_NO_RULES = {field: getattr(ToolRules(), field) for field in ToolRules.model_fields}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _tool(settings: Config, source: str, name: str, own_name: str, definition: Json) -> Tool:
    schema = definition.get("inputSchema")
    if not isinstance(schema, Mapping):
        raise SchemaRefused("it has no input schema")
    rules = rules_for(settings, name)
    shown = {**definition, "name": name}
    if rules.description is not None:
        shown["description"] = rules.description
    if _may_wait(settings, rules):
        shown.pop("outputSchema", None)  # the answer to a call that is held back cannot have that form
    return _made(
        settings,
        rules,
        source=source,
        name=name,
        own_name=own_name,
        operation=Operation.TOOL,
        definition=shown,
        digest=_digest(definition),
        problem=checker(schema),  # pyright: ignore[reportUnknownArgumentType] - JSON of the source
        header_schema=schema if b'"x-mcp-header"' in orjson.dumps(schema) else None,  # pyright: ignore[reportUnknownArgumentType] - JSON of the source
    )


def _may_wait(settings: Config, rules: ToolRules) -> bool:
    """Whether calls of the tool may be held back: by its effect, or by a budget."""
    deferring = any(
        budget.on_exceed == "defer" and budget.unit in (CALLS, *rules.price) for budget in settings.budgets
    )
    effects = (rules.effect, *(refined.effect for refined in rules.when))
    return Effect.DEFERRED in effects or (deferring and set(effects) != {Effect.READ})


def _operation(settings: Config, source: str, name: str, operation: Operation) -> Tool:
    rules = rules_for(settings, name)
    return _made(
        settings,
        rules.model_copy(
            update={
                "effect": Effect.READ,
                "when": (),
                "undo": None,
                "before": None,
                "after": None,
                "find": None,
                "parse": {},
                "facts": {},
                "derive": {},
            }
        ),
        source=source,
        name=name,
        own_name="",
        operation=operation,
        definition={},
        digest=_digest({"operation": operation.value}),
        problem=anything,
        header_schema=None,
    )


def _made(
    settings: Config,
    rules: ToolRules,
    *,
    source: str,
    name: str,
    own_name: str,
    operation: Operation,
    definition: Json,
    digest: str,
    problem: Problem,
    header_schema: Json | None,
) -> Tool:
    undo = rules.undo
    restorable = Effect.RESTORABLE in (rules.effect, *(refined.effect for refined in rules.when))
    before = _image(rules.before)
    made = Tool(
        name=name,
        source=source,
        operation=operation,
        own_name=own_name,
        definition=definition,
        digest=digest,
        effect=rules.effect or Effect.IRREVERSIBLE,
        labels=rules.labels,
        problem=problem,
        prices=_prices(rules),
        undo=UndoRule(
            tool=undo.call,
            arguments=_expressions(undo.args),
            within_s=undo.within,
            verify=Lookup(tool=undo.verify.call, arguments=_expressions(undo.verify.args))
            if undo.verify
            else None,
            expect=_compiled(undo.verify.expect) if undo.verify else None,
            residue=undo.residue,
            refund=undo.refund,
            restores=any(path[0] == "before" for it in _expressions(undo.args).values() for path in it.paths),
        )
        if undo
        else None,
        before=before,
        after=_image(rules.after) or (before if restorable else None),
        find=_find(rules.find),
        hold_back_s=rules.hold_back or 0,
        if_match=rules.if_match,
        failed_when=_compiled(rules.failed_when) if rules.failed_when else None,
        resource=_compiled(rules.resource) if rules.resource else None,
        subject=_compiled(rules.subject) if rules.subject else None,
        parsed=tuple(rules.parse),
        facts=tuple(
            {
                fact: Fact(
                    lookup=Lookup(tool=found.call, arguments=_expressions(found.args)),
                    each=_compiled(found.each) if found.each else None,
                    select=compile_derivation(found.select) if found.select else None,
                )
                for fact, found in wave.items()
            }
            for wave in config.in_waves(rules.facts)
        ),
        derived={value: compile_derivation(text) for value, text in rules.derive.items()},
        establishes=_expressions(rules.establishes),
        reads_run=any(re.search(r"\brun\b", text) for text in _computed(rules)),
        serial=rules.serial,
        idempotency_arg=rules.idempotency_arg,
        errors_have_no_effect=rules.on_error == "no_effect",
        repeat_window_s=rules.repeat_window,
        timeout_s=rules.timeout or settings.limits.call_timeout,
        header_schema=header_schema,
    )
    if not rules.when:
        return made
    refinements = tuple(
        Refinement(when=_compiled(refined.condition), tool=of_class(made, refined.effect))
        for refined in rules.when
    )
    return replace(of_class(made, made.effect), refinements=refinements)


def _image(read: config.Image | None) -> Image | None:
    if read is None:
        return None
    return Image(
        lookup=Lookup(tool=read.call, arguments=_expressions(read.args)),
        select=compile_derivation(read.select) if read.select else None,
        etag=_compiled(read.etag) if read.etag else None,
    )


def _find(find: config.Find | None) -> FindRule | None:
    if find is None:
        return None
    return FindRule(
        lookup=Lookup(tool=find.call, arguments=_expressions(find.args)),
        each=_compiled(find.each) if find.each else None,
        match=_compiled(find.match),
        bind=_compiled(find.bind),
        complete=_compiled(find.complete) if find.complete else None,
    )


def _prices(rules: ToolRules) -> tuple[PriceRule, ...]:
    prices: dict[str, config.PriceRule] = {
        unit: price if isinstance(price, config.PriceRule) else config.PriceRule(estimate=price)
        for unit, price in {CALLS: 1, **rules.price}.items()
    }
    return tuple(
        PriceRule(
            unit=unit,
            estimate=_compiled(price.estimate),
            actual=_compiled(price.actual) if price.actual is not None else None,
        )
        for unit, price in prices.items()
    )


def _computed(rules: ToolRules) -> Iterator[str]:
    """Every text that facts and derived values are computed by."""
    yield from rules.derive.values()
    for fact in rules.facts.values():
        yield from map(str, fact.args.values())
        yield fact.each or ""


_ROOTS = ("args", "result", "before", "original", "text", "parsed", "facts", "run", "each", "item", "key")


def _compiled(text: str | int) -> Expression:
    return compile_expression(str(text), roots=_ROOTS)


def _expressions(arguments: Mapping[str, str | int]) -> Mapping[str, Expression]:
    return {name: _compiled(text) for name, text in arguments.items()}


def _digest(definition: Json) -> str:
    return hashlib.sha256(orjson.dumps(definition, option=orjson.OPT_SORT_KEYS)).hexdigest()


#: What a declaration says of the way back. What a call costs, touches and means to policy is another matter.
DECLARED = ("effect", "when", "undo", "before", "after", "if_match", "failed_when", "on_error")


def _back(tool: Tool) -> list[str]:
    """The tools that taking a call of this one back needs, as far as any call of it can be taken back."""
    undo = next((it.tool.undo for it in tool.refinements if it.tool.undo), tool.undo)
    if undo is None:
        return []
    return [undo.tool, *([undo.verify.tool] if undo.verify else ())]


def _plan_digest(settings: Config, tool: Tool, tools: Mapping[str, Tool]) -> str:
    """Names are the source's own, so that a copy of the source has the same digest."""
    rules = rules_for(settings, tool.name)
    prefix = exported(prefix_of(settings, tool.source), "")

    def own(value: Any) -> Any:
        match value:
            case dict():
                entries = cast("dict[str, Any]", value)
                return {
                    key: str(inner).removeprefix(prefix) if key == "call" else own(inner)
                    for key, inner in entries.items()
                }
            case list():
                return [own(each) for each in cast("list[Any]", value)]
            case _:
                return value

    declared = own(rules.model_dump(mode="json", include=set(DECLARED)))
    needed = [tool.name, *_back(tool), *(read.call for read in (rules.before, rules.after) if read)]
    return _digest(
        {"declared": declared, "definitions": [tools[name].digest for name in needed if name in tools]}
    )


def _dangling(tool: Tool, tools: Mapping[str, Tool]) -> Sequence[Flaw]:
    """Plans that name a tool which is not there: their tool would be let out without a way back."""
    named = [*_back(tool), *(read.lookup.tool for read in (tool.before, tool.after, tool.find) if read)]
    named += [fact.lookup.tool for wave in tool.facts for fact in wave.values()]
    return [
        Flaw(source=tool.source, name=tool.name, what=f"its plan names {name}, which no source offers")
        for name in named
        if name not in tools
    ]
