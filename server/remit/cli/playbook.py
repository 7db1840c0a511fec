"""`remit playbook`: recovery procedures of the configuration, looked at and carried out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import click

from remit.cli.options import as_option, config_option, json_option, print_json

if TYPE_CHECKING:
    from remit.config import Playbook
    from remit.config_file import Loaded
    from remit.playbooks import Ended


@click.group()
def playbook() -> None:
    """Recovery procedures that are written down in the configuration."""


@playbook.command("list")
@config_option
@json_option
def list_(config_path: Path, as_json: bool) -> None:
    """List the playbooks."""
    from remit.cli.output import listing
    from remit.config_file import load
    from remit.playbooks import digest

    found: list[dict[str, Any]] = [
        {"name": name, "about": it.about, "inputs": it.inputs, "steps": len(it.steps), "digest": digest(it)}
        for name, it in load(config_path).config.playbooks.items()
    ]
    listing(
        found,
        {
            "name": lambda it: it["name"],
            "about": lambda it: it["about"],
            "inputs": lambda it: ", ".join(it["inputs"]),
            "steps": lambda it: it["steps"],
            "version": lambda it: it["digest"][:12],
        },
        as_json=as_json,
        none="The configuration has no playbooks.",
    )


@playbook.command()
@config_option
@json_option
@click.argument("name")
def show(config_path: Path, as_json: bool, name: str) -> None:
    """Show one playbook: as whom it acts, and its steps."""
    from remit.cli.output import facts
    from remit.config_file import load
    from remit.playbooks import digest

    found = _named(load(config_path), name)
    if as_json:
        print_json({"name": name, "digest": digest(found), **found.model_dump(mode="json", by_alias=True)})
        return
    who = found.runs_as
    rows: list[tuple[str, object]] = [
        ("about", found.about or None),
        ("acts as", f"{who.agent} for {who.user} in {who.tenant}"),
        ("inputs", ", ".join(found.inputs) or None),
        ("starts by itself on", ", ".join(trigger.kind for trigger in found.on) or None),
        ("version", digest(found)),
    ]
    for step in found.steps:
        does = step.call or (f"roll back {step.rollback}" if step.rollback else f"stop {step.stop}")
        given = [f"{key}: {text}" for key, text in step.args.items()] + ([f"of {step.of}"] if step.of else [])
        told = f"{does} {', '.join(given)}".rstrip()
        rows.append((step.id, f"{told}, if {step.when}" if step.when else told))
    facts(name, rows)


@playbook.command()
@config_option
@json_option
@as_option
@click.option("--input", "inputs", multiple=True, metavar="NAME=VALUE", help="One of its inputs.")
@click.option("--dry-run", is_flag=True, help="Say what each step would be, and take none.")
@click.option("--new", "anew", is_flag=True, help="Begin anew, also where an equal run can be carried on.")
@click.argument("name")
def run(
    config_path: Path,
    as_json: bool,
    as_user: str | None,
    inputs: Sequence[str],
    dry_run: bool,
    anew: bool,
    name: str,
) -> int:
    """Carry a playbook out, step by step, as whom it says.

    Each step is governed and recorded like any call. A run that was cut short, or waits for a person, is
    carried on by the same command: no step has its effect twice. Exits with 0 when every step is done.
    """
    from remit.cli.acting import person
    from remit.config_file import load

    loaded = load(config_path)
    _named(loaded, name)
    pairs = [each.partition("=") for each in inputs]
    if wrong := [each for each, (_, sign, _) in zip(inputs, pairs, strict=True) if not sign]:
        raise click.UsageError(f"--input takes NAME=VALUE, not {wrong[0]!r}")
    given = {key: value for key, _, value in pairs}
    by = person(loaded, as_user).user
    told = anyio.run(_run, loaded, name, given, by, dry_run, anew, not as_json)
    if as_json:
        print_json(told)
    return 0 if told["state"] in ("done", "planned") else 1


async def _run(
    loaded: Loaded, name: str, inputs: dict[str, str], by: str, dry_run: bool, anew: bool, aloud: bool
) -> dict[str, Any]:
    from remit.cli.acting import services_of
    from remit.playbooks import Run, begin, carry_out, foreseen, given

    steps: list[Ended] = []
    async with services_of(loaded, set(loaded.config.sources)) as on:
        if dry_run:
            book = loaded.config.playbooks[name]
            run = Run(
                id="dry",
                name=name,
                inputs=given(book, inputs),
                started_us=on.clock(),
                on=on,
                loaded=loaded,
            )
        else:
            run = await begin(name, inputs, on, loaded, by=by, anew=anew)
        async for ended in foreseen(run) if dry_run else carry_out(run):
            steps.append(ended)
            if aloud:
                _say(ended)
    bad = next((each.state for each in steps if each.state not in ("done", "skipped", "planned")), None)
    state = bad or ("planned" if dry_run else "done")
    if aloud and not dry_run:
        click.echo(f"Run {run.id} is {state}.")
    return {
        "run": None if dry_run else run.id,
        "playbook": name,
        "state": state,
        "steps": [asdict(each) for each in steps],
    }


def _say(ended: Ended) -> None:
    from remit.escaping import escaped

    click.echo(f"{ended.step}  {ended.state}  {escaped(ended.said)}")


def _named(loaded: Loaded, name: str) -> Playbook:
    from remit.errors import UnknownRecord

    found = loaded.config.playbooks.get(name)
    if found is None:
        known = ", ".join(loaded.config.playbooks) or "there are none"
        raise UnknownRecord(f"no playbook is called {name}: {known}")
    return found
