"""Workers that die, stop and run twice; and clocks that are wrong."""

from __future__ import annotations

import ast
import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from activities.dispatch import DispatchActivities, WorkOrderRef
from models.kit.database import Database
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from models.work.commands import cancel, complete
from models.work.rules import WorkKind
from tests.factories import invariants
from tests.factories.clock import later
from tests.factories.work import World
from tests.factories.workers import dispatch_worker, until
from tests.offers import stoppable_worker
from workflows.client import connect
from workflows.relay import WakeRelay

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def world(database: Database) -> World:
    return await World.make(database)


async def state(world: World) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that dispatch decides on; what only counts looks or renews an instant stays out."""
    tables = {
        "work_orders": "id, status, round, match_from, next_round_at, broadcast_until, nobody_reasons, escalations, "
        "assigned_driver_id, nudged_at, late_alerted_at, version",
        "offers": "id, work_order_id, driver_id, status, reason, round, sequence, mode, expires_at",
        "assignments": "id, work_order_id, driver_id, ends_at, counted",
        "driver_dispatch": "driver_id, duty, active_count, queue_at, last_assigned_at, last_offered_at, reject_streak",
        "decisions": "number, work_order_id, driver_id",
        "work_order_events": "work_order_id, previous_status, new_status",
        "notifications": "event, user_id, dedupe_key",
        "audit_log": "action, entity_id",
    }
    return {
        table: [tuple(row) for row in await world.all(f"SELECT {columns} FROM {table} ORDER BY {columns}")]
        for table, columns in tables.items()
    }


async def fresh(world: World) -> UUID:
    await world.line(3)
    return await world.enrollment()


async def lapsed(world: World) -> UUID:
    work = await fresh(world)
    await world.advance(work)
    await later(world, 301)
    return work


async def nobody(world: World) -> UUID:
    return await world.enrollment()


async def nobody_for_long(world: World) -> UUID:
    work = await world.enrollment()
    await world.advance(work)
    await later(world, 601)
    return work


async def a_broadcast(world: World) -> UUID:
    await world.line(3)
    return await world.order()


async def a_broadcast_that_ended(world: World) -> UUID:
    work = await a_broadcast(world)
    await world.advance(work)
    await later(world, 16)
    return work


async def an_order_that_expired(world: World) -> UUID:
    await world.policy(WorkKind.ORDER, auto_assign=False)
    work = await a_broadcast(world)
    await world.advance(work)
    await later(world, 121)
    return work


async def a_route(world: World) -> UUID:
    return await world.route(await world.driver())


async def a_route_to_be_reminded_of(world: World) -> UUID:
    work = await a_route(world)
    await world.advance(work)
    await later(world, 901)
    return work


async def held_too_long(world: World) -> UUID:
    driver = await world.driver()
    work = await world.job()
    await world.advance(work)
    await world.accept((await world.pending(work)).id, driver)
    await later(world, 1_801)
    return work


async def a_new_round(world: World) -> UUID:
    await world.policy(WorkKind.JOB, reject_memory=False)
    driver = await world.driver()
    work = await world.job()
    await world.advance(work)
    await world.reject((await world.pending(work)).id, driver)
    await world.advance(work)
    await later(world, 31)
    return work


SITUATIONS = [
    fresh, lapsed, nobody, nobody_for_long, a_broadcast, a_broadcast_that_ended, an_order_that_expired, a_route,
    a_route_to_be_reminded_of, held_too_long, a_new_round,
]  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: s.__name__)
async def test_advance_run_again_leaves_what_one_run_leaves(world: World, situation: Any) -> None:
    """A worker that was killed between the commit and its acknowledgement: the activity runs a second time, and the
    first result was seen by nobody."""
    work = await situation(world)
    await world.advance(work)
    after_one = await state(world)
    step = await world.advance(work)
    assert await state(world) == after_one
    assert (await world.advance(work)).chain == step.chain
    await invariants.check(world.database)


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: s.__name__)
async def test_advances_of_the_same_work_order_at_once_leave_what_one_leaves(world: World, situation: Any) -> None:
    work = await situation(world)
    await asyncio.gather(*(world.advance(work) for _ in range(4)))
    after = await state(world)
    await world.advance(work)
    assert await state(world) == after
    offers = [o for o in await world.offers(work) if o.status == "pending" and o.exclusive]
    assert len(offers) <= 1
    keys = [row.dedupe_key for row in await world.all("SELECT dedupe_key FROM notifications")]
    assert len(keys) == len(set(keys)), "nobody is told twice"
    await invariants.check(world.database)


class HeldUp(DispatchActivities):
    """Stands still before its second look until the offer that it has made is over, as a frozen worker may."""

    def __init__(self, world: World) -> None:
        super().__init__(world.database)
        self.world = world
        self.looks = 0

    async def _look(self, work_order_id: UUID) -> Any:
        self.looks += 1
        if self.looks == 2:
            over = "SELECT 1 FROM offers HAVING max(expires_at) < clock_timestamp()"
            await until(lambda: self.world.all(over))
        return await super()._look(work_order_id)


@pytest.mark.parametrize("kind", [WorkKind.ENROLLMENT, WorkKind.JOB, WorkKind.ORDER])
async def test_an_offer_that_ran_out_while_it_was_made_is_settled_and_not_slept_on(
    world: World, kind: WorkKind
) -> None:
    """Nothing else would wake its workflow: the escalations, which are told apart from it, are over."""
    await world.policy(kind, offer_ttl_s=1, offer_ttl_max_s=1)
    await world.line(2)
    work = await {"enrollment": world.enrollment, "job": world.job, "order": world.order}[kind]()
    async with world.database.transaction() as session:
        await session.run(text("UPDATE work_orders SET escalations = 3"))
    step = await HeldUp(world).advance(WorkOrderRef(work_order_id=str(work)))
    assert {offer.status for offer in await world.offers(work)} == {"pending"}
    assert step.wait_s == 0
    await world.advance(work)
    assert (await world.offers(work))[0].reason == "timeout"
    await invariants.check(world.database)


async def test_a_completion_repeated_after_a_lost_answer_is_refused_without_harm(world: World) -> None:
    driver = await world.driver()
    work = await world.enrollment()
    await world.advance(work)
    offer = await world.pending(work)
    for _ in range(2):
        await world.accept(offer.id, driver)
    async with world.database.transaction() as session:
        await complete(session, work)
    before = await state(world)
    await world.accept(offer.id, driver)
    assert await state(world) == before, "the repeated accept of work that is done answers as it did"


async def test_a_worker_stopped_inside_advance_is_replaced_and_does_no_harm_when_it_goes_on(
    world: World, database_url: str, temporal_address: str
) -> None:
    driver = await world.driver()
    settings = Settings(temporal_address=temporal_address, secret_key=DEVELOPMENT_SECRET, dev_mode=True)
    client = await connect(settings)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.offers.stoppable_worker", database_url, temporal_address, cwd=ROOT
    )
    stuck = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
        f"AND application_name = '{stoppable_worker.NAME}'"
    )
    try:
        work = await world.enrollment()
        async with world.database.engine.connect() as holder, holder.begin():
            # Whoever settles or matches this work order now waits here.
            await holder.execute(text("SELECT 1 FROM work_orders WHERE id = :id FOR UPDATE"), {"id": work})
            await WakeRelay(world.database, settings, client).relay_once()
            await until(lambda: world.all(stuck), within_s=30)
            os.kill(process.pid, signal.SIGSTOP)
            # Its statement gives up at lock_timeout, its workflow task times out; neither needs the process.
            async with asyncio.timeout(20):
                while await world.all(stuck):
                    await asyncio.sleep(0.1)
            assert await world.offers(work) == []
        async with dispatch_worker(world.database, client):
            await until(lambda: world.offers(work), within_s=30)
            os.kill(process.pid, signal.SIGCONT)
            await asyncio.sleep(2)
            (offer,) = await world.offers(work)
            assert (offer.driver_id, offer.status) == (driver.driver_id, "pending")
            await invariants.check(world.database)
            async with world.database.transaction() as session:
                await cancel(session, work, "end of the test")
            await WakeRelay(world.database, settings, client).relay_once()
    finally:
        process.kill()
        await process.wait()


# Clocks


def application_clock_reads(path: Path) -> list[str]:
    """Where this module reads the machine's own clock."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            call = ast.unparse(node.func)
            if call in {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "time.time", "time.time_ns"}:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {call}")
    return found


