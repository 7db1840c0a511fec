"""`remit agents`: whom the policy knows, and the API keys by which they prove themselves over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from remit.cli.options import AGENT, USER, as_option, config_option, json_option, print_json, records

if TYPE_CHECKING:
    from remit.journal import Journal

_DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    tenant: str
    agent: str
    acts_for: tuple[str, ...]
    #: API keys that are valid now.
    keys: int
    last_seen_us: int | None


@click.group()
def agents() -> None:
    """Agents and their API keys."""


@agents.command("list")
@config_option
@json_option
def list_(config_path: Path, as_json: bool) -> None:
    """List the agents that the policy names, whom they act for, and when they last called."""
    from remit.cli.output import listing, when
    from remit.config_file import load
    from remit.database import exists
    from remit.ids import now_us
    from remit.policies import load_policy
    from remit.records import open_records

    config, now = load(config_path).config, now_us()
    policy = load_policy(config)
    seen: dict[tuple[str, str], int] = {}
    valid: list[tuple[str, str]] = []
    if exists(config.store.location):
        with open_records(config.store.location) as found:
            seen = found.last_seen()
            keys = found.api_keys()
        valid = [(it.tenant, it.agent) for it in keys if not it.revoked_us and it.expires_us > now]
    rows = [
        Agent(
            tenant=tenant,
            agent=agent,
            acts_for=tuple(
                user for user in policy.subjects(tenant).users if policy.delegated(tenant, agent, user)
            ),
            keys=valid.count((tenant, agent)),
            last_seen_us=seen.get((tenant, agent)),
        )
        for tenant in policy.tenants
        for agent in policy.subjects(tenant).agents
    ]
    listing(
        rows,
        {
            "agent": lambda row: row.agent,
            "tenant": lambda row: row.tenant,
            "acts for": lambda row: ", ".join(row.acts_for) or "nobody",
            "keys": lambda row: row.keys,
            "last call": lambda row: when(row.last_seen_us),
        },
        as_json=as_json,
        none="The policy names no agent.",
    )


@agents.group()
def key() -> None:
    """API keys: create, list, revoke."""


@key.command()
@config_option
@json_option
@click.option("--agent", type=AGENT, required=True, help="Whom the key proves.")
@click.option("--user", type=USER, required=True, help="For whom the agent acts with it.")
@click.option("--tenant", metavar="TENANT", help="By default the tenant of identity.")
@click.option("--label", default="", help="For people: where the key is used.")
@click.option("--days", default=90, show_default=True, type=click.IntRange(1, 3650), help="Its lifetime.")
def create(
    config_path: Path, as_json: bool, agent: str, user: str, tenant: str | None, label: str, days: int
) -> None:
    """Create an API key and show it, once."""
    from remit.app import App
    from remit.cli.acting import in_journal, tenant_of
    from remit.config_file import load
    from remit.identity import mint_key, pepper_check
    from remit.ids import now_us

    loaded = load(config_path)
    pepper = App(loaded, role="cli").pepper
    record, plaintext = mint_key(
        tenant=tenant_of(loaded, tenant),
        agent=agent,
        user=user,
        label=label,
        pepper=pepper,
        at_us=now_us(),
        lifetime_s=days * _DAY_S,
    )

    async def add(journal: Journal) -> None:
        await journal.know_pepper(pepper_check(pepper))
        await journal.add_key(record, by="local")

    in_journal(loaded, add)
    if as_json:
        print_json({"id": record.id, "key": plaintext, "agent": agent, "user": user})
    else:
        click.echo(plaintext)
        click.echo(f"\nThis is shown once. It proves {agent} for {user}, for {days} days.")


@key.command("list")
@config_option
@json_option
def list_keys(config_path: Path, as_json: bool) -> None:
    """List the keys that were made; none can be shown again."""
    from remit.cli.output import listing, until, when
    from remit.ids import now_us

    now = now_us()
    with records(config_path) as found:
        rows = found.api_keys()
    listing(
        rows,
        {
            "key": lambda row: row.id,
            "agent": lambda row: row.agent,
            "user": lambda row: row.user,
            "tenant": lambda row: row.tenant,
            "label": lambda row: row.label,
            "made": lambda row: when(row.created_us),
            "ends": lambda row: "revoked" if row.revoked_us else until(row.expires_us, now),
        },
        as_json=as_json,
        none="No key was made yet.",
    )


@key.command()
@config_option
@json_option
@as_option
@click.argument("key_id", metavar="KEY")
def revoke(config_path: Path, as_json: bool, as_user: str | None, key_id: str) -> None:
    """Revoke a key by its id: from now on it proves nothing."""
    from remit.cli.acting import in_journal
    from remit.config_file import load

    loaded = load(config_path)
    cli = loaded.config.identity.cli
    by = as_user or (cli.user if cli else "local")
    in_journal(loaded, lambda journal: journal.revoke_key(key_id, by=by))
    if as_json:
        print_json({"id": key_id, "revoked": True})
    else:
        click.echo(f"Key {key_id} is revoked.")
