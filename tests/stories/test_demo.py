"""The demonstration, as a stranger runs it: it must be true from the first line to the exit code."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from remit.cli.demo_story import STEPS
from remit.database import reading

ACME = Path(__file__).parents[2] / "configs" / "acme"
REMIT = (sys.executable, "-m", "remit")


def demo(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*REMIT, "demo", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def a_copy(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", "*.db*")
    return Path(shutil.copytree(ACME, folder / "example", ignore=ignored))


def select(database: Path, sql: str) -> list[tuple[object, ...]]:
    with reading(database) as db:
        return list(db.tuples(sql))


def test_every_step_of_the_demonstration_does_what_it_says(tmp_path: Path) -> None:
    place = tmp_path / "demo"
    ran = demo("--once", "--dir", place)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""

    told = " ".join(ran.stdout.split())
    for number, (title, _) in enumerate(STEPS, 1):
        assert f"{number} {title} " in told
    for line in (
        "acme ord-1001 was paid, is refunded",
        "Waiting for a person's approval",
        "Approved by user:sue.",
        "No rule allows this call with these arguments",
        "undone by acme.cancel_refund",
        "An operator has stopped this",
        "The budget for calls of this agent per minute cannot take this call",
        "are as they were written.",
        "verdict is 'execute', and its event says 'approve' 1 found.",
        f"✓ All {len(STEPS)} steps did what they say. Everything is in {place}.",
    ):
        assert line in told

    # Not only told: this is what Acme has, and what Remit recorded of it.
    orders = select(place / "acme.db", "SELECT refunded_minor FROM orders ORDER BY order_id")
    assert orders == [(0,), (40000,), (0,), (1000,), (0,)]
    effects = select(place / "remit.db", "SELECT state, kind FROM calls WHERE effect <> 'read' ORDER BY id")
    made, refused, undone = ("succeeded", "call"), ("denied", "call"), ("succeeded", "undo")
    one_by_one, a_run, the_end = [made, made, refused, undone], [made] * 3 + [undone] * 3, [refused, made]
    assert effects == one_by_one + a_run + the_end
    # Everything that was started has ended in order.
    assert select(place / "remit.db", "SELECT DISTINCT state FROM incarnations") == [("closed",)]


def test_a_step_that_does_not_do_what_it_says_fails_the_demonstration(tmp_path: Path) -> None:
    example = a_copy(tmp_path)
    with (example / "policy.csv").open("a", encoding="utf-8") as policy:
        policy.write("p, role:support, acme, acme.refund, execute, r.args.amount_minor == 8000, deny\n")

    ran = demo("--once", "--dir", tmp_path / "demo", "--example", example)

    assert ran.returncode == 1
    told = " ".join(ran.stdout.split())
    assert "✗ A refund of 80.00 is executed: Waiting for a person's approval" in told
    assert "3 A refund of 400.00" not in told
    assert ran.stderr == ""


def test_the_demonstration_overwrites_nobodys_files(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep this", "utf-8")

    ran = demo("--once", "--dir", tmp_path)

    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"remit: {tmp_path} is not empty: name a new folder with --dir\n"
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_after_the_story_it_serves_until_it_is_stopped(tmp_path: Path, how: signal.Signals) -> None:
    place = tmp_path / "demo"
    command = [*REMIT, "demo", "--dir", str(place)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = ""
            for line in process.stdout:
                told += line
                if line.startswith("VS Code"):
                    break
            process.send_signal(how)
            told += process.stdout.read()
            assert process.wait() == 0
        finally:
            process.kill()
    for client in ("Claude Code", "Claude Desktop", "Cursor", "VS Code"):
        assert f"\n{client} " in told
    assert told.count('"Authorization": "Bearer rk_') == 3
    assert f'"--config", "{place / "remit.yaml"}"' in told
    assert select(place / "remit.db", "SELECT DISTINCT state FROM incarnations") == [("closed",)]


def test_the_configuration_of_the_example_fits_its_servers_and_its_policy(tmp_path: Path) -> None:
    # In a copy, because Acme makes its database beside it.
    example = a_copy(tmp_path)
    # `python` in it is whichever the shell finds, as it is for people.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [*REMIT, "check", "--config", str(example / "remit.yaml")]
    ran = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "warning" not in ran.stdout
