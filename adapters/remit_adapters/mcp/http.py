"""One MCP server behind a URL: streamable HTTP, the stateless revision and the ones with a session.

Each request is its own POST on a pooled connection, so an error of the network is the error of one call.
Redirects, proxies, cookies and compressed bodies are off; bodies are bounded. Whoever enters `connected`
owns the pool and the background reading; leaving it ends both and the session.

Source: MCP 2025-11-25 and 2026-07-28, basic/transports/streamable-http.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import aiohttp
import anyio
from anyio.abc import TaskGroup

from remit_adapters.base import AdapterError, Json
from remit_adapters.mcp.exchange import QUESTIONS, refusal
from remit_adapters.mcp.headers import NAMED, Mirror, header_value, mirrored
from remit_adapters.mcp.sse import EventReader, TooLargeError
from remit_adapters.mcp.targets import HttpTarget
from remit_adapters.mcp.wire import (
    METHOD_NOT_FOUND,
    MODERN,
    NEGOTIATION,
    Hear,
    Message,
    SessionLostError,
    decode,
    encode,
    invalid,
    rejection,
    result_of,
    too_large,
)

log = logging.getLogger(__name__)

_BASE: Final = {
    "Accept": "application/json, text/event-stream",
    "Accept-Encoding": "identity",  # a compressed body could be a bomb
    "Content-Type": "application/json",
}
#: Statuses with which an HTTP server says that it did not process the request (RFC 9110, 15.5).
_UNPROCESSED: Final = frozenset({400, 401, 403, 404, 405, 406, 411, 413, 414, 415, 421, 429, 431})
#: How often an interrupted stream of the 2025 revisions is resumed without news before we give up.
_RESUMES_MAX: Final = 3
_RESUME_AFTER_S: Final = 1.0


class Endpoint:
    """The conversation with one URL: a `Link`. Holds no state in the stateless revision but a pool."""

    def __init__(
        self,
        target: HttpTarget,
        pool: aiohttp.ClientSession,
        tasks: TaskGroup,
        *,
        answer_bytes_max: int,
        on_unasked: Callable[[Message], None],
    ) -> None:
        self.version = ""
        #: Which arguments of which tool go into headers; kept by the adapter, from the tools it listed.
        self.mirrors: Mapping[str, Mirror] = {}
        self._target = target
        self._pool = pool
        self._tasks = tasks
        self._answer_bytes_max = answer_bytes_max
        self._on_unasked = on_unasked
        self._ids = itertools.count(1)
        self._session: str | None = None
        self._why = ""
        self._lost = asyncio.Event()

    async def request(self, method: str, params: Message, hear: Hear | None = None) -> Message:
        request_id = next(self._ids)
        if hear is not None:
            params = {**params, "_meta": {**params.get("_meta", {}), "progressToken": request_id}}
        body = encode({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
        try:
            async with self._post(body, self._headers(method, params)) as response:
                if method == "initialize":
                    self._session = response.headers.get("Mcp-Session-Id")
                answer = await self._await_answer(response, request_id, hear)
        except asyncio.CancelledError:
            if self.version != MODERN and method not in NEGOTIATION:
                # There, closing the stream means nothing; a cancellation must be said.
                self._tasks.start_soon(self._cancel, request_id)
            raise
        return result_of(answer)

    async def answer(self, request_id: Any, reply: Json) -> None:
        with suppress(AdapterError, SessionLostError):  # a source that is gone waits for no answer
            await self._tell({"jsonrpc": "2.0", "id": request_id, **reply})

    async def notify(self, method: str, params: Json) -> None:
        await self._tell({"jsonrpc": "2.0", "method": method, "params": params})

    async def lost(self) -> str:
        await self._lost.wait()
        return self._why

    async def _cancel(self, request_id: int) -> None:
        with suppress(AdapterError, SessionLostError):
            await self.notify(
                "notifications/cancelled", {"requestId": request_id, "reason": "the caller gave up"}
            )

    async def _tell(self, message: Json) -> None:
        """Send what has no answer."""
        async with asyncio.timeout(30), self._post(encode(message), self._headers()) as response:
            await self._check(response)

    def _headers(self, method: str = "", params: Json | None = None) -> dict[str, str]:
        headers = {**_BASE, **self._target.headers()}
        if self._session is not None:
            headers["Mcp-Session-Id"] = self._session
        if self.version and method != "initialize":
            headers["MCP-Protocol-Version"] = self.version
        if self.version == MODERN and method and params is not None:
            headers["Mcp-Method"] = method
            if method in NAMED:
                headers["Mcp-Name"] = header_value(str(params[NAMED[method]]))
            if method == "tools/call" and (mirror := self.mirrors.get(params["name"])):
                headers.update(mirrored(mirror, params["arguments"]))
        return headers

    @asynccontextmanager
    async def _post(self, body: bytes, headers: Mapping[str, str]) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Send one POST. Raises AdapterError for whatever the network does, claiming only what is certain."""
        try:
            async with self._pool.post(
                self._target.url, data=body, headers=headers, allow_redirects=False
            ) as response:
                yield response
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            log.debug("cannot reach the source", exc_info=True)
            raise AdapterError(
                "The source cannot be reached; nothing was sent. Try again later.",
                no_effect=True,
                code="unreachable",
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            log.debug("the connection to the source broke", exc_info=True)
            raise AdapterError(
                "The connection to the source broke; whether it acted is unknown.",
                no_effect=False,
                code="source_lost",
            ) from error

    async def _await_answer(
        self, response: aiohttp.ClientResponse, request_id: int, hear: Hear | None
    ) -> Message:
        if response.status != 200:
            await self._check(response)
        if response.content_type == "text/event-stream":
            answer = await self._stream(response, request_id, hear)
        elif response.content_type == "application/json":
            answer = _decode(await self._read(response))
            if answer.get("id") != request_id and "error" not in answer:
                raise invalid("it answers another request")
        else:
            raise invalid("it is neither JSON nor an event stream")
        return answer

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        """Raise what a status other than success says about the request."""
        status = response.status
        if 200 <= status < 300:
            return
        if status == 404 and self._session is not None:
            self._lose("the source forgot our session")
            raise SessionLostError
        refused = status in _UNPROCESSED
        if response.content_type == "application/json":
            with suppress(ValueError):
                message = decode(await self._read(response))
                if "error" in message:
                    raise rejection(message["error"], refused=refused)
        if status in (401, 403):
            text, code = "The source refused the gateway's own credentials; tell its operator.", "source_auth"
        elif status == 429:
            text, code = "The source is receiving too many requests; try again later.", "source_busy"
        elif refused or 300 <= status < 400:
            text, code = f"The source refused the request with HTTP status {status}.", "source_refused"
        else:
            text = f"The source failed with HTTP status {status}; whether it acted is unknown."
            code = "source_failed"
        raise AdapterError(text, no_effect=refused or 300 <= status < 400, code=code)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """The whole body, unless it is larger than allowed."""
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise invalid("it is compressed, which was not asked for")
        limit = self._answer_bytes_max
        length = response.content_length
        if length is not None:
            if length > limit:
                raise too_large(limit)
            return await response.read()
        parts: list[bytes] = []
        size = 0
        async for part in response.content.iter_any():
            size += len(part)
            if size > limit:
                raise too_large(limit)
            parts.append(part)
        return b"".join(parts)

    async def _stream(self, response: aiohttp.ClientResponse, request_id: int, hear: Hear | None) -> Message:
        """Hear everything about one request until its answer, resuming where the revision knows how."""
        events = EventReader(self._answer_bytes_max)
        answer = await self._follow(response, events, request_id, hear)
        fruitless = 0
        while answer is None:
            if events.last_id is None or self.version == MODERN or fruitless >= _RESUMES_MAX:
                raise AdapterError(
                    "The source ended its answer before it was complete; whether it acted is unknown.",
                    no_effect=False,
                    code="source_lost",
                )
            before = events.last_id
            await asyncio.sleep(_RESUME_AFTER_S if events.retry_s is None else events.retry_s)
            with suppress(aiohttp.ClientError, OSError):
                async with self._get(events.last_id) as resumed:
                    if resumed.status == 200:
                        answer = await self._follow(resumed, events, request_id, hear)
            fruitless = fruitless + 1 if events.last_id == before else 0
        return answer

    async def _follow(
        self, response: aiohttp.ClientResponse, events: EventReader, request_id: int, hear: Hear | None
    ) -> Message | None:
        """Hear one stream to its answer, or to its end."""
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise invalid("it is compressed, which was not asked for")
        try:
            async for chunk in response.content.iter_any():
                for data in events.feed(chunk):
                    if not data:
                        continue  # an event that only carries an id
                    message = _decode(data)
                    if "method" not in message:
                        if message.get("id") == request_id:
                            return message
                    elif hear is not None:
                        await hear(message)
                    else:
                        await self._unheard(message)
        except TooLargeError:
            raise too_large(self._answer_bytes_max) from None
        except aiohttp.ClientPayloadError:
            log.debug("a stream broke off", exc_info=True)
        return None

    async def _unheard(self, message: Message) -> None:
        """A message that belongs to no request of ours, or to one that nobody listens to."""
        if "id" not in message:
            self._on_unasked(message)
            return
        method: Any = message["method"]
        if method == "ping":
            reply: Message = {"result": {}}
        elif method in QUESTIONS:
            reply = refusal(method)
        else:
            reply = {"error": {"code": METHOD_NOT_FOUND, "message": "Method not found"}}
        await self.answer(message["id"], reply)

    # What only the revisions with a session have.

    def _get(self, last_id: str | None) -> Any:
        headers = self._headers()
        del headers["Content-Type"]
        headers["Accept"] = "text/event-stream"
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        return self._pool.get(self._target.url, headers=headers, allow_redirects=False)

    def listen(self) -> None:
        """Keep the stream open on which a server with a session says things unasked."""
        self._tasks.start_soon(self._listen)

    async def _listen(self) -> None:
        events = EventReader(self._answer_bytes_max)
        delay_s = _RESUME_AFTER_S
        while not self._lost.is_set():
            with suppress(aiohttp.ClientError, OSError, AdapterError):
                async with self._get(events.last_id) as response:
                    if response.status == 404 and self._session is not None:
                        self._lose("the source forgot our session")
                        return
                    if response.status != 200 or response.content_type != "text/event-stream":
                        return  # it has no such stream, as it may
                    delay_s = _RESUME_AFTER_S
                    await self._follow(response, events, -1, None)
            await asyncio.sleep(delay_s if events.retry_s is None else events.retry_s)
            delay_s = min(delay_s * 2, 30.0)

    def _lose(self, why: str) -> None:
        self._why = self._why or why
        self._lost.set()

    async def leave(self) -> None:
        """End the session, if there is one; a server that is gone need not be told."""
        if self._session is None or self._lost.is_set():
            return
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with (
                asyncio.timeout(2),
                self._pool.delete(self._target.url, headers=self._headers(), allow_redirects=False),
            ):
                pass


def _decode(data: bytes) -> Message:
    try:
        return decode(data)
    except ValueError as error:
        raise invalid("it is not a JSON object") from error


@asynccontextmanager
async def connected(
    target: HttpTarget,
    tasks: TaskGroup,
    *,
    answer_bytes_max: int,
    connect_timeout_s: float,
    on_unasked: Callable[[Message], None],
) -> AsyncGenerator[Endpoint]:
    """Hold a pool of connections to a target for as long as the context lasts. Sends nothing by itself.

    Reading in the background happens in `tasks`, which the caller cancels.
    """
    pool = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, connect=connect_timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent",),
        auto_decompress=False,
        trust_env=False,
    )
    async with pool:
        endpoint = Endpoint(target, pool, tasks, answer_bytes_max=answer_bytes_max, on_unasked=on_unasked)
        try:
            yield endpoint
        finally:
            with anyio.CancelScope(shield=True):
                await endpoint.leave()
