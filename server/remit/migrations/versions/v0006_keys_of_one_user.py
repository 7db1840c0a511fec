"""An idempotency key is that of one agent for one user: another user's of the same agent is another key."""

from alembic import op
from sqlalchemy.schema import CreateIndex

from remit.tables import calls

revision = "0006"
down_revision = "0005"

_INDEX = "uq_calls_client_key"


def upgrade() -> None:
    op.execute(f"DROP INDEX {_INDEX}")
    op.execute(CreateIndex(next(index for index in calls.indexes if index.name == _INDEX)))


def downgrade() -> None:
    raise NotImplementedError("the audit database is never downgraded")
