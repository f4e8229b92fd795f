"""Deploying a changed workflow over running ones: what a patch does, what a mistake costs, and the way back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Replayer

from models.kit.database import Database
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from models.work.commands import complete
from models.work.wakes import workflow_id
from tests.factories import invariants
from tests.factories.work import World
from tests.factories.workers import dispatch_worker, until
from tests.offers.test_replay import HISTORIES, WORKFLOWS, read
from workflows.client import DATA_CONVERTER, connect
from workflows.offers import DispatchInput, DispatchWorkflow
from workflows.relay import WakeRelay

pytestmark = pytest.mark.anyio

PATCH = "pause-before-the-first-look"


@workflow.defn(name="DispatchWorkflow", sandboxed=False)
class Patched(DispatchWorkflow):
    """The next release, done right: its new command stands behind a patch, so runs that began without it go on so."""

    @workflow.init
    def __init__(self, work: DispatchInput) -> None:
        super().__init__(work)

    @workflow.run
    async def run(self, work: DispatchInput) -> str:
        if workflow.patched(PATCH):
            await workflow.sleep(0.01)
        return await super().run(work)


@workflow.defn(name="DispatchWorkflow", sandboxed=False)
class Careless(DispatchWorkflow):
    """The next release with its new command in everybody's way."""

    @workflow.init
    def __init__(self, work: DispatchInput) -> None:
        super().__init__(work)

    @workflow.run
    async def run(self, work: DispatchInput) -> str:
        await workflow.sleep(0.01)
        return await super().run(work)


@pytest.fixture
def settings(temporal_address: str) -> Settings:
    return Settings(temporal_address=temporal_address, secret_key=DEVELOPMENT_SECRET, dev_mode=True)


@pytest.fixture
async def client(settings: Settings) -> Client:
    return await connect(settings)


@pytest.fixture
async def world(database: Database, settings: Settings, client: Client) -> AsyncIterator[World]:
    """With a relay, as the API has one, and without a worker."""
    relaying = asyncio.create_task(WakeRelay(database, settings, client).run())
    yield await World.make(database)
    relaying.cancel()
    await asyncio.gather(relaying, return_exceptions=True)


async def offered(world: World, work: UUID) -> UUID:
    async def pending() -> list[UUID]:
        return [offer.id for offer in await world.offers(work) if offer.status == "pending"]

    return (await until(pending, within_s=20))[0]


async def has_patch(handle: WorkflowHandle[object, object]) -> bool:
    history = await handle.fetch_history()
    markers = [event for event in history.events if event.event_type == EventType.EVENT_TYPE_MARKER_RECORDED]
    return any(PATCH in str(event.marker_recorded_event_attributes.details) for event in markers)


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_every_recorded_history_replays_under_a_patch(path: object) -> None:
    others = [kind for kind in WORKFLOWS if kind is not DispatchWorkflow]
    replayer = Replayer(workflows=[Patched, *others], data_converter=DATA_CONVERTER)
    result = await replayer.replay_workflow(read(path))  # type: ignore[arg-type]
    assert result.replay_failure is None


async def test_a_patched_release_takes_over_running_work_and_runs_new_work_its_own_way(
    world: World, client: Client
) -> None:
    drivers = {driver.driver_id: driver for driver in await world.line(2)}
    running = await world.enrollment()
    async with dispatch_worker(world.database, client):
        offer = await offered(world, running)
    # The old worker is gone, the new one has none of its memory: it replays.
    async with dispatch_worker(world.database, client, workflow=Patched):
        begun_later = await world.enrollment()
        for work, offer_id in ((running, offer), (begun_later, await offered(world, begun_later))):
            (row,) = [row for row in await world.offers(work) if row.id == offer_id]
            await world.accept(offer_id, drivers[row.driver_id])
            async with world.database.transaction() as session:
                await complete(session, work)
            assert await client.get_workflow_handle(workflow_id(work)).result() == "completed"
        assert not await has_patch(client.get_workflow_handle(workflow_id(running)))
        assert await has_patch(client.get_workflow_handle(workflow_id(begun_later)))
    await invariants.check(world.database)


async def test_a_careless_release_stops_running_work_and_rolling_it_back_lets_it_go_on(
    world: World, client: Client
) -> None:
    """Nothing is lost meanwhile: people's actions are Postgres's, and the workflow waits where it was."""
    driver = await world.driver()
    work = await world.enrollment()
    handle = client.get_workflow_handle(workflow_id(work))
    async with dispatch_worker(world.database, client):
        offer = await offered(world, work)

    async def stumbled() -> bool:
        history = await handle.fetch_history()
        return any(event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED for event in history.events)

    async with dispatch_worker(world.database, client, workflow=Careless):
        await world.accept(offer, driver)
        await until(stumbled, within_s=20)
        assert (await world.work_order(work)).status == "assigned"
        async with world.database.transaction() as session:
            await complete(session, work)
    async with dispatch_worker(world.database, client):
        async with asyncio.timeout(60):
            assert await handle.result() == "completed"
    await invariants.check(world.database)
