"""Malformed and hostile requests, byte for byte, at every door of a real Remit.

A door is a transport in one era: HTTP and stdio, stateless and with a session. Whatever is sent, the sender
gets one plain sentence, the source hears nothing, and the next good request is served.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from mcp.shared.inbound import encode_header_value
from tests.stories import raw
from tests.stories.raw import ENVELOPE, HOSTILE, INSIDE, MODERN, NOTHING, SESSION, Answer, Http, Stdio

PAY = {
    "name": "pay",
    "inputSchema": {
        "type": "object",
        "properties": {
            "amount": {"type": "integer"},
            "order": {"type": "string", "pattern": "^a$"},
            "note": {"type": "string", "pattern": "^(a+)+$"},
            "more": {},
        },
    },
}
OTHERS = "p, agent:other, interop, shop.*, *, 1 == 1, allow\ng3, agent:other, user:tester, interop\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The Remits of this module and what reached the source behind them."""

    http: Http
    other_key: str
    expired_key: str
    session: str
    stdio: dict[str, Stdio]
    log: Path
    #: How the source behind all of them is configured.
    source: dict[str, Any]

    def calls(self) -> int:
        return self.log.read_bytes().count(b"\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("bad-requests")
    script, log = folder / "script.json", folder / "log"
    offer = {"jsonrpc": "2.0", "id": "$ID", "result": {"tools": [PAY], "resultType": "complete"}}
    script.write_text(json.dumps({"tools/list": json.dumps(offer).replace('"$ID"', "$ID")}))
    log.touch()
    shop = {"kind": "mcp", "command": [*HOSTILE, "stdio", "modern", str(script), str(log)]}
    configs = [
        raw.configured({"shop": shop}, folder / name, policy=OTHERS)
        for name in ("http", "stdio-stateless", "stdio-session")
    ]
    with ExitStack() as stack:
        # Started first, for they come up while the rest is made.
        stateless, session = (stack.enter_context(raw.stdio(config)) for config in configs[1:])
        expired_key = raw.a_key(configs[0])
        raw.change(configs[0], "UPDATE api_keys SET expires_us = 1")
        http = stack.enter_context(raw.http(configs[0]))
        session.ask(json.dumps(raw.HELLO).encode())
        session.send(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
        hello = http.send(json.dumps(raw.HELLO).encode(), http.headers())
        found = raw.header(hello, "mcp-session-id")
        http.send(
            b'{"jsonrpc":"2.0","method":"notifications/initialized"}',
            http.headers(mcp_session_id=found, mcp_protocol_version=SESSION),
        )
        yield Place(
            http=http,
            other_key=raw.a_key(configs[0], "agent:other"),
            expired_key=expired_key,
            session=found,
            stdio={"stateless": stateless, "session": session},
            log=log,
            source=shop,
        )


class Door(Protocol):
    era: str

    def ask(self, body: bytes) -> Answer: ...


@dataclass(frozen=True, slots=True)
class HttpDoor:
    place: Place
    era: str

    def ask(self, body: bytes) -> Answer:
        return self.place.http.send(body, self.headers(body))

    def headers(self, body: bytes) -> list[tuple[str, str]]:
        if self.era == "session":
            return self.place.http.headers(mcp_session_id=self.place.session, mcp_protocol_version=SESSION)
        # As a client would that means what it sends: the last of two members, where it can be read at all.
        said: Any = {}
        with suppress(ValueError, RecursionError):
            said = json.loads(body)
        said = said if isinstance(said, dict) else {}
        params = said.get("params") if isinstance(said.get("params"), dict) else {}
        method, name = said.get("method"), params.get("name", params.get("uri"))
        return self.place.http.headers(
            mcp_protocol_version=MODERN,
            mcp_method=method if isinstance(method, str) else None,
            mcp_name=encode_header_value(name) if isinstance(name, str) else None,
        )


@dataclass(frozen=True, slots=True)
class StdioDoor:
    place: Place
    era: str

    def ask(self, body: bytes) -> Answer:
        return self.place.stdio[self.era].ask(body)


@pytest.fixture(params=["http-stateless", "http-session", "stdio-stateless", "stdio-session"])
def door(request: pytest.FixtureRequest, place: Place) -> Door:
    transport, _, era = request.param.partition("-")
    return HttpDoor(place, era) if transport == "http" else StdioDoor(place, era)


def written(text: str, era: str) -> bytes:
    """`text` as it is sent; `$META` is what a request of this era carries."""
    meta = json.dumps(ENVELOPE if era == "stateless" else NOTHING)[1:-1]
    return text.replace("$META", meta).encode("utf-8", "surrogateescape")


def a_call(arguments: str = "{}", *, name: str = '"shop.pay"', meta: str = "") -> str:
    """A call, each part as text; `meta` goes before what the era wants."""
    return (
        '{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
        f'{{"name":{name},"arguments":{arguments},"_meta":{{{meta}$META}}}}}}'
    )


def a_request(method: str, params: str = "") -> str:
    return f'{{"jsonrpc":"2.0","id":7,"method":{json.dumps(method)},"params":{{{params}"_meta":{{$META}}}}}}'


CALL = a_call()
PARSE, REQUEST, METHOD, PARAMS, MISMATCH = -32700, -32600, -32601, -32602, -32020
TWICE = "An object has the same member name twice; send each name once."
NO_JSON = "The message is not valid JSON in UTF-8: "
NO_VALUE = NO_JSON + "unexpected character, expected a JSON value."
NO_TEXT = NO_JSON + "str is not valid UTF-8: surrogates not allowed."
INEXACT = "A number is beyond ±9007199254740991, where readers round it; send it as a string."
DEEP = "The message is nested deeper than 32 levels."
NO_MESSAGE = "Send one JSON-RPC message, a JSON object; a batch is not accepted."
NEITHER = "The message is neither a request with a method nor a response."
MEMBERS = "A request has the members jsonrpc, id, method and params, so spelled, and no other."
NO_ID = "The member id must be a string or an integer."
NO_PARAMS = "The member params must be an object, or be left out."
INVALID = "Invalid request parameters"

#: What has no single meaning, or is no message: what it is, what is sent, code, sentence, id of the answer.
MALFORMED: list[tuple[str, str, int, str, int | None]] = [
    ("a member twice in the message", CALL.replace('"id":7', '"id":7,"id":8'), PARSE, TWICE, None),
    (
        "a member twice in params",
        CALL.replace('"name":', '"name":"remit.status","name":'),
        PARSE,
        TWICE,
        7,
    ),
    ("a member twice in the arguments", a_call('{"amount":1,"amount":2}'), PARSE, TWICE, 7),
    ("a member twice, deep", a_call('{"more":[{"a":{"b":1,"b":1}}]}'), PARSE, TWICE, 7),
    ("a member twice, once escaped", a_call('{"amount":1,"\\u0061mount":2}'), PARSE, TWICE, 7),
    ("NaN", a_call('{"amount":NaN}'), PARSE, NO_VALUE, None),
    ("Infinity", a_call('{"amount":Infinity}'), PARSE, NO_VALUE, None),
    ("-Infinity", a_call('{"amount":-Infinity}'), PARSE, NO_JSON + "no digit after sign.", None),
    (
        "a number that overflows",
        a_call('{"amount":1e999}'),
        PARSE,
        NO_JSON + "number is infinity when parsed as double.",
        None,
    ),
    ("an id of 2^53", CALL.replace('"id":7', '"id":9007199254740992'), PARSE, INEXACT, None),
    ("an id twice, once escaped", CALL.replace('"id":7', '"id":7,"\\u0069d":7'), PARSE, TWICE, None),
    ("an id in the arguments, twice", a_call('{"id":1,"id":2}'), PARSE, TWICE, 7),
    (
        "a number of 5,000 digits",
        a_call('{"amount":' + "9" * 5000 + "}"),
        PARSE,
        NO_JSON + "number is infinity when parsed as double.",
        None,
    ),
    ("a number of 300 digits", a_call('{"amount":' + "9" * 300 + "}"), PARSE, INEXACT, 7),
    (
        "a response with a number that is too large",
        '{"jsonrpc":"2.0","id":7,"result":{"n":9007199254740992}}',
        PARSE,
        INEXACT,
        None,
    ),
    ("2^53", a_call('{"amount":9007199254740992}'), PARSE, INEXACT, 7),
    ("-2^53", a_call('{"more":-9007199254740992}'), PARSE, INEXACT, 7),
    (
        "a byte order mark",
        "\ufeff" + CALL,
        PARSE,
        NO_JSON + "UTF-8 byte order mark (BOM) is not supported.",
        None,
    ),
    ("a byte that is no UTF-8", a_call('{"order":"\udcff"}'), PARSE, NO_TEXT, None),
    ("an overlong encoding", a_call('{"order":"\udcc0\udcaf"}'), PARSE, NO_TEXT, None),
    (
        "a lone surrogate",
        a_call('{"order":"\\ud800"}'),
        PARSE,
        NO_JSON + "no low surrogate in string.",
        None,
    ),
    ("something after the end", CALL + "{}", PARSE, NO_JSON + "unexpected content after document.", None),
    (
        "a comma too many",
        a_call('{"amount":1,}'),
        PARSE,
        NO_JSON + "trailing comma is not allowed.",
        None,
    ),
    ("a message cut short", CALL[:-1], PARSE, NO_JSON + "unexpected end of data.", None),
    ("33 levels", a_call('{"more":' + "[" * 30 + "]" * 30 + "}"), REQUEST, DEEP, 7),
    ("5,000 levels", a_call('{"more":' + "[" * 5000 + "]" * 5000 + "}"), REQUEST, DEEP, None),
    (
        "2,001 members",
        a_call('{"more":' + json.dumps({str(n): n for n in range(2001)}) + "}"),
        REQUEST,
        "The message has more than 2000 members.",
        7,
    ),
    (
        "10,001 items",
        a_call('{"more":' + json.dumps([0] * 10_001) + "}"),
        REQUEST,
        "An array has more than 10000 items.",
        7,
    ),
    (
        "a long string",
        a_call('{"more":"' + "a" * 262_145 + '"}'),
        REQUEST,
        "A string is longer than 262144 characters.",
        7,
    ),
    (
        "more than a mebibyte",
        a_call('{"more":"' + "a" * 2**20 + '"}'),
        REQUEST,
        "The message is larger than 1048576 bytes.",
        None,
    ),
    ("a batch", f"[{CALL}]", REQUEST, NO_MESSAGE, None),
    ("an empty batch", "[]", REQUEST, NO_MESSAGE, None),
    ("a text", '"tools/call"', REQUEST, NO_MESSAGE, None),
    ("null", "null", REQUEST, NO_MESSAGE, None),
    ("an id of true", CALL.replace('"id":7', '"id":true'), REQUEST, NO_ID, None),
    ("an id of null", CALL.replace('"id":7', '"id":null'), REQUEST, NO_ID, None),
    ("an id of 1.5", CALL.replace('"id":7', '"id":1.5'), REQUEST, NO_ID, None),
    ("an id that is an object", CALL.replace('"id":7', '"id":{}'), REQUEST, NO_ID, None),
    ("no jsonrpc", CALL.replace('"jsonrpc":"2.0",', ""), REQUEST, 'The member jsonrpc must be "2.0".', 7),
    ("jsonrpc 1.0", CALL.replace('"2.0"', '"1.0"'), REQUEST, 'The member jsonrpc must be "2.0".', 7),
    ("Method for method", CALL.replace('"method"', '"Method"'), REQUEST, NEITHER, 7),
    ("Method beside method", CALL.replace('"method"', '"Method":"ping","method"'), REQUEST, MEMBERS, 7),
    ("param\u017f for params", CALL.replace('"params"', '"param\u017f"'), REQUEST, MEMBERS, 7),
    ("a member that no request has", CALL.replace('"id":7', '"id":7,"sudo":true'), REQUEST, MEMBERS, 7),
    ("a request and a result at once", CALL.replace('"id":7', '"id":7,"result":{}'), REQUEST, MEMBERS, 7),
    ("neither a request nor a response", '{"jsonrpc":"2.0","id":7}', REQUEST, NEITHER, 7),
    (
        "a method that is a number",
        '{"jsonrpc":"2.0","id":7,"method":5}',
        REQUEST,
        "The member method must be a string.",
        7,
    ),
    (
        "params that are an array",
        '{"jsonrpc":"2.0","id":7,"method":"tools/call","params":["shop.pay"]}',
        REQUEST,
        NO_PARAMS,
        7,
    ),
    (
        "params that are null",
        '{"jsonrpc":"2.0","id":7,"method":"tools/call","params":null}',
        REQUEST,
        NO_PARAMS,
        7,
    ),
]

KEY = "_meta dev.remit/idempotency_key must be 1 to 128 characters of text"
RUN = "_meta dev.remit/run must be 1 to 128 characters of text"
CLAIM = "_meta dev.remit/claim must be an object of at most 4096 characters"

#: Messages with one meaning that ask for what is not there, or not so: what it is, what is sent, code, words.
REFUSED: list[tuple[str, str, int, str]] = [
    ("arguments that are a list", a_call("[]"), PARAMS, INVALID),
    ("arguments that are a text", a_call('"amount=1"'), PARAMS, INVALID),
    ("a name that is null", a_call(name="null"), PARAMS, INVALID),
    ("no name", CALL.replace('"name":"shop.pay",', ""), PARAMS, INVALID),
    ("an unknown method", a_request("tools/destroy"), METHOD, "Method not found"),
    ("an empty method", a_request(""), METHOD, "Method not found"),
    ("an unknown tool", a_call(name='"shop.destroy"'), PARAMS, "Unknown tool: shop.destroy"),
    ("an empty tool name", a_call(name='""'), PARAMS, "Unknown tool: "),
    ("a Cyrillic letter in the name", a_call(name='"shop.p\u0430y"'), PARAMS, "Unknown tool: shop.p\u0430y"),
    (
        "a full-width letter in the name",
        a_call(name='"shop.p\uff41y"'),
        PARAMS,
        "Unknown tool: shop.p\uff41y",
    ),
    (
        "a zero-width space in the name",
        a_call(name='"shop.pa\u200by"'),
        PARAMS,
        "Unknown tool: shop.pa\u200by",
    ),
    ("another case of the name", a_call(name='"shop.Pay"'), PARAMS, "Unknown tool: shop.Pay"),
    ("a zero byte in the name", a_call(name='"shop.pay\\u0000"'), PARAMS, "Unknown tool: shop.pay\0"),
    ("the source's own name", a_call(name='"pay"'), PARAMS, "Unknown tool: pay"),
    (
        "the name of an operation",
        a_call(name='"shop.resources.read"'),
        PARAMS,
        "Unknown tool: shop.resources.read",
    ),
    ("an endless name", a_call(name=f'"{"a" * 100_000}"'), PARAMS, "Unknown tool: " + "a" * 256),
    ("an oversized idempotency key", a_call(meta=f'"dev.remit/idempotency_key":"{"k" * 129}",'), PARAMS, KEY),
    ("an empty idempotency key", a_call(meta='"dev.remit/idempotency_key":"",'), PARAMS, KEY),
    ("an idempotency key that is a number", a_call(meta='"dev.remit/idempotency_key":5,'), PARAMS, KEY),
    ("a zero byte in the run", a_call(meta='"dev.remit/run":"a\\u0000b",'), PARAMS, RUN),
    ("a run that is a list", a_call(meta='"dev.remit/run":["a"],'), PARAMS, RUN),
    ("a claim that is a text", a_call(meta='"dev.remit/claim":"trust me",'), PARAMS, CLAIM),
    ("an oversized claim", a_call(meta=f'"dev.remit/claim":{{"goal":"{"g" * 5000}"}},'), PARAMS, CLAIM),
    ("a progress token that is a list", a_call(meta='"progressToken":[1],'), PARAMS, INVALID),
    ("a requestState that is an object", CALL.replace('"name"', '"requestState":{},"name"'), PARAMS, INVALID),
    (
        "inputResponses that are a number",
        CALL.replace('"name"', '"inputResponses":5,"name"'),
        PARAMS,
        INVALID,
    ),
    (
        "a prompt argument that is a number",
        a_request("prompts/get", '"name":"shop.x","arguments":{"a":5},'),
        PARAMS,
        INVALID,
    ),
    (
        "a prompt that does not exist",
        a_request("prompts/get", '"name":"shop.x",'),
        PARAMS,
        "Unknown prompt: shop.x",
    ),
    (
        "a reference of no kind",
        a_request("completion/complete", '"ref":{"type":"ref/x"},"argument":{"name":"a","value":"b"},'),
        PARAMS,
        INVALID,
    ),
    ("a cursor that is a number", a_request("tools/list", '"cursor":5,'), PARAMS, INVALID),
]


def a_note(text: str) -> str:
    return json.dumps({"note": text})


NO_INTEGER = 'amount: {} is not of type "integer"'
#: Arguments that do not fit: the agent reads why in a result, and may mend it.
MISFITS: list[tuple[str, str, str]] = [
    ('"7" for an integer', '{"amount":"7"}', NO_INTEGER.format('"7"')),
    ("true for an integer", '{"amount":true}', NO_INTEGER.format("true")),
    ("1.5 for an integer", '{"amount":1.5}', NO_INTEGER.format("1.5")),
    ("null for an integer", '{"amount":null}', NO_INTEGER.format("null")),
    (
        "a property that the tool does not have",
        '{"amount":1,"sudo":true}',
        "arguments: Unevaluated properties are not allowed ('sudo' was unexpected)",
    ),
    (
        "another case of a property",
        '{"Amount":1}',
        "arguments: Unevaluated properties are not allowed ('Amount' was unexpected)",
    ),
    ("a newline after what the pattern ends with", '{"order":"a\\n"}', 'order: "a\\n" does not match "^a$"'),
    ("a lookalike letter", '{"order":"\u0430"}', 'order: "\u0430" does not match "^a$"'),
    ("a text that makes patterns backtrack", a_note("a" * 50_000 + "!"), 'note: "' + "a" * 293),
]


def answered(door: Door, place: Place, text: str) -> Answer:
    """The answer to what must not reach the source; afterwards a good call does."""
    before = place.calls()
    answer = door.ask(written(text, door.era))
    assert not INSIDE.search(answer.raw), answer.raw
    assert place.calls() == before
    good = door.ask(written(CALL, door.era))
    assert good.message["result"]["content"] == [{"type": "text", "text": "ok"}]
    assert place.calls() == before + 1
    return answer


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case[0])
def test_what_has_no_single_meaning_is_refused(case: Any, door: Door, place: Place) -> None:
    _, text, code, message, request_id = case
    answer = answered(door, place, text)
    assert answer.message == {
        "jsonrpc": "2.0",
        "id": request_id,
        "error": {"code": code, "message": message},
    }
    assert answer.status in (0, 413 if "larger than" in message else 400)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case[0])
