"""Accepting, rejecting and what may go wrong, on real Postgres."""

from __future__ import annotations

import asyncio

import pytest

from models.drivers.rules import DriverBusy
from models.kit.database import Database
from models.kit.errors import NotFound, Refusal
from models.offers.commands import accept
from models.offers.rules import OfferAlreadyAccepted, OfferAlreadyRejected, OfferExpired, OfferTaken
from models.work.commands import cancel
from models.work.rules import WorkKind, WorkOrderCancelled
from tests.factories.races import once_it_waits_or_ends
from tests.factories.work import World

pytestmark = pytest.mark.anyio


@pytest.fixture
async def world(database: Database) -> World:
    return await World.make(database)


async def test_accept_brings_all_its_effects_in_one_transaction(world: World) -> None:
    driver = await world.driver(waited_h=3)
    work = await world.enrollment()
    await world.advance(work)
    offer = await world.pending(work)
    await world.accept(offer.id, driver)

    accepted = (await world.offers(work))[0]
    assert (accepted.status, accepted.reason) == ("accepted", None)
    assert accepted.responded_at is not None
    row = await world.work_order(work)
    assert (row.status, row.assigned_driver_id) == ("assigned", driver.driver_id)
    held = await world.dispatch(driver)
    assert held.active_count == 1
    assert held.queue_at == held.last_assigned_at == accepted.responded_at
    (assignment,) = await world.all("SELECT * FROM assignments")
    assert (assignment.offer_id, assignment.ends_at, assignment.counted) == (offer.id, None, True)
    events = await world.all("SELECT previous_status, new_status FROM work_order_events ORDER BY created_at")
    assert [(e.previous_status, e.new_status) for e in events] == [(None, "pending"), ("pending", "assigned")]
    actions = [row.action for row in await world.all("SELECT action FROM audit_log ORDER BY created_at, id")]
    assert {"ENROLLMENT_CREATED", "OFFER_MADE", "OFFER_ACCEPTED", "ENROLLMENT_ASSIGNED"} <= set(actions)
    wake = await world.one("SELECT * FROM workflow_wakes")
    assert (wake.reason, wake.seq) == ("accepted", 2)


async def test_a_repeated_accept_gives_the_same_answer_and_no_second_effect(world: World) -> None:
    driver = await world.driver()
    work = await world.enrollment()
    await world.advance(work)
    offer = await world.pending(work)
    await world.accept(offer.id, driver)
    await world.accept(offer.id, driver)
    assert (await world.dispatch(driver)).active_count == 1
    assert len(await world.all("SELECT 1 FROM work_order_events")) == 2


async def test_reject_passes_the_work_on(world: World) -> None:
    first, second = await world.line(2)
    work = await world.enrollment()
    await world.advance(work)
    offer = await world.pending(work)
    assert offer.driver_id == first.driver_id
    await world.reject(offer.id, first, "too far")
    await world.reject(offer.id, first, "too far")
    await world.advance(work)
    assert (await world.pending(work)).driver_id == second.driver_id
    assert (await world.offers(work))[0].reject_reason == "too far"


async def test_every_late_answer_has_its_code(world: World) -> None:
    first, second = await world.line(2)
    work = await world.enrollment()
    await world.advance(work)
    offer = await world.pending(work)
    with pytest.raises(NotFound):
        await world.accept(offer.id, second)
    await world.reject(offer.id, first)
    with pytest.raises(OfferAlreadyRejected):
        await world.accept(offer.id, first)
    await world.advance(work)
    offer = await world.pending(work)
    await world.accept(offer.id, second)
    with pytest.raises(OfferAlreadyAccepted):
        await world.reject(offer.id, second)

    other = await world.enrollment()
    await world.advance(other)
    # The first rejected other work, so this one is theirs.
    offer = await world.pending(other)
    assert offer.driver_id == first.driver_id
    await world.pass_time(301)
    with pytest.raises(OfferExpired):
        await world.accept(offer.id, first)
    with pytest.raises(OfferExpired):
        await world.reject(offer.id, first)

    await world.advance(other)
    offer = await world.pending(other)
    assert offer.driver_id == second.driver_id, "the first was put off duty, the second is busy but asked all the same"
    async with world.database.transaction() as session:
        await cancel(session, other, "not needed")
    with pytest.raises(WorkOrderCancelled):
        await world.accept(offer.id, second)


