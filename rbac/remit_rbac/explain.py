"""Why a call did not get further: the rows that would have allowed it, had one thing been different.

For people who write policies and people who are refused. It is not used to decide, reads rows through
the policy's own index, and names attributes and operators but no values of the call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from remit_rbac import syntax
from remit_rbac.conditions import EvaluationError, Expression, compile_node
from remit_rbac.decisions import LADDER, Question
from remit_rbac.index import Row
from remit_rbac.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class NearMiss:
    """A row that would allow `act` to `subject`, but for what is missing."""

    subject: str
    act: str
    row: Row
    #: Each is one sentence part, such as `r.args.amount <= 100 is false`.
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.subject} could {self.act} by {self.row}, but {' and '.join(self.missing)}"


def near_misses(policy: Policy, q: Question, *, count_max: int = 10) -> tuple[NearMiss, ...]:
    """The rows about this subject and tool that would allow more, what lacks least first, then the next rung.

    Only of the side that keeps the call where it is: the other is allowed more already.
    """
    decision = policy.decide(q)
    if not decision.delegated:
        return ()
    reached = ((q.agent, decision.agent_rung), (q.user, decision.user_rung))
    higher = [
        (subject, granted, act)
        for subject, rung in reached
        for granted, act in LADDER
        if rung is decision.rung and granted > rung
    ]
    found = [
        (len(miss.missing), granted, miss)
        for subject, granted, act in higher
        for miss in _unmet_rows(policy, q, subject, act)
    ]
    found.sort(key=lambda each: each[:2])
    return tuple(miss for *_, miss in found)[:count_max]


def _unmet_rows(policy: Policy, q: Question, subject: str, act: str) -> Iterator[NearMiss]:
    """Rows about this call whose conditions do not hold."""
    request = {"sub": subject, "dom": q.tenant, "tool": q.tool, "act": act}
    for rule in policy.rows_for(request):
        missing = unmet(rule.condition, {**request, "args": q.args, "ctx": q.ctx})
        if rule.values[5] == "allow" and missing:
            yield NearMiss(subject=subject, act=act, row=rule.row, missing=missing)


def unmet(condition: Expression | None, record: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts of a condition, joined by `and`, that do not hold for a request; none when it holds."""
    if condition is None:
        return ()
    node = condition.node
    parts = node.operands if isinstance(node, syntax.Logic) and node.operator == "and" else (node,)
    return tuple(reason for part in parts if (reason := _reason(part, record)))


def _reason(part: syntax.Node, record: Mapping[str, Any]) -> str:
    text = syntax.render(part)
    try:
        value = compile_node(text, part, within="r").evaluate(record)
    except EvaluationError as error:
        return f"{text} cannot be answered: {error}"
    return "" if value is True else f"{text} is false"
