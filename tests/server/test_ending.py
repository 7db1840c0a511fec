"""`remit serve` over HTTP is told to end while calls run: they are recorded, and who asked is told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from tests.crash import books
from tests.server.acme import REPOSITORY, Terminal
from tests.server.builders import rows, until
from tests.server.fronts import ERAS, texts

CONFIG = """\
version: 1
store: {{path: remit.db}}
policy: {{files: [policy.csv]}}
identity: {{cli: {{tenant: acme, user: user:sue}}}}
sources:
  held: {{kind: mcp, command: [{python}, {server}, {folder}]}}
tools:
  held.drop: {{effect: irreversible}}
"""
POLICY = """\
g, agent:bot, role:all, acme
g, user:sue, role:all, acme
g3, agent:bot, user:sue, acme
p, role:all, acme, held.*, execute, 1 == 1, allow
"""


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("told", [(signal.SIGTERM,), (signal.SIGTERM, signal.SIGINT)], ids=["once", "twice"])
async def test_a_call_that_is_cut_short_by_the_end_is_in_doubt_and_its_agent_is_told(
    tmp_path: Path, era: str, told: tuple[signal.Signals, ...]
) -> None:
    (tmp_path / "allowed").write_text("0")
    (tmp_path / "policy.csv").write_text(POLICY)
    server = REPOSITORY / "tests/fixtures/held_server.py"
    config = tmp_path / "remit.yaml"
    config.write_text(CONFIG.format(python=sys.executable, server=server, folder=tmp_path))
    words = ("agents", "key", "create", "--agent", "agent:bot", "--user", "user:sue")
    key = await anyio.to_thread.run_sync(lambda: Terminal(config).json(*words))
    command = [
        sys.executable,
        "-m",
        "remit",
        "serve",
        "--http",
        "127.0.0.1:0",
        "--json",
        "--config",
        str(config),
    ]
    answers: list[Any] = []

    async def drop(url: str) -> None:
        headers = {"authorization": f"Bearer {key['key']}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=30) as http,
            Client(streamable_http_client(url, http_client=http), mode=era, cache=None) as client,
        ):
            answers.append(await client.call_tool("held.drop", {"name": "thing"}))

    said = tmp_path / "stderr"
    with said.open("wb") as stderr, anyio.fail_after(60):
        serving = await anyio.open_process(
            [*command, "--config", str(config)], stdin=subprocess.DEVNULL, stderr=stderr
        )
        assert serving.stdout is not None
        url = json.loads(await serving.stdout.receive())["url"]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(drop, url)
            await until((tmp_path / "waits").exists)
            for each in told:
                serving.send_signal(each)
        assert await serving.wait() == 0
    assert said.read_text() == ""
    (answer,) = answers
    assert answer.is_error
    assert answer.meta["dev.remit/verdict"]["code"] == "in_doubt"
    assert "not known whether the call took effect" in texts(answer)
    path = tmp_path / "remit.db"
    assert rows(path, "SELECT state FROM calls") == [{"state": "in_doubt"}]
    assert rows(path, "SELECT DISTINCT state FROM incarnations") == [{"state": "closed"}]
    assert not books.flaws(path)
