"""Is what is kept beside calls still what was written? Lives, keys, runs, playbooks, trials of ways back.

Each row is compared with the events that tell of it. Where events of an earlier Remit tell less, so much less
is compared: what they lack nobody can have taken out of them, for they are chained. The calls themselves are
compared by `audit.py`, and what people decided by `audit_decisions.py`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from itertools import islice
from typing import Any, cast

import orjson

from remit.audit import Finding, Followed, beside_calls, facts_of, is_cleared, kept_of
from remit.database import Row
from remit.erasing import ERASED
from remit.records import Records, open_records
from remit.vault import KeyUnusable

#: Keys that are looked up together.
_AT_ONCE = 200
#: Rows of calls that are not about this person, or are not there. Of the events of a call, the one with which
#: its record begins has that commitment; and the keys of whom it is about, where these are sealed.
_NOT_ABOUT = (
    "SELECT s.key_id, s.call_id FROM call_subjects AS s WHERE NOT EXISTS (SELECT 1 FROM events AS e"
    " WHERE e.call_id = s.call_id AND e.body LIKE '%\"arguments_commit\":%'"
    " AND (e.body LIKE '%\"' || s.key_id || '\"%' OR e.body NOT LIKE '%\"subjects\":%'))"
    " ORDER BY s.call_id, s.key_id"
)


def verify_kept(records: Records, followed: Followed) -> Iterator[Finding]:
    """Whether retention removed as much as is gone of what the `followed` calls carried."""
    if (told := _retained(records)) == followed.gone:
        return
    with open_records(records.at) if records.at else nullcontext(records) as newest:
        told_since = _retained(newest)
    for what in sorted(told_since.keys() | followed.gone.keys()):
        gone = followed.gone[what]
        # What was followed by other processes may have been removed since these records were opened.
        if not told[what] <= gone <= told_since[what]:
            yield Finding(
                where="payloads",
                what=f"the {what.replace('_', ' ')} of {gone} calls are gone, and retention removed those of"
                f" {told[what]}",
            )


def verify_keys(records: Records, *, payloads: bool = True) -> Iterator[Finding]:
    """Every key of payloads that is gone, or is not as the events say that made, destroyed and cleared it.

    With `payloads`, also every one that is not wrapped under the master key, whoever put it there.
    """
    made = beside_calls(records, "audit.keyed")
    while some := list(islice(made, _AT_ONCE)):
        told = {
            str(facts.get("key")): {
                "name": facts.get("name"),
                "tenant": event["tenant"],
                "created_us": event["at_us"],
            }
            for event, facts in some
        }
        marks = ", ".join("?" * len(told))
        found = {
            row["id"]: row
            for row in records.rows(
                f"SELECT id, name, tenant, created_us FROM subject_keys WHERE id IN ({marks})",  # noqa: S608 - only marks are inserted
                list(told),
            )
        }
        for key_id, stated in told.items():
            yield from _unlike(f"key {key_id}", found.get(key_id), stated)
    yield from _destroyed(records)
    if payloads:
        for row in records.rows("SELECT id, wrapped FROM subject_keys WHERE wrapped IS NOT NULL ORDER BY id"):
            try:
                records.vault.unwrapped(row["id"], row["wrapped"])
            except KeyUnusable:
                yield Finding(where=f"key {row['id']}", what="it is not wrapped under the master key")


def _destroyed(records: Records) -> Iterator[Finding]:
    """Every key that is destroyed, or not, otherwise than events say."""
    silent = {stream for stream, opened in _lives(records).items() if "host" not in opened}
    erased: dict[str, dict[str, Any]] = {}
    cleared: dict[str, int] = {}
    for event, facts in beside_calls(records, "audit.erased", "audit.cleared"):
        if event["kind"] == "audit.cleared":
            cleared[str(facts.get("key"))] = event["at_us"]
            continue
        told = {"name": facts.get("name"), "tenant": event["tenant"], "erased_us": event["at_us"]}
        if event["stream"] not in silent:  # an earlier Remit said nothing when it had cleared what it erased
            told["cleared_us"] = None
        erased |= dict.fromkeys(facts.get("keys", ()), told)
    for row in records.rows(
        "SELECT id, name, tenant, wrapped, erased_us, cleared_us FROM subject_keys ORDER BY id"
    ):
        where, told = f"key {row['id']}", erased.pop(row["id"], None)
        if (row["wrapped"] is None) != (told is not None):
            what = "it is destroyed, and no event says so" if told is None else "it was destroyed"
            yield Finding(where=where, what=what)
            continue
        stated = told or {"erased_us": None, "cleared_us": None}
        if row["id"] in cleared:
            stated = stated | {"cleared_us": cleared[row["id"]]}
        yield from _unlike(where, row, stated)
    for key_id in erased:
        yield Finding(where=f"key {key_id}", what="it is gone")


def verify_unlisted(followed: Followed) -> Iterator[Finding]:
    """Every one of the `followed` calls that is about somebody beside its user, and is not listed so."""
    for key_id, call_id in followed.unlisted:
        yield Finding(where=f"call {call_id}", what=f"it is about whom key {key_id} is of, and not listed so")


def verify_listed(records: Records, followed: Followed) -> Iterator[Finding]:
    """Every call that is listed as about somebody beside its user, and is not.

    They are looked up one by one only where something is listed that the `followed` events do not tell, or
    an earlier Remit's do not, or where these are not the events of these records: others wrote meanwhile.
    """
    if (records.count("call_subjects"), records.count("events")) == (followed.listed, followed.events):
        return
    for row in records.rows(_NOT_ABOUT):
        what = f"it is listed as about whom key {row['key_id']} is of, and is not"
        yield Finding(where=f"call {row['call_id']}", what=what)


def verify_runs(records: Records, followed: Followed) -> Iterator[Finding]:
    """Every fact of a run that its call did not establish, or not so, and every one that is gone.

    All events were `followed`, perhaps some that are newer than these records.
    """
    told: dict[tuple[str, str], tuple[Any, int]] = {}
    conflicts: set[tuple[str, str]] = set()
    for place in followed.establishing:
        for row in records.rows(
            "SELECT call_id, at_us, body FROM events"
            " WHERE stream = ? AND seq = ? AND kind = 'call.succeeded'",
            place,
        ):
            facts = facts_of(row["body"])
            for name, commit in facts.get("established", {}).items():
                told[row["call_id"], name] = commit, row["at_us"]
            named: Any = facts.get("conflicts")  # whoever edited it made a flaw of the event
            names = cast("list[Any]", named) if isinstance(named, list) else []
            conflicts |= {(row["call_id"], str(name)) for name in names}
    for row in records.rows(
        "SELECT run_facts.*, calls.id AS found FROM run_facts LEFT JOIN calls ON calls.id = call_id"
        " AND calls.tenant = run_facts.tenant AND calls.agent = run_facts.agent"
        ' AND calls."user" = run_facts."user" AND calls.run = run_facts.run'
        ' ORDER BY run_facts.tenant, run_facts.agent, run_facts."user", run_facts.run, run_facts.name'
    ):
        where = f"run {row['run']} of {row['agent']}, {row['name']}"
        commit, at_us = told.pop((row["call_id"], row["name"]), (None, None))
        established = row["found"] is not None and commit is not None and at_us == row["at_us"]
        if not (established and (_commits(row, commit) or _is_erased(records, row))):
            yield Finding(where=where, what="no call established it so")
        if row["conflict_call"] is not None:
            if (row["conflict_call"], row["name"]) not in conflicts:
                yield Finding(where=where, what="its conflict is not what the events tell")
            conflicts.discard((row["conflict_call"], row["name"]))
    gone: list[tuple[str, str]] = []
    anew: set[tuple[Any, ...]] = set()
    for call_id, name in told:
        stands = _established_by_another(records, call_id, name)
        if stands and is_cleared(records, kept_of(records, call_id)):
            anew.add(stands)
        else:
            gone.append((call_id, name))
    # With what was erased, what was said against it is gone.
    gone += [each for each in sorted(conflicts) if _established_by_another(records, *each) not in anew]
    for call_id, name in gone:
        yield Finding(where=f"call {call_id}", what=f"what it said about {name} of its run is not kept")


def verify_lives(records: Records) -> Iterator[Finding]:
    """Every life of a process that is not as its stream was opened, or not ended as events say."""
    opened = _lives(records)
    closed: dict[str, Any] = {}
    dead: dict[str, Any] = {}
    for event, facts in beside_calls(records, "stream.closed", "stream.dead"):
        if event["kind"] == "stream.closed":
            closed[event["stream"]] = event["at_us"]
        else:
            dead[str(facts.get("dead"))] = event["at_us"]
    for row in records.rows(
        "SELECT id, host, pid, role, state, started_us, ended_us FROM incarnations ORDER BY id"
    ):
        where, begun = f"stream {row['id']}", opened.get(row["id"])
        if begun is None:
            yield Finding(where=where, what="no event says that it began")
            continue
        stated: dict[str, Any] = {"role": begun.get("role"), "started_us": begun.get("at_us")}
        if row["id"] in dead:
            stated |= {"state": "dead", "ended_us": dead[row["id"]]}
        elif "host" in begun:
            state = "closed" if row["id"] in closed else "live"
            stated |= {"state": state, "ended_us": closed.get(row["id"])}
        stated |= {name: begun[name] for name in ("host", "pid") if name in begun}
        yield from _unlike(where, row, stated)


def verify_playbooks(records: Records, *, payloads: bool = True) -> Iterator[Finding]:
    """Every run of a playbook that is not as events have left it, or is gone.

    What it was run with is known from a keyed digest, so only with `payloads`.
    """
    told: dict[str, dict[str, Any]] = {}
    inputs: dict[str, Any] = {}
    for event, facts in beside_calls(records, "playbook.started", "playbook.ended"):
        run = str(facts.get("run"))
        if event["kind"] == "playbook.ended":
            told.setdefault(run, {}).update(state=facts.get("state"), ended_us=event["at_us"])
            continue
        if run not in told:
            begun = {name: facts.get(name) for name in ("tenant", "digest", "by")}
            told[run] = begun | {"name": facts.get("playbook"), "started_us": event["at_us"]}
            if "inputs" in facts:
                inputs[run] = facts["inputs"]
                told[run]["cause"] = facts.get("cause")
        told[run].update(state="running", ended_us=None, incarnation=event["stream"])
    for row in records.rows("SELECT * FROM playbook_runs ORDER BY id"):
        where, stated = f"playbook run {row['id']}", told.pop(row["id"], None)
        if stated is None:
            yield Finding(where=where, what="no event says that it began")
            continue
        yield from _unlike(where, row, stated)
        sealed = inputs.get(row["id"])
        if payloads and sealed is not None and sealed != records.vault.name(row["tenant"], row["inputs"]):
            yield Finding(where=where, what="its inputs are not what its event says")
    for run in told:
        yield Finding(where=f"playbook run {run}", what="it is gone")


def verify_trials(records: Records) -> Iterator[Finding]:
    """Every way back that is said to be proven, or not, otherwise than by its newest trial."""
    told: dict[str, dict[str, Any]] = {}
    for event, facts in beside_calls(records, "undo.proven", "undo.unproven"):
        told[str(facts.get("digest"))] = {
            **{name: facts.get(name) for name in ("tool", "source", "by")},
            "state": "proven" if event["kind"] == "undo.proven" else "failed",
            "differs": orjson.dumps(facts.get("differs")).decode(),
            "at_us": event["at_us"],
            "call_id": facts.get("tried"),
        }
    for row in records.rows("SELECT * FROM undo_proofs ORDER BY digest"):
        where, stated = f"trial of {row['tool']}, {row['digest'][:12]}", told.pop(row["digest"], None)
        if stated is None:
            yield Finding(where=where, what="no event tells of it")
        else:
            yield from _unlike(where, row, stated)
    for digest, stated in told.items():
        yield Finding(where=f"trial of {stated['tool']}, {digest[:12]}", what="it is gone")


def _unlike(where: str, row: Row | None, stated: Mapping[str, Any]) -> Iterator[Finding]:
    """Each column of a row that is not what is `stated` of it."""
    if row is None:
        yield Finding(where=where, what="it is gone")
        return
    for name, value in stated.items():
        if row[name] != value:
            yield Finding(where=where, what=f"its {name} is not what its event says")


def _lives(records: Records) -> dict[str, dict[str, Any]]:
    """What each stream was opened with."""
    return {event["stream"]: facts for event, facts in beside_calls(records, "stream.opened")}


def _retained(records: Records) -> Counter[str]:
    """What retention says that it removed."""
    found: Counter[str] = Counter()
    for _, facts in beside_calls(records, "audit.retained"):
        found.update(facts.get("removed", {}))
    return found


def _commits(fact: Row, commit: Any) -> bool:
    salt, value = fact["salt"], fact["value"]
    if not (isinstance(salt, bytes) and isinstance(value, str)):  # SQLite takes anything
        return False
    return hashlib.sha256(salt + value.encode()).hexdigest() == commit


def _is_erased(records: Records, fact: Row) -> bool:
    """Whether a fact is one that was erased with its call, or removed with its age."""
    return fact["value"] == ERASED and is_cleared(records, kept_of(records, fact["call_id"]))


def _established_by_another(records: Records, call_id: str, name: str) -> tuple[Any, ...] | None:
    """The run of a call and the name, where another call has established what stands under it there."""
    found = records.tuples(
        'SELECT f.tenant, f.agent, f."user", f.run, f.name FROM calls AS c JOIN run_facts AS f'
        ' ON f.tenant = c.tenant AND f.agent = c.agent AND f."user" = c."user" AND f.run = c.run'
        " WHERE c.id = ? AND f.name = ? AND f.call_id <> c.id",
        (call_id, name),
    )
    return next(iter(found), None)
