"""One immutable policy, and the decisions it makes.

A decision asks the same rules twice, for the agent and for the user it acts for, and takes the lower
rung, so an agent is never allowed more than its user. A deny always wins. A rule that cannot be
evaluated denies: as an allow it does not match, as a deny it does, and either way it is reported. A
duty that cannot be evaluated applies. The loader builds policies; whoever holds one swaps it whole.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, NamedTuple

from remit_rbac.conditions import EvaluationError, key_match
from remit_rbac.index import Index, Row, Rule
from remit_rbac.model import Model
from remit_rbac.problems import Problem
from remit_rbac.roles import RoleGraph

#: What is remembered per policy and kind. Past it all is dropped, and found again in microseconds.
MEMO_MAX = 20_000
NAME_LENGTH_MAX = 256


class Rung(IntEnum):
    """How far a call may go. Ordered: the stricter of two rungs is the lower."""

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


#: Why a decision is what it is. Stable.
Code = Literal[
    "allowed",
    "needs_approval",
    "advise_only",
    # Nothing allows it.
    "no_rule",
    # Something allows it, and something denies it.
    "denied_by_rule",
    # It might be allowed, had a condition not failed to evaluate.
    "rule_error",
    "no_delegation",
    # A name in the question could be taken for something else.
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
    #: Whose rights keep the call below `execute`.
    limited_by: Literal["agent", "user", "both", "none"]
    #: The rows that determined it: those that allow what is allowed, those that deny what is not.
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
    """Whom the policy names in one tenant, in alphabetical order."""

    agents: tuple[str, ...]
    users: tuple[str, ...]


class Verdict(NamedTuple):
    """How the rows of one (subject, action) answered one call. A tuple, because it is made so often."""

    allowed: bool
    denied_by: Sequence[Rule]
    #: Where a row denies every call, also the rows that would have to be asked.
    allowed_by: Sequence[Rule]
    #: A row denies without a doubt.
    denied: bool
    #: A condition failed to evaluate.
    in_doubt: bool


class Standing(NamedTuple):
    """How far one subject may go, and the verdicts from execute down to there."""

    rung: Rung
    verdicts: Sequence[Verdict]


@dataclass(frozen=True, slots=True)
class _Plan:
    """The rows that can matter to one (subject, tenant, tool, action), whatever the arguments."""

    denies: tuple[Rule, ...]
    allows: tuple[Rule, ...]
    #: The answer, when no argument can change it.
    settled: Verdict | None

    @property
    def hopeless(self) -> bool:
        return self.settled is not None and not self.settled.allowed


@dataclass(frozen=True, slots=True)
class _Duties:
    """The duty rows that can matter at one rung."""

    #: The Casbin action of the rung.
    action: str
    #: For which of the two subjects, by which row, what.
    rules: tuple[tuple[str, Rule, Duty], ...]
    #: What is due, when no argument can change it.
    settled: tuple[Duty, ...] | None


#: A call that is denied owes nothing.
_NO_DUTIES = _Duties("", (), ())


@dataclass(frozen=True, slots=True)
class _Case:
    """All that is known of a call before its arguments: (tenant, agent, user, tool)."""

    #: The decision, when the names alone decide.
    refusal: Decision | None
    #: One plan for each rung of the ladder, highest first.
    agent: tuple[_Plan, ...]
    user: tuple[_Plan, ...]
    #: By rung, what can be due there.
    duties: tuple[_Duties, ...]


class Policy:
    """An immutable policy snapshot. Any thread may call it; nothing waits, nothing is written but memos.

    Two threads that race for a memo compute the same value twice, and nothing worse.
    """

    def __init__(
        self,
        *,
        model: Model,
        rules: Mapping[str, Sequence[Rule]],
        graphs: Mapping[str, RoleGraph],
        version: str,
        warnings: Sequence[Problem] = (),
    ) -> None:
        self.model = model
        #: By row type, in policy order.
        self.rules = rules
        self.graphs = graphs
        #: SHA-256 of the model and the set of rows; equal for policies that decide alike.
        self.version = version
        self.warnings = tuple(warnings)
        self._index = {name: Index(table, rules[name], graphs) for name, table in model.tables.items()}
        self._cases: dict[tuple[str, str, str, str], _Case] = {}
        self._plans: dict[tuple[str, str, str, str], _Plan] = {}
        self._subjects: dict[str, Subjects] = {}
        self._candidates: dict[tuple[str, str], tuple[str, ...]] = {}

    def decide(self, q: Question) -> Decision:
        """How far this call may go. What is odd about the question is denied, not raised."""
        case = self._case(q.tenant, q.agent, q.user, q.tool)
        if case.refusal is not None:
            return case.refusal

        record = {"sub": q.agent, "dom": q.tenant, "tool": q.tool, "act": "", "args": q.args, "ctx": q.ctx}
        errors: list[RowError] = []
        agent = _climb(case.agent, record, errors)
        record["sub"] = q.user
        user = _climb(case.user, record, errors)
        rung = min(agent.rung, user.rung)
        duties = _due(case.duties[rung], record, errors)
        return conclude(agent, user, errors, duties, self.version)

    def duties(self, q: Question, rung: Rung) -> tuple[Duty, ...]:
        """What goes with a call that is permitted up to a rung."""
        case = self._case(q.tenant, q.agent, q.user, q.tool)
        record = {"sub": "", "dom": q.tenant, "tool": q.tool, "act": "", "args": q.args, "ctx": q.ctx}
        return () if case.refusal else _due(case.duties[rung], record, [])

    def allowed(
        self, subject: str, tenant: str, tool: str, act: str, args: Mapping[str, Any], ctx: Mapping[str, Any]
    ) -> Answer:
        """Whether the rules allow one subject (`agent:...` or `user:...`) one action, and nothing more."""
        if not (_is_subject(subject, "agent:", "user:") and _is_name(tenant) and _is_name(tool)):
            return Answer(allowed=False, rows=(), errors=())
        scope = {"sub": subject, "dom": tenant, "tool": tool, "act": act, "args": args, "ctx": ctx}
        errors: list[RowError] = []
        verdict = _judge(self._plan(subject, tenant, tool, act), {"r": scope}, errors)
        rules = verdict.denied_by or verdict.allowed_by
        return Answer(allowed=verdict.allowed, rows=tuple(rule.row for rule in rules), errors=tuple(errors))

    def visible(self, tenant: str, agent: str, user: str, tool: str) -> bool:
        """Whether any arguments at all could give a rung above DENY. Looks at none.

        A row without condition that denies the action `list` also hides a tool.
        """
        case = self._case(tenant, agent, user, tool)
        if case.refusal is not None:
            return False
        return not any(
            all(plan.hopeless for plan in plans)
            or any(rule.condition is None for rule in self._plan(subject, tenant, tool, "list").denies)
            for subject, plans in ((agent, case.agent), (user, case.user))
        )

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

        Rules see `r.ctx.in_chain`: 1 for those in `exclude` (who asked, and for whom), else 0.
        """
        outside, inside = {**ctx, "in_chain": 0}, {**ctx, "in_chain": 1}
        return tuple(
            user
            for user in self.candidates(tenant, tool)
            if self.allowed(
                user, tenant, tool, "approve", args, inside if user in exclude else outside
            ).allowed
        )

    def candidates(self, tenant: str, tool: str) -> tuple[str, ...]:
        """The users of the tenant that could approve some call of the tool, in alphabetical order."""
        known = self._candidates.get((tenant, tool))
        if known is None:
            users = {user for rule in self._approving(tenant, tool) for user in self._users(rule, tenant)}
            known = tuple(
                sorted(user for user in users if not self._plan(user, tenant, tool, "approve").hopeless)
            )
            _remember(self._candidates, (tenant, tool), known)
        return known

    def open_to_approve(self, tenant: str, tool: str) -> bool:
        """Whether a pattern says who approves, so that users the policy does not name may be among them."""
        return any("*" in rule.values[0] for rule in self._approving(tenant, tool))

    def subjects(self, tenant: str) -> Subjects:
        """The agents and users that the policy names in a tenant."""
        known = self._subjects.get(tenant)
        if known is None:
            names = {*self.graphs["g"].names(tenant), *self.graphs["g3"].names(tenant)}
            names.update(rule.values[0] for rule in self.rules["p"] if rule.values[1] in (tenant, "*"))
            exact = sorted(name for name in names if "*" not in name)
            known = Subjects(
                agents=tuple(name for name in exact if name.startswith("agent:")),
                users=tuple(name for name in exact if name.startswith("user:")),
            )
            _remember(self._subjects, tenant, known)
        return known

    def rows_for(self, request: Mapping[str, str], *, ignoring: Collection[str] = ()) -> list[Rule]:
        """The rules whose columns match `sub`, `dom`, `tool` and `act`, whatever their conditions say.

        Columns in `ignoring` match whatever they hold.
        """
        return self._index["p"].find(request, ignoring=ignoring)

    @property
    def tenants(self) -> tuple[str, ...]:
        """The tenants that the policy names, in alphabetical order."""
        named = {rule.values[1] for rules in self.rules.values() for rule in rules} - {"*"}
        return tuple(sorted({*named, *self.graphs["g"].domains, *self.graphs["g3"].domains}))

    def delegated(self, tenant: str, agent: str, user: str) -> bool:
        """Whether the policy says that the agent may act for the user."""
        graph = self.graphs["g3"]
        targets = {*graph.direct(agent, tenant), *graph.direct("agent:*", tenant)}
        return "user:*" in targets or not targets.isdisjoint(self.graphs["g"].closure(user, tenant))

    def _approving(self, tenant: str, tool: str) -> list[Rule]:
        """The rows that allow anybody to approve calls of a tool."""
        request = {"sub": "", "dom": tenant, "tool": tool, "act": "approve"}
        rules = self.rows_for(request, ignoring=("sub",))
        return [rule for rule in rules if rule.values[5] == "allow"]

    def _users(self, rule: Rule, tenant: str) -> Iterable[str]:
        """The known users that a row's subject can stand for."""
        subject = rule.values[0]
        if "*" in subject:
            return [user for user in self.subjects(tenant).users if key_match(user, subject)]
        return [name for name in self.graphs["g"].members(subject, tenant) if name.startswith("user:")]

    def _case(self, tenant: str, agent: str, user: str, tool: str) -> _Case:
        key = (tenant, agent, user, tool)
        case = self._cases.get(key)
        if case is not None:
            return case
        named = _is_subject(agent, "agent:") and _is_subject(user, "user:")
        if not (named and _is_name(tenant) and _is_name(tool)):
            # Not remembered: there is no end of names that cannot be.
            return _Case(self._refusal("malformed_request"), (), (), ())
        if not self.delegated(tenant, agent, user):
            case = _Case(self._refusal("no_delegation"), (), (), ())
        else:
            case = _Case(
                refusal=None,
                agent=tuple(self._plan(agent, tenant, tool, action) for _, action in LADDER),
                user=tuple(self._plan(user, tenant, tool, action) for _, action in LADDER),
                duties=(
                    _NO_DUTIES,
                    *(self._duties(action, (agent, user), tenant, tool) for _, action in reversed(LADDER)),
                ),
            )
        _remember(self._cases, key, case)
        return case

    def _duties(self, action: str, subjects: tuple[str, ...], tenant: str, tool: str) -> _Duties:
        found = [
            (subject, rule)
            for subject in subjects
            for rule in self._find("p2", subject, tenant, tool, action)
        ]
        duties = {rule.number: _duty(rule) for _, rule in found}
        settled: tuple[Duty, ...] | None = None
        if all(rule.condition is None for _, rule in found):
            settled = tuple(duties[number] for number in sorted(duties))
        return _Duties(
            action, tuple((subject, rule, duties[rule.number]) for subject, rule in found), settled
        )

    def _refusal(self, code: Code) -> Decision:
        return Decision(
            rung=Rung.DENY,
            agent_rung=Rung.DENY,
            user_rung=Rung.DENY,
            delegated=False,
            code=code,
            limited_by="both",
            rows=(),
            errors=(),
            duties=(),
            policy_version=self.version,
        )

    def _plan(self, subject: str, tenant: str, tool: str, action: str) -> _Plan:
        key = (subject, tenant, tool, action)
        plan = self._plans.get(key)
        if plan is None:
            found = self._find("p", *key)
            plan = _planned(
                denies=tuple(rule for rule in found if rule.values[5] == "deny"),
                allows=tuple(rule for rule in found if rule.values[5] == "allow"),
            )
            _remember(self._plans, key, plan)
        return plan

    def _find(self, ptype: str, subject: str, tenant: str, tool: str, action: str) -> list[Rule]:
        index = self._index.get(ptype)
        request = {"sub": subject, "dom": tenant, "tool": tool, "act": action}
        return index.find(request) if index is not None else []


