"""Several Remits on one PostgreSQL database: who takes over, what is exact, what a lost connection costs."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import asyncpg
import pytest
from tests.postgres import Databases, Server
from tests.server import builders
from tests.server.acme import Terminal, a_place
from tests.server.builders import Gate, Remit, a_remit, at_once, tools, until

from remit import schema
from remit.audit import verify_calls, verify_events
from remit.database import Postgres, exists, reading
from remit.erasing import resume
from remit.errors import Interrupted, RemitError, StoreUnavailable
from remit.journal import Journal, open_journal
from remit.ledger import Ledger
from remit.model import Done, Failed, InDoubt, Pending, Refused
from remit.postgres import Session
from remit.records import open_records
from remit.redo import NOT_THERE, Gathered
from remit.schema import HEAD, fresh, upgrade
from remit.sealer import seal

MANY = {"per_agent": 10_000, "per_source": 10_000}
TEN_USD: dict[str, Any] = {
    "tools": tools(send={"price": {"usd": {"estimate": "len(args.text)", "actual": "result.paid"}}}),
    "budgets": [{"scope": "agent", "unit": "usd", "window": "total", "limit": 10}],
}
FIFTY = [{"scope": "agent", "unit": "calls", "window": "total", "limit": 50}]


@pytest.fixture(autouse=True)
def on_postgres(postgres: Databases) -> Any:
    builders.databases = postgres
    yield
    builders.databases = None


def a_cut(remit: Remit) -> None:
    """Every connection to the database of this Remit breaks, but for the one that cuts."""
    assert isinstance(remit.path, Postgres)
    with at_once(remit.path) as db:
        db.all(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid()"
        )


async def test_what_people_say_on_one_replica_counts_on_all(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as one, a_remit(tmp_path, clock=one.clock) as other:
        asked = await one.call("shop.buy", {"thing": "car", "price": 500})
        assert isinstance(asked, Pending)
        await other.vote(asked.approval_id)
        assert isinstance(await one.call("shop.buy", {"thing": "car", "price": 500}), Done)
        await one.switch("kill", "all")
        assert (await other.refused("shop.send", {"text": "hi"})).verdict.code == "stopped"
        # What nobody asks about is noticed by itself, too.
        await one.switch("kill", "all", on=False)
        await until(lambda: not other.on.journal.switches)


async def test_a_budget_is_exact_whoever_spends_it(tmp_path: Path) -> None:
    async with (
        a_remit(tmp_path, budgets=FIFTY, limits=MANY) as one,
        a_remit(tmp_path, budgets=FIFTY, limits=MANY, clock=one.clock) as other,
    ):
        outcomes = await asyncio.gather(
            *((one, other)[n % 2].call("shop.look", {"thing": str(n)}) for n in range(200))
        )
        assert sum(isinstance(outcome, Done) for outcome in outcomes) == 50
        assert len(one.source.sent) + len(other.source.sent) == 50
        assert one.one("SELECT posted, overrun FROM accounts") == {"posted": 50, "overrun": 0}


@pytest.fixture
def unlooking(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others write is noticed by who writes, and not by the way."""
    monkeypatch.setattr("remit.ledger.Ledger.idle", lambda ledger: None)
    monkeypatch.setattr("remit.ledger_postgres.PostgresStore._due", lambda store: False)


@pytest.mark.usefixtures("unlooking")
async def test_a_call_that_is_alone_is_recorded_in_two_round_trips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_remit(tmp_path, budgets=FIFTY) as remit:
        for text in ("one", "two"):
            await remit.done("shop.send", {"text": text})
        trips: list[object] = []
        run = Session._run
        monkeypatch.setattr(
            Session, "_run", lambda session, work: (trips.append(work), run(session, work))[1]
        )
        await remit.done("shop.send", {"text": "three"})
        assert len(trips) == 2


