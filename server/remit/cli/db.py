"""`remit db`: the audit database as a file, apart from what is in it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import click

from remit.cli.options import config_option, json_option, print_json


@click.group()
def db() -> None:
    """The audit database as a file."""


@db.command()
@config_option
@json_option
def check(config_path: Path, as_json: bool) -> int:
    """Check pages, references, schema and file rights. Exits with 1 when something is wrong.

    Whether the records are what was written is told by `remit audit verify`.
    """
    from remit.cli.output import report
    from remit.config_file import load
    from remit.records import open_records
    from remit.schema import HEAD, upgrade

    path = load(config_path).config.store.path
    with open_records(path) as found:
        findings = list(found.damage())
        present = found.schema()
    with TemporaryDirectory() as folder:
        fresh = Path(folder) / "fresh.db"
        upgrade(fresh)
        with open_records(fresh) as found:
            wanted = found.schema()
    for name, statement in wanted.items():
        if name not in present:
            findings.append(f"{name} is missing")
        elif present[name] != statement:
            findings.append(f"{name} is not as Remit made it")
    if path.stat().st_mode & 0o077:
        findings.append(f"other users may open {path}: run chmod 600 on it")
    if as_json:
        print_json({"path": str(path), "schema": HEAD, "findings": findings})
    else:
        report(findings, f"{path} is sound, schema {HEAD}.")
    return 1 if findings else 0
