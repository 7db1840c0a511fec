"""The MCP Inspector's command line lists, calls and reads, on both transports and in both eras."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.conformance_server import TOOLS
from tests.interop.conftest import Front, Node
from tests.interop.running import Server

# What the Inspector ends with when a tool answers `isError`.
TOOL_ERROR = 5

# The first run installs what the others are made of.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("transport", ["http", "stdio"])
def test_the_inspector_lists_calls_and_reads(
    front: Front, node: Node, tmp_path: Path, transport: str, era: str
) -> None:
    server = front.http if transport == "http" else front.stdio

    def inspect(*request: str) -> tuple[int, Any]:
        return run_inspector(node, server, tmp_path, "--protocol-era", era, "--method", *request)

    code, listed = inspect("tools/list")
    assert code == 0
    assert {tool["name"] for tool in listed["tools"] if not tool["name"].startswith("remit.")} == set(TOOLS)

    code, called = inspect("tools/call", "--tool-name", "test_simple_text")
    assert code == 0
    assert called["content"] == [{"type": "text", "text": "This is a simple text response for testing."}]

    code, failed = inspect("tools/call", "--tool-name", "test_error_handling")
    assert code == TOOL_ERROR
    assert failed["isError"]

    code, read = inspect("resources/read", "--uri", "test://template/7/data")
    assert code == 0
    assert json.loads(read["contents"][0]["text"])["id"] == "7"

    arguments = ("--prompt-args", "arg1=one", "arg2=two")
    code, prompt = inspect("prompts/get", "--prompt-name", "test_prompt_with_arguments", *arguments)
    assert code == 0
    assert "arg1='one', arg2='two'" in prompt["messages"][0]["content"]["text"]


def run_inspector(node: Node, server: Server, home: Path, *options: str) -> tuple[int, Any]:
    """The Inspector's exit code, and the result that it printed."""
    if server.url:
        target = ["--server-url", server.url, "--transport", "http"]
        for name, value in server.headers.items():
            target += ["--header", f"{name}: {value}"]
    else:
        # Named in a file, because the Inspector takes options of a command on its line for its own.
        command, *arguments = server.command
        registered = home / "servers.json"
        registered.write_text(
            json.dumps({"mcpServers": {"subject": {"command": command, "args": arguments}}})
        )
        target = ["--config", str(registered), "--server", "subject"]
    inspector = node.modules / "@modelcontextprotocol/inspector/clients/launcher/build/index.js"
    done = subprocess.run(
        [node.executable, str(inspector), "--cli", *target, *options, "--format", "json", "-q"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin"},
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)["result"]
