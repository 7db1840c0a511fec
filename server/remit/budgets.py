"""Which accounts a call pays from, and for which window of time. Pure: balances live in the journal.

A budget in the configuration is a rule; an account is that rule applied to one subject. A call pays on
every account that its tenant, user, agent, run and tool make apply, all or none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from remit.config import Budget
from remit.identity import Principal
from remit.model import Call, Charge

#: Every call costs one of these; refusals and calls still waiting for people cost none.
CALLS = "calls"
_MINUTE_US = 60_000_000
_HOUR_US = 60 * _MINUTE_US

_Subjects = tuple[tuple[str, str], ...]


class Accounts:
    """The accounts that the budgets of one configuration make, for whoever calls."""

    def __init__(self, budgets: Sequence[Budget]) -> None:
        # A budget that names one subject takes the place of the one for all: an account has one limit.
        self._budgets = sorted(budgets, key=lambda budget: budget.id != "*")
        # Most calls are by who has called before, in the same minute.
        self._in_minute = lru_cache(maxsize=1024)(self._of)

    def of_call(self, call: Call, estimates: Mapping[str, int], at_us: int) -> tuple[Charge, ...]:
        """What to hold for `call`, ordered by account so that every writer locks in the same order."""
        who = call.principal
        subjects = (
            ("tenant", who.tenant),
            ("user", who.user),
            ("agent", who.agent),
            ("run", call.run),
            ("tool", call.tool.name),
        )
        return self._charges(who.tenant, subjects, estimates, at_us)

    def of_caller(self, principal: Principal, run: str, at_us: int) -> tuple[Charge, ...]:
        """The accounts that belong to one caller alone, with nothing to hold on them."""
        subjects = (("user", principal.user), ("agent", principal.agent), ("run", run))
        nothing = {budget.unit: 0 for budget in self._budgets}
        return self._charges(principal.tenant, subjects, nothing, at_us)

    def _charges(
        self, tenant: str, subjects: _Subjects, amounts: Mapping[str, int], at_us: int
    ) -> tuple[Charge, ...]:
        # Every window begins on a whole minute.
        return tuple(
            Charge(unit=unit, amount=amounts[unit], **rest)
            for unit, rest in self._in_minute(tenant, subjects, at_us // _MINUTE_US * _MINUTE_US)
            if unit in amounts
        )

    def _of(self, tenant: str, subjects: _Subjects, at_us: int) -> tuple[tuple[str, dict[str, Any]], ...]:
        """Of each account the unit, and what is said of a charge on it beside the amount."""
        found: dict[str, tuple[str, dict[str, Any]]] = {}
        named = dict(subjects)
        for budget in self._budgets:
            subject = named.get(budget.scope)
            if subject is None or budget.id not in ("*", subject):
                continue
            account = f"{budget.scope}:{tenant}/{subject}:{budget.unit}:{budget.window}"
            start_us, end_us = window(budget.window, budget.zone, at_us)
            found[account] = (
                budget.unit,
                {
                    "account": account,
                    "window_start_us": start_us,
                    "window_end_us": end_us,
                    "limit": budget.limit,
                    "label": _label(budget.scope, budget.unit, budget.window),
                    "on_exceed": budget.on_exceed,
                    "wait_s": budget.wait,
                    "warn_from": budget.limit * budget.warn_at // 100,
                },
            )
        return tuple(found[account] for account in sorted(found))


def in_words(amounts: Mapping[str, int]) -> str:
    """What something costs, by unit, as people read it; empty when it costs nothing."""
    return ", ".join(f"{amount} {unit}" for unit, amount in amounts.items())


def tenant_and_unit(account: str) -> tuple[str, str]:
    """Whose an account is, and what it counts."""
    tenant = account.partition(":")[2].partition("/")[0]
    return tenant, account.rpartition(":")[0].rpartition(":")[2]


def label_of(account: str) -> str:
    """What an account is, as agents are told."""
    scope, _, rest = account.partition(":")
    return _label(scope, *rest.rsplit(":", 2)[1:])


def _label(scope: str, unit: str, window: str) -> str:
    return f"total {unit} of this {scope}" if window == "total" else f"{unit} of this {scope} per {window}"


def window(kind: str, zone: str, at_us: int) -> tuple[int, int | None]:
    """The start and end (µs) of the window of `kind` that contains `at_us`, in wall time of `zone`."""
    return _window(kind, zone, at_us // _MINUTE_US * _MINUTE_US)  # every window begins on a whole minute


@lru_cache(maxsize=64)
def _window(kind: str, zone: str, at_us: int) -> tuple[int, int | None]:
    match kind:
        case "total":
            return 0, None
        case "minute":
            return at_us, at_us + _MINUTE_US
        case _:
            pass
    here = datetime.fromtimestamp(at_us / 1_000_000, UTC).astimezone(ZoneInfo(zone))
    match kind:
        case "hour":
            offset = (here.utcoffset() or timedelta()) // timedelta(microseconds=1)
            first = (at_us + offset) // _HOUR_US * _HOUR_US - offset
            return first, first + _HOUR_US
        case "day":
            # fold=0: where the clocks go back at midnight, the day begins at the first of the two.
            start = here.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
            end = start + timedelta(days=1)
        case "month":
            start = here.replace(day=1, hour=0, minute=0, second=0, microsecond=0, fold=0)
            end = (start + timedelta(days=32)).replace(day=1)
        case _:
            raise AssertionError(f"no window {kind!r}")
    return _us(start), _us(end)


def _us(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000
