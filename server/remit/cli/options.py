"""What most commands share: which configuration, and whether a person or a program reads the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

config_option = click.option(
    "--config",
    "-c",
    "config_path",
    type=click.Path(path_type=Path),
    envvar="REMIT_CONFIG",
    default="remit.yaml",
    show_default=True,
    help="The configuration file (or REMIT_CONFIG).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def print_json(value: Any) -> None:
    """One line of JSON on stdout."""
    click.echo(json.dumps(value))
