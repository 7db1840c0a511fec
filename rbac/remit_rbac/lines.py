"""Policy rows as they stand in a file: text, columns and where each begins. It knows no meaning.

Splitting follows Casbin's own file reader exactly (commas outside brackets, no quoting), and refuses
the lines that Casbin would silently misread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from remit_rbac.index import Row
from remit_rbac.problems import Problem

#: The width of a column in the tables of Casbin's database adapters. Some databases cut what is longer.
STORED_LENGTH_MAX = 255


@dataclass(frozen=True, slots=True)
class Line:
    """One row and its values, the row type first."""

    row: Row
    values: tuple[str, ...]

    @property
    def ptype(self) -> str:
        return self.values[0]

    def problem(
        self,
        code: str,
        message: str,
        fix: str = "",
        *,
        value: int | None = None,
        offset: int = 0,
        level: Literal["error", "warning"] = "error",
    ) -> Problem:
        """A problem of the whole line, or `offset` characters into one of its values."""
        column = 1
        if value is not None:
            start, end = _spans(self.row.text)[value]
            column = end - len(self.row.text[start:end].lstrip()) + offset + 1
        return _problem(self.row, column, code, message, fix, level)


def read_lines(content: bytes, file: str) -> tuple[list[Line], list[Problem]]:
    """The rows of a policy file, and what is wrong with the others."""
    lines: list[Line] = []
    problems: list[Problem] = []
    comment: list[str] = []
    for number, raw in enumerate(content.split(b"\n"), start=1):
        try:
            text = raw.decode("utf-8").rstrip()
        except UnicodeDecodeError:
            row = Row(file=file, line=number, text="")
            problems.append(_problem(row, 1, "not-utf8", "this line is not UTF-8", "save the file as UTF-8"))
            continue
        if text.lstrip().startswith("#"):
            words = text.lstrip("# \t")
            # A comment of several paragraphs is about more than the row below it; its last one is.
            comment = [*comment, words] if words else []
            continue
        if text:
            _add(Row(file=file, line=number, text=text, note=" ".join(comment)), lines, problems)
        comment = []
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
            message = "a value has spaces around it, or a line end in it"
            problems.append(_problem(row, 1, "untrimmed-value", message, "store it without them"))
        elif not row.text or row.text.startswith("#"):
            message = "the row has no type, or is a comment; Casbin would ignore it"
            problems.append(_problem(row, 1, "unknown-row-type", message, "delete it where it is stored"))
        elif any(len(value) >= STORED_LENGTH_MAX for value in values):
            message = f"a value is {STORED_LENGTH_MAX} characters long or longer, so it may have been cut"
            problems.append(_problem(row, 1, "long-value", message, "split the rule, or keep it in a file"))
        else:
            _add(row, lines, problems)
    return lines, problems


def _add(row: Row, lines: list[Line], problems: list[Problem]) -> None:
    try:
        # Most rows have nothing to nest or to hide, and there are many of them.
        if _PLAIN.fullmatch(row.text):
            parts = row.text.split(",")
        else:
            parts = [row.text[start:end] for start, end in _spans(row.text)]
        lines.append(Line(row, tuple([part.strip() for part in parts])))
    except _UnreadableError as error:
        problems.append(_problem(row, error.column, error.code, error.message, error.fix))


_PLAIN = re.compile(r"[ !#-'*-Z^-~]*")
_STRUCTURE = re.compile(r'[,()\[\]"]')


class _UnreadableError(Exception):
    def __init__(self, code: str, message: str, fix: str, column: int) -> None:
        self.code = code
        self.message = message
        self.fix = fix
        self.column = column


def _spans(text: str) -> list[tuple[int, int]]:
    """Where each column begins and ends."""
    for position, character in enumerate(text):
        if not character.isprintable() and character != "\t":
            raise _UnreadableError(
                "invisible-character",
                f"invisible character U+{ord(character):04X}",
                "delete it and type the line again",
                position + 1,
            )
    spans: list[tuple[int, int]] = []
    opened: list[int] = []
    start = 0
    for match in _STRUCTURE.finditer(text):
        position, character = match.start(), match.group()
        if character == ",":
            if not opened:
                spans.append((start, position))
                start = position + 1
        elif character in "([":
            opened.append(position)
        elif character == '"':
            raise _UnreadableError(
                "double-quote",
                "Casbin keeps double quotes as part of the value",
                "use single quotes",
                position + 1,
            )
        elif not opened or text[opened.pop()] + character not in ("()", "[]"):
            raise _UnreadableError(
                "unpaired-bracket",
                f"`{character}` closes nothing",
                "pair the brackets, also inside quotes",
                position + 1,
            )
    if opened:
        raise _UnreadableError(
            "unpaired-bracket",
            "this bracket is not closed, so Casbin swallows the commas after it",
            "pair the brackets, also inside quotes",
            opened[-1] + 1,
        )
    spans.append((start, len(text)))
    return spans


def _problem(
    row: Row, column: int, code: str, message: str, fix: str, level: Literal["error", "warning"] = "error"
) -> Problem:
    return Problem(
        code=code,
        file=row.file,
        line=row.line,
        column=column,
        text=row.text,
        message=message,
        fix=fix,
        level=level,
    )
