"""API keys as rows, and the pepper without which they prove nothing. Parts of a transaction.

Of a key only a digest under the pepper is here, and of the pepper only a digest by which it is known again.
Making keys, and checking what a caller presents, is `identity.py`.
"""

from __future__ import annotations

from remit.database import Location, beside, reading
from remit.errors import UnknownRecord, WrongState
from remit.identity import KeyRecord
from remit.ledger import Ledger
from remit.vault import Sealer


def read(at: Location, key_id: str) -> KeyRecord | None:
    """One key, read beside the writer. Raises StoreUnavailable."""
    with reading(at, newest=False) as db:
        row = db.one("SELECT * FROM api_keys WHERE id = ?", (key_id,))
    return KeyRecord(**row) if row else None


def add(ledger: Ledger, sealer: Sealer, key: KeyRecord, *, by: str) -> None:
    ledger.insert(
        "api_keys",
        (
            key.id,
            key.tenant,
            key.agent,
            key.user,
            key.digest,
            key.label,
            key.created_us,
            key.expires_us,
            key.revoked_us,
        ),
    )
    ledger.event(
        "key.created",
        tenant=key.tenant,
        call_id=None,
        key_id=key.id,
        agent=key.agent,
        user=key.user,
        digest=key.digest,
        # It may name somebody, and events stay.
        label=sealer.vault.name(key.tenant, key.label),
        created_us=key.created_us,
        expires_us=key.expires_us,
        by=by,
    )


def revoke(ledger: Ledger, key_id: str, *, by: str) -> None:
    """End a key. Raises UnknownRecord when there is none that is still valid."""
    row = ledger.one("SELECT tenant FROM api_keys WHERE id = ? AND revoked_us IS NULL", (key_id,))
    if row is None:
        raise UnknownRecord(f"there is no valid key {key_id}: `remit agents key list` shows those there are")
    ledger.execute("UPDATE api_keys SET revoked_us = ? WHERE id = ?", (ledger.now_us, key_id))
    ledger.event("key.revoked", tenant=row["tenant"], call_id=None, key_id=key_id, by=by)


def know_pepper(ledger: Ledger, at: Location, check: str) -> None:
    """Take note of the pepper by its `check`; another one than before only while nothing needs the old.

    Raises WrongState, which says what needs it.
    """
    known = ledger.one("SELECT digest FROM secret_checks WHERE name = 'pepper'")
    if known is None:
        ledger.insert("secret_checks", ("pepper", check, ledger.now_us))
    elif known["digest"] != check:
        _must_not_need_the_old_pepper(ledger, at)
        ledger.execute(
            "UPDATE secret_checks SET digest = ?, since_us = ? WHERE name = 'pepper'", (check, ledger.now_us)
        )
        ledger.event("key.pepper", tenant=None, call_id=None, check=check)


def _must_not_need_the_old_pepper(ledger: Ledger, at: Location) -> None:
    keys = ledger.all(
        "SELECT id FROM api_keys WHERE revoked_us IS NULL AND expires_us > ? ORDER BY id", (ledger.now_us,)
    )
    doubts = ledger.all("SELECT id FROM calls WHERE state = 'in_doubt' AND kind = 'call'")
    if not keys and not doubts:
        return
    raise WrongState(
        f"{beside(at, '.pepper')} is not the pepper that this database knows: {len(keys)} API keys"
        f" would prove nothing, and {len(doubts)} calls in doubt would not be known again. Restore the"
        " file, which lies beside store.path. If it is lost, end these keys (remit agents key revoke) and"
        " doubts (remit doubt resolve), then start again and make new keys"
    )
