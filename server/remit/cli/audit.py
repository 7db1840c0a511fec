"""`remit audit`: is the record still what was written, and a copy of it to keep elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import click

from remit.cli.options import SINCE, config_option, json_option, print_json

#: The progress bar moves once for so many rows: moving costs more than verifying one.
_STEP = 256


@click.group()
def audit() -> None:
    """Verify and export the audit log."""


@audit.command()
@config_option
@json_option
@click.option(
    "--db",
    "copy",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Verify this copy instead; needs no configuration.",
)
def verify(config_path: Path, as_json: bool, copy: Path | None) -> int:
    """Find whatever was edited, deleted, inserted or reordered. Exits with 1 when anything was.

    Every event is checked against the chain, every call and every vote against its events, and every stored
    argument and result against what was committed to.
    """
    from remit.audit import verify_approvals, verify_calls, verify_events
    from remit.cli.output import report
    from remit.records import open_records

    with open_records(copy or _path(config_path)) as found:
        events, calls = found.count("events"), found.count("calls")
        with _progress(events + calls) as advance:
            findings = [
                *verify_events(found, advance),
                *verify_calls(found, advance),
                *verify_approvals(found),
            ]
    if as_json:
        print_json({"events": events, "calls": calls, "findings": findings})
    else:
        report(findings, f"{events} events and {calls} calls are as they were written.")
    return 1 if findings else 0


@audit.command()
@config_option
@click.option("--since", "since_us", type=SINCE, help="Events since then: 24h, 7d or 2026-01-31.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="A new file, instead of stdout."
)
def export(config_path: Path, since_us: int | None, output: Path | None) -> None:
    """Print every event, one JSON object a line, in the order in which they were written.

    Each line is {"hash": ..., "event": ...}. The event is written exactly as it was sealed, so the chain of
    a stream can be verified from the export: hash = SHA-256(hash before, event).
    """
    from remit.records import open_records

    with open_records(_path(config_path)) as found, _to(output) as write:
        for event in found.events(since_us=since_us or 0):
            write(f'{{"hash":"{event.hash}","event":{event.body}}}\n')


def _path(config_path: Path) -> Path:
    from remit.config_file import load

    return load(config_path).config.store.path


@contextmanager
def _to(output: Path | None) -> Generator[Callable[[str], object]]:
    if output is None:
        yield sys.stdout.write
        return
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise click.FileError(str(output), (error.strerror or "cannot be written").lower()) from None
    with open(descriptor, "w", encoding="utf-8") as file:
        yield file.write


@contextmanager
def _progress(total: int) -> Generator[Callable[[], None]]:
    """A bar on a terminal, nothing on a pipe; yields what to call for each row."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.progress import Progress

    from remit.cli.output import console

    with Progress(console=console(err=True), transient=True) as bar:
        task = bar.add_task("Verifying", total=total)
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            if done % _STEP == 0:
                bar.update(task, completed=done)

        yield advance
