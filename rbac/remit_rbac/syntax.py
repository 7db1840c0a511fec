"""The grammar of conditions and matchers: text in, a small closed tree out.

It is the part of Python's expression grammar that Casbin policies use, plus `&&`, `||` and `!`, with
Python's precedences, so that every accepted text means the same to a stock Casbin enforcer. The parser
is written out rather than borrowed from `ast`, because what it does not know cannot be written: there
are no calls of methods, no lambdas, no comprehensions, no powers, no escapes. It evaluates nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeAlias

#: Beyond these a condition is not something that a person can review.
LENGTH_MAX = 2_000
DEPTH_MAX = 30
INTEGER_DIGITS_MAX = 40

Scalar: TypeAlias = str | int | float | bool | None
Key: TypeAlias = str | int


class ExpressionError(Exception):
    """The text is not an expression of the language. `column` counts characters from 1."""

    def __init__(self, message: str, column: int) -> None:
        super().__init__(f"{message} (column {column})")
        self.message = message
        self.column = column


@dataclass(frozen=True, slots=True)
class Literal:
    value: Scalar
    column: int


@dataclass(frozen=True, slots=True)
class Path:
    """`args.items[0]['unit price']` is `("args", "items", 0, "unit price")`."""

    keys: tuple[Key, ...]
    column: int


@dataclass(frozen=True, slots=True)
class Listing:
    """A tuple or a list, which mean the same here."""

    items: tuple[Node, ...]
    column: int


@dataclass(frozen=True, slots=True)
class Negative:
    operand: Node
    column: int


@dataclass(frozen=True, slots=True)
class Not:
    operand: Node
    column: int


@dataclass(frozen=True, slots=True)
class Arithmetic:
    operator: str
    left: Node
    right: Node
    column: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """`a < b <= c` is one comparison with two links, as in Python."""

    first: Node
    links: tuple[tuple[str, Node], ...]
    column: int


@dataclass(frozen=True, slots=True)
class Logic:
    operator: str
    operands: tuple[Node, ...]
    column: int


@dataclass(frozen=True, slots=True)
class Choice:
    test: Node
    then: Node
    otherwise: Node
    column: int


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: tuple[Node, ...]
    column: int


Node: TypeAlias = Literal | Path | Listing | Negative | Not | Arithmetic | Comparison | Logic | Choice | Call


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    column: int


_TOKEN = re.compile(
    r"""(?P<space>[ \t]+)
      | (?P<number>(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![0-9A-Za-z_.]))
      | (?P<text>'[^'\\]*'|"[^"\\]*")
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<symbol>&&|\|\||==|!=|<=|>=|//|[-+*/%<>!()\[\],.])""",
    re.VERBOSE,
)
_SYNONYMS = {"&&": "and", "||": "or", "!": "not"}
_CONSTANTS: dict[str, Scalar] = {"True": True, "False": False, "None": None}
_KEYWORDS = frozenset({"and", "or", "not", "in", "if", "else", "is", "lambda", *_CONSTANTS})
#: Words that mean something to Python: stock Casbin cannot read them as attributes.
_RESERVED = _KEYWORDS | frozenset(
    [
        "as",
        "assert",
        "async",
        "await",
        "break",
        "class",
        "continue",
        "def",
        "del",
        "elif",
        "except",
        "finally",
        "for",
        "from",
        "global",
        "import",
        "nonlocal",
        "pass",
        "raise",
        "return",
        "try",
        "while",
        "with",
        "yield",
    ]
)
_COMPARISONS = frozenset({"==", "!=", "<", "<=", ">", ">=", "in"})
#: Stock Casbin rewrites `r.` and `p.` to `r_` and `p_` wherever they stand.
_REWRITTEN = re.compile(r"[rp][0-9]*\Z")


