"""`remit tools prove`: a way back is walked whole on a staging source, and what that proves is known."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.server.acme import CONFIG, Terminal, a_place
from tests.server.builders import POLICY, TOOLS, Remit, ScriptedSource, a_remit, a_reply, rows, until

from remit.catalog import build
from remit.config_file import load
from remit.front.answers import to_wire
from remit.identity import Principal
from remit.journal import open_journal
from remit.pipeline import describe, informed
from remit.proving import Inconclusive, Tried, prove
from remit_adapters.base import Caller, Offer, Reply, Request

ROWS = """
g, agent:remit-cli, role:prover, acme
g, user:sue, role:prover, acme
g3, agent:remit-cli, user:sue, acme
p, role:prover, acme, rehearsal.*, execute, 1 == 1, allow
p, role:prover, acme, rehearsal.*, undo, 1 == 1, allow
"""
REFUND = {"order_id": "ord-1001", "amount_minor": 100, "reason": "A rehearsal."}
ORDER = [{"call": "acme.get_order", "args": {"order_id": "args.order_id"}}]
PROVE = ("tools", "prove", "acme.refund", "--source", "rehearsal")


def a_rehearsal(folder: Path, *, policy: str = ROWS, **tools: Any) -> Terminal:
    """Acme, and a copy of it to try things on; `tools` are more of its rules."""
    remit = Terminal(a_place(folder))
    settings = yaml.safe_load(CONFIG)
    acme = settings["sources"]["acme"]
    command = [*acme["command"][:-1], "rehearsal.db"]
    settings["sources"]["rehearsal"] = {**acme, "command": command, "staging": True}
    settings["tools"]["acme.refund"]["prove"] = {"args": REFUND, "compare": ORDER}
    for name, rules in tools.items():
        settings["tools"][f"acme.{name}"] = {**settings["tools"].get(f"acme.{name}", {}), **rules}
    remit.config.write_text(yaml.safe_dump(settings))
    with (folder / "policy.csv").open("a") as file:
        file.write(policy)
    return remit


def refund_in(remit: Terminal, command: str) -> dict[str, Any]:
    told = remit.json(*command.split())
    return next(each for each in told if each["name"] == "acme.refund")


def proofs(remit: Terminal) -> list[dict[str, Any]]:
    return rows(remit.folder / "remit.db", "SELECT * FROM undo_proofs")


UPDATES = {
    "effect": "restorable",
    "before": {"call": "acme.get_customer", "args": {"id": "args.id"}},
    "undo": {"call": "acme.update_customer", "args": {"id": "args.id", "fields": "args.fields"}},
    "prove": {"args": {"id": "cus-101", "fields": {"name": "Somebody Else"}}},
}


def test_a_way_back_that_held_is_proven_and_the_source_in_earnest_was_not_touched(tmp_path: Path) -> None:
    remit = a_rehearsal(tmp_path)
    assert refund_in(remit, "tools list")["undo_proven_us"] is None
    (told,) = remit.json(*PROVE)
    assert (told["tool"], told["source"], told["proven"]) == ("acme.refund", "rehearsal", True)
    (proof,) = proofs(remit)
    assert (proof["state"], proof["by"], proof["call_id"]) == ("proven", "user:sue", told["call_id"])
    assert refund_in(remit, "tools list")["undo_proven_us"] == proof["at_us"]
    assert ", proven 20" in remit("tools", "list").out
    shown = remit("tools", "show", "acme.refund").out
    assert "confidence  proven 20" in shown
    assert f", for {proof['digest']}\n" in shown
    (refund,) = [tool for tool in remit.json("check")["tools"] if tool["name"] == "acme.refund"]
    assert refund["undo_proven_us"] == proof["at_us"]
    with closing(sqlite3.connect(tmp_path / "rehearsal.db")) as db:
        assert db.execute("SELECT status FROM refunds").fetchall() == [("cancelled",)]
    with closing(sqlite3.connect(tmp_path / "acme.db")) as db:
        assert db.execute("SELECT count(*) FROM refunds").fetchone() == (0,)
    calls = rows(remit.folder / "remit.db", "SELECT tool, kind, agent, user FROM calls ORDER BY id")
    assert {(call["agent"], call["user"]) for call in calls} == {("agent:remit-cli", "user:sue")}
    assert [(call["tool"], call["kind"]) for call in calls] == [
        ("rehearsal.get_order", "call"),
        ("rehearsal.refund", "call"),
        ("rehearsal.get_order", "call"),
        ("rehearsal.cancel_refund", "undo"),
        ("rehearsal.get_refund", "verify"),
        ("rehearsal.get_order", "call"),
    ]
    # Trying costs no budget of the money in earnest, and is no touch of the order in earnest.
    assert rows(remit.folder / "remit.db", "SELECT * FROM holds WHERE unit = 'eur_minor'") == []
    assert rows(remit.folder / "remit.db", "SELECT * FROM touches") == []
    assert remit("audit", "verify").code == 0


def test_all_that_have_examples_are_tried_and_what_does_not_hold_is_told_with_what_differs(
    tmp_path: Path,
) -> None:
    remit = a_rehearsal(tmp_path, update_customer=UPDATES)
    ran = remit("tools", "prove", "--all", "--source", "rehearsal")
    assert ran.code == 1
    held, lost, differs = ran.out.splitlines()
    assert held.startswith("acme.refund on rehearsal: proven. Call ")
    assert lost.startswith("acme.update_customer on rehearsal: not proven. Call ")
    assert differs.strip().startswith('rehearsal.get_customer.fields.name: was "')
    assert differs.endswith('is "Somebody Else"')
    states = {proof["tool"]: proof["state"] for proof in proofs(remit)}
    assert states == {"acme.refund": "proven", "acme.update_customer": "failed"}


@pytest.mark.parametrize("source", [(), ("--source", "acme")])
def test_a_source_in_earnest_is_never_tried_on(tmp_path: Path, source: tuple[str, ...]) -> None:
    remit = a_rehearsal(tmp_path)
    ran = remit("tools", "prove", "acme.refund", *source)
    assert ran.code == 1
    assert "source acme is not marked staging: true" in ran.err
    assert not (tmp_path / "remit.db").exists()


@pytest.mark.parametrize("words", [(), ("acme.refund", "--all"), ("acme.refund", "--args", "[]")])
def test_prove_is_told_what_to_try(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert a_rehearsal(tmp_path)("tools", "prove", *words).code == 64


DEFINED = tuple(
    {"name": name, "inputSchema": {"type": "object"}, "description": "old"}
    for name in ("refund", "cancel_refund", "get_refund", "get_order")
)


def digest(remit: Terminal, tools: Sequence[Mapping[str, Any]] = DEFINED) -> str:
    """What a proof of the refund's way back is about."""
    return build(load(remit.config).config, {"acme": Offer(tools=tuple(tools))}).plans["acme.refund"]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"undo": {"within": "1h"}}, False),
        ({"undo": {"args": {"refund_id": "args.order_id"}}}, False),
        ({"undo": {"verify": None}}, False),
        ({"on_error": "unknown"}, False),
        ({"price": {"eur_minor": 7}, "labels": ["money"], "timeout": "9s"}, True),
        ({"prove": {"args": {}}}, True),
    ],
)
def test_a_changed_declaration_is_another_that_nobody_has_proven(
    tmp_path: Path, change: dict[str, Any], same: bool
) -> None:
    remit = a_rehearsal(tmp_path)
    before = digest(remit)
    settings = yaml.safe_load(remit.config.read_text())
    refund = settings["tools"]["acme.refund"]
    if undo := {**refund["undo"], **change.pop("undo", {})}:
        refund["undo"] = {name: value for name, value in undo.items() if value is not None}
    refund.update(change)
    remit.config.write_text(yaml.safe_dump(settings))
    assert (digest(remit) == before) is same


