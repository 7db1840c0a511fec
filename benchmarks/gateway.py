"""A gateway end to end: what one governed `tools/call` costs beside other ways to make it.

The targets are described in `targets/launch.py`. All of them run at once and are measured in turn, in rounds,
so that what disturbs the machine disturbs them alike. The load comes from this process, and the server behind
the gateways answers from prepared pieces. Processor time is the target's own process, its children excluded.

    python -m benchmarks.gateway [--quick] [--json] [--only TARGET]... [--transport http|stdio]...
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.load import Burst, HttpLoad, Load, StdioLoad
from benchmarks.process import Child, run, running
from benchmarks.targets.launch import CANNED, ROOT, TARGETS, Launch, Skip, Transport, install_fastmcp

PAYLOADS = {"echo": "echo", "2 KB": "report"}
#: A target does some of its work after it answered; that counts too.
AFTERWARDS_S = 0.05
#: At 50 ms a call, what 128 clients have under way takes this long to be answered.
DRAIN_S = 20.0
CALLS_MAX = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    rounds: int
    seconds: float
    warm_up_s: float
    #: (clients, payload) of each comparison.
    cells: Sequence[tuple[int, str]]
    #: (target, clients) that would take longer than all others together.
    too_slow: frozenset[tuple[str, int]]


FULL = Plan(
    rounds=4,
    seconds=1.0,
    warm_up_s=0.3,
    cells=[(clients, payload) for payload in PAYLOADS for clients in (1, 16, 128)],
    too_slow=frozenset(),
)
QUICK = Plan(
    rounds=3,
    seconds=0.2,
    warm_up_s=0.1,
    cells=[(1, "echo"), (16, "echo"), (128, "echo"), (16, "2 KB")],
    too_slow=frozenset({("fastmcp", 16), ("fastmcp", 128), ("fastmcp-connected", 128)}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A target's process, which may still be on its way up."""

    name: str
    launch: Launch
    child: Child
    errors: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A target that is up and has answered one call rightly."""

    name: str
    child: Child
    load: Load
    prefix: str


@dataclass(slots=True, kw_only=True)
class Sums:
    """What the rounds of one target in one comparison add up to."""

    latencies_s: list[float] = field(default_factory=list[float])
    wall_s: float = 0.0
    cpu_s: float = 0.0
    rss_mb: float = 0.0
    failures: list[str] = field(default_factory=list[str])

    def row(self) -> dict[str, Any]:
        calls = len(self.latencies_s)
        if not calls:
            return {"calls": 0, "failed": len(self.failures), "example": self.failures[0]}
        ordered = sorted(self.latencies_s)
        return {
            "calls_per_s": round(calls / self.wall_s, 1),
            "p50_ms": round(ordered[calls // 2] * 1000, 3),
            "p99_ms": round(ordered[calls * 99 // 100] * 1000, 3),
            "cpu_ms": round(self.cpu_s * 1000 / calls, 4),
            "rss_mb": round(self.rss_mb, 1),
            "calls": calls,
            "failed": len(self.failures),
            **({"example": self.failures[0]} if self.failures else {}),
        }


async def start(
    name: str, transport: Transport, to: list[str], stack: AsyncExitStack, scratch: Path
) -> Started:
    """Start a target without waiting for it. Raises Skip if it cannot run here."""
    folder = scratch / f"{transport}-{name}"
    folder.mkdir()
    launch = await asyncio.to_thread(TARGETS[name], transport, to, folder)
    errors = folder / "stderr.txt"
    env = {"PYTHONPATH": str(ROOT), **launch.env}
    child = await stack.enter_async_context(running(launch.command, env=env, errors=errors))
    return Started(name=name, launch=launch, child=child, errors=errors)


async def prove(started: Started, transport: Transport, stack: AsyncExitStack) -> Running:
    """Wait until a target answers one call rightly. Raises Skip, with what it said, if it does not."""
    child, launch = started.child, started.launch
    try:
        load: Load
        if transport == "stdio":
            load = StdioLoad(child)
        else:
            load = HttpLoad(json.loads(await child.line(timeout_s=20))["url"], launch.headers)
        stack.callback(load.close)
        target = Running(name=started.name, child=child, load=load, prefix=launch.prefix)
        first = await burst(target, "echo", clients=1, seconds=20, calls_max=1, drain_s=5)
    except (TimeoutError, ValueError, OSError) as error:
        raise Skip(f"did not start: {last_line(started.errors) or error!r}") from error
    if first.failures:
        raise Skip(f"did not answer rightly: {last_line(started.errors) or first.failures[0]}")
    return target


def last_line(file: Path) -> str:
    return file.read_text("utf-8", "replace").strip().rpartition("\n")[2][:300]


async def burst(
    target: Running,
    tool: str,
    *,
    clients: int,
    seconds: float,
    calls_max: int = CALLS_MAX,
    drain_s: float = DRAIN_S,
) -> Burst:
    await target.load.ready(clients)
    made = Burst(seconds=seconds, calls_max=calls_max)
    target.load.start(target.prefix + tool, clients, made)
    await made.over(drain_s)
    if made.failures:
        target.load.close()
    return made


async def compare(targets: Sequence[Running], tool: str, clients: int, plan: Plan) -> dict[str, Sums]:
    """Measure the targets in turn, in rounds; every other round in the opposite order.

    One client makes few calls in a round, so it gets twice as many.
    """
    sums = {target.name: Sums() for target in targets}
    for target in targets:
        await burst(target, tool, clients=clients, seconds=plan.warm_up_s)
    for number in range(plan.rounds * 2 if clients == 1 else plan.rounds):
        for target in targets if number % 2 == 0 else reversed(targets):
            total = sums[target.name]
            await target.load.ready(clients)
            cpu_before_s = target.child.cpu_s()
            made = await burst(target, tool, clients=clients, seconds=plan.seconds)
            await asyncio.sleep(AFTERWARDS_S)
            total.cpu_s += target.child.cpu_s() - cpu_before_s
            total.latencies_s += made.latencies_s
            total.wall_s += made.ended - made.started
            total.failures += made.failures
            total.rss_mb = target.child.rss_mb()
    return sums


@contextmanager
def recorded(name: str, transport: Transport, skipped: list[dict[str, str]]) -> Iterator[None]:
    try:
        yield
    except Skip as skip:
        skipped.append({"target": name, "transport": transport, "reason": str(skip)})


@asynccontextmanager
async def behind(transport: Transport, scratch: Path) -> AsyncIterator[list[str]]:
    """What the gateways forward to: a URL, or a command that each of them starts for itself."""
    if transport == "stdio":
        yield [*CANNED, "--stdio"]
        return
    async with running([*CANNED, "--http"], errors=scratch / "behind.txt") as child:
        yield [json.loads(await child.line(timeout_s=10))["url"]]


async def measure(
    names: Sequence[str], transports: Sequence[Transport], plan: Plan, scratch: Path
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    for transport in transports:
        async with behind(transport, scratch) as to, AsyncExitStack() as stack:
            progress(f"{transport}: starting {', '.join(names)}")
            started: list[Started] = []
            targets: list[Running] = []
            for name in names:
                with recorded(name, transport, skipped):
                    started.append(await start(name, transport, to, stack, scratch))
            for target in started:
                with recorded(target.name, transport, skipped):
                    targets.append(await prove(target, transport, stack))
            for clients, payload in plan.cells:
                progress(f"{transport}: {clients} clients, {payload}")
                chosen = [target for target in targets if (target.name, clients) not in plan.too_slow]
                sums = await compare(chosen, PAYLOADS[payload], clients, plan)
                rows += table(sums, transport=transport, clients=clients, payload=payload)
    progress("")
    for name, clients in sorted(plan.too_slow):
        if name in names:
            reason = f"{clients} clients take too long for --quick"
            skipped.append({"target": name, "transport": "all", "reason": reason})
    return rows, skipped


def table(sums: dict[str, Sums], **cell: Any) -> Iterator[dict[str, Any]]:
    measured = {name: total.row() for name, total in sums.items()}
    bare_ms = measured.get("bare", {}).get("cpu_ms")
    for name, row in measured.items():
        ratio = round(row["cpu_ms"] / bare_ms, 3) if bare_ms and "cpu_ms" in row else None
        yield {"target": name, **cell, **row, "ratio_cpu_to_bare": ratio}


def progress(words: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)


COLUMNS = {
    "calls_per_s": "calls/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "cpu_ms": "CPU ms/call",
    "rss_mb": "RSS MB",
    "ratio_cpu_to_bare": "CPU / bare",
}


def show(rows: Sequence[dict[str, Any]], skipped: Sequence[dict[str, str]]) -> None:
    cell = None
    for row in rows:
        if cell != (cell := (row["transport"], row["clients"], row["payload"])):
            print(f"\n{row['transport']}, {row['clients']} client(s), {row['payload']}")
            print(f"  {'':18}" + "".join(f"{title:>13}" for title in COLUMNS.values()))
        values = (row.get(column) for column in COLUMNS)
        print(f"  {row['target']:18}" + "".join(f"{'-' if v is None else v:>13}" for v in values))
        if row["failed"]:
            print(f"  {'':18} {row['failed']} calls failed, the first with: {row['example']}")
    for skip in skipped:
        print(f"\nskipped {skip['target']} ({skip['transport']}): {skip['reason']}")
    for row in rows:
        ratio = row["ratio_cpu_to_bare"]
        if row["target"] == "remit" and row["clients"] in (1, 16) and ratio:
            verdict = "met" if ratio <= 1 else "missed"
            where = f"{row['transport']}, {row['clients']} client(s), {row['payload']}"
            print(f"\nCPU at most that of the bare proxy ({where}): {verdict}, {ratio}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 50 seconds; rougher numbers")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--only", action="append", choices=list(TARGETS), help="measure this target")
    parser.add_argument("--transport", action="append", choices=["http", "stdio"])
    options = parser.parse_args()
    names = options.only or list(TARGETS)
    if not options.quick and any(name.startswith("fastmcp") for name in names):
        install_fastmcp()
    plan = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="remit-benchmark-") as scratch:
        rows, skipped = run(measure(names, options.transport or ["http", "stdio"], plan, Path(scratch)))
    if options.json:
        print(json.dumps({"rows": rows, "skipped": skipped}))
    else:
        show(rows, skipped)
    return 1 if any(row["failed"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
