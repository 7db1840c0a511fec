"""The Merkle log over the events: sealed beside the calls, proved to others, and found wrong when it is."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from tests.server.acme import Story, Terminal, a_place, a_story, made, serving
from tests.server.builders import a_remit
from tests.server.test_records import some_records, sql, tampering
from tests.server.witnessing import AT_S, WitnessKey

from remit import merkle, proofs, verifier
from remit.anchors import seal_and_anchor
from remit.chain import GENESIS, link
from remit.checkpoint import (
    BadNote,
    Checkpoint,
    Signer,
    cosigned_at,
    open_checkpoint,
    read_note,
    read_verifier,
    read_witness,
    signature_lines,
    split_notes,
)
from remit.config import Anchor
from remit.errors import RemitError
from remit.exports import lines
from remit.ids import now_us
from remit.journal import Journal
from remit.records import open_records
from remit.sealer import Sealed, SealRefused, key_file, read_keys, seal
from remit.verifier import NotProven


def sealed(path: Path) -> Sealed:
    found = seal(path)
    assert found
    return found


def keys(path: Path) -> list[Any]:
    return [signer.verifier for signer in read_keys(path)]


def found_in(path: Path, kept: Sequence[str] = ()) -> list[str]:
    with open_records(path) as records:
        checkpoints = [open_checkpoint(note, keys(path)) for note in kept]
        return [str(finding) for finding in proofs.verify_log(records, checkpoints)]


def export(path: Path) -> list[str]:
    with open_records(path) as records:
        return [f'{{"hash":"{event.hash}","event":{event.body}}}\n' for event in proofs.in_log_order(records)]


def a_proof(path: Path, tool: str = "shop.buy") -> dict[str, Any]:
    with open_records(path) as records:
        (call,) = records.rows("SELECT id FROM calls WHERE tool = ? AND state = 'succeeded'", (tool,))
        return proofs.prove(records, call["id"])


# Sealing.


async def test_every_committed_event_is_sealed_once_whoever_wrote_it(tmp_path: Path) -> None:
    path = await some_records(tmp_path)
    first = sealed(path)
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.look", {"thing": "pen"})
        second = sealed(path)
        await remit.done("shop.look", {"thing": "pen"})
    third, again = sealed(path), sealed(path)
    with open_records(path) as records:
        assert [first.new, second.new > 0, third.size, again.new] == [
            first.size,
            True,
            records.count("events"),
            0,
        ]
        assert len({(event.stream, event.seq) for event in proofs.in_log_order(records)}) == third.size
    assert found_in(path, [first.note, second.note, third.note]) == []


async def test_nothing_is_sealed_where_nothing_happened(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        path = remit.path
    with tampering(path) as db:
        db.execute("DELETE FROM events")
    assert seal(path) is None


async def test_processes_that_seal_together_seal_each_event_once(tmp_path: Path) -> None:
    path = await some_records(tmp_path)
    threads = [threading.Thread(target=seal, args=(path,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    async with a_remit(tmp_path) as remit:
        for _ in range(20):
            await remit.done("shop.look", {"thing": "pen"})
            seal(path)
    for thread in threads:
        thread.join()
    seal(path)
    assert found_in(path) == []


async def test_a_log_of_many_tiles_is_sealed_and_proved(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        for _ in range(300):
            await remit.done("shop.look", {"thing": "pen"})
        first = sealed(remit.path)
        await remit.done("shop.buy", {"thing": "pen", "price": 5})
    last = sealed(remit.path)
    assert last.size > 2 * merkle.TILE_WIDTH
    assert found_in(remit.path, [first.note, last.note]) == []
    assert len(verifier.verify_proof(a_proof(remit.path), keys(remit.path))) == 2


async def test_the_key_is_for_its_owner_alone_and_stays(tmp_path: Path) -> None:
    path = await some_records(tmp_path)
    seal(path)
    assert key_file(path).stat().st_mode & 0o777 == 0o600
    before = read_keys(path)
    seal(path)
    assert read_keys(path) == before
    key_file(path).chmod(0o644)
    with pytest.raises(SealRefused, match="chmod 600"):
        seal(path)


@pytest.mark.parametrize(("damage", "says"), [(None, "is gone"), ("nonsense\n", "damaged")])
async def test_without_its_key_a_log_is_not_gone_on_with(
    tmp_path: Path, damage: str | None, says: str
) -> None:
    path = await some_records(tmp_path)
    seal(path)
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.look", {"thing": "pen"})
    if damage is None:
        key_file(path).unlink()
    else:
        key_file(path).write_text(damage)
    with pytest.raises(SealRefused, match=says):
        seal(path)


@pytest.mark.parametrize(
    "change",
    [
        sql("log_tiles", "hashes = zeroblob(length(hashes))"),
        sql("log_tiles", "hashes = substr(hashes, 33)"),
        sql("log_tiles", "hashes = 'text'"),
        sql("log_tiles", ""),
        sql("log_checkpoints", "root = 'x'"),
        sql("log_checkpoints", ""),
        sql("log_runs", ""),
    ],
)
async def test_nothing_is_signed_that_does_not_follow_what_was_signed(
    tmp_path: Path, change: tuple[str]
) -> None:
    path = await some_records(tmp_path)
    seal(path)
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.look", {"thing": "pen"})
    with tampering(path) as db:
        db.execute(*change)
    with pytest.raises(SealRefused, match="not what was signed last"):
        seal(path)


async def test_nothing_is_sealed_over_a_gap(tmp_path: Path) -> None:
    path = await some_records(tmp_path)
    with tampering(path) as db:
        db.execute("DELETE FROM events WHERE seq = 3")
    assert sealed(path).size == 2


@pytest.mark.parametrize(
    ("table", "column"),
    [("events", "at_us"), ("log_runs", "events"), ("log_checkpoints", "at_us"), ("log_keys", "at_us")],
)
async def test_what_is_written_once_cannot_be_changed(tmp_path: Path, table: str, column: str) -> None:
    path = await some_records(tmp_path)
    seal(path)
    with closing(sqlite3.connect(path)) as db:
        changes = [change for (change,) in (sql(table, f"{column} = 0"), sql(table, ""))]
        changes.append(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table} LIMIT 1")  # noqa: S608 - all of it is ours
        if table == "events":  # each other table here is found by its key alone
            changes.append(
                "INSERT OR REPLACE INTO events (rowid, stream, seq, at_us, kind, body, hash)"
                " VALUES (1, 'another', 1, 0, 'made.up', '{}', '')"
            )
        for change in changes:
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                db.execute(change)


# Verifying.

CHANGES = [
    ("UPDATE events SET hash = printf('%064d', 0) WHERE seq = 3", "event 3: it is not what was sealed"),
    ("DELETE FROM events WHERE seq = 3", "event 3: it was taken out after it was sealed"),
    ("DELETE FROM log_runs", "no checkpoint that covers|kept elsewhere has|has another root|cut off"),
    ("UPDATE log_runs SET events = events - 1", "no checkpoint covers|the log|register"),
    ("UPDATE log_runs SET events = 1000000000000", "the register of what was sealed"),
    ("UPDATE log_runs SET stream = 'x'", "taken out"),
    ("UPDATE log_tiles SET hashes = zeroblob(length(hashes))", "it is not what was sealed"),
    ("UPDATE log_tiles SET hashes = 'text'", "it is not what was sealed"),
    ("DELETE FROM log_tiles", "the register of what was sealed"),
    ("DELETE FROM log_checkpoints", "no checkpoint covers it"),
    ("UPDATE log_checkpoints SET root = 'x'", "its columns are not what was signed"),
    ("UPDATE log_checkpoints SET note = lower(note)", "checkpoint of"),
    ("UPDATE log_checkpoints SET note = x'00'", "checkpoint of"),
    ("DELETE FROM log_keys", "nobody whose key is known has signed it"),
]


@pytest.mark.parametrize(("change", "finding"), CHANGES)
async def test_what_is_done_to_the_log_by_hand_is_found(tmp_path: Path, change: str, finding: str) -> None:
    path = await some_records(tmp_path)
    note = sealed(path).note
    with tampering(path) as db:
        assert db.execute(change).rowcount >= 1
    found = found_in(path, [note])
    assert any(re.search(finding, each) for each in found), found


def rewritten(path: Path) -> None:
    """Another history, consistent in itself, by somebody who has the code and the key."""
    with closing(sqlite3.connect(path)) as db, db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        head: dict[str, str] = {}
        told = db.execute("SELECT stream, seq, body FROM events ORDER BY stream, seq").fetchall()
        for stream, seq, before in told:
            body = before.replace('"tenant":"acme"', '"tenant":"evil"')
            head[stream] = link(head.get(stream, GENESIS), body)
            db.execute(
                "UPDATE events SET body = ?, hash = ? WHERE stream = ? AND seq = ?",
                (body, head[stream], stream, seq),
            )
            db.execute("UPDATE incarnations SET head = ? WHERE id = ?", (head[stream], stream))
        for table in ("log_runs", "log_tiles", "log_checkpoints", "log_keys"):
            db.execute(*sql(table, ""))
    seal(path)


async def test_a_history_that_was_rewritten_with_the_key_is_found_by_a_checkpoint_kept_elsewhere(
    tmp_path: Path,
) -> None:
    path = await some_records(tmp_path)
    note = sealed(path).note
    rewritten(path)
    assert found_in(path) == []
    (finding,) = found_in(path, [note])
    assert "log, entries 0 to" in finding
    assert "rewritten" in finding


async def test_a_log_that_was_cut_off_is_found_by_a_checkpoint_kept_elsewhere(tmp_path: Path) -> None:
    path = await some_records(tmp_path)
    note = sealed(path).note
    with tampering(path) as db:
        for table in ("log_runs", "log_tiles", "log_checkpoints", "log_keys"):
            db.execute(*sql(table, ""))
    (finding,) = found_in(path, [note])
    assert "cut off" in finding


# The separate verifier.


async def test_an_export_is_verified_with_the_key_alone(tmp_path: Path) -> None:
    path = await some_records(tmp_path)
    note = sealed(path).note
    checkpoint = open_checkpoint(note, keys(path))
    assert verifier.verify_export(export(path), [checkpoint]) == checkpoint.size


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda lines: [*lines[:2], lines[2].replace("agent", "agint"), *lines[3:]],
            "is not what was sealed",
        ),
        (lambda lines: [*lines[:2], *lines[3:]], "follows on event"),
        (lambda lines: lines[:-1], "and a checkpoint has"),
        (lambda lines: [*lines, lines[-1]], "follows on event"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "follows on event"),
        (lambda lines: [*lines, "nonsense\n"], "not a line of an export"),
        (lambda lines: [*lines, lines[0][:85] + "[]}\n"], "not an event"),
        (lambda lines: [], "and a checkpoint has"),
    ],
)
async def test_an_export_that_was_changed_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    path = await some_records(tmp_path)
    checkpoint = open_checkpoint(sealed(path).note, keys(path))
    with pytest.raises(NotProven, match=says):
        verifier.verify_export(change(export(path)), [checkpoint])


async def test_events_that_no_checkpoint_covers_are_not_proved(tmp_path: Path) -> None:
    path = await some_records(tmp_path)
    old = open_checkpoint(sealed(path).note, keys(path))
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.look", {"thing": "pen"})
    new = open_checkpoint(sealed(path).note, keys(path))
    with pytest.raises(NotProven, match="no checkpoint covers"):
        verifier.verify_export(export(path), [old])
    assert verifier.verify_export(export(path), [old, new]) == new.size
    with pytest.raises(NotProven, match=f"lines {old.size + 1} to {new.size}"):
        verifier.verify_export(export(path), [old, replace(new, root=bytes(32))])


async def test_a_call_is_proved_by_its_events_and_the_receipt_that_its_agent_holds(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        done = await remit.done("shop.buy", {"thing": "pen", "price": 5})
        path = remit.path
    seal(path)
    proof = a_proof(path)
    assert done.event
    bodies = verifier.verify_proof(proof, keys(path), [done.event])
    assert [json.loads(body)["kind"] for body in bodies] == ["call.dispatched", "call.succeeded"]
    with pytest.raises(NotProven, match="receipt"):
        verifier.verify_proof(proof, keys(path), [done.event[:-1] + "x"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda proof: proof["events"][0].update(event="{}"), "not an event"),
        (lambda proof: proof["events"][0].update(leaf=0), "not in the log"),
        (lambda proof: proof["events"][0].update(leaf="1"), "lacks something"),
        (lambda proof: proof["events"][0]["path"].pop(), "not in the log"),
        (lambda proof: proof["events"][0].update(path=["zz"]), "not made of hashes"),
        (lambda proof: proof["events"][0].update(previous="00"), "not what was sealed"),
        (lambda proof: proof["events"][0].update(previous="z"), "hash"),
        (lambda proof: proof.update(call_id="another"), "of another call"),
        (lambda proof: proof.update(events=[]), "names no event"),
        (lambda proof: proof["events"].append(proof["events"][0]), "more than once"),
        (lambda proof: proof.update(events=[{}]), "lacks something"),
        (lambda proof: proof.update(format="x"), "neither"),
    ],
)
async def test_a_proof_that_was_changed_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    path = await some_records(tmp_path)
    seal(path)
    proof = a_proof(path)
    change(proof)
    with pytest.raises(NotProven, match=says):
        verifier.verify_proof(proof, keys(path))


async def test_what_an_agent_wrote_does_not_act_on_the_verifiers_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = "\u202eevil\x9b31m für"
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.buy", {"thing": "pen", "price": 5}, run=run)
        path = remit.path
    seal(path)
    proof = tmp_path / "call.proof"
    proof.write_text(json.dumps(a_proof(path)))
    assert verifier.main([str(proof), "--key", str(keys(path)[0])]) == 0
    told = capsys.readouterr().out
    assert "\\u202eevil\\u009b31m für" in told
    assert not {"\u202e", "\x9b"} & set(told)
    assert json.loads(told.splitlines()[0])["run"] == run


async def test_a_proof_whose_checkpoint_somebody_else_signed_is_refused(tmp_path: Path) -> None:
    path = await some_records(tmp_path)
    seal(path)
    other = Signer(name=keys(path)[0].name, seed=bytes(32))
    with pytest.raises(BadNote, match="nobody whose key is known"):
        verifier.verify_proof(a_proof(path), [other.verifier])


async def test_a_call_that_is_not_sealed_yet_is_not_proved(tmp_path: Path) -> None:
    path = await some_records(tmp_path)
    with pytest.raises(RemitError, match="nothing is sealed yet"):
        a_proof(path)
    seal(path)
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.set", {"thing": "pen", "value": 1})
    with pytest.raises(RemitError, match="not all of this call is sealed yet"):
        a_proof(path, "shop.set")


def test_the_verifier_loads_nothing_but_the_tree_and_the_signatures() -> None:
    code = (
        "import sys; import remit.verifier; print(sorted({name.partition('.')[0] for name in sys.modules}"
        " - set(sys.stdlib_module_names) - {'__main__', '_cffi_backend', '_openssl'}),"
        " sorted(name for name in sys.modules if name.startswith('remit')))"
    )
    path = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stdout == (
        "['cryptography', 'remit'] ['remit', 'remit.checkpoint', 'remit.merkle', 'remit.verifier']\n"
    ), done.stderr


# Anchors.


async def test_a_file_elsewhere_gets_each_new_checkpoint_once(tmp_path: Path) -> None:
    path, elsewhere = await some_records(tmp_path), Anchor(file=tmp_path / "checkpoints")
    await seal_and_anchor(path, [elsewhere])
    await seal_and_anchor(path, [elsewhere])
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.look", {"thing": "pen"})
    _, (anchored,) = await seal_and_anchor(path, [elsewhere])
    notes = split_notes((tmp_path / "checkpoints").read_text())
    assert [open_checkpoint(note, keys(path)).size for note in notes] == [10, anchored.size]
    assert found_in(path, notes) == []


async def test_an_anchor_that_fails_holds_up_neither_the_log_nor_the_others(tmp_path: Path) -> None:
    path = await some_records(tmp_path)
    absent, there = Anchor(file=tmp_path / "no" / "folder"), Anchor(file=tmp_path / "checkpoints")
    nobody = Anchor(witness="http://127.0.0.1:9/", key=WitnessKey().key)
    sealed, anchored = await seal_and_anchor(path, [absent, nobody, there])
    assert sealed
    assert [bool(each.error) for each in anchored] == [True, True, False]


async def test_a_disk_that_was_full_leaves_no_half_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, file = await some_records(tmp_path), tmp_path / "checkpoints"
    await seal_and_anchor(path, [Anchor(file=file)])
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.look", {"thing": "pen"})
    synced = os.fsync

    def full(descriptor: int) -> None:
        if os.path.sameopenfile(descriptor, opened.fileno()):
            raise OSError(errno.ENOSPC, "No space left on device")
        synced(descriptor)

    before = file.read_text()
    with file.open() as opened, monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        _, (anchored,) = await seal_and_anchor(path, [Anchor(file=file)])
    assert (anchored.size, "No space left" in str(anchored.error)) == (10, True)
    assert file.read_text() == before
    await seal_and_anchor(path, [Anchor(file=file)])
    notes = split_notes(file.read_text())
    assert (len(notes), found_in(path, notes)) == (2, [])


class Witness:
    """A witness as c2sp.org/tlog-witness has it: it remembers one checkpoint, and signs what follows it."""

    def __init__(self, log: Any) -> None:
        self.key = WitnessKey()
        self.seen = Checkpoint(origin="", size=0, root=merkle.EMPTY_ROOT)
        self.asked: list[int] = []
        #: What it answers instead, made of the checkpoint's note and its own signature.
        self.instead: Callable[[str, str], web.Response] | None = None
        self._log = log

    async def add_checkpoint(self, request: web.Request) -> web.Response:
        head, _, note = (await request.text()).partition("\n\n")
        if self.instead:
            text = note.rpartition("\n\n")[0] + "\n"
            return self.instead(note, self.key.line(text))
        old, *proof = head.split("\n")
        checkpoint = open_checkpoint(note, [self._log])
        self.asked.append(int(old.removeprefix("old ")))
        if self.asked[-1] != self.seen.size:
            return web.Response(status=409, text=f"{self.seen.size}\n", content_type="text/x.tlog.size")
        path = [b64decode(each) for each in proof]
        if not merkle.verify_consistency(
            self.seen.size, checkpoint.size, path, self.seen.root, checkpoint.root
        ):
            return web.Response(status=422)
        self.seen = checkpoint
        others = WitnessKey(6, name="witness.example/other")
        return web.Response(text=others.line(checkpoint.text()) + self.key.line(checkpoint.text()))


@asynccontextmanager
async def a_witness(log: Any) -> AsyncGenerator[tuple[Witness, str]]:
    witness, app = Witness(log), web.Application()
    app.router.add_post("/log/add-checkpoint", witness.add_checkpoint)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield witness, f"http://127.0.0.1:{runner.addresses[0][1]}/log/"
    finally:
        await runner.cleanup()


def witnessed_by(witness: Witness, prefix: str) -> Anchor:
    return Anchor(witness=prefix, key=witness.key.key)


async def test_a_witness_signs_what_follows_and_its_signature_goes_with_the_proof(tmp_path: Path) -> None:
    path = await some_records(tmp_path)
    seal(path)
    async with a_witness(keys(path)[0]) as (witness, prefix):
        for _ in range(2):
            _, (anchored,) = await seal_and_anchor(path, [witnessed_by(witness, prefix)])
            assert anchored.error is None
            async with a_remit(tmp_path) as remit:
                await remit.done("shop.look", {"thing": "pen"})
        assert witness.asked == [0, 10]
        await seal_and_anchor(path, [witnessed_by(witness, prefix)])
    note = a_proof(path)["checkpoint"]
    assert read_note(note, keys(path))[1] == tuple(keys(path))
    assert cosigned_at(note, read_witness(witness.key.key)) == AT_S
    assert "witness.example/other" not in note, "whom nobody named"


async def test_a_witness_that_has_seen_another_checkpoint_is_told_from_there(tmp_path: Path) -> None:
    path = await some_records(tmp_path)
    seal(path)
    async with a_witness(keys(path)[0]) as (witness, prefix):
        await seal_and_anchor(path, [witnessed_by(witness, prefix)])
        async with a_remit(tmp_path) as remit:
            await remit.done("shop.look", {"thing": "pen"})
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("DELETE FROM log_anchors")
        _, (anchored,) = await seal_and_anchor(path, [witnessed_by(witness, prefix)])
        assert (witness.asked, anchored.error) == ([0, 0, 10], None)


async def test_a_witness_does_not_sign_another_history(tmp_path: Path) -> None:
    path = await some_records(tmp_path)
    seal(path)
    async with a_witness(keys(path)[0]) as (witness, prefix):
        await seal_and_anchor(path, [witnessed_by(witness, prefix)])
        async with a_remit(tmp_path) as remit:
            await remit.done("shop.look", {"thing": "pen"})
        rewritten(path)
        _, (anchored,) = await seal_and_anchor(path, [witnessed_by(witness, prefix)])
        assert anchored.error == "it answered 422"


@pytest.mark.parametrize("of", ["a proof", "an export"])
async def test_the_verifier_demands_the_signature_of_a_witness(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], of: str
) -> None:
    path = await some_records(tmp_path)
    seal(path)
    file, checkpoint, (log_key,) = tmp_path / "file", tmp_path / "checkpoint", keys(path)

    def verified(*witnesses: str) -> int:
        with open_records(path) as records:
            checkpoint.write_text(proofs.newest_checkpoint(records)[0])
            exported = "".join(lines(proofs.in_log_order(records), "jsonl")) if of == "an export" else ""
        file.write_text(exported or json.dumps(a_proof(path)))
        given = [f"--witness={witness}" for witness in witnesses]
        given += [f"--checkpoint={checkpoint}"] if exported else []
        return verifier.main([str(file), f"--key={log_key}", *given])

    key = WitnessKey()
    assert verified(key.key) == 1
    assert "the witness witness.example/w has not signed the checkpoint" in capsys.readouterr().err
    async with a_witness(log_key) as (witness, prefix):
        await seal_and_anchor(path, [witnessed_by(witness, prefix)])
    assert verified(key.key) == 0
    told = capsys.readouterr().out
    assert told.endswith("witness.example/w signed the checkpoint at 2033-05-18 03:33:20Z.\n")
    assert verified() == 0
    assert verified(key.key, WitnessKey(6).key) == 1
    assert verified(str(log_key)) == 1
    assert "is that of a log, and not of a witness" in capsys.readouterr().err
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE log_anchors SET signatures = ?", (key.line("another\n1\nAA==\n"),))
    assert verified(key.key) == 1
    assert "the signature by witness.example/w is wrong" in capsys.readouterr().err


def in_the_name_of(note: str) -> str:
    """A signature line as the log's own one in the note, but wrong."""
    _, name, signature = signature_lines(note).split()
    return f"\N{EM DASH} {name} {b64encode(b64decode(signature)[:4] + bytes(64)).decode()}\n"