@pytest.mark.usefixtures("unlooking")
async def test_who_spends_what_another_replica_has_spent_is_refused(tmp_path: Path) -> None:
    async with a_remit(tmp_path, **TEN_USD) as one, a_remit(tmp_path, **TEN_USD, clock=one.clock) as other:
        await one.done("shop.send", {"text": "mine"})
        await other.done("shop.send", {"text": "yours"})
        # As far as it knows, six are left.
        refused = await one.refused("shop.send", {"text": "mine"})
        assert refused.verdict.code == "budget_exhausted"
        assert one.one("SELECT held, posted, overrun FROM accounts") == {"held": 0, "posted": 9, "overrun": 0}


@pytest.mark.usefixtures("unlooking")
async def test_nobody_is_refused_for_what_another_replica_has_given_back(tmp_path: Path) -> None:
    async with a_remit(tmp_path, **TEN_USD) as one, a_remit(tmp_path, **TEN_USD, clock=one.clock) as other:
        other.source.on["send"] = gate = Gate({"paid": 0})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other.call, "shop.send", {"text": "yours"})
            await other.source.reached()
            await one.done("shop.send", {"text": "mine"})
            await one.refused("shop.send", {"text": "mine"})
            gate.open()
        # As far as it knows, one is left.
        await one.done("shop.send", {"text": "mine"})


