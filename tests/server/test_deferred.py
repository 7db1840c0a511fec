"""Calls that are held back: sent once when their time has come, decided anew, or called off before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.server.builders import (
    POLICY,
    Clock,
    Gate,
    Remit,
    ScriptedSource,
    a_definition,
    a_principal,
    a_remit,
    tools,
    until,
)
from tests.server.fronts import served

from remit.audit import verify_balances, verify_calls
from remit.catalog import build
from remit.due import begin_to_send, send_due
from remit.errors import StoreUnavailable, WrongState
from remit.front.answers import RECEIPT, to_wire
from remit.identity import Principal
from remit.journal import Journal
from remit.model import Done, InDoubt, Pending, Refused, Scheduled
from remit.records import CallQuery, open_records
from remit.rollback import plan, roll_back
from remit.undo import undo
from remit_adapters.base import AdapterError, Offer

RULES = tools(send={"effect": "deferred", "hold_back": "10m", "price": {"usd": "3"}})
MAY_UNDO = POLICY + "p, role:clerk, acme, shop.send, undo, 1 == 1, allow\n"
BUDGETS = [{"scope": "agent", "unit": "usd", "window": "total", "limit": 10}]
HELLO = {"text": "hello"}
SENDS = "shop.send, execute, 1 == 1"


@asynccontextmanager
async def deferring(
    folder: Path, policy: str = MAY_UNDO, rules: dict[str, Any] = RULES, **more: Any
) -> AsyncGenerator[Remit]:
    async with a_remit(folder, policy=policy, tools=rules, budgets=BUDGETS, **more) as remit:
        yield remit


async def scheduled(remit: Remit, **more: Any) -> str:
    outcome = await remit.call("shop.send", HELLO, **more)
    assert isinstance(outcome, Scheduled), outcome
    return outcome.call_id


async def later(remit: Remit, *, s: float = 601) -> None:
    """Ten minutes pass, and what is due is sent."""
    remit.clock.advance(s=s)
    await send_due(remit.on)


def held(remit: Remit) -> tuple[int, int]:
    row = remit.one("SELECT held, posted FROM accounts WHERE unit = 'usd'")
    return row["held"], row["posted"]


def why(remit: Remit, call_id: str) -> str:
    return remit.record(call_id)["error_code"]


async def test_a_call_is_held_back_and_sent_once_when_its_time_has_come(tmp_path: Path) -> None:
    async with deferring(tmp_path) as remit:
        call_id = await scheduled(remit)
        assert (remit.source.sent, held(remit)) == ([], (3, 0))
        await later(remit, s=590)
        assert remit.source.sent == []
        await later(remit, s=11)
        await later(remit)
        assert [(sent.key, sent.arguments) for sent in remit.source.sent] == [(call_id, HELLO)]
        assert (remit.state(call_id), held(remit)) == ("succeeded", (0, 3))
        assert remit.events(call_id) == ["call.scheduled", "call.dispatched", "call.succeeded"]
        assert remit.record(call_id)["effect"] == "deferred"


async def test_while_a_call_is_held_back_its_books_balance(tmp_path: Path) -> None:
    async with deferring(tmp_path) as remit:
        await scheduled(remit)
        with open_records(remit.path) as records:
            assert list(verify_calls(records)) == list(verify_balances(records)) == []


async def test_the_agent_is_told_until_when_and_how_it_is_called_off(tmp_path: Path) -> None:
    async with deferring(tmp_path) as remit:
        outcome = await remit.call("shop.send", HELLO)
        told = to_wire(remit.a_call("shop.send", HELLO), outcome)
        receipt = told["_meta"][RECEIPT]
        assert not told["isError"]
        assert receipt["undo"]["class"] == "deferred"
        assert receipt["due"] == receipt["undo"]["until"]
        assert "remit.undo" in told["content"][0]["text"]
        assert receipt["call_id"] in told["content"][0]["text"]


async def test_who_asks_beforehand_is_told_that_it_is_held_back_and_called_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = {"tool": "shop.send", "arguments": HELLO}
    async with (
        served(tmp_path, monkeypatch, policy=MAY_UNDO, tools=RULES) as remit,
        remit.client() as client,
    ):
        told = (await client.call_tool("remit.explain", question)).structured_content
        assert told is not None
        due_us = told["held_back_until_us"]
        assert 0 <= remit.clock() + 600_000_000 - due_us < 1_000_000
        assert told["undo"] == {"calls_off": True, "until_us": due_us}
        bought = {"tool": "shop.buy", "arguments": {"thing": "pen", "price": 5}}
        told = (await client.call_tool("remit.explain", bought)).structured_content
        assert told is not None
        assert (told["held_back_until_us"], told["undo"]["tool"]) == (None, "shop.give_back")


async def test_what_is_called_off_is_never_sent_and_costs_nothing(tmp_path: Path) -> None:
    async with deferring(tmp_path) as remit:
        call_id = await scheduled(remit, client_key="k-1")
        done = await undo(call_id, a_principal(), "run-1", remit.on)
        assert isinstance(done, Done)
        assert done.undone["state"] == "done"
        await later(remit)
        assert remit.source.sent == []
        assert (remit.state(call_id), held(remit)) == ("cancelled", (0, 0))
        assert remit.record(done.call_id)["of_call"] == call_id
        again = await undo(call_id, a_principal(), "run-1", remit.on)
        assert isinstance(again, Refused)
        assert again.verdict.code == "undo_used"
        # The same may be asked for anew.
        assert await scheduled(remit, client_key="k-1") != call_id


async def test_what_was_sent_can_no_longer_be_called_off(tmp_path: Path) -> None:
    async with deferring(tmp_path) as remit:
        call_id = await scheduled(remit)
        await later(remit)
        refused = await undo(call_id, a_principal(), "run-1", remit.on)
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "undo_expired"
        assert len(remit.source.sent) == 1


async def test_who_may_not_undo_the_tool_cannot_call_its_calls_off(tmp_path: Path) -> None:
    async with deferring(tmp_path, policy=POLICY) as remit:
        call_id = await scheduled(remit)
        refused = await undo(call_id, a_principal(), "run-1", remit.on)
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "undo_not_allowed"
        assert remit.state(call_id) == "scheduled"


async def test_of_sending_and_calling_off_in_the_same_moment_one_wins(tmp_path: Path) -> None:
    async with deferring(tmp_path) as remit:
        for _ in range(3):
            call_id = await scheduled(remit)
            remit.clock.advance(s=601)
            before = len(remit.source.sent)
            sends, calls_off = send_due(remit.on), undo(call_id, a_principal(), "run-1", remit.on)
            _, outcome = await remit.together(sends, calls_off)
            sent = len(remit.source.sent) - before
            assert sent == (remit.state(call_id) == "succeeded") == isinstance(outcome, Refused)
        await remit.together(*(send_due(remit.on) for _ in range(5)))


async def test_several_processes_on_one_file_send_each_call_once(tmp_path: Path) -> None:
    clock, source = Clock(), ScriptedSource()
    async with (
        deferring(tmp_path, clock=clock, source=source) as one,
        deferring(tmp_path, clock=clock, source=source) as two,
    ):
        ids = {await scheduled(one) for _ in range(3)}
        clock.advance(s=601)
        await one.together(*(send_due(each.on) for each in (one, two, one, two)))
        assert {sent.key for sent in source.sent} == ids
        assert len(source.sent) == 3


async def test_it_waits_through_the_death_of_its_process_and_is_in_doubt_when_killed_while_sent(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with deferring(tmp_path, clock=clock) as remit:
        waiting = await scheduled(remit)
        remit.die()
        async with deferring(tmp_path, clock=clock) as after:
            assert after.state(waiting) == "scheduled"
            after.source.on["send"] = AdapterError("The line broke.", no_effect=False)
            await later(after)
            assert after.state(waiting) == "in_doubt"
            await later(after)
            assert len(after.source.sent) == 1
            assert held(after) == (3, 0)


@pytest.mark.parametrize("moments", range(12))
async def test_nothing_is_sent_once_its_process_has_said_that_it_ends(tmp_path: Path, moments: int) -> None:
    async with deferring(tmp_path) as remit:
        waiting = [await scheduled(remit) for _ in range(3)]
        remit.clock.advance(s=601)
        sending = asyncio.ensure_future(send_due(remit.on))
        for _ in range(moments):
            await asyncio.sleep(0)
        remit.died = True  # with calls under way
    with suppress(StoreUnavailable):
        await sending
    with open_records(remit.path) as records:
        assert list(verify_calls(records)) == []
        assert records.calls(CallQuery(state="dispatched"), limit=10) == []
        assert {call.id for call in records.calls(CallQuery(), limit=10)} == set(waiting)
        assert [*records.events()][-1].kind == "stream.closed"


async def test_a_repeat_is_told_of_the_call_that_waits(tmp_path: Path) -> None:
    async with deferring(tmp_path) as remit:
        call_id = await scheduled(remit, client_key="k-1")
        assert await scheduled(remit, client_key="k-1") == call_id
        assert held(remit) == (3, 0)


# Decided anew.


async def test_what_policy_forbids_by_then_is_called_off(tmp_path: Path) -> None:
    async with deferring(tmp_path) as remit:
        call_id = await scheduled(remit)
        remit.use_policy(MAY_UNDO.replace("p, role:clerk, acme, shop.send, execute, 1 == 1, allow\n", ""))
        await later(remit)
        assert (remit.source.sent, remit.state(call_id), held(remit)) == ([], "cancelled", (0, 0))
        assert remit.record(call_id)["error_code"] == "no_rule"
        assert remit.events(call_id)[-1] == "call.cancelled"


async def test_policy_decides_by_the_time_at_which_it_is_sent(tmp_path: Path) -> None:
    clock = Clock()
    async with deferring(tmp_path, clock=clock) as remit:
        call_id = await scheduled(remit)
        with open_records(remit.path) as records:
            assert records.story(call_id).context["hour"] == 8
        remit.use_policy(
            MAY_UNDO.replace("shop.send, execute, 1 == 1", "shop.send, execute, r.ctx.hour == 8")
        )
        await later(remit, s=2 * 3600)
        assert remit.state(call_id) == "cancelled"


async def test_a_switch_that_is_on_by_then_calls_it_off(tmp_path: Path) -> None:
    async with deferring(tmp_path) as remit:
        call_id = await scheduled(remit)
        await remit.switch("kill", "all")
        await later(remit)
        assert (remit.state(call_id), why(remit, call_id)) == ("cancelled", "stopped")


async def test_a_budget_that_was_lowered_since_calls_it_off(tmp_path: Path) -> None:
    async with deferring(tmp_path) as remit:
        call_id = await scheduled(remit)
        lower = remit.on.config.budgets[0].model_copy(update={"limit": 2})
        remit.use_budgets(lower)
        await later(remit)
        assert (remit.state(call_id), why(remit, call_id)) == ("cancelled", "budget_exhausted")


async def test_a_tool_that_is_another_by_then_is_not_called(tmp_path: Path) -> None:
    async with deferring(tmp_path) as remit:
        call_id = await scheduled(remit)
        catalog = remit.on.catalog
        changed = {"shop.send": replace(catalog.tools["shop.send"], digest="0" * 64)}
        remit.on.catalog = replace(catalog, tools=changed)
        await later(remit)
        assert (remit.state(call_id), why(remit, call_id)) == ("cancelled", "tool_changed")


async def test_while_its_tool_is_not_there_it_waits_on(tmp_path: Path) -> None:
    async with deferring(tmp_path) as remit:
        call_id = await scheduled(remit)
        catalog = remit.on.catalog
        remit.on.catalog = replace(catalog, tools={})
        await later(remit)
        assert remit.state(call_id) == "scheduled"
        remit.on.catalog = catalog
        await later(remit)
        assert remit.state(call_id) == "succeeded"


async def test_while_its_tool_is_not_there_it_is_stopped_and_not_called_off(tmp_path: Path) -> None:
    async with deferring(tmp_path) as remit:
        call_id = await scheduled(remit)
        catalog = remit.on.catalog
        remit.on.catalog = replace(catalog, tools={})
        with pytest.raises(WrongState, match=r"neither sent nor called off: .*remit switch on tool"):
            await undo(call_id, a_principal(), "run-1", remit.on)
        await remit.switch("kill", "tool", "shop.send")
        remit.on.catalog = catalog
        await later(remit)
        assert (remit.state(call_id), remit.source.sent, held(remit)) == ("cancelled", [], (0, 0))


@pytest.mark.usefixtures("every_database")
async def test_however_many_wait_for_their_tool_others_are_sent_in_time(tmp_path: Path) -> None:
    late = {"effect": "deferred", "hold_back": "9m"}
    async with deferring(tmp_path, rules={**RULES, "shop.give_back": late}) as remit:
        for n in range(65):
            await remit.call("shop.give_back", {"order": f"o-{n}"})
        call_id = await scheduled(remit)
        there = remit.on.catalog.tools
        remit.on.catalog = replace(
            remit.on.catalog, tools={name: tool for name, tool in there.items() if name != "shop.give_back"}
        )
        await later(remit)
        assert remit.state(call_id) == "succeeded"
        assert len(remit.rows("SELECT id FROM calls WHERE state = 'scheduled'")) == 65


async def test_a_source_that_does_not_answer_keeps_no_call_to_another_waiting(tmp_path: Path) -> None:
    rules = {**RULES, "post.send": {"effect": "deferred", "hold_back": "9m"}}
    policy = MAY_UNDO + "p, role:clerk, acme, post.send, execute, 1 == 1, allow\n"
    sources = {name: {"kind": "mcp", "command": [name]} for name in ("shop", "post")}
    post = ScriptedSource("post", Offer(tools=(a_definition("send", text="string"),)))
    async with deferring(tmp_path, policy, rules, sources=sources) as remit:
        remit.on.catalog = build(remit.on.config, {"shop": remit.source.offered, "post": post.offered})
        remit.on.adapters = {"shop": remit.source, "post": post}
        gate = post.on["send"] = Gate()
        await remit.call("post.send", HELLO)
        call_id = await scheduled(remit)
        busy: set[str] = set()
        async with anyio.create_task_group() as tasks:
            remit.clock.advance(s=541)
            assert await begin_to_send(remit.on, tasks, busy) == 1
            await post.reached()
            remit.clock.advance(s=60)
            assert await begin_to_send(remit.on, tasks, busy) == 1
            await until(lambda: remit.state(call_id) == "succeeded")
            gate.open()
        assert busy == set()
        assert len(post.sent) == len(remit.source.sent) == 1


ASKS = MAY_UNDO.replace("shop.send, execute", "shop.send, recommend") + (
    "p, role:boss, acme, shop.send, approve, 1 == 1, allow\n"
)


async def test_people_agree_before_it_is_held_back_and_must_still_be_the_right_ones(tmp_path: Path) -> None:
    async with deferring(tmp_path, policy=ASKS) as remit:
        for lost in (False, True):
            pending = await remit.call("shop.send", HELLO)
            assert isinstance(pending, Pending)
            await remit.vote(pending.approval_id)
            assert await scheduled(remit) == pending.call_id
            if lost:
                remit.use_policy(ASKS.replace("g, user:bea, role:boss, acme\n", ""))
            await later(remit)
            assert remit.state(pending.call_id) == ("cancelled" if lost else "succeeded")
        assert why(remit, pending.call_id) == "approval_lost"
        assert len(remit.source.sent) == 1


async def test_what_needs_people_only_by_then_is_called_off(tmp_path: Path) -> None:
    async with deferring(tmp_path) as remit:
        call_id = await scheduled(remit)
        remit.use_policy(ASKS)
        await later(remit)
        assert (remit.state(call_id), why(remit, call_id)) == ("cancelled", "approval_lost")


async def test_its_facts_are_looked_up_again_when_it_is_sent(tmp_path: Path) -> None:
    stock = {"stock": {"call": "shop.look", "args": {"thing": "args.text"}}}
    rules = tools(send={"effect": "deferred", "hold_back": "10m", "facts": stock, "price": {"usd": 1}})
    some_left = MAY_UNDO.replace(SENDS, "shop.send, execute, r.ctx.facts.stock.left > 0")
    async with deferring(tmp_path, some_left, rules) as remit:
        for left in (1, 0):
            remit.source.on["look"] = {"left": 1}
            call_id = await scheduled(remit)
            remit.source.on["look"] = {"left": left}
            await later(remit)
            assert remit.state(call_id) == ("succeeded" if left else "cancelled")
        with open_records(remit.path) as records:
            assert list(verify_calls(records)) == list(verify_balances(records)) == []


async def test_what_is_erased_while_it_is_about_to_be_sent_is_called_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with deferring(tmp_path) as remit, deferring(tmp_path, clock=remit.clock) as other:
        call_id = await scheduled(remit)
        let_out = Journal.let_out

        async def erased_before(journal: Journal, *said: Any, **more: Any) -> Any:
            await other.on.journal.erase(tenant="acme", subject="user:ann", reason="", by="user:bea")
            return await let_out(journal, *said, **more)

        monkeypatch.setattr(Journal, "let_out", erased_before)
        await later(remit)
        assert remit.source.sent == []
        found = remit.record(call_id)
        assert (found["state"], found["error_code"]) == ("cancelled", "cannot_defer")


STOCK = {"stock": {"call": "shop.look", "args": {"thing": "args.text"}}}
ASKS_STOCK = tools(send={"effect": "deferred", "hold_back": "10m", "facts": STOCK, "price": {"usd": 1}})
DOWN = AdapterError("the source cannot be reached", no_effect=True)


@pytest.mark.usefixtures("every_database")
async def test_while_its_facts_cannot_be_looked_up_it_waits_on(tmp_path: Path) -> None:
    async with deferring(tmp_path, rules=ASKS_STOCK) as remit:
        call_id = await scheduled(remit)
        remit.source.on["look"] = DOWN
        # That nobody was there to send it for a day is not its fault.
        for s in (86_400, 61, 3_300):
            await later(remit, s=s)
            await send_due(remit.on)
            assert (remit.state(call_id), held(remit)) == ("scheduled", (1, 0))
        assert remit.events(call_id) == ["call.scheduled", *["call.postponed"] * 3]
        remit.source.on["look"] = {"left": 1}
        await later(remit, s=61)
        assert (remit.state(call_id), len(remit.source.effects("send"))) == ("succeeded", 1)
        with open_records(remit.path) as records:
            assert list(verify_calls(records)) == list(verify_balances(records)) == []


async def test_it_does_not_wait_for_its_facts_for_ever(tmp_path: Path) -> None:
    async with deferring(tmp_path, rules=ASKS_STOCK) as remit:
        call_id = await scheduled(remit)
        remit.source.on["look"] = DOWN
        await later(remit)
        await later(remit, s=3_601)
        assert (remit.state(call_id), why(remit, call_id), held(remit)) == ("cancelled", "no_facts", (0, 0))
        (told,) = await remit.on.journal.tell(("acme", "agent:bot", "user:ann", "run-1"))
        assert told.call_id == call_id


async def test_while_it_waits_on_for_its_facts_it_is_called_off(tmp_path: Path) -> None:
    async with deferring(tmp_path, rules=ASKS_STOCK) as remit:
        call_id = await scheduled(remit)
        remit.source.on["look"] = DOWN
        await later(remit)
        done = await undo(call_id, a_principal(), "run-1", remit.on)
        assert isinstance(done, Done), done
        remit.source.on["look"] = {"left": 1}
        await later(remit)
        assert (remit.state(call_id), remit.source.effects("send")) == ("cancelled", [])


async def test_what_must_not_be_stored_cannot_be_held_back(tmp_path: Path) -> None:
    policy = MAY_UNDO + "p2, role:clerk, acme, shop.send, execute, 1 == 1, redact=args.text\n"
    async with deferring(tmp_path, policy=policy) as remit:
        assert (await remit.refused("shop.send", HELLO)).verdict.code == "cannot_defer"


# Seen by others.


async def test_policy_sees_the_class_and_that_it_can_be_called_off(tmp_path: Path) -> None:
    seen = "shop.send, execute, r.ctx.effect == 'deferred' and r.ctx.undo_ready"
    async with deferring(tmp_path, policy=MAY_UNDO.replace(SENDS, seen)) as remit:
        call_id = await scheduled(remit)
        await later(remit)
        assert remit.state(call_id) == "succeeded"


async def test_by_its_arguments_a_call_is_held_back_or_not(tmp_path: Path) -> None:
    when = [{"if": "args.text == 'urgent'", "effect": "irreversible"}]
    rules = tools(send={"effect": "deferred", "hold_back": "10m", "when": when, "price": {"usd": 3}})
    async with deferring(tmp_path, rules=rules) as remit:
        await remit.done("shop.send", {"text": "urgent"})
        await scheduled(remit)
        assert len(remit.source.sent) == 1


async def test_a_rollback_calls_off_what_was_not_sent_yet(tmp_path: Path) -> None:
    policy = MAY_UNDO + "p, role:boss, acme, shop.send, undo, 1 == 1, allow\n"
    async with deferring(tmp_path, policy=policy) as remit:
        call_id = await scheduled(remit)
        boss = Principal(tenant="acme", agent="agent:remit-cli", user="user:bea", auth="local")
        for planned, ended in (("undo", "done"), ("done", "done")):
            with open_records(remit.path, clock=remit.clock) as records:
                calls = records.calls(CallQuery(run="run-1"), limit=10)
                steps = await plan(records, calls, boss, "cli", remit.on, force=False)
            assert [step.part for step in steps] == [planned]
            assert [step.part for step in await roll_back(steps, boss, "cli", remit.on, force=False)] == [
                ended
            ]
        await later(remit)
        assert (remit.state(call_id), remit.source.sent) == ("cancelled", [])


async def test_an_answer_that_never_came_leaves_it_in_doubt_like_any_call(tmp_path: Path) -> None:
    async with deferring(tmp_path) as remit:
        call_id = await scheduled(remit)
        remit.source.on["send"] = AdapterError("The line broke.", no_effect=True)
        await later(remit)
        assert (remit.state(call_id), held(remit)) == ("failed", (0, 0))
        assert not isinstance(await remit.call("shop.send", HELLO), InDoubt)


@pytest.mark.parametrize("rules", [{"effect": "deferred"}])
def test_a_deferred_tool_says_for_how_long(rules: dict[str, Any]) -> None:
    from remit.config import ToolRules

    with pytest.raises(ValueError, match="hold_back"):
        ToolRules.model_validate(rules)
