"""One MCP server behind a URL: streamable HTTP, the stateless revision and the ones with a session.

Each request is its own POST on a pooled connection, so an error of the network is the error of one call.
Redirects, proxies, cookies and compressed bodies are off; bodies are bounded. Whoever enters `connected`
owns the pool; leaving it ends the connections and the session.

Source: MCP 2025-11-25 and 2026-07-28, basic/transports/streamable-http.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast

import anyio
from anyio.abc import TaskGroup

from remit_adapters.base import AdapterError, Json
from remit_adapters.mcp.exchange import InFlight, unasked_reply
from remit_adapters.mcp.headers import NAMED, Mirror, header_value, mirrored
from remit_adapters.mcp.http1 import BrokenError, Pool, Response, UnreachableError
from remit_adapters.mcp.sse import EventReader, TooLargeError
from remit_adapters.mcp.targets import HttpTarget
from remit_adapters.mcp.wire import (
    CHANGES,
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
    with_progress,
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
_RESUME_AFTER_S_MAX: Final = 30.0
#: How long a stream may stay open after its answer, and how long an idle connection is kept: less than the
#: 5 s after which common servers close it, for a request on a connection just closed ends in doubt.
_READ_OUT_S: Final = 1.0
_IDLE_S: Final = 4.0
#: How long it may take to make a connection, to deliver what has no answer, and to say farewell.
_CONNECT_S: Final = 5.0
_TELL_S: Final = 30.0
_LEAVE_S: Final = 2.0


class Endpoint:
    """The conversation with one URL: a `Link`. In the stateless revision it is a pool and nothing else."""

    def __init__(
        self,
        target: HttpTarget,
        pool: Pool,
        background: TaskGroup,
        *,
        answer_bytes_max: int,
        on_unasked: Callable[[Message], None],
        mirrors: Mapping[str, Mirror],
    ) -> None:
        self.version = ""
        self._target = target
        self._pool = pool
        self._background = background
        self._answer_bytes_max = answer_bytes_max
        self._on_unasked = on_unasked
        self._mirrors = mirrors
        self._ids = itertools.count(1)
        #: Who hears what comes on a stream of its own (revisions with a session).
        self._in_flight: InFlight[Hear | None] = InFlight()
        self._session: str | None = None
        self._why = ""
        self._lost = asyncio.Event()

    async def request(
        self, method: str, params: Message, hear: Hear | None = None, *, progress: bool = False
    ) -> Message:
        request_id = next(self._ids)
        if progress:
            params = with_progress(params, request_id)
        body = encode({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
        headers = self._headers(method, params)
        if self.version == MODERN:
            # Cancelled, it closes the connection, and that is how the source is told.
            return result_of(await self._converse(method, body, headers, request_id, hear))
        self._in_flight.begin(request_id, hear)
        abandoned = False
        try:
            return result_of(await self._converse(method, body, headers, request_id, hear))
        except asyncio.CancelledError:
            abandoned = method not in NEGOTIATION
            if abandoned:
                self._background.start_soon(self._cancel, request_id)
            raise
        finally:
            self._in_flight.end(request_id, abandoned=abandoned)

    async def _converse(
        self, method: str, body: bytes, headers: Mapping[str, str], request_id: int, hear: Hear | None
    ) -> Message:
        """Send one request and read until its answer."""
        with _HONEST:
            response = await self._post(body, headers)
            try:
                if method == "initialize":
                    self._session = response.headers.get("mcp-session-id")
                answer = await self._await_answer(response, request_id, hear)
            except BaseException:
                response.release()  # closes the connection, unless all of the answer was read
                raise
            if response.at_eof:
                response.release()
            else:
                self._background.start_soon(self._read_out, response)
        return answer

    async def _read_out(self, response: Response) -> None:
        """Wait for the end of a stream that said its answer: only then can its connection serve again."""
        with suppress(BrokenError, TimeoutError), response:
            async with asyncio.timeout(_READ_OUT_S):
                await response.read()

    async def answer(self, request_id: Any, reply: Json) -> None:
        with suppress(AdapterError, SessionLostError):  # a source that is gone waits for no answer
            await self._tell({"jsonrpc": "2.0", "id": request_id, **reply})

    async def notify(self, method: str, params: Json) -> None:
        await self._tell({"jsonrpc": "2.0", "method": method, "params": params})

    @property
    def gone(self) -> bool:
        return self._lost.is_set()

    async def lost(self) -> str:
        await self._lost.wait()
        return self._why

    async def _cancel(self, request_id: int) -> None:
        with suppress(AdapterError, SessionLostError):  # a courtesy
            await self.notify(
                "notifications/cancelled", {"requestId": request_id, "reason": "the caller gave up"}
            )

    async def _tell(self, message: Json) -> None:
        """Send what has no answer."""
        try:
            async with asyncio.timeout(_TELL_S):
                with _HONEST, await self._post(encode(message), self._headers()) as response:
                    await self._check(response)
        except TimeoutError:
            raise AdapterError(
                "The source does not take messages.", no_effect=False, code="timeout"
            ) from None

    def _headers(self, method: str = "", params: Json | None = None) -> dict[str, str]:
        headers = {**_BASE, **self._target.headers()}
        if self._session is not None:
            headers["Mcp-Session-Id"] = self._session
        if self.version and method != "initialize":
            headers["MCP-Protocol-Version"] = self.version
        if self.version == MODERN and params is not None:
            headers["Mcp-Method"] = method
            if method in NAMED:
                headers["Mcp-Name"] = header_value(params[NAMED[method]])
            if method == "tools/call" and (mirror := self._mirrors.get(params["name"])):
                headers.update(mirrored(mirror, params["arguments"]))
        return headers

    async def _post(self, body: bytes, headers: Mapping[str, str]) -> Response:
        if self._lost.is_set():
            raise AdapterError(
                "The connection to the source is being renewed; nothing was sent. Try again.",
                no_effect=True,
                code="source_down",
            )
        return await self._pool.send("POST", headers, body)

    async def _await_answer(self, response: Response, request_id: int, hear: Hear | None) -> Message:
        if response.status != 200:
            await self._check(response)
        if response.content_type == "text/event-stream":
            return await self._stream(response, request_id, hear)
        if response.content_type != "application/json":
            raise invalid("it is neither JSON nor an event stream")
        answer = _decode(await self._read(response))
        if answer.get("id") != request_id and "error" not in answer:
            raise invalid("it answers another request")
        return answer

    async def _check(self, response: Response) -> None:
        """Raise what a status other than success says about the request."""
        status = response.status
        if 200 <= status < 300:
            return
        if status == 404 and self._session is not None:
            raise self._forgotten()
        refused = status in _UNPROCESSED
        if response.content_type == "application/json":
            error: Any = None
            with suppress(ValueError):
                error = decode(await self._read(response)).get("error")
            if isinstance(error, dict):
                # Some servers say with 400 what the specification wants said with 404.
                text = str(cast("Message", error).get("message", ""))
                if status == 400 and self._session is not None and "session" in text.lower():
                    raise self._forgotten()
                raise rejection(error, refused=refused)
        if status in (401, 403):
            raise AdapterError(
                "The source refused the gateway's own credentials; tell its operator.",
                no_effect=True,
                code="source_auth",
            )
        if refused or 300 <= status < 400:
            raise AdapterError(
                f"The source refused the request with HTTP status {status}.",
                no_effect=True,
                code="source_refused",
            )
        raise AdapterError(
            f"The source failed with HTTP status {status}.",
            no_effect=False,
            code="source_failed",
        )

    async def _read(self, response: Response) -> bytes:
        """The whole body, unless it is larger than allowed."""
        _refuse_compressed(response)
        limit = self._answer_bytes_max
        if (response.content_length or 0) > limit:
            raise too_large(limit)
        parts: list[bytes] = []
        size = 0
        async for part in response.chunks():
            size += len(part)
            if size > limit:
                raise too_large(limit)
            parts.append(part)
        return b"".join(parts)

    async def _stream(self, response: Response, request_id: int, hear: Hear | None) -> Message:
        """Hear everything about one request until its answer, resuming where the revision knows how."""
        events = EventReader(self._answer_bytes_max)
        answer = await self._follow(response, events, request_id, hear)
        fruitless = 0
        while answer is None:
            if events.last_id is None or self.version == MODERN or fruitless >= _RESUMES_MAX:
                raise AdapterError(
                    "The source broke off its answer.",
                    no_effect=False,
                    code="source_lost",
                )
            before = events.last_id
            await asyncio.sleep(_pause_s(events, _RESUME_AFTER_S))
            with suppress(UnreachableError, BrokenError), await self._get(events.last_id) as resumed:
                if resumed.status == 200:
                    answer = await self._follow(resumed, events, request_id, hear)
            fruitless = fruitless + 1 if events.last_id == before else 0
        return answer

    async def _follow(
        self, response: Response, events: EventReader, request_id: int, hear: Hear | None
    ) -> Message | None:
        """Hear one stream to the answer, or to its end."""
        _refuse_compressed(response)
        answer: Message | None = None
        try:
            async for chunk in response.chunks():
                for data in events.feed(chunk):
                    if not data:
                        continue  # an event that only carries an id
                    message = _decode(data)
                    method: Any = message.get("method")
                    if not isinstance(method, str):
                        if message.get("id") == request_id:
                            answer = message
                    elif method in CHANGES:
                        self._on_unasked(message)
                    elif hear is not None and method != "ping":
                        await hear(message)
                    elif "id" in message:
                        await self.answer(message["id"], unasked_reply(method))
                if answer is not None:
                    break
        except TooLargeError:
            raise too_large(self._answer_bytes_max) from None
        except BrokenError:
            log.debug("a stream of a source broke off", exc_info=True)
        return answer

    # What only the revisions with a session have.

    def listen(self) -> None:
        self._background.start_soon(self._listen)

    async def _listen(self) -> None:
        """Keep the stream open on which a server with a session says what belongs to no request."""
        events = EventReader(self._answer_bytes_max)
        pause_s = _RESUME_AFTER_S
        while True:
            with (
                suppress(UnreachableError, BrokenError, AdapterError),
                await self._get(events.last_id) as response,
            ):
                if response.status == 404 and self._session is not None:
                    self._forgotten()
                    return
                streams = response.content_type == "text/event-stream"
                if response.status < 500 and not (response.status == 200 and streams):
                    return  # it has no such stream, as it may
                if streams:
                    pause_s = _RESUME_AFTER_S
                    await self._follow(response, events, 0, self._hear_unaddressed)
            await asyncio.sleep(_pause_s(events, pause_s))
            pause_s = min(pause_s * 2, _RESUME_AFTER_S_MAX)

    async def _hear_unaddressed(self, message: Message) -> None:
        hear = self._in_flight.sole()
        if hear is not None:
            await hear(message)
        elif "id" in message:
            await self.answer(message["id"], unasked_reply(message["method"]))

    async def _get(self, last_id: str | None) -> Response:
        headers = self._headers()
        headers["Accept"] = "text/event-stream"
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        return await self._pool.send("GET", headers)

    def _forgotten(self) -> SessionLostError:
        self._lose("the source forgot our session")
        return SessionLostError()

    def _lose(self, why: str) -> None:
        self._why = self._why or why
        self._lost.set()

    async def leave(self) -> None:
        """End the session, if there is one; a server that is gone need not be told."""
        if self._session is not None and not self._lost.is_set():
            with suppress(UnreachableError, BrokenError, TimeoutError):
                async with asyncio.timeout(_LEAVE_S):
                    (await self._pool.send("DELETE", self._headers())).release()
        self._lose("stopped")


class _Honest:
    """Turns what the network does into AdapterError, claiming only what is certain."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UnreachableError):
            log.debug("cannot reach a source", exc_info=error)
            raise AdapterError(
                "The source cannot be reached; nothing was sent. Try again later.",
                no_effect=True,
                code="unreachable",
            ) from error
        if isinstance(error, BrokenError):
            log.debug("a connection to a source broke", exc_info=error)
            raise AdapterError(
                "The connection to the source broke.",
                no_effect=False,
                code="source_lost",
            ) from error


