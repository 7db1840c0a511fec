"""What it costs to record a governed call durably: two transactions, one before and one after the effect.

For each number of calls that are under way together: the journal as it is (every process commits what waits
in one transaction), a transaction of its own for each step that goes straight into the same tables
(`naive`), and with `--dbos` a three-step workflow of a durable execution engine. The floor is what the disk
takes for two synced writes, one after the other, and beside it what PostgreSQL takes for two bare inserts,
each a commit. Processor time is this process's own, for the records alone: the calls are decided before the
clock starts. The PostgreSQL server comes from a wheel and is durable, or is the one that
`REMIT_TEST_POSTGRES_URL` names. `--sync-ms` makes every sync take that much longer, as on a slower disk: a
usual one in a cloud takes 1 ms. A server that is named is left out then.
Beside all of it stands a plain writer, which keeps calls, holds and events on SQLite and governs nothing.

    python -m benchmarks.ledger [--quick] [--json] [--dbos] [--sync-ms MS]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import asyncpg
import uvloop
from tests.postgres import Databases, Server

from benchmarks.stages import decided, record, services
from benchmarks.targets import plain_writer
from benchmarks.targets.launch import ROOT
from remit import journal as journals
from remit import ledger_postgres
from remit.database import Location, Postgres
from remit.front.serving import settle_memory
from remit.journal import Journal, open_journal
from remit.ledger import Ledger
from remit.ledger_sqlite import SqliteStore
from remit.redo import Gathered
from remit.writer import Writer

T = TypeVar("T")
CONCURRENCY = (1, 16, 128)
#: The calls that are made ready for each second, by concurrency: more than can be recorded in it.
_MOST = {1: 1_500, 16: 4_000, 128: 8_000}
DBOS_VENV = ROOT / "out" / "venvs" / "dbos"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    concurrency: int
    calls_per_s: float
    p50_ms: float
    p99_ms: float
    #: Processor time for each call.
    cpu_us: float
    #: Synced commits for each call; a checkpoint of the write-ahead log, once in hundreds, adds to them.
    fsyncs: float
    naive_calls_per_s: float
    #: Of a three-step workflow; None where it was not measured.
    dbos_calls_per_s: float | None = None


@dataclass(slots=True, kw_only=True)
class Sums:
    latencies_s: list[float] = field(default_factory=list[float])
    wall_s: float = 0.0
    cpu_s: float = 0.0
    commits: int = 0

    @property
    def calls_per_s(self) -> float:
        return round(len(self.latencies_s) / self.wall_s, 1)

    def percentile_ms(self, percent: int) -> float:
        ordered = sorted(self.latencies_s)
        return round(ordered[len(ordered) * percent // 100] * 1000, 3)


class OneByOne(Writer):
    """A writer that commits each step by itself, as one who knows nothing of the others would.

    It locks, writes into the tables and commits: no redo log, and no guess that nobody has written.
    """

    async def write(
        self, change: Callable[[], T], *, durable: bool = True, must: bool = False, alone: bool = False
    ) -> T:
        return await asyncio.to_thread(self._committed, change)

    def _committed(self, change: Callable[[], T]) -> T:
        with self._turn, self._ledger.transaction(durable=True):
            return change()


def floor_ms(folder: Path, seconds: float, sync_s: float) -> float:
    """The median time of two sequential synced writes of a page, in a file that has its length already."""
    page = os.urandom(4096)
    file = os.open(folder / "floor", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.write(file, bytes(2**20))
        os.fsync(file)
        times: list[float] = []
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            for n in (0, 1):
                os.pwrite(file, page, (2 * len(times) + n) % 256 * 4096)
                os.fdatasync(file)
                time.sleep(sync_s)
            times.append(time.perf_counter() - began)
    finally:
        os.close(file)
    return Sums(latencies_s=times).percentile_ms(50)


async def bare_inserts_ms(at: Postgres, seconds: float) -> float:
    """The median time of two sequential inserts of a row of 2 KB: what two commits cost on that server."""
    db: Any = await asyncpg.connect(at.url)
    try:
        await db.execute("CREATE TABLE bare (number bigint, body text)")
        insert = await db.prepare("INSERT INTO bare VALUES ($1, $2)")
        times: list[float] = []
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            for _ in range(2):
                await insert.fetch(len(times), "x" * 2_000)
            times.append(time.perf_counter() - began)
    finally:
        await db.close()
    return Sums(latencies_s=times).percentile_ms(50)


@contextmanager
def slower_syncs(sync_s: float) -> Iterator[None]:
    """Let every commit on SQLite take this much longer."""
    commit = SqliteStore.commit

    def slower(self: SqliteStore, gathered: Gathered, *, wait: bool) -> None:
        time.sleep(sync_s)
        commit(self, gathered, wait=wait)

    SqliteStore.commit = slower
    try:
        yield
    finally:
        SqliteStore.commit = commit


@contextmanager
def plainly() -> Iterator[None]:
    """Let journals that are opened within commit each step by itself."""
    logs, believed = SqliteStore.logs, ledger_postgres._OVERTAKEN_MAX  # pyright: ignore[reportPrivateUsage]
    journals.Writer, SqliteStore.logs, ledger_postgres._OVERTAKEN_MAX = OneByOne, False, 0  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        journals.Writer, SqliteStore.logs = Writer, logs
        ledger_postgres._OVERTAKEN_MAX = believed  # pyright: ignore[reportPrivateUsage]


@contextmanager
def counted_commits() -> Iterator[list[int]]:
    """Count the transactions that are committed within, in a list of one number."""
    count = [0]
    flush = Ledger._flush  # pyright: ignore[reportPrivateUsage] - it runs once in each commit

    def counting(self: Ledger, *args: Any) -> Gathered:
        count[0] += 1
        return flush(self, *args)

    Ledger._flush = counting  # pyright: ignore[reportPrivateUsage]
    try:
        yield count
    finally:
        Ledger._flush = flush  # pyright: ignore[reportPrivateUsage]


async def burst(
    journal: Journal, folder: Path, concurrency: int, calls: int, seconds: float, sums: Sums
) -> None:
    """Record calls for some seconds, `calls` at most, and add them to `sums`."""
    on = services(folder, journal)
    await asyncio.gather(*(record(*decided(on), on) for _ in range(concurrency)))
    ready = deque(decided(on) for _ in range(calls))
    with counted_commits() as commits:
        cpu, wall = time.process_time(), time.perf_counter()
        until = wall + seconds

        async def client() -> None:
            ended = wall
            while ready and ended < until:  # once at least, however late the clients begin
                began = time.perf_counter()
                await record(*ready.popleft(), on)
                ended = time.perf_counter()
                sums.latencies_s.append(ended - began)

        await asyncio.gather(*(client() for _ in range(concurrency)))
        sums.cpu_s += time.process_time() - cpu
        sums.wall_s += time.perf_counter() - wall
        sums.commits += commits[0]


async def measured(
    folder: Path, database: Callable[[str], Location], rounds: int, seconds: float, dbos: bool = False
) -> list[Row]:
    """The rows of one kind of database; `database` makes one by a name."""
    rows: list[Row] = []
    for concurrency in CONCURRENCY:
        grouped, naive = Sums(), Sums()
        for number in range(rounds):
            for kind, sums, writer, most in (
                ("group", grouped, Writer, _MOST[concurrency]),
                ("naive", naive, OneByOne, _MOST[1]),
            ):
                with plainly() if writer is OneByOne else nullcontext():
                    at = database(f"{kind}-{concurrency}-{number}")
                    journal = await open_journal(at, role="benchmark")
                    try:
                        await burst(journal, folder, concurrency, round(seconds * most), seconds, sums)
                    finally:
                        await journal.close()
        calls = len(grouped.latencies_s)
        rows.append(
            Row(
                concurrency=concurrency,
                calls_per_s=grouped.calls_per_s,
                p50_ms=grouped.percentile_ms(50),
                p99_ms=grouped.percentile_ms(99),
                cpu_us=round(grouped.cpu_s / calls * 1e6, 1),
                fsyncs=round(grouped.commits / calls, 3),
                naive_calls_per_s=naive.calls_per_s,
                dbos_calls_per_s=dbos_calls_per_s(folder, concurrency, seconds) if dbos else None,
            )
        )
    return rows


def dbos_calls_per_s(folder: Path, concurrency: int, seconds: float) -> float:
    """Three-step workflows a second on a SQLite file with a write-ahead log, in an environment of its own."""
    if not DBOS_VENV.exists():
        subprocess.run([sys.executable, "-m", "venv", str(DBOS_VENV)], check=True, capture_output=True)
        install = [str(DBOS_VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "dbos>=3,<4"]
        subprocess.run(install, check=True, capture_output=True, timeout=300)
    program = ROOT / "benchmarks" / "targets" / "dbos_steps.py"
    command = [str(DBOS_VENV / "bin" / "python"), str(program), str(folder / f"dbos-{concurrency}.db")]
    said = subprocess.run(
        [*command, str(concurrency), str(seconds)], check=True, capture_output=True, text=True, timeout=120
    )
    return json.loads(said.stdout.splitlines()[-1])["calls_per_s"]


def show(
    floor: float, bare_inserts: float | None, plain_cpu_us: float, databases: Mapping[str, Sequence[Row]]
) -> None:
    print(f"floor (two synced writes): {floor} ms")
    if bare_inserts is not None:
        print(
            f"two bare inserts on postgresql: {bare_inserts} ms, {bare_inserts / floor:.2f} times the floor"
        )
    print(f"processor time of a plain writer, 128 together: {plain_cpu_us} us")
    titles = [name.replace("_", " ") for name in Row.__dataclass_fields__]
    for name, rows in databases.items():
        print(f"\n{name:12}" + "".join(f"{title:>20}" for title in titles))
        for row in rows:
            print(" " * 12 + "".join(f"{'-' if it is None else it:>20}" for it in asdict(row).values()))
        one, few, many = rows
        for what, ratio, most in (
            ("1.5 times the floor at most, alone", one.p50_ms / floor, 1.5),
            ("a fifth of naive's time at most, 16 together", few.naive_calls_per_s / few.calls_per_s, 0.2),
            ("a tenth of naive's time at most, 128 together", many.naive_calls_per_s / many.calls_per_s, 0.1),
            ("0.1 ms of processor time at most, 128 together", many.cpu_us / 1000, 0.1),
        ):
            print(f"{what}: {'met' if ratio <= most else 'missed'}, {ratio:.2f}")
        print(f"processor time beside the plain writer's, 128 together: {many.cpu_us / plain_cpu_us:.1f}")


@contextmanager
def postgres(folder: Path, sync_s: float = 0.0) -> Iterator[Callable[[str], Postgres]]:
    """Makes databases; with `sync_s`, on a server whose every sync takes so much longer."""
    given = os.environ.get("REMIT_TEST_POSTGRES_URL")
    slower = (f"commit_delay={round(sync_s * 1e6)}", "commit_siblings=0") if sync_s else ()
    server = None if given else Server(slower, durable=True)
    try:
        databases = Databases(given or cast("Server", server).url())
        try:
            yield lambda name: Postgres(databases.fresh(), folder / name)
        finally:
            databases.drop()
    finally:
        if server:
            server.stop()


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 50 seconds; rougher numbers")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--dbos", action="store_true", help="also a DBOS workflow; installs it once")
    parser.add_argument("--sync-ms", type=float, default=0.0, help="each sync takes so much longer")
    asked = parser.parse_args()
    rounds, seconds = (2, 1.0) if asked.quick else (5, 3.0)
    (ROOT / "out").mkdir(exist_ok=True)
    rows: dict[str, list[Row]] = {}
    bare_inserts: float | None = None
    with tempfile.TemporaryDirectory(dir=ROOT / "out", prefix="ledger-") as name:
        folder = Path(name)
        sync_s = asked.sync_ms / 1000
        floor = floor_ms(folder, seconds, sync_s)
        with slower_syncs(sync_s):
            settle_memory()
            plain_cpu_us = await plain_writer.cpu_us(folder / "plain.db", CONCURRENCY[-1], seconds)
            rows["sqlite"] = await measured(
                folder, lambda it: folder / f"{it}.db", rounds, seconds, asked.dbos
            )
        if not (sync_s and os.environ.get("REMIT_TEST_POSTGRES_URL")):
            with postgres(folder, sync_s) as new:
                bare_inserts = await bare_inserts_ms(new("bare"), seconds)
                rows["postgresql"] = await measured(folder, new, rounds, seconds)
    if asked.json:
        listed = {kind: [asdict(row) for row in some] for kind, some in rows.items()}
        measures = {"floor_ms": floor, "bare_inserts_ms": bare_inserts, "plain_cpu_us": plain_cpu_us}
        print(json.dumps({**measures, **listed}))
    else:
        show(floor, bare_inserts, plain_cpu_us, rows)


if __name__ == "__main__":
    uvloop.run(main())
