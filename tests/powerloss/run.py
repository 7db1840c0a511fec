"""The power fails while calls are recorded, again and again: is all there that somebody was told?

    python -m tests.powerloss.run --cuts 500 --seed 7 [--relaxed | --lying] [--json]

A real journal records calls, several at a time, while everything that it tells its disk is recorded
(`recording.py`). For each cut, a folder is made of what the disk may hold then (`disk.py`), and Remit opens
it as it always does. Every call that was acknowledged before the cut must be there with its outcome, the
whole record must verify and every balance must add up. With `--relaxed`, outcomes may be lost, and with a
`--lying` disk, which syncs nothing, anything: both show that a loss would be noticed. Exits with 1 when one
was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.stages import admitted, decided, services, settled
from tests.powerloss.disk import Disk, cuts
from tests.powerloss.recording import Recording, recording

from remit import ledger_sqlite, verifying
from remit.audit import verify_balances
from remit.errors import RemitError
from remit.journal import Journal, open_journal
from remit.pipeline import Services
from remit.records import CallQuery, open_records
from remit.sealer import seal

#: What a call may have become that was acknowledged in this state.
_BECOMES = {"dispatched": ("in_doubt", "succeeded"), "succeeded": ("succeeded",)}
_CALLS = 120
_CUTS_OF_ONE_LOAD = 100
_TOGETHER_MAX = 6


@dataclass(kw_only=True)
class Report:
    seed: int
    cuts: int = 0
    #: Calls that had been acknowledged, over all cuts.
    acknowledged: int = 0
    #: Of these, what was not there, or not so.
    lost: list[str] = field(default_factory=list[str])
    #: Whatever else is not sound afterwards.
    flaws: list[str] = field(default_factory=list[str])
    seconds: float = 0.0


async def load(to: Recording, at: Path, rng: random.Random, *, relaxed: bool) -> None:
    """Record calls, a few together, and say of each when it is admitted and when it has ended."""
    journal = await open_journal(at, role="test", relaxed=relaxed)
    on = services(at.parent.parent, journal)
    made = 0
    try:
        while made < _CALLS:
            together = rng.randint(1, _TOGETHER_MAX)
            texts = [rng.randbytes(rng.randrange(1500)).hex() for _ in range(together)]
            await asyncio.gather(*(one_call(to, journal, on, text) for text in texts))
            made += together
            if rng.random() < 0.1:
                await asyncio.to_thread(seal, at)
    finally:
        await journal.close()


async def one_call(to: Recording, journal: Journal, on: Services, text: str) -> None:
    call, decision = decided(on, text)
    with journal.under_way():
        await admitted(call, decision, on)
        to.told(call.id, "dispatched")
        await settled(call, decision, on)
        to.told(call.id, "succeeded")


async def recovered(at: Path) -> None:
    """Open and close the record as a server does when it starts."""
    await (await open_journal(at, role="test")).close()


def lost(at: Path, told: Mapping[str, str]) -> Iterator[str]:
    with open_records(at) as records:
        states = {call.id: call.state for call in records.calls(CallQuery(), limit=len(told) + _CALLS)}
    for call_id, state in told.items():
        if (now := states.get(call_id)) not in _BECOMES[state]:
            yield f"call {call_id} was {state}, and is {now or 'gone'}"


def flaws(at: Path) -> Iterator[str]:
    with open_records(at) as records:
        yield from records.damage()
        yield from map(str, verifying.verify(records, payloads=True, processes=1))
        yield from map(str, verify_balances(records))


def one_cut(disk: Disk, folder: Path, rng: random.Random, report: Report) -> None:
    folder.mkdir()
    at = folder / "remit.db"
    report.cuts += 1
    report.acknowledged += len(disk.told)
    try:
        disk.cut(folder, rng)
        asyncio.run(recovered(at))
        report.lost += [f"cut {report.cuts}: {what}" for what in lost(at, disk.told)]
        report.flaws += [f"cut {report.cuts}: {what}" for what in flaws(at)]
    except RemitError as error:
        report.flaws.append(f"cut {report.cuts}: {error}")
        report.lost += [f"cut {report.cuts}: call {call_id} cannot be read" for call_id in disk.told]
    finally:
        shutil.rmtree(folder)


def campaign(*, number: int, seed: int, relaxed: bool = False, lies: bool = False) -> Report:
    report, rng, began = Report(seed=seed), random.Random(seed), time.perf_counter()
    # Short, so that it is written back and begun anew often.
    wal, looks = ledger_sqlite._WAL_MAX_BYTES, ledger_sqlite._COMMITS_BETWEEN_LOOKS
    ledger_sqlite._WAL_MAX_BYTES, ledger_sqlite._COMMITS_BETWEEN_LOOKS = 2**18, 4
    try:
        while report.cuts < number:
            with tempfile.TemporaryDirectory() as name:
                (home := Path(name) / "record").mkdir()
                with recording(home) as to:
                    asyncio.run(load(to, home / "remit.db", rng, relaxed=relaxed))
                disk, played = Disk(lies=lies), 0
                for place in cuts(to.tape, min(_CUTS_OF_ONE_LOAD, number - report.cuts), rng):
                    for entry in to.tape[played:place]:
                        disk.play(entry)
                    played = place
                    one_cut(disk, Path(name) / "cut", rng, report)
    finally:
        ledger_sqlite._WAL_MAX_BYTES, ledger_sqlite._COMMITS_BETWEEN_LOOKS = wal, looks
    report.seconds = round(time.perf_counter() - began, 1)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.powerloss.run")
    parser.add_argument("--cuts", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--relaxed", action="store_true", help="with store.durability: relaxed")
    parser.add_argument("--lying", action="store_true", help="on a disk that syncs nothing")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    report = campaign(number=asked.cuts, seed=asked.seed, relaxed=asked.relaxed, lies=asked.lying)
    if asked.json:
        print(json.dumps(asdict(report)))
    else:
        print(f"{report.cuts} cuts, {report.acknowledged} acknowledged calls looked for")
        print(f"{len(report.lost)} of them lost, {len(report.flaws)} flaws; seed {report.seed}")
        print("\n".join([*report.lost[:10], *report.flaws[:10]]))
    return 1 if report.lost or report.flaws else 0


if __name__ == "__main__":
    sys.exit(main())
