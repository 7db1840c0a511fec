"""What people ask the record: views and documented queries answer, and read by an index."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.docs.pages import ROOT
from tests.server.builders import Remit, a_remit, by_hand, rows, tools
from tests.server.test_erasing import ROLES, a_place

from remit.database import Location
from remit.model import Pending
from remit.records import CallQuery, open_records
from remit.tables import VIEWS

#: Tables that grow with the calls.
BIG = ("calls", "events", "payloads", "holds", "budget_adjustments", "touches", "undos", "approvals")
PRICED = tools(buy={"price": {"eur_cent": "args.price"}, "labels": ["money"]})
BUDGETS = [{"scope": "agent", "unit": "eur_cent", "window": "total", "limit": 10_000}]


async def a_life(folder: Path) -> Remit:
    async with a_remit(folder, policy=ROLES, tools=PRICED, budgets=BUDGETS) as remit:
        remit.source.on["buy"] = {"order": "o-1"}
        await remit.done("shop.buy", {"thing": "pen", "price": 5}, run="r-1")
        await remit.done("shop.buy", {"thing": "cup", "price": 90}, run="r-1")
        await remit.done("shop.look", {"thing": "pen"}, run="r-2")
        await remit.refused("shop.buy", {"thing": "house", "price": 9000})
        assert isinstance(await remit.call("shop.buy", {"thing": "car", "price": 900}), Pending)
        return remit


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return anyio.run(a_life, tmp_path).path


@pytest.fixture
def anyplace(tmp_path: Path, every_database: str) -> Location:
    return anyio.run(a_life, tmp_path).path


def test_the_views_tell_what_happened(anyplace: Location) -> None:
    path = anyplace
    (spent,) = rows(path, "SELECT * FROM spend_by_day WHERE unit = 'eur_cent'")
    assert (spent["tenant"], spent["agent"], spent["calls"], spent["spent"]) == ("acme", "agent:bot", 2, 95)
    assert spent["day_us"] % 86_400_000_000 == 0
    (denied,) = rows(path, "SELECT * FROM denials WHERE code <> 'no_approver'")
    assert denied["tool"] == "shop.buy"
    (waiting,) = rows(path, "SELECT * FROM approvals_open")
    assert (waiting["tool"], waiting["votes"], waiting["votes_needed"]) == ("shop.buy", 0, 1)
    assert {row["resource"] for row in rows(path, "SELECT * FROM undoable")} == {"pen", "cup"}
    timeline = rows(path, "SELECT * FROM run_timeline WHERE tenant = 'acme' AND run = 'r-1' ORDER BY id")
    assert {(row["tool"], row["resource"], row["way_back"]) for row in timeline} == {
        ("shop.buy", "pen", "ready"),
        ("shop.buy", "cup", "ready"),
    }


def test_no_request_is_open_whose_time_is_up(anyplace: Location) -> None:
    assert len(rows(anyplace, "SELECT * FROM approvals_open")) == 1
    by_hand(anyplace, "UPDATE approvals SET expires_us = 1")
    assert rows(anyplace, "SELECT * FROM approvals_open") == []


def documented() -> list[str]:
    page = (ROOT / "docs/audit.md").read_text("utf-8")
    section = page[page.index("\n## Questions\n") : page.index("\n## Verifying\n")]
    return re.findall(r"```sql[^\n]*\n(.*?)```", section, re.DOTALL)


def test_both_databases_understand_the_questions_and_answer_alike(anyplace: Location) -> None:
    page = (ROOT / "docs/audit.md").read_text("utf-8")
    section = page[page.index("\n## Questions\n") : page.index("\n## Queries\n")]
    questions = re.findall(r"```sql[^\n]*\n(.*?)```", section, re.DOTALL)
    assert len(questions) == 4
    for words in (
        ("'order:ord-1001'", "'pen'"),
        ("ticket-3001", "r-1"),
        ("acme.refund", "shop.buy"),
        ("5000", "50"),
    ):
        questions = [question.replace(*words) for question in questions]
    touched, cost, changed, automated = (rows(anyplace, question) for question in questions)
    assert [(row["tool"], row["user"]) for row in touched] == [("shop.buy", "user:ann")]
    assert cost == [{"unit": "eur_cent", "spent": 95, "calls": 2}]
    assert [(row["resource"], row["way_back"]) for row in changed] == [("pen", "ready"), ("cup", "ready")]
    assert [(row["cents"], row["verdict"]) for row in automated] == [(90, "execute")]


BY_INDEX = [
    *documented(),
    "SELECT * FROM denials WHERE created_us > 0",
    "SELECT * FROM approvals_open WHERE tenant = 'acme'",
    "SELECT * FROM undoable WHERE expires_us > 0",
    "SELECT * FROM run_timeline WHERE tenant = 'acme' AND run = 'r-1'",
]


#: A step of a plan that reads a big table through, also by an index that has all of it. An alias is a letter.
THROUGH = re.compile(rf"SCAN ({'|'.join(BIG)}|[a-z])( USING INDEX ix_calls_(agent|user|run|tool))?")


def scans(path: Path, query: str) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}")]
    return [step for step in plan if THROUGH.fullmatch(step)]


@pytest.mark.parametrize("query", BY_INDEX)
def test_no_question_reads_a_big_table_through(path: Path, query: str) -> None:
    # From the newest call back, any twenty are soon found.
    assert scans(path, query) == [] or "ORDER BY id DESC LIMIT 20" in query


@pytest.mark.parametrize(
    "query",
    [
        CallQuery(agent="agent:bot"),
        CallQuery(agent="agent:bot", tool="shop.buy"),
        CallQuery(user="user:ann"),
        CallQuery(run="r-1", tenant="acme"),
        CallQuery(tenant="nobody"),
        CallQuery(tool="shop.*"),
        CallQuery(tools=("shop.buy", "shop.look")),
        CallQuery(verdict="deny"),
        CallQuery(state="denied"),
        CallQuery(state="in_doubt"),
        CallQuery(state="dispatched"),
        CallQuery(since_us=1),
    ],
    ids=str,
)
def test_calls_are_found_by_an_index_however_they_are_filtered(path: Path, query: CallQuery) -> None:
    asked: list[str] = []
    with open_records(path) as records:
        db: Any = records._db
        db._db.set_trace_callback(asked.append)
        records.calls(query, limit=2)
    assert any("FROM calls WHERE" in sql for sql in asked) or query.tenant == "nobody"
    # Its newest calls are a table of their own, `c`, and read through.
    through = {sql: [step for step in scans(path, sql) if step != "SCAN c"] for sql in asked}
    assert not any(through.values()), through


def test_only_of_calls_that_are_shown_is_it_told_whether_they_can_be_taken_back(path: Path) -> None:
    asked: list[str] = []
    with open_records(path) as records:
        db: Any = records._db
        db._db.set_trace_callback(asked.append)
        for thing in ("nothing like that", "pen"):
            found = records.calls(CallQuery(args={"thing": thing}), limit=10)
            shown = [call.id for call in found]
            assert [sql for sql in asked if "way_back" in sql and not all(id_ in sql for id_ in shown)] == []
            assert any("way_back" in sql for sql in asked) == bool(shown)


def test_every_documented_question_is_asked_by_these_tests() -> None:
    assert len(documented()) == 15
    views = {"budget_moves", "spend_by_day", "denials", "approvals_open", "undoable", "run_timeline"}
    assert VIEWS.keys() == views


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--arg", "thing=pen"), ["shop.buy", "shop.look"]),
        (("--arg", "price=90"), ["shop.buy"]),
        (("--arg", "thing=pen", "--arg", "price=5"), ["shop.buy"]),
        (("--arg", "no.such=1"), []),
        (("--cost-over", "eur_cent=5"), ["shop.buy"]),
        (("--cost-over", "eur_cent=4", "--run", "r-1"), ["shop.buy", "shop.buy"]),
        (("--label", "money", "--verdict", "execute"), ["shop.buy", "shop.buy"]),
        (("--label", "none"), []),
        (("--until", "2020-01-01"), []),
        (("--agent", "agent:bot", "--state", "succeeded"), ["shop.buy", "shop.buy", "shop.look"]),
        (("--user", "user:ann", "--run", "r-2"), ["shop.look"]),
        (("--user", "user:bea"), []),
        (("--arg", "thing=pen", "--tool", "shop.look", "--limit", "1"), ["shop.look"]),
    ],
)
def test_calls_are_found_by_what_is_known_of_them(
    anyplace: Location, tmp_path: Path, words: tuple[str, ...], found: list[str]
) -> None:
    shell = a_place(tmp_path, tools=PRICED)
    assert sorted(call["tool"] for call in shell.json("calls", "list", *words)) == found


async def test_items_of_lists_are_found_by_their_number(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ROLES) as remit:
        await remit.refused("shop.look", {"thing": "pen", "lines": [{"sku": "a"}, {"sku": "b"}, 7]})
    shell = a_place(tmp_path)
    for said, found in (("lines.1.sku=b", 1), ("lines.2=7", 1), ("lines.0.sku=b", 0), ("lines.3=7", 0)):
        assert len(shell.json("calls", "list", "--arg", said)) == found
    for nowhere in ("lines.-1", "lines.sku", f"lines.{'9' * 5000}", "thing.0", "lines.2.0"):
        assert shell.json("calls", "list", "--arg", f"{nowhere}=7") == []


async def test_what_is_no_text_is_found_as_json(tmp_path: Path) -> None:
    async with a_remit(tmp_path, policy=ROLES) as remit:
        await remit.refused("shop.look", {"thing": None, "tags": ["é", None], "sold": True})
    shell = a_place(tmp_path)
    for said in ("thing=null", 'tags=["é", null]', "tags.1=null", "sold=true"):
        assert len(shell.json("calls", "list", "--arg", said)) == 1, said
    for said in ("none=null", "thing=", "thing=None", "tags.2=null"):
        assert shell.json("calls", "list", "--arg", said) == [], said


@pytest.mark.parametrize(
    "words", [("--arg", "thing=pen", "--arg", "thing=cup"), ("--cost-over", "eur=9", "--cost-over", "eur=1")]
)
def test_what_would_not_count_is_refused(path: Path, words: tuple[str, ...]) -> None:
    ran = a_place(path.parent)("calls", "list", *words)
    assert (ran.code, "says the same name twice" in ran.err) == (64, True)


def test_a_filter_in_no_form_is_wrong_use(path: Path) -> None:
    shell = a_place(path.parent)
    for words in (("--arg", "thing"), ("--cost-over", "eur"), ("--cost-over", "eur=5.00")):
        assert shell("calls", "list", *words).code == 64
