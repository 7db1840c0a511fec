"""Three memories held against each other: Acme's ledger, the audit database, and what the agents were told.

Each of the three was written by another process, and only Acme's says what really happened. `disagreements`
is for a quiet moment: servers may live, but nothing is under way, and whoever died has been taken over.
Each invariant has a name, and what is wrong begins with it; those that the records can answer for by
themselves are in `books.py`, and U5 and U6, which need somebody who takes back, in `rollback.py`.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import anyio
from anyio.to_thread import run_sync
from tests.crash import books
from tests.crash.place import UNTOUCHED, Place

from remit.audit import verify_balances
from remit.chain import entry
from remit.database import Reader, Row, reading
from remit.records import open_records
from remit.verifying import verify

if TYPE_CHECKING:
    from tests.crash.clients import Told

#: How long it may take until all is at rest, and the pause between two looks.
_REST_S = 15.0
_AGAIN_S = 0.2
#: What has been sent, as far as the records know.
_SENT = ("dispatched", "succeeded", "failed", "in_doubt")
#: What certainly did nothing.
_WITHOUT_EFFECT = (
    "denied",
    "awaiting_approval",
    "rejected",
    "expired",
    "withdrawn",
    "scheduled",
    "cancelled",
    "failed",
)


@dataclass(slots=True, kw_only=True)
class Seen:
    """What earlier looks saw that must never change."""

    #: Where each stream of a life that is over ends, and its head.
    ended: dict[str, tuple[int, str]] = field(default_factory=dict)
    #: Every checkpoint by its size.
    checkpoints: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    db: Reader
    calls: Mapping[str, Row]
    undos: Mapping[str, Row]
    #: What Acme did, in its order.
    effects: Sequence[sqlite3.Row]
    #: By the call that made them.
    refunds: Mapping[str, sqlite3.Row]
    customers: Mapping[str, str]
    told: Told
    seen: Seen
    #: How many servers are up.
    living: int


def disagreements(place: Place, told: Told, seen: Seen, *, living: int) -> list[str]:
    """Every sentence about what is wrong while `living` servers are up and idle; empty when all is well."""
    acme = _acme(place)
    with reading(place.records) as db:
        evidence = Evidence(
            db=db,
            calls={row["id"]: row for row in db.all("SELECT * FROM calls")},
            undos={row["call_id"]: row for row in db.all("SELECT * FROM undos")},
            effects=effects_of(place),
            refunds={row["idempotency_key"]: row for row in acme("SELECT * FROM refunds")},
            customers={row["id"]: row["note"] for row in acme("SELECT id, note FROM customers")},
            told=told,
            seen=seen,
            living=living,
        )
        found = [*books.named(INVARIANTS, evidence), *_promises(evidence), *_spent(evidence)]
    return [*books.flaws(place.records), *found, *_orders(acme)]


async def what_stays_wrong(place: Place, told: Told, seen: Seen, *, living: int) -> list[str]:
    """The same, once it does not change any more by itself.

    What was held back may be under way just now, and who died may not have been taken over yet.
    """
    found: list[str] = []
    with anyio.move_on_after(_REST_S):
        while found := await run_sync(partial(disagreements, place, told, seen, living=living)):  # noqa: ASYNC110
            await anyio.sleep(_AGAIN_S)
    return found


def effects_of(place: Place) -> list[sqlite3.Row]:
    """What Acme did, in its order."""
    return _acme(place)("SELECT * FROM effects ORDER BY number")


def audited(place: Place) -> list[str]:
    """What the product's own verification says."""
    with open_records(place.records) as records:
        found = (*verify(records, payloads=True, processes=1), *verify_balances(records))
    return [f"verify: {finding}" for finding in found]


def effects_are_on_record(on: Evidence) -> Iterator[str]:
    """I1: what happened was let out first, with its way back where it has one."""
    for effect in on.effects:
        call = on.calls.get(effect["key"])
        if effect["key"].startswith("outsider"):
            continue
        if call is None or call["dispatched_us"] is None:
            yield f"Acme did {effect['tool']} for {effect['key']}, which was never let out"
        elif call["kind"] == "call" and effect["key"] not in on.undos and effect["tool"] != "cancel_refund":
            yield f"Acme did {effect['tool']} for {effect['key']}, and there is no way back on record"


