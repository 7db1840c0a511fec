"""What is known about a call beside its arguments: texts that carry JSON, and what was looked up.

Looking up is a governed read of the gateway's own, as the operator declares it with a tool: the agent
chooses arguments and nothing else. The reads themselves are the pipeline's; here is what becomes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from remit.front.strict import Malformed, decode
from remit.model import Call
from remit_adapters.base import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was looked up for one call."""

    #: By name, as rules see it.
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    #: The call that read each of them; `items[2]` is the third of a list.
    reads: Mapping[str, str] = field(default_factory=dict[str, str])
    #: What each read answered in full, by its tool and canonical arguments.
    answers: Mapping[tuple[str, bytes], Any] = field(default_factory=dict[tuple[str, bytes], Any])


def parsed_of(call: Call) -> Json | str:
    """The arguments that carry JSON in a text, read strictly; or a sentence about the first that does not.

    An argument that is absent is absent here too.
    """
    parsed: dict[str, Any] = {}
    for name in call.tool.parsed:
        if name not in call.arguments:
            continue
        text = call.arguments[name]
        if not isinstance(text, str):
            return f"{name}: this argument must be a text that holds JSON"
        try:
            parsed[name] = decode(text.encode())
        except Malformed as refusal:
            return f"{name}: this argument must be a text that holds JSON. {refusal.message}"
    return parsed
