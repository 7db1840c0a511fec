"""Bring the audit database to this version's schema. Alembic does the work; it is loaded only when needed.

A database of a newer Remit is refused: an old program must not guess at new columns. For PostgreSQL, Alembic
writes the statements and asyncpg runs them, all or none.
"""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from remit.database import Location, Postgres, Row, locked, must_have_one_name, placed, reading
from remit.errors import RemitError, StoreUnavailable

if TYPE_CHECKING:
    from alembic.config import Config

    from remit.postgres import Session

MIGRATIONS = Path(__file__).with_name("migrations")
#: The newest revision in there; a test keeps the two equal.
HEAD = "0006"
_REVISION = re.compile(r"\d{4}")
#: One process migrates at a time. A number that other programs on the same database do not use.
_MIGRATING = 0x72656D69745F6462


def upgrade(at: Location) -> None:
    """Create or upgrade the audit database, once, even when several processes start together."""
    if isinstance(at, Postgres):
        _upgrade_postgres(at)
        return
    try:
        _upgrade_file(placed(at))
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise RemitError(f"the audit database {at} cannot be used: {error.strerror}") from None


def _upgrade_file(at: Path) -> None:
    must_have_one_name(at)
    with locked(at, ".lock"):
        _make(at)
        version = _version(at)
        _must_be_known(at, version)
        if version != HEAD:
            if version is not None:
                _file_redo_log(at)
            _migrate(at)


def _make(path: Path) -> None:
    """Make the file where there is none, for its owner only.

    One that is there is not opened, except through SQLite: closing it drops every lock that this process has
    on it, those of other connections too, and another process would take the log from under them
    (sqlite.org/howtocorrupt.html, section 2.2).
    """
    if not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _file_redo_log(path: Path) -> None:
    """Put what is committed in its tables before they change: in the log it fits these alone."""
    from remit.redo import file_what_is_logged

    try:
        with closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            file_what_is_logged(db)
            db.execute("COMMIT")
    except (sqlite3.Error, StoreUnavailable) as error:
        raise RemitError(f"the audit database {path} cannot be brought up to date: {error}") from None


def _must_be_known(at: Location, version: str | None) -> None:
    """Raise RemitError for a database of a newer Remit, or of another program: nothing is added to that."""
    if version is None:
        return
    if not _REVISION.fullmatch(version):
        raise RemitError(f"{at} is another program's database, not an audit database: give Remit its own")
    if version > HEAD:
        raise RemitError(
            f"{at} was written by a newer Remit (schema {version}; this one knows {HEAD}): upgrade Remit"
        )


def must_be_known_still(row: Row | None) -> None:
    """Raise StoreUnavailable for a process that runs on while a newer Remit has upgraded its database."""
    version = row["version_num"] if row else ""
    if version != HEAD:
        raise StoreUnavailable(
            f"the audit database has schema {version} by now, and this process knows {HEAD}: stop it, and"
            " start it again as the Remit that has upgraded the database"
        )


def _version(path: Path) -> str | None:
    """The schema of the file: None when it is new, and nothing of ours when another program has made it."""
    try:
        with closing(sqlite3.connect(path, timeout=10)) as db:
            made = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
            if "alembic_version" not in made:
                return "" if made else None
            row = db.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError as error:
        raise RemitError(f"the audit database {path} cannot be read: {error}") from None
    except sqlite3.DatabaseError as error:
        raise RemitError(f"{path} is not an audit database: {error}") from None
    return row[0] if row else ""


def _migrate(path: Path) -> None:
    from alembic import command
    from sqlalchemy import URL, create_engine
    from sqlalchemy.exc import SQLAlchemyError

    from remit.redo import NOTHING_STAYS

    settings = _alembic()
    engine = create_engine(URL.create("sqlite", database=str(path)))
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"PRAGMA {NOTHING_STAYS}")
            # All or nothing, whenever the power fails: `sqlite3` begins no transaction for DDL by itself.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            settings.attributes["connection"] = connection
            command.upgrade(settings, "head")
    except SQLAlchemyError as error:
        raise RemitError(f"the audit database {path} cannot be brought up to date: {error}") from None
    finally:
        engine.dispose()


def _upgrade_postgres(at: Postgres) -> None:
    from remit.postgres import UNLIMITED, Session

    session = Session(at, name="schema", settings=UNLIMITED)
    try:
        version = session.version()
        _must_be_known(at, version)
        if version == HEAD:
            return
        encoding = session.one("SHOW server_encoding")
        if encoding and encoding[0] != "UTF8":
            raise RemitError(
                f"{at} has the encoding {encoding[0]}, in which not every text can be recorded: make it with"
                " CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
            )
        _migrate_postgres(session)
    finally:
        session.close()


def _migrate_postgres(session: Session) -> None:
    from remit.postgres import LIMITS, PATIENT_S

    try:
        with session.transaction():
            session.script(f"SELECT pg_advisory_xact_lock({_MIGRATING})", within_s=PATIENT_S)
            if (version := session.version()) != HEAD:
                # Behind what waits for a table, everybody waits who wants it next.
                session.script(f"SET LOCAL lock_timeout = {LIMITS['lock_timeout']}")
                if version is not None:  # who serves with the old schema waits, and looks before it writes
                    session.script("UPDATE write_turn SET writes = writes + 1")
                session.script(statements(version), within_s=PATIENT_S)
    except StoreUnavailable as error:
        if not any(refusal in str(error) for refusal in ("permission denied", "must be owner")):
            raise
        raise StoreUnavailable(
            f"{error}: it has to be brought to schema {HEAD} first; run `remit db upgrade` as the role that"
            " owns the tables, and grant again what the others may"
        ) from None


def fresh(at: Location) -> dict[str, str]:
    """What makes each table, index and trigger of a new database of the same kind, by name."""
    if isinstance(at, Postgres):
        from remit.postgres import Session

        session = Session(at, name="schema", settings={})
        try:
            # Made for this session alone, looked at, and undone: who serves may do that, too.
            session.script("BEGIN; SET LOCAL search_path TO pg_temp")
            # No function is looked up there unless that is said.
            session.script(statements(None).replace(" EXECUTE FUNCTION ", " EXECUTE FUNCTION pg_temp."))
            return {name: re.sub(r"\bpg_temp(_\d+)?\.", "", made) for name, made in session.schema().items()}
        except StoreUnavailable as error:
            if "permission denied" not in str(error):
                raise
            raise StoreUnavailable(
                f"{error}: a new schema is made there for this session, to compare with; let the role do so"
                " (GRANT TEMPORARY ON DATABASE ... TO ...), or run this as the owner of the tables"
            ) from None
        finally:
            session.close()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fresh.db"
        upgrade(path)
        with reading(path) as db:
            return db.schema()


def statements(version: str | None) -> str:
    """The SQL that brings a PostgreSQL database from `version` (None: an empty one) to this schema."""
    from alembic import command

    settings, out = _alembic(), StringIO()
    settings.output_buffer = out
    command.upgrade(settings, f"{version}:head" if version else "head", sql=True)
    return out.getvalue()


def _alembic() -> Config:
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS))
    return settings
