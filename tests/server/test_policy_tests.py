"""`remit policy test`: cases that people write, what they are held against, and which rows they reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tests.server.acme import REPOSITORY, Ran, Terminal, a_place

from remit.policy_tests import json_schema

DEFAULTS = {"tenant": "acme", "agent": "agent:support-bot", "user": "user:alice"}
TESTS = REPOSITORY / "configs/acme/policy_tests.yaml"


@pytest.fixture
def acme(tmp_path: Path) -> Terminal:
    return Terminal(a_place(tmp_path))


def ran(acme: Terminal, *cases: dict[str, Any], words: tuple[str, ...] = (), **defaults: Any) -> Ran:
    """`remit policy test` on these cases."""
    file = acme.folder / "cases.yaml"
    file.write_text(json.dumps({"defaults": {**DEFAULTS, **defaults}, "cases": cases}, indent=1))
    return acme("policy", "test", str(file), *words)


def a_refund(amount_minor: int, **case: Any) -> dict[str, Any]:
    return {"tool": "acme.refund", "args": {"order_id": "ord-1", "amount_minor": amount_minor}, **case}


def more(acme: Terminal, *rows: str) -> None:
    with (acme.folder / "policy.csv").open("a") as file:
        file.write("\n".join(("", *rows, "")))


#: What rules may read about calls of a tool that is made up here.
DECLARED = """\
tools:
  acme.get_x: {facts: {order: {call: acme.get_order, args: {order_id: args.order_id}}}}
  acme.get_customer: {establishes: {customer: result.id}}
