"""The short way and the SDK's way answer alike: the same requests, once plain, once with a progress token.

A progress token is what only the SDK's server handles, so it sends an otherwise equal request the long way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from tests.interop import running
from tests.interop.running import FIXTURE, Server, remit_in_front_of, serving

VERSION = "2026-07-28"
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": VERSION,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
}
POLICY = """
p, agent:tester, interop, fixture.test_error_handling, execute, 1 == 1, deny
p, user:tester, interop, fixture.test_audio_content, recommend, 1 == 1, allow
p, agent:tester, interop, fixture.test_audio_content, execute, 1 == 1, deny
"""

CASES: list[tuple[str, dict[str, Any]]] = [
    ("a plain answer", {"name": "fixture.test_simple_text"}),
    ("empty arguments", {"name": "fixture.test_simple_text", "arguments": {}}),
    ("several kinds of content", {"name": "fixture.test_multiple_content_types", "arguments": {}}),
    ("an image", {"name": "fixture.test_image_content", "arguments": {}}),
    ("a refusal", {"name": "fixture.test_error_handling", "arguments": {}}),
    ("arguments that do not fit", {"name": "fixture.test_simple_text", "arguments": {"surprise": 1}}),
    ("an unknown tool", {"name": "fixture.no_such_tool", "arguments": {}}),
    ("a tool of Remit's own", {"name": "remit.explain", "arguments": {"tool": "fixture.test_simple_text"}}),
    ("a claim", {"name": "fixture.test_simple_text", "_meta": {"dev.remit/claim": {"goal": "to test"}}}),
    ("a claim that is none", {"name": "fixture.test_simple_text", "_meta": {"dev.remit/claim": "no"}}),
    ("arguments that are no object", {"name": "fixture.test_simple_text", "arguments": [1]}),
    ("a member that is not known", {"name": "fixture.test_simple_text", "sudo": True}),
    ("no name", {"arguments": {}}),
]


@pytest.fixture(scope="module")
def remit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("short-way")
    with (
        pytest.MonkeyPatch.context() as patch,
        serving([*FIXTURE, "--http", "127.0.0.1:0"], folder) as url,
    ):
        patch.setattr(running, "POLICY", running.POLICY + POLICY)
        with remit_in_front_of({"fixture": {"kind": "mcp", "url": url}}, folder / "remit") as server:
            yield server


def post(server: Server, params: dict[str, Any], **headers: str | None) -> httpx2.Response:
    name = str(params.get("name", ""))
    sent = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": VERSION,
        "Mcp-Method": "tools/call",
        "Mcp-Name": name,
        **server.headers,
        **{key.replace("_", "-"): value for key, value in headers.items()},
    }
    request = {"jsonrpc": "2.0", "id": "one", "method": "tools/call", "params": params}
    return httpx2.post(
        server.url, json=request, headers={key: value for key, value in sent.items() if value is not None}
    )


def the_same(response: httpx2.Response) -> tuple[int, Any]:
    """What must be equal: status and answer, but for ids, times and where the record of the call is."""
    text = re.sub(r'"event":"[^"]+"', '"event":"PLACE"', response.text)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "ID", text)
    return response.status_code, json.loads(re.sub(r"\d{4}-\d\d-\d\dT[0-9:]+Z", "TIME", text) or "null")


@pytest.mark.parametrize(("params"), [case[1] for case in CASES], ids=[case[0] for case in CASES])
def test_both_ways_answer_alike(remit: Server, params: dict[str, Any]) -> None:
    meta = {**ENVELOPE, **params.get("_meta", {})}
    short = post(remit, {**params, "_meta": meta})
    long = post(remit, {**params, "_meta": {**meta, "progressToken": "p"}})
    assert the_same(short) == the_same(long)


@pytest.mark.parametrize(
    "headers",
    [
        {"Mcp_Name": "fixture.other"},
        {"Mcp_Name": None},
        {"Mcp_Method": "tools/list"},
        {"Mcp_Method": None},
        {"MCP_Protocol_Version": "2027-01-01"},
        {"Accept": "application/json"},
        {"Accept": None},
    ],
    ids=str,
)
def test_headers_are_judged_alike(remit: Server, headers: dict[str, str | None]) -> None:
    params = {"name": "fixture.test_simple_text", "arguments": {}}
    short = post(remit, {**params, "_meta": ENVELOPE}, **headers)
    long = post(remit, {**params, "_meta": {**ENVELOPE, "progressToken": "p"}}, **headers)
    assert the_same(short)[0] == the_same(long)[0]
    if short.status_code != 406:
        assert the_same(short) == the_same(long)


@pytest.mark.parametrize("missing", sorted(ENVELOPE))
def test_an_envelope_without_a_key_is_judged_alike(remit: Server, missing: str) -> None:
    meta = {key: value for key, value in ENVELOPE.items() if key != missing}
    params = {"name": "fixture.test_simple_text", "arguments": {}}
    short = post(remit, {**params, "_meta": meta})
    long = post(remit, {**params, "_meta": {**meta, "progressToken": "p"}})
    assert the_same(short) == the_same(long)