def test_nothing_that_dispatches_reads_the_applications_clock() -> None:
    """So ten minutes of skew between machines change nothing: every instant is Postgres's own."""
    modules = [
        path
        for folder in ("drivers", "fairness", "offers", "policies", "work")
        for path in (ROOT / "models" / folder).rglob("*.py")
    ]
    modules += [ROOT / "activities" / "dispatch.py", ROOT / "activities" / "sweeps.py"]
    modules += [ROOT / "workflows" / name for name in ("offers.py", "relay.py", "policies.py", "sweeps.py")]
    assert [read for path in modules for read in application_clock_reads(path)] == []


async def test_every_instant_that_a_life_writes_lies_between_two_looks_at_the_databases_clock(world: World) -> None:
    driver = await world.driver()
    before = (await world.one("SELECT clock_timestamp() AS now")).now
    work = await world.enrollment()
    await world.advance(work)
    await world.accept((await world.pending(work)).id, driver)
    async with world.database.transaction() as session:
        await complete(session, work)
    after = (await world.one("SELECT clock_timestamp() AS now")).now
    written = {
        "work_orders": ("created_at", "updated_at", "waiting_since", "offered_at", "assigned_at", "completed_at"),
        "offers": ("offered_at", "responded_at"),
        "assignments": ("starts_at", "ends_at", "created_at"),
        "work_order_events": ("created_at",),
        "decisions": ("decided_at", "created_at"),
        "notifications": ("created_at",),
        "workflow_wakes": ("due_at",),
    }
    for table, columns in written.items():
        for row in await world.all(f"SELECT {', '.join(columns)} FROM {table}"):
            for column in columns:
                assert before <= getattr(row, column) <= after, f"{table}.{column}"
    dispatch = await world.dispatch(driver)
    assert before <= dispatch.queue_at <= after
    offer = (await world.offers(work))[0]
    assert (offer.expires_at - offer.offered_at).total_seconds() == 300


async def test_a_timer_that_fires_ten_minutes_early_changes_nothing(world: World) -> None:
    """A worker's clock ahead by ten minutes wakes the workflow too soon: `advance` finds nothing due and waits on."""
    await world.driver()
    work = await world.enrollment()
    step = await world.advance(work)
    before = await state(world)
    again = await world.advance(work)
    assert await state(world) == before
    assert step.wait_s is not None
    assert again.wait_s == pytest.approx(step.wait_s, abs=1)
