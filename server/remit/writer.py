"""The one thread of a process that writes the audit database: natural group commit.

Every durable step is a *change*: a function over an open transaction. Changes queue; the thread takes all
that wait, runs them in one transaction, commits once, and only then answers each caller. There is no
timer: while one commit is being synced, the next batch gathers. A caller waits for its own batch only.
A change that is alone has nobody to share a commit with: it is committed where it is, in the event loop,
since waking a thread and being woken again costs more than the commit does.

A change must check first and write after: one that returns a refusal must not have written, and one that
raises has asked the database. When a change raises, its batch is rolled back and each of its changes is tried
alone, so that only the faulty one fails. When the database itself does (no space, no right, no answer), the
batch fails whole and at once; where it only broke off before anything was committed, the batch is tried
again. So it is where another process has written since what it went by was read: a change may be run several
times, and only its last run counts.

The journal owns the writer's life.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar, cast

import anyio
import anyio.to_thread

from remit.errors import Interrupted, NoAnswer, StoreBusy, StoreUnavailable

T = TypeVar("T")
_NOTHING: Any = object()
#: A commit that held the event loop this long (seconds) sends what is alone to the thread for a while.
_SLOW_S = 0.1
_SLOW_FOR_S = 10.0
#: Who waited through a failure that took this long (seconds) is not made to wait through another.
_LONG_S = 1.0
#: Most changes in one transaction: bounds the latency of the last of them.
_BATCH_MAX = 256


class OthersWrite(Exception):
    """Another process writes just now, and the transaction was not to wait for it."""


class Overtaken(Exception):
    """Another process has written since what the changes went by was read: nothing was written.

    They are to be run again, once: the next transaction has its turn before it looks.
    """


class Transactional(Protocol):
    """What the writer drives; one transaction at a time."""

    def transaction(self, *, durable: bool, wait: bool = True) -> AbstractContextManager[None]:
        """Begin; commit on a clean exit, roll back on an exception. `durable` must survive power loss.

        Without `wait`, raises OthersWrite rather than wait for another process. Raises Overtaken, also
        within.
        """
        ...

    def idle(self) -> None:
        """Nothing waited for `idle_s`: notice what other processes changed, and tidy up."""
        ...

    def after_many(self) -> None:
        """A batch was committed, and others may wait: do what cannot be put off."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class _Queued(Generic[T]):
    change: Callable[[], T]
    durable: bool
    loop: asyncio.AbstractEventLoop
    #: Woken once there is an outcome.
    waiter: asyncio.Future[None]
    #: What the change returned, or why nothing was written; None until then.
    outcome: tuple[T, None] | tuple[None, Exception] | None = None

    async def uncut(self) -> None:
        """Wait for the outcome, whoever is cancelled."""
        with anyio.CancelScope(shield=True):
            while self.outcome is None:
                self.waiter = self.loop.create_future()
                await self.waiter

    def result(self) -> T:
        assert self.outcome is not None  # noqa: S101 - who waits for it has it
        result, error = self.outcome
        if error is not None:
            raise error
        return cast("T", result)


@dataclass(frozen=True, slots=True)
class _Stop:
    loop: asyncio.AbstractEventLoop
    waiter: asyncio.Future[None]