def test_what_is_not_there_is_refused_in_the_protocol_s_words(case: Any, door: Door, place: Place) -> None:
    _, text, code, message = case
    answer = answered(door, place, text)
    error = answer.message["error"]
    assert (answer.message["id"], error["code"], error["message"]) == (7, code, message)
    # The stateless revision repeats the code in the status (MCP 2026-07-28, streamable HTTP).
    statuses = {PARAMS: 400, METHOD: 404}
    assert answer.status in (0, statuses[code] if door.era == "stateless" else 200)


@pytest.mark.parametrize("case", MISFITS, ids=lambda case: case[0])
def test_arguments_that_do_not_fit_are_explained_to_the_agent(case: Any, door: Door, place: Place) -> None:
    _, arguments, problem = case
    answer = answered(door, place, a_call(arguments))
    result = answer.message["result"]
    assert answer.message["id"] == 7
    assert result["isError"] is True
    assert result["content"] == [
        {
            "type": "text",
            "text": f"The arguments do not fit the tool: {problem}. Correct them and call again.",
        }
    ]
    assert result["_meta"]["dev.remit/verdict"]["code"] == "invalid_arguments"


def envelope_without(key: str) -> str:
    meta = {name: value for name, value in ENVELOPE.items() if not name.endswith(key)}
    return CALL.replace("$META", json.dumps(meta)[1:-1])


