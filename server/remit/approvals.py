"""Asking people: what they are shown, who may answer, and what their answer binds.

An approval is for exact bytes: the binding covers everything that was shown and will be executed, so any
change needs a new one. The asker cannot answer, and whoever answered must still hold the role when the
call is let out. Silence is refusal.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import orjson

from remit.approval_requests import Approved, Waiting
from remit.binding import binding_of
from remit.calls import redacted
from remit.checks.permission import question_of
from remit.context import at_vote, lasting
from remit.context import redacted as context_redacted
from remit.earlier_calls import Repeated
from remit.errors import RemitError
from remit.journal import Saw
from remit.model import Call, Pending, Refused, Remedy, UndoPlan, Verdict
from remit_adapters.base import Json
from remit_rbac import Duty, Engine, Question, Rung

if TYPE_CHECKING:
    from remit.pipeline import Services


class NotAllowed(RemitError):
    """This person may not answer this request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An open request as it is stored, with the call that it is about."""

    id: str
    call_id: str
    tenant: str
    agent: str
    user: str
    #: What the people who are asked see.
    shown: Json


async def ask(
    call: Call,
    verdict: Verdict,
    cost: Mapping[str, int],
    plan: UndoPlan | None,
    saw: Saw | None,
    on: Services,
) -> Approved | Repeated | Pending | Refused:
    """Approved when people have agreed to exactly this call; otherwise what the agent is told.

    Repeated when the call was made before and people need not be asked.
    """
    context: Json = saw.context if saw else {}
    shown = _shown(call, verdict, cost, plan, context, on.secret)
    votes = votes_needed(verdict.duties)
    # Asked as it will be when they vote: of what lasts, at the time that it is then.
    able = eligible(question_of(call, at_vote(lasting(context), on.clock(), on.config)), on.policy)
    if len(able) < votes:
        if earlier := await on.journal.repeated(call):
            return earlier
        nobody = replace(
            verdict,
            rung=Rung.DENY,
            code="no_approver",
            reason="This call needs a person's approval, and nobody who could give it is appointed. "
            "Tell your user.",
            remedy=Remedy.STOP,
        )
        await on.journal.refuse(call, nobody, saw)
        return Refused(call_id=call.id, verdict=nobody)
    answer = await on.journal.ask_people(
        call,
        verdict,
        saw,
        binding=binding_of(shown),
        shown={
            **shown,
            "arguments": orjson.loads(redacted(call.arguments_json, verdict.duties)),
            "context": context_redacted(shown["context"], call, verdict.duties),
        },
        votes=votes,
        pending_s=on.config.approvals.pending,
    )
    match answer:
        case Waiting():
            return Pending(
                call_id=answer.call_id,
                approval_id=answer.approval_id,
                expires_us=answer.expires_us,
                verdict=verdict,
            )
        case Verdict():
            await on.journal.refuse(call, answer, saw)
            return Refused(call_id=call.id, verdict=answer)
        case Repeated():
            return answer
        case Approved():
            if sum(voter in able for voter in answer.voters) >= votes:
                return answer
            lost = replace(
                verdict,
                rung=Rung.DENY,
                code="approval_lost",
                reason="Someone who approved this call no longer may. Ask your user to bring it up again.",
                remedy=Remedy.ASK,
            )
            await on.journal.refuse(call, lost, saw)
            return Refused(call_id=call.id, verdict=lost)


async def lapsed(call: Call, verdict: Verdict, saw: Saw | None, on: Services) -> Refused | None:
    """The refusal when those who agreed to a call that was held back do not suffice any more."""
    voters = await on.journal.agreed(call.id)
    able = eligible(question_of(call, at_vote(saw.context if saw else {}, on.clock(), on.config)), on.policy)
    if sum(voter in able for voter in voters) >= votes_needed(verdict.duties):
        return None
    lost = replace(
        verdict,
        rung=Rung.DENY,
        code="approval_lost",
        reason="A person must agree to this call by now, and none has who may.",
        remedy=Remedy.ASK,
    )
    await on.journal.refuse(call, lost, saw)
    return Refused(call_id=call.id, verdict=lost)


async def answer(
    request: Request, *, user: str, vote: Literal["approve", "reject"], comment: str, on: Services
) -> str:
    """Record one person's vote; return the request's state. Raises NotAllowed, UnknownRecord, WrongState."""
    if user == request.user:
        raise NotAllowed("who asked cannot approve: somebody else must decide this")
    about = request.shown.get("takes_back") or request.shown
    if user not in on.policy.approvers(
        request.tenant,
        about["tool"],
        about["arguments"],
        at_vote(request.shown["context"], on.clock(), on.config),
        exclude=(request.agent, request.user),
    ):
        raise NotAllowed(f"policy does not let {user} decide this: an approver of {about['tool']} must")
    return await on.journal.vote(
        request.id, user=user, vote=vote, comment=comment, use_within_s=on.config.approvals.use_within
    )


def eligible(q: Question, policy: Engine) -> tuple[str, ...]:
    """Who may approve this call: never who asked, nor for whom."""
    asking = (q.agent, q.user)
    able = policy.approvers(q.tenant, q.tool, q.args, q.ctx, exclude=asking)
    return tuple(user for user in able if user not in asking)


def votes_needed(duties: Iterable[Duty]) -> int:
    """The `approvals=n` duties: the largest counts; one that cannot be read asks for more than there are."""
    needed = 1
    for duty in duties:
        if duty.name == "approvals":
            needed = max(needed, int(duty.value) if duty.value.isdigit() else 1_000_000)
    return needed


def _shown(
    call: Call,
    verdict: Verdict,
    cost: Mapping[str, int],
    plan: UndoPlan | None,
    context: Json,
    secret: bytes,
) -> dict[str, Any]:
    """Everything an approver decides on, from typed fields only; the agent's own words come last."""
    takes_back = call.undoing and {
        "call_id": call.of_call,
        "tool": call.undoing.tool.name,
        "arguments": call.undoing.arguments,
        "residue": call.undoing.residue,
        "forced": call.undoing.forced,
    }
    return {
        "agent": call.principal.agent,
        "user": call.principal.user,
        "tenant": call.principal.tenant,
        "tool": call.tool.name,
        "tool_digest": call.tool.digest,
        "arguments": orjson.loads(call.arguments_json),
        "effect": call.tool.effect.value,
        "undo": {"tool": plan.tool, "residue": plan.residue} if plan else None,
        "takes_back": takes_back,
        "cost": cost,
        "why_asked": verdict.reason,
        "policy_version": verdict.policy_version,
        "context": lasting(context),
        # Not to be guessed: what is erased cannot be found again by trying what has this binding.
        "nonce": hmac.digest(secret, b"binding " + call.fingerprint.encode(), "sha256")[:16].hex(),
        "claim": dict(call.claim),
    }