@pytest.mark.parametrize(
    ("instead", "says"),
    [
        (lambda _, good: web.Response(text=""), "w has not signed it with the configured key"),
        (lambda _, good: web.Response(text=good.rstrip()), "its answer is no signature"),
        (lambda _, good: web.Response(text=f"{good}\n{good}{good}"), "its answer is no signature"),
        (lambda _, good: web.Response(text=f"another root\n\n{good}"), "its answer is no signature"),
        (lambda _, good: web.Response(body=b"\xff<html>"), "its answer is no signature"),
        (lambda note, _: web.Response(text=in_the_name_of(note)), "has not signed it with the configured"),
        (lambda *_: web.Response(text=WitnessKey().line("log\n1\nAA==\n")), "witness.example/w is wrong"),
        (lambda _, good: web.Response(text=good.replace("/w ", "/x ")), "has not signed it with the conf"),
        (lambda _, good: web.Response(status=409, text="no number"), "it answered 409"),
        (lambda _, good: web.Response(status=307, headers={"Location": "/"}, text=good), "it answered 307"),
    ],
)
async def test_what_is_no_signature_of_a_witness_is_told_and_goes_into_no_proof(
    tmp_path: Path, instead: Any, says: str
) -> None:
    path = await some_records(tmp_path)
    async with a_witness(keys(path)) as (witness, prefix):
        witness.instead = instead
        sealed, (anchored,) = await seal_and_anchor(path, [witnessed_by(witness, prefix)])
    assert sealed
    assert (anchored.size, says in str(anchored.error)) == (0, True), anchored
    assert a_proof(path)["checkpoint"] == sealed.note


