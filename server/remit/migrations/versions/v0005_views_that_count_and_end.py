"""What was spent is told beyond what a database can count, and no request is open whose time is up."""

from alembic import op

from remit.tables import view

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    dialect = op.get_context().dialect.name
    create = "CREATE VIEW"
    for name in ("spend_by_day", "approvals_open"):
        if dialect == "sqlite":
            op.execute(f"DROP VIEW {name}")
        else:
            create = "CREATE OR REPLACE VIEW"  # who may read it, may still
        op.execute(f"{create} {name} AS {view(name, dialect)}")


def downgrade() -> None:
    raise NotImplementedError("the audit database is never downgraded")
