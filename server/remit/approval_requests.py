"""Requests for approval inside one transaction: opened, voted on, used once, or closed unused.

A request is open while it is `pending`, and while it is `approved` and not used; its time ends both. Equal
calls share one, and what people refused is not put to them again at once. What they are shown, who may vote
and whose vote still counts is for `approvals.py` to say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from remit import earlier_calls
from remit.deferred import Waits
from remit.errors import UnknownRecord, WrongState
from remit.identity import Principal
from remit.ledger import Ledger
from remit.model import Call, Remedy, Verdict
from remit_rbac import Rung

#: An identical request that people refused is not put to them again within this time.
_REJECTION_HOLDS_US = 600_000_000
#: How it is proved who votes: people vote at the command line.
_AUTH = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """People have been asked, now or by an earlier equal call."""

    call_id: str
    approval_id: str
    asked_us: int
    expires_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved:
    """People agreed to exactly this call; `voters` must still hold their role when it is sent."""

    call_id: str
    approval_id: str
    asked_us: int
    voters: tuple[str, ...]


def said(ledger: Ledger, call: Call, verdict: Verdict, binding: str) -> Waiting | Approved | Verdict | None:
    """What people say to an equal call; a Verdict when they refused it lately, None when none was asked."""
    ledger.write_out()  # they may have been asked in this very transaction
    row = ledger.one(
        "SELECT * FROM approvals WHERE fingerprint = ? AND binding = ? ORDER BY created_us DESC LIMIT 1",
        (call.fingerprint, binding),
    )
    if row is None:
        return None
    is_in_time = row["expires_us"] > ledger.now_us
    if row["state"] == "pending" and is_in_time:
        return Waiting(
            call_id=row["call_id"],
            approval_id=row["id"],
            asked_us=row["created_us"],
            expires_us=row["expires_us"],
        )
    if row["state"] == "approved" and is_in_time:
        voters = ledger.all(
            "SELECT \"user\" FROM votes WHERE approval_id = ? AND vote = 'approve'", (row["id"],)
        )
        return Approved(
            call_id=row["call_id"],
            approval_id=row["id"],
            asked_us=row["created_us"],
            voters=tuple(voter["user"] for voter in voters),
        )
    if row["state"] == "rejected" and row["decided_us"] + _REJECTION_HOLDS_US > ledger.now_us:
        return replace(
            verdict,
            rung=Rung.DENY,
            code="approval_rejected",
            reason="A person looked at exactly this call and refused it. Do not ask again unless "
            "something about it has changed.",
            remedy=Remedy.STOP,
        )
    return None


def put(ledger: Ledger, call: Call, approval_id: str, *, binding: str, votes: int, pending_s: int) -> Waiting:
    """Put this call to people: `votes` of them must agree, within `pending_s`."""
    expires_us = ledger.now_us + pending_s * 1_000_000
    ledger.insert(
        "approvals",
        (
            approval_id,
            call.id,
            call.principal.tenant,
            "pending",
            binding,
            call.fingerprint,
            votes,
            ledger.now_us,
            expires_us,
            None,
        ),
    )
    return Waiting(call_id=call.id, approval_id=approval_id, asked_us=ledger.now_us, expires_us=expires_us)


def asked_as(ledger: Ledger, call: Call) -> str | None:
    """The call under which people are asked about an equal one, or have agreed to it; None otherwise."""
    ledger.write_out()
    row = ledger.one(
        "SELECT call_id FROM approvals WHERE fingerprint = ? AND expires_us > ?"
        " AND state IN ('pending', 'approved') ORDER BY created_us DESC LIMIT 1",
        (call.fingerprint, ledger.now_us),
    )
    return row["call_id"] if row else None


def open_of(ledger: Ledger, who: Principal) -> list[dict[str, Any]]:
    """The open requests of one agent for one user."""
    rows = ledger.all(
        "SELECT approvals.id, calls.id AS call_id, calls.tool, approvals.state, approvals.expires_us"
        " FROM approvals JOIN calls ON calls.id = approvals.call_id WHERE approvals.tenant = ?"
        ' AND calls.agent = ? AND calls."user" = ?'
        " AND approvals.state IN ('pending', 'approved') AND approvals.expires_us > ?",
        (who.tenant, who.agent, who.user, ledger.now_us),
    )
    return [dict(row) for row in rows]


def use(
    ledger: Ledger,
    call: Call,
    approved: Approved,
    verdict: Verdict,
    *,
    waits: Waits | None = None,
    deadline_us: int | None = None,
) -> Verdict | None:
    """Let the call that people agreed to go out, or wait; the refusal when that was used or has run out."""
    used = ledger.execute(
        "UPDATE approvals SET state = 'used' WHERE id = ? AND state = 'approved' AND expires_us > ?",
        (approved.approval_id, ledger.now_us),
    )
    if used != 1:
        return replace(
            verdict,
            rung=Rung.DENY,
            code="approval_spent",
            reason="The approval of this call was used or has run out. Send the call again to ask anew.",
            remedy=Remedy.ASK,
        )
    ledger.execute(
        "UPDATE calls SET state = ?, dispatched_us = ?, due_us = ?, waits_for = ?, deadline_us = ?,"
        " run = ?, incarnation = ?, client_key = ?, confirmation = ? WHERE id = ?",
        (
            "scheduled" if waits else "dispatched",
            None if waits else ledger.now_us,
            waits and waits.due_us,
            waits and waits.waits_for,
            deadline_us,
            call.run,  # it may be another than the one in which people were asked
            ledger.stream,
            earlier_calls.key_of(call),
            call.confirmation.id if call.confirmation else None,
            approved.call_id,
        ),
    )
    return None


def agreed(ledger: Ledger, call_id: str) -> tuple[str, ...]:
    """Who agreed to a call whose approval was used."""
    rows = ledger.all(
        "SELECT votes.user FROM votes JOIN approvals ON approvals.id = votes.approval_id"
        " WHERE approvals.call_id = ? AND approvals.state = 'used' AND vote = 'approve'",
        (call_id,),
    )
    return tuple(row["user"] for row in rows)


def vote(
    ledger: Ledger,
    approval_id: str,
    *,
    user: str,
    vote: Literal["approve", "reject"],
    comment: str,
    use_within_s: int,
) -> str:
    """Record one person's vote; return the request's state. One refusal decides, and so do enough who agree.

    Raises UnknownRecord, or WrongState when it is no longer open or the person has voted.
    """
    now = ledger.now_us
    comment = comment.replace("\0", "\ufffd")  # PostgreSQL would, and the event is to say the same
    row = ledger.one("SELECT * FROM approvals WHERE id = ?", (approval_id,))
    if row is None:
        raise UnknownRecord(f"there is no approval {approval_id}")
    if row["state"] != "pending":
        raise WrongState(f"this approval is {row['state']}: it takes no more votes")
    if row["expires_us"] <= now:
        raise WrongState("this approval has expired: the agent must ask anew")
    seen = ledger.all('SELECT "user", vote FROM votes WHERE approval_id = ?', (approval_id,))
    if any(voter["user"] == user for voter in seen):
        raise WrongState(f"{user} has voted on this already")
    ledger.insert("votes", (approval_id, user, vote, _AUTH, now, comment))
    agreed = sum(voter["vote"] == "approve" for voter in seen) + (vote == "approve")
    state = "rejected" if vote == "reject" else "approved" if agreed >= row["votes_needed"] else "pending"
    expires_us = now + use_within_s * 1_000_000 if state == "approved" else row["expires_us"]
    if state != "pending":
        ledger.execute(
            "UPDATE approvals SET state = ?, decided_us = ?, expires_us = ? WHERE id = ?",
            (state, now, expires_us, approval_id),
        )
    if state == "rejected":
        _close_call(ledger, row["call_id"], "rejected")
    ledger.event(
        f"approval.{vote}",
        tenant=row["tenant"],
        call_id=row["call_id"],
        approval_id=approval_id,
        user=user,
        auth=_AUTH,
        comment=comment,
        state=state,
        expires_us=expires_us,
        binding=row["binding"],
    )
    return state


def withdraw(ledger: Ledger, approval_id: str, who: Principal) -> None:
    """Close a request for the agent that made it, for the same user. Raises UnknownRecord for any other."""
    row = ledger.one(
        "SELECT approvals.call_id FROM approvals JOIN calls ON calls.id = approvals.call_id"
        ' WHERE approvals.id = ? AND calls.tenant = ? AND calls.agent = ? AND calls."user" = ?'
        " AND approvals.state IN ('pending', 'approved')",
        (approval_id, who.tenant, who.agent, who.user),
    )
    if row is None:
        raise UnknownRecord("there is no such open request of yours")
    ledger.execute(
        "UPDATE approvals SET state = 'withdrawn', decided_us = ? WHERE id = ?", (ledger.now_us, approval_id)
    )
    _close_call(ledger, row["call_id"], "withdrawn")
    ledger.event("approval.withdrawn", tenant=who.tenant, call_id=row["call_id"], approval_id=approval_id)


def expire(ledger: Ledger) -> int:
    """Close every request whose time is up; return how many."""
    rows = ledger.all(
        "SELECT id, call_id, tenant FROM approvals WHERE state IN ('pending', 'approved')"
        " AND expires_us <= ?",
        (ledger.now_us,),
    )
    for row in rows:
        ledger.execute("UPDATE approvals SET state = 'expired' WHERE id = ?", (row["id"],))
        _close_call(ledger, row["call_id"], "expired")
        ledger.event("approval.expired", tenant=row["tenant"], call_id=row["call_id"], approval_id=row["id"])
    return len(rows)


def _close_call(ledger: Ledger, call_id: str, state: Literal["rejected", "withdrawn", "expired"]) -> None:
    ledger.execute(
        "UPDATE calls SET state = ?, finished_us = ? WHERE id = ? AND state = 'awaiting_approval'",
        (state, ledger.now_us, call_id),
    )
