"""The wire between Remit and PostgreSQL, which breaks where it is told to: before or after a commit.

It listens on a socket of its own and passes everything on. Whoever cuts says how: `unheard`, and the server
never gets what would commit; `unanswered`, and it carries that out while nobody hears that it did.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Literal

_SOCKET = ".s.PGSQL.5432"
_MOST = 65_536
Cut = Literal["unheard", "unanswered"]
#: What is sent to be written, and committed with it, if not null comes before it (see `remit.procedure`).
_WRITTEN, _IN_TURN = b'"position":', re.compile(rb"\xff{4}.{4}\x01\[\{", re.DOTALL)


class Line:
    def __init__(self, server: Path) -> None:
        self._server = server / _SOCKET
        self._next: list[Cut] = []
        self.cuts: Counter[Cut] = Counter()

    def cut(self, how: Cut) -> None:
        """Break at the next commit that comes by."""
        self._next.append(how)

    def spare(self) -> None:
        """Break nothing any more."""
        self._next.clear()

    async def carry(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """One connection, until either end closes it or it is cut."""
        with suppress(OSError), closing(to_client):
            server, to_server = await asyncio.open_unix_connection(self._server)
            with closing(to_server):
                answers = asyncio.create_task(_pass_on(server, to_client))
                while data := await client.read(_MOST):
                    how = self._next.pop() if self._next and _commits(data) else None
                    if how is not None:
                        self.cuts[how] += 1
                        answers.cancel()
                        await asyncio.wait([answers])
                    if how != "unheard":
                        to_server.write(data)
                        await to_server.drain()
                    if how == "unanswered":
                        await server.read(_MOST)  # it is done by now, and nobody will hear of it
                    if how is not None:
                        break
                answers.cancel()


def _commits(data: bytes) -> bool:
    return b"COMMIT" in data or (_WRITTEN in data and not _IN_TURN.search(data))


async def _pass_on(server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await server.read(_MOST):
            to_client.write(data)
            await to_client.drain()
    to_client.close()


@asynccontextmanager
async def a_line(folder: Path, server: Path) -> AsyncGenerator[Line]:
    """A wire that ends in `folder`, from a server whose socket is in the other."""
    line = Line(server)
    carried: set[asyncio.Task[None]] = set()

    async def carry(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        carried.add(task)
        await line.carry(client, to_client)
        carried.discard(task)

    listening = await asyncio.start_unix_server(carry, folder / _SOCKET)
    try:
        yield line
    finally:
        listening.close()
        for task in carried:
            task.cancel()
        await asyncio.gather(*carried, return_exceptions=True)
