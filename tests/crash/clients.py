"""Agents at work, people who answer them, and outsiders: each remembers what it was told.

An agent refunds, looks, writes and takes back, and asks people where it must. `Told` is the memory of all of
them across all lives of the server; `reconcile.py` holds it against the records and against Acme. A request
that got no answer is sent again later with the same idempotency key, as a careful agent does.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import aiohttp
from tests.crash.place import ORDERS, Place, customer_id, order_id

VERSION = "2026-07-28"
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": VERSION,
    "io.modelcontextprotocol/clientCapabilities": {},
}
_ANSWER_S = 60
_AGAIN_S = 0.03
Vote = Literal["approve", "reject"]
#: Puts a person's word on record; says whether that is certain.
Desk = Callable[[str, Vote], Awaitable[bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    agent: int
    tool: str
    arguments: dict[str, Any]
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    call_id: str
    state: Literal["succeeded", "failed", "refused", "waiting", "scheduled", "in doubt"]
    content: dict[str, Any] = field(default_factory=dict)
    approval_id: str = ""
    code: str = ""


@dataclass(slots=True, kw_only=True)
class Told:
    """What the agents were told, by the id of the call."""

    #: With the tool, and what Acme calls what it made.
    succeeded: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: Certainly without effect.
    failed: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    #: Not let out because nothing could be recorded, so there may be no record.
    unrecorded: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)
    scheduled: set[str] = field(default_factory=set)
    in_doubt: set[str] = field(default_factory=set)
    #: The calls that were certainly taken back.
    undone: set[str] = field(default_factory=set)
    #: What people have put on record, by the id of the call.
    votes: dict[str, Vote] = field(default_factory=dict)
    #: Answers that no crash excuses.
    surprises: list[str] = field(default_factory=list)
    #: Requests that nobody answered.
    unanswered: list[Request] = field(default_factory=list)
    answers: int = 0
    resent: int = 0


class Clients:
    """All agents of a place. One `work` is one conversation, with whichever server answers."""

    def __init__(self, place: Place, rng: random.Random, desk: Desk | None = None) -> None:
        self.told = Told()
        self.in_flight = 0
        self.place = place
        #: Where somebody serves.
        self.serving: list[str] = []
        self._desk = desk
        self._rng = rng
        self._requests = count()
        self._customers = count()
        self._outsiders = count()
        self._answered = asyncio.Event()
        self._to_take_back: list[str] = []

    async def answers(self, more: int) -> None:
        """Wait for so many more answers."""
        enough = self.told.answers + more
        while self.told.answers < enough:
            self._answered.clear()
            await self._answered.wait()

    async def work(self, agent: int, stop: asyncio.Event) -> None:
        """Run one errand after the other until `stop`."""
        async with aiohttp.ClientSession() as session:

            async def send(request: Request) -> Answer | None:
                if not self.serving:
                    return None
                return await self.send(session, self._rng.choice(self.serving), request)

            while not stop.is_set():
                if not await self._errand(agent, send):
                    await asyncio.sleep(_AGAIN_S)  # nobody serves just now

    async def send(self, session: aiohttp.ClientSession, url: str, request: Request) -> Answer | None:
        """Send one request and remember the answer; None when there was none."""
        self.in_flight += 1
        try:
            body = await self._post(session, url, request)
        except (TimeoutError, aiohttp.ClientError, OSError):
            self.told.unanswered.append(request)
            return None
        finally:
            self.in_flight -= 1
        answer = self._remember(request, body)
        self.told.answers += 1
        self._answered.set()
        return answer

    def refund(self, agent: int, amount_minor: int) -> Request:
        order = order_id(self._rng.randrange(ORDERS))
        # The reason makes every refund a different call.
        reason = f"damaged, parcel {next(self._requests)}"
        return self._new(agent, "acme.refund", order_id=order, amount_minor=amount_minor, reason=reason)

    def undo(self, agent: int, call_id: str) -> Request:
        return self._new(agent, "remit.undo", call_id=call_id)

    def look(self, agent: int) -> Request:
        return self._new(agent, "acme.get_order", order_id=order_id(self._rng.randrange(ORDERS)))

    def mail(self, agent: int) -> Request:
        body = f"mail {next(self._requests)}"
        return self._new(agent, "acme.send_mail", to="orders@bakery.example", subject="Your order", body=body)

    def update(self, agent: int, customer: str) -> Request:
        note = f"note {next(self._requests)}"
        return self._new(agent, "acme.update_customer", id=customer, fields={"note": note})

    def a_customer(self) -> str:
        """One about whom nothing has been written yet."""
        return customer_id(next(self._customers))

    async def _errand(self, agent: int, send: Callable[[Request], Awaitable[Answer | None]]) -> bool:
        """One piece of work, to its end or until nobody answers; False then."""
        rng = self._rng
        mine = [request for request in self.told.unanswered if request.agent == agent]
        if mine and rng.random() < 0.3:
            self.told.unanswered.remove(mine[0])
            answered = await send(mine[0]) is not None
            self.told.resent += answered
            return answered
        draw = rng.random()
        if draw < 0.15 and self._to_take_back:
            # Anybody's, now and then: another agent's call is not for them to take back.
            return await send(self.undo(agent, rng.choice(self._to_take_back))) is not None
        if draw < 0.25:
            return await send(self.look(agent)) is not None
        if draw < 0.3:
            return await send(self.refund(agent, 500_000)) is not None  # denied
        if draw < 0.45:
            return await self._ask_people(self.refund(agent, 50_000), send)
        if draw < 0.6:
            return await self._write_a_mail(agent, send)
        if draw < 0.8:
            return await self._write_and_take_back(agent, send)
        return await send(self.refund(agent, rng.randint(1, 10_000))) is not None

    async def _ask_people(
        self, request: Request, send: Callable[[Request], Awaitable[Answer | None]]
    ) -> bool:
        answer = await send(request)
        if answer is None:
            return False
        if answer.state != "waiting" or self._desk is None or self._rng.random() < 0.3:
            return True
        vote: Vote = "approve" if self._rng.random() < 0.8 else "reject"
        if await self._desk(answer.approval_id, vote):
            self.told.votes[answer.call_id] = vote
        return await send(request) is not None

    async def _write_a_mail(self, agent: int, send: Callable[[Request], Awaitable[Answer | None]]) -> bool:
        answer = await send(self.mail(agent))
        if answer is None or self._rng.random() < 0.5:
            return answer is not None
        return await send(self.undo(agent, answer.call_id)) is not None

    async def _write_and_take_back(
        self, agent: int, send: Callable[[Request], Awaitable[Answer | None]]
    ) -> bool:
        """Change what nobody else changes a few times, maybe with an outsider, and take some of it back."""
        customer = self.a_customer()
        written: list[str] = []
        for _ in range(self._rng.randint(1, 3)):
            answer = await send(self.update(agent, customer))
            if answer is None or answer.state != "succeeded":
                return answer is not None
            written.append(answer.call_id)
        if self._rng.random() < 0.2:
            await asyncio.to_thread(self._meddle, customer)
        for call_id in reversed(written[self._rng.randint(0, len(written)) :]):
            if await send(self.undo(agent, call_id)) is None:
                return False
        return True

    def _meddle(self, customer: str) -> None:
        """Somebody changes Acme who never heard of Remit."""
        name = f"outsider {next(self._outsiders)}"
        with closing(sqlite3.connect(self.place.acme, timeout=10, isolation_level=None)) as acme:
            acme.execute("BEGIN IMMEDIATE")
            acme.execute("UPDATE customers SET note = ? WHERE id = ?", (name, customer))
            acme.execute(
                "INSERT INTO effects (key, tool, thing, value) VALUES (?, 'update_customer', ?, ?)",
                (name, customer, name),
            )
            acme.execute("COMMIT")

    def _new(self, agent: int, tool: str, **arguments: Any) -> Request:
        return Request(agent=agent, tool=tool, arguments=arguments, key=f"request-{next(self._requests)}")

    async def _post(self, session: aiohttp.ClientSession, url: str, request: Request) -> dict[str, Any]:
        message = {
            "jsonrpc": "2.0",
            "id": request.key,
            "method": "tools/call",
            "params": {
                "name": request.tool,
                "arguments": request.arguments,
                "_meta": {**ENVELOPE, "dev.remit/idempotency_key": request.key},
            },
        }
        headers = {
            "Authorization": f"Bearer {self.place.keys[request.agent]}",
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": VERSION,
            "Mcp-Method": "tools/call",
            "Mcp-Name": request.tool,
        }
        timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
        async with session.post(url, json=message, headers=headers, timeout=timeout) as response:
            if response.status == 503:  # nobody can be identified while the records are away
                response.raise_for_status()
            return await response.json()

    def _remember(self, request: Request, body: dict[str, Any]) -> Answer:
        result = body.get("result")
        if not isinstance(result, dict):
            self.told.surprises.append(f"{request.tool} was answered with {body.get('error')}")
            return Answer(call_id="", state="refused")
        answer = _understood(result)
        told = self.told
        if request.tool == "remit.undo":
            if answer.content.get("state") == "done":
                told.undone.add(request.arguments["call_id"])
            return answer
        if not request.tool.startswith("acme.get_"):
            match answer.state:
                case "succeeded":
                    made = next(filter(None, map(answer.content.get, ("refund_id", "mail_id", "id"))))
                    told.succeeded[answer.call_id] = (request.tool, str(made))
                    if request.tool == "acme.refund":
                        self._to_take_back.append(answer.call_id)
                case "refused":
                    (told.unrecorded if answer.code in _UNRECORDED else told.refused).add(answer.call_id)
                case "in doubt":
                    told.in_doubt.add(answer.call_id)
                case "failed" | "waiting" | "scheduled":
                    getattr(told, answer.state).add(answer.call_id)
        return answer


#: Refusals for want of a record.
_UNRECORDED = ("audit_unavailable", "busy")


def _understood(result: dict[str, Any]) -> Answer:
    meta = result.get("_meta") or {}
    content = result.get("structuredContent") or {}
    if verdict := meta.get("dev.remit/verdict"):
        code = verdict["code"]
        if verdict["verdict"] == "deny":
            state = "refused"
        else:
            state = {"pending_approval": "waiting", "in_doubt": "in doubt"}.get(code, "failed")
        return Answer(
            call_id=verdict.get("call_id", ""),
            state=state,  # pyright: ignore[reportArgumentType] - one of them
            approval_id=verdict.get("approval_id", ""),
            code=code,
        )
    receipt = meta.get("dev.remit/receipt") or {}
    state = "failed" if result.get("isError") else "scheduled" if "due" in receipt else "succeeded"
    return Answer(call_id=receipt.get("call_id", ""), state=state, content=content)
