"""The reference of what a policy is told: complete, in the code's own words, with true examples."""

from __future__ import annotations

import re

import pytest
from tests.docs.pages import read

from remit_rbac import CODES, PolicyError, load_text

PAGE = "docs/policy-messages.md"
_ROW = re.compile(r"^\| `([a-z-]+|not-utf8)` \| ([^|]+) \| (.*?) ?\| ([^|]+) \|$", re.MULTILINE)
#: What the examples are added to.
_SOUND = """\
g, user:ann, role:x, acme
g3, agent:bot, user:ann, acme
p, role:x, acme, sound.tool, execute, 1 == 1, allow
"""
FOUND = {
    code: (means, re.findall(r"`([^`]+)`", example)) for code, means, example, _ in _ROW.findall(read(PAGE))
}


def test_every_code_is_told_in_its_own_words_and_no_other() -> None:
    assert {code: means for code, (means, _) in FOUND.items()} == CODES


@pytest.mark.parametrize("code", [code for code, (_, rows) in FOUND.items() if rows])
def test_the_example_of_a_code_gets_its_message(code: str) -> None:
    try:
        problems = load_text("\n".join([_SOUND, *FOUND[code][1]])).warnings
    except PolicyError as refusal:
        problems = refusal.problems
    assert code in {problem.code for problem in problems}
