"""Death at an exact point: a forked process plays a story and ends itself where it is told to.

The source is in the process, and its effects are lines of a file outside: what is there has happened. The
parent then opens the same database as the next Remit would, looks whether file and records agree, lets the
agent do what an agent does that got no answer (ask again), and looks once more.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anyio
from tests.crash import books, mutants
from tests.server.builders import (
    Clock,
    Remit,
    ScriptedSource,
    a_database,
    a_principal,
    a_remit,
    a_reply,
    rows,
    tools,
)

from remit import ledger
from remit.errors import RemitError
from remit.ledger import Ledger
from remit.model import Done, Outcome, Pending
from remit.undo import undo
from remit_adapters.base import Caller, Reply, Request

KILLED = 137
#: What is done but not committed dies with the process, so before a commit nothing differs from after the one
#: before it, but for an effect; and that has moments of its own.
Moment = Literal["after commit", "before effect", "after effect", "between halves"]
BUDGETS = [
    {"scope": "agent", "unit": "calls", "window": "total", "limit": 1000},
    {"scope": "tenant", "unit": "usd", "window": "day", "limit": 100_000},
    {"scope": "agent", "unit": "usd", "window": "total", "limit": 100_000},
]
RULES = tools(buy={"price": {"usd": {"estimate": "args.price", "actual": "result.paid"}}})


@dataclass(frozen=True, kw_only=True)
class Death:
    moment: Moment
    #: The how-many-eth time that this moment comes.
    number: int

    def __str__(self) -> str:
        return f"{self.moment} {self.number}"


class Outside(ScriptedSource):
    """A shop whose till is a file: a line is written in one go, and then it has happened."""

    def __init__(self, till: Path, passes: Callable[[Moment], None]) -> None:
        super().__init__()
        self._till = till
        self._passes = passes

    keeps_deadlines = False

    async def run(self, request: Request, caller: Caller = Caller()) -> Reply:  # noqa: B008 - frozen
        await anyio.lowlevel.checkpoint()
        if request.name == "look":
            return a_reply({"value": 1})
        self._passes("before effect")
        line = json.dumps({"key": request.key, "name": request.name, "arguments": dict(request.arguments)})
        with self._till.open("a") as till:
            till.write(line + "\n")
        self._passes("after effect")
        return a_reply({"order": request.key, "paid": request.arguments.get("price", 0)})


def effects(till: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in till.read_text().splitlines()] if till.exists() else []


async def story(remit: Remit) -> None:
    """One of everything. Told again after a crash, each part finds out for itself how far it got."""
    await remit.call("shop.buy", {"thing": "pen", "price": 5}, client_key="pen")
    await remit.call("shop.look", {"thing": "pen"})
    await remit.call("shop.set", {"thing": "lamp", "value": 9}, client_key="lamp")
    await take_back(remit, "pen")
    await remit.call("shop.send", {"text": "hello"}, client_key="mail")
    # Sent twice: the answer of the first got lost.
    await remit.call("shop.send", {"text": "hello"}, client_key="mail")
    await insisted(remit)
    await approved(remit)
    await remit.call("shop.buy", {"thing": "moon", "price": 90_000})
    await remit.switch("safe", "all")
    await remit.call("shop.send", {"text": "while safe"})
    await remit.switch("safe", "all", on=False)
    await take_back(remit, "lamp")


async def take_back(remit: Remit, key: str) -> None:
    for row in remit.rows("SELECT id FROM calls WHERE client_key = ? AND state = 'succeeded'", key):
        with suppress(RemitError):
            await undo(row["id"], a_principal(), "run-1", remit.on)


async def insisted(remit: Remit) -> None:
    """A call without a key, sent again until it has succeeded, as agents do."""
    if not remit.rows(
        "SELECT id FROM calls WHERE tool = 'shop.give_back' AND kind = 'call' AND state = 'succeeded'"
    ):
        await remit.call("shop.give_back", {"order": "o-0"})


async def approved(remit: Remit) -> None:
    """Ask, have a person agree, and make the call; once for all tellings of the story."""
    if remit.rows(
        "SELECT id FROM calls WHERE tool = 'shop.buy' AND approval_id IS NOT NULL AND dispatched_us > 0"
    ):
        return
    car = {"thing": "car", "price": 500}
    outcome: Outcome = await remit.call("shop.buy", car)
    if isinstance(outcome, Pending):
        with suppress(RemitError):
            await remit.vote(outcome.approval_id)
        outcome = await remit.call("shop.buy", car)
    if isinstance(outcome, Done):
        await remit.call("shop.buy", car)


def die_at(death: Death | None) -> tuple[Callable[[Moment], None], Counter[Moment]]:
    seen: Counter[Moment] = Counter()

    def passes(moment: Moment) -> None:
        seen[moment] += 1
        if death is not None and (death.moment, death.number) == (moment, seen[moment]):
            os._exit(KILLED)

    return passes, seen


def play(folder: Path, death: Death | None = None, mutant: str | None = None) -> Counter[Moment]:
    """Play the story in a process of its own; return how often each moment came.

    Raises RuntimeError when the process ended in any way but by finishing or by `death`.
    """
    a_database(folder)
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        code = 1
        try:
            passes, seen = die_at(death)
            _instrument(passes)
            if mutant:
                mutants.between = lambda: passes("between halves")
                mutants.MUTANTS[mutant]()
            anyio.run(_tell, folder, passes, 0)
            os.write(theirs, json.dumps(seen).encode())
            code = 0
        except BaseException:  # noqa: BLE001 - a process of its own, whose end is its code
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in (0, KILLED):
        raise RuntimeError(f"the story ended with {code}")
    return Counter(json.loads(said)) if said else Counter()


def _instrument(passes: Callable[[Moment], None]) -> None:
    ledger._NOT_LOGGED = 0  # whatever can be in the redo log is
    transaction = Ledger.transaction

    @contextmanager
    def watched(self: Ledger, *, durable: bool, wait: bool = True) -> Generator[None]:
        with transaction(self, durable=durable, wait=wait):
            yield
        passes("after commit")

    Ledger.transaction = watched


async def _tell(folder: Path, passes: Callable[[Moment], None], later_s: int) -> None:
    source = Outside(folder / "till", passes)
    clock = Clock()
    clock.advance(s=later_s)
    async with a_remit(folder, source=source, clock=clock, tools=RULES, budgets=BUDGETS) as remit:
        await story(remit)


def flaws_after(folder: Path, death: Death, mutant: str | None = None) -> list[str]:
    """Play, die, and return what is then wrong: before anybody does anything, and after the agent goes on."""
    play(folder, death, mutant)
    found = [f"at rest: {flaw}" for flaw in disagreements(folder, at_rest=True)]
    resumed = _resumed(folder, mutant)
    return found + [f"resumed: {flaw}" for flaw in [*resumed, *disagreements(folder, at_rest=False)]]


def _resumed(folder: Path, mutant: str | None) -> list[str]:
    """Open the database as the next process life, and let the agent ask again for all that it wanted."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if mutant:
                mutants.MUTANTS[mutant]()
            anyio.run(_tell, folder, lambda moment: None, 60)
            code = 0
        except BaseException as error:  # noqa: BLE001 - as above
            print(f"{type(error).__name__}: {str(error)[:300]}", file=sys.__stderr__)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return [] if code == 0 else ["the next process did not get through the story"]


