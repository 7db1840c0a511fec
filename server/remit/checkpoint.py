"""Checkpoints: the size and root of a log, as text that somebody signed and anybody can verify.

The forms are C2SP's: signed notes (c2sp.org/signed-note), checkpoints (c2sp.org/tlog-checkpoint) and the
key encodings that go with them, with Ed25519 (RFC 8032). What reads these also reads Go's checksum database
and Sigstore's logs. Nothing here knows about events or files.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: The signature type of Ed25519 in c2sp.org/signed-note.
_ED25519 = b"\x01"
_SIGNATURE = "\N{EM DASH} "
_PRIVATE = "PRIVATE+KEY+"
#: A note with more signatures is refused; the specification asks for at least 16.
_SIGNATURES_MAX = 100
#: So much of what is no key is named: more than a whole key with its name.
_SHOWN = 200
_WRITE_KEY = "write NAME+ID+KEY, as `remit audit key show` prints it"


class BadNote(ValueError):
    """It is not a signed note, checkpoint or key, or nobody who is trusted has signed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifier:
    """A public key and the name it signs under."""

    name: str
    public: bytes

    @property
    def id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{b64encode(_ED25519 + self.public).decode()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A private key and the name it signs under."""

    name: str
    seed: bytes

    @property
    def verifier(self) -> Verifier:
        public = Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()
        return Verifier(name=self.name, public=public)

    def encoded(self) -> str:
        """The key as its file holds it. Whoever reads this can sign."""
        return f"{_PRIVATE}{self.name}+{self.verifier.id.hex()}+{b64encode(_ED25519 + self.seed).decode()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    origin: str
    #: How many entries.
    size: int
    root: bytes

    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode()}\n"


def new_signer(name: str) -> Signer:
    if not _is_name(name):
        raise BadNote("a key name must not be empty, nor contain a space or a plus sign")
    return Signer(name=name, seed=Ed25519PrivateKey.generate().private_bytes_raw())


def read_signer(encoded: str) -> Signer:
    if not encoded.startswith(_PRIVATE):
        raise BadNote("not a private key")
    name, identifier, seed = _read_key(encoded.removeprefix(_PRIVATE))
    signer = Signer(name=name, seed=seed)
    if signer.verifier.id != identifier:
        raise BadNote("the key is damaged")
    return signer


def read_verifier(encoded: str) -> Verifier:
    """A verifier key as `NAME+ID+KEY`, which is also how Go's tools write it."""
    name, identifier, public = _read_key(encoded)
    verifier = Verifier(name=name, public=public)
    if verifier.id != identifier:
        raise BadNote("the key is damaged")
    return verifier


def read_verifiers(texts: Iterable[str]) -> list[Verifier]:
    """The verifier keys in these texts, one on each line, as people hand them over; blank lines are none.

    Raises BadNote for a line that is no key, and for a text without any: it was meant to have one.
    """
    found: list[Verifier] = []
    for text in texts:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines:
            raise BadNote(f"no key is in it: {_WRITE_KEY}")
        for line in lines:
            if line.startswith(_PRIVATE):  # which is not repeated: what is told here is kept in logs
                raise BadNote("a private key is not to be given away: say what `remit audit key show` prints")
            try:
                found.append(read_verifier(line))
            except BadNote:
                shown = line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
                raise BadNote(f"{shown!r} is not a key, or damaged: {_WRITE_KEY}") from None
    return found


def sign(text: str, signers: Iterable[Signer]) -> str:
    """`text`, which must end with a newline, as a note that all of them have signed."""
    if not text.endswith("\n"):
        raise BadNote("a note ends with a newline")
    lines = "".join(
        f"{_SIGNATURE}{signer.name} {b64encode(signer.verifier.id + _signature(signer, text)).decode()}\n"
        for signer in signers
    )
    return f"{text}\n{lines}"


def read_note(note: str, verifiers: Sequence[Verifier]) -> tuple[str, tuple[Verifier, ...]]:
    """The text, and which of `verifiers` have signed it: at least one. Raises BadNote.

    A signature by a key that is not known is passed over; one that is known and wrong refuses the note.
    """
    text, signatures = _parts(note)
    known = {(verifier.name, verifier.id): verifier for verifier in verifiers}
    signed: list[Verifier] = []
    for name, identifier, signature in signatures:
        verifier = known.get((name, identifier))
        if verifier is None:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(verifier.public).verify(signature, text.encode())
        except (InvalidSignature, ValueError):
            raise BadNote(f"the signature by {name} is wrong") from None
        signed.append(verifier)
    if not signed:
        raise BadNote("nobody whose key is known has signed it")
    return text, tuple(signed)


def signature_lines(note: str) -> str:
    """The signatures of a note as they stand, without its text."""
    return note[len(_parts(note)[0]) + 1 :]


def read_checkpoint(text: str) -> Checkpoint:
    """The checkpoint that a note's text is; further lines are opaque and ignored. Raises BadNote."""
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
        raise BadNote("a checkpoint has a line each for origin, size and root")
    origin, size, root = lines[:3]
    if not (size.isascii() and size.isdigit()) or (size != "0" and size.startswith("0")) or len(size) > 19:
        raise BadNote("the size of a checkpoint is a number")
    digest = _base64(root)
    if len(digest) != 32:
        raise BadNote("the root of a checkpoint is a SHA-256 hash")
    return Checkpoint(origin=origin, size=int(size), root=digest)


def open_checkpoint(note: str, verifiers: Sequence[Verifier]) -> Checkpoint:
    """The checkpoint in a note that is signed by one of `verifiers` under its own origin. Raises BadNote."""
    text, signed = read_note(note, verifiers)
    checkpoint = read_checkpoint(text)
    if checkpoint.origin not in {verifier.name for verifier in signed}:
        raise BadNote(f"it is of the log {checkpoint.origin}, and not signed by that log")
    return checkpoint


def split_notes(text: str) -> list[str]:
    """The notes of a file that they were appended to, one after another."""
    notes: list[str] = []
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        if lines and lines[-1].startswith(_SIGNATURE) and not line.startswith(_SIGNATURE):
            notes.append("".join(lines))
            lines = []
        lines.append(line)
    if "".join(lines).strip():
        notes.append("".join(lines))
    return notes


def _parts(note: str) -> tuple[str, list[tuple[str, bytes, bytes]]]:
    text, blank, tail = note.rpartition("\n\n")
    if not blank or not tail.endswith("\n") or any(mark < " " and mark != "\n" for mark in note):
        raise BadNote("not a signed note: text, an empty line, signatures")
    lines = tail[:-1].split("\n")
    if len(lines) > _SIGNATURES_MAX:
        raise BadNote("the note has too many signatures")
    signatures: list[tuple[str, bytes, bytes]] = []
    for line in lines:
        name, space, encoded = line.removeprefix(_SIGNATURE).partition(" ")
        if not line.startswith(_SIGNATURE) or not space or not _is_name(name):
            raise BadNote("a signature line of the note is malformed")
        signature = _base64(encoded)
        if len(signature) < 5:
            raise BadNote("a signature line of the note is malformed")
        signatures.append((name, signature[:4], signature[4:]))
    return text + "\n", signatures


def _read_key(encoded: str) -> tuple[str, bytes, bytes]:
    name, _, rest = encoded.strip().partition("+")
    identifier, _, key = rest.partition("+")
    decoded = _base64(key)
    if not _is_name(name) or len(identifier) != 8 or len(decoded) != 33 or decoded[:1] != _ED25519:
        raise BadNote(f"not a key: {_WRITE_KEY}")
    try:
        return name, bytes.fromhex(identifier), decoded[1:]
    except ValueError:
        raise BadNote("the id of the key is eight hexadecimal digits") from None


def _signature(signer: Signer, text: str) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(signer.seed).sign(text.encode())


def _is_name(name: str) -> bool:
    return bool(name) and "+" not in name and name.isprintable() and not any(map(str.isspace, name))


def _base64(text: str) -> bytes:
    try:
        decoded = b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadNote("something in it is not base64") from None
    if b64encode(decoded).decode() != text:
        raise BadNote("something in it is not base64")
    return decoded
