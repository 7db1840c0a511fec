"""Builds a `Policy` from files, layers or any Casbin adapter, or refuses all of it with every reason.

Casbin's own loader skips what it does not know: a misspelt effect or row type silently leaves access
open. Here each such line is an error with file, line, column and what to write instead. Every policy
accepted here loads in a stock Casbin enforcer with the same rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remit_rbac.forms import COLUMNS, RowReader
from remit_rbac.index import Rule
from remit_rbac.lines import Line, read_lines, read_values
from remit_rbac.lint import Surroundings, lint
from remit_rbac.model import Constant, Equal, Lookup, Member, Model, Prefix, parse_model, read_model
from remit_rbac.policy import Policy
from remit_rbac.problems import PolicyError, Problem
from remit_rbac.roles import Link, RoleGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One file of a policy, read: its name in messages, and its bytes."""

    file: str
    content: bytes
    #: Whose file it is: it may speak about that tenant only. None: the organisation's, about all of them.
    tenant: str | None = None


#: Rules that no policy should be without. The lowest layer, unless another is given.
GUARDRAILS = Layer(
    file="built-in guardrails", content=Path(__file__).with_name("guardrails.csv").read_bytes()
)

_REQUEST = ("sub", "dom", "tool", "act", "args", "ctx")
_MATCHED = ("sub", "dom", "tool", "act")
#: What each column may be compared with; anything else would apply a row to those it is not about.
_LOOKUPS: dict[str, frozenset[Lookup]] = {
    "sub": frozenset({Constant("*"), Equal("sub"), Prefix("sub"), Member("g", "sub", "dom")}),
    "dom": frozenset({Constant("*"), Equal("dom"), Prefix("dom")}),
    "tool": frozenset({Constant("*"), Equal("tool"), Prefix("tool"), Member("g2", "tool", None)}),
    "act": frozenset({Constant("*"), Equal("act"), Prefix("act")}),
}
_EFFECT = "some(where(p.eft==allow))&&!some(where(p.eft==deny))"
_GRAPHS = {"g": 3, "g2": 2, "g3": 3}


def load_files(
    model: Path | None,
    policies: Sequence[Path],
    *,
    tool_schemas: Mapping[str, Mapping[str, Any]] | None = None,
    context_schema: Mapping[str, Any] | None = None,
) -> Policy:
    """Load policy files, merged in order, under a model file (None: the shipped one).

    With `tool_schemas` (tool name to JSON Schema of its arguments) and `context_schema` (that of `r.ctx`,
    whatever the tool), rules that read what does not exist, or has another type, are refused too.

    Raises PolicyError naming every problem; OSError when a file cannot be read.
    """
    builder = _Builder(read_model(model), Surroundings(tool_schemas, context_schema))
    for path in policies:
        builder.add(*read_lines(path.read_bytes(), str(path)))
    return builder.build()


def load_layers(
    layers: Iterable[Layer],
    *,
    model: Layer | None = None,
    guardrails: Sequence[Layer] = (GUARDRAILS,),
    tool_schemas: Mapping[str, Mapping[str, Any]] | None = None,
    context_schema: Mapping[str, Any] | None = None,
    absent_context: Mapping[str, Collection[str]] | None = None,
) -> Policy:
    """Load guardrails, the organisation's files and those of its tenants, as one policy.

    A deny of any layer holds whatever another allows. A tenant's files may speak about that tenant only
    and may not change tool groups. `model` None is the shipped one. Nothing is read from disk, so what was
    checked is what counts. `absent_context` says by action which attributes are not there then. Raises
    PolicyError naming every problem.
    """
    surroundings = Surroundings(tool_schemas, context_schema, absent_context or {})
    builder = _Builder(_model_of(model), surroundings)
    for layer in (*guardrails, *layers):
        lines, problems = read_lines(layer.content, layer.file)
        foreign = _trespasses(layer.tenant, lines) if layer.tenant is not None else ()
        builder.add(lines, [*problems, *foreign, *_emptiness(layer, lines, problems)])
    return builder.build()


def _model_of(layer: Layer | None) -> Model:
    if layer is None:
        return read_model(None)
    try:
        return parse_model(layer.content.decode("utf-8"), layer.file)
    except UnicodeDecodeError as error:
        line = layer.content.count(b"\n", 0, error.start) + 1
        problem = Problem(
            code="not-utf8",
            file=layer.file,
            line=line,
            column=1,
            text="",
            message="this line is not UTF-8",
            fix="save the file as UTF-8",
        )
        raise PolicyError([problem]) from None


