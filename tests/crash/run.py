"""Kill Remit in the middle of its work, again and again, and see after each restart what was lost.

    python -m tests.crash.run --kills 200 [--database sqlite|postgresql] [--servers 3] [--every-point]
        [--seed S] [--json]

`remit serve`, as one server or several on one database, stands in front of Acme; agents refund, write, ask
people and take back, several at once. At a moment that nobody chose, or at a numbered point of a call:
SIGKILL. The next life is started on what is left. Beside that servers are stopped past their lease and go on,
and PostgreSQL crashes, or loses the connection around a commit. After every few kills all is let come to
rest, and `reconcile.py` compares Acme's ledger, the audit database, and what the agents were told; in the end
of a place everything is taken back, twice. Exits with 1, and keeps the folder, when anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, get_args

import anyio
from anyio.to_thread import run_sync
from tests.crash.at_point import Death, Moment, fork
from tests.crash.clients import Clients, Vote
from tests.crash.every_point import cut_everywhere
from tests.crash.line import Line, a_line
from tests.crash.place import Place, acme_is_gone, beside_acme
from tests.crash.reconcile import Seen, audited, effects_of, note_what_has_ended, what_stays_wrong
from tests.crash.rollback import taken_back
from tests.crash.zygote import Ended, a_zygote
from tests.postgres import Databases, Server

from remit.cli.acting import journal_of
from remit.config_file import load
from remit.database import reading
from remit.errors import RemitError, StoreUnavailable
from remit.sealer import seal

MOMENTS: tuple[Moment, ...] = get_args(Moment)
#: Those that come many times in a life.
_OFTEN = [moment for moment in MOMENTS if "seal" not in moment]
Database = Literal["sqlite", "postgresql"]
_START_S = 60
_CONVERSATIONS_PER_AGENT = 2
#: All is let come to rest and compared after so many kills; a place is given up for a new one after so many.
_KILLS_PER_LOOK: dict[Database, int] = {"sqlite": 10, "postgresql": 30}
_KILLS_PER_PLACE = 200
#: How long a server lives that is to die at a point which it may not reach.
_POINT_S = 1.0
#: How long a server is stopped: past the lease of `place.py`; where the kernel tells who lives, not so long.
_STOPPED_S: dict[Database, float] = {"sqlite": 0.3, "postgresql": 1.5}
_LEASE_S = 1.1
_AT_A_POINT = 0.4
_STOPPED = 0.04
#: Seconds between two accidents of the database, and what they are.
_ACCIDENT_S = 1.0
_ACCIDENTS = {"unheard": 12, "unanswered": 12, "crash": 1}


@dataclass(slots=True, kw_only=True)
class Report:
    seed: int
    database: Database = "sqlite"
    servers: int = 1
    kills: int = 0
    #: Of these, at a point that was drawn, or at each in turn; the others at any moment.
    at_a_point: int = 0
    #: How many points of each kind there were, where a server died at each in turn.
    points: dict[str, int] = field(default_factory=dict[str, int])
    #: Kills from outside with at least one request under way.
    in_flight: int = 0
    #: Servers stopped past their lease that went on; and how many of them others had taken for dead.
    stopped: int = 0
    taken_for_dead: int = 0
    #: Crashes of PostgreSQL; commits whose connection broke before the server heard of them, or after.
    crashes: int = 0
    unheard: int = 0
    unanswered: int = 0
    #: How often all was compared.
    looks: int = 0
    seconds: float = 0.0
    answers: int = 0
    #: Requests without an answer that were sent again.
    resent: int = 0
    #: What Acme did, by tool; calls and ways back by state, as they were when the last servers ended.
    effects: dict[str, int] = field(default_factory=dict[str, int])
    calls: dict[str, int] = field(default_factory=dict[str, int])
    undos: dict[str, int] = field(default_factory=dict[str, int])
    flaws: list[str] = field(default_factory=list)


class CannotStartError(Exception):
    """On what was left, no server starts."""


class Life(Protocol):
    """One process of Remit's that serves at `url`, unless that is empty: then it never came so far."""

    @property
    def url(self) -> str: ...

    @property
    def pid(self) -> int: ...

    def signal(self, number: signal.Signals) -> None: ...

    async def wait(self) -> Ended: ...


