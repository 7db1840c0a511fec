"""Reads the bytes of one JSON-RPC message, or says in one sentence why not.

Every JSON library in common use keeps the last of two equal member names, and some read `NaN` or round
large integers. Two readers of such bytes may see two different calls, so a gateway that decides on one
reading must refuse them: what `decode` accepts has exactly one meaning (I-JSON, RFC 7493 §2), within
limits that bound the work of everything behind it.

It knows no methods and no schemas, keeps no state, and never quotes what it refuses.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, cast

import orjson

PARSE_ERROR: Final = -32700
"""The bytes have no single meaning as JSON (JSON-RPC 2.0 §5.1)."""
INVALID_REQUEST: Final = -32600
"""The bytes are JSON, but over a limit or not one JSON-RPC message (JSON-RPC 2.0 §5.1)."""

INTEGER_MAX: Final = 2**53 - 1
"""The largest magnitude of a number: up to here, integers survive every JSON reader (RFC 7493 §2.2)."""

Kind: TypeAlias = Literal["request", "notification", "response"]


class Malformed(Exception):
    """The message is refused. Answer with `code` and `message`: they hold nothing the sender sent."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How large a message may be. All are inclusive."""

    bytes_max: int = 1024 * 1024
    #: Nested arrays and objects; `[]` has depth 1.
    depth_max: int = 32
    #: Object members, counted over the whole message.
    keys_max: int = 2_000
    #: Items of a single array.
    items_max: int = 10_000
    #: Characters of a single string or member name, after escapes are read.
    string_max: int = 256 * 1024


DEFAULT: Final = Limits()

# Possessive, so it is linear: a string never gives back what it has taken.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
_ESCAPED_COLON: Final = re.compile(rb"\\u003[aA]")

_REQUEST: Final = frozenset({"jsonrpc", "id", "method", "params"})
_RESULT: Final = frozenset({"jsonrpc", "id", "result"})
_FAILURE: Final = frozenset({"jsonrpc", "id", "error"})


def decode(data: bytes, limits: Limits = DEFAULT) -> Any:
    """Return the JSON value that `data` means to every reader.

    Raises `Malformed`: `PARSE_ERROR` when readers could disagree (encoding, syntax, duplicate names,
    numbers), `INVALID_REQUEST` when a limit is passed.
    """
    if len(data) > limits.bytes_max:
        raise Malformed(INVALID_REQUEST, f"The message is larger than {limits.bytes_max} bytes.")
    try:
        # Already refuses a byte order mark, bad UTF-8, lone surrogates, NaN, Infinity, 1e999, trailing
        # bytes and more than 1,024 levels.
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        # `from None`, here and below: those errors quote what they refuse.
        if "depth" in error.msg:
            raise _too_deep(limits) from None
        raise Malformed(PARSE_ERROR, f"The message is not valid JSON in UTF-8: {error.msg}.") from None
    keys = _measure(value, limits, long_strings=len(data) > limits.string_max)
    try:
        again = orjson.dumps(value, option=orjson.OPT_STRICT_INTEGER)
    except orjson.JSONEncodeError:
        raise _inexact() from None
    # Each member costs one colon, and re-encoding keeps the colons inside strings: so the counts differ
    # exactly when a member was dropped, unless a string spelled a colon as an escape.
    if b"\\u003" in data and _ESCAPED_COLON.search(data):
        dropped = _STRING.sub(b"", data).count(b":") != keys
    else:
        dropped = again.count(b":") != data.count(b":")
    if dropped:
        raise Malformed(PARSE_ERROR, "An object has the same member name twice; send each name once.")
    return value


def _measure(value: Any, limits: Limits, *, long_strings: bool) -> int:
    """Return the number of members. Goes level by level, so deep input costs no stack."""
    number_max = float(INTEGER_MAX)
    keys = depth = 0
    level: list[Any] = [value]
    while level:
        if depth == limits.depth_max and any(type(node) is dict or type(node) is list for node in level):
            raise _too_deep(limits)
        below: list[Any] = []
        for node in level:
            kind = type(node)  # pyright: ignore[reportUnknownVariableType] - a JSON value is any of six types
            if kind is str:
                if long_strings and len(node) > limits.string_max:
                    raise _too_long(limits)
            elif kind is dict:
                keys += len(node)
                if keys > limits.keys_max:
                    raise Malformed(INVALID_REQUEST, f"The message has more than {limits.keys_max} members.")
                if long_strings and any(len(name) > limits.string_max for name in node):
                    raise _too_long(limits)
                below += node.values()
            elif kind is list:
                if len(node) > limits.items_max:
                    raise Malformed(INVALID_REQUEST, f"An array has more than {limits.items_max} items.")
                below += node
            elif kind is float and not -number_max <= node <= number_max:
                raise _inexact()
        level = below
        depth += 1
    return keys


