"""Taking many calls back: newest first, each by its own way, honest about what stays."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.acme import Terminal, made, refund_of, serving
from tests.server.builders import POLICY, Clock, Gate, Remit, a_principal, a_remit, a_reply, tools

from remit.due import send_due
from remit.identity import Principal
from remit.model import Done
from remit.records import CallQuery, open_records
from remit.rollback import Step, plan, price, roll_back
from remit_adapters.base import AdapterError, Caller, Reply, Request

WITH_BOSS = POLICY + "p, role:boss, acme, shop.set, undo, 1 == 1, allow\n"
ALL_GONE = [("set", "done"), ("buy", "done"), ("set", "done")]
BOSS = Principal(tenant="acme", agent="agent:remit-cli", user="user:bea", auth="local")


class World:
    """Things with values, behind the shop's tools: what undoing must put back."""

    def __init__(self, remit: Remit) -> None:
        self.values: dict[str, int] = {"pen": 0, "lamp": 0}
        self.orders: set[str] = set()
        remit.source.on.update(look=self.look, set=self.set, buy=self.buy, give_back=self.give_back)

    async def look(self, request: Request, caller: Caller) -> Reply:
        return a_reply({"value": self.values[request.arguments["thing"]]})

    async def set(self, request: Request, caller: Caller) -> Reply:
        self.values[request.arguments["thing"]] = request.arguments["value"]
        return a_reply({"ok": True})

    async def buy(self, request: Request, caller: Caller) -> Reply:
        order = f"o-{request.key}"
        self.orders.add(order)
        return a_reply({"order": order})

    async def give_back(self, request: Request, caller: Caller) -> Reply:
        self.orders.remove(request.arguments["order"])
        return a_reply({"ok": True})


async def planned(remit: Remit, *, force: bool = False, **query: Any) -> list[Step]:
    """What taking everything back that fits would come to, for a person."""
    with open_records(remit.path, clock=remit.clock) as records:
        calls = records.calls(CallQuery(tenant="acme", **query), limit=1000)
        return await plan(records, calls, BOSS, "cli", remit.on, force=force)


async def rolled_back(remit: Remit, *, force: bool = False, **query: Any) -> list[Step]:
    """Everything that fits taken back by a person, as planned."""
    steps = await planned(remit, force=force, **query)
    ended = await roll_back(steps, BOSS, "cli", remit.on, force=force)
    assert [step.call_id for step in ended] == [step.call_id for step in steps]
    return ended


def parts(steps: list[Step]) -> list[tuple[str, str]]:
    return [(step.tool.removeprefix("shop."), step.part) for step in steps]


async def test_a_run_is_taken_back_newest_first_and_the_world_is_as_before(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=WITH_BOSS) as remit:
        world = World(remit)
        await remit.done("shop.set", {"thing": "pen", "value": 1})
        await remit.done("shop.buy", {"thing": "cup", "price": 5})
        await remit.done("shop.set", {"thing": "pen", "value": 2})
        await remit.done("shop.look", {"thing": "pen"})
        assert parts(await rolled_back(remit, run="run-1")) == ALL_GONE
        assert (world.values["pen"], world.orders) == (0, set())
        # Made again it changes nothing, and says the same.
        before = len(remit.source.sent)
        assert parts(await rolled_back(remit, run="run-1")) == ALL_GONE
        assert len(remit.source.sent) == before


async def test_what_somebody_changed_since_stays_and_is_named(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=WITH_BOSS) as remit:
        world = World(remit)
        await remit.done("shop.set", {"thing": "pen", "value": 1})
        await remit.done("shop.set", {"thing": "lamp", "value": 1})
        theirs = await remit.done(
            "shop.set", {"thing": "pen", "value": 7}, principal=a_principal("agent:other")
        )
        steps = await rolled_back(remit, agent="agent:bot")
        assert parts(steps) == [("set", "done"), ("set", "conflict")]
        assert theirs.call_id in steps[1].why
        assert "agent:other" in steps[1].why
        assert world.values == {"pen": 7, "lamp": 0}
        # A person may insist; then their change goes too.
        forced = await rolled_back(remit, agent="agent:bot", force=True)
        assert parts(forced) == [("set", "done"), ("set", "done")]
        assert f"It overwrote call {theirs.call_id}, and" in forced[1].why
        assert world.values == {"pen": 0, "lamp": 0}