def envelope_with(key: str, value: Any) -> str:
    meta = {**ENVELOPE, f"io.modelcontextprotocol/{key}": value}
    return CALL.replace("$META", json.dumps(meta)[1:-1])


NO_ENVELOPE = (
    "params._meta must be an object carrying the required 'io.modelcontextprotocol/protocolVersion' and "
    "'io.modelcontextprotocol/clientCapabilities' envelope keys"
)
MISSING = "params._meta is missing the required envelope key(s): io.modelcontextprotocol/"
DISAGREE = "The headers Mcp-Method and Mcp-Name must repeat what the body says."
TWO_COPIES = "A header that may be sent once was sent twice."
NO_TYPE = "Send the header Content-Type: application/json."
NO_HOST = "This server does not answer to that Host name."
NO_ORIGIN = "Requests from that Origin are not accepted."
NO_CREDENTIAL = "Send an API key or access token in the header Authorization: Bearer."
FUTURE = CALL.replace("$META", json.dumps(ENVELOPE)[1:-1].replace(MODERN, "2027-01-01"))

#: What each request of the stateless revision must carry: what is wrong, what is sent, code, sentence.
ENVELOPES: list[tuple[str, str, int, str]] = [
    ("no _meta", CALL.replace(',"_meta":{$META}', ""), PARAMS, NO_ENVELOPE),
    ("a _meta that is a text", CALL.replace("{$META}", '"x"'), PARAMS, NO_ENVELOPE),
    ("a _meta that is a number", CALL.replace("{$META}", "5"), PARAMS, NO_ENVELOPE),
    ("no version", envelope_without("protocolVersion"), PARAMS, MISSING + "protocolVersion"),
    ("no capabilities", envelope_without("clientCapabilities"), PARAMS, MISSING + "clientCapabilities"),
    ("capabilities that are a number", envelope_with("clientCapabilities", 5), PARAMS, INVALID),
    ("a client that is a number", envelope_with("clientInfo", 5), PARAMS, INVALID),
    ("a log level that there is not", envelope_with("logLevel", "zebra"), PARAMS, INVALID),
]


