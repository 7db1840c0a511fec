"""What a call writes is durable in the redo log first, and in its tables a moment later: nobody can tell."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.acme import Terminal, a_place
from tests.server.builders import a_remit, a_reply, until

from remit import redo, schema, verifying
from remit.database import reading
from remit.ledger import Ledger
from remit.ledger_sqlite import SqliteStore
from remit.records import open_records
from remit.vault import key_file
from remit_adapters.base import AdapterError, Caller, Reply, Request

OF_CALLS = ("calls", "payloads", "holds", "budget_adjustments", "undos", "touches", "events")


def contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    with reading(path) as db:
        return {table: sorted(db.tuples(f"SELECT * FROM {table}"), key=repr) for table in OF_CALLS}  # noqa: S608


def logged(path: Path) -> int:
    """Transactions that are in the log alone, as another program sees it."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return len(redo.Log(db).read())


@pytest.fixture
def never_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is filed because nothing else is to be done."""
    monkeypatch.setattr(Ledger, "idle", lambda _: None)


@pytest.mark.usefixtures("never_idle")
async def test_what_was_answered_before_a_crash_is_read_from_the_log(tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "remit.db"
    copy.parent.mkdir()
    async with a_remit(tmp_path) as remit:
        assert isinstance(remit.path, Path)
        for number in range(5):
            await remit.done("shop.buy", {"thing": f"pen-{number}", "price": 5})
        for suffix in ("", "-wal"):
            shutil.copy(f"{remit.path}{suffix}", f"{copy}{suffix}")
        shutil.copy(key_file(remit.path), key_file(copy))
        assert logged(copy) > 5
        before = contents(remit.path)
        assert len(before["calls"]) == 5
        assert contents(copy) == before
        assert logged(copy) == logged(remit.path) == 0
        # And whoever was read meanwhile goes on from there.
        await remit.done("shop.buy", {"thing": "pen-6", "price": 5})
        assert len(contents(remit.path)["calls"]) == 6


async def test_what_waits_in_the_log_is_filed_by_itself(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        assert isinstance(remit.path, Path)
        for number in range(5):
            await remit.done("shop.buy", {"thing": f"pen-{number}", "price": 5})
        path = remit.path
        await until(lambda: not logged(path))
        assert all(call["state"] == "succeeded" for call in remit.rows("SELECT state FROM calls"))


@pytest.mark.usefixtures("never_idle")
async def test_a_query_within_the_process_sees_what_is_logged(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        assert isinstance(remit.path, Path)
        for number in range(5):
            done = await remit.done("shop.buy", {"thing": f"pen-{number}", "price": 5})
        assert logged(remit.path)
        recorded = await remit.on.journal.recorded(done.call_id)
        assert recorded is not None
        assert logged(remit.path) == 0


@pytest.mark.usefixtures("never_idle")
@pytest.mark.parametrize(
    "edit",
    [
        lambda body: b"x",
        lambda body: body.replace(b"shop.buy", b"shop.set"),
        lambda body: body[:12] + body[13:] + b" ",
    ],
    ids=["replaced", "edited", "shifted"],
)
async def test_a_log_that_was_changed_is_found(tmp_path: Path, edit: Callable[[bytes], bytes]) -> None:
    copy = tmp_path / "copy" / "remit.db"
    copy.parent.mkdir()
    async with a_remit(tmp_path) as remit:
        assert isinstance(remit.path, Path)
        for number in range(5):
            await remit.done("shop.buy", {"thing": f"pen-{number}", "price": 5})
        for suffix in ("", "-wal"):
            shutil.copy(f"{remit.path}{suffix}", f"{copy}{suffix}")
        shutil.copy(key_file(remit.path), key_file(copy))
    with closing(sqlite3.connect(copy)) as db, db:
        db.create_function("edited", 1, edit)
        db.execute("UPDATE redo SET body = edited(body)")
    with open_records(copy) as records:
        found = [*map(str, verifying.verify(records, payloads=True)), *records.damage()]
    assert found


@pytest.mark.usefixtures("never_idle")
async def test_who_may_not_write_is_told_so_and_not_that_the_record_was_cut_off(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    config = a_place(tmp_path / "copy")
    copy = config.with_name("remit.db")
    async with a_remit(tmp_path) as remit:
        assert isinstance(remit.path, Path)
        await remit.done("shop.buy", {"thing": "pen", "price": 5})
        for suffix in ("", "-wal"):
            shutil.copy(f"{remit.path}{suffix}", f"{copy}{suffix}")
        shutil.copy(key_file(remit.path), key_file(copy))
    assert logged(copy)
    lock = copy.with_name("remit.db.lock")
    lock.mkdir()  # whoever may not write cannot open it either
    shell = Terminal(config)
    for command in (("audit", "verify"), ("budget", "verify")):
        refused = await anyio.to_thread.run_sync(shell, *command)
        assert (refused.code, refused.out) == (1, ""), refused
        assert "verify it as the server's user, or a copy that is yours" in refused.err
    lock.rmdir()
    for command in (("audit", "verify"), ("budget", "verify")):
        verified = await anyio.to_thread.run_sync(shell, *command)
        assert verified.code == 0, verified


@pytest.mark.usefixtures("never_idle")
async def test_a_copy_that_sqlite_made_of_a_busy_database_is_verified(tmp_path: Path) -> None:
    copy = tmp_path / "backup.db"
    async with a_remit(tmp_path) as remit:
        assert isinstance(remit.path, Path)
        await remit.done("shop.buy", {"thing": "pen", "price": 5})
        with closing(sqlite3.connect(remit.path)) as db:
            db.execute("VACUUM INTO ?", (str(copy),))
    assert logged(copy)
    with open_records(copy) as records:
        assert list(verifying.verify(records, payloads=False)) == []
        assert records.count("calls") == 1
    assert logged(copy) == 0


SEVENTH = """
from alembic import op

