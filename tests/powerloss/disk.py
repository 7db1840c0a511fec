"""What may be on a disk when the power fails: all that was synced, and any of the rest.

Of what was written and not synced each sector is there or not, by itself; a sector is never half there. A
name that came or went since its folder was synced is there or not. What was cut off may be there again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.powerloss.recording import Entry, Names, Sync, Told, Truncate, Whole, Write

_SECTORS = (512, 4096)
#: How much of what was not synced has arrived: the cache was not written back, or wholly, or was under way.
_ARRIVED = (0.0, 0.1, 0.5, 0.9, 1.0)
_SHM_BYTES = 32768


class Disk:
    """A disk to which a tape is played, entry by entry. One that `lies` never syncs what it is told to."""

    def __init__(self, *, lies: bool = False) -> None:
        self._lies = lies
        self._there: dict[int, bytearray] = {}
        self._under_way: dict[int, list[Write | Truncate]] = {}
        self._names: dict[str, int] = {}
        self._names_there: dict[str, int] = {}
        #: What somebody relies on: each call, and the last that was told of it.
        self.told: dict[str, str] = {}

    def play(self, entry: Entry) -> None:
        match entry:
            case Write() | Truncate():
                self._under_way.setdefault(entry.file, []).append(entry)
            case Sync() if not self._lies:
                for each in self._under_way.pop(entry.file, ()):
                    _apply(self._there.setdefault(entry.file, bytearray()), each)
            case Whole():
                self._under_way.pop(entry.file, None)
                self._there[entry.file] = bytearray(entry.data)
            case Names():
                self._names = entry.files
                if entry.synced:
                    self._names_there = entry.files
            case Told():
                self.told[entry.call_id] = entry.state
            case _:
                pass

    def cut(self, to: Path, rng: random.Random) -> None:
        """Write into an empty folder what somebody may find who switches the power on again."""
        sector, arrived = rng.choice(_SECTORS), rng.choice(_ARRIVED)
        for name in sorted({*self._names, *self._names_there}):
            new, old = self._names.get(name), self._names_there.get(name)
            file = new if rng.random() < arrived else old
            if file is None:
                continue
            content = bytearray(self._there.get(file, b""))
            for each in self._under_way.get(file, ()):
                for part in _parts(each, sector):
                    if rng.random() < arrived:
                        _apply(content, part)
            if name.endswith("-shm"):  # memory that processes shared: whatever it held
                content = bytearray(rng.randbytes(_SHM_BYTES))
            (to / name).touch(0o600)
            (to / name).write_bytes(content)


def _parts(entry: Write | Truncate, sector: int) -> Iterator[Write | Truncate]:
    if isinstance(entry, Truncate):
        yield entry
        return
    at, end = entry.offset, entry.offset + len(entry.data)
    while at < end:
        until = min(end, (at // sector + 1) * sector)
        yield Write(entry.file, at, entry.data[at - entry.offset : until - entry.offset])
        at = until


def _apply(content: bytearray, entry: Write | Truncate) -> None:
    if isinstance(entry, Truncate):
        del content[entry.size :]
        return
    if len(content) < entry.offset:
        content.extend(bytes(entry.offset - len(content)))
    content[entry.offset : entry.offset + len(entry.data)] = entry.data


def cuts(tape: Sequence[Entry], count: int, rng: random.Random) -> list[int]:
    """Where the power fails: before so many of the entries, anywhere, each once if there are enough."""
    return sorted(rng.sample(range(1, len(tape) + 1), min(count, len(tape))))