async def test_a_witness_that_does_not_answer_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await some_records(tmp_path)
    monkeypatch.setattr("remit.anchors._TIMEOUT_S", 0)
    async with a_witness(keys(path)) as (witness, prefix):
        _, (anchored,) = await seal_and_anchor(path, [witnessed_by(witness, prefix)])
    assert anchored.error == "it did not answer in time"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"file": "x", "witness": "https://w.example"},
        {"witness": "http://w.example", "key": WitnessKey().key},
        {"witness": "ftp://w", "key": WitnessKey().key},
        {"witness": "https://w.example"},
        {"witness": "https://w.example", "key": "damaged"},
        {"file": "x", "key": WitnessKey().key},
    ],
)
def test_an_anchor_is_one_safe_place(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        Anchor.model_validate(settings)


# By hand, and by a server.


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Story]:
    config = a_place(tmp_path_factory.mktemp("log"))
    return config, anyio.run(a_story, config)


@pytest.fixture
def copied(story: tuple[Path, Story], tmp_path: Path) -> tuple[Terminal, Path, Story]:
    config, told = story
    for name in ("remit.yaml", "policy.csv", "remit.db", "remit.db.log-key", "remit.db.master-key"):
        shutil.copy2(config.with_name(name), tmp_path / name)
    return Terminal(tmp_path / "remit.yaml"), tmp_path, told


