"""How long what calls carried is kept, and what keeps it longer."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.server.builders import (
    Clock,
    Remit,
    a_principal,
    a_remit,
    a_reply,
    kept_anywhere,
    location,
    rows,
    tools,
)
from tests.server.test_erasing import ABOUT, MARK, ROLES, a_place, killed_in, whole

from remit.config import Retention
from remit.database import Location, Postgres
from remit.errors import WrongState
from remit.keeping import sweep
from remit.model import Done, Failed, InDoubt, Pending, Refused, Scheduled
from remit.undo import undo
from remit_adapters.base import AdapterError, Caller, Reply, Request

#: In 2023: everything that happens then is of age.
LONG_AGO = 1_700_000_000_000_000
SHORT = {"retention": {"payloads": "30d"}}


async def an_old_life(folder: Path) -> Remit:
    async with a_remit(folder, policy=ROLES, tools=ABOUT, clock=Clock(LONG_AGO)) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        remit.source.on["look"] = {"value": 7}
        await remit.done("shop.buy", {"thing": MARK, "price": 5}, run="run-1", claim={"goal": MARK})
        await remit.done("shop.set", {"thing": "lamp", "value": 9}, run="run-2")
        return remit


def kept(path: Path) -> list[str]:
    found = rows(path, "SELECT tool, p.kind FROM payloads AS p JOIN calls ON id = call_id ORDER BY 1, 2")
    return [f"{row['tool']} {row['kind']}" for row in found]


def test_what_is_of_age_goes_and_the_proof_stays(tmp_path: Path) -> None:
    path = anyio.run(an_old_life, tmp_path).path
    shell = a_place(tmp_path, audit=SHORT)
    before = kept(path)
    told = shell.json("audit", "retain", "--dry-run")
    assert told == {"images": 1, "payloads": 4}
    assert kept(path) == before
    assert shell.json("audit", "retain") == told
    assert kept(path) == []
    assert MARK.encode() not in whole(path)
    assert shell("audit", "verify").code == 0
    (call,) = rows(path, "SELECT id FROM calls WHERE tool = 'shop.buy'")
    assert "no longer kept" in shell("calls", "show", call["id"]).out
    assert "arguments were of age and are not kept" in shell("policy", "explain", call["id"]).out
    assert shell.json("audit", "retain") == {"images": 0, "payloads": 0}


def test_before_images_go_with_their_way_back_and_nothing_else_does(tmp_path: Path) -> None:
    path = anyio.run(an_old_life, tmp_path).path
    before = kept(path)
    assert a_place(tmp_path).json("audit", "retain") == {"images": 1, "payloads": 0}
    assert set(before) - set(kept(path)) == {"shop.set before", "shop.set after", "shop.set restore"}


def test_what_can_still_be_taken_back_is_kept_whatever_its_age(tmp_path: Path) -> None:
    async def life() -> Path:
        # Its way back is open for a day of a clock that is far ahead.
        async with a_remit(tmp_path, policy=ROLES, tools=ABOUT) as remit:
            remit.source.on["look"] = {"value": 7}
            await remit.done("shop.set", {"thing": "lamp", "value": 9})
            return remit.path

    path = anyio.run(life)
    before = kept(path)
    a_place(tmp_path, audit=SHORT).json("audit", "retain")
    assert kept(path) == before


async def taken_back(remit: Remit, call_id: str) -> Done:
    outcome = await undo(call_id, a_principal(), "run-1", remit.on)
    assert isinstance(outcome, Done), outcome
    return outcome


def payloads_of(path: Location, call_id: str) -> set[str]:
    return {row["kind"] for row in rows(path, "SELECT kind FROM payloads WHERE call_id = ?", call_id)}


SECRET = 4_711_004_711
APPROVERS = "p, role:boss, acme, shop.set, approve, 1 == 1, allow\n"


@pytest.mark.usefixtures("every_database")
@pytest.mark.parametrize("ends", ["undone", "too late"])
async def test_before_images_go_from_the_way_back_and_from_the_undo_when_it_ends(
    tmp_path: Path, ends: str
) -> None:
    """What an undo was made with carries what was there before: it must not outlive its use either."""
    async with a_remit(tmp_path, policy=ROLES, tools=ABOUT) as remit:
        remit.source.on["look"] = {"value": SECRET}
        call_id = (await remit.done("shop.set", {"thing": "lamp", "value": 9})).call_id
        if ends == "undone":
            undo_id = (await taken_back(remit, call_id)).call_id
        else:
            remit.clock.advance(s=86_401)
            refused = await undo(call_id, a_principal(), "run-1", remit.on)
            assert isinstance(refused, Refused)
            undo_id = refused.call_id
        before = remit.record(undo_id)
        assert remit.carried(undo_id, "arguments") == {"thing": "lamp", "value": SECRET}
        removed = await sweep(remit.on.journal, Retention(), now_us=remit.on.clock())
        assert removed["payloads"] == 0
        assert "arguments" in payloads_of(remit.path, call_id)
        assert not payloads_of(remit.path, call_id) & {"before", "after", "undo", "restore"}
        assert not payloads_of(remit.path, undo_id) & {"before", "after", "arguments"}
        # Its record stands, and proves what it was made with to whoever still knows it.
        assert remit.record(undo_id) == before
        assert remit.record(undo_id)["arguments_commit"]
        assert (await sweep(remit.on.journal, Retention(), now_us=remit.on.clock()))["images"] == 0
    shell = a_place(tmp_path)
    if not isinstance(remit.path, Postgres):
        assert "arguments  expired: no longer kept" in shell("calls", "show", undo_id).out
        assert shell("audit", "verify").code == 0
        assert kept_anywhere(tmp_path, str(SECRET).encode()) == []


async def test_what_is_left_of_an_undo_goes_with_its_age(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ROLES, tools=ABOUT) as remit:
        remit.source.on["look"] = {"value": SECRET}
        undo_id = (
            await taken_back(remit, (await remit.done("shop.set", {"thing": "lamp", "value": 9})).call_id)
        ).call_id
        await sweep(remit.on.journal, Retention(), now_us=remit.on.clock())
        assert payloads_of(remit.path, undo_id) == {"result"}
        remit.clock.advance(s=3600)
        aged = Retention.model_validate({"payloads": "1m"})
        await sweep(remit.on.journal, aged, now_us=remit.on.clock())
        assert payloads_of(remit.path, undo_id) == set()


@pytest.mark.usefixtures("every_database")
@pytest.mark.parametrize("words", ["erase --subject user:ann --yes", "retain"])
def test_an_undo_whose_arguments_are_gone_is_cleared_like_any_call(tmp_path: Path, words: str) -> None:
    said = "Erika has no such lamp"

    async def life() -> str:
        async with a_remit(tmp_path, policy=ROLES, tools=ABOUT, clock=Clock(LONG_AGO)) as remit:
            remit.source.on["look"] = {"value": SECRET}
            call_id = (await remit.done("shop.set", {"thing": "lamp", "value": 9})).call_id
            remit.source.on["set"] = AdapterError(said, no_effect=True)
            outcome = await undo(call_id, a_principal(), "run-1", remit.on)
            assert isinstance(outcome, Failed)
            remit.clock.advance(s=86_401)
            await sweep(remit.on.journal, Retention(), now_us=remit.on.clock())
            assert payloads_of(remit.path, outcome.call_id) == set()
            assert remit.record(outcome.call_id)["error"] == said
            return outcome.call_id

    undo_id = anyio.run(life)
    shell = a_place(tmp_path, audit=SHORT)
    assert shell("audit", *words.split()).code == 0
    (row,) = rows(location(tmp_path), "SELECT reason, error FROM calls WHERE id = ?", undo_id)
    assert row == {"reason": "", "error": None}
    assert shell("audit", "verify").code == 0


async def test_before_images_stay_while_their_way_back_is_open_or_waits_for_people(tmp_path: Path) -> None:
    asking = ROLES + "p2, *, acme, shop.set, undo, 1 == 1, approvals=1\n" + APPROVERS
    async with a_remit(tmp_path, policy=asking, tools=ABOUT) as remit:
        remit.source.on["look"] = {"value": SECRET}
        call_id = (await remit.done("shop.set", {"thing": "lamp", "value": 9})).call_id
        images = {"before", "after", "restore"}
        await sweep(remit.on.journal, Retention(), now_us=remit.on.clock())
        assert payloads_of(remit.path, call_id) >= images
        remit.clock.advance(s=86_000)
        waits = await undo(call_id, a_principal(), "run-1", remit.on)
        assert isinstance(waits, Pending)
        remit.clock.advance(s=500)
        await sweep(remit.on.journal, Retention(), now_us=remit.on.clock())
        assert payloads_of(remit.path, call_id) >= images
        await remit.vote(waits.approval_id)
        await taken_back(remit, call_id)
        await sweep(remit.on.journal, Retention(), now_us=remit.on.clock())
        assert not payloads_of(remit.path, call_id) & images
        assert not payloads_of(remit.path, waits.call_id) & {"arguments", "shown", "before", "after"}


async def test_a_way_back_whose_images_are_of_age_is_closed(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ROLES, tools=ABOUT) as remit:
        remit.source.on["look"] = {"value": SECRET}
        call_id = (await remit.done("shop.set", {"thing": "lamp", "value": 9})).call_id
        remit.clock.advance(s=3600)
        aged = Retention.model_validate({"before_images": "1m"})
        assert (await sweep(remit.on.journal, aged, now_us=remit.on.clock()))["images"] == 1
        assert remit.one("SELECT state FROM undos")["state"] == "void"
        with pytest.raises(WrongState):
            await undo(call_id, a_principal(), "run-1", remit.on)


async def test_what_an_earlier_undo_is_compared_with_stays_until_that_is_over(tmp_path: Path) -> None:
    """With versions, what later calls left tells that nobody else wrote in between."""
    versioned = tools(
        set={
            **ABOUT["shop.set"],
            "before": {
                "call": "shop.look",
                "args": {"thing": "args.thing"},
                "select": "{value: value}",
                "etag": "result.version",
            },
        }
    )
    state = {"value": 1, "version": 1}

    async def look(request: Request, caller: Caller) -> Reply:
        return a_reply(dict(state))

    async def set_(request: Request, caller: Caller) -> Reply:
        state.update(value=request.arguments["value"], version=state["version"] + 1)
        return a_reply({"ok": True})

    async with a_remit(tmp_path, policy=ROLES, tools=versioned) as remit:
        remit.source.on.update(look=look, set=set_)
        first, second = [
            (await remit.done("shop.set", {"thing": "lamp", "value": value})).call_id for value in (2, 3)
        ]
        await taken_back(remit, second)
        await sweep(remit.on.journal, Retention(), now_us=remit.on.clock())
        assert (await taken_back(remit, first)).undone["state"] == "done"
        assert state["value"] == 1
        removed = await sweep(remit.on.journal, Retention(), now_us=remit.on.clock())
        assert removed["images"] == 4


def test_before_images_expire_at_the_command_line(tmp_path: Path) -> None:
    async def life() -> tuple[str, str]:
        async with a_remit(tmp_path, policy=ROLES, tools=ABOUT, clock=Clock(LONG_AGO)) as remit:
            remit.source.on["look"] = {"value": SECRET}
            call_id = (await remit.done("shop.set", {"thing": "lamp", "value": 9})).call_id
            return call_id, (await taken_back(remit, call_id)).call_id

    call_id, undo_id = anyio.run(life)
    shell = a_place(tmp_path)
    assert str(SECRET) in shell("calls", "show", undo_id).out
    assert shell.json("audit", "retain") == {"images": 2, "payloads": 0}
    for shown in (call_id, undo_id):
        assert str(SECRET) not in shell("calls", "show", shown).out
    assert "arguments  expired: no longer kept" in shell("calls", "show", undo_id).out
    assert shell.json("calls", "show", undo_id)["arguments"] is None
    assert shell("audit", "verify").code == 0


@pytest.mark.parametrize(
    ("words", "held"),
    [
        (("--subject", "user:ann"), 4),
        (("--subject", f"customer:{MARK}"), 1),
        (("--run", "run-1"), 1),
        (("--tool", "shop.buy"), 1),
        (("--tool", "shop.*"), 4),
        (("--tool", "shop.b*"), 1),
        (("--agent", "agent:bot"), 4),
        (("--from", "2023-11-01", "--to", "2023-12-01"), 4),
        (("--from", "2024-11-01", "--to", "2024-12-01"), 0),
        (("--run", "run-1", "--tenant", "other"), 0),
    ],
)
def test_what_is_held_is_neither_erased_nor_removed(
    tmp_path: Path, words: tuple[str, ...], held: int
) -> None:
    path = anyio.run(an_old_life, tmp_path).path
    shell = a_place(tmp_path, audit=SHORT)
    made = shell.json("audit", "hold", "add", *words, "--reason", "case 7")
    hold = made["hold"]
    assert made["covers_a_call"] == bool(held)
    assert shell.json("audit", "retain")["payloads"] == 4 - held
    erased = shell("audit", "erase", "--subject", "user:ann", "--yes")
    assert (erased.code, f"legal hold {hold}" in erased.err) == ((1, True) if held else (0, False))
    (row,) = shell.json("audit", "hold", "list")
    assert (row["id"], row["reason"], row["set_by"]) == (hold, "case 7", "user:bea")
    shell.json("audit", "hold", "release", hold, "--reason", "settled")
    assert shell.json("audit", "hold", "list") == []
    assert shell("audit", "erase", "--subject", "user:ann", "--yes").code == 0
    told = [row["kind"] for row in rows(path, "SELECT kind FROM events WHERE kind LIKE 'audit.%'")]
    assert {"audit.held", "audit.released", "audit.erased"} <= set(told)
    assert shell("audit", "verify").code == 0


@pytest.mark.parametrize("change", ["DELETE FROM legal_holds", "UPDATE legal_holds SET target = 'shop.c*'"])
def test_a_hold_that_somebody_takes_away_by_hand_is_found(tmp_path: Path, change: str) -> None:
    path = anyio.run(an_old_life, tmp_path).path
    shell = a_place(tmp_path)
    for words in (("--tool", "shop.b*"), ("--subject", f"customer:{MARK}"), ("--run", "run-1")):
        hold = shell.json("audit", "hold", "add", *words, "--reason", "case 7")["hold"]
    shell.json("audit", "hold", "release", hold, "--reason", "settled")
    assert shell("audit", "verify").code == 0
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"{change} WHERE scope = 'tool'")
    verified = shell("audit", "verify")
    assert (verified.code, "legal hold" in verified.out) == (1, True)


def test_a_hold_says_what_it_covers_or_is_none(tmp_path: Path) -> None:
    anyio.run(an_old_life, tmp_path)
    shell = a_place(tmp_path)
    for words, fits in ((("--subject", "ann"), False), (("--subject", "user:ann"), True)):
        said = shell("audit", "hold", "add", *words, "--reason", "case 7").out
        assert ("No call that was made fits it" in said) is not fits
    for words in ((), ("--run", "a", "--tool", "b"), ("--from", "1d"), ("--from", "1d", "--to", "2d")):
        assert shell("audit", "hold", "add", *words, "--reason", "x").code == 64
    unknown = shell("audit", "hold", "release", "ffff", "--reason", "x")
    assert (unknown.code, unknown.err) == (
        1,
        "remit: there is no legal hold ffff: `remit audit hold list` shows those there are\n",
    )


@pytest.mark.usefixtures("every_database")
async def test_what_people_are_still_asked_about_is_kept(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ROLES, clock=Clock(LONG_AGO)) as remit:
        waiting: Any = await remit.call("shop.buy", {"thing": "car", "price": 900})
        assert isinstance(waiting, Pending)
        removed = await remit.on.journal.retire("payloads", before_us=2 * LONG_AGO, after="")
        assert removed == (None, 0)


@pytest.mark.usefixtures("every_database")
async def test_what_nobody_knows_the_end_of_and_what_is_held_back_is_kept(tmp_path: Path) -> None:
    held_back = tools(send={"effect": "deferred", "hold_back": "10m"})
    async with a_remit(tmp_path, policy=ROLES, tools=held_back, clock=Clock(LONG_AGO)) as remit:
        remit.source.on["buy"] = AdapterError("The line broke.", no_effect=False)
        assert isinstance(await remit.call("shop.buy", {"thing": "pen", "price": 5}), InDoubt)
        assert isinstance(await remit.call("shop.send", {"text": "hi"}), Scheduled)
        removed = await remit.on.journal.retire("payloads", before_us=2 * LONG_AGO, after="")
        assert removed == (None, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("every_database")
def test_what_was_killed_while_it_removed_what_is_of_age_goes_on_from_there(tmp_path: Path) -> None:
    async def life() -> None:
        async with a_remit(tmp_path, policy=ROLES, tools=ABOUT, clock=Clock(LONG_AGO)) as remit:
            for number in range(5):
                await remit.done("shop.send", {"text": str(number)})

    anyio.run(life)
    shell = a_place(tmp_path, audit=SHORT)
    killed_in(shell, "retire", "audit", "retain")
    assert shell("audit", "verify").code == 0
    assert shell.json("audit", "retain")["payloads"] == 5
    assert kept(location(tmp_path)) == []
    assert shell("audit", "verify").code == 0


@pytest.mark.parametrize("kind", ["payloads", "before_images"])
def test_to_keep_something_for_no_time_is_refused_and_not_taken_for_ever(tmp_path: Path, kind: str) -> None:
    told = a_place(tmp_path, audit={"retention": {kind: "0d"}})("audit", "retain", "--dry-run")
    assert (told.code, "this must last 1s at least" in told.err) == (1, True)
