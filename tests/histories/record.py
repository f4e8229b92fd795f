"""Records the histories that `tests/offers/test_replay.py` replays. Run by hand, never by a test:

    .venv/bin/python -m tests.histories.record NAME..

Names are those of `RECORDERS`; without one, those that have no file yet. A recorded history is what a running workflow
of an earlier release looks like: it is added to, never made anew. New paths get new names.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from temporalio.client import Client, WorkflowHistory
from temporalio.service import RPCError
from temporalio.worker import Worker

import migrations
from activities.channels.base import adapters_from
from activities.dispatch import OpsAction
from activities.notifications import DrainInput, NotificationActivities
from activities.sweeps import SweepActivities
from api.cli.services import EmbeddedPostgres, EmbeddedTemporal
from models.kit.database import Database
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from models.policies.rules import OnTimeout
from models.work.commands import assign_driver, cancel, complete, hand_back, report_status, unassign
from models.work.rules import WorkKind, WorkOrderStatus
from models.work.wakes import workflow_id
from tests.factories.people import Person
from tests.factories.proxy import Proxy
from tests.factories.work import World
from tests.factories.workers import dispatch_worker, until
from workflows.client import connect
from workflows.notifications import NotificationSender, SenderInput, ensure_sender
from workflows.offers import DispatchWorkflow
from workflows.relay import WakeRelay
from workflows.sweeps import SweepWorkflow
from workflows.worker import sandbox

HERE = Path(__file__).parent
#: So low that a handful of rounds makes the server suggest to continue as new.
SUGGEST_CONTINUE_AT = "limit.historyCount.suggestContinueAsNew=20"


def suggesting_server(directory: Path) -> EmbeddedTemporal:
    """A dev server that suggests early to continue as new."""
    server = EmbeddedTemporal(directory / "temporal.db", log=directory / "temporal.log")
    server.child._command += ["--dynamic-config-value", SUGGEST_CONTINUE_AT]
    return server


class Scene:
    """One organization with a running worker and relay, and the words in which a scenario is told."""

    def __init__(self, world: World, client: Client, workers_link: Proxy | None = None) -> None:
        self.world = world
        self.client = client
        #: The worker's way to Postgres, for the scenario that cuts it.
        self.workers_link = workers_link

    async def do(self, command: Callable[..., Awaitable[Any]], *args: Any, **named: Any) -> None:
        async with self.world.database.transaction() as session:
            await command(session, *args, **named)

    async def offer(self, work: UUID, sequence: int = 1) -> Any:
        async def pending() -> Any:
            return [o for o in await self.world.offers(work) if o.status == "pending" and o.sequence >= sequence]

        return (await until(pending, within_s=20))[0]

    async def is_shown(self, work: UUID, status: str) -> None:
        """Until the workflow has seen it."""
        handle = self.client.get_workflow_handle(workflow_id(work))

        async def shown() -> bool:
            # Until the relay has started it there is nothing to ask.
            with contextlib.suppress(RPCError):
                return bool((await handle.query(DispatchWorkflow.state)).status == status)
            return False

        await until(shown, within_s=20)

    async def take(self, work: UUID, driver: Person, sequence: int = 1) -> None:
        await self.world.accept((await self.offer(work, sequence)).id, driver)
        await self.is_shown(work, "assigned")

    async def finish(self, work: UUID) -> UUID:
        await self.do(complete, work)
        return work


async def accept(scene: Scene) -> UUID:
    driver = await scene.world.driver()
    work = await scene.world.enrollment()
    await scene.take(work, driver)
    return await scene.finish(work)


async def reject_then_accept(scene: Scene) -> UUID:
    first, second = await scene.world.line(2)
    work = await scene.world.enrollment()
    await scene.world.reject((await scene.offer(work)).id, first)
    await scene.take(work, second, 2)
    return await scene.finish(work)


async def expiry(scene: Scene) -> UUID:
    await scene.world.policy(WorkKind.ENROLLMENT, offer_ttl_s=1, offer_ttl_max_s=60)
    _, second = await scene.world.line(2)
    work = await scene.world.enrollment()
    await scene.offer(work)
    await scene.take(work, second, 2)
    return await scene.finish(work)


async def broadcast_then_auto(scene: Scene) -> UUID:
    await scene.world.policy(WorkKind.ORDER, broadcast_window_s=1)
    (best, _) = await scene.world.line(2)
    work = await scene.world.order()
    await scene.is_shown(work, "assigned")
    for status in (WorkOrderStatus.EN_ROUTE, WorkOrderStatus.ARRIVED, WorkOrderStatus.IN_PROGRESS):
        await scene.do(report_status, work, best.driver_id, status)
    return await scene.finish(work)


async def manual(scene: Scene) -> UUID:
    driver = await scene.world.driver()
    work = await scene.world.enrollment(manual=True)
    await scene.is_shown(work, "pending")
    await scene.do(assign_driver, work, driver.driver_id, "offer")
    await scene.take(work, driver)
    return await scene.finish(work)


async def route_reminded(scene: Scene) -> UUID:
    await scene.world.policy(WorkKind.ROUTE, offer_ttl_s=1, offer_ttl_max_s=30)
    driver = await scene.world.driver()
    work = await scene.world.route(driver)
    offer = await scene.offer(work)

    async def reminded() -> Any:
        return await scene.world.all("SELECT 1 FROM offers WHERE id = :id AND reminded_at IS NOT NULL", id=offer.id)

    await until(reminded)
    await scene.world.all("UPDATE offers SET expires_at = expires_max_at WHERE id = :id RETURNING 1", id=offer.id)
    await scene.take(work, driver)
    await scene.do(cancel, work, "enough")
    return work


async def cancel_while_offered(scene: Scene) -> UUID:
    await scene.world.driver()
    work = await scene.world.enrollment()
    await scene.offer(work)
    await scene.do(cancel, work, "not needed")
    return work


async def unassigned(scene: Scene) -> UUID:
    first, second = await scene.world.line(2)
    work = await scene.world.enrollment()
    await scene.take(work, first)
    await scene.do(unassign, work, "wrong van")
    await scene.take(work, second, 2)
    return await scene.finish(work)


async def handed_back(scene: Scene) -> UUID:
    first, second = await scene.world.line(2)
    work = await scene.world.enrollment()
    await scene.take(work, first)
    await scene.do(hand_back, work, first.driver_id, "flat tyre")
    await scene.take(work, second, 2)
    return await scene.finish(work)


async def order_expired(scene: Scene) -> UUID:
    return await scene.world.order(expires_in_s=1)


async def escalated_nudged_and_late(scene: Scene) -> UUID:
    await scene.world.policy(
        WorkKind.JOB, escalate_after_s=1, nudge_after_s=1, late_after_s=2, on_timeout=OnTimeout.NEXT
    )
    work = await scene.world.job()

    async def told(event: str) -> Any:
        return await scene.world.all("SELECT 1 FROM notifications WHERE event = :event", event=event)

    await until(lambda: told("escalation"))
    driver = await scene.world.driver()
    await scene.take(work, driver)
    await until(lambda: told("late_alert"))
    await scene.do(cancel, work, "too late")
    return work


async def ops_updates(scene: Scene) -> UUID:
    driver = await scene.world.driver()
    work = await scene.world.enrollment(manual=True)
    await scene.is_shown(work, "pending")
    handle = scene.client.get_workflow_handle(workflow_id(work))
    by_name = OpsAction(actor="night-shift", driver_id=str(driver.driver_id), mode="force")
    await handle.execute_update(DispatchWorkflow.assign, by_name)
    await handle.execute_update(DispatchWorkflow.unassign, OpsAction(actor="night-shift", reason="wrong van"))
    await handle.execute_update(DispatchWorkflow.reoffer, OpsAction(actor="night-shift"))
    await handle.execute_update(DispatchWorkflow.cancel, OpsAction(actor="night-shift", reason="not needed"))
    return work


async def continued_as_new(scene: Scene) -> UUID:
    """Round after round, until the server suggests to continue; then to its end. The first run is what is recorded."""
    driver = await scene.world.driver()
    work = await scene.world.enrollment()
    handle = scene.client.get_workflow_handle(workflow_id(work))
    first_run = (await until(lambda: described(handle))).run_id
    sequence = 1
    while (await handle.describe()).run_id == first_run:
        await scene.take(work, driver, sequence)
        await scene.do(unassign, work)
        await scene.is_shown(work, "pending")
        sequence += 1
        await scene.do(assign_driver, work, driver.driver_id, "offer")
        await scene.offer(work, sequence)
    await scene.take(work, driver, sequence)
    return await scene.finish(work)


async def outage(scene: Scene) -> UUID:
    """The database is gone for longer than the quick way tries, and comes back."""
    assert scene.workers_link is not None
    driver = await scene.world.driver()
    await scene.workers_link.refuse()
    work = await scene.world.enrollment()
    handle = scene.client.get_workflow_handle(workflow_id(work))

    async def waits_patiently() -> bool:
        description = await described(handle)
        return bool(description and description.raw_description.pending_activities)

    await until(waits_patiently, within_s=30)
    await scene.workers_link.resume()
    await scene.take(work, driver)
    return await scene.finish(work)


async def described(handle: Any) -> Any:
    with contextlib.suppress(RPCError):
        return await handle.describe()
    return None


SCENARIOS: dict[str, Callable[[Scene], Awaitable[UUID]]] = {
    scenario.__name__: scenario
    for scenario in (
        accept, reject_then_accept, expiry, broadcast_then_auto, manual, route_reminded, cancel_while_offered,
        unassigned, handed_back, order_expired, escalated_nudged_and_late, ops_updates, continued_as_new,
        outage,
    )
}  # fmt: skip


async def record(client: Client, database: Database, settings: Settings, name: str) -> WorkflowHistory:
    world = await World.make(database)
    relay = WakeRelay(database, settings, client)
    url = database.engine.url.render_as_string(hide_password=False)
    async with Proxy(url) as link:
        behind = Database(link.url)
        async with dispatch_worker(behind, client):
            relaying = asyncio.create_task(relay.run())
            try:
                work = await SCENARIOS[name](Scene(world, client, link))
                handle = client.get_workflow_handle(workflow_id(work))
                await until(lambda: described(handle))
                await handle.result()
            finally:
                relaying.cancel()
                await asyncio.gather(relaying, return_exceptions=True)
        await behind.close()
    return await first_run(client, workflow_id(work))


async def record_sender(client: Client, database: Database, settings: Settings, name: str) -> WorkflowHistory:
    activities = NotificationActivities(database, adapters_from(settings))
    worker = Worker(
        client, task_queue=name, workflows=[NotificationSender], activities=[activities.drain],
        workflow_runner=sandbox(),
    )  # fmt: skip
    async with worker:
        handle = await ensure_sender(client, name, SenderInput(drain=DrainInput(run_for_s=1)))
        run = (await handle.describe()).run_id

        async def renewed() -> bool:
            return (await handle.describe()).run_id != run

        await until(renewed)
        await handle.terminate()
    return await first_run(client, handle.id)


async def record_sweep(client: Client, database: Database, settings: Settings, name: str) -> WorkflowHistory:
    sweeps = SweepActivities(database)
    worker = Worker(
        client, task_queue=name, workflows=[SweepWorkflow], activities=[sweeps.sweep_lanes], workflow_runner=sandbox()
    )
    async with worker:
        await client.execute_workflow(SweepWorkflow.run, "sweep_lanes", id=name, task_queue=name)
    return await first_run(client, name)


async def first_run(client: Client, id: str) -> WorkflowHistory:
    described = await client.get_workflow_handle(id).describe()
    first = described.raw_description.workflow_execution_info.first_run_id
    return await client.get_workflow_handle(id, run_id=first).fetch_history()


RECORDERS = dict.fromkeys(SCENARIOS, record) | {"notification_sender": record_sender, "sweep": record_sweep}


def keep(name: str, history: WorkflowHistory) -> None:
    # Which machine recorded it is nobody's business.
    told = re.sub(r'"identity": "[^"]*"', '"identity": "recorder"', history.to_json())
    told = re.sub(r"\b\d+@[\w.-]+", "recorder", told)
    (HERE / f"{name}.json").write_text(told + "\n")
    print(f"{name}: {len(history.events)} events")  # noqa: T201 - a script tells what it did


async def main(names: list[str]) -> None:
    chosen = names or [name for name in RECORDERS if not (HERE / f"{name}.json").exists()]
    with tempfile.TemporaryDirectory() as directory:
        for name in chosen:
            here = Path(directory) / name
            postgres = EmbeddedPostgres(here / "postgres", durable=False)
            suggests = name == continued_as_new.__name__
            temporal = (
                suggesting_server(here)
                if suggests
                else EmbeddedTemporal(here / "temporal.db", log=here / "temporal.log")
            )
            postgres.start()
            temporal.start()
            try:
                url = postgres.url
                await migrations.upgrade(url)
                settings = Settings(temporal_address=temporal.address, secret_key=DEVELOPMENT_SECRET, dev_mode=True)
                database = Database(url.replace("postgresql://", "postgresql+asyncpg://"))
                keep(name, await RECORDERS[name](await connect(settings), database, settings, name))
                await database.close()
            finally:
                temporal.kill()
                postgres.kill()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
