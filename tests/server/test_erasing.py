"""Erasing what is kept about somebody: nothing of it is found again, and every proof still holds."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.server import builders
from tests.server.acme import Terminal
from tests.server.builders import POLICY, Remit, a_principal, a_remit, a_reply, rows, tools

from remit.erasing import resume
from remit.errors import RemitError
from remit.model import Done, Failed, Pending, Refused
from remit.records import open_records
from remit.undo import undo
from remit.vault import key_file
from remit_adapters.base import AdapterError

MARK = "Xq7-quite-unmistakable"
ABOUT = tools(
    buy={"establishes": {"item": "args.thing"}, "subject": "'customer:' + args.thing"},
    send={"on_error": "no_effect"},
)
ROLES = POLICY + "g3, agent:bot, user:bea, acme\ng, user:bea, role:clerk, acme\n"


def a_place(folder: Path, **settings: Any) -> Terminal:
    """The command line of the Remit in this folder."""
    (folder / "policy.csv").write_text(ROLES)
    config = {
        "version": 1,
        "store": {"path": "remit.db"} | ({"url": builders.url_of(folder)} if builders.databases else {}),
        "policy": {"files": ["policy.csv"]},
        "identity": {"cli": {"tenant": "acme", "user": "user:bea"}},
        "sources": {"shop": {"kind": "mcp", "command": ["shop"]}},
        **settings,
    }
    (folder / "remit.yaml").write_text(json.dumps(config))
    return Terminal(folder / "remit.yaml")


async def a_marked_life(folder: Path) -> Remit:
    """The mark passes through everything that a call can carry."""
    async with a_remit(folder, policy=ROLES, tools=ABOUT) as remit:
        remit.source.on["buy"] = {"order": MARK}
        remit.source.on["look"] = {"value": 7, "note": MARK}
        remit.source.on["send"] = a_reply(f"no such person: {MARK}", is_error=True)
        done = await remit.done("shop.buy", {"thing": MARK, "price": 5}, claim={"goal": MARK})
        assert done.undo
        await remit.done("shop.set", {"thing": MARK, "value": 9})
        assert (await remit.done("shop.send", {"text": MARK})).failed
        await remit.refused("shop.buy", {"thing": MARK, "price": MARK})
        await remit.refused("shop.buy", {"thing": MARK, "price": 9000})
        waiting = await remit.call("shop.buy", {"thing": MARK, "price": 900})
        assert isinstance(waiting, Pending)
        await remit.vote(waiting.approval_id, vote="reject")
        return remit


def killed_in(shell: Terminal, step: str, *words: str) -> None:
    """Run a command that is killed when it is to do this step of the journal's for the second time."""
    script = f"""
import os, signal, sys
from remit import erasing, keeping
from remit.cli import main
from remit.journal import Journal
erasing._SLICE = keeping._SLICE = 2
real, first = Journal.{step}, [True]
async def dies(self, *args, **more):
    if not first:
        os.kill(os.getpid(), signal.SIGKILL)
    first.clear()
    return await real(self, *args, **more)
Journal.{step} = dies
main(sys.argv[1:])
"""
    command = [sys.executable, "-c", script, *words, "--config", str(shell.config)]
    ended = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL, ended


