"""The grammar of conditions and matchers: text in, a small closed tree out.

It is the part of Python's expression grammar that Casbin policies use, plus `&&`, `||` and `!`, with
Python's precedences, so that every accepted text means the same to a stock Casbin enforcer. The parser
is written out rather than borrowed from `ast`, because what it does not know cannot be written: there
are no calls of methods, no lambdas, no comprehensions, no powers, no escapes. It evaluates nothing.
"""

from __future__ import annotations

import keyword
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

    def __init__(self, message: str, column: int, fix: str) -> None:
        super().__init__(f"{message} (column {column})")
        self.message = message
        self.column = column
        #: What to write instead; may be empty.
        self.fix = fix


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
    r"""(?P<space>[ \t\r\n]+)
      | (?P<number>(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![0-9A-Za-z_.]))
      | (?P<text>'[^'\\\r\n]*'|"[^"\\\r\n]*")
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<symbol>&&|\|\||==|!=|<=|>=|//|[-+*/%<>!()\[\],.])""",
    re.VERBOSE,
)
_CONSTANTS: dict[str, Scalar] = {"True": True, "False": False, "None": None}
_COMPARISONS = frozenset({"==", "!=", "<", "<=", ">", ">=", "in"})
#: What may not follow the operand of `!` directly.
_TIGHTER_THAN_NOT = _COMPARISONS | {"+", "-", "*", "/", "//", "%"}
#: Stock Casbin rewrites `r.` and `p.` to `r_` and `p_` wherever they stand.
_REWRITTEN = re.compile(r"[rp][0-9]*\Z")
_STOCK_REWRITES = re.compile(r"!(?!=)|\b[rp][0-9]*\.")
_HINTS = {"true": "write True", "false": "write False", "null": "write None"}


def render(node: Node) -> str:
    """The text of a tree, with as few parentheses as keep its meaning."""
    return _render(node, 0)


def _render(node: Node, around: int) -> str:
    """`around` is how tightly the surrounding operator binds; looser things take parentheses."""
    match node:
        case Literal(value):
            return f"'{value}'" if isinstance(value, str) and "'" not in value else _plain(value)
        case Path(keys):
            return str(keys[0]) + "".join(_step(key) for key in keys[1:])
        case Listing(items):
            return f"[{', '.join(_render(item, 0) for item in items)}]"
        case Call(name, arguments):
            return f"{name}({', '.join(_render(argument, 0) for argument in arguments)})"
        case Choice(test, then, otherwise):
            text = f"{_render(then, 1)} if {_render(test, 1)} else {_render(otherwise, 0)}"
            return _wrapped(text, 0, around)
        case Logic(operator, operands):
            level = _BINDING[operator]
            return _wrapped(
                f" {operator} ".join(_render(part, level + 1) for part in operands), level, around
            )
        case Not(operand):
            return _wrapped(f"not {_render(operand, 3)}", 3, around)
        case Comparison(first, links):
            text = _render(first, 5) + "".join(f" {name} {_render(part, 5)}" for name, part in links)
            return _wrapped(text, 4, around)
        case Arithmetic(operator, left, right):
            level = _BINDING[operator]
            return _wrapped(f"{_render(left, level)} {operator} {_render(right, level + 1)}", level, around)
        case Negative(operand):
            return _wrapped(f"-{_render(operand, 7)}", 7, around)


_BINDING = {"or": 1, "and": 2, "+": 5, "-": 5, "*": 6, "/": 6, "//": 6, "%": 6}


def _wrapped(text: str, level: int, around: int) -> str:
    return f"({text})" if level < around else text


def _step(key: Key) -> str:
    if isinstance(key, int):
        return f"[{key}]"
    plain = key.isidentifier() and key.isascii() and not keyword.iskeyword(key) and not _REWRITTEN.match(key)
    return f".{key}" if plain else f"['{key}']" if "'" not in key else f'["{key}"]'


def _plain(value: Scalar) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def stock_rewrites(text: str) -> bool:
    """Whether a stock Casbin enforcer would change this text inside quotes before comparing with it."""
    return "&&" in text or "||" in text or _STOCK_REWRITES.search(text) is not None


