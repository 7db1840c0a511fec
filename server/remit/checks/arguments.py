"""Do the arguments fit the tool's schema? Asked before policy, so that rules see only what they expect."""

from __future__ import annotations

from remit.model import Call, Remedy, Verdict
from remit_rbac import Rung


def misfit(call: Call) -> Verdict | None:
    """The refusal that names the first misfit, so that the agent can mend it."""
    problem = call.tool.problem(call.arguments)
    return None if problem is None else unfit(problem)


def unfit(problem: str) -> Verdict:
    """The refusal of arguments with this problem."""
    return Verdict(
        rung=Rung.DENY,
        code="invalid_arguments",
        reason=f"The arguments do not fit the tool: {problem}. Correct them and call again.",
        remedy=Remedy.CHANGE,
    )
