"""Looking at a work order and settling what is due on it: the database half of the workflow's `advance`."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy.engine import Row

from models.audit.commands import record
from models.drivers.locking import lock_driver, touch_driver
from models.drivers.rules import Duty
from models.kit.database import Session
from models.kit.errors import NotFound
from models.kit.sql import Sql
from models.notifications.commands import notify_dispatchers
from models.notifications.rules import Event
from models.offers.commands import close_pending, notify_driver
from models.offers.rules import OfferMode, OfferReason
from models.policies.queries import policy_by_id
from models.policies.rules import OnTimeout, Policy
from models.work.commands import COUNT_ASSIGNMENT, name_driver
from models.work.journal import change_status
from models.work.locking import lock_work_order
from models.work.rules import WorkOrderStatus
from models.work.timeline import Due, OfferView, WorkView, driver_is_gone, due_now
from models.work.wakes import wake_head

# The last twenty offers tell the story; older ones stay in the API's list.
_LOOK = Sql("""
SELECT w.id::text, w.organization_id::text, w.kind, w.reference, w.status, clock_timestamp() AS now, w.manual, w.round,
    w.match_from, w.next_round_at, w.broadcast_until, w.nobody_reasons, w.escalate_from, w.escalations, w.scheduled_for,
    w.assigned_driver_id::text, w.assigned_at, w.nudged_at IS NOT NULL AS nudged,
    w.late_alerted_at IS NOT NULL AS late_alerted, w.policy_id,
    (SELECT counted FROM assignments WHERE work_order_id = w.id AND ends_at IS NULL) AS counted,
    (SELECT expires_at FROM orders WHERE work_order_id = w.id) AS order_expires_at,
    (SELECT coalesce(json_agg(o ORDER BY o.sequence), '[]')::text FROM (
        SELECT o.id, o.driver_id, f.reference AS driver, o.round, o.sequence, o.mode, o.exclusive, o.status, o.reason,
            o.offered_at, o.expires_at, o.responded_at, d.duty, d.active_count
        FROM offers o JOIN driver_profiles f ON f.id = o.driver_id JOIN driver_dispatch d ON d.driver_id = o.driver_id
        WHERE o.work_order_id = w.id
            AND (o.status = 'pending'
                OR o.sequence > (SELECT max(sequence) - 20 FROM offers WHERE work_order_id = w.id))
    ) o) AS offers,
    coalesce(s.failures, 0) AS failures, CASE WHEN s.parked_at IS NOT NULL THEN s.error END AS parked_for
FROM work_orders w LEFT JOIN stuck_work s ON s.work_order_id = w.id WHERE w.id = :id
""")

_decode_offers = msgspec.json.Decoder(list[OfferView]).decode


async def look(session: Session, work_order_id: UUID) -> tuple[WorkView, Policy] | None:
    """The work order as it is now, without any lock; None when there is none."""
    row = await session.row(_LOOK, {"id": work_order_id})
    if row is None:
        return None
    values = row._asdict()
    policy = await policy_by_id(session, values.pop("policy_id"))
    values["kind"], values["status"] = row.kind, row.status
    values["offers"] = _decode_offers(row.offers)
    return msgspec.convert(values, WorkView), policy


async def settle(session: Session, work_order_id: UUID) -> None:
    """Do all that is due on the work order, under its lock. Run twice, or twice at once, it leaves what one run
    leaves: every step looks again once the lock is held."""
    work_order = await lock_work_order(session, work_order_id)
    seen = await look(session, work_order_id)
    assert seen is not None
    view, policy = seen
    due = due_now(view, policy)
    if Due.ORDER_EXPIRES in due:
        await _expire_order(session, work_order, at=view.now)
        return
    if Due.OFFER_EXPIRES in due or Due.DRIVER_GONE in due:
        await _close_offers(session, work_order, view, policy)
    if Due.BACK_IN_LINE in due:
        _back_in_line(session, work_order, view, policy)
    if Due.NEW_ROUND in due:
        session.write(_NEW_ROUND, {"id": work_order.id, "at": view.now}, row=work_order.id)
    if Due.NAMED_DRIVER in due:
        await _offer_to_named_driver(session, work_order)
    if Due.ESCALATION in due:
        await _escalate(session, work_order, view)
    if Due.LOAD in due:
        await lock_driver(session, work_order.assigned_driver_id)
        await session.run(COUNT_ASSIGNMENT, {"id": work_order.id})
    if Due.NUDGE in due:
        session.write(_NUDGED, {"id": work_order.id, "at": view.now}, row=work_order.id)
        await notify_driver(session, Event.NUDGE, work_order, work_order.assigned_driver_id, at=view.now)
    if Due.LATE_ALERT in due:
        session.write(_LATE_ALERTED, {"id": work_order.id, "at": view.now}, row=work_order.id)
        await _tell_dispatchers(session, work_order, Event.LATE_ALERT, view.now)


_NEW_ROUND = Sql("""
UPDATE work_orders SET round = round + 1, next_round_at = NULL, broadcast_until = NULL, nobody_reasons = NULL,
    match_from = CASE WHEN manual THEN NULL ELSE least(coalesce(match_from, :at), :at) END
