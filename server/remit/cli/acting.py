"""Acting on a Remit from the command line: as whom, and over which parts of it.

The person is taken at their word: whoever may read the configuration and write the audit database may do
anything to both. Each command is a process life of its own beside a server that may be running.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import anyio
import click

from remit.config_file import Loaded
from remit.identity import Principal
from remit.journal import Journal, open_journal
from remit.pipeline import Services
from remit_rbac import Policy

T = TypeVar("T")
#: The agent of what a person does by hand.
AGENT = "agent:remit-cli"


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    tenant: str
    #: `user:<id>`
    user: str

    def principal(self) -> Principal:
        return Principal(tenant=self.tenant, agent=AGENT, user=self.user, auth="local")


def tenant_of(loaded: Loaded, said: str | None = None) -> str:
    """The tenant that was said, or the one of `identity`. Raises UsageError when neither is there."""
    identity = loaded.config.identity
    who = identity.cli or identity.stdio
    if tenant := said or (who and who.tenant):
        return tenant
    raise click.UsageError("say --tenant, or write identity.cli into the configuration")


def person(loaded: Loaded, as_user: str | None, tenant: str | None = None) -> Person:
    """Who acts: `--as`, or `identity.cli.user`. Raises UsageError when neither is there."""
    cli = loaded.config.identity.cli
    user = as_user or (cli and cli.user)
    if user is None:
        raise click.UsageError("say --as user:you, or write identity.cli into the configuration")
    return Person(tenant=tenant_of(loaded, tenant), user=user)


def sole_user(policy: Policy, tenant: str, agent: str) -> str:
    """The one user for whom the agent acts. Raises UsageError when there are several, or none."""
    users = [user for user in policy.subjects(tenant).users if policy.delegated(tenant, agent, user)]
    if len(users) == 1:
        return users[0]
    known = f"it acts for {', '.join(users[:8])}" if users else f"the policy names nobody in tenant {tenant}"
    raise click.UsageError(f"say --for whom {agent} acts: {known}")


@asynccontextmanager
async def journal_of(loaded: Loaded) -> AsyncGenerator[Journal]:
    """The journal alone: works also while the policy is broken and the sources are down."""
    journal = await open_journal(
        loaded.config.store.location, role="cli", key=loaded.master_key(), config=loaded.digest
    )
    try:
        yield journal
    finally:
        await journal.close()


def in_journal(loaded: Loaded, change: Callable[[Journal], Awaitable[T]]) -> T:
    """Make one change to the audit database."""

    async def run() -> T:
        async with journal_of(loaded) as journal:
            return await change(journal)

    return anyio.run(run)


@asynccontextmanager
async def services_of(loaded: Loaded, sources: Collection[str] = ()) -> AsyncGenerator[Services]:
    """Everything that governing needs, with only these sources connected."""
    from remit.app import App

    app = App(loaded, role="cli")
    async with app.running(sources=sources):
        yield await app.services()


def run_name() -> str:
    """The run of what one command does."""
    return f"cli-{os.getpid()}"
