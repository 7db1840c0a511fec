"""What a row may hold, column by column. It looks at one row at a time and compiles its condition.

Casbin takes any text in any column and quietly never matches what is misspelt. Here a name says what it
is by its prefix, a pattern is only ever a start followed by one `*`, and everything else is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from remit_rbac.conditions import FUNCTIONS, Expression, ExpressionError, compile_node, paths_of
from remit_rbac.kinds import ANY, Kinds, clashes, compared_values
from remit_rbac.lines import STORED_LENGTH_MAX, Line
from remit_rbac.problems import Problem
from remit_rbac.syntax import Path, parse

ACTIONS = ("execute", "recommend", "advise", "approve", "undo", "list")
#: Those by which a call is made. A duty goes with these, and approvals also with an undo.
_CALLING = ACTIONS[:3]
#: The columns of each row type. The model must define them so.
COLUMNS = {
    "p": ("sub", "dom", "tool", "act", "cond", "eft"),
    "p2": ("sub", "dom", "tool", "act", "cond", "duty"),
    "g": ("member", "role", "tenant"),
    "g2": (
        "grouped",
        "group",
    ),
    "g3": ("agent", "user", "tenant"),
}
#: What a condition may read of the request besides the named fields of r.args and r.ctx.
_READABLE = frozenset({("r", "sub"), ("r", "dom"), ("r", "tool"), ("r", "act")})
_TEXT: Kinds = frozenset({"text"})


@dataclass(frozen=True, slots=True)
class _Form:
    code: str
    pattern: re.Pattern[str]
    message: str
    fix: str


def _form(code: str, pattern: str, message: str, fix: str) -> _Form:
    return _Form(code, re.compile(pattern), message, fix)


_NAME = r"[^\s,*'()\[\]#:]+(?::[^\s,*'()\[\]#:]+)*"
_TENANT = r"[A-Za-z0-9_.@-]+"
_WORD = r"[A-Za-z0-9_-]+"
_TOOL = rf"{_WORD}(?:\.{_WORD})+"

_OWED = _form(
    "bad-action",
    "|".join((r"\*", *_CALLING, "undo")),
    f"a duty goes with {', '.join(_CALLING)}, * for all three, or undo",
    "nothing else owes one: of an approval or a list, rows of p say who may",
)
_OWED_BY_UNDO = _form(
    "bad-duty",
    "approvals=[1-9][0-9]?",
    "an undo owes nothing but approvals",
    "for example approvals=1; what else it is to be held to, rows of p can ask for",
)
_ASKED_ABOUT = _form(
    "bad-duty",
    "(?!)",
    "approvals go with recommend, or with undo: nobody is asked about a call that may be executed",
    "write recommend in the action column, and give `recommend` where people are to agree",
)
_ARGUMENT = r"args(?:\.[^\s.|=,*'()\[\]#]+)+"
#: The duties that there are.
_DUTIES = {
    "approvals": _form(
        "bad-duty",
        "approvals=[1-9][0-9]?",
        "approvals is the number of people who must agree, at most 99",
        "for example approvals=2",
    ),
    "confirm": _form("bad-duty", "confirm", "confirm takes no value", "write confirm"),
    "redact": _form(
        "bad-duty",
        rf"redact={_ARGUMENT}(?:\|{_ARGUMENT})*",
        "redact takes arguments as args.<name>, and without brackets",
        "for example redact=args.card, or redact=args.card|args.owner.iban; a list is struck out whole",
    ),
}
#: What is asked for as a duty elsewhere, and is had otherwise here.
_INSTEAD = {
    "expire": "how long people have to agree, and for how long that holds, are approvals.pending and "
    "approvals.use_within of the configuration",
    "quota": "how much or how often in a time is a budget of the configuration",
}
_FORMS = {
    "sub": _form(
        "bad-subject",
        rf"\*|(?:agent|user):(?:\*|{_NAME}\*?)|role:{_NAME}",
        "a subject is agent:<id>, user:<id>, role:<name>, agent:*, user:* or *",
        "add the prefix; a pattern ends in its only *",
    ),
    "dom": _form(
        "bad-tenant", rf"\*|{_TENANT}", "a tenant is one word, or * for all", "write the tenant's id"
    ),
    "tool": _form(
        "bad-tool",
        rf"\*|{_TOOL}|{_WORD}\.[A-Za-z0-9_.-]*\*|grp:{_NAME}",
        "a tool is <source>.<tool>, <source>.*, <source>.<start>*, grp:<name> or *",
        "name the source; a pattern ends in its only *, because Casbin ignores what follows it",
    ),
    "act": _form(
        "bad-action",
        "|".join((r"\*", *ACTIONS)),
        f"an action is one of {', '.join(ACTIONS)} or *",
        "check the spelling; Casbin would never match this row",
    ),
    "eft": _form(
        "bad-effect",
        "allow|deny",
        "an effect is allow or deny",
        "write it in lower case and comments on their own line; Casbin would ignore this row",
    ),
    "member": _form(
        "bad-member",
        rf"(?:agent|user|role):{_NAME}",
        "a member of a role is agent:<id>, user:<id> or role:<name>",
        "memberships have no patterns; name each member",
    ),
    "role": _form("bad-role", rf"role:{_NAME}", "a role is role:<name>", "add the prefix role:"),
    "tenant": _form(
        "bad-tenant",
        _TENANT,
        "a tenant is one word, and Casbin knows no * here",
        "write a row for each tenant",
    ),
    "grouped": _form(
        "bad-member",
        rf"{_TOOL}|grp:{_NAME}",
        "a member of a tool group is <source>.<tool> or grp:<name>",
        "groups have no patterns; name each tool",
    ),
    "group": _form("bad-group", rf"grp:{_NAME}", "a tool group is grp:<name>", "add the prefix grp:"),
    "agent": _form(
        "bad-delegation",
        rf"agent:(?:\*|{_NAME})",
        "who acts is agent:<id>, or agent:* for every agent",
        "add the prefix agent:",
    ),
    "user": _form(
        "bad-delegation",
        rf"user:(?:\*|{_NAME})|role:{_NAME}",
        "an agent acts for user:<id>, for role:<name>, or for user:*, which is everyone",
        "add the prefix user: or role:",
    ),
}


class RowReader:
    """Checks rows and compiles their conditions, each distinct text once. Used for one load."""

    def __init__(self) -> None:
        self._conditions: dict[str, Expression | None] = {}
        self._seen: set[tuple[str, str, str]] = set()

    def problems(self, line: Line) -> Iterator[Problem]:
        """What is wrong with a row of a known type; nothing when it is well formed."""
        columns = COLUMNS[line.ptype]
        if len(line.values) - 1 != len(columns):
            yield line.problem(
                "column-count",
                f"a {line.ptype} row has {len(columns)} columns, and this has {len(line.values) - 1}",
                f"the columns are {', '.join(columns)}; commas stand between them or inside brackets",
                value=len(line.values) - 1,
            )
            return
        # In a duty's row, the action says what else may stand there.
        kind = line.values[4] if line.ptype == "p2" else ""
        for number, column in enumerate(columns, start=1):
            text = line.values[number]
            # Names come again and again; what was fine once is fine.
            if (kind, column, text) in self._seen:
                continue
            found = self._bad_condition(line, number) if column == "cond" else _misfit(line, number, column)
            if found is None:
                self._seen.add((kind, column, text))
            else:
                yield found

    def condition(self, text: str) -> Expression | None:
        """The compiled condition of a row without problems; None when it holds for every call."""
        return self._conditions[text]

    def _bad_condition(self, line: Line, number: int) -> Problem | None:
        text = line.values[number]
        if not text:
            return line.problem(
                "empty-column",
                "the condition is empty",
                "write 1 == 1 for a row that always holds",
                value=number,
            )
        try:
            self._conditions[text] = compile_condition(text)
        except ExpressionError as error:
            return line.problem(
                "bad-condition", error.message, error.fix, value=number, offset=error.column - 1
            )
        return None


def compile_condition(text: str) -> Expression | None:
    """Compile a condition; None when it reads nothing and is true. Raises ExpressionError.

    It is evaluated over the request itself: `r.args.x` is `args`, then `x`.
    """
    node = parse(text, roots=("r",), functions=FUNCTIONS)
    for path in paths_of(node):
        if path.keys not in _READABLE and not (len(path.keys) > 2 and path.keys[1] in ("args", "ctx")):
            raise ExpressionError(
                f"`{'.'.join(map(str, path.keys))}` is not something to read",
                path.column,
                "read r.args.<name>, r.ctx.<name>, r.sub, r.dom, r.tool or r.act",
            )
    expression = compile_node(text, node, within="r", kind="boolean")
    for clash in clashes(node, lambda keys: _TEXT if keys in _READABLE else ANY):
        if isinstance(clash.node, Path):
            message = f"`{'.'.join(map(str, clash.node.keys))}` is a text"
            raise ExpressionError(message, clash.node.column, "compare it with a text in single quotes")
    for path, literal in compared_values(node):
        if path.keys == ("r", "act") and literal.value not in ACTIONS:
            raise ExpressionError(
                f"`{literal.value}` is no action, so this is never so",
                literal.column,
                f"there are {', '.join(ACTIONS)}",
            )
    always = not expression.paths and expression.evaluate({}) is True
    return None if always else expression


@lru_cache(1024)  # asked of every decision, about the few that a policy names
def is_duty(text: str) -> bool:
    """Whether this is a duty that there is, with a value that it can have."""
    form = _DUTIES.get(text.partition("=")[0])
    return form is not None and form.pattern.fullmatch(text) is not None


def _form_of_duty(text: str, action: str) -> _Form:
    if action == "undo":
        return _OWED_BY_UNDO
    name = text.partition("=")[0]
    if name == "approvals" and action in ("execute", "advise", "*"):
        return _ASKED_ABOUT
    return _DUTIES.get(name) or _form(
        "bad-duty",
        "(?!)",
        f"there is no duty {name}",
        _INSTEAD.get(name, "write approvals=<count>, confirm or redact=args.<name>"),
    )


def _misfit(line: Line, number: int, column: str) -> Problem | None:
    text = line.values[number]
    if (line.ptype, column) == ("p2", "act"):
        form = _OWED
    elif column == "duty":
        form = _form_of_duty(text, line.values[4])
    else:
        form = _FORMS[column]
    if not text:
        return line.problem(
            "empty-column",
            "this column is empty; Casbin would match the empty name",
            form.message,
            value=number,
        )
    if form.pattern.fullmatch(text) is None:
        return line.problem(form.code, form.message, form.fix, value=number)
    if len(text) > STORED_LENGTH_MAX:
        message = f"longer than {STORED_LENGTH_MAX} characters"
        return line.problem("long-value", message, "use a shorter name", value=number)
    if not unicodedata.is_normalized("NFC", text):
        message = "this name is not in Unicode normal form C"
        return line.problem("not-nfc", message, "type the name again", value=number)
    return None
