"""One immutable policy, and the decisions it makes.

A decision asks the same rules twice, for the agent and for the user it acts for, and takes the lower
rung, so an agent is never allowed more than its user. A deny always wins. A rule that cannot be
evaluated denies: as an allow it does not match, as a deny it does, and either way it is reported. A
duty that cannot be evaluated applies. The loader builds policies; whoever holds one swaps it whole.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

from remit_rbac.conditions import EvaluationError
from remit_rbac.index import Index, Row, Rule
from remit_rbac.model import Model
from remit_rbac.problems import Problem
from remit_rbac.roles import RoleGraph

#: Plans kept per policy. Past it all are dropped and rebuilt on demand, which costs microseconds each.
PLANS_MAX = 20_000
NAME_LENGTH_MAX = 256


class Rung(IntEnum):
    """How far a call may go. Ordered: the stricter of two rungs is their minimum."""

    DENY = 0
    #: Explain or dry-run only.
    ADVISE = 1
    #: A person must approve first.
    APPROVE = 2
    EXECUTE = 3


#: The Casbin action that grants each rung, highest first.
LADDER = ((Rung.EXECUTE, "execute"), (Rung.APPROVE, "recommend"), (Rung.ADVISE, "advise"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """May this agent, acting for this user, call this tool with these arguments?

    `args` and `ctx` are plain JSON values and are only read. `ctx` is the server's, never the agent's.
    """

    tenant: str
    #: `agent:<id>`.
    agent: str
    #: `user:<id>`.
    user: str
    #: `<source>.<tool>`.
    tool: str
    args: Mapping[str, Any]
    ctx: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowError:
    """A row whose condition could not be evaluated for this call."""

    row: Row
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Duty:
    """An obligation that goes with a permitted call: `approvals=2` has name `approvals`, value `2`."""

    name: str
    value: str
    row: Row


Code = Literal[
    "allowed",
    "needs_approval",
    "advise_only",
    "no_delegation",
    "no_rule",
    "denied_by_rule",
    "rule_error",
    "malformed_request",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The answer to a question, with all that explains it."""

    rung: Rung
    agent_rung: Rung
    user_rung: Rung
    #: The policy says that the agent acts for the user.
    delegated: bool
    code: Code
    #: Whose rights hold the call below `execute`.
    limited_by: Literal["agent", "user", "both", "none"]
    #: The rows that determined it.
    rows: tuple[Row, ...]
    errors: tuple[RowError, ...]
    duties: tuple[Duty, ...]
    policy_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One subject, one action: allowed or not, and by which rows."""

    allowed: bool
    rows: tuple[Row, ...]
    errors: tuple[RowError, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subjects:
    """Whom the policy names in one tenant."""

    agents: tuple[str, ...]
    users: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is left to ask about one (subject, tenant, tool, action): conditions, deny rows apart."""

    denies: tuple[Rule, ...]
    allows: tuple[Rule, ...]

    @property
    def grants_nothing(self) -> bool:
        """No arguments could be allowed."""
        return not self.allows or any(rule.condition is None for rule in self.denies)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """How one plan answered one call."""

    allowed: bool
    denied_by: Sequence[Rule]
    allowed_by: Sequence[Rule]
    errors: Sequence[RowError]


@dataclass(frozen=True, slots=True)
class _Standing:
    """How far one subject may go, with the answers that say so (from execute downwards)."""

    rung: Rung
    verdicts: Sequence[_Verdict]


