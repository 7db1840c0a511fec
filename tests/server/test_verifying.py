"""Parts of a record, verified apart and by several processes, tell what the whole tells."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from tests.server.builders import a_remit

from remit import verifying
from remit.audit import verify_events
from remit.records import open_records
from remit.vault import key_file


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two lives of a process, of a dozen events each."""

    async def written(folder: Path) -> Path:
        for _ in range(2):
            async with a_remit(folder) as remit:
                for number in range(6):
                    await remit.done("shop.buy", {"thing": f"pen-{number}", "price": 5})
        return remit.path

    return anyio.run(written, tmp_path_factory.mktemp("record"))


def found(at: Path, *, processes: int) -> list[str]:
    with open_records(at) as records:
        return list(map(str, verifying.verify(records, payloads=True, processes=processes, part=5)))


def changed(record: Path, to: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(record)) as db:
        db.execute("VACUUM INTO ?", (str(to),))
    shutil.copy(key_file(record), key_file(to))
    with closing(sqlite3.connect(to)) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            db.execute(statement)
        db.commit()
    return to


def test_a_sound_record_is_sound_in_parts(record: Path) -> None:
    assert found(record, processes=2) == found(record, processes=1) == []


def test_several_processes_find_what_one_finds_wherever_it_is(record: Path, tmp_path: Path) -> None:
    copy = changed(
        record,
        tmp_path / "copy.db",
        # The event before a part, the first of one, a gap over an edge, and the end of a stream.
        "UPDATE events SET body = replace(body, 'tool', 'fool') WHERE seq = 4",
        "UPDATE events SET hash = upper(hash) WHERE seq = 5",
        "DELETE FROM events WHERE seq IN (9, 10)",
        "DELETE FROM events WHERE rowid = (SELECT max(rowid) FROM events)",
        "UPDATE calls SET user = 'user:mallory' WHERE id = (SELECT min(call_id) FROM events WHERE seq = 6)",
        "UPDATE payloads SET body = x'00' WHERE call_id = (SELECT min(call_id) FROM events WHERE seq = 2)",
    )
    alone = found(copy, processes=1)
    assert found(copy, processes=2) == alone
    for what in ("hash was changed", "9 to 10 are missing", "ends early", "mallory", "cannot be opened"):
        assert any(what in each for each in alone), what


@pytest.mark.parametrize(
    ("statements", "named"),
    [
        (
            ("UPDATE events SET body = replace(body, 'http', 'ftp') WHERE seq = 1",),
            "event 1: the event or",
        ),
        (("UPDATE events SET tenant = 'evil' WHERE seq = 4",), "event 4: column tenant disagrees"),
        (("UPDATE events SET call_id = NULL WHERE seq = 4",), "event 4: column call_id disagrees"),
        (("DELETE FROM events WHERE seq = 4",), "event 5: events 4 to 4 are missing"),
        (("DELETE FROM events WHERE seq = 1",), "event 2: events 1 to 1 are missing"),
        (("UPDATE incarnations SET last_seq = last_seq - 1",), "does not end where it was recorded to end"),
        (("UPDATE incarnations SET last_seq = last_seq + 1",), "the stream ends early"),
        (("UPDATE incarnations SET head = upper(head)",), "does not end where it was recorded to end"),
        (("DELETE FROM incarnations WHERE id = (SELECT max(id) FROM incarnations)",), "is not registered"),
        (
            (
                "DELETE FROM incarnations WHERE id = (SELECT stream FROM events ORDER BY rowid LIMIT 1)",
                "DELETE FROM events WHERE stream NOT IN (SELECT id FROM incarnations)",
            ),
            "a later stream saw another event here",
        ),
    ],
)
def test_what_does_not_follow_is_named_with_its_event(
    record: Path, tmp_path: Path, statements: tuple[str, ...], named: str
) -> None:
    copy = changed(record, tmp_path / "copy.db", "PRAGMA foreign_keys = OFF", *statements)
    with open_records(copy) as records:
        flaws = {str(finding) for finding in verify_events(records)}
    assert any(named in flaw for flaw in flaws)
    for processes in (1, 2):
        assert flaws <= set(found(copy, processes=processes))


def test_an_event_that_an_index_was_made_to_hide_is_looked_at(record: Path, tmp_path: Path) -> None:
    copy = changed(record, tmp_path / "copy.db", "UPDATE events SET body = body || ' ' WHERE seq = 4")
    for statement in (
        "UPDATE sqlite_master SET sql = sql || ' WHERE seq <> 4' WHERE name = 'ix_events_call_id'",
        "REINDEX ix_events_call_id",
        "UPDATE sqlite_master SET sql = replace(sql, ' WHERE seq <> 4', '') WHERE name = 'ix_events_call_id'",
    ):
        with closing(sqlite3.connect(copy)) as db:
            db.execute("PRAGMA writable_schema = ON")
            db.execute(statement)
            db.commit()
    assert any("event 4: the event or its hash was changed" in each for each in found(copy, processes=1))
