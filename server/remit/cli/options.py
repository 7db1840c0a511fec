"""What commands share: which configuration, which record, since when, as whom, and for whose eyes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from remit.records import Records

#: More lines than anybody reads, and fewer than a database cannot count.
ROWS_MAX = 1_000_000_000
#: For the help of options that take a time.
ZONE = "A time without a zone is in the one of this machine (TZ)."
config_option = click.option(
    "--config",
    "-c",
    "config_path",
    type=click.Path(path_type=Path),
    envvar="REMIT_CONFIG",
    default="remit.yaml",
    show_default=True,
    help="The configuration file (or REMIT_CONFIG).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
limit_option = click.option(
    "--limit",
    "-n",
    default=50,
    show_default=True,
    type=click.IntRange(1, ROWS_MAX),
    help="At most so many, the newest.",
)
_DURATION = re.compile(r"(\d{1,6})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
#: The years of which every moment is one in any zone.
_YEARS = range(2, 9999)
_FIRST_US = int(datetime(_YEARS[0], 1, 1, tzinfo=UTC).timestamp() * 1_000_000)


class _Name(click.ParamType[str]):
    """The name of an agent or user, as policies write it."""

    def __init__(self, kind: str) -> None:
        self.name = f"{kind}:ID"
        self._kind = kind
        self._form = re.compile(rf"{kind}:[A-Za-z0-9_.@-]{{1,128}}")

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not self._form.fullmatch(value):
            meant = f"{self._kind}:{value}"
            hint = f"; write {meant}" if self._form.fullmatch(meant) else ""
            self.fail(f"{value!r} is not of the form {self.name}{hint}", param, ctx)
        return value


class _Moment(click.ParamType[int]):
    """A date and time; without a zone in the one of this machine. Gives microseconds since 1970."""

    name = "TIME"
    _forms = "write a time as 2026-01-31T09:00 or 2026-01-31T09:00:00+01:00"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail(self._forms, param, ctx)
        if at.year not in _YEARS:
            self._fail_too_far_off(value, param, ctx)
        return int(at.timestamp() * 1_000_000)

    def _fail_too_far_off(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> NoReturn:
        years = f"{_YEARS[0]:04} to {_YEARS[-1]}"
        self.fail(f"{value} is too far off: a time can be in the years {years}", param, ctx)


class _Since(_Moment):
    """A moment in the past: so long ago, or a date and time. Gives microseconds since 1970."""

    _forms = "say 30s, 15m, 24h or 7d for so long ago, or a time as 2026-01-31T09:00"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from remit.ids import now_us

        if match := _DURATION.fullmatch(value):
            at_us = now_us() - int(match[1]) * _SECONDS[match[2]] * 1_000_000
            return at_us if at_us >= _FIRST_US else self._fail_too_far_off(value, param, ctx)
        return super().convert(value, param, ctx)


class _Text(click.ParamType[str]):
    """What can be recorded and looked for. Words of a command line are any bytes."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if any("\ud800" <= sign <= "\udfff" for sign in value):
            self.fail(f"{value!r} is not text in UTF-8", param, ctx)
        return value


class _Words(_Text):
    """Something that somebody must have to say: not nothing."""

    name = "TEXT"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value.strip():
            self.fail("it says nothing", param, ctx)
        return super().convert(value, param, ctx)


class _Recorded(_Text):
    """Something the audit database knows, completed from there."""

    def __init__(self, name: str, known: Callable[[Records], Iterable[tuple[str, str]]]) -> None:
        self.name = name
        self._known = known

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from remit.errors import RemitError

        try:
            with records(ctx.params.get("config_path") or Path("remit.yaml")) as found:
                return [
                    CompletionItem(value, help=text)
                    for value, text in self._known(found)
                    if value.startswith(incomplete)
                ]
        except RemitError:
            return []


def _calls(state: str | None = None) -> Callable[[Records], Iterable[tuple[str, str]]]:
    def known(found: Records) -> Iterable[tuple[str, str]]:
        from remit.records import CallQuery

        newest = found.calls(CallQuery(state=state), limit=50)
        return [(call.id, f"{call.tool} {call.state}") for call in newest]

    return known


def _open_approvals(found: Records) -> Iterable[tuple[str, str]]:
    return [(each.id, each.tool) for each in found.approvals(states=("pending",), limit=50)]


AGENT = _Name("agent")
USER = _Name("user")
MOMENT = _Moment()
SINCE = _Since()
TEXT = _Text()
WORDS = _Words()
#: An id, or enough of its beginning.
CALL = _Recorded("CALL", _calls())
CALL_DONE = _Recorded("CALL", _calls("succeeded"))
CALL_IN_DOUBT = _Recorded("CALL", _calls("in_doubt"))
APPROVAL = _Recorded("APPROVAL", _open_approvals)
POLICY_VERSION = _Recorded(
    "VERSION", lambda found: [(each.id[:12], each.note) for each in found.policy_versions()]
)
TOOL = _Recorded("TOOL", lambda found: [(name, "") for name in found.tools()])

as_option = click.option(
    "--as", "as_user", type=USER, help="Who you are, instead of identity.cli.user of the configuration."
)


def must_be_in_order(begin: str, begin_us: int | None, end: str, end_us: int | None) -> None:
    """Raise UsageError for a time that ends before it begins, said by two options of these names."""
    if begin_us is not None and end_us is not None and begin_us >= end_us:
        raise click.UsageError(f"{begin} must be before {end}")


@contextmanager
def records(config_path: Path) -> Generator[Records]:
    """The records of the Remit that this configuration describes."""
    from remit.config_file import load
    from remit.records import open_records

    loaded = load(config_path)
    with open_records(loaded.config.store.location, loaded.master_key) as found:
        if found.lags:
            click.echo("remit: what was recorded last is not shown (remit audit verify says why)", err=True)
        yield found


def must_be_known(found: Records, tenant: str | None, config_path: Path | None) -> None:
    """Raise RemitError for a tenant that nobody knows: nothing about it would look as if all were well.

    Without a configuration the record alone tells which there are.
    """
    from remit.config_file import load
    from remit.errors import RemitError
    from remit.policies import load_policy

    if tenant is None or found.tells_of(tenant):
        return
    why = f"nothing is on record of a tenant {tenant}"
    if config_path is None:
        raise RemitError(why)
    if tenant not in (known := load_policy(load(config_path).config).tenants):
        raise RemitError(f"{why}, and the policy names none: there are {', '.join(known)}")


def asks(*, as_json: bool, yes: bool, instead: str = "") -> bool:
    """Whether to ask before it is done. Raises UsageError where nobody can answer, and --yes was not said."""
    if yes:
        return False
    if as_json or not sys.stdin.isatty():
        why = "with --json" if as_json else "without a terminal"
        raise click.UsageError(f"{why} nobody can be asked: say {instead}--yes to go through with it")
    return True


def print_json(value: Any) -> None:
    """One line of JSON on stdout; dataclasses as objects."""
    click.echo(json.dumps(value, default=_fields))


def _fields(value: Any) -> dict[str, Any]:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
