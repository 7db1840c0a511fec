"""Recorded calls, decided again under another policy: what would have been otherwise, and by which rules.

Both policies are asked the same question, so that a difference is the policy's and nothing else's. Nothing
is called and nothing is written. A big database is read as a stream: memory does not grow with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from remit.asking import Asker, NoQuestion, Supposed
from remit.comparing import Difference, Group, add, difference, ordered
from remit.config import Config
from remit.database import Row
from remit.ids import first_id
from remit.records import Records
from remit_rbac import Policy


@dataclass(slots=True, kw_only=True)
class Replayed:
    """What a replay found, counted in calls."""

    asked: int = 0
    changed: int = 0
    #: Arguments are gone, or the configuration no longer has the tool.
    skipped: int = 0
    #: Today's policy already decides otherwise than was recorded: facts, budgets or rules were others then.
    otherwise_recorded: int = 0
    groups: dict[Difference, Group] = field(default_factory=dict[Difference, Group])

    @property
    def ordered(self) -> list[Group]:
        return ordered(self.groups)


def replay(
    found: Records,
    config: Config,
    policy: Policy,
    candidate: Policy,
    *,
    since_us: int,
    advance: Callable[[], None] = lambda: None,
) -> Replayed:
    """Decide every recorded call since then under both. `advance` is told of each call."""
    told = Replayed()
    today, then = Asker(config, policy), Asker(config, candidate)
    for row in found.rows(_CALLS, (first_id(since_us),)):
        advance()
        supposed = _supposed(found, row)
        try:
            if supposed is None:
                raise NoQuestion("its arguments are erased, or no longer kept")
            before, after = today.ask(supposed), then.ask(supposed)
        except NoQuestion:
            told.skipped += 1
            continue
        told.asked += 1
        told.otherwise_recorded += before.rung.name.lower() != row["verdict"]
        if changed := difference(before, after):
            told.changed += 1
            add(told.groups, row["id"], changed)
    return told


def count(found: Records, since_us: int) -> int:
    """How many calls a replay reads."""
    return next(found.rows(_COUNT, (first_id(since_us),)))[0]


_COUNT = "SELECT COUNT(*) FROM calls WHERE id >= ? AND kind = 'call' AND policy_version <> ''"
_CALLS = (
    "SELECT c.id, c.tenant, c.agent, c.user, c.tool, c.effect, c.verdict, c.created_us,"
    " c.claim FROM calls AS c WHERE c.id >= ? AND c.kind = 'call' AND c.policy_version <> '' ORDER BY c.id"
)


def _supposed(found: Records, row: Row) -> Supposed | None:
    arguments, context = (found.opened(row["id"], kind) for kind in ("arguments", "context"))
    if arguments is None:
        return None
    return Supposed(
        tenant=row["tenant"],
        agent=row["agent"],
        user=row["user"],
        tool=row["tool"],
        arguments=json.loads(arguments),
        at_us=row["created_us"],
        claim=json.loads(row["claim"]) if row["claim"] else {},
        context=json.loads(context) if context else {"effect": row["effect"]},
    )
