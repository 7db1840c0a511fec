"""The door of the HTTP front: what a request must be before the MCP server sees any of it.

In this order, and each step sees only requests that passed the one before:

1. place      the path exists, and the request was meant for this server (Host, Origin, method, type);
2. identity   who calls, from headers alone: nothing of the body is read for a stranger;
3. bytes      the body arrives whole, in time, and within its size;
4. meaning    the bytes have one meaning, as one JSON-RPC message that its headers do not contradict.

Then the MCP application gets the same bytes, with `scope["remit.principal"]` and, for a POST,
`scope["remit.message"]`. The guard knows no method's parameters and holds nothing between requests but
the count of failed proofs. It lives as long as the application it stands before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

from mcp.shared.inbound import NAME_BEARING_METHODS, decode_header_value
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from remit.errors import StoreUnavailable
from remit.front.strict import DEFAULT, INVALID_REQUEST, Limits, Malformed, decode, envelope, id_in
from remit.identity import IdentityUnavailable, Principal, Unauthenticated, fingerprint

logger = logging.getLogger(__name__)

HEADER_MISMATCH: Final = -32020
"""Headers and body disagree (MCP 2026-07-28, streamable HTTP)."""

_METADATA: Final = "/.well-known/oauth-protected-resource"

# Headers that somebody decides by. Of two copies one reader takes the first and another the last.
_ONCE: Final = frozenset(
    {
        "host",
        "origin",
        "authorization",
        "content-type",
        "content-length",
        "transfer-encoding",
        "mcp-session-id",
        "mcp-protocol-version",
        "mcp-method",
        "mcp-name",
    }
)


class Authenticator(Protocol):
    async def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """Raises `Unauthenticated`; `IdentityUnavailable` and `StoreUnavailable` when it cannot know.

        Header names are in lower case.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectedResource:
    """What clients are told so that they can get a token (RFC 9728).

    Raises `ValueError` when the resource is not a URL that has a place for its metadata.
    """

    #: The URL of the MCP endpoint as clients use it, without a trailing slash.
    resource: str
    authorization_servers: tuple[str, ...]
    #: A token must have all of these.
    scopes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        url = urlsplit(self.resource)
        if url.scheme not in ("https", "http") or not url.netloc or url.query or url.fragment:
            raise ValueError("the resource is the https:// URL of the MCP endpoint, without ? and #")

    @property
    def metadata_url(self) -> str:
        url = urlsplit(self.resource)
        return f"{url.scheme}://{url.netloc}{_METADATA}{url.path.rstrip('/')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """Which requests are meant for this server. Raises `ValueError` for an entry that means everybody."""

    #: The exact path of the MCP endpoint; all else is not found.
    path: str = "/mcp"
    #: Exact values of the Host header, port included.
    hosts: frozenset[str]
    #: Exact values of the Origin header; requests without one are not from a browser.
    origins: frozenset[str] = frozenset()
    limits: Limits = DEFAULT
    #: Seconds that a body may take to arrive.
    body_s: float = 30.0
    oauth: ProtectedResource | None = None

    def __post_init__(self) -> None:
        for entry in self.hosts | self.origins:
            if "*" in entry or entry in ("", "null") or entry != entry.lower():
                raise ValueError("hosts and origins are listed one by one, in lower case, without * or null")


class Lockout:
    """Counts failed proofs per credential and address; after `failures_max`, none is looked at for a while.

    A genuine key needs no protection from guessing: this bounds the work and noise that guessers make. It
    forgets the oldest first, so its memory is bounded whatever they send.
    """

    def __init__(
        self,
        *,
        failures_max: int = 5,
        locked_s: float = 900.0,
        entries_max: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures_max = failures_max
        self._locked_s = locked_s
        self._entries_max = entries_max
        self._clock = clock
        #: Failures and the time of the last one.
        self._failed: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    def wait_s(self, address: str, headers: Mapping[str, str]) -> float:
        """Seconds until this credential is looked at again from there; 0: now."""
        if not self._failed:
            return 0.0
        failures, last = self._failed.get((address, fingerprint(headers)), (0, 0.0))
        if failures < self._failures_max:
            return 0.0
        return max(0.0, last + self._locked_s - self._clock())

    def failed(self, address: str, headers: Mapping[str, str]) -> None:
        name, now = (address, fingerprint(headers)), self._clock()
        failures, last = self._failed.pop(name, (0, now))
        if now >= last + self._locked_s:
            failures = 0
        self._failed[name] = failures + 1, now
        if len(self._failed) > self._entries_max:
            self._failed.popitem(last=False)

    def passed(self, address: str, headers: Mapping[str, str]) -> None:
        if self._failed:
            self._failed.pop((address, fingerprint(headers)), None)


class Guard:
    """ASGI middleware in front of the MCP application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: GuardSettings,
        authenticator: Authenticator,
        lockout: Lockout | None = None,
    ) -> None:
        self._app = app
        self._settings = settings
        self._authenticator = authenticator
        self._lockout = lockout or Lockout()
        self._metadata_paths: frozenset[str] = frozenset()
        if settings.oauth:
            # Clients look under the endpoint's own path first, then at the root (RFC 9728 §3.1).
            own = urlsplit(settings.oauth.metadata_url).path
            self._metadata_paths = frozenset({_METADATA, own})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await send({"type": "websocket.close"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        # 1. place
        if scope["path"] == "/healthz":
            # Probes address a server by its number, so it answers to any name and says nothing.
            return await PlainTextResponse("ok")(scope, receive, send)
        headers = _headers(scope)
        if headers is None:
            refused = _error(400, INVALID_REQUEST, "A header that may be sent once was sent twice.")
            return await refused(scope, receive, send)
        if refused := self._place(scope, headers):
            return await refused(scope, receive, send)
        if scope["path"] in self._metadata_paths:
            return await self._metadata()(scope, receive, send)

        # 2. identity
        principal = await self._identify(scope, headers)
        if isinstance(principal, Response):
            return await principal(scope, receive, send)
        # Blanks around a value are not part of it (RFC 9110 §5.5); not every HTTP parser takes them off.
        fields = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
        scope = {**scope, "headers": fields, "remit.principal": principal}
        if scope["method"] != "POST":
            return await self._app(scope, receive, send)

        # 3. bytes
        body = await self._read(headers, receive)
        if body is None:
            return None
        if isinstance(body, Response):
            return await body(scope, receive, send)

        # 4. meaning
        try:
            message = decode(body, self._settings.limits)
            kind = envelope(message)
        except Malformed as error:
            request_id = id_in(body, self._settings.limits)
            return await _error(400, error.code, error.message, request_id)(scope, receive, send)
        if kind == "response" and message.get("id") is None:
            # An error about no request of ours: noted by nobody, as on a pipe.
            return await Response(status_code=202)(scope, receive, send)
        if kind != "response" and not _agree(headers, message):
            return await _error(
                400,
                HEADER_MISMATCH,
                "The headers Mcp-Method and Mcp-Name must repeat what the body says.",
                message.get("id"),
            )(scope, receive, send)
        scope["remit.message"] = message
        return await self._app(scope, _replay(body, receive), send)

    def _place(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        """Refuse what was not meant for this server. Looks at the parsed path, never at a rebuilt URL."""
        if "content-length" in headers and "transfer-encoding" in headers:
            return _error(400, INVALID_REQUEST, "Send Content-Length or Transfer-Encoding, not both.")
        if headers.get("host", "").lower() not in self._settings.hosts:
            return _error(421, INVALID_REQUEST, "This server does not answer to that Host name.")
        if "origin" in headers and headers["origin"] not in self._settings.origins:
            return _error(403, INVALID_REQUEST, "Requests from that Origin are not accepted.")
        path, method = scope["path"], scope["method"]
        if path in self._metadata_paths:
            return None if method in ("GET", "HEAD") else _not_allowed("GET, HEAD")
        if path != self._settings.path:
            return PlainTextResponse("Not found", 404)
        if method not in ("POST", "GET", "DELETE"):
            return _not_allowed("POST, GET, DELETE")
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and media_type != "application/json":
            return _error(415, INVALID_REQUEST, "Send the header Content-Type: application/json.")
        return None

    async def _identify(self, scope: Scope, headers: Mapping[str, str]) -> Principal | Response:
        client = scope.get("client")
        address: str = client[0] if client else ""
        wait_s = self._lockout.wait_s(address, headers)
        if wait_s > 0:
            return _error(
                429,
                INVALID_REQUEST,
                "Too many failed attempts with this credential; wait, then use a valid one.",
                headers={"retry-after": str(int(wait_s) + 1)},
            )
        try:
            principal = await self._authenticator.authenticate(headers)
        except Unauthenticated as error:
            if error.guessed:
                self._lockout.failed(address, headers)
                logger.warning("a credential was refused from %s: %s", address, fingerprint(headers))
            return self._challenge(401, "invalid_token" if "authorization" in headers else None, str(error))
        except (IdentityUnavailable, StoreUnavailable) as error:
            logger.error("nobody can be identified: %s", error)
            return _error(
                503,
                INVALID_REQUEST,
                "Credentials cannot be checked now; try again soon.",
                headers={"retry-after": "5"},
            )
        self._lockout.passed(address, headers)
        oauth = self._settings.oauth
        if oauth and principal.auth == "jwt" and not principal.scopes.issuperset(oauth.scopes):
            return self._challenge(403, "insufficient_scope", "The access token lacks a scope; ask for it.")
        return principal

    def _challenge(self, status: int, error: str | None, description: str) -> Response:
        """Say how to become known (RFC 6750 §3, RFC 9728 §5.1); no error code where nothing was sent."""
        parts = [f'error="{error}"', f'error_description="{description}"'] if error else []
        if oauth := self._settings.oauth:
            parts.append(f'resource_metadata="{oauth.metadata_url}"')
            if oauth.scopes:
                parts.append(f'scope="{" ".join(oauth.scopes)}"')
        content = {"error": error or "unauthorized", "error_description": description}
        return JSONResponse(content, status, {"www-authenticate": f"Bearer {', '.join(parts)}".rstrip()})

    def _metadata(self) -> Response:
        oauth = cast("ProtectedResource", self._settings.oauth)
        content: dict[str, Any] = {
            "resource": oauth.resource,
            "authorization_servers": list(oauth.authorization_servers),
            "bearer_methods_supported": ["header"],
        }
        if oauth.scopes:
            content["scopes_supported"] = list(oauth.scopes)
        return JSONResponse(content, headers={"cache-control": "public, max-age=3600"})

    async def _read(self, headers: Mapping[str, str], receive: Receive) -> bytes | Response | None:
        """The whole body; `None` when the client went away."""
        bytes_max = self._settings.limits.bytes_max
        declared = headers.get("content-length", "0")
        if not (declared.isascii() and declared.isdigit()):
            return _error(400, INVALID_REQUEST, "Content-Length must be a number of bytes.")
        if len(declared) > 18 or int(declared) > bytes_max:
            return _too_large(bytes_max)
        body = bytearray()
        try:
            # A third of the cost of anyio's scope, on every call.
            async with asyncio.timeout(self._settings.body_s):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    body += message.get("body", b"")
                    if len(body) > bytes_max:
                        return _too_large(bytes_max)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            return _error(408, INVALID_REQUEST, "The body did not arrive in time.")


def _headers(scope: Scope) -> dict[str, str] | None:
    """The request's headers; `None` when one of `_ONCE` came twice."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1")
        if name in headers and name in _ONCE:
            return None
        headers[name] = raw_value.decode("latin-1").strip(" \t")
    return headers


def _agree(headers: Mapping[str, str], message: Mapping[str, Any]) -> bool:
    """Do the routing headers, where sent, say what the body says?

    A proxy before us may have let the request pass for what its headers say. Which of them must be there
    depends on the protocol revision and is the MCP server's question.
    """
    if headers.get("mcp-method", message["method"]) != message["method"]:
        return False
    member = NAME_BEARING_METHODS.get(message["method"], "")
    name = message.get("params", {}).get(member)
    return name is None or "mcp-name" not in headers or decode_header_value(headers["mcp-name"]) == name


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hand out the body once more, then whatever the connection says next."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _error(
    status: int, code: int, message: str, request_id: Any = None, headers: Mapping[str, str] | None = None
) -> Response:
    content = {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}}
    return JSONResponse(content, status, headers)


def _too_large(bytes_max: int) -> Response:
    return _error(413, INVALID_REQUEST, f"The message is larger than {bytes_max} bytes.")


def _not_allowed(allow: str) -> Response:
    return PlainTextResponse("Method not allowed", 405, {"allow": allow})
