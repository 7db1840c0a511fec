"""The audit database as one transaction sees it, driven by the writer only.

The ledger knows rows, balances and the event chain; it does not know what a call is. `journal.py` says
which of these go together. Inserts, and changes of single rows, are gathered and written at commit, all
together, or as one row of the redo log (`redo.py`). Balances and switches are kept in memory and dropped when
another process has written. Its statements are raw and the same for every database, with `?` for each value;
what differs is in `Store`.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from remit import __version__
from remit.budgets import tenant_and_unit
from remit.chain import GENESIS, canonical, link
from remit.config import AMOUNT_MAX
from remit.database import Row
from remit.errors import Interrupted, StoreUnavailable, Unsure, WrongState
from remit.ids import Clock
from remit.proven import Proof
from remit.redo import Change, Gathered, NotThere, Pile, read_pile
from remit.writer import OthersWrite

if TYPE_CHECKING:
    from remit.runs import Run, RunKey
    from remit.vault import Seal

_ACCOUNTS_MAX = 4096
#: From so many rows on, the redo log is filed while calls wait.
_FILED_ROWS = 1024
#: Where fewer transactions than this were filed, because something was asked, logging them was a waste: so
#: many after them are not logged.
_WORTHWHILE = 4
_NOT_LOGGED = 8
#: How long to ask whether a commit took place whose answer got lost, and the pause between (seconds).
_UNSURE_S = 5.0
_ASK_AGAIN_S = 0.1
_log = logging.getLogger(__name__)
_DEAD = "this process was declared dead by another; restart it"

Values = Sequence[Any]


class Store(Protocol):
    """A connection that writes. Of all processes on one database, one at a time is in a transaction."""

    def begin(self, *, durable: bool, wait: bool) -> bool:
        """Begin; True when others may have written since.

        Without `wait`, raises OthersWrite rather than wait for another process. When this raises, nothing
        was begun. What is `durable` must survive power loss. It may go by what was known, until something is
        asked or committed: that raises Overtaken when others have written since.
        """
        ...

    def write(self, gathered: Gathered, /) -> None:
        """Put it in the tables, for a query that must see it. Raises NotThere."""
        ...

    def commit(self, gathered: Gathered, *, wait: bool) -> None:
        """Put it in the tables, and commit. Raises NotThere, and has not then."""
        ...

    def roll_back(self) -> None:
        """End a transaction that failed, however far it came."""
        ...

    def changed(self) -> bool:
        """Whether others may have written since this, or `begin`, was last asked."""
        ...

    def execute(self, sql: str, values: Values = (), /) -> int:
        """Run an UPDATE or DELETE at once; return how many rows it changed."""
        ...

    def one(self, sql: str, values: Values = (), /) -> Row | None: ...

    def all(self, sql: str, values: Values = (), /) -> Sequence[Row]: ...

    @property
    def holds_lease(self) -> bool:
        """Whether no other process can have taken this one for dead yet."""
        ...

    def lease_until_us(self) -> int | None:
        """Until when a life that begins now is believed to last; None where the system tells its end."""
        ...

    def dead(self, stream: str) -> list[str]:
        """The lives, other than this one, that ended without saying so."""
        ...

    def new_life(self) -> str | None:
        """The stream of another life for a process that was taken for dead; None where it has to end."""
        ...

    @property
    def logs(self) -> bool:
        """Whether a transaction may be kept in a redo log for a while (see `redo.py`)."""
        ...

    def log(self, body: bytes, /) -> None: ...

    def logged(self) -> list[bytes]: ...

    def empty_log(self) -> None: ...

    def overwrite_what_goes(self) -> None: ...

    def tidy(self) -> None:
        """Nothing else is to be done just now."""
        ...

    def close(self) -> None: ...


class TakenForDead(Interrupted):
    """Others have concluded that this process ended: nothing more is written to the stream of that life."""


@dataclass(slots=True)
class Account:
    """A balance in memory."""

    #: Its id, and when its window began.
    key: tuple[str, int]
    limit_amount: int
    held: int
    posted: int
    refunded: int
    overrun: int

    @property
    def left(self) -> int:
        return min(self.limit_amount - self.held - self.posted + self.refunded, self.countable)

    @property
    def countable(self) -> int:
        """What can still be counted, whatever the limit."""
        return max(0, AMOUNT_MAX - self.held - self.posted)

    @property
    def row(self) -> Values:
        """As its table has it, which checks the same; in the redo log nothing else would."""
        spent = self.posted - self.refunded
        if not (
            self.held >= 0
            and 0 <= self.refunded <= self.posted
            and self.overrun >= 0
            and self.held + spent - self.overrun <= self.limit_amount
        ):
            raise ValueError(f"the balance of {self.key[0]} would be wrong: {self}")
        name, start_us = self.key
        amounts = (self.limit_amount, self.held, self.posted, self.refunded, self.overrun)
        return (name, start_us, *tenant_and_unit(name), *amounts)


class Held(NamedTuple):  # made for each call, and three times as fast as a frozen data class
    """What a call holds of one account."""

    account: str
    window_start_us: int
    unit: str
    amount: int


class Ledger:
    def __init__(self, store: Store, *, stream: str, role: str, clock: Clock, config: str = "") -> None:
        self._store = store
        self._clock = clock
        self._role = role
        self._config = config
        self.stream = stream
        #: The streams of this process: more than one when it was taken for dead, and went on.
        self.lives = {stream}
        self._seq = 0
        self._head = GENESIS
        #: To where the newest transaction that no crash may lose has brought which stream.
        self._kept: tuple[str, int, str] | None = None
        self._taken_for_dead = False
        #: The running transaction is the last one of this life.
        self._ends = False
        #: What the running transaction writes and nobody in it has asked about, and what transactions before
        #: it wrote that is only in the redo log.
        self._gathered = Gathered()
        self._pile = Pile()
        #: Of the running transaction: its rows go straight into their tables, and the pile went before them.
        self._straight = False
        self._running = False
        #: So many transactions more go straight: what they ask would file them at once.
        self._not_logged = 0
        #: The calls that are under way here, whose rows nobody else has changed; whether they can be undone.
        self._mine: dict[str, bool] = {}
        #: What calls hold that were let out here and have not ended, until another process writes.
        self.held: dict[str, list[Held]] = {}
        #: The fingerprints of calls in doubt, and of some that were; None while they are not looked up.
        self._doubted: set[str] | None = None
        self._accounts: dict[tuple[str, int], Account] = {}
        #: Those that the running transaction has changed.
        self._changed: dict[tuple[str, int], Account] = {}
        #: Runs that were asked about (see `runs.py`), as of the newest transaction.
        self.runs: dict[RunKey, Run] = {}
        #: What payloads are sealed with (see `vault.py`), by tenant, subjects and further keys.
        self.seals: dict[tuple[str, tuple[str, ...], str], Seal | None] = {}
        #: Every switch that is on: (kind, scope, target, tenant). Replaced whole, so any thread may read it.
        self.switches: frozenset[tuple[str, str, str, str]] = frozenset()
        #: Runs that must be told something (see `notices.py`). Replaced whole, too.
        self.untold: frozenset[RunKey] = frozenset()
        #: Ways back that are proven, by digest (see `proven.py`). Replaced whole, too.
        self.proofs: Mapping[str, Proof] = {}
        #: The time of the running transaction; everything written in it carries this time.
        self.now_us = 0

    # The writer drives these.

    @contextmanager
    def transaction(self, *, durable: bool, wait: bool = True) -> Generator[None]:
        others_wrote = self._store.begin(durable=durable, wait=wait)
        seq, head = self._seq, self._head
        self._running, self._straight = True, not self._store.logs
        try:
            if others_wrote:
                self._forget()
            elif len(self._accounts) > _ACCOUNTS_MAX:
                self._accounts.clear()
            self.now_us = self._clock()
            if self._taken_for_dead:
                seq, head = 0, GENESIS
                self._live_again()
            yield
            gathered = self._flush(seq)
            try:
                self._store.commit(gathered, wait=wait)
            except Unsure as error:
                if self._seq == seq:
                    raise  # there is no event to tell by
                if not self._was_committed():
                    raise Interrupted(str(error)) from None
        except BaseException as error:
            self._roll_back(seq, head)
            if isinstance(error, NotThere):
                raise self._not_there(error) from None
            raise
        finally:
            self._running = False
        if durable and self._seq != seq:
            self._kept = self.stream, self._seq, self._head
        if self._straight:
            self._pile = Pile()
        elif self._gathered:
            self._pile.add(self._gathered)
        self._gathered = Gathered()
        self._changed.clear()
        self._taken_for_dead = False

    def idle(self) -> None:
        try:
            if self._store.changed():
                self._forget()
        except BaseException:
            self._store.roll_back()  # so that whoever comes next reads what is not read now
            raise
        self._file(1)
        self._store.tidy()

    def after_many(self) -> None:
        """A batch was committed and more wait."""
        self._file(_FILED_ROWS)

    def close(self) -> None:
        """Let go of the database; a life that was not ended is for others to conclude."""
        self._store.close()

    # Changes use these.

    @property
    def holds_lease(self) -> bool:
        return self._store.holds_lease

    def begin_life(self) -> None:
        """Register this process life; its stream begins with what the streams before it came to."""
        rows = self.all(
            "SELECT id, last_seq, head FROM incarnations WHERE last_seq > 0 ORDER BY id DESC LIMIT 8"
        )
        heads = {row["id"]: (row["last_seq"], row["head"]) for row in rows}
        if lost := self._lost():
            stream, seq, head = lost
            heads[stream] = seq, head
        host, pid = socket.gethostname(), os.getpid()
        # Not gathered: at commit, it must be there to be moved on.
        self.execute(
            "INSERT INTO incarnations"
            " (id, host, pid, role, state, started_us, ended_us, last_seq, head, lease_until_us)"
            " VALUES (?, ?, ?, ?, 'live', ?, NULL, 0, ?, ?)",
            (
                self.stream,
                host,
                pid,
                self._role,
                self.now_us,
                GENESIS,
                self._store.lease_until_us(),
            ),
        )
        self.event(
            "stream.opened",
            tenant=None,
            call_id=None,
            role=self._role,
            host=host,
            pid=pid,
            software=f"remit {__version__}",
            config=self._config,
            # Seals the streams before this one: whoever truncates them must also rewrite this.
            heads=[{"stream": stream, "seq": seq, "hash": head} for stream, (seq, head) in heads.items()],
        )

    def bury(self) -> list[str]:
        """End the lives of processes that died; return their streams. Their calls are the caller's to end."""
        dead = self._store.dead(self.stream)
        for stream in dead:
            self.execute(
                "UPDATE incarnations SET state = 'dead', ended_us = ? WHERE id = ?", (self.now_us, stream)
            )
            self.event("stream.dead", tenant=None, call_id=None, dead=stream)
        return dead

    def end_life(self) -> None:
        """Say that this process life ends in order: nothing is written after this transaction."""
        self._go_straight()
        self.event("stream.closed", tenant=None, call_id=None)
        self._ends = True

    def insert(self, table: str, row: Values) -> None:
        """Add a row at commit; a query of the same transaction sees it only after `write_out`."""
        self._gathered.inserts.setdefault(table, []).append(row)

    def update(self, change: Change, values: Values) -> None:
        """Change one row, at commit or before the next query. Raises WrongState then when it is not there."""
        self._gathered.update(change, values)

    def begins(self, call_id: str, *, undoable: bool) -> None:
        """This call was let out here."""
        self._mine[call_id] = undoable
        self.held.setdefault(call_id, [])

    def ends(self, call_id: str, *, undoable: bool) -> bool:
        """What changes with this call's end is written now; False when others may have ended it before."""
        if self._mine.pop(call_id, None) is undoable:
            return True
        self._go_straight()  # whether its rows are there is to be seen at once
        return False

    def execute(self, sql: str, values: Values = (), /) -> int:
        """Run an UPDATE or DELETE at once; return how many rows it changed."""
        self._mine.clear()
        self._before_query()
        return self._store.execute(sql, values)

    def one(self, sql: str, values: Values = (), /) -> Row | None:
        self._before_query()
        return self._store.one(sql, values)

    def all(self, sql: str, values: Values = (), /) -> Sequence[Row]:
        self._before_query()
        return self._store.all(sql, values)

    def write_out(self) -> None:
        """Write the rows gathered so far, for a query that must see what changes before it inserted."""
        self._go_straight()
        if gathered := self._take_gathered():
            self._store.write(gathered)

    def in_doubt(self, fingerprint: str) -> bool:
        """Whether an equal call may be in doubt; when not, there is none."""
        if self._doubted is None:
            rows = self.all("SELECT DISTINCT fingerprint FROM calls WHERE state = 'in_doubt'")
            self._doubted = {row["fingerprint"] for row in rows}
        return fingerprint in self._doubted

    def look_up_doubts(self) -> None:
        """A call is in doubt from now on: look them up when they are asked about next."""
        self._doubted = None

    def event(self, kind: str, *, tenant: str | None, call_id: str | None, **facts: Any) -> None:
        """Append one event to this process's stream."""
        self.append(kind, tenant, call_id, facts)

    def append(self, kind: str, tenant: str | None, call_id: str | None, facts: dict[str, Any]) -> None:
        """The same with facts that the caller has made for it: they are completed in place."""
        self._seq += 1
        facts["stream"] = self.stream
        facts["seq"] = self._seq
        facts["at_us"] = self.now_us
        facts["kind"] = kind
        facts["tenant"] = tenant
        facts["call_id"] = call_id
        body = canonical(facts)
        self._head = link(self._head, body)
        self.insert("events", (self.stream, self._seq, self.now_us, kind, tenant, call_id, body, self._head))

    @property
    def position(self) -> tuple[int, str]:
        """The sequence number and hash of the newest event of this stream."""
        return self._seq, self._head

    def overwrite_what_goes(self) -> None:
        """Have no older copy stay of what is deleted or replaced from now on, where that can be had."""
        self._go_straight()
        self._store.overwrite_what_goes()

    def reload_switches(self) -> None:
        rows = self.all("SELECT kind, scope, target, tenant FROM switches")
        self.switches = frozenset((row[0], row[1], row[2], row[3]) for row in rows)

    def reload_untold(self) -> None:
        rows = self.all('SELECT DISTINCT tenant, agent, "user", run FROM notices WHERE told_us IS NULL')
        self.untold = frozenset((row[0], row[1], row[2], row[3]) for row in rows)

    def reload_proofs(self) -> None:
        rows = self.all("SELECT digest, tool, source, \"by\", at_us FROM undo_proofs WHERE state = 'proven'")
        self.proofs = {row["digest"]: Proof(**dict(row)) for row in rows}

    def account(self, account: str, window_start_us: int, *, limit: int) -> Account:
        """The balance of `account`, created with `limit` when the window is new."""
        key = (account, window_start_us)
        found = self._accounts.get(key)
        if found is None:
            row = self.one(
                "SELECT limit_amount, held, posted, refunded, overrun FROM accounts"
                " WHERE id = ? AND window_start_us = ?",
                key,
            )
            found = Account(key, *row) if row else Account(key, limit, 0, 0, 0, 0)
            self._accounts[key] = found
        return found

    def changes(self, account: Account) -> None:
        """This balance is written at commit."""
        self._changed[account.key] = account

    # The rest is its own.

    def _not_there(self, error: NotThere) -> Exception:
        if error.change == "position":
            self._taken_for_dead = True
            return TakenForDead(_DEAD)
        return WrongState("others have concluded meanwhile how this call ended")

    def _was_committed(self) -> bool:
        """Whether a commit took place whose answer got lost: the newest event of the stream tells.

        When nobody can be asked, the stream is given up: what it came to is for whoever takes it over.
        """
        until_s = monotonic() + _UNSURE_S
        while True:
            try:
                # Waits for the transaction, if it is still under way over there; one that has yet to arrive
                # finds that somebody has written, and comes to nothing.
                self._store.begin(durable=True, wait=True)
                row = self._store.one("SELECT last_seq FROM incarnations WHERE id = ?", (self.stream,))
                self._store.execute("UPDATE incarnations SET pid = pid WHERE id = ?", (self.stream,))
                self._store.commit(Gathered(), wait=True)
            except StoreUnavailable as error:
                if monotonic() > until_s:
                    self._taken_for_dead = True
                    raise StoreUnavailable(str(error)) from None  # not to be made again: it may be there
                sleep(_ASK_AGAIN_S)
            else:
                return row is not None and row["last_seq"] == self._seq
            finally:
                self._store.roll_back()  # others may have written meanwhile: nothing is known any more

    def _lost(self) -> tuple[str, int, str] | None:
        """Where a stream of this process had come to, when the database has forgotten that it did."""
        if self._kept is None:
            return None
        stream, seq, _ = self._kept
        row = self.one("SELECT last_seq FROM incarnations WHERE id = ?", (stream,))
        if row is not None and row["last_seq"] >= seq:
            return None
        _log.error(
            "the audit database has lost what was committed, such as event %d of stream %s: an earlier state"
            " was restored, or a standby took over that lacked the newest commits; turn safe mode on, and"
            " compare with the sources",
            seq,
            stream,
        )
        return self._kept

    def _live_again(self) -> None:
        stream = self._store.new_life()
        if stream is None:
            raise StoreUnavailable(_DEAD)
        self.stream, self._seq, self._head = stream, 0, GENESIS
        self.lives.add(stream)
        self.begin_life()

    def _before_query(self) -> None:
        self._go_straight()
        if self._gathered.updates:
            self.write_out()

    def _go_straight(self) -> None:
        """Have the running transaction write its rows into their tables, after those before it."""
        if self._straight or not self._running:
            return
        self._straight = True
        if self._pile.depth:
            if self._pile.depth < _WORTHWHILE:
                self._not_logged = _NOT_LOGGED
            self._pile.file(self._store)
            self._store.empty_log()

    def _file(self, rows: int) -> None:
        """File the pile when it has so many rows, and nobody else writes just now."""
        if self._pile.rows >= rows:
            with suppress(OthersWrite), self.transaction(durable=False, wait=False):
                self._go_straight()

    def _take_gathered(self) -> Gathered:
        gathered, self._gathered = self._gathered, Gathered()
        return gathered

    def _flush(self, seq_before: int) -> Gathered:
        """What is to be written at commit."""
        if not self._straight and (self._not_logged or not self._gathered.is_of_calls):
            self._not_logged = max(0, self._not_logged - 1)
            self._go_straight()
        balances = [account.row for account in self._changed.values()]
        if self._straight:
            gathered = self._take_gathered()
            gathered.accounts = balances
            if self._seq != seq_before:
                gathered.update("position", (self._seq, self._head, self.stream, seq_before))
            if self._ends:
                # Only the stream of one that lives moves on, so it does before it is said to have ended.
                self._store.write(gathered)
                self._store.execute(
                    "UPDATE incarnations SET state = 'closed', ended_us = ? WHERE id = ?",
                    (self.now_us, self.stream),
                )
                return Gathered()
            return gathered
        if self._gathered or balances:
            self._gathered.accounts = balances
            if self._seq != seq_before:
                self._gathered.streams = [(self._seq, self._head, self.stream)]
            self._store.log(self._gathered.as_record())
        return Gathered()

    def _roll_back(self, seq: int, head: str) -> None:
        self._seq, self._head = seq, head
        self._ends = False
        self._gathered = Gathered()
        self._mine.clear()
        self.held.clear()
        self._doubted = None
        self._accounts.clear()
        self._changed.clear()
        self.runs.clear()
        self.seals.clear()
        self._store.roll_back()

    def _forget(self) -> None:
        self._pile = read_pile(self._store.logged())
        if self._seq and self._store.logs and not self._is_as_left():
            raise StoreUnavailable(_DEAD)
        self._mine.clear()
        self.held.clear()
        self._doubted = None
        self._accounts.clear()
        self.runs.clear()
        self.seals.clear()
        self.reload_switches()
        self.reload_untold()
        self.reload_proofs()

    def _is_as_left(self) -> bool:
        """Whether this process is believed to live, and its stream is what it has come to here."""
        row = self._store.one("SELECT state, last_seq, head FROM incarnations WHERE id = ?", (self.stream,))
        if row is None or row["state"] != "live":
            return False
        there = self._pile.position(self.stream) or (row["last_seq"], row["head"])
        return there == self.position
