"""The rows that nearly allowed more."""

from __future__ import annotations

from tests.rbac.build import a_policy

from remit_rbac import Question, near_misses

ROWS = [
    "p, agent:bot, acme, pay.refund, execute, 0 < r.args.amount && r.args.amount <= 100, allow",
    "p, agent:bot, acme, pay.refund, advise, 1 == 1, allow",
    "p, user:ann, acme, pay.refund, execute, 1 == 1, allow",
    "p, agent:other, acme, pay.refund, execute, r.args.amount < 1000, allow",
    "p, agent:bot, acme, pay.payout, execute, 1 == 1, allow",
    "p, agent:bot, bank, pay.refund, execute, 1 == 1, allow",
    "p, agent:third, acme, pay.refund, execute, r.args.amount < 10, allow",
]


def question(**args: object) -> Question:
    return Question(tenant="acme", agent="agent:bot", user="user:ann", tool="pay.refund", args=args, ctx={})


def test_the_failing_parts_of_a_condition_are_named():
    first = near_misses(a_policy(*ROWS), question(amount=500))[0]
    assert (first.subject, first.act, first.row.line) == ("agent:bot", "execute", 1)
    assert first.missing == ("r.args.amount <= 100 is false",)
    assert "but r.args.amount <= 100 is false" in str(first)


def test_a_part_that_cannot_be_answered_says_why():
    missing = near_misses(a_policy(*ROWS), question(amount="500"))[0].missing
    assert missing[1] == "r.args.amount <= 100 cannot be answered: cannot order a text and a number"


def test_only_rows_about_this_subject_and_this_tool_are_near():
    found = near_misses(a_policy(*ROWS), question(amount=500))
    assert [(miss.row.line, miss.missing) for miss in found] == [(1, ("r.args.amount <= 100 is false",))]


def test_what_lacks_least_comes_first_then_the_next_rung():
    rows = [
        "p, agent:bot, acme, pay.refund, execute, r.args.amount < 9 && r.args.kind == 'x', allow",
        "p, agent:bot, acme, pay.refund, recommend, r.args.amount < 90, allow",
        "p, agent:bot, acme, pay.refund, execute, r.args.amount < 10, allow",
        "p, user:ann, acme, pay.refund, execute, 1 == 1, allow",
    ]
    found = near_misses(a_policy(*rows), question(amount=500, kind="y"))
    assert [miss.row.line for miss in found] == [2, 3, 1]
    assert len(near_misses(a_policy(*rows), question(amount=500, kind="y"), count_max=2)) == 2


def test_what_would_not_help_is_not_offered():
    rows = [
        "p, agent:bot, acme, pay.refund, advise, 1 == 1, allow",
        "p, user:ann, acme, pay.refund, execute, r.args.amount < 10, allow",
        "p, user:ann, acme, pay.refund, recommend, 1 == 1, allow",
    ]
    assert near_misses(a_policy(*rows), question(amount=500)) == ()


def test_nothing_is_missing_from_what_is_allowed():
    assert near_misses(a_policy(*ROWS), question(amount=50)) == ()