async def test_a_broken_connection_is_mended_and_nobody_notices(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.send", {"text": "before"})
        a_cut(remit)
        await remit.done("shop.send", {"text": "after"})


async def test_who_counts_no_writes_any_more_is_refused_until_that_is_mended(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.send", {"text": "before"})
        builders.by_hand(remit.path, "DELETE FROM write_turn")
        await until(lambda: remit.on.journal._ledger._store._seen is None)
        refused = await remit.refused("shop.send", {"text": "meanwhile"})
        assert refused.verdict.code == "audit_unavailable"
        builders.by_hand(remit.path, "INSERT INTO write_turn VALUES (1)")
        await remit.done("shop.send", {"text": "after"})


async def test_a_replica_that_runs_on_while_a_newer_one_upgrades_the_database_lets_nothing_out(
    tmp_path: Path,
) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.send", {"text": "before"})
        builders.by_hand(remit.path, "UPDATE alembic_version SET version_num = '9999'")
        await until(lambda: remit.on.journal._ledger._store._seen is None)
        refused = await remit.refused("shop.send", {"text": "meanwhile"})
        assert refused.verdict.code == "audit_unavailable"
        assert len(remit.source.sent) == 1
        builders.by_hand(remit.path, f"UPDATE alembic_version SET version_num = '{HEAD}'")  # noqa: S608 - ours
        await remit.done("shop.send", {"text": "after"})


async def test_a_connection_that_ends_between_two_answers_is_one_that_broke(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.send", {"text": "before"})
        ask, broken = asyncpg.Connection.fetchrow, [True]

        async def breaks(connection: Any, *sql: Any, **more: Any) -> Any:
            if broken:
                broken.clear()
                raise asyncpg.InternalClientError("cannot switch to state 12; another is in progress")
            return await ask(connection, *sql, **more)

        monkeypatch.setattr(asyncpg.Connection, "fetchrow", breaks)
        await remit.done("shop.send", {"text": "after"})
        assert not broken


async def test_what_a_server_is_set_to_for_others_does_not_hold_here(tmp_path: Path) -> None:
    at = builders.a_database(tmp_path)
    assert isinstance(at, Postgres)
    name = urlsplit(at.url).path[1:]
    with at_once(at) as db:
        for setting in (
            "default_transaction_isolation = 'serializable'",
            "statement_timeout = 20",
            "lock_timeout = 1",
            "idle_in_transaction_session_timeout = 1",
        ):
            db.script(f"ALTER DATABASE {name} SET {setting}")
    with at_once(at) as db, reading(at) as snapshot:
        for session, limit in ((db, "30s"), (snapshot, "0")):
            assert [tuple(row) for row in session.all("SHOW statement_timeout")] == [(limit,)]
        # Who waited for its turn must see what was written meanwhile.
        assert tuple(db.one("SHOW transaction_isolation") or ()) == ("read committed",)
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.send", {"text": "hi"})


@pytest.mark.parametrize(("usual", "here"), [("off", "on"), ("remote_apply", "remote_apply")])
def test_what_is_committed_is_durable_whatever_is_usual_there(tmp_path: Path, usual: str, here: str) -> None:
    at = builders.a_database(tmp_path)
    assert isinstance(at, Postgres)
    with at_once(at) as db:
        db.script(f"ALTER DATABASE {urlsplit(at.url).path[1:]} SET synchronous_commit = '{usual}'")
    with at_once(at) as db:
        assert [tuple(row) for row in db.all("SHOW synchronous_commit")] == [(here,)]


def test_a_url_with_a_setting_that_nobody_knows_is_said_in_a_sentence(tmp_path: Path) -> None:
    at = builders.a_database(tmp_path)
    assert isinstance(at, Postgres)
    more = "&" if "?" in at.url else "?"
    with pytest.raises(StoreUnavailable, match=r'does not know: .*"channel_binding"; remove it from the URL'):
        exists(Postgres(f"{at.url}{more}channel_binding=require", Path()))


def test_a_certificate_that_is_not_believed_is_no_fault_of_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: Any, **__: Any) -> Any:
        raise ssl.SSLCertVerificationError("self-signed certificate")

    monkeypatch.setattr(asyncpg, "connect", refused)
    with pytest.raises(StoreUnavailable, match=r"cannot be reached: .*self-signed certificate"):
        exists(Postgres("postgresql://remit@localhost/remit", Path()))


def test_a_database_that_does_not_answer_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remit.postgres._CONNECT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://remit@127.0.0.1:{silent.getsockname()[1]}/remit"
        with pytest.raises(StoreUnavailable, match="cannot be reached: it did not answer in time"):
            exists(Postgres(url, Path()))


def test_a_database_that_cannot_hold_every_text_is_refused_with_what_to_do(postgres: Databases) -> None:
    url = postgres.empty()
    name = urlsplit(url).path[1:]
    with postgres._administering() as admin:
        admin.script(f"DROP DATABASE {name}")
        admin.script(f"CREATE DATABASE {name} ENCODING latin1 LOCALE 'C' TEMPLATE template0")
    with pytest.raises(RemitError, match=r"has the encoding LATIN1, .* ENCODING 'UTF8'"):
        upgrade(Postgres(url, Path()))


def test_an_upgrade_and_a_long_read_take_as_long_as_they_take(
    postgres: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = Postgres(postgres.empty(), Path())
    with at_once(at) as db:
        db.script(f"ALTER DATABASE {urlsplit(at.url).path[1:]} SET statement_timeout = 400")
    made = schema.statements(None)
    monkeypatch.setattr("remit.postgres._ANSWER_S", 0.5)
    monkeypatch.setattr("remit.schema.statements", lambda _: f"SELECT pg_sleep(0.8); {made}")
    upgrade(at)
    with reading(at) as db:
        assert len(list(db.rows("SELECT pg_sleep(0.8)"))) == 1


async def test_who_serves_while_others_upgrade_writes_nothing_by_the_old_schema(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        assert isinstance(remit.path, Postgres)
        await remit.done("shop.send", {"text": "before"})
        builders.by_hand(remit.path, "UPDATE alembic_version SET version_num = '0003'")
        upgrade(remit.path)
        await remit.done("shop.send", {"text": "the same schema"})
        # As an upgrade by a newer Remit would.
        builders.by_hand(remit.path, "UPDATE alembic_version SET version_num = '9999'")
        builders.by_hand(remit.path, "UPDATE write_turn SET writes = writes + 1")
        refused = await remit.refused("shop.send", {"text": "after"})
        assert refused.verdict.code == "audit_unavailable"
        with pytest.raises(StoreUnavailable, match=r"has schema 9999 by now.* start it again"):
            await remit.switch("kill", "all")
        builders.by_hand(remit.path, "UPDATE alembic_version SET version_num = '0003'")
        upgrade(remit.path)


def test_an_upgrade_is_told_to_those_who_serve(postgres: Databases) -> None:
    at = Postgres(postgres.fresh(), Path())
    with at_once(at) as db:
        before = db.one("SELECT writes FROM write_turn")
        db.script("UPDATE alembic_version SET version_num = '0003'")
        upgrade(at)
        after = db.one("SELECT writes FROM write_turn")
    assert before
    assert after
    assert after["writes"] == before["writes"] + 1


async def test_a_function_that_is_gone_is_said_in_a_sentence(tmp_path: Path) -> None:
    at = builders.a_database(tmp_path)
    assert isinstance(at, Postgres)
    with at_once(at) as db:
        db.script("DROP FUNCTION remit_write")
    with pytest.raises(StoreUnavailable, match="cannot be used: function remit_write"):
        await open_journal(at, role="http")


@pytest.mark.usefixtures("unlooking")
async def test_a_connection_that_broke_before_anything_was_sent_leaves_no_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.send", {"text": "before"})
        store: Any = remit.on.journal._ledger._store
        a_cut(remit)
        await until(store._session.hung_up)
        monkeypatch.setattr(Ledger, "_was_committed", lambda ledger: pytest.fail("nothing was committed"))
        await remit.done("shop.send", {"text": "after"})


class Broken:
    """A connection that breaks at the commits that say so, before or after the server has heard them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.next: Callable[[Callable[[], Any], Session], Any] | None = None
        #: The commit at which it broke.
        self.said: tuple[str, Sequence[Any]] = ("", ())
        script, one = Session.script, Session.one
        monkeypatch.setattr(
            Session, "script", lambda at, sql, **more: self._say(at, sql, lambda: script(at, sql, **more))
        )
        monkeypatch.setattr(
            Session,
            "one",
            lambda at, sql, values=(), **more: self._say(
                at, sql, lambda: one(at, sql, values, **more), values
            ),
        )

    def _say(self, session: Session, sql: str, say: Callable[[], Any], values: Sequence[Any] = ()) -> Any:
        at_once = sql.startswith("SELECT remit_write") and values[0] is not None
        if self.next and (at_once or sql.endswith("COMMIT")):
            at, self.next = self.next, None
            self.said = sql, values
            return at(say, session)
        return say()

    def unheard(self, say: Callable[[], Any], session: Session) -> Any:
        session._db.terminate()
        return say()

    def unanswered(self, say: Callable[[], Any], session: Session) -> Any:
        say()
        return self.unheard(say, session)


@pytest.mark.parametrize("how", ["unheard", "unanswered"])
async def test_a_commit_whose_answer_is_lost_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async with a_remit(tmp_path) as remit:
        broken = Broken(monkeypatch)
        remit.source.on["send"] = Gate()
        async with anyio.create_task_group() as tasks:
            broken.next = getattr(broken, how)  # as the call is let out
            tasks.start_soon(remit.call, "shop.send", {"text": "hi"})
            await remit.source.reached()
            broken.next = getattr(broken, how)  # as its end is recorded
            remit.source.on["send"].open()
        assert broken.next is None
        assert remit.rows("SELECT state FROM calls") == [{"state": "succeeded"}]
        assert len(remit.source.sent) == 1
        assert remit.rows("SELECT state FROM incarnations") == [{"state": "live"}]


@pytest.mark.usefixtures("unlooking")
async def test_a_commit_that_arrives_when_it_was_given_up_comes_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.send", {"text": "hi"})
        broken, was_committed = Broken(monkeypatch), Ledger._was_committed
        wrote: list[Any] = []

        def then_it_arrives(self: Ledger) -> bool:
            assert not was_committed(self)
            assert isinstance(remit.path, Postgres)
            with at_once(remit.path) as db:
                wrote.extend(db.all(*broken.said))
            return False

        monkeypatch.setattr(Ledger, "_was_committed", then_it_arrives)
        broken.next = broken.unheard
        await remit.done("shop.send", {"text": "ho"})
        assert [row["wrote"] for row in wrote] == [False]


async def test_a_commit_that_nobody_can_be_asked_about_ends_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remit.ledger._UNSURE_S", 0.0)
    async with a_remit(tmp_path) as remit:
        broken = Broken(monkeypatch)

        def gone(say: Callable[[], Any], session: Session) -> Any:
            monkeypatch.setattr("remit.ledger_postgres.Session", away)
            return broken.unanswered(say, session)

        def away(*args: Any, **more: Any) -> Session:
            raise StoreUnavailable("the server is away")

        broken.next = gone
        refused = await remit.refused("shop.send", {"text": "hi"})
        assert refused.verdict.code == "audit_unavailable"
        assert remit.source.sent == []
        monkeypatch.setattr("remit.ledger_postgres.Session", Session)
        # It lives on under another name; what it let out and never sent is nobody's to believe in.
        await remit.done("shop.send", {"text": "ho"})
        await remit.on.journal.take_over()
        states = remit.rows("SELECT state FROM calls ORDER BY created_us")
        assert [row["state"] for row in states] == ["in_doubt", "succeeded"]


async def test_what_may_be_committed_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remit.ledger._UNSURE_S", 0.0)
    async with a_remit(tmp_path) as remit:
        broken = Broken(monkeypatch)

        def gone(say: Callable[[], Any], session: Session) -> Any:
            monkeypatch.setattr("remit.ledger_postgres.Session", away)
            return broken.unanswered(say, session)

        def away(*args: Any, **more: Any) -> Session:
            monkeypatch.setattr("remit.ledger_postgres.Session", Session)  # it is back when asked again
            raise Interrupted("nobody listens there")

        broken.next = gone
        with pytest.raises(StoreUnavailable, match="nobody listens"):
            await remit.switch("kill", "all")
        assert remit.one("SELECT count(*) AS said FROM events WHERE kind LIKE 'switch%'") == {"said": 1}


@pytest.mark.usefixtures("unlooking")
@pytest.mark.parametrize("said", ["SELECT remit_write", "BEGIN"])
async def test_a_connection_that_leaves_a_call_unanswered_is_given_up_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """As when the process of the server that it leads to is stopped."""
    async with a_server(), a_remit(tmp_path) as remit:
        await remit.done("shop.send", {"text": "before"})
        store: Any = remit.on.journal._ledger._store
        if said == "BEGIN":
            store._overtaken = 2  # so that it takes its turn first
        pid = store._session._db.get_server_pid()
        monkeypatch.setattr("remit.ledger_postgres.SOON_S", 0.5)
        os.kill(pid, signal.SIGSTOP)
        try:
            outcomes = [await remit.call("shop.send", {"text": text}) for text in ("one", "two")]
        finally:
            os.kill(pid, signal.SIGCONT)
        # What came to nothing for certain is made again; what was not even begun is not.
        assert isinstance(outcomes[0], Done if said != "BEGIN" else Refused)
        assert isinstance(outcomes[1], Done)
        assert store._session._db.get_server_pid() != pid


async def test_who_slept_past_its_lease_lives_on_and_tells_what_it_knows(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as sleeper, a_remit(tmp_path, clock=sleeper.clock) as other:
        gate = Gate()
        sleeper.source.on["send"] = gate
        outcomes: list[Any] = []

        async def send() -> None:
            outcomes.append(await sleeper.call("shop.send", {"text": "hi"}))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await sleeper.source.reached()
            asleep(sleeper)
            await other.on.journal.take_over()
            assert other.rows("SELECT state FROM calls") == [{"state": "in_doubt"}]
            awake(sleeper)
            gate.open()
        assert isinstance(outcomes[0], Done)
        assert other.rows("SELECT state FROM calls") == [{"state": "succeeded"}]
        lives = other.rows("SELECT state FROM incarnations ORDER BY state")
        assert [row["state"] for row in lives] == ["dead", "live", "live"]
        await sleeper.done("shop.send", {"text": "ho"})


async def test_what_a_sleeper_knows_of_somebody_who_was_erased_meanwhile_is_not_kept(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as sleeper, a_remit(tmp_path, clock=sleeper.clock) as other:
        sleeper.source.on["buy"] = gate = Gate({"order": "her-order"})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sleeper.call, "shop.buy", {"thing": "her-thing", "price": 5})
            await sleeper.source.reached()
            asleep(sleeper)
            await other.on.journal.take_over()
            await other.on.journal.erase(tenant="acme", subject="user:ann", reason="", by="user:bea")
            await resume(other.on.journal)
            awake(sleeper)
            gate.open()
        call = other.one("SELECT id, state FROM calls")
        assert call["state"] == "succeeded"
        assert [other.carried(call["id"], kind) for kind in ("result", "undo")] == [None, None]
        assert other.one("SELECT state FROM undos") == {"state": "void"}
        kept = [
            str(row)
            for table in ("calls", "undos", "touches")
            for row in other.rows(f"SELECT * FROM {table}")  # noqa: S608 - ours
        ]
        assert not [row for row in kept if "her-" in row]
        # She is nobody's subject any more, until she does something anew.
        assert other.one("SELECT COUNT(*) AS living FROM subject_keys WHERE wrapped IS NOT NULL") == {
            "living": 0
        }
        with open_records(other.path) as records:
            assert list(verify_calls(records)) == []


async def test_who_slept_between_letting_out_and_sending_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_remit(tmp_path) as sleeper, a_remit(tmp_path, clock=sleeper.clock) as other:
        admit = Journal.admit

        async def nap(self: Journal, *args: Any, **more: Any) -> Any:
            admitted = await admit(self, *args, **more)
            if self is sleeper.on.journal:
                asleep(sleeper)
                await other.on.journal.take_over()
            return admitted

        monkeypatch.setattr(Journal, "admit", nap)
        outcome = await sleeper.call("shop.send", {"text": "hi"})
        assert isinstance(outcome, Failed)
        assert sleeper.source.sent == []
        assert other.rows("SELECT state FROM calls") == [{"state": "failed"}]
        monkeypatch.undo()
        awake(sleeper)


def asleep(remit: Remit) -> None:
    """As if the process had been stopped until its lease was over."""
    store: Any = remit.on.journal._ledger._store
    assert isinstance(remit.path, Postgres)
    store._due = lambda: False
    store._renewed_s = float("-inf")
    with at_once(remit.path) as db:
        db.execute("UPDATE incarnations SET lease_until_us = 0 WHERE id = ?", (store._stream,))


def awake(remit: Remit) -> None:
    del remit.on.journal._ledger._store._due


async def test_a_replica_that_is_stopped_in_its_turn_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_remit(tmp_path) as remit:
        assert isinstance(remit.path, Postgres)
        stopped = Session(remit.path, name="stopped", settings={"idle_in_transaction_session_timeout": "300"})
        stopped.script("BEGIN")
        stopped.all("SELECT * FROM write_turn FOR UPDATE")
        await remit.done("shop.send", {"text": "hi"})
        stopped.close()


async def test_a_server_that_crashes_loses_nothing_and_comes_back(tmp_path: Path) -> None:
    async with a_server() as server, a_remit(tmp_path) as remit:
        await remit.done("shop.send", {"text": "before"})
        await anyio.to_thread.run_sync(server.crash)
        refused = await remit.refused("shop.send", {"text": "while away"})
        assert refused.verdict.code == "audit_unavailable"
        assert len(remit.source.sent) == 1
        await anyio.to_thread.run_sync(server.start)
        await remit.done("shop.send", {"text": "after"})


async def test_an_outcome_is_owed_while_the_server_is_away(tmp_path: Path) -> None:
    async with a_server() as server, a_remit(tmp_path) as remit:
        gate = Gate()
        remit.source.on["send"] = gate
        outcomes: list[Any] = []

        async def send() -> None:
            outcomes.append(await remit.call("shop.send", {"text": "hi"}))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await remit.source.reached()
            await anyio.to_thread.run_sync(server.crash)
            gate.open()
        assert isinstance(outcomes[0], InDoubt)
        await anyio.to_thread.run_sync(server.start)
        await remit.on.journal.catch_up()
        assert remit.rows("SELECT state FROM calls") == [{"state": "succeeded"}]


async def test_a_database_that_was_put_back_under_a_server_is_noticed_and_stays_so(
    tmp_path: Path, postgres: Databases, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_remit(tmp_path) as remit:
        assert isinstance(remit.path, Postgres)
        await remit.done("shop.send", {"text": "before"})
        with postgres.refused(remit.path.url):
            earlier = postgres.copy(remit.path.url)
        await remit.done("shop.send", {"text": "lost"})
        stream, seq = remit.on.journal.incarnation, remit.on.journal._ledger.position[0] - 1  # it was let out
        with postgres.refused(remit.path.url), postgres._administering() as admin:
            now, then = (urlsplit(url).path[1:] for url in (remit.path.url, earlier))
            admin.script(f"DROP DATABASE {now}")
            admin.script(f"ALTER DATABASE {then} RENAME TO {now}")
            admin.script(f"CREATE DATABASE {then}")
        await remit.done("shop.send", {"text": "after"})
        assert f"has lost what was committed, such as event {seq} of stream {stream}" in caplog.text
        with open_records(remit.path) as records:
            (found,) = verify_events(records)
        assert (found.where, found.what) == (
            f"stream {stream}, event {seq}",
            "a later stream saw another event here, or one that is gone",
        )
        remit.died = True  # or the books would be held against what is gone


@asynccontextmanager
async def a_server() -> AsyncGenerator[Server]:
    """A server of its own, which a test may crash."""
    before = builders.databases
    server = await anyio.to_thread.run_sync(Server)
    try:
        builders.databases = Databases(server.url())
        yield server
    finally:
        builders.databases = before
        server.stop()


GRANTS = """
DROP ROLE IF EXISTS remit_server;
CREATE ROLE remit_server LOGIN;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO remit_server;
REVOKE UPDATE, DELETE ON events, log_runs, log_checkpoints, log_keys FROM remit_server;
REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM remit_server;
"""


async def test_a_server_needs_no_right_to_change_what_is_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = builders.a_database(tmp_path)
    assert isinstance(at, Postgres)
    with at_once(at) as db:
        db.script(GRANTS)
    try:
        monkeypatch.setitem(builders._urls, tmp_path, at.url.replace("//remit@", "//remit_server@"))
        async with a_remit(tmp_path) as remit:
            await remit.done("shop.send", {"text": "hi"})
            await remit.switch("kill", "all")
            assert seal(remit.path)
    finally:
        with at_once(at) as db:
            db.script("DROP OWNED BY remit_server; DROP ROLE remit_server")


def test_who_serves_can_check_the_database_or_is_told_what_that_needs(
    tmp_path: Path, postgres: Databases
) -> None:
    at = Postgres(postgres.fresh(), tmp_path / "remit.db")
    remit = Terminal(a_place(tmp_path, at.url.replace("//remit@", "//remit_server@")))
    with at_once(at) as db:
        db.script(GRANTS)
        try:
            checked = remit("db", "check")
            assert (checked.code, checked.err) == (0, ""), checked
            db.script("DROP TRIGGER events_append_only ON events; ALTER TABLE votes DROP COLUMN comment")
            assert {"votes.comment is missing", "events_append_only is missing"} < {
                *remit("db", "check").out.splitlines()
            }
            (found,) = db.all("SELECT current_database() AS name")
            db.script(f"REVOKE TEMPORARY ON DATABASE {found['name']} FROM PUBLIC")
            refused = remit("db", "check")
            assert refused.code == 1
            assert "GRANT TEMPORARY ON DATABASE" in refused.err
        finally:
            db.script("DROP OWNED BY remit_server; DROP ROLE remit_server")


def test_who_serves_and_may_not_upgrade_is_told_who_has_to(tmp_path: Path, postgres: Databases) -> None:
    at = Postgres(postgres.fresh(), tmp_path / "remit.db")
    remit = Terminal(a_place(tmp_path, at.url.replace("//remit@", "//remit_server@")))
    with at_once(at) as db:
        db.script(GRANTS)
        try:
            db.script("UPDATE alembic_version SET version_num = '0003'")
            refused = remit("switch", "on", "all", "--reason", "odd refunds")
            assert refused.code != 0
            assert "run `remit db upgrade` as the role that owns the tables" in refused.err
        finally:
            db.script("DROP OWNED BY remit_server; DROP ROLE remit_server")


async def test_events_cannot_be_changed_there_either(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        assert isinstance(remit.path, Postgres)
        with at_once(remit.path) as db:
            for statement in ("UPDATE events SET body = ''", "DELETE FROM events", "TRUNCATE events"):
                with pytest.raises(Exception, match="append-only"):
                    db.script(statement)


async def test_what_is_written_in_one_go_is_exactly_what_was_said(tmp_path: Path) -> None:
    undo = (
        "u",
        "ready",
        "shop.send",
        100,
        None,
        2**63 - 1,
        None,
        'a "\\" and a \u2028 and a \U0001f600',
        True,
    )
    said: dict[str, Any] = {
        "payloads": ("c", "arguments", "", bytes(range(256))),
        "undos": undo,
        "accounts": ("a:acme/x:usd:total", -(2**63), "acme", "usd", 2**63 - 1, 0, 2**53 + 1, 0, 0),
    }
    at = builders.a_database(tmp_path)
    assert isinstance(at, Postgres)
    with at_once(at) as db:
        gathered = Gathered({table: [row] for table, row in said.items()}, {})
        written = db.one("SELECT remit_write(NULL, ?, false)", (gathered.as_json().decode(),))
        assert written
        assert tuple(written) == (True,)
        for table, row in said.items():
            assert [tuple(each) for each in db.all(f"SELECT * FROM {table}")] == [row]  # noqa: S608 - ours


@pytest.mark.parametrize("many", [3, 4, 200])
def test_all_that_is_to_change_changes_and_each_as_was_said_or_nothing_does(
    tmp_path: Path, many: int
) -> None:
    at = builders.a_database(tmp_path)
    assert isinstance(at, Postgres)

    def write(gathered: Gathered) -> None:
        db.one("SELECT remit_write(NULL, ?, false)", (gathered.as_json().decode(),))

    def ended(missing: int | None = None) -> list[tuple[Any, ...]]:
        kept = [n for n in range(many) if n != missing]
        return [("posted", 1 + n, 1_000 + n, f"c{n}", f"a{n}") for n in kept]

    with at_once(at) as db:
        holds = [(f"c{n}", f"a{n}", 0, "usd", 1 + n, "held", 0, 0, 7, None) for n in range(many)]
        write(Gathered({"holds": holds}))
        for wrong in ((*ended(0), ("posted", 1, 2, "c0", "nobody")), (*ended(), ended()[0])):
            with pytest.raises(asyncpg.PostgresError, match="resolve") as refused:
                write(Gathered(updates={"resolve": list(wrong)}))
            assert refused.value.sqlstate == NOT_THERE  # pyright: ignore[reportAttributeAccessIssue]
        assert {row["state"] for row in db.all("SELECT state FROM holds")} == {"held"}
        write(Gathered(updates={"resolve": ended()}))
        found = db.all("SELECT state, posted, resolved_us, call_id, account FROM holds ORDER BY amount")
        assert [tuple(row) for row in found] == ended()


def test_what_writes_by_schema_0003_is_made_anew(tmp_path: Path) -> None:
    at = builders.a_database(tmp_path)
    assert isinstance(at, Postgres)
    with at_once(at) as db:
        made = "CREATE OR REPLACE FUNCTION remit_write(seen bigint, gathered jsonb, lazily boolean)"
        db.script(
            f"{made} RETURNS boolean LANGUAGE sql AS 'SELECT true';"  # noqa: S608 - ours
            " UPDATE alembic_version SET version_num = '0003'"
        )
        assert db.schema() != fresh(at)
        upgrade(at)
        assert db.schema() == fresh(at)


def test_a_function_that_was_changed_is_found(tmp_path: Path) -> None:
    at = builders.a_database(tmp_path)
    assert isinstance(at, Postgres)
    with at_once(at) as db:
        made = db.schema()
        db.script(
            "CREATE OR REPLACE FUNCTION remit_append_only() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN RETURN NULL; END$$"
        )
        changed = db.schema()
    assert made == fresh(at)
    assert {name for name in made if made[name] != changed[name]} == {"remit_append_only"}
