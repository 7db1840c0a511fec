"""Questions that no agent asked: put by people and by policy tests, answered as the gateway would.

A tool is taken from the configuration alone, nothing is connected: its effect, price and way back are the
declared ones, and arguments are not held against a schema. Nothing is recorded and nothing is let out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from remit.approvals import eligible, votes_needed
from remit.calls import new_call
from remit.catalog import build, source_of
from remit.checks.permission import question_of, verdict_on
from remit.config import Config
from remit.context import context_of
from remit.errors import RemitError
from remit.facts import parsed_of
from remit.identity import Principal
from remit.model import Call, Tool
from remit.pipeline import estimates_of
from remit_adapters.base import Offer
from remit_rbac import Decision, Engine, EvaluationError, Policy, Question, Rung


class NoQuestion(RemitError):
    """It cannot be asked like this; the message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Supposed:
    """A call that is imagined, and what the gateway would know about it."""

    tenant: str
    agent: str
    user: str
    tool: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    #: Microseconds since 1970-01-01 UTC.
    at_us: int
    claim: Mapping[str, Any] = field(default_factory=dict[str, Any])
    #: What lookups would have found: `r.ctx.facts`.
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    #: What the run is known to have established; None: nothing is said about it.
    run: Mapping[str, Any] | None = None
    #: Attributes of `r.ctx` that are to be these, whatever the configuration says.
    context: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    question: Question
    #: What the policy alone says.
    decision: Decision
    #: What the gateway would do. It also denies for a duty that it cannot carry out, for want of people who
    #: may approve, and where no price can be worked out.
    rung: Rung
    code: str
    #: Who may approve it, when people are to be asked.
    approvers: tuple[str, ...]


class Asker:
    """Asks one policy, for one configuration. Keeps the tools that it has worked out."""

    def __init__(self, config: Config, policy: Policy) -> None:
        self.policy = policy
        self._config = config
        self._tools: dict[str, Tool] = {}

    def question(self, supposed: Supposed) -> Question:
        """What the gateway would put to its policy. Raises NoQuestion."""
        return self._question(supposed, *self._call(supposed))

    def ask(self, supposed: Supposed) -> Answered:
        """Raises NoQuestion."""
        call, estimates = self._call(supposed)
        answered = answer(self._question(supposed, call, estimates), self.policy)
        if estimates is None:
            answered = replace(answered, rung=Rung.DENY, code="no_price", approvers=())
        return answered

    def _question(self, supposed: Supposed, call: Call, estimates: Mapping[str, int] | None) -> Question:
        parsed = parsed_of(call)
        if isinstance(parsed, str):
            raise NoQuestion(f"the arguments do not fit the tool: {parsed}")
        context = context_of(
            call,
            self._config,
            estimates or {},
            undo_ready=call.tool.undo is not None or call.is_held_back,
            parsed=parsed,
            facts=supposed.facts or None,
            run=supposed.run or {},
        )
        return question_of(call, {**context, **supposed.context})

    def _call(self, supposed: Supposed) -> tuple[Call, Mapping[str, int] | None]:
        """The call, and what it may cost; None when that cannot be worked out."""
        try:
            principal = Principal(
                tenant=supposed.tenant, agent=supposed.agent, user=supposed.user, auth="local"
            )
        except ValueError as error:
            raise NoQuestion(str(error)) from None
        call = new_call(
            tool=self._tool(supposed.tool),
            arguments=supposed.arguments,
            principal=principal,
            run="default",
            secret=b"",
            at_us=supposed.at_us,
            claim=dict(supposed.claim),
        )
        try:
            return call, estimates_of(call)
        except EvaluationError:
            return call, None

    def _tool(self, name: str) -> Tool:
        """The tool as the configuration alone knows it."""
        if name not in self._tools:
            found = source_of(self._config, name)
            if found is None:
                sources = ", ".join(self._config.sources)
                raise NoQuestion(f"no source exports {name!r}: the sources are {sources}")
            source, own_name = found
            definition = {"name": own_name, "inputSchema": {"type": "object"}}
            known = build(self._config, {source: Offer(tools=(definition,))}).tools.get(name)
            if known is None:
                raise NoQuestion(f"{name!r} is not the name of a tool: use A-Z a-z 0-9 _ . -")
            self._tools[name] = known
        return self._tools[name]


def answer(question: Question, policy: Engine) -> Answered:
    """What the gateway would do with this call under a policy, budgets, switches and ways back aside."""
    decision = policy.decide(question)
    verdict = verdict_on(decision, question, policy)
    rung, code = verdict.rung, verdict.code
    approvers: tuple[str, ...] = ()
    if rung is Rung.APPROVE:
        approvers = eligible(question, policy)
        if len(approvers) < votes_needed(verdict.duties):
            rung, code = Rung.DENY, "no_approver"
    return Answered(question=question, decision=decision, rung=rung, code=code, approvers=approvers)
