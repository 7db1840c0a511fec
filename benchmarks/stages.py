"""Where the processor time of a governed call goes inside Remit, measured without a network.

`front and pipeline` is everything from a decoded message to the bytes of its answer, with a journal and a
source that answer at once. A second row has a policy on trial beside the calls (`remit policy shadow`); of
both, the best of five. `journal` is the two transactions of a call on a real SQLite file, by how many calls
wait together; its fsyncs are real. What `benchmarks.gateway` shows beyond these two is HTTP (or the pipe) on
both sides.

    python -m benchmarks.stages [--quick] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from benchmarks.targets.launch import write_remit_files
from remit import catalog
from remit.calls import new_call
from remit.checks.containment import stopped
from remit.config_file import load
from remit.front.lane import Lane
from remit.front.server import Front
from remit.identity import Principal
from remit.ids import now_us
from remit.journal import Admitted, Journal, Settled, open_journal
from remit.model import Call
from remit.pipeline import Decision, Services, decide
from remit.policies import files_text, load_policy
from remit.shadow import Shadow
from remit_adapters.base import Caller, Offer, Reply, Request

PRINCIPAL = Principal(tenant="bench", agent="agent:load", user="user:owner", auth="api_key")
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
OFFER = Offer(tools=tuple({"name": name, "inputSchema": SCHEMA} for name in ("echo", "report", "take_back")))
REPLY = Reply(body={"content": [{"type": "text", "text": "text"}], "isError": False})
VERSION = "2026-07-28"
MESSAGE = {
    "jsonrpc": "2.0",
    "id": "call",
    "method": "tools/call",
    "params": {
        "name": "down.echo",
        "arguments": {"text": "text"},
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": VERSION,
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": {"name": "stages", "version": "1"},
        },
    },
}
HEADERS = {"mcp-protocol-version": VERSION, "mcp-method": "tools/call", "mcp-name": "down.echo"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    stage: str
    together: int
    calls: int
    #: Of the whole process, with the threads that work beside the calls.
    cpu_us: float
    calls_per_s: float
    #: How long a call takes.
    p50_us: float
    p99_us: float


class WritesNothing:
    """A journal that says yes at once."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def admit(self, *_: object, **__: object) -> Admitted:
        return Admitted(deadline_us=now_us() + 60_000_000)

    async def settle(self, *_: object, **__: object) -> Settled:
        return Settled(event="")


class Echo:
    keeps_deadlines = False

    async def run(self, request: Request, caller: Caller) -> Reply:
        return REPLY


class Ready:
    """As much of an App as a front asks for, already started."""

    def __init__(self, on: Services) -> None:
        self.services_now = on
        self.config = on.config

    def listen(self, listener: object) -> None: ...


def services(folder: Path, journal: Any) -> Services:
    write_remit_files(["http://127.0.0.1:1/mcp"], folder)
    config = load(folder / "remit.yaml").config
    return Services(
        config=config,
        journal=journal,
        policy=load_policy(config),
        catalog=catalog.build(config, {"down": OFFER}),
        adapters={"down": Echo()},  # pyright: ignore[reportArgumentType] - only `run` is called
        clock=now_us,
        secret=b"s" * 32,
        in_flight={},
    )


