"""What rules see, as JSON Schema (2020-12): published for editors and other programs, and for one tool.

The same schemas are what a policy is held against: a condition that reads what they do not have, or has
another type there, can never be answered. `configs/policy_context.schema.json` is what holds everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast, get_args

import orjson

from remit.config import Autonomy, Config, Effect
from remit.model import Fact, Tool
from remit_adapters.base import Json, Operation
from remit_rbac import Policy, Problem, hold_against

if TYPE_CHECKING:
    from remit.catalog import Catalog

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_COUNT: Json = {"type": "integer", "minimum": 0}
_SCALAR: Json = {"type": ["string", "number", "boolean"]}
_TEXT: Json = {"type": "string"}

#: What a run is known by, beside what the operator's tools establish.
RUN: Mapping[str, Json] = {
    "id": {**_TEXT, "description": "The piece of work: named by the token, else by the agent."},
    "calls": {**_COUNT, "description": "How many calls of the run were let out before this one."},
    "writes": {**_COUNT, "description": "Those of them whose effect is not `read`."},
    "tool_calls": {**_COUNT, "description": "Those of them of this very tool."},
    "tools": {
        "type": "object",
        "additionalProperties": _COUNT,
        "description": "How many by tool, for those that were called.",
    },
    "conflicts": {
        "type": "array",
        "items": _TEXT,
        "description": "The names that were established with two values.",
    },
}

#: What rules may always read directly below `r.ctx`, but for `run`.
ATTRIBUTES: Mapping[str, Json] = {
    "tenant": {**_TEXT, "description": "The tenant."},
    "hour": {
        "type": "integer",
        "minimum": 0,
        "maximum": 23,
        "description": "The hour in the configuration's zone; for `approve`, of the vote.",
    },
    "weekday": {
        "type": "integer",
        "minimum": 1,
        "maximum": 7,
        "description": "1 for Monday to 7 for Sunday, likewise.",
    },
    "effect": {
        "enum": [effect.value for effect in Effect],
        "description": "The tool's declared effect; `irreversible` when nothing is declared.",
    },
    "labels": {"type": "array", "items": _TEXT, "description": "The tool's labels."},
    "autonomy": {"enum": list(get_args(Autonomy)), "description": "How far the agent is trusted."},
    "undo_ready": {"type": "boolean", "description": "Whether the declared way back exists now."},
    "undo_proven": {
        "type": "boolean",
        "description": "Whether the declared way back was tried and held, as it is declared now.",
    },
    "price": {
        "type": "object",
        "additionalProperties": _COUNT,
        "description": "The estimate by unit.",
    },
    "claim": {
        "type": "object",
        # Agents may say more. That is recorded and shown to people, and no rule reads it.
        "properties": {
            "goal": _TEXT,
            "rationale": _TEXT,
            "confidence": {"type": "number"},
            "evidence": {},
            "model": _TEXT,
        },
        "description": "What the agent says about the call. Not for `approve`.",
    },
    "confirmed": {
        "type": "boolean",
        "description": "Whether the user of the client has confirmed exactly this call. Not for `approve`.",
    },
    "in_chain": {
        "enum": [0, 1],
        "description": "For `approve` only: 1 for who asked and for whom, else 0.",
    },
}
_REQUIRED = (
    "tenant",
    "hour",
    "weekday",
    "effect",
    "labels",
    "autonomy",
    "undo_ready",
    "undo_proven",
    "price",
)

#: The arguments of what is no tool call (see `front/server.py`).
_OPERATIONS: Mapping[Operation, Json] = {
    Operation.RESOURCE: {"type": "object", "properties": {"uri": _TEXT}},
    Operation.PROMPT: {
        "type": "object",
        "properties": {
            "name": _TEXT,
            "arguments": {"type": "object", "additionalProperties": _TEXT},
        },
    },
    Operation.COMPLETE: {
        "type": "object",
        "properties": {
            "ref": {"type": "object"},
            "argument": {"type": "object", "properties": {"name": _TEXT, "value": _TEXT}},
            "context": {"type": "object"},
        },
    },
}


def request_schema(config: Config | None, tool: Tool | None = None, catalog: Catalog | None = None) -> Json:
    """All that a condition reads, `r`: here and for this tool, as far as they are given."""
    names: dict[str, Json] = {
        "sub": {**_TEXT, "description": "The agent or the user whose rights are asked for."},
        "dom": {**_TEXT, "description": "The tenant."},
        "tool": {**_TEXT, "description": "The tool's exported name."},
        "act": {"enum": ["execute", "recommend", "advise", "approve", "undo", "list"]},
        "args": {"type": "object", "description": "The arguments of the call."},
        "ctx": context_schema(config, tool, catalog),
    }
    if tool is not None:
        names["tool"] = {"const": tool.name}
        names["args"] = _embedded(arguments_schema(tool), f"urn:remit:arguments:{tool.name}")
    return {
        "$schema": _DIALECT,
        "title": f"What rules on {tool.name} see as r" if tool else "What rules see as r",
        "type": "object",
        "properties": names,
        "required": list(names),
        "additionalProperties": False,
    }


def arguments_schema(tool: Tool) -> Json:
    """What the arguments of a tool's calls are, by its source's word."""
    if tool.operation is Operation.TOOL:
        return cast("Json", tool.definition["inputSchema"])
    return _OPERATIONS[tool.operation]


def context_schema(config: Config | None, tool: Tool | None = None, catalog: Catalog | None = None) -> Json:
    """What a condition reads as `r.ctx`. What is looked up, parsed and derived is known of one tool only."""
    own: dict[str, Json] = (
        {name: {"const": value} for name, value in config.context.items()} if config else {}
    )
    properties: dict[str, Json] = {**own, **ATTRIBUTES, "run": _run(config)}
    if tool is not None:
        units = {price.unit: _COUNT for price in tool.prices}
        properties["price"] = {**ATTRIBUTES["price"], **_closed(units), "required": list(units)}
        facts = {name: fact for wave in tool.facts for name, fact in wave.items()}
        for name, found in (
            ("parsed", dict.fromkeys(tool.parsed, _of("the JSON that the argument carries"))),
            ("facts", {name: _fact(fact, catalog) for name, fact in facts.items()}),
            ("derived", dict.fromkeys(tool.derived, _of("what `derive` computes"))),
        ):
            if found:  # what cannot be had is left out
                properties[name] = _closed(found)
    else:
        for name, setting in (("parsed", "parse"), ("facts", "facts"), ("derived", "derive")):
            properties[name] = {"type": "object", "description": f"What the tool's `{setting}` says."}
            if config:
                declared = {each for rules in config.tools.values() for each in getattr(rules, setting)}
                properties[name] = {**properties[name], **_closed({each: {} for each in sorted(declared)})}
    return {
        "type": "object",
        "properties": properties,
        "required": [*own, *_REQUIRED],
        # Without a configuration nobody knows what else its `context` sets.
        "additionalProperties": False if config else _SCALAR,
    }


def misfits_of(policy: Policy, config: Config, catalog: Catalog) -> tuple[Problem, ...]:
    """What of a policy no call of the tools that are here can answer, or is about none of them."""
    tools = catalog.tools
    return hold_against(
        policy,
        {name: arguments_schema(tool) for name, tool in tools.items()},
        {name: context_schema(config, tool) for name, tool in tools.items()},
    )


def _run(config: Config | None) -> Json:
    rules = config.tools.values() if config else ()
    established = {
        name: {**_SCALAR, "description": "Established by an earlier call."}
        for name in sorted({name for each in rules for name in each.establishes})
    }
    return {
        "type": "object",
        "properties": {**RUN, **established},
        # The rest is there when a rule, a fact or a derived value asks about the run.
        "required": ["id"],
        "additionalProperties": False if config else _SCALAR,
        "description": "The run. Not for `approve`.",
    }


def _fact(fact: Fact, catalog: Catalog | None) -> Json:
    """What is looked up, as far as its source declares what it answers."""
    reader = catalog.tools.get(fact.lookup.tool) if catalog else None
    declared = reader.definition.get("outputSchema") if reader and fact.select is None else None
    told: Json = _of(f"what {fact.lookup.tool} answers")
    if isinstance(declared, Mapping):
        told = _embedded(cast("Json", declared), f"urn:remit:result:{fact.lookup.tool}")
    return told if fact.each is None else {"type": "array", "items": told}


def _of(text: str) -> Json:
    return {"description": text[0].upper() + text[1:] + "."}


def _closed(properties: Mapping[str, Json]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "additionalProperties": False,
    }


def _embedded(schema: Json, name: str) -> Json:
    """Another document's schema inside this one: references in it are to itself (JSON Schema core, 9.3)."""
    return schema if "$id" in schema or b'"$ref"' not in orjson.dumps(schema) else {"$id": name, **schema}
