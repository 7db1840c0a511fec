"""What writes on PostgreSQL makes many changes of one kind at once; no request is open whose time is up."""

from alembic import op

from remit.procedure import remit_write
from remit.tables import view

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    dialect = op.get_context().dialect.name
    create = "CREATE OR REPLACE"  # who may read the view, may still
    if dialect == "postgresql":
        op.execute(remit_write().replace("CREATE", create, 1))
    else:
        op.execute("DROP VIEW approvals_open")
        create = "CREATE"
    op.execute(f"{create} VIEW approvals_open AS {view('approvals_open', dialect)}")


def downgrade() -> None:
    raise NotImplementedError("the audit database is never downgraded")
