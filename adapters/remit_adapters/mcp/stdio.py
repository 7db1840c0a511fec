"""One MCP server as a child process, and the conversation over its pipes.

The pipes are ours: lines are bounded, reading costs time linear in the bytes, standard error goes into a
ring for operators, and a child that floods is killed with all its descendants. The child gets exactly the
environment that its target names, a private home, its own process group, and no file descriptor but 0-2.
Whoever enters `running` owns the child; leaving it ends the child.

Source: MCP 2025-11-25 and 2026-07-28, basic/transports/stdio and basic/lifecycle.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast

import anyio

from remit_adapters.base import AdapterError, Json
from remit_adapters.mcp.exchange import QUESTIONS, refusal
from remit_adapters.mcp.targets import StdioTarget
from remit_adapters.mcp.wire import (
    METHOD_NOT_FOUND,
    NEGOTIATION,
    SUBSCRIPTION_KEY,
    Hear,
    Message,
    decode,
    encode,
    result_of,
)

log = logging.getLogger(__name__)

_INHERITED: Final = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")
_STDERR_BYTES_MAX: Final = 64 * 1024
#: A child may say this much on standard error in a second; beyond that it waits until the next one.
_STDERR_BYTES_PER_S: Final = 1024 * 1024
#: Lines in a second that answer nothing; beyond that the child floods.
_UNASKED_PER_S: Final = 5_000
#: What may wait for a child that does not read.
_UNSENT_BYTES_MAX: Final = 8 * 1024 * 1024
#: What one request may leave unheard before the oldest is dropped.
_UNHEARD_MAX: Final = 256
#: How long after a cancellation a question may still come from the cancelled request.
_ABANDONED_S: Final = 30.0
#: How long a child may take to leave once its input is closed, and again once it is told to terminate.
_GRACE_S: Final = 2.0


class _Waiting:
    """A request without an answer yet: what came for it, in order, the answer last."""

    __slots__ = ("_inbox", "_loop", "_wake", "hear", "listens")

    def __init__(self, loop: asyncio.AbstractEventLoop, hear: Hear | None, *, listens: bool) -> None:
        self._loop = loop
        self._inbox: deque[Message | AdapterError] = deque()
        self._wake: asyncio.Future[None] | None = None
        self.hear = hear
        self.listens = listens

    def put(self, item: Message | AdapterError) -> None:
        if len(self._inbox) >= _UNHEARD_MAX:
            # Only news gets here: an answer is put once, and after it nothing.
            self._inbox.popleft()
        self._inbox.append(item)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def get(self) -> Message | AdapterError:
        while not self._inbox:
            self._wake = self._loop.create_future()
            await self._wake
        return self._inbox.popleft()


class Pipe(asyncio.SubprocessProtocol):
    """The conversation with one child: a `Link`. Reads in callbacks, so nothing of it runs between events."""

    def __init__(self, *, line_bytes_max: int, on_unasked: Callable[[Message], None]) -> None:
        self.version = ""
        self.pid = 0
        self._loop = asyncio.get_running_loop()
        self._line_bytes_max = line_bytes_max
        self._on_unasked = on_unasked
        self._ids = itertools.count(1)
        self._waiting: dict[Any, _Waiting] = {}
        #: Requests that we gave up, and until when the child may still ask on their behalf.
        self._abandoned: dict[Any, float] = {}
        self._partial: list[bytes] = []
        self._partial_size = 0
        self._unasked = 0
        self._unasked_since = 0.0
        self._stderr = bytearray()
        self._stderr_allowance = _STDERR_BYTES_PER_S
        self._why = ""
        self._lost = asyncio.Event()
        self._exited = asyncio.Event()
        self._process: asyncio.SubprocessTransport | None = None
        self._stdin: asyncio.WriteTransport | None = None

    # What the adapter does.

    async def request(self, method: str, params: Message, hear: Hear | None = None) -> Message:
        request_id = next(self._ids)
        if hear is not None:
            params = {**params, "_meta": {**params.get("_meta", {}), "progressToken": request_id}}
        waiting = _Waiting(self._loop, hear, listens=method == "subscriptions/listen")
        self._write({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
        self._waiting[request_id] = waiting
        try:
            while True:
                message = await waiting.get()
                if isinstance(message, AdapterError):
                    raise message
                if "method" not in message:
                    return result_of(message)
                if hear is not None:
                    await hear(message)
        except asyncio.CancelledError:
            if method not in NEGOTIATION and not self._lost.is_set():
                self._abandoned[request_id] = self._loop.time() + _ABANDONED_S
                with suppress(AdapterError):
                    self._write(
                        {
                            "jsonrpc": "2.0",
                            "method": "notifications/cancelled",
                            "params": {"requestId": request_id, "reason": "the caller gave up"},
                        }
                    )
            raise
        finally:
            del self._waiting[request_id]

    async def answer(self, request_id: Any, reply: Json) -> None:
        with suppress(AdapterError):  # a source that is gone waits for no answer
            self._write({"jsonrpc": "2.0", "id": request_id, **reply})

    async def notify(self, method: str, params: Json) -> None:
        self._write({"jsonrpc": "2.0", "method": method, "params": params})

    async def lost(self) -> str:
        await self._lost.wait()
        with anyio.move_on_after(0.5):  # the pipes close a moment before the exit code is known
            await self._exited.wait()
        code = self._process.get_returncode() if self._process is not None else None
        return self._why if code is None else f"{self._why}, exit code {code}"

    def last_words(self) -> str:
        """The end of what the child said on standard error, on one line; for operators only."""
        return " | ".join(self._stderr.decode("utf-8", "replace").split("\n")[-6:]).strip(" |")[-500:]

    def _write(self, message: Json) -> None:
        stdin = self._stdin
        if stdin is None or stdin.is_closing() or self._lost.is_set():
            raise AdapterError(
                "The source is not running just now; try again shortly.", no_effect=True, code="source_down"
            )
        if stdin.get_write_buffer_size() > _UNSENT_BYTES_MAX:
            raise AdapterError(
                "The source does not read its requests; try again later.", no_effect=True, code="source_busy"
            )
        stdin.write(encode(message) + b"\n")

    # What the child says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        process = cast("asyncio.SubprocessTransport", transport)
        self._process = process
        self.pid = process.get_pid()
        self._stdin = cast("asyncio.WriteTransport", process.get_pipe_transport(0))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1:
            self._read(data)
        else:
            self._overhear(data)

    def _read(self, data: bytes) -> None:
        if self._lost.is_set():
            return None
        *whole, rest = data.split(b"\n")
        for piece in whole:
            if self._partial:
                self._partial.append(piece)
                piece = b"".join(self._partial)
                self._partial.clear()
                self._partial_size = 0
            if len(piece) > self._line_bytes_max:
                return self._flood("a line is longer than the limit")
            if piece and not self._receive(piece) and not self._unasked_allowed():
                return self._flood("it sends more unasked lines than the limit")
        if rest:
            self._partial.append(rest)
            self._partial_size += len(rest)
            if self._partial_size > self._line_bytes_max:
                return self._flood("a line is longer than the limit")
        return None

    def _receive(self, line: bytes) -> bool:
        """Take one line; whether it was an answer that somebody waits for."""
        try:
            message = decode(line)
        except ValueError:
            return False  # not ours to judge: many servers print banners
        method: Any = message.get("method")
        if not isinstance(method, str):
            return self._answered(message)
        waiting = self._about(message, method)
        if waiting is not None:
            waiting.put(message)
        elif "id" in message:
            self._decline(message["id"], method)
        elif not method.startswith(("notifications/progress", "notifications/message")):
            self._on_unasked(message)
        return False

    def _answered(self, message: Message) -> bool:
        request_id: Any = message.get("id")
        if not isinstance(request_id, int | str):
            return False
        self._abandoned.pop(request_id, None)
        waiting = self._waiting.get(request_id)
        if waiting is not None:
            waiting.put(message)
        return waiting is not None

    def _about(self, message: Message, method: str) -> _Waiting | None:
        """The request that a message of the child's belongs to, if that is certain."""
        params: Any = message.get("params")
        about: Json = cast("Json", params) if isinstance(params, dict) else {}
        if method == "notifications/progress":
            token: Any = about.get("progressToken")
            return self._waiting.get(token) if isinstance(token, int | str) else None
        meta: Any = about.get("_meta")
        subscription: Any = cast("Json", meta).get(SUBSCRIPTION_KEY) if isinstance(meta, dict) else None
        if isinstance(subscription, int | str):
            return self._waiting.get(subscription)
        if method not in QUESTIONS and method != "notifications/message":
            return None
        # The pipe does not say which request a question or a log line is about. Only when a single one can
        # have caused it is it safe to show it to that one's caller.
        now = self._loop.time()
        self._abandoned = {key: until for key, until in self._abandoned.items() if until > now}
        candidates = [waiting for waiting in self._waiting.values() if not waiting.listens]
        if len(candidates) == 1 and not self._abandoned and candidates[0].hear is not None:
            return candidates[0]
        return None

    def _decline(self, request_id: Any, method: str) -> None:
        if method == "ping":
            reply: Message = {"result": {}}
        elif method in QUESTIONS:
            reply = refusal(method)
        else:
            reply = {"error": {"code": METHOD_NOT_FOUND, "message": "Method not found"}}
        with suppress(AdapterError):
            self._write({"jsonrpc": "2.0", "id": request_id, **reply})

    def _unasked_allowed(self) -> bool:
        now = self._loop.time()
        if now - self._unasked_since >= 1.0:
            self._unasked, self._unasked_since = 0, now
        self._unasked += 1
        return self._unasked <= _UNASKED_PER_S

    def _flood(self, how: str) -> None:
        self._lose(f"killed: {how}")
        self.kill()

    def _overhear(self, data: bytes) -> None:
        self._stderr += data
        del self._stderr[:-_STDERR_BYTES_MAX]
        self._stderr_allowance -= len(data)
        if self._stderr_allowance < 0 and self._process is not None:
            # Stop reading for a moment: the child waits, and nobody else does.
            stderr = cast("asyncio.ReadTransport", self._process.get_pipe_transport(2))
            stderr.pause_reading()
            self._loop.call_later(1.0, self._listen_again, stderr)

    def _listen_again(self, stderr: asyncio.ReadTransport) -> None:
        self._stderr_allowance = _STDERR_BYTES_PER_S
        if not stderr.is_closing():
            stderr.resume_reading()

    # How it ends.

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd != 2:
            self._lose("it closed its pipes")

    def process_exited(self) -> None:
        self._exited.set()
        self._lose("it exited")
        self.kill()  # what it left behind

    def _lose(self, why: str) -> None:
        if self._lost.is_set():
            return
        self._why = why
        self._lost.set()
        for waiting in self._waiting.values():
            waiting.put(
                AdapterError(
                    "The source stopped before it answered; whether it acted is unknown.",
                    no_effect=False,
                    code="source_lost",
                )
            )

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Signal the child and everything that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, how)

    async def close(self) -> None:
        """Ask the child to leave, then make it; returns when it is gone."""
        self._lose("stopped")
        if self._stdin is not None:
            self._stdin.close()
        for how in (None, signal.SIGTERM, signal.SIGKILL):
            if how is not None:
                self.kill(how)
            with anyio.move_on_after(_GRACE_S):
                await self._exited.wait()
                break
        if self._process is not None:
            self._process.close()


@asynccontextmanager
async def running(
    target: StdioTarget, *, line_bytes_max: int, on_unasked: Callable[[Message], None]
) -> AsyncGenerator[Pipe]:
    """Run a target's child for as long as the context lasts. Raises AdapterError when it cannot start."""
    with tempfile.TemporaryDirectory(prefix="remit-", ignore_cleanup_errors=True) as home:
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        try:
            _, pipe = await asyncio.get_running_loop().subprocess_exec(
                lambda: Pipe(line_bytes_max=line_bytes_max, on_unasked=on_unasked),
                *target.command,
                env={**inherited, "HOME": home, "TMPDIR": home, **target.env},
                cwd=target.cwd,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            log.warning("cannot start %s: %s", target.command[0], error)
            raise AdapterError(
                "The source cannot be started; its command is missing or not executable.",
                no_effect=True,
                code="source_down",
            ) from error
        try:
            yield pipe
        finally:
            with anyio.CancelScope(shield=True):
                await pipe.close()
