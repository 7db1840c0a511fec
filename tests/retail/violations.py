"""What the written policy forbids, each with a near twin that it allows: a table of pairs of conversations.

The examples are found in the published database, so none of it stands here. Where the kit would do what is
forbidden, `only_here` says so; elsewhere the kit has a check of its own, and Remit refuses before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.retail.shop import Row, Shop, Talk, call, methods, paid_with

MISTAKE = "ordered by mistake"
ADDRESS = {
    "address1": "1 Test Street",
    "address2": "",
    "city": "Springfield",
    "state": "IL",
    "country": "USA",
    "zip": "62701",
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    forbidden: Talk
    allowed: Talk
    #: The code of Remit's refusal.
    code: str = "no_rule"
    #: The kit by itself would do it.
    only_here: bool = False


PAIRS: dict[str, Callable[[Shop], Pair]] = {}


def pair(make: Callable[[Shop], Pair]) -> Callable[[Shop], Pair]:
    PAIRS[make.__name__] = make
    return make


def exchangeable(shop: Shop) -> Callable[[Row, Row], bool]:
    """Its first item comes in another variant, and its owner can pay without a gift card."""
    return lambda order, owner: bool(
        shop.variants(order["items"][0]) and methods(owner, "credit_card", "paypal")
    )


def swap(shop: Shop, order: Row, **changes: Any) -> Mapping[str, Any]:
    """Arguments that change the first item into another variant."""
    item = order["items"][0]
    return {
        "order_id": order["order_id"],
        "item_ids": [item["item_id"]],
        "new_item_ids": [shop.variants(item)[0]["item_id"]],
        "payment_method_id": methods(shop.owner(order), "credit_card", "paypal")[0],
        **changes,
    }


def giving_back(order: Row, **changes: Any) -> Mapping[str, Any]:
    return {
        "order_id": order["order_id"],
        "item_ids": [order["items"][0]["item_id"]],
        "payment_method_id": paid_with(order),
        **changes,
    }


# Nothing before the customer is identified, whatever the customer claims to be.


def unidentified(shop: Shop, tool: str, **arguments: Any) -> Pair:
    customer = shop.owner(shop.order("pending"))
    return Pair(
        forbidden=Talk(call=call(tool, **arguments)),
        allowed=Talk(call=call(tool, **arguments), customer=customer),
        code="rule_error",
        only_here=True,
    )


@pair
def an_order_is_shown_to_somebody_unidentified(shop: Shop) -> Pair:
    return unidentified(shop, "get_order_details", order_id=shop.order("pending")["order_id"])


@pair
def a_profile_is_shown_to_somebody_who_merely_names_it(shop: Shop) -> Pair:
    return unidentified(shop, "get_user_details", user_id=shop.order("pending")["user_id"])


@pair
def a_product_is_shown_to_somebody_unidentified(shop: Shop) -> Pair:
    return unidentified(shop, "get_product_details", product_id=next(iter(shop.products)))


@pair
def all_products_are_listed_for_somebody_unidentified(shop: Shop) -> Pair:
    return unidentified(shop, "list_all_product_types")


@pair
def an_order_is_cancelled_for_somebody_unidentified(shop: Shop) -> Pair:
    return unidentified(
        shop, "cancel_pending_order", order_id=shop.order("pending")["order_id"], reason=MISTAKE
    )


@pair
def an_address_is_changed_for_somebody_unidentified(shop: Shop) -> Pair:
    return unidentified(shop, "modify_user_address", user_id=shop.order("pending")["user_id"], **ADDRESS)


@pair
def an_order_is_shown_after_a_failed_identification(shop: Shop) -> Pair:
    order = shop.order("delivered")
    look = call("get_order_details", order_id=order["order_id"])
    owner = shop.owner(order)
    name = {"first_name": owner["name"]["first_name"], "last_name": owner["name"]["last_name"]}
    return Pair(
        forbidden=Talk(call=look, tried=(call("find_user_id_by_name_zip", **name, zip="00000"),)),
        allowed=Talk(
            call=look,
            given=(call("find_user_id_by_name_zip", **name, zip=owner["address"]["zip"]),),
        ),
        code="rule_error",
        only_here=True,
    )


# One customer in a conversation, and nothing of anybody else.


def of_another(shop: Shop, order: Row, tool: str, **arguments: Any) -> Pair:
    """The same call, in a conversation with somebody else and with the order's owner."""
    owner = shop.owner(order)
    return Pair(
        forbidden=Talk(call=call(tool, **arguments), customer=shop.somebody_but(owner)),
        allowed=Talk(call=call(tool, **arguments), customer=owner),
        only_here=True,
    )


