"""Finding out which revision of MCP a source speaks, and what it can do.

Both functions leave `link.version` at the revision in force and return the source's capabilities.

Source: MCP 2026-07-28, basic/versioning; MCP 2025-11-25, basic/lifecycle.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from remit_adapters.base import AdapterError, Json
from remit_adapters.mcp.wire import LEGACY, MODERN, Link, Message, member, stamped

#: Errors that say nothing about the revision: the source is not there, or does not let us in.
OUTAGES: Final = frozenset({"unreachable", "source_auth", "source_down", "source_lost"})


async def discover(link: Link, client: Json, *, timeout_s: float) -> Json:
    """Speak the stateless revision. Raises AdapterError; unless it is one of OUTAGES, the source is older."""
    link.version = MODERN
    try:
        async with asyncio.timeout(timeout_s):
            found = await link.request("server/discover", {"_meta": stamped({}, client, {})})
    except TimeoutError:
        raise AdapterError(
            "The source does not say what it can do.", no_effect=True, code="timeout"
        ) from None
    supported: Any = found.get("supportedVersions")
    if not isinstance(supported, list) or MODERN not in supported:
        raise AdapterError(
            f"The source does not speak revision {MODERN} of MCP.", no_effect=True, code="revision"
        )
    return member(found, "capabilities")


async def initialize(link: Link, client: Json, questions: frozenset[str]) -> Json:
    """Shake hands as the older revisions do, declaring what the source may ask. Raises AdapterError."""
    link.version = ""
    capabilities: dict[str, Json] = {kind: {} for kind in questions}
    if "elicitation" in questions:
        capabilities["elicitation"] = {"form": {}, "url": {}}
    hello: Message = {"protocolVersion": LEGACY[0], "capabilities": capabilities, "clientInfo": client}
    found = await link.request("initialize", hello)
    revision: Any = found.get("protocolVersion")
    if revision not in LEGACY:
        raise AdapterError(
            "The source speaks no revision of MCP that the gateway knows.", no_effect=True, code="revision"
        )
    link.version = revision
    await link.notify("notifications/initialized", {})
    link.listen()
    return member(found, "capabilities")
