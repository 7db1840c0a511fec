"""When the audit database takes no writes: nothing is let out, nothing is lied about, and it comes back."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.server.builders import (
    Gate,
    Remit,
    a_database,
    a_principal,
    a_remit,
    by_hand,
    full_disk,
    held,
    rows,
    until,
)

from remit import database
from remit.errors import RemitError, StoreUnavailable
from remit.journal import open_journal
from remit.model import Done, InDoubt, Outcome, Refused, Remedy
from remit.schema import HEAD
from remit.undo import undo
from remit_adapters.base import AdapterError

BUDGET = {"scope": "agent", "unit": "calls", "window": "total", "limit": 100}


async def test_while_nothing_can_be_recorded_nothing_is_let_out_and_then_it_goes_on(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[BUDGET]) as remit:
        await remit.done("shop.send", {"text": "before"})
        with full_disk(remit.path):
            outcomes = await asyncio.gather(*(remit.call("shop.send", {"text": str(n)}) for n in range(10)))
            for outcome in outcomes:
                assert isinstance(outcome, Refused)
                assert (outcome.verdict.code, outcome.verdict.remedy) == ("audit_unavailable", Remedy.WAIT)
            # Not even what would be refused, or a read.
            assert (
                await remit.refused("shop.buy", {"thing": "x", "price": 9999})
            ).verdict.code == "audit_unavailable"
            assert (await remit.refused("shop.look", {"thing": "x"})).verdict.code == "audit_unavailable"
        assert len(remit.source.sent) == 1
        await remit.done("shop.send", {"text": "after"})
        assert remit.one("SELECT held, posted FROM accounts") == {"held": 0, "posted": 2}
        assert remit.on.in_flight == {}


async def test_a_database_that_was_made_read_only_lets_nothing_out(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        ledger = remit.on.journal._ledger
        ledger.one("PRAGMA query_only = 1")
        assert (await remit.refused("shop.send", {"text": "a"})).verdict.code == "audit_unavailable"
        assert remit.source.sent == []
        ledger.one("PRAGMA query_only = 0")
        await remit.done("shop.send", {"text": "a"})


@pytest.mark.parametrize("replaced", [True, False])
async def test_nothing_is_let_out_when_the_file_is_taken_away(tmp_path: Path, replaced: bool) -> None:
    async with a_remit(tmp_path) as remit:
        assert isinstance(remit.path, Path)
        await remit.done("shop.send", {"text": "before"})
        remit.path.rename(tmp_path / "kept.db")
        if replaced:
            a_database(tmp_path)
        assert (await remit.refused("shop.send", {"text": "lost"})).verdict.code == "audit_unavailable"
        with pytest.raises(StoreUnavailable, match="removed or replaced"):
            await remit.on.journal.take_over()
        os.replace(tmp_path / "kept.db", remit.path)
        await remit.done("shop.send", {"text": "after"})
        assert len(remit.source.sent) == 2


UPGRADED = "UPDATE alembic_version SET version_num = '9999'"


async def test_who_runs_on_while_a_newer_remit_upgrades_the_database_lets_nothing_out(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.send", {"text": "before"})
        by_hand(remit.path, UPGRADED)
        refused = await remit.refused("shop.send", {"text": "after"})
        assert refused.verdict.code == "audit_unavailable"
        with pytest.raises(StoreUnavailable, match="has schema 9999 by now, and this process knows"):
            await remit.on.journal.expire()
        assert len(remit.source.sent) == 1
        by_hand(remit.path, f"UPDATE alembic_version SET version_num = '{HEAD}'")  # noqa: S608 - ours
        await remit.done("shop.send", {"text": "after"})


async def test_who_holds_the_database_for_ever_is_named_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(database._TURN_S, ".lock", 0.05)
    async with a_remit(tmp_path) as remit:
        assert isinstance(remit.path, Path)
        await remit.done("shop.send", {"text": "before"})
        with held(remit.path):
            assert (await remit.refused("shop.send", {"text": "a"})).verdict.code == "audit_unavailable"
            with pytest.raises(StoreUnavailable, match=r"held .*remit\.db\.lock for .* see who"):
                await open_journal(remit.path, role="cli")
            assert remit.one("SELECT COUNT(*) AS n FROM calls") == {"n": 1}, "it can still be read"
        await remit.done("shop.send", {"text": "after"})


async def ended_while_full(remit: Remit, ending: Any) -> Outcome:
    """A call whose answer comes when it can no longer be recorded."""
    remit.source.on["buy"] = gate = Gate(ending)
    outcomes: list[Outcome] = []

    async def buy() -> None:
        outcomes.append(await remit.call("shop.buy", {"thing": "pen", "price": 5}))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(buy)
        await remit.source.reached()
        with full_disk(remit.path):
            gate.open()
            await until(lambda: outcomes)
    return outcomes[0]


async def test_an_effect_whose_outcome_cannot_be_recorded_is_not_called_undone(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[BUDGET]) as remit:
        outcome = await ended_while_full(remit, {"order": "o-1"})
        assert isinstance(outcome, InDoubt)
        assert remit.state(outcome.call_id) == "dispatched"
        await remit.on.journal.catch_up()
        assert remit.state(outcome.call_id) == "succeeded"
        assert remit.one("SELECT held, posted FROM accounts") == {"held": 0, "posted": 1}
        assert isinstance(await undo(outcome.call_id, a_principal(), "run-1", remit.on), Done)


@pytest.mark.parametrize(("no_effect", "state"), [(True, "failed"), (False, "in_doubt")])
async def test_a_failure_that_cannot_be_recorded_is_recorded_later(
    tmp_path: Path, no_effect: bool, state: str
) -> None:
    async with a_remit(tmp_path, budgets=[BUDGET]) as remit:
        outcome = await ended_while_full(remit, AdapterError("It broke.", no_effect=no_effect))
        assert not isinstance(outcome, Refused)
        await remit.on.journal.catch_up()
        assert remit.state(outcome.call_id) == state


async def test_what_is_owed_of_a_call_that_a_person_has_resolved_is_a_contradiction(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[BUDGET]) as remit:
        outcome = await ended_while_full(remit, {"order": "o-1"})
        assert isinstance(outcome, InDoubt)
        call = remit.a_call("shop.buy", {"thing": "pen", "price": 5})
        await remit.on.journal.doubt(call, call_id=outcome.call_id, code="interrupted", message="Is it dead?")
        remit.clock.advance(s=120)
        await remit.on.journal.resolve(outcome.call_id, happened=False, reason="looked", by="user:ann")
        for _ in range(2):
            await remit.on.journal.catch_up()
        assert remit.state(outcome.call_id) == "failed"
        assert remit.events(outcome.call_id)[-2:] == ["call.resolved", "call.contradicted"]


async def test_what_is_owed_is_written_before_the_journal_closes(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[BUDGET]) as remit:
        outcome = await ended_while_full(remit, {"order": "o-1"})
        await remit.on.journal.catch_up()
    async with a_remit(tmp_path) as remit:
        assert remit.state(outcome.call_id) == "succeeded"


async def test_what_is_still_owed_while_nothing_can_be_written_stays_owed(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        outcome = await ended_while_full(remit, {"order": "o-1"})
        with full_disk(remit.path):
            await remit.on.journal.catch_up()
            assert remit.state(outcome.call_id) == "dispatched"
        await remit.on.journal.catch_up()
        assert remit.state(outcome.call_id) == "succeeded"


async def test_what_is_owed_is_written_once_by_two_who_catch_up_at_once(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[BUDGET]) as remit:
        outcome = await ended_while_full(remit, {"order": "o-1"})
        # The journal is closed while one looks again, as it does every two seconds.
        await asyncio.gather(remit.on.journal.catch_up(), remit.on.journal.catch_up())
        assert remit.state(outcome.call_id) == "succeeded"
        assert remit.one("SELECT held, posted FROM accounts") == {"held": 0, "posted": 1}


async def test_what_is_owed_and_cannot_be_recorded_keeps_nothing_else_from_being_recorded(
    tmp_path: Path,
) -> None:
    def faulty() -> None:
        raise ValueError("nobody has thought of this")

    async with a_remit(tmp_path) as remit:
        journal: Any = remit.on.journal
        journal._owed.append((faulty, lambda: None))
        outcome = await ended_while_full(remit, {"order": "o-1"})
        await journal.catch_up()
        assert remit.state(outcome.call_id) == "succeeded"
    assert rows(tmp_path / "remit.db", "SELECT state FROM incarnations") == [{"state": "closed"}]


async def test_too_many_waiting_calls_are_told_to_come_back_and_no_outcome_is_dropped(tmp_path: Path) -> None:
    async with a_remit(tmp_path, limits={"queue": 3, "per_agent": 100}, budgets=[BUDGET]) as remit:
        gate = Gate()
        remit.source.on["send"] = gate
        outcomes: list[Any] = []

        async def send(text: str) -> None:
            outcomes.append(await remit.call("shop.send", {"text": text}))

        async with anyio.create_task_group() as tasks:
            for n in range(3):
                tasks.start_soon(send, str(n))
                await remit.source.reached(n + 1)
            with held(remit.path):
                for n in range(20):
                    tasks.start_soon(send, f"late {n}")
                await until(lambda: any(isinstance(outcome, Refused) for outcome in outcomes))
                # The queue is full, and now three answers come that must not be lost.
                gate.open()
                await anyio.wait_all_tasks_blocked()
        await remit.on.journal.catch_up()
        refused = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        assert {outcome.verdict.code for outcome in refused} == {"busy"}
        assert {outcome.verdict.remedy for outcome in refused} == {Remedy.WAIT}
        states = remit.rows("SELECT state, COUNT(*) AS n FROM calls GROUP BY state")
        assert states == [{"state": "succeeded", "n": 23 - len(refused)}]


async def test_a_store_that_is_busy_elsewhere_is_waited_for(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        outcomes: list[Any] = []

        async def send() -> None:
            outcomes.append(await remit.call("shop.send", {"text": "hi"}))

        async with anyio.create_task_group() as tasks:
            with held(remit.path):
                tasks.start_soon(send)
                await anyio.wait_all_tasks_blocked()
                assert remit.source.sent == []
        assert isinstance(outcomes[0], Done)


async def test_a_report_that_reads_the_database_holds_nothing_up(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        reader = sqlite3.connect(f"file:{remit.path}?mode=ro", uri=True)
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM calls").fetchone()
        await remit.done("shop.send", {"text": "hi"})
        assert reader.execute("SELECT COUNT(*) FROM calls").fetchone() == (0,)
        reader.close()


async def test_a_process_that_was_declared_dead_writes_nothing_more(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.send", {"text": "alive"})
        db = sqlite3.connect(remit.path)
        db.execute("UPDATE incarnations SET state = 'dead'")
        db.commit()
        db.close()
        remit.died = True
        assert (await remit.refused("shop.send", {"text": "dead"})).verdict.code == "audit_unavailable"
        assert len(remit.source.sent) == 1
        with pytest.raises(StoreUnavailable, match="declared dead"):
            await remit.switch("kill", "all")


async def test_a_journal_that_cannot_be_closed_in_order_lets_go_and_is_taken_over(tmp_path: Path) -> None:
    journal = await open_journal(tmp_path / "remit.db", role="http")
    with full_disk(tmp_path / "remit.db"), pytest.raises(StoreUnavailable), anyio.fail_after(10):
        await journal.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await journal.expire()
    async with a_remit(tmp_path) as remit:
        states = remit.rows("SELECT state FROM incarnations ORDER BY started_us")
        assert {row["state"] for row in states} == {"dead", "live"}


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "ext4"])
async def test_a_network_file_system_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    device = os.stat(tmp_path).st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "21 26 0:20 / /proc rw,nosuid shared:5 - proc proc rw\n"
        f"36 35 {os.major(device)}:{os.minor(device)} / /mnt rw shared:1 - {kind} server:/export rw\n"
    )
    monkeypatch.setattr("remit.ledger_sqlite._MOUNTS", mounts)
    if kind == "ext4":
        async with a_remit(tmp_path) as remit:
            await remit.done("shop.look", {"thing": "pen"})
        return
    with pytest.raises(RemitError, match=rf"network file system \({kind}\).*store\.path.*store\.url"):
        await open_journal(tmp_path / "remit.db", role="http")
    assert not (tmp_path / "remit.db").exists()
