"""What becomes of a call that a budget cannot take: refused, put to people, or held back until it can.

Asked inside the transaction that would let the call out, where the balances cannot change any more; reads
them and writes none (`balances.py` does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from remit import balances, deferred
from remit.ledger import Ledger
from remit.model import Call, Charge, Remedy, Verdict
from remit_rbac import Rung


def short(
    ledger: Ledger, call: Call, verdict: Verdict, charges: Sequence[Charge], *, agreed: bool
) -> Verdict | Charge | None:
    """The refusal when an account cannot take its hold, or the word that people must agree (`agreed`).

    A charge: the call can wait until its account takes it. An empty budget never stands in the way of an
    undo.
    """
    if call.kind in ("undo", "verify", "after"):
        return None
    strict = [
        charge
        for charge in charges
        if charge.on_exceed in ("deny", "defer") or (charge.on_exceed == "approve" and not agreed)
    ]
    if balances.too_small(ledger, strict) is None:
        return None
    # What cannot be made at all is not put to people, and what people must agree to does not wait before.
    ranked = sorted(strict, key=lambda charge: ("deny", "approve", "defer").index(charge.on_exceed))
    found = balances.too_small(ledger, ranked)
    assert found is not None  # noqa: S101 - it is the same charges
    charge, account = found
    # A limit of nothing is one that people raise when the time has come.
    if charge.amount > charge.limit > 0 and charge.on_exceed != "approve":
        return replace(
            verdict,
            rung=Rung.DENY,
            code="budget_exhausted",
            reason=f"The budget for {charge.label} can never take this call: it needs {charge.amount}, and"
            f" the limit is {charge.limit}.",
            remedy=Remedy.CHANGE,
        )
    if deferred.can_wait(ledger, call, charge) and not verdict.owes("redact"):
        if ledger.now_us < deferred.waits_until_us(call, charge, ledger.now_us):
            return charge
        return replace(
            verdict,
            rung=Rung.DENY,
            code="waited_too_long",
            reason=f"The budget for {charge.label} could not take this call in all the time it waited.",
            remedy=Remedy.ASK,
        )
    if charge.on_exceed == "approve":
        return replace(
            verdict,
            rung=Rung.APPROVE,
            code="over_budget",
            reason=f"The budget for {charge.label} cannot take this call, so a person must agree to it.",
            remedy=Remedy.ASK,
        )
    until = charge.window_end_us if charge.limit else None  # no window brings anything where there is nothing
    when = (
        f" It is free again at {datetime.fromtimestamp(until // 1_000_000, UTC):%Y-%m-%d %H:%M:%SZ}."
        if until
        else ""
    )
    return replace(
        verdict,
        rung=Rung.DENY,
        code="budget_exhausted",
        reason=f"The budget for {charge.label} cannot take this call: it needs {charge.amount}, "
        f"{max(0, account.left)} of {account.limit_amount} are left.{when}",
        remedy=Remedy.WAIT if until else Remedy.ASK,
    )


def overdrawn(ledger: Ledger, charges: Sequence[Charge]) -> Verdict | None:
    """The refusal when what a call pays from, which holds for it already, was lowered meanwhile."""
    for charge in charges:
        if charge.on_exceed == "deny" and balances.left(ledger, charge) < 0:
            return Verdict(
                rung=Rung.DENY,
                code="budget_exhausted",
                reason=f"The budget for {charge.label} was lowered, and cannot take this call any more.",
                remedy=Remedy.ASK,
            )
    return None
