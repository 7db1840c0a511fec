"""Rules that need more than the arguments: what is looked up, what is derived, and what that may cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.server.builders import (
    POLICY,
    Gate,
    Remit,
    ScriptedSource,
    a_config,
    a_definition,
    a_principal,
    a_remit,
    a_reply,
    kept_anywhere,
    tools,
    until,
)
from tests.server.fronts import served

from remit import audit
from remit.app import App
from remit.config import Config
from remit.derivations import compile_derivation
from remit.model import Done, Pending
from remit.pipeline import Decision, informed
from remit.records import open_records
from remit_adapters.base import AdapterError, Caller, Offer, Reply, Request
from remit_rbac import EvaluationError, Rung

ROLES = """\
g, agent:bot, role:clerk, acme
g, user:ann, role:clerk, acme
g, user:bea, role:boss, acme
g3, agent:bot, user:ann, acme
p, role:boss, acme, shop.*, approve, 1 == 1, allow
"""
PEN = {"thing": "pen", "price": 5}
ITEM = {"item": {"call": "shop.look", "args": {"thing": "args.thing"}}}
SENT = {"text": '{"to": "ann", "copies": 2}'}


def rule(condition: str, tool: str = "buy", action: str = "execute", effect: str = "allow") -> str:
    return f"p, role:clerk, acme, shop.{tool}, {action}, {condition}, {effect}\n"


ON_SALE = ROLES + rule("r.ctx.facts.item.status == 'on sale'")


def on_item(**more: Any) -> dict[str, Any]:
    return tools(buy={"facts": ITEM, **more})


def reads(remit: Remit) -> list[dict[str, Any]]:
    return remit.rows("SELECT * FROM calls WHERE kind = 'fact' ORDER BY created_us")


async def test_a_rule_sees_what_was_looked_up(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ON_SALE, tools=on_item()) as remit:
        remit.source.on["look"] = {"status": "on sale"}
        done = await remit.done("shop.buy", PEN)
        remit.source.on["look"] = {"status": "sold"}
        refused = await remit.refused("shop.buy", PEN)
        assert refused.verdict.code == "no_rule"
        first, second = reads(remit)
        assert (first["tool"], first["of_call"], first["state"]) == ("shop.look", done.call_id, "succeeded")
        assert second["of_call"] == refused.call_id
        assert [request.name for request in remit.source.sent] == ["look", "buy", "look"]


async def test_looking_up_costs_an_agent_none_of_its_calls(tmp_path: Path) -> None:
    budget = {"scope": "agent", "unit": "calls", "window": "total", "limit": 1}
    async with a_remit(tmp_path, policy=ON_SALE, tools=on_item(), budgets=[budget]) as remit:
        remit.source.on["look"] = {"status": "on sale"}
        assert (await remit.done("shop.buy", PEN)).cost == {"calls": 1}
        assert remit.one("SELECT posted FROM accounts")["posted"] == 1


@pytest.mark.parametrize(
    "answer",
    [
        Reply(body={"content": [], "isError": True}, is_error=True),
        AdapterError("gone", no_effect=True, code="down"),
        Reply(body={"resultType": "input_required"}, kind="input_required"),
        {"status": "failed"},
    ],
)
async def test_a_fact_that_cannot_be_had_refuses_the_call(tmp_path: Path, answer: Any) -> None:
    rules = {**on_item(), "shop.look": {"effect": "read", "failed_when": "result.status == 'failed'"}}
    async with a_remit(tmp_path, policy=ROLES + rule("1 == 1"), tools=rules) as remit:
        remit.source.on["look"] = answer
        refused = await remit.refused("shop.buy", PEN)
        assert refused.verdict.code == "no_facts"
        assert "item" in refused.verdict.reason
        assert remit.source.effects("buy") == []


async def test_what_the_source_said_to_the_very_read_that_was_asked_for_is_told(tmp_path: Path) -> None:
    condition = "r.ctx.facts.item.status == 'on sale'"
    policy = ROLES + rule(condition) + rule(condition, tool="look")
    rules = tools(look={"facts": ITEM}, buy={"facts": ITEM})
    async with a_remit(tmp_path, policy=policy, tools=rules) as remit:
        remit.source.on["look"] = a_reply("There is no pen.", is_error=True)
        mine = await remit.refused("shop.look", {"thing": "pen"})
        assert (mine.verdict.code, mine.verdict.reason) == ("no_facts", "There is no pen.")
        assert "no pen" not in (await remit.refused("shop.buy", PEN)).verdict.reason


async def test_a_fact_is_only_ever_read(tmp_path: Path) -> None:
    facts = {"item": {"call": "shop.send", "args": {"text": "args.thing"}}}
    async with a_remit(tmp_path, policy=ROLES + rule("1 == 1"), tools=tools(buy={"facts": facts})) as remit:
        assert (await remit.refused("shop.buy", PEN)).verdict.code == "no_facts"
        assert remit.source.sent == []


async def test_what_takes_longer_than_the_call_may_refuses_it(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ON_SALE, tools=on_item(timeout="1s")) as remit:
        remit.source.on["look"] = Gate()
        with anyio.fail_after(10):
            assert (await remit.refused("shop.buy", PEN)).verdict.code == "no_facts"
        assert reads(remit)[0]["state"] == "failed"


NEVER = [
    pytest.param(ROLES + rule("r.ctx.facts.item.status == 'x'", tool="set"), PEN, "no_rule", id="invisible"),
    pytest.param(
        ROLES + rule("r.args.price > 9 and r.ctx.facts.item.status == 'x'"), PEN, "no_rule", id="by arguments"
    ),
    pytest.param(
        ON_SALE + rule("r.args.price == 5", effect="deny", action="*"), PEN, "denied_by_rule", id="denied"
    ),
    pytest.param(ON_SALE, {"thing": "pen"}, "invalid_arguments", id="misfit"),
    pytest.param(ON_SALE.replace("g3, agent:bot", "g3, agent:cat"), PEN, "no_delegation", id="stranger"),
]


@pytest.mark.parametrize(("policy", "arguments", "code"), NEVER)
async def test_nothing_is_read_for_a_call_that_no_fact_could_save(
    tmp_path: Path, policy: str, arguments: dict[str, Any], code: str
) -> None:
    async with a_remit(tmp_path, policy=policy, tools=on_item()) as remit:
        assert (await remit.refused("shop.buy", arguments)).verdict.code == code
        assert remit.source.sent == []


async def test_a_stopped_agent_causes_no_reads(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ON_SALE, tools=on_item()) as remit:
        await remit.switch("kill", "agent", "agent:bot")
        assert (await remit.refused("shop.buy", PEN)).verdict.code == "stopped"
        assert remit.source.sent == []


async def test_facts_are_looked_up_together_and_those_that_need_others_after_them(tmp_path: Path) -> None:
    facts = {
        "owner": {"call": "shop.look", "args": {"thing": "facts.item.owner"}},
        "item": {"call": "shop.look", "args": {"thing": "args.thing"}},
        "twin": {"call": "shop.look", "args": {"thing": "'twin of ' + args.thing"}},
    }
    policy = ROLES + rule("r.ctx.facts.owner.thing == 'owner of pen' and r.ctx.facts.twin.owner != ''")
    async with a_remit(tmp_path, policy=policy, tools=tools(buy={"facts": facts})) as remit:
        together = anyio.Event()

        async def look(request: Request, caller: Caller) -> Reply:
            thing = request.arguments["thing"]
            if thing == "twin of pen":
                together.set()
            await together.wait()  # the first is answered only once the second has come
            value = {"thing": thing, "owner": f"owner of {thing}"}
            return Reply(body={"content": [], "structuredContent": value})

        remit.source.on["look"] = look
        with anyio.fail_after(10):
            await remit.done("shop.buy", PEN)


async def test_only_what_is_selected_of_an_answer_is_seen(tmp_path: Path) -> None:
    facts = {"item": {**ITEM["item"], "select": "{state: status}"}}
    policy = ROLES + rule("r.ctx.facts.item.state == 'on sale' and len(r.ctx.facts.item) == 1")
    async with a_remit(tmp_path, policy=policy, tools=tools(buy={"facts": facts})) as remit:
        remit.source.on["look"] = {"status": "on sale", "secret": "x" * 50}
        await remit.done("shop.buy", PEN)


LOT = Offer(
    tools=(
        a_definition("look", thing="string"),
        {"name": "pay", "inputSchema": {"type": "object", "properties": {"things": {}}}},
    )
)


def lot(each: str = "args.things") -> dict[str, Any]:
    facts = {"items": {"each": each, "call": "shop.look", "args": {"thing": "each.id"}, "select": "status"}}
    derive = {"sold": "length(facts.items[?@ == 'sold'])", "all": "length(facts.items)"}
    return {"shop.look": {"effect": "read"}, "shop.pay": {"facts": facts, "derive": derive}}


async def status_of(request: Request, caller: Caller) -> Reply:
    thing = request.arguments["thing"]
    return a_reply("no such thing", is_error=True) if thing == "ghost" else a_reply({"status": thing})


async def test_a_fact_may_be_looked_up_for_each_element_of_a_list(tmp_path: Path) -> None:
    policy = ROLES + rule("r.ctx.derived.sold == 0 && r.ctx.derived.all == len(r.args.things)", tool="pay")
    source = ScriptedSource(offer=LOT)
    source.on["look"] = status_of
    async with a_remit(tmp_path, policy=policy, tools=lot(), source=source) as remit:
        await remit.done("shop.pay", {"things": [{"id": "new"}, {"id": "old"}, {"id": "new"}]})
        assert sorted(str(read.arguments["thing"]) for read in source.effects("look")) == ["new", "old"]
        await remit.done("shop.pay", {"things": []})
        refused = await remit.refused("shop.pay", {"things": [{"id": "new"}, {"id": "sold"}]})
        assert refused.verdict.code == "no_rule"


@pytest.mark.parametrize(
    "things",
    ["pen", None, {"id": "pen"}, [{"id": "pen"}, {"id": "ghost"}], [{"name": "pen"}], [{"id": "pen"}] * 9],
)
async def test_a_fact_for_each_element_needs_them_all(tmp_path: Path, things: Any) -> None:
    source = ScriptedSource(offer=LOT)
    source.on["look"] = status_of
    policy = ROLES + rule("r.ctx.derived.sold == 0", tool="pay")
    async with a_remit(tmp_path, policy=policy, tools=lot(), source=source) as remit:
        assert (await remit.refused("shop.pay", {"things": things})).verdict.code == "no_facts"
        assert source.effects("pay") == []


async def test_the_read_that_an_undo_needs_too_is_made_once(tmp_path: Path) -> None:
    policy = ROLES + rule("r.ctx.facts.now.value < 10", tool="set")
    facts = {"now": {"call": "shop.look", "args": {"thing": "args.thing"}, "select": "{value: value}"}}
    async with a_remit(tmp_path, policy=policy, tools=tools(set={"facts": facts})) as remit:
        remit.source.on["look"] = {"value": 7, "more": True}
        done = await remit.done("shop.set", {"thing": "pen", "value": 8})
        # Once before the call, and once after it.
        assert [request.name for request in remit.source.sent] == ["look", "set", "look"]
        assert remit.carried(done.call_id, "before") == {"value": 7, "more": True}
        assert done.undo is not None
        assert done.undo.arguments == {"thing": "pen", "value": 7}


async def test_what_changed_since_people_were_asked_is_put_to_them_anew(tmp_path: Path) -> None:
    policy = ROLES + rule("r.ctx.facts.item.stock > 0", action="recommend")
    async with a_remit(tmp_path, policy=policy, tools=on_item()) as remit:
        remit.source.on["look"] = {"stock": 3}
        first = await remit.call("shop.buy", PEN)
        assert isinstance(first, Pending)
        await remit.vote(first.approval_id)
        remit.source.on["look"] = {"stock": 2}
        second = await remit.call("shop.buy", PEN)
        assert isinstance(second, Pending)
        assert second.approval_id != first.approval_id
        remit.source.on["look"] = {"stock": 3}
        done = await remit.call("shop.buy", PEN)
        assert isinstance(done, Done)
        assert done.call_id == first.call_id


async def test_what_was_looked_up_for_a_call_that_people_agreed_to_belongs_to_its_record(
    tmp_path: Path,
) -> None:
    policy = ROLES + rule("r.ctx.facts.item.stock > 0", action="recommend")
    async with a_remit(tmp_path, policy=policy, tools=on_item()) as remit:
        remit.source.on["look"] = {"stock": 3}
        asked = await remit.call("shop.buy", PEN)
        assert isinstance(asked, Pending)
        assert isinstance(await remit.call("shop.buy", PEN), Pending)
        await remit.vote(asked.approval_id)
        await remit.done("shop.buy", PEN)
        assert [read["of_call"] for read in reads(remit)] == [asked.call_id] * 3
        with open_records(remit.path) as records:
            told = records.story(asked.call_id)
            assert list(audit.verify_calls(records)) == []
        assert len(told.served_by) == 3
        dispatched = next(event for event in told.events if event.kind == "call.dispatched")
        assert orjson.loads(dispatched.body)["facts"] == {"item": reads(remit)[2]["id"]}


async def test_what_was_looked_up_when_people_were_asked_anew_is_shown_with_both(tmp_path: Path) -> None:
    policy = ROLES + rule("r.ctx.facts.item.stock > 0", action="recommend")
    async with a_remit(tmp_path, policy=policy, tools=on_item()) as remit:
        remit.source.on["look"] = {"stock": 3}
        await remit.call("shop.buy", PEN)
        remit.source.on["look"] = {"stock": 2}
        anew = await remit.call("shop.buy", PEN)
        assert isinstance(anew, Pending)
        with open_records(remit.path) as records:
            assert [read.id for read in records.story(anew.call_id).served_by] == [reads(remit)[1]["id"]]


async def test_who_approves_may_depend_on_facts_too(tmp_path: Path) -> None:
    policy = (ROLES + rule("r.ctx.facts.item.stock > 0", action="recommend")).replace(
        "approve, 1 == 1", "approve, r.ctx.facts.item.owner == 'shop'"
    )
    async with a_remit(tmp_path, policy=policy, tools=on_item()) as remit:
        remit.source.on["look"] = {"stock": 3, "owner": "ann"}
        assert (await remit.refused("shop.buy", PEN)).verdict.code == "no_approver"
        remit.source.on["look"] = {"stock": 3, "owner": "shop"}
        pending = await remit.call("shop.buy", PEN)
        assert isinstance(pending, Pending)
        assert await remit.vote(pending.approval_id) == "approved"


async def test_advice_knows_the_facts(tmp_path: Path) -> None:
    policy = ROLES + rule("r.ctx.facts.item.stock > 0", action="advise")
    async with a_remit(tmp_path, policy=policy, tools=on_item()) as remit:
        remit.source.on["look"] = {"stock": 3}
        refused = await remit.refused("shop.buy", PEN)
        assert refused.verdict.rung is Rung.ADVISE
        assert remit.source.effects("buy") == []


async def asked(remit: Remit, tool: str, arguments: dict[str, Any]) -> Decision:
    return await informed(remit.a_call(tool, arguments), remit.on)


CERTIFICATES = "length(args.payments[?starts_with(id, 'certificate')])"
BASKET = Offer(
    tools=(
        a_definition("look", thing="string"),
        {"name": "pay", "inputSchema": {"type": "object", "properties": {"payments": {"type": "array"}}}},
    )
)


def paying(**rules: Any) -> dict[str, Any]:
    return {"shop.look": {"effect": "read"}, "shop.pay": rules}


async def test_a_rule_sees_what_is_derived_from_the_arguments(tmp_path: Path) -> None:
    policy = ROLES + rule("r.ctx.derived.certificates <= 1", tool="pay")
    source = ScriptedSource(offer=BASKET)
    async with a_remit(
        tmp_path, policy=policy, tools=paying(derive={"certificates": CERTIFICATES}), source=source
    ) as remit:
        card, paper = {"id": "card_1"}, {"id": "certificate_1"}
        await remit.done("shop.pay", {"payments": [card, paper]})
        assert (await remit.refused("shop.pay", {"payments": [paper, card, paper]})).verdict.code == "no_rule"


@pytest.mark.parametrize("effect", ["allow", "deny"])
async def test_what_cannot_be_derived_denies(tmp_path: Path, effect: str) -> None:
    also = rule("1 == 1", tool="pay") if effect == "deny" else ""
    policy = ROLES + also + rule("r.ctx.derived.certificates > 5", tool="pay", effect=effect)
    rules, source = paying(derive={"certificates": CERTIFICATES}), ScriptedSource(offer=BASKET)
    async with a_remit(tmp_path, policy=policy, tools=rules, source=source) as remit:
        refused = await remit.refused("shop.pay", {"payments": [{"id": 7}]})
        assert refused.verdict.code == "rule_error"


async def test_derived_values_see_those_above_them_and_lists_meet_lists(tmp_path: Path) -> None:
    derive = {
        "named": "map(&(let $id = @ in $.facts.item.parts[?id == $id] | [0]), args.payments)",
        "cost": "sum(derived.named[].price) - `1`",
        "same": "length(zip(args.payments, facts.item.parts)[?[0] == [1].id])",
    }
    facts = {"item": {"call": "shop.look", "args": {"thing": "'set'"}}}
    policy = ROLES + rule("r.ctx.derived.cost == 4 && r.ctx.derived.same == 1", tool="pay")
    source = ScriptedSource(offer=BASKET)
    source.on["look"] = {"parts": [{"id": "a", "price": 2}, {"id": "b", "price": 3}]}
    rules = paying(facts=facts, derive=derive)
    async with a_remit(tmp_path, policy=policy, tools=rules, source=source) as remit:
        await remit.done("shop.pay", {"payments": ["a", "c", "b"]})
        assert (await remit.refused("shop.pay", {"payments": ["b", "a"]})).verdict.code == "no_rule"


async def test_derived_values_see_facts(tmp_path: Path) -> None:
    derive = {"own": "contains(keys(facts.item.offers), args.thing)"}
    policy = ROLES + rule("r.ctx.derived.own")
    async with a_remit(tmp_path, policy=policy, tools=on_item(derive=derive)) as remit:
        remit.source.on["look"] = {"offers": {"pen": 1}}
        await remit.done("shop.buy", PEN)
        remit.source.on["look"] = {"offers": {"cup": 1}}
        await remit.refused("shop.buy", PEN)


def parsing(condition: str) -> str:
    return ROLES + rule(condition, tool="send")


async def test_json_in_a_text_is_governed_by_what_it_says(tmp_path: Path) -> None:
    policy = parsing("r.ctx.parsed.text.to == 'ann' and r.ctx.parsed.text.copies <= 2")
    async with a_remit(tmp_path, policy=policy, tools=tools(send={"parse": {"text": "json"}})) as remit:
        await remit.done("shop.send", SENT)
        assert remit.source.sent[0].arguments == SENT  # the tool gets the text as it was
        await remit.refused("shop.send", {"text": '{"to": "bob", "copies": 2}'})


@pytest.mark.parametrize(
    "text", ['{"to": "ann", "to": "bob"}', "not JSON", '{"copies": NaN}', "[" * 40 + "]" * 40]
)
async def test_json_that_readers_could_take_differently_is_refused(tmp_path: Path, text: str) -> None:
    policy = parsing("1 == 1")
    async with a_remit(tmp_path, policy=policy, tools=tools(send={"parse": {"text": "json"}})) as remit:
        refused = await remit.refused("shop.send", {"text": text})
        assert refused.verdict.code == "invalid_arguments"
        assert "text: this argument must be a text that holds JSON" in refused.verdict.reason
        assert remit.source.sent == []


async def test_what_is_struck_out_of_arguments_is_struck_out_of_what_people_are_shown(tmp_path: Path) -> None:
    policy = ROLES + rule("1 == 1", tool="send", action="recommend")
    policy += "p2, role:clerk, acme, shop.send, recommend, 1 == 1, redact=args.text\n"
    rules = tools(send={"parse": {"text": "json"}, "derive": {"who": "parsed.text.to"}})
    async with a_remit(tmp_path, policy=policy, tools=rules) as remit:
        pending = await remit.call("shop.send", {"text": '{"to": "SECRET"}'})
        assert "arguments" in remit.carried(pending.call_id, "shown")
        assert not kept_anywhere(tmp_path, b"SECRET")


async def test_what_is_derived_from_the_rest_stays_for_those_who_vote(tmp_path: Path) -> None:
    policy = POLICY + (
        "p2, role:clerk, acme, shop.buy, recommend, 1 == 1, redact=args.thing\n"
        "p, *, acme, shop.buy, approve, r.ctx.derived.total > 900, deny\n"
    )
    derive = {"total": "args.price", "name": "args.thing", "both": "length(args.thing) > `0` && args.price"}
    async with a_remit(tmp_path, policy=policy, tools=tools(buy={"derive": derive})) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        order = {"thing": "SECRET", "price": 500}
        pending = await remit.call("shop.buy", order)
        assert isinstance(pending, Pending)
        shown = remit.carried(pending.call_id, "shown")
        assert shown["context"]["derived"]["total"] == 500
        assert shown["context"]["derived"]["name"] == "[redacted]"
        assert await remit.vote(pending.approval_id) == "approved"
        await remit.done("shop.buy", order)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
EXPRESSIONS = (
    "args",
    "length(args)",
    "args.a[*].b | [0]",
    "to_number(args)",
    "sum(args)",
    "&args",
    "max_by(args, &a)",
)


@given(args=JSON, text=st.sampled_from(EXPRESSIONS))
def test_a_derivation_gives_json_or_says_that_it_cannot(args: Any, text: str) -> None:
    try:
        value = compile_derivation(text)({"args": args})
    except EvaluationError:
        return
    assert orjson.loads(orjson.dumps(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        "args[*].{one: @, all: $.args}",
        "args[?contains($.args, @)] | length(@)",
        "map(&map(&@, $.args), args) | length(@)",
        f"{' '.join(f'let $a{n + 1} = [$a{n}, $a{n}] in' for n in range(40))} $a40".replace(
            "let $a1 = [$a0, $a0] in", "let $a1 = [args, args] in"
        ),
    ],
)
def test_a_derivation_does_not_take_the_time_that_an_agent_wants_it_to(text: str) -> None:
    derive = compile_derivation(text)
    with pytest.raises(EvaluationError, match="too"):
        derive({"args": list(range(10_000))})


@pytest.mark.parametrize("text", ['"nan"', '"1e999"', f'"{"9" * 400}"', '"-Infinity"'])
def test_what_is_no_number_of_json_never_reaches_a_rule(text: str) -> None:
    try:
        value = compile_derivation("to_number(args)")({"args": orjson.loads(text)})
    except EvaluationError:
        return
    assert value is None or value == int(value)


def with_rules(tmp_path: Path, **rules: Any) -> Config:
    return a_config(tmp_path, tools={"shop.buy": rules})


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ({"derive": {"n": "length(args"}}, "this is not JMESPath"),
        ({"facts": {"a": {"call": "shop.look", "args": {"thing": "facts.b.x"}}}}, "not declared beside them"),
        (
            {
                "facts": {
                    "a": {"call": "shop.look", "args": {"thing": "facts.b.x"}},
                    "b": {"call": "shop.look", "args": {"thing": "facts.a.x"}},
                }
            },
            "need each other",
        ),
        ({"facts": {f"f{n}": {"call": "shop.look"} for n in range(9)}}, "more facts than limits.facts"),
        ({"facts": {"a": {"call": "shop.look", "args": {"thing": "result.x"}}}}, "result"),
        ({"facts": {"a": {"call": "shop.look", "args": {"thing": "each.x"}}}}, "which gives a list"),
        ({"facts": {"a": {"call": "shop.look", "each": "result.x"}}}, "result"),
        ({"parse": {"payload": "yaml"}}, "json"),
    ],
)
def test_what_could_never_be_found_is_refused_when_it_is_read(
    tmp_path: Path, rules: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint):
        with_rules(tmp_path, **rules)


def test_an_operator_cannot_name_a_fact_like_one_of_remit(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="context names facts"):
        a_config(tmp_path, context={"facts": "mine"})


async def test_a_rule_that_no_tool_here_can_answer_is_told_to_the_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    policy = ON_SALE + rule("r.args.colour == 'red'", effect="deny") + rule("r.args.price == 'dear'")
    settings = {"files": [tmp_path / "policy.csv"], "misfits": "warn"}
    async with served(tmp_path, monkeypatch, policy=policy, tools=on_item(), policy_settings=settings):
        assert caplog.text.count("does not fit the tools here") == 2
    assert "have no argument colour" in caplog.text or "has no argument colour" in caplog.text
    assert "price of shop.buy is a number" in caplog.text


async def test_a_policy_with_a_rule_that_no_tool_here_can_answer_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    misfit = ON_SALE + rule("r.args.colour == 'red'", effect="deny")
    async with served(tmp_path, monkeypatch, policy=ON_SALE, tools=on_item()) as remit:
        before = remit.on.policy.version
        (tmp_path / "policy.csv").write_text(misfit)
        await until(lambda: remit.rows("SELECT 1 FROM events WHERE kind = 'policy.rejected'"))
        assert remit.on.policy.version == before
    with pytest.raises(BaseExceptionGroup) as refused:
        async with App(remit.app.loaded, role="http").running():
            pass
    assert "argument colour" in str(refused.value.exceptions)


async def test_rules_go_by_labels_of_the_tool_and_by_how_far_the_agent_is_trusted(tmp_path: Path) -> None:
    rows = (
        "p, *, acme, *, execute, contains(r.ctx.labels, 'money') && r.ctx.autonomy != 'act', deny\n"
        "p, *, acme, *, recommend, contains(r.ctx.labels, 'money') && r.ctx.autonomy != 'act', deny\n"
        "p, *, acme, *, advise, contains(r.ctx.labels, 'money') && r.ctx.autonomy != 'act', deny\n"
    )
    settings: dict[str, Any] = {"tools": tools(buy={"labels": ["money"]}), "autonomy": {"agent:bot": "read"}}
    async with a_remit(tmp_path, policy=POLICY + rows, **settings) as remit:
        await remit.done("shop.send", {"text": "hello"})
        refused = await remit.refused("shop.buy", {"thing": "pen", "price": 5})
        assert refused.verdict.code == "denied_by_rule"
        remit.source.on["buy"] = {"order": "o-1"}
        await remit.done("shop.buy", {"thing": "pen", "price": 5}, principal=a_principal("agent:other"))
