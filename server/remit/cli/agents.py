"""`remit agents`: the API keys by which agents prove themselves over HTTP."""

from __future__ import annotations

from pathlib import Path

import anyio
import click

from remit.app import App
from remit.cli.options import config_option, json_option, print_json
from remit.config_file import load
from remit.identity import mint_key
from remit.ids import now_us

_DAY_S = 86_400


@click.group()
def agents() -> None:
    """API keys of agents."""


@agents.group()
def key() -> None:
    """Create and revoke API keys."""


@key.command()
@config_option
@json_option
@click.option("--agent", required=True, metavar="agent:ID", help="Whom the key proves.")
@click.option("--user", required=True, metavar="user:ID", help="For whom the agent acts with it.")
@click.option("--tenant", default=None, help="Default: the tenant of identity.cli or identity.stdio.")
@click.option("--label", default="", help="For people: where the key is used.")
@click.option("--days", default=90, show_default=True, type=click.IntRange(1, 3650), help="Lifetime.")
def create(
    config_path: Path, as_json: bool, agent: str, user: str, tenant: str | None, label: str, days: int
) -> None:
    """Create an API key and show it, once."""
    found = load(config_path)
    who = found.config.identity.cli or found.config.identity.stdio
    tenant = tenant or (who.tenant if who else None)
    if tenant is None:
        raise click.UsageError("say --tenant: the configuration names none for this command line")
    tenant_name: str = tenant

    async def run() -> None:
        app = App(found, role="cli")
        async with app.running(sources=()):
            services = await app.services()
            try:
                record, plaintext = mint_key(
                    tenant=tenant_name,
                    agent=agent,
                    user=user,
                    label=label,
                    pepper=app.pepper,
                    at_us=now_us(),
                    lifetime_s=days * _DAY_S,
                )
            except ValueError as error:
                raise click.UsageError(str(error)) from None
            await services.journal.add_key(record, by="local")
            if as_json:
                print_json({"id": record.id, "key": plaintext, "agent": agent, "user": user})
            else:
                click.echo(plaintext)
                click.echo(f"\nThis is shown once. It proves {agent} for {user}, for {days} days.")

    anyio.run(run)
