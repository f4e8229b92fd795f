"""Work that fails by a mistake time after time is parked with an alert, and blocks nobody; ops retry or drop it."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs
from temporalio.exceptions import ApplicationError

from activities.dispatch import DispatchActivities, WorkOrderRef
from activities.sweeps import SweepActivities
from models.kit.database import Database
from models.work.commands import assign_driver, cancel, complete, reoffer, report_status, unassign
from models.work.rules import WorkKind, WorkOrderStatus
from models.work.stuck import PARK_AFTER, QUIET_S, drop_by_force, retry
from tests.factories import invariants, poison
from tests.factories.people import Person
from tests.factories.poison import IN_THE_LANE, SECRET, Step, run
from tests.factories.proxy import Proxy
from tests.factories.work import World

pytestmark = pytest.mark.anyio

OTHERS = 10


@pytest.fixture
async def world(database: Database) -> World:
    return await World.make(database)


async def stuck(world: World, work: UUID) -> Any:
    """The row in `stuck_work`, or None."""
    rows = await world.all("SELECT * FROM stuck_work WHERE work_order_id = :id", id=work)
    return rows[0] if rows else None


async def alerts(world: World) -> list[tuple[UUID, UUID]]:
    """Who was told, and of which work order."""
    rows = await world.all("SELECT user_id, work_order_id FROM notifications WHERE event = 'work_parked'")
    return [(row.user_id, row.work_order_id) for row in rows]


async def audited(world: World, action: str) -> list[UUID]:
    return [row.entity_id for row in await world.all("SELECT entity_id FROM audit_log WHERE action = :a", a=action)]


async def park(world: World, work: UUID) -> None:
    """Let its own workflow fail until it is parked."""
    for _ in range(PARK_AFTER - 1):
        with pytest.raises(ApplicationError):
            await world.advance(work)
    step = await world.advance(work)
    assert step.waits_for.startswith(f"ops: parked after {PARK_AFTER} failures (")
    assert (step.wait_s, step.ended) == (None, False)


async def try_again(world: World, work: UUID) -> bool:
    async with world.database.transaction() as session:
        return await retry(session, work)


async def statuses(world: World, work: UUID) -> list[str]:
    return [offer.status for offer in await world.offers(work)]


# In the lane


@pytest.mark.parametrize("poisoned", IN_THE_LANE, ids=lambda step: step.__name__)
async def test_poison_at_the_head_of_the_lane_blocks_nobody(world: World, poisoned: Step) -> None:
    head = await world.enrollment(priority=9)
    others = [await world.enrollment() for _ in range(OTHERS)]
    await world.line(OTHERS + 1)
    await poisoned(world, head)

    with capture_logs() as logs:
        for work in others:
            await world.advance(work)
            assert await statuses(world, work) == ["pending"], "offered within its own advance"

    row = await stuck(world, head)
    assert (row.failures, row.parked_at is not None) == (PARK_AFTER, True)
    assert [await stuck(world, work) for work in others] == [None] * OTHERS, "who asks is not at fault"
    assert await alerts(world) == [(world.dispatcher.user_id, head)]
    told = [log["work_order_id"] for log in logs if (log["log_level"], log["event"]) == ("critical", "work_parked")]
    assert told == [str(head)]
    assert await audited(world, "WORK_ORDER_PARKED") == [head]
    audit = await world.one("SELECT metadata FROM audit_log WHERE action = 'WORK_ORDER_PARKED'")
    assert audit.metadata == {"failures": PARK_AFTER, "error": row.error}
    assert SECRET not in f"{row.error} {logs}"
    await invariants.check(world.database)
    await invariants.check_decisions(world.database)


@pytest.mark.parametrize(("poisoned", "cure"), IN_THE_LANE.items(), ids=lambda step: step.__name__)
async def test_retried_after_the_cure_it_is_served_as_ever(world: World, poisoned: Step, cure: Step) -> None:
    work = await world.enrollment()
    await world.line(1)
    await poisoned(world, work)
    await park(world, work)
    assert await world.advance(work) == await world.advance(work), "signals change nothing"
    assert (await stuck(world, work)).failures == PARK_AFTER

    await cure(world, work)
    assert await try_again(world, work)
    step = await world.advance(work)

    assert await statuses(world, work) == ["pending"]
    assert step.wait_s is not None
    assert await stuck(world, work) is None
    assert await audited(world, "WORK_ORDER_RETRIED") == [work]
    await invariants.check(world.database)


async def test_many_poisons_before_it_cost_the_work_behind_them_no_more_than_another_attempt(world: World) -> None:
    heads = [await world.enrollment(priority=9) for _ in range(12)]
    work = await world.enrollment()
    await world.line(13)
    await run(world, f"CREATE FUNCTION trip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE '{SECRET}'; END $$")
    await run(
        world,
        "CREATE TRIGGER trip BEFORE INSERT ON offers FOR EACH ROW "
        f"WHEN (NEW.work_order_id <> '{work}') EXECUTE FUNCTION trip()",
    )

    with pytest.raises(ApplicationError) as failed:
        await world.advance(work)
    await world.advance(work)

    assert SECRET not in str(failed.value)
    assert await statuses(world, work) == ["pending"]
    assert await stuck(world, work) is None
    assert len(await alerts(world)) == len(heads)
    await invariants.check(world.database)


async def test_a_policy_that_cannot_be_read_stops_its_own_kind_alone(world: World) -> None:
    job = await world.job(priority=9)
    work = await world.enrollment()
    await world.line(2)
    await poison.a_policy_in_force_that_cannot_be_read(world, WorkKind.JOB)

    await world.advance(work)
    await park(world, job)
    step = await world.advance(job)

    assert "NoReadablePolicy" in step.waits_for
    assert await statuses(world, work) == ["pending"]
    assert await alerts(world) == [(world.dispatcher.user_id, job)]
    assert await SweepActivities(world.database).sweep_lanes() == 0
    await invariants.check(world.database)


async def test_freed_capacity_goes_to_the_work_behind_one_that_parking_could_not_take_out(world: World) -> None:
    """The head stays in the lane's index, since nothing can write it; it is neither woken nor served."""
    head = await world.enrollment(priority=9)
    await world.advance(head)
    work = await world.enrollment()
    await world.advance(work)
    await poison.itself_trips(world, head)
    driver = await world.driver(status="break")
    await run(world, "UPDATE driver_dispatch SET duty = 'on'")
    await park(world, head)
    assert (await world.work_order(head)).match_from is not None
    await run(world, "UPDATE driver_dispatch SET duty = 'break'")
    await run(world, "UPDATE workflow_wakes SET sent_seq = seq")

    await world.set_status(driver, "available")

    owed = await world.all("SELECT work_order_id FROM workflow_wakes WHERE seq > sent_seq")
    assert [row.work_order_id for row in owed] == [work]
    await world.advance(work)
    assert await statuses(world, work) == ["pending"]


