"""What can be taken back on an interface that mostly has no inverse, and whether Remit is honest about it.

Of the seven tools that write, two put back exactly what was there, two hand what was asked for to a person,
and three cannot be taken back at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from tests.retail import violations
from tests.retail.kit_server import WRITES
from tests.retail.shop import Answer, Governed, Shop, Talk, call, governed

EXACT = {
    "modify_pending_order_address": violations.an_order_of_another_goes_to_a_new_address,
    "modify_user_address": violations.the_address_of_another_is_changed,
}
BY_A_PERSON = {
    "exchange_delivered_order_items": violations.an_order_of_another_is_exchanged,
    "return_delivered_order_items": violations.an_order_of_another_is_returned,
}
NEVER = {
    "cancel_pending_order": violations.an_order_of_another_is_cancelled,
    "modify_pending_order_items": violations.items_of_anothers_order_are_changed,
    "modify_pending_order_payment": violations.anothers_order_is_paid_differently,
}
#: Everything may be done, so that the kit's own checks are met.
ALL_ALLOWED = """\
g3, agent:assistant, user:desk, shop
p, agent:assistant, shop, *, *, 1 == 1, allow
p, user:desk, shop, *, *, 1 == 1, allow
"""


@pytest.fixture(scope="module")
def lenient(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Governed]:
    with governed(tmp_path_factory.mktemp("lenient"), shop, policy=ALL_ALLOWED) as remit:
        yield remit


def test_each_tool_that_writes_is_in_one_class() -> None:
    assert sorted([*EXACT, *BY_A_PERSON, *NEVER]) == sorted(WRITES)


def undo(answer: Answer) -> tuple[str, dict[str, str]]:
    return call("remit.undo", call_id=answer.receipt["call_id"])


@pytest.mark.parametrize("tool", EXACT)
async def test_an_exact_inverse_restores_the_database_byte_for_byte(
    tool: str, shop: Shop, remit: Governed
) -> None:
    talk = EXACT[tool](shop).allowed
    remit.put(shop.published)
    async with remit.conversation(talk) as ask:
        done = await ask(talk.call)
        assert done.receipt["undo"]["class"] == "restorable"
        assert remit.database != shop.published
        undone = await ask(undo(done))
        assert json.loads(undone.text)["state"] == "done", undone
        assert remit.database == shop.published
        assert (await ask(undo(done))).is_error
        assert remit.database == shop.published


@pytest.mark.parametrize("tool", BY_A_PERSON)
async def test_a_compensation_says_what_stays_behind(tool: str, shop: Shop, remit: Governed) -> None:
    talk = BY_A_PERSON[tool](shop).allowed
    remit.put(shop.published)
    async with remit.conversation(talk) as ask:
        done = await ask(talk.call)
        assert done.receipt["undo"]["class"] == "compensable"
        after = remit.database
        undone = json.loads((await ask(undo(done))).text)
        assert undone["state"] == "done"
        assert "until a person" in undone["residue"].lower()
        # And so it is: nothing of the shop's own data has come back.
        assert remit.database == after


@pytest.mark.parametrize("tool", NEVER)
async def test_what_cannot_be_taken_back_is_known_before_it_is_done(
    tool: str, shop: Shop, remit: Governed
) -> None:
    talk = NEVER[tool](shop).allowed
    _, arguments = talk.call
    remit.put(shop.published)
    async with remit.conversation(talk) as ask:
        told = await ask(call("remit.explain", tool=f"retail.{tool}", arguments=arguments))
        assert json.loads(told.text)["undo"] is None
        assert remit.database == shop.published
        done = await ask(talk.call)
        assert "undo" not in done.receipt, done
        after = remit.database
        assert after != shop.published
        assert (await ask(undo(done))).is_error
        assert remit.database == after
    (row,) = remit.rows("SELECT effect FROM calls WHERE id = ?", done.receipt["call_id"])
    assert row["effect"] == "irreversible"


async def test_a_call_that_the_shop_refused_has_nothing_to_take_back(shop: Shop, lenient: Governed) -> None:
    order = shop.order("processed")
    pending = shop.order("pending")
    moved = call("modify_pending_order_address", **violations.moving(order))
    returned = call("return_delivered_order_items", **violations.giving_back(pending))
    lenient.put(shop.published)
    async with lenient.conversation() as ask:
        for failing in (moved, returned):
            answer, expected = await ask(failing), await shop.answer(failing)
            assert (answer.text, answer.is_error, answer.code) == (expected.text, True, None)
            (row,) = lenient.rows(
                "SELECT id, state FROM calls WHERE kind = 'call' ORDER BY created_us DESC LIMIT 1"
            )
            assert row["state"] == "failed"
            refused = await ask(call("remit.undo", call_id=row["id"]))
            assert refused.is_error, refused
    assert lenient.database == shop.published


async def test_a_later_change_of_the_same_is_not_overwritten(shop: Shop, remit: Governed) -> None:
    talk: Talk = EXACT["modify_user_address"](shop).allowed
    tool, arguments = talk.call
    later = call(tool, **{**arguments, "address1": "2 Other Street"})
    remit.put(shop.published)
    async with remit.conversation(talk) as ask:
        first = await ask(talk.call)
        assert not (await ask(later)).is_error
        after = remit.database
        assert (await ask(undo(first))).is_error
        assert remit.database == after
