"""A redo log inside the database: what calls write is durable as one row, and put in its tables together.

A transaction of a call touches twenty pages of as many trees; synced alone, these pages are most of what it
costs. So a transaction that only adds rows, and changes rows of its own calls, is committed as one row of
`redo` that says so, and is *filed* into the tables with those after it: in one go, each call once, in the
state that it has come to. Balances, and where the stream of events has come to, are written with each
transaction: what is missing from the log is missed. Whoever asks the database anything within a transaction,
and whoever opens it to read, files first, so nobody sees less than what was committed. (Redo logging as in
C. Mohan et al., ARIES, ACM TODS 17(1), 1992, but logical, and ended by each filing.)

SQLite only: PostgreSQL writes pages beside the commit as it is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, Protocol, cast

import orjson

from remit.errors import StoreUnavailable

_CHANGED = "the audit database was changed behind Remit's back: see `remit db check`"
Values = Sequence[Any]
#: The columns of each table, in the order of the values of a row. A row of `redo` names none of them.
Columns = Mapping[str, tuple[str, ...]]
#: What one row is changed by: how a call ends, and what it held and can be taken back by. A row of `redo` has
#: only the values of its form, so a form that comes to be another needs another name.
Change = Literal["call", "call_and_key", "hold", "undo"]


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
    "hold": Form(table="holds", sets=("state", "posted"), key=("call_id", "account"), only="state = 'held'"),
    "undo": Form(table="undos", sets=("state", "resource"), key=("call_id",)),
}
SQL: Mapping[Change, str] = {change: form.sql for change, form in FORMS.items()}


class Writes(Protocol):
    """As much of a store as filing needs, within a transaction."""

    def execute(self, sql: str, values: Values = (), /) -> int: ...

    def many(self, sql: str, rows: Sequence[Values], /) -> None: ...

    def change(self, sql: str, rows: Sequence[Values], /) -> int: ...


_OF_CALLS = {"calls", "call_subjects", "payloads", "holds", "budget_moves", "touches", "undos", "events"}
_KEYS: Mapping[str, tuple[str, ...]] = {form.table: form.key for form in FORMS.values()}


@dataclass(slots=True)
class Gathered:
    """What one transaction writes, or several: rows that are new, by table, and rows that change."""

    inserts: dict[str, list[Values]] = field(default_factory=dict[str, list[Values]])
    updates: dict[Change, list[Values]] = field(default_factory=dict[Change, list[Values]])

    def __bool__(self) -> bool:
        return bool(self.inserts or self.updates)

    @property
    def is_of_calls(self) -> bool:
        """Whether only calls are told of, so that it may wait for a moment until anybody sees it."""
        return self.inserts.keys() <= _OF_CALLS

    def logged(self) -> bytes:
        """As a row of `redo`."""
        return orjson.dumps([self.inserts, self.updates], default=_hexadecimal)

    def write(self, store: Writes, by: Columns | None = None) -> bool:
        """Put it in the tables; whether every row that changes was there to be changed."""
        for table, rows in self.inserts.items():
            store.many(_insert_statement(table, (by or columns())[table]), rows)
        found = True
        for change, rows in self.updates.items():
            found &= store.change(SQL[change], rows) == len(rows)
        return found


class Pile:
    """What is committed in `redo` and not filed yet, each row as it has come to be."""

    def __init__(self, by: Columns | None = None) -> None:
        self._columns = by or columns()
        self._rows = Gathered()
        #: Where the rows that may change are among those of their table, by key.
        self._place: dict[str, dict[Values, int]] = {form.table: {} for form in FORMS.values()}
        #: Transactions in here, and rows.
        self.depth = 0
        self.rows = 0

    def add(self, gathered: Gathered) -> None:
        """Put a transaction on the pile that was committed."""
        self.depth += 1
        for table, rows in gathered.inserts.items():
            self.rows += len(rows)
            mine = self._rows.inserts.setdefault(table, [])
            if table in self._place:
                key = _places(self._columns[table], _KEYS[table])
                place = self._place[table]
                for n, row in enumerate(rows, len(mine)):
                    place[tuple([row[column] for column in key])] = n
            mine += rows
        for change, rows in gathered.updates.items():
            self._change(change, rows)

    def _change(self, change: Change, rows: Sequence[Values]) -> None:
        form = FORMS[change]
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

    def file(self, store: Writes) -> None:
        """Put all of it in the tables, within a transaction. Raises StoreUnavailable if it does not fit."""
        if not self._rows.write(store, self._columns):
            raise StoreUnavailable(_CHANGED)


def read_pile(bodies: Iterable[bytes], by: Columns | None = None) -> Pile:
    """The pile that these rows of `redo` make. Raises StoreUnavailable when they are none of ours."""
    pile = Pile(by)
    try:
        for body in bodies:
            inserts, updates = orjson.loads(body)
            added = {table: [_with_bytes(row) for row in rows] for table, rows in inserts.items()}
            pile.add(Gathered(added, updates))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise StoreUnavailable(_CHANGED) from None
    return pile


def file_what_is_logged(db: sqlite3.Connection) -> None:
    """Put what is in `redo` in the tables, within a transaction.

    It was written by the columns that the tables have now, of which this Remit may know more.
    """
    read_pile(logged(db), _columns_in(db)).file(Statements(db))
    empty(db)


def logged(db: sqlite3.Connection) -> list[bytes]:
    return [row[0] for row in db.execute("SELECT body FROM redo ORDER BY seq")]


def empty(db: sqlite3.Connection) -> None:
    """Remove what was filed. What is erased from the tables later must not survive here."""
    (before,) = db.execute("PRAGMA secure_delete").fetchone()
    db.execute("PRAGMA secure_delete = ON")
    db.execute("DELETE FROM redo")
    db.execute(f"PRAGMA secure_delete = {before}")


class Statements:
    """Raw statements over one SQLite connection."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def execute(self, sql: str, values: Values = (), /) -> int:
        return self._db.execute(sql, values).rowcount

    def many(self, sql: str, rows: Sequence[Values], /) -> None:
        self._db.executemany(sql, rows)

    def change(self, sql: str, rows: Sequence[Values], /) -> int:
        return self._db.executemany(sql, rows).rowcount


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


def _hexadecimal(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    raise TypeError


def _with_bytes(row: list[Any]) -> Values:
    return [bytes.fromhex(cast("str", value["hex"])) if isinstance(value, dict) else value for value in row]
