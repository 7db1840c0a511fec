"""An MCP server that stands in for a company's system: tools and records come from a JSON file.

    python stand_in.py system.json [--db FILE]

It lets the stories beside it run as they are. Put your real server in its place: it decides nothing and
checks nothing but the form of arguments, which is what Remit is for. Records are kept in an SQLite file,
made at the first start; delete it to begin anew. Over stdio only.

A tool of the file takes named arguments (`"integer"`, or `"string?"` where it may be left out) and does one
thing with one kind of record:

    {"find": "orders", "by": "order_id"}                                   one record
    {"list": "refunds", "where": "order_id"}                               all of them that have it
    {"add": "refunds", "as": "refund_id", "set": {"status": "issued"}}     a new one, of the arguments
    {"change": "refunds", "by": "refund_id", "set": {"status": "back"}}    the arguments replace its fields
"""

from __future__ import annotations

import argparse
import json
import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import jsonschema_rs
import mcp_types as types
from mcp import MCPError
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

Record = dict[str, Any]


class NoRecord(Exception):
    """What a tool was asked for is not there."""


class Records:
    """The records of one system, by kind and id."""

    def __init__(self, path: Path, first: Mapping[str, Mapping[str, Record]]) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("CREATE TABLE IF NOT EXISTS records (kind, id, body, PRIMARY KEY (kind, id))")
        for kind, records in first.items():
            for key, record in records.items():
                self._db.execute(
                    "INSERT OR IGNORE INTO records VALUES (?, ?, ?)", (kind, key, json.dumps(record))
                )

    def find(self, kind: str, key: str) -> Record:
        row = self._db.execute("SELECT body FROM records WHERE kind = ? AND id = ?", (kind, key)).fetchone()
        if row is None:
            raise NoRecord(f"There is no {key} among the {kind}.")
        return json.loads(row[0])

    def all(self, kind: str) -> dict[str, Record]:
        rows = self._db.execute("SELECT id, body FROM records WHERE kind = ? ORDER BY rowid", (kind,))
        return {key: json.loads(body) for key, body in rows}

    def write(self, kind: str, key: str, record: Record) -> None:
        self._db.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", (kind, key, json.dumps(record)))


def perform(records: Records, does: Mapping[str, Any], arguments: Record) -> Record:
    """Do what the tool does. Raises NoRecord."""
    match does:
        case {"find": kind, "by": name}:
            return {name: arguments[name], **records.find(kind, arguments[name])}
        case {"list": kind, "where": name}:
            fitting = [record for record in records.all(kind).values() if record[name] == arguments[name]]
            return {kind: fitting}
        case {"add": kind, "as": name, "set": fields}:
            key = f"{kind[:3]}-{len(records.all(kind)) + 1}"
            record = {**arguments, **fields}
        case {"change": kind, "by": name, "set": fields}:
            key = arguments[name]
            changed = {field: value for field, value in arguments.items() if field != name}
            record = {**records.find(kind, key), **changed, **fields}
        case _:
            raise ValueError(f"no tool can do {does}")
    records.write(kind, key, record)
    return {name: key, **record}


def takes(arguments: Mapping[str, str]) -> Record:
    """The input schema of a tool that takes these."""
    return {
        "type": "object",
        "properties": {name: {"type": kind.rstrip("?")} for name, kind in arguments.items()},
        "required": [name for name, kind in arguments.items() if not kind.endswith("?")],
        "additionalProperties": False,
    }


def serve(name: str, tools: Mapping[str, Any], records: Records) -> Server[Any]:
    definitions = [
        types.Tool(name=own, description=tool["says"], input_schema=takes(tool["takes"]))
        for own, tool in tools.items()
    ]

    async def list_tools(_ctx: Any, _params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=definitions)

    async def call_tool(_ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        tool = tools.get(params.name)
        if tool is None:
            raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name}")
        arguments = params.arguments or {}
        try:
            jsonschema_rs.validate(takes(tool["takes"]), arguments)
            answer = perform(records, tool["does"], arguments)
        except (jsonschema_rs.ValidationError, NoRecord) as error:
            words = error.message if isinstance(error, jsonschema_rs.ValidationError) else str(error)
            return types.CallToolResult(content=[types.TextContent(text=words)], is_error=True)
        text = types.TextContent(text=json.dumps(answer))
        return types.CallToolResult(content=[text], structured_content=answer)

    return Server(
        name,
        version="1.0.0",
        get_tool_input_schema=lambda name: None,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


async def over_stdio(server: Server[Any]) -> None:
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


def main() -> None:
    parser = argparse.ArgumentParser(description="A system of records as an MCP server.")
    parser.add_argument("system", type=Path, help="its tools and first records, as JSON")
    parser.add_argument("--db", type=Path, help="where its records are kept; by default beside it")
    options = parser.parse_args()
    system = json.loads(options.system.read_text("utf-8"))
    records = Records(options.db or options.system.with_suffix(".db"), system["records"])
    with suppress(KeyboardInterrupt):
        anyio.run(over_stdio, serve(system["name"], system["tools"], records))


if __name__ == "__main__":
    main()
