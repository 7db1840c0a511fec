"""The effect class of one call: its tool's own, or what the call's arguments make of it.

A refinement is worked out when the catalog is built, as the tool that it makes; so nothing after the making
of a call asks about conditions again. Nothing here reads a clock or a record.
"""

from __future__ import annotations

from dataclasses import replace

from remit.config import TAKEN_BACK, Effect
from remit.model import Arguments, Tool
from remit_rbac import EvaluationError


def as_called(tool: Tool, arguments: Arguments) -> Tool:
    """The tool as a call with these arguments has it: the first refinement that holds counts.

    A condition that cannot be answered makes the call irreversible.
    """
    for refinement in tool.refinements:
        try:
            holds = refinement.when(args=arguments)
        except EvaluationError:
            holds = None
        if holds is True:
            return refinement.tool
        if holds is not False:
            return of_class(tool, Effect.IRREVERSIBLE)
    return tool


def of_class(tool: Tool, effect: Effect) -> Tool:
    """The tool with this effect and nothing to refine; only what is taken back keeps a way back."""
    back = effect in TAKEN_BACK
    return replace(
        tool,
        effect=effect,
        undo=tool.undo if back else None,
        before=tool.before if back else None,
        after=tool.after if back else None,
        refinements=(),
    )


def as_recorded(tool: Tool, effect: str) -> Tool:
    """The tool as a recorded call of this class had it: its arguments may be struck out by now."""
    return next((it.tool for it in tool.refinements if it.tool.effect == effect), tool)
