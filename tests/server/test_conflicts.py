"""What somebody changed since is not overwritten by an undo, whether they came through the gateway or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.server.builders import (
    POLICY,
    Remit,
    ScriptedSource,
    a_definition,
    a_principal,
    a_remit,
    a_reply,
    tools,
)

from remit.identity import Principal
from remit.model import Done, Outcome, Refused
from remit.records import open_records
from remit.reporting import report
from remit.undo import undo
from remit_adapters.base import AdapterError, Caller, Offer, Reply, Request

WITH_BOSS = POLICY + "p, role:boss, acme, shop.set, undo, 1 == 1, allow\n"
BOSS = Principal(tenant="acme", agent="agent:remit-cli", user="user:bea", auth="local")
VERSIONED = Offer(
    tools=(
        a_definition("look", thing="string"),
        {
            "name": "set",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "thing": {"type": "string"},
                    "value": {"type": "integer"},
                    "version": {"type": "integer"},
                },
                "required": ["thing", "value"],
            },
        },
    )
)
LOOK = {"call": "shop.look", "args": {"thing": "args.thing"}}


class Shelf:
    """Things with a value and a version behind the shop's tools. Outsiders may write as they like."""

    def __init__(self, source: ScriptedSource) -> None:
        self.values = {"pen": 0}
        self.version = 1
        source.on.update(look=self.look, set=self.set)

    def write(self, value: int) -> None:
        self.values["pen"] = value
        self.version += 1

    async def look(self, request: Request, caller: Caller) -> Reply:
        return a_reply({"value": self.values["pen"], "version": self.version, "read_by": request.key})

    async def set(self, request: Request, caller: Caller) -> Reply:
        if request.arguments.get("version", self.version) != self.version:
            return a_reply("somebody was faster", is_error=True)
        self.write(request.arguments["value"])
        return a_reply({"ok": True})


def rules(**read: Any) -> dict[str, Any]:
    return tools(set={"before": {**LOOK, "select": "{value: value}", **read}})


async def put(remit: Remit, value: int, **more: Any) -> str:
    return (await remit.done("shop.set", {"thing": "pen", "value": value}, **more)).call_id


async def taken_back(
    remit: Remit, call_id: str, principal: Principal | None = None, *, force: bool = False
) -> Outcome:
    return await undo(call_id, principal or a_principal(), "run-1", remit.on, force=force)


def code(outcome: Outcome) -> str:
    assert isinstance(outcome, Refused), outcome
    return outcome.verdict.code


async def test_what_an_outsider_wrote_since_is_not_overwritten(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=rules()) as remit:
        shelf = Shelf(remit.source)
        call_id = await put(remit, 1)
        shelf.write(7)
        refused = await taken_back(remit, call_id)
        assert code(refused) == "undo_conflict"
        assert remit.state(refused.call_id) == "denied"
        assert shelf.values == {"pen": 7}
        # Once it is as the call left it, it can be taken back.
        shelf.write(1)
        assert isinstance(await taken_back(remit, call_id), Done)
        assert shelf.values == {"pen": 0}


async def test_the_same_value_written_again_through_the_gateway_is_a_conflict(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=rules()) as remit:
        shelf = Shelf(remit.source)
        mine = await put(remit, 1)
        await put(remit, 1, principal=a_principal("agent:other"))
        assert code(await taken_back(remit, mine)) == "undo_conflict"
        assert shelf.values == {"pen": 1}


async def test_the_same_value_written_again_by_an_outsider_shows_in_the_version(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=rules(etag="result.version")) as remit:
        shelf = Shelf(remit.source)
        call_id = await put(remit, 1)
        shelf.write(1)
        assert code(await taken_back(remit, call_id)) == "undo_conflict"


async def test_calls_on_the_same_thing_come_back_one_after_another_although_versions_move_on(
    tmp_path: Path,
) -> None:
    async with a_remit(tmp_path, tools=rules(etag="result.version")) as remit:
        shelf = Shelf(remit.source)
        one, two = await put(remit, 1), await put(remit, 2)
        assert isinstance(await taken_back(remit, two), Done)
        assert isinstance(await taken_back(remit, one), Done)
        assert shelf.values == {"pen": 0}


