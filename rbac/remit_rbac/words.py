"""Conditions in plain words, with what each part was about and whether it held.

    the amount in cents (args.amount_minor = 40,000) is at most 10,000

For people who have to understand a decision and do not program. It decides nothing: whether a part holds is
asked of the compiled condition. Values of the call are shown, so show it to those who may see them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from remit_rbac import syntax
from remit_rbac.conditions import EvaluationError, Expression, compile_node

_VALUE_MAX = 60
#: Of a list or an object, whose end may be what explains the answer.
_WHOLE_MAX = 240
_COMPARED = {
    "==": "is",
    "!=": "is not",
    "<": "is less than",
    "<=": "is at most",
    ">": "is more than",
    ">=": "is at least",
    "in": "is one of",
    "not in": "is none of",
}
#: The same from the other side, where what is compared stands on the right.
_FLIPPED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_COMPUTED = {"+": "plus", "-": "minus", "*": "times", "/": "divided by", "//": "divided (whole) by"}
_TESTS = {"contains": "contains", "startswith": "begins with", "endswith": "ends with", "keyMatch": "fits"}
_FUNCTIONS = {
    "abs": "the size of {}",
    "ceil": "{} rounded up",
    "floor": "{} rounded down",
    "round": "{} rounded",
    "len": "the length of {}",
    "lower": "{} in lower case",
    "max": "the largest of {}",
    "min": "the smallest of {}",
}
#: What the attributes of `r.ctx` are, where their names alone would not say it.
_CONTEXT = {
    "effect": "the effect of the call",
    "undo_ready": "whether it can be taken back",
    "undo_proven": "whether its way back was tried and held",
    "hour": "the hour of the day",
    "weekday": "the day of the week (Monday is 1)",
    "in_chain": "whether this person asked for it",
}
_ROOMS = {
    "facts": "",
    "derived": "",
    "parsed": "",
    "run": "this piece of work's ",
    "price": "the price in ",
    "claim": "the agent's own ",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One thing that a condition asks for."""

    text: str
    #: None when it cannot be answered, and then `error` says why.
    holds: bool | None
    error: str = ""


def parts(condition: Expression | None, record: Mapping[str, Any]) -> tuple[Part, ...]:
    """What a condition asks for, each part that is joined by `and`. None at all: it always holds."""
    return tuple(_part(each, record) for each in operands(condition))


def operands(condition: Expression | None) -> tuple[syntax.Node, ...]:
    """The parts of a condition that are joined by `and`; none when it always holds."""
    if condition is None:
        return ()
    node = condition.node
    return tuple(node.operands) if isinstance(node, syntax.Logic) and node.operator == "and" else (node,)


def value(of: Any) -> str:
    """One value as a person writes it: 40,000, 'paid', yes, nothing."""
    match of:
        case None:
            return "nothing"
        case bool():
            return "yes" if of else "no"
        case int():
            return f"{of:,}"
        case float():
            return f"{of:,}"
        case str():
            return f"'{_cut(of)}'"
        case list() | tuple():
            return _cut(", ".join(map(value, cast("Sequence[Any]", of))) or "an empty list", _WHOLE_MAX)
        case Mapping():
            fields = cast("Mapping[str, Any]", of)
            return _cut("; ".join(f"{_plain(key)} {value(each)}" for key, each in fields.items()), _WHOLE_MAX)
        case _:
            return _cut(str(of))


def name(keys: Sequence[syntax.Key]) -> str:
    """What a path is about: `order.unit_price` is `the order's unit price`."""
    told = [_plain(key) for key in keys]
    return "the " + " ".join([*(_owner(word) for word in told[:-1]), told[-1]])


def _part(node: syntax.Node, record: Mapping[str, Any]) -> Part:
    try:
        holds = compile_node(syntax.render(node), node, within="r").evaluate(record)
    except EvaluationError as error:
        return Part(text=_claim(node, record), holds=None, error=str(error))
    return Part(text=_claim(node, record), holds=holds is True)


def _claim(node: syntax.Node, record: Mapping[str, Any]) -> str:
    """A part that stands for itself: a value alone is asked whether it is true."""
    match node:
        case syntax.Path(keys):
            return _marked(keys, record, "is")
        case syntax.Not(syntax.Path(keys)):
            return _marked(keys, record, "is not")
        case syntax.Not(operand):
            return f"it is not so that {_claim(operand, record)}"
        case syntax.Logic(operator, operands):
            told = [
                f"({_claim(each, record)})" if isinstance(each, syntax.Logic) else _claim(each, record)
                for each in operands
            ]
            return f", {operator} ".join(told)
        case _:
            return _words(node, record)


