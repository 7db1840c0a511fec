"""Conditions in plain words."""

from __future__ import annotations

import pytest

from remit_rbac import compile_expression
from remit_rbac.words import parts

CALL = {
    "sub": "agent:bot",
    "args": {"amount_minor": 40000, "kind": "gold", "items": [{"unit_price": 5}], "to": None},
    "ctx": {
        "effect": "read",
        "undo_ready": True,
        "hour": 9,
        "price": {"eur": 3},
        "claim": {"confidence": 0.4},
        "facts": {"order": {"status": "paid", "is_open": False}},
        "run": {"customer": "c1"},
    },
}


def told(text: str) -> list[tuple[str, bool | None]]:
    return [(part.text, part.holds) for part in parts(compile_expression(text, roots=("r",)), CALL)]


@pytest.mark.parametrize(
    ("text", "said", "holds"),
    [
        (
            "r.args.amount_minor <= 10000",
            "the amount in cents (args.amount_minor = 40,000) is at most 10,000",
            False,
        ),
        ("0 < r.args.amount_minor", "the amount in cents (args.amount_minor = 40,000) is more than 0", True),
        ("r.ctx.effect == 'read'", "the effect of the call (ctx.effect = 'read') is 'read'", True),
        (
            "r.ctx.facts.order.status in ('paid', 'sent')",
            "the order's status (ctx.facts.order.status = 'paid') is one of 'paid' or 'sent'",
            True,
        ),
        ("r.args.kind not in ('a',)", "the kind (args.kind = 'gold') is none of 'a'", True),
        (
            "!(r.args.kind == 'gold')",
            "it is not so that the kind (args.kind = 'gold') is 'gold'",
            False,
        ),
        ("r.ctx.undo_ready", "whether it can be taken back (ctx.undo_ready = yes) is yes", True),
        ("!r.ctx.undo_ready", "whether it can be taken back (ctx.undo_ready = yes) is no", False),
        (
            "r.ctx.price.eur > 2 || r.ctx.claim.confidence < 0.5",
            "the price in eur (ctx.price.eur = 3) is more than 2, or "
            "the agent's own confidence (ctx.claim.confidence = 0.4) is less than 0.5",
            True,
        ),
        (
            "r.ctx.run.customer == 'c2'",
            "this piece of work's customer (ctx.run.customer = 'c1') is 'c2'",
            False,
        ),
        (
            "len(r.args.items) % 2 == 1",
            "the remainder of the length of the items (args.items = unit price 5) divided by 2 is 1",
            True,
        ),
        ("startswith(r.args.kind, 'go')", "the kind (args.kind = 'gold') begins with 'go'", True),
        (
            "r.args.items[0].unit_price * 2 > 9",
            "the items' number 1's unit price (args.items.0.unit_price = 5) times 2 is more than 9",
            True,
        ),
        (
            "1 < r.ctx.hour <= 8",
            "the hour of the day (ctx.hour = 9) is more than 1 and at most 8",
            False,
        ),
        (
            "r.ctx.facts.order.is_open",
            "the order is marked as open (ctx.facts.order.is_open = no)",
            False,
        ),
        (
            "!r.ctx.facts.order.is_open",
            "the order is not marked as open (ctx.facts.order.is_open = no)",
            True,
        ),
        ("r.args.to == None", "the to (args.to = nothing) is nothing", True),
        ("(1 if r.ctx.undo_ready else 2) == 1", None, True),
    ],
)
def test_a_condition_is_told_as_a_sentence(text: str, said: str | None, holds: bool) -> None:
    ((found, held),) = told(text)
    assert held is holds
    assert said is None or found == said


def test_each_part_of_a_condition_stands_alone() -> None:
    assert [holds for _, holds in told("r.args.amount_minor > 0 && r.args.amount_minor < 5")] == [True, False]


def test_what_is_missing_is_said_and_neither_true_nor_false() -> None:
    assert told("r.args.limit > 5") == [("the limit (args.limit is missing) is more than 5", None)]


def test_a_condition_that_always_holds_has_nothing_to_tell() -> None:
    assert parts(None, CALL) == ()
