"""Two plain uses of the MCP SDK: a server of its own, and a bare pass-through proxy.

Both are written the way the SDK's documentation suggests and add nothing: no policy, no record, no budget.
The server (no `--to`) is what a call costs without any gateway; the proxy is the yardstick for gateways.

    python -m benchmarks.targets.sdk --http|--stdio [--to URL | --to COMMAND ARGUMENT...]
"""

from __future__ import annotations

import argparse
import json
import socket
from contextlib import AsyncExitStack
from typing import Any

import anyio
import mcp_types as types
from mcp import Client, StdioServerParameters
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from pydantic import TypeAdapter

from benchmarks.targets import canned

RESULT: TypeAdapter[types.CallToolResult] = TypeAdapter(types.CallToolResult)


def own_server() -> Server[Any]:
    async def list_tools(_ctx: Any, _params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[types.Tool.model_validate(tool) for tool in canned.TOOLS])

    async def call_tool(_ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        text = (params.arguments or {})["text"]
        return types.CallToolResult(
            content=[types.TextContent(text=text)],
            structured_content={"text": text, "rows": canned.ROWS} if params.name == "report" else None,
        )

    return Server(
        "direct", on_list_tools=list_tools, on_call_tool=call_tool, get_tool_input_schema=lambda _name: None
    )


def proxy(downstream: Client) -> Server[Any]:
    async def list_tools(_ctx: Any, _params: Any) -> types.ListToolsResult:
        return await downstream.list_tools()

    async def call_tool(_ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        sent = types.CallToolRequestParams(name=params.name, arguments=params.arguments)
        return await downstream.session.send_request(types.CallToolRequest(params=sent), RESULT)

    return Server(
        "bare", on_list_tools=list_tools, on_call_tool=call_tool, get_tool_input_schema=lambda _name: None
    )


async def serve(to: list[str] | None, *, http: bool) -> None:
    async with AsyncExitStack() as stack:
        if to is None:
            server = own_server()
        else:
            target = StdioServerParameters(command=to[0], args=to[1:]) if len(to) > 1 else to[0]
            server = proxy(await stack.enter_async_context(Client(target, mode=canned.VERSION, cache=None)))
        if not http:
            async with stdio_server() as (read, write):
                await server.run(read, write, server.create_initialization_options())
            return
        import uvicorn  # not needed for stdio, whose start-up is measured

        listener = socket.create_server(("127.0.0.1", 0))
        print(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"}), flush=True)
        config = uvicorn.Config(server.streamable_http_app(), log_level="warning")
        await uvicorn.Server(config).serve(sockets=[listener])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--http", action="store_true")
    parser.add_argument("--stdio", action="store_true")
    parser.add_argument("--to", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    anyio.run(lambda: serve(options.to, http=options.http), backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