def load_text(
    text: str,
    *,
    model: Path | None = None,
    file: str = "policy.csv",
    tool_schemas: Mapping[str, Mapping[str, Any]] | None = None,
    context_schema: Mapping[str, Any] | None = None,
) -> Policy:
    """Load one policy from text, as `load_files` does from a file. `file` is its name in messages."""
    builder = _Builder(read_model(model), Surroundings(tool_schemas, context_schema))
    builder.add(*read_lines(text.encode(), file))
    return builder.build()


def load_rows(
    rows: Iterable[Sequence[str]],
    *,
    model: Path | None = None,
    source: str,
    tool_schemas: Mapping[str, Mapping[str, Any]] | None = None,
    context_schema: Mapping[str, Any] | None = None,
) -> Policy:
    """Load rows that are already apart, row type first: from a database table, in its order.

    Row n counts as line n of `source`. Raises PolicyError naming every problem.
    """
    builder = _Builder(read_model(model), Surroundings(tool_schemas, context_schema))
    builder.add(*read_values(rows, source))
    return builder.build()


def _emptiness(layer: Layer, lines: Sequence[Line], problems: Sequence[Problem]) -> Iterable[Problem]:
    """A place that holds nothing may be new, or have lost what it denied."""
    if not lines and not problems:
        yield Problem(
            code="no-rows",
            file=layer.file,
            line=1,
            column=1,
            text="",
            message="there is no row here, so nothing that this should allow or deny counts",
            fix="write rows, or take it out of the configuration",
            level="warning",
        )


def _trespasses(tenant: str, lines: Iterable[Line]) -> Iterable[Problem]:
    """What a tenant's file may not say. Lines of unknown form are reported elsewhere."""
    for line in lines:
        if line.ptype == "g2":
            yield line.problem(
                "shared-group",
                "tool groups are shared by all tenants",
                "move the row to the base policy",
                value=0,
            )
            continue
        columns = COLUMNS.get(line.ptype, ())
        for number, (column, text) in enumerate(zip(columns, line.values[1:], strict=False), start=1):
            if column in ("dom", "tenant") and text != tenant:
                yield line.problem(
                    "foreign-tenant",
                    f"this file belongs to tenant {tenant}",
                    f"write {tenant}, or move the row to the base policy",
                    value=number,
                )


class _Builder:
    """Collects rows and problems of one load, then makes the policy. Used once."""

    def __init__(self, model: Model, surroundings: Surroundings) -> None:
        self._model = model
        self._surroundings = surroundings
        self._problems: list[Problem] = list(_strangeness(model))
        if self._problems:
            raise PolicyError(self._problems)
        self._reader = RowReader()
        self._lines: list[Line] = []
        self._known: dict[tuple[str, ...], Line] = {}
        self._rules: dict[str, list[Rule]] = {ptype: [] for ptype in model.tables}
        self._links: dict[str, list[Link]] = {graph: [] for graph in model.graphs}

    def add(self, lines: Iterable[Line], problems: Iterable[Problem]) -> None:
        self._lines.extend(lines)
        self._problems.extend(problems)

    def build(self) -> Policy:
        for line in self._lines:
            if line.ptype in self._rules or line.ptype in self._links:
                found = list(self._reader.problems(line))
                self._problems.extend(found)
                if not found:
                    self._take(line)
            else:
                self._problems.append(self._unknown(line))
        graphs = {name: RoleGraph(links) for name, links in self._links.items()}
        for name, graph in graphs.items():
            self._problems.extend(self._endless(name, graph))
        if not self._problems and not any(rule.values[5] == "allow" for rule in self._rules["p"]):
            self._problems.append(_grants_nothing(self._lines))
        if any(problem.level == "error" for problem in self._problems):
            raise PolicyError(self._in_order())

        policy = Policy(
            model=self._model, rules=self._rules, graphs=graphs, version=_version(self._model, self._known)
        )
        self._problems.extend(lint(policy, self._known, self._surroundings))
        if any(problem.level == "error" for problem in self._problems):
            raise PolicyError(self._in_order())
        policy.warnings = self._in_order()
        return policy

    def _in_order(self) -> tuple[Problem, ...]:
        """As a reader of the files meets them, each once."""
        files = {line.row.file: number for number, line in enumerate(self._lines)}
        found = dict.fromkeys(self._problems)
        return tuple(
            sorted(found, key=lambda problem: (files.get(problem.file, 0), problem.line, problem.column))
        )

    def _take(self, line: Line) -> None:
        values = line.values[1:]
        first = self._known.setdefault(line.values, line)
        if first is not line:
            self._problems.append(
                line.problem(
                    "duplicate-row",
                    f"the same row stands at {first.row.file}:{first.row.line}",
                    "delete this one",
                    level="warning",
                )
            )
        elif line.ptype in self._links:
            self._links[line.ptype].append(Link(values[0], values[1], values[2] if len(values) > 2 else ""))
        else:
            condition = self._reader.condition(values[4])
            number = len(self._known)
            self._rules[line.ptype].append(
                Rule(row=line.row, values=values, condition=condition, number=number)
            )

    def _unknown(self, line: Line) -> Problem:
        return line.problem(
            "unknown-row-type",
            f"unknown row type `{line.ptype}`; Casbin would ignore this row",
            f"begin the line with one of {', '.join((*self._rules, *self._links))}",
            value=0,
        )

    def _endless(self, name: str, graph: RoleGraph) -> Iterable[Problem]:
        found = graph.chain_beyond()
        if found is None:
            return
        domain, chain = found
        line = self._known[(name, chain[0], chain[1], domain) if domain else (name, chain[0], chain[1])]
        shown = " < ".join(chain)
        if len(set(chain)) < len(chain):
            yield line.problem(
                "role-circle", f"this membership is a circle: {shown}", "remove one of its rows"
            )
        else:
            yield line.problem(
                "role-depth",
                f"Casbin follows nine levels of membership, and this is deeper: {shown}",
                "flatten it",
            )


