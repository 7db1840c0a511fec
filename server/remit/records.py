"""Reading the audit database back for people: what happened, who agreed, what is left, what is stopped.

Nothing here writes: the connection is read-only, so a reader can neither damage a record nor hold up a
writer. One `Records` reads one snapshot, however long it takes; open a new one to see newer things. What
goes in is `journal.py`; whether it still is what went in is `audit.py`.

Whoever opens it closes it. Times are microseconds since 1970-01-01 UTC.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from remit.chain import EventRow
from remit.comparing import Difference, Group
from remit.database import Location, Reader, Row, exists, reading
from remit.erasing import pseudonym
from remit.errors import RemitError, StoreUnavailable, UnknownRecord
from remit.ids import Clock, first_id, now_us
from remit.keeping import Kind, LegalHold, count, covers_a_call, holds
from remit.proven import Proof
from remit.schema import HEAD
from remit.states import ACTED, STATES, way_back
from remit.vault import Vault, master_key

if TYPE_CHECKING:
    from remit.config import Retention
    from remit_rbac import Question


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One row of `calls`; the meaning of each column is told in `tables.py`."""

    id: str
    kind: str
    of_call: str | None
    tenant: str
    agent: str
    user: str
    run: str
    auth: str
    source: str
    tool: str
    operation: str
    tool_digest: str
    effect: str
    fingerprint: str
    arguments_commit: str
    client_key: str | None
    verdict: str
    code: str
    reason: str
    policy_version: str
    policy_rows: tuple[str, ...]
    state: str
    approval_id: str | None
    incarnation: str
    created_us: int
    dispatched_us: int | None
    #: Of a call that is held back: when it is sent, or looked at again.
    due_us: int | None
    #: The account that it waits, or waited, for.
    waits_for: str | None
    deadline_us: int | None
    finished_us: int | None
    result_commit: str | None
    error_code: str | None
    error: str | None
    resolution: str | None
    trace_id: str | None
    claim: Any
    confirmation: str | None
    #: One of `states.WAY_BACK_STATES`, as it is now; None for a call that changed nothing.
    way_back: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallQuery:
    """Which calls; what is None does not matter. Ids are UUIDv7, so `since_us` reads by them."""

    tenant: str | None = None
    agent: str | None = None
    user: str | None = None
    #: A trailing `*` means all that begin so.
    tool: str | None = None
    verdict: str | None = None
    state: str | None = None
    run: str | None = None
    #: Those that a rollback is concerned with: they are no reads, were let out, and did not fail.
    acted: bool = False
    since_us: int | None = None
    until_us: int | None = None
    #: One of these tools.
    tools: tuple[str, ...] | None = None
    #: Cost more than this, by unit.
    cost_over: Mapping[str, int] = field(default_factory=dict[str, int])
    #: What the arguments hold, by the path to it: every call that fits otherwise is opened for it.
    args: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    user: str
    vote: str
    auth: str
    at_us: int
    comment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRecord:
    id: str
    call_id: str
    tenant: str
    agent: str
    user: str
    tool: str
    #: As stored; a request whose time is up may still say `pending` until somebody notices.
    state: str
    binding: str
    fingerprint: str
    votes_needed: int
    #: What the approver is shown and what the binding covers; None when erased.
    shown: Any
    created_us: int
    expires_us: int
    decided_us: int | None
    votes: tuple[Vote, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    account: str
    window_start_us: int
    unit: str
    amount: int
    state: str
    posted: int
    refunded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    at_us: int
    account: str
    window_start_us: int
    kind: str
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoRecord:
    #: One of `states.WAY_BACK_STATES`, as it is now.
    state: str
    tool: str
    #: None until the call's result was known, when the way back could not be worked out, or when erased.
    arguments: Any
    resource: str | None
    expires_us: int
    undo_call: str | None
    residue: str | None
    best_effort: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Everything about one call."""

    call: CallRecord
    #: Some of what the call carried was erased: what is None below.
    erased: bool
    #: None when erased, no longer kept, or never stored (results of reads are not).
    arguments: Any
    result: Any
    before: Any
    #: What the call left, as it was seen right after it.
    after: Any
    #: What policy saw as `r.ctx` when the call was first decided; None also where it was not asked.
    context: Any
    approval: ApprovalRecord | None
    holds: tuple[Hold, ...]
    moves: tuple[Move, ...]
    undo: UndoRecord | None
    #: The calls that served this one: its undo with the verification of that, its before-read.
    served_by: tuple[CallRecord, ...]
    events: tuple[EventRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What policy was asked about a call when it was first decided, exactly; so it can be asked again.

    A call that people approved is decided once more when it is sent; only what they were asked is kept.
    """

    question: Question
    #: Parts were struck out before it was stored: another answer may be due to that.
    redacted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRecord:
    id: str
    window_start_us: int
    tenant: str
    unit: str
    limit_amount: int
    held: int
    posted: int
    refunded: int
    overrun: int

    @property
    def left(self) -> int:
        return self.limit_amount - self.held - self.posted + self.refunded


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchRecord:
    kind: str
    scope: str
    target: str
    tenant: str
    reason: str
    set_by: str
    set_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUse:
    """An API key as people may see it: never its digest."""

    id: str
    tenant: str
    agent: str
    user: str
    label: str
    created_us: int
    expires_us: int
    revoked_us: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowRecord:
    """A policy that is or was tried beside the one in force, and what it would have changed."""

    version: str
    started_by: str
    started_us: int
    #: None while it runs.
    stopped_us: int | None
    #: Calls decided under both, and calls that came too fast for that.
    decided: int
    dropped: int
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyVersion:
    id: str
    #: The complete text; read it with `PolicyText.from_json`.
    text: str
    #: None: known from a server's files alone.
    pushed_by: str | None
    note: str
    created_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """When a policy version came into force."""

    number: int
    version: str
    #: `files`, `activate` or `rollback`.
    kind: str
    #: None: a server found it in its files.
    activated_by: str | None
    note: str
    at_us: int


def _beside() -> None:
    """The master key is in the file beside the database."""


@contextmanager
def open_records(
    at: Location, key: Callable[[], str | None] = _beside, clock: Clock = now_us
) -> Generator[Records]:
    """The records in the audit database, as of now. Raises RemitError when they cannot be read.

    `key` gives the master key of payloads when one is to be opened (see `vault.master_key`). `clock` says
    what can still be taken back.
    """
    if not exists(at):
        raise RemitError(f"there is no audit database {at} yet: it is made when Remit first serves")
    with reading(at) as db:
        row = db.one("SELECT version_num FROM alembic_version")
        version = row["version_num"] if row else ""
        if version != HEAD:
            raise RemitError(
                f"{at} has schema {version}, and this Remit knows {HEAD}: "
                + ("upgrade Remit" if version > HEAD else "let it serve once, which upgrades the database")
            )
        yield Records(db, lambda: master_key(at, key(), living=True), at, clock)


class Records:
    def __init__(
        self,
        db: Reader,
        key: Callable[[], bytes],
        at: Location | None = None,
        clock: Clock = now_us,
    ) -> None:
        self._db = db
        #: The master key of payloads. Raises RemitError when it cannot be read.
        self.key = key
        #: Where another process finds the same; None: nowhere.
        self.at = at
        self._clock = clock

    @cached_property
    def vault(self) -> Vault:
        """What opens payloads. Raises RemitError when its key cannot be read."""
        return Vault(self.key(), self._one, remember=True)

    # What calls carried.

    def opened(self, call_id: str, kind: str) -> bytes | None:
        """A payload of a call; None when it is erased, or not kept (any more). Raises RemitError."""
        row = self._one("SELECT keys, body FROM payloads WHERE call_id = ? AND kind = ?", (call_id, kind))
        opened = self.vault.opened(call_id, kind, row["keys"], row["body"]) if row else None
        return opened[1] if opened else None

    def _carried(self, call_id: str, kind: str) -> Any:
        body = self.opened(call_id, kind)
        return json.loads(body) if body is not None else None

    # Calls.

    def calls(self, query: CallQuery, *, limit: int) -> list[CallRecord]:
        """The newest `limit` calls that fit, newest first."""
        conditions, values = ["1 = 1"], list[Any]()
        for column in ("tenant", "agent", "user", "verdict", "state", "run"):
            if (value := getattr(query, column)) is not None:
                conditions.append(f'"{column}" = ?')
                values.append(value)
        if query.acted:
            # What did nothing is left out, rather than the others found: no index is to be taken for it.
            idle = [state for state in STATES if state not in ACTED]
            conditions.append(
                f"kind = 'call' AND effect <> 'read' AND state NOT IN ({', '.join('?' * len(idle))})"
            )
            values += idle
        if query.since_us is not None:
            conditions.append("id >= ? AND created_us >= ?")
            values += [first_id(query.since_us), query.since_us // 1000 * 1000]
        if query.until_us is not None:
            conditions.append("id < ? AND created_us < ?")
            values += [first_id(query.until_us), query.until_us // 1000 * 1000]
        for unit, amount in query.cost_over.items():
            conditions.append(
                "EXISTS (SELECT 1 FROM holds WHERE call_id = calls.id AND unit = ? AND posted - refunded > ?)"
            )
            values += [unit, amount]
        if query.verdict not in (None, "execute"):
            conditions.append("verdict <> 'execute'")  # which the index is of
        if query.state not in (None, "dispatched", "succeeded"):
            conditions.append("state NOT IN ('dispatched', 'succeeded')")  # the same
        where, (order, walks) = " AND ".join(conditions), self._walks(query)
        found = merge(
            *(
                self._named(
                    f"SELECT id, created_us FROM calls WHERE {where} AND {first} ORDER BY {order}"  # noqa: S608 - the columns are ours
                    + ("" if query.args else " LIMIT ?"),
                    (*values, *more) if query.args else (*values, *more, limit),
                )
                for first, more in walks
            ),
            reverse=True,
        )
        fitting = (call_id for _, call_id in found if not query.args or self._has(call_id, query.args))
        shown = islice(fitting, limit)
        calls: list[CallRecord] = []
        while ids := list(islice(shown, _CALLS_AT_ONCE)):
            marks = ", ".join("?" * len(ids))
            calls += self._calls(f"SELECT * FROM calls WHERE id IN ({marks})", ids, order=order)  # noqa: S608 - only marks are inserted
        return calls

    def _named(self, sql: str, values: Sequence[Any]) -> Iterator[tuple[int, str]]:
        """When each call came that `sql` finds, and its id."""
        for row in self._db.rows(sql, values):
            yield row["created_us"], row["id"]

    def _walks(self, query: CallQuery) -> tuple[str, list[tuple[str, tuple[Any, ...]]]]:
        """In which order to read, and conditions that each begin an index in it: a call meets one of them."""
        wanted = None if query.tool is None else [query.tool]
        if query.tool is not None and query.tool.endswith("*"):
            wanted = [name for name in self.tools() if name.startswith(query.tool[:-1])]
        if query.tools is not None:
            wanted = [name for name in query.tools if wanted is None or name in wanted]
        tenants = [each for each in self._names("tenant") if query.tenant in (None, each)]
        if query.agent is not None or query.user is not None or query.run is not None:
            among = "" if wanted is None else f" AND tool IN ({', '.join('?' * len(wanted)) or 'NULL'})"
            return _BY_TIME, [(f"tenant = ?{among}", (each, *(wanted or ()))) for each in tenants]
        if wanted is not None:
            return _BY_TIME, [("tool = ?", (name,)) for name in wanted]
        if not tenants:
            return _BY_TIME, []
        if query.verdict in (None, "execute") and query.state in (None, "succeeded"):
            return "id DESC", [("1 = 1", ())]  # most calls are so: from the newest one back
        return _BY_TIME, [("1 = 1", ())]

    def _calls(self, sql: str, values: Sequence[Any], *, order: str) -> Iterator[CallRecord]:
        """The calls that `sql` finds, each with the state of its way back."""
        found = self._db.rows(
            f"SELECT c.*, {way_back('?')} AS way_back FROM ({sql}) AS c"  # noqa: S608 - nothing inserted is anybody's
            f" LEFT JOIN undos AS u ON u.call_id = c.id ORDER BY {order}",
            (self._clock(), *values),
        )
        return (_call(row) for row in found)

    def _has(self, call_id: str, args: Mapping[str, str]) -> bool:
        """Whether the arguments of a call hold these values; what is erased holds none."""
        arguments = self._carried(call_id, "arguments")
        return all(_at(arguments, path) == value for path, value in args.items())

    def call(self, start: str) -> CallRecord:
        """The one call whose id begins so. Raises UnknownRecord."""
        found = self._only("calls", start, "call", "remit calls list")
        return next(self._calls("SELECT * FROM calls WHERE id = ?", (found["id"],), order="c.id"))

    def story(self, start: str) -> Story:
        """Everything about the one call whose id begins so. Raises UnknownRecord."""
        call = self.call(start)
        after = self._carried(call.id, "after")
        events = tuple(
            as_event(row)
            for row in self._all("SELECT * FROM events WHERE call_id = ? ORDER BY rowid", (call.id,))
        )
        # Facts of a call that people were asked about anew were looked up for the first request.
        looked_up = [read for event in events for read in json.loads(event.body).get("facts", {}).values()]
        return Story(
            call=call,
            erased=self.is_erased(call.id),
            arguments=self._carried(call.id, "arguments"),
            result=self._carried(call.id, "result"),
            before=self._carried(call.id, "before"),
            after=after["kept"] if after is not None else None,
            context=self._carried(call.id, "context"),
            approval=self.approval(call.approval_id) if call.approval_id else None,
            holds=tuple(
                Hold(**row)
                for row in self._all(
                    "SELECT account, window_start_us, unit, amount, state, posted, refunded FROM holds"
                    " WHERE call_id = ? ORDER BY account",
                    (call.id,),
                )
            ),
            moves=tuple(
                Move(**row)
                for row in self._all(
                    "SELECT at_us, account, window_start_us, kind, amount FROM budget_moves"
                    " WHERE call_id = ?"
                    " ORDER BY at_us, account, CASE kind WHEN 'hold' THEN 1"
                    " WHEN 'release' THEN 2 WHEN 'post' THEN 3 WHEN 'overrun' THEN 4 ELSE 5 END",
                    (call.id,),
                )
            ),
            undo=self.undo(call.id),
            served_by=tuple(
                self._calls(
                    "WITH RECURSIVE serving(id) AS (SELECT id FROM calls WHERE of_call = ?"  # noqa: S608 - only marks are inserted
                    f" OR id IN ({', '.join(['?', *'?' * len(looked_up)])}) UNION"
                    " SELECT calls.id FROM calls JOIN serving ON calls.of_call = serving.id)"
                    " SELECT calls.* FROM calls JOIN serving USING (id)",
                    (call.id, "", *looked_up),
                    order="c.created_us",
                )
            ),
            events=events,
        )

    def is_erased(self, call_id: str) -> bool:
        """Whether somebody was erased whom the call was about."""
        row = self._one("SELECT keys FROM payloads WHERE call_id = ? LIMIT 1", (call_id,))
        return row is not None and self.vault.cipher(row["keys"]) is None

    def sealed_with(self, key_id: str, *, tenant: str, subject: str) -> Iterator[str]:
        """The ids of the calls whose payloads are, or were, sealed with this destroyed key of somebody."""
        if subject.startswith("user:"):
            for row in self._db.rows(
                "SELECT calls.id FROM calls LEFT JOIN payloads ON call_id = calls.id"
                " AND payloads.kind = 'arguments' WHERE tenant = ? AND \"user\" = ?"
                " AND (keys LIKE '%' || ? || '%'"
                # An undo whose arguments went with what they put back still says something in words.
                " OR keys IS NULL AND calls.kind = 'undo'"
                " AND created_us <= (SELECT erased_us FROM subject_keys WHERE id = ?))",
                (tenant, subject, key_id, key_id),
            ):
                yield row["id"]
        for row in self._db.rows("SELECT call_id FROM call_subjects WHERE key_id = ?", (key_id,)):
            yield row["call_id"]

    def covers_a_call(self, hold_id: str) -> bool:
        """Whether a legal hold covers any call that has been made."""
        return any(covers_a_call(self._all, self.vault, it) for it in self.legal_holds() if it.id == hold_id)

    def legal_holds(self) -> list[LegalHold]:
        """Every legal hold that stands, oldest first."""
        return holds(self._all)

    def of_age(self, retention: Retention, now_us: int) -> dict[Kind, int]:
        """Of how many calls something would be removed by now, by kind."""
        return count(self._all, self.vault, retention, now_us=now_us)

    def asked(self, start: str) -> Asked | None:
        """What policy was asked about the one call whose id begins so; None where nothing of that is kept.

        Raises UnknownRecord.
        """
        from remit_rbac import Question  # the engine is slow to load, and who verifies asks nothing

        call = self.call(start)
        arguments, context = (self._carried(call.id, kind) for kind in ("arguments", "context"))
        if arguments is None or context is None:
            return None
        opening = self._one("SELECT body FROM events WHERE call_id = ? ORDER BY rowid LIMIT 1", (call.id,))
        return Asked(
            question=Question(
                tenant=call.tenant,
                agent=call.agent,
                user=call.user,
                tool=call.tool,
                args=arguments,
                ctx=context,
            ),
            redacted=opening is not None and bool(json.loads(opening["body"]).get("redacted")),
        )

    def undo(self, call_id: str) -> UndoRecord | None:
        row = self._one(
            f"SELECT u.*, {way_back('?')} AS way_back FROM undos AS u JOIN calls AS c ON c.id = u.call_id"  # noqa: S608 - only a mark is inserted
            " WHERE u.call_id = ?",
            (self._clock(), call_id),
        )
        if row is None:
            return None
        return UndoRecord(
            state=row["way_back"],
            tool=row["tool"],
            arguments=self._carried(call_id, "undo") or self._carried(call_id, "restore"),
            resource=row["resource"],
            expires_us=row["expires_us"],
            undo_call=row["undo_call"],
            residue=row["residue"],
            best_effort=bool(row["best_effort"]),
        )

    def later_touches(self, call: CallRecord, resource: str) -> list[CallRecord]:
        """The calls after `call` that changed the same thing, or may have, and are not undone, in order."""
        found = self._calls(
            "SELECT l.* FROM touches JOIN calls AS l ON l.id = touches.call_id"
            " LEFT JOIN undos ON undos.call_id = l.id WHERE touches.resource IN (?, ?) AND l.tenant = ?"
            " AND l.id <> ? AND (l.dispatched_us, l.id) > (?, ?)"
            " AND l.state IN ('dispatched', 'in_doubt', 'succeeded') AND COALESCE(undos.state, '') <> 'done'",
            (
                resource,
                pseudonym(self.vault, call.tenant, resource),
                call.tenant,
                call.id,
                call.dispatched_us,
                call.id,
            ),
            order="c.dispatched_us, c.id",
        )
        return list(found)

    def proofs(self) -> dict[str, Proof]:
        """The ways back that are proven, by digest."""
        rows = self._all("SELECT digest, tool, source, \"by\", at_us FROM undo_proofs WHERE state = 'proven'")
        return {row["digest"]: Proof(**_values(row)) for row in rows}

    def tools(self) -> list[str]:
        """Every tool that was ever called, by name."""
        return self._names("tool")

    def _names(self, column: Literal["tenant", "tool"]) -> list[str]:
        """Each value of a column that begins an index."""
        # Jumps from name to name through the index, however many calls there are.
        rows = self._all(
            f"WITH RECURSIVE names(name) AS (SELECT MIN({column}) FROM calls UNION ALL"  # noqa: S608 - the columns are ours
            f" SELECT (SELECT MIN({column}) FROM calls WHERE {column} > name) FROM names"
            " WHERE name IS NOT NULL) SELECT name FROM names WHERE name IS NOT NULL"
        )
        return [row["name"] for row in rows]

    # Approvals.

    def approvals(self, *, states: Sequence[str] = (), limit: int) -> list[ApprovalRecord]:
        """The newest `limit` requests in one of `states` (none named: in any), newest first."""
        condition = f"WHERE state IN ({', '.join('?' * len(states))})" if states else ""
        rows = self._all(
            f"SELECT * FROM approvals {condition} ORDER BY id DESC LIMIT ?",  # noqa: S608 - only marks are inserted
            (*states, limit),
        )
        return [self._approval(row) for row in rows]

    def approval(self, start: str) -> ApprovalRecord:
        """The one request whose id begins so. Raises UnknownRecord."""
        return self._approval(self._only("approvals", start, "approval", "remit approvals list --all"))

    def _approval(self, row: Row) -> ApprovalRecord:
        votes = self._all(
            'SELECT "user", vote, auth, at_us, comment FROM votes WHERE approval_id = ? ORDER BY at_us',
            (row["id"],),
        )
        values = _values(row)
        values["shown"] = self._carried(values["call_id"], "shown")
        (call,) = self._all('SELECT agent, "user", tool FROM calls WHERE id = ?', (values["call_id"],))
        values |= dict(call)
        return ApprovalRecord(**values, votes=tuple(Vote(**vote) for vote in votes))

    def shadow(self) -> ShadowRecord | None:
        """The policy that is tried, or was tried last."""
        row = self._one("SELECT * FROM shadows", ())
        if row is None:
            return None
        differences = self._all("SELECT * FROM shadow_differences ORDER BY count DESC")
        return ShadowRecord(
            version=row["version"],
            started_by=row["started_by"],
            started_us=row["started_us"],
            stopped_us=row["stopped_us"],
            decided=row["decided"],
            dropped=row["dropped"],
            groups=tuple(
                Group(
                    Difference(found["before"], found["after"], tuple(json.loads(found["rules"]))),
                    found["count"],
                    json.loads(found["examples"]),
                )
                for found in differences
            ),
        )

    # Budgets, switches, keys.

    def accounts(self, *, every_window: bool = False) -> list[AccountRecord]:
        """The balances of the newest window of each account, or of every window, by account and time."""
        newest = (
            ""
            if every_window
            else "WHERE window_start_us = (SELECT MAX(window_start_us) FROM accounts WHERE id = a.id)"
        )
        rows = self._all(f"SELECT * FROM accounts AS a {newest} ORDER BY id, window_start_us")  # noqa: S608 - nothing inserted is anybody's
        return [AccountRecord(**row) for row in rows]

    def switches(self) -> list[SwitchRecord]:
        """Every switch that is on, oldest first."""
        return [SwitchRecord(**row) for row in self._all("SELECT * FROM switches ORDER BY set_us")]

    def api_keys(self) -> list[KeyUse]:
        """Every API key that was ever made, newest first."""
        rows = self._all(
            'SELECT id, tenant, agent, "user", label, created_us, expires_us, revoked_us FROM api_keys'
            " ORDER BY created_us DESC"
        )
        return [KeyUse(**row) for row in rows]

    def last_seen(self) -> dict[tuple[str, str], int]:
        """When each (tenant, agent) last called."""
        rows = self._all("SELECT tenant, agent, MAX(created_us) AS at_us FROM calls GROUP BY tenant, agent")
        return {(row["tenant"], row["agent"]): row["at_us"] for row in rows}

    # The policy.

    def policy_versions(self) -> list[PolicyVersion]:
        """Every version that is stored, the oldest first."""
        rows = self._all("SELECT * FROM policy_versions ORDER BY created_us, id")
        return [PolicyVersion(**row) for row in rows]

    def policy_version(self, start: str) -> PolicyVersion:
        """The version whose id begins so. Raises UnknownRecord when none does, or several do."""
        return PolicyVersion(
            **self._only("policy_versions", start, "policy version", "remit policy versions")
        )

    def activations(self) -> list[Activation]:
        """What was in force and since when, the oldest first."""
        return [Activation(**row) for row in self._all("SELECT * FROM policy_activations ORDER BY number")]

    def active_policy(self) -> Activation | None:
        """What is in force; None before the first activation."""
        row = self._one("SELECT * FROM policy_activations ORDER BY number DESC LIMIT 1")
        return Activation(**row) if row else None

    # Events.

    def events(
        self, *, since_us: int = 0, until_us: int | None = None, tenant: str | None = None
    ) -> Iterator[EventRow]:
        """All such events, in the order in which they were written: there may be very many."""
        condition = "at_us >= ?"
        condition += " AND at_us < ?" if until_us is not None else ""
        condition += " AND tenant = ?" if tenant is not None else ""
        values = [since_us, *(each for each in (until_us, tenant) if each is not None)]
        for row in self._db.rows(f"SELECT * FROM events WHERE {condition} ORDER BY rowid", values):  # noqa: S608 - the conditions are ours
            yield as_event(row)

    def tells_of(self, tenant: str) -> bool:
        """Whether anything happened in this tenant."""
        return self._one("SELECT 1 FROM events WHERE tenant = ? LIMIT 1", (tenant,)) is not None

    def newest_events(self, *, after: int | None, limit: int) -> tuple[list[EventRow], int]:
        """Events written after the place `after` (None: the last ones), oldest first, and the new place."""
        if after is None:
            (newest,) = self._all("SELECT COALESCE(MAX(rowid), 0) AS place FROM events")
            after = max(0, newest["place"] - limit)
        rows = self._all(
            "SELECT rowid AS place, * FROM events WHERE rowid > ? ORDER BY rowid LIMIT ?", (after, limit)
        )
        return [as_event(row) for row in rows], rows[-1]["place"] if rows else after

    def count(self, table: Literal["calls", "events", "call_subjects"]) -> int:
        return self._all(f"SELECT COUNT(*) FROM {table}")[0][0]  # noqa: S608 - the tables are ours

    def is_empty(self) -> bool:
        """Whether no process has ever written to it: it holds nothing, so it has no master key either."""
        tables = ("incarnations", "events", "calls", "payloads", "subject_keys")
        return all(self._one(f"SELECT 1 FROM {table} LIMIT 1") is None for table in tables)  # noqa: S608 - ours

    @property
    def lags(self) -> bool:
        """Whether less is shown than what was committed: what came last waits to be put in its tables."""
        return self._db.lags

    def must_be_whole(self) -> None:
        """Raise StoreUnavailable where less is shown than what was committed: it would look cut off."""
        if self.lags:
            raise StoreUnavailable(
                f"some of {self.at} waits in its table redo until somebody reads it who may also write it:"
                " verify it as the server's user, or a copy that is yours (VACUUM INTO). If you may, its disk"
                " is full, another process keeps it to itself (fuser and lsof tell who has its .lock open),"
                " or it has several names by hard links, of which all but one must go"
            )

    def damage(self) -> Iterator[str]:
        """What the database itself finds wrong: pages, indexes, constraints, references."""
        return self._db.damage()

    def schema(self) -> dict[str, str]:
        """What makes each table, index and trigger, by name."""
        return self._db.schema()

    # What the queries above, `audit.py` and `replay.py` are made of.

    def rows(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Row]:
        """The rows of one SELECT, read as they are asked for."""
        return self._db.rows(sql, values)

    def tuples(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The same by position alone, for who reads millions."""
        return self._db.tuples(sql, values)

    def _all(self, sql: str, values: Sequence[Any] = ()) -> Sequence[Row]:
        return self._db.all(sql, values)

    def _one(self, sql: str, values: Sequence[Any] = ()) -> Row | None:
        return self._db.one(sql, values)

    def _only(self, table: str, start: str, noun: str, listed: str) -> Row:
        """The row whose id is, or is the only one to begin with, `start`; `listed` is what shows them all."""
        # Ids are hexadecimal and `-`, so everything that begins with `start` lies before `start` + "g".
        rows = self._all(
            f"SELECT * FROM {table} WHERE id >= ? AND id < ? ORDER BY id LIMIT 2",  # noqa: S608 - the tables are ours
            (start, start + "g"),
        )
        if not rows or not start:
            raise UnknownRecord(
                f"there is no {noun} {start or 'without an id'}: `{listed}` shows those there are"
            )
        if len(rows) > 1:
            raise UnknownRecord(f"more than one {noun} begins with {start}: give more of its id")
        return rows[0]


#: Ids are in the order of time, and indexes hold the time itself.
_BY_TIME = "created_us DESC, id DESC"
_CALLS_AT_ONCE = 500


def _at(value: Any, path: str) -> str | None:
    """What is at a dotted path, as text: JSON where it is no text. Items of lists count from 0."""
    for name in path.split("."):
        try:
            value = value[int(name) if isinstance(value, list) and name.isdecimal() else name]
        except (LookupError, TypeError, ValueError):  # nothing is there, or is numbered by so many digits
            return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _call(row: Row) -> CallRecord:
    values = _values(row)
    values["policy_rows"] = tuple(json.loads(values["policy_rows"]))
    values["claim"] = json.loads(values["claim"]) if values["claim"] else None
    return CallRecord(**values)


def _values(row: Row) -> dict[str, Any]:
    return dict(row)


def as_event(row: Row) -> EventRow:
    return EventRow(
        stream=row["stream"],
        seq=row["seq"],
        at_us=row["at_us"],
        kind=row["kind"],
        tenant=row["tenant"],
        call_id=row["call_id"],
        body=row["body"],
        hash=row["hash"],
    )
