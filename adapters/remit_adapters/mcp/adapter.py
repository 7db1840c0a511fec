"""`McpAdapter`: one MCP server as a source.

It knows what the methods mean and in which revision they are spoken; how the bytes travel is the
business of `stdio` and `http`. It validates nothing that a source says and lists nothing unless told to. One
task, started by `start` in the application's group, owns the connection: makes it and makes it again.

Source: MCP 2025-06-18, 2025-11-25 and 2026-07-28.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Any, Final, Literal, TypeAlias, cast

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
from remit_adapters.mcp.exchange import (
    QUESTIONS,
    Exchange,
    Relay,
    relayed_capabilities,
)
from remit_adapters.mcp.headers import Mirror, mirror
from remit_adapters.mcp.targets import HttpTarget, StdioTarget
from remit_adapters.mcp.wire import (
    CAPABILITIES_KEY,
    CLIENT_KEY,
    LEGACY,
    LOG_LEVEL_KEY,
    METHOD_NOT_FOUND,
    MODERN,
    RESERVED_PREFIX,
    VERSION_KEY,
    Link,
    Message,
    SessionLostError,
    invalid,
)

log = logging.getLogger(__name__)

Era: TypeAlias = Literal["auto", "modern", "legacy"]

_CHANGES: Final[dict[str, Literal["tools", "resources", "prompts"]]] = {
    "notifications/tools/list_changed": "tools",
    "notifications/resources/list_changed": "resources",
    "notifications/prompts/list_changed": "prompts",
}
_BACKOFF_S_MAX: Final = 15.0
#: A connection that held this long counts as healthy; the next loss is repaired at once.
_STEADY_S: Final = 10.0
#: How many times a source may ask for input before it answers; the bound that other clients have.
_ROUNDS_MAX: Final = 10
_PAGES_MAX: Final = 1_000


class McpAdapter:
    """One MCP server. `Adapter` says what each method promises."""

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
        self._connect_timeout_s = connect_timeout_s
        self._result_bytes_max = result_bytes_max
        self._client = {"name": "remit", "version": version("remit")}
        self._on_event: Callable[[Event], None] = lambda _: None
        self._link: Link | None = None
        self._capabilities: Json = {}
        self._mirrors: dict[str, Mirror] = {}
        self._subscriptions: set[str] = set()
        self._health = Health(state="stopped")
        self._changed = anyio.Event()
        self._owner: anyio.CancelScope | None = None
        self._ended = anyio.Event()
        #: On a pipe of the older revisions nothing says which request a question is about: one at a time.
        self._turn = asyncio.Lock()

    @property
    def source(self) -> str:
        return self._source

    def health(self) -> Health:
        return self._health

    # The connection.

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
        losses = 0
        connects_before = self._health.connects
        try:
            with anyio.CancelScope() as self._owner:
                while True:
                    since = anyio.current_time()
                    self._set_health("connecting")
                    first = self._health.connects == connects_before
                    lost = await self._connection(task_status.started if first else self._everything_changed)
                    if self._health.connects == connects_before:
                        raise lost
                    log.warning("source %s: connection lost: %s", self._source, lost.message)
                    losses = 0 if anyio.current_time() - since > _STEADY_S else losses + 1
                    if losses > 1:
                        self._set_health("down", lost.message)
                        # Jitter, lest many sources of one host come back at the same moment.
                        await anyio.sleep(min(0.1 * 2**losses, _BACKOFF_S_MAX) * random.uniform(0.5, 1.0))  # noqa: S311
        finally:
            self._owner = None
            self._set_health("stopped", self._health.detail)
            self._ended.set()

    async def _connection(self, on_up: Callable[[], None]) -> AdapterError:
        """Hold one connection until it is lost; return why."""
        lost = AdapterError("stopped", no_effect=True)
        async with anyio.create_task_group() as background:
            try:
                async with self._connected(background) as link:
                    self._link = link
                    self._set_health("up", f"revision {link.version}", connected=True)
                    on_up()
                    lost = AdapterError(await link.lost(), no_effect=True)
            except AdapterError as error:
                lost = error
            finally:
                self._link = None
                background.cancel_scope.cancel()
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

    @asynccontextmanager
    async def _connected(self, background: TaskGroup) -> AsyncGenerator[Link]:
        """One connection, negotiated and listening."""
        async with AsyncExitStack() as stack:
            try:
                # Not a cancel scope: what the stack opens stays open beyond it.
                async with asyncio.timeout(self._connect_timeout_s):
                    link = await self._open(stack, background)
                    if self._era == "legacy" or not await self._discover(link):
                        await self._initialize(link)
            except TimeoutError:
                raise AdapterError(
                    f"The source did not come up within {self._connect_timeout_s:g} s.",
                    no_effect=True,
                    code="source_down",
                ) from None
            yield link

    async def _open(self, stack: AsyncExitStack, background: TaskGroup) -> Link:
        # Imported here, for the HTTP client costs 0.2 s that a stdio-only gateway need not spend.
        if isinstance(self._target, StdioTarget):
            from remit_adapters.mcp import stdio

            return await stack.enter_async_context(
                stdio.running(self._target, line_bytes_max=self._result_bytes_max, on_unasked=self._unasked)
            )
        from remit_adapters.mcp import http

        endpoint = await stack.enter_async_context(
            http.connected(
                self._target,
                background,
                answer_bytes_max=self._result_bytes_max,
                connect_timeout_s=self._connect_timeout_s,
                on_unasked=self._unasked,
            )
        )
        endpoint.mirrors = self._mirrors
        return endpoint

    async def _discover(self, link: Link) -> bool:
        """Ask in the stateless revision; False when the source turns out to be older."""
        link.version = MODERN
        try:
            found = await link.request("server/discover", {"_meta": self._stamp({}, {})})
        except AdapterError as error:
            if self._era == "modern" or error.code != "rpc_error":
                raise
            return False
        self._capabilities = _member(found, "capabilities")
        return True

    async def _initialize(self, link: Link) -> None:
        link.version = ""
        found = await link.request(
            "initialize",
            {
                "protocolVersion": LEGACY[0],
                "capabilities": {kind: {} for kind in QUESTIONS.values() if kind in self._relay},
                "clientInfo": self._client,
            },
        )
        revision: Any = found.get("protocolVersion")
        if revision not in LEGACY:
            raise AdapterError("The source speaks no revision of MCP that the gateway knows.", no_effect=True)
        link.version = revision
        self._capabilities = _member(found, "capabilities")
        await link.notify("notifications/initialized", {})

    # What the source says unasked.

    def _unasked(self, message: Message) -> None:
        method: Any = message.get("method")
        if method in _CHANGES:
            self._on_event(Event(kind=_CHANGES[method]))
        elif method == "notifications/resources/updated":
            uri: Any = _member(message, "params").get("uri")
            if isinstance(uri, str):
                self._on_event(Event(kind="resource_updated", uri=uri))

    def _everything_changed(self) -> None:
        for kind in _CHANGES.values():
            self._on_event(Event(kind=kind))

    # What the gateway asks.

    async def offer(self) -> Offer:
        link = await self._up()
        has = self._capabilities
        tools = await self._pages(link, "tools/list", "tools") if "tools" in has else ()
        resources = await self._pages(link, "resources/list", "resources") if "resources" in has else ()
        templates = (
            await self._pages(link, "resources/templates/list", "resourceTemplates")
            if "resources" in has
            else ()
        )
        prompts = await self._pages(link, "prompts/list", "prompts") if "prompts" in has else ()
        if isinstance(self._target, HttpTarget) and link.version == MODERN:
            tools = self._mirror(tools)
        return Offer(
            tools=tools,
            resources=resources,
            resource_templates=templates,
            prompts=prompts,
            completes="completions" in has,
            subscribes=bool(_member(has, "resources").get("subscribe")),
        )

    def _mirror(self, tools: tuple[Json, ...]) -> tuple[Json, ...]:
        """Learn which arguments go into headers; leave out tools that say so wrongly (MCP: clients MUST)."""
        mirrors: dict[str, Mirror] = {}
        kept: list[Json] = []
        for tool in tools:
            try:
                found = mirror(tool.get("inputSchema"))
            except ValueError as error:
                log.warning("source %s: tool %r is left out: %s", self._source, tool.get("name"), error)
                continue
            kept.append(tool)
            name: Any = tool.get("name")
            if found and isinstance(name, str):
                mirrors[name] = found
        self._mirrors.clear()
        self._mirrors.update(mirrors)
        return tuple(kept)

    async def _pages(self, link: Link, method: str, member: str) -> tuple[Json, ...]:
        entries: list[Json] = []
        params: Message = {}
        for _ in range(_PAGES_MAX):
            if link.version == MODERN:
                params["_meta"] = self._stamp({}, {})
            try:
                async with asyncio.timeout(self._connect_timeout_s):
                    page = await link.request(method, params)
            except TimeoutError:
                raise AdapterError(
                    "The source did not list what it offers in time.", no_effect=True
                ) from None
            except AdapterError as error:
                # A capability says "resources" for lists and templates alike; many sources have only one.
                if error.rpc is not None and error.rpc.get("code") == METHOD_NOT_FOUND:
                    return ()
                raise
            found: Any = page.get(member)
            if not isinstance(found, list) or not all(
                isinstance(entry, dict) for entry in cast("list[Any]", found)
            ):
                raise invalid(f"its {member} is not a list of objects")
            entries += cast("list[Json]", found)
            cursor: Any = page.get("nextCursor")
            if cursor is None:
                return tuple(entries)
            params = {"cursor": cursor}
        raise invalid(f"its {member} has no end")

    async def run(self, request: Request, caller: Caller = NOBODY) -> Reply:
        sent = False
        try:
            async with asyncio.timeout(request.deadline_s):
                link = await self._up()
                sent = True
                return await self._run(link, request, caller)
        except TimeoutError:
            raise AdapterError(
                f"The source did not answer within {request.deadline_s:g} s; whether it acted is unknown."
                if sent
                else f"The source was not up within {request.deadline_s:g} s; nothing was sent.",
                no_effect=not sent,
                code="timeout",
            ) from None

    async def _run(self, link: Link, request: Request, caller: Caller) -> Reply:
        body = await self._send(link, request, caller, request.input_responses, request.request_state)
        kind: Any = body.get("resultType", "complete")
        if kind != "complete":
            raise invalid("its kind is unknown")
        return Reply(body=body, is_error=body.get("isError") is True)

    async def _send(
        self, link: Link, request: Request, caller: Caller, responses: Json | None, state: str | None
    ) -> Message:
        params = self._params(link, request, caller, responses, state)
        method = request.operation.value
        if caller.progress is None and caller.notify is None and caller.ask is None:
            return await link.request(method, params)
        if caller.ask is None or not self._relay.intersection(QUESTIONS.values()):
            return await link.request(method, params, Exchange(caller, self._relay, None, link.answer).hear)
        outcome: Message | Exception = {}
        async with anyio.create_task_group() as questions:
            try:
                hear = Exchange(caller, self._relay, questions, link.answer).hear
                outcome = await link.request(method, params, hear)
            except (AdapterError, SessionLostError) as error:
                outcome = error
            questions.cancel_scope.cancel()  # an answer leaves nothing to ask
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _params(
        self, link: Link, request: Request, caller: Caller, responses: Json | None, state: str | None
    ) -> Message:
        meta = {key: value for key, value in request.meta.items() if not key.startswith(RESERVED_PREFIX)}
        meta.pop("progressToken", None)
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
            self._stamp(meta, relayed_capabilities(self._relay, caller))
            if responses is not None:
                params["inputResponses"] = responses
            if state is not None:
                params["requestState"] = state
        if meta:
            params["_meta"] = meta
        return params

    def _stamp(self, meta: Message, capabilities: Json) -> Message:
        """Add what every request of the stateless revision carries (MCP 2026-07-28, basic, `_meta`)."""
        meta[VERSION_KEY] = MODERN
        meta[CLIENT_KEY] = self._client
        meta[CAPABILITIES_KEY] = capabilities
        return meta

    async def subscribe(self, uri: str, on: bool) -> None:
        raise AdapterError("not yet", no_effect=True)

    async def _up(self) -> Link:
        """The connection, as soon as there is one; a source known to be down is not waited for."""
        while self._link is None:
            if self._health.state != "connecting":
                raise AdapterError(
                    "The source is down just now; nothing was sent. Try again later.",
                    no_effect=True,
                    code="source_down",
                )
            await self._changed.wait()
        return self._link


def _member(message: Json, name: str) -> Json:
    """An object inside a message; empty when it is missing or something else."""
    value: Any = message.get(name)
    return cast("Json", value) if isinstance(value, dict) else {}
