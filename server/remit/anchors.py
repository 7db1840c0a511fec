"""Putting checkpoints where whoever can write the database cannot reach: a file, a witness, a timestamp.

An anchor gets the newest checkpoint after each sealing, and only when there is a new one. One that fails
holds up neither the others nor any call; the next checkpoint covers what it missed. The protocol of
witnesses is c2sp.org/tlog-witness.
"""

from __future__ import annotations

import errno
import os
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread

from remit import merkle
from remit.checkpoint import BadNote, Verifier, cosigned_at, read_witness, signature_lines
from remit.config import Anchor
from remit.database import Location
from remit.ids import Clock, now_us
from remit.outside import asking
from remit.sealer import Sealed, anchored, note_anchored, read_tiles, seal
from remit.timestamps import NotStamped, stamp

if TYPE_CHECKING:
    import httpx2

_TIMEOUT_S = 10
_ANSWER_BYTES_MAX = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchored:
    """What became of the newest checkpoint at one anchor; `error` says why it is not there."""

    anchor: str
    size: int
    error: str | None


class _Refused(Exception):
    """The witness did not sign; `str()` says why."""


async def seal_and_anchor(
    at: Location, anchors: Sequence[Anchor], *, clock: Clock = now_us, waiting: bool = True
) -> tuple[Sealed | None, list[Anchored]]:
    """Seal what was committed, and put the checkpoint where it is missing. Raises what `seal` raises.

    An authority is asked for a timestamp as often as it may be; without `waiting`, now.
    """
    sealed = await anyio.to_thread.run_sync(lambda: seal(at, clock=clock))
    if sealed is None:
        return None, []
    return sealed, [await _anchor(at, anchor, sealed, clock, waiting) for anchor in anchors]


async def _anchor(at: Location, anchor: Anchor, sealed: Sealed, clock: Clock, waiting: bool) -> Anchored:
    name = anchor.witness or str(anchor.timestamp.url if anchor.timestamp else anchor.file)
    there, at_us = await anyio.to_thread.run_sync(anchored, at, name)
    error = None
    pause_s = anchor.timestamp.every if anchor.timestamp and waiting else 0
    if there < sealed.size and at_us + pause_s * 1_000_000 <= clock():
        signatures = ""
        try:
            if anchor.file:
                await anyio.to_thread.run_sync(_append, anchor.file, sealed.note)
            elif anchor.timestamp:
                await stamp(sealed.note, sealed.size, anchor.timestamp)
            else:
                signatures = await _witnessed(at, name, read_witness(anchor.key or ""), there, sealed)
            await anyio.to_thread.run_sync(note_anchored, at, name, sealed.size, signatures, clock())
            there = sealed.size
        except TimeoutError:
            error = "it did not answer in time"
        except (OSError, NotStamped, _Refused) as failure:
            error = str(failure)
    return Anchored(anchor=name, size=there, error=error)


def unfit(anchor: Anchor, at: Location) -> Iterator[tuple[str, str, bool]]:
    """What is wrong with an anchor, as far as that shows without the network.

    Each is a setting below the anchor, a sentence, and whether it may work all the same.
    """
    if anchor.file:
        yield from (("file", *found) for found in _unfit_place(anchor.file, at))
    if stamps := anchor.timestamp:
        from cryptography.x509 import load_pem_x509_certificates

        if find_spec("rfc3161_client") is None:
            yield "timestamp", "timestamps need the timestamps extra: pip install 'remit[timestamps]'", False
        try:
            load_pem_x509_certificates(stamps.roots.read_bytes())
        except (OSError, ValueError):
            yield "timestamp.roots", f"{stamps.roots} cannot be read as certificates in PEM", False
        yield from (("timestamp.folder", *found) for found in _unfit_place(stamps.folder / "0.tsr", at))


def _unfit_place(file: Path, at: Location) -> Iterator[tuple[str, bool]]:
    """Whether this file can be written, and is out of reach for who writes the database."""
    folder = file.parent
    try:
        is_there, is_taken = folder.is_dir(), file.exists()
    except PermissionError:
        yield f"{str(folder)!r} cannot be looked into by this user; let them with chmod or chown", False
        return
    if not is_there:
        yield f"there is no folder {str(folder)!r}; make it, or name another", False
    elif is_taken and not file.is_file():
        yield f"{str(file)!r} is not a file; name the file itself", False
    elif not (os.access(file, os.W_OK) if is_taken else os.access(folder, os.W_OK | os.X_OK)):
        yield f"{str(file)!r} cannot be written by this user; let them with chmod or chown", False
    elif isinstance(at, Path) and at.parent.is_dir() and folder.stat().st_dev == at.parent.stat().st_dev:
        yield (
            f"{str(folder)!r} is on the same volume as the database, so whoever can change the one can"
            " likely change the other: name a place elsewhere",
            True,
        )


def _append(file: Path, note: str) -> None:
    content = note.encode()
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with open(descriptor, "ab", buffering=0) as opened:
        written = opened.write(content)
        try:
            if written < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):  # half of a checkpoint would spoil the next one
                opened.truncate(opened.tell() - written)
            raise


async def _witnessed(at: Location, prefix: str, witness: Verifier, there: int, sealed: Sealed) -> str:
    """The signature lines of the witness. Raises _Refused, OSError or TimeoutError."""
    async with asking(_Refused, timeout_s=_TIMEOUT_S) as client:
        status, answer = await _add_checkpoint(client, at, prefix, there, sealed)
        if status == 409 and re.fullmatch(r"[0-9]{1,19}\n?", answer):
            # It knows another checkpoint than we noted: an answer of it was lost, or a backup restored.
            there = int(answer)
            status, answer = await _add_checkpoint(client, at, prefix, there, sealed)
    if status != 200:
        raise _Refused(f"it answered {status}")
    return _signed(sealed.note, answer, witness)


def _signed(note: str, answer: str, witness: Verifier) -> str:
    """Those lines of the answer that are its own, and true; others are nobody's. Raises _Refused."""
    both = f"{note}{answer}"
    try:
        if signature_lines(both) != f"{signature_lines(note)}{answer}":
            raise BadNote("it is more than signatures")
        if cosigned_at(both, witness) is None:
            raise BadNote(f"{witness.name} has not signed it with the configured key")
    except BadNote as error:
        raise _Refused(f"its answer is no signature: {error}") from None
    return signature_lines(both, witness)


async def _add_checkpoint(
    client: httpx2.AsyncClient, at: Location, prefix: str, there: int, sealed: Sealed
) -> tuple[int, str]:
    if there > sealed.size:
        raise _Refused(f"it has seen {there} entries of this log, which has {sealed.size}")
    proof = await anyio.to_thread.run_sync(_consistency, at, there, sealed.size)
    lines = [f"old {there}", *(b64encode(each).decode() for each in proof), "", ""]
    answer = b""
    note = ("\n".join(lines) + sealed.note).encode()
    async with client.stream("POST", f"{prefix.rstrip('/')}/add-checkpoint", content=note) as response:
        async for chunk in response.aiter_bytes():
            answer += chunk
            if len(answer) > _ANSWER_BYTES_MAX:
                break
        return response.status_code, answer[:_ANSWER_BYTES_MAX].decode(errors="replace")


def _consistency(at: Location, old: int, new: int) -> list[bytes]:
    with read_tiles(at) as read:
        return merkle.consistency_proof(read, old, new)
