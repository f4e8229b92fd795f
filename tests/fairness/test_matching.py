"""The lane's promise: decision n gives the first servable waiting work order its best-ranked eligible driver."""

from __future__ import annotations

import asyncio
import random
from uuid import UUID

import pytest
from sqlalchemy import text

from models.fairness.candidates import first_servable
from models.fairness.matching import match_next
from models.fairness.records import chain_hash, read_record, replays, verify_body
from models.kit.database import Database
from models.work.commands import cancel, report_status
from models.work.rules import WorkKind, WorkOrderStatus
from tests.factories import invariants
from tests.factories.races import once_it_waits_or_ends
from tests.factories.work import World

pytestmark = pytest.mark.anyio


@pytest.fixture
async def world(database: Database) -> World:
    return await World.make(database)


async def decisions_replay(world: World) -> int:
    """Every recorded decision follows from its inputs, and the chain has no gap and no break. Gives their number."""
    rows = await world.all("SELECT * FROM decisions ORDER BY number")
    previous = b""
    for n, row in enumerate(rows, start=1):
        assert row.number == n
        assert row.previous_hash == previous
        assert verify_body(row.header, row.candidates, row.salts, row.body_hash)
        assert row.hash == chain_hash(previous, n, row.body_hash)
        header, candidates = read_record(row.header, row.candidates)
        assert replays(header, candidates)
        previous = row.hash
    return len(rows)


async def test_five_drivers_are_offered_five_enrollments_in_fairness_order(world: World) -> None:
    drivers = await world.line(5)
    works = [await world.enrollment() for _ in range(5)]
    for work in works:
        await world.advance(work)
    assert [(await world.pending(work)).driver_id for work in works] == [d.driver_id for d in drivers]
    assert await decisions_replay(world) == 5


async def test_ten_simultaneous_creations_zip_with_ten_drivers_in_order(world: World) -> None:
    drivers = await world.line(12)
    works = list(await asyncio.gather(*(world.enrollment() for _ in range(10))))
    await asyncio.gather(*(world.advance(work) for work in works))
    in_line = [
        row.id for row in await world.all("SELECT id FROM work_orders ORDER BY priority DESC, waiting_since, id")
    ]
    assert [(await world.pending(work)).driver_id for work in in_line] == [d.driver_id for d in drivers[:10]]
    assert await decisions_replay(world) == 10


async def test_the_lane_keeps_its_promise_over_200_racing_rounds(world: World) -> None:
    drivers = await world.line(8)
    order = [d.driver_id for d in drivers]
    for number in range(200):
        works = [await world.enrollment() for _ in range(6)]
        racing = list(works)
        random.Random(number).shuffle(racing)
        await asyncio.gather(*(world.advance(work) for work in racing))
        offered = {
            row.work_order_id: row.driver_id
            for row in await world.all("SELECT work_order_id, driver_id FROM offers WHERE status = 'pending'")
        }
        assert [offered[work] for work in works] == order[:6], f"round {number}"
        async with world.database.transaction() as session:
            # Clear the round as cancellations do, without their cost, and keep everybody's place in line.
            await session.run(
                text(
                    "UPDATE offers SET status = 'expired', reason = 'cancelled', "
                    "responded_at = clock_timestamp() WHERE status = 'pending'"
                )
            )
            await session.run(text("UPDATE work_orders SET status = 'cancelled' WHERE status = 'pending'"))
            await session.run(text("UPDATE driver_dispatch SET last_offered_at = NULL"))


async def test_a_choice_waits_for_the_one_before_it_in_the_lane(world: World) -> None:
    """As between two processes: each has a transaction of its own, and only Postgres in common."""
    await world.line(2)
    works = [await world.enrollment() for _ in range(2)]

    async def choose() -> None:
        async with world.database.transaction() as session:
            await match_next(session, world.organization_id, own=works[1])

    async with world.database.transaction() as session:
        await match_next(session, world.organization_id, own=works[0])
        late = asyncio.create_task(choose())
        await once_it_waits_or_ends(world, late)
    await late
    assert [row.number for row in await world.all("SELECT number FROM decisions ORDER BY number")] == [1, 2]
    assert len({(await world.pending(work)).driver_id for work in works}) == 2
    await invariants.check(world.database)


