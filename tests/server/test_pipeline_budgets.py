"""What a call costs: held before, settled after, exact whatever races and however the call ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.server.builders import TOOLS, Clock, Gate, Remit, a_principal, a_remit, a_reply, tools
from tests.server.test_erasing import a_place

from remit.audit import verify_balances
from remit.model import Done, InDoubt, Pending, Refused, Remedy
from remit.records import open_records
from remit.undo import undo
from remit_adapters.base import AdapterError

#: Each test runs on SQLite, and on PostgreSQL.
pytestmark = pytest.mark.usefixtures("every_database")
MANY = {"per_agent": 10_000, "per_source": 10_000}
PRICED = tools(send={"price": {"usd": {"estimate": "len(args.text)", "actual": "result.paid"}}})


def a_budget(
    limit: int, scope: str = "agent", unit: str = "usd", window: str = "total", **more: Any
) -> dict[str, Any]:
    return {"scope": scope, "unit": unit, "window": window, "limit": limit, **more}


def balance(remit: Remit, unit: str = "usd") -> dict[str, int]:
    return remit.one("SELECT held, posted, overrun FROM accounts WHERE unit = ?", unit)


async def test_of_two_hundred_calls_at_once_exactly_as_many_run_as_the_budget_has(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[a_budget(50, unit="calls")], limits=MANY) as remit:
        outcomes = await asyncio.gather(*(remit.call("shop.send", {"text": str(n)}) for n in range(200)))
        assert Counter(type(outcome) for outcome in outcomes) == {Done: 50, Refused: 150}
        assert len(remit.source.sent) == 50
        assert balance(remit, "calls") == {"held": 0, "posted": 50, "overrun": 0}
        refusals = {outcome.verdict.code for outcome in outcomes if isinstance(outcome, Refused)}
        assert refusals == {"budget_exhausted"}


async def test_of_calls_in_one_transaction_exactly_as_many_run_as_the_budget_has(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[a_budget(50, unit="calls")], limits=MANY) as remit:
        await remit.together(*(remit.call("shop.send", {"text": str(n)}) for n in range(200)))
        assert len(remit.source.sent) == 50


async def test_two_processes_share_one_budget(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"budgets": [a_budget(30, unit="calls")], "limits": MANY}
    async with a_remit(tmp_path, **settings) as one, a_remit(tmp_path, **settings) as other:
        await asyncio.gather(
            *(remit.call("shop.send", {"text": str(n)}) for n in range(40) for remit in (one, other))
        )
        assert len(one.source.sent) + len(other.source.sent) == 30
        assert balance(one, "calls") == {"held": 0, "posted": 30, "overrun": 0}


async def test_a_hold_counts_while_its_call_runs(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[a_budget(1, unit="calls")]) as remit:
        gate = Gate()
        remit.source.on["send"] = gate
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(remit.call, "shop.send", {"text": "a"})
            await remit.source.reached()
            assert balance(remit, "calls") == {"held": 1, "posted": 0, "overrun": 0}
            assert (await remit.refused("shop.send", {"text": "b"})).verdict.code == "budget_exhausted"
            gate.open()
        assert balance(remit, "calls") == {"held": 0, "posted": 1, "overrun": 0}


@pytest.mark.parametrize(
    ("paid", "posted"), [(2, 2), (0, 0), (10, 10), ("much", 5), (-1, 5), (1.5, 5), (None, 5)]
)
async def test_what_was_really_spent_is_posted_and_what_cannot_be_read_counts_as_held(
    tmp_path: Path, paid: Any, posted: int
) -> None:
    async with a_remit(tmp_path, tools=PRICED, budgets=[a_budget(10)]) as remit:
        remit.source.on["send"] = {"paid": paid}
        outcome = await remit.done("shop.send", {"text": "12345"})
        assert outcome.cost["usd"] == posted
        assert balance(remit) == {"held": 0, "posted": posted, "overrun": 0}


async def test_spending_beyond_the_limit_is_recorded_and_ends_spending(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=PRICED, budgets=[a_budget(10)]) as remit:
        remit.source.on["send"] = {"paid": 25}
        await remit.done("shop.send", {"text": "12345"})
        assert balance(remit) == {"held": 0, "posted": 25, "overrun": 15}
        refused = await remit.refused("shop.send", {"text": "1"})
        assert refused.verdict.code == "budget_exhausted"
        assert "0 of 10" in refused.verdict.reason
        # What costs nothing still runs.
        await remit.done("shop.look", {"thing": "pen"})


@pytest.mark.parametrize("on_exceed", ["observe", "deny"])
async def test_an_account_counts_no_further_than_it_can_and_takes_nothing_more(
    tmp_path: Path, on_exceed: str
) -> None:
    most = 2**53 - 1
    prices = {"usd": {"estimate": "args.price", "actual": "result.paid"}}
    rules = tools(buy={"price": prices, "undo": {**TOOLS["shop.buy"]["undo"], "refund": 100}})
    budgets = [a_budget(most, on_exceed=on_exceed)]
    async with a_remit(tmp_path, tools=rules, budgets=budgets) as remit:
        remit.source.on["buy"] = {"order": "o-1", "paid": most}
        calls = [remit.call("shop.buy", {"thing": thing, "price": 2}) for thing in ("pen", "cup")]
        await asyncio.gather(*calls)
        assert balance(remit) == {"held": 0, "posted": most, "overrun": 0}
        outcome = await remit.call("shop.buy", {"thing": "mug", "price": 100})
        assert isinstance(outcome, Done if on_exceed == "observe" else Refused)
        assert balance(remit) == {"held": 0, "posted": most, "overrun": 0}
        first = remit.rows("SELECT id FROM calls ORDER BY id")[0]["id"]
        assert isinstance(await undo(first, a_principal(), "run-1", remit.on), Done)
        # What came back makes no room: nobody knows any more how much was spent.
        outcome = await remit.call("shop.buy", {"thing": "jug", "price": 100})
        assert isinstance(outcome, Done if on_exceed == "observe" else Refused)
    terminal = a_place(tmp_path)
    assert terminal("audit", "verify").code == terminal("budget", "verify").code == 0


async def test_a_call_that_costs_nothing_runs_on_an_empty_budget(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=PRICED, budgets=[a_budget(0)]) as remit:
        remit.source.on["send"] = {"paid": 0}
        await remit.done("shop.send", {"text": ""})
        assert (await remit.refused("shop.send", {"text": "1"})).verdict.code == "budget_exhausted"


async def test_a_refusal_says_which_budget_and_until_when(tmp_path: Path) -> None:
    budgets = [a_budget(2, unit="calls", window="hour"), a_budget(9, scope="tenant", unit="calls")]
    async with a_remit(tmp_path, budgets=budgets) as remit:
        for _ in range(2):
            await remit.done("shop.look", {"thing": "pen"})
        verdict = (await remit.refused("shop.look", {"thing": "pen"})).verdict
        assert verdict.remedy is Remedy.WAIT
        assert "calls of this agent per hour" in verdict.reason
        assert "It is free again at 2027-01-15 09:00:00Z." in verdict.reason
        remit.clock.advance(s=3600)
        await remit.done("shop.look", {"thing": "pen"})


async def test_nobody_is_told_to_wait_for_a_budget_of_nothing(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[a_budget(0, unit="calls", window="hour")]) as remit:
        verdict = (await remit.refused("shop.look", {"thing": "pen"})).verdict
        assert (verdict.code, verdict.remedy) == ("budget_exhausted", Remedy.ASK)
        assert "free again" not in verdict.reason


async def test_one_account_that_is_empty_holds_nothing_on_the_others(tmp_path: Path) -> None:
    budgets = [a_budget(100, scope="agent", unit="calls"), a_budget(1, scope="tool", unit="calls")]
    async with a_remit(tmp_path, budgets=budgets) as remit:
        await remit.done("shop.look", {"thing": "pen"})
        await remit.refused("shop.look", {"thing": "pen"})
        held = remit.rows("SELECT id, held, posted FROM accounts ORDER BY id")
        assert [(row["held"], row["posted"]) for row in held] == [(0, 1), (0, 1)]


async def test_every_account_of_a_call_pays(tmp_path: Path) -> None:
    scopes = ("tenant", "user", "agent", "run", "tool")
    async with a_remit(tmp_path, budgets=[a_budget(9, scope, "calls") for scope in scopes]) as remit:
        await remit.done("shop.look", {"thing": "pen"})
        await remit.done("shop.look", {"thing": "pen"}, principal=a_principal("agent:other"), run="run-2")
        posted = {
            row["id"].partition(":")[2]: row["posted"]
            for row in remit.rows("SELECT id, posted FROM accounts")
        }
        assert posted == {
            "acme/acme:calls:total": 2,
            "acme/user:ann:calls:total": 2,
            "acme/shop.look:calls:total": 2,
            "acme/agent:bot:calls:total": 1,
            "acme/agent:other:calls:total": 1,
            "acme/run-1:calls:total": 1,
            "acme/run-2:calls:total": 1,
        }


async def test_a_budget_for_one_agent_takes_the_place_of_the_one_for_all(tmp_path: Path) -> None:
    budgets = [a_budget(3, unit="calls", id="agent:bot"), a_budget(1, unit="calls")]
    async with a_remit(tmp_path, budgets=budgets) as remit:
        for _ in range(3):
            await remit.done("shop.look", {"thing": "pen"})
        assert isinstance(await remit.call("shop.look", {"thing": "pen"}), Refused)
        await remit.done("shop.look", {"thing": "pen"}, principal=a_principal("agent:other"))
        assert isinstance(
            await remit.call("shop.look", {"thing": "pen"}, principal=a_principal("agent:other")), Refused
        )


async def test_a_call_settles_in_the_window_that_admitted_it(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[a_budget(5, unit="calls", window="minute")]) as remit:
        gate = Gate()
        remit.source.on["send"] = gate
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(remit.call, "shop.send", {"text": "a"})
            await remit.source.reached()
            remit.clock.advance(s=60)
            gate.open()
        await remit.done("shop.send", {"text": "b"})
        windows = remit.rows("SELECT posted FROM accounts ORDER BY window_start_us")
        assert [row["posted"] for row in windows] == [1, 1]


@pytest.mark.parametrize(("limits", "overrun"), [((10, 3), 2), ((3, 10), 0)])
async def test_a_budget_changed_within_its_window_counts_at_once(
    tmp_path: Path, limits: tuple[int, int], overrun: int
) -> None:
    (before, after), clock = limits, Clock()
    async with a_remit(tmp_path, clock=clock, budgets=[a_budget(before, unit="calls")]) as remit:
        for _ in range(5):
            await remit.call("shop.look", {"thing": "pen"})
    async with a_remit(tmp_path, clock=clock, budgets=[a_budget(after, unit="calls")]) as remit:
        outcome = await remit.call("shop.look", {"thing": "pen"})
        assert isinstance(outcome, Refused if overrun else Done)
    async with a_remit(tmp_path, clock=clock, budgets=[a_budget(20, unit="calls")]) as remit:
        await remit.done("shop.look", {"thing": "pen"})
        assert balance(remit, "calls")["overrun"] == 0


async def test_a_restart_leaves_in_doubt_what_was_sent_and_keeps_its_hold(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[a_budget(3, unit="calls")]) as remit:
        remit.source.on["send"] = AdapterError("The line broke.", no_effect=False)
        assert isinstance(await remit.call("shop.send", {"text": "a"}), InDoubt)
    async with a_remit(tmp_path, budgets=[a_budget(3, unit="calls")]) as remit:
        for text in ("b", "c"):
            await remit.done("shop.send", {"text": text})
        assert (await remit.refused("shop.send", {"text": "d"})).verdict.code == "budget_exhausted"
        assert balance(remit, "calls") == {"held": 1, "posted": 2, "overrun": 0}


async def test_calls_that_end_in_every_way_at_once_leave_exact_balances(tmp_path: Path) -> None:
    """Success, error, certain failure, doubt and bug, interleaved over few accounts."""
    answers: list[Any] = [
        a_reply({"paid": 3}),
        a_reply("no", is_error=True),
        AdapterError("down", no_effect=True),
        AdapterError("lost", no_effect=False),
        a_reply({"paid": 40}),
    ]
    budgets = [a_budget(400), a_budget(300, "tool"), a_budget(10**6, "tenant"), a_budget(90, unit="calls")]
    async with a_remit(tmp_path, tools=PRICED, budgets=budgets, limits=MANY) as remit:

        async def send(request: Any, caller: Any) -> Any:
            await anyio.lowlevel.checkpoint()
            answer = answers[int(request.arguments["text"]) % len(answers)]
            if isinstance(answer, Exception):
                raise answer
            return answer

        remit.source.on["send"] = send
        await asyncio.gather(*(remit.call("shop.send", {"text": f"{n:03}"}) for n in range(120)))
        assert 30 < len(remit.source.sent) <= 90 + 24


SOLD = {"thing": "pen", "price": 5}
REFUNDED = tools(
    buy={
        "price": {"usd": "args.price"},
        "undo": {"call": "shop.give_back", "args": {"order": "result.order"}, "within": "1h", "refund": 60},
    }
)


async def test_an_undo_gives_back_the_declared_share_once_and_never_the_calls(tmp_path: Path) -> None:
    budgets = [a_budget(10), a_budget(9, unit="calls")]
    async with a_remit(tmp_path, tools=REFUNDED, budgets=budgets) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        call_id = (await remit.done("shop.buy", SOLD)).call_id
        for _ in range(2):
            await undo(call_id, a_principal(), "run-1", remit.on)
        account = remit.one("SELECT posted, refunded, overrun FROM accounts WHERE unit = 'usd'")
        assert account == {"posted": 5, "refunded": 3, "overrun": 0}
        assert remit.one("SELECT refunded FROM accounts WHERE unit = 'calls'") == {"refunded": 0}
        assert remit.one("SELECT refunded FROM holds WHERE unit = 'usd'") == {"refunded": 3}
        # What came back can be spent again: 10 - 5 + 3.
        await remit.done("shop.buy", {**SOLD, "price": 8})
        assert isinstance(await remit.call("shop.buy", {**SOLD, "price": 1}), Refused)
    with open_records(remit.path) as records:
        assert list(verify_balances(records)) == []
    told = a_place(tmp_path)("calls", "show", call_id).out
    assert ": 5 of 5 held (posted), 3 given back\n" in told
    assert told.count("given back") == 1


async def test_an_undo_that_failed_gives_nothing_back(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=REFUNDED, budgets=[a_budget(10)]) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        call_id = (await remit.done("shop.buy", SOLD)).call_id
        remit.source.on["give_back"] = a_reply({"no": "way"}, is_error=True)
        await undo(call_id, a_principal(), "run-1", remit.on)
        assert remit.one("SELECT refunded FROM accounts WHERE unit = 'usd'") == {"refunded": 0}


async def test_an_empty_budget_stands_in_the_way_of_no_undo(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[a_budget(1, unit="calls")]) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        call_id = (await remit.done("shop.buy", SOLD)).call_id
        assert isinstance(await remit.call("shop.buy", SOLD), Refused)
        outcome = await undo(call_id, a_principal(), "run-1", remit.on)
        assert isinstance(outcome, Done)
        assert outcome.undone["state"] == "done"
        assert balance(remit, "calls") == {"held": 0, "posted": 2, "overrun": 1}


async def test_a_budget_can_ask_for_a_person_instead_of_refusing(tmp_path: Path) -> None:
    budgets = [a_budget(6, on_exceed="approve")]
    priced = tools(buy={"price": {"usd": "args.price"}})
    async with a_remit(tmp_path, tools=priced, budgets=budgets) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        await remit.done("shop.buy", SOLD)
        more = {**SOLD, "thing": "cup"}
        pending = await remit.call("shop.buy", more)
        assert isinstance(pending, Pending)
        assert pending.verdict.code == "over_budget"
        assert len(remit.source.effects("buy")) == 1
        await remit.vote(pending.approval_id)
        await remit.done("shop.buy", more)
        assert balance(remit) == {"held": 0, "posted": 10, "overrun": 4}


async def test_a_budget_that_observes_refuses_nothing_and_counts_the_excess(tmp_path: Path) -> None:
    budgets = [a_budget(1, unit="calls", on_exceed="observe"), a_budget(3, scope="tenant", unit="calls")]
    async with a_remit(tmp_path, budgets=budgets) as remit:
        for text in ("a", "b", "c"):
            await remit.done("shop.send", {"text": text})
        assert isinstance(await remit.call("shop.send", {"text": "d"}), Refused)
        accounts = remit.rows("SELECT id, posted, overrun FROM accounts ORDER BY id")
        assert [(row["posted"], row["overrun"]) for row in accounts] == [(3, 2), (3, 0)]


async def test_a_receipt_warns_from_the_declared_share_of_a_limit_on(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[a_budget(4, unit="calls", warn_at=75)]) as remit:
        warnings = [(await remit.done("shop.send", {"text": text})).warnings for text in "abcd"]
    assert warnings[:2] == [(), ()]
    assert [len(sentences) for sentences in warnings[2:]] == [1, 1]
    assert "1 of 4 are left of total calls of this agent" in warnings[2][0]


async def test_a_receipt_tells_what_is_left_after_what_the_call_really_cost(tmp_path: Path) -> None:
    price = {"eur_cent": {"estimate": "args.price", "actual": "result.paid"}}
    budgets = [a_budget(100, unit="eur_cent", warn_at=50, on_exceed="observe")]
    async with a_remit(tmp_path, tools=tools(buy={"price": price}), budgets=budgets) as remit:
        remit.source.on["buy"] = {"order": "o-1", "paid": 1}
        assert (await remit.done("shop.buy", {"thing": "pen", "price": 100})).warnings == ()
        remit.source.on["buy"] = {"order": "o-2", "paid": 60}
        told = (await remit.done("shop.buy", {"thing": "cup", "price": 1})).warnings
    assert told == ("39 of 100 are left of total eur_cent of this agent.",)


async def test_a_call_that_failed_does_not_warn_of_what_it_gave_back(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[a_budget(4, unit="calls", warn_at=25)]) as remit:
        assert (await remit.done("shop.send", {"text": "a"})).warnings
        remit.source.on["send"] = a_reply("out of ink", is_error=True)
        failed = await remit.done("shop.send", {"text": "b"})
        assert (failed.failed, failed.warnings) == (True, ())
