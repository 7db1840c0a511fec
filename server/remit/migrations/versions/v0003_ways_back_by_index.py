"""The views that tell ways back stop at the first call that decides, however often a thing was touched."""

from alembic import op

from remit.tables import view

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    dialect = op.get_context().dialect.name
    create = "CREATE VIEW"
    for name in ("undoable", "run_timeline"):
        if dialect == "sqlite":
            op.execute(f"DROP VIEW {name}")
        else:
            create = "CREATE OR REPLACE VIEW"  # who may read it, may still
        op.execute(f"{create} {name} AS {view(name, dialect)}")


def downgrade() -> None:
    raise NotImplementedError("the audit database is never downgraded")
