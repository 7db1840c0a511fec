"""Is the audit database still what was written? Every event, call and balance, compared.

The chain finds what was done to events. What people query are other tables, so each call is compared with its
events, each stored argument and result with the commitment in them, and each balance with its moves; what
people decided is compared by `audit_decisions.py`, and what is kept beside calls by `audit_keeping.py`.
Nothing is repaired: a finding is for people. Who rewrites the whole database consistently is found only by a
copy or a checkpoint kept elsewhere.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar, cast

import orjson

from remit import calls_told, chain, ways_back_told
from remit.budgets import tenant_and_unit
from remit.database import Row
from remit.erasing import digest_of
from remit.model import USUAL_REASONS
from remit.records import Records
from remit.vault import Damaged, KeyUnusable
from remit.ways_back_told import ended

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it was written."""

    #: For example `stream <id>, event 12`, `call <id>` or `account <id>`.
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


#: What each kind of event leaves its call in. A later entry supersedes an earlier one, whatever the clocks of
#: the processes said; None: the event itself tells.
_LEAVES: Mapping[str, str | None] = {
    "call.denied": "denied",
    "call.awaiting_approval": "awaiting_approval",
    "approval.reject": "rejected",
    "approval.expired": "expired",
    "approval.withdrawn": "withdrawn",
    "call.scheduled": "scheduled",
    "call.cancelled": "cancelled",
    "call.dispatched": "dispatched",
    "call.in_doubt": "in_doubt",
    "call.failed": "failed",
    "call.succeeded": "succeeded",
    "call.resolved": None,
}
_LATEST = tuple(reversed(_LEAVES))
_NO_MORE: tuple[str | None, Iterable[tuple[Any, ...]]] = (None, ())
_first_of = itemgetter(0)
_NOTHING: Mapping[str, Any] = {}
#: A place after every event, in the order of writing.
_NEVER = 2**63
_OPENINGS = ("call.denied", "call.awaiting_approval", "call.scheduled", "call.dispatched")
#: Columns of `calls` that the opening event seals, and under which name.
_SEALED = (
    *(
        (name, name)
        for name in (
            "tenant",
            "agent",
            "user",
            "run",
            "tool",
            "tool_digest",
            "effect",
            "fingerprint",
            "verdict",
            "code",
            "policy_version",
            "arguments_commit",
            "of_call",
            "auth",
            "source",
        )
    ),
    ("kind", "purpose"),
    ("operation", "operation"),
    ("created_us", "received_us"),
)
#: The last of them are not in events of schema 0001, nor is `calls_told.first`.
_LATER = 2
_RUN = _SEALED.index(("run", "run"))
_sealed = itemgetter(*(name for _, name in _SEALED))
#: What is read of each call, and of its way back.
_COMPARED = (
    *("id", "policy_rows", "confirmation", "state", "result_commit", "resolution", "claim"),
    *calls_told.WORDS,
    *calls_told.COLUMNS,
    *(name for name, _ in _SEALED),
)
_CLAIM, _KIND, _TENANT, _USER, _CODE = map(_COMPARED.index, ("claim", "kind", "tenant", "user", "code"))
_WORDS = slice(_CLAIM + 1, _CLAIM + 1 + len(calls_told.WORDS))
_TOLD = slice(_WORDS.stop, _WORDS.stop + len(calls_told.COLUMNS))
_WAY_BACK = ("call_id", *ways_back_told.SEALED, "state", "resource", "undo_call")

