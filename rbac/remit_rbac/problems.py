"""What is wrong with a policy, in words for the person who wrote it.

A `Problem` is a value: the loader collects all of them before it gives up, so that one run names every
mistake. `PolicyError` carries them out; nothing was loaded when it is raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One finding in one line of a policy or model file. Lines and columns count from 1."""

    file: str
    line: int
    column: int
    #: The line as written.
    text: str
    message: str
    #: What to write instead; empty when only the author can know.
    fix: str = ""
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        first = f"{self.file}:{self.line}:{self.column}: {self.level}: {self.message}"
        shown = [first, f"    {self.text}", f"    {' ' * (self.column - 1)}^"] if self.text else [first]
        return "\n".join([*shown, f"    fix: {self.fix}"] if self.fix else shown)


class PolicyError(Exception):
    """The policy was refused as a whole. Keep the last good one and show the report to its author."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
