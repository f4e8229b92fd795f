"""The workflows that run against the work that is open, and how the two are brought together after a restore."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from temporalio.client import Client, WorkflowExecutionStatus

from api.cli.services import EmbeddedTemporal
from models.kit.database import Database
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from models.work.commands import complete
from models.work.open_work import FIRST, wake_open_work
from models.work.rules import WorkOrderStatus
from models.work.wakes import work_order_id_of, workflow_id
from tests.factories.work import World
from tests.factories.workers import dispatch_worker, until
from workflows.client import DISPATCH_QUEUE, connect
from workflows.offers import DispatchInput, DispatchWorkflow
from workflows.reconcile import RUNNING, Difference, differences, resume_open_work, wake_strays
from workflows.relay import WakeRelay

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
#: It ends, and its workflow hears nothing of it.
CANCELLED_UNTOLD = "UPDATE work_orders SET status = 'cancelled', match_from = NULL WHERE id = :id RETURNING 1"


@pytest.fixture
async def world(database: Database) -> World:
    return await World.make(database)


@pytest.fixture
def settings(own_temporal: EmbeddedTemporal) -> Settings:
    return Settings(temporal_address=own_temporal.address, secret_key=DEVELOPMENT_SECRET, dev_mode=True)


@pytest.fixture
async def client(settings: Settings) -> Client:
    return await connect(settings)


@pytest.fixture
async def relay(database: Database, settings: Settings, client: Client) -> WakeRelay:
    return WakeRelay(database, settings, client)


async def found(client: Client, database: Database) -> list[Difference]:
    return await differences(client, database, settled_s=0, again_after_s=0.2)


async def start(client: Client, work_order_id: UUID, of: UUID | None = None) -> Any:
    return await client.start_workflow(
        DispatchWorkflow.run,
        DispatchInput(work_order_id=str(of or work_order_id)),
        id=workflow_id(work_order_id),
        task_queue=DISPATCH_QUEUE,
    )


async def listed(client: Client, count: int) -> None:
    """Wait until Temporal's list has so many running."""

    async def so_many() -> bool:
        return len([one async for one in client.list_workflows(RUNNING)]) == count

    await until(so_many)


