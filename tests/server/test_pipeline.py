"""One call through the pipeline: what each verdict does, and what is recorded of each way to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from tests.server.builders import (
    POLICY,
    Gate,
    ScriptedSource,
    a_principal,
    a_remit,
    a_reply,
    held,
    kept_anywhere,
    tools,
    until,
)

from remit import verifying
from remit.calls import REDACTED
from remit.model import Done, Failed, InDoubt, Pending, Remedy
from remit.pipeline import govern
from remit.records import open_records
from remit.undo import undo
from remit_adapters.base import AdapterError, Caller, Offer, Operation, Reply, Request
from remit_rbac import Rung, load_text

BUDGET = {"scope": "agent", "unit": "calls", "window": "total", "limit": 10}
PRICED = {"effect": "irreversible", "price": {"usd": {"estimate": "args.price", "actual": "result.paid"}}}
BUY = {"thing": "pen", "price": 5}


# Verdicts.


async def test_an_allowed_call_is_made_once_and_recorded_with_its_answer(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        outcome = await remit.done("shop.buy", BUY)
        assert outcome.reply.body["structuredContent"] == {"order": "o-1"}
        assert outcome.cost == {"calls": 1}
        (request,) = remit.source.sent
        assert (request.operation, request.name, request.arguments) == (Operation.TOOL, "buy", BUY)
        assert request.key == outcome.call_id
        record = remit.record(outcome.call_id)
        assert (record["state"], record["verdict"], record["code"]) == ("succeeded", "execute", "allowed")
        assert "policy.csv" in record["policy_rows"]
        assert remit.events(outcome.call_id) == ["call.dispatched", "call.succeeded"]


async def test_advice_says_what_would_happen_and_nothing_does(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        outcome = await remit.refused("shop.buy", {"thing": "car", "price": 4000})
        assert outcome.verdict.rung is Rung.ADVISE
        assert outcome.advice is not None
        assert outcome.advice["cost"] == {"calls": 1}
        assert outcome.advice["undo"]["tool"] == "shop.give_back"
        assert remit.source.sent == []
        assert remit.state(outcome.call_id) == "denied"


async def test_a_denied_call_reaches_nothing_and_costs_nothing(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[BUDGET]) as remit:
        outcome = await remit.refused("shop.buy", {"thing": "house", "price": 90_000})
        assert (outcome.verdict.rung, outcome.verdict.code) == (Rung.DENY, "no_rule")
        assert outcome.verdict.remedy is Remedy.CHANGE
        assert remit.source.sent == []
        assert remit.events(outcome.call_id) == ["call.denied"]
        assert remit.rows("SELECT * FROM holds") == []


@pytest.mark.parametrize(
    ("rule", "remedy"),
    [
        ("execute, r.args.price < 5, allow", Remedy.CHANGE),
        ("execute, r.ctx.price.calls < 1, allow", Remedy.CHANGE),
        ("execute, r.ctx.undo_proven, allow", Remedy.ASK),
        ("execute, r.args.price < 5 && r.ctx.undo_proven, allow", Remedy.ASK),
        ("approve, 1 == 1, allow", Remedy.STOP),
    ],
)
async def test_an_agent_is_told_to_change_arguments_only_where_others_could_help(
    tmp_path: Path, rule: str, remedy: Remedy
) -> None:
    policy = "g3, agent:bot, user:ann, acme\n" + f"p, *, acme, shop.buy, {rule}\n"
    async with a_remit(tmp_path, policy=policy) as remit:
        verdict = (await remit.refused("shop.buy", {"thing": "pen", "price": 5})).verdict
        assert (verdict.code, verdict.remedy) == ("no_rule", remedy)
        assert ("Change them" in verdict.reason) == (remedy is Remedy.CHANGE)
        assert "undo_proven" not in verdict.reason


async def test_an_agent_without_delegation_is_denied(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        outcome = await remit.refused("shop.look", {"thing": "pen"}, principal=a_principal(user="user:bea"))
        assert outcome.verdict.code == "no_delegation"


async def test_a_rule_that_cannot_be_evaluated_denies(tmp_path: Path) -> None:
    policy = POLICY + "p, role:clerk, acme, shop.send, execute, r.args.missing > 1, deny\n"
    async with a_remit(tmp_path, policy=policy) as remit:
        outcome = await remit.refused("shop.send", {"text": "hi"})
        assert outcome.verdict.rung is Rung.DENY
        assert "missing" in remit.record(outcome.call_id)["policy_rows"]
        assert remit.source.sent == []


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"thing": "pen"},
        {"thing": "pen", "price": "5"},
        {"thing": "pen", "price": True},
        {"thing": "pen", "price": 5.5},
        {"thing": "pen", "price": None},
        {"thing": "pen", "price": 5, "extra": 1},
        {"thing": ["pen"], "price": 5},
    ],
)
async def test_arguments_that_do_not_fit_are_refused_before_policy_sees_them(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    async with a_remit(tmp_path) as remit:
        outcome = await remit.refused("shop.buy", arguments)
        assert outcome.verdict.code == "invalid_arguments"
        assert remit.source.sent == []


async def test_a_price_that_is_no_whole_number_refuses_the_call(tmp_path: Path) -> None:
    rules = tools(send={"price": {"usd": "args.text"}})
    async with a_remit(tmp_path, tools=rules) as remit:
        outcome = await remit.refused("shop.send", {"text": "NaN"})
        assert outcome.verdict.code == "no_price"
        assert remit.source.sent == []


async def test_what_the_agent_claims_is_recorded_and_buys_nothing(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        outcome = await remit.refused("shop.buy", {"thing": "x", "price": 9999}, claim={"approved": True})
        assert orjson.loads(remit.record(outcome.call_id)["claim"]) == {"approved": True}


# Ways to end.


async def test_an_error_of_the_source_that_says_nothing_of_effect_is_paid_for(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[BUDGET], tools=tools(send=PRICED)) as remit:
        remit.source.on["send"] = a_reply("no", is_error=True)
        outcome = await remit.done("shop.buy", BUY)
        remit.source.on["buy"] = a_reply("no stock", is_error=True)
        outcome = await remit.done("shop.buy", BUY)
        assert outcome.reply.is_error
        assert outcome.undo is None
        record = remit.record(outcome.call_id)
        assert (record["state"], record["error_code"], record["error"]) == (
            "failed",
            "tool_error",
            "no stock",
        )
        assert remit.one("SELECT state FROM undos WHERE call_id = ?", outcome.call_id)["state"] == "void"


@pytest.mark.usefixtures("every_database")
async def test_whatever_text_a_source_says_its_error_in_is_recorded(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=tools(send={"resource": "args.text"})) as remit:
        remit.source.on["send"] = a_reply("broken:\0\0 \\u0000 \\\0", is_error=True)
        outcome = await remit.done("shop.send", {"text": "a\0b"}, claim={"why": "c\0d"})
        record = remit.record(outcome.call_id)
        assert record["state"] == "failed"
        assert record["error"].replace("\ufffd", "\0") == "broken:\0\0 \\u0000 \\\0"
        assert orjson.loads(record["claim"]) == {"why": "c\0d"}
        remit.source.on["send"] = AdapterError("The line\0 broke.", no_effect=False)
        outcome = await remit.call("shop.send", {"text": "c"})
        assert remit.record(outcome.call_id)["state"] == "in_doubt"
        with open_records(remit.path) as records:
            assert [*verifying.verify(records, payloads=True)] == []


@pytest.mark.parametrize(
    ("on_error", "cost"), [("unknown", {"calls": 1, "usd": 7}), ("no_effect", {"calls": 1})]
)
async def test_an_error_answer_costs_what_it_may_have_done(
    tmp_path: Path, on_error: str, cost: dict[str, int]
) -> None:
    rules = tools(buy={"price": {"usd": "args.price"}, "on_error": on_error})
    budgets = [BUDGET, {"scope": "agent", "unit": "usd", "window": "total", "limit": 100}]
    async with a_remit(tmp_path, tools=rules, budgets=budgets) as remit:
        remit.source.on["buy"] = a_reply("no", is_error=True)
        outcome = await remit.done("shop.buy", {"thing": "pen", "price": 7})
        assert outcome.cost == cost
        posted = {row["unit"]: row["posted"] for row in remit.rows("SELECT unit, posted FROM accounts")}
        assert posted == {"usd": 0, **cost}


async def test_a_text_that_the_operator_knows_to_be_a_failure_is_one(tmp_path: Path) -> None:
    rules = tools(send={"failed_when": "startswith(text, 'Error')", "price": {"usd": 3}})
    async with a_remit(tmp_path, tools=rules) as remit:
        remit.source.on["send"] = "Error: no route"
        outcome = await remit.done("shop.send", {"text": "hi"})
        assert remit.state(outcome.call_id) == "failed"
        assert outcome.cost == {"calls": 1}
        remit.source.on["send"] = "sent"
        outcome = await remit.done("shop.send", {"text": "hi"})
        assert remit.state(outcome.call_id) == "succeeded"
        assert outcome.cost == {"calls": 1, "usd": 3}


async def test_a_failure_rule_that_cannot_be_evaluated_leaves_the_answer_as_it_is(tmp_path: Path) -> None:
    rules = tools(send={"failed_when": "result.status == 'bad'"})
    async with a_remit(tmp_path, tools=rules) as remit:
        outcome = await remit.done("shop.send", {"text": "hi"})
        assert remit.state(outcome.call_id) == "succeeded"


@pytest.mark.parametrize("tool", ["shop.look", "shop.send"])
async def test_an_error_that_certainly_did_nothing_frees_what_was_held(tmp_path: Path, tool: str) -> None:
    async with a_remit(tmp_path, budgets=[BUDGET]) as remit:
        error = AdapterError("It is down.", no_effect=True, code="source_down")
        remit.source.on |= {"look": error, "send": error}
        outcome = await remit.call(tool, {"thing": "pen"} if tool == "shop.look" else {"text": "hi"})
        assert isinstance(outcome, Failed)
        assert remit.state(outcome.call_id) == "failed"
        assert remit.one("SELECT held, posted FROM accounts") == {"held": 0, "posted": 0}


async def test_an_error_of_unknown_effect_leaves_a_write_in_doubt_and_a_read_failed(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[BUDGET]) as remit:
        error = AdapterError(
            "The line broke.", no_effect=False, code="source_lost", rpc={"code": 1, "message": "x"}
        )
        remit.source.on |= {"look": error, "send": error}
        read = await remit.call("shop.look", {"thing": "pen"})
        assert isinstance(read, Failed)
        write = await remit.call("shop.send", {"text": "hi"})
        assert isinstance(write, InDoubt)
        assert write.rpc == {"code": 1, "message": "x"}
        record = remit.record(write.call_id)
        assert (record["state"], record["error_code"]) == ("in_doubt", "source_lost")
        assert remit.events(write.call_id) == ["call.dispatched", "call.in_doubt"]
        assert remit.one("SELECT held, posted FROM accounts") == {"held": 1, "posted": 0}


async def test_a_source_that_does_not_answer_in_time_leaves_a_write_in_doubt(tmp_path: Path) -> None:
    rules = tools(send={"timeout": "1s"}, look={"timeout": "1s"})
    async with a_remit(tmp_path, tools=rules, budgets=[BUDGET]) as remit:
        gate = Gate()
        remit.source.on |= {"send": gate, "look": gate}
        outcomes: list[Any] = []

        async def make(tool: str, arguments: Any) -> None:
            outcomes.append(await remit.call(tool, arguments))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(make, "shop.send", {"text": "hi"})
            tasks.start_soon(make, "shop.look", {"thing": "pen"})
        assert {(type(outcome), outcome.code) for outcome in outcomes} == {
            (InDoubt, "timeout"),
            (Failed, "timeout"),
        }
        assert gate.ended == ["cancelled", "cancelled"]


async def test_the_source_is_told_how_long_it_has(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=tools(send={"timeout": "7s"})) as remit:
        await remit.done("shop.send", {"text": "hi"})
        assert 6.9 < remit.source.sent[0].deadline_s <= 7


@pytest.mark.parametrize(("tool", "arguments", "state"), [
    ("shop.send", {"text": "hi"}, "in_doubt"), ("shop.look", {"thing": "pen"}, "failed")
])  # fmt: skip
async def test_a_client_that_leaves_in_the_middle_leaves_a_record(
    tmp_path: Path, tool: str, arguments: dict[str, Any], state: str
) -> None:
    async with a_remit(tmp_path, budgets=[BUDGET]) as remit:
        gate = Gate()
        remit.source.on |= {"send": gate, "look": gate}
        call = remit.a_call(tool, arguments)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(govern, call, remit.on)
            await remit.source.reached()
            tasks.cancel_scope.cancel()
        assert gate.ended == ["cancelled"]
        assert remit.state(call.id) == state
        assert remit.one("SELECT held FROM accounts") == {"held": 1 if state == "in_doubt" else 0}


async def test_a_client_that_leaves_while_the_intent_is_written_has_sent_nothing(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[BUDGET]) as remit:
        calls = [remit.a_call("shop.send", {"text": str(n)}) for n in range(5)]
        async with anyio.create_task_group() as tasks:
            with held(remit.path):
                for call in calls:
                    tasks.start_soon(govern, call, remit.on)
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
        assert remit.source.sent == []
        for call in calls:
            assert remit.state(call.id) == "failed"
            assert remit.events(call.id) == ["call.dispatched", "call.failed"]
        assert remit.one("SELECT held, posted FROM accounts") == {"held": 0, "posted": 0}


async def test_a_client_that_leaves_at_any_moment_leaves_nothing_open(tmp_path: Path) -> None:
    rules = tools(buy={"before": {"call": "shop.look", "args": {"thing": "args.thing"}}})
    async with a_remit(tmp_path, budgets=[{**BUDGET, "limit": 1000}], tools=rules) as remit:

        async def a_while(request: Request, caller: Caller) -> Reply:
            await anyio.sleep(0.0005)
            return a_reply({"order": "o-1"})

        remit.source.on |= {"look": a_while, "buy": a_while}
        for n in range(40):
            with anyio.move_on_after(n * 0.0004):
                await remit.call("shop.buy", {"thing": "pen", "price": n})
        for row in remit.rows("SELECT id, state FROM calls WHERE tool = 'shop.buy'"):
            sent = [request for request in remit.source.effects("buy") if request.key == row["id"]]
            assert row["state"] in (("succeeded", "in_doubt") if sent else ("failed", "denied"))


async def test_a_bug_of_an_adapter_is_raised_and_leaves_the_call_in_doubt(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        remit.source.on["send"] = ValueError("secret internals")
        call = remit.a_call("shop.send", {"text": "hi"})
        with pytest.raises(ValueError, match="internals"):
            await govern(call, remit.on)
        record = remit.record(call.id)
        assert record["state"] == "in_doubt"
        assert "internals" not in str(record)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"content": 5},
        {"content": True},
        {"content": {"type": "text"}},
        {"content": None, "structuredContent": []},
        {"content": [1, None, "x", {"type": "text"}, {"type": "text", "text": 7}]},
        {"contents": 3.5},
        {"content": [{"type": "text", "text": "{" * 2000}]},
        {"content": [{"type": "text", "text": "[" * 100_000}]},
        {"structuredContent": "text", "_meta": 7, "isError": "yes"},
    ],
)
async def test_whatever_a_source_answers_the_call_is_settled(tmp_path: Path, body: dict[str, Any]) -> None:
    rules = tools(
        send={"price": {"usd": {"estimate": 2, "actual": "result.paid"}}, "failed_when": "text == 'x'"}
    )
    async with a_remit(tmp_path, tools=rules, budgets=[BUDGET]) as remit:
        remit.source.on |= {"send": Reply(body=body), "buy": Reply(body=body), "look": Reply(body=body)}
        sent = await remit.done("shop.send", {"text": "hi"})
        assert remit.state(sent.call_id) == "succeeded"
        bought = await remit.done("shop.buy", BUY)
        assert bought.undo is None
        assert (await remit.done("shop.look", {"thing": "pen"})).reply.body == body


async def test_a_source_that_asks_back_has_done_nothing_to_take_back(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        asks = {"resultType": "input_required", "requestState": "s", "inputRequests": {}}
        remit.source.on["buy"] = Reply(body=asks, kind="input_required")
        first = await remit.done("shop.buy", BUY)
        assert first.undo is None
        remit.source.on["buy"] = {"order": "o-1"}
        second = await remit.done("shop.buy", BUY, input_responses={"a": {}}, request_state="s")
        assert second.undo is not None
        assert remit.source.sent[1].request_state == "s"
        assert first.call_id != second.call_id


# The same effect twice.


async def test_the_same_key_is_answered_from_the_record(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[BUDGET]) as remit:
        remit.source.on["send"] = {"id": 1}
        first = await remit.done("shop.send", {"text": "hi"}, client_key="k")
        again = await remit.done("shop.send", {"text": "hi"}, client_key="k")
        assert again.repeated
        assert again.call_id == first.call_id
        assert again.reply.body["structuredContent"] == {"id": 1}
        assert again.cost == {}
        assert len(remit.source.sent) == 1
        assert remit.one("SELECT posted FROM accounts") == {"posted": 1}


async def test_an_error_answer_is_repeated_as_one(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        remit.source.on["send"] = a_reply("no", is_error=True)
        await remit.done("shop.send", {"text": "hi"}, client_key="k")
        assert (await remit.done("shop.send", {"text": "hi"}, client_key="k")).reply.is_error
        assert len(remit.source.sent) == 1


async def test_a_repeat_is_answered_also_when_its_call_has_left_nothing_to_replace(tmp_path: Path) -> None:
    there = {"pen": 1}

    async def look(request: Request, caller: Caller) -> Reply:
        return a_reply({"value": there["pen"]}) if there else a_reply("There is no pen.", is_error=True)

    async def put_away(request: Request, caller: Caller) -> Reply:
        return a_reply({"was": there.pop("pen")})

    async with a_remit(tmp_path) as remit:
        remit.source.on.update(look=look, set=put_away)
        first = await remit.done("shop.set", {"thing": "pen", "value": 0}, client_key="k")
        again = await remit.done("shop.set", {"thing": "pen", "value": 0}, client_key="k")
        assert (again.call_id, again.repeated) == (first.call_id, True)
        assert len(remit.source.effects("set")) == 1
        other = await remit.refused("shop.set", {"thing": "pen", "value": 0}, client_key="other")
        assert other.verdict.code == "no_before_image"


@pytest.mark.parametrize("rung", ["execute", "recommend"])
async def test_a_repeat_is_answered_also_when_its_call_has_changed_what_policy_goes_by(
    tmp_path: Path, rung: str
) -> None:
    looked = {"call": "shop.look", "args": {"thing": "args.thing"}}
    row = f"p, role:clerk, acme, shop.buy, {rung}, r.ctx.facts.item.left > 0, allow\n"
    policy = "".join(line for line in POLICY.splitlines(True) if "shop.buy, " not in line) + row
    policy += "p, role:boss, acme, shop.buy, approve, 1 == 1, allow\n"
    left = [1]

    async def buy(request: Request, caller: Caller) -> Reply:
        return a_reply({"order": f"o-{left.pop()}"})

    async def look(request: Request, caller: Caller) -> Reply:
        return a_reply({"left": len(left)})

    async with a_remit(tmp_path, policy=policy, tools=tools(buy={"facts": {"item": looked}})) as remit:
        remit.source.on.update(look=look, buy=buy)
        if rung == "recommend":
            pending = await remit.call("shop.buy", BUY, client_key="k")
            assert isinstance(pending, Pending)
            await remit.vote(pending.approval_id)
        first = await remit.done("shop.buy", BUY, client_key="k")
        assert (await remit.refused("shop.buy", BUY)).verdict.code == "no_rule"
        again = await remit.done("shop.buy", BUY, client_key="k")
        assert (again.call_id, again.repeated) == (first.call_id, True)
        assert again.reply.body["structuredContent"] == {"order": "o-1"}


async def test_who_has_lost_a_tool_or_was_stopped_is_told_nothing_of_what_it_answered(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.send", {"text": "hi"}, client_key="k")
        await remit.switch("safe", "all")
        assert (await remit.refused("shop.send", {"text": "hi"}, client_key="k")).verdict.code == "safe_mode"
        await remit.switch("safe", "all", on=False)
        remit.use_policy(POLICY.replace("shop.send", "shop.other"))
        assert (await remit.refused("shop.send", {"text": "hi"}, client_key="k")).verdict.code == "no_rule"
        remit.use_policy(POLICY.replace("g3, agent:bot", "g3, agent:cat"))
        again = await remit.refused("shop.send", {"text": "hi"}, client_key="k")
        assert again.verdict.code == "no_delegation"


async def test_a_key_belongs_to_its_call_and_its_agent(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.send", {"text": "hi"}, client_key="k")
        assert (await remit.refused("shop.send", {"text": "ho"}, client_key="k")).verdict.code == "key_reused"
        other = await remit.done(
            "shop.send", {"text": "hi"}, client_key="k", principal=a_principal("agent:other")
        )
        assert not other.repeated
        assert len(remit.source.sent) == 2


async def test_the_same_key_at_the_same_time_makes_one_effect(tmp_path: Path) -> None:
    async with a_remit(tmp_path, limits={"per_agent": 100}) as remit:
        outcomes = await remit.together(
            *(remit.call("shop.send", {"text": "hi"}, client_key="k") for _ in range(40))
        )
        assert len(remit.source.sent) == 1
        for outcome in outcomes:
            assert isinstance(outcome, Done) or outcome.verdict.code == "under_way"
        assert remit.one("SELECT COUNT(*) AS n FROM calls WHERE state = 'succeeded'")["n"] == 1


async def test_a_key_whose_call_certainly_did_nothing_may_be_tried_again(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        remit.source.on["send"] = AdapterError("It is down.", no_effect=True)
        assert isinstance(await remit.call("shop.send", {"text": "hi"}, client_key="k"), Failed)
        del remit.source.on["send"]
        outcome = await remit.done("shop.send", {"text": "hi"}, client_key="k")
        assert not outcome.repeated


async def test_a_key_of_a_refused_call_is_free(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.switch("kill", "all")
        await remit.refused("shop.send", {"text": "hi"}, client_key="k")
        await remit.switch("kill", "all", on=False)
        await remit.done("shop.send", {"text": "hi"}, client_key="k")


async def test_a_key_on_a_read_does_not_stop_it_from_reading_again(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        remit.source.on["look"] = {"value": 1}
        await remit.done("shop.look", {"thing": "pen"}, client_key="k")
        remit.source.on["look"] = {"value": 2}
        again = await remit.done("shop.look", {"thing": "pen"}, client_key="k")
        assert again.reply.body["structuredContent"] == {"value": 2}


async def test_an_equal_call_is_not_sent_while_one_is_in_doubt(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        remit.source.on["send"] = AdapterError("The line broke.", no_effect=False)
        await remit.call("shop.send", {"text": "hi"})
        del remit.source.on["send"]
        for key in (None, "k"):
            outcome = await remit.refused("shop.send", {"text": "hi"}, client_key=key)
            assert outcome.verdict.code == "in_doubt"
        assert len(remit.source.sent) == 1
        await remit.done("shop.send", {"text": "another"})
        await remit.done("shop.send", {"text": "hi"}, principal=a_principal("agent:other"))


async def test_a_key_whose_call_is_in_doubt_is_not_sent_again(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        remit.source.on["send"] = AdapterError("The line broke.", no_effect=False)
        await remit.call("shop.send", {"text": "hi"}, client_key="k")
        outcome = await remit.refused("shop.send", {"text": "hi"}, client_key="k")
        assert outcome.verdict.code == "in_doubt"
        assert len(remit.source.sent) == 1


async def test_within_the_repeat_window_an_equal_call_is_answered_from_the_record(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=tools(send={"repeat_window": "60s"})) as remit:
        first = await remit.done("shop.send", {"text": "hi"})
        remit.clock.advance(s=59)
        assert (await remit.done("shop.send", {"text": "hi"})).call_id == first.call_id
        remit.clock.advance(s=2)
        assert not (await remit.done("shop.send", {"text": "hi"})).repeated
        assert len(remit.source.sent) == 2


async def test_what_was_taken_back_may_be_done_again_at_once(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=tools(buy={"repeat_window": "60s"})) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        first = await remit.done("shop.buy", BUY)
        await undo(first.call_id, a_principal(), "run-1", remit.on)
        second = await remit.done("shop.buy", BUY)
        assert not second.repeated
        assert (await remit.done("shop.buy", BUY)).call_id == second.call_id
        assert len(remit.source.effects("buy")) == 2


async def test_within_the_repeat_window_equal_calls_at_the_same_time_make_one_effect(tmp_path: Path) -> None:
    limits = {"per_agent": 100}
    async with a_remit(tmp_path, tools=tools(send={"repeat_window": "60s"}), limits=limits) as remit:
        outcomes = await remit.together(*(remit.call("shop.send", {"text": "hi"}) for _ in range(40)))
        assert len(remit.source.sent) == 1
        for outcome in outcomes:
            assert isinstance(outcome, Done) or outcome.verdict.code == "under_way"


async def test_without_a_window_an_equal_call_is_another_call(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.send", {"text": "hi"})
        await remit.done("shop.send", {"text": "hi"})
        assert len(remit.source.sent) == 2


async def test_the_source_gets_the_calls_id_as_its_key_where_it_takes_one(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=tools(send={"idempotency_arg": "key"})) as remit:
        outcome = await remit.done("shop.send", {"text": "hi"})
        assert remit.source.sent[0].arguments == {"text": "hi", "key": outcome.call_id}


# What a call carries.


async def test_what_policy_orders_to_redact_is_stored_nowhere(tmp_path: Path) -> None:
    policy = POLICY + "p2, role:clerk, acme, shop.send, execute, 1 == 1, redact=args.text\n"
    async with a_remit(tmp_path, policy=policy) as remit:
        outcome = await remit.done("shop.send", {"text": "hunter2"})
        assert remit.source.sent[0].arguments == {"text": "hunter2"}
        assert remit.carried(outcome.call_id, "arguments") == {"text": REDACTED}
    assert not kept_anywhere(tmp_path, b"hunter2")


@pytest.mark.parametrize("lines", [[{"card": "hunter2"}], "hunter2", '{"card": "hunter2"}'])
async def test_what_lies_where_no_redaction_can_look_is_struck_out_whole(tmp_path: Path, lines: Any) -> None:
    policy = POLICY + "p2, role:clerk, acme, shop.send, execute, 1 == 1, redact=args.lines.card.number\n"
    schema = {"type": "object", "properties": {"text": {"type": "string"}, "lines": {}}}
    source = ScriptedSource(offer=Offer(tools=({"name": "send", "inputSchema": schema},)))
    tools = {"shop.send": {"effect": "irreversible"}}
    async with a_remit(tmp_path, policy=policy, source=source, tools=tools) as remit:
        outcome = await remit.done("shop.send", {"text": "hi", "lines": lines})
        assert remit.carried(outcome.call_id, "arguments") == {"text": "hi", "lines": REDACTED}
    assert not kept_anywhere(tmp_path, b"hunter2")


async def test_what_policy_orders_to_redact_is_not_kept_for_the_undo_or_the_approver(tmp_path: Path) -> None:
    policy = POLICY + (
        "p2, role:clerk, acme, shop.buy, execute, 1 == 1, redact=args.thing\n"
        "p2, role:clerk, acme, shop.buy, recommend, 1 == 1, redact=args.thing\n"
    )
    async with a_remit(tmp_path, policy=policy, tools=tools(buy={"resource": "'things'"})) as remit:
        pending = await remit.call("shop.buy", {"thing": "hunter2", "price": 500})
        assert isinstance(pending, Pending)
        await remit.vote(pending.approval_id)
        outcome = await remit.done("shop.buy", {"thing": "hunter2", "price": 500})
        assert outcome.call_id == pending.call_id
    assert not kept_anywhere(tmp_path, b"hunter2")


async def test_the_rules_see_what_the_server_knows(tmp_path: Path) -> None:
    policy = POLICY + (
        "p, role:clerk, acme, shop.send, execute, r.ctx.effect != 'irreversible' || r.ctx.undo_ready ||"
        " r.ctx.price.calls != 1 || r.ctx.env != 'prod' || r.ctx.run.id != 'run-1', deny\n"
    )
    async with a_remit(tmp_path, policy=policy, context={"env": "prod"}) as remit:
        await remit.done("shop.send", {"text": "hi"})
        assert (
            await remit.refused("shop.send", {"text": "hi"}, run="run-2")
        ).verdict.code == "denied_by_rule"


async def test_a_call_is_decided_by_one_policy_though_it_is_replaced_meanwhile(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        before, after = remit.on.policy.version, load_text(POLICY.replace("<= 100,", "<= 1,")).version
        gate = Gate({"order": "o-1"})
        remit.source.on["buy"] = gate
        outcomes: list[Any] = []

        async def buy() -> None:
            outcomes.append(await remit.call("shop.buy", BUY))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(buy)
            await remit.source.reached()
            remit.use_policy(POLICY.replace("<= 100,", "<= 1,"))
            gate.open()
        assert remit.record(outcomes[0].call_id)["policy_version"] == before
        refused = await remit.call("shop.buy", BUY)
        assert isinstance(refused, Pending)
        assert remit.record(refused.call_id)["policy_version"] == after


async def test_a_policy_that_is_replaced_before_the_call_is_let_out_decides_it(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:

        async def replaced() -> None:
            remit.use_policy(POLICY.replace("<= 100,", "<= 1,"))

        outcome, _ = await remit.together(remit.call("shop.buy", BUY), replaced())
        assert isinstance(outcome, Pending)
        assert remit.record(outcome.call_id)["policy_version"] == remit.on.policy.version
        assert remit.source.sent == []


async def test_a_policy_that_never_rests_lets_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_remit(tmp_path) as remit:
        admit = remit.on.journal.admit

        async def swapped(*arguments: Any, **more: Any) -> Any:
            limit = 100 if "<= 99," in str(remit.on.policy.rules["p"]) else 99
            remit.use_policy(POLICY.replace("<= 100,", f"<= {limit},"))
            return await admit(*arguments, **more)

        monkeypatch.setattr(remit.on.journal, "admit", swapped)
        assert (await remit.refused("shop.buy", BUY)).verdict.code == "too_many_at_once"
        assert remit.source.sent == []


# Too much at once.


async def test_an_agent_with_too_many_calls_is_told_to_wait(tmp_path: Path) -> None:
    async with a_remit(tmp_path, limits={"per_agent": 2}) as remit:
        gate = Gate()
        remit.source.on["look"] = gate
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(remit.call, "shop.look", {"thing": "pen"})
            await remit.source.reached(2)
            assert (await remit.refused("shop.look", {"thing": "pen"})).verdict.code == "too_many_at_once"
            other = remit.a_call("shop.send", {"text": "hi"}, principal=a_principal("agent:other"))
            assert isinstance(await govern(other, remit.on), Done)
            gate.open()
        await remit.done("shop.look", {"thing": "pen"})
        assert remit.on.in_flight == {}


async def test_a_source_takes_only_so_many_calls_at_once(tmp_path: Path) -> None:
    async with a_remit(tmp_path, limits={"per_source": 1}) as remit:
        gate = Gate()
        remit.source.on["look"] = gate
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(remit.call, "shop.look", {"thing": "pen"})
            await remit.source.reached()
            other = await remit.refused("shop.send", {"text": "hi"}, principal=a_principal("agent:other"))
            assert other.verdict.code == "too_many_at_once"
            gate.open()


async def test_a_plan_is_made_within_the_limit_of_the_call_that_it_serves(tmp_path: Path) -> None:
    async with a_remit(tmp_path, limits={"per_agent": 1, "per_source": 1}) as remit:
        remit.source.on["look"] = {"value": 1}
        await remit.done("shop.set", {"thing": "lamp", "value": 2})


# Switches.


@pytest.mark.parametrize(
    ("scope", "target", "tenant"),
    [
        ("all", "", ""),
        ("tenant", "acme", ""),
        ("agent", "agent:bot", "acme"),
        ("user", "user:ann", ""),
        ("run", "run-1", ""),
        ("tool", "shop.send", ""),
        ("source", "shop", "acme"),
    ],
)
async def test_the_kill_switch_stops_what_it_covers(
    tmp_path: Path, scope: str, target: str, tenant: str
) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.switch("kill", scope, target, tenant)
        outcome = await remit.refused("shop.send", {"text": "hi"})
        assert (outcome.verdict.code, outcome.verdict.remedy) == ("stopped", Remedy.STOP)
        assert remit.source.sent == []
        await remit.switch("kill", scope, target, tenant, on=False)
        await remit.done("shop.send", {"text": "hi"})


async def test_a_switch_of_another_tenant_or_agent_stops_nothing_here(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.switch("kill", "all", tenant="other")
        await remit.switch("kill", "agent", "agent:other")
        await remit.done("shop.send", {"text": "hi"})


async def test_safe_mode_lets_reads_and_undoing_through(tmp_path: Path) -> None:
    from remit.undo import undo

    async with a_remit(tmp_path) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        bought = await remit.done("shop.buy", BUY)
        await remit.switch("safe", "all")
        assert (await remit.refused("shop.buy", BUY)).verdict.code == "safe_mode"
        await remit.done("shop.look", {"thing": "pen"})
        assert isinstance(await undo(bought.call_id, a_principal(), "run-1", remit.on), Done)


async def test_undoing_is_possible_while_everything_is_stopped(tmp_path: Path) -> None:
    from remit.undo import undo

    async with a_remit(tmp_path) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        bought = await remit.done("shop.buy", BUY)
        await remit.switch("kill", "all")
        assert isinstance(await undo(bought.call_id, a_principal(), "run-1", remit.on), Done)


async def test_a_switch_between_deciding_and_letting_out_stops_the_call(tmp_path: Path) -> None:
    """The before-image is read between the two: there the switch is thrown."""
    async with a_remit(tmp_path) as remit:

        async def throw(request: Request, caller: Caller) -> Reply:
            await remit.switch("safe", "all")
            return a_reply({"value": 1})

        remit.source.on["look"] = throw
        outcome = await remit.refused("shop.set", {"thing": "lamp", "value": 2})
        assert outcome.verdict.code == "safe_mode"
        assert remit.source.effects("set") == []


async def test_a_switch_in_the_very_transaction_before_stops_the_call(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        _, outcome = await remit.together(
            remit.switch("kill", "all"), remit.call("shop.send", {"text": "hi"})
        )
        assert outcome.verdict.code == "stopped"
        assert remit.source.sent == []


async def test_a_switch_stops_what_still_waits_for_its_source(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit, a_remit(tmp_path, clock=remit.clock) as other:

        async def comes_back(request: Request, caller: Caller) -> Reply:
            """The source was away, and meanwhile somebody stops everything."""
            await other.switch("kill", "all")
            await until(lambda: remit.on.journal.switches)
            request.before_sent()
            pytest.fail("it was sent")

        remit.source.on["send"] = comes_back
        outcome = await remit.refused("shop.send", {"text": "hi"})
        assert (outcome.verdict.code, outcome.verdict.remedy) == ("stopped", Remedy.STOP)
        assert remit.state(outcome.call_id) == "failed"
        assert remit.one("SELECT COUNT(*) AS held FROM holds WHERE state = 'held'") == {"held": 0}


async def test_a_switch_survives_a_restart(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.switch("kill", "all")
    async with a_remit(tmp_path) as remit:
        assert (await remit.refused("shop.look", {"thing": "pen"})).verdict.code == "stopped"


async def test_a_switch_thrown_by_another_process_is_seen(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as one, a_remit(tmp_path) as other:
        await one.switch("kill", "all")
        assert (await other.refused("shop.send", {"text": "hi"})).verdict.code == "stopped"
        await one.switch("kill", "all", on=False)
        await until(lambda: not other.on.journal.switches)
        await other.done("shop.send", {"text": "hi"})
