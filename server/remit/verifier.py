"""`remit-verify`: is this export, or this proof, what the log has signed? For whoever has no Remit.

Reads a file and needs the log's public key; nothing else of Remit is imported but `merkle.py` and
`checkpoint.py`, so an auditor can read all of what decides. It never writes and never connects anywhere.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

from remit import merkle
from remit.checkpoint import (
    BadNote,
    Checkpoint,
    Verifier,
    cosigned_at,
    open_checkpoint,
    read_verifiers,
    read_witness,
    split_notes,
)

T = TypeVar("T")
_GENESIS = "0" * 64
#: How a line of an export begins; the hash follows, then `_MIDDLE`, the event as it was sealed, and a brace.
_BEGIN = '{"hash":"'
_MIDDLE = '","event":'
_EVENT_AT = len(_BEGIN) + 64 + len(_MIDDLE)
_LIST: type[list[Any]] = list
_NEITHER = "this is neither an export nor a proof of `remit audit prove`"


class NotProven(Exception):
    """`str()` says in a sentence what is not as it was signed."""


class _WrongUse(Exception):
    """What was asked cannot be told from what was given; `str()` says what to give."""


def verify_export(
    lines: Iterable[str], checkpoints: Sequence[Checkpoint], receipts: Sequence[str] = ()
) -> int:
    """How many events there are, all of them as they were sealed; raises NotProven for the first that is not.

    `checkpoints` must cover every line, and each must be a root of the events up to it. The events that
    `receipts` name must be among them.
    """
    wanted = {checkpoint.size for checkpoint in checkpoints}
    named = set(receipts)
    if any(each.size == 0 and each.root != merkle.EMPTY_ROOT for each in checkpoints):
        raise NotProven("a checkpoint of no events has a root of its own")
    heads: dict[str, tuple[int, str]] = {}
    frontier = merkle.Frontier()
    good = 0
    for number, line in enumerate(lines, start=1):
        body, digest = _line(line, number)
        stream, seq, _ = _place(body, f"line {number}")
        last, previous = heads.get(stream, (0, _GENESIS))
        if seq != last + 1:
            raise NotProven(f"line {number}: event {seq} of stream {stream} follows on event {last}")
        if _link(previous, body) != digest:
            raise NotProven(f"line {number}: event {seq} of stream {stream} is not what was sealed")
        heads[stream] = (seq, digest)
        entry = f"{stream} {seq} {digest}"
        named.discard(entry)
        frontier.add(merkle.leaf_hash(entry.encode()))
        if frontier.size in wanted:
            if any(each.size == frontier.size and each.root != frontier.root() for each in checkpoints):
                raise NotProven(
                    f"something in lines {good + 1} to {number} is not what the checkpoint sealed"
                )
            good = frontier.size
    if missing := [size for size in wanted if size > frontier.size]:
        raise NotProven(f"there are {frontier.size} events, and a checkpoint has {max(missing)}")
    if good < frontier.size:
        raise NotProven(f"no checkpoint covers the lines from {good + 1}")
    if named:
        raise NotProven(f"the event of the receipt {min(named)!r} is not among those of the export")
    return frontier.size


def verify_proof(
    proof: Any,
    verifiers: Sequence[Verifier],
    receipts: Sequence[str] = (),
    kept: Mapping[Path, Sequence[Checkpoint]] | None = None,
) -> list[str]:
    """The events of a call, each proved to be in the log, as text; raises NotProven.

    The events that `receipts` name must be among them, and the checkpoint that they are proved by among those
    that were `kept`, in each of the files.
    """
    if not isinstance(proof, dict) or cast("dict[str, Any]", proof).get("format") != "remit-proof/1":
        raise NotProven(_NEITHER)
    call_id = _member(proof, "call_id", str)
    checkpoint = open_checkpoint(_member(proof, "checkpoint", str), verifiers)
    proven = [_proven(event, call_id, checkpoint) for event in _member(proof, "events", _LIST)]
    entries = [entry for entry, _ in proven]
    if not proven:
        raise NotProven("the proof names no event")
    if len(set(entries)) < len(entries):
        raise NotProven("the proof names an event more than once")
    if missing := set(receipts) - set(entries):
        raise NotProven(f"the event of the receipt {min(missing)!r} is not among those of the proof")
    for file, checkpoints in (kept or {}).items():
        _compare(checkpoint, checkpoints, file)
    return [body for _, body in proven]


def _compare(own: Checkpoint, kept: Sequence[Checkpoint], file: Path) -> None:
    """Whether the checkpoint of a proof is in the file. One of another size tells nothing about it."""
    for each in kept:
        if each.origin != own.origin:
            raise NotProven(f"{file} is of the log {each.origin}, and the proof of the log {own.origin}")
        if each.size == own.size and each.root != own.root:
            raise NotProven(
                f"{file} and the proof have other roots for the same {own.size} events: "
                "one of them is of a log that was rewritten"
            )
    if own.size not in {each.size for each in kept}:
        raise _WrongUse(
            f"the proof is of {own.size} events, and no checkpoint in {file} is, so they cannot be compared: "
            "ask for an export, which `remit audit export --checkpoint` writes, and verify "
            f"that with its own checkpoint and {file}"
        )


def _proven(event: Any, call_id: str, checkpoint: Checkpoint) -> tuple[str, str]:
    """The entry of the log, and the event."""
    body, digest = _member(event, "event", str), _member(event, "hash", str)
    stream, seq, call = _place(body, "an event of the proof")
    where = f"event {seq} of stream {stream}"
    if call != call_id:
        raise NotProven(f"{where} is of another call")
    if _link(_member(event, "previous", str), body) != digest:
        raise NotProven(f"{where} is not what was sealed")
    hashes = _member(event, "path", _LIST)
    try:
        path = [bytes.fromhex(each) for each in hashes]
    except (TypeError, ValueError):
        raise NotProven(f"the path of {where} is not made of hashes") from None
    entry = f"{stream} {seq} {digest}"
    if not merkle.verify_inclusion(
        merkle.leaf_hash(entry.encode()), _member(event, "leaf", int), checkpoint.size, path, checkpoint.root
    ):
        raise NotProven(f"{where} is not in the log that the checkpoint has signed")
    return entry, body


def _member(of: Any, name: str, kind: type[T]) -> T:
    """What is there under this name, of this type."""
    found = cast("dict[str, Any]", of).get(name) if isinstance(of, dict) else None
    if type(found) is not kind:
        raise NotProven(f"the proof lacks something, or has it in another form: {name}")
    return cast("T", found)


def _line(line: str, number: int) -> tuple[str, str]:
    """The event and its hash."""
    line = line.removesuffix("\n")
    digest = line[len(_BEGIN) : len(_BEGIN) + 64]
    if line != f"{_BEGIN}{digest}{_MIDDLE}{line[_EVENT_AT:-1]}}}":
        raise NotProven(f"line {number} is not a line of an export")
    return line[_EVENT_AT:-1], digest


def _place(body: str, where: str) -> tuple[str, int, Any]:
    """Which event of which stream it says that it is, and of which call."""
    event = _json(body, f"{where} is not an event")
    try:
        stream, seq, call = event["stream"], event["seq"], event.get("call_id")
    except (AttributeError, KeyError, TypeError):
        raise NotProven(f"{where} is not an event") from None
    # As the log has it: in ASCII, and its numbers are those of a database.
    if not isinstance(stream, str) or not stream.isascii() or type(seq) is not int or not 0 < seq < 1 << 63:
        raise NotProven(f"{where} is not an event")
    return stream, seq, call


def _json(text: str, otherwise: str) -> Any:
    """What the text says; what is no JSON, or nested deeper than anything of Remit, is `otherwise`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise NotProven(otherwise) from None


