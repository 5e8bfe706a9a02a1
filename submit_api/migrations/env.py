"""Alembic's entry: migrate over the connection that the caller opened."""

from alembic import context

from submit_api.registry.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
