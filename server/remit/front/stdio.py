"""MCP over this process's standard streams, each line decoded strictly before anything looks at it.

Feeds the SDK's message streams. While it serves, file descriptor 1 points at stderr, so that a stray print
of any library cannot break a frame. A line that is refused is answered here and goes no further.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

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


@asynccontextmanager
async def standard_streams(short_way: ShortWay) -> AsyncGenerator[tuple[Incoming, Outgoing]]:
    """The SDK's read and write streams over stdin and stdout; at end of input the read stream closes."""
    reader, writer = await _pipes()
    to_server, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, from_server = anyio.create_memory_object_stream[SessionMessage](0)

    async def read() -> None:
        async with to_server:
            while (line := await _line(reader)) is not None:
                value = _decoded(line)
                if isinstance(value, bytes):
                    writer.write(value)
                elif value is not None and not short_way.take(value, tasks, writer.write):
                    await to_server.send(SessionMessage(_typed(value)))

    async def write() -> None:
        async with from_server:
            async for out in from_server:
                writer.write(out.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                await writer.drain()

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


async def _pipes() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=DEFAULT.bytes_max + 1024)
    stdin = os.fdopen(os.dup(0), "rb", buffering=0)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), stdin)
    stdout = os.fdopen(os.dup(1), "wb", buffering=0)
    sys.stdout.flush()
    os.dup2(2, 1)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, stdout)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
