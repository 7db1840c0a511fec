"""Builders: a whole Remit over HTTP in this process, in front of scripted sources, and real clients of it.

What is scripted is the source alone. The application, the guard, the transport and the client are real.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from tests.crash import books
from tests.server.builders import Clock, ScriptedSource, a_config, a_database, rows

from remit.app import App
from remit.config_file import Loaded
from remit.database import Location
from remit.front.serving import serve_http
from remit.identity import mint_key
from remit.pipeline import Services

#: The revisions as the SDK's client names its ways to connect.
ERAS = ("2026-07-28", "legacy")


@dataclass(frozen=True, kw_only=True)
class Served:
    """A Remit that serves; `key` makes keys for whoever a test wants to be."""

    app: App
    on: Services
    url: str
    clock: Clock
    path: Location

    async def key(self, agent: str = "agent:bot", user: str = "user:ann", tenant: str = "acme") -> str:
        record, plaintext = mint_key(
            tenant=tenant,
            agent=agent,
            user=user,
            label="",
            pepper=self.app.pepper,
            at_us=self.clock(),
            lifetime_s=86_400 * 365 * 50,
        )
        await self.on.journal.add_key(record, by="local")
        return plaintext

    @asynccontextmanager
    async def client(
        self, era: str = ERAS[0], agent: str = "agent:bot", user: str = "user:ann", **options: Any
    ) -> AsyncGenerator[Client]:
        """The SDK's client, as one agent for one user."""
        headers = {"authorization": f"Bearer {await self.key(agent, user)}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=30) as http,
            Client(
                streamable_http_client(self.url, http_client=http), mode=era, cache=None, **options
            ) as client,
        ):
            yield client

    async def post(self, message: Mapping[str, Any], key: str, **headers: str) -> httpx2.Response:
        """One message as it is, without a client's help."""
        async with httpx2.AsyncClient(timeout=30) as http:
            return await http.post(
                self.url,
                json=message,
                headers={
                    "authorization": f"Bearer {key}",
                    "accept": "application/json, text/event-stream",
                    **{name.replace("_", "-"): value for name, value in headers.items()},
                },
            )

    def rows(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        return rows(self.path, sql, *parameters)


@asynccontextmanager
async def served(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *sources: ScriptedSource,
    policy: str,
    **settings: Any,
) -> AsyncGenerator[Served]:
    """Serve `sources` (one `shop` by default) over HTTP until the block ends, then look into the books."""
    found = {source.source: source for source in sources or (ScriptedSource(),)}
    monkeypatch.setattr("remit.app.adapter", lambda name, source, loaded: found[name])
    monkeypatch.setattr("remit.front.serving.settle_memory", lambda: None)
    kinds: dict[str, Any] = {name: {"kind": "mcp", "command": ["none"]} for name in found}
    for name, more in settings.pop("sources", {}).items():
        kinds[name] |= more
    if policy_settings := settings.pop("policy_settings", None):
        settings["policy"] = policy_settings
    config = a_config(folder, sources=kinds, http={"bind": "127.0.0.1:0"}, **settings)
    config.policy.files[0].write_text(policy)
    a_database(folder)
    clock = Clock()
    loaded = Loaded(
        config=config, path=folder / "remit.yaml", folder=folder, positions={}, shown="remit.yaml"
    )
    app = App(loaded, role="http", clock=clock)
    urls: list[str] = []
    up, down = anyio.Event(), anyio.Event()

    async def serve() -> None:
        try:
            await serve_http(app, announce)
        finally:
            down.set()

    def announce(url: str) -> None:
        urls.append(url)
        up.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        with anyio.fail_after(20):
            await up.wait()
        try:
            yield Served(
                app=app, on=await app.services(), url=urls[0], clock=clock, path=config.store.location
            )
        finally:
            # As an operator stops it; its own handler is in place while it serves.
            signal.raise_signal(signal.SIGTERM)
            with anyio.CancelScope(shield=True), anyio.fail_after(20):
                await down.wait()
    found_flaws = books.flaws(config.store.location)
    assert not found_flaws, found_flaws


def texts(result: Any) -> str:
    """What a model reads of a result."""
    return "\n".join(block.text for block in result.content)


def names(entries: Sequence[Any]) -> set[str]:
    return {entry.name for entry in entries}
