"""How long what calls carried is kept, and what keeps it longer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.server.builders import Clock, Remit, a_remit, location, rows
from tests.server.test_erasing import ABOUT, MARK, ROLES, a_place, killed_in, whole

from remit.model import Pending

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
    assert shell.json("audit", "retain") == {"images": 0, "payloads": 0}


def test_before_images_go_with_their_way_back_and_nothing_else_does(tmp_path: Path) -> None:
    path = anyio.run(an_old_life, tmp_path).path
    before = kept(path)
    assert a_place(tmp_path).json("audit", "retain") == {"images": 1, "payloads": 0}
    assert set(before) - set(kept(path)) == {"shop.set before", "shop.set after"}


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


@pytest.mark.parametrize(
    ("words", "held"),
    [
        (("--subject", "user:ann"), 4),
        (("--subject", f"customer:{MARK}"), 1),
        (("--run", "run-1"), 1),
        (("--tool", "shop.buy"), 1),
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
    hold = shell.json("audit", "hold", "add", *words, "--reason", "case 7")["hold"]
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


def test_a_hold_says_what_it_covers_or_is_none(tmp_path: Path) -> None:
    anyio.run(an_old_life, tmp_path)
    shell = a_place(tmp_path)
    for words in ((), ("--run", "a", "--tool", "b"), ("--from", "1d")):
        assert shell("audit", "hold", "add", *words, "--reason", "x").code == 64
    unknown = shell("audit", "hold", "release", "ffff", "--reason", "x")
    assert (unknown.code, unknown.err) == (1, "remit: there is no legal hold ffff\n")


@pytest.mark.usefixtures("every_database")
async def test_what_people_are_still_asked_about_is_kept(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ROLES, clock=Clock(LONG_AGO)) as remit:
        waiting: Any = await remit.call("shop.buy", {"thing": "car", "price": 900})
        assert isinstance(waiting, Pending)
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
