"""A program that a benchmark starts, feeds, measures and surely stops. Linux only, for its clocks."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import uvloop

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a benchmark. A SIGTERM cancels it, as Ctrl-C does, so that what it started is stopped."""

    async def cancellable() -> T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await main

    return uvloop.run(cancellable())


class Child(asyncio.SubprocessProtocol):
    """One running program. Whole lines of its standard output go to `on_line`, at first into a queue."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._rest = b""
        self.on_line: Callable[[bytes], None] = self._queue.put_nowait
        self.exited = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.SubprocessTransport", transport)
        self._stdin = cast("asyncio.WriteTransport", self._transport.get_pipe_transport(0))
        self.pid = self._transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.on_line(line)

    def process_exited(self) -> None:
        self.exited.set()
        self._queue.put_nowait(b"")

    def write(self, data: bytes) -> None:
        self._stdin.write(data)

    async def line(self, timeout_s: float) -> bytes:
        """The next line of output; empty when the program has ended. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            return await self._queue.get()

    def cpu_s(self) -> float:
        """Processor time of all its threads so far, without its children; exact, unlike /proc's ticks."""
        # How the kernel numbers another process's clock: clock_getcpuclockid(3), which Python does not offer.
        return time.clock_gettime(~self.pid << 3 | 2)

    def rss_mb(self) -> float:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    async def stop(self) -> None:
        """Ask it to end, and then end it by force, with all that it started in its process group."""
        self._stdin.close()
        with suppress(ProcessLookupError):
            self._transport.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(3):
                await self.exited.wait()
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self.exited.wait()
        self._transport.close()


@asynccontextmanager
async def running(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, errors: Path
) -> AsyncIterator[Child]:
    """Run a program for the length of the block. Its standard error goes to the file `errors`."""
    with errors.open("wb") as stderr:
        _, child = await asyncio.get_running_loop().subprocess_exec(
            Child, *command, stderr=stderr, env={**os.environ, **(env or {})}, start_new_session=True
        )
    try:
        yield child
    finally:
        await child.stop()
