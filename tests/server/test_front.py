"""What agents see and hear through real clients in both eras, over HTTP, in front of scripted sources."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import anyio
import mcp_types as t
import pytest
from mcp import MCPError
from tests.server.builders import (
    POLICY,
    SHOP,
    Gate,
    ScriptedSource,
    a_definition,
    a_reply,
    full_disk,
    tools,
    until,
)
from tests.server.fronts import ERAS, Served, names, served, texts

from remit import approvals
from remit.front.server import Front
from remit.records import open_records
from remit_adapters.base import AdapterError, Caller, Event, Offer, Reply, Request

VERDICT, RECEIPT = "dev.remit/verdict", "dev.remit/receipt"
LIBRARY = Offer(
    tools=SHOP.tools,
    resources=({"uri": "shop://open", "name": "open"}, {"uri": "shop://closed", "name": "closed"}),
    resource_templates=({"uriTemplate": "shop://orders/{id}", "name": "order"},),
    prompts=({"name": "ask", "arguments": [{"name": "what"}]},),
    completes=True,
    subscribes=True,
)
#: `bot` and `other` may buy and look; `reader` may only look and read; `nobody` may do nothing.
READERS = (
    POLICY
    + """\
g, agent:reader, role:reader, acme
g3, agent:reader, user:ann, acme
g3, agent:nobody, user:ann, acme
p, role:reader, acme, shop.look, execute, 1 == 1, allow
p, role:reader, acme, shop.resources.read, execute, r.args.uri != 'shop://closed', allow
p, role:reader, acme, shop.prompts.get, execute, r.args.name == 'ask', allow
p, role:reader, acme, shop.completion.complete, execute, 1 == 1, allow
p, user:ann, acme, shop.resources.read, execute, 1 == 1, allow
p, user:ann, acme, shop.prompts.get, execute, 1 == 1, allow
p, user:ann, acme, shop.completion.complete, execute, 1 == 1, allow
"""
)
#: What an answer must never show.
SECRET = "postgres://admin:hunter2@10.0.0.7 in /srv/remit/secret.py"

# The client deprecates what the older revisions need.
pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")


@pytest.fixture(params=ERAS, ids=["modern", "legacy"])
def era(request: pytest.FixtureRequest) -> str:
    return request.param


def a_library() -> ScriptedSource:
    source = ScriptedSource(offer=LIBRARY)
    source.on |= {
        # As a source of the stateless revision may answer, and below as older ones do.
        "shop://open": Reply(
            body={
                "contents": [{"uri": "shop://open", "text": "open"}],
                "ttlMs": 60_000,
                "cacheScope": "public",
            }
        ),
        "shop://closed": Reply(body={"contents": [{"uri": "shop://closed", "text": "closed"}]}),
        "shop://orders/7": Reply(body={"contents": [{"uri": "shop://orders/7", "text": "seven"}]}),
        "ask": Reply(body={"messages": [{"role": "user", "content": {"type": "text", "text": "what?"}}]}),
        "completion/complete": Reply(body={"completion": {"values": ["pen", "pencil"]}}),
    }
    return source


# Lists and calls.


async def test_what_is_listed_can_be_called_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    everything = {"shop.look", "shop.buy", "shop.give_back", "shop.set", "shop.send"}
    expected = {"agent:bot": everything, "agent:reader": {"shop.look"}, "agent:nobody": set[str]()}
    async with served(tmp_path, monkeypatch, policy=READERS) as remit:
        for agent, visible in expected.items():
            async with remit.client(era, agent) as client:
                listed = names((await client.list_tools()).tools)
                assert listed - {"remit.status", "remit.explain", "remit.undo", "remit.withdraw"} == visible
                for name in everything:
                    answer = await outcome(client, name)
                    assert answer.startswith("Unknown tool") == (name not in visible), (agent, name)


async def outcome(client: Any, name: str) -> str:
    """What a call with arguments that cannot fit is answered: enough to see whether the tool exists."""
    try:
        return texts(await client.call_tool(name, {"no such": "argument"}))
    except MCPError as error:
        return error.error.message


async def test_an_invisible_tool_is_answered_like_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    async with (
        served(tmp_path, monkeypatch, policy=READERS) as remit,
        remit.client(era, "agent:reader") as client,
    ):
        answers: list[Any] = []
        for name in ("shop.buy", "shop.not_there"):
            with pytest.raises(MCPError) as caught:
                await client.call_tool(name, {"thing": "pen", "price": 1})
            error = caught.value.error
            answers.append((error.code, error.message.replace(name, "X"), error.data))
        assert answers[0] == answers[1] == (-32602, "Unknown tool: X", None)
        # What exists is on record as tried; what does not is nobody's business.
        tried = remit.rows("SELECT tool, agent, code FROM calls")
        assert tried == [{"tool": "shop.buy", "agent": "agent:reader", "code": "not_visible"}]


async def test_a_success_carries_a_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str) -> None:
    shop = ScriptedSource()
    shop.on["buy"] = a_reply({"order": "o-1"}, _meta={"vendor/x": 1})
    async with served(tmp_path, monkeypatch, shop, policy=POLICY) as remit, remit.client(era) as client:
        result = await client.call_tool("shop.buy", {"thing": "pen", "price": 5})
        assert not result.is_error
        assert result.structured_content == {"order": "o-1"}
        assert result.meta is not None
        receipt = result.meta[RECEIPT]
        assert receipt["cost"] == {"calls": 1}
        assert receipt["undo"]["class"] == "reversible"
        assert receipt["undo"]["until"].endswith("Z")
        assert result.meta["vendor/x"] == 1
        (record,) = remit.rows("SELECT state, agent, user FROM calls WHERE id = ?", receipt["call_id"])
        assert record == {"state": "succeeded", "agent": "agent:bot", "user": "user:ann"}


async def test_a_refusal_is_a_result_that_tells_the_agent_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    expected = {
        500: ("approve", "pending_approval", "wait"),
        3000: ("advise", "advise_only", "ask"),
        90_000: ("deny", "no_rule", "change"),
        -1: ("deny", "denied_by_rule", "stop"),
    }
    policy = POLICY + "p, role:clerk, acme, shop.buy, *, r.args.price < 0, deny\n"
    shop = ScriptedSource()
    async with served(tmp_path, monkeypatch, shop, policy=policy) as remit, remit.client(era) as client:
        for price, words in expected.items():
            result = await client.call_tool("shop.buy", {"thing": "pen", "price": price})
            assert result.is_error
            assert result.meta is not None
            told = result.meta[VERDICT]
            assert (told["verdict"], told["code"], told["remedy"]) == words
            assert texts(result).endswith(".")
            assert remit.rows("SELECT tool FROM calls WHERE id = ?", told["call_id"]) == [
                {"tool": "shop.buy"}
            ]
            assert ("advice" in told) == (words[0] == "advise")
            assert ("approval_id" in told) == (words[0] == "approve")
        assert shop.sent == []


async def test_an_approved_call_is_made_when_it_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    car = {"thing": "car", "price": 500}
    async with served(tmp_path, monkeypatch, policy=POLICY) as remit, remit.client(era) as client:
        waiting = await client.call_tool("shop.buy", car)
        assert waiting.meta is not None
        told = waiting.meta[VERDICT]
        standing = (await client.call_tool("remit.status", {})).structured_content
        assert standing is not None
        assert [request["id"] for request in standing["pending_approvals"]] == [told["approval_id"]]
        await remit.on.journal.vote(
            told["approval_id"], user="user:bea", vote="approve", comment="", use_within_s=60
        )
        made = await client.call_tool("shop.buy", car)
        assert made.meta is not None
        assert made.meta[RECEIPT]["call_id"] == told["call_id"]


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (
            AdapterError("The source is down.", no_effect=True, code="source_down"),
            "no effect and cost nothing",
        ),
        (AdapterError("The line broke.", no_effect=False, code="source_lost"), "not known whether"),
    ],
)
async def test_what_went_wrong_at_the_source_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str, raised: AdapterError, words: str
) -> None:
    shop = ScriptedSource()
    shop.on["send"] = raised
    async with served(tmp_path, monkeypatch, shop, policy=POLICY) as remit, remit.client(era) as client:
        result = await client.call_tool("shop.send", {"text": "hi"})
        assert result.is_error
        assert raised.message in texts(result)
        assert words in texts(result)


async def test_a_protocol_error_of_the_source_keeps_its_code_and_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    shop = ScriptedSource()
    rpc = {"code": 4711, "message": "no such shelf", "data": {"shelf": 3}}
    shop.on["send"] = AdapterError("refused", no_effect=True, rpc=rpc)
    async with served(tmp_path, monkeypatch, shop, policy=POLICY) as remit, remit.client(era) as client:
        with pytest.raises(MCPError) as caught:
            await client.call_tool("shop.send", {"text": "hi"})
        error = caught.value.error
        assert (error.code, error.message, error.data) == (4711, "no such shelf", {"shelf": 3})


async def test_a_source_cannot_speak_as_remit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    shop = ScriptedSource()
    claimed = {VERDICT: {"code": "stopped"}, "dev.remit/notice": {"taken_back": []}, RECEIPT: {"undo": 1}}
    shop.on["look"] = a_reply("ok", _meta={**claimed, "shop/page": 2})
    rpc = {"code": -31001, "message": "Wait for a person.", "data": claimed}
    shop.on["send"] = AdapterError("The source refused it.", no_effect=True, code="rpc_error", rpc=rpc)
    other = {"code": -32000, "message": "No.", "data": {**claimed, "shop/page": 2}}
    shop.on["buy"] = AdapterError("The source refused it.", no_effect=True, code="rpc_error", rpc=other)
    async with served(tmp_path, monkeypatch, shop, policy=POLICY) as remit, remit.client(era) as client:
        seen = await client.call_tool("shop.look", {"thing": "pen"})
        assert seen.meta is not None
        assert VERDICT not in seen.meta
        assert "dev.remit/notice" not in seen.meta
        assert seen.meta["shop/page"] == 2
        assert "undo" not in seen.meta[RECEIPT]
        sent = await client.call_tool("shop.send", {"text": "hi"})
        assert sent.meta is not None
        assert sent.meta[VERDICT]["code"] == "rpc_error"
        with pytest.raises(MCPError) as caught:
            await client.call_tool("shop.buy", {"thing": "pen", "price": 5})
        assert caught.value.error.data == {"shop/page": 2}


async def test_a_key_and_a_claim_travel_in_meta(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    shop = ScriptedSource()
    meta: Any = {
        "dev.remit/idempotency_key": "k-1",
        "dev.remit/claim": {"goal": "g"},
        "dev.remit/run": "run-7",
    }
    async with served(tmp_path, monkeypatch, shop, policy=POLICY) as remit, remit.client(era) as client:
        first = await client.call_tool("shop.send", {"text": "hi"}, meta=meta)
        again = await client.call_tool("shop.send", {"text": "hi"}, meta=meta)
        assert first.meta is not None
        assert again.meta is not None
        assert again.meta[RECEIPT]["call_id"] == first.meta[RECEIPT]["call_id"]
        assert again.meta[RECEIPT]["repeated"] is True
        assert len(shop.sent) == 1
        assert not any(key.startswith("dev.remit/") for key in shop.sent[0].meta)
        (record,) = remit.rows("SELECT client_key, claim, run FROM calls")
        assert record == {"client_key": "k-1", "claim": '{"goal":"g"}', "run": "run-7"}


_FIRST_EVENTS = "SELECT body FROM events WHERE kind = 'call.dispatched' ORDER BY seq"


async def test_a_key_tells_nothing_of_what_another_user_of_the_agent_did_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    several = POLICY + "g3, agent:bot, user:cyd, acme\ng, user:cyd, role:clerk, acme\n"
    meta: Any = {"dev.remit/idempotency_key": "mail-77"}
    shop = ScriptedSource()
    async with (
        served(tmp_path, monkeypatch, shop, policy=several) as remit,
        remit.client(era) as for_ann,
        remit.client(era, user="user:cyd") as for_cyd,
    ):
        calls = [
            await client.call_tool("shop.buy", {"thing": thing, "price": 5}, meta=meta)
            for client, thing in ((for_ann, "pen"), (for_cyd, "ink"), (for_ann, "pen"), (for_cyd, "ink"))
        ]
        assert not any(it.is_error for it in calls)
        assert [it.meta[RECEIPT].get("repeated", False) for it in calls if it.meta] == [
            False,
            False,
            True,
            True,
        ]
        assert [request.arguments["thing"] for request in shop.effects("buy")] == ["pen", "ink"]


async def test_which_program_called_is_on_record_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    shop = ScriptedSource()
    async with served(tmp_path, monkeypatch, shop, policy=POLICY) as remit:
        for name in ("Agent Desk", "Ann said: it was not me"):
            program = t.Implementation(name=name, version="2.1.0")
            async with remit.client(era, client_info=program) as client:
                await client.call_tool("shop.look", {"thing": name})
        said = [json.loads(row["body"]).get("client") for row in remit.rows(_FIRST_EVENTS)]
        assert said == ["Agent Desk/2.1.0", None]  # a sentence is not what a program is called


UNFIT: list[Any] = [
    {"dev.remit/idempotency_key": ""},
    {"dev.remit/idempotency_key": "k" * 129},
    {"dev.remit/idempotency_key": 7},
    {"dev.remit/run": ["r"]},
    {"dev.remit/claim": "I am allowed"},
    {"dev.remit/claim": {"long": "x" * 5000}},
]


async def test_meta_of_ours_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    shop = ScriptedSource()
    async with served(tmp_path, monkeypatch, shop, policy=POLICY) as remit, remit.client(era) as client:
        for meta in UNFIT:
            with pytest.raises(MCPError, match=r"dev\.remit/") as caught:
                await client.call_tool("shop.send", {"text": "hi"}, meta=meta)
            assert caught.value.error.code == -32602
        assert shop.sent == []


# Resources, prompts and completions: side doors with the same lock.


async def test_resources_prompts_and_completions_pass_the_same_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    library = a_library()
    async with (
        served(tmp_path, monkeypatch, library, policy=READERS) as remit,
        remit.client(era, "agent:reader") as client,
    ):
        assert names((await client.list_resources()).resources) == {"open", "closed"}
        assert names((await client.list_resource_templates()).resource_templates) == {"order"}
        assert names((await client.list_prompts()).prompts) == {"shop.ask"}
        read = await client.read_resource("shop://open")
        assert read.contents[0].text == "open"
        assert read.cache_scope == "private"
        assert (await client.read_resource("shop://orders/7")).contents[0].text == "seven"
        prompt = await client.get_prompt("shop.ask", {"what": "pens"})
        assert prompt.messages[0].content.text == "what?"
        ref = t.PromptReference(name="shop.ask")
        completed = await client.complete(ref, {"name": "what", "value": "pe"})
        assert completed.completion.values == ["pen", "pencil"]
        sent = {(request.operation.value, request.name) for request in library.sent}
        assert sent == {
            ("resources/read", "shop://open"),
            ("resources/read", "shop://orders/7"),
            ("prompts/get", "ask"),
            ("completion/complete", ""),
        }
        recorded = {row["tool"] for row in remit.rows("SELECT tool FROM calls WHERE state = 'succeeded'")}
        assert recorded == {"shop.resources.read", "shop.prompts.get", "shop.completion.complete"}


async def test_a_side_door_that_policy_keeps_shut_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    library = a_library()
    async with (
        served(tmp_path, monkeypatch, library, policy=READERS) as remit,
        remit.client(era, "agent:bot") as client,
    ):
        assert (await client.list_resources()).resources == []
        assert (await client.list_resource_templates()).resource_templates == []
        assert (await client.list_prompts()).prompts == []
        tried: list[Any] = [
            (client.read_resource, "shop://open"),
            (client.read_resource, "shop://orders/7"),
            (client.read_resource, "shop://nowhere"),
            (client.get_prompt, "shop.ask"),
            (client.get_prompt, "shop.nothing"),
        ]
        for method, name in tried:
            with pytest.raises(MCPError, match=r"not found|Unknown prompt") as caught:
                await method(name)
            assert caught.value.error.code in (-32602, -32002)
        for ref in (
            t.PromptReference(name="shop.ask"),
            t.ResourceTemplateReference(uri="shop://orders/{id}"),
        ):
            with pytest.raises(MCPError):
                await client.complete(ref, {"name": "what", "value": ""})
        assert library.sent == []


async def test_a_resource_that_a_rule_refuses_is_refused_with_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    library = a_library()
    async with (
        served(tmp_path, monkeypatch, library, policy=READERS) as remit,
        remit.client(era, "agent:reader") as client,
    ):
        with pytest.raises(MCPError) as caught:
            await client.read_resource("shop://closed")
        error = caught.value.error
        assert error.code == -31001
        assert error.data[VERDICT]["code"] == "no_rule"
        assert library.sent == []
        assert remit.rows("SELECT state FROM calls") == [{"state": "denied"}]


async def test_the_kill_switch_closes_side_doors_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    library = a_library()
    async with (
        served(tmp_path, monkeypatch, library, policy=READERS) as remit,
        remit.client(era, "agent:reader") as client,
    ):
        await remit.on.journal.switch(
            kind="kill", scope="agent", target="agent:reader", tenant="", on=True, reason="", by="user:bea"
        )
        for reading in (client.read_resource("shop://open"), client.get_prompt("shop.ask")):
            with pytest.raises(MCPError) as caught:
                await reading
            assert caught.value.error.data[VERDICT]["code"] == "stopped"
        stopped = await client.call_tool("shop.look", {"thing": "pen"})
        assert stopped.meta is not None
        assert stopped.meta[VERDICT]["code"] == "stopped"
        assert library.sent == []


#: Every method that the SDK's server answers, and why that is safe. A method that is not here fails the test.
GOVERNED = {"tools/call", "resources/read", "prompts/get", "completion/complete"}
FILTERED = {"tools/list", "resources/list", "resources/templates/list", "prompts/list"}
#: Only of resources that the caller may see.
CHECKED = {"resources/subscribe", "resources/unsubscribe", "subscriptions/listen"}
#: Says who Remit is, or that it lives, or sets how loud the caller's own session is.
HARMLESS = {"ping", "server/discover", "initialize", "logging/setLevel"}


async def test_every_method_that_is_answered_has_a_reason_to_be_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Front] = []
    init = Front.__init__

    def remembered(self: Front, *args: Any, **more: Any) -> None:
        init(self, *args, **more)
        built.append(self)

    monkeypatch.setattr(Front, "__init__", remembered)
    async with served(tmp_path, monkeypatch, policy=POLICY):
        answered = set(built[0].server._request_handlers)
        heard = set(built[0].server._notification_handlers)
    assert answered | {"initialize"} == GOVERNED | FILTERED | CHECKED | HARMLESS
    assert heard <= {"notifications/initialized", "notifications/cancelled", "notifications/progress"}


# While a call runs.


async def test_progress_reaches_the_client_that_asked_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    shop = ScriptedSource()
    heard: list[Any] = []

    async def work(request: Request, caller: Caller) -> Reply:
        assert caller.progress is not None
        for step in (1, 2, 3):
            await caller.progress(step, 3, f"step {step}")
        return a_reply()

    async def progressed(value: float, total: float | None, message: str | None) -> None:
        heard.append((value, total, message))

    shop.on["send"] = work
    async with served(tmp_path, monkeypatch, shop, policy=POLICY) as remit, remit.client(era) as client:
        await client.call_tool("shop.send", {"text": "hi"}, progress_callback=progressed)
        await until(lambda: len(heard) == 3)
        assert heard == [(1, 3, "step 1"), (2, 3, "step 2"), (3, 3, "step 3")]


@pytest.mark.parametrize("with_progress", [False, True], ids=["plain", "progress"])
async def test_a_client_that_gives_up_takes_its_call_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str, with_progress: bool
) -> None:
    shop = ScriptedSource()
    gate = Gate()
    shop.on["send"] = gate
    options: dict[str, Any] = {"progress_callback": _hear_nothing} if with_progress else {}
    async with served(tmp_path, monkeypatch, shop, policy=POLICY) as remit, remit.client(era) as client:
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                await client.call_tool("shop.send", {"text": "hi"}, **options)

            tasks.start_soon(send)
            await shop.reached()
            tasks.cancel_scope.cancel()
        await until(lambda: gate.ended)
        assert gate.ended == ["cancelled"]
        await until(lambda: remit.rows("SELECT state FROM calls") == [{"state": "in_doubt"}])
        # The connection is as good as before.
        shop.on["send"] = "ok"
        assert not (await client.call_tool("shop.send", {"text": "ho"})).is_error


async def _hear_nothing(value: float, total: float | None, message: str | None) -> None: ...


# Bugs stay inside.


@pytest.mark.parametrize("with_progress", [False, True], ids=["plain", "progress"])
async def test_a_bug_of_an_adapter_tells_the_client_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    era: str,
    with_progress: bool,
) -> None:
    library = a_library()
    library.on |= {"send": ValueError(SECRET), "shop://open": KeyError(SECRET)}
    options: dict[str, Any] = {"progress_callback": _hear_nothing} if with_progress else {}
    with caplog.at_level(logging.ERROR, "remit.front"):
        async with served(tmp_path, monkeypatch, library, policy=READERS) as remit:
            async with remit.client(era) as client:
                with pytest.raises(MCPError) as caught:
                    await client.call_tool("shop.send", {"text": "hi"}, **options)
                assert (caught.value.error.code, caught.value.error.message) == (-32603, "Internal error")
                assert caught.value.error.data is None
                assert not (await client.call_tool("shop.look", {"thing": "pen"})).is_error
            async with remit.client(era, "agent:reader") as client:
                with pytest.raises(MCPError) as caught:
                    await client.read_resource("shop://open")
                assert (caught.value.error.code, caught.value.error.message) == (-32603, "Internal error")
    # The operator is told everything.
    assert SECRET in caplog.text


async def test_a_bug_in_a_list_tells_the_client_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError(SECRET)

    async with served(tmp_path, monkeypatch, policy=POLICY) as remit, remit.client(era) as client:
        monkeypatch.setattr("remit.front.visible.Views.of", broken)
        for listing in (
            client.list_tools,
            client.list_resources,
            client.list_resource_templates,
            client.list_prompts,
        ):
            with pytest.raises(MCPError) as caught:
                await listing()
            assert (caught.value.error.code, caught.value.error.message) == (-32603, "Internal error")
            assert caught.value.error.data is None


OK = [{"type": "text", "text": "ok"}]
WRONG: list[dict[str, Any]] = [
    {},
    {"content": 5},
    {"content": [{"type": "hologram", "text": "of a shelf"}]},
    {"content": [{"type": "text"}]},
    {"content": OK, "structuredContent": "text"},
    {"content": OK, "structuredContent": [1]},
    {"content": OK, "isError": "yes"},
    {"content": OK, "_meta": 7},
    {"content": OK, "_meta": ["x"]},
    {"content": [{"type": "image", "data": "???", "mimeType": 5}]},
    {"content": {}, "structuredContent": None, "resultType": "complete"},
    {"resultType": 7, "content": []},
    {"content": OK * 3000},
    {"content": [[[[[[[[["deep"]]]]]]]]]},
]


async def test_an_answer_of_the_wrong_shape_is_recorded_and_shows_nothing_of_the_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    """Whether it arrives or is refused is the revision's business; that it happened is on record."""
    shop = ScriptedSource()
    async with served(tmp_path, monkeypatch, shop, policy=POLICY) as remit:
        key = await remit.key()
        call: dict[str, Any] = {"name": "shop.send"}
        if era == "legacy":
            headers = await handshake(remit, key)
        else:
            call["_meta"] = {
                "io.modelcontextprotocol/protocolVersion": era,
                "io.modelcontextprotocol/clientCapabilities": {},
            }
            headers = {"mcp_protocol_version": era, "mcp_method": "tools/call", "mcp_name": "shop.send"}
        for number, body in enumerate(WRONG):
            shop.on["send"] = Reply(body=body)
            arguments = {"arguments": {"text": str(number)}}
            response = await remit.post(message("tools/call", {**call, **arguments}), key, **headers)
            assert '"id":1' in response.text, body
            for inside in ("Traceback", "pydantic", "validation error", ".py", "mcp_types", "TypeError"):
                assert inside not in response.text, body
        states = remit.rows("SELECT state, COUNT(*) AS n FROM calls GROUP BY state")
        assert states == [{"state": "succeeded", "n": len(WRONG)}]


