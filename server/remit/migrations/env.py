"""Alembic's entry: run the migrations on the connection that `schema.py` hands over, or write them as SQL."""

from alembic import context

from remit.tables import metadata

if context.is_offline_mode():
    # Whoever runs the statements does so in a transaction.
    context.configure(
        dialect_name="postgresql", target_metadata=metadata, literal_binds=True, transactional_ddl=False
    )
else:
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
