"""A child process that speaks just enough of MCP over stdio to misbehave; knows no SDK, so it starts fast.

Run as `python a_rogue.py [HABIT]`. HABIT is how it takes `server/discover`: `refuses` it (as older servers
do), `dies` of it, is `silent` about it, or `answers` it. What it does on a call is the name of the tool.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

HABIT = sys.argv[1] if len(sys.argv) > 1 else "refuses"


def send(message: dict[str, Any]) -> None:
    line = json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"
    while line:
        line = line[os.write(1, line) :]


def flood(fd: int, piece: bytes, seconds: float = 600) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        os.write(fd, piece)


def call(request: dict[str, Any]) -> None:
    name, arguments = request["params"]["name"], request["params"].get("arguments", {})
    text: Any = "ok"
    match name:
        case "no-newline":
            flood(1, b"x" * 65536)
        case "noise":
            flood(1, b'{"jsonrpc":"2.0","method":"notifications/noise"}\n' * 1000)
        case "loud":
            flood(2, b"y" * 65536, arguments["seconds"])
        case "says":
            os.write(1, arguments["bytes"].encode("latin-1"))
        case "banner":
            os.write(1, b"Welcome!\n\n[]\n17\n\xff\xfe\n")
        case "other-id":
            send({"id": 999_999, "result": {"content": []}})
            send({"id": str(request["id"]), "result": {"content": []}})
        case "no-result":
            return send({"id": request["id"], "result": None})
        case "no-object":
            return send({"id": request["id"], "result": [1]})
        case "bad-error":
            return send({"id": request["id"], "error": "boom"})
        case "twice":
            send({"id": request["id"], "result": {"content": [], "n": 1}})
            return send({"id": request["id"], "result": {"content": [], "n": 2}})
        case "silent":
            return None
        case "deaf":
            time.sleep(600)
        case "closes":
            os.close(1)
            time.sleep(600)
        case "leaves-a-child":
            text = subprocess.Popen(["sleep", "600"]).pid
        case "ask":
            send({"id": "q1", "method": "elicitation/create", "params": {"message": "Who?"}})
            text = json.loads(sys.stdin.buffer.readline()).get("result")
        case "withdraws":
            send({"id": "q1", "method": "elicitation/create", "params": {"message": "Who?"}})
            send({"method": "notifications/cancelled", "params": {"requestId": "q1"}})
            return None
        case "asks-in-vain":
            send({"id": "q1", "method": "elicitation/create", "params": {"message": "Who?"}})
            send({"id": "q1", "method": "elicitation/create", "params": {"message": "Who, again?"}})
        case "asks-much":
            for n in range(100):
                send({"id": n, "method": "elicitation/create", "params": {"message": "Who?"}})
            return None
        case "ping":
            send({"id": "p1", "method": "ping"})
            text = json.loads(sys.stdin.buffer.readline()).get("result")
        case "meta":
            text = request["params"].get("_meta")
        case "initialized-with":
            text = HELLO
        case "log":
            send(
                {"method": "notifications/message", "params": {"level": "info", "data": "secret of " + name}}
            )
        case _:
            files = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd")]
            ids = {"pid": os.getpid(), "pgid": os.getpgrp()}
            text = {"home": os.environ["HOME"], "env": dict(os.environ), "files": files, **ids}
    send({"id": request["id"], "result": {"content": [], "structuredContent": text}})
    return None


HELLO: Any = None
for line in sys.stdin.buffer:
    message = json.loads(line)
    match message.get("method"):
        case "server/discover" if HABIT == "dies":
            sys.exit(1)
        case "server/discover" if HABIT == "silent":
            pass
        case "server/discover" if HABIT == "answers":
            found = {
                "supportedVersions": ["2026-07-28"],
                "capabilities": {"tools": {}},
                "resultType": "complete",
            }
            send({"id": message["id"], "result": found})
        case "initialize":
            HELLO = message["params"]
            found = {
                "protocolVersion": "2025-06-18",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "rogue", "version": "0"},
            }
            send({"id": message["id"], "result": found})
        case "tools/list" if HABIT == "endless":
            send({"id": message["id"], "result": {"tools": [{"name": "t"}], "nextCursor": "again"}})
        case "tools/list":
            send({"id": message["id"], "result": {"tools": [{"name": "t", "x-unknown": {"kept": None}}]}})
        case "tools/call":
            call(message)
        case method if "id" in message and method is not None:
            send({"id": message["id"], "error": {"code": -32601, "message": "Method not found"}})
