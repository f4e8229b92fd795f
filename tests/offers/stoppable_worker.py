"""A dispatch worker in a process of its own, for the test that stops it: `stoppable_worker.py <database> <temporal>`.

It takes one workflow task at a time and asks for no more, so that a stopped one holds nothing but that task.
"""

from __future__ import annotations

import asyncio
import sys

from temporalio.worker import Worker

from activities.dispatch import DispatchActivities
from models.kit.database import Database
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from workflows.client import DISPATCH_QUEUE, connect
from workflows.offers import DispatchWorkflow
from workflows.worker import sandbox

NAME = "stoppable-worker"


async def main(database_url: str, temporal_address: str) -> None:
    client = await connect(Settings(temporal_address=temporal_address, secret_key=DEVELOPMENT_SECRET, dev_mode=True))
    activities = DispatchActivities(Database(database_url, name=NAME))
    worker = Worker(
        client,
        task_queue=DISPATCH_QUEUE,
        workflows=[DispatchWorkflow],
        activities=[activities.advance, activities.act_for_ops],
        workflow_runner=sandbox(),
        max_cached_workflows=0,
        max_concurrent_workflow_tasks=1,
        max_concurrent_workflow_task_polls=1,
        max_concurrent_activities=1,
        no_remote_activities=True,
    )
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
