"""Whether an answer has the form that its operation has in MCP.

An answer of another form is of no use to any client, and nobody can say what it means: it is no answer. What
the specification does not name passes; nothing is changed. No state.

Source: MCP 2026-07-28, schema; the same types in the older revisions.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast

from remit_adapters.base import Json, Operation
from remit_adapters.mcp.wire import invalid

if TYPE_CHECKING:
    from pydantic import BaseModel


_PLAIN: Final = frozenset({"content", "structuredContent", "isError", "resultType", "_meta"})


def check(operation: Operation, body: Json) -> None:
    """Raise AdapterError `invalid_answer` unless `body` is a result of this operation."""
    if operation is Operation.TOOL and _is_plain(body):
        return
    from pydantic import ValidationError

    # Many servers leave `content` out beside `structuredContent`, and clients read that as empty.
    filled: Json = {"content": [], **body} if operation is Operation.TOOL else body
    try:
        _form(operation).model_validate(filled, by_name=False)
    except ValidationError as error:
        where = ".".join(
            str(part) for part in error.errors(include_url=False, include_input=False)[0]["loc"][:2]
        )
        raise invalid(f"its {where or 'result'} is not of the form that MCP gives it") from None
    is_error: Any = body.get("isError", False)
    if type(is_error) is not bool:
        raise invalid("its isError is neither true nor false")


def _is_plain(body: Json) -> bool:
    """Whether it is what most tools answer, and surely in form: texts without annotations."""
    content: Any = body.get("content")
    return (
        _PLAIN.issuperset(body)
        and isinstance(content, list)
        and all(
            isinstance(block, dict)
            and len(fields := cast("Json", block)) == 2
            and fields.get("type") == "text"
            and isinstance(fields.get("text"), str)
            for block in cast("list[Any]", content)
        )
        and type(body.get("isError", False)) is bool
        and isinstance(body.get("resultType", ""), str)
        and isinstance(body.get("_meta", {}), dict)
    )


@cache
def _form(operation: Operation) -> type[BaseModel]:
    import mcp_types  # here, for a process that connects to no MCP server need not load it

    match operation:
        case Operation.TOOL:
            return mcp_types.CallToolResult
        case Operation.RESOURCE:
            return mcp_types.ReadResourceResult
        case Operation.PROMPT:
            return mcp_types.GetPromptResult
        case Operation.COMPLETE:
            return mcp_types.CompleteResult
