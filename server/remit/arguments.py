"""Checking arguments against a tool's input schema: compiled once, one engine, no coercion.

The effective schema is stricter than the source's own: an object that lists its properties accepts no
others. Patterns run on a linear-time engine and no remote reference is ever fetched. A schema that is too
deep, too large or does not compile makes its tool unusable, not unchecked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
    closed = _Closing(schema).closed(schema)
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


class _Closing:
    """Makes a copy of one schema in which every object that lists properties is closed."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._parts = 0
        self._draft = str(schema.get("$schema", "2020-12"))
        #: A part is seen of what is named by an anchor or an identifier: no definition is closed then.
        self._open = False
        #: References from where only a part of an object is seen: what they name must stay open.
        self._partial: set[str] = set()
        self._note_partial(schema, partial=False, depth=0)
        # What such a definition refers to in its turn sees the same part.
        pending = list(self._partial)
        while pending:
            reference = pending.pop()
            self._open = self._open or not (reference == "#" or reference.startswith("#/"))
            found = _resolved(schema, reference)
            for reference in _references_here(found):
                if reference not in self._partial:
                    self._partial.add(reference)
                    pending.append(reference)

    def closed(self, schema: Any, at: str = "#") -> Any:
        """The copy. An object stays open that says so itself, or of which only a part is seen."""
        if isinstance(schema, list):
            return [self.closed(item, f"{at}/{n}") for n, item in enumerate(cast("list[Any]", schema))]
        if not isinstance(schema, Mapping):
            return schema
        source = cast("Mapping[str, Any]", schema)
        copy: dict[str, Any] = {}
        for key, value in source.items():
            inner = f"{at}/{key}"
            if key in _MAPS and isinstance(value, Mapping):
                entries = cast("Mapping[str, Any]", value)
                shut = not (self._open and key in _DEFINITIONS)
                copy[key] = {
                    name: self.closed(item, f"{inner}/{_escaped(name)}") if shut else item
                    for name, item in entries.items()
                }
            elif key in _NESTED or (key in _EITHER and _alone(source)):
                copy[key] = self.closed(value, inner)
            else:
                copy[key] = value
        if at not in self._partial:
            self._close(copy)
        return copy

    def _close(self, copy: dict[str, Any]) -> None:
        if "properties" not in copy or {"additionalProperties", "unevaluatedProperties"} & copy.keys():
            return
        if "2020-12" in self._draft or "2019-09" in self._draft:
            copy["unevaluatedProperties"] = False
        elif not (_PARTS | _EITHER) & copy.keys():
            # Older drafts know only additionalProperties, which does not see through combinators.
            copy["additionalProperties"] = False

    def _note_partial(self, schema: Any, *, partial: bool, depth: int) -> None:
        """Measure the schema, and find the references that see only a part."""
        self._parts += isinstance(schema, Mapping)
        if depth > _DEPTH_MAX or self._parts > _SUBSCHEMAS_MAX:
            raise SchemaRefused(
                f"the schema is deeper than {_DEPTH_MAX} or larger than {_SUBSCHEMAS_MAX} parts"
            )
        if isinstance(schema, list):
            for item in cast("list[Any]", schema):
                self._note_partial(item, partial=partial, depth=depth + 1)
        if not isinstance(schema, Mapping):
            return
        source = cast("Mapping[str, Any]", schema)
        reference = source.get("$ref")
        if isinstance(reference, str) and (partial or not _SHAPING.isdisjoint(source)):
            self._partial.add(reference)
        for key, value in source.items():
            if key in _MAPS and isinstance(value, Mapping):
                for item in cast("Mapping[str, Any]", value).values():
                    self._note_partial(item, partial=False, depth=depth + 1)
            elif key in _NESTED:
                self._note_partial(value, partial=False, depth=depth + 1)
            elif key in _EITHER:
                self._note_partial(value, partial=partial or not _alone(source), depth=depth + 1)
            else:
                self._note_partial(value, partial=partial or key in _PARTS, depth=depth + 1)


def _alone(schema: Mapping[str, Any]) -> bool:
    """Whether its alternatives are all that describes an object here, so that each sees the whole of it."""
    return _SHAPING.isdisjoint(schema) and sum(key in _EITHER for key in schema) == 1


def _resolved(schema: Mapping[str, Any], reference: str) -> Any:
    """What a reference within the schema names; None for any other (no remote one is ever fetched)."""
    found: Any = schema
    for step in reference.removeprefix("#").split("/")[1:]:
        if not isinstance(found, Mapping):
            return None
        found = cast("Mapping[str, Any]", found).get(step.replace("~1", "/").replace("~0", "~"))
    return found


def _escaped(name: str) -> str:
    """A name as one step of a reference (RFC 6901 §3)."""
    return name.replace("~", "~0").replace("/", "~1")


def _references_here(schema: Any) -> Iterator[str]:
    """The references by which a schema says more about the same object."""
    if isinstance(schema, list):
        for item in cast("list[Any]", schema):
            yield from _references_here(item)
    elif isinstance(schema, Mapping):
        source = cast("Mapping[str, Any]", schema)
        reference = source.get("$ref")
        if isinstance(reference, str):
            yield reference
        for key in (_PARTS | _EITHER) & source.keys():
            yield from _references_here(source[key])


#: Below these a schema sees only a part of the object that it stands in.
_PARTS = frozenset({"allOf", "if", "then", "else", "not", "dependentSchemas"})
#: Below these it sees the whole, where nothing else describes it.
_EITHER = frozenset({"anyOf", "oneOf"})
_SHAPING = _PARTS | {"properties", "patternProperties", "additionalProperties", "unevaluatedProperties"}
_DEFINITIONS = frozenset({"$defs", "definitions"})
_MAPS = _DEFINITIONS | {"properties", "patternProperties"}
_NESTED = frozenset({"items", "prefixItems", "additionalProperties", "contains"})