_HOLDS = "call_id, account, window_start_us, unit, amount, state, posted, held_us, resolved_us"
#: Holds of which more or less came back than what was adjusted for their call.
_MISREFUNDED = (
    "SELECT h.call_id, h.account FROM holds AS h WHERE h.refunded <> COALESCE((SELECT SUM(a.amount)"
    " FROM budget_adjustments AS a WHERE a.call_id = h.call_id AND a.account = h.account"
    " AND a.window_start_us = h.window_start_us AND a.kind = 'refund'), 0)"
)
#: What was adjusted when nothing happened to its call. An overrun of no call is of a limit that was changed;
#: what a call cost is given back by its undo.
_MISTIMED = (
    "SELECT a.call_id, a.account FROM budget_adjustments AS a WHERE a.call_id <> ''"
    " AND NOT EXISTS (SELECT 1 FROM events AS e"
    " WHERE e.call_id = a.call_id AND e.at_us = a.at_us AND a.kind = 'overrun')"
    " AND NOT EXISTS (SELECT 1 FROM calls AS u JOIN events AS e ON e.call_id = u.id"
    " WHERE u.of_call = a.call_id AND u.kind = 'undo' AND e.at_us = a.at_us) ORDER BY a.call_id, a.account"
)
#: Is told how many rows were verified just now.
Progress = Callable[[int], object]
#: Told after so many rows: telling costs more than most rows.
_STEP = 1000
#: Events that are looked at together: no more than a processor keeps close to it.
_NEAR = 200
#: An event: stream and number.
Place = tuple[str, int]
#: Of which call an event is, its kind, and what it tells.
Told = tuple[Any, Any, dict[str, Any]]


@dataclass(slots=True)
class Followed:
    """How far the events follow one another; where they do not, `verify_events` tells what is wrong."""

    #: How many were looked at.
    events: int = 0
    #: Those that do not follow the one before, and ends that are not those that were recorded.
    loose: list[Place] = field(default_factory=list[Place])
    #: Those that say what their call established about its run.
    establishing: list[Place] = field(default_factory=list[Place])
    #: Keys of whom a call is about beside its user, and the call, that `call_subjects` does not have.
    unlisted: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    #: How many such keys and calls it has.
    listed: int = 0
    #: Of how many calls the arguments, and of how many the ways back, are not kept any more.
    gone: Counter[str] = field(default_factory=Counter[str])

    def follow(self, records: Records, rows: Iterator[tuple[Any, ...]]) -> Iterator[Told]:
        """What these events (`chain.COLUMNS`) tell."""
        # An event is mostly read near the one before it.
        while some := list(islice(rows, _NEAR)):
            near = {(row[0], row[1]): row[7] for row in some}
            about: list[tuple[str, str]] = []
            for row in some:
                facts = facts_of(row[6])
                if not (chain.follows(row, facts, near) or chain.follows(row, facts, _before(records, row))):
                    self.loose.append((row[0], row[1]))
                if "established" in facts and isinstance(facts["established"], dict):
                    self.establishing.append((row[0], row[1]))
                if facts.get("subjects"):
                    about += [(key_id, row[5]) for key_id in _texts(facts["subjects"])]
                yield row[5], row[3], facts
            self.events += len(some)
            unlisted = _unlisted(records, about)
            self.unlisted += unlisted
            self.listed += len(about) - len(unlisted)

    def add(self, other: Followed) -> None:
        self.events += other.events
        self.loose += other.loose
        self.establishing += other.establishing
        self.unlisted += other.unlisted
        self.listed += other.listed
        self.gone += other.gone


def ignored(_: int) -> None:
    """Nobody wants to know how far it is."""


def counted(rows: Iterable[T], progress: Progress) -> Iterator[T]:
    """The rows, and each time that so many have passed, word of it."""
    for number, row in enumerate(rows, start=1):
        if not number % _STEP:
            progress(_STEP)
        yield row


def verify_events(records: Records, progress: Progress = ignored) -> Iterator[Finding]:
    """Every flaw of the event chains."""
    opened: list[dict[str, Any]] = []

    def rows() -> Iterator[tuple[Any, ...]]:
        for row in counted(
            records.tuples(f"SELECT {chain.COLUMNS} FROM events ORDER BY stream, seq"),  # noqa: S608 - the columns are ours
            progress,
        ):
            if row[3] == "stream.opened":
                opened.append(facts_of(row[6]))
            yield row

    heads = {
        row["id"]: (row["last_seq"], row["head"])
        for row in records.rows("SELECT id, last_seq, head FROM incarnations")
    }
    for flaw in chain.verify(rows(), heads):
        yield Finding(where=f"stream {flaw.stream}, event {flaw.seq}", what=flaw.what)
    # One that several streams saw is told once.
    for stream, seq in dict.fromkeys(place for facts in opened for place in _unseen(records, facts)):
        yield Finding(
            where=f"stream {stream}, event {seq}",
            what="a later stream saw another event here, or one that is gone",
        )


