"""Which accounts a call pays from, and when their windows begin and end, in wall time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server.builders import a_remit

from remit.budgets import Accounts, window
from remit.config import Budget

ZONES = ["UTC", "Europe/Vienna", "America/Havana", "America/Sao_Paulo", "Asia/Kolkata", "Pacific/Apia"]


def us(text: str, zone: str = "UTC") -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1_000_000)


def shown(at_us: int | None, zone: str = "UTC") -> str:
    """Wall time with its distance from UTC: `03-29 00:00 +01`."""
    assert at_us is not None
    here = datetime.fromtimestamp(at_us / 1e6, UTC).astimezone(ZoneInfo(zone))
    return here.strftime("%m-%d %H:%M ") + here.strftime("%z")[:3]


@pytest.mark.parametrize(
    ("kind", "zone", "at", "start", "end"),
    [
        ("minute", "UTC", "2026-03-01T10:20:59.999999", "03-01 10:20 +00", "03-01 10:21 +00"),
        ("hour", "UTC", "2026-03-01T10:59:59", "03-01 10:00 +00", "03-01 11:00 +00"),
        ("day", "UTC", "2026-03-01T00:00:00", "03-01 00:00 +00", "03-02 00:00 +00"),
        ("day", "Europe/Vienna", "2026-03-29T12:00:00", "03-29 00:00 +01", "03-30 00:00 +02"),
        ("day", "Europe/Vienna", "2026-10-25T12:00:00", "10-25 00:00 +02", "10-26 00:00 +01"),
        ("hour", "Asia/Kolkata", "2026-03-01T10:20:00", "03-01 10:00 +05", "03-01 11:00 +05"),
        ("month", "UTC", "2026-12-31T23:59:59", "12-01 00:00 +00", "01-01 00:00 +00"),
        ("month", "UTC", "2028-02-29T00:00:00", "02-01 00:00 +00", "03-01 00:00 +00"),
        ("month", "America/New_York", "2026-03-20T12:00:00", "03-01 00:00 -05", "04-01 00:00 -04"),
    ],
)  # fmt: skip
def test_windows_are_those_of_the_wall_clock(kind: str, zone: str, at: str, start: str, end: str) -> None:
    found = window(kind, zone, us(at, zone))
    assert (shown(found[0], zone), shown(found[1], zone)) == (start, end)


def test_the_hour_that_comes_twice_is_two_windows() -> None:
    first = us("2026-10-25T00:30:00")  # 02:30 in Vienna, before the clocks go back
    second = first + 3600 * 1_000_000  # 02:30 again
    one, two = window("hour", "Europe/Vienna", first), window("hour", "Europe/Vienna", second)
    assert one[1] == two[0]


def test_a_day_whose_midnight_comes_twice_is_one_window() -> None:
    first = us("2010-10-31T04:00:00")  # midnight in Havana
    again = us("2010-10-31T05:00:00")  # and an hour later again
    assert window("day", "America/Havana", again + 1) == window("day", "America/Havana", first)


def test_where_the_clocks_move_by_half_an_hour_every_moment_is_within_its_window() -> None:
    for minute in range(0, 240, 5):
        at_us = us("2010-04-03T13:00:00") + minute * 60_000_000
        start, end = window("hour", "Australia/Lord_Howe", at_us)
        assert end is not None
        assert start <= at_us < end == start + 3_600_000_000


def test_a_total_has_one_window_that_never_ends() -> None:
    assert window("total", "UTC", us("2026-03-01T10:20:00")) == (0, None)


@given(
    kind=st.sampled_from(["minute", "hour", "day", "month"]),
    zone=st.sampled_from(ZONES),
    at_us=st.integers(us("1995-01-01T00:00:00"), us("2060-01-01T00:00:00")),
)
def test_windows_cover_all_time_without_a_gap_and_without_overlap(kind: str, zone: str, at_us: int) -> None:
    start, end = window(kind, zone, at_us)
    assert end is not None
    assert start <= at_us < end
    assert window(kind, zone, start) == (start, end)
    assert window(kind, zone, end - 1) == (start, end)
    assert window(kind, zone, end)[0] == end
    assert end - start <= timedelta(days=32) // timedelta(microseconds=1)


def a_budget(scope: Any = "agent", **more: Any) -> Budget:
    return Budget(**{"scope": scope, "unit": "usd", "window": "day", "limit": 5, **more})


async def test_a_call_pays_where_its_subject_is_named_and_its_unit_is_priced(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        call = remit.a_call("shop.send", {"text": "hi"})
    budgets = (
        a_budget("agent", id="agent:bot"),
        a_budget("agent", id="agent:other"),
        a_budget("tool", id="shop.send", unit="calls"),
        a_budget("tool", id="shop.look", unit="calls"),
        a_budget("tenant", unit="rows"),
        a_budget("run", id="run-1", window="total"),
    )
    found = Accounts(budgets).of_call(call, {"usd": 3, "calls": 1}, call.received_us)
    assert [charge.account for charge in found] == [
        "agent:acme/agent:bot:usd:day",
        "run:acme/run-1:usd:total",
        "tool:acme/shop.send:calls:day",
    ]
    assert [charge.amount for charge in found] == [3, 3, 1]
    assert [charge.account for charge in found] == sorted(charge.account for charge in found)


async def test_two_budgets_on_one_account_are_one_charge_with_the_limit_of_the_one_named(
    tmp_path: Path,
) -> None:
    async with a_remit(tmp_path) as remit:
        call = remit.a_call("shop.send", {"text": "hi"})
    for budgets in (
        (a_budget(limit=1), a_budget(id="agent:bot", limit=9)),
        (a_budget(id="agent:bot", limit=9), a_budget(limit=1)),
    ):
        (charge,) = Accounts(budgets).of_call(call, {"usd": 3}, call.received_us)
        assert charge.limit == 9
