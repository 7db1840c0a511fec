"""Policy rows as they stand in a file: text, columns and where each begins. It knows no meaning.

Splitting follows Casbin's own file reader exactly (commas outside brackets, no quoting), and refuses
the lines that Casbin would silently misread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from remit_rbac.index import Row
from remit_rbac.problems import Problem


@dataclass(frozen=True, slots=True)
class Field:
    text: str
    #: Counts characters of the line from 1.
    column: int


@dataclass(frozen=True, slots=True)
class Line:
    row: Row
    #: The row type first, then its columns.
    fields: tuple[Field, ...]

    @property
    def ptype(self) -> str:
        return self.fields[0].text

    def problem(
        self,
        code: str,
        message: str,
        fix: str = "",
        *,
        field: Field | None = None,
        level: Literal["error", "warning"] = "error",
    ) -> Problem:
        return Problem(
            code=code,
            file=self.row.file,
            line=self.row.line,
            column=field.column if field else 1,
            text=self.row.text,
            message=message,
            fix=fix,
            level=level,
        )


def read_lines(content: bytes, file: str) -> tuple[list[Line], list[Problem]]:
    """The rows of a policy file, and what is wrong with the others."""
    lines: list[Line] = []
    problems: list[Problem] = []
    for number, raw in enumerate(content.split(b"\n"), start=1):
        try:
            text = raw.decode("utf-8").rstrip()
        except UnicodeDecodeError:
            row = Row(file=file, line=number, text="")
            problems.append(
                Line(row, ()).problem("not-utf8", "this line is not UTF-8", "save the file as UTF-8")
            )
            continue
        if text.strip() and not text.lstrip().startswith("#"):
            _add(Row(file=file, line=number, text=text), lines, problems)
    return lines, problems


def read_values(rows: Iterable[Sequence[str]], source: str) -> tuple[list[Line], list[Problem]]:
    """Rows that come as values (row type first) from a database or another adapter.

    They must survive being written as text and read again, because that is what Casbin's own adapters
    do with them. Row n of the source counts as line n.
    """
    lines: list[Line] = []
    problems: list[Problem] = []
    for number, values in enumerate(rows, start=1):
        row = Row(file=source, line=number, text=", ".join(values))
        if any(value != value.strip() or "\n" in value for value in values):
            problems.append(
                Line(row, ()).problem(
                    "untrimmed-value", "a value has spaces around it", "store it without them"
                )
            )
        else:
            _add(row, lines, problems)
    return lines, problems


def _add(row: Row, lines: list[Line], problems: list[Problem]) -> None:
    try:
        lines.append(Line(row, _split(row.text)))
    except _UnreadableError as error:
        problems.append(
            Line(row, ()).problem(error.code, error.message, error.fix, field=Field("", error.column))
        )


class _UnreadableError(Exception):
    def __init__(self, code: str, message: str, fix: str, column: int) -> None:
        self.code = code
        self.message = message
        self.fix = fix
        self.column = column


def _split(text: str) -> tuple[Field, ...]:
    fields: list[Field] = []
    opened: list[int] = []
    start = 0
    for position, character in enumerate(text):
        if character in "([":
            opened.append(position)
        elif character in ")]":
            if not opened or text[opened.pop()] + character not in ("()", "[]"):
                raise _UnreadableError(
                    "unpaired-bracket",
                    f"`{character}` closes nothing",
                    "pair the brackets, also inside quotes",
                    position + 1,
                )
        elif character == "," and not opened:
            fields.append(_field(text, start, position))
            start = position + 1
        elif character == '"':
            raise _UnreadableError(
                "double-quote",
                "Casbin keeps double quotes as part of the value",
                "use single quotes",
                position + 1,
            )
        elif not character.isprintable() and character != "\t":
            raise _UnreadableError(
                "invisible-character",
                f"invisible character U+{ord(character):04X}",
                "delete it and type the line again",
                position + 1,
            )
    if opened:
        raise _UnreadableError(
            "unpaired-bracket",
            "this bracket is not closed, so Casbin swallows the commas after it",
            "pair the brackets, also inside quotes",
            opened[-1] + 1,
        )
    fields.append(_field(text, start, len(text)))
    return tuple(fields)


def _field(text: str, start: int, end: int) -> Field:
    value = text[start:end]
    return Field(value.strip(), start + len(value) - len(value.lstrip()) + 1)
