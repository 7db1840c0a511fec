"""Nothing is lost and nothing is invented, whenever a process that serves is killed."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from tests.crash.at_point import FAULTS, Moment, fork
from tests.crash.every_point import cut_everywhere
from tests.crash.place import a_place, beside_acme
from tests.crash.run import campaign

MOMENTS: tuple[Moment, ...] = get_args(Moment)


async def test_killed_at_any_moment_nothing_is_lost(tmp_path: Path) -> None:
    report = await campaign(await a_place(tmp_path), kills=1, seed=1)
    assert report.flaws == []
    assert report.refunds


async def test_one_process_goes_on_while_another_on_the_same_records_is_killed(tmp_path: Path) -> None:
    async with beside_acme(tmp_path) as place:
        report = await campaign(place, kills=4, seed=2, servers=2, start=fork)
    assert report.flaws == []
    assert report.in_flight


async def test_an_answer_that_was_given_is_true_wherever_the_process_died(tmp_path: Path) -> None:
    async with beside_acme(tmp_path, agents=1) as place:
        deaths, flaws = await cut_everywhere(place, ["before answer", "after answer"])
    assert flaws == []
    assert len(deaths) > 8


@pytest.mark.slow
async def test_a_server_that_dies_at_any_point_leaves_the_truth(tmp_path: Path) -> None:
    async with beside_acme(tmp_path, agents=1) as place:
        deaths, flaws = await cut_everywhere(place, MOMENTS)
    assert flaws == []
    assert {death.moment for death in deaths} == set(MOMENTS)


@pytest.mark.slow
@pytest.mark.timeout(3_000)
@pytest.mark.parametrize(("kills", "servers"), [(200, 1), (50, 2)])
async def test_two_hundred_kills_lose_nothing(tmp_path: Path, kills: int, servers: int) -> None:
    report = await campaign(await a_place(tmp_path), kills=kills, seed=kills, servers=servers)
    assert report.flaws == []
    assert report.calls["in_doubt"]
    assert report.cancelled


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_that_was_put_in_is_found(tmp_path: Path, fault: str) -> None:
    async with beside_acme(tmp_path, agents=1) as place:
        _, flaws = await cut_everywhere(place, MOMENTS, fault=fault)
    assert flaws
