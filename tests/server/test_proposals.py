"""What `remit tools suggest` proposes for tools that nobody has classed: pessimistic, reasoned, and sound."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.server.acme import CONFIG, REPOSITORY, Terminal, a_place

from remit.catalog import build
from remit.config_file import load
from remit.fit import misfits
from remit.proposals import as_yaml, propose
from remit_adapters.base import Offer

HOSTILE = REPOSITORY / "tests/fixtures/hostile_server.py"


def a_form(properties: dict[str, str]) -> dict[str, Any]:
    """An object that must have all these."""
    kinds = {name: {"type": kind} for name, kind in properties.items()}
    return {"type": "object", "properties": kinds, "required": list(kinds)}


def a_tool(
    tool: str, /, *, gives: dict[str, str] | None = None, annotations: Any = None, **takes: str
) -> dict[str, Any]:
    """A tool as its source defines it."""
    found: dict[str, Any] = {"name": tool, "inputSchema": a_form(takes)}
    if gives is not None:
        found["outputSchema"] = a_form(gives)
    return found | ({"annotations": annotations} if annotations else {})


def a_source(folder: Path, *tools: dict[str, Any], rules: str = "") -> Terminal:
    """A Remit before one server that offers these tools, in its own words, and has no other way to speak."""
    listed = {"jsonrpc": "2.0", "id": "$ID", "result": {"tools": tools, "resultType": "complete"}}
    script = {"tools/list": json.dumps(listed).replace('"$ID"', "$ID")}
    (folder / "script.json").write_text(json.dumps(script))
    command = [sys.executable, "-S", str(HOSTILE), "stdio", "legacy", "script.json", "log"]
    config = folder / "remit.yaml"
    source = {"kind": "mcp", "command": command, "era": "legacy"}
    (folder / "policy.csv").write_text("p, user:x, acme, *, execute, 1 == 1, allow\n")
    settings = {"version": 1, "policy": {"files": ["policy.csv"]}, "sources": {"shop": source}}
    config.write_text(yaml.safe_dump(settings) + rules)
    return Terminal(config)


def proposed(remit: Terminal, name: str, *tools: dict[str, Any]) -> dict[str, Any]:
    """The proposal for one of these tools, without asking a source, which takes its time."""
    config = load(remit.config).config
    found = propose(config, build(config, {"shop": Offer(tools=tools)}))
    (proposal,) = (each for each in found if each.tool == f"shop.{name}")
    return {"reasons": proposal.reasons, "rules": proposal.rules, "effect": proposal.effect}


def told(remit: Terminal, name: str) -> dict[str, Any]:
    """The same, asked of the source and told by the command."""
    found = remit.json("tools", "suggest")
    return next(each for each in found if each["tool"] == f"shop.{name}")


def with_hints(name: str, **hints: Any) -> dict[str, Any]:
    return a_tool(name, annotations=hints, order_id="string")


def by_method(name: str, method: Any, **hints: Any) -> dict[str, Any]:
    return with_hints(name, **hints) | {"_meta": {"http": {"method": method}}}


@pytest.mark.parametrize(
    ("tool", "effect", "because"),
    [
        (with_hints("orders", readOnlyHint=True), "read", "readOnlyHint"),
        (with_hints("get_order"), "read", "its name says get"),
        (with_hints("orders.list"), "read", "its name says list"),
        (with_hints("GET_orders"), "read", "its name says get"),
        (with_hints("getOrder", readOnlyHint=False), "irreversible", "nothing here is sure"),
        (with_hints("get_order", destructiveHint=True), "irreversible", "nothing here is sure"),
        (with_hints("delete_order", readOnlyHint=True), "irreversible", "its name says delete"),
        (with_hints("orders", readOnlyHint=True, destructiveHint=True), "irreversible", "contradict"),
        (with_hints("add_note", destructiveHint=False), "irreversible", "nothing here is sure"),
        (with_hints("post_order", idempotentHint=True), "irreversible", "nothing here is sure"),
        (with_hints("orders", httpMethod="get"), "read", "HTTP method that only reads"),
        (by_method("orders", "HEAD"), "read", "HTTP method that only reads"),
        (by_method("get_order", "POST"), "irreversible", "HTTP method that may change"),
        (by_method("orders", "DELETE", readOnlyHint=True), "irreversible", "HTTP method that may change"),
        (by_method("orders", {"PUT": 1}, readOnlyHint=True), "irreversible", "HTTP method that may change"),
        (by_method("delete_order", "GET"), "irreversible", "nothing here is sure"),
        (by_method("orders", "GET", readOnlyHint=False), "irreversible", "nothing here is sure"),
        (by_method("orders", "GET", destructiveHint=True), "irreversible", "nothing here is sure"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_what_may_change_something_is_irreversible_until_the_evidence_agrees(
    tool: dict[str, Any], effect: str, because: str, tmp_path: Path
) -> None:
    found = proposed(a_source(tmp_path), tool["name"], tool)
    assert found["effect"] == effect
    assert any(because in reason for reason in found["reasons"]), found


@pytest.mark.parametrize(
    ("tool", "inverse", "arguments"),
    [
        (a_tool("create_order", gives={"id": "string"}), a_tool("delete_order", id="string"), "result.id"),
        (
            a_tool("create_order", gives={"id": "string"}),
            a_tool("delete_order", order_id="string"),
            "result.id",
        ),
        (
            a_tool("orders.create", gives={"order_id": "string"}),
            a_tool("orders.delete", order_id="string"),
            "result.order_id",
        ),
        (a_tool("grantRole", role="string"), a_tool("revokeRole", role="string"), "args.role"),
        (a_tool("enable_user", id="string"), a_tool("disable_user", id="string"), "args.id"),
        (a_tool("refund", gives={"id": "string"}), a_tool("cancel_refund", id="string"), "result.id"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_a_tool_beside_it_that_says_the_opposite_is_proposed_as_its_compensation(
    tool: dict[str, Any], inverse: dict[str, Any], arguments: str, tmp_path: Path
) -> None:
    rules = proposed(a_source(tmp_path), tool["name"], tool, inverse)["rules"]
    assert rules["effect"] == "compensable"
    assert rules["undo"]["call"] == f"shop.{inverse['name']}"
    assert list(rules["undo"]["args"].values()) == [arguments]
    assert rules["undo"]["residue"] == "Nobody has said yet what stays behind."


@pytest.mark.parametrize(
    ("tool", "inverse"),
    [
        # Its answer is not declared, so nobody knows whether it holds the id.
        (a_tool("create_order"), a_tool("delete_order", id="string")),
        # The kinds differ.
        (a_tool("create_order", gives={"id": "integer"}), a_tool("delete_order", id="string")),
        # A word to the customer is in no answer.
        (a_tool("open_case", gives={"id": "string", "note": "string"}), a_tool("close_case", note="string")),
        # A deleted thing is not made again.
        (a_tool("delete_order", id="string"), a_tool("create_order", id="string")),
        # It is told nothing, so it cannot know what to take back.
        (a_tool("create_order", gives={"id": "string"}), a_tool("delete_order")),
        # It is about another thing.
        (a_tool("create_order", gives={"id": "string"}), a_tool("delete_user", id="string")),
    ],
    ids=lambda value: value["name"],
)
def test_an_opposite_whose_arguments_are_not_sure_to_be_known_is_not_proposed(
    tool: dict[str, Any], inverse: dict[str, Any], tmp_path: Path
) -> None:
    found = proposed(a_source(tmp_path), tool["name"], tool, inverse)
    assert found["rules"] == {"effect": "irreversible"}


def recovery(operation: Any, **parameters: Any) -> dict[str, Any]:
    """Recovery metadata as SEP-3172 has it."""
    made = {"operationId": operation, "parameters": parameters}
    return {"recovery": {"strategy": "compensation", "compensatingOperation": made}}


REFUND = a_tool("refund_payment", transactionId="string")


def test_a_declared_recovery_is_proposed_as_a_compensation(tmp_path: Path) -> None:
    declares = recovery("refund_payment", transactionId="$response.body#/payment/transactionId")
    charge = a_tool("charge", annotations=declares, amount="integer")
    found = told(a_source(tmp_path, charge, REFUND), "charge")
    assert found["rules"]["effect"] == "compensable"
    assert found["rules"]["undo"]["call"] == "shop.refund_payment"
    assert found["rules"]["undo"]["args"] == {"transactionId": "result.payment.transactionId"}
    assert "SEP-3172" in found["reasons"][0]


@pytest.mark.parametrize(
    "declares",
    [
        recovery("refund_payment"),
        recovery("refund_payment", transactionId="$response.header.x"),
        recovery("refund_payment", transactionId="$response.body#/id", also="$response.body#/x"),
        recovery("refund_payment", transactionId=7),
        recovery("no_such_tool", transactionId="$response.body#/id"),
        recovery(["refund_payment"], transactionId="$response.body#/id"),
        {"recovery": {"strategy": "hope"}},
        {"recovery": "refund_payment"},
        {"recovery": [1]},
        {"x-compensation-pair": "no_such_tool"},
        {"x-compensation-pair": "refund_payment"},
    ],
)
def test_a_recovery_that_cannot_work_is_not_proposed(declares: dict[str, Any], tmp_path: Path) -> None:
    charge = a_tool("charge", annotations=declares, amount="integer")
    assert proposed(a_source(tmp_path), "charge", charge, REFUND)["rules"] == {"effect": "irreversible"}


def test_a_named_partner_is_proposed_when_its_arguments_are_known(tmp_path: Path) -> None:
    named = {"x-compensation-pair": "refund_payment"}
    charge = a_tool("charge", gives={"transactionId": "string"}, annotations=named)
    rules = proposed(a_source(tmp_path), "charge", charge, REFUND)["rules"]
    assert rules["undo"]["args"] == {"transactionId": "result.transactionId"}


GETS = a_tool("get_user", id="string", gives={"id": "string", "mail": "string", "for": "string"})


def test_what_a_read_shows_whole_is_proposed_as_restorable(tmp_path: Path) -> None:
    sets = a_tool("update_user", **{"id": "string", "mail": "string", "for": "string"})
    rules = proposed(a_source(tmp_path), "update_user", sets, GETS)["rules"]
    assert rules["before"] == {"call": "shop.get_user", "args": {"id": "args.id"}}
    assert rules["undo"] == {
        "call": "shop.update_user",
        "args": {"id": "args.id", "mail": "before.mail", "for": "before['for']"},
    }


def test_what_a_read_shows_in_part_cannot_be_restored(tmp_path: Path) -> None:
    sets = a_tool("update_user", id="string", mail="string", phone="string")
    assert proposed(a_source(tmp_path), "update_user", sets, GETS)["effect"] == "irreversible"


def test_a_read_that_may_change_something_is_no_source_of_old_values(tmp_path: Path) -> None:
    sets = a_tool("update_user", **{"id": "string", "mail": "string", "for": "string"})
    getter = GETS | {"annotations": {"readOnlyHint": False}}
    assert proposed(a_source(tmp_path), "update_user", sets, getter)["effect"] == "irreversible"


def test_nothing_that_is_proposed_counts_until_it_is_written_down(tmp_path: Path) -> None:
    remit = a_source(tmp_path, a_tool("get_order", order_id="string"))
    assert told(remit, "get_order")["effect"] == "read"
    (listed,) = remit.json("tools", "list")
    assert (listed["effect"], listed["declared"]) == ("irreversible", False)


def test_what_is_classed_is_left_alone(tmp_path: Path) -> None:
    rules = "tools:\n  shop.get_*: {effect: irreversible}\n"
    remit = a_source(tmp_path, a_tool("get_order"), rules=rules)
    assert remit.json("tools", "suggest") == []
    assert remit("tools", "suggest").out == "# Every tool has its effect.\n"


def test_an_entry_that_is_there_is_named(tmp_path: Path) -> None:
    rules = "tools:\n  shop.get_order: {timeout: 5s}\n"
    said = a_source(tmp_path, a_tool("get_order"), rules=rules)("tools", "suggest").out
    assert said.startswith("  # shop.get_order has an entry already: add this to it.\n")


def test_a_source_that_is_not_there_is_a_wrong_use(tmp_path: Path) -> None:
    assert a_source(tmp_path)("tools", "suggest", "shap").code == 64


def test_what_is_proposed_for_acme_can_be_pasted_and_fits(tmp_path: Path) -> None:
    remit = Terminal(a_place(tmp_path))
    remit.config.write_text(CONFIG.partition("tools:\n")[0])
    said = remit("tools", "suggest", "acme").out
    remit.config.write_text(remit.config.read_text() + said)
    checked = remit.json("check")
    assert checked["problems"] == []
    effects = {tool["name"]: (tool["effect"], tool["undo"]) for tool in checked["tools"]}
    assert effects["acme.refund"] == ("compensable", "acme.cancel_refund")
    assert effects["acme.update_customer"] == ("restorable", "acme.update_customer")
    assert effects["acme.send_mail"] == ("irreversible", None)
    assert effects["acme.get_order"] == ("read", None)
    assert all(tool["declared"] for tool in checked["tools"])


_NAMES = st.sampled_from(
    ("create", "delete", "add", "remove", "update", "get", "open", "close", "order", "orders", "id", "Cancel")
)
_FIELDS = st.dictionaries(
    st.sampled_from(["id", "order_id", "name", "from", "a b", "r2", "it's", 'q"', "é", "null", "x: y", "#"]),
    st.sampled_from(["string", "integer"]),
    max_size=3,
)
_DECLARED = st.recursive(
    st.none() | st.booleans() | st.sampled_from(["compensation", "create_order", "$response.body#/id"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["strategy", "compensatingOperation", "operationId", "parameters", "id"]), inner
        )
    ),
    max_leaves=8,
)


@st.composite
def _tools(draw: st.DrawFn) -> dict[str, Any]:
    name = "_".join(draw(st.lists(_NAMES, min_size=1, max_size=3)))
    hints = draw(st.none() | st.fixed_dictionaries({"readOnlyHint": st.booleans(), "recovery": _DECLARED}))
    return a_tool(name, gives=draw(st.none() | _FIELDS), annotations=hints, **draw(_FIELDS))


@given(st.lists(_tools(), min_size=1, max_size=6, unique_by=lambda tool: tool["name"].lower()))
def test_whatever_a_source_says_its_proposals_can_be_pasted_and_fit(tools: list[dict[str, Any]]) -> None:
    with TemporaryDirectory() as folder:
        config = a_source(Path(folder)).config
        offers = {"shop": Offer(tools=tuple(tools))}
        bare = load(config).config
        found = propose(bare, build(bare, offers))
        config.write_text(config.read_text() + "\n".join(as_yaml(found, below=False)))
        loaded = load(config)
    catalog = build(loaded.config, offers)
    assert list(misfits(loaded, catalog)) == []
    assert {tool.name: tool.effect for tool in catalog.listed()} == {
        proposal.tool: proposal.effect for proposal in found
    }
