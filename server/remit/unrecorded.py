"""Reads while nothing can be recorded, where the operator wants them (`store.reads_when_down`).

Nothing that may change something goes this way. Policy decides as always, by what memory holds; what only
the record knows (facts, people, the user's word, money) cannot be asked, so a call that needs it is refused.
What went through is counted, and told by one event as soon as the record is back: only a process that is
killed before that takes its count along.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remit.budgets import CALLS
from remit.config import Effect
from remit.model import Call
from remit_adapters.base import Json
from remit_rbac import Rung

if TYPE_CHECKING:
    from remit.pipeline import Decision

#: Callers and tools that are told apart; the reads of all others are counted together.
_APART_MAX = 1000
_OTHERS = ("", "", "", "")


@dataclass(slots=True, kw_only=True)
class Gap:
    """The reads that no call records: by tenant, agent, user and tool."""

    from_us: int
    to_us: int
    reads: Counter[tuple[str, str, str, str]] = field(default_factory=Counter[tuple[str, str, str, str]])

    def count(self, call: Call, at_us: int) -> None:
        who = call.principal
        key = (who.tenant, who.agent, who.user, call.tool.name)
        self.reads[key if key in self.reads or len(self.reads) < _APART_MAX else _OTHERS] += 1
        self.to_us = max(self.to_us, at_us)

    def with_later(self, other: Gap) -> Gap:
        return Gap(from_us=self.from_us, to_us=other.to_us, reads=self.reads + other.reads)

    def told(self) -> Json:
        names = ("tenant", "agent", "user", "tool")
        return {
            "from_us": self.from_us,
            "to_us": self.to_us,
            "reads": self.reads.total(),
            "by": [
                dict(zip(names, key, strict=True)) | {"reads": count}
                for key, count in sorted(self.reads.items())
            ],
        }


def may_go(call: Call, decision: Decision) -> bool:
    """Whether a call may be made without a record: a read that memory alone can let go, and that is free."""
    verdict = decision.verdict
    return (
        call.kind == "call"
        and call.tool.effect is Effect.READ
        and verdict.rung is Rung.EXECUTE
        and not verdict.owes("confirm")
        and not decision.lacks_facts
        and all(unit == CALLS or not amount for unit, amount in decision.estimates.items())
    )
