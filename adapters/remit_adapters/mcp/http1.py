"""HTTP/1.1 as the gateway speaks it to one URL: pooled connections, one exchange at a time on each.

What a general client does beyond that (redirects, proxies, cookies, compression, retries) is what must not
happen here, and looking for each of it costs several times what the exchange does. llhttp parses, through
httptools. A connection is used again only after all of an answer was read and nothing came behind it.

Whoever makes a `Pool` closes it. Source: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Final, Self, cast
from urllib.parse import urlsplit

import httptools

#: A head larger than this (bytes) is no answer.
_HEAD_MAX: Final = 65_536
#: So much of a body may wait unread (bytes) before the source has to.
_UNREAD_MAX: Final = 1 << 20


class UnreachableError(Exception):
    """No connection could be made: nothing was sent."""


class BrokenError(Exception):
    """The connection ended, or what came over it is no HTTP: whether the server acted is unknown."""


class Response:
    """The head of an answer, and its body as it comes."""

    def __init__(self, connection: _Connection, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        #: By lower-case name; of a repeated one the last.
        self.headers = headers
        self._connection = connection
        self._parts: deque[bytes] = deque()
        self._unread = 0
        self._error: BrokenError | None = None
        self._wake: asyncio.Future[None] | None = None
        #: All of it has come; it may not be read yet.
        self.complete = False

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def content_length(self) -> int | None:
        """What the server announced (bytes); None when it did not."""
        length = self.headers.get("content-length", "")
        return int(length) if length.isascii() and length.isdigit() else None

    @property
    def at_eof(self) -> bool:
        return self.complete and not self._parts

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The body in the pieces in which it comes. Raises BrokenError when it breaks off."""
        while True:
            while self._parts:
                part = self._parts.popleft()
                self._unread -= len(part)
                if self._unread <= _UNREAD_MAX:
                    self._connection.resume()
                yield part
            if self.complete:
                return
            if self._error is not None:
                raise self._error
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    async def read(self) -> bytes:
        return b"".join([part async for part in self.chunks()])

    def release(self) -> None:
        """Give the connection back; close it unless the whole answer was read."""
        self._connection.give_back(self)

    # The connection drives these.

    def feed(self, part: bytes) -> None:
        self._parts.append(part)
        self._unread += len(part)
        if self._unread > _UNREAD_MAX:
            self._connection.pause()
        self._rouse()

    def end(self, error: BrokenError | None = None) -> None:
        self._error = error
        self.complete = error is None
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Pool:
    """The connections to one URL."""

    def __init__(self, url: str, *, connect_s: float, idle_s: float) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._request = f" {path} HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n"
        self._connect_s = connect_s
        self._idle_s = idle_s
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._retired = False

    async def send(self, method: str, headers: Mapping[str, str], body: bytes = b"") -> Response:
        """Make one request and wait for the head of its answer, which the caller releases.

        Cancelled, it closes the connection. Raises UnreachableError, BrokenError, and ValueError for a
        header that would break the frame.
        """
        head = method + self._request + "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        lines = 2 + len(headers)
        if head.count("\r") != lines or head.count("\n") != lines or "\0" in head:
            raise ValueError("a header has a line break in it")
        head += f"Content-Length: {len(body)}\r\n\r\n" if body else "\r\n"
        connection = self._free() or await self._connected()
        return await connection.exchange(head.encode() + body)

    def _free(self) -> _Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and now - connection.idle_since < self._idle_s:
                return connection
            connection.close()
        return None

    async def _connected(self) -> _Connection:
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self), self._host, self._port, ssl=self._tls
                )
        except (OSError, TimeoutError) as error:
            raise UnreachableError(str(error)) from error
        self._open.add(connection)
        return connection

    def keep(self, connection: _Connection) -> None:
        if self._retired:
            connection.close()
        else:
            self._idle.append(connection)

    def forget(self, connection: _Connection) -> None:
        self._open.discard(connection)

    def retire(self) -> None:
        """End each connection when nothing is under way over it."""
        self._retired = True
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def close(self) -> None:
        """End every connection, and wait until they are gone."""
        gone = [connection.gone for connection in self._open]
        for connection in list(self._open):
            connection.close()
        self._idle.clear()
        if gone:
            await asyncio.wait(gone, timeout=1)


class _Connection(asyncio.Protocol):
    """One connection; httptools calls its `on_` methods while it is fed."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self.idle_since = 0.0
        self._paused = False
        self._spoiled = False
        self._transport: asyncio.Transport | None = None
        self._begin()
        self._waiting: asyncio.Future[Response] | None = None
        self._response: Response | None = None

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._head_size = 0
        self._until_close = False

    @property
    def usable(self) -> bool:
        transport = self._transport
        return transport is not None and not transport.is_closing() and not self._spoiled

    async def exchange(self, request: bytes) -> Response:
        transport = self._transport
        if transport is None or not self.usable:
            raise UnreachableError("the connection was closed at once")
        self._begin()
        self._response = None
        self._waiting = self._loop.create_future()
        try:
            transport.write(request)
            return await self._waiting
        except BaseException:
            self.close()
            raise
        finally:
            self._waiting = None

    def give_back(self, response: Response) -> None:
        if response.at_eof and self.usable and response is self._response:
            self._response = None
            self.idle_since = self._loop.time()
            self._pool.keep(self)
        elif response is self._response:
            self.close()

    def close(self) -> None:
        self._spoiled = True
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    # asyncio calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._waiting is None and self._response is None:
            self.close()  # nobody asked: whatever this is, it must not become the next answer
            return
        if self._response is None:
            self._head_size += len(data)
            if self._head_size > _HEAD_MAX and b"\r\n\r\n" not in data:
                self._fail("its head is too large")
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"it speaks no HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._spoiled = True
        self._pool.forget(self)
        if self._response is not None and self._until_close and exc is None:
            self._response.end()
        self._fail("it closed the connection")
        if not self.gone.done():
            self.gone.set_result(None)

    def _fail(self, why: str) -> None:
        error = BrokenError(why)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)
        elif self._response is not None and not self._response.complete:
            self._response.end(error)
        self.close()

    # httptools calls these.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            return  # only says that more will come
        if self._waiting is None or self._waiting.done():
            self._spoiled = True  # a second answer to one request
            return
        headers, self._headers = self._headers, {}
        self._until_close = not (
            "content-length" in headers or "transfer-encoding" in headers or status in (204, 304)
        )
        self._response = Response(self, status, headers)
        self._waiting.set_result(self._response)

    def on_body(self, body: bytes) -> None:
        if self._response is not None and not self._response.complete and not self._spoiled:
            self._response.feed(body)

    def on_message_complete(self) -> None:
        if self._response is None:
            self._headers.clear()
            return
        if not self._parser.should_keep_alive():
            self._spoiled = True
        self._response.end()
