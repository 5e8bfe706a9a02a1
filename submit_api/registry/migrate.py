"""Bring the tables to the wanted revision, at start and in tests; in one transaction, where the database can."""

from __future__ import annotations

import os

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from submit_api.registry.database import Database

_FOLDER = os.path.join(os.path.dirname(os.path.dirname(__file__)), "migrations")


def config(connection: Connection | None = None) -> Config:
    made = Config()
    made.set_main_option("script_location", _FOLDER.replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


async def upgrade(database: Database, revision: str = "head") -> None:
    async with database.write_tables() as connection:
        await connection.run_sync(lambda sync: command.upgrade(config(sync), revision))


async def downgrade(database: Database, revision: str = "base") -> None:
    async with database.write_tables() as connection:
        await connection.run_sync(lambda sync: command.downgrade(config(sync), revision))