def verify_ends(records: Records, followed: Followed) -> None:
    """Follow the events of no call, too, and see whether the streams end as recorded.

    When nothing is loose then, every event follows one that is there, down to the first of its stream. So no
    stream has gaps, and one that goes on after its recorded end, or is not registered, makes more events than
    there should be.
    """
    of_no_call = records.tuples(
        f"SELECT {chain.COLUMNS} FROM events WHERE call_id IS NULL ORDER BY rowid"  # noqa: S608 - the columns are ours
    )
    passed: dict[Any, int] = {}
    for _, kind, facts in followed.follow(records, of_no_call):
        followed.loose += _disordered(passed, facts)
        if kind == "stream.opened":
            followed.loose += _unseen(records, facts)
    for row in records.rows(
        "SELECT id, last_seq, head,"
        " (SELECT hash FROM events WHERE stream = i.id AND seq = i.last_seq LIMIT 1) AS found"
        " FROM incarnations AS i"
    ):
        if row["head"] != (row["found"] if row["last_seq"] else chain.GENESIS):
            followed.loose.append((row["id"], row["last_seq"]))
    (recorded,) = records.rows("SELECT COALESCE(SUM(last_seq), 0) AS events FROM incarnations")
    if not records.count("events") == recorded["events"] <= followed.events:
        followed.loose.append(("", 0))


def verify_calls(
    records: Records,
    progress: Progress = ignored,
    *,
    payloads: bool = True,
    begin: str = "",
    end: str | None = None,
    followed: Followed | None = None,
) -> Iterator[Finding]:
    """Every call that disagrees with its events, and every payload with what was committed to.

    Only of those calls whose id is not less than `begin` and less than `end`. Without `payloads`, those stay
    sealed. Their events are `followed`.
    """
    values = (begin,) if end is None else (begin, end)

    def of_calls(columns: str, table: str, key: str) -> Iterator[tuple[Any, ...]]:
        within = f" AND {key} < ?" if end is not None else ""
        if end is None and isinstance(records.at, Path):
            within = f" AND {key} < x''"  # SQLite takes anything: bytes come after all text, and are no id
        return records.tuples(
            f"SELECT {columns} FROM {table} WHERE {key} >= ?{within} ORDER BY {key}",  # noqa: S608 - they are ours
            values,
        )

    followed = followed or Followed()
    # Looked up once, and only where something is erased: a record is verified in hundreds of parts.
    destroyed = cache(partial(_destroyed_at, records))
    astray: list[str] = []
    rows = counted(of_calls(chain.COLUMNS, "events", "call_id"), progress)
    events = _histories(followed.follow(records, rows))
    payload = "call_id, kind, keys, body" if payloads else "call_id, kind, keys"
    beside = [
        _beside(of_calls(columns, table, "call_id"), astray)
        for table, columns in (
            ("payloads", payload),
            ("undos", ", ".join(_WAY_BACK)),
            ("touches", "call_id, resource"),
            ("holds", _HOLDS),
        )
    ]
    history = next(events, None)
    for call in counted(of_calls(", ".join(f'"{name}"' for name in _COMPARED), "calls", "id"), progress):
        call_id = call[0]
        while history is not None and history[0] < call_id:
            yield _no_call(history[0])
            history = next(events, None)
        kept, undos, touched, holds = (of(call_id) for of in beside)
        if history is None or history[0] != call_id:
            yield Finding(where=f"call {call_id}", what="it has no event")
            continue
        happened = history[1]
        history = next(events, None)
        undo: dict[str, Any] | None = dict(zip(_WAY_BACK, undos[0], strict=True)) if undos else None
        wrong = [
            *_disagreements(records, call, happened),
            *_led_astray(records, undo, kept, happened),
            *_misheld(holds, happened),
        ]
        if payloads:
            begun = happened.get(_first(_OPENINGS, happened) or "", _NOTHING)
            wrong += _miscarried(records, call, kept, begun, happened, destroyed)
            wrong += ways_back_told.misplaced(records.vault, call[_TENANT], touched, undo, happened)
            if not _claimed(records, call, kept, begun):
                wrong.append("its claim is not what its event says")
            wrong += _misquoted(records, call, kept, begun, happened)
            if call[_KIND] == "call":
                wrong += ways_back_told.missing(kept, happened, begun, followed.gone)
        for what in wrong:
            yield Finding(where=f"call {call_id}", what=what)
    while history is not None:
        yield _no_call(history[0])
        history = next(events, None)
    for of in beside:
        of(None)
    for call_id in dict.fromkeys(astray):
        yield Finding(where=f"call {call_id}", what="something is kept of it, and it has no row in calls")


