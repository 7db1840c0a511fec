"""Two `remit serve` on one PostgreSQL database, and every command of an operator beside them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.adapters import a_source
from tests.crash import books
from tests.interop.running import REMIT
from tests.postgres import Databases
from tests.server import acme
from tests.server.builders import until
from tests.stories.raw import ENVELOPE, Answer, Http, a_key, configured

from remit.database import Postgres, reading

SOURCE = [sys.executable, str(Path(a_source.__file__)), "stdio"]
ALL = ("all", "--reason", "a test", "--as", "user:tester")
TOTAL = [{"scope": "agent", "unit": "calls", "window": "total", "limit": 6}]


@pytest.fixture
def at(postgres: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Postgres:
    """An empty database, whose URL is in the environment."""
    monkeypatch.setenv("REMIT_TEST_DATABASE", postgres.empty())
    return Postgres("env:REMIT_TEST_DATABASE", tmp_path / "remit.db")


@contextmanager
def a_replica(config: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [*REMIT, "serve", "--http", "127.0.0.1:0", "--json", "--config", str(config)]
    with (
        (config.parent / "stderr").open("a") as complaints,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True) as process,
    ):
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert line, (config.parent / "stderr").read_text()
            yield process, json.loads(line)["url"]
        finally:
            process.terminate()
            process.wait(20)


def called(client: Http, tool: str, arguments: dict[str, Any]) -> Answer:
    params = {"name": tool, "arguments": arguments, "_meta": ENVELOPE}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    headers = client.headers(mcp_protocol_version="2026-07-28", mcp_method="tools/call", mcp_name=tool)
    return client.send(json.dumps(body).encode(), headers)


def went_well(answer: Answer) -> bool:
    return "result" in answer.message and not answer.message["result"].get("isError")


def states(at: Postgres) -> list[str]:
    with reading(at) as db:
        return [row["state"] for row in db.all("SELECT state FROM calls ORDER BY created_us")]


async def test_two_replicas_are_one_remit(at: Postgres, tmp_path: Path) -> None:
    source = {"kind": "mcp", "command": SOURCE}
    config = configured(
        {"src": source},
        tmp_path,
        store={"path": "remit.db", "url": at.url},
        tools={"*": {"effect": "irreversible", "on_error": "unknown"}},
        budgets=TOTAL,
    )
    terminal = acme.Terminal(config)
    assert (await run(terminal, "db", "upgrade")).code == 0
    key = a_key(config)
    with a_replica(config) as (one, url), a_replica(config) as (_, other_url):
        first, second = Http(url=url, key=key), Http(url=other_url, key=key)
        for number in range(3):
            for client in (first, second):
                assert went_well(called(client, "src.echo", {"n": number})), states(at)
        # What is spent is spent on both.
        refused = [called(client, "src.echo", {"n": 9}).message for client in (first, second)]
        assert all("budget" in json.dumps(message) for message in refused)
        assert (await run(terminal, "switch", "on", *ALL)).code == 0
        for client in (first, second):
            await until(lambda client=client: "stopped" in json.dumps(called(client, "src.echo", {}).message))
        assert (await run(terminal, "switch", "off", *ALL)).code == 0
        one.kill()
    assert books.flaws(at) == []


async def test_a_killed_replica_leaves_its_calls_in_doubt_to_the_other(at: Postgres, tmp_path: Path) -> None:
    config = configured(
        {"src": {"kind": "mcp", "command": SOURCE}},
        tmp_path,
        store={"path": "remit.db", "url": at.url, "lease": "3s"},
        tools={"*": {"effect": "irreversible"}},
    )
    key = a_key(config)
    with a_replica(config) as (one, url), a_replica(config) as (_, other_url):
        waiting = threading.Thread(target=cut_off, args=[Http(url=url, key=key), tmp_path])
        waiting.start()
        await until(lambda: (tmp_path / "began").exists())
        assert states(at) == ["dispatched"]
        one.kill()
        await anyio.to_thread.run_sync(waiting.join)
        await until(lambda: states(at) == ["in_doubt"])
        again = called(Http(url=other_url, key=key), "src.wait", place(tmp_path))
        assert "in doubt" in json.dumps(again.message) or "in_doubt" in json.dumps(again.message)
        (tmp_path / "go").touch()
    assert books.flaws(at) == []


def cut_off(client: Http, folder: Path) -> None:
    with pytest.raises((OSError, HTTPException)):
        called(client, "src.wait", place(folder))


def place(folder: Path) -> dict[str, str]:
    return {"place": str(folder)}


async def run(remit: acme.Terminal, *words: str) -> acme.Ran:
    """A command has an event loop of its own."""
    return await anyio.to_thread.run_sync(lambda: remit(*words))


async def test_every_command_works_on_postgresql(at: Postgres, tmp_path: Path) -> None:
    config = acme.a_place(tmp_path)
    config.write_text(config.read_text().replace("{path: remit.db}", f"{{path: remit.db, url: {at.url}}}"))
    remit = acme.Terminal(config)
    early = remit("calls", "list")
    assert early.code == 1
    assert "there is no audit database" in early.err
    story = await acme.a_story(config)
    outputs = tmp_path / "log"
    for words in (
        ["check", "--offline"],
        ["db", "check"],
        ["db", "upgrade"],
        ["calls", "list", "--tool", "acme.*"],
        ["calls", "show", story.refund],
        ["calls", "tail"],
        ["approvals", "list"],
        ["approvals", "approve", story.approval, "--yes", "--as", "user:sue"],
        ["budget", "show"],
        ["budget", "verify"],
        ["doubt", "list"],
        ["undo", story.refund, "--as", "user:sue"],
        ["switch", "on", "all", "--reason", "a test"],
        ["switch", "list"],
        ["switch", "off", "all", "--reason", "a test"],
        ["agents", "list"],
        ["policy", "explain", story.pending],
        ["policy", "push"],
        ["policy", "versions"],
        ["policy", "shadow", "start", str(tmp_path / "policy.csv")],
        ["policy", "shadow", "stop"],
        ["audit", "checkpoint"],
        ["audit", "key", "show"],
        ["audit", "prove", story.refund],
        ["audit", "export", "-o", str(outputs), "--checkpoint", str(tmp_path / "checkpoint")],
        ["audit", "verify", "--checkpoint", str(tmp_path / "checkpoint")],
        ["audit", "erase", "--subject", "user:sue", "--reason", "a test", "--yes"],
        ["audit", "verify"],
        ["db", "check"],
    ):
        ran = await run(remit, *words)
        assert ran.code == 0, (words, ran)
    assert books.flaws(at) == []


async def test_a_database_that_is_not_there_is_said_in_a_sentence(tmp_path: Path) -> None:
    config = acme.a_place(tmp_path)
    url = "postgresql://remit@127.0.0.1:9/remit"
    config.write_text(config.read_text().replace("{path: remit.db}", f"{{path: remit.db, url: '{url}'}}"))
    ran = acme.Terminal(config)("calls", "list")
    assert ran.code == 1
    assert url in ran.err
    assert "Traceback" not in ran.err
