"""What writes on PostgreSQL makes many changes of one kind by one statement."""

from alembic import op

from remit.procedure import remit_write

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute(remit_write().replace("CREATE", "CREATE OR REPLACE", 1))


def downgrade() -> None:
    raise NotImplementedError("the audit database is never downgraded")
