"""`remit completion`: the script by which a shell completes commands, options and ids."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: eval "$(remit completion bash)" in ~/.bashrc
    zsh:  eval "$(remit completion zsh)" in ~/.zshrc
    fish: remit completion fish > ~/.config/fish/completions/remit.fish
    """
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - click has all three
    click.echo(found(ctx.find_root().command, {}, "remit", "_REMIT_COMPLETE").source())
