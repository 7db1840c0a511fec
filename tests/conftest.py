"""What every test shares: the asyncio backend, and a PostgreSQL server for those that ask for one."""

import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings
from tests.postgres import Databases, Server

# No test fails because the machine has much else to do.
settings.register_profile("remit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("remit")


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
