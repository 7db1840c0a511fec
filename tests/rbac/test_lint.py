"""What is said about a policy as a whole: constraints, idle rows, traps, schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.rbac.build import a_policy, refused, warned

from remit_rbac import PolicyError, Problem, load_files, load_text
from remit_rbac.model import SHIPPED
from remit_rbac.schemas import argument_kinds

ALLOW = "p, *, acme, pay.refund, execute, 1 == 1, allow"
LIMIT = "p, *, acme, pay.refund, execute, r.args.amount > 0 && r.args.amount <= 100, allow"


def with_constraint(folder: Path, constraint: str, *rows: str) -> list[Problem]:
    model, policy = folder / "model.conf", folder / "policy.csv"
    model.write_text(f"{SHIPPED.read_text()}\n[constraint_definition]\nc = {constraint}\n")
    policy.write_text("\n".join([ALLOW, *rows]))
    try:
        load_files(model, [policy])
    except PolicyError as error:
        return [problem for problem in error.problems if problem.level == "error"]
    return []


SOD = 'sod("role:asker", "role:payer")'


@pytest.mark.parametrize("constraint", ['sod("asker", "payer")', 'roleMax("user:a", 1)', 'sod("role:a")'])
def test_a_constraint_is_about_roles(tmp_path: Path, constraint: str):
    (problem,) = with_constraint(tmp_path, constraint)
    assert (problem.code, problem.file) == ("bad-model", str(tmp_path / "model.conf"))


def test_a_constraint_on_a_role_that_nobody_has_is_told(tmp_path: Path):
    rows = ["g, user:a, role:asker, acme", "p, role:asker, acme, pay.refund, undo, 1 == 1, allow"]
    assert with_constraint(tmp_path, SOD, *rows) == []
    policy = load_files(tmp_path / "model.conf", [tmp_path / "policy.csv"])
    told = [problem for problem in policy.warnings if problem.file.endswith("model.conf")]
    assert [(problem.code, problem.message) for problem in told] == [
        ("role-empty", "nobody has role:payer in any tenant")
    ]


@pytest.mark.parametrize(
    ("constraint", "rows", "line"),
    [
        (SOD, ["g, user:a, role:asker, acme", "g, user:a, role:payer, acme"], 3),
        (
            SOD,
            ["g, user:a, role:boss, acme", "g, role:boss, role:payer, acme", "g, user:a, role:asker, acme"],
            4,
        ),
        (SOD, ["g, user:a, role:asker, acme", "g, user:a, role:payer, bank"], None),
        (SOD, ["g, user:a, role:asker, acme", "g, user:b, role:payer, acme"], None),
        ('sodMax(["role:x", "role:y", "role:z"], 2)', [f"g, user:a, role:{r}, acme" for r in "xyz"], 4),
        ('sodMax(["role:x", "role:y", "role:z"], 2)', [f"g, user:a, role:{r}, acme" for r in "xy"], None),
        ('roleMax("role:x", 1)', ["g, user:a, role:x, acme", "g, user:b, role:x, acme"], 3),
        ('roleMax("role:x", 1)', ["g, role:y, role:x, acme", "g, user:b, role:y, acme"], None),
        (
            'roleMax("role:x", 1)',
            ["g, role:y, role:x, acme", "g, user:a, role:x, acme", "g, user:b, role:y, acme"],
            4,
        ),
        ('roleMax("role:x", 1)', ["g, user:a, role:x, acme", "g, user:a, role:x, bank"], None),
        ('rolePre("role:admin", "role:trained")', ["g, user:a, role:admin, acme"], 2),
        (
            'rolePre("role:admin", "role:trained")',
            [
                "g, user:a, role:admin, acme",
                "g, user:a, role:staff, acme",
                "g, role:staff, role:trained, acme",
            ],
            None,
        ),
        (
            'rolePre("role:admin", "role:trained")',
            ["g, user:a, role:admin, acme", "g, user:a, role:trained, bank"],
            2,
        ),
    ],
)
def test_constraints_on_roles_hold_in_each_tenant_with_inheritance(
    tmp_path: Path, constraint: str, rows: list[str], line: int | None
):
    found = with_constraint(tmp_path, constraint, *rows)
    assert [(problem.code, problem.line) for problem in found] == ([("constraint", line)] if line else [])
    if found:
        assert constraint in found[0].message
        assert "acme" in found[0].message


@pytest.mark.parametrize(
    "constraint",
    [
        'sod("role:a")',
        "sod(1, 2)",
        'sodMax("role:a", 1)',
        "sodMax([], 1)",
        'roleMax("role:a", "1")',
        "sod",
        "x()",
    ],
)
def test_a_constraint_that_is_not_understood_is_refused(tmp_path: Path, constraint: str):
    assert [problem.code for problem in with_constraint(tmp_path, constraint)] == ["bad-model"]


@pytest.mark.parametrize(
    ("rows", "codes"),
    [
        ([ALLOW], []),
        ([ALLOW, ALLOW], ["duplicate-row"]),
        ([ALLOW, "p, *, acme, pay.x, execute, 1 == 2, allow"], ["never-applies"]),
        ([ALLOW, "p, *, *, pay.*, *, 1 == 1, deny"], ["shadowed"]),
        ([ALLOW, "p, *, acme, pay.*, *, r.ctx.a == 1, deny"], []),
        ([ALLOW, "p, *, bank, pay.*, *, 1 == 1, deny"], []),
        ([ALLOW, "p, agent:*, acme, pay.*, *, 1 == 1, deny"], []),
        ([LIMIT, "p, *, acme, pay.*, execute, 1 == 1, allow"], ["redundant"]),
        ([LIMIT, "p, *, acme, pay.*, advise, 1 == 1, allow"], []),
        ([ALLOW, "g2, pay.x, grp:m", "p, *, acme, grp:m, execute, 1 == 1, allow"], []),
        ([ALLOW, "p, *, acme, grp:m, execute, 1 == 1, allow"], ["group-empty"]),
        (
            [ALLOW, "g2, pay.refund, grp:m", "p, *, acme, grp:m, execute, 1 == 1, deny"],
            ["shadowed"],
        ),
        ([ALLOW, "p, role:x, acme, pay.x, execute, 1 == 1, allow"], ["role-empty"]),
        ([ALLOW, "p, role:x, acme, pay.x, execute, 1 == 1, allow", "g, user:a, role:x, acme"], []),
        ([ALLOW, "p, role:x, *, pay.x, execute, 1 == 1, allow", "g, user:a, role:x, bank"], []),
        (
            [ALLOW, "p, role:x, acme, pay.x, execute, 1 == 1, allow", "g, user:a, role:x, bank"],
            ["role-empty", "role-unused"],
        ),
        ([ALLOW, "g, user:a, role:x, acme"], ["role-unused"]),
        ([ALLOW, "g, user:a, role:x, acme", "g3, agent:bot, role:x, acme"], []),
        (
            [
                ALLOW,
                "p, role:y, acme, pay.x, execute, 1 == 1, allow",
                "g, user:a, role:x, acme",
                "g, role:x, role:y, acme",
            ],
            [],
        ),
        (
            [ALLOW, "p, role:x, acme, pay.x, execute, 1 == 1, allow", "g, agent:b, role:x, acme"],
            ["agent-without-user"],
        ),
        ([ALLOW, "p, user:\u0430nn, acme, pay.x, execute, 1 == 1, allow"], ["mixed-script"]),
        ([ALLOW, "p, *, acme, pay.x, execute, r.args.a == 'x && y', allow"], ["stock-rewrites-text"]),
        ([ALLOW, "p, *, acme, pay.x, execute, r.args.a == 'hi!', allow"], ["stock-rewrites-text"]),
        ([ALLOW, "p, *, acme, pay.x, execute, r.args.a == 'p.s', allow"], ["stock-rewrites-text"]),
        ([ALLOW, "p, *, acme, pay.x, execute, r.args.a == 'mr.x != y', allow"], []),
        ([ALLOW, "p, *, acme, pay.x, execute, r.args.a <= 5, allow"], ["no-lower-bound"]),
        ([ALLOW, "p, *, acme, pay.x, execute, 5 > r.args.a, allow"], ["no-lower-bound"]),
        ([ALLOW, "p, *, acme, pay.x, execute, 0 < r.args.a <= 5, allow"], []),
        ([ALLOW, "p, *, acme, pay.x, execute, r.ctx.a <= 5, allow"], []),
        ([ALLOW, "p, *, acme, pay.x, *, r.args.a <= 5, deny"], []),
        ([ALLOW, "p, *, acme, pay.x, recommend, 1 == 1, allow"], ["no-approver"]),
        (
            [
                ALLOW,
                "p, *, acme, pay.x, recommend, 1 == 1, allow",
                "p, user:a, acme, pay.x, approve, 1 == 1, allow",
            ],
            [],
        ),
        (
            [
                ALLOW,
                "p2, *, acme, pay.x, recommend, 1 == 1, approvals=2",
                "p, user:*, acme, pay.x, approve, 1 == 1, allow",
            ],
            [],
        ),
    ],
)
def test_what_is_probably_not_meant_is_a_warning(rows: list[str], codes: list[str]):
    assert warned(*rows) == codes


def may_approve(*tools: str, users: str = "ab", tenant: str = "acme") -> list[str]:
    return [f"p, user:{user}, {tenant}, {tool}, approve, 1 == 1, allow" for tool in tools for user in users]


@pytest.mark.parametrize("tenant", ["acme", "*"])
@pytest.mark.parametrize(
    ("tool", "approve"),
    [
        ("pay.x", may_approve("pay.x", users="a")),
        ("pay.x", [*may_approve("pay.x"), "p, user:b, *, pay.*, approve, 1 == 1, deny"]),
        ("pay.x", [*may_approve("pay.x", users="a"), "p, agent:*, acme, *, approve, 1 == 1, allow"]),
        ("pay.*", []),
        ("pay.*", may_approve("pay.x", "pay.y*", "pay.*", "*", users="a")),
        ("pay.*", may_approve("crm.x", "crm.*", "grp:crm")),
        ("pay.*", [*may_approve("pay.x", users="a"), *may_approve("pay.y", users="b")]),
        ("*", may_approve("grp:m", users="a")),
        ("*", [*may_approve("pay.x", users="a"), *may_approve("pay.x", users="b", tenant="bank")]),
        ("grp:m", may_approve("grp:m", users="a")),
        ("grp:m", [*may_approve("pay.x", users="a"), *may_approve("crm.x")]),
    ],
)
def test_more_who_must_agree_than_there_are_refuse_the_policy(tool: str, approve: list[str], tenant: str):
    duty = f"p2, *, {tenant}, {tool}, recommend, 1 == 1, approvals=2"
    with pytest.raises(PolicyError) as refusal:
        load_text("\n".join([ALLOW, duty, "g2, pay.x, grp:m", "g2, crm.x, grp:crm", *approve]))
    errors = [problem for problem in refusal.value.problems if problem.level == "error"]
    assert [(problem.code, problem.line) for problem in errors] == [("too-few-approvers", 2)]
    assert errors[0].text[errors[0].column - 1 :] == "approvals=2"


@pytest.mark.parametrize("tenant", ["acme", "*"])
@pytest.mark.parametrize(
    ("tool", "approve"),
    [
        ("pay.x", may_approve("pay.x")),
        ("pay.x", ["p, role:boss, acme, grp:m, approve, 1 == 1, allow", "g, user:a, role:boss, acme"]),
        ("pay.*", may_approve("pay.x")),
        ("pay.*", [*may_approve("pay.x*", users="a"), *may_approve("pay.xy*", users="b")]),
        ("pay.*", may_approve("*", tenant="*")),
        ("pay.*", may_approve("grp:m")),
        ("pay.*", ["p, user:*, *, pay.x, approve, 1 == 1, allow"]),
        ("*", may_approve("crm.*")),
        ("grp:m", may_approve("pay.*")),
        ("grp:m", may_approve("grp:m")),
    ],
)
def test_a_duty_that_some_call_can_meet_is_let_be(tool: str, approve: list[str], tenant: str):
    duty = f"p2, *, {tenant}, {tool}, recommend, 1 == 1, approvals=2"
    more = ["g, user:b, role:boss, acme", "g2, pay.x, grp:m"]
    assert load_text("\n".join([ALLOW, duty, *more, *approve]))


def test_who_asks_is_not_among_those_who_must_agree():
    duty = "p2, user:a, acme, pay.x, recommend, 1 == 1, approvals=2"
    with pytest.raises(PolicyError, match="one person in acme may approve"):
        load_text("\n".join([ALLOW, duty, *may_approve("pay.x")]))
    assert load_text("\n".join([ALLOW, duty, *may_approve("pay.x", users="abc")]))


@pytest.mark.parametrize(
    ("tool", "value", "found"),
    [
        ("pay.refund", "args.note", None),
        ("pay.refund", "args.to.iban|args.lines", None),
        ("pay.refund", "args.free.anything", None),
        ("pay.refund", "args.nosuch", "args.nosuch"),
        ("pay.refund", "args.note|args.to.bic", "args.to.bic"),
        ("pay.refund", "args.lines.sku", "args.lines.sku"),
        ("pay.*", "args.note", None),
        ("pay.*", "args.nosuch", "args.nosuch"),
    ],
)
def test_what_is_to_be_struck_out_is_checked_against_the_tools(tool: str, value: str, found: str | None):
    rows = f"{ALLOW}\np2, *, acme, {tool}, *, 1 == 1, redact={value}"
    if found is None:
        assert load_text(rows, tool_schemas=SCHEMAS)
        return
    with pytest.raises(PolicyError) as refusal:
        load_text(rows, tool_schemas=SCHEMAS)
    (problem,) = [each for each in refusal.value.problems if each.level == "error"]
    assert (problem.code, problem.line) == ("unknown-argument", 2)
    assert problem.text[problem.column - 1 :].startswith(found)


SCHEMAS: dict[str, dict[str, Any]] = {
    "pay.refund": {
        "type": "object",
        "properties": {
            "amount": {"type": "number"},
            "note": {"type": ["string", "null"]},
            "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}},
            "to": {
                "anyOf": [{"type": "string"}, {"type": "object", "properties": {"iban": {"type": "string"}}}]
            },
            "free": {"type": "object"},
            "kind": {"enum": ["a", "b"]},
        },
        "$defs": {"line": {"type": "object", "properties": {"sku": {"type": "string"}}}},
    },
    "pay.list": {"type": "object", "properties": {"page": {"type": "integer"}}},
}


CONTEXT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "hour": {"type": "integer"},
        "in_chain": {"enum": [0, 1]},
        "effect": {"enum": ["read", "irreversible"]},
        "facts": {"type": "object", "properties": {"order": {}}},
        "claim": {"type": "object", "properties": {"confidence": {"type": "number"}}},
    },
}


def checked(condition: str, tool: str = "pay.refund") -> list[tuple[str, str]]:
    options = {"tool_schemas": SCHEMAS, "context_schema": CONTEXT}
    row = f"p, *, acme, {tool}, execute, {condition}, allow"
    try:
        policy = load_text(row, **options)
    except PolicyError as error:
        return [(problem.level, problem.code) for problem in error.problems if problem.level == "error"]
    return [(problem.level, problem.code) for problem in policy.warnings]


@pytest.mark.parametrize(
    ("condition", "code"),
    [
        ("r.args.amount > 0", None),
        ("r.args.amuont > 0", "unknown-argument"),
        ("r.args.amount == '5'", "argument-type"),
        ("r.args.note == 'x'", None),
        ("r.args.note > 5", "argument-type"),
        ("len(r.args.lines) > 0", None),
        ("r.args.lines[0].sku == 'x'", None),
        ("r.args.lines[0].skew == 'x'", "unknown-argument"),
        ("r.args.lines[0].sku > 5", "argument-type"),
        ("r.args.to == 'x' || r.args.to.iban == 'y'", None),
        ("r.args.to.bic == 'y'", "unknown-argument"),
        ("r.args.free.anything == 5", None),
        ("r.args.kind in ('a', 'b')", None),
        ("r.args.kind > 5", "argument-type"),
        ("r.ctx.hour >= 8", None),
        ("r.ctx.hours >= 8", "unknown-context"),
        ("r.ctx.facts.order.status == 'open'", None),
        ("r.ctx.facts.user.name == 'x'", "unknown-context"),
        ("r.ctx.claim.confidence > 0.5", None),
        ("r.ctx.in_chain == 0", None),
        ("len(r.args.amount) > 1", "argument-type"),
        ("len(r.args.note) > 1 && len(r.args.free) == 0", None),
        ("contains(r.args.amount, 'x')", "argument-type"),
        ("contains(r.args.note, 5)", "argument-type"),
        ("contains(r.args.lines, 5)", None),
        ("'x' in r.args.amount", "argument-type"),
        ("'x' in r.args.note", "argument-type"),
        ("5 in r.args.free", "argument-type"),
        ("r.args.amount in r.args.free", "argument-type"),
        ("'x' in r.args.lines", None),
        ("r.args.amount > r.args.note", "argument-type"),
        ("r.args.amount == r.args.note", "argument-type"),
        ("r.args.note == r.args.kind", None),
        ("r.args.amount + r.args.note == 'x'", "argument-type"),
        ("r.args.amount + r.args.amount == 5", None),
        ("r.args.amount - 1 == r.args.note", "argument-type"),
        ("lower(r.args.note) == r.args.amount", "argument-type"),
        ("r.args.lines == 'x'", "argument-type"),
        ("r.args.free > 5", "argument-type"),
        ("r.args.note == None || r.args.amount != None", None),
        ("(r.args.note if r.args.amount > 1 else r.args.kind) > 5", "argument-type"),
        ("-r.args.note > 5", "argument-type"),
        ("r.args.amount", "argument-type"),
        ("r.args.amount == r.ctx.hour", None),
        ("r.ctx.claim.nonsense == 5", "unknown-context"),
        ("r.ctx.claim.confidence == 'high'", "context-type"),
        ("r.ctx.effect == 'irreversable'", "unknown-value"),
        ("r.ctx.effect in ('read', 'irreversable')", "unknown-value"),
        ("'irreversable' != r.ctx.effect", "unknown-value"),
        ("r.act == 'excute'", "bad-condition"),
        ("r.act in ('execute', 'recomend')", "bad-condition"),
        ("r.act == 'execute' && r.sub != 'agent:x'", None),
        ("r.sub > 5", "bad-condition"),
        ("r.tool + 1 == 5", "bad-condition"),
        ("keyMatch(r.args.note, 'a*b')", "bad-condition"),
        ("keyMatch(r.args.note, 'a*') || keyMatch(r.args.note, '*')", None),
    ],
)
def test_conditions_are_checked_against_the_tools_and_the_context(condition: str, code: str | None):
    assert checked(condition) == ([("error", code)] if code else [])


@pytest.mark.parametrize(
    ("condition", "at", "says"),
    [
        (
            "len(r.args.lines) > r.args.note",
            "r.args.note",
            "note of pay.refund is a text, and is used here as a number",
        ),
        (
            "r.args.amount == 1 && contains(r.args.amount, 'x')",
            "r.args.amount, 'x'",
            "list or object or text",
        ),
        ("r.ctx.claim.nonsense == 5", "r.ctx.claim.nonsense", "fix: there are confidence"),
        ("r.ctx.effect == 'irreversable'", "'irreversable'", "fix: there are read, irreversible"),
        ("r.sub == 'a' && r.act == 'excute'", "'excute'", "fix: there are execute, recommend"),
        ("r.act == 5", "r.act", "`r.act` is a text"),
        ("keyMatch(r.args.note, 'a*b')", "'a*b'", "let the only * stand last"),
    ],
)
def test_a_refused_condition_is_told_with_its_place_and_what_to_write(condition: str, at: str, says: str):
    with pytest.raises(PolicyError) as refusal:
        load_text(
            f"{ALLOW}\np, *, acme, pay.refund, advise, {condition}, allow",
            tool_schemas=SCHEMAS,
            context_schema=CONTEXT,
        )
    (problem,) = (problem for problem in refusal.value.problems if problem.level == "error")
    assert problem.line == 2
    assert problem.text[problem.column - 1 :].startswith(at)
    assert says in str(problem)


def test_what_a_tool_lists_as_values_is_held_against_as_a_warning():
    assert checked("r.args.kind in ('a', 'b')") == []
    assert checked("r.args.kind == 'c'") == [("warning", "unknown-value")]
    assert checked("r.args.kind == 'c'", "pay.*") == [("warning", "unknown-argument")]


def test_a_tool_that_takes_nothing_has_no_argument():
    nothing: dict[str, Any] = {"properties": {}, "additionalProperties": False}
    rows = [ALLOW, "p, *, acme, pay.ping, execute, r.args.anything == 1, allow"]
    (problem,) = (
        each
        for each in refused(*rows, tool_schemas={**SCHEMAS, "pay.ping": nothing})
        if each.level == "error"
    )
    assert problem.code == "unknown-argument"


@pytest.mark.parametrize(
    ("condition", "codes"),
    [
        ("r.args.a > 5 && r.args.a < 3", ["never-applies"]),
        ("r.args.a > 5 && r.args.b == 1 && 3 > r.args.a", ["never-applies"]),
        ("5 < r.args.a < 3", ["never-applies"]),
        ("r.args.a > 5 && r.args.a <= 5", ["never-applies"]),
        ("r.args.a >= 5 && r.args.a <= 5", []),
        ("r.args.a > 5 && r.args.a < 6", []),
        ("r.args.a > -5 && r.args.a < -6", ["never-applies"]),
        ("r.args.a == 1 && r.args.a == 2", ["never-applies"]),
        ("r.args.a == 1 && r.args.a == 1.0", []),
        ("r.args.a == 'x' && r.args.a == 'y'", ["never-applies"]),
        ("r.args.a == True && r.args.a == False", ["never-applies"]),
        ("r.args.a == 'x' && r.args.b == 'y'", []),
        ("r.args.a == 'x' || r.args.a == 'y'", []),
        ("r.args.a != 1 && r.args.a != 2 && r.args.a > 0", []),
    ],
)
def test_a_condition_that_contradicts_itself_is_told(condition: str, codes: list[str]):
    assert warned(ALLOW, f"p, *, acme, pay.x, advise, {condition}, allow") == codes


def test_a_finding_in_a_condition_points_into_it():
    with pytest.raises(PolicyError) as refusal:
        load_text(f"{LIMIT.replace('r.args.amount <=', 'r.args.amuont <=')}", tool_schemas=SCHEMAS)
    problem = next(problem for problem in refusal.value.problems if problem.level == "error")
    assert problem.text[problem.column - 1 :].startswith("r.args.amuont")


def test_a_rule_over_many_tools_may_be_about_some_of_them():
    assert checked("r.args.amount > 0", "pay.*") == [("warning", "unknown-argument")]
    assert checked("r.args.amuont > 0", "pay.*") == [("error", "unknown-argument")]
    assert checked("1 == 1", "pay.*") == []
    assert checked("1 == 1", "pay.unheard") == [("warning", "unknown-tool")]


def test_without_schemas_nothing_is_said_about_arguments():
    a_policy("p, *, acme, pay.refund, execute, r.args.anything > 0 && r.ctx.anything == 1, allow")


@pytest.mark.parametrize(
    ("schema", "path", "kinds"),
    [
        ({}, ("a",), {"any"}),
        ({"properties": {"a": True}}, ("a",), {"any"}),
        ({"properties": {"a": {"const": 5}}}, ("a",), {"number"}),
        ({"properties": {"a": {"enum": ["x", None]}}}, ("a",), {"text", "null"}),
        ({"properties": {"a": {}}, "additionalProperties": {"type": "string"}}, ("b",), {"text"}),
        ({"properties": {"a": {}}, "additionalProperties": True}, ("b",), {"any"}),
        ({"properties": {"a": {}}, "patternProperties": {"x": {}}}, ("b",), {"any"}),
        ({"properties": {"a": {}}}, ("b",), None),
        ({"properties": {}, "additionalProperties": False}, ("b",), None),
        ({"type": "object", "additionalProperties": False}, ("b",), None),
        ({"properties": {}, "additionalProperties": {"type": "boolean"}}, ("b",), {"boolean"}),
        ({"type": "object", "properties": {}}, ("b",), {"any"}),
        (
            {"allOf": [{"properties": {"a": {"type": "string"}}}, {"required": ["a"]}]},
            ("a",),
            {"text", "any"},
        ),
        ({"properties": {"a": {"type": "array", "prefixItems": [{}]}}}, ("a", 0), {"any"}),
        ({"properties": {"a": {"$ref": "https://example.org/x"}}}, ("a",), {"any"}),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, ("a",), {"any"}),
        (
            {"properties": {"a": {"$ref": "#/$defs/x~1y"}}, "$defs": {"x/y": {"type": "boolean"}}},
            ("a",),
            {"boolean"},
        ),
    ],
)
def test_schemas_say_only_what_is_certain(
    schema: dict[str, Any], path: tuple[str, ...], kinds: set[str] | None
):
    assert argument_kinds(schema, path) == kinds


def test_warnings_do_not_hide_errors():
    problems = refused(ALLOW, ALLOW, "x, y")
    assert {problem.code for problem in problems} == {"duplicate-row", "unknown-row-type"}
