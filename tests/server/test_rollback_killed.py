"""`remit rollback`, killed in the middle: made again it goes on, and no call is taken back twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from tests.server.acme import REPOSITORY, Terminal, serving
from tests.server.builders import until

from remit.calls import new_call
from remit.identity import Principal
from remit.model import Done
from remit.pipeline import govern

# It starts processes and waits for them.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
NAMES = [f"thing-{number:02}" for number in range(12)]
#: How many are taken back before it is killed.
BEFORE = 4
CONFIG = """\
version: 1
store: {{path: remit.db}}
policy: {{files: [policy.csv]}}
identity: {{cli: {{tenant: acme, user: user:sue}}}}
sources:
  held: {{kind: mcp, command: [{python}, {server}, {folder}, {how}]}}
tools:
  held.put:
    effect: reversible
    resource: args.name
    undo: {{call: held.drop, args: {{name: args.name}}}}
  held.drop: {{effect: irreversible}}
"""
POLICY = """\
g, agent:bot, role:all, acme
g, user:sue, role:all, acme
g3, agent:bot, user:sue, acme
p, role:all, acme, held.*, execute, 1 == 1, allow
p, role:all, acme, held.put, undo, 1 == 1, allow
"""


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def is_alive(pid: str) -> bool:
    try:
        # What is dead and not yet waited for is a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def put_all(config: Path) -> list[str]:
    principal = Principal(tenant="acme", agent="agent:bot", user="user:sue", auth="api_key")
    ids: list[str] = []
    async with serving(config) as on:
        for name in NAMES:
            call = new_call(
                tool=on.catalog.tools["held.put"],
                arguments={"name": name},
                principal=principal,
                run="run-1",
                secret=on.secret,
                at_us=on.clock(),
            )
            assert isinstance(await govern(call, on), Done)
            ids.append(call.id)
    return ids


def killed_in_the_middle(config: Path, folder: Path) -> None:
    """A rollback that is killed while an undo is under way, and nothing of it lives any more."""
    (folder / "allowed").write_text(str(BEFORE))
    command = [sys.executable, "-m", "remit", "rollback", "run-1", "--yes", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            anyio.run(until_waiting, folder, process)
        finally:
            process.send_signal(signal.SIGKILL)
    anyio.run(until, lambda: not any(map(is_alive, lines(folder / "servers"))))


async def until_waiting(folder: Path, process: subprocess.Popen[bytes]) -> None:
    with anyio.fail_after(120):
        while not lines(folder / "waits"):
            assert process.poll() is None, "it ended, and was not held"
            await anyio.sleep(0.01)


@pytest.mark.parametrize("how", ["early", "late"])
def test_a_rollback_that_was_killed_goes_on_and_takes_nothing_back_twice(tmp_path: Path, how: str) -> None:
    (tmp_path / "things").mkdir()
    (tmp_path / "policy.csv").write_text(POLICY)
    config = tmp_path / "remit.yaml"
    server = REPOSITORY / "tests/fixtures/held_server.py"
    config.write_text(CONFIG.format(python=sys.executable, server=server, folder=tmp_path, how=how))
    remit, ids = Terminal(config), anyio.run(put_all, config)

    killed_in_the_middle(config, tmp_path)
    newest_first = NAMES[::-1]
    effects = BEFORE + (how == "late")
    assert lines(tmp_path / "drops") == newest_first[:effects]

    # Made again: all but the one that was under way, of which nobody knows.
    (tmp_path / "allowed").write_text("1000")
    again = remit("rollback", "run-1", "--yes", "--json")
    assert again.code == 1
    steps = again.json["steps"]
    assert [step["call_id"] for step in steps] == ids[::-1]
    assert [step["part"] for step in steps] == ["done"] * BEFORE + ["doubt"] + ["done"] * (11 - BEFORE)
    (open_undo,) = remit.json("doubt", "list")
    assert open_undo["id"] == steps[BEFORE]["by_call"]
    left = [] if how == "late" else [newest_first[BEFORE]]
    assert [path.name for path in (tmp_path / "things").iterdir()] == left

    # Somebody looks, and says; then the rest goes.
    words = ["--happened"] if how == "late" else ["--did-not-happen", "--force"]
    assert remit("doubt", "resolve", open_undo["id"], *words, "--reason", "looked").code == 0
    at_last = remit("rollback", "run-1", "--yes", "--json")
    assert (at_last.code, {step["part"] for step in at_last.json["steps"]}) == (0, {"done"})
    assert sorted(lines(tmp_path / "drops")) == NAMES
    assert list((tmp_path / "things").iterdir()) == []
    assert remit("audit", "verify").code == 0
