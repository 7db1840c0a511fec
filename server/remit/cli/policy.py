"""`remit policy`: is it sound, and what does it say about one call?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remit.cli.options import TOOL, USER, config_option, json_option, print_json

if TYPE_CHECKING:
    from remit.config import Config
    from remit.model import Call
    from remit_rbac import Answer, Policy

_EXIT = {"execute": 0, "approve": 1, "advise": 2, "deny": 3}


class _Arguments(click.ParamType[Mapping[str, Any]]):
    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            arguments = json.loads(value)
        except ValueError as error:
            self.fail(f"this is not JSON: {error}", param, ctx)
        if not isinstance(arguments, dict):
            self.fail("arguments are a JSON object, for example '{\"amount\": 5}'", param, ctx)
        return arguments  # pyright: ignore[reportUnknownVariableType] - JSON


@click.group()
def policy() -> None:
    """Ask the policy."""


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


@policy.command()
@config_option
@json_option
@click.option("--args", "arguments", type=_Arguments(), default="{}", help="The arguments of the call.")
@click.option("--for", "user", type=USER, help="The user for whom an agent acts; needed when it has several.")
@click.option("--tenant", metavar="TENANT", help="By default the tenant of identity.")
@click.argument("subject", metavar="SUBJECT")
@click.argument("tool", type=TOOL, metavar="TOOL")
def can(
    config_path: Path,
    as_json: bool,
    arguments: Mapping[str, Any],
    user: str | None,
    tenant: str | None,
    subject: str,
    tool: str,
) -> int:
    """Say how far SUBJECT may go with TOOL: Execute, Approve, Advise or Deny, and by which rows.

    SUBJECT is agent:ID, or user:ID for what the user alone may do. Connects to nothing, so the arguments
    are not held against the tool's schema; effect, price and way back are those of the configuration.
    Exits with 0 for execute, 1 for approve, 2 for advise, 3 for deny.
    """
    from remit.app import load_policy
    from remit.cli.acting import AGENT, sole_user, tenant_of
    from remit.cli.output import facts
    from remit.config_file import load

    loaded = load(config_path)
    rules = load_policy(loaded.config)
    where = tenant_of(loaded, tenant)
    if subject.startswith("agent:"):
        agent, user, decide = subject, user or sole_user(rules, where, subject), _agent_can
    elif subject.startswith("user:"):
        agent, user, decide = AGENT, subject, _user_can
    else:
        raise click.BadParameter("write agent:ID or user:ID", param_hint="SUBJECT")
    told = decide(_call(loaded.config, where, agent, user, tool, arguments), loaded.config, rules)
    if as_json:
        print_json(told)
    else:
        facts(told["verdict"].capitalize(), _told(told))
    return _EXIT[told["verdict"]]


def _agent_can(call: Call, config: Config, rules: Policy) -> dict[str, Any]:
    """What the gateway would decide, with what would have had to be different."""
    from remit_rbac import Question, Rung
    from remit_rbac.explain import near_misses

    who, context = call.principal, _context(call, config)
    question = Question(
        tenant=who.tenant,
        agent=who.agent,
        user=who.user,
        tool=call.tool.name,
        args=call.arguments,
        ctx=context,
    )
    decision = rules.decide(question)
    chain = (who.agent, who.user)
    approvers = rules.approvers(who.tenant, call.tool.name, call.arguments, context, exclude=chain)
    return {
        "subject": f"{who.agent} for {who.user}",
        "tool": call.tool.name,
        "verdict": decision.rung.name.lower(),
        "code": decision.code,
        "limited_by": decision.limited_by,
        "rows": [str(row) for row in decision.rows],
        "errors": [f"{error.row}: {error.message}" for error in decision.errors],
        "duties": [f"{duty.name}={duty.value}" if duty.value else duty.name for duty in decision.duties],
        "approvers": list(approvers) if decision.rung is Rung.APPROVE else [],
        "missing": [str(miss) for miss in near_misses(rules, question, count_max=3)],
    }


def _user_can(call: Call, config: Config, rules: Policy) -> dict[str, Any]:
    """What the user alone may do: an agent that acts for them gets no further."""
    from remit_rbac import Rung
    from remit_rbac.decisions import LADDER

    who, context = call.principal, _context(call, config)

    def may(action: str) -> Answer:
        return rules.allowed(who.user, who.tenant, call.tool.name, action, call.arguments, context)

    answers = [(rung, may(action)) for rung, action in LADDER]
    granted = next(((rung, answer) for rung, answer in answers if answer.allowed), None)
    deciding = granted[1] if granted else answers[0][1]
    rung = granted[0] if granted else Rung.DENY
    return {
        "subject": who.user,
        "tool": call.tool.name,
        "verdict": rung.name.lower(),
        "rows": [str(row) for row in deciding.rows],
        "errors": [f"{error.row}: {error.message}" for _, answer in answers for error in answer.errors],
        "may": [action for action in ("approve", "undo") if may(action).allowed],
    }


def _call(
    config: Config, tenant: str, agent: str, user: str, tool: str, arguments: Mapping[str, Any]
) -> Call:
    """The call in question, of a tool as the configuration alone knows it."""
    from remit.calls import new_call
    from remit.catalog import build, source_of
    from remit.identity import Principal
    from remit.ids import now_us
    from remit_adapters.base import Offer

    found = source_of(config, tool)
    if found is None:
        raise click.UsageError(f"no source exports {tool!r}: the sources are {', '.join(config.sources)}")
    source, own_name = found
    definition = {"name": own_name, "inputSchema": {"type": "object"}}
    known = build(config, {source: Offer(tools=(definition,))}).tools.get(tool)
    if known is None:
        raise click.UsageError(f"{tool!r} is not the name of a tool: use A-Z a-z 0-9 _ . -")
    try:
        principal = Principal(tenant=tenant, agent=agent, user=user, auth="local")
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return new_call(
        tool=known, arguments=arguments, principal=principal, run="default", secret=b"", at_us=now_us()
    )


def _context(call: Call, config: Config) -> Mapping[str, Any]:
    from remit.context import context_of
    from remit.pipeline import estimates_of
    from remit_rbac import EvaluationError

    try:
        estimates = estimates_of(call)
    except EvaluationError:
        raise click.UsageError("--args does not give what the price of this tool is computed from") from None
    return context_of(call, config, estimates, undo_ready=call.tool.undo is not None)


def _told(told: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    yield "who", told["subject"]
    yield "what", told["tool"]
    yield "why", told.get("code")
    yield "limited by", told["limited_by"] if told.get("limited_by") in ("agent", "user") else None
    for name, title in _LISTS.items():
        for text in told.get(name, ()):
            yield title, text


_LISTS = {
    "rows": "row",
    "errors": "not evaluated",
    "duties": "duty",
    "approvers": "may approve",
    "missing": "nearly",
    "may": "may also",
}
