"""`remit policy can` and `who-can`: how far may somebody go with a tool, and who may go how far?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from remit.cli import NoAnswer
from remit.cli.options import MOMENT, TOOL, USER, ZONE, config_option, json_option, print_json

if TYPE_CHECKING:
    from remit.asking import Asker, Supposed
    from remit.config_file import Loaded
    from remit_rbac import Policy, Question

T = TypeVar("T")
_EXIT = {"execute": 0, "approve": 1, "advise": 2, "deny": 3}


class _Answering(click.Command):
    """Its exit code is the answer, so that what fails needs another than other commands have."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.UsageError, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:  # also a bug: its exit code would be that of an answer
            raise NoAnswer from error


class _Object(click.ParamType[Mapping[str, Any]]):
    name = "JSON"

    def __init__(self, noun: str, example: str) -> None:
        self._said = f"{noun} a JSON object, for example '{example}'"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from remit.front.strict import Malformed, decode

        try:
            json.loads(value)  # it says where
            found = decode(value.encode())  # as strictly as a call is read
        except ValueError as error:
            self.fail(f"this is not JSON: {error}", param, ctx)
        except Malformed as refusal:
            self.fail(refusal.message, param, ctx)
        if not isinstance(found, dict):
            self.fail(self._said, param, ctx)
        return found  # pyright: ignore[reportUnknownVariableType] - JSON


def _supposing(command: Any) -> Any:
    """The options that describe the call in question."""
    for option in (
        click.option("--tenant", metavar="TENANT", help="By default the tenant of identity."),
        click.option("--at", "at_us", type=MOMENT, help=f"When the call is made; by default now. {ZONE}"),
        click.option(
            "--run",
            type=_Object("what a run has established is", '{"customer": "c1"}'),
            help="What rules see as r.ctx.run.",
        ),
        click.option(
            "--facts",
            type=_Object("facts are", '{"order": {"status": "paid"}}'),
            default="{}",
            help="What lookups would find: r.ctx.facts.",
        ),
        click.option(
            "--args",
            "arguments",
            type=_Object("arguments are", '{"amount": 5}'),
            default="{}",
            help="The arguments of the call.",
        ),
    ):
        command = option(command)
    return command


@click.command(cls=_Answering)
@config_option
@json_option
@_supposing
@click.option("--for", "user", type=USER, help="The user for whom an agent acts; needed when it has several.")
@click.argument("subject", metavar="SUBJECT")
@click.argument("tool", type=TOOL, metavar="TOOL")
def can(
    config_path: Path,
    as_json: bool,
    user: str | None,
    tenant: str | None,
    subject: str,
    tool: str,
    **given: Any,
) -> int:
    """Say how far SUBJECT may go with TOOL: Execute, Approve, Advise or Deny, and by which rows.

    SUBJECT is agent:ID, or user:ID for what the user alone may do. Connects to nothing, so the arguments
    are not held against the tool's schema, and lookups are not made: effect, price and way back are those of
    the configuration, facts those of --facts.

    Exits with 0 for execute, 1 for approve, 2 for advise, 3 for deny; with 78 when it cannot be said, such as
    for a policy that is refused.
    """
    from remit.cli.acting import AGENT, sole_user
    from remit.cli.output import facts

    loaded, rules, asker, where = _opened(config_path, tenant)
    if subject.startswith("agent:"):
        agent, user, decide = subject, user or sole_user(rules, where, subject), _agent_can
    elif subject.startswith("user:"):
        agent, user, decide = AGENT, subject, _user_can
    else:
        raise click.BadParameter("write agent:ID or user:ID", param_hint="SUBJECT")
    told = _posed(decide, asker, _supposed(loaded, tenant=where, agent=agent, user=user, tool=tool, **given))
    if as_json:
        print_json(told)
    else:
        facts(told["verdict"].capitalize(), _told(told))
    return _EXIT[told["verdict"]]


@click.command("who-can")
@config_option
@json_option
@_supposing
@click.option(
    "--action",
    type=click.Choice(["execute", "recommend", "advise", "approve", "undo", "list"]),
    help="Ask who may do this to it, each agent and user alone.",
)
@click.argument("tool", type=TOOL, metavar="TOOL")
def who_can(
    config_path: Path, as_json: bool, tenant: str | None, action: str | None, tool: str, **given: Any
) -> int:
    """List who may go how far with TOOL: every agent with every user for whom it acts, and by which rows.

    Those who may not go anywhere are left out. A row for a pattern such as user:* may let in more people than
    the policy names; it is told apart. Exits with 1 when nobody can.
    """
    from remit.cli.output import listing

    loaded, rules, asker, where = _opened(config_path, tenant)
    subjects = rules.subjects(where)

    def supposed(agent: str, user: str) -> Supposed:
        return _supposed(loaded, tenant=where, agent=agent, user=user, tool=tool, **given)

    if action:
        names = [(agent, agent, "user:nobody") for agent in subjects.agents]
        names += [(user, "agent:nobody", user) for user in subjects.users]
        asked = [
            _may(rules, _posed(_question, asker, supposed(agent, user)), subject, action)
            for subject, agent, user in names
        ]
        found = [told for told in asked if told["verdict"] == "allow"]
    else:
        asked = [
            _posed(_agent_can, asker, supposed(agent, user))
            for agent in subjects.agents
            for user in subjects.users
            if rules.delegated(where, agent, user)
        ]
        found = [told for told in asked if told["verdict"] != "deny"]
    patterns = _patterns(rules, where, tool, action)
    if as_json:
        print_json({"tool": tool, "tenant": where, "who": found, "patterns": patterns})
    else:
        listing(
            found,
            {
                "who": lambda each: each["subject"],
                "may": lambda each: ", ".join((action or each["verdict"], *each["duties"])),
                "limited by": lambda each: each.get("limited_by", "").replace("none", ""),
                "row": lambda each: "\n".join(each["rows"]),
            },
            as_json=False,
            none="Nobody whom the policy names.",
        )
        for row in patterns:
            click.echo(f"also, for names that the policy need not list: {row}")
    return 0 if found or patterns else 1