def message(method: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


async def handshake(remit: Served, key: str) -> dict[str, str]:
    """The headers of a session of the older revisions."""
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    greeted = await remit.post(message("initialize", hello), key)
    session = {"mcp_session_id": greeted.headers["mcp-session-id"], "mcp_protocol_version": "2025-11-25"}
    await remit.post({"jsonrpc": "2.0", "method": "notifications/initialized"}, key, **session)
    return session


async def test_while_keys_cannot_be_read_nobody_passes_and_everybody_may_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, monkeypatch, policy=POLICY) as remit:
        key = await remit.key()
        away = tmp_path / "away"
        remit.path.rename(away)
        refused = await remit.post(message("tools/list", {}), key)
        away.rename(remit.path)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert str(tmp_path) not in refused.text
        async with remit.client() as client:
            assert (await client.list_tools()).tools


async def test_while_nothing_can_be_recorded_agents_are_told_so_and_then_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    shop = ScriptedSource()
    async with served(tmp_path, monkeypatch, shop, policy=POLICY) as remit, remit.client(era) as client:
        with full_disk(remit.path):
            result = await client.call_tool("shop.send", {"text": "hi"})
            assert result.meta is not None
            assert result.meta[VERDICT]["code"] == "audit_unavailable"
            assert shop.sent == []
            assert (await client.list_tools()).tools
        assert not (await client.call_tool("shop.send", {"text": "hi"})).is_error


