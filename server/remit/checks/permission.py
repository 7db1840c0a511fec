"""May this agent, for this user, do this, and how far? The policy's answer, put into words for the agent.

Undoing has its own action: whoever may `undo` a tool may take its calls back, whatever tool that takes. A
duty may ask for people first: then whoever may `approve` calls of that tool.
Reads that the gateway makes for its own plans carry no permission of their own; the call they serve does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remit.context import OF_ARGUMENTS
from remit.model import OWN_READS, USUAL_REASONS, Call, Remedy, Verdict
from remit_rbac import Decision, Engine, Question, Row, RowError, Rung, is_duty

_ALLOWED = USUAL_REASONS["allowed"]
_REASONS: Mapping[str, tuple[str, Remedy]] = {
    "needs_approval": ("A person must approve this call first.", Remedy.WAIT),
    "advise_only": (
        "You may find out what this call would do, but not make it. "
        "Nothing was done: tell your user what you would propose.",
        Remedy.ASK,
    ),
    "no_delegation": ("You do not act for this user here. Stop and tell your user.", Remedy.STOP),
    "denied_by_rule": (
        "Policy forbids this call as it stands. Do not try it again in another form; tell your user.",
        Remedy.STOP,
    ),
    "unknown_duty": (
        "A policy rule asks for something with this call that this gateway does not know how to do, so the "
        "call is refused. Tell your user: an operator must change the rule.",
        Remedy.STOP,
    ),
    "rule_error": (
        "A policy rule could not be evaluated for these arguments, so the call is refused. "
        "Check that every argument is present and of the right type.",
        Remedy.CHANGE,
    ),
}
_NO_RULE_OTHER = (
    "No rule allows this call with these arguments; with other arguments (for example a smaller amount) it "
    "may be allowed. Change them, or ask your user for someone with more authority.",
    Remedy.CHANGE,
)
_NO_RULE_NOW = (
    "No rule allows you this as things are, and other arguments would not change that. Do not try it again "
    "with others; ask your user.",
    Remedy.ASK,
)
_NO_RULE = ("No rule allows you this. Stop and tell your user what you would need.", Remedy.STOP)


def permission(call: Call, policy: Engine, context: Mapping[str, Any]) -> Verdict:
    if call.kind in OWN_READS:
        return Verdict(
            rung=Rung.EXECUTE,
            code="own_read",
            reason=USUAL_REASONS["own_read"],
            remedy=Remedy.STOP,
            policy_version=policy.version,
        )
    if call.undoing is not None:
        return _may_undo(question_of(call, context), policy, alone=call.principal.auth == "local")
    question = question_of(call, context)
    return verdict_on(policy.decide(question), question, policy)


def question_of(call: Call, context: Mapping[str, Any]) -> Question:
    """What policy is asked about a call; of an undo, about the call that it takes back."""
    who, about = call.principal, call.undoing or call
    return Question(
        tenant=who.tenant,
        agent=who.agent,
        user=who.user,
        tool=about.tool.name,
        args=about.arguments,
        ctx=context,
    )


def verdict_on(decision: Decision, q: Question, policy: Engine) -> Verdict:
    """What the gateway makes of what policy said: a duty that it does not know is not left undone."""
    rung, code = decision.rung, decision.code
    if rung is not Rung.DENY and not all(is_duty(str(duty)) for duty in decision.duties):
        rung, code = Rung.DENY, "unknown_duty"
        reason, remedy = _REASONS[code]
    elif rung is Rung.EXECUTE:
        reason, remedy = _ALLOWED, Remedy.STOP
    elif decision.code in _REASONS:
        reason, remedy = _REASONS[decision.code]
    elif not policy.visible(q.tenant, q.agent, q.user, q.tool):
        reason, remedy = _NO_RULE
    elif policy.could_allow_otherwise(q, OF_ARGUMENTS):
        reason, remedy = _NO_RULE_OTHER
    else:
        reason, remedy = _NO_RULE_NOW
    return Verdict(
        rung=rung,
        code=code,
        reason=reason,
        remedy=remedy,
        duties=decision.duties,
        rows=_for_people(decision.rows, decision.errors),
        policy_version=decision.policy_version,
        in_doubt=decision.in_doubt,
    )


def _may_undo(q: Question, policy: Engine, *, alone: bool) -> Verdict:
    """`alone`: a person at the command line, in their own name. An agent never without its user's right."""
    answers = [
        policy.allowed(subject, q.tenant, q.tool, "undo", q.args, q.ctx)
        for subject in ((q.user,) if alone else (q.agent, q.user))
    ]
    rung, code, reason, remedy = Rung.EXECUTE, "allowed", _ALLOWED, Remedy.ASK
    duties = tuple(dict.fromkeys(duty for answer in answers for duty in answer.duties))
    if not alone and not policy.delegated(q.tenant, q.agent, q.user):
        rung, code, (reason, remedy) = Rung.DENY, "no_delegation", _REASONS["no_delegation"]
    elif not all(answer.allowed for answer in answers):
        rung, code = Rung.DENY, "undo_not_allowed"
        reason = "Policy does not let you undo this call. Ask your user to have it undone by someone who may."
    elif duties:
        rung, code = Rung.APPROVE, "needs_approval"
        reason, remedy = "A person must agree to this undo first.", Remedy.WAIT
    return Verdict(
        rung=rung,
        code=code,
        reason=reason,
        remedy=remedy,
        duties=duties,
        rows=tuple(row for answer in answers for row in _for_people(answer.rows, answer.errors)),
        policy_version=policy.version,
    )


def _for_people(rows: tuple[Row, ...], errors: tuple[RowError, ...]) -> tuple[str, ...]:
    return tuple(f"{row.file}:{row.line}: {row.text}" for row in rows) + tuple(
        f"{error.row.file}:{error.row.line}: not evaluated: {error.message}" for error in errors
    )
