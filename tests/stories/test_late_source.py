"""An optional source that is not there when Remit starts, and comes later."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio
from tests.interop.running import REPOSITORY, remit_config
from tests.server.builders import until

from remit.app import App
from remit.config_file import load

SERVER = REPOSITORY / "benchmarks" / "targets" / "canned.py"


async def test_an_optional_source_is_connected_as_soon_as_it_is_there(tmp_path: Path) -> None:
    program = tmp_path / "late"
    source = {"kind": "mcp", "command": [str(program)], "optional": True}
    app = App(load(remit_config({"late": source}, tmp_path)), role="cli")
    heard: list[str] = []
    app.listen(lambda event: heard.append(event.kind))
    async with app.running():
        on = await app.services()
        assert "late.echo" not in on.catalog.tools
        being_made = tmp_path / "being-made"
        being_made.write_text(f"#!/bin/sh\nexec {sys.executable} {SERVER} --stdio\n")
        being_made.chmod(0o755)
        being_made.rename(program)
        with anyio.fail_after(20):
            await until(lambda: "late.echo" in on.catalog.tools)
        assert heard == ["tools"]
