"""Durable memory: what is written, when, and what goes together. One method is one transaction.

The pipeline's promise rests here: the intent of a call is committed before its effect, the outcome before
its answer, the holds of both with them. Every method checks before it writes, and returns a refusal as a
value without having written. Reading records back for people is `records.py`.

The application opens one journal for each process and closes it; opening registers this process life (an
*incarnation*), takes over what dead ones left, and starts the writer thread.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import anyio.to_thread
import orjson

from remit import (
    approval_requests,
    balances,
    deferred,
    earlier_calls,
    erasing,
    keeping,
    notices,
    playbook_runs,
    proven,
    runs,
    versions,
    ways_back,
)
from remit.approval_requests import Approved, Waiting
from remit.calls import redacted
from remit.chain import entry
from remit.comparing import Group
from remit.config import Effect
from remit.context import redacted as context_redacted
from remit.database import Location, Postgres, Row, beside, reading
from remit.deferred import Waits
from remit.earlier_calls import Repeated
from remit.erasing import Erasure
from remit.errors import RemitError, StoreUnavailable, UnknownRecord, WrongState
from remit.identity import KeyRecord, Principal
from remit.ids import Clock, now_us, uuid7
from remit.ledger import Ledger, Store
from remit.ledger_sqlite import SqliteStore, must_be_local
from remit.model import Call, Charge, Confirmation, Recorded, Remedy, Scalar, UndoPlan, Verdict
from remit.notices import Notice
from remit.playbook_runs import Resumed
from remit.proven import Proof
from remit.runs import Run, RunKey
from remit.schema import upgrade
from remit.unrecorded import Gap
from remit.vault import KeyUnusable, Seal, Sealer, is_living, master_key
from remit.versions import Digests, Version
from remit.ways_back import Undoable, UndoEnd
from remit.writer import Writer
from remit_adapters.base import Json
from remit_rbac import Rung

T = TypeVar("T")

SwitchKind = Literal["kill", "safe"]
Switch = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The call may be sent: its intent, holds and undo are durable."""

    deadline_us: int
    #: Which limits come near, a sentence each.
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


