"""What the sealed events of a call tell of its way back, of what it touched, and of what it carried.

A way back is a row beside its call that changes with it, and with the undos that take it. No event says so of
its own: each state follows from what is sealed of the call and of these undos, as it does here. Pure
functions; who reads the events, and compares, is `audit.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

from remit.erasing import is_of
from remit.vault import Vault

#: What each kind of event of one call tells.
Happened = Mapping[str, Mapping[str, Any]]
#: Columns of `undos` that the event which lets its call in seals.
SEALED = ("tool", "expires_us", "refund", "best_effort", "residue")
_NOTHING: Mapping[str, Any] = {}


def plan(happened: Happened) -> Mapping[str, Any] | None:
    """The way back that was registered with a call; None: none was."""
    told = happened.get("call.dispatched", _NOTHING).get("undo")
    if told is None and "call.scheduled" in happened:
        told = happened["call.scheduled"].get("undo")
    return cast("Mapping[str, Any]", told) if isinstance(told, dict) else None


def left_as(happened: Happened) -> str:
    """The state in which a call itself left its way back, before any undo took it."""
    if "call.cancelled" in happened:
        return "done" if happened["call.cancelled"].get("by_call") else "void"
    if "call.resolved" in happened:
        return "void"
    if (bound := ended(happened).get("undo")) in ("ready", "void"):
        return bound
    if "call.dispatched" not in happened:
        return "ready"
    # What was held back until then could be called off, and cannot any more.
    called_off = "call.scheduled" in happened and not happened["call.dispatched"].get("undo")
    return "void" if called_off else "registered"


def taken_to(undo: Happened) -> str | None:
    """The state to which an undo, by its own events, has brought the way back; None: it never took it."""
    if "call.dispatched" not in undo:
        return None
    if "call.resolved" in undo:
        return "done" if undo["call.resolved"].get("state") == "succeeded" else "ready"
    if end := ended(undo):
        return str(end.get("undo") or "indeterminate")
    return "indeterminate" if "call.in_doubt" in undo else "running"


def refunded(undo: Happened) -> list[tuple[str, int]]:
    """What an undo, by its own events, has given back of what its call cost, by account."""
    told = ended(undo) or undo.get("call.resolved", _NOTHING)
    try:
        return [(each["account"], int(each["amount"])) for each in told.get("refunded", ())]
    except (TypeError, KeyError, ValueError):
        return []  # the chain tells that this event was changed


def ended(happened: Happened) -> Mapping[str, Any]:
    """The event that says how a call ended."""
    return happened.get("call.succeeded") or happened.get("call.failed") or _NOTHING


def resolution(happened: Happened) -> str | None:
    """How it is known what became of a call that was in doubt."""
    told = happened.get("call.resolved")
    if told is None:
        return ended(happened).get("resolution")
    return in_words(
        told.get("by"), told.get("reason"), happened=told.get("state") == "succeeded", forced="forced" in told
    )


def in_words(by: Any, reason: Any, *, happened: bool, forced: bool) -> str:
    """What somebody said became of a call in doubt."""
    what = "it happened" if happened else "it did not happen"
    return f"{by} says that {what}{', before its time was over' if forced else ''}: {reason}"


def misplaced(
    vault: Vault,
    tenant: str,
    touched: Sequence[tuple[Any, ...]],
    undo: Mapping[str, Any] | None,
    happened: Happened,
) -> list[str]:
    """Where what a call is said to have touched (call and resource) is not what was sealed of it."""
    sealed = happened.get("call.dispatched", _NOTHING).get("touched") or ended(happened).get("touched")
    if sealed is None and undo is None and not touched:
        return []
    found: list[str] = []
    if len(touched) > 1:
        found.append("it touched one thing, and others are named")
    elif touched and sealed is not None:
        if not is_of(vault, tenant, touched[0][1], sealed):
            found.append("what it touched is not what its event says")
    elif touched or sealed is not None:
        found.append("what it touched is not what its event says")
    if undo is None or "call.dispatched" not in happened:
        return found
    resource = undo["resource"]
    if resource is None:
        differs = sealed is not None and undo["state"] != "void"
    elif touched and resource == touched[0][1]:
        differs = False  # that one was looked at
    else:
        differs = sealed is None or not is_of(vault, tenant, resource, sealed)
    if differs:
        found.append("the resource of its way back is not what its event says")
    return found


def missing(
    kept: Sequence[tuple[Any, ...]], happened: Happened, begun: Mapping[str, Any], gone: Counter[str]
) -> list[str]:
    """What an agent's call carried and is not kept, though not all of it was removed with its age.

    What retention counts when it removes it is counted as `gone`. `kept` begins with call and kind.
    """
    kinds = [row[1] for row in kept]
    end = ended(happened)
    if end.get("undo") == "ready" and "undo" not in kinds and "restore" not in kinds:
        gone["ways_back"] += 1
    expected: list[str] = []
    if begun.get("context_commit"):
        expected.append("context")
    if end.get("result_commit") and end.get("effect") != "read":
        expected.append("result")
    if "call.awaiting_approval" in happened:
        expected.append("shown")
    if "arguments" in kinds:
        return [
            f"its stored {kind} is gone, and not with all that it carried"
            for kind in expected
            if kind not in kinds
        ]
    gone["arguments"] += 1
    if any(kind in kinds for kind in expected):
        return ["its stored arguments are gone, and not with all that it carried"]
    return []
