"""What passes the door was meant for this server, comes from somebody known, and means one thing."""

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import orjson
import pytest
import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import CallToolRequestParams, CallToolResult
from starlette.types import Message, Receive, Scope, Send

from remit.front.guard import Guard, GuardSettings, Lockout, ProtectedResource
from remit.front.strict import Limits
from remit.identity import (
    Identify,
    IdentityUnavailable,
    KeyRecord,
    Principal,
    Unauthenticated,
    bearer,
    mint_key,
)

HOST = "127.0.0.1:8420"
GOOD = "good"
RESOURCE = ProtectedResource(
    resource="https://remit.example.com/mcp",
    authorization_servers=("https://id.example.com",),
    scopes=("remit:call",),
)
CALL = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "pay.refund", "arguments": {}}}
ALICE = Principal(tenant="acme", agent="agent:bot", user="user:alice", auth="api_key", key_id="k")


class Names:
    """Knows the bearer of `good`; everybody else guessed. Counts how often it is asked."""

    def __init__(self, principal: Principal = ALICE) -> None:
        self.principal = principal
        self.asked = 0
        self.down = False

    async def authenticate(self, headers: Mapping[str, str]) -> Principal:
        self.asked += 1
        if self.down:
            raise IdentityUnavailable("the issuer is away")
        token = bearer(headers)
        if token is None:
            raise Unauthenticated("Send a credential.")
        if token == "stale":
            raise Unauthenticated("The access token has expired.")
        if token != GOOD:
            raise Unauthenticated("The credential is not valid.", guessed=True)
        return self.principal


