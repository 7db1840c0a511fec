"""`remit switch` and `remit safe`: stop everything or one thing, at once, and let it go again.

These need the audit database and nothing else: they work while the policy is broken and the sources are
down. A running server obeys within its next transaction, or a quarter of a second when it is idle.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from remit.cli.options import AGENT, USER, WORDS, as_option, config_option, json_option, print_json, records

if TYPE_CHECKING:
    from remit.config_file import Loaded
    from remit.switches import SwitchKind

_SCOPES = ("all", "tenant", "agent", "user", "run", "tool", "source")
_scope = click.argument("scope", type=click.Choice(_SCOPES))
_target = click.argument("target", default="")
_tenant = click.option("--tenant", metavar="TENANT", default="", help="There only; else in every tenant.")
_reason = click.option("--reason", type=WORDS, required=True, help="Why; recorded.")


@click.group()
def switch() -> None:
    """The kill switch: what it covers stops, but for undoing."""


@switch.command()
@config_option
@json_option
@as_option
@_tenant
@_reason
@_scope
@_target
def on(
    config_path: Path, as_json: bool, as_user: str | None, tenant: str, reason: str, scope: str, target: str
) -> None:
    """Stop everything, or all of one tenant, agent, user, run, tool or source."""
    _turn(config_path, "kill", scope, target, tenant, reason, as_user, on=True, as_json=as_json)


@switch.command()
@config_option
@json_option
@as_option
@_tenant
@_reason
@_scope
@_target
def off(
    config_path: Path, as_json: bool, as_user: str | None, tenant: str, reason: str, scope: str, target: str
) -> None:
    """Let it run again."""
    _turn(config_path, "kill", scope, target, tenant, reason, as_user, on=False, as_json=as_json)


@switch.command("list")
@config_option
@json_option
def list_(config_path: Path, as_json: bool) -> None:
    """List every switch that is on, safe mode included."""
    from remit.cli.output import listing, when

    with records(config_path) as found:
        rows = found.switches()
    listing(
        rows,
        {
            "switch": lambda row: row.kind,
            "scope": lambda row: row.scope,
            "target": lambda row: row.target,
            "tenant": lambda row: row.tenant or "every",
            "by": lambda row: row.set_by,
            "since": lambda row: when(row.set_us),
            "reason": lambda row: row.reason,
        },
        as_json=as_json,
        none="No switch is on.",
    )


@click.group()
def safe() -> None:
    """Safe mode: reads and undoing only, for everybody."""


@safe.command("on")
@config_option
@json_option
@as_option
@_tenant
@_reason
def safe_on(config_path: Path, as_json: bool, as_user: str | None, tenant: str, reason: str) -> None:
    """Let nothing through but reads and undoing."""
    _turn(config_path, "safe", "all", "", tenant, reason, as_user, on=True, as_json=as_json)


@safe.command("off")
@config_option
@json_option
@as_option
@_tenant
@_reason
def safe_off(config_path: Path, as_json: bool, as_user: str | None, tenant: str, reason: str) -> None:
    """Let everything through again."""
    _turn(config_path, "safe", "all", "", tenant, reason, as_user, on=False, as_json=as_json)


def _turn(
    config_path: Path,
    kind: SwitchKind,
    scope: str,
    target: str,
    tenant: str,
    reason: str,
    as_user: str | None,
    *,
    on: bool,
    as_json: bool,
) -> None:
    from remit.cli.acting import in_journal, person
    from remit.config_file import load

    loaded = load(config_path)
    who = person(loaded, as_user)
    if on:
        _check_target(loaded, scope, target)
    changed = in_journal(
        loaded,
        lambda journal: journal.switch(
            kind=kind, scope=scope, target=target, tenant=tenant, on=on, reason=reason, by=who.user
        ),
    )
    if as_json:
        print_json({"kind": kind, "scope": scope, "target": target, "on": on, "changed": changed})
    else:
        name = "Safe mode" if kind == "safe" else f"The switch for {' '.join(filter(None, (scope, target)))}"
        click.echo(f"{name} {'is' if changed else 'was already'} {'on' if on else 'off'}.")


def _check_target(loaded: Loaded, scope: str, target: str) -> None:
    """A switch that covers nothing because of a typing error is worse than none."""
    from remit.catalog import prefix_of, source_of

    sources = loaded.config.sources
    if (scope == "all") != (not target):
        raise click.UsageError("`all` has no target, and every other scope needs one")
    match scope:
        case "agent":
            AGENT.convert(target, None, None)
        case "user":
            USER.convert(target, None, None)
        case "source" if target not in sources:
            raise click.UsageError(f"there is no source {target!r}: the sources are {', '.join(sources)}")
        case "tool":
            if source_of(loaded.config, target) is None:
                names = ", ".join(prefix_of(loaded.config, source) for source in sources)
                raise click.UsageError(f"no source exports {target!r}: names begin with one of {names}")
        case _:
            pass
