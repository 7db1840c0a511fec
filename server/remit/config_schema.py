"""The JSON Schema of `remit.yaml`, for editors. Remit itself checks with the model in `config.py`.

Nothing imports this at start. `configs/remit.schema.json` is its output, kept in the repository so that an
editor finds it: begin a file with `# yaml-language-server: $schema=remit.schema.json`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, cast

from remit import config


def json_schema() -> dict[str, Any]:
    """A JSON Schema of the file for editors; each setting is described by its comment in `config.py`."""
    schema: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema |= config.Config.model_json_schema()
    models: dict[str, Any] = {"Config": schema, **schema["$defs"]}
    for (model, setting), comment in _comments().items():
        models[model]["properties"][setting]["description"] = comment
    _suit_editors(schema)
    return schema


def _comments() -> Mapping[tuple[str, str], str]:
    """The `#:` comments of `config.py`, by model and setting."""
    comments: dict[tuple[str, str], str] = {}
    model, lines = "", list[str]()
    for line in inspect.getsource(config).splitlines():
        if found := re.match(r"class (\w+)\(", line):
            model = found[1]
        elif found := re.match(r"    #: (.*)", line):
            lines.append(found[1])
        elif lines and (found := re.match(r"    (\w+): ", line)):
            comments[model, found[1]] = " ".join(lines)
            lines = []
    return comments


def _suit_editors(node: Any) -> None:
    """Say in the schema what the validator does beside it: the form of a duration, closed mappings."""
    if isinstance(node, list):
        for each in cast(list[Any], node):
            _suit_editors(each)
    elif isinstance(node, dict):
        entries = cast(dict[str, Any], node)
        if entries.get("type") == "string" and isinstance(entries.get("default"), int):
            entries["default"] = _duration(entries["default"])
        if "patternProperties" in entries:
            entries["additionalProperties"] = False
        for each in entries.values():
            _suit_editors(each)


def _duration(seconds: int) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
