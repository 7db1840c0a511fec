"""Deliberate faults in durability. Each must be caught by the crash tests, or these prove nothing.

A mutant is a function that changes the running program; it is called in a process that is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from remit import approval_requests, balances, doubts, earlier_calls, ledger_sqlite, pipeline, redo
from remit.journal import Journal, Settled
from remit.ledger import Ledger
from remit.ledger_postgres import PostgresStore
from remit.ledger_sqlite import SqliteStore
from remit.postgres import Session
from remit.procedure import remit_write
from remit_adapters.base import AdapterError


def intent_after_the_effect() -> None:
    """The source is asked before anything is written."""
    admit = Journal.admit

    async def late(self: Journal, call: Any, *args: Any, **more: Any) -> Any:
        if _ADAPTERS and call.tool.effect != "read":
            request = pipeline._request(call, call.id, None, 5.0)
            with suppress(AdapterError):
                call_reply[call.id] = await _ADAPTERS[call.tool.source].run(request)
        return await admit(self, call, *args, **more)

    call_reply: dict[str, Any] = {}
    run = pipeline._run

    async def only_settle(
        call: Any, call_id: str, admitted: Any, decision: Any, before: Any, on: Any, caller: Any
    ) -> Any:
        if call.id in call_reply:
            return await pipeline._settle(call, call_id, decision, call_reply[call.id], before, on)
        return await run(call, call_id, admitted, decision, before, on, caller)

    decide = pipeline.decide

    def noting(call: Any, on: Any) -> Any:
        _ADAPTERS.update(on.adapters)
        return decide(call, on)

    pipeline.decide = noting
    pipeline._run = only_settle
    Journal.admit = late


_ADAPTERS: dict[str, Any] = {}


def success_before_the_effect() -> None:
    """What is recorded is what was hoped for."""
    settle, run = Journal.settle, pipeline._run

    async def early(
        call: Any, call_id: str, admitted: Any, decision: Any, before: Any, on: Any, caller: Any
    ) -> Any:
        await settle(
            on.journal, call, call_id=call_id, state="succeeded", costs={}, reply=b"{}", error=None, plan=None
        )
        return await run(call, call_id, admitted, decision, before, on, caller)

    async def nothing(self: Journal, *args: Any, **more: Any) -> Settled:
        return Settled(event="")

    pipeline._run = early
    Journal.settle = nothing


def dead_left_alone() -> None:
    """Nobody looks for what a dead process left."""
    doubts.take_over = lambda ledger: None


def doubt_given_up_for_failure() -> None:
    """What was under way is taken not to have happened, and its money is given back."""
    execute = SqliteStore.execute

    def failing(self: SqliteStore, sql: str, parameters: Any = ()) -> int:
        if "error_code = 'interrupted'" in sql:
            parameters = ("failed", *parameters[1:])
        return execute(self, sql, parameters)

    SqliteStore.execute = failing
    leave = doubts.leave

    def release(ledger: Ledger, call: Any, stream: str) -> None:
        leave(ledger, {**dict(call), "effect": "read"}, stream)

    doubts.leave = release


def holds_of_the_doubtful_released() -> None:
    leave = doubts.leave

    def release(ledger: Ledger, call: Any, stream: str) -> None:
        leave(ledger, call, stream)
        balances.resolve(ledger, call["id"], {})

    doubts.leave = release


def sweep_without_its_event() -> None:
    leave, event = doubts.leave, Ledger.event

    def silent(ledger: Ledger, call: Any, stream: str) -> None:
        Ledger.event = lambda self, *args, **more: None
        leave(ledger, call, stream)
        Ledger.event = event

    doubts.leave = silent


def keys_forgotten() -> None:
    """Idempotency keys are kept in memory only."""
    earlier_calls.key_of = lambda call: None


def doubt_forgotten() -> None:
    """An equal call is sent again although one is in doubt."""
    one = SqliteStore.one

    def blind(self: SqliteStore, sql: str, parameters: Any = ()) -> Any:
        return None if "state = 'in_doubt' LIMIT 1" in sql else one(self, sql, parameters)

    SqliteStore.one = blind


def undo_not_marked() -> None:
    """Letting an undo out does not use up the plan; only its outcome does."""
    execute = SqliteStore.execute

    def unmarked(self: SqliteStore, sql: str, parameters: Any = ()) -> int:
        if "SET state = 'running'" in sql or parameters[:1] == ("indeterminate",):
            return 0
        return execute(self, sql.replace("AND undo_call = ?", "AND ? <> ''"), parameters)

    SqliteStore.execute = unmarked


def approval_not_used_up() -> None:
    """An approval is marked as used when its call has ended, not when it is let out."""
    use = approval_requests.use

    def keep(ledger: Ledger, call: Any, approved: Any, *args: Any, **more: Any) -> Any:
        refusal = use(ledger, call, approved, *args, **more)
        ledger.execute("UPDATE approvals SET state = 'approved' WHERE id = ?", (approved.approval_id,))
        return refusal

    approval_requests.use = keep


def commits_in_halves() -> None:
    """What was gathered is committed before the balances that belong to it."""
    flush = Ledger._flush

    def halves(self: Ledger, seq_before: int) -> redo.Gathered:
        self.write_out()
        self._store._db.execute("COMMIT")
        self._store._db.execute("BEGIN IMMEDIATE")
        between()
        return flush(self, seq_before)

    Ledger._flush = halves


def log_emptied() -> None:
    """What is in the redo log is thrown away, instead of filed."""
    redo.Pile.file = lambda self, store: None


def ends_not_filed() -> None:
    """Of a call in the redo log, only how it began gets into the tables."""
    redo._Made._change = lambda self, change, rows: None


def between() -> None:
    """Between the two halves of a transaction that should have none."""


# The rest show only where several processes share a database, or where PostgreSQL breaks off.


def fencing_forgotten() -> None:
    """Who was taken for dead, and was only asleep, goes on in the stream of that life."""
    _writing_without(" AND state = 'live'")


def others_unnoticed() -> None:
    """What others wrote since balances were read is not noticed, and is written over."""
    _writing_without(" WHERE writes = seen")


def _writing_without(condition: str) -> None:
    """Have the database write without a look at this."""
    opened = PostgresStore._connected

    def careless(self: PostgresStore) -> Session:
        fresh = self._session is None or not hasattr(self, "careless")
        session = opened(self)
        if fresh:
            self.careless = True
            made = remit_write().replace("CREATE", "CREATE OR REPLACE", 1)
            assert condition in made
            # One at a time, for each life does so.
            session.script(f"SELECT pg_advisory_xact_lock(1); {made.replace(condition, '')}")
        return session

    PostgresStore._connected = careless


def commit_taken_for_lost() -> None:
    """A commit whose answer got lost is made again without a look."""
    Ledger._was_committed = lambda self: False


def commit_taken_for_made() -> None:
    """A commit whose answer got lost is believed in without a look."""
    Ledger._was_committed = lambda self: True


def mail_sent_by_whoever_comes() -> None:
    """What is held back is let out without a look whether it still is."""
    execute = SqliteStore.execute

    def careless(self: SqliteStore, sql: str, values: Any = ()) -> int:
        if sql.startswith("UPDATE calls SET state = 'dispatched', dispatched_us"):
            sql = sql.removesuffix(" AND state = 'scheduled'")
        return execute(self, sql, values)

    SqliteStore.execute = careless


def balances_of_others_ignored() -> None:
    """What other processes have spent is not read again."""
    forget = Ledger._forget

    def keep(self: Ledger) -> None:
        known = dict(self._accounts)
        forget(self)
        self._accounts.update(known)

    Ledger._forget = keep


def the_living_taken_over() -> None:
    """Every other process is taken for dead."""
    ledger_sqlite._is_dead = lambda path: True


def streams_of_the_dead_left_open() -> None:
    """Calls of the dead are concluded, their streams are not."""
    Ledger.bury = lambda self: self._store.dead(self.stream)


def streams_of_the_dead_not_sealed() -> None:
    """A new stream begins without those before it."""
    event = Ledger.event

    def unsealed(self: Ledger, kind: str, **facts: Any) -> None:
        event(self, kind, **{**facts, **({"heads": []} if "heads" in facts else {})})

    Ledger.event = unsealed


def _by_name(*mutants: Callable[[], None]) -> dict[str, Callable[[], None]]:
    return {mutant.__name__: mutant for mutant in mutants}


MUTANTS = _by_name(
    intent_after_the_effect,
    success_before_the_effect,
    dead_left_alone,
    doubt_given_up_for_failure,
    holds_of_the_doubtful_released,
    sweep_without_its_event,
    keys_forgotten,
    doubt_forgotten,
    undo_not_marked,
    approval_not_used_up,
    commits_in_halves,
    log_emptied,
    ends_not_filed,
)
AMONG_SEVERAL = _by_name(
    mail_sent_by_whoever_comes,
    balances_of_others_ignored,
    the_living_taken_over,
    streams_of_the_dead_left_open,
    streams_of_the_dead_not_sealed,
)
ON_POSTGRES = _by_name(fencing_forgotten, others_unnoticed, commit_taken_for_lost, commit_taken_for_made)