def verify_undos(records: Records) -> Iterator[Finding]:
    """Every way back that undos have brought to another state than `undos` says, or not at all.

    And whatever came back of what a call cost, and its undos do not say so.
    """
    brought: dict[str, dict[str, str]] = defaultdict(dict)
    came_back: Counter[tuple[str, str]] = Counter()
    for row in records.rows("SELECT id, of_call FROM calls WHERE of_call IS NOT NULL AND kind = 'undo'"):
        happened = happened_to(records, row["id"])
        if end := ways_back_told.taken_to(happened):
            brought[row["of_call"]][row["id"]] = end
        for account, amount in ways_back_told.refunded(happened):
            came_back[row["of_call"], account] += amount
    for row in records.rows("SELECT call_id, account, refunded FROM holds WHERE refunded <> 0"):
        came_back[row["call_id"], row["account"]] -= row["refunded"]
    for (call_id, account), differs in came_back.items():
        if differs:
            what = f"what came back to {account} is not what its undos say"
            yield Finding(where=f"call {call_id}", what=what)
    for row in records.rows("SELECT call_id, state, undo_call FROM undos WHERE undo_call IS NOT NULL"):
        call_id = row["call_id"]
        ends = brought.pop(call_id, {})
        end = ends.pop(row["undo_call"], None)
        # One that certainly did nothing left it as it was, for the next.
        if set(ends.values()) <= {"ready"} and (
            row["state"] == end
            or (
                (row["state"], end) == ("void", "ready")
                and _is_closed(records, kept_of(records, call_id), happened_to(records, call_id))
            )
        ):
            continue
        yield Finding(where=f"call {call_id}", what="its way back is not as its undos have left it")
    for call_id in brought:
        yield Finding(where=f"call {call_id}", what="it was taken back, and its way back does not say so")


def verify_balances(records: Records) -> Iterator[Finding]:
    """Every balance that the holds of its calls, and what was adjusted, do not add up to.

    Raises StoreUnavailable where not all can be read.
    """
    records.must_be_whole()
    parts = ("held", "posted", "refunded", "overrun")
    accounts = _sums(records, "SELECT id AS account, * FROM accounts", parts)
    adjusted = _sums(
        records,
        "SELECT account, window_start_us,"
        " SUM(CASE kind WHEN 'refund' THEN amount ELSE 0 END) AS refunded,"
        " SUM(CASE kind WHEN 'overrun' THEN amount ELSE 0 END) AS overrun"
        " FROM budget_adjustments GROUP BY account, window_start_us",
        parts[2:],
    )
    holds = _sums(
        records,
        "SELECT account, window_start_us, SUM(CASE state WHEN 'held' THEN amount ELSE 0 END) AS held,"
        " SUM(posted) AS posted, SUM(refunded) AS refunded FROM holds GROUP BY account, window_start_us",
        parts[:3],
    )
    for key in sorted(accounts.keys() | adjusted.keys() | holds.keys()):
        where = f"account {key[0]}, window {key[1]}"
        if key not in accounts:
            yield Finding(where=where, what="it has holds or adjustments, and no balance")
            continue
        for source, sums, told in (("holds", holds, parts[:3]), ("adjustments", adjusted, parts[2:])):
            for part, sum_ in sums.get(key, dict.fromkeys(told, 0)).items():
                if (balance := accounts[key][part]) != sum_:
                    yield Finding(where=where, what=f"{part} is {balance}, and its {source} make {sum_}")
    for row in records.rows(
        "SELECT id, window_start_us, tenant, unit FROM accounts ORDER BY id, window_start_us"
    ):
        if (row["tenant"], row["unit"]) != tenant_and_unit(row["id"]):
            where = f"account {row['id']}, window {row['window_start_us']}"
            yield Finding(where=where, what="its tenant and unit are not those of its id")
    for row in records.rows(_MISTIMED):
        what = f"what was adjusted of {row['account']} has the time of no event that did it"
        yield Finding(where=f"call {row['call_id']}", what=what)
    for row in records.rows(_MISREFUNDED):
        what = f"what came back to {row['account']} is not what was adjusted"
        yield Finding(where=f"call {row['call_id']}", what=what)
    for row in records.rows(
        "SELECT holds.call_id, holds.account, calls.state FROM holds"
        " LEFT JOIN calls ON calls.id = holds.call_id"
        " WHERE holds.state = 'held'"
        " AND COALESCE(calls.state, '') NOT IN ('scheduled', 'dispatched', 'in_doubt')"
    ):
        yield Finding(
            where=f"call {row['call_id']}", what=f"it is {row['state']}, and still holds {row['account']}"
        )


