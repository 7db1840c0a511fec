"""A FastMCP proxy, in both ways that its documentation offers: a client for each request, or one for all.

It runs in an environment of its own and imports nothing of this repository.

    python fastmcp_proxy.py --http|--stdio [--connected] --to URL | --to COMMAND ARGUMENT...
"""

from __future__ import annotations

import argparse
import json
import socket
from contextlib import AsyncExitStack

import uvicorn
import uvloop
from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from fastmcp.server import create_proxy


async def serve(to: list[str], *, http: bool, connected: bool) -> None:
    target = StdioTransport(to[0], to[1:]) if len(to) > 1 else to[0]
    async with AsyncExitStack() as stack:
        if connected:
            target = await stack.enter_async_context(Client(target, mode="2026-07-28"))
        proxy = create_proxy(target)
        if not http:
            await proxy.run_stdio_async(show_banner=False)
            return
        listener = socket.create_server(("127.0.0.1", 0))
        print(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"}), flush=True)
        config = uvicorn.Config(proxy.http_app(path="/mcp"), log_level="warning")
        await uvicorn.Server(config).serve(sockets=[listener])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--http", action="store_true")
    parser.add_argument("--stdio", action="store_true")
    parser.add_argument("--connected", action="store_true")
    parser.add_argument("--to", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    uvloop.run(serve(options.to, http=options.http, connected=options.connected))


if __name__ == "__main__":
    main()
