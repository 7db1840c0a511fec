"""What people decided, compared with the events that say so: requests, switches, keys, holds and policies.

These tables are asked while calls are decided, and a row that somebody adds, changes or takes away by hand
decides otherwise from then on. Events from before a column stood in them say nothing of it, and are not held
against it: no event can lose what it says, for it is chained. What calls did is compared by `audit.py`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from remit.audit import Finding, beside_calls, facts_of, happened_to
from remit.binding import binding_of
from remit.database import Row
from remit.records import Records
from remit.vault import Damaged, KeyUnusable

#: An event by its kind, and what it tells.
Event = tuple[str, Mapping[str, Any]]

_VOTES = ("approval.approve", "approval.reject")
#: By what a request is closed unused, and what it is then.
_CLOSED = {"approval.reject": "rejected", "approval.withdrawn": "withdrawn"}
#: Such an event names the request that it has used up.
_LET_IN = ("call.scheduled", "call.dispatched")
#: The first of these that a call has is the one with which its record begins, unless it was denied.
_OPENINGS = ("call.awaiting_approval", *_LET_IN)
#: Columns of `legal_holds` that its event seals, and under which name.
_HOLD = (
    *((name, name) for name in ("tenant", "scope", "from_us", "to_us", "reason")),
    ("set_by", "by"),
    ("set_us", "at_us"),
)
_KEY = ("tenant", "agent", "user", "digest", "created_us", "expires_us")
_WHOSE = ("tenant", "agent", "user", "run", "tool")


def verify_approvals(records: Records, *, payloads: bool = True) -> Iterator[Finding]:
    """Every request that is gone, or that was put, shown (with `payloads`), answered or ended otherwise."""
    for request in records.rows("SELECT * FROM approvals ORDER BY id"):
        where = f"approval {request['id']}"
        events = [
            (row["kind"], facts_of(row["body"]))
            for row in records.rows("SELECT kind, body FROM events WHERE call_id = ?", (request["call_id"],))
        ]
        asked = next((facts for kind, facts in events if kind == "call.awaiting_approval"), None)
        # What was struck out of the stored arguments was not struck out of what the binding covers.
        if (
            asked is None
            or asked.get("binding") != request["binding"]
            or not (asked.get("redacted") or not payloads or _bound(records, request))
        ):
            yield Finding(where=where, what="what it shows is not what people were asked")
        for name, told in _as_told(asked, events).items() if asked else ():
            if request[name] != told:
                yield Finding(where=where, what=f"{name} is {request[name]!r}, and its events say {told!r}")
        heard = {
            (kind, facts.get("user"), facts.get("comment"), facts.get("at_us")): facts.get("auth")
            for kind, facts in events
            if kind in _VOTES
        }
        given = {
            (f"approval.{vote['vote']}", vote["user"], vote["comment"], vote["at_us"]): vote["auth"]
            for vote in records.rows("SELECT * FROM votes WHERE approval_id = ?", (request["id"],))
        }
        if given.keys() != heard.keys() or any(
            heard[vote] not in (None, auth) for vote, auth in given.items()
        ):
            yield Finding(where=where, what="its votes are not those that its events tell")
    for row in records.rows(
        "SELECT DISTINCT approval_id FROM votes WHERE approval_id NOT IN (SELECT id FROM approvals)"
        " ORDER BY approval_id"
    ):
        yield Finding(where=f"approval {row['approval_id']}", what="it has votes, and no request")
    # An index holds the calls whose verdict is not to execute.
    for call in records.rows(
        "SELECT id FROM calls WHERE verdict = 'approve' AND verdict <> 'execute'"
        " AND id NOT IN (SELECT call_id FROM approvals) ORDER BY id"
    ):
        where = f"call {call['id']}"
        asked = "SELECT 1 FROM events WHERE call_id = ? AND kind = 'call.awaiting_approval'"
        if list(records.rows(asked, (call["id"],))):
            yield Finding(where=where, what="people were asked about it, and the request is gone")


def verify_switches(records: Records) -> Iterator[Finding]:
    """Every switch that is on or off and no event says so, or that is on for another reason than its event's.

    Turned on and off by turns, it is on if that was once more often than off: whoever changes the order of
    the rows hides nothing.
    """
    stands: Counter[tuple[str, ...]] = Counter()
    said: dict[tuple[str, ...], tuple[Any, ...]] = {}
    for event, facts in beside_calls(records, "switch.on", "switch.off"):
        key = tuple(str(facts.get(name) or "") for name in ("switch", "scope", "target", "tenant"))
        stands[key] += 1 if event["kind"] == "switch.on" else -1
        if event["kind"] == "switch.on":
            said[key] = (facts.get("reason"), facts.get("by"), facts.get("at_us"))
    for row in records.rows("SELECT * FROM switches ORDER BY kind, scope, target, tenant"):
        key = tuple(str(row[name]) for name in ("kind", "scope", "target", "tenant"))
        more = stands.pop(key, 0)
        if more < 1:
            yield Finding(where=_switch(key), what="no event says that it is on")
        elif said[key] != (row["reason"], row["set_by"], row["set_us"]):
            yield Finding(
                where=_switch(key), what="why, by whom or since when it is on is not what its event says"
            )
        if more > 1:
            yield Finding(where=_switch(key), what="it was off meanwhile, and no event says by whom")
    for key, more in stands.items():
        if more > 0:
            yield Finding(where=_switch(key), what="it is off, and no event says who turned it off")
        elif more < 0:
            yield Finding(where=_switch(key), what="it was on, and no event says who turned it on")


def verify_api_keys(records: Records, *, payloads: bool = True) -> Iterator[Finding]:
    """Every API key that is not what its event says, that nobody made, or that is gone.

    Its label takes the master key: it is compared with `payloads`.
    """
    made: dict[str, Mapping[str, Any]] = {}
    revoked: dict[str, Any] = {}
    for event, facts in beside_calls(records, "key.created", "key.revoked"):
        if event["kind"] == "key.created":
            made[str(facts.get("key_id"))] = facts
        else:
            revoked[str(facts.get("key_id"))] = facts.get("at_us")
    for row in records.rows("SELECT * FROM api_keys ORDER BY id"):
        where, facts = f"API key {row['id']}", made.pop(str(row["id"]), None)
        if facts is None:
            yield Finding(where=where, what="no event says who made it")
            continue
        for name in _KEY:
            if row[name] != facts.get(name, row[name]):
                yield Finding(where=where, what=f"its {name} is not what its event says")
        if payloads and "label" in facts:
            named = records.vault.name(str(facts.get("tenant")), row["label"])
            if named != facts["label"]:
                yield Finding(where=where, what="its label is not what its event says")
        ended_us = revoked.get(str(row["id"]))
        if row["revoked_us"] is None and ended_us is not None:
            yield Finding(where=where, what="it was revoked, and does not say so")
        elif row["revoked_us"] != ended_us:
            yield Finding(where=where, what="no event says that it was revoked then")
    for key_id in made:
        yield Finding(where=f"API key {key_id}", what="it was made, and is gone")


def verify_trial(records: Records) -> Iterator[Finding]:
    """Whether the policy on trial, or the last that was, is the one that was put on it, so and till then."""
    begun: Mapping[str, Any] | None = None
    ended_us: Any = None
    for event, facts in beside_calls(records, "shadow.started", "shadow.stopped"):
        if event["kind"] == "shadow.started":
            begun, ended_us = facts, None
        else:
            ended_us = facts.get("at_us")
    found = False
    for row in records.rows("SELECT version, text, started_by, started_us, stopped_us FROM shadows"):
        where = f"trial of policy version {row['version']}"
        if begun is None or (row["version"], row["started_by"], row["started_us"]) != tuple(
            begun.get(name) for name in ("version", "by", "at_us")
        ):
            yield Finding(where=where, what="no event says that it began so")
            continue
        found = True
        digest = hashlib.sha256(str(row["text"]).encode()).hexdigest()
        if digest != begun.get("text_sha256", digest):
            yield Finding(where=where, what="its text is not the one that was put on trial")
        if row["stopped_us"] != ended_us:
            yield Finding(where=where, what="its end is not what the events say")
    if begun is not None and not found:
        where = f"trial of policy version {begun.get('version')}"
        yield Finding(where=where, what="it has an event, and no row")


def verify_notices(records: Records) -> Iterator[Finding]:
    """Every notice that is not of its call, and of which its run was not told when events say so."""
    told: dict[str, Any] = {}
    for _, facts in beside_calls(records, "run.told"):
        named = (facts.get("taken_back"), facts.get("called_off"), facts.get("failed"))
        # Whoever made something else than a list of it made a flaw of the event.
        for call_id in (each for some in named if isinstance(some, list) for each in cast("list[Any]", some)):
            told[str(call_id)] = facts.get("at_us")
    for row in records.rows("SELECT * FROM notices ORDER BY call_id"):
        where = f"notice of call {row['call_id']}"
        happened = happened_to(records, row["call_id"])
        begun: dict[str, Any] = {}
        for kind in reversed(_OPENINGS):
            begun = happened.get(kind, begun)
        # People may have been asked in one run, and the call was made in another.
        let_in = happened.get("call.dispatched") or happened.get("call.scheduled") or begun
        whose = [[it.get(name) for name in _WHOSE] for it in (begun, let_in)]
        if [row[name] for name in _WHOSE] not in whose:
            yield Finding(where=where, what="whose call it is, or of which tool, is not what its event says")
        elif not (
            "call.cancelled" in happened
            or ("call.scheduled" in happened and "call.failed" in happened)
            or _was_undone(records, row["call_id"])
        ):
            yield Finding(where=where, what="its call was neither taken back nor called off, nor did it fail")
        if row["told_us"] != told.pop(str(row["call_id"]), None):
            yield Finding(where=where, what="whether and when its run was told is not what the events say")
    for call_id in told:
        yield Finding(where=f"notice of call {call_id}", what="its run was told, and it is gone")


def verify_holds(records: Records, *, payloads: bool = True) -> Iterator[Finding]:
    """Every legal hold that is not what its event says, or is gone without one that says who released it.

    Of another subject than a user, the event has a keyed digest, which is compared with `payloads`.
    """
    held: dict[Any, Mapping[str, Any]] = {}
    released: set[Any] = set()
    for event, facts in beside_calls(records, "audit.held", "audit.released"):
        if event["kind"] == "audit.held":
            held[facts.get("hold")] = facts
        else:
            released.add(facts.get("hold"))
    for row in records.rows("SELECT * FROM legal_holds ORDER BY id"):
        where, facts = f"legal hold {row['id']}", held.pop(row["id"], None)
        if facts is None or row["id"] in released:
            yield Finding(where=where, what="no event says that it stands")
            continue
        for name, sealed_as in _HOLD:
            if (row[name] or None) != (facts.get(sealed_as) or None):
                yield Finding(where=where, what=f"its {name} is not what its event says")
        target = row["target"]
        if facts.get("scope") == "subject" and not str(facts.get("target")).startswith("user:"):
            target = records.vault.name(row["tenant"], target) if payloads else facts.get("target")
        if target != facts.get("target"):
            yield Finding(where=where, what="its target is not what its event says")
    for hold in sorted(str(each) for each in held.keys() - released):
        yield Finding(where=f"legal hold {hold}", what="it is gone, and no event says who released it")


def verify_policies(records: Records) -> Iterator[Finding]:
    """Every policy version whose text, and every activation, that is not what its events say."""
    told: dict[str, dict[str, Any]] = {}
    activated: dict[Any, tuple[Any, ...]] = {}
    for event, facts in beside_calls(records, "policy.stored", "policy.pushed", "policy.activated"):
        if event["kind"] == "policy.activated":
            named = (facts.get(name) for name in ("version", "how", "by", "note", "at_us"))
            activated[facts.get("number")] = tuple(named)
            continue
        version = told.setdefault(str(facts.get("version")), {"since": facts.get("at_us")})
        version["text"] = facts.get("text_sha256")
        version["pushed"] = (facts.get("by"), facts.get("note", ""))
    for row in records.rows("SELECT * FROM policy_versions ORDER BY id"):
        where = f"policy version {row['id']}"
        version = told.pop(row["id"], None)
        if version is None:
            yield Finding(where=where, what="it has no event")
        elif hashlib.sha256(str(row["text"]).encode()).hexdigest() != version["text"]:
            yield Finding(where=where, what="its text is not the one that was stored")
        elif ((row["pushed_by"], row["note"]), row["created_us"]) != (version["pushed"], version["since"]):
            yield Finding(where=where, what="who pushed it, when or why is not what its event says")
    for row in records.rows("SELECT * FROM policy_activations ORDER BY number"):
        where = f"activation {row['number']}"
        stated = (row["version"], row["kind"], row["activated_by"], row["note"], row["at_us"])
        if activated.pop(row["number"], None) != stated:
            yield Finding(where=where, what="no event says that this version came into force so")
    for version_id in told:
        yield Finding(where=f"policy version {version_id}", what="it has events, and its text is gone")
    for number in activated:
        yield Finding(where=f"activation {number}", what="it has an event, and no row")


def _was_undone(records: Records, call_id: str) -> bool:
    return any(records.rows("SELECT 1 FROM undos WHERE call_id = ? AND state = 'done'", (call_id,)))


def _as_told(asked: Mapping[str, Any], events: Sequence[Event]) -> dict[str, Any]:
    """The columns of a request as the events of its call tell them, of which `asked` opened it."""
    told = {name: asked.get(name) for name in ("tenant", "fingerprint", "votes_needed", "expires_us")}
    told |= {"id": asked.get("approval_id"), "created_us": asked.get("at_us")}
    told |= {"state": "pending", "decided_us": None}
    # In whichever order they are read: who agrees comes before all that ends a request.
    for kind, facts in sorted(events, key=lambda event: event[0] != "approval.approve"):
        if kind == "approval.approve" and facts.get("state") == "approved":
            told |= {"state": "approved", "decided_us": facts.get("at_us")}
            if "expires_us" in facts:
                told["expires_us"] = facts["expires_us"]
            else:  # by an event from before it said until when
                told.pop("expires_us", None)
        elif kind in _CLOSED:
            told |= {"state": _CLOSED[kind], "decided_us": facts.get("at_us")}
        elif kind == "approval.expired":
            told["state"] = "expired"
        elif kind in _LET_IN and facts.get("approval_id") is not None:
            told["state"] = "used"
    return told


def _switch(key: tuple[str, ...]) -> str:
    return f"switch {' '.join(filter(None, key))}"


def _bound(records: Records, request: Row) -> bool:
    """Whether what a request shows is what its binding covers; what is erased cannot be told from it."""
    try:
        shown = records.opened(request["call_id"], "shown")
    except (Damaged, KeyUnusable):
        return False
    return shown is None or binding_of(facts_of(shown.decode())) == request["binding"]