# Remit's own tools.


async def test_an_agent_takes_its_own_call_back_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    shop = ScriptedSource()
    shop.on["buy"] = {"order": "o-1"}
    async with (
        served(tmp_path, monkeypatch, shop, policy=POLICY) as remit,
        remit.client(era) as mine,
        remit.client(era, "agent:other") as theirs,
    ):
        bought = await mine.call_tool("shop.buy", {"thing": "pen", "price": 5})
        assert bought.meta is not None
        call_id = bought.meta[RECEIPT]["call_id"]
        stolen = await theirs.call_tool("remit.undo", {"call_id": call_id})
        invented = await theirs.call_tool("remit.undo", {"call_id": "01a3185c-5000-7000-8000-000000000000"})
        assert stolen.is_error
        assert texts(stolen) == texts(invented)
        undone = await mine.call_tool("remit.undo", {"call_id": call_id})
        assert undone.structured_content is not None
        assert undone.structured_content["state"] == "done"
        again = await mine.call_tool("remit.undo", {"call_id": call_id})
        assert again.is_error
        assert "at most once" in texts(again)
        assert len(shop.effects("give_back")) == 1


async def test_an_undo_that_people_must_agree_to_waits_and_runs_when_it_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    shop = ScriptedSource()
    shop.on["buy"] = {"order": "o-1"}
    asking = POLICY + "p2, *, acme, shop.buy, undo, 1 == 1, approvals=1\n"
    async with (
        served(tmp_path, monkeypatch, shop, policy=asking) as remit,
        remit.client(era) as client,
    ):
        bought = await client.call_tool("shop.buy", {"thing": "pen", "price": 5})
        assert bought.meta is not None
        wanted = {"call_id": bought.meta[RECEIPT]["call_id"]}
        waits = await client.call_tool("remit.undo", wanted)
        assert waits.is_error
        assert waits.meta is not None
        told = waits.meta[VERDICT]
        assert (told["verdict"], told["code"], told["remedy"]) == ("approve", "pending_approval", "wait")
        status = await client.call_tool("remit.status", {})
        assert status.structured_content is not None
        assert status.structured_content["pending_approvals"][0]["id"] == told["approval_id"]
        with open_records(remit.path) as records:
            asked = records.approval(told["approval_id"])
        request = approvals.Request(
            id=asked.id,
            call_id=asked.call_id,
            tenant=asked.tenant,
            agent=asked.agent,
            user=asked.user,
            shown=asked.shown,
        )
        await approvals.answer(request, user="user:bea", vote="approve", comment="", on=remit.on)
        undone = await client.call_tool("remit.undo", wanted)
        assert undone.structured_content is not None
        assert undone.structured_content["by_call"] == told["call_id"]
        assert (await client.call_tool("remit.undo", wanted)).is_error
        assert len(shop.effects("give_back")) == 1