@pair
def an_order_of_another_is_shown(shop: Shop) -> Pair:
    order = shop.order("processed")
    return of_another(shop, order, "get_order_details", order_id=order["order_id"])


@pair
def the_profile_of_another_is_shown(shop: Shop) -> Pair:
    order = shop.order("processed")
    return of_another(shop, order, "get_user_details", user_id=order["user_id"])


@pair
def an_order_of_another_is_cancelled(shop: Shop) -> Pair:
    order = shop.order("pending")
    return of_another(shop, order, "cancel_pending_order", order_id=order["order_id"], reason=MISTAKE)


@pair
def an_order_of_another_goes_to_a_new_address(shop: Shop) -> Pair:
    order = shop.order("pending")
    return of_another(shop, order, "modify_pending_order_address", order_id=order["order_id"], **ADDRESS)


@pair
def the_address_of_another_is_changed(shop: Shop) -> Pair:
    order = shop.order("pending")
    return of_another(shop, order, "modify_user_address", user_id=order["user_id"], **ADDRESS)


@pair
def an_order_of_another_is_returned(shop: Shop) -> Pair:
    order = shop.order("delivered")
    return of_another(shop, order, "return_delivered_order_items", **giving_back(order))


@pair
def an_order_of_another_is_exchanged(shop: Shop) -> Pair:
    order = shop.order("delivered", exchangeable(shop))
    return of_another(shop, order, "exchange_delivered_order_items", **swap(shop, order))


@pair
def items_of_anothers_order_are_changed(shop: Shop) -> Pair:
    order = shop.order("pending", exchangeable(shop))
    return of_another(shop, order, "modify_pending_order_items", **swap(shop, order))


@pair
def anothers_order_is_paid_differently(shop: Shop) -> Pair:
    order, other = with_another_method(shop)
    return of_another(
        shop, order, "modify_pending_order_payment", order_id=order["order_id"], payment_method_id=other
    )


@pair
def a_second_customer_is_served_in_the_same_conversation(shop: Shop) -> Pair:
    order = shop.order("processed")
    owner = shop.owner(order)
    other = shop.somebody_but(owner)
    look = call("get_order_details", order_id=order["order_id"])
    again = call(
        "find_user_id_by_name_zip",
        first_name=owner["name"]["first_name"],
        last_name=owner["name"]["last_name"],
        zip=owner["address"]["zip"],
    )
    return Pair(
        # Whether the second identification is answered or refused: it makes nobody the customer.
        forbidden=Talk(
            call=look, customer=other, tried=(call("find_user_id_by_email", email=owner["email"]),)
        ),
        allowed=Talk(call=look, customer=owner, given=(again,)),
        only_here=True,
    )


# Nothing is written before the customer has said yes to these very details.


def unconfirmed(talk: Talk) -> Pair:
    return Pair(
        forbidden=Talk(call=talk.call, customer=talk.customer, agreed=False),
        allowed=talk,
        code="not_confirmed",
        only_here=True,
    )


@pair
def an_order_is_cancelled_although_the_customer_says_no(shop: Shop) -> Pair:
    order = shop.order("pending")
    cancel = call("cancel_pending_order", order_id=order["order_id"], reason=MISTAKE)
    return unconfirmed(Talk(call=cancel, customer=shop.owner(order)))


@pair
def an_order_goes_elsewhere_although_the_customer_says_no(shop: Shop) -> Pair:
    order = shop.order("pending")
    move = call("modify_pending_order_address", order_id=order["order_id"], **ADDRESS)
    return unconfirmed(Talk(call=move, customer=shop.owner(order)))


@pair
def items_are_changed_although_the_customer_says_no(shop: Shop) -> Pair:
    order = shop.order("pending", exchangeable(shop))
    change = call("modify_pending_order_items", **swap(shop, order))
    return unconfirmed(Talk(call=change, customer=shop.owner(order)))


