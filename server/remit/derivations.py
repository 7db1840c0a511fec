"""JMESPath (jmespath.site) as Remit uses it: compiled once, over JSON, to JSON.

It answers what a one-line condition cannot: how many of a list, which of them, the sum. It reads and never
changes, calls nothing of a value, and knows no functions but its own. How long lists are, agents say: so an
expression may do so much work, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import orjson

from remit_adapters.base import Json
from remit_rbac import EvaluationError

#: Computes a value from what it is given. Raises EvaluationError when there is none.
Derivation: TypeAlias = Callable[[Any], Any]


#: Parts of an expression that may be evaluated for one value, and values in what comes out: a tenth of a
#: second at most.
_STEPS_MAX = 100_000
#: Reading so many items or characters takes about as long as evaluating one part.
_ITEMS_PER_STEP = 50


class NotDerivable(ValueError):
    """The text is no JMESPath expression. `str()` says why, for an operator."""


def compile_derivation(text: str) -> Derivation:
    """Compile a JMESPath expression. Raises NotDerivable."""
    # Here: most configurations derive nothing, and a server answers sooner without it.
    import jmespath
    from jmespath.exceptions import JMESPathError

    library: Any = jmespath  # it has no types
    try:
        compiled = library.compile(text)
    except (JMESPathError, ValueError, RecursionError) as error:
        raise NotDerivable(str(error).split("\n", 1)[0]) from None

    def derive(roots: Any) -> Any:
        try:
            found = _bounded().evaluate(compiled.parsed, roots)
            _count(found)
            # Again through JSON, so that rules see exactly what the record keeps.
            return orjson.loads(orjson.dumps(found))
        except (JMESPathError, ArithmeticError, TypeError, ValueError, RecursionError) as error:
            raise EvaluationError(f"cannot be derived: {type(error).__name__}") from None

    return derive


def _bounded() -> Any:
    """The library's interpreter, which stops when it has done enough."""
    from jmespath import visitor

    library: Any = visitor
    interpreter = library.TreeInterpreter()
    visit, left = interpreter.visit, _STEPS_MAX

    def counted(node: Any, *rest: Any, **named: Any) -> Any:
        nonlocal left
        found: Any = visit(node, *rest, **named)
        left -= 1 + (len(found) // _ITEMS_PER_STEP if type(found) in (list, str) else 0)
        if left < 0:
            raise EvaluationError("cannot be derived: it takes too much work")
        return found

    interpreter.visit = counted
    return interpreter


def _count(value: Any) -> None:
    """Raise EvaluationError for what is small while its parts are shared, and too large when written out."""
    pending, left = [value], _STEPS_MAX
    while pending:
        each = pending.pop()
        left -= 1
        if isinstance(each, dict):
            pending.extend(each.values())  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType] - JSON
        elif isinstance(each, list):
            pending.extend(each)  # pyright: ignore[reportUnknownArgumentType] - JSON
        if left < len(pending):
            raise EvaluationError("cannot be derived: it is too large")


def derived(derivations: Mapping[str, Derivation], roots: Json) -> dict[str, Any]:
    """The values of the derivations, which see those before them as `derived`.

    One that has none is left out, so that a rule which reads it errs.
    """
    found: dict[str, Any] = {}
    for name, derive in derivations.items():
        try:
            found[name] = derive({**roots, "derived": found})
        except EvaluationError:
            continue
    return found
