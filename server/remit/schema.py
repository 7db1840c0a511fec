"""Bring the audit database to this version's schema. Alembic does the work; it is loaded only when needed.

A database of a newer Remit is refused: an old program must not guess at new columns.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from remit.errors import RemitError

#: The newest revision in `migrations/versions`; a test keeps the two equal.
HEAD = "0001"


def upgrade(path: Path) -> None:
    """Create or upgrade the database at `path`, once, even when several processes start together."""
    created = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.close(created)
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        version = _version(path)
        if version == HEAD:
            return
        if version is not None and version > HEAD:
            raise RemitError(
                f"{path} was written by a newer Remit (schema {version}; this one knows {HEAD}): "
                "upgrade Remit"
            )
        _migrate(path)
    finally:
        os.close(lock)


def _version(path: Path) -> str | None:
    db = sqlite3.connect(path, timeout=10)
    try:
        row = db.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise RemitError(f"the audit database {path} cannot be read: {error}") from None
    except sqlite3.DatabaseError as error:
        raise RemitError(f"{path} is not an audit database: {error}") from None
    finally:
        db.close()
    return row[0] if row else None


def _migrate(path: Path) -> None:
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    engine = create_engine(f"sqlite:///{path}")
    try:
        with engine.connect() as connection:
            settings.attributes["connection"] = connection
            command.upgrade(settings, "head")
    except SQLAlchemyError as error:
        raise RemitError(f"the audit database {path} cannot be brought up to date: {error}") from None
    finally:
        engine.dispose()
