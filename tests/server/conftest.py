"""Acme with a history, for tests of the command line: played once, copied for each test."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from pathlib import Path

import anyio
import pytest
from tests.postgres import Databases
from tests.server import acme, builders


@pytest.fixture(params=["sqlite", "postgresql"])
def every_database(request: pytest.FixtureRequest) -> Generator[str]:
    """Whatever a test builds stands on one kind of database, and then on the other."""
    if request.param == "postgresql":
        builders.databases = request.getfixturevalue("postgres")
    yield request.param
    builders.databases = None


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, acme.Story]:
    folder = tmp_path_factory.mktemp("acme")
    return folder, anyio.run(acme.a_story, acme.a_place(folder))


@pytest.fixture
def story(played: tuple[Path, acme.Story]) -> acme.Story:
    return played[1]


@pytest.fixture(scope="session")
def played_on_postgres(
    tmp_path_factory: pytest.TempPathFactory, postgres: Databases
) -> tuple[Path, acme.Story, str]:
    folder, url = tmp_path_factory.mktemp("acme"), postgres.fresh()
    return folder, anyio.run(acme.a_story, acme.a_place(folder, url)), url


@pytest.fixture(params=["sqlite", "postgresql"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[acme.Terminal, acme.Story]:
    """The command line on a copy of its own, on one kind of database, and then on the other."""
    folder = tmp_path / "acme"
    if request.param == "sqlite":
        from_folder, story = request.getfixturevalue("played")
        shutil.copytree(from_folder, folder)
    else:
        from_folder, story, url = request.getfixturevalue("played_on_postgres")
        shutil.copytree(from_folder, folder)
        acme.a_place(folder, request.getfixturevalue("postgres").copy(url))
    return acme.Terminal(folder / "remit.yaml"), story


@pytest.fixture
def remit(played: tuple[Path, acme.Story], tmp_path: Path) -> acme.Terminal:
    """The command line on a copy of its own."""
    folder = tmp_path / "acme"
    shutil.copytree(played[0], folder)
    return acme.Terminal(folder / "remit.yaml")
