"""Playbooks that start by themselves: what `playbooks.<name>.on` declares is looked for in the records.

Beside the calls and not in them: a few reads from time to time, and none where nothing is declared. Of all
processes that find the same cause one has the run: the journal begins it in one transaction, which also
keeps the pause between two runs. From then on it is a run like any other. The application looks every other
second, and carries out.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

import anyio.to_thread

from remit.budgets import window
from remit.catalog import covers
from remit.config import Failures, Playbook, Spent, Switched, Trigger
from remit.config_file import Loaded
from remit.database import Reader, Row, reading
from remit.errors import RemitError, StoreUnavailable, WrongState
from remit.ids import uuid7
from remit.pipeline import Services
from remit.playbooks import Run, carry_out, digest, taken_on
from remit_rbac import EvaluationError, compile_expression

_log = logging.getLogger(__name__)
#: Runs that were cut short are carried on while no more than this many are under way here.
_AT_ONCE = 8
#: Its own calls never set a playbook off.
_OF_OTHERS = """NOT (agent = ? AND "user" = ? AND run LIKE 'playbook-%')"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cause:
    """What sets a playbook off, once."""

    id: str
    #: What the trigger's `inputs` read as `trigger`.
    facts: Mapping[str, str]


async def begun(on: Services, loaded: Loaded) -> list[Run]:
    """Look at every trigger, and begin the playbooks whose time it is. Raises StoreUnavailable."""
    runs: list[Run] = []
    for name, book in loaded.config.playbooks.items():
        for trigger in book.on:
            look = _Look(on=on, name=name, book=book, trigger=trigger, now_us=on.clock())
            cause = await anyio.to_thread.run_sync(look.cause)
            try:
                if cause and (run := await _begin(look, cause, loaded)):
                    runs.append(run)
            except EvaluationError as error:
                _log.error("playbook %s cannot start: its inputs cannot be worked out: %s", name, error)
    return runs


async def resumed(on: Services, loaded: Loaded, under_way: Collection[str] = ()) -> list[Run]:
    """Runs that began by themselves and that nobody carries out: for this process to carry on.

    Few at a time, beside those that it has `under_way`: others may take the rest. Raises StoreUnavailable.
    """
    left = await on.journal.take_over_playbooks(
        {name: digest(book) for name, book in loaded.config.playbooks.items()},
        under_way=under_way,
        limit=max(0, _AT_ONCE - len(under_way)),
    )
    return [taken_on(each, on, loaded) for each in left]


async def carried_out(run: Run) -> None:
    """Take the steps of a run; how each ended is recorded. What cuts it short is told to the log."""
    try:
        async for ended in carry_out(run):
            _log.warning("playbook %s, run %s: step %s is %s", run.name, run.id, ended.step, ended.state)
    except WrongState as error:
        _log.warning("playbook %s is left to others: %s", run.name, error)
    except StoreUnavailable as error:
        _log.warning("playbook %s, run %s was cut short, and is carried on: %s", run.name, run.id, error)
    except Exception:  # noqa: BLE001 - a supervisor: a playbook must not end the server
        _log.exception("playbook %s, run %s was cut short: run it again with its inputs", run.name, run.id)
        with suppress(RemitError):  # it is tried again then
            why = "an error that nobody has thought of: the log has it"
            await run.on.journal.end_playbook(
                run=run.id, tenant=run.principal.tenant, state="failed", why=why
            )


