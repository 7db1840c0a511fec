"""What state the way back of a call is in, told alike wherever it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread
from tests.server.builders import Clock, Gate, Remit, a_principal, a_remit, a_reply, rows, tools
from tests.server.test_erasing import ROLES, a_place

from remit.due import send_due
from remit.erasing import finish
from remit.ids import now_us
from remit.model import Refused
from remit.records import open_records
from remit.states import WAY_BACK_STATES
from remit.undo import undo
from remit_adapters.base import AdapterError, Caller, Reply, Request

RULES = tools(send={"effect": "deferred", "hold_back": "10m"}, give_back={"effect": "irreversible"})
MAY_UNDO = ROLES + "p, role:clerk, acme, shop.send, undo, 1 == 1, allow\n"
LOST = AdapterError("The line broke.", no_effect=False)
PEN = {"thing": "pen", "price": 5}
DAY_US = 86_400_000_000


class Shelf:
    """A pen with a value behind the shop's tools, which outsiders may change, too."""

    def __init__(self, remit: Remit) -> None:
        self.value = 0
        remit.source.on.update(look=self.look, set=self.set, buy={"order": "o-1"})

    async def look(self, request: Request, caller: Caller) -> Reply:
        return a_reply({"value": self.value})

    async def set(self, request: Request, caller: Caller) -> Reply:
        self.value = request.arguments["value"]
        return a_reply({"ok": True})


async def bought(remit: Remit, shelf: Shelf) -> str:
    return (await remit.call("shop.buy", PEN)).call_id


async def put(remit: Remit, shelf: Shelf, value: int = 1) -> str:
    return (await remit.done("shop.set", {"thing": "pen", "value": value})).call_id


async def sent(remit: Remit, shelf: Shelf) -> str:
    """Held back until just now, and sent."""
    held_back = await remit.call("shop.send", {"text": "hello"})
    remit.clock.advance(s=601)
    await send_due(remit.on)
    return held_back.call_id


async def lost(remit: Remit, shelf: Shelf) -> str:
    remit.source.on["buy"] = LOST
    return (await remit.call("shop.buy", {"thing": "cup", "price": 5})).call_id


async def refused_by_its_source(remit: Remit, shelf: Shelf) -> str:
    remit.source.on["buy"] = a_reply("sold out", is_error=True)
    return await bought(remit, shelf)


async def without_an_order(remit: Remit, shelf: Shelf) -> str:
    remit.source.on["buy"] = {"no": "order"}
    return await bought(remit, shelf)


async def given_back(remit: Remit, shelf: Shelf) -> str:
    call_id = await bought(remit, shelf)
    await undo(call_id, a_principal(), "run-1", remit.on)
    return call_id


async def not_given_back(remit: Remit, shelf: Shelf) -> str:
    remit.source.on["give_back"] = a_reply("no", is_error=True)
    return await given_back(remit, shelf)


async def perhaps_given_back(remit: Remit, shelf: Shelf) -> str:
    remit.source.on["give_back"] = LOST
    return await given_back(remit, shelf)


async def changed_by_another(remit: Remit, shelf: Shelf) -> str:
    call_id = await put(remit, shelf)
    await put(remit, shelf, 2)
    return call_id


async def changed_by_an_outsider(remit: Remit, shelf: Shelf) -> str:
    """Nobody knows of them before somebody looks."""
    call_id = await put(remit, shelf)
    shelf.value = 7
    await undo(call_id, a_principal(), "run-1", remit.on)
    return call_id


async def no_more_changed_by_an_outsider(remit: Remit, shelf: Shelf) -> str:
    """They took it back themselves, and the source would not have the undo just then."""
    call_id = await changed_by_an_outsider(remit, shelf)
    shelf.value = 1
    remit.source.on["set"] = AdapterError("Not now.", no_effect=True)
    await undo(call_id, a_principal(), "run-1", remit.on)
    return call_id


