"""What a run has come to: what its calls established, how many there were. Durable, kept in memory too.

A run belongs to one agent acting for one user in one tenant, whatever name it goes by: nobody else's facts
are ever seen. What is established is set once; another value later is a conflict, and the first one stays.
All of it is changed inside the journal's transactions, and forgotten when another process has written.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from remit.config import Effect
from remit.erasing import ERASED
from remit.ledger import Ledger
from remit.model import Call, Scalar
from remit_adapters.base import Json

RunKey = tuple[str, str, str, str]
#: Runs kept in memory. Past it all are forgotten, and read again when they are needed.
_KEPT_MAX = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run at one moment; equal when nothing in between has changed it."""

    established: Mapping[str, Scalar] = field(default_factory=dict[str, Scalar])
    #: What was established with another value afterwards.
    conflicts: tuple[str, ...] = ()
    #: The calls that were let out, by tool.
    tools: Mapping[str, int] = field(default_factory=dict[str, int])
    #: Those of them that are no reads.
    writes: int = 0

    def seen_by(self, call: Call) -> Json:
        """As the rules on one call see it."""
        return {
            **self.established,
            "conflicts": list(self.conflicts),
            "calls": sum(self.tools.values()),
            "writes": self.writes,
            "tools": self.tools,
            "tool_calls": self.tools.get(call.tool.name, 0),
        }


def key_of(call: Call) -> RunKey:
    return call.principal.tenant, call.principal.agent, call.principal.user, call.run


def current(ledger: Ledger, key: RunKey) -> Run:
    """The run as of this transaction."""
    run = ledger.runs.get(key)
    if run is None:
        ledger.write_out()  # calls of this very run may have been let out in this transaction
        run = _read(ledger, key)
        _keep(ledger, key, run)
    return run


def let_out(ledger: Ledger, call: Call) -> None:
    """Count a call, in the transaction that lets it out."""
    key = key_of(call)
    run = ledger.runs.get(key)
    if run is None:
        return  # nobody has asked about this run: it is counted when somebody does
    tools = {**run.tools, call.tool.name: run.tools.get(call.tool.name, 0) + 1}
    writes = run.writes + (call.tool.effect is not Effect.READ)
    _keep(ledger, key, replace(run, tools=tools, writes=writes))


def under_way_elsewhere(ledger: Ledger, key: RunKey) -> list[str]:
    """The tools of those calls of the run that another process has under way."""
    rows = ledger.all(
        # Few are under way, while an agent may have made any number.
        "SELECT DISTINCT tool FROM calls INDEXED BY ix_calls_open"
        " WHERE state = 'dispatched' AND kind = 'call'"
        ' AND incarnation <> ? AND tenant = ? AND agent = ? AND "user" = ? AND run = ?',
        (ledger.stream, *key),
    )
    return [row["tool"] for row in rows]


def establish(ledger: Ledger, call: Call, call_id: str, values: Mapping[str, Scalar]) -> Json:
    """Set what a call establishes, once; return what its event must seal."""
    key = key_of(call)
    run = current(ledger, key)
    sealed: dict[str, str] = {}
    conflicts = list(run.conflicts)
    for name, value in values.items():
        if name not in run.established:
            salt, text = os.urandom(16), orjson.dumps(value)
            # At once: a later call of this very transaction must find it. What was erased is no obstacle.
            ledger.execute(
                'INSERT INTO run_facts (tenant, agent, "user", run, name, value, salt, call_id, at_us)'
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
                ' ON CONFLICT (tenant, agent, "user", run, name) DO UPDATE SET value = excluded.value,'
                " salt = excluded.salt, call_id = excluded.call_id, at_us = excluded.at_us,"
                " conflict_call = NULL",
                (*key, name, text.decode(), salt, call_id, ledger.now_us),
            )
            sealed[name] = hashlib.sha256(salt + text).hexdigest()
        elif name not in conflicts and _differ(run.established[name], value):
            ledger.execute(
                "UPDATE run_facts SET conflict_call = ?"
                ' WHERE tenant = ? AND agent = ? AND "user" = ? AND run = ? AND name = ?',
                (call_id, *key, name),
            )
            conflicts.append(name)
    new = {name: value for name, value in values.items() if name in sealed}
    changed = replace(run, established={**run.established, **new}, conflicts=tuple(sorted(conflicts)))
    _keep(ledger, key, changed)
    conflicting = [name for name in conflicts if name not in run.conflicts]
    return {"established": sealed, "conflicts": conflicting} if sealed or conflicting else {}


def _read(ledger: Ledger, key: RunKey) -> Run:
    where = ' tenant = ? AND agent = ? AND "user" = ? AND run = ?'
    facts = ledger.all(
        f"SELECT name, value, conflict_call FROM run_facts WHERE {where} AND value <> '{ERASED}'",  # noqa: S608 - the columns are ours
        key,
    )
    counts = ledger.all(
        "SELECT tool, SUM(CASE effect WHEN 'read' THEN 0 ELSE 1 END) AS writes, COUNT(*) AS calls FROM calls"  # noqa: S608 - the columns are ours
        f" WHERE {where}"
        " AND kind = 'call' AND dispatched_us IS NOT NULL GROUP BY tool",
        key,
    )
    return Run(
        established={row["name"]: orjson.loads(row["value"]) for row in facts},
        conflicts=tuple(sorted(row["name"] for row in facts if row["conflict_call"] is not None)),
        tools={row["tool"]: row["calls"] for row in counts},
        writes=sum(row["writes"] for row in counts),
    )


def _keep(ledger: Ledger, key: RunKey, run: Run) -> None:
    if len(ledger.runs) >= _KEPT_MAX and key not in ledger.runs:
        ledger.runs.clear()
    ledger.runs[key] = run


def _differ(one: Scalar, other: Scalar) -> bool:
    return type(one) is not type(other) or one != other


def is_scalar(value: Any) -> bool:
    """Whether a value can be established: a text, a number or a boolean."""
    return isinstance(value, (str, int, float)) and len(str(value)) <= 1024
