"""The server behind every gateway: answers MCP 2026-07-28 from prepared pieces; only the gateway counts.

It keeps to what a stateless server must do and to nothing else: no validation, no other revision, no
authentication. It is also a target of its own: how fast it answers is how fast the load can be made.

    python benchmarks/targets/canned.py --http   (prints {"url": ...} once it listens)
    python benchmarks/targets/canned.py --stdio
"""

from __future__ import annotations

import sys
from typing import Any, cast

import orjson

VERSION = "2026-07-28"

TEXT = {
    "type": "object",
    "properties": {"text": {"type": "string", "maxLength": 1000}},
    "required": ["text"],
    "additionalProperties": False,
}
REPORT = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "rows": {"type": "array", "items": {"type": "object"}}},
    "required": ["text", "rows"],
}
#: 2 KB as JSON, shaped like the rows that business systems answer with.
ROWS = [
    {"id": 48_213 + n, "item": f"Reading lamp {n:02}", "total_minor": 12_900 + n, "currency": "EUR",
     "status": "paid", "paid_at": "2026-01-14T08:00:00+00:00"}
    for n in range(16)
]  # fmt: skip

TOOLS = [
    {"name": "echo", "description": "Say the same.", "inputSchema": TEXT},
    {"name": "report", "description": "Say the same and more.", "inputSchema": TEXT, "outputSchema": REPORT},
    {"name": "take_back", "description": "Undo an echo or a report.", "inputSchema": TEXT},
]  # fmt: skip

LISTED = {"resultType": "complete", "ttlMs": 3_600_000, "cacheScope": "public"}
ABOUT = {"_meta": {"io.modelcontextprotocol/serverInfo": {"name": "canned", "version": "1"}}}


def respond(request: dict[str, Any]) -> bytes | None:
    """The JSON-RPC answer to one message; `None` for a notification."""
    if "id" not in request:
        return None
    match request["method"]:
        case "tools/call":
            result = _call(request["params"]["name"], request["params"]["arguments"]["text"])
        case "tools/list":
            result = {**LISTED, "tools": TOOLS}
        case "server/discover":
            result = {**LISTED, **ABOUT, "supportedVersions": [VERSION], "capabilities": {"tools": {}}}
        case _:
            error = {"code": -32601, "message": "Method not found"}
            return orjson.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error})
    return orjson.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result})


def _call(tool: str, text: str) -> dict[str, Any]:
    result: dict[str, Any] = {"resultType": "complete", "content": [{"type": "text", "text": text}]}
    if tool == "report":
        result["structuredContent"] = {"text": text, "rows": ROWS}
    return result


def serve_stdio() -> None:
    for line in sys.stdin.buffer:
        if answer := respond(orjson.loads(line)):
            sys.stdout.buffer.write(answer + b"\n")
            sys.stdout.buffer.flush()


def serve_http() -> None:
    # Not needed for stdio, where some gateways start this program for every call.
    import asyncio

    import httptools
    import uvloop

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast("asyncio.Transport", transport)
            self.parser = httptools.HttpRequestParser(self)
            self.body = b""

        def data_received(self, data: bytes) -> None:
            self.parser.feed_data(data)

        def on_body(self, body: bytes) -> None:
            self.body += body

        def on_message_complete(self) -> None:
            body, self.body = self.body, b""
            if self.parser.get_method() != b"POST":
                self.transport.write(
                    b"HTTP/1.1 405 Method Not Allowed\r\nallow: POST\r\ncontent-length: 0\r\n\r\n"
                )
            elif answer := respond(orjson.loads(body)):
                self.transport.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                    % (len(answer), answer)
                )
            else:
                self.transport.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        print(orjson.dumps({"url": f"http://127.0.0.1:{port}/mcp"}).decode(), flush=True)
        await server.serve_forever()

    uvloop.run(serve())


if __name__ == "__main__":
    serve_http() if "--http" in sys.argv else serve_stdio()