class Journal:
    def __init__(self, ledger: Ledger, sealer: Sealer, writer: Writer, at: Location) -> None:
        self._ledger = ledger
        self._sealer = sealer
        self._writer = writer
        self._owed: deque[Callable[[], object]] = deque()
        self._gap: Gap | None = None
        self._under_way = 0
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

    @contextmanager
    def under_way(self) -> Generator[None]:
        """A call is governed within: what one alone writes needs no company."""
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    # The life of a call.

    async def refuse(self, call: Call, verdict: Verdict, saw: Saw | None = None) -> None:
        """Record a call that was not let out. It costs nothing. One that was held back is called off."""

        def change() -> None:
            if call.scheduled_us is not None:
                if deferred.call_off(self._ledger, call.id, (verdict.code, verdict.reason)):
                    notices.leave_called_off(self._ledger, call.id)
                    self._event("call.cancelled", call, **_decision(verdict))
                return
            sealed = self._insert_call(call, verdict, saw, state="denied", finished=True)
            self._event("call.denied", call, **sealed, **_decision(verdict))

        await self._write(change)

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
            said = approval_requests.said(self._ledger, call, verdict, binding)
            if call.undoing:
                asked_us = said.asked_us if isinstance(said, Waiting | Approved) else self._ledger.now_us
                if refusal := ways_back.blocked(
                    self._ledger, self._sealer, call, verdict, asked_us, asking=True
                ):
                    return refusal
            if said:
                return said
            if earlier := earlier_calls.equal_to(self._ledger, self._sealer, call):
                return earlier
            approval_id = uuid7(self._ledger.now_us)
            sealed = self._insert_call(call, verdict, saw, state="awaiting_approval", approval_id=approval_id)
            waiting = approval_requests.put(
                self._ledger, call, approval_id, binding=binding, votes=votes, pending_s=pending_s
            )
            self._sealer.keep(self._seal(call), call.id, "shown", orjson.dumps(shown))
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
            late = self._short(call, verdict, charges, now, agreed=approved is not None)
            if isinstance(late, Verdict):
                return late
            asked_us = approved.asked_us if approved else now
            if call.undoing and (
                refusal := ways_back.blocked(self._ledger, self._sealer, call, verdict, asked_us)
            ):
                return refusal
            if call.confirmation and (refusal := self._spent(call.confirmation, verdict)):
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
            for charge in to_hold:
                balances.hold(self._ledger, call_id, charge)
            if way_back:
                ways_back.register(self._ledger, call_id, way_back, "ready" if waits else "registered")
            if touches is not None and not waits:
                self._ledger.insert("touches", (touches, call_id))
            if before is not None and not waits:
                self._sealer.keep(self._seal(call), call_id, "before", before)
            if call.kind == "undo":
                ways_back.take(self._ledger, call, call_id)
            self._event(
                "call.scheduled" if waits else "call.dispatched",
                call,
                call_id=call_id,
                approval_id=approved.approval_id if approved else None,
                confirmation=call.confirmation.id if call.confirmation else None,
                **({"due_us": waits.due_us} if waits else {"deadline_us": deadline_us}),
                **({"waits_for": late.account} if late else {}),
                holds=_held(to_hold),
                undo=ways_back.told(way_back),
                **({"forced": True} if call.undoing and call.undoing.forced else {}),
                **sealed,
                **_decision(verdict),
            )
            warnings = balances.near(self._ledger, to_hold)
            if waits:
                return replace(waits, warnings=warnings)
            assert deadline_us is not None  # noqa: S101 - it waits, or it has a deadline
            return Admitted(deadline_us=deadline_us, warnings=warnings)

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
            late = None
            if call.waited:
                late = self._short(call, verdict, charges, now, agreed=verdict.rung is Rung.APPROVE)
            if isinstance(late, Verdict):
                return late
            if late:
                return self._wait_on(call, late)
            for charge in () if call.waited else charges:
                if charge.on_exceed == "deny" and balances.left(self._ledger, charge) < 0:
                    return _no(
                        "budget_exhausted",
                        f"The budget for {charge.label} was lowered, and cannot take this call any more.",
                        Remedy.ASK,
                    )
            deadline_us = now + call.tool.timeout_s * 1_000_000
            if not deferred.let_out(self._ledger, call.id, deadline_us):
                return Repeated(call_id=call.id, state="dispatched", reply=None)
            runs.let_out(self._ledger, call)
            if touches is not None:
                self._ledger.insert("touches", (touches, call.id))
            warnings: tuple[str, ...] = ()
            more: Json = {}
            if call.waited:
                for charge in charges:
                    balances.hold(self._ledger, call.id, charge)
                warnings = balances.near(self._ledger, charges)
                way_back = plan if call.tool.effect is not Effect.DEFERRED else None
                if way_back:
                    self._ledger.execute("DELETE FROM undos WHERE call_id = ?", (call.id,))
                    ways_back.register(self._ledger, call.id, way_back, "registered")
                if before is not None:
                    self._sealer.keep(self._seal(call), call.id, "before", before)
                more = {"holds": _held(charges), "undo": ways_back.told(way_back)}
            self._event("call.dispatched", call, deadline_us=deadline_us, **more, **_decision(verdict))
            return Admitted(deadline_us=deadline_us, warnings=warnings)

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
            self._event("call.cancelled", call, call_id=call.of_call, by_call=call_id)
            self._event(
                "call.dispatched",
                call,
                call_id=call_id,
                approval_id=approved.approval_id if approved else None,
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

    async def due(self, *, limit: int) -> list[Recorded]:
        """The calls whose time has come, the first ones first; and the first that waits for each account."""
        return await self._writer.write(
            lambda: earlier_calls.due(self._ledger, self._sealer, limit=limit), durable=False
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
        reply: bytes | None,
        error: tuple[str, str] | None,
        plan: UndoPlan | None,
        undo_state: UndoEnd | None = None,
        touches: str | None = None,
        after: bytes | None = None,
        resolution: str | None = None,
        frees_key: bool = False,
        establishes: Mapping[str, Scalar] | None = None,
    ) -> str:
        """Record how the call ended: post `costs` (by unit) and release the rest, bind the undo.

        Returns the event that says so, as the Merkle log will have it (`chain.entry`).

        `call_id` is the record's id (an approved call keeps the id under which people saw it). A unit that
        `costs` does not name costs nothing. `undo_state` is what this undo did to the call that it serves.
        `touches` is what only the answer told that the call touched.
        `after` is what it left behind, to be compared before it is taken back.
        `resolution` says how this is known of a call that was in doubt.
        `establishes` is what this success says about the run.
        `frees_key`: nothing was done, so the client may use its idempotency key again.
        Raises WrongState when others have concluded how the call ended, StoreUnavailable when it is owed.
        """

        def change() -> str:
            ledger = self._ledger
            commit: str | None = None
            if reply is not None:
                seal = None if call.tool.effect is Effect.READ else self._seal(call)
                commit = self._sealer.keep(seal, call_id, "result", reply)
            ledger.update(
                "UPDATE calls SET state = ?, finished_us = ?, result_commit = ?, error_code = ?, error = ?,"
                " resolution = ?, client_key = CASE WHEN ? THEN NULL ELSE client_key END"
                " WHERE id = ? AND state IN ('dispatched', 'in_doubt')",
                (state, ledger.now_us, commit, *(error or (None, None)), resolution, frees_key, call_id),
            )
            if after is not None:
                self._sealer.keep(self._seal(call), call_id, "after", after)
            spent = balances.resolve(ledger, call_id, costs)
            if touches is not None:
                ledger.insert("touches", (touches, call_id))
            if plan:
                ledger.update(
                    "UPDATE undos SET state = ?, resource = ? WHERE call_id = ?",
                    ("void" if plan.arguments is None else "ready", plan.resource, call_id),
                )
                if plan.arguments is not None:
                    kind = "restore" if call.tool.undo and call.tool.undo.restores else "undo"
                    self._sealer.keep(self._seal(call), call_id, kind, orjson.dumps(plan.arguments))
            refunded: list[Json] = []
            if undo_state and call.of_call:
                refunded = ways_back.conclude(ledger, call.of_call, call_id, undo_state)
            self._event(
                f"call.{state}",
                call,
                call_id=call_id,
                result_commit=commit,
                error_code=error[0] if error else None,
                spent=spent,
                **({"refunded": refunded} if refunded else {}),
                **({"resolution": resolution} if resolution else {}),
                **(runs.establish(ledger, call, call_id, establishes) if establishes else {}),
                undo=undo_state or (plan and ("void" if plan.arguments is None else "ready")),
            )
            return entry(ledger.stream, *ledger.position)

        return await self._write_or_owe(change, durable=False)

    async def doubt(self, call: Call, *, call_id: str, code: str, message: str) -> None:
        """Record that nobody knows what became of a call that was sent. Its holds stay."""

        def change() -> None:
            moved = self._ledger.execute(
                "UPDATE calls SET state = 'in_doubt', finished_us = ?, error_code = ?, error = ?"
                " WHERE id = ? AND state = 'dispatched'",
                (self._ledger.now_us, code, message, call_id),
            )
            if moved == 1:
                self._ledger.look_up_doubts()
                self._ledger.held.pop(call_id, None)
                if call.kind == "undo" and call.of_call:
                    ways_back.conclude(self._ledger, call.of_call, call_id, "indeterminate")
                self._event("call.in_doubt", call, call_id=call_id, error_code=code)

        await self._write_or_owe(change)

    def note_unrecorded(self, call: Call, at_us: int) -> bool:
        """Count a read that is let through without a record; whether it is the first of them."""
        first = self._gap is None
        self._gap = self._gap or Gap(from_us=at_us, to_us=at_us)
        self._gap.count(call, at_us)
        return first

    async def catch_up(self) -> None:
        """Write what is owed because the database took no writes when it was known.

        That is outcomes, and how many reads went through without a record.
        """
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
        while self._owed:
            try:
                await self._writer.write(self._owed[0], must=True)
            except StoreUnavailable:
                return
            except WrongState:
                pass  # a person has resolved it meanwhile
            self._owed.popleft()

    async def take_over(self) -> None:
        """Conclude for processes that died since what they left open, as opening the file does."""
        await self._writer.write(lambda: _take_over_the_dead(self._ledger))

    async def _write(self, change: Callable[[], T], *, durable: bool = True, must: bool = False) -> T:
        """Write a step of a call: with those of other calls, or at once where there is no other call."""
        if self._under_way == 1 and not must:
            await asyncio.sleep(0)  # calls that came in the same moment come to light
        return await self._writer.write(change, durable=durable, must=must, alone=self._under_way == 1)

    async def _write_or_owe(self, change: Callable[[], T], *, durable: bool = True) -> T:
        """Write what has already happened in the world; never forget it. Raises StoreUnavailable, owing."""
        try:
            return await self._write(change, durable=durable, must=True)
        except StoreUnavailable:
            self._owed.append(change)
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

    async def withdraw(self, approval_id: str, *, tenant: str, agent: str) -> None:
        """The agent takes its own request back. Raises UnknownRecord for anybody else's."""
        await self._writer.write(
            lambda: approval_requests.withdraw(self._ledger, approval_id, tenant=tenant, agent=agent)
        )

    async def expire(self) -> int:
        """Close every request whose time is up; return how many. Timeout is always refusal."""
        return await self._writer.write(lambda: approval_requests.expire(self._ledger))

    async def resolve(self, call_id: str, *, happened: bool, reason: str, by: str) -> str:
        """What became of a call in doubt, as a person or a probe says: its holds are spent, or released.

        Returns its state. What did not happen may be sent again under its idempotency key.

        Raises UnknownRecord, or WrongState when the call is not in doubt.
        """

        def change() -> str:
            ledger = self._ledger
            row = ledger.one("SELECT tenant, state, kind, of_call FROM calls WHERE id = ?", (call_id,))
            if row is None:
                raise UnknownRecord(f"there is no call {call_id}")
            if row["state"] != "in_doubt":
                raise WrongState(f"this call is not in doubt: it is {row['state']}")
            state = "succeeded" if happened else "failed"
            told = "it happened" if happened else "it did not happen"
            ledger.execute(
                "UPDATE calls SET state = ?, resolution = ?,"
                " client_key = CASE WHEN ? THEN client_key END WHERE id = ?",
                (state, f"{by} says that {told}: {reason}", happened, call_id),
            )
            held = balances.held_by(ledger, call_id)
            costs = {hold.unit: hold.amount for hold in held} if happened else {}
            spent = balances.resolve(ledger, call_id, costs)
            if not happened:
                ledger.execute("UPDATE undos SET state = 'void' WHERE call_id = ?", (call_id,))
            refunded: list[Json] = []
            if row["kind"] == "undo":
                end = "done" if happened else "ready"
                refunded = ways_back.conclude(ledger, row["of_call"], call_id, end)
            ledger.event(
                "call.resolved",
                tenant=row["tenant"],
                call_id=call_id,
                state=state,
                reason=reason,
                by=by,
                spent=spent,
                **({"refunded": refunded} if refunded else {}),
            )
            return state

        return await self._writer.write(change)

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

    async def note_log_key(self, verifier: str, *, replaces: Sequence[str], by: str) -> None:
        """Record that checkpoints of the log will be signed with another key."""

        def change() -> None:
            self._ledger.event(
                "log.key", tenant=None, call_id=None, verifier=verifier, replaces=list(replaces), by=by
            )

        await self._writer.write(change)

    async def switch(
        self, *, kind: SwitchKind, scope: str, target: str, tenant: str, on: bool, reason: str, by: str
    ) -> bool:
        """Turn a switch on or off; False when it already was so. Effective everywhere with this commit."""

        def change() -> bool:
            ledger = self._ledger
            key = (kind, scope, target, tenant)
            if (key in ledger.switches) == on:
                return False
            if on:
                # Not gathered: the very next change of this transaction must see it.
                ledger.execute(
                    "INSERT INTO switches (kind, scope, target, tenant, reason, set_by, set_us)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (*key, reason, by, ledger.now_us),
                )
            else:
                ledger.execute(
                    "DELETE FROM switches WHERE kind = ? AND scope = ? AND target = ? AND tenant = ?", key
                )
            ledger.reload_switches()
            ledger.event(
                f"switch.{'on' if on else 'off'}",
                tenant=tenant or None,
                call_id=None,
                switch=kind,
                scope=scope,
                target=target,
                reason=reason,
                by=by,
            )
            return True

        return await self._writer.write(change)

    async def start_shadow(self, *, version: str, text: str, by: str) -> None:
        """Try a policy beside the one in force; what an earlier trial found is gone."""

        def change() -> None:
            ledger = self._ledger
            ledger.execute("DELETE FROM shadow_differences")
            ledger.execute("DELETE FROM shadows")
            ledger.execute(
                "INSERT INTO shadows (version, text, started_by, started_us) VALUES (?, ?, ?, ?)",
                (version, text, by, ledger.now_us),
            )
            ledger.event("shadow.started", tenant=None, call_id=None, version=version, by=by)

        await self._writer.write(change)

    async def stop_shadow(self, *, by: str) -> bool:
        """End the trial, and keep what it found; False when there is none."""

        def change() -> bool:
            ledger = self._ledger
            running = ledger.one("SELECT version FROM shadows WHERE stopped_us IS NULL", ())
            if running is None:
                return False
            ledger.execute("UPDATE shadows SET stopped_us = ?", (ledger.now_us,))
            ledger.event("shadow.stopped", tenant=None, call_id=None, version=running["version"], by=by)
            return True

        return await self._writer.write(change)

    async def note_shadow(
        self, *, started_us: int, decided: int, dropped: int, groups: Sequence[Group]
    ) -> None:
        """Add what one process found since it last said so, if the trial is still the same."""

        def change() -> None:
            ledger = self._ledger
            if ledger.one("SELECT 1 FROM shadows WHERE started_us = ?", (started_us,)) is None:
                return
            ledger.execute(
                "UPDATE shadows SET decided = decided + ?, dropped = dropped + ?", (decided, dropped)
            )
            for group in groups:
                found = group.difference
                key = (found.before, found.after, orjson.dumps(found.rules).decode())
                ledger.execute(
                    "INSERT INTO shadow_differences (before, after, rules, count, examples, last_us)"
                    " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (before, after, rules) DO UPDATE SET"
                    " count = shadow_differences.count + excluded.count, last_us = excluded.last_us",
                    (*key, group.count, orjson.dumps(group.examples).decode(), ledger.now_us),
                )

        await self._writer.write(change, durable=False)

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

    # Keys.

    async def know_pepper(self, check: str) -> None:
        """Take note of the pepper by its `check`; another one than before only while nothing needs the old.

        Raises WrongState, which says what needs it.
        """

        def change() -> None:
            ledger = self._ledger
            known = ledger.one("SELECT digest FROM secret_checks WHERE name = 'pepper'")
            if known is None:
                ledger.insert("secret_checks", ("pepper", check, ledger.now_us))
            elif known["digest"] != check:
                self._must_not_need_the_old_pepper()
                ledger.execute(
                    "UPDATE secret_checks SET digest = ?, since_us = ? WHERE name = 'pepper'",
                    (check, ledger.now_us),
                )
                ledger.event("key.pepper", tenant=None, call_id=None, check=check)

        await self._writer.write(change)

    def _must_not_need_the_old_pepper(self) -> None:
        now = self._ledger.now_us
        keys = self._ledger.all(
            "SELECT id FROM api_keys WHERE revoked_us IS NULL AND expires_us > ? ORDER BY id", (now,)
        )
        doubts = self._ledger.all("SELECT id FROM calls WHERE state = 'in_doubt' AND kind = 'call'")
        if not keys and not doubts:
            return
        raise WrongState(
            f"{beside(self.at, '.pepper')} is not the pepper that this database knows: {len(keys)} API keys"
            f" would prove nothing, and {len(doubts)} calls in doubt would not be known again. Restore the"
            " file, which lies beside store.path. If it is lost, end these keys (remit agents key revoke) and"
            " doubts (remit doubt resolve), then start again and make new keys"
        )

    async def add_key(self, key: KeyRecord, *, by: str) -> None:
        def change() -> None:
            self._ledger.insert(
                "api_keys",
                (
                    key.id,
                    key.tenant,
                    key.agent,
                    key.user,
                    key.digest,
                    key.label,
                    key.created_us,
                    key.expires_us,
                    key.revoked_us,
                ),
            )
            self._ledger.event(
                "key.created",
                tenant=key.tenant,
                call_id=None,
                key_id=key.id,
                agent=key.agent,
                user=key.user,
                by=by,
            )

        await self._writer.write(change)

    async def revoke_key(self, key_id: str, *, by: str) -> None:
        """Raises UnknownRecord when there is no such key that is still valid."""

        def change() -> None:
            row = self._ledger.one(
                "SELECT tenant FROM api_keys WHERE id = ? AND revoked_us IS NULL", (key_id,)
            )
            if row is None:
                raise UnknownRecord(f"there is no valid key {key_id}")
            self._ledger.execute(
                "UPDATE api_keys SET revoked_us = ? WHERE id = ?", (self._ledger.now_us, key_id)
            )
            self._ledger.event("key.revoked", tenant=row["tenant"], call_id=None, key_id=key_id, by=by)

        await self._writer.write(change)

    async def key(self, key_id: str) -> KeyRecord | None:
        """Read beside the writer: whoever knocks with made-up keys must not take its time.

        Raises StoreUnavailable.
        """

        def read() -> KeyRecord | None:
            with reading(self.at) as db:
                row = db.one("SELECT * FROM api_keys WHERE id = ?", (key_id,))
            return KeyRecord(**row) if row else None

        return await anyio.to_thread.run_sync(read)

    async def undoable(self, call_id: str, *, beneath: str | None = None) -> Undoable | None:
        """The call and its plan, whatever their state; None when the call does not exist or has no plan.

        With `beneath` as that call on the same thing has found it, whatever was done from then on.
        """
        return await self._writer.write(
            lambda: ways_back.undoable(self._ledger, self._sealer, call_id, beneath=beneath), durable=False
        )

    async def in_doubt(self, *, before_us: int) -> Mapping[str, tuple[str, str]]:
        """The kind and tool of every call in doubt whose time was over by `before_us`, oldest first."""

        def change() -> Mapping[str, tuple[str, str]]:
            rows = self._ledger.all(
                "SELECT id, kind, tool FROM calls WHERE state = 'in_doubt' AND deadline_us < ? ORDER BY id",
                (before_us,),
            )
            return {row["id"]: (row["kind"], row["tool"]) for row in rows}

        return await self._writer.write(change, durable=False)

    async def recorded(self, call_id: str) -> Recorded | None:
        """The call as its record has it; None when there is none."""
        return await self._writer.write(
            lambda: earlier_calls.recorded(self._ledger, self._sealer, call_id), durable=False
        )

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
            tenant, agent, user, run = key = runs.key_of(call)
            under_way = self._ledger.all(
                # Few are under way, while an agent may have made any number.
                "SELECT DISTINCT tool FROM calls INDEXED BY ix_calls_open"
                " WHERE state = 'dispatched' AND kind = 'call'"
                ' AND incarnation <> ? AND tenant = ? AND agent = ? AND "user" = ? AND run = ?',
                (self._ledger.stream, tenant, agent, user, run),
            )
            if any(serial(row["tool"]) for row in under_way):
                return None
            return runs.current(self._ledger, key)

        return await self._write(look, durable=False)

    async def asked_as(self, call: Call) -> str | None:
        """The call under which people are asked about an equal one, or have agreed to it; None otherwise."""
        return await self._write(lambda: approval_requests.asked_as(self._ledger, call), durable=False)

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

        def change() -> None:
            proven.note(
                self._ledger,
                digest=digest,
                tool=tool,
                source=source,
                by=by,
                tenant=tenant,
                call_id=call_id,
                differs=differs,
            )

        await self._writer.write(change)

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
    ) -> tuple[str, int]:
        """Begin a run, or carry on an equal one that has not ended well; return its id, and when it began."""
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
            )
        )

    async def take_over_playbooks(self, digests: Mapping[str, str]) -> list[Resumed]:
        """The runs that began by themselves and whose process is gone: this one carries them on.

        `digests` are the versions of now, by name: a run of another version ends here, as failed.
        """
        return await self._writer.write(lambda: playbook_runs.take_over(self._ledger, digests))

    async def note_playbook(
        self, *, run: str, tenant: str, step: str, state: str, said: str, call_id: str | None
    ) -> None:
        """Record how one step ended."""
        await self._writer.write(
            lambda: playbook_runs.note_step(
                self._ledger, run=run, tenant=tenant, step=step, state=state, said=said, call_id=call_id
            )
        )

    async def end_playbook(self, *, run: str, tenant: str, state: str) -> None:
        await self._writer.write(lambda: playbook_runs.end(self._ledger, run=run, tenant=tenant, state=state))

    async def tell(self, run: RunKey) -> tuple[Notice, ...]:
        """What others did to the calls of this run and it was not told yet. Whoever asks must tell it."""
        return await self._writer.write(lambda: notices.take(self._ledger, run))

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

    async def standing(self, tenant: str, agent: str, accounts: Sequence[Charge]) -> dict[str, Any]:
        """How one agent stands: its open requests, the balances of `accounts`, the switches that are on."""

        def change() -> dict[str, Any]:
            held_back = self._ledger.all(
                "SELECT id AS call_id, tool, due_us, waits_for FROM calls WHERE state = 'scheduled'"
                " AND tenant = ? AND agent = ? ORDER BY due_us LIMIT 100",
                (tenant, agent),
            )
            return {
                "pending_approvals": approval_requests.open_of(self._ledger, tenant, agent),
                "held_back": [dict(row) for row in held_back],
                "budgets": [
                    {
                        "budget": account.label,
                        "unit": account.unit,
                        "limit": account.limit,
                        "left": max(0, balances.left(self._ledger, account)),
                        "renewed_us": account.window_end_us,
                    }
                    for account in accounts
                ],
                "switches_on": sorted({kind for kind, *_ in self._ledger.switches}),
            }

        return await self._writer.write(change, durable=False)

    async def close(self) -> None:
        """Write what is queued or owed, seal this incarnation and let go of the file.

        Raises StoreUnavailable when that cannot be written; who opens the file next takes over then.
        """
        await self.catch_up()

        def change() -> None:
            for call in _open_calls(self._ledger, self._ledger.stream):
                _leave_behind(self._ledger, call, self._ledger.stream)
            self._ledger.event("stream.closed", tenant=None, call_id=None)

        try:
            await self._writer.write(change, must=True)
        finally:
            await self._writer.stop()

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

    def _seal(self, call: Call) -> Seal | None:
        """What this call's payloads are sealed with: an undo carries what the call did that it takes back."""
        also = ""
        if call.of_call and call.kind not in ("before", "fact"):  # what those precede has no record yet
            row = self._ledger.one(
                "SELECT keys FROM payloads WHERE call_id = ? AND kind = 'arguments'", (call.of_call,)
            )
            also = row["keys"] if row else ""
        who = call.principal
        return self._sealer.seal_for(who.tenant, (who.user, *call.subjects), also)

    def _short(
        self, call: Call, verdict: Verdict, charges: Sequence[Charge], now: int, *, agreed: bool
    ) -> Verdict | Charge | None:
        """The refusal when an account cannot take its hold, or the word that people must agree (`agreed`).

        A charge: the call can wait until its account takes it. An empty budget never stands in the way of an
        undo.
        """
        if call.kind in ("undo", "verify", "after"):
            return None
        strict = [
            charge
            for charge in charges
            if charge.on_exceed in ("deny", "defer") or (charge.on_exceed == "approve" and not agreed)
        ]
        if balances.too_small(self._ledger, strict) is None:
            return None
        # What cannot be made at all is not put to people, and what people must agree to does not wait before.
        ranked = sorted(strict, key=lambda charge: ("deny", "approve", "defer").index(charge.on_exceed))
        short = balances.too_small(self._ledger, ranked)
        assert short is not None  # noqa: S101 - it is the same charges
        charge, account = short
        redacts = any(duty.name == "redact" for duty in verdict.duties)
        if deferred.can_wait(self._ledger, call, charge) and not redacts:
            if now < deferred.waits_until_us(call, charge, now):
                return charge
            return replace(
                verdict,
                rung=Rung.DENY,
                code="waited_too_long",
                reason=f"The budget for {charge.label} could not take this call in all the time it waited.",
                remedy=Remedy.ASK,
            )
        if charge.on_exceed == "approve":
            return replace(
                verdict,
                rung=Rung.APPROVE,
                code="over_budget",
                reason=f"The budget for {charge.label} cannot take this call, so a person must agree to it.",
                remedy=Remedy.ASK,
            )
        until = charge.window_end_us
        when = f" It is free again in {max(1, (until - now) // 1_000_000)} s." if until else ""
        return replace(
            verdict,
            rung=Rung.DENY,
            code="budget_exhausted",
            reason=f"The budget for {charge.label} cannot take this call: it needs {charge.amount}, "
            f"{max(0, account.left)} of {account.limit_amount} are left.{when}",
            remedy=Remedy.WAIT if until else Remedy.ASK,
        )

    def _wait_on(self, call: Call, charge: Charge) -> Waits | Repeated:
        """Have a call that has waited for a budget wait on."""
        due_us = deferred.wait_on(self._ledger, call, charge)
        if due_us is None:
            return Repeated(call_id=call.id, state="dispatched", reply=None)
        self._event("call.postponed", call, due_us=due_us, waits_for=charge.account)
        return Waits(due_us=due_us, waits_for=charge.account)

    def _spent(self, confirmation: Confirmation, verdict: Verdict) -> Verdict | None:
        """The refusal when the user's word was good for another call, or is too old by now."""
        self._ledger.write_out()  # that call may have been let out in this very transaction
        used = self._ledger.one("SELECT 1 FROM calls WHERE confirmation = ?", (confirmation.id,))
        if used is None and confirmation.until_us > self._ledger.now_us:
            return None
        return replace(
            verdict,
            rung=Rung.DENY,
            code="confirmation_spent",
            reason="Your user's confirmation was used already or has run out. Send the call again without it "
            "to have them asked anew.",
            remedy=Remedy.ASK,
        )

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
        seal = self._seal(call)
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
                orjson.dumps(call.claim).decode() if call.claim else None,
                call.confirmation.id if call.confirmation and state in _LET_IN else None,
            ),
        )
        return {
            "arguments_commit": commit,
            "redacted": kept != call.arguments_json,
            "purpose": call.kind,
            "of_call": call.of_call,
            **seen,
        }

    def _event(self, kind: str, call: Call, *, call_id: str | None = None, **facts: Any) -> None:
        self._ledger.event(
            kind,
            tenant=call.principal.tenant,
            call_id=call_id or call.id,
            agent=call.principal.agent,
            user=call.principal.user,
            run=call.run,
            tool=call.tool.name,
            tool_digest=call.tool.digest,
            effect=call.tool.effect.value,
            fingerprint=call.fingerprint,
            **facts,
        )