@pytest.mark.parametrize("case", ENVELOPES, ids=lambda case: case[0])
@pytest.mark.parametrize("transport", [HttpDoor, StdioDoor])
def test_an_envelope_that_lacks_something_is_refused(
    case: Any, transport: type[HttpDoor | StdioDoor], place: Place
) -> None:
    _, text, code, message = case
    answer = answered(transport(place, "stateless"), place, text)
    error = answer.message["error"]
    assert (answer.message["id"], error["code"], error["message"]) == (7, code, message)


#: Over HTTP: what is wrong, the headers that are changed, status, code, sentence; None for no JSON-RPC.
HEADERS: list[tuple[str, dict[str, str | None], int, int | None, str]] = [
    ("another method in the header", {"mcp_method": "tools/list"}, 400, MISMATCH, DISAGREE),
    ("another case of the method", {"mcp_method": "Tools/Call"}, 400, MISMATCH, DISAGREE),
    ("another name in the header", {"mcp_name": "remit.status"}, 400, MISMATCH, DISAGREE),
    ("a name that is no base64", {"mcp_name": "=?base64?!!!?="}, 400, MISMATCH, DISAGREE),
    (
        "no method in the headers",
        {"mcp_method": None},
        400,
        MISMATCH,
        "mcp-method header does not match the request body's method",
    ),
    (
        "no name in the headers",
        {"mcp_name": None},
        400,
        MISMATCH,
        "mcp-name header does not match the request body's 'name' parameter",
    ),
    (
        "a version that there is not",
        {"mcp_protocol_version": "latest"},
        400,
        MISMATCH,
        "mcp-protocol-version header does not match the request envelope's protocol version",
    ),
    ("no type", {"content_type": None}, 415, REQUEST, NO_TYPE),
    ("a type that any page may post", {"content_type": "text/plain"}, 415, REQUEST, NO_TYPE),
    ("a type that begins alike", {"content_type": "application/json-seq"}, 415, REQUEST, NO_TYPE),
    ("another host", {"host": "evil.example"}, 421, REQUEST, NO_HOST),
    ("no host", {"host": None}, 421, REQUEST, NO_HOST),
    ("another port", {"host": "127.0.0.1:1"}, 421, REQUEST, NO_HOST),
    ("a page of another origin", {"origin": "https://evil.example"}, 403, REQUEST, NO_ORIGIN),
    ("a page of no origin", {"origin": "null"}, 403, REQUEST, NO_ORIGIN),
    ("no credential", {"authorization": None}, 401, None, NO_CREDENTIAL),
    ("another kind of credential", {"authorization": "Basic YTpi"}, 401, None, NO_CREDENTIAL),
    ("a key that never was", {"authorization": "Bearer rk_a_b"}, 401, None, "The credential is not valid."),
    ("nothing acceptable", {"accept": "text/html"}, 406, None, ""),
    ("a compressed body", {"content_encoding": "gzip"}, 400, PARSE, NO_TEXT),
]


