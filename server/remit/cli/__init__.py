"""The `remit` command. Each command's module is imported when it runs, so that starting stays fast.

Exit codes: 0 yes or done, 1 no or problems found, 2 needs approval (`policy can`), 64 and above wrong use.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

#: Command -> where it lives and what it is for.
_COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("remit.cli.serve:serve", "Serve agents, over stdio or HTTP."),
    "agents": ("remit.cli.agents:agents", "API keys of agents."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        return getattr(importlib.import_module(module), name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="remit")
def cli() -> None:
    """Remit stands between AI agents and your tools: who may, how far, for how much, and back again."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit. Expected failures are one plain sentence on stderr."""
    from remit.errors import RemitError

    try:
        code: Any = cli.main(argv, prog_name="remit", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(64)
    except click.exceptions.Abort:
        sys.exit(130)
    except RemitError as error:
        click.echo(f"remit: {error}", err=True)
        sys.exit(1)
    except BaseExceptionGroup as group:
        expected, rest = group.split(RemitError)
        if rest is not None or expected is None:
            raise
        for error in _leaves(expected):
            click.echo(f"remit: {error}", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]  # pyright: ignore[reportUnknownArgumentType] - the group's own type
    return leaves
