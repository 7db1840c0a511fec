"""The short way for the commonest request: a plain, stateless `tools/call` (MCP 2026-07-28).

It answers from the message that was already decoded strictly, with the SDK's own checks of headers and
`_meta`, and leaves everything that is out of the ordinary (questions, progress, older revisions, other
methods, tracing) to the SDK's server. It decides nothing: both ways meet in the pipeline, and the same
tests run over both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import anyio
import orjson
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import ERROR_CODE_HTTP_STATUS, InboundModernRoute, classify_inbound_request
from mcp_types import INTERNAL_ERROR

from remit import __version__, telemetry
from remit.app import App
from remit.front.server import PLAIN, Front, internal_error
from remit.identity import Principal
from remit.model import Tool
from remit.pipeline import Services
from remit_adapters.base import Json

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_VERSION = "2026-07-28"
_PREFIX = "io.modelcontextprotocol/"
_SERVER_INFO = {"name": "remit", "version": __version__}
#: Members that the short way understands; anything else is for the SDK.
_PARAMS = frozenset({"name", "arguments", "_meta"})
_OUT_OF_THE_ORDINARY = frozenset({"progressToken", f"{_PREFIX}logLevel"})


@dataclass(frozen=True, slots=True)
class _Plain:
    """A request that can go the short way, with what it needs."""

    id: Any
    params: Mapping[str, Any]
    tool: Tool
    principal: Principal
    on: Services


class Lane:
    """Recognises plain calls and answers them; the transports below bring and send the messages."""

    def __init__(self, app: App, front: Front) -> None:
        self._app = app
        self._front = front

    def take(self, message: Any, principal: Principal, headers: Mapping[str, str] | None) -> _Plain | None:
        """The call that `message` is, if the short way can answer it. `headers` are None on stdio."""
        on = self._app.services_now
        if (
            on is None
            or telemetry.on()
            or not _is_plain(message)
            or not isinstance(classify_inbound_request(message, headers=headers), InboundModernRoute)
        ):
            return None
        params = message["params"]
        tool = self._front.plain_tool(params["name"], principal, on)
        return _Plain(message["id"], params, tool, principal, on) if tool else None

    async def answer(self, call: _Plain) -> tuple[bytes, int]:
        """The JSON-RPC response, and its HTTP status."""
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": call.id}
        status = 200
        try:
            result = await self._front.governed(
                call.params,
                call.tool,
                call.params.get("arguments") or {},
                call.principal,
                call.on,
                PLAIN[_VERSION],
            )
            result["_meta"] = {**result.get("_meta", {}), f"{_PREFIX}serverInfo": _SERVER_INFO}
            reply["result"] = result
        except MCPError as error:
            reply["error"] = error.error.model_dump(exclude_none=True)
            status = ERROR_CODE_HTTP_STATUS.get(error.code, 200)
        except Exception:  # noqa: BLE001 - the edge: the client is told nothing of it, the log everything
            internal_error("tools/call")
            reply["error"] = {"code": INTERNAL_ERROR, "message": "Internal error"}
            status = ERROR_CODE_HTTP_STATUS.get(INTERNAL_ERROR, 200)
        return orjson.dumps(reply), status


class HttpLane:
    """ASGI middleware between the guard and the SDK's application."""

    def __init__(self, lane: Lane, inner: ASGIApp) -> None:
        self._lane = lane
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: _Plain | None = None
        if message := scope.get("remit.message"):
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            accept = headers.get("accept", "")
            if "application/json" in accept and "text/event-stream" in accept:
                call = self._lane.take(message, scope["remit.principal"], headers)
        if call is None:
            await self._inner(scope, receive, send)
            return
        with anyio.CancelScope() as under_way:
            watch = asyncio.create_task(_cancel_when_gone(receive, under_way))
            try:
                body, status = await self._lane.answer(call)
            finally:
                watch.cancel()
            fields = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": status, "headers": fields})
            await send({"type": "http.response.body", "body": body})


class StdioLane:
    """The same for one client at the other end of a pipe, once its first request has shown its era."""

    def __init__(self, lane: Lane, principal: Principal) -> None:
        self._lane = lane
        self._principal = principal
        self._modern: bool | None = None
        self._under_way: dict[Any, anyio.CancelScope] = {}
        #: Not in a task group, which costs more than deciding does.
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, message: Json, write: Callable[[bytes], None]) -> bool:
        """Whether the message goes the short way; then `write` gets its answer, in time."""
        if message.get("method") == "notifications/cancelled":
            cancelled = cast("Mapping[str, Any]", message.get("params") or {}).get("requestId")
            call = self._under_way.get(cancelled) if isinstance(cancelled, (str, int)) else None
            if call is not None:
                call.cancel()
            return call is not None
        if self._modern is None:
            # The SDK decides the era of a connection by its first request: it must see that one.
            if "id" in message and "method" in message:
                meta: Any = cast("Mapping[str, Any]", message.get("params") or {}).get("_meta")
                self._modern = isinstance(meta, dict) and f"{_PREFIX}protocolVersion" in meta
            return False
        plain = self._lane.take(message, self._principal, None) if self._modern else None
        if plain is None or plain.id in self._under_way:
            return False
        self._under_way[plain.id] = under_way = anyio.CancelScope()
        task = asyncio.create_task(self._answer(plain, under_way, write))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def cancel(self) -> None:
        for call in self._under_way.values():
            call.cancel()

    async def finished(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _answer(
        self, call: _Plain, under_way: anyio.CancelScope, write: Callable[[bytes], None]
    ) -> None:
        with under_way:
            try:
                body, _ = await self._lane.answer(call)
                write(body + b"\n")
            finally:
                del self._under_way[call.id]


def _is_plain(message: Mapping[str, Any]) -> bool:
    """Whether the message is a request without anything that needs the SDK."""
    params = message.get("params")
    if message.get("method") != "tools/call" or not isinstance(params, dict) or "id" not in message:
        return False
    fields = cast("dict[str, Any]", params)
    if not _PARAMS.issuperset(fields) or not isinstance(fields.get("name"), str):
        return False
    meta = fields.get("_meta")
    arguments = fields.get("arguments")
    if not isinstance(meta, dict) or not (arguments is None or isinstance(arguments, dict)):
        return False
    sent = cast("dict[str, Any]", meta)
    info = sent.get(f"{_PREFIX}clientInfo")
    return (
        sent.get(f"{_PREFIX}protocolVersion") == _VERSION
        and isinstance(sent.get(f"{_PREFIX}clientCapabilities"), dict)
        and (info is None or _is_implementation(info))
        and _OUT_OF_THE_ORDINARY.isdisjoint(sent)
    )


def _is_implementation(info: Any) -> bool:
    return isinstance(info, dict) and all(
        isinstance(cast("dict[str, Any]", info).get(name), str) for name in ("name", "version")
    )


async def _cancel_when_gone(receive: Receive, call: anyio.CancelScope) -> None:
    """A client that closes the connection takes its call back (MCP 2026-07-28, cancellation)."""
    while (await receive())["type"] != "http.disconnect":
        pass
    call.cancel()
