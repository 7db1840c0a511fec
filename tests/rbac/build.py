"""Short ways to write a policy and to ask it, for tests."""

from __future__ import annotations

from typing import Any

import pytest

from remit_rbac import Decision, Policy, PolicyError, Problem, Question, load_text


def a_policy(*rows: str, **options: Any) -> Policy:
    """A policy of these rows, where agent:bot acts for user:ann in tenant acme."""
    return load_text("\n".join([*rows, "g3, agent:bot, user:ann, acme"]), **options)


def ask(
    policy: Policy,
    *,
    tenant: str = "acme",
    agent: str = "agent:bot",
    user: str = "user:ann",
    tool: str = "pay.refund",
    ctx: dict[str, Any] | None = None,
    **args: Any,
) -> Decision:
    """Decide a call of pay.refund by agent:bot for user:ann, unless said otherwise."""
    q = Question(tenant=tenant, agent=agent, user=user, tool=tool, args=args, ctx=ctx or {})
    return policy.decide(q)


def refused(*rows: str, **options: Any) -> tuple[Problem, ...]:
    """The problems for which a policy of these rows is refused."""
    with pytest.raises(PolicyError) as refusal:
        a_policy(*rows, **options)
    return refusal.value.problems


def warned(*rows: str, **options: Any) -> list[str]:
    """The codes of the warnings that a policy of these rows gets."""
    return sorted(problem.code for problem in a_policy(*rows, **options).warnings)


def both(row: str) -> tuple[str, str]:
    """One row for the agent and one for the user: `*` in its place would be for everyone."""
    return row.replace("BOTH", "agent:bot"), row.replace("BOTH", "user:ann")
