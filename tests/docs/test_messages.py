"""The reference of what a policy is told: complete, in the code's own words, with true examples."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
from tests.docs.pages import read

from remit_rbac import (
    CODES,
    Layer,
    Policy,
    PolicyError,
    Problem,
    hold_against,
    load_layers,
    load_rows,
    load_text,
)
from remit_rbac.model import SHIPPED

PAGE = "docs/policy-messages.md"
_ROW = re.compile(r"^\| `([a-z-]+|not-utf8)` \| ([^|]+) \| (.*?) ?\| ([^|]+) \|$", re.MULTILINE)
#: What the examples are added to.
_SOUND = """\
g, user:ann, role:x, acme
g3, agent:bot, user:ann, acme
p, role:x, acme, sound.tool, execute, 1 == 1, allow
"""
FOUND = {
    code: (means, re.findall(r"`([^`]+)`", example)) for code, means, example, _ in _ROW.findall(read(PAGE))
}
#: Under which headings the codes stand.
_LEVELS = {
    code: "warning" if heading.startswith("Warnings") else "error"
    for heading in read(PAGE).split("\n## ")[1:]
    for code, *_ in _ROW.findall(heading)
}


def _layer(text: str | bytes, tenant: str | None = None) -> Layer:
    return Layer(file="a.csv", content=text.encode() if isinstance(text, str) else text, tenant=tenant)


def _model(more: str) -> Layer:
    return Layer(file="model.conf", content=f"{SHIPPED.read_text()}\n{more}\n".encode())


#: What no row of an example can show.
OTHERWISE: dict[str, Callable[[], Policy | Sequence[Problem]]] = {
    "not-utf8": lambda: load_layers([_layer(b"\xff")]),
    "invisible-character": lambda: load_text(f"{_SOUND}g, user:ann\u200b, role:x, acme"),
    "long-value": lambda: load_rows([["g", "user:" + "x" * 255, "role:x", "acme"]], source="t"),
    "not-nfc": lambda: load_text(f"{_SOUND}g, user:cafe\u0301, role:x, acme"),
    "untrimmed-value": lambda: load_rows([["g", "user:ann ", "role:x", "acme"]], source="t"),
    "grants-nothing": lambda: load_text("g, user:ann, role:x, acme"),
    "role-depth": lambda: load_text(
        "\n".join([_SOUND, *(f"g, role:r{n}, role:r{n + 1}, acme" for n in range(10))])
    ),
    "constraint": lambda: load_layers(
        [_layer(f"{_SOUND}g, user:ann, role:y, acme")],
        model=_model('[constraint_definition]\nc = sod("role:x", "role:y")'),
    ),
    "foreign-tenant": lambda: load_layers([_layer(_SOUND), _layer("g, user:ann, role:x, bank", "acme")]),
    "shared-group": lambda: load_layers([_layer(_SOUND), _layer("g2, a.b, grp:m", "acme")]),
    "context-type": lambda: hold_against(
        load_text(f"{_SOUND}p, role:x, acme, a.b, execute, r.ctx.hour == '9', allow"),
        {"a.b": {}},
        {"a.b": {"properties": {"hour": {"type": "number"}}}},
    ),
    "unknown-value": lambda: load_text(
        f"{_SOUND}p, role:x, acme, a.b, execute, r.ctx.effect == 'reed', allow",
        context_schema={"properties": {"effect": {"enum": ["read"]}}},
    ),
    "bad-model": lambda: load_layers([_layer(_SOUND)], model=_model("nonsense")),
    "no-rows": lambda: load_layers([_layer(_SOUND), _layer("# nothing yet\n")]),
}


def _problems(code: str) -> Sequence[Problem]:
    try:
        if code in OTHERWISE:
            found = OTHERWISE[code]()
        else:
            found = load_text(
                "\n".join([_SOUND, *FOUND[code][1]]),
                tool_schemas={
                    "a.b": {},
                    "sound.tool": {"type": "object", "properties": {"n": {"type": "number"}}},
                },
                context_schema={"properties": {"hour": {"type": "number"}}},
            )
    except PolicyError as refusal:
        return refusal.problems
    return found.warnings if isinstance(found, Policy) else found


def test_every_code_is_told_in_its_own_words_and_no_other() -> None:
    assert {code: means for code, (means, _) in FOUND.items()} == CODES


@pytest.mark.parametrize("code", list(FOUND))
def test_a_code_comes_by_its_example_and_at_the_level_under_which_it_stands(code: str) -> None:
    assert {problem.level for problem in _problems(code) if problem.code == code} == {_LEVELS[code]}
