"""Text that others wrote, made safe to look at: what cannot be seen is shown, what moves the cursor does not.

Arguments, results and an agent's own words reach people's terminals and pages. A control character could
rewrite what is on the screen, a bidirectional override could turn an amount around, a zero-width or filler
character could make two names look alike (Unicode TR36 and TR39). Each is shown as an escape instead.
"""

from __future__ import annotations

import json
from typing import Any

#: Printable by Unicode's categories, and yet nothing is seen: fillers, variation selectors, Braille blank.
_BLANK = frozenset(
    (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x2800, 0x3164, 0xFFA0)
).union(range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))


def escaped(text: str, *, lines: bool = False) -> str:
    """`text` with every character that is not plainly visible as `\\uXXXX`; `lines` keeps line breaks."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if _is_plain(character, lines) else _escape(character) for character in text)


def escaped_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON that reads the same to a person as to a program."""
    return escaped(json.dumps(value, ensure_ascii=False, indent=indent), lines=True)


def _is_plain(character: str, lines: bool) -> bool:
    if character == "\n":
        return lines
    return character.isprintable() and ord(character) not in _BLANK


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
