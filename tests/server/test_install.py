"""Registering with clients: the right file, the right entry, and nothing else touched."""

import json
import shlex
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from remit import install as subject
from remit.install import Client, InstallError, Machine, Registration, install, registration, uninstall

START = ("/opt/remit/bin/remit",)
STDIO = {
    "command": "/opt/remit/bin/remit",
    "args": ["serve", "--stdio", "--config", "/etc/remit/remit.yaml"],
}


def a_machine(tmp_path: Path, platform: str = "linux", **environ: str) -> Machine:
    return Machine(home=tmp_path / "home", folder=tmp_path / "project", platform=platform, environ=environ)


def a_registration(client: Client, machine: Machine, **options: Any) -> Registration:
    return registration(client, Path("/etc/remit/remit.yaml"), machine, start=START, **options)


def held(file: Path) -> Any:
    return json.loads(file.read_text())


FILES = [
    (Client.CLAUDE_CODE, "linux", False, "project/.mcp.json"),
    (Client.CLAUDE_CODE, "darwin", True, "project/.mcp.json"),
    (Client.CLAUDE_DESKTOP, "linux", False, "home/.config/Claude/claude_desktop_config.json"),
    (
        Client.CLAUDE_DESKTOP,
        "darwin",
        False,
        "home/Library/Application Support/Claude/claude_desktop_config.json",
    ),
    (Client.CLAUDE_DESKTOP, "win32", False, "home/AppData/Roaming/Claude/claude_desktop_config.json"),
    (Client.CURSOR, "linux", False, "home/.cursor/mcp.json"),
    (Client.CURSOR, "win32", True, "project/.cursor/mcp.json"),
    (Client.VSCODE, "linux", False, "home/.config/Code/User/mcp.json"),
    (Client.VSCODE, "darwin", False, "home/Library/Application Support/Code/User/mcp.json"),
    (Client.VSCODE, "win32", False, "home/AppData/Roaming/Code/User/mcp.json"),
    (Client.VSCODE, "linux", True, "project/.vscode/mcp.json"),
]


@pytest.mark.parametrize(("client", "platform", "project", "file"), FILES)
def test_each_client_is_registered_in_the_file_that_it_reads(
    client: Client, platform: str, project: bool, file: str, tmp_path: Path
) -> None:
    assert a_registration(client, a_machine(tmp_path, platform), project=project).file == tmp_path / file


def test_the_systems_own_variables_say_where_settings_are(tmp_path: Path) -> None:
    windows = a_machine(tmp_path, "win32", APPDATA="/roaming")
    linux = a_machine(tmp_path, "linux", XDG_CONFIG_HOME="/settings")
    assert a_registration(Client.CLAUDE_DESKTOP, windows).file.parent == Path("/roaming/Claude")
    assert a_registration(Client.VSCODE, linux).file == Path("/settings/Code/User/mcp.json")


def test_claude_desktop_has_no_file_for_a_project(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="leave --project out"):
        a_registration(Client.CLAUDE_DESKTOP, a_machine(tmp_path), project=True)


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (Client.CLAUDE_CODE, {"mcpServers": {"remit": {"type": "stdio", **STDIO}}}),
        (Client.CLAUDE_DESKTOP, {"mcpServers": {"remit": STDIO}}),
        (Client.CURSOR, {"mcpServers": {"remit": {"type": "stdio", **STDIO}}}),
        (Client.VSCODE, {"servers": {"remit": {"type": "stdio", **STDIO}}}),
    ],
)
def test_a_new_file_holds_the_one_entry_and_is_private(client: Client, expected: Any, tmp_path: Path) -> None:
    wanted = a_registration(client, a_machine(tmp_path))
    change = install(wanted)
    assert (change.kind, change.file, change.backup) == ("added", wanted.file, None)
    assert held(wanted.file) == expected == json.loads(wanted.as_json())
    assert stat.S_IMODE(wanted.file.stat().st_mode) == 0o600
    assert [path.name for path in wanted.file.parent.iterdir()] == [wanted.file.name]


