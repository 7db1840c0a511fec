"""`remit approvals`: the calls that wait for a person, everything one needs to decide, and the decision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import anyio
import click

from remit.cli.options import (
    APPROVAL,
    as_option,
    asks,
    config_option,
    json_option,
    limit_option,
    print_json,
    records,
)

if TYPE_CHECKING:
    from remit.records import ApprovalRecord


@click.group()
def approvals() -> None:
    """Calls that wait for a person."""


@approvals.command("list")
@config_option
@json_option
@limit_option
@click.option("--all", "every", is_flag=True, help="Also those that are decided.")
def list_(config_path: Path, as_json: bool, limit: int, every: bool) -> None:
    """List what waits for a person, the newest first."""
    from remit.cli.output import listing, short, until
    from remit.escaping import escaped_json
    from remit.ids import now_us

    now = now_us()
    with records(config_path) as found:
        rows = found.approvals(states=() if every else ("pending",), limit=limit)
    listing(
        [row for row in rows if every or row.expires_us > now],
        {
            "approval": lambda row: short(row.id),
            "agent": lambda row: row.agent,
            "for": lambda row: row.user,
            "tool": lambda row: row.tool,
            "arguments": lambda row: (
                escaped_json(row.shown["arguments"])[:80] if row.shown else "no longer kept"
            ),
            "votes": lambda row: f"{len(row.votes)} of {row.votes_needed}",
            "state": lambda row: row.state,
            "ends": lambda row: until(row.expires_us, now),
        },
        as_json=as_json,
        none="Nothing waits for a person.",
    )


@approvals.command()
@config_option
@json_option
@click.argument("approval_id", type=APPROVAL, metavar="APPROVAL")
def show(config_path: Path, as_json: bool, approval_id: str) -> None:
    """Show everything that an approval would bind, and then what the agent says about it."""

    with records(config_path) as found:
        request = found.approval(approval_id)
    if as_json:
        print_json(request)
    else:
        _show(request)


@approvals.command()
@config_option
@json_option
@as_option
@click.option("--comment", default="", help="Why; recorded with the vote.")
@click.option("--yes", is_flag=True, help="Do not show the request and ask first; needed without a terminal.")
@click.argument("approval_id", type=APPROVAL, metavar="APPROVAL")
def approve(
    config_path: Path, as_json: bool, as_user: str | None, comment: str, yes: bool, approval_id: str
) -> None:
    """Agree to exactly this call. It runs when the agent sends it again."""
    _answer(
        config_path,
        approval_id,
        "approve",
        as_user,
        comment,
        as_json=as_json,
        ask=asks(as_json=as_json, yes=yes),
    )


@approvals.command()
@config_option
@json_option
@as_option
@click.option("--comment", default="", help="Why; recorded with the vote.")
@click.argument("approval_id", type=APPROVAL, metavar="APPROVAL")
def deny(config_path: Path, as_json: bool, as_user: str | None, comment: str, approval_id: str) -> None:
    """Refuse this call. One refusal is enough, however many must agree."""
    _answer(config_path, approval_id, "reject", as_user, comment, as_json=as_json, ask=False)


def _answer(
    config_path: Path,
    approval_id: str,
    vote: Literal["approve", "reject"],
    as_user: str | None,
    comment: str,
    *,
    as_json: bool,
    ask: bool,
) -> None:
    from remit.approvals import NotAllowed, Request, answer
    from remit.cli.acting import person, services_of
    from remit.config_file import load
    from remit.errors import WrongState
    from remit.records import open_records

    loaded = load(config_path)
    with open_records(loaded.config.store.location, loaded.master_key) as found:
        record = found.approval(approval_id)
    if record.shown is None:
        raise WrongState("what this request shows is erased, so nobody can decide on it any more")
    who = person(loaded, as_user, None if loaded.config.identity.cli else record.tenant)
    if who.tenant != record.tenant:
        raise NotAllowed(f"this request belongs to tenant {record.tenant}, and you act in {who.tenant}")
    # Nobody agrees to what they have not seen; who says --yes has had to see it some other way.
    if ask:
        _show(record)
        click.confirm("Approve exactly this?", abort=True)
    request = Request(
        id=record.id,
        call_id=record.call_id,
        tenant=record.tenant,
        agent=record.agent,
        user=record.user,
        shown=record.shown,
    )

    async def run() -> str:
        async with services_of(loaded) as services:
            return await answer(request, user=who.user, vote=vote, comment=comment, on=services)

    state = anyio.run(run)
    if as_json:
        print_json({"approval_id": record.id, "call_id": record.call_id, "state": state, "by": who.user})
    else:
        back = record.shown["takes_back"]
        said = _SAID[f"undo {state}" if back and state != "pending" else state]
        click.echo(said.format(user=who.user, call=back["call_id"] if back else record.call_id))


_SAID = {
    "approved": "Approved by {user}. Call {call} runs when the agent sends it again.",
    "undo approved": "Approved by {user}. Call {call} is taken back when who asked for that does so again.",
    "pending": "Recorded for {user}. Others must agree too.",
    "rejected": "Refused by {user}. Call {call} will not run.",
    "undo rejected": "Refused by {user}. Call {call} is not taken back.",
}


def _show(request: ApprovalRecord) -> None:
    from remit.cli.output import facts

    facts(f"{request.tool} {request.state}", _told(request))


def _told(request: ApprovalRecord) -> Iterator[tuple[str, object]]:
    """What a person decides on, in this order; what the agent says comes last, and is called that."""
    from remit.budgets import in_words
    from remit.cli.output import as_json_text, exactly

    shown = request.shown
    yield "request", request.id
    yield "who", f"{request.agent} for {request.user}, tenant {request.tenant}"
    if shown is None:
        yield "what", request.tool
        yield "arguments", "erased, or no longer kept"
    else:
        undo, back = shown["undo"], shown["takes_back"]
        yield "what", f"{request.tool} (definition {shown['tool_digest'][:12]})"
        yield "arguments", as_json_text(shown["arguments"])
        if back:
            yield "takes back", f"{back['tool']}, call {back['call_id']}"
            yield "made with", as_json_text(back["arguments"])
            yield "insists", "what was changed since goes, too" if back["forced"] else None
        elif shown["effect"] == "deferred":
            yield "reversible", "until it is sent: it is held back first"
        else:
            yield "reversible", f"by {undo['tool']}" if undo else f"no: its effect is {shown['effect']}"
        yield "stays", undo["residue"] if undo else back and back["residue"]
        yield "cost", in_words(shown["cost"]) or "nothing"
        yield "why asked", shown["why_asked"]
    yield "votes", f"{request.votes_needed} needed"
    for vote in request.votes:
        yield (
            "",
            f"{vote.user}: {vote.vote}{': ' + vote.comment if vote.comment else ''} ({exactly(vote.at_us)})",
        )
    yield "until", exactly(request.expires_us)
    if shown is not None:
        yield "the agent says", as_json_text(shown["claim"]) if shown["claim"] else "nothing"
