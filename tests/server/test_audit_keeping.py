"""What is kept beside calls (lives, keys, runs, playbooks, trials) is held against what events tell of it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from tests.server.builders import TOOLS, Clock, Remit, a_remit, at_once, by_hand, rows, tools
from tests.server.test_erasing import ABOUT, ROLES
from tests.server.test_notices import BOSS

from remit import verifying
from remit.audit import verify_balances
from remit.chain import GENESIS, canonical, link
from remit.database import Location
from remit.erasing import finish
from remit.ids import uuid7
from remit.records import open_records
from remit.sealer import rotate, seal
from remit.undo import undo
from remit.vault import key_file

#: On SQLite, and on PostgreSQL.
everywhere = pytest.mark.usefixtures("every_database")
NEW_EVENTS = ("stream.dead", "audit.keyed", "audit.cleared")
NEW_FACTS = ("host", "pid", "subjects", "inputs", "cause")


async def a_history(folder: Path) -> Remit:
    """Two customers, one of whom is erased; a playbook and a trial that ended badly; a life cut short."""
    limits = [{"scope": "agent", "unit": "calls", "window": "day", "limit": 100}]
    async with a_remit(folder, policy=ROLES, tools=ABOUT, budgets=limits) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        journal = remit.on.journal
        await remit.done("shop.buy", {"thing": "pen", "price": 5}, run="run-pen")
        cup = await remit.done("shop.buy", {"thing": "cup", "price": 5}, run="run-cup")
        run = uuid7(remit.clock())
        about = {"name": "restock", "digest": "d" * 64, "inputs": {"thing": "pen"}, "by": "user:bea"}
        await journal.begin_playbook(run=run, tenant="acme", anew=False, **about)
        await journal.end_playbook(run=run, tenant="acme", state="failed")
        trial = {"digest": "e" * 64, "tool": "shop.buy", "source": "rehearsal", "by": "user:bea"}
        await journal.note_proof(tenant="acme", call_id=cup.call_id, differs=[], **trial)
        await journal.note_proof(tenant="acme", call_id=cup.call_id, differs=["it is open"], **trial)
        erased = await journal.erase(tenant="acme", subject="customer:cup", reason="asked", by="user:bea")
        await journal.clear([cup.call_id])
        await journal.cleared(erased.uncleared[0])
    async with a_remit(folder, policy=ROLES, tools=ABOUT, clock=Clock(remit.clock() + 10**9)) as remit:
        await remit.on.journal.begin_playbook(run="another", tenant="acme", anew=False, **about)
        remit.die()
        async with a_remit(folder, policy=ROLES, tools=ABOUT, clock=Clock(remit.clock() + 10**9)) as other:
            await other.on.journal.begin_playbook(run="another", tenant="acme", anew=False, **about)
            await other.on.journal.end_playbook(run=run, tenant="acme", state="waits")
    return remit


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return anyio.run(a_history, tmp_path_factory.mktemp("history")).path


def found(at: Location, *, processes: int = 1) -> list[str]:
    with open_records(at) as records:
        findings = [*verifying.verify(records, payloads=True, processes=processes, part=5)]
        return list(map(str, [*findings, *verify_balances(records)]))


def changed(history: Path, to: Path, *statements: str) -> Path:
    shutil.copyfile(history, to)
    shutil.copy(key_file(history), key_file(to))
    with closing(sqlite3.connect(to)) as db, db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            db.execute(statement)
    return to


#: What somebody would gain by, and what is found of it.
ATTACKS = [
    # Who erases one person would erase another.
    ("UPDATE subject_keys SET name = SUBSTR(name, 2) || 'x' WHERE wrapped IS NOT NULL", "its name is not"),
    ("UPDATE subject_keys SET created_us = created_us - 1", "its created_us is not"),
    # What was erased is said to be cleared when it was not, or the key never to have been.
    ("UPDATE subject_keys SET cleared_us = NULL", "its cleared_us is not"),
    ("UPDATE subject_keys SET erased_us = erased_us - 1", "its erased_us is not"),
    ("DELETE FROM subject_keys WHERE wrapped IS NULL", "it is gone"),
    # A rule that asks what the run is about finds nothing.
    ("UPDATE run_facts SET value = 'null' WHERE run = 'run-pen'", "no call established it so"),
    # What failed is proven, or was never tried.
    ("UPDATE undo_proofs SET state = 'proven'", "its state is not"),
    ("DELETE FROM undo_proofs", "trial of shop.buy, eeeeeeeeeeee: it is gone"),
    ("UPDATE playbook_runs SET state = 'done'", "its state is not"),
    ('UPDATE playbook_runs SET inputs = \'{"thing":"cup"}\'', "its inputs are not"),
    ("UPDATE playbook_runs SET incarnation = 'x'", "its incarnation is not"),
    ("DELETE FROM playbook_runs", "it is gone"),
    # What is about somebody who is still there passes for erased.
    (
        "UPDATE payloads SET keys = (SELECT id FROM subject_keys WHERE wrapped IS NULL)"
        " WHERE call_id IN (SELECT id FROM calls WHERE run = 'run-pen')",
        "is erased with the key of somebody whom it is not about",
    ),
    # A key that nothing opens is taken for the living one of somebody.
    (
        "INSERT INTO subject_keys (id, name, tenant, wrapped, created_us)"
        " SELECT 'f', SUBSTR(name, 2) || 'x', tenant, wrapped, created_us FROM subject_keys"
        " WHERE wrapped IS NOT NULL LIMIT 1",
        "key f: it is not wrapped under the master key",
    ),
    ("UPDATE run_facts SET salt = 0", "no call established it so"),
    # What a process did that died, or did not.
    ("UPDATE incarnations SET state = 'closed' WHERE state = 'dead'", "its state is not"),
    ("UPDATE incarnations SET state = 'live', ended_us = NULL WHERE state = 'closed'", "its state is not"),
    ("UPDATE incarnations SET host = 'elsewhere'", "its host is not"),
    (
        "INSERT INTO incarnations (id, host, pid, role, state, started_us, last_seq, head)"
        " SELECT 'x', host, pid, role, 'live', started_us, 0, printf('%064d', 0) FROM incarnations LIMIT 1",
        "stream x: no event says that it began",
    ),
]
#: Of whom calls are about: erasing and holding go by this list.
LISTED = [
    ("DELETE FROM call_subjects", "and not listed so"),
    (
        "INSERT INTO call_subjects (key_id, call_id) SELECT MAX(key_id), MIN(call_id) FROM call_subjects"
        " UNION SELECT MIN(key_id), MAX(call_id) FROM call_subjects"
        " UNION SELECT MAX(key_id), MAX(call_id) FROM call_subjects"
        " UNION SELECT MIN(key_id), MIN(call_id) FROM call_subjects ON CONFLICT DO NOTHING",
        "is listed as about whom key",
    ),
    ("INSERT INTO call_subjects (key_id, call_id) VALUES ('k', 'no call')", "call no call: it is listed"),
]


@pytest.mark.parametrize(("statement", "told"), ATTACKS)
def test_what_somebody_changed_is_told(history: Path, tmp_path: Path, statement: str, told: str) -> None:
    assert any(told in each for each in found(changed(history, tmp_path / "copy.db", statement)))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("statement", "told"), LISTED)
def test_whom_a_call_is_about_is_told_by_however_many_processes(
    history: Path, tmp_path: Path, statement: str, told: str, processes: int
) -> None:
    copy = changed(history, tmp_path / "copy.db", statement.replace("FROM call_subjects ON", _ON))
    assert any(told in each for each in found(copy, processes=processes))


#: SQLite cannot tell this ON from that of a join.
_ON = "FROM call_subjects WHERE true ON"


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("call_id", ["00000000-0000-7000-8000-000000000000", "zzz"])
@pytest.mark.parametrize("table", ["payloads", "undos", "touches", "holds"])
def test_what_is_kept_of_no_call_is_told(
    history: Path, tmp_path: Path, table: str, call_id: str, processes: int
) -> None:
    copy = changed(
        history,
        tmp_path / "copy.db",
        f"CREATE TABLE another AS SELECT * FROM {table} LIMIT 1",  # noqa: S608 - one of the above
        f"UPDATE another SET call_id = '{call_id}'",  # noqa: S608 - as above
        f"INSERT INTO {table} SELECT * FROM another",  # noqa: S608 - as above
        "DROP TABLE another",
    )
    told = f"call {call_id}: something is kept of it, and it has no row in calls"
    assert told in found(copy, processes=processes)


@everywhere
async def test_an_untouched_history_is_sound_on_every_database_and_a_change_is_not(tmp_path: Path) -> None:
    remit = await a_history(tmp_path)
    assert found(remit.path) == found(remit.path, processes=2) == []
    assert [row["state"] for row in remit.rows("SELECT state FROM incarnations")].count("dead") == 1
    for statement in ("UPDATE playbook_runs SET state = 'done'", "DELETE FROM call_subjects"):
        change(remit.path, statement)
    told = found(remit.path)
    assert any("its state is not" in each for each in told)
    assert any("and not listed so" in each for each in told)


def change(at: Location, statement: str) -> None:
    if isinstance(at, Path):
        with closing(sqlite3.connect(at)) as db, db:
            db.execute(statement)
    else:
        with at_once(at) as db:
            db.execute(statement)


@everywhere
async def test_a_server_that_runs_and_one_that_was_killed_are_sound_before_anybody_concludes(
    tmp_path: Path,
) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.send", {"text": "hi"})
        assert found(remit.path) == []
        remit.die()
        assert found(remit.path) == []
        async with a_remit(tmp_path) as other:
            assert {row["state"] for row in other.rows("SELECT state FROM incarnations")} == {"dead", "live"}
            assert found(remit.path) == []


@everywhere
async def test_a_life_ends_with_its_last_event(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        pass
    life = remit.one("SELECT state, ended_us FROM incarnations")
    closed = remit.one("SELECT at_us FROM events WHERE kind = 'stream.closed'")
    assert life == {"state": "closed", "ended_us": closed["at_us"]}


@everywhere
async def test_who_was_erased_and_came_back_is_not_erased_by_the_key_of_before(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ROLES, tools=ABOUT) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        await remit.done("shop.buy", {"thing": "cup", "price": 5})
        erased = await remit.on.journal.erase(tenant="acme", subject="customer:cup", reason="", by="user:bea")
        await finish(remit.on.journal, erased.keys[0], tenant="acme", subject="customer:cup")
        back = await remit.done("shop.buy", {"thing": "cup", "price": 6})
    assert found(remit.path) == []
    by_hand(
        remit.path,
        "UPDATE payloads SET keys = (SELECT id FROM subject_keys WHERE wrapped IS NULL)"  # noqa: S608 - an id of ours
        f" WHERE call_id = '{back.call_id}' AND kind = 'result'",
    )
    said = "its stored result is erased with a key that was destroyed before the call"
    assert found(remit.path) == [f"call {back.call_id}: {said}"]


def older(db: sqlite3.Connection) -> None:
    """The events as an earlier Remit wrote them, which told less, and a life that ended after its last."""
    ends: dict[str, tuple[int, str]] = {}
    told = db.execute("SELECT rowid, stream, kind, body FROM events ORDER BY stream, seq").fetchall()
    db.execute("DELETE FROM events")
    for place, stream, kind, body in told:
        if kind in NEW_EVENTS:
            continue
        seq, head = ends.get(stream, (0, GENESIS))
        facts = {name: value for name, value in json.loads(body).items() if name not in NEW_FACTS}
        facts["seq"] = seq + 1
        if kind == "stream.opened":
            facts["heads"] = []
        text = canonical(facts)
        ends[stream] = seq + 1, link(head, text)
        columns = [facts[name] for name in ("stream", "seq", "at_us", "kind", "tenant", "call_id")]
        db.execute(
            "INSERT INTO events (rowid, stream, seq, at_us, kind, tenant, call_id, body, hash)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (place, *columns, text, ends[stream][1]),
        )
    for stream, (seq, head) in ends.items():
        db.execute("UPDATE incarnations SET last_seq = ?, head = ? WHERE id = ?", (seq, head, stream))
    db.execute("UPDATE incarnations SET ended_us = ended_us + 7")


def test_what_older_events_do_not_say_is_no_finding_and_what_they_say_is_compared(
    history: Path, tmp_path: Path
) -> None:
    copy = changed(history, tmp_path / "copy.db")
    with closing(sqlite3.connect(copy)) as db, db:
        older(db)
    assert found(copy) == []
    for statement in (
        "UPDATE incarnations SET host = 'elsewhere', pid = 1, state = 'dead' WHERE state = 'closed'",
        "UPDATE subject_keys SET cleared_us = 1 WHERE wrapped IS NULL",
        "UPDATE subject_keys SET created_us = 1 WHERE wrapped IS NOT NULL",
        "UPDATE playbook_runs SET inputs = '{}', cause = 'x'",
        "DELETE FROM call_subjects WHERE key_id IN (SELECT id FROM subject_keys WHERE wrapped IS NOT NULL)",
    ):
        assert found(changed(copy, tmp_path / "other.db", statement)) == [], statement
    for statement, told in (
        ("UPDATE incarnations SET role = 'x'", "its role is not"),
        ("UPDATE subject_keys SET name = SUBSTR(name, 2) || 'x'", "of somebody whom it is not about"),
        ("UPDATE incarnations SET started_us = 1", "its started_us is not"),
        ("UPDATE subject_keys SET erased_us = 1 WHERE wrapped IS NULL", "its erased_us is not"),
        ("UPDATE playbook_runs SET ended_us = 1", "its ended_us is not"),
        ("UPDATE undo_proofs SET state = 'proven'", "its state is not"),
        ("UPDATE run_facts SET at_us = 1", "no call established it so"),
    ):
        copied = changed(copy, tmp_path / "other.db", statement)
        assert any(told in each for each in found(copied)), statement


def test_a_life_of_an_earlier_version_that_died_is_dead_when_this_one_says_so(
    history: Path, tmp_path: Path
) -> None:
    copy = changed(history, tmp_path / "copy.db")
    with closing(sqlite3.connect(copy)) as db, db:
        older(db)
        db.execute("UPDATE incarnations SET state = 'live', ended_us = NULL WHERE state = 'dead'")
    shutil.copy(copy, folder_of(tmp_path) / "remit.db")
    shutil.copy(key_file(copy), key_file(folder_of(tmp_path) / "remit.db"))

    async def taken_over() -> Location:
        async with a_remit(folder_of(tmp_path), clock=Clock(2_000_000_000_000_000)) as remit:
            return remit.path

    at = anyio.run(taken_over)
    assert rows(at, "SELECT COUNT(*) AS dead FROM incarnations WHERE state = 'dead'") == [{"dead": 1}]
    assert found(at) == []
    change(at, "UPDATE incarnations SET state = 'closed' WHERE state = 'dead'")
    assert any("its state is not" in each for each in found(at))


def folder_of(tmp_path: Path) -> Path:
    folder = tmp_path / "remit"
    folder.mkdir(exist_ok=True)
    return folder


async def test_what_events_keep_for_ever_names_no_customer(tmp_path: Path) -> None:
    remit = await a_history(tmp_path)
    told = [row["body"] for row in remit.rows("SELECT body FROM events")]
    assert not any("customer:" in body or '"thing"' in body for body in told)


async def test_since_when_a_key_of_the_log_signs_is_what_its_first_checkpoint_says(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.look", {"thing": "pen"})
        seal(remit.path)
        await remit.done("shop.look", {"thing": "cup"})
        rotate(remit.path)
        seal(remit.path)
    assert isinstance(remit.path, Path)
    assert found(remit.path) == []
    for statement in (
        "UPDATE log_keys SET from_size = (SELECT MIN(size) FROM log_checkpoints)",
        "UPDATE log_keys SET from_size = (SELECT MAX(size) FROM log_checkpoints)",
        "UPDATE log_keys SET at_us = at_us + 1",
    ):
        told = found(changed(remit.path, tmp_path / "copy.db", statement))
        assert any("did not sign the first time" in each for each in told), statement
    anchored = "INSERT INTO log_anchors (anchor, size, at_us, signatures) VALUES ('w', 3000, 1, '')"
    told = found(changed(remit.path, tmp_path / "copy.db", anchored))
    assert told == ["anchor w: there was no checkpoint of 3000 entries to be put there"]


async def test_an_account_is_of_the_tenant_and_unit_that_its_id_says(tmp_path: Path) -> None:
    limits = [{"scope": "agent", "unit": "calls", "window": "day", "limit": 1, "on_exceed": "observe"}]
    async with a_remit(tmp_path, budgets=limits) as remit:
        for text in ("one", "two"):
            await remit.done("shop.send", {"text": text})
    assert isinstance(remit.path, Path)
    assert found(remit.path) == []
    for statement, told in (
        ("UPDATE accounts SET tenant = 'else'", "its tenant and unit are not those of its id"),
        ("UPDATE accounts SET unit = 'eur_cent'", "its tenant and unit are not those of its id"),
        ("UPDATE budget_adjustments SET at_us = at_us + 1", "has the time of no event that did it"),
    ):
        assert any(told in each for each in found(changed(remit.path, tmp_path / "copy.db", statement)))


async def test_no_more_comes_back_of_what_a_call_cost_than_its_undo_says(tmp_path: Path) -> None:
    limits = [{"scope": "agent", "unit": "eur", "window": "day", "limit": 100}]
    shop = tools(buy={"price": {"eur": "args.price"}, "undo": {**TOOLS["shop.buy"]["undo"], "refund": 50}})
    async with a_remit(tmp_path, policy=ROLES, tools=shop, budgets=limits) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        bought = await remit.done("shop.buy", {"thing": "pen", "price": 60})
        await undo(bought.call_id, BOSS, "cli-1", remit.on)
    assert isinstance(remit.path, Path)
    assert found(remit.path) == []
    told = found(
        changed(
            remit.path,
            tmp_path / "copy.db",
            "UPDATE budget_adjustments SET amount = amount + 20 WHERE kind = 'refund'",
            "UPDATE holds SET refunded = refunded + 20 WHERE refunded > 0",
            "UPDATE accounts SET refunded = refunded + 20 WHERE refunded > 0",
        )
    )
    assert [each.partition(": ")[2] for each in told] == [
        "what came back to agent:acme/agent:bot:eur:day is not what its undos say"
    ]


async def test_whom_a_legal_hold_is_about_is_what_its_event_says(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ROLES, tools=ABOUT) as remit:
        for target in ("customer:pen", "user:ann"):
            await remit.on.journal.hold(
                tenant="acme",
                scope="subject",
                target=target,
                from_us=None,
                to_us=None,
                reason="a case",
                by="user:bea",
            )
    assert isinstance(remit.path, Path)
    assert found(remit.path) == []
    for target in ("customer:pen", "user:ann"):
        moved = f"UPDATE legal_holds SET target = 'customer:cup' WHERE target = '{target}'"  # noqa: S608 - one of the above
        told = found(changed(remit.path, tmp_path / "copy.db", moved))
        assert [each.partition(": ")[2] for each in told] == ["its target is not what its event says"]


@everywhere
async def test_what_a_run_had_established_and_was_erased_is_established_anew(tmp_path: Path) -> None:
    once = tools(buy={"establishes": {"item": "args.thing"}, "subject": "'customer:' + args.thing"})
    async with a_remit(tmp_path, policy=ROLES, tools=once) as remit:
        first = await remit.done("shop.buy", {"thing": "cup", "price": 5})
        other = await remit.done("shop.buy", {"thing": "pen", "price": 5})
        assert remit.one("SELECT conflict_call FROM run_facts") == {"conflict_call": other.call_id}
        journal = remit.on.journal
        erased = await journal.erase(tenant="acme", subject="customer:cup", reason="asked", by="user:bea")
        await finish(journal, erased.uncleared[0], tenant="acme", subject="customer:cup")
        assert found(remit.path) == []
        again = await remit.done("shop.buy", {"thing": "pen", "price": 6})
        stands = remit.one("SELECT value, call_id, conflict_call FROM run_facts")
        assert stands == {"value": '"pen"', "call_id": again.call_id, "conflict_call": None}
        assert found(remit.path) == []
    change(remit.path, "DELETE FROM run_facts")
    assert set(found(remit.path)) == {
        f"call {call_id}: what it said about item of its run is not kept"
        for call_id in (first.call_id, again.call_id, other.call_id)
    }


@everywhere
async def test_what_is_about_nothing_in_particular_is_touched_once(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        await remit.done("shop.buy", {"thing": "", "price": 5})
        assert remit.rows("SELECT resource FROM touches") == [{"resource": ""}]
    assert found(remit.path) == []
