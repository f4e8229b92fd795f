"""SIGTERM to real processes in the middle of their work: what was taken is finished, and the next process goes on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from sqlalchemy import text

from api.cli.services import EmbeddedTemporal
from api.cli.serving import DRAIN_SECONDS
from models.kit.database import Database
from tests.degraded.processes import Fairlead, up
from tests.degraded.wire import Answer, CutOff, Wire
from tests.factories import invariants
from tests.factories.proxy import Proxy
from tests.factories.work import World
from tests.factories.workers import until
from tests.notifications.provider_servers import (
    API_KEY,
    FROM_ADDRESS,
    ResendServer,
    hang,
)
from workflows.relay import LEASE_S

pytestmark = pytest.mark.anyio

#: What was measured; seen with `--log-cli-level=info`.
log = logging.getLogger(__name__)

CLIENTS: Final = 16
ENROLLMENTS: Final = "/api/v1/enrollments"
BODY: Final = {"premise_id": "P-1", "timeslot": "08:00"}
#: Temporal's default for a workflow task and for a worker's own queue: what a worker that just vanishes would cost.
TASK_TIMEOUT_S: Final = 10.0


async def test_an_api_that_stops_answers_every_request_that_it_took(
    database: Database, database_url: str, temporal_address: str, tmp_path: Path
) -> None:
    world = await World.make(database)
    outcomes: Counter[int | str] = Counter()
    made: list[str] = []

    async def client(url: str, headers: dict[str, str]) -> None:
        """One request after the other, each on a connection of its own, until there is no server any more."""
        while True:
            try:
                wire = await Wire.open(url)
            except ConnectionRefusedError:
                outcomes["refused"] += 1
                return
            try:
                answer = await wire.ask("POST", ENROLLMENTS, world.dispatcher.headers | headers, BODY)
            except CutOff as error:
                outcomes[str(error)] += 1
                return
            outcomes[answer.status] += 1
            made.append(answer.json()["id"])

    async with Fairlead("api", tmp_path / "api.log", database_url=database_url, temporal=temporal_address) as api:
        # A quarter of them wait for an offer that never comes, and so are under way for a second.
        preferences = [{"Prefer": "wait=1"} if number % 4 == 0 else {} for number in range(CLIENTS)]
        clients = [asyncio.create_task(client(api.url, preference)) for preference in preferences]
        await until(lambda: _more_than(made, 2 * CLIENTS), within_s=30)
        took_s = await api.stop()
        await asyncio.gather(*clients)
    assert outcomes == {201: len(made), "refused": CLIENTS}
    log.info("%d answers, stopped after %.2f s", len(made), took_s)
    assert took_s < DRAIN_SECONDS
    assert sorted(made) == sorted(str(row.id) for row in await world.all("SELECT id FROM work_orders"))
    await invariants.check(database)


async def _more_than(things: list[Any], count: int) -> bool:
    return len(things) > count


async def test_an_idle_connection_does_not_hold_up_the_stop_and_a_busy_one_is_told_that_it_ends(
    database: Database, database_url: str, temporal_address: str, tmp_path: Path
) -> None:
    world = await World.make(database)
    async with Fairlead("api", tmp_path / "api.log", database_url=database_url, temporal=temporal_address) as api:
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", urlsplit(api.url).port)
        busy = await Wire.open(api.url)
        headers = world.dispatcher.headers | {"Prefer": "wait=1", "Connection": "keep-alive"}
        waiting = asyncio.create_task(busy.ask("POST", ENROLLMENTS, headers, BODY))
        await until(lambda: world.all("SELECT 1 FROM work_orders"))
        took_s = await api.stop()
        answer: Answer = await waiting
        assert (answer.status, answer.headers["connection"]) == (201, "close")
        assert await idle.read() == b""
        idle_writer.close()
        assert took_s < DRAIN_SECONDS


async def test_wakes_in_the_hands_of_an_api_that_stops_are_sent_or_free_for_the_next(
    database: Database, database_url: str, stoppable_temporal: EmbeddedTemporal, tmp_path: Path
) -> None:
    """Temporal is slow, so that the relay is in the middle of sending when the signal comes."""
    world = await World.make(database)
    async with Proxy(f"http://{stoppable_temporal.address}") as proxy:
        api = Fairlead("api", tmp_path / "api.log", database_url=database_url, temporal=proxy.address)
        async with up(api):
            await proxy.slow(0.2)
            answer = await (await Wire.open(api.url)).ask("POST", ENROLLMENTS, world.dispatcher.headers, BODY)
            await until(lambda: world.all("SELECT 1 FROM workflow_wakes WHERE claimed_until IS NOT NULL"))
            await api.stop()
            wake = await world.one(
                "SELECT seq, sent_seq, coalesce(extract(epoch FROM claimed_until - clock_timestamp()), 0) AS held_s "
                "FROM workflow_wakes WHERE work_order_id = :id",
                id=UUID(answer.json()["id"]),
            )
            assert wake.sent_seq == wake.seq or wake.held_s < LEASE_S / 4


async def test_a_worker_that_stops_hands_over_at_once_and_nothing_is_lost_or_doubled(
    database: Database, database_url: str, stoppable_temporal: EmbeddedTemporal, tmp_path: Path
) -> None:
    world = await World.make(database)
    count = 12
    drivers = {driver.driver_id: driver for driver in await world.line(2 * count)}
    options: dict[str, Any] = {"database_url": database_url, "temporal": stoppable_temporal.address}
    first = Fairlead("worker", tmp_path / "first.log", **options)
    second = Fairlead("worker", tmp_path / "second.log", **options)
    gaps: list[float] = []

    async def rejected(work: UUID, after_s: float) -> None:
        """The driver says no; the gap until somebody else is asked."""
        await asyncio.sleep(after_s)
        offer = await world.pending(work)
        await world.reject(offer.id, drivers[offer.driver_id])
        began = time.monotonic()
        await until(lambda: _offers(world, work, 2), within_s=40)
        gaps.append(time.monotonic() - began)

    async with up(first):
        works = [await world.enrollment() for _ in range(count)]
        for work in works:
            await until(lambda work=work: _offers(world, work, 1), within_s=30)  # type: ignore[misc]
        # From here on every workflow is in the first one's memory, where the server sends its tasks.
        async with up(second):
            rejections = [asyncio.create_task(rejected(work, number * 0.05)) for number, work in enumerate(works)]
            await asyncio.sleep(0.3)
            took_s = await first.stop()
            await asyncio.gather(*rejections)
            assert len(gaps) == count
            log.info("stopped after %.2f s, longest gap %.2f s", took_s, max(gaps))
            assert max(gaps) < TASK_TIMEOUT_S / 2
            for work in works:
                assert [(o.sequence, o.status) for o in await world.offers(work)] == [(1, "rejected"), (2, "pending")]
    await invariants.check(database)


async def test_a_worker_that_stops_finishes_the_transaction_that_it_is_in(
    database: Database, database_url: str, stoppable_temporal: EmbeddedTemporal, tmp_path: Path
) -> None:
    world = await World.make(database)
    await world.driver()
    worker = Fairlead("worker", tmp_path / "worker.log", database_url=database_url, temporal=stoppable_temporal.address)
    waits = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
        "AND application_name = 'fairlead-worker'"
    )
    async with up(worker):
        async with database.engine.connect() as holder, holder.begin():
            work = await world.enrollment()
            await holder.execute(text("SELECT 1 FROM work_orders WHERE id = :id FOR UPDATE"), {"id": work})
            await until(lambda: world.all(waits), within_s=20)
            stopping = asyncio.create_task(worker.stop())
            await asyncio.sleep(0.5)
            assert await world.offers(work) == []
        await stopping
        (offer,) = await world.offers(work)
        assert offer.status == "pending"
    await invariants.check(database)


async def test_a_worker_that_stops_records_the_message_that_it_is_sending(
    database: Database, database_url: str, stoppable_temporal: EmbeddedTemporal, tmp_path: Path
) -> None:
    world = await World.make(database)
    await world.driver()
    async with ResendServer() as resend:
        resend.plan(hang(1))
        worker = Fairlead(
            "worker", tmp_path / "worker.log", database_url=database_url, temporal=stoppable_temporal.address,
            RESEND_API_KEY=API_KEY, RESEND_BASE_URL=resend.url, EMAIL_FROM=FROM_ADDRESS,
        )  # fmt: skip
        async with up(worker):
            await world.enrollment()
            await until(lambda: _asked(resend), within_s=30)
            log.info("stopped after %.2f s", await worker.stop())
            assert len(resend.delivered) == 1
            rows = await world.all("SELECT status, attempt FROM notifications")
            assert [(row.status, row.attempt) for row in rows] == [("sent", 1)]


async def _asked(server: ResendServer) -> bool:
    return server.requests > 0


async def _offers(world: World, work: UUID, count: int) -> bool:
    return len(await world.offers(work)) >= count
