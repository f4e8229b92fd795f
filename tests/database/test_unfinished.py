"""Transactions that were cut off: what they leave behind never swallows the next one's writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

from models.kit.database import Database
from models.kit.sql import Sql
from tests.factories.proxy import Proxy

pytestmark = pytest.mark.anyio

STATEMENTS = {"short": Sql("INSERT INTO kept (id) VALUES (:id)"), "SQLAlchemy": text("INSERT INTO kept VALUES (:id)")}


@pytest.fixture
async def proxy(database_url: str, database: Database) -> AsyncIterator[Proxy]:
    async with database.transaction() as session:
        await session.run(text("CREATE TABLE kept (id int)"))
    async with Proxy(database_url) as way:
        yield way


async def kept(database: Database) -> list[int]:
    async with database.reading() as session:
        return [row.id for row in await session.rows(text("SELECT id FROM kept ORDER BY id"))]


async def insert(database: Database, way: Any, number: int) -> None:
    async with database.transaction() as session:
        await session.run(way, {"id": number})


@pytest.mark.parametrize("way", STATEMENTS)
async def test_a_transaction_cancelled_at_its_beginning_takes_none_of_the_next_with_it(
    proxy: Proxy, database: Database, way: str
) -> None:
    one = Database(proxy.url, pool_size=1)
    await insert(one, STATEMENTS[way], 1)
    await proxy.hang()
    cut_off = asyncio.create_task(insert(one, STATEMENTS[way], 2))
    await asyncio.sleep(0.2)
    cut_off.cancel()
    await proxy.resume()
    await asyncio.wait([cut_off])
    for number in (3, 4):
        await insert(one, STATEMENTS[way], number)
    assert await kept(database) == [1, 3, 4]
    await one.close()


@pytest.mark.parametrize("way", STATEMENTS)
async def test_a_transaction_out_of_time_at_its_beginning_takes_none_of_the_next_with_it(
    proxy: Proxy, database: Database, way: str
) -> None:
    one = Database(proxy.url, pool_size=1, statement_s=0.5)
    await insert(one, STATEMENTS[way], 1)
    await proxy.hang()
    out_of_time = asyncio.create_task(insert(one, STATEMENTS[way], 2))
    await asyncio.sleep(0.7)
    await proxy.resume()
    await asyncio.wait([out_of_time])
    assert out_of_time.exception() is not None
    for number in (3, 4):
        await insert(one, STATEMENTS[way], number)
    assert await kept(database) == [1, 3, 4]
    await one.close()
