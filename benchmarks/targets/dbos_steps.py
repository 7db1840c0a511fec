"""Three-step workflows on DBOS and a SQLite file, as many at once as asked: what a durable engine costs.

Runs in an environment of its own (see `benchmarks.ledger`); needs nothing of Remit.

    python dbos_steps.py FILE CONCURRENCY SECONDS
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import sys
import time

from dbos import DBOS


@DBOS.step()
async def before() -> int:
    return 1


@DBOS.step()
async def effect() -> int:
    return 2


@DBOS.step()
async def after() -> int:
    return 3


@DBOS.workflow()
async def call() -> int:
    return await before() + await effect() + await after()


async def main(concurrency: int, seconds: float) -> None:
    await asyncio.gather(*(call() for _ in range(concurrency)))
    done = 0
    began = time.perf_counter()
    until = began + seconds

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < until:
            await call()
            done += 1

    await asyncio.gather(*(client() for _ in range(concurrency)))
    print(json.dumps({"calls_per_s": round(done / (time.perf_counter() - began), 1)}), flush=True)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    sqlite3.connect(sys.argv[1]).execute("PRAGMA journal_mode = WAL")
    DBOS(config={"name": "steps", "system_database_url": f"sqlite:///{sys.argv[1]}"})
    DBOS.launch()
    try:
        asyncio.run(main(int(sys.argv[2]), float(sys.argv[3])))
    finally:
        DBOS.destroy()