async def test_an_agent_withdraws_its_own_request_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    async with (
        served(tmp_path, monkeypatch, policy=POLICY) as remit,
        remit.client(era) as mine,
        remit.client(era, "agent:other") as theirs,
    ):
        waiting = await mine.call_tool("shop.buy", {"thing": "car", "price": 500})
        assert waiting.meta is not None
        request = {"approval_id": waiting.meta[VERDICT]["approval_id"]}
        assert (await theirs.call_tool("remit.withdraw", request)).is_error
        assert not (await mine.call_tool("remit.withdraw", request)).is_error
        assert (await mine.call_tool("remit.withdraw", request)).is_error
        assert remit.rows("SELECT state FROM approvals") == [{"state": "withdrawn"}]


async def test_an_agent_that_serves_several_users_tells_none_of_them_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    several = POLICY + "g3, agent:bot, user:cyd, acme\n"
    held_back = tools(send={"effect": "deferred", "hold_back": "1h"})
    async with (
        served(tmp_path, monkeypatch, policy=several, tools=held_back) as remit,
        remit.client(era) as for_ann,
        remit.client(era, user="user:cyd") as for_cyd,
    ):
        waiting = await for_ann.call_tool("shop.buy", {"thing": "car", "price": 500})
        assert waiting.meta is not None
        request = {"approval_id": waiting.meta[VERDICT]["approval_id"]}
        assert not (await for_ann.call_tool("shop.send", {"text": "hi"})).is_error
        for client, known in ((for_ann, 1), (for_cyd, 0)):
            told = (await client.call_tool("remit.status", {})).structured_content
            assert told is not None
            assert [len(told[about]) for about in ("pending_approvals", "held_back")] == [known, known]
        refused = await for_cyd.call_tool("remit.withdraw", request)
        unknown = await for_cyd.call_tool("remit.withdraw", {"approval_id": "nothing"})
        assert refused.is_error
        assert texts(refused) == texts(unknown)
        assert remit.rows("SELECT state FROM approvals") == [{"state": "pending"}]


