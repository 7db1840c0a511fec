"""The whole verification of an audit database, by as many processes as it may use.

What is verified, and how, is `audit.py`, `audit_decisions.py`, `audit_keeping.py` and `proofs.py`. Here the
calls are cut into parts that can be verified apart: all that belongs to a call is found by its id, and what
each of its events follows on stands in the event before it. So every event is read and decoded once, and only
a record in which one does not follow is read again, in the order of its streams, to name what is wrong. The
process that asks verifies the log and what is not of calls, and then takes parts, too; each that helps it has
one snapshot for all of its parts, so what is written meanwhile troubles nobody. What is small is verified by
one process.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import pairwise
from multiprocessing import get_context

from remit.audit import (
    Finding,
    Followed,
    Progress,
    ignored,
    verify_calls,
    verify_ends,
    verify_events,
    verify_undos,
)
from remit.audit_decisions import (
    verify_api_keys,
    verify_approvals,
    verify_holds,
    verify_notices,
    verify_policies,
    verify_switches,
    verify_trial,
)
from remit.audit_keeping import (
    verify_kept,
    verify_keys,
    verify_listed,
    verify_lives,
    verify_playbooks,
    verify_runs,
    verify_trials,
    verify_unlisted,
)
from remit.checkpoint import Checkpoint, Verifier
from remit.database import Location
from remit.errors import RemitError
from remit.ids import first_id
from remit.proofs import verify_log
from remit.records import Records, open_records

#: Events of one part: few, so that no process waits long for the last one of another.
_PART = 4_000
#: Fewer events are verified before another process has even started.
_WORTH_IT = 50_000
#: The log is hashed by one process: before many more have ended with the calls, it has not ended with that.
_PROCESSES_MAX = 4


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
    """Everything that is not as it was written; see `verify_log` for `kept` and `verifiers`.

    Without `payloads`, those stay sealed. `progress` is told of events, calls, and sealed events. By so many
    `processes`, this one among them; None: what the size of the record and the processors make worth it.
    Raises StoreUnavailable where not all can be read.
    """
    records.must_be_whole()
    # What was never written was never sealed: its master key is made with the first life of a server.
    payloads = payloads and not records.is_empty()
    if processes is None:
        processes = worth_it(records.count("events"))
    if processes < 2 or records.at is None:
        found, followed = _calls(records, payloads, "", None, progress)
        found += _beside_calls(records, kept, verifiers, payloads, progress)
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
    if payloads:
        yield from verify_kept(records, followed)
    yield from verify_runs(records, followed)
    yield from verify_unlisted(followed)
    yield from verify_listed(records, followed)
    yield from verify_policies(records)


def shut(records: Records) -> Finding | None:
    """Why what calls carried cannot be opened, and so not be verified; None when it can, or there is none."""
    if not records.is_empty():
        try:
            records.vault  # noqa: B018 - reading its key is the point
        except RemitError as error:
            return Finding(where="master key", what=str(error))
    return None


def worth_it(events: int) -> int:
    """How many processes are worth it for so many events."""
    return min(_processors(), _PROCESSES_MAX) if events >= _WORTH_IT else 1


def _by_several(
    processes: int,
    records: Records,
    kept: Sequence[Checkpoint],
    verifiers: Sequence[Verifier],
    payloads: bool,
    progress: Progress,
    part: int,
) -> tuple[list[Finding], Followed]:
    at = records.at
    assert at is not None  # noqa: S101 - who calls has looked
    key = records.key().hex() if payloads else None
    parts = list(pairwise(("", *_cuts(records, part), None)))
    step = (records.count("events") + records.count("calls")) // len(parts)
    with ProcessPoolExecutor(processes - 1, get_context("spawn")) as pool:
        try:
            helped = [pool.submit(_calls_elsewhere, at, key, begin or "", end) for begin, end in parts]
            for each in helped:
                each.add_done_callback(lambda _: progress(step))
            own = list(_beside_calls(records, kept, verifiers, payloads, progress))
            # From the end, what no other process has begun with.
            judged = [
                _calls(records, payloads, begin or "", end) if each.cancel() else each.result()
                for (begin, end), each in zip(reversed(parts), reversed(helped), strict=True)
            ]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    found: list[Finding] = []
    followed = Followed()
    for findings, events in reversed(judged):
        found += findings
        followed.add(events)
    return found + own, followed


def _processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _beside_calls(
    records: Records,
    kept: Sequence[Checkpoint],
    verifiers: Sequence[Verifier],
    payloads: bool,
    progress: Progress,
) -> Iterator[Finding]:
    yield from verify_log(records, kept, verifiers, progress)
    yield from verify_approvals(records, payloads=payloads)
    yield from verify_keys(records, payloads=payloads)
    yield from verify_lives(records)
    yield from verify_playbooks(records, payloads=payloads)
    yield from verify_trials(records)
    yield from verify_holds(records, payloads=payloads)
    yield from verify_switches(records)
    yield from verify_api_keys(records, payloads=payloads)
    yield from verify_trial(records)
    yield from verify_notices(records)
    yield from verify_undos(records)


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


def _calls(
    records: Records, payloads: bool, begin: str, end: str | None, progress: Progress = ignored
) -> tuple[list[Finding], Followed]:
    followed = Followed()
    within = verify_calls(records, progress, payloads=payloads, begin=begin, end=end, followed=followed)
    with _seldom_collecting():
        return list(within), followed


@contextmanager
def _seldom_collecting() -> Generator[None]:
    """Much is made of each row, and nothing of it refers to itself: looking for that took a tenth."""
    often = gc.get_threshold()
    gc.set_threshold(100_000, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*often)


def _calls_elsewhere(
    at: Location, key: str | None, begin: str, end: str | None
) -> tuple[list[Finding], Followed]:
    return _calls(_records(at, key), key is not None, begin, end)


@cache
def _records(at: Location, key: str | None) -> Records:
    """Open until this process ends, which is one that helps."""
    opened = ExitStack()
    atexit.register(opened.close)
    return opened.enter_context(open_records(at, lambda: key))