@pytest.mark.parametrize(
    ("changed", "same"),
    [("refund", False), ("cancel_refund", False), ("get_refund", False), ("get_order", True)],
)
def test_a_changed_definition_of_a_tool_that_it_needs_is_another_too(
    tmp_path: Path, changed: str, same: bool
) -> None:
    remit = a_rehearsal(tmp_path)
    drifted = [{**tool, "description": "new"} if tool["name"] == changed else tool for tool in DEFINED]
    assert (digest(remit, drifted) == digest(remit)) is same


# What the trial itself finds, on a source that a test scripts.

SHELF = {
    **TOOLS,
    "shop.set": {
        **TOOLS["shop.set"],
        "prove": {"compare": [{"call": "shop.look", "args": {"thing": "args.thing"}}]},
    },
}
SETS = {"thing": "pen", "value": 7}
PROVER = Principal(tenant="acme", agent="agent:bot", user="user:ann", auth="local")


class Shelf:
    """Things with values. `stuck` values are written once and never again."""

    def __init__(self, source: ScriptedSource, *, stuck: bool = False) -> None:
        self.values: dict[str, int] = {"pen": 0}
        self.stuck, self.written = stuck, False
        source.on.update(look=self.look, set=self.set)

    async def look(self, request: Request, caller: Caller) -> Reply:
        if request.arguments["thing"] not in self.values:
            return a_reply("There is no such thing.", is_error=True)
        return a_reply({"value": self.values[request.arguments["thing"]]})

    async def set(self, request: Request, caller: Caller) -> Reply:
        if not (self.stuck and self.written):
            self.values[request.arguments["thing"]] = request.arguments["value"]
        self.written = True
        return a_reply({"ok": True})


async def tried(remit: Remit, arguments: Mapping[str, Any] = SETS, tool: str = "shop.set") -> Tried:
    return await prove(tool, arguments, PROVER, "trial", remit.on, as_tool=tool)


