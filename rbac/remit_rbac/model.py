"""Reads a Casbin model file and understands its matchers.

A matcher is taken apart into conjuncts. Each must compare fields of the request with one column of the
policy in a way that an index can answer (`==`, `keyMatch`, a role graph, or those joined by `||`), or be
`eval()` of the condition column. What is not understood is refused, never approximated. It holds no
policy rows and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    """One kind of policy row, such as `p` or `p2`, with its matcher."""

    ptype: str
    columns: tuple[str, ...]
    conjuncts: tuple[Conjunct, ...]
    #: The column that holds the condition; None when the matcher has no `eval()`.
    condition: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """`key = value` in a model file, with where it stands."""

    file: str
    line: int
    text: str
    value: str

    def problem(self, message: str, fix: str = "start from the shipped model", *, offset: int = 0) -> Problem:
        """A problem at `offset` characters into the value."""
        return Problem(
            code="bad-model",
            file=self.file,
            line=self.line,
            column=self.text.find(self.value) + offset + 1,
            text=self.text,
            message=message,
            fix=fix,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A rule about who may have which roles; Casbin's `[constraint_definition]`.

    `sod` and `sodMax`: nobody has more than `count` of the roles. `roleMax`: at most `count` have the
    role. `rolePre`: whoever has the first role has the second.
    """

    kind: str
    roles: tuple[str, ...]
    count: int
    at: Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """An understood model. Immutable."""

    #: The fields of a request, in order.
    request: tuple[str, ...]
    tables: Mapping[str, Table]
    #: Role graph to its number of columns: 3 with a domain, 2 without.
    graphs: Mapping[str, int]
    constraints: tuple[Constraint, ...]
    entries: Mapping[str, Entry]
    #: The file's text, for engines that read it themselves.
    text: str

    @property
    def effect(self) -> str:
        """The policy effect without spaces."""
        return "".join(self.entries["e"].value.split())

    @property
    def canonical(self) -> str:
        """The definitions without comments, order and spaces: equal for models that decide alike."""
        return "\n".join(f"{key}={''.join(self.entries[key].value.split())}" for key in sorted(self.entries))


_SECTIONS = {
    "request_definition": "r",
    "policy_definition": "p",
    "role_definition": "g",
    "policy_effect": "e",
    "matchers": "m",
    "constraint_definition": "c",
}
#: Where Casbin takes what follows `#` for a comment; elsewhere it becomes part of the last column.
_COMMENTED = frozenset({"policy_effect", "matchers"})
#: Casbin's other matching functions, and why they are not offered.
_TRAPS = {
    "keyMatch2": "it is a regular expression in which `.` and `:` of tool names have a meaning",
    "keyMatch3": "it is a regular expression in which `.` of tool names has a meaning",
    "keyMatch4": "it is a regular expression in which `.` of tool names has a meaning",
    "keyMatch5": "it is a regular expression in which `.` of tool names has a meaning",
    "regexMatch": "it matches beginnings only, differs between engines and can take seconds",
    "globMatch": "it differs between engines and versions",
}


def read_model(path: Path | None) -> Model:
    """Read a model file, or the shipped one (None). Raises PolicyError naming every problem, OSError."""
    path = path or SHIPPED
    return parse_model(path.read_text(encoding="utf-8"), str(path))


