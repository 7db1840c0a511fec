"""Calls that wait for a budget (`on_exceed: defer`): made once it takes them, decided anew, or called off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.server.builders import (
    POLICY,
    Clock,
    Remit,
    ScriptedSource,
    a_principal,
    a_remit,
    tools,
    until,
)
from tests.server.fronts import served, texts

from remit.audit import verify_balances, verify_calls, verify_events
from remit.due import send_due
from remit.front.answers import RECEIPT, to_wire
from remit.model import Done, Pending, Refused, Remedy, Scheduled
from remit.records import open_records
from remit.undo import undo
from remit_adapters.base import AdapterError

#: Each test runs on SQLite, and on PostgreSQL.
pytestmark = pytest.mark.usefixtures("every_database")
MAY_UNDO = POLICY + "p, role:clerk, acme, shop.send, undo, 1 == 1, allow\n"
SENDS = "p, role:clerk, acme, shop.send, execute, 1 == 1, allow\n"


def a_budget(limit: int, window: str = "hour", **more: Any) -> dict[str, Any]:
    return {"scope": "agent", "unit": "calls", "window": window, "limit": limit, "on_exceed": "defer", **more}


def waiting(folder: Path, *budgets: dict[str, Any], policy: str = MAY_UNDO, **more: Any) -> Any:
    return a_remit(folder, policy=policy, budgets=budgets or [a_budget(1)], **more)


async def waits(remit: Remit, text: str = "late", **more: Any) -> Scheduled:
    outcome = await remit.call("shop.send", {"text": text}, **more)
    assert isinstance(outcome, Scheduled), outcome
    remit.clock.advance(s=1)  # calls of one millisecond have no order
    return outcome


async def later(remit: Remit, *, s: float = 3600) -> None:
    remit.clock.advance(s=s)
    await send_due(remit.on)


def raised(remit: Remit, limit: int) -> None:
    more = remit.on.config.budgets[0].model_copy(update={"limit": limit})
    remit.use_budgets(more, *remit.on.config.budgets[1:])


def why(remit: Remit, call_id: str) -> tuple[str, str]:
    record = remit.record(call_id)
    return record["state"], record["error_code"]


def sent(remit: Remit) -> list[str]:
    return [request.arguments["text"] for request in remit.source.effects("send")]


def verified(remit: Remit) -> None:
    with open_records(remit.path) as records:
        for found in (verify_events(records), verify_calls(records), verify_balances(records)):
            assert list(found) == []


async def test_a_call_beyond_the_budget_waits_until_the_window_turns_and_is_made_once(tmp_path: Path) -> None:
    async with waiting(tmp_path) as remit:
        await remit.done("shop.send", {"text": "first"})
        call_id = (await waits(remit)).call_id
        await later(remit, s=60)
        assert (sent(remit), remit.state(call_id)) == (["first"], "scheduled")
        assert remit.one("SELECT held, posted FROM accounts") == {"held": 0, "posted": 1}
        await later(remit)
        await later(remit, s=1)
        assert (sent(remit), remit.state(call_id)) == (["first", "late"], "succeeded")
        posted = remit.rows("SELECT held, posted FROM accounts ORDER BY window_start_us")
        assert posted == [{"held": 0, "posted": 1}, {"held": 0, "posted": 1}]
        assert remit.events(call_id) == ["call.scheduled", "call.dispatched", "call.succeeded"]
        verified(remit)


async def test_a_raised_budget_lets_the_first_that_waits_go_first(tmp_path: Path) -> None:
    async with waiting(tmp_path, a_budget(0, "total")) as remit:
        ids = [(await waits(remit, text)).call_id for text in ("a", "b", "c")]
        await later(remit, s=60)
        raised(remit, 2)
        for _ in range(4):
            await send_due(remit.on)
        assert sent(remit) == ["a", "b"]
        assert [remit.state(call_id) for call_id in ids] == ["succeeded", "succeeded", "scheduled"]


async def test_the_agent_is_told_for_what_it_waits_and_until_when_and_a_repeat_as_well(
    tmp_path: Path,
) -> None:
    async with waiting(tmp_path, a_budget(0)) as remit:
        for _ in range(2):
            outcome = await waits(remit, client_key="k-1")
            told = to_wire(remit.a_call("shop.send", {"text": "late"}), outcome)
            receipt = told["_meta"][RECEIPT]
            assert (receipt["waits_for"], receipt["cost"]) == ("calls of this agent per hour", {})
            assert receipt["due"].endswith(":00:00Z")
            assert not told["isError"]
            for part in ("calls of this agent per hour", receipt["due"], receipt["call_id"], "remit.undo"):
                assert part in told["content"][0]["text"]
        assert len(remit.rows("SELECT id FROM calls")) == 1


@pytest.mark.parametrize("on_exceed", ["defer", "deny"])
async def test_what_no_window_can_ever_take_is_refused_at_once(tmp_path: Path, on_exceed: str) -> None:
    budget = a_budget(5, unit="eur_cent", on_exceed=on_exceed)
    priced = tools(send={"price": {"eur_cent": 6}})
    async with waiting(tmp_path, budget, tools=priced) as remit:
        outcome = await remit.call("shop.send", {"text": "much"})
        assert isinstance(outcome, Refused)
        assert (outcome.verdict.code, outcome.verdict.remedy) == ("budget_exhausted", Remedy.CHANGE)
        assert "can never take this call: it needs 6, and the limit is 5" in outcome.verdict.reason
        assert remit.source.effects("send") == []


async def test_what_waits_is_called_off_and_never_made(tmp_path: Path) -> None:
    async with waiting(tmp_path, a_budget(0)) as remit:
        call_id = (await waits(remit, client_key="k-1")).call_id
        done = await undo(call_id, a_principal(), "run-1", remit.on)
        assert isinstance(done, Done)
        raised(remit, 5)
        await later(remit)
        assert (sent(remit), remit.state(call_id)) == ([], "cancelled")
        await remit.done("shop.send", {"text": "late"}, client_key="k-1")
        verified(remit)


async def test_policy_decides_again_and_so_does_a_switch(tmp_path: Path) -> None:
    async with waiting(tmp_path, a_budget(0)) as remit:
        forbidden, stopped = (await waits(remit, "a")).call_id, (await waits(remit, "b")).call_id
        remit.use_policy(MAY_UNDO.replace(SENDS, ""))
        raised(remit, 5)
        await send_due(remit.on)
        assert why(remit, forbidden) == ("cancelled", "no_rule")
        remit.use_policy(MAY_UNDO)
        await remit.switch("kill", "all")
        await send_due(remit.on)
        assert why(remit, stopped) == ("cancelled", "stopped")
        assert sent(remit) == []


async def test_another_budget_that_refuses_by_then_calls_it_off(tmp_path: Path) -> None:
    daily = {"scope": "tenant", "unit": "calls", "window": "total", "limit": 2}
    async with waiting(tmp_path, a_budget(1), daily) as remit:
        await remit.done("shop.send", {"text": "a"})
        call_id = (await waits(remit)).call_id
        remit.clock.advance(s=3600)
        await remit.done("shop.send", {"text": "b"})
        await later(remit)
        assert why(remit, call_id) == ("cancelled", "budget_exhausted")
        # What no time can help does not begin to wait.
        assert isinstance(await remit.call("shop.send", {"text": "c"}), Refused)


async def test_what_does_not_fit_the_new_window_either_waits_on_and_not_for_ever(tmp_path: Path) -> None:
    async with waiting(tmp_path, a_budget(1, wait="2h")) as remit:
        await remit.done("shop.send", {"text": "a"})
        first, second, third = [(await waits(remit, text)).call_id for text in "bcd"]
        await later(remit)
        states = sorted(remit.state(call_id) for call_id in (first, second, third))
        assert states == ["scheduled", "scheduled", "succeeded"]
        await later(remit)
        await later(remit)
        ended = sorted(why(remit, call_id) for call_id in (first, second, third) if why(remit, call_id)[1])
        assert ended == [("cancelled", "waited_too_long")]
        assert len(sent(remit)) == 3
        verified(remit)


async def test_people_agree_before_it_waits_and_must_still_be_the_right_ones(tmp_path: Path) -> None:
    asks = MAY_UNDO.replace("shop.send, execute", "shop.send, recommend") + (
        "p, role:boss, acme, shop.send, approve, 1 == 1, allow\n"
    )
    async with waiting(tmp_path, a_budget(0), policy=asks) as remit:
        ids = []
        for text in ("a", "b"):
            pending = await remit.call("shop.send", {"text": text})
            assert isinstance(pending, Pending)
            await remit.vote(pending.approval_id)
            ids.append((await waits(remit, text)).call_id)
            assert ids[-1] == pending.call_id
        raised(remit, 5)
        await send_due(remit.on)
        remit.use_policy(asks.replace("g, user:bea, role:boss, acme\n", ""))
        await send_due(remit.on)
        assert [remit.state(call_id) for call_id in ids] == ["succeeded", "cancelled"]
        verified(remit)


async def test_a_budget_that_asks_people_asks_before_another_defers(tmp_path: Path) -> None:
    asks = {"scope": "tenant", "unit": "calls", "window": "total", "limit": 0, "on_exceed": "approve"}
    policy = MAY_UNDO + "p, role:boss, acme, shop.send, approve, 1 == 1, allow\n"
    async with waiting(tmp_path, a_budget(0), asks, policy=policy) as remit:
        pending = await remit.call("shop.send", {"text": "late"})
        assert isinstance(pending, Pending)
        await remit.vote(pending.approval_id)
        call_id = (await waits(remit)).call_id
        raised(remit, 1)
        await send_due(remit.on)
        assert remit.state(call_id) == "succeeded"


async def test_what_was_made_after_waiting_is_taken_back_by_its_own_way(tmp_path: Path) -> None:
    async with waiting(tmp_path, a_budget(1)) as remit:
        for name, value in (("look", {"value": 1}), ("set", {})):
            remit.source.on[name] = value
        await remit.done("shop.send", {"text": "a"})
        outcome = await remit.call("shop.set", {"thing": "pen", "value": 2})
        assert isinstance(outcome, Scheduled)
        await later(remit)
        row = remit.one("SELECT state, tool FROM undos WHERE call_id = ?", outcome.call_id)
        assert row == {"state": "ready", "tool": "shop.set"}
        done = await undo(outcome.call_id, a_principal(), "run-1", remit.on)
        assert isinstance(done, Done)
        assert [request.arguments["value"] for request in remit.source.effects("set")] == [2, 1]


async def test_what_lacks_facts_when_its_budget_can_take_it_waits_on_and_is_made_once(tmp_path: Path) -> None:
    facts = {"stock": {"call": "shop.look", "args": {"thing": "args.text"}}}
    async with waiting(tmp_path, tools=tools(send={"facts": facts})) as remit:
        await remit.done("shop.send", {"text": "first"})
        late = await waits(remit)
        remit.source.on["look"] = AdapterError("the source cannot be reached", no_effect=True)
        raised(remit, 2)
        await later(remit, s=1)
        await later(remit, s=1)
        assert remit.events(late.call_id) == ["call.scheduled", "call.postponed"]
        assert (remit.state(late.call_id), sent(remit)) == ("scheduled", ["first"])
        remit.source.on["look"] = {"left": 1}
        await later(remit, s=61)
        assert (remit.state(late.call_id), sent(remit)) == ("succeeded", ["first", "late"])
        verified(remit)


async def test_what_reads_or_must_not_be_stored_does_not_wait(tmp_path: Path) -> None:
    policy = MAY_UNDO + "p2, role:clerk, acme, shop.send, execute, 1 == 1, redact=args.text\n"
    async with waiting(tmp_path, a_budget(0), policy=policy) as remit:
        assert (await remit.refused("shop.look", {"thing": "pen"})).verdict.code == "budget_exhausted"
        assert (await remit.refused("shop.send", {"text": "x"})).verdict.code == "budget_exhausted"


async def test_no_more_wait_for_one_account_than_somebody_could_want(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remit.deferred._WAITING_MAX", 2)
    async with waiting(tmp_path, a_budget(0)) as remit:
        outcomes = await remit.together(*(remit.call("shop.send", {"text": text}) for text in "abc"))
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Refused", "Scheduled", "Scheduled"]


async def test_it_waits_through_the_death_of_its_process_and_is_sent_once_by_several(tmp_path: Path) -> None:
    clock, source = Clock(), ScriptedSource()
    async with waiting(tmp_path, a_budget(0), clock=clock, source=source) as remit:
        call_id = (await waits(remit)).call_id
        remit.die()
        async with (
            waiting(tmp_path, a_budget(5), clock=clock, source=source) as one,
            waiting(tmp_path, a_budget(5), clock=clock, source=source) as two,
        ):
            await one.together(*(send_due(each.on) for each in (one, two, one, two)))
            assert (one.state(call_id), sent(one)) == ("succeeded", ["late"])


async def test_over_mcp_it_waits_shows_in_the_status_and_is_called_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ScriptedSource()
    async with (
        served(tmp_path, monkeypatch, source, policy=MAY_UNDO, budgets=[a_budget(1)]) as remit,
        remit.client() as client,
    ):
        for text in ("now", "late", "never"):
            result = await client.call_tool("shop.send", {"text": text})
            assert not result.is_error
        assert "it waits" in texts(result)
        call_id = result.meta["dev.remit/receipt"]["call_id"]
        standing = (await client.call_tool("remit.status", {})).structured_content
        assert [each["tool"] for each in standing["held_back"]] == ["shop.send", "shop.send"]
        assert not (await client.call_tool("remit.undo", {"call_id": call_id})).is_error
        remit.clock.advance(s=3600)
        await until(lambda: len(source.sent) == 2)
        assert [request.arguments["text"] for request in source.sent] == ["now", "late"]


def test_tools_whose_calls_may_wait_promise_no_form_of_their_answers(tmp_path: Path) -> None:
    from tests.server.builders import SHOP, a_config

    from remit import catalog
    from remit_adapters.base import Offer

    offer = Offer(tools=tuple({**tool, "outputSchema": {"type": "object"}} for tool in SHOP.tools))
    budgets = [a_budget(1) | {"unit": "usd"}]
    config = a_config(
        tmp_path, tools=tools(send={"price": {"usd": 1}}, look={"price": {"usd": 1}}), budgets=budgets
    )
    shown = {name: tool.definition for name, tool in catalog.build(config, {"shop": offer}).tools.items()}
    promise = {name for name, definition in shown.items() if "outputSchema" in definition}
    assert promise == {"shop.look", "shop.buy", "shop.give_back", "shop.set"}
