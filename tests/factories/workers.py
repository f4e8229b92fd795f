"""A dispatch worker over a test's database, and waiting for what it does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from temporalio.client import Client
from temporalio.worker import Worker

from activities.dispatch import DispatchActivities
from models.kit.database import Database
from workflows.client import DISPATCH_QUEUE
from workflows.offers import DispatchWorkflow
from workflows.worker import sandbox

T = TypeVar("T")


def dispatch_worker(database: Database, client: Client, *, workflow: type = DispatchWorkflow) -> Worker:
    activities = DispatchActivities(database)
    return Worker(
        client,
        task_queue=DISPATCH_QUEUE,
        workflows=[workflow],
        activities=[activities.advance, activities.act_for_ops],
        workflow_runner=sandbox(),
    )


async def until(condition: Callable[[], Awaitable[T]], *, within_s: float = 10) -> T:
    """Wait for something to become true, and give it."""
    async with asyncio.timeout(within_s):
        while not (value := await condition()):
            await asyncio.sleep(0.02)
    return value