def test_a_server_that_ends_has_sealed_everything(copied: tuple[Terminal, Path, Story]) -> None:
    remit, folder, _ = copied
    told = remit.json("audit", "verify")
    assert told["sealed"] == told["events"] > 0
    assert remit.json("audit", "checkpoint")["checkpoint"]["new"] == 0
    assert found_in(folder / "remit.db") == []


def test_a_server_seals_while_it_serves(tmp_path: Path) -> None:
    config = a_place(tmp_path)
    config.write_text(config.read_text() + "audit: {seal_every: 1s, anchors: [{file: kept}]}\n")

    async def serve_until_sealed() -> None:
        async with serving(config) as on:
            await made(on, "acme.list_orders", {})
            with anyio.fail_after(20):
                while not (tmp_path / "kept").exists():  # noqa: ASYNC110 - another thread writes it
                    await anyio.sleep(0.05)

    anyio.run(serve_until_sealed)
    assert found_in(tmp_path / "remit.db", split_notes((tmp_path / "kept").read_text())) == []


def test_what_cannot_be_written_is_told_in_a_sentence(copied: tuple[Terminal, Path, Story]) -> None:
    remit, folder, _ = copied
    (folder / "taken").write_text("")
    for words in (("--tiles", str(folder / "taken/tiles")), ("-o", str(folder / "absent/events"))):
        refused = remit("audit", "export", *words)
        assert (refused.code, refused.err.startswith("Error: Could not open file")) == (1, True)
    there = ("--format", "otlp", "--endpoint", "http://127.0.0.1:9", "-o", str(folder / "events"))
    assert remit("audit", "export", *there).code == 64


