"""The same policy in an unmodified pycasbin enforcer: the reference to compare with, and a slow engine.

`StockPolicy` answers as `Policy` does, asking pycasbin for every yes and no. It exists to check the
index against, and for those who want Casbin's own code to decide. It reads every row, answers one
question at a time, and denies a question when any row it reads raises. Delegation, duties, what is visible
and what other arguments could do are not Casbin's, so they come from the policy itself. This is the only user
of `casbin`.

The two give the same answers on the same files, but where
- a condition cannot be answered (a missing attribute, a value of another type, NaN, no boolean): pycasbin
  raises or guesses; `Policy` takes an allow as not matching and a deny as matching;
- an argument is named like a method of `dict`: pycasbin reads the method, `Policy` the argument;
- a text in quotes holds `!`, `&&`, `||`, `r.` or `p.`: pycasbin rewrites it, `Policy` takes it as written
  (and warns);
- a subject is no `agent:` or `user:`, or a name holds `*` or cannot be seen: `Policy` denies.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from threading import Lock
from typing import Any, Protocol, cast

import casbin  # pyright: ignore[reportMissingTypeStubs] - pycasbin ships none
from casbin.persist.adapters.string_adapter import (  # pyright: ignore[reportMissingTypeStubs] - as above
    StringAdapter,
)

from remit_rbac.conditions import FUNCTIONS
from remit_rbac.decisions import (
    LADDER,
    Answer,
    Decision,
    Question,
    RowError,
    Rung,
    Standing,
    Verdict,
    conclude,
)
from remit_rbac.index import Row, Rule
from remit_rbac.policy import Policy


class _Enforcer(Protocol):
    """What is used of an enforcer; pycasbin has no types of its own."""

    def add_function(self, name: str, func: Any) -> None: ...
    def enforce_ex(self, *request: Any) -> tuple[bool, list[str]]: ...


class StockPolicy:
    """A policy that pycasbin decides. Any thread may call it; they wait for each other."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._rules = {rule.values: rule for rule in policy.rules["p"]}
        self._enforcer = _enforcer(policy)
        # Casbin's role managers write while they answer.
        self._lock = Lock()
        self.warnings = policy.warnings
        self.subjects = policy.subjects
        self.delegated = policy.delegated

    @property
    def version(self) -> str:
        return self._policy.version

    def visible(self, tenant: str, agent: str, user: str, tool: str) -> bool:
        """As `Policy.visible`."""
        return self._policy.visible(tenant, agent, user, tool)

    def could_allow_otherwise(self, q: Question, varying: Collection[str]) -> bool:
        """As `Policy.could_allow_otherwise`."""
        return self._policy.could_allow_otherwise(q, varying)

    def reads(self, attribute: str) -> bool:
        """As `Policy.reads`."""
        return self._policy.reads(attribute)

    def enforce(
        self, subject: str, tenant: str, tool: str, act: str, args: Mapping[str, Any], ctx: Mapping[str, Any]
    ) -> tuple[bool, Rule | None]:
        """pycasbin's answer and the row it names. Raises whatever pycasbin raises for these values."""
        with self._lock:
            allowed, values = self._enforcer.enforce_ex(subject, tenant, tool, act, args, ctx)
        return allowed, self._rules.get(tuple(values))

    def decide(self, q: Question) -> Decision:
        """As `Policy.decide`."""
        ours = self._policy.decide(q)
        if not ours.delegated:
            return ours
        errors: list[RowError] = []
        agent, user = self._climb(q.agent, q, errors), self._climb(q.user, q, errors)
        duties = self._policy.duties(q, min(agent.rung, user.rung))
        return conclude(agent, user, errors, duties, self.version)

    def allowed(
        self, subject: str, tenant: str, tool: str, act: str, args: Mapping[str, Any], ctx: Mapping[str, Any]
    ) -> Answer:
        """As `Policy.allowed`."""
        errors: list[RowError] = []
        verdict = self._judge(subject, tenant, tool, act, args, ctx, errors)
        rules = verdict.denied_by or verdict.allowed_by
        owes = act == "undo" and verdict.allowed
        return Answer(
            allowed=verdict.allowed,
            rows=tuple(rule.row for rule in rules),
            duties=self._policy.undo_duties(subject, tenant, tool, args, ctx) if owes else (),
            errors=tuple(errors),
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
        """As `Policy.approvers`."""
        return tuple(
            user
            for user in self._policy.candidates(tenant, tool)
            if self.allowed(
                user, tenant, tool, "approve", args, {**ctx, "in_chain": int(user in exclude)}
            ).allowed
        )

    def _climb(self, subject: str, q: Question, errors: list[RowError]) -> Standing:
        verdicts: list[Verdict] = []
        for rung, act in LADDER:
            verdicts.append(self._judge(subject, q.tenant, q.tool, act, q.args, q.ctx, errors))
            if verdicts[-1].allowed:
                return Standing(rung, verdicts)
        return Standing(Rung.DENY, verdicts)

    def _judge(
        self,
        subject: str,
        tenant: str,
        tool: str,
        act: str,
        args: Mapping[str, Any],
        ctx: Mapping[str, Any],
        errors: list[RowError],
    ) -> Verdict:
        try:
            allowed, rule = self.enforce(subject, tenant, tool, act, args, ctx)
        except Exception as error:  # noqa: BLE001 - pycasbin evaluates text, which can raise anything
            errors.append(RowError(row=_SOME_ROW, message=type(error).__name__))
            return Verdict(False, (), (), denied=False, in_doubt=True)
        named = () if rule is None else (rule,)
        if allowed:
            return Verdict(True, (), named, denied=False, in_doubt=False)
        denied_by = tuple(rule for rule in named if rule.values[5] == "deny")
        return Verdict(False, denied_by, (), denied=bool(denied_by), in_doubt=False)


#: pycasbin does not say which row raised.
_SOME_ROW = Row(file="pycasbin", line=0, text="")


def _enforcer(policy: Policy) -> _Enforcer:
    rows = [", ".join((ptype, *rule.values)) for ptype, rules in policy.rules.items() for rule in rules]
    rows += [", ".join((name, *link)) for name, graph in policy.graphs.items() for link in graph.links]
    model = casbin.Enforcer.new_model(text=policy.model.text)
    enforcer = cast("_Enforcer", casbin.Enforcer(model, StringAdapter("\n".join(rows))))
    for name, function in FUNCTIONS.items():
        if name != "keyMatch":
            enforcer.add_function(name, function.body)
    return enforcer