# By itself


async def test_what_cannot_even_be_looked_at_waits_for_ops_and_sees_its_end(world: World) -> None:
    await world.line(1)
    work = await world.enrollment()
    await poison.has_no_policy(world, work)
    await park(world, work)
    step = await world.advance(work)
    assert (step.status, step.wait_s) == ("pending", None)
    assert "ValidationError" in step.waits_for
    assert await alerts(world) == [(world.dispatcher.user_id, work)]

    async with world.database.transaction() as session:
        await cancel(session, work, None)
    step = await world.advance(work)

    assert (step.status, step.ended) == ("cancelled", True)
    assert await stuck(world, work) is None
    await invariants.check(world.database)


async def test_parking_withdraws_an_open_offer_and_frees_its_driver(world: World) -> None:
    driver = await world.driver()
    work = await world.enrollment()
    await world.advance(work)
    await poison.has_no_policy(world, work)
    await park(world, work)
    behind = await world.enrollment()

    await world.advance(behind)

    assert [(o.status, o.reason) for o in await world.offers(work)] == [("expired", "cancelled")]
    assert (await world.pending(behind)).driver_id == driver.driver_id
    withdrawn = await world.one("SELECT user_id FROM notifications WHERE event = 'offer_withdrawn'")
    assert withdrawn.user_id == driver.user_id
    await poison.cure_policy(world, work)
    assert await try_again(world, work)
    other = await world.driver()
    await world.advance(work)
    assert (await world.pending(work)).driver_id == other.driver_id
    await invariants.check(world.database)


