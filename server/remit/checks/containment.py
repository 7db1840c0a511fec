"""Is the call stopped by a switch? Asked when deciding, and again in the transaction that lets it out.

The kill switch stops everything it covers but undoing; safe mode lets only reads and undoing through.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from remit.config import Effect
from remit.identity import Principal
from remit.model import Call, Remedy, Verdict
from remit_rbac import Rung

Switch = tuple[str, str, str, str]

_STOPPED = Verdict(
    rung=Rung.DENY,
    code="stopped",
    reason="An operator has stopped this: nothing that it covers runs until they release it. "
    "Stop and tell your user.",
    remedy=Remedy.STOP,
)
_SAFE_MODE = Verdict(
    rung=Rung.DENY,
    code="safe_mode",
    reason="An operator has turned safe mode on: only reading and undoing are possible now. "
    "Go on with reads, or wait.",
    remedy=Remedy.WAIT,
)


def stopped(call: Call, switches: Set[Switch]) -> Verdict | None:
    """The refusal when a switch that is on covers the call."""
    if not switches or call.kind in ("undo", "verify", "after"):
        return None
    who = call.principal
    covers = {**_of_caller(who, call.run), "tool": call.tool.name, "source": call.tool.source}
    on = {
        kind
        for kind, scope, target, tenant in switches
        if covers[scope] == target and tenant in ("", who.tenant)
    }
    if "kill" in on:
        return _STOPPED
    if "safe" in on and call.tool.effect is not Effect.READ:
        return _SAFE_MODE
    return None


def concerning(who: Principal, run: str, switches: Set[Switch]) -> Set[str]:
    """The kinds of switches that are on and may stop this caller: those on its like, or on tools at large."""
    covers = _of_caller(who, run)
    return {
        kind
        for kind, scope, target, tenant in switches
        if covers.get(scope, target) == target and tenant in ("", who.tenant)
    }


def _of_caller(who: Principal, run: str) -> Mapping[str, str]:
    """By scope, what covers whatever this caller does."""
    return {"all": "", "tenant": who.tenant, "agent": who.agent, "user": who.user, "run": run}
