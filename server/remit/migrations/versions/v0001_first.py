"""The first schema."""

from alembic import op
from sqlalchemy import Table
from sqlalchemy.schema import CreateIndex, CreateTable

from remit.tables import metadata

revision = "0001"
down_revision = None

#: Tables that the next revision makes, or makes anew, and what was there before; as far as it reads that.
_LATER = ("holds", "budget_adjustments")
_HOLDS = """CREATE TABLE holds (
    call_id VARCHAR(36) NOT NULL, account VARCHAR(320) NOT NULL, window_start_us BIGINT NOT NULL,
    unit VARCHAR(32) NOT NULL, amount BIGINT NOT NULL, state VARCHAR(8) NOT NULL, posted BIGINT NOT NULL,
    refunded BIGINT NOT NULL)"""
_MOVES = """CREATE TABLE budget_moves (
    at_us BIGINT NOT NULL, call_id VARCHAR(36) NOT NULL, account VARCHAR(320) NOT NULL,
    window_start_us BIGINT NOT NULL, kind VARCHAR(8) NOT NULL, amount BIGINT NOT NULL)"""
_APPEND_ONLY = ("events", "log_runs", "log_checkpoints", "log_keys")


def upgrade() -> None:
    for table in metadata.sorted_tables:
        if table.name not in _LATER:
            op.execute(CreateTable(table))
            for index in sorted(table.indexes, key=lambda index: str(index.name)):
                op.execute(CreateIndex(index))
    op.execute(_HOLDS)
    op.execute(_MOVES)
    if op.get_context().dialect.name == "sqlite":
        _sqlite()
    else:
        _postgresql()


def _sqlite() -> None:
    # What is committed, and not yet in the tables above: see `redo.py`.
    op.execute("CREATE TABLE redo (slot INTEGER PRIMARY KEY, body BLOB NOT NULL)")
    op.execute("INSERT INTO redo VALUES (0, zeroblob(12))")
    for table in _APPEND_ONLY:
        for action in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END"
            )
        # INSERT OR REPLACE removes the row that is in its way without a DELETE that a trigger sees.
        op.execute(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
            f"WHEN {_is_there(metadata.tables[table])} "
            f"BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END"
        )


def _is_there(table: Table) -> str:
    """SQL: whether there is a row with a key of the new one."""
    keys = [[*table.primary_key.columns.keys()]]
    keys += [[*index.columns.keys()] for index in table.indexes if index.unique]
    if table.dialect_options["sqlite"]["with_rowid"]:
        keys.append(["rowid"])
    return " OR ".join(
        f"EXISTS (SELECT 1 FROM {table.name} WHERE {' AND '.join(f'{name} = NEW.{name}' for name in key)})"  # noqa: S608 - all of it is ours
        for key in keys
    )


def _postgresql() -> None:
    # In the order in which rows were written, as SQLite numbers them by itself.
    op.execute("ALTER TABLE events ADD COLUMN rowid BIGINT GENERATED ALWAYS AS IDENTITY UNIQUE")
    op.execute(
        "CREATE FUNCTION remit_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE EXCEPTION USING MESSAGE = TG_TABLE_NAME || ' are append-only'; END$$"
    )
    for table in _APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION remit_append_only()"
        )
    # Whoever writes locks its one row first; how many have written is counted there.
    op.execute("CREATE TABLE write_turn (writes BIGINT NOT NULL)")
    op.execute("CREATE UNIQUE INDEX write_turn_one_row ON write_turn ((true))")
    op.execute("INSERT INTO write_turn VALUES (0)")


def downgrade() -> None:
    raise NotImplementedError("the audit database is never downgraded")
