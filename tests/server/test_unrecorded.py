"""While nothing can be recorded: reads go through where the operator wants them, and are told afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from tests.server.builders import (
    POLICY,
    Remit,
    ScriptedSource,
    a_principal,
    a_remit,
    a_reply,
    taking_no_writes,
    tools,
    until,
)
from tests.server.fronts import served, texts

from remit.audit import verify_balances, verify_calls, verify_events
from remit.errors import StoreUnavailable
from remit.identity import Identify
from remit.model import Failed
from remit.records import Records, open_records
from remit.reporting import Section, report
from remit_adapters.base import AdapterError

#: Each test runs on SQLite, and on PostgreSQL.
pytestmark = pytest.mark.usefixtures("every_database")
PEN = {"thing": "pen"}


def lenient(folder: Path, **more: Any) -> Any:
    return a_remit(folder, reads_when_down=True, **more)


def gaps(remit: Any) -> list[dict[str, Any]]:
    rows = remit.rows("SELECT body FROM events WHERE kind = 'store.gap' ORDER BY at_us, seq")
    return [json.loads(row["body"]) for row in rows]


def sections_of(records: Records, now_us: int) -> tuple[Section, ...]:
    return report(records, from_us=0, to_us=now_us + 1, tenant=None, now_us=now_us).sections


async def refused_as_down(remit: Remit, tool: str, arguments: dict[str, Any]) -> None:
    assert (await remit.refused(tool, arguments)).verdict.code == "audit_unavailable"


async def test_over_mcp_reads_go_through_writes_do_not_and_one_event_tells_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # API keys are proved by the database, which nobody reaches here: one that was just proved serves on.
    monkeypatch.setattr(Identify, "_RECENT_US", 3600 * 1_000_000)
    source = ScriptedSource()
    source.on["look"] = {"left": 7}
    async with (
        served(tmp_path, monkeypatch, source, policy=POLICY, reads_when_down=True) as remit,
        remit.client() as client,
        remit.client(agent="agent:other") as other,
    ):
        for each in (client, other):
            assert not (await each.call_tool("shop.look", PEN)).is_error
        with taking_no_writes(remit.path):
            for each in (client, client, other):
                result = await each.call_tool("shop.look", PEN)
                assert result.structured_content == {"left": 7}
                assert result.meta["dev.remit/receipt"]["unrecorded"] is True
            written = await client.call_tool("shop.send", {"text": "no"})
            assert written.is_error
            assert "nothing runs unrecorded" in texts(written)
        # It comes back by itself, and says what it did not record.
        await until(lambda: gaps(remit))
        assert not (await client.call_tool("shop.send", {"text": "yes"})).is_error
        assert [request.arguments["text"] for request in source.effects("send")] == ["yes"]
        (gap,) = gaps(remit)
        assert gap["reads"] == 3
        assert gap["from_us"] < gap["to_us"]
        assert {(each["agent"], each["user"], each["tool"], each["reads"]) for each in gap["by"]} == {
            ("agent:bot", "user:ann", "shop.look", 2),
            ("agent:other", "user:ann", "shop.look", 1),
        }
        with open_records(remit.path) as records:
            sections = {it.title: it.rows for it in sections_of(records, remit.clock())}
            assert [row[1] for row in sections["Incidents"]] == ["store.gap"]
            for found in (verify_events(records), verify_calls(records), verify_balances(records)):
                assert list(found) == []


async def test_without_the_setting_not_even_a_read_goes_through(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.look", PEN)
        with taking_no_writes(remit.path):
            await refused_as_down(remit, "shop.look", PEN)
        assert len(remit.source.sent) == 1


async def test_policy_decides_on_every_read_and_what_it_cannot_know_refuses(tmp_path: Path) -> None:
    limited = POLICY.replace("shop.look, execute, 1 == 1", "shop.look, execute, r.args.thing != 'safe'")
    counted = POLICY.replace("shop.look, execute, 1 == 1", "shop.look, execute, r.ctx.run.calls < 100")
    asks = POLICY.replace("shop.look, execute, 1 == 1", "shop.look, recommend, 1 == 1")
    async with lenient(tmp_path, policy=limited) as remit:
        await remit.done("shop.look", PEN)
        await remit.switch("kill", "agent", "agent:other")
        with taking_no_writes(remit.path):
            assert (await remit.done("shop.look", PEN)).unrecorded
            await refused_as_down(remit, "shop.look", {"thing": "safe"})
            for policy in (counted, asks, POLICY.replace("shop.look, execute", "shop.look, list")):
                remit.use_policy(policy)
                await refused_as_down(remit, "shop.look", PEN)
        assert len(remit.source.sent) == 2
        await remit.on.journal.catch_up()
        assert [gap["reads"] for gap in gaps(remit)] == [1]


async def test_a_read_that_costs_more_than_its_count_waits_for_the_record(tmp_path: Path) -> None:
    budgets = [{"scope": "agent", "unit": unit, "window": "total", "limit": 100} for unit in ("calls", "usd")]
    priced = tools(look={"price": {"usd": "len(args.thing)"}})
    async with lenient(tmp_path, tools=priced, budgets=budgets) as remit:
        await remit.done("shop.look", PEN)
        with taking_no_writes(remit.path):
            await refused_as_down(remit, "shop.look", PEN)
            await remit.done("shop.look", {"thing": ""})
        assert remit.one("SELECT posted FROM accounts WHERE unit = 'usd'") == {"posted": 3}
        await remit.on.journal.catch_up()


async def test_what_is_counted_while_the_count_cannot_be_written_is_not_lost(tmp_path: Path) -> None:
    async with lenient(tmp_path) as remit:
        remit.source.on["look"] = AdapterError("It broke.", no_effect=True)
        with taking_no_writes(remit.path):
            assert isinstance(await remit.call("shop.look", PEN), Failed)
            await remit.on.journal.catch_up()
            assert isinstance(await remit.call("shop.look", PEN), Failed)
    (gap,) = gaps(remit)  # at the latest when the process ends
    assert gap["reads"] == 2


async def test_a_count_that_failed_to_be_written_is_written_by_who_came_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lenient(tmp_path) as remit:
        journal, fails = remit.on.journal, anyio.Event()

        async def fail(*change: Any, **more: Any) -> Any:
            await fails.wait()
            raise StoreUnavailable("it took too long")

        async with anyio.create_task_group() as tasks:
            with taking_no_writes(remit.path):
                await remit.done("shop.look", PEN)
                with monkeypatch.context() as slow:
                    slow.setattr(journal._writer, "write", fail)
                    tasks.start_soon(journal.catch_up)
                    await anyio.wait_all_tasks_blocked()
                await remit.done("shop.look", PEN)
            tasks.start_soon(journal.catch_up)  # as the journal is closed
            await anyio.lowlevel.checkpoint()
            fails.set()
        assert sum(gap["reads"] for gap in gaps(remit)) == 2


async def test_an_end_while_nothing_can_be_recorded_tells_of_the_reads_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with lenient(tmp_path) as remit:
        journal = remit.on.journal
        with taking_no_writes(remit.path):
            await remit.done("shop.look", PEN)
            with pytest.raises(StoreUnavailable):
                await journal.close()
        remit.died = True  # its end is on no record
        monkeypatch.setattr(journal, "close", anyio.lowlevel.checkpoint)
    (said,) = [record.message for record in caplog.records if record.name == "remit.journal"]
    told = json.loads(said[said.index("{") :])
    assert told["reads"] == 1
    assert [(each["agent"], each["tool"]) for each in told["by"]] == [("agent:bot", "shop.look")]


async def test_an_answer_that_comes_when_it_can_no_longer_be_recorded_is_given_and_recorded_later(
    tmp_path: Path,
) -> None:
    async with lenient(tmp_path) as remit:
        await remit.done("shop.look", PEN)
        down = taking_no_writes(remit.path)

        async def look(request: Any, caller: Any) -> Any:
            down.__enter__()
            return a_reply({"left": 7})

        remit.source.on["look"] = look
        try:
            done = await remit.done("shop.look", {"thing": "cup"})
        finally:
            down.__exit__(None, None, None)
        await remit.on.journal.catch_up()
        assert remit.state(done.call_id) == "succeeded"
        assert gaps(remit) == []


async def test_only_so_many_callers_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remit.unrecorded._APART_MAX", 1)
    async with lenient(tmp_path) as remit:
        with taking_no_writes(remit.path):
            for agent in ("agent:bot", "agent:other", "agent:bot"):
                await remit.done("shop.look", PEN, principal=a_principal(agent))
        await remit.on.journal.catch_up()
        (gap,) = gaps(remit)
        assert [(each["agent"], each["reads"]) for each in gap["by"]] == [("", 1), ("agent:bot", 2)]