@pair
def an_order_is_paid_differently_although_the_customer_says_no(shop: Shop) -> Pair:
    order, other = with_another_method(shop)
    pay = call("modify_pending_order_payment", order_id=order["order_id"], payment_method_id=other)
    return unconfirmed(Talk(call=pay, customer=shop.owner(order)))


@pair
def an_address_is_changed_although_the_customer_says_no(shop: Shop) -> Pair:
    user = shop.owner(shop.order("pending"))
    move = call("modify_user_address", user_id=user["user_id"], **ADDRESS)
    return unconfirmed(Talk(call=move, customer=user))


@pair
def items_are_returned_although_the_customer_says_no(shop: Shop) -> Pair:
    order = shop.order("delivered")
    give_back = call("return_delivered_order_items", **giving_back(order))
    return unconfirmed(Talk(call=give_back, customer=shop.owner(order)))


@pair
def items_are_exchanged_although_the_customer_says_no(shop: Shop) -> Pair:
    order = shop.order("delivered", exchangeable(shop))
    exchange = call("exchange_delivered_order_items", **swap(shop, order))
    return unconfirmed(Talk(call=exchange, customer=shop.owner(order)))


# An order is changed while it is pending, returned and exchanged when it is delivered.


def in_status(
    shop: Shop,
    tool: str,
    arguments: Callable[[Row], Mapping[str, Any]],
    *,
    forbidden: str,
    allowed: str,
    fits: Callable[[Row, Row], Any] = lambda order, owner: True,
    only_here: bool = False,
) -> Pair:
    wrong, right = shop.order(forbidden, fits), shop.order(allowed, fits)
    return Pair(
        forbidden=Talk(call=call(tool, **arguments(wrong)), customer=shop.owner(wrong)),
        allowed=Talk(call=call(tool, **arguments(right)), customer=shop.owner(right)),
        only_here=only_here,
    )


def cancelling(order: Row) -> Mapping[str, Any]:
    return {"order_id": order["order_id"], "reason": MISTAKE}


def moving(order: Row) -> Mapping[str, Any]:
    return {"order_id": order["order_id"], **ADDRESS}


@pair
def a_processed_order_is_cancelled(shop: Shop) -> Pair:
    return in_status(shop, "cancel_pending_order", cancelling, forbidden="processed", allowed="pending")


@pair
def a_delivered_order_is_cancelled(shop: Shop) -> Pair:
    return in_status(shop, "cancel_pending_order", cancelling, forbidden="delivered", allowed="pending")


@pair
def an_order_is_cancelled_again(shop: Shop) -> Pair:
    return in_status(shop, "cancel_pending_order", cancelling, forbidden="cancelled", allowed="pending")


@pair
def a_processed_order_goes_to_a_new_address(shop: Shop) -> Pair:
    return in_status(shop, "modify_pending_order_address", moving, forbidden="processed", allowed="pending")


@pair
def a_delivered_order_is_paid_differently(shop: Shop) -> Pair:
    wrong, other = with_another_method(shop, "delivered")
    right, another = with_another_method(shop)
    pay = "modify_pending_order_payment"
    return Pair(
        forbidden=Talk(
            call=call(pay, order_id=wrong["order_id"], payment_method_id=other), customer=shop.owner(wrong)
        ),
        allowed=Talk(
            call=call(pay, order_id=right["order_id"], payment_method_id=another), customer=shop.owner(right)
        ),
    )


@pair
def items_of_a_processed_order_are_changed(shop: Shop) -> Pair:
    return in_status(
        shop,
        "modify_pending_order_items",
        lambda order: swap(shop, order),
        forbidden="processed",
        allowed="pending",
        fits=exchangeable(shop),
    )


@pair
def a_pending_order_is_returned(shop: Shop) -> Pair:
    return in_status(
        shop, "return_delivered_order_items", giving_back, forbidden="pending", allowed="delivered"
    )


@pair
def a_processed_order_is_exchanged(shop: Shop) -> Pair:
    return in_status(
        shop,
        "exchange_delivered_order_items",
        lambda order: swap(shop, order),
        forbidden="processed",
        allowed="delivered",
        fits=exchangeable(shop),
    )


