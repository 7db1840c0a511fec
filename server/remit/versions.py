"""Policy versions as rows: what is kept, who pushed it, which one is in force. Parts of a transaction.

The journal says which of these go together; `policies.py` says what the text means. A version is named by
what it decides (`Policy.version`), so the same rules are stored once. Rows are only added: the newest
activation counts, and going back is one more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from remit.database import Row
from remit.errors import UnknownRecord, WrongState
from remit.ledger import Ledger

#: How a version came into force: found in files, chosen by a person, or gone back to.
ActivationKind = Literal["files", "activate", "rollback"]
Digests = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A policy that was built without an error, as it is stored."""

    id: str
    text: str
    digests: Digests


def keep(ledger: Ledger, version: Version) -> bool:
    """Store the text of a version that decides; False when it is there already."""
    if _row(ledger, version.id) is not None:
        return False
    _insert(ledger, version, pushed_by=None, note="")
    ledger.event("policy.stored", tenant=None, call_id=None, **_sealed(version))
    return True


def push(ledger: Ledger, version: Version, *, by: str, note: str) -> bool:
    """Store a version that a person offers; False when somebody pushed the same before."""
    row = _row(ledger, version.id)
    if row is not None and row["pushed_by"] is not None:
        return False
    if row is None:
        _insert(ledger, version, pushed_by=by, note=note)
    else:
        # Until now it was known from a server's files alone, and nobody answered for it.
        ledger.execute(
            "UPDATE policy_versions SET pushed_by = ?, note = ? WHERE id = ?", (by, note, version.id)
        )
        version = Version(id=version.id, text=row["text"], digests=version.digests)
    ledger.event("policy.pushed", tenant=None, call_id=None, by=by, note=note, **_sealed(version))
    return True


def found_in_files(ledger: Ledger, version: Version) -> None:
    """Record that a server decides by these files from now on, unless that is what was recorded last."""
    keep(ledger, version)
    _put_into_force(ledger, version, kind="files", by=None, note="")


def activate(ledger: Ledger, version: Version, *, by: str, note: str, second_person: bool) -> bool:
    """Put a stored version into force; False when it is already. Raises WrongState when `by` may not."""
    _may_be_put_into_force(ledger, version, by=by if second_person else None)
    return _put_into_force(ledger, version, kind="activate", by=by, note=note)


def roll_back(ledger: Ledger, version: Version, *, by: str, note: str, second_person: bool) -> bool:
    """Return to a stored version; False when it is in force now. Raises WrongState when `by` may not.

    One that was in force before needs no second person: somebody agreed to it then, and going back is for
    emergencies. Any other needs whom `activate` needs.
    """
    agreed = ledger.one("SELECT 1 FROM policy_activations WHERE version = ?", (version.id,))
    _may_be_put_into_force(ledger, version, by=by if second_person and agreed is None else None)
    return _put_into_force(ledger, version, kind="rollback", by=by, note=note)


def reject(ledger: Ledger, *, problems: Sequence[str], digests: Digests) -> None:
    """Record that a server would not take a new version, and why; it decides by the old one."""
    ledger.event("policy.rejected", tenant=None, call_id=None, problems=list(problems), layers=list(digests))


def _may_be_put_into_force(ledger: Ledger, version: Version, *, by: str | None) -> None:
    """Raise UnknownRecord, or WrongState when `by` (None: anybody) is not the second person that it needs."""
    row = _row(ledger, version.id)
    if row is None:
        raise UnknownRecord(f"there is no policy version {version.id[:12]}")
    if by is not None and row["pushed_by"] is None:
        raise WrongState("nobody has pushed this version: push it, and let another person activate it")
    if by is not None and row["pushed_by"] == by:
        raise WrongState(f"{by} pushed this version: another person must activate it")


def _row(ledger: Ledger, version: str) -> Row | None:
    ledger.write_out()  # it may have been stored in this very transaction
    return ledger.one("SELECT * FROM policy_versions WHERE id = ?", (version,))


def _insert(ledger: Ledger, version: Version, *, pushed_by: str | None, note: str) -> None:
    ledger.insert("policy_versions", (version.id, version.text, pushed_by, note, ledger.now_us))


def _sealed(version: Version) -> dict[str, Any]:
    return {
        "version": version.id,
        "text_sha256": hashlib.sha256(version.text.encode()).hexdigest(),
        "layers": list(version.digests),
    }


def _put_into_force(
    ledger: Ledger, version: Version, *, kind: ActivationKind, by: str | None, note: str
) -> bool:
    """False when it is in force already."""
    ledger.write_out()
    active = ledger.one("SELECT * FROM policy_activations ORDER BY number DESC LIMIT 1")
    if active is not None and active["version"] == version.id:
        return False
    number = active["number"] + 1 if active is not None else 1
    ledger.insert("policy_activations", (number, version.id, kind, by, note, ledger.now_us))
    ledger.event(
        "policy.activated",
        tenant=None,
        call_id=None,
        number=number,
        version=version.id,
        how=kind,
        by=by,
        note=note,
        layers=list(version.digests),
    )
    return True