async def test_an_outsider_who_writes_the_same_between_two_undos_is_noticed(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=rules(etag="result.version")) as remit:
        shelf = Shelf(remit.source)
        one, two = await put(remit, 1), await put(remit, 2)
        assert isinstance(await taken_back(remit, two), Done)
        shelf.write(1)
        assert code(await taken_back(remit, one)) == "undo_conflict"


async def test_an_outsider_who_writes_the_same_between_two_calls_is_noticed(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=rules(etag="result.version")) as remit:
        shelf = Shelf(remit.source)
        one = await put(remit, 1)
        shelf.write(1)
        two = await put(remit, 2)
        assert isinstance(await taken_back(remit, two), Done)
        assert code(await taken_back(remit, one)) == "undo_conflict"
        assert shelf.values == {"pen": 1}


async def test_a_person_may_insist_and_then_both_states_are_on_record(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=rules(), policy=WITH_BOSS) as remit:
        shelf = Shelf(remit.source)
        call_id = await put(remit, 1)
        shelf.write(7)
        done = await taken_back(remit, call_id, BOSS, force=True)
        assert isinstance(done, Done)
        assert shelf.values == {"pen": 0}
        with open_records(remit.path) as records:
            assert records.story(call_id).after == {"value": 1}
            assert records.story(done.call_id).before == {"value": 7}
        (body,) = (
            orjson.loads(row["body"])
            for row in remit.rows(
                "SELECT body FROM events WHERE call_id = ? AND kind = 'call.dispatched'", done.call_id
            )
        )
        assert body["forced"] is True


async def test_what_a_person_took_back_from_below_does_not_come_again_with_a_later_undo(
    tmp_path: Path,
) -> None:
    async with a_remit(tmp_path, tools=rules(), policy=WITH_BOSS) as remit:
        shelf = Shelf(remit.source)
        one = await put(remit, 1)
        two = await put(remit, 0)
        assert isinstance(await taken_back(remit, one, BOSS, force=True), Done)
        # What the second call left and what is there now look the same, and it replaced what is gone.
        assert code(await taken_back(remit, two)) == "undo_conflict"
        assert shelf.values == {"pen": 0}
        assert isinstance(await taken_back(remit, two, BOSS, force=True), Done)


async def test_a_call_whose_state_was_never_seen_is_for_people_to_take_back(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=rules(), policy=WITH_BOSS) as remit:
        shelf = Shelf(remit.source)
        answers = [a_reply({"value": 0}), AdapterError("down", no_effect=True)]

        async def look_once(request: Request, caller: Caller) -> Reply:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        remit.source.on["look"] = look_once
        call_id = await put(remit, 1)
        remit.source.on["look"] = shelf.look
        assert code(await taken_back(remit, call_id)) == "undo_conflict"
        assert isinstance(await taken_back(remit, call_id, BOSS, force=True), Done)


async def test_what_cannot_be_read_now_is_not_taken_back_now(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=rules()) as remit:
        shelf = Shelf(remit.source)
        call_id = await put(remit, 1)
        remit.source.on["look"] = AdapterError("down", no_effect=True)
        assert code(await taken_back(remit, call_id)) == "undo_unseen"
        remit.source.on["look"] = shelf.look
        assert isinstance(await taken_back(remit, call_id), Done)


async def test_a_reversible_call_is_compared_when_its_tool_says_what_to_read(tmp_path: Path) -> None:
    after = {**LOOK, "select": "{value: value}"}
    async with a_remit(tmp_path, tools=tools(buy={"after": after})) as remit:
        remit.source.on.update(look={"value": 1}, buy={"order": "o-1"})
        call_id = (await remit.done("shop.buy", {"thing": "pen", "price": 5})).call_id
        assert [request.name for request in remit.source.sent] == ["buy", "look"]
        remit.source.on["look"] = {"value": 2}
        assert code(await taken_back(remit, call_id)) == "undo_conflict"
        remit.source.on["look"] = {"value": 1}
        assert isinstance(await taken_back(remit, call_id), Done)


