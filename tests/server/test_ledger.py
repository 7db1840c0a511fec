"""Balances over any history: two processes, refusals, roll-backs, changed limits, restarts.

A model of a few lines says what the balances must be; the ledger must agree after every step, and so must
the moves and the holds in the file.
"""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.crash import books
from tests.server import acme
from tests.server.builders import Clock, a_database

from remit import balances, ledger_sqlite
from remit.database import SqliteReader, exists, reading, sealing
from remit.errors import StoreUnavailable
from remit.journal import open_journal
from remit.ledger import Account, Ledger
from remit.ledger_sqlite import SqliteStore
from remit.model import Charge
from remit.records import open_records
from remit.schema import upgrade
from remit.tables import metadata

ACCOUNTS = ("agent:acme/agent:bot:usd:total", "tenant:acme/acme:usd:total", "tool:acme/t:calls:day")
UNITS = {account: account.rsplit(":", 2)[1] for account in ACCOUNTS}


def a_ledger(path: Path, stream: str, clock: Clock) -> Ledger:
    store = SqliteStore(path, stream=stream, relaxed=True)
    ledger = Ledger(store, stream=stream, role="cli", clock=clock)
    with ledger.transaction(durable=False):
        ledger.begin_life()
    return ledger


@dataclass
class Balance:
    """What one account must hold, said as simply as it can be."""

    limit: int
    held: int = 0
    posted: int = 0

    @property
    def overrun(self) -> int:
        return max(0, self.held + self.posted - self.limit)


@dataclass
class Held:
    amounts: dict[str, int] = field(default_factory=dict[str, int])


