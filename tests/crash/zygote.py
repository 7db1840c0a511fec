"""A process that has imported everything, from which each life of Remit's is forked: kills are cheap then.

It has one thread and no event loop, so that what it forks is as whole as a process that was started. Each
life is handed one end of a socket pair: it tells its URL there, and a last word when it ends by itself.
However it dies, the kernel closes that end, so whoever holds the other sees it at once.

    python -m tests.crash.zygote SOCKET

is started by `Zygote`, which owns it. When the socket closes, it kills what it forked, and ends.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

REPOSITORY = Path(__file__).parents[2]
_START_S = 60
#: How a life came to its end; whoever was killed has no last word.
Ended = Literal["in order", "failed", "killed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One process that serves. `url` is empty when it ended before it served."""

    url: str
    pid: int
    ended: asyncio.Task[Ended]

    def signal(self, number: signal.Signals) -> None:
        if not self.ended.done():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def wait(self) -> Ended:
        return await asyncio.shield(self.ended)


class Zygote:
    def __init__(self, control: socket.socket) -> None:
        self._control = control

    async def fork(self, **order: Any) -> Life:
        """A new life that carries `order` out (`at_point.serve`); returns once it serves, or has ended."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [json.dumps(order).encode()], [theirs.fileno()])
        ours.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        pid = int(await reader.readline())
        try:
            async with asyncio.timeout(_START_S):
                told = (await reader.readline()).decode().strip()
        except BaseException as error:
            # Who hangs says where; whom nobody waits for any more, since another could not start, goes.
            os.kill(pid, signal.SIGUSR1 if isinstance(error, TimeoutError) else signal.SIGKILL)
            writer.close()
            raise
        url = told if told.startswith("http") else ""
        ended = asyncio.create_task(_last_word("" if url else told, reader, writer))
        return Life(url=url, pid=pid, ended=ended)


async def _last_word(told: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Ended:
    with suppress(OSError):
        told += (await reader.read()).decode()
    writer.close()
    return "in order" if told == "in order" else "failed" if told == "failed" else "killed"


@contextmanager
def a_zygote() -> Generator[Zygote]:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "tests.crash.zygote", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=REPOSITORY)
    theirs.close()
    try:
        yield Zygote(ours)
    finally:
        ours.close()
        process.wait(_START_S)


def main(control: socket.socket) -> None:
    # Whatever a life may need, before the first is forked.
    from tests.crash import at_point

    gc.collect()
    gc.freeze()
    lives: set[int] = set()
    while True:
        order, handed, _, _ = socket.recv_fds(control, 65_536, 1)
        if not order:
            break
        [told] = handed
        pid = os.fork()
        if pid == 0:
            control.close()
            _live(at_point.serve, json.loads(order), told)
        os.close(told)
        lives.add(pid)
        lives -= _gone(lives)
    for pid in lives - _gone(lives):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _gone(lives: set[int]) -> set[int]:
    return {pid for pid in lives if os.waitpid(pid, os.WNOHANG)[0]}


def _live(serve: Callable[..., None], order: Mapping[str, Any], told: int) -> None:
    last: Ended = "failed"
    try:
        _tell(told, str(os.getpid()))
        serve(**order, tell=lambda url: _tell(told, url))
        last = "in order"
    except BaseException:  # noqa: BLE001 - a process of its own, whose end is its last word
        traceback.print_exc()
    finally:
        os.write(told, last.encode())
        os._exit(0)


def _tell(told: int, line: str) -> None:
    os.write(told, f"{line}\n".encode())


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
