"""Run the official MCP conformance suites against Remit, and against what it is measured by.

    python -m tests.conformance.run [--target remit|passthrough|direct] [--suite 0.1|0.2] [--json]

`direct` is our fixture server alone, `passthrough` a bare proxy in front of it, `remit` the gateway in front
of it. Suite 0.1 knows the 2025 revisions only; suite 0.2 runs the frozen requirement sets of 2025-11-25 and
2026-07-28, each on its own wire. Exit code 0 when every required scenario passes, 1 when one fails, 2 when
Node cannot be had. Details of each check are left in `out/conformance`.

What the suites ask of a gateway, and where one easily fails, is told in README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.conformance.node import NodeMissing, modules, node
from tests.interop.running import (
    REPOSITORY,
    DidNotStart,
    Server,
    fixture_server,
    passthrough_in_front_of,
    remit_in_front_of,
    transparent,
)

RESULTS = REPOSITORY / "out" / "conformance"
AUTHORIZE = Path(__file__).with_name("authorize.mjs")
SUITE_TIMEOUT_S = 600

# Suite and revision; suite 0.1 has no requirement sets and runs all that it calls active.
RUNS = (("0.1", ""), ("0.2", "2025-11-25"), ("0.2", "2026-07-28"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    name: str
    required: bool
    passed: int
    #: One line for each check that failed.
    failures: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    suite: str
    revision: str
    #: The suite's own verdict.
    exit_code: int
    scenarios: tuple[Scenario, ...]

    @property
    def ok(self) -> bool:
        """Every required scenario passed, there was one, and the suite says so too."""
        failures = [scenario.failures for scenario in self.scenarios if scenario.required]
        return self.exit_code == 0 and bool(failures) and not any(failures)


@contextmanager
def target(name: str, folder: Path) -> Iterator[Server]:
    with fixture_server(folder) as source:
        if name == "direct":
            yield source
        elif name == "passthrough":
            with passthrough_in_front_of(source, folder) as server:
                yield server
        else:
            with remit_in_front_of({"fixture": transparent(source)}, folder) as server:
                yield server


def run_suite(server: Server, suite: str, revision: str, folder: Path) -> Report:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    package = modules("conformance") / f"conformance-{suite}"
    command = [node()]
    environment = dict(os.environ)
    if server.key:
        command += ["--import", str(AUTHORIZE)]
        environment["CONFORMANCE_AUTHORIZATION"] = f"Bearer {server.key}"
    command += [str(package / "dist/index.js"), "server", "--url", server.url, "-o", str(folder)]
    if revision:
        command += ["--requirements", revision]
    with (folder / "output.txt").open("w") as output:
        done = subprocess.run(
            command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=SUITE_TIMEOUT_S,
            check=False,
        )
    required = None
    if revision:
        required = yaml.safe_load((package / f"requirements/{revision}.yaml").read_text())["server"]
    return Report(
        suite=suite, revision=revision, exit_code=done.returncode, scenarios=read_results(folder, required)
    )


def read_results(folder: Path, required: Sequence[str] | None) -> tuple[Scenario, ...]:
    """What a suite left in `folder`; everything in it is required when no set of names says what is."""
    found = {
        re.sub(r"^server-(.+)-\d{4}-\d\d-\d\dT.*$", r"\1", path.parent.name): path
        for path in folder.glob("*/checks.json")
    }
    scenarios = [
        read_scenario(name, required is None or name in required, path) for name, path in found.items()
    ]
    # A required scenario that left no result must not read as one that passed.
    scenarios += [
        Scenario(name=name, required=True, passed=0, failures=("it was not run",), warnings=())
        for name in required or ()
        if name not in found
    ]
    return tuple(sorted(scenarios, key=lambda scenario: scenario.name))


def read_scenario(name: str, required: bool, path: Path) -> Scenario:
    checks: list[dict[str, Any]] = json.loads(path.read_text())

    def told(status: str) -> tuple[str, ...]:
        return tuple(f"{c['id']}: {c.get('errorMessage')}" for c in checks if c["status"] == status)

    passed = sum(check["status"] == "SUCCESS" for check in checks)
    return Scenario(
        name=name, required=required, passed=passed, failures=told("FAILURE"), warnings=told("WARNING")
    )


def show(report: Report) -> None:
    required = [s for s in report.scenarios if s.required]
    other = [s for s in report.scenarios if not s.required]
    failed = sum(len(scenario.failures) for scenario in required)
    print(
        f"{'ok  ' if report.ok else 'FAIL'} suite {report.suite:4}{report.revision or 'active':12}"
        f" required {sum(not s.failures for s in required):2}/{len(required):2}"
        f"   other {sum(not s.failures for s in other):2}/{len(other):2}"
        f"   required checks {sum(s.passed for s in required):3} passed, {failed} failed"
    )
    for scenario in report.scenarios:
        for line in scenario.failures if scenario.required else ():
            print(f"       {scenario.name}: {line}")
        for line in scenario.warnings:
            print(f"       {scenario.name}: (should) {line}")
    if failing := [s.name for s in other if s.failures]:
        print(f"       not scored, failing: {', '.join(failing)}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance.run", description="MCP conformance suites."
    )
    parser.add_argument("--target", choices=("remit", "passthrough", "direct"), default="remit")
    parser.add_argument("--suite", choices=("0.1", "0.2"), help="default: both")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    arguments = parser.parse_args()
    suites = [run for run in RUNS if arguments.suite in (None, run[0])]
    reports: list[Report] = []
    try:
        node()
        modules("conformance")
        with tempfile.TemporaryDirectory() as folder, target(arguments.target, Path(folder)) as server:
            for suite, revision in suites:
                results = RESULTS / arguments.target / f"{suite}-{revision or 'active'}"
                reports.append(run_suite(server, suite, revision, results))
                if not arguments.json:
                    show(reports[-1])
    except NodeMissing as missing:
        print(missing, file=sys.stderr)
        return 2
    except DidNotStart as failure:
        print(failure, file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps([{**asdict(report), "ok": report.ok} for report in reports], indent=2))
    return 0 if all(report.ok for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
