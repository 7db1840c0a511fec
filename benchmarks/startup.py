"""How long a client waits for the first answer of a stdio server that it has just started.

A stdio server starts once for every client session, so this is what each session pays. The first request of
a client is `initialize` or `server/discover`, depending on its revision. Each program is started once without
being measured (it may make its database then), and then in turn with the others.

    python -m benchmarks.startup [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from benchmarks.load import META
from benchmarks.process import run, running
from benchmarks.targets.launch import CANNED, ROOT, TARGETS, Launch

INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "load", "version": "1"},
}
FIRST: Mapping[str, dict[str, Any]] = {
    "initialize": {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": INITIALIZE},
    "server/discover": {"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {"_meta": META}},
}
#: Without a gateway: a plain server on the SDK. Remit may take this much longer.
YARDSTICK, ALLOWED_S = "direct", 0.5


async def first_answer_s(launch: Launch, request: str, folder: Path) -> float:
    """Seconds from the start of the program to its answer. Raises ValueError when it is not an answer."""
    errors = folder / "stderr.txt"
    begin = time.perf_counter()
    async with running(launch.command, env={"PYTHONPATH": str(ROOT), **launch.env}, errors=errors) as child:
        child.write(orjson.dumps(FIRST[request]) + b"\n")
        answer = await child.line(timeout_s=20)
        taken_s = time.perf_counter() - begin
    if b'"result"' not in answer:
        raise ValueError(answer.decode() or errors.read_text("utf-8", "replace").strip().rpartition("\n")[2])
    return taken_s


async def measure(runs: int, scratch: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    launches: dict[str, Launch] = {}
    skipped: list[dict[str, str]] = []
    for name in (YARDSTICK, "bare", "remit"):
        folder = scratch / name
        folder.mkdir()
        launches[name] = TARGETS[name]("stdio", [*CANNED, "--stdio"], folder)
        try:
            for request in FIRST:
                await first_answer_s(launches[name], request, folder)
        except (ValueError, TimeoutError) as error:
            del launches[name]
            skipped.append({"target": name, "reason": f"does not answer: {error}"})
    taken_s: dict[tuple[str, str], list[float]] = {}
    for _ in range(runs):
        for request in FIRST:
            for name, launch in launches.items():
                seconds = await first_answer_s(launch, request, scratch / name)
                taken_s.setdefault((request, name), []).append(seconds)
    rows = [
        {"target": name, "request": request, "median_s": round(statistics.median(seconds), 3),
         "min_s": round(min(seconds), 3), "max_s": round(max(seconds), 3)}
        for (request, name), seconds in taken_s.items()
    ]  # fmt: skip
    return rows, skipped


def show(rows: list[dict[str, Any]], skipped: list[dict[str, str]]) -> None:
    print(f"{'first request':18}{'target':10}{'median s':>10}{'min s':>10}{'max s':>10}")
    for row in rows:
        print(
            f"{row['request']:18}{row['target']:10}{row['median_s']:>10}{row['min_s']:>10}{row['max_s']:>10}"
        )
    for skip in skipped:
        print(f"skipped {skip['target']}: {skip['reason']}")
    median_s = {(row["request"], row["target"]): row["median_s"] for row in rows}
    for request in FIRST:
        if (remit_s := median_s.get((request, "remit"))) is not None:
            more_s = remit_s - median_s[request, YARDSTICK]
            verdict = "met" if more_s <= ALLOWED_S else "missed"
            print(
                f"At most {ALLOWED_S} s more than without a gateway ({request}): {verdict}, {more_s:+.3f} s"
            )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="remit-benchmark-") as scratch:
        rows, skipped = run(measure(3 if options.quick else 10, Path(scratch)))
    if options.json:
        print(json.dumps({"rows": rows, "skipped": skipped}))
    else:
        show(rows, skipped)
    return 0


if __name__ == "__main__":
    sys.exit(main())
