"""The nouns of a decision: what is asked, what is answered, and what follows from two answers.

All are immutable values. Nothing here knows rules or reads arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, NamedTuple

from remit_rbac.index import Row, Rule


class Rung(IntEnum):
    """How far a call may go. Ordered: the stricter of two rungs is the lower."""

    DENY = 0
    #: Explain or dry-run only.
    ADVISE = 1
    #: A person must approve first.
    APPROVE = 2
    EXECUTE = 3


#: The Casbin action that grants each rung, highest first.
LADDER = ((Rung.EXECUTE, "execute"), (Rung.APPROVE, "recommend"), (Rung.ADVISE, "advise"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """May this agent, acting for this user, call this tool with these arguments?

    `args` and `ctx` are plain JSON values and are only read. `ctx` is the server's, never the agent's.
    """

    tenant: str
    #: `agent:<id>`.
    agent: str
    #: `user:<id>`.
    user: str
    #: `<source>.<tool>`.
    tool: str
    args: Mapping[str, Any]
    ctx: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowError:
    """A row whose condition could not be evaluated for this call."""

    row: Row
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Duty:
    """An obligation that goes with a permitted call: `approvals=2` has name `approvals`, value `2`."""

    name: str
    value: str
    row: Row

    def __str__(self) -> str:
        return f"{self.name}={self.value}" if self.value else self.name


#: Why a decision is what it is. Stable.
Code = Literal[
    "allowed",
    "needs_approval",
    "advise_only",
    # Nothing allows it.
    "no_rule",
    # Something allows it, and something denies it.
    "denied_by_rule",
    # It might be allowed, had a condition not failed to evaluate.
    "rule_error",
    "no_delegation",
    # A name in the question could be taken for something else.
    "malformed_request",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The answer to a question, with all that explains it."""

    rung: Rung
    agent_rung: Rung
    user_rung: Rung
    #: The policy says that the agent acts for the user.
    delegated: bool
    code: Code
    #: Whose rights keep the call below `execute`.
    limited_by: Literal["agent", "user", "both", "none"]
    #: The rows that determined it: those that allow what is allowed, those that deny what is not.
    rows: tuple[Row, ...]
    errors: tuple[RowError, ...]
    duties: tuple[Duty, ...]
    policy_version: str
    #: What could not be evaluated may have mattered: with it known, the rung might be another.
    in_doubt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One subject, one action: allowed or not, and by which rows."""

    allowed: bool
    rows: tuple[Row, ...]
    errors: tuple[RowError, ...]
    #: What goes with an undo. What a call owes depends on both its subjects: `Decision`.
    duties: tuple[Duty, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Subjects:
    """Whom the policy names in one tenant, in alphabetical order."""

    agents: tuple[str, ...]
    users: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """How the rows of one (subject, action) answered one call. Equal only to itself."""

    allowed: bool
    denied_by: Sequence[Rule]
    #: Where a row denies every call, also the rows that would have to be asked.
    allowed_by: Sequence[Rule]
    #: A row denies without a doubt.
    denied: bool
    #: A condition could not be evaluated.
    in_doubt: bool


class Standing(NamedTuple):
    """How far one subject may go, and the verdicts from execute down to there."""

    rung: Rung
    verdicts: Sequence[Verdict]


def conclude(
    agent: Standing,
    user: Standing,
    errors: Sequence[RowError],
    duties: tuple[Duty, ...],
    policy_version: str,
) -> Decision:
    """The decision that follows from how far each side may go."""
    rung = min(agent.rung, user.rung)
    return Decision(
        rung=rung,
        agent_rung=agent.rung,
        user_rung=user.rung,
        delegated=True,
        code=_CODES[rung] or _refusal_code(agent, user),
        limited_by=_limited_by(agent.rung, user.rung),
        rows=_determining(agent, user),
        errors=tuple(dict.fromkeys(errors)) if errors else (),
        duties=duties,
        policy_version=policy_version,
        in_doubt=bool(errors) and not any(map(_surely_denied, (agent, user))),
    )


def _surely_denied(side: Standing) -> bool:
    """Whether nothing that could not be evaluated can raise this side above DENY."""
    return side.rung is Rung.DENY and all(verdict.denied or not verdict.in_doubt for verdict in side.verdicts)


def _limited_by(agent: Rung, user: Rung) -> Literal["agent", "user", "both", "none"]:
    if agent is not user:
        return "agent" if agent < user else "user"
    return "none" if agent is Rung.EXECUTE else "both"


_CODES: dict[Rung, Code | None] = {
    Rung.EXECUTE: "allowed",
    Rung.APPROVE: "needs_approval",
    Rung.ADVISE: "advise_only",
    Rung.DENY: None,
}


def _refusal_code(agent: Standing, user: Standing) -> Code:
    # A side that is denied whatever could not be evaluated is the better reason.
    sides = [side for side in (agent, user) if _surely_denied(side)] or [agent, user]
    verdicts = [verdict for side in sides if side.rung is Rung.DENY for verdict in side.verdicts]
    if any(verdict.denied and (verdict.allowed_by or verdict.in_doubt) for verdict in verdicts):
        return "denied_by_rule"
    return "rule_error" if any(verdict.in_doubt for verdict in verdicts) else "no_rule"


def _determining(agent: Standing, user: Standing) -> tuple[Row, ...]:
    """What allows each side as far as it may go, and what keeps the lower one from going further."""
    rules: list[Rule] = []
    lowest = min(agent.rung, user.rung)
    for rung, verdicts in (agent, user):
        if rung:
            rules += verdicts[-1].allowed_by
        if rung == lowest:
            for verdict in verdicts:
                rules += verdict.denied_by
    rows = {rule.number: rule.row for rule in rules}
    return tuple([rows[number] for number in sorted(rows)])
