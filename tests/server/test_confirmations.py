"""The user's own word for exactly this call: how it is asked for, and what it is good for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp_types import ElicitRequestFormParams, ElicitResult
from tests.server.builders import Remit, ScriptedSource, a_principal, a_remit
from tests.server.fronts import ERAS, served, texts
from tests.server.test_facts import PEN, ROLES, rule

from remit import confirmations
from remit.confirmations import KEY, AskingUser
from remit.model import Done, Outcome, Pending, Refused, Unconfirmed
from remit.pipeline import govern

CONFIRMED = ROLES + rule("1 == 1") + "p2, role:clerk, acme, shop.buy, *, 1 == 1, confirm\n"
AGAIN = AskingUser(again=True)
YES: dict[str, Any] = {KEY: {"action": "accept", "content": {}}}


async def sent(
    remit: Remit,
    arguments: dict[str, Any] = PEN,
    *,
    state: str | None = None,
    answers: Any = None,
    asking: AskingUser = AGAIN,
    **more: Any,
) -> Outcome:
    """The call as the front makes it of what a client sends."""
    resumed = confirmations.resumed(state, answers, remit.on.secret)
    call = remit.a_call(
        "shop.buy",
        arguments,
        confirmation=resumed.confirmation,
        input_responses=resumed.input_responses,
        request_state=resumed.request_state,
        **more,
    )
    return await govern(call, remit.on, asking=asking)


async def asked(remit: Remit, **more: Any) -> Unconfirmed:
    outcome = await sent(remit, **more)
    assert isinstance(outcome, Unconfirmed), outcome
    return outcome


async def test_the_user_is_shown_the_call_and_it_is_made_when_they_say_yes(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=CONFIRMED) as remit:
        question = await asked(remit)
        assert "shop.buy" in question.question["message"]
        assert '"price": 5' in question.question["message"]
        assert remit.source.sent == []
        assert remit.record(question.call_id)["code"] == "unconfirmed"
        done = await sent(remit, state=question.state, answers=YES)
        assert isinstance(done, Done)
        assert remit.record(done.call_id)["confirmation"] is not None
        assert remit.source.sent[0].input_responses is None
        assert remit.source.sent[0].request_state is None


async def test_nobody_is_asked_about_a_call_that_was_made_under_the_same_key(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=CONFIRMED) as remit:
        question = await asked(remit, client_key="k")
        first = await sent(remit, state=question.state, answers=YES, client_key="k")
        again = await sent(remit, client_key="k")
        assert isinstance(again, Done)
        assert (again.call_id, again.repeated) == (first.call_id, True)
        assert isinstance(await sent(remit, client_key="other"), Unconfirmed)


async def test_it_is_good_for_one_call(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=CONFIRMED) as remit:
        question = await asked(remit)
        at_once = await remit.together(*(sent(remit, state=question.state, answers=YES) for _ in range(4)))
        assert sum(isinstance(outcome, Done) for outcome in at_once) == 1
        codes = {outcome.verdict.code for outcome in at_once if isinstance(outcome, Refused)}
        assert codes == {"confirmation_spent"}
        assert len(remit.source.effects("buy")) == 1


@pytest.mark.parametrize("answer", [{"action": "decline"}, {"action": "cancel"}, {"action": "Accept"}, {}])
async def test_whoever_does_not_say_yes_has_not_confirmed(tmp_path: Path, answer: dict[str, Any]) -> None:
    async with a_remit(tmp_path, policy=CONFIRMED) as remit:
        question = await asked(remit)
        refused = await sent(remit, state=question.state, answers={KEY: answer})
        assert isinstance(refused, Refused)
        assert refused.verdict.code == "not_confirmed"
        assert remit.source.sent == []


async def test_it_is_good_for_nothing_else(tmp_path: Path) -> None:
    policy = CONFIRMED + "g, agent:cat, role:clerk, acme\ng3, agent:cat, user:ann, acme\n"
    async with a_remit(tmp_path, policy=policy) as remit:
        question = await asked(remit)
        await asked(remit, arguments={"thing": "pen", "price": 6}, state=question.state, answers=YES)
        await asked(remit, state=question.state, answers=YES, principal=a_principal("agent:cat"))
        await asked(remit, answers=YES)
        await asked(remit, state=question.state)
        remit.clock.advance(s=901)
        await asked(remit, state=question.state, answers=YES)
        assert remit.source.sent == []


async def test_nobody_else_can_seal_one(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=CONFIRMED) as remit:
        call = remit.a_call("shop.buy", PEN)
        forged = confirmations.sealed(call, b"x" * 32, at_us=remit.clock.now_us, good_for_s=900)
        await asked(remit, state=forged, answers=YES)
        assert remit.source.sent == []


@given(state=st.text(max_size=80) | st.binary(max_size=60).map(lambda raw: f"remit1.{raw.hex()}"))
def test_what_was_not_sealed_here_confirms_nothing(state: str) -> None:
    assert confirmations.resumed(state, YES, b"s" * 32).confirmation is None


async def test_a_source_s_own_question_goes_on_behind_ours(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=CONFIRMED) as remit:
        question = await asked(remit, state="the source's", answers={"colour": {"action": "accept"}})
        done = await sent(remit, state=question.state, answers=YES)
        assert isinstance(done, Done)
        (request,) = remit.source.sent
        assert (request.request_state, request.input_responses) == (
            "the source's",
            {"colour": {"action": "accept"}},
        )


async def test_a_client_that_cannot_ask_is_refused(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=CONFIRMED) as remit:
        outcome = await sent(remit, asking=AskingUser())
        assert isinstance(outcome, Refused)
        assert outcome.verdict.code == "cannot_confirm"


async def test_what_is_too_long_to_be_read_cannot_be_confirmed(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=CONFIRMED) as remit:
        outcome = await sent(remit, {"thing": "x" * 10_000, "price": 5})
        assert isinstance(outcome, Refused)
        assert outcome.verdict.code == "cannot_confirm"


async def test_what_the_user_reads_hides_nothing(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=CONFIRMED) as remit:
        question = await asked(remit, arguments={"thing": "pen\u202e\x1b[2J\u200b", "price": 5})
        assert "\u202e" not in question.question["message"]
        assert "\\u202e" in question.question["message"]


SAID = [("accept", None), ("decline", "not_confirmed"), ("", "not_confirmed")]


@pytest.mark.parametrize(("action", "code"), SAID)
async def test_on_a_session_the_user_is_asked_while_the_call_waits(
    tmp_path: Path, action: str, code: str | None
) -> None:
    questions: list[Any] = []

    async def now(params: Any) -> Any:
        questions.append(params)
        return {"action": action}

    async with a_remit(tmp_path, policy=CONFIRMED) as remit:
        outcome = await sent(remit, asking=AskingUser(now=now))
        assert len(questions) == 1
        assert isinstance(outcome, Refused) is bool(code)
        if isinstance(outcome, Refused):
            assert outcome.verdict.code == code


async def test_what_changed_while_the_user_thought_counts(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=CONFIRMED) as remit:

        async def now(params: Any) -> Any:
            remit.use_policy(CONFIRMED + rule("r.ctx.confirmed", effect="deny"))
            return {"action": "accept"}

        outcome = await sent(remit, asking=AskingUser(now=now))
        assert isinstance(outcome, Refused)
        assert outcome.verdict.code == "denied_by_rule"
        assert remit.source.sent == []


async def test_it_never_counts_as_an_approval(tmp_path: Path) -> None:
    policy = CONFIRMED.replace("execute, 1 == 1, allow", "recommend, 1 == 1, allow")
    async with a_remit(tmp_path, policy=policy) as remit:
        pending = await sent(remit)
        assert isinstance(pending, Pending)
        await remit.vote(pending.approval_id)
        question = await asked(remit)
        done = await sent(remit, state=question.state, answers=YES)
        assert isinstance(done, Done)
        assert done.call_id == pending.call_id
        assert remit.record(done.call_id)["confirmation"] is not None


async def test_where_no_duty_asks_nothing_is_spent(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=CONFIRMED) as remit:
        question = await asked(remit)
        remit.use_policy(ROLES + rule("1 == 1"))
        done = await sent(remit, state=question.state, answers=YES)
        assert isinstance(done, Done)
        assert remit.record(done.call_id)["confirmation"] is None


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("action", ["accept", "decline", "cancel"])
async def test_real_clients_ask_their_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str, action: Any
) -> None:
    questions: list[str] = []

    async def ask(_: Any, params: Any) -> ElicitResult:
        assert isinstance(params, ElicitRequestFormParams)
        questions.append(params.message)
        return ElicitResult(action=action)

    shop = ScriptedSource()
    async with (
        served(tmp_path, monkeypatch, shop, policy=CONFIRMED) as remit,
        remit.client(era, elicitation_callback=ask) as client,
    ):
        result = await client.call_tool("shop.buy", PEN)
        assert len(questions) == 1
        assert '"thing": "pen"' in questions[0]
        assert len(shop.effects("buy")) == (action == "accept")
        assert ("did not" in texts(result)) is (action != "accept")
        assert len(remit.rows("SELECT 1 FROM calls WHERE confirmation IS NOT NULL")) == (action == "accept")


@pytest.mark.parametrize("era", ERAS)
async def test_a_real_client_without_forms_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    async with (
        served(tmp_path, monkeypatch, policy=CONFIRMED) as remit,
        remit.client(era) as client,
    ):
        assert "this client cannot ask them" in texts(await client.call_tool("shop.buy", PEN))
