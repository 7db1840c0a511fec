"""A server that dies at an exact point, with or without a fault put in: everything real but the accident.

It serves as `remit serve` does, over HTTP, in a process forked from one that has imported everything, so a
life costs a fraction of a start. `Death` names the point: about to commit for the fifth time, say, or just
after the answer has left. Without one it serves until it is killed.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import anyio
from tests.crash.mutants import AMONG_SEVERAL, MUTANTS, ON_POSTGRES
from tests.crash.place import Place
from tests.crash.zygote import Life, Zygote

from remit.app import App
from remit.config_file import load
from remit.database import SqliteSealing
from remit.front.guard import Guard
from remit.front.serving import serve_http
from remit.journal import Journal, Settled
from remit.ledger import Ledger
from remit.postgres import Session
from remit_adapters.base import Operation
from remit_adapters.mcp import McpAdapter

#: What serving imports only when it gets there.
for _name in (
    "anyio._backends._asyncio",
    "anyio.streams.tls",
    "httptools",
    "remit.anchors",
    "remit.context_schema",
    "remit.postgres",
    "remit.ledger_postgres",
    "remit.tables",
    "remit_adapters.mcp.http",
    "asyncpg",
    "mcp.server.auth.middleware.bearer_auth",
    "mcp.server.streamable_http_manager",
    "mcp.server.transport_security",
    "alembic.command",
    "aiohttp",
    "uvloop",
):
    import_module(_name)
Moment = Literal[
    "before commit",
    "after commit",
    "before run",
    "after run",
    "before answer",
    "after answer",
    "before seal",
    "after seal",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    moment: Moment
    #: The how-many-eth time that this moment comes, counted from the start of the process.
    number: int

    def __str__(self) -> str:
        return f"{self.moment} {self.number}"


def serve(
    *,
    config: str,
    log: str,
    tell: Callable[[str], None],
    death: Mapping[str, Any] | None,
    fault: str | None,
) -> None:
    """Be `remit serve` here, until killed, told to end, or dead of `death`."""
    with open(log, "a") as stderr:
        os.dup2(stderr.fileno(), 2)
    faulthandler.register(signal.SIGUSR1)
    if fault:
        FAULTS[fault]()
    if death:
        _arm(Death(**death))
    app = App(load(Path(config)), role="http")
    anyio.run(partial(serve_http, app, tell), backend_options={"use_uvloop": True})


async def fork(zygote: Zygote, place: Place, death: Death | None = None, fault: str | None = None) -> Life:
    """Serve `place` until `death`; returns once it serves, or has died."""
    return await zygote.fork(
        config=str(place.config),
        log=str(place.folder / "remit.stderr"),
        death=asdict(death) if death else None,
        fault=fault,
    )


def _arm(death: Death) -> None:
    left = death.number

    def passes(moment: Moment) -> None:
        nonlocal left
        if moment == death.moment:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    transaction, run, answer = Ledger.transaction, McpAdapter.run, Guard.__call__
    sealing = {SqliteSealing: SqliteSealing.transaction, Session: Session.transaction}

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

    def sealed(of: Callable[..., AbstractContextManager[None]]) -> Callable[..., Any]:
        @contextmanager
        def transaction(self: Any, **how: bool) -> Generator[None]:
            with of(self, **how):
                yield
                if not how.get("snapshot"):
                    passes("before seal")
            if not how.get("snapshot"):
                passes("after seal")

        return transaction

    for store, of in sealing.items():
        store.transaction = sealed(of)
    Ledger.transaction = committing
    McpAdapter.run = running
    Guard.__call__ = answering


# Faults that show only where a call is answered, or where it leaves; the rest are in `mutants.py`.


def answered_before_the_outcome() -> None:
    """The agent has its answer before the outcome is durable."""
    settle = Journal.settle
    owed: set[asyncio.Task[None]] = set()

    async def late(self: Journal, call: Any, **more: Any) -> Settled:
        async def write() -> None:
            await anyio.sleep(0.2)
            await settle(self, call, **more)

        task = asyncio.create_task(write())
        owed.add(task)
        task.add_done_callback(owed.discard)
        return Settled(event="")

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
    **AMONG_SEVERAL,
    **ON_POSTGRES,
    "answered_before_the_outcome": answered_before_the_outcome,
    "sent_twice": sent_twice,
}
