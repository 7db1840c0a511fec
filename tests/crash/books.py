"""What must be true of an audit database at any moment, whoever was killed in the middle of what.

Reads it as an auditor would and knows nothing of the code that wrote it, but for the rule of the
event chain. `flaws` says in sentences what is not true; an empty list is a clean bill.

Each invariant has a name, and what is wrong begins with it; `reconcile.py` has those that need Acme's word or
the agents'.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from remit.chain import COLUMNS, verify
from remit.database import Location, Reader, reading
from remit.vault import Vault, master_key

T = TypeVar("T")
#: Which event may follow which in the life of one call; a life ends anywhere where its state says so.
_NEXT: dict[str, frozenset[str]] = {
    "": frozenset({"call.denied", "call.awaiting_approval", "call.scheduled", "call.dispatched"}),
    **dict.fromkeys(
        ("call.scheduled", "call.postponed"),
        frozenset({"call.postponed", "call.cancelled", "call.dispatched"}),
    ),
    "call.cancelled": frozenset(),
    "call.denied": frozenset(),
    "call.awaiting_approval": frozenset(
        {"approval.approve", "approval.reject", "approval.expired", "approval.withdrawn"}
    ),
    "approval.approve": frozenset(
        {
            "approval.approve",
            "approval.reject",
            "approval.expired",
            "approval.withdrawn",
            "call.scheduled",
            "call.dispatched",
        }
    ),
    "approval.reject": frozenset(),
    "approval.expired": frozenset(),
    "approval.withdrawn": frozenset(),
    "call.dispatched": frozenset({"call.succeeded", "call.failed", "call.in_doubt"}),
    "call.succeeded": frozenset({"call.contradicted"}),
    "call.failed": frozenset({"call.contradicted"}),
    "call.in_doubt": frozenset({"call.succeeded", "call.failed", "call.resolved"}),
    "call.resolved": frozenset({"call.contradicted"}),
    "call.contradicted": frozenset(),
}
_LAST = {
    "denied": {"call.denied"},
    "awaiting_approval": {"call.awaiting_approval", "approval.approve"},
    "rejected": {"approval.reject"},
    "expired": {"approval.expired"},
    "withdrawn": {"approval.withdrawn"},
    "scheduled": {"call.scheduled", "call.postponed"},
    "cancelled": {"call.cancelled"},
    "dispatched": {"call.dispatched"},
    "succeeded": {"call.succeeded", "call.resolved", "call.contradicted"},
    "failed": {"call.failed", "call.resolved", "call.contradicted"},
    "in_doubt": {"call.in_doubt"},
}


def flaws(at: Location) -> list[str]:
    """Every sentence about what is wrong in an audit database."""
    with reading(at) as db:
        return [*named(INVARIANTS, db), *_undos(db), *_commitments(db, at)]


def named(invariants: Mapping[str, Callable[[T], Iterator[str]]], evidence: T) -> Iterator[str]:
    """What is wrong, each sentence behind the name of its invariant."""
    for name, broken in invariants.items():
        yield from (f"{name}: {what}" for what in broken(evidence))


def budget_flaws(db: Reader) -> Iterator[str]:
    return named({name: broken for name, broken in INVARIANTS.items() if name.startswith("B")}, db)


def chain_flaws(db: Reader) -> Iterator[str]:
    return streams_are_whole(db)


def balances_are_their_holds(db: Reader) -> Iterator[str]:
    """B1."""
    sums = {
        (row["account"], row["window_start_us"]): (row["held"], row["posted"], row["refunded"])
        for row in db.all(
            "SELECT account, window_start_us, SUM(CASE WHEN state = 'held' THEN amount ELSE 0 END) AS held,"
            " SUM(posted) AS posted, SUM(refunded) AS refunded FROM holds GROUP BY account, window_start_us"
        )
    }
    for row in db.all("SELECT * FROM accounts"):
        key = row["id"], row["window_start_us"]
        made, is_so = sums.pop(key, (0, 0, 0)), (row["held"], row["posted"], row["refunded"])
        if made != is_so:
            yield f"{key}: its holds make {made} held, posted and refunded; its balance is {is_so}"
    for key in sums:
        yield f"{key} has holds and no balance"


def balances_are_their_moves(db: Reader) -> Iterator[str]:
    """B2."""
    folded: dict[tuple[str, int], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for move in db.all(
        "SELECT account, window_start_us, kind, SUM(amount) AS amount FROM budget_moves"
        " GROUP BY account, window_start_us, kind"
    ):
        folded[move["account"], move["window_start_us"]][move["kind"]] += int(move["amount"])
    for row in db.all("SELECT * FROM accounts"):
        moves = folded.pop((row["id"], row["window_start_us"]), defaultdict(int))
        expected = {
            "held": moves["hold"] - moves["release"],
            "posted": moves["post"],
            "refunded": moves["refund"],
            "overrun": moves["overrun"],
        }
        for name, amount in expected.items():
            if row[name] != amount:
                yield f"{row['id']}: {name} is {row[name]}, its moves make {amount}"
    for key in folded:
        yield f"{key} has moves and no balance"


def no_balance_above_its_limit(db: Reader) -> Iterator[str]:
    """B3: but by what is recorded as overrun."""
    for row in db.all("SELECT * FROM accounts"):
        over = row["held"] + row["posted"] - row["refunded"] - row["limit_amount"]
        if row["overrun"] != max(0, over):
            yield f"{row['id']}: overrun is {row['overrun']}, beyond the limit is {max(0, over)}"


def a_hold_is_open_while_its_call_is(db: Reader) -> Iterator[str]:
    """B4."""
    for row in db.all(
        "SELECT holds.call_id, holds.account, holds.state AS hold, calls.state FROM holds LEFT JOIN calls"
        " ON calls.id = holds.call_id WHERE calls.id IS NULL OR"
        " (holds.state = 'held') <> (calls.state IN ('scheduled', 'dispatched', 'in_doubt'))"
    ):
        yield f"the hold of {row['call_id']} on {row['account']} is {row['hold']}, the call is {row['state']}"


def all_levels_pay_the_same(db: Reader) -> Iterator[str]:
    """B5."""
    for row in db.all(
        "SELECT call_id, unit FROM holds GROUP BY call_id, unit"
        " HAVING COUNT(DISTINCT posted) > 1 OR COUNT(DISTINCT amount) > 1 OR COUNT(DISTINCT state) > 1"
    ):
        yield f"call {row['call_id']} did not pay the same {row['unit']} on every account"


def a_hold_resolves_once(db: Reader) -> Iterator[str]:
    """B6."""
    for row in db.all(
        "SELECT call_id FROM events"
        " WHERE kind IN ('call.succeeded', 'call.failed', 'call.resolved', 'call.cancelled')"
        " GROUP BY call_id HAVING COUNT(*) > 1"
    ):
        yield f"the holds of call {row['call_id']} were resolved more than once"


def no_more_comes_back_than_was_paid(db: Reader) -> Iterator[str]:
    """B7."""
    for table, name in (("accounts", "id"), ("holds", "call_id")):
        for row in db.all(f"SELECT {name} AS name FROM {table} WHERE refunded > posted OR refunded < 0"):  # noqa: S608
            yield f"{row['name']} was refunded more than it had paid"


def calls_are_their_events(db: Reader) -> Iterator[str]:
    """A3: one first event, and one for each later state, in a possible order."""
    lives: dict[str, list[str]] = defaultdict(list)
    for event in db.all("SELECT call_id, kind FROM events WHERE call_id IS NOT NULL ORDER BY rowid"):
        lives[event["call_id"]].append(event["kind"])
    for call in db.all("SELECT id, state, dispatched_us, finished_us FROM calls"):
        last = ""
        for kind in lives.pop(call["id"], []):
            if kind not in _NEXT[last]:
                yield f"call {call['id']}: {kind} follows {last or 'nothing'}"
            last = kind
        if last not in _LAST[call["state"]]:
            yield f"call {call['id']} is {call['state']}, its last event is {last or 'missing'}"
        if (call["state"] in ("awaiting_approval", "scheduled", "dispatched")) != (
            call["finished_us"] is None
        ):
            yield f"call {call['id']} is {call['state']} and finished at {call['finished_us']}"
    for call_id in lives:
        yield f"there are events of {call_id}, and no such call"


def streams_are_whole(db: Reader) -> Iterator[str]:
    """A1: dense from 1, and each event bound to all before it."""
    rows = db.tuples(f"SELECT {COLUMNS} FROM events ORDER BY stream, seq")  # noqa: S608 - the columns are ours
    heads = {
        row["id"]: (row["last_seq"], row["head"])
        for row in db.all("SELECT id, last_seq, head FROM incarnations")
    }
    for flaw in verify(rows, heads):
        yield f"stream {flaw.stream} at {flaw.seq}: {flaw.what}"
    for row in db.all(
        "SELECT calls.id FROM calls LEFT JOIN incarnations ON incarnations.id = calls.incarnation"
        " WHERE incarnations.id IS NULL"
    ):
        yield f"call {row['id']} belongs to a process that was never registered"


INVARIANTS: dict[str, Callable[[Reader], Iterator[str]]] = {
    "B1": balances_are_their_holds,
    "B2": balances_are_their_moves,
    "B3": no_balance_above_its_limit,
    "B4": a_hold_is_open_while_its_call_is,
    "B5": all_levels_pay_the_same,
    "B6": a_hold_resolves_once,
    "B7": no_more_comes_back_than_was_paid,
    "A1": streams_are_whole,
    "A3": calls_are_their_events,
}

_UNDO_CALL = {
    "running": ("dispatched",),
    "done": ("succeeded",),
    "indeterminate": ("succeeded", "in_doubt"),
    "failed": ("failed", "succeeded"),
}


def _undos(db: Reader) -> Iterator[str]:
    for row in db.all(
        "SELECT undos.call_id, undos.state, calls.state AS call_state, back.state AS back_state,"
        " back.of_call FROM undos JOIN calls ON calls.id = undos.call_id"
        " LEFT JOIN calls AS back ON back.id = undos.undo_call"
    ):
        expected = _UNDO_CALL.get(row["state"])
        if expected and row["back_state"] not in expected:
            yield f"the undo of {row['call_id']} is {row['state']}, its own call {row['back_state']}"
        if row["back_state"] is not None and row["of_call"] != row["call_id"]:
            yield f"the undo of {row['call_id']} is another call's"
        if row["state"] == "registered" and row["call_state"] not in ("dispatched", "in_doubt"):
            yield f"call {row['call_id']} is {row['call_state']}, its undo is only registered"
        if row["call_state"] in ("denied", "awaiting_approval", "rejected", "expired", "withdrawn"):
            yield f"call {row['call_id']} is {row['call_state']} and has an undo"
    for row in db.all(
        "SELECT of_call, COUNT(*) AS times FROM calls WHERE kind = 'undo'"
        " AND state IN ('dispatched', 'succeeded', 'in_doubt') GROUP BY of_call HAVING COUNT(*) > 1"
    ):
        yield f"call {row['of_call']} was taken back {row['times']} times"


def _commitments(db: Reader, at: Location) -> Iterator[str]:
    """Every stored payload is the one that was committed to, unless parts of it were struck out."""
    vault = Vault(master_key(at, None, living=True), db.one, remember=True)
    for row in db.all(
        "SELECT payloads.*, calls.arguments_commit, calls.result_commit FROM payloads"
        " LEFT JOIN calls ON calls.id = payloads.call_id"
    ):
        promised: dict[str, Any] = {"arguments": row["arguments_commit"], "result": row["result_commit"]}
        if row["kind"] == "context":
            opening = db.one(
                "SELECT body FROM events WHERE call_id = ? ORDER BY rowid LIMIT 1", (row["call_id"],)
            )
            promised["context"] = json.loads(opening["body"]).get("context_commit")
        opened = vault.opened(row["call_id"], row["kind"], row["keys"], row["body"])
        if row["kind"] not in promised or opened is None or b"[redacted]" in opened[1]:
            continue
        if hashlib.sha256(b"".join(opened)).hexdigest() != promised[row["kind"]]:
            yield f"the {row['kind']} of {row['call_id']} are not what was committed to"
