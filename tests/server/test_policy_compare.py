"""`remit policy diff` and `replay`: what another policy would change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.server.acme import REPOSITORY, Story, Terminal, a_place


@pytest.fixture
def acme(tmp_path: Path) -> Terminal:
    return Terminal(a_place(tmp_path))


def changed(acme: Terminal, *replaced: tuple[str, str], more: str = "") -> str:
    """A candidate: Acme's policy with some text replaced, and more rows."""
    text = (REPOSITORY / "configs/acme/policy.csv").read_text()
    for before, after in replaced:
        assert before in text
        text = text.replace(before, after)
    path = acme.folder / "candidate.csv"
    path.write_text(text + more)
    return str(path)


LOWER = ("amount_minor <= 10000,", "amount_minor <= 5000,")
NO_MAIL = ("p, role:support, acme, acme.send_mail, recommend, 1 == 1, allow\n", "")


def reach(acme: Terminal, before: str, after: str) -> dict[tuple[str, str], tuple[str, str, str]]:
    found = acme("policy", "diff", before, after, "--json").json["reach"]
    return {(each["who"], each["tool"]): (each["before"], each["after"], each["change"]) for each in found}


PAIR = "agent:support-bot for user:alice"


def test_a_policy_that_says_the_same_differs_in_nothing(acme: Terminal) -> None:
    same = acme("policy", "diff", "current", changed(acme))
    assert (same.code, same.out) == (0, "Both say the same.\n")


def test_rows_and_reach_are_told_and_a_wider_policy_fails(acme: Terminal) -> None:
    candidate = changed(acme, LOWER, NO_MAIL)
    narrower = acme("policy", "diff", "current", candidate)
    assert "- p, role:refund_requester, acme, acme.refund, execute," in narrower.out
    assert "+ p, role:refund_requester, acme, acme.refund, execute," in narrower.out
    assert reach(acme, "current", candidate) == {
        (PAIR, "acme.refund"): ("execute", "execute", "different"),
        (PAIR, "acme.send_mail"): ("execute", "execute", "narrower"),
    }
    assert narrower.code == 1, "a condition that differs may be wider"


@pytest.mark.parametrize(
    ("replaced", "more", "key", "told", "code"),
    [
        ((NO_MAIL,), "", (PAIR, "acme.send_mail"), ("execute", "execute", "narrower"), 0),
        (
            (),
            "p, role:support, acme, acme.wipe, advise, 1 == 1, allow\n",
            (PAIR, "acme.wipe"),
            ("deny", "advise", "wider"),
            1,
        ),
        (
            (),
            "p, agent:*, acme, time.*, *, 1 == 1, deny\n",
            (PAIR, "time.* (any other)"),
            ("execute", "deny", "narrower"),
            0,
        ),
        (
            (),
            "p, role:support, acme, acme.send_mail, approve, 1 == 1, allow\n",
            ("user:alice", "acme.send_mail"),
            ("no approve", "approve", "wider"),
            1,
        ),
        (
            (("g3, agent:support-bot, user:alice, acme", "g3, agent:support-bot, user:sue, acme"),),
            "",
            ("agent:support-bot for user:sue", "acme.get_order"),
            ("deny", "execute", "wider"),
            1,
        ),
    ],
)
def test_who_gains_or_loses_what_is_told(
    acme: Terminal,
    replaced: tuple[Any, ...],
    more: str,
    key: tuple[str, str],
    told: tuple[str, str, str],
    code: int,
) -> None:
    candidate = changed(acme, *replaced, more=more)
    assert reach(acme, "current", candidate)[key] == told
    assert acme("policy", "diff", "current", candidate).code == code


def test_what_is_wider_one_way_is_narrower_the_other(acme: Terminal) -> None:
    candidate = changed(acme, more="p, role:support, acme, acme.wipe, advise, 1 == 1, allow\n")
    there, back = reach(acme, "current", candidate), reach(acme, candidate, "current")
    assert there == {(PAIR, "acme.wipe"): ("deny", "advise", "wider")}
    assert back == {(PAIR, "acme.wipe"): ("advise", "deny", "narrower")}


def test_a_policy_is_named_by_file_folder_configuration_or_version(acme: Terminal) -> None:
    version = acme.json("policy", "check")["version"]
    folder = acme.folder / "parts"
    folder.mkdir()
    (folder / "a.csv").write_bytes((acme.folder / "policy.csv").read_bytes())
    for named in (str(folder), str(acme.config), version[:12], str(acme.folder / "policy.csv")):
        assert acme("policy", "diff", "current", named).out == "Both say the same.\n"
    (folder / "a.csv").unlink()
    assert "there is no .csv file" in acme("policy", "diff", "current", str(folder)).err
    assert "no policy version 0123456789 is kept" in acme("policy", "diff", "current", "0123456789").err
    assert "there is no such file or folder" in acme("policy", "diff", "current", "nothing.csv").err


def test_recorded_calls_are_decided_again_and_grouped_by_rule(remit: Terminal, story: Story) -> None:
    told = remit("policy", "replay", "--policy", changed(remit, LOWER), "--json")
    assert told.code == 1
    (group,) = told.json["groups"]
    assert (group["before"], group["after"], group["count"]) == ("execute", "approve", 1)
    assert group["calls"] == [story.refund]
    assert [rule[0] for rule in group["rules"]] == ["-", "+"]
    assert "amount_minor <= 100000" in group["rules"][1]
    said = remit("policy", "replay", "--policy", changed(remit, LOWER)).out
    assert "1 x execute -> approve" in said
    assert said.endswith("5 calls decided again, 1 would be decided otherwise.\n")


def test_replay_counts_a_duty_that_is_added(remit: Terminal, story: Story) -> None:
    more = "p2, role:support, acme, acme.refund, *, 1 == 1, redact=args.reason\n"
    groups = remit("policy", "replay", "--policy", changed(remit, more=more), "--json").json["groups"]
    assert [(group["before"], group["after"], group["count"]) for group in groups] == [
        ("execute", "execute (redact=args.reason)", 2),
        ("approve", "approve (redact=args.reason)", 1),
    ]


def test_replay_finds_nothing_where_nothing_changes_and_looks_no_further_back_than_asked(
    remit: Terminal,
) -> None:
    same = remit("policy", "replay", "--policy", "current")
    assert (same.code, same.out) == (0, "5 calls decided again, 0 would be decided otherwise.\n")
    later = remit("policy", "replay", "--policy", changed(remit, LOWER), "--since", "2100-01-01")
    assert later.out == "0 calls decided again, 0 would be decided otherwise.\n"


def test_replay_says_which_calls_it_could_not_ask_and_which_were_recorded_otherwise(
    remit: Terminal, story: Story
) -> None:
    remit.config.write_text(remit.config.read_text().replace("  acme:\n", "  acme:\n    prefix: shop\n"))
    said = remit("policy", "replay", "--policy", "current").out
    assert "5 could not be asked again" in said
    remit.config.write_text(remit.config.read_text().replace("    prefix: shop\n", ""))
    (remit.folder / "policy.csv").write_text(Path(changed(remit, LOWER)).read_text())
    assert (
        "1 were recorded otherwise than today's policy alone decides"
        in remit("policy", "replay", "--policy", "current").out
    )
