"""One immutable policy, and the decisions it makes.

A decision asks the same rules twice, for the agent and for the user it acts for, and takes the lower
rung, so an agent is never allowed more than its user. A deny always wins. A rule that cannot be
evaluated denies: as an allow it does not match, as a deny it does, and either way it is reported. A
duty that cannot be evaluated applies. The loader builds policies; whoever holds one swaps it whole.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from remit_rbac.conditions import key_match
from remit_rbac.decisions import (
    LADDER,
    Answer,
    Code,
    Decision,
    Duty,
    Question,
    RowError,
    Rung,
    Subjects,
    conclude,
)
from remit_rbac.index import Index, Rule
from remit_rbac.model import Model
from remit_rbac.other_arguments import could_allow
from remit_rbac.plans import ANSWERS_MAX, Case, Duties, Plan, climb
from remit_rbac.problems import Problem
from remit_rbac.roles import RoleGraph

#: What is remembered per policy and kind. Past it all is dropped, and found again in microseconds.
MEMO_MAX = 20_000
NAME_LENGTH_MAX = 256


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
        self.rules = MappingProxyType({ptype: tuple(found) for ptype, found in rules.items()})
        self.graphs = MappingProxyType(dict(graphs))
        #: SHA-256 of the model and the set of rows; equal for policies that decide alike.
        self.version = version
        self.warnings = tuple(warnings)
        self._index = {name: Index(table, rules[name], graphs) for name, table in model.tables.items()}
        self._named_by_rules: dict[str, set[str]] = {}
        for rule in rules["p"]:
            self._named_by_rules.setdefault(rule.values[1], set()).add(rule.values[0])
        self._cases: dict[tuple[str, str, str, str], Case] = {}
        self._plans: dict[tuple[str, str, str, str], Plan] = {}
        self._subjects: dict[str, Subjects] = {}
        self._read: frozenset[str] | None = None
        self._candidates: dict[tuple[str, str], tuple[str, ...]] = {}

    def decide(self, q: Question) -> Decision:
        """How far this call may go. What is odd about the question is denied, not raised."""
        case = self._case(q.tenant, q.agent, q.user, q.tool)
        if case.refusal is not None:
            return case.refusal

        record = {"sub": q.agent, "dom": q.tenant, "tool": q.tool, "act": "", "args": q.args, "ctx": q.ctx}
        errors: list[RowError] = []
        agent = climb(case.agent, record, errors)
        record["sub"] = q.user
        user = climb(case.user, record, errors)
        rung = min(agent.rung, user.rung)
        duties = case.duties.get(rung) or self._duties(case, rung, q)
        due = duties.due(record, errors) if duties.rules else 0
        outcome = (*agent.verdicts, *user.verdicts, due)
        decision = case.decisions.get(outcome) if not errors else None
        if decision is None:
            decision = conclude(agent, user, errors, duties.named(due), self.version)
            if not errors and len(case.decisions) < ANSWERS_MAX:
                case.decisions[outcome] = decision
        return decision

    def duties(self, q: Question, rung: Rung) -> tuple[Duty, ...]:
        """What goes with a call that is permitted up to a rung."""
        case = self._case(q.tenant, q.agent, q.user, q.tool)
        if case.refusal is not None:
            return ()
        record = {"sub": "", "dom": q.tenant, "tool": q.tool, "act": "", "args": q.args, "ctx": q.ctx}
        duties = self._duties(case, rung, q)
        return duties.named(duties.due(record, []))

    def allowed(
        self, subject: str, tenant: str, tool: str, act: str, args: Mapping[str, Any], ctx: Mapping[str, Any]
    ) -> Answer:
        """Whether the rules allow one subject (`agent:...` or `user:...`) one action, and nothing more."""
        plan = self._plans.get((subject, tenant, tool, act))
        if plan is None:
            if not (_is_subject(subject, "agent:", "user:") and _is_name(tenant) and _is_name(tool)):
                return Answer(allowed=False, rows=(), errors=())
            plan = self._plan(subject, tenant, tool, act)
        record = {"sub": subject, "dom": tenant, "tool": tool, "act": act, "args": args, "ctx": ctx}
        errors: list[RowError] = []
        verdict = plan.judge(record, errors)
        rules = verdict.denied_by or verdict.allowed_by
        owes = act == "undo" and verdict.allowed
        return Answer(
            allowed=verdict.allowed,
            rows=tuple([rule.row for rule in rules]),
            duties=self.undo_duties(subject, tenant, tool, args, ctx) if owes else (),
            errors=tuple(errors),
        )

    def undo_duties(
        self, subject: str, tenant: str, tool: str, args: Mapping[str, Any], ctx: Mapping[str, Any]
    ) -> tuple[Duty, ...]:
        """What goes with an undo by one subject. Rows for all actions are about calls."""
        record = {"dom": tenant, "tool": tool, "args": args, "ctx": ctx}
        found = [
            (subject, rule, _duty(rule))
            for rule in self._find("p2", subject, tenant, tool, "undo")
            if rule.values[3] == "undo"
        ]
        duties = Duties("undo", tuple(found))
        return duties.named(duties.due(record, []))

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

    def could_allow_otherwise(self, q: Question, varying: Collection[str]) -> bool:
        """Whether other arguments could give a rung above DENY, everything else being as it is.

        `varying` are the names below `r.ctx` of what is made of the arguments.
        """
        case = self._case(q.tenant, q.agent, q.user, q.tool)
        if case.refusal is not None:
            return False
        known = {"dom": q.tenant, "tool": q.tool, "ctx": q.ctx}
        return all(
            any(
                could_allow(plan, {**known, "sub": subject, "act": act}, varying)
                for (_, act), plan in zip(LADDER, plans, strict=True)
            )
            for subject, plans in ((q.agent, case.agent), (q.user, case.user))
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
        names = [rule.values[0] for rule in self._approving(tenant, tool)]
        return any("*" in name and not name.startswith("agent:") for name in names)

    def subjects(self, tenant: str) -> Subjects:
        """The agents and users that the policy names in a tenant."""
        known = self._subjects.get(tenant)
        if known is None:
            names = {*self.graphs["g"].names(tenant), *self.graphs["g3"].names(tenant)}
            names.update(*(self._named_by_rules.get(place, ()) for place in (tenant, "*")))
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

    def reads(self, attribute: str) -> bool:
        """Whether any condition reads something inside an attribute of `r.ctx`, other than its `id`."""
        if self._read is None:
            conditions = {
                rule.condition.text: rule.condition
                for rules in self.rules.values()
                for rule in rules
                if rule.condition
            }
            self._read = frozenset(
                str(path[2])
                for condition in conditions.values()
                for path in condition.paths
                if path[1] == "ctx" and path[3:] != ("id",)
            )
        return attribute in self._read

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

    def _case(self, tenant: str, agent: str, user: str, tool: str) -> Case:
        key = (tenant, agent, user, tool)
        case = self._cases.get(key)
        if case is not None:
            return case
        named = _is_subject(agent, "agent:") and _is_subject(user, "user:")
        if not (named and _is_name(tenant) and _is_name(tool)):
            # Not remembered: there is no end of names that cannot be.
            return Case(self._refusal("malformed_request"))
        if not self.delegated(tenant, agent, user):
            case = Case(self._refusal("no_delegation"))
        else:
            case = Case(
                refusal=None,
                agent=tuple(self._plan(agent, tenant, tool, action) for _, action in LADDER),
                user=tuple(self._plan(user, tenant, tool, action) for _, action in LADDER),
            )
        _remember(self._cases, key, case)
        return case

    def _duties(self, case: Case, rung: Rung, q: Question) -> Duties:
        # A call that is denied owes nothing.
        actions = [action for granted, action in LADDER if granted is rung]
        found = [
            (subject, rule, _duty(rule))
            for action in actions
            for subject in (q.agent, q.user)
            for rule in self._find("p2", subject, q.tenant, q.tool, action)
        ]
        duties = Duties("".join(actions), tuple(found))
        case.duties[rung] = duties
        return duties

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

    def _plan(self, subject: str, tenant: str, tool: str, action: str) -> Plan:
        key = (subject, tenant, tool, action)
        plan = self._plans.get(key)
        if plan is None:
            plan = Plan(self._find("p", *key))
            _remember(self._plans, key, plan)
        return plan

    def _find(self, ptype: str, subject: str, tenant: str, tool: str, action: str) -> list[Rule]:
        index = self._index.get(ptype)
        request = {"sub": subject, "dom": tenant, "tool": tool, "act": action}
        return index.find(request) if index is not None else []


def _duty(rule: Rule) -> Duty:
    name, _, value = rule.values[5].partition("=")
    return Duty(name=name, value=value, row=rule.row)


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