def _sums(records: Records, sql: str, parts: Sequence[str]) -> dict[tuple[str, int], dict[str, int]]:
    return {
        (row["account"], row["window_start_us"]): {part: row[part] for part in parts}
        for row in records.rows(sql)
    }


def _disordered(passed: dict[Any, int], facts: Mapping[str, Any]) -> Iterator[Place]:
    """An event that stands after what was written later, and so decides what it did not.

    `passed` is how far each stream had come at the events before it: by its own, and by what other streams
    saw of it when they were opened.
    """
    stream, seq = facts.get("stream"), facts.get("seq")
    if not isinstance(stream, str) or not isinstance(seq, int):
        return  # the chain tells that this event was changed
    if seq <= passed.get(stream, 0):
        yield stream, seq
    passed[stream] = max(seq, passed.get(stream, 0))
    for other, seen, _ in _heads(facts):
        if seen < passed.get(other, 0):
            yield stream, seq
        passed[other] = max(seen, passed.get(other, 0))


def _heads(facts: Mapping[str, Any]) -> list[tuple[str, int, Any]]:
    """How far a stream saw others when it was opened."""
    try:
        return [(str(head["stream"]), int(head["seq"]), head["hash"]) for head in facts.get("heads") or ()]
    except (KeyError, TypeError, ValueError, IndexError):
        return []  # the chain tells that this event was changed


def _unseen(records: Records, facts: Mapping[str, Any]) -> Iterator[Place]:
    """What a stream saw of others when it was opened, and is not there so."""
    for stream, seq, digest in _heads(facts):
        found = next(
            records.rows("SELECT hash FROM events WHERE stream = ? AND seq = ?", (stream, seq)), None
        )
        if found is None or found["hash"] != digest:
            yield stream, seq


