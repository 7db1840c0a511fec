"""One request in flight, as its caller sees it: progress, log lines and questions before the answer.

An exchange lives inside the one `run` that made it. What the caller's side does wrong is contained here:
a client that went away must not leave the source's work in doubt.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar, cast

import anyio
from anyio.abc import TaskGroup

from remit_adapters.base import AdapterError, Caller, Json
from remit_adapters.mcp.wire import METHOD_NOT_FOUND, Message

log = logging.getLogger(__name__)

#: What of a source's own initiative may reach the calling client.
Relay: TypeAlias = Literal["elicitation", "sampling", "roots", "logging"]

#: Questions that a source may put to a client, and what must be relayed for it.
QUESTIONS: Final[Mapping[str, Relay]] = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}
_NOTIFICATIONS: Final[Mapping[str, Relay]] = {
    "notifications/message": "logging",
    "notifications/elicitation/complete": "elicitation",
}
#: How many questions about one request may wait for its caller.
_QUESTIONS_MAX: Final = 8
#: How long after a cancellation a question may still come from the cancelled request.
_ABANDONED_S: Final = 30.0


def relayed_capabilities(relay: frozenset[Relay], caller: Caller) -> Message:
    """The caller's capabilities that a source may count on."""
    return {
        kind: caller.capabilities[kind]
        for kind in QUESTIONS.values()
        if kind in relay and kind in caller.capabilities
    }


def may_ask(relay: frozenset[Relay], caller: Caller, method: str, params: Json) -> bool:
    """Whether this question may reach this caller: relayed by configuration and declared by the client."""
    kind = QUESTIONS.get(method)
    if kind is None or kind not in relay:
        return False
    declared: Any = caller.capabilities.get(kind)
    if not isinstance(declared, Mapping):
        return False
    if method != "elicitation/create":
        return True
    mode: Any = params.get("mode", "form")
    # An elicitation capability without members means forms only (MCP, client/elicitation).
    return isinstance(mode, str) and mode in (declared or {"form": {}})


def unasked_reply(method: str) -> Message:
    """What a source hears when it asks and no client is to be troubled."""
    if method == "ping":
        return {"result": {}}
    if method == "elicitation/create":
        return {"result": {"action": "cancel"}}  # nobody saw it, so nobody declined
    return {"error": {"code": METHOD_NOT_FOUND, "message": f"{method} is not available here"}}


T = TypeVar("T")


class InFlight(Generic[T]):
    """The requests of one connection that wait for an answer.

    Some messages do not say which request they are about. Showing one client what belongs to another's call
    would be a leak, so such a message counts as someone's only when a single request can have caused it.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, T] = {}
        #: Requests that were given up, and until when the source may still speak on their behalf.
        self._abandoned: dict[int, float] = {}

    def begin(self, request_id: int, waiting: T) -> None:
        self._waiting[request_id] = waiting

    def end(self, request_id: int, *, abandoned: bool) -> None:
        del self._waiting[request_id]
        if abandoned:
            self._abandoned[request_id] = anyio.current_time() + _ABANDONED_S

    def get(self, request_id: Any) -> T | None:
        return self._waiting.get(request_id) if type(request_id) is int else None  # true is no id

    def answered(self, request_id: Any) -> T | None:
        """Who waits for the answer to this request, if anybody; from now on the source has done with it."""
        if type(request_id) is int:
            self._abandoned.pop(request_id, None)
        return self.get(request_id)

    def all(self) -> tuple[T, ...]:
        return tuple(self._waiting.values())

    def sole(self) -> T | None:
        """The one request that an unaddressed message can be about, if there is just one."""
        now = anyio.current_time()
        self._abandoned = {key: until for key, until in self._abandoned.items() if until > now}
        if len(self._waiting) == 1 and not self._abandoned:
            return next(iter(self._waiting.values()))
        return None


class Exchange:
    """Hears one request's messages, in order, and puts the source's questions to the caller."""

    def __init__(
        self,
        caller: Caller,
        relay: frozenset[Relay],
        questions: TaskGroup | None,
        answer: Callable[[Any, Json], Awaitable[None]],
    ) -> None:
        self._caller = caller
        self._relay = relay
        #: Where questions wait for people; None when this caller cannot be asked anything.
        self._questions = questions
        self._answer = answer
        #: Questions that wait for the caller, so that the source can withdraw them.
        self._asked: dict[str, anyio.CancelScope] = {}
        self._progress = float("-inf")

    async def hear(self, message: Message) -> None:
        method: str = message["method"]
        about: Any = message.get("params")
        params: Json = cast("Json", about) if isinstance(about, dict) else {}
        if "id" in message:
            await self._question(message["id"], method, params)
        elif method == "notifications/progress":
            await self._advance(params)
        elif method == "notifications/cancelled":
            if (asked := self._asked.get(repr(params.get("requestId")))) is not None:
                asked.cancel()
        elif self._caller.notify is not None and _NOTIFICATIONS.get(method) in self._relay:
            await self._contain(self._caller.notify(method, params))

    async def _advance(self, params: Json) -> None:
        """Pass progress on while it grows: the specification demands growth, and sources forget."""
        value: Any = params.get("progress")
        total: Any = params.get("total")
        text: Any = params.get("message")
        if self._caller.progress is None or not _number(value) or value <= self._progress:
            return
        self._progress = value
        await self._contain(
            self._caller.progress(
                value, total if _number(total) else None, text if isinstance(text, str) else None
            )
        )

    async def _question(self, request_id: Any, method: str, params: Json) -> None:
        key = repr(request_id)  # 1 and "1" are two ids
        if key in self._asked:
            return  # an id stands for one question at a time
        if (
            self._questions is None
            or len(self._asked) >= _QUESTIONS_MAX
            or not may_ask(self._relay, self._caller, method, params)
        ):
            await self._answer(request_id, unasked_reply(method))
            return
        # Beside the exchange, which goes on: the answer may come before the person does.
        self._asked[key] = anyio.CancelScope()
        self._questions.start_soon(self._put, key, request_id, method, params)

    async def _put(self, key: str, request_id: Any, method: str, params: Json) -> None:
        with self._asked[key]:
            reply = await put(self._caller, method, params)
            await self._answer(request_id, reply)
        del self._asked[key]

    async def _contain(self, telling: Awaitable[None]) -> None:
        try:
            await telling
        except Exception:  # the client's side failing must not put the source's work in doubt
            log.debug("a message of the source's did not reach the client", exc_info=True)


async def put(caller: Caller, method: str, params: Json) -> Message:
    """Put one permitted question to the caller; what comes back is ready to send to the source."""
    if caller.ask is None:
        return unasked_reply(method)
    try:
        return {"result": await caller.ask(method, params)}
    except AdapterError as error:
        return {"error": error.rpc or {"code": -32603, "message": error.message}}
    except Exception:  # as above; the source hears that nobody answered
        log.debug("the client did not answer %s", method, exc_info=True)
        return unasked_reply(method)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
