"""Views call nothing ready whose answer was not seen, or that something erased came after."""

from alembic import op

from remit.tables import view

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    dialect = op.get_context().dialect.name
    create = "CREATE OR REPLACE VIEW"  # who may read it, may still
    for name in ("undoable", "run_timeline"):
        if dialect == "sqlite":
            op.execute(f"DROP VIEW {name}")
            create = "CREATE VIEW"
        op.execute(f"{create} {name} AS {view(name, dialect)}")


def downgrade() -> None:
    raise NotImplementedError("the audit database is never downgraded")
