"""Random histories over the model world, and what must be true of each of them.

U1 the effect of an undo happens at most once; U2 what is taken back is as it was before; U3 what others wrote
is never lost (unless a person insists); U4 nothing that was called off is sent; U5 a rollback made again
changes nothing and says the same; U6 where nothing is in the way, everything comes back. Beside them: what is
recorded as failed did not happen, and nothing happens twice.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import anyio
from tests.server.builders import POLICY, Clock, Remit, a_principal, a_remit, rows
from tests.undo.world import PLAIN, RULES, THINGS, Fate, World

from remit.due import send_due
from remit.errors import RemitError
from remit.identity import Principal
from remit.probes import Prober
from remit.records import CallQuery, open_records
from remit.rollback import Step, plan, roll_back
from remit.undo import undo

BOSS = Principal(tenant="acme", agent="agent:remit-cli", user="user:bea", auth="local")
EVERYTHING = POLICY + "".join(
    f"p, role:{role}, acme, shop.{tool}, 1 == 1, allow\n"
    for role, tool in [
        ("clerk", "put, execute"),
        ("clerk", "put, undo"),
        ("clerk", "send, undo"),
        ("boss", "set, undo"),
        ("boss", "put, undo"),
        ("boss", "send, undo"),
    ]
)
AGENTS = ("agent:bot", "agent:other")
_FATES: tuple[Fate, ...] = get_args(Fate)
_DEATHS_MAX = 2


class Broken(AssertionError):
    """An invariant does not hold."""


def must(holds: object, what: str) -> None:
    if not holds:
        raise Broken(what)


class History:
    """One world, one database, one process life after another."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.folder = folder
        self.world, self.clock, self.prober = World(), Clock(), Prober()
        self.forced: set[str] = set()
        self.deaths = 0
        self._stack = AsyncExitStack()
        self._died = asyncio.Event()
        self.world.dies = self._die

    async def play(self, steps: int) -> None:
        async with self._stack:
            await self._begin()
            for _ in range(steps):
                await self._surviving(self._step())
                self.world.fate = "well"
            await self._end()

    async def _begin(self) -> None:
        self._died = asyncio.Event()
        self.remit: Remit = await self._stack.enter_async_context(
            a_remit(
                self.folder,
                policy=EVERYTHING,
                tools=RULES,
                source=self.world,
                clock=self.clock,
                store={"path": self.folder / "remit.db", "durability": "relaxed"},
            )
        )

    def _die(self) -> None:
        self.deaths += 1
        self.remit.die()
        self._died.set()

    async def _surviving(self, step: Any) -> None:
        """Make a step; when the process dies in it, begin another life."""
        task, died = asyncio.ensure_future(step), asyncio.ensure_future(self._died.wait())
        await asyncio.wait({task, died}, return_when=asyncio.FIRST_COMPLETED)
        if self._died.is_set():
            await self._begin()
        died.cancel()
        if not task.done():
            task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def _step(self) -> None:
        chance, agent = self.chance, a_principal(self.chance.choice(AGENTS))
        thing, value = chance.choice(THINGS), chance.randint(0, 4)
        if chance.random() < 0.12:
            fates = _FATES if self.deaths < _DEATHS_MAX else _FATES[:5]
            self.world.fate = chance.choice(fates)
        match chance.choices(
            ("set", "buy", "send", "undo", "force", "outside", "probe", "wait", "rollback"),
            (30, 12, 8, 25, 2, 6, 6, 6, 3),
        )[0]:
            case "set":
                tool = "shop.put" if thing in PLAIN else "shop.set"
                await self.remit.call(tool, {"thing": thing, "value": value}, principal=agent)
            case "buy":
                await self.remit.call("shop.buy", {"thing": thing, "price": value}, principal=agent)
            case "send":
                await self.remit.call("shop.send", {"text": f"{thing} {value}"}, principal=agent)
            case "undo":
                await self._take_back(agent)
            case "force":
                await self._take_back(BOSS, force=True)
            case "outside":
                self.world.write_from_outside(thing, value)
            case "probe":
                await self._probe(after_s=120)
            case "wait":
                self.clock.advance(s=chance.choice((60, 400)))
                await asyncio.gather(send_due(self.remit.on), send_due(self.remit.on))  # as two replicas may
            case _:
                await self._roll_back(agent=agent.agent)

    async def _probe(self, *, after_s: int) -> None:
        self.clock.advance(s=after_s)
        found = await self.prober.round(self.remit.on)
        calls = {row["id"]: row for row in self.remit.rows("SELECT id, kind, of_call FROM calls")}
        happened = set(self.world.effects())
        for finding in found:
            of_call = calls[finding.call_id]["of_call"]
            if finding.state != "succeeded" or of_call is None or finding.call_id in happened:
                continue
            thing = next(t for t in THINGS if of_call in {write.key for write in self.world.writes[t]})
            top = self.world.writes[thing][-1].key
            by_another = top != of_call and top in calls and calls[top]["kind"] == "call"
            must(not by_another, "what a later call did was taken for the undo")

    async def _take_back(self, who: Principal, *, force: bool = False) -> None:
        made = self.remit.rows(
            "SELECT id FROM calls WHERE kind = 'call' AND effect <> 'read' ORDER BY created_us DESC LIMIT 12"
        )
        if not made:
            return
        call_id = self.chance.choice(made)["id"]
        if force:
            self.forced.add(call_id)
        with suppress(RemitError):
            await undo(call_id, who, "run-1", self.remit.on, force=force)

    async def _roll_back(self, **query: Any) -> list[Step]:
        with open_records(self.remit.path, clock=self.clock) as records:
            calls = records.calls(CallQuery(tenant="acme", **query), limit=10_000)
            steps = await plan(records, calls, BOSS, "cli", self.remit.on, force=False)
        ended = await roll_back(steps, BOSS, "cli", self.remit.on, force=False)
        waited = {call.id for call in calls if call.state == "scheduled"}
        must(
            all(step.part == "done" for step in ended if step.call_id in waited),
            "U6: what was held back was not called off",
        )
        return ended

    async def _end(self) -> None:
        """Everything settles; then all is rolled back, twice."""
        for _ in range(3):
            await self._probe(after_s=3600)
        await send_due(self.remit.on)
        self.check()
        once = await self._roll_back()
        self.check()
        before = Counter(self.world.effects())
        again = await self._roll_back()
        parts = [(step.call_id, step.part) for step in once]
        must(parts == [(step.call_id, step.part) for step in again], "U5: another report")
        must(before == Counter(self.world.effects()), "U5: another effect")
        acted = self.remit.rows(
            "SELECT id FROM calls WHERE kind = 'call' AND effect <> 'read' AND state IN"
            " ('scheduled', 'cancelled', 'dispatched', 'in_doubt', 'succeeded')"
        )
        must({call_id for call_id, _ in parts} == {row["id"] for row in acted}, "the report leaves calls out")
        self._check_nothing_in_the_way(once)

    def check(self) -> None:
        calls = {row["id"]: row for row in rows(self.remit.path, "SELECT * FROM calls")}
        self._check_truth(calls)
        for thing in THINGS:
            self._check_writes(thing, calls)
            self._check_sales(thing, calls)

    def _check_truth(self, calls: dict[str, dict[str, Any]]) -> None:
        happened = Counter(key for key in self.world.effects() if not key.startswith("outsider"))
        must(all(times == 1 for times in happened.values()), "something happened twice")
        for key in happened:
            state = calls[key]["state"]
            must(state in ("dispatched", "succeeded", "in_doubt"), f"it happened, and is recorded as {state}")
        for call_id, call in calls.items():
            if call["state"] == "succeeded" and call["kind"] == "call" and call["effect"] != "read":
                must(happened[call_id] == 1, "it is recorded as done, and did not happen")
        backs = Counter(calls[key]["of_call"] for key in happened if calls[key]["kind"] == "undo")
        must(all(times == 1 for times in backs.values()), "U1: taken back twice")
        open_ways = rows(
            self.remit.path,
            "SELECT id FROM calls JOIN undos ON undos.call_id = calls.id"
            " WHERE calls.state = 'cancelled' AND undos.state NOT IN ('done', 'void')",
        )
        must(not open_ways, "it is called off, and could still be taken back")
        must(not any(calls[mail]["state"] == "cancelled" for mail in self.world.mails), "U4: sent after all")

    def _check_writes(self, thing: str, calls: dict[str, dict[str, Any]]) -> None:
        """Replay the writes: an undo takes off what lies on top, and that is the call which it serves."""
        start, *writes = self.world.writes[thing]
        pile = [start]
        happened = set(self.world.effects())
        needless = {
            call["of_call"]
            for key, call in calls.items()
            if call["kind"] == "undo" and call["state"] == "succeeded" and key not in happened
        }
        for write in writes:
            call = calls.get(write.key)
            if call is None or call["kind"] == "call":
                pile.append(write)
                continue
            names = [each.key for each in pile]
            if call["of_call"] in self.forced:
                # What lay above it goes too, since a person insisted.
                if call["of_call"] not in names:
                    return  # they insisted on what another insistence had taken off: no order is left to hold
                del pile[names.index(call["of_call"]) :]
                if pile[-1].value != write.value:
                    pile.append(write)
                continue
            # An undo that was lost is taken for done where it would have put back what is there anyway.
            while pile[-1].key in needless and pile[-1].value == pile[-2].value:
                pile.pop()
            must(pile[-1].key == call["of_call"], f"U3: {write} replaced {pile[-1]}")
            pile.pop()
            must(pile[-1].value == write.value, f"U2: {write} put back what was not there: {pile[-1]}")

    def _check_sales(self, thing: str, calls: dict[str, dict[str, Any]]) -> None:
        """What was bought of one thing is given back from the last, though each could be given back alone."""
        pile: list[str] = []
        for key in self.world.sales[thing]:
            of_call = calls[key]["of_call"]
            if of_call is None:
                pile.append(key)
                continue
            must(of_call in self.forced or pile[-1] == of_call, f"U3: {of_call} came back before {pile[-1]}")
            pile.remove(of_call)

    def _check_nothing_in_the_way(self, steps: list[Step]) -> None:
        if self.forced:
            return
        for thing in set(THINGS) - self.world.outsiders:
            parts = {step.part for step in steps if step.resource == thing}
            if thing not in self.world.troubled:
                must(parts <= {"done"}, f"U6: nothing was in the way of {thing}, and it ended {parts}")
            if parts <= {"done"}:
                must(self.world.value(thing) == 0, f"U2: {thing} is not as it was")


def play(folder: Path, *, seed: int, steps: int) -> None:
    """Play one history. Raises Broken, or whatever the program raised."""

    async def run() -> None:
        with anyio.fail_after(120):
            await History(folder, seed).play(steps)

    # Ids are random in part: so that a history comes again exactly, they come of its seed too.
    with patch.object(os, "urandom", random.Random(seed).randbytes):
        asyncio.run(run())
