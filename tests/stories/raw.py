"""A client that sends exactly these bytes, and a Remit to send them to.

Not an MCP client: it neither checks nor mends anything on its side.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.interop.running import REMIT, REPOSITORY, DidNotStart, remit_config, serving

from remit.database import reading

HOSTILE = [sys.executable, "-S", str(REPOSITORY / "tests/fixtures/hostile_server.py")]
MODERN, SESSION = "2026-07-28", "2025-11-25"
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
}
#: What a request carries in a session: nothing that anybody reads.
NOTHING = {"example.com/nothing": True}
HELLO = {
    "jsonrpc": "2.0",
    "id": "hello",
    "method": "initialize",
    "params": {
        "protocolVersion": SESSION,
        "capabilities": {},
        "clientInfo": {"name": "raw", "version": "1"},
    },
}
ANSWER_S = 20

#: What no answer may show of the inside: traces, paths, classes, addresses, libraries.
INSIDE = re.compile(
    rb"Traceback|File \\?\"|/work/|/tmp/|/home/|site-packages|\.py\b"
    rb"|\b[A-Z]\w+(?:Error|Exception)\b|0x[0-9a-f]{6}"
    rb"|pydantic|orjson|starlette|uvicorn|anyio|asyncio|jsonschema|sqlite|remit\.(?:front|pipeline|calls)",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    #: HTTP status; 0 on stdio.
    status: int
    raw: bytes
    #: The JSON-RPC message; None when there is none.
    message: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    """One endpoint, reached by connections of one request each."""

    url: str
    key: str

    def headers(self, **changes: str | None) -> list[tuple[str, str]]:
        """What every request needs; a keyword changes a header, None leaves it out."""
        fields = {
            "host": urlsplit(self.url).netloc,
            "authorization": f"Bearer {self.key}",
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            **{name.replace("_", "-"): value for name, value in changes.items()},
        }
        return [(name, value) for name, value in fields.items() if value is not None]

    def send(
        self, body: bytes, headers: list[tuple[str, str]], *, method: str = "POST", path: str = "/mcp"
    ) -> Answer:
        url = urlsplit(self.url)
        with socket.create_connection((url.hostname, url.port), timeout=ANSWER_S) as connection:
            names = {name.lower() for name, _ in headers}
            length = (
                []
                if names & {"content-length", "transfer-encoding"}
                else [("content-length", str(len(body)))]
            )
            lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers + length)]
            connection.sendall("\r\n".join([*lines, "connection: close", "", ""]).encode("utf-8") + body)
            response = HTTPResponse(connection, method=method)
            response.begin()
            raw = response.read()
            head = str(response.headers).encode()
        return Answer(status=response.status, raw=head + raw, message=_message(raw))


def _message(raw: bytes) -> Any:
    """The last JSON-RPC message in a body, bare or as an event: what comes before it are notifications."""
    found = None
    for line in [raw, *raw.splitlines()]:
        text = line.removeprefix(b"data:").strip()
        if text.startswith(b"{"):
            with suppress(ValueError):
                found = json.loads(text)
    return found


class Stdio:
    """Remit as a child, one line at a time."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._buffer = b""

    def send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()

    def receive(self) -> Answer:
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_S)
            piece = os.read(self._process.stdout.fileno(), 1 << 20) if ready else b""
            assert piece, f"nothing was answered; it ended with {self._process.poll()}"
            self._buffer += piece
        raw, _, self._buffer = self._buffer.partition(b"\n")
        return Answer(status=0, raw=raw, message=json.loads(raw))

    def ask(self, line: bytes) -> Answer:
        self.send(line)
        return self.receive()


def configured(sources: Mapping[str, Any], folder: Path, *, policy: str = "", **changes: Any) -> Path:
    """A configuration for the tests' agent; `changes` replace whole sections, `policy` adds rows."""
    path = remit_config(sources, folder)
    document = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(document, indent=2))
    with (folder / "policy.csv").open("a") as rows:
        rows.write(policy)
    return path


def a_key(config: Path, agent: str = "agent:tester", *more: str) -> str:
    who = ["--agent", agent, "--user", "user:tester", *more]
    made = subprocess.run(
        [*REMIT, "agents", "key", "create", *who, "--json", "--config", str(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise DidNotStart(made.stdout + made.stderr)
    return json.loads(made.stdout)["key"]


@contextmanager
def http(config: Path) -> Iterator[Http]:
    key = a_key(config)
    command = [*REMIT, "serve", "--http", "127.0.0.1:0", "--json", "--config", str(config)]
    with serving(command, config.parent) as url:
        yield Http(url=url, key=key)


@contextmanager
def stdio(config: Path) -> Iterator[Stdio]:
    command = [*REMIT, "serve", "--stdio", "--config", str(config)]
    with (
        (config.parent / "stdio.stderr").open("w") as complaints,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints
        ) as process,
    ):
        try:
            yield Stdio(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def rows(config: Path, sql: str, *parameters: Any) -> list[dict[str, Any]]:
    """What anybody can read in the audit database."""
    with reading(config.parent / "remit.db") as db:
        return [dict(row) for row in db.all(sql, parameters)]


def change(config: Path, sql: str) -> None:
    """Change the audit database of a Remit that does not run."""
    with reading(config.parent / "remit.db"):
        """All that is committed can be changed then."""
    with closing(sqlite3.connect(config.parent / "remit.db")) as db, db:
        db.execute(sql)


def header(answer: Answer, name: str) -> str:
    (found,) = re.findall(rb"(?im)^%s: (\S+)\s*$" % name.encode(), answer.raw)
    return found.decode()