def parse_model(text: str, file: str) -> Model:
    """Understand the text of a model file. Raises PolicyError naming every problem found."""
    entries, problems = _entries(text, file)
    problems += [
        Problem(
            code="bad-model",
            file=file,
            line=1,
            column=1,
            text="",
            message=f"the model does not define {key}",
            fix="start from the shipped model",
        )
        for key in ("r", "p", "e", "m")
        if key not in entries
    ]
    if problems:
        raise PolicyError(problems)

    request = _columns(entries["r"])
    graphs: dict[str, int] = {}
    tables: dict[str, Table] = {}
    constraints: list[Constraint] = []
    for key, entry in entries.items():
        if key[0] == "g":
            graphs[key] = len(_columns(entry))
            if _columns(entry) not in (("_", "_"), ("_", "_", "_")):
                problems.append(entry.problem("a role definition is `_, _` or `_, _, _`"))
    for key, entry in entries.items():
        ptype = "p" + key[1:]
        try:
            if key[0] == "c":
                constraints.append(_constraint(entry))
            elif key[0] == "m" and ptype not in entries:
                problems.append(entry.problem(f"there is no {ptype} for this matcher"))
            elif key[0] == "m":
                columns = _columns(entries[ptype])
                tables[ptype] = _MatcherReader(ptype, columns, entry, request, graphs).table()
            elif key not in ("r", "e") and key[0] in "re":
                problems.append(entry.problem(f"nothing uses {key}", "remove the line"))
            elif key[0] == "p" and "m" + key[1:] not in entries:
                problems.append(entry.problem(f"nothing uses {key}", f"add a matcher m{key[1:]}"))
        except _NotUnderstoodError as error:
            problems.append(error.problem)
    if problems:
        raise PolicyError(problems)
    return Model(
        request=request,
        tables=tables,
        graphs=graphs,
        constraints=tuple(constraints),
        entries=entries,
        text=text,
    )


class _NotUnderstoodError(Exception):
    """Carries one problem out of the depth of a definition."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


def _entries(text: str, file: str) -> tuple[dict[str, Entry], list[Problem]]:
    """The definitions of the file, each once, read as Casbin's configuration reader does."""
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    section, pending, started = "", "", 0
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip()
        if not line or line[0] in "#;" or (line[0] == "[" and line[-1] == "]"):
            if line[:1] == "[":
                section = line[1:-1]
            unknown = line[:1] == "[" and section not in _SECTIONS
            if unknown or pending:
                message = f"unknown section [{section}]" if unknown else "the line before this ends in `\\`"
                entry = Entry(file=file, line=number, text=line, value=line)
                fix = f"there are {', '.join(_SECTIONS)}" if unknown else "take the `\\` away"
                problems.append(entry.problem(message, fix))
            pending = ""
            continue
        started = started if pending else number
        if line[-1] == "\\":
            pending += line[:-1].strip() + " "
            continue
        line, pending = pending + line, ""
        key, _, value = (part.strip() for part in line.partition("="))
        if section in _COMMENTED:
            value = value.partition("#")[0].strip()
        entry = Entry(file=file, line=started, text=line, value=value or line)
        if message := _misplaced(key, value, section, entries):
            problems.append(entry.problem(message))
        else:
            entries[key] = entry
    return entries, problems


def _misplaced(key: str, value: str, section: str, entries: Mapping[str, Entry]) -> str:
    letter = _SECTIONS.get(section)
    if letter is None:
        return "this stands in no section"
    if not value:
        return "expected `name = definition`"
    if key != letter and not (key[:1] == letter and key[1:].isdecimal() and int(key[1:]) > 1):
        return f"`{key}` does not belong into [{section}], where names are {letter}, {letter}2, ..."
    if key in entries:
        return f"`{key}` is defined twice"
    if "#" in value:
        return "Casbin takes `#` for part of the definition; comments go on their own line"
    return ""


def _columns(entry: Entry) -> tuple[str, ...]:
    return tuple(column.strip() for column in entry.value.split(","))


def _parse(entry: Entry, *, roots: tuple[str, ...], functions: tuple[str, ...]) -> Node:
    try:
        return syntax.parse(entry.value, roots=roots, functions=functions)
    except ExpressionError as error:
        trap = next((why for name, why in _TRAPS.items() if f"`{name}`" in error.message), "")
        fix = f"use keyMatch: {trap}" if trap else error.fix
        raise _NotUnderstoodError(entry.problem(error.message, fix, offset=error.column - 1)) from None


def _constraint(entry: Entry) -> Constraint:
    found = _understood(entry)
    if found is None or not all(role.startswith("role:") for role in found.roles):
        raise _NotUnderstoodError(
            entry.problem(
                "this constraint is not understood",
                'sod("role:a", "role:b"), sodMax(["role:a", "role:b"], 1), roleMax("role:a", 3) or'
                ' rolePre("role:a", "role:needed")',
            )
        )
    return found


