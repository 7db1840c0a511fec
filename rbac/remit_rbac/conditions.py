"""The expression language: conditions of policies, prices, undo arguments, expectations.

An expression is compiled once into nested closures and then only reads. Values are JSON: text, whole
and decimal numbers, booleans, null, lists, objects. Attribute access is data lookup and nothing else;
no method of a value is ever called, nothing is ever changed. Types are strict: a boolean is no number,
text never compares with numbers, NaN and infinities are errors, integers stay exact. Whatever cannot
be answered exactly raises EvaluationError; what that means (deny, or refuse the configuration) is for
the caller to decide.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite
from typing import Any, Literal, TypeAlias, cast

from remit_rbac import syntax
from remit_rbac.syntax import ExpressionError as ExpressionError
from remit_rbac.syntax import Node

Scope: TypeAlias = Mapping[str, Any]
Run: TypeAlias = Callable[[Scope], Any]
Kind: TypeAlias = Literal["any", "boolean", "number", "text", "list", "object", "null"]
Keys: TypeAlias = tuple[str | int, ...]

#: Larger integers are a mistake or an attack; 256 bits hold every amount and every hash.
INTEGER_BITS_MAX = 256
TEXT_LENGTH_MAX = 100_000


class EvaluationError(Exception):
    """The expression has no answer for these values: something is missing or of the wrong type.

    The message names attributes and types, never values, so it can be recorded.
    """


@dataclass(frozen=True, slots=True)
class Expression:
    """One compiled expression. Immutable; may be called from any thread."""

    text: str
    #: The expression as read; for those who explain it or check it against schemas.
    node: Node
    #: Every attribute path that the text reads, e.g. `("args", "amount")`.
    paths: frozenset[Keys]
    #: What the expression gives, as far as the text says.
    kind: Kind
    #: The compiled form: takes the roots as one mapping. Raises EvaluationError.
    evaluate: Run

    def __call__(self, **roots: Any) -> Any:
        return self.evaluate(roots)


def compile_expression(text: str, *, roots: Collection[str]) -> Expression:
    """Compile one expression whose paths begin with one of `roots`.

    Raises ExpressionError (with a column) when the text is not of the language or cannot ever be
    answered, such as adding text to a number.
    """
    return compile_node(text, syntax.parse(text, roots=roots, functions=FUNCTIONS))


def compile_node(text: str, node: Node, *, within: str = "", kind: Kind = "any") -> Expression:
    """Compile a parsed expression; `text` is kept for people.

    With `within`, the only root, `evaluate` takes what that root stands for instead of all roots. With
    `kind` `boolean`, it gives True or False or raises EvaluationError.
    """
    found, run = _compile(node, within)
    if kind == "boolean":
        _expect("boolean", found, node)
        run = run if found == "boolean" else _surely_boolean(run)
    paths = frozenset(path.keys for path in paths_of(node))
    if not paths:
        run = _folded(node, run)
    return Expression(
        text=text,
        node=node,
        paths=paths,
        kind=found,
        evaluate=run,
    )


def paths_of(node: Node) -> Iterator[syntax.Path]:
    """Every place where an attribute is read, left to right."""
    if isinstance(node, syntax.Path):
        yield node
    for child in children(node):
        yield from paths_of(child)


def children(node: Node) -> tuple[Node, ...]:
    """The operands of a node, left to right."""
    match node:
        case syntax.Literal() | syntax.Path():
            return ()
        case syntax.Listing(items):
            return items
        case syntax.Negative(operand) | syntax.Not(operand):
            return (operand,)
        case syntax.Arithmetic(_, left, right):
            return (left, right)
        case syntax.Comparison(first, links):
            return (first, *(operand for _, operand in links))
        case syntax.Logic(_, operands):
            return operands
        case syntax.Choice(test, then, otherwise):
            return (test, then, otherwise)
        case syntax.Call(_, arguments):
            return arguments


def _folded(node: Node, run: Run) -> Run:
    """What reads nothing always gives the same, so it is computed now, and must work."""
    try:
        value = run({})
    except EvaluationError as error:
        raise ExpressionError(str(error), node.column, "write what it should come to") from None
    return _constant(value)


def _surely_boolean(run: Run) -> Run:
    return lambda scope: _boolean(run(scope))


def _constant(value: Any) -> Run:
    return lambda _: value


# From here on: the tree to closures. Each function returns what the node gives and how to get it.


def _compile(node: Node, within: str) -> tuple[Kind, Run]:
    match node:
        case syntax.Literal(value):
            return kind_of(value), _constant(value)
        case syntax.Path(keys):
            return "any", _lookup(keys, within=within)
        case syntax.Listing(items):
            runs = [_compile(item, within)[1] for item in items]
            return "list", lambda scope: [run(scope) for run in runs]
        case syntax.Negative(operand):
            run = _compile_as("number", operand, within)
            return "number", lambda scope: -_number(run(scope))
        case syntax.Not(operand):
            run = _compile_as("boolean", operand, within)
            return "boolean", lambda scope: not _boolean(run(scope))
        case syntax.Arithmetic():
            return _arithmetic(node, within)
        case syntax.Comparison():
            return "boolean", _comparison(node, within)
        case syntax.Logic():
            return "boolean", _logic(node, within)
        case syntax.Choice(test, then, otherwise):
            chosen = _compile_as("boolean", test, within)
            kind_then, run_then = _compile(then, within)
            kind_otherwise, run_otherwise = _compile(otherwise, within)
            kind: Kind = kind_then if kind_then == kind_otherwise else "any"
            return kind, lambda scope: (run_then if _boolean(chosen(scope)) else run_otherwise)(scope)
        case syntax.Call():
            return _call(node, within)


def _compile_as(wanted: Kind, node: Node, within: str) -> Run:
    kind, run = _compile(node, within)
    _expect(wanted, kind, node)
    return run


#: What to write where a kind of value is wanted.
_WRITE: dict[Kind, str] = {
    "boolean": "compare it with something, as in r.args.n > 0",
    "list": "write ('a', 'b') or ('a',)",
    "number": "write a number without quotes",
    "object": "name an attribute that is an object",
    "text": "write a text in single quotes",
}


def _expect(wanted: Kind, found: Kind, node: Node) -> None:
    if "any" not in (wanted, found) and found != wanted:
        raise ExpressionError(f"expected a {wanted}, found a {found}", node.column, _WRITE[wanted])


_PLAIN: type[Any] = dict


def _lookup(keys: Keys, *, within: str) -> Run:
    first = 1 if within else 0
    root, rest = str(keys[first]), keys[first + 1 :]

    def run(scope: Scope) -> Any:
        try:
            value: Any = scope[root]
            for key in rest:
                # Plain dictionaries are what JSON gives; anything else takes the careful way.
                value = value[key] if type(value) is _PLAIN else _part(value, key)
        except (KeyError, IndexError):
            raise EvaluationError(f"{_shown(keys)} is missing") from None
        return value

    return run


def _part(value: object, key: str | int) -> Any:
    """One step into a value: a list by position, an object by name, and nothing else."""
    if type(key) is int and type(value) in (list, tuple):
        return cast("Sequence[Any]", value)[key]
    if type(key) is str and isinstance(value, Mapping):
        return cast("Mapping[str, Any]", value)[key]
    raise KeyError(key)


def _shown(keys: Keys) -> str:
    return ".".join(str(key) for key in keys)


def _logic(node: syntax.Logic, within: str) -> Run:
    runs = [_compile_as("boolean", operand, within) for operand in node.operands]
    decisive = node.operator == "or"

    def run(scope: Scope) -> bool:
        for operand in runs:
            value = operand(scope)
            if value is decisive:
                return decisive
            if value is not (not decisive):
                raise EvaluationError(f"expected a boolean, found a {kind_of(value)}")
        return not decisive

    return run


def _comparison(node: syntax.Comparison, within: str) -> Run:
    kind_left, left = _compile(node.first, within)
    node_left = node.first
    links: list[tuple[Callable[[Any, Any], bool], Run]] = []
    for name, node_right in node.links:
        kind_right, right = _compile(node_right, within)
        _check_comparable(name, (node_left, kind_left), (node_right, kind_right))
        links.append((_COMPARE[name], right))
        node_left, kind_left = node_right, kind_right

    if len(links) == 1:
        compare, right = links[0]
        _, last = node.links[0]
        if isinstance(last, syntax.Literal):
            return _against(compare, left, last.value)
        return lambda scope: compare(left(scope), right(scope))

    def run(scope: Scope) -> bool:
        value = left(scope)
        for compare, operand in links:
            following = operand(scope)
            if not compare(value, following):
                return False
            value = following
        return True

    return run


def _against(compare: Callable[[Any, Any], bool], left: Run, value: Any) -> Run:
    return lambda scope: compare(left(scope), value)


def _check_comparable(name: str, left: tuple[Node, Kind], right: tuple[Node, Kind]) -> None:
    (node_left, kind_left), (node_right, kind_right) = left, right
    if name in ("in", "not in"):
        if kind_right == "text":
            raise ExpressionError("`in` needs a list, found a text", node_right.column, _WRITE["list"])
        if kind_right not in ("any", "list"):
            message = f"`in` needs a list, found a {kind_right}"
            raise ExpressionError(message, node_right.column, _WRITE["list"])
        return
    if name in ("==", "!="):
        if "list" in (kind_left, kind_right):
            message = f"`{name}` compares single values, not lists"
            raise ExpressionError(message, node_left.column, "write in, or contains(list, value)")
        clash = "null" not in (kind_left, kind_right) and kind_left != kind_right
    else:
        for node, kind in (left, right):
            if kind not in ("any", "number", "text"):
                message = f"`{name}` orders numbers or texts, found a {kind}"
                raise ExpressionError(message, node.column, "compare two numbers or two texts")
        clash = kind_left != kind_right
    if clash and "any" not in (kind_left, kind_right):
        message = f"`{name}` compares a {kind_left} with a {kind_right}"
        raise ExpressionError(message, node_left.column, "compare values of one type")


def _arithmetic(node: syntax.Arithmetic, within: str) -> tuple[Kind, Run]:
    compute = _COMPUTE[node.operator]
    (kind_left, left), (kind_right, right) = _compile(node.left, within), _compile(node.right, within)
    kind: Kind = "number"
    if node.operator == "+":
        kinds = {kind_left, kind_right} - {"any"}
        kind = "text" if kinds == {"text"} else "number" if kinds else "any"
    _expect(kind, kind_left, node.left)
    _expect(kind, kind_right, node.right)
    return kind, lambda scope: compute(left(scope), right(scope))


def _call(node: syntax.Call, within: str) -> tuple[Kind, Run]:
    function = FUNCTIONS[node.name]
    if not function.arity_min <= len(node.arguments) <= function.arity_max:
        raise ExpressionError(f"{node.name} takes {function.arity}", node.column, "give it as many")
    runs = [_compile_as(function.takes, argument, within) for argument in node.arguments]
    pattern = node.arguments[-1]
    cut = isinstance(pattern, syntax.Literal) and "*" in str(pattern.value)[:-1]
    if node.name == "keyMatch" and cut:
        message = "Casbin ignores what follows the first `*` of a pattern"
        raise ExpressionError(message, pattern.column, "let the only * stand last, or write endswith")
    body = function.body
    return function.gives, lambda scope: body(*[run(scope) for run in runs])


# What the operators do. Every value is checked here, because it may come from anyone.


def kind_of(value: object) -> Kind:
    """The JSON kind of a value; `any` for what is not JSON."""
    kind = _KINDS.get(type(value))
    if kind is not None:
        return kind
    return "object" if isinstance(value, Mapping) else "any"


_KINDS: dict[type, Kind] = {
    bool: "boolean",
    int: "number",
    float: "number",
    str: "text",
    list: "list",
    tuple: "list",
    dict: "object",
    type(None): "null",
}


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise EvaluationError(f"expected a boolean, found a {kind_of(value)}")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise EvaluationError(f"expected a text, found a {kind_of(value)}")
    return value


def _number(value: Any) -> int | float:
    if type(value) is int:
        if value.bit_length() > INTEGER_BITS_MAX:
            raise EvaluationError(f"a number has more than {INTEGER_BITS_MAX} bits")
        return value
    if type(value) is not float:
        raise EvaluationError(f"expected a number, found a {kind_of(value)}")
    if not isfinite(value):
        raise EvaluationError("a number is not finite")
    return value


def _ordering(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def ordered(left: object, right: object) -> bool:
        kind_left, kind_right = type(left), type(right)
        if kind_left is int and kind_right is int:
            return compare(left, right)
        if kind_left is str and kind_right is str:
            return compare(left, right)
        if kind_left in _NUMBERS and kind_right in _NUMBERS:
            return compare(_number(left), _number(right))
        raise EvaluationError(f"cannot order a {kind_of(left)} and a {kind_of(right)}")

    return ordered


def _equal(left: object, right: object) -> bool:
    kind_left, kind_right = type(left), type(right)
    if kind_left is str and kind_right is str:
        return left == right
    if kind_left in _NUMBERS and kind_right in _NUMBERS:
        return _number(left) == _number(right)
    if kind_left is bool and kind_right is bool:
        return left is right
    if left is None or right is None:
        # Null is a value of its own: it equals nothing else, and asking is no mistake.
        return left is right
    raise EvaluationError(f"cannot compare a {kind_of(left)} with a {kind_of(right)}")


def _among(item: Any, container: Any) -> bool:
    if isinstance(container, Mapping):
        return _text(item) in container
    if type(container) is not list and type(container) is not tuple:
        raise EvaluationError(f"`in` needs a list or an object, found a {kind_of(container)}")
    clash: EvaluationError | None = None
    for value in cast("Sequence[Any]", container):
        try:
            if _equal(item, value):
                return True
        except EvaluationError as error:
            clash = error
    if clash is not None:
        raise clash
    return False


def _checked(compute: Callable[[Any, Any], int | float]) -> Callable[[Any, Any], Any]:
    def computed(left: Any, right: Any) -> int | float:
        try:
            return _number(compute(_number(left), _number(right)))
        except (ZeroDivisionError, OverflowError) as error:
            raise EvaluationError(str(error)) from None

    return computed


_sum = _checked(lambda left, right: left + right)


def _add(left: Any, right: Any) -> Any:
    if type(left) is str and type(right) is str:
        if len(left) + len(right) > TEXT_LENGTH_MAX:
            raise EvaluationError(f"a text is longer than {TEXT_LENGTH_MAX} characters")
        return left + right
    return _sum(left, right)


_NUMBERS = (int, float)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": _equal,
    "!=": lambda left, right: not _equal(left, right),
    "<": _ordering(operator.lt),
    "<=": _ordering(operator.le),
    ">": _ordering(operator.gt),
    ">=": _ordering(operator.ge),
    "in": _among,
    "not in": lambda item, container: not _among(item, container),
}
_COMPUTE = {
    "+": _add,
    "-": _checked(lambda left, right: left - right),
    "*": _checked(lambda left, right: left * right),
    "/": _checked(lambda left, right: left / right),
    "//": _checked(lambda left, right: left // right),
    "%": _checked(lambda left, right: left % right),
}


def key_match(key: str, pattern: str) -> bool:
    """Casbin's keyMatch: equal, or equal up to the first `*`, which stands for any rest."""
    star = pattern.find("*")
    return key == pattern if star == -1 else key.startswith(pattern[:star])


