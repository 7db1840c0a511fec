"""Kill Remit in the middle of its work, again and again, and see after each restart what was lost.

    python -m tests.crash.run --kills 200 [--servers 2] [--seed S] [--forked] [--json]

A real `remit serve` stands in front of Acme; agents refund, look and take back, several at once; at a moment
that nobody chose, SIGKILL. The next life is started on what is left, and `reconcile.py` compares Acme's
tables, the audit database, and what the agents were told. With two servers on one database, one of them is
killed while the other goes on. Exits with 1, and keeps the folder, when anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import anyio
from tests.crash import books
from tests.crash.at_point import fork
from tests.crash.clients import Clients
from tests.crash.place import Place, a_place, acme_is_gone, beside_acme
from tests.crash.reconcile import disagreements

_START_S = 60
#: The command line verifies the audit log once in so many kills; in between a function does.
_VERIFY_EVERY = 20
_CONVERSATIONS_PER_AGENT = 2


@dataclass(slots=True, kw_only=True)
class Report:
    kills: int
    servers: int
    seed: int
    seconds: float = 0.0
    #: Kills with at least one request under way.
    in_flight: int = 0
    answers: int = 0
    #: Requests without an answer that were sent again.
    resent: int = 0
    refunds: int = 0
    cancelled: int = 0
    #: Calls by state at the end.
    calls: dict[str, int] = field(default_factory=dict)
    flaws: list[str] = field(default_factory=list)


class Life(Protocol):
    """One process of Remit's that serves at `url`."""

    @property
    def url(self) -> str: ...

    def kill(self) -> None: ...

    def terminate(self) -> None: ...

    async def wait(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawned:
    """The real command."""

    url: str
    process: asyncio.subprocess.Process

    def kill(self) -> None:
        self.process.kill()

    def terminate(self) -> None:
        self.process.terminate()

    async def wait(self) -> int:
        return await self.process.wait()


async def spawn(place: Place) -> Spawned:
    """Start `remit serve` in `place`; returns once it serves."""
    with (place.folder / "remit.stderr").open("a") as stderr:
        process = await asyncio.create_subprocess_exec(
            *place.serve(), cwd=place.folder, stdout=asyncio.subprocess.PIPE, stderr=stderr
        )
    assert process.stdout is not None
    line = b""
    try:
        async with asyncio.timeout(_START_S):
            line = await process.stdout.readline()
    finally:
        if not line:
            process.kill()
            await process.wait()
    assert line, (place.folder / "remit.stderr").read_text()[-4000:]
    return Spawned(url=json.loads(line)["url"], process=process)


async def campaign(
    place: Place,
    *,
    kills: int,
    seed: int,
    servers: int = 1,
    start: Callable[[Place], Awaitable[Life]] = spawn,
    progress: Callable[[int], None] = lambda _: None,
) -> Report:
    """Kill `kills` times in `place`. Ends early at the first kill after which something is wrong."""
    rng = random.Random(seed)
    report = Report(kills=0, servers=servers, seed=seed)
    clients = Clients(place, rng)
    began = time.monotonic()
    async with _lives(place, servers, start) as lives:
        while report.kills < kills and not report.flaws:
            report.in_flight += await _kill_one(lives, clients, rng)
            report.kills += 1
            report.flaws += books.flaws(place.records)  # also while nobody has taken over yet
            lives.append(await start(place))
            report.flaws += disagreements(place, clients.told, living=servers)
            if report.kills % _VERIFY_EVERY == 0:
                report.flaws += await _verified(place)
            progress(report.kills)
    report.flaws += disagreements(place, clients.told, living=0)
    report.flaws += await _verified(place)
    if place.starts_acme and not await acme_is_gone(place):
        report.flaws.append("a process of Acme's is left although no Remit is")
    report.seconds = round(time.monotonic() - began, 1)
    report.answers, report.resent = clients.told.answers, clients.told.resent
    _count(place, report)
    return report


async def _kill_one(lives: list[Life], clients: Clients, rng: random.Random) -> bool:
    """Let all agents work on all servers and kill one; returns once all that was under way has ended."""
    stop = asyncio.Event()
    victim = lives.pop(rng.randrange(len(lives)))
    async with asyncio.TaskGroup() as working:
        for agent in range(len(clients.place.keys)):
            for _ in range(_CONVERSATIONS_PER_AGENT):
                for life in (victim, *lives):
                    working.create_task(clients.work(life.url, agent, stop))
        await clients.answers(rng.randint(0, 40))
        # Not waiting for anything: the moment is drawn, so that it falls anywhere into a call.
        await asyncio.sleep(rng.uniform(0, 0.03))
        under_way = clients.in_flight > 0
        victim.kill()
        await victim.wait()
        if lives:
            await clients.answers(rng.randint(1, 20))
        stop.set()
    return under_way


@asynccontextmanager
async def _lives(
    place: Place, servers: int, start: Callable[[Place], Awaitable[Life]]
) -> AsyncGenerator[list[Life]]:
    """Servers that are up; whoever takes one out or adds one leaves the rest to be stopped in order."""
    lives: list[Life] = []
    try:
        while len(lives) < servers:
            lives.append(await start(place))
        yield lives
    finally:
        for life in lives:
            life.terminate()
        for life in lives:
            await life.wait()


async def _verified(place: Place) -> list[str]:
    """What `remit audit verify` says, when it is not content."""
    command = [sys.executable, "-m", "remit", "audit", "verify", "--json", "--config", str(place.config)]
    ran = await anyio.run_process(command, check=False)
    return [] if ran.returncode == 0 else [f"remit audit verify: {ran.stdout.decode()}{ran.stderr.decode()}"]


def _count(place: Place, report: Report) -> None:
    with closing(sqlite3.connect(place.records)) as records, closing(sqlite3.connect(place.acme)) as acme:
        report.calls = dict(records.execute("SELECT state, COUNT(*) FROM calls GROUP BY state ORDER BY 1"))
        statuses = dict(acme.execute("SELECT status, COUNT(*) FROM refunds GROUP BY status"))
    report.refunds, report.cancelled = sum(statuses.values()), statuses.get("cancelled", 0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill Remit at random and see whether anything was lost.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--servers", type=int, default=1, help="Remit processes on one database")
    parser.add_argument("--seed", type=int, default=None, help="draws what the agents do and when it ends")
    parser.add_argument(
        "--forked", action="store_true", help="many kills in little time: fork what has been imported already"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.randrange(2**32)
    folder = Path(tempfile.mkdtemp(prefix="remit-crash-"))

    def progress(kills: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{kills} of {options.kills} kills", end="", file=sys.stderr, flush=True)

    async def run() -> Report:
        kill = partial(campaign, kills=options.kills, seed=seed, servers=options.servers, progress=progress)
        if not options.forked:
            return await kill(await a_place(folder))
        async with beside_acme(folder) as place:
            return await kill(place, start=fork)

    report = anyio.run(run)
    if options.json:
        print(json.dumps(asdict(report), indent=2))
    else:
        print(
            f"\n{report.kills} kills ({report.in_flight} with requests under way), {report.servers}"
            f" server(s), seed {report.seed}, {report.seconds} s\n{report.answers} answers,"
            f" {report.resent} requests sent again, {report.refunds} refunds of which {report.cancelled}"
            f" cancelled; calls: {report.calls}"
        )
        for flaw in report.flaws:
            print(f"  {flaw}")
    if report.flaws:
        print(f"Everything is kept in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
