"""`remit report`: what happened in some time, for an auditor, as one page."""

from __future__ import annotations

from pathlib import Path

import click

from remit.cli.options import (
    SINCE,
    ZONE,
    config_option,
    json_option,
    must_be_in_order,
    must_be_known,
    print_json,
    records,
)


@click.command()
@config_option
@json_option
@click.option("--from", "from_us", type=SINCE, required=True, help=f"Since then: 30d or 2026-01-31. {ZONE}")
@click.option("--to", "to_us", type=SINCE, help="Until then; by default now.")
@click.option("--tenant", metavar="TENANT", help="Of this tenant only.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="A new file, instead of stdout."
)
def report(
    config_path: Path,
    as_json: bool,
    from_us: int,
    to_us: int | None,
    tenant: str | None,
    output: Path | None,
) -> int:
    """Write a report for an auditor: an HTML page that loads nothing and can be printed.

    Counts calls, verdicts, approvals and by whom, overrides, incidents, undos and what was spent, and
    verifies the whole record meanwhile. Exits with 1 when that finds anything.
    """
    from remit import reporting
    from remit.cli.output import progress, to_file
    from remit.ids import now_us
    from remit.proofs import size_of

    now = now_us()
    to_us = now if to_us is None else to_us
    must_be_in_order("--from", from_us, "--to", to_us)
    with to_file(output) as write, records(config_path) as found:
        must_be_known(found, tenant, config_path)
        total = found.count("events") + found.count("calls") + size_of(found)
        with progress("Verifying", total, every=200) as advance:
            told = reporting.report(
                found,
                from_us=from_us,
                to_us=to_us,
                tenant=tenant,
                now_us=now,
                advance=advance,
            )
        if output or not as_json:
            write(reporting.page(told))
    if as_json:
        print_json(told)
    return 1 if told.findings else 0
