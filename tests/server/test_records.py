"""Reading records back, and finding out whether they are still what was written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.server.builders import POLICY, Clock, a_principal, a_remit, at_once, tools

from remit import tables
from remit.audit import verify_balances, verify_events
from remit.database import Location, Postgres
from remit.errors import RemitError, UnknownRecord
from remit.model import Done, Pending
from remit.records import CallQuery, open_records
from remit.undo import undo
from remit.verifying import verify

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
        await remit.done("shop.buy", PEN, claim={"goal": "write"})
        waiting = await remit.call("shop.buy", {"thing": "car", "price": 900})
        assert isinstance(waiting, Pending)
        await remit.vote(waiting.approval_id)
        await remit.refused("shop.buy", {"thing": "house", "price": 9000})
        return remit.path


def found_in(path: Path) -> list[str]:
    with open_records(path) as records:
        return list(map(str, (*verify(records, payloads=True), *verify_balances(records))))


async def test_records_that_nobody_touched_have_no_flaw(tmp_path: Path) -> None:
    assert found_in(await some_records(tmp_path)) == []


def sql(table: str, change: str, where: str = "1") -> tuple[str, ...]:
    """An UPDATE (`SET ...`) or DELETE, by somebody who owns the file and is not held up by its triggers."""
    begin = f"UPDATE {table} SET {change}" if change else f"DELETE FROM {table}"  # noqa: S608 - it is the point
    return (f"{begin} WHERE {where}",)


BOUGHT = "tool = 'shop.buy' AND state = 'succeeded'"
OF_IT = f"call_id = (SELECT id FROM calls WHERE {BOUGHT})"  # noqa: S608 - it is ours
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
    (sql("calls", "source = 'till'", BOUGHT), "source is 'till'"),
    (sql("calls", "claim = '{}'", BOUGHT), "its claim is not what its event says"),
    (sql("calls", "claim = NULL", BOUGHT), "its claim is not what its event says"),
    (sql("calls", "claim = '{}'", "tool = 'shop.look'"), "its claim is not what its event says"),
    (sql("calls", "resolution = 'ann says so'", BOUGHT), "resolution is not what its event says"),
    (sql("undos", "", OF_IT), "its way back is gone"),
    (
        sql("undos", "call_id = (SELECT id FROM calls WHERE tool = 'shop.look')", OF_IT),
        "no event says that it has a way back",
    ),
    (sql("undos", "state = 'void'", OF_IT), "its way back is 'void', and its events leave it 'ready'"),
    (sql("undos", "state = 'done', undo_call = 'x'", OF_IT), "its way back is not as its undos have left it"),
    (sql("undos", "tool = 'shop.send'", OF_IT), "tool of its way back is not what its event says"),
    (sql("undos", "refund = 100", OF_IT), "refund of its way back is not what its event says"),
    (sql("undos", "expires_us = expires_us + 1", OF_IT), "expires_us of its way back is not"),
    (sql("undos", "residue = 'all'", OF_IT), "residue of its way back is not what its event says"),
    (sql("undos", "best_effort = 1", OF_IT), "best_effort of its way back is not what its event says"),
    (sql("undos", "resource = NULL", OF_IT), "the resource of its way back is not what its event says"),
    (sql("undos", "resource = 'ink'", OF_IT), "the resource of its way back is not what its event says"),
    (sql("touches", "resource = 'hat'", OF_IT), "what it touched is not what its event says"),
    (sql("touches", "", OF_IT), "what it touched is not what its event says"),
    (
        sql("touches", "call_id = (SELECT id FROM calls WHERE tool = 'shop.look')", OF_IT),
        "what it touched is not what its event says",
    ),
    (
        ("INSERT INTO touches (call_id, resource) SELECT call_id, 'hat' FROM touches",),
        "it touched one thing, and others are named",
    ),
    (
        sql("payloads", "", OF_IT),
        "the arguments of 1 calls are gone, and retention removed those of 0",
    ),
    (
        sql("payloads", "", f"kind = 'undo' AND {OF_IT}"),
        "the ways back of 1 calls are gone, and retention removed those of 0",
    ),
    (sql("payloads", "", f"kind = 'result' AND {OF_IT}"), "its stored result is gone"),
    (sql("payloads", "", f"kind = 'context' AND {OF_IT}"), "its stored context is gone"),
    (sql("payloads", "", "kind = 'shown'"), "its stored shown is gone"),
    (sql("payloads", "", f"kind = 'arguments' AND {OF_IT}"), "its stored arguments are gone"),
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
    (sql("accounts", "posted = posted - 1", "unit = 'eur'"), "posted is 4, and its holds make 5"),
    (sql("accounts", "held = held + 1", "unit = 'eur'"), "held is 1, and its holds make 0"),
    (sql("holds", "", f"unit = 'eur' AND {OF_IT}"), "posted is 5, and its holds make 0"),
    (sql("accounts", "", "unit = 'eur'"), "it has holds or adjustments, and no balance"),
    # Who spent it is what a run is said to have cost.
    (
        sql(
            "holds", "call_id = (SELECT id FROM calls WHERE tool = 'shop.look')", f"unit = 'eur' AND {OF_IT}"
        ),
        "is not what its events say",
    ),
    (sql("holds", "amount = amount + 1", f"unit = 'eur' AND {OF_IT}"), "is not what its events say"),
    (sql("holds", "", f"unit = 'eur' AND {OF_IT}"), "is gone"),
    (sql("holds", "held_us = held_us + 1", f"unit = 'eur' AND {OF_IT}"), "is not what its events say"),
    (
        sql("holds", "state = 'held', posted = 0, resolved_us = NULL", "unit = 'eur'"),
        "it is succeeded, and still holds",
    ),
    # SQLite takes anything for anything.
    (sql("payloads", "call_id = CAST(call_id AS BLOB)", "kind = 'arguments'"), "are gone, and retention"),
    (sql("events", "call_id = CAST(call_id AS BLOB)", "call_id IS NOT NULL"), "column call_id disagrees"),
    (sql("undos", "call_id = CAST(call_id AS BLOB)", "1 = 1"), "its way back is gone"),
    (sql("calls", "id = CAST(id AS BLOB)", "tool = 'shop.look'"), "it has events, and no row in calls"),
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


@pytest.mark.usefixtures("every_database")
async def test_what_an_undo_has_come_to_is_compared_with_what_it_says(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=PRICED, budgets=BUDGETS) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        taken_back = (await remit.done("shop.buy", PEN)).call_id
        in_doubt = (await remit.done("shop.buy", {"thing": "i\0k", "price": 5})).call_id
        await undo(taken_back, a_principal(), "run-1", remit.on)
        remit.source.on["give_back"] = RuntimeError("a bug")
        with pytest.raises(RuntimeError):
            await undo(in_doubt, a_principal(), "run-1", remit.on)
        undone_by = remit.one("SELECT undo_call FROM undos WHERE call_id = ?", in_doubt)["undo_call"]
        assert found_in(remit.path) == []
        ready = "UPDATE undos SET state = 'ready' WHERE call_id = ?"
        for call_id, state in ((taken_back, "done"), (in_doubt, "indeterminate")):
            # It could be taken back a second time.
            changed(remit.path, ready, call_id)
            assert "its way back is not as its undos have left it" in str(found_in(remit.path))
            changed(remit.path, "UPDATE undos SET state = ? WHERE call_id = ?", state, call_id)
        changed(
            remit.path, "UPDATE undos SET state = 'ready', undo_call = NULL WHERE call_id = ?", taken_back
        )
        assert "it was taken back, and its way back does not say so" in str(found_in(remit.path))
        changed(
            remit.path,
            "UPDATE undos SET state = 'done', undo_call = (SELECT id FROM calls WHERE of_call = ?"
            " AND kind = 'undo') WHERE call_id = ?",
            taken_back,
            taken_back,
        )
        # A person says that it did not happen: the way back is open again, and another undo takes it.
        await remit.on.journal.resolve(undone_by, happened=False, reason="looked", by="user:bea", force=True)
        assert found_in(remit.path) == []
        del remit.source.on["give_back"]
        await undo(in_doubt, a_principal(), "run-1", remit.on)
        assert found_in(remit.path) == []
        changed(remit.path, "UPDATE calls SET resolution = 'nobody' WHERE resolution IS NOT NULL")
        assert "resolution is not what its event says" in str(found_in(remit.path))


def changed(at: Location, statement: str, *values: str) -> None:
    """Somebody changes rows by hand."""
    if isinstance(at, Postgres):
        with at_once(at) as db:
            assert db.execute(statement, values) >= 1
    else:
        with closing(sqlite3.connect(at)) as db, db:
            assert db.execute(statement, values).rowcount >= 1


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


async def test_a_story_is_told_in_its_order_though_the_clock_was_set_back(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        asked = await remit.call("shop.buy", {"thing": "car", "price": 500})
        assert isinstance(asked, Pending)
        remit.clock.advance(s=-7200)
        await remit.vote(asked.approval_id)
        await remit.done("shop.buy", {"thing": "car", "price": 500})
    with open_records(remit.path) as records:
        told = [event.kind for event in records.story(asked.call_id).events]
        assert told == ["call.awaiting_approval", "approval.approve", "call.dispatched", "call.succeeded"]
        assert list(verify(records, payloads=True)) == []


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
    assert seen == list(range(1, 9))


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
    with pytest.raises(RemitError, match="cannot be read: it is empty: name the file"), open_records(file):
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
