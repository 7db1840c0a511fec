"""Calls in doubt are resolved by looking for their effect, and only as far as that shows."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.server.acme import REPOSITORY, Terminal, a_place, made, refund_of
from tests.server.builders import (
    TOOLS,
    Clock,
    Gate,
    Remit,
    a_config,
    a_principal,
    a_remit,
    rows,
    tools,
    until,
)

from remit import catalog
from remit.app import App
from remit.config_file import load
from remit.errors import UnknownRecord, WrongState
from remit.ids import now_us
from remit.model import Done, InDoubt, Refused
from remit.pipeline import govern
from remit.probes import Prober, probe
from remit.records import open_records
from remit.reporting import report
from remit.undo import undo
from remit_adapters.base import AdapterError

everywhere = pytest.mark.usefixtures("every_database")
LOST = AdapterError("The line broke.", no_effect=False)
FIND = {
    "call": "shop.look",
    "args": {"thing": "args.thing"},
    "each": "result.orders",
    "match": "item.key == key",
}
RULES = tools(buy={"find": {**FIND, "complete": "not result.more"}, "price": {"usd": "args.price"}})
BUDGETS = [{"scope": "agent", "unit": "usd", "window": "total", "limit": 1000}]
PEN = {"thing": "pen", "price": 5}


async def in_doubt(remit: Remit, **more: Any) -> str:
    """A call whose answer was lost, long enough ago that it cannot arrive any more."""
    remit.source.on["buy"] = LOST
    outcome = await remit.call("shop.buy", PEN, **more)
    assert isinstance(outcome, InDoubt)
    remit.clock.advance(s=120)
    return outcome.call_id


def shows(remit: Remit, *orders: dict[str, Any], more: bool = False) -> None:
    remit.source.on["look"] = {"orders": list(orders), "more": more}


def held(remit: Remit) -> dict[str, Any]:
    return remit.one("SELECT held, posted FROM accounts")


async def test_what_is_found_settles_the_call_as_its_answer_would_have(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=RULES, budgets=BUDGETS) as remit:
        call_id = await in_doubt(remit)
        shows(remit, {"key": "another", "order": "o-1"}, {"key": call_id, "order": "o-2"})
        assert (await probe(call_id, remit.on)).state == "succeeded"
        assert held(remit) == {"held": 0, "posted": 5}
        assert "shop.look" in remit.record(call_id)["resolution"]
        assert remit.events(call_id) == ["call.dispatched", "call.in_doubt", "call.succeeded"]
        # And it comes back, by what was found.
        outcome = await undo(call_id, a_principal(), "run-1", remit.on)
        assert isinstance(outcome, Done)
        assert remit.source.effects("give_back")[0].arguments == {"order": "o-2"}


def declared_anew(remit: Remit, **rules: Any) -> None:
    """The configuration has changed, and whoever looks has been started with the new one."""
    remit.on.config = remit.on.config.model_copy(
        update={"tools": a_config(remit.on.config.store.path.parent, tools=tools(buy=rules)).tools}
    )
    remit.on.catalog = catalog.build(remit.on.config, {"shop": remit.source.offered})


@pytest.mark.parametrize(
    "rules",
    [
        {"undo": {"call": "shop.set", "args": {"thing": "result.order", "value": "0"}}},
        {"effect": "irreversible", "undo": None},
    ],
    ids=["another", "none"],
)
async def test_what_is_found_is_not_for_a_way_back_that_was_declared_since(
    tmp_path: Path, rules: dict[str, Any]
) -> None:
    async with a_remit(tmp_path, tools=RULES, budgets=BUDGETS) as remit:
        call_id = await in_doubt(remit)
        declared_anew(remit, find=FIND, **rules)
        shows(remit, {"key": call_id, "order": "o-2"})
        assert (await probe(call_id, remit.on)).state == "succeeded"
        with open_records(remit.path, clock=remit.clock) as records:
            assert records.call(call_id).way_back == "impossible"
        with pytest.raises(WrongState, match="its way back could not be worked out"):
            await undo(call_id, a_principal(), "run-1", remit.on)


async def test_what_is_found_has_cost_what_was_held_where_its_price_is_in_another_unit_by_now(
    tmp_path: Path,
) -> None:
    async with a_remit(tmp_path, tools=RULES, budgets=BUDGETS) as remit:
        call_id = await in_doubt(remit)
        declared_anew(remit, find=FIND, price={"eur": "args.price"})
        shows(remit, {"key": call_id, "order": "o-2"})
        assert (await probe(call_id, remit.on)).state == "succeeded"
        assert held(remit) == {"held": 0, "posted": 5}


@everywhere
async def test_of_two_who_look_at_once_one_concludes_and_the_other_goes_on(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=RULES, budgets=BUDGETS) as remit:
        call_id = await in_doubt(remit)
        gate = Gate({"orders": [{"key": call_id, "order": "o-1"}], "more": False})
        remit.source.on["look"] = gate
        looking = [asyncio.create_task(Prober().round(remit.on)) for _ in range(2)]
        await remit.source.reached(3)
        gate.open()
        found = [it.state for each in await asyncio.gather(*looking) for it in each]
        assert found == ["succeeded"]
        assert held(remit) == {"held": 0, "posted": 5}


@everywhere
async def test_an_answer_that_comes_after_a_look_has_told_changes_nothing(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"tools": RULES, "budgets": BUDGETS, "clock": Clock()}
    async with a_remit(tmp_path, **settings) as heir, a_remit(tmp_path, **settings) as sleeper:
        sleeper.source.on["buy"] = gate = Gate({"order": "o-1"})
        making = asyncio.create_task(sleeper.call("shop.buy", PEN))
        await sleeper.source.reached()
        sleeper.die()
        await heir.on.journal.take_over()
        heir.clock.advance(s=120)
        call_id = heir.one("SELECT id FROM calls")["id"]
        shows(heir, {"key": call_id, "order": "o-1"})
        assert (await probe(call_id, heir.on)).state == "succeeded"
        gate.open()
        assert isinstance(await making, InDoubt)
        assert heir.state(call_id) == "succeeded"
        assert held(heir) == {"held": 0, "posted": 5}


async def test_what_is_certainly_not_there_has_failed_and_may_be_sent_again(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=RULES, budgets=BUDGETS) as remit:
        call_id = await in_doubt(remit, client_key="k-1")
        shows(remit, {"key": "another", "order": "o-1"})
        assert (await probe(call_id, remit.on)).state == "failed"
        assert held(remit) == {"held": 0, "posted": 0}
        remit.source.on["buy"] = {"order": "o-9"}
        await remit.done("shop.buy", PEN, client_key="k-1")
        assert len(remit.source.effects("buy")) == 2


async def test_what_is_found_has_not_failed_whatever_words_are_in_it(tmp_path: Path) -> None:
    failing = tools(buy={**RULES["shop.buy"], "failed_when": "contains(lower(text), 'error')"})
    async with a_remit(tmp_path, tools=failing, budgets=BUDGETS) as remit:
        call_id = await in_doubt(remit)
        shows(remit, {"key": call_id, "order": "o-2", "note": "delivered in error"})
        assert (await probe(call_id, remit.on)).state == remit.state(call_id) == "succeeded"
        assert held(remit) == {"held": 0, "posted": 5}


@pytest.mark.parametrize(
    "find",
    [
        {**FIND, "bind": "item.order * item.order"},
        {**FIND, "args": {"thing": "args.price * 10000000000000000000"}},
    ],
)
async def test_a_number_that_nothing_can_carry_leaves_the_call_in_doubt(
    tmp_path: Path, find: dict[str, Any]
) -> None:
    async with a_remit(tmp_path, tools=tools(buy={"find": find})) as remit:
        call_id = await in_doubt(remit)
        shows(remit, {"key": call_id, "order": 2**60})
        assert [found.state for found in await Prober().round(remit.on)] == ["in_doubt"]


@pytest.mark.parametrize(
    "shown",
    [
        {"orders": [], "more": True},
        {"orders": [{"key": "KEY"}, {"key": "KEY"}], "more": False},
        {"orders": [{"name": "no key"}], "more": False},
        {"orders": "none", "more": False},
        {"more": False},
        {"orders": []},
        AdapterError("down", no_effect=True),
        "text",
    ],
)
async def test_what_proves_nothing_leaves_the_call_in_doubt(tmp_path: Path, shown: Any) -> None:
    async with a_remit(tmp_path, tools=RULES, budgets=BUDGETS) as remit:
        call_id = await in_doubt(remit)
        if isinstance(shown, dict) and isinstance(shown.get("orders"), list):
            shown = {**shown, "orders": [
                {name: call_id if value == "KEY" else value for name, value in order.items()}
                for order in shown["orders"]
            ]}  # fmt: skip
        remit.source.on["look"] = shown
        assert (await probe(call_id, remit.on)).state == "in_doubt"
        assert remit.state(call_id) == "in_doubt"
        assert held(remit) == {"held": 5, "posted": 0}


async def test_without_a_word_that_the_list_is_complete_absence_proves_nothing(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=tools(buy={"find": FIND})) as remit:
        call_id = await in_doubt(remit)
        shows(remit)
        assert (await probe(call_id, remit.on)).state == "in_doubt"


async def test_nobody_looks_before_the_call_can_no_longer_arrive(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=RULES) as remit:
        remit.source.on["buy"] = LOST
        outcome = await remit.call("shop.buy", PEN)
        shows(remit)
        with pytest.raises(WrongState, match="may still be under way"):
            await probe(outcome.call_id, remit.on)
        assert await Prober().round(remit.on) == []
        remit.clock.advance(s=120)
        assert [found.state for found in await Prober().round(remit.on)] == ["failed"]


async def test_only_a_call_in_doubt_is_looked_after(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=RULES) as remit:
        done = await remit.done("shop.look", {"thing": "pen"})
        with pytest.raises(WrongState, match="not in doubt"):
            await probe(done.call_id, remit.on)
        with pytest.raises(UnknownRecord):
            await probe("no-such-call", remit.on)


async def test_a_process_that_slept_past_the_deadline_sends_nothing(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=RULES) as remit:
        admitting = remit.on.journal.admit

        async def admit_and_sleep(*given: Any, **more: Any) -> Any:
            admitted = await admitting(*given, **more)
            remit.clock.advance(s=61)
            return admitted

        remit.on.journal.admit = admit_and_sleep  # pyright: ignore[reportAttributeAccessIssue] - a sleep
        outcome = await remit.call("shop.buy", PEN)
        assert remit.source.sent == []
        assert remit.state(outcome.call_id) == "failed"


@everywhere
async def test_an_answer_that_comes_when_a_probe_has_found_the_effect_changes_nothing(tmp_path: Path) -> None:
    async with (
        a_remit(tmp_path, tools=RULES, budgets=BUDGETS) as sleeper,
        a_remit(tmp_path, tools=RULES, budgets=BUDGETS, clock=sleeper.clock) as other,
    ):
        sleeper.source.on["buy"] = gate = Gate({"order": "o-1"})
        call = sleeper.a_call("shop.buy", PEN)
        late = asyncio.create_task(govern(call, sleeper.on))
        await sleeper.source.reached()
        await other.on.journal.doubt(
            call, call_id=call.id, code="interrupted", message="It seems to be dead."
        )
        sleeper.clock.advance(s=120)
        shows(other, {"key": call.id, "order": "o-1"})
        assert (await probe(call.id, other.on)).state == "succeeded"
        gate.open()
        outcome = await late
        assert isinstance(outcome, InDoubt)
        assert "others have concluded" in outcome.message
        assert (sleeper.state(call.id), held(sleeper)) == ("succeeded", {"held": 0, "posted": 5})


@everywhere
@pytest.mark.parametrize("says", [{"order": "o-1"}, AdapterError("Nothing was done.", no_effect=True)])
async def test_an_answer_that_contradicts_what_a_person_said_is_on_record(tmp_path: Path, says: Any) -> None:
    async with (
        a_remit(tmp_path, tools=RULES, budgets=BUDGETS) as sleeper,
        a_remit(tmp_path, tools=RULES, budgets=BUDGETS, clock=sleeper.clock) as other,
    ):
        sleeper.source.on["buy"] = gate = Gate(says)
        call = sleeper.a_call("shop.buy", PEN)
        late = asyncio.create_task(govern(call, sleeper.on))
        await sleeper.source.reached()
        await other.on.journal.doubt(
            call, call_id=call.id, code="interrupted", message="It seems to be dead."
        )
        sleeper.clock.advance(s=120)
        happened = isinstance(says, AdapterError)
        stands = await other.on.journal.resolve(call.id, happened=happened, reason="I looked", by="user:ann")
        gate.open()
        await late
        assert sleeper.state(call.id) == stands
        assert held(sleeper) == {"held": 0, "posted": 5 if happened else 0}
        assert sleeper.events(call.id)[-2:] == ["call.resolved", "call.contradicted"]
        with open_records(sleeper.path) as records:
            now_us = sleeper.clock()
            told = report(records, from_us=0, to_us=now_us, tenant=None, now_us=now_us)
        (incidents,) = (each for each in told.sections if each.title == "Incidents")
        assert [list(row)[1:] for row in incidents.rows][-1] == ["call.contradicted", "shop.buy", call.id]
        assert told.findings == ()


async def test_the_prober_looks_at_few_at_a_time_and_less_and_less_often(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=RULES) as remit:
        remit.source.on["buy"] = LOST
        for price in range(12):
            await remit.call("shop.buy", {"thing": "pen", "price": price})
        remit.clock.advance(s=120)
        shows(remit, more=True)
        prober = Prober()
        assert [len(await prober.round(remit.on)) for _ in range(3)] == [8, 4, 0]
        remit.clock.advance(s=31)
        assert len(await prober.round(remit.on)) == 8
        await prober.round(remit.on)
        remit.clock.advance(s=31)
        assert await prober.round(remit.on) == []
        remit.clock.advance(s=31)
        assert len(await prober.round(remit.on)) == 8


async def test_a_clock_that_was_set_back_keeps_nobody_from_looking(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=RULES) as remit:
        await in_doubt(remit)
        shows(remit, more=True)
        prober = Prober()
        remit.clock.advance(s=5 * 3600)
        assert len(await prober.round(remit.on)) == 1
        remit.clock.advance(s=-5 * 3600)
        assert len(await prober.round(remit.on)) == 1
        assert await prober.round(remit.on) == []


async def test_arguments_that_are_not_kept_exactly_prove_nothing(tmp_path: Path) -> None:
    policy = (
        "g, agent:bot, role:clerk, acme\ng, user:ann, role:clerk, acme\ng3, agent:bot, user:ann, acme\n"
        "p, role:clerk, acme, shop.buy, execute, 1 == 1, allow\n"
        "p2, role:clerk, acme, shop.buy, execute, 1 == 1, redact=args.thing\n"
    )
    async with a_remit(tmp_path, tools=RULES, policy=policy) as remit:
        call_id = await in_doubt(remit)
        shows(remit)
        found = await probe(call_id, remit.on)
        assert (found.state, found.why) == ("in_doubt", "its exact arguments are not kept")


@pytest.mark.parametrize("thing", ["args.thing", "original.order"])
async def test_an_undo_in_doubt_is_done_once_its_proof_holds(tmp_path: Path, thing: str) -> None:
    verify = {"call": "shop.look", "args": {"thing": thing}, "expect": "result.gone"}
    rules = tools(buy={"undo": {**TOOLS["shop.buy"]["undo"], "verify": verify}})
    async with a_remit(tmp_path, tools=rules) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        call_id = (await remit.done("shop.buy", PEN)).call_id
        remit.source.on["give_back"] = LOST
        undoing = await undo(call_id, a_principal(), "run-1", remit.on)
        assert isinstance(undoing, InDoubt)
        remit.clock.advance(s=120)
        remit.source.on["look"] = {"gone": False}
        assert [found.state for found in await Prober().round(remit.on)] == ["in_doubt"]
        remit.source.on["look"] = {"gone": True}
        assert (await probe(undoing.call_id, remit.on)).state == "succeeded"
        assert remit.one("SELECT state FROM undos WHERE call_id = ?", call_id) == {"state": "done"}


async def test_an_undo_in_doubt_is_not_proved_by_what_a_later_call_did(tmp_path: Path) -> None:
    verify = {"call": "shop.look", "args": {"thing": "args.thing"}, "expect": "result.value == before.value"}
    async with a_remit(
        tmp_path, tools=tools(set={"undo": {**TOOLS["shop.set"]["undo"], "verify": verify}})
    ) as remit:
        remit.source.on.update(look={"value": 0}, set={})
        call_id = (await remit.done("shop.set", {"thing": "pen", "value": 0})).call_id
        remit.source.on["set"] = LOST
        undoing = await undo(call_id, a_principal(), "run-1", remit.on)
        assert isinstance(undoing, InDoubt)
        remit.source.on["set"] = {}
        later = (await remit.done("shop.set", {"thing": "pen", "value": 0}, client_key="again")).call_id
        remit.clock.advance(s=120)
        found = await probe(undoing.call_id, remit.on)
        assert found.state == "in_doubt"
        assert "a later call" in found.why
        # Once that is taken back itself, what shows is the undo's doing.
        assert isinstance(await undo(later, a_principal(), "run-1", remit.on), Done)
        assert (await probe(undoing.call_id, remit.on)).state == "succeeded"


async def test_a_restorable_call_that_was_found_later_is_for_people_to_take_back(tmp_path: Path) -> None:
    find = {"call": "shop.look", "args": {"thing": "args.thing"}, "match": "result.value == args.value"}
    async with a_remit(tmp_path, tools=tools(set={"find": find})) as remit:
        remit.source.on.update(look={"value": 0}, set=LOST)
        outcome = await remit.call("shop.set", {"thing": "pen", "value": 1})
        remit.clock.advance(s=120)
        remit.source.on["look"] = {"value": 1}
        assert (await probe(outcome.call_id, remit.on)).state == "succeeded"
        refused = await undo(outcome.call_id, a_principal(), "run-1", remit.on)
        # By now the state may be another's.
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "undo_conflict"


# On Acme, whose server dies when it has acted and not answered yet.

DYING = f"""\
import os, sys
sys.path.insert(0, {str(REPOSITORY / "configs/acme")!r})
import acme_server
perform = acme_server.perform
def perform_and_die(db, tool, arguments):
    answer = perform(db, tool, arguments)
    if tool.name == "refund" and os.path.exists("die"):
        os.unlink("die")
        os._exit(9)
    return answer
