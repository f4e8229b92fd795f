"""`fairlead stuck` on a running system: real workflows that poison stops, and what ops make of them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle, WorkflowUpdateFailedError

from activities.dispatch import OpsAction
from api.cli.doctor import stuck_findings
from models.kit.database import Database
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from models.offers.commands import accept
from models.work.commands import complete
from models.work.wakes import Wake, raise_wake, workflow_id
from tests.factories import invariants, poison
from tests.factories.poison import SECRET
from tests.factories.work import World
from tests.factories.workers import dispatch_worker, until
from workflows.client import connect
from workflows.offers import DispatchWorkflow
from workflows.relay import WakeRelay

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def world(database: Database) -> World:
    return await World.make(database)


@pytest.fixture
def settings(temporal_address: str, database_url: str) -> Settings:
    return Settings(
        temporal_address=temporal_address, database_url=database_url, secret_key=DEVELOPMENT_SECRET, dev_mode=True
    )


@pytest.fixture
async def client(settings: Settings) -> Client:
    return await connect(settings)


@pytest.fixture
async def system(database: Database, settings: Settings, client: Client) -> AsyncIterator[None]:
    """A worker and its relay."""
    async with dispatch_worker(database, client):
        relaying = asyncio.create_task(WakeRelay(database, settings, client).run())
        yield
        relaying.cancel()
        await asyncio.gather(relaying, return_exceptions=True)


async def stuck(settings: Settings, *arguments: str, answer: str = "") -> tuple[int, str]:
    """Run `fairlead stuck ..` as ops do; its exit code and all that it says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "api.cli", "stuck", *arguments,
        cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"DATABASE_URL": settings.database_url, "DEV_MODE": "true"},
    )  # fmt: skip
    output, _ = await process.communicate(answer.encode())
    return process.returncode or 0, output.decode()


async def parked(world: World, work: UUID) -> bool:
    return bool(
        await world.all("SELECT 1 FROM stuck_work WHERE work_order_id = :id AND parked_at IS NOT NULL", id=work)
    )


async def waits_for_ops(handle: WorkflowHandle[Any, Any]) -> bool:
    step = await handle.query(DispatchWorkflow.state)
    return bool(step.waits_for.startswith("ops:"))


async def reference(world: World, work: UUID) -> str:
    return str((await world.one("SELECT reference FROM work_orders WHERE id = :id", id=work)).reference)


async def has_offer(world: World, work: UUID) -> bool:
    return any(offer.status == "pending" for offer in await world.offers(work))


async def findings(settings: Settings) -> list[tuple[str, str]]:
    return [(finding.verdict, finding.text) async for finding in stuck_findings(settings)]


@pytest.fixture
async def poisoned(world: World, client: Client, system: None) -> tuple[UUID, WorkflowHandle[Any, Any]]:
    """A work order whose row cannot be decoded, parked by its own workflow, which waits for ops."""
    work = await world.enrollment()
    await until(lambda: world.all("SELECT 1 FROM workflow_wakes WHERE sent_seq = seq"))
    handle = client.get_workflow_handle(workflow_id(work))

    async def looked() -> bool:
        return (await handle.query(DispatchWorkflow.state)).waits_for.startswith("an eligible driver")

    await until(looked)
    await poison.cannot_be_decoded(world, work)
    await world.driver()
    await until(lambda: parked(world, work))
    await until(lambda: waits_for_ops(handle))
    return work, handle


async def test_retried_once_the_cause_is_repaired_it_lives_to_its_end(
    world: World, settings: Settings, poisoned: tuple[UUID, WorkflowHandle[Any, Any]]
) -> None:
    work, handle = poisoned
    name = await reference(world, work)
    description = await handle.describe()
    assert description.status is WorkflowExecutionStatus.RUNNING
    assert description.raw_description.pending_activities == [], "nothing is tried in vain"
    ((verdict, told),) = await findings(settings)
    assert (verdict, name in told) == ("wrong", True)

    code, output = await stuck(settings, "list")
    assert code == 0
    for shown in (name, str(work), "enrollment", "pending", "OverflowError", " 3 "):
        assert shown in output
    await poison.cure_decoding(world, work)
    code, output = await stuck(settings, "retry", name)
    assert (code, output.strip().endswith("tried again")) == (0, True), output

    await until(lambda: has_offer(world, work))
    offer = await world.pending(work)
    (driver,) = await world.all("SELECT id FROM driver_profiles")
    assert offer.driver_id == driver.id
    async with world.database.transaction() as session:
        await accept(session, offer.id, offer.driver_id)
    async with world.database.transaction() as session:
        await complete(session, work)
    assert await handle.result() == "completed"
    assert await stuck(settings, "list") == (0, "Nothing is stuck.\n")
    assert await findings(settings) == [("ok", "none")]
    audit = await world.one("SELECT actor_kind, request_id FROM audit_log WHERE action = 'WORK_ORDER_RETRIED'")
    assert (audit.actor_kind, audit.request_id[:4]) == ("system", "ops:")
    assert len(await world.all("SELECT 1 FROM notifications WHERE event = 'work_parked'")) == 1
    await invariants.check(world.database)


