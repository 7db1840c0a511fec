"""`remit demo`: Acme's back office behind Remit in a folder of its own, and a story played in it.

Owns the folder, the Remit that serves in it as a child process, and their end. What is played is
`demo_story.py`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import click
from anyio.abc import Process
from rich.console import Console
from rich.text import Text

from remit.cli.demo_story import AGENT, STEPS, USER, Played, Stage, play
from remit.cli.options import json_option, print_json
from remit.cli.output import console
from remit.errors import RemitError
from remit.install import Client, launcher, registration, remote_entry, this_machine

#: Beside the code in a checkout; the demonstration is not part of what is installed from a wheel.
_ACME = Path(__file__).parents[3] / "configs" / "acme"
_REMIT = (sys.executable, "-m", "remit")
_CLIENTS = {
    Client.CLAUDE_CODE: "Claude Code",
    Client.CLAUDE_DESKTOP: "Claude Desktop",
    Client.CURSOR: "Cursor",
    Client.VSCODE: "VS Code",
}
_START_S = 60
_STOP_S = 10
_WIDTH_MAX = 116


class DemoError(RemitError):
    """The demonstration cannot start here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A Remit that serves, and the agent's key for it."""

    url: str
    key: str
    process: Process


@click.command()
@json_option
@click.option("--once", is_flag=True, help="End after the story, with 0 only if every step did what it says.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Play in this folder, new or empty, instead of a temporary one. It is kept.",
)
@click.option(
    "--example",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=_ACME,
    show_default="configs/acme of the checkout",
    help="The configuration to play on.",
)
def demo(as_json: bool, once: bool, folder: Path | None, example: Path) -> int:
    """Watch an agent being governed, on an example that runs here.

    It plays refunds, an approval, an undo, a budget, the kill switch and the audit.

    Everything is real and runs here: Remit over HTTP, two MCP servers behind it, an agent with a key. Then
    Remit goes on serving, for agents of your own, until Ctrl-C.
    """
    place = _prepared(folder, example)
    return anyio.run(_demonstrate, place, once, as_json)


def _prepared(folder: Path | None, example: Path) -> Path:
    """A folder with a copy of the example that runs with this very Python."""
    if importlib.util.find_spec("mcp_server_time") is None:
        raise DemoError(
            "mcp-server-time is not installed: `make venv` installs it, or pip install 'remit[demo]'"
        )
    try:
        config = (example / "remit.yaml").read_text("utf-8")
    except OSError as error:
        raise DemoError(
            f"{error.filename}: {_why(error)}; run the demonstration in a checkout of Remit, or name the"
            " files with --example"
        ) from None
    try:
        place = folder or Path(tempfile.mkdtemp(prefix="remit-demo-"))
        if place.is_dir() and any(place.iterdir()):
            raise DemoError(f"{place} is not empty: name a new folder with --dir")
        shutil.copytree(
            example, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.db*")
        )
        # Clients that start this Remit later share neither our PATH nor our virtual environment.
        python = f"command: [{json.dumps(sys.executable)},"
        (place / "remit.yaml").write_text(config.replace("command: [python,", python), "utf-8")
    except shutil.Error as error:  # of some files of the example, not of all
        file, _, why = error.args[0][0]
        raise DemoError(f"{file} cannot be copied: {why}") from None
    except OSError as error:
        raise DemoError(
            f"{error.filename or 'a temporary folder'}: {_why(error)}; name another folder with --dir"
        ) from None
    return place.absolute()


def _why(error: OSError) -> str:
    return (error.strerror or "it cannot be used").lower()


async def _demonstrate(place: Path, once: bool, as_json: bool) -> int:
    page = console()
    page.quiet = as_json
    page.width = min(page.width, _WIDTH_MAX)
    environ = {**os.environ, "REMIT_CONFIG": str(place / "remit.yaml")}
    code = 130
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_on_signal, tasks.cancel_scope)
        page.print(Text.assemble(("Remit", "bold"), " between an agent and Acme's back office"))
        async with _serving(place, environ, page) as server:
            played = await _story(place, server, environ, page)
            problem = played[-1].problem
            code = 1 if problem else 0
            if as_json:
                print_json({"ok": not problem, "folder": str(place), "url": server.url, "steps": played})
            _tell_end(played, place, page)
            if not once and not problem:
                _tell_how_to_register(server, place, page)
                await server.process.wait()
                raise DemoError(f"Remit ended by itself: {_log(place)}")
        tasks.cancel_scope.cancel()
    return code