@pytest.mark.parametrize("case", HEADERS, ids=lambda case: case[0])
def test_headers_that_are_wrong_are_refused(case: Any, place: Place) -> None:
    _, changes, status, code, sentence = case
    body = written(CALL, "stateless")
    good = {"mcp_protocol_version": MODERN, "mcp_method": "tools/call", "mcp_name": "shop.pay"}
    before = place.calls()
    sent = gzip.compress(body) if "content_encoding" in changes else body
    answer = place.http.send(sent, place.http.headers(**{**good, **changes}))
    assert answer.status == status
    assert not INSIDE.search(answer.raw)
    if code is not None:
        assert (answer.message["error"]["code"], answer.message["error"]["message"]) == (code, sentence)
    elif sentence:
        assert answer.message["error_description"] == sentence
    assert place.calls() == before
    assert place.http.send(body, place.http.headers(**good)).status == 200


@pytest.mark.parametrize(
    "name",
    ["host", "authorization", "content-type", "mcp-method", "mcp-name", "mcp-protocol-version"],
)
def test_a_header_that_decides_something_is_not_taken_twice(name: str, place: Place) -> None:
    body, before = written(CALL, "stateless"), place.calls()
    headers = HttpDoor(place, "stateless").headers(body)
    answer = place.http.send(body, [*headers, (name, dict(headers)[name])])
    assert (answer.status, answer.message["error"]["code"]) == (400, REQUEST)
    assert answer.message["error"]["message"] == TWO_COPIES
    assert place.calls() == before


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/mcp", 405),
        ("PUT", "/mcp", 405),
        ("OPTIONS", "/mcp", 405),
        ("TRACE", "/mcp", 405),
        ("POST", "/", 404),
        ("POST", "/mcp/", 404),
        ("POST", "/MCP", 404),
        ("POST", "//mcp", 404),
        ("POST", "/mcp/../mcp", 404),
        ("POST", "/etc/passwd", 404),
    ],
)
def test_there_is_one_method_at_one_path(method: str, path: str, status: int, place: Place) -> None:
    body, before = written(CALL, "stateless"), place.calls()
    answer = place.http.send(body, HttpDoor(place, "stateless").headers(body), method=method, path=path)
    assert answer.status == status
    assert not INSIDE.search(answer.raw)
    assert place.calls() == before


