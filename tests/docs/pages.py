"""The documentation as data: its pages, their fenced blocks and their links. It runs and judges nothing.

The first word after a fence is the block's language, the others say what the tests do with it: see
`tests/README.md`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: The pages whose blocks are run. The other pages are only looked at for their links.
RUN = tuple(
    sorted(
        name
        for name in (
            "README.md",
            *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
            *(f"{folder}/README.md" for folder in ("server", "adapters", "rbac", "tests", "configs")),
        )
        if (ROOT / name).is_file()
    )
)
_FENCE = re.compile(r"^( *)(`{3,})(.*)$")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    page: str
    #: Of the fence that opens it, from 1.
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    page: str
    line: int
    target: str


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order. Raises ValueError for a fence that is never closed."""
    found: list[Block] = []
    opened: tuple[int, str, str, list[str]] | None = None
    for number, line in enumerate(read(page).splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None:
            if fence:
                opened = number, fence[2], fence[3].strip(), []
        elif fence and fence[2] == opened[1] and not fence[3].strip():
            start, _, info, lines = opened
            language, *words = info.split() or [""]
            text = "\n".join(lines) + "\n"
            found.append(Block(page=page, line=start, language=language, words=tuple(words), text=text))
            opened = None
        else:
            opened[3].append(line)
    if opened is not None:
        raise ValueError(f"{page}:{opened[0]}: this block is never closed")
    return found


def prose(page: str) -> str:
    """A page without its blocks, line for line."""
    lines = read(page).splitlines()
    for block in blocks(page):
        for number in range(block.line - 1, block.line + block.text.count("\n") + 1):
            lines[number] = ""
    return "\n".join(lines)


def links(page: str) -> list[Link]:
    return [
        Link(page=page, line=number, target=target)
        for number, line in enumerate(prose(page).splitlines(), 1)
        for target in _LINK.findall(line)
    ]


def anchors(page: str) -> set[str]:
    """What a link may name after `#`, as GitHub makes it of the headings."""
    titles = _HEADING.findall(prose(page))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
