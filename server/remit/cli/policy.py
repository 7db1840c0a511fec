"""`remit policy`: is it sound, what does it say about one call, and what would another one change?

The group, and the check of the policy alone; each other family of commands has a module of its own.
"""

from __future__ import annotations

from pathlib import Path

import click

from remit.cli.options import config_option, json_option, print_json
from remit.cli.policy_can import can, who_can
from remit.cli.policy_compare import diff, replay
from remit.cli.policy_context import context
from remit.cli.policy_explain import explain
from remit.cli.policy_graph import graph
from remit.cli.policy_shadow import shadow
from remit.cli.policy_test import test
from remit.cli.policy_versions import activate, push, rollback, show, versions


@click.group()
def policy() -> None:
    """Ask the policy, test it, try another one, and roll it out."""


@policy.command()
@config_option
@json_option
def check(config_path: Path, as_json: bool) -> int:
    """Check the policy alone: every row, and the rows together. Exits with 1 when it is refused.

    `remit check` also holds it against the tools that the sources offer.
    """
    from remit.cli.check import policy_findings
    from remit.cli.output import report
    from remit.config_file import load

    found, findings = policy_findings(load(config_path).config, None)
    problems = [finding for finding in findings if not finding.warning]
    warnings = [finding for finding in findings if finding.warning]
    version = found.version if found else None
    if as_json:
        print_json({"version": version, "problems": problems, "warnings": warnings})
    else:
        for warning in warnings:
            click.echo(warning)
        report(problems, f"The policy is sound: version {(version or '')[:12]}.")
    return 1 if problems else 0


for command in (can, who_can, context, explain, test, diff, replay, shadow, graph):
    policy.add_command(command)
for command in (push, versions, show, activate, rollback):
    policy.add_command(command)
