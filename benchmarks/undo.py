"""What a registered way back costs a governed call, and how long taking a call back takes.

The same tool is called with and without a declared inverse, in turns, so that what disturbs the machine
disturbs both alike; then calls are taken back one after another. Journal and fsyncs are real, the source
answers at once. A before-image or an after-image costs a governed read more each, which is not counted here.

    python -m benchmarks.undo [--quick] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.stages import PRINCIPAL, Echo, services
from remit.calls import new_call
from remit.journal import open_journal
from remit.model import Done
from remit.pipeline import Services, govern
from remit.undo import undo

_ROUND = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    calls: int
    #: Processor time of one governed call, microseconds: the median of the rounds.
    without_cpu_us: float
    with_inverse_cpu_us: float
    #: What the inverse adds, in percent.
    added_percent: float
    undo_cpu_us: float
    #: From asking for an undo to its recorded end, milliseconds.
    undo_p50_ms: float
    undo_p99_ms: float


async def measure(folder: Path, rounds: int) -> Figures:
    journal = await open_journal(folder / "bench.db", role="benchmark")
    on = services(folder, journal)
    inverse = on.catalog.tools["down.echo"]
    plain = replace(inverse, undo=None)
    on.adapters = {"down": Echo()}  # pyright: ignore[reportAttributeAccessIssue] - only `run` is called
    ids: list[str] = []
    cpu: dict[str, list[float]] = {"plain": [], "inverse": []}

    async def some(name: str, tool: Any) -> None:
        began = time.process_time()
        for number in range(_ROUND):
            outcome = await govern(_call(on, tool, f"{name} {number} {len(ids)}"), on)
            assert isinstance(outcome, Done), outcome
            if tool is inverse:
                ids.append(outcome.call_id)
        cpu[name].append((time.process_time() - began) / _ROUND * 1e6)

    try:
        for _ in range(rounds):
            await some("plain", plain)
            await some("inverse", inverse)
        taken_ms: list[float] = []
        began_cpu = time.process_time()
        for call_id in ids:
            began = time.perf_counter()
            outcome = await undo(call_id, PRINCIPAL, "undo", on)
            assert isinstance(outcome, Done), outcome
            taken_ms.append((time.perf_counter() - began) * 1e3)
        undo_cpu_us = (time.process_time() - began_cpu) / len(ids) * 1e6
    finally:
        await journal.close()
    without, with_inverse = statistics.median(cpu["plain"]), statistics.median(cpu["inverse"])
    # Each round against the one before it: a machine is not equally fast all the time.
    times = [inverse / plain for plain, inverse in zip(cpu["plain"], cpu["inverse"], strict=True)]
    return Figures(
        calls=rounds * _ROUND,
        without_cpu_us=round(without, 1),
        with_inverse_cpu_us=round(with_inverse, 1),
        added_percent=round((statistics.median(times) - 1) * 100, 1),
        undo_cpu_us=round(undo_cpu_us, 1),
        undo_p50_ms=round(statistics.median(taken_ms), 2),
        undo_p99_ms=round(statistics.quantiles(taken_ms, n=100)[98], 2),
    )


def _call(on: Services, tool: Any, text: str) -> Any:
    arguments = {"text": text}
    return new_call(
        tool=tool, arguments=arguments, principal=PRINCIPAL, run="bench", secret=on.secret, at_us=on.clock()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What a registered way back costs.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(Path(folder), 20 if options.quick else 80))
    if options.json:
        print(json.dumps(asdict(figures)))
        return
    for what, value in (
        ("governed call without a way back", f"{figures.without_cpu_us:.1f} us of processor time"),
        ("the same with an inverse", f"{figures.with_inverse_cpu_us:.1f} us, {figures.added_percent:+.1f} %"),
        ("an undo", f"{figures.undo_cpu_us:.1f} us"),
        ("an undo, from asking to record", f"{figures.undo_p50_ms} ms, p99 {figures.undo_p99_ms} ms"),
    ):
        print(f"{what:34}{value}")


if __name__ == "__main__":
    main()