class Balances(RuleBasedStateMachine):
    """Calls are holds here: the ledger does not know what a call is."""

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = a_database(Path(self.folder.name))
        self.clock = Clock()
        self.ledgers = [a_ledger(self.path, name, self.clock) for name in ("one", "two")]
        self.reader = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)
        self.reader.row_factory = sqlite3.Row
        self.limits = dict.fromkeys(ACCOUNTS, 20)
        self.model: dict[str, Balance] = {}
        self.calls: dict[str, Held] = {}
        self.made = 0

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.reader.close()
            for ledger in self.ledgers:
                ledger.close()
            self.folder.cleanup()

    def charges(self, accounts: Any, amount: int) -> list[Charge]:
        return [
            Charge(
                account=account,
                window_start_us=0,
                window_end_us=None,
                unit=UNITS[account],
                amount=amount,
                limit=self.limits[account],
                label=account,
            )
            for account in sorted(accounts)
        ]

    def seen(self, account: str) -> Balance:
        balance = self.model.setdefault(account, Balance(limit=self.limits[account]))
        balance.limit = self.limits[account]
        return balance

    @rule(
        who=st.integers(0, 1),
        accounts=st.sets(st.sampled_from(ACCOUNTS), min_size=1),
        amount=st.integers(0, 12),
        fails=st.booleans(),
    )
    def hold(self, who: int, accounts: set[str], amount: int, fails: bool) -> None:
        """Hold on all or on none; sometimes the transaction comes to nothing after it was decided."""
        ledger = self.ledgers[who]
        charges = self.charges(accounts, amount)
        self.made += 1
        call_id = f"call-{self.made}"
        with suppress(InterruptedError), ledger.transaction(durable=False):
            short = balances.too_small(ledger, charges)
            if short is None:
                balances.hold(ledger, call_id, charges)
                ledger.event("call.dispatched", tenant="acme", call_id=call_id)
            if fails:
                raise InterruptedError
        if fails:
            return
        for charge in charges:
            balance = self.seen(charge.account)
            # What costs nothing passes also beyond the limit.
            if amount > max(0, balance.limit - balance.held - balance.posted):
                assert short is not None, f"{charge.account} took more than it has"
                return  # it has looked at the accounts up to this one, and changed at most their limits
        assert short is None, "refused although all accounts have enough"
        for charge in charges:
            self.seen(charge.account).held += amount
        self.calls[call_id] = Held({charge.account: amount for charge in charges})

    @precondition(lambda self: self.calls)
    @rule(
        who=st.integers(0, 1),
        data=st.data(),
        usd=st.integers(0, 40),
        calls=st.none() | st.integers(0, 3),
        fails=st.booleans(),
    )
    def resolve(self, who: int, data: Any, usd: int, calls: int | None, fails: bool) -> None:
        call_id = data.draw(st.sampled_from(sorted(self.calls)))
        costs = {"usd": usd} | ({} if calls is None else {"calls": calls})
        ledger = self.ledgers[who]
        with suppress(InterruptedError), ledger.transaction(durable=False):
            spent = balances.resolve(ledger, call_id, costs)
            ledger.event("call.succeeded", tenant="acme", call_id=call_id)
            if fails:
                raise InterruptedError
        if fails:
            return
        amounts = self.calls.pop(call_id).amounts
        assert {entry["account"]: entry["amount"] for entry in spent} == {
            account: costs.get(UNITS[account], 0) for account in amounts
        }
        for account, amount in amounts.items():
            balance = self.model[account]
            balance.held -= amount
            balance.posted += costs.get(UNITS[account], 0)

    @rule(who=st.integers(0, 1), call=st.integers(0, 5))
    def resolve_again(self, who: int, call: int) -> None:
        """A hold resolves once, and a call without holds costs nothing."""
        done = [f"call-{n}" for n in range(1, self.made + 2) if f"call-{n}" not in self.calls]
        with self.ledgers[who].transaction(durable=False):
            assert balances.resolve(self.ledgers[who], done[call % len(done)], {"usd": 5, "calls": 5}) == []

    @rule(account=st.sampled_from(ACCOUNTS), limit=st.integers(0, 60))
    def change_limit(self, account: str, limit: int) -> None:
        """The operator edits the configuration; the next call that pays there brings it along."""
        self.limits[account] = limit
        ledger = self.ledgers[0]
        with ledger.transaction(durable=False):
            (charge,) = self.charges([account], 0)
            if balances.too_small(ledger, [charge]) is None:
                self.made += 1
                balances.hold(ledger, f"call-{self.made}", [charge])
                self.calls[f"call-{self.made}"] = Held({account: 0})
        self.seen(account)

    @rule(who=st.integers(0, 1))
    def restart(self, who: int) -> None:
        stream = f"again-{self.made}-{who}-{len(self.calls)}"
        self.made += 1
        self.ledgers[who].close()
        self.ledgers[who] = a_ledger(self.path, f"{stream}-{self.made}", self.clock)

    @invariant()
    def the_file_agrees(self) -> None:
        if not hasattr(self, "path"):
            return
        with reading(self.path):
            """What is committed is in its tables from here on."""
        stored = {row["id"]: row for row in self.reader.execute("SELECT * FROM accounts")}
        for account, balance in self.model.items():
            row = stored.get(account)
            if row is None:
                assert (balance.held, balance.posted) == (0, 0)
                continue
            assert (row["held"], row["posted"]) == (balance.held, balance.posted)
            assert row["overrun"] == max(0, row["held"] + row["posted"] - row["limit_amount"])
        wrong = [flaw for flaw in books.budget_flaws(SqliteReader(self.reader)) if "the call is" not in flaw]
        assert wrong == []
        assert list(books.chain_flaws(SqliteReader(self.reader))) == []


