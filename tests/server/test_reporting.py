"""The report for an auditor: what happened, who let it happen, and whether the record holds."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import anyio
import pytest
from tests.server.acme import Story, Terminal, refunded_twice
from tests.server.test_erasing import a_place
from tests.server.test_keeping import SHORT, an_old_life


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
    remit.json("approvals", "approve", story.approval, "--yes", "--comment", "fine")
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
    assert remit.json("report", "--from", "1969-01-01", "--to", "1970-01-01T00:00Z")["to_us"] == 0
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_report_says_that_the_record_is_not_sound_and_escapes_what_others_wrote(remit: Terminal) -> None:
    with closing(sqlite3.connect(remit.folder / "remit.db")) as db, db:
        db.execute("UPDATE calls SET code = '<script>alert(1)</script>\u202e\x1b[2J' WHERE state = 'denied'")
    ran = remit("report", "--from", "2020-01-01")
    assert ran.code == 1
    page = Page(ran.out)
    assert "script" not in page.tags
    assert not {"\u202e", "\x1b"} & set(ran.out)
    assert "Not everything is as it was written" in " ".join(page.texts)


@pytest.mark.parametrize("lost", ["gone", "unreadable"])
def test_a_report_without_the_master_key_finds_what_verification_finds(
    remit: Terminal, tmp_path: Path, lost: str
) -> None:
    with closing(sqlite3.connect(remit.folder / "remit.db")) as db, db:
        db.execute("UPDATE payloads SET body = zeroblob(60) WHERE kind = 'arguments'")
    key = remit.folder / "remit.db.master-key"
    kept = key.rename(tmp_path / "kept")
    if lost == "unreadable":
        key.symlink_to(kept)  # of which no key is read, whoever asks
    verified, told = remit("audit", "verify", "--json"), remit("report", "--from", "2020-01-01", "--json")
    assert (verified.code, told.code) == (1, 1)
    findings = [f"{each['where']}: {each['what']}" for each in verified.json["findings"]]
    assert told.json["findings"] == findings
    assert findings[0].startswith(f"master key: {key} ")
    page = " ".join(Page(remit("report", "--from", "2020-01-01").out).texts)
    assert "Not everything is as it was written, or can be verified: 1 found." in page
    assert findings[0] in page


def test_a_report_on_a_record_that_is_empty_is_sound(tmp_path: Path) -> None:
    remit = a_place(tmp_path)
    assert remit("db", "upgrade").code == 0
    assert remit.json("report", "--from", "2020-01-01")["findings"] == []


def test_a_report_says_who_acted_on_what_and_why(remit: Terminal, story: Story) -> None:
    remit.json("switch", "on", "agent", "agent:support-bot", "--reason", "odd refunds", "--as", "user:sue")
    remit.json("doubt", "resolve", story.in_doubt, "--happened", "--reason", "it is in their books")
    told = remit.json("report", "--from", "1h")
    acts = {row[1]: row[2:5] for each in told["sections"] if "acts" in each["title"] for row in each["rows"]}
    assert acts["switch.on"] == ["agent agent:support-bot", "user:sue", "odd refunds"]
    assert acts["call.resolved"] == ["succeeded", "user:sue", "it is in their books"]


def test_what_is_not_listed_is_counted(remit: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remit.reporting._LISTED_MAX", 2)
    for number in range(2):
        remit.json("audit", "hold", "add", "--run", f"r-{number}", "--reason", "case 7")
    (acts,) = (each for each in remit.json("report", "--from", "1h")["sections"] if "acts" in each["title"])
    assert [row[1] for row in acts["rows"]] == ["policy.activated", "audit.held"]
    assert acts["more"] == 1
    assert "And 1 more, which are not listed." in remit("report", "--from", "1h").out


def test_what_goes_for_its_age_is_no_act_of_people(tmp_path: Path) -> None:
    anyio.run(an_old_life, tmp_path)
    shell = a_place(tmp_path, audit=SHORT)
    assert shell.json("audit", "retain")["payloads"] == 4
    assert shell("audit", "erase", "--subject", "user:ann", "--yes").code == 0
    (acts,) = (each for each in shell.json("report", "--from", "1h")["sections"] if "acts" in each["title"])
    assert [row[1:4] for row in acts["rows"]] == [["audit.erased", "user:ann", "user:bea"]]


def test_a_report_tells_the_undos_that_were_refused_apart_from_the_calls_of_agents(remit: Terminal) -> None:
    assert remit("undo", anyio.run(refunded_twice, remit.config)).code == 1
    sections = {each["title"]: each["rows"] for each in remit.json("report", "--from", "1h")["sections"]}
    refused = sections["Why calls were refused"]
    assert ["undo", "undo_conflict", 1] in refused
    denied = sum(row[3] for row in sections["Agents"])
    assert denied == sum(count for kind, _, count in refused if kind == "call") == 1


def test_a_tenant_that_the_policy_names_and_in_which_nothing_happened_has_a_report(remit: Terminal) -> None:
    with (remit.folder / "policy.csv").open("a") as policy:
        policy.write("g, user:tom, role:refund_supervisor, globex\n")
    assert remit.json("report", "--from", "1h", "--tenant", "globex")["sections"][0]["rows"] == []
    assert remit.json("report", "--from", "1h", "--tenant", "acme")["sections"][0]["rows"] != []


def test_an_export_of_a_tenant_that_nobody_knows_is_refused(remit: Terminal, tmp_path: Path) -> None:
    file, store = tmp_path / "events.jsonl", str(remit.folder / "remit.db")
    export = ("audit", "export", "-o", str(file), "--tenant")
    typo = remit(*export, "acne")
    assert (typo.code, "of a tenant acne, and the policy names none: there are acme" in typo.err) == (1, True)
    typo = remit(*export, "acne", "--db", store)
    assert (typo.code, typo.err) == (1, "remit: nothing is on record of a tenant acne\n")
    assert not file.exists()
    assert remit(*export, "acme", "--db", store).code == 0


def test_a_report_of_no_time_or_tenant_is_refused_and_one_that_fails_leaves_no_file(
    remit: Terminal, tmp_path: Path
) -> None:
    file = str(tmp_path / "report.html")
    backwards = remit("report", "--from", "1h", "--to", "2h", "-o", file)
    assert (backwards.code, "--from must be before --to" in backwards.err) == (64, True)
    typo = remit("report", "--from", "1h", "--tenant", "acne", "-o", file)
    assert (typo.code, "of a tenant acne, and the policy names none: there are acme" in typo.err) == (1, True)
    (remit.folder / "remit.db").rename(remit.folder / "away.db")
    assert remit("report", "--from", "1h", "-o", file).code == 1
    (remit.folder / "away.db").rename(remit.folder / "remit.db")
    assert remit("report", "--from", "1h", "-o", file).code == 0
