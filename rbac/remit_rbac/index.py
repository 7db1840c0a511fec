"""Finds the rows that a request can match, without reading the others.

Rows are kept in nested dictionaries, one level for each conjunct of the matcher. A request names, level
by level, the few values that can match it (itself, `*`, its prefixes, its roles), so the cost depends on
those and not on the number of rows. What remains of a row is its condition, which only the arguments
and the context can answer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
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
    #: The comment right above it, in one line; none for a row that comes from elsewhere than a file.
    note: str = field(default="", compare=False)

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
    #: Position in the whole policy; answers keep this order.
    number: int


#: Names remembered for each column with the values that match them. Past it all are dropped.
MEMO_MAX = 20_000
#: Ends a branch of the tree. No value of a policy is empty.
_RULES = ""


class Index:
    """All rules of one table. Immutable after construction, but for memos that any thread may write."""

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

    def find(self, request: Mapping[str, str], *, ignoring: Collection[str] = ()) -> list[Rule]:
        """The rules whose every indexed column matches the request, in policy order.

        Columns in `ignoring` match whatever they hold.
        """
        nodes: list[dict[str, Any]] = [self._tree]
        for level in self._levels:
            if level.column in ignoring:
                nodes = [child for node in nodes for child in node.values()]
            else:
                values = level.matching(request)
                nodes = [node[value] for node in nodes for value in _shared(values, node)]
        rules: list[Rule] = [rule for node in nodes for rule in node[_RULES]]
        rules.sort(key=lambda rule: rule.number)
        return rules


def _shared(values: frozenset[str], node: dict[str, Any]) -> list[str]:
    if len(values) <= len(node):
        return [value for value in values if value in node]
    return [value for value in node if value in values]


def _fields(lookup: Lookup) -> tuple[str, ...]:
    match lookup:
        case Constant():
            return ()
        case Equal(field) | Prefix(field):
            return (field,)
        case Member(_, field, domain):
            return (field, domain) if domain else (field,)


class _Level:
    """The patterns of one column, and which of its values a request can match."""

    def __init__(self, conjunct: Conjunct, graphs: Mapping[str, RoleGraph]) -> None:
        self.column = conjunct.column
        self._lookups = conjunct.lookups
        self._graphs = graphs
        #: What stands before the star, to the values that have it.
        self._prefixes: dict[str, set[str]] = {}
        self._lengths: set[int] = set()
        #: The fields of a request that the answer depends on, and the answers to the latest requests.
        self._fields = tuple(dict.fromkeys(field for lookup in conjunct.lookups for field in _fields(lookup)))
        self._memo: dict[tuple[str, ...], frozenset[str]] = {}

    def add(self, value: str) -> None:
        start, star, _ = value.partition("*")
        if star:
            self._prefixes.setdefault(start, set()).add(value)
            self._lengths.add(len(start))

    def matching(self, request: Mapping[str, str]) -> frozenset[str]:
        """The values that match, among them values that the column may not hold."""
        key = tuple([request[field] for field in self._fields])
        found = self._memo.get(key)
        if found is None:
            found = frozenset(value for lookup in self._lookups for value in self._matching(lookup, request))
            if len(self._memo) >= MEMO_MAX:
                self._memo.clear()
            self._memo[key] = found
        return found

    def _matching(self, lookup: Lookup, request: Mapping[str, str]) -> Iterable[str]:
        match lookup:
            case Equal(field):
                return (request[field],)
            case Constant(value):
                return (value,)
            case Prefix(field):
                return self._matching_prefix(request[field])
            case Member(graph, field, domain):
                return self._graphs[graph].closure(request[field], request[domain] if domain else "")

    def _matching_prefix(self, key: str) -> Iterable[str]:
        # A value with a star in it is a pattern even where the key is the same text.
        found = set[str]() if "*" in key else {key}
        for length in self._lengths:
            if length <= len(key):
                found |= self._prefixes.get(key[:length], set())
        return found
