"""An agent whose calls others took back is told so, once, with the next answer to that run."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.server.builders import POLICY, ScriptedSource, a_principal, a_remit, tools, until
from tests.server.fronts import ERAS, Served, served, texts

from remit.audit_decisions import verify_notices
from remit.due import send_due
from remit.identity import Principal
from remit.journal import open_journal
from remit.model import Done
from remit.pipeline import Services
from remit.records import open_records
from remit.undo import undo
from remit_adapters.base import AdapterError
from remit_rbac import load_text

BOSS = Principal(tenant="acme", agent="agent:remit-cli", user="user:bea", auth="local")
RUN = {"dev.remit/run": "ticket-7"}


@asynccontextmanager
async def another_process(on: Services, path: Path) -> AsyncGenerator[Services]:
    """The same services over a journal of their own, as a command has them beside a server."""
    journal = await open_journal(path, role="cli", clock=on.clock)
    try:
        yield replace(on, journal=journal)
    finally:
        await journal.close()


def a_shop() -> ScriptedSource:
    source = ScriptedSource()
    source.on["buy"] = {"order": "o-1"}
    return source


async def bought(client: Any, thing: str = "pen") -> str:
    result = await client.call_tool("shop.buy", {"thing": thing, "price": 5}, meta=RUN)
    assert "dev.remit/notice" not in result.meta
    return result.meta["dev.remit/receipt"]["call_id"]


async def taken_back(remit: Served, *call_ids: str) -> None:
    """By an operator, through the command's own process; until the server has noticed."""
    async with another_process(remit.on, remit.path) as cli:
        for call_id in call_ids:
            done = await undo(call_id, BOSS, "cli-1", cli)
            assert isinstance(done, Done)
            assert done.undone["state"] == "done"
    await until(lambda: remit.on.journal.untold)


@pytest.mark.parametrize("era", ERAS)
async def test_the_next_answer_of_the_run_says_once_what_was_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    async with served(tmp_path, monkeypatch, a_shop(), policy=POLICY) as remit, remit.client(era) as client:
        first, second = await bought(client), await bought(client)
        await taken_back(remit, second, first)
        told = await client.call_tool("shop.look", {"thing": "pen"}, meta=RUN)
        notice = told.meta["dev.remit/notice"]
        assert {it["call_id"] for it in notice["taken_back"]} == {first, second}
        assert {it["tool"] for it in notice["taken_back"]} == {"shop.buy"}
        assert (notice["by"], notice["remedy"]) == (["operator"], "change")
        assert told.meta["dev.remit/receipt"]["call_id"]
        answer, note = told.content
        assert answer.text == "ok"
        assert note.text.startswith("Note: an operator took back what you did here before: shop.buy (call ")
        assert "user:bea" not in str(told)
        again = await client.call_tool("shop.look", {"thing": "pen"}, meta=RUN)
        assert "dev.remit/notice" not in again.meta
        assert texts(again) == "ok"
        (event,) = remit.rows("SELECT body FROM events WHERE kind = 'run.told'")
        assert first in event["body"]


async def test_an_agent_is_told_that_what_was_held_back_is_not_made_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_back = tools(send={"effect": "deferred", "hold_back": "10m"})
    boss = POLICY + "p, role:boss, acme, shop.send, undo, 1 == 1, allow\n"
    async with (
        served(tmp_path, monkeypatch, a_shop(), policy=boss, tools=held_back) as remit,
        remit.client() as client,
    ):
        made = [
            (await client.call_tool("shop.send", {"text": text}, meta=RUN)).meta["dev.remit/receipt"]
            for text in ("a", "b")
        ]
        late, withdrawn = (receipt["call_id"] for receipt in made)
        await taken_back(remit, withdrawn)
        told = (await client.call_tool("shop.look", {"thing": "pen"}, meta=RUN)).meta["dev.remit/notice"]
        assert [it["call_id"] for it in told["taken_back"]] == [withdrawn]
        remit.on.policy = load_text(
            POLICY.replace(
                "p, role:clerk, acme, shop.send, execute", "p, role:boss, acme, shop.send, execute"
            )
        )
        remit.clock.advance(s=601)
        await send_due(remit.on)
        answer = await client.call_tool("shop.look", {"thing": "pen"}, meta=RUN)
        (called_off,) = answer.meta["dev.remit/notice"]["called_off"]
        assert (called_off["call_id"], called_off["tool"]) == (late, "shop.send")
        assert called_off["why"].startswith("No rule allows you this.")
        assert answer.meta["dev.remit/notice"]["taken_back"] == []
        assert "Note: what was held back for you was called off when its time came" in texts(answer)
        again = await client.call_tool("shop.look", {"thing": "pen"}, meta=RUN)
        assert "dev.remit/notice" not in again.meta