def _unlisted(records: Records, about: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of these keys and calls that are not in `call_subjects`."""
    listed: set[tuple[Any, ...]] = set()
    for first in range(0, len(about), _NEAR):
        some = about[first : first + _NEAR]
        marks = ", ".join(["(?, ?)"] * len(some))
        listed |= set(
            records.tuples(
                # In this order: SQLite has no index for what is IN a list of pairs.
                f"WITH told(key_id, call_id) AS (VALUES {marks}) SELECT s.key_id, s.call_id FROM told"  # noqa: S608 - only marks are inserted
                " CROSS JOIN call_subjects AS s WHERE s.key_id = told.key_id AND s.call_id = told.call_id",
                [value for pair in some for value in pair],
            )
        )
    return [pair for pair in about if pair not in listed]


def _texts(value: Any) -> list[str]:
    """A list of texts; an empty one when somebody made it something else, which is a flaw of its event."""
    return [str(each) for each in cast("list[Any]", value)] if isinstance(value, list) else []


def _before(records: Records, event: tuple[Any, ...]) -> dict[Place, Any]:
    """The hash of the one before it, as `chain.follows` finds it; none when none is there."""
    return {
        (row["stream"], row["seq"]): row["hash"]
        for row in records.rows(
            "SELECT b.stream, b.seq, b.hash FROM events AS e JOIN events AS b"
            " ON b.stream = e.stream AND b.seq = e.seq - 1 WHERE e.stream = ? AND e.seq = ?",
            event[:2],
        )
    }


def facts_of(body: str) -> dict[str, Any]:
    """A JSON object; an empty one, which agrees with nothing, when somebody made it something else."""
    try:
        value = orjson.loads(body)
    except (ValueError, TypeError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _no_call(call_id: str) -> Finding:
    return Finding(where=f"call {call_id}", what="it has events, and no row in calls")


def happened_to(records: Records, call_id: str) -> dict[str, dict[str, Any]]:
    """By kind, what the events of a call tell."""
    return {
        row["kind"]: facts_of(row["body"])
        for row in records.rows("SELECT kind, body FROM events WHERE call_id = ?", (call_id,))
    }


def beside_calls(records: Records, *kinds: str) -> Iterator[tuple[Row, dict[str, Any]]]:
    """The events of these kinds that are of no call, in the order of writing, and what each tells."""
    marks = ", ".join("?" * len(kinds))
    for row in records.rows(
        "SELECT rowid, stream, kind, tenant, at_us, body FROM events"  # noqa: S608 - only marks are inserted
        f" WHERE call_id IS NULL AND kind IN ({marks}) ORDER BY rowid",
        kinds,
    ):
        yield row, facts_of(row["body"])


def kept_of(records: Records, call_id: str) -> list[tuple[Any, ...]]:
    """What is kept of what a call carried: call, kind, and the keys that it is sealed with."""
    return list(records.tuples("SELECT call_id, kind, keys FROM payloads WHERE call_id = ?", (call_id,)))


def _histories(followed: Iterator[Told]) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Each call, and by kind what its events tell."""
    for call_id, some in groupby(followed, _first_of):
        yield call_id, {kind: facts for _, kind, facts in some}


def _beside(
    rows: Iterator[tuple[Any, ...]], astray: list[str]
) -> Callable[[str | None], Sequence[tuple[Any, ...]]]:
    """What gives those of the rows, in order of their calls, that are of a call, when asked in that order.

    Asked about none, it ends. Calls that have rows, and were not asked about, are noted as `astray`.
    """
    groups = groupby(rows, _first_of)
    at, some = next(groups, _NO_MORE)

    def of(call_id: str | None) -> Sequence[tuple[Any, ...]]:
        nonlocal at, some
        while at is not None and (call_id is None or at < call_id):
            astray.append(at)
            at, some = next(groups, _NO_MORE)
        if at is None or at != call_id:
            return ()
        found = list(some)
        at, some = next(groups, _NO_MORE)
        return found

    return of


def _disagreements(
    records: Records, call: tuple[Any, ...], happened: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    call_id, policy_rows, confirmation, stands, committed_to, resolved = call[:6]
    opening = _first(_OPENINGS, happened)
    if opening is None:
        yield "no event says how it began"
        return
    begun = happened[opening]
    says_more = "received_us" in begun
    stated = call[-len(_SEALED) :]
    let_in = happened.get("call.dispatched") or happened.get("call.scheduled") or _NOTHING
    if opening == "call.awaiting_approval" and stated[_RUN] == let_in.get("run"):
        begun = {**begun, "run": let_in["run"]}  # people were asked in one run, and it was made in another
    if not _agree(stated, begun):
        sealed = _SEALED if says_more else _SEALED[:-_LATER]
        for (name, sealed_as), value in zip(sealed, stated, strict=False):
            if value != begun.get(sealed_as):
                yield f"{name} is {value!r}, and its event says {begun.get(sealed_as)!r}"
    if policy_rows != orjson.dumps(begun.get("rows")).decode():
        yield "policy_rows is not what its event says"
    let_in = happened.get("call.scheduled") or happened.get("call.dispatched") or _NOTHING
    if confirmation != let_in.get("confirmation"):
        yield "confirmation is not what its event says"
    last = _first(_LATEST, happened) or opening
    state = _LEAVES[last] or happened[last].get("state")
    if stands != state:
        yield f"state is {stands!r}, and its events end in {state!r}"
    if says_more and call[_TOLD] != (told := calls_told.row(happened, begun, last)):
        if "call.postponed" in happened:  # perhaps more than once
            told = calls_told.row({**happened, "call.postponed": _postponed(records, call_id)}, begun, last)
        for name, value, says in zip(calls_told.COLUMNS, call[_TOLD], told, strict=True):
            if value != says:
                yield f"{name} is {value!r}, and its events say {says!r}"
    if committed_to != ended(happened).get("result_commit"):
        yield "result_commit is not what its event says"
    if (resolved or "call.in_doubt" in happened) and resolved != ways_back_told.resolution(happened):
        yield "resolution is not what its event says"


def _postponed(records: Records, call_id: str) -> Mapping[str, Any]:
    """What was said last of a call that waits for a budget."""
    (newest,) = records.rows(
        "SELECT body FROM events WHERE call_id = ? AND kind = 'call.postponed' ORDER BY rowid DESC LIMIT 1",
        (call_id,),
    )
    return facts_of(newest["body"])


def _misquoted(
    records: Records,
    call: tuple[Any, ...],
    kept: Sequence[tuple[Any, ...]],
    begun: Mapping[str, Any],
    happened: Mapping[str, Mapping[str, Any]],
) -> Iterator[str]:
    """Which words of a call are not those of which its events have the digest."""
    if "received_us" not in begun:
        return
    last = _first(_LATEST, happened) or ""
    of_error = calls_told.error(happened, last)
    sealed = (begun.get("reason_digest"), of_error.get("error_digest"), calls_told.key(happened))
    usual = (USUAL_REASONS.get(call[_CODE]), calls_told.INTERRUPTED if "left_by" in of_error else None, None)
    for name, words, digest, otherwise in zip(calls_told.WORDS, call[_WORDS], sealed, usual, strict=True):
        if words == otherwise and digest is None:
            continue
        if None not in (digest, words) and digest == digest_of(records.vault, call[_TENANT], words):
            continue
        # An idempotency key says nothing of anybody: it stays.
        if name == "client_key" or words or not is_cleared(records, kept):
            yield f"{name} is not what its events say"


def _agree(stated: tuple[Any, ...], begun: Mapping[str, Any]) -> bool:
    try:
        return stated == _sealed(begun)
    except KeyError:
        return False


def _first(kinds: Sequence[str], happened: Mapping[str, Mapping[str, Any]]) -> str | None:
    for kind in kinds:
        if kind in happened:
            return kind
    return None


def _miscarried(
    records: Records,
    call: tuple[Any, ...],
    kept: Sequence[tuple[Any, ...]],
    begun: Mapping[str, Any],
    happened: Mapping[str, Mapping[str, Any]],
    destroyed: Callable[[], Mapping[str, int]],
) -> Iterator[str]:
    """What of the stored payloads is not what was sealed, or not what was committed to.

    `destroyed` gives the places of the events that tell of it, by key (`_destroyed_at`).
    """
    commits = {"result": ended(happened).get("result_commit")}
    # What is struck out of stored arguments cannot be held against the commitment to all of them.
    if not begun.get("redacted"):
        commits["arguments"] = begun.get("arguments_commit")
        commits["context"] = begun.get("context_commit")
    commitment_of = records.vault.commitment
    for call_id, kind, keys, body in kept:
        try:
            commitment = commitment_of(call_id, kind, keys, body)
        except (Damaged, KeyUnusable) as error:
            yield f"its stored {kind} cannot be opened: {error}"
            continue
        if commitment is None:
            # Nobody can open it any more: at least, whoever was erased is somebody whom it is about, and was
            # erased after that.
            if not _is_about(records, call, keys.split()):
                yield f"its stored {kind} is erased with the key of somebody whom it is not about"
            elif _began(records, call_id) > min(destroyed().get(key, _NEVER) for key in keys.split()):
                yield f"its stored {kind} is erased with a key that was destroyed before the call"
        elif kind in commits and commitment != commits[kind]:
            yield f"its stored {kind} is not what was committed to"


def _destroyed_at(records: Records) -> dict[str, int]:
    """The place, in the order of writing, of the event that tells of each key that is destroyed."""
    return {
        key: event["rowid"]
        for event, facts in beside_calls(records, "audit.erased")
        for key in _texts(facts.get("keys"))
    }


def _began(records: Records, call_id: str) -> int:
    """The place, in the order of writing, of the first event of a call."""
    (first,) = records.rows("SELECT MIN(rowid) AS place FROM events WHERE call_id = ?", (call_id,))
    return first["place"]


def _is_about(records: Records, call: tuple[Any, ...], key_ids: Sequence[str]) -> bool:
    """Whether each of these keys is of a call's user, or of somebody else whom the call is about."""
    marks = ", ".join("?" * len(key_ids))
    (found,) = records.rows(
        f"SELECT COUNT(*) AS keys FROM subject_keys AS k WHERE k.id IN ({marks}) AND (k.name = ?"  # noqa: S608 - only marks are inserted
        " OR EXISTS (SELECT 1 FROM call_subjects AS s JOIN subject_keys AS o ON o.id = s.key_id"
        " WHERE s.call_id = ? AND o.name = k.name))",
        (*key_ids, records.vault.name(call[_TENANT], call[_USER]), call[0]),
    )
    return found["keys"] == len(key_ids)


def _led_astray(
    records: Records,
    undo: Mapping[str, Any] | None,
    kept: Sequence[tuple[Any, ...]],
    happened: ways_back_told.Happened,
) -> Iterator[str]:
    """Where a call's way back is not the one that was sealed, or in another state than events left it."""
    plan = ways_back_told.plan(happened)
    if undo is None:
        if plan is not None:
            yield "its way back is gone"
        return
    if plan is None:
        yield "no event says that it has a way back"
        return
    for name in ways_back_told.SEALED:
        if (undo[name] or None) != (plan.get(name) or None):
            yield f"{name} of its way back is not what its event says"
    if undo["undo_call"] is not None:
        return  # `verify_undos` knows what became of it
    state, left = undo["state"], ways_back_told.left_as(happened)
    if state != left and not ((state, left) == ("void", "ready") and _is_closed(records, kept, happened)):
        yield f"its way back is {state!r}, and its events leave it {left!r}"


def _is_closed(records: Records, kept: Sequence[tuple[Any, ...]], happened: ways_back_told.Happened) -> bool:
    """Whether what a call could be taken back by is erased, or removed with its age."""
    was_bound = ended(happened).get("undo") == "ready"
    return (was_bound and not any(row[1] in ("undo", "restore") for row in kept)) or is_cleared(records, kept)


def is_cleared(records: Records, kept: Sequence[tuple[Any, ...]]) -> bool:
    """Whether what a call said in words is erased, or removed with its age."""
    keys: str | None = next((keys for _, kind, keys, *_ in kept if kind == "arguments"), None)
    if keys is None:
        return True
    marks = ", ".join("?" * len(ids := keys.split()))
    destroyed = f"SELECT 1 FROM subject_keys WHERE wrapped IS NULL AND id IN ({marks})"  # noqa: S608 - only marks are inserted
    return any(True for _ in records.rows(destroyed, ids))


def _misheld(holds: Sequence[tuple[Any, ...]], happened: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Where what a call holds, and what it cost, is not what was sealed."""
    let_in = happened.get("call.dispatched", _NOTHING)
    if "holds" not in let_in:  # it was held when it was held back
        let_in = happened.get("call.scheduled", _NOTHING)
    end = ended(happened) or happened.get("call.resolved") or happened.get("call.cancelled") or _NOTHING
    try:
        told = {each["account"]: each for each in let_in.get("holds", ())}
        spent = {each["account"]: each["amount"] for each in end.get("spent", ())}
    except (TypeError, KeyError):  # events that somebody has made
        yield "what it holds is in none of its events"
        return
    for _, account, *stands in holds:
        cost = spent.get(account, 0)
        state = ("posted" if cost else "voided") if end else "held"
        unit = str(account).split(":")[-2:-1]
        sealed = told.pop(account, _NOTHING)
        if stands != [
            *(sealed.get("window_us"), *unit, sealed.get("amount")),
            *(state, cost, let_in.get("at_us"), end.get("at_us")),
        ]:
            yield f"what it holds on {account} is not what its events say"
    for account in told:
        yield f"what it held on {account} is gone"


def _claimed(
    records: Records, call: tuple[Any, ...], kept: Sequence[tuple[Any, ...]], begun: Mapping[str, Any]
) -> bool:
    """Whether what a call claimed is what its first event seals of it."""
    claim, sealed = call[_CLAIM], begun.get("claim")
    if claim is None:
        return sealed is None or is_cleared(records, kept)
    return sealed == records.vault.name(call[_TENANT], claim)
