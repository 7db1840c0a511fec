"""Whether other arguments could help a call that was refused, everything else being as it is.

A condition is held against what is known without the arguments: what reads them is unknown, and `&&`, `||`
and `!` make of that what they can. It is asked after a decision, for advice; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from remit_rbac import syntax
from remit_rbac.conditions import EvaluationError, Expression, ExpressionError, compile_node, paths_of
from remit_rbac.plans import Plan


def could_allow(plan: Plan, record: Mapping[str, Any], varying: Collection[str]) -> bool:
    """Whether some arguments could be allowed by these rules, in this context.

    `varying` are the names below `r.ctx` of what is made of the arguments.
    """
    return (
        not plan.hopeless
        and any(_known(rule.condition, record, varying) is not False for rule in plan.allows)
        and all(_known(rule.condition, record, varying) is not True for rule in plan.denies)
    )


def _known(condition: Expression | None, record: Mapping[str, Any], varying: Collection[str]) -> bool | None:
    """Whether a condition holds whatever the arguments are; None when that depends on them."""
    return True if condition is None else _holds(condition.node, record, varying)


def _holds(node: syntax.Node, record: Mapping[str, Any], varying: Collection[str]) -> bool | None:
    match node:
        case syntax.Logic(operator, operands):
            told = [_holds(operand, record, varying) for operand in operands]
            decisive = operator == "or"
            if decisive in told:
                return decisive
            return None if None in told else not decisive
        case syntax.Not(operand):
            held = _holds(operand, record, varying)
            return None if held is None else not held
        case _ if any(_varies(path.keys, varying) for path in paths_of(node)):
            return None
        case _:
            try:
                return compile_node("", node, within="r").evaluate(record) is True
            except (EvaluationError, ExpressionError):  # nobody can tell what it comes to
                return None


def _varies(keys: tuple[str | int, ...], varying: Collection[str]) -> bool:
    _, root, *rest = keys
    return root == "args" or (root == "ctx" and (not rest or rest[0] in varying))
