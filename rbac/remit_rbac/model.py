"""Reads a Casbin model file and understands its matchers.

A matcher is taken apart into conjuncts. Each must compare columns of the request with one column of the
policy in a way that an index can answer (`==`, `keyMatch`, a role graph, or those joined by `||`), or be
`eval()` of the condition column. What is not understood is refused, never approximated. It holds no
policy rows and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from remit_rbac import syntax
from remit_rbac.problems import PolicyError, Problem
from remit_rbac.syntax import ExpressionError, Node

SHIPPED = Path(__file__).with_name("model.conf")


@dataclass(frozen=True, slots=True)
class Equal:
    """`r.field == p.column`."""

    field: str


@dataclass(frozen=True, slots=True)
class Constant:
    """`p.column == "value"`."""

    value: str


@dataclass(frozen=True, slots=True)
class Prefix:
    """`keyMatch(r.field, p.column)`."""

    field: str


@dataclass(frozen=True, slots=True)
class Member:
    """`g(r.field, p.column)` or `g(r.field, p.column, r.domain)`."""

    graph: str
    field: str
    domain: str | None


Lookup: TypeAlias = Equal | Constant | Prefix | Member


@dataclass(frozen=True, slots=True, kw_only=True)
class Conjunct:
    """One column of the policy, and the ways (any of them) in which its value can match."""

    column: str
    lookups: tuple[Lookup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One kind of policy row: `p` or `p2`, with its matcher."""

    ptype: str
    columns: tuple[str, ...]
    conjuncts: tuple[Conjunct, ...]
    #: The column that holds the condition; None when the matcher has no `eval()`.
    condition: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A rule about the role graph, such as separation of duties; Casbin's `[constraint_definition]`."""

    key: str
    kind: str
    roles: tuple[str, ...]
    #: `sodMax` and `roleMax` only.
    count: int
    at: Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """`key = value` in a model file, with where it stands."""

    file: str
    line: int
    text: str
    value: str

    def problem(self, message: str, fix: str = "", offset: int = 0) -> Problem:
        start = max(self.text.find(self.value), 0) if self.value else 0
        return Problem(
            file=self.file,
            line=self.line,
            column=start + offset + 1,
            text=self.text,
            message=message,
            fix=fix,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """An understood model. Immutable."""

    request: tuple[str, ...]
    tables: Mapping[str, Table]
    #: Role graph to its number of columns (3 with a domain, 2 without).
    graphs: Mapping[str, int]
    constraints: tuple[Constraint, ...]
    #: The definitions without comments and spacing; part of the policy version.
    canonical: str
    entries: Mapping[str, Entry] = field(default_factory=dict[str, Entry])


_SECTIONS = {
    "request_definition": "r",
    "policy_definition": "p",
    "role_definition": "g",
    "policy_effect": "e",
    "matchers": "m",
    "constraint_definition": "c",
}
_EFFECT = "some(where(p.eft==allow))&&!some(where(p.eft==deny))"
_EFFECT_FIX = "e = some(where (p.eft == allow)) && !some(where (p.eft == deny))"


def read_model(path: Path | None) -> Model:
    """Read a model file, or the shipped one. Raises PolicyError naming every problem found."""
    path = path or SHIPPED
    return parse_model(path.read_text(encoding="utf-8"), str(path))


def parse_model(text: str, file: str) -> Model:
    """Understand the text of a model file. Raises PolicyError naming every problem found."""
    entries, problems = _entries(text, file)
    if problems:
        raise PolicyError(problems)
    missing = [key for key in ("r", "p", "e", "m") if key not in entries]
    if missing:
        raise PolicyError(
            [
                _whole_file(
                    file, f"the model does not define {', '.join(missing)}", "start from the shipped model"
                )
            ]
        )

    graphs: dict[str, int] = {}
    tables: dict[str, Table] = {}
    constraints: list[Constraint] = []
    request = _columns(entries["r"])
    for key, entry in entries.items():
        try:
            if key[0] == "g":
                graphs[key] = _graph(entry)
            elif key[0] == "c":
                constraints.append(_constraint(key, entry))
            elif key == "e" and "".join(entry.value.split()) != _EFFECT:
                problems.append(entry.problem("a deny must always win, whatever else allows", _EFFECT_FIX))
        except _Refusal as refusal:
            problems.append(refusal.problem)
    for key, entry in entries.items():
        if key[0] != "m":
            continue
        ptype = "p" + key[1:]
        if ptype not in entries:
            problems.append(entry.problem(f"there is no {ptype} for this matcher"))
            continue
        try:
            tables[ptype] = _table(ptype, _columns(entries[ptype]), entry, request, graphs)
        except _Refusal as refusal:
            problems.append(refusal.problem)
    for key, entry in entries.items():
        unused = key[0] == "p" and "m" + key[1:] not in entries
        if unused or (key[0] in "re" and key not in ("r", "e")):
            problems.append(entry.problem(f"nothing uses {key}", "remove the line"))
    if problems:
        raise PolicyError(problems)
    canonical = "\n".join(f"{key}={''.join(entries[key].value.split())}" for key in sorted(entries))
    return Model(
        request=request,
        tables=tables,
        graphs=graphs,
        constraints=tuple(constraints),
        canonical=canonical,
        entries=entries,
    )


class _Refusal(Exception):
    """Carries one problem out of the depth of a matcher."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


def _whole_file(file: str, message: str, fix: str) -> Problem:
    return Problem(file=file, line=1, column=1, text="", message=message, fix=fix)


def _entries(text: str, file: str) -> tuple[dict[str, Entry], list[Problem]]:
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    section = ""
    continued, started = "", 0
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip()

        def refuse(message: str, fix: str = "", number: int = number, line: str = line) -> None:
            problems.append(Problem(file=file, line=number, column=1, text=line, message=message, fix=fix))

        if not line or line[0] in "#;":
            if continued:
                refuse("the line before ends in `\\` and nothing follows")
                continued = ""
            continue
        if line[0] == "[" and line[-1] == "]":
            section = line[1:-1]
            if section not in _SECTIONS:
                refuse(f"unknown section [{section}]", f"known are {', '.join(_SECTIONS)}")
            continue
        started = started if continued else number
        if line.endswith("\\"):
            continued += line[:-1].strip() + " "
            continue
        line, continued = continued + line, ""
        key, equals, value = (part.strip() for part in line.partition("="))
        if section not in _SECTIONS:
            refuse("this stands in no known section")
        elif not equals or not value:
            refuse("expected `name = definition`")
        elif not _numbered(key, _SECTIONS[section]):
            refuse(f"`{key}` does not belong into [{section}]")
        elif key in entries:
            refuse(f"`{key}` is defined twice")
        elif "#" in value:
            refuse("Casbin cuts definitions at `#`", "put the comment on its own line")
        else:
            entries[key] = Entry(file=file, line=started, text=line, value=value)
    return entries, problems


def _numbered(key: str, letter: str) -> bool:
    return key == letter or (key[:1] == letter and key[1:].isdigit() and int(key[1:]) > 1)


def _columns(entry: Entry) -> tuple[str, ...]:
    return tuple(column.strip() for column in entry.value.split(","))


def _graph(entry: Entry) -> int:
    columns = _columns(entry)
    if columns not in (("_", "_"), ("_", "_", "_")):
        raise _Refusal(entry.problem("a role definition is `_, _` or `_, _, _`"))
    return len(columns)


def _constraint(key: str, entry: Entry) -> Constraint:
    try:
        node = syntax.parse(entry.value, roots=(), functions=("sod", "sodMax", "roleMax", "rolePre"))
    except ExpressionError as error:
        raise _Refusal(entry.problem(error.message, offset=error.column - 1)) from None
    match node:
        case syntax.Call("sod" | "rolePre" as kind, (syntax.Literal(str(a)), syntax.Literal(str(b)))):
            return Constraint(key=key, kind=kind, roles=(a, b), count=0, at=entry)
        case syntax.Call("sodMax", (syntax.Listing(items), syntax.Literal(int(count)))):
            roles = tuple(item.value for item in items if isinstance(item, syntax.Literal))
            names = tuple(role for role in roles if isinstance(role, str))
            if len(names) == len(items) > 0:
                return Constraint(key=key, kind="sodMax", roles=names, count=count, at=entry)
        case syntax.Call("roleMax", (syntax.Literal(str(role)), syntax.Literal(int(count)))):
            return Constraint(key=key, kind="roleMax", roles=(role,), count=count, at=entry)
        case _:
            pass
    raise _Refusal(
        entry.problem(
            "this constraint is not understood",
            'sod("role:a", "role:b"), sodMax(["role:a", "role:b"], 1), roleMax("role:a", 3) or'
            ' rolePre("role:a", "role:needed")',
        )
    )


def _table(
    ptype: str, columns: tuple[str, ...], matcher: Entry, request: tuple[str, ...], graphs: Mapping[str, int]
) -> Table:
    """Take a matcher apart. `r` and `p` are the only names it may use."""
    reader = _MatcherReader(ptype, columns, matcher, request, graphs)
    try:
        node = syntax.parse(matcher.value, roots=("r", ptype), functions=("keyMatch", "eval", *graphs))
    except ExpressionError as error:
        raise _Refusal(matcher.problem(error.message, offset=error.column - 1)) from None
    parts = node.operands if isinstance(node, syntax.Logic) and node.operator == "and" else (node,)
    conjuncts: list[Conjunct] = []
    condition: str | None = None
    for part in parts:
        if isinstance(part, syntax.Call) and part.name == "eval":
            if condition is not None:
                raise reader.refusal(part, "eval() may stand once")
            condition = reader.policy_column(part.arguments[0]) if len(part.arguments) == 1 else None
            if condition is None:
                raise reader.refusal(part, "eval() takes one column of the policy")
            continue
        conjuncts.append(reader.conjunct(part))
    return Table(ptype=ptype, columns=columns, conjuncts=tuple(conjuncts), condition=condition)


class _MatcherReader:
    def __init__(
        self,
        ptype: str,
        columns: tuple[str, ...],
        matcher: Entry,
        request: tuple[str, ...],
        graphs: Mapping[str, int],
    ) -> None:
        self._ptype = ptype
        self._columns = columns
        self._matcher = matcher
        self._request = request
        self._graphs = graphs

    def refusal(self, node: Node, message: str) -> _Refusal:
        return _Refusal(self._matcher.problem(message, offset=node.column - 1))

    def policy_column(self, node: Node) -> str | None:
        return self._column(node, self._ptype, self._columns)

    def request_field(self, node: Node) -> str | None:
        return self._column(node, "r", self._request)

    def _column(self, node: Node, root: str, known: tuple[str, ...]) -> str | None:
        match node:
            case syntax.Path((str(first), str(name))) if first == root and name in known:
                return name
            case _:
                return None

    def conjunct(self, node: Node) -> Conjunct:
        alternatives = node.operands if isinstance(node, syntax.Logic) and node.operator == "or" else (node,)
        found = [self._lookup(alternative) for alternative in alternatives]
        columns = {column for column, _ in found}
        if len(columns) != 1:
            raise self.refusal(node, "an `||` may only compare one column of the policy")
        return Conjunct(column=found[0][0], lookups=tuple(lookup for _, lookup in found))

    def _lookup(self, node: Node) -> tuple[str, Lookup]:
        match node:
            case syntax.Comparison(first, (("==", second),)):
                for left, right in ((first, second), (second, first)):
                    column = self.policy_column(left)
                    if column is None:
                        continue
                    if isinstance(right, syntax.Literal) and isinstance(right.value, str):
                        return column, Constant(right.value)
                    if (name := self.request_field(right)) is not None:
                        return column, Equal(name)
            case syntax.Call("keyMatch", (key, pattern)):
                name, column = self.request_field(key), self.policy_column(pattern)
                if name is not None and column is not None:
                    return column, Prefix(name)
            case syntax.Call(graph, (member, group, *rest)) if graph in self._graphs:
                name, column = self.request_field(member), self.policy_column(group)
                domain = self.request_field(rest[0]) if rest else None
                if len(rest) != self._graphs[graph] - 2 or (rest and domain is None):
                    raise self.refusal(node, f"{graph} takes {self._graphs[graph]} columns")
                if name is not None and column is not None:
                    return column, Member(graph, name, domain)
            case _:
                pass
        raise self.refusal(
            node, "this part of the matcher is not understood; use ==, keyMatch, g, g2, || and eval()"
        )