_HONEST: Final = _Honest()


def _refuse_compressed(response: Response) -> None:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise invalid("it is compressed, which was not asked for")


def _pause_s(events: EventReader, otherwise_s: float) -> float:
    """How long to wait before resuming: what the server wishes, within reason."""
    return otherwise_s if events.retry_s is None else min(max(events.retry_s, 0.1), _RESUME_AFTER_S_MAX)


def _decode(data: bytes) -> Message:
    try:
        return decode(data)
    except ValueError as error:
        raise invalid("it is not a JSON object") from error


@asynccontextmanager
async def connected(
    target: HttpTarget,
    background: TaskGroup,
    *,
    answer_bytes_max: int,
    on_unasked: Callable[[Message], None],
    mirrors: Mapping[str, Mirror],
) -> AsyncGenerator[Endpoint]:
    """Hold a pool of connections to a target for as long as the context lasts. Sends nothing by itself.

    Reading in the background happens in `background`, which the caller cancels. `mirrors` says which
    arguments of which tool go into headers; the caller changes it as tools are listed.
    """
    pool = Pool(target.url, connect_s=_CONNECT_S, idle_s=_IDLE_S)
    endpoint = Endpoint(
        target, pool, background, answer_bytes_max=answer_bytes_max, on_unasked=on_unasked, mirrors=mirrors
    )
    try:
        yield endpoint
        # The session is lost. Whoever asked over it just now is still told so by the source itself.
        pool.retire()
    except BaseException:
        with anyio.CancelScope(shield=True):
            await endpoint.leave()
            await pool.close()
        raise
