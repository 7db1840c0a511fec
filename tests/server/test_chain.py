"""Whatever is done to stored events, verification finds it; what was not touched, it leaves alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.chain import GENESIS, EventRow, Flaw, canonical, link, verify

Heads = dict[str, tuple[int, str]]
Tampering = Callable[[random.Random, list[EventRow], Heads], None]

KINDS = ("call.dispatched", "call.succeeded", "call.denied", "switch.on")


def a_stream(name: str, length: int, *, salt: int = 0) -> list[EventRow]:
    rows: list[EventRow] = []
    head = GENESIS
    for seq in range(1, length + 1):
        fields: dict[str, Any] = {
            "stream": name,
            "seq": seq,
            "at_us": 1_800_000_000_000_000 + seq * 7 + salt,
            "kind": KINDS[seq % len(KINDS)],
            "tenant": None if seq % 5 == 0 else "acme",
            "call_id": None if seq % 3 == 0 else f"call-{seq}",
        }
        body = canonical({**fields, "tool": "shop.buy", "note": "naïve ✓", "amount": seq})
        head = link(head, body)
        rows.append(EventRow(**fields, body=body, hash=head))
    return rows


def streams(*lengths: int) -> tuple[list[EventRow], Heads]:
    rows: list[EventRow] = []
    heads: Heads = {}
    for number, length in enumerate(lengths):
        stream = a_stream(f"stream-{number}", length, salt=number)
        rows += stream
        heads[f"stream-{number}"] = (length, stream[-1].hash if stream else GENESIS)
    return rows, heads


def ordered(rows: Sequence[EventRow]) -> list[EventRow]:
    """As a database returns them."""
    return sorted(rows, key=lambda row: (str(row.stream), isinstance(row.seq, str), row.seq))


def flaws_of(rows: Sequence[EventRow], heads: Heads) -> list[Flaw]:
    return list(verify((astuple(row) for row in rows), heads))


def test_untouched_streams_have_no_flaw() -> None:
    rows, heads = streams(1, 7, 0, 30)
    assert flaws_of(rows, heads) == []
    assert list(verify([], {})) == []
    assert list(verify([], {"stream-0": (0, GENESIS)})) == []


def edit_body(rng: random.Random, rows: list[EventRow], heads: Heads) -> None:
    at = rng.randrange(len(rows))
    body = rows[at].body
    where = rng.randrange(len(body))
    other = rng.choice([c for c in '09aZ"{}: ,é' if c != body[where]])
    rows[at] = replace(rows[at], body=body[:where] + other + body[where + 1 :])


def edit_body_and_hash(rng: random.Random, rows: list[EventRow], heads: Heads) -> None:
    """As whoever knows the rule of the chain, but changes one event only."""
    at = rng.randrange(len(rows))
    body = rows[at].body.replace("acme", "evil").replace('"amount":', '"amount":9')
    before = rows[at - 1].hash if rows[at].seq > 1 else GENESIS
    rows[at] = replace(rows[at], body=body, hash=link(before, body))
    if heads[rows[at].stream][0] == rows[at].seq:
        # The last event of a stream: the head of the stream tells.
        assert heads[rows[at].stream][1] != rows[at].hash


def edit_column(rng: random.Random, rows: list[EventRow], heads: Heads) -> None:
    at = rng.randrange(len(rows))
    change: dict[str, Any] = rng.choice(
        [
            {"kind": "call.failed"},
            {"tenant": "evil"},
            {"call_id": "another"},
            {"at_us": rows[at].at_us + 1},
            {"tenant": ""},
            {"call_id": 7},
            {"at_us": str(rows[at].at_us)},
        ]
    )
    rows[at] = replace(rows[at], **change)


def edit_hash(rng: random.Random, rows: list[EventRow], heads: Heads) -> None:
    at = rng.randrange(len(rows))
    value: Any = rng.choice(
        ["0" * 64, "f" * 64, "", "zz", rows[at].hash.upper(), None, b"\x00" * 32, 5, "é" * 64]
    )
    if value == rows[at].hash:
        value = "1" * 64
    rows[at] = replace(rows[at], hash=value)


def delete(rng: random.Random, rows: list[EventRow], heads: Heads) -> None:
    del rows[rng.randrange(len(rows))]


def delete_many(rng: random.Random, rows: list[EventRow], heads: Heads) -> None:
    start = rng.randrange(len(rows))
    del rows[start : start + rng.randint(1, 6)]


def truncate(rng: random.Random, rows: list[EventRow], heads: Heads) -> None:
    stream = rng.choice(rows).stream
    keep = rng.randrange(heads[stream][0])
    rows[:] = [row for row in rows if row.stream != stream or row.seq <= keep]


def truncate_and_renumber(rng: random.Random, rows: list[EventRow], heads: Heads) -> None:
    """Take events from the front and number the rest anew."""
    stream = rng.choice(rows).stream
    gone = rng.randint(1, heads[stream][0])
    rows[:] = [
        replace(row, seq=row.seq - gone) if row.stream == stream else row
        for row in rows
        if row.stream != stream or row.seq > gone
    ]


def swap(rng: random.Random, rows: list[EventRow], heads: Heads) -> None:
    one, other = rng.sample(range(len(rows)), 2)
    a, b = rows[one], rows[other]
    rows[one] = replace(b, stream=a.stream, seq=a.seq)
    rows[other] = replace(a, stream=b.stream, seq=b.seq)


def insert(rng: random.Random, rows: list[EventRow], heads: Heads) -> None:
    at = rng.randrange(len(rows))
    row = rows[at]
    rows.append(replace(row, seq=heads[row.stream][0] + 1))


def repeat(rng: random.Random, rows: list[EventRow], heads: Heads) -> None:
    rows.append(rng.choice(rows))


def invent_a_stream(rng: random.Random, rows: list[EventRow], heads: Heads) -> None:
    rows.extend(a_stream("invented", rng.randint(1, 5)))


def forget_a_stream(rng: random.Random, rows: list[EventRow], heads: Heads) -> None:
    del heads[rng.choice(rows).stream]


def forge_the_rest(rng: random.Random, rows: list[EventRow], heads: Heads) -> None:
    """Edit one event and recompute every hash after it: only the recorded head tells."""
    at = rng.randrange(len(rows))
    stream = rows[at].stream
    head = rows[at - 1].hash if rows[at].seq > 1 else GENESIS
    for index in range(at, len(rows)):
        if rows[index].stream != stream:
            break
        body = rows[index].body.replace("naïve", "naive") if index == at else rows[index].body
        head = link(head, body)
        rows[index] = replace(rows[index], body=body, hash=head)


def lie_about_the_head(rng: random.Random, rows: list[EventRow], heads: Heads) -> None:
    stream = rng.choice(rows).stream
    seq, head = heads[stream]
    heads[stream] = rng.choice([(seq + 1, head), (seq - 1, head), (seq, "0" * 64), (0, GENESIS), (-1, head)])


def put_other_types(rng: random.Random, rows: list[EventRow], heads: Heads) -> None:
    """SQLite stores whatever it is given."""
    at = rng.randrange(len(rows))
    change: dict[str, Any] = rng.choice(
        [
            {"body": b"{}"},
            {"body": None},
            {"body": 5},
            {"body": ""},
            {"body": "null"},
            {"seq": "x"},
            {"seq": -3},
        ]
    )
    rows[at] = replace(rows[at], **change)


TAMPERINGS: list[Tampering] = [
    edit_body,
    edit_body_and_hash,
    edit_column,
    edit_hash,
    delete,
    delete_many,
    truncate,
    truncate_and_renumber,
    swap,
    insert,
    repeat,
    invent_a_stream,
    forget_a_stream,
    forge_the_rest,
    lie_about_the_head,
    put_other_types,
]


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__)
def test_a_tampering_is_found_and_never_in_another_stream(tamper: Tampering) -> None:
    clean, true_heads = streams(12, 1, 25)
    for seed in range(200):
        rng = random.Random(f"{tamper.__name__} {seed}")
        rows, heads = list(clean), dict(true_heads)
        tamper(rng, rows, heads)
        touched = {row.stream for row in {*clean} ^ {*rows}} | {
            stream for stream in {*heads, *true_heads} if heads.get(stream) != true_heads.get(stream)
        }
        flaws = flaws_of(ordered(rows), heads)
        if tamper is repeat:
            assert flaws, f"seed {seed}"
            continue
        assert flaws, f"seed {seed}"
        assert {flaw.stream for flaw in flaws} <= touched, f"seed {seed}"


def test_one_edit_is_reported_once_and_where_it_is() -> None:
    rows, heads = streams(20)
    rows[7] = replace(rows[7], body=rows[7].body.replace("acme", "evil"))
    (flaw,) = flaws_of(rows, heads)
    assert (flaw.stream, flaw.seq) == ("stream-0", 8)


def test_a_gap_is_named_by_its_ends() -> None:
    rows, heads = streams(20)
    del rows[4:7]
    (flaw,) = flaws_of(rows, heads)
    assert "5 to 7" in flaw.what


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(max_codepoint=0xD7FF)), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(st.characters(max_codepoint=0xD7FF)), JSON, max_size=6))
def test_the_canonical_form_is_that_of_rfc_8785(body: dict[str, Any]) -> None:
    """On this profile (no floats, keys below U+D800) the standard library writes the same form."""
    plain = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    assert canonical(body) == plain


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 9), min_size=1, max_size=5))
def test_the_order_of_members_does_not_matter(body: dict[str, Any]) -> None:
    assert canonical(body) == canonical(dict(reversed(body.items())))
