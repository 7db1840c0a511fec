"""Builders: a configuration, a source whose behaviour a test scripts, a clock, and a Remit around them.

Nothing here asserts about behaviour, but for one thing: when a Remit built here ends, its books must
balance (`tests.crash.books`), whatever the test did to it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import sqlite3
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import orjson
from anyio.abc import TaskGroup
from tests.crash import books
from tests.postgres import Databases

from remit import approvals, catalog
from remit.budgets import Accounts
from remit.calls import new_call
from remit.config import Budget, Config
from remit.database import Location, Postgres, exists, reading
from remit.errors import StoreUnavailable
from remit.identity import Principal
from remit.journal import open_journal
from remit.model import Call, Done, Outcome, Refused
from remit.pipeline import Services, govern
from remit.postgres import Session
from remit.records import open_records
from remit.schema import upgrade
from remit_adapters.base import NOBODY, Caller, Event, Health, Offer, Reply, Request
from remit_rbac import load_text

TENANT = "acme"
SECRET = b"s" * 32

POLICY = """\
g, agent:bot, role:clerk, acme
g, agent:other, role:clerk, acme
g, user:ann, role:clerk, acme
g, user:bea, role:boss, acme
g, user:cyd, role:boss, acme
g3, agent:bot, user:ann, acme
g3, agent:other, user:ann, acme
p, role:clerk, acme, shop.buy, execute, r.args.price <= 100, allow
p, role:clerk, acme, shop.buy, recommend, r.args.price <= 1000, allow
p, role:clerk, acme, shop.buy, advise, r.args.price <= 5000, allow
p, role:clerk, acme, shop.give_back, execute, 1 == 1, allow
p, role:clerk, acme, shop.look, execute, 1 == 1, allow
p, role:clerk, acme, shop.set, execute, 1 == 1, allow
p, role:clerk, acme, shop.send, execute, 1 == 1, allow
p, role:clerk, acme, shop.buy, undo, 1 == 1, allow
p, role:clerk, acme, shop.set, undo, 1 == 1, allow
p, role:boss, acme, shop.buy, approve, 1 == 1, allow
p, role:boss, acme, shop.buy, undo, 1 == 1, allow
"""

TOOLS: Mapping[str, Any] = {
    "shop.look": {"effect": "read"},
    "shop.buy": {
        "effect": "reversible",
        "resource": "args.thing",
        "undo": {"call": "shop.give_back", "args": {"order": "result.order"}, "within": "24h"},
    },
    "shop.give_back": {"effect": "irreversible"},
    "shop.set": {
        "effect": "restorable",
        "resource": "args.thing",
        "before": {"call": "shop.look", "args": {"thing": "args.thing"}},
        "undo": {"call": "shop.set", "args": {"thing": "args.thing", "value": "before.value"}},
    },
    "shop.send": {"effect": "irreversible"},
}

Behaviour: TypeAlias = (
    "Reply | BaseException | Callable[[Request, Caller], Awaitable[Reply]] | dict[str, Any] | str"
)


def a_definition(name: str, **properties: str) -> dict[str, Any]:
    """A tool as its source defines it: every property is required."""
    return {
        "name": name,
        "inputSchema": {
            "type": "object",
            "properties": {key: {"type": kind} for key, kind in properties.items()},
            "required": list(properties),
        },
    }


SHOP = Offer(
    tools=(
        a_definition("look", thing="string"),
        a_definition("buy", thing="string", price="integer"),
        a_definition("give_back", order="string"),
        a_definition("set", thing="string", value="integer"),
        a_definition("send", text="string"),
    )
)


def tools(**changes: Any) -> dict[str, Any]:
    """The shop's rules with changes to single tools."""
    return {
        **TOOLS,
        **{f"shop.{name}": {**TOOLS[f"shop.{name}"], **rules} for name, rules in changes.items()},
    }


def a_reply(value: Any = None, *, is_error: bool = False, **more: Any) -> Reply:
    """What a tool answers: structured content for anything but text."""
    body: dict[str, Any] = {"content": [{"type": "text", "text": value if isinstance(value, str) else "ok"}]}
    if isinstance(value, dict):
        body["structuredContent"] = value
    return Reply(body={**body, "isError": is_error, **more}, is_error=is_error)


