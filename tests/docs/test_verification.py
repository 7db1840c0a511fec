"""What `docs/audit.md` says that verification notices, it notices.

One column at a time is changed in every row of a copy of a real record, past all constraints, as somebody
would who has the file and not the code.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest
import yaml
from tests.docs.test_reference import rows, section
from tests.server.acme import Terminal, a_story, made, refund_of, serving
from tests.server.test_proving import PROVE, a_rehearsal

from remit import tables
from remit.audit import verify_balances
from remit.model import Pending
from remit.records import open_records
from remit.vault import key_file
from remit.verifying import verify

#: A playbook of one step.
LOOK = {
    "as": {"tenant": "acme", "agent": "agent:support-bot", "user": "user:alice"},
    "inputs": ["order"],
    "steps": [{"id": "look", "call": "acme.get_order", "args": {"order_id": "inputs.order"}}],
}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit database in which somebody refunded, asked, answered, stopped, undid, tried and erased."""
    config = a_rehearsal(tmp_path_factory.mktemp("record")).config
    settings = yaml.safe_load(config.read_text("utf-8"))
    settings["tools"]["acme.refund"]["undo"]["refund"] = 100
    settings["tools"]["acme.refund"]["subject"] = "'customer:' + args.order_id"
    settings["tools"]["acme.get_order"] = {"effect": "read", "establishes": {"order": "args.order_id"}}
    settings["playbooks"] = {"look": LOOK}
    settings["audit"] = {"anchors": [{"file": str(config.with_name("checkpoints"))}]}
    config.write_text(yaml.safe_dump(settings), "utf-8")
    story = anyio.run(a_story, config)
    remit = Terminal(config)
    remit.json("approvals", "approve", story.approval, "--yes", "--comment", "fine")
    remit.json("approvals", "deny", anyio.run(asked, config), "--comment", "not fine")
    remit.json("undo", story.refund)
    remit.json("doubt", "resolve", story.in_doubt, "--happened", "--reason", "looked")
    remit.json(*PROVE)
    remit.json("playbook", "run", "look", "--input", "order=ord-1001")
    remit.json("switch", "on", "tool", "acme.refund", "--reason", "a test")
    remit.json("switch", "off", "tool", "acme.refund", "--reason", "tested")
    remit.json("switch", "on", "all", "--reason", "a test")
    key = ("agents", "key", "create", "--agent", "agent:support-bot", "--user", "user:alice")
    remit.json("agents", "key", "revoke", remit.json(*key)["id"])
    remit.json(*key, "--label", "desk")
    remit.json("policy", "shadow", "start", str(config.with_name("policy.csv")))
    remit.json("policy", "shadow", "stop")
    remit.json("audit", "erase", "--subject", "customer:ord-1001", "--yes", "--reason", "asked for")
    remit.json("audit", "checkpoint")
    remit.json("audit", "hold", "add", "--tool", "acme.refund", "--reason", "a case")
    remit.json("audit", "hold", "add", "--from", "2026-01-01", "--to", "2026-02-01", "--reason", "a case")
    return config.with_name("remit.db")


async def asked(config: Path) -> str:
    """A request to people."""
    async with serving(config) as on:
        pending = await made(on, "acme.refund", refund_of("ord-1003", 30000))
    assert isinstance(pending, Pending)
    return pending.approval_id


def found(database: Path) -> bool:
    """Whether any of the verifications finds anything."""
    with open_records(database) as records:
        return any(True for _ in verify(records, payloads=True)) or any(
            True for _ in verify_balances(records)
        )


def tampered(record: Path, copy: Path, table: str, column: str) -> None:
    shutil.copyfile(record, copy)
    shutil.copy(key_file(record), key_file(copy))
    with closing(sqlite3.connect(copy)) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        kind = str(tables.metadata.tables[table].columns[column].type)
        changed = {
            "BLOB": "x'00'",
            "BIGINT": f'COALESCE("{column}", 0) + 1000',
            "INTEGER": f'COALESCE("{column}", 0) + 1000',
        }.get(kind, f"COALESCE(\"{column}\", '') || 'x'")
        db.execute(f'UPDATE OR IGNORE {table} SET "{column}" = {changed}')  # noqa: S608 - the names are the product's
        db.commit()


def compared() -> dict[str, list[str]]:
    """What the page says, by table."""
    return dict(rows(section("docs/audit.md", "What it proves")))


def test_an_untouched_record_is_found_sound(record: Path) -> None:
    assert not found(record)


def test_every_table_that_the_page_names_is_one() -> None:
    assert compared().keys() <= tables.metadata.tables.keys()


@pytest.mark.parametrize("table", list(compared()))
def test_a_change_of_any_column_that_the_page_names_is_noticed(
    table: str, record: Path, tmp_path: Path
) -> None:
    missed: list[str] = []
    for column in compared()[table]:
        tampered(record, tmp_path / "copy.db", table, column)
        if not found(tmp_path / "copy.db"):
            missed.append(column)
    assert missed == []
