"""Identifiers and the clock: what the rest injects instead of reading time or randomness itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

#: Microseconds since 1970-01-01 UTC.
Clock = Callable[[], int]


def now_us() -> int:
    return time.time_ns() // 1000


def uuid7(at_us: int) -> str:
    """A UUID in the order of time (RFC 9562 §5.7), to the microsecond.

    48 bits of milliseconds, 12 bits of the fraction of one (§6.2, method 3), then 62 random bits.
    """
    milliseconds, microseconds = divmod(at_us, 1000)
    value = (milliseconds & (2**48 - 1)) << 80 | 7 << 76 | (microseconds << 12) // 1000 << 64
    value |= 0b10 << 62 | int.from_bytes(os.urandom(8)) >> 2
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def first_id(at_us: int) -> str:
    """What no UUIDv7 of that time or later is less than."""
    milliseconds = f"{at_us // 1000:012x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}"