async def test_an_agent_is_told_of_the_switches_that_concern_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, monkeypatch, policy=POLICY) as remit, remit.client() as client:

        async def on(kind: str, scope: str, target: str, tenant: str) -> list[str]:
            await remit.on.journal.switch(
                kind=kind, scope=scope, target=target, tenant=tenant, on=True, reason="", by="user:bea"
            )
            told = (await client.call_tool("remit.status", {})).structured_content
            assert told is not None
            return told["switches_on"]

        assert await on("kill", "tenant", "elsewhere", "") == []
        assert await on("kill", "agent", "agent:bot", "elsewhere") == []
        assert await on("kill", "agent", "agent:other", "acme") == []
        assert await on("safe", "agent", "agent:bot", "acme") == ["safe"]
        assert await on("kill", "tool", "shop.look", "acme") == ["kill", "safe"]


async def test_what_a_call_would_be_can_be_asked_without_making_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    shop = ScriptedSource()
    async with served(tmp_path, monkeypatch, shop, policy=READERS) as remit:
        async with remit.client(era) as client:
            for price, verdict in ((5, "execute"), (500, "approve"), (3000, "advise"), (90_000, "deny")):
                question = {"tool": "shop.buy", "arguments": {"thing": "pen", "price": price}}
                told = (await client.call_tool("remit.explain", question)).structured_content
                assert told is not None
                assert told["verdict"] == verdict
        async with remit.client(era, "agent:reader") as client:
            hidden = await client.call_tool("remit.explain", {"tool": "shop.buy", "arguments": {}})
            absent = await client.call_tool("remit.explain", {"tool": "shop.bux"})  # no arguments: {}
            assert texts(hidden).replace("buy", "X") == texts(absent).replace("bux", "X")
        assert shop.sent == []
        assert remit.rows("SELECT id FROM calls") == []


