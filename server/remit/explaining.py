"""Why one recorded call was decided as it was, as a value that can be told to somebody who does not program.

It asks a policy again what it was asked then, and keeps what every rule said. Where the record does not
hold all that rules saw, or the policy of then cannot be read, `gaps` says what stands in for it. Nothing
here writes, and nothing decides: what is recorded is what happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remit.approvals import eligible
from remit.asking import Asker, NoQuestion, Supposed
from remit.config import Config
from remit.records import Asked as AskedThen
from remit.records import Story
from remit_rbac import Decision, Duty, Policy, Question, Row, Rung, index
from remit_rbac.conditions import paths_of
from remit_rbac.decisions import LADDER
from remit_rbac.explain import near_misses
from remit_rbac.tracing import Asked, Step, climbed
from remit_rbac.words import Part, operands, parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row, and what it said about this call."""

    row: Row
    #: For example `role:support`, when it is not about the subject by name.
    through: str
    allows: bool
    holds: bool
    #: What its condition asks for; none when it always holds.
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One action, and whether it is allowed."""

    act: str
    allowed: bool
    #: Those that made it so: what denies, else what allows, else what would have.
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    subject: str
    roles: tuple[str, ...]
    verdict: str
    #: From `execute` down to what is allowed.
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    duty: Duty
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearly:
    """What would have to be otherwise for the call to get further."""

    subject: str
    act: str
    row: Row
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    story: Story
    #: The policy that was asked again; `same_policy` when it is the one that decided.
    version: str
    same_policy: bool
    question: Question | None
    decision: Decision | None
    sides: tuple[Side, ...]
    duties: tuple[Due, ...]
    #: Who may agree, where people are asked.
    approvers: tuple[str, ...]
    nearly: tuple[Nearly, ...]
    #: What was looked up before deciding, and what the run had established.
    facts: Mapping[str, Any]
    #: What the policy of today makes of the same call: a verdict and a code. None when it cannot be asked.
    today: tuple[str, str] | None
    today_version: str
    gaps: tuple[str, ...]

    @property
    def policy_said(self) -> str:
        return self.decision.rung.name.lower() if self.decision else self.story.call.verdict


def explain(
    story: Story, kept: AskedThen | None, config: Config, policy: Policy, *, then: Policy | None
) -> Explanation:
    """Explain a call under the policy that decided it (`then`; None when it cannot be read), or today's.

    `kept` is what policy was asked, as it was recorded.
    """
    call = story.call
    gaps: list[str] = []
    asked = then or policy
    same = asked.version == call.policy_version
    question = None
    if not call.policy_version:
        gaps.append("The policy was not asked: something else refused the call before.")
    elif call.kind != "call":
        gaps.append("This call serves another one, so the rows below are all that the policy was asked for.")
    elif story.arguments is None:
        gone = "have been erased" if story.erased else "were of age and are not kept any more"
        gaps.append(f"The arguments {gone}, so only the rows that were recorded can be told.")
    else:
        question = _question(story, kept, Asker(config, asked), gaps)
    if question and not same:
        gaps.append(
            "The policy that decided cannot be read any more; what follows is what today's policy says."
        )
    decision = asked.decide(question) if question else None
    today = _today(story, config, policy) if question else None
    if question is None or decision is None:
        sides, duties, approvers, nearly = (), (), (), ()
    else:
        sides = tuple(_side(asked, question, subject) for subject in (question.agent, question.user))
        duties = tuple(_due(asked, duty, question) for duty in decision.duties)
        approvers = eligible(question, asked) if call.verdict == "approve" else ()
        nearly = _nearly(asked, question)
    return Explanation(
        story=story,
        version=asked.version,
        same_policy=same,
        question=question,
        decision=decision,
        sides=sides,
        duties=duties,
        approvers=approvers,
        nearly=nearly,
        facts=_facts(question),
        today=today,
        today_version=policy.version,
        gaps=tuple(gaps),
    )


def supposed_of(story: Story) -> Supposed:
    """The call as it can be asked about again."""
    call = story.call
    return Supposed(
        tenant=call.tenant,
        agent=call.agent,
        user=call.user,
        tool=call.tool,
        arguments=story.arguments or {},
        at_us=call.created_us,
        claim=call.claim or {},
        context=story.context or {"effect": call.effect},
    )


def _question(story: Story, kept: AskedThen | None, asker: Asker, gaps: list[str]) -> Question | None:
    if kept is not None:
        if kept.redacted:
            gaps.append(
                "Parts were struck out before it was stored: a rule that reads them may answer otherwise."
            )
        return kept.question
    try:
        question = asker.question(supposed_of(story))
    except NoQuestion as error:
        gaps.append(f"It cannot be asked again: {error}.")
        return None
    gaps.append(
        "What the rules saw beside the arguments is not kept: it is worked out again, as configured today."
    )
    return question


def _today(story: Story, config: Config, policy: Policy) -> tuple[str, str] | None:
    try:
        answered = Asker(config, policy).ask(supposed_of(story))
    except NoQuestion:
        return None
    return answered.rung.name.lower(), answered.code


def _side(policy: Policy, q: Question, subject: str) -> Side:
    steps = list(climbed(policy, q, subject))
    reached = next((rung for rung, act in LADDER if steps[-1].allowed and act == steps[-1].act), Rung.DENY)
    roles = sorted(policy.graphs["g"].closure(subject, q.tenant) - {subject})
    return Side(
        subject=subject,
        roles=tuple(roles),
        verdict=reached.name.lower(),
        attempts=tuple(_attempt(step, q) for step in steps),
    )


def _attempt(step: Step, q: Question) -> Attempt:
    denying = [asked for asked in step.asked if asked.rule.values[5] == "deny" and asked.holds]
    allowing = [asked for asked in step.asked if asked.rule.values[5] == "allow"]
    record = _record(q, step.subject, step.act)
    fitting = [asked for asked in allowing if not _of_another_effect(asked.rule, record)]
    shown = denying or [asked for asked in allowing if asked.holds] or fitting or allowing
    return Attempt(
        act=step.act,
        allowed=step.allowed,
        rules=tuple(_rule(asked, q, step.subject, step.act) for asked in shown),
    )


def _rule(asked: Asked, q: Question, subject: str, act: str) -> Rule:
    who = asked.rule.values[0]
    return Rule(
        row=asked.rule.row,
        through="" if who == subject else who,
        allows=asked.rule.values[5] == "allow",
        holds=asked.holds,
        parts=parts(asked.rule.condition, _record(q, subject, act)),
    )


def _due(policy: Policy, duty: Duty, q: Question) -> Due:
    rule = next(rule for rule in policy.rules["p2"] if rule.row == duty.row)
    return Due(duty=duty, parts=parts(rule.condition, _record(q, q.agent, "execute")))


def _nearly(policy: Policy, q: Question) -> tuple[Nearly, ...]:
    """The nearest rows that could have helped, with the parts of their conditions that do not hold."""
    steps = [step for subject in (q.agent, q.user) for step in climbed(policy, q, subject)]
    denied = {step.act for step in steps if step.denied_by}
    found: list[Nearly] = []
    for miss in near_misses(policy, q):
        rule = next(rule for rule in policy.rules["p"] if rule.row == miss.row)
        record = _record(q, miss.subject, miss.act)
        if miss.act in denied or _of_another_effect(rule, record):
            continue
        unmet = [part for part in parts(rule.condition, record) if not part.holds]
        found.append(Nearly(subject=miss.subject, act=miss.act, row=miss.row, parts=tuple(unmet)))
    return tuple(found)


def _of_another_effect(rule: index.Rule, record: Mapping[str, Any]) -> bool:
    """Whether a row is about tools with another effect: nothing that is asked of this one could fit it."""
    asked = zip(operands(rule.condition), parts(rule.condition, record), strict=True)
    return any(
        path.keys[1:] == ("ctx", "effect")
        for node, part in asked
        if not part.holds
        for path in paths_of(node)
    )


def _facts(question: Question | None) -> Mapping[str, Any]:
    """What rules saw that neither the caller nor the configuration said."""
    if question is None:
        return {}
    run = question.ctx.get("run")
    found: dict[str, Any] = {**question.ctx.get("facts", {}), **question.ctx.get("derived", {})}
    if isinstance(run, Mapping):
        found.update({f"run {name}": value for name, value in run.items() if name != "id"})  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - JSON
    return found


def _record(q: Question, subject: str, act: str) -> Mapping[str, Any]:
    return {"sub": subject, "dom": q.tenant, "tool": q.tool, "act": act, "args": q.args, "ctx": q.ctx}
