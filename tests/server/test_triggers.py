"""Playbooks that start by themselves: once for each cause, governed, recorded, and never unless declared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from tests.postgres import Databases
from tests.server.acme import CONFIG, Terminal, a_place
from tests.server.builders import Clock, Gate, Remit, a_reply, rows, taking_no_writes, tools, until
from tests.server.test_playbooks import BOOK, a_book, a_place_with

from remit.app import App
from remit.config_file import Loaded, load
from remit.database import Postgres
from remit.playbooks import carry_out
from remit.triggers import begun, carried_out, resumed

BUY = {"thing": "pen", "price": 7}
#: Buys one of whatever the trigger says, so that its input shows in what reaches the source.
ORDER: dict[str, Any] = {"id": "order", "call": "shop.buy", "args": {"thing": "inputs.thing", "price": "1"}}
FAILURES = {"failures": {"tool": "shop.s*", "share": 50, "of_last": 4}}


def a_triggered(on: Mapping[str, Any], thing: str = "trigger.agent", **more: Any) -> dict[str, Any]:
    """A playbook that begins by itself, as somebody other than whoever sets it off."""
    who = {"tenant": "acme", "agent": "agent:other", "user": "user:ann"}
    every = {"every": more.pop("every")} if "every" in more else {}
    return {**a_book(ORDER), "as": who, "on": [{"inputs": {"thing": thing}, **on, **every}], **more}


async def looked(remit: Remit, loaded: Loaded) -> int:
    """One look: how many runs it began, each carried out."""
    runs = await begun(remit.on, loaded)
    for run in runs:
        await carried_out(run)
    return len(runs)


async def sent(remit: Remit, *, well: bool) -> None:
    remit.source.on["send"] = a_reply("sent" if well else "broken", is_error=not well)
    await remit.call("shop.send", {"text": f"letter {remit.clock()}"})


def ordered(remit: Remit) -> list[Any]:
    return [request.arguments["thing"] for request in remit.source.effects("buy")]


async def test_nothing_starts_by_itself_unless_declared(tmp_path: Path) -> None:
    async with a_place_with(tmp_path, BOOK) as (remit, loaded):
        for _ in range(8):
            await sent(remit, well=False)
        await remit.switch("kill", "agent", "agent:wild", "acme")
        assert await looked(remit, loaded) == 0
        assert remit.rows("SELECT * FROM playbook_runs") == []


@pytest.mark.usefixtures("every_database")
async def test_too_many_failures_start_it_once_in_its_time(tmp_path: Path) -> None:
    async with a_place_with(tmp_path, a_triggered(FAILURES)) as (remit, loaded):
        for well in (False, False, True):
            await sent(remit, well=well)
        assert await looked(remit, loaded) == 0, "three of the four calls that it takes"
        await sent(remit, well=True)
        assert await looked(remit, loaded) == 1
        assert ordered(remit) == ["agent:bot"]
        (run,) = remit.rows("SELECT * FROM playbook_runs")
        assert (run["state"], run["by"]) == ("done", "trigger")
        (call,) = remit.rows("SELECT * FROM calls WHERE tool = 'shop.buy'")
        assert (call["agent"], call["run"]) == ("agent:other", f"playbook-{run['id']}")
        started = orjson.loads(remit.one("SELECT body FROM events WHERE kind = 'playbook.started'")["body"])
        told = started["trigger"]
        assert (told["on"], told["tool"], told["run"]) == ("failures", "shop.send", "run-1")
        assert remit.state(told["call"]) in ("failed", "in_doubt")

        for _ in range(8):
            await sent(remit, well=False)
        remit.clock.advance(s=3500)
        for _ in range(8):
            await sent(remit, well=False)
        assert await looked(remit, loaded) == 0, "its hour is not over"
        remit.clock.advance(s=200)
        assert await looked(remit, loaded) == 1
        remit.clock.advance(s=3700)
        assert await looked(remit, loaded) == 0, "the failures are too old"


async def test_fewer_failures_than_the_share_do_not_start_it(tmp_path: Path) -> None:
    async with a_place_with(tmp_path, a_triggered(FAILURES)) as (remit, loaded):
        for well in (False, False, False, True, True, True):
            await sent(remit, well=well)
        assert await looked(remit, loaded) == 0, "one of the newest four"


async def test_its_own_failures_do_not_start_it_again(tmp_path: Path) -> None:
    failures = {"failures": {"tool": "shop.buy", "share": 100, "of_last": 1, "within": "2h"}}
    async with a_place_with(tmp_path, a_triggered(failures)) as (remit, loaded):
        remit.source.on["buy"] = a_reply("broken", is_error=True)
        await remit.call("shop.buy", BUY)
        assert await looked(remit, loaded) == 1
        assert len(ordered(remit)) == 2
        remit.clock.advance(s=3601)
        assert await looked(remit, loaded) == 0
        await remit.call("shop.buy", BUY)
        assert await looked(remit, loaded) == 1


@pytest.mark.usefixtures("every_database")
async def test_a_call_of_a_tool_with_the_label_starts_it(tmp_path: Path) -> None:
    book = a_triggered({"label": "suspicious"}, "trigger.run")
    labelled = tools(look={"labels": ["suspicious"]})
    async with a_place_with(tmp_path, book, tools=labelled) as (remit, loaded):
        await sent(remit, well=True)
        assert await looked(remit, loaded) == 0
        await remit.done("shop.look", {"thing": "pen"}, run="night")
        assert await looked(remit, loaded) == 1
        assert ordered(remit) == ["night"]
        remit.clock.advance(s=3601)
        assert await looked(remit, loaded) == 0, "each call starts it once"


async def test_a_call_that_was_refused_does_not_start_it(tmp_path: Path) -> None:
    book = a_triggered({"label": "suspicious"})
    async with a_place_with(tmp_path, book, tools=tools(buy={"labels": ["suspicious"]})) as (remit, loaded):
        await remit.refused("shop.buy", {"thing": "pen", "price": 9000})
        assert await looked(remit, loaded) == 0


@pytest.mark.usefixtures("every_database")
async def test_an_account_that_comes_near_its_limit_starts_it_once_in_its_window(tmp_path: Path) -> None:
    book = a_triggered({"budget": {"scope": "agent", "unit": "calls", "at": 75}, "every": "1m"})
    budget = {"scope": "agent", "unit": "calls", "window": "day", "limit": 4}
    async with a_place_with(tmp_path, book, budgets=[budget]) as (remit, loaded):
        for _ in range(2):
            await sent(remit, well=True)
        assert await looked(remit, loaded) == 0
        await sent(remit, well=True)
        assert await looked(remit, loaded) == 1
        assert ordered(remit) == ["agent:bot"]
        assert remit.one("SELECT cause FROM playbook_runs")["cause"].startswith(
            "agent:acme/agent:bot:calls:day "
        )
        remit.clock.advance(s=61)
        assert await looked(remit, loaded) == 0
        remit.clock.advance(s=86400)
        assert await looked(remit, loaded) == 0, "a new day, in which nothing was spent"
        for _ in range(3):
            await sent(remit, well=True)
        assert await looked(remit, loaded) == 1


@pytest.mark.usefixtures("every_database")
async def test_a_switch_that_somebody_turns_on_starts_it(tmp_path: Path) -> None:
    book = a_triggered({"switch": {"kind": "kill", "scope": "agent"}})
    async with a_place_with(tmp_path, book) as (remit, loaded):
        await remit.switch("safe", "agent", "agent:wild", "acme")
        await remit.switch("kill", "tool", "shop.look", "acme")
        await remit.switch("kill", "agent", "agent:wild", "elsewhere")
        await remit.on.journal.switch(
            kind="kill",
            scope="agent",
            target="agent:tame",
            tenant="acme",
            on=True,
            reason="playbook restock, run 1",
            by="user:ann",
        )
        assert await looked(remit, loaded) == 0
        await remit.switch("kill", "agent", "agent:wild", "acme")
        assert await looked(remit, loaded) == 1
        assert ordered(remit) == ["agent:wild"]
        remit.clock.advance(s=3601)
        assert await looked(remit, loaded) == 0


async def test_what_the_identity_may_not_do_is_refused_and_recorded(tmp_path: Path) -> None:
    book = a_triggered(FAILURES)
    book["as"] = {"tenant": "acme", "agent": "agent:nobody", "user": "user:ann"}
    async with a_place_with(tmp_path, book) as (remit, loaded):
        for _ in range(4):
            await sent(remit, well=False)
        assert await looked(remit, loaded) == 1
        assert ordered(remit) == []
        assert remit.one("SELECT state FROM playbook_runs")["state"] == "failed"
        assert remit.one("SELECT state FROM calls WHERE agent = 'agent:nobody'")["state"] == "denied"


@pytest.mark.usefixtures("every_database")
async def test_what_was_cut_short_is_carried_on_by_the_next_process_and_by_one_alone(tmp_path: Path) -> None:
    clock, book = Clock(), a_triggered(FAILURES)
    book["steps"] = [ORDER, {**ORDER, "id": "again", "args": {"thing": "inputs.thing", "price": "2"}}]
    async with a_place_with(tmp_path, book, clock=clock) as (remit, loaded):
        for _ in range(4):
            await sent(remit, well=False)
        (run,) = await begun(remit.on, loaded)
        steps = carry_out(run)
        assert (await anext(steps)).state == "done"
        assert await resumed(remit.on, loaded, {run.id}) == [], "its process lives"
        await steps.aclose()
        remit.die()
    async with (
        a_place_with(tmp_path, book, clock=clock) as (one, loaded),
        a_place_with(tmp_path, book, clock=clock) as (other, _),
    ):
        left = [*await resumed(one.on, loaded), *await resumed(other.on, loaded)]
        assert [(each.id, each.inputs, each.started_us) for each in left] == [
            (run.id, run.inputs, one.one("SELECT started_us FROM playbook_runs")["started_us"])
        ]
        await carried_out(left[0])
        assert [request.arguments["price"] for request in one.source.effects("buy")] == [2]
        assert one.one("SELECT state FROM playbook_runs")["state"] == "done"
        told = [
            orjson.loads(row["body"])
            for row in one.rows("SELECT body FROM events WHERE kind = 'playbook.started'")
        ]
        assert [each["carried_on"] for each in told] == [False, True]
        assert await looked(one, loaded) == 0


#: Looks, which does no harm twice, and stops a tool.
LOOK_AND_STOP = [
    {"id": "look", "call": "shop.look", "args": {"thing": "inputs.thing"}},
    {"id": "stop", "stop": "tool", "of": "'shop.set'"},
]


@pytest.mark.usefixtures("every_database")
async def test_who_slept_while_another_carried_its_run_on_does_nothing_of_it_any_more(
    tmp_path: Path,
) -> None:
    clock, book = Clock(), a_triggered(FAILURES, steps=LOOK_AND_STOP)
    async with (
        a_place_with(tmp_path, book, clock=clock) as (sleeper, loaded),
        a_place_with(tmp_path, book, clock=clock) as (other, _),
    ):
        for _ in range(4):
            await sent(sleeper, well=False)
        (run,) = await begun(sleeper.on, loaded)
        sleeper.source.on["look"] = gate = Gate({"value": 7})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(carried_out, run)
            await sleeper.source.reached(5)
            sleeper.die()
            await other.on.journal.take_over()
            (left,) = await resumed(other.on, loaded)
            await carried_out(left)
            assert await other.switch("kill", "tool", "shop.set", "acme", on=False)
            gate.open()
        assert other.rows("SELECT * FROM switches") == []
        told = other.rows("SELECT kind FROM events WHERE kind LIKE 'playbook.%' ORDER BY rowid")
        steps = ["playbook.step"] * 2
        assert [each["kind"] for each in told] == ["playbook.started"] * 2 + [*steps, "playbook.ended"]
        assert other.one("SELECT state FROM playbook_runs")["state"] == "done"


@pytest.mark.usefixtures("every_database")
async def test_what_the_records_cut_short_is_carried_on_when_they_are_back(tmp_path: Path) -> None:
    async with a_place_with(tmp_path, a_triggered(FAILURES)) as (remit, loaded):
        for _ in range(4):
            await sent(remit, well=False)
        (run,) = await begun(remit.on, loaded)
        with taking_no_writes(remit.path):
            await carried_out(run)
        assert await resumed(remit.on, loaded, {run.id}) == [], "it is under way"
        (again,) = await resumed(remit.on, loaded)
        await carried_out(again)
        assert ordered(remit) == ["agent:bot"]
        assert remit.one("SELECT state FROM playbook_runs")["state"] == "done"


async def test_what_an_error_cut_short_that_nobody_thought_of_ends_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_place_with(tmp_path, a_triggered(FAILURES)) as (remit, loaded):
        for _ in range(4):
            await sent(remit, well=False)
        (run,) = await begun(remit.on, loaded)
        monkeypatch.setattr("remit.playbooks._as_call", lambda *_: 1 / 0)
        await carried_out(run)
        assert remit.one("SELECT state FROM playbook_runs")["state"] == "failed"
        assert await resumed(remit.on, loaded) == []


async def test_of_many_that_were_left_few_are_carried_on_at_once(tmp_path: Path) -> None:
    clock, book = Clock(), a_triggered(FAILURES, every="1m")
    async with a_place_with(tmp_path, book, clock=clock) as (remit, loaded):
        for _ in range(20):
            for _ in range(4):
                await sent(remit, well=False)
            assert len(await begun(remit.on, loaded)) == 1
            clock.advance(s=61)
    async with a_place_with(tmp_path, book, clock=clock) as (remit, loaded):
        under_way: set[str] = set()
        for many in (8, 0):
            runs = await resumed(remit.on, loaded, under_way)
            assert len(runs) == many
            under_way |= {run.id for run in runs}
        assert len(await resumed(remit.on, loaded, set(sorted(under_way)[:3]))) == 5


async def test_a_clock_that_was_set_back_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    clock, book = Clock(), a_triggered(FAILURES)
    async with a_place_with(tmp_path, book, clock=clock) as (remit, loaded):
        for hours in (5, -5):
            clock.advance(s=hours * 3600)
            for _ in range(4):
                await sent(remit, well=False)
            assert await looked(remit, loaded) == 1
        assert await looked(remit, loaded) == 0


async def test_a_run_of_another_version_is_not_carried_on(tmp_path: Path) -> None:
    clock, book = Clock(), a_triggered(FAILURES)
    async with a_place_with(tmp_path, book, clock=clock) as (remit, loaded):
        for _ in range(4):
            await sent(remit, well=False)
        assert len(await begun(remit.on, loaded)) == 1
    async with a_place_with(tmp_path, {**book, "about": "Another."}, clock=clock) as (remit, loaded):
        assert await resumed(remit.on, loaded) == []
        assert remit.one("SELECT state FROM playbook_runs")["state"] == "failed"
        (ended,) = remit.rows("SELECT body FROM events WHERE kind = 'playbook.ended'")
        assert orjson.loads(ended["body"])["why"] == "its version is not configured any more"
        assert ordered(remit) == []


@pytest.mark.usefixtures("every_database")
async def test_of_two_processes_that_see_the_same_one_starts_it(tmp_path: Path) -> None:
    clock, book = Clock(), a_triggered(FAILURES)
    async with (
        a_place_with(tmp_path, book, clock=clock) as (one, loaded),
        a_place_with(tmp_path, book, clock=clock) as (other, _),
    ):
        for _ in range(4):
            await sent(one, well=False)
        started: list[int] = []

        async def look(remit: Remit) -> None:
            started.append(await looked(remit, loaded))

        async with anyio.create_task_group() as tasks:
            for remit in (one, other, one, other):
                tasks.start_soon(look, remit)
        assert sorted(started) == [0, 0, 0, 1]
        assert len(ordered(one) + ordered(other)) == 1


WHO = "{tenant: acme, agent: agent:playbook, user: user:sue}"
STEPS = "steps: [{id: stop, stop: tool, of: inputs.x}]"


#: A server that is killed in the moment in which it has begun a playbook by itself.
KILLED = """
import os, signal, sys
from pathlib import Path
import anyio
from remit import triggers
from remit.app import App
from remit.config_file import load

