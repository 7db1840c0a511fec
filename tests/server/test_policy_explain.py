"""`remit policy explain`: what it says of recorded calls, read and approved by people."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import anyio
import pytest
from tests.server import acme
from tests.server.acme import Story, Terminal, a_place
from tests.server.approved import approved

from remit.model import Done, Pending, Refused

Tmp = pytest.TempPathFactory


@pytest.mark.parametrize(
    ("call", "name"), [("refund", "execute"), ("pending", "approve"), ("denied", "deny")]
)
def test_a_refund_is_explained(remit: Terminal, story: Story, call: str, name: str) -> None:
    told = remit("policy", "explain", getattr(story, call))
    assert (told.code, told.err) == (0, "")
    approved(f"refund_{name}", told.out)


@pytest.fixture(scope="module")
def limited(tmp_path_factory: Tmp) -> Terminal:
    """Acme where the agent may more than the person for whom it acts, and two calls that show it."""
    config = a_place(tmp_path_factory.mktemp("limited"))
    rows = (
        "p, agent:support-bot, acme, acme.refund, execute, r.args.amount_minor <= 50000 && "
        "r.args.amount_minor > 0, allow\n"
        "p2, role:support, acme, acme.refund, recommend, r.args.amount_minor > 30000, approvals=1\n"
        "p2, role:support, acme, acme.refund, *, 1 == 1, redact=args.reason\n"
        "p, *, acme, acme.cancel_refund, *, r.args.refund_id == 'ref-999', deny\n"
    )
    with (config.parent / "policy.csv").open("a") as file:
        file.write(rows)
    remit = Terminal(config)

    async def play() -> None:
        async with acme.serving(config) as on:
            asked = await acme.made(on, "acme.refund", acme.refund_of("ord-1001", 40000))
            assert isinstance(asked, Pending)
            frozen = await acme.made(on, "acme.cancel_refund", {"refund_id": "ref-999"})
            assert isinstance(frozen, Refused)
            read = await acme.made(on, "acme.list_orders", {})
            assert isinstance(read, Done)

    anyio.run(play)
    return remit


def newest(remit: Terminal, tool: str) -> str:
    return remit.json("calls", "list", "--tool", tool)[0]["id"]


def test_a_refund_that_is_limited_by_the_user_is_explained(limited: Terminal) -> None:
    told = limited("policy", "explain", newest(limited, "acme.refund"))
    approved("refund_limited_by_user", told.out)


def test_a_prohibition_is_explained(limited: Terminal) -> None:
    approved("cancel_forbidden", limited("policy", "explain", newest(limited, "acme.cancel_refund")).out)


def test_programs_are_told_the_same(remit: Terminal, story: Story) -> None:
    told = remit.json("policy", "explain", story.denied)
    assert (told["verdict"], told["code"], told["limited_by"]) == ("deny", "no_rule", "both")
    assert [(near["act"], near["parts"]) for near in told["nearly"][:2]] == 2 * [
        (
            "recommend",
            [
                {
                    "text": "the amount in cents (args.amount_minor = 500,000) is at most 100,000",
                    "holds": False,
                    "error": "",
                }
            ],
        )
    ]
    assert [side["subject"] for side in told["sides"]] == ["agent:support-bot", "user:alice"]


def test_what_todays_policy_would_say_is_told(remit: Terminal, story: Story) -> None:
    file = remit.folder / "policy.csv"
    file.write_text(file.read_text().replace("amount_minor <= 10000,", "amount_minor <= 50000,"))
    told = remit("policy", "explain", story.pending).out
    assert "amount_minor = 40,000) is at most 10,000" in told, "explained by the policy that decided"
    assert "would allow it (allowed)." in told
    same = remit("policy", "explain", story.denied).out
    assert "would decide the same." in same


def test_without_the_policy_that_decided_todays_explains_and_says_so(remit: Terminal, story: Story) -> None:
    file = remit.folder / "policy.csv"
    file.write_text(file.read_text().replace("amount_minor <= 10000,", "amount_minor <= 50000,"))
    with closing(sqlite3.connect(remit.folder / "remit.db")) as db, db:
        db.execute("DELETE FROM policy_versions")
    told = remit("policy", "explain", story.pending).out
    assert "The policy that decided cannot be read any more" in told
    assert "amount_minor = 40,000) is at most 50,000" in told


def test_a_call_that_was_never_made_is_told(remit: Terminal) -> None:
    assert "there is no call 0f" in remit("policy", "explain", "0f").err
