"""A writer of records and nothing else, as a measure: what keeping a call costs before anything is governed.

Two transactions a call, shared by all that wait, straight into tables of SQLite without a second index: the
call, three holds on balances in memory, two chained events. No policy, no payload, nothing sealed, nothing
that another process may do at the same time.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remit.chain import GENESIS, canonical, link

_BALANCES = ("agent", "team", "tenant")
_SCHEMA = """
CREATE TABLE calls (id TEXT PRIMARY KEY, tenant, agent, tool, args, state, began_us, ended_us, result)
    WITHOUT ROWID;
CREATE TABLE holds (call TEXT, account TEXT, amount, state, posted, PRIMARY KEY (call, account))
    WITHOUT ROWID;
CREATE TABLE accounts (id TEXT PRIMARY KEY, held, posted) WITHOUT ROWID;
CREATE TABLE events (seq INTEGER PRIMARY KEY, call TEXT, body TEXT, hash TEXT);
"""


@dataclass(frozen=True, slots=True)
class _Step:
    call: str
    ends: bool
    done: asyncio.Future[None]


class _Records:
    """What the steps of one transaction come to."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._seq, self._head = 0, GENESIS
        self._accounts: dict[str, tuple[int, int]] = dict.fromkeys(_BALANCES, (0, 0))
        db.executemany("INSERT INTO accounts VALUES (?, 0, 0)", [(name,) for name in _BALANCES])

    def write(self, steps: Sequence[_Step]) -> None:
        at_us = time.time_ns() // 1000
        events: list[tuple[Any, ...]] = []
        for step in steps:
            for name, (held, posted) in self._accounts.items():
                self._accounts[name] = (held - 10, posted + 10) if step.ends else (held + 10, posted)
            holds = dict.fromkeys(_BALANCES, 10)
            facts = {"call": step.call, "ends": step.ends, "at_us": at_us, "tool": "echo", "holds": holds}
            self._seq += 1
            body = canonical({"seq": self._seq, **facts})
            self._head = link(self._head, body)
            events.append((self._seq, step.call, body, self._head))
        begun, ended = [[each.call for each in steps if each.ends is ends] for ends in (False, True)]
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(
            "INSERT INTO calls VALUES (?, 'acme', 'bot', 'echo', ?, 'dispatched', ?, NULL, NULL)",
            [(call, '{"text":"text"}', at_us) for call in begun],
        )
        self._db.executemany(
            "INSERT INTO holds VALUES (?, ?, 10, 'held', 0)",
            [(call, name) for call in begun for name in _BALANCES],
        )
        self._db.executemany(
            "UPDATE calls SET state = 'succeeded', ended_us = ?, result = '{}' WHERE id = ?",
            [(at_us, call) for call in ended],
        )
        self._db.executemany(
            "UPDATE holds SET state = 'posted', posted = 10 WHERE call = ? AND account = ?",
            [(call, name) for call in ended for name in _BALANCES],
        )
        self._db.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", events)
        self._db.executemany(
            "UPDATE accounts SET held = ?, posted = ? WHERE id = ?",
            [(held, posted, name) for name, (held, posted) in self._accounts.items()],
        )
        self._db.execute("COMMIT")


async def cpu_us(path: Path, concurrency: int, seconds: float) -> float:
    """Processor time of this process for each call, in microseconds."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as db:
        for pragma in ("journal_mode = WAL", "synchronous = FULL"):
            db.execute(f"PRAGMA {pragma}")
        db.executescript(_SCHEMA)
        records, loop = _Records(db), asyncio.get_running_loop()
        waiting: queue.SimpleQueue[_Step | None] = queue.SimpleQueue()

        def told(steps: Sequence[_Step]) -> None:
            for step in steps:
                step.done.set_result(None)

        def run() -> None:
            while (step := waiting.get()) is not None:
                steps = [step]
                while not waiting.empty() and (another := waiting.get()) is not None:
                    steps.append(another)
                records.write(steps)
                loop.call_soon_threadsafe(told, steps)

        thread = threading.Thread(target=run)
        thread.start()
        calls = 0
        cpu_s, until = time.process_time(), time.perf_counter() + seconds

        async def client(name: int) -> None:
            nonlocal calls
            while time.perf_counter() < until:
                calls += 1
                call = f"{calls:020d}-{name}"
                for ends in (False, True):
                    step = _Step(call, ends, loop.create_future())
                    waiting.put(step)
                    await step.done

        await asyncio.gather(*(client(name) for name in range(concurrency)))
        cpu_s = time.process_time() - cpu_s
        waiting.put(None)
        thread.join()
        return round(cpu_s / calls * 1e6, 1)