async def serve():
    async with App(load(Path(sys.argv[1])), role="http").running():
        await anyio.sleep(30)

triggers.carried_out = lambda run: os.kill(os.getpid(), signal.SIGKILL)
anyio.run(serve)
"""


def test_a_server_starts_it_when_a_switch_was_turned_on_and_another_carries_it_on(tmp_path: Path) -> None:
    remit = Terminal(a_place(tmp_path))
    on = "on: [{switch: {kind: safe}, inputs: {x: \"'acme.refund'\"}}]"
    remit.config.write_text(f"{CONFIG}playbooks:\n  careful: {{as: {WHO}, inputs: [x], {STEPS}, {on}}}\n")
    assert remit("check").code == 0, remit("check")
    assert "starts by itself on  switch\n" in remit("playbook", "show", "careful").out
    assert remit("safe", "on", "--reason", "odd").code == 0
    killed = subprocess.run([sys.executable, "-c", KILLED, str(remit.config)], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [row["state"] for row in rows(tmp_path / "remit.db", "SELECT * FROM playbook_runs")] == ["running"]

    async def serve() -> None:
        async with App(load(remit.config), role="http").running():
            await until(
                lambda: rows(tmp_path / "remit.db", "SELECT 1 FROM events WHERE kind = 'playbook.ended'")
            )

    anyio.run(serve)
    assert [row["state"] for row in rows(tmp_path / "remit.db", "SELECT * FROM playbook_runs")] == ["done"]
    switches = {(each["kind"], each["target"]) for each in remit.json("switch", "list")}
    assert switches == {("safe", ""), ("kill", "acme.refund")}
    assert remit("audit", "verify").code == 0


#: A server that is stopped between the first step and the second, and ends when it is done with the run.
STOPPED = """
import os, signal, sys
from pathlib import Path
import anyio
from remit import triggers
from remit.app import App
from remit.config_file import load

