"""The reference of the command line: `python -m remit.cli.reference > docs/cli.md` writes it."""

from __future__ import annotations

from collections.abc import Iterator

import click

from remit.cli import SECTIONS, cli

_WIDTH = 78
_BEGINNING = """\
# The command line

Written from the commands' own help by `python -m remit.cli.reference`.

Every command reads the configuration that `--config` names, or the environment's `REMIT_CONFIG`, or else
`remit.yaml` in the current folder. Commands that list or show something print a table for people, and with
`--json` one line of JSON for programs. An id may be shortened as long as no other begins so. The script that
`remit completion bash` (or `zsh`, `fish`) prints lets the shell complete commands, options and ids.

Commands that only read (`calls`, `approvals list`, `budget`, `audit`, `switch list`) open the audit database
read-only and work beside a running server. Those that act record who acted: `--as`, or `identity.cli.user` of
the configuration. What agents and sources wrote is escaped, so it can neither hide anything nor move the
cursor.

| exit code | meaning |
|---|---|
| 0 | yes, or done |
| 1 | no, or something was found to be wrong, or it failed; a sentence on stderr says what |
| 64 | the command was used wrongly; nothing was done |
| 130 | interrupted |

`remit policy can` has its own: 0 execute, 1 approve, 2 advise, 3 deny, and 78 when it cannot be said, as
for a policy that is refused or cannot be read.
"""


def text() -> str:
    """The whole reference, as Markdown."""
    parts = [_BEGINNING]
    for section, names in SECTIONS.items():
        parts.append(f"## {section}\n")
        for name in names:
            for path, help_ in pages(name):
                parts.append(f"### {path}\n\n```text\n{help_}\n```\n")
    return "\n".join(parts)


def pages(name: str) -> Iterator[tuple[str, str]]:
    """The help of one command and of all below it, as (`remit calls list`, its `--help`)."""
    root = click.Context(cli, info_name="remit", terminal_width=_WIDTH, **cli.context_settings)
    command = cli.get_command(root, name)
    assert command is not None  # noqa: S101 - the name is one of ours
    yield from _pages(command, click.Context(command, info_name=name, parent=root))


def _pages(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _pages(inner, click.Context(inner, info_name=name, parent=context))


if __name__ == "__main__":
    click.echo(text(), nl=False)