def parse(text: str, *, roots: Collection[str], functions: Collection[str]) -> Node:
    """Read one expression.

    `roots` are the names that a path may begin with; `functions` the names that may be called.
    Raises ExpressionError with the column of the first thing that is not understood.
    """
    if len(text) > LENGTH_MAX:
        raise ExpressionError(f"longer than {LENGTH_MAX} characters", LENGTH_MAX + 1, "split the rule")
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
            message, fix = _unreadable(text[position])
            raise ExpressionError(message, position + 1, fix)
        if match.lastgroup != "space":
            tokens.append(_Token(str(match.lastgroup), match.group(), position + 1))
        position = match.end()
    tokens.append(_Token("end", "", len(text) + 1))
    return tokens


def _unreadable(character: str) -> tuple[str, str]:
    if character in "'\"":
        return "this text is not closed, or holds a backslash", "close it; backslashes have no meaning"
    if character == "#":
        return "there is no comment inside a condition", "put comments on their own line"
    if character == "=":
        return "`=` assigns", "write == to compare"
    if character.isdigit():
        return "this number is not written plainly", "write it as 100 or 0.5"
    return f"unexpected character {character!r}", "write it as in r.args.n > 0 && r.args.kind == 'a'"


class _Parser:
    """Recursive descent; one method for each level of precedence, loosest first."""

    def __init__(self, tokens: list[_Token], roots: Collection[str], functions: Collection[str]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0
        self._roots = roots
        self._functions = functions

    def expression(self) -> Node:
        self._descend()
        node = self._either()
        if self._take("if"):
            test = self._either()
            self._expect("else")
            node = Choice(test, node, self.expression(), node.column)
        self._depth -= 1
        return node

    def expect_end(self) -> None:
        token = self._peek()
        if token.kind != "end":
            raise _unexpected(token)

    def _either(self) -> Node:
        operands = [self._both()]
        while self._take("or", "||"):
            operands.append(self._both())
        return operands[0] if len(operands) == 1 else Logic("or", tuple(operands), operands[0].column)

    def _both(self) -> Node:
        operands = [self._inverse()]
        while self._take("and", "&&"):
            operands.append(self._inverse())
        return operands[0] if len(operands) == 1 else Logic("and", tuple(operands), operands[0].column)

    def _inverse(self) -> Node:
        token = self._peek()
        if self._take("not"):
            self._descend()
            operand = self._inverse()
            self._depth -= 1
            return Not(operand, token.column)
        if self._take("!"):
            self._descend()
            operand = self._inverse() if self._peek().text == "!" else self._operand()
            self._depth -= 1
            following = self._peek()
            if following.text in _TIGHTER_THAN_NOT and following.kind != "text":
                raise ExpressionError(
                    f"`!` before `{following.text}` means different things in different Casbin engines",
                    token.column,
                    "write !( ... ) around the whole comparison",
                )
            return Not(operand, token.column)
        return self._comparison()

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
        if self._take("not"):
            self._expect("in")
            return "not in"
        if token.kind == "name" and token.text == "is":
            raise ExpressionError("`is` compares identities", token.column, "write ==")
        return None

    def _sum(self) -> Node:
        depth = self._depth
        left = self._product()
        while operator := self._take("+", "-"):
            self._descend()
            left = Arithmetic(operator, left, self._product(), left.column)
        self._depth = depth
        return left

    def _product(self) -> Node:
        depth = self._depth
        left = self._signed()
        while operator := self._take("*", "//", "/", "%"):
            self._descend()
            left = Arithmetic(operator, left, self._signed(), left.column)
        self._depth = depth
        return left

    def _signed(self) -> Node:
        token = self._peek()
        if not self._take("-"):
            return self._operand()
        self._descend()
        operand = self._signed()
        self._depth -= 1
        return Negative(operand, token.column)

    def _operand(self) -> Node:
        token = self._peek()
        self._next += 1
        match token.kind, token.text:
            case "number", _:
                return Literal(_number(token), token.column)
            case "text", _:
                return Literal(token.text[1:-1], token.column)
            case "name", _:
                return self._named(token)
            case _, "(":
                return self._parenthesis(token)
            case _, "[":
                return Listing(self._items("]"), token.column)
            case "end", _:
                raise ExpressionError("something is missing here", token.column, "write a value")
            case _:
                raise _unexpected(token)

    def _named(self, token: _Token) -> Node:
        if token.text in _CONSTANTS:
            return Literal(_CONSTANTS[token.text], token.column)
        if token.text in self._roots:
            return self._path(token)
        if keyword.iskeyword(token.text):
            raise _unexpected(token)
        if not self._take("("):
            known = " or ".join(sorted(self._roots))
            fix = _HINTS.get(token.text, f"attributes begin with {known}" if known else "")
            raise ExpressionError(f"unknown name `{token.text}`", token.column, fix)
        if token.text not in self._functions:
            known = ", ".join(sorted(self._functions))
            raise ExpressionError(f"unknown function `{token.text}`", token.column, f"there are {known}")
        return Call(token.text, self._items(")"), token.column)

    def _path(self, root: _Token) -> Node:
        keys: list[Key] = [root.text]
        while True:
            if self._take("."):
                keys.append(self._attribute())
            elif self._take("["):
                keys.append(self._subscript())
                self._expect("]")
            else:
                return Path(tuple(keys), root.column)

    def _attribute(self) -> str:
        token = self._peek()
        if token.kind != "name" or keyword.iskeyword(token.text):
            raise ExpressionError(
                "an attribute name is missing here", token.column, "quote odd ones: ['from']"
            )
        self._next += 1
        following = self._peek().text
        if following == "(":
            raise ExpressionError(
                f"`.{token.text}(` calls a method, and attributes are data",
                token.column,
                f"there are {', '.join(sorted(self._functions))}",
            )
        if following == "." and _REWRITTEN.match(token.text):
            raise ExpressionError(
                f"stock Casbin rewrites `{token.text}.`", token.column, f"write ['{token.text}']"
            )
        return token.text

    def _subscript(self) -> Key:
        token = self._peek()
        self._next += 1
        if token.kind == "text":
            return token.text[1:-1]
        if token.kind == "number" and token.text.isdigit() and len(token.text) < 10:
            return int(token.text)
        message = "a subscript is a whole number or a quoted name"
        raise ExpressionError(message, token.column, "write [0] or ['name']")

    def _parenthesis(self, opening: _Token) -> Node:
        first = self.expression()
        if self._take(")"):
            return first
        if self._take(","):
            return Listing((first, *self._items(")")), opening.column)
        token = self._peek()
        if token.kind == "end":
            raise ExpressionError("this parenthesis is not closed", opening.column, "close it with )")
        raise _unexpected(token)

    def _items(self, closing: str) -> tuple[Node, ...]:
        items: list[Node] = []
        while not self._take(closing):
            items.append(self.expression())
            if not self._take(","):
                self._expect(closing)
                break
        return tuple(items)

    def _descend(self) -> None:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise ExpressionError(f"nested more than {DEPTH_MAX} deep", self._peek().column, "split the rule")

    def _peek(self) -> _Token:
        return self._tokens[min(self._next, len(self._tokens) - 1)]

    def _take(self, *texts: str) -> str:
        """The next token's text if it is one of `texts`, stepping over it; else an empty text."""
        token = self._peek()
        if token.text not in texts or token.kind not in ("symbol", "name"):
            return ""
        self._next += 1
        return token.text

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise _unexpected(self._peek(), f"expected `{text}`")


def _unexpected(token: _Token, fix: str = "take it out, or write a value") -> ExpressionError:
    found = "the text ends too early" if token.kind == "end" else f"unexpected `{token.text}`"
    return ExpressionError(found, token.column, fix)


def _number(token: _Token) -> int | float:
    if token.text.isdigit():
        if len(token.text) > INTEGER_DIGITS_MAX:
            raise ExpressionError("this number is too large", token.column, "write a smaller one")
        return int(token.text)
    value = float(token.text)
    if value == float("inf"):
        raise ExpressionError("this number is too large", token.column, "write a smaller one")
    return value
