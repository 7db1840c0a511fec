"""A whole run of an agent over real systems is taken back: a git repository, files, a shop, a memory.

The systems are other people's servers and know nothing of it. What they hold afterwards is what they held
before, but for what somebody wrote past the gateway meanwhile, and that is left alone and named.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from tests.interop.conftest import Node
from tests.interop.running import POLICY, REMIT, REPOSITORY
from tests.server.acme import Terminal

from remit.front.answers import RECEIPT

# The first run installs what the others are made of.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FILES = {"hello.txt": "# Hello\n", "notes.txt": "one\ntwo\n", "todo.txt": "- sleep\n"}
MEMORY = [
    {"type": "entity", "name": "Ada", "entityType": "person", "observations": ["writes"]},
    {"type": "entity", "name": "Bob", "entityType": "person", "observations": []},
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    folder: Path
    remit: Terminal

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    def git(self, *words: str) -> str:
        command = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", *words]
        return subprocess.run(command, cwd=self.repository, check=True, capture_output=True, text=True).stdout

    def rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.folder / "acme.db")) as db:
            return db.execute(query).fetchall()

    def state(self) -> Mapping[str, Any]:
        """What the systems hold."""
        return {
            "files": {path.name: path.read_bytes() for path in self.repository.iterdir() if path.is_file()},
            "index": self.git("status", "--porcelain"),
            "head": self.git("log", "--format=%H"),
            "memory": (self.folder / "memory.jsonl").read_text(),
            **self.acme(),
        }

    def acme(self) -> Mapping[str, list[Any]]:
        """Every table of Acme, whole, but for refunds that were made and cancelled: Acme keeps their rows."""
        tables = [name for (name,) in self.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {name: self.rows(f"SELECT * FROM {name} ORDER BY 1") for name in tables}  # noqa: S608
        found["refunds"] = self.rows("SELECT * FROM refunds WHERE status <> 'cancelled' ORDER BY 1")
        return found


@pytest.fixture
def place(tmp_path: Path, node: Node, python_with: Callable[[str], str]) -> Place:
    place = Place(folder=tmp_path, remit=Terminal(tmp_path / "remit.yaml"))
    place.repository.mkdir()
    for name, text in FILES.items():
        (place.repository / name).write_text(text)
    place.git("init", "--quiet", "--initial-branch=main")
    place.git("add", ".")
    place.git("commit", "--quiet", "-m", "Begin")
    (tmp_path / "memory.jsonl").write_text("\n".join(json.dumps(it, separators=(",", ":")) for it in MEMORY))

    def npm(name: str, *arguments: str) -> list[str]:
        script = node.modules / "@modelcontextprotocol" / name / "dist/index.js"
        return [node.executable, str(script), *arguments]

    repository = str(place.repository)
    read = {"call": "files.read_text_file", "args": {"path": "args.path"}}
    customer = {"call": "acme.get_customer", "args": {"id": "args.id"}}
    config = {
        "version": 1,
        "policy": {"files": ["policy.csv"]},
        "identity": {
            "stdio": {"tenant": "interop", "agent": "agent:tester", "user": "user:tester"},
            "cli": {"tenant": "interop", "user": "user:tester"},
        },
        "sources": {
            "git": {
                "kind": "mcp",
                "command": [
                    python_with("interop-servers"), "-m", "mcp_server_git", "--repository", repository
                ],
            },
            "files": {"kind": "mcp", "command": npm("server-filesystem", repository)},
            "memory": {
                "kind": "mcp",
                "command": npm("server-memory"),
                "env": {"MEMORY_FILE_PATH": str(tmp_path / "memory.jsonl")},
            },
            "acme": {
                "kind": "mcp",
                "command": [sys.executable, str(REPOSITORY / "configs/acme/acme_server.py"), "--db=acme.db"],
            },
        },
        "tools": {
            "files.read_text_file": {"effect": "read"},
            "files.write_file": {
                "effect": "restorable",
                "resource": "'file:' + args.path",
                "before": read,
                "undo": {
                    "call": "files.write_file",
                    "args": {"path": "args.path", "content": "before.content"},
                },
            },
            "files.move_file": {
                "effect": "reversible",
                "resource": "'file:' + args.destination",
                "undo": {
                    "call": "files.move_file",
                    "args": {"source": "args.destination", "destination": "args.source"},
                },
            },
            "git.git_status": {"effect": "read"},
            "git.git_add": {
                "effect": "reversible",
                "resource": "'index of ' + args.repo_path",
                "undo": {"call": "git.git_reset", "args": {"repo_path": "args.repo_path"}},
            },
            "memory.open_nodes": {"effect": "read"},
            "memory.create_entities": {
                "effect": "reversible",
                "after": {"call": "memory.open_nodes", "args": {"names": "[args.entities[0].name]"}},
                "undo": {
                    "call": "memory.delete_entities",
                    "args": {"entityNames": "[args.entities[0].name]"},
                },
            },
            "memory.create_relations": {
                "effect": "reversible",
                "undo": {"call": "memory.delete_relations", "args": {"relations": "args.relations"}},
            },
            "acme.get_customer": {"effect": "read"},
            "acme.update_customer": {
                "effect": "restorable",
                "resource": "'customer:' + args.id",
                "before": customer,
                "undo": {
                    "call": "acme.update_customer",
                    "args": {"id": "args.id", "fields": "before.fields"},
                },
            },
            "acme.refund": {
                "effect": "reversible",
                "resource": "'order:' + args.order_id",
                "undo": {"call": "acme.cancel_refund", "args": {"refund_id": "result.refund_id"}},
            },
        },
    }  # fmt: skip
    (tmp_path / "remit.yaml").write_text(json.dumps(config))
    (tmp_path / "policy.csv").write_text(POLICY)
    return place


def a_run(place: Place) -> list[tuple[str, dict[str, Any]]]:
    """More than thirty writes, over each other."""
    at = {name: str(place.repository / name) for name in (*FILES, "moved.txt")}
    here = {"repo_path": str(place.repository)}
    calls: list[tuple[str, dict[str, Any]]] = []
    for round_ in range(4):
        calls += [
            ("files.write_file", {"path": at[name], "content": f"{name}, draft {round_}\n"})
            for name in ("hello.txt", "notes.txt")
        ]
        calls.append(("git.git_add", {**here, "files": ["hello.txt"]}))
        for customer in ("cus-101", "cus-102"):
            fields = {"note": f"Called {round_} times."}
            calls.append(("acme.update_customer", {"id": customer, "fields": fields}))
        refund = {"order_id": "ord-1001", "amount_minor": 100 + round_, "reason": "It was late."}
        calls.append(("acme.refund", refund))
        entity = {"name": f"Guest {round_}", "entityType": "person", "observations": ["visits"]}
        calls.append(("memory.create_entities", {"entities": [entity]}))
        relation = {"from": f"Guest {round_}", "to": "Ada", "relationType": "knows"}
        calls.append(("memory.create_relations", {"relations": [relation]}))
    calls.append(("files.move_file", {"source": at["todo.txt"], "destination": at["moved.txt"]}))
    return calls


def played(place: Place) -> list[str]:
    """The ids of the calls of such a run, made by an agent over stdio."""

    async def run() -> list[str]:
        process = StdioServerParameters(
            command=REMIT[0], args=[*REMIT[1:], "serve", "--stdio", "--config", str(place.remit.config)]
        )
        ids: list[str] = []
        with anyio.fail_after(300):
            async with Client(process, cache=None) as client:
                for name, arguments in a_run(place):
                    result = await client.call_tool(name, arguments)
                    assert not result.is_error, (name, result)
                    assert result.meta
                    ids.append(result.meta[RECEIPT]["call_id"])
        return ids

    return anyio.run(run)


def test_a_run_over_four_systems_is_taken_back_to_the_byte(place: Place) -> None:
    place.remit("check")  # Acme makes its database when it first serves
    before = place.state()
    ids = played(place)
    assert len(ids) >= 33
    assert place.state() != before
    ran = place.remit("rollback", "--agent", "agent:tester", "--yes", "--json")
    assert ran.code == 0, ran
    assert [step["call_id"] for step in ran.json["steps"]] == ids[::-1]
    assert {step["part"] for step in ran.json["steps"]} == {"done"}
    assert place.state() == before
    assert place.remit("audit", "verify").code == 0


def test_what_outsiders_wrote_meanwhile_is_named_and_left_alone(place: Place) -> None:
    place.remit("check")
    before = place.state()
    ids = played(place)
    (place.repository / "notes.txt").write_text("mine\n")
    with closing(sqlite3.connect(place.folder / "acme.db")) as db:
        db.execute("UPDATE customers SET note = 'Mine.' WHERE id = 'cus-102'")
        db.commit()
    memory = place.folder / "memory.jsonl"
    memory.write_text(memory.read_text().replace(_guest("visits"), _guest("visits", "mine")))
    ran = place.remit("rollback", "--agent", "agent:tester", "--yes", "--json")
    assert ran.code == 1
    theirs = (f"file:{place.repository}/notes.txt", "customer:cus-102")
    expected = {
        call_id: "conflict" if _about(call, theirs) else "done"
        for call_id, call in zip(ids, a_run(place), strict=True)
    }
    assert {step["call_id"]: step["part"] for step in ran.json["steps"]} == expected
    after = place.state()
    assert after["files"] == {**before["files"], "notes.txt": b"mine\n"}
    assert [row for row in after["customers"] if row not in before["customers"]] == [
        row for row in after["customers"] if "Mine." in row
    ]
    assert after["memory"] == f"{before['memory']}\n{_guest('visits', 'mine')}"
    for system in before.keys() - {"files", "index", "customers", "memory"}:
        assert after[system] == before[system]


def _guest(*observations: str) -> str:
    """A line of the memory: one who came in the run."""
    guest = {"type": "entity", "name": "Guest 1", "entityType": "person", "observations": observations}
    return json.dumps(guest, separators=(",", ":"))


def _about(call: tuple[str, dict[str, Any]], resources: tuple[str, ...]) -> bool:
    name, arguments = call
    if name == "memory.create_entities":
        return arguments["entities"][0]["name"] == "Guest 1"
    touched = {"files.write_file": "file:{path}", "acme.update_customer": "customer:{id}"}.get(name, "")
    return touched.format(**arguments) in resources