async def serve():
    over, carried_out, carry_out = anyio.Event(), triggers.carried_out, triggers.carry_out

    async def stopped(run):
        async for ended in carry_out(run):
            yield ended
            if ended.step == "first":
                os.kill(os.getpid(), signal.SIGSTOP)

    async def told(run):
        await carried_out(run)
        over.set()

    triggers.carry_out, triggers.carried_out = stopped, told
    async with App(load(Path(sys.argv[1])), role="http").running():
        await over.wait()

anyio.run(serve)
"""


def test_a_server_that_is_stopped_past_its_lease_leaves_its_run_to_the_one_that_took_it(
    tmp_path: Path, postgres: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = Postgres(postgres.fresh(), tmp_path / "remit.db")
    remit = Terminal(a_place(tmp_path, at.url))
    steps = "steps: [{id: first, stop: tool, of: inputs.x}, {id: second, stop: agent, of: \"'agent:wild'\"}]"
    on = "on: [{switch: {kind: safe}, inputs: {x: \"'acme.refund'\"}}]"
    remit.config.write_text(
        remit.config.read_text().replace("store: {", "store: {lease: 2s, ")
        + f"playbooks:\n  careful: {{as: {WHO}, inputs: [x], {steps}, {on}}}\n"
    )
    assert remit("check").code == 0, remit("check")
    assert remit("safe", "on", "--reason", "odd").code == 0
    monkeypatch.setattr("remit.app._UPKEEP_S", 0.05)
    monkeypatch.setattr("remit.app._TRIGGER_S", 0.05)

    async def serve() -> None:
        async with App(load(remit.config), role="http").running():
            await until(lambda: rows(at, "SELECT 1 FROM events WHERE kind = 'playbook.ended'"))

    server = subprocess.Popen([sys.executable, "-c", STOPPED, str(remit.config)], stderr=subprocess.PIPE)
    try:
        _, status = os.waitpid(server.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        anyio.run(serve)
        for kind, target in (("tool", "acme.refund"), ("agent", "agent:wild")):
            off = remit("switch", "off", kind, target, "--reason", "looked at", "--tenant", "acme")
            assert off.code == 0, off
        server.send_signal(signal.SIGCONT)
        _, said = server.communicate(timeout=60)
    finally:
        server.kill()
    assert server.returncode == 0, said
    assert b"was taken over by another process" in said
    assert {each["kind"] for each in remit.json("switch", "list")} == {"safe"}
    assert len(rows(at, "SELECT 1 FROM events WHERE kind = 'playbook.ended'")) == 1
    assert rows(at, "SELECT state FROM playbook_runs") == [{"state": "done"}]
    assert remit("audit", "verify").code == 0


def test_one_that_cannot_start_keeps_no_other_from_it_and_no_server_from_serving(tmp_path: Path) -> None:
    remit = Terminal(a_place(tmp_path))
    books = "".join(
        f"  {name}: {{as: {WHO}, inputs: [x], {STEPS},"
        f" on: [{{switch: {{kind: safe}}, inputs: {{x: {x}}}}}]}}\n"
        for name, x in (("broken", "trigger.target + 1"), ("careful", "\"'acme.refund'\""))
    )
    remit.config.write_text(f"{CONFIG}playbooks:\n{books}")
    assert remit("check").code == 0, remit("check")
    assert remit("safe", "on", "--reason", "odd").code == 0

    async def serve() -> None:
        async with App(load(remit.config), role="http").running():
            await until(
                lambda: rows(tmp_path / "remit.db", "SELECT 1 FROM events WHERE kind = 'playbook.ended'")
            )

    anyio.run(serve)
    runs = rows(tmp_path / "remit.db", "SELECT name, state FROM playbook_runs")
    assert runs == [{"name": "careful", "state": "done"}]


@pytest.mark.parametrize(
    ("trigger", "message"),
    [
        ("{label: nosuch, inputs: {x: trigger.tool}}", "no tool has the label nosuch"),
        (
            "{failures: {tool: acme.gone, share: 5}, inputs: {x: trigger.tool}}",
            "no source offers acme.gone",
        ),
        (
            "{budget: {scope: run, unit: smiles}, inputs: {x: trigger.run}}",
            "no budget limits smiles of each run",
        ),
        ("{label: money, switch: {}, inputs: {x: trigger.tool}}", "a trigger is one of failures, label"),
        ("{switch: {}, every: 5s, inputs: {x: trigger.target}}", "every is at least 1m"),
        ("{switch: {}, inputs: {x: trigger.agent}}", "this trigger gives trigger.kind"),
        ("{label: money, inputs: {y: trigger.tool}}", "not given, or unknown: x, y"),
        ("{label: money}", "not given, or unknown: x"),
    ],
)
def test_a_trigger_that_does_not_fit_is_told_with_its_line(
    tmp_path: Path, trigger: str, message: str
) -> None:
    remit = Terminal(a_place(tmp_path))
    text = (
        f"{CONFIG}playbooks:\n  p:\n    as: {WHO}\n    inputs: [x]\n    {STEPS}\n    on:\n      - {trigger}\n"
    )
    remit.config.write_text(text)
    checked = remit("check")
    assert checked.code == 1
    (line,) = [line for line in checked.out.splitlines() if message in line]
    number = int(line.split("remit.yaml:")[1].split(":")[0])
    assert number in range(len(CONFIG.splitlines()) + 2, len(text.splitlines()) + 1), line
