"""What a process tells its disk: every write, truncation and sync of SQLite's files, in order.

`recording` puts a VFS of our own before SQLite's default one, in this very process and without a change to
what runs in it: `sqlite3` reaches its files through the library that it is linked with, and so does ctypes.
Files that Python writes itself are noted when it syncs them, names when their folder is synced. Nothing is
held back: whoever records writes as ever. See sqlite.org/c3ref/vfs.html and io_methods.html.
"""

from __future__ import annotations

import _sqlite3  # type: ignore[import-not-found]
import ctypes
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
_DELETE = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_FILE = CFUNCTYPE(c_int, c_void_p)
_WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)
_SYNC = CFUNCTYPE(c_int, c_void_p, c_int)
_REST_OF_A_FILE = 13
_SYSTEM_CALL = CFUNCTYPE(c_int, c_char_p, POINTER(c_int))
_SET_CALL = CFUNCTYPE(c_int, c_void_p, c_char_p, c_void_p)
_GET_CALL = CFUNCTYPE(c_void_p, c_void_p, c_char_p)


class _Methods(Structure):
    _fields_ = (
        ("iVersion", c_int),
        ("xClose", _FILE),
        ("xRead", c_void_p),
        ("xWrite", _WRITE),
        ("xTruncate", _TRUNCATE),
        ("xSync", _SYNC),
        ("rest", c_void_p * _REST_OF_A_FILE),
    )


class _File(Structure):
    _fields_ = (("pMethods", POINTER(_Methods)),)


class _Vfs(Structure):
    _fields_ = (
        ("iVersion", c_int),
        ("szOsFile", c_int),
        ("mxPathname", c_int),
        ("pNext", c_void_p),
        ("zName", c_char_p),
        ("pAppData", c_void_p),
        ("xOpen", _OPEN),
        ("xDelete", _DELETE),
        ("xAccess", c_void_p),
        ("xFullPathname", c_void_p),
        ("xDlOpen", c_void_p),
        ("xDlError", c_void_p),
        ("xDlSym", c_void_p),
        ("xDlClose", c_void_p),
        ("xRandomness", c_void_p),
        ("xSleep", c_void_p),
        ("xCurrentTime", c_void_p),
        ("xGetLastError", c_void_p),
        ("xCurrentTimeInt64", c_void_p),
        ("xSetSystemCall", _SET_CALL),
        ("xGetSystemCall", _GET_CALL),
        ("xNextSystemCall", c_void_p),
    )


@dataclass(frozen=True, slots=True)
class Write:
    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    file: int
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """All that was written to the file before is on the disk."""

    file: int


@dataclass(frozen=True, slots=True)
class Whole:
    """The file is on the disk, and this is all of it."""

    file: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Names:
    """What the folder holds. `synced`: that is on the disk."""

    files: dict[str, int]
    synced: bool


@dataclass(frozen=True, slots=True)
class Told:
    """Somebody relies on this from here on."""

    call_id: str
    state: str


Entry: TypeAlias = Write | Truncate | Sync | Whole | Names | Told


