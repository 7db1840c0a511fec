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


#: Where a row may differ from the call in one column and still be of interest. Never the tenant.
_COLUMNS = {"sub": (0, "it is for {}"), "tool": (2, "it is about {}")}


def near_misses(policy: Policy, q: Question, *, count_max: int = 10) -> tuple[NearMiss, ...]:
    """The rows nearest to allowing more: first those about this very call, then those about others."""
    decision = policy.decide(q)
    reached = ((q.agent, decision.agent_rung), (q.user, decision.user_rung))
    higher = [(subject, act) for subject, rung in reached for granted, act in LADDER if granted > rung]
    own = [miss for subject, act in higher for miss in _unmet_rows(policy, q, subject, act)]
    others = [miss for subject, act in higher for miss in _rows_for_others(policy, q, subject, act)]
    own.sort(key=lambda miss: len(miss.missing))
    return (*own, *others)[:count_max]


def _unmet_rows(policy: Policy, q: Question, subject: str, act: str) -> Iterator[NearMiss]:
    """Rows about this call whose conditions do not hold."""
    request = {"sub": subject, "dom": q.tenant, "tool": q.tool, "act": act}
    for rule in policy.rows_for(request):
        missing = unmet(rule.condition, {**request, "args": q.args, "ctx": q.ctx})
        if rule.values[5] == "allow" and missing:
            yield NearMiss(subject=subject, act=act, row=rule.row, missing=missing)


def _rows_for_others(policy: Policy, q: Question, subject: str, act: str) -> Iterator[NearMiss]:
    """Rows whose conditions hold, for another subject of the same kind, a role, or another tool."""
    request = {"sub": subject, "dom": q.tenant, "tool": q.tool, "act": act}
    own = {rule.number for rule in policy.rows_for(request)}
    for column, (position, why) in _COLUMNS.items():
        for rule in policy.rows_for(request, ignoring=(column,)):
            known = rule.number in own or rule.values[5] != "allow"
            comparable = rule.values[0].startswith((subject.partition(":")[0], "role:", "*"))
            if known or not comparable or unmet(rule.condition, {**request, "args": q.args, "ctx": q.ctx}):
                continue
            missing = (why.format(rule.values[position]),)
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
