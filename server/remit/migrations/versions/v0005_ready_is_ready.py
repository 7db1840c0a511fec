"""Nothing is called ready that something erased came after, or under way whose answer nobody saw."""

from alembic import op

from remit.tables import view

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    # What people said had happened was left so: nobody saw the answer that its way back is worked out of.
    op.execute(
        "UPDATE undos SET state = 'void' WHERE state = 'registered'"
        " AND EXISTS (SELECT 1 FROM calls WHERE calls.id = undos.call_id AND calls.state = 'succeeded')"
    )
    dialect = op.get_context().dialect.name
    create = "CREATE OR REPLACE VIEW"  # who may read it, may still
    for name in ("undoable", "run_timeline"):
        if dialect == "sqlite":
            op.execute(f"DROP VIEW {name}")
            create = "CREATE VIEW"
        op.execute(f"{create} {name} AS {view(name, dialect)}")


def downgrade() -> None:
    raise NotImplementedError("the audit database is never downgraded")
