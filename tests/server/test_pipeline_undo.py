"""Taking back: once, in time, not over somebody's later change, and honest about how it ended."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.server.builders import POLICY, Clock, Gate, Remit, a_principal, a_remit, a_reply, tools

from remit.approvals import NotAllowed
from remit.due import send_due
from remit.errors import UnknownRecord, WrongState
from remit.model import Done, Failed, InDoubt, Outcome, Pending, Refused
from remit.probes import probe
from remit.undo import undo
from remit_adapters.base import AdapterError, Reply

#: Each test runs on SQLite, and on PostgreSQL.
pytestmark = pytest.mark.usefixtures("every_database")
PEN = {"thing": "pen", "price": 5}
VERIFIED = tools(
    buy={
        "undo": {
            "call": "shop.give_back",
            "args": {"order": "result.order"},
            "within": "1h",
            "verify": {
                "call": "shop.look",
                "args": {"thing": "args.thing"},
                "expect": "result.owner == 'shop' && original.order == 'o-1'",
            },
        }
    }
)


async def bought(remit: Remit, arguments: dict[str, Any] = PEN, order: str = "o-1") -> str:
    remit.source.on["buy"] = {"order": order}
    return (await remit.done("shop.buy", arguments)).call_id


async def taken_back(remit: Remit, call_id: str, agent: str = "agent:bot", **more: Any) -> Outcome:
    return await undo(call_id, a_principal(agent, **more), "run-1", remit.on)


def undo_state(remit: Remit, call_id: str) -> str:
    return remit.one("SELECT state FROM undos WHERE call_id = ?", call_id)["state"]


async def test_a_call_is_taken_back_by_the_call_that_was_planned(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        call_id = await bought(remit)
        assert undo_state(remit, call_id) == "ready"
        outcome = await taken_back(remit, call_id)
        assert isinstance(outcome, Done)
        assert outcome.undone["state"] == "done"
        assert remit.source.effects("give_back")[0].arguments == {"order": "o-1"}
        assert undo_state(remit, call_id) == "done"
        record = remit.record(outcome.call_id)
        assert (record["kind"], record["of_call"], record["tool"]) == ("undo", call_id, "shop.give_back")


async def test_an_undo_asked_for_fifty_times_at_once_happens_once(tmp_path: Path) -> None:
    async with a_remit(tmp_path, limits={"per_agent": 100}) as remit:
        call_id = await bought(remit)
        outcomes = await remit.together(*(taken_back(remit, call_id) for _ in range(25)))
        outcomes += await asyncio.gather(*(taken_back(remit, call_id) for _ in range(25)))
        assert Counter(type(outcome) for outcome in outcomes) == {Done: 1, Refused: 49}
        assert {outcome.verdict.code for outcome in outcomes if isinstance(outcome, Refused)} == {"undo_used"}
        assert len(remit.source.effects("give_back")) == 1


async def test_an_undo_of_an_undo_does_not_exist(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        outcome = await taken_back(remit, await bought(remit))
        assert isinstance(outcome, Done)
        with pytest.raises(WrongState, match="serves another one"):
            await taken_back(remit, outcome.call_id)


@pytest.mark.parametrize("agent", ["agent:other", "agent:nobody"])
async def test_another_agent_cannot_tell_the_call_from_none(tmp_path: Path, agent: str) -> None:
    async with a_remit(tmp_path) as remit:
        call_id = await bought(remit)
        with pytest.raises(UnknownRecord) as theirs:
            await taken_back(remit, call_id, agent)
        with pytest.raises(UnknownRecord) as none:
            await taken_back(remit, "01a3185c-5000-7000-8000-000000000000", agent)
        assert str(theirs.value) == str(none.value)
        with pytest.raises(UnknownRecord):
            await taken_back(remit, call_id, tenant="other")


async def test_a_person_may_undo_for_whoever_made_the_call_if_policy_says_so(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        first, second = await bought(remit), await bought(remit, {"thing": "cup", "price": 5})
        assert isinstance(await taken_back(remit, first, user="user:bea", auth="local"), Done)
        refused = await taken_back(remit, second, user="user:dan", auth="local")
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "undo_not_allowed"


async def test_the_right_to_undo_is_asked_when_undoing(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        call_id = await bought(remit)
        remit.use_policy(POLICY.replace("p, role:clerk, acme, shop.buy, undo, 1 == 1, allow\n", ""))
        refused = await taken_back(remit, call_id)
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "undo_not_allowed"
        assert remit.source.effects("give_back") == []
        remit.use_policy(POLICY)
        assert isinstance(await taken_back(remit, call_id), Done)


async def test_after_its_time_a_call_stands(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=VERIFIED) as remit:
        call_id = await bought(remit)
        remit.clock.advance(s=3601)
        refused = await taken_back(remit, call_id)
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "undo_expired"


@pytest.mark.parametrize("failing", [a_reply("no", is_error=True), AdapterError("down", no_effect=True)])
async def test_a_call_that_failed_leaves_nothing_to_take_back(tmp_path: Path, failing: Any) -> None:
    async with a_remit(tmp_path) as remit:
        remit.source.on["buy"] = failing
        outcome = await remit.call("shop.buy", PEN)
        assert isinstance(outcome, Done | Failed)
        with pytest.raises(WrongState):
            await taken_back(remit, outcome.call_id)


async def test_a_call_in_doubt_cannot_be_taken_back_yet(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        remit.source.on["buy"] = AdapterError("lost", no_effect=False)
        outcome = await remit.call("shop.buy", PEN)
        assert isinstance(outcome, InDoubt)
        assert undo_state(remit, outcome.call_id) == "registered"
        with pytest.raises(WrongState):
            await taken_back(remit, outcome.call_id)


async def test_a_way_back_that_the_answer_did_not_give_is_none(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        outcome = await remit.done("shop.buy", PEN)  # it answers "ok", without an order
        assert outcome.undo is None
        with pytest.raises(WrongState, match="could not be worked out"):
            await taken_back(remit, outcome.call_id)


# Conflicts.


async def test_a_way_back_by_a_number_that_nothing_can_carry_is_none(tmp_path: Path) -> None:
    back = {"call": "shop.give_back", "args": {"order": "result.order * result.order"}}
    async with a_remit(tmp_path, tools=tools(buy={"undo": back})) as remit:
        remit.source.on["buy"] = {"order": 2**60}
        assert (await remit.done("shop.buy", PEN)).undo is None


async def test_a_later_change_of_the_same_thing_must_be_undone_first(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        first, later = await bought(remit), await bought(remit, order="o-2")
        refused = await taken_back(remit, first)
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "undo_conflict"
        assert isinstance(await taken_back(remit, later), Done)
        assert isinstance(await taken_back(remit, first), Done)
        assert [request.arguments["order"] for request in remit.source.effects("give_back")] == ["o-2", "o-1"]


async def test_a_later_change_of_another_thing_or_one_that_failed_is_no_conflict(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        first = await bought(remit)
        await bought(remit, {"thing": "cup", "price": 5})
        remit.source.on["buy"] = a_reply("no", is_error=True)
        await remit.done("shop.buy", PEN)
        assert isinstance(await taken_back(remit, first), Done)


@pytest.mark.parametrize("resource", ["args.text", "result.touched"])
async def test_a_later_change_that_has_no_way_back_is_a_conflict_too(tmp_path: Path, resource: str) -> None:
    async with a_remit(tmp_path, tools=tools(send={"resource": resource})) as remit:
        remit.source.on["send"] = {"touched": "pen"}
        first, other = await bought(remit), await bought(remit, {"thing": "cup", "price": 5})
        await remit.done("shop.send", {"text": "pen"})
        refused = await taken_back(remit, first)
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "undo_conflict"
        assert isinstance(await taken_back(remit, other), Done)


async def test_a_later_change_whose_way_back_could_not_be_worked_out_is_a_conflict(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        first = await bought(remit)
        remit.source.on["buy"] = "bought, and no order to give back"
        await remit.done("shop.buy", PEN)
        refused = await taken_back(remit, first)
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "undo_conflict"


async def test_a_later_read_of_the_same_thing_is_no_conflict(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=tools(look={"resource": "args.thing"})) as remit:
        first = await bought(remit)
        await remit.done("shop.look", {"thing": "pen"})
        assert isinstance(await taken_back(remit, first), Done)


async def test_a_later_change_in_doubt_is_a_conflict(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        first = await bought(remit)
        remit.source.on["buy"] = AdapterError("lost", no_effect=False)
        await remit.call("shop.buy", PEN)
        refused = await taken_back(remit, first)
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "undo_conflict"


async def test_a_change_by_another_agent_is_a_conflict_too(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        first = await bought(remit)
        await remit.done("shop.buy", PEN, principal=a_principal("agent:other"))
        refused = await taken_back(remit, first)
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "undo_conflict"


async def test_a_change_let_out_in_the_very_transaction_before_the_undo_is_a_conflict(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        call_id = await bought(remit)
        outcomes = await remit.together(remit.call("shop.buy", PEN), taken_back(remit, call_id))
        # Reading the plan back costs the undo a transaction of its own, so it comes second.
        assert isinstance(outcomes[1], Refused)
        assert outcomes[1].verdict.code == "undo_conflict"


async def test_of_two_changes_let_out_together_one_can_be_undone_and_then_the_other(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        pair = await remit.together(remit.call("shop.buy", PEN), remit.call("shop.buy", PEN))
        codes = [
            type(await taken_back(remit, made.call_id))
            for made in sorted(pair, key=lambda made: made.call_id)
        ]
        assert codes == [Refused, Done]
        assert isinstance(await taken_back(remit, min(made.call_id for made in pair)), Done)


async def test_a_person_may_force_an_undo_over_a_later_change(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        first, _ = await bought(remit), await bought(remit, order="o-2")
        person = a_principal(user="user:bea", auth="local")
        assert isinstance(await undo(first, person, "run-1", remit.on, force=True), Done)
        again = await undo(first, person, "run-1", remit.on, force=True)
        assert isinstance(again, Refused)
        assert again.verdict.code == "undo_used"


# Proof.


async def test_an_undo_that_the_world_shows_is_done(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=VERIFIED) as remit:
        call_id = await bought(remit)
        remit.source.on["look"] = {"owner": "shop"}
        outcome = await taken_back(remit, call_id)
        assert isinstance(outcome, Done)
        assert outcome.undone["state"] == "done"
        (read,) = remit.rows("SELECT kind, of_call, state FROM calls WHERE tool = 'shop.look'")
        assert read == {"kind": "verify", "of_call": outcome.call_id, "state": "succeeded"}


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        ({"owner": "ann"}, "failed"),
        ({}, "indeterminate"),
        ("gone", "indeterminate"),
        (a_reply("no", is_error=True), "indeterminate"),
        (AdapterError("down", no_effect=True), "indeterminate"),
    ],
)
async def test_an_undo_that_the_world_does_not_show_is_not_called_done(
    tmp_path: Path, seen: Any, state: str
) -> None:
    async with a_remit(tmp_path, tools=VERIFIED) as remit:
        call_id = await bought(remit)
        remit.source.on["look"] = seen
        outcome = await taken_back(remit, call_id)
        assert isinstance(outcome, Done)
        assert outcome.undone["state"] == state
        assert undo_state(remit, call_id) == state
        again = await taken_back(remit, call_id)
        assert isinstance(again, Refused)
        assert again.verdict.code == "undo_used"


@pytest.mark.parametrize("by", ["a look", "a person"])
async def test_an_undo_that_could_not_be_proved_is_in_doubt_until_somebody_tells(
    tmp_path: Path, by: str
) -> None:
    price = {"usd": "args.price"}
    undo_rule = {**VERIFIED["shop.buy"]["undo"], "refund": 100}
    rules = {**VERIFIED, "shop.buy": {**VERIFIED["shop.buy"], "price": price, "undo": undo_rule}}
    budgets = [{"scope": "agent", "unit": "usd", "window": "total", "limit": 100}]
    async with a_remit(tmp_path, tools=rules, budgets=budgets) as remit:
        call_id = await bought(remit)
        remit.source.on["look"] = AdapterError("It is down.", no_effect=True)
        outcome = await taken_back(remit, call_id)
        assert isinstance(outcome, Done)
        assert (outcome.undone["state"], remit.state(outcome.call_id)) == ("indeterminate", "in_doubt")
        remit.source.on["look"] = {"owner": "shop"}
        remit.clock.advance(s=120)
        if by == "a look":
            assert (await probe(outcome.call_id, remit.on)).state == "succeeded"
        else:
            await remit.on.journal.resolve(outcome.call_id, happened=True, reason="seen", by="user:bea")
        assert undo_state(remit, call_id) == "done"
        assert remit.one("SELECT posted - refunded AS paid FROM accounts") == {"paid": 0}
        assert len(remit.source.effects("give_back")) == 1


async def test_a_proof_needs_no_right_of_the_agent_and_no_budget(tmp_path: Path) -> None:
    policy = POLICY.replace("p, role:clerk, acme, shop.look, execute, 1 == 1, allow\n", "")
    budgets = [{"scope": "agent", "unit": "calls", "window": "total", "limit": 2}]
    async with a_remit(tmp_path, policy=policy, tools=VERIFIED, budgets=budgets) as remit:
        call_id = await bought(remit)
        remit.source.on["look"] = {"owner": "shop"}
        outcome = await taken_back(remit, call_id)
        assert isinstance(outcome, Done)
        assert outcome.undone["state"] == "done"
        assert (await remit.refused("shop.look", {"thing": "pen"})).verdict.code == "no_rule"


async def test_an_undo_cut_short_while_it_is_proved_leaves_nothing_open(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=VERIFIED) as remit:
        call_id = await bought(remit)
        remit.source.on["look"] = Gate()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(taken_back, remit, call_id)
            await remit.source.reached(3)
            tasks.cancel_scope.cancel()
        assert undo_state(remit, call_id) == "indeterminate"
        (back,) = remit.rows("SELECT state FROM calls WHERE kind = 'undo'")
        assert back["state"] in ("in_doubt", "succeeded")


async def test_an_undo_that_certainly_did_nothing_may_be_tried_again(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        call_id = await bought(remit)
        remit.source.on["give_back"] = AdapterError("It is down.", no_effect=True)
        assert isinstance(await taken_back(remit, call_id), Failed)
        assert undo_state(remit, call_id) == "ready"
        del remit.source.on["give_back"]
        assert isinstance(await taken_back(remit, call_id), Done)


async def test_an_undo_in_doubt_is_not_repeated(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        call_id = await bought(remit)
        remit.source.on["give_back"] = AdapterError("lost", no_effect=False)
        assert isinstance(await taken_back(remit, call_id), InDoubt)
        assert undo_state(remit, call_id) == "indeterminate"
        assert isinstance(await taken_back(remit, call_id), Refused)
        assert len(remit.source.effects("give_back")) == 1


async def test_an_undo_that_the_source_refuses_has_failed(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        call_id = await bought(remit)
        remit.source.on["give_back"] = a_reply("too late", is_error=True)
        outcome = await taken_back(remit, call_id)
        assert isinstance(outcome, Done)
        assert outcome.reply.is_error
        assert undo_state(remit, call_id) == "failed"


async def test_a_bug_in_the_middle_of_an_undo_leaves_it_indeterminate(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        call_id = await bought(remit)
        remit.source.on["give_back"] = ValueError("a bug")
        with pytest.raises(ValueError, match="a bug"):
            await taken_back(remit, call_id)
        assert undo_state(remit, call_id) == "indeterminate"


# Before-images.


async def test_what_is_replaced_is_read_first_and_put_back(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        remit.source.on["look"] = {"value": 7}
        outcome = await remit.done("shop.set", {"thing": "lamp", "value": 9})
        assert [request.name for request in remit.source.sent] == ["look", "set", "look"]
        assert remit.carried(outcome.call_id, "before") == {"value": 7}
        assert isinstance(await taken_back(remit, outcome.call_id), Done)
        assert remit.source.effects("set")[1].arguments == {"thing": "lamp", "value": 7}


@pytest.mark.parametrize(
    "seen",
    [
        a_reply("no", is_error=True),
        AdapterError("down", no_effect=True),
        AdapterError("lost", no_effect=False),
        Reply(body={"inputRequests": {}}, kind="input_required"),
    ],
)
async def test_what_cannot_be_read_first_is_not_replaced(tmp_path: Path, seen: Any) -> None:
    async with a_remit(tmp_path) as remit:
        remit.source.on["look"] = seen
        outcome = await remit.refused("shop.set", {"thing": "lamp", "value": 9})
        assert outcome.verdict.code == "no_before_image"
        assert remit.source.effects("set") == []


async def test_a_call_is_not_made_while_its_way_back_is_missing(tmp_path: Path) -> None:
    rules = tools(buy={"undo": {"call": "shop.vanished", "args": {}}})
    async with a_remit(tmp_path, tools=rules) as remit:
        assert [flaw.name for flaw in remit.on.catalog.flaws] == ["shop.buy"]
        assert (await remit.refused("shop.buy", PEN)).verdict.code == "no_way_back"
        assert remit.source.sent == []


async def test_a_call_is_not_made_when_what_reads_its_before_image_may_write(tmp_path: Path) -> None:
    rules = tools(set={"before": {"call": "shop.send", "args": {"text": "args.thing"}}})
    async with a_remit(tmp_path, tools=rules) as remit:
        assert (
            await remit.refused("shop.set", {"thing": "lamp", "value": 9})
        ).verdict.code == "no_before_image"
        assert remit.source.sent == []


async def test_a_bug_while_the_before_image_is_read_lets_nothing_out(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        remit.source.on["look"] = KeyError("a bug")
        with pytest.raises(KeyError):
            await remit.call("shop.set", {"thing": "lamp", "value": 9})
        assert remit.source.effects("set") == []
        assert remit.rows("SELECT state FROM calls") == [{"state": "failed"}]


async def test_a_tool_that_vanished_since_cannot_take_the_call_back_now(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        call_id = await bought(remit)
        catalog = remit.on.catalog
        remit.on.catalog = type(catalog)(tools={}, prompts={})
        with pytest.raises(WrongState, match="not available"):
            await taken_back(remit, call_id)
        remit.on.catalog = catalog
        assert isinstance(await taken_back(remit, call_id), Done)


async def test_a_before_image_costs_the_agent_none_of_its_calls(tmp_path: Path) -> None:
    budgets = [{"scope": "agent", "unit": "calls", "window": "total", "limit": 1}]
    async with a_remit(tmp_path, budgets=budgets) as remit:
        remit.source.on["look"] = {"value": 7}
        await remit.done("shop.set", {"thing": "lamp", "value": 9})
        assert remit.one("SELECT held, posted FROM accounts") == {"held": 0, "posted": 1}


async def test_an_undo_is_paid_for_like_any_call(tmp_path: Path) -> None:
    budgets = [{"scope": "agent", "unit": "calls", "window": "total", "limit": 9}]
    async with a_remit(tmp_path, budgets=budgets) as remit:
        await taken_back(remit, await bought(remit))
        assert remit.one("SELECT held, posted FROM accounts") == {"held": 0, "posted": 2}


# Approvals.

#: Whoever buys may take it back; what cost more than 5 only when a boss agrees.
ASKING = POLICY + "p2, *, acme, shop.*, undo, r.args.price > 4, approvals=1\n"
TWO = POLICY + "p2, *, acme, shop.*, undo, 1 == 1, approvals=2\n"


async def asked(remit: Remit, call_id: str, agent: str = "agent:bot", **more: Any) -> Pending:
    outcome = await taken_back(remit, call_id, agent, **more)
    assert isinstance(outcome, Pending), outcome
    return outcome


async def test_an_undo_waits_for_people_and_runs_once_when_it_is_asked_for_again(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ASKING) as remit:
        call_id = await bought(remit)
        waits = await asked(remit, call_id)
        assert (await asked(remit, call_id)).approval_id == waits.approval_id
        assert remit.source.effects("give_back") == []
        shown = remit.carried(waits.call_id, "shown")
        assert (shown["tool"], shown["arguments"]) == ("shop.give_back", {"order": "o-1"})
        assert shown["takes_back"]["call_id"] == call_id
        assert shown["takes_back"]["arguments"] == PEN
        await remit.vote(waits.approval_id)
        outcomes = await asyncio.gather(*(taken_back(remit, call_id) for _ in range(5)))
        assert Counter(type(outcome) for outcome in outcomes) == {Done: 1, Refused: 4}
        assert len(remit.source.effects("give_back")) == 1
        record = remit.record(waits.call_id)
        assert (record["kind"], record["of_call"], record["state"]) == ("undo", call_id, "succeeded")
        assert remit.one("SELECT * FROM undos")["undo_call"] == waits.call_id


async def test_the_condition_of_the_duty_is_asked_of_the_call_that_is_taken_back(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ASKING) as remit:
        cheap = await bought(remit, {"thing": "pin", "price": 4})
        assert isinstance(await taken_back(remit, cheap), Done)


async def test_who_asked_for_an_undo_does_not_agree_to_it(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=TWO) as remit:
        call_id = await bought(remit)
        # The bosses are two, and one of them asks.
        lonely = await taken_back(remit, call_id, "agent:remit-cli", user="user:bea", auth="local")
        assert isinstance(lonely, Refused)
        assert lonely.verdict.code == "no_approver"
        remit.use_policy(ASKING)
        waits = await asked(remit, call_id, "agent:remit-cli", user="user:bea", auth="local")
        for user in ("user:bea", "user:ann"):
            with pytest.raises(NotAllowed):
                await remit.vote(waits.approval_id, user)
        assert await remit.vote(waits.approval_id, "user:cyd") == "approved"


async def test_as_many_must_agree_as_the_duty_says(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=TWO) as remit:
        call_id = await bought(remit)
        waits = await asked(remit, call_id)
        assert await remit.vote(waits.approval_id, "user:bea") == "pending"
        await asked(remit, call_id)
        await remit.vote(waits.approval_id, "user:cyd")
        assert isinstance(await taken_back(remit, call_id), Done)


async def test_a_refusal_of_people_holds_and_leaves_the_way_back(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ASKING) as remit:
        call_id = await bought(remit)
        waits = await asked(remit, call_id)
        await remit.vote(waits.approval_id, vote="reject")
        refused = await taken_back(remit, call_id)
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "approval_rejected"
        assert undo_state(remit, call_id) == "ready"


async def test_an_undo_asked_for_in_time_runs_although_its_time_ends_while_it_waits(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ASKING, tools=VERIFIED) as remit:
        remit.source.on["look"] = {"owner": "shop"}
        asked_for, late = await bought(remit), await bought(remit, {"thing": "cup", "price": 5})
        remit.clock.advance(s=3590)
        waits = await asked(remit, asked_for)
        remit.clock.advance(s=20)
        refused = await taken_back(remit, late)
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "undo_expired"
        await remit.vote(waits.approval_id)
        done = await taken_back(remit, asked_for)
        assert isinstance(done, Done)
        assert done.undone["state"] == "done"
        # The read that proves it serves the undo that people saw.
        assert remit.one("SELECT of_call FROM calls WHERE kind = 'verify'")["of_call"] == waits.call_id


async def test_nobody_is_asked_about_an_undo_that_cannot_be(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ASKING) as remit:
        first = await bought(remit)
        await bought(remit, order="o-2")
        refused = await taken_back(remit, first)
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "undo_conflict"
        assert remit.rows("SELECT * FROM approvals") == []


async def test_a_change_while_people_think_is_a_conflict_when_the_undo_would_run(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ASKING) as remit:
        call_id = await bought(remit)
        waits = await asked(remit, call_id)
        await bought(remit, {"thing": "pen", "price": 4}, order="o-2")
        await remit.vote(waits.approval_id)
        refused = await taken_back(remit, call_id)
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "undo_conflict"
        assert remit.source.effects("give_back") == []


async def test_two_who_ask_for_the_same_undo_take_it_back_once(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ASKING) as remit:
        call_id = await bought(remit)
        by_agent = await asked(remit, call_id)
        by_boss = await asked(remit, call_id, "agent:remit-cli", user="user:cyd", auth="local")
        assert by_agent.approval_id != by_boss.approval_id
        await remit.vote(by_agent.approval_id)
        await remit.vote(by_boss.approval_id)
        assert isinstance(await taken_back(remit, call_id), Done)
        refused = await taken_back(remit, call_id, "agent:remit-cli", user="user:cyd", auth="local")
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "undo_used"


async def test_what_waits_for_people_outlives_the_process(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ASKING) as remit:
        call_id = await bought(remit)
        waits = await asked(remit, call_id)
        remit.die()
    async with a_remit(tmp_path, policy=ASKING, clock=Clock(remit.clock() + 60_000_000)) as remit:
        await remit.vote(waits.approval_id)
        remit.source.on["give_back"] = Gate()
        with anyio.move_on_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(taken_back, remit, call_id)
                await remit.source.reached(1)
                remit.die()
                tasks.cancel_scope.cancel()
    async with a_remit(tmp_path, policy=ASKING, clock=Clock(remit.clock() + 60_000_000)) as remit:
        # It was sent, and nobody knows what became of it: it is not sent again.
        assert undo_state(remit, call_id) == "indeterminate"
        assert remit.state(waits.call_id) == "in_doubt"
        refused = await taken_back(remit, call_id)
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "undo_used"
        assert remit.source.effects("give_back") == []


async def test_calling_off_what_is_held_back_waits_for_people_too(tmp_path: Path) -> None:
    held_back = tools(send={"effect": "deferred", "hold_back": "10m"})
    policy = (
        POLICY
        + "p, role:clerk, acme, shop.send, undo, 1 == 1, allow\n"
        + "p, role:boss, acme, shop.send, approve, 1 == 1, allow\n"
        + "p2, *, acme, shop.send, undo, 1 == 1, approvals=1\n"
    )
    async with a_remit(tmp_path, policy=policy, tools=held_back) as remit:
        called_off, sent = [(await remit.call("shop.send", {"text": text})).call_id for text in "ab"]
        waits, too_late = await asked(remit, called_off), await asked(remit, sent)
        await remit.vote(waits.approval_id)
        assert isinstance(await taken_back(remit, called_off), Done)
        assert (remit.state(called_off), remit.state(waits.call_id)) == ("cancelled", "succeeded")
        # People take their time, and the other call does not wait for them.
        remit.clock.advance(s=601)
        await send_due(remit.on)
        await remit.vote(too_late.approval_id)
        assert isinstance(await taken_back(remit, sent), Refused)
        assert len(remit.source.effects("send")) == 1
