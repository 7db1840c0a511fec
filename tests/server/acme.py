"""Acme as a real place: configuration, policy, its MCP server, and records of calls that were really made.

`a_story` plays once into a folder; tests work on copies. The command line is driven through `remit`, in this
process, as a person would use it.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remit.app import App
from remit.calls import new_call
from remit.checks.containment import stopped
from remit.cli import main
from remit.config_file import load
from remit.identity import Principal
from remit.journal import Admitted
from remit.model import Call, Done, Outcome, Pending, Refused
from remit.pipeline import Services, decide, govern

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = f"""\
version: 1
store: {{path: remit.db}}
policy: {{files: [policy.csv]}}
identity:
  stdio: {{tenant: acme, agent: agent:support-bot, user: user:alice}}
  cli: {{tenant: acme, user: user:sue}}
sources:
  acme:
    kind: mcp
    command: [{sys.executable}, {REPOSITORY}/configs/acme/acme_server.py, --db, acme.db]
tools:
  acme.*: {{on_error: no_effect}}
  acme.get_*: {{effect: read}}
  acme.list_*: {{effect: read}}
  acme.cancel_refund: {{effect: irreversible}}
  acme.refund:
    effect: reversible
    idempotency_arg: idempotency_key
    resource: args.order_id
    price: {{eur_minor: args.amount_minor}}
    undo:
      call: acme.cancel_refund
      args: {{refund_id: result.refund_id}}
      within: 24h
      verify:
        call: acme.get_refund
        args: {{refund_id: result.refund_id}}
        expect: "result.status == 'cancelled'"
budgets:
  - {{scope: agent, unit: calls, window: total, limit: 100}}
  - {{scope: agent, unit: eur_minor, window: total, limit: 1000000}}
"""


@dataclass(frozen=True, kw_only=True)
class Story:
    """The ids of the calls that were made, in this order."""

    read: str
    refund: str
    pending: str
    approval: str
    denied: str
    in_doubt: str


_STORE = "store: {path: remit.db}"


def a_place(folder: Path, url: str | None = None) -> Path:
    """Acme's configuration and policy in `folder`, on PostgreSQL at `url`; returns the configuration."""
    config = folder / "remit.yaml"
    config.write_text(CONFIG.replace(_STORE, f"store: {{path: remit.db, url: '{url}'}}") if url else CONFIG)
    (folder / "policy.csv").write_bytes((REPOSITORY / "configs/acme/policy.csv").read_bytes())
    return config


@asynccontextmanager
async def serving(config: Path) -> AsyncGenerator[Services]:
    app = App(load(config), role="http")
    async with app.running():
        yield await app.services()


def a_call(on: Services, tool: str, arguments: dict[str, Any], **more: Any) -> Call:
    principal = Principal(tenant="acme", agent="agent:support-bot", user="user:alice", auth="api_key")
    return new_call(
        tool=on.catalog.tools[tool],
        arguments=arguments,
        principal=principal,
        run="ticket-7",
        secret=on.secret,
        at_us=on.clock(),
        **more,
    )


async def made(on: Services, tool: str, arguments: dict[str, Any], **more: Any) -> Outcome:
    return await govern(a_call(on, tool, arguments, **more), on)


async def a_story(config: Path) -> Story:
    """Calls with every kind of ending, made on a Remit that runs meanwhile."""
    async with serving(config) as on:
        read = await made(on, "acme.list_orders", {})
        refund = await made(on, "acme.refund", refund_of("ord-1001", 8000))
        pending = await made(
            on,
            "acme.refund",
            refund_of("ord-1002", 40000, reason="broken \u202eevil\u202c leg\u200b \x1b[2J"),
            claim={"rationale": "the customer \x1b[31minsists\x07"},
        )
        denied = await made(on, "acme.refund", refund_of("ord-1002", 500_000))
        doubtful = await left_in_doubt(on, refund_of("ord-1002", 900))
    assert isinstance(read, Done)
    assert isinstance(refund, Done)
    assert isinstance(pending, Pending)
    assert isinstance(denied, Refused)
    return Story(
        read=read.call_id,
        refund=refund.call_id,
        pending=pending.call_id,
        approval=pending.approval_id,
        denied=denied.call_id,
        in_doubt=doubtful,
    )


async def left_in_doubt(on: Services, arguments: dict[str, Any]) -> str:
    """A refund that was let out, and whose answer never came."""
    call = a_call(on, "acme.refund", arguments)
    decision = decide(call, on)
    admitted = await on.journal.admit(
        call,
        decision.verdict,
        decision.charges,
        decision.plan,
        stopped=stopped,
        in_force=lambda: on.policy.version,
        touches=decision.touches,
    )
    assert isinstance(admitted, Admitted)
    await on.journal.doubt(call, call_id=call.id, code="timeout", message="The call did not end in time.")
    return call.id


async def refunded_twice(config: Path) -> str:
    """The first of two refunds of one order: the second is in the way of taking it back."""
    async with serving(config) as on:
        first = await made(on, "acme.refund", refund_of("ord-1002", 5000))
        await made(on, "acme.refund", refund_of("ord-1002", 6000))
    assert isinstance(first, Done)
    return first.call_id


def refund_of(order: str, amount_minor: int, *, reason: str = "damaged") -> dict[str, Any]:
    return {"order_id": order, "amount_minor": amount_minor, "reason": reason}


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How one command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class _Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


class Terminal:
    """`remit` on one configuration: `remit("calls", "list")`."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.folder = config.parent

    def __call__(self, *words: str, typed: str | None = None) -> Ran:
        """Run one command; with `typed`, as if at a terminal where somebody types that."""
        out, err = io.StringIO(), io.StringIO()
        before = sys.stdin
        if typed is not None:
            sys.stdin = _Keyboard(typed)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main([*words, *self._config(words)])
            except SystemExit as end:
                code = end.code
            finally:
                sys.stdin = before
        assert isinstance(code, int)
        return Ran(code=code, out=out.getvalue(), err=err.getvalue())

    def json(self, *words: str) -> Any:
        """What the command says to programs; it must have ended well."""
        ran = self(*words, "--json")
        assert ran.code == 0, ran
        return ran.json

    def _config(self, words: tuple[str, ...]) -> tuple[str, ...]:
        takes_none = "--config" in words or "--help" in words or words[:1] == ("completion",)
        return () if takes_none else ("--config", str(self.config))
