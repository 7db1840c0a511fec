"""People decide: what they are asked, what their answer is good for, and for how long."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.server.builders import POLICY, Remit, a_principal, a_remit, tools

from remit.approvals import NotAllowed
from remit.audit import Followed, verify_calls
from remit.audit_decisions import verify_approvals, verify_notices
from remit.audit_keeping import verify_runs
from remit.errors import UnknownRecord, WrongState
from remit.model import Done, InDoubt, Pending, Refused
from remit.records import open_records
from remit.undo import undo
from remit_adapters.base import AdapterError, Caller, Reply, Request

#: Each test runs on SQLite, and on PostgreSQL.
pytestmark = pytest.mark.usefixtures("every_database")
CAR = {"thing": "car", "price": 500}
BUDGET = {"scope": "agent", "unit": "calls", "window": "total", "limit": 10}
TWO_VOTES = POLICY + "p2, role:clerk, acme, shop.buy, recommend, 1 == 1, approvals=2\n"


async def asked(remit: Remit, arguments: dict[str, Any] = CAR, **more: Any) -> Pending:
    outcome = await remit.call("shop.buy", arguments, **more)
    assert isinstance(outcome, Pending), outcome
    return outcome


async def test_a_call_above_its_rung_waits_and_holds_nothing(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[BUDGET]) as remit:
        pending = await asked(remit)
        assert remit.state(pending.call_id) == "awaiting_approval"
        assert remit.source.sent == []
        assert remit.rows("SELECT * FROM holds") == []
        assert pending.expires_us - remit.clock.now_us <= 900_000_000


async def test_the_same_call_again_joins_the_open_request(tmp_path: Path) -> None:
    async with a_remit(tmp_path, limits={"per_agent": 100}) as remit:
        first, again = await asked(remit), await asked(remit)
        assert (first.approval_id, first.call_id) == (again.approval_id, again.call_id)
        at_once = await remit.together(*(remit.call("shop.buy", CAR) for _ in range(20)))
        assert {outcome.approval_id for outcome in at_once} == {first.approval_id}


async def test_the_same_call_at_the_same_time_is_one_request(tmp_path: Path) -> None:
    async with a_remit(tmp_path, limits={"per_agent": 100}) as remit:
        outcomes = await remit.together(*(remit.call("shop.buy", CAR) for _ in range(20)))
        assert len({outcome.approval_id for outcome in outcomes}) == 1
        assert remit.one("SELECT COUNT(*) AS n FROM approvals") == {"n": 1}


async def test_an_approved_call_is_made_once_when_it_is_sent_again(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[BUDGET]) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        pending = await asked(remit)
        assert await remit.vote(pending.approval_id) == "approved"
        assert remit.source.sent == []
        outcome = await remit.done("shop.buy", CAR)
        assert outcome.call_id == pending.call_id
        assert outcome.undo is not None
        assert remit.source.sent[0].arguments == CAR
        assert remit.events(outcome.call_id) == [
            "call.awaiting_approval",
            "approval.approve",
            "call.dispatched",
            "call.succeeded",
        ]
        assert remit.one("SELECT state FROM approvals") == {"state": "used"}
        assert remit.one("SELECT posted FROM accounts") == {"posted": 1}
        again = await asked(remit)
        assert again.approval_id != pending.approval_id
        assert len(remit.source.sent) == 1


@pytest.mark.parametrize("same_transaction", [True, False])
async def test_an_approval_replayed_fifty_times_at_once_executes_once(
    tmp_path: Path, same_transaction: bool
) -> None:
    async with a_remit(tmp_path, limits={"per_agent": 100}) as remit:
        pending = await asked(remit)
        await remit.vote(pending.approval_id)
        making = [remit.call("shop.buy", CAR) for _ in range(50)]
        outcomes = await (remit.together(*making) if same_transaction else asyncio.gather(*making))
        assert len(remit.source.sent) == 1
        kinds = Counter(type(outcome) for outcome in outcomes)
        assert kinds[Done] == 1
        assert kinds[Done] + kinds[Refused] + kinds[Pending] == 50
        codes = {outcome.verdict.code for outcome in outcomes if isinstance(outcome, Refused)}
        assert codes <= {"approval_spent"}
        assert len({outcome.approval_id for outcome in outcomes if isinstance(outcome, Pending)}) <= 1


@pytest.mark.parametrize(
    "changed",
    [
        {"thing": "car", "price": 501},
        {"thing": "Car", "price": 500},
        {"thing": "сar", "price": 500},  # noqa: RUF001 - the first letter is Cyrillic
        {"thing": "car ", "price": 500},
    ],
)
async def test_an_approval_is_for_exactly_what_was_shown(tmp_path: Path, changed: dict[str, Any]) -> None:
    async with a_remit(tmp_path) as remit:
        pending = await asked(remit)
        await remit.vote(pending.approval_id)
        assert (await asked(remit, changed)).approval_id != pending.approval_id
        assert remit.source.sent == []
        await remit.done("shop.buy", CAR)
        assert len(remit.source.sent) == 1


async def test_the_order_of_arguments_does_not_make_another_call(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        pending = await asked(remit)
        await remit.vote(pending.approval_id)
        assert (await remit.done("shop.buy", dict(reversed(CAR.items())))).call_id == pending.call_id


async def test_an_approval_is_for_one_agent_and_one_policy(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        pending = await asked(remit)
        await remit.vote(pending.approval_id)
        other = await asked(remit, principal=a_principal("agent:other"))
        assert other.approval_id != pending.approval_id
        remit.use_policy(POLICY + "# another version\ng, user:dan, role:boss, acme\n")
        assert (await asked(remit)).approval_id != pending.approval_id


async def test_what_the_agent_says_about_its_call_does_not_make_it_another(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        pending = await asked(remit, claim={"why": "one"})
        again = await asked(remit, claim={"why": "two"})
        assert again.approval_id == pending.approval_id
        shown = remit.carried(pending.call_id, "shown")
        assert shown["claim"] == {"why": "one"}
        assert shown["arguments"] == CAR
        assert shown["cost"] == {"calls": 1}


async def test_what_people_refused_is_not_put_to_them_again_for_ten_minutes(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        pending = await asked(remit)
        assert await remit.vote(pending.approval_id, vote="reject") == "rejected"
        assert remit.state(pending.call_id) == "rejected"
        remit.clock.advance(s=590)
        assert (await remit.refused("shop.buy", CAR)).verdict.code == "approval_rejected"
        remit.clock.advance(s=11)
        assert (await asked(remit)).approval_id != pending.approval_id


async def test_silence_is_refusal(tmp_path: Path) -> None:
    async with a_remit(tmp_path, approvals={"pending": "60s"}) as remit:
        pending = await asked(remit)
        remit.clock.advance(s=61)
        with pytest.raises(WrongState, match="expired"):
            await remit.vote(pending.approval_id)
        assert await remit.on.journal.expire() == 1
        assert remit.state(pending.call_id) == "expired"
        assert (await asked(remit)).approval_id != pending.approval_id


async def test_a_request_that_expired_unnoticed_does_not_stop_a_new_one(tmp_path: Path) -> None:
    async with a_remit(tmp_path, approvals={"pending": "60s"}) as remit:
        pending = await asked(remit, client_key="k")
        remit.clock.advance(s=61)
        assert (await asked(remit, client_key="k")).approval_id != pending.approval_id


async def test_an_approval_that_lies_unused_runs_out(tmp_path: Path) -> None:
    async with a_remit(tmp_path, approvals={"use_within": "30s"}) as remit:
        pending = await asked(remit)
        await remit.vote(pending.approval_id)
        remit.clock.advance(s=31)
        assert (await asked(remit)).approval_id != pending.approval_id
        assert await remit.on.journal.expire() == 1
        assert remit.state(pending.call_id) == "expired"
        assert remit.source.sent == []


async def test_an_approval_that_runs_out_between_finding_and_using_it_is_spent(tmp_path: Path) -> None:
    buy = {"effect": "restorable", "before": {"call": "shop.look", "args": {"thing": "args.thing"}}}
    async with a_remit(tmp_path, tools=tools(buy=buy), approvals={"use_within": "30s"}) as remit:
        pending = await asked(remit)
        await remit.vote(pending.approval_id)

        async def dawdle(request: Request, caller: Caller) -> Reply:
            remit.clock.advance(s=31)
            return Reply(body={})

        remit.source.on["look"] = dawdle
        assert (await remit.refused("shop.buy", CAR)).verdict.code == "approval_spent"
        assert remit.source.effects("buy") == []


async def test_who_lost_the_role_has_not_approved(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        pending = await asked(remit)
        await remit.vote(pending.approval_id, "user:bea")
        remit.use_policy(POLICY.replace("g, user:bea, role:boss, acme\n", ""))
        # Another policy is another request.
        assert (await asked(remit)).approval_id != pending.approval_id
        with pytest.raises(NotAllowed):
            await remit.vote(pending.approval_id, "user:bea")
        assert remit.source.sent == []


async def test_who_asked_cannot_approve_whatever_their_role(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=POLICY + "g, user:ann, role:boss, acme\n") as remit:
        pending = await asked(remit)
        with pytest.raises(NotAllowed, match="somebody else"):
            await remit.vote(pending.approval_id, "user:ann")
        for stranger in ("user:dan", "agent:bot", "bea", ""):
            with pytest.raises(NotAllowed):
                await remit.vote(pending.approval_id, stranger)
        assert remit.rows("SELECT * FROM votes") == []


@pytest.mark.parametrize(
    "policy",
    [
        POLICY.replace("p, role:boss", "p, role:nobody"),
        POLICY.replace("role:boss, acme\n", "role:nobody, acme\n") + "g, user:ann, role:boss, acme\n",
        POLICY
        + "p2, role:clerk, acme, shop.buy, recommend, 1 == 1, approvals=3\n"
        + "p, user:dan, acme, shop.buy, approve, r.args.price == 0, allow\n",
        TWO_VOTES.replace("g, user:cyd, role:boss, acme\n", "g, user:ann, role:boss, acme\n"),
    ],
    ids=["no role", "only who asks", "too few", "too few but for who asks"],
)
async def test_a_call_that_nobody_could_approve_is_refused_at_once(tmp_path: Path, policy: str) -> None:
    async with a_remit(tmp_path, policy=policy) as remit:
        assert (await remit.refused("shop.buy", CAR)).verdict.code == "no_approver"
        assert remit.rows("SELECT * FROM approvals") == []


async def test_two_votes_are_two_people(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=TWO_VOTES) as remit:
        pending = await asked(remit)
        assert await remit.vote(pending.approval_id, "user:bea") == "pending"
        with pytest.raises(WrongState, match="has voted"):
            await remit.vote(pending.approval_id, "user:bea")
        assert (await asked(remit)).approval_id == pending.approval_id
        assert await remit.vote(pending.approval_id, "user:cyd") == "approved"
        await remit.done("shop.buy", CAR)


async def test_two_votes_of_one_person_at_the_same_time_are_one(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=TWO_VOTES) as remit:
        pending = await asked(remit)
        votes = [
            asyncio.ensure_future(vote)
            for vote in (
                remit.vote(pending.approval_id, "user:bea"),
                remit.vote(pending.approval_id, "user:bea"),
            )
        ]
        results = await remit.together(asyncio.gather(*votes, return_exceptions=True))
        assert Counter(type(result) for result in results[0]) == {str: 1, WrongState: 1}
        assert remit.one("SELECT state FROM approvals") == {"state": "pending"}


async def test_one_refusal_outweighs_every_vote(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=TWO_VOTES) as remit:
        pending = await asked(remit)
        await remit.vote(pending.approval_id, "user:bea")
        assert await remit.vote(pending.approval_id, "user:cyd", "reject") == "rejected"
        assert (await remit.refused("shop.buy", CAR)).verdict.code == "approval_rejected"


async def test_what_a_comment_says_is_what_its_event_says(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        pending = await asked(remit)
        said = {"user": "user:bea", "comment": "seen\0it", "use_within_s": 60}
        await remit.on.journal.vote(pending.approval_id, vote="approve", **said)
        with open_records(remit.path) as records:
            assert list(verify_approvals(records)) == []


async def test_a_decided_request_takes_no_more_votes(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        pending = await asked(remit)
        await remit.vote(pending.approval_id)
        with pytest.raises(WrongState):
            await remit.vote(pending.approval_id, "user:cyd", "reject")
        with pytest.raises(UnknownRecord):
            await remit.on.journal.vote(
                "nothing", user="user:bea", vote="approve", comment="", use_within_s=1
            )


async def test_the_agent_can_take_its_own_request_back_and_no_other(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        pending = await asked(remit)
        for other in (
            a_principal("agent:other"),
            a_principal(tenant="other"),
            a_principal(user="user:cyd"),
        ):
            with pytest.raises(UnknownRecord):
                await remit.on.journal.withdraw(pending.approval_id, other)
        await remit.on.journal.withdraw(pending.approval_id, a_principal())
        assert remit.state(pending.call_id) == "withdrawn"
        with pytest.raises(UnknownRecord):
            await remit.on.journal.withdraw(pending.approval_id, a_principal())
        assert (await asked(remit)).approval_id != pending.approval_id


async def test_an_approved_call_belongs_to_the_run_that_makes_it(tmp_path: Path) -> None:
    once = POLICY + "p, role:clerk, acme, shop.buy, recommend, r.ctx.run.tool_calls > 0, deny\n"
    establishing = tools(buy={"establishes": {"order": "result.order"}})
    async with a_remit(tmp_path, policy=once, tools=establishing) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        pending = await asked(remit, run="run-1")
        await remit.vote(pending.approval_id)
        assert (await remit.done("shop.buy", CAR, run="run-2")).call_id == pending.call_id
        assert remit.record(pending.call_id)["run"] == "run-2"
        await undo(pending.call_id, a_principal(user="user:bea", auth="local"), "apart", remit.on)
        (told,) = await remit.on.journal.tell(("acme", "agent:bot", "user:ann", "run-2"))
        assert told.call_id == pending.call_id
        with open_records(remit.path) as records:
            followed = Followed()
            assert list(verify_calls(records, followed=followed)) == []
            assert list(verify_runs(records, followed)) == list(verify_notices(records)) == []
    async with a_remit(tmp_path, policy=once, tools=establishing) as remit:
        assert (await remit.refused("shop.buy", CAR, run="run-2")).verdict.code == "advise_only"
        assert isinstance(await remit.call("shop.buy", CAR, run="run-1"), Pending)


async def test_an_approved_request_can_still_be_withdrawn(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        pending = await asked(remit)
        await remit.vote(pending.approval_id)
        await remit.on.journal.withdraw(pending.approval_id, a_principal())
        assert isinstance(await remit.call("shop.buy", CAR), Pending)
        assert remit.source.sent == []


async def test_an_approved_call_still_needs_its_budget(tmp_path: Path) -> None:
    async with a_remit(tmp_path, budgets=[{**BUDGET, "limit": 1}]) as remit:
        pending = await asked(remit)
        await remit.vote(pending.approval_id)
        await remit.done("shop.look", {"thing": "pen"})
        assert (await remit.refused("shop.buy", CAR)).verdict.code == "budget_exhausted"
        # The approval is not used up by a call that was not let out.
        assert remit.one("SELECT state FROM approvals") == {"state": "approved"}


async def test_a_switch_stops_an_approved_call(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        pending = await asked(remit)
        await remit.vote(pending.approval_id)
        await remit.switch("kill", "tool", "shop.buy")
        assert (await remit.refused("shop.buy", CAR)).verdict.code == "stopped"
        await remit.switch("kill", "tool", "shop.buy", on=False)
        await remit.done("shop.buy", CAR)


async def test_an_approved_call_that_did_nothing_needs_a_new_approval(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        pending = await asked(remit)
        await remit.vote(pending.approval_id)
        remit.source.on["buy"] = AdapterError("It is down.", no_effect=True)
        await remit.call("shop.buy", CAR)
        assert remit.state(pending.call_id) == "failed"
        assert (await asked(remit)).approval_id != pending.approval_id


# Idempotency keys on calls that wait.


async def test_a_key_is_no_key_until_its_call_is_let_out(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        one = await asked(remit, client_key="k")
        other = await asked(remit, {"thing": "boat", "price": 500}, client_key="k")
        for pending in (one, other):
            await remit.vote(pending.approval_id)
        await remit.done("shop.buy", CAR, client_key="k")
        refused = await remit.refused("shop.buy", {"thing": "boat", "price": 500}, client_key="k")
        assert refused.verdict.code == "key_reused"
        assert (await remit.done("shop.buy", CAR, client_key="k")).repeated is True


async def test_a_key_of_a_request_that_came_to_nothing_is_free(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        pending = await asked(remit, client_key="k")
        await remit.on.journal.withdraw(pending.approval_id, a_principal())
        pending = await asked(remit, client_key="k")
        await remit.vote(pending.approval_id)
        await remit.done("shop.buy", CAR, client_key="k")


async def test_people_are_not_asked_about_a_call_that_is_in_doubt(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        pending = await asked(remit)
        await remit.vote(pending.approval_id)
        remit.source.on["buy"] = AdapterError("The line broke.", no_effect=False)
        assert isinstance(await remit.call("shop.buy", CAR), InDoubt)
        assert (await remit.refused("shop.buy", CAR)).verdict.code == "in_doubt"
        assert remit.one("SELECT COUNT(*) AS n FROM approvals") == {"n": 1}


async def test_a_repeated_key_needs_no_second_approval(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        pending = await asked(remit, client_key="k")
        await remit.vote(pending.approval_id)
        first = await remit.done("shop.buy", CAR, client_key="k")
        again = await remit.done("shop.buy", CAR, client_key="k")
        assert (again.call_id, again.repeated) == (first.call_id, True)
        assert remit.one("SELECT COUNT(*) AS n FROM approvals") == {"n": 1}


@pytest.mark.parametrize("vote", [None, "approve", "reject"])
async def test_a_repeated_key_is_answered_whatever_people_say_of_the_same_call_under_another(
    tmp_path: Path, vote: str | None
) -> None:
    async with a_remit(tmp_path) as remit:
        pending = await asked(remit, client_key="k")
        await remit.vote(pending.approval_id)
        first = await remit.done("shop.buy", CAR, client_key="k")
        other = await asked(remit, client_key="another")
        if vote:
            await remit.vote(other.approval_id, vote=vote)
        again = await remit.done("shop.buy", CAR, client_key="k")
        assert (again.call_id, again.repeated) == (first.call_id, True)
        assert len(remit.source.effects("buy")) == 1


async def test_a_repeated_key_is_answered_when_nobody_could_approve_any_more(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        pending = await asked(remit, client_key="k")
        await remit.vote(pending.approval_id)
        first = await remit.done("shop.buy", CAR, client_key="k")
        remit.use_policy("".join(line for line in POLICY.splitlines(True) if "approve" not in line))
        assert (await remit.done("shop.buy", CAR, client_key="k")).call_id == first.call_id
        assert (await remit.refused("shop.buy", CAR, client_key="other")).verdict.code == "no_approver"