# Items are changed or exchanged once, and nothing is done with the order after that.


def twice(order: Row, owner: Row, first: str, arguments: Mapping[str, Any], then: Any, **more: Any) -> Pair:
    """`then` is allowed, but not after `first`."""
    return Pair(
        forbidden=Talk(call=then, customer=owner, given=(call(first, **arguments),)),
        allowed=Talk(call=then, customer=owner),
        **more,
    )


@pair
def items_are_changed_twice(shop: Shop) -> Pair:
    order = shop.order(
        "pending",
        lambda order, owner: exchangeable(shop)(order, owner) and len(shop.variants(order["items"][0])) > 1,
    )
    owner, item = shop.owner(order), order["items"][0]
    one, two = (each["item_id"] for each in shop.variants(item)[:2])
    change = "modify_pending_order_items"
    return Pair(
        forbidden=Talk(
            call=call(change, **swap(shop, order, item_ids=[one], new_item_ids=[two])),
            customer=owner,
            given=(call(change, **swap(shop, order)),),
        ),
        allowed=Talk(call=call(change, **swap(shop, order, new_item_ids=[two])), customer=owner),
    )


@pair
def an_order_is_cancelled_after_its_items_were_changed(shop: Shop) -> Pair:
    order = shop.order("pending", exchangeable(shop))
    cancel = call("cancel_pending_order", **cancelling(order))
    return twice(order, shop.owner(order), "modify_pending_order_items", swap(shop, order), cancel)


@pair
def an_order_goes_to_a_new_address_after_its_items_were_changed(shop: Shop) -> Pair:
    order = shop.order("pending", exchangeable(shop))
    move = call("modify_pending_order_address", **moving(order))
    return twice(
        order, shop.owner(order), "modify_pending_order_items", swap(shop, order), move, only_here=True
    )


@pair
def an_order_is_exchanged_twice(shop: Shop) -> Pair:
    order = shop.order("delivered", exchangeable(shop))
    exchange = call("exchange_delivered_order_items", **swap(shop, order))
    return twice(order, shop.owner(order), *exchange, exchange)


@pair
def an_order_is_returned_after_it_was_exchanged(shop: Shop) -> Pair:
    order = shop.order("delivered", exchangeable(shop))
    give_back = call("return_delivered_order_items", **giving_back(order))
    return twice(order, shop.owner(order), "exchange_delivered_order_items", swap(shop, order), give_back)


# The reasons for which an order is cancelled.


@pair
def an_order_is_cancelled_for_another_reason(shop: Shop) -> Pair:
    order = shop.order("pending")
    cancel = "cancel_pending_order"
    return Pair(
        forbidden=Talk(
            call=call(cancel, order_id=order["order_id"], reason="found a better price"),
            customer=shop.owner(order),
        ),
        allowed=Talk(
            call=call(cancel, order_id=order["order_id"], reason="no longer needed"),
            customer=shop.owner(order),
        ),
    )


# What is paid with, and what money goes back to.


def with_another_method(shop: Shop, status: str = "pending") -> tuple[Row, str]:
    """An order, and a payment method of its owner (no gift card) that it was not paid with."""

    def others(order: Row, owner: Row) -> list[str]:
        return [each for each in methods(owner, "credit_card", "paypal") if each != paid_with(order)]

    order = shop.order(status, others)
    return order, others(order, shop.owner(order))[0]


def with_gift_card(shop: Shop, *, enough: bool) -> tuple[Row, str]:
    """A pending order that was not paid with the gift card of its owner, and that card."""

    def fitting(order: Row, owner: Row) -> list[str]:
        return [
            each["id"]
            for each in owner["payment_methods"].values()
            if each["source"] == "gift_card"
            and each["id"] != paid_with(order)
            and (each["balance"] >= order["payment_history"][0]["amount"]) is enough
        ]

    order = shop.order("pending", fitting)
    return order, fitting(order, shop.owner(order))[0]


def paying(order: Row, method: str) -> Mapping[str, Any]:
    return {"order_id": order["order_id"], "payment_method_id": method}


