"""From an outcome to what an MCP client reads: plain sentences for the model, structure for programs.

A refusal is a tool result with `isError`, never a broken connection, so that the agent can go on. Its
`_meta` says the verdict, a stable code and what may help; a success carries a receipt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, cast

from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS

from remit.budgets import label_of
from remit.confirmations import KEY
from remit.model import Call, Done, Failed, InDoubt, Outcome, Pending, Refused, Remedy, Scheduled, Unconfirmed
from remit.notices import Notice
from remit_adapters.base import Json, Operation
from remit_rbac import Rung

_OURS = "dev.remit/"
VERDICT = f"{_OURS}verdict"
RECEIPT = f"{_OURS}receipt"
NOTICE = f"{_OURS}notice"
#: JSON-RPC code of a refusal where no tool result can carry it; outside the reserved range, as it must be.
REFUSED = -31001
#: The code of a call that failed or is in doubt, where no tool result can carry it.
SOURCE_FAILED = -31002
_SERVER_INFO = "io.modelcontextprotocol/serverInfo"
_POLL_S = 15
#: How many calls a notice names to the model; programs are told of all.
_NAMED_MAX = 5
_BY = {"agent": "you, in another run,", "operator": "an operator"}
#: How much of a name that means nothing is repeated to whoever sent it.
_SAID_BACK_MAX = 256


def to_wire(call: Call, outcome: Outcome) -> dict[str, Any]:
    """The result of `call`, or MCPError where the operation has no form for errors of its own."""
    if isinstance(outcome, Done):
        return _done(call, outcome)
    if isinstance(outcome, Unconfirmed):
        return {
            "resultType": "input_required",
            "inputRequests": {KEY: {"method": "elicitation/create", "params": outcome.question}},
            "requestState": outcome.state,
        }
    if isinstance(outcome, Scheduled):
        return _scheduled(call, outcome)
    text, meta = told(outcome)
    if isinstance(outcome, (Failed, InDoubt)) and outcome.rpc is not None:
        # The source's own protocol error keeps its code and data.
        code, data = outcome.rpc.get("code"), outcome.rpc.get("data")
        if isinstance(code, int) and not isinstance(code, bool) and code not in (REFUSED, SOURCE_FAILED):
            raise MCPError(code, str(outcome.rpc.get("message", text)), _not_ours(data))
    if call.tool.operation is not Operation.TOOL:
        raise MCPError(
            REFUSED if isinstance(outcome, (Refused, Pending)) else SOURCE_FAILED, text, {VERDICT: meta}
        )
    return {
        "resultType": "complete",
        "content": [{"type": "text", "text": text}],
        "isError": True,
        "_meta": {VERDICT: meta},
    }


def unknown(operation: Operation, name: str) -> MCPError:
    """The one answer to what does not exist and to what the caller may not see."""
    match operation:
        case Operation.TOOL:
            return MCPError(INVALID_PARAMS, f"Unknown tool: {name[:_SAID_BACK_MAX]}")
        case Operation.PROMPT:
            return MCPError(INVALID_PARAMS, f"Unknown prompt: {name[:_SAID_BACK_MAX]}")
        case Operation.RESOURCE:
            return MCPError(INVALID_PARAMS, "Resource not found", {"uri": name[:_SAID_BACK_MAX]})
        case Operation.COMPLETE:
            return MCPError(INVALID_PARAMS, "Nothing by that name can be completed")


def _done(call: Call, outcome: Done) -> dict[str, Any]:
    body = dict(outcome.reply.body)
    if outcome.reply.kind == "input_required":
        if "_meta" in body:
            body["_meta"] = _not_ours(body["_meta"])
        return body
    receipt: dict[str, Any] = {"call_id": outcome.call_id, "cost": outcome.cost}
    if outcome.undo:
        receipt["undo"] = {"class": call.tool.effect.value, "until": moment(outcome.undo.expires_us)}
        if outcome.undo.proof:
            receipt["undo"]["proven"] = moment(outcome.undo.proof.at_us)
    if outcome.event:
        receipt["event"] = outcome.event
    if outcome.repeated:
        receipt["repeated"] = True
    if outcome.unrecorded:
        receipt["unrecorded"] = True
    if outcome.warnings:
        receipt["warnings"] = list(outcome.warnings)
    meta = dict(_not_ours(body.get("_meta") or {}))
    meta.pop(_SERVER_INFO, None)  # the source is not who answers here
    body["_meta"] = {**meta, RECEIPT: receipt}
    body.setdefault("resultType", "complete")
    if call.tool.operation is Operation.TOOL:
        body.setdefault("content", [])  # required, and left out by many beside structuredContent
    if call.tool.operation is Operation.RESOURCE:
        body.setdefault("ttlMs", 0)  # required since 2026-07-28, and unknown to sources of before
        body["cacheScope"] = "private"  # whatever the source says: who may read it is decided here
    return body


def _not_ours(said: Any) -> Any:
    """What a source says to programs, without what only Remit says: refusals, receipts and notices."""
    if not isinstance(said, Mapping):
        return said
    members = cast("Json", said)
    return {name: value for name, value in members.items() if not name.startswith(_OURS)}


def noted(result: Json, notices: Sequence[Notice]) -> dict[str, Any]:
    """The result of a tool, and what its run must know: a block more for the model, `_meta` for programs."""
    taken_back = [it for it in notices if it.by != "gateway"]
    called_off = [it for it in notices if it.by == "gateway" and not it.failed]
    failed = [it for it in notices if it.failed]
    by = sorted({it.by for it in taken_back})
    said: list[str] = []
    if taken_back:
        said.append(
            f"{' and '.join(_BY[each] for each in by)} took back what you did here before: "
            f"{_named(taken_back)}. None of that holds now."
        )
    if called_off:
        said.append(
            f"what was held back for you was called off when its time came, and was never done: "
            f"{_named(called_off)}."
        )
    if failed:
        said.append(f"what was held back for you was sent when its time came, and failed: {_named(failed)}.")
    text = (
        f"Note: {' Also, '.join(said)} Do not do it again unless you are asked to; read the current state "
        "before you go on."
    )
    meta: dict[str, Any] = {
        "taken_back": [{"call_id": it.call_id, "tool": it.tool, "at": moment(it.at_us)} for it in taken_back],
        "by": by,
        "remedy": Remedy.CHANGE.value,
    }
    for name, not_done in (("called_off", called_off), ("failed", failed)):
        if not_done:
            meta[name] = [
                {"call_id": it.call_id, "tool": it.tool, "at": moment(it.at_us), "why": it.why}
                for it in not_done
            ]
    return {
        **result,
        "content": [*result.get("content", ()), {"type": "text", "text": text}],
        "_meta": {**result.get("_meta", {}), NOTICE: meta},
    }


def _named(notices: Sequence[Notice]) -> str:
    """The first of the calls, and for those that were not done why."""
    more = f" and {len(notices) - _NAMED_MAX} more" if len(notices) > _NAMED_MAX else ""
    named = [
        f"{it.tool} (call {it.call_id}{': ' + it.why.rstrip('.') if it.why else ''})"
        for it in notices[:_NAMED_MAX]
    ]
    return ", ".join(named) + more


def _scheduled(call: Call, outcome: Scheduled) -> dict[str, Any]:
    due = moment(outcome.due_us)
    receipt: dict[str, Any] = {
        "call_id": outcome.call_id,
        "cost": outcome.cost,
        "due": due,
        "undo": {"class": call.tool.effect.value, "until": due},
    }
    if outcome.warnings:
        receipt["warnings"] = list(outcome.warnings)
    held_back = (
        f"Accepted, and held back: it will be done at {due}, and nothing has been done yet. Until then"
    )
    if outcome.waits_for:
        budget = label_of(outcome.waits_for)
        receipt["waits_for"] = budget
        held_back = (
            f"Accepted, and it waits: the budget for {budget} cannot take it now. It is decided again, and "
            f"done, once the budget can take it; that is looked at again at {due} at the latest. Nothing has "
            "been done yet. Until it is,"
        )
    text = (
        f"{held_back} it can be called off with remit.undo, call_id {outcome.call_id}. Do not send it again."
    )
    return {
        "resultType": "complete",
        "content": [{"type": "text", "text": text}],
        "isError": False,
        "_meta": {RECEIPT: receipt},
    }


def told(outcome: Refused | Pending | Failed | InDoubt) -> tuple[str, Json]:
    match outcome:
        case Refused():
            verdict = outcome.verdict
            meta: dict[str, Any] = {
                "verdict": verdict.rung.name.lower(),
                "code": verdict.code,
                "remedy": verdict.remedy.value,
                "call_id": outcome.call_id,
            }
            if verdict.rung is Rung.ADVISE and outcome.advice is not None:
                meta["advice"] = outcome.advice
            return verdict.reason, meta
        case Pending():
            until = moment(outcome.expires_us)
            return (
                f"Waiting for a person's approval (request {outcome.approval_id}, open until {until}). "
                f"Nothing has been done yet. Send exactly this call again in {_POLL_S} seconds or later to "
                "have it made once it is approved; do not change it, and do not repeat it faster.",
                {
                    "verdict": "approve",
                    "code": "pending_approval",
                    "remedy": "wait",
                    "call_id": outcome.call_id,
                    "approval_id": outcome.approval_id,
                    "expires_at": until,
                    "retry_after_s": _POLL_S,
                },
            )
        case Failed():
            return (
                f"{outcome.message} The call had no effect and cost nothing.",
                {"verdict": "execute", "code": outcome.code, "remedy": "wait", "call_id": outcome.call_id},
            )
        case InDoubt():
            return (
                f"{outcome.message} It is not known whether the call took effect. Do not send it again: read "
                "the current state first, or ask an operator to resolve it.",
                {"verdict": "execute", "code": "in_doubt", "remedy": "ask", "call_id": outcome.call_id},
            )


def moment(at_us: int) -> str:
    """A time as agents and people read it: RFC 3339, UTC, whole seconds."""
    return _moment(at_us // 1_000_000)


@lru_cache(maxsize=64)
def _moment(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat().replace("+00:00", "Z")
