"""Doubt inside one transaction: calls that were sent, and nobody knows what became of them.

A call is in doubt when its answer did not come, or when its process died over it; one that only reads did
nothing then. What is in doubt keeps its holds, and an equal call is not sent, until a person or a probe says
what happened. Where a probe looks for that is `probes.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from remit import balances, ways_back
from remit.calls_told import INTERRUPTED
from remit.config import Effect
from remit.database import Row
from remit.errors import UnknownRecord, WrongState
from remit.ledger import Ledger
from remit.model import Call
from remit.ways_back_told import in_words
from remit_adapters.base import Json

#: How long after its deadline a call can certainly not be sent any more.
GRACE_US = 5_000_000


def put_in_doubt(ledger: Ledger, call: Call, call_id: str, code: str, message: str) -> bool:
    """Leave a call that was sent, recorded as `call_id`, in doubt; False when it has ended otherwise."""
    moved = ledger.execute(
        "UPDATE calls SET state = 'in_doubt', finished_us = ?, error_code = ?, error = ?"
        " WHERE id = ? AND state = 'dispatched'",
        (ledger.now_us, code, message, call_id),
    )
    if moved == 1:
        ledger.look_up_doubts()
        ledger.held.pop(call_id, None)
        if call.kind == "undo" and call.of_call:
            ways_back.conclude(ledger, call.of_call, call_id, "indeterminate")
    return moved == 1


def contradict(ledger: Ledger, call: Call, call_id: str, state: str) -> None:
    """Record that a call whose end others have concluded has ended in another `state`. Theirs stands."""
    row = ledger.one("SELECT state FROM calls WHERE id = ?", (call_id,))
    if row is not None and row["state"] != state:
        ledger.event(
            "call.contradicted",
            tenant=call.principal.tenant,
            call_id=call_id,
            answered=state,
            stands=row["state"],
        )


def take_over(ledger: Ledger) -> None:
    """Conclude for processes that died what they left open."""
    for stream in ledger.bury():
        leave_open_calls(ledger, stream)


def leave_open_calls(ledger: Ledger, stream: str) -> None:
    """End the calls that a process life, which ends itself, has under way."""
    for call in ledger.all(
        "SELECT id, tenant, effect, kind, of_call FROM calls WHERE incarnation = ? AND state = 'dispatched'",
        (stream,),
    ):
        leave(ledger, call, stream)


def leave(ledger: Ledger, call: Row, stream: str) -> None:
    """End a call whose process died: a read did nothing, anything else may have."""
    harmless = call["effect"] == Effect.READ.value
    ledger.execute(
        "UPDATE calls SET state = ?, finished_us = ?, error_code = 'interrupted', error = ? WHERE id = ?",
        (
            "failed" if harmless else "in_doubt",
            ledger.now_us,
            INTERRUPTED,
            call["id"],
        ),
    )
    if harmless:
        balances.resolve(ledger, call["id"], {})
    else:
        ledger.look_up_doubts()
    if call["kind"] == "undo":
        ways_back.conclude(ledger, call["of_call"], call["id"], "indeterminate")
    ledger.event(
        "call.failed" if harmless else "call.in_doubt",
        tenant=call["tenant"],
        call_id=call["id"],
        error_code="interrupted",
        left_by=stream,
    )


def find(ledger: Ledger, *, before_us: int) -> Mapping[str, tuple[str, str]]:
    """The kind and tool of every call in doubt whose time was over by `before_us`, oldest first."""
    rows = ledger.all(
        "SELECT id, kind, tool FROM calls WHERE state = 'in_doubt' AND deadline_us < ? ORDER BY id",
        (before_us,),
    )
    return {row["id"]: (row["kind"], row["tool"]) for row in rows}


def resolve(
    ledger: Ledger, call_id: str, *, happened: bool, reason: str, by: str, force: bool = False
) -> str:
    """Say what became of a call in doubt: its holds are spent, or released. Returns its state.

    What did not happen may be sent again under its idempotency key. Raises UnknownRecord, or WrongState when
    the call is not in doubt, or did not happen but still may; then `force` is needed, and on record.
    """
    row = ledger.one("SELECT tenant, state, kind, of_call, deadline_us FROM calls WHERE id = ?", (call_id,))
    if row is None:
        raise UnknownRecord(f"there is no call {call_id}")
    if row["state"] != "in_doubt":
        raise WrongState(f"this call is not in doubt: it is {row['state']}")
    over_us: int = (row["deadline_us"] or 0) + GRACE_US
    forced = not happened and ledger.now_us < over_us
    if forced and not force:
        at = datetime.fromtimestamp(over_us // 1_000_000 + 1, UTC)
        raise WrongState(
            f"until {at:%Y-%m-%d %H:%M:%SZ} this call may still take effect: look again then,"
            " or, if you know that it cannot, say so with --force"
        )
    state = "succeeded" if happened else "failed"
    ledger.execute(
        "UPDATE calls SET state = ?, resolution = ?,"
        " client_key = CASE WHEN ? THEN client_key END WHERE id = ?",
        (state, in_words(by, reason, happened=happened, forced=forced), happened, call_id),
    )
    held = balances.held_by(ledger, call_id)
    costs = {hold.unit: hold.amount for hold in held} if happened else {}
    spent = balances.resolve(ledger, call_id, costs)
    # Nothing is there to take back, or nobody saw the answer that would tell how.
    ledger.execute("UPDATE undos SET state = 'void' WHERE call_id = ?", (call_id,))
    refunded: list[Json] = []
    if row["kind"] == "undo":
        end = "done" if happened else "ready"
        refunded = ways_back.conclude(ledger, row["of_call"], call_id, end)
    ledger.event(
        "call.resolved",
        tenant=row["tenant"],
        call_id=call_id,
        state=state,
        reason=reason,
        by=by,
        spent=spent,
        **({"refunded": refunded} if refunded else {}),
        **({"forced": True} if forced else {}),
    )
    return state
