"""Play random histories and hold the invariants of undo against them: python -m tests.undo.run --steps N

Ends with 1 at the first history that breaks one, and says how to play it again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.undo.histories import play

STEPS = 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000, help="so many in all")
    parser.add_argument("--seed", type=int, default=1, help="of the first history")
    options = parser.parse_args()
    began_s, histories = time.monotonic(), max(1, options.steps // STEPS)
    fast = Path("/dev/shm")
    for seed in range(options.seed, options.seed + histories):
        with tempfile.TemporaryDirectory(dir=fast if fast.is_dir() else None) as folder:
            try:
                play(Path(folder), seed=seed, steps=STEPS)
            except BaseException:  # noqa: BLE001 - whatever it is, it ends the run and says which history
                traceback.print_exc()
                print(f"seed {seed}: python -m tests.undo.run --steps {STEPS} --seed {seed}")
                return 1
    took_s = time.monotonic() - began_s
    print(f"{histories} histories of {STEPS} steps, {histories * STEPS} in all, {took_s:.0f} s: all hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
