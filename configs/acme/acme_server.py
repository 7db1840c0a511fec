"""Acme: the back office of a small shop as an MCP server, with its state in one SQLite file.

It is the system that Remit's demonstration governs, and an example to copy: every tool has a closed input
schema, an output schema and honest hints, and runs in one transaction, so a call that answered has happened
and a call that was killed has not. It knows nothing of Remit and has no login; whoever reaches it may do
everything, which is why it speaks stdio, or HTTP on the loopback interface only.

    python acme_server.py [--db FILE] [--http HOST:PORT]

The file is `--db`, else the environment's ACME_DB, else `acme.db`; it is made and seeded from `acme.sql`.
What the shop can do is `acme_shop.py`; this file only brings it to agents.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sqlite3
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import jsonschema_rs
import mcp_types as types
from acme_shop import REFUND_POLICY, TOOLS, Row, RuleError, Tool, open_database, perform
from mcp import MCPError
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server


def serve(db: sqlite3.Connection) -> Server[Any]:
    """Acme over `db`, for any transport and every protocol era that the SDK speaks."""
    one_at_a_time = anyio.CapacityLimiter(1)
    definitions = [definition(tool) for tool in TOOLS.values()]

    async def ask(tool: Tool, arguments: Row) -> Row:
        try:
            return await anyio.to_thread.run_sync(
                partial(perform, db, tool, arguments), limiter=one_at_a_time
            )
        except sqlite3.OperationalError as error:
            raise MCPError(
                types.INTERNAL_ERROR, "Acme's database is not available. Look before you try again."
            ) from error

    async def list_tools(_ctx: Any, _params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=definitions)

    async def call_tool(_ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        tool = TOOLS.get(params.name)
        if tool is None:
            raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name}")
        arguments = params.arguments or {}
        if wrong := [complaint(error) for error in tool.arguments.iter_errors(arguments)]:
            return failure("The arguments do not fit: " + "; ".join(wrong))
        try:
            answer = await ask(tool, arguments)
        except RuleError as refusal:
            return failure(str(refusal))
        return types.CallToolResult(content=[said(json.dumps(answer))], structured_content=answer)

    async def list_resources(_ctx: Any, _params: Any) -> types.ListResourcesResult:
        policy = types.Resource(uri="acme://policy/refunds", name="refund policy", mime_type="text/plain")
        return types.ListResourcesResult(resources=[policy])

    async def list_templates(_ctx: Any, _params: Any) -> types.ListResourceTemplatesResult:
        order = types.ResourceTemplate(
            uri_template="acme://orders/{order_id}", name="order", mime_type="application/json"
        )
        return types.ListResourceTemplatesResult(resource_templates=[order])

    async def read_resource(_ctx: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        uri = str(params.uri)
        if uri == "acme://policy/refunds":
            content, mime_type = REFUND_POLICY, "text/plain"
        elif uri.startswith("acme://orders/"):
            order_id = uri.removeprefix("acme://orders/")
            content, mime_type = json.dumps(await look_up(order_id)), "application/json"
        else:
            raise MCPError(types.INVALID_PARAMS, f"There is no resource {uri}.")
        contents = types.TextResourceContents(uri=uri, mime_type=mime_type, text=content)
        return types.ReadResourceResult(contents=[contents])

    async def list_prompts(_ctx: Any, _params: Any) -> types.ListPromptsResult:
        order = types.PromptArgument(name="order_id", description="The order in question.", required=True)
        prompt = types.Prompt(
            name="refund_request", description="Decide a refund request by the policy.", arguments=[order]
        )
        return types.ListPromptsResult(prompts=[prompt])

    async def get_prompt(_ctx: Any, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        if params.name != "refund_request" or set(params.arguments or {}) != {"order_id"}:
            raise MCPError(types.INVALID_PARAMS, "The one prompt is refund_request; it takes order_id.")
        order = json.dumps(await look_up((params.arguments or {})["order_id"]))
        words = f"{REFUND_POLICY}\nThe order: {order}\n\nShould it be refunded, and how much? Say why."
        return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=said(words))])

    async def look_up(order_id: str) -> Row:
        try:
            return await ask(TOOLS["get_order"], {"order_id": order_id})
        except RuleError as refusal:
            raise MCPError(types.INVALID_PARAMS, str(refusal)) from None

    return Server(
        "acme",
        version="1.0.0",
        instructions="Acme's orders, refunds, tickets, customers and mail. Amounts are integers in cents.",
        # None of the tools takes an argument from an HTTP header, so there is no schema to look up.
        get_tool_input_schema=lambda name: None,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
    )


def definition(tool: Tool) -> types.Tool:
    return types.Tool(
        name=tool.name,
        description=tool.description,
        input_schema=tool.takes,
        output_schema=tool.gives,
        annotations=types.ToolAnnotations.model_validate(tool.hints),
    )


def said(words: str) -> types.TextContent:
    return types.TextContent(text=words)


def failure(words: str) -> types.CallToolResult:
    return types.CallToolResult(content=[said(words)], is_error=True)


def complaint(error: jsonschema_rs.ValidationError) -> str:
    where = ".".join(str(step) for step in error.instance_path)
    return f"{where}: {error.message}" if where else error.message


async def over_stdio(server: Server[Any]) -> None:
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


def over_http(server: Server[Any], host: str, port: int) -> None:
    """Serve on `http://host:port/mcp`; port 0 takes a free one. The first line printed tells the address."""
    import uvicorn  # not needed for stdio, where every client session pays for each import

    listener = socket.create_server((host, port))
    print(json.dumps({"url": f"http://{host}:{listener.getsockname()[1]}/mcp"}), flush=True)
    # On a loopback host the SDK checks Host and Origin by itself.
    app = server.streamable_http_app(host=host)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def main() -> None:
    parser = argparse.ArgumentParser(description="Acme's back office as an MCP server.")
    parser.add_argument("--db", type=Path, default=Path(os.environ.get("ACME_DB", "acme.db")))
    parser.add_argument("--http", metavar="HOST:PORT", help="serve streamable HTTP instead of stdio")
    options = parser.parse_args()
    host, _, port = (options.http or "127.0.0.1:0").rpartition(":")
    if host not in ("127.0.0.1", "localhost") or not port.isdecimal():
        parser.error("Acme has no login: give --http 127.0.0.1:PORT")
    try:
        db = open_database(options.db)
    except sqlite3.Error as error:
        parser.exit(1, f"Acme cannot use {options.db}: {error}. Give another file with --db or ACME_DB.\n")
    server = serve(db)
    with suppress(KeyboardInterrupt):
        if options.http:
            over_http(server, host, int(port))
        else:
            anyio.run(over_stdio, server)


if __name__ == "__main__":
    main()
