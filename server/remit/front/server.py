"""The MCP front: the only importer of the SDK's server. It translates in and out and decides nothing.

One server object answers stdio and streamable HTTP, and both eras of the protocol. Each request becomes a
frozen Call (or a look at a filtered list), goes to the pipeline, and its outcome becomes a result. What
differs between the eras is only how a source's question reaches the client and how changes are announced.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import wraps
from typing import Any, TypeVar, cast

import mcp_types as t
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp.shared.subscriptions import (
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from remit import __version__, telemetry
from remit.app import App
from remit.calls import new_call
from remit.confirmations import NOBODY_TO_ASK, AskingUser, Resumed, resumed
from remit.errors import RemitError, StoreUnavailable
from remit.front.agent_tools import AGENT_TOOLS
from remit.front.agent_tools import answer as answer_agent_tool
from remit.front.answers import noted, to_wire, unknown
from remit.front.sessions import Sessions
from remit.front.visible import Views
from remit.identity import Principal
from remit.model import Refused, Remedy, Tool, Verdict
from remit.pipeline import Services, govern, informed
from remit.runs import RunKey, key_of
from remit_adapters.base import AdapterError, Caller, Event, Json, Operation
from remit_rbac import Rung

Context = ServerRequestContext[Any, Any]
Result = dict[str, Any]
P = TypeVar("P")

_log = logging.getLogger("remit.front")
_LIST_TTL_MS = 10_000
_PREFIX = "dev.remit/"
_RESERVED = "io.modelcontextprotocol/"
_NAME_MAX = 128
_CLAIM_MAX = 4096
_NOT_VISIBLE = Verdict(
    rung=Rung.DENY,
    code="not_visible",
    reason="There is no such tool for this caller.",
    remedy=Remedy.STOP,
)
_QUESTIONS: Mapping[str, tuple[type[Any], type[Any]]] = {
    "elicitation/create": (t.ElicitRequest, t.ElicitResult),
    "sampling/createMessage": (t.CreateMessageRequest, t.CreateMessageResult),
    "roots/list": (t.ListRootsRequest, t.ListRootsResult),
}


#: What a source may say to the client of a running call; the adapter passes only what `relay` allows.
_RELAYED: Mapping[str, type[Any]] = {
    "notifications/message": t.LoggingMessageNotification,
    "notifications/elicitation/complete": t.ElicitCompleteNotification,
}


class _Gateway(Server[Any]):
    """The SDK's server, declaring list changes on HTTP in the older revisions too."""

    def create_initialization_options(self, *args: Any, **kwargs: Any) -> Any:
        if not args and "notification_options" not in kwargs:
            kwargs["notification_options"] = NotificationOptions(True, True, True)
        return super().create_initialization_options(*args, **kwargs)


class _Untold(MCPError):
    """An error on its way past the SDK's span, which would repeat its words: they may be of the arguments."""

    def __init__(self, error: MCPError) -> None:
        super().__init__(error.code, "")
        self.error_itself = error


async def _hide_words(ctx: Context, call_next: CallNext) -> HandlerResult:
    try:
        return await call_next(ctx)
    except MCPError as error:
        raise _Untold(error) from None


async def _tell_words(ctx: Context, call_next: CallNext) -> HandlerResult:
    try:
        return await call_next(ctx)
    except _Untold as untold:
        raise untold.error_itself from None


