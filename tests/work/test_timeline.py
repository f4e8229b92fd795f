"""What time brings: the pure timeline, and on Postgres with the clock moved on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from activities.dispatch import Step, step_of
from activities.sweeps import SweepActivities
from models.drivers.rules import Duty
from models.kit.database import Database
from models.offers.rules import OfferMode, OfferStatus
from models.policies.rules import DEFAULTS, Policy
from models.work.commands import assign_driver, report_status
from models.work.rules import ENDED, HELD, WorkKind, WorkOrderStatus
from models.work.timeline import (
    ESCALATION_STEPS,
    Due,
    OfferView,
    WorkView,
    driver_is_gone,
    due_now,
    next_due,
    starts_at,
    timeline,
)
from tests.factories import invariants
from tests.factories.clock import later
from tests.factories.people import Person
from tests.factories.work import World

pytestmark = pytest.mark.anyio

S = WorkOrderStatus
NOW = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
NEVER_ESCALATED = len(ESCALATION_STEPS)


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def a_view(**changes: Any) -> WorkView:
    values: dict[str, Any] = {
        "id": "w", "organization_id": "o", "kind": WorkKind.JOB, "reference": "JB-1001", "status": S.PENDING,
        "now": NOW, "manual": False, "round": 1, "match_from": None, "next_round_at": None, "broadcast_until": None,
        "nobody_reasons": None, "escalate_from": NOW, "escalations": NEVER_ESCALATED, "scheduled_for": None,
        "assigned_driver_id": None, "assigned_at": None, "nudged": False, "late_alerted": False, "counted": None,
        "order_expires_at": None, "offers": [],
    }  # fmt: skip
    return WorkView(**(values | changes))


def an_offer(**changes: Any) -> OfferView:
    values: dict[str, Any] = {
        "id": "o1", "driver_id": "d1", "driver": "DR-1001", "round": 1, "sequence": 1, "mode": OfferMode.SEQUENTIAL,
        "exclusive": True, "status": OfferStatus.PENDING, "reason": None, "offered_at": NOW,
        "expires_at": NOW + seconds(120), "responded_at": None, "duty": Duty.ON, "active_count": 0,
    }  # fmt: skip
    return OfferView(**(values | changes))


JOB, ORDER, ROUTE = DEFAULTS[WorkKind.JOB], DEFAULTS[WorkKind.ORDER], DEFAULTS[WorkKind.ROUTE]


# Pure


def test_a_waiting_work_order_is_matched_now_and_escalated_later() -> None:
    view = a_view(match_from=NOW, escalations=0)
    assert due_now(view, JOB) == {Due.MATCH}
    assert next_due(view, JOB) == (NOW + seconds(600), Due.ESCALATION)


@pytest.mark.parametrize(("told", "at_s"), [(0, 600), (1, 1200), (2, 2400)])
def test_escalations_come_at_one_two_and_four_times(told: int, at_s: int) -> None:
    assert (NOW + seconds(at_s), Due.ESCALATION) in timeline(a_view(match_from=NOW, escalations=told), JOB)


def test_after_the_last_escalation_only_a_person_or_a_driver_moves_it_on() -> None:
    assert next_due(a_view(match_from=NOW), JOB) is None


def test_an_open_offer_is_waited_for_and_the_lane_is_not_asked() -> None:
    view = a_view(offers=[an_offer()])
    assert due_now(view, JOB) == set()
    assert next_due(view, JOB) == (NOW + seconds(120), Due.OFFER_EXPIRES)


def test_an_expiry_is_due_at_its_very_instant() -> None:
    assert due_now(a_view(offers=[an_offer(expires_at=NOW)]), JOB) == {Due.OFFER_EXPIRES}


def test_what_came_due_since_the_last_look_is_still_to_come() -> None:
    """Looked at ten seconds ago, offered, and only now looked at again: the offer's time is up already."""
    earlier, at = NOW - seconds(10), NOW - seconds(1)
    view = a_view(offers=[an_offer(offered_at=earlier, expires_at=at)])
    assert next_due(view, JOB, since=earlier) == (at, Due.OFFER_EXPIRES)
    assert next_due(a_view(match_from=at), JOB, since=earlier) == (at, Due.MATCH), "the end of a broadcast's window"


