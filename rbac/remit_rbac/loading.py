"""Reads policy files strictly and builds a `Policy`, or refuses all of it with every reason.

Casbin's own loader skips what it does not know: a misspelt effect or row type silently leaves access
open. Here each such line is an error with file, line, column and what to write instead. Every file
accepted here loads in a stock Casbin enforcer with the same rows.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from remit_rbac.conditions import EvaluationError, Expression, ExpressionError, compile_expression
from remit_rbac.index import Row, Rule
from remit_rbac.model import Model, read_model
from remit_rbac.policy import Policy
from remit_rbac.problems import PolicyError, Problem
from remit_rbac.roles import Link, RoleGraph

REQUEST = ("sub", "dom", "tool", "act", "args", "ctx")
ACTIONS = ("execute", "recommend", "advise", "approve", "undo", "list")
EFFECTS = ("allow", "deny")
#: Casbin's database adapters store columns of this many characters.
COLUMN_LENGTH_MAX = 255

_COLUMNS = {
    "p": ("sub", "dom", "tool", "act", "cond", "eft"),
    "p2": ("sub", "dom", "tool", "act", "cond", "duty"),
    "g": ("member", "role", "dom"),
    "g2": ("tool_member", "group"),
    "g3": ("agent", "user", "dom"),
}
_GRAPHS = {"g": 3, "g2": 2, "g3": 3}

_NAME = r"[^\s,*'\"()\[\]#:]+(?::[^\s,*'\"()\[\]#:]+)*"
_TOOL = r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+"


@dataclass(frozen=True, slots=True)
class _Form:
    """What a column may hold."""

    pattern: re.Pattern[str]
    message: str
    fix: str


_FORMS = {
    "sub": _Form(
        re.compile(rf"\*|(?:agent|user):(?:\*|{_NAME}\*?)|role:{_NAME}"),
        "a subject is agent:<id>, user:<id>, role:<name>, agent:*, user:* or *",
        "add the prefix; a pattern ends in its only *",
    ),
    "dom": _Form(
        re.compile(r"\*|[A-Za-z0-9_.@-]+"),
        "a tenant is one word, or * for all of them",
        "write the tenant's id",
    ),
    "tool": _Form(
        re.compile(rf"\*|{_TOOL}|[A-Za-z0-9_-]+\.(?:[A-Za-z0-9_.-]*)\*|grp:{_NAME}"),
        "a tool is <source>.<tool>, <source>.*, <source>.<start>*, grp:<name> or *",
        "name the source; a pattern ends in its only *",
    ),
    "act": _Form(
        re.compile("|".join((r"\*", *ACTIONS))),
        f"an action is one of {', '.join(ACTIONS)} or *",
        "check the spelling; Casbin would never match this row",
    ),
    "eft": _Form(
        re.compile("|".join(EFFECTS)),
        "an effect is allow or deny",
        "write allow or deny in lower case and comments on their own line; Casbin would ignore this row",
    ),
    "duty": _Form(
        re.compile(r"[a-z][a-z0-9_]*(?:=[^\s'\"#]+)?"),
        "a duty is <name> or <name>=<value>",
        "for example approvals=2 or redact=args.card",
    ),
    "member": _Form(
        re.compile(rf"(?:agent|user|role):{_NAME}"),
        "a member of a role is agent:<id>, user:<id> or role:<name>",
        "roles have no patterns; name each member",
    ),
    "role": _Form(re.compile(rf"role:{_NAME}"), "a role is role:<name>", "add the prefix role:"),
    "tool_member": _Form(
        re.compile(rf"{_TOOL}|grp:{_NAME}"),
        "a member of a tool group is <source>.<tool> or grp:<name>",
        "groups have no patterns; name each tool",
    ),
    "group": _Form(re.compile(rf"grp:{_NAME}"), "a tool group is grp:<name>", "add the prefix grp:"),
    "agent": _Form(
        re.compile(rf"agent:(?:\*|{_NAME})"),
        "an acting agent is agent:<id> or agent:*",
        "add the prefix agent:",
    ),
    "user": _Form(
        re.compile(rf"user:(?:\*|{_NAME})|role:{_NAME}"),
        "an agent acts for user:<id>, role:<name> or user:*",
        "add the prefix user:",
    ),
}
_GRAPH_DOMAIN = _Form(
    re.compile(r"[A-Za-z0-9_.@-]+"),
    "a tenant is one word; Casbin knows no * here",
    "write one row for each tenant",
)
#: What a condition may read of the request, beside the named fields of args and ctx.
_READABLE = frozenset({"sub", "dom", "tool", "act"})


def load_files(model: Path | None, policies: Sequence[Path]) -> Policy:
    """Load policy files, merged in order, under a model file (None: the shipped one).

    Raises PolicyError naming every problem, when any line is not understood or nothing is granted;
    OSError when a file cannot be read.
    """
    understood = _family(read_model(model))
    rows: list[_Line] = []
    problems: list[Problem] = []
    for path in policies:
        lines, found = _lines(path.read_bytes(), str(path))
        rows.extend(lines)
        problems.extend(found)
    return _build(understood, rows, problems)


def load_text(text: str, *, model: Path | None = None, file: str = "policy.csv") -> Policy:
    """Load one policy from text, as `load_files` does from files."""
    lines, problems = _lines(text.encode(), file)
    return _build(_family(read_model(model)), lines, problems)


def _family(model: Model) -> Model:
    """Refuse a model whose definitions do not say who, where, what and how."""
    problems: list[Problem] = []
    entries = model.entries
    if model.request != REQUEST:
        problems.append(entries["r"].problem("the request has other fields", f"r = {', '.join(REQUEST)}"))
    for ptype, table in model.tables.items():
        if ptype not in ("p", "p2"):
            problems.append(entries[ptype].problem("only p (rules) and p2 (duties) have a meaning here"))
            continue
        if table.columns != _COLUMNS[ptype]:
            problems.append(
                entries[ptype].problem(
                    "the policy has other columns", f"{ptype} = {', '.join(_COLUMNS[ptype])}"
                )
            )
            continue
        matcher = entries["m" + ptype[1:]]
        tied = {conjunct.column for conjunct in table.conjuncts}
        problems.extend(
            matcher.problem(f"the matcher does not look at {ptype}.{column}, so rows apply to everyone")
            for column in ("sub", "dom", "tool", "act")
            if column not in tied
        )
        problems.extend(
            matcher.problem(f"{ptype}.{column} is not something to match")
            for column in tied - {"sub", "dom", "tool", "act"}
        )
        if table.condition != "cond":
            problems.append(matcher.problem(f"the matcher ignores conditions; add && eval({ptype}.cond)"))
    for graph, arity in model.graphs.items():
        if _GRAPHS.get(graph) != arity:
            problems.append(
                entries[graph].problem("g and g3 have three columns, g2 has two; there are no others")
            )
    problems.extend(
        entries["r"].problem(
            f"the model does not define {graph}", f"add `{graph} = _, _, _` to [role_definition]"
        )
        for graph in ("g", "g3")
        if graph not in model.graphs
    )
    if problems:
        raise PolicyError(problems)
    return model


@dataclass(frozen=True, slots=True)
class _Field:
    text: str
    column: int


@dataclass(frozen=True, slots=True)
class _Line:
    row: Row
    fields: tuple[_Field, ...]

    def problem(self, field: _Field, message: str, fix: str = "") -> Problem:
        return Problem(
            file=self.row.file,
            line=self.row.line,
            column=field.column,
            text=self.row.text,
            message=message,
            fix=fix,
        )


def _lines(content: bytes, file: str) -> tuple[list[_Line], list[Problem]]:
    lines: list[_Line] = []
    problems: list[Problem] = []
    for number, raw in enumerate(content.split(b"\n"), start=1):
        text = ""
        try:
            text = raw.decode("utf-8").rstrip()
            if text.strip() and not text.lstrip().startswith("#"):
                fields = _split(text)
                lines.append(_Line(Row(file=file, line=number, text=text), fields))
        except UnicodeDecodeError:
            problems.append(_problem(file, number, 1, "", "this line is not UTF-8", "save the file as UTF-8"))
        except _Unreadable as error:
            problems.append(_problem(file, number, error.column, text, error.message, error.fix))
    return lines, problems


def _problem(file: str, line: int, column: int, text: str, message: str, fix: str) -> Problem:
    return Problem(file=file, line=line, column=column, text=text, message=message, fix=fix)


class _Unreadable(Exception):
    def __init__(self, message: str, fix: str, column: int) -> None:
        self.message = message
        self.fix = fix
        self.column = column


def _split(text: str) -> tuple[_Field, ...]:
    """Split at commas outside brackets, as Casbin does, refusing what Casbin would misread."""
    for position, character in enumerate(text):
        if character == '"':
            raise _Unreadable(
                "Casbin keeps double quotes as part of the value", "use single quotes", position + 1
            )
        if not character.isprintable() and character != "\t":
            raise _Unreadable(
                f"invisible character U+{ord(character):04X}",
                "delete it and type the line again",
                position + 1,
            )
    fields: list[_Field] = []
    opened: list[int] = []
    start = 0
    for position, character in enumerate(text):
        if character in "([":
            opened.append(position)
        elif character in ")]":
            if not opened or text[opened.pop()] + character not in ("()", "[]"):
                raise _Unreadable(
                    f"`{character}` closes nothing", "brackets must pair, also inside quotes", position + 1
                )
        elif character == "," and not opened:
            fields.append(_field(text, start, position))
            start = position + 1
    if opened:
        raise _Unreadable(
            "this bracket is not closed, so Casbin swallows the commas after it",
            "brackets must pair, also inside quotes",
            opened[-1] + 1,
        )
    fields.append(_field(text, start, len(text)))
    return tuple(fields)


def _field(text: str, start: int, end: int) -> _Field:
    value = text[start:end]
    return _Field(value.strip(), start + len(value) - len(value.lstrip()) + 1)


def _build(model: Model, lines: Sequence[_Line], problems: list[Problem]) -> Policy:
    rules: dict[str, list[Rule]] = {ptype: [] for ptype in model.tables}
    links: dict[str, list[Link]] = {graph: [] for graph in model.graphs}
    sources: dict[tuple[str, Link], _Line] = {}
    seen: dict[tuple[str, ...], _Line] = {}
    conditions: dict[str, Expression | None] = {}
    warnings: list[Problem] = []
    for number, line in enumerate(lines):
        ptype = line.fields[0].text
        if ptype not in rules and ptype not in links:
            known = ", ".join((*rules, *links))
            problems.append(
                line.problem(
                    line.fields[0],
                    f"unknown row type `{ptype}`; Casbin would ignore this row",
                    f"begin the line with one of {known}",
                )
            )
            continue
        found = list(_malformed(ptype, line, conditions))
        if found:
            problems.extend(found)
            continue
        values = tuple(field.text for field in line.fields[1:])
        if (first := seen.setdefault((ptype, *values), line)) is not line:
            warnings.append(
                _warning(line, f"the same as line {first.row.line} of {first.row.file}", "delete it")
            )
            continue
        if ptype in links:
            link = Link(values[0], values[1], values[2] if len(values) == 3 else "")
            links[ptype].append(link)
            sources[ptype, link] = line
        else:
            rules[ptype].append(
                Rule(row=line.row, values=values, condition=conditions[values[4]], number=number)
            )
    graphs = {name: RoleGraph(found) for name, found in links.items()}
    for name, graph in graphs.items():
        problems.extend(_endless(name, graph, sources))
    if not problems and not any(rule.values[5] == "allow" for rule in rules["p"]):
        problems.append(
            _problem(
                lines[0].row.file if lines else "policy",
                1,
                1,
                "",
                "the policy grants nothing, so every call would be denied",
                "add at least one `p, ..., allow` row",
            )
        )
    if problems:
        raise PolicyError(problems)
    return Policy(
        model=model,
        rules=rules,
        graphs=graphs,
        version=_version(model, seen),
        warnings=warnings,
    )


def _version(model: Model, rows: Iterable[tuple[str, ...]]) -> str:
    """SHA-256 over what decides: the model and the set of rows. Not order, spacing, comments, file names."""
    digest = hashlib.sha256(model.canonical.encode())
    for row in sorted(rows):
        digest.update(("\n" + "\t".join(row)).encode())
    return digest.hexdigest()


def _warning(line: _Line, message: str, fix: str) -> Problem:
    return Problem(
        file=line.row.file,
        line=line.row.line,
        column=1,
        text=line.row.text,
        message=message,
        fix=fix,
        level="warning",
    )


def _malformed(ptype: str, line: _Line, conditions: dict[str, Expression | None]) -> Iterable[Problem]:
    columns = _COLUMNS[ptype]
    fields = line.fields[1:]
    if len(fields) != len(columns):
        yield line.problem(
            line.fields[-1],
            f"a {ptype} row has {len(columns)} columns ({', '.join(columns)}); this one has {len(fields)}",
            "commas belong between columns or inside brackets",
        )
        return
    for column, field in zip(columns, fields, strict=True):
        if column == "cond":
            problem = _bad_condition(line, field, conditions)
        else:
            form = _GRAPH_DOMAIN if column == "dom" and ptype[0] == "g" else _FORMS[column]
            problem = _bad_form(line, field, form)
        if problem is not None:
            yield problem


def _bad_form(line: _Line, field: _Field, form: _Form) -> Problem | None:
    if not field.text:
        return line.problem(field, "this column is empty, and Casbin would match the empty name", form.fix)
    if not form.pattern.fullmatch(field.text):
        return line.problem(field, form.message, form.fix)
    if len(field.text) > COLUMN_LENGTH_MAX:
        return line.problem(field, f"longer than {COLUMN_LENGTH_MAX} characters", "use a shorter name")
    if not unicodedata.is_normalized("NFC", field.text):
        return line.problem(field, "this name is not in Unicode NFC, so it may never match", "type it again")
    return None


def _bad_condition(line: _Line, field: _Field, conditions: dict[str, Expression | None]) -> Problem | None:
    if field.text in conditions:
        return None
    if not field.text:
        return line.problem(field, "the condition is empty", "write 1 == 1 when the row always applies")
    try:
        expression = compile_expression(field.text, roots=("r",))
        if expression.kind not in ("boolean", "any"):
            raise ExpressionError(f"a condition is true or false, this is a {expression.kind}", 1)
        for path in sorted(expression.paths, key=str):
            named = len(path) >= 2 and path[1] in ("args", "ctx")
            if not named and path[1:] not in {(name,) for name in _READABLE}:
                raise ExpressionError("a condition reads r.args, r.ctx, r.sub, r.dom, r.tool and r.act", 1)
        conditions[field.text] = None if _always(expression) else expression
    except ExpressionError as error:
        return line.problem(
            _Field(field.text, field.column + error.column - 1), error.message, "see the condition language"
        )
    return None


def _always(expression: Expression) -> bool:
    if expression.paths:
        return False
    try:
        return expression.evaluate({}) is True
    except EvaluationError:
        return False


def _endless(name: str, graph: RoleGraph, sources: Mapping[tuple[str, Link], _Line]) -> Iterable[Problem]:
    found = graph.chain_beyond()
    if found is None:
        return
    domain, chain = found
    line = sources[name, Link(chain[0], chain[1], domain)]
    shown = " < ".join(chain)
    if len(set(chain)) < len(chain):
        yield line.problem(line.fields[1], f"this membership is a circle: {shown}", "remove one of its rows")
    else:
        yield line.problem(
            line.fields[1], f"Casbin follows nine levels of membership, this is deeper: {shown}", "flatten it"
        )
