"""Durable memory: what is written, when, and what goes together. One method is one transaction.

The pipeline's promise rests here: the intent of a call is committed before its effect, the outcome before
its answer, the holds of both with them. Every method checks before it writes, and returns a refusal as a
value without having written. Reading records back for people is `records.py`.

The life of a call is told here, step by step. What else a transaction does, to balances, requests, ways back
and so on, are functions over a `Ledger` in a module of each.

The application opens one journal for each process and closes it; opening registers this process life (an
*incarnation*), takes over what dead ones left, and starts the writer thread.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import anyio
import anyio.to_thread
import orjson

from remit import (
    api_keys,
    approval_requests,
    balances,
    calls_told,
    deferred,
    doubts,
    earlier_calls,
    erasing,
    keeping,
    notices,
    playbook_runs,
    proven,
    refusals,
    runs,
    shortfalls,
    switches,
    trials,
    versions,
    ways_back,
)
from remit.approval_requests import Approved, Waiting
from remit.calls import redacted
from remit.chain import entry
from remit.checks.containment import Switch, concerning
from remit.comparing import Group
from remit.config import Effect
from remit.context import redacted as context_redacted
from remit.database import Location, Postgres, placed
from remit.deferred import Waits
from remit.earlier_calls import Repeated
from remit.erasing import Erasure
from remit.errors import RemitError, StoreUnavailable, WrongState
from remit.identity import KeyRecord, Principal
from remit.ids import Clock, now_us, uuid7
from remit.ledger import Ledger, Store
from remit.ledger_sqlite import SqliteStore, must_be_local
from remit.model import Call, Charge, Recorded, Scalar, UndoPlan, Verdict
from remit.notices import Notice
from remit.playbook_runs import Taken
from remit.proven import Proof
from remit.runs import Run, RunKey
from remit.schema import upgrade
from remit.switches import SwitchKind
from remit.unrecorded import Gap
from remit.vault import Sealer, open_sealer
from remit.versions import Digests, Version
from remit.ways_back import Undoable, UndoEnd
from remit.writer import Writer
from remit_adapters.base import Json, Reply
from remit_rbac import Rung

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The call may be sent: its intent, holds and undo are durable."""

    deadline_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """How the call ended is on record."""

    #: The event that says so, as the Merkle log will have it (`chain.entry`).
    event: str
    #: Which limits have come near, a sentence each.
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """The policy or the run is not any more what the decision was made by; nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saw:
    """What policy saw beside the arguments, for the record."""

    context: Json
    #: The calls that looked its facts up, by fact.
    reads: Mapping[str, str]


@dataclass(slots=True)
class _UnderWay:
    """How many calls are governed just now: those that are within."""

    calls: int = 0

    def __enter__(self) -> None:
        self.calls += 1

    def __exit__(self, *_: object) -> None:
        self.calls -= 1


class Journal:
    def __init__(self, ledger: Ledger, sealer: Sealer, writer: Writer, at: Location) -> None:
        self._ledger = ledger
        self._sealer = sealer
        self._writer = writer
        #: What could not be written, each with what is written instead when others have concluded it.
        self._owed: deque[tuple[Callable[[], object], Callable[[], None]]] = deque()
        self._gap: Gap | None = None
        #: Held while what is owed is written: who closes the journal may come upon who looks again and again.
        self._catching_up = anyio.Lock()
        self._under_way = _UnderWay()
        self.at = at

    @property
    def incarnation(self) -> str:
        return self._ledger.stream

    @property
    def switches(self) -> frozenset[Switch]:
        """Every switch that is on, as of the newest transaction here or the last idle look (≤ 0.25 s)."""
        return self._ledger.switches

    @property
    def untold(self) -> frozenset[RunKey]:
        """The runs that `tell` has something for, as new as `switches`."""
        return self._ledger.untold

    @property
    def proofs(self) -> Mapping[str, Proof]:
        """The ways back that are proven, by digest, as new as `switches`."""
        return self._ledger.proofs

    @property
    def holds_lease(self) -> bool:
        """Whether nobody can have concluded yet that this process is dead, and its calls in doubt."""
        return self._ledger.holds_lease

    @property
    def waited(self) -> bool:
        """As `Writer.waited`."""
        return self._writer.waited

    def under_way(self) -> AbstractContextManager[None]:
        """A call is governed within: what one alone writes needs no company."""
        return self._under_way

    # The life of a call.

    async def refuse(self, call: Call, verdict: Verdict, saw: Saw | None = None) -> None:
        """Record a call that was not let out. It costs nothing.

        One that was held back is called off, or waits on where what it lacks may soon be there.
        """

        def change() -> None:
            if call.scheduled_us is not None:
                if deferred.may_pass(self._ledger, call, verdict.code):
                    if waits := deferred.look_again(self._ledger, call):
                        self._event(
                            "call.postponed",
                            call,
                            due_us=waits.due_us,
                            waits_for=waits.waits_for,
                            lacks=verdict.code,
                        )
                elif deferred.call_off(self._ledger, call.id, (verdict.code, verdict.reason)):
                    notices.leave_not_done(self._ledger, call.id)
                    told = self._digest("error_digest", call, verdict.reason)
                    self._event("call.cancelled", call, **told, **_decision(verdict))
                return
            sealed = self._insert_call(call, verdict, saw, state="denied", finished=True)
            self._event("call.denied", call, **sealed, **_decision(verdict))

        await self._write(change)

    async def repeated(self, call: Call) -> Repeated | None:
        """The equal call that was made before, if there is one. Changes nothing."""
        if call.kind != "call" or call.scheduled_us is not None or call.tool.effect is Effect.READ:
            return None

        def look() -> Repeated | None:
            earlier = earlier_calls.equal_to(self._ledger, self._sealer, call)
            return earlier if isinstance(earlier, Repeated) else None

        return await self._write(look, durable=False)

    async def ask_people(
        self,
        call: Call,
        verdict: Verdict,
        saw: Saw | None = None,
        *,
        binding: str,
        shown: Json,
        votes: int,
        pending_s: int,
    ) -> Waiting | Approved | Repeated | Verdict:
        """Put the call to people, or find what they said to an equal one.

        Equal means the same binding: everything that was shown and will be executed. Returns Approved when
        they agreed and the approval is unused, a Verdict when they refused lately, and Repeated when they
        need not be asked, since the call was made already and is not made twice.
        """

        def change() -> Waiting | Approved | Repeated | Verdict:
            # Whatever people say now of another request for the same.
            if earlier := earlier_calls.equal_to(self._ledger, self._sealer, call):
                return earlier
            said = approval_requests.said(self._ledger, call, verdict, binding)
            if call.undoing:
                asked_us = said.asked_us if isinstance(said, Waiting | Approved) else self._ledger.now_us
                if refusal := ways_back.blocked(
                    self._ledger, self._sealer, call, verdict, asked_us, asking=True
                ):
                    return refusal
            if said:
                return said
            approval_id = uuid7(self._ledger.now_us)
            sealed = self._insert_call(call, verdict, saw, state="awaiting_approval", approval_id=approval_id)
            waiting = approval_requests.put(
                self._ledger, call, approval_id, binding=binding, votes=votes, pending_s=pending_s
            )
            self._sealer.keep(self._sealer.seal_of(call), call.id, "shown", orjson.dumps(shown))
            self._event(
                "call.awaiting_approval",
                call,
                approval_id=approval_id,
                binding=binding,
                votes_needed=votes,
                expires_us=waiting.expires_us,
                **sealed,
                **_decision(verdict),
            )
            return waiting

        return await self._write(change)

    async def admit(
        self,
        call: Call,
        verdict: Verdict,
        charges: Sequence[Charge],
        plan: UndoPlan | None,
        *,
        stopped: Callable[[Call, frozenset[Switch]], Verdict | None],
        in_force: Callable[[], str],
        touches: str | None = None,
        approved: Approved | None = None,
        before: bytes | None = None,
        saw: Saw | None = None,
        run: Run | None = None,
        of_run: Callable[[Run], Run] | None = None,
    ) -> Admitted | Repeated | Moved | Waits | Verdict:
        """Let the call out: the one transaction between deciding and doing.

        Checks again what may have changed since the decision (switches, an equal earlier call, the approval,
        the undo's own state, the balances), then holds the budget, registers the undo and appends the
        intent. A Verdict is a refusal, or says that people must agree first; nothing was written then. Moved
        says that the policy `in_force` is no longer the verdict's, or that the run is no longer the one that
        was decided by, `run`, in what counts of it (`of_run`).

        A call of a deferred tool is let in to wait, with all that goes with it; so is one that a budget
        defers, with nothing held. `let_out` sends it.
        """

        def change() -> Admitted | Repeated | Moved | Waits | Verdict:
            now = self._ledger.now_us
            if other := self._otherwise(call, verdict, stopped, in_force, run, of_run):
                return other
            if earlier := earlier_calls.equal_to(self._ledger, self._sealer, call):
                return earlier
            late = shortfalls.short(self._ledger, call, verdict, charges, agreed=approved is not None)
            if isinstance(late, Verdict):
                return late
            asked_us = approved.asked_us if approved else now
            if call.undoing and (
                refusal := ways_back.blocked(self._ledger, self._sealer, call, verdict, asked_us)
            ):
                return refusal
            if call.confirmation and (
                refusal := earlier_calls.spent(self._ledger, call.confirmation, verdict)
            ):
                return refusal
            waits: Waits | None = None
            deadline_us: int | None = None
            to_hold, way_back = charges, plan
            if late:
                waits = Waits(due_us=deferred.due_us(call, late, now), waits_for=late.account)
                to_hold, way_back = (), deferred.calling_off(call, deferred.waits_until_us(call, late, now))
            elif call.is_held_back:
                waits = Waits(due_us=now + call.tool.hold_back_s * 1_000_000)
            else:
                deadline_us = now + call.tool.timeout_s * 1_000_000
            sealed: Json = {}
            if approved is None:
                state = "scheduled" if waits else "dispatched"
                sealed = self._insert_call(
                    call, verdict, saw, state=state, waits=waits, deadline_us=deadline_us
                )
            elif refusal := approval_requests.use(
                self._ledger, call, approved, verdict, waits=waits, deadline_us=deadline_us
            ):
                return refusal
            elif saw and saw.reads:
                sealed = {"facts": saw.reads}
            if call.kind == "call" and not waits:
                runs.let_out(self._ledger, call)
            call_id = approved.call_id if approved else call.id
            holds = balances.hold(self._ledger, call_id, to_hold)
            if way_back:
                ways_back.register(self._ledger, call_id, way_back, "ready" if waits else "registered")
            if touches is not None and not waits:
                self._ledger.insert("touches", (touches, call_id))
            if approved is None and not waits:
                self._ledger.begins(call_id, undoable=way_back is not None)
            if before is not None and not waits:
                self._sealer.keep(self._sealer.seal_of(call), call_id, "before", before)
            if call.kind == "undo":
                ways_back.take(self._ledger, call, call_id)
            self._event(
                "call.scheduled" if waits else "call.dispatched",
                call,
                call_id=call_id,
                approval_id=approved.approval_id if approved else None,
                confirmation=call.confirmation.id if call.confirmation else None,
                **self._digest("key_digest", call, earlier_calls.key_of(call)),
                **({"due_us": waits.due_us} if waits else {"deadline_us": deadline_us}),
                **({"waits_for": late.account} if late else {}),
                holds=holds,
                undo=ways_back.told(way_back),
                **self._touched(call, touches if not waits else None),
                **({"forced": True} if call.undoing and call.undoing.forced else {}),
                **sealed,
                **_decision(verdict),
            )
            if waits:
                return replace(waits, warnings=balances.near(self._ledger, to_hold))
            assert deadline_us is not None  # noqa: S101 - it waits, or it has a deadline
            return Admitted(deadline_us=deadline_us)

        return await self._write(change)

    async def let_out(
        self,
        call: Call,
        verdict: Verdict,
        charges: Sequence[Charge],
        *,
        stopped: Callable[[Call, frozenset[Switch]], Verdict | None],
        in_force: Callable[[], str],
        plan: UndoPlan | None = None,
        touches: str | None = None,
        before: bytes | None = None,
        run: Run | None = None,
        of_run: Callable[[Run], Run] | None = None,
    ) -> Admitted | Repeated | Moved | Waits | Verdict:
        """Let a call out that was held back, as `admit` does: once, whoever else tries it or cancels it.

        What was held for it stays held; what it pays from must not be overdrawn by now. What has waited for a
        budget is held now, or waits on.
        """

        def change() -> Admitted | Repeated | Moved | Waits | Verdict:
            now = self._ledger.now_us
            if other := self._otherwise(call, verdict, stopped, in_force, run, of_run):
                return other
            if self._sealer.opened(call.id, "arguments") is None:  # erased since it was found to be due
                return refusals.NOT_KEPT
            late = None
            if call.waited:
                agreed = verdict.rung is Rung.APPROVE
                late = shortfalls.short(self._ledger, call, verdict, charges, agreed=agreed)
            elif refusal := shortfalls.overdrawn(self._ledger, charges):
                return refusal
            if isinstance(late, Verdict):
                return late
            if late:
                return self._wait_on(call, late)
            deadline_us = now + call.tool.timeout_s * 1_000_000
            if not deferred.let_out(self._ledger, call.id, deadline_us):
                return Repeated(call_id=call.id, state="dispatched", reply=None)
            runs.let_out(self._ledger, call)
            if touches is not None:
                self._ledger.insert("touches", (touches, call.id))
            more: Json = {}
            if call.waited:
                holds = balances.hold(self._ledger, call.id, charges)
                way_back = plan if call.tool.effect is not Effect.DEFERRED else None
                if way_back:
                    self._ledger.execute("DELETE FROM undos WHERE call_id = ?", (call.id,))
                    ways_back.register(self._ledger, call.id, way_back, "registered")
                if before is not None:
                    self._sealer.keep(self._sealer.seal_of(call), call.id, "before", before)
                more = {"holds": holds, "undo": ways_back.told(way_back)}
            more |= self._touched(call, touches)
            self._event("call.dispatched", call, deadline_us=deadline_us, **more, **_decision(verdict))
            return Admitted(deadline_us=deadline_us)

        return await self._write(change)

    async def cancel(self, call: Call, verdict: Verdict, approved: Approved | None) -> str | Verdict:
        """Call off the call that `call` takes back, if it has not been sent; both are one record then.

        Returns the event that says so (`chain.entry`), or the refusal when it is too late.
        """

        def change() -> str | Verdict:
            ledger = self._ledger
            ledger.write_out()  # it may have been let in in this very transaction
            held = ledger.one("SELECT 1 FROM calls WHERE id = ? AND state = 'scheduled'", (call.of_call,))
            if held is None:
                blocked = ways_back.blocked(self._ledger, self._sealer, call, verdict, ledger.now_us)
                if blocked and blocked.code == "undo_used":
                    return blocked
                reason = "That call was held back, and has been sent or called off by now."
                return replace(verdict, rung=Rung.DENY, code="undo_expired", reason=reason)
            sealed: Json = {}
            call_id = approved.call_id if approved else call.id
            if approved is None:
                sealed = self._insert_call(call, verdict, None, state="dispatched")
            elif refusal := approval_requests.use(ledger, call, approved, verdict):
                return refusal
            why = f"{call.principal.user} took it back, call {call_id}"
            deferred.call_off(ledger, call.of_call or "", ("cancelled", why), undo_call=call_id)
            told = self._digest("error_digest", call, why)
            self._event("call.cancelled", call, call_id=call.of_call, by_call=call_id, **told)
            self._event(
                "call.dispatched",
                call,
                call_id=call_id,
                approval_id=approved.approval_id if approved else None,
                **self._digest("key_digest", call, earlier_calls.key_of(call)),
                **sealed,
                **_decision(verdict),
            )
            ledger.write_out()
            ledger.execute(
                "UPDATE calls SET state = 'succeeded', finished_us = ? WHERE id = ?", (ledger.now_us, call_id)
            )
            notices.leave(ledger, call_id)
            self._event("call.succeeded", call, call_id=call_id, undo="done")
            return entry(ledger.stream, *ledger.position)

        return await self._write(change)

    async def due(self, tools: Collection[str], *, limit: int) -> list[Recorded]:
        """The calls of these tools whose time has come, the first ones first; and the first of them that
        waits for each account."""
        return await self._writer.write(
            lambda: earlier_calls.due(self._ledger, self._sealer, tools, limit=limit), durable=False
        )

    async def can_take(self, charges: Sequence[Charge]) -> bool:
        """Whether the accounts for which calls may wait can take these charges now."""
        waited_for = [charge for charge in charges if charge.on_exceed == "defer"]

        def change() -> bool:
            return balances.too_small(self._ledger, waited_for) is None

        return await self._writer.write(change, durable=False)

    async def agreed(self, call_id: str) -> tuple[str, ...]:
        """Who agreed to a call whose approval was used."""
        return await self._writer.write(
            lambda: approval_requests.agreed(self._ledger, call_id), durable=False
        )

    async def settle(
        self,
        call: Call,
        *,
        call_id: str,
        state: Literal["succeeded", "failed"],
        costs: Mapping[str, int],
        charges: Sequence[Charge] = (),
        reply: bytes | None,
        error: tuple[str, str] | None,
        plan: UndoPlan | None,
        undo_state: UndoEnd | None = None,
        touches: str | None = None,
        after: bytes | None = None,
        resolution: str | None = None,
        frees_key: bool = False,
        establishes: Mapping[str, Scalar] | None = None,
    ) -> Settled:
        """Record how the call ended: post `costs` (by unit) and release the rest, bind the undo.

        `call_id` is the record's id (an approved call keeps the id under which people saw it). A unit that
        `costs` does not name costs nothing; `charges` are those by which it was held, whose limits may have
        come near. `undo_state` is what this undo did to the call that it serves.
        `touches` is what only the answer told that the call touched.
        `after` is what it left behind, to be compared before it is taken back.
        `resolution` says how this is known of a call that was in doubt.
        `establishes` is what this success says about the run.
        `frees_key`: nothing was done, so the client may use its idempotency key again.
        Raises WrongState when others have concluded how the call ended, StoreUnavailable when it is owed.
        """

        def change() -> Settled:
            ledger = self._ledger
            # Whom it is about may be erased while a call is in doubt: what is found out of it then goes, too.
            erased = (
                not ledger.ends(call_id, undoable=plan is not None)
                and earlier_calls.is_in_doubt(ledger, call_id)
                and erasing.is_erased(ledger, call_id)
            )
            way_back = replace(plan, arguments=None) if plan and erased else plan
            commit: str | None = None
            if reply is not None and not erased:
                seal = None if call.tool.effect is Effect.READ else self._sealer.seal_of(call)
                commit = self._sealer.keep(seal, call_id, "result", reply)
            ended = (state, ledger.now_us, commit, *(error or (None, None)), resolution)
            if frees_key:
                ledger.update("call_and_key", (*ended, None, call_id))
            else:
                ledger.update("call", (*ended, call_id))
            if after is not None and not erased:
                self._sealer.keep(self._sealer.seal_of(call), call_id, "after", after)
            paid = dict(costs)
            if resolution is not None:  # its tool may name other units by now: what was held was paid
                paid = {hold.unit: hold.amount for hold in balances.held_by(ledger, call_id)} | paid
            spent = balances.resolve(ledger, call_id, paid)
            if touches is not None:
                ledger.insert("touches", (touches, call_id))
            if way_back:
                undo = "void" if way_back.arguments is None else "ready"
                ledger.update("undo", (undo, way_back.resource, call_id))
                if way_back.arguments is not None:
                    kind = "restore" if call.tool.undo and call.tool.undo.restores else "undo"
                    body = orjson.dumps(way_back.arguments)
                    self._sealer.keep(self._sealer.seal_of(call), call_id, kind, body)
            refunded: list[Json] = []
            if state == "failed" and call.scheduled_us is not None:
                notices.leave_not_done(ledger, call_id)
            if undo_state and call.of_call:
                refunded = ways_back.conclude(ledger, call.of_call, call_id, undo_state)
            self._event(
                f"call.{state}",
                call,
                call_id=call_id,
                result_commit=commit,
                error_code=error[0] if error else None,
                **self._digest("error_digest", call, error[1] if error else None),
                **({"key_freed": True} if frees_key else {}),
                spent=spent,
                **({"refunded": refunded} if refunded else {}),
                **({"resolution": resolution} if resolution else {}),
                **self._touched(call, touches),
                **(runs.establish(ledger, call, call_id, establishes) if establishes else {}),
                undo=undo_state or (way_back and ("void" if way_back.arguments is None else "ready")),
            )
            if erased:
                ledger.write_out()
                erasing.clear(ledger, self._sealer, [call_id])
            return Settled(
                event=entry(ledger.stream, *ledger.position), warnings=balances.near(ledger, charges)
            )

        return await self._write_or_owe(
            change,
            durable=False,
            otherwise=lambda: doubts.contradict(self._ledger, call, call_id, state),
        )

    async def doubt(self, call: Call, *, call_id: str, code: str, message: str) -> None:
        """Record that nobody knows what became of a call that was sent. Its holds stay."""

        def change() -> None:
            if doubts.put_in_doubt(self._ledger, call, call_id, code, message):
                told = self._digest("error_digest", call, message)
                self._event("call.in_doubt", call, call_id=call_id, error_code=code, **told)

        await self._write_or_owe(change)

    def note_unrecorded(self, call: Call, at_us: int) -> bool:
        """Count a read that is let through without a record; whether it is the first of them."""
        first = self._gap is None
        self._gap = self._gap or Gap(from_us=at_us, to_us=at_us)
        self._gap.count(call, at_us)
        return first

    async def catch_up(self) -> None:
        """Write what is owed because the database took no writes when it was known.

        That is outcomes, and how many reads went through without a record. One that the records do not take
        keeps no other waiting: it is owed still, and a person finds its call in doubt when this process ends.
        """
        async with self._catching_up:
            if gap := self._gap:
                self._gap = None  # what comes meanwhile is counted anew
                told = gap.told()
                try:
                    await self._writer.write(
                        lambda: self._ledger.event("store.gap", tenant=None, call_id=None, **told), must=True
                    )
                except StoreUnavailable:
                    self._gap = gap.with_later(self._gap) if self._gap else gap
                    return
            for _ in range(len(self._owed)):
                change, otherwise = self._owed[0]
                try:
                    try:
                        await self._writer.write(change, must=True)
                    except WrongState:  # a person has resolved it meanwhile
                        await self._writer.write(otherwise, must=True)
                except StoreUnavailable:
                    return
                except Exception:  # noqa: BLE001 - a supervisor: one must not keep the others from being written
                    self._owed.rotate(-1)
                    _log.exception("how a call ended cannot be recorded, and is tried again")
                else:
                    self._owed.popleft()

    async def take_over(self) -> None:
        """Conclude for processes that died since what they left open, as opening the file does."""
        await self._writer.write(lambda: doubts.take_over(self._ledger))

    async def _write(self, change: Callable[[], T], *, durable: bool = True, must: bool = False) -> T:
        """Write a step of a call: with those of other calls, or at once where there is no other call."""
        return await self._writer.write(change, durable=durable, must=must, alone=self._under_way.calls == 1)

    async def _write_or_owe(
        self, change: Callable[[], T], *, durable: bool = True, otherwise: Callable[[], None] = lambda: None
    ) -> T:
        """Write what has already happened in the world; never forget it. Raises StoreUnavailable, owing.

        `otherwise` is what is written instead when others have concluded how the call ended, which raises
        WrongState.
        """
        try:
            return await self._write(change, durable=durable, must=True)
        except StoreUnavailable:
            self._owed.append((change, otherwise))
            raise
        except WrongState:
            await self._write_or_owe(otherwise)
            raise

    # What people do between calls.

    async def vote(
        self,
        approval_id: str,
        *,
        user: str,
        vote: Literal["approve", "reject"],
        comment: str,
        use_within_s: int,
    ) -> str:
        """Record one person's vote; return the approval's state. Who may vote is the caller's to check.

        Raises UnknownRecord, or WrongState when it is no longer open or the person has voted.
        """
        return await self._writer.write(
            lambda: approval_requests.vote(
                self._ledger,
                approval_id,
                user=user,
                vote=vote,
                comment=comment,
                use_within_s=use_within_s,
            )
        )

    async def withdraw(self, approval_id: str, who: Principal) -> None:
        """The agent takes its own request back. Raises UnknownRecord for anybody else's."""
        await self._writer.write(lambda: approval_requests.withdraw(self._ledger, approval_id, who))

    async def expire(self) -> int:
        """Close every request whose time is up; return how many. Timeout is always refusal."""
        return await self._writer.write(lambda: approval_requests.expire(self._ledger))

    async def resolve(
        self, call_id: str, *, happened: bool, reason: str, by: str, force: bool = False
    ) -> str:
        """What became of a call in doubt, as a person or a probe says: its holds are spent, or released.

        Returns its state. What did not happen may be sent again under its idempotency key.

        Raises UnknownRecord, or WrongState when the call is not in doubt, or did not happen but, unless with
        `force`, still may.
        """
        return await self._writer.write(
            lambda: doubts.resolve(
                self._ledger, call_id, happened=happened, reason=reason, by=by, force=force
            )
        )

    async def note_undo_refused(self, call_id: str, principal: Principal, why: str) -> None:
        """Record that somebody tried to take back what is not theirs, or cannot be taken back."""

        def change() -> None:
            self._ledger.event(
                "undo.refused",
                tenant=principal.tenant,
                call_id=None,
                agent=principal.agent,
                user=principal.user,
                wanted=call_id[:36],
                reason=why,
            )

        await self._writer.write(change)

    async def note_proof(
        self,
        *,
        digest: str,
        tool: str,
        source: str,
        by: str,
        tenant: str,
        call_id: str,
        differs: Sequence[str],
    ) -> None:
        """Record what a trial of a way back came to; `differs` says where it did not hold."""
        await self._writer.write(
            lambda: proven.note(
                self._ledger,
                digest=digest,
                tool=tool,
                source=source,
                by=by,
                tenant=tenant,
                call_id=call_id,
                differs=differs,
            )
        )

    async def note_log_key(self, verifier: str, *, replaces: Sequence[str], by: str) -> None:
        """Record that checkpoints of the log will be signed with another key."""
        await self._writer.write(
            lambda: self._ledger.event(
                "log.key", tenant=None, call_id=None, verifier=verifier, replaces=list(replaces), by=by
            )
        )

    async def switch(
        self, *, kind: SwitchKind, scope: str, target: str, tenant: str, on: bool, reason: str, by: str
    ) -> bool:
        """Turn a switch on or off; False when it already was so. Effective everywhere with this commit."""
        return await self._writer.write(
            lambda: switches.turn(
                self._ledger,
                kind=kind,
                scope=scope,
                target=target,
                tenant=tenant,
                on=on,
                reason=reason,
                by=by,
            )
        )

    async def start_shadow(self, *, version: str, text: str, by: str) -> None:
        """Try a policy beside the one in force; what an earlier trial found is gone."""
        await self._writer.write(lambda: trials.start(self._ledger, version=version, text=text, by=by))

    async def stop_shadow(self, *, by: str) -> bool:
        """End the trial, and keep what it found; False when there is none."""
        return await self._writer.write(lambda: trials.stop(self._ledger, by=by))

    async def note_shadow(
        self, *, started_us: int, decided: int, dropped: int, groups: Sequence[Group]
    ) -> None:
        """Add what one process found since it last said so, if the trial is still the same."""
        await self._writer.write(
            lambda: trials.add(
                self._ledger, started_us=started_us, decided=decided, dropped=dropped, groups=groups
            ),
            durable=False,
        )

    # What is kept.

    async def erase(self, *, tenant: str, subject: str, reason: str, by: str) -> Erasure:
        """Destroy the keys of what is kept about somebody. Raises UnknownRecord, or WrongState as yet."""

        def change() -> Erasure:
            keeping.must_not_be_held(self._ledger, self._sealer.vault, tenant, subject)
            return erasing.destroy(
                self._ledger, self._sealer, tenant=tenant, subject=subject, reason=reason, by=by
            )

        return await self._writer.write(change)

    async def hold(
        self,
        *,
        tenant: str,
        scope: keeping.Scope,
        target: str,
        from_us: int | None,
        to_us: int | None,
        reason: str,
        by: str,
    ) -> str:
        """Keep what calls carried from being erased or growing too old; return the hold's id."""
        return await self._writer.write(
            lambda: keeping.hold(
                self._ledger,
                self._sealer,
                tenant=tenant,
                scope=scope,
                target=target,
                from_us=from_us,
                to_us=to_us,
                reason=reason,
                by=by,
            )
        )

    async def release(self, hold_id: str, *, reason: str, by: str) -> None:
        """Let go of what a legal hold covered. Raises UnknownRecord."""
        await self._writer.write(lambda: keeping.release(self._ledger, hold_id, reason=reason, by=by))

    async def retire(self, kind: keeping.Kind, *, before_us: int, after: str) -> tuple[str | None, int]:
        """Remove a slice of what is of age (see `keeping.retire`)."""
        return await self._writer.write(
            lambda: keeping.retire(self._ledger, self._sealer, kind, before_us=before_us, after=after)
        )

    async def clear(self, call_ids: Sequence[str]) -> None:
        """Clear what is not sealed in the rows of erased calls; a slice of them at a time."""
        await self._writer.write(lambda: erasing.clear(self._ledger, self._sealer, call_ids))

    async def uncleared(self) -> list[tuple[str, str, str]]:
        """What is erased and not yet cleared (see `erasing.uncleared`)."""
        return await self._writer.write(lambda: erasing.uncleared(self._ledger), durable=False)

    async def cleared(self, key_id: str) -> None:
        """Note that nothing is left to be cleared for this destroyed key."""
        await self._writer.write(lambda: erasing.cleared(self._ledger, key_id))

    # The policy.

    async def decides_by(self, version: Version, *, from_files: bool) -> None:
        """Keep the text of the policy that this process decides by; of one from files, also since when."""

        def change() -> None:
            if from_files:
                versions.found_in_files(self._ledger, version)
            else:
                versions.keep(self._ledger, version)

        await self._writer.write(change)

    async def push_policy(self, version: Version, *, by: str, note: str) -> bool:
        """Store a version that a person offers; False when somebody pushed the same rules before."""
        return await self._writer.write(lambda: versions.push(self._ledger, version, by=by, note=note))

    async def activate_policy(self, version: Version, *, by: str, note: str, second_person: bool) -> bool:
        """Put a stored version into force; False when it is already. Raises UnknownRecord, WrongState."""
        return await self._writer.write(
            lambda: versions.activate(self._ledger, version, by=by, note=note, second_person=second_person)
        )

    async def roll_back_policy(self, version: Version, *, by: str, note: str, second_person: bool) -> bool:
        """Return to a stored version; False when it is in force. Raises UnknownRecord, WrongState."""
        return await self._writer.write(
            lambda: versions.roll_back(self._ledger, version, by=by, note=note, second_person=second_person)
        )

    async def reject_policy(self, *, problems: Sequence[str], digests: Digests) -> None:
        """Record that a new version was not taken, and why."""
        await self._writer.write(lambda: versions.reject(self._ledger, problems=problems, digests=digests))

    # The keys of agents.

    async def know_pepper(self, check: str) -> None:
        """Take note of the pepper by its `check`; another one than before only while nothing needs the old.

        Raises WrongState, which says what needs it.
        """
        await self._writer.write(lambda: api_keys.know_pepper(self._ledger, self.at, check))

    async def add_key(self, key: KeyRecord, *, by: str) -> None:
        await self._writer.write(lambda: api_keys.add(self._ledger, self._sealer, key, by=by))

    async def revoke_key(self, key_id: str, *, by: str) -> None:
        """Raises UnknownRecord when there is no such key that is still valid."""
        await self._writer.write(lambda: api_keys.revoke(self._ledger, key_id, by=by))

    async def key(self, key_id: str) -> KeyRecord | None:
        """Read beside the writer: whoever knocks with made-up keys must not take its time.

        Raises StoreUnavailable.
        """
        return await anyio.to_thread.run_sync(api_keys.read, self.at, key_id)

    # Playbooks.

    async def begin_playbook(
        self,
        *,
        run: str,
        name: str,
        digest: str,
        inputs: Mapping[str, str],
        tenant: str,
        by: str,
        anew: bool,
    ) -> Taken:
        """Begin a run, or carry on an equal one that has not ended well.

        Raises WrongState while another process carries that one out.
        """
        return await self._writer.write(
            lambda: playbook_runs.begin(
                self._ledger,
                run=run,
                name=name,
                digest=digest,
                inputs=inputs,
                tenant=tenant,
                by=by,
                anew=anew,
                vault=self._sealer.vault,
            )
        )

    async def trigger_playbook(
        self,
        *,
        run: str,
        name: str,
        digest: str,
        inputs: Mapping[str, str],
        tenant: str,
        trigger: Mapping[str, str],
        cause: str,
        every_us: int,
    ) -> bool:
        """Begin a run that nobody asked for. False when this cause had its run, by whichever process, or the
        last run that nobody asked for is too new."""
        return await self._writer.write(
            lambda: playbook_runs.trigger(
                self._ledger,
                run=run,
                name=name,
                digest=digest,
                inputs=inputs,
                tenant=tenant,
                trigger=trigger,
                cause=cause,
                every_us=every_us,
                vault=self._sealer.vault,
            )
        )

    async def take_over_playbooks(
        self, digests: Mapping[str, str], *, under_way: Collection[str], limit: int
    ) -> list[Taken]:
        """Runs that began by themselves and nobody carries out (see `playbook_runs.take_over`)."""
        return await self._writer.write(
            lambda: playbook_runs.take_over(self._ledger, digests, under_way=under_way, limit=limit)
        )

    async def note_playbook(
        self, *, run: str, tenant: str, step: str, state: str, said: str, call_id: str | None
    ) -> None:
        """Record how one step ended. Raises WrongState where the run is another's by now."""
        await self._writer.write(
            lambda: playbook_runs.note_step(
                self._ledger, run=run, tenant=tenant, step=step, state=state, said=said, call_id=call_id
            )
        )

    async def stop_by_playbook(
        self,
        *,
        run: str,
        tenant: str,
        step: str,
        scope: str,
        target: str,
        of_tenant: str,
        what: str,
        reason: str,
        by: str,
    ) -> str:
        """Turn the kill switch on as a step of a run, and record that (see `playbook_runs.stop`)."""
        return await self._writer.write(
            lambda: playbook_runs.stop(
                self._ledger,
                run=run,
                tenant=tenant,
                step=step,
                scope=scope,
                target=target,
                of_tenant=of_tenant,
                what=what,
                reason=reason,
                by=by,
            )
        )

    async def end_playbook(self, *, run: str, tenant: str, state: str, **more: str) -> None:
        """Record how a run ended. Raises WrongState where it is another's by now."""
        await self._writer.write(
            lambda: playbook_runs.end(self._ledger, run=run, tenant=tenant, state=state, **more)
        )

    # What steps of a call, and people, ask of the record.

    async def undoable(self, call_id: str, *, beneath: str | None = None) -> Undoable | None:
        """The call and its plan, whatever their state; None when the call does not exist or has no plan.

        With `beneath` as that call on the same thing has found it, whatever was done from then on.
        """
        return await self._writer.write(
            lambda: ways_back.undoable(self._ledger, self._sealer, call_id, beneath=beneath), durable=False
        )

    async def undo_obstacle(self, call: Call, verdict: Verdict) -> Verdict | None:
        """The refusal that this undo would meet if it were let out now."""
        return await self._writer.write(
            lambda: ways_back.blocked(self._ledger, self._sealer, call, verdict, self._ledger.now_us),
            durable=False,
        )

    async def changed_since(self, call_id: str, tenant: str) -> bool:
        """Whether a later call touched the same thing as this one, or may have, and is not taken back."""
        return await self._writer.write(
            lambda: ways_back.touched_since(self._ledger, self._sealer, call_id, tenant), durable=False
        )

    async def in_doubt(self, *, before_us: int) -> Mapping[str, tuple[str, str]]:
        """The kind and tool of every call in doubt whose time was over by `before_us`, oldest first."""
        return await self._writer.write(lambda: doubts.find(self._ledger, before_us=before_us), durable=False)

    async def recorded(self, call_id: str) -> Recorded | None:
        """The call as its record has it; None when there is none."""
        return await self._writer.write(
            lambda: earlier_calls.recorded(self._ledger, self._sealer, call_id), durable=False
        )

    async def answer(self, call_id: str) -> Reply | None:
        """What a call that has ended was answered; None where that is not kept (any more)."""
        return await self._writer.write(lambda: earlier_calls.answer(self._sealer, call_id), durable=False)

    async def run(self, call: Call) -> Run:
        """What the run of a call has come to, as of the newest transaction here or the last idle look."""
        key = runs.key_of(call)
        known = self._ledger.runs.get(key)
        if known is not None:
            return known
        return await self._write(lambda: runs.current(self._ledger, key), durable=False)

    async def turn(self, call: Call, serial: Callable[[str], bool]) -> Run | None:
        """What the run of a call has come to; None while another process makes a call of it by a tool that
        is `serial`."""

        def look() -> Run | None:
            key = runs.key_of(call)
            if any(map(serial, runs.under_way_elsewhere(self._ledger, key))):
                return None
            return runs.current(self._ledger, key)

        return await self._write(look, durable=False)

    async def asked_as(self, call: Call) -> str | None:
        """The call under which people are asked about an equal one, or have agreed to it; None otherwise."""
        return await self._write(lambda: approval_requests.asked_as(self._ledger, call), durable=False)

    async def standing(self, who: Principal, run: str, accounts: Sequence[Charge]) -> dict[str, Any]:
        """How one caller stands: its open requests, the balances of `accounts`, the switches that are on."""

        def change() -> dict[str, Any]:
            return {
                "pending_approvals": approval_requests.open_of(self._ledger, who),
                "held_back": deferred.held_back_of(self._ledger, who),
                "budgets": balances.standing(self._ledger, accounts),
                "switches_on": sorted(concerning(who, run, self._ledger.switches)),
            }

        return await self._writer.write(change, durable=False)

    async def tell(self, run: RunKey) -> tuple[Notice, ...]:
        """What others did to the calls of this run and it was not told yet. Whoever asks must tell it."""
        return await self._writer.write(lambda: notices.take(self._ledger, run))

    async def close(self) -> None:
        """Write what is queued or owed, seal this incarnation and let go of the file.

        What then still cannot be told on record of reads without one is told in the log of the process.

        Raises StoreUnavailable when that cannot be written; who opens the file next takes over then.
        """
        await self.catch_up()
        if self._gap:
            told = orjson.dumps(self._gap.told()).decode()
            _log.error("the audit database takes no writes, so nothing on record tells of reads: %s", told)

        def change() -> None:
            self._ledger.write_out()  # calls may have been let out in this very transaction
            doubts.leave_open_calls(self._ledger, self._ledger.stream)
            self._ledger.end_life()

        await self._writer.stop(change)

    # The parts of a transaction.

    def _otherwise(
        self,
        call: Call,
        verdict: Verdict,
        stopped: Callable[[Call, frozenset[Switch]], Verdict | None],
        in_force: Callable[[], str],
        run: Run | None,
        of_run: Callable[[Run], Run] | None,
    ) -> Verdict | Moved | None:
        """What has come in between since the decision: a switch, another policy, another call of the run."""
        if refusal := stopped(call, self._ledger.switches):
            return refusal
        if in_force() != verdict.policy_version:
            return Moved()
        if run is not None and of_run is not None:
            now_is = runs.current(self._ledger, runs.key_of(call))
            if of_run(now_is) != of_run(run):
                return Moved()
        return None

    def _wait_on(self, call: Call, charge: Charge) -> Waits | Repeated:
        """Have a call that has waited for a budget wait on."""
        due_us = deferred.wait_on(self._ledger, call, charge)
        if due_us is None:
            return Repeated(call_id=call.id, state="dispatched", reply=None)
        self._event("call.postponed", call, due_us=due_us, waits_for=charge.account)
        return Waits(due_us=due_us, waits_for=charge.account)

    def _insert_call(
        self,
        call: Call,
        verdict: Verdict,
        saw: Saw | None,
        *,
        state: str,
        approval_id: str | None = None,
        waits: Waits | None = None,
        deadline_us: int | None = None,
        finished: bool = False,
    ) -> Json:
        """Add the call's row; return what its first event must seal of it."""
        now = self._ledger.now_us
        # The commitment is to the exact bytes; what is kept may have parts struck out.
        seal = self._sealer.seal_of(call)
        for key_id in seal.others if seal else ():
            self._ledger.insert("call_subjects", (key_id, call.id))
        kept = redacted(call.arguments_json, verdict.duties)
        commit = self._sealer.keep(seal, call.id, "arguments", kept, exact=call.arguments_json)
        seen: dict[str, Any] = {}
        if saw is not None:
            exact = body = orjson.dumps(saw.context, option=orjson.OPT_SORT_KEYS)
            if kept is not call.arguments_json:
                shown = context_redacted(saw.context, call, verdict.duties)
                body = orjson.dumps(shown, option=orjson.OPT_SORT_KEYS)
            seen["context_commit"] = self._sealer.keep(seal, call.id, "context", body, exact=exact)
            if saw.reads:
                seen["facts"] = saw.reads
        who = call.principal
        claim = orjson.dumps(call.claim).decode() if call.claim else None
        if claim is not None:
            seen["claim"] = self._sealer.vault.name(who.tenant, claim)
        self._ledger.insert(
            "calls",
            (
                call.id,
                call.kind,
                call.of_call,
                who.tenant,
                who.agent,
                who.user,
                call.run,
                who.auth,
                call.tool.source,
                call.tool.name,
                call.tool.operation.value,
                call.tool.digest,
                call.tool.effect.value,
                call.fingerprint,
                commit,
                earlier_calls.key_of(call) if state in _LET_IN else None,
                _VERDICT[verdict.rung],
                verdict.code,
                verdict.reason,
                verdict.policy_version,
                orjson.dumps(verdict.rows).decode(),
                state,
                approval_id,
                self._ledger.stream,
                call.received_us,
                now if state == "dispatched" else None,
                waits and waits.due_us,
                waits and waits.waits_for,
                deadline_us,
                now if finished else None,
                None,
                None,
                None,
                None,
                call.trace_id,
                claim,
                call.confirmation.id if call.confirmation and state in _LET_IN else None,
            ),
        )
        return {
            "arguments_commit": commit,
            "redacted": kept != call.arguments_json,
            "purpose": call.kind,
            "of_call": call.of_call,
            "auth": who.auth,
            "source": call.tool.source,
            **calls_told.first(self._sealer.vault, call, verdict),
            "subjects": list(seal.others) if seal else [],
            **seen,
        }

    def _touched(self, call: Call, resource: str | None) -> Json:
        """What a call touched, as its event seals it."""
        return self._digest("touched", call, resource)

    def _digest(self, name: str, call: Call, words: str | None) -> Json:
        """What an event seals of words under this name: no word of them, for events stay."""
        if words is None:
            return {}
        return {name: erasing.digest_of(self._sealer.vault, call.principal.tenant, words)}

    def _event(self, kind: str, call: Call, *, call_id: str | None = None, **facts: Any) -> None:
        who, tool = call.principal, call.tool
        facts["agent"] = who.agent
        facts["user"] = who.user
        facts["run"] = call.run
        facts["tool"] = tool.name
        facts["tool_digest"] = tool.digest
        facts["effect"] = tool.effect.value
        facts["fingerprint"] = call.fingerprint
        self._ledger.append(kind, who.tenant, call_id or call.id, facts)


async def open_journal(
    at: Location,
    *,
    role: str,
    relaxed: bool = False,
    queue_max: int = 4096,
    lease_s: float = 15,
    clock: Clock = now_us,
    key: str | None = None,
    config: str = "",
) -> Journal:
    """Open (and, when new, create) the audit database for this process.

    `config` says which configuration the process has (`Loaded.digest`), for the record.

    `key` is the master key of its payloads in hexadecimal; None: the file beside it, made when it is new.
    Takes over the calls of processes that died: reads end as failed, anything else is in doubt.
    Raises RemitError when it cannot be used.
    """
    stream = uuid7(clock())
    store = await anyio.to_thread.run_sync(
        lambda: _opened(at, stream=stream, role=role, relaxed=relaxed, lease_s=lease_s, clock=clock)
    )
    ledger = Ledger(store, stream=stream, role=role, clock=clock, config=config)
    sealer = await anyio.to_thread.run_sync(open_sealer, ledger, at, key)
    writer = Writer(ledger, queue_max=queue_max)

    def change() -> None:
        ledger.begin_life()
        doubts.take_over(ledger)

    await writer.write(change)
    return Journal(ledger, sealer, writer, at)


def _opened(at: Location, *, stream: str, role: str, relaxed: bool, lease_s: float, clock: Clock) -> Store:
    if isinstance(at, Postgres):
        from remit.ledger_postgres import PostgresStore

        upgrade(at)
        return PostgresStore(at, stream=stream, role=role, relaxed=relaxed, lease_s=lease_s, clock=clock)
    try:
        file = placed(at)
        must_be_local(file.parent)
        upgrade(file)
        return SqliteStore(file, stream=stream, relaxed=relaxed)
    except OSError as error:
        raise RemitError(f"the audit database {at} cannot be used: {error.strerror}") from None
    except sqlite3.Error as error:
        raise RemitError(f"the audit database {at} cannot be used: {error}") from None


_log = logging.getLogger(__name__)
_LET_IN = ("scheduled", "dispatched")
_VERDICT = {Rung.EXECUTE: "execute", Rung.APPROVE: "approve", Rung.ADVISE: "advise", Rung.DENY: "deny"}


def _decision(verdict: Verdict) -> dict[str, Any]:
    return {
        "verdict": _VERDICT[verdict.rung],
        "code": verdict.code,
        "policy_version": verdict.policy_version,
        "rows": list(verdict.rows),
    }
