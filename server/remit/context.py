"""What rules see as `r.ctx`: facts that the server knows. Only `claim` is the agent's own word."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from remit.config import Config
from remit.model import Call

#: What is another thing by the time that somebody votes, or is no concern of theirs.
_PASSING = frozenset({"hour", "weekday", "run", "claim"})


def context_of(
    call: Call, config: Config, estimates: Mapping[str, int], *, undo_ready: bool
) -> Mapping[str, Any]:
    return {
        **config.context,
        **_clock(call.received_us, config),
        "tenant": call.principal.tenant,
        "run": call.run,
        "effect": call.tool.effect.value,
        "undo_ready": undo_ready,
        "price": estimates,
        "claim": call.claim,
    }


def lasting(context: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a call's context that an approval binds."""
    return {name: value for name, value in context.items() if name not in _PASSING}


def at_vote(context: Mapping[str, Any], at_us: int, config: Config) -> Mapping[str, Any]:
    """What the rules on approving see: the call's lasting context, and the time of the vote."""
    return {**context, **_clock(at_us, config)}


def _clock(at_us: int, config: Config) -> Mapping[str, Any]:
    here = datetime.fromtimestamp(at_us / 1_000_000, UTC).astimezone(ZoneInfo(config.zone))
    return {"hour": here.hour, "weekday": here.isoweekday()}