def _planned(denies: tuple[Rule, ...], allows: tuple[Rule, ...]) -> _Plan:
    always_denied = [rule for rule in denies if rule.condition is None]
    settled: Verdict | None = None
    if always_denied or not allows:
        settled = Verdict(False, always_denied, allows, bool(always_denied), False)
    elif not denies and all(rule.condition is None for rule in allows):
        settled = Verdict(True, (), allows, False, False)
    return _Plan(denies, allows, settled)


def _climb(plans: tuple[_Plan, ...], record: dict[str, Any], errors: list[RowError]) -> Standing:
    scope = {"r": record}
    verdicts: list[Verdict] = []
    for (rung, action), plan in zip(LADDER, plans, strict=True):
        record["act"] = action
        verdict = plan.settled or _judge(plan, scope, errors)
        verdicts.append(verdict)
        if verdict.allowed:
            return Standing(rung, verdicts)
    return Standing(Rung.DENY, verdicts)


def _judge(plan: _Plan, scope: Mapping[str, Any], errors: list[RowError]) -> Verdict:
    if plan.settled is not None:
        return plan.settled
    before = len(errors)
    denied_by = [rule for rule in plan.denies if _holds(rule, scope, errors, True)]
    denied = len(denied_by) > len(errors) - before
    allowed_by = [rule for rule in plan.allows if _holds(rule, scope, errors, False)]
    allowed = bool(allowed_by) and not denied_by
    return Verdict(allowed, denied_by, allowed_by, denied, len(errors) > before)


