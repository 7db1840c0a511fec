"""What the runner reads out of the results that a suite leaves. `run.py` itself runs the suites."""

import json
from pathlib import Path

from tests.conformance.run import Report, read_results


def left(folder: Path, scenario: str, *statuses: str) -> None:
    """Leave the results of one scenario in `folder`, as the suites do."""
    results = folder / f"server-{scenario}-2026-01-01T00-00-00-000Z"
    results.mkdir()
    checks = [
        {"id": f"check-{n}", "status": status, "errorMessage": "why"} for n, status in enumerate(statuses)
    ]
    (results / "checks.json").write_text(json.dumps(checks))


def report(folder: Path, *required: str, exit_code: int = 0) -> Report:
    scenarios = read_results(folder, required or None)
    return Report(suite="0.2", revision="2026-07-28", exit_code=exit_code, scenarios=scenarios)


def test_a_run_passes_when_every_required_scenario_does(tmp_path: Path) -> None:
    left(tmp_path, "tools-list", "SUCCESS", "WARNING", "INFO")
    left(tmp_path, "tasks-lifecycle", "FAILURE")
    assert report(tmp_path, "tools-list").ok


def test_a_failed_check_of_a_required_scenario_fails_the_run_and_is_named(tmp_path: Path) -> None:
    left(tmp_path, "tools-list", "SUCCESS", "FAILURE")
    failed = report(tmp_path, "tools-list")
    assert not failed.ok
    assert failed.scenarios[0].failures == ("check-1: why",)


def test_a_required_scenario_that_was_not_run_fails_the_run(tmp_path: Path) -> None:
    left(tmp_path, "tools-list", "SUCCESS")
    assert not report(tmp_path, "tools-list", "ping").ok


def test_without_a_requirement_set_every_scenario_is_required(tmp_path: Path) -> None:
    left(tmp_path, "tools-list", "SUCCESS")
    left(tmp_path, "ping", "FAILURE")
    assert not report(tmp_path).ok


def test_a_run_that_left_nothing_or_ended_badly_does_not_pass(tmp_path: Path) -> None:
    assert not report(tmp_path).ok
    left(tmp_path, "tools-list", "SUCCESS")
    assert not report(tmp_path, exit_code=1).ok
