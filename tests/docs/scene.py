"""Where a page is run: a copy of Acme's folder, a shell in it, and an agent that Remit serves there.

A plain `remit` command is run in this process, through its own entry point, since a page has many and each
would load everything again; any other command goes to bash. The agent is a client over stdio that speaks
the stateless revision by hand: what a page shows is what goes over the wire. Whoever enters `a_scene` gets a
fresh folder and an empty home, and nothing runs after it is left.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.docs.pages import ROOT

from remit.cli import main

ACME = ROOT / "configs" / "acme"
#: How long one command may take; each of them ends by itself, and this machine may be busy.
_COMMAND_S = 60
_META = "io.modelcontextprotocol/"
_CLIENT = {
    f"{_META}protocolVersion": "2026-07-28",
    f"{_META}clientCapabilities": {},
    f"{_META}clientInfo": {"name": "a-page", "version": "1"},
}


def acme() -> dict[str, Any]:
    """Acme's configuration without the server that is somebody else's: pages would only wait for it."""
    config: dict[str, Any] = yaml.safe_load((ACME / "remit.yaml").read_text("utf-8"))
    del config["sources"]["time"], config["tools"]["time.*"]
    return config


class Agent:
    """One client of `remit serve --stdio`, for as long as the process lives."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._server = subprocess.Popen(
            ["remit", "serve", "--stdio"],
            cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            executable=str(Path(sys.executable).with_name("remit")),
        )  # fmt: skip
        self._asked = 0

    def call(self, params: dict[str, Any]) -> dict[str, Any]:
        """The answer to `tools/call`: its result, or its error."""
        assert self._server.stdin
        assert self._server.stdout
        self._asked += 1
        params = {**params, "_meta": {**_CLIENT, **params.get("_meta", {})}}
        asked = {"jsonrpc": "2.0", "id": self._asked, "method": "tools/call", "params": params}
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        for line in self._server.stdout:
            answer = json.loads(line)
            if answer.get("id") == self._asked:
                return answer["result"] if "result" in answer else {"error": answer["error"]}
        raise AssertionError("Remit ended while it was asked")

    def leave(self) -> None:
        assert self._server.stdin
        self._server.stdin.close()
        try:
            self._server.wait(timeout=20)
        finally:
            self._server.kill()
            self._server.wait()
            assert self._server.stdout
            self._server.stdout.close()


class Scene:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "acme"
        home = folder / "home"
        home.mkdir()
        ignored = shutil.ignore_patterns("*.db*", "__pycache__")
        shutil.copytree(ACME, self.folder, ignore=ignored)
        (self.folder / "remit.yaml").write_text(json.dumps(acme()), "utf-8")
        tools = str(Path(sys.executable).parent)
        self._environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(home),
            "LANG": "C.UTF-8",
        }
        #: How a page calls what is here.
        self._names = {str(self.folder): "/home/you/acme", str(home): "/home/you", tools: "/opt/remit/bin"}
        self._agent: Agent | None = None

    @property
    def database(self) -> Path:
        return self.folder / "remit.db"

    def write(self, name: str, text: str, *, more: bool = False) -> None:
        """Write a file, or more of it; what the agent's Remit has read is old then, so it is left."""
        self.leave()
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((path.read_text("utf-8") + "\n" if more else "") + text, "utf-8")

    def run(self, command: str) -> tuple[int, str]:
        """How the command ended, and what it said."""
        plain = command.startswith("remit ") and not re.search(r"[|&;<>$`\n]", command)
        code, said = self._here(shlex.split(command)[1:]) if plain else self._in_bash(command)
        for real, shown in self._names.items():
            said = said.replace(real, shown)
        return code, said

    def _here(self, words: list[str]) -> tuple[int, str]:
        said, code = io.StringIO(), object()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            for name in [name for name in os.environ if name.startswith(("REMIT_", "XDG_"))]:
                patch.delenv(name)
            for name, value in self._environment.items():
                patch.setenv(name, value)
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                try:
                    main(words)
                except SystemExit as end:
                    code = end.code
        assert isinstance(code, int)
        return code, said.getvalue()

    def _in_bash(self, command: str) -> tuple[int, str]:
        ran = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=self._environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_COMMAND_S, check=False,
        )  # fmt: skip
        return ran.returncode, ran.stdout

    def call(self, params: dict[str, Any]) -> dict[str, Any]:
        if self._agent is None:
            self._agent = Agent(self.folder, self._environment)
        return self._agent.call(params)

    def leave(self) -> None:
        """End the agent's session, as when a client is closed."""
        if self._agent is not None:
            self._agent.leave()
            self._agent = None


@contextmanager
def a_scene(folder: Path) -> Generator[Scene]:
    scene = Scene(folder)
    try:
        yield scene
    finally:
        scene.leave()