async def test_what_cannot_be_taken_back_is_said_with_the_reason(tmp_path: Path) -> None:
    clock = Clock()
    async with a_remit(tmp_path, policy=WITH_BOSS, clock=clock) as remit:
        World(remit)
        await remit.done("shop.send", {"text": "hello"})
        await remit.done("shop.buy", {"thing": "cup", "price": 5})
        remit.source.on["buy"] = AdapterError("The line broke.", no_effect=False)
        await remit.call("shop.buy", {"thing": "pen", "price": 5})
        clock.now_us += 25 * 3_600_000_000
        steps = await rolled_back(remit, run="run-1")
        assert parts(steps) == [("buy", "open"), ("buy", "expired"), ("send", "impossible")]
        assert "irreversible" in steps[2].why


async def test_the_plan_says_in_which_order_and_at_what_price(tmp_path: Path) -> None:
    priced = tools(give_back={"price": {"eur_cent": "20"}}, set={"price": {"eur_cent": "1"}})
    async with a_remit(tmp_path, policy=WITH_BOSS, tools=priced) as remit:
        world = World(remit)
        one = (await remit.done("shop.set", {"thing": "pen", "value": 1})).call_id
        cup = (await remit.done("shop.buy", {"thing": "cup", "price": 5})).call_id
        two = (await remit.done("shop.set", {"thing": "pen", "value": 2})).call_id
        three = (await remit.done("shop.set", {"thing": "pen", "value": 3})).call_id
        acted = len(remit.rows("SELECT 1 FROM events WHERE kind = 'call.dispatched'"))
        steps = await planned(remit, run="run-1")
        assert [step.call_id for step in steps] == [three, two, cup, one]
        assert [step.after for step in steps] == [(), (three,), (), (two, three)]
        assert [step.cost["eur_cent"] for step in steps] == [1, 1, 20, 1]
        assert price(steps) == {"calls": 4, "eur_cent": 23}
        assert all(step.until_us for step in steps)
        # It looked once at the pen, by a governed read, and did nothing.
        assert len(remit.rows("SELECT 1 FROM events WHERE kind = 'call.dispatched'")) == acted + 1
        assert (world.values["pen"], len(world.orders)) == (3, 1)


async def with_an_outsider(remit: Remit, outside: int) -> World:
    """The pen is set to 1, 2 and 3, and by somebody else after so many of these."""
    world = World(remit)
    for value in range(4):
        if value:
            await remit.done("shop.set", {"thing": "pen", "value": value})
        if value == outside:
            world.values["pen"] = 77
    return world


@pytest.mark.parametrize("outside", range(4))
async def test_who_insists_is_told_what_of_an_outsider_goes_too(tmp_path: Path, outside: int) -> None:
    async with a_remit(tmp_path, policy=WITH_BOSS) as remit:
        world = await with_an_outsider(remit, outside)
        steps = await planned(remit, run="run-1", force=True)
        assert [step.part for step in steps] == 3 * ["undo"]
        # Written before the first call, it is what is put back.
        lost = [value for value, step in zip((3, 2, 1), steps, strict=True) if step.overwrites]
        assert lost == ([outside] if outside else [])
        ended = await roll_back(steps, BOSS, "cli", remit.on, force=True)
        assert [step.part for step in ended] == 3 * ["done"]
        for plan_said, report_said in zip(steps, ended, strict=True):
            assert ("It overwrites what was changed since." in plan_said.why) == bool(plan_said.overwrites)
            assert ("It overwrote what was changed since." in report_said.why) == bool(plan_said.overwrites)
        assert world.values["pen"] == (0 if outside else 77)


