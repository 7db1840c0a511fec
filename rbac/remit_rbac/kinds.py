"""Which kinds of values an expression meets, given those of its attributes, and where they cannot fit.

Only what is certain counts: a part that could be answered for some values of those kinds is no clash. It
reads trees and evaluates nothing; what the text alone makes impossible was refused when it was compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from remit_rbac import syntax
from remit_rbac.conditions import FUNCTIONS, Keys, Kind, children, kind_of
from remit_rbac.syntax import Node, Scalar

Kinds: TypeAlias = frozenset[Kind]

ANY: Kinds = frozenset({"any"})
_BOOLEAN: Kinds = frozenset({"boolean"})
_CONTAINERS: Kinds = frozenset({"list", "object"})
_NUMBER: Kinds = frozenset({"number"})
_NULL: Kinds = frozenset({"null"})
_OBJECT: Kinds = frozenset({"object"})
_ORDERED: Kinds = frozenset({"number", "text"})
_SCALAR: Kinds = frozenset({"boolean", "number", "text"})
_SIZED: Kinds = frozenset({"list", "object", "text"})
_TEXT: Kinds = frozenset({"text"})


@dataclass(frozen=True, slots=True)
class Clash:
    """A part whose values are never of a kind that it is used as."""

    node: Node
    found: Kinds
    wanted: Kinds


def clashes(node: Node, kinds_at: Callable[[Keys], Kinds]) -> tuple[Clash, ...]:
    """What of a condition has no answer, whatever its attributes hold within `kinds_at`."""
    reader = _Reader(kinds_at)
    reader.want(node, _BOOLEAN)
    return tuple(dict.fromkeys(reader.found))


def compared_values(node: Node) -> Iterator[tuple[syntax.Path, syntax.Literal]]:
    """Each attribute with each value that the text asks whether it is."""
    if isinstance(node, syntax.Comparison):
        left = node.first
        for operator, right in node.links:
            if operator in ("==", "!="):
                for path, other in ((left, right), (right, left)):
                    if isinstance(path, syntax.Path) and isinstance(other, syntax.Literal):
                        yield path, other
            elif isinstance(left, syntax.Path) and isinstance(right, syntax.Listing):
                yield from ((left, item) for item in right.items if isinstance(item, syntax.Literal))
            left = right
    for child in children(node):
        yield from compared_values(child)


class _Reader:
    def __init__(self, kinds_at: Callable[[Keys], Kinds]) -> None:
        self._kinds_at = kinds_at
        self.found: list[Clash] = []

    def kinds(self, node: Node) -> Kinds:
        """The kinds that a part can give; clashes on the way are noted."""
        match node:
            case syntax.Literal(value):
                return frozenset({kind_of(value)})
            case syntax.Path(keys):
                return self._kinds_at(keys)
            case syntax.Listing(items):
                for item in items:
                    self.kinds(item)
                return frozenset({"list"})
            case syntax.Negative(operand):
                self.want(operand, _NUMBER)
                return _NUMBER
            case syntax.Not(operand):
                self.want(operand, _BOOLEAN)
                return _BOOLEAN
            case syntax.Arithmetic():
                return self._sum(node) if node.operator == "+" else self._all(children(node), _NUMBER)
            case syntax.Comparison():
                left = node.first
                for operator, right in node.links:
                    self._compare(operator, left, right)
                    left = right
                return _BOOLEAN
            case syntax.Logic(_, operands):
                return self._all(operands, _BOOLEAN)
            case syntax.Choice(test, then, otherwise):
                self.want(test, _BOOLEAN)
                return self.kinds(then) | self.kinds(otherwise)
            case syntax.Call():
                return self._call(node)

    def want(self, node: Node, wanted: Kinds) -> Kinds:
        found = self.kinds(node)
        if "any" not in found | wanted and not found & wanted:
            self.found.append(Clash(node, found, wanted))
        return found

    def _all(self, nodes: tuple[Node, ...], wanted: Kinds) -> Kinds:
        for node in nodes:
            self.want(node, wanted)
        return wanted

    def _sum(self, node: syntax.Arithmetic) -> Kinds:
        left, right = self.want(node.left, _ORDERED), self.want(node.right, _ORDERED)
        return self._both(node.left, left, node.right, right, _ORDERED)

    def _both(self, left: Node, of_left: Kinds, right: Node, of_right: Kinds, among: Kinds) -> Kinds:
        """The kinds among these that two sides have in common; none is a clash."""
        first = among if "any" in of_left else of_left & among
        second = among if "any" in of_right else of_right & among
        if first and second and not first & second:
            clash = Clash(left, of_left, of_right)
            if isinstance(right, syntax.Path) and not isinstance(left, syntax.Path):
                clash = Clash(right, of_right, of_left)
            self.found.append(clash)
        return first & second or ANY

    def _compare(self, operator: str, left: Node, right: Node) -> None:
        if operator in ("in", "not in"):
            if isinstance(right, syntax.Listing):
                for item in right.items:
                    self._compare("==", left, item)
            elif self.want(right, _CONTAINERS) == _OBJECT:
                self.want(left, _TEXT)
            else:
                self.kinds(left)
            return
        of_left, of_right = self.kinds(left), self.kinds(right)
        if operator in ("==", "!="):
            # Asking whether something is null is no mistake, whatever it is.
            if _NULL not in (of_left, of_right):
                self._comparable(left, of_left, right, of_right, _SCALAR)
        else:
            self._comparable(left, of_left, right, of_right, _ORDERED)

    def _comparable(self, left: Node, of_left: Kinds, right: Node, of_right: Kinds, among: Kinds) -> None:
        for node, found in ((left, of_left), (right, of_right)):
            if "any" not in found and not found & among:
                self.found.append(Clash(node, found, among))
        self._both(left, of_left, right, of_right, among)

    def _call(self, node: syntax.Call) -> Kinds:
        function = FUNCTIONS[node.name]
        if node.name in ("contains", "len"):
            container, *items = node.arguments
            whole = self.want(container, _SIZED)
            for item in items:
                self.want(item, ANY if whole & {"any", "list"} else _TEXT)
        else:
            self._all(node.arguments, frozenset({function.takes}))
        return frozenset({function.gives})


def contradicted(node: Node) -> syntax.Path | None:
    """An attribute of which an `&&` asks what no value is, such as `r.args.n > 5 && r.args.n < 3`.

    Only comparisons with written values, joined at the top, are looked at.
    """
    asked: dict[Keys, list[tuple[str, Scalar]]] = {}
    paths: dict[Keys, syntax.Path] = {}
    for part in node.operands if isinstance(node, syntax.Logic) and node.operator == "and" else (node,):
        if not isinstance(part, syntax.Comparison):
            continue
        left = part.first
        for operator, right in part.links:
            for path, name, other in ((left, operator, right), (right, _MIRRORED.get(operator, ""), left)):
                if isinstance(path, syntax.Path) and (value := _written(other)) is not None:
                    paths.setdefault(path.keys, path)
                    asked.setdefault(path.keys, []).append((name, value))
            left = right
    return next((paths[keys] for keys, bounds in asked.items() if _apart(bounds)), None)


_MIRRORED = {"==": "==", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


def _written(node: Node) -> Scalar:
    match node:
        case syntax.Literal(value):
            return value
        case syntax.Negative(syntax.Literal(int() | float() as value)) if type(value) is not bool:
            return -value
        case _:
            return None


def _apart(bounds: list[tuple[str, Scalar]]) -> bool:
    """Whether a bound from below lies above one from above: what overlaps in pairs has a value in common."""
    lows: list[tuple[Any, bool]] = [
        (value, name == ">") for name, value in bounds if name in ("==", ">", ">=")
    ]
    highs: list[tuple[Any, bool]] = [
        (value, name == "<") for name, value in bounds if name in ("==", "<", "<=")
    ]
    return any(
        low > high or (low == high and (above or below))
        for low, above in lows
        for high, below in highs
        if kind_of(low) == kind_of(high)
    )
