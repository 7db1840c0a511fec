"""Whether a configuration fits what a source offers: everything that does not is found, at its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.server.acme import CONFIG, a_call, a_place, serving

from remit.catalog import build, rules_for
from remit.cli.exported import ask
from remit.config_file import load
from remit.context import context_of
from remit.context_schema import context_schema
from remit.fit import misfits
from remit_adapters.base import Offer

Definitions = tuple[dict[str, Any], ...]
Edit = Callable[[str], str]
#: What the way back of a refund is given.
GIVEN = "args: {refund_id: result.refund_id}\n      within"


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> Definitions:
    """Acme's tools in its own words: asked once."""
    loaded = load(a_place(tmp_path_factory.mktemp("asked")))
    tools = anyio.run(ask, loaded).catalog.listed()
    return tuple({**tool.definition, "name": tool.own_name} for tool in tools)


def changed(old: str, new: str) -> Edit:
    def edit(text: str) -> str:
        assert text.count(old) >= 1, old
        return text.replace(old, new)

    return edit


def found(folder: Path, text: str, definitions: Definitions, *absent: str) -> dict[str, bool]:
    """What does not fit, each as people read it, and whether it is only a warning."""
    config = a_place(folder)
    config.write_text(text)
    loaded = load(config)
    offers = {} if absent else {"acme": Offer(tools=definitions)}
    catalog = build(loaded.config, offers)
    return {str(each.problem): each.warning for each in misfits(loaded, catalog, absent=absent)}


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def test_what_fits_is_not_reported(tmp_path: Path, definitions: Definitions) -> None:
    assert found(tmp_path, CONFIG, definitions) == {}


@pytest.mark.parametrize(
    ("edit", "at", "message"),
    [
        (
            changed("acme.get_*:", "amce.get_*: {effect: read}\n  acme.get_*:"),
            "amce.get_*:",
            "tools.amce.get_*: no source offers such a tool",
        ),
        (
            changed("call: acme.cancel_refund", "call: acme.cancel_refunds"),
            "undo:",
            "no source offers acme.cancel_refunds, so there is no way back",
        ),
        (
            changed(GIVEN, "args: {id: result.refund_id}\n      within"),
            "undo:",
            "acme.cancel_refund has no argument id",
        ),
        (
            changed(GIVEN, "args: {}\n      within"),
            "undo:",
            "acme.cancel_refund needs the argument refund_id, which args does not give",
        ),
        (
            changed("resource: args.order_id", "resource: args.order"),
            "resource:",
            "the tool has no argument order",
        ),
        (
            changed("eur_minor: args.amount_minor", "eur_minor: args.amount"),
            "price:",
            "the tool has no argument amount",
        ),
        (
            changed("idempotency_arg: idempotency_key", "idempotency_arg: key"),
            "idempotency_arg:",
            "the tool has no argument key",
        ),
        (
            changed("call: acme.get_refund", "call: acme.cancel_refund"),
            "undo:",
            "acme.cancel_refund must be a read: give it effect: read, or name another",
        ),
    ],
)
def test_what_does_not_fit_is_found_at_its_line(
    tmp_path: Path, definitions: Definitions, edit: Edit, at: str, message: str
) -> None:
    text = edit(CONFIG)
    problems = [each for each, warning in found(tmp_path, text, definitions).items() if not warning]
    assert [each for each in problems if f"remit.yaml:{line_of(text, at)}:" in each and message in each], (
        problems
    )


def test_a_result_that_is_not_declared_is_a_warning(tmp_path: Path, definitions: Definitions) -> None:
    text = CONFIG.replace(GIVEN, "args: {refund_id: result.refund}\n      within")
    ((problem, warning),) = found(tmp_path, text, definitions).items()
    assert "result.refund is not in the declared output" in problem
    assert f"remit.yaml:{line_of(text, 'undo:')}:" in problem
    assert warning


def test_a_price_in_a_unit_that_no_budget_counts_is_a_warning(
    tmp_path: Path, definitions: Definitions
) -> None:
    text = CONFIG.replace("eur_minor: args.amount_minor", "usd_minor: args.amount_minor")
    text = text.replace("unit: eur_minor", "unit: calls, id: agent:other")
    ((problem, warning),) = found(tmp_path, text, definitions).items()
    assert f"remit.yaml:{line_of(text, 'price:')}:" in problem
    assert "no budget counts usd_minor, so what calls cost in it is on no record" in problem
    assert warning


def test_a_budget_in_a_unit_that_nothing_costs_is_a_warning(tmp_path: Path, definitions: Definitions) -> None:
    text = f"{CONFIG}  - {{scope: agent, unit: tokens, window: total, limit: 5}}\n"
    ((problem, warning),) = found(tmp_path, text, definitions).items()
    assert "budgets[2].unit: no tool has a price in tokens" in problem
    assert warning


def test_an_entry_with_a_star_names_each_tool_that_it_does_not_fit(
    tmp_path: Path, definitions: Definitions
) -> None:
    reads = "acme.get_*: {effect: read"
    problems = found(tmp_path, CONFIG.replace(reads, f"{reads}, resource: args.order_id"), definitions)
    assert len(problems) == 3
    assert any("acme.get_customer: the tool has no argument order_id" in problem for problem in problems)
    assert not any("acme.get_order:" in problem for problem in problems)


def test_a_tool_that_cannot_be_exported_is_reported_at_its_source(
    tmp_path: Path, definitions: Definitions
) -> None:
    odd = ({"name": "bad name", "inputSchema": {"type": "object"}}, *definitions)
    (problem,) = found(tmp_path, CONFIG, odd)
    assert "sources.acme: acme.bad name is not exported: its name is not A-Z" in problem


def test_what_belongs_to_an_absent_source_is_not_judged(tmp_path: Path) -> None:
    assert found(tmp_path, CONFIG, (), "acme") == {}


def test_rules_may_read_all_that_the_pipeline_gives_them(tmp_path: Path) -> None:
    config = a_place(tmp_path)

    async def given() -> set[str]:
        async with serving(config) as on:
            call = a_call(on, "acme.list_orders", {})
            return set(context_of(call, on.config, {}, undo_ready=False))

    known = set(context_schema(load(config).config)["properties"]) - {"parsed", "facts", "derived"}
    # The policy itself adds who of the chain is asked about.
    assert known == anyio.run(given) | {"in_chain"}


def test_entries_of_tools_are_merged_field_by_field_as_the_file_says(tmp_path: Path) -> None:
    rules = rules_for(load(a_place(tmp_path)).config, "acme.refund")
    assert (rules.effect, rules.on_error) == ("reversible", "no_effect")
