"""`remit policy shadow`: try a policy on live calls, without letting it decide."""

from __future__ import annotations

from pathlib import Path

import click

from remit.cli.options import as_option, config_option, json_option, print_json, records


@click.group()
def shadow() -> None:
    """Try another policy on live calls, without letting it decide."""


@shadow.command()
@config_option
@json_option
@as_option
@click.argument("named", metavar="CANDIDATE")
def start(config_path: Path, as_json: bool, as_user: str | None, named: str) -> None:
    """Have running servers decide every call under CANDIDATE, too, and count what would differ.

    CANDIDATE is a CSV file, a folder of them, a configuration (.yaml) or a version id. Its text is stored, so
    later changes of the files do not count. Servers notice within a second. An earlier trial ends, and its
    counts are gone.
    """
    from remit.candidates import candidate
    from remit.cli.acting import in_journal, person
    from remit.config_file import load

    loaded = load(config_path)
    who = person(loaded, as_user)
    chosen = candidate(named, loaded).version
    version = chosen.id
    in_journal(loaded, lambda journal: journal.start_shadow(version=version, text=chosen.text, by=who.user))
    if as_json:
        print_json({"version": version})
    else:
        click.echo(f"Version {version[:12]} is on trial: `remit policy shadow report` tells what differs.")


@shadow.command()
@config_option
@json_option
def report(config_path: Path, as_json: bool) -> int:
    """Say what the policy on trial would have decided otherwise, grouped by the rules.

    Exits with 1 when anything differs, or nothing is on trial.
    """
    from remit.cli.output import when
    from remit.cli.policy_compare import as_json_groups, show_groups

    with records(config_path) as found:
        trial = found.shadow()
    changed = sum(group.count for group in trial.groups) if trial else 0
    if as_json:
        told = trial and {
            "version": trial.version,
            "started_by": trial.started_by,
            "started_us": trial.started_us,
            "stopped_us": trial.stopped_us,
            "decided": trial.decided,
            "changed": changed,
            "dropped": trial.dropped,
            "groups": as_json_groups(trial.groups),
        }
        print_json(told)
    elif trial is None:
        click.echo("No policy is on trial: `remit policy shadow start CANDIDATE` begins one.")
    else:
        show_groups(trial.groups)
        until = f"until {when(trial.stopped_us)}" if trial.stopped_us else "running"
        click.echo(f"Version {trial.version[:12]}, since {when(trial.started_us)}, {until}.")
        click.echo(f"{trial.decided} calls decided under both, {changed} would be decided otherwise.")
        if trial.dropped:
            click.echo(f"{trial.dropped} came too fast and were not compared.")
    return int(trial is None or bool(changed))


@shadow.command()
@config_option
@json_option
@as_option
def stop(config_path: Path, as_json: bool, as_user: str | None) -> int:
    """End the trial; its report stays. Exits with 1 when there is none."""
    from remit.cli.acting import in_journal, person
    from remit.config_file import load

    loaded = load(config_path)
    who = person(loaded, as_user)
    stopped = in_journal(loaded, lambda journal: journal.stop_shadow(by=who.user))
    if as_json:
        print_json({"stopped": stopped})
    else:
        click.echo("The trial has ended." if stopped else "No policy is on trial.")
    return 0 if stopped else 1
