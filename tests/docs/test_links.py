"""Every link leads somewhere: to a file of the repository and a heading in it. Nothing is fetched."""

from __future__ import annotations

import subprocess
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from tests.docs.pages import ROOT, Link, anchors, links

LISTED = subprocess.run(
    ["git", "-c", f"safe.directory={ROOT}", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=ROOT, capture_output=True, text=True, check=False,
).stdout.split()  # fmt: skip
PAGES = [name for name in LISTED if (ROOT / name).is_file()] or sorted(
    str(path.relative_to(ROOT)) for path in ROOT.glob("[!.]*/**/*.md")
)


def broken(link: Link) -> str | None:
    """Why a link leads nowhere."""
    target = urlsplit(link.target)
    if target.scheme in ("https", "http"):
        return None
    page = str(PurePosixPath(link.page).parent / target.path) if target.path else link.page
    found = (ROOT / page).resolve()
    if not found.exists() or not found.is_relative_to(ROOT):
        return "there is no such file"
    if target.fragment and target.fragment not in anchors(str(found.relative_to(ROOT))):
        return "there is no such heading"
    return None


def test_every_link_leads_somewhere() -> None:
    assert [
        f"{link.page}:{link.line}: {link.target}: {why}"
        for name in PAGES
        for link in links(name)
        if (why := broken(link))
    ] == []


def test_every_page_can_be_reached_from_the_first() -> None:
    reached: set[str] = set()
    waiting = ["README.md"]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        for link in links(name):
            target = urlsplit(link.target)
            if not target.scheme and target.path:
                path = (ROOT / name).parent / target.path
                path = path / "README.md" if path.is_dir() else path
                if path.suffix == ".md" and path.is_file():
                    waiting.append(str(path.resolve().relative_to(ROOT)))
    assert set(PAGES) - reached - {"CHANGELOG.md"} == set()