def _strangeness(model: Model) -> Iterable[Problem]:
    """What keeps a model from saying who may do what, where, and how far."""
    entries = model.entries
    if model.request != _REQUEST:
        yield entries["r"].problem("the request has other fields", f"r = {', '.join(_REQUEST)}")
    if model.effect != _EFFECT:
        yield entries["e"].problem(
            "a deny must win, whatever allows",
            "e = some(where (p.eft == allow)) && !some(where (p.eft == deny))",
        )
    for graph in model.graphs:
        if model.graphs[graph] != _GRAPHS.get(graph):
            yield entries[graph].problem("g and g3 have three columns, g2 has two, and there are no others")
    for graph in ("g", "g3"):
        if graph not in model.graphs:
            yield entries["r"].problem(f"the model does not define {graph}", f"{graph} = _, _, _")
    for ptype, table in model.tables.items():
        if table.columns != COLUMNS.get(ptype):
            yield entries[ptype].problem(
                "there are p (rules) and p2 (duties), with these columns",
                "; ".join(f"{name} = {', '.join(COLUMNS[name])}" for name in ("p", "p2")),
            )
            continue
        matcher = entries["m" + ptype[1:]]
        matched = [conjunct.column for conjunct in table.conjuncts]
        for column in _MATCHED:
            if column not in matched:
                yield matcher.problem(
                    f"nothing compares {ptype}.{column}, so a row would hold for any {column}"
                )
        for conjunct in table.conjuncts:
            expected = _LOOKUPS.get(conjunct.column, frozenset())
            if not expected.issuperset(conjunct.lookups):
                yield matcher.problem(
                    f"{ptype}.{conjunct.column} is compared with something else than it is about",
                    "compare sub, dom, tool and act with the same field of r (==, keyMatch, g, g2) or with *",
                )
        if table.condition != "cond":
            yield matcher.problem("the matcher ignores the conditions", f"add && eval({ptype}.cond)")


def _grants_nothing(lines: Sequence[Line]) -> Problem:
    message, fix = "no row allows anything, so every call would be denied", "add a row that ends in allow"
    for line in lines:
        if line.row.file != GUARDRAILS.file:
            return line.problem("grants-nothing", message, fix)
    return Problem(code="grants-nothing", file="policy", line=1, column=1, text="", message=message, fix=fix)


def _version(model: Model, rows: Iterable[tuple[str, ...]]) -> str:
    digest = hashlib.sha256(model.canonical.encode())
    for row in sorted(rows):
        digest.update(("\n" + "\t".join(row)).encode())
    return digest.hexdigest()
