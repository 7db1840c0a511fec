"""Asking the user of the calling client: do you want exactly this call?

A policy's duty `confirm` asks for it. The question goes to the client as an MCP elicitation, on its session
or, in the stateless revision, as an answer that the client sends the call again with. The answer is as
honest as the client; it lets no call out that policy does not allow, and never counts as an approval.

The stateless way keeps nothing here: what was asked is sealed into `requestState`. A confirmation is good
for one call, with exactly these arguments, and not for long.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson

from remit.escaping import escaped, escaped_json
from remit.ids import uuid7
from remit.model import Call, Confirmation
from remit_adapters.base import Json

#: What the question is called among `inputRequests`; no source's question is.
KEY = "remit.confirm"
_PREFIX = "remit1."
#: More than this (characters) nobody reads, and what is not read is not confirmed.
_SHOWN_MAX = 8_000
#: A source's own state and answers, carried through our question (bytes).
_CARRIED_MAX = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingUser:
    """How the user of the calling client can be asked."""

    #: On the client's session: takes the parameters of an elicitation, gives its result.
    now: Callable[[Json], Awaitable[Json]] | None = None
    #: By an answer with which the client sends the call again.
    again: bool = False


NOBODY_TO_ASK = AskingUser()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """What a client that sends a call again brings with it, ours taken from the source's."""

    confirmation: Confirmation | None
    input_responses: Json | None
    request_state: str | None


def question(call: Call) -> Json | None:
    """The parameters of the elicitation; None for a call that is too long to be read."""
    shown = escaped_json(call.arguments, indent=2)
    who = escaped(call.principal.agent)
    if len(shown) > _SHOWN_MAX:
        return None
    return {
        "message": f"{who} wants to call {call.tool.name} for you, with exactly this:\n{shown}\n"
        "Accept only if that is what you want.",
        "requestedSchema": {"type": "object", "properties": {}},
    }


def said_yes(result: Json) -> bool:
    """Whether the result of an elicitation confirms; dismissing the question does not."""
    return result.get("action") == "accept"


def given(call: Call, at_us: int, *, accepted: bool, good_for_s: int) -> Confirmation:
    """The user's answer to this very call."""
    until_us = at_us + good_for_s * 1_000_000
    return Confirmation(id=uuid7(at_us), accepted=accepted, binding=binding_of(call), until_us=until_us)


def binding_of(call: Call) -> str:
    """What the answer is about: who, for whom, the tool as it is now, the exact arguments."""
    return f"{call.tool.digest}:{call.fingerprint}"


def holds(call: Call) -> bool:
    """Whether the user has confirmed exactly this call, as far as the call itself can tell."""
    given = call.confirmation
    return (
        given is not None
        and given.accepted
        and given.until_us > call.received_us
        and hmac.compare_digest(given.binding, binding_of(call))
    )


def sealed(call: Call, secret: bytes, *, at_us: int, good_for_s: int) -> str | None:
    """The state with which the client sends the call again; None when there is too much to carry."""
    body = orjson.dumps(
        {
            "id": uuid7(at_us),
            "binding": binding_of(call),
            "until_us": at_us + good_for_s * 1_000_000,
            "state": call.request_state,
            "responses": call.input_responses,
        }
    )
    if len(body) > _CARRIED_MAX:
        return None
    return _PREFIX + base64.urlsafe_b64encode(_mac(secret, body) + body).decode()


def resumed(state: object, responses: object, secret: bytes) -> Resumed:
    """Take our part from what the client sent; what is not sealed by us confirms nothing."""
    answers = cast("Mapping[str, Any]", responses) if isinstance(responses, Mapping) else None
    if not isinstance(state, str) or not state.startswith(_PREFIX):
        return Resumed(
            confirmation=None,
            input_responses=answers,
            request_state=state if isinstance(state, str) else None,
        )
    try:
        token = base64.b64decode(state.removeprefix(_PREFIX), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        token = b""
    mac, body = token[:32], token[32:]
    if not hmac.compare_digest(mac, _mac(secret, body)):
        return Resumed(confirmation=None, input_responses=None, request_state=None)
    value: dict[str, Any] = orjson.loads(body)
    answer: Any = (answers or {}).get(KEY)
    confirmation = None
    if isinstance(answer, Mapping):
        confirmation = Confirmation(
            id=value["id"],
            accepted=said_yes(cast("Json", answer)),
            binding=value["binding"],
            until_us=value["until_us"],
        )
    return Resumed(
        confirmation=confirmation, input_responses=value["responses"], request_state=value["state"]
    )


def _mac(secret: bytes, body: bytes) -> bytes:
    return hmac.digest(hmac.digest(secret, b"confirmations", "sha256"), body, "sha256")
