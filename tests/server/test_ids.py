"""Ids tell when: what is listed by id is listed in the order of time."""

from __future__ import annotations

from uuid import RFC_4122, UUID

from hypothesis import given
from hypothesis import strategies as st

from remit.ids import first_id, uuid7

times = st.integers(0, 2**48 * 1000 - 1)


@given(times, times)
def test_an_id_of_an_earlier_microsecond_is_less(one: int, other: int) -> None:
    earlier, later = sorted((one, other))
    assert earlier == later or uuid7(earlier) < uuid7(later)
    assert first_id(earlier) <= uuid7(later)


@given(times)
def test_an_id_is_a_uuid_of_its_millisecond_and_of_no_other_call(at_us: int) -> None:
    read = UUID(text := uuid7(at_us))
    assert (str(read), read.version, read.variant) == (text, 7, RFC_4122)
    assert read.int >> 80 == at_us // 1000
    assert uuid7(at_us) != text