def _understood(entry: Entry) -> Constraint | None:
    match _parse(entry, roots=(), functions=("sod", "sodMax", "roleMax", "rolePre")):
        case syntax.Call("sod", (syntax.Literal(str(a)), syntax.Literal(str(b)))):
            return Constraint(kind="sodMax", roles=(a, b), count=1, at=entry)
        case syntax.Call("rolePre", (syntax.Literal(str(role)), syntax.Literal(str(needed)))):
            return Constraint(kind="rolePre", roles=(role, needed), count=0, at=entry)
        case syntax.Call("roleMax", (syntax.Literal(str(role)), syntax.Literal(int(count)))):
            return Constraint(kind="roleMax", roles=(role,), count=count, at=entry)
        case syntax.Call("sodMax", (syntax.Listing(items), syntax.Literal(int(count)))):
            values = [item.value for item in items if isinstance(item, syntax.Literal)]
            roles = tuple(value for value in values if isinstance(value, str))
            if roles and len(roles) == len(items):
                return Constraint(kind="sodMax", roles=tuple(dict.fromkeys(roles)), count=count, at=entry)
        case _:
            pass
    return None


class _MatcherReader:
    """Takes one matcher apart."""

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

    def table(self) -> Table:
        node = _parse(self._matcher, roots=("r", self._ptype), functions=("keyMatch", "eval", *self._graphs))
        conjuncts: list[Conjunct] = []
        conditions: list[str] = []
        for part in _operands(node, "and"):
            match part:
                case syntax.Call("eval", (argument,)):
                    column = self._column(argument)
                    if column is None or conditions:
                        raise self._refusal(part, "eval() stands once and takes a column of the policy")
                    conditions.append(column)
                case _:
                    conjuncts.append(self._conjunct(part))
        return Table(
            ptype=self._ptype,
            columns=self._columns,
            conjuncts=tuple(conjuncts),
            condition=conditions[0] if conditions else None,
        )

    def _conjunct(self, node: Node) -> Conjunct:
        found = [self._lookup(alternative) for alternative in _operands(node, "or")]
        if len({column for column, _ in found}) != 1:
            raise self._refusal(node, "an `||` may look at one column of the policy only")
        return Conjunct(column=found[0][0], lookups=tuple(lookup for _, lookup in found))

    def _lookup(self, node: Node) -> tuple[str, Lookup]:
        match node:
            case syntax.Comparison(first, (("==", second),)):
                for left, right in ((first, second), (second, first)):
                    column, field = self._column(left), self._field(right)
                    if column is not None and field is not None:
                        return column, Equal(field)
                    if column is not None and isinstance(right, syntax.Literal) and type(right.value) is str:
                        return column, Constant(right.value)
            case syntax.Call("keyMatch", (key, pattern)):
                column, field = self._column(pattern), self._field(key)
                if column is not None and field is not None:
                    return column, Prefix(field)
            case syntax.Call(graph, (member, group, *domains)) if graph in self._graphs:
                column, field = self._column(group), self._field(member)
                domain = self._field(domains[0]) if domains else None
                as_defined = len(domains) == self._graphs[graph] - 2 and (not domains or domain is not None)
                if column is not None and field is not None and as_defined:
                    return column, Member(graph, field, domain)
            case _:
                pass
        raise self._refusal(node, "this part of the matcher is not understood")

    def _column(self, node: Node) -> str | None:
        return _named(node, self._ptype, self._columns)

    def _field(self, node: Node) -> str | None:
        return _named(node, "r", self._request)

    def _refusal(self, node: Node, message: str) -> _NotUnderstoodError:
        return _NotUnderstoodError(
            self._matcher.problem(
                message,
                "join by && parts such as r.dom == p.dom, keyMatch(r.tool, p.tool),"
                " g(r.sub, p.sub, r.dom) and eval(p.cond)",
                offset=node.column - 1,
            )
        )


def _operands(node: Node, operator: str) -> tuple[Node, ...]:
    return node.operands if isinstance(node, syntax.Logic) and node.operator == operator else (node,)


def _named(node: Node, root: str, known: tuple[str, ...]) -> str | None:
    match node:
        case syntax.Path((str(first), str(name))) if first == root and name in known:
            return name
        case _:
            return None