def test_what_was_done_at_the_last_look_is_not_waited_for() -> None:
    earlier = NOW - seconds(10)
    assert next_due(a_view(match_from=earlier), JOB, since=earlier) is None, "nobody could take it"
    gone = a_view(offers=[an_offer(duty=Duty.OFF)])
    assert next_due(gone, JOB, since=earlier) == (NOW + seconds(120), Due.OFFER_EXPIRES), "a wake tells of the driver"


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({}, False),
        ({"duty": Duty.BREAK}, True),
        ({"duty": Duty.OFF}, True),
        ({"active_count": 1}, True),
        ({"mode": OfferMode.BROADCAST, "exclusive": False, "duty": Duty.OFF}, False),
        ({"mode": OfferMode.BROADCAST, "exclusive": False, "active_count": 1}, True),
        ({"mode": OfferMode.MANUAL, "duty": Duty.OFF, "active_count": 5}, False),
    ],
)
def test_an_offer_is_withdrawn_from_who_cannot_take_it_any_more(changes: dict[str, Any], gone: bool) -> None:
    offer = an_offer(**changes)
    assert driver_is_gone(offer, JOB) is gone
    assert (Due.DRIVER_GONE in due_now(a_view(offers=[offer]), JOB)) is gone


def test_pending_work_with_no_offer_and_no_plan_goes_back_in_line() -> None:
    assert due_now(a_view(), JOB) == {Due.BACK_IN_LINE}
    assert due_now(a_view(manual=True), JOB) == set()
    assert due_now(a_view(next_round_at=NOW + seconds(5)), JOB) == set()


def test_a_new_round_waits_for_open_offers() -> None:
    planned = a_view(match_from=NOW, next_round_at=NOW)
    assert Due.NEW_ROUND in due_now(planned, JOB)
    assert Due.NEW_ROUND not in due_now(msgspec.structs.replace(planned, offers=[an_offer()]), JOB)


def test_an_order_expires_whatever_else_is_open() -> None:
    view = a_view(kind=WorkKind.ORDER, order_expires_at=NOW, offers=[an_offer(mode=OfferMode.BROADCAST)])
    assert Due.ORDER_EXPIRES in due_now(view, ORDER)


@pytest.mark.parametrize(
    ("round_", "offers", "due"),
    [
        (1, [], True),
        (1, [an_offer()], False),
        (1, [an_offer(status=OfferStatus.EXPIRED)], False),
        (2, [an_offer(status=OfferStatus.EXPIRED)], True),
        (2, [an_offer(status=OfferStatus.ACCEPTED)], False),
        (3, [an_offer(status=OfferStatus.ACCEPTED)], True),
    ],
)
def test_a_route_is_offered_to_its_driver_once_a_round_and_not_when_it_came_back(
    round_: int, offers: list[OfferView], due: bool
) -> None:
    view = a_view(kind=WorkKind.ROUTE, manual=True, round=round_, offers=offers)
    assert (Due.NAMED_DRIVER in due_now(view, ROUTE)) is due


def test_a_scheduled_route_is_offered_when_its_time_comes() -> None:
    at = NOW + seconds(3_600)
    view = a_view(kind=WorkKind.ROUTE, manual=True, scheduled_for=at)
    assert due_now(view, ROUTE) == set()
    assert next_due(view, ROUTE) == (at, Due.NAMED_DRIVER)


def held(**changes: Any) -> WorkView:
    return a_view(status=S.ASSIGNED, assigned_driver_id="d1", assigned_at=NOW, counted=True, **changes)


def test_held_work_is_nudged_then_alerted() -> None:
    assert timeline(held(), JOB) == [(NOW + seconds(600), Due.NUDGE), (NOW + seconds(1800), Due.LATE_ALERT)]
    assert timeline(held(nudged=True), JOB) == [(NOW + seconds(1800), Due.LATE_ALERT)]
    assert timeline(held(nudged=True, late_alerted=True), JOB) == []
    assert timeline(held(), DEFAULTS[WorkKind.ENROLLMENT]) == []


def test_who_has_set_out_is_not_nudged_and_who_has_arrived_is_not_late() -> None:
    under_way = msgspec.structs.replace(held(), status=S.EN_ROUTE)
    assert timeline(under_way, JOB) == [(NOW + seconds(1800), Due.LATE_ALERT)]
    for status in (S.ARRIVED, S.IN_PROGRESS):
        assert timeline(msgspec.structs.replace(held(), status=status), JOB) == []


