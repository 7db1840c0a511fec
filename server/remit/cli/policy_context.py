"""`remit policy context`: what conditions can read, as a table and as JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remit.cli.options import TOOL, config_option, json_option, print_json

if TYPE_CHECKING:
    from remit.catalog import Catalog
    from remit.config_file import Loaded


@dataclass(frozen=True, slots=True)
class _Attribute:
    path: str
    kind: str
    about: str


@click.command()
@config_option
@json_option
@click.argument("name", type=TOOL, metavar="[TOOL]", required=False)
def context(config_path: Path, as_json: bool, name: str | None) -> None:
    """Show what conditions can read: `r.args` and `r.ctx`, here or for one TOOL, whose source is asked.

    With --json it is a JSON Schema of `r`.
    """
    from remit.cli.output import listing
    from remit.config_file import load
    from remit.context_schema import request_schema
    from remit.errors import UnknownRecord

    loaded = load(config_path)
    catalog = _catalog(loaded, name) if name else None
    tool = catalog.tools.get(name) if catalog and name else None
    if name and tool is None:
        raise UnknownRecord(f"no tool {name} is exported: `remit tools list` shows those that are")
    schema = request_schema(loaded.config, tool, catalog)
    if as_json:
        print_json(schema)
    else:
        listing(
            list(_attributes("r", schema)),
            {"read": lambda it: it.path, "type": lambda it: it.kind, "is": lambda it: it.about},
            as_json=False,
            none="",
        )


def _catalog(loaded: Loaded, name: str) -> Catalog:
    import anyio

    from remit.cli.exported import ask

    offered = anyio.run(ask, loaded)
    for source, why in offered.down.items():
        click.echo(f"source {source} cannot be reached: {why}", err=True)
    return offered.catalog


def _attributes(path: str, schema: Mapping[str, Any]) -> Iterator[_Attribute]:
    """One line for each value; for an object of which something is known, what is in it."""
    properties: Mapping[str, Mapping[str, Any] | bool] = schema.get("properties", {})
    for name, inner in properties.items():
        known: Mapping[str, Any] = {} if isinstance(inner, bool) else inner
        if known.get("properties"):
            yield from _attributes(f"{path}.{name}", known)
        else:
            yield _Attribute(f"{path}.{name}", _kind(known), str(known.get("description", "")))


def _kind(schema: Mapping[str, Any]) -> str:
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    kind = schema.get("type", "any")
    return kind if isinstance(kind, str) else " | ".join(kind)
