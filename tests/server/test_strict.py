"""What the strict decoder accepts has one meaning; what it refuses, it refuses in a sentence."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz import fuzz_strict

from remit.front.strict import (
    INTEGER_MAX,
    INVALID_REQUEST,
    PARSE_ERROR,
    Limits,
    Malformed,
    decode,
    envelope,
)


def refusal(data: bytes, limits: Limits | None = None) -> Malformed:
    with pytest.raises(Malformed) as caught:
        decode(data, limits or Limits())
    return caught.value


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not valid JSON"),
        (b"   ", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1,]", "not valid JSON"),
        (b"{'a':1}", "not valid JSON"),
        (b'{"a":1}{"b":2}', "not valid JSON"),
        (b'{"a":1}\x00', "not valid JSON"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ("{}".encode("utf-16"), "not valid JSON"),
        (b'"\xff"', "not valid JSON"),
        (b'"\xc0\xaf"', "not valid JSON"),
        (b'"\xed\xa0\x80"', "not valid JSON"),
        (b'"\\ud800"', "not valid JSON"),
        (b'"\\udc00\\ud800"', "not valid JSON"),
        (b'"a\nb"', "not valid JSON"),
        (b"NaN", "not valid JSON"),
        (b"[Infinity]", "not valid JSON"),
        (b'{"a":-Infinity}', "not valid JSON"),
        (b'{"a":1e999}', "not valid JSON"),
        (b"[-1e999]", "not valid JSON"),
        (b"1" * 400, "not valid JSON"),
        (b"01", "not valid JSON"),
        (b"0x10", "not valid JSON"),
        (b"// c\n1", "not valid JSON"),
        (b"9007199254740992", "number is beyond"),
        (b"-9007199254740992", "number is beyond"),
        (b'{"a":[18446744073709551615]}', "number is beyond"),
        (b"18446744073709551616", "number is beyond"),
        (b"9007199254740992.0", "number is beyond"),
        (b"1e16", "number is beyond"),
        (b"-1e300", "number is beyond"),
        (b'{"a":1,"a":1}', "same member name twice"),
        (b'{"a":1,"b":2,"a":3}', "same member name twice"),
        (b'{"a":{"b":[{"c":1,"c":1}]}}', "same member name twice"),
        (b'{"a":1,"\\u0061":2}', "same member name twice"),
        (b'{"":1,"":2}', "same member name twice"),
        # An escaped colon elsewhere must not make up for the dropped member.
        (b'{"a":1,"a":"\\u003a"}', "same member name twice"),
        (b'{"a":1,"a":1,"b":"\\u003A"}', "same member name twice"),
        (b'{"\\u003a":1,":":2}', "same member name twice"),
    ],
)
def test_bytes_that_two_readers_could_read_differently_are_a_parse_error(data: bytes, words: str):
    error = refusal(data)
    assert error.code == PARSE_ERROR
    assert words in error.message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[" * 33 + b"]" * 33, "deeper than 32"),
        (b"[" * 33 + b"1" + b"]" * 33, "deeper than 32"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, "deeper than 32"),
        (b"[" * 5_000 + b"]" * 5_000, "deeper than 32"),
        (b"[" * 100_000, "deeper than 32"),
        (orjson.dumps({str(n): 1 for n in range(2_001)}), "more than 2000 members"),
        (orjson.dumps([{"a": 1}] * 2_001), "more than 2000 members"),
        (orjson.dumps([0] * 10_001), "more than 10000 items"),
        (orjson.dumps("a" * (256 * 1024 + 1)), "longer than 262144 characters"),
        (orjson.dumps({"a" * (256 * 1024 + 1): 1}), "longer than 262144 characters"),
        (b" " * 1024 * 1024 + b"1", "larger than 1048576 bytes"),
    ],
)
def test_what_is_over_a_limit_is_refused_and_the_limit_is_named(data: bytes, words: str):
    error = refusal(data)
    assert error.code == INVALID_REQUEST
    assert words in error.message


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 32 + b"]" * 32,
        b"[" * 31 + b'{"a":1}' + b"]" * 31,
        orjson.dumps({str(n): 1 for n in range(2_000)}),
        orjson.dumps([0] * 10_000),
        orjson.dumps("a" * (256 * 1024)),
        orjson.dumps("é" * (256 * 1024)),
        b" " * (1024 * 1024 - 1) + b"1",
        b"9007199254740991",
        b"-9007199254740991",
        b"9007199254740991.0",
        b"9e15",
        b"1e-999",
        b"-0",
        b'"\\ud83d\\ude00 \\u003a \\u0000"',
        b'{"a":{"a":{"a":1}},"A":2}',
        b' \t\r\n{"a" : 1 }\n',
        '{"e\u0301":1,"é":2}'.encode(),
        b"true",
        b'{"a:b":"c:d","e\\u003af":"\\\\u003a"}',
    ],
)
def test_what_is_within_the_limits_and_unambiguous_is_read_as_any_reader_reads_it(data: bytes):
    assert decode(data) == json.loads(data)


def test_a_refusal_quotes_nothing_of_what_was_sent():
    for data in (b'{"hunter2":1,"hunter2":2}', b'{"hunter2":NaN}', b'["hunter2"', b'"hunter2\xff"'):
        assert "hunter2" not in refusal(data).message


def test_limits_can_be_set():
    assert "deeper than 1 " in refusal(b"[[1]]", Limits(depth_max=1)).message
    assert "more than 1 members" in refusal(b'{"a":1,"b":2}', Limits(keys_max=1)).message
    assert "more than 1 items" in refusal(b"[1,2]", Limits(items_max=1)).message
    assert "longer than 1 " in refusal(b'"ab"', Limits(string_max=1)).message
    assert "larger than 1 " in refusal(b"12", Limits(bytes_max=1)).message
    assert decode(b"[1]", Limits(depth_max=1, items_max=1)) == [1]


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-INTEGER_MAX, INTEGER_MAX)
    | st.floats(-INTEGER_MAX, INTEGER_MAX)
    | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=5),
    max_leaves=30,
)


@given(JSON_VALUES, st.booleans(), st.sampled_from((None, 1)))
def test_every_sound_value_survives_in_every_spelling(value: Any, escaped: bool, indent: int | None):
    text = json.dumps(value, ensure_ascii=escaped, indent=indent)
    assert decode(text.encode()) == json.loads(text)


@given(st.binary(max_size=200))
def test_what_is_accepted_the_usual_reader_accepts_with_the_same_value(data: bytes):
    try:
        value = decode(data)
    except Malformed:
        return
    assert orjson.dumps(value) == orjson.dumps(orjson.loads(data))


@settings(max_examples=300)
@given(st.randoms(use_true_random=False))
def test_the_decoder_and_a_plain_reference_agree_on_mangled_messages(random_: random.Random):
    data = fuzz_strict.mutated(random_)
    assert fuzz_strict.disagreement(data) is None, data


@pytest.mark.parametrize(
    "data",
    [
        b"x" * (5 * 1024 * 1024),
        b"[" * 5_000 + b"]" * 5_000,
        b"[" * 500_000,
        b'{"a":' * 5_000,
        b"{" + b",".join(b'"%d":1' % n for n in range(80_000)) + b"}",
        b"[" + b",".join([b"[" + b",".join([b"1"] * 9_999) + b"]"] * 52) + b",1e300]",
        b'["' + b'","'.join([b"\\u003a" * 30_000] * 5) + b'",{"a":1,"a":1}]',
        b'"' + b"\\" * 1_000_000,
        b'"' + b'\\"' * 500_000 + b'\\u003a"',
    ],
    ids=["5 MiB", "deep", "open", "deep objects", "80k keys", "500k numbers", "colons", "slashes", "quotes"],
)
@pytest.mark.timeout(20)  # work that grows faster than the input does not end in time
def test_hostile_input_is_refused_for_little_work(data: bytes):
    refusal(data)


REQUEST = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {}}


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (REQUEST, "request"),
        ({"jsonrpc": "2.0", "id": "a", "method": "ping"}, "request"),
        ({"jsonrpc": "2.0", "id": 0, "method": "ping"}, "request"),
        ({"jsonrpc": "2.0", "method": "notifications/initialized"}, "notification"),
        ({"jsonrpc": "2.0", "id": 1, "result": {}}, "response"),
        ({"jsonrpc": "2.0", "id": 1, "error": {"code": -1, "message": "no", "data": [1]}}, "response"),
        ({"jsonrpc": "2.0", "id": None, "error": {"code": -1, "message": "no"}}, "response"),
        ({"jsonrpc": "2.0", "error": {"code": -1, "message": "no"}}, "response"),
    ],
)
def test_the_three_kinds_of_message_are_told_apart(message: Any, kind: str):
    assert envelope(message) == kind


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in REQUEST.items() if key != name}


@pytest.mark.parametrize(
    "message",
    [
        [],
        [REQUEST],
        None,
        1,
        "ping",
        {},
        without("jsonrpc"),
        without("method"),
        {**REQUEST, "jsonrpc": "1.0"},
        {**REQUEST, "jsonrpc": 2.0},
        {**REQUEST, "id": None},
        {**REQUEST, "id": True},
        {**REQUEST, "id": 1.0},
        {**REQUEST, "id": []},
        {**REQUEST, "method": 1},
        {**REQUEST, "method": None},
        {**REQUEST, "params": None},
        {**REQUEST, "params": []},
        {**REQUEST, "params": "x"},
        {**REQUEST, "Method": "tools/list"},
        {**REQUEST, "METHOD": "tools/list"},
        {**REQUEST, "param\u017f": {}},
        {**REQUEST, "extra": 1},
        {**REQUEST, "result": {}},
        {**REQUEST, "error": {"code": 1, "message": ""}},
        {**without("method"), "Method": "tools/call"},
        {"jsonrpc": "2.0", "id": 1, "result": 1},
        {"jsonrpc": "2.0", "id": 1, "result": None},
        {"jsonrpc": "2.0", "result": {}},
        {"jsonrpc": "2.0", "id": True, "result": {}},
        {"jsonrpc": "2.0", "id": 1, "result": {}, "extra": 1},
        {"jsonrpc": "2.0", "id": 1, "result": {}, "error": {"code": 1, "message": ""}},
        {"jsonrpc": "2.0", "id": 1.5, "error": {"code": 1, "message": ""}},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": "1", "message": ""}},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": True, "message": ""}},
        {"jsonrpc": "2.0", "id": 1, "error": {"message": ""}},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": "", "more": 1}},
        {"jsonrpc": "2.0", "id": 1, "error": "x"},
    ],
)
def test_what_is_not_one_message_is_an_invalid_request(message: Any):
    with pytest.raises(Malformed) as caught:
        envelope(message)
    assert caught.value.code == INVALID_REQUEST
    assert caught.value.message.endswith(".")


def test_the_fuzzer_finds_a_decoder_that_keeps_the_last_of_two_members(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fuzz_strict, "decode", lambda data, limits: _last_wins(data))
    random_ = random.Random(0)
    assert any(fuzz_strict.disagreement(fuzz_strict.mutated(random_)) for _ in range(500))


def _last_wins(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        raise Malformed(PARSE_ERROR, "") from None


def test_the_fuzzer_runs_as_a_command():
    command = [sys.executable, "-m", "tests.fuzz.fuzz_strict", "--runs", "200", "--seed", "1"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (found.returncode, found.stdout) == (0, "200 inputs, no disagreement\n"), found.stderr
