"""The ways back of calls inside one transaction: registered with the call, and taken at most once.

A way back is one row beside its call. Whether it can be taken is asked here and nowhere else: while it is
ready, in its time, and not from under what was done to the same thing since. What taking it needs, and what
that came to, is here too; who may take it is policy, and the call that does it is made by `undo.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from remit import balances, erasing, notices
from remit.database import Row
from remit.images import Undone, version_by_now
from remit.ledger import Ledger
from remit.model import Call, Remedy, UndoPlan, Verdict
from remit.states import changed_since
from remit.vault import Sealer, Vault
from remit_adapters.base import Json
from remit_rbac import Rung

#: What an undo did to the call that it serves; `ready` when it certainly did nothing and may run again.
UndoEnd = Literal["done", "failed", "indeterminate", "ready"]
#: A moment after every call's.
_NEVER = (2**63 - 1, "")
#: Of another call on the same thing: people are not being asked whether to take that back, too.
_NOT_ASKED_TOO = (
    " AND NOT EXISTS (SELECT 1 FROM calls AS asked WHERE asked.of_call = other.id AND asked.kind = 'undo'"
    " AND asked.state = 'awaiting_approval')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Undoable:
    """A call and the plan that takes it back, as read inside one transaction."""

    call_id: str
    tenant: str
    agent: str
    user: str
    run: str
    tool: str
    effect: str
    #: It has not been sent yet: taking it back is calling it off.
    waits: bool
    #: None when erased, or no longer kept; so are `result`, `before` and `after` then.
    arguments: Json | None
    state: str
    undo_tool: str
    #: None also where they could not be worked out.
    undo_arguments: Json | None
    result: Json | None
    before: Any
    #: What it left behind, `kept` and `etag`; None when that was not seen.
    after: Json | None
    expires_us: int
    resource: str | None
    residue: str | None


def register(ledger: Ledger, call_id: str, plan: UndoPlan, state: Literal["registered", "ready"]) -> None:
    """Keep how a call can be taken back; `ready` when it can be from now on."""
    ledger.insert(
        "undos",
        (
            call_id,
            state,
            plan.tool,
            plan.refund,
            plan.resource,
            plan.expires_us,
            None,
            plan.residue,
            plan.best_effort,
        ),
    )


def told(plan: UndoPlan | None) -> Json | None:
    """A registered way back, as the event of its call seals it."""
    if plan is None:
        return None
    more = {"residue": plan.residue} if plan.residue else {}
    return {
        "tool": plan.tool,
        "expires_us": plan.expires_us,
        "refund": plan.refund,
        "best_effort": plan.best_effort,
        **more,
    }


def take(ledger: Ledger, call: Call, undo_call: str) -> None:
    """Have the undo `call`, whose record is `undo_call`, take the way back: nobody else does from now on."""
    ledger.execute(
        "UPDATE undos SET state = 'running', undo_call = ? WHERE call_id = ?", (undo_call, call.of_call)
    )


def conclude(ledger: Ledger, call_id: str, undo_call: str, end: UndoEnd) -> list[Json]:
    """What became of the way back of a call by `undo_call`; return what was given back, by account."""
    state = "void" if end == "ready" and erasing.is_erased(ledger, call_id) else end
    ledger.execute(
        "UPDATE undos SET state = ? WHERE call_id = ? AND undo_call = ?", (state, call_id, undo_call)
    )
    if end != "done":
        return []
    notices.leave(ledger, undo_call)
    row = ledger.one("SELECT refund FROM undos WHERE call_id = ?", (call_id,))
    percent = row["refund"] if row else 0
    return balances.refund(ledger, call_id, percent) if percent else []


def undoable(ledger: Ledger, sealer: Sealer, call_id: str, *, beneath: str | None) -> Undoable | None:
    """The call and its plan, whatever their state; None when the call does not exist or has no plan.

    With `beneath` as that call on the same thing has found it, whatever was done from then on.
    """
    row = ledger.one(
        "SELECT calls.*, undos.state AS undo_state, undos.tool AS undo_tool, undos.expires_us,"
        " undos.resource, undos.residue"
        " FROM calls JOIN undos ON undos.call_id = calls.id"
        " WHERE calls.id = ?",
        (call_id,),
    )
    if row is None:
        return None
    kinds = ("arguments", "undo", "restore", "result", "before", "after")
    kept = {kind: sealer.carried(call_id, kind) for kind in kinds}
    return Undoable(
        call_id=call_id,
        tenant=row["tenant"],
        agent=row["agent"],
        user=row["user"],
        run=row["run"],
        tool=row["tool"],
        effect=row["effect"],
        waits=row["state"] == "scheduled",
        arguments=kept["arguments"],
        state=row["undo_state"],
        undo_tool=row["undo_tool"],
        undo_arguments=kept["undo"] or kept["restore"],
        result=kept["result"],
        before=kept["before"],
        after=_left(ledger, sealer, row, kept["after"], beneath),
        expires_us=row["expires_us"],
        resource=row["resource"],
        residue=row["residue"],
    )


def blocked(
    ledger: Ledger, sealer: Sealer, call: Call, verdict: Verdict, asked_us: int, *, asking: bool = False
) -> Verdict | None:
    """Why the call that `call` would take back cannot be taken back (any more).

    `asked_us` is when that was asked for. When people are only being asked (`asking`), what waits to be
    taken back itself is no conflict: both may go, in their order, once people have agreed.
    """
    insisted = call.undoing is not None and (call.undoing.forced or call.undoing.cancels)
    ledger.write_out()  # a call on the same thing may have been let out in this very transaction
    row = ledger.one("SELECT * FROM undos WHERE call_id = ?", (call.of_call,))
    reason: str | None = None
    code = "undo_unavailable"
    if row is None or row["state"] in ("registered", "void"):
        reason = "That call has no way back that is ready."
    elif row["state"] != "ready":
        reason = f"The undo of that call is already {row['state']}: it runs at most once."
        code = "undo_used"
    elif row["expires_us"] <= asked_us:
        reason = "The time in which that call could be undone is over."
        code = "undo_expired"
    elif not insisted and _touched_since(ledger, sealer.vault, row, call.principal.tenant, asking=asking):
        reason = "Something has changed the same thing since: undo that first, or ask a person."
        code = "undo_conflict"
    if reason is None:
        return None
    return replace(verdict, rung=Rung.DENY, code=code, reason=reason, remedy=Remedy.STOP)


def touched_since(ledger: Ledger, sealer: Sealer, call_id: str, tenant: str) -> bool:
    """Whether a later call touched the same thing as this one, or may have, and is not taken back."""
    ledger.write_out()
    undo = ledger.one("SELECT * FROM undos WHERE call_id = ?", (call_id,))
    return undo is not None and _touched_since(ledger, sealer.vault, undo, tenant)


def _touched_since(ledger: Ledger, vault: Vault, undo: Row, tenant: str, *, asking: bool = False) -> bool:
    """Whether what the call touched was changed later by what stays (`states.changed_since`)."""
    if undo["resource"] is None:
        return False
    found = ledger.one(
        "SELECT 1 FROM undos AS u JOIN calls AS c ON c.id = u.call_id WHERE u.call_id = ?"  # noqa: S608 - all of it is ours
        f" AND {changed_since('u.resource, ?', _NOT_ASKED_TOO if asking else '')}",
        (undo["call_id"], *[erasing.pseudonym(vault, tenant, undo["resource"])] * 2),
    )
    return found is not None


def _left(
    ledger: Ledger, sealer: Sealer, row: Row, left: dict[str, Any] | None, beneath: str | None
) -> Json | None:
    """What a call left behind, by the version that it has by now, or had when `beneath` was made."""
    if left is None or left["etag"] is None:
        return left
    until = ledger.one("SELECT dispatched_us, id FROM calls WHERE id = ?", (beneath,)) if beneath else None
    later = [
        Undone(
            made=(it["made_us"], it["id"]),
            left=sealer.carried(it["id"], "after"),
            undone=(it["undone_us"], it["undone_id"]),
            restored=sealer.carried(it["undone_id"], "after"),
        )
        for it in ledger.all(
            "SELECT l.id, l.dispatched_us AS made_us, back.id AS undone_id,"
            " back.dispatched_us AS undone_us"
            " FROM touches JOIN calls AS l ON l.id = touches.call_id"
            " JOIN undos ON undos.call_id = l.id AND undos.state = 'done'"
            " JOIN calls AS back ON back.id = undos.undo_call"
            " WHERE touches.resource = ? AND l.tenant = ? AND (l.dispatched_us, l.id) > (?, ?)"
            " AND (l.dispatched_us, l.id) < (?, ?)",
            (row["resource"], row["tenant"], row["dispatched_us"], row["id"], *(until or _NEVER)),
        )
    ]
    return {**left, "etag": version_by_now(left, later)}