async def test_dropping_cancels_and_by_force_where_cancelling_fails(
    world: World, settings: Settings, poisoned: tuple[UUID, WorkflowHandle[Any, Any]]
) -> None:
    work, handle = poisoned
    code, output = await stuck(settings, "drop", str(work), "--reason", "beyond repair")
    assert code == 1
    assert "cannot be cancelled (OverflowError" in output
    assert "--force" in output
    with pytest.raises(WorkflowUpdateFailedError) as failed:
        await handle.execute_update(DispatchWorkflow.cancel, OpsAction(actor="night-shift"))
    assert failed.value.cause.__cause__.type == "OverflowError"  # type: ignore[union-attr]
    code, output = await stuck(settings, "drop", str(work), "--force", answer="n\n")
    assert code == 1
    assert await parked(world, work), "who does not confirm changes nothing"

    code, output = await stuck(settings, "drop", str(work), "--force", "--yes", "--reason", "beyond repair")

    assert code == 0, output
    assert "ended by force" in output
    assert await handle.result() == "cancelled"
    row = await world.one("SELECT status, cancellation_reason FROM work_orders WHERE id = :id", id=work)
    assert tuple(row) == ("cancelled", "beyond repair")
    code, output = await stuck(settings, "drop", str(work), "--force", "--yes")
    assert code == 1
    assert "Nothing stuck is called" in output
    await invariants.check(world.database)


async def test_all_is_retried_at_once_and_what_is_only_cancelled_ends_as_ever(
    world: World, settings: Settings, client: Client, system: None
) -> None:
    works = [await world.enrollment() for _ in range(3)]
    for work in works:
        await poison.has_no_policy(world, work)
        async with world.database.transaction() as session:
            raise_wake(session, work, world.organization_id, Wake.STATUS_CHANGED)
        await until(lambda: parked(world, work))  # noqa: B023 - awaited here

    code, output = await stuck(settings, "drop", await reference(world, works[0]))
    assert (code, output.strip().endswith("cancelled")) == (0, True), output
    assert await client.get_workflow_handle(workflow_id(works[0])).result() == "cancelled"
    code, output = await stuck(settings, "retry", "--all", answer="n\n")
    assert code == 1
    assert "Try all 2 again?" in output
    for work in works[1:]:
        await poison.cure_policy(world, work)
    code, output = await stuck(settings, "retry", "--all", "--yes")
    assert (code, output.count("tried again")) == (0, 2), output

    for work in works[1:]:
        handle = client.get_workflow_handle(workflow_id(work))
        await until(lambda: _does_not_wait_for_ops(handle))  # noqa: B023 - awaited here
    await invariants.check(world.database)


async def _does_not_wait_for_ops(handle: WorkflowHandle[Any, Any]) -> bool:
    return not await waits_for_ops(handle)


async def test_nothing_of_a_row_is_in_the_history_of_what_failed(world: World, client: Client, system: None) -> None:
    driver = await world.driver()
    await poison.trip(world, driver.driver_id, "offers", "INSERT", key="driver_id")
    work = await world.enrollment()
    await until(lambda: parked(world, work))
    handle = client.get_workflow_handle(workflow_id(work))
    await until(lambda: waits_for_ops(handle))

    # Payloads are readable here, and in base64 in its JSON.
    history = str((await handle.fetch_history()).events)

    assert SECRET not in history
    assert "P0001" in history, "what is shown instead"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["list"], 0, "Nothing is stuck."),
        (["retry"], 2, "Give one work order, or --all."),
        (["retry", "EN-1", "--all"], 2, "Give one work order, or --all."),
        (["retry", "--all"], 0, "Nothing is stuck."),
        (["retry", "EN-99999"], 1, "Nothing stuck is called EN-99999"),
        (["drop", "0198c5f0-0000-7000-8000-000000000000"], 1, "Nothing stuck is called"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_what_cannot_be_done_is_said(
    world: World, settings: Settings, arguments: list[str], code: int, says: str
) -> None:
    # Known, but not stuck.
    await world.enrollment()

    answered, output = await stuck(settings, *arguments)

    assert (answered, says in output) == (code, True), output


async def test_a_reference_of_two_organizations_needs_the_id(world: World, settings: Settings) -> None:
    other = await World.make(world.database)
    works = [await one.enrollment() for one in (world, other)]
    assert len({await reference(world, work) for work in works}) == 1
    for one, work in zip((world, other), works, strict=True):
        await poison.run(
            one,
            "INSERT INTO stuck_work (work_order_id, organization_id, failures, error, first_failed_at, last_failed_at, "
            "parked_at) VALUES (:id, :organization, 3, 'KeyError', now(), now(), now())",
            id=work,
            organization=one.organization_id,
        )

    code, output = await stuck(settings, "retry", await reference(world, works[0]))
    assert code == 1
    for work in works:
        assert str(work) in output.replace("\n", "").replace("│", "").replace(" ", ""), output
    code, output = await stuck(settings, "retry", str(works[1]))
    assert code == 0
    assert await parked(world, works[0])
    assert not await parked(world, works[1])


async def test_without_its_database_it_says_so(settings: Settings) -> None:
    nowhere = Settings(
        database_url="postgresql://nobody@127.0.0.1:1/none", secret_key=DEVELOPMENT_SECRET, dev_mode=True
    )

    code, output = await stuck(nowhere, "list")

    assert code == 1
    assert "The database does not answer" in output
    assert "Traceback" not in output
    assert await findings(nowhere) == []
