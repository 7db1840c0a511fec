"""The whole verification of an audit database, by as many processes as it may use.

What is verified, and how, is `audit.py` and `proofs.py`. Here the events and the calls are cut into parts
that can be verified apart: what an event follows on stands in the event before it, and all that belongs to
a call is found by its id. Each part is judged within one snapshot of its own, so what is written meanwhile
troubles nobody. What is small is verified in the process that asks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context

from remit.audit import (
    FIRST,
    Finding,
    Place,
    Progress,
    ignored,
    verify_approvals,
    verify_calls,
    verify_events,
    verify_keys,
    verify_policies,
    verify_runs,
)
from remit.checkpoint import Checkpoint, Verifier
from remit.database import Location
from remit.ids import first_id
from remit.proofs import verify_log
from remit.records import Records, open_records

#: Events of one part. A process takes another when it has verified one.
_PART = 20_000
#: Fewer events are verified before other processes have even started.
_WORTH_IT = 50_000


def verify(
    records: Records,
    kept: Sequence[Checkpoint] = (),
    verifiers: Sequence[Verifier] = (),
    *,
    payloads: bool,
    progress: Progress = ignored,
    processes: int | None = None,
    part: int = _PART,
) -> Iterator[Finding]:
    """Everything that is not as it was written; see `audit.py`, and `verify_log` for `kept` and `verifiers`.

    Without `payloads`, those stay sealed. `progress` is told of events, calls, and sealed events. As many
    `processes` as there are processors, unless it is said.
    """
    events = records.count("events")
    if processes is None:
        processes = processors() if events >= _WORTH_IT else 1
    if processes < 2 or records.at is None:
        yield from verify_events(records, progress)
        yield from verify_calls(records, progress, payloads=payloads)
        yield from _the_rest(records, kept, verifiers, payloads, progress)
        return
    places, ids = _cuts(records, part)
    key = records.key().hex() if payloads else None
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        parts: list[Future[list[Finding]]] = []
        try:
            for begin, end in pairwise((FIRST, *places, None)):
                parts.append(pool.submit(_events, records.at, begin or FIRST, end))
            for begin, end in pairwise(("", *ids, None)):
                parts.append(pool.submit(_calls, records.at, key, begin or "", end))
            each = (events + records.count("calls")) // len(parts)
            for under_way in parts:
                under_way.add_done_callback(lambda _: progress(each))
            # This process has its own part meanwhile.
            own = list(_the_rest(records, kept, verifiers, payloads, progress))
            for done in parts:
                yield from done.result()
            yield from own
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _the_rest(
    records: Records,
    kept: Sequence[Checkpoint],
    verifiers: Sequence[Verifier],
    payloads: bool,
    progress: Progress,
) -> Iterator[Finding]:
    yield from verify_log(records, kept, verifiers, progress)
    yield from verify_approvals(records, payloads=payloads)
    yield from verify_keys(records)
    yield from verify_runs(records)
    yield from verify_policies(records)


def _cuts(records: Records, part: int) -> tuple[list[Place], list[str]]:
    """Where parts of about so many events begin, and the least ids of calls about then.

    Whoever has changed the record can make parts larger by it, and not have anything left out.
    """
    places: list[Place] = []
    ids: set[str] = set()
    before = 0
    for stream, events in records.rows("SELECT id, last_seq FROM incarnations ORDER BY id"):
        for seq in range(part - before % part, events + 1, part):
            at = next(
                records.rows("SELECT at_us FROM events WHERE stream = ? AND seq = ?", (stream, seq)), None
            )
            if at is not None:
                places.append((stream, seq))
                ids.add(first_id(at["at_us"]))
        before += events
    return places, sorted(ids)


def _events(at: Location, begin: Place, end: Place | None) -> list[Finding]:
    with open_records(at) as records:
        return list(verify_events(records, begin=begin, end=end))


def _calls(at: Location, key: str | None, begin: str, end: str | None) -> list[Finding]:
    with open_records(at, lambda: key) as records:
        return list(verify_calls(records, payloads=key is not None, begin=begin, end=end))