def _too_deep(limits: Limits) -> Malformed:
    return Malformed(INVALID_REQUEST, f"The message is nested deeper than {limits.depth_max} levels.")


def _too_long(limits: Limits) -> Malformed:
    return Malformed(INVALID_REQUEST, f"A string is longer than {limits.string_max} characters.")


def _inexact() -> Malformed:
    return Malformed(
        PARSE_ERROR, f"A number is beyond ±{INTEGER_MAX}, where readers round it; send it as a string."
    )


def envelope(message: Any) -> Kind:
    """Say which kind of JSON-RPC 2.0 message this is; batches are not part of MCP.

    Raises `Malformed` for anything else: members that JSON-RPC does not name, also those that differ from
    one it names only in case, are refused and not ignored, since the next reader may not ignore them.
    """
    if type(message) is not dict:
        raise Malformed(INVALID_REQUEST, "Send one JSON-RPC message, a JSON object; a batch is not accepted.")
    members = cast("dict[str, Any]", message)
    if members.get("jsonrpc") != "2.0":
        raise Malformed(INVALID_REQUEST, 'The member jsonrpc must be "2.0".')
    if "method" not in members:
        return _response(members)
    if not members.keys() <= _REQUEST:
        raise Malformed(
            INVALID_REQUEST,
            "A request has the members jsonrpc, id, method and params, so spelled, and no other.",
        )
    if type(members["method"]) is not str:
        raise Malformed(INVALID_REQUEST, "The member method must be a string.")
    if type(members.get("params", members)) is not dict:
        raise Malformed(INVALID_REQUEST, "The member params must be an object, or be left out.")
    if "id" not in members:
        return "notification"
    if type(members["id"]) not in (str, int):
        raise Malformed(INVALID_REQUEST, "The member id must be a string or an integer.")
    return "request"


def id_in(data: bytes, limits: Limits = DEFAULT) -> str | int | None:
    """The id with which to answer bytes that are refused; None where it cannot be told for certain.

    Nothing else in them is looked at, but whether they are a response: then the id is one of ours.
    """
    if len(data) > limits.bytes_max:
        return None
    try:
        if type(orjson.loads(data)) is not dict:
            return None
        # Keeps both of two equal names. Of a number that is too large, enough to tell that it is.
        members = json.loads(data, object_pairs_hook=tuple, parse_int=lambda digits: int(digits[:20]))
    except (ValueError, RecursionError):
        return None
    pairs = cast("tuple[tuple[str, Any], ...]", members)
    names = [name for name, _ in pairs]
    if names.count("id") != 1 or ("method" not in names and not {"result", "error"}.isdisjoint(names)):
        return None
    found = pairs[names.index("id")][1]
    if type(found) is str:
        return found if len(found) <= limits.string_max else None
    return found if type(found) is int and -INTEGER_MAX <= found <= INTEGER_MAX else None


def _response(members: dict[str, Any]) -> Kind:
    """Check an answer to a request of ours, as clients of the 2025 revisions send them."""
    answers = type(members.get("id")) in (str, int)
    if "error" in members:
        # Without an id, or with null: the client could not read ours.
        sound = members.keys() <= _FAILURE and (answers or members.get("id") is None)
        sound = sound and _is_error(members["error"])
    else:
        sound = members.keys() <= _RESULT and answers and type(members.get("result")) is dict
    if not sound:
        raise Malformed(INVALID_REQUEST, "The message is neither a request with a method nor a response.")
    return "response"


def _is_error(error: Any) -> bool:
    return (
        type(error) is dict
        and cast("dict[str, Any]", error).keys() <= {"code", "message", "data"}
        and type(cast("dict[str, Any]", error).get("code")) is int
        and type(cast("dict[str, Any]", error).get("message")) is str
    )
