"""Checking arguments against a tool's input schema: compiled once, one engine, no coercion.

The effective schema is stricter than the source's own: an object that lists its properties accepts no
others. Patterns run on a linear-time engine and no remote reference is ever fetched. A schema that is too
deep, too large or does not compile makes its tool unusable, not unchecked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import jsonschema_rs

_DEPTH_MAX = 32
_SUBSCHEMAS_MAX = 2_000
_SENTENCE_MAX = 300

Problem = Callable[[Mapping[str, Any]], str | None]


class SchemaRefused(Exception):
    """The schema cannot be trusted to check anything. `str()` says why, for an operator."""


def checker(schema: Mapping[str, Any]) -> Problem:
    """A function that names the first problem of some arguments in a sentence for the agent, or None.

    Raises SchemaRefused. JSON Schema 2020-12 unless `$schema` names another draft.
    """
    if schema.get("type") != "object":
        raise SchemaRefused("an input schema must describe an object")
    closed = _closed(schema, 0, [0])
    try:
        kind = jsonschema_rs.validator_cls_for(closed)
        validator = kind(
            closed, validate_formats=True, offline=True, pattern_options=jsonschema_rs.RegexOptions()
        )
    except (ValueError, TypeError) as error:
        raise SchemaRefused(f"the schema does not compile: {error}") from None
    is_valid, errors = validator.is_valid, validator.iter_errors

    def problem(arguments: Mapping[str, Any]) -> str | None:
        plain = cast("dict[str, Any]", arguments)
        if is_valid(plain):
            return None
        first = next(iter(errors(plain)))
        where = ".".join(str(part) for part in first.instance_path)
        return f"{where or 'arguments'}: {first.message}"[:_SENTENCE_MAX]

    return problem


def anything(_: Mapping[str, Any]) -> str | None:
    """For operations whose form the protocol itself fixes."""
    return None


def _closed(schema: Any, depth: int, seen: list[int]) -> Any:
    """A copy in which every object that lists properties is closed, unless it says otherwise itself."""
    seen[0] += 1
    if depth > _DEPTH_MAX or seen[0] > _SUBSCHEMAS_MAX:
        raise SchemaRefused(f"the schema is deeper than {_DEPTH_MAX} or larger than {_SUBSCHEMAS_MAX} parts")
    if isinstance(schema, list):
        return [_closed(item, depth + 1, seen) for item in cast("list[Any]", schema)]
    if not isinstance(schema, Mapping):
        return schema
    source = cast("Mapping[str, Any]", schema)
    copy: dict[str, Any] = {}
    for key, value in source.items():
        if key in _BRANCHES or key in _DEFINITIONS:
            # A branch sees only a part of the object, and so may what refers to a definition: closing it
            # would refuse what its siblings allow.
            copy[key] = _measured(value, depth + 1, seen)
        elif key in _MAPS and isinstance(value, Mapping):
            entries = cast("Mapping[str, Any]", value)
            copy[key] = {name: _closed(item, depth + 1, seen) for name, item in entries.items()}
        elif key in _NESTED:
            copy[key] = _closed(value, depth + 1, seen)
        else:
            copy[key] = value
    if "properties" in copy and not {"additionalProperties", "unevaluatedProperties"} & copy.keys():
        copy["unevaluatedProperties"] = False
        if (
            "$schema" in copy
            and "2020-12" not in str(copy["$schema"])
            and "2019-09" not in str(copy["$schema"])
        ):
            # Older drafts know only additionalProperties, which does not see through combinators.
            del copy["unevaluatedProperties"]
            if not _BRANCHES & copy.keys():
                copy["additionalProperties"] = False
    return copy


def _measured(value: Any, depth: int, seen: list[int]) -> Any:
    """`value` unchanged, its size counted."""
    seen[0] += isinstance(value, Mapping)
    if depth > _DEPTH_MAX or seen[0] > _SUBSCHEMAS_MAX:
        raise SchemaRefused(f"the schema is deeper than {_DEPTH_MAX} or larger than {_SUBSCHEMAS_MAX} parts")
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts = list(cast("Mapping[str, Any]", value).values())
    elif isinstance(value, list):
        parts = cast("list[Any]", value)
    for part in parts:
        _measured(part, depth + 1, seen)
    return cast("Any", value)


_BRANCHES = frozenset({"allOf", "anyOf", "oneOf", "if", "then", "else", "not", "dependentSchemas"})
_DEFINITIONS = frozenset({"$defs", "definitions"})
_MAPS = frozenset({"properties", "patternProperties"})
_NESTED = frozenset({"items", "prefixItems", "additionalProperties", "contains"})
