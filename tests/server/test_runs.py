"""What a run has come to: who can know it, who can change it, and what counts when calls race."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.server.builders import Gate, Remit, a_config, a_principal, a_remit, a_reply, kept_anywhere, tools
from tests.server.test_facts import PEN, ROLES, rule

from remit import audit, audit_keeping, verifying
from remit.due import send_due
from remit.model import Done, Refused, Scheduled
from remit.records import open_records
from remit.vault import key_file

#: On SQLite, and on PostgreSQL.
everywhere = pytest.mark.usefixtures("every_database")
SECOND = ROLES.replace(
    "g3, agent:bot", "g, agent:cat, role:clerk, acme\ng3, agent:cat, user:ann, acme\ng3, agent:bot"
)
KNOWN = SECOND + rule("1 == 1", tool="look") + rule("r.args.thing == r.ctx.run.thing")
ONE = KNOWN + rule("'thing' in r.ctx.run.conflicts", effect="deny")
ESTABLISHING = {**tools(), "shop.look": {"effect": "read", "establishes": {"thing": "result.thing"}}}


async def looked_at(remit: Remit, thing: str, **more: Any) -> Done:
    remit.source.on["look"] = {"thing": thing}
    return await remit.done("shop.look", {"thing": thing}, **more)


def findings(remit: Remit) -> list[str]:
    with open_records(remit.path) as records:
        followed = audit.Followed()
        calls = list(audit.verify_calls(records, followed=followed))
        return [str(it) for it in (*audit_keeping.verify_runs(records, followed), *calls, *followed.loose)]


async def test_a_rule_sees_what_an_earlier_call_of_the_run_established(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=KNOWN, tools=ESTABLISHING) as remit:
        assert (await remit.refused("shop.buy", PEN)).verdict.code == "rule_error"
        await looked_at(remit, "pen")
        await remit.done("shop.buy", PEN)
        await remit.refused("shop.buy", {"thing": "cup", "price": 5})
        assert findings(remit) == []


@pytest.mark.parametrize(
    "other",
    [
        {"run": "run-2"},
        {"principal": a_principal("agent:cat")},
        {"principal": a_principal(tenant="else")},
    ],
)
async def test_nobody_else_sees_or_sets_it(tmp_path: Path, other: dict[str, Any]) -> None:
    policy = KNOWN + KNOWN.replace(", acme", ", else")
    async with a_remit(tmp_path, policy=policy, tools=ESTABLISHING) as remit:
        await looked_at(remit, "pen", **other)
        await remit.refused("shop.buy", PEN)
        await looked_at(remit, "pen")
        await remit.done("shop.buy", PEN)


async def test_another_value_later_is_a_conflict_and_the_first_one_stays(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ONE, tools=ESTABLISHING) as remit:
        await looked_at(remit, "pen")
        await looked_at(remit, "pen")
        await remit.done("shop.buy", PEN)
        second = await looked_at(remit, "cup")
        await looked_at(remit, "cup")
        assert (await remit.refused("shop.buy", PEN)).verdict.code == "denied_by_rule"
        fact = remit.one("SELECT * FROM run_facts")
        assert (fact["value"], fact["conflict_call"]) == ('"pen"', second.call_id)
        assert findings(remit) == []


@pytest.mark.parametrize(
    "answer",
    [a_reply({"thing": "pen"}, is_error=True), {"thing": ["pen"]}, {"thing": None}, {"other": "pen"}, "text"],
)
async def test_what_did_not_succeed_or_is_no_plain_value_establishes_nothing(
    tmp_path: Path, answer: Any
) -> None:
    async with a_remit(tmp_path, policy=KNOWN, tools=ESTABLISHING) as remit:
        remit.source.on["look"] = answer
        await remit.done("shop.look", {"thing": "pen"})
        assert remit.rows("SELECT * FROM run_facts") == []


async def test_what_comes_to_a_number_that_none_carries_establishes_nothing(tmp_path: Path) -> None:
    doubled = {**tools(), "shop.send": {"effect": "irreversible", "establishes": {"all": "result.left * 2"}}}
    async with a_remit(tmp_path, policy=KNOWN + rule("1 == 1", tool="send"), tools=doubled) as remit:
        remit.source.on["send"] = {"left": 2**63}
        done = await remit.done("shop.send", {"text": "hello"})
        assert (remit.state(done.call_id), remit.rows("SELECT * FROM run_facts")) == ("succeeded", [])


async def test_it_is_known_after_a_restart_and_in_another_process(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=KNOWN, tools=ESTABLISHING) as remit:
        await looked_at(remit, "pen")
    async with (
        a_remit(tmp_path, policy=KNOWN, tools=ESTABLISHING) as one,
        a_remit(tmp_path, policy=ONE, tools=ESTABLISHING) as other,
    ):
        await one.done("shop.buy", PEN)
        await other.done("shop.buy", PEN)
        await looked_at(one, "cup")
        refused = await other.refused("shop.buy", PEN)  # it has not heard yet, but what lets it out has
        assert refused.verdict.code == "denied_by_rule"


async def test_calls_are_counted_by_run_and_tool(tmp_path: Path) -> None:
    policy = ROLES + rule("r.ctx.run.tool_calls < 2") + rule("r.ctx.run.writes == 2", tool="look")
    policy += rule("r.ctx.run.calls == 3 and r.ctx.run.tools['shop.buy'] == 2", tool="send")
    async with a_remit(tmp_path, policy=policy) as remit:
        await remit.done("shop.buy", PEN)
        await remit.done("shop.buy", PEN)
        await remit.refused("shop.buy", PEN)
        await remit.done("shop.look", {"thing": "pen"})
        await remit.done("shop.send", {"text": "hi"})
        await remit.done("shop.buy", PEN, run="run-2")


async def test_of_calls_made_at_once_only_as_many_are_first_as_may_be(tmp_path: Path) -> None:
    policy = ROLES + rule("r.ctx.run.tool_calls < 2")
    async with a_remit(tmp_path, policy=policy, limits={"per_agent": 100}) as remit:
        outcomes = await remit.together(*(remit.call("shop.buy", PEN) for _ in range(6)))
        assert sum(isinstance(outcome, Done) for outcome in outcomes) == 2
        assert len(remit.source.effects("buy")) == 2


async def test_who_asks_nothing_about_runs_pays_nothing_for_them(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ROLES + rule("r.ctx.run.id == 'run-1'")) as remit:
        await remit.done("shop.buy", PEN)
        assert remit.on.journal._ledger.runs == {}


@everywhere
async def test_serial_calls_of_a_run_wait_for_each_other(tmp_path: Path) -> None:
    policy = ROLES + rule("1 == 1")
    async with a_remit(tmp_path, policy=policy, tools=tools(buy={"serial": True})) as remit:
        gate = remit.source.on["buy"] = Gate({"order": "o-1"})
        making = [asyncio.create_task(remit.call("shop.buy", PEN)) for _ in range(3)]
        elsewhere = asyncio.create_task(remit.call("shop.buy", PEN, run="run-2"))
        await remit.source.reached(2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(remit.source.sent) == 2
        making[1].cancel()
        gate.open()
        outcomes = await asyncio.gather(*making, elsewhere, return_exceptions=True)
        assert [isinstance(outcome, Done) for outcome in outcomes] == [True, False, True, True]
        assert remit.on.turns == {}


@asynccontextmanager
async def two_processes(folder: Path, policy: str, **rules: Any) -> AsyncGenerator[tuple[Remit, Remit]]:
    """Two Remits with a journal of their own over one database, as two processes are."""
    settings = {"policy": policy, "tools": rules}
    async with a_remit(folder, **settings) as one, a_remit(folder, **settings) as other:
        yield one, other


ONCE = ROLES + rule("r.ctx.facts.item.left > 0") + rule("1 == 1", tool="look")
ONE_LEFT = tools(
    buy={"serial": True, "facts": {"item": {"call": "shop.look", "args": {"thing": "args.thing"}}}}
)


@everywhere
async def test_serial_calls_of_a_run_wait_for_each_other_in_several_processes(tmp_path: Path) -> None:
    async with two_processes(tmp_path, ONCE, **ONE_LEFT) as (one, other):
        gate = one.source.on["buy"] = Gate({"order": "o-1"})
        one.source.on["look"] = other.source.on["look"] = {"left": 1}
        first = asyncio.create_task(one.call("shop.buy", PEN))
        await one.source.reached(2)
        second = asyncio.create_task(other.call("shop.buy", PEN))
        apart = await other.done("shop.buy", PEN, run="run-2")
        assert apart.call_id
        await other.done("shop.look", {"thing": "pen"})
        other.source.on["look"] = {"left": 0}
        assert not second.done()
        gate.open()
        assert isinstance(await first, Done)
        with anyio.fail_after(10):
            refused = await second
        assert isinstance(refused, Refused), "it was decided by what the first had changed"
        assert refused.verdict.code == "no_rule"
        assert len(one.source.effects("buy")) == len(other.source.effects("buy")) == 1


@everywhere
async def test_a_serial_call_that_another_process_was_quicker_with_is_decided_anew(tmp_path: Path) -> None:
    async with two_processes(tmp_path, ONCE, **ONE_LEFT) as (one, other):
        gate = other.source.on["look"] = Gate({"left": 1})
        one.source.on["look"] = {"left": 1}
        slow = asyncio.create_task(other.call("shop.buy", PEN))
        await other.source.reached()
        await one.done("shop.buy", PEN)
        other.source.on["look"] = {"left": 0}
        gate.open()
        with anyio.fail_after(10):
            refused = await slow
        assert isinstance(refused, Refused)
        assert other.source.effects("buy") == []


@everywhere
async def test_a_serial_call_does_not_wait_for_ever(tmp_path: Path) -> None:
    rules = tools(buy={"serial": True, "timeout": "1s"})
    async with two_processes(tmp_path, ROLES + rule("1 == 1"), **rules) as (one, other):
        gate = one.source.on["buy"] = Gate({"order": "o-1"})
        first = asyncio.create_task(one.call("shop.buy", PEN))
        await one.source.reached()
        with anyio.fail_after(10):
            assert (await other.refused("shop.buy", PEN)).verdict.code == "too_many_at_once"
        gate.open()
        await first


@everywhere
async def test_a_serial_call_that_is_due_while_another_process_has_one_waits_on(tmp_path: Path) -> None:
    rules = tools(
        buy={"serial": True}, send={"serial": True, "effect": "deferred", "hold_back": "10m", "timeout": "1s"}
    )
    policy = ROLES + rule("1 == 1") + rule("1 == 1", tool="send")
    async with two_processes(tmp_path, policy, **rules) as (one, other):
        held_back = await other.call("shop.send", {"text": "hello"})
        assert isinstance(held_back, Scheduled)
        gate = one.source.on["buy"] = Gate({"order": "o-1"})
        first = asyncio.create_task(one.call("shop.buy", PEN))
        await one.source.reached()
        other.clock.advance(s=86_400)
        with anyio.fail_after(10):
            await send_due(other.on)
        assert other.state(held_back.call_id) == "scheduled"
        gate.open()
        await first
        other.clock.advance(s=61)
        await send_due(other.on)
        assert other.state(held_back.call_id) == "succeeded"


@everywhere
async def test_reads_of_the_run_do_not_disturb_a_serial_call(tmp_path: Path) -> None:
    rules = tools(buy={"serial": True})
    policy = ROLES + rule("1 == 1") + rule("1 == 1", tool="look")
    async with two_processes(tmp_path, policy, **rules) as (one, other):
        admits = 0
        admit = one.on.journal.admit

        async def after_a_read(call: Any, *rest: Any, **more: Any) -> Any:
            nonlocal admits
            admits += 1
            await other.done("shop.look", {"thing": "pen"})
            return await admit(call, *rest, **more)

        one.on.journal.admit = after_a_read  # pyright: ignore[reportAttributeAccessIssue]
        await one.done("shop.buy", PEN)
        assert admits == 1


SAID = st.lists(
    st.tuples(st.sampled_from(["run-1", "run-2"]), st.sampled_from(["pen", "cup", 1, True])), max_size=8
)


@settings(max_examples=20)
@given(said=SAID)
def test_the_first_value_stays_whatever_follows(said: list[tuple[str, Any]], tmp_path_factory: Any) -> None:
    async def story() -> None:
        folder = tmp_path_factory.mktemp("runs")
        async with a_remit(folder, policy=ONE, tools=ESTABLISHING) as remit:
            for run, value in said:
                remit.source.on["look"] = {"thing": value}
                await remit.done("shop.look", {"thing": "pen"}, run=run)
            for run in {run for run, _ in said}:
                values = [value for where, value in said if where == run]
                seen = await remit.on.journal.run(remit.a_call("shop.buy", PEN, run=run))
                assert seen.established["thing"] is values[0] or seen.established["thing"] == values[0]
                clash = any((type(value), value) != (type(values[0]), values[0]) for value in values)
                assert (seen.conflicts == ("thing",)) is clash
            assert findings(remit) == []

    anyio.run(story)


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE run_facts SET value = '\"cup\"'",
        "UPDATE run_facts SET agent = 'agent:cat'",
        "UPDATE run_facts SET conflict_call = call_id",
        "DELETE FROM run_facts",
        "DROP TRIGGER events_no_update; UPDATE events SET body = json_set(body, '$.established', 'cup')",
        "DROP TRIGGER events_no_update; UPDATE events SET body = json_set(body, '$.conflicts', 5)",
        "UPDATE payloads SET body = x'7b7d' WHERE kind = 'context'",
    ],
)
async def test_an_edit_of_what_rules_saw_is_found(tmp_path: Path, edit: str) -> None:
    async with a_remit(tmp_path, policy=KNOWN, tools=ESTABLISHING) as remit:
        await looked_at(remit, "pen")
        assert findings(remit) == []
        copy = tmp_path / "copy.db"
        with closing(sqlite3.connect(remit.path)) as db, closing(sqlite3.connect(copy)) as to:
            db.backup(to)
            to.executescript(edit)
        shutil.copy(key_file(remit.path), key_file(copy))
        remit.path = copy
        assert findings(remit)


@everywhere
async def test_processes_that_see_newer_facts_do_not_miss_them_in_what_is_verified(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=KNOWN, tools=ESTABLISHING) as remit:
        await looked_at(remit, "pen")
        with open_records(remit.path) as records:
            await looked_at(remit, "cup", run="another")
            assert list(verifying.verify(records, payloads=True, processes=2, part=1)) == []


@everywhere
async def test_what_policy_saw_can_be_asked_again(tmp_path: Path) -> None:
    policy = ROLES + rule("r.ctx.facts.item.stock > 0 and r.ctx.derived.double == 'penpen'")
    rules = tools(
        buy={
            "facts": {"item": {"call": "shop.look", "args": {"thing": "args.thing"}}},
            "derive": {"double": "join('', [args.thing, args.thing])"},
        }
    )
    async with a_remit(tmp_path, policy=policy, tools=rules) as remit:
        remit.source.on["look"] = {"stock": 3}
        done = await remit.done("shop.buy", PEN)
        remit.source.on["look"] = {"stock": 0}
        refused = await remit.refused("shop.buy", PEN)
        with open_records(remit.path) as records:
            for call_id, code in ((done.call_id, "allowed"), (refused.call_id, "no_rule")):
                asked = records.asked(call_id)
                assert asked is not None
                assert not asked.redacted
                assert remit.on.policy.decide(asked.question).code == code
                (event,) = records.rows("SELECT body FROM events WHERE call_id = ? LIMIT 1", (call_id,))
                (read,) = [it for it in records.story(call_id).served_by if it.kind == "fact"]
                assert f'"facts":{{"item":"{read.id}"}}' in event["body"]
        assert findings(remit) == []


async def test_what_is_struck_out_is_not_kept_in_what_policy_saw(tmp_path: Path) -> None:
    policy = ROLES + rule("1 == 1", tool="send")
    policy += "p2, role:clerk, acme, shop.send, execute, 1 == 1, redact=args.text\n"
    rules = tools(send={"parse": {"text": "json"}, "derive": {"who": "parsed.text.to"}})
    async with a_remit(tmp_path, policy=policy, tools=rules) as remit:
        done = await remit.done("shop.send", {"text": '{"to": "SECRET"}'})
        assert not kept_anywhere(tmp_path, b"SECRET")
        with open_records(remit.path) as records:
            asked = records.asked(done.call_id)
            assert asked is not None
            assert asked.redacted
        assert findings(remit) == []


def test_a_run_cannot_be_told_what_remit_counts_itself(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="calls is what Remit itself says"):
        a_config(tmp_path, tools={"shop.look": {"effect": "read", "establishes": {"calls": "args.thing"}}})