def whole(path: Path) -> bytes:
    """The database file when everything in it is written and nothing else is."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("VACUUM")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.read_bytes()


def test_nothing_of_what_an_erased_users_calls_carried_is_in_the_file(tmp_path: Path) -> None:
    remit = anyio.run(a_marked_life, tmp_path)
    assert MARK.encode() in whole(remit.path), "what people query is in the clear until then"
    shell = a_place(tmp_path)
    told = shell.json("audit", "erase", "--subject", "user:ann", "--yes", "--reason", "she asked")
    assert told["calls"] == len(rows(remit.path, "SELECT id FROM calls"))
    assert MARK.encode() not in whole(remit.path)
    assert shell("audit", "verify").code == 0
    assert shell("budget", "verify").code == 0
    (event,) = rows(remit.path, "SELECT body FROM events WHERE kind = 'audit.erased'")
    body = json.loads(event["body"])
    assert (body["subject"], body["reason"], body["by"]) == ("user:ann", "she asked", "user:bea")


def test_what_is_erased_is_overwritten_whatever_sqlite_does_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def careless(*names: Any, **more: Any) -> sqlite3.Connection:
        db = connect(*names, **more)
        db.execute("PRAGMA secure_delete = OFF")  # as it is where SQLite was built so, which most are
        return db

    monkeypatch.setattr(sqlite3, "connect", careless)
    anyio.run(a_marked_life, tmp_path)
    assert a_place(tmp_path)("audit", "erase", "--subject", "user:ann", "--yes").code == 0
    assert [file.name for file in tmp_path.glob("remit.db*") if MARK.encode() in file.read_bytes()] == []


@pytest.mark.parametrize("how", ["by a command", "by the server"])
async def test_what_is_erased_beside_a_server_that_goes_on_is_in_no_file(tmp_path: Path, how: str) -> None:
    async with a_remit(tmp_path, policy=ROLES, tools=tools()) as remit:
        assert isinstance(remit.path, Path)
        remit.source.on["buy"] = {"order": "o-1"}
        await remit.done("shop.buy", {"thing": MARK, "price": 5}, claim={"goal": MARK})
        (key,) = remit.rows("SELECT wrapped FROM subject_keys")

        def left() -> set[str]:
            found = [file.read_bytes() for file in tmp_path.glob("remit.db*")]
            words = {"the mark": MARK.encode(), "the key": key["wrapped"]}
            return {name for name, word in words.items() if any(word in each for each in found)}

        assert left() == {"the mark", "the key"}
        if how == "by a command":
            shell = a_place(tmp_path)
            told = await anyio.to_thread.run_sync(shell, "audit", "erase", "--subject", "user:ann", "--yes")
            assert told.code == 0, told
            assert left() == set()
        else:
            await remit.on.journal.erase(tenant="acme", subject="user:ann", reason="", by="user:bea")
            await resume(remit.on.journal)
            await builders.until(lambda: not left())


def test_whom_a_tool_says_that_it_is_about_can_be_erased_alone(tmp_path: Path) -> None:
    async def life() -> Path:
        async with a_remit(tmp_path, policy=ROLES, tools=ABOUT) as remit:
            remit.source.on["buy"] = {"order": "o-1"}
            for thing in (MARK, "pen"):
                await remit.done("shop.buy", {"thing": thing, "price": 5})
            return remit.path

    path = anyio.run(life)
    shell = a_place(tmp_path)
    assert shell.json("audit", "erase", "--subject", f"customer:{MARK}", "--yes")["calls"] == 1
    assert MARK.encode() not in whole(path)
    assert {(each["erased"], bool(each["arguments"])) for each in stories(path)} == {
        (True, False),
        (False, True),
    }
    assert shell("audit", "verify").code == 0


def stories(path: Path) -> list[dict[str, Any]]:
    with open_records(path) as found:
        told = [found.story(row["id"]) for row in rows(path, "SELECT id FROM calls ORDER BY id")]
    return [{"erased": one.erased, "arguments": one.arguments} for one in told]


def test_who_reads_an_erased_call_is_told_that_it_is(tmp_path: Path) -> None:
    remit = anyio.run(a_marked_life, tmp_path)
    shell = a_place(tmp_path)
    shell.json("audit", "erase", "--subject", "user:ann", "--yes")
    (bought,) = rows(remit.path, "SELECT id FROM calls WHERE tool = 'shop.buy' AND state = 'succeeded'")
    shown = shell("calls", "show", bought["id"])
    assert "arguments  erased" in shown.out
    assert "result  erased" in shown.out
    undone = shell("undo", bought["id"])
    assert undone.code == 1
    assert "is erased, so it cannot be taken back" in undone.err
    (asked,) = shell.json("approvals", "list", "--all")
    assert asked["shown"] is None
    assert shell("approvals", "show", asked["id"]).code == 0
    replayed = shell.json("policy", "replay", "--policy", str(tmp_path / "policy.csv"), "--since", "36500d")
    assert replayed["asked"] == 0
    assert replayed["skipped"] >= 4
    explained = shell("policy", "explain", bought["id"])
    assert "erased" in explained.out + explained.err


@pytest.mark.usefixtures("every_database")
async def test_a_repeat_of_an_erased_call_is_refused_and_not_made_again(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ROLES, tools=ABOUT) as remit:
        pen = {"thing": "pen", "price": 5}
        remit.source.on["buy"] = {"order": "o-1"}
        first = await remit.done("shop.buy", pen, client_key="k-1")
        assert (await remit.done("shop.buy", pen, client_key="k-1")).repeated
        await remit.on.journal.erase(tenant="acme", subject="user:ann", reason="", by="user:bea")
        again = await remit.call("shop.buy", pen, client_key="k-1")
        assert isinstance(again, Refused)
        assert again.verdict.code == "already_ended"
        assert "not kept" in again.verdict.reason
        assert len(remit.source.effects("buy")) == 1
        later = await remit.done("shop.buy", pen)
        assert remit.carried(later.call_id, "arguments") == pen, "what comes after is kept anew"
        assert remit.carried(first.call_id, "arguments") is None


def test_what_is_named_like_something_erased_is_erased(tmp_path: Path) -> None:
    async def life() -> None:
        async with a_remit(tmp_path, policy=ROLES, tools=tools(send={"resource": "args.text"})) as remit:
            remit.source.on["buy"] = {"order": "o-1"}
            for thing in (f"erased:{MARK}", f"erased:{'0' * 32}{MARK}"):
                await remit.done("shop.buy", {"thing": thing, "price": 5})
                await remit.done("shop.send", {"text": thing})

    anyio.run(life)
    shell = a_place(tmp_path)
    assert shell("audit", "erase", "--subject", "user:ann", "--yes").code == 0
    assert MARK.encode() not in whole(tmp_path / "remit.db")
    assert shell("audit", "verify").code == 0


@pytest.mark.usefixtures("every_database")
async def test_a_later_change_stays_a_conflict_when_who_made_it_is_erased(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ROLES, tools=tools()) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        bea = a_principal(user="user:bea")
        first = await remit.done("shop.buy", {"thing": "pen", "price": 5}, principal=bea)
        later = await remit.done("shop.buy", {"thing": "pen", "price": 6})
        journal = remit.on.journal
        done = await journal.erase(tenant="acme", subject="user:ann", reason="", by="user:bea")
        await journal.clear([later.call_id])
        await journal.cleared(done.uncleared[0])
        back = await undo(first.call_id, bea, "run-1", remit.on)
        assert isinstance(back, Refused)
        assert back.verdict.code == "undo_conflict"


async def test_a_call_whose_person_cannot_be_told_is_refused(tmp_path: Path) -> None:
    rules = tools(send={"subject": "args.text.who"})
    async with a_remit(tmp_path, tools=rules) as remit:
        refused = await remit.refused("shop.send", {"text": "hello"})
        assert refused.verdict.code == "no_subject"


@pytest.mark.usefixtures("every_database")
async def test_an_undo_carries_the_keys_of_whom_it_takes_back_for(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ROLES, tools=ABOUT) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        done = await remit.done("shop.buy", {"thing": "pen", "price": 5})
        person = a_principal(agent="agent:remit-cli", user="user:bea", auth="local")
        back = await undo(done.call_id, person, "cli", remit.on)
        assert isinstance(back, Done)
        assert remit.carried(back.call_id, "arguments") == {"order": "o-1"}
        await remit.on.journal.erase(tenant="acme", subject="user:ann", reason="", by="user:bea")
        assert remit.carried(back.call_id, "arguments") is None


async def test_nobody_is_erased_while_people_are_asked_about_a_call(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ROLES) as remit:
        assert isinstance(await remit.call("shop.buy", {"thing": "car", "price": 900}), Pending)
        with pytest.raises(RemitError, match="waits for people"):
            await remit.on.journal.erase(tenant="acme", subject="user:ann", reason="", by="user:bea")


async def test_a_request_whose_time_is_over_keeps_nobody_from_being_erased(tmp_path: Path) -> None:
    # No server runs that would close it.
    async with a_remit(tmp_path, policy=ROLES) as remit:
        asked = await remit.call("shop.buy", {"thing": "car", "price": 900})
        assert isinstance(asked, Pending)
        remit.clock.advance(s=86_400)
        await remit.on.journal.erase(tenant="acme", subject="user:ann", reason="", by="user:bea")
        assert remit.carried(asked.call_id, "arguments") is None


def test_who_is_not_known_cannot_be_erased_and_who_was_is_said_to_be(tmp_path: Path) -> None:
    anyio.run(a_marked_life, tmp_path)
    shell = a_place(tmp_path)
    unknown = shell("audit", "erase", "--subject", "user:nobody", "--yes")
    assert unknown.code == 1
    assert unknown.err == "remit: nothing is kept about user:nobody in tenant acme\n"
    assert shell("audit", "erase", "--subject", "user:ann", "--yes").code == 0
    assert "was erased at" in shell("audit", "erase", "--subject", "user:ann", "--yes").out


def test_a_lost_or_wrong_master_key_is_said_and_nothing_is_let_out(tmp_path: Path) -> None:
    remit = anyio.run(a_marked_life, tmp_path)
    shell = a_place(tmp_path)
    kept = key_file(remit.path).read_bytes()
    assert key_file(remit.path).stat().st_mode & 0o777 == 0o600
    (call,) = rows(remit.path, "SELECT id FROM calls LIMIT 1")

    async def serve() -> None:
        async with a_remit(tmp_path):
            pass

    key_file(remit.path).unlink()
    with pytest.raises(RemitError, match="is gone"):
        anyio.run(serve)
    assert not key_file(remit.path).exists(), "no other key is made in its place"
    assert "is gone" in shell("calls", "show", call["id"]).err
    assert "is gone" in shell("audit", "verify").out
    key_file(remit.path).write_bytes(os.urandom(32))
    key_file(remit.path).chmod(0o600)
    with pytest.raises(RemitError, match="restore the right one"):
        anyio.run(serve)
    key_file(remit.path).write_bytes(kept)
    assert shell("audit", "verify").code == 0


def test_the_master_key_may_come_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "1" * 64)
    shell = a_place(tmp_path, store={"path": "remit.db", "master_key": "env:A_KEY"})
    assert shell("switch", "on", "all", "--reason", "a test").code == 0
    assert not key_file(tmp_path / "remit.db").exists()
    monkeypatch.setenv("A_KEY", "too short")
    refused = shell("switch", "off", "all", "--reason", "a test")
    assert refused.code == 1
    assert "64 hexadecimal digits" in refused.err


async def test_a_failure_that_says_nothing_is_no_payload(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=tools(send={"on_error": "no_effect"})) as remit:
        remit.source.on["send"] = AdapterError("gone", code="down", no_effect=True)
        failed = await remit.call("shop.send", {"text": "x"})
        assert isinstance(failed, Failed)
        assert remit.carried(failed.call_id, "result") is None


@pytest.mark.slow
def test_what_was_killed_while_it_erased_is_finished_by_the_next_server(
    tmp_path: Path, every_database: str
) -> None:
    remit = anyio.run(a_marked_life, tmp_path)
    shell = a_place(tmp_path)
    killed_in(shell, "clear", "audit", "erase", "--subject", "user:ann", "--yes")

    def left() -> int:
        (row,) = rows(remit.path, "SELECT COUNT(*) AS calls FROM calls WHERE reason <> ''")
        return row["calls"]

    assert 0 < left() < len(rows(remit.path, "SELECT id FROM calls"))
    killed_in(shell, "clear", "audit", "erase", "--subject", "customer:" + MARK, "--yes")

    async def serves() -> None:
        async with a_remit(tmp_path, policy=ROLES, tools=ABOUT) as server:
            await resume(server.on.journal)

    anyio.run(serves)
    assert left() == 0
    assert rows(remit.path, "SELECT id FROM subject_keys WHERE wrapped IS NULL AND cleared_us IS NULL") == []
    assert shell("audit", "verify").code == 0
    if every_database == "sqlite":
        assert MARK.encode() not in whole(Path(remit.path))