class Policy:
    """An immutable policy snapshot. All methods may be called from any thread, and none of them waits."""

    def __init__(
        self,
        *,
        model: Model,
        rules: Mapping[str, Sequence[Rule]],
        graphs: Mapping[str, RoleGraph],
        version: str,
        warnings: Sequence[Problem] = (),
    ) -> None:
        self.version = version
        self.warnings = tuple(warnings)
        self.model = model
        self.rules = rules
        self.graphs = graphs
        self._rules = Index(model.tables["p"], rules["p"], graphs)
        self._duties = Index(model.tables["p2"], rules["p2"], graphs) if "p2" in model.tables else None
        # Memos. A race between threads computes the same value twice, and nothing worse.
        self._plans: dict[tuple[str, str, str, str], _Plan] = {}
        self._duty_plans: dict[tuple[str, str, str, str], tuple[Rule, ...]] = {}
        self._delegations: dict[tuple[str, str, str], bool] = {}

    def decide(self, q: Question) -> Decision:
        """How far this call may go. Never raises for anything in the question: what is odd is denied."""
        if not _well_formed(q.tenant, q.agent, q.user, q.tool):
            return self._denied("malformed_request", delegated=False)
        if not self._delegated(q.tenant, q.agent, q.user):
            return self._denied("no_delegation", delegated=False)
        agent = self._standing(q.agent, q)
        user = self._standing(q.user, q)
        rung = min(agent.rung, user.rung)
        limited_by = _limited_by(agent.rung, user.rung)
        limits = [standing for standing in (agent, user) if standing.rung == rung]
        errors = [error for side in (agent, user) for verdict in side.verdicts for error in verdict.errors]
        duties = self._duties_of(rung, q, errors) if rung else ()
        return Decision(
            rung=rung,
            agent_rung=agent.rung,
            user_rung=user.rung,
            delegated=True,
            code=_code(rung, limits),
            limited_by=limited_by,
            rows=_determining(agent, user, limits),
            errors=tuple(errors),
            duties=duties,
            policy_version=self.version,
        )

    def allowed(
        self,
        subject: str,
        tenant: str,
        tool: str,
        act: str,
        args: Mapping[str, Any],
        ctx: Mapping[str, Any],
    ) -> Answer:
        """Whether the policy allows one subject (`agent:...` or `user:...`) one action; nothing else."""
        if not (_is_subject(subject, ("agent:", "user:")) and _is_name(tenant) and _is_name(tool)):
            return Answer(allowed=False, rows=(), errors=())
        verdict = self._judge(subject, tenant, tool, act, args, ctx)
        rules = verdict.allowed_by if verdict.allowed else verdict.denied_by
        return Answer(
            allowed=verdict.allowed,
            rows=tuple(rule.row for rule in rules),
            errors=tuple(verdict.errors),
        )

    def visible(self, tenant: str, agent: str, user: str, tool: str) -> bool:
        """Whether any arguments could give a rung above DENY. Looks at no arguments.

        A deny of the action `list` that has no condition hides a tool that is otherwise allowed.
        """
        if not _well_formed(tenant, agent, user, tool) or not self._delegated(tenant, agent, user):
            return False
        for subject in (agent, user):
            if any(rule.condition is None for rule in self._plan(subject, tenant, tool, "list").denies):
                return False
            if all(self._plan(subject, tenant, tool, act).grants_nothing for _, act in LADDER):
                return False
        return True

    def approvers(
        self,
        tenant: str,
        tool: str,
        args: Mapping[str, Any],
        ctx: Mapping[str, Any],
        *,
        exclude: Collection[str] = (),
    ) -> tuple[str, ...]:
        """The users of the tenant that may approve this call, in alphabetical order.

        The policy sees `r.ctx.in_chain`: 1 for those in `exclude` (who asked, or for whom), else 0.
        """
        outside, inside = {**ctx, "in_chain": 0}, {**ctx, "in_chain": 1}
        return tuple(
            user
            for user in self.subjects(tenant).users
            if self.allowed(
                user, tenant, tool, "approve", args, inside if user in exclude else outside
            ).allowed
        )

    def subjects(self, tenant: str) -> Subjects:
        """The agents and users that the policy names in a tenant, in alphabetical order."""
        names: set[str] = set()
        for graph in ("g", "g3"):
            names |= self.graphs[graph].names(tenant)
        for rule in self.rules["p"]:
            if rule.values[1] in (tenant, "*"):
                names.add(rule.values[0])
        known = sorted(name for name in names if "*" not in name)
        return Subjects(
            agents=tuple(name for name in known if name.startswith("agent:")),
            users=tuple(name for name in known if name.startswith("user:")),
        )

    def _denied(self, code: Code, *, delegated: bool) -> Decision:
        return Decision(
            rung=Rung.DENY,
            agent_rung=Rung.DENY,
            user_rung=Rung.DENY,
            delegated=delegated,
            code=code,
            limited_by="both",
            rows=(),
            errors=(),
            duties=(),
            policy_version=self.version,
        )

    def _delegated(self, tenant: str, agent: str, user: str) -> bool:
        key = (tenant, agent, user)
        known = self._delegations.get(key)
        if known is None:
            graph = self.graphs["g3"]
            targets = {*graph.direct(agent, tenant), *graph.direct("agent:*", tenant)}
            known = "user:*" in targets or bool(targets & self.graphs["g"].closure(user, tenant))
            _remember(self._delegations, key, known)
        return known

    def _standing(self, subject: str, q: Question) -> _Standing:
        verdicts: list[_Verdict] = []
        for rung, act in LADDER:
            verdict = self._judge(subject, q.tenant, q.tool, act, q.args, q.ctx)
            verdicts.append(verdict)
            if verdict.allowed:
                return _Standing(rung, verdicts)
        return _Standing(Rung.DENY, verdicts)

    def _plan(self, subject: str, tenant: str, tool: str, act: str) -> _Plan:
        key = (subject, tenant, tool, act)
        plan = self._plans.get(key)
        if plan is None:
            found = self._rules.find({"sub": subject, "dom": tenant, "tool": tool, "act": act})
            plan = _Plan(
                denies=tuple(rule for rule in found if rule.values[5] == "deny"),
                allows=tuple(rule for rule in found if rule.values[5] == "allow"),
            )
            _remember(self._plans, key, plan)
        return plan

    def _judge(
        self, subject: str, tenant: str, tool: str, act: str, args: Mapping[str, Any], ctx: Mapping[str, Any]
    ) -> _Verdict:
        plan = self._plan(subject, tenant, tool, act)
        scope = {"r": {"sub": subject, "dom": tenant, "tool": tool, "act": act, "args": args, "ctx": ctx}}
        errors: list[RowError] = []
        denied_by = [rule for rule in plan.denies if _holds(rule, scope, errors, in_doubt=True)]
        allowed_by = [rule for rule in plan.allows if _holds(rule, scope, errors, in_doubt=False)]
        return _Verdict(bool(allowed_by) and not denied_by, denied_by, allowed_by, errors)

    def _duties_of(self, rung: Rung, q: Question, errors: list[RowError]) -> tuple[Duty, ...]:
        if self._duties is None:
            return ()
        act = next(act for granted, act in LADDER if granted == rung)
        due: dict[int, Rule] = {}
        for subject in (q.agent, q.user):
            key = (subject, q.tenant, q.tool, act)
            rules = self._duty_plans.get(key)
            if rules is None:
                rules = tuple(
                    self._duties.find({"sub": subject, "dom": q.tenant, "tool": q.tool, "act": act})
                )
                _remember(self._duty_plans, key, rules)
            if not rules:
                continue
            scope = {
                "r": {
                    "sub": subject,
                    "dom": q.tenant,
                    "tool": q.tool,
                    "act": act,
                    "args": q.args,
                    "ctx": q.ctx,
                }
            }
            due.update((rule.number, rule) for rule in rules if _holds(rule, scope, errors, in_doubt=True))
        return tuple(_duty(due[number]) for number in sorted(due))