acme_server.perform = perform_and_die
acme_server.main()
"""
FOUND = """\
    find:
      call: acme.list_refunds
      args: {order_id: args.order_id}
      each: result.refunds
      match: item.idempotency_key == key
      complete: 1 == 1
    undo:
      call: acme.cancel"""


def a_dying_place(folder: Path) -> Path:
    config = a_place(folder)
    (folder / "dying_acme.py").write_text(DYING)
    text = config.read_text().replace(
        f"{REPOSITORY}/configs/acme/acme_server.py", str(folder / "dying_acme.py")
    )
    config.write_text(text.replace("    undo:\n      call: acme.cancel", FOUND))
    return config


def refunds(folder: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(folder / "acme.db")) as db:
        return db.execute(
            "SELECT idempotency_key, status FROM refunds WHERE order_id = 'ord-1003'"
        ).fetchall()


@pytest.mark.parametrize("by", ["the next server", "the command line"])
def test_a_refund_whose_server_died_before_it_answered_is_found_and_comes_back(
    tmp_path: Path, by: str
) -> None:
    remit = Terminal(a_dying_place(tmp_path))

    async def lose_an_answer() -> str:
        async with App(load(remit.config), role="http").running() as app:
            (tmp_path / "die").touch()
            on = await app.services()
            outcome = await made(on, "acme.refund", refund_of("ord-1003", 500))
            assert isinstance(outcome, InDoubt)
            await until(lambda: on.adapters["acme"].health().connects == 2)
            return outcome.call_id

    async def start_again() -> None:
        clock = Clock(at_us=now_us() + 120_000_000)
        async with App(load(remit.config), role="http", clock=clock).running():
            await until(lambda: state() == "succeeded")

    def state() -> str:
        return rows(tmp_path / "remit.db", "SELECT state FROM calls WHERE id = ?", call_id)[0]["state"]

    def move_deadline(to_us: int) -> None:
        with closing(sqlite3.connect(tmp_path / "remit.db")) as db, db:
            db.execute("UPDATE calls SET deadline_us = ? WHERE id = ?", (to_us, call_id))

    call_id = anyio.run(lose_an_answer)
    assert refunds(tmp_path) == [(call_id, "issued")]
    if by == "the next server":
        anyio.run(start_again)
    else:
        assert "may still be under way" in remit("doubt", "probe", call_id).err
        (call,) = rows(tmp_path / "remit.db", "SELECT deadline_us FROM calls WHERE id = ?", call_id)
        move_deadline(call["deadline_us"] - 120_000_000)  # long ago
        assert remit.json("doubt", "probe", call_id)["state"] == "succeeded"
        move_deadline(call["deadline_us"])  # verification would find it
    assert state() == "succeeded"
    assert remit("undo", call_id).code == 0
    assert refunds(tmp_path) == [(call_id, "cancelled")]
    assert remit("audit", "verify").code == 0
