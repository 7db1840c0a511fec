"""Signed notes and checkpoints are those that other implementations write and read."""

from __future__ import annotations

from base64 import b64decode, b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server.witnessing import AT_S, WitnessKey

from remit.checkpoint import (
    BadNote,
    Checkpoint,
    Signer,
    cosigned_at,
    new_signer,
    open_checkpoint,
    read_checkpoint,
    read_note,
    read_signer,
    read_verifier,
    read_verifiers,
    read_witness,
    sign,
    signature_lines,
    split_notes,
)

#: The example in the documentation of Go's sumdb/note.
SKEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
NOTE = (
    f"{TEXT}\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6K"
    "E6RyyBwJnAM=\n"
)
ROOT = bytes(range(32))


def a_signer(name: str = "example.com/log", number: int = 1) -> Signer:
    return Signer(name=name, seed=bytes([number]) * 32)


def a_checkpoint(size: int = 5, origin: str = "example.com/log") -> Checkpoint:
    return Checkpoint(origin=origin, size=size, root=ROOT)


def test_the_published_note_is_what_we_sign() -> None:
    signer = read_signer(SKEY)
    assert str(signer.verifier) == VKEY
    assert signer.encoded() == SKEY
    assert sign(TEXT, [signer]) == NOTE


def test_the_published_note_verifies() -> None:
    verifier = read_verifier(VKEY)
    assert read_note(NOTE, [verifier]) == (TEXT, (verifier,))


@given(st.integers(0, len(NOTE) - 1), st.integers(1, 255))
def test_a_published_note_that_is_changed_anywhere_does_not(at: int, change: int) -> None:
    changed = NOTE[:at] + chr(ord(NOTE[at]) ^ change) + NOTE[at + 1 :]
    with pytest.raises(BadNote):
        read_note(changed, [read_verifier(VKEY)])


def test_the_checkpoint_of_the_specification_is_read() -> None:
    checkpoint = read_checkpoint(
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    )
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.root.hex().startswith("0ac5186a91863e8e")


def test_either_key_of_a_note_that_two_have_signed_is_enough() -> None:
    old, new, other = a_signer(number=1), a_signer(number=2), a_signer(number=3)
    note = sign(a_checkpoint().text(), [old, new])
    for signer in (old, new):
        assert open_checkpoint(note, [signer.verifier]) == a_checkpoint()
    with pytest.raises(BadNote, match="nobody whose key is known"):
        open_checkpoint(note, [other.verifier])


def test_one_log_cannot_sign_for_another() -> None:
    signer = a_signer("example.com/other")
    with pytest.raises(BadNote, match="not signed by that log"):
        open_checkpoint(sign(a_checkpoint().text(), [signer]), [signer.verifier])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com/log\n5\n",
        "example.com/log\n05\n" + "A" * 43 + "=\n",
        "example.com/log\n-5\n" + "A" * 43 + "=\n",
        "example.com/log\nfive\n" + "A" * 43 + "=\n",
        "example.com/log\n5\nAAAA\n",
        "example.com/log\n5\n!\n",
        "example.com/log\n5\n" + "A" * 43 + "=\n\nmore\n",
        "\n5\n" + "A" * 43 + "=\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(BadNote):
        read_checkpoint(text)


@pytest.mark.parametrize(
    "note",
    [
        "text\n",
        "text\n\n",
        "text\n\n— name\n",
        "text\n\n— name !!!!\n",
        "text\n\n— na+me AAAAAAAAAAAA\n",
        "text\n\n- name AAAAAAAAAAAA\n",
        "te\x00xt\n\n— name AAAAAAAAAAAA\n",
        "text\n\n" + "— name AAAAAAAAAAAA\n" * 101,
    ],
)
def test_what_is_no_note_is_refused(note: str) -> None:
    with pytest.raises(BadNote):
        read_note(note, [a_signer().verifier])


@pytest.mark.parametrize("key", ["", "name", "name+12345678+AAAA", f"x{VKEY}", VKEY.replace("c74f", "c74e")])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(BadNote):
        read_verifier(key)


def test_a_new_key_survives_being_written_down() -> None:
    signer = new_signer("example.com/log")
    assert read_signer(signer.encoded()) == signer
    assert read_verifier(str(signer.verifier)) == signer.verifier


@pytest.mark.parametrize("name", ["", "two words", "a+b", "a\nb"])
def test_a_key_that_could_not_be_told_in_a_note_is_not_made(name: str) -> None:
    with pytest.raises(BadNote):
        new_signer(name)


def test_notes_that_were_appended_to_one_file_come_apart_again() -> None:
    notes = [sign(a_checkpoint(size).text(), [a_signer(), a_signer(number=2)]) for size in (1, 2, 3)]
    assert split_notes("".join(notes)) == notes
    assert split_notes("") == []


def test_the_signatures_of_a_note_are_what_follows_its_text() -> None:
    assert signature_lines(NOTE) == NOTE[len(TEXT) + 1 :]


@pytest.mark.parametrize("kind", [4, 6])
def test_what_a_witness_signed_is_verified_with_its_time(kind: int) -> None:
    key, signer = WitnessKey(kind), a_signer()
    witness = read_witness(key.key)
    assert str(witness) == key.key
    plain = sign(a_checkpoint().text(), [signer])
    line = key.line(a_checkpoint().text())
    note = plain + line
    assert cosigned_at(note, witness) == AT_S
    assert open_checkpoint(note, [signer.verifier]) == a_checkpoint(), "to others it is a line to be ignored"
    assert signature_lines(note, witness) == line
    assert cosigned_at(plain, witness) is None
    assert cosigned_at(note, read_witness(WitnessKey(kind, seed=bytes([1] * 32)).key)) is None
    for other in (
        plain + key.line(a_checkpoint(6).text()),
        plain + key.line(a_checkpoint().text(), at_s=1 << 63),
        note.replace(plain, sign(a_checkpoint(6).text(), [signer])),
    ):
        with pytest.raises(BadNote, match=r"the signature by witness.example/w is wrong"):
            cosigned_at(other, witness)


@pytest.mark.parametrize("kind", [4, 6])
@given(at=st.integers(0), change=st.integers(1, 255))
def test_a_signature_of_a_witness_that_is_changed_anywhere_is_wrong(kind: int, at: int, change: int) -> None:
    key = WitnessKey(kind)
    name, encoded = key.line(a_checkpoint().text())[2:].split()
    signed = bytearray(b64decode(encoded))
    signed[4 + at % (len(signed) - 4)] ^= change
    note = f"{a_checkpoint().text()}\n\N{EM DASH} {name} {b64encode(signed).decode()}\n"
    with pytest.raises(BadNote, match="is wrong"):
        cosigned_at(note, read_witness(key.key))


def test_the_keys_of_logs_and_of_witnesses_are_not_taken_for_each_other() -> None:
    with pytest.raises(BadNote, match=r"is that of a log, and not of a witness"):
        read_witness(VKEY)
    for read in (read_verifier, lambda key: read_verifiers([key])):
        with pytest.raises(BadNote, match=r"is that of a witness, and not of a log"):
            read(WitnessKey().key)
    for damaged in (WitnessKey().key[:-8], WitnessKey(6).key.replace("example", "sample"), "key"):
        with pytest.raises(BadNote, match=r"is not a key, or damaged: write NAME\+ID\+KEY, as who runs"):
            read_witness(damaged)
