"""The words of MCP on the wire: JSON-RPC 2.0 messages, revisions, reserved keys.

Pure functions and constants; no connection, no state. Messages stay plain dicts, so that whatever a
source says passes through whole, known to us or not.

Sources: JSON-RPC 2.0; MCP 2025-11-25 and 2026-07-28 (basic, versioning, transports).
"""

from __future__ import annotations

from typing import Any, Final, Protocol, TypeAlias, cast

import orjson

from remit_adapters.base import AdapterError, Json

#: A JSON-RPC message, or a part of one, as it came.
Message: TypeAlias = dict[str, Any]

MODERN: Final = "2026-07-28"
#: Revisions with an `initialize` handshake, newest first.
LEGACY: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")

VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
CLIENT_KEY: Final = "io.modelcontextprotocol/clientInfo"
CAPABILITIES_KEY: Final = "io.modelcontextprotocol/clientCapabilities"
LOG_LEVEL_KEY: Final = "io.modelcontextprotocol/logLevel"
SUBSCRIPTION_KEY: Final = "io.modelcontextprotocol/subscriptionId"
RESERVED_PREFIX: Final = "io.modelcontextprotocol/"

METHOD_NOT_FOUND: Final = -32601
HEADER_MISMATCH: Final = -32020
UNSUPPORTED_VERSION: Final = -32022

#: Errors that say the request was refused as such: malformed, unknown, or not allowed in this revision.
REFUSED_BEFORE_ACTING: Final = frozenset(
    {-32700, -32600, METHOD_NOT_FOUND, -32602, HEADER_MISMATCH, -32021, UNSUPPORTED_VERSION}
)
#: What is never about one request: something on offer changed, or a watched resource did.
CHANGES: Final = frozenset(
    {
        "notifications/tools/list_changed",
        "notifications/resources/list_changed",
        "notifications/prompts/list_changed",
        "notifications/resources/updated",
    }
)
#: The two that must not be cancelled (MCP, cancellation).
NEGOTIATION: Final = frozenset({"initialize", "server/discover"})


_SAID_MAX: Final = 500
#: Levels of arrays and objects in a message. Writers of JSON give up at about twice this depth, and what
#: cannot be written again can be neither recorded nor passed on.
_DEPTH_MAX: Final = 128


class Hear(Protocol):
    """Told of every message that belongs to one request and comes before its answer, in order."""

    async def __call__(self, message: Message) -> None: ...


class Link(Protocol):
    """One connection to a source. It speaks JSON-RPC and knows nothing of what the methods mean."""

    #: The revision in force; set by whoever negotiated it, before any other request.
    version: str

    @property
    def gone(self) -> bool:
        """Whether the connection is over for good, though its owner may not have noticed yet."""
        ...

    async def request(
        self, method: str, params: Message, hear: Hear | None = None, *, progress: bool = False
    ) -> Message:
        """Send one request and return its `result`; `progress` opts in to hearing of it.

        Cancelling the caller tells the source. Nothing is sent twice.
        Raises AdapterError, and SessionLostError when the source refused it unread.
        """
        ...

    def listen(self) -> None:
        """Start to hear what a source of the older revisions says unasked."""
        ...

    async def answer(self, request_id: Any, reply: Json) -> None:
        """Answer a request of the source's: `reply` is `{"result": ...}` or `{"error": ...}`."""
        ...

    async def notify(self, method: str, params: Json) -> None: ...

    async def lost(self) -> str:
        """Wait until the connection is gone; return why, for an operator."""
        ...


def stamped(meta: Message, client: Json, capabilities: Json) -> Message:
    """`meta` with what every request of the stateless revision carries (MCP 2026-07-28, basic, `_meta`)."""
    meta[VERSION_KEY] = MODERN
    meta[CLIENT_KEY] = client
    meta[CAPABILITIES_KEY] = capabilities
    return meta


def with_progress(params: Message, request_id: int) -> Message:
    """`params` with the request's id as its progress token."""
    return {**params, "_meta": {**params.get("_meta", {}), "progressToken": request_id}}


class SessionLostError(Exception):
    """The source no longer knows our session and refused the request unread (HTTP 404)."""


def encode(message: Json) -> bytes:
    try:
        return orjson.dumps(message)
    except orjson.JSONEncodeError as error:
        raise AdapterError(
            "The arguments cannot be written as JSON; nothing was sent.", no_effect=True, code="unsendable"
        ) from error


def decode(data: bytes) -> Message:
    """One JSON-RPC message. Raises ValueError for anything else."""
    found: Any = orjson.loads(data)
    if not isinstance(found, dict):
        raise ValueError("a JSON-RPC message is an object")
    message = cast("Message", found)
    if not isinstance(message.get("method", ""), str):
        raise ValueError("the method of a JSON-RPC message is a string")
    if data.count(b"[") + data.count(b"{") > _DEPTH_MAX and _is_deep(message):
        raise ValueError(f"a message is not nested deeper than {_DEPTH_MAX} levels")
    return message


def _is_deep(message: Message) -> bool:
    """Goes level by level, so deep messages cost no stack."""
    level: list[Any] = [message]
    for _ in range(_DEPTH_MAX):
        below: list[Any] = []
        for node in level:
            below += cast("Message", node).values() if isinstance(node, dict) else node
        level = [node for node in below if isinstance(node, dict | list)]
        if not level:
            return False
    return True


def member(message: Json, name: str) -> Json:
    """An object inside a message; empty when it is missing or something else."""
    value: Any = message.get(name)
    return cast("Json", value) if isinstance(value, dict) else {}


def result_of(answer: Message) -> Message:
    """The result in an answer; raises the AdapterError that its error stands for."""
    error: Any = answer.get("error")
    if error is not None:
        raise rejection(error)
    result: Any = answer.get("result")
    if not isinstance(result, dict):
        raise invalid("it holds neither a result object nor an error")
    return cast("Message", result)


def rejection(error: Any, *, refused: bool = False) -> AdapterError:
    """What a JSON-RPC error object says about the request it answers."""
    if not isinstance(error, dict):
        return invalid("its error is not an object")
    rpc = cast("Message", error)
    code: Any = rpc.get("code")
    said = printable(str(rpc.get("message", "")), _SAID_MAX)
    return AdapterError(
        f"The source refused the request: {said}" if said else "The source refused the request.",
        no_effect=refused or (isinstance(code, int) and code in REFUSED_BEFORE_ACTING),
        code="rpc_error",
        rpc=rpc,
    )


def printable(text: str, length_max: int) -> str:
    """The end of a text of the source's, safe to write into a log or a sentence."""
    return "".join(char if char.isprintable() else " " for char in text[-length_max:]).strip()


def invalid(why: str) -> AdapterError:
    return AdapterError(
        f"The source's answer cannot be read ({why}).",
        no_effect=False,
        code="invalid_answer",
    )


def too_large(limit: int) -> AdapterError:
    return AdapterError(
        f"The source's answer is larger than {limit} bytes; it acted, but its answer was dropped. "
        "Ask for less at once.",
        no_effect=False,
        code="answer_too_large",
    )