class Writer:
    def __init__(self, ledger: Transactional, *, queue_max: int, idle_s: float = 0.25) -> None:
        self._ledger = ledger
        self._queue: queue.SimpleQueue[_Queued[Any] | _Stop] = queue.SimpleQueue()
        self._queue_max = queue_max
        self._idle_s = idle_s
        self._stopped = False
        #: Whether the newest write took turns with others, so that its caller may have been cancelled
        #: meanwhile; to be read before anything else is awaited.
        self.waited = True
        #: Held by whoever uses the ledger: the thread, or a change that is alone.
        self._turn = threading.Lock()
        self._slow_until_s = 0.0
        self._thread = threading.Thread(target=self._run, name="remit-journal", daemon=True)
        self._thread.start()

    async def write(
        self, change: Callable[[], T], *, durable: bool = True, must: bool = False, alone: bool = False
    ) -> T:
        """Run `change` in the next transaction; return its result once that is committed.

        `alone`: no other change is near, so waiting for this one in the event loop delays nobody.
        Cancellation of the caller waits until then. Raises StoreBusy when the queue is full (unless the
        change `must` be written, for what it records has happened) and StoreUnavailable when the database
        takes no writes; in both cases nothing was written.
        """
        if self._stopped:
            raise StoreUnavailable("the audit database is closed: this process is ending")
        if self._queue.qsize() >= self._queue_max and not must:
            raise StoreBusy("too many calls wait to be recorded: try again in a moment")
        if alone and (result := self._here(change, durable)) is not _NOTHING:
            self.waited = False
            return result
        loop = asyncio.get_running_loop()
        queued = _Queued(change, durable, loop, loop.create_future())
        self._queue.put(queued)
        try:
            await queued.waiter
        except asyncio.CancelledError:
            # Not cut short: whoever is cancelled here would not know whether it was written.
            await queued.uncut()
            if not anyio.get_current_task().has_pending_cancellation():
                raise  # nothing else would tell of it
        self.waited = True
        return queued.result()

    def _here(self, change: Callable[[], T], durable: bool) -> T:
        """Commit now and here; _NOTHING when that would mean to wait for somebody."""
        began_s = monotonic()
        if began_s < self._slow_until_s or not self._queue.empty() or not self._turn.acquire(blocking=False):
            return _NOTHING
        try:
            with self._ledger.transaction(durable=durable, wait=False):
                return change()
        except OthersWrite:
            return _NOTHING
        except Exception as error:
            if failure := _of_the_store(error):
                raise failure from None
            raise
        finally:
            self._turn.release()
            ended_s = monotonic()
            if ended_s - began_s > _SLOW_S:
                self._slow_until_s = ended_s + _SLOW_FOR_S

    async def stop(self, last: Callable[[], None]) -> None:
        """Let everything queued be written, and `last` after it, then end the thread.

        Nothing is written after `last`. Raises StoreUnavailable when that could not be written. Who stops it
        again waits for its end alone.
        """
        if self._stopped:
            await anyio.to_thread.run_sync(self._thread.join)
            return
        loop = asyncio.get_running_loop()
        self._stopped = True
        queued = _Queued(last, True, loop, loop.create_future())
        stop = _Stop(loop, loop.create_future())
        self._queue.put(queued)
        self._queue.put(stop)
        await stop.waiter
        self._thread.join()
        queued.result()

    def _run(self) -> None:
        # Whatever this thread meets, it goes on: without it, every caller would wait for ever.
        while True:
            try:
                first = self._queue.get(timeout=self._idle_s)
            except queue.Empty:
                with suppress(Exception), self._turn:  # the next write will say what is wrong
                    self._ledger.idle()
                continue
            batch: list[_Queued[Any]] = []
            stop: _Stop | None = None
            item: _Queued[Any] | _Stop | None = first
            while item is not None:
                if isinstance(item, _Stop):
                    stop = item
                    break
                batch.append(item)
                item = None
                if len(batch) < _BATCH_MAX:
                    try:
                        item = self._queue.get_nowait()
                    except queue.Empty:
                        break
            if batch:
                with self._turn:
                    began_s = monotonic()
                    failure = self._commit(batch)
                    if failure and monotonic() - began_s > _LONG_S:
                        stop = stop or self._fail_all(failure)
                    with suppress(Exception):  # the next write will say what is wrong
                        self._ledger.after_many()
            if stop:
                with suppress(Exception), self._turn:  # then it ends as a killed process does
                    self._ledger.close()
                _wake(stop.loop, [stop])
                return

    def _fail_all(self, failure: StoreUnavailable) -> _Stop | None:
        """Tell everybody who waits that the database takes no writes; whether it is time to stop."""
        waiting: list[_Queued[Any]] = []
        stop: _Stop | None = None
        while stop is None:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            if isinstance(item, _Stop):
                stop = item
            else:
                item.outcome = None, failure
                waiting.append(item)
        _answer(waiting)
        return stop

    def _commit(self, batch: Sequence[_Queued[Any]], *, again: int = 2) -> StoreUnavailable | None:
        """Answer every caller; return what the database failed at."""
        try:
            with self._ledger.transaction(durable=any(item.durable for item in batch)):
                results = [item.change() for item in batch]
        except Overtaken:
            return self._commit(batch, again=again)
        except Exception as error:  # noqa: BLE001 - a supervisor: every caller must get an answer
            if isinstance(error, Interrupted) and again and not isinstance(error, NoAnswer):
                return self._commit(batch, again=again - 1)
            failure = _of_the_store(error)
            if failure is None and len(batch) > 1:
                for item in batch:
                    self._commit([item])
                return None
            for item in batch:
                item.outcome = None, failure or error
        else:
            failure = None
            for item, result in zip(batch, results, strict=True):
                item.outcome = result, None
        _answer(batch)
        return failure


def _answer(batch: Sequence[_Queued[Any]]) -> None:
    """One wake-up for each event loop, not one for each caller."""
    waiting: dict[asyncio.AbstractEventLoop, list[_Queued[Any]]] = {}
    for item in batch:
        waiting.setdefault(item.loop, []).append(item)
    for loop, items in waiting.items():
        _wake(loop, items)


def _wake(loop: asyncio.AbstractEventLoop, items: Sequence[_Queued[Any] | _Stop]) -> None:
    def wake() -> None:
        for item in items:
            if not item.waiter.done():  # else the caller went away; what was written stays written
                item.waiter.set_result(None)

    if not loop.is_closed():
        loop.call_soon_threadsafe(wake)


def _of_the_store(error: Exception) -> StoreUnavailable | None:
    """What to tell every caller when the database failed; None when it was one change's own fault."""
    if isinstance(error, StoreUnavailable):
        return error
    if not isinstance(error, sqlite3.OperationalError) and type(error) is not sqlite3.DatabaseError:
        return None
    # The ledger's own refusals carry no code; a faulty statement carries this one.
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
        return None
    return StoreUnavailable(
        f"the audit database takes no writes ({error}): free space or mend it, then try again"
    )