def _holds(rule: Rule, scope: Mapping[str, Any], errors: list[RowError], *, in_doubt: bool) -> bool:
    condition = rule.condition
    if condition is None:
        return True
    try:
        value = condition.evaluate(scope)
        if value is True or value is False:
            return value
        message = "the condition is neither true nor false"
    except EvaluationError as error:
        message = str(error)
    errors.append(RowError(row=rule.row, message=message))
    return in_doubt


def _duty(rule: Rule) -> Duty:
    name, _, value = rule.values[5].partition("=")
    return Duty(name=name, value=value, row=rule.row)


def _limited_by(agent: Rung, user: Rung) -> Literal["agent", "user", "both", "none"]:
    if agent != user:
        return "agent" if agent < user else "user"
    return "none" if agent is Rung.EXECUTE else "both"


def _code(rung: Rung, limits: Sequence[_Standing]) -> Code:
    if rung is Rung.EXECUTE:
        return "allowed"
    if rung is Rung.APPROVE:
        return "needs_approval"
    if rung is Rung.ADVISE:
        return "advise_only"
    verdicts = [verdict for standing in limits for verdict in standing.verdicts]
    if any(verdict.denied_by and verdict.allowed_by for verdict in verdicts):
        return "denied_by_rule"
    if any(verdict.errors for verdict in verdicts):
        return "rule_error"
    if any(verdict.denied_by for verdict in verdicts):
        return "denied_by_rule"
    return "no_rule"


def _determining(agent: _Standing, user: _Standing, limits: Sequence[_Standing]) -> tuple[Row, ...]:
    """What allowed both sides as far as they may go, and what held the limiting side back."""
    rules: dict[int, Rule] = {}
    for standing in (agent, user):
        for rule in standing.verdicts[-1].allowed_by if standing.rung else ():
            rules[rule.number] = rule
    for standing in limits:
        for verdict in standing.verdicts:
            rules.update((rule.number, rule) for rule in verdict.denied_by)
    return tuple(rules[number].row for number in sorted(rules))


def _remember(memo: dict[Any, Any], key: Any, value: Any) -> None:
    if len(memo) >= PLANS_MAX:
        memo.clear()
    memo[key] = value


def _well_formed(tenant: object, agent: object, user: object, tool: object) -> bool:
    return (
        _is_subject(agent, ("agent:",))
        and _is_subject(user, ("user:",))
        and _is_name(tenant)
        and _is_name(tool)
    )


def _is_subject(name: object, prefixes: tuple[str, ...]) -> bool:
    return _is_name(name) and isinstance(name, str) and name.startswith(prefixes) and name[-1] != ":"


def _is_name(name: object) -> bool:
    """A name that only ever means itself: no pattern, nothing invisible, one spelling."""
    return (
        type(name) is str
        and 0 < len(name) <= NAME_LENGTH_MAX
        and "*" not in name
        and name.isprintable()
        and " " not in name
        and unicodedata.is_normalized("NFC", name)
    )