async def _cancel_on_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


@asynccontextmanager
async def _serving(place: Path, environ: Mapping[str, str], page: Console) -> AsyncGenerator[Server]:
    """Remit as a child process that serves HTTP for as long as the context lasts."""
    with page.status("Making a key for the agent ..."):
        words = ("agents", "key", "create", "--agent", AGENT, "--user", USER, "--days", "1", "--json")
        ran = await anyio.run_process([*_REMIT, *words], env=environ, cwd=place, check=False)
        if ran.returncode:
            raise DemoError(f"no key could be made: {ran.stderr.decode(errors='replace').strip()}")
        key = json.loads(ran.stdout)["key"]
    with (place / "serve.log").open("wb") as log:
        process = await anyio.open_process(
            [*_REMIT, "serve", "--http", "127.0.0.1:0", "--json"],
            stdin=subprocess.DEVNULL,
            stderr=log,
            env=environ,
            cwd=place,
        )
        try:
            with page.status("Starting Remit and the two servers behind it ..."):
                url = await _announced(process, place)
            yield Server(url=url, key=key, process=process)
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)


async def _announced(process: Process, place: Path) -> str:
    """The address, as soon as the server prints it."""
    said = b""
    assert process.stdout is not None  # noqa: S101 - it was opened with a pipe
    try:
        with anyio.fail_after(_START_S):
            while b"\n" not in said:
                said += await process.stdout.receive()
    except (anyio.EndOfStream, TimeoutError):
        raise DemoError(f"Remit did not start: {_log(place)}") from None
    return json.loads(said)["url"]


def _log(place: Path) -> str:
    """What the server had to say, which is nothing while all is well."""
    return (place / "serve.log").read_text("utf-8", "replace").strip() or "it does not say why"


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
    with anyio.move_on_after(_STOP_S):
        await process.wait()
    if process.returncode is None:
        process.kill()
    await process.aclose()


async def _story(place: Path, server: Server, environ: Mapping[str, str], page: Console) -> list[Played]:
    with page.status("Connecting the agent ..."):
        import httpx2
        import mcp
        from mcp.client.streamable_http import streamable_http_client
    played: list[Played] = []
    http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {server.key}"}, timeout=30)
    try:
        async with (
            http,
            mcp.Client(streamable_http_client(server.url, http_client=http), cache=None) as agent,
        ):
            await play(Stage(agent, place, environ, page), page, played)
    except* httpx2.HTTPError:
        lost = f"Remit answers no more: {_log(place)}"
        played.append(Played(step=STEPS[len(played)][0], ok=False, problem=lost))
    return played


def _tell_end(played: Sequence[Played], place: Path, page: Console) -> None:
    if problem := played[-1].problem:
        page.print(Text(f"\n✗ {played[-1].step}: {problem}", style="bold red"))
    else:
        page.print(Text(f"\n✓ All {len(played)} steps did what they say.", style="bold green"))
    command = shlex.join(launcher())
    page.print(Text(f"  Everything is in {place}. Look around, for example with", style="dim"))
    page.print(Text(f"  {command} calls list --config {place / 'remit.yaml'}", style="dim"))


def _tell_how_to_register(server: Server, place: Path, page: Console) -> None:
    """For each client how it reaches this Remit; one that cannot reach it is told to start its own."""
    page.print(Text(f"\nRemit serves {server.url} until Ctrl-C. To let agents of your own in:", style="bold"))
    for client, name in _CLIENTS.items():
        wanted = registration(client, place / "remit.yaml", this_machine(), start=launcher())
        entry = remote_entry(client, server.url, server.key)
        where = str(wanted.file) + ("" if entry else "  (starts a Remit of its own on the same database)")
        text = json.dumps({wanted.section: {wanted.name: entry or wanted.entry}})
        page.print(Text.assemble((f"\n{name:<16}", "cyan"), where))
        page.print(Text(text), soft_wrap=True)
