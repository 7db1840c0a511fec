"""`McpAdapter`: one MCP server as a source.

It knows what the methods mean and in which revision they are spoken; how the bytes travel is the business
of `stdio` and `http`. An answer must have its form (`forms`); what it holds is not judged here. One task,
started by `start` in the application's group, owns the connection: makes it and makes it again.

Source: MCP 2025-06-18, 2025-11-25 and 2026-07-28.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from math import ceil
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast

import anyio
from anyio.abc import TaskGroup, TaskStatus

from remit_adapters.base import (
    NOBODY,
    AdapterError,
    Caller,
    Event,
    Health,
    Json,
    Offer,
    Operation,
    Reply,
    Request,
)
from remit_adapters.mcp.changes import Changes
from remit_adapters.mcp.exchange import QUESTIONS, Exchange, Relay, may_ask, put, relayed_capabilities
from remit_adapters.mcp.forms import check
from remit_adapters.mcp.headers import Mirror, mirror
from remit_adapters.mcp.negotiation import OUTAGES, discover, initialize
from remit_adapters.mcp.targets import HttpTarget, StdioTarget
from remit_adapters.mcp.wire import (
    HEADER_MISMATCH,
    LOG_LEVEL_KEY,
    METHOD_NOT_FOUND,
    MODERN,
    RESERVED_PREFIX,
    UNSUPPORTED_VERSION,
    Link,
    Message,
    SessionLostError,
    invalid,
    member,
    stamped,
)

log = logging.getLogger(__name__)

Era: TypeAlias = Literal["auto", "modern", "legacy"]
T = TypeVar("T")

#: Where a source finds the idempotency key of a request; those that know it can tell a repetition.
KEY: Final = "dev.remit/key"

_PROBE_S_MAX: Final = 10.0
_BACKOFF_S_MAX: Final = 15.0
#: A connection that held this long was a good one: its loss is repaired at once.
_STEADY_S: Final = 10.0
#: How often a source may ask for input before it answers; the bound that other clients have.
_ROUNDS_MAX: Final = 10
_PAGES_MAX: Final = 1_000
_ENTRIES_MAX: Final = 10_000


class McpAdapter:
    """One MCP server; `Adapter` says what each method promises.

    `era` is which revisions to speak: `modern` the stateless one, `legacy` those with a handshake, `auto`
    whichever the server knows. `relay` is what of the server's own initiative may reach the calling client.
    `result_bytes_max` bounds one answer; a child process that says a longer line is killed.

    Codes of its AdapterErrors, certainly without effect: `unreachable`, `source_down`, `source_busy`,
    `source_auth`, `source_refused`, `unsendable`, `revision`; in doubt: `source_lost`, `source_failed`,
    `invalid_answer`, `answer_too_large`, `input_required`; either: `rpc_error`, `timeout`.
    """

    def __init__(
        self,
        *,
        source: str,
        target: StdioTarget | HttpTarget,
        era: Era = "auto",
        relay: frozenset[Relay] = frozenset(),
        connect_timeout_s: float = 30.0,
        result_bytes_max: int = 4 * 1024 * 1024,
    ) -> None:
        self._source = source
        self._target = target
        self._era: Era = era
        self._relay = relay
        self._questions = relay.intersection(QUESTIONS.values())
        self._connect_timeout_s = connect_timeout_s
        self._result_bytes_max = result_bytes_max
        self._client = {"name": "remit", "version": version("remit")}
        self._on_event: Callable[[Event], None] = lambda _: None
        self._changes = Changes(source, self._client, lambda event: self._on_event(event))
        self._owner: anyio.CancelScope | None = None
        self._ended = anyio.Event()
        self._health = Health(state="stopped")
        self._changed = anyio.Event()
        self._last_loss = ""
        # What the present connection is.
        self._link: Link | None = None
        self._background: TaskGroup
        self._capabilities: Json = {}
        #: What an earlier connection found out; saves the probe.
        self._is_legacy = era == "legacy"
        self._mirrors: dict[str, Mirror] = {}
        #: A pipe of the older revisions does not say which request a question is about: one at a time.
        self._turn = asyncio.Lock()

    @property
    def source(self) -> str:
        return self._source

    keeps_deadlines = True

    def health(self) -> Health:
        return self._health

    # The connection and its owner.

    async def start(self, tasks: TaskGroup, on_event: Callable[[Event], None]) -> None:
        self._on_event = on_event
        self._ended = anyio.Event()
        await tasks.start(self._own)

    async def stop(self) -> None:
        if self._owner is not None:
            self._owner.cancel()
            await self._ended.wait()

    async def _own(self, *, task_status: TaskStatus[None]) -> None:
        """Keep the source connected until told to stop."""
        connects_before = self._health.connects
        losses = 0
        try:
            with anyio.CancelScope() as self._owner:
                while True:
                    since = anyio.current_time()
                    self._set_health("connecting")
                    first = self._health.connects == connects_before
                    lost = await self._connection(task_status.started if first else self._changes.everything)
                    if self._health.connects == connects_before:
                        raise lost
                    self._last_loss = lost.message
                    log.warning("source %s: connection lost: %s", self._source, lost.message)
                    losses = 0 if anyio.current_time() - since > _STEADY_S else losses + 1
                    if losses > 1:
                        self._set_health("down", lost.message)
                        # Jitter, lest many sources of one host come back at the same moment.
                        jitter = random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, hides nothing
                        await anyio.sleep(min(0.1 * 2**losses, _BACKOFF_S_MAX) * jitter)
        finally:
            self._owner = None
            self._set_health("stopped", self._health.detail)
            self._ended.set()

    async def _connection(self, on_up: Callable[[], None]) -> AdapterError:
        """Hold one connection until it is lost; return why."""
        lost = AdapterError("stopped", no_effect=True)
        async with anyio.create_task_group() as self._background:
            try:
                async with self._connected() as link:
                    self._link = link
                    self._set_health("up", self._describe(link), connected=True)
                    on_up()
                    lost = AdapterError(await link.lost(), no_effect=True)
            except AdapterError as error:
                lost = error
            finally:
                self._link = None
                self._background.cancel_scope.cancel()
        return lost

    def _set_health(
        self,
        state: Literal["connecting", "up", "down", "stopped"],
        detail: str = "",
        *,
        connected: bool = False,
    ) -> None:
        self._health = Health(state=state, detail=detail, connects=self._health.connects + connected)
        self._changed.set()
        self._changed = anyio.Event()

    def _describe(self, link: Link) -> str:
        revision = f"revision {link.version}"
        return f"{revision}; lost before: {self._last_loss}" if self._last_loss else revision

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[Link]:
        """One connection, negotiated and listening. Raises AdapterError."""
        async with AsyncExitStack() as stack:
            try:
                # Not a cancel scope: what the stack opens stays open beyond it.
                async with asyncio.timeout(self._connect_timeout_s):
                    link = await self._negotiated(stack)
                    await self._changes.begin(link, self._capabilities, self._background)
            except TimeoutError:
                raise AdapterError(
                    f"The source did not come up within {self._connect_timeout_s:g} s.",
                    no_effect=True,
                    code="source_down",
                ) from None
            except SessionLostError:
                raise AdapterError(
                    "The source forgot the session it had just given.", no_effect=True, code="source_down"
                ) from None
            try:
                yield link
            finally:
                # Nothing may use the connection while it closes.
                self._background.cancel_scope.cancel()

    async def _open(self, stack: AsyncExitStack) -> Link:
        # Imported here, for the HTTP client costs 0.2 s that a gateway without HTTP sources need not spend.
        if isinstance(self._target, StdioTarget):
            from remit_adapters.mcp import stdio

            return await stack.enter_async_context(
                stdio.running(
                    self._target, line_bytes_max=self._result_bytes_max, on_unasked=self._changes.heard
                )
            )
        from remit_adapters.mcp import http

        return await stack.enter_async_context(
            http.connected(
                self._target,
                self._background,
                answer_bytes_max=self._result_bytes_max,
                on_unasked=self._changes.heard,
                mirrors=self._mirrors,
            )
        )

    async def _negotiated(self, stack: AsyncExitStack) -> Link:
        """A connection in the newest revision that both sides speak; what it can do is noted."""
        link = await self._open(stack)
        probe_s = min(_PROBE_S_MAX, self._connect_timeout_s / 3)
        if not self._is_legacy:
            try:
                self._capabilities = await discover(link, self._client, timeout_s=probe_s)
                return link
            except AdapterError as error:
                if self._era == "modern" or (error.code in OUTAGES and not link.gone):
                    raise
                if link.gone:  # it died of the probe, as some older servers do
                    await stack.aclose()
                    link = await self._open(stack)
        try:
            self._capabilities = await initialize(link, self._client, self._questions)
            self._is_legacy = True
        except AdapterError as error:
            self._is_legacy = self._era == "legacy"
            if self._is_legacy or not _is_rpc(error, UNSUPPORTED_VERSION):
                raise
            # A slow starter took the probe after we had given it up, and is modern from then on.
            self._capabilities = await discover(link, self._client, timeout_s=probe_s)
        return link

    async def _up(self) -> Link:
        """The connection, as soon as there is one; a source known to be down is not waited for."""
        while (link := self._link) is None or link.gone:
            if link is None and self._health.state in ("down", "stopped"):
                raise AdapterError(
                    "The source is down just now; nothing was sent. Try again later.",
                    no_effect=True,
                    code="source_down",
                )
            await self._changed.wait()
        return link

    async def _through(self, work: Callable[[Link], Awaitable[T]]) -> T:
        """Do something over the connection.

        Once more when the source refused it unread because it forgot our session: the one safe repetition.
        """
        link = await self._up()
        try:
            result = await work(link)
        except SessionLostError:
            try:
                link = await self._up()
                result = await work(link)
            except SessionLostError:
                raise AdapterError(
                    "The source keeps forgetting the gateway's session.", no_effect=True, code="source_down"
                ) from None
        except AdapterError as error:
            if error.code == "unreachable":
                self._set_health("down", error.message)
            if _is_rpc(error, HEADER_MISMATCH):
                self._on_event(Event(kind="tools"))  # a tool is not what it was when it was listed
            raise
        if self._health.state == "down" and self._link is link:
            # It was away, and may have come back as another.
            self._set_health("up", self._describe(link))
            self._changes.everything()
        return result

    # What the gateway asks.

    async def offer(self) -> Offer:
        return await self._through(self._offer)

    async def _offer(self, link: Link) -> Offer:
        has = self._capabilities
        tools = await self._pages(link, "tools/list", "tools") if "tools" in has else ()
        if isinstance(self._target, HttpTarget) and link.version == MODERN:
            tools = self._mirrored(tools)
        resources: tuple[Json, ...] = ()
        templates: tuple[Json, ...] = ()
        if "resources" in has:
            resources = await self._pages(link, "resources/list", "resources")
            templates = await self._pages(link, "resources/templates/list", "resourceTemplates")
        return Offer(
            tools=tools,
            resources=resources,
            resource_templates=templates,
            prompts=await self._pages(link, "prompts/list", "prompts") if "prompts" in has else (),
            completes="completions" in has,
            subscribes=member(has, "resources").get("subscribe") is True,
        )

    async def subscribe(self, uri: str, on: bool) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._through(lambda link: self._changes.watch(link, uri, on))
        except TimeoutError:
            raise AdapterError(
                "The source did not confirm the subscription in time.", no_effect=False, code="timeout"
            ) from None

    async def _pages(self, link: Link, method: str, member: str) -> tuple[Json, ...]:
        try:
            # One bound for all pages: a source may not keep the gateway waiting page by page.
            async with asyncio.timeout(self._connect_timeout_s):
                return await self._all_pages(link, method, member)
        except TimeoutError:
            raise AdapterError(
                "The source did not list what it offers in time.", no_effect=True, code="timeout"
            ) from None
        except AdapterError as error:
            # One capability stands for resources and templates alike; many sources have only one of them.
            if _is_rpc(error, METHOD_NOT_FOUND):
                return ()
            raise

    async def _all_pages(self, link: Link, method: str, member: str) -> tuple[Json, ...]:
        entries: list[Json] = []
        params: Message = {}
        for _ in range(_PAGES_MAX):
            if link.version == MODERN:
                params["_meta"] = stamped({}, self._client, {})
            page = await link.request(method, params)
            found: Any = page.get(member)
            if not isinstance(found, list):
                raise invalid(f"its {member} is not a list")
            for entry in cast("list[Any]", found):
                if not isinstance(entry, dict):
                    raise invalid(f"its {member} holds something else than objects")
                entries.append(cast("Json", entry))
            cursor: Any = page.get("nextCursor")
            if cursor is None:
                return tuple(entries)
            if len(entries) > _ENTRIES_MAX:
                break
            params = {"cursor": cursor}
        raise invalid(f"its {member} has no end")

    def _mirrored(self, tools: tuple[Json, ...]) -> tuple[Json, ...]:
        """Learn which arguments go into headers; leave out tools that say so wrongly (MCP: clients MUST)."""
        mirrors: dict[str, Mirror] = {}
        kept: list[Json] = []
        for tool in tools:
            name: Any = tool.get("name")
            try:
                found = mirror(tool.get("inputSchema"))
            except ValueError as error:
                log.warning("source %s: tool %r is left out: %s", self._source, name, error)
                continue
            kept.append(tool)
            if found and isinstance(name, str):
                mirrors[name] = found
        self._mirrors.clear()
        self._mirrors.update(mirrors)
        return tuple(kept)

    async def run(self, request: Request, caller: Caller = NOBODY) -> Reply:
        sent = False

        async def work(link: Link) -> Reply:
            nonlocal sent
            if link.version == MODERN or not self._questions or isinstance(self._target, HttpTarget):
                request.before_sent()
                sent = True
                return await self._run(link, request, caller)
            async with self._turn:
                request.before_sent()
                sent = True
                return await self._run(link, request, caller)

        try:
            async with asyncio.timeout(request.deadline_s):
                return await self._through(work)
        except TimeoutError:
            within = f"within {ceil(request.deadline_s)} s"
            raise AdapterError(
                f"The source did not answer {within}."
                if sent
                else f"The source was not free {within}; nothing was sent.",
                no_effect=not sent,
                code="timeout",
            ) from None

    async def _run(self, link: Link, request: Request, caller: Caller) -> Reply:
        """Send the request; again with answers for as long as the source asks (MCP 2026-07-28, MRTR)."""
        responses, state = request.input_responses, request.request_state
        pause_s = 0.05
        for _ in range(_ROUNDS_MAX):
            body = await self._send(link, request, caller, responses, state)
            if link.version != MODERN:
                # Not a word of the older revisions: a newer client must not read a question into it.
                body.pop("resultType", None)
            kind: Any = body.get("resultType", "complete")
            if kind == "complete":
                check(request.operation, body)
                return Reply(body=body, is_error=body.get("isError") is True)
            if kind != "input_required" or request.operation is Operation.COMPLETE:
                raise invalid("its kind is unknown")
            questions = self._asked(body, caller)
            if caller.protocol_version == MODERN:
                return Reply(body=body, kind="input_required")
            responses = {key: await self._answered(caller, *question) for key, question in questions.items()}
            state = body.get("requestState")
            if not questions:
                responses = None
                await anyio.sleep(pause_s)
                pause_s = min(pause_s * 2, 0.25)
        raise AdapterError(
            f"The source asked for input {_ROUNDS_MAX} times and did not finish.",
            no_effect=False,
            code="input_required",
        )

    def _asked(self, body: Message, caller: Caller) -> dict[str, tuple[str, Json]]:
        """The questions in an InputRequiredResult, each one allowed to reach the caller."""
        if not isinstance(body.get("inputRequests", {}), dict) or not isinstance(
            body.get("requestState", ""), str
        ):
            raise invalid("what it asks for has no form")
        questions: dict[str, tuple[str, Json]] = {}
        for key, question in member(body, "inputRequests").items():
            method: Any = cast("Json", question).get("method") if isinstance(question, dict) else None
            params = member(cast("Json", question), "params")
            if not isinstance(method, str) or not may_ask(self._relay, caller, method, params):
                raise AdapterError(
                    "The source wants to ask the client something that may not be asked here.",
                    no_effect=False,
                    code="input_required",
                )
            questions[key] = (method, params)
        return questions

    async def _answered(self, caller: Caller, method: str, params: Json) -> Json:
        reply = await put(caller, method, params)
        if "error" in reply:
            raise AdapterError(
                "The source asked the client something and got no answer.",
                no_effect=False,
                code="input_required",
                rpc=reply["error"],
            )
        return reply["result"]

    async def _send(
        self, link: Link, request: Request, caller: Caller, responses: Json | None, state: str | None
    ) -> Message:
        """One round of a request, with everything that comes before its answer."""
        params = self._params(link, request, caller, responses, state)
        method = request.operation.value
        progress = caller.progress is not None
        if caller.ask is None or not self._questions:
            hear = None
            if progress or caller.notify is not None:
                hear = Exchange(caller, self._relay, None, link.answer).hear
            return await link.request(method, params, hear, progress=progress)
        outcome: Message | Exception = {}
        async with anyio.create_task_group() as questions:
            try:
                hear = Exchange(caller, self._relay, questions, link.answer).hear
                outcome = await link.request(method, params, hear, progress=progress)
            except (AdapterError, SessionLostError) as error:
                outcome = error
            questions.cancel_scope.cancel()  # an answer leaves nothing to ask
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _params(
        self, link: Link, request: Request, caller: Caller, responses: Json | None, state: str | None
    ) -> Message:
        meta = {
            key: value
            for key, value in request.meta.items()
            if key != "progressToken" and not key.startswith(RESERVED_PREFIX)
        }
        meta[KEY] = request.key
        params: Message
        match request.operation:
            case Operation.TOOL | Operation.PROMPT:
                params = {"name": request.name, "arguments": request.arguments}
            case Operation.RESOURCE:
                params = {"uri": request.name}
            case Operation.COMPLETE:
                params = dict(request.arguments)
        if link.version == MODERN:
            if "logging" in self._relay and LOG_LEVEL_KEY in request.meta:
                meta[LOG_LEVEL_KEY] = request.meta[LOG_LEVEL_KEY]
            stamped(meta, self._client, relayed_capabilities(self._relay, caller))
            if responses is not None:
                params["inputResponses"] = responses
            if state is not None:
                params["requestState"] = state
        params["_meta"] = meta
        return params


def _is_rpc(error: AdapterError, code: int) -> bool:
    return error.rpc is not None and error.rpc.get("code") == code
