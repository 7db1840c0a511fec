"""The report for an auditor: what happened, who let it happen, and whether the record holds."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

from tests.server.acme import Story, Terminal


class Page(HTMLParser):
    """The texts of a page, its tags, and whatever it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_report_tells_what_happened_and_loads_nothing(
    remit: Terminal, story: Story, tmp_path: Path
) -> None:
    remit.json("approvals", "approve", story.approval, "--comment", "fine")
    remit.json("undo", story.refund)
    file = tmp_path / "report.html"
    told = remit.json("report", "--from", "2020-01-01", "-o", str(file))
    assert told["findings"] == []
    page = Page(file.read_text("utf-8"))
    assert page.loads == []
    assert not {"script", "link", "img", "iframe"} & page.tags
    text = " ".join(page.texts)
    for word in ("are as they were written", "user:sue", "in doubt: ", "acme.refund", "eur_minor", "done"):
        assert word in text
    sections = {each["title"]: each["rows"] for each in told["sections"]}
    assert ["user:sue", "approve", "acme.refund", 1] in sections["Approvals, by whom"]
    assert ["acme.refund", "user:sue", "done", 1] in sections["Undone"]
    assert remit.json("report", "--from", "2020-01-01", "--to", "2020-02-01")["sections"][0]["rows"] == []
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_report_says_that_the_record_is_not_sound_and_escapes_what_others_wrote(remit: Terminal) -> None:
    with closing(sqlite3.connect(remit.folder / "remit.db")) as db, db:
        db.execute("UPDATE calls SET code = '<script>alert(1)</script>' WHERE state = 'denied'")
    ran = remit("report", "--from", "2020-01-01")
    assert ran.code == 1
    page = Page(ran.out)
    assert "script" not in page.tags
    assert "are not as they were written" in " ".join(page.texts)
