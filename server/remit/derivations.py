"""JMESPath (jmespath.site) as Remit uses it: compiled once, over JSON, to JSON.

It answers what a one-line condition cannot: how many of a list, which of them, the sum. It reads and never
changes, calls nothing of a value, and knows no functions but its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import orjson

from remit_adapters.base import Json
from remit_rbac import EvaluationError

#: Computes a value from what it is given. Raises EvaluationError when there is none.
Derivation: TypeAlias = Callable[[Any], Any]


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
            # Again through JSON, so that rules see exactly what the record keeps.
            return orjson.loads(orjson.dumps(compiled.search(roots)))
        except (JMESPathError, ArithmeticError, TypeError, ValueError, RecursionError) as error:
            raise EvaluationError(f"cannot be derived: {type(error).__name__}") from None

    return derive


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
