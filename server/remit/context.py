"""What rules see as `r.ctx`: facts that the server knows. Only `claim` is the agent's own word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import orjson

from remit import confirmations
from remit.calls import REDACTED
from remit.calls import redacted as redacted_arguments
from remit.config import Config
from remit.derivations import derived
from remit.model import Call
from remit_adapters.base import Json
from remit_rbac import Duty

_NOTHING: Json = {}
_HOUR_QUARTER_US = 900_000_000

#: By action: what rows that are about it alone never see.
NOT_THERE = {
    "approve": ("run", "claim", "confirmed"),
    "undo": ("facts", "parsed", "derived", "in_chain"),
    **dict.fromkeys(("execute", "recommend", "advise"), ("in_chain",)),
}
#: What is made of the arguments, or looked up by them: another thing for other arguments.
OF_ARGUMENTS = frozenset({"price", "facts", "parsed", "derived"})
#: What is another thing by the time that somebody votes, or is no concern of theirs.
_PASSING = frozenset({"hour", "weekday", "run", "claim", "confirmed"})


def context_of(
    call: Call,
    config: Config,
    estimates: Mapping[str, int],
    *,
    undo_ready: bool,
    undo_proven: bool = False,
    parsed: Json = _NOTHING,
    facts: Json | None = None,
    run: Json = _NOTHING,
) -> dict[str, Any]:
    """Everything that rules see of one call beside its arguments.

    Without `facts`, where its tool has some, they and what is derived from them are left out: a rule that
    reads them errs.
    """
    tool = call.tool
    run = {"id": call.run, **run}
    context = {
        **config.context,
        **_clock(call.received_us // _HOUR_QUARTER_US, config.zone),
        "tenant": call.principal.tenant,
        "run": run,
        "effect": tool.effect.value,
        "labels": tool.labels,
        "autonomy": config.autonomy.get(call.principal.agent, "act"),
        "undo_ready": undo_ready,
        "undo_proven": undo_proven,
        "price": estimates,
        "claim": call.claim,
        "confirmed": confirmations.holds(call),
    }
    if call.kind != "call":
        return context  # what is declared for an agent's calls is about an agent's arguments
    if tool.parsed:
        context["parsed"] = parsed
    if facts is not None:
        context["facts"] = facts
    if tool.derived and (facts is not None or not tool.facts):
        roots = {"args": call.arguments, "parsed": parsed, "facts": facts or {}, "run": run}
        context["derived"] = derived(tool.derived, roots)
    return context


def redacted(context: Json, call: Call, duties: Iterable[Duty]) -> Json:
    """The context as it may be kept when arguments are struck out: nothing that is made of them either.

    What is derived stays when it comes out the same without them.
    """
    kept = redacted_arguments(call.arguments_json, duties)
    if kept is call.arguments_json:
        return context
    arguments = orjson.loads(kept)
    parsed = {
        name: value if arguments.get(name) == call.arguments.get(name) else REDACTED
        for name, value in context.get("parsed", _NOTHING).items()
    }
    roots = {
        "args": arguments,
        "parsed": parsed,
        "facts": context.get("facts", _NOTHING),
        "run": context.get("run", _NOTHING),
    }
    without = derived(call.tool.derived, roots) if "derived" in context else _NOTHING
    made = {
        name: value if name in without and without[name] == value else REDACTED
        for name, value in context.get("derived", _NOTHING).items()
    }
    return {
        **context,
        **({"parsed": parsed} if "parsed" in context else {}),
        **({"derived": made} if "derived" in context else {}),
    }


def lasting(context: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a call's context that an approval binds."""
    return {name: value for name, value in context.items() if name not in _PASSING}


def at_vote(context: Mapping[str, Any], at_us: int, config: Config) -> Mapping[str, Any]:
    """What the rules on approving see: the call's lasting context, and the time of the vote."""
    return {**context, **_clock(at_us // _HOUR_QUARTER_US, config.zone)}


@lru_cache(maxsize=8)
def _clock(quarter: int, zone: str) -> Mapping[str, Any]:
    """What the clock shows in that quarter of an hour since 1970: every zone's hours begin with one."""
    here = datetime.fromtimestamp(quarter * 900, UTC).astimezone(ZoneInfo(zone))
    return {"hour": here.hour, "weekday": here.isoweekday()}
