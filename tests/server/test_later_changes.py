"""Which later changes stand in the way of taking a call back, in any history, and what it takes to tell."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from benchmarks.growth import loading
from sqlalchemy import Boolean, String
from tests.server.builders import a_database, rows

from remit.database import Location
from remit.redo import inserts
from remit.tables import metadata

NEVER_US = 4_000_000_000_000_000
#: With the state of the way back of each.
VIEWED = ("SELECT COUNT(way_back) FROM run_timeline", "SELECT COUNT(*) FROM undoable")
STAYS = ("dispatched", "in_doubt", "succeeded")


@dataclass(slots=True, kw_only=True)
class Made:
    """A call, what it touched, and its way back."""

    id: str
    tenant: str = "acme"
    state: str = "succeeded"
    sent_us: int | None
    thing: str = "pen"
    #: None: it has no way back.
    way_back: str | None = "ready"
    best_effort: bool = False
    undo_call: str | None = None

    @property
    def sent(self) -> tuple[int, str]:
        return self.sent_us or 0, self.id


def conflict(call: Made, others: Sequence[Made], undos: dict[str, Made]) -> bool:
    """Whether something stands in the way, word for word as it is meant."""

    def in_the_way(other: Made) -> bool:
        if other.sent_us is not None and other.sent > call.sent:
            return other.state in STAYS and other.way_back != "done"
        back = undos.get(other.undo_call or "")
        return call.best_effort and back is not None and back.state in STAYS and back.sent > call.sent

    return call.sent_us is not None and any(
        in_the_way(other)
        for other in others
        if other is not call and (other.tenant, other.thing) == (call.tenant, call.thing)
    )


def a_history(rng: random.Random) -> tuple[list[Made], dict[str, Made]]:
    """Calls on few things, sent in another order than they were made in, and some taken back."""
    calls: list[Made] = []
    undos: dict[str, Made] = {}
    for number in range(rng.randrange(2, 30)):
        state = rng.choice((*STAYS, "succeeded", "succeeded", "failed", "scheduled"))
        made = Made(
            id=f"c-{number:02}",
            tenant=rng.choice(("acme", "acme", "other")),
            state=state,
            sent_us=None if state == "scheduled" else 1 + number + rng.choice((0, 0, 5, 40)),
            thing=rng.choice(("pen", "pen", "cup")),
            way_back="ready" if state == "scheduled" else rng.choice(("ready", "ready", "done", None)),
            best_effort=rng.random() < 0.5,
        )
        if made.way_back == "done" or (made.way_back and rng.random() < 0.2):
            state = "succeeded" if made.way_back == "done" else rng.choice(("succeeded", "failed"))
            undo = Made(id=f"u-{number:02}", state=state, sent_us=number + rng.randrange(60), way_back=None)
            undos[undo.id], made.undo_call = undo, undo.id
        calls.append(made)
    return calls, undos


def a_row(table: str, **known: Any) -> list[Any]:
    """A row of which only this matters."""
    return [
        known.get(column.name, None if column.nullable else "-" if isinstance(column.type, String) else 0)
        if not isinstance(column.type, Boolean)
        else bool(known[column.name])
        for column in metadata.tables[table].columns
    ]


def write(at: Location, calls: Sequence[Made], undos: Sequence[Made] = ()) -> None:
    """Put them in the database as they are, and not by calling anything."""
    tables: dict[str, list[list[Any]]] = {"calls": [], "undos": [], "touches": []}
    for call in (*calls, *undos):
        more = {"kind": "call" if call in calls else "undo", "effect": "write", "verdict": "execute"}
        about = {"tenant": call.tenant, "state": call.state, "dispatched_us": call.sent_us}
        tables["calls"].append(a_row("calls", id=call.id, **about, **more))
    for call in calls:
        tables["touches"].append([call.thing, call.id])
        if call.way_back:
            more = {"expires_us": NEVER_US, "best_effort": call.best_effort, "undo_call": call.undo_call}
            row = a_row("undos", call_id=call.id, state=call.way_back, resource=call.thing, **more)
            tables["undos"].append(row)
    with loading(at) as put:
        for table, values in tables.items():
            put(inserts()[table], values)


def histories() -> Iterator[tuple[list[Made], dict[str, Made]]]:
    """Many, each in a tenant pair, with ids and things of its own: so one database holds them all."""
    rng = random.Random(7)
    for number in range(150):
        calls, undos = a_history(rng)
        for made in (*calls, *undos.values()):
            made.id, made.thing = f"{number:03}-{made.id}", f"{made.thing}-{number}"
            made.undo_call = made.undo_call and f"{number:03}-{made.undo_call}"
        yield calls, {undo.id: undo for undo in undos.values()}


@pytest.mark.usefixtures("every_database")
def test_a_conflict_is_found_in_whatever_order_calls_were_made_sent_and_taken_back(tmp_path: Path) -> None:
    at = a_database(tmp_path)
    known = list(histories())
    write(at, [it for calls, _ in known for it in calls], [it for _, of in known for it in of.values()])
    ready = {call.id: conflict(call, *of) for of in known for call in of[0] if call.way_back == "ready"}
    assert 300 < sum(ready.values()) < len(ready) - 300
    told = {row["id"]: row["way_back"] for row in rows(at, "SELECT id, way_back FROM run_timeline")}
    assert {id_: told[id_] == "conflict" for id_ in ready} == ready
    can_be = {row["id"] for row in rows(at, "SELECT id FROM undoable")}
    assert can_be == {id_ for id_, stands in ready.items() if not stands}


def steps(path: Path, sql: str) -> int:
    """How much work a query is to SQLite."""
    counted = [0]

    def count() -> None:
        counted[0] += 1

    with closing(sqlite3.connect(path)) as db:
        db.set_progress_handler(count, 100)
        db.execute(sql).fetchall()
    return counted[0]


@pytest.mark.parametrize("taken_back", [0.0, 0.5, 1.0], ids=["none", "the newer half", "all"])
def test_what_can_be_taken_back_of_one_thing_is_told_in_linear_time(
    tmp_path: Path, taken_back: float
) -> None:
    took: list[int] = []
    for many in (200, 800):
        (tmp_path / f"{many}").mkdir()
        path = a_database(tmp_path / f"{many}")
        assert isinstance(path, Path)
        stay = many * (1 - taken_back)
        write(
            path,
            [
                Made(id=f"c-{number:04}", sent_us=number, way_back="ready" if number < stay else "done")
                for number in range(many)
            ],
        )
        took.append(sum(steps(path, query) for query in VIEWED))
    assert took[1] < 6 * took[0]
