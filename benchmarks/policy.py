"""How long one policy decision takes, and how that grows: `python -m benchmarks.policy [--quick] [--json]`.

The same rules and requests go to stock pycasbin, to Remit, and to those other engines that are installed
(cedarpy; the policy evaluator of agent-os-kernel). Times are CPU microseconds of this process, the median
over batches; compare numbers of one run only. Answers are compared too, so that no engine is fast by
answering something else. It writes nothing but its result.

    stock_us              casbin.Enforcer.enforce: one subject, one action
    remit_cold_us         the same question to Remit, for names that it has not met before
    remit_warm_us         the same question, for names that it has met
    remit_decide_cold_us  the whole decision (agent and user, every rung, delegation, duties), new names
    remit_decide_warm_us  the whole decision, known names
    cedarpy_us            cedarpy with parsed policies and entities: one subject, one action
    agent_os_us           agent-os-kernel: rules of one condition each, as it has no others
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import casbin
from casbin.persist.adapters.string_adapter import StringAdapter

from remit_rbac import Policy, Question, Rung, load_text
from remit_rbac.model import SHIPPED

SIZES = (10, 100, 1_000, 10_000, 100_000)
SOURCES = ("pay", "crm", "it", "hr", "scm")
VERBS = ("get", "list", "create", "update", "cancel", "refund", "export", "approve")


@dataclass(frozen=True, slots=True)
class Rule:
    tenant: str
    role: str
    tool: str
    limit: int
    effect: str


@dataclass(frozen=True, slots=True)
class Workload:
    """One policy in the words of every engine, and the calls to decide."""

    rules: list[Rule]
    roles: dict[tuple[str, str], list[str]]
    calls: list[Question]


def a_workload(rules_count: int, rng: random.Random) -> Workload:
    """Fifty rules, twenty roles and sixty subjects for each tenant; a third wildcards, a quarter denies."""
    tenants = [f"t{number}" for number in range(max(1, rules_count // 50))]
    tools = [f"{source}.{verb}" for source in SOURCES for verb in VERBS]
    roles: dict[tuple[str, str], list[str]] = {}
    for tenant in tenants:
        for number in range(10):
            roles[tenant, f"agent:a{number}"] = rng.sample([f"role:r{n}" for n in range(20)], 2)
        for number in range(50):
            roles[tenant, f"user:u{number}"] = rng.sample([f"role:r{n}" for n in range(20)], 2)
    rules = [
        Rule(
            tenant=rng.choice(tenants),
            role=f"role:r{rng.randrange(20)}",
            tool=f"{rng.choice(SOURCES)}.*" if rng.random() < 0.3 else rng.choice(tools),
            limit=rng.choice([10, 100, 1000]),
            effect="deny" if number and rng.random() < 0.25 else "allow",
        )
        for number in range(rules_count)
    ]
    calls: list[Question] = []
    holders: dict[tuple[str, str], list[str]] = {}
    for (tenant, subject), held in roles.items():
        for role in held:
            holders.setdefault((tenant, role), []).append(subject)
    for number in range(600):
        aimed = rng.choice(rules)
        near = holders.get((aimed.tenant, aimed.role), []) if number % 3 else []
        agents = [name for name in near if name.startswith("agent:")] or ["agent:a0", "agent:a5"]
        users = [name for name in near if name.startswith("user:")] or ["user:u0", "user:u5"]
        tool = aimed.tool if "*" not in aimed.tool else aimed.tool.replace("*", rng.choice(VERBS))
        calls.append(
            Question(
                tenant=aimed.tenant,
                agent=rng.choice(agents),
                user=rng.choice(users),
                tool=tool,
                args={"amount": rng.choice([5, 50, 500, 5000]), "note": "n", "to": {"country": "US"}},
                ctx={"risk": rng.choice([10, 10, 10, 90]), "hour": 11, "env": "prod"},
            )
        )
    return Workload(rules, roles, calls)


def casbin_text(load: Workload) -> str:
    """The rules as Casbin rows, with two guardrails and two duties for everyone."""
    lines = [
        "p, agent:*, *, *, execute, r.ctx.risk >= 80, deny",
        "p, *, *, *, approve, 1 == 1, deny",
        "p2, *, *, pay.*, execute, r.args.amount > 100, redact=args.note",
        "p2, agent:*, *, *, recommend, 1 == 1, confirm",
    ]
    for rule in load.rules:
        comparison = "<=" if rule.effect == "allow" else ">"
        condition = f"r.args.amount {comparison} {rule.limit} && r.args.to.country == 'US'"
        lines.append(f"p, {rule.role}, {rule.tenant}, {rule.tool}, execute, {condition}, {rule.effect}")
    for (tenant, subject), roles in load.roles.items():
        lines += [f"g, {subject}, {role}, {tenant}" for role in roles]
    lines += sorted({f"g3, {call.agent}, {call.user}, {call.tenant}" for call in load.calls})
    return "\n".join(dict.fromkeys(lines))


def request(call: Question) -> tuple[Any, ...]:
    return (call.agent, call.tenant, call.tool, "execute", call.args, call.ctx)


def microseconds(ask: Callable[[Any], object], questions: Sequence[Any], seconds: float) -> float:
    """The median CPU time of a question, over batches, for about `seconds` of CPU."""
    times: list[float] = []
    batch, position = 1, 0
    started = time.process_time()
    while len(times) < 2 or time.process_time() - started < seconds:
        chunk = [questions[(position + step) % len(questions)] for step in range(batch)]
        position += batch
        before = time.process_time_ns()
        for question in chunk:
            ask(question)
        spent = time.process_time_ns() - before
        times.append(spent / batch / 1000)
        # Slow engines are asked one by one, fast ones often enough for the clock.
        batch = max(1, min(200, len(questions), int(2_000_000 * batch / max(spent, 1))))
    return statistics.median(times[1:])


def first_time(ask: Callable[[Any], object], questions: Sequence[Any]) -> float:
    """The median CPU time of questions that are each asked once."""
    times: list[float] = []
    for question in questions:
        before = time.process_time_ns()
        ask(question)
        times.append((time.process_time_ns() - before) / 1000)
    return statistics.median(times)


def measure_remit(text: str, calls: Sequence[Question], seconds: float) -> tuple[dict[str, float], Policy]:
    started = time.process_time()
    policy = load_text(text)
    loaded = time.process_time() - started
    # No subject is asked both about one answer and about a decision before the clock stops.
    half = len(calls) // 2
    cases = list({(call.tenant, call.agent, call.user, call.tool): call for call in calls[:half]}.values())
    asked = {(call.tenant, call.agent, call.tool) for call in cases}
    singles = {request(call)[:3]: request(call) for call in calls[half:]}
    found = {
        "remit_load_ms": loaded * 1000,
        "remit_decide_cold_us": first_time(policy.decide, cases),
        "remit_cold_us": first_time(
            lambda question: policy.allowed(*question),
            [single for single in singles.values() if (single[1], single[0], single[2]) not in asked],
        ),
        "remit_warm_us": microseconds(
            lambda question: policy.allowed(*question), [request(call) for call in calls], seconds
        ),
        "remit_decide_warm_us": microseconds(policy.decide, calls, seconds),
    }
    return found, policy


def measure_stock(text: str, policy: Policy, calls: Sequence[Question], seconds: float) -> float:
    enforcer = casbin.Enforcer(casbin.Enforcer.new_model(path=str(SHIPPED)), StringAdapter(text))
    enforcer.enforce(*request(calls[0]))

    def ask(question: tuple[Any, ...]) -> None:
        assert enforcer.enforce(*question) == policy.allowed(*question).allowed, question

    return microseconds(ask, [request(call) for call in calls], seconds)


def measure_cedarpy(
    load: Workload, policy: Policy, calls: Sequence[Question], seconds: float
) -> float | None:
    try:
        cedarpy = importlib.import_module("cedarpy")
    except ImportError:
        return None
    policies = cedarpy.PolicySet.from_str(cedar_text(load))
    calls = calls[:100]
    entities = cedarpy.Entities.from_json_str(json.dumps(cedar_entities(load, calls)))
    requests = [
        (
            {
                "principal": f'Agent::"{call.tenant}/{call.agent}"',
                "action": 'Action::"execute"',
                "resource": f'Tool::"{call.tool}"',
                "context": {**call.ctx, **call.args},
            },
            policy.allowed(*request(call)).allowed,
        )
        for call in calls
    ]

    def ask(question: tuple[dict[str, Any], bool]) -> None:
        assert cedarpy.is_authorized(question[0], policies, entities).allowed == question[1], question

    return microseconds(ask, requests, seconds)


def cedar_text(load: Workload) -> str:
    lines = ['forbid(principal is Agent, action == Action::"execute", resource) when { context.risk >= 80 };']
    for rule in load.rules:
        effect, comparison = ("permit", "<=") if rule.effect == "allow" else ("forbid", ">")
        source, _, verb = rule.tool.partition(".")
        principal = f'principal in Role::"{rule.tenant}/{rule.role}"'
        resource = f'resource in Source::"{source}"' if verb == "*" else f'resource == Tool::"{rule.tool}"'
        lines.append(
            f'{effect}({principal}, action == Action::"execute", {resource})'
            f' when {{ context.amount {comparison} {rule.limit} && context.to.country == "US" }};'
        )
    return "\n".join(lines)


def cedar_entities(load: Workload, calls: Sequence[Question]) -> list[dict[str, Any]]:
    """Only those that the calls are about, which is less than a deployment would hold."""

    def entity(kind: str, name: str, parents: list[tuple[str, str]]) -> dict[str, Any]:
        return {
            "uid": {"type": kind, "id": name},
            "attrs": {},
            "parents": [{"type": parent, "id": value} for parent, value in parents],
        }

    subjects = {(call.tenant, call.agent) for call in calls}
    found = [
        entity(
            "Agent", f"{tenant}/{agent}", [("Role", f"{tenant}/{role}") for role in load.roles[tenant, agent]]
        )
        for tenant, agent in sorted(subjects)
    ]
    tools = sorted({call.tool for call in calls})
    return found + [entity("Tool", tool, [("Source", tool.partition(".")[0])]) for tool in tools]


def measure_agent_os(load: Workload, calls: Sequence[Question], seconds: float) -> float | None:
    try:
        policies = importlib.import_module("agent_os.policies.evaluator")
        schema = importlib.import_module("agent_os.policies.schema")
    except ImportError:
        return None
    # A rule there has one condition, so tenant, role and tool are joined into one field.
    rules = [
        schema.PolicyRule(
            name=f"rule{number}",
            condition=schema.PolicyCondition(
                field="key",
                operator=schema.PolicyOperator.EQ,
                value=f"{rule.tenant}/{rule.role}/{rule.tool}",
            ),
            action=schema.PolicyAction(rule.effect),
        )
        for number, rule in enumerate(load.rules)
    ]
    evaluator = policies.PolicyEvaluator([schema.PolicyDocument(rules=rules)])
    contexts = [
        {"key": f"{call.tenant}/{load.roles[call.tenant, call.agent][0]}/{call.tool}", **call.args}
        for call in calls
    ]
    return microseconds(evaluator.evaluate, contexts, seconds)


def measure(rules_count: int, seconds: float, stock_rules_max: int) -> dict[str, Any]:
    load = a_workload(rules_count, random.Random(rules_count))
    text = casbin_text(load)
    found, policy = measure_remit(text, load.calls, seconds)
    stock = measure_stock(text, policy, load.calls, seconds) if rules_count <= stock_rules_max else None
    rungs = [policy.decide(call).rung for call in load.calls]
    return {
        "rules": rules_count,
        "stock_us": stock,
        **found,
        "cedarpy_us": measure_cedarpy(load, policy, load.calls, seconds),
        "agent_os_us": measure_agent_os(load, load.calls, seconds),
        "executed": sum(rung is Rung.EXECUTE for rung in rungs) / len(rungs),
    }


def table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    lines = [names, *([shown(name, row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def shown(name: str, value: float | None) -> str:
    if value is None:
        return "skipped"
    return f"{value:,}" if name == "rules" else f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less than 50 seconds, with fewer samples")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        if sys.stderr.isatty():
            print(f"{size:,} rules", file=sys.stderr)
        rows.append(measure(size, 0.3 if options.quick else 3.0, 10_000 if options.quick else 100_000))
    print(json.dumps({"rows": rows}) if options.json else table(rows))


if __name__ == "__main__":
    main()
