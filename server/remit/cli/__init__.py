"""The `remit` command. Each command's module is imported when it runs, so that starting stays fast.

Exit codes: 0 yes or done, 1 no or problems found, 64 wrong use; `policy can` has its own (0 to 3, and 78
where there is no answer).
A command returns its code (None is 0); what is expected to go wrong is raised and told here, once.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, cast

import click
from click.shell_completion import CompletionItem

WRONG_USE = 64
#: A command whose low codes are answers had none to give (EX_CONFIG of sysexits.h).
NO_ANSWER = 78
INTERRUPTED = 130

#: Section -> command -> where it lives and what it is for.
SECTIONS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "Start": {
        "serve": ("remit.cli.serve:serve", "Serve agents, over stdio or HTTP."),
        "check": (
            "remit.cli.check:check",
            "Check configuration, policy and sources; show what is exported.",
        ),
        "demo": ("remit.cli.demo:demo", "Watch an agent being governed, on an example that runs here."),
        "install": (
            "remit.cli.install:install",
            "Register Remit with a client that starts it over stdio.",
        ),
        "uninstall": ("remit.cli.install:uninstall", "Take the entry out of the client's file again."),
    },
    "Look": {
        "tools": ("remit.cli.tools:tools", "The tools that are exported."),
        "calls": ("remit.cli.calls:calls", "What agents called, and what became of it."),
        "budget": ("remit.cli.budget:budget", "What may still be spent."),
        "audit": (
            "remit.cli.audit:audit",
            "Verify, prove, export, keep and erase what is on record.",
        ),
        "report": (
            "remit.cli.report:report",
            "Write a report for an auditor: an HTML page that loads nothing and can be printed.",
        ),
    },
    "Decide": {
        "approvals": ("remit.cli.approvals:approvals", "Calls that wait for a person."),
        "undo": (
            "remit.cli.undo:undo",
            "Take a call back by its registered way.",
        ),
        "rollback": (
            "remit.cli.rollback:rollback",
            "Take many calls back, newest first, each by its registered way.",
        ),
        "playbook": (
            "remit.cli.playbook:playbook",
            "Recovery procedures that are written down in the configuration.",
        ),
        "doubt": ("remit.cli.doubt:doubt", "Calls of which nobody knows whether they took effect."),
        "switch": (
            "remit.cli.switch:switch",
            "The kill switch: what it covers stops, but for undoing.",
        ),
        "safe": ("remit.cli.switch:safe", "Safe mode: reads and undoing only, for everybody."),
    },
    "Manage": {
        "policy": ("remit.cli.policy:policy", "Ask the policy, test it, try another one, and roll it out."),
        "agents": ("remit.cli.agents:agents", "Agents and their API keys."),
        "db": ("remit.cli.db:db", "The audit database itself."),
        "completion": ("remit.cli.completion:completion", "Print the completion script of a shell."),
    },
}
_COMMANDS = {name: entry for commands in SECTIONS.values() for name, entry in commands.items()}


class NoAnswer(Exception):
    """Whatever its cause is, it must not pass for one of the command's answers."""


class _Lazy(click.Group):
    """Knows its commands by name and purpose; a module is imported when its command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        return _of_text(getattr(importlib.import_module(module), name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from difflib import get_close_matches

        asked = args[0]
        # A shell that completes words asks with some that are no command yet.
        if asked not in _COMMANDS and not asked.startswith("-") and not ctx.resilient_parsing:
            near = " or ".join(f"`remit {name}`" for name in get_close_matches(asked, _COMMANDS))
            ctx.fail(f"No such command {asked!r}." + (f" Did you mean {near}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [
            CompletionItem(name, help=text)
            for name, (_, text) in _COMMANDS.items()
            if name.startswith(incomplete)
        ]


def _of_text(command: click.Command) -> click.Command:
    """The command, which takes words in UTF-8 alone, but for the names of files."""
    from remit.cli.options import TEXT

    for param in command.params:
        if param.type is click.STRING:
            param.type = TEXT
    if isinstance(command, click.Group):
        for each in command.commands.values():
            _of_text(each)
    return command


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="remit")
def cli() -> None:
    """Remit stands between AI agents and your tools: who may, how far, for how much, and back again."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit. Expected failures are plain sentences on stderr."""
    try:
        code: Any = cli.main(argv, prog_name="remit", standalone_mode=False)
        if sys.stdout:
            sys.stdout.flush()  # here, where it can still be told that it cannot be written
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the edge: what is a bug is raised again
        code = _tell(error)
    sys.exit(code if isinstance(code, int) else 0)


def _tell(error: Exception) -> int:
    """Tell a person what failed, and return the exit code; a bug is raised as it is."""
    from remit.errors import RemitError
    from remit.escaping import escaped
    from remit_rbac import PolicyError

    code = 1
    for leaf in _leaves(error):
        match leaf:
            case click.exceptions.Abort():
                code = INTERRUPTED
            case click.UsageError():
                leaf.show()
                code = WRONG_USE
            case NoAnswer():
                try:
                    _tell(cast("Exception", leaf.__cause__))
                except Exception:  # noqa: BLE001 - the edge: a bug, with all that is known of it
                    traceback.print_exception(leaf.__cause__)
                code = NO_ANSWER
            case click.ClickException():
                leaf.show()
            case RemitError() | PolicyError():
                click.echo(f"remit: {escaped(str(leaf), lines=True)}", err=True)
            case OSError(errno=errno.EPIPE):
                _forget_unwritten()  # the reader has seen enough, as `head` does
            case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG, strerror=str(why)):
                _forget_unwritten()
                fix = "make room, and look at what was done before you do it again"
                where = f"{leaf.filename} cannot" if leaf.filename else "not all of this could"
                click.echo(f"remit: {where} be written: {why.lower()}: {fix}", err=True)
            case OSError(
                errno=errno.EACCES | errno.EPERM | errno.EROFS, filename=str(file), strerror=str(why)
            ):
                fix = "run this as the user whose file it is, or where you may read and write"
                click.echo(f"remit: {file}: {why.lower()}: {fix}", err=True)
            case _:
                raise error
    return code


def _forget_unwritten() -> None:
    """What is still to be printed and cannot be has nowhere to go: the end of the process would try again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(inner)
    else:
        yield error