TestBalances = Balances.TestCase
TestBalances.settings = settings(
    max_examples=100, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_the_file_itself_keeps_a_balance_whatever_the_code_does(tmp_path: Path) -> None:
    ledger = a_ledger(a_database(tmp_path), "one", Clock())

    def insert(table: str, row: tuple[Any, ...]) -> None:
        with ledger.transaction(durable=False):
            ledger.insert(table, row)
            ledger.write_out()

    account = ("a:acme/x:usd:total", 0, "acme", "usd", 10, 0, 0, 0, 0)
    broken: list[tuple[int, ...]] = [
        (11, 0, 0, 0),
        (-1, 0, 0, 0),
        (5, 6, 0, 0),
        (0, 1, 2, 0),
        (0, 0, 0, -1),
        (0, 0, -1, 0),
    ]
    for held, posted, refunded, overrun in broken:
        with pytest.raises(sqlite3.IntegrityError):
            insert("accounts", (*account[:5], held, posted, refunded, overrun))
    wrong: list[tuple[int, str, int, int | None]] = [
        (-1, "held", 0, None),
        (1, "held", 1, None),
        (1, "held", 0, 2),
        (1, "posted", 0, 2),
        (1, "posted", 1, None),
        (1, "voided", 1, 2),
        (1, "gone", 0, 2),
    ]
    for amount, state, posted, resolved_us in wrong:
        with pytest.raises(sqlite3.IntegrityError):
            insert("holds", ("c", account[0], 0, "usd", amount, state, posted, 0, 1, resolved_us))
    found = Account(("a:acme/x:usd:total", 0), 10, 11, 0, 0, 0)
    with pytest.raises(ValueError, match="would be wrong"), ledger.transaction(durable=False):
        ledger.changes(found)
    ledger.close()


def test_who_reads_between_two_servers_goes_by_the_write_ahead_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = a_database(tmp_path)
    a_ledger(path, "one", Clock()).close()
    assert path.read_bytes()[18:20] == b"\2\2"
    assert not Path(f"{path}-wal").exists()
    with reading(path) as db:
        before = db.one("SELECT COUNT(*) AS n FROM events")
        a_ledger(path, "two", Clock()).close()
        assert db.one("SELECT COUNT(*) AS n FROM events") == before
    # A copy on which nobody can write is read all the same.
    copy = tmp_path / "copy" / "remit.db"
    copy.parent.mkdir()
    with closing(sqlite3.connect(path)) as db:
        db.execute("VACUUM INTO ?", (str(copy),))
    a_ledger(copy, "three", Clock()).close()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with reading(copy) as db:
        assert db.one("SELECT COUNT(*) AS n FROM events") != before
    assert [file.name for file in copy.parent.iterdir() if file.suffix != ".lock"] == ["remit.db"]


def test_a_copy_whose_log_cannot_be_read_where_it_is_says_so_and_what_to_do(tmp_path: Path) -> None:
    path = a_database(tmp_path)
    ledger = a_ledger(path, "one", Clock())
    copy = tmp_path / "copy" / "remit.db"
    copy.parent.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    ledger.close()
    if os.geteuid() == 0:  # root may write everywhere, but not through a link to nowhere
        Path(f"{copy}-shm").symlink_to("nowhere/else")
    else:
        copy.parent.chmod(0o500)
    fix = r"copy both files to a folder .* VACUUM INTO"
    with pytest.raises(StoreUnavailable, match=fix) as told, reading(copy) as db:
        db.all("SELECT * FROM events")
    copy.parent.chmod(0o700)
    assert f"{copy}-wal" in str(told.value)
    assert "unable to open" not in str(told.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = a_database(tmp_path)
    ledger = a_ledger(path, "one", Clock())
    Path(f"{path}-wal").chmod(0)
    with pytest.raises(StoreUnavailable, match=r"you may not read .*-wal: "), reading(path):
        pass
    ledger.close()
    tmp_path.chmod(0)
    with pytest.raises(StoreUnavailable, match="nobody can tell whether there is an audit database"):
        exists(path)
    tmp_path.chmod(0o700)


@pytest.fixture
def a_checkpoint_after_each_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_sqlite, "_WAL_MAX_BYTES", 0)
    monkeypatch.setattr(ledger_sqlite, "_COMMITS_BETWEEN_LOOKS", 1)


@contextmanager
def files_of_at_most(size: int) -> Generator[None]:
    """No file of this process grows beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("a_checkpoint_after_each_commit")
def test_a_checkpoint_for_which_there_is_no_room_takes_no_commit_back(tmp_path: Path) -> None:
    path = a_database(tmp_path)
    ledger = a_ledger(path, "one", Clock())
    # What the log takes, and the file does not.
    with files_of_at_most(path.stat().st_size):
        for _ in range(2):
            with ledger.transaction(durable=True):
                ledger.write_out()
                ledger.event("something.else", tenant=None, call_id=None, text="x" * 20_000)
    with reading(path) as db:
        assert db.one("SELECT last_seq, head FROM incarnations")[:] == ledger.position
    ledger.close()


def test_a_log_for_whose_length_there_is_no_room_takes_none(tmp_path: Path) -> None:
    """The rest of the disk is for what else is made beside it, such as keys."""
    path = a_database(tmp_path)
    with files_of_at_most(2**20):
        ledger = a_ledger(path, "one", Clock())
        assert os.stat(f"{path}-wal").st_size < 2**19
    ledger.close()


def test_a_folder_that_takes_no_changes_keeps_nobody_from_ending(tmp_path: Path) -> None:
    path = a_database(tmp_path)
    ledger, other = a_ledger(path, "one", Clock()), a_ledger(path, "two", Clock())
    for name in ("one", "two"):  # what is a folder can neither be opened nor removed as a file
        Path(f"{path}.inc-{name}").unlink()
        Path(f"{path}.inc-{name}").mkdir()
    with other.transaction(durable=True):
        assert other.bury() == [], "nobody can tell whether it is dead"
    for each in (ledger, other):
        with each.transaction(durable=True):
            each.end_life()
        each.close()
    with reading(path) as db:
        assert {row["state"] for row in db.all("SELECT state FROM incarnations")} == {"closed"}


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else(tmp_path: Path) -> None:
    path = a_database(tmp_path)
    killed = (
        "import os, signal, sys; from pathlib import Path; from remit.ledger_sqlite import SqliteStore\n"
        "store = SqliteStore(Path(sys.argv[1]), stream='killed', relaxed=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", killed, str(path)], check=False)
    assert Path(f"{path}.inc-killed").exists(), "it had no row yet"
    starting = SqliteStore(path, stream="starting", relaxed=True)
    assert not Path(f"{path}.inc-killed").exists()

    others = {"inc-notes": "mine", "inc-.db": "", "inc-one.db": ""}
    for suffix, text in others.items():
        Path(f"{path}.{suffix}").write_text(text)
    ledger = a_ledger(path, "one", Clock())
    left = {file.name.removeprefix("remit.db.") for file in tmp_path.glob("remit.db.inc-*")}
    assert left == {*others, "inc-one", "inc-starting"}

    late = Ledger(starting, stream="starting", role="cli", clock=Clock())
    with late.transaction(durable=False):
        late.begin_life()
    with ledger.transaction(durable=True):
        assert ledger.bury() == []
    late.close()
    ledger.close()


def test_a_life_makes_its_file_while_nobody_looks_for_those_of_the_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = a_database(tmp_path)
    hold, turn_is_taken = ledger_sqlite._hold_liveness, False  # pyright: ignore[reportPrivateUsage]

    def seen(liveness: Path) -> int:
        nonlocal turn_is_taken
        with Path(f"{path}.lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                turn_is_taken = True
        return hold(liveness)

    monkeypatch.setattr(ledger_sqlite, "_hold_liveness", seen)
    a_ledger(path, "one", Clock()).close()
    assert turn_is_taken


def test_one_file_by_two_names_is_one_database(tmp_path: Path) -> None:
    path = a_database(tmp_path)
    ledger = a_ledger(path, "one", Clock())
    link = tmp_path / "elsewhere" / "linked.db"
    link.parent.mkdir()
    link.symlink_to(path)

    async def opened() -> None:
        journal = await open_journal(link, role="cli", key="ab" * 32)
        await journal.close()

    anyio.run(opened)
    assert [file.name for file in link.parent.iterdir()] == ["linked.db"]
    with reading(link) as db:
        lives = db.all("SELECT id, state FROM incarnations ORDER BY id = 'one'")
        assert [row["state"] for row in lives] == ["closed", "live"]
    ledger.close()


def test_a_file_with_two_names_is_read_and_not_written_to(tmp_path: Path) -> None:
    path = a_database(tmp_path)
    a_ledger(path, "one", Clock()).close()
    other = tmp_path / "elsewhere" / "linked.db"
    other.parent.mkdir()
    other.hardlink_to(path)
    before = path.read_bytes()

    async def opened() -> None:
        journal = await open_journal(path, role="cli", key="ab" * 32)
        await journal.close()

    def sealed() -> None:
        with sealing(path):
            pass

    for writes in (lambda: anyio.run(opened), lambda: upgrade(other), sealed):
        with pytest.raises(
            StoreUnavailable, match=r"has another name by a hard link.*find / -xdev -samefile"
        ):
            writes()
    for name in (path, other):
        with open_records(name) as found:
            assert found.count("events") == 1
    assert path.read_bytes() == before
    assert not list(other.parent.glob("*lock"))
    other.unlink()
    anyio.run(opened)


def test_who_reads_by_a_second_name_files_nothing_under_a_lock_of_its_own(tmp_path: Path) -> None:
    path = a_database(tmp_path)
    ledger = a_ledger(path, "one", Clock())
    with ledger.transaction(durable=True):
        ledger.event("switch.on", tenant=None, call_id=None)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other = tmp_path / "linked.db"
    other.hardlink_to(path)
    with open_records(other) as found, pytest.raises(StoreUnavailable, match="several names by hard links"):
        found.must_be_whole()
    listed = acme.Terminal(acme.a_place(tmp_path))("calls", "list")
    assert listed.err == "remit: what was recorded last is not shown (remit audit verify says why)\n"
    other.unlink()
    with open_records(path) as found:
        found.must_be_whole()
    ledger.close()


@pytest.mark.parametrize("name", ["which?", "a%41", "a#b&mode=memory"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "remit.db"
    path.parent.mkdir()
    upgrade(path)
    a_ledger(path, "one", Clock()).close()
    with reading(path) as db:
        assert db.one("SELECT COUNT(*) AS n FROM events")[:] == (1,)
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_who_opens_a_database_again_drops_no_lock_of_who_has_it_open(tmp_path: Path) -> None:
    path = a_database(tmp_path)
    ledger = a_ledger(path, "one", Clock())
    log = os.stat(f"{path}-wal")
    upgrade(path)
    # Whoever closes a database last removes its log.
    look = (
        "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT 1 FROM events').connection.close()"
    )
    subprocess.run([sys.executable, "-c", look, str(path)], check=True)
    assert os.stat(f"{path}-wal").st_ino == log.st_ino
    ledger.close()


def test_a_transaction_that_fails_leaves_no_trace_in_memory_either(tmp_path: Path) -> None:
    ledger = a_ledger(a_database(tmp_path), "one", Clock())
    before = ledger.position
    with suppress(ZeroDivisionError), ledger.transaction(durable=True):
        ledger.event("switch.on", tenant=None, call_id=None)
        ledger.execute("INSERT INTO switches VALUES ('kill', 'all', '', '', 'r', 'u', 1)")
        ledger.reload_switches()
        ledger.account("agent:acme/x:usd:total", 0, limit=5).held = 5
        raise ZeroDivisionError
    assert ledger.position == before
    ledger.idle()
    assert ledger.switches == frozenset()
    with ledger.transaction(durable=True):
        assert ledger.account("agent:acme/x:usd:total", 0, limit=5).held == 0
        ledger.event("still.fine", tenant=None, call_id=None)
    assert ledger.position[0] == before[0] + 1
    ledger.close()


def test_every_table_can_be_filled_by_position(tmp_path: Path) -> None:
    """Rows are inserted as tuples: their order is that of the columns in the file."""
    with closing(sqlite3.connect(a_database(tmp_path))) as db:
        for name, table in metadata.tables.items():
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({name})")]
            assert columns == [column.name for column in table.columns], name


@pytest.mark.usefixtures("a_checkpoint_after_each_commit")
def test_who_reads_for_long_holds_up_nobody_who_writes(tmp_path: Path) -> None:
    """A checkpoint that waited for readers would wait ten seconds for each of these transactions."""
    path = a_database(tmp_path)
    ledger = a_ledger(path, "one", Clock())

    def frames() -> int:
        with closing(sqlite3.connect(path)) as db:
            return db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]

    def write() -> None:
        with ledger.transaction(durable=True):
            ledger.event("something.else", tenant=None, call_id=None)

    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM events").fetchall()
        for _ in range(30):
            write()
        grown = frames()
    for _ in range(2):
        write()
    assert frames() < grown, "the log begins anew once nobody reads from it"
    ledger.close()