async def happened_unseen(remit: Remit, shelf: Shelf) -> str:
    """A person found that it had happened: of the answer that its way back is made of nothing is known."""
    call_id = await lost(remit, shelf)
    await remit.on.journal.resolve(call_id, happened=True, reason="It is there.", by="user:bea")
    return call_id


async def erase(remit: Remit, user: str) -> None:
    journal = remit.on.journal
    for key in (await journal.erase(tenant="acme", subject=user, reason="asked", by="user:bea")).uncleared:
        await finish(journal, key, tenant="acme", subject=user)


async def erased_before_its_undo_was_known_to_have_failed(remit: Remit, shelf: Shelf) -> str:
    call_id = await perhaps_given_back(remit, shelf)
    await erase(remit, "user:ann")
    back = remit.one("SELECT undo_call FROM undos WHERE call_id = ?", call_id)["undo_call"]
    await remit.on.journal.resolve(back, happened=False, reason="No.", by="user:bea", force=True)
    return call_id


async def changed_by_somebody_erased(remit: Remit, shelf: Shelf) -> str:
    call_id = await bought(remit, shelf)
    await remit.done("shop.buy", PEN, principal=a_principal(user="user:bea"))
    await erase(remit, "user:bea")
    refused = await undo(call_id, a_principal(), "run-1", remit.on)
    assert isinstance(refused, Refused)
    assert refused.verdict.code == "undo_conflict"
    return call_id


async def looked(remit: Remit, shelf: Shelf) -> str:
    return (await remit.done("shop.look", {"thing": "pen"})).call_id


Story = Callable[[Remit, Shelf], Awaitable[str]]
STATES: dict[Story, str | None] = {
    lost: "registered",
    bought: "ready",
    put: "ready",
    no_more_changed_by_an_outsider: "ready",
    given_back: "done",
    changed_by_another: "conflict",
    changed_by_an_outsider: "conflict",
    not_given_back: "failed",
    perhaps_given_back: "indeterminate",
    sent: "expired",
    refused_by_its_source: "impossible",
    without_an_order: "impossible",
    happened_unseen: "impossible",
    erased_before_its_undo_was_known_to_have_failed: "impossible",
    changed_by_somebody_erased: "conflict",
    looked: None,
}
each_story = pytest.mark.parametrize(
    ("story", "state"), [pytest.param(*pair, id=pair[0].__name__) for pair in STATES.items()]
)


@pytest.mark.usefixtures("every_database")
async def test_every_database_tells_of_a_conflict_with_what_is_erased(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=MAY_UNDO, tools=RULES, clock=Clock(now_us())) as remit:
        call_id = await changed_by_somebody_erased(remit, Shelf(remit))
        assert remit.one("SELECT way_back FROM run_timeline WHERE id = ?", call_id)["way_back"] == "conflict"
        with open_records(remit.path) as records:
            assert records.call(call_id).way_back == "conflict"


@pytest.mark.usefixtures("every_database")
async def test_every_database_tells_the_same_states(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=MAY_UNDO, tools=RULES, clock=Clock(now_us())) as remit:
        shelf = Shelf(remit)
        stories = (given_back, changed_by_another, bought, looked, sent, lost)
        expected = {await story(remit, shelf): STATES[story] for story in stories}
        timeline = remit.rows("SELECT id, way_back FROM run_timeline WHERE kind = 'call'")
        assert expected.items() <= {row["id"]: row["way_back"] for row in timeline}.items()
        with open_records(remit.path) as records:
            assert {id_: records.call(id_).way_back for id_ in expected} == expected
        can_be = {row["id"] for row in remit.rows("SELECT id FROM undoable")}
        assert can_be & expected.keys() == {id_ for id_, state in expected.items() if state == "ready"}


