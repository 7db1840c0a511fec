"""YAML read as YAML 1.2 says: `no` is text, a key stands once, and every value knows its line.

A small composer over PyYAML's events, because the library's own reads YAML 1.1 (`no` is false, `12:30`
is 750), keeps the last of two equal keys, and follows tags and aliases without end. What people write by
hand is read here; what it means is the caller's business. A document is small: at most `MAX_NODES`
values, `MAX_DEPTH` deep, so a hostile or broken file costs milliseconds.

Source: YAML 1.2.2, §10.3 (core schema), without tags and merge keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import yaml
from yaml.reader import ReaderError

MAX_NODES = 20_000
MAX_DEPTH = 32
MAX_INTEGER = 2**53 - 1

Path: TypeAlias = tuple[str | int, ...]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
# Compiled when needed: its ranges take longer than the rest of this module together.
_UNPRINTABLE = r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"

_TAB = "a tab stands here; YAML is indented with spaces"

# What the parser says, and what it means to somebody who has the file open. The C and the Python parser
# word their errors differently; both are matched.
_SYNTAX = (
    (
        re.compile("mapping values are not allowed"),
        "a ':' stands where none can; put text that holds ': ' in quotes",
    ),
    (re.compile("could not find expected ':'"), "a ':' is missing after a key"),
    (re.compile(r"expected ',' or '([\]}])'"), "a ',' or the closing '{0}' is missing"),
    (re.compile("expected key|expected <block end>|expected '-'"), "the indentation differs from above"),
    (re.compile("expected (the )?node content"), "a value or a closing bracket is missing"),
    (re.compile("unexpected end of stream"), "the quote that opens here is never closed"),
    (re.compile("unknown escape"), "this '\\' begins no escape; use single quotes, or write '\\\\'"),
    (re.compile("tab character"), _TAB),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A place in the text. Lines and columns count from 1, columns in characters."""

    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """Something that is wrong with the text itself. `message` is a sentence that says the fix."""

    path: Path
    mark: Mark
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What was read. `value` is None when the text could not be read to its end."""

    value: Any
    #: Where each entry begins: a mapping's entry at its key, a list's at its value.
    marks: Mapping[Path, Mark]
    flaws: tuple[Flaw, ...]

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.value, dict)


def nearest(marks: Mapping[Path, Mark], path: Path) -> Mark:
    """The place of `path`, or of the nearest thing around it that the text has."""
    while path not in marks and path:
        path = path[:-1]
    return marks.get(path, Mark(line=1, column=1))


def read(text: str) -> Document:
    """Read one document. Never raises for what `text` holds: whatever is wrong is in `flaws`."""
    composer = _Composer(text)
    try:
        value = composer.document()
    except yaml.MarkedYAMLError as error:
        composer.flaws.append(_syntax(error, text))
        value = None
    except ReaderError:
        composer.flaws += _unprintable(text)
        value = None
    except _Stop:
        value = None
    return Document(value=value, marks=composer.marks, flaws=tuple(composer.flaws))


def place(text: str, offset: int) -> Mark:
    """The line and column of one character of `text`."""
    return Mark(line=text.count("\n", 0, offset) + 1, column=offset - text.rfind("\n", 0, offset))


def _events(text: str) -> Iterator[Any]:
    return yaml.parse(text, Loader=_LOADER)  # pyright: ignore  # PyYAML's stub leaves its events untyped


class _Stop(Exception):
    """Reading on would not help; why is the last flaw."""


class _Composer:
    """Builds one value from the parser's events. Lives for one `read`."""

    def __init__(self, text: str) -> None:
        self.marks: dict[Path, Mark] = {}
        self.flaws: list[Flaw] = []
        self._events = _events(text)
        #: Values by anchor, with the number of nodes that repeating one adds.
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._nodes = 0

    def document(self) -> Any:
        next(self._events)
        start = next(self._events)
        if isinstance(start, yaml.StreamEndEvent):
            self._stop(start, (), "the file is empty")
        value = self._node(next(self._events), ())
        if value is None:
            self._stop(start, (), "the file is empty")
        next(self._events)
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            self._stop(after, (), "a second document begins here; keep one in the file")
        return value

    def _node(self, event: Any, path: Path) -> Any:
        self.marks.setdefault(path, _mark(event))
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path)
        if event.tag is not None:
            self._flaw(event, path, "tags are not used here; remove the word that begins with '!'")
        before = self._nodes
        self._count(event, path, 1)
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, path)
        elif len(path) == MAX_DEPTH:
            self._stop(event, path, f"values are nested more than {MAX_DEPTH} deep")
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(path)
        else:
            value = self._mapping(path)
        if event.anchor is not None:
            # Only now: an alias inside its own anchor would make a value without end.
            self._anchors[event.anchor] = (value, self._nodes - before)
        return value

    def _alias(self, event: Any, path: Path) -> Any:
        if event.anchor not in self._anchors:
            self._flaw(event, path, f"*{event.anchor} has no &{event.anchor} before it")
            return None
        value, nodes = self._anchors[event.anchor]
        self._count(event, path, nodes)
        return value

    def _sequence(self, path: Path) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, (*path, len(items))))
        return items

    def _mapping(self, path: Path) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, path)
            entry = (*path, key)
            if key in entries:
                first = self.marks[entry].line
                self._flaw(event, entry, f"this key is written twice, first on line {first}; keep one")
                self._node(next(self._events), entry)
                continue
            self.marks[entry] = _mark(event)
            entries[key] = self._node(next(self._events), entry)
        return entries

    def _key(self, event: Any, path: Path) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            self._stop(event, path, "a key is a word, not a list, a mapping or an alias")
        key: str = event.value
        if not key:
            self._flaw(event, (*path, key), "a key is missing before ':'; write one")
        elif key == "<<" and not event.style:
            self._flaw(event, (*path, key), "merge keys are not used here; write the fields out")
        elif not isinstance(self._scalar(event, (*path, key)), str):
            self._flaw(event, (*path, key), f"a key is text; write it in quotes: '{key}'")
        return key

    def _scalar(self, event: Any, path: Path) -> Any:
        text: str = event.value
        if "\0" in text:
            self._flaw(event, path, "the character U+0000 cannot stand in a value; remove it")
        if event.style:
            return text
        if text in _NULL:
            return None
        if text in _BOOLEAN:
            return _BOOLEAN[text]
        if _INTEGER.fullmatch(text):
            return self._integer(event, text, path)
        if _FLOAT.fullmatch(text):
            number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            if not math.isfinite(number):
                self._flaw(event, path, f"{_shown(text)} is not a finite number; write one that is")
            return number
        return text

    def _integer(self, event: Any, text: str, path: Path) -> int:
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        # Python reads a very long number in quadratic time, and refuses one of 4,300 digits.
        number = int(text, base) if len(text) <= 64 else MAX_INTEGER + 1
        if abs(number) > MAX_INTEGER:
            self._flaw(event, path, f"{_shown(text)} is too large: whole numbers go up to {MAX_INTEGER}")
        return number

    def _count(self, event: Any, path: Path, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            self._stop(event, path, f"the file holds more than {MAX_NODES:,} values, aliases counted in full")

    def _flaw(self, event: Any, path: Path, message: str) -> None:
        self.flaws.append(Flaw(path=path, mark=_mark(event), message=message))

    def _stop(self, event: Any, path: Path, message: str) -> NoReturn:
        self._flaw(event, path, message)
        raise _Stop


def _mark(event: Any) -> Mark:
    return Mark(line=event.start_mark.line + 1, column=event.start_mark.column + 1)


def _shown(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _unprintable(text: str) -> Iterator[Flaw]:
    for found in re.finditer(_UNPRINTABLE, text):
        message = f"the character U+{ord(found[0]):04X} cannot stand in YAML; remove it"
        yield Flaw(path=(), mark=place(text, found.start()), message=message)


def _syntax(error: yaml.MarkedYAMLError, text: str) -> Flaw:
    problem = error.problem or "it cannot be read"
    at = error.problem_mark or error.context_mark
    if "unexpected end of stream" in problem and error.context_mark:
        at = error.context_mark
    mark = Mark(line=at.line + 1, column=at.column + 1) if at else Mark(line=1, column=1)
    if "cannot start any token" in problem and at and at.index < len(text):
        wrong = text[at.index]
        message = _TAB if wrong == "\t" else f"{wrong!r} cannot begin a value; put the value in quotes"
        return Flaw(path=(), mark=mark, message=message)
    for pattern, sentence in _SYNTAX:
        if found := pattern.search(problem):
            return Flaw(path=(), mark=mark, message=sentence.format(*found.groups()))
    return Flaw(path=(), mark=mark, message=f"this is not YAML: {problem}")
