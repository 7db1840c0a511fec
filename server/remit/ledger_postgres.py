"""PostgreSQL under the ledger: one database, shared by replicas, one of which writes at a time.

Every transaction locks the one row of `write_turn` before anything else, as BEGIN IMMEDIATE does for SQLite:
balances are exact, nothing can deadlock, and the row counts the transactions, so each replica knows whether
others have written. A replica that is stopped in its turn loses it: the server ends a transaction in which
nothing happens.

A transaction in which nothing is asked goes by what this replica knows, and is one round trip: the function
`remit_write` locks the row, writes if the count is the one that was seen, and commits. Else nothing was
written, and the same is run again, in a turn that is taken first (optimistic concurrency control: H. T. Kung
and J. T. Robinson, ACM TODS 6(2), 1981). Where others write all the time, turns are taken first at once.

Which replica lives is told by a lease on the database's own clock. Who does not renew it for that long is
taken for dead; if it was only asleep, it begins another life, and writes there what it knows of its calls.

The ledger owns its life. Only the writer's thread uses it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any, cast

from remit.database import Postgres, Row
from remit.errors import Interrupted, StoreUnavailable, Unsure
from remit.ids import Clock, uuid7
from remit.postgres import LIMITS, SOON_S, Session
from remit.redo import CHANGED, NOT_THERE, Change, Gathered, NotThere
from remit.schema import must_be_known_still
from remit.writer import OthersWrite, Overtaken

#: Microseconds since 1970-01-01 UTC, by the server's clock.
_NOW = "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint"
#: After so many transactions in a row before which others had written, nothing known is believed.
_OVERTAKEN_MAX = 2
#: Everything is found by its key here, and so it must also be while a table is empty or was not analyzed yet:
#: a plan that is made then stays for long.
_BY_KEY = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "jit": "off"}
#: NUL in JSON: not where the backslash is itself escaped.
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
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
        self._session: Session | None = _session(at, role)
        #: The count of `write_turn` that this replica has seen; None: it must look at everything again.
        self._seen: int | None = None
        #: Of the transactions until now, so many in a row came after others had written.
        self._overtaken = 0
        #: Nothing of the transaction was sent as yet; its turn was begun.
        self._believes = self._begun = False
        self._lazily = False
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
        self._lazily = self._relaxed and not durable
        try:
            # Who sends a commit into a broken connection would have to find out what became of it.
            if self._session is not None and self._session.hung_up():
                self._disconnect()
            self._believes = self._seen is not None and self._overtaken < _OVERTAKEN_MAX and not self._due()
            if self._believes:
                return False
            others_wrote = self._take_turn()
            if self._due():
                self._renew()
        except BaseException:
            self.roll_back()
            raise
        return others_wrote

    def write(self, gathered: Gathered, /) -> None:
        self._look()
        self._wrote = True
        self._send(gathered, seen=None)

    def commit(self, gathered: Gathered, *, wait: bool) -> None:
        if self._believes:
            self._commit_at_once(gathered)
            return
        if gathered:
            self.write(gathered)
        count = "UPDATE write_turn SET writes = writes + 1; " if self._wrote else ""
        try:
            ended = self._connected().script(f"{count}COMMIT", within_s=SOON_S)
        except Interrupted as error:
            self._disconnect()
            raise Unsure(str(error)) from None
        self._begun = False
        if ended != "COMMIT":
            raise Interrupted(f"the audit database {self._at} undid a transaction")
        if self._wrote and self._seen is not None:
            self._seen += 1
        if self._renewing:
            self._renewed_s = self._began_s

    def roll_back(self) -> None:
        self._seen = None
        self._believes = False
        begun, self._begun = self._begun, False
        try:
            if begun and self._session is not None:
                if self._session.hung_up():
                    self._disconnect()
                else:
                    self._session.script("ROLLBACK", within_s=SOON_S)
        except Exception:  # noqa: BLE001 - whatever it is, another connection begins afresh
            self._disconnect()

    def changed(self) -> bool:
        row = self._connected().one(
            "SELECT writes, version_num FROM write_turn, alembic_version", within_s=SOON_S
        )
        if row is None:
            raise StoreUnavailable(CHANGED)  # the migration put it there
        must_be_known_still(row)
        seen, self._seen = self._seen, row["writes"]
        return seen != self._seen

    #: The server writes pages beside the commit as it is.
    logs = False

    def log(self, body: bytes) -> None:
        raise NotImplementedError

    def logged(self) -> list[bytes]:
        return []

    def empty_log(self) -> None:
        """There is none."""

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> int:
        self._look()
        self._wrote = True
        return self._connected().execute(sql, values)

    def one(self, sql: str, values: Sequence[Any] = (), /) -> Row | None:
        self._look()
        return self._connected().one(sql, values)

    def all(self, sql: str, values: Sequence[Any] = (), /) -> Sequence[Row]:
        self._look()
        return self._connected().all(sql, values)

    def lease_until_us(self) -> int:
        self._renewing = True
        (row,) = self.all(f"SELECT {_NOW} AS now_us")
        return row["now_us"] + self._lease_us

    def dead(self, stream: str) -> list[str]:
        # Locked, for leases are renewed outside of turns: who has renewed by now is not buried, and who would
        # like to learns that it is.
        rows = self.all(
            "SELECT id FROM incarnations"  # noqa: S608 - nothing in it is anybody's
            f" WHERE state = 'live' AND id <> ? AND lease_until_us < {_NOW} FOR UPDATE",
            (stream,),
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
            self._renew()
            if self._renewing:
                self._renewed_s = self._began_s

    def close(self) -> None:
        self._disconnect()

    def _due(self) -> bool:
        return time.monotonic() - self._renewed_s > _RENEW * self._lease_us / 1_000_000

    def _renew(self) -> None:
        self._renewing = bool(
            self._connected().execute(
                f"UPDATE incarnations SET lease_until_us = {_NOW} + {self._lease_us}"  # noqa: S608 - a number of ours
                " WHERE id = ? AND state = 'live'",
                (self._stream,),
                within_s=SOON_S,
            )
        )

    def _look(self) -> None:
        """Before something is asked: from here on, nobody else writes."""
        if self._believes and self._take_turn():
            raise Overtaken

    def _take_turn(self) -> bool:
        """Begin over there; whether others have written since `_seen`."""
        self._believes, self._begun = False, True
        seen = -1 if self._seen is None else self._seen
        lazily = "; SET LOCAL synchronous_commit = off" if self._lazily else ""
        # What it says about the last statement tells, in one round trip, how many rows that found.
        found = self._connected().script(
            f"BEGIN{lazily}; SELECT FROM write_turn FOR UPDATE; SELECT FROM write_turn WHERE writes = {seen}",  # noqa: S608 - a number of ours
            within_s=SOON_S,
        )
        if found == "SELECT 1":
            self._overtaken = 0
            return False
        self._overtaken += self._seen is not None
        self.changed()
        return True

    def _commit_at_once(self, gathered: Gathered) -> None:
        self._believes = False
        if not gathered:
            overtaken = self.changed()
        else:
            try:
                overtaken = not self._send(gathered, seen=self._seen)
            except Interrupted as error:
                self._disconnect()
                raise Unsure(str(error)) from None
            if self._seen is not None:
                self._seen += 1
        if overtaken:
            self._overtaken += 1
            raise Overtaken
        self._overtaken = 0

    def _send(self, gathered: Gathered, *, seen: int | None) -> bool:
        """Whether it was written: not where `seen` is not the count any more."""
        try:
            row = self._connected().one(
                "SELECT remit_write(?, ?, ?) AS wrote",
                (seen, _without_nul(gathered.as_json().decode()), self._lazily),
                within_s=SOON_S,
            )
        except Exception as error:
            if getattr(error, "sqlstate", None) == NOT_THERE:
                raise NotThere(cast("Change", str(error))) from None
            raise
        return row is not None and row["wrote"]

    def _connected(self) -> Session:
        if self._session is None:
            self._session = _session(self._at, self._role)
        return self._session

    def _disconnect(self) -> None:
        self._seen = None
        if self._session is not None:
            self._session.close()
            self._session = None


def _session(at: Postgres, role: str) -> Session:
    return Session(at, name=role, settings={**LIMITS, **_BY_KEY})


def _without_nul(text: str) -> str:
    """The same JSON, with U+FFFD for NUL: no text of PostgreSQL can hold that one. Events have it escaped."""
    return _NUL.sub(r"\1\\ufffd", text) if "\\u0000" in text else text
