"""`remit policy graph`: a picture of who reaches what."""

from __future__ import annotations

from pathlib import Path

import click

from remit.cli.options import config_option, json_option, print_json


@click.command()
@config_option
@json_option
@click.option("--tenant", metavar="TENANT", help="By default the tenant of identity.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write it there; by default to stdout.",
)
def graph(config_path: Path, as_json: bool, tenant: str | None, output: Path | None) -> None:
    """Draw who acts for whom, who has which role and which tools that reaches, as SVG for a browser.

    Conditions are not drawn: rest the pointer on a line to see the rows that it stands for.
    """
    from remit.cli.acting import tenant_of
    from remit.config_file import load
    from remit.errors import RemitError
    from remit.graph import draw
    from remit.policies import load_policy

    loaded = load(config_path)
    rules = load_policy(loaded.config)
    where = tenant_of(loaded, tenant)
    if where not in rules.tenants:
        raise RemitError(f"the policy names no tenant {where}: there are {', '.join(rules.tenants)}")
    picture = draw(rules, where)
    if output is not None:
        try:
            output.write_text(picture, "utf-8")
        except OSError as error:
            raise RemitError(f"{output} cannot be written: {error.strerror}") from None
    if as_json:
        print_json({"tenant": where, "version": rules.version, "svg": None if output else picture})
    elif output is not None:
        click.echo(f"Drawn in {output}.")
    else:
        click.echo(picture, nl=False)