async def test_fifty_accepts_of_a_broadcast_make_one_assignment(world: World) -> None:
    drivers = {d.driver_id: d for d in [await world.driver() for _ in range(50)]}
    work = await world.order()
    await world.advance(work)
    offers = [o for o in await world.offers(work) if o.status == "pending"]
    assert len(offers) == 50

    async def take(offer: object) -> str:
        try:
            await world.accept(offer.id, drivers[offer.driver_id])  # type: ignore[attr-defined]
        except Refusal as refusal:
            return refusal.code
        return "accepted"

    answers = await asyncio.gather(*(take(offer) for offer in offers))
    assert sorted(answers) == ["OFFER_TAKEN"] * 49 + ["accepted"]
    assert len(await world.all("SELECT 1 FROM assignments")) == 1
    states = {(o.status, o.reason) for o in await world.offers(work)}
    assert states == {("accepted", None), ("expired", "superseded")}


async def test_one_driver_accepting_two_broadcasts_at_once_gets_one(world: World) -> None:
    driver = await world.driver()
    works = [await world.order(), await world.order()]
    for work in works:
        await world.advance(work)
    offers = [await world.pending(work) for work in works]

    async def take(offer: object) -> str:
        try:
            await world.accept(offer.id, driver)  # type: ignore[attr-defined]
        except DriverBusy:
            return "busy"
        return "accepted"

    assert sorted(await asyncio.gather(*(take(offer) for offer in offers))) == ["accepted", "busy"]
    assert (await world.dispatch(driver)).active_count == 1
    # The other order's own look finds the driver gone.
    for work in works:
        await world.advance(work)
    offers = [offer for work in works for offer in await world.offers(work)]
    states = sorted((offer.status, offer.reason or "") for offer in offers)
    assert states == [("accepted", ""), ("expired", "driver_unavailable")]


async def test_an_answer_waits_for_the_one_before_it_to_the_same_work(world: World) -> None:
    """Not by luck of timing: the first answer is held open in its transaction."""
    first, second = await world.driver(), await world.driver()
    work = await world.order()
    await world.advance(work)
    offers = {offer.driver_id: offer.id for offer in await world.offers(work)}
    async with world.database.transaction() as session:
        await accept(session, offers[first.driver_id], first.driver_id)
        late = asyncio.create_task(world.accept(offers[second.driver_id], second))
        await once_it_waits_or_ends(world, late)
    with pytest.raises(OfferTaken):
        await late


async def test_an_answer_waits_for_the_one_before_it_of_the_same_driver(world: World) -> None:
    driver = await world.driver()
    works = [await world.order(), await world.order()]
    for work in works:
        await world.advance(work)
    one, other = [(await world.pending(work)).id for work in works]
    async with world.database.transaction() as session:
        await accept(session, one, driver.driver_id)
        late = asyncio.create_task(world.accept(other, driver))
        await once_it_waits_or_ends(world, late)
    with pytest.raises(DriverBusy):
        await late
    assert (await world.dispatch(driver)).active_count == 1


async def test_accept_racing_expiry_has_one_outcome(world: World) -> None:
    for _ in range(10):
        driver = await world.driver()
        work = await world.enrollment()
        await world.advance(work)
        offer = await world.pending(work)
        await world.all(
            "UPDATE offers SET expires_at = clock_timestamp() + interval '30 ms' WHERE id = :id RETURNING 1",
            id=offer.id,
        )
        await asyncio.sleep(0.025)
        answer, _ = await asyncio.gather(world.accept(offer.id, driver), world.advance(work), return_exceptions=True)
        await world.advance(work)
        row = await world.work_order(work)
        state = (await world.offers(work))[0].status
        if answer is None:
            assert (row.status, state) == ("assigned", "accepted")
        else:
            assert isinstance(answer, OfferExpired)
            await asyncio.sleep(0.03)
            await world.advance(work)
            row, state = await world.work_order(work), (await world.offers(work))[0].status
            assert (row.status, state) == ("pending", "expired")
        async with world.database.transaction() as session:
            await cancel(session, work, "next try")
        await world.set_status(driver, "offline")


async def test_a_third_rejection_in_a_row_costs_the_place_in_line(world: World) -> None:
    picky, patient = await world.line(2)
    for _ in range(3):
        work = await world.enrollment()
        await world.advance(work)
        offer = await world.pending(work)
        assert offer.driver_id == picky.driver_id
        await world.reject(offer.id, picky)
        await world.advance(work)
        async with world.database.transaction() as session:
            await cancel(session, work, None)
    work = await world.enrollment()
    await world.advance(work)
    assert (await world.pending(work)).driver_id == patient.driver_id


async def test_a_driver_busy_at_capacity_cannot_accept_more(world: World) -> None:
    await world.policy(WorkKind.ENROLLMENT, busy_fallback=False)
    driver = await world.driver()
    works = [await world.enrollment(), await world.enrollment()]
    await world.advance(works[0])
    offer = await world.pending(works[0])
    await world.accept(offer.id, driver)
    step = await world.advance(works[1])
    assert step.waits_for == "an eligible driver (busy:1)"
