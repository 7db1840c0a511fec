"""Registering Remit with the clients that agents live in, and taking the registration back.

Each client keeps a JSON file with the servers that it starts. One entry is added or replaced there;
everything else in the file stays as it is. The client starts `remit serve --stdio` itself, so no
credential is written. What to write is computed first, by functions that touch nothing; `install` and
`uninstall` are the only ones that write.

Sources: the clients' own documentation (Claude Code "MCP", Claude Desktop "Local MCP servers", Cursor
"MCP", VS Code "MCP configuration reference").
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from remit.errors import RemitError
from remit.files import put_whole

Entry: TypeAlias = Mapping[str, Any]


class Client(StrEnum):
    CLAUDE_CODE = "claude-code"
    CLAUDE_DESKTOP = "claude-desktop"
    CURSOR = "cursor"
    VSCODE = "vscode"


class InstallError(RemitError):
    """The client's file is not touched: it cannot be read as what the client documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where a client's files are looked for."""

    home: Path
    #: The folder of the project, for clients that keep a file there.
    folder: Path
    #: As `sys.platform`: `darwin`, `win32`, anything else is taken for Linux.
    platform: str
    environ: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """One entry of one client's file."""

    client: Client
    file: Path
    #: The mapping of servers in the file: `servers` for VS Code, `mcpServers` for the others.
    section: str
    name: str
    entry: Entry

    def as_json(self) -> str:
        """What the file would hold if it held nothing else; also what to paste by hand."""
        return json.dumps({self.section: {self.name: self.entry}}, indent=2, ensure_ascii=False)

    def as_command(self) -> str | None:
        """The client's own command that registers Remit for all projects, where it has one."""
        if self.client is not Client.CLAUDE_CODE:
            return None
        start = [self.entry["command"], *self.entry["args"]]
        return shlex.join(["claude", "mcp", "add", "--scope", "user", self.name, "--", *start])


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of a client's file."""

    kind: Literal["added", "replaced", "removed", "unchanged"]
    file: Path
    #: The file as it was before.
    backup: Path | None = None


def this_machine() -> Machine:
    return Machine(home=Path.home(), folder=Path.cwd(), platform=sys.platform, environ=os.environ)


def launcher() -> tuple[str, ...]:
    """The words that start this very Remit from anywhere: clients do not share our PATH."""
    # Not resolved: a virtual environment's interpreter is a link, and only the link knows its packages.
    beside = Path(sys.executable).with_name("remit.exe" if sys.platform == "win32" else "remit")
    return (str(beside),) if beside.is_file() else (sys.executable, "-m", "remit")


def registration(
    client: Client,
    config: Path,
    machine: Machine,
    *,
    start: tuple[str, ...],
    project: bool = False,
    name: str = "remit",
) -> Registration:
    """The entry with which `client` starts Remit on `config`; `start` comes from `launcher`.

    With `project` the entry goes into the project's folder, for the clients that look there. Claude Code
    always looks there: its file for all projects is its own to write, through `Registration.as_command`.
    Raises InstallError when the client has no file for a project.
    """
    entry: dict[str, Any] = {
        "command": start[0],
        "args": [*start[1:], "serve", "--stdio", "--config", str(config.absolute())],
    }
    if client is not Client.CLAUDE_DESKTOP:
        entry = {"type": "stdio", **entry}
    return Registration(
        client=client,
        file=_file(client, machine, project),
        section=_section(client),
        name=name,
        entry=entry,
    )


def remote_entry(client: Client, url: str, key: str) -> Entry | None:
    """The entry for a Remit that already runs at `url`; `key` is an agent's, and is in the entry.

    To print, not to write: the key would stay in the file. None for Claude Desktop, whose file knows
    only servers that it starts itself.
    """
    entry = {"url": url, "headers": {"Authorization": f"Bearer {key}"}}
    match client:
        case Client.CLAUDE_DESKTOP:
            return None
        case Client.CURSOR:
            return entry
        case Client.CLAUDE_CODE | Client.VSCODE:
            return {"type": "http", **entry}