async def test_policy_receipts_and_explanations_know_what_is_proven(tmp_path: Path) -> None:
    only_proven = "p, role:clerk, acme, shop.send, execute, 1 == 1, allow\n" + POLICY.replace(
        "shop.set, execute, 1 == 1", "shop.set, execute, r.ctx.undo_proven || r.args.value == 7"
    )
    async with a_remit(tmp_path, policy=only_proven, tools=SHELF) as remit:
        Shelf(remit.source)
        call = remit.a_call("shop.set", {"thing": "pen", "value": 3})
        assert describe(await informed(call, remit.on))["undo"]["confidence"] == "claimed"
        assert (await remit.refused("shop.set", {"thing": "pen", "value": 3})).verdict.code == "no_rule"
        assert (await tried(remit)).differs == ()
        told = describe(await informed(call, remit.on))["undo"]
        assert (told["confidence"], told["tool"], told["best_effort"]) == ("proven", "shop.set", True)
        done = await remit.done("shop.set", {"thing": "pen", "value": 3})
        assert "proven" in to_wire(call, done)["_meta"]["dev.remit/receipt"]["undo"]
        bought = await remit.done("shop.buy", {"thing": "pen", "price": 5})
        assert "proven" not in to_wire(call, bought)["_meta"]["dev.remit/receipt"].get("undo", {})


async def test_another_process_learns_of_a_proof_and_of_its_end(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=SHELF) as remit:
        shelf = Shelf(remit.source)
        journal = await open_journal(remit.path, role="cli", clock=remit.clock)
        try:
            await tried(remit)
            await until(lambda: len(journal.proofs) == 1)
            shelf.stuck, shelf.written = True, False
            assert (await tried(remit, {"thing": "pen", "value": 8})).differs
            await until(lambda: not journal.proofs)
        finally:
            await journal.close()
    async with a_remit(tmp_path, tools=SHELF) as remit:
        assert not remit.on.journal.proofs


async def test_what_differs_is_named_by_its_path(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=SHELF) as remit:
        Shelf(remit.source, stuck=True)
        assert (await tried(remit)).differs == ("shop.look.value: was 0, is 7",)
        assert [row["kind"] for row in remit.rows("SELECT kind FROM events WHERE kind LIKE 'undo.%'")] == [
            "undo.unproven"
        ]


@pytest.mark.parametrize(
    ("rules", "arguments", "why"),
    [
        ({}, {"thing": "pen"}, "the arguments do not fit"),
        ({}, {"thing": "lamp", "value": 1}, "shop.look was answered with an error: There is no such thing"),
        ({}, {"thing": "pen", "value": 0}, "nothing that is compared shows what the call did"),
        ({"prove": {"compare": [{"call": "shop.gone"}]}}, SETS, "it needs shop.gone"),
        (
            {"prove": {"compare": [{"call": "shop.look", "args": {"thing": "args.x"}}]}},
            SETS,
            "cannot be comp",
        ),
        ({"when": [{"if": "args.value == 7", "effect": "irreversible"}]}, SETS, "has no way back"),
    ],
)
async def test_what_cannot_be_tried_to_the_end_proves_nothing(
    tmp_path: Path, rules: dict[str, Any], arguments: dict[str, Any], why: str
) -> None:
    async with a_remit(tmp_path, tools={**SHELF, "shop.set": {**SHELF["shop.set"], **rules}}) as remit:
        Shelf(remit.source)
        with pytest.raises(Inconclusive, match=why):
            await tried(remit, arguments)
        assert remit.rows("SELECT * FROM undo_proofs") == []


async def test_without_a_word_on_what_to_compare_there_is_no_trial(tmp_path: Path) -> None:
    async with a_remit(tmp_path) as remit:
        with pytest.raises(Inconclusive, match=r"write prove\.compare"):
            await tried(remit, {"thing": "pen", "price": 5}, "shop.buy")
        assert remit.source.sent == []


async def test_what_policy_refuses_is_not_tried(tmp_path: Path) -> None:
    async with a_remit(
        tmp_path, tools=SHELF, policy=POLICY.replace("shop.set, execute", "shop.x, execute")
    ) as it:
        Shelf(it.source)
        with pytest.raises(Inconclusive, match=r"shop\.set was not made"):
            await tried(it)


async def test_another_definition_at_the_staging_source_proves_nothing_about_the_one_in_earnest(
    tmp_path: Path,
) -> None:
    async with a_remit(tmp_path, tools=SHELF) as remit:
        remit.on.catalog = replace(remit.on.catalog, plans={**remit.on.catalog.plans, "real.set": "other"})
        with pytest.raises(Inconclusive, match=r"shop does not define real\.set"):
            await prove("real.set", SETS, PROVER, "trial", remit.on, as_tool="shop.set")
        assert remit.source.sent == []
