"""Balances inside one transaction: hold before, resolve after, and what adjusts them beside both.

A two-phase transfer: a hold reserves, resolving releases it and posts what was really spent. What was
spent beyond a limit is recorded (`overrun`), since the effect has happened; the next hold is refused, unless
the limit is one that only observes, a person has agreed, or the call takes another one back. What is beyond
all counting (AMOUNT_MAX) is not counted: such an account takes nothing more, whatever is given back.
Invariants: `held` = holds - releases, `posted` = posts, `overrun` = max(0, held + posted - refunded - limit).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from remit.budgets import CALLS
from remit.ledger import Account, Held, Ledger
from remit.model import Charge
from remit_adapters.base import Json


def too_small(ledger: Ledger, charges: Sequence[Charge]) -> tuple[Charge, Account] | None:
    """The first charge that its account cannot take, in order. Writes nothing but a changed limit.

    Nothing is too much for no account: what costs nothing passes beyond a limit too.
    """
    for charge in charges:
        account = _account(ledger, charge)
        if charge.amount > max(0, account.left):
            return charge, account
    return None


def left(ledger: Ledger, charge: Charge) -> int:
    """What the charge's account can still take."""
    return _account(ledger, charge).left


def standing(ledger: Ledger, charges: Sequence[Charge]) -> list[Json]:
    """What each account can still take, for the agent that it pays for."""
    return [
        {
            "budget": charge.label,
            "unit": charge.unit,
            "limit": charge.limit,
            "left": max(0, left(ledger, charge)),
            "renewed_us": charge.window_end_us,
        }
        for charge in charges
    ]


def hold(ledger: Ledger, call_id: str, charges: Sequence[Charge]) -> list[Json]:
    """Reserve what the call may cost; return what is held, by account."""
    told: list[Json] = []
    if not charges:
        return told
    held = ledger.held.setdefault(call_id, [])
    for charge in charges:
        name, start_us, unit = charge.account, charge.window_start_us, charge.unit
        account = _account(ledger, charge)
        amount = min(charge.amount, account.countable)
        account.held += amount
        ledger.changes(account)
        row = (call_id, name, start_us, unit, amount, "held", 0, 0, ledger.now_us, None)
        ledger.insert("holds", row)
        held.append(Held(name, start_us, unit, amount))
        told.append({"account": name, "window_us": start_us, "amount": amount})
        _track_overrun(ledger, call_id, name, start_us, account)
    return told


def near(ledger: Ledger, charges: Sequence[Charge]) -> tuple[str, ...]:
    """A sentence for each limit that has come near."""
    told: list[str] = []
    for charge in charges:
        if charge.warn_from is None:
            continue
        account = ledger.account(charge.account, charge.window_start_us, limit=charge.limit)
        if account.limit_amount - account.left >= charge.warn_from:
            told.append(f"{max(0, account.left)} of {account.limit_amount} are left of {charge.label}.")
    return tuple(told)


def resolve(ledger: Ledger, call_id: str, costs: Mapping[str, int]) -> list[Json]:
    """Release every hold of the call and post what its unit really cost, in the window that admitted it.

    A unit that `costs` does not name cost nothing. Returns what was spent, by account.
    """
    spent: list[Json] = []
    for held in sorted(held_by(ledger, call_id), key=lambda held: held.account):
        name, start_us = held.account, held.window_start_us
        account = ledger.account(name, start_us, limit=0)
        account.held -= held.amount
        cost = min(costs.get(held.unit, 0), account.countable)
        account.posted += cost
        ledger.changes(account)
        ledger.update("resolve", ("posted" if cost else "voided", cost, ledger.now_us, call_id, name))
        _track_overrun(ledger, call_id, name, start_us, account)
        spent.append({"account": name, "amount": cost})
    ledger.held.pop(call_id, None)
    return spent


def held_by(ledger: Ledger, call_id: str) -> Sequence[Held]:
    """What the call still holds."""
    if (known := ledger.held.get(call_id)) is not None:
        return known
    rows = ledger.all(
        "SELECT account, window_start_us, unit, amount FROM holds WHERE call_id = ? AND state = 'held'",
        (call_id,),
    )
    return [Held(*row) for row in rows]


def refund(ledger: Ledger, call_id: str, percent: int) -> list[Json]:
    """Give back a share of what a call cost, in the windows that paid; the calls it counted as stay counted.

    Returns what came back, by account.
    """
    back: list[Json] = []
    for row in ledger.all(
        "SELECT account, window_start_us, posted, refunded FROM holds WHERE call_id = ? AND state = 'posted'"
        " AND unit <> ? ORDER BY account",
        (call_id, CALLS),
    ):
        name, start_us = row["account"], row["window_start_us"]
        amount = row["posted"] * percent // 100 - row["refunded"]
        if amount <= 0:
            continue
        account = ledger.account(name, start_us, limit=0)
        account.refunded += amount
        ledger.changes(account)
        ledger.execute(
            "UPDATE holds SET refunded = refunded + ? WHERE call_id = ? AND account = ?",
            (amount, call_id, name),
        )
        _adjust(ledger, call_id, name, start_us, "refund", amount)
        _track_overrun(ledger, call_id, name, start_us, account)
        back.append({"account": name, "amount": amount})
    return back


def _account(ledger: Ledger, charge: Charge) -> Account:
    account = ledger.account(charge.account, charge.window_start_us, limit=charge.limit)
    if account.limit_amount != charge.limit:  # the operator changed the budget within its window
        account.limit_amount = charge.limit
        ledger.changes(account)
        _track_overrun(ledger, "", charge.account, charge.window_start_us, account)
    return account


def _track_overrun(ledger: Ledger, call_id: str, name: str, window_start_us: int, account: Account) -> None:
    overrun = max(0, -account.left)
    if overrun != account.overrun:
        _adjust(ledger, call_id, name, window_start_us, "overrun", overrun - account.overrun)
        account.overrun = overrun


def _adjust(ledger: Ledger, call_id: str, account: str, window_start_us: int, kind: str, amount: int) -> None:
    ledger.insert("budget_adjustments", (ledger.now_us, call_id, account, window_start_us, kind, amount))
