"""How answers look: tables and facts for people, JSON for programs. What others wrote is escaped."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from remit.cli.options import print_json
from remit.escaping import escaped, escaped_json
from remit.records import Vote

T = TypeVar("T")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Wide enough that nothing is cut where no terminal sets a limit.
_PIPE_WIDTH = 240
_VALUE_MAX = 4_000
_FINDINGS_MAX = 20
_STYLES = {
    **dict.fromkeys(("execute", "succeeded", "approved", "done", "ready", "up"), "green"),
    **dict.fromkeys(("approve", "advise", "awaiting_approval", "pending", "running", "dispatched"), "yellow"),
    **dict.fromkeys(("deny", "denied", "failed", "rejected", "conflict", "error"), "red"),
    **dict.fromkeys(("in_doubt", "indeterminate"), "bold magenta"),
}


def console(*, err: bool = False) -> Console:
    """Where to print: no markup is read from any text, and a pipe is as wide as it needs to be."""
    wide = not (sys.stderr if err else sys.stdout).isatty()
    return Console(
        stderr=err, markup=False, highlight=False, emoji=False, width=_PIPE_WIDTH if wide else None
    )


def listing(
    rows: Sequence[T], columns: Mapping[str, Callable[[T], object]], *, as_json: bool, none: str
) -> None:
    """Rows as a table, or as a JSON array of all their fields; `none` is said when there are none."""
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo(none)
    else:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in columns:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(cell(value(row)) for value in columns.values()))
        _print(table)


def facts(title: str, pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values below a title; a value that is None is left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None:
            table.add_row(name, cell(value))
    _print(Group(Text(escaped(title), style="bold"), table))


def _print(what: RenderableType) -> None:
    to = console()
    with to.capture() as captured:
        to.print(what)
    # A table pads its last column: nobody wants that in a file.
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n"))


def report(findings: Sequence[object], fine: str) -> None:
    """What was found to be wrong, the first of it in full; or one line that says that all is well."""
    if not findings:
        click.echo(fine)
        return
    for finding in findings[:_FINDINGS_MAX]:
        click.echo(escaped(str(finding), lines=True))
    click.echo(
        f"{len(findings)} found."
        + (f" These are the first {_FINDINGS_MAX}." if len(findings) > _FINDINGS_MAX else "")
    )


def cell(value: object) -> Text:
    """One value as it may be shown: known words have their colour, everything else is escaped."""
    if isinstance(value, Text):
        return value
    text = "" if value is None else str(value)
    return Text(escaped(text, lines=True), style=_STYLES.get(text, ""))


def as_json_text(value: Any) -> Text:
    """A JSON value in full for one screen; what is longer is cut, and says so."""
    text = escaped_json(value, indent=2)
    if len(text) > _VALUE_MAX:
        text = f"{text[:_VALUE_MAX]}\n… {len(text) - _VALUE_MAX} characters more (--json shows all)"
    return Text(text)


def when(at_us: int | None) -> str:
    """A moment in UTC, to the second."""
    return (
        (_EPOCH + timedelta(microseconds=at_us)).strftime("%Y-%m-%d %H:%M:%SZ") if at_us is not None else ""
    )


def exactly(at_us: int | None) -> str | None:
    """A moment in UTC, to the millisecond."""
    if at_us is None:
        return None
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat(sep=" ", timespec="milliseconds")[:-6] + "Z"


def until(at_us: int, now_us: int) -> str:
    """How far away a moment is."""
    length = span(abs(at_us - now_us) // 1_000_000)
    return f"in {length}" if at_us >= now_us else f"{length} ago"


def span(seconds: int) -> str:
    """A length of time in the largest unit that keeps two figures or is exact."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 10 * size or (seconds and seconds % size == 0):
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def short(identifier: str | None) -> str:
    """The beginning of an id: enough to name it here again."""
    return identifier[:18] if identifier else ""


def voted(vote: Vote) -> str:
    return f"{vote.user}: {vote.vote} at {exactly(vote.at_us)}" + (
        f", {vote.comment}" if vote.comment else ""
    )


def _unshown(_steps: int = 1) -> None: ...


@contextmanager
def progress(title: str, total: int, *, every: int = 1) -> Generator[Callable[..., None]]:
    """A bar on a terminal, nothing on a pipe; yields what to call for each step, or with how many.

    It moves once for `every` so many: moving costs more than a step that waits for nobody.
    """
    if not sys.stderr.isatty():
        yield _unshown
        return
    from rich.progress import Progress

    with Progress(console=console(err=True), transient=True) as bar:
        task, done, shown = bar.add_task(title, total=total), 0, 0

        def advance(steps: int = 1) -> None:
            nonlocal done, shown
            done += steps
            if done - shown >= every:
                shown = done
                bar.update(task, completed=done)

        yield advance


@contextmanager
def to_file(output: Path | None) -> Generator[Callable[[str], object]]:
    """What writes to a new file for its owner's eyes only, or to stdout. What fails leaves no file behind."""
    if output is None:
        yield sys.stdout.write
        sys.stdout.flush()
        return
    with told_if_unwritable(output):
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                yield file.write
        except BaseException:
            output.unlink()
            raise


@contextmanager
def told_if_unwritable(file: Path) -> Generator[None]:
    """Say why the file cannot be written, in a sentence."""
    try:
        yield
    except OSError as error:
        raise click.FileError(str(file), (error.strerror or "cannot be written").lower()) from None
