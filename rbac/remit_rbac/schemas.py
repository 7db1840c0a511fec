"""What a JSON Schema says about one attribute: its kinds, its values, or that there is none.

Only what is certain counts. Where a schema is open, conditional or unusual the answer is `any`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from remit_rbac.conditions import Keys, Kind, kind_of

_TYPES: dict[str, Kind] = {
    "array": "list",
    "boolean": "boolean",
    "integer": "number",
    "null": "null",
    "number": "number",
    "object": "object",
    "string": "text",
}
_ANY: frozenset[Kind] = frozenset({"any"})
#: Schemas may refer to themselves.
_STEPS_MAX = 50


def argument_kinds(schema: Mapping[str, Any], path: Keys) -> frozenset[Kind] | None:
    """The kinds that the value at `path` can have; None when the schema declares no such value."""
    return _kinds(schema, path, schema, _STEPS_MAX)


def argument_values(schema: Mapping[str, Any], path: Keys) -> Sequence[Any] | None:
    """All that the value at `path` can be, where the schema lists it (`enum`); else None."""
    here: object = schema
    for key in (*path, None):
        for _ in range(_STEPS_MAX):
            if isinstance(here, Mapping) and "$ref" in here:
                here = _referred(cast("Mapping[str, Any]", here)["$ref"], schema)
        if not isinstance(here, Mapping):
            return None
        found = cast("Mapping[str, Any]", here)
        if key is None:
            return found.get("enum")
        here = found.get("properties", {}).get(key)
    return None


def names_near(schema: Mapping[str, Any], path: Keys) -> list[str]:
    """What could be meant by a path that the schema does not declare: the names where it goes astray."""
    here = schema
    for key in path:
        properties = cast("Mapping[str, Mapping[str, Any]]", here.get("properties", {}))
        if key not in properties:
            return sorted(properties)
        here = properties[str(key)]
    return []


def _kinds(schema: object, path: Keys, root: Mapping[str, Any], steps: int) -> frozenset[Kind] | None:
    if not isinstance(schema, Mapping) or steps == 0:
        return _ANY
    here = cast("Mapping[str, Any]", schema)
    if "$ref" in here:
        return _kinds(_referred(here["$ref"], root), path, root, steps - 1)
    variants = [
        variant
        for word in ("anyOf", "oneOf", "allOf")
        for variant in cast("Sequence[Any]", here.get(word, ()))
    ]
    own = _own_kinds(here, path, root, steps - 1)
    if not variants:
        return own
    found = [_kinds(variant, path, root, steps - 1) for variant in variants]
    if own is not None and own != _ANY:
        found.append(own)
    declared = [kinds for kinds in found if kinds is not None]
    return frozenset[Kind]().union(*declared) if declared else None


def _own_kinds(
    schema: Mapping[str, Any], path: Keys, root: Mapping[str, Any], steps: int
) -> frozenset[Kind] | None:
    if not path:
        return _final_kinds(schema)
    key, rest = path[0], path[1:]
    kinds = _final_kinds(schema)
    if kinds.isdisjoint({"any", "object" if type(key) is str else "list"}):
        return None
    if type(key) is int:
        return _kinds(schema.get("items", True), rest, root, steps) if "prefixItems" not in schema else _ANY
    properties = cast("Mapping[str, Any]", schema.get("properties", {}))
    if key in properties:
        return _kinds(properties[str(key)], rest, root, steps)
    if "patternProperties" in schema:
        return _ANY
    # Who lists properties means these, even where JSON Schema would let others through.
    further = schema.get("additionalProperties", not properties)
    return None if further is False else _kinds(further, rest, root, steps)


def _final_kinds(schema: Mapping[str, Any]) -> frozenset[Kind]:
    declared = schema.get("type")
    names: Sequence[Any] = [declared] if isinstance(declared, str) else declared or ()
    if names:
        return frozenset(_TYPES.get(name, "any") for name in names)
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return frozenset(kind_of(value) for value in values) if values else _ANY


def _referred(reference: object, root: Mapping[str, Any]) -> object:
    """What a reference into the same document points to; nothing is ever fetched."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return True
    found: object = root
    for part in reference.removeprefix("#").split("/")[1:]:
        if not isinstance(found, Mapping):
            return True
        name = part.replace("~1", "/").replace("~0", "~")
        found = cast("Mapping[str, object]", found).get(name, True)
    return found
