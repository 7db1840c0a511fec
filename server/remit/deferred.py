"""Calls that are held back: let in with all that goes with them, and sent later, or called off before.

The two ends race on one row: whichever transaction changes its state first has it, in whatever process. What
is here runs inside the journal's transactions; when they are sent is `due.py`.
"""

from __future__ import annotations

from remit import balances
from remit.ledger import Ledger


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