def what_was_not_sent_did_nothing(on: Evidence) -> Iterator[str]:
    """I2."""
    for effect in on.effects:
        call = on.calls.get(effect["key"])
        if call is not None and call["state"] in _WITHOUT_EFFECT:
            yield f"call {call['id']} is {call['state']}, and Acme did it"
        if effect["key"] in on.told.unrecorded:
            yield f"an agent was told that {effect['key']} was not done, and Acme did it"


def what_succeeded_happened(on: Evidence) -> Iterator[str]:
    """I3."""
    done = {effect["key"] for effect in on.effects}
    for call in on.calls.values():
        if call["state"] != "succeeded" or call["kind"] not in ("call", "undo") or call["effect"] == "read":
            continue
        original = on.calls.get(call["of_call"] or "")
        if original is not None and original["state"] == "cancelled":
            continue  # calling it off is between the records and themselves
        if call["id"] not in done:
            yield f"call {call['id']} ({call['tool']}) succeeded, and Acme did nothing"


def nothing_stays_open(on: Evidence) -> Iterator[str]:
    """I4: what a dead process left is concluded by whoever comes after it."""
    for call in on.calls.values():
        if call["state"] == "dispatched":
            yield f"call {call['id']} is still dispatched, and nobody is making it"
    for undo in on.undos.values():
        if undo["state"] == "running":
            yield f"the undo of {undo['call_id']} is still running, and nobody is making it"
    alive = on.db.all("SELECT id FROM incarnations WHERE state = 'live' AND role = 'http'")
    if len(alive) != on.living:
        yield f"{len(alive)} servers are on record as alive, {on.living} are"


def nothing_happens_twice(on: Evidence) -> Iterator[str]:
    """I5: no call has two effects, and no two calls the effect that was wanted once."""
    for key, times in Counter(effect["key"] for effect in on.effects).items():
        if times > 1:
            yield f"Acme did {key} {times} times"
    # Agents give every refund another reason, and every customer another note.
    for reason, times in Counter(row["reason"] for row in on.refunds.values()).items():
        if times > 1:
            yield f"an agent wanted one refund because {reason!r}, and Acme made {times}"


def streams_that_ended_stay_as_they_are(on: Evidence) -> Iterator[str]:
    """A2: and each that begins seals those before it."""
    ended: dict[str, tuple[int, tuple[int, str]]] = {}
    for row in on.db.all("SELECT id, ended_us, last_seq, head FROM incarnations WHERE state <> 'live'"):
        end = (row["last_seq"], row["head"])
        ended[row["id"]] = row["ended_us"], end
        if on.seen.ended.setdefault(row["id"], end) != end:
            yield f"stream {row['id']} ended with event {on.seen.ended[row['id']][0]}, now it has {end[0]}"
    for number, event in enumerate(
        on.db.all(
            "SELECT stream, at_us, body FROM events WHERE kind = 'stream.opened' ORDER BY at_us, stream"
        )
    ):
        heads = json.loads(event["body"])["heads"]
        if number and not heads:
            yield f"stream {event['stream']} begins, and seals none of the {number} before it"
        for head in heads:
            ended_us, end = ended.get(head["stream"], (event["at_us"] + 1, None))
            if ended_us <= event["at_us"] and end != (head["seq"], head["hash"]):
                yield f"stream {head['stream']} was sealed at event {head['seq']}, and is not what was sealed"


def note_what_has_ended(place: Place, seen: Seen) -> None:
    """Remember where the streams end that are over by now."""
    with reading(place.records) as db:
        for row in db.all("SELECT id, last_seq, head FROM incarnations WHERE state <> 'live'"):
            seen.ended.setdefault(row["id"], (row["last_seq"], row["head"]))


