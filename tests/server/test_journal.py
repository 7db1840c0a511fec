"""One process life after another, and beside another: who takes over what, and what nobody may."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.server.builders import (
    Clock,
    Gate,
    Remit,
    a_database,
    a_principal,
    a_remit,
    kept_anywhere,
    rows,
    until,
)

from remit import __version__
from remit.errors import RemitError, StoreUnavailable, UnknownRecord
from remit.identity import mint_key
from remit.journal import Journal, open_journal
from remit.model import InDoubt
from remit.undo import undo

#: On SQLite, and on PostgreSQL.
everywhere = pytest.mark.usefixtures("every_database")
BUDGET = {"scope": "agent", "unit": "calls", "window": "total", "limit": 10}


async def test_a_dead_process_leaves_its_writes_in_doubt_and_its_reads_undone(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[BUDGET]) as dead:
        bought = await bought_pen(dead)
        gate = Gate()
        dead.source.on |= {"buy": gate, "look": gate, "give_back": gate}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dead.call, "shop.buy", {"thing": "cup", "price": 5})
            tasks.start_soon(dead.call, "shop.look", {"thing": "cup"})
            tasks.start_soon(undo, bought, a_principal(), "run-1", dead.on)
            await dead.source.reached(4)
            dead.die()
            async with a_remit(tmp_path, budgets=[BUDGET], clock=dead.clock) as heir:
                ended = {
                    row["tool"]: row["state"]
                    for row in heir.rows("SELECT tool, state FROM calls WHERE id <> ?", bought)
                }
                assert ended == {"shop.buy": "in_doubt", "shop.look": "failed", "shop.give_back": "in_doubt"}
                assert heir.one("SELECT state FROM undos WHERE call_id = ?", bought) == {
                    "state": "indeterminate"
                }
                assert heir.one("SELECT held, posted FROM accounts") == {"held": 2, "posted": 1}
                refused = await heir.refused("shop.buy", {"thing": "cup", "price": 5})
                assert refused.verdict.code == "in_doubt"
                # The dead one was only asleep. What it says now is not written over what was concluded.
                gate.open()
                await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        with pytest.raises(StoreUnavailable, match="declared dead"):
            await dead.switch("kill", "all")


async def bought_pen(remit: Remit) -> str:
    remit.source.on["buy"] = {"order": "o-1"}
    return (await remit.done("shop.buy", {"thing": "pen", "price": 5})).call_id


async def test_a_sleeper_that_answers_late_is_told_that_nobody_knows(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as sleeper:
        gate = Gate()
        sleeper.source.on["send"] = gate
        outcomes: list[Any] = []

        async def send() -> None:
            outcomes.append(await sleeper.call("shop.send", {"text": "hi"}))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await sleeper.source.reached()
            sleeper.die()
            async with a_remit(tmp_path, clock=sleeper.clock) as heir:
                gate.open()
                await until(lambda: outcomes)
                assert isinstance(outcomes[0], InDoubt)
                assert heir.state(outcomes[0].call_id) == "in_doubt"
                await heir.done("shop.send", {"text": "ho"})
        assert (await sleeper.refused("shop.send", {"text": "x"})).verdict.code == "audit_unavailable"
        assert len(sleeper.source.sent) == 1


@everywhere
async def test_who_lives_on_takes_over_from_who_died_beside_it(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as living, a_remit(tmp_path, clock=living.clock) as dying:
        dying.source.on["send"] = Gate()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dying.call, "shop.send", {"text": "hi"})
            await dying.source.reached()
            await living.on.journal.take_over()
            assert living.rows("SELECT state FROM calls") == [{"state": "dispatched"}]
            dying.die()
            await living.on.journal.take_over()
            assert living.rows("SELECT state FROM calls") == [{"state": "in_doubt"}]
            assert (await living.refused("shop.send", {"text": "hi"})).verdict.code == "in_doubt"
            tasks.cancel_scope.cancel()


@everywhere
async def test_a_living_process_keeps_its_calls(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as one:
        gate = Gate()
        one.source.on["send"] = gate
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.call, "shop.send", {"text": "hi"})
            await one.source.reached()
            async with a_remit(tmp_path, clock=one.clock) as other:
                assert other.rows("SELECT state FROM calls") == [{"state": "dispatched"}]
                await other.done("shop.send", {"text": "ho"})
            gate.open()
        assert {row["state"] for row in one.rows("SELECT state FROM calls")} == {"succeeded"}


async def test_ten_processes_at_once_on_a_new_file_make_one_database(tmp_path: Path) -> None:
    journals: list[Journal] = []

    async def open_one() -> None:
        journals.append(await open_journal(tmp_path / "remit.db", role="stdio"))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(open_one)
    assert len({journal.incarnation for journal in journals}) == 10
    for journal in journals:
        await journal.close()
    assert sorted(os.listdir(tmp_path)) == ["remit.db", "remit.db.lock", "remit.db.master-key"]


@everywhere
async def test_every_life_seals_those_before_it(tmp_path: Path) -> None:
    for _ in range(3):
        async with a_remit(tmp_path, clock=Clock()) as remit:
            await remit.done("shop.look", {"thing": "pen"})
    opened = remit.rows("SELECT body FROM events WHERE kind = 'stream.opened' ORDER BY at_us, stream")
    ends = remit.rows("SELECT id, last_seq, head FROM incarnations")
    sealed = "".join(row["body"] for row in opened)
    assert sum(end["head"] in sealed for end in ends) == 2


async def test_every_life_says_what_it_is_and_by_which_configuration(tmp_path: Path) -> None:
    path = tmp_path / "remit.db"
    journal = await open_journal(path, role="http", config="c" * 64)
    await journal.close()
    (opened,) = rows(path, "SELECT body FROM events WHERE kind = 'stream.opened'")
    said = json.loads(opened["body"])
    assert (said["software"], said["config"]) == (f"remit {__version__}", "c" * 64)


async def test_the_files_are_for_their_owner_only(tmp_path: Path) -> None:
    journal = await open_journal(tmp_path / "new" / "remit.db", role="http")
    await journal.expire()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    for path in (tmp_path / "new").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    await journal.close()


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path, content = tmp_path / "remit.db", b"something else, and long enough to be looked at" * 40
    path.write_bytes(content)
    with pytest.raises(RemitError, match="not an audit database"):
        await open_journal(path, role="http")
    assert path.read_bytes() == content


async def test_a_database_of_a_newer_remit_is_refused(tmp_path: Path) -> None:
    path = a_database(tmp_path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(RemitError, match="newer"):
        await open_journal(path, role="http")


@pytest.mark.parametrize("path", ["file/remit.db", "folder", "file/deeper/remit.db"])
async def test_a_place_where_no_file_can_be_is_said_in_a_sentence(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RemitError, match="cannot be used"):
        await open_journal(tmp_path / path, role="http")


# Keys, switches and standing.


@everywhere
async def test_a_key_is_known_until_it_is_revoked_and_then_known_to_be(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        record, plaintext = mint_key(
            tenant="acme", agent="agent:bot", user="user:ann", label="", pepper=b"p" * 32, at_us=remit.clock()
        )
        await remit.on.journal.add_key(record, by="local")
        assert await remit.on.journal.key(record.id) == record
        await remit.on.journal.revoke_key(record.id, by="user:bea")
        revoked = await remit.on.journal.key(record.id)
        assert revoked is not None
        assert revoked.revoked_us is not None
        with pytest.raises(UnknownRecord):
            await remit.on.journal.revoke_key(record.id, by="user:bea")
        assert await remit.on.journal.key("nothing") is None
        assert not kept_anywhere(tmp_path, plaintext.encode())


@everywhere
async def test_a_switch_is_turned_once(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        assert await remit.switch("kill", "all") is True
        assert await remit.switch("kill", "all") is False
        assert await remit.switch("kill", "all", on=False) is True
        assert await remit.switch("kill", "all", on=False) is False
        kinds = [
            row["kind"]
            for row in remit.rows("SELECT kind FROM events WHERE kind LIKE 'switch%' ORDER BY seq")
        ]
        assert kinds == ["switch.on", "switch.off"]


@everywhere
async def test_two_who_turn_the_same_switch_at_once_turn_it_once(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        results = await remit.together(*(remit.switch("kill", "all") for _ in range(5)))
        assert sorted(results) == [False] * 4 + [True]


@everywhere
async def test_an_agent_sees_its_own_standing_and_nobody_elses(tmp_path: Path) -> None:
    budgets = [{**BUDGET, "window": "hour"}, {**BUDGET, "scope": "user"}]
    clock = Clock()
    async with a_remit(tmp_path, budgets=budgets, clock=clock) as remit:
        await remit.done("shop.look", {"thing": "pen"})
        await remit.done("shop.look", {"thing": "pen"}, principal=a_principal("agent:other"))
        await remit.call("shop.buy", {"thing": "car", "price": 500}, principal=a_principal("agent:other"))

        async def standing(agent: str, user: str = "user:ann") -> dict[str, Any]:
            who = a_principal(agent, user)
            accounts = remit.on.accounts.of_caller(who, "run-1", clock.now_us)
            return await remit.on.journal.standing(who, "run-1", accounts)

        mine = await standing("agent:bot")
        assert mine["pending_approvals"] == []
        left = {budget["budget"]: budget["left"] for budget in mine["budgets"]}
        assert left == {"calls of this agent per hour": 9, "total calls of this user": 8}
        assert len((await standing("agent:other"))["pending_approvals"]) == 1
        assert (await standing("agent:other", "user:dan"))["pending_approvals"] == []
        # A window that is over says nothing about the one that has begun.
        clock.now_us += 3_600_000_000
        left = {budget["budget"]: budget["left"] for budget in (await standing("agent:bot"))["budgets"]}
        assert left == {"calls of this agent per hour": 10, "total calls of this user": 8}