class ScriptedSource:
    """An adapter without a source behind it: it does what a test says, and remembers what reached it.

    `on` says by own name what a request does: answers with a Reply (or a value to make one of), raises an
    exception, or runs a function. What is not in `on` is answered with "ok".
    """

    def __init__(self, source: str = "shop", offer: Offer = SHOP) -> None:
        self.source = source
        self.offered = offer
        self.on: dict[str, Behaviour] = {}
        self.sent: list[Request] = []
        #: Set whenever a request arrives: `await source.reached()`.
        self._reached = anyio.Event()
        self.subscribed: list[tuple[str, bool]] = []
        self.on_event: Callable[[Event], None] = lambda _: None

    def effects(self, name: str) -> list[Request]:
        return [request for request in self.sent if request.name == name]

    async def reached(self, count: int = 1) -> None:
        """Wait until this many requests have arrived."""
        with anyio.fail_after(10):
            while len(self.sent) < count:
                self._reached = anyio.Event()
                await self._reached.wait()

    async def start(self, tasks: TaskGroup, on_event: Callable[[Event], None]) -> None:
        self.on_event = on_event

    async def stop(self) -> None: ...

    async def offer(self) -> Offer:
        return self.offered

    async def subscribe(self, uri: str, on: bool) -> None:
        self.subscribed.append((uri, on))

    def health(self) -> Health:
        return Health(state="up")

    keeps_deadlines = False

    async def run(self, request: Request, caller: Caller = NOBODY) -> Reply:
        self.sent.append(request)
        self._reached.set()
        found = self.on.get(request.name or request.operation.value, "ok")
        if isinstance(found, BaseException):
            raise found
        if isinstance(found, Reply):
            return found
        if isinstance(found, (dict, str)):
            return a_reply(found)
        return await found(request, caller)


class Gate:
    """Requests wait here until a test opens it: `source.on["buy"] = gate`."""

    def __init__(self, answer: Any = "ok") -> None:
        self.opened = anyio.Event()
        self.ended: list[str] = []
        self._answer = answer

    def open(self) -> None:
        self.opened.set()

    async def __call__(self, request: Request, caller: Caller) -> Reply:
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("answered")
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer if isinstance(self._answer, Reply) else a_reply(self._answer)


class Clock:
    """Time that moves one microsecond for each look, and otherwise only when told to."""

    def __init__(self, at_us: int = 1_800_000_000_000_000) -> None:
        self.now_us = at_us

    def __call__(self) -> int:
        self.now_us += 1
        return self.now_us

    def advance(self, *, s: float) -> None:
        self.now_us += int(s * 1_000_000)


def a_principal(agent: str = "agent:bot", user: str = "user:ann", **more: Any) -> Principal:
    return Principal(**{"tenant": TENANT, "agent": agent, "user": user, "auth": "api_key", **more})


def a_config(
    folder: Path, *, tools: Mapping[str, Any] = TOOLS, reads_when_down: bool = False, **settings: Any
) -> Config:
    return Config.model_validate(
        {
            "version": 1,
            "store": {"path": folder / "remit.db", "reads_when_down": reads_when_down}
            | ({"url": url_of(folder)} if databases else {}),
            "policy": {"files": [folder / "policy.csv"]},
            "sources": {"shop": {"kind": "mcp", "command": ["shop"]}},
            "tools": tools,
            **settings,
        }
    )


