"""What people and programs read at the command line: calls, approvals, budgets, the audit log."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from tests.server.acme import Story, Terminal, a_place, made, serving
from tests.server.builders import a_remit
from tests.server.test_erasing import a_place as place_of

from remit import tables
from remit.chain import GENESIS
from remit.states import STATES


def test_calls_are_listed_newest_first(remit: Terminal, story: Story) -> None:
    listed = [call["id"] for call in remit.json("calls", "list")]
    assert listed == [story.in_doubt, story.denied, story.pending, story.refund, story.read]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--tool", "acme.list_orders"), ["read"]),
        (("--tool", "acme.list_*"), ["read"]),
        (("--verdict", "deny"), ["denied"]),
        (("--state", "awaiting_approval"), ["pending"]),
        (("--state", "in_doubt", "--agent", "agent:support-bot", "--user", "user:alice"), ["in_doubt"]),
        (("--run", "ticket-7", "--limit", "1"), ["in_doubt"]),
        (("--run", "ticket-8"), []),
        (("--tenant", "other"), []),
        (("--since", "1h", "--tool", "acme.list_orders"), ["read"]),
        (("--since", "2100-01-01"), []),
    ],
)
def test_calls_are_found_by_what_is_asked(
    remit: Terminal, story: Story, words: tuple[str, ...], expected: list[str]
) -> None:
    listed = [call["id"] for call in remit.json("calls", "list", *words)]
    assert listed == [getattr(story, name) for name in expected]


def test_the_table_of_calls_names_each_by_enough_of_its_id(remit: Terminal, story: Story) -> None:
    line = next(line for line in remit("calls", "list").out.splitlines() if story.refund[:18] in line)
    assert re.search(r"user:alice +acme\.refund +execute +succeeded +allowed +ready$", line)


def test_no_calls_are_said_in_words(remit: Terminal) -> None:
    assert remit("calls", "list", "--run", "ticket-8").out == "No such calls.\n"


def test_every_state_that_a_call_can_have_can_be_asked_for() -> None:
    assert STATES == tables.STATES


def test_one_screen_tells_the_whole_story_of_a_call(remit: Terminal, story: Story) -> None:
    remit("undo", story.refund)
    told = remit("calls", "show", story.refund[:18])
    assert told.code == 0
    for expected in (
        "acme.refund succeeded",
        f"call  {story.refund}",
        "agent:support-bot for user:alice, tenant acme, run ticket-7 (by api_key)",
        "acme.refund, reversible, source acme",
        "execute (allowed): Allowed by policy.",
        "policy.csv:83: p, role:refund_requester, acme, acme.refund, execute",
        '"amount_minor": 8000',
        '"refund_id": "ref-2001"',
        "agent:acme/agent:support-bot:eur_minor:total: 8000 of 8000 held (posted)",
        "way back  done\n",
        'acme.cancel_refund {"refund_id": "ref-2001"}',
        "touches  ord-1001",
        "acme.cancel_refund succeeded",
        "acme.get_refund succeeded",
        "call.dispatched (stream ",
        "call.succeeded (stream ",
    ):
        assert expected in told.out, told.out


def test_the_story_of_a_call_for_programs_holds_everything(remit: Terminal, story: Story) -> None:
    told = remit.json("calls", "show", story.refund)
    assert told["call"]["id"] == story.refund
    assert told["arguments"]["amount_minor"] == 8000
    assert told["result"]["structuredContent"]["refund_id"] == "ref-2001"
    assert told["undo"]["arguments"] == {"refund_id": "ref-2001"}
    assert [(move["kind"], move["amount"]) for move in told["moves"] if "eur" in move["account"]] == [
        ("hold", 8000),
        ("release", 8000),
        ("post", 8000),
    ]
    assert [event["kind"] for event in told["events"]] == ["call.dispatched", "call.succeeded"]


def test_results_of_reads_are_not_kept_and_that_is_said(remit: Terminal, story: Story) -> None:
    assert "result  not kept: only its digest is" in remit("calls", "show", story.read).out


def test_an_unknown_and_an_ambiguous_call_are_told_apart(remit: Terminal, story: Story) -> None:
    unknown = remit("calls", "show", "ffff")
    assert (unknown.code, unknown.err) == (
        1,
        "remit: there is no call ffff: `remit calls list` shows those there are\n",
    )
    several = remit("calls", "show", story.read[:4])
    assert several.err == f"remit: more than one call begins with {story.read[:4]}: give more of its id\n"


def test_tail_prints_the_newest_events_one_a_line(remit: Terminal, story: Story) -> None:
    lines = remit("calls", "tail", "-n", "2").out.splitlines()
    assert [line.split()[2] for line in lines] == ["call.in_doubt", "stream.closed"]
    events = [json.loads(line) for line in remit("calls", "tail", "--json").out.splitlines()]
    assert events[-2]["call_id"] == story.in_doubt


def test_tail_follows_what_happens(remit: Terminal) -> None:
    command = [sys.executable, "-m", "remit", "calls", "tail", "-n", "1", "--follow", "--json"]
    following = subprocess.Popen([*command, "-c", str(remit.config)], stdout=subprocess.PIPE, text=True)
    assert following.stdout is not None
    with following.stdout as lines:
        try:
            kinds = [json.loads(lines.readline())["kind"]]
            remit("switch", "on", "all", "--reason", "now")
            kinds += [json.loads(lines.readline())["kind"] for _ in range(2)]
        finally:
            following.send_signal(signal.SIGINT)
            code = following.wait(10)
    assert kinds == ["stream.closed", "stream.opened", "switch.on"]
    assert code == 130


def test_a_request_is_shown_with_the_agents_own_words_last(remit: Terminal, story: Story) -> None:
    told = remit("approvals", "show", story.approval).out
    names = re.findall(r"^ *([a-z]+(?: [a-z]+)*)  ", told, re.MULTILINE)
    assert names[:4] == ["request", "who", "what", "arguments"]
    assert names[-1] == "the agent says"
    assert "reversible  by acme.cancel_refund" in told
    assert "40000 eur_minor" in told
    assert "A person must approve this call first." in told


async def test_the_tail_for_programs_cannot_act_on_the_terminal_either(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        await remit.done("shop.look", {"thing": "pen"}, run="\u202eevil\x9b31m")
    told = place_of(tmp_path)("calls", "tail", "--json").out
    assert told.isascii()
    assert "\u202eevil\x9b31m" in {json.loads(line).get("run") for line in told.splitlines()}


@pytest.mark.parametrize("words", [("approvals", "list"), ("approvals", "show"), ("calls", "show")])
def test_what_an_agent_wrote_cannot_act_on_the_terminal(
    remit: Terminal, story: Story, words: tuple[str, ...]
) -> None:
    record = {"approvals": story.approval, "calls": story.pending}[words[0]]
    told = remit(*words, *([record] if words[1] == "show" else [])).out
    assert "\\u202eevil" in told
    assert "\\u001b[2J" in told or words[1] == "list"
    assert not re.search(r"[^\x20-\x7e\n─…]", told)


def test_a_name_that_an_agent_gave_cannot_act_on_the_terminal_when_it_is_repeated(remit: Terminal) -> None:
    told = remit("rollback", "run \u202eevil \x1b[2J", "--plan").err
    assert "there is no call in run run \\u202eevil" in told
    assert not {"\u202e", "\x1b"} & set(told)


def test_open_requests_are_listed_and_decided_ones_on_demand(remit: Terminal, story: Story) -> None:
    assert [row["id"] for row in remit.json("approvals", "list")] == [story.approval]
    remit("approvals", "deny", story.approval)
    assert remit("approvals", "list").out == "Nothing waits for a person.\n"
    assert [row["state"] for row in remit.json("approvals", "list", "--all")] == ["rejected"]


def test_balances_show_what_is_held_spent_and_left(remit: Terminal) -> None:
    accounts = {row["id"]: row for row in remit.json("budget", "show")}
    money = accounts["agent:acme/agent:support-bot:eur_minor:total"]
    assert (money["limit_amount"], money["held"], money["posted"]) == (1_000_000, 900, 8000)
    assert "991100" in remit("budget", "show", "--all").out


def test_untouched_records_verify(remit: Terminal) -> None:
    events, calls = remit.json("audit", "verify")["events"], 5
    assert remit("audit", "verify").out == f"{events} events and {calls} calls are as they were written.\n"
    assert remit("budget", "verify").out == "2 balances are the sums of their holds and adjustments.\n"
    assert remit("db", "check").code == 0


def test_a_database_that_no_server_has_run_on_is_an_empty_record(tmp_path: Path) -> None:
    remit = Terminal(a_place(tmp_path))
    assert remit("db", "upgrade").code == 0
    verified = remit("audit", "verify")
    assert (verified.code, verified.out) == (0, "The record is empty: no server has run on it yet.\n")
    assert remit.json("audit", "verify")["findings"] == []
    assert remit("audit", "verify", "--db", str(tmp_path / "remit.db")).out == verified.out
    assert not (tmp_path / "remit.db.master-key").exists()


@pytest.mark.parametrize(
    "emptied", ["", "DELETE FROM calls; DELETE FROM events; DELETE FROM incarnations"], ids=["", "emptied"]
)
def test_a_master_key_that_is_gone_is_told_whatever_else_is_gone(remit: Terminal, emptied: str) -> None:
    with closing(sqlite3.connect(remit.folder / "remit.db")) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        db.executescript(emptied)
    (remit.folder / "remit.db.master-key").unlink()
    verified = remit("audit", "verify")
    assert verified.code == 1
    assert "master-key is gone, and what calls carried cannot be opened without it" in verified.out


def test_a_record_is_verified_by_as_many_processes_as_are_asked_for(remit: Terminal) -> None:
    assert remit("audit", "verify", "--jobs", "2").out == remit("audit", "verify").out
    assert remit("audit", "verify", "--jobs", "0").code == 64


def test_a_copy_is_verified_without_a_configuration(remit: Terminal, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    copy.write_bytes((remit.folder / "remit.db").read_bytes())
    assert remit("audit", "verify", "--db", str(copy), "--config", "/nowhere").code == 0


def test_an_export_can_be_verified_by_itself(remit: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    assert remit("audit", "export", "--output", str(file)).code == 0
    heads: dict[str, str] = {}
    for line in file.read_text().splitlines():
        record = json.loads(line)
        stream = record["event"]["stream"]
        body = json.dumps(record["event"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        before = bytes.fromhex(heads.get(stream, GENESIS))
        heads[stream] = hashlib.sha256(before + body.encode()).hexdigest()
        assert heads[stream] == record["hash"]
    assert heads
    assert file.stat().st_mode & 0o777 == 0o600


def test_an_export_overwrites_nothing(remit: Terminal) -> None:
    refused = remit("audit", "export", "--output", str(remit.config))
    assert refused.code == 1
    assert "exists" in refused.err


def test_a_proof_that_cannot_be_made_leaves_no_file(remit: Terminal, story: Story, tmp_path: Path) -> None:
    file = tmp_path / "refund.proof"
    assert remit("audit", "prove", "ffff", "-o", str(file)).code == 1
    assert not file.exists()
    assert remit("audit", "checkpoint").code == 0
    assert remit("audit", "prove", story.refund, "-o", str(file)).code == 0


def test_an_export_can_begin_later(remit: Terminal) -> None:
    assert remit("audit", "export", "--since", "2100-01-01").out == ""
    whole = remit("audit", "export").out
    assert remit("audit", "export", "--since", "1d").out == whole


def test_reading_works_beside_a_server_that_writes(tmp_path: Path) -> None:
    remit = Terminal(a_place(tmp_path))

    async def story() -> None:
        async with serving(remit.config) as on:
            await made(on, "acme.list_orders", {})
            calls = await anyio.to_thread.run_sync(remit, "calls", "list", "--json")
            assert [call["state"] for call in calls.json] == ["succeeded"]
            verified = await anyio.to_thread.run_sync(remit, "audit", "verify")
            assert verified.code == 0, verified.out

    anyio.run(story)


def test_without_a_database_the_sentence_says_when_there_will_be_one(tmp_path: Path) -> None:
    ran = Terminal(a_place(tmp_path))("calls", "list")
    assert ran.code == 1
    assert "it is made when Remit first serves" in ran.err
