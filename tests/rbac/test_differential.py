"""Remit against stock Casbin, over random policies and requests. `python -m tests.rbac.fuzz` runs longer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.rbac.differential import (
    Tally,
    a_request,
    a_world,
    compare,
    run,
    write_models,
)

from remit_rbac import Question, Rung, load_text
from remit_rbac.stock import StockPolicy


def test_twenty_thousand_answers_agree_with_stock_casbin(tmp_path: Path):
    models = write_models(tmp_path)
    tally = Tally()
    seed = 0
    while tally.compared < 20_000:
        run(random.Random(seed), models, tally)
        seed += 1
    # The comparison is worth something only while all kinds of answers occur.
    assert all(tally.outcomes[kind] > 100 for kind in ("allow", "deny", "in doubt", "stock raised"))


@given(st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_agree_with_stock_casbin_where_hypothesis_looks(
    tmp_path_factory: pytest.TempPathFactory, rng: random.Random
):
    world = a_world(rng, write_models(tmp_path_factory.getbasetemp()))
    for _ in range(5):
        clean = rng.random() < 0.5
        compare(world, a_request(rng, world, clean=clean), clean=clean, tally=Tally())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_thousand_answers_agree_with_stock_casbin(tmp_path: Path):
    models = write_models(tmp_path)
    tally = Tally()
    seed = 1_000_000
    while tally.compared < 200_000:
        run(random.Random(seed), models, tally)
        seed += 1


STORY = """
p, role:bot, acme, pay.refund, execute, r.args.amount > 0 && r.args.amount <= 100, allow
p, role:bot, acme, pay.refund, recommend, r.args.amount > 0 && r.args.amount <= 1000, allow
p, role:clerk, acme, pay.refund, *, r.args.amount > 0 && r.args.amount <= 500, allow
p, agent:*, *, *, execute, r.ctx.risk >= 0.8, deny
p, role:lead, acme, pay.refund, approve, r.args.amount <= 1000, allow
p, *, *, *, approve, r.ctx.in_chain == 1, deny
p2, *, acme, pay.refund, recommend, r.args.amount > 200, approvals=2
g, agent:bot, role:bot, acme
g, user:ann, role:clerk, acme
g, user:ann, role:lead, acme
g, user:bob, role:lead, acme
g3, agent:bot, user:ann, acme
"""


@pytest.mark.parametrize("risk", [0.1, 0.9])
@pytest.mark.parametrize("amount", [-1, 50, 150, 300, 700, 5000])
def test_the_stock_engine_decides_alike(amount: int, risk: float):
    policy = load_text(STORY)
    stock = StockPolicy(policy)
    q = Question(
        tenant="acme",
        agent="agent:bot",
        user="user:ann",
        tool="pay.refund",
        args={"amount": amount},
        ctx={"risk": risk},
    )
    ours, theirs = policy.decide(q), stock.decide(q)
    assert (ours.rung, ours.agent_rung, ours.user_rung) == (theirs.rung, theirs.agent_rung, theirs.user_rung)
    assert ours.duties == theirs.duties
    if ours.rung:
        assert (ours.code, ours.limited_by) == (theirs.code, theirs.limited_by)
    for exclude in ([], ["user:ann"]):
        call = ("acme", "pay.refund", q.args, q.ctx)
        assert policy.approvers(*call, exclude=exclude) == stock.approvers(*call, exclude=exclude)


def test_the_stock_engine_denies_what_casbin_raises_on():
    policy = load_text(STORY)
    stock = StockPolicy(policy)
    for args in ({}, {"amount": "50"}, {"amount": None}):
        q = Question(tenant="acme", agent="agent:bot", user="user:ann", tool="pay.refund", args=args, ctx={})
        assert stock.decide(q).rung is Rung.DENY
        assert stock.decide(q).code == "rule_error"
    unrelated = Question(tenant="acme", agent="agent:x", user="user:ann", tool="pay.refund", args={}, ctx={})
    assert stock.decide(unrelated).code == "no_delegation"