class Front:
    """Handlers over one App. `principal` is fixed for stdio; over HTTP the guard proves one per request."""

    def __init__(self, app: App, *, principal: Principal | None = None, run: str = "") -> None:
        self._app = app
        self._principal = principal
        self._run = run
        self._views = Views()
        self._bus = InMemorySubscriptionBus()
        self._sessions = Sessions()
        self._header_schemas: dict[str, Json] = {}
        self._listen = ListenHandler(self._bus)
        self._agent_tools = [AGENT_TOOLS[f"remit.{name}"] for name in sorted(app.config.agent_tools)]
        self.server = self._build()
        self._to_tell: asyncio.Queue[Event] = asyncio.Queue(256)
        app.listen(self._heard)

    def _build(self) -> Server[Any]:
        server = _Gateway(
            "remit",
            version=__version__,
            instructions=(
                "Tools of your organisation, governed by Remit. A refusal says in plain words what to do: "
                "ask, wait, change the call, or stop. remit.explain tells beforehand what a call would be."
            ),
            get_tool_input_schema=self._header_schema,
            on_subscriptions_listen=self._guarded(self._subscribe_modern),
        )
        handlers: list[tuple[str, type[Any], Callable[[Context, Any], Awaitable[Any]]]] = [
            ("tools/list", t.PaginatedRequestParams, self._list_tools),
            ("tools/call", t.CallToolRequestParams, self._call_tool),
            ("resources/list", t.PaginatedRequestParams, self._list_resources),
            ("resources/templates/list", t.PaginatedRequestParams, self._list_templates),
            ("resources/read", t.ReadResourceRequestParams, self._read_resource),
            ("resources/subscribe", t.SubscribeRequestParams, self._subscribe),
            ("resources/unsubscribe", t.UnsubscribeRequestParams, self._unsubscribe),
            ("prompts/list", t.PaginatedRequestParams, self._list_prompts),
            ("prompts/get", t.GetPromptRequestParams, self._get_prompt),
            ("completion/complete", t.CompleteRequestParams, self._complete),
            ("logging/setLevel", t.SetLevelRequestParams, self._set_level),
        ]
        for method, params, handler in handlers:
            server.add_request_handler(method, params, self._guarded(handler))
        server.add_notification_handler("notifications/initialized", t.NotificationParams, self._remember)
        server.middleware = [_tell_words, *server.middleware, _hide_words]
        return server

    @staticmethod
    def _guarded(
        handler: Callable[[Context, Any], Awaitable[Any]],
    ) -> Callable[[Context, Any], Awaitable[Any]]:
        """A bug inside a handler must not tell the client about our insides."""

        @wraps(handler)
        async def safe(ctx: Context, params: Any) -> Any:
            try:
                return await handler(ctx, params)
            except MCPError:
                raise
            except RemitError as error:
                _log.warning("%s: %s", ctx.method, error)
                raise MCPError(
                    t.INTERNAL_ERROR, "Remit cannot answer this just now; try again later."
                ) from None
            except Exception:  # noqa: BLE001 - the edge: the client is told nothing of it, the log everything
                internal_error(ctx.method)
                raise MCPError(t.INTERNAL_ERROR, "Internal error") from None

        return safe

    # Lists: what policy lets this principal see.

    async def _list_tools(self, ctx: Context, params: Any) -> Result:
        on, principal = await self._who(ctx)
        own = [tool.definition for tool in self._agent_tools]
        tools = [*self._views.of(principal, on).tools, *own]
        if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            tools = [_as_before(tool) for tool in tools]
        return _listed("tools", tools)

    async def _list_resources(self, ctx: Context, params: Any) -> Result:
        on, principal = await self._who(ctx)
        return _listed("resources", self._views.of(principal, on).resources)

    async def _list_templates(self, ctx: Context, params: Any) -> Result:
        on, principal = await self._who(ctx)
        return _listed("resourceTemplates", self._views.of(principal, on).templates)

    async def _list_prompts(self, ctx: Context, params: Any) -> Result:
        on, principal = await self._who(ctx)
        return _listed("prompts", self._views.of(principal, on).prompts)

    # Operations: everything below goes through the pipeline.

    async def _call_tool(self, ctx: Context, params: t.CallToolRequestParams) -> Result:
        on, principal = await self._who(ctx)
        arguments = params.arguments or {}
        if params.name in AGENT_TOOLS:
            if AGENT_TOOLS[params.name] not in self._agent_tools:
                raise unknown(Operation.TOOL, params.name)
            run = self._run_of(_meta_of(ctx.params), principal)
            told = await answer_agent_tool(params.name, arguments, principal, run, on, self._views)
            return await _with_notices(told, (principal.tenant, principal.agent, principal.user, run), on)
        tool = self._views.tool(params.name, principal, on)
        if tool is None:
            await self._note_invisible(params.name, arguments, principal, on)
            raise unknown(Operation.TOOL, params.name)
        return await self._governed(ctx, tool, arguments, principal, on)

    def plain_tool(self, name: str, principal: Principal, on: Services) -> Tool | None:
        """The tool by that name, when calling it needs nothing of the SDK: no questions, no headers."""
        tool = self._views.tool(name, principal, on)
        if tool is None or tool.header_schema is not None or on.config.sources[tool.source].relay:
            return None
        return tool

    async def _read_resource(self, ctx: Context, params: t.ReadResourceRequestParams) -> Result:
        on, principal = await self._who(ctx)
        tool = self._views.resource(params.uri, principal, on)
        if tool is None:
            raise unknown(Operation.RESOURCE, params.uri)
        return await self._governed(ctx, tool, {"uri": params.uri}, principal, on)

    async def _get_prompt(self, ctx: Context, params: t.GetPromptRequestParams) -> Result:
        on, principal = await self._who(ctx)
        found = self._views.prompt(params.name, principal, on)
        if found is None:
            raise unknown(Operation.PROMPT, params.name)
        prompt, tool = found
        arguments = {"name": prompt.own_name, "arguments": dict(params.arguments or {})}
        return await self._governed(ctx, tool, arguments, principal, on)

    async def _complete(self, ctx: Context, params: t.CompleteRequestParams) -> Result:
        on, principal = await self._who(ctx)
        raw = dict(ctx.params or {})
        raw.pop("_meta", None)
        tool: Tool | None = None
        if isinstance(params.ref, t.PromptReference):
            if found := self._views.prompt(params.ref.name, principal, on):
                prompt, reader = found
                raw["ref"] = {**raw["ref"], "name": prompt.own_name}
                tool = self._views.operation(reader.source, Operation.COMPLETE, principal, on)
        elif reader := self._views.resource(params.ref.uri, principal, on):
            tool = self._views.operation(reader.source, Operation.COMPLETE, principal, on)
        if tool is None:
            raise unknown(Operation.COMPLETE, "")
        return await self._governed(ctx, tool, raw, principal, on)

    async def _governed(
        self, ctx: Context, tool: Tool, arguments: Mapping[str, Any], principal: Principal, on: Services
    ) -> Result:
        raw: Mapping[str, Any] = ctx.params or {}
        caller = self._caller(ctx, tool, _meta_of(raw), on)
        if caller.notify and ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            # The stateless revision says per request what the older ones say once.
            level = self._sessions.of(ctx).level
            raw = {**raw, "_meta": {**_meta_of(raw), f"{_RESERVED}logLevel": level}} if level else raw
        begun = ctx.session.client_params
        result = await self.governed(
            raw,
            tool,
            arguments,
            principal,
            on,
            caller,
            asking_now=self._asking_now(ctx),
            client=begun and _program(begun.client_info.name, begun.client_info.version),
        )
        if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS and not isinstance(
            result.get("structuredContent", {}), Mapping
        ):
            del result["structuredContent"]  # the older revisions know only objects; the text says the same
        return result

    async def governed(
        self,
        raw: Mapping[str, Any],
        tool: Tool,
        arguments: Mapping[str, Any],
        principal: Principal,
        on: Services,
        caller: Caller,
        *,
        asking_now: AskingUser | None = None,
        client: str | None = None,
    ) -> Result:
        """Make a call of raw request params, govern it, and put its outcome into wire shape.

        `client` is the program that began the session, where it is not said with each request.
        """
        meta = _meta_of(raw)
        sent = _SENT_PLAINLY
        if "requestState" in raw or "inputResponses" in raw:
            sent = resumed(raw.get("requestState"), raw.get("inputResponses"), on.secret)
        asking = asking_now or (_AGAIN if _takes_forms(meta.get(_CAPABILITIES)) else NOBODY_TO_ASK)
        call = new_call(
            tool=tool,
            arguments=arguments,
            principal=principal,
            run=self._run_of(meta, principal),
            secret=on.secret,
            at_us=on.clock(),
            client_key=_short(meta.get(f"{_PREFIX}idempotency_key"), "idempotency_key"),
            claim=_claim(meta.get(f"{_PREFIX}claim")),
            client=client or _said_program(meta.get(_CLIENT)),
            trace_id=telemetry.current_trace_id(),
            meta={key: value for key, value in meta.items() if not key.startswith(_PREFIX)} if meta else None,
            input_responses=sent.input_responses,
            request_state=sent.request_state,
            confirmation=sent.confirmation,
        )
        result = to_wire(call, await govern(call, on, caller, asking))
        if on.journal.untold and tool.operation is Operation.TOOL:
            return await _with_notices(result, key_of(call), on)
        return result

    async def _note_invisible(
        self, name: str, arguments: Mapping[str, Any], principal: Principal, on: Services
    ) -> None:
        """Record a try at a tool that exists and that this caller may not see."""
        tool = on.catalog.tools.get(name)
        if tool is None or tool.operation is not Operation.TOOL:
            return
        call = new_call(
            tool=tool,
            arguments=arguments,
            principal=principal,
            run=self._run_of({}, principal),
            secret=on.secret,
            at_us=on.clock(),
        )
        await on.journal.refuse(call, _NOT_VISIBLE)

    # Subscriptions and notifications.

    async def _subscribe(self, ctx: Context, params: t.SubscribeRequestParams) -> Result:
        await self._follow(ctx, params.uri)
        self._sessions.of(ctx).uris.add(params.uri)
        return {}

    async def _unsubscribe(self, ctx: Context, params: t.UnsubscribeRequestParams) -> Result:
        # The source stays subscribed: others of its clients here may still listen.
        self._sessions.of(ctx).uris.discard(params.uri)
        return {}

    async def _subscribe_modern(
        self, ctx: Context, params: t.SubscriptionsListenRequestParams
    ) -> t.SubscriptionsListenResult:
        for uri in params.notifications.resource_subscriptions or ():
            await self._follow(ctx, uri)
        return await self._listen(ctx, params)

    async def _follow(self, ctx: Context, uri: str) -> None:
        on, principal = await self._who(ctx)
        tool = self._views.resource(uri, principal, on)
        if tool is None:
            raise unknown(Operation.RESOURCE, uri)
        # Whoever may not read it is not told either that it is there, or that it changes.
        call = new_call(
            tool=tool,
            arguments={"uri": uri},
            principal=principal,
            run=self._run_of(_meta_of(ctx.params), principal),
            secret=on.secret,
            at_us=on.clock(),
        )
        verdict = (await informed(call, on)).verdict
        if verdict.rung in (Rung.DENY, Rung.ADVISE):
            await on.journal.refuse(call, verdict)
            to_wire(call, Refused(call_id=call.id, verdict=verdict))
        try:
            await on.adapters[tool.source].subscribe(uri, True)
        except AdapterError as error:
            rpc = error.rpc or {}
            code: Any = rpc.get("code")
            raise MCPError(
                code if type(code) is int else t.INTERNAL_ERROR, str(rpc.get("message", error.message))
            ) from None

    async def _set_level(self, ctx: Context, params: t.SetLevelRequestParams) -> Result:
        self._sessions.of(ctx).level = params.level
        return {}

    async def _remember(self, ctx: Context, params: Any) -> None:
        self._sessions.of(ctx)

    def _heard(self, event: Event) -> None:
        try:
            self._to_tell.put_nowait(event)
        except asyncio.QueueFull:
            _log.warning("too many changes at once: clients learn of some when they next ask")

    async def tell_clients(self) -> None:
        """Announce changes to every client, until cancelled. Runs beside whatever serves."""
        while True:
            event = await self._to_tell.get()
            await self._bus.publish(_announcement(event))
            await self._sessions.announce(event)

    # Who asks, and what the asking client can do for a source.

    async def _who(self, ctx: Context) -> tuple[Services, Principal]:
        on = await self._app.services()
        self._note_header_schemas(on)
        if ctx.request is not None:
            return on, ctx.request.scope["remit.principal"]
        if self._principal is None:
            raise MCPError(t.INTERNAL_ERROR, "No identity is configured for this connection.")
        return on, self._principal

    def _run_of(self, meta: Mapping[str, Any], principal: Principal) -> str:
        if principal.run:
            return principal.run
        return _short(meta.get(f"{_PREFIX}run"), "run") or self._run or "default"

    def _caller(self, ctx: Context, tool: Tool, meta: Mapping[str, Any], on: Services) -> Caller:
        relay = on.config.sources[tool.source].relay
        wants_progress = "progressToken" in meta
        if not relay and not wants_progress:
            return PLAIN.get(ctx.protocol_version) or Caller(protocol_version=ctx.protocol_version)
        session = ctx.session
        modern = ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
        declared = session.client_capabilities

        async def ask(method: str, params: Json) -> Json:
            request, result = _QUESTIONS[method]
            answer = await session.send_request(
                request.model_validate({"method": method, "params": params}),
                result,
                metadata=ServerMessageMetadata(related_request_id=ctx.request_id),
            )
            return answer.model_dump(by_alias=True, exclude_unset=True, mode="json")

        async def notify(method: str, params: Json) -> None:
            if notification := _RELAYED.get(method):
                await session.send_notification(
                    notification.model_validate({"method": method, "params": params}),
                    related_request_id=ctx.request_id,
                )

        return Caller(
            protocol_version=ctx.protocol_version,
            capabilities=meta.get(f"{_RESERVED}clientCapabilities", {})
            if modern
            else declared.model_dump(by_alias=True, exclude_none=True, mode="json")
            if declared
            else {},
            progress=session.report_progress if wants_progress else None,
            ask=ask if relay and not modern and session.can_send_request else None,
            notify=notify,
        )

    def _asking_now(self, ctx: Context) -> AskingUser | None:
        """How the user is asked on a session of the older revisions; None in the stateless one."""
        if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
            return None
        session = ctx.session
        declared = session.client_capabilities
        forms = declared.elicitation if declared else None
        if not session.can_send_request or forms is None or (forms.url and not forms.form):
            return NOBODY_TO_ASK

        async def ask(params: Json) -> Json:
            try:
                answer = await session.send_request(
                    t.ElicitRequest.model_validate({"method": "elicitation/create", "params": params}),
                    t.ElicitResult,
                    metadata=ServerMessageMetadata(related_request_id=ctx.request_id),
                )
            except MCPError:
                return {}  # a client that cannot ask after all has confirmed nothing
            return {"action": answer.action}

        return AskingUser(now=ask)

    def _header_schema(self, name: str) -> Json | None:
        return self._header_schemas.get(name)

    def _note_header_schemas(self, on: Services) -> None:
        """Only tools that mirror arguments into headers have one; the SDK checks these per call."""
        if self._header_schemas_of is not on.catalog:
            self._header_schemas_of = on.catalog
            self._header_schemas = {
                tool.name: tool.header_schema
                for tool in on.catalog.listed()
                if tool.header_schema is not None
            }

    _header_schemas_of: Any = None