WHERE id = :id
""")
_NUDGED = Sql("UPDATE work_orders SET nudged_at = :at WHERE id = :id")
_LATE_ALERTED = Sql("UPDATE work_orders SET late_alerted_at = :at WHERE id = :id")
_ESCALATED = Sql("UPDATE work_orders SET escalations = escalations + 1 WHERE id = :id")
_BACK_IN_LINE = Sql("UPDATE work_orders SET match_from = :match_from, next_round_at = :next_round_at WHERE id = :id")
_REMIND = Sql("""
UPDATE offers SET reminded_at = :at, expires_at = least(:at + make_interval(secs => :ttl_s), expires_max_at)
WHERE id = :id AND status = 'pending' AND reminded_at IS NULL AND expires_max_at > :at
""")
_EXPIRE = Sql("""
UPDATE offers SET status = 'expired', reason = :reason, responded_at = :at WHERE id = :id AND status = 'pending'
""")
_LAPSED_DRIVER = Sql("""
UPDATE driver_dispatch SET queue_at = :at, duty = CASE WHEN :off_duty THEN 'off' ELSE duty END,
    duty_since = CASE WHEN :off_duty THEN :at ELSE duty_since END, state_version = state_version + 1
WHERE driver_id = :driver_id
""")
_NAMED_DRIVER = Sql("SELECT driver_id FROM routes WHERE work_order_id = :id")


async def _close_offers(session: Session, work_order: Row[Any], view: WorkView, policy: Policy) -> None:
    """Expire what has lapsed and withdraw what its driver can no longer take."""
    freed = False
    left = 0
    for offer in view.pending:
        if offer.expires_at <= view.now:
            if policy.on_timeout is OnTimeout.REMIND and await _remind(session, work_order, offer, policy, view.now):
                left += 1
                continue
            await _lapse(session, work_order, offer, policy, view.now)
            freed = freed or offer.exclusive
        elif driver_is_gone(offer, policy):
            _expire(session, work_order, offer, OfferReason.DRIVER_UNAVAILABLE, view.now)
            if offer.exclusive:
                touch_driver(session, UUID(offer.driver_id))
        else:
            left += 1
    if not left and not view.manual:
        _back_in_line(session, work_order, view, policy)
    if freed:
        wake_head(session, work_order.organization_id)


def _back_in_line(session: Session, work_order: Row[Any], view: WorkView, policy: Policy) -> None:
    """No offer is out: the lane may serve it again, at once or, when a whole broadcast failed, in the next round."""
    if view.broadcast_until is not None and not policy.auto_assign:
        match_from: datetime | None = None
        next_round_at: datetime | None = None
        if policy.max_rounds is None or view.round < policy.max_rounds:
            next_round_at = view.now + timedelta(seconds=policy.recheck_s)
    else:
        match_from, next_round_at = view.match_from or view.now, view.next_round_at
    values = {"id": work_order.id, "match_from": match_from, "next_round_at": next_round_at}
    session.write(_BACK_IN_LINE, values, row=work_order.id)


async def _remind(session: Session, work_order: Row[Any], offer: OfferView, policy: Policy, at: datetime) -> bool:
    """Once: a reminder, and as long again to answer."""
    if not await session.run(_REMIND, {"id": UUID(offer.id), "at": at, "ttl_s": policy.offer_ttl_s}):
        return False
    await notify_driver(
        session, Event.OFFER_EXPIRING, work_order, UUID(offer.driver_id), at=at, offer_id=UUID(offer.id)
    )
    return True


async def _lapse(session: Session, work_order: Row[Any], offer: OfferView, policy: Policy, at: datetime) -> None:
    """The driver did not answer. Except for a broadcast, which asked everybody, it costs the place in line."""
    if offer.mode is OfferMode.BROADCAST:
        _expire(session, work_order, offer, OfferReason.TIMEOUT, at)
        return
    driver_id = UUID(offer.driver_id)
    driver = await lock_driver(session, driver_id)
    _expire(session, work_order, offer, OfferReason.TIMEOUT, at)
    off_duty = policy.on_timeout is OnTimeout.OFF_DUTY and driver.duty == Duty.ON and driver.active_count == 0
    session.write(_LAPSED_DRIVER, {"driver_id": driver_id, "at": at, "off_duty": off_duty}, row=driver_id)
    if off_duty:
        record(
            session, "USER_STATUS_CHANGED", organization_id=work_order.organization_id, entity_type="driver",
            entity_id=driver_id,
            **{"from": Duty.ON.value, "to": Duty.OFF.value, "reason": "timeout", "offer_id": offer.id},
        )  # fmt: skip
        await notify_driver(session, Event.MADE_UNAVAILABLE, work_order, driver_id, at=at, offer_id=UUID(offer.id))
    if policy.on_timeout is OnTimeout.REMIND:
        await _tell_dispatchers(session, work_order, Event.NOBODY_ELIGIBLE, at, key=offer.id)


def _expire(session: Session, work_order: Row[Any], offer: OfferView, reason: OfferReason, at: datetime) -> None:
    offer_id = UUID(offer.id)
    session.write(_EXPIRE, {"id": offer_id, "reason": reason.value, "at": at}, row=offer_id)
    record(
        session, "OFFER_EXPIRED", organization_id=work_order.organization_id, entity_type="offer",
        entity_id=UUID(offer.id), work_order_id=work_order.id, reason=reason.value,
    )  # fmt: skip


async def _expire_order(session: Session, work_order: Row[Any], *, at: datetime) -> None:
    """Nobody took it in time."""
    freed = await close_pending(session, work_order, OfferReason.CANCELLED, at=at)
    change_status(session, work_order, WorkOrderStatus.EXPIRED, at=at, match_from=None)
    await _tell_dispatchers(session, work_order, Event.NOBODY_ELIGIBLE, at)
    if freed:
        wake_head(session, work_order.organization_id)


async def _offer_to_named_driver(session: Session, work_order: Row[Any]) -> None:
    driver_id = await session.value(_NAMED_DRIVER, {"id": work_order.id})
    # A driver who has left since cannot be asked; the escalation tells the dispatchers that nobody was.
    with suppress(NotFound):
        await name_driver(session, work_order, driver_id, OfferMode.MANUAL)


async def _escalate(session: Session, work_order: Row[Any], view: WorkView) -> None:
    """Tell the dispatchers that this work still has nobody: once per step."""
    session.write(_ESCALATED, {"id": work_order.id}, row=work_order.id)
    record(
        session, f"{work_order.kind}_ESCALATED".upper(), organization_id=work_order.organization_id,
        entity_type="work_order", entity_id=work_order.id, step=view.escalations + 1, reasons=view.nobody_reasons,
    )  # fmt: skip
    await _tell_dispatchers(session, work_order, Event.ESCALATION, view.now, key=str(view.escalations + 1))


async def _tell_dispatchers(
    session: Session, work_order: Row[Any], event: Event, at: datetime, *, key: str = ""
) -> None:
    if session.messages_enabled:
        await notify_dispatchers(
            session, event, organization_id=work_order.organization_id, at=at, work_order_id=work_order.id, key=key
        )
