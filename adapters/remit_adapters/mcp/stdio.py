"""One MCP server as a child process, and the conversation over its pipes.

The pipes are ours: lines are bounded, reading costs time linear in the bytes, standard error goes into a
ring for operators, and a child that floods is killed with all that it started. The child gets exactly the
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
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast

import anyio

from remit_adapters.base import AdapterError, Json
from remit_adapters.mcp.exchange import InFlight, unasked_reply
from remit_adapters.mcp.targets import StdioTarget
from remit_adapters.mcp.wire import (
    CHANGES,
    NEGOTIATION,
    SUBSCRIPTION_KEY,
    Hear,
    Message,
    decode,
    encode,
    printable,
    result_of,
    with_progress,
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
#: What one request may leave unheard, in messages and bytes, before the oldest is dropped.
_UNHEARD_MAX: Final = 256
_UNHEARD_BYTES_MAX: Final = 1024 * 1024
_LAST_WORDS_MAX: Final = 500
#: How long a child may take to leave once its input is closed, and again once it is told to terminate.
_GRACE_S: Final = 2.0
#: The same for a child that broke the conversation off itself.
_CRASH_GRACE_S: Final = 0.5


class _Waiting:
    """A request without an answer yet: what came for it, in order, the answer last."""

    __slots__ = ("_error", "_inbox", "_loop", "_size", "_wake", "hears")

    def __init__(self, loop: asyncio.AbstractEventLoop, *, hears: bool) -> None:
        self.hears = hears
        self._loop = loop
        self._inbox: deque[tuple[Message, int]] = deque()
        self._size = 0
        self._error: AdapterError | None = None
        self._wake: asyncio.Future[None] | None = None

    def put(self, message: Message, size: int) -> None:
        while self._inbox and (len(self._inbox) >= _UNHEARD_MAX or self._size + size > _UNHEARD_BYTES_MAX):
            self._size -= self._inbox.popleft()[1]  # news, never the answer: nothing is put after that
        self._inbox.append((message, size))
        self._size += size
        self._rouse()

    def fail(self, error: AdapterError) -> None:
        self._error = error
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def get(self) -> Message:
        while not self._inbox:
            if self._error is not None:
                raise self._error
            self._wake = self._loop.create_future()
            await self._wake
        message, size = self._inbox.popleft()
        self._size -= size
        return message


class _End(asyncio.Protocol):
    """Our end of one of the child's pipes."""

    def __init__(self, on_data: Callable[[bytes], None], on_lost: Callable[[], None]) -> None:
        self._on_data = on_data
        self._on_lost = on_lost

    def data_received(self, data: bytes) -> None:
        self._on_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost()