_CAPABILITIES = f"{_RESERVED}clientCapabilities"
_CLIENT = f"{_RESERVED}clientInfo"
#: The name and version of a program. What it says goes into events, which nobody can erase: no sentences.
_PROGRAM = re.compile(r"[A-Za-z0-9@._/+-][A-Za-z0-9 @._/+-]{0,127}")
_AGAIN = AskingUser(again=True)
_SENT_PLAINLY = Resumed(confirmation=None, input_responses=None, request_state=None)


def _takes_forms(capabilities: object) -> bool:
    """Whether the client asks its user with forms; `elicitation: {}` says so in every revision."""
    found: Any = cast("Json", capabilities).get("elicitation") if isinstance(capabilities, Mapping) else None
    return isinstance(found, Mapping) and (not found or "form" in found)


#: A client that is asked nothing and told nothing while its call runs.
PLAIN = {version: Caller(protocol_version=version) for version in ("2025-06-18", "2025-11-25", "2026-07-28")}


def _program(name: object, version: object) -> str | None:
    """The client's program and version in one word; None when it says nothing that looks like it."""
    program = f"{name}/{version}"
    return program if _PROGRAM.fullmatch(program) else None


def _said_program(info: object) -> str | None:
    """The same, as a request says it."""
    if not isinstance(info, dict):
        return None
    told = cast("Json", info)
    return _program(told.get("name"), told.get("version"))


