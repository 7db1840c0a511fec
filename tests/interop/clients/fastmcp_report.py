"""What FastMCP's client does with a server. Runs in a virtual environment of its own, see `venvs.py`.

The one argument is JSON with where the server is; what came back goes to stdout as JSON. `test_clients.py`
says what it should be.
"""

import asyncio
import json
import sys

from fastmcp import Client
from fastmcp.client.auth import BearerAuth
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport

JOB = json.loads(sys.argv[1])


async def answer(message, response_type, params, context):
    return {"name": "Ada", "username": "ada", "email": "ada@example.org"}


async def main():
    if JOB["url"]:
        transport = StreamableHttpTransport(JOB["url"], auth=BearerAuth(JOB["key"]) if JOB["key"] else None)
    else:
        command, *args = JOB["command"]
        transport = StdioTransport(command, args, keep_alive=False)
    progress = []

    async def on_progress(done, total, message):
        progress.append(done)

    mode = "2026-07-28" if JOB["era"] == "modern" else "legacy"
    question = {"message": "Who are you?"} if JOB["question"] == "test_elicitation" else {}
    async with Client(
        transport, mode=mode, elicitation_handler=answer, progress_handler=on_progress
    ) as client:
        tools = await client.list_tools()
        text = await client.call_tool("test_simple_text", {})
        failed = await client.call_tool("test_error_handling", {}, raise_on_error=False)
        await client.call_tool("test_tool_with_progress", {})
        asked = await client.call_tool(JOB["question"], question)
        contents = await client.read_resource("test://static-text")
        prompt = await client.get_prompt("test_simple_prompt")
    report = {
        "tools": [tool.name for tool in tools],
        "text": text.content[0].text,
        "failed": failed.is_error,
        "progress": progress,
        "asked": asked.content[0].text,
        "resource": contents[0].text,
        "prompt": prompt.messages[0].content.text,
    }
    print(json.dumps(report))


asyncio.run(main())
