"""What every adapter is: the one seam between the gateway and a source of tools.

An adapter speaks to one *source* (an MCP server, a REST API, a database, ...). It lists what the source
offers and runs one request at a time when told to. It decides nothing, records nothing, and retries
nothing that may have been sent: those belong to the pipeline, which is the only caller of `run`.

The application owns an adapter's life: `start` in its task group, `stop` when it goes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol, TypeAlias

from anyio.abc import TaskGroup

Json: TypeAlias = Mapping[str, Any]


class Operation(StrEnum):
    """The requests that reach a source and return its content; values are MCP method names."""

    TOOL = "tools/call"
    RESOURCE = "resources/read"
    PROMPT = "prompts/get"
    COMPLETE = "completion/complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """All that a source offers at one moment, in MCP wire shape (camelCase keys), as received.

    Each entry is the definition exactly as the source sent it, so its digest is the source's own words.
    """

    tools: tuple[Json, ...] = ()
    resources: tuple[Json, ...] = ()
    resource_templates: tuple[Json, ...] = ()
    prompts: tuple[Json, ...] = ()
    #: The source answers `completion/complete`.
    completes: bool = False
    #: The source lets clients subscribe to single resources.
    subscribes: bool = False


def _nothing() -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to a source, ready to send. Arguments are never changed by the adapter."""

    operation: Operation
    #: TOOL: the source's own tool name. PROMPT: prompt name. RESOURCE: the URI. COMPLETE: unused.
    name: str
    #: TOOL and PROMPT: the arguments. COMPLETE: `{"ref": ..., "argument": ..., "context": ...}`.
    arguments: Json = field(default_factory=dict[str, Any])
    #: The idempotency key: one key, one effect. Sent to sources that accept one.
    key: str
    #: Seconds that the whole request may take; then `AdapterError(no_effect=False)`.
    deadline_s: float
    #: `_meta` to pass to the source (trace context, vendor keys); never credentials.
    meta: Json = field(default_factory=dict[str, Any])
    #: Answers and opaque state of a multi-round request (MCP 2026-07-28 MRTR), passed through as they came.
    input_responses: Json | None = None
    request_state: str | None = None
    #: Called when nothing is waited for any more and the request is about to be sent, which may be long after
    #: it was made. Raises AdapterError(no_effect=True) when it must not be sent by then.
    before_sent: Callable[[], None] = field(default=_nothing, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """What the calling client can do for the source while a request runs. All of it is optional.

    `ask` sends the client a request of the source's (`elicitation/create`, `sampling/createMessage`,
    `roots/list`) and returns its answer; `None` when the client cannot be asked or policy forbids it.
    """

    protocol_version: str = ""
    #: The client's declared capabilities, wire shape. Claims of the client: never a policy subject.
    capabilities: Json = field(default_factory=dict[str, Any])
    progress: Callable[[float, float | None, str | None], Awaitable[None]] | None = None
    ask: Callable[[str, Json], Awaitable[Json]] | None = None
    #: Forwards a notification such as `notifications/message`.
    notify: Callable[[str, Json], Awaitable[None]] | None = None


NOBODY = Caller()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the source answered, in MCP wire shape for its operation, as received.

    `kind` is `input_required` when the source wants answers from the client first (MRTR).
    """

    body: Json
    is_error: bool = False
    kind: Literal["complete", "input_required"] = "complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    state: Literal["connecting", "up", "down", "stopped"]
    #: One line for an operator: why it is down, or what answered.
    detail: str = ""
    #: How many times the connection was made, and lost.
    connects: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something the source said unasked: a list changed, or a subscribed resource did."""

    kind: Literal["tools", "resources", "prompts", "resource_updated"]
    #: `resource_updated` only.
    uri: str = ""


class AdapterError(Exception):
    """The request did not end in a clean answer.

    `no_effect=True` says that the source certainly did nothing (never sent, or refused before acting):
    the hold is voided. Otherwise nobody knows, and the call is in doubt. Only claim what is certain.
    `message` is safe to show to an agent: no paths, no credentials, no stack.
    `rpc` carries the source's own JSON-RPC error `{code, message, data?}`, when it sent one.
    """

    def __init__(
        self, message: str, *, no_effect: bool, code: str = "source_error", rpc: Json | None = None
    ) -> None:
        super().__init__(message)
        #: Without NUL, which no text of PostgreSQL can hold.
        self.message = message.replace("\0", "\ufffd")
        self.no_effect = no_effect
        self.code = code
        self.rpc = rpc


class Adapter(Protocol):
    """One source. Implementations are concrete classes; nothing inherits."""

    @property
    def source(self) -> str:
        """The configured source id; the exported names' prefix."""
        ...

    @property
    def keeps_deadlines(self) -> bool:
        """Whether every `run` ends at its deadline by itself, so that nobody else need see to it."""
        ...

    async def start(self, tasks: TaskGroup, on_event: Callable[[Event], None]) -> None:
        """Connect, keeping the connection alive in `tasks`; return when up.

        `on_event` must be called (from the event loop) when the source says that its offer or a
        subscribed resource changed, and after a reconnect (its offer may have changed meanwhile).
        Raises AdapterError when the first connection fails; a later loss is repaired with back-off.
        """
        ...

    async def stop(self) -> None:
        """Let go of the source: close connections, end child processes. Safe to repeat."""
        ...

    async def offer(self) -> Offer:
        """Ask the source anew for all that it offers (all pages)."""
        ...

    async def run(self, request: Request, caller: Caller = NOBODY) -> Reply:
        """Send one request and wait for its answer. Must not retry once anything was sent.

        Cancellation must be forwarded to the source. Raises AdapterError and nothing else.
        """
        ...

    async def subscribe(self, uri: str, on: bool) -> None:
        """Start or stop `resource_updated` events for one resource. Raises AdapterError if it cannot."""
        ...

    def health(self) -> Health: ...
