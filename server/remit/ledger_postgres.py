"""PostgreSQL under the ledger: one database, shared by replicas, one of which writes at a time.

Every transaction begins by locking the one row of `write_turn`, as BEGIN IMMEDIATE does for SQLite:
balances are exact, nothing can deadlock, and the row counts the transactions, so each replica knows whether
others have written. A batch of calls shares a turn, so that costs one round trip for each batch. A replica
that is stopped in its turn loses it: the server ends a transaction in which nothing happens.

Which replica lives is told by a lease on the database's own clock. Who does not renew it for that long is
taken for dead; if it was only asleep, it begins another life, and writes there what it knows of its calls.

The ledger owns its life. Only the writer's thread uses it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from remit.database import Postgres, Row
from remit.errors import Interrupted, Unsure
from remit.ids import Clock, uuid7
from remit.postgres import Session
from remit.writer import OthersWrite

#: Microseconds since 1970-01-01 UTC, by the server's clock.
_NOW = "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint"
_TURN = f"SELECT writes, {_NOW} AS now_us FROM write_turn FOR UPDATE"  # noqa: S608 - nothing in it is anybody's
#: A lease is renewed when this part of it has passed, and nothing is sent any more in its last part.
_RENEW, _MARGIN = 0.25, 0.2


class PostgresStore:
    def __init__(
        self, at: Postgres, *, stream: str, role: str, relaxed: bool, lease_s: float, clock: Clock
    ) -> None:
        self._at = at
        self._stream = stream
        self._role = role
        self._relaxed = relaxed
        self._lease_us = int(lease_s * 1_000_000)
        self._clock = clock
        self._session: Session | None = Session(at, name=role)
        self._now_us = 0
        #: The count of `write_turn` that this replica has seen; None: it must look at everything again.
        self._seen: int | None = None
        #: What the transaction does beside what it was begun for.
        self._wrote = self._renewing = False
        #: Seconds on this machine's clock that is never set: when the transaction began, and the one that
        #: renewed the lease last.
        self._began_s = 0.0
        self._renewed_s = float("-inf")

    @property
    def holds_lease(self) -> bool:
        """Whether nobody can have taken this replica for dead yet."""
        return time.monotonic() < self._renewed_s + (1 - _MARGIN) * self._lease_us / 1_000_000

    def begin(self, *, durable: bool, wait: bool) -> bool:
        if not wait:
            raise OthersWrite
        self._began_s = time.monotonic()
        self._renewing = self._wrote = False
        try:
            lazily = "; SET LOCAL synchronous_commit = off" if self._relaxed and not durable else ""
            self._connected().script(f"BEGIN{lazily}")
            (row,) = self.all(_TURN)  # the migration put it there
            self._now_us = row["now_us"]
            if self._due():
                self._renew(self._now_us)
        except BaseException:
            self.roll_back()
            raise
        others_wrote = row["writes"] != self._seen
        self._seen = row["writes"]
        return others_wrote

    def commit(self, *, wait: bool) -> None:
        try:
            if self._wrote:
                ended = self._connected().script("UPDATE write_turn SET writes = writes + 1; COMMIT")
            else:
                ended = self._connected().script("COMMIT")
        except Interrupted as error:
            raise Unsure(str(error)) from None
        if ended != "COMMIT":
            raise Interrupted(f"the audit database {self._at} undid a transaction")
        if self._wrote and self._seen is not None:
            self._seen += 1
        if self._renewing:
            self._renewed_s = self._began_s

    def roll_back(self) -> None:
        self._seen = None
        try:
            if self._session is not None:
                self._session.script("ROLLBACK")
        except Exception:  # noqa: BLE001 - whatever it is, another connection begins afresh
            self._disconnect()

    def changed(self) -> bool:
        self._connected()
        row = self.one("SELECT writes FROM write_turn")
        return row is None or row["writes"] != self._seen

    #: The server writes pages beside the commit as it is.
    logs = False

    def log(self, body: bytes) -> None:
        raise NotImplementedError

    def logged(self) -> list[bytes]:
        return []

    def empty_log(self) -> None:
        """There is none."""

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> int:
        self._wrote = True
        return self._connected().execute(sql, values)

    def many(self, sql: str, rows: Sequence[Sequence[Any]], /) -> None:
        self._wrote = True
        self._connected().many(sql, rows)

    def change(self, sql: str, rows: Sequence[Sequence[Any]], /) -> int:
        self._wrote = True
        return self._connected().change(sql, rows)

    def one(self, sql: str, values: Sequence[Any] = (), /) -> Row | None:
        return self._connected().one(sql, values)

    def all(self, sql: str, values: Sequence[Any] = (), /) -> Sequence[Row]:
        return self._connected().all(sql, values)

    def lease_until_us(self) -> int:
        self._renewing = True
        return self._now_us + self._lease_us

    def dead(self, stream: str) -> list[str]:
        rows = self.all(
            "SELECT id FROM incarnations WHERE state = 'live' AND id <> ? AND lease_until_us < ?",
            (stream, self._now_us),
        )
        return [row["id"] for row in rows]

    def new_life(self) -> str:
        # What the old life left open is for anybody to end, at once.
        self.execute(
            "UPDATE incarnations SET lease_until_us = 0 WHERE id = ? AND state = 'live'", (self._stream,)
        )
        self._stream = uuid7(self._clock())
        return self._stream

    def overwrite_what_goes(self) -> None:
        """The server does, when it vacuums."""

    def tidy(self) -> None:
        if self._due():
            self._began_s = time.monotonic()
            self._renew(_NOW)
            if self._renewing:
                self._renewed_s = self._began_s

    def close(self) -> None:
        self._disconnect()

    def _due(self) -> bool:
        return time.monotonic() - self._renewed_s > _RENEW * self._lease_us / 1_000_000

    def _renew(self, now_us: int | str) -> None:
        until = f"{now_us} + {self._lease_us}"
        self._renewing = bool(
            self._connected().execute(
                f"UPDATE incarnations SET lease_until_us = {until} WHERE id = ? AND state = 'live'",  # noqa: S608 - numbers of ours
                (self._stream,),
            )
        )

    def _connected(self) -> Session:
        if self._session is None:
            self._seen = None
            self._session = Session(self._at, name=self._role)
        return self._session

    def _disconnect(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
