"""Change a record behind Remit's back, again and again, and see whether it is found.

    python -m tests.tamper.run --edits 10000 --seed 7 [--jobs 3] [--json]

A record of several processes is sealed, and its last checkpoint kept. Each edit is made in a fresh copy, in
memory: something is changed, taken out, put in, moved or cut off. The attacker then stops there (`plain`),
or mends the hash chains over it (`rechained`), or also builds the whole log anew and signs it with the
stolen key (`resealed`), which only the kept checkpoint can show. Everything that is not as it was must be
found by the verification of `remit audit verify --checkpoint`; and the separate verifier must refuse every
export that is not the one that was sealed, and only those. With --jobs, so many processes verify each edit,
too, and must find the same in the same order. Exits with 1 when anything was missed.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from tests.server.builders import Remit, a_principal, a_remit

from remit import merkle, proofs, verifier, verifying
from remit.chain import GENESIS, entry, link
from remit.checkpoint import Checkpoint, Signer, open_checkpoint, sign
from remit.database import SqliteReader
from remit.identity import mint_key
from remit.model import Pending
from remit.records import Records, open_records
from remit.sealer import read_keys, seal
from remit.vault import key_file
from remit.verifier import NotProven

#: What verification answers for in the tables that people query, beside the events.
COLUMNS = {
    "calls": "kind tenant agent user run auth source tool tool_digest effect fingerprint arguments_commit"
    " verdict code policy_version policy_rows state result_commit resolution claim operation created_us"
    " dispatched_us deadline_us due_us waits_for finished_us incarnation approval_id trace_id error_code"
    " reason error client_key confirmation",
    "undos": "state tool refund resource expires_us undo_call residue best_effort",
    "touches": "resource",
    "payloads": "keys body",
    "approvals": "id call_id tenant state binding fingerprint votes_needed created_us expires_us decided_us",
    "votes": "user vote auth at_us comment",
    "switches": "kind scope target tenant reason set_by set_us",
    "api_keys": "id tenant agent user digest label created_us expires_us revoked_us",
}
MODES = ("plain", "rechained", "resealed")


@dataclass(frozen=True, kw_only=True)
class Record:
    """A sealed record as its bytes, what was kept elsewhere, and what a thief of the key has."""

    database: bytes
    #: What payloads are opened with.
    master_key: bytes
    checkpoint: Checkpoint
    signer: Signer
    export: list[str]


@dataclass(kw_only=True)
class Report:
    edits: int
    seed: int
    seconds: float = 0.0
    #: Edits that were found, by kind and mode.
    found: Counter[str] = field(default_factory=Counter[str])
    #: Exports that the separate verifier refused.
    refused: int = 0
    missed: list[str] = field(default_factory=list[str])


async def a_record(folder: Path) -> Record:
    """Three lives of a process, sealed in between."""
    for life in range(3):
        async with a_remit(folder) as remit:
            remit.source.on["buy"] = {"order": "o-1"}
            for number in range(6):
                await remit.done("shop.look", {"thing": f"pen-{life}-{number}"})
                await remit.done("shop.buy", {"thing": f"pen-{life}-{number}", "price": 5 + number})
            waiting = await remit.call("shop.buy", {"thing": f"car-{life}", "price": 900})
            assert isinstance(waiting, Pending)
            await remit.vote(waiting.approval_id)
            await remit.done("shop.buy", {"thing": f"car-{life}", "price": 900})
            await remit.refused("shop.buy", {"thing": "house", "price": 9000 + life})
            await remit.switch("kill", "run", f"run-{life + 2}")
            await add_key(remit, f"desk {life}")
        sealed = seal(remit.path)
    assert sealed
    (signer,) = read_keys(remit.path)
    with closing(sqlite3.connect(remit.path)) as db:
        db.execute("VACUUM INTO ?", (str(folder / "copy.db"),))
    with closing(sqlite3.connect(folder / "copy.db", isolation_level=None)) as db:
        # Whoever has the file is not held up by these.
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        database = db.serialize()
    with closing(opened(database)) as db:
        return Record(
            database=database,
            master_key=key_file(remit.path).read_bytes(),
            checkpoint=open_checkpoint(sealed.note, [signer.verifier]),
            signer=signer,
            export=export(db),
        )


async def add_key(remit: Remit, label: str) -> None:
    who = a_principal()
    key, _ = mint_key(
        tenant=who.tenant,
        agent=who.agent,
        user=who.user,
        label=label,
        pepper=b"p" * 32,
        at_us=remit.clock(),
        lifetime_s=86_400,
    )
    await remit.on.journal.add_key(key, by="local")


def opened(database: bytes) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.deserialize(database)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA ignore_check_constraints = ON")
    return db


def export(db: sqlite3.Connection) -> list[str]:
    events = proofs.in_log_order(Records(SqliteReader(db), bytes))
    return [f'{{"hash":"{event.hash}","event":{event.body}}}\n' for event in events]


# What is done. Each says what it did, or nothing when it could not.

Edit = Callable[[sqlite3.Connection, random.Random], str]


def an_event(db: sqlite3.Connection, rng: random.Random) -> sqlite3.Row:
    (count,) = db.execute("SELECT COUNT(*) FROM events").fetchone()
    row: sqlite3.Row = db.execute(
        "SELECT rowid AS place, * FROM events LIMIT 1 OFFSET ?", (rng.randrange(count),)
    ).fetchone()
    return row


def body(db: sqlite3.Connection, rng: random.Random) -> str:
    """One character of what an event says."""
    event = an_event(db, rng)
    text, at = event["body"], rng.randrange(len(event["body"]))
    other = rng.choice([each for each in '0aZ" \\é}' if each != text[at]])
    db.execute(
        "UPDATE events SET body = ? WHERE rowid = ?", (text[:at] + other + text[at + 1 :], event["place"])
    )
    return f"{event['stream']} {event['seq']} character {at}"


def fact(db: sqlite3.Connection, rng: random.Random) -> str:
    """A fact in an event, in good form, and the columns beside it."""
    event = an_event(db, rng)
    facts = json.loads(event["body"])
    name = rng.choice([each for each in facts if each not in ("stream", "seq")])
    facts[name] = facts[name] + 1 if type(facts[name]) is int else f"{facts[name]}x"
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    db.execute("UPDATE events SET body = ? WHERE rowid = ?", (text, event["place"]))
    if name in ("at_us", "kind", "tenant", "call_id"):
        db.execute(f"UPDATE events SET {name} = ? WHERE rowid = ?", (facts[name], event["place"]))
    return f"{event['stream']} {event['seq']} {name}"


def column(db: sqlite3.Connection, rng: random.Random) -> str:
    """A column of an event."""
    event = an_event(db, rng)
    name = rng.choice(["stream", "seq", "at_us", "kind", "tenant", "call_id", "hash"])
    value = event[name] + rng.choice([-1, 1, 10**6]) if type(event[name]) is int else f"{event[name]}x"
    db.execute(f"UPDATE OR REPLACE events SET {name} = ? WHERE rowid = ?", (value, event["place"]))
    return f"{event['stream']} {event['seq']} {name}"


def deletion(db: sqlite3.Connection, rng: random.Random) -> str:
    """Some events that follow on one another."""
    event, count = an_event(db, rng), rng.choice([1, 1, 2, 5])
    gone = (event["stream"], event["seq"], event["seq"] + count)
    db.execute("DELETE FROM events WHERE stream = ? AND seq >= ? AND seq < ?", gone)
    return f"{gone}"


def swap(db: sqlite3.Connection, rng: random.Random) -> str:
    """Two events change places."""
    one, other = an_event(db, rng), an_event(db, rng)
    if one["place"] == other["place"]:
        return ""
    names = "body, hash, kind, at_us, tenant, call_id"
    for to, of in ((one, other), (other, one)):
        db.execute(
            f"UPDATE events SET ({names}) = (?, ?, ?, ?, ?, ?) WHERE rowid = ?",
            (*(of[name] for name in names.split(", ")), to["place"]),
        )
    return f"{one['stream']} {one['seq']}, {other['stream']} {other['seq']}"


def insertion(db: sqlite3.Connection, rng: random.Random) -> str:
    """An event that never was. Not at the end of a stream: that is after the checkpoint, not against it."""
    event = an_event(db, rng)
    stream, seq = event["stream"], event["seq"] + 1
    if not db.execute("SELECT 1 FROM events WHERE stream = ? AND seq = ?", (stream, seq)).fetchone():
        return ""
    db.execute("UPDATE events SET seq = -seq - 1 WHERE stream = ? AND seq >= ?", (stream, seq))
    db.execute("UPDATE events SET seq = -seq WHERE stream = ? AND seq < 0", (stream,))
    facts = json.loads(event["body"]) | {"seq": seq, "at_us": event["at_us"] + 1}
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    db.execute(
        "INSERT INTO events (stream, seq, at_us, kind, tenant, call_id, body, hash)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (stream, seq, event["at_us"] + 1, event["kind"], event["tenant"], event["call_id"], text,
         link(event["hash"], text)),
    )  # fmt: skip
    return f"{stream} {seq}"


def truncation(db: sqlite3.Connection, rng: random.Random) -> str:
    """The end of a stream, or the whole of it, with its register."""
    event = an_event(db, rng)
    kept = rng.choice([0, event["seq"] - 1])
    db.execute("DELETE FROM events WHERE stream = ? AND seq > ?", (event["stream"], kept))
    if kept:
        set_head(db, event["stream"])
    else:
        db.execute("DELETE FROM incarnations WHERE id = ?", (event["stream"],))
    return f"{event['stream']} after {kept}"


def query_table(db: sqlite3.Connection, rng: random.Random) -> str:
    """A column of a table that people query."""
    table = rng.choice(list(COLUMNS))
    name = rng.choice(COLUMNS[table].split())
    keys = [each["name"] for each in db.execute(f"PRAGMA table_info({table})") if each["pk"]]
    row = rng.choice(db.execute(f"SELECT * FROM {table}").fetchall())
    old = row[name]
    value = old + b"x" if isinstance(old, bytes) else f"{old or ''}x"
    where = " AND ".join(f'"{key}" = ?' for key in keys)
    db.execute(f'UPDATE {table} SET "{name}" = ? WHERE {where}', (value, *(row[key] for key in keys)))
    return f"{table}.{name}"


def lost_call(db: sqlite3.Connection, rng: random.Random) -> str:
    """A call that is no longer there."""
    row = rng.choice(db.execute("SELECT id FROM calls").fetchall())
    db.execute("DELETE FROM calls WHERE id = ?", (row["id"],))
    return f"{row['id']}"


def log(db: sqlite3.Connection, rng: random.Random) -> str:
    """The log itself."""
    sql = rng.choice(
        [
            "UPDATE log_runs SET events = events + 1 WHERE first_leaf = 0",
            "UPDATE log_runs SET stream = 'x' WHERE first_leaf = 0",
            "DELETE FROM log_runs WHERE first_leaf = (SELECT MAX(first_leaf) FROM log_runs)",
            "UPDATE log_tiles SET hashes = zeroblob(length(hashes))",
            "UPDATE log_tiles SET hashes = substr(hashes, 33)",
            "DELETE FROM log_tiles",
            "UPDATE log_checkpoints SET root = printf('%064d', 0)",
            "UPDATE log_checkpoints SET note = note || 'x'",
            "DELETE FROM log_checkpoints",
        ]
    )
    db.execute(sql)
    return sql


#: The edits, and how far the attacker can mend what goes with each.
EDITS: tuple[tuple[Edit, int], ...] = (
    (body, 1),
    (fact, 3),
    (column, 1),
    (deletion, 3),
    (swap, 1),
    (insertion, 3),
    (truncation, 3),
    (query_table, 1),
    (lost_call, 1),
    (log, 1),
)


# How it is mended.


def rechain(db: sqlite3.Connection) -> None:
    """Number and link every stream anew, as if nothing else had ever been."""
    streams: dict[str, tuple[int, str]] = {}
    for row in db.execute("SELECT rowid AS place, * FROM events ORDER BY stream, seq").fetchall():
        seq, head = streams.get(row["stream"], (0, GENESIS))
        facts = json.loads(row["body"]) | {"seq": seq + 1}
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        head = link(head, text)
        db.execute(
            "UPDATE events SET seq = ?, body = ?, hash = ? WHERE rowid = ?",
            (seq + 1, text, head, row["place"]),
        )
        streams[row["stream"]] = (seq + 1, head)
    for stream in streams:
        set_head(db, stream)


def set_head(db: sqlite3.Connection, stream: str) -> None:
    db.execute(
        "UPDATE incarnations SET (last_seq, head) = (SELECT seq, hash FROM events WHERE stream = id"
        " ORDER BY seq DESC LIMIT 1) WHERE id = ?",
        (stream,),
    )


def reseal(db: sqlite3.Connection, signer: Signer) -> None:
    """Another log over what is there now, signed with the stolen key."""
    for table in ("log_runs", "log_tiles", "log_checkpoints"):
        db.execute(f"DELETE FROM {table}")
    rows = db.execute("SELECT stream, seq, hash FROM events ORDER BY stream, seq").fetchall()
    counts = Counter(row["stream"] for row in rows)
    first = 0
    for stream, count in counts.items():
        db.execute("INSERT INTO log_runs VALUES (?, ?, 1, ?)", (first, stream, count))
        first += count
    leaves = [merkle.leaf_hash(entry(row["stream"], row["seq"], row["hash"]).encode()) for row in rows]
    tiles = merkle.grown(lambda *_: b"", 0, leaves)
    db.executemany("INSERT INTO log_tiles VALUES (?, ?, ?)", [(*key, tile) for key, tile in tiles.items()])
    root = merkle.root(lambda *key: tiles[key], len(leaves))
    text = Checkpoint(origin=signer.name, size=len(leaves), root=root).text()
    db.execute(
        "INSERT INTO log_checkpoints VALUES (?, ?, ?, 0)", (len(leaves), root.hex(), sign(text, [signer]))
    )
    db.execute("UPDATE log_keys SET from_size = ?, at_us = 0", (len(leaves),))


# Whether it is found.


def findings(db: sqlite3.Connection, record: Record) -> Iterator[object]:
    records = Records(SqliteReader(db), lambda: record.master_key)
    return verifying.verify(records, [record.checkpoint], [record.signer.verifier], payloads=True)


def findings_by_several(db: sqlite3.Connection, record: Record, jobs: int) -> list[object]:
    """What several processes find in the same, each part of it small."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy.db")
        copy.write_bytes(db.serialize())
        keys = [record.signer.verifier]
        with open_records(copy, record.master_key.hex) as records:
            found = verifying.verify(
                records, [record.checkpoint], keys, payloads=True, processes=jobs, part=7
            )
            return list(found)


