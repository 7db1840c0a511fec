"""The HTTP headers that repeat parts of a request's body, so that intermediaries need not read it.

Pure functions. Source: MCP 2026-07-28, basic/transports/streamable-http, "Request Metadata".
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias, cast

from remit_adapters.base import Json

#: Which member of `params` an `Mcp-Name` header repeats.
NAMED: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}

#: Header names, each with the path of the argument that it repeats.
Mirror: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]

_PLAIN = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2
_MARK = "x-mcp-header"

#: Keywords of JSON Schema 2020-12 that hold one schema, a list of them, or a mapping to them. Anything else
#: (`default`, `const`, `examples`) is data, where the mark means nothing.
_ONE = frozenset(
    {
        "items",
        "contains",
        "additionalProperties",
        "propertyNames",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
    | {"not", "if", "then", "else", "contentSchema"}
)
_MANY = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAPPED = frozenset({"patternProperties", "dependentSchemas", "$defs", "definitions"})


def header_value(text: str) -> str:
    """`text` as a header value: itself when plain, else `=?base64?...?=` of its UTF-8."""
    if _PLAIN.fullmatch(text) and not (text.startswith("=?base64?") and text.endswith("?=")):
        return text
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="


def mirror(schema: Any) -> Mirror:
    """Which arguments a tool wants repeated as `Mcp-Param-*` headers.

    Raises ValueError when an annotation breaks a rule of the specification: such a tool must not be offered.
    """
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for path, node in _schemas(schema):
        if _MARK not in node:
            continue
        name: Any = node[_MARK]
        where = ".".join(path) if path else "the schema"
        if not path:
            raise ValueError(f"{_MARK} stands where no argument can be read")
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise ValueError(f"{_MARK} of {where} is not a header name")
        if node.get("type") not in ("string", "integer", "boolean"):
            raise ValueError(f"{_MARK} of {where} is on something else than a string, integer or boolean")
        if name.lower() in found:
            raise ValueError(f"{_MARK} of {where} repeats an earlier one")
        found[name.lower()] = (f"Mcp-Param-{name}", path)
    return tuple(found.values())


def _schemas(root: Any) -> Iterator[tuple[tuple[str, ...] | None, dict[str, Any]]]:
    """Every schema in `root`, with the path of the argument it describes; None where there is none."""
    todo: list[tuple[tuple[str, ...] | None, Any]] = [((), root)]
    while todo:
        path, node = todo.pop()
        if not isinstance(node, dict):
            continue
        schema = cast("dict[str, Any]", node)
        yield path, schema
        for keyword, value in schema.items():
            if keyword == "properties" and isinstance(value, dict):
                for name, child in cast("dict[str, Any]", value).items():
                    todo.append((None if path is None else (*path, name), child))
            elif keyword in _ONE:
                todo.append((None, value))
            elif keyword in _MANY and isinstance(value, list):
                todo.extend((None, child) for child in cast("list[Any]", value))
            elif keyword in _MAPPED and isinstance(value, dict):
                todo.extend((None, child) for child in cast("dict[str, Any]", value).values())


def mirrored(headers: Mirror, arguments: Json) -> dict[str, str]:
    """The `Mcp-Param-*` headers of one call; an absent or null argument has none."""
    out: dict[str, str] = {}
    for name, path in headers:
        value: Any = arguments
        for key in path:
            value = cast("Mapping[str, Any]", value).get(key) if isinstance(value, Mapping) else None
        if isinstance(value, bool):
            out[name] = "true" if value else "false"
        elif isinstance(value, str):
            out[name] = header_value(value)
        elif isinstance(value, int | float):
            out[name] = str(value)
    return out
