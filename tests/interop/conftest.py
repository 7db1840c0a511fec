"""What the interoperability tests share: Node, Python packages, and three fronts of one fixture server."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.conformance import node as npm
from tests.interop import venvs
from tests.interop.running import (
    FIXTURE,
    Server,
    fixture_server,
    passthrough_command,
    passthrough_in_front_of,
    remit_command,
    remit_in_front_of,
    transparent,
)

FRONTS = ("direct", "passthrough", "remit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """One way to the fixture server, over each transport."""

    http: Server
    stdio: Server


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    executable: str
    modules: Path


@pytest.fixture(scope="session")
def node() -> Node:
    try:
        return Node(executable=npm.node(), modules=npm.modules("interop"))
    except npm.NodeMissing as missing:
        pytest.skip(f"NOT TESTED AGAINST NODE CLIENTS AND SERVERS: {missing}")


@pytest.fixture(scope="session")
def python_with() -> Callable[[str], str]:
    def python(group: str) -> str:
        try:
            return venvs.python(group)
        except venvs.PackagesMissing as missing:
            pytest.skip(f"NOT TESTED AGAINST OTHER PYTHON PACKAGES: {missing}")

    return python


@pytest.fixture(scope="session", params=FRONTS)
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as running:
        source = running.enter_context(fixture_server(folder))
        if request.param == "direct":
            yield Front(http=source, stdio=Server(command=[*FIXTURE, "--stdio"]))
        elif request.param == "passthrough":
            http = running.enter_context(passthrough_in_front_of(source, folder))
            yield Front(http=http, stdio=passthrough_command(source))
        else:
            sources = {"fixture": transparent(source)}
            http = running.enter_context(remit_in_front_of(sources, folder / "http"))
            yield Front(http=http, stdio=remit_command(sources, folder / "stdio"))
