"""An agent as a customer runs it: the SDK's client over HTTP, in front of a Remit that the command serves."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from tests.interop.running import REMIT, serving
from tests.server.acme import Ran, Terminal

_RECEIPT, _VERDICT, _CLAIM = "dev.remit/receipt", "dev.remit/verdict", "dev.remit/claim"


@dataclass(frozen=True, slots=True)
class Agent:
    client: Client
    terminal: Terminal
    claim: dict[str, Any] | None

    async def call(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """What the agent is told beside the answer: the receipt of a call that was made, or the verdict."""
        meta: Any = {_CLAIM: self.claim} if self.claim else None
        result = await self.client.call_tool(tool, arguments, meta=meta)
        told: Any = result.meta or {}
        assert bool(result.is_error) == (_VERDICT in told), result
        return told[_VERDICT] if result.is_error else {"code": "done", **told[_RECEIPT]}

    async def ran(self, *words: str) -> Ran:
        """`remit`, as a person beside the server runs it."""
        return await anyio.to_thread.run_sync(self.terminal, *words)


@asynccontextmanager
async def an_agent(
    terminal: Terminal, *, tenant: str, agent: str, user: str, claim: dict[str, Any] | None = None
) -> AsyncGenerator[Agent]:
    """A client with a key of its own, while the command serves."""
    config = str(terminal.config)
    who = ("--agent", agent, "--user", user, "--tenant", tenant)
    key = await anyio.to_thread.run_sync(terminal, "agents", "key", "create", *who, "--json")
    command = [*REMIT, "serve", "--http", "127.0.0.1:0", "--json", "--config", config]
    with anyio.fail_after(60), serving(command, terminal.folder) as url:
        headers = {"authorization": f"Bearer {key.json['key']}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=30) as http,
            Client(streamable_http_client(url, http_client=http), cache=None) as client,
        ):
            yield Agent(client, terminal, claim)
