"""The retail kit of tau2-bench as an MCP server over stdio: tools, database and tasks as they were published.

Nothing of the kit is kept here. It is vendored (MIT) in the wheel of `inspect-evals`, which is fetched once
without what it depends on and unpacked into `out/`. What little of its framework the kit touches is stood in
for: a decorator, an error, a base class, and where tools find their state.

    python kit_server.py DB

The file DB holds the whole database as JSON: made when it is not there, read again when somebody has replaced
it, written after every call that writes. So whoever looks into the file sees what the tools have done.
"""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
import zipfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from pydantic import BaseModel, ConfigDict, create_model

WHEEL = "inspect-evals==0.26.0"
HOME = Path(__file__).parents[2] / "out" / "retail"
#: What its written policy calls actions that update the database.
WRITES = frozenset(
    {
        "cancel_pending_order",
        "exchange_delivered_order_items",
        "modify_pending_order_address",
        "modify_pending_order_items",
        "modify_pending_order_payment",
        "modify_user_address",
        "return_delivered_order_items",
    }
)


class KitMissing(Exception):
    """The wheel could not be had; the message is what pip said."""


class ToolError(Exception):
    """What a tool of the kit refuses, in words for an agent."""


@dataclass(kw_only=True)
class Kit:
    """The tools over one database in memory."""

    #: By name; each answers in text, or raises ToolError.
    tools: Mapping[str, Callable[..., Awaitable[str]]]
    _state: Any
    _database: Any

    @property
    def database(self) -> bytes:
        return self._state.db.model_dump_json().encode()

    @database.setter
    def database(self, content: bytes) -> None:
        self._state.db = self._database.model_validate_json(content)

    def definitions(self) -> list[types.Tool]:
        return [
            types.Tool(
                name=name,
                description=(inspect.getdoc(function) or "").split("\n\n", 1)[0],
                input_schema=_arguments(name, function).model_json_schema(),
                annotations=types.ToolAnnotations(read_only_hint=name not in WRITES),
            )
            for name, function in self.tools.items()
        ]


def unpacked() -> Path:
    """The folder of the kit's packages and data, fetched if need be. Raises KitMissing."""
    done = HOME / "unpacked"
    if done.exists() and done.read_text() == WHEEL:
        return HOME
    HOME.mkdir(parents=True, exist_ok=True)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(HOME), WHEEL]
    fetched = subprocess.run(download, capture_output=True, text=True, check=False)
    if fetched.returncode != 0:
        raise KitMissing(f"pip could not download {WHEEL}:\n{fetched.stderr[-2000:]}")
    (wheel,) = HOME.glob("inspect_evals-0.26.0-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(
            HOME, [name for name in archive.namelist() if name.startswith("inspect_evals/tau2/")]
        )
    wheel.unlink()
    done.write_text(WHEEL)
    return HOME


def load(home: Path) -> Kit:
    """The kit with its database as it was published."""
    state: list[Any] = []

    def store_as(model: type[Any], _name: str) -> Any:
        if not state:
            state.append(model())
        return state[0]

    # Packages whose own `__init__` would want the framework are stood in for too; their modules are real.
    for package in ("", ".tau2", ".tau2.common", ".tau2.retail", ".tau2.environment"):
        _stand_in("inspect_evals" + package, home.joinpath("inspect_evals", *package.split(".")[1:]))
    _stand_in("inspect_ai")
    _stand_in("inspect_ai.model", Content=object, ContentText=object)
    _stand_in("inspect_ai.tool", Tool=object, ToolError=ToolError, tool=lambda function: function)
    _stand_in("inspect_ai.util", StoreModel=BaseModel, store_as=store_as)
    _stand_in("toml")
    tools = importlib.import_module("inspect_evals.tau2.retail.tools")
    model = importlib.import_module("inspect_evals.tau2.retail.data_model")
    return Kit(
        tools={each.__name__: each() for each in tools.all_retail_tools},
        _state=tools.get_retail_tools(),
        _database=model.RetailDB,
    )


def tasks(home: Path) -> list[dict[str, Any]]:
    return json.loads((home / "inspect_evals/tau2/data/domains/retail/tasks.json").read_text())


def _stand_in(name: str, folder: Path | None = None, **names: Any) -> None:
    module = ModuleType(name)
    module.__path__ = [str(folder)] if folder else []
    module.__dict__.update(names)
    sys.modules[name] = module


def _arguments(name: str, function: Callable[..., Any]) -> type[BaseModel]:
    """The closed schema of a tool's arguments, from its signature."""
    fields: dict[str, Any] = {
        each.name: (each.annotation, ...) for each in inspect.signature(function).parameters.values()
    }
    return create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **fields)


def server_of(kit: Kit, db: Path) -> Server[Any]:
    definitions = kit.definitions()
    models = {name: _arguments(name, function) for name, function in kit.tools.items()}
    seen: list[tuple[int, int]] = []

    def look() -> tuple[int, int]:
        found = db.stat()
        return found.st_ino, found.st_mtime_ns

    def read() -> None:
        if db.exists() and seen != [look()]:
            kit.database = db.read_bytes()
            seen[:] = [look()]

    def write() -> None:
        fresh = db.with_suffix(".new")
        fresh.write_bytes(kit.database)
        fresh.replace(db)
        seen[:] = [look()]

    async def list_tools(_ctx: Any, _params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=definitions)

    async def call_tool(_ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        read()
        try:
            arguments = models[params.name].model_validate(params.arguments or {})
            answer = await kit.tools[params.name](**dict(arguments))
        except ToolError as refusal:
            return types.CallToolResult(content=[types.TextContent(text=str(refusal))], is_error=True)
        finally:
            if params.name in WRITES:
                write()
        return types.CallToolResult(content=[types.TextContent(text=answer)])

    return Server(
        "retail",
        version="1",
        get_tool_input_schema=lambda name: None,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


async def main() -> None:
    server = server_of(load(unpacked()), Path(sys.argv[1]))
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


if __name__ == "__main__":
    anyio.run(main)
