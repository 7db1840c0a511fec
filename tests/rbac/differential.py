"""Random policies and requests, put to Remit and to an unmodified `casbin.Enforcer`.

The rule to hold: Remit never allows what stock Casbin answers False; where both can answer, they agree;
where a row cannot be evaluated (stock raises, or Remit is stricter about types), an allow row does not
match and a deny row does. Only conditions that stock Casbin reads as written are generated: arguments
named like methods of `dict`, and texts that it rewrites inside quotes, are tested apart. pycasbin parses each
condition anew for each row and request; here its parser is memoised, which only saves time.
"""

from __future__ import annotations

import ast
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import casbin
from casbin.persist.adapters.string_adapter import StringAdapter

from remit_rbac import Answer, Policy, Question, Rung, load_text
from remit_rbac.conditions import FUNCTIONS
from remit_rbac.model import SHIPPED

casbin.util.expression.ast = SimpleNamespace(parse=lru_cache(maxsize=50_000)(ast.parse))

AGENTS = ["agent:a", "agent:b", "agent:b2", "agent:x.y+z"]
USERS = ["user:ann", "user:bob", "user:bobby", "user:c@d"]
ROLES = ["role:r1", "role:r2", "role:r3", "role:r4", "role:r5"]
TENANTS = ["acme", "bank"]
TOOLS = ["pay.refund", "pay.refund_all", "pay.out", "crm.get", "crm.get.all", "hr.fire"]
GROUPS = ["grp:money", "grp:all", "grp:read"]
ACTS = ["execute", "recommend", "advise", "approve"]
OWING = [*ACTS[:3], "*"]

#: The shipped matcher, and others of its family.
MATCHERS = {
    "shipped": None,
    "exact": (
        "r.dom == p.dom && r.act == p.act && g(r.sub, p.sub, r.dom) && r.tool == p.tool && eval(p.cond)"
    ),
    "condition first": (
        '(g(r.sub, p.sub, r.dom) || p.sub == "*") && (p.act == r.act || p.act == "*")'
        ' && keyMatch(r.tool, p.tool) && (r.dom == p.dom || p.dom == "*") && eval(p.cond)'
    ),
    "groups": (
        'g2(r.tool, p.tool) && (p.dom == "*" || r.dom == p.dom) && keyMatch(r.act, p.act)'
        " && (r.sub == p.sub || keyMatch(r.sub, p.sub)) && eval(p.cond)"
    ),
    "one column twice": (
        'keyMatch(r.tool, p.tool) && (r.tool == p.tool || p.tool == "*" || g2(r.tool, p.tool))'
        ' && r.dom == p.dom && (p.act == "*" || r.act == p.act)'
        " && (keyMatch(r.sub, p.sub) || g(r.sub, p.sub, r.dom)) && eval(p.cond)"
    ),
}


def model_text(name: str) -> str:
    text = SHIPPED.read_text()
    matcher = MATCHERS[name]
    if matcher is None:
        return text
    lines = [
        f"m = {matcher}"
        if line.startswith("m = ")
        else f"m2 = {matcher.replace('p.', 'p2.')}"
        if line.startswith("m2 = ")
        else line
        for line in text.split("\n")
    ]
    return "\n".join(lines)


@dataclass
class World:
    """One random policy, loaded twice."""

    text: str
    model: str
    policy: Policy
    stock: Stock

    def has(self, member: str, role: str, tenant: str) -> bool:
        return self.stock.linked("g", member, role, tenant)


@dataclass
class Tally:
    compared: int = 0
    outcomes: Counter[str] = field(default_factory=Counter[str])


class Stock:
    """An unmodified pycasbin enforcer over the same texts."""

    def __init__(self, model: str, policy: str) -> None:
        self.enforcer = casbin.Enforcer(casbin.Enforcer.new_model(text=model), StringAdapter(policy))
        for name, function in FUNCTIONS.items():
            if name != "keyMatch":
                self.enforcer.add_function(name, function.body)

    def rows(self, ptype: str) -> list[list[str]]:
        return self.enforcer.model["p"][ptype].policy

    def allowed(self, request: tuple[Any, ...]) -> bool | None:
        """None when pycasbin raises."""
        try:
            return self.enforcer.enforce(*request)
        except Exception:  # noqa: BLE001 - pycasbin evaluates text, which can raise anything
            return None

    def matches(self, ptype: str, row: list[str], request: tuple[Any, ...]) -> bool | None:
        """Whether one row alone matches; None when pycasbin raises."""
        assertion = self.enforcer.model["p"][ptype]
        rows, assertion.policy = assertion.policy, [row]
        suffix = ptype[1:]
        context = casbin.core_enforcer.EnforceContext("r", ptype, "e", "m" + suffix)
        try:
            return self.enforcer.enforce_ex(context, *request)[1] == row
        except Exception:  # noqa: BLE001 - pycasbin evaluates text, which can raise anything
            return None
        finally:
            assertion.policy = rows

    def linked(self, graph: str, *names: str) -> bool:
        return self.enforcer.rm_map[graph].has_link(*names)