def test_tiles_are_published_as_a_web_server_serves_them(copied: tuple[Terminal, Path, Story]) -> None:
    remit, folder, _ = copied
    assert remit("audit", "export", "--tiles", str(folder / "public")).code == 0
    checkpoint = open_checkpoint((folder / "public/checkpoint").read_text(), keys(folder / "remit.db"))
    hashes = (folder / f"public/tile/0/000.p/{checkpoint.size}").read_bytes()
    entries = (folder / f"public/tile/entries/000.p/{checkpoint.size}").read_bytes()
    assert merkle.root(lambda level, index: hashes, checkpoint.size) == checkpoint.root
    assert len(hashes) == 32 * checkpoint.size
    assert merkle.leaf_hash(entries[2 : 2 + int.from_bytes(entries[:2])]) == hashes[:32]


def test_tiles_go_into_no_folder_that_holds_something(copied: tuple[Terminal, Path, Story]) -> None:
    remit, folder, _ = copied
    public = folder / "public"
    public.mkdir()
    assert remit("audit", "export", "--tiles", str(public)).code == 0
    (public / "checkpoint").write_text("of another log")
    again = remit("audit", "export", "--tiles", str(public))
    assert (again.code, "it is not empty; name a new folder" in again.err) == (1, True)
    assert (public / "checkpoint").read_text() == "of another log"