Start = Callable[[Place, Death | None], Awaitable[Life]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawned:
    """The real command."""

    url: str
    process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def wait(self) -> Ended:
        code = await self.process.wait()
        return "killed" if code == -signal.SIGKILL else "failed" if code else "in order"


async def spawn(place: Place, death: Death | None = None) -> Spawned:
    """Start `remit serve` in `place`; returns once it serves. It dies when somebody else kills it only."""
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
    assert line, _said(place)
    return Spawned(url=json.loads(line)["url"], process=process)


class Campaign:
    """Kills in one place, until something is wrong there. Each server is killed and followed by another."""

    def __init__(
        self,
        place: Place,
        start: Start,
        report: Report,
        *,
        line: Line | None = None,
        server: Server | None = None,
    ) -> None:
        self._place = place
        self._start = start
        self._report = report
        self._line = line
        self._server = server
        self._rng = random.Random(f"{report.seed} {report.kills}")
        self._clients = Clients(place, self._rng, self._vote)
        self._seen = Seen()
        self._lives: list[Life | None] = [None] * report.servers

    async def run(self, kills: int) -> None:
        report = self._report
        self._until = report.kills + kills
        try:
            await self._lives_and_deaths()
        except* CannotStartError:
            pass  # that is a flaw, and noted
        finally:
            for life in filter(None, self._lives):
                life.signal(signal.SIGKILL)
                await life.wait()
        if self._place.starts_acme and not await acme_is_gone(self._place):
            report.flaws.append("a process of Acme's is left although no Remit is")

    async def _lives_and_deaths(self) -> None:
        report = self._report
        while report.kills < self._until and not report.flaws:
            await self._round()
            report.flaws += await self._look(report.servers)
        for slot in range(report.servers):
            await self._end(slot)
        await self._count()
        if not report.flaws:
            report.flaws += [*await taken_back(self._place), *await self._look(0)]
            report.flaws += await run_sync(audited, self._place)

    async def _round(self) -> None:
        """Let all agents work, and kill; returns once all that was under way has ended."""
        report = self._report
        until = min(self._until, report.kills + _KILLS_PER_LOOK[report.database])
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as working:
            for agent in range(len(self._place.keys)):
                for _ in range(_CONVERSATIONS_PER_AGENT):
                    working.create_task(self._clients.work(agent, stop))
            accidents = working.create_task(self._accidents())
            async with asyncio.TaskGroup() as killing:
                for slot in range(report.servers):
                    killing.create_task(self._keep_killing(slot, until))
            accidents.cancel()
            if self._line:
                self._line.spare()
            stop.set()

    async def _keep_killing(self, slot: int, until: int) -> None:
        report, rng = self._report, self._rng
        while report.kills < until and not report.flaws:
            death = None
            if rng.random() < _AT_A_POINT:
                moment = rng.choice(_OFTEN)
                death = Death(moment=moment, number=rng.randint(1, 30 if "commit" in moment else 8))
            life = self._lives[slot] or await self._begin(slot, death)
            if report.servers > 1 and rng.random() < _STOPPED:
                await self._stop(life)
            with anyio.move_on_after(_POINT_S):
                if death is not None:
                    await life.wait()
                await self._clients.answers(rng.randint(0, 8))
                # Not waiting for anything: the moment is drawn, so that it falls anywhere into a call.
                await asyncio.sleep(rng.uniform(0, 0.03))
            await self._kill(slot, life)
        if self._lives[slot] is None:
            await self._begin(slot)

    async def _begin(self, slot: int, death: Death | None = None) -> Life:
        """Start a server in this place among them; one that is to die may never serve."""
        with anyio.fail_after(_START_S):
            while True:
                life = await self._start(self._place, death)
                if not life.url and (ended := await life.wait()) != "killed":
                    # While PostgreSQL is away nobody can start.
                    if self._server is None:
                        self._report.flaws.append(
                            f"a server {ended} instead of starting: {_said(self._place)}"
                        )
                        raise CannotStartError
                    await asyncio.sleep(0.1)
                    continue
                self._lives[slot] = life
                if life.url:
                    self._clients.serving.append(life.url)
                return life

    async def _kill(self, slot: int, life: Life) -> None:
        """SIGKILL, unless it has died by itself where it was told to."""
        report = self._report
        ended: Ended | None = None
        with anyio.move_on_after(0.001):
            ended = await life.wait()
        if ended is None:
            report.in_flight += self._clients.in_flight > 0
            life.signal(signal.SIGKILL)
        else:
            report.at_a_point += 1
        if (ended := await life.wait()) != "killed":
            report.flaws.append(f"a server {ended}: {_said(self._place)}")
        report.kills += 1
        self._gone(slot, life)

    def _gone(self, slot: int, life: Life) -> None:
        self._lives[slot] = None
        if life.url:
            self._clients.serving.remove(life.url)

    async def _stop(self, life: Life) -> None:
        """Let a server sleep past its lease, and go on: what others have concluded by then stands."""
        life.signal(signal.SIGSTOP)
        await asyncio.sleep(_STOPPED_S[self._report.database])
        self._report.stopped += 1
        with suppress(RemitError), reading(self._place.records) as db:
            row = db.one("SELECT state FROM incarnations WHERE pid = ? ORDER BY id DESC LIMIT 1", (life.pid,))
            self._report.taken_for_dead += row is not None and row["state"] == "dead"
            note_what_has_ended(self._place, self._seen)  # what it writes now must not go there
        life.signal(signal.SIGCONT)

    async def _accidents(self) -> None:
        """What happens to PostgreSQL meanwhile."""
        while self._line and self._server:
            await asyncio.sleep(self._rng.expovariate(1 / _ACCIDENT_S))
            match self._rng.choices([*_ACCIDENTS], [*_ACCIDENTS.values()]):
                case ["crash"]:
                    with anyio.CancelScope(shield=True):
                        await run_sync(self._server.crash)
                        await run_sync(self._server.start)
                    self._report.crashes += 1
                case ["unheard"]:
                    self._line.cut("unheard")
                case _:
                    self._line.cut("unanswered")

    async def _end(self, slot: int) -> None:
        """End a server in order."""
        life = self._lives[slot]
        assert life is not None
        life.signal(signal.SIGTERM)
        if (ended := await life.wait()) != "in order":
            self._report.flaws.append(f"a server was told to end, and {ended}: {_said(self._place)}")
        self._gone(slot, life)

    async def _look(self, living: int) -> list[str]:
        """Compare all memories, once whoever died has been taken over."""
        if self._server and living:
            await asyncio.sleep(_LEASE_S)  # whoever died last is believed to live for so long
            await self._end(0)
            await self._begin(0)
        await run_sync(seal, self._place.records)
        self._report.looks += 1
        return await what_stays_wrong(self._place, self._clients.told, self._seen, living=living)

    async def _vote(self, approval_id: str, vote: Vote) -> bool:
        """A person answers, who has a program of their own open on the same records."""
        try:
            async with journal_of(load(self._place.config)) as desk:
                await desk.vote(approval_id, user="user:sue", vote=vote, comment="", use_within_s=300)
        except StoreUnavailable:
            return False
        return True

    async def _count(self) -> None:
        report, told = self._report, self._clients.told
        report.answers += told.answers
        report.resent += told.resent
        if self._line:
            report.unheard += self._line.cuts["unheard"]
            report.unanswered += self._line.cuts["unanswered"]
            self._line.cuts.clear()
        for effect in effects_of(self._place):
            _add(report.effects, effect["tool"], 1)
        with reading(self._place.records) as db:
            for table, counts in (("calls", report.calls), ("undos", report.undos)):
                for row in db.all(f"SELECT state, COUNT(*) AS n FROM {table} GROUP BY state"):  # noqa: S608
                    _add(counts, row["state"], row["n"])


def _add(counts: dict[str, int], name: str, more: int) -> None:
    counts[name] = counts.get(name, 0) + more


def _said(place: Place) -> str:
    return (place.folder / "remit.stderr").read_text()[-4000:]


async def forked(
    folder: Path,
    report: Report,
    *,
    kills: int,
    every_point: bool = False,
    fault: str | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Kill `kills` times, in one place after another; ends in the first where anything is wrong.

    With `every_point`, a server first dies at each numbered point in turn, beside those kills.
    """
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        zygote = stack.enter_context(a_zygote())
        server = databases = None
        if report.database == "postgresql":
            server = Server()
            stack.callback(server.stop)
            databases = Databases(server.url())
        if every_point:
            here = folder / "every-point"
            here.mkdir()
            async with beside_acme(here, agents=1, database=databases and databases.fresh()) as place:
                deaths, report.flaws = await cut_everywhere(
                    place, zygote, MOMENTS, servers=report.servers, fault=fault
                )
            for death in deaths:
                _add(report.points, death.moment, 1)
            report.kills += len(deaths)
            report.at_a_point += len(deaths)
            progress(report.kills)
        until = report.kills + kills
        while report.kills < until and not report.flaws:
            here = folder / f"after-{report.kills}"
            here.mkdir()
            url = databases.fresh() if databases else None
            async with _a_place(here, server, url) as (place, line):
                one = Campaign(
                    place,
                    lambda where, death: fork(zygote, where, death, fault),
                    report,
                    line=line,
                    server=server,
                )
                await one.run(min(_KILLS_PER_PLACE, until - report.kills))
            if not report.flaws:
                shutil.rmtree(here)
            report.seconds = round(time.monotonic() - began, 1)
            progress(report.kills)


@asynccontextmanager
async def _a_place(
    folder: Path, server: Server | None, url: str | None
) -> AsyncGenerator[tuple[Place, Line | None]]:
    if server is None or url is None:
        async with beside_acme(folder) as place:
            yield place, None
        return
    async with (
        a_line(folder, server.folder) as line,
        beside_acme(folder, database=url, through=folder) as place,
    ):
        yield place, line


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill Remit at random and see whether anything was lost.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--database", choices=get_args(Database), default="sqlite")
    parser.add_argument("--servers", type=int, default=1, help="Remit processes on one database")
    parser.add_argument("--seed", type=int, default=None, help="draws what the agents do and when it ends")
    parser.add_argument("--every-point", action="store_true", help="first die at each point in turn, too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.randrange(2**32)
    report = Report(seed=seed, servers=options.servers, database=options.database)
    # In memory where there is some: what a killed process wrote is there, synced or not.
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="remit-crash-", dir=memory if memory.is_dir() else None))

    def progress(kills: int) -> None:
        print(f"{kills} of {options.kills} kills, {report.seconds} s", file=sys.stderr, flush=True)

    run = partial(forked, folder, report, kills=options.kills, progress=progress)
    anyio.run(partial(run, every_point=options.every_point))
    if options.json:
        print(json.dumps(asdict(report), indent=2))
    else:
        for name, value in asdict(report).items():
            print(f"{name:>16}  {dict(sorted(value.items())) if isinstance(value, dict) else value}")
    if report.flaws:
        print(f"Everything is kept in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
