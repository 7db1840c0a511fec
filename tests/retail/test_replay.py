"""The published tasks through Remit: what an agent should do for each is let through, and does the same.

The actions of a task do not always begin with identifying the customer, although the policy wants it; then
the conversation begins with that. It reads and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tests.retail import kit_server
from tests.retail.shop import Call, Governed, Shop, identified

#: Every task is played by the slow test, these few on every change.
FEW = slice(None, None, 8)
#: Calls of the tasks that break the written policy. The kit refuses them; now Remit does so before.
FORBIDDEN = {
    # A refund to what the order was not paid with.
    ("12", "return_delivered_order_items"),
    ("13", "return_delivered_order_items"),
    # An exchange of what has not been delivered.
    ("64", "exchange_delivered_order_items"),
    # A gift card that does not cover the difference.
    ("105", "exchange_delivered_order_items"),
}


@pytest.fixture(scope="module")
def tasks(shop: Shop) -> Sequence[dict[str, Any]]:
    return kit_server.tasks(kit_server.unpacked())


async def test_a_slice_of_the_tasks_ends_as_it_does_without_remit(
    shop: Shop, remit: Governed, tasks: Sequence[dict[str, Any]]
) -> None:
    for task in tasks[FEW]:
        await replay(task, shop, remit)


@pytest.mark.slow
async def test_every_task_ends_as_it_does_without_remit(
    shop: Shop, remit: Governed, tasks: Sequence[dict[str, Any]]
) -> None:
    assert len(tasks) == 114
    for task in tasks:
        await replay(task, shop, remit)


async def replay(task: dict[str, Any], shop: Shop, remit: Governed) -> None:
    """Make the calls of one task on the kit and through Remit: the same answers, the same database."""
    calls = calls_of(task)
    shop.kit.database = shop.published
    remit.put(shop.published)
    async with remit.conversation() as ask:
        for call in opening(calls, shop):
            assert not (await ask(call)).is_error
        for call in calls:
            expected, answer = await shop.answer(call), await ask(call)
            if (task["id"], call[0]) in FORBIDDEN and expected.is_error:
                assert (answer.is_error, answer.code) == (True, "no_rule"), (task["id"], call, answer)
            else:
                assert (answer.text, answer.is_error) == (expected.text, expected.is_error), (
                    task["id"],
                    call,
                )
    assert remit.database == shop.kit.database, task["id"]


def calls_of(task: dict[str, Any]) -> list[Call]:
    return [(each["name"], each["arguments"]) for each in task["evaluation_criteria"]["actions"] or []]


def opening(calls: Sequence[Call], shop: Shop) -> Sequence[Call]:
    """Identify the customer where the task's own calls do not."""
    if any(tool.startswith("find_user_id") for tool, _ in calls):
        return ()
    orders = [
        shop.orders[each["order_id"]]["user_id"] for _, each in calls if each.get("order_id") in shop.orders
    ]
    customers = {*orders, *(each["user_id"] for _, each in calls if "user_id" in each)}
    assert len(customers) <= 1
    return identified(shop.users[customers.pop()]) if customers else ()