async def open_journal(
    at: Location,
    *,
    role: str,
    relaxed: bool = False,
    queue_max: int = 4096,
    lease_s: float = 15,
    clock: Clock = now_us,
    key: str | None = None,
) -> Journal:
    """Open (and, when new, create) the audit database for this process.

    `key` is the master key of its payloads in hexadecimal; None: the file beside it, made when it is new.
    Takes over the calls of processes that died: reads end as failed, anything else is in doubt.
    Raises RemitError when it cannot be used.
    """
    stream = uuid7(clock())
    store = await anyio.to_thread.run_sync(
        lambda: _opened(at, stream=stream, role=role, relaxed=relaxed, lease_s=lease_s, clock=clock)
    )
    ledger = Ledger(store, stream=stream, role=role, clock=clock)
    sealer = await anyio.to_thread.run_sync(_sealer, ledger, at, key)
    writer = Writer(ledger, queue_max=queue_max)

    def change() -> None:
        ledger.begin_life()
        _take_over_the_dead(ledger)

    await writer.write(change)
    return Journal(ledger, sealer, writer, at)


def _opened(at: Location, *, stream: str, role: str, relaxed: bool, lease_s: float, clock: Clock) -> Store:
    if isinstance(at, Postgres):
        from remit.ledger_postgres import PostgresStore

        upgrade(at)
        return PostgresStore(at, stream=stream, role=role, relaxed=relaxed, lease_s=lease_s, clock=clock)
    try:
        at.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        must_be_local(at.parent)
        upgrade(at)
        return SqliteStore(at, stream=stream, relaxed=relaxed)
    except OSError as error:
        raise RemitError(f"the audit database {at} cannot be used: {error.strerror}") from None
    except sqlite3.Error as error:
        raise RemitError(f"the audit database {at} cannot be used: {error}") from None


