"""Compare Remit with stock Casbin for as long as asked: `python -m tests.rbac.fuzz --comparisons N`."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.rbac.differential import Tally, run, write_models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comparisons", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=None, help="the first policy's seed; default: the clock")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int(time.time())
    tally = Tally()
    started = time.monotonic()
    policies = 0
    with tempfile.TemporaryDirectory() as folder:
        models = write_models(Path(folder))
        while tally.compared < options.comparisons:
            try:
                run(random.Random(seed + policies), models, tally)
            except AssertionError:
                print(f"\nfailed at --seed {seed + policies} (alone: --comparisons 1)", file=sys.stderr)
                raise
            policies += 1
            if sys.stderr.isatty() and policies % 50 == 0:
                print(f"\r{tally.compared:,} of {options.comparisons:,}", end="", file=sys.stderr)
    outcomes = ", ".join(f"{name} {count:,}" for name, count in sorted(tally.outcomes.items()))
    print(
        f"{tally.compared:,} comparisons over {policies:,} policies from seed {seed}"
        f" in {time.monotonic() - started:.0f} s: 0 wrong allows, 0 differences ({outcomes})"
    )


if __name__ == "__main__":
    main()
