"""The calls made before, as one transaction finds them: an equal one, one on the same word, or one by its id.

Equal is what the client says by its idempotency key, or what the call is by itself: while an equal one is in
doubt, and within the time in which its tool takes a repetition for a mistake. Reads are never equal, since
reading twice does no harm. A user's word is good for one call. What people read back is `records.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import orjson

from remit.config import Effect
from remit.database import Row
from remit.deferred import Waits
from remit.errors import WrongState
from remit.identity import Principal
from remit.ledger import Ledger
from remit.model import Call, Confirmation, Recorded, Remedy, Verdict
from remit.vault import Sealer, committed
from remit_adapters.base import Reply
from remit_rbac import Rung


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """An equal call was admitted before. `reply` is its recorded answer, if it has one."""

    call_id: str
    state: str
    reply: Reply | None
    #: What it waits for, while it is held back.
    waits: Waits | None = None


def key_of(call: Call) -> str | None:
    """The key under which the call is not made twice; None for a read."""
    return None if call.tool.effect is Effect.READ else call.client_key


def equal_to(ledger: Ledger, sealer: Sealer, call: Call) -> Repeated | Verdict | None:
    """An equal call that was admitted before; the refusal when its key was used for another one."""
    columns = "SELECT id, state, fingerprint, due_us, waits_for FROM calls "
    row: Row | None = None
    key = key_of(call)
    if key is not None or call.tool.repeat_window_s:
        ledger.write_out()  # the equal call may have been let out in this very transaction
    if key is not None:
        row = ledger.one(
            columns + 'WHERE tenant = ? AND agent = ? AND "user" = ? AND client_key = ?',
            (call.principal.tenant, call.principal.agent, call.principal.user, key),
        )
        if row and row["fingerprint"] != call.fingerprint:
            return Verdict(
                rung=Rung.DENY,
                code="key_reused",
                reason="This idempotency key was used for a different call. Use a new key for a new call.",
                remedy=Remedy.CHANGE,
            )
    if row is None and call.tool.effect is not Effect.READ and call.kind == "call":
        if ledger.in_doubt(call.fingerprint):
            row = ledger.one(
                columns + "WHERE fingerprint = ? AND state = 'in_doubt' LIMIT 1", (call.fingerprint,)
            )
        if row is None and call.tool.repeat_window_s:
            row = ledger.one(
                columns + "WHERE fingerprint = ? AND created_us > ?"  # noqa: S608 - the columns are ours
                " AND state IN ('scheduled', 'dispatched', 'succeeded') AND NOT EXISTS (SELECT 1 FROM undos"
                " WHERE undos.call_id = calls.id AND undos.state = 'done') ORDER BY created_us DESC LIMIT 1",
                (call.fingerprint, ledger.now_us - call.tool.repeat_window_s * 1_000_000),
            )
    if row is None:
        return None
    waits = row["state"] == "scheduled"
    return Repeated(
        call_id=row["id"],
        state=row["state"],
        reply=answer(sealer, row["id"]) if row["state"] in ("succeeded", "failed") else None,
        waits=Waits(due_us=row["due_us"], waits_for=row["waits_for"]) if waits else None,
    )


def spent(ledger: Ledger, confirmation: Confirmation, verdict: Verdict) -> Verdict | None:
    """The refusal when the user's word was good for another call, or is too old by now."""
    ledger.write_out()  # that call may have been let out in this very transaction
    used = ledger.one("SELECT 1 FROM calls WHERE confirmation = ?", (confirmation.id,))
    if used is None and confirmation.until_us > ledger.now_us:
        return None
    return replace(
        verdict,
        rung=Rung.DENY,
        code="confirmation_spent",
        reason="Your user's confirmation was used already or has run out. Send the call again without it "
        "to have them asked anew.",
        remedy=Remedy.ASK,
    )


def recorded(ledger: Ledger, sealer: Sealer, call_id: str) -> Recorded | None:
    """The call as its record has it; None when there is none."""
    row = ledger.one("SELECT * FROM calls WHERE id = ?", (call_id,))
    return None if row is None else _recorded(sealer, row)


def is_in_doubt(ledger: Ledger, call_id: str) -> bool:
    """Whether a call that has not ended is in doubt.

    Raises WrongState when others have concluded how it ended, as who found its effect does.
    """
    row = ledger.one(
        "SELECT state FROM calls WHERE id = ? AND state IN ('dispatched', 'in_doubt')", (call_id,)
    )
    if row is None:
        raise WrongState("others have concluded meanwhile how this call ended")
    return row["state"] == "in_doubt"


def due(ledger: Ledger, sealer: Sealer, tools: Collection[str], *, limit: int) -> list[Recorded]:
    """The calls of these tools whose time has come, the first ones first, and the first that waits for each
    account: what cannot be sent, since its tool is not there, must be in nobody's way."""
    if not tools:
        return []
    marks = ", ".join("?" * len(tools))
    rows = ledger.all(
        "SELECT * FROM calls WHERE state = 'scheduled' AND due_us <= ?"  # noqa: S608 - only marks are inserted
        f" AND tool IN ({marks}) ORDER BY due_us, id LIMIT ?",
        (ledger.now_us, *tools, limit),
    )
    waiting = ledger.all(
        "SELECT * FROM calls WHERE due_us > ? AND id IN (SELECT MIN(id) FROM calls"  # noqa: S608 - as above
        f" WHERE state = 'scheduled' AND waits_for IS NOT NULL AND tool IN ({marks}) GROUP BY waits_for)",
        (ledger.now_us, *tools),
    )
    return [_recorded(sealer, row) for row in (*rows, *waiting)]


def _recorded(sealer: Sealer, row: Row) -> Recorded:
    exact = sealer.opened(row["id"], "arguments")
    if exact and committed(*exact) != row["arguments_commit"]:
        exact = None
    return Recorded(
        call_id=row["id"],
        kind=row["kind"],
        of_call=row["of_call"],
        state=row["state"],
        principal=Principal(tenant=row["tenant"], agent=row["agent"], user=row["user"], auth=row["auth"]),
        run=row["run"],
        tool=row["tool"],
        effect=row["effect"],
        fingerprint=row["fingerprint"],
        arguments=exact[1] if exact else None,
        before=sealer.carried(row["id"], "before"),
        received_us=row["created_us"],
        deadline_us=row["deadline_us"],
        client_key=row["client_key"],
        claim=orjson.loads(row["claim"]) if row["claim"] else {},
        trace_id=row["trace_id"],
        tool_digest=row["tool_digest"],
        confirmation=row["confirmation"],
        due_us=row["due_us"],
        waits_for=row["waits_for"],
    )


def answer(sealer: Sealer, call_id: str) -> Reply | None:
    """What a call was answered; None where that is not kept (any more)."""
    value = sealer.carried(call_id, "result")
    if not value:
        return None
    asks = value.get("resultType") == "input_required"
    return Reply(
        body=value, is_error=bool(value.get("isError")), kind="input_required" if asks else "complete"
    )