def test_a_relative_configuration_is_registered_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = registration(Client.CURSOR, Path("remit.yaml"), a_machine(tmp_path), start=START)
    assert wanted.entry["args"][-1] == str(tmp_path / "remit.yaml")


def test_claude_code_can_also_be_told_by_its_own_command(tmp_path: Path) -> None:
    machine = a_machine(tmp_path)
    spaced = registration(Client.CLAUDE_CODE, Path("/my files/remit.yaml"), machine, start=START)
    assert shlex.split(spaced.as_command() or "") == [
        "claude", "mcp", "add", "--scope", "user", "remit", "--",
        "/opt/remit/bin/remit", "serve", "--stdio", "--config", "/my files/remit.yaml",
    ]  # fmt: skip
    assert a_registration(Client.CURSOR, machine).as_command() is None


def a_file(wanted: Registration, text: str) -> None:
    wanted.file.parent.mkdir(parents=True, exist_ok=True)
    wanted.file.write_text(text, encoding="utf-8")


OTHERS = """\
{
    "theme": "dark",
    "mcpServers": {
        "files": {"command": "café", "n": 1.50}
    }
}
"""


def test_everything_else_in_the_file_stays_and_the_old_file_is_kept(tmp_path: Path) -> None:
    wanted = a_registration(Client.CLAUDE_DESKTOP, a_machine(tmp_path))
    a_file(wanted, OTHERS)
    change = install(wanted)
    assert change.kind == "added"
    assert held(wanted.file) == {
        "theme": "dark",
        "mcpServers": {"files": {"command": "café", "n": 1.5}, "remit": STDIO},
    }
    assert change.backup is not None
    assert change.backup.read_text(encoding="utf-8") == OTHERS
    assert stat.S_IMODE(change.backup.stat().st_mode) == 0o600
    # As people wrote it: four spaces, letters as letters.
    assert '\n    "theme": "dark",' in wanted.file.read_text(encoding="utf-8")
    assert "café" in wanted.file.read_text(encoding="utf-8")


def test_doing_it_again_changes_nothing(tmp_path: Path) -> None:
    wanted = a_registration(Client.VSCODE, a_machine(tmp_path))
    install(wanted)
    before = wanted.file.stat().st_mtime_ns, wanted.file.read_bytes()
    assert install(wanted).kind == "unchanged"
    assert (wanted.file.stat().st_mtime_ns, wanted.file.read_bytes()) == before


def test_an_older_entry_is_replaced_and_what_people_added_to_it_stays(tmp_path: Path) -> None:
    wanted = a_registration(Client.CURSOR, a_machine(tmp_path))
    old = {"url": "http://127.0.0.1:8420/mcp", "headers": {"a": "b"}, "env": {"REMIT_USER": "user:sam"}}
    a_file(wanted, json.dumps({"mcpServers": {"remit": old}}))
    assert install(wanted).kind == "replaced"
    assert held(wanted.file)["mcpServers"]["remit"] == {
        "type": "stdio",
        **STDIO,
        "env": {"REMIT_USER": "user:sam"},
    }


@pytest.mark.parametrize("text", ["", " \n", "\ufeff{}", '{"mcpServers": {}}'])
def test_an_empty_file_is_filled(text: str, tmp_path: Path) -> None:
    wanted = a_registration(Client.CLAUDE_DESKTOP, a_machine(tmp_path))
    a_file(wanted, text)
    assert install(wanted).kind == "added"
    assert held(wanted.file) == {"mcpServers": {"remit": STDIO}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{\n  // mine\n  "servers": {}\n}', "line 2 is not plain JSON (a comment, or a comma too many?)"),
        ('{"servers": {},}', "line 1 is not plain JSON (a comment, or a comma too many?)"),
        ("[]", "it holds no JSON object"),
        ('{"servers": []}', "its 'servers' is no JSON object"),
        ('{"servers": {}, "servers": {}}', "a key stands twice in one object"),
        ('{"servers": {}, "n": NaN}', "NaN is no JSON number"),
        ('{"servers": ' + "[" * 100_000, "it is nested too deep"),
    ],
)
def test_a_file_that_is_not_understood_is_left_alone_and_the_entry_is_shown(
    text: str, reason: str, tmp_path: Path
) -> None:
    wanted = a_registration(Client.VSCODE, a_machine(tmp_path))
    a_file(wanted, text)
    for change in (install, uninstall):
        with pytest.raises(InstallError) as caught:
            change(wanted)
        first, _, rest = str(caught.value).partition("\n")
        assert first.startswith(f"{wanted.file} was left as it is: {reason}")
        assert json.loads(rest) == {"servers": {"remit": {"type": "stdio", **STDIO}}}
    assert wanted.file.read_text() == text
    assert len(list(wanted.file.parent.iterdir())) == 1


