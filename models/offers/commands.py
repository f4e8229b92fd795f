"""Making, answering and closing offers. Every function runs under the work order's lock."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.engine import Row

from models.audit.commands import record
from models.drivers.locking import free_work, take_work, touch_driver
from models.drivers.rules import DriverBusy
from models.kit.database import Session
from models.kit.ids import new_id
from models.kit.sql import Sql
from models.notifications.commands import notify
from models.notifications.rules import Event
from models.offers.rules import (
    REJECTIONS_IN_A_ROW,
    EndedBy,
    OfferExpired,
    OfferMode,
    OfferReason,
    OfferStatus,
    refusal_of_late_answer,
)
from models.offers.tables import assignments, offers
from models.policies.queries import policy_by_id
from models.policies.rules import Policy
from models.work.journal import change_status
from models.work.locking import lock_work_order_of_offer
from models.work.rules import WorkOrderStatus
from models.work.wakes import Wake, raise_wake, wake_head

_OFFER_AND_DRIVER = Sql("""
WITH driver AS MATERIALIZED (SELECT * FROM driver_dispatch WHERE driver_id = :driver_id FOR NO KEY UPDATE)
SELECT o.status, o.reason, o.mode, o.exclusive, o.offered_at, o.expires_at, o.policy_id, o.queue_at_before,
    driver.active_count, driver.queue_at, driver.reject_streak,
    EXISTS (SELECT FROM offers other WHERE other.driver_id = :driver_id AND other.status = 'pending'
        AND other.work_order_id <> o.work_order_id) AS holds_other_offers,
    clock_timestamp() AS now
FROM offers o CROSS JOIN driver WHERE o.id = :offer_id
""")

_WIN = Sql("""
UPDATE offers SET
    status = CASE WHEN id = :offer_id THEN 'accepted' ELSE 'expired' END,
    reason = CASE WHEN id = :offer_id THEN NULL ELSE 'superseded' END,
    responded_at = :at
WHERE work_order_id = :work_order_id AND status = 'pending'
""")

_CLOSE_PENDING = Sql("""
UPDATE offers SET status = 'expired', reason = :reason, responded_at = :at
WHERE work_order_id = :work_order_id AND status = 'pending'
RETURNING id, driver_id, exclusive
""")

_REJECT = Sql("""
UPDATE offers SET status = 'rejected', responded_at = :at, reject_reason = :reject_reason WHERE id = :offer_id
""")

_REJECTED_DRIVER = Sql("""
UPDATE driver_dispatch SET
    reject_streak = CASE WHEN :to_the_end THEN 0 ELSE reject_streak + 1 END,
    queue_at = CASE WHEN :to_the_end THEN :at ELSE queue_at END,
    state_version = state_version + 1
WHERE driver_id = :driver_id
""")

# A broadcast that assigns nobody at its end has no `match_from`: its next round is planned when `advance` looks.
_BACK_IN_LINE = Sql("""
UPDATE work_orders SET match_from = :at
WHERE id = :id AND (broadcast_until IS NULL OR match_from IS NOT NULL) AND NOT EXISTS (
    SELECT FROM offers o WHERE o.work_order_id = :id AND o.status = 'pending' AND o.id <> :offer_id)
