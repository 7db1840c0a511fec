"""What a run must be told of its own calls: which of them others have taken back, or were never made.

Told once, and durable. An agent that goes on as if its work still stood would build on nothing. So whoever
takes a call back leaves a notice for its run, in the transaction that records the undo, and the run's next
answer carries it; so it is with a call that was held back and, when its time comes, is called off or fails:
nobody waits for its answer. What an agent takes back within the run itself it knows already. The front
decides how it is said.
"""

from __future__ import annotations

from dataclasses import dataclass

from remit.ledger import Ledger, Values
from remit.runs import RunKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One call of the run that does not stand. By whom is a role: a name is no agent's business."""

    call_id: str
    tool: str
    #: Who took it back: `operator`, or `agent` for the same agent in another run. `gateway`: it was held
    #: back, and when its time came it might not be made any more, or failed.
    by: str
    at_us: int
    #: Why it was called off then, or with what it failed.
    why: str
    failed: bool


def leave(ledger: Ledger, undo_call: str) -> None:
    """Note for its run that `undo_call` has taken a call back, unless that run did it itself."""
    _insert(
        ledger,
        'SELECT o.id, o.tenant, o.agent, o."user", o.run, o.tool,'
        " CASE WHEN u.auth IN ('local', 'playbook') THEN 'operator' ELSE 'agent' END, ?, NULL"
        " FROM calls AS u JOIN calls AS o ON o.id = u.of_call WHERE u.id = ?"
        ' AND (u.tenant, u.agent, u."user", u.run) <> (o.tenant, o.agent, o."user", o.run)'
        " ON CONFLICT DO NOTHING",
        (ledger.now_us, undo_call),
    )


def leave_not_done(ledger: Ledger, call_id: str) -> None:
    """Note for its run that a call which was held back is not made after all, or failed."""
    _insert(
        ledger,
        'SELECT id, tenant, agent, "user", run, tool, ?, ?, NULL FROM calls WHERE id = ?',
        ("gateway", ledger.now_us, call_id),
    )


def _insert(ledger: Ledger, selected: str, values: Values) -> None:
    left = ledger.all(f'INSERT INTO notices {selected} RETURNING tenant, agent, "user", run', values)
    # Not looked up again: there may be as many notices as a rollback has calls.
    ledger.untold |= {(row["tenant"], row["agent"], row["user"], row["run"]) for row in left}


def take(ledger: Ledger, key: RunKey) -> tuple[Notice, ...]:
    """What the run has not been told yet; from now on it has."""
    where = 'tenant = ? AND agent = ? AND "user" = ? AND run = ? AND told_us IS NULL'
    ledger.write_out()  # how the call ended may have been written in this very transaction
    rows = ledger.all(
        'SELECT call_id, tool, "by", at_us,'  # noqa: S608 - the columns are ours
        """ CASE "by" WHEN 'gateway' THEN (SELECT COALESCE(error, '') FROM calls WHERE id = call_id)"""
        """ ELSE '' END AS why,"""
        """ "by" = 'gateway' AND EXISTS"""
        """ (SELECT 1 FROM calls WHERE id = call_id AND state = 'failed') AS failed"""
        f" FROM notices WHERE {where}",
        key,
    )
    if rows:
        ledger.execute(f"UPDATE notices SET told_us = ? WHERE {where}", (ledger.now_us, *key))  # noqa: S608 - the columns are ours
        ledger.event(
            "run.told",
            tenant=key[0],
            call_id=None,
            agent=key[1],
            user=key[2],
            run=key[3],
            taken_back=[row["call_id"] for row in rows if row["by"] != "gateway"],
            called_off=[row["call_id"] for row in rows if row["by"] == "gateway" and not row["failed"]],
            failed=[row["call_id"] for row in rows if row["failed"]],
        )
    ledger.reload_untold()
    return tuple(
        Notice(
            call_id=row["call_id"],
            tool=row["tool"],
            by=row["by"],
            at_us=row["at_us"],
            why=row["why"],
            failed=bool(row["failed"]),
        )
        for row in rows
    )