async def held(world: World) -> tuple[UUID, Person]:
    """A job that its driver holds, and whose nudge trips."""
    driver = await world.driver()
    work = await world.job()
    await world.advance(work)
    await world.accept((await world.pending(work)).id, driver)
    await poison.trip(world, work, "notifications", "INSERT", and_when="NEW.event = 'nudge'")
    await world.pass_time(601)
    return work, driver


async def test_held_work_is_parked_and_its_driver_goes_on(world: World) -> None:
    work, driver = await held(world)
    await park(world, work)
    assert await alerts(world) == [(world.dispatcher.user_id, work)]
    await world.pass_time(3600)
    step = await world.advance(work)
    assert (step.status, step.wait_s) == ("assigned", None), "no late alert either"

    for status in (WorkOrderStatus.EN_ROUTE, WorkOrderStatus.ARRIVED, WorkOrderStatus.IN_PROGRESS):
        async with world.database.transaction() as session:
            await report_status(session, work, driver.driver_id, status)
        assert (await world.advance(work)).status == status
    assert await stuck(world, work) is not None
    async with world.database.transaction() as session:
        await complete(session, work, by_driver=driver.driver_id)

    assert (await world.advance(work)).ended
    assert await stuck(world, work) is None
    assert (await world.dispatch(driver)).active_count == 0
    await invariants.check(world.database)


# Counting


async def test_what_is_kept_of_an_error_names_the_constraint_and_the_place_and_no_values(world: World) -> None:
    work = await world.enrollment()
    await world.line(1)
    saying = f"CONSTRAINT = 'uq_offers_round', TABLE = 'offers', DETAIL = '{SECRET}', HINT = '{SECRET}'"
    await poison.trip(world, work, "offers", "INSERT", state="23505", saying=saying)

    with capture_logs() as logs, pytest.raises(ApplicationError) as failed:
        await world.advance(work)

    row = await stuck(world, work)
    assert re.fullmatch(
        r"IntegrityError 23505 offers\.uq_offers_round at activities/dispatch\.py:\d+ in _match", row.error
    )
    assert (failed.value.type, failed.value.message) == ("IntegrityError", row.error)
    assert failed.value.__cause__ is None
    assert SECRET not in f"{row.error} {logs}"


async def test_failures_far_apart_are_not_added_up(world: World) -> None:
    work, _ = await held(world)
    for _ in range(PARK_AFTER + 2):
        with pytest.raises(ApplicationError):
            await world.advance(work)
        await run(
            world,
            f"UPDATE stuck_work SET last_failed_at = last_failed_at - interval '{QUIET_S + 1} s'",
        )

    row = await stuck(world, work)
    assert (row.failures, row.parked_at) == (1, None)


async def test_a_success_clears_the_failures_before_it(world: World) -> None:
    work, _ = await held(world)
    for _ in range(PARK_AFTER - 1):
        with pytest.raises(ApplicationError):
            await world.advance(work)
    await poison.cure_trip(world, work)

    await world.advance(work)

    assert await stuck(world, work) is None


@pytest.mark.parametrize("state", ["40001", "40P01", "53200", "53300", "55P03", "57014", "57P01", "58030", "25006"])
async def test_what_waiting_mends_is_no_poison(world: World, state: str) -> None:
    work = await world.enrollment()
    behind = await world.enrollment()
    await world.line(2)
    await poison.trip(world, work, "offers", "INSERT", state=state)

    for asking in (work, behind) * PARK_AFTER:
        with pytest.raises(Exception) as failed:  # noqa: PT011 - what matters is whose failure it is not
            await world.advance(asking)
        assert not isinstance(failed.value, ApplicationError)

    assert await world.all("SELECT 1 FROM stuck_work") == []
    await poison.cure_trip(world, work)
    await world.advance(work)
    assert await statuses(world, work) == ["pending"]


