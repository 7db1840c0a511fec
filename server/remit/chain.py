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
from operator import itemgetter
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


#: What `verify` reads of each event, in this order: the fields of an `EventRow`.
COLUMNS = "stream, seq, at_us, kind, tenant, call_id, body, hash"
_NAMES = ("stream", "seq", "at_us", "kind", "tenant", "call_id")
_sealed = itemgetter(*_NAMES)

#: Where each stream ended: number and hash of its last event.
Heads = Mapping[str, tuple[int, str]]


def follows(
    columns: tuple[Any, ...], sealed: Mapping[str, Any], hashes: Mapping[tuple[str, int], Any]
) -> bool:
    """Whether an event (`COLUMNS`, and its body decoded) is what it was, after the one before it.

    That one's hash is among `hashes`, by stream and number.
    """
    try:
        before = GENESIS if columns[1] == 1 else hashes[columns[0], columns[1] - 1]
        return link(before, columns[6]) == columns[7] and _sealed(sealed) == columns[:6]
    except (AttributeError, KeyError, TypeError, ValueError):
        return False  # it is nothing that could be an event, or none is before it


def verify(rows: Iterable[tuple[Any, ...]], heads: Heads) -> Iterator[Flaw]:
    """Every flaw in `rows` (`COLUMNS`, ordered by stream, seq) against the recorded `heads` of the streams.

    Finds an edited, deleted, inserted or reordered event, a column that disagrees with the hashed body,
    a truncated stream, and a stream without a head. After a broken link the chain is taken up again from
    the stored hash, so that one edit is reported once.
    """
    ends: dict[str, tuple[int, str]] = {}
    stream: Any = None
    last, head = 0, GENESIS
    for columns in rows:  # of any types: a database file holds whatever was put into it
        if columns[0] != stream:
            if stream is not None:
                ends[stream] = (last, head)
            stream = columns[0]
            last, head = 0, GENESIS
        try:
            what = _what_is_wrong(columns, last, head)
            last = columns[1]
        except (AttributeError, TypeError, ValueError):
            what = "it does not even have the form of an event"
            last += 1
        head = columns[7]
        if what:
            yield Flaw(stream=stream, seq=columns[1], what=what)
    if stream is not None:
        ends[stream] = (last, head)
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


def _what_is_wrong(columns: tuple[Any, ...], last: int, head: str) -> str | None:
    """Why these are not those of the event that followed number `last`. Raises where they are of no event."""
    seq, body = columns[1], columns[6]
    if seq <= last:
        return "there is more than one event of this number"
    if seq > last + 1:
        return f"events {last + 1} to {seq - 1} are missing"
    if link(head, body) != columns[7]:
        return "the event or its hash was changed"
    sealed = orjson.loads(body)
    try:
        if _sealed(sealed) == columns[:6]:
            return None
    except KeyError:
        pass  # told below, by name
    for name, column in zip(_NAMES, columns, strict=False):
        if sealed.get(name) != column:
            return f"column {name} disagrees with the sealed event"
    return None