@dataclass(kw_only=True)
class Remit:
    """Services around one scripted source, and shorthands for what tests do all the time."""

    on: Services
    source: ScriptedSource
    clock: Clock
    path: Location
    #: Others have been made to believe that this process was killed.
    died: bool = False

    def a_call(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        principal: Principal | None = None,
        **more: Any,
    ) -> Call:
        return new_call(
            tool=self.on.catalog.tools[tool],
            arguments=arguments or {},
            principal=principal or a_principal(),
            run=more.pop("run", "run-1"),
            secret=SECRET,
            at_us=self.clock(),
            **more,
        )

    async def call(self, tool: str, arguments: Mapping[str, Any] | None = None, /, **more: Any) -> Outcome:
        return await govern(self.a_call(tool, arguments, **more), self.on)

    async def done(self, tool: str, arguments: Mapping[str, Any] | None = None, /, **more: Any) -> Done:
        outcome = await self.call(tool, arguments, **more)
        assert isinstance(outcome, Done), outcome
        return outcome

    async def refused(self, tool: str, arguments: Mapping[str, Any] | None = None, /, **more: Any) -> Refused:
        outcome = await self.call(tool, arguments, **more)
        assert isinstance(outcome, Refused), outcome
        return outcome

    async def vote(self, approval_id: str, user: str = "user:bea", vote: Any = "approve") -> str:
        """Vote as a person would: through the check of who may."""
        (row,) = self.rows(
            "SELECT a.id, a.call_id, c.tenant, c.agent, c.user FROM approvals a"
            " JOIN calls c ON c.id = a.call_id WHERE a.id = ?",
            approval_id,
        )
        request = approvals.Request(
            id=row["id"],
            call_id=row["call_id"],
            tenant=row["tenant"],
            agent=row["agent"],
            user=row["user"],
            shown=self.carried(row["call_id"], "shown"),
        )
        return await approvals.answer(request, user=user, vote=vote, comment="", on=self.on)

    async def switch(
        self, kind: Any, scope: str, target: str = "", tenant: str = "", *, on: bool = True
    ) -> bool:
        return await self.on.journal.switch(
            kind=kind, scope=scope, target=target, tenant=tenant, on=on, reason="a test", by="user:bea"
        )

    def rows(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        return rows(self.path, sql, *parameters)

    def one(self, sql: str, *parameters: Any) -> dict[str, Any]:
        (row,) = self.rows(sql, *parameters)
        return row

    def record(self, call_id: str) -> dict[str, Any]:
        return self.one("SELECT * FROM calls WHERE id = ?", call_id)

    def state(self, call_id: str) -> str:
        return self.record(call_id)["state"]

    def carried(self, call_id: str, kind: str) -> Any:
        """A payload of a call, opened; None when it is gone."""
        with open_records(self.path) as records:
            body = records.opened(call_id, kind)
        return orjson.loads(body) if body is not None else None

    def events(self, call_id: str) -> list[str]:
        return [
            row["kind"]
            for row in self.rows("SELECT kind FROM events WHERE call_id = ? ORDER BY rowid", call_id)
        ]

    def die(self) -> None:
        """Let go of the lock that says this process lives, as the kernel does for a killed one.

        Only the lock: what sleeps in it may yet wake, like a process that was stopped and not killed.
        """
        store: Any = self.on.journal._ledger._store
        if isinstance(self.path, Postgres):
            store._renewed_s = float("inf")
            with at_once(self.path) as db:
                db.execute("UPDATE incarnations SET lease_until_us = 0 WHERE id = ?", (store._stream,))
        else:
            os.close(store._liveness)
            store._liveness = os.open(os.devnull, os.O_RDONLY)
        self.died = True

    def use_policy(self, text: str) -> None:
        self.on.policy = load_text(text)

    def use_budgets(self, *budgets: Budget) -> None:
        self.on.config = self.on.config.model_copy(update={"budgets": budgets})
        self.on.accounts = Accounts(budgets)

    async def together(self, *making: Awaitable[Any]) -> list[Any]:
        """Make several calls so that all wait for the same transaction, in this order."""
        with held(self.path):
            first = asyncio.create_task(self.on.journal.expire())  # the writer takes it and waits
            tasks = [asyncio.ensure_future(one) for one in making]
            for _ in range(50):
                await asyncio.sleep(0)
        await first
        with anyio.fail_after(20):
            return await asyncio.gather(*tasks)


@contextmanager
def full_disk(path: Path) -> Generator[None]:
    """The disk under the audit database is full: its log cannot grow by a byte."""
    log = path.with_name(path.name + "-wal")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_used(log.read_bytes()), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def taking_no_writes(at: Location) -> Generator[None]:
    """The audit database has failed: its disk is full, or its server lets nobody in."""
    if isinstance(at, Postgres):
        assert databases
        with databases.refused(at.url):
            yield
    else:
        with full_disk(at):
            yield


def _used(log: bytes) -> int:
    """How long the valid part of a write-ahead log is (sqlite.org/fileformat2.html#walformat)."""
    page_size = int.from_bytes(log[8:12], "big")
    end = 32
    while log[end + 8 : end + 16] == log[16:24]:  # the salt of this generation
        end += 24 + page_size
    return end


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what another thread or process brings about and tells nobody."""
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.005)


def kept_anywhere(folder: Path, text: bytes) -> list[str]:
    """The files in which `text` can be found, and the payloads that carry it sealed."""
    found = [file.name for file in folder.iterdir() if file.is_file() and text in file.read_bytes()]
    with open_records(location(folder)) as records:
        payloads = list(records.rows("SELECT call_id, kind FROM payloads"))
        found += [each["kind"] for each in payloads if text in (records.opened(*each) or b"")]
    return found


@contextmanager
def held(path: Location) -> Generator[None]:
    """The audit database as another process holds it in the middle of a transaction."""
    if isinstance(path, Postgres):
        with at_once(path) as db, db.transaction():
            db.all("SELECT * FROM write_turn FOR UPDATE")
            yield
        return
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(lock)


def rows(path: Location, sql: str, *parameters: Any) -> list[dict[str, Any]]:
    """What another program reads in the audit database."""
    with reading(path) as db:
        return [dict(row) for row in db.all(sql, parameters)]


@contextmanager
def at_once(at: Postgres) -> Generator[Session]:
    """A PostgreSQL session in which each statement is committed by itself."""
    session = Session(at, name="test")
    try:
        yield session
    finally:
        session.close()


def by_hand(path: Location, statement: str) -> None:
    """Change the audit database behind Remit's back, as whoever may write to it can."""
    if isinstance(path, Postgres):
        with at_once(path) as db:
            db.script(statement)
        return
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement)


