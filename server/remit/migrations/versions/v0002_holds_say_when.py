"""Holds say when they began and ended, and most moves of balances follow from them: a view tells those."""

from alembic import op
from sqlalchemy.schema import CreateTable

from remit.procedure import remit_write
from remit.tables import VIEWS, metadata, view

revision = "0002"
down_revision = "0001"

_AT = (
    "(SELECT MIN(m.at_us) FROM budget_moves AS m"
    " WHERE m.call_id = h.call_id AND m.account = h.account AND m.kind = '{}')"
)


def upgrade() -> None:
    for name in VIEWS:
        if name != "budget_moves":
            op.execute(f"DROP VIEW IF EXISTS {name}")
    # Made anew instead of altered: so its constraints are what a new database has.
    op.execute("CREATE TABLE holds_before AS SELECT * FROM holds")
    op.execute("DROP TABLE holds")
    for table in ("holds", "budget_adjustments"):
        op.execute(CreateTable(metadata.tables[table]))
    op.execute(
        "INSERT INTO holds (call_id, account, window_start_us, unit, amount, state, posted, refunded,"  # noqa: S608 - all of it is ours
        " held_us, resolved_us) SELECT h.call_id, h.account, h.window_start_us, h.unit, h.amount, h.state,"
        f" h.posted, h.refunded, {_AT.format('hold')}, {_AT.format('release')} FROM holds_before AS h"
    )
    op.execute(
        "INSERT INTO budget_adjustments (at_us, call_id, account, window_start_us, kind, amount)"
        " SELECT at_us, call_id, account, window_start_us, kind, amount FROM budget_moves"
        " WHERE kind IN ('overrun', 'refund')"
    )
    op.execute("DROP TABLE holds_before")
    op.execute("DROP TABLE budget_moves")
    dialect = op.get_context().dialect.name
    for name in VIEWS:
        op.execute(f"CREATE VIEW {name} AS {view(name, dialect)}")
    if dialect == "postgresql":
        op.execute("DROP FUNCTION IF EXISTS remit_write(bigint, jsonb, boolean)")
        op.execute(remit_write())


def downgrade() -> None:
    raise NotImplementedError("the audit database is never downgraded")
