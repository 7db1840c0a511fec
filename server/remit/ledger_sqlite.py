"""SQLite under the ledger: one file, shared by processes of one machine, one of which writes at a time.

Every transaction is BEGIN IMMEDIATE under an inter-process lock, which also covers checkpoints, so no
checkpoint ever races a commit (the SQLite WAL-reset bug, 3.7.0 to 3.51.2: sqlite.org/wal.html). That others
have written is told by `data_version`. Which process lives is told by the kernel: a lock on a file for each
life, dropped however the process ends, without a lease and without a clock.

The ledger owns its life.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from remit import redo
from remit.database import take_turn
from remit.errors import RemitError, StoreUnavailable
from remit.schema import must_be_known_still
from remit.writer import OthersWrite

#: Checkpoint once the write-ahead log is this long (bytes): it bounds recovery time and disk.
_WAL_MAX_BYTES = 8 * 2**20
_COMMITS_BETWEEN_LOOKS = 64
_BUSY_MS = 10_000
#: How long who ends waits for readers, and who writes for it.
_LAST_BUSY_MS = 1_000
#: File systems on which locks of other machines are not seen, or the log's shared memory is not shared
#: (sqlite.org/useovernet.html, sqlite.org/wal.html).
_NETWORK = frozenset(
    [
        "afs",
        "ceph",
        "cifs",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
        "lustre",
        "nfs",
        "nfs4",
        "smb3",
        "smbfs",
    ]
)
#: Which file system is mounted where (proc_pid_mountinfo(5)); other systems have no such file.
_MOUNTS = Path("/proc/self/mountinfo")


def must_be_local(folder: Path) -> None:
    """Raise RemitError when this folder is known to lie on another machine."""
    device = folder.stat().st_dev
    try:
        mounts = _MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return
    for mount in mounts:
        place, _, what = mount.partition(" - ")
        kind = what.partition(" ")[0]
        if kind in _NETWORK and place.split()[2] == f"{os.major(device)}:{os.minor(device)}":
            raise RemitError(
                f"{folder} is on a network file system ({kind}), whose locks do not keep machines apart:"
                " put store.path on a local disk, or use PostgreSQL (store.url)"
            )


class SqliteStore(redo.Statements):
    def __init__(self, path: Path, *, stream: str, relaxed: bool) -> None:
        self._path = path
        self._relaxed = relaxed
        self._liveness_file = _liveness_path(path, stream)
        self._wal = path.with_name(path.name + "-wal")
        self._lock_file = path.with_name(path.name + ".lock")
        self._lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        lives = _liveness_files(path)
        self._lock_out_others(wait=True)
        try:
            self._liveness = _hold_liveness(self._liveness_file)
            _remove_dead(lives)
            super().__init__(_connect(path))
            _make_room(self._db, self._wal)
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        self._name = str(path)
        #: Which file it is that is open.
        self._inode = os.stat(path).st_ino
        self._log = redo.Log(self._db)
        #: The write-ahead log still has pages from before something was overwritten.
        self._overwrote = False
        self._sync = "FULL"
        self._data_version = -1
        self._busy_ms = _BUSY_MS
        self._commits = 0
        self._commits_at_look = 0

    def begin(self, *, durable: bool, wait: bool) -> bool:
        if self._relaxed:
            self._set_sync("FULL" if durable else "NORMAL")
        self._lock_out_others(wait)
        try:
            self._must_be_in_place()
            self._begin(wait)
            return self.changed()
        except BaseException:
            self.roll_back()
            raise

    def commit(self, gathered: redo.Gathered, *, wait: bool) -> None:
        self.write(gathered)
        self._db.execute("COMMIT")
        self._commits += 1
        try:
            if wait:  # else the caller is in a hurry: `idle` looks
                self._checkpoint()
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def roll_back(self) -> None:
        try:
            self._data_version = -1
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def changed(self) -> bool:
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        if version == self._data_version:
            return False
        must_be_known_still(self.one("SELECT version_num FROM alembic_version"))
        self._data_version = version
        return True

    def one(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Row | None:
        return self._db.execute(sql, values).fetchone()

    def all(self, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        return self._db.execute(sql, values).fetchall()

    @property
    def holds_lease(self) -> bool:
        """The kernel holds it, for as long as the process lives."""
        return True

    def lease_until_us(self) -> None:
        """There is none."""

    def dead(self, stream: str) -> list[str]:
        rows = self.all("SELECT id FROM incarnations WHERE state = 'live' AND id <> ?", (stream,))
        gone = [row["id"] for row in rows if _is_dead(_liveness_path(self._path, row["id"]))]
        for each in gone:
            _remove(_liveness_path(self._path, each))
        return gone

    def new_life(self) -> None:
        """Who is taken for dead here is dead, or somebody has meddled with the files."""

    logs = True

    def log(self, body: bytes) -> None:
        self._log.write(body)

    def logged(self) -> list[bytes]:
        return self._log.read()

    def empty_log(self) -> None:
        self._log.empty()

    def overwrite_what_goes(self) -> None:
        self._log.wipe()
        self._overwrote = True

    def tidy(self) -> None:
        with suppress(OthersWrite):
            self._lock_out_others(wait=False)
            try:
                self._checkpoint()
                self._drop_what_was_overwritten(0)
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        try:
            self._lock_out_others(wait=True)
            self._drop_what_was_overwritten(_LAST_BUSY_MS)
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        finally:
            self._db.close()
            os.close(self._lock)
            _remove(self._liveness_file)
            os.close(self._liveness)

    def _lock_out_others(self, wait: bool) -> None:
        if wait:
            take_turn(self._lock, self._lock_file)
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OthersWrite from None

    def _must_be_in_place(self) -> None:
        """Raise StoreUnavailable where others would not see what is written: the open file has no name."""
        try:
            in_place = os.stat(self._name).st_ino == self._inode
        except FileNotFoundError:
            in_place = False
        except OSError:  # nobody can tell now
            return
        if not in_place:
            raise StoreUnavailable(
                f"{self._name} was removed or replaced while this process has it open: stop every process,"
                " put the right file there, and start again"
            )

    def _wait_for_others(self, busy_ms: int) -> None:
        if busy_ms != self._busy_ms:
            self._db.execute(f"PRAGMA busy_timeout = {busy_ms}")
            self._busy_ms = busy_ms

    def _begin(self, wait: bool) -> None:
        self._wait_for_others(_BUSY_MS if wait else 0)
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            # A program that knows nothing of the lock file, such as a person's SQL shell.
            if wait or error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            raise OthersWrite from None

    def _checkpoint(self) -> None:
        """Empty the write-ahead log where it is long, if that can be: what is committed stays so."""
        if self._commits - self._commits_at_look < _COMMITS_BETWEEN_LOOKS:
            return
        self._commits_at_look = self._commits
        with suppress(OSError, sqlite3.Error):  # the log grows; the next commit says what is wrong
            if os.stat(self._wal).st_size > _WAL_MAX_BYTES:
                # Who reads for long must not hold up who writes: what they still need stays for now.
                self._wait_for_others(0)
                self._db.execute("PRAGMA wal_checkpoint(RESTART)")

    def _drop_what_was_overwritten(self, busy_ms: int) -> None:
        """Cut the write-ahead log where it has pages from before, unless somebody reads them for longer."""
        if not self._overwrote:
            return
        self._wait_for_others(busy_ms)
        (busy, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy:
            self._overwrote = False
            _make_room(self._db, self._wal)

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
        "cache_size = -16384",
        "fullfsync = ON",  # on macOS, where a plain fsync leaves it in the drive's cache
        "foreign_keys = ON",
        redo.NOTHING_STAYS,
    ):
        db.execute(f"PRAGMA {pragma}")
    return db


def _make_room(db: sqlite3.Connection, wal: Path) -> None:
    """Let the write-ahead log have its full length from the start, where there is none yet.

    A file that grows makes each sync write the file system's own journal as well, which doubles what a
    commit costs. SQLite takes a log of zeros for an empty one (sqlite.org/fileformat2.html#walformat).
    """
    db.execute("BEGIN IMMEDIATE")  # so that nobody writes to the log
    with suppress(OSError), wal.open("r+b", buffering=0) as file:  # where that cannot be, it grows
        if os.fstat(file.fileno()).st_size == 0:
            page = bytes(mmap.PAGESIZE)
            try:
                # One at a time: what is written at once Linux may keep as one large folio, and go through
                # all of it for each page that is written later.
                for _ in range(0, _WAL_MAX_BYTES, len(page)):
                    file.write(page)
            except OSError:
                file.truncate(0)  # the rest of a disk is for the other files, too
            os.fsync(file.fileno())
    db.execute("ROLLBACK")


def _liveness_files(path: Path) -> list[Path]:
    """The files of all lives, of this database and of none that is named like one of them."""
    begin = f"{path.name}.inc-"
    with os.scandir(path.parent) as entries:
        return [
            Path(entry.path)
            for entry in entries
            if entry.name.startswith(begin) and "." not in entry.name.removeprefix(begin)
        ]


def _remove_dead(lives: Sequence[Path]) -> None:
    """Remove the files that a process left behind when it was killed, also one that never had a row.

    Within a turn at the database's lock. A file that nobody has locked belongs to nobody then: a life makes
    its file and locks it within one turn, before it has a row, and lets go of it only when it ends. Where
    there is still a row that says `live`, `dead` takes a file that is gone as it takes one that nobody holds.
    What is not empty is no file of ours.
    """
    for each in lives:
        if _is_dead(each) and _is_empty(each):
            _remove(each)


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:  # it is gone, or nobody can tell
        return False


def _liveness_path(path: Path, incarnation: str) -> Path:
    return path.with_name(f"{path.name}.inc-{incarnation}")


def _hold_liveness(path: Path) -> int:
    """A lock that the kernel drops when this process ends, however it ends: no lease, no clock."""
    held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return held


def _remove(liveness: Path) -> None:
    with suppress(OSError):  # the folder takes no changes just now: nobody asks for this file any more
        liveness.unlink()


def _is_dead(path: Path) -> bool:
    try:
        probe = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:  # nobody can tell now
        return False
    try:
        fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(probe)
    return True
