"""An MCP server on the official SDK that does, on request, everything a source can do to a gateway.

Run as `python a_source.py stdio` or `python a_source.py http PORT` (0: any; the port is printed).
It serves both eras at once; the client's first words choose.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

import anyio
import mcp_types as t
import uvicorn
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPError

warnings.filterwarnings("ignore")  # the SDK warns of features that it deprecates and we must relay

MODERN = "2026-07-28"
BUS = InMemorySubscriptionBus()
OBJECT = {"type": "object"}
FORM = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
ROUTED = {
    "type": "object",
    "properties": {
        "region": {"type": "string", "x-mcp-header": "Region"},
        "deep": {"type": "object", "properties": {"n": {"type": "integer", "x-mcp-header": "Deep-N"}}},
    },
}
MISROUTED = {"type": "object", "anyOf": [{"properties": {"a": {"type": "string", "x-mcp-header": "A"}}}]}


def text(value: object, **more: Any) -> t.CallToolResult:
    return t.CallToolResult(content=[t.TextContent(type="text", text=str(value))], **more)


async def echo(ctx: Any, p: t.CallToolRequestParams) -> t.CallToolResult:
    meta = {key: value for key, value in (ctx.meta or {}).items() if "/" in key and "modelcontext" not in key}
    return text(
        "echo", structured_content={"arguments": p.arguments, "nothing": None}, _meta={"x.test/got": meta}
    )


async def fail(ctx: Any, p: t.CallToolRequestParams) -> t.CallToolResult:
    return text("no such order", is_error=True)


async def reject(ctx: Any, p: t.CallToolRequestParams) -> t.CallToolResult:
    assert p.arguments is not None
    raise MCPError(p.arguments["code"], "rejected", {"why": None, "n": 1})


async def steps(ctx: Any, p: t.CallToolRequestParams) -> t.CallToolResult:
    for value in (1, 2, 2, 1, 3):
        await ctx.session.report_progress(value, 3, f"at {value}")
    return text("done")


async def say(ctx: Any, p: t.CallToolRequestParams) -> t.CallToolResult:
    await ctx.session.send_log_message("warning", {"line": 1}, "a", related_request_id=ctx.request_id)
    return text("said")


async def wait(ctx: Any, p: t.CallToolRequestParams) -> t.CallToolResult:
    """Wait until a file appears; leave notes in files about what happened."""
    assert p.arguments is not None
    place = Path(p.arguments["place"])
    (place / "began").touch()
    try:
        while not (place / "go").exists():  # noqa: ASYNC110 - another process makes it
            await anyio.sleep(0.01)
    except anyio.get_cancelled_exc_class():
        (place / "cancelled").touch()
        raise
    return text("went")


async def ask(ctx: Any, p: t.CallToolRequestParams) -> t.CallToolResult | t.InputRequiredResult:
    capabilities = ctx.session.client_capabilities
    if capabilities is None or capabilities.elicitation is None:
        return text("cannot ask")
    if ctx.protocol_version != MODERN:
        answer = await ctx.session.elicit_form("Who?", FORM, related_request_id=ctx.request_id)
        return text(f"{answer.action} {answer.content}")
    if p.request_state is None:
        question = t.ElicitRequest(params=t.ElicitRequestFormParams(message="Who?", requested_schema=FORM))
        return t.InputRequiredResult(input_requests={"who": question}, request_state="state-1")
    if p.request_state == "state-1":
        return t.InputRequiredResult(
            request_state=f"state-2 {p.input_responses}"
        )  # asks nothing, only goes on
    return text(p.request_state)


async def ask_anyway(ctx: Any, p: t.CallToolRequestParams) -> t.CallToolResult | t.InputRequiredResult:
    """Ask without being allowed to."""
    if ctx.protocol_version != MODERN:
        answer = await ctx.session.elicit_form("Who?", FORM, related_request_id=ctx.request_id)
        return text(f"{answer.action} {answer.content}")
    question = t.ElicitRequest(params=t.ElicitRequestFormParams(message="Who?", requested_schema=FORM))
    return t.InputRequiredResult(input_requests={"who": question}, request_state="state-1")


async def environment(ctx: Any, p: t.CallToolRequestParams) -> t.CallToolResult:
    return text("env", structured_content={"pid": os.getpid()})


async def big(ctx: Any, p: t.CallToolRequestParams) -> t.CallToolResult:
    assert p.arguments is not None
    return text("x" * p.arguments["bytes"])


async def change(ctx: Any, p: t.CallToolRequestParams) -> t.CallToolResult:
    assert p.arguments is not None
    what = p.arguments["what"]
    if ctx.protocol_version == MODERN:
        event = {
            "tools": ToolsListChanged(),
            "prompts": PromptsListChanged(),
            "resources": ResourcesListChanged(),
        }.get(what) or ResourceUpdated(uri=what)
        await BUS.publish(event)
    elif what == "tools":
        await ctx.session.send_tool_list_changed()
    elif what == "prompts":
        await ctx.session.send_prompt_list_changed()
    elif what == "resources":
        await ctx.session.send_resource_list_changed()
    else:
        await ctx.session.send_resource_updated(what)
    return text("changed")


async def die(ctx: Any, p: t.CallToolRequestParams) -> t.CallToolResult:
    sys.stderr.write("about to die of a test\n")
    sys.stderr.flush()
    os._exit(7)


TOOLS = {
    f.__name__: f
    for f in (echo, fail, reject, steps, say, wait, ask, ask_anyway, environment, big, change, die)
}


async def routed(ctx: Any, p: t.CallToolRequestParams) -> t.CallToolResult:
    headers = {} if ctx.request is None else dict(ctx.request.headers)
    return text("routed", structured_content={"headers": headers})


async def list_tools(ctx: Any, p: t.PaginatedRequestParams | None) -> t.ListToolsResult:
    tools = [t.Tool(name=name, input_schema=OBJECT) for name in TOOLS]
    tools.append(t.Tool(name="routed", input_schema=ROUTED))
    tools.append(t.Tool(name="grüße", input_schema=OBJECT))
    tools.append(t.Tool(name="misrouted", input_schema=MISROUTED))
    at = int(p.cursor) if p is not None and p.cursor else 0
    more = str(at + 5) if at + 5 < len(tools) else None
    return t.ListToolsResult(tools=tools[at : at + 5], next_cursor=more)


async def call_tool(ctx: Any, p: t.CallToolRequestParams) -> t.CallToolResult | t.InputRequiredResult:
    handler = TOOLS.get(p.name) or {"routed": routed, "grüße": echo}.get(p.name)
    if handler is None:
        raise MCPError(t.INVALID_PARAMS, f"Unknown tool: {p.name}")
    return await handler(ctx, p)


async def list_resources(ctx: Any, p: Any) -> t.ListResourcesResult:
    return t.ListResourcesResult(resources=[t.Resource(name="one", uri="test://one")])


async def list_templates(ctx: Any, p: Any) -> t.ListResourceTemplatesResult:
    return t.ListResourceTemplatesResult(
        resource_templates=[t.ResourceTemplate(name="any", uri_template="test://{id}")]
    )


async def read_resource(ctx: Any, p: t.ReadResourceRequestParams) -> t.ReadResourceResult:
    return t.ReadResourceResult(contents=[t.TextResourceContents(uri=p.uri, text=f"content of {p.uri}")])


async def subscribe(ctx: Any, p: Any) -> t.EmptyResult:
    return t.EmptyResult()


async def list_prompts(ctx: Any, p: Any) -> t.ListPromptsResult:
    return t.ListPromptsResult(prompts=[t.Prompt(name="greet")])


async def get_prompt(ctx: Any, p: t.GetPromptRequestParams) -> t.GetPromptResult:
    content = t.TextContent(type="text", text=f"greet {p.arguments}")
    return t.GetPromptResult(messages=[t.PromptMessage(role="user", content=content)])


async def complete(ctx: Any, p: t.CompleteRequestParams) -> t.CompleteResult:
    return t.CompleteResult(completion=t.Completion(values=[p.argument.value + "berlin"]))


class Source(Server[Any]):
    """Declares change notifications over HTTP too, which the SDK leaves out in the older era."""

    def create_initialization_options(
        self, notification_options: Any = None, experimental_capabilities: Any = None, extensions: Any = None
    ) -> Any:
        options = notification_options or NotificationOptions(True, True, True)
        return super().create_initialization_options(options, experimental_capabilities, extensions)


def a_server() -> Source:
    return Source(
        "a-source",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_subscribe_resource=subscribe,
        on_unsubscribe_resource=subscribe,
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
        on_completion=complete,
        on_subscriptions_listen=ListenHandler(BUS),
        get_tool_input_schema=lambda name: ROUTED if name == "routed" else None,
    )


async def over_stdio() -> None:
    server = a_server()
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def over_http(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port))
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(
        a_server().streamable_http_app(), log_level="critical", timeout_graceful_shutdown=1
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        anyio.run(over_stdio)
    else:
        over_http(int(sys.argv[2]))
