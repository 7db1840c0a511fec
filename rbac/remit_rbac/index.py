"""Finds the rows that a request can match, without reading the others.

Rows are kept in nested dictionaries, one level per conjunct of the matcher. A request names, level by
level, the few values that can match it (itself, `*`, its prefixes, its roles), so the cost depends on
those and not on the number of rows. What remains of a row is its condition, which only the arguments
and the context can answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from remit_rbac.conditions import Expression
from remit_rbac.model import Conjunct, Constant, Equal, Lookup, Member, Prefix, Table
from remit_rbac.roles import RoleGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of a policy file, for people."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row of `p` or `p2`, checked and compiled."""

    row: Row
    #: In the order of the table's columns.
    values: tuple[str, ...]
    #: None when the row holds for every call.
    condition: Expression | None
    #: Position in the whole policy; plans keep this order.
    number: int


class Index:
    """All rules of one table. Immutable after construction."""

    def __init__(self, table: Table, rules: Iterable[Rule], graphs: Mapping[str, RoleGraph]) -> None:
        self._levels = [_Level(conjunct, graphs) for conjunct in table.conjuncts]
        self._tree: dict[str, Any] = {}
        positions = [table.columns.index(conjunct.column) for conjunct in table.conjuncts]
        for rule in rules:
            node = self._tree
            for level, position in zip(self._levels, positions, strict=True):
                value = rule.values[position]
                level.add(value)
                node = node.setdefault(value, {})
            node.setdefault(_RULES, []).append(rule)

    def find(self, request: Mapping[str, str]) -> list[Rule]:
        """The rules whose every indexed column matches, in policy order."""
        nodes: list[dict[str, Any]] = [self._tree]
        for level in self._levels:
            values = level.matching(request)
            nodes = [node[value] for node in nodes for value in _shared(values, node)]
        rules = [rule for node in nodes for rule in node.get(_RULES, ())]
        rules.sort(key=lambda rule: rule.number)
        return rules


#: A key that no policy value can have, because values are never empty.
_RULES = ""


def _shared(values: set[str], node: dict[str, Any]) -> list[str]:
    if len(values) <= len(node):
        return [value for value in values if value in node]
    return [value for value in node if value in values]


class _Level:
    """The distinct values of one column, and which of them a request matches."""

    def __init__(self, conjunct: Conjunct, graphs: Mapping[str, RoleGraph]) -> None:
        self._lookups = conjunct.lookups
        self._graphs = graphs
        self._values: set[str] = set()
        self._prefixes: dict[str, list[str]] = {}
        self._prefix_lengths: list[int] = []

    def add(self, value: str) -> None:
        if value in self._values:
            return
        self._values.add(value)
        star = value.find("*")
        if star >= 0:
            self._prefixes.setdefault(value[:star], []).append(value)
            if star not in self._prefix_lengths:
                self._prefix_lengths.append(star)

    def matching(self, request: Mapping[str, str]) -> set[str]:
        found: set[str] = set()
        for lookup in self._lookups:
            found.update(self._matching(lookup, request))
        return found

    def _matching(self, lookup: Lookup, request: Mapping[str, str]) -> Iterable[str]:
        match lookup:
            case Equal(field):
                return (request[field],)
            case Constant(value):
                return (value,)
            case Prefix(field):
                return self._with_prefix_of(request[field])
            case Member(graph, field, domain):
                return self._graphs[graph].closure(request[field], request[domain] if domain else "")

    def _with_prefix_of(self, key: str) -> list[str]:
        # A value with a star is a pattern even when the key equals it, so it is found by its prefix.
        found = [] if "*" in key else [key]
        for length in self._prefix_lengths:
            if length <= len(key):
                found.extend(self._prefixes.get(key[:length], ()))
        return found