def _sealer(ledger: Ledger, at: Location, key: str | None) -> Sealer:
    """What seals the payloads of this database. Raises RemitError when it is not the key of those there."""
    living = is_living(ledger.one)
    sealer = Sealer(master_key(at, key, living=living is not None), ledger)
    if living is not None:
        try:
            sealer.vault.unwrapped(living["id"], living["wrapped"])
        except KeyUnusable as error:
            raise RemitError(f"{error}: restore the right one") from None
    return sealer


def _take_over_the_dead(ledger: Ledger) -> None:
    for stream in ledger.bury():
        for call in _open_calls(ledger, stream):
            _leave_behind(ledger, call, stream)


def _open_calls(ledger: Ledger, incarnation: str) -> Sequence[Row]:
    return ledger.all(
        "SELECT id, tenant, effect, kind, of_call FROM calls WHERE incarnation = ? AND state = 'dispatched'",
        (incarnation,),
    )


def _leave_behind(ledger: Ledger, call: Row, incarnation: str) -> None:
    """End a call whose process died: a read did nothing, anything else may have."""
    harmless = call["effect"] == Effect.READ.value
    ledger.execute(
        "UPDATE calls SET state = ?, finished_us = ?, error_code = 'interrupted', error = ? WHERE id = ?",
        (
            "failed" if harmless else "in_doubt",
            ledger.now_us,
            "The gateway stopped while this call was under way.",
            call["id"],
        ),
    )
    if harmless:
        balances.resolve(ledger, call["id"], {})
    else:
        ledger.look_up_doubts()
    if call["kind"] == "undo":
        ways_back.conclude(ledger, call["of_call"], call["id"], "indeterminate")
    ledger.event(
        "call.failed" if harmless else "call.in_doubt",
        tenant=call["tenant"],
        call_id=call["id"],
        error_code="interrupted",
        left_by=incarnation,
    )


_LET_IN = ("scheduled", "dispatched")
_VERDICT = {Rung.EXECUTE: "execute", Rung.APPROVE: "approve", Rung.ADVISE: "advise", Rung.DENY: "deny"}


def _decision(verdict: Verdict) -> dict[str, Any]:
    return {
        "verdict": _VERDICT[verdict.rung],
        "code": verdict.code,
        "policy_version": verdict.policy_version,
        "rows": list(verdict.rows),
    }


def _no(code: str, reason: str, remedy: Remedy) -> Verdict:
    return Verdict(rung=Rung.DENY, code=code, reason=reason, remedy=remedy)


def _held(charges: Sequence[Charge]) -> list[Json]:
    return [
        {"account": charge.account, "window_us": charge.window_start_us, "amount": charge.amount}
        for charge in charges
    ]
