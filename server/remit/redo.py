"""A redo log inside the database: what calls write is durable as one row, and put in its tables together.

A transaction of a call touches twenty pages of as many trees; synced alone, these pages are most of what it
costs. So a transaction that only adds rows, and changes balances and rows of its own calls, is committed as
one record of `redo` that says so, and is *filed* into the tables with those after it: in one go, each row
once, in the state that it has come to. Whoever asks the database anything within a transaction, and whoever
opens it to read, files first, so nobody sees less than what was committed. (Redo logging as in C. Mohan et
al., ARIES, ACM TODS 17(1), 1992, but logical, and ended by each filing.)

SQLite only: PostgreSQL writes pages beside the commit as it is. What a transaction writes has the same shape
for both.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from typing import Any, Literal, Protocol, cast

import orjson

from remit.errors import StoreUnavailable

CHANGED = "the audit database was changed behind Remit's back: see `remit db check`"
#: A pragma for whoever changes rows. What a row was before, and where it lay before its page was full, is
#: overwritten at once: SQLite leaves it there otherwise, and who erases later does not come by any more.
NOTHING_STAYS = "secure_delete = ON"
Values = Sequence[Any]
#: The columns of each table, in the order of the values of a row. A record of `redo` names none of them.
Columns = Mapping[str, tuple[str, ...]]
#: What one row is changed by: how a call ends, what it held and can be taken back by; and, where nothing is
#: logged, how far the stream of events has come. A record of `redo` has only the values of its form, so a
#: form that comes to be another needs another name.
Change = Literal["call", "call_and_key", "resolve", "undo", "position"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """An UPDATE of one row: its values are those of `sets`, then those of `key`."""

    table: str
    sets: tuple[str, ...]
    key: tuple[str, ...]
    only: str = "1 = 1"

    @property
    def sql(self) -> str:
        sets = ", ".join(f"{column} = ?" for column in self.sets)
        key = " AND ".join(f"{column} = ?" for column in self.key)
        return f"UPDATE {self.table} SET {sets} WHERE {key} AND {self.only}"  # noqa: S608 - all of it is ours


_ENDS = ("state", "finished_us", "result_commit", "error_code", "error", "resolution")
_NOT_ENDED = "(state = 'dispatched' OR state = 'in_doubt')"
FORMS: Mapping[Change, Form] = {
    "call": Form(table="calls", sets=_ENDS, key=("id",), only=_NOT_ENDED),
    # Nothing was done: the client may use its key again.
    "call_and_key": Form(table="calls", sets=(*_ENDS, "client_key"), key=("id",), only=_NOT_ENDED),
    "resolve": Form(
        table="holds",
        sets=("state", "posted", "resolved_us"),
        key=("call_id", "account"),
        only="state = 'held'",
    ),
    "undo": Form(table="undos", sets=("state", "resource"), key=("call_id",)),
    # Nobody else has moved it on, or taken the process for dead.
    "position": Form(
        table="incarnations", sets=("last_seq", "head"), key=("id", "last_seq"), only="state = 'live'"
    ),
}
#: Those that are found only in a log that a Remit before this one left: here of schema 0001.
_EARLIER: Mapping[str, Form] = {
    "hold": Form(table="holds", sets=("state", "posted"), key=("call_id", "account"), only="state = 'held'"),
}
_FORMS: Mapping[str, Form] = {**FORMS, **_EARLIER}
_SQL = {change: form.sql for change, form in _FORMS.items()}
#: A balance is put where it belongs, new or not.
OVER_ACCOUNT = (
    "ON CONFLICT (id, window_start_us) DO UPDATE SET"
    " limit_amount = excluded.limit_amount, held = excluded.held, posted = excluded.posted,"
    " refunded = excluded.refunded, overrun = excluded.overrun"
)
_ACCOUNTS = (
    "INSERT INTO accounts"  # noqa: S608 - all of it is ours
    " (id, window_start_us, tenant, unit, limit_amount, held, posted, refunded, overrun)"
    f" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) {OVER_ACCOUNT}"
)
_STREAMS = "UPDATE incarnations SET last_seq = ?, head = ? WHERE id = ?"
#: The bytes of a row of the log: with what SQLite adds, it fills a page of 4096
#: (sqlite.org/fileformat2.html#b_tree_pages).
_SLOT = 4048
_HEAD = struct.Struct(">QI")
_PUT = "INSERT INTO redo (slot, body) VALUES (?, ?) ON CONFLICT (slot) DO UPDATE SET body = excluded.body"


#: How PostgreSQL says `NotThere`; the message is the change. Codes of this class are nobody's
#: (postgresql.org/docs/current/errcodes-appendix.html).
NOT_THERE = "RM001"


class NotThere(Exception):
    """A row that was to change is not there, or not in the state to be changed: nothing may be committed."""

    def __init__(self, change: Change) -> None:
        super().__init__(change)
        self.change: Change = change


class Writes(Protocol):
    """As much of a store as filing needs, within a transaction."""

    def write(self, gathered: Gathered, /) -> None:
        """Put it in the tables: first what is new, then what changes. Raises NotThere."""
        ...


_OF_CALLS = {
    "calls",
    "call_subjects",
    "payloads",
    "holds",
    "budget_adjustments",
    "touches",
    "undos",
    "events",
}
_KEYS: Mapping[str, tuple[str, ...]] = {form.table: form.key for form in FORMS.values()}


@dataclass(slots=True)
class Gathered:
    """What one transaction writes, or several: rows that are new, by table, and rows that change."""

    inserts: dict[str, list[Values]] = field(default_factory=dict[str, list[Values]])
    updates: dict[Change, list[Values]] = field(default_factory=dict[Change, list[Values]])
    #: Balances as they have come to be, whole rows.
    accounts: list[Values] = field(default_factory=list[Values])
    #: How far streams of events have come: last number, its hash, the stream.
    streams: list[Values] = field(default_factory=list[Values])

    def __bool__(self) -> bool:
        return bool(self.inserts or self.updates or self.accounts)

    @property
    def is_of_calls(self) -> bool:
        """Whether only calls are told of, so that it may wait for a moment until anybody sees it."""
        return self.inserts.keys() <= _OF_CALLS

    def update(self, change: Change, values: Values) -> None:
        self.updates.setdefault(change, []).append(values)

    def as_json(self) -> bytes:
        """As `remit_write` takes it (see `procedure.py`)."""
        return self._dumped(lambda value: {"hex": value.hex()})

    def as_record(self) -> bytes:
        """As a record of `redo`: JSON and, after a NUL, which JSON has none of, what is bytes, as it is."""
        apart: list[bytes] = []

        def put_apart(value: bytes) -> Any:
            apart.append(value)
            return {"bytes": len(value)}

        return b"".join((self._dumped(put_apart), b"\0", *apart))

    def _dumped(self, of_bytes: Callable[[bytes], Any]) -> bytes:
        return orjson.dumps([self.inserts, self.updates, self.accounts, self.streams], default=of_bytes)


class Pile:
    """What is committed in `redo` and not filed yet."""

    def __init__(self, by: Columns | None = None) -> None:
        self._by = by
        self._transactions: list[Gathered] = []
        #: How many rows there are in all.
        self.rows = 0

    @property
    def depth(self) -> int:
        """How many transactions there are."""
        return len(self._transactions)

    def add(self, gathered: Gathered) -> None:
        """Put a transaction on the pile that was committed."""
        self._transactions.append(gathered)
        self.rows += sum(map(len, gathered.inserts.values()))

    def position(self, stream: str) -> tuple[int, str] | None:
        """How far a stream has come, if something of it is in here."""
        found = [row for each in self._transactions for row in each.streams if row[-1] == stream]
        return (found[-1][0], found[-1][1]) if found else None

    def file(self, store: Writes) -> None:
        """Put all of it in the tables, within a transaction. Raises StoreUnavailable if it does not fit."""
        by = self._by or columns()
        made = _Made(by)
        try:
            for each in self._transactions:
                made.add(each)
        except (ValueError, TypeError, KeyError, IndexError):  # somebody else has made it
            raise StoreUnavailable(CHANGED) from None
        try:
            store.write(made.rows())
        except NotThere:
            raise StoreUnavailable(CHANGED) from None


class _Made:
    """What transactions come to: each row once, as it has come to be."""

    def __init__(self, by: Columns) -> None:
        self._columns = by
        self._rows = Gathered()
        #: Where the rows that may change are among those of their table, by key.
        self._place: dict[str, dict[Values, int]] = {form.table: {} for form in FORMS.values()}
        self._accounts: dict[Values, Values] = {}
        self._streams: dict[str, Values] = {}

    def rows(self) -> Gathered:
        self._rows.accounts = list(self._accounts.values())
        self._rows.streams = list(self._streams.values())
        return self._rows

    def add(self, gathered: Gathered) -> None:
        for table, rows in gathered.inserts.items():
            mine = self._rows.inserts.setdefault(table, [])
            if table in self._place:
                key = _places(self._columns[table], _KEYS[table])
                place = self._place[table]
                for n, row in enumerate(rows, len(mine)):
                    place[tuple([row[column] for column in key])] = n
            mine += rows
        for change, rows in gathered.updates.items():
            self._change(change, rows)
        for row in gathered.accounts:
            self._accounts[row[0], row[1]] = row
        for row in gathered.streams:
            self._streams[row[-1]] = row

    def _change(self, change: Change, rows: Sequence[Values]) -> None:
        form = _FORMS[change]
        place, mine = self._place[form.table], self._rows.inserts.get(form.table, [])
        sets = _places(self._columns[form.table], form.sets)
        for values in rows:
            n = place.get(tuple(values[len(sets) :]))
            if n is None:  # its row was filed before
                self._rows.updates.setdefault(change, []).append(values)
                continue
            row = list(mine[n])
            for column, value in zip(sets, values, strict=False):
                row[column] = value
            mine[n] = row


def read_pile(bodies: Iterable[bytes], by: Columns | None = None) -> Pile:
    """The pile that these records of `redo` make. Raises StoreUnavailable when they are none of ours."""
    pile = Pile(by)
    try:
        for body in bodies:
            text, _, apart = body.partition(b"\0")
            inserts, updates, accounts, streams = orjson.loads(text)
            taken = BytesIO(apart)
            added = {table: [_with_bytes(row, taken) for row in rows] for table, rows in inserts.items()}
            pile.add(Gathered(added, updates, accounts, streams))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise StoreUnavailable(CHANGED) from None
    return pile


def file_what_is_logged(db: sqlite3.Connection) -> None:
    """Put what is in `redo` in the tables, within a transaction.

    It was written by the columns that the tables have now, of which this Remit may know more.
    """
    db.execute(f"PRAGMA {NOTHING_STAYS}")
    log = Log(db)
    by = _columns_in(db)
    read_pile(log.read(), by).file(Statements(db, by))
    log.empty()


class Log:
    """The log as it lies in `redo`: rows of one size, a page each, written over again and again.

    So a commit writes one page and no other: nothing grows, and nothing is freed. A record begins with its
    number and length, and goes on in the next rows where it is long. Row 0 has the number of the newest
    record that was filed: those in force are the ones with the next numbers, from row 1 on. Each process
    sees the others' records when it is told that others have written, by `read`.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        #: The number of the newest record, and the row where the next one begins.
        self._number = 0
        self._next = 1

    def read(self) -> list[bytes]:
        """The records in force. Raises StoreUnavailable when one of them is not whole."""
        rows = self._db.execute("SELECT slot, body FROM redo ORDER BY slot")
        self._number, self._next = _filed(next(rows, None)), 1
        bodies: list[bytes] = []
        for slot, body in rows:
            number, length = _head(body)
            if slot != self._next or number != self._number + 1:
                break
            record = bytearray(body)
            while len(record) < _HEAD.size + length:
                more = next(rows, None)
                if more is None:
                    raise StoreUnavailable(CHANGED)
                record += more[1]
            bodies.append(bytes(record[_HEAD.size : _HEAD.size + length]))
            self._number = number
            self._next += len(record) // _SLOT
        return bodies

    def write(self, body: bytes) -> None:
        self._number += 1
        record = _HEAD.pack(self._number, len(body)) + body
        for start in range(0, len(record), _SLOT):
            self._db.execute(_PUT, (self._next, record[start : start + _SLOT].ljust(_SLOT, b"\0")))
            self._next += 1

    def empty(self) -> None:
        """Everything was filed."""
        self._db.execute(_PUT, (0, _HEAD.pack(self._number, 0)))
        self._next = 1

    def wipe(self) -> None:
        """Leave nothing of what was filed, so that what is erased from the tables is not here either."""
        self._db.execute(
            "UPDATE redo SET body = zeroblob(?1) WHERE slot > 0 AND body <> zeroblob(?1)", (_SLOT,)
        )


