"""One small story, cut at each point in turn; after each cut the next life is told the rest of it.

The same folder serves all of them, so what one death left behind is there when the next one comes. Other
servers on the same database live through all of it.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence

import aiohttp
from tests.crash.at_point import Death, Moment, fork
from tests.crash.clients import Clients
from tests.crash.place import Place
from tests.crash.reconcile import Seen, what_stays_wrong
from tests.crash.zygote import Zygote


async def cut_everywhere(
    place: Place,
    zygote: Zygote,
    moments: Sequence[Moment],
    *,
    servers: int = 1,
    fault: str | None = None,
) -> tuple[list[Death], list[str]]:
    """Die at every point of these kinds; returns the deaths, and what was wrong after the last of them.

    Ends at the first death after which something is wrong. On PostgreSQL, where a lease must run out before
    anybody looks after the dead, all is compared after the last death of each kind only.
    """
    clients, seen = Clients(place, random.Random(1)), Seen()
    deaths: list[Death] = []
    others = [await fork(zygote, place, None, fault) for _ in range(servers - 1)]
    try:
        for moment in moments:
            while True:
                number = 1 + sum(death.moment == moment for death in deaths)
                death = Death(moment=moment, number=number)
                died, flaws = await _dies(place, zygote, clients, seen, death, fault, servers)
                if flaws:
                    return deaths, flaws
                if not died:
                    break
                deaths.append(death)
            if flaws := await what_stays_wrong(place, clients.told, seen, living=servers - 1):
                return deaths, flaws
        return deaths, []
    finally:
        for life in others:
            life.signal(signal.SIGKILL)
            await life.wait()


async def _dies(
    place: Place,
    zygote: Zygote,
    clients: Clients,
    seen: Seen,
    death: Death,
    fault: str | None,
    servers: int,
) -> tuple[bool, list[str]]:
    """Whether the server died there, before it had told the story and ended; and what was wrong before."""
    life = await fork(zygote, place, death, fault)
    flaws: list[str] = []
    if life.url:
        if not place.on_postgres:
            flaws = await what_stays_wrong(place, clients.told, seen, living=servers)
        if flaws:
            life.signal(signal.SIGKILL)
        elif await story(clients, life.url):
            life.signal(signal.SIGTERM)  # closing is work too, and may be cut
    ended = await life.wait()
    if ended == "failed":
        flaws = [*flaws, f"a server failed, {death}: {(place.folder / 'remit.stderr').read_text()[-4000:]}"]
    return ended == "killed" and not flaws, flaws


async def story(clients: Clients, url: str) -> bool:
    """Everything once: made and taken back, held back and called off, refused; False when nobody answers."""
    async with aiohttp.ClientSession() as session:
        again, clients.told.unanswered = clients.told.unanswered, []
        for request in again:
            if not await clients.send(session, url, request):
                return False
        made = [clients.refund(0, 100), clients.update(0, clients.a_customer()), clients.mail(0)]
        for request in (clients.look(0), *made, clients.refund(0, 500_000), clients.refund(0, 50_000)):
            answer = await clients.send(session, url, request)
            if not answer:
                return False
            if request in made and not await clients.send(session, url, clients.undo(0, answer.call_id)):
                return False
    return True