def parse(text: str, *, roots: Collection[str], functions: Collection[str]) -> Node:
    """Read one expression.

    `roots` are the names that a path may begin with; `functions` the names that may be called.
    Raises ExpressionError with the column of the first thing that is not understood.
    """
    if len(text) > LENGTH_MAX:
        raise ExpressionError(f"longer than {LENGTH_MAX} characters", LENGTH_MAX + 1)
    parser = _Parser(_tokens(text), roots, functions)
    node = parser.expression()
    parser.expect_end()
    return node


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(_unreadable(text, position), position + 1)
        kind = str(match.lastgroup)
        if kind != "space":
            word = match.group()
            if word in _SYNONYMS:
                kind, word = "name", _SYNONYMS[word]
            tokens.append(_Token(kind, word, position + 1))
        position = match.end()
    tokens.append(_Token("end", "", len(text) + 1))
    return tokens


def _unreadable(text: str, position: int) -> str:
    character = text[position]
    if character in "'\"":
        return "this text is not closed, or has a backslash in it"
    if character == "#":
        return "comments go on their own line"
    if character == "=":
        return "`=` assigns; write `==` to compare"
    if character.isdigit():
        return "this number is not written plainly"
    return f"unexpected character {character!r}"


class _Parser:
    """Recursive descent; one method for each level of precedence, loosest first."""

    def __init__(self, tokens: list[_Token], roots: Collection[str], functions: Collection[str]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0
        self._roots = roots
        self._functions = functions

    def expression(self) -> Node:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise ExpressionError(f"nested more than {DEPTH_MAX} deep", self._peek().column)
        then = self._either()
        if self._take("if"):
            test = self._either()
            self._expect("else")
            then = Choice(test, then, self.expression(), then.column)
        self._depth -= 1
        return then

    def expect_end(self) -> None:
        token = self._peek()
        if token.kind != "end":
            raise ExpressionError(f"unexpected `{token.text}`", token.column)

    def _either(self) -> Node:
        operands = [self._both()]
        while self._take("or"):
            operands.append(self._both())
        return operands[0] if len(operands) == 1 else Logic("or", tuple(operands), operands[0].column)

    def _both(self) -> Node:
        operands = [self._inverse()]
        while self._take("and"):
            operands.append(self._inverse())
        return operands[0] if len(operands) == 1 else Logic("and", tuple(operands), operands[0].column)

    def _inverse(self) -> Node:
        token = self._peek()
        if not self._take("not"):
            return self._comparison()
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise ExpressionError(f"nested more than {DEPTH_MAX} deep", token.column)
        operand = self._inverse()
        self._depth -= 1
        return Not(operand, token.column)

    def _comparison(self) -> Node:
        first = self._sum()
        links: list[tuple[str, Node]] = []
        while (operator := self._comparison_operator()) is not None:
            links.append((operator, self._sum()))
        return Comparison(first, tuple(links), first.column) if links else first

    def _comparison_operator(self) -> str | None:
        token = self._peek()
        if token.kind in ("symbol", "name") and token.text in _COMPARISONS:
            self._next += 1
            return token.text
        if token.text == "not" and token.kind == "name":
            self._next += 1
            self._expect("in")
            return "not in"
        if token.text == "is":
            raise ExpressionError("`is` compares identities; write `==`", token.column)
        return None

    def _sum(self) -> Node:
        left = self._product()
        while (token := self._peek()).kind == "symbol" and token.text in ("+", "-"):
            self._next += 1
            left = Arithmetic(token.text, left, self._product(), token.column)
        return left

    def _product(self) -> Node:
        left = self._signed()
        while (token := self._peek()).kind == "symbol" and token.text in ("*", "/", "//", "%"):
            self._next += 1
            left = Arithmetic(token.text, left, self._signed(), token.column)
        return left

    def _signed(self) -> Node:
        token = self._peek()
        if token.kind == "symbol" and self._take("-"):
            self._depth += 1
            if self._depth > DEPTH_MAX:
                raise ExpressionError(f"nested more than {DEPTH_MAX} deep", token.column)
            operand = self._signed()
            self._depth -= 1
            return Negative(operand, token.column)
        return self._operand()

    def _operand(self) -> Node:
        token = self._peek()
        self._next += 1
        if token.kind == "number":
            return Literal(_number(token), token.column)
        if token.kind == "text":
            return Literal(token.text[1:-1], token.column)
        if token.kind == "name":
            return self._named(token)
        if token.text == "(":
            return self._parenthesis(token)
        if token.text == "[":
            items = self._items("]")
            return Listing(items, token.column)
        if token.kind == "end":
            raise ExpressionError("something is missing here", token.column)
        raise ExpressionError(f"unexpected `{token.text}`", token.column)

    def _named(self, token: _Token) -> Node:
        if token.text in _CONSTANTS:
            return Literal(_CONSTANTS[token.text], token.column)
        if token.text in self._functions and self._take("("):
            return Call(token.text, self._items(")"), token.column)
        if token.text in self._roots:
            return self._path(token)
        if token.text in _KEYWORDS:
            raise ExpressionError(f"`{token.text}` cannot stand here", token.column)
        if self._peek().text == "(":
            known = ", ".join(sorted(self._functions))
            raise ExpressionError(f"unknown function `{token.text}`; known are {known}", token.column)
        hint = {"true": "; write True", "false": "; write False", "null": "; write None"}.get(token.text, "")
        known = ", ".join(sorted(self._roots))
        raise ExpressionError(
            f"unknown name `{token.text}`{hint or f'; attributes begin with {known}'}", token.column
        )

    def _path(self, root: _Token) -> Node:
        keys: list[Key] = [root.text]
        while True:
            if self._take("."):
                token = self._peek()
                if token.kind != "name" or token.text in _RESERVED:
                    raise ExpressionError(
                        "an attribute name is missing; quote odd ones: ['from']", token.column
                    )
                self._next += 1
                if self._peek().text == "(":
                    raise ExpressionError(
                        f"`.{token.text}(...)` calls a method; attributes are data", token.column
                    )
                if self._peek().text == "." and _REWRITTEN.match(token.text):
                    raise ExpressionError(
                        f"stock Casbin misreads `.{token.text}.`; write ['{token.text}']", token.column
                    )
                keys.append(token.text)
            elif self._take("["):
                keys.append(self._subscript())
                self._expect("]")
            else:
                return Path(tuple(keys), root.column)

    def _subscript(self) -> Key:
        token = self._peek()
        self._next += 1
        if token.kind == "text":
            return token.text[1:-1]
        if token.kind == "number" and token.text.isdigit() and len(token.text) < 10:
            return int(token.text)
        raise ExpressionError("a subscript is a whole number or a quoted name", token.column)

    def _parenthesis(self, opening: _Token) -> Node:
        first = self.expression()
        if self._take(")"):
            return first
        if not self._take(","):
            token = self._peek()
            raise (
                ExpressionError("this parenthesis is not closed", opening.column)
                if (token.kind == "end")
                else ExpressionError(f"unexpected `{token.text}`", token.column)
            )
        return Listing((first, *self._items(")")), opening.column)

    def _items(self, closing: str) -> tuple[Node, ...]:
        items: list[Node] = []
        while not self._take(closing):
            items.append(self.expression())
            if not self._take(","):
                self._expect(closing)
                break
        return tuple(items)

    def _peek(self) -> _Token:
        return self._tokens[min(self._next, len(self._tokens) - 1)]

    def _take(self, text: str) -> bool:
        token = self._peek()
        if token.text != text or token.kind not in ("symbol", "name"):
            return False
        self._next += 1
        return True

    def _expect(self, text: str) -> None:
        if not self._take(text):
            token = self._peek()
            found = "the end" if token.kind == "end" else f"`{token.text}`"
            raise ExpressionError(f"expected `{text}`, found {found}", token.column)


def _number(token: _Token) -> int | float:
    if token.text.isdigit():
        if len(token.text) > INTEGER_DIGITS_MAX:
            raise ExpressionError("this number is too large", token.column)
        return int(token.text)
    value = float(token.text)
    if value in (float("inf"), float("-inf")):
        raise ExpressionError("this number is too large", token.column)
    return value