@pytest.mark.parametrize("cut", ["hang_up", "refuse"])
async def test_a_lost_connection_is_no_poison(world: World, database_url: str, cut: str) -> None:
    work = await world.enrollment()
    await world.line(1)
    async with Proxy(database_url) as proxy:
        through = Database(proxy.url, pool_size=2, name="fairlead-cut")
        activities = DispatchActivities(through)
        ref = WorkOrderRef(work_order_id=str(work))
        # Lost between two transactions, and, by the lock that is waited for, inside of one.
        await activities.advance(WorkOrderRef(work_order_id=str(await world.job())))
        for _ in range(PARK_AFTER + 1):
            await getattr(proxy, cut)()
            with pytest.raises(Exception) as failed:  # noqa: PT011 - the driver has several words for it
                await activities.advance(ref)
            assert not isinstance(failed.value, ApplicationError)
            await proxy.resume()
            async with through.reading() as session:
                assert await session.value(text("SELECT 1")) == 1
        assert await world.all("SELECT 1 FROM stuck_work") == []
        step = await activities.advance(ref)
        await through.close()
    assert step.waits_for.startswith("answer of")


async def test_a_transaction_on_a_connection_that_died_idle_finds_a_live_one_next(
    world: World, database_url: str
) -> None:
    async with Proxy(database_url) as proxy:
        through = Database(proxy.url, pool_size=1, name="fairlead-cut")
        work = await world.enrollment()
        async with through.transaction() as session:
            await reoffer(session, work)
        await proxy.hang_up()
        failures = 0
        for _ in range(3):
            try:
                async with through.transaction() as session:
                    await reoffer(session, work)
            except DBAPIError:
                failures += 1
        await through.close()
    assert failures == 1


# What people and ops do about it


async def test_a_person_who_offers_it_again_lifts_the_parking(world: World) -> None:
    work = await world.enrollment()
    await world.line(1)
    await poison.decisions_trip(world, work)
    await park(world, work)
    async with world.database.transaction() as session:
        await reoffer(session, work)
    assert await stuck(world, work) is None

    await park(world, work)
    assert len(await alerts(world)) == 2, "each parking is told of"
    await poison.cure_trip(world, work)
    async with world.database.transaction() as session:
        await reoffer(session, work)
    await world.advance(work)

    assert await statuses(world, work) == ["pending"]
    await invariants.check(world.database)


async def test_a_driver_may_be_named_for_parked_work(world: World) -> None:
    driver = await world.driver()
    work = await world.enrollment()
    await poison.decisions_trip(world, work)
    await park(world, work)

    async with world.database.transaction() as session:
        await assign_driver(session, work, driver.driver_id, "force")

    assert (await world.advance(work)).status == "assigned"
    assert await stuck(world, work) is None
    async with world.database.transaction() as session:
        await unassign(session, work)
    await park(world, work)
    await invariants.check(world.database)


async def test_work_for_later_keeps_its_time_when_it_is_retried(world: World) -> None:
    work = await world.job()
    await world.line(1)
    await poison.decisions_trip(world, work)
    await park(world, work)
    await run(world, "UPDATE work_orders SET scheduled_for = clock_timestamp() + interval '3 days'")

    await try_again(world, work)

    row = await world.one("SELECT scheduled_for - match_from AS lead FROM work_orders WHERE id = :id", id=work)
    assert row.lead.total_seconds() == 3_600
    assert not await try_again(world, work), "not stuck any more"


async def test_a_route_that_is_retried_is_offered_to_its_driver_again(world: World) -> None:
    driver = await world.driver()
    work = await world.route(driver)
    await world.advance(work)
    await poison.has_no_policy(world, work)
    await park(world, work)
    await poison.cure_policy(world, work)

    await try_again(world, work)
    await world.advance(work)

    assert await statuses(world, work) == ["expired", "pending"]
    await invariants.check(world.database)


