"""The audit database as one transaction sees it: SQLite, raw and fast, driven by the writer only.

The ledger knows rows, balances and the event chain; it does not know what a call is. `journal.py` says
which of these go together. Inserts are gathered and written at commit, one `executemany` for each table.
Balances and switches are kept in memory and dropped when another process has written (`data_version`).

Several processes may share the file: every transaction is BEGIN IMMEDIATE under an inter-process lock,
which also covers checkpoints, so no checkpoint ever races a commit (the SQLite WAL-reset bug, 3.7.0 to
3.51.2: sqlite.org/wal.html).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remit.chain import GENESIS, canonical, link
from remit.ids import Clock
from remit.writer import OthersWrite

if TYPE_CHECKING:
    from sqlalchemy import Table

    from remit.runs import Run, RunKey
    from remit.vault import Seal

#: Checkpoint once the write-ahead log is this long (bytes): it bounds recovery time and disk.
_WAL_MAX_BYTES = 8 * 2**20
_COMMITS_BETWEEN_LOOKS = 64
_BUSY_MS = 10_000

Row = Sequence[Any]


@dataclass(slots=True)
class Account:
    """A balance in memory. `dirty` rows are written back at commit."""

    limit_amount: int
    held: int
    posted: int
    refunded: int
    overrun: int
    new: bool
    dirty: bool = False

    @property
    def left(self) -> int:
        return self.limit_amount - self.held - self.posted + self.refunded


class Ledger:
    def __init__(self, path: Path, *, stream: str, clock: Clock, relaxed: bool) -> None:
        self._path = path
        self._clock = clock
        self._relaxed = relaxed
        self.stream = stream
        self._seq = 0
        self._head = GENESIS
        self._lock = os.open(
            path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        self._db = self._connected()
        self._sync = "FULL"
        self._data_version = -1
        self._inserts: dict[str, list[Row]] = {}
        self._accounts: dict[tuple[str, int], Account] = {}
        #: Runs that were asked about (see `runs.py`), as of the newest transaction.
        self.runs: dict[RunKey, Run] = {}
        #: What payloads are sealed with (see `vault.py`), by tenant, subjects and further keys.
        self.seals: dict[tuple[str, tuple[str, ...], str], Seal | None] = {}
        #: Every switch that is on: (kind, scope, target, tenant). Replaced whole, so any thread may read it.
        self.switches: frozenset[tuple[str, str, str, str]] = frozenset()
        #: Runs that must be told something (see `notices.py`). Replaced whole, too.
        self.untold: frozenset[RunKey] = frozenset()
        self._busy_ms = _BUSY_MS
        self._commits = 0
        self._commits_at_look = 0
        #: The time of the running transaction; everything written in it carries this time.
        self.now_us = 0

    # The writer drives these.

    @contextmanager
    def transaction(self, *, durable: bool, wait: bool = True) -> Generator[None]:
        if self._relaxed:
            self._set_sync("FULL" if durable else "NORMAL")
        seq, head = self._seq, self._head
        self._lock_out_others(wait)
        try:
            self._begin(wait)
            try:
                self._forget_if_others_wrote()
                self.now_us = self._clock()
                yield
                self._flush(seq)
                self._db.execute("COMMIT")
            except BaseException:
                self._roll_back(seq, head)
                raise
            self._commits += 1
            if wait:  # else the caller is in a hurry: `idle` looks
                self._checkpoint()
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def idle(self) -> None:
        self._forget_if_others_wrote()
        with suppress(OthersWrite):
            self._lock_out_others(wait=False)
            try:
                self._checkpoint()
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Mark this process life as ended in order, and let go of the file."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self._db.execute(
                "UPDATE incarnations SET state = 'closed', ended_us = ? WHERE id = ? AND state = 'live'",
                (self._clock(), self.stream),
            )
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        finally:
            self._db.close()
            os.close(self._lock)

    # Changes use these.

    def insert(self, table: str, row: Row) -> None:
        """Add a row at commit; a query of the same transaction sees it only after `write_out`."""
        self._inserts.setdefault(table, []).append(row)

    def write_out(self) -> None:
        """Write the rows gathered so far, for a query that must see what changes before it inserted."""
        for table, rows in self._inserts.items():
            self._db.executemany(_inserts()[table], rows)
        self._inserts.clear()

    def execute(self, sql: str, parameters: Row = ()) -> int:
        """Run an UPDATE or DELETE at once; return how many rows it changed."""
        return self._db.execute(sql, parameters).rowcount

    def one(self, sql: str, parameters: Row = ()) -> sqlite3.Row | None:
        return self._db.execute(sql, parameters).fetchone()

    def all(self, sql: str, parameters: Row = ()) -> list[sqlite3.Row]:
        return self._db.execute(sql, parameters).fetchall()

    def event(self, kind: str, *, tenant: str | None, call_id: str | None, **facts: Any) -> None:
        """Append one event to this process's stream."""
        self._seq += 1
        body = canonical(
            {
                "stream": self.stream,
                "seq": self._seq,
                "at_us": self.now_us,
                "kind": kind,
                "tenant": tenant,
                "call_id": call_id,
                **facts,
            }
        )
        self._head = link(self._head, body)
        self.insert("events", (self.stream, self._seq, self.now_us, kind, tenant, call_id, body, self._head))

    @property
    def position(self) -> tuple[int, str]:
        """The sequence number and hash of the newest event of this stream."""
        return self._seq, self._head

    def overwrite_what_goes(self) -> None:
        """Have what is deleted or replaced from now on overwritten in the file, too."""
        self._db.execute("PRAGMA secure_delete = ON")

    def reload_switches(self) -> None:
        rows = self._db.execute("SELECT kind, scope, target, tenant FROM switches").fetchall()
        self.switches = frozenset((row[0], row[1], row[2], row[3]) for row in rows)

    def reload_untold(self) -> None:
        rows = self._db.execute(
            'SELECT DISTINCT tenant, agent, "user", run FROM notices WHERE told_us IS NULL'
        ).fetchall()
        self.untold = frozenset((row[0], row[1], row[2], row[3]) for row in rows)

    def account(self, account: str, window_start_us: int, *, limit: int) -> Account:
        """The balance of `account`, created with `limit` when the window is new."""
        key = (account, window_start_us)
        found = self._accounts.get(key)
        if found is None:
            row = self.one(
                "SELECT limit_amount, held, posted, refunded, overrun FROM accounts"
                " WHERE id = ? AND window_start_us = ?",
                key,
            )
            found = Account(*row, new=False) if row else Account(limit, 0, 0, 0, 0, new=True)
            self._accounts[key] = found
        return found

    # The rest is its own.

    def _connected(self) -> sqlite3.Connection:
        self._lock_out_others(wait=True)
        try:
            _make_room(self._path.with_name(self._path.name + "-wal"))
            return _connect(self._path)
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _lock_out_others(self, wait: bool) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OthersWrite from None

    def _begin(self, wait: bool) -> None:
        busy_ms = _BUSY_MS if wait else 0
        if busy_ms != self._busy_ms:
            self._db.execute(f"PRAGMA busy_timeout = {busy_ms}")
            self._busy_ms = busy_ms
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            # A program that knows nothing of the lock file, such as a person's SQL shell.
            if wait or error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            raise OthersWrite from None

    def _flush(self, seq_before: int) -> None:
        self.write_out()
        new: list[Row] = []
        changed: list[Row] = []
        for (account, start_us), it in self._accounts.items():
            if not it.dirty:
                continue
            if it.new:
                _, _, rest = account.partition(":")
                tenant = rest.partition("/")[0]
                unit = account.rsplit(":", 2)[1]
                new.append(
                    (
                        account,
                        start_us,
                        tenant,
                        unit,
                        it.limit_amount,
                        it.held,
                        it.posted,
                        it.refunded,
                        it.overrun,
                    )
                )
            else:
                changed.append(
                    (it.limit_amount, it.held, it.posted, it.refunded, it.overrun, account, start_us)
                )
            it.new = it.dirty = False
        if new:
            self._db.executemany(_inserts()["accounts"], new)
        if changed:
            self._db.executemany(
                "UPDATE accounts SET limit_amount = ?, held = ?, posted = ?, refunded = ?, overrun = ?"
                " WHERE id = ? AND window_start_us = ?",
                changed,
            )
        if self._seq != seq_before:
            # Fails when this stream was taken over: a process that was declared dead writes nothing more.
            moved = self._db.execute(
                "UPDATE incarnations SET last_seq = ?, head = ?"
                " WHERE id = ? AND last_seq = ? AND state = 'live'",
                (self._seq, self._head, self.stream, seq_before),
            ).rowcount
            if moved != 1:
                raise sqlite3.OperationalError("this process was declared dead by another; restart it")

    def _roll_back(self, seq: int, head: str) -> None:
        self._seq, self._head = seq, head
        self._inserts.clear()
        self._accounts.clear()
        self.runs.clear()
        self.seals.clear()
        self._data_version = -1
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _forget_if_others_wrote(self) -> None:
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        if version != self._data_version:
            self._data_version = version
            self._accounts.clear()
            self.runs.clear()
            self.seals.clear()
            self.reload_switches()
            self.reload_untold()
        elif len(self._accounts) > 4096:
            self._accounts.clear()

    def _checkpoint(self) -> None:
        if self._commits - self._commits_at_look < _COMMITS_BETWEEN_LOOKS:
            return
        self._commits_at_look = self._commits
        try:
            size = os.stat(self._path.with_name(self._path.name + "-wal")).st_size
        except FileNotFoundError:
            return
        if size > _WAL_MAX_BYTES:
            self._db.execute("PRAGMA wal_checkpoint(RESTART)")

    def _set_sync(self, mode: str) -> None:
        if mode != self._sync:
            self._db.execute(f"PRAGMA synchronous = {mode}")
            self._sync = mode


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    db.row_factory = sqlite3.Row
    for pragma in (
        f"busy_timeout = {_BUSY_MS}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "wal_autocheckpoint = 0",
        "foreign_keys = ON",
    ):
        db.execute(f"PRAGMA {pragma}")
    return db


def _make_room(wal: Path) -> None:
    """Let the write-ahead log have its full length from the start, where there is none yet.

    A file that grows makes each sync write the file system's own journal as well, which doubles what a
    commit costs. SQLite takes a log of zeros for an empty one (sqlite.org/fileformat2.html#walformat).
    """
    try:
        file = os.open(wal, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return  # then it grows
    try:
        if os.fstat(file).st_size == 0:
            os.write(file, bytes(_WAL_MAX_BYTES))
            os.fsync(file)
    finally:
        os.close(file)


@cache
def _inserts() -> Mapping[str, str]:
    """The INSERT of every table. SQLAlchemy is slow to load, and a server answers before it needs this."""
    from remit.tables import metadata

    return {name: _insert_statement(table) for name, table in metadata.tables.items()}


def _insert_statement(table: Table) -> str:
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    marks = ", ".join("?" * len(table.columns))
    return f"INSERT INTO {table.name} ({names}) VALUES ({marks})"  # noqa: S608 - the names are ours