def checkpoints_agree_with_events(on: Evidence) -> Iterator[str]:
    """A4: every checkpoint is the root over the first events of the log, which holds each event once."""
    hashes = {
        (row["stream"], row["seq"]): row["hash"] for row in on.db.all("SELECT stream, seq, hash FROM events")
    }
    leaves: list[bytes] = []
    for run in on.db.all("SELECT * FROM log_runs ORDER BY first_leaf"):
        if run["first_leaf"] != len(leaves):
            yield f"the log goes on at {run['first_leaf']} after {len(leaves)} events"
        for seq in range(run["first_seq"], run["first_seq"] + run["events"]):
            digest = hashes.pop((run["stream"], seq), None)
            if digest is None:
                yield f"event {seq} of stream {run['stream']} is sealed twice, or is not there"
            leaves.append(hashlib.sha256(b"\0" + entry(run["stream"], seq, digest or "").encode()).digest())
    stored = {
        row["size"]: row for row in on.db.all("SELECT size, root, note FROM log_checkpoints ORDER BY size")
    }
    for size, row in stored.items():
        if on.seen.checkpoints.setdefault(size, row["note"]) != row["note"]:
            yield f"the checkpoint of {size} events was signed anew"
    for size in on.seen.checkpoints.keys() - stored.keys():
        yield f"the checkpoint of {size} events is gone"
    for size, root in _roots(leaves, stored.keys()):
        if stored[size]["root"] != root:
            yield f"the checkpoint of {size} events is not the root over them"


def an_undo_happens_once(on: Evidence) -> Iterator[str]:
    """U1."""
    backs = Counter(
        on.calls[effect["key"]]["of_call"]
        for effect in on.effects
        if effect["key"] in on.calls and on.calls[effect["key"]]["kind"] == "undo"
    )
    for call_id, times in backs.items():
        if times > 1:
            yield f"call {call_id} was taken back {times} times"


def what_is_undone_is_as_it_was(on: Evidence) -> Iterator[str]:
    """U2: and what is not said to be undone is not."""
    for key, refund in on.refunds.items():
        undo = on.undos.get(key)
        cancelled = refund["status"] == "cancelled"
        if undo is not None and undo["state"] != "indeterminate" and cancelled != (undo["state"] == "done"):
            yield f"refund {refund['refund_id']} is {refund['status']}, its undo is {undo['state']}"
    for customer, pile in _piles(on):
        for put_back, below in pile.restored:
            if put_back["value"] != below:
                yield f"{customer} was put back to {put_back['value']!r}, and had been {below!r}"
        if on.customers[customer] != pile.value:
            yield f"{customer} holds {on.customers[customer]!r}, its ledger makes {pile.value!r}"


def what_others_wrote_stays(on: Evidence) -> Iterator[str]:
    """U3."""
    for customer, pile in _piles(on):
        for effect, top in pile.replaced:
            yield f"the undo {effect['key']} of {customer} replaced {top}, which it is not the undo of"


def what_was_called_off_is_not_sent(on: Evidence) -> Iterator[str]:
    """U4."""
    for effect in on.effects:
        call = on.calls.get(effect["key"])
        if call is not None and effect["tool"] == "send_mail" and call["state"] == "cancelled":
            yield f"call {call['id']} was called off, and the mail is out"
    for call_id in on.told.undone & on.told.scheduled:
        if any(effect["key"] == call_id for effect in on.effects):
            yield f"an agent was told that {call_id} was called off, and the mail is out"


INVARIANTS: dict[str, Callable[[Evidence], Iterator[str]]] = {
    "I1": effects_are_on_record,
    "I2": what_was_not_sent_did_nothing,
    "I3": what_succeeded_happened,
    "I4": nothing_stays_open,
    "I5": nothing_happens_twice,
    "A2": streams_that_ended_stay_as_they_are,
    "A4": checkpoints_agree_with_events,
    "U1": an_undo_happens_once,
    "U2": what_is_undone_is_as_it_was,
    "U3": what_others_wrote_stays,
    "U4": what_was_called_off_is_not_sent,
}


@dataclass(slots=True)
class _Pile:
    """What was written to one thing and not taken back, the newest on top."""

    writes: list[tuple[str, str]] = field(default_factory=lambda: [("nobody", UNTOUCHED)])
    #: Each undo with the value that lay below what it took back.
    restored: list[tuple[sqlite3.Row, str]] = field(default_factory=list)
    #: Each undo that took back something else than its own.
    replaced: list[tuple[sqlite3.Row, str]] = field(default_factory=list)

    @property
    def value(self) -> str:
        return self.writes[-1][1]


def _piles(on: Evidence) -> Iterator[tuple[str, _Pile]]:
    piles: dict[str, _Pile] = defaultdict(_Pile)
    for effect in on.effects:
        if effect["tool"] != "update_customer":
            continue
        pile = piles[effect["thing"]]
        call = on.calls.get(effect["key"])
        if call is None or call["kind"] != "undo":
            pile.writes.append((effect["key"], effect["value"]))
        elif pile.writes[-1][0] != call["of_call"]:
            pile.replaced.append((effect, pile.writes[-1][0]))
            pile.writes.append((effect["key"], effect["value"]))
        else:
            pile.writes.pop()
            pile.restored.append((effect, pile.value))
    yield from piles.items()


