"""`remit tools prove`: try a way back for real, on a source that is there for trying."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import click

from remit.cli.options import AGENT, TOOL, as_option, config_option, json_option, print_json

if TYPE_CHECKING:
    from remit.cli.acting import Person
    from remit.config_file import Loaded


@click.command()
@config_option
@json_option
@as_option
@click.option("--source", metavar="SOURCE", help="Where to try it: a source that is marked staging.")
@click.option("--args", "given", metavar="JSON", help="The call's arguments, instead of prove.args.")
@click.option("--agent", type=AGENT, help="The agent that makes the calls; by default agent:remit-cli.")
@click.option("--all", "every", is_flag=True, help="Every tool that has a way back and prove.args.")
@click.argument("tool", type=TOOL, required=False, metavar="[TOOL]")
def prove(
    config_path: Path,
    as_json: bool,
    as_user: str | None,
    source: str | None,
    given: str | None,
    agent: str | None,
    every: bool,
    tool: str | None,
) -> int:
    """Call TOOL on a staging source, take the call back, and compare what is there with what was.

    Every step is a governed call of yours, so policy must let you make it there. What is compared are the
    reads of `prove.compare`, or else of `before`. Where all is as it was, the way back is proven, until its
    declaration or a definition that it needs changes. Exits with 1 when anything differs, or was not tried
    to the end.
    """
    from remit.cli.acting import person
    from remit.config_file import load

    if every == bool(tool):
        raise click.UsageError("name a TOOL, or say --all")
    loaded = load(config_path)
    wanted = _examples(loaded) if every else {str(tool): _arguments(loaded, str(tool), given)}
    told = anyio.run(_prove, loaded, person(loaded, as_user), agent, source, wanted)
    if as_json:
        print_json(told)
    else:
        for each in told:
            _show(each)
        if not told:
            click.echo("No tool has both a way back and prove.args.")
    return 0 if all(each["proven"] for each in told) else 1


def _arguments(loaded: Loaded, tool: str, given: str | None) -> Mapping[str, Any]:
    from remit.catalog import rules_for, source_of

    if source_of(loaded.config, tool) is None:
        raise click.UsageError(f"no source offers {tool}: `remit tools list` shows every tool")
    if given is not None:
        try:
            value = json.loads(given)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise click.UsageError("--args takes a JSON object")
        return value  # pyright: ignore[reportUnknownVariableType] - checked against the tool's schema
    rules = rules_for(loaded.config, tool)
    if rules.prove is None or rules.prove.args is None:
        raise click.UsageError(f"say --args, or write prove.args for {tool}")
    return rules.prove.args


def _examples(loaded: Loaded) -> Mapping[str, Mapping[str, Any]]:
    """Every tool that is named in full and can be tried as the configuration stands."""
    from remit.catalog import rules_for

    found = {name: rules_for(loaded.config, name) for name in loaded.config.tools if not name.endswith("*")}
    return {
        name: rules.prove.args
        for name, rules in found.items()
        if rules.undo and rules.prove and rules.prove.args is not None
    }


async def _prove(
    loaded: Loaded,
    who: Person,
    agent: str | None,
    source: str | None,
    wanted: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Try each tool; those of one source together, for its connection takes the most time."""
    from remit.catalog import source_of
    from remit.cli.acting import run_name, services_of
    from remit.cli.output import progress
    from remit.proving import Inconclusive, prove, staged

    principal = replace(who.principal(), agent=agent) if agent else who.principal()
    told: list[dict[str, Any]] = []
    homes = {tool: found[0] if (found := source_of(loaded.config, tool)) else "" for tool in wanted}
    with progress("trying", len(wanted)) as advance:
        for home in dict.fromkeys(homes.values()):
            tools = {tool: wanted[tool] for tool in wanted if homes[tool] == home}
            where = source or home
            names: dict[str, str] = {}
            config = loaded.config
            for tool in tools:
                config, names[tool] = staged(loaded.config, tool, where)
            async with services_of(replace(loaded, config=config), {home, where}) as services:
                for tool, arguments in tools.items():
                    try:
                        tried = await prove(
                            tool, arguments, principal, run_name(), services, as_tool=names[tool]
                        )
                        told.append({**asdict(tried), "proven": not tried.differs, "why": None})
                    except Inconclusive as error:
                        told.append({"tool": tool, "source": where, "proven": False, "why": str(error)})
                    advance()
    return told


def _show(told: Mapping[str, Any]) -> None:
    from remit.escaping import escaped

    name = f"{told['tool']} on {told['source']}"
    if told["why"]:
        click.echo(f"{name}: not tried to the end: {escaped(told['why'])}.")
    elif told["proven"]:
        click.echo(f"{name}: proven. Call {told['call_id']} was made and taken back, and all is as it was.")
    else:
        click.echo(f"{name}: not proven. Call {told['call_id']} was made and taken back, and this differs:")
        lines: Iterable[str] = told["differs"]
        for line in lines:
            click.echo(f"  {escaped(line)}")