async def _begin(look: _Look, cause: _Cause, loaded: Loaded) -> Run | None:
    book, on = look.book, look.on
    inputs = {
        name: str(compile_expression(text, roots=("trigger",))(trigger=cause.facts))
        for name, text in look.trigger.inputs.items()
    }
    run = Run(
        id=uuid7(on.clock()),
        name=look.name,
        inputs=inputs,
        started_us=look.now_us,
        on=on,
        loaded=loaded,
    )
    first = await on.journal.trigger_playbook(
        run=run.id,
        name=run.name,
        digest=digest(book),
        inputs=inputs,
        tenant=book.runs_as.tenant,
        trigger={"on": look.trigger.kind, **cause.facts},
        cause=cause.id,
        every_us=look.every_us,
    )
    return run if first else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """One look for what one trigger of a playbook is about, in the tenant of the playbook."""

    on: Services
    name: str
    book: Playbook
    trigger: Trigger
    now_us: int

    @property
    def every_us(self) -> int:
        return self.trigger.every * 1_000_000

    def cause(self) -> _Cause | None:
        """None also while the pause after the last run lasts."""
        trigger, who = self.trigger, self.book.runs_as
        with reading(self.on.config.store.location) as db:
            last = db.one(
                "SELECT MAX(started_us) AS us FROM playbook_runs"
                # One from much later was begun before the clock was set back: the pause is not that long.
                " WHERE name = ? AND tenant = ? AND cause IS NOT NULL AND started_us < ?",
                (self.name, who.tenant, self.now_us + self.every_us),
            )
            since_us = self.now_us - self.every_us
            if last and last["us"] is not None:
                if last["us"] > since_us:
                    return None
                since_us = max(since_us, last["us"])
            if trigger.failures:
                return self._failures(db, trigger.failures, last["us"] if last else None)
            if trigger.budget:
                return self._spent(db, trigger.budget)
            if trigger.switch:
                return self._switched(db, trigger.switch, since_us)
            return self._labelled(db, since_us)

    def _failures(self, db: Reader, wanted: Failures, last_us: int | None) -> _Cause | None:
        who = self.book.runs_as
        tools = [name for name in self.on.catalog.tools if covers(wanted.tool, name)]
        if not tools:
            return None
        newest = db.all(
            "SELECT id, tool, agent, run, state FROM calls"  # noqa: S608 - only marks and a constant
            f" WHERE tool IN ({_marks(tools)}) AND created_us > ? AND created_us <= ? AND tenant = ?"
            " AND kind = 'call'"
            f" AND state IN ('succeeded', 'failed', 'in_doubt') AND {_OF_OTHERS}"
            " ORDER BY created_us DESC, id DESC LIMIT ?",
            (
                *tools,
                max(self.now_us - wanted.within * 1_000_000, last_us or 0),
                self.now_us,  # what is later was made before the clock was set back
                who.tenant,
                who.agent,
                who.user,
                wanted.of_last,
            ),
        )
        failed = [call for call in newest if call["state"] != "succeeded"]
        if len(newest) < wanted.of_last or len(failed) * 100 < wanted.share * wanted.of_last:
            return None
        return _of_call(failed[0])

    def _labelled(self, db: Reader, since_us: int) -> _Cause | None:
        who, waits = self.book.runs_as, self.on.config.approvals
        tools = [tool for tool in self.on.catalog.tools.values() if self.trigger.label in tool.labels]
        if not tools:
            return None
        # A call may have waited for people, or been held back, before it was let out.
        waited_s = waits.pending + waits.use_within + max(tool.hold_back_s for tool in tools)
        newest = db.one(
            "SELECT id, tool, agent, run FROM calls"  # noqa: S608 - only marks and a constant
            f" WHERE tool IN ({_marks(tools)}) AND created_us > ? AND dispatched_us > ?"
            f" AND dispatched_us <= ? AND tenant = ? AND kind = 'call' AND {_OF_OTHERS}"
            " ORDER BY dispatched_us DESC LIMIT 1",
            (
                *(tool.name for tool in tools),
                since_us - waited_s * 1_000_000,
                since_us,
                self.now_us,
                who.tenant,
                who.agent,
                who.user,
            ),
        )
        return _of_call(newest) if newest else None

    def _spent(self, db: Reader, wanted: Spent) -> _Cause | None:
        tenant = self.book.runs_as.tenant
        first = f"{wanted.scope}:{tenant}/"
        for budget in self.on.config.budgets:
            if (budget.scope, budget.unit) != (wanted.scope, wanted.unit):
                continue
            start_us, _ = window(budget.window, budget.zone, self.now_us)
            account = db.one(
                "SELECT id FROM accounts AS a WHERE id >= ? AND id < ? AND window_start_us = ? AND unit = ?"
                " AND id LIKE ? AND held + posted - refunded > 0"
                " AND (held + posted - refunded) * 100 >= limit_amount * ?"
                " AND NOT EXISTS (SELECT 1 FROM playbook_runs AS p WHERE p.name = ? AND p.tenant = ?"
                " AND p.cause = a.id || ' ' || CAST(a.window_start_us AS TEXT)) ORDER BY id LIMIT 1",
                (
                    first,
                    f"{wanted.scope}:{tenant}0",  # 0 follows /
                    start_us,
                    wanted.unit,
                    f"%:{budget.window}",
                    wanted.at,
                    self.name,
                    tenant,
                ),
            )
            if account:
                name: str = account["id"]
                subject = name.removeprefix(first).removesuffix(f":{wanted.unit}:{budget.window}")
                facts = {"account": name, "unit": wanted.unit, wanted.scope: subject}
                return _Cause(id=f"{name} {start_us}", facts=facts)
        return None

    def _switched(self, db: Reader, wanted: Switched, since_us: int) -> _Cause | None:
        tenant = self.book.runs_as.tenant
        found = db.one(
            "SELECT kind, scope, target, set_us FROM switches WHERE set_us > ? AND set_us <= ?"
            " AND tenant IN ('', ?)"
            " AND (scope <> 'tenant' OR target = ?) AND kind LIKE ? AND scope LIKE ? AND reason NOT LIKE ?"
            " ORDER BY set_us DESC LIMIT 1",
            (
                since_us,
                self.now_us,
                tenant,
                tenant,
                wanted.kind or "%",
                wanted.scope or "%",
                f"playbook {self.name}, run %",
            ),
        )
        if found is None:
            return None
        facts = {name: str(found[name]) for name in ("kind", "scope", "target")}
        cause = f"{' '.join(facts.values())} {found['set_us']}"
        return _Cause(id=cause, facts={**facts, facts["scope"]: facts["target"]})


def _of_call(row: Row) -> _Cause:
    facts = {"call": row["id"], "tool": row["tool"], "agent": row["agent"], "run": row["run"]}
    return _Cause(id=row["id"], facts=facts)


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" for _ in values)