def test_a_key_that_has_expired_is_refused_and_says_so(place: Place) -> None:
    answer = place.http.send(
        written(CALL, "session"), place.http.headers(authorization=f"Bearer {place.expired_key}")
    )
    assert answer.status == 401
    assert answer.message["error_description"] == "The API key has expired; ask for a new one."


def test_a_version_that_is_not_spoken_is_answered_with_those_that_are(place: Place) -> None:
    answer = place.http.send(
        written(FUTURE, "stateless"),
        place.http.headers(mcp_protocol_version="2027-01-01", mcp_method="tools/call", mcp_name="shop.pay"),
    )
    assert (answer.status, answer.message["id"]) == (400, 7)
    assert answer.message["error"] == {
        "code": -32022,
        "message": "Unsupported protocol version",
        "data": {"supported": [MODERN], "requested": "2027-01-01"},
    }


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
def test_a_session_of_another_agent_is_answered_like_one_that_never_was(method: str, place: Place) -> None:
    def asked(session: str) -> Answer:
        headers = place.http.headers(
            mcp_session_id=session,
            mcp_protocol_version=SESSION,
            authorization=f"Bearer {place.other_key}",
        )
        return place.http.send(written(CALL, "session"), headers, method=method)

    before = place.calls()
    answer = asked(place.session)
    assert (answer.status, answer.message["error"]["message"]) == (404, "Session not found")
    assert answer == asked("0" * 32)
    assert place.calls() == before
    answered(HttpDoor(place, "session"), place, a_call('{"amount":"7"}'))  # its owner still has it