def _length(value: Any) -> int:
    if kind_of(value) not in ("text", "list", "object"):
        raise EvaluationError(f"len needs a text, a list or an object, found a {kind_of(value)}")
    return len(value)


def _contains(container: Any, item: Any) -> bool:
    if type(container) is str:
        return _text(item) in container
    return _among(item, container)


@dataclass(frozen=True, slots=True)
class Function:
    """A pure function of the language."""

    takes: Kind
    gives: Kind
    arity_min: int
    arity_max: int
    body: Callable[..., Any]

    @property
    def arity(self) -> str:
        if self.arity_min == self.arity_max:
            return f"{self.arity_min} argument" + ("s" if self.arity_min > 1 else "")
        return f"{self.arity_min} to {self.arity_max} arguments"


def _of_texts(body: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *values: body(*[_text(value) for value in values])


def _of_numbers(body: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *values: _number(body(*[_number(value) for value in values]))


#: All that can be called. `keyMatch` is Casbin's; a stock enforcer needs the others added to it.
FUNCTIONS: dict[str, Function] = {
    "abs": Function("number", "number", 1, 1, _of_numbers(abs)),
    "ceil": Function("number", "number", 1, 1, _of_numbers(ceil)),
    "contains": Function("any", "boolean", 2, 2, _contains),
    "endswith": Function("text", "boolean", 2, 2, _of_texts(str.endswith)),
    "floor": Function("number", "number", 1, 1, _of_numbers(floor)),
    "keyMatch": Function("text", "boolean", 2, 2, _of_texts(key_match)),
    "len": Function("any", "number", 1, 1, _length),
    "lower": Function("text", "text", 1, 1, _of_texts(str.lower)),
    "max": Function("number", "number", 2, 8, _of_numbers(max)),
    "min": Function("number", "number", 2, 8, _of_numbers(min)),
    "round": Function("number", "number", 1, 1, _of_numbers(round)),
    "startswith": Function("text", "boolean", 2, 2, _of_texts(str.startswith)),
}
