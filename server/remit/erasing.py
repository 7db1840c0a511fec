"""Erasing what is kept about somebody: their keys are destroyed, and what is not sealed is cleared.

What calls carried is sealed (`vault.py`), so destroying the keys erases all of it at once, however much there
is. Some columns that people query by hold words of the call in the clear; those are cleared after it, a slice
at a time. Events hold commitments and no words of a call, so they stay, and every proof with them.

The journal calls this inside its transactions. `finish` goes on beside them, and `resume` goes on where a
process ended in the middle; a server does so by itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio.to_thread
import orjson

from remit.errors import UnknownRecord, WrongState
from remit.vault import Sealer, Vault

if TYPE_CHECKING:
    from remit.journal import Journal
    from remit.ledger import Ledger

#: The value of a fact of a run that was erased: none that a call may establish.
ERASED = "null"
#: Calls that are cleared in one transaction: others wait for it.
_SLICE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What destroying the keys of somebody came to."""

    #: The keys that were destroyed now; none when they were before.
    keys: tuple[str, ...]
    #: All keys of the subject whose calls are still to be cleared.
    uncleared: tuple[str, ...]
    #: When the newest of the subject's keys was destroyed.
    erased_us: int


def destroy(ledger: Ledger, sealer: Sealer, *, tenant: str, subject: str, reason: str, by: str) -> Erasure:
    """Destroy the keys of a subject. Raises UnknownRecord, or WrongState while a call of it is under way."""
    name = sealer.vault.name(tenant, subject)
    ledger.write_out()
    living = [
        row["id"]
        for row in ledger.all("SELECT id FROM subject_keys WHERE name = ? AND wrapped IS NOT NULL", (name,))
    ]
    for key_id in living:
        if call_id := _under_way(ledger, tenant, subject, key_id):
            raise WrongState(
                f"call {call_id} of {subject} is under way or waits for people: try again when it has ended"
            )
    if living:
        ledger.overwrite_what_goes()
        ledger.execute(
            "UPDATE subject_keys SET wrapped = NULL, erased_us = ? WHERE name = ? AND wrapped IS NOT NULL",
            (ledger.now_us, name),
        )
        ledger.seals.clear()
        ledger.runs.clear()
        ledger.event(
            "audit.erased",
            tenant=tenant,
            call_id=None,
            # Users are named all over the log; who else was erased must not be told by it.
            subject=subject if subject.startswith("user:") else None,
            name=name,
            keys=living,
            reason=reason,
            by=by,
        )
    gone = ledger.all(
        "SELECT id, erased_us, cleared_us FROM subject_keys WHERE name = ? AND wrapped IS NULL"
        " ORDER BY erased_us",
        (name,),
    )
    if not gone:
        raise UnknownRecord(f"nothing is kept about {subject} in tenant {tenant}")
    return Erasure(
        keys=tuple(living),
        uncleared=tuple(row["id"] for row in gone if row["cleared_us"] is None),
        erased_us=gone[-1]["erased_us"],
    )


def clear(ledger: Ledger, sealer: Sealer, call_ids: Sequence[str]) -> None:
    """Remove from the calls' rows what the calls said in words; what is undone by its words cannot be now."""
    ledger.overwrite_what_goes()
    marks = ", ".join("?" * len(call_ids))
    ledger.execute(
        f"UPDATE calls SET reason = '', claim = NULL, error = NULL WHERE id IN ({marks})",  # noqa: S608 - only marks are inserted
        call_ids,
    )
    ledger.execute(
        f"UPDATE run_facts SET value = ?, salt = ? WHERE call_id IN ({marks})",  # noqa: S608 - only marks are inserted
        (ERASED, b"", *call_ids),
    )
    # One whose time is over stays what it is.
    ledger.execute(
        f"UPDATE undos SET state = 'void' WHERE state = 'ready' AND call_id IN ({marks}) AND (expires_us > ?"  # noqa: S608 - only marks are inserted
        " OR call_id IN (SELECT id FROM calls WHERE state = 'scheduled'))",
        (*call_ids, ledger.now_us),
    )
    for table in ("touches", "undos"):
        rows = ledger.all(
            f"SELECT t.call_id, t.resource, calls.tenant FROM {table} AS t JOIN calls ON calls.id = t.call_id"  # noqa: S608 - only marks are inserted
            f" WHERE t.resource IS NOT NULL AND t.call_id IN ({marks})",
            call_ids,
        )
        for row in rows:
            if not _IS_PSEUDONYM(row["resource"]):
                ledger.execute(
                    f"UPDATE {table} SET resource = ? WHERE call_id = ? AND resource = ?",  # noqa: S608 - the tables are ours
                    (
                        pseudonym(sealer.vault, row["tenant"], row["resource"]),
                        row["call_id"],
                        row["resource"],
                    ),
                )
    ledger.runs.clear()


