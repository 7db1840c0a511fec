"""MCP over this process's standard streams, each line decoded strictly before anything looks at it.

Feeds the SDK's message streams. While it serves, file descriptor 1 points at stderr, so that a stray print
of any library cannot break a frame. A line that is refused is answered here and goes no further.

A file instead of a pipe is served, too. Where a pipe ends, its client has gone; where a file ends, what it
asked for is still answered.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, BinaryIO, Protocol

import anyio
import mcp_types as t
import orjson
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage

from remit.front.strict import DEFAULT, Malformed, decode, envelope, id_in
from remit_adapters.base import Json

Incoming = MemoryObjectReceiveStream[SessionMessage | Exception]
Outgoing = MemoryObjectSendStream[SessionMessage]


class ShortWay(Protocol):
    def take(self, message: Json, tasks: TaskGroup, write: Callable[[bytes], None]) -> bool:
        """Whether it answers this message itself, by `write`, so that the SDK need not see it."""
        ...


class _Writer(Protocol):
    def write(self, data: bytes, /) -> None: ...

    async def drain(self) -> None: ...


@asynccontextmanager
async def standard_streams(short_way: ShortWay) -> AsyncGenerator[tuple[Incoming, Outgoing]]:
    """The SDK's read and write streams over stdin and stdout; at end of input the read stream closes."""
    ends_with_client = _is_pipe(0)
    reader = await _reader()
    writer = await _writer(reader)
    to_server, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, from_server = anyio.create_memory_object_stream[SessionMessage](0)
    #: Requests that the SDK has not answered.
    owed: set[Any] = set()
    none_owed = asyncio.Event()

    def settle(request_id: Any) -> None:
        owed.discard(request_id)
        if not owed:
            none_owed.set()

    async def read() -> None:
        async with to_server:
            while (line := await _line(reader)) is not None:
                value = _decoded(line)
                if isinstance(value, bytes):
                    writer.write(value)
                elif value is not None and not short_way.take(value, tasks, writer.write):
                    if "method" in value and "id" in value:
                        owed.add(value["id"])
                    await to_server.send(SessionMessage(_typed(value)))
                    if value.get("method") == "notifications/cancelled":  # it is never answered
                        settle(value.get("params", {}).get("requestId"))
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

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        tasks.start_soon(write)
        yield incoming, outgoing


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


def _typed(value: dict[str, Any]) -> t.JSONRPCMessage:
    return t.jsonrpc_message_adapter.validate_python(value, by_name=False)


def _refusal(request_id: str | int | None, code: int, message: str) -> bytes:
    return (
        orjson.dumps({"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}})
        + b"\n"
    )


async def _line(reader: asyncio.StreamReader) -> bytes | None:
    """The next line; None at the end of input. Of one that is too long, only that it was."""
    try:
        return await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as end:
        return end.partial or None
    except asyncio.LimitOverrunError:
        await _skip_line(reader)
        # Longer than any limit on purpose: decoding it gives the right refusal.
        return b" " * (DEFAULT.bytes_max + 1) + b"1"


async def _skip_line(reader: asyncio.StreamReader) -> None:
    while True:
        try:
            await reader.readuntil(b"\n")
        except asyncio.LimitOverrunError as overrun:
            await reader.readexactly(overrun.consumed)
        except asyncio.IncompleteReadError:
            return
        else:
            return


async def _reader() -> asyncio.StreamReader:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=DEFAULT.bytes_max + 1024)
    stdin = os.fdopen(os.dup(0) if _is_pipe(0) else _piped(os.dup(0)), "rb", buffering=0)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), stdin)
    return reader


async def _writer(reader: asyncio.StreamReader) -> _Writer:
    loop = asyncio.get_running_loop()
    is_pipe, stdout = _is_pipe(1), os.dup(1)
    sys.stdout.flush()
    os.dup2(2, 1)
    if not is_pipe:
        return _File(os.fdopen(stdout, "wb"))
    pipe = os.fdopen(stdout, "wb", buffering=0)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, pipe)
    return asyncio.StreamWriter(transport, protocol, reader, loop)


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


class _File:
    """Stdout where it is a file, which takes what is written at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes, /) -> None:
        self._file.write(data)
        self._file.flush()

    async def drain(self) -> None:
        pass
