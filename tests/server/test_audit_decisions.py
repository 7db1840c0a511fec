"""What people decided cannot be changed behind their backs: verification finds it, and nothing else.

One record is made in which all of it was decided, and each attack is made on a copy, past all that guards it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.server.builders import Remit, a_remit, by_hand, rows
from tests.server.test_notices import BOSS
from tests.server.test_verifying import changed

from remit.calls_told import INTERRUPTED
from remit.database import Location
from remit.identity import mint_key
from remit.ledger import Ledger
from remit.model import USUAL_REASONS, Pending
from remit.records import open_records
from remit.runs import key_of
from remit.undo import undo
from remit.verifying import verify

#: What events of these kinds did not say at first.
LATER = {
    "approval.approve": ("auth", "expires_us"),
    "approval.reject": ("auth",),
    "key.created": ("digest", "label", "created_us", "expires_us"),
    "shadow.started": ("text_sha256",),
}
A_KEY = (
    "INSERT INTO api_keys (id, tenant, agent, user, digest, label, created_us, expires_us, revoked_us)"
    " SELECT 'aaaaaaaaaaaa', tenant, agent, user, digest, label, created_us, expires_us, NULL FROM api_keys"
    " WHERE revoked_us IS NULL"
)
A_SWITCH = (
    "INSERT INTO switches (kind, scope, target, tenant, reason, set_by, set_us)"
    " VALUES ('kill', 'all', '', '', 'a test', 'user:bea', 1)"
)
A_NOTICE = (
    "INSERT INTO notices (call_id, tool, tenant, agent, user, run, by, at_us, told_us)"
    " SELECT id, tool, tenant, agent, user, run, 'operator', finished_us, NULL FROM calls"
    " WHERE kind = 'call' AND state = 'succeeded' AND id NOT IN (SELECT call_id FROM notices) LIMIT 1"
)
#: The events of the switch that was turned on, off and on, written in another order: off comes last.
REORDERED = (
    "UPDATE events SET rowid = rowid + 1000 WHERE rowid ="
    " (SELECT rowid FROM events WHERE kind = 'switch.off' AND body LIKE '%shop.buy%')"
)
KILL, SAFE = "switch kill tool shop.buy", "switch safe all"


async def asked(remit: Remit, thing: str) -> str:
    waiting = await remit.call("shop.buy", {"thing": thing, "price": 900})
    assert isinstance(waiting, Pending)
    return waiting.approval_id


async def add_key(remit: Remit, label: str) -> str:
    who: Any = {"tenant": "acme", "agent": "agent:bot", "user": "user:ann"}
    key, _ = mint_key(**who, label=label, pepper=b"p" * 32, at_us=remit.clock(), lifetime_s=86_400)
    await remit.on.journal.add_key(key, by="local")
    return key.id


async def decide(folder: Path) -> Location:
    """Every decision that people can take, each with every ending."""
    async with a_remit(folder) as remit:
        journal = remit.on.journal
        remit.source.on["buy"] = {"order": "o-1"}
        bought = await remit.done("shop.buy", {"thing": "pen", "price": 5})
        await undo(bought.call_id, BOSS, "cli-1", remit.on)
        await journal.tell(key_of(remit.a_call("shop.look", {"thing": "pen"})))
        await asked(remit, "of nobody's answer")
        remit.clock.advance(s=30 * 86_400)
        await journal.expire()
        await remit.vote(await asked(remit, "car"))
        await remit.done("shop.buy", {"thing": "car", "price": 900})
        await remit.vote(await asked(remit, "boat"))
        await remit.vote(await asked(remit, "plane"), vote="reject")
        await journal.withdraw(await asked(remit, "train"), tenant="acme", agent="agent:bot", user="user:ann")
        await asked(remit, "bus")
        await remit.switch("safe", "all")
        await remit.switch("safe", "all", on=False)
        for on in (True, False, True):
            await remit.switch("kill", "tool", "shop.buy", on=on)
        await journal.revoke_key(await add_key(remit, "revoked"), by="local")
        await add_key(remit, "living")
        for version in ("1" * 64, "2" * 64):
            await journal.start_shadow(version=version, text="{}", by="user:bea")
        await journal.stop_shadow(by="user:bea")
    return remit.path


def found(at: Location) -> list[str]:
    with open_records(at) as records:
        return [str(finding) for finding in verify(records, payloads=True)]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = anyio.run(decide, tmp_path_factory.mktemp("record"))
    assert isinstance(at, Path)
    return at


@pytest.mark.usefixtures("every_database")
async def test_decisions_are_sound_until_a_switch_is_taken_away_by_hand(tmp_path: Path) -> None:
    at = await decide(tmp_path)
    states = {row["state"] for row in rows(at, "SELECT state FROM approvals")}
    assert states == {"pending", "approved", "used", "rejected", "expired", "withdrawn"}
    assert found(at) == []
    by_hand(at, "DELETE FROM switches")
    assert found(at) == [f"{KILL}: it is off, and no event says who turned it off"]


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        (A_SWITCH, "switch kill all: no event says that it is on"),
        (A_SWITCH.replace("kill", "safe"), f"{SAFE}: no event says that it is on"),
        ("UPDATE switches SET reason = 'none'", f"{KILL}: why, by whom or since when"),
        ("UPDATE switches SET target = 'shop.x'", f"{KILL}: it is off, and no event says"),
        (A_KEY, "API key aaaaaaaaaaaa: no event says who made it"),
        ("UPDATE api_keys SET revoked_us = NULL", "it was revoked, and does not say so"),
        ("UPDATE api_keys SET revoked_us = 7", "no event says that it was revoked then"),
        ("UPDATE api_keys SET user = 'user:cyd'", "its user is not what its event says"),
        ("UPDATE api_keys SET digest = '00'", "its digest is not what its event says"),
        ("UPDATE api_keys SET label = 'mine'", "its label is not what its event says"),
        ("DELETE FROM api_keys WHERE revoked_us IS NOT NULL", "it was made, and is gone"),
        ("UPDATE approvals SET state = 'approved' WHERE state = 'used'", "its events say 'used'"),
        ("UPDATE approvals SET state = 'pending' WHERE state = 'rejected'", "its events say 'rejected'"),
        ("UPDATE approvals SET state = 'pending' WHERE state = 'expired'", "its events say 'expired'"),
        ("UPDATE approvals SET state = 'pending' WHERE state = 'withdrawn'", "its events say 'withdrawn'"),
        ("UPDATE approvals SET state = 'approved' WHERE state = 'pending'", "its events say 'pending'"),
        ("UPDATE approvals SET expires_us = 9e15 WHERE state = 'approved'", "expires_us is 9000000000000000"),
        ("UPDATE approvals SET expires_us = 9e15 WHERE state = 'pending'", "expires_us is 9000000000000000"),
        ("UPDATE approvals SET votes_needed = 3 WHERE state = 'used'", "votes_needed is 3"),
        ("UPDATE votes SET at_us = at_us + 1", "its votes are not those that its events tell"),
        ("UPDATE votes SET auth = 'jwt'", "its votes are not those that its events tell"),
        ("UPDATE shadows SET stopped_us = NULL", "its end is not what the events say"),
        ("UPDATE shadows SET text = '{} '", "its text is not the one that was put on trial"),
        ("UPDATE shadows SET version = substr(version, 2) || 'x'", "no event says that it began so"),
        ("DELETE FROM shadows", "it has an event, and no row"),
        ("UPDATE notices SET told_us = NULL", "whether and when its run was told"),
        ("UPDATE notices SET run = 'run-2'", "whose call it is, or of which tool, is not what its event"),
        ("DELETE FROM notices", "its run was told, and it is gone"),
        (A_NOTICE, "its call was neither taken back nor called off"),
        (
            "INSERT INTO votes SELECT 'no request', user, vote, auth, at_us, comment FROM votes LIMIT 1",
            "approval no request: it has votes, and no request",
        ),
    ],
)
def test_what_people_decided_and_somebody_changed_is_named(
    record: Path, tmp_path: Path, statement: str, named: str
) -> None:
    assert any(named in each for each in found(changed(record, tmp_path / "copy.db", statement)))


def test_a_switch_taken_away_is_found_however_its_events_are_put_in_order(
    record: Path, tmp_path: Path
) -> None:
    copy = changed(record, tmp_path / "copy.db", "DELETE FROM switches", REORDERED)
    disordered, off = found(copy)
    assert disordered.endswith("it does not follow the event before it")
    assert off == f"{KILL}: it is off, and no event says who turned it off"


def test_a_trial_that_ended_does_not_go_on_because_its_events_change_places(
    record: Path, tmp_path: Path
) -> None:
    copy = changed(
        record,
        tmp_path / "copy.db",
        "UPDATE events SET rowid = rowid + 1000 WHERE kind = 'shadow.started'",
        "UPDATE shadows SET stopped_us = NULL",
    )
    assert any("it does not follow the event before it" in each for each in found(copy))


async def test_a_switch_that_is_turned_on_again_does_not_hide_that_it_was_taken_away(tmp_path: Path) -> None:
    at = await decide(tmp_path)
    by_hand(at, "DELETE FROM switches")
    async with a_remit(tmp_path) as remit:
        assert await remit.switch("kill", "tool", "shop.buy")
    assert found(at) == [f"{KILL}: it was off meanwhile, and no event says by whom"]


async def test_a_switch_put_in_by_hand_is_still_told_when_a_person_has_turned_it_off(tmp_path: Path) -> None:
    at = await decide(tmp_path)
    by_hand(at, A_SWITCH)
    async with a_remit(tmp_path) as remit:
        assert await remit.switch("kill", "all", on=False)
    assert found(at) == ["switch kill all: it was on, and no event says who turned it on"]


async def test_events_from_before_they_said_all_of_it_are_held_against_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Ledger.event

    def event(self: Ledger, kind: str, **facts: Any) -> None:
        written(self, kind, **{name: facts[name] for name in facts if name not in LATER.get(kind, ())})

    monkeypatch.setattr(Ledger, "event", event)
    at = await decide(tmp_path)
    assert "text_sha256" not in str(rows(at, "SELECT body FROM events WHERE kind = 'shadow.started'"))
    assert found(at) == []
    by_hand(at, "UPDATE api_keys SET user = 'user:cyd', digest = '00'")
    assert {each.partition(": ")[2] for each in found(at)} == {"its user is not what its event says"}


def test_words_of_which_no_event_has_a_digest_stay_as_they_are() -> None:
    """Whoever rewords one has verification suspect every call that was recorded with it before."""
    assert USUAL_REASONS == {
        "allowed": "Allowed by policy.",
        "own_read": "A read that the gateway makes for its own plan.",
    }
    assert INTERRUPTED == "The gateway stopped while this call was under way."
