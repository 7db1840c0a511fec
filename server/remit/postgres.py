"""PostgreSQL for code that waits: asyncpg on an event loop of its own, one statement after another.

Readers, the sealer and the writer thread are plain functions, and so is every change to the audit database.
A connection runs its loop only while a statement is under way, in whichever thread asks. asyncpg prepares
each statement once for a connection. SQL has `?` for each value, as it has everywhere here.

Whoever opens a connection closes it. What the database itself fails at is raised as StoreUnavailable; what is
wrong with one statement or its values is raised as it is.
"""

from __future__ import annotations

import asyncio
import re
import select
from collections.abc import Awaitable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

from remit.config_file import resolve
from remit.errors import Interrupted, NoAnswer, RemitError, StoreUnavailable

if TYPE_CHECKING:
    from remit.database import Postgres, Row

T = TypeVar("T")
_CONNECT_S = 5
#: Longer than every limit that the server is told, so that the server's own words arrive.
_ANSWER_S = 45
#: The same for what a call waits for, which is done at once but for a lock that others hold.
SOON_S = 12
#: The same for what takes as long as it takes: another schema, or rows in an order that is to be made first.
PATIENT_S = 86_400
_ROWS_AT_ONCE = 1000
#: What a session may not outlast (milliseconds): a process that is stopped holds nobody up for ever. They are
#: set in this order: until the first is, what is usual on that server may end the others.
LIMITS = {
    "statement_timeout": "30000",
    "lock_timeout": "10000",
    "idle_in_transaction_session_timeout": "5000",
}
#: A snapshot of everything is read for as long as it takes, whatever else is usual on that server.
UNLIMITED = dict.fromkeys(LIMITS, "0")
#: Who waited for its turn must see what the one before it wrote.
_ISOLATION = {"default_transaction_isolation": "read committed"}
#: Off would mean that what was committed is not durable, whatever a database or a role is set to for others.
_DURABLY = (
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)
#: Classes of errors that say nothing about the statement: connection, authorization, catalog, resources,
#: object state, intervention, system (postgresql.org/docs/current/errcodes-appendix.html).
_OF_THE_DATABASE = ("08", "28", "3D", "53", "55", "57", "58")
#: The same, for single codes: read-only, idle in transaction, no privilege, no such table or function.
_ALSO = ("25006", "25P03", "25P04", "42501", "42P01", "42883")
_AGAIN = "40"
#: One process seals at a time. A number that other programs on the same database do not use.
_SEALING = 0x72656D69745F6C67

#: Every column, view, constraint, index, trigger and function, and what it is.
_SCHEMA = """
    SELECT c.relname || '.' || a.attname AS name,
        concat_ws(' ', format_type(a.atttypid, a.atttypmod), l.collname, a.attnotnull, a.attidentity,
            pg_get_expr(d.adbin, d.adrelid)) AS made
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        LEFT JOIN pg_collation l ON l.oid = a.attcollation
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r' AND a.attnum > 0
            AND NOT a.attisdropped
    UNION ALL SELECT viewname, definition FROM pg_views WHERE schemaname = current_schema()
    UNION ALL SELECT conname, pg_get_constraintdef(oid, true) FROM pg_constraint
        WHERE connamespace = current_schema()::regnamespace AND conrelid <> 0
    UNION ALL SELECT c.relname, pg_get_indexdef(c.oid, 0, true) FROM pg_class c
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'i'
    UNION ALL SELECT t.tgname, pg_get_triggerdef(t.oid, true) || ' ' || t.tgenabled::text FROM pg_trigger t
        JOIN pg_class c ON c.oid = t.tgrelid
        WHERE c.relnamespace = current_schema()::regnamespace AND NOT t.tgisinternal
    UNION ALL SELECT p.proname,
        concat_ws(' ', pg_get_function_arguments(p.oid), p.prosecdef, p.proconfig, p.prosrc)
        FROM pg_proc p WHERE p.pronamespace = current_schema()::regnamespace
"""


