"""What a source tells unasked: its offer changed, or a watched resource did.

The older revisions tell of offers by themselves and of resources on request; the stateless one tells what a
stream asks for that the client keeps open. `Changes` outlives connections and asks again on each new one.

Source: MCP 2025-11-25, server/resources; MCP 2026-07-28, basic/patterns/subscriptions.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import anyio
from anyio.abc import TaskGroup, TaskStatus

from remit_adapters.base import AdapterError, Event, Json
from remit_adapters.mcp.wire import MODERN, Link, Message, SessionLostError, invalid, member, stamped

log = logging.getLogger(__name__)

_KINDS: Final[dict[str, Literal["tools", "resources", "prompts"]]] = {
    "notifications/tools/list_changed": "tools",
    "notifications/resources/list_changed": "resources",
    "notifications/prompts/list_changed": "prompts",
}
#: How long a new connection waits for its news to begin before it goes without.
_BEGIN_S: Final = 5.0
_PAUSE_S: Final = 1.0
_PAUSE_S_MAX: Final = 15.0


@dataclass(frozen=True, slots=True)
class _Stream:
    """One stream of changes: cancelled from outside, and then waited for."""

    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    ended: anyio.Event = field(default_factory=anyio.Event)


class Changes:
    """One source's news, handed to `on_event`."""

    def __init__(self, source: str, client: Json, on_event: Callable[[Event], None]) -> None:
        self._source = source
        self._client = client
        self._on_event = on_event
        self._watched: frozenset[str] = frozenset()
        self._turn = asyncio.Lock()
        self._stream: _Stream | None = None
        # What the present connection is.
        self._capabilities: Json = {}
        self._background: TaskGroup

    def heard(self, message: Message) -> None:
        """Take a notification of change."""
        kind = _KINDS.get(message["method"])
        uri: Any = member(message, "params").get("uri")
        if kind is not None:
            self._on_event(Event(kind=kind))
        elif isinstance(uri, str):
            self._on_event(Event(kind="resource_updated", uri=uri))

    def everything(self) -> None:
        """Tell that anything may have changed, after a while without news."""
        for kind in _KINDS.values():
            self._on_event(Event(kind=kind))
        for uri in self._watched:
            self._on_event(Event(kind="resource_updated", uri=uri))

    async def begin(self, link: Link, capabilities: Json, background: TaskGroup) -> None:
        """On a new connection, ask for all that was asked for on the last one."""
        self._capabilities = capabilities
        self._background = background
        try:
            async with asyncio.timeout(_BEGIN_S):
                if link.version == MODERN:
                    if self._wanted(self._watched):
                        await self._listen_anew(link, self._watched)
                else:
                    for uri in self._watched:
                        await link.request("resources/subscribe", {"uri": uri})
        except (AdapterError, TimeoutError) as error:
            # Without news a source is still a source; its offer is then as old as the last look.
            log.warning("source %s: no news of changes: %s", self._source, error)

    async def watch(self, link: Link, uri: str, on: bool) -> None:
        """Begin or stop to be told of one resource. Raises AdapterError when the source does not agree."""
        async with self._turn:
            watched = self._watched | {uri} if on else self._watched - {uri}
            if link.version != MODERN:
                await link.request("resources/subscribe" if on else "resources/unsubscribe", {"uri": uri})
            elif on and not _names(await self._listen_anew(link, watched), uri):
                raise AdapterError("The source does not let this resource be watched.", no_effect=True)
            elif not on:
                await self._listen_anew(link, watched)
            self._watched = watched

    def _wanted(self, watched: frozenset[str]) -> Message:
        wanted: Message = {
            f"{kind}ListChanged": True
            for kind in _KINDS.values()
            if member(self._capabilities, kind).get("listChanged")
        }
        if watched:
            wanted["resourceSubscriptions"] = sorted(watched)
        return wanted

    async def _listen_anew(self, link: Link, watched: frozenset[str]) -> Json:
        """Open a stream for `watched`, leave the one before it; return what the source agrees to tell."""
        before = self._stream
        self._stream, honoured = await self._background.start(self._listen, link, watched)
        if before is not None:
            before.scope.cancel()
            await before.ended.wait()
        return honoured

    async def _listen(
        self, link: Link, watched: frozenset[str], *, task_status: TaskStatus[tuple[_Stream, Json]]
    ) -> None:
        """Keep one stream open until it is cancelled."""
        params: Message = {"notifications": self._wanted(watched), "_meta": stamped({}, self._client, {})}
        stream = _Stream()
        acknowledged = False

        async def hear(message: Message) -> None:
            nonlocal acknowledged
            if message["method"] != "notifications/subscriptions/acknowledged":
                return
            if acknowledged:
                self.everything()  # there was a gap, and nobody knows what would have been told in it
            else:
                acknowledged = True
                task_status.started((stream, member(member(message, "params"), "notifications")))

        pause_s = _PAUSE_S
        try:
            with stream.scope:
                while True:
                    since = anyio.current_time()
                    try:
                        await link.request("subscriptions/listen", params, hear)
                        if not acknowledged:
                            raise invalid("it ended a subscription that it never began")
                    except (AdapterError, SessionLostError) as error:
                        if not acknowledged:
                            raise
                        log.info("source %s: the stream of changes broke: %s", self._source, error)
                    held = anyio.current_time() - since > _PAUSE_S_MAX
                    pause_s = _PAUSE_S if held else min(pause_s * 2, _PAUSE_S_MAX)
                    await anyio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        finally:
            stream.ended.set()


def _names(honoured: Json, uri: str) -> bool:
    """Whether the source agreed to tell of `uri`."""
    found: Any = honoured.get("resourceSubscriptions")
    return isinstance(found, list) and uri in found