def _holds(rule: Rule, scope: Mapping[str, Any], errors: list[RowError], in_doubt: bool) -> bool:
    """Whether the row applies to the call; `in_doubt` when that cannot be said."""
    if rule.condition is None:
        return True
    try:
        value = rule.condition.evaluate(scope)
        if value is True or value is False:
            return value
        message = "the condition is neither true nor false"
    except EvaluationError as error:
        message = str(error)
    errors.append(RowError(row=rule.row, message=message))
    return in_doubt


def _due(duties: _Duties, record: dict[str, Any], errors: list[RowError]) -> tuple[Duty, ...]:
    if duties.settled is not None:
        return duties.settled
    scope = {"r": record}
    record["act"] = duties.action
    due: dict[int, Duty] = {}
    for subject, rule, duty in duties.rules:
        record["sub"] = subject
        if rule.number not in due and _holds(rule, scope, errors, True):
            due[rule.number] = duty
    return tuple(due[number] for number in sorted(due))


def _duty(rule: Rule) -> Duty:
    name, _, value = rule.values[5].partition("=")
    return Duty(name=name, value=value, row=rule.row)


def _limited_by(agent: Rung, user: Rung) -> Literal["agent", "user", "both", "none"]:
    if agent is not user:
        return "agent" if agent < user else "user"
    return "none" if agent is Rung.EXECUTE else "both"


