"""What others wrote, as people see it."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.escaping import escaped, escaped_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, Zürich, 東京, €", "plain text, Zürich, 東京, €"),
        ("\x1b[2J", "\\u001b[2J"),
        ("a\rb\tc\x00", "a\\u000db\\u0009c\\u0000"),
        ("pay \u202e001\u202c", "pay \\u202e001\\u202c"),
        ("ad\u200bmin", "ad\\u200bmin"),
        ("no\u00a0break", "no\\u00a0break"),
        ("fill\u3164er", "fill\\u3164er"),
        ("v\ufe0fs", "v\\ufe0fs"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud800", "\\ud800"),
        ("two\nlines", "two\\u000alines"),
    ],
)
def test_what_cannot_be_seen_is_shown(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_line_breaks_stay_where_lines_are_wanted() -> None:
    assert escaped("two\nlines", lines=True) == "two\nlines"


@given(st.text())
def test_nothing_that_acts_on_a_terminal_is_left(text: str) -> None:
    left = escaped(text)
    assert left.isprintable()
    assert not {unicodedata.category(character) for character in left} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    left.encode()


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_escaped_json_of_the_basic_plane_is_still_the_same_json(value: dict[str, object]) -> None:
    shown = escaped_json(value)
    if "\\U" not in shown:
        assert json.loads(shown) == value
