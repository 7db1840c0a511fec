"""Playbooks: recovery procedures that are carried out step by step, governed, recorded, and never twice."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.server.acme import CONFIG, Terminal, a_place, made, refund_of, serving
from tests.server.builders import (
    POLICY,
    TOOLS,
    Clock,
    Gate,
    Remit,
    ScriptedSource,
    a_config,
    a_principal,
    a_remit,
    a_reply,
    rows,
    tools,
)

from remit.config_file import Loaded
from remit.due import send_due
from remit.errors import WrongState
from remit.model import Done
from remit.playbooks import Ended, begin, carry_out, foreseen
from remit_adapters.base import AdapterError

BOOK: dict[str, Any] = {
    "as": {"tenant": "acme", "agent": "agent:bot", "user": "user:ann"},
    "inputs": ["thing"],
    "steps": [
        {"id": "look", "call": "shop.look", "args": {"thing": "inputs.thing"}, "expect": "result.value >= 1"},
        {"id": "buy", "call": "shop.buy", "args": {"thing": "inputs.thing", "price": "steps.look.value"}},
        {"id": "tell", "call": "shop.send", "args": {"text": "steps.buy.order"}},
    ],
}


def a_book(*steps: Mapping[str, Any], inputs: tuple[str, ...] = ("thing",)) -> dict[str, Any]:
    return {**BOOK, "inputs": inputs, "steps": steps}


def a_shop() -> ScriptedSource:
    source = ScriptedSource()
    source.on.update(look={"value": 7}, buy={"order": "o-1"})
    return source


@asynccontextmanager
async def a_place_with(
    folder: Path,
    book: Mapping[str, Any] = BOOK,
    source: ScriptedSource | None = None,
    clock: Clock | None = None,
    **settings: Any,
) -> AsyncGenerator[tuple[Remit, Loaded]]:
    more = {"tools": TOOLS, **settings, "playbooks": {"restock": book}}
    policy = more.pop("policy", POLICY)
    config = a_config(folder, **more)
    loaded = Loaded(
        config=config, path=folder / "remit.yaml", folder=folder, positions={}, shown="remit.yaml"
    )
    async with a_remit(folder, source=source or a_shop(), policy=policy, clock=clock, **more) as remit:
        yield remit, loaded


async def carried_out(remit: Remit, loaded: Loaded, *, anew: bool = False, **inputs: str) -> list[Ended]:
    run = await begin("restock", inputs or {"thing": "pen"}, remit.on, loaded, by="user:bea", anew=anew)
    return [ended async for ended in carry_out(run)]


def states(ended: list[Ended]) -> dict[str, str]:
    return {each.step: each.state for each in ended}


async def test_every_step_is_a_governed_call_and_knows_what_earlier_ones_found(tmp_path: Path) -> None:
    async with a_place_with(tmp_path) as (remit, loaded):
        ended = await carried_out(remit, loaded)
        assert states(ended) == {"look": "done", "buy": "done", "tell": "done"}
        assert [(request.name, dict(request.arguments)) for request in remit.source.sent] == [
            ("look", {"thing": "pen"}),
            ("buy", {"thing": "pen", "price": 7}),
            ("send", {"text": "o-1"}),
        ]
        calls = remit.rows("SELECT agent, user, run FROM calls WHERE kind = 'call'")
        (run,) = remit.rows("SELECT * FROM playbook_runs")
        assert {(call["agent"], call["user"], call["run"]) for call in calls} == {
            ("agent:bot", "user:ann", f"playbook-{run['id']}")
        }
        assert (run["state"], run["by"], run["name"]) == ("done", "user:bea", "restock")
        told = [row["kind"] for row in remit.rows("SELECT kind FROM events WHERE kind LIKE 'playbook.%'")]
        assert told == ["playbook.started", *["playbook.step"] * 3, "playbook.ended"]


async def test_what_was_cut_short_is_carried_on_and_nothing_is_done_twice(tmp_path: Path) -> None:
    async with a_place_with(tmp_path) as (remit, loaded):
        remit.source.on["send"] = Gate()
        with anyio.move_on_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(carried_out, remit, loaded)
                await remit.source.reached(3)
                remit.die()
                tasks.cancel_scope.cancel()
        assert len(remit.source.effects("buy")) == 1
    async with a_place_with(tmp_path, clock=Clock(remit.clock() + 120_000_000)) as (remit, loaded):
        # Nobody knows whether the last step happened, and it is not sent again to find out.
        ended = await carried_out(remit, loaded)
        assert states(ended) == {"look": "done", "buy": "done", "tell": "doubt"}
        assert ended[1].said == "Done before."
        assert remit.source.effects("buy") == remit.source.effects("send") == []
        (doubtful,) = remit.rows("SELECT id FROM calls WHERE state = 'in_doubt'")
        await remit.on.journal.resolve(doubtful["id"], happened=False, reason="seen", by="user:bea")
        assert states(await carried_out(remit, loaded))["buy"] == "done"
        assert len(remit.rows("SELECT * FROM playbook_runs")) == 1


async def test_what_is_done_is_read_back_and_what_is_only_looked_up_is_looked_up_anew(tmp_path: Path) -> None:
    """What was done by what an earlier step found stays done, whatever that would find now."""
    async with a_place_with(tmp_path) as (remit, loaded):
        remit.source.on["send"] = AdapterError("no paper", no_effect=True)
        assert states(await carried_out(remit, loaded)) == {"look": "done", "buy": "done", "tell": "failed"}
        remit.source.on.update(look={"value": 8}, buy={"order": "o-2"}, send="sent")
        remit.use_policy(POLICY.replace("p, role:clerk, acme, shop.buy, execute", "# "))
        ended = await carried_out(remit, loaded)
        assert states(ended) == {"look": "done", "buy": "done", "tell": "done"}
        assert ended[1].said == "Done before."
        assert [request.arguments["text"] for request in remit.source.effects("send")] == ["o-1"] * 2
        assert [len(remit.source.effects(name)) for name in ("look", "buy")] == [2, 1]


@pytest.mark.parametrize(("text", "state"), [("inputs.thing", "done"), ("steps.buy.order", "failed")])
async def test_what_is_done_is_done_also_where_its_answer_was_erased(
    tmp_path: Path, text: str, state: str
) -> None:
    book = a_book(*BOOK["steps"][:2], {"id": "tell", "call": "shop.send", "args": {"text": text}})
    async with a_place_with(tmp_path, book) as (remit, loaded):
        remit.source.on["send"] = AdapterError("no paper", no_effect=True)
        assert states(await carried_out(remit, loaded)) == {"look": "done", "buy": "done", "tell": "failed"}
        await remit.on.journal.erase(tenant="acme", subject="user:ann", reason="asked to", by="user:bea")
        remit.source.on["send"] = "sent"
        assert states(await carried_out(remit, loaded)) == {"look": "done", "buy": "done", "tell": state}
        assert len(remit.source.effects("buy")) == 1


async def test_what_a_person_has_let_go_again_is_not_stopped_again(tmp_path: Path) -> None:
    stop = {"id": "stop", "stop": "agent", "of": "'agent:wild'"}
    buy = {**BOOK["steps"][1], "args": {"thing": "inputs.thing", "price": "500"}}
    async with a_place_with(tmp_path, a_book(stop, buy)) as (remit, loaded):
        assert states(await carried_out(remit, loaded)) == {"stop": "done", "buy": "waits"}
        assert await remit.switch("kill", "agent", "agent:wild", "acme", on=False)
        await remit.vote(remit.one("SELECT id FROM approvals")["id"])
        assert states(await carried_out(remit, loaded)) == {"stop": "done", "buy": "done"}
        assert remit.on.journal.switches == frozenset()


@pytest.mark.usefixtures("every_database")
async def test_a_run_that_another_process_carries_out_is_not_taken_from_it(tmp_path: Path) -> None:
    clock = Clock()
    async with (
        a_place_with(tmp_path, clock=clock) as (one, loaded),
        a_place_with(tmp_path, clock=clock) as (other, _),
    ):
        one.source.on["buy"] = gate = Gate({"order": "o-1"})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(carried_out, one, loaded)
            await one.source.reached(2)
            with pytest.raises(WrongState, match="is being carried out by another process"):
                await carried_out(other, loaded)
            gate.open()
        assert [run["state"] for run in one.rows("SELECT state FROM playbook_runs")] == ["done"]
        assert other.source.sent == []


@pytest.mark.parametrize("how", ["deferred", "budget"])
async def test_a_step_that_is_held_back_waits_until_it_was_sent(tmp_path: Path, how: str) -> None:
    more: dict[str, Any] = {"tools": tools(send={"effect": "deferred", "hold_back": "10m"})}
    if how == "budget":
        budget = {"scope": "agent", "unit": "usd", "window": "hour", "limit": 5, "on_exceed": "defer"}
        more = {"tools": tools(send={"price": {"usd": 3}}), "budgets": [{**budget, "wait": "2h"}]}
    async with a_place_with(tmp_path, **more) as (remit, loaded):
        if how == "budget":
            await remit.done("shop.send", {"text": "before"})
        ended = await carried_out(remit, loaded)
        assert states(ended) == {"look": "done", "buy": "done", "tell": "waits"}
        assert ended[-1].call_id in ended[-1].said
        assert states(await carried_out(remit, loaded))["tell"] == "waits"
        remit.clock.advance(s=3601)
        await send_due(remit.on)
        assert states(await carried_out(remit, loaded)) == {"look": "done", "buy": "done", "tell": "done"}
        assert [request.arguments["text"] for request in remit.source.effects("send")][-1:] == ["o-1"]
        assert remit.one("SELECT state FROM playbook_runs")["state"] == "done"


async def test_a_run_that_ended_well_is_not_carried_on_but_begun_anew(tmp_path: Path) -> None:
    async with a_place_with(tmp_path) as (remit, loaded):
        await carried_out(remit, loaded)
        await carried_out(remit, loaded)
        assert len(remit.source.effects("buy")) == 2
        assert len(remit.rows("SELECT * FROM playbook_runs")) == 2


async def test_a_step_that_needs_people_waits_and_is_made_once_they_agree(tmp_path: Path) -> None:
    source = a_shop()
    source.on["look"] = {"value": 500}
    async with a_place_with(tmp_path, source=source) as (remit, loaded):
        ended = await carried_out(remit, loaded)
        assert states(ended) == {"look": "done", "buy": "waits"}
        (approval,) = remit.rows("SELECT id FROM approvals")
        await remit.vote(approval["id"])
        assert states(await carried_out(remit, loaded)) == {"look": "done", "buy": "done", "tell": "done"}
        assert len(remit.source.effects("buy")) == 1


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([{**BOOK["steps"][0], "expect": "result.value > 9"}, BOOK["steps"][1]], "It is not so"),
        ([{**BOOK["steps"][1], "args": {"thing": "inputs.thing", "price": "9000"}}], "No rule allows"),
        ([{**BOOK["steps"][2], "id": "first"}], "cannot be worked out"),
        ([{"id": "gone", "call": "shop.gone"}], "no source offers shop.gone"),
    ],
)
async def test_a_step_that_fails_ends_it_there(tmp_path: Path, steps: list[Any], said: str) -> None:
    async with a_place_with(tmp_path, a_book(*steps, BOOK["steps"][2])) as (remit, loaded):
        ended = await carried_out(remit, loaded)
        assert ended[-1].state == "failed"
        assert said in ended[-1].said
        assert remit.source.effects("send") == []
        assert remit.one("SELECT state FROM playbook_runs")["state"] == "failed"


@pytest.mark.parametrize("how", ["answered", "misfit"])
async def test_what_a_call_of_a_step_carried_is_in_no_event(tmp_path: Path, how: str) -> None:
    source = a_shop()
    source.on["look"] = a_reply("marmalade is sold out", is_error=True)
    first = BOOK["steps"][0] if how == "answered" else {**BOOK["steps"][1], "args": {"thing": "inputs.thing"}}
    first = first if how == "answered" else {**first, "args": {**first["args"], "price": "inputs.thing"}}
    async with a_place_with(tmp_path, a_book(first), source) as (remit, loaded):
        (ended,) = await carried_out(remit, loaded, thing="marmalade")
        assert (ended.state, "marmalade" in ended.said) == ("failed", True)
        bodies = [row["body"] for row in remit.rows("SELECT body FROM events")]
        assert not any("marmalade" in body for body in bodies), bodies
        assert sum(f'"call":"{ended.call_id}"' in body for body in bodies) == 1


async def test_a_step_whose_condition_does_not_hold_is_skipped(tmp_path: Path) -> None:
    first, second, third = BOOK["steps"]
    book = a_book(
        first, {**second, "when": "steps.look.value > 9"}, {**third, "args": {"text": "inputs.thing"}}
    )
    async with a_place_with(tmp_path, book) as (remit, loaded):
        assert states(await carried_out(remit, loaded)) == {"look": "done", "buy": "skipped", "tell": "done"}


async def test_a_dry_run_takes_no_step(tmp_path: Path) -> None:
    first, second, third = BOOK["steps"]
    book = a_book(second | {"args": {"thing": "inputs.thing", "price": "500"}}, third, first)
    async with a_place_with(tmp_path, book) as (remit, loaded):
        run = await begin("restock", {"thing": "pen"}, remit.on, loaded, by="user:bea")
        told = [ended async for ended in foreseen(run)]
        assert "Would call shop.buy: approve." in told[0].said
        assert told[1].said == "It depends on what earlier steps find."
        assert "Would call shop.look: execute." in told[2].said
        assert remit.source.sent == []


#: Who may take back what others did, beside those who may take back what they did themselves.
RECOVERY = """
g, agent:playbook, role:recovery, acme
g, user:sue, role:recovery, acme
g3, agent:playbook, user:sue, acme
p, role:recovery, acme, *, undo, 1 == 1, allow
"""


def test_a_playbook_stops_nothing_beyond_its_tenant(tmp_path: Path) -> None:
    remit = Terminal(a_place(tmp_path))
    who = "{tenant: acme, agent: agent:playbook, user: user:sue}"
    stops = {"others": "{id: a, stop: tenant, of: inputs.x}", "all": "{id: a, stop: all}"}
    books = [f"  {name}: {{as: {who}, inputs: [x], steps: [{step}]}}\n" for name, step in stops.items()]
    remit.config.write_text(f"{CONFIG}playbooks:\n{''.join(books)}")
    for dry in (("--dry-run",), ()):
        refused = remit("playbook", "run", "others", "--input", "x=other", *dry)
        assert refused.code == 1
        assert "cannot stop tenant other" in refused.out
    assert remit.json("switch", "list") == []
    assert "Stopped: tenant acme." in remit("playbook", "run", "others", "--input", "x=acme").out
    assert "Stopped: all of tenant acme." in remit("playbook", "run", "all", "--input", "x=1").out
    switches = remit.json("switch", "list")
    assert {(it["scope"], it["target"], it["tenant"]) for it in switches} == {
        ("tenant", "acme", ""),
        ("all", "", "acme"),
    }


def test_an_agent_is_stopped_and_all_that_it_did_is_taken_back(tmp_path: Path) -> None:
    remit = Terminal(a_place(tmp_path))
    policy = tmp_path / "policy.csv"
    acmes = policy.read_text()
    remit.config.write_text(
        CONFIG
        + """\
