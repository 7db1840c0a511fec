"""One small story, cut at each point in turn; after each cut the next life is told the rest of it.

The same folder serves all of them, so what one death left behind is there when the next one comes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import aiohttp
from tests.crash.at_point import KILLED, Death, Moment, fork
from tests.crash.clients import Clients
from tests.crash.place import Place
from tests.crash.reconcile import disagreements


async def cut_everywhere(
    place: Place, moments: Sequence[Moment], *, fault: str | None = None
) -> tuple[list[Death], list[str]]:
    """Die at every point of these kinds; returns the deaths, and what was wrong after the last of them.

    Ends at the first death after which something is wrong.
    """
    clients = Clients(place, random.Random(1))
    deaths: list[Death] = []
    for moment in moments:
        number = 1
        while True:
            death = Death(moment=moment, number=number)
            process = await fork(place, death, fault)
            if process.url:
                if flaws := disagreements(place, clients.told, living=1):
                    process.kill()
                    await process.wait()
                    return deaths, flaws
                if await _story(clients, process.url):
                    process.terminate()  # closing is work too, and may be cut
            code = await process.wait()
            assert code in (0, KILLED), f"{death}: ended with {code}"
            if code == 0:
                break
            deaths.append(death)
            number += 1
    process = await fork(place, None, fault)
    flaws = disagreements(place, clients.told, living=1)
    process.terminate()
    await process.wait()
    return deaths, flaws


async def _story(clients: Clients, url: str) -> bool:
    """A refund and its undo, a look, a denied call, a question to people; False when nobody answers."""
    async with aiohttp.ClientSession() as session:
        again, clients.told.unanswered = clients.told.unanswered, []
        for request in again:
            if not await clients.send(session, url, request):
                return False
        known = set(clients.told.succeeded)
        for request in (clients.refund(0, 100), clients.look(0), clients.refund(0, 500_000)):
            if not await clients.send(session, url, request):
                return False
        for call_id in clients.told.succeeded.keys() - known:
            if not await clients.send(session, url, clients.undo(0, call_id)):
                return False
        return await clients.send(session, url, clients.refund(0, 50_000))
