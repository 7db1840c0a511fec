"""How each target is started: one function per target, from what stands behind it to a command.

A function may prepare files in the folder that it is given; it raises Skip when its target cannot run here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Transport = Literal["http", "stdio"]

ROOT = Path(__file__).parents[2]
CANNED = [sys.executable, str(ROOT / "benchmarks" / "targets" / "canned.py")]
SDK = [sys.executable, "-m", "benchmarks.targets.sdk"]
FASTMCP_VENV = ROOT / "out" / "venvs" / "fastmcp"


class Skip(Exception):
    """This target cannot be measured here; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    command: list[str]
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    #: Sent with every HTTP request.
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    #: What the target puts before the names of the tools behind it.
    prefix: str = ""


def canned(transport: Transport, to: list[str], folder: Path) -> Launch:
    """No gateway and next to no server: what the load itself can do."""
    return Launch(command=[*CANNED, f"--{transport}"])


def direct(transport: Transport, to: list[str], folder: Path) -> Launch:
    """No gateway: a server on the SDK, as an agent would call it without one."""
    return Launch(command=[*SDK, f"--{transport}"])


def bare(transport: Transport, to: list[str], folder: Path) -> Launch:
    return Launch(command=[*SDK, f"--{transport}", "--to", *to])


def fastmcp(transport: Transport, to: list[str], folder: Path, *options: str) -> Launch:
    program = ROOT / "benchmarks" / "targets" / "fastmcp_proxy.py"
    python = FASTMCP_VENV / "bin" / "python"
    if not python.exists():
        raise Skip(f"no FastMCP in {FASTMCP_VENV.relative_to(ROOT)}: run once without --quick to install it")
    return Launch(
        command=[str(python), str(program), f"--{transport}", *options, "--to", *to],
        env={"FASTMCP_LOG_LEVEL": "WARNING"},
    )


def fastmcp_connected(transport: Transport, to: list[str], folder: Path) -> Launch:
    return fastmcp(transport, to, folder, "--connected")


def install_fastmcp() -> None:
    """Make FastMCP's own environment, once; `fastmcp` skips when this did not work."""
    if FASTMCP_VENV.exists():
        return
    wanted = ["fastmcp>=4,<5", "uvloop", "httptools"]
    for command in (
        [sys.executable, "-m", "venv", str(FASTMCP_VENV)],
        [str(FASTMCP_VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", *wanted],
    ):
        subprocess.run(command, check=False, capture_output=True, timeout=300)


def remit(transport: Transport, to: list[str], folder: Path) -> Launch:
    """Everything on: durable records, policy, two budgets, a registered undo for every call."""
    write_remit_files(to, folder)
    config = ["--config", str(folder / "remit.yaml")]
    if transport == "stdio":
        return Launch(command=[*REMIT, "serve", "--stdio", *config], prefix="down.")
    identity = ["--agent", "agent:load", "--user", "user:owner", "--tenant", "bench"]
    create = [*REMIT, "agents", "key", "create", *identity, *config, "--json"]
    created = subprocess.run(create, check=False, capture_output=True, text=True, timeout=30)
    if created.returncode:
        raise Skip(f"remit makes no key: {created.stderr.strip().rpartition(chr(10))[2]}")
    return Launch(
        command=[*REMIT, "serve", "--http", "127.0.0.1:0", *config, "--json"],
        headers={"Authorization": f"Bearer {json.loads(created.stdout)['key']}"},
        prefix="down.",
    )


REMIT = [sys.executable, "-m", "remit"]


def write_remit_files(to: list[str], folder: Path) -> None:
    call = {
        "effect": "reversible",
        "undo": {"call": "down.take_back", "args": {"text": "args.text"}, "within": "1h"},
        "price": {"usd_micro": 10},
    }
    config = {
        "version": 1,
        "policy": {"files": ["policy.csv"]},
        "identity": {"stdio": {"tenant": "bench", "agent": "agent:load", "user": "user:owner"}},
        "sources": {"down": {"kind": "mcp", **({"command": to} if len(to) > 1 else {"url": to[0]})}},
        "tools": {"down.echo": call, "down.report": call},
        "budgets": [
            {"scope": "tenant", "unit": "usd_micro", "window": "month", "limit": 10**15},
            {"scope": "agent", "unit": "usd_micro", "window": "day", "limit": 10**15},
        ],
        # 128 clients are one agent here; what a wait in the queue costs is not the question.
        "limits": {"per_agent": 256, "per_source": 256},
    }
    (folder / "remit.yaml").write_text(json.dumps(config, indent=2))
    (folder / "policy.csv").write_text(
        "g, agent:load, role:bench, bench\n"
        "g, user:owner, role:bench, bench\n"
        "g3, agent:load, user:owner, bench\n"
        "p, role:bench, bench, down.*, execute, r.ctx.effect == 'reversible', allow\n"
        "p, role:bench, bench, down.*, undo, 1 == 1, allow\n"
        "p, agent:*, *, *, execute, r.ctx.effect == 'irreversible', deny\n"
    )


TARGETS: Mapping[str, Callable[[Transport, list[str], Path], Launch]] = {
    "canned": canned,
    "direct": direct,
    "bare": bare,
    "remit": remit,
    "fastmcp-connected": fastmcp_connected,
    "fastmcp": fastmcp,
}