playbooks:
  stop-and-take-back:
    about: An agent ran wild.
    as: {tenant: acme, agent: agent:playbook, user: user:sue}
    inputs: [agent]
    steps:
      - {id: stop, stop: agent, of: inputs.agent}
      - {id: take_back, rollback: agent, of: inputs.agent, since: 2h}
"""
    )

    async def play() -> None:
        async with serving(remit.config) as on:
            for order in ("ord-1001", "ord-1002"):
                assert isinstance(await made(on, "acme.refund", refund_of(order, 500)), Done)

    anyio.run(play)
    words = ("playbook", "run", "stop-and-take-back", "--input", "agent=agent:support-bot")
    # Its user's right alone is not enough: a playbook acts as an agent, and policy governs both.
    planned = remit(*words, "--dry-run")
    assert planned.code == 1
    assert "Would take back 0 of 2 calls. 2 refused: acme.refund (call " in planned.out
    assert "You do not act for this user here." in planned.out
    assert remit.json("switch", "list") == []
    refused = remit(*words)
    assert refused.code == 1
    assert "take_back  failed  0 of 2 calls are taken back." in refused.out
    calls = remit.json("calls", "list", "--agent", "agent:playbook")
    assert {(call["code"], call["state"]) for call in calls} == {("no_delegation", "denied")}
    assert "agent:playbook do nothing for user:sue" in remit("check").out
    policy.write_text(acmes + RECOVERY.replace("role:recovery, acme, *", "user:sue, acme, *"))
    assert remit(*words).code == 1
    calls = remit.json("calls", "list", "--agent", "agent:playbook")
    assert "undo_not_allowed" in {call["code"] for call in calls}
    policy.write_text(acmes + RECOVERY)
    assert "agent:playbook do nothing" not in remit("check").out
    stop, back = remit.json(*words, "--dry-run")["steps"]
    assert stop["said"] == "Would stop agent agent:support-bot."
    assert back["said"] == "Would take back 2 of 2 calls. Cost: 2 calls."
    assert [step["part"] for step in back["steps"]] == ["undo", "undo"]
    ran = remit(*words)
    assert ran.code == 0, ran
    assert "take_back  done  2 of 2 calls are taken back.\n" in ran.out
    (switch,) = remit.json("switch", "list")
    assert switch["target"] == "agent:support-bot"
    assert switch["reason"].startswith("playbook stop-and-take-back, run ")
    undos = rows(tmp_path / "remit.db", "SELECT * FROM calls WHERE kind = 'undo' AND state = 'succeeded'")
    who = ("agent:playbook", "user:sue", "playbook")
    assert [(undo["agent"], undo["user"], undo["auth"]) for undo in undos] == [who] * 2
    assert [told["by"] for told in rows(tmp_path / "remit.db", "SELECT * FROM notices")] == ["operator"] * 2
    assert remit("audit", "verify").code == 0
    (listed,) = remit.json("playbook", "list")
    assert (listed["name"], listed["inputs"], listed["steps"]) == ("stop-and-take-back", ["agent"], 2)
    assert remit.json("playbook", "show", "stop-and-take-back")["digest"] == listed["digest"]
    assert "acts as  agent:playbook for user:sue in acme" in remit("playbook", "show", listed["name"]).out
    assert remit("playbook", "run", listed["name"]).code == 1
    assert remit("playbook", "run", listed["name"], "--input", "agent").code == 64
    assert remit("playbook", "show", "nothing").code == 1


#: Takes back what agent:other did in the last hour, and needs a boss for it.
BACK = a_book({"id": "back", "rollback": "agent", "of": "inputs.agent", "since": "1h"}, inputs=("agent",))
BACK_ASKING = POLICY + "p2, agent:bot, acme, shop.buy, undo, 1 == 1, approvals=1\n"


async def test_a_rollback_that_waits_for_people_is_carried_on_from_where_the_run_began(
    tmp_path: Path,
) -> None:
    """However long they take, what was in its scope when it began still is."""
    async with a_place_with(tmp_path, BACK, policy=BACK_ASKING) as (remit, loaded):
        other = a_principal("agent:other")
        await remit.done("shop.buy", {"thing": "pen", "price": 5}, principal=other)
        remit.clock.advance(s=3000)
        (waits,) = await carried_out(remit, loaded, agent="agent:other")
        assert waits.state == "waits"
        approval = remit.one("SELECT id FROM approvals")["id"]
        assert approval in waits.said
        remit.clock.advance(s=800)
        await remit.vote(approval)
        (done,) = await carried_out(remit, loaded, agent="agent:other")
        assert (done.state, done.said) == ("done", "1 of 1 calls are taken back.")
        assert len(remit.source.effects("give_back")) == 1
        assert len(remit.rows("SELECT * FROM playbook_runs")) == 1


async def test_a_rollback_that_was_cut_short_is_carried_on_from_where_the_run_began(tmp_path: Path) -> None:
    async with a_place_with(tmp_path, BACK) as (remit, loaded):
        for thing in ("pen", "cup"):
            await remit.done("shop.buy", {"thing": thing, "price": 5}, principal=a_principal("agent:other"))
        remit.clock.advance(s=3000)
        remit.source.on["give_back"] = Gate()
        with anyio.move_on_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: carried_out(remit, loaded, agent="agent:other"))
                await remit.source.reached(3)
                remit.die()
                tasks.cancel_scope.cancel()
    async with a_place_with(tmp_path, BACK, clock=Clock(remit.clock() + 3_000_000_000)) as (remit, loaded):
        (ended,) = await carried_out(remit, loaded, agent="agent:other")
        # One was under way when the process died; the other is taken back although an hour has passed.
        assert (ended.state, ended.said[:29]) == ("failed", "1 of 2 calls are taken back. ")
        assert len(remit.source.effects("give_back")) == 1


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("{id: a, call: acme.gone}", "no source offers acme.gone"),
        ("{id: a, call: acme.get_order, args: {order: inputs.x}}", "has no argument order"),
        ("{id: a}", "a step is one of call, rollback and stop"),
        ("{id: a, rollback: run}", "say of what"),
        ("{id: a, stop: all, expect: 1 == 1}", "belong to a call"),
        ("{id: a, stop: all, since: 2h}", "since belongs to a rollback"),
        ("{id: a, call: acme.get_order, of: inputs.x}", "of belongs to a rollback or a stop"),
    ],
)
def test_what_does_not_fit_is_found_before_it_is_needed(tmp_path: Path, step: str, message: str) -> None:
    remit = Terminal(a_place(tmp_path))
    who = "{tenant: acme, agent: agent:playbook, user: user:sue}"
    remit.config.write_text(f"{CONFIG}playbooks:\n  p: {{as: {who}, inputs: [x], steps: [{step}]}}\n")
    checked = remit("check")
    assert checked.code == 1
    assert message in checked.out
