"""The writer thread: one commit for all that wait, and one faulty change hurts no other."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import anyio
import pytest
from tests.server.builders import until

from remit import writer as writing
from remit.errors import NoAnswer, StoreBusy, StoreUnavailable
from remit.writer import OthersWrite, Writer


class Transactions:
    """Stands for the ledger: counts transactions, and fails when told to."""

    def __init__(self) -> None:
        self.committed: list[list[str]] = []
        self.durable: list[bool] = []
        self.threads: list[str] = []
        #: Another process writes: a transaction that does not wait is not begun.
        self.others_write = False
        self.began = 0
        self.idled = threading.Event()
        self.closed = False
        self.failing: Exception | None = None
        self.idling: Exception | None = None
        #: Cleared: the next commit waits.
        self.may_commit = threading.Event()
        self.may_commit.set()
        self._written: list[str] = []

    @contextmanager
    def transaction(self, *, durable: bool, wait: bool = True) -> Generator[None]:
        if self.others_write and not wait:
            raise OthersWrite
        self.began += 1
        self._written = []
        if self.failing:
            raise self.failing
        yield
        self.may_commit.wait(10)
        if self._written:
            self.committed.append(self._written)
            self.durable.append(durable)
            self.threads.append(threading.current_thread().name)

    def after_many(self) -> None:
        """Nothing is put off."""

    def idle(self) -> None:
        self.idled.set()
        if self.idling:
            raise self.idling

    def close(self) -> None:
        self.closed = True
        if self.failing:
            raise self.failing

    def change(self, name: str, fails: Exception | None = None) -> Callable[[], str]:
        def run() -> str:
            if fails:
                raise fails
            self._written.append(name)
            return name

        return run


@asynccontextmanager
async def a_writer(
    store: Transactions, *, queue_max: int = 100, idle_s: float = 30
) -> AsyncGenerator[Writer]:
    writer = Writer(store, queue_max=queue_max, idle_s=idle_s)
    try:
        yield writer
    finally:
        store.may_commit.set()
        with anyio.CancelScope(shield=True), anyio.fail_after(10), suppress(StoreUnavailable):
            await writer.stop(lambda: None)


async def at_once(store: Transactions, writer: Writer, *changes: Callable[[], Any], **more: Any) -> list[Any]:
    """The changes wait together while an earlier commit is under way."""
    store.may_commit.clear()
    before = store.began
    first = asyncio.ensure_future(writer.write(store.change("first")))
    await until(lambda: store.began > before)
    rest = [asyncio.ensure_future(writer.write(change, **more)) for change in changes]
    await asyncio.sleep(0)
    store.may_commit.set()
    with anyio.fail_after(10):
        return (await asyncio.gather(first, *rest, return_exceptions=True))[1:]


async def test_what_waits_is_committed_at_once_and_in_order() -> None:
    store = Transactions()
    async with a_writer(store) as writer:
        names = [f"c{n}" for n in range(50)]
        assert await at_once(store, writer, *(store.change(name) for name in names)) == names
    assert store.committed == [["first"], names]


async def test_a_faulty_change_fails_alone() -> None:
    store = Transactions()
    async with a_writer(store) as writer:
        changes = [store.change(str(n), ValueError("mine") if n == 3 else None) for n in range(6)]
        results = await at_once(store, writer, *changes)
    assert [str(result) for result in results] == ["0", "1", "2", "mine", "4", "5"]
    assert isinstance(results[3], ValueError)
    assert store.committed == [["first"], ["0"], ["1"], ["2"], ["4"], ["5"]]


@pytest.mark.parametrize(
    "fault",
    [sqlite3.IntegrityError("CHECK"), sqlite3.ProgrammingError("bindings"), KeyError("x"), OverflowError()],
)
async def test_a_fault_of_a_change_reaches_who_made_it_as_it_is(fault: Exception) -> None:
    store = Transactions()
    async with a_writer(store) as writer:
        with pytest.raises(type(fault)):
            await writer.write(store.change("x", fault))
        assert await writer.write(store.change("y")) == "y"


async def test_a_statement_that_is_wrong_is_the_fault_of_its_change() -> None:
    store = Transactions()
    async with a_writer(store) as writer:
        try:
            sqlite3.connect(":memory:").execute("SELECT nothing FROM nowhere")
        except sqlite3.OperationalError as error:
            wrong = error
        results = await at_once(store, writer, store.change("a"), store.change("b", wrong))
    assert results[0] == "a"
    assert results[1] is wrong


@pytest.mark.parametrize("fault", [sqlite3.OperationalError("disk full"), sqlite3.DatabaseError("malformed")])
async def test_when_the_store_fails_all_that_wait_hear_it_at_once(fault: Exception) -> None:
    store = Transactions()
    async with a_writer(store) as writer:
        store.may_commit.clear()
        first = asyncio.ensure_future(writer.write(store.change("first")))
        await until(lambda: store.began)
        rest = [asyncio.ensure_future(writer.write(store.change(str(n)))) for n in range(40)]
        await asyncio.sleep(0)
        store.failing = fault
        store.may_commit.set()
        assert await first == "first"
        for result in await asyncio.gather(*rest, return_exceptions=True):
            assert isinstance(result, StoreUnavailable)
        assert store.began == 2
        store.failing = None
        assert await writer.write(store.change("again")) == "again"


async def test_a_full_queue_is_said_at_once_and_what_must_be_written_still_is() -> None:
    store = Transactions()
    async with a_writer(store, queue_max=2) as writer:
        store.may_commit.clear()
        first = asyncio.ensure_future(writer.write(store.change("first")))
        await until(lambda: store.began)
        waiting = [asyncio.ensure_future(writer.write(store.change(str(n)))) for n in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(StoreBusy):
            await writer.write(store.change("late"))
        owed = asyncio.ensure_future(writer.write(store.change("owed"), must=True))
        await asyncio.sleep(0)
        store.may_commit.set()
        assert await asyncio.gather(first, *waiting, owed) == ["first", "0", "1", "owed"]


async def test_one_durable_change_makes_its_transaction_durable() -> None:
    store = Transactions()
    async with a_writer(store) as writer:
        await writer.write(store.change("a"), durable=False)
        await at_once(store, writer, store.change("b"), store.change("c"), durable=False)
        await writer.write(store.change("d"))
    assert store.durable == [False, True, False, True]


async def test_a_caller_that_is_cancelled_learns_what_was_written_first() -> None:
    store = Transactions()
    async with a_writer(store) as writer:
        answers: list[str] = []

        async def write() -> None:
            answers.append(await writer.write(store.change("mine")))

        store.may_commit.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            await until(lambda: store.began)
            tasks.cancel_scope.cancel()
            store.may_commit.set()
        assert answers == ["mine"]


@pytest.mark.parametrize("when", ["before", "with its answer"])
async def test_who_is_cancelled_by_the_loop_itself_hears_so_once_it_is_written(when: str) -> None:
    store = Transactions()
    async with a_writer(store) as writer:
        store.may_commit.clear()
        writing = asyncio.ensure_future(writer.write(store.change("mine")))
        await until(lambda: store.began)
        if when == "before":
            writing.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not writing.done()
        else:
            asyncio.get_running_loop().call_soon(writing.cancel)
        store.may_commit.set()
        with pytest.raises(asyncio.CancelledError), anyio.fail_after(10):
            await writing
        assert store.committed == [["mine"]]


@pytest.mark.parametrize(
    "sees", [sqlite3.OperationalError("disk I/O error"), PermissionError(), ValueError()]
)
async def test_an_idle_writer_looks_and_survives_what_it_sees(sees: Exception) -> None:
    store = Transactions()
    store.idling = sees
    async with a_writer(store, idle_s=0.01) as writer:
        assert await asyncio.to_thread(store.idled.wait, 10)
        store.idled.clear()
        assert await asyncio.to_thread(store.idled.wait, 10)
        assert await writer.write(store.change("a")) == "a"


async def test_what_is_alone_is_committed_where_it_is() -> None:
    store = Transactions()
    async with a_writer(store) as writer:
        assert await writer.write(store.change("a"), alone=True) == "a"
        assert await writer.write(store.change("b")) == "b"
    assert store.committed == [["a"], ["b"]]
    assert store.threads == [threading.current_thread().name, "remit-journal"]


async def test_what_is_alone_waits_for_nobody_in_the_event_loop() -> None:
    store = Transactions()
    async with a_writer(store) as writer:
        store.others_write = True
        assert await writer.write(store.change("a"), alone=True) == "a"
        store.others_write = False
        store.may_commit.clear()
        first = asyncio.ensure_future(writer.write(store.change("first")))
        await until(lambda: store.began == 2)
        second = asyncio.ensure_future(writer.write(store.change("second"), alone=True))
        await asyncio.sleep(0)
        store.may_commit.set()
        assert await asyncio.gather(first, second) == ["first", "second"]
    assert store.threads == ["remit-journal"] * 3


async def test_after_a_slow_commit_the_event_loop_is_left_free_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, now_s = Transactions(), [0.0]
    monkeypatch.setattr(writing, "monotonic", lambda: now_s[0])

    def slow() -> str:
        now_s[0] += 0.2
        return store.change("slow")()

    async with a_writer(store) as writer:
        await writer.write(slow, alone=True)
        await writer.write(store.change("soon"), alone=True)
        now_s[0] += 60
        here = threading.current_thread().name
        while store.threads[-1] != here:  # the thread may not have let go of the ledger yet
            await writer.write(store.change("later"), alone=True)
    assert store.threads[:2] == [here, "remit-journal"]


@pytest.mark.parametrize("fault", [sqlite3.OperationalError("disk full"), KeyError("mine")])
async def test_a_fault_of_what_is_alone_is_told_as_any_other(fault: Exception) -> None:
    store = Transactions()
    async with a_writer(store) as writer:
        with pytest.raises(KeyError if isinstance(fault, KeyError) else StoreUnavailable):
            await writer.write(store.change("a", fault), alone=True)
        assert await writer.write(store.change("b"), alone=True) == "b"


async def test_stopping_writes_what_waits_and_takes_no_more() -> None:
    store = Transactions()
    writer = Writer(store, queue_max=10)
    store.may_commit.clear()
    waiting = [asyncio.ensure_future(writer.write(store.change(str(n)))) for n in range(5)]
    await asyncio.sleep(0)
    stopping = asyncio.ensure_future(writer.stop(store.change("last")))
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="closed"):
        await writer.write(store.change("late"), must=True)
    store.may_commit.set()
    with anyio.fail_after(10):
        await stopping
    assert await asyncio.gather(*waiting) == ["0", "1", "2", "3", "4"]
    assert [each for written in store.committed for each in written] == ["0", "1", "2", "3", "4", "last"]
    assert store.closed


async def test_a_store_that_fails_at_the_end_is_let_go_and_who_stops_is_told() -> None:
    store = Transactions()
    writer = Writer(store, queue_max=10)
    store.failing = sqlite3.OperationalError("disk I/O error")
    with anyio.fail_after(10), pytest.raises(StoreUnavailable):
        await writer.stop(lambda: None)
    assert store.closed


async def test_who_stops_it_again_waits_for_its_end_alone() -> None:
    store = Transactions()
    writer = Writer(store, queue_max=10)
    with anyio.fail_after(10):
        await writer.stop(lambda: None)
        await writer.stop(lambda: pytest.fail("it was stopped before"))
    assert store.closed


async def test_who_waited_through_a_long_failure_waits_through_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("remit.writer._LONG_S", -1)
    store = Transactions()
    writer = Writer(store, queue_max=10)
    store.may_commit.clear()

    def fails() -> None:
        store.may_commit.wait(10)
        raise StoreUnavailable("nobody answers")

    first = asyncio.ensure_future(writer.write(fails))
    await until(lambda: store.began > 0)
    rest = [asyncio.ensure_future(writer.write(store.change(str(n)))) for n in range(3)]
    await asyncio.sleep(0)
    stopping = asyncio.ensure_future(writer.stop(lambda: None))
    await asyncio.sleep(0)
    store.may_commit.set()
    with anyio.fail_after(10):
        told = await asyncio.gather(first, *rest, stopping, return_exceptions=True)
    assert [str(each) for each in told] == ["nobody answers"] * 5
    assert store.began == 1
    assert store.closed


async def test_a_database_that_does_not_answer_is_asked_once() -> None:
    store = Transactions()
    async with a_writer(store) as writer:
        store.failing = NoAnswer("it did not answer in time")
        with pytest.raises(StoreUnavailable, match="in time"):
            await writer.write(store.change("a"))
        assert store.began == 1
