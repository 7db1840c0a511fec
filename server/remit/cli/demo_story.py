"""The story that `remit demo` plays: what Remit does with an agent's calls, one claim after another.

The agent is a script, everything else is real: a Remit that serves HTTP, an MCP client, two servers behind
it, and people who answer through the command line. Each step claims something in its title and looks whether
it is so, in Acme's own database where it is about the world. Processes and folders are `demo.py`'s.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from remit.cli.output import cell, short
from remit.database import reading

if TYPE_CHECKING:
    from mcp import Client

AGENT, USER, SUPERVISOR = "agent:support-bot", "user:alice", "user:sue"
#: The piece of work that is taken back whole.
_RUN = "returns-7"
#: More calls than its budget lets the agent make, also when a new minute begins among them.
_LOOP_MAX = 100
_MARGIN = 12
_SPEAKERS = {"agent": "cyan", "remit": "bold", "acme": "dim", SUPERVISOR: "magenta", "auditor": "magenta"}
_HISTORY = """\
SELECT DISTINCT c.kind, c.tool, h.amount AS eur_cents, c.verdict, v.user AS agreed, c.state, c.code
FROM calls AS c
LEFT JOIN holds AS h ON h.call_id = c.id AND h.unit = 'eur_cent'
LEFT JOIN votes AS v ON v.approval_id = c.approval_id
WHERE c.effect <> 'read' ORDER BY c.id"""
_TAMPERING = "UPDATE calls SET verdict = 'execute' WHERE id = '{call_id}'"


class NotSo(Exception):
    """What a step claims did not happen; says what happened instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the agent got back for one call."""

    #: The sentence or the JSON that a model reads.
    text: str
    data: Mapping[str, Any]
    #: On success the receipt, else the verdict.
    meta: Mapping[str, Any]
    ok: bool

    @property
    def code(self) -> str:
        return "executed" if self.ok else str(self.meta.get("code"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    step: str
    ok: bool
    #: What happened instead.
    problem: str | None = None


class Stage:
    """Where the story happens, and what earlier steps left for later ones."""

    def __init__(self, agent: Client, folder: Path, environ: Mapping[str, str], page: Console) -> None:
        self.folder = folder
        self._agent = agent
        self._environ = environ
        self._page = page
        #: The first refund's call, and the order as it was before.
        self.first_call = ""
        self.first_order: Mapping[str, Any] = {}
        self.approved_call = ""

    async def tools(self) -> list[str]:
        self.line("agent", "tools/list")
        return [tool.name for tool in (await self._agent.list_tools()).tools]

    async def call(
        self, tool: str, arguments: dict[str, Any], *, shown: str = "", run: str | None = None
    ) -> Answer:
        """Make one call as the agent. Raises NotSo when there is no such tool for it."""
        words = ", ".join(f"{name}={json.dumps(value)}" for name, value in arguments.items())
        self.line("agent", shown or f"{tool}({words})")
        return await self.unseen_call(tool, arguments, run=run)

    async def unseen_call(self, tool: str, arguments: dict[str, Any], *, run: str | None = None) -> Answer:
        """The same, without a line in the narrative."""
        from mcp import MCPError

        try:
            named: Any = {"dev.remit/run": run} if run else None
            result = await self._agent.call_tool(tool, arguments, meta=named)
        except MCPError as error:
            raise NotSo(f"{tool} was answered with: {error}") from None
        meta = result.meta or {}
        return Answer(
            text="".join(getattr(part, "text", "") for part in result.content),
            data=result.structured_content or {},
            meta=meta.get("dev.remit/verdict" if result.is_error else "dev.remit/receipt") or {},
            ok=not result.is_error,
        )

    async def remit(self, who: str, *words: str, code: int = 0, shown: bool = True) -> str:
        """Run a command as `who` and return what it printed. Raises NotSo when it exits otherwise."""
        self.line(who, "$ remit " + subprocess.list2cmdline(words))
        ran = await anyio.run_process(
            [sys.executable, "-m", "remit", *words],
            stdin=subprocess.DEVNULL,
            env=self._environ,
            cwd=self.folder,
            check=False,
        )
        said = (ran.stdout + ran.stderr).decode(errors="replace").strip()
        if shown:
            self.line("", said)
        if ran.returncode != code:
            raise NotSo(f"the command exited with {ran.returncode} instead of {code}")
        return said

    def order(self, order_id: str) -> Mapping[str, Any]:
        """An order as Acme itself has it."""
        (row,) = select(self.folder / "acme.db", "SELECT * FROM orders WHERE order_id = ?", order_id)
        return row

    def customer(self, customer_id: str) -> Mapping[str, Any]:
        """A customer as Acme itself has them."""
        (row,) = select(self.folder / "acme.db", "SELECT * FROM customers WHERE id = ?", customer_id)
        return row

    def says(self, sentence: str, style: str) -> None:
        self.line("remit", sentence, style)

    def line(self, who: str, words: str, style: str = "") -> None:
        """One line of the narrative, folded under itself."""
        text = Text(words, style=style or ("dim" if not who or who == "acme" else ""))
        for number, part in enumerate(text.wrap(self._page, self._page.width - _MARGIN - 1)):
            part.rstrip()
            margin = f"{'' if number else who:>{_MARGIN - 2}}  "
            self._page.print(Text.assemble((margin, _SPEAKERS.get(who, "")), part))

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for name in rows[0]:
            table.add_column(name, justify="right" if name == "amount_minor" else "left")
        for row in rows:
            table.add_row(*(cell(value) for value in row.values()))
        self._page.print(Padding(table, (0, 0, 0, _MARGIN), expand=False))


async def two_servers(on: Stage) -> None:
    names = await on.tools()
    listed = {
        source: [name for name in names if name.startswith(f"{source}.")] for source in ("acme", "time")
    }
    expect(len(listed["acme"]) > 1 and len(listed["time"]) > 1, f"only these are listed: {', '.join(names)}")
    own = ", ".join(name for name in names if name.startswith("remit."))
    on.says(f"{len(listed['acme'])} tools of Acme, {len(listed['time'])} of the clock, and {own}", "green")
    clock = await on.call("time.get_current_time", {"timezone": "Europe/Berlin"})
    expect(clock.ok, clock.text)
    on.says(f"executed: {json.loads(clock.text)['datetime']}", "green")


async def small_refund(on: Stage) -> None:
    on.first_order = on.order("ord-1001")
    refund = await on.call("acme.refund", refund_of("ord-1001", 8000, "It drips at the handle."))
    executed(on, refund)
    on.first_call = refund.meta["call_id"]
    after = on.order("ord-1001")
    expect(after["refunded_minor"] == 8000, f"Acme has refunded {after['refunded_minor']}")
    on.line("acme", f"ord-1001 was {on.first_order['status']}, is {after['status']}")


async def refund_with_approval(on: Stage) -> None:
    wanted = refund_of("ord-1002", 40000, "One leg is bent.")
    asked = await on.call("acme.refund", wanted)
    refused(on, asked, "pending_approval", "yellow")
    expect(on.order("ord-1002")["refunded_minor"] == 0, "Acme refunded before anybody agreed")
    approval = asked.meta["approval_id"]
    await on.remit(SUPERVISOR, "approvals", "approve", short(approval), "--yes", "--as", SUPERVISOR)
    done = await on.call("acme.refund", wanted, shown="the same call again")
    executed(on, done)
    on.approved_call = done.meta["call_id"]
    expect(on.order("ord-1002")["refunded_minor"] == 40000, "Acme did not refund 400.00")


async def large_refund(on: Stage) -> None:
    answer = await on.call("acme.refund", refund_of("ord-1003", 500000, "The lamps are too dim."))
    refused(on, answer, "no_rule", "red")
    expect(on.order("ord-1003")["refunded_minor"] == 0, "Acme refunded it all the same")


async def undo(on: Stage) -> None:
    answer = await on.call("remit.undo", {"call_id": on.first_call})
    expect(answer.ok and answer.data["state"] == "done", answer.text)
    on.says("undone by acme.cancel_refund, and acme.get_refund shows that it is cancelled", "green")
    after = on.order("ord-1001")
    expect(after == on.first_order, f"the order is now {after}")
    on.line("acme", f"ord-1001 is {after['status']}, and every other field is as it was, too")


async def rollback(on: Stage) -> None:
    before = on.order("ord-1001"), on.customer("cus-101")
    for tool, arguments in (
        ("acme.refund", refund_of("ord-1001", 2500, "The lid is scratched.")),
        ("acme.update_customer", {"id": "cus-101", "fields": {"name": "Nobody"}}),
        ("acme.open_ticket", {"customer_id": "cus-101", "subject": "Lid", "body": "It is scratched."}),
    ):
        done = await on.call(tool, arguments, run=_RUN)
        expect(done.ok, done.text)
    expect((on.order("ord-1001"), on.customer("cus-101")) != before, "Acme is as it was before the run")
    plan = await _rolled_back(on, "--plan")
    expect([step["part"] for step in plan] == ["undo"] * 3, f"the plan is {plan}")
    ended = await _rolled_back(on, "--yes")
    expect([step["part"] for step in ended] == ["done"] * 3, f"it ended as {ended}")
    expect((on.order("ord-1001"), on.customer("cus-101")) == before, "Acme is not as it was before the run")
    on.line("acme", "ord-1001 and cus-101 are as they were before the run, in every field")
    # It asks the database, so that a server that was idle knows of it, too.
    await on.unseen_call("remit.status", {})
    told = await on.call("acme.get_order", {"order_id": "ord-1001"}, run=_RUN)
    expect("took back" in told.text, f"the agent was not told: {told.text}")
    on.says(told.text[told.text.index("Note: ") :], "yellow")


async def _rolled_back(on: Stage, how: str) -> list[dict[str, Any]]:
    said = await on.remit(SUPERVISOR, "rollback", _RUN, how, "--as", SUPERVISOR, "--json", shown=False)
    steps: list[dict[str, Any]] = json.loads(said)["steps"]
    for step in steps:
        on.line("", f"{step['tool']}: {step['why']}")
    return steps


async def kill_switch(on: Stage) -> None:
    wanted = refund_of("ord-1004", 1000, "It came late.")
    await on.remit(SUPERVISOR, "switch", "on", "agent", AGENT, "--reason", "odd refunds")
    refused(on, await on.call("acme.refund", wanted), "stopped", "red")
    expect(on.order("ord-1004")["refunded_minor"] == 0, "Acme refunded it all the same")
    await on.remit(SUPERVISOR, "switch", "off", "agent", AGENT, "--reason", "explained")
    # It asks the database, so that a server that was idle knows of the release, too.
    standing = await on.unseen_call("remit.status", {})
    expect(standing.data.get("switches_on") == [], standing.text)
    executed(on, await on.call("acme.refund", wanted, shown="the same call again"))


async def loop(on: Stage) -> None:
    wanted = {"order_id": "ord-1001"}
    answer = await on.call("acme.get_order", wanted, shown='acme.get_order(order_id="ord-1001"), on and on')
    done = 0
    while answer.ok and done < _LOOP_MAX:
        done += 1
        answer = await on.unseen_call("acme.get_order", wanted)
    on.says(f"executed {done} times, then:", "green")
    refused(on, answer, "budget_exhausted", "red")


async def query(on: Stage) -> None:
    on.line("auditor", "$ sqlite3 remit.db")
    on.line("", _HISTORY)
    rows = select(on.folder / "remit.db", _HISTORY)
    on.table(rows)
    told = [(row["eur_cents"], row["verdict"], row["agreed"], row["state"]) for row in rows]
    for fact in (
        (8000, "execute", None, "succeeded"),
        (40000, "approve", SUPERVISOR, "succeeded"),
        (None, "deny", None, "denied"),
        (1000, "execute", None, "succeeded"),
    ):
        expect(fact in told, f"the record lacks {fact}")


async def tampering(on: Stage) -> None:
    await on.remit("auditor", "audit", "verify")
    copy = on.folder / "tampered.db"
    change = _TAMPERING.format(call_id=on.approved_call)
    with closing(sqlite3.connect(on.folder / "remit.db")) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        with target:
            target.execute(change)
    on.line("auditor", f'$ sqlite3 tampered.db "{change}"')
    said = await on.remit("auditor", "audit", "verify", "--db", copy.name, code=1)
    expect(on.approved_call in said, "the changed call is not named")


STEPS: tuple[tuple[str, Callable[[Stage], Awaitable[None]]], ...] = (
    ("One door to two servers, one of them somebody else's", two_servers),
    ("A refund of 80.00 is executed", small_refund),
    ("A refund of 400.00 waits for a person, and is executed once she agrees", refund_with_approval),
    ("A refund of 5,000.00 is denied, and the agent is told why", large_refund),
    ("The first refund is taken back, and the order is as it was", undo),
    ("A whole run is taken back by a person, newest call first, and the agent is told", rollback),
    ("A person stops the agent, and lets it go again", kill_switch),
    ("A loop of identical calls runs into its budget", loop),
    ("What happened is in the record, for plain SQL", query),
    ("The record verifies; one row changed in a copy of it is found", tampering),
)


async def play(on: Stage, page: Console, played: list[Played]) -> None:
    """Play every step until one does not do what it says; each is added to `played` when it has ended."""
    for number, (title, step) in enumerate(STEPS, 1):
        page.print(Text(f"\n{number}  {title}", style="bold"))
        try:
            with anyio.fail_after(60):
                await step(on)
        except (NotSo, TimeoutError) as error:
            played.append(Played(step=title, ok=False, problem=str(error) or "it took too long"))
            return
        played.append(Played(step=title, ok=True))


def expect(so: bool, otherwise: str) -> None:
    if not so:
        raise NotSo(otherwise)


def refund_of(order_id: str, amount_minor: int, reason: str) -> dict[str, Any]:
    return {"order_id": order_id, "amount_minor": amount_minor, "reason": reason}


def executed(on: Stage, refund: Answer) -> None:
    expect(refund.ok, refund.text)
    until = refund.meta["undo"]["until"]
    on.says(f"executed: {refund.data['refund_id']}, can be undone until {until}", "green")


def refused(on: Stage, answer: Answer, code: str, style: str) -> None:
    """The call must have been answered with this code and a sentence for the agent."""
    expect(answer.code == code, f"the call was answered with {answer.code}: {answer.text}")
    on.says(answer.text, style)


def select(database: Path, sql: str, *values: str) -> list[dict[str, Any]]:
    with reading(database) as db:
        return [dict(row) for row in db.all(sql, values)]
