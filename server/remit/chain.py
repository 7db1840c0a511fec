"""The hash chain of events: canonical bytes, the chain rule, and its verification.

Each stream (one process life) is a chain of its own, so processes never wait for one another. The
canonical form is RFC 8785 (JCS) restricted to objects, arrays, strings, booleans, null and integers
within ±(2^53-1); on that profile compact JSON with sorted keys is byte for byte JCS, for keys below
U+D800. Nothing here touches the database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

#: What the first event of every stream is chained to.
GENESIS = "0" * 64


def canonical(body: Mapping[str, Any]) -> str:
    """The one text of `body` that is hashed and stored."""
    return orjson.dumps(body, option=orjson.OPT_SORT_KEYS).decode()


def link(previous: str, body: str) -> str:
    """SHA-256 over the previous hash (32 bytes) and the canonical body (UTF-8), as hex."""
    return hashlib.sha256(bytes.fromhex(previous) + body.encode()).hexdigest()


def entry(stream: str, seq: int, digest: str) -> str:
    """An event as the Merkle log has it, and as the receipt of a call names it.

    The hash covers the body and everything before it in the stream, so the log can be shown to anybody: it
    tells how many events there were, and nothing about them.
    """
    return f"{stream} {seq} {digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """One row of `events`, as read back for verification."""

    stream: str
    seq: int
    at_us: int
    kind: str
    tenant: str | None
    call_id: str | None
    body: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    stream: str
    seq: int
    what: str


def verify(rows: Iterable[EventRow], heads: Mapping[str, tuple[int, str]]) -> Iterator[Flaw]:
    """Every flaw in `rows` (ordered by stream, seq) against the recorded `heads` of all streams.

    Finds an edited, deleted, inserted or reordered event, a column that disagrees with the hashed body,
    a truncated stream, and a stream without a head. After a broken link the chain is taken up again from
    the stored hash, so that one edit is reported once.
    """
    ends: dict[str, tuple[int, str]] = {}
    for row in rows:
        seq, head = ends.get(row.stream, (0, GENESIS))
        try:
            what = _what_is_wrong(row, seq, head)
            ends[row.stream] = (row.seq, row.hash)
        except (AttributeError, TypeError, ValueError):
            # A database file holds whatever was put into it, of any type.
            what = "it does not even have the form of an event"
            ends[row.stream] = (seq + 1, row.hash)
        if what:
            yield Flaw(stream=row.stream, seq=row.seq, what=what)
    for stream, (seq, head) in heads.items():
        found = ends.pop(stream, (0, GENESIS))
        if found[0] < seq:
            yield Flaw(
                stream=stream, seq=found[0] + 1, what=f"the stream ends early: {seq} events were recorded"
            )
        elif found != (seq, head):
            yield Flaw(
                stream=stream, seq=found[0], what="the stream does not end where it was recorded to end"
            )
    for stream, (seq, _) in ends.items():
        yield Flaw(stream=stream, seq=seq, what="the stream is not registered")


def _what_is_wrong(row: EventRow, seq: int, head: str) -> str | None:
    """Why `row` is not the event that followed number `seq`. Raises where it is no event at all."""
    if row.seq <= seq:
        return "there is more than one event of this number"
    if row.seq > seq + 1:
        return f"events {seq + 1} to {row.seq - 1} are missing"
    if link(head, row.body) != row.hash:
        return "the event or its hash was changed"
    body = orjson.loads(row.body)
    for name in ("stream", "seq", "at_us", "kind", "tenant", "call_id"):
        if body.get(name) != getattr(row, name):
            return f"column {name} disagrees with the sealed event"
    return None
