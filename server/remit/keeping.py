"""How long what calls carried is kept: until its age, or until whoever holds it for a reason lets go.

A *legal hold* keeps what it covers from being erased and from growing too old. Retention removes what calls
carried when it is of age, and before-images when nothing can be put back with them any more, wherever they
are: also in what the way back, or the undo, was made with. Rows of calls, events and every proof stay.

The journal calls this inside its transactions, a slice at a time; `sweep` is what a server does beside its
calls, and `remit audit retain` by hand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import anyio

from remit import erasing
from remit.errors import UnknownRecord, WrongState
from remit.ids import first_id
from remit.vault import Sealer, Vault

if TYPE_CHECKING:
    from remit.config import Retention
    from remit.journal import Journal
    from remit.ledger import Ledger

Rows = Callable[[str, Sequence[Any]], Sequence[Any]]
Scope = Literal["subject", "run", "call", "tool", "agent", "time"]
#: `payloads`: everything that a call carried. `images`: what was there before and after it, also as a part of
#: its way back.
Kind = Literal["payloads", "images"]
#: Calls that one transaction removes something of: others wait for it.
_SLICE = 200
#: Between two of them.
_PAUSE_S = 0.02
_OPEN = "('dispatched', 'awaiting_approval', 'scheduled', 'in_doubt')"
#: What was there before and after a call, and what its way back carries of that.
# In the words of the index that finds them.
_IS_IMAGE = "(p.kind = 'before' OR p.kind = 'after' OR p.kind = 'restore')"
#: The states of a way back that may still be taken.
_NEEDED = "('registered', 'ready', 'running', 'indeterminate')"
#: The way back `u` is taken or closed, or its time is over.
_ENDED = f"(u.state NOT IN {_NEEDED} OR u.expires_us < ?)"
#: An undo by it is under way, in doubt, or waits for people.
_TAKEN_NOW = (
    "EXISTS (SELECT 1 FROM calls AS w WHERE w.of_call = u.call_id AND w.kind = 'undo'"  # noqa: S608 - all of it is ours
    f" AND w.state IN {_OPEN})"
)
#: An earlier call on the same thing can still be taken back: what came after it tells that nobody else wrote.
_COMPARED = (
    "(u.state = 'done' AND EXISTS (SELECT 1 FROM touches AS t JOIN touches AS e ON e.resource = t.resource"  # noqa: S608 - all of it is ours
    " JOIN undos AS its ON its.call_id = e.call_id WHERE t.call_id = u.call_id AND e.call_id <> u.call_id"
    f" AND its.state IN {_NEEDED} AND its.expires_us >= ?))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LegalHold:
    """One reason to keep what calls carried."""

    id: str
    #: Empty: in every tenant.
    tenant: str
    scope: Scope
    #: Empty for `time`: then it is what was called from `from_us` to `to_us`.
    target: str
    from_us: int | None
    to_us: int | None
    reason: str
    set_by: str
    set_us: int

    def __str__(self) -> str:
        return f"legal hold {self.id} ({self.scope}{f' {self.target}' if self.target else ''}: {self.reason})"


def holds(rows: Rows) -> list[LegalHold]:
    """Every hold that stands, oldest first."""
    return [LegalHold(**dict(row)) for row in rows("SELECT * FROM legal_holds ORDER BY set_us", ())]


def hold(
    ledger: Ledger,
    sealer: Sealer,
    *,
    tenant: str,
    scope: Scope,
    target: str,
    from_us: int | None,
    to_us: int | None,
    reason: str,
    by: str,
) -> str:
    """Keep what this covers, until it is released; return the hold's id."""
    hold_id = os.urandom(4).hex()
    ledger.execute(
        "INSERT INTO legal_holds (id, tenant, scope, target, from_us, to_us, reason, set_by, set_us)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (hold_id, tenant, scope, target, from_us, to_us, reason, by, ledger.now_us),
    )
    # Whom a customer's hold is about must not be told by the log for ever.
    named = scope != "subject" or target.startswith("user:")
    ledger.event(
        "audit.held",
        tenant=tenant or None,
        call_id=None,
        hold=hold_id,
        scope=scope,
        target=target if named else sealer.vault.name(tenant, target),
        from_us=from_us,
        to_us=to_us,
        reason=reason,
        by=by,
    )
    return hold_id


def release(ledger: Ledger, hold_id: str, *, reason: str, by: str) -> None:
    """Let go of what a hold covered. Raises UnknownRecord."""
    row = ledger.one("SELECT tenant FROM legal_holds WHERE id = ?", (hold_id,))
    if row is None:
        raise UnknownRecord(
            f"there is no legal hold {hold_id}: `remit audit hold list` shows those there are"
        )
    ledger.execute("DELETE FROM legal_holds WHERE id = ?", (hold_id,))
    ledger.event(
        "audit.released", tenant=row["tenant"] or None, call_id=None, hold=hold_id, reason=reason, by=by
    )