async def test_who_insists_is_told_when_nobody_can_look(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=WITH_BOSS) as remit:
        World(remit)
        await remit.done("shop.set", {"thing": "pen", "value": 1})
        remit.source.on["look"] = AdapterError("down", no_effect=True)
        (step,) = await planned(remit, run="run-1", force=True)
        assert (step.part, "It overwrites what cannot be read now." in step.why) == ("undo", True)


@pytest.mark.parametrize(
    ("outside", "foreseen"),
    [
        # Written over the last call: nothing below it can go either.
        (3, ["conflict", "conflict", "conflict"]),
        # Written between the second and the third: the third goes, and shows it again.
        (2, ["undo", "conflict", "conflict"]),
        (1, ["undo", "undo", "conflict"]),
        (0, ["undo", "undo", "undo"]),
    ],
)
async def test_the_plan_sees_what_an_outsider_wrote_and_when(
    tmp_path: Path, outside: int, foreseen: list[str]
) -> None:
    async with a_remit(tmp_path, policy=WITH_BOSS) as remit:
        world = await with_an_outsider(remit, outside)
        steps = await planned(remit, run="run-1")
        assert [step.part for step in steps] == foreseen
        if "conflict" in foreseen:
            met = steps[foreseen.index("conflict")]
            assert (met.in_the_way, "not through here" in met.why) == ((), True)
        ended = await roll_back(steps, BOSS, "cli", remit.on, force=False)
        assert [step.part for step in ended] == [part.replace("undo", "done") for part in foreseen]
        assert world.values["pen"] == 77


async def test_the_plan_asks_policy_and_says_who_must_agree(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        World(remit)
        await remit.done("shop.set", {"thing": "pen", "value": 1})
        (step,) = await planned(remit, run="run-1")
        assert (step.part, step.approvals) == ("refused", 0)
        assert "Policy does not let you undo this call." in step.why
        remit.use_policy(
            WITH_BOSS
            + "p2, role:boss, acme, shop.set, undo, 1 == 1, approvals=2\n"
            + "p, role:boss, acme, shop.set, approve, 1 == 1, allow\n"
        )
        await remit.done("shop.set", {"thing": "pen", "value": 2})
        waiting = await planned(remit, run="run-1")
        assert [(step.part, step.approvals) for step in waiting] == 2 * [("waits", 2)]
        assert waiting[0].call_id in waiting[1].why
        assert remit.rows("SELECT 1 FROM approvals") == []


async def test_what_was_held_back_and_sent_is_planned_for_what_it_is(tmp_path: Path) -> None:
    rules = tools(send={"effect": "deferred", "hold_back": "10m"})
    async with a_remit(tmp_path, policy=WITH_BOSS, tools=rules) as remit:
        await remit.call("shop.send", {"text": "hello"})
        remit.clock.advance(s=601)
        await send_due(remit.on)
        (step,) = await planned(remit, run="run-1")
        assert (step.part, "has been sent" in step.why) == ("expired", True)


async def test_an_undo_that_fails_stops_only_what_was_done_to_the_same_thing_before(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=WITH_BOSS) as remit:
        world = World(remit)
        for thing, value in (("pen", 1), ("lamp", 1), ("pen", 2)):
            await remit.done("shop.set", {"thing": thing, "value": value})
        working, failures = world.set, [a_reply("no", is_error=True)]

        async def set_once_failing(request: Request, caller: Caller) -> Reply:
            return failures.pop() if failures else await working(request, caller)

        remit.source.on["set"] = set_once_failing
        assert parts(await rolled_back(remit, run="run-1")) == [
            ("set", "failed"),
            ("set", "done"),
            ("set", "conflict"),
        ]
        assert world.values == {"pen": 2, "lamp": 0}


async def test_what_another_rollback_took_back_is_done_here_too(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=WITH_BOSS) as remit:
        world = World(remit)
        await remit.done("shop.buy", {"thing": "pen", "price": 5})
        await remit.done("shop.buy", {"thing": "lamp", "price": 5})
        steps = await planned(remit)
        one, other = [await roll_back(steps, BOSS, "cli", remit.on, force=False) for _ in range(2)]
        assert [step.part for step in (*one, *other)] == ["done"] * 4
        assert other[0].why == "It has been taken back."
        assert world.orders == set()


async def test_what_another_rollback_takes_back_just_now_is_not_in_doubt_for_good(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=WITH_BOSS) as remit:
        World(remit)
        await remit.done("shop.buy", {"thing": "pen", "price": 5})
        steps, gate = await planned(remit), Gate()
        remit.source.on["give_back"] = gate
        ended: list[Step] = []

        async def other() -> None:
            await remit.source.reached(2)
            try:
                ended.extend(await roll_back(steps, BOSS, "cli", remit.on, force=False))
                ended.extend(await planned(remit))
            finally:
                gate.open()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other)
            (mine,) = await roll_back(steps, BOSS, "cli", remit.on, force=False)
        assert mine.part == "done"
        assert [(step.part, step.why.partition(":")[0]) for step in ended] == [
            ("doubt", "An undo of it is under way")
        ] * 2


