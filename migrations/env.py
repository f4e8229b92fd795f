"""Alembic's entry: runs on the connection that `migrations.upgrade` holds, or opens one when called by `alembic`."""

from __future__ import annotations

import asyncio
from typing import Any

from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from models.audit.tables import Xid8
from models.kit.settings import load_settings
from models.schema import metadata

# So that comparing the schema with the database knows the audit log's column.
ischema_names["xid8"] = Xid8

#: A migration that cannot have its lock soon gives up, instead of holding up every query queued behind it.
LOCK_TIMEOUT = "10s"


def migrate(connection: Connection) -> None:
    partitions = set(connection.scalars(text("SELECT relname FROM pg_class WHERE relispartition")))

    def include_name(name: str | None, kind: str, parents: Any) -> bool:
        # Partitions come and go at run time; only their parents are part of the schema.
        return kind != "table" or name not in partitions

    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
    connection.commit()
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_name=include_name,
        compare_type=True,
        # One transaction each, so that a revision may leave it (CREATE INDEX CONCURRENTLY) without undoing others.
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def open_and_migrate() -> None:
    settings = load_settings()
    url = settings.database_direct_url or settings.sqlalchemy_url
    _, _, rest = url.partition("://")
    engine = create_async_engine(f"postgresql+asyncpg://{rest}", poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(migrate)
    finally:
        await engine.dispose()


def print_sql() -> None:
    """`alembic upgrade --sql`: the statements, for those who run them by hand."""
    context.configure(dialect_name="postgresql", target_metadata=metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


held = context.config.attributes.get("connection")
if held is not None:
    migrate(held)
elif context.is_offline_mode():
    print_sql()
else:
    asyncio.run(open_and_migrate())
