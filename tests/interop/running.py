"""MCP servers as child processes, for as long as a `with` block: any command, the fixtures, and Remit itself.

A server that serves HTTP prints one JSON line with its `url` when it listens. Whatever it writes to stderr is
kept in its folder and shown when it does not come up. Everything binds to loopback and port 0.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
FIXTURE = [sys.executable, str(REPOSITORY / "tests/fixtures/conformance_server.py")]
PASSTHROUGH = [sys.executable, str(REPOSITORY / "tests/fixtures/passthrough.py")]
REMIT = [sys.executable, "-m", "remit"]

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 10

# The one principal of these tests may do everything: they are about what passes, not about what is refused.
POLICY = """\
p, agent:tester, interop, *, *, 1 == 1, allow
p, user:tester, interop, *, *, 1 == 1, allow
g3, agent:tester, user:tester, interop
"""


class DidNotStart(Exception):
    """A server did not come up; the message is what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """How to reach one MCP server: over HTTP when it has a `url`, else by starting `command`."""

    command: Sequence[str] = ()
    url: str = ""
    #: Sent as `Authorization: Bearer`, when the server wants one.
    key: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


@contextmanager
def serving(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Run `command` until the block ends; yields the URL that it prints."""
    complaints = folder / f"{Path(command[-1]).stem}.stderr"
    with (
        complaints.open("w+") as stderr,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=folder,
            env={**os.environ, **(environment or {})},
        ) as process,
    ):
        try:
            assert process.stdout is not None
            readable, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
            line = process.stdout.readline() if readable else ""
            if not line:
                raise DidNotStart(f"{' '.join(command)} did not start:\n{complaints.read_text()[-4000:]}")
            yield json.loads(line)["url"]
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def fixture_server(folder: Path) -> Iterator[Server]:
    with serving([*FIXTURE, "--http", "127.0.0.1:0"], folder) as url:
        yield Server(url=url)


@contextmanager
def passthrough_in_front_of(server: Server, folder: Path) -> Iterator[Server]:
    to = [server.url] if server.url else server.command
    with serving([*PASSTHROUGH, "--http", "127.0.0.1:0", "--to", *to], folder) as url:
        yield Server(url=url)


def passthrough_command(server: Server) -> Server:
    return Server(
        command=[*PASSTHROUGH, "--stdio", "--to", *([server.url] if server.url else server.command)]
    )


@contextmanager
def remit_in_front_of(sources: Mapping[str, Mapping[str, Any]], folder: Path) -> Iterator[Server]:
    """Remit over HTTP, with these sources and a key for the tests' agent."""
    config = remit_config(sources, folder)
    who = ["--agent", "agent:tester", "--user", "user:tester"]
    command = [*REMIT, "agents", "key", "create", *who, "--json", "--config", str(config)]
    key = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if key.returncode != 0:
        raise DidNotStart(f"no key for the tests' agent:\n{key.stdout}{key.stderr}")
    serve = [*REMIT, "serve", "--http", "127.0.0.1:0", "--json", "--config", str(config)]
    with serving(serve, folder) as url:
        yield Server(url=url, key=json.loads(key.stdout)["key"])


def remit_command(sources: Mapping[str, Mapping[str, Any]], folder: Path) -> Server:
    """Remit over stdio, to be started by a client."""
    config = remit_config(sources, folder)
    return Server(command=[*REMIT, "serve", "--stdio", "--config", str(config)])


def remit_config(sources: Mapping[str, Mapping[str, Any]], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.csv").write_text(POLICY)
    path = folder / "remit.yaml"
    document = {
        "version": 1,
        "store": {"path": "remit.db"},
        "policy": {"files": ["policy.csv"]},
        "identity": {
            "stdio": {"tenant": "interop", "agent": "agent:tester", "user": "user:tester"},
            "cli": {"tenant": "interop", "user": "user:tester"},
        },
        "sources": sources,
        "tools": {"*": {"effect": "read"}},
    }
    # JSON is YAML, and needs no quoting rules of ours.
    path.write_text(json.dumps(document, indent=2))
    return path


def transparent(server: Server) -> dict[str, Any]:
    """One source that exports its own names and whose every message may pass."""
    target: dict[str, Any] = {"url": server.url} if server.url else {"command": list(server.command)}
    return {"kind": "mcp", **target, "prefix": "", "relay": ["elicitation", "sampling", "roots", "logging"]}
