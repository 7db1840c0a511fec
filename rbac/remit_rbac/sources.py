"""Policy rows from elsewhere than files: a Casbin table, or anything with a pycasbin adapter.

Each function only fetches. The rows go to `load_rows`, which checks them like those of a file.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sqlalchemy import Connection


def table_rows(connection: Connection, name: str = "casbin_rule") -> list[list[str]]:
    """The rows of the table that Casbin's SQLAlchemy adapters keep, ordered by id.

    The adapters themselves read without an order, so their line numbers would change between loads.
    """
    from sqlalchemy import Integer, String, column, select, table  # slow to load, and files need none of it

    values = [column(value, String) for value in ("ptype", "v0", "v1", "v2", "v3", "v4", "v5")]
    statement = select(*values).select_from(table(name)).order_by(column("id", Integer))
    return [_without_tail(row) for row in connection.execute(statement)]


class Adapter(Protocol):
    """What is used of a pycasbin adapter, asynchronous or not."""

    def load_policy(self, model: Any) -> Awaitable[None] | None: ...


def adapter_rows(adapter: Adapter) -> list[list[str]]:
    """All rows that an adapter offers, also those that Casbin would skip because it knows no such type.

    In the adapter's order. Waits for an asynchronous adapter. Raises whatever the adapter raises.
    """
    recorder = _Recorder()
    loading = adapter.load_policy(recorder)
    if inspect.isawaitable(loading):
        # An event loop of its own, for the caller may be in one already.
        with ThreadPoolExecutor(max_workers=1) as thread:
            thread.submit(asyncio.run, _finished(loading)).result()
    return recorder.rows


async def _finished(loading: Awaitable[None]) -> None:
    await loading


def _without_tail(values: Sequence[str | None]) -> list[str]:
    """Unused columns at the end are null or empty; an empty column in between is a mistake to report."""
    texts = [value or "" for value in values]
    while texts and not texts[-1]:
        texts.pop()
    return texts


class _Recorder:
    """Stands where an adapter expects Casbin's model, and takes every row of every type."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []

    @property
    def model(self) -> _Sections:
        return _Sections(self)

    def __getitem__(self, section: str) -> _Sections:
        return _Sections(self)

    def add_policy(self, section: str, ptype: str, values: Sequence[str]) -> None:
        self.rows.append([ptype, *values])


class _Sections:
    """A mapping of sections, or of the row types in one, that has every key."""

    def __init__(self, recorder: _Recorder, ptype: str = "") -> None:
        self._recorder = recorder
        self._ptype = ptype

    def keys(self) -> _Sections:
        return self

    def __contains__(self, key: str) -> bool:
        return True

    def __getitem__(self, key: str) -> _Sections:
        return _Sections(self._recorder, key)

    @property
    def policy(self) -> _Sections:
        return self

    def append(self, values: Sequence[str]) -> None:
        self._recorder.add_policy("", self._ptype, values)
