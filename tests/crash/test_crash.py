"""Nothing is lost and nothing is invented, whenever a process that serves is killed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from tests.crash.at_point import FAULTS
from tests.crash.every_point import cut_everywhere
from tests.crash.mutants import AMONG_SEVERAL, ON_POSTGRES
from tests.crash.place import Place, a_place, beside_acme
from tests.crash.run import MOMENTS, Campaign, Database, Report, forked, spawn
from tests.crash.zygote import Zygote, a_zygote
from tests.postgres import Databases

from remit.app import App
from remit.config_file import load
from remit.errors import StoreUnavailable
from remit.journal import Journal
from remit.writer import Writer

#: Which database, and how many servers share it.
ARRANGEMENTS: list[tuple[Database, int]] = [("sqlite", 1), ("sqlite", 3), ("postgresql", 3)]


@pytest.fixture(scope="module")
def zygote() -> Generator[Zygote]:
    with a_zygote() as it:
        yield it


@asynccontextmanager
async def a_shop(folder: Path, database: Database, request: pytest.FixtureRequest) -> AsyncGenerator[Place]:
    url = None
    if database == "postgresql":
        databases: Databases = request.getfixturevalue("postgres")
        url = databases.fresh()
    async with beside_acme(folder, agents=1, database=url) as place:
        yield place


async def test_killed_at_any_moment_nothing_is_lost(tmp_path: Path) -> None:
    report = Report(seed=1)
    await Campaign(await a_place(tmp_path), spawn, report).run(kills=1)
    assert report.flaws == []
    assert report.kills


async def test_an_answer_that_was_given_is_true_wherever_the_process_died(
    tmp_path: Path, zygote: Zygote
) -> None:
    async with beside_acme(tmp_path, agents=1) as place:
        deaths, flaws = await cut_everywhere(place, zygote, ["after answer"])
    assert flaws == []
    assert len(deaths) > 8


async def test_a_start_that_fails_because_the_records_went_away_comes_to_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*args: object, **more: object) -> None:
        monkeypatch.setattr(Writer, "write", away)
        raise StoreUnavailable("they are away")

    place = await a_place(tmp_path)
    monkeypatch.setattr(Journal, "decides_by", away)
    with anyio.fail_after(20), pytest.raises(BaseExceptionGroup, match="unhandled"):
        async with App(load(place.config), role="http").running():
            pytest.fail("it started")


@pytest.mark.slow
@pytest.mark.parametrize(("database", "servers"), ARRANGEMENTS)
async def test_whoever_is_killed_on_whatever_database_nothing_is_lost(
    tmp_path: Path, database: Database, servers: int
) -> None:
    report = Report(seed=servers, database=database, servers=servers)
    await forked(tmp_path, report, kills=30)
    assert report.flaws == []
    assert report.in_flight
    assert report.effects


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("database", "servers"), ARRANGEMENTS)
async def test_a_server_that_dies_at_any_point_leaves_the_truth(
    tmp_path: Path, zygote: Zygote, database: Database, servers: int, request: pytest.FixtureRequest
) -> None:
    async with a_shop(tmp_path, database, request) as place:
        deaths, flaws = await cut_everywhere(place, zygote, MOMENTS, servers=servers)
    assert flaws == []
    assert {death.moment for death in deaths} == set(MOMENTS)


@pytest.mark.slow
@pytest.mark.timeout(3_000)
async def test_two_hundred_kills_of_the_real_command_lose_nothing(tmp_path: Path) -> None:
    report = Report(seed=200)
    await Campaign(await a_place(tmp_path), spawn, report).run(kills=200)
    assert report.flaws == []
    assert report.calls["in_doubt"]
    assert report.undos["done"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS.keys() - {*AMONG_SEVERAL, *ON_POSTGRES})
async def test_a_fault_that_was_put_in_is_found(tmp_path: Path, zygote: Zygote, fault: str) -> None:
    async with beside_acme(tmp_path, agents=1) as place:
        _, flaws = await cut_everywhere(place, zygote, MOMENTS, fault=fault)
    assert flaws


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("fault", "database"),
    [*((fault, "sqlite") for fault in AMONG_SEVERAL), *((fault, "postgresql") for fault in ON_POSTGRES)],
)
async def test_a_fault_that_shows_among_several_servers_is_found(
    tmp_path: Path, fault: str, database: Database
) -> None:
    report = Report(seed=1, database=database, servers=3)
    await forked(tmp_path, report, kills=120, fault=fault)
    assert report.flaws