def internal_error(method: str) -> None:
    """Log the exception being handled: a bug, whose details stay here."""
    _log.exception("%s failed", method)


async def _with_notices(result: Result, run: RunKey, on: Services) -> Result:
    """The result, with what its run has not been told yet."""
    if run in on.journal.untold and result.get("resultType") == "complete":
        with suppress(StoreUnavailable):  # then with a later result
            if notices := await on.journal.tell(run):
                return noted(result, notices)
    return result


def _meta_of(raw: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", (raw or {}).get("_meta") or {})


def _as_before(definition: Json) -> Json:
    """A tool as the older revisions know it: they have no form for output that is not an object."""
    schema: Any = definition.get("outputSchema")
    if schema is None or (isinstance(schema, Mapping) and cast("Json", schema).get("type") == "object"):
        return definition
    return {name: value for name, value in definition.items() if name != "outputSchema"}


def _listed(member: str, entries: Any) -> Result:
    return {
        "resultType": "complete",
        member: list(entries),
        "ttlMs": _LIST_TTL_MS,
        # What a caller sees depends on who it is: no shared cache may keep it.
        "cacheScope": "private",
    }


def _short(value: object, name: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _NAME_MAX or "\0" in value:
        raise MCPError(t.INVALID_PARAMS, f"_meta {_PREFIX}{name} must be 1 to {_NAME_MAX} characters of text")
    return value


def _claim(value: object) -> Json | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or len(str(cast("Any", value))) > _CLAIM_MAX:
        raise MCPError(
            t.INVALID_PARAMS, f"_meta {_PREFIX}claim must be an object of at most {_CLAIM_MAX} characters"
        )
    return cast("Json", value)


def _announcement(event: Event) -> ServerEvent:
    """A change as listeners of the stateless revision hear it."""
    match event.kind:
        case "tools":
            return ToolsListChanged()
        case "resources":
            return ResourcesListChanged()
        case "prompts":
            return PromptsListChanged()
        case "resource_updated":
            return ResourceUpdated(uri=event.uri)