NOT_THEIRS: list[tuple[str, dict[str, Any]]] = [
    ("remit.undo", {}),
    ("remit.undo", {"call_id": 7}),
    ("remit.undo", {"call_id": ""}),
    ("remit.undo", {"call_id": "x" * 129}),
    ("remit.undo", {"call_id": "x", "force": True}),
    ("remit.explain", {"tool": "shop.buy", "arguments": []}),
    ("remit.withdraw", {"approval_id": None}),
    ("remit.status", {"tenant": "other"}),
]


async def test_own_tools_take_no_other_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    async with served(tmp_path, monkeypatch, policy=POLICY) as remit, remit.client(era) as client:
        for tool, arguments in NOT_THEIRS:
            result = await client.call_tool(tool, arguments)
            assert result.is_error
            assert result.meta is not None
            assert result.meta[VERDICT]["code"] == "invalid_arguments", (tool, arguments)


async def test_own_tools_that_are_switched_off_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    async with (
        served(tmp_path, monkeypatch, policy=POLICY, agent_tools=["status"]) as remit,
        remit.client(era) as client,
    ):
        own = {name for name in names((await client.list_tools()).tools) if name.startswith("remit.")}
        assert own == {"remit.status"}
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("remit.undo", {"call_id": "x"})


# Changes.