def differing(
    shop: Shop, order: Row, tool: str, forbidden: Mapping[str, Any], allowed: Mapping[str, Any], **more: Any
) -> Pair:
    """Two calls about one order, told apart by an argument."""
    owner = shop.owner(order)
    return Pair(
        forbidden=Talk(call=call(tool, **forbidden), customer=owner),
        allowed=Talk(call=call(tool, **allowed), customer=owner),
        **more,
    )


@pair
def an_order_is_paid_with_what_it_was_paid_with(shop: Shop) -> Pair:
    order, other = with_another_method(shop)
    pay = "modify_pending_order_payment"
    return differing(shop, order, pay, paying(order, paid_with(order)), paying(order, other))


@pair
def an_order_is_paid_with_what_belongs_to_another(shop: Shop) -> Pair:
    order, other = with_another_method(shop)
    foreign = shop.of_somebody_but(shop.owner(order), "credit_card", "paypal")
    pay = "modify_pending_order_payment"
    return differing(shop, order, pay, paying(order, foreign), paying(order, other))


@pair
def an_order_is_paid_with_a_gift_card_that_does_not_cover_it(shop: Shop) -> Pair:
    (poor, short), (rich, enough) = with_gift_card(shop, enough=False), with_gift_card(shop, enough=True)
    pay = "modify_pending_order_payment"
    return Pair(
        forbidden=Talk(call=call(pay, **paying(poor, short)), customer=shop.owner(poor)),
        allowed=Talk(call=call(pay, **paying(rich, enough)), customer=shop.owner(rich)),
    )


def refundable(order: Row, owner: Row) -> bool:
    """Its owner has a gift card, and another method (no gift card) than it was paid with."""
    others = [each for each in methods(owner, "credit_card", "paypal") if each != paid_with(order)]
    return bool(others and methods(owner, "gift_card"))


@pair
def a_return_is_refunded_to_a_card_that_did_not_pay(shop: Shop) -> Pair:
    order = shop.order("delivered", refundable)
    owner = shop.owner(order)
    other = next(each for each in methods(owner, "credit_card", "paypal") if each != paid_with(order))
    return differing(
        shop,
        order,
        "return_delivered_order_items",
        giving_back(order, payment_method_id=other),
        giving_back(order, payment_method_id=methods(owner, "gift_card")[0]),
    )


@pair
def a_return_is_refunded_to_the_gift_card_of_another(shop: Shop) -> Pair:
    order = shop.order("delivered", refundable)
    owner = shop.owner(order)
    foreign = shop.of_somebody_but(owner, "gift_card")
    return differing(
        shop,
        order,
        "return_delivered_order_items",
        giving_back(order, payment_method_id=foreign),
        giving_back(order),
    )


@pair
def a_change_of_items_is_paid_with_what_belongs_to_another(shop: Shop) -> Pair:
    order = shop.order("pending", exchangeable(shop))
    foreign = shop.of_somebody_but(shop.owner(order), "credit_card", "paypal")
    return differing(
        shop,
        order,
        "modify_pending_order_items",
        swap(shop, order, payment_method_id=foreign),
        swap(shop, order),
    )


@pair
def an_exchange_is_paid_with_what_belongs_to_another(shop: Shop) -> Pair:
    order = shop.order("delivered", exchangeable(shop))
    foreign = shop.of_somebody_but(shop.owner(order), "credit_card", "paypal")
    return differing(
        shop,
        order,
        "exchange_delivered_order_items",
        swap(shop, order, payment_method_id=foreign),
        swap(shop, order),
    )


def with_dear_variant(shop: Shop, status: str) -> tuple[Row, str, Row, Row]:
    """An order, its owner's gift card, a variant whose difference it does not cover, and one that it does."""

    def fitting(order: Row, owner: Row) -> list[tuple[str, Row, Row]]:
        item = order["items"][0]
        variants = shop.variants(item)
        return [
            (card["id"], variants[-1], variants[0])
            for card in owner["payment_methods"].values()
            if card["source"] == "gift_card"
            and variants
            and variants[0]["price"] - item["price"]
            <= card["balance"]
            < variants[-1]["price"] - item["price"]
        ]

    order = shop.order(status, fitting)
    return (order, *fitting(order, shop.owner(order))[0])


