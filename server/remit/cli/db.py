"""`remit db`: the audit database itself, apart from what is in it."""

from __future__ import annotations

from pathlib import Path

import click

from remit.cli.options import config_option, json_option, print_json


@click.group()
def db() -> None:
    """The audit database itself."""


@db.command()
@config_option
@json_option
def upgrade(config_path: Path, as_json: bool) -> None:
    """Create the database, or bring it to the schema of this Remit. A server does so when it starts.

    On PostgreSQL, run it as the role that owns the tables; servers then need no right to change them.
    """
    from remit import schema
    from remit.config_file import load

    at = load(config_path).config.store.location
    schema.upgrade(at)
    if as_json:
        print_json({"database": str(at), "schema": schema.HEAD})
    else:
        click.echo(f"{at} has schema {schema.HEAD}.")


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
    from remit.schema import HEAD, fresh

    at = load(config_path).config.store.location
    with open_records(at) as found:
        findings = list(found.damage())
        present = found.schema()
    for name, made in fresh(at).items():
        if name not in present:
            findings.append(f"{name} is missing")
        elif present[name] != made:
            findings.append(f"{name} is not as Remit made it")
    if isinstance(at, Path) and at.stat().st_mode & 0o077:
        findings.append(f"other users may open {at}: run chmod 600 on it")
    if as_json:
        print_json({"database": str(at), "schema": HEAD, "findings": findings})
    else:
        report(findings, f"{at} is sound, schema {HEAD}.")
    return 1 if findings else 0
