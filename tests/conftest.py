"""What every test shares: the asyncio backend, and nothing else."""

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
