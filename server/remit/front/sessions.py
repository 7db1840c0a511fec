"""What the older revisions keep per connection: who listens, to what, and how loudly.

The stateless revision has none of this. The one place that touches the SDK's private connection object,
which is the only handle on a session's own stream.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio
from mcp.server.context import ServerRequestContext

from remit_adapters.base import Event


class _Connection(Protocol):
    async def send_tool_list_changed(self) -> None: ...
    async def send_prompt_list_changed(self) -> None: ...
    async def send_resource_list_changed(self) -> None: ...
    async def send_resource_updated(self, uri: str) -> None: ...


@dataclass(slots=True)
class Session:
    #: The level of `logging/setLevel`; None until the client asks for logs.
    level: str | None = None
    #: Subscribed resources.
    uris: set[str] = field(default_factory=set[str])


class Sessions:
    def __init__(self) -> None:
        self._sessions: weakref.WeakKeyDictionary[_Connection, Session] = weakref.WeakKeyDictionary()

    def of(self, ctx: ServerRequestContext[Any, Any]) -> Session:
        connection: _Connection = ctx.session._connection  # pyright: ignore[reportPrivateUsage] - see above
        return self._sessions.setdefault(connection, Session())

    async def announce(self, event: Event) -> None:
        """Tell every session that listens; one whose client is gone is forgotten."""
        for connection, session in list(self._sessions.items()):
            try:
                match event.kind:
                    case "tools":
                        await connection.send_tool_list_changed()
                    case "prompts":
                        await connection.send_prompt_list_changed()
                    case "resources":
                        await connection.send_resource_list_changed()
                    case "resource_updated":
                        if event.uri in session.uris:
                            await connection.send_resource_updated(event.uri)
            except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                self._sessions.pop(connection, None)
