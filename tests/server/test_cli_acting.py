"""What people do at the command line: decide, take back, resolve, stop, and hand out keys."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from tests.server.acme import (
    REPOSITORY,
    Story,
    Terminal,
    left_in_doubt,
    made,
    refund_of,
    refunded_twice,
    serving,
)
from tests.server.builders import by_hand

from remit.model import Done, Outcome, Refused, Scheduled
from remit.pipeline import Services

#: Its time may not be over yet when a test says so.
NOT_HAPPENED = ("--did-not-happen", "--reason", "not in the bank", "--force")
FORTY = refund_of("ord-1002", 40000, reason="broken \u202eevil\u202c leg\u200b \x1b[2J")


def outcome_of(remit: Terminal, tool: str, arguments: dict[str, Any], **more: Any) -> Outcome:
    """What a server on these records answers to a call now."""

    async def run() -> Outcome:
        async with serving(remit.config) as on:
            return await made(on, tool, arguments, **more)

    return anyio.run(run)


def state(remit: Terminal, call_id: str) -> str:
    return remit.json("calls", "show", call_id)["call"]["state"]


def order_status(remit: Terminal, order: str) -> str:
    with closing(sqlite3.connect(remit.folder / "acme.db")) as db:
        return db.execute("SELECT status FROM orders WHERE order_id = ?", (order,)).fetchone()[0]


def test_an_approved_call_runs_when_it_is_sent_again(remit: Terminal, story: Story) -> None:
    said = remit("approvals", "approve", story.approval[:18], "--yes", "--comment", "seen the photo")
    assert said.code == 0
    assert said.out == f"Approved by user:sue. Call {story.pending} runs when the agent sends it again.\n"
    outcome = outcome_of(remit, "acme.refund", FORTY)
    assert isinstance(outcome, Done)
    assert outcome.call_id == story.pending
    told = remit("calls", "show", story.pending).out
    assert f"{story.approval} used, 1 needed" in told
    assert "user:sue: approve at " in told
    assert "seen the photo" in told
    assert remit("audit", "verify").code == 0
    assert remit("budget", "verify").code == 0


def test_at_a_terminal_the_request_is_shown_before_it_is_approved(remit: Terminal, story: Story) -> None:
    refrained = remit("approvals", "approve", story.approval, typed="n\n")
    assert refrained.code == 130
    assert "40000 eur_minor" in refrained.out
    assert "the agent says" in refrained.out
    assert remit.json("approvals", "show", story.approval)["state"] == "pending"
    assert remit("approvals", "approve", story.approval, typed="y\n").code == 0
    assert remit.json("approvals", "show", story.approval)["state"] == "approved"


@pytest.mark.parametrize(
    "words",
    [
        ("approvals", "approve", "{story.approval}"),
        ("rollback", "--call", "{story.refund}"),
        ("audit", "erase", "--subject", "user:alice"),
    ],
    ids=lambda words: words[0],
)
def test_where_nobody_can_be_asked_nothing_is_done_that_would_ask(
    remit: Terminal, story: Story, words: tuple[str, ...]
) -> None:
    words = tuple(word.format(story=story) for word in words)
    before = remit.json("calls", "list"), remit.json("approvals", "list")
    for more, why in ((), "without a terminal"), (("--json",), "with --json"):
        refused = remit(*words, *more)
        assert (refused.code, refused.out) == (64, "")
        assert f"{why} nobody can be asked: say " in refused.err
        assert "--yes to go through with it" in refused.err
    assert (remit.json("calls", "list"), remit.json("approvals", "list")) == before
    assert remit(*words, "--yes").code != 64


def test_a_refused_call_stays_refused(remit: Terminal, story: Story) -> None:
    decided = remit.json("approvals", "deny", story.approval, "--comment", "no")
    assert decided == {
        "approval_id": story.approval,
        "call_id": story.pending,
        "state": "rejected",
        "by": "user:sue",
    }
    assert isinstance(outcome_of(remit, "acme.refund", FORTY), Refused)
    assert state(remit, story.pending) == "rejected"


def test_nobody_votes_twice(remit: Terminal, story: Story) -> None:
    remit("approvals", "approve", story.approval, "--yes")
    again = remit("approvals", "approve", story.approval, "--yes")
    assert (again.code, again.err) == (1, "remit: this approval is approved: it takes no more votes\n")


@pytest.mark.parametrize(
    ("who", "why"),
    [
        ("user:alice", "who asked cannot approve: somebody else must decide this"),
        ("user:mallory", "policy does not let user:mallory decide this: an approver of acme.refund must"),
    ],
)
def test_who_may_not_decide_is_told_why(remit: Terminal, story: Story, who: str, why: str) -> None:
    refused = remit("approvals", "approve", story.approval, "--yes", "--as", who)
    assert (refused.code, refused.err) == (1, f"remit: {why}\n")
    assert remit.json("approvals", "show", story.approval)["votes"] == []


def test_a_request_of_another_tenant_is_not_for_this_person(remit: Terminal, story: Story) -> None:
    text = remit.config.read_text()
    remit.config.write_text(text.replace("cli: {tenant: acme,", "cli: {tenant: other,"))
    refused = remit("approvals", "approve", story.approval, "--yes")
    assert refused.code == 1
    assert "this request belongs to tenant acme, and you act in other" in refused.err


def test_somebody_must_be_named(remit: Terminal, story: Story) -> None:
    text = remit.config.read_text()
    remit.config.write_text(text.replace("  cli: {tenant: acme, user: user:sue}\n", ""))
    unnamed = remit("approvals", "approve", story.approval, "--yes")
    assert unnamed.code == 64
    assert "say --as user:you" in unnamed.err
    assert remit("approvals", "approve", story.approval, "--yes", "--as", "user:sue").code == 0


def test_a_call_is_taken_back_and_the_world_shows_it(remit: Terminal, story: Story) -> None:
    assert order_status(remit, "ord-1001") == "refunded"
    ended = remit.json("undo", story.refund)
    assert ended["ok"], ended
    assert ended["state"] == "done"
    assert order_status(remit, "ord-1001") == "paid"
    record = remit.json("calls", "show", ended["by_call"])["call"]
    assert (record["agent"], record["user"], record["auth"]) == ("agent:remit-cli", "user:sue", "local")
    assert remit("audit", "verify").code == 0


def test_a_call_is_taken_back_once(remit: Terminal, story: Story) -> None:
    assert remit("undo", story.refund).out == "Undone.\n"
    again = remit("undo", story.refund)
    assert (again.code, again.out) == (
        1,
        "The undo of that call is already done: it runs at most once.\n",
    )


def test_a_dry_run_says_what_an_undo_would_do_and_does_nothing(remit: Terminal, story: Story) -> None:
    planned = remit("undo", story.refund, "--dry-run")
    assert planned.code == 0
    assert planned.out.startswith(
        'Would call acme.cancel_refund {"refund_id": "ref-2001"}.\n cost  1 calls\n'
    )
    assert "sure  as far as it is declared" in planned.out
    told = remit.json("undo", story.refund, "--dry-run")
    assert (told["confidence"], told["best_effort"], told["residue"]) == ("claimed", False, None)
    assert order_status(remit, "ord-1001") == "refunded"
    assert remit.json("calls", "show", story.refund)["undo"]["state"] == "ready"
    assert len(remit.json("calls", "list")) == 5


def test_a_dry_run_meets_the_same_obstacle_as_the_undo(remit: Terminal, story: Story) -> None:
    remit("undo", story.refund)
    planned = remit("undo", story.refund, "--dry-run", "--json")
    assert planned.code == 1
    assert planned.json["code"] == "undo_used"


def test_who_may_not_undo_is_refused(remit: Terminal, story: Story) -> None:
    refused = remit("undo", story.refund, "--as", "user:mallory")
    assert refused.code == 1
    assert "Policy does not let you undo this call." in refused.out
    assert order_status(remit, "ord-1001") == "refunded"


def test_an_undo_that_people_must_agree_to_waits_for_them(remit: Terminal, story: Story) -> None:
    with (remit.folder / "policy.csv").open("a") as policy:
        policy.write(
            "p2, *, acme, acme.refund, undo, r.args.amount_minor > 1000, approvals=1\n"
            "g, user:tom, role:refund_supervisor, acme\n"
        )
    planned = remit("undo", story.refund, "--dry-run")
    assert planned.code == 1
    assert "first  1 must agree (remit approvals)\n" in planned.out
    waits = remit("undo", story.refund)
    assert waits.code == 1
    assert waits.out.startswith("Waits for people to agree: request ")
    (request,) = [each for each in remit.json("approvals", "list") if each["id"] != story.approval]
    shown = remit("approvals", "show", request["id"]).out
    assert f"takes back  acme.refund, call {story.refund}" in shown
    assert '"amount_minor": 8000' in shown
    own = remit("approvals", "approve", request["id"], "--yes")
    assert (own.code, own.err) == (1, "remit: who asked cannot approve: somebody else must decide this\n")
    agreed = remit("approvals", "approve", request["id"], "--yes", "--as", "user:tom")
    assert agreed.out == (
        f"Approved by user:tom. Call {story.refund} is taken back when who asked for that does so again.\n"
    )
    assert order_status(remit, "ord-1001") == "refunded"
    assert remit("undo", story.refund).out == "Undone.\n"
    assert order_status(remit, "ord-1001") == "paid"
    assert remit("audit", "verify").code == remit("budget", "verify").code == 0


def test_people_may_refuse_an_undo(remit: Terminal, story: Story) -> None:
    with (remit.folder / "policy.csv").open("a") as policy:
        policy.write("p2, user:sue, acme, acme.refund, undo, 1 == 1, approvals=1\n")
        policy.write("g, user:tom, role:refund_supervisor, acme\n")
    remit("undo", story.refund)
    (request,) = [each for each in remit.json("approvals", "list") if each["id"] != story.approval]
    refused = remit("approvals", "deny", request["id"], "--as", "user:tom")
    assert refused.out == f"Refused by user:tom. Call {story.refund} is not taken back.\n"
    assert "refused it" in remit("undo", story.refund).out
    assert order_status(remit, "ord-1001") == "refunded"


def test_a_conflict_needs_force(remit: Terminal) -> None:
    call = anyio.run(refunded_twice, remit.config)
    planned = remit("undo", call, "--dry-run")
    assert planned.code == 1
    assert "In the way: call " in planned.out
    told = remit("undo", call, "--dry-run", "--json").json
    assert (told["state"], told["code"], len(told["in_the_way"])) == ("conflict", "undo_conflict", 1)
    (later,) = told["in_the_way"]
    assert f"force  overwrites call {later}, and whatever" in remit("undo", call, "--dry-run", "--force").out
    refused = remit("undo", call)
    assert refused.code == 1
    assert "changed the same thing since" in refused.out
    assert remit("undo", call, "--force").out == "Undone.\n"


def test_a_read_has_no_way_back(remit: Terminal, story: Story) -> None:
    refused = remit("undo", story.read)
    assert (refused.code, refused.err) == (
        1,
        "remit: this call only read: there is nothing to take back\n",
    )


def test_a_try_that_cannot_be_is_told_by_the_state_of_the_call_and_is_on_record(
    remit: Terminal, story: Story
) -> None:
    remit("undo", story.refund)
    tried = {
        story.pending: "waits for people to agree",
        story.denied: "was refused and never made",
        story.in_doubt: "nobody knows what this call did",
        story.read: "only read",
        "nope": "there is no call nope",
    }
    for call, reason in tried.items():
        assert remit("undo", call, "--dry-run").code == 1
        refused = remit("undo", call)
        assert (refused.code, reason in refused.err) == (1, True), refused
    with closing(sqlite3.connect(remit.folder / "remit.db")) as db:
        rows = db.execute("SELECT body FROM events WHERE kind = 'undo.refused' ORDER BY seq").fetchall()
    noted = [json.loads(body) for (body,) in rows]
    assert [event["wanted"] for event in noted] == list(tried)
    assert all(said in event["reason"] for said, event in zip(tried.values(), noted, strict=True))
    assert {event["user"] for event in noted} == {"user:sue"}


def test_an_undo_of_what_is_erased_is_refused_and_on_record(remit: Terminal, story: Story) -> None:
    assert remit("approvals", "deny", story.approval, "--comment", "no").code == 0
    assert remit("doubt", "resolve", story.in_doubt, *NOT_HAPPENED).code == 0
    assert remit("audit", "erase", "--subject", "user:alice", "--reason", "asked", "--yes").code == 0
    refused = remit("undo", story.refund)
    assert (refused.code, "is erased" in refused.err) == (1, True), refused
    with closing(sqlite3.connect(remit.folder / "remit.db")) as db:
        ((body,),) = db.execute("SELECT body FROM events WHERE kind = 'undo.refused'").fetchall()
    assert "is erased" in json.loads(body)["reason"]


def test_a_dry_run_of_what_is_held_back_says_that_it_is_called_off(remit: Terminal) -> None:
    held = "  acme.open_ticket: {effect: deferred, hold_back: 10m}\nbudgets:\n"
    remit.config.write_text(remit.config.read_text().replace("budgets:\n", held))

    async def ticket() -> Outcome:
        async with serving(remit.config) as on:
            arguments = {"customer_id": "cus-101", "subject": "Late", "body": "It has not come."}
            return await made(on, "acme.open_ticket", arguments)

    waits = anyio.run(ticket)
    assert isinstance(waits, Scheduled)
    planned = remit("undo", waits.call_id, "--dry-run").out
    assert "Would call off acme.open_ticket: it has not been sent" in planned
    assert all(word not in planned for word in ("Would call acme", "cost", "prove"))
    told = remit.json("undo", waits.call_id, "--dry-run")
    assert (told["calls_off"], told["tool"], told["cost"]) == (True, None, {})
    assert remit("undo", waits.call_id).out == "Undone.\n"


def test_a_call_that_a_dead_process_left_is_told_of_until_a_server_concludes_it(
    remit: Terminal, story: Story
) -> None:
    path = remit.folder / "remit.db"
    by_hand(path, "UPDATE calls SET state = 'dispatched', deadline_us = 1 WHERE state = 'in_doubt'")
    told = remit("doubt", "list")
    assert told.out == "No call is in doubt.\n"
    assert "1 calls more were sent, and have no end on record" in told.err
    by_hand(path, "UPDATE calls SET deadline_us = 9007199254740992 WHERE state = 'dispatched'")
    assert remit("doubt", "list").err == ""


def test_a_doubt_is_resolved_as_not_happened_and_its_budget_is_free_again(
    remit: Terminal, story: Story
) -> None:
    assert [call["id"] for call in remit.json("doubt", "list")] == [story.in_doubt]
    settled = remit("doubt", "resolve", story.in_doubt, *NOT_HAPPENED)
    assert settled.out == "acme.refund: recorded as failed.\n"
    told = remit("calls", "show", story.in_doubt).out
    assert "user:sue says that it did not happen" in told
    assert "not in the bank" in told
    assert "0 of 900 held (voided)" in told
    assert remit("doubt", "list").out == "No call is in doubt.\n"
    assert remit("audit", "verify").code == remit("budget", "verify").code == 0
    assert isinstance(outcome_of(remit, "acme.refund", refund_of("ord-1002", 900)), Done)


def test_nobody_says_that_a_call_did_not_happen_while_it_still_may_but_who_insists(remit: Terminal) -> None:
    remit.config.write_text(remit.config.read_text() + "limits: {call_timeout: 1h}\n")

    async def lost() -> str:
        async with serving(remit.config) as on:
            return await left_in_doubt(on, refund_of("ord-1002", 950))

    call_id = anyio.run(lost)
    told = remit.json("calls", "show", call_id)["call"]
    said = remit("doubt", "resolve", call_id, *NOT_HAPPENED[:-1])
    until = datetime.fromtimestamp(told["deadline_us"] // 1_000_000 + 6, UTC)
    assert (said.code, state(remit, call_id)) == (1, "in_doubt")
    assert f"until {until:%Y-%m-%d %H:%M:%SZ} this call may still take effect" in said.err
    assert remit("doubt", "resolve", call_id, *NOT_HAPPENED).code == 0
    assert (
        "it did not happen, before its time was over: not in the bank" in remit("calls", "show", call_id).out
    )
    assert '"forced":true' in remit("audit", "export").out


def test_a_doubt_is_resolved_as_happened_and_its_budget_is_spent(remit: Terminal, story: Story) -> None:
    assert remit.json("doubt", "resolve", story.in_doubt, "--happened", "--reason", "seen") == {
        "call_id": story.in_doubt,
        "state": "succeeded",
        "by": "user:sue",
    }
    assert "900 of 900 held (posted)" in remit("calls", "show", story.in_doubt).out
    assert remit("audit", "verify").code == remit("budget", "verify").code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("doubt", "resolve", "01a2", "--happened"),
        ("audit", "hold", "add", "--run", "r-1"),
        ("audit", "hold", "release", "ffff"),
        ("switch", "on", "all"),
    ],
)
def test_who_must_say_why_says_something(remit: Terminal, words: tuple[str, ...]) -> None:
    refused = remit(*words, "--reason", " ")
    assert (refused.code, "it says nothing" in refused.err) == (64, True)


def test_only_a_doubt_can_be_resolved(remit: Terminal, story: Story) -> None:
    refused = remit("doubt", "resolve", story.refund, "--happened", "--reason", "x")
    assert (refused.code, refused.err) == (1, "remit: this call is not in doubt: it is succeeded\n")
    assert remit("doubt", "resolve", story.in_doubt, "--reason", "x").code == 64


def test_a_switch_stops_what_it_covers_on_a_running_server_until_it_is_released(remit: Terminal) -> None:
    scopes = {
        "all": "",
        "tenant": "acme",
        "agent": "agent:support-bot",
        "user": "user:alice",
        "run": "ticket-7",
        "tool": "acme.list_orders",
        "source": "acme",
    }

    async def story() -> None:
        async with serving(remit.config) as on:
            for scope, target in scopes.items():
                words = [scope, *([target] if target else [])]
                await to_thread.run_sync(remit, "switch", "on", *words, "--reason", "odd numbers")
                (row,) = (await to_thread.run_sync(remit, "switch", "list", "--json")).json
                assert (row["scope"], row["target"]) == (scope, target)
                assert (row["reason"], row["set_by"]) == ("odd numbers", "user:sue")
                stopped = await made(on, "acme.list_orders", {})
                assert isinstance(stopped, Refused)
                assert stopped.verdict.code == "stopped"
                await to_thread.run_sync(remit, "switch", "off", *words, "--reason", "explained")
                assert await until_done(on)

    anyio.run(story)


async def until_done(on: Services) -> bool:
    """A decision may be made on switches as they were a quarter of a second ago, never an admission."""
    with anyio.fail_after(5):
        while not isinstance(await made(on, "acme.list_orders", {}), Done):  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.02)
    return True


def test_safe_mode_lets_reads_through_and_nothing_else(remit: Terminal) -> None:
    assert remit("safe", "on", "--reason", "night").out == "Safe mode is on.\n"
    assert remit("safe", "on", "--reason", "night").out == "Safe mode was already on.\n"

    async def story() -> None:
        async with serving(remit.config) as on:
            assert isinstance(await made(on, "acme.list_orders", {}), Done)
            stopped = await made(on, "acme.refund", refund_of("ord-1002", 100))
            assert isinstance(stopped, Refused)
            assert stopped.verdict.code == "safe_mode"

    anyio.run(story)
    assert remit("safe", "off", "--reason", "day").out == "Safe mode is off.\n"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("source", "amce"), "there is no source 'amce': the sources are acme"),
        (("tool", "amce.refund"), "no source exports 'amce.refund'"),
        (("agent", "support-bot"), "'support-bot' is not of the form agent:ID"),
        (("user", "agent:x"), "'agent:x' is not of the form user:ID"),
        (("all", "acme"), "`all` has no target"),
        (("tenant",), "every other scope needs one"),
        (("planet", "x"), "'planet' is not one of"),
    ],
)
def test_a_switch_that_would_cover_nothing_is_refused(
    remit: Terminal, words: tuple[str, ...], why: str
) -> None:
    refused = remit("switch", "on", *words, "--reason", "x")
    assert refused.code == 64
    assert why in refused.err
    assert remit("switch", "list").out == "No switch is on.\n"


def test_a_switch_works_while_the_policy_is_broken(remit: Terminal) -> None:
    (remit.folder / "policy.csv").write_text("p, nonsense\n")
    assert remit("switch", "on", "all", "--reason", "the policy is broken").code == 0
    assert len(remit.json("switch", "list")) == 1


def test_a_key_is_made_listed_and_revoked(remit: Terminal) -> None:
    made_key = remit.json(
        "agents", "key", "create", "--agent", "agent:support-bot", "--user", "user:alice", "--label", "ci"
    )
    assert made_key["key"].startswith(f"rk_{made_key['id']}_")
    (listed,) = remit.json("agents", "key", "list")
    assert (listed["id"], listed["label"], listed["revoked_us"]) == (made_key["id"], "ci", None)
    assert made_key["key"] not in json.dumps(listed)
    assert "digest" not in listed
    (agent,) = remit.json("agents", "list")
    assert (agent["agent"], agent["acts_for"], agent["keys"]) == ("agent:support-bot", ["user:alice"], 1)
    assert remit("agents", "key", "revoke", made_key["id"]).code == 0
    assert "revoked" in remit("agents", "key", "list").out
    assert remit.json("agents", "list")[0]["keys"] == 0
    assert remit("agents", "key", "revoke", made_key["id"]).code == 1


def test_agents_are_listed_before_anything_was_ever_called(tmp_path: Path) -> None:
    config = tmp_path / "remit.yaml"
    config.write_bytes((REPOSITORY / "configs/minimal/remit.yaml").read_bytes())
    (tmp_path / "policy.csv").write_bytes((REPOSITORY / "configs/minimal/policy.csv").read_bytes())
    (agent,) = Terminal(config).json("agents", "list")
    assert (agent["agent"], agent["tenant"], agent["last_seen_us"]) == ("agent:assistant", "home", None)


def test_registering_with_a_client_writes_its_file_and_takes_it_back(
    remit: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    printed = remit("install", "cursor", "--print")
    assert printed.code == 0
    assert '"mcpServers"' in printed.out
    file = tmp_path / ".cursor" / "mcp.json"
    shown = remit.json("install", "cursor", "--print")
    assert shown["file"] == str(file)
    assert list(shown["entry"]["mcpServers"]) == ["remit"]
    assert not file.exists()
    assert remit("install", "cursor").out == f"added: {file}\n"
    entry = json.loads(file.read_text())["mcpServers"]["remit"]
    assert entry["args"][-4:] == ["serve", "--stdio", "--config", str(remit.config)]
    assert remit("uninstall", "cursor").out.startswith(f"removed: {file}\n")
    assert json.loads(file.read_text())["mcpServers"] == {}
    again = remit.json("uninstall", "cursor")
    assert again == {"change": "unchanged", "file": str(file), "backup": None}


def test_a_broken_configuration_is_not_registered(remit: Terminal) -> None:
    remit.config.write_text("version: 2\n")
    refused = remit("install", "cursor", "--print")
    assert refused.code == 1
    assert f"{remit.config}:1:1: version: 2 is not a version" in refused.err


def test_what_did_not_happen_cannot_be_taken_back(remit: Terminal, story: Story) -> None:
    remit("doubt", "resolve", story.in_doubt, *NOT_HAPPENED)
    assert remit.json("calls", "show", story.in_doubt)["undo"]["state"] == "impossible"
    assert remit("undo", story.in_doubt).code == 1
