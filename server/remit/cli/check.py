"""`remit check`: everything that can be known to be wrong before agents find out, and what is exported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click

from remit.cli.options import config_option, json_option, print_json

if TYPE_CHECKING:
    import remit_rbac
    from remit import config_problems
    from remit.catalog import Catalog
    from remit.cli.exported import ExportedTool
    from remit.config import Config
    from remit.config_file import Loaded
    from remit_rbac import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something to mend, or with `warning` to look at."""

    #: Where, what, and how to mend it.
    text: str
    file: str
    line: int | None
    warning: bool

    def __str__(self) -> str:
        return self.text


@click.command()
@config_option
@json_option
@click.option("--offline", is_flag=True, help="Connect to nothing: check the files alone.")
def check(config_path: Path, as_json: bool, offline: bool) -> int:
    """Check configuration, policy and sources; show what is exported.

    Connects to every source and calls nothing. Exits with 1 when anything is wrong; a warning is not.
    """
    from remit.cli.exported import shown
    from remit.cli.output import report

    findings, tools = _check(config_path, offline=offline)
    problems = [finding for finding in findings if not finding.warning]
    warnings = [finding for finding in findings if finding.warning]
    if as_json:
        print_json({"problems": problems, "warnings": warnings, "tools": tools})
    else:
        if tools:
            shown(tools, as_json=False)
        for warning in warnings:
            click.echo(warning)
        report(problems, "No problem found.")
    return 1 if problems else 0


def _check(config_path: Path, *, offline: bool) -> tuple[list[Finding], list[ExportedTool]]:
    from remit.cli.exported import ask, table
    from remit.config_file import load
    from remit.config_problems import ConfigError
    from remit.fit import misfits

    try:
        loaded = load(config_path)
    except ConfigError as error:
        return [_configured(problem) for problem in error.problems], []
    findings = [*_unanchored(loaded), *_unserved(loaded)]
    if offline:
        return findings + policy_findings(loaded.config, None)[1], []
    offered = anyio.run(ask, loaded)
    findings += [
        _configured(loaded.problem(("sources", name), why), warning=loaded.config.sources[name].optional)
        for name, why in offered.down.items()
    ]
    findings += [
        _configured(misfit.problem, warning=misfit.warning)
        for misfit in misfits(loaded, offered.catalog, absent=offered.down)
    ]
    policy, told = policy_findings(loaded.config, None if offered.down else offered.catalog)
    told += _idle_playbooks(loaded, policy) if policy else ()
    return findings + told, table(offered.catalog, loaded.config, policy)


def policy_findings(config: Config, catalog: Catalog | None) -> tuple[Policy | None, list[Finding]]:
    """The policy and what is wrong with it, held against the tools where all of them are known."""
    from remit.context_schema import misfits_of
    from remit.policies import load_policy
    from remit_rbac import PolicyError

    try:
        policy = load_policy(config)
    except PolicyError as error:
        return None, [_ruled(problem) for problem in error.problems]
    unfit = misfits_of(policy, config, catalog) if catalog else ()
    found = sorted((*policy.warnings, *unfit), key=lambda problem: (problem.file, problem.line))
    return policy, [*(_ruled(problem) for problem in found), *_tested(config, policy)]


def _unanchored(loaded: Loaded) -> Iterator[Finding]:
    """Why checkpoints of the log cannot be signed, or put where `audit.anchors` says."""
    from remit.anchors import unfit
    from remit.sealer import SealRefused, read_keys

    at = loaded.config.store.location
    try:
        read_keys(at)
    except SealRefused as refused:
        yield Finding(text=str(refused), file=loaded.shown, line=None, warning=False)
    for number, anchor in enumerate(loaded.config.audit.anchors):
        for field, message, warning in unfit(anchor, at):
            problem = loaded.problem(("audit", "anchors", number, *field.split(".")), message)
            yield _configured(problem, warning=warning)


def _unserved(loaded: Loaded) -> Iterator[Finding]:
    """Why no client could trust the line, whatever else is right."""
    if tls := loaded.config.http.tls:
        from remit.front.serving import unfit_tls

        if why := unfit_tls(tls):
            yield _configured(loaded.problem(("http", "tls"), why))


def _idle_playbooks(loaded: Loaded, policy: Policy) -> Iterator[Finding]:
    """Playbooks whose calls and undos the policy refuses, whatever they are."""
    for name, book in loaded.config.playbooks.items():
        who = book.runs_as
        if any(not step.stop for step in book.steps) and not policy.delegated(
            who.tenant, who.agent, who.user
        ):
            message = f"the policy lets {who.agent} do nothing for {who.user}, so calls and undos are refused"
            problem = loaded.problem(("playbooks", name, "as"), f"{message}; add a row of g3")
            yield _configured(problem, warning=True)


def _tested(config: Config, policy: Policy) -> list[Finding]:
    from remit.config_problems import ConfigError
    from remit.errors import RemitError
    from remit.policy_tests import must_pass

    try:
        must_pass(config, policy)
    except ConfigError as error:
        return [_configured(problem) for problem in error.problems]
    except RemitError as error:
        lines = str(error).splitlines()
        return [Finding(text=line, file=line.partition(":")[0], line=None, warning=False) for line in lines]
    return []


def _configured(problem: config_problems.Problem, *, warning: bool = False) -> Finding:
    text = f"warning: {problem}" if warning else str(problem)
    return Finding(text=text, file=problem.file, line=problem.line, warning=warning)


def _ruled(problem: remit_rbac.Problem) -> Finding:
    return Finding(
        text=str(problem), file=problem.file, line=problem.line, warning=problem.level == "warning"
    )