@dataclass(slots=True)
class Recording:
    """A tape of what happened in one folder. Files are numbered: a name, or an inode, may come again."""

    folder: Path
    tape: list[Entry] = field(default_factory=list[Entry])
    _numbers: dict[int, int] = field(default_factory=dict[int, int])
    _count: int = 0

    def told(self, call_id: str, state: str) -> None:
        self.tape.append(Told(call_id, state))

    def number(self, inode: int) -> int:
        if inode not in self._numbers:
            self._count += 1
            self._numbers[inode] = self._count
        return self._numbers[inode]

    def forget(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._numbers.pop(os.stat(path).st_ino, None)

    def names(self, *, synced: bool) -> None:
        files = {each.name: self.number(each.inode()) for each in os.scandir(self.folder)}
        self.tape.append(Names(files, synced))

    def holds(self, path: str) -> bool:
        return Path(path).parent == self.folder


def library() -> Any:
    """The SQLite that `sqlite3` runs on; None where its functions cannot be reached."""
    loaded = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    try:
        find: Any = loaded.sqlite3_vfs_find
    except AttributeError:
        return None
    find.restype = POINTER(_Vfs)
    return loaded


@contextmanager
def recording(folder: Path) -> Generator[Recording]:
    """Record what this process does to the files of `folder`."""
    sqlite = library()
    under = sqlite.sqlite3_vfs_find(None).contents
    to = Recording(folder.resolve())
    over = _Vfs.from_buffer_copy(under)
    over.zName, over.pNext = b"recording", None
    kept: list[Any] = []  # as long as SQLite may call it
    methods: dict[int, _Methods] = {}
    files: dict[int, int] = {}

    def opened(_vfs: int, name: int | None, file: int, flags: int, out: Any) -> int:
        status = under.xOpen(ctypes.addressof(over), name, file, flags, out)
        path = ctypes.string_at(name).decode() if name else ""
        at = _File.from_address(file)
        if status == 0 and at.pMethods and to.holds(path):
            files[file] = to.number(os.stat(path).st_ino)
            own = ctypes.addressof(at.pMethods.contents)
            if own not in methods:
                methods[own] = _recorded(at.pMethods.contents, files, to, kept)
            at.pMethods = ctypes.pointer(methods[own])
            to.names(synced=False)
        return status

    def deleted(_vfs: int, name: bytes, sync_folder: int) -> int:
        within = to.holds(name.decode())
        if within:
            to.forget(name.decode())
        status = under.xDelete(ctypes.addressof(over), name, sync_folder)
        if within:
            to.names(synced=bool(sync_folder))
        return status

    open_folder: Callable[..., int] = _SYSTEM_CALL(
        under.xGetSystemCall(ctypes.addressof(under), b"openDirectory")
    )

    def folder_opened(path: bytes, out: Any) -> int:
        # SQLite opens a folder in order to sync it, and for nothing else.
        if to.holds(path.decode()):
            to.names(synced=True)
        return open_folder(path, out)

    over.xOpen, over.xDelete = _OPEN(opened), _DELETE(deleted)
    instead = _SYSTEM_CALL(folder_opened)
    under.xSetSystemCall(ctypes.addressof(under), b"openDirectory", ctypes.cast(instead, c_void_p))
    sqlite.sqlite3_vfs_register(ctypes.byref(over), 1)
    try:
        with _python_too(to):
            yield to
    finally:
        sqlite.sqlite3_vfs_unregister(ctypes.byref(over))
        under.xSetSystemCall(ctypes.addressof(under), b"openDirectory", None)


def _recorded(under: _Methods, files: dict[int, int], to: Recording, kept: list[Any]) -> _Methods:
    """The methods of a file, telling the tape first."""
    over = _Methods.from_buffer_copy(under)
    kept.append(under)

    def write(file: int, data: int, amount: int, offset: int) -> int:
        to.tape.append(Write(files[file], offset, ctypes.string_at(data, amount)))
        return under.xWrite(file, data, amount, offset)

    def truncate(file: int, size: int) -> int:
        to.tape.append(Truncate(files[file], size))
        return under.xTruncate(file, size)

    def sync(file: int, flags: int) -> int:
        status = under.xSync(file, flags)
        to.tape.append(Sync(files[file]))
        return status

    def close(file: int) -> int:
        files.pop(file, None)
        return under.xClose(file)

    over.xWrite, over.xTruncate = _WRITE(write), _TRUNCATE(truncate)
    over.xSync, over.xClose = _SYNC(sync), _FILE(close)
    return over


@contextmanager
def _python_too(to: Recording) -> Generator[None]:
    """Files that Python writes: known when they are synced, and forgotten when they are removed."""
    fsync, unlink = os.fsync, os.unlink

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path == str(to.folder):
            to.names(synced=True)
        elif to.holds(path):
            to.tape.append(Whole(to.number(os.fstat(descriptor).st_ino), Path(path).read_bytes()))
            to.names(synced=False)

    def removed(path: Any, **more: Any) -> None:
        if to.holds(os.fspath(path)) and os.stat(path).st_nlink == 1:
            to.forget(os.fspath(path))
        unlink(path, **more)

    os.fsync, os.unlink = synced, removed  # type: ignore[assignment]
    try:
        yield
    finally:
        os.fsync, os.unlink = fsync, unlink