class Session:
    """One connection to one PostgreSQL database. Raises StoreUnavailable when there is none."""

    def __init__(self, at: Postgres, *, name: str, settings: Mapping[str, str] = LIMITS) -> None:
        self.at = at
        #: It left a statement unanswered, and would leave the next one.
        self._silent = False
        self._loop = uvloop.new_event_loop()
        try:
            self._db: Any = self._run(_connected(at, name, settings))
        except BaseException:
            self._loop.close()
            raise

    def one(self, sql: str, values: Sequence[Any] = (), /, *, within_s: float | None = None) -> Row | None:
        return self._run(self._db.fetchrow(_numbered(sql), *values, timeout=within_s))

    def all(self, sql: str, values: Sequence[Any] = (), /) -> Sequence[Row]:
        return self._run(self._db.fetch(_numbered(sql), *values))

    def rows(self, sql: str, values: Sequence[Any] = (), /) -> Iterator[Row]:
        cursor = self._run(self._db.cursor(_numbered(sql), *values, timeout=PATIENT_S))
        while some := self._run(cursor.fetch(_ROWS_AT_ONCE, timeout=PATIENT_S)):
            yield from some

    def tuples(self, sql: str, values: Sequence[Any] = (), /) -> Iterator[tuple[Any, ...]]:
        return map(tuple, self.rows(sql, values))

    def execute(self, sql: str, values: Sequence[Any] = (), /, *, within_s: float | None = None) -> int:
        """How many rows it changed."""
        told = self._run(self._db.execute(_numbered(sql), *values, timeout=within_s))
        return int(told.rpartition(" ")[2])

    def many(self, sql: str, rows: Sequence[Sequence[Any]], /) -> None:
        self._run(self._db.executemany(_numbered(sql), rows))

    def script(self, sql: str, /, *, within_s: float | None = None) -> str:
        """Run statements without values, in one go; return what the server says about the last."""
        return self._run(self._db.execute(sql, timeout=within_s))

    def hung_up(self) -> bool:
        """Whether the server has said something unasked, as it does when it ends the connection, or has not
        answered."""
        if self._silent or self._db.is_closed():
            return True
        # Not read: asyncpg does not expect to hear anything now.
        heard = select.poll()
        heard.register(self._db._transport.get_extra_info("socket"), select.POLLIN)
        return bool(heard.poll(0))

    def version(self) -> str | None:
        """Which schema is there; None: none is."""
        found = self.one("SELECT to_regclass('alembic_version') IS NOT NULL AS made")
        row = self.one("SELECT version_num FROM alembic_version") if found and found["made"] else None
        return row["version_num"] if row else None

    lags = False

    def damage(self) -> Iterator[str]:
        """The server keeps its pages and references itself."""
        return iter(())

    def schema(self) -> dict[str, str]:
        return {row["name"]: row["made"] for row in self.all(_SCHEMA)}

    @contextmanager
    def transaction(self, *, snapshot: bool = False) -> Generator[None]:
        of = self._db.transaction(
            isolation="repeatable_read" if snapshot else "read_committed", readonly=snapshot
        )
        self._run(of.start())
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the error under way says more
                self._run(of.rollback())
            raise
        self._run(of.commit())

    def close(self) -> None:
        """Never waits long: what does not answer is left."""
        try:
            with suppress(StoreUnavailable):
                self._run(asyncio.wait_for(self._db.close(), 2))
        finally:
            self._db.terminate()
            self._loop.close()

    def _run(self, work: Awaitable[T]) -> T:
        try:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return self._loop.run_until_complete(work)
            # Asked from within an event loop, which then waits, as it does for a file.
            with ThreadPoolExecutor(1) as aside:
                return aside.submit(self._loop.run_until_complete, work).result()
        except Exception as error:
            if failure := _failure(self.at, error):
                self._silent = isinstance(failure, NoAnswer)
                raise failure from None
            raise


