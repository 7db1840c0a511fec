"""The shop of the kit, and one Remit in front of it for all tests."""

from collections.abc import Iterator

import pytest
from tests.retail.kit_server import KitMissing
from tests.retail.shop import Governed, Shop, governed, open_shop


@pytest.fixture(scope="session")
def shop() -> Shop:
    try:
        return open_shop()
    except KitMissing as missing:
        pytest.skip(f"NOT TESTED ON A POLICY THAT OTHERS WROTE: {missing}")


@pytest.fixture(scope="session")
def remit(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Governed]:
    with governed(tmp_path_factory.mktemp("retail"), shop) as remit:
        yield remit
