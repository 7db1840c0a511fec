"""Switches as rows: turned on and off by people, in force everywhere with the commit. Part of a transaction.

What a switch that is on stops is asked of every call by `checks/containment.py`.
"""

from __future__ import annotations

from typing import Literal

from remit.ledger import Ledger

SwitchKind = Literal["kill", "safe"]


def turn(
    ledger: Ledger, *, kind: SwitchKind, scope: str, target: str, tenant: str, on: bool, reason: str, by: str
) -> bool:
    """Turn a switch on or off; False when it already was so."""
    key = (kind, scope, target, tenant)
    if (key in ledger.switches) == on:
        return False
    if on:
        # Not gathered: the very next change of this transaction must see it.
        ledger.execute(
            "INSERT INTO switches (kind, scope, target, tenant, reason, set_by, set_us)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*key, reason, by, ledger.now_us),
        )
    else:
        ledger.execute("DELETE FROM switches WHERE kind = ? AND scope = ? AND target = ? AND tenant = ?", key)
    ledger.reload_switches()
    ledger.event(
        f"switch.{'on' if on else 'off'}",
        tenant=tenant or None,
        call_id=None,
        switch=kind,
        scope=scope,
        target=target,
        reason=reason,
        by=by,
    )
    return True
