"""The whole verification of an audit database, by as many processes as it may use.

What is verified, and how, is `audit.py` and `proofs.py`. Here the calls are cut into parts that can be
verified apart: all that belongs to a call is found by its id, and what each of its events follows on stands
in the event before it. So every event is read and decoded once, and only a record in which one does not
follow is read again, in the order of its streams, to name what is wrong. Each part is judged within one
snapshot of its own, so what is written meanwhile troubles nobody. What is small is verified in the process
that asks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context

from remit.audit import (
    Finding,
    Followed,
    Progress,
    ignored,
    verify_approvals,
    verify_calls,
    verify_ends,
    verify_events,
    verify_holds,
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
    `processes` as there are processors, unless it is said. Raises StoreUnavailable where not all can be read.
    """
    records.must_be_whole()
    if processes is None:
        processes = processors() if records.count("events") >= _WORTH_IT else 1
    if processes < 2 or records.at is None:
        followed = Followed()
        found = list(verify_calls(records, progress, payloads=payloads, followed=followed))
        found += _the_rest(records, kept, verifiers, payloads, progress)
    else:
        found, followed = _by_several(processes, records, kept, verifiers, payloads, progress, part)
    verify_ends(records, followed)
    if followed.loose:
        named = list(verify_events(records))
        yield from named or (
            Finding(where=f"stream {stream}, event {seq}", what="it does not follow the event before it")
            for stream, seq in followed.loose
        )
    yield from found


def _by_several(
    processes: int,
    records: Records,
    kept: Sequence[Checkpoint],
    verifiers: Sequence[Verifier],
    payloads: bool,
    progress: Progress,
    part: int,
) -> tuple[list[Finding], Followed]:
    assert records.at is not None  # noqa: S101 - who calls has looked
    key = records.key().hex() if payloads else None
    cuts = ("", *_cuts(records, part), None)
    step = (records.count("events") + records.count("calls")) // (len(cuts) - 1)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        try:
            parts = [pool.submit(_calls, records.at, key, begin or "", end) for begin, end in pairwise(cuts)]
            for under_way in parts:
                under_way.add_done_callback(lambda _: progress(step))
            # This process has its own part meanwhile.
            own = list(_the_rest(records, kept, verifiers, payloads, progress))
            judged = [done.result() for done in parts]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    followed = Followed()
    for _, each in judged:
        followed.add(each)
    return [finding for found, _ in judged for finding in found] + own, followed


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
    yield from verify_holds(records)
    yield from verify_runs(records)
    yield from verify_policies(records)


def _cuts(records: Records, part: int) -> list[str]:
    """The least ids of calls about when each so many events have been written.

    Whoever has changed the record can make parts larger by it, and not have anything left out.
    """
    ids: set[str] = set()
    before = 0
    for stream, events in records.rows("SELECT id, last_seq FROM incarnations ORDER BY id"):
        for seq in range(part - before % part, events + 1, part):
            at = next(
                records.rows("SELECT at_us FROM events WHERE stream = ? AND seq = ?", (stream, seq)), None
            )
            if at is not None:
                ids.add(first_id(at["at_us"]))
        before += events
    return sorted(ids)


def _calls(at: Location, key: str | None, begin: str, end: str | None) -> tuple[list[Finding], Followed]:
    followed = Followed()
    with open_records(at, lambda: key) as records:
        findings = verify_calls(records, payloads=key is not None, begin=begin, end=end, followed=followed)
        return list(findings), followed
