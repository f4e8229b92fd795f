"""What people do to work orders. Each locks the work order, checks, changes, and raises its wake."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy.engine import Row

from models.audit.commands import record
from models.drivers.locking import lock_driver, touch_driver
from models.drivers.rules import DriverBusy, DriverHasOffer, DriverNotEligible, Duty
from models.kit.database import Session
from models.kit.errors import NotFound
from models.kit.sql import Sql
from models.notifications.rules import Event
from models.offers.commands import (
    assign,
    close_pending,
    end_assignment,
    insert_offers,
    is_due,
    notify_driver,
    offer_row,
    tell_customer,
)
from models.offers.rules import EndedBy, OfferMode, OfferReason
from models.policies.queries import CurrentPolicy, current_policies
from models.work.journal import change_status, forget_failures
from models.work.locking import lock_work_order
from models.work.rules import (
    DRIVER_REPORTS,
    HELD,
    IllegalTransition,
    WorkKind,
    WorkOrderCancelled,
    WorkOrderNotWaiting,
    WorkOrderStatus,
    check_transition,
)
from models.work.wakes import Wake, raise_wake, wake_head

S = WorkOrderStatus

COUNT_ASSIGNMENT = Sql("""
WITH counted AS (
    UPDATE assignments SET counted = true WHERE work_order_id = :id AND ends_at IS NULL AND NOT counted
    RETURNING driver_id
)
UPDATE driver_dispatch d SET active_count = active_count + 1, state_version = state_version + 1
FROM counted WHERE d.driver_id = counted.driver_id
""")

_CANDIDATE = Sql("""
SELECT f.id AS driver_id, EXISTS (SELECT FROM offers WHERE work_order_id = :work_order_id AND driver_id = f.id
        AND round = :round) AS asked_in_round,
    EXISTS (SELECT FROM offers WHERE driver_id = f.id AND status = 'pending' AND exclusive
        AND work_order_id <> :work_order_id) AS has_offer,
    (SELECT coalesce(max(sequence), 0) + 1 FROM offers WHERE work_order_id = :work_order_id) AS next_sequence
FROM driver_profiles f JOIN users u ON u.id = f.user_id
WHERE f.id = :driver_id AND f.organization_id = :organization_id AND u.is_active AND u.deleted_at IS NULL
""")

# The named driver and whoever has the open offer, in the order of their ids: two dispatchers who swap two offers would
# wait for each other otherwise.
_LOCK_DRIVERS = Sql("""
SELECT driver_id FROM driver_dispatch
WHERE organization_id = :organization_id AND (driver_id = :driver_id OR driver_id IN
    (SELECT driver_id FROM offers WHERE work_order_id = :work_order_id AND status = 'pending' AND exclusive))
ORDER BY driver_id FOR NO KEY UPDATE
""")

_TO_ROUND = Sql("""
UPDATE work_orders SET round = :round, match_from = :match_from, next_round_at = NULL, broadcast_until = NULL,
    nobody_reasons = NULL, offered_at = coalesce(:offered_at, offered_at), version = version + 1, updated_at = :at
