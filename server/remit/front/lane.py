"""The short way for the commonest request: a plain, stateless `tools/call` (MCP 2026-07-28) over HTTP.

It answers from the message that the guard has already decoded, with the SDK's own checks of headers and
`_meta`, and hands everything that is out of the ordinary (questions, progress, older revisions, other
methods, tracing) to the SDK's application untouched. It decides nothing: both ways meet in the pipeline,
and the conformance suite runs over both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
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

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_VERSION = "2026-07-28"
_PREFIX = "io.modelcontextprotocol/"
_SERVER_INFO = {"name": "remit", "version": __version__}
#: Members that the short way understands; anything else is for the SDK.
_PARAMS = frozenset({"name", "arguments", "_meta"})
_OUT_OF_THE_ORDINARY = frozenset({"progressToken", f"{_PREFIX}logLevel"})


class Lane:
    """ASGI middleware between the guard and the SDK's application."""

    def __init__(self, app: App, front: Front, inner: ASGIApp) -> None:
        self._app = app
        self._front = front
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = scope.get("remit.message")
        on = self._app.services_now
        if (
            message is None
            or on is None
            or message.get("method") != "tools/call"
            or telemetry.on()
            or not _plain(message)
        ):
            return await self._inner(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        accept = headers.get("accept", "")
        if (
            "application/json" not in accept
            or "text/event-stream" not in accept
            or not isinstance(classify_inbound_request(message, headers=headers), InboundModernRoute)
        ):
            return await self._inner(scope, receive, send)
        params = message["params"]
        principal: Principal = scope["remit.principal"]
        tool = self._front.plain_tool(params["name"], principal, on)
        if tool is None:
            return await self._inner(scope, receive, send)
        await self._answer(message, params, tool, principal, on, receive, send)
        return None

    async def _answer(
        self,
        message: Mapping[str, Any],
        params: Mapping[str, Any],
        tool: Tool,
        principal: Principal,
        on: Services,
        receive: Receive,
        send: Send,
    ) -> None:
        with anyio.CancelScope() as call:
            watch = asyncio.create_task(_cancel_when_gone(receive, call))
            try:
                body, status = await self._result(message, params, tool, principal, on)
            finally:
                watch.cancel()
            await send(
                {
                    "type": "http.response.start",
                    "status": status,
                    "headers": [
                        (b"content-type", b"application/json"),
                        (b"content-length", str(len(body)).encode()),
                    ],
                }
            )
            await send({"type": "http.response.body", "body": body})

    async def _result(
        self,
        message: Mapping[str, Any],
        params: Mapping[str, Any],
        tool: Tool,
        principal: Principal,
        on: Services,
    ) -> tuple[bytes, int]:
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        status = 200
        try:
            result = await self._front.governed(
                params, tool, params.get("arguments") or {}, principal, on, PLAIN[_VERSION]
            )
            result["_meta"] = {**result["_meta"], f"{_PREFIX}serverInfo": _SERVER_INFO}
            reply["result"] = result
        except MCPError as error:
            reply["error"] = error.error.model_dump(exclude_none=True)
            status = ERROR_CODE_HTTP_STATUS.get(error.code, 200)
        except Exception:  # noqa: BLE001 - the edge: the client is told nothing of it, the log everything
            internal_error("tools/call")
            reply["error"] = {"code": INTERNAL_ERROR, "message": "Internal error"}
            status = ERROR_CODE_HTTP_STATUS.get(INTERNAL_ERROR, 200)
        return orjson.dumps(reply), status


def _plain(message: Mapping[str, Any]) -> bool:
    """Whether the message is a request without anything that needs the SDK."""
    params = message.get("params")
    if not isinstance(params, dict) or not _PARAMS.issuperset(cast("dict[str, Any]", params)):
        return False
    fields = cast("dict[str, Any]", params)
    meta = fields.get("_meta")
    arguments = fields.get("arguments")
    if not isinstance(meta, dict) or not isinstance(fields.get("name"), str) or "id" not in message:
        return False
    sent = cast("dict[str, Any]", meta)
    info = sent.get(f"{_PREFIX}clientInfo")
    return (
        (arguments is None or isinstance(arguments, dict))
        and sent.get(f"{_PREFIX}protocolVersion") == _VERSION
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
