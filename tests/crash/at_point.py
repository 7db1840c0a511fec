"""A server that dies at an exact point, with or without a fault put in: everything real but the accident.

It serves as `remit serve` does, over HTTP, in a process forked from one that has imported everything, so a
life costs a fraction of a start. `Death` names the point: about to commit for the fifth time, say, or just
after the answer has left. Without one it serves until it is killed.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Literal

import anyio
from tests.crash.mutants import MUTANTS
from tests.crash.place import Place

from remit.app import App
from remit.config_file import load
from remit.front.guard import Guard
from remit.front.serving import serve_http
from remit.journal import Journal
from remit.ledger import Ledger
from remit_adapters.base import Operation
from remit_adapters.mcp import McpAdapter

KILLED = 137
_START_S = 60
#: What serving needs. Installed packages only: the process that is forked does not know this folder.
_PRELOADED = [
    "remit.front.serving",
    "remit.front.guard",
    "remit.tables",
    "remit_adapters.mcp",
    "mcp.server.streamable_http_manager",
    "alembic.command",
    "aiohttp",
    "uvloop",
]
Moment = Literal["before commit", "after commit", "before run", "after run", "before answer", "after answer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    moment: Moment
    #: The how-many-eth time that this moment comes, counted from the start of the process.
    number: int

    def __str__(self) -> str:
        return f"{self.moment} {self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """One such process. `url` is empty when it died before it served."""

    url: str
    process: ForkServerProcess

    def kill(self) -> None:
        self.process.kill()

    def terminate(self) -> None:
        self.process.terminate()

    async def wait(self) -> int:
        """How it ended: its exit code, or a signal's number below zero."""
        await anyio.to_thread.run_sync(self.process.join)
        assert self.process.exitcode is not None
        return self.process.exitcode


async def fork(place: Place, death: Death | None = None, fault: str | None = None) -> Forked:
    """Serve `place` until `death`; returns once it serves, or has died."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_serve, args=(place.config, place.folder / "remit.stderr", death, fault, theirs), daemon=True
    )
    process.start()
    theirs.close()
    with ours:
        if not await anyio.to_thread.run_sync(ours.poll, _START_S):
            process.kill()
            raise TimeoutError(f"no server in {_START_S} s")
        try:
            return Forked(url=ours.recv(), process=process)
        except EOFError:
            return Forked(url="", process=process)


def _serve(config: Path, log: Path, death: Death | None, fault: str | None, tell: Connection) -> None:
    with log.open("a") as stderr:
        os.dup2(stderr.fileno(), 2)
    if fault:
        FAULTS[fault]()
    if death:
        _arm(death)
    anyio.run(
        partial(serve_http, App(load(config), role="http"), tell.send), backend_options={"use_uvloop": True}
    )


def _arm(death: Death) -> None:
    left = death.number

    def passes(moment: Moment) -> None:
        nonlocal left
        if moment == death.moment:
            left -= 1
            if left == 0:
                os._exit(KILLED)

    transaction, run, answer = Ledger.transaction, McpAdapter.run, Guard.__call__

    @contextmanager
    def committing(self: Ledger, *, durable: bool, wait: bool = True) -> Generator[None]:
        with transaction(self, durable=durable, wait=wait):
            yield
            passes("before commit")
        passes("after commit")

    async def running(self: McpAdapter, *args: Any) -> Any:
        passes("before run")
        reply = await run(self, *args)
        passes("after run")
        return reply

    async def answering(self: Guard, scope: Any, receive: Any, send: Any) -> None:
        async def last_moment(message: Any) -> None:
            if message["type"] == "http.response.start":
                passes("before answer")
            await send(message)

        await answer(self, scope, receive, last_moment)
        passes("after answer")

    Ledger.transaction = committing
    McpAdapter.run = running
    Guard.__call__ = answering


# Faults that show only where a call is answered, or where it leaves; the rest are in `mutants.py`.


def answered_before_the_outcome() -> None:
    """The agent has its answer before the outcome is durable."""
    settle = Journal.settle
    owed: set[asyncio.Task[None]] = set()

    async def late(self: Journal, call: Any, **more: Any) -> None:
        async def write() -> None:
            await anyio.sleep(0.2)
            await settle(self, call, **more)

        task = asyncio.create_task(write())
        owed.add(task)
        task.add_done_callback(owed.discard)

    Journal.settle = late


def sent_twice() -> None:
    """A call that was answered is sent once more, to be sure."""
    run = McpAdapter.run

    async def twice(self: McpAdapter, request: Any, *args: Any) -> Any:
        if request.operation is Operation.TOOL:
            await run(self, request, *args)
        return await run(self, request, *args)

    McpAdapter.run = twice


#: These show only under what the agents here do not do: votes, calls without a key, half a transaction.
_ELSEWHERE = ("approval_not_used_up", "doubt_forgotten", "commits_in_halves")
FAULTS: dict[str, Callable[[], None]] = {
    **{name: fault for name, fault in MUTANTS.items() if name not in _ELSEWHERE},
    "answered_before_the_outcome": answered_before_the_outcome,
    "sent_twice": sent_twice,
}