def must_not_be_held(ledger: Ledger, vault: Vault, tenant: str, subject: str) -> None:
    """Raise WrongState when a hold covers a call about this subject."""
    about, values = _about(vault, tenant, subject)
    for each in holds(ledger.all):
        if each.tenant not in ("", tenant):
            continue
        covers, covered = _covers(each, vault, tenant)
        same = each.scope == "subject" and each.target == subject
        if same or ledger.one(
            f"SELECT 1 FROM calls AS c WHERE c.tenant = ? AND {covers} AND {about} LIMIT 1",  # noqa: S608 - the conditions are ours
            (tenant, *covered, *values),
        ):
            raise WrongState(f"{each} keeps what is kept about {subject}: release it first")


def due(rows: Rows, kind: Kind, *, before_us: int, now_us: int, after: str) -> list[str]:
    """The next calls past the id `after`, of which something of this kind has been kept long enough."""
    wanted, values = "p.kind IN ('arguments', 'context', 'result')", [first_id(before_us), now_us]
    old = f"p.call_id < ? AND (u.state IS NULL OR {_ENDED})"
    if kind == "images":
        wanted, old = _IS_IMAGE, f"(p.call_id < ? OR {_ENDED} AND NOT {_COMPARED})"
        values.append(now_us)
    found = rows(
        "SELECT DISTINCT p.call_id FROM payloads AS p JOIN calls AS c ON c.id = p.call_id"  # noqa: S608 - the conditions are ours
        " LEFT JOIN undos AS u ON u.call_id = CASE WHEN c.kind = 'undo' THEN c.of_call ELSE c.id END"
        f" WHERE {wanted} AND p.call_id > ? AND c.state NOT IN {_OPEN} AND NOT {_TAKEN_NOW} AND {old}"
        f" ORDER BY p.call_id LIMIT {_SLICE}",
        (after, *values),
    )
    return [row["call_id"] for row in found]


def covers_a_call(rows: Rows, vault: Vault, each: LegalHold) -> bool:
    """Whether a hold covers any call that has been made."""
    for tenant in [each.tenant] if each.tenant else [row["tenant"] for row in rows(_TENANTS, ())]:
        covers, values = _covers(each, vault, tenant)
        if rows(f"SELECT 1 FROM calls AS c WHERE c.tenant = ? AND {covers} LIMIT 1", (tenant, *values)):  # noqa: S608 - the conditions are ours
            return True
    return False


def held_among(rows: Rows, vault: Vault, ids: Sequence[str]) -> set[str]:
    """Those of the calls that a hold covers."""
    marks = ", ".join("?" * len(ids))
    found: set[str] = set()
    for each in holds(rows) if ids else ():
        tenants = [each.tenant] if each.tenant else [row["tenant"] for row in rows(_TENANTS, ())]
        for tenant in tenants:
            covers, values = _covers(each, vault, tenant)
            found |= {
                row["id"]
                for row in rows(
                    f"SELECT c.id FROM calls AS c WHERE c.id IN ({marks}) AND c.tenant = ? AND {covers}",  # noqa: S608 - the conditions are ours
                    (*ids, tenant, *values),
                )
            }
    return found


def retire(
    ledger: Ledger, sealer: Sealer, kind: Kind, *, before_us: int, after: str
) -> tuple[str | None, int]:
    """Remove what is of age from the next calls past the id `after`; return where that ended, and how many.

    None: there are no more.
    """
    ids = due(ledger.all, kind, before_us=before_us, now_us=ledger.now_us, after=after)
    return ids[-1] if ids else None, _remove(ledger, sealer, kind, ids)


def _remove(ledger: Ledger, sealer: Sealer, kind: Kind, ids: Sequence[str]) -> int:
    """Remove what these calls carried, but for those that are held."""
    ids = _not_held(ledger, sealer, ids)
    if not ids:
        return 0
    ledger.overwrite_what_goes()
    marks = ", ".join("?" * len(ids))
    if kind == "images":
        _close(ledger, sealer, ids, marks)
    wanted = f"AND {_IS_IMAGE}" if kind == "images" else ""
    removed = ledger.all(
        "SELECT CASE p.kind WHEN 'arguments' THEN p.kind ELSE 'ways_back' END AS what, COUNT(*) AS calls"  # noqa: S608 - only marks are inserted
        " FROM payloads AS p JOIN calls AS c ON c.id = p.call_id AND c.kind = 'call'"
        f" WHERE p.call_id IN ({marks}) {wanted} AND p.kind IN ('arguments', 'undo', 'restore')"
        " GROUP BY what",
        ids,
    )
    ledger.execute(f"DELETE FROM payloads AS p WHERE p.call_id IN ({marks}) {wanted}", ids)  # noqa: S608 - only marks are inserted
    if kind == "payloads":
        # Nothing that was kept of these undos is left to be of age.
        bare = ledger.all(
            f"SELECT id FROM calls WHERE kind = 'undo' AND of_call IN ({marks})"  # noqa: S608 - only marks are inserted
            " AND NOT EXISTS (SELECT 1 FROM payloads WHERE call_id = calls.id)",
            ids,
        )
        erasing.clear(ledger, sealer, [*ids, *_not_held(ledger, sealer, [row["id"] for row in bare])])
    ledger.event(
        "audit.retained",
        tenant=None,
        call_id=None,
        what=kind,
        calls=len(ids),
        up_to=ids[-1],
        # Whoever verifies counts what is gone.
        removed={row["what"]: row["calls"] for row in removed},
    )
    return len(ids)