async def measured(stage: str, calls: int, together: int, one: Callable[[], Awaitable[object]]) -> Row:
    times: list[float] = []

    async def some() -> None:
        for _ in range(calls // together):
            began = time.perf_counter()
            await one()
            times.append(time.perf_counter() - began)

    await one()
    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(some() for _ in range(together)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    done = len(times)
    times.sort()
    return Row(
        stage=stage,
        together=together,
        calls=done,
        cpu_us=round(cpu / done * 1e6, 1),
        calls_per_s=round(done / wall, 1),
        p50_us=round(times[done // 2] * 1e6, 1),
        p99_us=round(times[done * 99 // 100] * 1e6, 1),
    )


@asynccontextmanager
async def on_trial(journal: Journal, on: Services) -> AsyncIterator[None]:
    """Have every call decided a second time beside the event loop, as a server does."""
    version = "the same"
    await journal.start_shadow(version=version, text=files_text(on.config).as_json(), by=PRINCIPAL.user)
    shadow = Shadow(on.config)
    deciding = asyncio.create_task(shadow.run(on))
    try:
        while on.shadow is None:  # noqa: ASYNC110 - it tells nobody when it begins
            await asyncio.sleep(0.05)
        yield
    finally:
        deciding.cancel()
        await shadow.finish(on)


async def front_and_pipeline(folder: Path, calls: int, *, trial: bool = False) -> Row:
    on = services(folder, None)
    opened = await open_journal(on.config.store.location, role="benchmark")
    on.journal = cast(Journal, WritesNothing(opened))
    app: Any = Ready(on)
    lane = Lane(app, Front(app))

    async def one() -> None:
        plain = lane.take(MESSAGE, PRINCIPAL, HEADERS)
        assert plain is not None
        answer, _ = await lane.answer(plain)
        assert b'"isError":false' in answer, answer

    try:
        if not trial:
            return await measured("front and pipeline", calls, 1, one)
        async with on_trial(opened, on):
            return await measured("the same, with a policy on trial", calls, 1, one)
    finally:
        await opened.close()


def decided(on: Services, text: str = "text") -> tuple[Call, Decision]:
    """A call, as the pipeline hands it to the journal."""
    call = new_call(
        tool=on.catalog.tools["down.echo"],
        arguments={"text": text},
        principal=PRINCIPAL,
        run="default",
        secret=on.secret,
        at_us=now_us(),
    )
    return call, decide(call, on)


async def record(call: Call, decision: Decision, on: Services) -> None:
    """Record one governed call, before and after an effect that does nothing."""
    with on.journal.under_way():
        await admitted(call, decision, on)
        await asyncio.sleep(0)  # as every effect does, it lets the other calls have a turn
        await settled(call, decision, on)


async def admitted(call: Call, decision: Decision, on: Services) -> None:
    answer = await on.journal.admit(
        call,
        decision.verdict,
        decision.charges,
        decision.plan,
        stopped=stopped,
        in_force=lambda: on.policy.version,
        saw=decision.saw,
    )
    assert isinstance(answer, Admitted), answer


async def settled(call: Call, decision: Decision, on: Services) -> None:
    await on.journal.settle(
        call,
        call_id=call.id,
        state="succeeded",
        costs={charge.unit: charge.amount for charge in decision.charges},
        charges=decision.charges,
        reply=b"{}",
        error=None,
        plan=decision.plan,
    )


async def journal(folder: Path, calls: int, together: int) -> Row:
    opened: Journal = await open_journal(folder / f"stage-{together}.db", role="benchmark")
    on = services(folder, opened)
    try:
        return await measured("journal", calls, together, lambda: record(*decided(on), on))
    finally:
        await opened.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description="Where the processor time of a governed call goes.")
    parser.add_argument("--quick", action="store_true", help="a few seconds; rougher numbers")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    asked = parser.parse_args()
    scale = 1 if asked.quick else 5
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In turns, for a machine has its better moments.
        turns = [
            [await front_and_pipeline(folder, 5_000 * scale, trial=trial) for trial in (False, True)]
            for _ in range(5)
        ]
        rows = [min(row, key=lambda row: row.p50_us) for row in zip(*turns, strict=True)]
        rows += [await journal(folder, 400 * scale * few, few) for few in (1, 4, 16)]
    if asked.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))
        return
    heads = f"{'stage':32} {'together':>8} {'calls':>7} {'CPU µs/call':>12}"
    print(f"{heads} {'calls/s':>10} {'p50 µs':>8} {'p99 µs':>8}")
    for row in rows:
        print(
            f"{row.stage:32} {row.together:8} {row.calls:7} {row.cpu_us:12} {row.calls_per_s:10}"
            f" {row.p50_us:8} {row.p99_us:8}"
        )


if __name__ == "__main__":
    asyncio.run(main())
