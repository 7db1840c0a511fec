"""Which audit database, and reading it: the one place that opens it for readers.

A reader sees one snapshot and can change nothing, so it can neither damage a record nor hold up a writer.
Its SQL is the same for every database, with `?` for each value. Calls are written by `ledger.py`; what is
sealed beside them, by one process at a time, is written here too, for `sealer.py`.

Whoever opens something here closes it.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Protocol

from remit.errors import Held, StoreUnavailable

#: How long to wait for a lock that another program holds (seconds).
_BUSY_S = 10
#: And for a lock file that another process has locked (seconds): one that seals may have much to seal.
_TURN_S = {".lock": 10, ".log-lock": 60}
#: And for how long after each look: as long as a commit may take.
_LOOK_AGAIN_S = 0.0005


@dataclass(frozen=True, slots=True)
class Postgres:
    """A PostgreSQL database. The files that belong to it, such as keys, lie beside `path`."""

    #: `env:NAME` or `file:/path`, where the URL is read when it is used; or a URL without a password.
    url: str
    path: Path

    def __str__(self) -> str:
        return self.url


#: A SQLite file, or a PostgreSQL database.
Location = Path | Postgres


class Row(Protocol):
    """A row by name and by position; `dict(row)` and `**row` work, and so does unpacking."""

    def __getitem__(self, key: Any, /) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...

    def keys(self) -> Any: ...


class Reader(Protocol):
    def one(self, sql: str, values: Sequence[Any] = (), /) -> Row | None: ...

    def all(self, sql: str, values: Sequence[Any] = (), /) -> Sequence[Row]: ...

    def rows(self, sql: str, values: Sequence[Any] = (), /) -> Iterator[Row]:
        """The rows of one SELECT, read as they are asked for."""
        ...

    def tuples(self, sql: str, values: Sequence[Any] = (), /) -> Iterator[tuple[Any, ...]]:
        """The same by position alone, for who reads millions."""
        ...

    @property
    def lags(self) -> bool:
        """Whether it shows less than what was committed, since who reads may not write."""
        ...

    def damage(self) -> Iterator[str]:
        """What the database itself finds wrong: pages, indexes, constraints, references."""
        ...

    def schema(self) -> dict[str, str]:
        """What makes each table, index and trigger, by name."""
        ...


class Sealing(Reader, Protocol):
    """Reads what is committed at each moment; within `transaction` it writes, too."""

    def transaction(self) -> AbstractContextManager[None]: ...

    def many(self, sql: str, rows: Sequence[Sequence[Any]], /) -> None:
        """Run one INSERT for each row."""
        ...


def reading(at: Location, *, newest: bool = True) -> AbstractContextManager[Reader]:
    """A snapshot of the audit database, as of the first query. Raises StoreUnavailable, also within.

    Without `newest`, what was committed in the last moment may be missing: for who looks again and again,
    beside a process that writes.
    """
    if isinstance(at, Path):
        return _reading_file(at, newest)
    from remit import postgres

    return postgres.reading(at)


def sealing(at: Location) -> AbstractContextManager[Sealing]:
    """For the one process that seals just now; waits for its turn. Raises StoreUnavailable, also within."""
    if isinstance(at, Path):
        return _sealing_file(at)
    from remit import postgres

    return postgres.sealing(at)


def exists(at: Location) -> bool:
    """Whether an audit database has been made there. Raises StoreUnavailable when nobody can tell."""
    if isinstance(at, Path):
        return _status(at) is not None
    from remit import postgres

    return postgres.exists(at)


def beside(at: Location, suffix: str) -> Path:
    """A file that belongs to the audit database."""
    path = at if isinstance(at, Path) else at.path
    return path.with_name(path.name + suffix)


def real_file(at: Path) -> Path:
    """The file itself, where `at` is a link to it: its write-ahead log and its locks lie beside that one."""
    return Path(os.path.realpath(at))


def placed(at: Path) -> Path:
    """The same, in a folder that is made where there is none. Raises OSError."""
    at.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return real_file(at)


def has_one_name(at: Path) -> bool:
    """Whether no hard link gives the file another name. Beside each lie other locks, and another log."""
    status = _status(at)
    return status is None or status.st_nlink < 2


def _status(at: Path) -> os.stat_result | None:
    """What the system knows of the file; None where there is none. Raises StoreUnavailable."""
    try:
        status = at.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a name with NUL is no file's
        return None
    except OSError as error:
        raise StoreUnavailable(
            f"nobody can tell whether there is an audit database {at}: {error.strerror}"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise StoreUnavailable(
            f"the audit database {at} cannot be used: it is not a file; name the file itself"
        )
    return status


def must_have_one_name(at: Path) -> None:
    """Raise StoreUnavailable when who writes under another name of the file could not be kept away."""
    if not has_one_name(at):
        raise StoreUnavailable(
            f"{at} has another name by a hard link, and processes that write to it by different names are not"
            " kept apart: stop them, and remove every name but one (`find / -xdev -samefile"
            f" {at}` finds them); VACUUM INTO makes a copy"
        )


def take_turn(lock: int, file: Path) -> None:
    """Lock the open lock file `file`; the end of a process unlocks what it has locked. Raises Held."""
    wait_s = _TURN_S[file.suffix]
    until_s = monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if monotonic() > until_s:
                raise Held(
                    f"another process has held {file} for {wait_s} seconds: it has much to do, or it is"
                    " stopped; see who has that file open (fuser, lsof), and wait for it, or end it"
                ) from None
            sleep(_LOOK_AGAIN_S)
        else:
            return


@contextmanager
def _reading_file(at: Path, newest: bool) -> Generator[Reader]:
    at = real_file(at)
    try:
        uri = f"{at.absolute().as_uri()}?mode=ro"
        if not os.access(at.parent, os.W_OK) and not beside(at, "-wal").exists():
            uri += "&immutable=1"  # a copy where nobody can write, not even what readers share
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_S)) as db:
            db.row_factory = sqlite3.Row
            db.execute("BEGIN")
            wrong = _file_redo_log(at, db) if newest and _is_logged(db) else ""
            yield SqliteReader(db, wrong, lags=wrong is None)
    except sqlite3.Error as error:
        why = _why_unreadable(at, error)
        raise StoreUnavailable(f"the audit database {at} cannot be read: {why}") from None


def _why_unreadable(at: Path, error: sqlite3.Error) -> str:
    """What is wrong and the fix, where SQLite only says that it cannot open or write a file."""
    kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    log, index = beside(at, "-wal"), beside(at, "-shm")
    if str(error) == "no such table: alembic_version":
        fix = "name the file that Remit writes (store.path), or a copy of it"
        return f"it is {'not an audit database' if at.stat().st_size else 'empty'}: {fix}"
    if kind not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        return str(error)
    for file in (at, log, index):
        if file.exists() and not os.access(file, os.R_OK):
            return f"you may not read {file}: read it as the server's user, or have a copy made for you"
    if not log.exists():
        return str(error)
    return (
        f"its last commits are in {log}, which is read by way of {index}, and that file cannot be made there:"
        " copy both files to a folder that you may write to and read them there, or have a copy made with"
        " VACUUM INTO (or after PRAGMA wal_checkpoint(TRUNCATE)), which has no such log"
    )


def _is_logged(db: sqlite3.Connection) -> bool:
    """Whether something is committed that is not in its tables, in the snapshot that begins here."""
    # A database of another version has no such table: that is for the reader to tell.
    from remit import redo

    log = db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'redo'").fetchone()
    try:
        return log is not None and redo.is_logged(db)
    except StoreUnavailable:
        return True  # filing it tells what is wrong with it


def _file_redo_log(at: Path, reader: sqlite3.Connection) -> str | None:
    """Have what is committed put in its tables, and begin the reader's snapshot there.

    Returns what is wrong with it, or None for who may not write and reads what there is.
    """
    from remit import redo

    if not has_one_name(at):
        return None  # it would be written under a lock that others do not know
    # Where there is no write-ahead log, as in a copy, nobody can commit while somebody reads.
    reader.execute("ROLLBACK")
    try:
        with locked(at, ".lock"):
            uri = f"{at.absolute().as_uri()}?mode=rw"
            with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_S)) as db:
                db.execute("PRAGMA wal_autocheckpoint = 0")
                db.execute("BEGIN IMMEDIATE")
                redo.file_what_is_logged(db)
                db.execute("COMMIT")
                # While nobody can add to the log.
                reader.execute("BEGIN")
                _is_logged(reader)
    except (OSError, sqlite3.OperationalError, Held):
        return None
    except (StoreUnavailable, sqlite3.Error):
        return "what is in table redo does not go with the other tables: one of them was changed"
    finally:
        if not reader.in_transaction:
            reader.execute("BEGIN")
    return ""


@contextmanager
def _sealing_file(at: Path) -> Generator[Sealing]:
    at = real_file(at)
    try:
        must_have_one_name(at)
        with locked(at, ".log-lock"):
            db = sqlite3.connect(at, isolation_level=None, timeout=_BUSY_S)
            try:
                db.row_factory = sqlite3.Row
                db.execute("PRAGMA synchronous = FULL")
                db.execute("PRAGMA wal_autocheckpoint = 0")
                yield SqliteSealing(db, at)
            finally:
                # Closing the last connection checkpoints, which must never race a commit of another process.
                with suppress(Held), locked(at, ".lock"):
                    db.close()
                db.close()  # who keeps it to itself has it open, so this is not the last
    except sqlite3.Error as error:
        raise StoreUnavailable(f"the audit database {at} takes no writes: {error}") from None


class SqliteReader:
    def __init__(self, db: sqlite3.Connection, wrong: str | None = "", *, lags: bool = False) -> None:
        self._db = db
        self._wrong = wrong
        self.lags = lags

    def one(self, sql: str, values: Sequence[Any] = (), /) -> Row | None:
        return self._db.execute(sql, values).fetchone()

    def all(self, sql: str, values: Sequence[Any] = (), /) -> Sequence[Row]:
        return self._db.execute(sql, values).fetchall()

    def rows(self, sql: str, values: Sequence[Any] = (), /) -> Iterator[Row]:
        return iter(self._db.execute(sql, values))

    def tuples(self, sql: str, values: Sequence[Any] = (), /) -> Iterator[tuple[Any, ...]]:
        cursor = self._db.cursor()
        cursor.row_factory = None
        return iter(cursor.execute(sql, values))

    def damage(self) -> Iterator[str]:
        if self._wrong:
            yield self._wrong
        for row in self._db.execute("PRAGMA integrity_check"):
            if row[0] != "ok":
                yield str(row[0])
        for row in self._db.execute("PRAGMA foreign_key_check"):
            yield f"row {row['rowid']} of {row['table']} refers to a row of {row['parent']} that is not there"

    def schema(self) -> dict[str, str]:
        rows = self._db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {row["name"]: row["sql"] for row in rows}


class SqliteSealing(SqliteReader):
    def __init__(self, db: sqlite3.Connection, at: Path) -> None:
        super().__init__(db)
        self._at = at

    @contextmanager
    def transaction(self) -> Generator[None]:
        with locked(self._at, ".lock"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def many(self, sql: str, rows: Sequence[Sequence[Any]], /) -> None:
        self._db.executemany(sql, rows)


@contextmanager
def locked(at: Path, suffix: str) -> Generator[None]:
    """A turn among all processes that share the file. Raises Held."""
    file = at.with_name(at.name + suffix)
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        take_turn(lock, file)
        yield
    finally:
        os.close(lock)
