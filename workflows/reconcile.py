"""The workflows that run, held against the work that is open: one side is Temporal's, the other is Postgres's.

Temporal's list of what runs lags behind what runs, so it only says where to look. A difference is one that the work
order's own workflow shows as well, twice, on work that nobody has touched for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, Literal
from uuid import UUID

import msgspec
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from models.kit.database import Database
from models.work.open_work import FIRST, settled_open_work, standing_of, wake_open_work
from models.work.rules import WorkOrderStatus
from models.work.wakes import Wake, work_order_id_of, workflow_id
from workflows.client import RPC_TIMEOUT

RUNNING: Final = "WorkflowType = 'DispatchWorkflow' AND ExecutionStatus = 'Running'"
PAGE: Final = 1_000
#: Work that has changed within this many seconds, or whose workflow is still owed a wake, is given its time.
SETTLED_S: Final = 60.0
#: Between the two looks at what seems to differ.
AGAIN_AFTER_S: Final = 5.0
#: No more than so many differences are followed up, of each kind; as many tell enough.
MOST: Final = 1_000
#: How many workflows are asked at a time.
AT_ONCE: Final = 20

What = Literal["a workflow runs for ended work", "a workflow runs for no work order", "open work has no workflow"]


class Difference(msgspec.Struct, frozen=True, order=True):
    """One work order on which Temporal and Postgres disagree; `status` is Postgres's, None where it has none."""

    work_order_id: UUID
    what: What
    status: WorkOrderStatus | None = None


async def differences(
    client: Client, database: Database, *, settled_s: float = SETTLED_S, again_after_s: float = AGAIN_AFTER_S
) -> list[Difference]:
    """Finished or missing work with a running workflow, and open work without one, by id.

    Reads only, on a live system too. Work that waits for its time to come has no workflow yet and owes its wake. Keeps
    the ids of all running workflows, some 100 bytes each. Raises RPCError or RuntimeError when Temporal is out.
    """
    suspects, running = list[UUID](), set[bytes]()
    async for page in _running(client):
        running.update(work_order_id.bytes for work_order_id in page)
        if len(suspects) < MOST:
            suspects += await _not_open(database, page)
    suspects = [*suspects[:MOST], *await _without(database, running, settled_s=settled_s)]
    del running
    found = await _confirmed(client, database, suspects, settled_s=settled_s)
    if not found:
        return []
    await asyncio.sleep(again_after_s)
    again = await _confirmed(client, database, [one.work_order_id for one in found], settled_s=settled_s)
    return sorted(set(found) & set(again))


async def resume_open_work(database: Database) -> AsyncIterator[int]:
    """Owe every open work order a wake, a batch per transaction; yields how many each batch held.

    What the relay then finds running looks at its work order anew, and what does not run is started. For after a
    restore, of Postgres, Temporal or both; at any other time it does no harm.
    """
    after = FIRST
    while True:
        async with database.transaction() as session:
            woken = await wake_open_work(session, after=after, limit=PAGE)
        if not woken:
            return
        yield len(woken)
        after = woken[-1]


async def wake_strays(client: Client, database: Database) -> int:
    """Have the workflows look whose work order has ended or is not there (any more): they find nothing to wait for, and
    end. Nothing in Postgres would wake them. Their number. Raises RPCError or RuntimeError when Temporal is out."""
    count = 0
    async for page in _running(client):
        strays = await _not_open(database, page)
        woken = await _each(strays, lambda stray: _wake(client, stray))
        count += sum(woken)
    return count


async def _running(client: Client) -> AsyncIterator[list[UUID]]:
    page: list[UUID] = []
    async for execution in client.list_workflows(RUNNING, page_size=PAGE):
        work_order_id = work_order_id_of(execution.id)
        if work_order_id is not None:
            page.append(work_order_id)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page


async def _not_open(database: Database, ids: Sequence[UUID]) -> list[UUID]:
    async with database.reading() as session:
        standing = await standing_of(session, ids, settled_s=0)
    return [one for one in ids if one not in standing or not standing[one].is_open]


async def _without(database: Database, running: set[bytes], *, settled_s: float) -> list[UUID]:
    """Settled open work that the list of running workflows does not have."""
    found, after = list[UUID](), FIRST
    while len(found) < MOST:
        async with database.reading() as session:
            page = await settled_open_work(session, after=after, limit=PAGE, settled_s=settled_s)
        found += [one for one in page if one.bytes not in running]
        if len(page) < PAGE:
            break
        after = page[-1]
    return found[:MOST]


async def _confirmed(
    client: Client, database: Database, suspects: Sequence[UUID], *, settled_s: float
) -> list[Difference]:
    # The workflows first: what they were then is held against work that has not changed since before.
    runs = dict(zip(suspects, await _each(suspects, lambda one: _runs(client, one)), strict=True))
    found: list[Difference] = []
    for start in range(0, len(suspects), PAGE):
        ids = suspects[start : start + PAGE]
        async with database.reading() as session:
            standing = await standing_of(session, ids, settled_s=settled_s)
        for one in ids:
            stands = standing.get(one)
            if stands is None:
                if runs[one]:
                    found.append(Difference(one, "a workflow runs for no work order"))
            elif stands.settled and stands.is_open != runs[one]:
                what: What = "open work has no workflow" if stands.is_open else "a workflow runs for ended work"
                found.append(Difference(one, what, stands.status))
    return found


async def _each(ids: Sequence[UUID], ask: Callable[[UUID], Awaitable[bool]]) -> list[bool]:
    answers: list[bool] = []
    for start in range(0, len(ids), AT_ONCE):
        answers += await asyncio.gather(*(ask(one) for one in ids[start : start + AT_ONCE]))
    return answers


async def _runs(client: Client, work_order_id: UUID) -> bool:
    try:
        handle = client.get_workflow_handle(workflow_id(work_order_id))
        now = await handle.describe(rpc_timeout=RPC_TIMEOUT)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return False
        raise
    return now.status is WorkflowExecutionStatus.RUNNING


async def _wake(client: Client, work_order_id: UUID) -> bool:
    """False when it has ended meanwhile."""
    try:
        handle = client.get_workflow_handle(workflow_id(work_order_id))
        await handle.signal(Wake.STATUS_CHANGED.value, rpc_timeout=RPC_TIMEOUT)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return False
        raise
    return True
