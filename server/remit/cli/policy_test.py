"""`remit policy test`: does the policy do what its owners wrote down, and which rows does nobody try?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remit.cli.options import config_option, json_option, print_json

if TYPE_CHECKING:
    from remit.policy_tests import Outcome, Report


@click.command()
@config_option
@json_option
@click.option(
    "--min-coverage",
    type=click.IntRange(0, 100),
    metavar="PERCENT",
    help="Fail when fewer of the policy's rows made a difference to some case.",
)
@click.option("--verbose", "-v", is_flag=True, help="Print the cases that passed, too.")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE...]")
def test(
    config_path: Path, as_json: bool, min_coverage: int | None, verbose: bool, files: tuple[Path, ...]
) -> int:
    """Run the policy tests in FILE..., or those of `policy.tests`: calls, and what must become of them.

    Says of each case that fails what differed and which rows decided, and of the policy which rows no case
    made use of. Connects to nothing. Exits with 1 when a case fails, or too few rows are covered.
    """
    from remit.config_file import load
    from remit.policies import load_policy
    from remit.policy_tests import Report, coverage, read_tests, run

    config = load(config_path).config
    files = files or config.policy.tests
    if not files:
        raise click.UsageError("say which FILE, or name them in policy.tests of the configuration")
    policy = load_policy(config)
    tests = [test for file in files for test in read_tests(file, config)]
    outcomes: list[Outcome] = []
    used = set[Any]()
    for outcome, rows in run(tests, config, policy):
        outcomes.append(outcome)
        used |= rows
    report = Report(outcomes=tuple(outcomes), coverage=coverage(policy, used))
    enough = min_coverage is None or report.coverage.percent >= min_coverage
    if as_json:
        print_json(_as_json(report))
    else:
        for line in _told(report, verbose=verbose):
            click.echo(line)
        if not enough:
            click.echo(f"Coverage is below {min_coverage} %.")
    return 1 if report.failed or not enough else 0


def _told(report: Report, *, verbose: bool) -> Iterator[str]:
    from remit.escaping import escaped

    for outcome in report.outcomes:
        test = outcome.test
        if outcome.passed:
            if verbose:
                yield escaped(f"passed {test.name}")
            continue
        yield escaped(f"FAILED {test.name} ({test.file}:{test.line})")
        yield from (escaped(f"    {difference}") for difference in outcome.differences)
        if outcome.code:
            yield f"    why: {outcome.code}"
        yield from (escaped(f"    row: {row}") for row in outcome.rows)
    covered = report.coverage
    if covered.unused:
        yield "Rows that no case made use of:"
        yield from (escaped(f"    {each.row} ({each.why})") for each in covered.unused)
    passed, failed = len(report.outcomes) - len(report.failed), len(report.failed)
    used = covered.rows - len(covered.unused)
    yield f"{passed} passed, {failed} failed. Coverage: {used} of {covered.rows} rows, {covered.percent} %."


def _as_json(report: Report) -> dict[str, Any]:
    covered = report.coverage
    return {
        "passed": len(report.outcomes) - len(report.failed),
        "failed": len(report.failed),
        "cases": [
            {
                "name": outcome.test.name,
                "file": outcome.test.file,
                "line": outcome.test.line,
                "passed": outcome.passed,
                "differences": outcome.differences,
                "verdict": outcome.verdict,
                "code": outcome.code,
                "approvers": outcome.approvers,
                "duties": outcome.duties,
                "rows": outcome.rows,
            }
            for outcome in report.outcomes
        ],
        "coverage": {
            "rows": covered.rows,
            "percent": covered.percent,
            "unused": [
                {"file": each.row.file, "line": each.row.line, "text": each.row.text, "why": each.why}
                for each in covered.unused
            ],
        },
    }
