"""Searches for bytes on which the strict decoder and a slow, plain reference disagree, or that break it.

    python -m tests.fuzz.fuzz_strict --runs 100000 [--seed N]     random mutations, needs nothing
    python -m tests.fuzz.fuzz_strict --atheris [libFuzzer flags]  guided by coverage, needs atheris

A finding is printed as a Python bytes literal, ready for a test, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import sys
from typing import Any

from remit.front.strict import DEFAULT, INTEGER_MAX, Limits, Malformed, decode, envelope, id_in

SEEDS = (
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a.b","arguments":{"x":[1,2.5,null]}}}',
    b'{"jsonrpc":"2.0","id":"\\u003a","method":"ping"}',
    b'{"a":{"a":1,"\\u0061b":-0.0},"b":[{"a":1},{"a":2}]}',
    b" [9007199254740991, -9007199254740991, 1e15, 1E-7, true, false] ",
    b'["\\ud83d\\ude00", "\xf0\x9f\x98\x80", "a:b\\":\\\\", "\\\\u003a"]',
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
)
NUMBERS = (
    b"0",
    b"-1.5",
    b"3e2",
    b"9007199254740991",
    b"9007199254740992",
    b"1e16",
    b"-0",
    b"9007199254740991.4",
)
TOKENS = (
    b'"a":1,',
    b'"\\u0061":2,',
    b'"\\u003a":3,',
    b'{"a":0,"a":0}',
    b"9007199254740992",
    b"-9007199254740992.0",
    b"1e16",
    b"1e999",
    b"18446744073709551616",
    b"NaN",
    b"-Infinity",
    b"\\ud800",
    b"\\udc00",
    b"\\u003A",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\xed\xa0\x80",
    b"[" * 40,
    b"]" * 40,
    b'{"k":' * 20,
    b"}" * 20,
    b":",
    b",",
    b'"',
    b"\\",
    b"\x00",
    b" ",
    b"null",
)


class _Refused(Exception):
    pass


def reference(data: bytes, limits: Limits = DEFAULT) -> Any:
    """The same promise as `decode`, kept by the standard library and no cleverness."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise _Refused
        return dict(pairs)

    def refuse(_: str) -> None:
        raise _Refused

    def look(value: Any, depth: int) -> int:
        """Return the number of members within `value`, whose parent is at `depth`."""
        if isinstance(value, str):
            value.encode()
            if len(value) > limits.string_max:
                raise _Refused
            return 0
        if isinstance(value, bool) or value is None:
            return 0
        if isinstance(value, (int, float)):
            if not math.isfinite(value) or abs(value) > INTEGER_MAX:
                raise _Refused
            return 0
        if depth == limits.depth_max or (isinstance(value, list) and len(value) > limits.items_max):
            raise _Refused
        if isinstance(value, list):
            return sum(look(item, depth + 1) for item in value)
        return sum(1 + look(name, depth + 1) + look(item, depth + 1) for name, item in value.items())

    if len(data) > limits.bytes_max or data.startswith(b"\xef\xbb\xbf"):
        raise _Refused
    try:
        value = json.loads(data.decode(), object_pairs_hook=members, parse_constant=refuse)
        if look(value, 0) > limits.keys_max:
            raise _Refused
    except (ValueError, RecursionError):
        raise _Refused from None
    return value


def disagreement(data: bytes, limits: Limits = DEFAULT) -> str | None:
    """Say how the decoder and the reference differ on `data`; `None` when they do not."""
    told = id_in(data, limits)
    if told is not None and decode(json.dumps(told).encode(), limits) != told:
        return f"an answer would have the id {told!r}"
    try:
        expected = ("accepted", json.dumps(reference(data, limits)))
    except _Refused:
        expected = ("refused", "")
    try:
        value = decode(data, limits)
        found = ("accepted", json.dumps(value))
    except Malformed as error:
        return None if expected[0] == "refused" else f"refused although sound: {error.message}"
    kind = ""
    with contextlib.suppress(Malformed):
        kind = envelope(value)
    if kind == "request" and told != value["id"]:
        return f"a request with the id {value['id']!r} would be answered with {told!r}"
    return None if found == expected else f"decoded to {found}, the reference says {expected}"


def written(random_: random.Random, depth: int = 0) -> bytes:
    """JSON text that is sound but for what it may hold: a member name twice, a number too large."""
    match random_.randrange(6 if depth < 5 else 4):
        case 0:
            return random_.choice(NUMBERS)
        case 1:
            return random_.choice((b"null", b"true", b"false"))
        case 2 | 3:
            return spelled(
                "".join(random_.choices('ab:"\\/\n\u00e9\U0001f600', k=random_.randrange(5))), random_
            )
        case 4:
            items = (written(random_, depth + 1) for _ in range(random_.randrange(4)))
            return b"[" + b" , ".join(items) + b"]"
        case _:
            # A small alphabet: names meet each other often, in all spellings.
            names = (
                "".join(random_.choices("ab:", k=random_.randint(1, 3))) for _ in range(random_.randrange(4))
            )
            pairs = (spelled(name, random_) + b": " + written(random_, depth + 1) for name in names)
            return b"{" + b",".join(pairs) + b"}"


def spelled(text: str, random_: random.Random) -> bytes:
    """A JSON string for `text`: one of the many."""
    short = {'"': '\\"', "\\": "\\\\", "/": "\\/", "\n": "\\n"}
    out = ""
    for char in text:
        if random_.random() < 0.3:
            units = char.encode("utf-16-be").hex()
            escape = "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
            out += random_.choice((escape, escape.upper().replace("\\U", "\\u")))
        else:
            out += short.get(char, char) if char != "/" else random_.choice(("/", "\\/"))
    return f'"{out}"'.encode()


def mutated(random_: random.Random) -> bytes:
    if random_.random() < 0.5:
        return written(random_)
    data = bytearray(random_.choice((*SEEDS, written(random_))))
    for _ in range(random_.randint(1, 6)):
        at = random_.randint(0, len(data))
        match random_.randrange(6):
            case 0:
                data[at:at] = random_.choice(TOKENS)
            case 1:
                del data[at : at + random_.randint(1, 8)]
            case 2:
                data[at : at + 1] = bytes([random_.randrange(256)])
            case 3:
                start = random_.randint(0, len(data))
                data[at:at] = data[start : start + random_.randint(1, 30)]
            case 4:
                data[at : at + random_.randint(0, 4)] = random_.choice(TOKENS)
            case _:
                data[at:at] = random_.choice(SEEDS)
    return bytes(data)


def main() -> int:
    if "--atheris" in sys.argv:
        sys.argv.remove("--atheris")
        return _guided()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random_ = random.Random(options.seed)
    for _ in range(options.runs):
        data = mutated(random_)
        if difference := disagreement(data):
            print(f"{data!r}\n{difference}")
            return 1
    print(f"{options.runs} inputs, no disagreement")
    return 0


def _guided() -> int:
    import atheris  # pyright: ignore[reportMissingImports] - optional, not a dependency

    def one(data: bytes) -> None:
        if difference := disagreement(data):
            raise AssertionError(f"{data!r}: {difference}")

    atheris.instrument_all()
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
