"""The effective input schema: closed wherever closing cannot refuse what the source itself would take."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.arguments import SchemaRefused, checker

POINT = {"type": "object", "properties": {"x": {"type": "integer"}}}
ADDRESS = {"type": "object", "properties": {"street": {"type": "string"}}}


def schema(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **more}


CLOSED: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # name, schema, arguments that pass, arguments with something that nobody declared
    ("the arguments themselves", POINT, {"x": 1}, {"x": 1, "y": 2}),
    ("an object inside", schema({"at": POINT}), {"at": {"x": 1}}, {"at": {"x": 1, "y": 2}}),
    (
        "objects in a list",
        schema({"all": {"type": "array", "items": POINT}}),
        {"all": [{"x": 1}]},
        {"all": [{"x": 1, "y": 2}]},
    ),
    (
        "an object by reference",
        schema({"at": {"$ref": "#/$defs/P"}}, **{"$defs": {"P": POINT}}),
        {"at": {"x": 1}},
        {"at": {"x": 1, "y": 2}},
    ),
    (
        "an object by reference, or null",
        schema({"at": {"anyOf": [{"$ref": "#/$defs/P"}, {"type": "null"}]}}, **{"$defs": {"P": POINT}}),
        {"at": {"x": 1}},
        {"at": {"x": 1, "y": 2}},
    ),
    (
        "one of two objects",
        schema({"at": {"oneOf": [POINT, ADDRESS]}}),
        {"at": {"street": "Main"}},
        {"at": {"x": "no", "street": "Main", "y": 2}},
    ),
    (
        "a definition with a slash in its name",
        schema({"at": {"$ref": "#/$defs/a~1b"}}, **{"$defs": {"a/b": POINT}}),
        {"at": {"x": 1}},
        {"at": {"x": 1, "y": 2}},
    ),
    (
        "an object that refers to itself",
        schema({"at": {"$ref": "#"}, "x": {"type": "integer"}}),
        {"at": {"at": {"x": 1}}},
        {"at": {"at": {"y": 1}}},
    ),
    (
        "an object in an older draft",
        schema({"at": POINT}, **{"$schema": "http://json-schema.org/draft-07/schema#"}),
        {"at": {"x": 1}},
        {"at": {"x": 1, "y": 2}},
    ),
    (
        "two parts together",
        schema(
            {"at": {"allOf": [{"$ref": "#/$defs/P"}, ADDRESS], "unevaluatedProperties": False}},
            **{"$defs": {"P": POINT}},
        ),
        {"at": {"x": 1, "street": "Main"}},
        {"at": {"x": 1, "street": "Main", "y": 2}},
    ),
]


@pytest.mark.parametrize(
    ("declared", "good", "more"), [case[1:] for case in CLOSED], ids=[c[0] for c in CLOSED]
)
def test_what_nobody_declared_is_refused(
    declared: dict[str, Any], good: dict[str, Any], more: dict[str, Any]
) -> None:
    problem = checker(declared)
    assert problem(good) is None
    assert problem(more) is not None


OPEN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("an object that says so", {**POINT, "additionalProperties": True}, {"x": 1, "y": 2}),
    ("an object without properties", {"type": "object"}, {"anything": 1}),
    ("two parts of one object", schema({"at": {"allOf": [POINT, ADDRESS]}}), {"at": {"x": 1, "street": "M"}}),
    (
        "two parts by reference",
        schema(
            {"at": {"allOf": [{"$ref": "#/$defs/P"}, {"$ref": "#/$defs/A"}]}},
            **{"$defs": {"P": POINT, "A": ADDRESS}},
        ),
        {"at": {"x": 1, "street": "M"}},
    ),
    (
        "a part that refers on",
        schema(
            {"at": {"allOf": [{"$ref": "#/$defs/B"}, ADDRESS]}},
            **{"$defs": {"B": {"$ref": "#/$defs/P"}, "P": POINT}},
        ),
        {"at": {"x": 1, "street": "M"}},
    ),
    (
        "a reference beside properties",
        schema({"at": {"$ref": "#/$defs/P", **ADDRESS}}, **{"$defs": {"P": POINT}}),
        {"at": {"x": 1, "street": "M"}},
    ),
    (
        "alternatives beside properties",
        schema({"at": {**ADDRESS, "anyOf": [POINT, {"type": "object"}]}}),
        {"at": {"x": 1, "street": "M"}},
    ),
    (
        "a part by anchor",
        schema({"at": {"allOf": [{"$ref": "#p"}, ADDRESS]}}, **{"$defs": {"P": {"$anchor": "p", **POINT}}}),
        {"at": {"x": 1, "street": "M"}},
    ),
]


@pytest.mark.parametrize(("declared", "good"), [case[1:] for case in OPEN], ids=[case[0] for case in OPEN])
def test_what_the_source_would_take_is_never_refused_for_being_closed(
    declared: dict[str, Any], good: dict[str, Any]
) -> None:
    assert checker(declared)(good) is None


@pytest.mark.parametrize(
    "declared",
    [
        {"type": "string"},
        {"type": "object", "properties": {"x": {"type": "no such type"}}},
        {"type": "object", "properties": {"x": {"pattern": "("}}},
        {"type": "object", "properties": {"x": {"$ref": "http://127.0.0.1:1/schema"}}},
        schema({str(n): POINT for n in range(2_000)}),
    ],
)
def test_a_schema_that_cannot_be_trusted_is_refused(declared: dict[str, Any]) -> None:
    with pytest.raises(SchemaRefused):
        checker(declared)


def test_a_bottomless_schema_is_refused() -> None:
    deep: dict[str, Any] = POINT
    for _ in range(40):
        deep = schema({"in": deep})
    with pytest.raises(SchemaRefused):
        checker(deep)


NAMES = st.sampled_from(["a", "b", "c", "d"])
LEAVES = st.sampled_from([{"type": "integer"}, {"type": "string"}, {"type": "null"}])
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(schema, st.dictionaries(NAMES, inner, max_size=3)),
        st.builds(lambda item: {"type": "array", "items": item}, inner),
        st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner),
        st.builds(lambda one, two: {"allOf": [one, two]}, inner, inner),
    ),
    max_leaves=8,
)
VALUES = st.recursive(
    st.one_of(st.integers(0, 3), st.just("t"), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(NAMES, SCHEMAS, max_size=3), st.dictionaries(NAMES, VALUES, max_size=3))
def test_closing_never_accepts_what_the_source_refuses(
    properties: dict[str, Any], arguments: dict[str, Any]
) -> None:
    declared = schema(properties)
    if checker(declared)(arguments) is None:
        assert checker({**declared, "additionalProperties": True})(arguments) is None
        assert set(arguments) <= set(properties)