def disagreements(folder: Path, *, at_rest: bool) -> list[str]:
    """What the records say that the till does not, and the other way round."""
    path = folder / "remit.db"
    calls = {row["id"]: row for row in rows(path, "SELECT * FROM calls")} if path.exists() else {}
    happened = effects(folder / "till")
    found = books.flaws(path) if calls else []
    counts = Counter(effect["key"] for effect in happened)
    for key, count in counts.items():
        if count > 1:
            found.append(f"call {key} took effect {count} times")
        call = calls.get(key)
        if call is None:
            found.append(f"an effect of {key} has no record")
        elif call["state"] not in ("succeeded", "in_doubt", *(("dispatched",) if at_rest else ())):
            found.append(f"call {key} took effect and is {call['state']}")
    for call in calls.values():
        writes = call["kind"] in ("call", "undo") and call["effect"] != "read"
        if call["state"] == "succeeded" and writes and not counts[call["id"]]:
            found.append(f"call {call['id']} is said to have succeeded and has had no effect")
        if call["state"] == "dispatched" and not at_rest:
            found.append(f"call {call['id']} is still open although its process is gone")
    # What was wanted once happened at most once, however often it was asked for.
    for wanted, count in Counter(json.dumps([it["name"], it["arguments"]]) for it in happened).items():
        if count > 1:
            found.append(f"{wanted} happened {count} times")
    return found
