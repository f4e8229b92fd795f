"""What people do to work orders, on real Postgres: every command from every state, and what each brings with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from sqlalchemy import text

from models.drivers.commands import set_status
from models.drivers.rules import DriverBusy, DriverHasOffer, DriverNotEligible
from models.kit.database import Database, Session
from models.kit.errors import NotFound, PreconditionFailed, Refusal
from models.offers.rules import OfferExpired, OfferTaken
from models.work.commands import (
    assign_driver,
    cancel,
    complete,
    hand_back,
    reoffer,
    report_status,
    unassign,
)
from models.work.details import change_details
from models.work.rules import (
    DRIVER_REPORTS,
    HELD,
    IllegalTransition,
    WorkKind,
    WorkOrderCancelled,
    WorkOrderNotWaiting,
    WorkOrderStatus,
    allowed,
)
from tests.factories import invariants
from tests.factories.clock import later
from tests.factories.people import Person
from tests.factories.races import once_it_waits_or_ends
from tests.factories.work import World

pytestmark = pytest.mark.anyio

S = WorkOrderStatus


@pytest.fixture
async def world(database: Database) -> World:
    return await World.make(database)


async def do(world: World, command: Callable[..., Awaitable[Any]], *args: Any, **named: Any) -> Any:
    """One command in a transaction of its own."""
    async with world.database.transaction() as session:
        return await command(session, *args, **named)


async def offered(world: World, work: UUID) -> UUID:
    """Advance, and give who has the one open offer."""
    await world.advance(work)
    driver_id: UUID = (await world.pending(work)).driver_id
    return driver_id


async def taken(world: World, driver: Person, **work: Any) -> UUID:
    """An enrollment that this driver, whose turn it is, has accepted."""
    work_order_id = await world.enrollment(**work)
    await world.advance(work_order_id)
    await world.accept((await world.pending(work_order_id)).id, driver)
    return work_order_id


# Every command from every state


class Undo(Exception):
    """Takes a tried command back, so that the next one finds the same state."""


class Tried(msgspec.Struct, frozen=True):
    """What a command left: the refusal, or the status and how many events and audit rows of a change it wrote."""

    refusal: Refusal | None
    status: str = ""
    events: int = 0
    audits: int = 0


_SEEN = text("""
SELECT status, (SELECT count(*) FROM work_order_events WHERE work_order_id = w.id) AS events,
    (SELECT count(*) FROM audit_log WHERE entity_id = w.id AND metadata ? 'to') AS audits,
    (SELECT count(*) FROM workflow_wakes WHERE work_order_id = w.id AND seq > sent_seq) AS owed