""")

_OTHER_WORK_ORDERS = Sql("""
SELECT work_order_id, organization_id FROM offers
WHERE driver_id = :driver_id AND status = 'pending' AND work_order_id <> :work_order_id
""")

# The work order's lock keeps the assignment as it is; the driver's row is locked here.
_OPEN_ASSIGNMENT = Sql("""
SELECT a.id, a.driver_id, a.starts_at, a.counted, o.queue_at_before
FROM assignments a JOIN offers o ON o.id = a.offer_id JOIN driver_dispatch d ON d.driver_id = a.driver_id
WHERE a.work_order_id = :work_order_id AND a.ends_at IS NULL
FOR NO KEY UPDATE OF d
""")

_END_ASSIGNMENT = Sql("UPDATE assignments SET ends_at = :at, ended_by = :ended_by WHERE id = :id")


def is_due(policy: Policy, scheduled_for: datetime | None, now: datetime) -> bool:
    """Does the work count as load yet? From `lead_time_s` before its schedule on."""
    return scheduled_for is None or now >= scheduled_for - timedelta(seconds=policy.lead_time_s)


def offer_row(
    work_order: Row[Any],
    driver: Row[Any],
    *,
    policy_id: UUID,
    policy: Policy,
    mode: OfferMode,
    exclusive: bool,
    round_: int,
    sequence: int,
    at: datetime,
    decision_id: UUID | None = None,
    latest: datetime | None = None,
) -> dict[str, Any]:
    """The values of a pending offer. `latest` caps the expiry (an order's own)."""
    expires_at = at + timedelta(seconds=policy.offer_ttl_s)
    expires_max_at = at + timedelta(seconds=policy.offer_ttl_max_s)
    if latest is not None:
        expires_at, expires_max_at = min(expires_at, latest), min(expires_max_at, latest)
    return {
        "id": new_id(),
        "organization_id": work_order.organization_id,
        "work_order_id": work_order.id,
        "driver_id": driver.driver_id,
        "round": round_,
        "sequence": sequence,
        "mode": mode.value,
        "exclusive": exclusive,
        "offered_at": at,
        "expires_at": expires_at,
        "expires_max_at": expires_max_at,
        "queue_at_before": driver.queue_at,
        "policy_id": policy_id,
        "decision_id": decision_id,
    }


def insert_offers(session: Session, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        session.stage(offers, **row)


async def accept(session: Session, offer_id: UUID, driver_id: UUID) -> None:
    """The driver takes the work: one transaction, all or nothing.

    Repeating one's own accept changes nothing and succeeds. Raises NotFound, OfferTaken, OfferExpired,
    OfferAlreadyRejected, WorkOrderCancelled, DriverBusy.
    """
    work_order = await lock_work_order_of_offer(session, offer_id, driver_id)
    offer = await _locked_offer(session, offer_id, driver_id)
    if offer.status != OfferStatus.PENDING:
        refusal = refusal_of_late_answer(OfferStatus(offer.status), _reason(offer), answer=OfferStatus.ACCEPTED)
        if refusal is None:
            return
        raise refusal
    if offer.expires_at <= offer.now:
        raise OfferExpired
    policy = await policy_by_id(session, offer.policy_id)
    if offer.active_count >= policy.most_held:
        raise DriverBusy
    if offer.holds_other_offers:
        # Those work orders close their offers themselves: touching them here would take a second work order's lock.
        for other in await session.rows(_OTHER_WORK_ORDERS, {"driver_id": driver_id, "work_order_id": work_order.id}):
            raise_wake(session, other.work_order_id, other.organization_id, Wake.DRIVER_AVAILABLE)
    session.write(_WIN, {"offer_id": offer_id, "work_order_id": work_order.id, "at": offer.now}, row=work_order.id)
    record(
        session, "OFFER_ACCEPTED", organization_id=work_order.organization_id, entity_type="offer", entity_id=offer_id,
        work_order_id=work_order.id,
    )  # fmt: skip
    assign(session, work_order, driver_id, offer_id=offer_id, policy=policy, at=offer.now, offered_at=offer.offered_at)
    raise_wake(session, work_order.id, work_order.organization_id, Wake.ACCEPTED)


def assign(
    session: Session,
    work_order: Row[Any],
    driver_id: UUID,
    *,
    offer_id: UUID,
    policy: Policy,
    at: datetime,
    offered_at: datetime,
    round_: int | None = None,
) -> None:
    """What every assignment brings, however it came about: the work order, the driver's load, the assignment row, the
    event and audit rows, the customer's message. The driver's row is locked and the offer is accepted already."""
    counts = is_due(policy, work_order.scheduled_for, at)
    change_status(
        session,
        work_order,
        WorkOrderStatus.ASSIGNED,
        at=at,
        driver_id=driver_id,
        details={"driver_id": driver_id, "offer_id": offer_id},
        assigned_driver_id=driver_id,
        assigned_at=at,
        match_from=None,
        next_round_at=None,
        broadcast_until=None,
        nobody_reasons=None,
        nudged_at=None,
        late_alerted_at=None,
        round=round_ or work_order.round,
    )
    take_work(session, driver_id, at=at, offered_at=offered_at, counts=counts)
    session.stage(
        assignments,
        id=new_id(),
        organization_id=work_order.organization_id,
        work_order_id=work_order.id,
        driver_id=driver_id,
        offer_id=offer_id,
        starts_at=at,
        counted=counts,
    )
    tell_customer(session, work_order, Event.ASSIGNED, at=at)


def tell_customer(session: Session, work_order: Row[Any], event: Event, *, at: datetime) -> None:
    """A message to the customer who asked for the work; staff who typed it in watch the board."""
    if work_order.source == "customer" and work_order.requested_by_user_id is not None:
        notify(
            session, event, organization_id=work_order.organization_id, user_id=work_order.requested_by_user_id, at=at,
            work_order_id=work_order.id,
        )  # fmt: skip


async def reject(session: Session, offer_id: UUID, driver_id: UUID, reject_reason: str | None) -> None:
    """The driver passes. A third rejection in a row costs the place in line. Repeating one's own reject succeeds.
    Raises NotFound, OfferAlreadyAccepted, OfferTaken, OfferExpired, WorkOrderCancelled."""
    work_order = await lock_work_order_of_offer(session, offer_id, driver_id)
    offer = await _locked_offer(session, offer_id, driver_id)
    if offer.status != OfferStatus.PENDING:
        refusal = refusal_of_late_answer(OfferStatus(offer.status), _reason(offer), answer=OfferStatus.REJECTED)
        if refusal is None:
            return
        raise refusal
    if offer.expires_at <= offer.now:
        raise OfferExpired
    if offer.exclusive:
        wake_head(session, work_order.organization_id)
    answer = {"offer_id": offer_id, "at": offer.now, "reject_reason": reject_reason}
    session.write(_REJECT, answer, row=offer_id)
    to_the_end = offer.reject_streak + 1 >= REJECTIONS_IN_A_ROW
    if offer.mode != OfferMode.BROADCAST:
        # A broadcast asks everybody: like ignoring it, refusing it never moves a place in line.
        session.write(
            _REJECTED_DRIVER, {"driver_id": driver_id, "to_the_end": to_the_end, "at": offer.now}, row=driver_id
        )
    if not work_order.manual:
        session.write(_BACK_IN_LINE, {"id": work_order.id, "offer_id": offer_id, "at": offer.now}, row=work_order.id)
    record(
        session, "OFFER_REJECTED", organization_id=work_order.organization_id, entity_type="offer", entity_id=offer_id,
        work_order_id=work_order.id, reason=reject_reason,
    )  # fmt: skip
    raise_wake(session, work_order.id, work_order.organization_id, Wake.REJECTED)


async def _locked_offer(session: Session, offer_id: UUID, driver_id: UUID) -> Row[Any]:
    row = await session.row(_OFFER_AND_DRIVER, {"offer_id": offer_id, "driver_id": driver_id})
    assert row is not None, "the work order's lock was taken through this very offer"
    return row


def _reason(offer: Row[Any]) -> OfferReason | None:
    return OfferReason(offer.reason) if offer.reason else None


async def close_pending(session: Session, work_order: Row[Any], reason: OfferReason, *, at: datetime) -> bool:
    """Close every pending offer of the locked work order. True when an exclusive one was among them: its driver is
    free for other work."""
    closed = await session.rows(_CLOSE_PENDING, {"work_order_id": work_order.id, "reason": reason.value, "at": at})
    exclusive = [row for row in closed if row.exclusive]
    for row in exclusive:
        touch_driver(session, row.driver_id)
    for row in closed:
        record(
            session, "OFFER_EXPIRED", organization_id=work_order.organization_id, entity_type="offer",
            entity_id=row.id, work_order_id=work_order.id, reason=reason.value,
        )  # fmt: skip
    for row in exclusive:
        await notify_driver(session, Event.OFFER_WITHDRAWN, work_order, row.driver_id, at=at, offer_id=row.id)
    return bool(exclusive)


_USER_OF_DRIVER = Sql("SELECT user_id FROM driver_profiles WHERE id = :driver_id")


async def notify_driver(
    session: Session,
    event: Event,
    work_order: Row[Any],
    driver_id: UUID,
    *,
    at: datetime,
    offer_id: UUID | None = None,
) -> None:
    """A message to a driver about this work order."""
    if not session.messages_enabled:
        return
    user_id = await session.value(_USER_OF_DRIVER, {"driver_id": driver_id})
    notify(
        session, event, organization_id=work_order.organization_id, user_id=user_id, at=at,
        work_order_id=work_order.id, offer_id=offer_id,
    )  # fmt: skip


async def end_assignment(
    session: Session, work_order: Row[Any], ended_by: EndedBy, *, at: datetime, restore: bool
) -> UUID:
    """Take the work off its driver, whose id is returned, and wake the head of the lane. With `restore` the driver
    gets back the place in line that the work cost."""
    assignment = await session.row(_OPEN_ASSIGNMENT, {"work_order_id": work_order.id})
    assert assignment is not None, "held work has an open assignment"
    wake_head(session, work_order.organization_id)
    session.write(_END_ASSIGNMENT, {"id": assignment.id, "at": at, "ended_by": ended_by.value}, row=assignment.id)
    free_work(
        session,
        assignment.driver_id,
        counted=assignment.counted,
        restore=restore,
        taken_at=assignment.starts_at,
        queue_at_before=assignment.queue_at_before,
    )
    driver_id: UUID = assignment.driver_id
    return driver_id