def _roots(leaves: Sequence[bytes], sizes: Any) -> Iterator[tuple[int, str]]:
    """The root over the first so many leaves (RFC 9162 §2.1.1), for each size, in one pass."""
    wanted = set(sizes)
    # Complete subtrees, the largest first, each with the number of its leaves.
    peaks: list[tuple[int, bytes]] = []
    for size, leaf in enumerate(leaves, start=1):
        peaks.append((1, leaf))
        while len(peaks) > 1 and peaks[-2][0] == peaks[-1][0]:
            (width, left), (_, right) = peaks[-2:]
            peaks[-2:] = [(2 * width, _node(left, right))]
        if size in wanted:
            *_, root = accumulate(
                (digest for _, digest in reversed(peaks)), lambda low, left: _node(left, low)
            )
            yield size, root.hex()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _promises(on: Evidence) -> Iterator[str]:
    """What an agent was told holds, whatever happened after."""
    told = on.told
    yield from told.surprises
    made = {(effect["key"], effect["thing"]) for effect in on.effects}
    for call_id, (tool, thing) in told.succeeded.items():
        if _state(on, call_id) != "succeeded":
            yield f"an agent was told that {call_id} succeeded; it is {_state(on, call_id)}"
        if (call_id, thing) not in made:
            yield f"an agent was told of {thing} by {tool}, and Acme made no such thing for {call_id}"
    expected = [
        ({"failed"}, told.failed),
        ({"denied"}, told.refused),
        # People vote, or their time runs out.
        ({"awaiting_approval", "expired", "rejected", *_SENT}, told.waiting),
        ({"scheduled", "cancelled", "denied", *_SENT}, told.scheduled),
        # A process that was taken for dead may still tell what it saw.
        ({"in_doubt", "succeeded", "failed"}, told.in_doubt),
    ]
    for states, call_ids in expected:
        for call_id in call_ids:
            if _state(on, call_id) not in states:
                yield f"an agent was told that {call_id} is {sorted(states)}; it is {_state(on, call_id)}"
    for call_id in told.undone:
        if call_id not in on.undos or on.undos[call_id]["state"] != "done":
            yield f"an agent was told that {call_id} is undone, and the records do not say so"
    for call_id, vote in told.votes.items():
        if vote == "reject" and _state(on, call_id) != "rejected":
            yield f"a person refused {call_id}, and it is {_state(on, call_id)}"


def _spent(on: Evidence) -> Iterator[str]:
    """The money in the budgets is the money that left Acme."""
    [row] = on.db.all(
        "SELECT COALESCE(SUM(posted), 0) AS posted FROM accounts"
        " WHERE id LIKE 'tenant:%' AND unit = 'eur_cent'"
    )
    spent = sum(row["amount_minor"] for key, row in on.refunds.items() if _state(on, key) == "succeeded")
    if row["posted"] != spent:
        yield f"{row['posted']} were posted, and refunds of {spent} are known to have succeeded"


def _orders(acme: Callable[[str], list[sqlite3.Row]]) -> Iterator[str]:
    """Acme's own books: if these are wrong, nothing above means anything."""
    for row in acme(
        "SELECT orders.order_id, refunded_minor, COALESCE(SUM(amount_minor), 0) AS issued FROM orders"
        " LEFT JOIN refunds ON refunds.order_id = orders.order_id AND refunds.status = 'issued'"
        " GROUP BY orders.order_id HAVING refunded_minor <> issued"
    ):
        yield f"order {row['order_id']} gave {row['refunded_minor']} back, its refunds make {row['issued']}"


def _state(on: Evidence, call_id: str) -> str | None:
    return on.calls[call_id]["state"] if call_id in on.calls else None


def _acme(place: Place) -> Callable[[str], list[sqlite3.Row]]:
    def query(sql: str) -> list[sqlite3.Row]:
        with closing(sqlite3.connect(f"file:{place.acme}?mode=ro", uri=True, timeout=10)) as db:
            db.row_factory = sqlite3.Row
            return db.execute(sql).fetchall()

    return query