def test_work_taken_ahead_counts_from_its_lead_time_and_is_late_only_after_its_schedule() -> None:
    at = NOW + seconds(7_200)
    view = msgspec.structs.replace(held(scheduled_for=at), counted=False)
    assert timeline(view, JOB) == [
        (at - seconds(3_600), Due.LOAD),
        (at + seconds(600), Due.NUDGE),
        (at + seconds(1800), Due.LATE_ALERT),
    ]
    assert starts_at(view, JOB) == at - seconds(3_600)


@pytest.mark.parametrize("status", sorted(ENDED))
def test_ended_work_waits_for_nothing(status: S) -> None:
    view = a_view(status=status, match_from=None, escalations=0, offers=[an_offer(expires_at=NOW)])
    assert timeline(view, JOB) == []
    assert step_of(view, None).ended


instants = st.integers(-5_000, 5_000).map(lambda s: NOW + seconds(s))
maybe = st.one_of(st.none(), instants)
views = st.builds(
    a_view,
    kind=st.sampled_from(WorkKind),
    status=st.sampled_from([S.PENDING, *sorted(HELD)]),
    manual=st.booleans(),
    match_from=maybe,
    next_round_at=maybe,
    escalations=st.integers(0, 3),
    escalate_from=instants,
    scheduled_for=maybe,
    assigned_at=maybe,
    counted=st.sampled_from([None, True, False]),
    order_expires_at=maybe,
    offers=st.lists(st.builds(an_offer, expires_at=instants, duty=st.sampled_from(Duty)), max_size=3),
)


@settings(deadline=None, max_examples=100)
@given(views, st.sampled_from(list(DEFAULTS.values())))
def test_what_is_due_is_done_now_and_what_is_waited_for_lies_ahead(view: WorkView, policy: Policy) -> None:
    ahead = next_due(view, policy)
    step = step_of(view, ahead)
    if ahead is None:
        assert step.wait_s is None
        assert all(at <= view.now for at, _ in timeline(view, policy))
    else:
        assert ahead[0] > view.now
        assert step.wait_s == pytest.approx((ahead[0] - view.now).total_seconds())
        later_view = msgspec.structs.replace(view, now=ahead[0])
        assert ahead[1] in due_now(later_view, policy), "when the time has come, it is due"
    assert step.waits_for


# On Postgres


@pytest.fixture
async def world(database: Database) -> World:
    return await World.make(database)


async def messages(world: World, event: str) -> list[UUID]:
    rows = await world.all("SELECT user_id FROM notifications WHERE event = :event ORDER BY created_at", event=event)
    return [row.user_id for row in rows]


async def test_an_expiry_sets_the_driver_off_duty_tells_them_and_passes_the_work_on(world: World) -> None:
    first, second = await world.line(2)
    work = await world.enrollment()
    step = await world.advance(work)
    assert step.wait_s == pytest.approx(300, abs=1)
    await later(world, 301)
    step = await world.advance(work)
    lapsed, open_ = await world.offers(work)
    assert (lapsed.driver_id, lapsed.status, lapsed.reason) == (first.driver_id, "expired", "timeout")
    assert (open_.driver_id, open_.status) == (second.driver_id, "pending")
    off = await world.dispatch(first)
    assert (off.duty, off.queue_at) == ("off", lapsed.responded_at), "and the place in line is gone"
    assert await messages(world, "made_unavailable") == [first.user_id]
    (audit,) = await world.all("SELECT * FROM audit_log WHERE action = 'USER_STATUS_CHANGED' AND metadata ? 'reason'")
    assert (audit.entity_id, audit.actor_kind) == (first.driver_id, "workflow")
    assert "2. DR-" in step.chain[1]
    await invariants.check(world.database)


async def test_an_expiry_never_sets_a_driver_off_duty_who_holds_work(world: World) -> None:
    driver = await world.driver()
    held_work = await world.enrollment()
    await world.advance(held_work)
    await world.accept((await world.pending(held_work)).id, driver)
    work = await world.enrollment()
    await world.advance(work)
    await later(world, 301)
    await world.advance(work)
    after = await world.dispatch(driver)
    assert (after.duty, after.active_count) == ("on", 1)
    assert await messages(world, "made_unavailable") == []
    assert (await world.offers(work))[0].reason == "timeout"
    await invariants.check(world.database)


