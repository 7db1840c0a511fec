"""Payloads at rest: sealed with a key of each person they are about, so that a destroyed key erases them.

Every *subject* (the user for whom a call is made, and whom the operator's `subject` names) has a random key
in the database, wrapped by a master key that lies elsewhere. What a call carries is sealed with AES-256-GCM
(NIST SP 800-38D) under one key made from those of all its subjects: without any one of them, nothing of it
can be opened again. What is sealed begins with the salt of its commitment, so that an erased value cannot be
found by guessing either.

The journal seals and opens, in its transactions; `records.py` opens what people read. Which calls are erased,
and what else goes with them, is `erasing.py`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from remit.database import Location, beside
from remit.errors import RemitError, StoreUnavailable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from remit.ledger import Ledger
    from remit.model import Call

_KEY_BYTES = 32
_SALT_BYTES = 16
_NONCE_BYTES = 12
#: Seals kept in memory. Past it all are forgotten, and made again when they are needed.
_KEPT_MAX = 4096

Find = Callable[[str, Sequence[Any]], Mapping[str, Any] | Any]


class KeyUnusable(StoreUnavailable):
    """The key of a payload is there, and cannot be used: the master key is another one, or it is damaged."""


class Damaged(RemitError):
    """A payload is not what was sealed."""


@dataclass(frozen=True, slots=True)
class Seal:
    """What the payloads of a call are sealed with."""

    #: The ids of the keys that it is made from, separated by a space.
    keys: str
    #: Those of them that are not of the user for whom the call is made.
    others: tuple[str, ...]
    cipher: AESGCM


class Vault:
    """Opens payloads of one database, by its keys. `find` gives the first row of a query there, or None.

    What it has opened once is remembered if it may `remember`: as long as `find` reads one snapshot.
    """

    def __init__(self, master: bytes, find: Find, *, remember: bool) -> None:
        from cryptography.exceptions import InvalidTag

        self._not_it = (InvalidTag, TypeError, ValueError)
        self._wrapping = _cipher(_derived(master, b"wrapping"))
        self._naming = _derived(master, b"naming")
        self._find = find
        self._remember = remember
        self._ciphers: dict[str, AESGCM | None] = {}

    def name(self, tenant: str, subject: str) -> str:
        """What stands for a subject where its name must not: nobody can guess it without the master key."""
        return hmac.digest(self._naming, f"{tenant}\n{subject}".encode(), "sha256")[:16].hex()

    def opened(self, call_id: str, kind: str, keys: str, body: bytes) -> tuple[bytes, bytes] | None:
        """The salt and the payload; None when it is erased. Raises Damaged, KeyUnusable."""
        plain = self._plain(call_id, kind, keys, body)
        return None if plain is None else (plain[:_SALT_BYTES], plain[_SALT_BYTES:])

    def commitment(self, call_id: str, kind: str, keys: str, body: bytes) -> str | None:
        """The commitment to what is sealed; None when it is erased. Raises Damaged, KeyUnusable."""
        plain = self._plain(call_id, kind, keys, body)
        return None if plain is None else hashlib.sha256(plain).hexdigest()

    def _plain(self, call_id: str, kind: str, keys: str, body: bytes) -> bytes | None:
        try:
            cipher = self._ciphers[keys]
        except KeyError:
            cipher = self.cipher(keys)
            if self._remember:
                if len(self._ciphers) >= _KEPT_MAX:
                    self._ciphers.clear()
                self._ciphers[keys] = cipher
        if cipher is None:
            return None
        try:
            return cipher.decrypt(body[:_NONCE_BYTES], body[_NONCE_BYTES:], f"{call_id} {kind}".encode())
        except self._not_it:
            raise Damaged(f"the {kind} of call {call_id} is not what was sealed") from None

    def cipher(self, keys: str) -> AESGCM | None:
        """What seals under these keys, read now; None when one of them is destroyed."""
        found: list[bytes] = []
        for key_id in keys.split():
            row = self._find("SELECT wrapped FROM subject_keys WHERE id = ?", (key_id,))
            if row is None:
                raise KeyUnusable(f"the key {key_id} of some payloads is not in the database any more")
            if row["wrapped"] is None:
                return None
            found.append(self.unwrapped(key_id, row["wrapped"]))
        return _cipher(_joined(found))

    def wrapped(self, key_id: str, key: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._wrapping.encrypt(nonce, key, key_id.encode())

    def unwrapped(self, key_id: str, wrapped: bytes) -> bytes:
        try:
            return self._wrapping.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], key_id.encode())
        except self._not_it:
            raise KeyUnusable(
                "the master key is not the one that the keys of this database are wrapped with"
            ) from None


class Sealer:
    """Seals payloads inside the journal's transactions, and opens there what was kept."""

    def __init__(self, master: bytes, ledger: Ledger) -> None:
        self._ledger = ledger
        self.vault = Vault(master, ledger.one, remember=False)

    def seal_for(self, tenant: str, subjects: tuple[str, ...], also: str = "") -> Seal | None:
        """What to seal with that is about these subjects, the user first, and whoever the keys `also` are of.

        None when one of the latter is destroyed: then it must not be kept.
        """
        known = self._ledger.seals
        seal = known.get((tenant, subjects, also), _UNKNOWN)
        if seal is _UNKNOWN:
            user, *others = (self._key_of(tenant, subject) for subject in subjects)
            ids = {user, *others, *also.split()}
            keys = " ".join(sorted(ids))
            cipher = self.vault.cipher(keys)
            seal = Seal(keys, tuple(ids - {user}), cipher) if cipher else None
            if len(known) >= _KEPT_MAX:
                known.clear()
            known[tenant, subjects, also] = seal
        return seal

    def seal_of(self, call: Call) -> Seal | None:
        """What this call's payloads are sealed with: an undo carries what the call did that it takes back."""
        also = ""
        if call.of_call and call.kind not in ("before", "fact"):  # what those precede has no record yet
            row = self._ledger.one(
                "SELECT keys FROM payloads WHERE call_id = ? AND kind = 'arguments'", (call.of_call,)
            )
            also = row["keys"] if row else ""
        who = call.principal
        return self.seal_for(who.tenant, (who.user, *call.subjects), also)

    def keep(
        self, seal: Seal | None, call_id: str, kind: str, body: bytes, *, exact: bytes | None = None
    ) -> str:
        """Store a payload; return the commitment to it, or to `exact`, of which it is what may be kept."""
        noise = os.urandom(_SALT_BYTES + _NONCE_BYTES)
        salt, nonce = noise[:_SALT_BYTES], noise[_SALT_BYTES:]
        if seal is not None:
            sealed = nonce + seal.cipher.encrypt(nonce, salt + body, f"{call_id} {kind}".encode())
            self._ledger.insert("payloads", (call_id, kind, seal.keys, sealed))
        return committed(salt, body if exact is None else exact)

    def opened(self, call_id: str, kind: str) -> tuple[bytes, bytes] | None:
        """The salt and the bytes of a payload; None when it is erased, or not kept (any more)."""
        row = self._ledger.one(
            "SELECT keys, body FROM payloads WHERE call_id = ? AND kind = ?", (call_id, kind)
        )
        return self.vault.opened(call_id, kind, row["keys"], row["body"]) if row else None

    def carried(self, call_id: str, kind: str) -> Any:
        """What a payload says, decoded; None as `opened` gives it."""
        opened = self.opened(call_id, kind)
        return orjson.loads(opened[1]) if opened else None

    def _key_of(self, tenant: str, subject: str) -> str:
        """The id of the living key of a subject, made now where there is none."""
        name = self.vault.name(tenant, subject)
        row = self._ledger.one("SELECT id FROM subject_keys WHERE name = ? AND wrapped IS NOT NULL", (name,))
        if row is not None:
            return row["id"]
        key_id = os.urandom(8).hex()
        # At once: a later call of this very transaction must find it.
        self._ledger.execute(
            "INSERT INTO subject_keys (id, name, tenant, wrapped, created_us) VALUES (?, ?, ?, ?, ?)",
            (
                key_id,
                name,
                tenant,
                self.vault.wrapped(key_id, os.urandom(_KEY_BYTES)),
                self._ledger.now_us,
            ),
        )
        self._ledger.event("audit.keyed", tenant=tenant, call_id=None, key=key_id, name=name)
        return key_id


