"""The worker process: wires and registers everything, in explicit lists."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from datetime import timedelta

from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from activities.channels.base import adapters_from
from activities.dispatch import DispatchActivities
from activities.notifications import NotificationActivities
from activities.sealing import AuditSealer
from activities.sweeps import SweepActivities
from models.audit.signing import SealingKey
from models.kit.crashes import arm
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
START_AGAIN_S = 0.5
#: After a restart all open work looks at once, and may wait its turn: nobody watches a clock here. Below what a local
#: activity has (workflows/policies.py).
WAIT_FOR_CONNECTION_S = 4.0
#: What an activity that runs when the worker stops gets to finish; the next worker takes up what is left. Transactions
#: take milliseconds; a batch of messages as long as a provider may take to answer.
DISPATCH_GRACE = timedelta(seconds=5)
NOTIFICATIONS_GRACE = timedelta(seconds=12)


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
    """Both task queues served, the relay, the sender and the sealer running, until the block ends; then drained."""
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
            sweeps.sweep_abandoned,
            sweeps.clean_idempotency_keys,
            sweeps.make_partitions,
        ],
        workflow_runner=sandbox(),
        max_cached_workflows=settings.worker_cached_workflows,
        max_concurrent_workflow_tasks=200,
        max_concurrent_local_activities=50,
        max_concurrent_workflow_task_polls=20,
        max_concurrent_activity_task_polls=5,
        graceful_shutdown_timeout=DISPATCH_GRACE,
    )
    notifications_worker = Worker(
        client,
        task_queue=NOTIFICATIONS_QUEUE,
        workflows=[NotificationSender],
        activities=[notifications.drain],
        workflow_runner=sandbox(),
        graceful_shutdown_timeout=NOTIFICATIONS_GRACE,
    )
    await ensure_schedules(client)
    relay = WakeRelay(database, settings, client)
    sealer = AuditSealer(database, SealingKey(settings.secret_key))
    async with dispatch_worker, notifications_worker:
        await ensure_sender(client, NOTIFICATIONS_QUEUE)
        beside = [
            asyncio.create_task(relay.run(), name="wake-relay"),
            asyncio.create_task(sealer.run(), name="audit-sealer"),
        ]
        log.info("worker_running address=%s", settings.temporal_address)
        try:
            yield
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            # Side by side: left to the blocks' ends, one would take new work while the other finishes its own.
            await asyncio.gather(dispatch_worker.shutdown(), notifications_worker.shutdown())
    for adapter in adapters.values():
        await adapter.close()


async def serve(database: Database, settings: Settings, stop: asyncio.Event) -> None:
    """Work as soon as Temporal is up, until `stop`; then drain. Raises what ends a worker that was up."""
    up = asyncio.Event()
    serving = asyncio.create_task(_serve(database, settings, stop, up), name="serving")
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        if up.is_set() or serving.done():
            await serving
    finally:
        # Nothing has begun yet that would have to be finished, or we are cancelled ourselves.
        serving.cancel()
        stopping.cancel()
        await asyncio.gather(serving, stopping, return_exceptions=True)


async def _serve(database: Database, settings: Settings, stop: asyncio.Event, up: asyncio.Event) -> None:
    while True:
        client = await connect_when_up(settings)
        try:
            async with running_worker(client, database, settings):
                up.set()
                await stop.wait()
                return
        except (RPCError, RuntimeError) as error:
            if up.is_set():
                raise
            # It went again while we came up, which is an outage like any other.
            log.warning("worker_not_up error=%s", error)
            await asyncio.sleep(START_AGAIN_S)


async def run_worker(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    # Where API and worker share a machine that has not enough CPU, people are answered first.
    os.nice(NICENESS)
    arm(settings.dev_crash_at)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    database = Database(
        settings.sqlalchemy_url,
        pool_size=settings.database_pool_size,
        name="fairlead-worker",
        messages_enabled=settings.messages_enabled,
        wait_s=WAIT_FOR_CONNECTION_S,
    )
    try:
        await serve(database, settings, stop)
    finally:
        await database.close()
