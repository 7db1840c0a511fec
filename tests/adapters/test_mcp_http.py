"""Over HTTP an error belongs to one call and named honestly; bodies are bounded whatever the server sends."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from aiohttp import web
from tests.adapters.sources import (
    MODERN,
    Events,
    a_call,
    appears,
    connected,
    http_source,
    refused,
    until,
)

from remit_adapters.base import AdapterError, Caller, Event, Operation
from remit_adapters.mcp import HttpTarget

Handler = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


def result(message: dict[str, Any], **fields: Any) -> web.Response:
    body = {
        "jsonrpc": "2.0",
        "id": message["id"],
        "result": {"resultType": "complete", "content": [], **fields},
    }
    return web.json_response(body)


class Scripted:
    """An HTTP server that negotiates like any other and answers `tools/call` as the test says."""

    def __init__(self, handler: Handler, era: str) -> None:
        self.handler, self.era = handler, era
        self.url = ""
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.sessions = 0
        self.gets: list[dict[str, str]] = []
        self.on_get: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
        self.ended: list[str] = []

    async def post(self, request: web.Request) -> web.StreamResponse:
        message = json.loads(await request.read())
        method = message.get("method", "")
        self.seen.append((method, {k.lower(): v for k, v in request.headers.items()}, message))
        if self.era == "refusing":
            return await self.handler(request, message)
        if method == "server/discover" and self.era == "modern":
            return result(message, supportedVersions=[MODERN], capabilities={"tools": {}})
        if method == "initialize":
            self.sessions += 1
            answer = result(message, protocolVersion="2025-11-25", capabilities={"tools": {}}, serverInfo={})
            answer.headers["Mcp-Session-Id"] = f"session-{self.sessions}"
            return answer
        if "id" not in message or "method" not in message:
            return web.Response(status=202)
        if method == "server/discover":
            return web.Response(status=400, text="Bad Request")
        return await self.handler(request, message)

    async def get(self, request: web.Request) -> web.StreamResponse:
        self.gets.append({k.lower(): v for k, v in request.headers.items()})
        return web.Response(status=405) if self.on_get is None else await self.on_get(request)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        self.ended.append(request.headers["Mcp-Session-Id"])
        return web.Response()


@asynccontextmanager
async def scripted(handler: Handler, era: str = "modern") -> AsyncGenerator[Scripted]:
    script = Scripted(handler, era)
    app = web.Application()
    app.add_routes(
        [web.post("/mcp", script.post), web.get("/mcp", script.get), web.delete("/mcp", script.delete)]
    )
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    script.url = f"http://127.0.0.1:{runner.addresses[0][1]}/mcp"
    try:
        yield script
    finally:
        with anyio.CancelScope(shield=True):
            await runner.cleanup()


async def failure(handler: Handler, era: str = "modern", **options: Any) -> AdapterError:
    """How one call ends that is answered so."""
    async with scripted(handler, era) as script, connected(HttpTarget(url=script.url), **options) as adapter:
        with pytest.raises(AdapterError) as caught:
            await adapter.run(a_call("t"))
        assert adapter.health().state == "up"
        return caught.value


def sse(*events: object, ids: bool = False, newline: str = "\n") -> bytes:
    out = ""
    for n, event in enumerate(events):
        data = event if isinstance(event, str) else json.dumps(event)
        out += (f"id: {n}{newline}" if ids else "") + f"event: message{newline}data: {data}{newline}{newline}"
    return out.encode()


async def stream(request: web.Request, *chunks: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for chunk in chunks:
        await response.write(chunk)
    return response


# What is claimed of a failure.


@pytest.mark.parametrize(
    ("status", "no_effect", "code"),
    [
        (301, True, "source_refused"),
        (307, True, "source_refused"),
        (400, True, "source_refused"),
        (401, True, "source_auth"),
        (403, True, "source_auth"),
        (404, True, "source_refused"),
        (408, False, "source_failed"),
        (409, False, "source_failed"),
        (413, True, "source_refused"),
        (429, True, "source_refused"),
        (500, False, "source_failed"),
        (502, False, "source_failed"),
        (503, False, "source_failed"),
        (504, False, "source_failed"),
    ],
)
async def test_a_status_claims_only_what_is_certain(status: int, no_effect: bool, code: str) -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        return web.Response(status=status, headers={"Location": "http://127.0.0.1:1/"}, text="<h1>proxy</h1>")

    error = await failure(answer)
    assert error.no_effect is no_effect
    assert error.code == code
    assert "proxy" not in error.message


@pytest.mark.parametrize(
    ("status", "code", "no_effect"),
    [
        (400, -32602, True),
        (404, -32601, True),
        (400, -32020, True),
        (200, -32603, False),
        (500, -32602, True),
    ],
)
async def test_a_protocol_error_counts_whatever_its_status(status: int, code: int, no_effect: bool) -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        error = {"code": code, "message": "no", "data": {"a": None}}
        return web.json_response({"jsonrpc": "2.0", "id": message["id"], "error": error}, status=status)

    error = await failure(answer)
    assert error.rpc == {"code": code, "message": "no", "data": {"a": None}}
    assert error.no_effect is no_effect


async def test_a_connection_cut_after_sending_leaves_the_call_in_doubt() -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    error = await failure(answer)
    assert error.code == "source_lost"
    assert not error.no_effect


async def test_an_answer_cut_in_the_middle_leaves_the_call_in_doubt() -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"jsonrpc"')
        assert request.transport is not None
        request.transport.abort()
        return response

    assert not (await failure(answer)).no_effect


async def test_a_stream_that_ends_without_an_answer_leaves_the_call_in_doubt() -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        return await stream(request, b": hello\n\n")

    error = await failure(answer)
    assert error.code == "source_lost"
    assert not error.no_effect


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"not json",
        b"{}",
        b'{"id":-1,"result":{}}',
        b'{"result":{}}',
        b'{"jsonrpc":"2.0","id":2}',
        b"\xff",
    ],
)
async def test_an_answer_that_is_none_leaves_the_call_in_doubt(body: bytes) -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    error = await failure(answer)
    assert error.code == "invalid_answer"
    assert not error.no_effect


async def test_a_page_for_people_is_not_an_answer() -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        return web.Response(text="<h1>log in</h1>", content_type="text/html")

    assert (await failure(answer)).code == "invalid_answer"


async def test_a_kind_of_result_that_is_unknown_is_not_an_answer() -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        return result(message, resultType="task")

    assert (await failure(answer)).code == "invalid_answer"


async def test_a_source_that_is_not_there_was_sent_nothing() -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        return result(message)

    async with scripted(answer) as script:
        url = script.url
    error = await refused(HttpTarget(url=url))
    assert error.code == "unreachable"
    assert error.no_effect


async def test_a_name_that_no_host_has_was_sent_nothing() -> None:
    error = await refused(HttpTarget(url="http://nowhere.invalid/mcp"))
    assert error.code == "unreachable"
    assert error.no_effect


async def test_credentials_that_are_refused_fail_the_start_without_a_second_try() -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        return web.Response(status=401)

    async with scripted(answer, "refusing") as script:
        error = await refused(HttpTarget(url=script.url))
        assert error.code == "source_auth"
        assert len(script.seen) == 1


# What a server may send.


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
async def test_a_stream_is_read_whatever_ends_its_lines(newline: str) -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        noise = {"jsonrpc": "2.0", "method": "notifications/message", "params": {}}
        final = {"jsonrpc": "2.0", "id": message["id"], "result": {"content": [], "n": None}}
        data = sse(noise, final, newline=newline)
        return await stream(request, *(data[i : i + 7] for i in range(0, len(data), 7)))

    async with scripted(answer) as script, connected(HttpTarget(url=script.url)) as adapter:
        assert (await adapter.run(a_call("t"))).body == {"content": [], "n": None}


async def test_an_answer_in_chunks_without_a_length_is_read() -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8"})
        await response.prepare(request)
        for byte in json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {"n": 1}}).encode():
            await response.write(bytes([byte]))
        return response

    async with scripted(answer) as script, connected(HttpTarget(url=script.url)) as adapter:
        assert (await adapter.run(a_call("t"))).body == {"n": 1}


@pytest.mark.parametrize("how", ["length", "chunks", "stream", "line"])
async def test_an_answer_larger_than_allowed_is_dropped(how: str) -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {"x": "x" * 70_000}}).encode()
        if how == "length":
            return web.Response(body=body, content_type="application/json")
        if how == "stream":
            return await stream(request, b"data: " + body + b"\n\n")
        if how == "line":
            return await stream(request, *(b"data: " + b"x" * 1000 for _ in range(100)))
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(body)
        return response

    error = await failure(answer, result_bytes_max=65_536)
    assert error.code == "answer_too_large"
    assert not error.no_effect


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_a_compressed_answer_is_refused_unread(kind: str) -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        body = gzip.compress(b"0" * 1_000_000)
        return web.Response(body=body, content_type=kind, headers={"Content-Encoding": "gzip"})

    error = await failure(answer)
    assert error.code == "invalid_answer"
    assert "compressed" in error.message


# What is sent.


async def test_every_request_of_the_stateless_revision_carries_its_headers() -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        return result(message, contents=[])

    async with scripted(answer) as script, connected(HttpTarget(url=script.url)) as adapter:
        await adapter.run(a_call("grüße"))
        await adapter.run(a_call("test://a b", operation=Operation.RESOURCE))
    call, read = ((headers, message) for _, headers, message in script.seen[1:])
    headers, message = call
    assert headers["mcp-protocol-version"] == MODERN
    assert headers["mcp-method"] == "tools/call"
    assert headers["mcp-name"] == "=?base64?Z3LDvMOfZQ==?="
    assert set(headers["accept"].split(", ")) == {"application/json", "text/event-stream"}
    assert "user-agent" not in headers
    assert "mcp-session-id" not in headers
    meta = message["params"]["_meta"]
    assert meta["io.modelcontextprotocol/protocolVersion"] == MODERN
    assert meta["io.modelcontextprotocol/clientInfo"]["name"] == "remit"
    assert meta["io.modelcontextprotocol/clientCapabilities"] == {}
    assert read[0]["mcp-name"] == "test://a b"
    assert read[1]["params"]["uri"] == "test://a b"


async def test_only_what_is_relayed_of_the_callers_capabilities_is_declared() -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        return result(message)

    caller = Caller(
        protocol_version=MODERN, capabilities={"elicitation": {"form": {}}, "sampling": {}, "x": {}}
    )
    async with (
        scripted(answer) as script,
        connected(HttpTarget(url=script.url), relay=frozenset({"elicitation"})) as adapter,
    ):
        await adapter.run(a_call("t"), caller)
        await adapter.run(a_call("t"))
    declared = [
        message["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"]
        for _, _, message in script.seen[1:]
    ]
    assert declared == [{"elicitation": {"form": {}}}, {}]


async def test_credentials_are_read_for_each_request_and_stay_with_their_host() -> None:
    async def elsewhere(request: web.Request, message: dict[str, Any]) -> web.Response:
        raise AssertionError("followed a redirect")

    async with scripted(elsewhere) as other:

        async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
            return web.Response(status=307, headers={"Location": other.url})

        tokens = iter(["one", "two", "three"])
        async with scripted(answer) as script:
            target = HttpTarget(url=script.url, headers=lambda: {"Authorization": f"Bearer {next(tokens)}"})
            async with connected(target) as adapter:
                for _ in range(2):
                    with pytest.raises(AdapterError):
                        await adapter.run(a_call("t"))
        assert [headers["authorization"] for _, headers, _ in script.seen] == [
            "Bearer one",
            "Bearer two",
            "Bearer three",
        ]
        assert other.seen == []


async def test_arguments_that_are_no_json_are_not_sent() -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        raise AssertionError("sent")

    for value in ("\ud800", 2**64, object()):
        async with scripted(answer) as script, connected(HttpTarget(url=script.url)) as adapter:
            with pytest.raises(AdapterError) as caught:
                await adapter.run(a_call("t", {"x": value}))
            assert caught.value.no_effect


async def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        return result(message)

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with scripted(answer) as script, connected(HttpTarget(url=script.url)) as adapter:
        await adapter.run(a_call("t"))


async def test_a_call_is_sent_once_even_when_its_connection_breaks() -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    for era in ("modern", "legacy"):
        async with scripted(answer, era) as script, connected(HttpTarget(url=script.url)) as adapter:
            with pytest.raises(AdapterError):
                await adapter.run(a_call("t"))
            assert [method for method, _, _ in script.seen].count("tools/call") == 1


async def test_a_stale_schema_of_headers_is_named_and_not_repeated() -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        error = {"code": -32020, "message": "Header mismatch"}
        return web.json_response({"jsonrpc": "2.0", "id": message["id"], "error": error}, status=400)

    events = Events()
    async with scripted(answer) as script, connected(HttpTarget(url=script.url), events) as adapter:
        with pytest.raises(AdapterError) as caught:
            await adapter.run(a_call("t"))
        assert caught.value.no_effect
        assert Event(kind="tools") in events.seen
        assert len(script.seen) == 2


# One call's trouble is not another's.


async def test_calls_survive_the_failure_of_another() -> None:
    begun, go_on = anyio.Event(), anyio.Event()

    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        if message["params"]["name"] == "breaks":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        begun.set()
        await go_on.wait()
        return result(message, n=1)

    for era in ("modern", "legacy"):
        begun, go_on = anyio.Event(), anyio.Event()
        replies: list[Any] = []
        async with (
            scripted(answer, era) as script,
            connected(HttpTarget(url=script.url)) as adapter,
            anyio.create_task_group() as tasks,
        ):

            async def waits(adapter: Any = adapter, replies: list[Any] = replies) -> None:
                replies.append(await adapter.run(a_call("waits")))

            tasks.start_soon(waits)
            await begun.wait()
            with pytest.raises(AdapterError):
                await adapter.run(a_call("breaks"))
            go_on.set()
        assert replies[0].body["n"] == 1


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_a_server_that_restarts_between_calls_is_simply_called_again(era: str) -> None:
    events = Events()
    async with http_source() as source, connected(HttpTarget(url=source.url), events, era=era) as adapter:
        await adapter.run(a_call("echo"))
        await source.stop()
        with pytest.raises(AdapterError) as caught:
            await adapter.run(a_call("echo"))
        assert caught.value.no_effect
        await source.start()
        assert (await adapter.run(a_call("echo"))).body["structuredContent"]
        await events.until(lambda seen: Event(kind="tools") in seen)
        assert adapter.health().state == "up"


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_a_server_killed_in_a_call_leaves_it_in_doubt(era: str, tmp_path: Path) -> None:
    async with http_source() as source, connected(HttpTarget(url=source.url), era=era) as adapter:
        async with anyio.create_task_group() as tasks:

            async def kill() -> None:
                await appears(tmp_path / "began")
                await source.stop()

            tasks.start_soon(kill)
            with pytest.raises(AdapterError) as caught:
                await adapter.run(a_call("wait", {"place": str(tmp_path)}))
        assert not caught.value.no_effect


async def test_the_stream_of_changes_comes_back_after_a_restart_and_says_that_all_may_have_changed() -> None:
    events = Events()
    async with http_source() as source, connected(HttpTarget(url=source.url), events) as adapter:
        await adapter.subscribe("test://1", True)
        await source.stop()
        await source.start()
        updated = Event(kind="resource_updated", uri="test://1")
        await events.until(lambda seen: updated in seen and Event(kind="tools") in seen)
        events.seen.clear()
        await adapter.run(a_call("change", {"what": "test://1"}))
        await events.until(lambda seen: updated in seen)


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_a_connection_serves_again_after_a_streamed_answer(era: str) -> None:
    ports: set[Any] = set()

    async def answer(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername"))
        response = await stream(request, sse({"jsonrpc": "2.0", "id": message["id"], "result": {}}))
        await anyio.lowlevel.checkpoint()  # the end of the stream is a message of its own
        await response.write_eof()
        return response

    async with scripted(answer, era) as script, connected(HttpTarget(url=script.url)) as adapter:
        for _ in range(20):
            await adapter.run(a_call("t"))
    assert len(ports) <= 3


async def test_a_source_that_asks_without_end_is_given_up() -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        question = {"method": "elicitation/create", "params": {"message": "Who?"}}
        return result(message, resultType="input_required", inputRequests={"q": question})

    async def ask(method: str, params: Any) -> Any:
        return {"action": "accept"}

    caller = Caller(protocol_version="2025-11-25", capabilities={"elicitation": {}}, ask=ask)
    relay = frozenset({"elicitation"})
    async with scripted(answer) as script, connected(HttpTarget(url=script.url), relay=relay) as adapter:
        with pytest.raises(AdapterError, match="10 times"):
            await adapter.run(a_call("t"), caller)
        assert [method for method, _, _ in script.seen].count("tools/call") == 10


# Sessions of the older revisions.


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, {"error": {"code": -32600, "message": "Session not found"}}),
        (404, None),
        (400, {"error": {"code": -32000, "message": "Bad Request: No valid session ID provided"}}),
    ],
)
async def test_a_forgotten_session_is_made_again_and_the_unread_call_sent_again(
    status: int, body: Any
) -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        if request.headers["Mcp-Session-Id"] == "session-1":
            if body is None:
                return web.Response(status=status)
            return web.json_response({"jsonrpc": "2.0", "id": None, **body}, status=status)
        return result(message, n=1)

    async with scripted(answer, "legacy") as script, connected(HttpTarget(url=script.url)) as adapter:
        assert (await adapter.run(a_call("t"))).body["n"] == 1
        assert script.sessions == 2
        assert adapter.health().connects == 2


async def test_a_server_that_forgets_every_session_does_not_keep_us_busy() -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        return web.Response(status=404)

    async with scripted(answer, "legacy") as script, connected(HttpTarget(url=script.url)) as adapter:
        with pytest.raises(AdapterError, match="keeps forgetting") as caught:
            await adapter.run(a_call("t"))
        assert caught.value.no_effect
        assert [method for method, _, _ in script.seen].count("tools/call") == 2


async def test_a_session_is_ended_when_we_leave() -> None:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.Response:
        return result(message)

    async with scripted(answer, "legacy") as script:
        async with connected(HttpTarget(url=script.url)) as adapter:
            await adapter.run(a_call("t"))
        assert script.ended == ["session-1"]


async def test_a_stream_that_the_server_interrupts_is_resumed_and_not_repeated() -> None:
    waiting: dict[str, Any] = {}

    async def answer(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        waiting.update(message)
        return await stream(request, b"id: e1\nretry: 10\ndata:\n\n")

    async def resume(request: web.Request) -> web.StreamResponse:
        if "Last-Event-ID" not in request.headers:
            return web.Response(status=405)
        if request.headers["Last-Event-ID"] == "e1":
            return await stream(request, b"id: e2\ndata:\n\n")
        final = {"jsonrpc": "2.0", "id": waiting["id"], "result": {"n": 1}}
        return await stream(request, sse(final))

    async with scripted(answer, "legacy") as script, connected(HttpTarget(url=script.url)) as adapter:
        script.on_get = resume
        assert (await adapter.run(a_call("t"))).body == {"n": 1}
        assert [method for method, _, _ in script.seen].count("tools/call") == 1


async def test_a_question_on_the_stream_of_its_own_reaches_the_only_caller_there_is() -> None:
    """Some servers ask on the stream that belongs to no request."""
    asked, answered = anyio.Event(), anyio.Event()

    async def answer(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        asked.set()
        await answered.wait()
        return result(message, n=1)

    async def listening(request: web.Request) -> web.StreamResponse:
        response = await stream(request, b": open\n\n")
        await asked.wait()
        question = {
            "jsonrpc": "2.0",
            "id": "q",
            "method": "elicitation/create",
            "params": {"message": "Who?"},
        }
        await response.write(sse(question))
        await answered.wait()
        return response

    async def ask(method: str, params: Any) -> Any:
        return {"action": "accept", "content": {"name": "Ada"}}

    async with scripted(answer, "legacy") as script:
        script.on_get = listening
        target = HttpTarget(url=script.url)
        async with (
            connected(target, relay=frozenset({"elicitation"})) as adapter,
            anyio.create_task_group() as tasks,
        ):

            async def notice() -> None:
                await until(lambda: any(message.get("id") == "q" for _, _, message in script.seen))
                answered.set()

            tasks.start_soon(notice)
            reply = await adapter.run(a_call("t"), Caller(capabilities={"elicitation": {}}, ask=ask))
        assert reply.body["n"] == 1
    heard = next(message for _, _, message in script.seen if message.get("id") == "q")
    assert heard["result"] == {"action": "accept", "content": {"name": "Ada"}}
