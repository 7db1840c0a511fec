"""Records of earlier schemas are brought up to date, and nothing of them is lost."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from tests.server.acme import Story, Terminal, a_place
from tests.server.builders import a_remit, at_once, rows
from tests.server.test_redo import never_idle  # noqa: F401 - a fixture

from remit import redo
from remit.config_file import load
from remit.database import Location, Postgres
from remit.tables import VIEWS, view
from remit.vault import key_file

#: What makes the tables of schema 0001 of those of 0002.
TO_0001 = (
    "CREATE TABLE moves_0001 AS SELECT * FROM budget_moves",
    "CREATE TABLE holds_0001 AS SELECT call_id, account, window_start_us, unit, amount, state, posted,"
    " refunded FROM holds",
    *(f"DROP VIEW {name}" for name in VIEWS),
    "DROP TABLE holds",
    "DROP TABLE budget_adjustments",
    "ALTER TABLE holds_0001 RENAME TO holds",
    "ALTER TABLE moves_0001 RENAME TO budget_moves",
    "UPDATE alembic_version SET version_num = '0001'",
)


def run(at: Location, statements: Sequence[str]) -> None:
    if isinstance(at, Postgres):
        with at_once(at) as session:
            for statement in statements:
                session.script(statement)
        return
    with closing(sqlite3.connect(at)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


def books(at: Location) -> dict[str, list[dict[str, Any]]]:
    return {
        table: rows(at, f"SELECT * FROM {table} ORDER BY call_id, account, at_us, kind")  # noqa: S608
        for table in ("budget_moves", "budget_adjustments")
    } | {"holds": rows(at, "SELECT * FROM holds ORDER BY call_id, account")}


def test_holds_of_schema_0001_come_to_say_when(anywhere: tuple[Terminal, Story]) -> None:
    remit, _ = anywhere
    at = load(remit.config).config.store.location
    # Nothing went beyond a limit there; a move of nothing is as good.
    adjusted = "SELECT held_us, call_id, account, window_start_us, 'overrun', 0 FROM holds"
    run(at, [f"INSERT INTO budget_adjustments {adjusted}"])
    before = books(at)
    assert {hold["state"] for hold in before["holds"]} >= {"held", "posted"}
    assert before["budget_adjustments"]
    run(at, TO_0001)
    assert remit("db", "check").code == 1
    upgraded = remit("db", "upgrade")
    assert (upgraded.code, upgraded.out.endswith("has schema 0006.\n")) == (0, True), upgraded
    assert books(at) == before
    for command in (("db", "check"), ("audit", "verify"), ("budget", "verify")):
        assert (found := remit(*command)).code == 0, found


@pytest.mark.parametrize(
    ("schema", "views"),
    [
        ("0002", ("undoable", "run_timeline")),
        ("0003", ("approvals_open",)),
        ("0004", ("undoable", "run_timeline")),
    ],
)
def test_views_of_earlier_schemas_are_made_anew_and_who_may_read_them_still_may(
    anywhere: tuple[Terminal, Story], schema: str, views: tuple[str, ...]
) -> None:
    remit, _ = anywhere
    at = load(remit.config).config.store.location
    dialect = "postgresql" if isinstance(at, Postgres) else "sqlite"
    for name in views:
        other = f"SELECT * FROM ({view(name, dialect)}) AS it"  # noqa: S608 - it is ours
        run(at, [f"DROP VIEW {name}", f"CREATE VIEW {name} AS {other}"])
    if isinstance(at, Postgres):
        run(at, [f"GRANT SELECT ON {views[0]} TO PUBLIC"])
    assert f"{views[0]} is not as Remit made it" in remit("db", "check").out
    run(at, [f"UPDATE alembic_version SET version_num = '{schema}'"])  # noqa: S608 - it is ours
    assert remit("db", "upgrade").code == 0
    assert (found := remit("db", "check")).code == 0, found
    if isinstance(at, Postgres):
        granted = "SELECT 1 FROM information_schema.table_privileges WHERE grantee = 'PUBLIC'"
        assert rows(at, f"{granted} AND table_name = '{views[0]}'")


def test_a_way_back_that_schema_0004_left_open_is_closed(anywhere: tuple[Terminal, Story]) -> None:
    remit, story = anywhere
    at = load(remit.config).config.store.location
    assert remit("doubt", "resolve", story.in_doubt, "--happened", "--reason", "it is there").code == 0
    its = f"call_id = '{story.in_doubt}'"
    assert rows(at, f"SELECT state FROM undos WHERE {its}") == [{"state": "void"}]  # noqa: S608 - it is ours
    run(at, [f"UPDATE undos SET state = 'registered' WHERE {its}"])  # noqa: S608 - as above
    assert remit("audit", "verify").code == 1
    run(at, ["UPDATE alembic_version SET version_num = '0004'"])
    assert remit("db", "upgrade").code == 0
    assert (found := remit("audit", "verify")).code == 0, found


def test_the_keys_of_schema_0005_come_to_be_those_of_one_user(anywhere: tuple[Terminal, Story]) -> None:
    remit, _ = anywhere
    before = "CREATE UNIQUE INDEX uq_calls_client_key ON calls (tenant, agent, client_key)"
    run(
        load(remit.config).config.store.location,
        [
            "DROP INDEX uq_calls_client_key",
            f"{before} WHERE client_key IS NOT NULL",
            "UPDATE alembic_version SET version_num = '0005'",
        ],
    )
    assert remit("db", "upgrade").code == 0
    assert (found := remit("db", "check")).code == 0, found


@pytest.mark.usefixtures("never_idle")
async def test_a_log_of_schema_0001_is_filed_before_its_tables_change(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    config = a_place(tmp_path / "before")
    copy = config.with_name("remit.db")
    budget = {"scope": "agent", "unit": "calls", "window": "day", "limit": 10}
    async with a_remit(tmp_path, budgets=[budget]) as remit:
        assert isinstance(remit.path, Path)
        for number in range(3):
            await remit.done("shop.buy", {"thing": f"pen-{number}", "price": 5})
        for suffix in ("", "-wal"):
            shutil.copy(f"{remit.path}{suffix}", f"{copy}{suffix}")
        shutil.copy(key_file(remit.path), key_file(copy))
        copy.chmod(0o600)
        before = books(remit.path)
    assert len(before["budget_moves"]) == 9
    with closing(sqlite3.connect(copy)) as db:
        log = redo.Log(db)
        found = as_of_0001(log.read())
        assert len(found) > 3
        log.empty()
        for body in found:
            log.write(body)
        db.commit()
    run(copy, TO_0001)
    shell = Terminal(config)
    upgraded = await anyio.to_thread.run_sync(shell, "db", "upgrade")
    assert upgraded.code == 0, upgraded
    assert books(copy) == before
    for command in (("db", "check"), ("audit", "verify"), ("budget", "verify")):
        verified = await anyio.to_thread.run_sync(shell, *command)
        assert verified.code == 0, verified


def as_of_0001(bodies: Sequence[bytes]) -> list[bytes]:
    """The same records as schema 0001 had them: moves in a table, and bytes as hexadecimal.

    Of calls that cost what was held for them.
    """
    made: list[bytes] = []
    for body in bodies:
        text, _, apart = body.partition(b"\0")
        inserts, updates, accounts, streams = orjson.loads(text)
        for values in inserts.get("payloads", ()):
            size = values[3]["bytes"]
            values[3], apart = {"hex": apart[:size].hex()}, apart[size:]
        now = inserts["events"][0][2]
        moves: list[list[Any]] = []
        for hold in inserts.get("holds", ()):
            call_id, account, window_us, _, amount = hold[:5]
            moves.append([now, call_id, account, window_us, "hold", amount])
            del hold[8:]
        for state, cost, _, call_id, account in updates.pop("resolve", ()):
            updates.setdefault("hold", []).append([state, cost, call_id, account])
            moves += [[now, call_id, account, accounts[0][1], kind, cost] for kind in ("release", "post")]
        inserts["budget_moves"] = moves
        made.append(orjson.dumps([inserts, updates, accounts, streams]))
    return made