class Pipe:
    """The conversation with one child: a `Link`. It reads in callbacks and has no task of its own."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        *,
        line_bytes_max: int,
        on_unasked: Callable[[Message], None],
    ) -> None:
        self.version = ""
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._line_bytes_max = line_bytes_max
        self._on_unasked = on_unasked
        self._ids = itertools.count(1)
        self._in_flight: InFlight[_Waiting] = InFlight()
        #: `subscriptions/listen` goes on beside all else and causes no questions.
        self._listening: InFlight[_Waiting] = InFlight()
        self._partial: list[bytes] = []
        self._partial_size = 0
        self._unasked = 0
        self._unasked_since = 0.0
        self._last_words = bytearray()
        self._stderr_allowance = _STDERR_BYTES_PER_S
        self._why = ""
        self._lost = asyncio.Event()
        self._exited = asyncio.Event()
        self._stdin: asyncio.WriteTransport | None = None
        self._stdout: asyncio.ReadTransport | None = None
        self._stderr: asyncio.ReadTransport | None = None

    async def open(self) -> None:
        """Take hold of the child's pipes, and wait for its end."""
        threading.Thread(target=self._wait, name=f"wait for {self._process.pid}", daemon=True).start()
        ends = (
            _End(self._read, self._closed),
            _End(self._overhear, lambda: None),
            _End(lambda _: None, self._closed),
        )
        self._stdout, _ = await self._loop.connect_read_pipe(lambda: ends[0], self._process.stdout)
        self._stderr, _ = await self._loop.connect_read_pipe(lambda: ends[1], self._process.stderr)
        self._stdin, _ = await self._loop.connect_write_pipe(lambda: ends[2], self._process.stdin)

    # What the adapter does.

    async def request(
        self, method: str, params: Message, hear: Hear | None = None, *, progress: bool = False
    ) -> Message:
        request_id = next(self._ids)
        if progress:
            params = with_progress(params, request_id)
        self._write({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
        in_flight = self._listening if method == "subscriptions/listen" else self._in_flight
        waiting = _Waiting(self._loop, hears=hear is not None)
        in_flight.begin(request_id, waiting)
        abandoned = False
        try:
            while "method" in (message := await waiting.get()):
                if hear is not None:
                    await hear(message)
        except asyncio.CancelledError:
            abandoned = method not in NEGOTIATION
            if abandoned:
                reason = {"requestId": request_id, "reason": "the caller gave up"}
                self._tell({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": reason})
            raise
        finally:
            in_flight.end(request_id, abandoned=abandoned)
        return result_of(message)

    async def answer(self, request_id: Any, reply: Json) -> None:
        self._tell({"jsonrpc": "2.0", "id": request_id, **reply})

    async def notify(self, method: str, params: Json) -> None:
        self._write({"jsonrpc": "2.0", "method": method, "params": params})

    def listen(self) -> None:
        """Nothing to start: one pipe carries everything."""

    @property
    def gone(self) -> bool:
        return self._lost.is_set()

    async def lost(self) -> str:
        await self._lost.wait()
        with anyio.move_on_after(0.5):  # the pipes close a moment before the exit code is known
            await self._exited.wait()
        code = self._process.returncode
        what = self._why if code is None else f"{self._why}, exit code {code}"
        last = printable(self._last_words.decode("utf-8", "replace"), _LAST_WORDS_MAX)
        return f"{what}: {last}" if last else what

    def _write(self, message: Json) -> None:
        stdin = self._stdin
        if stdin is None or stdin.is_closing() or self._lost.is_set():
            raise AdapterError(
                "The source is not running just now; nothing was sent. Try again shortly.",
                no_effect=True,
                code="source_down",
            )
        if stdin.get_write_buffer_size() > _UNSENT_BYTES_MAX:
            raise AdapterError(
                "The source does not read its requests; nothing was sent. Try again later.",
                no_effect=True,
                code="source_busy",
            )
        stdin.write(encode(message) + b"\n")

    def _tell(self, message: Json) -> None:
        with suppress(AdapterError):  # a source that is gone need not be told
            self._write(message)

    # What the child says.

    def _read(self, data: bytes) -> None:
        *whole, rest = data.split(b"\n")
        for piece in whole:
            line = piece
            if self._partial:
                line = b"".join((*self._partial, piece))
                self._partial.clear()
                self._partial_size = 0
            if self._lost.is_set():
                return
            if len(line) > self._line_bytes_max:
                self._flood("a line is longer than allowed")
            elif line and not self._receive(line) and not self._may_go_on():
                self._flood("it says more unasked than allowed")
        if rest:
            self._partial.append(rest)
            self._partial_size += len(rest)
            if self._partial_size > self._line_bytes_max:
                self._partial.clear()
                self._flood("a line is longer than allowed")

    def _receive(self, line: bytes) -> bool:
        """Take one line; whether it was an answer that somebody waits for."""
        try:
            message = decode(line)
        except ValueError:
            return False  # many servers print a banner
        method: Any = message.get("method")
        if not isinstance(method, str):
            request_id: Any = message.get("id")
            waiting = self._in_flight.answered(request_id) or self._listening.answered(request_id)
            if waiting is not None:
                waiting.put(message, len(line))
            return waiting is not None
        if method in CHANGES:
            self._on_unasked(message)
        elif method == "notifications/cancelled":
            for waiting in self._in_flight.all():
                if waiting.hears:
                    waiting.put(message, len(line))
        elif method != "ping" and (waiting := self._about(message, method)) is not None and waiting.hears:
            waiting.put(message, len(line))
        elif "id" in message:
            self._tell({"jsonrpc": "2.0", "id": message["id"], **unasked_reply(method)})
        return False

    def _about(self, message: Message, method: str) -> _Waiting | None:
        """The request that a message of the child's belongs to, if that is certain."""
        found: Any = message.get("params")
        params: Json = cast("Json", found) if isinstance(found, dict) else {}
        if method == "notifications/progress":
            return self._in_flight.get(params.get("progressToken"))
        if method == "notifications/subscriptions/acknowledged":
            meta: Any = params.get("_meta")
            return (
                self._listening.get(cast("Json", meta).get(SUBSCRIPTION_KEY))
                if isinstance(meta, dict)
                else None
            )
        return self._in_flight.sole()

    def _may_go_on(self) -> bool:
        now = self._loop.time()
        if now - self._unasked_since >= 1.0:
            self._unasked, self._unasked_since = 0, now
        self._unasked += 1
        return self._unasked <= _UNASKED_PER_S

    def _flood(self, how: str) -> None:
        self._lose(f"killed because {how}")
        self._kill(signal.SIGKILL)

    def _overhear(self, data: bytes) -> None:
        self._last_words += data
        del self._last_words[:-_STDERR_BYTES_MAX]
        self._stderr_allowance -= len(data)
        if self._stderr_allowance < 0 and self._stderr is not None:
            # Stop reading for a moment: the child waits, and nobody else does.
            self._stderr.pause_reading()
            self._loop.call_later(1.0, self._overhear_again, self._stderr)

    def _overhear_again(self, stderr: asyncio.ReadTransport) -> None:
        self._stderr_allowance = _STDERR_BYTES_PER_S
        if not stderr.is_closing():
            stderr.resume_reading()

    # How it ends.

    def _wait(self) -> None:
        """Wait for the child's end, on a thread of its own, for no event loop does that well for all."""
        self._process.wait()
        with suppress(RuntimeError):  # the loop is gone, and with it everybody who cares
            self._loop.call_soon_threadsafe(self._ended)

    def _ended(self) -> None:
        self._exited.set()
        self._lose("it ended")
        self._kill(signal.SIGKILL)  # what it left behind

    def _closed(self) -> None:
        self._lose("it closed its pipes")

    def _lose(self, why: str) -> None:
        if self._lost.is_set():
            return
        self._why = why
        self._lost.set()
        for waiting in (*self._in_flight.all(), *self._listening.all()):
            waiting.fail(
                AdapterError(
                    "The source stopped before it answered.",
                    no_effect=False,
                    code="source_lost",
                )
            )

    def _kill(self, how: signal.Signals) -> None:
        """Signal the child and everything that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, how)

    async def close(self) -> None:
        """Ask the child to leave, then make it; returns when it is gone."""
        grace_s = _CRASH_GRACE_S if self._lost.is_set() else _GRACE_S
        self._lose("stopped")
        if self._stdin is not None:
            self._stdin.close()
        for how in (None, signal.SIGTERM, signal.SIGKILL):
            if how is not None:
                self._kill(how)
            with anyio.move_on_after(grace_s):
                await self._exited.wait()
                break
        for end in (self._stdout, self._stderr):
            if end is not None:
                end.close()


@asynccontextmanager
async def running(
    target: StdioTarget, *, line_bytes_max: int, on_unasked: Callable[[Message], None]
) -> AsyncGenerator[Pipe]:
    """Run a target's child for as long as the context lasts. Raises AdapterError when it cannot start."""
    with tempfile.TemporaryDirectory(prefix="remit-", ignore_cleanup_errors=True) as home:
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        try:
            # Here and not on a thread, where a cancellation could leave a child that nobody owns. And not by
            # the event loop: uvloop passes descriptors on.
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - the operator's own words, no shell
                target.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env={**inherited, "HOME": home, "TMPDIR": home, **target.env},
                cwd=target.cwd,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            log.warning("cannot start %s: %s", target.command[0], error)
            raise AdapterError(
                "The source cannot be started: its command is missing or not executable.",
                no_effect=True,
                code="source_down",
            ) from error
        pipe = Pipe(process, line_bytes_max=line_bytes_max, on_unasked=on_unasked)
        try:
            await pipe.open()
            yield pipe
        finally:
            with anyio.CancelScope(shield=True):
                await pipe.close()