async def test_dropping_by_force_ends_what_cannot_be_cancelled(world: World) -> None:
    """Waiting, on offer, and held."""
    drivers = await world.line(3)
    waiting, offered, taken = [await world.enrollment() for _ in range(3)]
    for work in (offered, taken):
        await world.advance(work)
    for driver in drivers:
        for offer in await world.offers(taken):
            if offer.driver_id == driver.driver_id:
                await world.accept(offer.id, driver)
    for work in (waiting, offered, taken):
        await poison.cannot_be_decoded(world, work)
    await park(world, waiting)

    for work in (waiting, offered, taken):
        with pytest.raises(OverflowError):
            async with world.database.transaction() as session:
                await cancel(session, work, "does not get this far")
        async with world.database.transaction() as session:
            assert await drop_by_force(session, work, "beyond repair")
        async with world.database.transaction() as session:
            assert not await drop_by_force(session, work, "beyond repair")
        step = await world.advance(work)
        assert (step.status, step.ended) == ("cancelled", True)

    assert await world.all("SELECT 1 FROM stuck_work") == []
    assert {(await world.dispatch(driver)).active_count for driver in drivers} == {0}
    events = await world.all("SELECT previous_status, notes FROM work_order_events WHERE new_status = 'cancelled'")
    assert sorted((event.previous_status, event.notes) for event in events) == [
        ("assigned", "beyond repair"),
        ("pending", "beyond repair"),
        ("pending", "beyond repair"),
    ]
    await invariants.check(world.database)


async def test_what_is_dropped_leaves_its_driver_to_the_next(world: World) -> None:
    driver = await world.driver()
    work = await world.enrollment()
    await world.advance(work)
    await world.accept((await world.pending(work)).id, driver)
    await poison.cannot_be_decoded(world, work)
    await world.policy(WorkKind.ENROLLMENT, busy_fallback=False)
    behind = await world.enrollment()
    await world.advance(behind)
    await run(world, "UPDATE workflow_wakes SET sent_seq = seq")

    async with world.database.transaction() as session:
        await drop_by_force(session, work, None)

    owed = await world.all("SELECT work_order_id FROM workflow_wakes WHERE seq > sent_seq")
    assert {row.work_order_id for row in owed} == {work, behind}
    await world.advance(behind)
    assert (await world.pending(behind)).driver_id == driver.driver_id
    await invariants.check(world.database)


# Sweeps


async def test_a_lane_that_cannot_be_swept_keeps_no_other_from_it(database: Database) -> None:
    worlds = [await World.make(database) for _ in range(3)]
    works = [await world.enrollment() for world in worlds]
    for world in worlds:
        await world.driver()
    await run(worlds[0], "UPDATE workflow_wakes SET sent_seq = seq")
    await poison.trip(worlds[0], works[1], "workflow_wakes", "UPDATE")

    with capture_logs() as logs, pytest.raises(ApplicationError, match="failed for 1 of 3") as failed:
        await SweepActivities(database).sweep_lanes()

    assert failed.value.non_retryable
    owed = await worlds[0].all("SELECT work_order_id FROM workflow_wakes WHERE seq > sent_seq")
    assert {row.work_order_id for row in owed} == {works[0], works[2]}
    told = [log["subject"] for log in logs if log["event"] == "sweep_failed"]
    assert told == [str(worlds[1].organization_id)]
    assert SECRET not in f"{logs} {failed.value}"


async def test_a_driver_who_cannot_be_marked_offline_keeps_no_other_on_duty(world: World) -> None:
    drivers = [await world.driver() for _ in range(3)]
    await run(world, "UPDATE driver_dispatch SET duty_since = duty_since - interval '1 hour'")
    await run(world, "UPDATE driver_positions SET last_seen_at = last_seen_at - interval '30 min'")
    await poison.trip(world, drivers[1].driver_id, "driver_dispatch", "UPDATE", key="driver_id")

    with pytest.raises(ApplicationError, match="failed for 1 of 3"):
        await SweepActivities(world.database).sweep_silent_drivers()

    assert [(await world.dispatch(driver)).duty for driver in drivers] == ["off", "on", "off"]