async def test_a_job_that_lapses_goes_on_and_its_driver_stays_on_duty_at_the_end_of_the_line(world: World) -> None:
    first, second = await world.line(2)
    job = await world.job()
    await world.advance(job)
    await later(world, 121)
    await world.advance(job)
    assert (await world.pending(job)).driver_id == second.driver_id
    assert (await world.dispatch(first)).duty == "on"
    assert (await world.dispatch(first)).queue_at > (await world.dispatch(second)).queue_at


async def test_the_same_driver_gets_it_again_only_after_a_pause_that_doubles(world: World) -> None:
    driver = await world.driver()
    job = await world.job()
    waited = []
    for _ in range(3):
        await world.advance(job)
        assert (await world.pending(job)).driver_id == driver.driver_id
        await later(world, 121)
        passed = 0
        step = await world.advance(job)
        while not [o for o in await world.offers(job) if o.status == "pending"]:
            await world.all("UPDATE work_orders SET escalations = 3 RETURNING 1")
            assert step.wait_s is not None, step
            await later(world, step.wait_s + 0.05)
            passed += step.wait_s
            step = await world.advance(job)
        waited.append(passed)
    assert waited == [pytest.approx(300, abs=3), pytest.approx(600, abs=3), pytest.approx(1200, abs=3)]
    assert await invariants.check_decisions(world.database) > 3
    await invariants.check(world.database)


async def test_a_new_round_starts_no_sooner_than_recheck_after_the_last_ended(world: World) -> None:
    await world.policy(WorkKind.JOB, reject_memory=False)
    driver = await world.driver()
    job = await world.job()
    await world.advance(job)
    await world.reject((await world.pending(job)).id, driver)
    step = await world.advance(job)
    assert step.wait_s == pytest.approx(30, abs=1)
    await later(world, 15)
    step = await world.advance(job)
    assert step.wait_s == pytest.approx(15, abs=1), "a look in between does not put it off"
    assert len(await world.offers(job)) == 1
    await later(world, 16)
    await world.advance(job)
    assert [(o.round, o.status) for o in await world.offers(job)] == [(1, "rejected"), (2, "pending")]


async def test_after_the_last_round_nothing_is_offered_any_more(world: World) -> None:
    await world.policy(WorkKind.JOB, reject_memory=False, max_rounds=2)
    driver = await world.driver()
    job = await world.job()
    for _ in range(2):
        await world.advance(job)
        await world.reject((await world.pending(job)).id, driver)
        await world.advance(job)
        await later(world, 31)
    step = await world.advance(job)
    assert len(await world.offers(job)) == 2
    assert step.waits_for == "an eligible driver (already_offered:1)"
    someone_new = await world.driver()
    await world.advance(job)
    assert (await world.pending(job)).driver_id == someone_new.driver_id, "but who was not asked yet is"


async def test_work_that_everybody_let_lapse_gets_its_next_round_though_others_wait_before_it(world: World) -> None:
    """The only driver was put off duty and comes back. What is first in the lane cannot be theirs, and the work that
    they let lapse must not wait for ever behind it."""
    driver = await world.driver()
    await world.advance(await world.enrollment(priority=9, required_skills=("crane",)))
    work = await world.enrollment(priority=1)
    await world.advance(work)
    await later(world, 301)
    step = await world.advance(work)
    assert step.waits_for == "an eligible driver (nobody_on_duty)"
    await world.all("UPDATE workflow_wakes SET sent_seq = seq RETURNING 1")
    await world.set_status(driver, "available")
    sweeps = SweepActivities(world.database)
    for _ in range(40):
        # What the workflows and the sweep do in 20 minutes: each is woken by its own timer or by a wake.
        await later(world, 30)
        await sweeps.sweep_lanes()
        for row in await world.all("SELECT work_order_id FROM workflow_wakes WHERE seq > sent_seq"):
            await world.advance(row.work_order_id)
            await world.all("UPDATE workflow_wakes SET sent_seq = seq RETURNING 1")
        at = (await world.work_order(work)).next_round_at
        if at is not None and at <= datetime.now(UTC):
            await world.advance(work)
        if [o for o in await world.offers(work) if o.status == "pending"]:
            break
    assert (await world.pending(work)).driver_id == driver.driver_id
    await invariants.check(world.database)


