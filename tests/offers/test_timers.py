"""Every timer of the workflow, on skipped time: hours pass in the workflow's server and in Postgres alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from models.kit.database import Database
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from models.work.commands import assign_driver, complete
from models.work.rules import WorkKind
from models.work.wakes import workflow_id
from tests.factories import invariants
from tests.factories.clock import later
from tests.factories.people import Person
from tests.factories.work import World
from tests.factories.workers import dispatch_worker, until
from workflows.client import DATA_CONVERTER
from workflows.offers import DispatchWorkflow
from workflows.relay import WakeRelay

pytestmark = pytest.mark.anyio


class Skipping(msgspec.Struct, frozen=True):
    """A world whose workflows run on the time-skipping server."""

    world: World
    environment: WorkflowEnvironment
    client: Client
    relay: WakeRelay

    async def deliver(self) -> None:
        """Send the wakes that are owed, as the relay would within a moment."""
        while await self.relay.relay_once():
            pass

    async def pass_time(self, seconds: float) -> None:
        """On both sides: Postgres first, so that a timer that fires finds its time come."""
        await later(self.world, seconds)
        await self.environment.sleep(timedelta(seconds=seconds))

    async def offered_to(self, work: UUID) -> UUID:
        async def offer() -> Any:
            return [o for o in await self.world.offers(work) if o.status == "pending"]

        (found,) = await until(offer)
        driver_id: UUID = found.driver_id
        return driver_id

    async def waits_for(self, work: UUID, what: str) -> None:
        """Until the workflow says so: then its timer is set."""
        handle = self.client.get_workflow_handle(workflow_id(work))

        async def says() -> bool:
            step = await handle.query(DispatchWorkflow.state)
            return what in step.waits_for or step.status == what

        await until(says)

    async def message(self, event: str, count: int = 1) -> list[UUID]:
        async def told() -> Any:
            rows = await self.world.all("SELECT user_id FROM notifications WHERE event = :event", event=event)
            return rows if len(rows) >= count else None

        return [row.user_id for row in await until(told)]

    async def is_now(self, work: UUID, status: str) -> Any:
        async def reached() -> Any:
            row = await self.world.work_order(work)
            return row if row.status == status else None

        return await until(reached)


@pytest.fixture
async def skipping(database: Database, time_skipping: WorkflowEnvironment) -> AsyncIterator[Skipping]:
    client = await Client.connect(time_skipping.client.service_client.config.target_host, data_converter=DATA_CONVERTER)
    settings = Settings(secret_key=DEVELOPMENT_SECRET, dev_mode=True)
    async with dispatch_worker(database, client):
        yield Skipping(await World.make(database), time_skipping, client, WakeRelay(database, settings, client))
    await invariants.check(database)


async def accepted(skipping: Skipping, work: UUID, driver: Person) -> None:
    await skipping.world.accept((await skipping.world.pending(work)).id, driver)
    await skipping.deliver()


async def test_an_offer_that_expires_goes_to_the_next_driver_and_the_first_is_put_off_duty(skipping: Skipping) -> None:
    first, second = await skipping.world.line(2)
    work = await skipping.world.enrollment()
    await skipping.deliver()
    assert await skipping.offered_to(work) == first.driver_id
    await skipping.waits_for(work, "offer expires")
    await skipping.pass_time(301)

    async def moved_on() -> bool:
        offers = await skipping.world.offers(work)
        return [o.status for o in offers] == ["expired", "pending"]

    await until(moved_on)
    assert await skipping.offered_to(work) == second.driver_id
    assert (await skipping.world.dispatch(first)).duty == "off"
    await accepted(skipping, work, second)
    async with skipping.world.database.transaction() as session:
        await complete(session, work)
    await skipping.deliver()
    assert await skipping.client.get_workflow_handle(workflow_id(work)).result() == "completed"


async def test_dispatchers_hear_at_one_two_and_four_times_and_work_that_waits_needs_no_other_timer(
    skipping: Skipping,
) -> None:
    work = await skipping.world.job()
    await skipping.deliver()
    for step, after_s in enumerate((600, 600, 1_200), start=1):
        await skipping.waits_for(work, "an eligible driver")
        await skipping.pass_time(after_s + 1)
        assert len(await skipping.message("escalation", step)) == step
    await skipping.pass_time(86_400)
    assert len(await skipping.message("escalation", 3)) == 3
    driver = await skipping.world.driver()
    await skipping.deliver()
    assert await skipping.offered_to(work) == driver.driver_id


async def test_a_broadcast_that_nobody_takes_is_assigned_when_its_window_ends(skipping: Skipping) -> None:
    best, _ = await skipping.world.line(2)
    order = await skipping.world.order()
    await skipping.deliver()
    await skipping.waits_for(order, "answer of 2 drivers")
    await skipping.pass_time(16)
    row = await skipping.is_now(order, "assigned")
    assert row.assigned_driver_id == best.driver_id


async def test_an_order_that_nobody_can_take_expires(skipping: Skipping) -> None:
    order = await skipping.world.order(expires_in_s=90)
    await skipping.deliver()
    await skipping.waits_for(order, "an eligible driver")
    await skipping.pass_time(61)
    await skipping.message("escalation")
    await skipping.pass_time(30)
    await skipping.is_now(order, "expired")
    assert await skipping.client.get_workflow_handle(workflow_id(order)).result() == "expired"


async def test_a_driver_who_does_not_move_is_nudged_and_then_the_dispatchers_hear(skipping: Skipping) -> None:
    driver = await skipping.world.driver()
    job = await skipping.world.job()
    await skipping.deliver()
    await skipping.offered_to(job)
    await accepted(skipping, job, driver)
    await skipping.waits_for(job, "nudge")
    await skipping.pass_time(601)
    assert await skipping.message("nudge") == [driver.user_id]
    await skipping.waits_for(job, "late alert")
    await skipping.pass_time(1_200)
    assert await skipping.message("late_alert") == [skipping.world.dispatcher.user_id]


async def test_the_next_round_comes_by_itself(skipping: Skipping) -> None:
    await skipping.world.policy(WorkKind.JOB, reject_memory=False)
    driver = await skipping.world.driver()
    job = await skipping.world.job()
    await skipping.deliver()
    await skipping.offered_to(job)
    await skipping.world.reject((await skipping.world.pending(job)).id, driver)
    await skipping.deliver()
    await skipping.waits_for(job, "an eligible driver (already_offered:1)")
    await skipping.pass_time(31)
    assert await skipping.offered_to(job) == driver.driver_id
    assert (await skipping.world.pending(job)).round == 2


async def test_a_route_is_reminded_of_and_then_expires(skipping: Skipping) -> None:
    driver = await skipping.world.driver()
    route = await skipping.world.route(driver)
    await skipping.deliver()
    assert await skipping.offered_to(route) == driver.driver_id
    await skipping.waits_for(route, "answer of")
    await skipping.pass_time(901)
    assert await skipping.message("offer_expiring") == [driver.user_id]
    await skipping.pass_time(901)
    await skipping.message("nobody_eligible")
    await skipping.waits_for(route, "a dispatcher to name a driver")


async def test_work_scheduled_ahead_becomes_load_when_it_is_due(skipping: Skipping) -> None:
    driver = await skipping.world.driver()
    job = await skipping.world.job(scheduled_for=datetime.now(UTC) + timedelta(hours=5))
    async with skipping.world.database.transaction() as session:
        await assign_driver(session, job, driver.driver_id, "force")
    await skipping.deliver()
    await skipping.waits_for(job, "work is due")
    assert (await skipping.world.dispatch(driver)).active_count == 0
    await skipping.pass_time(4 * 3_600 + 2)

    async def counts() -> bool:
        return bool((await skipping.world.dispatch(driver)).active_count == 1)

    await until(counts)
