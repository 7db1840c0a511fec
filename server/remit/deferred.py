"""Calls that are held back: let in with all that goes with them, and sent later, or called off before.

A call is held back for a while by its tool's effect, or until a budget can take it that cannot now; nothing
is held for the latter. The two ends race on one row: whichever transaction changes its state first has it,
in whatever process. What is here runs inside the journal's transactions; when they are sent is `due.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from remit import balances
from remit.config import Effect
from remit.identity import Principal
from remit.ledger import Ledger
from remit.model import Call, Charge, UndoPlan

#: Most calls that wait for one account.
_WAITING_MAX = 1000
#: Why a call may not be sent that may be sent soon: nothing speaks against it, and something is not there.
_PASSING = frozenset({"no_facts", "no_before_image", "no_way_back", "too_many_at_once"})
#: After how long such a call is looked at again, and for how long at most.
LOOK_AGAIN_US = 60_000_000
_PASSES_WITHIN_US = 3_600_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """The call is let in and held back: it is sent at `due_us`, unless it is called off.

    With `waits_for`, the account that cannot take it now, it is looked at again then, if not before.
    """

    due_us: int
    waits_for: str | None = None
    warnings: tuple[str, ...] = ()


def can_wait(ledger: Ledger, call: Call, charge: Charge) -> bool:
    """Whether a call that this account cannot take may wait for it. Somebody must want it done later, too."""
    if charge.on_exceed != "defer" or call.kind != "call" or call.tool.effect is Effect.READ:
        return False
    if call.waited:
        return True
    ledger.write_out()  # others may have begun to wait in this very transaction
    row = ledger.one(
        "SELECT COUNT(*) AS waiting FROM calls WHERE state = 'scheduled' AND waits_for = ?", (charge.account,)
    )
    return row is not None and row["waiting"] < _WAITING_MAX


def due_us(call: Call, charge: Charge, now_us: int) -> int:
    """When a call that waits for this account is looked at again: when it is new, or the wait is over."""
    until_us = waits_until_us(call, charge, now_us)
    if charge.window_end_us is None:
        return until_us
    return min(until_us, max(charge.window_end_us, now_us + call.tool.hold_back_s * 1_000_000))


def waits_until_us(call: Call, charge: Charge, now_us: int) -> int:
    """When a call that waits for this account is called off."""
    return (call.scheduled_us or now_us) + charge.wait_s * 1_000_000


def wait_on(ledger: Ledger, call: Call, charge: Charge) -> int | None:
    """Wait for this account, from now on; return until when. None: it is not held back any more."""
    until_us = due_us(call, charge, ledger.now_us)
    waits = ledger.execute(
        "UPDATE calls SET due_us = ?, waits_for = ? WHERE id = ? AND state = 'scheduled'",
        (until_us, charge.account, call.id),
    )
    return until_us if waits == 1 else None


def may_pass(ledger: Ledger, call: Call, code: str) -> bool:
    """Whether a call that is due waits on for what it lacks, rather than being called off for that.

    It goes by when it first lacked something: that it was due long ago may only mean that no server ran.
    """
    if code not in _PASSING:
        return False
    ledger.write_out()
    row = ledger.one(
        "SELECT MIN(at_us) AS since_us FROM events WHERE call_id = ? AND kind = 'call.postponed'"
        " AND body LIKE ?",
        (call.id, '%"lacks":%'),
    )
    since_us = row["since_us"] if row else None
    return since_us is None or ledger.now_us < since_us + _PASSES_WITHIN_US


def look_again(ledger: Ledger, call: Call) -> Waits | None:
    """Have a call that is due be looked at again soon; None when others have seen to it meanwhile."""
    due_us = ledger.now_us + LOOK_AGAIN_US
    rows = ledger.all(
        "UPDATE calls SET due_us = ? WHERE id = ? AND state = 'scheduled'"
        " AND (due_us <= ? OR waits_for IS NOT NULL) RETURNING waits_for",
        (due_us, call.id, ledger.now_us),
    )
    return Waits(due_us=due_us, waits_for=rows[0]["waits_for"]) if rows else None


def held_back_of(ledger: Ledger, who: Principal) -> list[dict[str, Any]]:
    """The calls of one agent for one user that are held back, the first that are due first; at most 100."""
    rows = ledger.all(
        "SELECT id AS call_id, tool, due_us, waits_for FROM calls WHERE state = 'scheduled'"
        ' AND tenant = ? AND agent = ? AND "user" = ? ORDER BY due_us LIMIT 100',
        (who.tenant, who.agent, who.user),
    )
    return [dict(row) for row in rows]


def calling_off(call: Call, until_us: int) -> UndoPlan:
    """The way back of a call that has not been sent."""
    return UndoPlan(tool=call.tool.name, resource=None, expires_us=until_us, calls_off=True)


def let_out(ledger: Ledger, call_id: str, deadline_us: int) -> bool:
    """Take a call that is held back for this process to send; False when it is not held back any more."""
    taken = ledger.execute(
        "UPDATE calls SET state = 'dispatched', dispatched_us = ?, deadline_us = ?, incarnation = ?"
        " WHERE id = ? AND state = 'scheduled'",
        (ledger.now_us, deadline_us, ledger.stream, call_id),
    )
    if taken == 1:
        ledger.execute("UPDATE undos SET state = 'void' WHERE call_id = ?", (call_id,))
    return taken == 1


def call_off(ledger: Ledger, call_id: str, why: tuple[str, str], undo_call: str | None = None) -> bool:
    """End a call that is held back, free its holds and its key; False when it is not held back any more.

    `why` is a code and a sentence. `undo_call` is the undo that calls it off; without one it was refused.
    """
    ended = ledger.execute(
        "UPDATE calls SET state = 'cancelled', finished_us = ?, error_code = ?, error = ?, client_key = NULL"
        " WHERE id = ? AND state = 'scheduled'",
        (ledger.now_us, *why, call_id),
    )
    if ended == 1:
        balances.resolve(ledger, call_id, {})
        ledger.execute(
            "UPDATE undos SET state = ?, undo_call = ? WHERE call_id = ?",
            ("done" if undo_call else "void", undo_call, call_id),
        )
    return ended == 1