# Orders


async def test_a_broadcast_window_that_ends_untaken_assigns_the_best_ranked(world: World) -> None:
    best, other = await world.line(2)
    order = await world.order()
    step = await world.advance(order)
    assert step.waits_for.startswith("answer of 2 drivers")
    assert step.wait_s == pytest.approx(15, abs=1)
    places = [(await world.dispatch(d)).queue_at for d in (best, other)]
    await later(world, 16)
    step = await world.advance(order)
    assert step.status == "assigned"
    assert (await world.work_order(order)).assigned_driver_id == best.driver_id
    offers = await world.offers(order)
    assert [(o.mode, o.status, o.reason) for o in offers] == [
        ("broadcast", "expired", "superseded"), ("broadcast", "expired", "superseded"), ("auto", "accepted", None)
    ]  # fmt: skip
    assert (await world.dispatch(other)).queue_at == places[1] - seconds(16), "a broadcast never moves a place in line"
    assert await messages(world, "assigned") == [best.user_id]
    assert await invariants.check_decisions(world.database) == 2
    await invariants.check(world.database)


async def test_who_rejected_the_broadcast_is_not_assigned_when_it_ends(world: World) -> None:
    best, other = await world.line(2)
    order = await world.order()
    await world.advance(order)
    (offer,) = [o for o in await world.offers(order) if o.driver_id == best.driver_id]
    await world.reject(offer.id, best)
    await world.advance(order)
    assert (await world.work_order(order)).status == "pending", "the other may still take it"
    await later(world, 16)
    await world.advance(order)
    assert (await world.work_order(order)).assigned_driver_id == other.driver_id


async def test_rejecting_broadcasts_costs_no_place_in_line(world: World) -> None:
    driver = await world.driver(waited_h=3)
    before = (await world.dispatch(driver)).queue_at
    for _ in range(4):
        order = await world.order()
        await world.advance(order)
        await world.reject((await world.pending(order)).id, driver)
    assert (await world.dispatch(driver)).queue_at == before


async def test_a_broadcast_without_auto_assign_goes_into_the_next_round(world: World) -> None:
    await world.policy(WorkKind.ORDER, auto_assign=False, broadcast_window_s=5, offer_ttl_s=5, offer_ttl_max_s=5)
    driver = await world.driver()
    order = await world.order(expires_in_s=600)
    await world.advance(order)
    await later(world, 6)
    step = await world.advance(order)
    assert [o.status for o in await world.offers(order)] == ["expired"]
    assert step.wait_s == pytest.approx(30, abs=1)
    assert (await world.dispatch(driver)).duty == "on", "a broadcast asks everybody: silence costs nothing"
    await later(world, 31)
    # The same driver only after their pause; this one is new.
    fresh = await world.driver()
    await world.advance(order)
    assert (await world.pending(order)).driver_id == fresh.driver_id
    assert (await world.pending(order)).round == 2
    await invariants.check(world.database)


async def test_nobody_is_assigned_unasked_when_a_broadcast_without_auto_assign_is_refused(world: World) -> None:
    await world.policy(WorkKind.ORDER, auto_assign=False)
    driver = await world.driver()
    order = await world.order(expires_in_s=600)
    await world.advance(order)
    await world.reject((await world.pending(order)).id, driver)
    fresh = await world.driver()
    step = await world.advance(order)
    assert step.status == "pending"
    assert step.wait_s == pytest.approx(30, abs=1)
    await later(world, 31)
    await world.advance(order)
    offer = await world.pending(order)
    assert (offer.driver_id, offer.mode) == (fresh.driver_id, "broadcast")
    await invariants.check(world.database)


async def test_a_broadcast_in_the_last_round_is_the_last(world: World) -> None:
    await world.policy(
        WorkKind.ORDER, auto_assign=False, broadcast_window_s=5, offer_ttl_s=5, offer_ttl_max_s=5, max_rounds=1
    )
    await world.driver()
    order = await world.order(expires_in_s=600)
    await world.advance(order)
    await later(world, 6)
    await world.advance(order)
    await world.driver()
    await later(world, 60)
    await world.advance(order)
    assert [(o.round, o.status) for o in await world.offers(order)] == [(1, "expired")]
    await later(world, 540)
    assert (await world.advance(order)).status == "expired"