def a_world(rng: random.Random, model_paths: dict[str, Path]) -> World:
    model = rng.choice(["shipped", "shipped", *MATCHERS])
    lines = [
        f"p, {_columns(rng)}, {a_condition(rng)}, {rng.choice(['allow', 'allow', 'deny'])}"
        for _ in range(rng.randint(2, 10))
    ]
    # At least one row must grant something, or the policy is refused.
    lines += [f"p, {rng.choice(ROLES)}, acme, pay.refund, execute, {a_condition(rng)}, allow"]
    duties = [("redact=args.note", OWING), ("redact=args.a.b|args.c", OWING), ("confirm", OWING)]
    if model == "shipped":  # others need not know the pattern below, and those who must agree be too few
        duties.append(("approvals=2", ["recommend"]))
    for _ in range(rng.randint(0, 4)):
        duty, actions = rng.choice(duties)
        lines.append(f"p2, {_columns(rng, actions)}, {a_condition(rng)}, {duty}")
    # Whoever it is may agree, as far as anybody can tell without the condition.
    lines += ["p, user:*, *, *, approve, 1 == 2, allow"]
    for tenant in TENANTS:
        lines += [f"g, {_membership(rng)}, {tenant}" for _ in range(rng.randint(1, 8))]
        lines += [
            f"g3, {rng.choice(AGENTS)}, {rng.choice(USERS)}, {tenant}" for _ in range(rng.randint(0, 4))
        ]
    lines += [f"g2, {rng.choice(TOOLS)}, {rng.choice(GROUPS)}" for _ in range(rng.randint(0, 5))]
    if rng.random() < 0.5:
        lines.append("g2, grp:money, grp:all")
    rng.shuffle(lines)
    text = "\n".join(dict.fromkeys(lines))
    policy = load_text(text, model=model_paths[model])
    return World(text=text, model=model, policy=policy, stock=Stock(model_text(model), text))


def _columns(rng: random.Random, actions: Sequence[str] = (*ACTS, "*")) -> str:
    subject = rng.choice([*AGENTS, *USERS, *ROLES, *ROLES, "*", "agent:*", "user:*", "user:bob*"])
    tenant = rng.choice([*TENANTS, *TENANTS, "*"])
    tool = rng.choice([*TOOLS, *GROUPS, "*", "pay.*", "crm.get*", "crm.*"])
    return ", ".join([subject, tenant, tool, rng.choice(actions)])


def _membership(rng: random.Random) -> str:
    member = rng.choice([*AGENTS, *USERS, *ROLES[:-1]])
    # Lower roles belong to higher ones, so there is no circle.
    roles = ROLES[ROLES.index(member) + 1 :] if member in ROLES else ROLES
    return f"{member}, {rng.choice(roles)}"


def a_request(rng: random.Random, world: World, *, clean: bool) -> tuple[Any, ...]:
    subject = rng.choice([*AGENTS, *USERS])
    tenant, tool, act = rng.choice(TENANTS), rng.choice(TOOLS), rng.choice(ACTS)
    if rng.random() < 0.8:
        # Aim at an existing row.
        row = rng.choice(world.stock.rows("p"))
        tenant = tenant if row[1] == "*" else row[1]
        start = row[0].partition("*")[0]
        subject = rng.choice(
            [
                name
                for name in (*AGENTS, *USERS)
                if name == row[0]
                or ("*" in row[0] and name.startswith(start))
                or world.has(name, row[0], tenant)
            ]
            or [subject]
        )
        start = row[2].partition("*")[0]
        tool = rng.choice(
            [name for name in TOOLS if name == row[2] or ("*" in row[2] and name.startswith(start))] or [tool]
        )
        act = act if row[3] == "*" else row[3]
    args: dict[str, Any] = {
        "amount": rng.choice([-5, 0, 1, 99, 100, 101, 10**20, 0.5, 99.99, 100.0]),
        "note": rng.choice(["", "abc", "US", "a b", "é"]),
        "level": rng.choice(["read", "write", "admin"]),
        "flag": rng.choice([True, False]),
        "tags": rng.choice([[], ["US"], ["US", "CA"]]),
        "counts": [rng.randint(0, 3), rng.randint(0, 3)],
        "deep": {"count": rng.randint(0, 5), "name": rng.choice(["x", "read"]), "from": "here"},
        "none": None,
    }
    ctx: dict[str, Any] = {
        "hour": rng.randint(0, 23),
        "risk": rng.choice([0.0, 0.5, 0.8, 1]),
        "env": rng.choice(["prod", "dev"]),
        "owner": rng.choice([*USERS, subject]),
        "in_chain": rng.choice([0, 1]),
    }
    if not clean:
        for values in (args, ctx):
            for name in list(values):
                if rng.random() < 0.2:
                    del values[name]
                elif rng.random() < 0.2:
                    values[name] = rng.choice(
                        [
                            None,
                            True,
                            "100",
                            "US",
                            5,
                            float("nan"),
                            float("inf"),
                            [],
                            ["US", 1],
                            {},
                            {"count": "5"},
                        ]
                    )
    return subject, tenant, tool, act, args, ctx