async def test_who_may_not_undo_takes_nothing_back(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        world = World(remit)
        await remit.done("shop.set", {"thing": "pen", "value": 1})
        (step,) = await rolled_back(remit, run="run-1")
        assert step.part == "refused"
        assert world.values["pen"] == 1


async def test_what_people_must_agree_to_waits_and_is_finished_later(tmp_path: Path) -> None:
    asking = WITH_BOSS + (
        "p, role:boss, acme, shop.set, approve, 1 == 1, allow\n"
        "p2, user:bea, acme, shop.set, undo, 1 == 1, approvals=1\n"
    )
    async with a_remit(tmp_path, policy=asking) as remit:
        world = World(remit)
        await remit.done("shop.set", {"thing": "pen", "value": 1})
        await remit.done("shop.buy", {"thing": "cup", "price": 5})
        await remit.done("shop.set", {"thing": "pen", "value": 2})
        # Both writes to the same thing wait: the first is in nobody's way but the second's.
        waiting = [("set", "waits"), ("buy", "done"), ("set", "waits")]
        assert parts(await rolled_back(remit, run="run-1")) == waiting
        steps = await rolled_back(remit, run="run-1")
        assert parts(steps) == waiting
        later, earlier = (row["id"] for row in remit.rows("SELECT id FROM approvals ORDER BY created_us"))
        assert later in steps[0].why
        assert world.values["pen"] == 2
        # People agree to the earlier one first, which must not go from below the later.
        await remit.vote(earlier, "user:cyd")
        assert parts(await rolled_back(remit, run="run-1"))[2] == ("set", "conflict")
        await remit.vote(later, "user:cyd")
        assert parts(await rolled_back(remit, run="run-1")) == ALL_GONE
        assert (world.values["pen"], world.orders) == (0, set())


WRITES = st.lists(
    st.tuples(
        st.sampled_from(["agent:bot", "agent:other", "an outsider"]),
        st.sampled_from(["pen", "lamp"]),
        st.integers(1, 3),
    ),
    max_size=8,
)


@settings(max_examples=25)
@given(WRITES)
def test_over_any_history_what_is_last_goes_and_nothing_of_the_others_is_lost(
    writes: list[tuple[str, str, int]],
) -> None:
    async def history(folder: Path) -> None:
        async with a_remit(folder, policy=WITH_BOSS) as remit:
            world = World(remit)
            for number, (agent, thing, value) in enumerate(writes):
                if agent == "an outsider":
                    world.values[thing] = value + 10 * number
                    continue
                await remit.done("shop.set", {"thing": thing, "value": value}, principal=a_principal(agent))
            foreseen = await planned(remit, agent="agent:bot")
            steps = await rolled_back(remit, agent="agent:bot")
            assert [step.part for step in steps] == [step.part.replace("undo", "done") for step in foreseen]
            assert world.values == {thing: expected(thing) for thing in world.values}
            assert len(steps) == sum(agent == "agent:bot" for agent, _, _ in writes)
            assert {step.part for step in steps} <= {"done", "conflict"}

    def expected(thing: str) -> int:
        """The bot's writes go from the end, down to the last one of somebody else."""
        of_thing = [
            (agent, value + 10 * number * (agent == "an outsider"))
            for number, (agent, what, value) in enumerate(writes)
            if what == thing
        ]
        while of_thing and of_thing[-1][0] == "agent:bot":
            of_thing.pop()
        return of_thing[-1][1] if of_thing else 0

    with TemporaryDirectory() as folder:
        anyio.run(history, Path(folder))


# At the command line, on Acme.


def refunds(remit: Terminal, *amounts: int) -> list[str]:
    async def run() -> list[str]:
        async with serving(remit.config) as on:
            done = [await made(on, "acme.refund", refund_of("ord-1003", amount)) for amount in amounts]
        assert all(isinstance(outcome, Done) for outcome in done), done
        return [outcome.call_id for outcome in done]

    return anyio.run(run)


def issued(remit: Terminal) -> int:
    with closing(sqlite3.connect(remit.folder / "acme.db")) as db:
        return db.execute(
            "SELECT COUNT(*) FROM refunds WHERE order_id = 'ord-1003' AND status <> 'cancelled'"
        ).fetchone()[0]


def test_a_person_sees_the_plan_first_and_then_goes_through_with_it(remit: Terminal) -> None:
    one, two = refunds(remit, 100, 200)
    words = ("rollback", "--call", one, "--call", two)
    planned = remit(*words, "--plan")
    assert (planned.code, issued(remit)) == (0, 2)
    assert "2 calls: 2 to undo.\nTaking back what can be costs 2 calls.\n" in planned.out
    as_json = remit.json(*words, "--plan")
    assert as_json["cost"] == {"calls": 2}
    assert [step["cost"] for step in as_json["steps"]] == [{"calls": 1}, {"calls": 1}]
    assert [step["after"] for step in as_json["steps"]] == [[], [two]]
    assert remit(*words, typed="n\n").code == 130
    assert issued(remit) == 2
    went = remit(*words, typed="y\n")
    assert (went.code, issued(remit)) == (0, 0)
    assert "2 calls: 2 undone." in went.out
    assert [step["part"] for step in remit.json(*words, "--plan")["steps"]] == ["done", "done"]
    assert remit("audit", "verify").code == 0


@pytest.mark.parametrize("as_json", [False, True])
def test_what_the_run_does_while_it_is_rolled_back_stays_and_is_named(
    remit: Terminal, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    refunds(remit, 100)
    late: list[str] = []

    async def roll_back_while_it_goes_on(*planned: Any, **more: Any) -> list[Step]:
        late.extend(await anyio.to_thread.run_sync(refunds, remit, 200))
        return await roll_back(*planned, **more)

    monkeypatch.setattr("remit.rollback.roll_back", roll_back_while_it_goes_on)
    words = ("rollback", "--tool", "acme.refund", "--since", "1h", "--yes")
    ran = remit(*words, *(("--json",) if as_json else ()))
    assert ran.code == 1
    if as_json:
        assert ran.json["meanwhile"] == late
    else:
        assert (
            f"1 calls were made meanwhile and stay, the newest is {late[0]}: stop who makes them" in ran.out
        )
    monkeypatch.undo()
    assert f"{late[0][:18]}" in remit(*words, "--json").out
    assert issued(remit) == 0


def test_calls_that_are_named_are_not_narrowed_and_are_ones_own(remit: Terminal) -> None:
    (one,) = refunds(remit, 100)
    for more in (("ticket-7",), ("--agent", "agent:nobody"), ("--tool", "acme.send_mail"), ("--since", "1h")):
        refused = remit("rollback", "--call", one, *more, "--yes")
        assert refused.code == 64
        assert "--call names the calls itself" in refused.err
    with closing(sqlite3.connect(remit.folder / "remit.db")) as db, db:
        db.execute("UPDATE calls SET tenant = 'other' WHERE id = ?", (one,))
    assert f"there is no call {one}" in remit("rollback", "--call", one, "--yes").err
    assert issued(remit) == 1


def test_a_plan_with_force_names_the_calls_that_it_overwrites(remit: Terminal) -> None:
    one, two = refunds(remit, 100, 200)
    (step,) = remit.json("rollback", "--call", one, "--force", "--plan")["steps"]
    assert (step["part"], step["in_the_way"]) == ("undo", [two])
    assert f"It overwrites call {two}" in step["why"]
    assert issued(remit) == 2
    ran = remit("rollback", "--call", one, "--force", "--yes", "--json")
    (step,) = ran.json["steps"]
    assert (step["part"], step["in_the_way"]) == ("done", [two])
    assert f"It overwrote call {two}" in step["why"]


def test_a_rollback_of_a_run_says_what_stays(remit: Terminal) -> None:
    refunds(remit, 300)
    ran = remit("rollback", "ticket-7", "--yes", "--json")
    assert ran.code == 1
    # The last is the one of before, in doubt; below it is nothing on the same order.
    assert [step["part"] for step in ran.json["steps"]] == ["done", "open", "done"]
    assert issued(remit) == 0


def test_what_is_rolled_back_can_be_said_in_many_ways(remit: Terminal) -> None:
    (made,) = refunds(remit, 300)
    scopes = (("ticket-7",), ("--tool", "acme.ref*"), ("--agent", "agent:support-bot", "--since", "1h"))
    for scope in scopes:
        planned = remit("rollback", *scope, "--plan", "--json")
        # One is in doubt; nothing is done yet.
        parts = [step["part"] for step in planned.json["steps"]]
        assert (planned.code, parts, issued(remit)) == (1, ["undo", "open", "undo"], 1)
        assert planned.json["steps"][0]["call_id"] == made
    assert remit("rollback", *scopes[-1], "--yes").code == 1
    assert issued(remit) == 0


def test_only_what_did_something_counts_among_the_calls_that_fit(
    remit: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    refunds(remit, 300)
    whole = ("rollback", "--agent", "agent:support-bot", "--plan", "--json")
    acted = len(remit(*whole).json["steps"])
    assert len(remit.json("calls", "list", "--agent", "agent:support-bot")) > acted
    monkeypatch.setattr("remit.cli.rollback._CALLS_MAX", acted)
    assert len(remit(*whole).json["steps"]) == acted
    monkeypatch.setattr("remit.cli.rollback._CALLS_MAX", acted - 1)
    assert f"more than {acted - 1} calls fit" in remit(*whole).err


def test_what_does_not_fit_is_left_alone(remit: Terminal) -> None:
    refunds(remit, 300)
    ran = remit("rollback", "--agent", "agent:support-bot", "--since", "0s", "--yes")
    assert (ran.code, ran.out) == (0, "No call there changed anything.\n")
    assert issued(remit) == 1


def test_where_nothing_is_left_to_try_the_plan_is_shown_once_and_nobody_is_asked(remit: Terminal) -> None:
    (one,) = refunds(remit, 300)
    remit("rollback", "--call", one, "--yes")
    again = remit("rollback", "--call", one, typed="y\n")
    assert (again.code, again.out.count("1 calls: 1 undone.")) == (0, 1)
    assert "Take these back?" not in again.out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("rollback",), 64, "say what to take back"),
        (("rollback", "run-1", "--json"), 64, "--plan"),
        (("rollback", "no-such-run", "--yes"), 1, "remit: there is no call in run no-such-run"),
        (("rollback", "no-such-run", "--plan", "--json"), 1, "remit: there is no call in run no-such-run"),
        (("rollback", "ticket-7", "--agent", "agent:nobody", "--yes"), 1, "there is no call of agent:nobody"),
        (("rollback", "--tool", "acme.no*", "--yes"), 1, "there is no call of acme.no*"),
        (("rollback", "--tool", "acme.list_orders", "--yes"), 0, "No call there changed anything."),
    ],
)
def test_a_rollback_needs_to_know_what(remit: Terminal, words: tuple[str, ...], code: int, said: str) -> None:
    ran = remit(*words)
    assert ran.code == code
    assert said in ran.out + ran.err
