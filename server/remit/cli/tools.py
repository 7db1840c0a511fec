"""`remit tools`: what is exported, as agents would see it, and all that is known about one tool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click

from remit.cli.options import AGENT, TOOL, USER, config_option, json_option, print_json
from remit.cli.tools_prove import prove

if TYPE_CHECKING:
    from remit.catalog import Catalog
    from remit.cli.exported import ExportedTool, Offered
    from remit.model import Tool


@click.group()
def tools() -> None:
    """The tools that are exported."""


@tools.command("list")
@config_option
@json_option
@click.option("--as", "agent", type=AGENT, help="Only what this agent sees.")
@click.option("--for", "user", type=USER, help="The user for whom it looks; needed when it has several.")
@click.option("--tenant", metavar="TENANT", help="Where it looks; by default the tenant of identity.")
def list_(config_path: Path, as_json: bool, agent: str | None, user: str | None, tenant: str | None) -> None:
    """Connect to every source and list what is exported."""
    from remit.cli.acting import sole_user, tenant_of
    from remit.cli.exported import ask, shown, table
    from remit.config_file import load
    from remit.policies import load_policy

    loaded = load(config_path)
    policy = load_policy(loaded.config)
    rows = table(_answered(anyio.run(ask, loaded)), loaded.config, policy)
    if agent is not None:
        where = tenant_of(loaded, tenant)
        who = user or sole_user(policy, where, agent)
        rows = [row for row in rows if policy.visible(where, agent, who, row.name)]
    shown(rows, as_json=as_json)


@tools.command()
@config_option
@json_option
@click.argument("name", type=TOOL, metavar="TOOL")
def show(config_path: Path, as_json: bool, name: str) -> None:
    """Show one tool: its effect, its price, its way back, its schema, who sees it."""
    from remit.catalog import source_of
    from remit.cli.exported import ask, table
    from remit.cli.output import facts
    from remit.config_file import load
    from remit.errors import UnknownRecord
    from remit.policies import load_policy

    loaded = load(config_path)
    policy = load_policy(loaded.config)
    source = source_of(loaded.config, name)
    catalog = _answered(anyio.run(ask, loaded, [source[0]] if source else []))
    row = next((row for row in table(catalog, loaded.config, policy) if row.name == name), None)
    if row is None:
        raise UnknownRecord(f"no tool {name} is exported: `remit tools list` shows those that are")
    if as_json:
        print_json({**asdict(row), "definition": catalog.tools[name].definition})
    else:
        facts(name, _told(row, catalog.tools[name]))


tools.add_command(prove)


@tools.command()
@config_option
@json_option
@click.argument("source", required=False)
def suggest(config_path: Path, as_json: bool, source: str | None) -> int:
    """Propose an effect and a way back for each tool that the configuration says nothing about.

    Prints YAML for remit.yaml, of SOURCE or of all sources, each line with its evidence: what the source
    declares, names, schemas. Review it: nothing of it counts until you have written it down. Until then each
    of these tools counts as irreversible.
    """
    from remit.cli.exported import ask
    from remit.config_file import load
    from remit.proposals import as_yaml, propose

    loaded = load(config_path)
    if source is not None and source not in loaded.config.sources:
        raise click.UsageError(f"no source is called {source}: there is {', '.join(loaded.config.sources)}")
    catalog = _answered(anyio.run(ask, loaded, [source] if source else None))
    found = propose(loaded.config, catalog, source)
    if as_json:
        print_json([{**asdict(each), "rules": each.rules} for each in found])
    elif not found:
        click.echo("# Every tool has its effect.")
    else:
        click.echo("\n".join(as_yaml(found, below=bool(loaded.config.tools))))
    return 0


def _answered(offered: Offered) -> Catalog:
    for name, why in offered.down.items():
        click.echo(f"source {name} cannot be reached: {why}", err=True)
    return offered.catalog


def _told(row: ExportedTool, tool: Tool) -> Iterator[tuple[str, object]]:
    from remit.cli.output import as_json_text, span, when

    definition = tool.definition
    yield "source", f"{row.source}, which calls it {tool.own_name}"
    yield "about", definition.get("description")
    yield "effect", row.effect if row.declared else f"{row.effect}: no entry of `tools` says otherwise"
    for condition, effect in row.when.items():
        yield "", f"{effect} when {condition}"
    for unit, text in row.price.items():
        yield "price", f"{unit}: {text}"
    if undo := tool.undo:
        yield "way back", f"{undo.tool}, for {span(undo.within_s)}"
        for name, expression in undo.arguments.items():
            yield "", f"{name}: {expression.text}"
        yield "proved by", f"{undo.verify.tool}: {undo.expect.text}" if undo.verify and undo.expect else None
        proven = row.undo_proven_us and f"proven {when(row.undo_proven_us)}, for {row.undo_proof}"
        yield "confidence", proven or "claimed"
        yield "stays", undo.residue
    yield "before it", f"{tool.before.lookup.tool} is read" if tool.before else None
    yield "after it", f"{tool.after.lookup.tool} is read" if tool.after else None
    yield "touches", tool.resource.text if tool.resource else None
    yield "fails when", tool.failed_when.text if tool.failed_when else None
    yield "timeout", span(tool.timeout_s)
    yield "visible to", ", ".join(f"{it.agent} ({it.tenant})" for it in row.visible_to) or "nobody"
    yield "definition", row.digest
    yield "arguments", as_json_text(definition["inputSchema"])
