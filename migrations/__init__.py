"""The schema's history (Alembic) and how to bring a database up to it.

There is no alembic.ini: the `alembic` command reads `[tool.alembic]` in pyproject.toml, and `fairlead migrate` calls
`upgrade` below, which works from an installed package and from any working directory.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

#: Taken for the whole upgrade, so that several processes that start at once migrate one after the other.
ADVISORY_LOCK = 0x0FA1_71EA_D000


def alembic_config() -> Config:
    config = Config()
    # Alembic's options interpolate `%`, which a path may hold.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def head() -> str:
    """The newest revision this code knows."""
    revision = ScriptDirectory.from_config(alembic_config()).get_current_head()
    if revision is None:
        raise RuntimeError("migrations/versions holds no revision")
    return revision


async def current(url: str) -> str | None:
    """The revision the database stands at; None for an empty one."""
    engine = _engine(url)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())
    finally:
        await engine.dispose()


async def upgrade(url: str, revision: str = "head") -> None:
    """Migrate the database at `url` (direct, not through a PgBouncer, which cannot carry the session's lock).

    Safe to run in several processes at once: the later ones wait, then find nothing to do.
    """

    def run(connection: Connection) -> None:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    engine = _engine(url)
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
            await connection.commit()
            await connection.run_sync(run)
            await connection.commit()
            # Closing the connection gives the lock back, also when a migration fails half way.
    finally:
        await engine.dispose()


def _engine(url: str) -> AsyncEngine:
    _, _, rest = url.partition("://")
    return create_async_engine(
        f"postgresql+asyncpg://{rest}",
        poolclass=NullPool,
        connect_args={"timeout": 10, "server_settings": {"application_name": "fairlead-migrate", "timezone": "UTC"}},
    )
