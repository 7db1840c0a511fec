"""Sealing: committed events become the leaves of one Merkle log, and its root is signed.

The sealer comes after the fact and beside the calls: it reads what was committed, and writes tiles and a
checkpoint in one short transaction of its own. Leaves are numbered in the order of sealing: stream by
stream, and in a stream by number. Of several processes on one file, one seals at a time; whoever comes
next goes on where the last one ended. Proofs and verification are `proofs.py`.

The private key lies beside the database, in a file for its owner's eyes only. Who has it and the database
can sign another history; that one disagrees with every checkpoint that was put elsewhere before.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from remit import merkle
from remit.chain import entry
from remit.checkpoint import BadNote, Checkpoint, Signer, new_signer, read_signer, sign
from remit.database import Location, Reader, Sealing, beside, reading, sealing
from remit.errors import RemitError
from remit.files import put_whole
from remit.ids import Clock, now_us

#: Most events that one checkpoint adds: bounds memory, and the length of the write.
_BATCH_MAX = 1 << 16
_KEY_BYTES_MAX = 65536
_NOT_AS_SIGNED = "the log is not what was signed last, so nothing more is sealed: see `remit audit verify`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """The newest checkpoint, and how many events were sealed just now."""

    note: str
    size: int
    new: int


class SealRefused(RemitError):
    """What is stored does not go with what was signed last, or the key is not fit for use."""


def seal(at: Location, *, clock: Clock = now_us) -> Sealed | None:
    """Seal every committed event of the database at `at`; None when there has never been one.

    Waits for another process that is sealing. Raises SealRefused or StoreUnavailable; nothing is signed then.
    """
    with sealing(at) as db:
        signers = _signers(at, db)
        before = _size(db)
        while batch := _unsealed(db):
            _append(db, at, batch, signers, clock())
        row = db.one("SELECT note, size FROM log_checkpoints ORDER BY size DESC LIMIT 1")
        return Sealed(note=row["note"], size=row["size"], new=row["size"] - before) if row else None


def rotate(at: Location, *, clock: Clock = now_us) -> tuple[Signer, tuple[Signer, ...]]:
    """Make a new key beside those in use; the next checkpoints are signed by all of them."""
    with sealing(at):
        old = read_keys(at)
        name = old[-1].name if old else _new_name()
        new = new_signer(name)
        _write_keys(at, (*old, new))
        return new, old


def retire(at: Location, keep: Signer) -> None:
    """Destroy every private key but one. What they signed stays valid."""
    with sealing(at):
        _write_keys(at, (keep,))


def read_keys(at: Location) -> tuple[Signer, ...]:
    """The private keys of the log of the database at `at`, oldest first. Raises SealRefused."""
    file = key_file(at)
    try:
        with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), encoding="ascii") as opened:
            status = os.fstat(opened.fileno())
            text = opened.read(_KEY_BYTES_MAX)
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError):
        raise SealRefused(f"{file} cannot be read as a plain file of text") from None
    if status.st_mode & 0o077 or status.st_uid != os.geteuid():
        raise SealRefused(f"{file} must belong to you alone: chown it to the server's user and chmod 600 it")
    try:
        return tuple(read_signer(line) for line in text.splitlines() if line)
    except BadNote:
        raise SealRefused(f"{file} is damaged: restore it from a backup") from None


def key_file(at: Location) -> Path:
    return beside(at, ".log-key")


@contextmanager
def read_tiles(at: Location) -> Generator[merkle.ReadTile]:
    """The tiles of the database at `at`, as of now."""
    with reading(at, newest=False) as db:
        yield tile_reader(db)


def anchored(at: Location, anchor: str) -> tuple[int, int]:
    """The newest checkpoint that is known to be at this anchor, and since when; 0: none is."""
    with reading(at, newest=False) as db:
        row = db.one(
            "SELECT size, at_us FROM log_anchors WHERE anchor = ? ORDER BY size DESC LIMIT 1", (anchor,)
        )
        return (row["size"], row["at_us"]) if row else (0, 0)


def note_anchored(at: Location, anchor: str, size: int, signatures: str, at_us: int) -> None:
    """Remember that the checkpoint of this size is at the anchor, and what was signed there."""
    with sealing(at) as db, db.transaction():
        db.many(
            "INSERT INTO log_anchors (anchor, size, at_us, signatures) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (anchor, size) DO UPDATE"
            " SET at_us = excluded.at_us, signatures = excluded.signatures",
            [(anchor, size, at_us, signatures)],
        )


def _signers(at: Location, db: Reader) -> tuple[Signer, ...]:
    signers = read_keys(at)
    if not signers:
        if _size(db):
            raise SealRefused(
                f"{key_file(at)} is gone: restore it from a backup, or make a new key with "
                "`remit audit key rotate` and tell those who verify"
            )
        signers = (new_signer(_new_name()),)
        _write_keys(at, signers)
    _must_not_be_replaced(at, db, {str(signer.verifier) for signer in signers})
    return signers


def _must_not_be_replaced(at: Location, db: Reader, mine: Collection[str]) -> None:
    """Raise SealRefused where the log is signed with a newer key: this one is not destroyed here as yet."""
    known = db.all("SELECT verifier, from_size FROM log_keys ORDER BY from_size DESC")
    newest = {row["verifier"] for row in known if row["from_size"] == known[0]["from_size"]}
    if newest and newest.isdisjoint(mine) and {row["verifier"] for row in known}.issuperset(mine):
        raise SealRefused(
            f"{key_file(at)} is the key from before `remit audit key rotate`: copy the new one from the"
            " replica where that was run, or, if it is lost, make another with the same command"
        )


def _new_name() -> str:
    """What this log calls itself in its checkpoints: no other one is called so."""
    return f"remit-log/{secrets.token_hex(6)}"


def _write_keys(at: Location, signers: Sequence[Signer]) -> None:
    put_whole(key_file(at), "".join(f"{signer.encoded()}\n" for signer in signers).encode("ascii"))


def _size(db: Reader) -> int:
    row = db.one("SELECT first_leaf + events AS size FROM log_runs ORDER BY first_leaf DESC LIMIT 1")
    return row["size"] if row else 0


def _unsealed(db: Reader) -> list[tuple[str, int, list[str]]]:
    """Stream, first number and hashes of events that are not sealed yet, in the order of their leaves."""
    batch: list[tuple[str, int, list[str]]] = []
    left = _BATCH_MAX
    streams = db.all(
        "SELECT id, sealed FROM (SELECT id, last_seq, COALESCE((SELECT first_seq + events - 1 FROM log_runs"
        " WHERE stream = incarnations.id ORDER BY first_seq DESC LIMIT 1), 0) AS sealed FROM incarnations)"
        " AS streams WHERE last_seq > sealed ORDER BY id"
    )
    for stream, sealed in streams:
        hashes: list[str] = []
        rows = db.all(
            "SELECT seq, hash FROM events WHERE stream = ? AND seq > ? ORDER BY seq LIMIT ?",
            (stream, sealed, left),
        )
        for row in rows:
            # What is missing was taken out: verification names it, and nothing is sealed over it.
            if row["seq"] != sealed + len(hashes) + 1:
                break
            hashes.append(row["hash"])
        if hashes:
            batch.append((stream, sealed + 1, hashes))
        left -= len(hashes)
        if not left:
            break
    return batch


def _append(
    db: Sealing,
    at: Location,
    batch: Sequence[tuple[str, int, list[str]]],
    signers: Sequence[Signer],
    at_us: int,
) -> None:
    size = _size(db)
    _must_follow(db, size)
    leaves = [
        merkle.leaf_hash(entry(stream, seq, digest).encode())
        for stream, first_seq, hashes in batch
        for seq, digest in enumerate(hashes, start=first_seq)
    ]
    runs: list[tuple[int, str, int, int]] = []
    first_leaf = size
    for stream, first_seq, hashes in batch:
        runs.append((first_leaf, stream, first_seq, len(hashes)))
        first_leaf += len(hashes)
    tiles = merkle.grown(tile_reader(db), size, leaves)

    def read(level: int, index: int) -> bytes:
        return tiles.get((level, index)) or tile_reader(db)(level, index)

    try:
        checkpoint = Checkpoint(origin=signers[-1].name, size=first_leaf, root=merkle.root(read, first_leaf))
    except ValueError:
        raise SealRefused(_NOT_AS_SIGNED) from None
    note = sign(checkpoint.text(), signers)
    with db.transaction():
        db.many("INSERT INTO log_runs (first_leaf, stream, first_seq, events) VALUES (?, ?, ?, ?)", runs)
        db.many(
            "INSERT INTO log_tiles (level, tile, hashes) VALUES (?, ?, ?)"
            " ON CONFLICT (level, tile) DO UPDATE SET hashes = excluded.hashes",
            [(*key, hashes) for key, hashes in tiles.items()],
        )
        db.many(
            "INSERT INTO log_checkpoints (size, root, note, at_us) VALUES (?, ?, ?, ?)",
            [(checkpoint.size, checkpoint.root.hex(), note, at_us)],
        )
        known = {row["verifier"] for row in db.all("SELECT verifier FROM log_keys")}
        new = [str(signer.verifier) for signer in signers if str(signer.verifier) not in known]
        db.many(
            "INSERT INTO log_keys (verifier, from_size, at_us) VALUES (?, ?, ?)",
            [(verifier, checkpoint.size, at_us) for verifier in new],
        )


def _must_follow(db: Reader, size: int) -> None:
    """A log signs nothing that does not begin with what it signed last (c2sp.org/tlog-checkpoint)."""
    row = db.one("SELECT size, root FROM log_checkpoints ORDER BY size DESC LIMIT 1")
    try:
        root = merkle.root(tile_reader(db), size).hex()
        sound = (size, root) == (row["size"], row["root"]) if row else size == 0
    except ValueError:
        sound = False
    if not sound:
        raise SealRefused(_NOT_AS_SIGNED)


def tile_reader(db: Reader) -> merkle.ReadTile:
    """Tiles as they are stored; an absent one is empty."""

    def read(level: int, index: int) -> bytes:
        row = db.one("SELECT hashes FROM log_tiles WHERE level = ? AND tile = ?", (level, index))
        return row["hashes"] if row and isinstance(row["hashes"], bytes) else b""

    return read