async def _connected(at: Postgres, name: str, settings: Mapping[str, str]) -> Any:
    try:
        asyncpg: Any = import_module("asyncpg")  # it has no types
    except ImportError:
        raise RemitError(
            "PostgreSQL needs asyncpg, which is not installed: run pip install 'remit[postgresql]'"
        ) from None
    url = at.url if at.url.startswith("postgres") else resolve(at.url, Path("/"))
    try:
        db = await asyncpg.connect(
            url,
            timeout=_CONNECT_S,
            command_timeout=_ANSWER_S,
            statement_cache_size=256,
            server_settings={"application_name": f"remit {name}"},
        )
    except OSError:  # one about a certificate is a ValueError, too
        raise
    except ValueError:  # which repeats a part of the URL, that may be one of the password
        raise StoreUnavailable(
            f"{at} is not the URL of a database: write postgresql://USER:PASSWORD@HOST/DATABASE, and in the"
            " password %2F for /, %3A for :, %40 for @, %3F for ?, %23 for # and %25 for %"
        ) from None
    except asyncpg.UndefinedObjectError as error:  # what the URL says after "?" and asyncpg does not know
        raise StoreUnavailable(
            f"{at} sets what the server does not know: {error}; remove it from the URL"
        ) from None
    try:
        # Not as it connects: poolers refuse whom they are asked for what they do not know.
        to_set = (f"SET {what} = '{to}'" for what, to in {**settings, **_ISOLATION}.items())
        await db.execute("; ".join((*to_set, _DURABLY)))
    except BaseException:
        db.terminate()
        raise
    return db


@contextmanager
def reading(at: Postgres) -> Generator[Session]:
    """A snapshot, as of the first query."""
    session = Session(at, name="reader", settings=UNLIMITED)
    try:
        with session.transaction(snapshot=True):
            yield session
    finally:
        session.close()


@contextmanager
def sealing(at: Postgres) -> Generator[Session]:
    """The only session that seals; waits for its turn."""
    # A sealer that is stopped loses its turn: others seal then.
    session = Session(at, name="sealer", settings={**LIMITS, "idle_session_timeout": "60000"})
    try:
        session.script(f"SELECT pg_advisory_lock({_SEALING})")
        yield session
    finally:
        session.close()


def exists(at: Postgres) -> bool:
    """Whether an audit database was made there."""
    session = Session(at, name="reader", settings={})
    try:
        return session.version() is not None
    finally:
        session.close()


@lru_cache(1024)
def _numbered(sql: str) -> str:
    """`?` as `$1` and so on, without hints for SQLite, by names of its own: no literal of ours looks so."""
    first, *rest = re.sub(r" INDEXED BY \w+", "", sql).replace("instr(", "strpos(").split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, start=1))


def _failure(at: Postgres, error: Exception) -> StoreUnavailable | None:
    """What the database failed at; None when it was the statement's own fault."""
    asyncpg: Any = import_module("asyncpg")
    if isinstance(error, asyncpg.PostgresError):
        known: Any = error
        state = str(known.sqlstate)
        if state.startswith(("08", "57P", "25P03", _AGAIN)):
            return Interrupted(f"the audit database {at} broke off: {error}")
        if state.startswith(_OF_THE_DATABASE) or state in _ALSO:
            return StoreUnavailable(f"the audit database {at} cannot be used: {error}")
        return None
    if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
        return None  # a value that does not fit its column
    # asyncpg's own state does not fit any more when the server hangs up between two of its answers.
    if isinstance(error, TimeoutError) and not str(error):  # the system's own says what it was
        return NoAnswer(f"the audit database {at} cannot be reached: it did not answer in time")
    if isinstance(error, (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
        why = str(error) or "the connection broke"
        return Interrupted(f"the audit database {at} cannot be reached: {why}")
    return None