def install(wanted: Registration) -> Change:
    """Put the entry into the client's file. Doing it again changes nothing.

    Raises InstallError when the file is there and is not plain JSON of the client's form.
    """
    before = _read(wanted)
    servers = _servers(before, wanted)
    present = servers.get(wanted.name)
    # What people added to the entry stays, such as `env`; how the server is reached is ours.
    kept: Entry = cast(Entry, present) if isinstance(present, dict) else {}
    entry = {key: value for key, value in kept.items() if key not in ("type", "url", "headers")}
    entry |= wanted.entry
    if entry == present:
        return Change(kind="unchanged", file=wanted.file)
    backup = _write(wanted.file, {**before, wanted.section: {**servers, wanted.name: entry}})
    return Change(kind="added" if present is None else "replaced", file=wanted.file, backup=backup)


def uninstall(wanted: Registration) -> Change:
    """Take the entry out of the client's file. Raises InstallError as `install` does."""
    before = _read(wanted)
    servers = _servers(before, wanted)
    if wanted.name not in servers:
        return Change(kind="unchanged", file=wanted.file)
    rest = {name: entry for name, entry in servers.items() if name != wanted.name}
    backup = _write(wanted.file, {**before, wanted.section: rest})
    return Change(kind="removed", file=wanted.file, backup=backup)


def _section(client: Client) -> str:
    return "servers" if client is Client.VSCODE else "mcpServers"


def _file(client: Client, machine: Machine, project: bool) -> Path:
    match client:
        case Client.CLAUDE_CODE:
            return machine.folder / ".mcp.json"
        case Client.CURSOR:
            return (machine.folder if project else machine.home) / ".cursor" / "mcp.json"
        case Client.VSCODE if project:
            return machine.folder / ".vscode" / "mcp.json"
        case Client.VSCODE:
            return _settings_folder(machine) / "Code" / "User" / "mcp.json"
        case Client.CLAUDE_DESKTOP if project:
            raise InstallError("Claude Desktop has one file for everything: leave --project out")
        case Client.CLAUDE_DESKTOP:
            return _settings_folder(machine) / "Claude" / "claude_desktop_config.json"


def _settings_folder(machine: Machine) -> Path:
    """Where programs of this system keep a user's settings."""
    match machine.platform:
        case "darwin":
            return machine.home / "Library" / "Application Support"
        case "win32":
            return Path(machine.environ.get("APPDATA") or machine.home / "AppData" / "Roaming")
        case _:
            return Path(machine.environ.get("XDG_CONFIG_HOME") or machine.home / ".config")


def _read(wanted: Registration) -> dict[str, Any]:
    try:
        text = wanted.file.read_text("utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise _by_hand(wanted, f"it cannot be read ({error.__class__.__name__})") from None
    if not text.strip():
        return {}
    try:
        settings = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise _by_hand(
            wanted, f"line {error.lineno} is not plain JSON (a comment, or a comma too many?)"
        ) from None
    except RecursionError:
        raise _by_hand(wanted, "it is nested too deep") from None
    except ValueError as error:
        raise _by_hand(wanted, str(error)) from None
    if not isinstance(settings, dict):
        raise _by_hand(wanted, "it holds no JSON object")
    return cast(dict[str, Any], settings)


def _servers(settings: Mapping[str, Any], wanted: Registration) -> Mapping[str, Any]:
    servers = settings.get(wanted.section, {})
    if not isinstance(servers, dict):
        raise _by_hand(wanted, f"its {wanted.section!r} is no JSON object")
    return cast(Mapping[str, Any], servers)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Writing the file back would silently drop all but the last.
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return entries


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")


def _by_hand(wanted: Registration, reason: str) -> InstallError:
    return InstallError(
        f"{wanted.file} was left as it is: {reason}. Mend it and try again, or add this yourself:\n"
        f"{wanted.as_json()}"
    )


def _write(file: Path, settings: Mapping[str, Any]) -> Path | None:
    """Write the settings, in the file's own indentation; what it held before is kept beside it."""
    # Through a link, so that people who keep their settings elsewhere find the change there.
    target = file.resolve()
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    indent: str | int = 2
    backup = None
    # For the owner's eyes only, both of them: other entries may hold keys.
    if target.exists():
        before = target.read_bytes()
        if found := re.search(rb"^([ \t]+)\S", before, re.MULTILINE):
            indent = found[1].decode()
        backup = target.with_name(f"{target.name}.bak")
        put_whole(backup, before)
    text = json.dumps(settings, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    # Half a surrogate pair has no UTF-8 form; as an escape it means the same in JSON.
    put_whole(target, text.encode("utf-8", "backslashreplace"))
    return backup