async def test_looking_before_an_undo_works_while_everything_is_stopped_and_spent(tmp_path: Path) -> None:
    budgets = [{"scope": "agent", "unit": "calls", "window": "total", "limit": 1}]
    async with a_remit(tmp_path, tools=rules(), budgets=budgets) as remit:
        shelf = Shelf(remit.source)
        call_id = await put(remit, 1)
        await remit.switch("kill", "all")
        assert isinstance(await taken_back(remit, call_id), Done)
        assert shelf.values == {"pen": 0}


# The version goes with the call.


async def test_the_version_that_was_read_goes_with_the_call_and_with_its_undo(tmp_path: Path) -> None:
    versioned = rules(etag="result.version")
    versioned["shop.set"]["if_match"] = "version"
    async with a_remit(tmp_path, tools=versioned, source=ScriptedSource(offer=VERSIONED)) as remit:
        shelf = Shelf(remit.source)
        call_id = await put(remit, 1)
        assert isinstance(await taken_back(remit, call_id), Done)
        assert [request.arguments.get("version") for request in remit.source.effects("set")] == [1, 2]
        assert shelf.values == {"pen": 0}
        assert remit.one("SELECT best_effort FROM undos") == {"best_effort": 0}


async def test_who_writes_between_the_read_and_the_call_is_not_overwritten_where_there_are_versions(
    tmp_path: Path,
) -> None:
    versioned = rules(etag="result.version")
    versioned["shop.set"]["if_match"] = "version"
    async with a_remit(tmp_path, tools=versioned, source=ScriptedSource(offer=VERSIONED)) as remit:
        shelf = Shelf(remit.source)

        async def look_and_be_overtaken(request: Request, caller: Caller) -> Reply:
            reply = await shelf.look(request, caller)
            shelf.write(7)
            return reply

        remit.source.on["look"] = look_and_be_overtaken
        outcome = await remit.call("shop.set", {"thing": "pen", "value": 1})
        assert isinstance(outcome, Done)
        assert outcome.failed
        assert shelf.values == {"pen": 7}


async def test_who_writes_between_the_look_and_the_undo_is_a_conflict_and_not_a_failure(
    tmp_path: Path,
) -> None:
    versioned = rules(etag="result.version")
    versioned["shop.set"]["if_match"] = "version"
    source = ScriptedSource(offer=VERSIONED)
    async with a_remit(tmp_path, tools=versioned, source=source, policy=WITH_BOSS) as remit:
        shelf = Shelf(remit.source)
        call_id = await put(remit, 1)

        async def look_and_be_overtaken(request: Request, caller: Caller) -> Reply:
            reply = await shelf.look(request, caller)
            remit.source.on["look"] = shelf.look
            shelf.write(7)
            return reply

        remit.source.on["look"] = look_and_be_overtaken
        refused = await taken_back(remit, call_id)
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "undo_conflict"
        record = remit.record(refused.call_id)
        assert (record["state"], record["error_code"]) == ("failed", "undo_conflict")
        with open_records(remit.path) as records:
            way = records.undo(call_id)
            to_us = remit.clock() + 1000
            told = report(records, from_us=0, to_us=to_us, tenant=None, now_us=to_us)
        (incidents,) = (each.rows for each in told.sections if each.title == "Incidents")
        assert [row[1:] for row in incidents] == [["undo: conflict", "shop.set", call_id]]
        assert way is not None
        assert way.state == "conflict"
        assert shelf.values == {"pen": 7}
        # Nothing was undone, so a person may still insist.
        assert isinstance(await taken_back(remit, call_id), Refused)
        assert isinstance(await undo(call_id, BOSS, "cli", remit.on, force=True), Done)
        assert shelf.values == {"pen": 0}


@pytest.mark.parametrize("more", [{}, {"etag": "result.version"}])
async def test_without_a_version_in_the_call_the_way_back_is_best_effort(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    async with a_remit(tmp_path, tools=rules(**more)) as remit:
        Shelf(remit.source)
        await put(remit, 1)
        assert remit.one("SELECT best_effort FROM undos") == {"best_effort": 1}
