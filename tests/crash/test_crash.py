"""Nothing is lost and nothing is invented, whenever a process that serves is killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.crash.place import a_place
from tests.crash.run import campaign


async def test_killed_at_any_moment_nothing_is_lost(tmp_path: Path) -> None:
    report = await campaign(await a_place(tmp_path), kills=4, seed=1)
    assert report.flaws == []
    assert report.in_flight
    assert report.refunds


async def test_one_process_goes_on_while_another_on_the_same_records_is_killed(tmp_path: Path) -> None:
    report = await campaign(await a_place(tmp_path), kills=2, seed=2, servers=2)
    assert report.flaws == []
    assert report.in_flight


@pytest.mark.slow
@pytest.mark.timeout(3_000)
@pytest.mark.parametrize(("kills", "servers"), [(200, 1), (50, 2)])
async def test_two_hundred_kills_lose_nothing(tmp_path: Path, kills: int, servers: int) -> None:
    report = await campaign(await a_place(tmp_path), kills=kills, seed=kills, servers=servers)
    assert report.flaws == []
    assert report.calls["in_doubt"]
    assert report.cancelled
