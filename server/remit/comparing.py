"""One call under two policies, and many such comparisons, grouped by the rules that make the difference.

What `remit policy replay` and `remit policy shadow` share. Duties count: a call that needs two approvals
instead of one is decided otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remit.asking import Answered

#: Calls that are named for each group.
EXAMPLES_MAX = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """How a call's treatment changes, and by which rows: `- text` decided before, `+ text` decides then."""

    before: str
    after: str
    rules: tuple[str, ...]


@dataclass(slots=True)
class Group:
    difference: Difference
    count: int
    #: The first calls of it, by id.
    examples: list[str]


def difference(before: Answered, after: Answered) -> Difference | None:
    """None when both policies treat the call alike."""
    told = _told(before), _told(after)
    if told[0] == told[1]:
        return None
    old, new = _rows(before), _rows(after)
    rules = (*(f"- {row}" for row in old if row not in new), *(f"+ {row}" for row in new if row not in old))
    # Where the same rows decide, who may approve or who acts for whom has changed.
    return Difference(*told, rules or (f"{before.code} becomes {after.code}",))


def add(groups: dict[Difference, Group], call: str, found: Difference, count: int = 1) -> None:
    group = groups.setdefault(found, Group(found, 0, []))
    group.count += count
    if len(group.examples) < EXAMPLES_MAX:
        group.examples.append(call)


def ordered(groups: dict[Difference, Group]) -> list[Group]:
    """The largest first."""
    return sorted(groups.values(), key=lambda group: -group.count)


def _told(answered: Answered) -> str:
    duties = sorted(map(str, answered.decision.duties))
    verdict = answered.rung.name.lower()
    return f"{verdict} ({', '.join(duties)})" if duties and verdict != "deny" else verdict


def _rows(answered: Answered) -> list[str]:
    decision = answered.decision
    return [row.text for row in (*decision.rows, *(duty.row for duty in decision.duties))]