async def test_an_order_expires_at_its_time_and_frees_everybody(world: World) -> None:
    driver = await world.driver()
    await world.policy(WorkKind.ORDER, auto_assign=False)
    order = await world.order(expires_in_s=60)
    await world.advance(order)
    offer = await world.pending(order)
    assert (offer.expires_at - offer.offered_at).total_seconds() == pytest.approx(60, abs=1), "no longer than the order"
    await later(world, 61)
    step = await world.advance(order)
    assert (step.status, step.ended) == ("expired", True)
    assert [(o.status, o.reason) for o in await world.offers(order)] == [("expired", "cancelled")]
    assert await messages(world, "nobody_eligible") == [world.dispatcher.user_id]
    assert (await world.dispatch(driver)).active_count == 0
    await invariants.check(world.database)


# Routes


async def test_a_route_is_reminded_of_once_with_as_long_again_and_then_the_dispatchers_are_told(world: World) -> None:
    driver = await world.driver()
    route = await world.route(driver)
    await world.advance(route)
    await later(world, 901)
    step = await world.advance(route)
    offer = await world.pending(route)
    assert await messages(world, "offer_expiring") == [driver.user_id]
    assert step.wait_s == pytest.approx(899, abs=2), "as long again, never past expires_max_at"
    assert offer.reminded_at is not None
    await world.advance(route)
    assert len(await messages(world, "offer_expiring")) == 1
    await later(world, 901)
    step = await world.advance(route)
    assert [(o.status, o.reason) for o in await world.offers(route)] == [("expired", "timeout")]
    assert await messages(world, "nobody_eligible") == [world.dispatcher.user_id]
    assert step.waits_for == "a dispatcher to name a driver"
    assert (await world.dispatch(driver)).duty == "on"
    await invariants.check(world.database)


async def test_a_route_leaves_its_driver_free_for_other_offers(world: World) -> None:
    driver = await world.driver()
    route, work = await world.route(driver), await world.enrollment()
    await world.advance(route)
    await world.advance(work)
    assert (await world.pending(route)).driver_id == (await world.pending(work)).driver_id == driver.driver_id


# Escalations, nudges, lateness


async def test_dispatchers_hear_of_waiting_work_once_per_step(world: World) -> None:
    job = await world.job()
    step = await world.advance(job)
    told = []
    for _ in range(3):
        assert step.wait_s is not None
        told.append(step.wait_s)
        await later(world, step.wait_s + 0.1)
        step = await world.advance(job)
        await world.advance(job)
    assert told == [pytest.approx(600, abs=2), pytest.approx(600, abs=2), pytest.approx(1200, abs=2)]
    assert step.wait_s is None, "nobody is eligible: only a wake moves it on"
    assert await messages(world, "escalation") == [world.dispatcher.user_id] * 3
    audits = await world.all("SELECT metadata FROM audit_log WHERE action = 'JOB_ESCALATED' ORDER BY id")
    assert len(audits) == 3


async def test_a_driver_who_does_not_set_out_is_nudged_once_then_the_dispatchers_hear(world: World) -> None:
    driver = await world.driver()
    job = await world.job()
    await world.advance(job)
    await world.accept((await world.pending(job)).id, driver)
    step = await world.advance(job)
    assert (step.waits_for, step.wait_s) == ("nudge", pytest.approx(600, abs=1))
    await later(world, 601)
    step = await world.advance(job)
    await world.advance(job)
    assert await messages(world, "nudge") == [driver.user_id]
    assert (step.waits_for, step.wait_s) == ("late alert", pytest.approx(1199, abs=2))
    await later(world, 1_200)
    step = await world.advance(job)
    assert await messages(world, "late_alert") == [world.dispatcher.user_id]
    assert (step.waits_for, step.wait_s) == ("the driver", None)