def is_erased(ledger: Ledger, call_id: str) -> bool:
    """Whether a key that what this call carried is sealed with is destroyed."""
    found = ledger.one(
        "SELECT 1 FROM payloads AS p JOIN subject_keys AS k ON p.keys LIKE '%' || k.id || '%'"
        " WHERE p.call_id = ? AND k.wrapped IS NULL LIMIT 1",
        (call_id,),
    )
    return found is not None


def cleared(ledger: Ledger, key_id: str) -> None:
    """Note that nothing is left to be cleared for this destroyed key; who notes it first has it."""
    row = ledger.one(
        "SELECT tenant FROM subject_keys WHERE id = ? AND wrapped IS NULL AND cleared_us IS NULL", (key_id,)
    )
    if row is not None:
        ledger.execute("UPDATE subject_keys SET cleared_us = ? WHERE id = ?", (ledger.now_us, key_id))
        ledger.event("audit.cleared", tenant=row["tenant"], call_id=None, key=key_id)


async def finish(journal: Journal, key_id: str, *, tenant: str, subject: str) -> int:
    """Clear every call that was sealed with this destroyed key; return how many."""
    # Imported only where it is used: nobody else reads records here.
    from remit.records import open_records

    def sealed() -> list[str]:
        with open_records(journal.at) as found:
            return list(found.sealed_with(key_id, tenant=tenant, subject=subject))

    ids = await anyio.to_thread.run_sync(sealed)
    for first in range(0, len(ids), _SLICE):
        await journal.clear(ids[first : first + _SLICE])
    await journal.cleared(key_id)
    return len(ids)


async def resume(journal: Journal) -> None:
    """Finish what others began to erase and did not end: they were killed, or are still at it."""
    for key_id, tenant, subject in await journal.uncleared():
        await finish(journal, key_id, tenant=tenant, subject=subject)


def uncleared(ledger: Ledger) -> list[tuple[str, str, str]]:
    """Every destroyed key whose calls are still to be cleared, its tenant, and whose it was if a user's."""
    rows = ledger.all("SELECT id, tenant FROM subject_keys WHERE wrapped IS NULL AND cleared_us IS NULL")
    if not rows:
        return []
    named: dict[str, str] = {}
    for event in ledger.all("SELECT body FROM events WHERE call_id IS NULL AND kind = 'audit.erased'"):
        facts = orjson.loads(event["body"])
        named |= dict.fromkeys(facts["keys"], facts["subject"] or "")
    return [(row["id"], row["tenant"], named.get(row["id"], "")) for row in rows]


_PSEUDONYM = "erased:"
#: What calls touch may begin so, too.
_IS_PSEUDONYM = re.compile(_PSEUDONYM + "[0-9a-f]{32}").fullmatch


def pseudonym(vault: Vault, tenant: str, resource: str) -> str:
    """What stands for a thing that an erased call touched, so that undoing earlier ones still conflicts."""
    return _PSEUDONYM + digest_of(vault, tenant, resource)


def digest_of(vault: Vault, tenant: str, resource: str) -> str:
    """What an event says of a thing that a call touched: the same for the same, and no word of it.

    PostgreSQL has U+FFFD for NUL.
    """
    return vault.name(tenant, resource.replace("\0", "\ufffd"))


def is_of(vault: Vault, tenant: str, resource: str, digest: str) -> bool:
    """Whether a thing that a call touched, or what stands for it, is the one with this digest."""
    return digest in (resource.removeprefix(_PSEUDONYM), digest_of(vault, tenant, resource))


def _under_way(ledger: Ledger, tenant: str, subject: str, key_id: str) -> str | None:
    """A call about the subject that has not ended, or that people are asked about."""
    row = ledger.one(
        "WITH open(id) AS (SELECT id FROM calls WHERE state = 'dispatched' UNION ALL"
        " SELECT call_id FROM approvals WHERE state IN ('pending', 'approved') AND expires_us > ?)"
        ' SELECT calls.id FROM open JOIN calls USING (id) WHERE tenant = ? AND ("user" = ?'
        " OR EXISTS (SELECT 1 FROM call_subjects WHERE key_id = ? AND call_id = calls.id)) LIMIT 1",
        (ledger.now_us, tenant, subject, key_id),
    )
    return row["id"] if row else None
