"""The class of one call: what its arguments make of its tool is what policy sees and the record keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.server.builders import POLICY, Remit, a_remit, tools

from remit.config import Effect, ToolRules
from remit.front.answers import RECEIPT, to_wire
from remit.model import Done, Refused
from remit.undo import undo

#: Cheap things come back, dear ones do not, and asking for nothing is only looking.
RULES = tools(
    buy={
        "when": [
            {"if": "args.price == 0", "effect": "read"},
            {"if": "args.price > 50", "effect": "irreversible"},
            {"if": "args.price > 20", "effect": "compensable"},
        ]
    }
)


async def bought(remit: Remit, price: Any) -> Done:
    remit.source.on["buy"] = {"order": "o-1"}
    return await remit.done("shop.buy", {"thing": "pen", "price": price})


@pytest.mark.parametrize(
    ("price", "effect"),
    [(0, "read"), (5, "reversible"), (20, "reversible"), (21, "compensable"), (51, "irreversible")],
)
async def test_the_first_condition_that_holds_says_the_class(tmp_path: Path, price: int, effect: str) -> None:
    async with a_remit(tmp_path, tools=RULES) as remit:
        done = await bought(remit, price)
        taken_back = effect in ("reversible", "compensable")
        assert remit.record(done.call_id)["effect"] == effect
        receipt = to_wire(remit.a_call("shop.buy", {"thing": "pen", "price": price}), done)["_meta"][RECEIPT]
        assert receipt.get("undo", {}).get("class") == (effect if taken_back else None)
        assert len(remit.rows("SELECT 1 FROM undos")) == taken_back


async def test_policy_sees_the_class_of_the_call_and_whether_it_comes_back(tmp_path: Path) -> None:
    policy = POLICY.replace(
        "shop.buy, execute, r.args.price <= 100",
        "shop.buy, execute, r.ctx.effect == 'reversible' and r.ctx.undo_ready",
    )
    async with a_remit(tmp_path, tools=RULES, policy=policy) as remit:
        await bought(remit, 5)
        outcome = await remit.call("shop.buy", {"thing": "pen", "price": 51})
        assert not isinstance(outcome, Done)
        assert len(remit.source.effects("buy")) == 1


async def test_a_condition_that_cannot_be_answered_makes_the_call_irreversible(tmp_path: Path) -> None:
    rules = tools(buy={"when": [{"if": "args.colour == 'red'", "effect": "read"}]})
    async with a_remit(tmp_path, tools=rules) as remit:
        done = await bought(remit, 5)
        assert remit.record(done.call_id)["effect"] == "irreversible"
        assert remit.rows("SELECT 1 FROM undos") == []


async def test_a_condition_that_gives_no_truth_value_makes_the_call_irreversible(tmp_path: Path) -> None:
    async with a_remit(
        tmp_path, tools=tools(buy={"when": [{"if": "args.price", "effect": "read"}]})
    ) as remit:
        assert remit.record((await bought(remit, 5)).call_id)["effect"] == "irreversible"


async def test_safe_mode_goes_by_the_class_of_the_call(tmp_path: Path) -> None:
    async with a_remit(tmp_path, tools=RULES) as remit:
        await remit.switch("safe", "all")
        await bought(remit, 0)
        assert (await remit.refused("shop.buy", {"thing": "pen", "price": 5})).verdict.code == "safe_mode"


async def test_a_refined_call_is_taken_back_by_the_tools_way(tmp_path: Path) -> None:
    rules = tools(
        buy={
            "effect": "irreversible",
            "when": [{"if": "args.price <= 20", "effect": "reversible"}],
            "undo": {
                "call": "shop.give_back",
                "args": {"order": "result.order"},
                "verify": {
                    "call": "shop.look",
                    "args": {"thing": "args.thing"},
                    "expect": "result.value == 0",
                },
            },
        }
    )
    async with a_remit(tmp_path, tools=rules) as remit:
        remit.source.on["look"] = {"value": 1}
        done = await bought(remit, 5)
        call = remit.a_call("shop.look", {"thing": "pen"})
        outcome = await undo(done.call_id, call.principal, "run-1", remit.on)
        # Proved by looking, as the tool says: and it did not take hold.
        assert isinstance(outcome, Done)
        assert outcome.undone["state"] == "failed"
        assert remit.rows("SELECT 1 FROM undos") == [{"1": 1}]
        await bought(remit, 30)
        assert remit.rows("SELECT 1 FROM undos") == [{"1": 1}]


async def test_what_the_gateway_reads_for_itself_is_a_read_by_its_own_arguments(tmp_path: Path) -> None:
    rules = tools(look={"effect": "read", "when": [{"if": "args.thing == 'bomb'", "effect": "irreversible"}]})
    async with a_remit(tmp_path, tools=rules) as remit:
        remit.source.on["look"] = {"value": 7}
        await remit.done("shop.set", {"thing": "pen", "value": 9})
        outcome = await remit.call("shop.set", {"thing": "bomb", "value": 9})
        assert isinstance(outcome, Refused)
        assert outcome.verdict.code == "no_before_image"


def test_a_refinement_needs_what_its_class_needs() -> None:
    with pytest.raises(ValueError, match="effect reversible needs undo"):
        ToolRules.model_validate(
            {"effect": "irreversible", "when": [{"if": "args.a == 1", "effect": "reversible"}]}
        )
    with pytest.raises(ValueError, match="column"):
        ToolRules.model_validate({"effect": "read", "when": [{"if": "args.a >", "effect": "irreversible"}]})
    rules = ToolRules.model_validate(
        {"effect": "read", "when": [{"if": "args.a > 1", "effect": "irreversible"}]}
    )
    assert rules.when[0].effect is Effect.IRREVERSIBLE