async def test_a_driver_who_sets_out_in_time_is_not_nudged(world: World) -> None:
    driver = await world.driver()
    job = await world.job()
    await world.advance(job)
    await world.accept((await world.pending(job)).id, driver)
    async with world.database.transaction() as session:
        await report_status(session, job, driver.driver_id, S.EN_ROUTE)
    await later(world, 601)
    await world.advance(job)
    assert await messages(world, "nudge") == []


# Who ignores or refuses everything


async def asked_first(
    world: World, refuses: Person, others: list[Person], *, lets_lapse: bool, jobs: int
) -> list[UUID]:
    """Who is asked first for each of so many jobs, when one driver never takes any and the others take all."""
    by_id = {other.driver_id: other for other in others}
    first: list[UUID] = []
    for _ in range(jobs):
        job = await world.job()
        await world.advance(job)
        offer = await world.pending(job)
        first.append(offer.driver_id)
        if offer.driver_id == refuses.driver_id:
            if lets_lapse:
                await later(world, 121)
            else:
                await world.reject(offer.id, refuses)
            await world.advance(job)
            offer = await world.pending(job)
        await world.accept(offer.id, by_id[offer.driver_id])
    return first


async def test_who_ignores_everything_does_not_stay_first(world: World) -> None:
    await world.policy(WorkKind.JOB, capacity=20)
    idle, *others = await world.line(3)
    first = await asked_first(world, idle, others, lets_lapse=True, jobs=6)
    assert first[0] == idle.driver_id
    assert all(idle.driver_id != then for now, then in pairwise(first) if now == idle.driver_id)
    assert {other.driver_id for other in others} & set(first)
    await invariants.check(world.database)


async def test_who_refuses_everything_is_first_for_three_and_then_last(world: World) -> None:
    await world.policy(WorkKind.JOB, capacity=20)
    picky, *others = await world.line(3)
    first = await asked_first(world, picky, others, lets_lapse=False, jobs=8)
    assert first[:3] == [picky.driver_id] * 3
    assert first[3] != picky.driver_id, "the third refusal in a row sent them to the end"
    assert first[4:7] == [picky.driver_id] * 3, "and a new row begins"
    assert first[7] != picky.driver_id


async def test_a_scheduled_load_becomes_due_by_its_own_timer(world: World) -> None:
    driver = await world.driver()
    job = await world.job(scheduled_for=datetime.now(UTC) + seconds(7_200))
    async with world.database.transaction() as session:
        await assign_driver(session, job, driver.driver_id, "force")
    step = await world.advance(job)
    assert (step.waits_for, step.wait_s) == ("work is due", pytest.approx(3_600, abs=5))


# Sweeps


async def test_the_sweep_wakes_the_head_of_a_lane_that_movement_has_made_servable(world: World) -> None:
    driver = await world.driver(at=None)
    job = await world.job()
    await world.advance(job)
    sweeps = SweepActivities(world.database)
    assert await sweeps.sweep_lanes() == 0, "without a position nobody is in reach"
    async with world.database.transaction() as session:
        await session.run(
            text(
                "INSERT INTO driver_positions (driver_id, organization_id, lat, lng, position_at, last_seen_at) "
                "VALUES (:driver, :organization, 42.36, -71.06, now(), clock_timestamp())"
            ),
            {"driver": driver.driver_id, "organization": world.organization_id},
        )
    assert await sweeps.sweep_lanes() == 1
    wake = await world.one("SELECT * FROM workflow_wakes WHERE work_order_id = :id", id=job)
    assert wake.reason == "driver_available"
    await world.advance(job)
    assert (await world.pending(job)).driver_id == driver.driver_id


async def test_the_sweep_takes_silent_drivers_off_duty_unless_they_hold_something(world: World) -> None:
    silent, holding, quiet = await world.driver(), await world.driver(), await world.driver(at=None)
    job = await world.job()
    async with world.database.transaction() as session:
        await assign_driver(session, job, holding.driver_id, "force")
    await later(world, 901, silent=True)
    assert await SweepActivities(world.database).sweep_silent_drivers() == 1
    duties = [(await world.dispatch(d)).duty for d in (silent, holding, quiet)]
    assert duties == ["off", "on", "on"], "who never sent a heartbeat may work without"


def test_a_step_without_a_limit_says_so() -> None:
    assert step_of(a_view(manual=True), None) == Step(
        status="pending", waits_for="a dispatcher to name a driver", wait_s=None, chain=[]
    )
