"""A policy on trial: what live calls tell about it, in the process that serves and in others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.server.acme import REPOSITORY, Terminal, a_place, made, refund_of, serving
from tests.server.builders import POLICY, a_remit

from remit import shadow as shadow_module
from remit.confirmations import AskingUser
from remit.model import Done, Pending
from remit.pipeline import govern
from remit.records import ShadowRecord, open_records


@pytest.fixture
def acme(tmp_path: Path) -> Terminal:
    return Terminal(a_place(tmp_path))


def a_candidate(acme: Terminal) -> str:
    """Acme's policy, which lets small refunds alone only up to 50.00."""
    text = (REPOSITORY / "configs/acme/policy.csv").read_text()
    path = acme.folder / "candidate.csv"
    path.write_text(text.replace("amount_minor <= 10000,", "amount_minor <= 5000,"))
    return str(path)


async def ran(acme: Terminal, *words: str) -> Any:
    return await anyio.to_thread.run_sync(lambda: acme("policy", "shadow", *words))


async def until(condition: Any) -> None:
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - another thread brings it about
            await anyio.sleep(0.01)


def recorded(acme: Terminal) -> ShadowRecord:
    with open_records(acme.folder / "remit.db") as found:
        trial = found.shadow()
    assert trial
    return trial


async def test_live_calls_are_decided_under_both_and_differences_are_grouped(acme: Terminal) -> None:
    async with serving(acme.config) as on:
        assert on.shadow is None
        assert (await ran(acme, "start", a_candidate(acme))).code == 0
        await until(lambda: on.shadow)
        for amount in (8000, 6000, 4000):
            outcome = await made(on, "acme.refund", refund_of("ord-1001", amount))
            assert isinstance(outcome, Done), "the trial decides nothing"
        await until(lambda: recorded(acme).decided == 3)
        told = await ran(acme, "report", "--json")
        assert (await ran(acme, "stop")).code == 0
        await until(lambda: on.shadow is None)
        await made(on, "acme.refund", refund_of("ord-1001", 7000))
    (group,) = told.json["groups"]
    assert (told.code, told.json["decided"], told.json["changed"], told.json["dropped"]) == (1, 3, 2, 0)
    assert (group["before"], group["after"], group["count"]) == ("execute", "approve", 2)
    assert any("amount_minor <= 10000" in rule for rule in group["rules"])
    assert len(group["calls"]) == 2
    after = acme("policy", "shadow", "report").out
    assert "2 x execute -> approve" in after
    assert "3 calls decided under both, 2 would be decided otherwise." in after


async def test_what_waits_when_the_server_ends_is_still_counted(
    acme: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(acme.config) as on:
        await ran(acme, "start", a_candidate(acme))
        await until(lambda: on.shadow)
        await made(on, "acme.refund", refund_of("ord-1001", 8000))
    assert recorded(acme).decided == 1


async def test_calls_that_come_too_fast_are_dropped_and_counted(
    acme: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow_module, "_WAITING_MAX", 0)
    async with serving(acme.config) as on:
        await ran(acme, "start", a_candidate(acme))
        await until(lambda: on.shadow)
        await made(on, "acme.refund", refund_of("ord-1001", 8000))
    assert (recorded(acme).decided, recorded(acme).dropped) == (0, 1)
    assert "1 came too fast and were not compared." in acme("policy", "shadow", "report").out


async def test_a_new_trial_takes_the_place_of_the_old_one(acme: Terminal) -> None:
    async with serving(acme.config) as on:
        await ran(acme, "start", a_candidate(acme))
        await until(lambda: on.shadow)
        await made(on, "acme.refund", refund_of("ord-1001", 8000))
        await until(lambda: recorded(acme).decided == 1)
        await ran(acme, "start", str(acme.folder / "policy.csv"))
        assert recorded(acme).decided == 0
    assert acme("policy", "shadow", "report", "--json").json["groups"] == []


def test_nothing_on_trial_is_told(acme: Terminal) -> None:
    async def begin() -> None:
        async with serving(acme.config):
            pass

    anyio.run(begin)
    assert "No policy is on trial: " in acme("policy", "shadow", "report").out
    assert acme("policy", "shadow", "stop").code == 1
    assert json.loads(acme("policy", "shadow", "report", "--json").out) is None


def test_a_candidate_with_mistakes_is_refused_at_once(acme: Terminal) -> None:
    bad = acme.folder / "bad.csv"
    bad.write_text("p, nonsense\n")
    assert "error" in acme("policy", "shadow", "start", str(bad)).err
    assert "no such file" in acme("policy", "shadow", "start", str(acme.folder / "no.csv")).err


async def test_a_call_is_counted_once_however_often_it_is_decided(tmp_path: Path) -> None:
    asks = {"scope": "agent", "unit": "calls", "window": "total", "limit": 0, "on_exceed": "approve"}
    taken: list[str] = []
    policy = POLICY + "p2, role:clerk, acme, shop.send, execute, 1 == 1, confirm\n"

    async def yes(question: Any) -> Any:
        return {"action": "accept"}

    async with a_remit(tmp_path, policy=policy, budgets=[asks]) as remit:
        remit.on.shadow = lambda call, context, policy: taken.append(call.id)
        assert isinstance(await remit.call("shop.buy", {"thing": "pen", "price": 5}), Pending)
        assert len(taken) == 1
        call = remit.a_call("shop.send", {"text": "hi"})
        await govern(call, remit.on, asking=AskingUser(now=yes))
        assert taken[1:] == [call.id]