def _opened(config_path: Path, tenant: str | None) -> tuple[Loaded, Policy, Asker, str]:
    from remit.asking import Asker
    from remit.cli.acting import tenant_of
    from remit.config_file import load
    from remit.policies import load_policy

    loaded = load(config_path)
    rules = load_policy(loaded.config)
    return loaded, rules, Asker(loaded.config, rules), tenant_of(loaded, tenant)


def _supposed(loaded: Loaded, *, at_us: int | None, **given: Any) -> Supposed:
    from remit.asking import Supposed
    from remit.ids import now_us

    return Supposed(at_us=at_us if at_us is not None else now_us(), **given)


def _posed(ask: Callable[[Asker, Supposed], T], asker: Asker, supposed: Supposed) -> T:
    """What is asked wrongly is wrong use of the command."""
    from remit.asking import NoQuestion

    try:
        return ask(asker, supposed)
    except NoQuestion as error:
        raise click.UsageError(str(error)) from None


def _question(asker: Asker, supposed: Supposed) -> Question:
    return asker.question(supposed)


def _agent_can(asker: Asker, supposed: Supposed) -> dict[str, Any]:
    """What the gateway would decide, with what would have had to be different."""
    from remit_rbac.explain import near_misses

    answered = asker.ask(supposed)
    if answered.code == "no_price":
        raise click.UsageError("--args does not give what the price of this tool is computed from")
    decision = answered.decision
    return {
        "subject": f"{supposed.agent} for {supposed.user}",
        "agent": supposed.agent,
        "user": supposed.user,
        "tool": supposed.tool,
        "verdict": answered.rung.name.lower(),
        "code": answered.code,
        "limited_by": decision.limited_by,
        "rows": [str(row) for row in decision.rows],
        "errors": [f"{error.row}: {error.message}" for error in decision.errors],
        "duties": [str(duty) for duty in decision.duties],
        "approvers": list(answered.approvers),
        "missing": [str(miss) for miss in near_misses(asker.policy, answered.question, count_max=3)],
    }


def _user_can(asker: Asker, supposed: Supposed) -> dict[str, Any]:
    """What the user alone may do: an agent that acts for them gets no further."""
    from remit_rbac import Rung
    from remit_rbac.decisions import LADDER

    question = asker.question(supposed)
    answers = [(rung, _may(asker.policy, question, supposed.user, action)) for rung, action in LADDER]
    granted = next(((rung, told) for rung, told in answers if told["verdict"] == "allow"), None)
    rung, deciding = granted or (Rung.DENY, answers[0][1])
    return {
        "subject": supposed.user,
        "tool": supposed.tool,
        "verdict": rung.name.lower(),
        "rows": deciding["rows"],
        "errors": [error for _, told in answers for error in told["errors"]],
        "may": [
            ", ".join((action, *told["duties"]))
            for action in ("approve", "undo")
            if (told := _may(asker.policy, question, supposed.user, action))["verdict"] == "allow"
        ],
    }


def _may(rules: Policy, question: Question, subject: str, action: str) -> dict[str, Any]:
    # Who is asked here did not ask for the call.
    context = {**question.ctx, "in_chain": 0} if action == "approve" else question.ctx
    answer = rules.allowed(subject, question.tenant, question.tool, action, question.args, context)
    return {
        "subject": subject,
        "tool": question.tool,
        "verdict": "allow" if answer.allowed else "deny",
        "duties": [str(duty) for duty in answer.duties],
        "rows": [str(row) for row in answer.rows],
        "errors": [f"{error.row}: {error.message}" for error in answer.errors],
    }


def _patterns(rules: Policy, tenant: str, tool: str, action: str | None) -> list[str]:
    """The rows that allow it to whoever fits a pattern, whatever their conditions say."""
    acts = [action] if action else ["execute", "recommend", "advise"]
    found = [
        rule
        for act in acts
        for rule in rules.rows_for({"sub": "", "dom": tenant, "tool": tool, "act": act}, ignoring=("sub",))
        if rule.values[5] == "allow" and "*" in rule.values[0]
    ]
    return list(dict.fromkeys(str(rule.row) for rule in found))


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
