"""Each call that the written policy forbids is refused and changes nothing; its near twin is made."""

import pytest
from tests.retail.shop import Governed, Shop
from tests.retail.violations import PAIRS


def test_there_are_more_than_enough_of_them() -> None:
    assert len(PAIRS) >= 25


#: Every pair is tried by the slow tests, one in four on every change.
NAMES = [
    pytest.param(name, marks=() if number % 4 == 0 else pytest.mark.slow) for number, name in enumerate(PAIRS)
]


@pytest.mark.parametrize("name", NAMES)
async def test_it_is_refused_that(name: str, shop: Shop, remit: Governed) -> None:
    pair = PAIRS[name](shop)

    remit.put(shop.published)
    async with remit.conversation(pair.forbidden) as ask:
        before = remit.database
        refused = await ask(pair.forbidden.call)
    assert (refused.is_error, refused.code) == (True, pair.code), refused
    assert remit.database == before
    # What the kit by itself would have done.
    shop.kit.database = before
    assert (await shop.answer(pair.forbidden.call)).is_error is not pair.only_here

    remit.put(shop.published)
    async with remit.conversation(pair.allowed) as ask:
        made = await ask(pair.allowed.call)
    assert not made.is_error, made
    assert remit.database == await shop.directly(*pair.allowed.given, pair.allowed.call)