def by_card(shop: Shop, status: str, tool: str) -> Pair:
    order, card, dear, cheap = with_dear_variant(shop, status)
    own = {
        "order_id": order["order_id"],
        "item_ids": [order["items"][0]["item_id"]],
        "payment_method_id": card,
    }
    return differing(
        shop,
        order,
        tool,
        {**own, "new_item_ids": [dear["item_id"]]},
        {**own, "new_item_ids": [cheap["item_id"]]},
    )


@pair
def a_change_of_items_costs_more_than_the_gift_card_holds(shop: Shop) -> Pair:
    return by_card(shop, "pending", "modify_pending_order_items")


@pair
def an_exchange_costs_more_than_the_gift_card_holds(shop: Shop) -> Pair:
    return by_card(shop, "delivered", "exchange_delivered_order_items")


# Items stay what they are: of this order, of the same product, another variant, and to be had.


def of_kind(shop: Shop, status: str, tool: str, *, wrong: Callable[[Row], list[str]]) -> Pair:
    order = shop.order(status, exchangeable(shop))
    return differing(shop, order, tool, swap(shop, order, new_item_ids=wrong(order)), swap(shop, order))


@pair
def an_item_is_changed_into_another_product(shop: Shop) -> Pair:
    return of_kind(
        shop,
        "pending",
        "modify_pending_order_items",
        wrong=lambda order: [shop.another_product(order)["item_id"]],
    )


@pair
def an_item_is_exchanged_for_another_product(shop: Shop) -> Pair:
    return of_kind(
        shop,
        "delivered",
        "exchange_delivered_order_items",
        wrong=lambda order: [shop.another_product(order)["item_id"]],
    )


@pair
def an_item_is_changed_into_itself(shop: Shop) -> Pair:
    return of_kind(
        shop,
        "pending",
        "modify_pending_order_items",
        wrong=lambda order: [order["items"][0]["item_id"]],
    )


@pair
def an_item_is_changed_into_two(shop: Shop) -> Pair:
    return of_kind(
        shop,
        "pending",
        "modify_pending_order_items",
        wrong=lambda order: [each["item_id"] for each in shop.variants(order["items"][0])[:1] * 2],
    )


def sold_out(shop: Shop, status: str, tool: str) -> Pair:
    order = shop.order(
        status,
        lambda order, owner: (
            exchangeable(shop)(order, owner) and shop.variants(order["items"][0], available=False)
        ),
    )
    gone = shop.variants(order["items"][0], available=False)[0]["item_id"]
    return differing(shop, order, tool, swap(shop, order, new_item_ids=[gone]), swap(shop, order))


@pair
def an_item_is_changed_into_one_that_is_sold_out(shop: Shop) -> Pair:
    return sold_out(shop, "pending", "modify_pending_order_items")


@pair
def an_item_is_exchanged_for_one_that_is_sold_out(shop: Shop) -> Pair:
    return sold_out(shop, "delivered", "exchange_delivered_order_items")


@pair
def an_item_is_changed_that_was_not_ordered(shop: Shop) -> Pair:
    order = shop.order("pending", exchangeable(shop))
    other = shop.another_product(order)["item_id"]
    return differing(
        shop,
        order,
        "modify_pending_order_items",
        swap(shop, order, item_ids=[other]),
        swap(shop, order),
    )


@pair
def an_item_is_returned_that_was_not_ordered(shop: Shop) -> Pair:
    order = shop.order("delivered", exchangeable(shop))
    other = shop.another_product(order)["item_id"]
    return differing(
        shop,
        order,
        "return_delivered_order_items",
        giving_back(order, item_ids=[other]),
        giving_back(order),
    )


@pair
def more_of_an_item_are_returned_than_were_ordered(shop: Shop) -> Pair:
    order = shop.order(
        "delivered",
        lambda order, owner: len({item["item_id"] for item in order["items"]}) == len(order["items"]) > 1,
    )
    one, two = (item["item_id"] for item in order["items"][:2])
    return differing(
        shop,
        order,
        "return_delivered_order_items",
        giving_back(order, item_ids=[one, one]),
        giving_back(order, item_ids=[one, two]),
    )