async def test_what_a_source_newly_offers_can_be_called_and_what_it_took_away_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    shop = ScriptedSource()
    policy = POLICY + "p, role:clerk, acme, shop.wave, execute, 1 == 1, allow\n"
    async with (
        served(tmp_path, monkeypatch, shop, policy=policy, tools=tools()) as remit,
        remit.client(era) as client,
    ):
        shop.offered = Offer(tools=(a_definition("look", thing="string"), a_definition("wave")))
        shop.on_event(Event(kind="tools"))
        await until(lambda: "shop.wave" in remit.on.catalog.tools)
        listed = names((await client.list_tools()).tools)
        assert {name for name in listed if name.startswith("shop.")} == {"shop.look", "shop.wave"}
        assert not (await client.call_tool("shop.wave", {})).is_error
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("shop.send", {"text": "hi"})


async def test_a_change_is_announced_to_sessions_of_the_older_revisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, heard = ScriptedSource(), list[Any]()

    async def hear(said: Any) -> None:
        heard.append(said)

    async with (
        served(tmp_path, monkeypatch, shop, policy=POLICY) as remit,
        remit.client("legacy", message_handler=hear) as client,
    ):
        await client.list_tools()
        with anyio.fail_after(20):
            while not heard:
                # The stream on which it comes opens beside the first request, so the first may be early.
                shop.on_event(Event(kind="tools"))
                await anyio.sleep(0.05)
        assert isinstance(heard[0], t.ToolListChangedNotification)


