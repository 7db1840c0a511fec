"""`remit policy diff` and `replay`: what would another policy change, on paper and for recorded calls?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remit.cli.options import SINCE, ZONE, config_option, json_option, print_json

if TYPE_CHECKING:
    from remit.comparing import Group


@click.command()
@config_option
@json_option
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
def diff(config_path: Path, as_json: bool, before: str, after: str) -> int:
    """Say what B changes against A: rows, and who may therefore go further or less far with which tool.

    A and B are CSV files, folders of them, configurations (.yaml), version ids, or `current`. Conditions are
    compared as text: `wider` and `narrower` are certain, `different` may be either. Exits with 1 when B may
    allow something that A does not, so that a pipeline can ask for a second look.
    """
    from remit.candidates import candidate
    from remit.cli.output import listing
    from remit.config_file import load
    from remit.policy_diff import diff

    loaded = load(config_path)
    found = diff(candidate(before, loaded).policy, candidate(after, loaded).policy, loaded.config)
    if as_json:
        print_json(found)
        return int(found.widens)
    if found.before == found.after:
        click.echo("Both say the same.")
        return 0
    for row in found.rows:
        if row.before:
            click.echo(f"- {row.before}")
        if row.after:
            click.echo(f"+ {row.after}")
    listing(
        found.reach,
        {
            "who": lambda each: each.who,
            "tenant": lambda each: each.tenant,
            "tool": lambda each: each.tool,
            "at best": lambda each: (
                each.before if each.before == each.after else f"{each.before} -> {each.after}"
            ),
            "change": lambda each: each.change,
        },
        as_json=False,
        none="Nobody whom the policies name may do more or less.",
    )
    return int(found.widens)


@click.command()
@config_option
@json_option
@click.option(
    "--since",
    "since_us",
    type=SINCE,
    default="7d",
    show_default=True,
    help=f"Calls since then: 24h, 7d or 2026-01-31. {ZONE}",
)
@click.option("--policy", "named", required=True, metavar="CANDIDATE", help="The policy to decide under.")
def replay(config_path: Path, as_json: bool, since_us: int, named: str) -> int:
    """Decide recorded calls again under CANDIDATE, and list what would change, grouped by the rules.

    CANDIDATE is a CSV file, a folder of them, a configuration (.yaml) or a version id. Both policies are
    asked the same, so what differs is theirs. Nothing is called. Exits with 1 when anything would change.
    """
    from remit.candidates import candidate
    from remit.cli.output import progress
    from remit.config_file import load
    from remit.policies import load_policy
    from remit.records import open_records
    from remit.replay import count, replay

    loaded = load(config_path)
    policy, other = load_policy(loaded.config), candidate(named, loaded).policy
    with (
        open_records(loaded.config.store.location, loaded.master_key) as found,
        progress("Deciding", count(found, since_us), every=200) as advance,
    ):
        told = replay(found, loaded.config, policy, other, since_us=since_us, advance=advance)
    if as_json:
        counts = {name: getattr(told, name) for name in ("asked", "changed", "skipped", "otherwise_recorded")}
        print_json({"candidate": other.version, **counts, "groups": as_json_groups(told.ordered)})
        return int(bool(told.changed))
    show_groups(told.ordered)
    click.echo(f"{told.asked} calls decided again, {told.changed} would be decided otherwise.")
    if told.skipped:
        click.echo(f"{told.skipped} could not be asked again: their arguments or their tool are gone.")
    if told.otherwise_recorded:
        click.echo(
            f"{told.otherwise_recorded} were recorded otherwise than today's policy alone decides them: "
            "another policy decided, or a budget, a switch or the like refused them."
        )
    return int(bool(told.changed))


def show_groups(groups: Sequence[Group]) -> None:
    from remit.cli.output import short
    from remit.escaping import escaped

    for group in groups:
        found = group.difference
        click.echo(f"{group.count} x {found.before} -> {found.after}")
        for rule in found.rules:
            click.echo(f"    {escaped(rule)}")
        click.echo(f"    calls: {', '.join(map(short, group.examples))}")


def as_json_groups(groups: Sequence[Group]) -> list[dict[str, Any]]:
    return [
        {
            "before": group.difference.before,
            "after": group.difference.after,
            "rules": group.difference.rules,
            "count": group.count,
            "calls": group.examples,
        }
        for group in groups
    ]