def _close(ledger: Ledger, sealer: Sealer, ids: Sequence[str], marks: str) -> None:
    """Remove what undos of these calls were made with, where that carries what was there before.

    A way back that is still open, of which this is removed for its age, is closed.
    """
    restoring = f"SELECT call_id FROM payloads WHERE kind = 'restore' AND call_id IN ({marks})"  # noqa: S608 - only marks are inserted
    ledger.execute(
        "UPDATE undos SET state = 'void' WHERE state = 'ready' AND expires_us >= ?"  # noqa: S608 - as above
        f" AND call_id IN ({restoring})",
        (ledger.now_us, *ids),
    )
    undos = ledger.all(f"SELECT id FROM calls WHERE kind = 'undo' AND of_call IN ({restoring})", ids)  # noqa: S608 - as above
    for undo in _not_held(ledger, sealer, [row["id"] for row in undos]):
        ledger.execute("DELETE FROM payloads WHERE kind IN ('arguments', 'shown') AND call_id = ?", (undo,))


def _not_held(ledger: Ledger, sealer: Sealer, ids: Sequence[str]) -> list[str]:
    kept = held_among(ledger.all, sealer.vault, ids)
    return [call_id for call_id in ids if call_id not in kept]


async def sweep(journal: Journal, retention: Retention, *, now_us: int) -> dict[Kind, int]:
    """Remove whatever is of age, slice by slice; return of how many calls it was."""
    removed: dict[Kind, int] = {"images": 0, "payloads": 0}
    for kind, before_us in cutoffs(retention, now_us).items():
        after: str | None = ""
        while after is not None:
            after, count = await journal.retire(kind, before_us=before_us, after=after)
            removed[kind] += count
            await anyio.sleep(_PAUSE_S)
    return removed


def count(rows: Rows, vault: Vault, retention: Retention, *, now_us: int) -> dict[Kind, int]:
    """What a sweep would remove."""
    found: dict[Kind, int] = {"images": 0, "payloads": 0}
    for kind, before_us in cutoffs(retention, now_us).items():
        ids = due(rows, kind, before_us=before_us, now_us=now_us, after="")
        while ids:
            found[kind] += len(ids) - len(held_among(rows, vault, ids))
            ids = due(rows, kind, before_us=before_us, now_us=now_us, after=ids[-1])
    return found


def cutoffs(retention: Retention, now_us: int) -> dict[Kind, int]:
    """Before when a call must have been made for each kind to go; images go with their way back anyhow."""
    images, payloads = retention.before_images, retention.payloads
    found: dict[Kind, int] = {"images": now_us - images * 1_000_000 if images else 0}
    if payloads:
        found["payloads"] = now_us - payloads * 1_000_000
    return found


_TENANTS = "SELECT DISTINCT tenant FROM subject_keys"


def _covers(each: LegalHold, vault: Vault, tenant: str) -> tuple[str, list[Any]]:
    """A condition on the call `c`."""
    match each.scope:
        case "subject":
            return _about(vault, tenant, each.target)
        case "time":
            return "c.created_us BETWEEN ? AND ?", [each.from_us, each.to_us]
        case "call":
            return "c.id = ?", [each.target]
        case "tool" if each.target.endswith("*"):
            start = each.target[:-1]
            return f"substr(c.tool, 1, {len(start)}) = ?", [start]
        case _:
            return f"c.{each.scope} = ?", [each.target]


def _about(vault: Vault, tenant: str, subject: str) -> tuple[str, list[Any]]:
    """A condition on the call `c`: it is for this user, or sealed with a key of this subject."""
    return (
        '(c."user" = ? OR EXISTS (SELECT 1 FROM call_subjects AS s JOIN subject_keys AS k ON k.id = s.key_id'
        " WHERE k.name = ? AND s.call_id = c.id))",
        [subject, vault.name(tenant, subject)],
    )
