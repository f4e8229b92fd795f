"""Real servers for the tests: one Postgres and one Temporal a session, a fresh database for each test that asks.

Everything lives below pytest's temporary directory on free ports, and is gone afterwards.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest
import structlog
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.testing import WorkflowEnvironment

import migrations
from api.cli.services import SEARCH_ATTRIBUTES, EmbeddedPostgres, EmbeddedTemporal, time_skipping_server
from api.logs import LAYERS
from models.kit.database import Database

TEMPLATE = "fairlead_template"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """One event loop for the whole session, so that session fixtures and tests may share connections."""
    return "asyncio"


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """What a test configures of the logs, as the application does, ends with it; and what was configured while tests
    were collected, by an application made for its list of operations, is none of its business."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), min(root.level, logging.WARNING)
    root.setLevel(level)
    _speak_up()
    yield
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level
    _speak_up()


def _speak_up() -> None:
    for layer in LAYERS:
        logging.getLogger(layer).setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    directory = tmp_path_factory.mktemp("postgres")
    server = EmbeddedPostgres(directory / "data", durable=False)
    server.start()
    yield server
    # Nothing in it is worth an orderly end.
    server.kill()
    shutil.rmtree(directory)


class Databases:
    """Makes and drops databases on the session's server: clones of a template that was migrated once."""

    def __init__(self, server: EmbeddedPostgres, administrator: asyncpg.Connection) -> None:
        self._server = server
        self._administrator = administrator

    async def create(self) -> str:
        """A migrated, empty database of its own; gives its URL for SQLAlchemy and DATABASE_URL."""
        name = f"test_{next(_numbers)}"
        await self._administrator.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY")
        return self.url(name)

    async def drop(self, url: str) -> None:
        await self._administrator.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def url(self, name: str) -> str:
        return f"{self._server.url.rpartition('/')[0]}/{name}"


@pytest.fixture(scope="session")
async def databases(postgres: EmbeddedPostgres) -> AsyncIterator[Databases]:
    administrator = await asyncpg.connect(postgres.dsn)
    # Tests write and drop: never on a server that is not the one made for them.
    assert await administrator.fetchval("SHOW data_directory") == str(postgres.data_dir)
    try:
        # Shares the template's blocks where the file system can (Btrfs, XFS); a copy inside the kernel elsewhere.
        await administrator.execute("SET file_copy_method = clone")
    except asyncpg.InvalidParameterValueError:
        await administrator.execute("SET file_copy_method = copy")
    made = Databases(postgres, administrator)
    await administrator.execute(f"CREATE DATABASE {TEMPLATE}")
    await migrations.upgrade(made.url(TEMPLATE))
    yield made
    await administrator.close()


@pytest.fixture
async def database_url(databases: Databases) -> AsyncIterator[str]:
    """A fresh, migrated database for this test alone, for what connects by itself."""
    url = await databases.create()
    yield url
    await databases.drop(url)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A fresh, migrated database for this test alone."""
    pool = Database(database_url, name="fairlead-test")
    yield pool
    await pool.close()


@pytest.fixture(scope="session")
def temporal_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The session's Temporal dev server. Tests share it: each uses its own task queue and workflow ids."""
    directory = tmp_path_factory.mktemp("temporal")
    server = EmbeddedTemporal(directory / "temporal.db", log=directory / "temporal.log")
    server.start()
    yield server.address
    server.kill()
    shutil.rmtree(directory)


@pytest.fixture
async def time_skipping() -> AsyncIterator[WorkflowEnvironment]:
    """A server of its own on which waiting takes no time. It knows no list, count or schedule."""
    async with await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=time_skipping_server()
    ) as environment:
        kinds = {
            name: IndexedValueType.Value(f"INDEXED_VALUE_TYPE_{kind.upper()}")
            for name, kind in SEARCH_ATTRIBUTES.items()
        }
        await environment.client.operator_service.add_search_attributes(
            AddSearchAttributesRequest(namespace=environment.client.namespace, search_attributes=kinds)
        )
        yield environment
