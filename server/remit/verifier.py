"""`remit-verify`: is this export, or this proof, what the log has signed? For whoever has no Remit.

Reads a file and needs the log's public key; nothing else of Remit is imported but `merkle.py` and
`checkpoint.py`, so an auditor can read all of what decides. It never writes and never connects anywhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from remit import merkle
from remit.checkpoint import BadNote, Checkpoint, Verifier, open_checkpoint, read_verifier, split_notes

_GENESIS = "0" * 64
#: How a line of an export begins; the hash follows, then `_MIDDLE`, the event as it was sealed, and a brace.
_BEGIN = '{"hash":"'
_MIDDLE = '","event":'
_EVENT_AT = len(_BEGIN) + 64 + len(_MIDDLE)


class NotProven(Exception):
    """`str()` says in a sentence what is not as it was signed."""


def verify_export(lines: Iterable[str], checkpoints: Sequence[Checkpoint]) -> int:
    """How many events there are, all of them as they were sealed; raises NotProven for the first that is not.

    `checkpoints` must cover every line, and each must be a root of the events up to it.
    """
    wanted = {checkpoint.size for checkpoint in checkpoints}
    heads: dict[str, tuple[int, str]] = {}
    frontier = merkle.Frontier()
    good = 0
    for number, line in enumerate(lines, start=1):
        body, digest = _line(line, number)
        stream, seq = _place(body, f"line {number}")
        last, previous = heads.get(stream, (0, _GENESIS))
        if seq != last + 1:
            raise NotProven(f"line {number}: event {seq} of stream {stream} follows on event {last}")
        if _link(previous, body) != digest:
            raise NotProven(f"line {number}: event {seq} of stream {stream} is not what was sealed")
        heads[stream] = (seq, digest)
        frontier.add(_leaf(stream, seq, digest))
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
    return frontier.size


def verify_proof(proof: Any, verifiers: Sequence[Verifier], receipt: str | None = None) -> list[str]:
    """The events of a call, each proved to be in the log, as text; raises NotProven."""
    try:
        if proof["format"] != "remit-proof/1":
            raise NotProven("this is neither an export nor a proof of `remit audit prove`")
        call_id = str(proof["call_id"])
        checkpoint = open_checkpoint(str(proof["checkpoint"]), verifiers)
        events: list[dict[str, Any]] = proof["events"]
        proven = [_proven(event, call_id, checkpoint) for event in events]
        entries = [entry for entry, _ in proven]
    except (AttributeError, KeyError, TypeError) as error:
        raise NotProven(f"the proof lacks something, or has it in another form: {error}") from None
    if not proven:
        raise NotProven("the proof names no event")
    if len(set(entries)) < len(entries):
        raise NotProven("the proof names an event more than once")
    if receipt is not None and receipt not in entries:
        raise NotProven("the event of the receipt is not among those of the proof")
    return [body for _, body in proven]


def _proven(event: dict[str, Any], call_id: str, checkpoint: Checkpoint) -> tuple[str, str]:
    body, digest, leaf = str(event["event"]), str(event["hash"]), event["leaf"]
    stream, seq = _place(body, "an event of the proof")
    where = f"event {seq} of stream {stream}"
    if json.loads(body).get("call_id") != call_id:
        raise NotProven(f"{where} is of another call")
    if _link(str(event["previous"]), body) != digest:
        raise NotProven(f"{where} is not what was sealed")
    try:
        path = [bytes.fromhex(each) for each in event["path"]]
    except ValueError:
        raise NotProven(f"the path of {where} is not made of hashes") from None
    if not isinstance(leaf, int) or not merkle.verify_inclusion(
        _leaf(stream, seq, digest), leaf, checkpoint.size, path, checkpoint.root
    ):
        raise NotProven(f"{where} is not in the log that the checkpoint has signed")
    return f"{stream} {seq} {digest}", body


def _line(line: str, number: int) -> tuple[str, str]:
    """The event and its hash."""
    line = line.removesuffix("\n")
    digest = line[len(_BEGIN) : len(_BEGIN) + 64]
    if line != f"{_BEGIN}{digest}{_MIDDLE}{line[_EVENT_AT:-1]}}}":
        raise NotProven(f"line {number} is not a line of an export")
    return line[_EVENT_AT:-1], digest


def _place(body: str, where: str) -> tuple[str, int]:
    """Which event of which stream it says that it is."""
    try:
        event = json.loads(body)
        stream, seq = event["stream"], event["seq"]
    except (ValueError, KeyError, TypeError):
        raise NotProven(f"{where} is not an event") from None
    if not isinstance(stream, str) or type(seq) is not int:
        raise NotProven(f"{where} is not an event")
    return stream, seq


def _link(previous: str, body: str) -> str:
    """The hash of an event: SHA-256 over the hash before it in its stream, and its text."""
    try:
        return hashlib.sha256(bytes.fromhex(previous) + body.encode()).hexdigest()
    except ValueError:
        raise NotProven("something that should be a hash is none") from None


def _leaf(stream: str, seq: int, digest: str) -> bytes:
    return merkle.leaf_hash(f"{stream} {seq} {digest}".encode())


def main(argv: Sequence[str] | None = None) -> int:
    """0: everything is as it was signed; 1: it is not, or cannot be told; 2: wrong use."""
    parser = argparse.ArgumentParser(
        prog="remit-verify",
        description="Verify an export or a proof of Remit's log with its public key.",
    )
    parser.add_argument("file", type=Path, help="what `remit audit export` or `remit audit prove` wrote")
    parser.add_argument(
        "--key", action="append", required=True, metavar="NAME+ID+KEY", help="a public key of the log"
    )
    parser.add_argument(
        "--checkpoint",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="of an export",
    )
    parser.add_argument("--receipt", metavar="TEXT", help="`event` of a call's receipt: it must be proved")
    asked = parser.parse_args(argv)
    try:
        verifiers = [read_verifier(key) for key in asked.key]
        said = _verified(asked.file, verifiers, asked.checkpoint, asked.receipt)
    except OSError as error:
        return _failed(f"{error.filename} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        return _failed("this is no text in UTF-8, as exports, proofs and checkpoints are")
    except (NotProven, BadNote) as error:
        return _failed(str(error))
    sys.stdout.write(f"{said}\n")
    return 0


def _verified(file: Path, verifiers: Sequence[Verifier], notes: Sequence[Path], receipt: str | None) -> str:
    with file.open(encoding="utf-8", newline="\n") as opened:
        if opened.read(len(_BEGIN)) == _BEGIN:
            opened.seek(0)
            checkpoints = [
                open_checkpoint(note, verifiers)
                for path in notes
                for note in split_notes(path.read_text("utf-8"))
            ]
            if not checkpoints:
                raise NotProven("an export needs --checkpoint: its own, and those that were kept elsewhere")
            return f"{verify_export(opened, checkpoints)} events are as they were sealed."
        opened.seek(0)
        try:
            proof = json.load(opened)
        except ValueError:
            raise NotProven("this is neither an export nor a proof of `remit audit prove`") from None
    bodies = verify_proof(proof, verifiers, receipt)
    return "\n".join(
        [*map(_visible, bodies), f"{len(bodies)} events of call {proof['call_id']} are in the log."]
    )


def _visible(body: str) -> str:
    """The same JSON; what an agent wrote into it neither moves the cursor nor hides anything."""
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in body)


def _failed(why: str) -> int:
    sys.stderr.write(f"remit-verify: {why.encode('ascii', 'backslashreplace').decode()}\n")
    return 1
