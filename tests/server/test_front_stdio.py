"""The same front over a pipe: `remit serve --stdio` as a client starts it, in both eras, in front of Acme."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, MCPError, StdioServerParameters
from tests.crash import books
from tests.server import acme
from tests.server.builders import rows
from tests.server.fronts import ERAS, names, texts

VERDICT, RECEIPT = "dev.remit/verdict", "dev.remit/receipt"


def a_server(config: Path, **environment: str) -> StdioServerParameters:
    command = ["-m", "remit", "serve", "--stdio", "--config", str(config)]
    return StdioServerParameters(command=sys.executable, args=command, env=environment, cwd=config.parent)


@pytest.mark.parametrize("era", ERAS, ids=["modern", "legacy"])
async def test_an_agent_at_the_end_of_a_pipe_is_governed_like_any_other(tmp_path: Path, era: str) -> None:
    config = acme.a_place(tmp_path)
    async with Client(a_server(config), mode=era, cache=None) as client:
        listed = names((await client.list_tools()).tools)
        assert {"acme.refund", "acme.get_order", "remit.undo"} <= listed
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("acme.nothing", {})
        assert await refunded(client, 500_000) == "no_rule"
        assert await refunded(client, 40_000) == "pending_approval"
        made = await client.call_tool("acme.refund", acme.refund_of("ord-1001", 8000))
        assert made.meta is not None
        call_id = made.meta[RECEIPT]["call_id"]
        undone = await client.call_tool("remit.undo", {"call_id": call_id})
        assert undone.structured_content is not None
        assert undone.structured_content["state"] == "done"
        order = await client.call_tool("acme.get_order", {"order_id": "ord-1001"})
        assert '"refunded_minor": 0' in texts(order)
        assert (await client.list_resources()).resources
    runs = rows(
        tmp_path / "remit.db", "SELECT DISTINCT run, agent, user, auth FROM calls WHERE kind = 'call'"
    )
    (who,) = runs
    assert who["run"].startswith("process-")
    assert (who["agent"], who["user"], who["auth"]) == ("agent:support-bot", "user:alice", "stdio")
    assert rows(tmp_path / "remit.db", "SELECT id FROM calls WHERE state = 'dispatched'") == []
    assert books.flaws(tmp_path / "remit.db") == []
    # In order or not: the client may end the process before it has closed its books.
    states = {row["state"] for row in rows(tmp_path / "remit.db", "SELECT state FROM incarnations")}
    assert states <= {"closed", "live"}


async def refunded(client: Client, amount_minor: int) -> Any:
    result = await client.call_tool("acme.refund", acme.refund_of("ord-1002", amount_minor))
    assert result.is_error
    assert result.meta is not None
    return result.meta[VERDICT]["code"]


INITIALIZE = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "x", "version": "1"},
}
HELLO = {"id": 1, "method": "initialize", "params": INITIALIZE}
STATELESS = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "x", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


@pytest.mark.parametrize("era", ERAS, ids=["modern", "legacy"])
async def test_requests_in_a_file_are_answered_into_a_file(tmp_path: Path, era: str) -> None:
    meta = {"_meta": STATELESS} if era == ERAS[0] else {}
    order = {"name": "acme.get_order", "arguments": {"order_id": "ord-1001"}, **meta}
    messages: list[dict[str, Any]] = [
        {"id": 1, "method": "tools/list", "params": meta} if meta else HELLO,
        *({"id": number, "method": "tools/call", "params": order} for number in range(2, 6)),
        # Answered or not: nobody waits for it.
        {"method": "notifications/cancelled", "params": {"requestId": 5}},
        {"id": 6, "method": "tools/list", "params": meta},
    ]
    asked, answered = tmp_path / "asked.jsonl", tmp_path / "answered.jsonl"
    asked.write_text("".join(json.dumps({"jsonrpc": "2.0", **message}) + "\n" for message in messages))
    command = [sys.executable, *a_server(acme.a_place(tmp_path)).args]
    with asked.open("rb") as stdin, answered.open("wb") as stdout, anyio.fail_after(60):
        await anyio.run_process(command, stdin=stdin, stdout=stdout, cwd=tmp_path)
    answers = {answer["id"]: answer for answer in map(json.loads, answered.read_text().splitlines())}
    assert {1, 2, 3, 4, 6} <= answers.keys()
    for number in (2, 3, 4):
        assert "ord-1001" in answers[number]["result"]["content"][0]["text"]


@pytest.mark.parametrize("era", ERAS, ids=["modern", "legacy"])
async def test_a_client_that_is_killed_while_its_calls_run_leaves_a_server_that_ends_in_order(
    tmp_path: Path, era: str
) -> None:
    meta = {"_meta": STATELESS} if era == ERAS[0] else {}
    order = {"name": "acme.get_order", "arguments": {"order_id": "ord-1001"}, **meta}
    asked, to_server = os.pipe()
    from_server, answered = os.pipe()
    command = [sys.executable, *a_server(acme.a_place(tmp_path)).args]
    said = tmp_path / "stderr"
    with said.open("wb") as stderr:
        server = await anyio.open_process(command, stdin=asked, stdout=answered, stderr=stderr, cwd=tmp_path)
    os.close(asked)
    os.close(answered)

    def send(*messages: dict[str, Any]) -> None:
        text = "".join(json.dumps({"jsonrpc": "2.0", **message}) + "\n" for message in messages)
        os.write(to_server, text.encode())

    send({"id": 1, "method": "tools/list", "params": meta} if meta else HELLO)
    with anyio.fail_after(60):
        await anyio.to_thread.run_sync(os.read, from_server, 2**20)
        os.close(from_server)
        # Each in its turn, so that one of them finds out that nobody reads, and others come after it.
        send(*({"id": number, "method": "tools/call", "params": order} for number in range(2, 40)))
        assert await server.wait() == 0
    os.close(to_server)
    assert said.read_text() == ""


def test_a_client_that_reads_nothing_is_not_read_from_either_and_gets_every_answer_later(
    tmp_path: Path,
) -> None:
    asks = 4_000
    command = [sys.executable, *a_server(acme.a_place(tmp_path)).args]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        writes, reads = server.stdin, server.stdout
        listing = {"jsonrpc": "2.0", "method": "tools/list", "params": {"_meta": STATELESS}}

        def ask(number: int) -> None:
            writes.write(json.dumps({**listing, "id": number}).encode() + b"\n")

        def flood() -> None:
            for number in range(1, asks):
                ask(number)
            writes.close()

        ask(0)
        writes.flush()
        answer = reads.readline()
        before, answers = memory(server.pid), len(answer) * asks
        flooding = threading.Thread(target=flood)
        flooding.start()
        # Until it has taken what it takes: then it rests, or everything is sent.
        used = -1
        while flooding.is_alive() and used != (used := processor_time(server.pid)):
            time.sleep(0.5)
        assert memory(server.pid) - before < answers
        numbers = [json.loads(line)["id"] for line in reads]
        flooding.join()
    assert sorted(numbers) == list(range(1, asks))


def memory(pid: int) -> int:
    """Bytes that a process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def processor_time(pid: int) -> int:
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


async def test_the_environment_says_who_speaks_over_a_pipe_when_it_is_set(tmp_path: Path) -> None:
    server = a_server(acme.a_place(tmp_path), REMIT_AGENT="agent:nobody")
    async with Client(server, mode=ERAS[0], cache=None) as client:
        assert {
            name for name in names((await client.list_tools()).tools) if name.startswith("acme.")
        } == set()
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("acme.refund", acme.refund_of("ord-1001", 8000))
    (tried,) = rows(tmp_path / "remit.db", "SELECT agent, code FROM calls")
    assert tried == {"agent": "agent:nobody", "code": "not_visible"}
