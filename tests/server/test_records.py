"""Reading records back, and finding out whether they are still what was written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.server.builders import POLICY, Clock, a_principal, a_remit, tools

from remit import tables
from remit.audit import verify_approvals, verify_balances, verify_calls, verify_events, verify_keys
from remit.errors import RemitError, UnknownRecord
from remit.model import Done, Pending
from remit.records import CallQuery, open_records
from remit.undo import undo

PEN = {"thing": "pen", "price": 5}
PRICED = tools(buy={"price": {"eur": "args.price"}})
BUDGETS = [
    {"scope": "agent", "unit": "calls", "window": "minute", "limit": 100},
    {"scope": "tenant", "unit": "eur", "window": "total", "limit": 10_000},
]


async def some_records(folder: Path) -> Path:
    """A read, a purchase, one that waits for people and one that was refused."""
    async with a_remit(folder, tools=PRICED, budgets=BUDGETS) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        await remit.done("shop.look", {"thing": "pen"})
        await remit.done("shop.buy", PEN)
        waiting = await remit.call("shop.buy", {"thing": "car", "price": 900})
        assert isinstance(waiting, Pending)
        await remit.vote(waiting.approval_id)
        await remit.refused("shop.buy", {"thing": "house", "price": 9000})
        return remit.path


def found_in(path: Path) -> list[str]:
    with open_records(path) as records:
        return [
            str(finding)
            for verify in (verify_events, verify_calls, verify_approvals, verify_keys, verify_balances)
            for finding in verify(records)
        ]


async def test_records_that_nobody_touched_have_no_flaw(tmp_path: Path) -> None:
    assert found_in(await some_records(tmp_path)) == []


def sql(table: str, change: str, where: str = "1") -> tuple[str, ...]:
    """An UPDATE (`SET ...`) or DELETE, by somebody who owns the file and is not held up by its triggers."""
    begin = f"UPDATE {table} SET {change}" if change else f"DELETE FROM {table}"  # noqa: S608 - it is the point
    return (f"{begin} WHERE {where}",)


BOUGHT = "tool = 'shop.buy' AND state = 'succeeded'"
CHANGES = [
    (sql("events", "body = replace(body, 'agent:bot', 'agent:eve')", "seq = 3"), "was changed"),
    (sql("events", "hash = printf('%064d', 0)", "seq = 3"), "was changed"),
    (sql("events", "kind = 'call.denied'", "kind = 'call.dispatched'"), "column kind disagrees"),
    (sql("events", "at_us = at_us + 1", "seq = 2"), "column at_us disagrees"),
    (sql("events", "", "seq = 3"), "events 3 to 3 are missing"),
    (sql("events", "", "seq = (SELECT MAX(seq) FROM events)"), "the stream ends early"),
    (sql("events", "seq = -1", "seq = 2") + sql("events", "seq = 2", "seq = 3"), "are missing"),
    (sql("incarnations", ""), "the stream is not registered"),
    (sql("calls", "agent = 'agent:eve'", BOUGHT), "agent is 'agent:eve', and its event says 'agent:bot'"),
    (sql("calls", "tool = 'shop.look'", BOUGHT), "tool is 'shop.look'"),
    (sql("calls", "verdict = 'deny'", BOUGHT), "verdict is 'deny'"),
    (sql("calls", "kind = 'undo'", BOUGHT), "kind is 'undo'"),
    (sql("calls", "policy_rows = '[]'", BOUGHT), "policy_rows is not what its event says"),
    (sql("calls", "state = 'failed'", BOUGHT), "state is 'failed', and its events end in 'succeeded'"),
    (sql("calls", "result_commit = 'x'", BOUGHT), "result_commit is not what its event says"),
    (sql("calls", "arguments_commit = 'x'", BOUGHT), "arguments_commit is 'x'"),
    (sql("calls", "", BOUGHT), "it has events, and no row in calls"),
    (sql("events", "", "call_id IS NOT NULL"), "it has no event"),
    (
        sql("payloads", 'body = CAST(\'{"price":6,"thing":"pen"}\' AS BLOB)', "kind = 'arguments'"),
        "its stored arguments cannot be opened",
    ),
    (sql("calls", "policy_rows = 'no json'", BOUGHT), "policy_rows is not what its event says"),
    (sql("payloads", "body = x'00'", "kind = 'shown'"), "what it shows is not what people were asked"),
    (sql("payloads", "keys = 'x'", "kind = 'undo'"), "its stored undo cannot be opened"),
    (sql("subject_keys", "wrapped = x'00'"), "the master key is not the one"),
    (sql("subject_keys", "wrapped = NULL"), "it is destroyed, and no event says so"),
    (sql("subject_keys", ""), "is not in the database any more"),
    (sql("events", "body = '[]'", "seq = 4"), "was changed"),
    (
        sql("payloads", "body = 'text'", "kind = 'result'"),
        "its stored result cannot be opened",
    ),
    (
        sql("payloads", "body = (SELECT body FROM payloads WHERE kind = 'arguments')", "kind = 'result'"),
        "its stored result cannot be opened",
    ),
    (sql("votes", "user = 'user:cyd'"), "its votes are not those that its events tell"),
    (sql("votes", ""), "its votes are not those that its events tell"),
    (sql("approvals", "binding = 'x'"), "what it shows is not what people were asked"),
    (sql("votes", "") + sql("approvals", ""), "people were asked about it, and the request is gone"),
    (sql("accounts", "posted = posted - 1", "unit = 'eur'"), "posted is 4, and its moves make 5"),
    (sql("accounts", "held = held + 1", "unit = 'eur'"), "held is 1, and its holds make 0"),
    (sql("budget_moves", "", "kind = 'post' AND amount = 5"), "posted is 5, and its moves make 0"),
    (sql("accounts", "", "unit = 'eur'"), "it has moves or holds, and no balance"),
    (sql("holds", "state = 'held', posted = 0", "unit = 'eur'"), "it is succeeded, and still holds"),
]


@contextmanager
def tampering(path: Path) -> Generator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as db, db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        yield db


@pytest.mark.parametrize(("changes", "finding"), CHANGES)
async def test_whatever_is_changed_by_hand_is_found(
    tmp_path: Path, changes: tuple[str, ...], finding: str
) -> None:
    path = await some_records(tmp_path)
    with tampering(path) as db:
        for change in changes:
            assert db.execute(change).rowcount >= 1
    assert any(finding in found for found in found_in(path)), found_in(path)


async def test_a_stream_cut_short_together_with_its_own_register_is_found_by_the_next(tmp_path: Path) -> None:
    clock = Clock()
    for _ in range(2):
        async with a_remit(tmp_path, clock=clock) as remit:
            await remit.done("shop.look", {"thing": "pen"})
    with tampering(remit.path) as db:
        (stream,) = db.execute("SELECT id FROM incarnations ORDER BY started_us").fetchone()
        db.execute("DELETE FROM events WHERE stream = ? AND seq > 1", (stream,))
        (head,) = db.execute("SELECT hash FROM events WHERE stream = ?", (stream,)).fetchone()
        db.execute("UPDATE incarnations SET last_seq = 1, head = ? WHERE id = ?", (head, stream))
    with open_records(remit.path) as records:
        found = [str(finding) for finding in verify_events(records)]
    assert [one for one in found if "a later stream saw another event here" in one], found


async def test_erased_payloads_leave_no_flaw(tmp_path: Path) -> None:
    path = await some_records(tmp_path)
    with tampering(path) as db:
        db.execute("DELETE FROM payloads")
    assert found_in(path) == []
    with open_records(path) as records:
        assert records.story(records.calls(CallQuery(), limit=1)[0].id).arguments is None


async def test_redacted_arguments_are_no_flaw(tmp_path: Path) -> None:
    rule = "p2, role:clerk, acme, shop.send, execute, 1 == 1, redact=args.text\n"
    async with a_remit(tmp_path, policy=f"{rule}{POLICY}") as remit:
        sent = await remit.done("shop.send", {"text": "my secret"})
    assert found_in(remit.path) == []
    with open_records(remit.path) as records:
        assert records.story(sent.call_id).arguments == {"text": "[redacted]"}


async def test_a_story_has_what_served_the_call_and_what_served_that(tmp_path: Path) -> None:
    rules = tools(
        buy={
            "undo": {
                "call": "shop.give_back",
                "args": {"order": "result.order"},
                "verify": {"call": "shop.look", "args": {"thing": "args.thing"}, "expect": "result.free"},
            }
        }
    )
    async with a_remit(tmp_path, tools=rules) as remit:
        remit.source.on |= {"buy": {"order": "o-1"}, "look": {"free": True}}
        bought = await remit.done("shop.buy", PEN)
        undone = await undo(bought.call_id, a_principal(), "run-1", remit.on)
    assert isinstance(undone, Done)
    with open_records(remit.path) as records:
        story = records.story(bought.call_id)
    assert [(call.kind, call.tool) for call in story.served_by] == [
        ("undo", "shop.give_back"),
        ("verify", "shop.look"),
    ]
    assert story.undo is not None
    assert (story.undo.state, story.undo.undo_call) == ("done", undone.call_id)


async def test_before_images_are_part_of_the_story(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        remit.source.on["look"] = {"value": 1}
        changed = await remit.done("shop.set", {"thing": "pen", "value": 2})
    with open_records(remit.path) as records:
        story = records.story(changed.call_id)
    assert story.before == {"value": 1}
    assert [call.kind for call in story.served_by] == ["before", "after"]


async def test_time_limits_which_calls_are_found(tmp_path: Path) -> None:
    clock = Clock()
    async with a_remit(tmp_path, clock=clock) as remit:
        await remit.done("shop.look", {"thing": "pen"})
        clock.advance(s=60)
        noon = clock.now_us
        clock.advance(s=60)
        later = await remit.done("shop.look", {"thing": "pen"})
    with open_records(remit.path) as records:
        assert [call.id for call in records.calls(CallQuery(since_us=noon), limit=9)] == [later.call_id]
        assert len(records.calls(CallQuery(since_us=0), limit=9)) == 2


async def test_following_events_misses_none_and_repeats_none(tmp_path: Path) -> None:
    seen: list[int] = []
    place = None
    async with a_remit(tmp_path) as remit:
        for _ in range(3):
            await remit.done("shop.look", {"thing": "pen"})
            with open_records(remit.path) as records:
                news, place = records.newest_events(after=place, limit=100)
            seen += [event.seq for event in news]
    assert seen == list(range(1, 8))


async def test_reading_changes_nothing(tmp_path: Path) -> None:
    path = await some_records(tmp_path)
    before = path.read_bytes()
    with open_records(path) as records:
        records.calls(CallQuery(), limit=10)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            list(records.rows("DELETE FROM calls RETURNING id"))
    assert path.read_bytes() == before


async def test_tools_are_named_once_each_from_the_index(tmp_path: Path) -> None:
    with open_records(await some_records(tmp_path)) as records:
        assert records.tools() == ["shop.buy", "shop.look"]


def test_a_file_that_is_no_audit_database_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "remit.db"
    file.write_bytes(b"not a database, but longer than the header of one would be" * 40)
    with pytest.raises(RemitError, match="cannot be read: file is not a database"), open_records(file):
        pass
    file.write_bytes(b"")
    with pytest.raises(RemitError, match="cannot be read: no such table"), open_records(file):
        pass


@pytest.mark.parametrize(("version", "fix"), [("9999", "upgrade Remit"), ("0000", "let it serve once")])
async def test_another_schema_is_refused_with_the_fix(tmp_path: Path, version: str, fix: str) -> None:
    path = await some_records(tmp_path)
    with tampering(path) as db:
        db.execute("UPDATE alembic_version SET version_num = ?", (version,))
    with pytest.raises(RemitError, match=fix), open_records(path):
        pass


async def test_an_id_may_be_shortened_but_not_to_nothing(tmp_path: Path) -> None:
    with open_records(await some_records(tmp_path)) as records:
        call = records.calls(CallQuery(), limit=1)[0]
        assert records.call(call.id) == records.call(call.id[:30]) == call
        for start in ("", "g", call.id + "0", "%"):
            with pytest.raises(UnknownRecord):
                records.call(start)


async def test_every_column_of_a_call_can_be_read(tmp_path: Path) -> None:
    path = await some_records(tmp_path)
    with open_records(path) as records:
        call = records.calls(CallQuery(), limit=1)[0]
    assert {column.name for column in tables.calls.columns} == set(type(call).__slots__) - {"way_back"}
    assert json.dumps(call.policy_rows)