def _marked(keys: Sequence[syntax.Key], record: Mapping[str, Any], verb: str) -> str:
    """A yes or no: `the order is marked as disputed`."""
    root, *rest = keys[1:]
    if root == "ctx" and len(rest) > 2 and _ROOMS.get(str(rest[0])) == "":
        *owner, last = rest[1:]
        return f"{name(owner)} {verb} marked as {_plain(last).removeprefix('is ')} ({_found(keys, record)})"
    return f"{_path(keys, record)} is {'yes' if verb == 'is' else 'no'}"


def _words(node: syntax.Node, record: Mapping[str, Any]) -> str:
    match node:
        case syntax.Literal(of):
            return value(of)
        case syntax.Path(keys):
            return _path(keys, record)
        case syntax.Listing(items):
            return _either([_words(item, record) for item in items])
        case syntax.Negative(operand):
            return f"minus {_words(operand, record)}"
        case syntax.Not() | syntax.Logic():
            return f"({_claim(node, record)})"
        case syntax.Arithmetic("%", left, right):
            return f"the remainder of {_words(left, record)} divided by {_words(right, record)}"
        case syntax.Arithmetic(operator, left, right):
            return f"{_words(left, record)} {_COMPUTED[operator]} {_words(right, record)}"
        case syntax.Comparison(first, links):
            return _comparison(first, links, record)
        case syntax.Choice(test, then, otherwise):
            chosen = f"{_words(then, record)} if {_claim(test, record)}, else {_words(otherwise, record)}"
            return f"({chosen})"
        case syntax.Call(function, (first, second)) if function in _TESTS:
            return f"{_words(first, record)} {_TESTS[function]} {_words(second, record)}"
        case syntax.Call(function, arguments):
            told = ", ".join(_words(argument, record) for argument in arguments)
            return _FUNCTIONS.get(function, f"{function} of {{}}").format(told)


def _comparison(
    first: syntax.Node, links: Sequence[tuple[str, syntax.Node]], record: Mapping[str, Any]
) -> str:
    if isinstance(first, syntax.Literal) and len(links) == 2 and links[0][0] in _FLIPPED:
        # Bounds from below and from above: what lies between them is named once.
        (below, middle), (above, last) = links
        lower = _compared(middle, _FLIPPED[below], first, record)
        return f"{lower} and {_COMPARED[above].removeprefix('is ')} {_words(last, record)}"
    told: list[str] = []
    left = first
    for operator, right in links:
        if isinstance(left, syntax.Literal) and operator in _FLIPPED:
            told.append(_compared(right, _FLIPPED[operator], left, record))
        else:
            told.append(_compared(left, operator, right, record))
        left = right
    return " and ".join(told)


def _compared(left: syntax.Node, operator: str, right: syntax.Node, record: Mapping[str, Any]) -> str:
    return f"{_words(left, record)} {_COMPARED[operator]} {_words(right, record)}"


def _either(told: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(told[:-1]), told[-1]))) if told else "nothing"


def _path(keys: Sequence[syntax.Key], record: Mapping[str, Any]) -> str:
    return f"{_about(keys[1:])} ({_found(keys, record)})"


def _found(keys: Sequence[syntax.Key], record: Mapping[str, Any]) -> str:
    shown = ".".join(str(key) for key in keys[1:])
    found: Any = record
    for key in keys[1:]:
        try:
            found = found[key]
        except (KeyError, IndexError, TypeError):
            return f"{shown} is missing"
    return f"{shown} = {value(found)}"


def _about(keys: Sequence[syntax.Key]) -> str:
    root, *rest = keys
    if root == "args" and rest:
        return name(rest)
    if root != "ctx" or not rest:
        return {"sub": "who asks", "dom": "the tenant", "tool": "the tool", "act": "the action"}.get(
            str(root), "the arguments"
        )
    if len(rest) == 1:
        return _CONTEXT.get(str(rest[0]), name(rest))
    room = _ROOMS.get(str(rest[0]))
    if room is None:
        return name(rest)
    return room + name(rest[1:]).removeprefix("the ") if room else name(rest[1:])


def _plain(key: syntax.Key) -> str:
    """A key as words. `minor` says in which unit the amount is counted, in a word that nobody here uses."""
    if isinstance(key, int):
        return f"number {key + 1}"
    words = [word for word in key.split("_") if word]
    if len(words) > 1 and words[-1] == "minor":
        words[-1:] = ["in", "cents"]
    return " ".join(words) or key


def _owner(word: str) -> str:
    return f"{word}'" if word.endswith("s") else f"{word}'s"


def _cut(text: str, length_max: int = _VALUE_MAX) -> str:
    return text if len(text) <= length_max else f"{text[: length_max - 3]}..."
