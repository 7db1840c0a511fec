"""Agents at work: they refund, look, take back and repeat themselves, and remember what they were told.

`Told` is their memory across all lives of the server; `reconcile.py` holds it against the records and
against Acme. A request that got no answer is sent again later with the same idempotency key, as a careful
agent does.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from tests.crash.place import ORDERS, Place, order_id

VERSION = "2026-07-28"
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": VERSION,
    "io.modelcontextprotocol/clientCapabilities": {},
}
_ANSWER_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    agent: int
    tool: str
    arguments: dict[str, Any]
    key: str


@dataclass(slots=True, kw_only=True)
class Told:
    """What the agents were told, by the id of the call; refunds only, but for `undone` and `surprises`."""

    #: With the number of the refund.
    succeeded: dict[str, str] = field(default_factory=dict)
    #: Certainly without effect.
    failed: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)
    in_doubt: set[str] = field(default_factory=set)
    #: The calls that were certainly taken back.
    undone: set[str] = field(default_factory=set)
    #: Answers that no crash excuses.
    surprises: list[str] = field(default_factory=list)
    #: Requests that nobody answered.
    unanswered: list[Request] = field(default_factory=list)
    answers: int = 0
    resent: int = 0


class Clients:
    """All agents of a place. One `work` is one conversation with one server, until that is gone."""

    def __init__(self, place: Place, rng: random.Random) -> None:
        self.told = Told()
        self.in_flight = 0
        self.place = place
        self._rng = rng
        self._requests = 0
        self._answered = asyncio.Event()

    async def answers(self, more: int) -> None:
        """Wait for so many more answers."""
        enough = self.told.answers + more
        while self.told.answers < enough:
            self._answered.clear()
            await self._answered.wait()

    async def work(self, url: str, agent: int, stop: asyncio.Event) -> None:
        """Send one request after the other until `stop`, or until the server does not answer."""
        async with aiohttp.ClientSession() as session:
            while not stop.is_set():
                if not await self.send(session, url, self._next(agent)):
                    return

    async def send(self, session: aiohttp.ClientSession, url: str, request: Request) -> bool:
        """Send one request and remember the answer; False when there was none."""
        self.in_flight += 1
        try:
            body = await self._post(session, url, request)
        except (TimeoutError, aiohttp.ClientError, OSError):
            self.told.unanswered.append(request)
            return False
        finally:
            self.in_flight -= 1
        self._remember(request, body)
        self.told.answers += 1
        self._answered.set()
        return True

    def refund(self, agent: int, amount_minor: int) -> Request:
        order = order_id(self._rng.randrange(ORDERS))
        # The reason makes every refund a different call.
        reason = f"damaged, parcel {self._requests}"
        return self._new(agent, "acme.refund", order_id=order, amount_minor=amount_minor, reason=reason)

    def undo(self, agent: int, call_id: str) -> Request:
        return self._new(agent, "remit.undo", call_id=call_id)

    def look(self, agent: int) -> Request:
        return self._new(agent, "acme.get_order", order_id=order_id(self._rng.randrange(ORDERS)))

    def _next(self, agent: int) -> Request:
        rng = self._rng
        mine = [request for request in self.told.unanswered if request.agent == agent]
        if mine and rng.random() < 0.5:
            self.told.unanswered.remove(mine[0])
            self.told.resent += 1
            return mine[0]
        draw = rng.random()
        if draw < 0.2 and self.told.succeeded:
            # Anybody's, now and then: another agent's call is not for them to take back.
            return self.undo(agent, rng.choice(list(self.told.succeeded)))
        if draw < 0.35:
            return self.look(agent)
        if draw < 0.4:
            return self.refund(agent, 500_000)  # denied
        if draw < 0.45:
            return self.refund(agent, 50_000)  # a person would have to agree
        return self.refund(agent, rng.randint(1, 10_000))

    def _new(self, agent: int, tool: str, **arguments: Any) -> Request:
        self._requests += 1
        return Request(agent=agent, tool=tool, arguments=arguments, key=f"request-{self._requests}")

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
            return await response.json()

    def _remember(self, request: Request, body: dict[str, Any]) -> None:
        result = body.get("result")
        if not isinstance(result, dict):
            self.told.surprises.append(f"{request.tool} was answered with {body.get('error')}")
            return
        meta = result.get("_meta") or {}
        verdict, receipt = meta.get("dev.remit/verdict"), meta.get("dev.remit/receipt")
        content = result.get("structuredContent") or {}
        if request.tool == "remit.undo" and content.get("state") == "done":
            self.told.undone.add(request.arguments["call_id"])
        if request.tool != "acme.refund":
            return
        if verdict is None:
            if result.get("isError"):
                self.told.failed.add(receipt["call_id"])
            else:
                self.told.succeeded[receipt["call_id"]] = content["refund_id"]
        elif verdict["verdict"] == "deny":
            self.told.refused.add(verdict["call_id"])
        elif verdict["code"] == "pending_approval":
            self.told.waiting.add(verdict["call_id"])
        elif verdict["code"] == "in_doubt":
            self.told.in_doubt.add(verdict["call_id"])
        else:
            self.told.failed.add(verdict["call_id"])
