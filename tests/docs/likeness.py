"""Whether what a page shows is what happened, where no two runs give the same ids and times.

A page shows the output of a real run. In another run every id, time and digest is a different one of the
same form, and an id that a page names twice must be the same id twice. `Seen` remembers which id of the page
stands for which id of this run, so that commands on the page can name them too.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any, cast

_HEX = "[0-9a-f]"
_ID = rf"{_HEX}{{8}}-{_HEX}{{4}}-7{_HEX}{{3}}(?:-{_HEX}{{4}}-{_HEX}{{12}})?"
#: What changes from run to run, and the form in which it comes back when that is another. The first form that
#: fits is taken. `...` between blanks stands for any words.
_VOLATILE = (
    ("id", _ID, ""),
    ("key", r"rk_[a-z2-7]{12}_[a-z2-7]{52}", r"rk_[a-z2-7]{12}_[a-z2-7]{52}"),
    ("time", r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)", None),
    ("us", r"\b1\d{15}\b", r"1\d{15}"),
    ("digest", rf"\b(?:{_HEX}{{64}}|{_HEX}{{12}})\b", None),
    ("ms", r"\b\d+\.\d ms\b", r"\d+\.\d ms"),
    ("wait", r"\b\d+ (?:s|m|min)\b", r"\d+ (?:s|m|min)"),
    ("count", r"\b\d+ (?:events|calls|balances)\b", r"\d+ (?:events|calls|balances)"),
    ("process", r"\b(?:process|cli)-\d+\b", r"(?:process|cli)-\d+"),
    ("some", r"(?:^| )\.\.\.(?!\S)", r".*?"),
)
_FORMS = re.compile("|".join(f"(?P<{name}>{form})" for name, form, _ in _VOLATILE))
_BACK = {name: back or form for name, form, back in _VOLATILE}


class Differs(AssertionError):
    """What is shown is not what happened."""


class Seen:
    def __init__(self) -> None:
        #: Id on the page -> id of this run. Either may be shortened.
        self._ids: dict[str, str] = {}

    def real(self, text: str) -> str:
        """`text` of a page with its ids replaced by those of this run. Unknown ones stay."""
        return re.sub(_ID, lambda found: self._known(found[0]) or found[0], text)

    def compare(self, shown: str, happened: str) -> None:
        """Raises Differs."""
        expected, found = _words(shown), _words(happened)
        groups: dict[str, str] = {}
        match = re.fullmatch(self._pattern(expected, groups), found)
        if match is None:
            pages, runs = (textwrap.wrap(text, 100) for text in (expected, found))
            raise Differs("\n".join(["the page shows", *pages, "and this run said", *runs]))
        for group, shown_id in groups.items():
            self._ids[shown_id] = match[group]

    def compare_json(self, shown: Any, happened: Any, where: str = "") -> None:
        """Everything that is shown must be there; what is not shown may be. Raises Differs."""
        if isinstance(shown, Mapping) and isinstance(happened, Mapping):
            there = cast("Mapping[str, Any]", happened)
            for name, value in cast("Mapping[str, Any]", shown).items():
                if name not in there:
                    raise Differs(f"{where}.{name} is not in {dict(there)}")
                self.compare_json(value, there[name], f"{where}.{name}")
        elif isinstance(shown, list) and isinstance(happened, list):
            mine, theirs = cast("list[Any]", shown), cast("list[Any]", happened)
            if len(mine) != len(theirs):
                raise Differs(f"{where} has {len(theirs)} entries: {theirs}")
            for number, (one, other) in enumerate(zip(mine, theirs, strict=True)):
                self.compare_json(one, other, f"{where}[{number}]")
        elif isinstance(shown, str) and isinstance(happened, str):
            try:
                self.compare(shown, happened)
            except Differs as difference:
                raise Differs(f"{where}: {difference}") from None
        elif shown != happened and not (_is_time(shown) and _is_time(happened)):
            raise Differs(f"{where} is {happened!r}, and the page shows {shown!r}")

    def _pattern(self, expected: str, groups: dict[str, str]) -> str:
        pattern, end = "", 0
        for found in _FORMS.finditer(expected):
            pattern += re.escape(expected[end : found.start()])
            end = found.end()
            if found.lastgroup == "id":
                pattern += self._id(found[0], groups)
            else:
                pattern += f"(?:{_BACK[str(found.lastgroup)]})"
        return pattern + re.escape(expected[end:])

    def _id(self, shown: str, groups: dict[str, str]) -> str:
        if known := self._known(shown):
            return re.escape(known)
        for group, other in groups.items():
            if other == shown:
                return f"(?P={group})"
        group = f"id{len(groups)}"
        groups[group] = shown
        rest = rf"-{_HEX}{{4}}-{_HEX}{{12}}" if len(shown) > len("01a20194-7df0-7947") else ""
        return rf"(?P<{group}>{_HEX}{{8}}-{_HEX}{{4}}-7{_HEX}{{3}}{rest})"

    def _known(self, shown: str) -> str | None:
        for page, real in self._ids.items():
            if page.startswith(shown):
                return real[: len(shown)]
        return None


def _words(text: str) -> str:
    """The words of a text: how lines are broken, and how wide a table is, depends on what is in it."""
    return " ".join(text.replace("─", " ").split())


def _is_time(value: object) -> bool:
    """Microseconds since 1970."""
    return isinstance(value, int) and not isinstance(value, bool) and len(str(value)) == 16
