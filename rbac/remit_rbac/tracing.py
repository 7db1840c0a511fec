"""What every row said about one question, for explanations and for the coverage of tests.

It asks what `Policy.decide` asks, in the same order, through the same index, and keeps what that throws
away. It decides nothing: where the two differ, `decide` is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from remit_rbac.conditions import EvaluationError
from remit_rbac.decisions import LADDER, Question, Rung
from remit_rbac.index import Row, Rule
from remit_rbac.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One row that was asked. It holds when its condition is true, or could not be answered and denies."""

    rule: Rule
    holds: bool
    #: Why the condition could not be answered; empty when it could.
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One subject, one action, and every row about them, in policy order."""

    subject: str
    act: str
    asked: tuple[Asked, ...]

    @property
    def allowed_by(self) -> tuple[Rule, ...]:
        return tuple(each.rule for each in self.asked if each.holds and each.rule.values[5] == "allow")

    @property
    def denied_by(self) -> tuple[Rule, ...]:
        return tuple(each.rule for each in self.asked if each.holds and each.rule.values[5] == "deny")

    @property
    def allowed(self) -> bool:
        return bool(self.allowed_by) and not self.denied_by

    @property
    def exercised(self) -> tuple[Rule, ...]:
        """The rows without which the answer could be another: what grants, or else what denies."""
        return self.denied_by or self.allowed_by


def step(
    policy: Policy,
    tenant: str,
    subject: str,
    tool: str,
    act: str,
    args: Mapping[str, Any],
    ctx: Mapping[str, Any],
) -> Step:
    """What every row says about one subject and one action."""
    request = {"sub": subject, "dom": tenant, "tool": tool, "act": act}
    record = {**request, "args": args, "ctx": ctx}
    return Step(
        subject=subject,
        act=act,
        asked=tuple(_asked(rule, record) for rule in policy.rows_for(request)),
    )


def climbed(policy: Policy, q: Question, subject: str) -> Iterator[Step]:
    """The rungs of one subject from `execute` down to the first that is allowed."""
    for _, act in LADDER:
        found = step(policy, q.tenant, subject, q.tool, act, q.args, q.ctx)
        yield found
        if found.allowed:
            return


def exercised(policy: Policy, q: Question) -> set[Row]:
    """The rows that made this decision what it is: what granted, what denied, and the duties that are due.

    Where people are asked, also the rows by which those who may approve may.
    """
    decision = policy.decide(q)
    if not decision.delegated:
        return set()
    steps = [found for subject in (q.agent, q.user) for found in climbed(policy, q, subject)]
    if decision.rung is Rung.APPROVE:
        chain = (q.agent, q.user)
        steps += [
            step(policy, q.tenant, user, q.tool, "approve", q.args, {**q.ctx, "in_chain": int(user in chain)})
            for user in policy.candidates(q.tenant, q.tool)
        ]
    rows = {rule.row for found in steps for rule in found.exercised}
    return rows | {duty.row for duty in decision.duties}


def _asked(rule: Rule, record: Mapping[str, Any]) -> Asked:
    try:
        holds = rule.condition is None or bool(rule.condition.evaluate(record))
    except EvaluationError as error:
        return Asked(rule=rule, holds=rule.values[5] == "deny", error=str(error))
    return Asked(rule=rule, holds=holds)
