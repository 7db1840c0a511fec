"""What is known of a call before its arguments, so that only conditions are left to ask.

A plan holds the rows that match names; asking it evaluates their conditions. Which conditions hold is
all that its answer depends on, so answers are remembered by that, unless one could not be evaluated.
Plans are made by `Policy` and shared by threads: their memos are bounded, and a race for one computes
the same value twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from remit_rbac.conditions import EvaluationError
from remit_rbac.decisions import LADDER, Decision, Duty, RowError, Rung, Standing, Verdict
from remit_rbac.index import Rule

#: Answers remembered per plan; few combinations of conditions occur.
ANSWERS_MAX = 16


class Plan:
    """The rules that can matter to one (subject, tenant, tool, action), whatever the arguments."""

    __slots__ = ("_asked", "_verdicts", "allows", "denies", "settled")

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.denies = tuple(rule for rule in rules if rule.values[5] == "deny")
        self.allows = tuple(rule for rule in rules if rule.values[5] == "allow")
        #: The answer, when no arguments can change it.
        self.settled = self._settled()
        self._asked = tuple(
            (1 << rule_bit, rule.condition.evaluate, rule)
            for rule_bit, rule in enumerate(rules)
            if rule.condition is not None
        )
        self._verdicts: dict[int, Verdict] = {}

    @property
    def hopeless(self) -> bool:
        """No arguments could be allowed."""
        return self.settled is not None and not self.settled.allowed

    def judge(self, record: Mapping[str, Any], errors: list[RowError]) -> Verdict:
        """Answer one call. What could not be evaluated is added to `errors`."""
        if self.settled is not None:
            return self.settled
        holding = doubtful = 0
        for bit, evaluate, rule in self._asked:
            try:
                if evaluate(record):
                    holding |= bit
            except EvaluationError as error:
                doubtful |= bit
                errors.append(RowError(row=rule.row, message=str(error)))
        if doubtful:
            return self._verdict(holding, doubtful)
        verdict = self._verdicts.get(holding)
        if verdict is None:
            verdict = self._verdict(holding, 0)
            if len(self._verdicts) < ANSWERS_MAX:
                self._verdicts[holding] = verdict
        return verdict

    def _settled(self) -> Verdict | None:
        always_denied = tuple(rule for rule in self.denies if rule.condition is None)
        if always_denied or not self.allows:
            return Verdict(False, always_denied, self.allows, bool(always_denied), False)
        if not self.denies and all(rule.condition is None for rule in self.allows):
            return Verdict(True, (), self.allows, False, False)
        return None

    def _verdict(self, holding: int, doubtful: int) -> Verdict:
        bits = {id(rule): bit for bit, _, rule in self._asked}
        # A deny that cannot be answered denies; an allow that cannot be answered does not allow.
        denied_by = tuple(rule for rule in self.denies if bits.get(id(rule), 0) & (holding | doubtful))
        allowed_by = tuple(rule for rule in self.allows if rule.condition is None or bits[id(rule)] & holding)
        return Verdict(
            allowed=bool(allowed_by) and not denied_by,
            denied_by=denied_by,
            allowed_by=allowed_by,
            denied=any(bits[id(rule)] & holding for rule in denied_by),
            in_doubt=doubtful != 0,
        )


@dataclass(frozen=True, slots=True)
class Duties:
    """The duty rows that can matter at one rung."""

    #: The Casbin action of the rung.
    action: str
    #: For which of the two subjects, by which row, what.
    rules: tuple[tuple[str, Rule, Duty], ...]

    def due(self, record: dict[str, Any], errors: list[RowError]) -> int:
        """Which of the rows apply, as bits in their order. One that cannot be evaluated does."""
        record["act"] = self.action
        applying = 0
        for bit, (subject, rule, _) in enumerate(self.rules):
            record["sub"] = subject
            try:
                if rule.condition is None or rule.condition.evaluate(record):
                    applying |= 1 << bit
            except EvaluationError as error:
                applying |= 1 << bit
                errors.append(RowError(row=rule.row, message=str(error)))
        return applying

    def named(self, applying: int) -> tuple[Duty, ...]:
        """The duties of the rows that apply, each once, in policy order."""
        due = {rule.number: duty for bit, (_, rule, duty) in enumerate(self.rules) if applying >> bit & 1}
        return tuple(due[number] for number in sorted(due))


@dataclass(frozen=True, slots=True)
class Case:
    """All that is known of a call before its arguments: (tenant, agent, user, tool)."""

    #: The decision, when the names alone decide.
    refusal: Decision | None
    #: One plan for each rung of the ladder, highest first.
    agent: tuple[Plan, ...] = ()
    user: tuple[Plan, ...] = ()
    #: What is asked and answered most, filled in when it first is.
    duties: dict[Rung, Duties] = field(default_factory=dict[Rung, Duties])
    decisions: dict[tuple[Any, ...], Decision] = field(default_factory=dict[tuple[Any, ...], Decision])


def climb(plans: tuple[Plan, ...], record: dict[str, Any], errors: list[RowError]) -> Standing:
    """How far the subject of the record may go: the first rung that is allowed, from the top."""
    verdicts: list[Verdict] = []
    for (rung, action), plan in zip(LADDER, plans, strict=True):
        record["act"] = action
        verdict = plan.settled or plan.judge(record, errors)
        verdicts.append(verdict)
        if verdict.allowed:
            return Standing(rung, verdicts)
    return Standing(Rung.DENY, verdicts)
