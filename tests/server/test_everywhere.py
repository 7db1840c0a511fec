"""What is read of the record is the same on SQLite and on PostgreSQL: exports, the report, its numbers."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.server.acme import Story, Terminal
from tests.server.builders import rows

from remit.config_file import load

Place = tuple[Terminal, Story]


def ledger(remit: Terminal, sql: str) -> list[tuple[Any, ...]]:
    """What another program reads in the audit database."""
    return [tuple(row.values()) for row in rows(load(remit.config).config.store.location, sql)]


def test_every_export_tells_each_event_that_the_ledger_has(anywhere: Place, tmp_path: Path) -> None:
    remit, _ = anywhere
    hashes = Counter(hash_ for (hash_,) in ledger(remit, "SELECT hash FROM events"))

    def exported(form: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in remit("audit", "export", "--format", form).out.splitlines()]

    assert Counter(event["hash"] for event in exported("jsonl")) == hashes
    assert Counter(event["remithash"] for event in exported("cloudevents")) == hashes
    assert sum(hashes.values()) == len(exported("ocsf"))
    table = csv.DictReader(io.StringIO(remit("audit", "export", "--format", "csv").out))
    assert Counter(row["hash"] for row in table) == hashes
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "events.parquet"
    assert remit("audit", "export", "--format", "parquet", "-o", str(file)).code == 0
    assert Counter(parquet.read_table(file).column("hash").to_pylist()) == hashes


def test_the_numbers_of_the_report_are_those_of_the_ledger(anywhere: Place) -> None:
    remit, story = anywhere
    remit.json("approvals", "approve", story.approval, "--yes", "--comment", "fine")
    remit.json("undo", story.refund)
    told = remit.json("report", "--from", "2020-01-01")
    assert told["findings"] == []
    assert told["events"] == len(ledger(remit, "SELECT hash FROM events"))
    sections = {each["title"]: [tuple(row) for row in each["rows"]] for each in told["sections"]}
    calls = ledger(remit, "SELECT verdict, state FROM calls WHERE kind = 'call'")
    assert {row[:2]: row[2] for row in sections["Calls"]} == Counter(calls)
    codes = ledger(remit, "SELECT kind, code FROM calls WHERE state = 'denied'")
    assert {row[:2]: row[2] for row in sections["Why calls were refused"]} == Counter(codes)
    votes = ledger(remit, "SELECT vote FROM votes")
    assert sum(row[3] for row in sections["Approvals, by whom"]) == len(votes) == 1
    spent: Counter[str] = Counter()
    for _, _, unit, _, amount in sections["Spent"]:
        spent[unit] += amount
    accounts = "SELECT unit, CAST(SUM(posted - refunded) AS BIGINT) FROM accounts GROUP BY unit"
    assert spent == dict(ledger(remit, accounts))
    assert [row[1] for row in sections["Incidents"]] == ["in doubt: timeout"]
    assert sections["Undone"] == [("acme.refund", "user:sue", "done", 1)]
    assert dict(sections["Policies that decided"]) == Counter(
        version for (version,) in ledger(remit, "SELECT policy_version FROM calls")
    )
