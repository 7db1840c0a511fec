"""Load: many clients in one cheap event loop, each sending its next `tools/call` when the last is answered.

Requests are prepared bytes of MCP 2026-07-28 with one word changed in each, and answers are looked at just
enough to know that they are the right ones, so that what is measured is the server. Not a client to copy.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools
import orjson

from benchmarks.process import Child

VERSION = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": VERSION,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "load", "version": "1"},
}
#: Stands in a prepared request for the number that makes each one different. A run repeats no number.
NUMBER = b"0000000000"
_numbers = count(1)


def call(tool: str) -> bytes:
    """A `tools/call` with NUMBER in its id and in its argument."""
    params = {"name": tool, "arguments": {"text": f"text-{NUMBER.decode()}"}, "_meta": META}
    request = {"jsonrpc": "2.0", "id": f"call-{NUMBER.decode()}", "method": "tools/call", "params": params}
    return orjson.dumps(request)


class Burst:
    """One bounded stretch of load and what came of it: no call begins after `seconds` or `calls_max`."""

    def __init__(self, *, seconds: float, calls_max: int) -> None:
        self.latencies_s: list[float] = []
        self.failures: list[str] = []
        self.started = self.ended = time.perf_counter()
        self._until = self.started + seconds
        self._left = calls_max
        self._under_way = 0
        self._over = asyncio.Event()

    def begin(self) -> bool:
        """Whether one more call is to be made now."""
        if self._left == 0 or time.perf_counter() >= self._until:
            if self._under_way == 0:
                self._over.set()
            return False
        self._left -= 1
        self._under_way += 1
        return True

    def end(self, number: bytes, started: float, answer: bytes) -> None:
        self.ended = time.perf_counter()
        self._under_way -= 1
        # Every right answer says the text again; a refusal does not, or says that it is an error.
        if b"text-" + number in answer and not _ERROR.search(answer):
            self.latencies_s.append(self.ended - started)
        else:
            self.failures.append(answer[:300].decode("utf-8", "replace"))

    async def over(self, drain_s: float) -> None:
        """Wait until all calls are answered; what is not, `drain_s` after no more begin, has failed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._until - self.started + drain_s):
                await self._over.wait()
        if self._under_way:
            self.ended = time.perf_counter()
            self.failures += [f"not answered within {drain_s:.0f} s"] * self._under_way
            self._left = 0


_ERROR = re.compile(rb'"isError":\s*true|"error":\s*\{')


class Load(Protocol):
    """Clients of one server, kept connected between bursts."""

    async def ready(self, clients: int) -> None:
        """Connect what is not connected, so that a burst measures calls only."""
        ...

    def start(self, tool: str, clients: int, burst: Burst) -> None:
        """Let so many clients call the tool, each one call after the other, until the burst is over."""
        ...

    def close(self) -> None:
        """Leave without waiting for answers. `ready` connects anew."""
        ...


class HttpLoad:
    """One kept-alive connection for each client."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        sent = {
            "Host": parts.netloc,
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": VERSION,
            "Mcp-Method": "tools/call",
            **headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        self._head = f"POST {parts.path} HTTP/1.1\r\n{lines}"
        self._clients: list[_HttpClient] = []

    async def ready(self, clients: int) -> None:
        loop = asyncio.get_running_loop()
        self._clients = [client for client in self._clients if not client.lost]
        while len(self._clients) < clients:
            self._clients.append((await loop.create_connection(_HttpClient, self._host, self._port))[1])

    def start(self, tool: str, clients: int, burst: Burst) -> None:
        body = call(tool)
        head = f"{self._head}Mcp-Name: {tool}\r\nContent-Length: {len(body)}\r\n\r\n"
        for client in self._clients[:clients]:
            client.start(head.encode() + body, burst)

    def close(self) -> None:
        for client in self._clients:
            client.transport.abort()
        self._clients = []


class _HttpClient(asyncio.Protocol):
    transport: asyncio.Transport
    lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def start(self, request: bytes, burst: Burst) -> None:
        self._request, self._burst = request, burst
        self._parser = httptools.HttpResponseParser(self)
        self._answer = b""
        self._next()

    def _next(self) -> None:
        if self._burst.begin():
            self._number = b"%010d" % next(_numbers)
            self._started = time.perf_counter()
            self.transport.write(self._request.replace(NUMBER, self._number))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._answer += body

    def on_message_complete(self) -> None:
        answer, self._answer = self._answer, b""
        self._burst.end(self._number, self._started, answer)
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


class StdioLoad:
    """One child process; so many clients are so many calls under way on its one pipe."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._started: dict[bytes, float] = {}

    async def ready(self, clients: int) -> None:
        self._started.clear()
        self._child.on_line = self._answered

    def start(self, tool: str, clients: int, burst: Burst) -> None:
        self._request, self._burst = call(tool) + b"\n", burst
        for _ in range(clients):
            self._next()

    def _next(self) -> None:
        if self._burst.begin():
            number = b"%010d" % next(_numbers)
            self._started[number] = time.perf_counter()
            self._child.write(self._request.replace(NUMBER, number))

    def _answered(self, line: bytes) -> None:
        found = _ID.search(line)
        if found and (started := self._started.pop(found[1], None)):
            self._burst.end(found[1], started, line)
            self._next()

    def close(self) -> None:
        self._started.clear()


_ID = re.compile(rb'"id":\s*"call-(\d{10})"')
