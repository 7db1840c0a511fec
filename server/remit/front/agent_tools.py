"""Remit's own tools for agents: how do I stand, may I, take it back, never mind.

They touch only the caller's own records, so they need no policy rows of their own; undoing is governed like
any call. None of them reaches a source except through the pipeline.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from remit.arguments import checker
from remit.calls import new_call
from remit.errors import RemitError
from remit.front.answers import VERDICT, told
from remit.front.visible import Views
from remit.identity import Principal
from remit.model import Done, Pending, Refused, Remedy
from remit.pipeline import Services, describe, informed
from remit.undo import undo

_Answer = Callable[[Mapping[str, Any], Principal, str, Services, Views], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTool:
    name: str
    definition: Mapping[str, Any]
    answer: _Answer


async def _status(
    arguments: Mapping[str, Any], principal: Principal, run: str, on: Services, views: Views
) -> dict[str, Any]:
    accounts = on.accounts.of_caller(principal, run, on.clock())
    standing = await on.journal.standing(principal.tenant, principal.agent, principal.user, accounts)
    return _result({"agent": principal.agent, "user": principal.user, "run": run, **standing})


async def _explain(
    arguments: Mapping[str, Any], principal: Principal, run: str, on: Services, views: Views
) -> dict[str, Any]:
    tool = views.tool(arguments["tool"], principal, on)
    if tool is None:
        return _error(f"There is no tool {arguments['tool']!r} that you may use.")
    call = new_call(
        tool=tool,
        arguments=arguments.get("arguments", {}),
        principal=principal,
        run=run,
        secret=on.secret,
        at_us=on.clock(),
    )
    return _result(dict(describe(await informed(call, on))))


async def _undo(
    arguments: Mapping[str, Any], principal: Principal, run: str, on: Services, views: Views
) -> dict[str, Any]:
    outcome = await undo(arguments["call_id"], principal, run, on)
    if isinstance(outcome, Done) and not outcome.reply.is_error:
        return _result({"undone": arguments["call_id"], "by_call": outcome.call_id, **outcome.undone})
    if isinstance(outcome, (Refused, Pending)):
        return _refusal(*told(outcome))
    if isinstance(outcome, Done):
        text, code = "The source refused the undo: read the current state.", "undo_failed"
    else:
        text, code = "The undo did not end cleanly: read the current state.", "undo_in_doubt"
    return _error(text, code, remedy=Remedy.ASK, call_id=outcome.call_id)


async def _withdraw(
    arguments: Mapping[str, Any], principal: Principal, run: str, on: Services, views: Views
) -> dict[str, Any]:
    await on.journal.withdraw(
        arguments["approval_id"], tenant=principal.tenant, agent=principal.agent, user=principal.user
    )
    return _result({"withdrawn": arguments["approval_id"]})


def _tool(
    name: str, description: str, properties: Mapping[str, Any], answer: _Answer, *, reads: bool
) -> AgentTool:
    return AgentTool(
        name=f"remit.{name}",
        definition={
            "name": f"remit.{name}",
            "description": description,
            "inputSchema": {
                "type": "object",
                "properties": properties,
                "required": [key for key, value in properties.items() if "default" not in value],
                "additionalProperties": False,
            },
            "annotations": {"readOnlyHint": reads, "openWorldHint": False},
        },
        answer=answer,
    )


_TEXT = {"type": "string", "minLength": 1, "maxLength": 128}
AGENT_TOOLS: Mapping[str, AgentTool] = {
    tool.name: tool
    for tool in (
        _tool(
            "status",
            "How you stand: your open approval requests, what is left of your budgets, and what is stopped.",
            {},
            _status,
            reads=True,
        ),
        _tool(
            "explain",
            "What a call would be, without making it: whether you may, what it would cost, how it could be "
            "undone.",
            {
                "tool": {**_TEXT, "description": "The tool's name as listed."},
                "arguments": {
                    "type": "object",
                    "default": {},
                    "description": "The arguments you would send.",
                },
            },
            _explain,
            reads=True,
        ),
        _tool(
            "undo",
            "Take back one of your own calls, while that is possible. The receipt of a call says until when.",
            {"call_id": {**_TEXT, "description": "call_id of the call's receipt."}},
            _undo,
            reads=False,
        ),
        _tool(
            "withdraw",
            "Take back one of your own requests for approval, when the call is no longer wanted.",
            {"approval_id": {**_TEXT, "description": "approval_id of the pending answer."}},
            _withdraw,
            reads=False,
        ),
    )
}
_PROBLEMS = {name: checker(tool.definition["inputSchema"]) for name, tool in AGENT_TOOLS.items()}


async def answer(
    name: str, arguments: Mapping[str, Any], principal: Principal, run: str, on: Services, views: Views
) -> dict[str, Any]:
    """Run one of these tools. What goes wrong is told to the agent in a sentence."""
    if problem := _PROBLEMS[name](arguments):
        return _error(f"The arguments do not fit the tool: {problem}.", "invalid_arguments")
    try:
        return await AGENT_TOOLS[name].answer(arguments, principal, run, on, views)
    except RemitError as error:
        text = str(error)
        return _error(text[:1].upper() + text[1:] + ("" if text.endswith(".") else "."))


def _result(value: dict[str, Any]) -> dict[str, Any]:
    return {
        "resultType": "complete",
        "content": [{"type": "text", "text": orjson.dumps(value).decode()}],
        "structuredContent": value,
        "isError": False,
    }


def _error(
    text: str, code: str = "refused", *, remedy: Remedy = Remedy.CHANGE, call_id: str | None = None
) -> dict[str, Any]:
    verdict = {"verdict": "deny", "code": code, "remedy": remedy.value}
    return _refusal(text, verdict | ({"call_id": call_id} if call_id else {}))


def _refusal(text: str, verdict: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "resultType": "complete",
        "content": [{"type": "text", "text": text}],
        "isError": True,
        "_meta": {VERDICT: verdict},
    }
