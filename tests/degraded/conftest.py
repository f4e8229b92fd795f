"""A Postgres and a Temporal that the tests of this folder may stop, and databases on the former."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

import migrations
from api.cli.services import EmbeddedPostgres, EmbeddedTemporal
from models.kit.database import Database

TEMPLATE = "template_of_the_stoppable"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def stoppable_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    directory = tmp_path_factory.mktemp("stoppable")
    server = EmbeddedPostgres(directory / "data", durable=False)
    server.start()
    yield server
    server.kill()
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def stoppable_temporal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTemporal]:
    directory = tmp_path_factory.mktemp("stoppable_temporal")
    server = EmbeddedTemporal(directory / "temporal.db", log=directory / "temporal.log")
    server.start()
    yield server
    server.kill()
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
async def stoppable_url(stoppable_postgres: EmbeddedPostgres) -> str:
    """The URL of a module's own, migrated database on the Postgres that may be stopped."""
    name = f"stoppable_{next(_numbers)}"
    url = f"{stoppable_postgres.url.rpartition('/')[0]}/{name}"
    administrator = await asyncpg.connect(stoppable_postgres.dsn)
    await administrator.execute(f"CREATE DATABASE {name}")
    await administrator.close()
    await migrations.upgrade(url)
    return url


@pytest.fixture(scope="module")
async def stoppable(stoppable_url: str) -> AsyncIterator[Database]:
    """A pool over it that goes no other way: for the test's own looks and preparations."""
    pool = Database(stoppable_url, name="fairlead-test")
    yield pool
    await pool.close()