def test_a_file_that_is_no_text_is_left_alone(tmp_path: Path) -> None:
    wanted = a_registration(Client.CURSOR, a_machine(tmp_path))
    a_file(wanted, "")
    wanted.file.write_bytes(b"\xff\xfe{\x00}\x00")
    with pytest.raises(InstallError, match="it cannot be read"):
        install(wanted)
    assert wanted.file.read_bytes() == b"\xff\xfe{\x00}\x00"


def test_half_a_surrogate_pair_in_another_entry_survives(tmp_path: Path) -> None:
    wanted = a_registration(Client.CURSOR, a_machine(tmp_path))
    a_file(wanted, r'{"mcpServers": {"odd": {"command": "\ud800"}}}')
    install(wanted)
    assert held(wanted.file)["mcpServers"]["odd"] == {"command": "\ud800"}


def test_settings_behind_a_link_are_changed_where_they_are(tmp_path: Path) -> None:
    wanted = a_registration(Client.CURSOR, a_machine(tmp_path))
    real = tmp_path / "dotfiles" / "mcp.json"
    real.parent.mkdir()
    real.write_text("{}")
    wanted.file.parent.mkdir(parents=True)
    wanted.file.symlink_to(real)
    install(wanted)
    assert wanted.file.is_symlink()
    assert "remit" in held(real)["mcpServers"]


def test_an_entry_is_taken_out_and_the_others_stay(tmp_path: Path) -> None:
    wanted = a_registration(Client.CLAUDE_DESKTOP, a_machine(tmp_path))
    a_file(wanted, OTHERS)
    install(wanted)
    assert uninstall(wanted).kind == "removed"
    assert held(wanted.file) == json.loads(OTHERS)
    assert uninstall(wanted).kind == "unchanged"


def test_taking_out_what_was_never_there_makes_no_file(tmp_path: Path) -> None:
    wanted = a_registration(Client.VSCODE, a_machine(tmp_path))
    assert uninstall(wanted).kind == "unchanged"
    assert not wanted.file.parent.exists()


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = a_registration(Client.CLAUDE_DESKTOP, a_machine(tmp_path))
    a_file(wanted, OTHERS)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(subject.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        install(wanted)
    assert wanted.file.read_text(encoding="utf-8") == OTHERS
    assert [path.name for path in wanted.file.parent.iterdir()] == [wanted.file.name]


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (Client.CLAUDE_CODE, {"type": "http"}),
        (Client.VSCODE, {"type": "http"}),
        (Client.CURSOR, {}),
    ],
)
def test_a_running_remit_is_reached_by_url_and_key(client: Client, expected: Any) -> None:
    assert subject.remote_entry(client, "http://127.0.0.1:8420/mcp", "the-key") == {
        **expected,
        "url": "http://127.0.0.1:8420/mcp",
        "headers": {"Authorization": "Bearer the-key"},
    }
    assert subject.remote_entry(Client.CLAUDE_DESKTOP, "http://127.0.0.1:8420/mcp", "the-key") is None


def test_the_client_starts_the_remit_that_registered_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert subject.launcher() == (str(tmp_path / "python"), "-m", "remit")
    (tmp_path / "remit").touch()
    assert subject.launcher() == (str(tmp_path / "remit"),)