from remit import redo
from sqlalchemy import Column, Text
revision, down_revision = "0007", "0006"

def upgrade():
    assert not redo.is_logged(op.get_bind().connection.driver_connection), "the log was not filed"
    op.add_column("calls", Column("mood", Text))
"""


@pytest.mark.usefixtures("never_idle")
@pytest.mark.parametrize("how", ["upgraded", "read"])
async def test_a_later_remit_files_the_log_by_the_columns_that_it_was_written_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    (tmp_path / "later").mkdir()
    config = a_place(tmp_path / "later")
    copy = config.with_name("remit.db")
    async with a_remit(tmp_path) as remit:
        assert isinstance(remit.path, Path)
        for number in range(5):
            await remit.done("shop.buy", {"thing": f"pen-{number}", "price": 5})
        for suffix in ("", "-wal"):
            shutil.copy(f"{remit.path}{suffix}", f"{copy}{suffix}")
        before = contents(remit.path)
    assert logged(copy) > 5

    known = redo.columns()
    later = {**known, "calls": ("mood", *known["calls"])}
    monkeypatch.setattr(redo, "columns", lambda: later)
    if how == "read":
        with reading(copy) as db:
            assert list(db.damage()) == []
    else:
        migrations = shutil.copytree(schema.MIGRATIONS, tmp_path / "migrations")
        (migrations / "versions" / "v0007_seventh.py").write_text(SEVENTH)
        monkeypatch.setattr(schema, "MIGRATIONS", migrations)
        monkeypatch.setattr(schema, "HEAD", "0007")
        upgraded = await anyio.to_thread.run_sync(Terminal(config), "db", "upgrade")
        assert (upgraded.code, upgraded.err) == (0, "")
        assert upgraded.out.endswith("has schema 0007.\n")
        with closing(sqlite3.connect(copy)) as db:
            db.execute("ALTER TABLE calls DROP COLUMN mood")
    assert contents(copy) == before


def test_columns_are_in_one_order_in_the_database_and_in_the_log(tmp_path: Path) -> None:
    """Also once a migration adds some: it does so at the end."""
    path = tmp_path / "remit.db"
    schema.upgrade(path)
    with closing(sqlite3.connect(path)) as db:
        for table, names in redo.columns().items():
            assert names == tuple(row[1] for row in db.execute(f"PRAGMA table_info({table})")), table
        assert db.execute("SELECT version_num FROM alembic_version").fetchall() == [(schema.HEAD,)]


async def played(folder: Path, steps: Sequence[Sequence[str]]) -> dict[str, list[tuple[Any, ...]]]:
    """The books after these calls, those of each step together."""
    async with a_remit(folder, budgets=BUDGETS) as remit:
        assert isinstance(remit.path, Path)

        async def buy(request: Request, caller: Caller) -> Reply:
            await anyio.lowlevel.checkpoint()
            if request.arguments["thing"] == "fails":
                raise AdapterError("broken", no_effect=True)
            if request.arguments["thing"] == "is lost":
                raise AdapterError("gone", no_effect=False)
            return a_reply({"order": "o-1"})

        async def one(step: str, number: int) -> None:
            if step == "reads":
                await remit.call("shop.look", {"thing": "pen"})
            else:
                price = 10**6 if step == "is denied" else number
                await remit.call("shop.buy", {"thing": step, "price": price})

        remit.source.on["buy"] = buy

        numbers = count(1)
        for together in steps:
            async with anyio.create_task_group() as tasks:
                for step in together:
                    tasks.start_soon(one, step, next(numbers))
        books = {
            "calls": "kind, tool, verdict, code, state, error_code",
            "holds": "account, unit, amount, state, posted",
            "accounts": "id, held, posted, overrun",
            "budget_moves": "account, kind, amount",
            "undos": "state, tool",
            "payloads": "kind",
            "events": "kind",
        }
        with reading(remit.path) as db:
            return {
                table: sorted(db.tuples(f"SELECT {columns} FROM {table}"), key=repr)  # noqa: S608
                for table, columns in books.items()
            }


BUDGETS = [
    {"scope": "tenant", "unit": "calls", "window": "day", "limit": 1000},
    {"scope": "agent", "unit": "calls", "window": "day", "limit": 12},
]
STEPS = st.lists(
    st.sampled_from(["is done", "is denied", "fails", "is lost", "reads"]), min_size=1, max_size=6
)


@settings(max_examples=15)
@given(steps=st.lists(STEPS, min_size=1, max_size=5))
def test_the_books_are_the_same_with_a_log_and_without(steps: list[list[str]]) -> None:
    def with_log(logs: bool) -> dict[str, list[tuple[Any, ...]]]:
        with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
            patch.setattr(SqliteStore, "logs", logs)
            return anyio.run(played, Path(folder), steps)

    assert with_log(True) == with_log(False)
