"""`remit install` and `remit uninstall`: the entry in a client's file that starts Remit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from remit.cli.options import config_option, json_option, print_json

if TYPE_CHECKING:
    from remit.install import Change, Registration

_CLIENTS = ("claude-code", "claude-desktop", "cursor", "vscode")
_client = click.argument("client", type=click.Choice(_CLIENTS))
_name = click.option("--name", default="remit", show_default=True, help="What the client calls it.")
_project = click.option("--project", is_flag=True, help="In this folder's project only.")


@click.command()
@config_option
@json_option
@_name
@_project
@click.option("--print", "only_print", is_flag=True, help="Print the entry, and write nothing.")
@_client
def install(
    config_path: Path, as_json: bool, name: str, project: bool, only_print: bool, client: str
) -> None:
    """Register Remit with a client that starts it over stdio.

    One entry of the client's file is written; the rest stays, and the file as it was is kept beside it.
    """
    from remit.config_file import load
    from remit.install import install as write

    load(config_path)
    wanted = _registration(client, config_path, name, project=project)
    if only_print and as_json:
        print_json({"file": str(wanted.file), "entry": json.loads(wanted.as_json())})
    elif only_print:
        click.echo(f"{wanted.file}:\n{wanted.as_json()}")
        if command := wanted.as_command():
            click.echo(f"\nor, for all projects: {command}")
    else:
        _tell(write(wanted), as_json=as_json)


@click.command()
@config_option
@json_option
@_name
@_project
@_client
def uninstall(config_path: Path, as_json: bool, name: str, project: bool, client: str) -> None:
    """Take the entry out of the client's file again."""
    from remit.install import uninstall as remove

    _tell(remove(_registration(client, config_path, name, project=project)), as_json=as_json)


def _registration(client: str, config_path: Path, name: str, *, project: bool) -> Registration:
    from remit.install import Client, launcher, registration, this_machine

    return registration(
        Client(client), config_path, this_machine(), start=launcher(), project=project, name=name
    )


def _tell(change: Change, *, as_json: bool) -> None:
    if as_json:
        backup = str(change.backup) if change.backup else None
        print_json({"change": change.kind, "file": str(change.file), "backup": backup})
        return
    click.echo(f"{change.kind}: {change.file}")
    if change.backup:
        click.echo(f"before: {change.backup}")
