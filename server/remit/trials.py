"""The policy on trial as rows: which one, since when, and what would have differed. Parts of a transaction.

There is one trial at a time, and what it found is kept until the next begins. Live calls are decided under it
by `shadow.py`, in every process that serves; each adds what it has found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import orjson

from remit.comparing import Group
from remit.ledger import Ledger


def start(ledger: Ledger, *, version: str, text: str, by: str) -> None:
    """Try a policy beside the one in force; what an earlier trial found is gone."""
    ledger.execute("DELETE FROM shadow_differences")
    ledger.execute("DELETE FROM shadows")
    ledger.execute(
        "INSERT INTO shadows (version, text, started_by, started_us) VALUES (?, ?, ?, ?)",
        (version, text, by, ledger.now_us),
    )
    ledger.event(
        "shadow.started",
        tenant=None,
        call_id=None,
        version=version,
        text_sha256=hashlib.sha256(text.encode()).hexdigest(),
        by=by,
    )


def stop(ledger: Ledger, *, by: str) -> bool:
    """End the trial, and keep what it found; False when there is none."""
    running = ledger.one("SELECT version FROM shadows WHERE stopped_us IS NULL", ())
    if running is None:
        return False
    ledger.execute("UPDATE shadows SET stopped_us = ?", (ledger.now_us,))
    ledger.event("shadow.stopped", tenant=None, call_id=None, version=running["version"], by=by)
    return True


def add(ledger: Ledger, *, started_us: int, decided: int, dropped: int, groups: Sequence[Group]) -> None:
    """Add what one process found since it last said so, if the trial is still the one begun then."""
    if ledger.one("SELECT 1 FROM shadows WHERE started_us = ?", (started_us,)) is None:
        return
    ledger.execute("UPDATE shadows SET decided = decided + ?, dropped = dropped + ?", (decided, dropped))
    for group in groups:
        found = group.difference
        key = (found.before, found.after, orjson.dumps(found.rules).decode())
        ledger.execute(
            "INSERT INTO shadow_differences (before, after, rules, count, examples, last_us)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (before, after, rules) DO UPDATE SET"
            " count = shadow_differences.count + excluded.count, last_us = excluded.last_us",
            (*key, group.count, orjson.dumps(group.examples).decode(), ledger.now_us),
        )
