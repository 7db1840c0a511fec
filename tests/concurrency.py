"""A limit under pressure: 200 calls at once, 50 of which a budget takes. Exactly 50, every time.

    python -m tests.concurrency --rounds 1000 [--database postgresql] [--replicas 3]

Each round spends from an account of its own; the calls come to several Remits on one database. With
`--json`, prints one line: rounds, calls, and how many rounds let out another number than 50.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from argparse import ArgumentParser
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
from tests.postgres import Databases, Server
from tests.server import builders
from tests.server.builders import Remit, a_remit

from remit.model import Done

CAP = 50
CALLS = 200
LIMITS = {"per_agent": 10 * CALLS, "per_source": 10 * CALLS}
BUDGETS = [{"scope": "run", "unit": "calls", "window": "total", "limit": CAP}]


async def rounds(folder: Path, *, count: int, replicas: int) -> list[int]:
    """Play so many rounds; return how many calls were let out in each."""
    async with AsyncExitStack() as stack:
        remits: list[Remit] = []
        for _ in range(replicas):
            clock = remits[0].clock if remits else None
            remit = a_remit(folder, clock=clock, budgets=BUDGETS, limits=LIMITS)
            remits.append(await stack.enter_async_context(remit))
        return [await _round(remits, number) for number in range(count)]


async def _round(remits: list[Remit], number: int) -> int:
    outcomes = await asyncio.gather(
        *(
            remits[each % len(remits)].call("shop.look", {"thing": str(each)}, run=f"round-{number}")
            for each in range(CALLS)
        )
    )
    row = remits[0].one("SELECT held, posted FROM accounts WHERE id LIKE ?", f"%round-{number}:%")
    done = sum(isinstance(outcome, Done) for outcome in outcomes)
    assert (row["held"], row["posted"]) == (0, done), f"round {number}: {done} calls, {row}"
    return done


def main() -> None:
    wanted = ArgumentParser(description=__doc__)
    wanted.add_argument("--rounds", type=int, default=20)
    wanted.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    wanted.add_argument("--replicas", type=int, default=2)
    wanted.add_argument("--json", action="store_true")
    said = wanted.parse_args()
    server = Server() if said.database == "postgresql" else None
    try:
        builders.databases = Databases(server.url()) if server else None
        with tempfile.TemporaryDirectory() as folder:
            let_out = Counter(anyio.run(_played, Path(folder), said.rounds, said.replicas))
    finally:
        if server:
            server.stop()
    wrong = said.rounds - let_out[CAP]
    if said.json:
        print(json.dumps({"database": said.database, "rounds": said.rounds, "calls": CALLS, "wrong": wrong}))
    else:
        print(f"{said.database}, {said.replicas} replicas: {said.rounds} rounds of {CALLS} calls at once;")
        print(f"let out: {', '.join(f'{number} in {times}' for number, times in let_out.items())}")
    raise SystemExit(1 if wrong else 0)


async def _played(folder: Path, count: int, replicas: int) -> list[int]:
    return await rounds(folder, count=count, replicas=replicas)


if __name__ == "__main__":
    main()
