"""What the sealed events of a call tell of its row: when it was let out and ended, by whom, in which words.

Events stay when somebody is erased, so of words they have a keyed digest. Pure functions; who reads the
events, and compares, is `audit.py`. What its first event has under the name of a column is compared there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remit.erasing import digest_of
from remit.model import USUAL_REASONS, Call, Verdict
from remit.vault import Vault
from remit.ways_back_told import Happened, ended
from remit_adapters.base import Json

#: The columns of `calls` that `row` tells.
COLUMNS = (
    "incarnation",
    "approval_id",
    "trace_id",
    "dispatched_us",
    "deadline_us",
    "finished_us",
    "error_code",
    "due_us",
    "waits_for",
)
#: The columns of `calls` that are words, and under which name an event has the digest of each.
WORDS = {"reason": "reason_digest", "error": "error_digest", "client_key": "key_digest"}
#: Why a call ended that was under way when its process died. No event has a digest of it: it stays as it is.
INTERRUPTED = "The gateway stopped while this call was under way."
_NOTHING: Mapping[str, Any] = {}
_GOES_ON = ("call.awaiting_approval", "call.scheduled", "call.dispatched")
_ENDED = ("call.succeeded", "call.failed", "call.in_doubt")


def first(vault: Vault, call: Call, verdict: Verdict) -> Json:
    """What the first event of a call seals of its row, beside what every event of it has."""
    told: Json = {"received_us": call.received_us, "operation": call.tool.operation.value}
    if call.trace_id is not None:
        told["trace_id"] = call.trace_id
    if call.client is not None:
        told["client"] = call.client
    if verdict.reason != USUAL_REASONS.get(verdict.code):
        told["reason_digest"] = digest_of(vault, call.principal.tenant, verdict.reason)
    return told


def row(happened: Happened, begun: Mapping[str, Any], last: str) -> tuple[Any, ...]:
    """The values of `COLUMNS`, by the first event of a call and the kind of the last that moved it."""
    sent = happened.get("call.dispatched", _NOTHING)
    waits = happened.get("call.postponed") or happened.get("call.scheduled", _NOTHING)
    let_in = sent or happened.get("call.scheduled") or begun
    # Who resolves a doubt says what is known, not when it came to be.
    by = "call.in_doubt" if last == "call.resolved" else last
    end = _NOTHING if by in _GOES_ON else happened.get(by, _NOTHING)
    if by in _ENDED:
        error_code = end.get("error_code")
    elif by == "call.cancelled":
        error_code = "cancelled" if end.get("by_call") else end.get("code")
    else:
        error_code = None
    return (
        let_in.get("stream"),
        begun.get("approval_id"),
        begun.get("trace_id"),
        sent.get("at_us"),
        sent.get("deadline_us"),
        end.get("at_us"),
        error_code,
        waits.get("due_us"),
        waits.get("waits_for"),
    )


def error(happened: Happened, last: str) -> Mapping[str, Any]:
    """The event that has the digest of what a call failed with."""
    return happened.get("call.in_doubt" if last == "call.resolved" else last, _NOTHING)


def key(happened: Happened) -> str | None:
    """The digest of the idempotency key that a call has; None: it has none, or it may be used again."""
    let_in = happened.get("call.scheduled") or happened.get("call.dispatched") or _NOTHING
    freed = (
        "call.cancelled" in happened
        or ended(happened).get("key_freed")
        or happened.get("call.resolved", _NOTHING).get("state") == "failed"
    )
    return None if freed else let_in.get("key_digest")