async def test_two_waiting_work_orders_and_one_driver_priority_then_age(world: World) -> None:
    old = await world.enrollment(priority=5)
    older_but_low = await world.enrollment(priority=1)
    urgent = await world.enrollment(priority=9)
    for work in (old, older_but_low, urgent):
        await world.advance(work)
    driver = await world.driver()
    served: list[UUID] = []
    for _ in range(3):
        await world.advance(older_but_low)
        (offer,) = await world.all("SELECT * FROM offers WHERE status = 'pending'")
        served.append(offer.work_order_id)
        await world.reject(offer.id, driver)
    assert served == [urgent, old, older_but_low]


async def test_busy_drivers_are_asked_only_when_nobody_is_free(world: World) -> None:
    longest, other = await world.line(2)
    first = await world.enrollment()
    await world.advance(first)
    await world.accept((await world.pending(first)).id, longest)
    await world.one(
        "UPDATE driver_dispatch SET queue_at = now() - interval '9 days' WHERE driver_id = :id RETURNING 1",
        id=longest.driver_id,
    )
    second = await world.enrollment()
    await world.advance(second)
    assert (await world.pending(second)).driver_id == other.driver_id, "free before busy, whatever the line says"
    third = await world.enrollment()
    await world.advance(third)
    assert (await world.pending(third)).driver_id == longest.driver_id, "busy_fallback: nobody else is free"


async def test_nobody_eligible_is_recorded_once_per_change_of_reasons(world: World) -> None:
    work = await world.enrollment()
    for _ in range(3):
        await world.advance(work)
    assert await decisions_replay(world) == 1
    assert (await world.work_order(work)).nobody_reasons == "nobody_on_duty"
    busy = await world.driver()
    await world.policy(WorkKind.ENROLLMENT, busy_fallback=False)
    async with world.database.transaction() as session:
        await session.run(text("UPDATE driver_dispatch SET staff_busy = true"))
    await world.advance(work)
    assert (await world.work_order(work)).nobody_reasons == "busy:1"
    async with world.database.transaction() as session:
        await session.run(text("UPDATE driver_dispatch SET staff_busy = false"))
    await world.advance(work)
    assert (await world.pending(work)).driver_id == busy.driver_id
    assert await decisions_replay(world) == 3


async def test_someone_who_appears_is_offered_the_work_that_waits(world: World) -> None:
    work = await world.enrollment()
    await world.advance(work)
    driver = await world.driver()
    wake = await world.one("SELECT * FROM workflow_wakes WHERE work_order_id = :id", id=work)
    assert wake.reason == "driver_available", "coming on duty woke the head of the lane"
    await world.advance(work)
    assert (await world.pending(work)).driver_id == driver.driver_id


async def test_a_cancellation_gives_back_the_place_in_line(world: World) -> None:
    first, _ = await world.line(2)
    before = (await world.dispatch(first)).queue_at
    work = await world.enrollment()
    await world.advance(work)
    await world.accept((await world.pending(work)).id, first)
    async with world.database.transaction() as session:
        await cancel(session, work, "customer away")
    assert (await world.dispatch(first)).queue_at == before
    work = await world.enrollment()
    await world.advance(work)
    await world.accept((await world.pending(work)).id, first)
    async with world.database.transaction() as session:
        await report_status(session, work, first.driver_id, WorkOrderStatus.EN_ROUTE)
    async with world.database.transaction() as session:
        await cancel(session, work, "customer away")
    assert (await world.dispatch(first)).queue_at > before, "they had set out: the turn was used"
    assert (await world.dispatch(first)).active_count == 0


async def test_ten_thousand_waiting_work_orders_cost_nothing(world: World) -> None:
    first = await world.enrollment()
    await world.advance(first)
    async with world.database.transaction() as session:
        await session.run(
            text("""
            INSERT INTO work_orders (organization_id, kind, reference, source, policy_id, waiting_since, match_from,
                escalate_from, required_skills)
            SELECT organization_id, kind, 'EN-W' || n, source, policy_id, waiting_since + n * interval '1 ms',
                match_from, escalate_from, '{crane}' FROM work_orders, generate_series(1, 10000) n""")
        )
        await session.run(text("ANALYZE work_orders"))
    async with world.database.transaction() as session:
        plan = await session.rows(text("SELECT pg_stat_reset()"))
        assert plan
    async with world.database.transaction() as session:
        assert await first_servable(session, world.organization_id) is None
        reads = await session.value(text("SELECT pg_stat_get_xact_tuples_fetched('work_orders'::regclass)"))
    assert reads == 0, "without a free driver no waiting work order is even read"
    driver = await world.driver()
    await world.advance(first)
    assert (await world.pending(first)).driver_id == driver.driver_id
