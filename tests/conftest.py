"""What every test shares: the asyncio backend, and a PostgreSQL server for those that ask for one."""

import os
from collections.abc import Generator

import pytest
from tests.postgres import Databases, Server


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres() -> Generator[Databases]:
    """Databases on a server that lives as long as the tests."""
    given = os.environ.get("REMIT_TEST_POSTGRES_URL")
    server = None if given else Server()
    try:
        databases = Databases(given or server.url())
        yield databases
        databases.drop()
    finally:
        if server:
            server.stop()