def is_logged(db: sqlite3.Connection) -> bool:
    """Whether something is in the log that is not in its tables."""
    rows = db.execute("SELECT slot, body FROM redo WHERE slot < 2 ORDER BY slot")
    filed, first = _filed(next(rows, None)), next(rows, None)
    return first is not None and _head(first[1])[0] == filed + 1


def _filed(row: tuple[int, bytes] | None) -> int:
    """The number of the newest record that was filed, as row 0 tells it."""
    if row is None or row[0] != 0:
        raise StoreUnavailable(CHANGED)
    return _head(row[1])[0]


def _head(body: bytes) -> tuple[int, int]:
    try:
        return _HEAD.unpack_from(body)
    except (TypeError, struct.error):
        raise StoreUnavailable(CHANGED) from None


class Statements:
    """Raw statements over one SQLite connection."""

    def __init__(self, db: sqlite3.Connection, by: Columns | None = None) -> None:
        self._db = db
        self._by = by

    def execute(self, sql: str, values: Values = (), /) -> int:
        return self._db.execute(sql, values).rowcount

    def write(self, gathered: Gathered, /) -> None:
        for table, rows in gathered.inserts.items():
            self._db.executemany(_insert_statement(table, (self._by or columns())[table]), rows)
        for change, rows in gathered.updates.items():
            if self._db.executemany(_SQL[change], rows).rowcount != len(rows):
                raise NotThere(change)
        if gathered.accounts:
            self._db.executemany(_ACCOUNTS, gathered.accounts)
        if gathered.streams:
            moved = self._db.executemany(_STREAMS, gathered.streams).rowcount
            if moved != len(gathered.streams):
                raise NotThere("position")


