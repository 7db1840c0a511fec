"""What is read from and written to the wire agrees with the official SDK's idea of it, for any input."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared.inbound import decode_header_value, find_invalid_x_mcp_header, validate_mcp_param_headers

from remit_adapters.mcp.headers import header_value, mirror, mirrored
from remit_adapters.mcp.sse import EventReader, TooLargeError

NAMES = st.sampled_from(["a", "b", "Region", "x y", ""])
MARKS = st.sampled_from(["A", "a", "Region", "", "no good", 7, None])


def leaf() -> st.SearchStrategy[dict[str, Any]]:
    types = st.sampled_from(["string", "integer", "boolean", "number", "object", ["string"], None])
    return st.builds(
        lambda kind, mark: {"type": kind, **mark},
        types,
        st.just({}) | st.builds(dict, **{"x-mcp-header": MARKS}),
    )


SCHEMAS = st.recursive(
    leaf(),
    lambda inner: st.builds(
        lambda keyword, child, name: {"type": "object", keyword: _hold(keyword, child, name)},
        st.sampled_from(
            ["properties", "items", "anyOf", "$defs", "not", "default", "examples", "patternProperties"]
        ),
        inner,
        NAMES,
    ),
    max_leaves=4,
)


def _hold(keyword: str, child: Any, name: str) -> Any:
    if keyword in ("properties", "$defs", "patternProperties"):
        return {name: child}
    return [child] if keyword in ("anyOf", "examples") else child


@given(st.text())
def test_any_text_survives_as_a_header(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return  # a lone surrogate is in no JSON that we accept
    value = header_value(text)
    assert value.isascii()
    assert "\n" not in value
    assert "\r" not in value
    assert decode_header_value(value) == text


@given(SCHEMAS)
def test_a_schema_is_refused_exactly_when_the_sdk_refuses_it(schema: dict[str, Any]) -> None:
    try:
        mirror(schema)
        ours = True
    except ValueError:
        ours = False
    assert ours is (find_invalid_x_mcp_header(schema) is None)


@given(
    st.dictionaries(
        st.sampled_from(["s", "i", "b", "o"]),
        st.none() | st.text() | st.integers(-(2**53) + 1, 2**53 - 1) | st.booleans() | st.just({"d": "ü"}),
    )
)
def test_what_is_mirrored_satisfies_the_sdks_server(arguments: dict[str, Any]) -> None:
    schema = {
        "type": "object",
        "properties": {
            "s": {"type": "string", "x-mcp-header": "S"},
            "i": {"type": "integer", "x-mcp-header": "I"},
            "b": {"type": "boolean", "x-mcp-header": "B"},
            "o": {"type": "object", "properties": {"d": {"type": "string", "x-mcp-header": "D"}}},
        },
    }
    headers = mirrored(mirror(schema), arguments)
    assert validate_mcp_param_headers(schema, arguments, headers) is None


def test_a_schema_nested_without_end_does_not_exhaust_the_stack() -> None:
    schema: dict[str, Any] = {"type": "string", "x-mcp-header": "A"}
    for _ in range(5_000):
        schema = {"properties": {"a": schema}}
    assert len(mirror(schema)[0][1]) == 5_000


LINES = st.lists(
    st.sampled_from(
        ["data: a", "data:b", "data", ": comment", "id: 1", "event: message", "event: other", "retry: 5", ""]
    ),
    max_size=12,
)


@given(LINES, st.sampled_from(["\n", "\r\n", "\r"]), st.lists(st.integers(1, 5), max_size=60))
def test_events_do_not_depend_on_how_bytes_are_cut(lines: list[str], newline: str, cuts: list[int]) -> None:
    data = "".join(line + newline for line in (*lines, "data: end", "")).encode()
    whole = list(EventReader(1_000).feed(data))
    reader = EventReader(1_000)
    pieces: list[bytes] = []
    for size in (*cuts, len(data)):
        pieces += reader.feed(data[:size])
        data = data[size:]
    assert pieces == whole


def test_an_event_is_what_the_standard_says() -> None:
    reader = EventReader(100)
    stream = (
        b"data: one\ndata:two\nid: 7\n\nevent: other\ndata: x\n\nretry: 1500\nid\n\ndata\n\nnothing: here\n\n"
    )
    assert list(reader.feed(stream)) == [b"one\ntwo", b""]
    assert reader.last_id == ""
    assert reader.retry_s == 1.5


@pytest.mark.parametrize("piece", [b"data: 0123456789\n", b"0123456789"])
def test_an_event_without_end_is_cut_off(piece: bytes) -> None:
    reader = EventReader(1_000)

    def read_on() -> None:
        for _ in range(1_000):
            list(reader.feed(piece))

    with pytest.raises(TooLargeError):
        read_on()


def test_importing_the_adapter_loads_no_client() -> None:
    heavy = ("mcp", "mcp_types", "aiohttp", "pydantic")
    program = f"import sys, remit_adapters.mcp; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