def told(folder: Path, call_id: str) -> set[Any]:
    """The state of a way back by everybody who says it."""
    shell = a_place(folder, tools=RULES)
    shown = shell("calls", "show", call_id).out
    (in_list,) = [call for call in shell.json("calls", "list") if call["id"] == call_id]
    (in_run,) = rows(folder / "remit.db", "SELECT way_back FROM run_timeline WHERE id = ?", call_id)
    story = shell.json("calls", "show", call_id)
    said = {story["call"]["way_back"], in_list["way_back"], in_run["way_back"]}
    if story["undo"]:
        said.add(story["undo"]["state"])
    (state, *_) = said
    assert (f"way back  {state}" in shown) == (state is not None)
    can_be = rows(folder / "remit.db", "SELECT 1 FROM undoable WHERE id = ?", call_id)
    assert bool(can_be) == (state == "ready")
    return said


@each_story
async def test_the_state_of_a_way_back_is_told_alike_everywhere(
    tmp_path: Path, story: Story, state: str | None
) -> None:
    async with a_remit(tmp_path, policy=MAY_UNDO, tools=RULES, clock=Clock(now_us())) as remit:
        call_id = await story(remit, Shelf(remit))
    assert told(tmp_path, call_id) == {state}


async def test_what_could_be_taken_back_expires_as_time_goes_by(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ROLES, tools=RULES, clock=Clock(now_us() - 2 * DAY_US)) as remit:
        call_id = await bought(remit, Shelf(remit))
    assert told(tmp_path, call_id) == {"expired"}
    assert "way back  expired, since " in a_place(tmp_path)("calls", "show", call_id).out


def test_what_expired_stays_so_when_what_it_carried_is_of_age(tmp_path: Path) -> None:
    async def long_ago() -> str:
        clock = Clock(now_us() - 3 * DAY_US)
        async with a_remit(tmp_path, policy=ROLES, tools=RULES, clock=clock) as remit:
            return await bought(remit, Shelf(remit))

    call_id = asyncio.run(long_ago())
    shell = a_place(tmp_path, audit={"retention": {"payloads": "2d"}})
    assert shell.json("audit", "retain")["payloads"] == 1
    assert told(tmp_path, call_id) == {"expired"}
    assert shell("audit", "verify").code == 0


async def test_while_it_is_taken_back_its_way_back_is_running(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ROLES, tools=RULES, clock=Clock(now_us())) as remit:
        call_id, gate = await bought(remit, Shelf(remit)), Gate()
        remit.source.on["give_back"] = gate

        async def give_back_when_looked_at() -> None:
            await remit.source.reached(2)
            try:
                assert await to_thread.run_sync(told, tmp_path, call_id) == {"running"}
            finally:
                gate.open()

        await asyncio.gather(undo(call_id, a_principal(), "run-1", remit.on), give_back_when_looked_at())
    assert told(tmp_path, call_id) == {"done"}


def test_every_state_is_tried_here() -> None:
    assert {*STATES.values(), "running"} - {None} == set(WAY_BACK_STATES)


async def test_an_undo_that_did_nothing_took_nothing_back_in_the_report(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ROLES, tools=RULES, clock=Clock(now_us())) as remit:
        shelf = Shelf(remit)
        remit.source.on["give_back"] = AdapterError("Not now.", no_effect=True)
        await undo(await bought(remit, shelf), a_principal(), "run-1", remit.on)
        assert remit.one("SELECT state FROM undos") == {"state": "ready"}
        await perhaps_given_back(remit, shelf)
    (undone,) = [
        section
        for section in a_place(tmp_path, tools=RULES).json("report", "--from", "2000-01-01")["sections"]
        if section["title"] == "Undone"
    ]
    assert undone["rows"] == [["shop.buy", "user:ann", "indeterminate", 1]]


async def test_a_conflict_that_was_met_is_an_incident_in_the_report(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ROLES, tools=RULES, clock=Clock(now_us())) as remit:
        await changed_by_an_outsider(remit, Shelf(remit))
        # What was merely written over is none.
        await changed_by_another(remit, Shelf(remit))
    (incidents,) = [
        section
        for section in a_place(tmp_path, tools=RULES).json("report", "--from", "2000-01-01")["sections"]
        if section["title"] == "Incidents"
    ]
    assert [row[1] for row in incidents["rows"]] == ["undo: conflict"]
