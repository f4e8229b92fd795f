"""The worker process: wires and registers everything, in explicit lists."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator

from temporalio.client import Client
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from activities.channels.base import adapters_from
from activities.dispatch import DispatchActivities
from activities.notifications import NotificationActivities
from activities.sweeps import SweepActivities
from models.kit.database import Database
from models.kit.settings import Settings
from workflows.client import DISPATCH_QUEUE, NOTIFICATIONS_QUEUE, connect_when_up
from workflows.notifications import NotificationSender, ensure_sender
from workflows.offers import DispatchWorkflow
from workflows.relay import WakeRelay
from workflows.schedules import ensure_schedules
from workflows.sweeps import SweepWorkflow

log = logging.getLogger(__name__)


NICENESS = 5


def sandbox() -> SandboxedWorkflowRunner:
    """The determinism sandbox, with our own modules and the libraries they rest on passed through: loading them anew
    for every workflow costs 100 times the run."""
    return SandboxedWorkflowRunner(
        restrictions=SandboxRestrictions.default.with_passthrough_modules(
            "activities", "models", "workflows", "sqlalchemy", "asyncpg", "msgspec", "jinja2", "uuid_utils"
        )
    )


@contextlib.asynccontextmanager
async def running_worker(client: Client, database: Database, settings: Settings) -> AsyncIterator[None]:
    """Both task queues served, the relay and the sender running, until the block ends; then drained."""
    dispatch = DispatchActivities(database)
    sweeps = SweepActivities(database)
    adapters = adapters_from(settings)
    notifications = NotificationActivities(database, adapters, app_url=settings.public_url)
    dispatch_worker = Worker(
        client,
        task_queue=DISPATCH_QUEUE,
        workflows=[DispatchWorkflow, SweepWorkflow],
        activities=[
            dispatch.advance,
            dispatch.act_for_ops,
            sweeps.sweep_lanes,
            sweeps.sweep_silent_drivers,
            sweeps.make_partitions,
        ],
        workflow_runner=sandbox(),
        max_cached_workflows=settings.worker_cached_workflows,
        max_concurrent_workflow_tasks=200,
        max_concurrent_local_activities=50,
        max_concurrent_workflow_task_polls=20,
        max_concurrent_activity_task_polls=5,
    )
    notifications_worker = Worker(
        client,
        task_queue=NOTIFICATIONS_QUEUE,
        workflows=[NotificationSender],
        activities=[notifications.drain],
        workflow_runner=sandbox(),
    )
    await ensure_schedules(client)
    relay = WakeRelay(database, settings, client)
    async with dispatch_worker, notifications_worker:
        await ensure_sender(client, NOTIFICATIONS_QUEUE)
        relaying = asyncio.create_task(relay.run(), name="wake-relay")
        log.info("worker_running address=%s", settings.temporal_address)
        try:
            yield
        finally:
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)
    for adapter in adapters.values():
        await adapter.close()


async def run_worker(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    # Where API and worker share a machine that has not enough CPU, people are answered first.
    os.nice(NICENESS)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    database = Database(
        settings.sqlalchemy_url,
        pool_size=settings.database_pool_size,
        name="fairlead-worker",
        messages_enabled=settings.messages_enabled,
    )
    try:
        client = await connect_when_up(settings)
        async with running_worker(client, database, settings):
            await stop.wait()
    finally:
        await database.close()