def _link(previous: str, body: str) -> str:
    """The hash of an event: SHA-256 over the hash before it in its stream, and its text."""
    try:
        return hashlib.sha256(bytes.fromhex(previous) + body.encode()).hexdigest()
    except ValueError:
        raise NotProven("something that should be a hash is none") from None


def main(argv: Sequence[str] | None = None) -> int:
    """0: everything is as it was signed; 1: it is not, or cannot be told; 2: wrong use."""
    parser = argparse.ArgumentParser(
        prog="remit-verify",
        description="Verify an export or a proof of Remit's log with its public key.",
    )
    parser.add_argument("file", type=Path, help="what `remit audit export` or `remit audit prove` wrote")
    parser.add_argument(
        "--key",
        action="append",
        required=True,
        metavar="NAME+ID+KEY",
        help="a public key of the log; may be repeated, or have several lines with a key on each",
    )
    parser.add_argument(
        "--checkpoint",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="of an export: its own, and those that were kept elsewhere; of a proof: one that was kept, of"
        " the same size; may be repeated",
    )
    parser.add_argument(
        "--receipt",
        action="append",
        default=[],
        metavar="TEXT",
        help="`event` of a call's receipt: it must be there; may be repeated",
    )
    parser.add_argument(
        "--witness",
        action="append",
        default=[],
        metavar="NAME+ID+KEY",
        help="the public key of a witness: it must have signed the checkpoint of the proof, or that of the"
        " whole export; may be repeated",
    )
    asked = parser.parse_args(argv)
    try:
        verifiers = read_verifiers(asked.key)
        witnesses = [read_witness(each) for each in asked.witness]
        said = _verified(asked.file, verifiers, asked.checkpoint, asked.receipt, witnesses)
    except OSError as error:
        return _failed(f"{error.filename or asked.file} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        return _failed("this is no text in UTF-8, as exports, proofs and checkpoints are")
    except (NotProven, BadNote) as error:
        return _failed(str(error))
    except _WrongUse as error:
        return _failed(str(error), 2)
    return _printed(f"{said}\n")


def _verified(
    file: Path,
    verifiers: Sequence[Verifier],
    notes: Sequence[Path],
    receipts: Sequence[str],
    witnesses: Sequence[Verifier],
) -> str:
    kept = {path: _checkpoints(path, verifiers) for path in notes}
    with file.open(encoding="utf-8", newline="\n") as opened:
        first = opened.readline()
        if first.startswith(_BEGIN):
            if not kept:
                raise NotProven("an export needs --checkpoint: its own, and those that were kept elsewhere")
            every = [*chain(*kept.values())]
            events = verify_export(chain([first], opened), [found for _, found in every], receipts)
            whole = [note for note, found in every if found.size == events]
            return f"{events} events are as they were sealed.{_witnessed(whole, witnesses)}"
        proof = _json(first + opened.read(), _NEITHER)
    checkpoints = {path: [found for _, found in each] for path, each in kept.items()}
    bodies = verify_proof(proof, verifiers, receipts, checkpoints)
    said = f"{len(bodies)} events of call {proof['call_id']} are in the log."
    for path in kept:
        said += f" Their checkpoint is in {path}."
    said += _witnessed([proof["checkpoint"]], witnesses)
    return "\n".join(map(_visible, [*bodies, said]))


def _witnessed(notes: Sequence[str], witnesses: Sequence[Verifier]) -> str:
    """When each witness signed one of these notes, in sentences. Raises NotProven for who has not."""
    said = ""
    for witness in witnesses:
        at_s = next((at_s for note in notes if (at_s := cosigned_at(note, witness)) is not None), None)
        if at_s is None:
            raise NotProven(f"the witness {witness.name} has not signed the checkpoint with this key")
        said += f" {witness.name} signed the checkpoint at {_time(at_s)}."
    return said


def _time(at_s: int) -> str:
    try:
        return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%SZ}"
    except (OverflowError, ValueError, OSError):  # later than any calendar
        return f"{at_s} seconds after 1970"


def _checkpoints(file: Path, verifiers: Sequence[Verifier]) -> list[tuple[str, Checkpoint]]:
    """All notes in the file with what they say, of which there is at least one."""
    try:
        notes = split_notes(file.read_text("utf-8"))
        found = [(note, open_checkpoint(note, verifiers)) for note in notes]
    except BadNote as error:
        raise NotProven(f"{file} cannot be relied on: {error}") from None
    if not found:
        raise NotProven(f"there is no checkpoint in {file}")
    return found


def _visible(text: str) -> str:
    """The same JSON; what an agent wrote into it neither moves the cursor nor hides anything."""
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)


def _printed(text: str) -> int:
    """The exit status once it is printed, or could not be."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        # What is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:  # the reader has seen enough, as `head` does
            return 1
        return _failed(f"what was found cannot be printed: {str(error.strerror).lower()}: print it elsewhere")
    return 0


def _failed(why: str, code: int = 1) -> int:
    sys.stderr.write(f"remit-verify: {_visible(why).encode('ascii', 'backslashreplace').decode()}\n")
    return code
