"""`remit-verify`: it compares with all that it is given, and ends in a sentence whatever it is given."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server.test_log import a_proof, export
from tests.server.test_records import some_records

from remit import merkle, verifier
from remit.chain import GENESIS, link
from remit.checkpoint import Checkpoint, Signer, open_checkpoint, sign
from remit.sealer import read_keys, seal

OTHER = Signer(name="another-log", seed=bytes(32))


@dataclass
class Log:
    """What somebody outside holds of a log, and the signer, which nobody outside does."""

    folder: Path
    signer: Signer
    own: Checkpoint
    proof: dict[str, Any]
    receipt: str

    def file(self, name: str, content: str | bytes) -> str:
        (self.folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(self.folder / name)

    def signed(self, signer: Signer, size: int, root: bytes) -> str:
        return sign(Checkpoint(origin=signer.name, size=size, root=root).text(), [signer])


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    folder = tmp_path_factory.mktemp("log")
    path = anyio.run(some_records, folder)
    sealed = seal(path)
    assert sealed
    (signer,) = read_keys(path)
    proof = a_proof(path)
    last = json.loads((event := proof["events"][-1])["event"])
    log = Log(
        folder=folder,
        signer=signer,
        own=open_checkpoint(sealed.note, [signer.verifier]),
        proof=proof,
        receipt=f"{last['stream']} {last['seq']} {event['hash']}",
    )
    log.file("own", sealed.note)
    log.file("proof", json.dumps(proof))
    log.file("export", "".join(export(path)))
    return log


def verify(log: Log, file: str, *words: str) -> tuple[int, str]:
    """Its exit status, and all that it says."""
    keys = f"{log.signer.verifier}\n{OTHER.verifier}"
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = verifier.main([str(log.folder / file), "--key", keys, *words])
    return code, out.getvalue() + err.getvalue()


def test_a_proof_is_compared_with_the_checkpoint_that_was_kept(log: Log) -> None:
    own, size = (log.folder / "own").read_text(), log.own.size
    unknown = Signer(name=log.signer.name, seed=bytes(range(32)))
    code, said = verify(log, "proof", "--checkpoint", str(log.folder / "own"))
    assert (code, said.endswith(f"are in the log. Their checkpoint is in {log.folder / 'own'}.\n")) == (
        0,
        True,
    )
    for kept, code, says in (
        (log.signed(log.signer, size, bytes(32)), 1, f"other roots for the same {size} events"),
        (own + log.signed(log.signer, size, bytes(32)), 1, "other roots"),
        (log.signed(OTHER, size, log.own.root), 1, "of the log another-log"),
        (log.signed(unknown, size, log.own.root), 1, "nobody whose key is known"),
        (log.signed(log.signer, size - 1, bytes(32)), 2, "ask for an export"),
        ("", 1, "there is no checkpoint in"),
        ("nonsense", 1, "not a signed note"),
    ):
        there = log.file("kept", kept)
        assert (found := verify(log, "proof", "--checkpoint", there))[0] == code, found
        assert says in found[1]
        # The other one that is given makes no difference.
        assert verify(log, "proof", "--checkpoint", there, "--checkpoint", str(log.folder / "own"))[0] == code
    assert verify(log, "proof", "--checkpoint", str(log.folder / "absent"))[0] == 1


def test_a_file_of_many_checkpoints_that_has_that_of_the_proof_is_one_to_compare_with(log: Log) -> None:
    kept = log.file("many", log.signed(log.signer, 1, bytes(32)) + (log.folder / "own").read_text())
    assert verify(log, "proof", "--checkpoint", kept)[0] == 0


@pytest.mark.parametrize("file", ["proof", "export"])
def test_every_receipt_is_looked_for_in_a_proof_and_in_an_export(log: Log, file: str) -> None:
    words = ("--checkpoint", str(log.folder / "own"), "--receipt")
    assert verify(log, file, *words, log.receipt)[0] == 0
    for receipt in ("no such receipt", "", log.receipt[:-1] + ("0" if log.receipt[-1] != "0" else "1")):
        for more in ((), ("--receipt", log.receipt)):
            code, said = verify(log, file, *words, receipt, *more)
            assert (code, f"the event of the receipt {receipt!r} is not among those" in said) == (1, True)


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        (lambda log: "", "there is no checkpoint in"),
        (lambda log: log.signed(log.signer, 0, bytes(32)), "no events has a root of its own"),
        (lambda log: log.signed(OTHER, 3, bytes(32)), "is not what the checkpoint sealed"),
    ],
)
def test_no_checkpoint_beside_an_export_is_passed_over(log: Log, kept: Any, says: str) -> None:
    words = ("--checkpoint", str(log.folder / "own"), "--checkpoint")
    assert (
        verify(log, "export", *words, log.file("empty", log.signed(log.signer, 0, merkle.EMPTY_ROOT)))[0] == 0
    )
    code, said = verify(log, "export", *words, log.file("kept", kept(log)))
    assert (code, says in said) == (1, True)


def test_what_is_read_need_not_be_a_file_that_can_be_read_twice(log: Log) -> None:
    code = "import sys; from remit.verifier import main; sys.exit(main(sys.argv[1:]))"
    for file in ("export", "proof"):
        words = ["/dev/stdin", "--key", str(log.signer.verifier), "--checkpoint", str(log.folder / "own")]
        ran = subprocess.run(
            [sys.executable, "-c", code, *words],
            input=(log.folder / file).read_bytes(),
            capture_output=True,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, b"")


def refused(log: Log, content: str | bytes) -> None:
    code, said = verify(log, Path(log.file("strange", content)).name, "--checkpoint", str(log.folder / "own"))
    assert code == 1
    assert said.startswith("remit-verify: ")
    assert (said.count("\n"), said.isascii(), said[:-1].isprintable()) == (1, True, True)


def a_line(body: str, digest: str | None = None) -> str:
    return f'{{"hash":"{digest or link(GENESIS, body)}","event":{body}}}\n'


DEEP = "[" * 100_000
STRANGE_EVENTS = (
    DEEP,
    '{"stream":"s","seq":' + "9" * 5000 + "}",
    '{"stream":"s","seq":NaN}',
    '{"stream":"s","seq":true}',
    '{"stream":"s","seq":1e999}',
    '{"stream":"s","seq":-1}',
    '{"stream":"s","seq":0}',
    '{"stream":"\\ud800","seq":1}',
    '{"stream":"\\u001b[2J\\n","seq":2}',
    '{"stream":["s"],"seq":1}',
    '{"stream":"s"}',
    "[]",
    "NaN",
    '"s"',
    "",
)


@pytest.mark.parametrize("body", STRANGE_EVENTS, ids=range(len(STRANGE_EVENTS)))
def test_no_line_of_an_export_ends_in_more_than_a_sentence(log: Log, body: str) -> None:
    refused(log, a_line(body))


@pytest.mark.parametrize("body", STRANGE_EVENTS, ids=range(len(STRANGE_EVENTS)))
def test_no_event_of_a_proof_ends_in_more_than_a_sentence(log: Log, body: str) -> None:
    event = {**log.proof["events"][0], "event": body, "previous": GENESIS, "hash": link(GENESIS, body)}
    refused(log, json.dumps({**log.proof, "events": [event]}))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "NaN",
        "9" * 5000,
        DEEP,
        '{"format":' + "[" * 200_000,
        '{"a":' * 100_000,
        '{"hash":"',
        '{"hash":"' + "\x00" * 200 + "\n",
        b'{"hash":"\xff',
        b"\x7fELF\x02\x01\x00",
        b"SQLite format 3\x00",
        "\ufeff{}",
    ],
    ids=range(13),
)
def test_no_file_that_is_something_else_ends_in_more_than_a_sentence(log: Log, content: str | bytes) -> None:
    refused(log, content)


def places(of: Any) -> Iterator[tuple[Any, Any]]:
    """Each member of what is nested, with what it is a member of."""
    for name, inner in of.items() if isinstance(of, dict) else enumerate(of):
        yield of, name
        if isinstance(inner, dict | list):
            yield from places(inner)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@given(st.data(), JSON | st.just(...))
def test_a_proof_that_has_anything_in_another_form_ends_in_a_sentence(
    log: Log, data: st.DataObject, other: Any
) -> None:
    proof = copy.deepcopy(log.proof)
    of, name = data.draw(st.sampled_from(list(places(proof))))
    if other is ...:
        del of[name]
        code, said = verify(log, Path(log.file("strange", json.dumps(proof))).name)
        assert (code, said.count("\n")) == (1, 1) or of is proof["events"], said
    elif of[name] != other:
        of[name] = other
        refused(log, json.dumps(proof))


@given(st.binary(max_size=300) | st.text(max_size=300), st.integers(0, 2000), st.booleans())
def test_an_export_that_has_anything_in_it_ends_in_a_sentence(
    log: Log, strange: bytes | str, at: int, instead: bool
) -> None:
    whole = (log.folder / "export").read_bytes()
    inserted = strange.encode() if isinstance(strange, str) else strange
    changed = whole[:at] + inserted + whole[at + (len(inserted) if instead else 0) :]
    if changed != whole:
        refused(log, changed)


def test_a_disk_that_is_full_is_told_in_a_sentence(log: Log) -> None:
    code = "import sys; from remit.verifier import main; sys.exit(main(sys.argv[1:]))"
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-c", code, str(log.folder / "proof"), "--key", str(log.signer.verifier)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (ran.returncode, ran.stderr) == (
        1,
        "remit-verify: what was found cannot be printed: no space left on device: print it elsewhere\n",
    )