FROM work_orders w WHERE id = :id
""")


async def attempt(database: Database, work: UUID, command: Callable[[Session], Awaitable[Any]]) -> Tried:
    tried = Tried(None)
    try:
        async with database.transaction() as session:
            before = await session.row(_SEEN, {"id": work})
            assert before is not None
            try:
                await command(session)
            except Refusal as refusal:
                tried = Tried(refusal, before.status)
            else:
                await session.flush()
                after = await session.row(_SEEN, {"id": work})
                assert after is not None
                tried = Tried(None, after.status, after.events - before.events, after.audits - before.audits)
            raise Undo
    except Undo:
        return tried


class Case(msgspec.Struct, frozen=True):
    """A work order in a state, the driver who holds or held it, and another one on duty."""

    world: World
    kind: WorkKind
    work: UUID
    holder: Person
    other: Person


async def reach(case: Case, state: str) -> None:
    """Bring the work order there by the commands that people use."""
    world, work, holder = case.world, case.work, case.holder
    if state == "pending":
        return
    if state == "expired":
        await world.pass_time(121)
        await world.advance(work)
        return
    await do(world, assign_driver, work, holder.driver_id, "offer")
    if state == "offered":
        return
    await world.accept((await world.pending(work)).id, holder)
    for step in (S.EN_ROUTE, S.ARRIVED, S.IN_PROGRESS, S.COMPLETED):
        if state in ("assigned", "cancelled"):
            break
        await do(world, report_status, work, holder.driver_id, step)
        if state == step:
            break
    if state == "cancelled":
        await do(world, cancel, work, "customer away")
    if state == "disputed":
        # No command disputes yet; the table has the state.
        await world.all("UPDATE work_orders SET status = 'disputed' WHERE id = :id RETURNING 1", id=work)


def expected(kind: WorkKind, status: S, action: str, *, was_held: bool) -> str | type[Refusal]:
    """The status afterwards, or the refusal: from the table, and from who asks."""

    def go(target: S) -> str | type[Refusal]:
        return target.value if target in allowed(kind, status) else IllegalTransition

    if action == "cancel":
        return go(S.CANCELLED)
    if action == "complete":
        return go(S.COMPLETED)
    if action in ("unassign", "hand_back"):
        if action == "hand_back" and not was_held:
            return NotFound
        return go(S.PENDING)
    if action == "reoffer":
        return S.PENDING.value if status is S.PENDING else WorkOrderNotWaiting
    if action == "assign_offer":
        return S.PENDING.value if status is S.PENDING else IllegalTransition
    if action == "assign_force":
        return go(S.ASSIGNED)
    if action.startswith("other_"):
        return NotFound
    target = S(action.removeprefix("report_"))
    if not was_held:
        return NotFound
    if status is S.CANCELLED:
        return WorkOrderCancelled
    if target not in DRIVER_REPORTS:
        return IllegalTransition
    if status is S.DISPUTED:
        # A dispute is settled by staff, not by the one it is about.
        return IllegalTransition
    return go(target)


def commands(case: Case) -> dict[str, Callable[[Session], Awaitable[Any]]]:
    work, holder, other = case.work, case.holder.driver_id, case.other.driver_id

    def report(target: S) -> Callable[[Session], Awaitable[Any]]:
        return lambda s: report_status(s, work, holder, target)

    return {
        "cancel": lambda s: cancel(s, work, "why"),
        "complete": lambda s: complete(s, work, notes="done"),
        "unassign": lambda s: unassign(s, work, "why"),
        "hand_back": lambda s: hand_back(s, work, holder, "why"),
        "reoffer": lambda s: reoffer(s, work),
        "assign_offer": lambda s: assign_driver(s, work, other, "offer"),
        "assign_force": lambda s: assign_driver(s, work, other, "force"),
        "other_hand_back": lambda s: hand_back(s, work, other, None),
        "other_complete": lambda s: complete(s, work, by_driver=other),
        "other_report": lambda s: report_status(s, work, other, S.EN_ROUTE),
        **{f"report_{target}": report(target) for target in S},
    }


STATES = ["pending", "offered", "assigned", "en_route", "arrived", "in_progress", "completed", "cancelled", "disputed"]


@pytest.mark.parametrize("kind", [WorkKind.ENROLLMENT, WorkKind.JOB, WorkKind.ORDER])
async def test_every_command_from_every_state_gives_the_lawful_result_or_its_refusal(
    world: World, kind: WorkKind
) -> None:
    make = {WorkKind.ENROLLMENT: world.enrollment, WorkKind.JOB: world.job, WorkKind.ORDER: world.order}[kind]
    for state in [*STATES, *(["expired"] if kind is WorkKind.ORDER else [])]:
        case = Case(world, kind, await make(), await world.driver(), await world.driver())
        await reach(case, state)
        status = S((await world.work_order(case.work)).status)
        assert status == ("pending" if state == "offered" else state)
        was_held = state not in ("pending", "offered", "expired")
        for action, command in commands(case).items():
            tried = await attempt(world.database, case.work, command)
            want = expected(kind, status, action, was_held=was_held)
            where = f"{kind} {state}: {action}"
            if isinstance(want, str):
                assert tried.refusal is None, f"{where} was refused: {tried.refusal!r} {tried.refusal.details}"
                moved = int(want != status.value)
                assert tried == Tried(None, want, moved, moved), where
            else:
                assert type(tried.refusal) is want, f"{where}: {tried}"
                if isinstance(tried.refusal, IllegalTransition):
                    assert tried.refusal.details["from"] == status.value
                    assert tried.refusal.details["allowed"] == [s.value for s in allowed(kind, status)], where
    broken = await invariants.broken(world.database)
    # The disputed one was put there by hand.
    assert {name for name in broken if name != "the last event is the status"} == set()


async def test_a_life_leaves_one_event_and_one_audit_row_for_each_step(world: World) -> None:
    driver = await world.driver()
    work = await taken(world, driver)
    await do(world, hand_back, work, driver.driver_id, "flat tyre")
    other = await world.driver()
    await world.advance(work)
    await world.accept((await world.pending(work)).id, other)
    at = datetime.now(UTC) - timedelta(minutes=3)
    await do(world, report_status, work, other.driver_id, S.EN_ROUTE, lat=42.0, lng=-71.0, occurred_at=at, notes="off")
    await do(world, report_status, work, other.driver_id, S.ARRIVED)
    await do(world, report_status, work, other.driver_id, S.IN_PROGRESS)
    await do(world, report_status, work, other.driver_id, S.COMPLETED, completion_photo_key="p/1.jpg", notes="all good")
    events = await world.all("SELECT * FROM work_order_events ORDER BY created_at")
    assert [e.new_status for e in events] == [
        "pending", "assigned", "pending", "assigned", "en_route", "arrived", "in_progress", "completed"
    ]  # fmt: skip
    assert (events[4].occurred_at, events[4].lat, events[4].notes) == (at, 42.0, "off")
    row = await world.work_order(work)
    assert (row.completion_photo_key, row.completion_notes) == ("p/1.jpg", "all good")
    assert None not in (row.assigned_at, row.en_route_at, row.arrived_at, row.in_progress_at, row.completed_at)
    actions = await world.all(
        "SELECT action FROM audit_log WHERE entity_id = :id AND metadata ? 'to' ORDER BY id", id=work
    )
    assert [a.action for a in actions] == [
        "ENROLLMENT_ASSIGNED", "ENROLLMENT_HANDED_BACK", "ENROLLMENT_ASSIGNED", "ENROLLMENT_EN_ROUTE",
        "ENROLLMENT_ARRIVED", "ENROLLMENT_IN_PROGRESS", "ENROLLMENT_COMPLETED",
    ]  # fmt: skip
    await invariants.check(world.database)


# Naming a driver


async def test_a_named_driver_alone_is_asked_and_an_open_offer_is_withdrawn(world: World) -> None:
    first, second = await world.line(2)
    work = await world.enrollment()
    assert await offered(world, work) == first.driver_id
    withdrawn = await world.pending(work)
    await do(world, assign_driver, work, second.driver_id, "offer")
    offer = await world.pending(work)
    assert (offer.driver_id, offer.mode, offer.exclusive) == (second.driver_id, "manual", True)
    with pytest.raises(OfferTaken):
        await world.accept(withdrawn.id, first)
    await world.accept(offer.id, second)
    assert (await world.work_order(work)).assigned_driver_id == second.driver_id
    await invariants.check(world.database)


async def test_a_forced_driver_holds_the_work_at_once_whatever_their_duty(world: World) -> None:
    driver = await world.driver(status="offline", waited_h=4)
    work = await world.enrollment()
    offer_id = await do(world, assign_driver, work, driver.driver_id, "force")
    (offer,) = await world.offers(work)
    assert (offer.id, offer.mode, offer.status) == (offer_id, "force", "accepted")
    held = await world.dispatch(driver)
    assert (held.active_count, held.queue_at) == (1, held.last_assigned_at)
    await invariants.check(world.database)


async def test_naming_the_same_driver_twice_in_a_round_is_a_new_offer_in_a_new_round(world: World) -> None:
    driver = await world.driver()
    work = await world.enrollment()
    await offered(world, work)
    await do(world, assign_driver, work, driver.driver_id, "offer")
    await do(world, assign_driver, work, driver.driver_id, "force")
    assert [(o.round, o.status) for o in await world.offers(work)] == [(1, "expired"), (2, "expired"), (3, "accepted")]
    await invariants.check(world.database)


async def test_who_cannot_be_named_is_refused_by_name(world: World, database: Database) -> None:
    work = await world.enrollment(manual=True)
    resting = await world.driver(status="break")
    with pytest.raises(DriverNotEligible) as refused:
        await do(world, assign_driver, work, resting.driver_id, "offer")
    assert refused.value.details == {"duty": "break"}
    asked = await world.driver()
    elsewhere = await world.enrollment()
    assert await offered(world, elsewhere) == asked.driver_id
    with pytest.raises(DriverHasOffer):
        await do(world, assign_driver, work, asked.driver_id, "offer")
    await do(world, assign_driver, elsewhere, asked.driver_id, "force")
    await do(world, assign_driver, await world.enrollment(), asked.driver_id, "force")
    for mode in ("offer", "force"):
        with pytest.raises(DriverBusy):
            await do(world, assign_driver, work, asked.driver_id, mode)
    stranger = await (await World.make(database)).driver()
    for unknown in (stranger.driver_id, world.dispatcher.user_id):
        with pytest.raises(NotFound):
            await do(world, assign_driver, work, unknown, "force")
    await invariants.check(world.database)


async def test_two_dispatchers_who_swap_two_offers_at_once_do_not_deadlock(world: World) -> None:
    first, second = await world.line(2)
    for _ in range(15):
        one, two = await world.enrollment(), await world.enrollment()
        assert (await offered(world, one), await offered(world, two)) == (first.driver_id, second.driver_id)
        answers = await asyncio.gather(
            do(world, assign_driver, one, second.driver_id, "force"),
            do(world, assign_driver, two, first.driver_id, "force"),
            return_exceptions=True,
        )
        assert [a for a in answers if isinstance(a, BaseException)] == []
        for work in (one, two):
            await do(world, cancel, work, None)
        async with world.database.transaction() as session:
            await session.run(text("UPDATE driver_dispatch SET last_offered_at = NULL"))
    await invariants.check(world.database)


# Taking work off a driver


async def test_unassigned_work_goes_to_another_and_the_first_keeps_their_place(world: World) -> None:
    first, second = await world.line(2)
    before = (await world.dispatch(first)).queue_at
    work = await taken(world, first)
    await do(world, unassign, work, "wrong van")
    assert (await world.dispatch(first)).queue_at == before
    assert await offered(world, work) == second.driver_id
    other = await world.enrollment()
    assert await offered(world, other) == first.driver_id, "still first in line for anything else"
    await invariants.check(world.database)


async def test_unassigned_work_with_nobody_else_comes_back_to_its_driver_in_the_next_round(world: World) -> None:
    driver = await world.driver()
    work = await taken(world, driver)
    await do(world, unassign, work)
    step = await world.advance(work)
    assert step.wait_s == pytest.approx(30, abs=1)
    await later(world, 31)
    assert await offered(world, work) == driver.driver_id


async def test_unassigning_after_setting_out_costs_the_turn(world: World) -> None:
    driver = await world.driver(waited_h=2)
    before = (await world.dispatch(driver)).queue_at
    work = await taken(world, driver)
    await do(world, report_status, work, driver.driver_id, S.EN_ROUTE)
    await do(world, unassign, work)
    assert (await world.dispatch(driver)).queue_at > before
    assert (await world.dispatch(driver)).active_count == 0


async def test_a_place_in_line_is_not_restored_over_a_later_assignment(world: World) -> None:
    driver = await world.driver(waited_h=2)
    first = await taken(world, driver)
    await taken(world, driver)
    after_second = (await world.dispatch(driver)).queue_at
    await do(world, cancel, first, None)
    assert (await world.dispatch(driver)).queue_at == after_second


@pytest.mark.parametrize("reject_memory", [True, False])
async def test_handed_back_work_goes_to_another_driver_and_not_back(world: World, reject_memory: bool) -> None:
    await world.policy(WorkKind.ENROLLMENT, reject_memory=reject_memory)
    first, second = await world.line(2)
    work = await taken(world, first)
    await do(world, hand_back, work, first.driver_id, "flat tyre")
    held = await world.dispatch(first)
    assert held.active_count == 0
    assert held.queue_at == held.last_assigned_at, "their own doing: the turn is used"
    # Even when they would be first for it.
    await world.all("UPDATE driver_dispatch SET queue_at = NULL WHERE driver_id = :id RETURNING 1", id=first.driver_id)
    assert await offered(world, work) == second.driver_id
    await world.reject((await world.pending(work)).id, second)
    step = await world.advance(work)
    assert "an eligible driver" in step.waits_for
    await invariants.check(world.database)


async def test_a_route_handed_back_waits_for_a_person_instead_of_its_driver_again(world: World) -> None:
    driver = await world.driver()
    route = await world.route(driver)
    assert await offered(world, route) == driver.driver_id
    await world.accept((await world.pending(route)).id, driver)
    await do(world, hand_back, route, driver.driver_id, "ill")
    step = await world.advance(route)
    assert step.waits_for == "a dispatcher to name a driver"
    assert [o.status for o in await world.offers(route)] == ["accepted"]
    await do(world, reoffer, route)
    assert await offered(world, route) == driver.driver_id, "asked for by name once more"


async def test_reoffering_withdraws_the_open_offer_and_starts_a_round(world: World) -> None:
    driver = await world.driver()
    work = await world.enrollment()
    await offered(world, work)
    old = await world.pending(work)
    await do(world, reoffer, work)
    assert await offered(world, work) == driver.driver_id
    assert [(o.round, o.status, o.reason) for o in await world.offers(work)] == [
        (1, "expired", "superseded"), (2, "pending", None)
    ]  # fmt: skip
    with pytest.raises(OfferTaken):
        await world.accept(old.id, driver)
    await invariants.check(world.database)


async def test_cancelling_while_offered_frees_the_driver_for_the_next(world: World) -> None:
    driver = await world.driver(waited_h=1)
    before = (await world.dispatch(driver)).queue_at
    work, waiting = await world.enrollment(), await world.enrollment()
    await offered(world, work)
    offer = await world.pending(work)
    await world.advance(waiting)
    await do(world, cancel, work, "not needed")
    with pytest.raises(WorkOrderCancelled):
        await world.accept(offer.id, driver)
    wake = await world.one("SELECT * FROM workflow_wakes WHERE work_order_id = :id", id=waiting)
    assert wake.reason == "driver_available"
    assert await offered(world, waiting) == driver.driver_id
    assert (await world.dispatch(driver)).queue_at == before, "a cancelled offer costs nothing"
    await invariants.check(world.database)


@pytest.mark.parametrize("status", [S.ASSIGNED, S.EN_ROUTE, S.ARRIVED, S.IN_PROGRESS])
async def test_cancelling_held_work_frees_its_driver_and_before_setting_out_their_place(
    world: World, status: S
) -> None:
    driver = await world.driver(waited_h=1)
    before = (await world.dispatch(driver)).queue_at
    work = await taken(world, driver)
    for step in (S.EN_ROUTE, S.ARRIVED, S.IN_PROGRESS):
        if status is S.ASSIGNED or (await world.work_order(work)).status == status:
            break
        await do(world, report_status, work, driver.driver_id, step)
    await do(world, cancel, work, "storm")
    after = await world.dispatch(driver)
    assert after.active_count == 0
    assert (after.queue_at == before) is (status is S.ASSIGNED)
    assert (await world.work_order(work)).cancellation_reason == "storm"
    await invariants.check(world.database)


async def test_completing_frees_the_driver_and_wakes_the_head_of_the_lane(world: World) -> None:
    await world.policy(WorkKind.ENROLLMENT, busy_fallback=False)
    driver = await world.driver()
    work = await taken(world, driver)
    low, urgent = await world.enrollment(priority=1), await world.enrollment(priority=9)
    for waiting in (low, urgent):
        await world.advance(waiting)
    await do(world, complete, work, notes="done")
    assert (await world.dispatch(driver)).active_count == 0
    woken = await world.all("SELECT work_order_id FROM workflow_wakes WHERE reason = 'driver_available'")
    assert [row.work_order_id for row in woken] == [urgent]
    assert await offered(world, urgent) == driver.driver_id
    await invariants.check(world.database)


async def test_a_command_waits_for_the_one_before_it_on_the_same_work(world: World) -> None:
    work = await world.enrollment()

    async def call_off() -> None:
        async with world.database.transaction() as session:
            await cancel(session, work, "second")

    async with world.database.transaction() as session:
        await cancel(session, work, "first")
        late = asyncio.create_task(call_off())
        await once_it_waits_or_ends(world, late)
    with pytest.raises(IllegalTransition):
        await late
    assert (await world.work_order(work)).cancellation_reason == "first"


async def test_a_repeated_completion_is_refused_and_frees_nobody_twice(world: World) -> None:
    driver = await world.driver()
    first, _ = await taken(world, driver), await taken(world, driver)
    await do(world, complete, first, by_driver=driver.driver_id)
    with pytest.raises(IllegalTransition):
        await do(world, complete, first, by_driver=driver.driver_id)
    assert (await world.dispatch(driver)).active_count == 1


# Duty and load


@pytest.mark.parametrize("status", ["break", "offline"])
async def test_leaving_duty_closes_the_open_offer_at_once_and_the_work_passes_on(world: World, status: str) -> None:
    first, second = await world.line(2)
    before = (await world.dispatch(first)).queue_at
    work = await world.enrollment()
    assert await offered(world, work) == first.driver_id
    offer = await world.pending(work)
    await world.set_status(first, status)
    (closed,) = await world.offers(work)
    assert (closed.status, closed.reason) == ("expired", "driver_unavailable")
    with pytest.raises(OfferExpired):
        await world.accept(offer.id, first)
    assert await offered(world, work) == second.driver_id
    assert (await world.dispatch(first)).queue_at == before, "a break never costs the place in line"
    await invariants.check(world.database)


async def test_a_break_while_holding_work_keeps_it(world: World) -> None:
    driver = await world.driver()
    held = await taken(world, driver)
    asked = await world.enrollment()
    assert await offered(world, asked) == driver.driver_id, "busy fallback"
    await world.set_status(driver, "break")
    assert (await world.work_order(held)).status == "assigned"
    step = await world.advance(asked)
    assert step.waits_for == "an eligible driver (nobody_on_duty)"
    await do(world, report_status, held, driver.driver_id, S.EN_ROUTE)
    assert (await world.dispatch(driver)).duty == "break"
    await invariants.check(world.database)


async def test_a_driver_whom_staff_call_busy_is_asked_only_as_a_fallback(world: World) -> None:
    await world.policy(WorkKind.JOB, busy_fallback=False)
    driver = await world.driver()
    await do(world, set_status, driver.driver_id, "busy", by_staff=True)
    job = await world.job()
    assert (await world.advance(job)).waits_for == "an eligible driver (busy:1)"
    enrollment = await world.enrollment()
    assert await offered(world, enrollment) == driver.driver_id
    await world.reject((await world.pending(enrollment)).id, driver)
    await world.set_status(driver, "break")
    await world.set_status(driver, "available")
    assert (await world.dispatch(driver)).staff_busy, "the driver's own word does not take back the staff's"
    await do(world, set_status, driver.driver_id, "available", by_staff=True)
    assert await offered(world, job) == driver.driver_id


async def test_a_driver_with_two_broadcasts_may_take_one(world: World) -> None:
    driver = await world.driver()
    one, two = await world.order(), await world.order()
    assert (await offered(world, one), await offered(world, two)) == (driver.driver_id, driver.driver_id)
    offers = [await world.pending(one), await world.pending(two)]
    answers = await asyncio.gather(*(world.accept(offer.id, driver) for offer in offers), return_exceptions=True)
    assert sorted(type(answer) for answer in answers if answer is not None) == [DriverBusy]
    lost = two if answers[0] is None else one
    await world.advance(lost)
    assert (await world.offers(lost))[0].reason == "driver_unavailable", "closed by its own work order"
    await invariants.check(world.database)


async def test_a_duplicate_skill_does_not_stand_in_for_a_missing_one(world: World) -> None:
    twice = await world.driver(skills=["gas", "gas"], waited_h=9)
    both = await world.driver(skills=["gas", "crane"])
    work = await world.enrollment(required_skills=("gas", "crane"))
    assert await offered(world, work) == both.driver_id != twice.driver_id
    await world.reject((await world.pending(work)).id, both)
    assert (await world.advance(work)).waits_for.startswith("an eligible driver (")


async def test_skills_asked_for_twice_by_a_correction_count_once(world: World) -> None:
    driver = await world.driver(skills=["gas"])
    work = await world.enrollment()
    await do(world, change_details, work, expected_version=1, values={"required_skills": ["gas", "gas"]})
    assert await offered(world, work) == driver.driver_id


# Work scheduled ahead


def in_s(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def test_scheduled_work_waits_for_its_lead_time(world: World) -> None:
    driver = await world.driver()
    job = await world.job(scheduled_for=in_s(7_200))
    wake = await world.one("SELECT due_at - clock_timestamp() AS wait FROM workflow_wakes")
    assert wake.wait.total_seconds() == pytest.approx(3_600, abs=5), "no workflow before lead_time_s ahead of it"
    step = await world.advance(job)
    assert await world.offers(job) == []
    assert step.waits_for.startswith("its time: ")
    assert step.wait_s == pytest.approx(3_600, abs=5)
    await later(world, 3_605)
    assert await offered(world, job) == driver.driver_id


async def test_rescheduling_withdraws_the_offer_and_makes_it_again_when_its_time_comes(world: World) -> None:
    driver = await world.driver(waited_h=1)
    before = (await world.dispatch(driver)).queue_at
    job = await world.job()
    await offered(world, job)
    version = (await world.work_order(job)).version
    with pytest.raises(PreconditionFailed):
        await do(world, change_details, job, expected_version=version + 1, values={"scheduled_for": None})
    await do(world, change_details, job, expected_version=version, values={"scheduled_for": in_s(7_200)})
    (offer,) = await world.offers(job)
    assert (offer.status, offer.reason) == ("expired", "cancelled")
    assert (await world.dispatch(driver)).queue_at == before
    assert (await world.advance(job)).wait_s == pytest.approx(3_600, abs=5)
    await later(world, 3_605)
    assert await offered(world, job) == driver.driver_id, "the very same driver, at once"
    await invariants.check(world.database)


async def test_rescheduling_to_now_offers_at_once(world: World) -> None:
    driver = await world.driver()
    job = await world.job(scheduled_for=in_s(90_000))
    await do(world, change_details, job, expected_version=1, values={"scheduled_for": None})
    assert (await world.one("SELECT due_at <= clock_timestamp() AS due FROM workflow_wakes")).due
    assert await offered(world, job) == driver.driver_id


async def test_a_rescheduled_route_is_offered_to_its_driver_again(world: World) -> None:
    driver = await world.driver()
    route = await world.route(driver)
    await offered(world, route)
    version = (await world.work_order(route)).version
    await do(world, change_details, route, expected_version=version, values={"scheduled_for": in_s(3_600)})
    step = await world.advance(route)
    assert step.wait_s == pytest.approx(3_600, abs=5)
    await later(world, 3_605)
    assert await offered(world, route) == driver.driver_id


async def test_a_rescheduled_order_may_be_taken_as_long_as_before(world: World) -> None:
    driver = await world.driver()
    order = await world.order(expires_in_s=200)
    at = in_s(7_200)
    await do(world, change_details, order, expected_version=1, values={"scheduled_for": at})
    expires_at = (await world.one("SELECT expires_at FROM orders")).expires_at
    assert (expires_at - at).total_seconds() == pytest.approx(200, abs=1)
    await later(world, 6_305)
    assert (await world.advance(order)).status == "pending"
    assert (await world.pending(order)).driver_id == driver.driver_id
    version = (await world.work_order(order)).version
    await do(world, change_details, order, expected_version=version, values={"scheduled_for": None})
    left = await world.one("SELECT expires_at - clock_timestamp() AS left FROM orders")
    assert left.left.total_seconds() == pytest.approx(200, abs=2)


async def test_work_scheduled_ahead_is_no_load_until_it_is_due(world: World) -> None:
    await world.policy(WorkKind.JOB, busy_fallback=False)
    driver = await world.driver()
    ahead = await world.job(scheduled_for=in_s(7_200))
    await do(world, assign_driver, ahead, driver.driver_id, "force")
    assert (await world.dispatch(driver)).active_count == 0
    now = await world.job()
    assert await offered(world, now) == driver.driver_id, "free until then"
    await world.reject((await world.pending(now)).id, driver)
    assert (await world.advance(ahead)).waits_for == "work is due"
    await later(world, 3_605)
    await world.advance(ahead)
    await world.advance(ahead)
    assert (await world.dispatch(driver)).active_count == 1
    await invariants.check(world.database)


async def test_setting_out_early_makes_scheduled_work_count_once(world: World) -> None:
    driver = await world.driver()
    ahead = await world.job(scheduled_for=in_s(7_200))
    await do(world, assign_driver, ahead, driver.driver_id, "force")
    await do(world, report_status, ahead, driver.driver_id, S.EN_ROUTE)
    assert (await world.dispatch(driver)).active_count == 1
    await later(world, 3_605)
    await world.advance(ahead)
    assert (await world.dispatch(driver)).active_count == 1
    await do(world, cancel, ahead, None)
    assert (await world.dispatch(driver)).active_count == 0
    await invariants.check(world.database)


def test_held_is_what_a_driver_may_report_from() -> None:
    assert {S.ASSIGNED} | set(DRIVER_REPORTS) - {S.COMPLETED} == HELD