WHERE id = :id
""")

# As long after its new start as it was after the old one.


async def cancel(session: Session, work_order_id: UUID, reason: str | None) -> None:
    """From any state before `completed`. Its open offers close, its driver is free and, before they set out, back at
    their place in line. Raises NotFound, IllegalTransition."""
    work_order = await lock_work_order(session, work_order_id)
    status = S(work_order.status)
    check_transition(WorkKind(work_order.kind), status, S.CANCELLED)
    at, driver_id = work_order.now, work_order.assigned_driver_id
    if status in HELD:
        await end_assignment(session, work_order, EndedBy.CANCELLED, at=at, restore=status is S.ASSIGNED)
        await notify_driver(session, Event.CANCELLED, work_order, driver_id, at=at)
    elif await close_pending(session, work_order, OfferReason.CANCELLED, at=at):
        wake_head(session, work_order.organization_id)
    change_status(
        session, work_order, S.CANCELLED, at=at, notes=reason, driver_id=driver_id,
        details={"reason": reason}, match_from=None, cancellation_reason=reason,
    )  # fmt: skip
    tell_customer(session, work_order, Event.CANCELLED, at=at)
    raise_wake(session, work_order.id, work_order.organization_id, Wake.CANCELLED)


async def complete(
    session: Session,
    work_order_id: UUID,
    *,
    notes: str | None = None,
    completion_photo_key: str | None = None,
    by_driver: UUID | None = None,
) -> None:
    """Staff complete held work; a driver (`by_driver`) their own. Raises NotFound, IllegalTransition."""
    work_order = await lock_work_order(session, work_order_id)
    if by_driver is not None:
        if work_order.assigned_driver_id != by_driver:
            raise NotFound
        _refuse_to_settle_a_dispute(work_order, S.COMPLETED)
    await _complete(session, work_order, notes=notes, completion_photo_key=completion_photo_key)


def _refuse_to_settle_a_dispute(work_order: Row[Any], target: WorkOrderStatus) -> None:
    """Staff do that, not the driver whom it is about."""
    if work_order.status == S.DISPUTED:
        raise IllegalTransition(WorkKind(work_order.kind), S.DISPUTED, target)


async def _complete(
    session: Session,
    work_order: Row[Any],
    *,
    notes: str | None,
    completion_photo_key: str | None,
    lat: float | None = None,
    lng: float | None = None,
    occurred_at: datetime | None = None,
) -> None:
    at = work_order.now
    check_transition(WorkKind(work_order.kind), S(work_order.status), S.COMPLETED)
    # Settling a dispute completes the work again; its assignment ended the first time.
    if work_order.status in HELD:
        await end_assignment(session, work_order, EndedBy.COMPLETED, at=at, restore=False)
    change_status(
        session, work_order, S.COMPLETED, at=at, driver_id=work_order.assigned_driver_id, notes=notes,
        lat=lat, lng=lng, occurred_at=occurred_at,
        completion_notes=notes, completion_photo_key=completion_photo_key,
    )  # fmt: skip
    tell_customer(session, work_order, Event.COMPLETED, at=at)
    raise_wake(session, work_order.id, work_order.organization_id, Wake.STATUS_CHANGED)


async def report_status(
    session: Session,
    work_order_id: UUID,
    driver_id: UUID,
    status: WorkOrderStatus,
    *,
    notes: str | None = None,
    lat: float | None = None,
    lng: float | None = None,
    completion_photo_key: str | None = None,
    occurred_at: datetime | None = None,
) -> None:
    """The assigned driver reports a step. Raises NotFound (not their work), IllegalTransition."""
    work_order = await lock_work_order(session, work_order_id)
    if work_order.assigned_driver_id != driver_id:
        raise NotFound
    if work_order.status == S.CANCELLED:
        raise WorkOrderCancelled
    if status not in DRIVER_REPORTS:
        raise IllegalTransition(WorkKind(work_order.kind), S(work_order.status), status)
    _refuse_to_settle_a_dispute(work_order, status)
    if status is S.COMPLETED:
        await _complete(
            session, work_order, notes=notes, completion_photo_key=completion_photo_key, lat=lat, lng=lng,
            occurred_at=occurred_at,
        )  # fmt: skip
        return
    change_status(
        session, work_order, status, at=work_order.now, driver_id=driver_id, notes=notes, lat=lat, lng=lng,
        occurred_at=occurred_at,
    )  # fmt: skip
    if status is S.EN_ROUTE:
        # Setting out early makes work scheduled ahead count as load.
        await lock_driver(session, driver_id)
        await session.run(COUNT_ASSIGNMENT, {"id": work_order_id})


async def unassign(session: Session, work_order_id: UUID, reason: str | None = None) -> None:
    """Staff take the work off its driver before they arrive; a new round starts. Raises NotFound, IllegalTransition."""
    work_order = await lock_work_order(session, work_order_id)
    await _back_to_pending(session, work_order, EndedBy.UNASSIGNED, reason)


async def hand_back(session: Session, work_order_id: UUID, driver_id: UUID, reason: str | None) -> None:
    """The driver gives the work back; it counts as their rejection of it. Raises NotFound, IllegalTransition."""
    work_order = await lock_work_order(session, work_order_id)
    if work_order.assigned_driver_id != driver_id:
        raise NotFound
    await _back_to_pending(session, work_order, EndedBy.HANDED_BACK, reason)


async def _back_to_pending(session: Session, work_order: Row[Any], ended_by: EndedBy, reason: str | None) -> None:
    status, at = S(work_order.status), work_order.now
    check_transition(WorkKind(work_order.kind), status, S.PENDING)
    driver_id = await end_assignment(
        session, work_order, ended_by, at=at, restore=ended_by is EndedBy.UNASSIGNED and status is S.ASSIGNED
    )
    if ended_by is EndedBy.UNASSIGNED:
        await notify_driver(session, Event.CANCELLED, work_order, driver_id, at=at)
    change_status(
        session, work_order, S.PENDING, at=at, notes=reason, driver_id=work_order.assigned_driver_id,
        action=f"{work_order.kind}_{ended_by.value}".upper(), details={"reason": reason},
        assigned_driver_id=None, assigned_at=None, round=work_order.round + 1, next_round_at=None,
        match_from=None if work_order.manual else at, escalate_from=at, escalations=0,
    )  # fmt: skip
    forget_failures(session, work_order.id)
    raise_wake(session, work_order.id, work_order.organization_id, Wake.UNASSIGNED)


async def reoffer(session: Session, work_order_id: UUID) -> None:
    """Staff start a new round at once: an open offer is withdrawn. Raises NotFound, WorkOrderNotWaiting."""
    work_order = await lock_work_order(session, work_order_id)
    if work_order.status != S.PENDING:
        raise WorkOrderNotWaiting(status=work_order.status)
    at = work_order.now
    freed = await close_pending(session, work_order, OfferReason.SUPERSEDED, at=at)
    to_round = {
        "id": work_order.id,
        "round": work_order.round + 1,
        "match_from": None if work_order.manual else at,
        "offered_at": None,
        "at": at,
    }
    session.write(_TO_ROUND, to_round, row=work_order.id)
    forget_failures(session, work_order.id)
    record(
        session, f"{work_order.kind}_REOFFERED".upper(), organization_id=work_order.organization_id,
        entity_type="work_order", entity_id=work_order.id, round=work_order.round + 1,
    )  # fmt: skip
    if freed:
        wake_head(session, work_order.organization_id)
    raise_wake(session, work_order.id, work_order.organization_id, Wake.REOFFERED)


async def assign_driver(
    session: Session, work_order_id: UUID, driver_id: UUID, mode: Literal["offer", "force"]
) -> UUID:
    """Staff name a driver: `offer` asks them alone, `force` assigns at once. Returns the offer's id.

    Raises NotFound (the work order, or a driver of the organization), IllegalTransition (already assigned or ended),
    DriverBusy (at capacity), DriverNotEligible (`offer` to one who is not on duty), DriverHasOffer.
    """
    work_order = await lock_work_order(session, work_order_id)
    check_transition(WorkKind(work_order.kind), S(work_order.status), S.ASSIGNED)
    at = work_order.now
    await session.rows(
        _LOCK_DRIVERS,
        {"organization_id": work_order.organization_id, "work_order_id": work_order.id, "driver_id": driver_id},
    )
    if await close_pending(session, work_order, OfferReason.SUPERSEDED, at=at):
        wake_head(session, work_order.organization_id)
    offer_id = await name_driver(
        session, work_order, driver_id, OfferMode.FORCE if mode == "force" else OfferMode.MANUAL
    )
    forget_failures(session, work_order.id)
    record(
        session, "WORK_ORDER_DRIVER_NAMED", organization_id=work_order.organization_id, entity_type="work_order",
        entity_id=work_order.id, driver_id=driver_id, mode=mode, offer_id=offer_id,
    )  # fmt: skip
    raise_wake(session, work_order.id, work_order.organization_id, Wake.ASSIGNED)
    return offer_id


async def name_driver(session: Session, work_order: Row[Any], driver_id: UUID, mode: OfferMode) -> UUID:
    """Make the `manual` or `force` offer on a locked work order without open offers; see assign_driver."""
    current = await _current_policy(session, work_order)
    candidate = await session.row(
        _CANDIDATE,
        {
            "driver_id": driver_id,
            "organization_id": work_order.organization_id,
            "work_order_id": work_order.id,
            "round": work_order.round,
        },
    )
    if candidate is None:
        raise NotFound
    driver = await lock_driver(session, driver_id)
    at = driver.now
    is_route = work_order.kind == WorkKind.ROUTE
    if (
        is_due(current.policy, work_order.scheduled_for, at)
        and driver.active_count >= current.policy.most_held
        and not (is_route and mode is OfferMode.MANUAL)
    ):
        raise DriverBusy
    exclusive = mode is OfferMode.MANUAL and not is_route
    if exclusive:
        if driver.duty != Duty.ON:
            raise DriverNotEligible(duty=driver.duty)
        if candidate.has_offer:
            raise DriverHasOffer
    round_ = work_order.round + (1 if candidate.asked_in_round else 0)
    row = offer_row(
        work_order, driver, policy_id=current.id, policy=current.policy, mode=mode, exclusive=exclusive, round_=round_,
        sequence=candidate.next_sequence, at=at,
    )  # fmt: skip
    if mode is OfferMode.FORCE:
        row |= {"status": "accepted", "responded_at": at}
    insert_offers(session, [row])
    offer_id: UUID = row["id"]
    record(
        session, "OFFER_MADE", organization_id=work_order.organization_id, entity_type="offer", entity_id=offer_id,
        work_order_id=work_order.id, driver_id=driver_id, mode=mode,
    )  # fmt: skip
    if mode is OfferMode.FORCE:
        assign(
            session,
            work_order,
            driver_id,
            offer_id=offer_id,
            policy=current.policy,
            at=at,
            offered_at=at,
            round_=round_,
        )
        await notify_driver(session, Event.ASSIGNED, work_order, driver_id, at=at, offer_id=offer_id)
    else:
        to_round = {"id": work_order.id, "round": round_, "match_from": None, "offered_at": at, "at": at}
        session.write(_TO_ROUND, to_round, row=work_order.id)
        if exclusive:
            touch_driver(session, driver_id)
        await notify_driver(session, Event.OFFER_MADE, work_order, driver_id, at=at, offer_id=offer_id)
    return offer_id


async def _current_policy(session: Session, work_order: Row[Any]) -> CurrentPolicy:
    return (await current_policies(session, work_order.organization_id))[WorkKind(work_order.kind)]
