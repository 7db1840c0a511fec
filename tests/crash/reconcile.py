"""Three memories held against each other: Acme's tables, the audit database, and what the agents were told.

Each of the three was written by another process, and only Acme's says what really happened. `disagreements`
is for a quiet moment: servers may live, but nothing is under way, and whoever died has been taken over.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

from tests.crash import books
from tests.crash.clients import Told
from tests.crash.place import Place

from remit.audit import verify_approvals, verify_balances, verify_calls, verify_events
from remit.records import open_records

_Query: TypeAlias = Callable[[str], list[sqlite3.Row]]
_SENT = ("dispatched", "succeeded", "failed", "in_doubt")


def disagreements(place: Place, told: Told, *, living: int) -> list[str]:
    """Every sentence about what is wrong while `living` servers are up and idle; empty when all is well."""
    records, acme = _reader(place.records), _reader(place.acme)
    calls = {row["id"]: row for row in records("SELECT * FROM calls")}
    refunds = {row["idempotency_key"]: row for row in acme("SELECT * FROM refunds")}
    undos = {row["call_id"]: row for row in records("SELECT * FROM undos")}
    return [
        *books.flaws(place.records),
        *_audit(place.records),
        *_left_open(records, living),
        *_refunds(calls, refunds, Counter(place.sent())),
        *_wanted_once(refunds),
        *_undos(undos, calls, refunds),
        *_balances(records, calls, refunds),
        *_orders(acme),
        *_promises(told, calls, undos, refunds),
    ]


def _audit(path: Path) -> Iterator[str]:
    with open_records(path) as found:
        for verify in (verify_events, verify_calls, verify_approvals, verify_balances):
            yield from map(str, verify(found))


def _left_open(records: _Query, living: int) -> Iterator[str]:
    for row in records("SELECT id FROM calls WHERE state = 'dispatched'"):
        yield f"call {row['id']} is still dispatched, and nobody is making it"
    for row in records("SELECT call_id FROM undos WHERE state = 'running'"):
        yield f"the undo of {row['call_id']} is still running, and nobody is making it"
    [row] = records("SELECT COUNT(*) AS alive FROM incarnations WHERE state = 'live'")
    if row["alive"] != living:
        yield f"{row['alive']} processes are on record as alive, {living} are"


def _refunds(
    calls: Mapping[str, sqlite3.Row], refunds: Mapping[str, sqlite3.Row], sent: Mapping[str, int]
) -> Iterator[str]:
    for key in refunds.keys() | sent.keys():
        call = calls.get(key)
        if call is None or call["tool"] != "acme.refund" or call["state"] not in _SENT:
            yield f"Acme was asked for refund {key}, its call is {call['state'] if call else 'not on record'}"
    for key, times in sent.items():
        if times > 1:
            yield f"Acme was asked {times} times for refund {key}"
    for call in calls.values():
        if call["tool"] != "acme.refund" or call["kind"] != "call":
            continue
        if call["state"] == "succeeded" and call["id"] not in refunds:
            yield f"call {call['id']} succeeded, and there is no refund"
        if call["state"] not in ("succeeded", "in_doubt") and call["id"] in refunds:
            yield f"call {call['id']} is {call['state']}, and there is a refund"


def _wanted_once(refunds: Mapping[str, sqlite3.Row]) -> Iterator[str]:
    """Agents give every refund another reason, and ask again for it only under the same key."""
    for reason, times in Counter(row["reason"] for row in refunds.values()).items():
        if times > 1:
            yield f"an agent wanted one refund because {reason!r}, and Acme made {times}"


def _undos(
    undos: Mapping[str, sqlite3.Row], calls: Mapping[str, sqlite3.Row], refunds: Mapping[str, sqlite3.Row]
) -> Iterator[str]:
    for refund in refunds.values():
        undo = undos.get(refund["idempotency_key"])
        if undo is None:
            yield f"refund {refund['refund_id']} was made without a way back on record"
            continue
        cancelled = refund["status"] == "cancelled"
        if undo["state"] != "indeterminate" and cancelled != (undo["state"] == "done"):
            yield f"refund {refund['refund_id']} is {refund['status']}, its undo is {undo['state']}"
        if cancelled and (undo["undo_call"] is None or calls[undo["undo_call"]]["dispatched_us"] is None):
            yield f"refund {refund['refund_id']} was cancelled, and no call on record did it"


def _balances(
    records: _Query, calls: Mapping[str, sqlite3.Row], refunds: Mapping[str, sqlite3.Row]
) -> Iterator[str]:
    """The money in the budgets is the money that left Acme."""
    [row] = records(
        "SELECT COALESCE(SUM(posted), 0) AS posted FROM accounts"
        " WHERE id LIKE 'tenant:%' AND unit = 'eur_cent'"
    )
    spent = sum(row["amount_minor"] for key, row in refunds.items() if _state(calls, key) == "succeeded")
    if row["posted"] != spent:
        yield f"{row['posted']} were posted, and refunds of {spent} are known to have succeeded"


def _state(calls: Mapping[str, sqlite3.Row], call_id: str) -> str | None:
    return calls[call_id]["state"] if call_id in calls else None


def _orders(acme: _Query) -> Iterator[str]:
    """Acme's own books: if these are wrong, nothing above means anything."""
    for row in acme(
        "SELECT orders.order_id, refunded_minor, COALESCE(SUM(amount_minor), 0) AS issued FROM orders"
        " LEFT JOIN refunds ON refunds.order_id = orders.order_id AND refunds.status = 'issued'"
        " GROUP BY orders.order_id HAVING refunded_minor <> issued"
    ):
        yield f"order {row['order_id']} gave {row['refunded_minor']} back, its refunds make {row['issued']}"


def _promises(
    told: Told,
    calls: Mapping[str, sqlite3.Row],
    undos: Mapping[str, sqlite3.Row],
    refunds: Mapping[str, sqlite3.Row],
) -> Iterator[str]:
    """What an agent was told holds, whatever happened after."""
    yield from told.surprises
    for call_id, refund_id in told.succeeded.items():
        if _state(calls, call_id) != "succeeded":
            yield f"an agent was told that {call_id} succeeded; it is {_state(calls, call_id)}"
        if call_id not in refunds or refunds[call_id]["refund_id"] != refund_id:
            yield f"an agent was told of refund {refund_id}, and Acme has no such refund for {call_id}"
    expected = [
        (("failed",), told.failed),
        (("denied",), told.refused),
        # Nobody votes here, so its time may run out.
        (("awaiting_approval", "expired"), told.waiting),
        (("in_doubt",), told.in_doubt),
    ]
    for states, call_ids in expected:
        for call_id in call_ids:
            if _state(calls, call_id) not in states:
                yield f"an agent was told that {call_id} is {states[0]}; it is {_state(calls, call_id)}"
    for call_id in told.undone:
        if call_id not in undos or undos[call_id]["state"] != "done":
            yield f"an agent was told that {call_id} is undone, and the records do not say so"


def _reader(path: Path) -> _Query:
    def query(sql: str) -> list[sqlite3.Row]:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
            db.row_factory = sqlite3.Row
            return db.execute(sql).fetchall()

    return query