def one_edit(record: Record, rng: random.Random, report: Report, jobs: int = 1) -> None:
    edit, mendable = rng.choice(EDITS)
    mode = MODES[rng.randrange(mendable)]
    with closing(opened(record.database)) as db:
        what = edit(db, rng)
        if not what:
            return
        if mode != "plain":
            rechain(db)
        if mode == "resealed":
            reseal(db, record.signer)
        name = f"{edit.__name__} {mode}"
        found = list(findings(db, record))
        if not found:
            report.missed.append(f"{name}: {what}: not found")
        elif jobs > 1 and findings_by_several(db, record, jobs) != found:
            report.missed.append(f"{name}: {what}: {jobs} processes found something else")
        else:
            report.found[name] += 1
        lines = export(db)
    try:
        verifier.verify_export(lines, [record.checkpoint])
        refused = False
    except NotProven:
        refused = True
    report.refused += refused
    if refused != (lines != record.export):
        report.missed.append(f"{name}: {what}: its export was {'refused' if refused else 'accepted'}")


def campaign(record: Record, *, edits: int, seed: int, jobs: int = 1) -> Report:
    report, rng, start = Report(edits=edits, seed=seed), random.Random(seed), time.perf_counter()
    while report.found.total() + len(report.missed) < edits:
        one_edit(record, rng, report, jobs)
    report.seconds = round(time.perf_counter() - start, 1)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tamper.run")
    parser.add_argument("--edits", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = anyio.run(a_record, Path(folder))
    report = campaign(record, edits=asked.edits, seed=asked.seed, jobs=asked.jobs)
    if asked.json:
        print(json.dumps(vars(report)))
    else:
        for name, count in sorted(report.found.items()):
            print(f"{count:6} found  {name}")
        print(f"{report.refused:6} exports refused by the separate verifier")
        print(f"{len(report.missed):6} missed, seed {report.seed}, {report.seconds} s")
        print("\n".join(report.missed[:20]))
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