def test_a_call_before_the_handshake_is_refused(place: Place) -> None:
    before = place.calls()
    answer = place.http.send(written(CALL, "session"), place.http.headers(mcp_protocol_version=SESSION))
    assert (answer.status, answer.message["error"]["code"]) == (400, REQUEST)
    assert answer.message["error"]["message"] == "Bad Request: Missing session ID"
    assert place.calls() == before


#: Messages that nobody answers.
UNANSWERED = [
    '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":99}}',
    '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":{}}}',
    '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":[7]}}',
    '{"jsonrpc":"2.0","method":"notifications/cancelled"}',
    '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":[],"progress":"x"}}',
    '{"jsonrpc":"2.0","method":"notifications/zebra","params":{"_meta":5}}',
    '{"jsonrpc":"2.0","method":"tools/call","params":{"name":"shop.pay","arguments":{}}}',
    '{"jsonrpc":"2.0","error":{"code":1,"message":"x"}}',
    '{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"x"}}',
]


@pytest.mark.parametrize("text", UNANSWERED)
def test_what_asks_for_nothing_is_not_answered_and_does_nothing(text: str, door: Door, place: Place) -> None:
    before = place.calls()
    if isinstance(door, StdioDoor):
        place.stdio[door.era].send(text.encode())  # the answer to the next line is the next to come
    else:
        answer = door.ask(text.encode())
        assert (answer.status, answer.message) == (202, None)
    assert place.calls() == before
    answered(door, place, a_call('{"amount":"7"}'))


def test_an_oversized_progress_token_stays_here(door: Door, place: Place) -> None:
    token = "t" * 100_000
    answer = door.ask(written(a_call(meta=f'"progressToken":"{token}",'), door.era))
    assert answer.message["result"]["content"] == [{"type": "text", "text": "ok"}]
    assert token.encode() not in place.log.read_bytes()


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ('{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"shop.pay","_meta":5}}', PARAMS),
        ('{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"shop.pay"}}', PARAMS),
    ],
    ids=["an envelope of a number", "a call before the handshake"],
)
def test_a_pipe_that_begins_badly_still_takes_a_handshake(
    first: str, code: int, place: Place, tmp_path: Path
) -> None:
    before = place.calls()
    with raw.stdio(raw.configured({"shop": place.source}, tmp_path)) as pipe:
        answer = pipe.ask(first.encode())
        assert (answer.message["id"], answer.message["error"]["code"]) == (7, code)
        assert place.calls() == before
        assert "capabilities" in pipe.ask(json.dumps(raw.HELLO).encode()).message["result"]
        assert pipe.ask(written(CALL, "session")).message["result"]["content"]