def a_condition(rng: random.Random) -> str:
    if rng.random() < 0.25:
        return "1 == 1"
    return _boolean(rng, rng.choice([0, 0, 1, 2]))


def _boolean(rng: random.Random, depth: int) -> str:
    if depth > 0 and rng.random() < 0.7:
        left, right = _boolean(rng, depth - 1), _boolean(rng, depth - 1)
        return rng.choice(
            [
                f"{left} && {right}",
                f"{left} || {right}",
                f"({left}) || {right} && ({right})",
                f"{left} and not ({right})",
                f"!({left}) or {right}",
                f"({left} if {right} else {_boolean(rng, 0)})",
            ]
        )
    compare = rng.choice(["<", "<=", ">", ">=", "==", "!="])
    text = rng.choice(
        ["r.args.level", "r.ctx.env", "r.args.note", "r.args.deep.name", "r.args['deep']['from']"]
    )
    words = ", ".join(f"'{word}'" for word in rng.sample(["read", "prod", "US", "abc", "here"], 2))
    return rng.choice(
        [
            f"{_number(rng, 1)} {compare} {_number(rng, 1)}",
            f"0 <= {_number(rng, 0)} {rng.choice(['<', '<='])} {_number(rng, 0)}",
            f"{text} {rng.choice(['==', '!=', '<', '>='])} '{rng.choice(['read', 'prod', 'US', ''])}'",
            f"{text} {rng.choice(['in', 'not in'])} ({words})",
            f"{text} in [{words}]",
            f"'US' {rng.choice(['in', 'not in'])} r.args.tags",
            f"'{rng.choice(['count', 'nothing'])}' in r.args.deep",
            "r.args.flag",
            "r.args.flag == True",
            "r.args.none == None",
            "r.ctx.owner == r.sub",
            "r.ctx.owner != r.sub",
            "r.ctx.in_chain == 1",
            "r.act == 'execute'",
            "keyMatch(r.tool, 'pay.*')",
            f"startswith({text}, 're')",
            f"contains({text}, 'a')",
            f"endswith(lower({text}), 'd')",
            f"len({text}) {compare} 3",
        ]
    )


def _number(rng: random.Random, depth: int) -> str:
    if depth > 0 and rng.random() < 0.4:
        left, right = _number(rng, 0), _number(rng, 0)
        return rng.choice(
            [
                f"{left} + {right}",
                f"{left} - {right} * 2",
                f"({left} + {right}) * 3",
                f"-{left}",
                f"{left} % 7",
                f"{left} // 3",
                f"{left} / 4",
                f"min({left}, {right})",
                f"max({left}, 10)",
                f"abs({left})",
            ]
        )
    return rng.choice(
        [
            "r.args.amount",
            "r.args.amount",
            "r.ctx.hour",
            "r.ctx.risk",
            "r.args.deep.count",
            "r.args.counts[1]",
            str(rng.choice([0, 1, 100, 0.5, 10**21])),
        ]
    )


def compare(world: World, request: tuple[Any, ...], *, clean: bool, tally: Tally) -> None:
    """One comparison of one answer. AssertionError shows the policy and the request."""
    ours = world.policy.allowed(*request)
    theirs = world.stock.allowed(request)
    story = f"\nmodel: {world.model}\n{world.text}\nrequest: {request}\nours: {ours}\nstock: {theirs}"
    assert not (theirs is False and ours.allowed), f"wrong allow{story}"
    if clean:
        assert theirs is not None, f"stock raised on clean values{story}"
        assert not ours.errors, f"errors on clean values{story}"
        assert ours.allowed == theirs, f"different{story}"
    elif theirs is None or ours.errors:
        allowed, rows = expected_by_rows(world, request, ours)
        assert ours.allowed == allowed, f"different from row by row{story}"
        assert {row.text for row in ours.rows} == rows, f"other rows: {rows}{story}"
    else:
        assert ours.allowed == theirs, f"different{story}"
    tally.compared += 1
    tally.outcomes["stock raised" if theirs is None else "allow" if theirs else "deny"] += 1
    tally.outcomes["in doubt"] += bool(ours.errors)
    tally.outcomes["stricter"] += bool(theirs and not ours.allowed)


