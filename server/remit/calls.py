"""Making calls and reading answers: from a name and arguments to a frozen Call, from a Reply to values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, cast

import orjson

from remit.effects import as_called
from remit.identity import Principal
from remit.ids import uuid7
from remit.model import Arguments, Call, Confirmation, Recorded, Tool, Undoing
from remit_adapters.base import Json, Reply
from remit_rbac import Duty, EvaluationError


def new_call(
    *,
    tool: Tool,
    arguments: Arguments,
    principal: Principal,
    run: str,
    secret: bytes,
    at_us: int,
    client_key: str | None = None,
    claim: Json | None = None,
    client: str | None = None,
    trace_id: str | None = None,
    meta: Json | None = None,
    input_responses: Json | None = None,
    request_state: str | None = None,
    confirmation: Confirmation | None = None,
    undoing: Undoing | None = None,
    of_call: str | None = None,
) -> Call:
    """One frozen call. Its arguments' canonical bytes are fixed here and never made again."""
    return Call(
        id=uuid7(at_us),
        kind="undo" if undoing else "call",
        of_call=of_call,
        undoing=undoing,
        principal=principal,
        run=run,
        tool=as_called(tool, arguments) if tool.refinements else tool,
        arguments=arguments,
        arguments_json=orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS),
        fingerprint=fingerprint_of(
            secret, principal, tool.name, arguments, input_responses, request_state, of_call
        ),
        received_us=at_us,
        client_key=client_key,
        claim=claim or {},
        client=client,
        trace_id=trace_id,
        meta=meta or {},
        input_responses=input_responses,
        request_state=request_state,
        confirmation=confirmation,
        subjects=subjects_of(tool, arguments) if tool.subject else (),
    )


def recorded_call(found: Recorded, tool: Tool) -> Call:
    """The call as it was made. Raises ValueError when its exact arguments are not kept."""
    if found.arguments is None:
        raise ValueError("the arguments of this call are not kept")
    return Call(
        id=found.call_id,
        kind=found.kind,
        of_call=found.of_call,
        principal=found.principal,
        run=found.run,
        tool=tool,
        arguments=orjson.loads(found.arguments),
        arguments_json=found.arguments,
        fingerprint=found.fingerprint,
        received_us=found.received_us,
        client_key=found.client_key,
        claim=found.claim,
        trace_id=found.trace_id,
        subjects=subjects_of(tool, orjson.loads(found.arguments)) if tool.subject else (),
    )


def subjects_of(tool: Tool, arguments: Arguments) -> tuple[str, ...]:
    """Whom a call with these arguments is about, beside its user; nobody when that cannot be told."""
    if tool.subject is None:
        return ()
    try:
        value = tool.subject(args=arguments)
    except EvaluationError:
        return ()
    names: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(names)) if all(isinstance(name, str) and name for name in names) else ()


def fingerprint_of(
    secret: bytes, principal: Principal, tool: str, arguments: Arguments, *rest: object
) -> str:
    """Equal calls of one agent have equal fingerprints; without the key nothing can be guessed from one.

    Keyed BLAKE2b of 128 bits (RFC 7693) over tenant, agent, user, tool, arguments and what else makes it
    another call.
    """
    text = orjson.dumps(
        [principal.tenant, principal.agent, principal.user, tool, arguments, *rest],
        option=orjson.OPT_SORT_KEYS,
    )
    return hashlib.blake2b(text, key=secret, digest_size=16).hexdigest()


def result_of(reply: Reply) -> tuple[Any, str]:
    """What expressions see of an answer: `result` (structured, or JSON in the text) and `text`."""
    body = reply.body
    blocks: Any = body.get("content") or body.get("contents")
    text = "\n".join(
        str(cast("Mapping[str, Any]", block)["text"])
        # Nothing has checked what the source says yet, and whatever it says must be settled.
        for block in (cast("list[Any]", blocks) if isinstance(blocks, list) else [])
        if isinstance(block, Mapping) and isinstance(cast("Mapping[str, Any]", block).get("text"), str)
    )
    structured = body.get("structuredContent")
    if structured is not None:
        return structured, text
    if text[:1] in _JSON_BEGINS or text in _JSON_WORDS:  # most texts are prose, and to fail is slow
        with suppress(orjson.JSONDecodeError):
            return orjson.loads(text), text
    return {"text": text}, text


def worked_out(value: Any) -> bytes:
    """What expressions came to, as JSON. Raises EvaluationError for a number that none carries."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        raise EvaluationError("a number has more than 64 bits") from None


REDACTED = "[redacted]"
#: How JSON can begin (RFC 8259), and what it is where it begins otherwise.
_JSON_BEGINS = frozenset('{["-0123456789 \t\r\n')
_JSON_WORDS = frozenset({"true", "false", "null"})


def redacted(arguments_json: bytes, duties: Iterable[Duty]) -> bytes:
    """The arguments as they may be stored: every path of a `redact=args.a|args.b.c` duty is struck out.

    Where a path leads into what is no object, such as a list, all of that is: nothing less is certain.
    """
    paths = [
        path.removeprefix("args.").split(".")
        for duty in duties
        if duty.name == "redact"
        for path in duty.value.split("|")
    ]
    if not paths:
        return arguments_json
    value: Any = orjson.loads(arguments_json)
    for *parents, last in paths:
        node = value
        for parent in parents:
            inner = node.get(parent)
            if not isinstance(inner, dict):
                last = parent
                break
            node = cast("dict[str, Any]", inner)
        if last in node:
            node[last] = REDACTED
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