def conclude(
    agent: Standing,
    user: Standing,
    errors: Sequence[RowError],
    duties: tuple[Duty, ...],
    policy_version: str,
) -> Decision:
    """The decision that follows from how far each side may go."""
    rung = min(agent.rung, user.rung)
    return Decision(
        rung=rung,
        agent_rung=agent.rung,
        user_rung=user.rung,
        delegated=True,
        code=_CODES[rung] or _refusal_code(agent, user),
        limited_by=_limited_by(agent.rung, user.rung),
        rows=_determining(agent, user),
        errors=tuple(dict.fromkeys(errors)) if errors else (),
        duties=duties,
        policy_version=policy_version,
    )


_CODES: dict[Rung, Code | None] = {
    Rung.EXECUTE: "allowed",
    Rung.APPROVE: "needs_approval",
    Rung.ADVISE: "advise_only",
    Rung.DENY: None,
}


def _refusal_code(agent: Standing, user: Standing) -> Code:
    verdicts = [verdict for side in (agent, user) if side.rung is Rung.DENY for verdict in side.verdicts]
    if any(verdict.denied and verdict.allowed_by for verdict in verdicts):
        return "denied_by_rule"
    return "rule_error" if any(verdict.in_doubt for verdict in verdicts) else "no_rule"


def _determining(agent: Standing, user: Standing) -> tuple[Row, ...]:
    """What allows each side as far as it may go, and what keeps the lower one from going further."""
    rules: dict[int, Row] = {}
    lowest = min(agent.rung, user.rung)
    for rung, verdicts in (agent, user):
        if rung:
            for rule in verdicts[-1].allowed_by:
                rules[rule.number] = rule.row
        if rung == lowest:
            for verdict in verdicts:
                for rule in verdict.denied_by:
                    rules[rule.number] = rule.row
    return tuple(rules[number] for number in sorted(rules))


def _remember(memo: dict[Any, Any], key: Any, value: Any) -> None:
    if len(memo) >= MEMO_MAX:
        memo.clear()
    memo[key] = value


def _is_subject(name: object, *prefixes: str) -> bool:
    return _is_name(name) and isinstance(name, str) and name.startswith(prefixes) and name[-1] != ":"


def _is_name(name: object) -> bool:
    """A name that can only mean itself: no pattern, nothing invisible, one spelling."""
    return (
        type(name) is str
        and 0 < len(name) <= NAME_LENGTH_MAX
        and "*" not in name
        and " " not in name
        and name.isprintable()
        and unicodedata.is_normalized("NFC", name)
    )