@pytest.mark.parametrize(
    ("words", "why", "told"),
    [
        ("audit key show", "there is no key yet", []),
        ("audit checkpoint", "there is nothing to seal yet", {"checkpoint": None, "anchors": []}),
    ],
)
def test_what_is_not_there_yet_is_no_line_of_a_file_of_keys_or_checkpoints(
    tmp_path: Path, words: str, why: str, told: object
) -> None:
    remit = Terminal(a_place(tmp_path))
    assert remit("db", "upgrade").code == 0
    ran = remit(*words.split())
    assert (ran.code, ran.out, why in ran.err) == (1, "", True)
    ran = remit(*words.split(), "--json")
    assert (ran.code, ran.json) == (1, told)


def test_a_kept_checkpoint_is_compared_with(copied: tuple[Terminal, Path, Story]) -> None:
    remit, folder, _ = copied
    kept = folder / "kept"
    kept.write_text(remit("audit", "checkpoint").out)
    (key,) = remit.json("audit", "key", "show")
    size = remit.json("audit", "verify")["sealed"]
    fine = remit("audit", "verify", "--checkpoint", str(kept), "--key", key)
    assert fine.out.endswith(f"The first {size} events are those of the checkpoint.\n")
    rewritten(folder / "remit.db")
    wrong = remit("audit", "verify", "--checkpoint", str(kept), "--key", key, "--json")
    assert wrong.code == 1
    assert any("rewritten" in each["what"] for each in json.loads(wrong.out)["findings"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--checkpoint", "absent"), "does not exist"),
        (("--checkpoint", "remit.yaml"), "cannot be relied on"),
        (("--key", "nonsense"), "not a key"),
    ],
)
def test_a_checkpoint_or_key_that_is_none_is_refused(
    copied: tuple[Terminal, Path, Story], words: tuple[str, str], says: str
) -> None:
    remit, folder, _ = copied
    option, value = words
    said = remit("audit", "verify", option, str(folder / value) if option == "--checkpoint" else value)
    assert said.code != 0
    assert says in said.err


