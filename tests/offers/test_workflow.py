"""The dispatch workflow on a real server, with a real worker, relay and database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from temporalio.client import Client, WorkflowUpdateFailedError

from activities.dispatch import OpsAction
from models.kit.database import Database
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from models.work.commands import complete
from models.work.wakes import workflow_id
from tests.factories.work import World
from tests.factories.workers import until
from workflows.client import connect
from workflows.offers import DispatchWorkflow
from workflows.worker import running_worker

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
async def worker(client: Client, database: Database, settings: Settings) -> AsyncIterator[None]:
    async with running_worker(client, database, settings):
        yield


async def test_a_work_order_is_offered_accepted_and_completed(worker: None, world: World, client: Client) -> None:
    driver = await world.driver()
    work = await world.enrollment()

    async def offered() -> Any:
        return [o for o in await world.offers(work) if o.status == "pending"]

    (offer,) = await until(offered)
    await world.accept(offer.id, driver)
    handle = client.get_workflow_handle(workflow_id(work))

    async def assigned() -> bool:
        return (await handle.query(DispatchWorkflow.state)).status == "assigned"

    await until(assigned)
    chain = await handle.query(DispatchWorkflow.offer_chain)
    assert len(chain) == 1
    assert "DR-1001 sequential" in chain[0]
    assert "accepted" in chain[0]
    async with world.database.transaction() as session:
        await complete(session, work)
    assert await handle.result() == "completed"
    history = await handle.fetch_history()
    assert len(history.events) <= 20, [e.event_type for e in history.events]
    description = await handle.describe()
    shown = {pair.key.name: pair.value for pair in description.typed_search_attributes}
    assert shown["WorkOrderStatus"] == "completed"


async def test_ops_assign_by_an_update_and_a_refusal_keeps_its_name(worker: None, world: World, client: Client) -> None:
    driver = await world.driver(status="break")
    work = await world.enrollment()
    handle = client.get_workflow_handle(workflow_id(work))

    async def running() -> bool:
        return bool(await world.all("SELECT 1 FROM workflow_wakes WHERE sent_seq = seq"))

    await until(running)
    request = OpsAction(actor="night-shift", driver_id=str(driver.driver_id), mode="offer")
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await handle.execute_update(DispatchWorkflow.assign, request)
    assert refused.value.cause.__cause__.type == "DriverNotEligible"  # type: ignore[union-attr]
    step = await handle.execute_update(
        DispatchWorkflow.assign, OpsAction(actor="night-shift", driver_id=str(driver.driver_id), mode="force")
    )
    assert step.status == "assigned"
    audit = await world.one("SELECT * FROM audit_log WHERE action = 'WORK_ORDER_DRIVER_NAMED'")
    assert (audit.actor_kind, audit.request_id) == ("workflow", "ops:night-shift")
