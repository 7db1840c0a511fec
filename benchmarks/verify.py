"""How fast an audit database is verified: all that `remit audit verify` does, as one JSON object.

A process of its own, which `benchmarks/growth.py` starts: the processes that share the work load what the
first one was started with, and that should be no more than what the product loads.

    python -m benchmarks.verify FILE [--postgres URL]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from remit import verifying
from remit.database import Location, Postgres
from remit.records import open_records


def verified(at: Location) -> dict[str, object]:
    with open_records(at) as records:
        events = records.count("events")
        began = time.perf_counter()
        found = [str(finding) for finding in verifying.verify(records, payloads=True)]
        took = time.perf_counter() - began
    return {"events": events, "took_s": took, "processes": verifying.worth_it(events), "found": found}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verify", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--postgres", metavar="URL", help="the database there, whose files lie beside FILE")
    asked = parser.parse_args()
    report = verified(Postgres(asked.postgres, asked.file) if asked.postgres else asked.file)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