@cache
def columns() -> Columns:
    """As this Remit knows them. SQLAlchemy is slow to load, and a server answers before it needs this."""
    from remit.tables import metadata

    return {name: tuple(table.columns.keys()) for name, table in metadata.tables.items()}


def _columns_in(db: sqlite3.Connection) -> Columns:
    """As they are in this database."""
    found: dict[str, tuple[str, ...]] = {}
    for table, column in db.execute(
        "SELECT t.name, c.name FROM sqlite_schema AS t, pragma_table_info(t.name) AS c"
        " WHERE t.type = 'table' ORDER BY t.name, c.cid"
    ):
        found[table] = (*found.get(table, ()), column)
    return found


@cache
def inserts() -> Mapping[str, str]:
    """The INSERT of every table."""
    return {table: _insert_statement(table, names) for table, names in columns().items()}


@cache
def _insert_statement(table: str, columns: tuple[str, ...]) -> str:
    names = ", ".join(f'"{column}"' for column in columns)
    marks = ", ".join("?" * len(columns))
    return f"INSERT INTO {table} ({names}) VALUES ({marks})"  # noqa: S608 - the names are ours


@cache
def _places(row: tuple[str, ...], columns: tuple[str, ...]) -> tuple[int, ...]:
    """Where these columns are in a row."""
    return tuple(row.index(column) for column in columns)


def _with_bytes(row: list[Any], apart: BytesIO) -> Values:
    return [
        _bytes_of(cast("dict[str, Any]", value), apart) if isinstance(value, dict) else value for value in row
    ]


def _bytes_of(told: dict[str, Any], apart: BytesIO) -> bytes:
    # As hexadecimal in a log of schema 0001.
    return apart.read(told["bytes"]) if "bytes" in told else bytes.fromhex(told["hex"])