#: Where audit databases are made; None: each is a SQLite file.
databases: Databases | None = None
_urls: dict[Path, str] = {}


def url_of(folder: Path) -> str:
    """The PostgreSQL database that stands for the file in this folder."""
    assert databases
    if folder not in _urls:
        _urls[folder] = databases.fresh()
    return _urls[folder]


@cache
def _empty_database() -> bytes:
    """A new audit database: made once, for the migrations cost more than most tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "remit.db"
        upgrade(path)
        return path.read_bytes()


def a_database(folder: Path) -> Location:
    """A new, empty audit database that belongs to this folder."""
    at = location(folder)
    if isinstance(at, Path):
        at.write_bytes(_empty_database())
    return at


def location(folder: Path) -> Location:
    """The audit database that belongs to this folder."""
    path = folder / "remit.db"
    return Postgres(url_of(folder), path) if databases else path


@asynccontextmanager
async def a_remit(
    folder: Path,
    *,
    policy: str = POLICY,
    source: ScriptedSource | None = None,
    clock: Clock | None = None,
    **settings: Any,
) -> AsyncGenerator[Remit]:
    """A running pipeline over a database in `folder`; at the end its books must balance."""
    config = a_config(folder, **settings)
    if not exists(config.store.location):
        a_database(folder)
    source, clock = source or ScriptedSource(), clock or Clock()
    journal = await open_journal(
        config.store.location,
        role="http",
        relaxed=config.store.durability == "relaxed",
        queue_max=config.limits.queue,
        clock=clock,
    )
    on = Services(
        config=config,
        journal=journal,
        policy=load_text(policy),
        catalog=catalog.build(config, {source.source: source.offered}),
        adapters={source.source: source},
        clock=clock,
        secret=SECRET,
        in_flight={},
    )
    remit = Remit(on=on, source=source, clock=clock, path=config.store.location)
    try:
        yield remit
        left = remit.rows(
            "SELECT id FROM calls WHERE state = 'dispatched' AND incarnation = ?", journal.incarnation
        )
    finally:
        with anyio.CancelScope(shield=True), suppress(*((StoreUnavailable,) if remit.died else ())):
            await journal.close()
    found = books.flaws(config.store.location)
    assert not found, found
    assert remit.died or on.in_flight or left == [], "nothing runs, and a call is still open"