def test_an_export_and_a_proof_are_verified_by_the_separate_command(
    copied: tuple[Terminal, Path, Story], capsys: pytest.CaptureFixture[str]
) -> None:
    remit, folder, told = copied
    (key,) = remit.json("audit", "key", "show")
    events, note, proof = (str(folder / name) for name in ("events.jsonl", "checkpoint", "proof"))
    assert remit("audit", "export", "--checkpoint", note, "-o", events).code == 0
    assert remit("audit", "prove", told.refund, "-o", proof).code == 0
    capsys.readouterr()
    assert verifier.main([events, "--key", key, "--checkpoint", note]) == 0
    assert capsys.readouterr().out.endswith("events are as they were sealed.\n")
    assert verifier.main([proof, "--key", key]) == 0
    assert capsys.readouterr().out.endswith(f"2 events of call {told.refund} are in the log.\n")
    Path(events).write_text(Path(events).read_text().replace("alice", "mallo"))
    assert verifier.main([events, "--key", key, "--checkpoint", note]) == 1
    assert "is not what was sealed" in capsys.readouterr().err
    for words in (
        [events, "--key", key],
        [note, "--key", key],
        [proof, "--key", "x"],
        ["absent", "--key", key],
    ):
        assert verifier.main(words) == 1
    assert capsys.readouterr().err.endswith(
        "remit-verify: absent cannot be read: No such file or directory\n"
    )
    Path(proof).write_bytes(b"\xff")
    assert verifier.main([proof, "--key", key]) == 1
    assert "no text in UTF-8" in capsys.readouterr().err


def test_a_key_is_replaced_by_one_that_the_old_one_vouches_for(copied: tuple[Terminal, Path, Story]) -> None:
    remit, folder, _ = copied
    (old,) = remit.json("audit", "key", "show")
    handed = remit.json("audit", "key", "rotate")
    for key in (old, handed["verifier"]):
        assert open_checkpoint(handed["checkpoint"], [read_verifier(key)])
    assert [str(each) for each in keys(folder / "remit.db")] == [handed["verifier"]]
    assert remit.json("audit", "key", "show") == [old, handed["verifier"]]
    remit("switch", "on", "all", "--reason", "a test")
    after = remit.json("audit", "checkpoint")["checkpoint"]["note"]
    assert open_checkpoint(after, [read_verifier(handed["verifier"])])
    with pytest.raises(BadNote):
        open_checkpoint(after, [read_verifier(old)])
    assert remit("audit", "verify").code == 0
    with open_records(folder / "remit.db") as records:
        (row,) = records.rows("SELECT body FROM events WHERE kind = 'log.key'")
        event = json.loads(row["body"])
    assert (event["verifier"], event["replaces"], event["by"]) == (handed["verifier"], [old], "user:sue")


def test_who_has_the_old_key_still_when_it_was_replaced_signs_nothing_with_it(
    copied: tuple[Terminal, Path, Story],
) -> None:
    remit, folder, _ = copied
    file = key_file(folder / "remit.db")
    old = file.read_bytes()
    new = remit.json("audit", "key", "rotate")["verifier"]
    newest = file.read_bytes()
    remit("switch", "on", "all", "--reason", "a test")
    file.write_bytes(old)  # as another replica has it
    refused = remit("audit", "checkpoint")
    assert (refused.code, refused.out) == (1, "")
    assert "copy the new one from the replica" in refused.err
    file.write_bytes(newest)
    assert open_checkpoint(remit.json("audit", "checkpoint")["checkpoint"]["note"], [read_verifier(new)])
    # Where the new one is lost, another takes its place, and the old one vouches for it.
    file.write_bytes(old)
    handed = remit.json("audit", "key", "rotate")
    assert open_checkpoint(handed["checkpoint"], [read_verifier(handed["verifier"])])
    remit("switch", "off", "all", "--reason", "a test")
    assert remit("audit", "checkpoint").code == 0
    assert remit("audit", "verify").code == 0


