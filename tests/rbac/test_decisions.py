"""What a policy decides, and how it says why."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from tests.rbac.build import a_policy, ask, both

from remit_rbac import Question, Rung, load_text
from remit_rbac.stock import StockPolicy

LADDER = [
    ("execute", Rung.EXECUTE, "allowed"),
    ("recommend", Rung.APPROVE, "needs_approval"),
    ("advise", Rung.ADVISE, "advise_only"),
]


@pytest.mark.parametrize(("action", "rung", "code"), LADDER)
def test_the_highest_action_that_is_allowed_is_the_rung(action: str, rung: Rung, code: str):
    decision = ask(a_policy(f"p, *, acme, pay.refund, {action}, 1 == 1, allow"))
    assert (decision.rung, decision.agent_rung, decision.user_rung) == (rung, rung, rung)
    assert decision.code == code
    assert decision.limited_by == ("none" if rung is Rung.EXECUTE else "both")
    assert decision.delegated


@pytest.mark.parametrize("agent_action", ["execute", "recommend", "advise", "approve"])
@pytest.mark.parametrize("user_action", ["execute", "recommend", "advise", "list"])
def test_the_agent_never_gets_further_than_its_user_nor_the_user_than_the_agent(
    agent_action: str, user_action: str
):
    decision = ask(
        a_policy(
            f"p, agent:bot, acme, pay.refund, {agent_action}, 1 == 1, allow",
            f"p, user:ann, acme, pay.refund, {user_action}, 1 == 1, allow",
        )
    )
    rungs = {"execute": 3, "recommend": 2, "advise": 1}
    agent, user = rungs.get(agent_action, 0), rungs.get(user_action, 0)
    assert decision.rung == min(agent, user)
    assert (decision.agent_rung, decision.user_rung) == (agent, user)
    expected = "agent" if agent < user else "user" if user < agent else "none" if agent == 3 else "both"
    assert decision.limited_by == expected


def test_nothing_is_allowed_without_a_rule():
    decision = ask(a_policy("p, *, acme, pay.other, execute, 1 == 1, allow"))
    assert (decision.rung, decision.code, decision.rows) == (Rung.DENY, "no_rule", ())


def test_an_agent_acts_only_for_those_it_is_delegated_to():
    policy = a_policy("p, *, *, pay.refund, execute, 1 == 1, allow")
    for other in ({"agent": "agent:other"}, {"user": "user:bob"}, {"tenant": "bank"}):
        decision = ask(policy, **other)
        assert (decision.rung, decision.code, decision.delegated) == (Rung.DENY, "no_delegation", False)
        assert decision.policy_version == policy.version


@pytest.mark.parametrize(
    "delegation",
    ["g3, agent:b, user:*, acme", "g3, agent:*, user:ann, acme", "g3, agent:b, role:staff, acme"],
)
def test_delegation_may_be_for_every_agent_for_everyone_and_for_those_with_a_role(delegation: str):
    policy = load_text(
        f"p, *, acme, pay.refund, execute, 1 == 1, allow\n{delegation}\n"
        "g, role:clerk, role:staff, acme\ng, user:ann, role:clerk, acme\n"
    )
    assert ask(policy, agent="agent:b").rung is Rung.EXECUTE
    assert ask(policy, agent="agent:b", tenant="bank").code == "no_delegation"
    if "user:*" not in delegation:
        assert ask(policy, agent="agent:b", user="user:bob").code == "no_delegation"


def test_a_deny_wins_over_every_allow_in_any_order():
    allow, deny = "p, *, *, *, *, 1 == 1, allow", "p, agent:bot, acme, pay.refund, execute, 1 == 1, deny"
    for rows in ([allow, deny], [deny, allow]):
        decision = ask(a_policy(*rows))
        assert (decision.rung, decision.code, decision.limited_by) == (
            Rung.APPROVE,
            "needs_approval",
            "agent",
        )
        assert deny in [row.text for row in decision.rows]


def test_a_deny_that_covers_every_action_is_named_as_the_reason():
    decision = ask(
        a_policy("p, *, *, *, *, 1 == 1, allow", "p, *, *, *, *, r.ctx.risk > 0.8, deny"), ctx={"risk": 0.9}
    )
    assert (decision.rung, decision.code) == (Rung.DENY, "denied_by_rule")
    assert [row.line for row in decision.rows] == [2]


def test_a_deny_is_no_reason_where_nothing_allows():
    rows = ["p, *, *, pay.other, *, 1 == 1, allow", "p, *, *, *, *, r.ctx.risk > 0.8, deny"]
    assert ask(a_policy(*rows), ctx={"risk": 0.9}).code == "no_rule"


ERRORS: list[dict[str, Any]] = [
    {},
    {"amount": None},
    {"amount": "50"},
    {"amount": True},
    {"amount": []},
    {"amount": float("nan")},
]


@pytest.mark.parametrize("args", ERRORS)
def test_an_allow_that_cannot_be_answered_does_not_allow_and_is_reported(args: dict[str, Any]):
    decision = ask(a_policy("p, *, acme, pay.refund, execute, r.args.amount <= 100, allow"), **args)
    assert (decision.rung, decision.code) == (Rung.DENY, "rule_error")
    assert [error.row.line for error in decision.errors] == [1]
    assert decision.errors[0].message


@pytest.mark.parametrize("args", ERRORS)
def test_a_deny_that_cannot_be_answered_denies_and_is_reported(args: dict[str, Any]):
    rows = [
        "p, *, acme, pay.refund, *, 1 == 1, allow",
        "p, *, acme, pay.refund, *, r.args.amount > 100, deny",
    ]
    decision = ask(a_policy(*rows), **args)
    assert (decision.rung, decision.code) == (Rung.DENY, "rule_error")
    assert {error.row.line for error in decision.errors} == {2}
    assert [row.line for row in decision.rows] == [2]


def test_one_rule_that_cannot_be_answered_does_not_spoil_the_others():
    decision = ask(
        a_policy(
            "p, *, acme, pay.refund, execute, r.args.missing == 1, allow",
            "p, *, acme, pay.refund, execute, r.args.amount <= 100, allow",
        ),
        amount=50,
    )
    assert decision.rung is Rung.EXECUTE
    assert [row.line for row in decision.rows] == [2]
    assert [error.row.line for error in decision.errors] == [1]


def test_a_condition_must_be_true_and_not_only_look_so():
    policy = a_policy("p, *, acme, pay.refund, execute, r.args.ready, allow")
    assert ask(policy, ready=True).rung is Rung.EXECUTE
    assert ask(policy, ready=False).rung is Rung.DENY
    for value in (1, "yes", [1], {"a": 1}, 1.0):
        assert ask(policy, ready=value).code == "rule_error"


def test_a_deny_with_a_missing_value_demotes_only_the_action_it_is_about():
    decision = ask(
        a_policy(
            "p, *, acme, pay.refund, *, 1 == 1, allow",
            "p, agent:*, *, *, execute, r.ctx.env == 'prod' && (r.ctx.hour < 8 || r.ctx.hour >= 18), deny",
        ),
        ctx={"env": "prod", "hour": 23},
    )
    assert (decision.rung, decision.limited_by) == (Rung.APPROVE, "agent")


def test_roles_are_inherited_within_their_tenant_only():
    policy = a_policy(
        "p, role:staff, acme, pay.refund, execute, 1 == 1, allow",
        "p, role:staff, bank, pay.refund, execute, 1 == 1, allow",
        "g, role:clerk, role:staff, acme",
        "g, agent:bot, role:clerk, acme",
        "g, user:ann, role:clerk, acme",
        "g, agent:bot, role:clerk, bank",
        "g, user:ann, role:staff, bank",
        "g3, agent:bot, user:ann, bank",
    )
    assert ask(policy).rung is Rung.EXECUTE
    decision = ask(policy, tenant="bank")
    assert (decision.agent_rung, decision.user_rung) == (Rung.DENY, Rung.EXECUTE)


def test_tool_groups_nest_and_patterns_are_beginnings():
    policy = a_policy(
        "p, *, acme, grp:all, execute, 1 == 1, allow",
        "p, *, acme, crm.get*, execute, 1 == 1, allow",
        "g2, grp:money, grp:all",
        "g2, pay.refund, grp:money",
    )
    allowed = {"pay.refund", "crm.get", "crm.get_all", "crm.get.all"}
    for tool in (*allowed, "pay.refunds", "crm.delete", "crm.ge", "xcrm.get", "pay.refund.x"):
        assert (ask(policy, tool=tool).rung is Rung.EXECUTE) == (tool in allowed)


def test_duties_add_up_for_the_decided_action_and_grant_nothing():
    policy = a_policy(
        "p, *, acme, pay.refund, recommend, 1 == 1, allow",
        "p2, *, acme, pay.refund, *, 1 == 1, redact=args.card",
        "p2, agent:*, *, pay.*, recommend, r.args.amount > 100, approvals=2",
        "p2, user:ann, acme, pay.refund, recommend, 1 == 1, confirm",
        "p2, *, acme, pay.refund, execute, 1 == 1, redact=args.note",
        "p2, *, acme, pay.other, *, 1 == 1, redact=args.note",
        "p2, *, acme, crm.get, *, 1 == 1, redact=args.x",
        "p, user:*, acme, *, approve, 1 == 1, allow",
    )
    decision = ask(policy, amount=500)
    assert [(duty.name, duty.value) for duty in decision.duties] == [
        ("redact", "args.card"),
        ("approvals", "2"),
        ("confirm", ""),
    ]
    assert [duty.name for duty in ask(policy, amount=50).duties] == ["redact", "confirm"]
    assert ask(policy, tool="crm.get").duties == ()
    assert ask(policy, tool="crm.get").rung is Rung.DENY


def test_a_duty_that_cannot_be_answered_applies_and_is_reported():
    policy = a_policy(
        "p, *, acme, pay.refund, execute, 1 == 1, allow",
        "p2, *, acme, pay.refund, execute, r.args.amount > 100, redact=args.card",
    )
    decision = ask(policy, amount="many")
    assert [duty.value for duty in decision.duties] == ["args.card"]
    assert [error.row.line for error in decision.errors] == [2]


def test_a_duty_is_for_whoever_its_row_names():
    rows = [
        "p, *, acme, pay.refund, execute, 1 == 1, allow",
        "p2, user:bob, acme, pay.refund, *, 1 == 1, redact=args.card",
    ]
    assert ask(a_policy(*rows)).duties == ()
    policy = a_policy(*rows, "p2, *, acme, pay.refund, *, r.ctx.owner == r.sub, confirm")
    assert [duty.name for duty in ask(policy, ctx={"owner": "user:ann"}).duties] == ["confirm"]
    assert ask(policy, ctx={"owner": "user:bob"}).duties == ()


def test_conditions_may_read_who_where_what_and_how():
    policy = a_policy(
        *both(
            "p, BOTH, *, pay.*, *, r.sub == 'BOTH' && r.dom == 'acme' && r.tool == 'pay.refund'"
            " && r.act == 'advise', allow"
        )
    )
    assert ask(policy).rung is Rung.ADVISE
    assert ask(policy, tool="pay.other").rung is Rung.DENY


@pytest.mark.parametrize(
    "odd",
    [
        {"agent": "role:admin"},
        {"agent": "bot"},
        {"agent": ""},
        {"agent": "agent:"},
        {"agent": "agent:*"},
        {"agent": "agent:b*"},
        {"agent": "user:ann"},
        {"agent": "agent:bot\n"},
        {"agent": "agent:bot "},
        {"agent": "agent:cafe\u0301"},
        {"agent": "agent:" + "a" * 300},
        {"user": "role:admin"},
        {"user": "agent:bot"},
        {"user": "user:*"},
        {"user": ""},
        {"tenant": ""},
        {"tenant": "*"},
        {"tool": ""},
        {"tool": "*"},
        {"tool": "pay.*"},
        {"tool": "pay.refund\x00"},
    ],
)
def test_names_that_could_be_taken_for_something_else_are_denied(odd: dict[str, str]):
    policy = load_text(
        "p, *, *, *, *, 1 == 1, allow\np, role:admin, *, *, *, 1 == 1, allow\n"
        "g3, agent:*, user:*, acme\ng3, agent:bot, user:ann, acme\n"
    )
    decision = ask(policy, **odd)
    assert (decision.rung, decision.code) == (Rung.DENY, "malformed_request")
    q = {"tenant": "acme", "agent": "agent:bot", "user": "user:ann", "tool": "pay.refund"} | odd
    assert not policy.visible(**q)
    if "user" not in odd:
        assert not policy.allowed(q["agent"], q["tenant"], q["tool"], "execute", {}, {}).allowed or (
            odd == {"agent": "user:ann"}
        )


def test_what_was_decided_before_does_not_decide_what_comes_after():
    policy = a_policy(
        "p, agent:bot, acme, pay.refund, execute, r.args.a, allow",
        "p, agent:bot, acme, pay.refund, recommend, 1 == 1, allow",
        "p, user:ann, acme, pay.refund, execute, r.args.b, allow",
        "p, user:ann, acme, pay.refund, recommend, r.args.c, allow",
        "p2, *, acme, pay.refund, *, r.args.d, confirm",
    )
    for bits in [*range(16), *reversed(range(16)), *range(16)]:
        a, b, c, d = (bool(bits & bit) for bit in (1, 2, 4, 8))
        decision = ask(policy, a=a, b=b, c=c, d=d)
        user = Rung.EXECUTE if b else Rung.APPROVE if c else Rung.DENY
        assert (decision.agent_rung, decision.user_rung) == (Rung.EXECUTE if a else Rung.APPROVE, user)
        assert decision.rung == min(decision.agent_rung, user)
        assert bool(decision.duties) == (d and decision.rung > 0)
        assert (ask(policy, a=a, b=b, c=c).errors != ()) == (decision.rung > 0)


def test_a_decision_reads_and_never_writes():
    policy = a_policy("p, *, *, *, *, r.args.deep.list[0] == 1 && r.ctx.a == 'x', allow")
    q = Question(
        tenant="acme",
        agent="agent:bot",
        user="user:ann",
        tool="pay.refund",
        args={"deep": {"list": [1]}},
        ctx={"a": "x"},
    )
    before = deepcopy(q)
    assert policy.decide(q).rung is Rung.EXECUTE
    policy.approvers("acme", "pay.refund", q.args, q.ctx)
    assert q == before


def test_one_answer_names_the_rows_that_gave_it():
    policy = a_policy(
        "p, *, acme, pay.refund, execute, 1 == 1, allow",
        "p, agent:bot, acme, pay.refund, execute, r.args.amount > 5, deny",
        "p, agent:bot, acme, pay.*, execute, r.args.amount > 6, deny",
    )
    question = ("agent:bot", "acme", "pay.refund", "execute")
    yes = policy.allowed(*question, {"amount": 5}, {})
    no = policy.allowed(*question, {"amount": 7}, {})
    assert (yes.allowed, [row.line for row in yes.rows]) == (True, [1])
    assert (no.allowed, [row.line for row in no.rows]) == (False, [2, 3])
    assert not policy.allowed("agent:bot", "acme", "pay.refund", "undo", {}, {}).allowed


def test_what_arguments_could_allow_is_visible():
    policy = a_policy(
        "p, *, acme, pay.refund, execute, r.args.amount < 0, allow",
        "p, *, acme, pay.payout, execute, 1 == 1, allow",
        "p, agent:bot, acme, pay.payout, execute, 1 == 1, deny",
        "p, *, acme, pay.maybe, execute, 1 == 1, allow",
        "p, *, acme, pay.maybe, execute, r.ctx.risk > 0.8, deny",
        "p, *, acme, pay.hidden, execute, 1 == 1, allow",
        "p, user:ann, acme, pay.hidden, list, 1 == 1, deny",
        "p, *, acme, pay.advice, advise, 1 == 1, allow",
        "p, agent:bot, acme, pay.half, execute, 1 == 1, allow",
        "p, *, acme, pay.votes, approve, 1 == 1, allow",
    )
    names = ["refund", "payout", "maybe", "hidden", "advice", "half", "votes", "unknown"]
    seen = [name for name in names if policy.visible("acme", "agent:bot", "user:ann", f"pay.{name}")]
    assert seen == ["refund", "maybe", "advice"]
    assert not policy.visible("acme", "agent:bot", "user:bob", "pay.refund")


def test_approvers_are_the_users_whom_the_rules_allow_to_approve_this_call():
    policy = a_policy(
        "p, *, acme, pay.refund, recommend, 1 == 1, allow",
        "p, role:lead, acme, pay.refund, approve, r.args.amount <= 100, allow",
        "p, user:eve, acme, pay.*, approve, 1 == 1, allow",
        "p, role:lead, bank, pay.refund, approve, 1 == 1, allow",
        "p, agent:bot, acme, pay.refund, approve, 1 == 1, allow",
        "p, *, *, *, approve, r.ctx.in_chain == 1, deny",
        "g, role:head, role:lead, acme",
        "g, user:bob, role:head, acme",
        "g, user:ann, role:lead, acme",
        "g, agent:bot, role:lead, acme",
        "g, user:zoe, role:lead, bank",
    )
    assert policy.approvers("acme", "pay.refund", {"amount": 50}, {}) == ("user:ann", "user:bob", "user:eve")
    assert policy.approvers("acme", "pay.refund", {"amount": 500}, {}) == ("user:eve",)
    assert policy.approvers("acme", "pay.refund", {"amount": 50}, {"in_chain": 1}, exclude={"user:ann"}) == (
        "user:bob",
        "user:eve",
    )
    assert policy.approvers("bank", "pay.refund", {}, {}) == ("user:zoe",)
    assert policy.approvers("acme", "crm.get", {}, {}) == ()


def test_a_pattern_lets_every_known_user_approve():
    policy = a_policy("p, *, acme, pay.refund, *, 1 == 1, allow", "g, user:bob, role:any, acme")
    assert policy.approvers("acme", "pay.refund", {}, {}) == ("user:ann", "user:bob")


def test_the_subjects_and_tenants_that_are_named_are_known():
    policy = a_policy(
        "p, user:eve, acme, pay.refund, execute, 1 == 1, allow",
        "p, agent:*, bank, pay.refund, execute, 1 == 1, allow",
        "p, user:all, *, pay.refund, execute, 1 == 1, allow",
        "g, agent:b, role:x, acme",
        "g, user:zoe, role:x, shop",
    )
    assert policy.subjects("acme").agents == ("agent:b", "agent:bot")
    assert policy.subjects("acme").users == ("user:all", "user:ann", "user:eve")
    assert policy.subjects("shop").users == ("user:all", "user:zoe")
    assert policy.tenants == ("acme", "bank", "shop")


def test_what_is_remembered_stays_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("remit_rbac.policy.MEMO_MAX", 10)
    policy = load_text("p, *, *, *, execute, r.args.n > 0, allow\ng3, agent:*, user:*, acme\n")
    for n in range(100):
        assert ask(policy, agent=f"agent:{n}", n=n).rung == (Rung.EXECUTE if n else Rung.DENY)
        assert ask(policy, agent=f"agent:{n}", user="user:*").code == "malformed_request"
    assert len(policy._cases) <= 10
    assert len(policy._plans) <= 10


def test_rows_are_told_in_the_order_of_the_policy_whatever_they_match_by():
    policy = a_policy(
        "p, role:clerk, acme, pay.*, execute, 1 == 1, allow",
        "p, *, acme, pay.refund, execute, 2 == 2, allow",
        "p, agent:bot, acme, pay.refund, execute, 3 == 3, allow",
        "p, *, *, pay.*, execute, 4 == 4, allow",
        "p, agent:bot, *, pay.refund, execute, 5 == 5, allow",
        "g, agent:bot, role:clerk, acme",
    )
    request = {"sub": "agent:bot", "dom": "acme", "tool": "pay.refund", "act": "execute"}
    found = [rule.values[4] for rule in policy.rows_for(request)]
    assert found == [f"{n} == {n}" for n in range(1, 6)]


@pytest.mark.parametrize(
    ("rows", "helps"),
    [
        (["execute, r.args.amount < 10, allow"], True),
        (["execute, r.ctx.facts.order.open, allow"], True),
        (["execute, r.ctx.hour < 6, allow"], False),
        (["execute, r.args.amount < 10 && r.ctx.hour < 6, allow"], False),
        (["execute, r.args.amount < 10 && r.ctx.hour > 6, allow"], True),
        (["execute, r.args.amount < 10 || r.ctx.hour < 6, allow"], True),
        (["execute, !(r.args.amount > 9 || r.ctx.hour > 6), allow"], False),
        (["execute, !(r.args.amount > 9), allow"], True),
        (["execute, r.args.amount < 10 && r.sub == 'user:bob', allow"], False),
        # One rung that can be reached is enough, and one row.
        (["execute, r.ctx.hour < 6, allow", "advise, r.args.amount < 10, allow"], True),
        (["execute, r.ctx.hour < 6, allow", "execute, r.args.amount < 10, allow"], True),
        # What forbids it with any arguments forbids it with others.
        (["execute, r.args.amount < 10, allow", "execute, r.ctx.hour > 6, deny"], False),
        (["execute, r.args.amount < 10, allow", "execute, r.ctx.hour < 6, deny"], True),
        (["execute, r.args.amount < 10, allow", "execute, r.args.amount > 90, deny"], True),
        (["execute, r.args.amount < 10, allow", "*, 1 == 1, deny"], False),
        # What cannot be known now may be so.
        (["execute, r.args.amount < 10 && r.ctx.run.customer == 'a', allow"], True),
    ],
)
def test_other_arguments_help_where_nothing_else_stands_in_the_way(rows: list[str], helps: bool):
    policy = a_policy(*(f"p, *, acme, pay.refund, {row}" for row in rows))
    q = Question(
        tenant="acme",
        agent="agent:bot",
        user="user:ann",
        tool="pay.refund",
        args={"amount": 50},
        ctx={"hour": 9, "run": {}, "facts": {"order": {"open": False}}},
    )
    assert policy.decide(q).rung is Rung.DENY
    assert policy.could_allow_otherwise(q, {"facts"}) is helps
    assert StockPolicy(policy).could_allow_otherwise(q, {"facts"}) is helps


def test_other_arguments_must_help_the_agent_and_its_user():
    policy = a_policy(
        "p, agent:bot, acme, pay.refund, execute, r.args.amount < 10, allow",
        "p, user:ann, acme, pay.refund, execute, r.ctx.hour < 6, allow",
        "p, agent:bot, acme, pay.payout, execute, r.args.amount < 10, allow",
        "p, user:ann, acme, pay.payout, execute, 1 == 1, allow",
    )

    def helps(tool: str, user: str = "user:ann") -> bool:
        args, ctx = {"amount": 50}, {"hour": 9}
        q = Question(tenant="acme", agent="agent:bot", user=user, tool=tool, args=args, ctx=ctx)
        return policy.could_allow_otherwise(q, ())

    assert helps("pay.payout")
    assert not helps("pay.refund")
    assert not helps("pay.payout", user="user:bob")
