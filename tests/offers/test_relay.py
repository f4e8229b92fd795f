"""Wakes: owed in the transaction of their cause, carried by the relay, never lost and never waited for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError
from temporalio.testing import ActivityEnvironment

from activities.sweeps import SweepActivities
from models.kit.database import Database
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from models.work.commands import cancel, complete
from models.work.details import change_details
from models.work.wakes import Wake, lease_wakes, raise_wake, record_sent, workflow_id
from tests.factories import poison
from tests.factories.proxy import Proxy
from tests.factories.races import once_it_waits_or_ends
from tests.factories.work import World
from tests.factories.workers import dispatch_worker, until
from workflows.client import connect
from workflows.offers import DispatchWorkflow
from workflows.relay import WakeRelay

pytestmark = pytest.mark.anyio


@pytest.fixture
async def world(database: Database) -> World:
    return await World.make(database)


@pytest.fixture
def settings(temporal_address: str) -> Settings:
    return Settings(temporal_address=temporal_address, secret_key=DEVELOPMENT_SECRET, dev_mode=True)


@pytest.fixture
async def client(settings: Settings) -> Client:
    return await connect(settings)


@pytest.fixture
async def relay(database: Database, settings: Settings, client: Client) -> WakeRelay:
    """One whose `relay_once` the test calls itself."""
    return WakeRelay(database, settings, client)


@pytest.fixture
async def worker(database: Database, client: Client) -> AsyncIterator[None]:
    async with dispatch_worker(database, client):
        yield


@contextlib.asynccontextmanager
async def running(relay: WakeRelay) -> AsyncIterator[None]:
    task = asyncio.create_task(relay.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def wake_of(world: World, work: UUID) -> Any:
    return await world.one("SELECT * FROM workflow_wakes WHERE work_order_id = :id", id=work)


async def has_offer(world: World, work: UUID) -> bool:
    return any(o.status == "pending" for o in await world.offers(work))


async def signals(client: Client, work: UUID) -> list[str]:
    history = await client.get_workflow_handle(workflow_id(work)).fetch_history()
    return [
        e.workflow_execution_signaled_event_attributes.signal_name
        for e in history.events
        if e.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
    ]


async def raise_again(world: World, work: UUID, reason: Wake) -> None:
    async with world.database.transaction() as session:
        raise_wake(session, work, world.organization_id, reason)


# Rows


async def test_wakes_of_one_work_order_coalesce_into_one_send(world: World, relay: WakeRelay, client: Client) -> None:
    work = await world.enrollment()
    for _ in range(3):
        await raise_again(world, work, Wake.STATUS_CHANGED)
    before = await wake_of(world, work)
    assert (before.seq, before.sent_seq, before.reason) == (4, 0, "status_changed")
    await relay.relay_once()
    after = await wake_of(world, work)
    assert (after.seq, after.sent_seq, after.claimed_until) == (4, 4, None)
    assert await signals(client, work) == ["status_changed"]
    assert not await relay.relay_once(), "nothing is owed any more"


async def test_a_wake_raised_while_one_is_being_sent_stays_owed(world: World) -> None:
    work = await world.enrollment()
    async with world.database.transaction() as session:
        (leased,) = await lease_wakes(session, limit=10, lease_s=15)
    await raise_again(world, work, Wake.ACCEPTED)
    async with world.database.transaction() as session:
        await record_sent(session, [(work, leased.seq)])
    wake = await wake_of(world, work)
    assert (wake.seq, wake.sent_seq, wake.claimed_until) == (2, 1, None)
    async with world.database.transaction() as session:
        (again,) = await lease_wakes(session, limit=10, lease_s=15)
    assert again.reason == "accepted"


async def test_two_relays_never_hold_the_same_wake_at_the_same_time(world: World) -> None:
    works = {await world.enrollment() for _ in range(20)}

    async def lease(limit: int) -> list[UUID]:
        async with world.database.transaction() as session:
            return [row.work_order_id for row in await lease_wakes(session, limit=limit, lease_s=15)]

    batches = await asyncio.gather(*(lease(6) for _ in range(4)))
    held = [work for batch in batches for work in batch]
    assert len(held) == len(set(held))
    held += await lease(50)
    assert sorted(held) == sorted(works)
    assert await lease(50) == [], "leased until they are sent or the lease ends"
    await world.all("UPDATE workflow_wakes SET claimed_until = clock_timestamp() RETURNING 1")
    assert len(await lease(50)) == 20


async def test_a_relay_passes_over_what_another_is_leasing_and_does_not_wait_for_it(world: World) -> None:
    await world.enrollment()

    async def lease() -> list[Any]:
        async with world.database.transaction() as session:
            return list(await lease_wakes(session, limit=10, lease_s=15))

    async with world.database.transaction() as session:
        assert len(await lease_wakes(session, limit=10, lease_s=15)) == 1
        other = asyncio.create_task(lease())
        await once_it_waits_or_ends(world, other)
        ended = other.done()
    assert (ended, await other) == (True, [])


async def test_a_relay_that_dies_between_send_and_record_only_sends_again(
    world: World, relay: WakeRelay, client: Client, worker: None
) -> None:
    driver = await world.driver()
    work = await world.enrollment()
    async with world.database.transaction() as session:
        (leased,) = await lease_wakes(session, limit=10, lease_s=15)
    assert await relay._send(leased)
    await until(lambda: has_offer(world, work))
    # It dies here; its lease runs out, and another relay sends.
    await world.all("UPDATE workflow_wakes SET claimed_until = clock_timestamp() RETURNING 1")
    await relay.relay_once()
    assert (await wake_of(world, work)).sent_seq == 1
    (offer,) = await world.offers(work)
    assert offer.driver_id == driver.driver_id
    history = await client.get_workflow_handle(workflow_id(work)).fetch_history()
    started = [e for e in history.events if e.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED]
    assert len(started) == 1


async def test_raising_and_recording_many_wakes_at_once_never_deadlocks(world: World) -> None:
    works = [await world.enrollment() for _ in range(30)]
    stop = time.monotonic() + 1.5

    async def raising(order: int) -> None:
        while time.monotonic() < stop:
            async with world.database.transaction() as session:
                for work in works[::order]:
                    raise_wake(session, work, world.organization_id, Wake.STATUS_CHANGED)

    async def recording() -> None:
        while time.monotonic() < stop:
            async with world.database.transaction() as session:
                await record_sent(session, [(work, 1) for work in reversed(works)])

    await asyncio.gather(*(raising(order) for order in (1, -1, 1)), *(recording() for _ in range(3)))


# Workflows


async def test_a_terminated_workflow_comes_back_and_a_completed_one_does_not(
    world: World, client: Client, settings: Settings, database: Database, worker: None
) -> None:
    async with running(WakeRelay(database, settings, client)):
        driver = await world.driver()
        work = await world.enrollment()
        await until(lambda: has_offer(world, work))
        handle = client.get_workflow_handle(workflow_id(work))
        first_run = (await handle.describe()).run_id
        await handle.terminate("by mistake")
        await world.accept((await world.pending(work)).id, driver)

        async def runs_again() -> bool:
            now = await handle.describe()
            return now.run_id != first_run and now.status is WorkflowExecutionStatus.RUNNING

        await until(runs_again)
        async with database.transaction() as session:
            await complete(session, work)
        assert await handle.result() == "completed"
        await raise_again(world, work, Wake.STATUS_CHANGED)

        async def delivered() -> bool:
            wake = await wake_of(world, work)
            return bool(wake.seq == wake.sent_seq)

        await until(delivered)
        assert (await handle.describe()).status is WorkflowExecutionStatus.COMPLETED


async def test_work_whose_workflow_somebody_terminated_is_found_by_a_sweep_and_goes_on(
    world: World, client: Client, settings: Settings, database: Database, worker: None
) -> None:
    """Nobody touches the work meanwhile, so nothing else would wake it."""
    sweep = ActivityEnvironment(client=client)
    activities = SweepActivities(database)
    async with running(WakeRelay(database, settings, client)):
        await world.driver()
        work = await world.enrollment()
        await until(lambda: has_offer(world, work))
        handle = client.get_workflow_handle(workflow_id(work))
        first_run = (await handle.describe()).run_id
        await handle.terminate("by mistake")

        async def runs_again() -> bool:
            # Temporal's list lags behind.
            await sweep.run(activities.sweep_abandoned)
            now = await handle.describe()
            return now.run_id != first_run and now.status is WorkflowExecutionStatus.RUNNING

        await until(runs_again)
        async with database.transaction() as session:
            await cancel(session, work, "not needed")
        assert await handle.result() == "cancelled"
        owed = await wake_of(world, work)
        await sweep.run(activities.sweep_abandoned)
        assert (await wake_of(world, work)).seq == owed.seq, "ended work is left alone"


@pytest.mark.parametrize("outage", ["refuse", "hang"])
async def test_a_creation_and_an_accept_while_temporal_is_down_go_on_when_it_is_back(
    world: World, database: Database, temporal_address: str, client: Client, worker: None, outage: str
) -> None:
    driver = await world.driver()
    offered = await world.enrollment()
    await world.advance(offered)
    async with Proxy(f"tcp://{temporal_address}") as proxy:
        way = Settings(temporal_address=proxy.url.removeprefix("tcp://"), secret_key=DEVELOPMENT_SECRET, dev_mode=True)
        await (proxy.refuse() if outage == "refuse" else proxy.hang())
        async with running(WakeRelay(database, way)):
            started = time.monotonic()
            created = await world.enrollment()
            await world.accept((await world.pending(offered)).id, driver)
            assert time.monotonic() - started < 1, "neither waits for Temporal"

            async def tried() -> bool:
                return bool((await wake_of(world, created)).attempts)

            await until(tried)
            assert (await wake_of(world, created)).sent_seq == 0
            other = await world.driver()
            await proxy.resume()
            await until(lambda: has_offer(world, created), within_s=10)
            assert (await world.pending(created)).driver_id == other.driver_id

            async def heard() -> bool:
                with contextlib.suppress(RPCError):
                    state = await client.get_workflow_handle(workflow_id(offered)).query(DispatchWorkflow.state)
                    return bool(state.status == "assigned")
                return False

            await until(heard)


async def test_scheduled_work_has_no_workflow_until_it_is_due_and_rescheduling_moves_it(
    world: World, database: Database, settings: Settings, client: Client, worker: None
) -> None:
    driver = await world.driver()
    async with running(WakeRelay(database, settings, client)):
        at = datetime.now(UTC) + timedelta(days=3)
        work = await world.job(scheduled_for=at)
        await asyncio.sleep(1.2)
        assert (await wake_of(world, work)).sent_seq == 0
        soon = datetime.now(UTC) + timedelta(seconds=3_600 + 2)
        async with database.transaction() as session:
            await change_details(session, work, expected_version=1, values={"scheduled_for": soon})
        assert (await wake_of(world, work)).due_at == soon - timedelta(seconds=3_600)
        await until(lambda: has_offer(world, work))
        offer = await world.pending(work)
        assert offer.driver_id == driver.driver_id
        late_s = (offer.offered_at - (soon - timedelta(seconds=3_600))).total_seconds()
        assert 0 <= late_s < 2


# Poison


async def refused_by_temporal(world: World) -> UUID:
    """A work order whose start Temporal refuses each time: its reference is longer than a search attribute may be."""
    work = await world.enrollment()
    await world.all("UPDATE work_orders SET reference = repeat('x', 5000) WHERE id = :id RETURNING 1", id=work)
    return work


async def test_one_wake_that_cannot_be_sent_keeps_no_other_from_being_sent(
    world: World, relay: WakeRelay, caplog: pytest.LogCaptureFixture
) -> None:
    refused = await refused_by_temporal(world)
    others = [await world.enrollment() for _ in range(59)]
    # It alone is tried again, more and more seldom.
    for attempt, pause_s in enumerate((1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60), start=1):
        await world.all("UPDATE workflow_wakes SET claimed_until = clock_timestamp() RETURNING 1")
        before = (await world.one("SELECT clock_timestamp() AS now")).now
        await relay.relay_once()
        after = (await world.one("SELECT clock_timestamp() AS now")).now
        wake = await wake_of(world, refused)
        assert (wake.sent_seq, wake.attempts) == (0, attempt)
        assert before <= wake.claimed_until - timedelta(seconds=pause_s) <= after

    for work in others:
        wake = await wake_of(world, work)
        assert (wake.sent_seq, wake.attempts) == (1, 0)
    told = [
        record for record in caplog.records if str(refused) in record.getMessage() and record.name == "workflows.relay"
    ]
    assert [record.levelname for record in told if record.levelno >= logging.WARNING] == ["WARNING"] + ["ERROR"] * 2
    assert not any("temporal_unavailable" in record.getMessage() for record in caplog.records)


async def test_nothing_ends_the_relay(
    world: World, database: Database, settings: Settings, client: Client, worker: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Here a wake that cannot even be leased."""
    await world.driver()
    work = await world.enrollment()
    await poison.trip(world, work, "workflow_wakes", "UPDATE")
    relay = WakeRelay(database, settings, client)
    task = asyncio.create_task(relay.run())

    async def told() -> bool:
        return any("relay_failed" in record.getMessage() for record in caplog.records)

    await until(told)
    assert not task.done()
    await poison.cure_trip(world, work)
    await until(lambda: has_offer(world, work))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert poison.SECRET not in caplog.text