def expected_by_rows(world: World, request: tuple[Any, ...], ours: Answer) -> tuple[bool, set[str]]:
    """What pycasbin says of each row by itself, with the rows that nobody can answer taken strictly.

    Where no arguments could help (nothing allows, or something always denies) conditions are not asked.
    """
    in_doubt = {error.row.text for error in ours.errors}
    about = [row for row in world.stock.rows("p") if world.stock.matches("p", _always(row), request)]
    always = [row for row in about if "r." not in row[4] and world.stock.matches("p", row, request)]
    hopeless = not any(row[5] == "allow" for row in about) or any(row[5] == "deny" for row in always)
    allows: set[str] = set()
    denies: set[str] = set()
    for row in always if hopeless else about:
        text = ", ".join(["p", *row])
        found = None if text in in_doubt else world.stock.matches("p", row, request)
        if row[5] == "deny" and found is not False:
            denies.add(text)
        if row[5] == "allow" and found is True:
            allows.add(text)
    if hopeless:
        return False, denies
    return bool(allows) and not denies, denies or allows


def _always(row: list[str]) -> list[str]:
    return [*row[:4], "1 == 1", row[5]]


def compare_rows(world: World, request: tuple[Any, ...]) -> None:
    """The rows that Remit names are the ones that pycasbin finds one by one."""
    ours = world.policy.allowed(*request)
    allowed, rows = expected_by_rows(world, request, ours)
    assert ours.allowed == allowed, (world.text, request)
    assert {row.text for row in ours.rows} == rows, (world.text, request, ours, rows)


def compare_decision(world: World, rng: random.Random) -> None:
    """The whole decision, put together from single answers of pycasbin."""
    request = a_request(rng, world, clean=True)
    tenant, tool, args, ctx = request[1], request[2], request[4], request[5]
    pairs = [row[:2] for row in world.stock.enforcer.model["g"]["g3"].policy if row[2] == tenant]
    agent, user = rng.choice(pairs or [[rng.choice(AGENTS), rng.choice(USERS)]])
    q = Question(tenant=tenant, agent=agent, user=user, tool=tool, args=args, ctx=ctx)
    decision = world.policy.decide(q)
    story = (world.model, world.text, q, decision)
    assert decision.delegated == world.stock.linked("g3", agent, user, tenant), story
    if not decision.delegated:
        assert decision.rung is Rung.DENY, story
        return
    rungs = {subject: climb(world.stock, subject, q) for subject in (agent, user)}
    assert (decision.agent_rung, decision.user_rung) == (rungs[agent], rungs[user]), story
    assert decision.rung == min(rungs.values()), story
    if decision.rung:
        assert world.policy.visible(tenant, agent, user, tool), story
        action = {Rung.EXECUTE: "execute", Rung.APPROVE: "recommend", Rung.ADVISE: "advise"}[decision.rung]
        due = {
            ", ".join(["p2", *row])
            for row in world.stock.rows("p2")
            for subject in (agent, user)
            if world.stock.matches("p2", row, (subject, tenant, tool, action, args, ctx))
        }
        assert {duty.row.text for duty in decision.duties} == due, story


def climb(stock: Stock, subject: str, q: Question) -> Rung:
    for rung, action in ((Rung.EXECUTE, "execute"), (Rung.APPROVE, "recommend"), (Rung.ADVISE, "advise")):
        if stock.allowed((subject, q.tenant, q.tool, action, q.args, q.ctx)):
            return rung
    return Rung.DENY


def compare_approvers(world: World, rng: random.Random) -> None:
    request = a_request(rng, world, clean=True)
    tenant, tool, args, ctx = request[1], request[2], request[4], request[5]
    exclude = rng.sample(USERS, 1)
    found = world.policy.approvers(tenant, tool, args, ctx, exclude=exclude)
    expected = [
        user
        for user in world.policy.subjects(tenant).users
        if world.stock.allowed(
            (user, tenant, tool, "approve", args, {**ctx, "in_chain": int(user in exclude)})
        )
    ]
    assert list(found) == expected, (world.model, world.text, request, found, expected)


def run(rng: random.Random, model_paths: dict[str, Path], tally: Tally) -> None:
    """One random policy with some forty comparisons."""
    world = a_world(rng, model_paths)
    for _ in range(60):
        clean = rng.random() < 0.6
        request = a_request(rng, world, clean=clean)
        compare(world, request, clean=clean, tally=tally)
        if rng.random() < 0.03:
            compare_rows(world, request)
    for _ in range(5):
        compare_decision(world, rng)
    compare_approvers(world, rng)


def write_models(folder: Path) -> dict[str, Path]:
    """Every model of `MATCHERS` as a file."""
    paths: dict[str, Path] = {}
    for number, name in enumerate(MATCHERS):
        paths[name] = folder / f"model{number}.conf"
        paths[name].write_text(model_text(name))
    return paths
