"""`remit budget`: what may still be spent, and whether every balance is the sum of what was held."""

from __future__ import annotations

from pathlib import Path

import click

from remit.cli.options import config_option, json_option, print_json, records


@click.group()
def budget() -> None:
    """What may still be spent."""


@budget.command()
@config_option
@json_option
@click.option("--all", "every", is_flag=True, help="Every window, not only the newest of each account.")
def show(config_path: Path, as_json: bool, every: bool) -> None:
    """Show each account: its limit, what is held and spent, what is left.

    An account is there once something was spent on it; its limit is that of the configuration then.
    """
    from remit.cli.output import listing, when

    with records(config_path) as found:
        rows = found.accounts(every_window=every)
    listing(
        rows,
        {
            "account": lambda row: row.id,
            "since": lambda row: when(row.window_start_us) if row.window_start_us else "",
            "limit": lambda row: row.limit_amount,
            "held": lambda row: row.held,
            "spent": lambda row: row.posted - row.refunded,
            "left": lambda row: row.left,
            "overrun": lambda row: row.overrun or "",
        },
        as_json=as_json,
        none="Nothing was spent yet.",
    )


@budget.command()
@config_option
@json_option
def verify(config_path: Path, as_json: bool) -> int:
    """Derive every balance again from holds and adjustments. Exits with 1 when one differs."""
    from remit.audit import verify_balances
    from remit.cli.output import report

    with records(config_path) as found:
        accounts = len(found.accounts(every_window=True))
        findings = list(verify_balances(found))
    if as_json:
        print_json({"accounts": accounts, "findings": findings})
    else:
        report(findings, f"{accounts} balances are the sums of their holds and adjustments.")
    return 1 if findings else 0
