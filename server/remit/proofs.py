"""What the Merkle log proves: that nothing was changed since it was sealed, and that an event is in it.

Reading only. The tree is hashed anew from the events and compared with the stored tiles, with every stored
checkpoint, and with those that were kept elsewhere: against the latter no rewriting of the file helps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from remit import merkle
from remit.audit import Finding, Progress, ignored
from remit.chain import GENESIS, EventRow, entry
from remit.checkpoint import (
    BadNote,
    Checkpoint,
    Verifier,
    open_checkpoint,
    read_note,
    read_verifier,
    split_notes,
)
from remit.errors import RemitError
from remit.records import Records, as_event

#: The form of a proof, as `remit-verify` reads it.
PROOF = "remit-proof/1"
#: Bytes of a full tile.
_WHOLE = merkle.TILE_WIDTH * merkle.HASH_BYTES


def read_checkpoints(text: str, file: Path, verifiers: Sequence[Verifier]) -> list[Checkpoint]:
    """The checkpoints of a file, one note after another. Raises RemitError when one of them is not signed."""
    found: list[Checkpoint] = []
    for number, note in enumerate(split_notes(text), start=1):
        try:
            found.append(open_checkpoint(note, verifiers))
        except BadNote as error:
            raise RemitError(f"checkpoint {number} of {file} cannot be relied on: {error}") from None
    if not found:
        raise RemitError(f"there is no checkpoint in {file}")
    return found


def known_keys(records: Records) -> list[Verifier]:
    """The keys that the database itself names."""
    found: list[Verifier] = []
    for row in records.rows("SELECT verifier FROM log_keys ORDER BY from_size"):
        try:
            found.append(read_verifier(str(row["verifier"])))
        except BadNote:
            continue  # what it signed is found to be unsigned
    return found


def size_of(records: Records) -> int:
    """How many events are sealed."""
    row = next(records.rows("SELECT * FROM log_runs ORDER BY first_leaf DESC LIMIT 1"), None)
    return row["first_leaf"] + row["events"] if row else 0


def newest_checkpoint(records: Records) -> tuple[str, int]:
    """The note and its size. Raises RemitError when nothing was sealed yet."""
    row = next(records.rows("SELECT note, size FROM log_checkpoints ORDER BY size DESC LIMIT 1"), None)
    if row is None:
        raise RemitError("nothing is sealed yet: `remit audit checkpoint` seals what there is")
    # A witness's signature follows that of the log, so together they are one note.
    witnessed = records.rows("SELECT signatures FROM log_anchors WHERE size = ?", (row["size"],))
    return row["note"] + "".join(each["signatures"] for each in witnessed), row["size"]


def in_log_order(records: Records) -> Iterator[EventRow]:
    """Every sealed event, in the order of the leaves."""
    for run in records.rows("SELECT stream, first_seq, events FROM log_runs ORDER BY first_leaf"):
        for row in records.rows(
            "SELECT * FROM events WHERE stream = ? AND seq >= ? AND seq < ? ORDER BY seq",
            (run["stream"], run["first_seq"], run["first_seq"] + run["events"]),
        ):
            yield as_event(row)


def published(records: Records) -> Iterator[tuple[str, bytes]]:
    """The newest checkpoint, the tiles and the entries as files below a prefix (c2sp.org/tlog-tiles)."""
    note, size = newest_checkpoint(records)
    yield "checkpoint", note.encode()
    read = tiles_of(records)
    for level, index, width in merkle.tiles_of(size):
        yield merkle.tile_path(level, index, width), read(level, index)[: width * merkle.HASH_BYTES]
    events = islice(in_log_order(records), size)
    index = 0
    while entries := [
        entry(event.stream, event.seq, event.hash).encode() for event in islice(events, merkle.TILE_WIDTH)
    ]:
        yield merkle.tile_path(None, index, len(entries)), merkle.bundle(entries)
        index += 1


def prove(records: Records, call_id: str) -> dict[str, Any]:
    """The events of a call and what proves each to be in the log, for `remit-verify`.

    Raises RemitError when one of them is not sealed yet.
    """
    note, size = newest_checkpoint(records)
    read = tiles_of(records)
    proven: list[dict[str, Any]] = []
    for row in records.rows("SELECT * FROM events WHERE call_id = ? ORDER BY rowid", (call_id,)):
        event = as_event(row)
        leaf = _leaf_of(records, event)
        if leaf is None or leaf >= size:
            raise RemitError(
                "not all of this call is sealed yet: wait for the next checkpoint, or make one with "
                "`remit audit checkpoint`"
            )
        before = next(
            records.rows(
                "SELECT hash FROM events WHERE stream = ? AND seq = ?", (event.stream, event.seq - 1)
            ),
            None,
        )
        path = merkle.inclusion_proof(read, leaf, size)
        proven.append(
            {
                "event": event.body,
                "previous": before["hash"] if before else GENESIS,
                "hash": event.hash,
                "leaf": leaf,
                "path": [sibling.hex() for sibling in path],
            }
        )
    return {"format": PROOF, "call_id": call_id, "checkpoint": note, "events": proven}


def verify_log(
    records: Records,
    kept: Sequence[Checkpoint] = (),
    verifiers: Sequence[Verifier] = (),
    progress: Progress = ignored,
) -> Iterator[Finding]:
    """Every disagreement of the events with the log, and of the log with the checkpoints `kept` elsewhere.

    Stored checkpoints must be signed by one of `verifiers`; without any, by a key that the database names.
    An event that is not what was sealed is named once, and what was sealed is used in its place.
    """
    log = _Rehashed(records, kept)
    sealed: dict[str, int] = {}
    (tiles,) = records.rows("SELECT COUNT(*) AS leaf_tiles FROM log_tiles WHERE level = 0")
    most = tiles["leaf_tiles"] * merkle.TILE_WIDTH
    for run in records.rows("SELECT * FROM log_runs ORDER BY first_leaf"):
        stream, first, count = run["stream"], run["first_seq"], run["events"]
        if (
            (run["first_leaf"], first) != (log.size, sealed.get(stream, 0) + 1)
            or not isinstance(count, int)
            or not 0 < count <= most - log.size
        ):
            yield from log.flush()
            yield Finding(
                where=f"log, entry {log.size}", what="the register of what was sealed is not what was written"
            )
            break
        sealed[stream] = first + count - 1
        hashes: dict[object, Any] = dict(
            records.tuples(
                "SELECT seq, hash FROM events WHERE stream = ? AND seq >= ? AND seq < ?",
                (stream, first, first + count),
            )
        )
        progress(count)
        seq, end = first, first + count
        while seq < end:
            some = range(seq, min(seq + log.room, end))
            log.add(stream, some, hashes)
            seq = some.stop
            if log.room == merkle.TILE_WIDTH:
                yield from log.flush()
    yield from log.flush()
    yield from log.end()
    yield from _stored_checkpoints(records, log, verifiers or known_keys(records))
    yield from _stored_keys(records)
    for row in records.rows(
        "SELECT anchor, size FROM log_anchors WHERE size NOT IN (SELECT size FROM log_checkpoints)"
    ):
        what = f"there was no checkpoint of {row['size']} entries to be put there"
        yield Finding(where=f"anchor {row['anchor']}", what=what)


class _Rehashed:
    """The tree, hashed anew while events come by, a tile at a time, beside the stored tiles."""

    def __init__(self, records: Records, kept: Sequence[Checkpoint]) -> None:
        self._frontier = merkle.Frontier()
        self._read = tiles_of(records)
        #: The events of the tile under way: stream, number, and hash unless it is gone.
        self._waiting: list[tuple[str, int, str | None]] = []
        self._kept: dict[int, list[Checkpoint]] = {}
        for checkpoint in kept:
            self._kept.setdefault(checkpoint.size, []).append(checkpoint)
        self._good = 0
        self._wanted = {row["size"] for row in records.rows("SELECT size FROM log_checkpoints")}
        #: Every size at which a root is asked for.
        self._named = self._wanted | self._kept.keys()
        #: The root at each size that some stored checkpoint names.
        self.roots: dict[int, str] = {}
        #: What each full tile of level 0 makes of level 1; nothing where what is stored is no whole tile.
        self._tile_roots: list[bytes] = []

    @property
    def size(self) -> int:
        return self._frontier.size + len(self._waiting)

    @property
    def room(self) -> int:
        """How many more events the tile under way takes: all of one when it is full, and `flush` is due."""
        return merkle.TILE_WIDTH - self.size % merkle.TILE_WIDTH

    def add(self, stream: str, seqs: range, hashes: Mapping[object, Any]) -> None:
        """Append events of a stream, as many as there is room for."""
        self._waiting += [(stream, seq, hashes.get(seq)) for seq in seqs]

    def flush(self) -> Iterator[Finding]:
        """Compare what waits with the tile; what differs from it is told, and taken from the tile."""
        first, offset = divmod(self._frontier.size, merkle.TILE_WIDTH)
        stored = self._read(0, first)[offset * merkle.HASH_BYTES :]
        leaves = [
            merkle.leaf_hash(entry(stream, seq, str(digest)).encode())
            for stream, seq, digest in self._waiting
        ]
        hashes = b"".join(leaves)
        if hashes != stored[: len(leaves) * merkle.HASH_BYTES]:
            for number, (stream, seq, digest) in enumerate(self._waiting):
                there = stored[number * merkle.HASH_BYTES : (number + 1) * merkle.HASH_BYTES]
                if leaves[number] != there:
                    what = "it is not what was sealed" if digest else "it was taken out after it was sealed"
                    yield Finding(where=f"stream {stream}, event {seq}", what=what)
                    leaves[number] = there or leaves[number]
            hashes = b"".join(leaves)
        sizes = range(self._frontier.size + 1, self.size + 1)
        steps = [(at, leaf, 0) for at, leaf in zip(self._waiting, leaves, strict=True)]
        if len(leaves) == merkle.TILE_WIDTH:
            root = merkle.subtree_root(hashes)
            self._tile_roots.append(root if len(stored) == _WHOLE else b"")
            if self._named.isdisjoint(sizes[:-1]):
                steps = [(self._waiting[-1], root, merkle.TILE_HEIGHT)]
        for (stream, seq, _), digest, height in steps:
            self._frontier.add(digest, height)
            if self._frontier.size in self._wanted:
                self.roots[self._frontier.size] = self._frontier.root().hex()
            if self._frontier.size in self._kept:
                yield from self._compare(f"event {seq} of stream {stream}")
        self._waiting.clear()

    def _compare(self, newest: str) -> Iterator[Finding]:
        size, root = self._frontier.size, self._frontier.root()
        for checkpoint in self._kept.pop(size):
            if checkpoint.root == root:
                self._good = size
                continue
            yield Finding(
                where=f"log, entries {self._good} to {size - 1}",
                what=f"rewritten: a checkpoint of {size} entries that was kept elsewhere has another root"
                f" (the last of them is {newest})",
            )

    def end(self) -> Iterator[Finding]:
        for checkpoint in self._kept.pop(0, ()):
            if checkpoint.root != merkle.EMPTY_ROOT:
                yield Finding(where="log", what="a checkpoint of no entries has a root of its own")
        for size in sorted(self._kept):
            yield Finding(
                where=f"log, entry {self.size}",
                what=f"cut off: a checkpoint that was kept elsewhere has {size} entries, the log {self.size}",
            )
        for level, index, width in merkle.tiles_of(self.size):
            if level and self._derived(level, index, width) != self._read(level, index):
                yield Finding(where=f"log, tile {index} of level {level}", what="it is not what was sealed")

    def _derived(self, level: int, index: int, width: int) -> bytes:
        """A tile from those below it."""
        first = index * merkle.TILE_WIDTH
        if level == 1:
            return b"".join(self._tile_roots[first : first + width])
        below = [self._read(level - 1, first + number) for number in range(width)]
        return b"".join(merkle.subtree_root(tile) if len(tile) == _WHOLE else b"" for tile in below)


def _stored_checkpoints(records: Records, log: _Rehashed, verifiers: Sequence[Verifier]) -> Iterator[Finding]:
    """The checkpoints in the database against the tree. Of those with a wrong root only the first is told."""
    last, origin, diverged = 0, None, False
    for row in records.rows("SELECT * FROM log_checkpoints ORDER BY size"):
        where = f"checkpoint of {row['size']} entries"
        try:
            checkpoint = open_checkpoint(row["note"], verifiers)
        except (BadNote, TypeError, AttributeError) as error:
            yield Finding(where=where, what=str(error))
            continue
        if (checkpoint.size, checkpoint.root.hex()) != (row["size"], row["root"]):
            yield Finding(where=where, what="its columns are not what was signed")
        if origin not in (None, checkpoint.origin):
            yield Finding(where=where, what=f"it is of another log than the one before, {checkpoint.origin}")
        origin = checkpoint.origin
        if not diverged and log.roots.get(checkpoint.size) != checkpoint.root.hex():
            diverged = True
            yield Finding(
                where=where,
                what=f"something among entries {last} to {checkpoint.size - 1} is not what was signed",
            )
        last = checkpoint.size
    if last < log.size:
        yield Finding(where=f"log, entry {last}", what="no checkpoint covers it and those after it")


def _stored_keys(records: Records) -> Iterator[Finding]:
    """The keys in the database that did not sign first what they are said to, or not when."""
    for row in records.rows("SELECT verifier, from_size, at_us FROM log_keys"):
        newest = list(
            records.rows(
                "SELECT size, note, at_us FROM log_checkpoints WHERE size <= ? ORDER BY size DESC LIMIT 2",
                (row["from_size"],),
            )
        )
        signed = [_has_signed(row["verifier"], checkpoint["note"]) for checkpoint in newest]
        if signed not in ([True], [True, False]) or (newest[0]["size"], newest[0]["at_us"]) != (
            row["from_size"],
            row["at_us"],
        ):
            what = "it did not sign the first time at the checkpoint, or the time, that its row says"
            yield Finding(where=f"log key {row['verifier']}", what=what)


def _has_signed(verifier: Any, note: Any) -> bool:
    try:
        read_note(note, [read_verifier(verifier)])
    except (BadNote, TypeError, AttributeError):
        return False
    return True


def tiles_of(records: Records) -> merkle.ReadTile:
    """The stored tiles; an absent one, or one that is no bytes, is empty."""

    def read(level: int, index: int) -> bytes:
        row = next(
            records.rows("SELECT hashes FROM log_tiles WHERE level = ? AND tile = ?", (level, index)), None
        )
        return row["hashes"] if row and isinstance(row["hashes"], bytes) else b""

    return read


def _leaf_of(records: Records, event: EventRow) -> int | None:
    run = next(
        records.rows(
            "SELECT * FROM log_runs WHERE stream = ? AND first_seq <= ? ORDER BY first_seq DESC LIMIT 1",
            (event.stream, event.seq),
        ),
        None,
    )
    if run is None or event.seq >= run["first_seq"] + run["events"]:
        return None
    return run["first_leaf"] + event.seq - run["first_seq"]