async def test_an_agent_is_told_once_that_what_was_held_back_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_back, shop = tools(send={"effect": "deferred", "hold_back": "10m"}), a_shop()
    async with (
        served(tmp_path, monkeypatch, shop, policy=POLICY, tools=held_back) as remit,
        remit.client() as client,
    ):
        receipt = (await client.call_tool("shop.send", {"text": "a"}, meta=RUN)).meta["dev.remit/receipt"]
        shop.on["send"] = AdapterError("the post office is closed", no_effect=True)
        remit.clock.advance(s=601)
        await send_due(remit.on)
        answer = await client.call_tool("shop.look", {"thing": "pen"}, meta=RUN)
        (failed,) = answer.meta["dev.remit/notice"]["failed"]
        assert (failed["call_id"], failed["why"]) == (receipt["call_id"], "the post office is closed")
        assert "called_off" not in answer.meta["dev.remit/notice"]
        assert "was sent when its time came, and failed: shop.send" in texts(answer)
        again = await client.call_tool("shop.look", {"thing": "pen"}, meta=RUN)
        assert "dev.remit/notice" not in again.meta
        with open_records(remit.path) as records:
            assert list(verify_notices(records)) == []


async def test_a_refusal_tells_it_too_and_so_does_an_own_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, monkeypatch, a_shop(), policy=POLICY) as remit, remit.client() as client:
        await taken_back(remit, await bought(client))
        refused = await client.call_tool("shop.buy", {"thing": "pen", "price": 9000}, meta=RUN)
        assert refused.is_error
        assert "took back" in texts(refused)
        assert refused.meta["dev.remit/verdict"]["code"] == "no_rule"
        await taken_back(remit, await bought(client))
        status = await client.call_tool("remit.status", {}, meta=RUN)
        assert "took back" in texts(status)
        assert status.structured_content["run"] == "ticket-7"


async def test_other_runs_and_other_agents_hear_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        served(tmp_path, monkeypatch, a_shop(), policy=POLICY) as remit,
        remit.client() as client,
        remit.client(agent="agent:other") as other,
    ):
        await taken_back(remit, await bought(client))
        for deaf, meta in ((client, {"dev.remit/run": "ticket-8"}), (other, RUN)):
            result = await deaf.call_tool("shop.look", {"thing": "pen"}, meta=meta)
            assert "dev.remit/notice" not in result.meta
        told = await client.call_tool("shop.look", {"thing": "pen"}, meta=RUN)
        assert "dev.remit/notice" in told.meta


async def test_what_a_run_takes_back_itself_it_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, monkeypatch, a_shop(), policy=POLICY) as remit, remit.client() as client:
        mine, elsewhere = await bought(client), await bought(client, "cup")
        done = await client.call_tool("remit.undo", {"call_id": mine}, meta=RUN)
        assert not done.is_error
        assert remit.on.journal.untold == frozenset()
        await client.call_tool("remit.undo", {"call_id": elsewhere}, meta={"dev.remit/run": "ticket-8"})
        told = await client.call_tool("shop.look", {"thing": "pen"}, meta=RUN)
        assert told.meta["dev.remit/notice"]["by"] == ["agent"]
        assert "you, in another run, took back" in texts(told)


async def test_many_answers_at_once_tell_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(tmp_path, monkeypatch, a_shop(), policy=POLICY) as remit, remit.client() as client:
        await taken_back(remit, await bought(client))
        results: list[Any] = []

        async def look() -> None:
            results.append(await client.call_tool("shop.look", {"thing": "pen"}, meta=RUN))

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(look)
        assert ["dev.remit/notice" in result.meta for result in results].count(True) == 1


async def test_a_run_that_was_not_told_before_a_crash_is_told_after_it(tmp_path: Path) -> None:
    async with a_remit(tmp_path, source=a_shop()) as remit:
        done = await remit.done("shop.buy", {"thing": "pen", "price": 5}, run="ticket-7")
        await undo(done.call_id, BOSS, "cli-1", remit.on)
        remit.die()
    async with a_remit(tmp_path) as remit:
        run = ("acme", "agent:bot", "user:ann", "ticket-7")
        assert remit.on.journal.untold == {run}
        (notice,) = await remit.on.journal.tell(run)
        assert notice.call_id == done.call_id
        assert await remit.on.journal.tell(run) == ()
    async with a_remit(tmp_path) as remit:
        assert remit.on.journal.untold == frozenset()


async def test_an_undo_in_doubt_tells_once_a_person_says_that_it_happened(tmp_path: Path) -> None:
    async with a_remit(tmp_path, source=a_shop()) as remit:
        done = await remit.done("shop.buy", {"thing": "pen", "price": 5})
        remit.source.on["give_back"] = RuntimeError("lost")
        with pytest.raises(RuntimeError):
            await undo(done.call_id, a_principal(user="user:bea", auth="local"), "cli-1", remit.on)
        assert remit.on.journal.untold == frozenset()
        (doubtful,) = remit.rows("SELECT id FROM calls WHERE state = 'in_doubt'")
        await remit.on.journal.resolve(doubtful["id"], happened=True, reason="seen", by="user:bea")
        assert len(remit.on.journal.untold) == 1
