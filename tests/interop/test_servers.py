"""Servers that others wrote work unmodified behind a front: the same lists but for names, the same answers.

Each server is started twice on the same fresh state, once by the client itself and once by the front, and is
asked the same things. What differs is what the front changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import httpx2
import mcp_types as t
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.session import ClientRequestContext
from mcp.client.streamable_http import streamable_http_client
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from tests.interop.conftest import Node
from tests.interop.running import Server, passthrough_in_front_of, remit_in_front_of

DEADLINE_S = 60

# The first run installs what the others are made of.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """One server of somebody else's: how to start it, and what to ask it."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    calls: Sequence[tuple[str, dict[str, Any]]]
    #: Calls that the server answers with `isError`.
    mistakes: Sequence[tuple[str, dict[str, Any]]] = ()
    reads: Sequence[str] = ()
    prompts: Sequence[tuple[str, dict[str, str]]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a guest finds its state and what it runs on."""

    folder: Path
    page: str
    node: Callable[[], Node]
    python: Callable[[], str]

    def fresh(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def npm(self, name: str, *arguments: str) -> list[str]:
        node = self.node()
        return [
            node.executable,
            str(node.modules / "@modelcontextprotocol" / name / "dist/index.js"),
            *arguments,
        ]


def git(place: Place) -> Guest:
    repository = place.fresh("repository")
    (repository / "hello.txt").write_text("hello\n")
    at = {"GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z"}
    for command in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "."],
        ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "commit", "--quiet", "-m", "Say hello"],
    ):
        subprocess.run(["git", *command], cwd=repository, check=True, env={**os.environ, **at})
    (repository / "hello.txt").write_text("hello, world\n")
    here = {"repo_path": str(repository)}
    return Guest(
        command=[place.python(), "-m", "mcp_server_git", "--repository", str(repository)],
        calls=[
            ("git_status", here),
            ("git_log", here),
            ("git_diff_unstaged", here),
            ("git_show", {**here, "revision": "HEAD"}),
            ("git_add", {**here, "files": ["hello.txt"]}),
            ("git_diff_staged", here),
        ],
        mistakes=[("git_show", {**here, "revision": "no-such-revision"})],
    )


def time(place: Place) -> Guest:
    question = {"source_timezone": "Europe/Berlin", "time": "16:30", "target_timezone": "Asia/Tokyo"}
    return Guest(
        command=[place.python(), "-m", "mcp_server_time", "--local-timezone", "UTC"],
        calls=[("convert_time", question)],
        mistakes=[("convert_time", {**question, "time": "no time"})],
    )


def fetch(place: Place) -> Guest:
    return Guest(
        command=[place.python(), "-m", "mcp_server_fetch", "--allow-private-ips"],
        calls=[("fetch", {"url": place.page}), ("fetch", {"url": place.page, "raw": True, "max_length": 20})],
        prompts=[("fetch", {"url": place.page})],
    )


def filesystem(place: Place) -> Guest:
    folder = place.fresh("files")
    (folder / "a.txt").write_text("one\ntwo\n")
    written = str(folder / "b.txt")
    return Guest(
        command=place.npm("server-filesystem", str(folder)),
        calls=[
            ("list_directory", {"path": str(folder)}),
            ("read_text_file", {"path": str(folder / "a.txt"), "head": 1}),
            ("write_file", {"path": written, "content": "three\n"}),
            ("read_multiple_files", {"paths": [written, str(folder / "missing.txt")]}),
            ("directory_tree", {"path": str(folder)}),
        ],
        mistakes=[("read_text_file", {"path": "/etc/hostname"})],
    )


def memory(place: Place) -> Guest:
    folder = place.fresh("memory")
    ada = {"name": "Ada", "entityType": "person", "observations": ["wrote the first program"]}
    return Guest(
        command=place.npm("server-memory"),
        environment={"MEMORY_FILE_PATH": str(folder / "memory.jsonl")},
        calls=[
            ("create_entities", {"entities": [ada]}),
            ("read_graph", {}),
            ("search_nodes", {"query": "program"}),
            ("delete_entities", {"entityNames": ["Ada"]}),
            ("open_nodes", {"names": ["Ada"]}),
        ],
        reads=["memory://knowledge-graph"],
    )


def everything(place: Place) -> Guest:
    return Guest(
        command=place.npm("server-everything", "stdio"),
        calls=[
            ("echo", {"message": "hello"}),
            ("get-sum", {"a": 1.5, "b": 2}),
            ("get-annotated-message", {"messageType": "error", "includeImage": True}),
            ("get-structured-content", {"location": "Chicago"}),
            ("get-resource-links", {"count": 2}),
            ("get-tiny-image", {}),
            ("trigger-long-running-operation", {"duration": 0.3, "steps": 3}),
        ],
        reads=["demo://resource/static/document/features.md"],
        prompts=[("simple-prompt", {}), ("args-prompt", {"city": "Paris", "state": "France"})],
    )


@pytest.mark.parametrize("front", ["passthrough", "remit"])
@pytest.mark.parametrize("guest", [git, time, fetch, filesystem, memory, everything])
async def test_a_server_of_another_make_lists_and_answers_alike_directly_and_behind_a_front(
    request: pytest.FixtureRequest, tmp_path: Path, page: str, front: str, guest: Callable[[Place], Guest]
) -> None:
    place = Place(
        folder=tmp_path,
        page=page,
        node=lambda: request.getfixturevalue("node"),
        python=lambda: request.getfixturevalue("python_with")("interop-servers"),
    )
    alone = guest(place)
    with anyio.fail_after(DEADLINE_S):
        # The bare proxy tells servers that they may ask; some offer more tools then.
        async with client_of(alone, may_ask=front == "passthrough") as client:
            era = "auto" if client.protocol_version in MODERN_PROTOCOL_VERSIONS else "legacy"
            expected = await everything_it_says(client, alone)
        failed = [answered["isError"] for answered in expected["answers"]]
        assert failed == [False] * len(alone.calls) + [True] * len(alone.mistakes)
        behind = guest(place)
        with front_of(front, behind, guest.__name__, tmp_path) as server:
            async with reach(server, era) as client:
                prefix = f"{guest.__name__}." if front == "remit" else ""
                said = await everything_it_says(client, behind, prefix)
    assert said == expected


async def everything_it_says(client: Client, guest: Guest, prefix: str = "") -> dict[str, Any]:
    """The lists and the answers, with names as the guest itself gives them."""

    def listed(entries: Sequence[Any]) -> list[dict[str, Any]]:
        dumped = [entry.model_dump(by_alias=True, mode="json", exclude_none=True) for entry in entries]
        ours = [entry for entry in dumped if not entry["name"].startswith("remit.")]
        for entry in ours:
            entry["name"] = entry["name"].removeprefix(prefix)
        return sorted(ours, key=lambda entry: entry["name"])

    reported: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        reported.append(progress)

    said: dict[str, Any] = {"tools": listed((await client.list_tools()).tools)}
    has = client.server_capabilities
    said["resources"] = listed((await client.list_resources()).resources) if has.resources else []
    said["templates"] = (
        listed((await client.list_resource_templates()).resource_templates) if has.resources else []
    )
    said["prompts"] = listed((await client.list_prompts()).prompts) if has.prompts else []
    said["answers"] = [
        answer(await client.call_tool(prefix + name, arguments, progress_callback=on_progress))
        for name, arguments in (*guest.calls, *guest.mistakes)
    ]
    said["progress"] = reported
    said["reads"] = [answer(await client.read_resource(uri)) for uri in guest.reads]
    said["got"] = [
        answer(await client.get_prompt(prefix + name, arguments)) for name, arguments in guest.prompts
    ]
    return said


def answer(result: t.Result) -> dict[str, Any]:
    """A result without its envelope: `_meta` and cache hints are each hop's own."""
    dumped = result.model_dump(by_alias=True, mode="json", exclude_none=True)
    return {
        key: value
        for key, value in dumped.items()
        if key not in ("_meta", "ttlMs", "cacheScope", "resultType")
    }


async def refuse(context: ClientRequestContext, params: object = None) -> t.ErrorData:
    return t.ErrorData(code=t.INVALID_REQUEST, message="Nobody can be asked.")


@asynccontextmanager
async def client_of(guest: Guest, *, may_ask: bool) -> AsyncIterator[Client]:
    command, *arguments = guest.command
    process = StdioServerParameters(command=command, args=arguments, env=dict(guest.environment))
    asked: dict[str, Any] = {}
    if may_ask:
        asked = {"sampling_callback": refuse, "elicitation_callback": refuse, "list_roots_callback": refuse}
    async with Client(process, cache=None, **asked) as client:
        yield client


@asynccontextmanager
async def reach(server: Server, era: str) -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers=server.headers, timeout=DEADLINE_S) as http,
        Client(streamable_http_client(server.url, http_client=http), mode=era, cache=None) as client,
    ):
        yield client


@contextmanager
def front_of(front: str, guest: Guest, name: str, folder: Path) -> Iterator[Server]:
    with ExitStack() as running:
        if front == "remit":
            source = {"kind": "mcp", "command": list(guest.command), "env": dict(guest.environment)}
            yield running.enter_context(remit_in_front_of({name: source}, folder / "remit"))
        else:
            # The proxy has no setting for it: the child's environment goes on its command line.
            settings = [f"{key}={value}" for key, value in guest.environment.items()]
            command = ["env", *settings, *guest.command]
            yield running.enter_context(passthrough_in_front_of(Server(command=command), folder))


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<html><body><h1>A page</h1><p>With a line of text.</p></body></html>"
        self.send_response(200 if self.path == "/page" else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Say nothing: pytest shows what matters."""


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """A web page on loopback, for the server that fetches pages."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/page"
        server.shutdown()
        thread.join()
