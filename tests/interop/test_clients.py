"""Clients that others wrote, each in a process of its own, do their daily work through each front."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fixtures.conformance_server import TOOLS
from tests.interop.conftest import Front, Node

CLIENTS = Path(__file__).with_name("clients")

# The first run installs what the others are made of.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("transport", ["http", "stdio"])
@pytest.mark.parametrize(
    ("client", "era"),
    [
        ("typescript_1", "legacy"),
        ("typescript_2", "legacy"),
        ("typescript_2", "modern"),
        ("fastmcp", "legacy"),
        ("fastmcp", "modern"),
    ],
)
def test_a_client_of_another_make_lists_calls_reads_and_can_be_asked(
    front: Front, node: Node, python_with: Callable[[str], str], client: str, era: str, transport: str
) -> None:
    server = front.http if transport == "http" else front.stdio
    if client == "fastmcp":
        command = [python_with("interop-fastmcp"), str(CLIENTS / "fastmcp_report.py")]
    else:
        command = [node.executable, str(CLIENTS / f"{client}.mjs")]
    job = {
        "url": server.url,
        "key": server.key,
        "command": list(server.command),
        "era": era,
        "question": "test_elicitation" if era == "legacy" else "test_input_required_result_elicitation",
        "modules": str(node.modules),
    }
    done = subprocess.run(
        [*command, json.dumps(job)], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {name for name in report.pop("tools") if not name.startswith("remit.")} == set(TOOLS)
    asked = report.pop("asked")
    assert "Ada" in asked if era == "modern" else "ada@example.org" in asked
    assert report == {
        "text": "This is a simple text response for testing.",
        "failed": True,
        "progress": [0, 50, 100],
        "resource": "This is the content of the static text resource.",
        "prompt": "This is a simple prompt for testing.",
    }