"""


def declare(acme: Terminal) -> None:
    acme.config.write_text(acme.config.read_text().replace("tools:\n", DECLARED))


def test_acmes_own_tests_pass_and_reach_every_row() -> None:
    done = Terminal(TESTS.with_name("remit.yaml"))("policy", "test", str(TESTS), "--min-coverage", "100")
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith(" passed, 0 failed. Coverage: 15 of 15 rows, 100 %.\n")


def test_a_case_that_fails_says_what_differed_where_it_stands_and_which_rows_decided(acme: Terminal) -> None:
    wrong = a_refund(40000, name="It is simply made", expect={"verdict": "execute", "approvers": []})
    done = ran(acme, a_refund(80, expect="execute"), wrong)
    assert done.code == 1
    assert f"FAILED It is simply made ({acme.folder}/cases.yaml:" in done.out
    assert "    verdict: expected execute, got approve\n" in done.out
    assert "    approvers: expected none, got user:sue\n" in done.out
    assert "    why: needs_approval\n" in done.out
    assert "policy.csv:84: p, role:refund_requester, acme, acme.refund, recommend" in done.out
    assert "1 passed, 1 failed." in done.out


@pytest.mark.parametrize(
    ("expect", "differs"),
    [
        ({"verdict": "approve", "code": "no_rule"}, "code: expected no_rule, got needs_approval"),
        (
            {"verdict": "approve", "duties": ["approvals=2"]},
            "duties: expected approvals=2, got redact=args.x",
        ),
        ({"verdict": "approve", "limited_by": "user"}, "limited_by: expected user, got both"),
    ],
)
def test_each_thing_that_is_expected_is_compared(
    acme: Terminal, expect: dict[str, Any], differs: str
) -> None:
    more(acme, "p2, role:support, acme, acme.refund, *, 1 == 1, redact=args.x")
    assert differs in ran(acme, a_refund(40000, expect=expect)).out


def test_rules_see_what_a_case_supposes(acme: Terminal) -> None:
    declare(acme)
    more(
        acme,
        "p, role:support, acme, acme.ship, execute, r.ctx.facts.order.status == 'paid', allow",
        "p, role:support, acme, acme.ship, execute, r.ctx.hour >= 20, deny",
        "p, role:support, acme, acme.ship, execute, r.ctx.claim.confidence < 0.5, deny",
        "p, role:support, acme, acme.ship, execute, r.ctx.run.customer != 'c1', deny",
    )
    fits = {
        "tool": "acme.ship",
        "facts": {"order": {"status": "paid"}},
        "run": {"customer": "c1"},
        "claim": {"confidence": 0.9},
        "context": {"effect": "reversible"},
    }
    done = ran(
        acme,
        {**fits, "expect": "execute"},
        {**fits, "facts": {"order": {"status": "open"}}, "expect": "deny"},
        {**fits, "run": {"customer": "c2"}, "expect": "deny"},
        {**fits, "claim": {"confidence": 0.1}, "expect": "deny"},
        {**fits, "time": "2026-01-31T21:00:00Z", "expect": "deny"},
        {**fits, "time": "2026-01-31T21:00:00+02:00", "expect": "execute"},
        {**fits, "context": {"effect": "irreversible"}, "expect": "deny"},
    )
    assert done.code == 0, done.out


def test_without_a_time_it_is_noon_whenever_the_tests_run(acme: Terminal) -> None:
    rules = "r.ctx.hour == 12 && r.ctx.weekday == 3"
    more(acme, f"p, role:support, acme, acme.get_noon, execute, {rules}, allow")
    assert ran(acme, {"tool": "acme.get_noon", "expect": "execute"}).code == 0


def test_a_case_expects_what_the_gateway_would_do_not_what_a_row_alone_says(acme: Terminal) -> None:
    more(
        acme,
        "p2, role:support, acme, acme.refund, recommend, r.args.amount_minor > 50000, approvals=2",
        "p, user:omar, acme, acme.refund, approve, r.args.amount_minor < 50000, allow",
    )
    done = ran(
        acme,
        a_refund(40000, expect="approve"),
        a_refund(60000, expect={"verdict": "deny", "code": "no_approver"}),
        a_refund(-1, expect={"verdict": "deny", "code": "no_price"}),
    )
    assert done.code == 0, done.out


def test_rows_that_no_case_made_use_of_are_named_with_the_reason(acme: Terminal) -> None:
    (acme.folder / "policy.csv").write_text(
        "g, agent:support-bot, role:s, acme\ng, user:alice, role:s, acme\n"
        "g3, agent:support-bot, user:alice, acme\n"
        "p, role:s, acme, acme.refund, execute, r.args.amount_minor > 0 && r.args.amount_minor <= 10, allow\n"
        "p, role:s, acme, acme.refund, execute, r.args.amount_minor == 7, deny\n"
        "p, role:s, acme, acme.refund, advise, r.args.amount_minor > 10, allow\n"
        "p2, role:s, acme, acme.refund, *, r.args.amount_minor == 9, redact=args.x\n"
    )
    done = ran(acme, a_refund(8, expect="execute"), words=("--json",))
    assert done.code == 0
    covered = done.json["coverage"]
    assert (covered["rows"], covered["percent"]) == (4, 25)
    assert [(row["line"], row["why"]) for row in covered["unused"]] == [
        (5, "never denied anything"),
        (6, "never granted anything"),
        (7, "was never due"),
    ]
    cases = [a_refund(number, expect=expect) for number, expect in ((7, "deny"), (9, "execute"))]
    assert ran(acme, *cases, a_refund(11, expect="advise"), words=("--min-coverage", "100")).code == 0


def test_an_allow_that_a_deny_beats_has_not_granted_anything(acme: Terminal) -> None:
    more(
        acme,
        "p, role:support, acme, acme.ship, execute, 1 == 1, allow",
        "p, agent:*, acme, acme.ship, *, r.args.to == 'moon', deny",
    )
    case = {"tool": "acme.ship", "context": {"effect": "read"}, "args": {"to": "moon"}, "expect": "deny"}
    agent = {"subject": "agent:support-bot", "action": "execute"}
    unused = ran(acme, {**case, **agent}, words=("--json",), agent=None, user=None).json["coverage"]["unused"]
    assert "allow" in next(row["text"] for row in unused if "acme.ship" in row["text"])
    assert not any("moon" in row["text"] for row in unused)


def test_too_little_coverage_fails_although_every_case_passed(acme: Terminal) -> None:
    done = ran(acme, a_refund(80, expect="execute"), words=("--min-coverage", "50"))
    assert done.code == 1
    assert "1 passed, 0 failed." in done.out
    assert done.out.endswith("Coverage is below 50 %.\n")


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ({"tool": "acme.refund"}, "cases[0].expect: is missing; write it, for example expect: execute"),
        ({"expect": "execute"}, "cases[0].tool: is missing; write it, for example tool: acme.refund"),
        (a_refund(1, expect="exekute"), "'exekute' is not an expect; write one of execute, approve, advise"),
        (a_refund(1, expect="execute", argz={}), "cases[0].argz: is not a setting; did you mean args?"),
        (a_refund(1, expect="allow"), "the verdict of this question is execute, approve, advise or deny"),
        (a_refund(1, expect="execute", time="2026-01-31T09:00:00"), "write a time with its zone"),
        (a_refund(1, expect="execute", time="noon"), "write a time with its zone"),
        (a_refund(1, expect="deny", action="undo"), "subject and action go together"),
        (
            a_refund(1, expect="deny", action="undo", subject="user:a", user="user:a"),
            "ask about a subject alone, or about an agent and its user",
        ),
        (a_refund(1, expect={"verdict": "approve", "approvers": "user:sue"}), "is text; write a list"),
        ({"tool": "shop.buy", "expect": "deny"}, "no source exports 'shop.buy': the sources are acme"),
    ],
)
def test_a_file_with_mistakes_is_told_with_line_field_and_fix(
    acme: Terminal, case: dict[str, Any], said: str
) -> None:
    done = ran(acme, case)
    assert done.code == 1
    assert f"{acme.folder}/cases.yaml:" in done.err
    assert said in done.err.replace("\n", " ")
    assert "Traceback" not in done.err


def test_a_case_without_an_agent_is_told_where_to_name_one(acme: Terminal) -> None:
    done = ran(acme, a_refund(1, expect="execute"), agent=None)
    assert "cases[0]: names no agent; write it here or in defaults" in done.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("- a\n", "the file must hold `cases:`"),
        ("cases: []\n", "is empty; write at least one case"),
        ("cases: [\n", ":2:1: "),
        ("cases:\n  - tool: a.b\n    tool: a.c\n", "this key is written twice, first on line 2"),
    ],
)
def test_a_file_that_holds_no_cases_is_told(acme: Terminal, text: str, said: str) -> None:
    file = acme.folder / "cases.yaml"
    file.write_text(text)
    done = acme("policy", "test", str(file))
    assert (done.code, done.out) == (1, "")
    assert said in done.err


def test_a_file_that_is_not_there_is_told(acme: Terminal) -> None:
    assert "no.yaml: cannot be read: no such file" in acme("policy", "test", "no.yaml").err


def test_the_schema_for_editors_is_that_of_the_code_and_accepts_acmes_tests() -> None:
    schema = json.loads((REPOSITORY / "configs/policy_tests.schema.json").read_text())
    assert schema == json_schema()
    jsonschema.validate(yaml.safe_load(TESTS.read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"cases": [{"tool": "a.b", "expect": "exekute"}]}, schema)


def test_who_can_lists_each_pair_with_its_rung_and_row(acme: Terminal) -> None:
    words = ("policy", "who-can", "acme.refund", "--args", '{"amount_minor": 40000}')
    (told,) = acme.json(*words)["who"]
    assert (told["agent"], told["user"], told["verdict"]) == ("agent:support-bot", "user:alice", "approve")
    assert "policy.csv:84:" in told["rows"][0]
    said = acme(*words).out
    assert "agent:support-bot for user:alice" in said
    assert "approve" in said


def test_who_can_lists_who_may_do_one_thing_alone(acme: Terminal) -> None:
    def who(action: str) -> list[str]:
        words = ("policy", "who-can", "acme.refund", "--args", '{"amount_minor": 40000}', "--action", action)
        return [told["subject"] for told in acme.json(*words)["who"]]

    assert who("approve") == ["user:sue"]
    assert who("undo") == ["agent:support-bot", "user:alice", "user:sue"]


def test_what_an_undo_owes_is_asked_and_tested(acme: Terminal) -> None:
    row = "p2, role:support, acme, acme.refund, undo, r.args.amount_minor > 1000, approvals=2"
    more(acme, row)
    assert "give `approve` on acme.refund to more users" in acme("check", "--offline").out
    more(acme, "p, user:omar, acme, acme.refund, approve, 1 == 1, allow")
    support = {"subject": "agent:support-bot", "action": "undo"}
    owed = {"verdict": "allow", "duties": ["approvals=2"]}
    fits = ran(
        acme,
        a_refund(2000, **support, expect=owed),
        a_refund(900, **support, expect={"verdict": "allow", "duties": []}),
        a_refund(2000, subject="user:sue", action="undo", expect={"verdict": "allow", "duties": []}),
        words=("--json",),
        agent=None,
        user=None,
    )
    assert fits.code == 0, fits
    assert row not in [unused["text"] for unused in fits.json["coverage"]["unused"]]
    wrong = ran(acme, a_refund(900, **support, expect=owed), agent=None, user=None)
    assert "duties: expected approvals=2, got none" in wrong.out
    amount = ("--args", '{"amount_minor": 2000}')
    who = acme("policy", "who-can", "acme.refund", *amount, "--action", "undo").out
    assert "agent:support-bot   undo, approvals=2" in who
    assert "may also  undo, approvals=2" in acme("policy", "can", "user:alice", "acme.refund", *amount).out


def test_a_duty_of_an_undo_is_held_against_what_an_undo_knows(acme: Terminal) -> None:
    declare(acme)
    more(
        acme,
        "p, user:sue, acme, acme.get_x, approve, 1 == 1, allow",
        "p2, *, acme, acme.get_x, undo, r.ctx.facts.order.status == 'paid', approvals=1",
    )
    checked = acme("check", "--offline")
    assert checked.code == 1
    assert "r.ctx.facts" in checked.out


def test_who_can_says_when_nobody_can_and_names_rows_for_whoever_fits_a_pattern(acme: Terminal) -> None:
    asked = ("policy", "who-can", "acme.refund", "--args", '{"amount_minor": 4000000}')
    assert acme(*asked).code == 1
    assert acme(*asked).out == "Nobody whom the policy names.\n"
    more(acme, "p, user:*, acme, acme.refund, advise, 1 == 1, allow")
    assert "also, for names that the policy need not list: " in acme(*asked).out
    assert acme(*asked).code == 0


def test_can_supposes_facts_run_and_time(acme: Terminal) -> None:
    declare(acme)
    more(
        acme,
        "p, role:support, acme, acme.get_x, execute, r.ctx.facts.order.status == 'paid'"
        " && r.ctx.run.customer == 'c1' && r.ctx.hour == 9, allow",
    )
    asked = ("policy", "can", "agent:support-bot", "acme.get_x", "--at", "2026-01-31T09:00:00Z")
    fits = ("--facts", '{"order": {"status": "paid"}}', "--run", '{"customer": "c1"}')
    assert acme(*asked, *fits).code == 0
    assert acme(*asked, *fits[:2], "--run", "{}").code == 3
    assert acme(*asked[:4], *fits, "--at", "2026-01-31T10:00:00Z").code == 3
    assert acme(*asked, "--facts", "[]").code == 64
    assert acme(*asked[:4], "--at", "soon").code == 64


def test_can_refuses_what_nobody_could_approve(acme: Terminal) -> None:
    more(
        acme,
        "p2, role:support, acme, acme.refund, recommend, 1 == 1, approvals=2",
        "p, user:omar, acme, acme.refund, approve, r.args.amount_minor < 20000, allow",
    )
    asked = ("policy", "can", "agent:support-bot", "acme.refund", "--args", '{"amount_minor": 40000}')
    assert acme(*asked, "--json").json["code"] == "no_approver"


def test_the_tests_that_the_configuration_names_guard_every_way_in(acme: Terminal) -> None:
    file = acme.folder / "cases.yaml"
    file.write_text(
        json.dumps({"defaults": DEFAULTS, "cases": [a_refund(80, name="Small ones pass", expect="execute")]})
    )
    acme.config.write_text(
        acme.config.read_text().replace("files: [policy.csv]", "files: [policy.csv], tests: [cases.yaml]")
    )
    assert acme("policy", "test").code == 0
    assert acme("policy", "check").code == 0
    assert acme("policy", "push").code == 0
    more(acme, "p, *, acme, acme.refund, *, 1 == 1, deny")
    for words in (("policy", "test"), ("policy", "check"), ("check", "--offline"), ("policy", "push")):
        done = acme(*words)
        assert done.code == 1, words
        assert "Small ones pass" in done.out + done.err
    file.unlink()
    told = acme("policy", "check")
    assert told.code == 1
    assert "policy.tests[0]: there is no file" in told.out + told.err


def test_without_a_file_and_without_any_in_the_configuration_nothing_is_tested(acme: Terminal) -> None:
    done = acme("policy", "test")
    assert done.code == 64
    assert "policy.tests" in done.err