def test_the_old_key_vouches_for_the_new_also_where_a_replica_seals_with_it_meanwhile(
    copied: tuple[Terminal, Path, Story], monkeypatch: pytest.MonkeyPatch
) -> None:
    remit, folder, _ = copied
    file = key_file(folder / "remit.db")
    old = file.read_bytes()
    (old_key,) = keys(folder / "remit.db")
    close, first = Journal.close, [True]

    async def sealed_elsewhere(journal: Journal) -> None:
        await close(journal)
        if first:
            first.clear()
            both = file.read_bytes()
            file.write_bytes(old)
            seal(folder / "remit.db")
            file.write_bytes(both)

    monkeypatch.setattr(Journal, "close", sealed_elsewhere)
    handed = remit.json("audit", "key", "rotate")
    for key in (old_key, read_verifier(handed["verifier"])):
        assert open_checkpoint(handed["checkpoint"], [key])
    assert not first


def test_after_a_key_was_replaced_what_shows_the_keys_is_still_what_takes_them(
    copied: tuple[Terminal, Path, Story], capsys: pytest.CaptureFixture[str]
) -> None:
    remit, folder, told = copied
    old, new, proof = (folder / name for name in ("old", "new", "proof"))
    old.write_text(remit("audit", "checkpoint").out)
    remit("audit", "key", "rotate")
    remit("switch", "on", "all", "--reason", "a test")
    new.write_text(remit("audit", "checkpoint").out)
    assert remit("audit", "prove", told.refund, "-o", str(proof)).code == 0
    both = "\n" + remit("audit", "key", "show").out
    compared = remit("audit", "verify", "--checkpoint", str(old), "--checkpoint", str(new), "--key", both)
    size = open_checkpoint(new.read_text(), keys(folder / "remit.db")).size
    assert compared.code == 0
    assert compared.out.endswith(f"The first {size} events are those of the checkpoint.\n")
    assert verifier.main([str(proof), "--key", both]) == 0
    assert remit("audit", "verify", "--checkpoint", str(old), "--key", both.split()[1]).code == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("", "no key is in it"),
        (" \n", "no key is in it"),
        ("{public}\nnonsense", "'nonsense' is not a key"),
        ("{public}+damaged", "+damaged' is not a key"),
        ("{private}", "a private key"),
    ],
)
def test_a_line_that_is_no_key_is_named_and_a_private_key_is_not(
    copied: tuple[Terminal, Path, Story], capsys: pytest.CaptureFixture[str], key: str, says: str
) -> None:
    remit, folder, _ = copied
    (signer,) = read_keys(folder / "remit.db")
    key = key.format(public=signer.verifier, private=signer.encoded())
    refused = remit("audit", "verify", "--key", key)
    assert refused.code == 64
    assert verifier.main([str(folder / "proof"), "--key", key]) == 1
    for err in (refused.err, capsys.readouterr().err):
        assert says in err
        assert signer.encoded() not in err


def test_what_leads_from_the_old_key_to_the_new_goes_to_every_anchor(
    copied: tuple[Terminal, Path, Story],
) -> None:
    remit, folder, _ = copied
    config = folder / "remit.yaml"
    config.write_text(config.read_text() + "audit: {anchors: [{file: kept}, {file: absent/kept}]}\n")
    (old,) = remit.json("audit", "key", "show")
    rotated = remit("audit", "key", "rotate", "--json")
    assert (rotated.code, "is not at" in rotated.err) == (1, True)
    (note,) = split_notes((folder / "kept").read_text())
    for key in (old, rotated.json["verifier"]):
        assert open_checkpoint(note, [read_verifier(key)])


def test_a_new_key_does_not_wait_for_the_hour_of_the_next_timestamp(
    copied: tuple[Terminal, Path, Story],
) -> None:
    remit, folder, _ = copied
    config, nobody = folder / "remit.yaml", "http://127.0.0.1:9/tsr"
    timestamp = f"{{url: '{nobody}', roots: roots.pem, folder: .}}"
    config.write_text(config.read_text() + f"audit: {{anchors: [timestamp: {timestamp}]}}\n")
    with closing(sqlite3.connect(folder / "remit.db")) as db, db:
        db.execute("INSERT INTO log_anchors VALUES (?, 1, ?, '')", (nobody, now_us()))
    assert remit("audit", "checkpoint").code == 0
    rotated = remit("audit", "key", "rotate")
    assert (rotated.code, f"is not at {nobody}" in rotated.err) == (1, True)
