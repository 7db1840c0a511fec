"""MCP over this process's standard streams, each line decoded strictly before anything looks at it.

Feeds the SDK's message streams. While it serves, file descriptor 1 points at stderr, so that a stray print
of any library cannot break a frame. A line that is refused is answered here and goes no further.

A file instead of a pipe is served, too. Where a pipe ends, at either end, its client has gone; where a file
ends, what it asked for is still answered.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import sys
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, BinaryIO, Protocol, cast

import anyio
import mcp_types as t
import orjson
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage

from remit.front.strict import DEFAULT, Malformed, decode, envelope, id_in
from remit_adapters.base import Json

Incoming = MemoryObjectReceiveStream[SessionMessage | Exception]
Outgoing = MemoryObjectSendStream[SessionMessage]
#: So many messages wait for the SDK at most before no more are read.
_KEPT_MAX = 64
#: So many bytes of answers wait for the client at most before no more is read. Large: a client that sends
#: all of its requests before it reads the first answer would wait for ever.
_UNREAD_MAX = 32 * 2**20


class ShortWay(Protocol):
    def take(self, message: Json, write: Callable[[bytes], None]) -> bool:
        """Whether it answers this message itself, by `write`, so that the SDK need not see it."""
        ...

    def cancel(self) -> None:
        """Cut short what is under way."""
        ...

    async def finished(self) -> None:
        """Wait until nothing is under way."""
        ...


class _Writer(Protocol):
    def write(self, data: bytes, /) -> None: ...

    async def drain(self) -> None: ...


@asynccontextmanager
async def standard_streams(short_way: ShortWay) -> AsyncGenerator[tuple[Incoming, Outgoing]]:
    """The SDK's read and write streams over stdin and stdout; at end of input the read stream closes."""
    ends_with_client = _is_pipe(0)
    writer = await _writer(lambda: lines.end(), lambda full: lines.hold(full))
    to_server, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, from_server = anyio.create_memory_object_stream[SessionMessage](0)
    #: Requests that the SDK has not answered.
    owed: set[str | int] = set()
    none_owed = asyncio.Event()

    def settle(request_id: Any) -> None:
        if isinstance(request_id, (str, int)):
            owed.discard(request_id)
        if not owed:
            none_owed.set()

    async def read() -> None:
        async with to_server:
            while (message := await lines.next()) is not None:
                if "method" in message and "id" in message:
                    owed.add(message["id"])
                await to_server.send(SessionMessage(_typed(message)))
                if message.get("method") == "notifications/cancelled":  # it is never answered
                    settle(message.get("params", {}).get("requestId"))
            while owed and not ends_with_client:
                none_owed.clear()
                await none_owed.wait()

    async def write() -> None:
        async with from_server:
            async for out in from_server:
                writer.write(out.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                await writer.drain()
                if isinstance(out.message, (t.JSONRPCResponse, t.JSONRPCError)):
                    settle(out.message.id)

    def take(line: bytes) -> Json | None:
        """What of a line is for the SDK; the rest is answered from here."""
        value = _decoded(line)
        if isinstance(value, bytes):
            writer.write(value)
            return None
        return None if value is None or short_way.take(value, writer.write) else value

    async with anyio.create_task_group() as tasks:
        lines = await _lines(take)
        tasks.start_soon(read)
        tasks.start_soon(write)
        try:
            yield incoming, outgoing
            await short_way.finished()
        finally:
            short_way.cancel()
            with anyio.CancelScope(shield=True):
                await short_way.finished()


def _decoded(line: bytes) -> dict[str, Any] | bytes | None:
    """The message that `line` is, or the refusal to answer it with; None where there is nothing to do."""
    if not line.strip():
        return None
    try:
        value = decode(line)
        if envelope(value) == "response" and value.get("id") is None:
            return None  # about no request of ours
    except Malformed as error:
        return _refusal(id_in(line), error.code, error.message)
    return value


def _typed(value: Json) -> t.JSONRPCMessage:
    return t.jsonrpc_message_adapter.validate_python(value, by_name=False)


def _refusal(request_id: str | int | None, code: int, message: str) -> bytes:
    return (
        orjson.dumps({"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}})
        + b"\n"
    )


class _Lines(asyncio.Protocol):
    """Takes each line of stdin as it comes, without a task to wake, and keeps what is for the SDK."""

    def __init__(self, take: Callable[[bytes], Json | None]) -> None:
        self._take = take
        self._kept: deque[Json] = deque()
        self._came = asyncio.Event()
        self._ended = False
        self._held = False
        self._transport: asyncio.ReadTransport | None = None
        self._partial: list[bytes] = []
        self._partial_size = 0

    def end(self) -> None:
        """Read no more."""
        if self._transport:
            self._transport.close()

    def hold(self, held: bool) -> None:
        """Read no more for now, or go on."""
        self._held = held
        self._read_or_not()

    def _read_or_not(self) -> None:
        if self._transport is None or self._ended:
            return
        if self._held or len(self._kept) >= _KEPT_MAX:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    async def next(self) -> Json | None:
        """The next message for the SDK; None at the end of input."""
        while not self._kept:
            if self._ended:
                return None
            self._came.clear()
            await self._came.wait()
        message = self._kept.popleft()
        if len(self._kept) == _KEPT_MAX - 1:
            self._read_or_not()
        return message

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.ReadTransport", transport)

    def data_received(self, data: bytes) -> None:
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._heard(piece)
        if rest and self._partial_size <= DEFAULT.bytes_max:  # else it is refused however it goes on
            self._partial.append(rest)
            self._partial_size += len(rest)

    def _heard(self, piece: bytes) -> None:
        line = piece
        if self._partial:
            line = b"".join((*self._partial, piece))
            self._partial, self._partial_size = [], 0
        message = self._take(line)
        if message is None:
            return
        self._kept.append(message)
        self._came.set()
        if len(self._kept) == _KEPT_MAX:
            self._read_or_not()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._partial:
            self._heard(b"")
        self._ended = True
        self._came.set()


async def _lines(take: Callable[[bytes], Json | None]) -> _Lines:
    stdin = os.fdopen(os.dup(0) if _is_pipe(0) else _piped(os.dup(0)), "rb", buffering=0)
    _, lines = await asyncio.get_running_loop().connect_read_pipe(lambda: _Lines(take), stdin)
    return lines


async def _writer(lost: Callable[[], None], full: Callable[[bool], None]) -> _Writer:
    """Stdout; `lost` is called once nobody reads it any more, `full` when too much is unread, or no more."""
    loop = asyncio.get_running_loop()
    is_pipe, stdout = _is_pipe(1), os.dup(1)
    sys.stdout.flush()
    os.dup2(2, 1)
    if not is_pipe:
        return _File(os.fdopen(stdout, "wb"))
    pipe = os.fdopen(stdout, "wb", buffering=0)
    transport, protocol = await loop.connect_write_pipe(lambda: _Read(lost, full), pipe)
    transport.set_write_buffer_limits(_UNREAD_MAX)
    return _Pipe(asyncio.StreamWriter(transport, protocol, None, loop))


def _is_pipe(fd: int) -> bool:
    """Whether event loops take it: they can wait for a pipe, a socket and a terminal, and for no file."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)


def _piped(file: int) -> int:
    """The end of a pipe from which this file is read."""
    end, start = os.pipe()

    def copy() -> None:
        with os.fdopen(file, "rb") as source, suppress(BrokenPipeError), os.fdopen(start, "wb") as pipe:
            shutil.copyfileobj(source, pipe)

    threading.Thread(target=copy, daemon=True).start()
    return end


class _Read(asyncio.streams.FlowControlMixin):
    """Whether somebody reads stdout."""

    def __init__(self, lost: Callable[[], None], full: Callable[[bool], None]) -> None:
        super().__init__()
        self._lost = lost
        self._full = full

    def pause_writing(self) -> None:
        super().pause_writing()
        self._full(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._full(False)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost()


class _Pipe:
    """Stdout where it is a pipe. What nobody reads any more is dropped."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def write(self, data: bytes, /) -> None:
        if not self._writer.is_closing():
            self._writer.write(data)

    async def drain(self) -> None:
        with suppress(ConnectionResetError, BrokenPipeError):
            await self._writer.drain()


class _File:
    """Stdout where it is a file, which takes what is written at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes, /) -> None:
        self._file.write(data)
        self._file.flush()

    async def drain(self) -> None:
        pass
