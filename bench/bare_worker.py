"""The bare workflows' worker, in a process of its own with the options of ours.

python -m bench.bare_worker TEMPORAL_ADDRESS
"""

from __future__ import annotations

import asyncio
import signal
import sys

from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from bench.bare import QUEUE, BareExpiry, BareLifecycle, nothing, offer, offer_next
from models.kit.settings import Settings
from workflows.client import connect

READY = "bare worker is running"


async def run(address: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings = Settings(temporal_address=address)
    passed = ("bench", "activities", "models", "workflows", "sqlalchemy", "asyncpg", "msgspec", "psutil")
    worker = Worker(
        await connect(settings),
        task_queue=QUEUE,
        workflows=[BareLifecycle, BareExpiry],
        activities=[offer, offer_next, nothing],
        workflow_runner=SandboxedWorkflowRunner(
            restrictions=SandboxRestrictions.default.with_passthrough_modules(*passed)
        ),
        # As workflows/worker.py has them.
        max_cached_workflows=settings.worker_cached_workflows,
        max_concurrent_workflow_tasks=200,
        max_concurrent_local_activities=50,
        max_concurrent_workflow_task_polls=20,
        max_concurrent_activity_task_polls=5,
    )
    async with worker:
        print(READY, flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1]))