def open_sealer(ledger: Ledger, at: Location, key: str | None) -> Sealer:
    """What seals the payloads of a database. Raises RemitError when `key` is not the one of those there."""
    # Only the right master key unwraps it.
    living = ledger.one("SELECT id, wrapped FROM subject_keys WHERE wrapped IS NOT NULL LIMIT 1")
    sealer = Sealer(master_key(at, key, living=living is not None), ledger)
    if living is not None:
        try:
            sealer.vault.unwrapped(living["id"], living["wrapped"])
        except KeyUnusable as error:
            raise RemitError(f"{error}: restore the right one") from None
    return sealer


def committed(salt: bytes, body: bytes) -> str:
    return hashlib.sha256(salt + body).hexdigest()


def key_file(at: Location) -> Path:
    """Where the master key of a database lies, unless the configuration says otherwise."""
    return beside(at, ".master-key")


def master_key(at: Location, text: str | None, *, living: bool) -> bytes:
    """The master key of a database: `text`, 64 hexadecimal digits, or the file beside it.

    The file is made where there is none, unless keys are `living`, which only the lost one opens. Raises
    RemitError.
    """
    if text is not None:
        try:
            key = bytes.fromhex(text)
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            raise RemitError("store.master_key must lead to 64 hexadecimal digits: openssl rand -hex 32")
        return key
    from remit.identity import load_secret  # with all that tells who calls

    file = key_file(at)
    if living and not os.path.lexists(file):
        raise RemitError(
            f"{file} is gone, and what calls carried cannot be opened without it: restore it from a backup"
        )
    return load_secret(file, lost="restore it from a backup")


def _derived(master: bytes, purpose: bytes) -> bytes:
    return hmac.digest(master, b"remit payloads " + purpose, "sha256")


def _joined(keys: Sequence[bytes]) -> bytes:
    """One key that takes all of them: a digest of them tells nothing as long as one is unknown."""
    return hashlib.sha256(b"remit payloads" + b"".join(keys)).digest()


def _cipher(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


_UNKNOWN: Any = object()
