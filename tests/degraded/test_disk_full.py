"""Postgres's disk is full: reads work, writes are put off, and nothing that was acknowledged is lost."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg
import httpx
import pytest

import migrations
from api.cli.services import EmbeddedPostgres, EmbeddedTemporal
from models.kit.database import Database
from tests.degraded.processes import Fairlead, up
from tests.degraded.small_disk import SmallDisk, small_disk
from tests.factories import invariants
from tests.factories.work import World
from tests.factories.workers import until

pytestmark = pytest.mark.anyio

#: What was measured; seen with `--log-cli-level=info`.
log = logging.getLogger(__name__)

DISK_MB: Final = 160
#: Each takes some hundreds of bytes in a dozen tables and indexes: the pages that had room are soon full.
MOST_CREATIONS: Final = 2_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", DISK_MB) as disk:
        yield disk


@pytest.fixture
def postgres(disk: SmallDisk, tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(disk.path / "data", durable=True, log=tmp_path / "postgres.log")
    server.start()
    yield server
    server.kill()


class Dispatcher:
    """Creates work orders over HTTP, and keeps what was acknowledged."""

    def __init__(self, client: httpx.AsyncClient, world: World) -> None:
        self.client = client
        self.world = world
        self.acknowledged: list[UUID] = []

    async def create(self) -> int:
        body = {"premise_id": "P-1", "timeslot": "08:00", "special_instructions": "ring twice " * 150}
        answer = await self.client.post("/api/v1/enrollments", json=body, headers=self.world.dispatcher.headers)
        if answer.status_code == 201:
            self.acknowledged.append(UUID(answer.json()["id"]))
        else:
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["Retry-After"]) >= 1
        return answer.status_code

    async def read(self) -> int:
        answer = await self.client.get("/api/v1/work-orders?limit=100", headers=self.world.dispatcher.headers)
        assert answer.status_code in (200, 503), answer.text
        return answer.status_code

    async def nothing_is_lost(self) -> None:
        rows = {row.id for row in await self.world.all("SELECT id FROM work_orders")}
        assert rows >= set(self.acknowledged)
        await invariants.check(self.world.database)


async def test_on_a_full_disk_reads_work_and_writes_get_503_until_there_is_room_again(
    disk: SmallDisk, postgres: EmbeddedPostgres, stoppable_temporal: EmbeddedTemporal, tmp_path: Path
) -> None:
    """The write-ahead log has a disk of its own, as an operator should give it."""
    _move_the_log(postgres, tmp_path / "wal")
    await migrations.upgrade(postgres.url)
    database = Database(postgres.url)
    world = await World.make(database)
    driver = await world.driver()
    options: dict[str, Any] = {"database_url": postgres.url, "temporal": stoppable_temporal.address}
    api = Fairlead("api", tmp_path / "api.log", **options)
    worker = Fairlead("worker", tmp_path / "worker.log", **options)
    async with up(api, worker), httpx.AsyncClient(base_url=api.url, timeout=10) as client:
        dispatcher = Dispatcher(client, world)
        assert await dispatcher.create() == 201
        await until(lambda: world.offers(dispatcher.acknowledged[0]), within_s=20)
        disk.fill()
        statuses: Counter[int] = Counter()
        while statuses[503] < 20 and statuses.total() < MOST_CREATIONS:
            statuses[await dispatcher.create()] += 1
            assert await dispatcher.read() == 200
        assert statuses[503] == 20, statuses
        assert (await client.get("/health")).status_code == 200
        assert postgres.child.running
        await dispatcher.nothing_is_lost()
        disk.free()
        assert await dispatcher.create() == 201
        offer = await world.pending(dispatcher.acknowledged[0])
        accepted = await client.post(f"/api/v1/offers/{offer.id}/accept", headers=driver.headers)
        assert accepted.is_success, accepted.text
        done = await client.post(
            f"/api/v1/enrollments/{dispatcher.acknowledged[0]}/complete", headers=world.dispatcher.headers
        )
        assert done.is_success, done.text
        # The driver is free again, and the workers have seen it.
        await until(lambda: _offered_again(world, driver.driver_id), within_s=30)
        await dispatcher.nothing_is_lost()
        log.info("%d creations found room on the full disk", statuses[201])
    await database.close()


async def test_a_full_disk_of_the_log_crashes_postgres_and_nothing_acknowledged_is_lost(
    disk: SmallDisk, postgres: EmbeddedPostgres, temporal_address: str, tmp_path: Path
) -> None:
    """With the write-ahead log on the same disk Postgres crashes rather than lose a commit, recovers, and does so
    again and again until there is room."""
    await migrations.upgrade(postgres.url)
    database = Database(postgres.url)
    world = await World.make(database)
    api = Fairlead("api", tmp_path / "api.log", database_url=postgres.url, temporal=temporal_address)
    async with up(api), httpx.AsyncClient(base_url=api.url, timeout=10) as client:
        dispatcher = Dispatcher(client, world)
        assert await dispatcher.create() == 201
        disk.fill()
        await dispatcher.create()
        # What hours of small changes would come to: the log needs room that is not there.
        administrator = await asyncpg.connect(postgres.dsn)
        with pytest.raises((asyncpg.PostgresError, OSError)):
            while True:
                await administrator.execute("SELECT pg_logical_emit_message(true, 'filler', repeat('x', 1000000))")
        administrator.terminate()
        await until(lambda: _is(dispatcher, 503), within_s=30)
        assert (await client.get("/health")).status_code == 200
        disk.free()
        if not postgres.child.running:
            # It found no room to recover in either. A supervisor starts it again.
            postgres.stop(0)
            postgres.start()
        await until(lambda: _is(dispatcher, 201), within_s=30)
        await database.engine.dispose()
        await dispatcher.nothing_is_lost()
    await database.close()
    assert "PANIC" in (tmp_path / "postgres.log").read_text()


async def _is(dispatcher: Dispatcher, status: int) -> bool:
    return await dispatcher.create() == status


async def _offered_again(world: World, driver_id: UUID) -> bool:
    return bool(await world.all("SELECT 1 FROM offers WHERE driver_id = :id AND status = 'pending'", id=driver_id))


def _move_the_log(server: EmbeddedPostgres, to: Path) -> None:
    """As `initdb --waldir` would have put it."""
    server.stop()
    log = server.data_dir / "pg_wal"
    shutil.copytree(log, to)
    owner = log.stat()
    for path in (to, *to.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
    to.chmod(0o700)
    shutil.rmtree(log)
    log.symlink_to(to)
    server.start()
