"""`remit audit`: is the record still what was written, what proves it to others, and a copy to keep."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from remit.cli.audit_erase import erase
from remit.cli.audit_keep import hold, retain
from remit.cli.options import (
    CALL,
    SINCE,
    ZONE,
    as_option,
    config_option,
    json_option,
    must_be_in_order,
    must_be_known,
    print_json,
)
from remit.errors import RemitError

if TYPE_CHECKING:
    from remit.anchors import Anchored
    from remit.checkpoint import Checkpoint, Verifier
    from remit.database import Location
    from remit.exports import Format
    from remit.records import Records


@click.group()
def audit() -> None:
    """Verify, prove, export, keep and erase what is on record."""


for command in (erase, hold, retain):
    audit.add_command(command)

_CHECKPOINTS = click.option(
    "--checkpoint",
    "checkpoints",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="Compare with the checkpoints in this file, which was kept elsewhere. May be repeated.",
)
_KEYS = click.option(
    "--key",
    "keys",
    metavar="NAME+ID+KEY",
    multiple=True,
    help="Whose signatures count; those of the keys that the database names, when none is said. May be"
    " repeated, or have several lines with a key on each, as `audit key show` prints them.",
)


@audit.command()
@config_option
@json_option
@click.option(
    "--db",
    "copy",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Verify this copy instead; needs no configuration.",
)
@_CHECKPOINTS
@_KEYS
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Use N processes. By default one for each processor, 4 at most, and one for a small record.",
)
def verify(
    config_path: Path,
    as_json: bool,
    copy: Path | None,
    checkpoints: tuple[Path, ...],
    keys: tuple[str, ...],
    jobs: int | None,
) -> int:
    """Find whatever was edited, deleted, inserted or reordered. Exits with 1 when anything was.

    Every event is checked against the chain and against the log that was sealed; every call, every vote and
    every policy version against its events; every stored argument and result against what was committed to.
    With --checkpoint, also everything against what was sealed when those checkpoints were made.
    """
    from remit import verifying
    from remit.cli.output import progress, report
    from remit.proofs import size_of

    with _records(config_path, copy) as found:
        empty = found.is_empty()
        shut = verifying.shut(found)
        events, calls, sealed = found.count("events"), found.count("calls"), size_of(found)
        verifiers = _verifiers(keys)
        kept = [each for file in checkpoints for each in _kept(file, verifiers, found)]
        with progress("Verifying", events + sealed + calls, every=200) as advance:
            findings = list(
                verifying.verify(found, kept, verifiers, payloads=not shut, progress=advance, processes=jobs)
            )
    if shut and copy is None:
        findings.insert(0, shut)  # it explains what else cannot be
    if as_json:
        print_json(
            {
                "events": events,
                "payloads_opened": not shut,
                "calls": calls,
                "sealed": sealed,
                "since_checkpoint": max((each.size for each in kept), default=None),
                "findings": findings,
            }
        )
    else:
        fine = f"{events} events and {calls} calls are as they were written."
        if empty:
            fine = "The record is empty: no server has run on it yet."
        if kept:
            fine += f"\nThe first {max(each.size for each in kept)} events are those of the checkpoint."
        if shut:
            fine += "\nWhat calls carried was not opened: the master key of this copy is not beside it."
        report(findings, fine)
    return 1 if findings else 0


@audit.command()
@config_option
@json_option
def checkpoint(config_path: Path, as_json: bool) -> int:
    """Seal every event up to now, and print the checkpoint: keep it where nobody can change it.

    A running server does so by itself, every `audit.seal_every`. Exits with 1 when an anchor failed, or when
    there is nothing to seal.
    """
    import anyio

    from remit.anchors import seal_and_anchor
    from remit.config_file import load

    config = load(config_path).config
    _must_exist(config.store.location)
    sealed, anchored = anyio.run(seal_and_anchor, config.store.location, config.audit.anchors)
    if as_json:
        print_json({"checkpoint": sealed, "anchors": anchored})
    elif sealed:
        click.echo(sealed.note, nl=False)
    if sealed is None:
        raise RemitError("there is nothing to seal yet: the first event is written when Remit first serves")
    return _not_anchored(anchored)


@audit.group()
def key() -> None:
    """The key that checkpoints are signed with."""


@key.command()
@config_option
@json_option
def show(config_path: Path, as_json: bool) -> None:
    """Print the public keys that verify checkpoints, newest last, as NAME+ID+KEY.

    Exits with 1 when there is none yet.
    """
    from remit.proofs import known_keys
    from remit.records import open_records
    from remit.sealer import read_keys

    path = _location(config_path)
    with open_records(path) as found:
        known = [str(verifier) for verifier in known_keys(found)]
    known += [each for signer in read_keys(path) if (each := str(signer.verifier)) not in known]
    if as_json:
        print_json(known)
    elif known:
        click.echo("\n".join(known))
    if not known:
        raise RemitError("there is no key yet: the first checkpoint makes one (remit audit checkpoint)")


@key.command()
@config_option
@json_option
@as_option
def rotate(config_path: Path, as_json: bool, as_user: str | None) -> int:
    """Sign with a new key from now on. The old one signs once more, beside it, and is destroyed.

    Who knows the old key can so believe the new one: the checkpoint that both have signed, and the event
    `log.key` that it covers, say that one follows the other. It goes to every anchor; exits with 1 when one
    failed.
    """
    import anyio

    from remit import sealer
    from remit.anchors import seal_and_anchor
    from remit.checkpoint import signature_lines
    from remit.cli.acting import journal_of, person
    from remit.config_file import load

    loaded = load(config_path)
    by = person(loaded, as_user).user
    path = loaded.config.store.location
    _must_exist(path)

    async def hand_over() -> tuple[str, str, Sequence[Anchored]]:
        new, old = sealer.rotate(path)
        while True:
            async with journal_of(loaded) as journal:
                await journal.note_log_key(
                    str(new.verifier), replaces=[str(signer.verifier) for signer in old], by=by
                )
            # Where checkpoints are kept, this one above all: it is what leads from the old key to the new.
            sealed, anchored = await seal_and_anchor(path, loaded.config.audit.anchors, waiting=False)
            assert sealed, "the event of the key was sealed"  # noqa: S101 - it was written just now
            if signature_lines(sealed.note, new.verifier):
                break  # else another replica was first, and knows the old key alone
        sealer.retire(path, new)
        return str(new.verifier), sealed.note, anchored

    verifier, note, anchored = anyio.run(hand_over)
    if as_json:
        print_json({"verifier": verifier, "checkpoint": note, "anchors": anchored})
    else:
        click.echo(f"{verifier}\n\n{note}", nl=False)
    return _not_anchored(anchored)


def _not_anchored(anchored: Sequence[Anchored]) -> int:
    """Tell where the checkpoint could not be put; the exit code."""
    failed = [each for each in anchored if each.error]
    for each in failed:
        click.echo(f"remit: the checkpoint is not at {each.anchor}: {each.error}", err=True)
    return 1 if failed else 0


@audit.command()
@click.argument("call", type=CALL)
@config_option
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="A new file, instead of stdout."
)
def prove(call: str, config_path: Path, output: Path | None) -> None:
    """Print what proves a call to somebody else: its events, where they are in the log, a checkpoint.

    `remit-verify` checks it with nothing but the log's public key.
    """
    import json

    from remit.cli.options import records
    from remit.cli.output import to_file
    from remit.proofs import prove as proof_of

    with records(config_path) as found, to_file(output) as write:
        write(json.dumps(proof_of(found, found.call(call).id), indent=1, ensure_ascii=False) + "\n")


@audit.command()
@config_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv", "parquet", "otlp", "ocsf", "cloudevents"]),
    default="jsonl",
    show_default=True,
    help="Written as; parquet needs --output, and otlp goes to --endpoint.",
)
@click.option("--since", "since_us", type=SINCE, help=f"Events since then: 24h, 7d or 2026-01-31. {ZONE}")
@click.option("--until", "until_us", type=SINCE, help="Events before then.")
@click.option("--tenant", metavar="TENANT", help="Events of this tenant.")
@click.option(
    "--endpoint",
    metavar="URL",
    help="The collector's OTLP/HTTP address for logs, for example http://127.0.0.1:4318/v1/logs.",
)
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="A new file, instead of stdout."
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Every sealed event in the order of the log, and its checkpoint into this new file.",
)
@click.option(
    "--tiles",
    type=click.Path(path_type=Path, file_okay=False),
    help="The log without the events, as files for a web server, into this new folder.",
)
@click.option(
    "--db",
    "copy",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Export this copy instead; needs no configuration.",
)
def export(
    config_path: Path,
    form: Format,
    since_us: int | None,
    until_us: int | None,
    tenant: str | None,
    endpoint: str | None,
    output: Path | None,
    checkpoint: Path | None,
    tiles: Path | None,
    copy: Path | None,
) -> None:
    """Print every event, one JSON object a line, in the order in which they were written.

    csv, parquet, ocsf (API Activity), cloudevents and otlp are the same events for other systems. In jsonl
    each line is {"hash": ..., "event": ...}. The event is written exactly as it was sealed, so the chain of
    a stream can be verified from the export: hash = SHA-256(hash before, event). With --checkpoint,
    `remit-verify` can tell from both files whether it is all there. With --tiles, only checkpoint, hashes and
    entries are written, in the layout of c2sp.org/tlog-tiles; they tell nothing about what happened.
    """
    from remit.cli.output import progress, to_file, told_if_unwritable
    from remit.exports import counted, lines, send_otlp, write_parquet
    from remit.proofs import in_log_order, newest_checkpoint, published

    if (checkpoint or tiles) and (since_us or until_us or tenant or form != "jsonl"):
        raise click.UsageError(
            "--checkpoint and --tiles cover every event as it was sealed: say nothing else"
        )
    must_be_in_order("--since", since_us, "--until", until_us)
    if form == "parquet" and output is None:
        raise click.UsageError("parquet is no text: say --output")
    if (form == "otlp") != bool(endpoint) or (endpoint and output):
        raise click.UsageError("otlp goes to --endpoint, and nothing else does")
    with _records(config_path, copy) as found:
        must_be_known(found, tenant, None if copy else config_path)
        if tiles:
            with told_if_unwritable(tiles):
                if tiles.exists() and any(tiles.iterdir()):
                    raise click.FileError(str(tiles), "it is not empty; name a new folder")
            for name, content in published(found):
                with told_if_unwritable(tiles / name):
                    (tiles / name).parent.mkdir(parents=True, exist_ok=True)
                    (tiles / name).write_bytes(content)
            return
        if checkpoint:
            note, _ = newest_checkpoint(found)
            with to_file(checkpoint) as write:
                write(note)
        chosen = found.events(since_us=since_us or 0, until_us=until_us, tenant=tenant)
        with progress("Exporting", found.count("events"), every=200) as advance:
            events = counted(in_log_order(found) if checkpoint else chosen, advance)
            if endpoint:
                send_otlp(events, endpoint)
            elif form == "parquet" and output:
                with to_file(output):  # it is new, and closed to others
                    write_parquet(events, output)
            else:
                with to_file(output) as write:
                    for line in lines(events, form):
                        write(line)


def _verifiers(keys: tuple[str, ...]) -> list[Verifier]:
    from remit.checkpoint import BadNote, read_verifiers

    try:
        return read_verifiers(keys)
    except BadNote as error:
        raise click.UsageError(f"--key: {error}") from None


def _kept(file: Path, verifiers: list[Verifier], found: Records) -> list[Checkpoint]:
    """The checkpoints of the file; without keys that were said, those signed by the database's own."""
    from remit.proofs import known_keys, read_checkpoints

    try:
        text = file.read_text("utf-8")
    except (OSError, ValueError):
        raise click.FileError(str(file), "cannot be read as text") from None
    return read_checkpoints(text, file, verifiers or known_keys(found))


def _must_exist(at: Location) -> None:
    from remit.records import open_records

    with open_records(at):
        pass


@contextmanager
def _records(config_path: Path, copy: Path | None) -> Generator[Records]:
    """The records of this copy, whose master key can only be beside it, or of the configuration."""
    from remit.cli.options import records
    from remit.records import open_records

    with open_records(copy) if copy else records(config_path) as found:
        yield found


def _location(config_path: Path) -> Location:
    from remit.config_file import load

    return load(config_path).config.store.location
