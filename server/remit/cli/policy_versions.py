"""`remit policy push | versions | show | activate | rollback`: versions of the policy in the audit database.

What is pushed is what the configuration's files say, checked like at a start. A server whose policy comes
from the database uses an activated version within a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from remit.cli.options import POLICY_VERSION, as_option, config_option, json_option, print_json, records

if TYPE_CHECKING:
    from remit.config_file import Loaded
    from remit.journal import Journal
    from remit.policies import PolicyText
    from remit.versions import Version

_note = click.option("--note", default="", help="Why; recorded.")


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionLine:
    """One stored version, and when it last came into force."""

    version: str
    #: It decides now.
    active: bool
    #: None: known from a server's files alone.
    pushed_by: str | None
    created_us: int
    note: str
    activated_by: str | None
    activated_us: int | None


@click.command()
@config_option
@json_option
@as_option
@_note
@click.option("--activate", "now", is_flag=True, help="Put it into force at once.")
def push(config_path: Path, as_json: bool, as_user: str | None, note: str, now: bool) -> None:
    """Store what the policy's files say as a version, under your name.

    It is checked first, and refused with every problem. Nothing changes until it is activated.
    """
    from remit.cli.acting import in_journal, person
    from remit.config_file import load
    from remit.policies import files_text

    loaded = load(config_path)
    who = person(loaded, as_user).user
    if now:
        _from_database(loaded)
    version = _checked(loaded, files_text(loaded.config))

    async def change(journal: Journal) -> tuple[bool, bool]:
        new = await journal.push_policy(version, by=who, note=note)
        second = loaded.config.policy.second_person
        return new, now and await journal.activate_policy(version, by=who, note=note, second_person=second)

    new, active = in_journal(loaded, change)
    if as_json:
        print_json({"version": version.id, "new": new, "activated": active})
    else:
        click.echo(f"Version {version.id[:12]} {'is' if new else 'was already'} stored.")
        if active:
            click.echo("It decides from now on.")


@click.command()
@config_option
@json_option
def versions(config_path: Path, as_json: bool) -> None:
    """List the versions that are stored, the newest last, and which one decides."""
    from remit.cli.output import listing, when

    with records(config_path) as found:
        lasts = {activation.version: activation for activation in found.activations()}
        active = found.active_policy()
        rows = [
            VersionLine(
                version=stored.id,
                active=active is not None and active.version == stored.id,
                pushed_by=stored.pushed_by,
                created_us=stored.created_us,
                note=stored.note,
                activated_by=last.activated_by if last else None,
                activated_us=last.at_us if last else None,
            )
            for stored in found.policy_versions()
            for last in (lasts.get(stored.id),)
        ]
    listing(
        rows,
        {
            "version": lambda row: row.version[:12],
            "": lambda row: "active" if row.active else "",
            "pushed by": lambda row: row.pushed_by or "(files)",
            "stored": lambda row: when(row.created_us),
            "activated by": lambda row: row.activated_by or ("(files)" if row.activated_us else ""),
            "activated": lambda row: when(row.activated_us),
            "note": lambda row: row.note,
        },
        as_json=as_json,
        none="No version is stored.",
    )


@click.command()
@config_option
@json_option
@click.argument("version", type=POLICY_VERSION, metavar="VERSION")
def show(config_path: Path, as_json: bool, version: str) -> None:
    """Print the whole text of a version, file by file; the beginning of its id is enough."""
    from remit.escaping import escaped
    from remit.policies import PolicyText

    with records(config_path) as found:
        stored = found.policy_version(version)
    parts = PolicyText.from_json(stored.text).parts
    if as_json:
        files = [{"file": part.file, "tenant": part.tenant, "text": part.content.decode()} for part in parts]
        print_json({"version": stored.id, "files": files})
        return
    for part in parts:
        owner = f" (tenant {part.tenant})" if part.tenant else ""
        click.echo(escaped(f"# ==== {part.file}{owner}"))
        click.echo(escaped(part.content.decode().rstrip("\n"), lines=True))


@click.command()
@config_option
@json_option
@as_option
@_note
@click.argument("version", type=POLICY_VERSION, metavar="VERSION")
def activate(config_path: Path, as_json: bool, as_user: str | None, note: str, version: str) -> None:
    """Let a stored version decide, on every server within a second.

    With `policy.second_person` this must be somebody else than who pushed it.
    """
    from remit.cli.acting import in_journal, person
    from remit.config_file import load

    loaded = load(config_path)
    who = person(loaded, as_user).user
    _from_database(loaded)
    chosen = _stored(loaded, version)
    second = loaded.config.policy.second_person
    changed = in_journal(
        loaded, lambda journal: journal.activate_policy(chosen, by=who, note=note, second_person=second)
    )
    _told(chosen, changed, as_json=as_json)


@click.command()
@config_option
@json_option
@as_option
@_note
@click.argument("version", type=POLICY_VERSION, metavar="[VERSION]", required=False)
def rollback(config_path: Path, as_json: bool, as_user: str | None, note: str, version: str | None) -> None:
    """Return to the version that decided before, or to VERSION, which may be any that is stored.

    It needs no second person, unless VERSION never decided.
    """
    from remit.cli.acting import in_journal, person
    from remit.config_file import load

    loaded = load(config_path)
    who = person(loaded, as_user).user
    _from_database(loaded)
    chosen = _stored(loaded, version or _before(loaded))
    second = loaded.config.policy.second_person
    changed = in_journal(
        loaded, lambda journal: journal.roll_back_policy(chosen, by=who, note=note, second_person=second)
    )
    _told(chosen, changed, as_json=as_json)


def _from_database(loaded: Loaded) -> None:
    if loaded.config.policy.source != "database":
        raise click.UsageError(
            "the policy comes from files here, so change those; versions decide with policy.source: database"
        )


def _before(loaded: Loaded) -> str:
    """What was in force before the version that is, whatever was gone back to in between."""
    from remit.errors import UnknownRecord
    from remit.records import open_records

    with open_records(loaded.config.store.location, loaded.master_key) as found:
        history = found.activations()
    stack: list[str] = []
    for activation in history:
        if activation.kind == "rollback" and activation.version in stack:
            del stack[stack.index(activation.version) + 1 :]
        else:
            stack.append(activation.version)
    if len(stack) < 2:
        raise UnknownRecord("no other version was in force before this one")
    return stack[-2]


def _stored(loaded: Loaded, start: str) -> Version:
    """A stored version, checked as what it would be here and today."""
    from remit.policies import PolicyText
    from remit.records import open_records
    from remit.versions import Version

    with open_records(loaded.config.store.location, loaded.master_key) as found:
        stored = found.policy_version(start)
    text = PolicyText.from_json(stored.text)
    _checked(loaded, text.of_today())
    return Version(id=stored.id, text=stored.text, digests=text.digests)


def _checked(loaded: Loaded, text: PolicyText) -> Version:
    """The version that a text makes, when it passes the tests. Raises PolicyError, RemitError."""
    from remit.policies import built
    from remit.policy_tests import must_pass

    made = built(text, loaded.config)
    must_pass(loaded.config, made.policy)
    return made.version


def _told(version: Version, changed: bool, *, as_json: bool) -> None:
    if as_json:
        print_json({"version": version.id, "changed": changed})
    else:
        click.echo(f"Version {version.id[:12]} {'decides from now on' if changed else 'decides already'}.")