async def test_who_may_not_read_a_resource_is_not_told_of_its_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = a_library()
    async with (
        served(tmp_path, monkeypatch, library, policy=READERS) as remit,
        remit.client("legacy", "agent:reader") as client,
    ):
        with pytest.raises(MCPError) as caught:
            await client.subscribe_resource("shop://closed")
        assert caught.value.error.data[VERDICT]["code"] == "no_rule"
        listening = message(
            "subscriptions/listen",
            {
                "notifications": {"resourceSubscriptions": ["shop://closed"]},
                "_meta": {
                    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                    "io.modelcontextprotocol/clientCapabilities": {},
                },
            },
        )
        key = await remit.key("agent:reader")
        headers = {"mcp_protocol_version": "2026-07-28", "mcp_method": "subscriptions/listen"}
        assert "no_rule" in (await remit.post(listening, key, **headers)).text
        await remit.on.journal.switch(
            kind="kill", scope="agent", target="agent:reader", tenant="", on=True, reason="", by="user:bea"
        )
        with pytest.raises(MCPError) as caught:
            await client.subscribe_resource("shop://open")
        assert caught.value.error.data[VERDICT]["code"] == "stopped"
        assert library.subscribed == []
        codes = remit.rows("SELECT code FROM calls ORDER BY created_us")
        assert [row["code"] for row in codes] == ["no_rule", "no_rule", "stopped"]


async def test_who_did_not_subscribe_does_not_hear_of_a_resource(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = a_library()
    heard: dict[str, list[Any]] = {"agent:reader": [], "agent:bot": []}

    def ear(agent: str) -> Any:
        async def hear(said: Any) -> None:
            heard[agent].append(said)

        return hear

    async with (
        served(tmp_path, monkeypatch, library, policy=READERS) as remit,
        remit.client("legacy", "agent:reader", message_handler=ear("agent:reader")) as reader,
        remit.client("legacy", "agent:bot", message_handler=ear("agent:bot")) as bot,
    ):
        await bot.list_tools()
        with pytest.raises(MCPError):
            await bot.subscribe_resource("shop://open")
        await reader.subscribe_resource("shop://open")
        assert library.subscribed == [("shop://open", True)]
        with anyio.fail_after(20):
            while not heard["agent:reader"]:
                library.on_event(Event(kind="resource_updated", uri="shop://open"))
                await anyio.sleep(0.05)
        library.on_event(Event(kind="tools"))
        await until(lambda: heard["agent:bot"])
        assert {type(said) for said in heard["agent:bot"]} == {t.ToolListChangedNotification}