@contextlib.asynccontextmanager
async def running(relay: WakeRelay) -> AsyncIterator[None]:
    task = asyncio.create_task(relay.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def command(name: str, database_url: str, settings: Settings, *options: str) -> tuple[int, str]:
    """Run a `fairlead` command; its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "api.cli", name, *options, cwd=ROOT,
        env={
            "DATABASE_URL": database_url, "TEMPORAL_ADDRESS": settings.temporal_address, "DEV_MODE": "true",
            "SECRET_KEY": DEVELOPMENT_SECRET, "COLUMNS": "200",
        },
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


def test_a_workflow_id_names_its_work_order() -> None:
    work_order_id = uuid4()
    assert work_order_id_of(workflow_id(work_order_id)) == work_order_id
    assert work_order_id_of("work-order-7") is None
    assert work_order_id_of(f"report-{work_order_id}") is None


async def test_each_side_that_lacks_the_other_is_found_and_what_still_has_time_is_not(
    world: World, relay: WakeRelay, client: Client, database: Database
) -> None:
    await world.line(3)
    async with dispatch_worker(database, client):
        served, ended, terminated = [await world.enrollment() for _ in range(3)]
        await world.enrollment(scheduled_for=datetime.now(UTC) + timedelta(days=3))
        await relay.relay_once()
        await listed(client, 3)
        for work in (served, ended, terminated):
            # Each has looked, and waits.
            await until(lambda work=work: world.offers(work))
        assert await found(client, database) == []
        await client.get_workflow_handle(workflow_id(terminated)).terminate("by mistake")
        await world.all(CANCELLED_UNTOLD, id=ended)
    # Without a worker it stays, and does not find out that there is nothing.
    nothing = uuid4()
    await start(client, nothing)
    await listed(client, 3)
    assert await found(client, database) == sorted([
        Difference(ended, "a workflow runs for ended work", WorkOrderStatus.CANCELLED),
        Difference(terminated, "open work has no workflow", WorkOrderStatus.PENDING),
        Difference(nothing, "a workflow runs for no work order"),
    ])  # fmt: skip
    only_the_last = [Difference(nothing, "a workflow runs for no work order")]
    assert await differences(client, database, again_after_s=0.2) == only_the_last, "touched within the minute"
    await world.all("UPDATE workflow_wakes SET seq = sent_seq + 1 RETURNING 1")
    assert await found(client, database) == only_the_last, "a wake is owed"


async def test_a_completed_workflow_comes_back_for_work_that_a_restore_has_opened_again(
    world: World, relay: WakeRelay, client: Client, database: Database
) -> None:
    driver = await world.driver()
    work = await world.enrollment()
    async with dispatch_worker(database, client):
        # The run of a life that the database has no memory of.
        assert await (await start(client, work, of=uuid4())).result() == "gone"
        await world.all("UPDATE workflow_wakes SET sent_seq = seq RETURNING 1")
        assert [difference.work_order_id for difference in await found(client, database)] == [work]
        assert [batch async for batch in resume_open_work(database)] == [1]
        await relay.relay_once()
        await until(lambda: world.offers(work))
        assert (await world.pending(work)).driver_id == driver.driver_id
        await listed(client, 1)
        assert await found(client, database) == []


async def test_a_life_that_ends_leaves_one_run(
    world: World, relay: WakeRelay, client: Client, database: Database
) -> None:
    driver = await world.driver()
    async with dispatch_worker(database, client), running(relay):
        work = await world.enrollment()
        await until(lambda: world.offers(work))
        await world.accept((await world.pending(work)).id, driver)
        async with database.transaction() as session:
            await complete(session, work)
        handle = client.get_workflow_handle(workflow_id(work))
        assert await handle.result() == "completed"

        async def told() -> bool:
            return not await world.all("SELECT 1 FROM workflow_wakes WHERE seq > sent_seq")

        await until(told)

        async def closed() -> list[WorkflowExecutionStatus | None]:
            return [one.status async for one in client.list_workflows(f"WorkflowId = '{handle.id}'")]

        await until(closed)
        assert await closed() == [WorkflowExecutionStatus.COMPLETED]


async def test_open_work_is_woken_in_batches_and_scheduled_work_keeps_its_hour(world: World) -> None:
    works = sorted([await world.enrollment() for _ in range(5)])
    ended = await world.enrollment()
    hour = datetime.now(UTC) + timedelta(days=3)
    scheduled = await world.enrollment(scheduled_for=hour)
    await world.all("UPDATE workflow_wakes SET sent_seq = seq WHERE due_at <= now() RETURNING 1")
    await world.all(CANCELLED_UNTOLD, id=ended)
    before = {row.work_order_id: row for row in await world.all("SELECT * FROM workflow_wakes")}
    batches, after = [], FIRST
    while True:
        async with world.database.transaction() as session:
            woken = await wake_open_work(session, after=after, limit=4)
        if not woken:
            break
        batches.append(woken)
        after = woken[-1]
    assert [len(batch) for batch in batches] == [4, 2]
    assert [one for batch in batches for one in batch] == sorted([*works, scheduled])
    wakes = {row.work_order_id: row for row in await world.all("SELECT *, due_at <= now() AS due FROM workflow_wakes")}
    for work in works:
        assert (wakes[work].seq, wakes[work].sent_seq, wakes[work].reason, wakes[work].due) == (
            2,
            1,
            "status_changed",
            True,
        )
    assert (wakes[scheduled].due_at, wakes[scheduled].reason) == (before[scheduled].due_at, "status_changed")
    assert (wakes[ended].seq, wakes[ended].sent_seq) == (1, 1)


async def test_resume_ends_strays_and_brings_back_what_temporal_lost(
    world: World, relay: WakeRelay, client: Client, database: Database, database_url: str, settings: Settings
) -> None:
    driver = await world.driver()
    stray, lost = uuid4(), await world.enrollment()
    # Temporal says that it was told of `lost`, which it has no workflow of.
    await world.all("UPDATE workflow_wakes SET sent_seq = seq RETURNING 1")
    waits_for_ever = await world.enrollment(required_skills=("welding",))
    async with dispatch_worker(database, client):
        await start(client, stray, of=waits_for_ever)
        await listed(client, 1)
        code, output = await command("resume", database_url, settings)
        assert code == 0, output
        assert output.splitlines() == [
            "2 open work orders: a worker wakes or starts the workflow of each",
            "1 workflows that run for work that has ended or is not there: told to look, and to end",
        ]
        await relay.relay_once()
        await until(lambda: world.offers(lost))
        assert (await world.pending(lost)).driver_id == driver.driver_id
        assert await wake_strays(client, database) == 1


async def test_doctor_tells_what_holds_and_what_does_not(
    world: World, relay: WakeRelay, client: Client, database: Database, database_url: str, settings: Settings
) -> None:
    await world.driver()
    work = await world.enrollment()
    async with dispatch_worker(database, client):
        await relay.relay_once()
        await until(lambda: world.offers(work))
    code, output = await command("doctor", database_url, settings, "--invariants")
    lines = [line.split(maxsplit=1) for line in output.splitlines()[1:]]
    assert {line[0] for line in lines} == {"ok"}, output
    assert "each of the 1 decisions follows from its inputs" in output
    assert "the workflows that run are those of open work" in output
    assert code == 0
    async with database.transaction() as session:
        await session.run(text("UPDATE driver_dispatch SET active_count = 3"))
        await session.run(text("UPDATE workflow_wakes SET seq = sent_seq + 1, due_at = now() - interval '2 min'"))
    code, output = await command("doctor", database_url, settings, "--invariants")
    broken = [line for line in output.splitlines() if line.startswith("broken")]
    assert code == 1
    assert len(broken) == 2, output
    assert "active_count is the number of open counted assignments" in broken[0]
    assert broken[0].rstrip().endswith(" 3 0")
    assert "a wake is sent within 60 s of being due" in broken[1]
    assert str(work) in broken[1]
