"""Checkpoints: the size and root of a log, as text that somebody signed and anybody can verify.

The forms are C2SP's: signed notes (c2sp.org/signed-note), checkpoints (c2sp.org/tlog-checkpoint), the key
encodings that go with them, with Ed25519 (RFC 8032), and what witnesses add (c2sp.org/tlog-cosignature), with
Ed25519 or ML-DSA-44 (FIPS 204). What reads these also reads Go's checksum database and Sigstore's logs.
Nothing here knows about events or files.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: The signature types of c2sp.org/signed-note for Ed25519, and of c2sp.org/tlog-cosignature for witnesses.
_ED25519, _WITNESS_ED25519, _WITNESS_ML_DSA_44 = b"\x01", b"\x04", b"\x06"
#: How long a public key of each type is.
_KEY_BYTES = {_ED25519: 32, _WITNESS_ED25519: 32, _WITNESS_ML_DSA_44: 1312}
_SIGNATURE = "\N{EM DASH} "
_PRIVATE = "PRIVATE+KEY+"
#: A note with more signatures is refused; the specification asks for at least 16.
_SIGNATURES_MAX = 100
#: So much of what is no key is named: more than a whole key with its name.
_SHOWN = 200
_WRITE_KEY = "write NAME+ID+KEY, as `remit audit key show` prints it"
_WRITE_WITNESS = "write NAME+ID+KEY, as who runs the witness publishes it"


class BadNote(ValueError):
    """It is not a signed note, checkpoint or key, or nobody who is trusted has signed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifier:
    """A public key and the name it signs under."""

    name: str
    public: bytes
    #: How it signs: as a log does, or as witnesses do, with the time.
    kind: bytes = _ED25519

    @property
    def id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + self.kind + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{b64encode(self.kind + self.public).decode()}"


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
    name, identifier, kind, seed = _read_key(encoded.removeprefix(_PRIVATE))
    signer = Signer(name=name, seed=seed)
    if kind != _ED25519 or signer.verifier.id != identifier:
        raise BadNote("the key is damaged")
    return signer


def read_verifier(encoded: str) -> Verifier:
    """A log's verifier key as `NAME+ID+KEY`, which is also how Go's tools write it."""
    return _of_a_log(_read_verifier(encoded))


def read_witness(encoded: str) -> Verifier:
    """A witness's verifier key as `NAME+ID+KEY`. Raises BadNote."""
    try:
        verifier = _read_verifier(encoded)
    except BadNote:
        raise BadNote(f"{encoded[:_SHOWN]!r} is not a key, or damaged: {_WRITE_WITNESS}") from None
    if verifier.kind == _ED25519:
        raise BadNote(f"the key of {verifier.name} is that of a log, and not of a witness: {_WRITE_WITNESS}")
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
                verifier = _read_verifier(line)
            except BadNote:
                shown = line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
                raise BadNote(f"{shown!r} is not a key, or damaged: {_WRITE_KEY}") from None
            found.append(_of_a_log(verifier))
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
        _verify(verifier, signature, text)
        signed.append(verifier)
    if not signed:
        raise BadNote("nobody whose key is known has signed it")
    return text, tuple(signed)


def cosigned_at(note: str, witness: Verifier) -> int | None:
    """When the witness signed a checkpoint, in seconds since 1970; None: it has not. Raises BadNote."""
    text, signatures = _parts(note)
    for name, identifier, signature in signatures:
        if (name, identifier) == (witness.name, witness.id):
            _verify(witness, signature, text)
            return int.from_bytes(signature[:8])
    return None


def signature_lines(note: str, by: Verifier | None = None) -> str:
    """The signatures of a note as they stand, without its text; only those of one key."""
    return "".join(
        f"{_SIGNATURE}{name} {b64encode(identifier + signature).decode()}\n"
        for name, identifier, signature in _parts(note)[1]
        if by is None or (name, identifier) == (by.name, by.id)
    )


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


def _verify(verifier: Verifier, signature: bytes, text: str) -> None:
    """Raise BadNote when the signature is not of this text by this key."""
    try:
        if verifier.kind == _ED25519:
            Ed25519PublicKey.from_public_bytes(verifier.public).verify(signature, text.encode())
            return
        at_s = int.from_bytes(signature[:8])
        if at_s >= 1 << 63:
            raise ValueError
        if verifier.kind == _WITNESS_ED25519:
            Ed25519PublicKey.from_public_bytes(verifier.public).verify(
                signature[8:], f"cosignature/v1\ntime {at_s}\n{text}".encode()
            )
        else:
            from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

            MLDSA44PublicKey.from_public_bytes(verifier.public).verify(
                signature[8:], _cosigned(verifier.name, at_s, read_checkpoint(text))
            )
    except (InvalidSignature, ValueError):
        raise BadNote(f"the signature by {verifier.name} is wrong") from None
    except UnsupportedAlgorithm:
        raise BadNote(
            f"the signature by {verifier.name} is ML-DSA-44, which this OpenSSL does not know"
        ) from None


def _cosigned(witness: str, at_s: int, checkpoint: Checkpoint) -> bytes:
    """What a witness signs with ML-DSA-44: `cosigned_message` in c2sp.org/tlog-cosignature."""
    name, origin = witness.encode(), checkpoint.origin.encode()
    if len(name) > 255 or len(origin) > 255:
        raise BadNote("a name is too long for ML-DSA-44")
    return b"".join(
        (
            b"subtree/v1\n\0",
            bytes([len(name)]) + name,
            at_s.to_bytes(8),
            bytes([len(origin)]) + origin,
            (0).to_bytes(8),
            checkpoint.size.to_bytes(8),
            checkpoint.root,
        )
    )


def _read_verifier(encoded: str) -> Verifier:
    name, identifier, kind, public = _read_key(encoded)
    verifier = Verifier(name=name, public=public, kind=kind)
    if verifier.id != identifier:
        raise BadNote("the key is damaged")
    return verifier


def _of_a_log(verifier: Verifier) -> Verifier:
    """The same; a witness's key is refused, whose signature says nothing about who wrote the log."""
    if verifier.kind != _ED25519:
        raise BadNote(f"the key of {verifier.name} is that of a witness, and not of a log: {_WRITE_KEY}")
    return verifier


def _read_key(encoded: str) -> tuple[str, bytes, bytes, bytes]:
    """The name, id and type of a key, and the key itself."""
    name, _, rest = encoded.strip().partition("+")
    identifier, _, encoded_key = rest.partition("+")
    decoded = _base64(encoded_key)
    kind, key = decoded[:1], decoded[1:]
    if not _is_name(name) or len(identifier) != 8 or len(key) != _KEY_BYTES.get(kind):
        raise BadNote(f"not a key: {_WRITE_KEY}")
    try:
        return name, bytes.fromhex(identifier), kind, key
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