class Inner:
    """Stands for the MCP server: remembers what reached it."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] == "http":
            if scope["method"] == "POST":
                message = await receive()
                assert not message["more_body"]
                self.bodies.append(message["body"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"reached"})


@dataclass
class Door:
    """A guard with all around it, and a way to knock."""

    settings: GuardSettings = field(default_factory=lambda: GuardSettings(hosts=frozenset({HOST})))
    names: Names = field(default_factory=Names)
    lockout: Lockout | None = None

    def __post_init__(self) -> None:
        self.inner = Inner()
        self.guard = Guard(self.inner, settings=self.settings, authenticator=self.names, lockout=self.lockout)

    async def knock(
        self,
        body: bytes | list[bytes] | Mapping[str, Any] = CALL,
        *,
        method: str = "POST",
        path: str = "/mcp",
        token: str | None = GOOD,
        client: str = "10.0.0.1",
        extra: tuple[tuple[str, str], ...] = (),
        leaves: bool = False,
        **headers: str | None,
    ) -> "Answer":
        """Headers are given by keyword and left out when `None`; `extra` repeats one.

        A client that `leaves` is gone as soon as its body is read.
        """
        sent = {"host": HOST, "content_type": "application/json"} | headers
        if token:
            sent.setdefault("authorization", f"Bearer {token}")
        chunks = body if isinstance(body, list) else [body if isinstance(body, bytes) else orjson.dumps(body)]
        scope: Scope = {
            "type": "http",
            "method": method,
            "path": path,
            "client": (client, 1234),
            "headers": [
                (name.replace("_", "-").encode(), value.encode("latin-1"))
                for name, value in [*((n, v) for n, v in sent.items() if v is not None), *extra]
            ],
        }
        pending: list[Message] = [
            {"type": "http.request", "body": chunk, "more_body": number < len(chunks) - 1}
            for number, chunk in enumerate(chunks)
        ]
        answer = Answer()

        async def receive() -> Message:
            answer.reads += 1
            if not pending and not leaves:
                await anyio.sleep_forever()
            return pending.pop(0) if pending else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            else:
                answer.body += message["body"]

        with anyio.fail_after(5):
            await self.guard(scope, receive, send)
        return answer


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    reads: int = 0

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.body)["error"]


def with_oauth() -> Door:
    return Door(GuardSettings(hosts=frozenset({HOST}), oauth=RESOURCE))


async def test_a_sound_request_reaches_the_server_byte_for_byte_with_who_sent_it():
    door = Door()
    raw = b'{ "jsonrpc":"2.0","id":7,\n"method":"tools/call", "params":{"name":"pay.refund"}} '
    answer = await door.knock([raw[:10], raw[10:11], b"", raw[11:]])
    assert (answer.status, answer.body) == (200, b"reached")
    assert door.inner.bodies == [raw]
    assert door.inner.scopes[0]["remit.principal"] is ALICE
    assert door.inner.scopes[0]["remit.message"] == json.loads(raw)


async def test_after_the_body_the_server_hears_what_the_connection_says():
    door = Door()
    heard: list[Message] = []

    async def listening(scope: Scope, receive: Receive, send: Send) -> None:
        heard.extend([await receive(), await receive()])

    door.guard = Guard(listening, settings=door.settings, authenticator=door.names)
    await door.knock(leaves=True)
    assert [message["type"] for message in heard] == ["http.request", "http.disconnect"]


async def test_streams_and_ends_of_sessions_pass_with_who_asks():
    for method in ("GET", "DELETE"):
        door = Door()
        assert (await door.knock(b"", method=method, content_type=None)).status == 200
        assert door.inner.scopes[0]["remit.principal"] is ALICE


async def test_the_lifespan_reaches_the_server_and_websockets_do_not():
    door = Door()
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        sent.append(message)

    await door.guard({"type": "lifespan"}, receive, send)
    assert [scope["type"] for scope in door.inner.scopes] == ["lifespan"]
    await door.guard({"type": "websocket", "path": "/mcp", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close"}]
    assert len(door.inner.scopes) == 1


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example.com",
        "evil.example.com:8420",
        "127.0.0.1",
        "127.0.0.1:80",
        "127.0.0.1:8420/x?",
        "127.0.0.1:8420@evil.example.com",
        "127.0.0.1:8420.evil.example.com",
        "127.0.0.1:08420",
        "x@127.0.0.1:8420",
        "[::1]:8420",
        "localhost:8420",
        "127.1:8420",
        "127.0.0.1:8420,evil.example.com",
        "127.0.0.1:8420\u00a0",
    ],
)
async def test_only_the_listed_host_names_are_answered(host: str | None):
    door = Door()
    assert (await door.knock(host=host)).status == 421
    assert (door.names.asked, door.inner.scopes) == (0, [])


async def test_host_names_have_no_case():
    door = Door(GuardSettings(hosts=frozenset({"remit.example.com"})))
    assert (await door.knock(host="Remit.Example.COM")).status == 200


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example.com",
        "https://app.example.com.evil.com",
        "https://app.example.com:444",
        "http://app.example.com",
        "https://app.example.com/",
        "https://app.example.com, http://evil.example.com",
        "https://APP.example.com",
        f"http://{HOST}",
    ],
)
async def test_a_browser_page_of_another_origin_is_refused(origin: str):
    door = Door(GuardSettings(hosts=frozenset({HOST}), origins=frozenset({"https://app.example.com"})))
    assert (await door.knock(origin=origin)).status == 403
    assert (door.names.asked, door.inner.scopes) == (0, [])
    assert (await door.knock(origin="https://app.example.com")).status == 200


@pytest.mark.parametrize("entry", ["*", "127.0.0.1:*", "*.example.com", "null", "", "Example.com"])
def test_an_allowlist_that_means_everybody_is_not_accepted(entry: str):
    with pytest.raises(ValueError, match="one by one"):
        GuardSettings(hosts=frozenset({HOST}), origins=frozenset({entry}))
    with pytest.raises(ValueError, match="one by one"):
        GuardSettings(hosts=frozenset({entry}))


@pytest.mark.parametrize("url", ["remit", "api://remit", "https://", "https://a/mcp?x", "https://a/mcp#x"])
def test_a_resource_without_a_place_for_its_metadata_is_not_accepted(url: str):
    with pytest.raises(ValueError, match="URL of the MCP endpoint"):
        ProtectedResource(resource=url, authorization_servers=())


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "application/json-patch+json",
        "application/json, text/plain",
        "text/plain; application/json",
    ],
)
async def test_a_form_that_any_page_may_post_is_not_a_message(content_type: str | None):
    door = Door()
    assert (await door.knock(content_type=content_type)).status == 415
    assert door.names.asked == 0


async def test_the_type_may_have_parameters():
    assert (await Door().knock(content_type="Application/JSON ; charset=utf-8")).status == 200


@pytest.mark.parametrize(
    "path", ["/", "/mcp/", "/MCP", "//mcp", "/mcp/../mcp", "/mcp/x", "/admin", "/healthz/"]
)
async def test_there_is_nothing_at_any_other_path(path: str):
    door = Door()
    assert (await door.knock(path=path)).status == 404
    assert (door.names.asked, door.inner.scopes) == (0, [])


@pytest.mark.parametrize("method", ["PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "post"])
async def test_other_methods_do_not_exist(method: str):
    door = Door()
    answer = await door.knock(method=method)
    assert (answer.status, answer.headers["allow"]) == (405, "POST, GET, DELETE")
    assert door.inner.scopes == []


@pytest.mark.parametrize(
    "name",
    [
        "host",
        "origin",
        "authorization",
        "content-type",
        "content-length",
        "mcp-session-id",
        "mcp-protocol-version",
        "mcp-method",
        "mcp-name",
    ],
)
async def test_a_header_that_decides_something_is_not_taken_twice(name: str):
    door = Door(GuardSettings(hosts=frozenset({HOST}), origins=frozenset({"https://a.example.com"})))
    values = {
        "host": HOST,
        "origin": "https://a.example.com",
        "authorization": "Bearer good",
        "content-type": "application/json",
        "content-length": str(len(orjson.dumps(CALL))),
        "mcp-method": "tools/call",
        "mcp-name": "pay.refund",
    }
    value = values.get(name, "x")
    once = await door.knock(**{name.replace("-", "_"): value})
    assert once.status == 200
    twice = await door.knock(extra=((name, value), (name, value)))
    assert (twice.status, len(door.inner.scopes)) == (400, 1)


async def test_two_ways_to_say_where_the_body_ends_are_one_too_many():
    door = Door()
    answer = await door.knock(content_length="10", transfer_encoding="chunked")
    assert (answer.status, door.names.asked) == (400, 0)


async def test_nothing_of_the_body_is_read_for_a_stranger():
    for token in (None, "wrong", "stale"):
        answer = await Door().knock(b"{not json", token=token)
        assert (answer.status, answer.reads) == (401, 0)


async def test_a_stranger_is_told_how_to_become_known():
    answer = await Door().knock(token=None)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    answer = await Door().knock(token="stale")
    assert answer.headers["www-authenticate"] == (
        'Bearer error="invalid_token", error_description="The access token has expired."'
    )
    metadata = "https://remit.example.com/.well-known/oauth-protected-resource/mcp"
    answer = await with_oauth().knock(token=None)
    assert answer.headers["www-authenticate"] == (
        f'Bearer resource_metadata="{metadata}", scope="remit:call"'
    )
    answer = await with_oauth().knock(token="wrong")
    assert answer.headers["www-authenticate"].startswith('Bearer error="invalid_token"')
    assert f'resource_metadata="{metadata}"' in answer.headers["www-authenticate"]


async def test_a_token_without_the_scope_is_told_which_one_and_keys_need_none():
    token = Principal(tenant="acme", agent="agent:b", user="user:a", auth="jwt", scopes=frozenset({"other"}))
    door = with_oauth()
    door.names.principal = token
    answer = await door.knock()
    assert answer.status == 403
    assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
    assert 'scope="remit:call"' in answer.headers["www-authenticate"]
    door.names.principal = Principal(
        tenant="acme", agent="agent:b", user="user:a", auth="jwt", scopes=frozenset({"remit:call", "other"})
    )
    assert (await door.knock()).status == 200
    door.names.principal = ALICE
    assert (await door.knock()).status == 200


async def test_when_nobody_can_be_known_nobody_passes_and_the_caller_may_come_back():
    door = Door()
    door.names.down = True
    answer = await door.knock()
    assert (answer.status, answer.headers["retry-after"], door.inner.scopes) == (503, "5", [])
    assert b"issuer" not in answer.body


async def test_the_metadata_says_where_tokens_come_from_to_anybody():
    for path in ("/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"):
        answer = await with_oauth().knock(b"", method="GET", path=path, token=None, content_type=None)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert json.loads(answer.body) == {
            "resource": "https://remit.example.com/mcp",
            "authorization_servers": ["https://id.example.com"],
            "bearer_methods_supported": ["header"],
            "scopes_supported": ["remit:call"],
        }
        assert (await with_oauth().knock(method="POST", path=path)).status == 405
        assert (await Door().knock(b"", method="GET", path=path)).status == 404
        evil = await with_oauth().knock(b"", method="GET", path=path, host="evil.example.com")
        assert evil.status == 421


async def test_health_is_told_to_anybody_and_is_all_that_is_told():
    door = Door()
    answer = await door.knock(b"", method="GET", path="/healthz", token=None, host="10.1.2.3")
    assert (answer.status, answer.body, door.inner.scopes) == (200, b"ok", [])


async def test_five_failures_lock_the_credential_out_for_fifteen_minutes():
    now = 0.0
    door = Door(lockout=Lockout(clock=lambda: now))
    for _ in range(5):
        assert (await door.knock(token="wrong")).status == 401
    asked = door.names.asked
    locked = await door.knock(token="wrong")
    assert (locked.status, locked.headers["retry-after"], door.names.asked) == (429, "901", asked)
    assert (await door.knock(token="wrong", client="10.0.0.2")).status == 401
    assert (await door.knock(token="other")).status == 401
    assert (await door.knock(token="good")).status == 200
    now = 899.9
    assert (await door.knock(token="wrong")).status == 429
    now = 900.0
    assert (await door.knock(token="wrong")).status == 401
    assert (await door.knock(token="wrong")).status == 401


async def test_a_locked_key_stays_locked_for_whoever_then_has_the_secret():
    record, plaintext = mint_key(
        tenant="acme", agent="agent:bot", user="user:a", label="", pepper=b"p" * 32, at_us=0
    )

    class Keys:
        async def key(self, key_id: str, /) -> KeyRecord | None:
            return record if key_id == record.id else None

    inner = Inner()
    now = 0.0
    guard = Guard(
        inner,
        settings=GuardSettings(hosts=frozenset({HOST})),
        authenticator=Identify(keys=Keys(), pepper=b"p" * 32, clock=lambda: 1),
        lockout=Lockout(clock=lambda: now),
    )
    door = Door()
    door.guard = guard
    assert (await door.knock(token=plaintext)).status == 200
    for letter in "abcde":
        assert (await door.knock(token=f"rk_{record.id}_{letter * 52}")).status == 401
    assert (await door.knock(token=plaintext)).status == 429
    assert (await door.knock(token=plaintext, client="10.0.0.2")).status == 200
    now = 900.0
    assert (await door.knock(token=plaintext)).status == 200


async def test_what_is_no_guess_locks_nobody_out():
    door = Door(lockout=Lockout(failures_max=1))
    for token in ("stale", None) * 10:
        assert (await door.knock(token=token)).status == 401


async def test_a_success_forgives_the_failures_before_it():
    door = Door(lockout=Lockout(failures_max=2))
    headers = {"authorization": "Bearer good"}
    lockout = door.lockout
    assert lockout
    lockout.failed("10.0.0.1", headers)
    assert (await door.knock()).status == 200
    lockout.failed("10.0.0.1", headers)
    assert (await door.knock()).status == 200


def test_failures_take_bounded_memory_and_the_oldest_are_forgotten():
    lockout = Lockout(failures_max=1, entries_max=100, clock=lambda: 0.0)
    guesses = [{"authorization": f"Bearer guess{number}"} for number in range(1_000)]
    for guess in guesses:
        lockout.failed("10.0.0.1", guess)
    assert [lockout.wait_s("10.0.0.1", guess) > 0 for guess in guesses] == [False] * 900 + [True] * 100


#: With the id of the answer: the one that was sent, where that is certain and legal.
MALFORMED = [
    (b"", -32700, None),
    (b"{", -32700, None),
    (b'{"jsonrpc":"2.0","jsonrpc":"2.0","id":1,"method":"ping"}', -32700, 1),
    (b'{"jsonrpc":"2.0","id":1,"method":"a","params":{"arguments":{"x":1,"x":2}}}', -32700, 1),
    (b'{"jsonrpc":"2.0","id":1,"method":"a","params":{"x":NaN}}', -32700, None),
    (b'{"jsonrpc":"2.0","id":1,"method":"a","params":{"x":1e999}}', -32700, None),
    (b'{"jsonrpc":"2.0","id":9007199254740992,"method":"a"}', -32700, None),
    (b"\xef\xbb\xbf" + orjson.dumps(CALL), -32700, None),
    (orjson.dumps(CALL) + orjson.dumps(CALL), -32700, None),
    (b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}', -32700, None),
    (orjson.dumps([CALL]), -32600, None),
    (orjson.dumps({**CALL, "Method": "x"}), -32600, 7),
    (orjson.dumps({**CALL, "id": None}), -32600, None),
    (orjson.dumps({**CALL, "id": True}), -32600, None),
    (b'{"jsonrpc":"2.0","id":1.0,"method":"a"}', -32600, None),
    (b"[" * 5_000 + b"]" * 5_000, -32600, None),
    (b"{" + b",".join(b'"%d":1' % number for number in range(80_000)) + b"}", -32600, None),
]


@pytest.mark.parametrize(("body", "code", "request_id"), MALFORMED)
async def test_a_message_without_one_meaning_is_answered_and_goes_no_further(
    body: bytes, code: int, request_id: int | None
):
    door = Door()
    answer = await door.knock(body)
    assert (answer.status, answer.headers["content-type"]) == (400, "application/json")
    assert (answer.error["code"], json.loads(answer.body)["id"]) == (code, request_id)
    assert door.inner.scopes == []


async def test_a_body_over_the_limit_is_refused_when_it_says_so_and_while_it_is_read():
    door = Door(GuardSettings(hosts=frozenset({HOST}), limits=Limits(bytes_max=1_000)))
    said = await door.knock(content_length="1001")
    assert (said.status, said.reads) == (413, 0)
    assert (await door.knock(content_length="9" * 4_000)).status == 413
    unsaid = await door.knock([b" " * 600] * 1_000)
    assert (unsaid.status, unsaid.reads) == (413, 2)
    lied = await door.knock([b" " * 600] * 1_000, content_length="5")
    assert (lied.status, lied.reads) == (413, 2)
    assert door.inner.scopes == []


@pytest.mark.parametrize("length", ["-1", "+5", "0x10", "1e3", "\u00b2", "five", "1 0", ""])
async def test_a_length_is_a_number(length: str):
    assert (await Door().knock(content_length=length)).status == 400


async def test_a_client_that_goes_away_in_the_middle_is_not_answered():
    door = Door()
    sent: list[Message] = []
    pending: list[Message] = [
        {"type": "http.request", "body": b'{"json', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return pending.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [
        (b"host", HOST.encode()),
        (b"authorization", b"Bearer good"),
        (b"content-type", b"application/json"),
    ]
    await door.guard({"type": "http", "method": "POST", "path": "/mcp", "headers": headers}, receive, send)
    assert (sent, door.inner.scopes) == ([], [])


async def test_a_body_that_never_comes_is_not_waited_for():
    door = Door(GuardSettings(hosts=frozenset({HOST}), body_s=0.01))
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [
        (b"host", HOST.encode()),
        (b"authorization", b"Bearer good"),
        (b"content-type", b"application/json"),
    ]
    with anyio.fail_after(5):
        await door.guard(
            {"type": "http", "method": "POST", "path": "/mcp", "headers": headers}, anyio.sleep_forever, send
        )
    assert (sent[0]["status"], door.inner.scopes) == (408, [])


@pytest.mark.parametrize(
    ("message", "headers"),
    [
        (CALL, {"mcp_method": "tools/list"}),
        (CALL, {"mcp_method": "Tools/Call"}),
        (CALL, {"mcp_method": ""}),
        (CALL, {"mcp_method": "tools/call", "mcp_name": "pay.read"}),
        (CALL, {"mcp_name": "=?base64?!!!?="}),
        (CALL, {"mcp_name": "=?base64?cGF5LnJlYWQ=?="}),
        ({**CALL, "method": "resources/read", "params": {"uri": "a://b"}}, {"mcp_name": "a://c"}),
        ({"jsonrpc": "2.0", "method": "notifications/x"}, {"mcp_method": "tools/list"}),
    ],
)
async def test_headers_that_contradict_the_body_are_refused_in_every_revision(
    message: dict[str, Any], headers: dict[str, str]
):
    for version in (None, "2025-11-25", "2026-07-28"):
        door = Door()
        answer = await door.knock(message, mcp_protocol_version=version, **headers)
        assert (answer.status, answer.error["code"]) == (400, -32020)
        assert json.loads(answer.body)["id"] == message.get("id")
        assert door.inner.scopes == []


@pytest.mark.parametrize(
    ("message", "headers"),
    [
        (CALL, {"mcp_method": "tools/call", "mcp_name": "pay.refund"}),
        (CALL, {"mcp_name": "=?base64?cGF5LnJlZnVuZA==?="}),
        ({**CALL, "method": "tools/list", "params": {}}, {"mcp_name": "anything"}),
        ({"jsonrpc": "2.0", "id": 1, "result": {}}, {"mcp_method": "elicitation/create"}),
    ],
)
async def test_headers_that_agree_or_say_nothing_of_this_message_pass(
    message: dict[str, Any], headers: dict[str, str]
):
    assert (await Door().knock(message, **headers)).status == 200


async def test_the_sdks_server_behind_the_door_checks_the_rest_of_the_headers():
    seen: list[Principal] = []

    async def call(context: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        assert context.request
        seen.append(context.request.scope["remit.principal"])
        return CallToolResult(content=[])

    manager = StreamableHTTPSessionManager(Server("inner", on_call_tool=call))
    door = Door()
    door.guard = Guard(manager.handle_request, settings=door.settings, authenticator=door.names)
    version = "2026-07-28"
    meta = {
        "io.modelcontextprotocol/protocolVersion": version,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    modern = {**CALL, "params": {"name": "pay.refund", "arguments": {}, "_meta": meta}}
    accept = "application/json, text/event-stream"
    agreeing = {"mcp_protocol_version": version, "mcp_method": "tools/call", "mcp_name": "pay.refund"}
    async with manager.run():
        sound = await door.knock(modern, accept=accept, **agreeing)
        assert (sound.status, seen) == (200, [ALICE])
        for missing in ("mcp_method", "mcp_name"):
            answer = await door.knock(modern, accept=accept, **(agreeing | {missing: None}))
            assert (answer.status, answer.error["code"]) == (400, -32020)
        other = await door.knock(modern, accept=accept, **(agreeing | {"mcp_protocol_version": "2027-01-01"}))
        assert (other.status, other.error["code"]) == (400, -32020)
    assert len(seen) == 1


async def test_on_a_real_server_a_bad_request_hurts_only_itself():
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    door = Door(GuardSettings(hosts=frozenset({f"127.0.0.1:{port}"})))
    server = uvicorn.Server(uvicorn.Config(door.guard, lifespan="off", log_config=None, proxy_headers=False))
    body = orjson.dumps(CALL)

    async def status(head: str, payload: bytes = body) -> str:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            try:
                await stream.send(f"POST /mcp HTTP/1.1\r\n{head}\r\n".encode())
                await stream.send(payload)
                return (await stream.receive(64)).split(b" ")[1].decode()
            except (anyio.BrokenResourceError, anyio.EndOfStream):
                return "closed"

    sound = f"Host: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nAuthorization: Bearer good\r\n"
    length = f"Content-Length: {len(body)}\r\n"
    large = b" " * (5 * 1024 * 1024)
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve, [listener])
        try:
            with anyio.fail_after(20):
                assert await status(sound + length) == "200"
                assert await status(sound + f"Content-Length: {len(large)}\r\n", large) in ("413", "closed")
                assert await status(sound.replace("good", "wrong") + length) == "401"
                assert await status(sound.replace(f":{port}", f":{port}/x?") + length) in ("400", "421")
                assert await status(sound + length + "Transfer-Encoding: chunked\r\n") == "400"
                assert await status(sound + length + length) == "400"
                assert await status(sound + "Host: evil.example.com\r\n" + length) == "400"
                assert await status(sound + length) == "200"
        finally:
            server.should_exit = True
    assert door.inner.bodies == [body, body]
