"""Signed notes and checkpoints are those that other implementations write and read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.checkpoint import (
    BadNote,
    Checkpoint,
    Signer,
    new_signer,
    open_checkpoint,
    read_checkpoint,
    read_note,
    read_signer,
    read_verifier,
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
