"""What changes a driver: duty, the staff's busy flag, heartbeats."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.engine import Row

from models.audit.commands import record
from models.drivers.locking import lock_driver
from models.drivers.rules import DUTY_OF, Duty
from models.kit.database import Session
from models.kit.errors import NotFound
from models.kit.sql import Sql
from models.offers.rules import OfferReason
from models.work.locking import lock_work_order
from models.work.wakes import Wake, raise_wake, wake_head

_PENDING_EXCLUSIVE = Sql("""
SELECT id, work_order_id FROM offers WHERE driver_id = :driver_id AND status = 'pending' AND exclusive
""")

_CLOSE = Sql("""
UPDATE offers SET status = 'expired', reason = :reason, responded_at = :at
WHERE id = :id AND status = 'pending'
""")

_BACK_IN_LINE = Sql("UPDATE work_orders SET match_from = :at WHERE id = :id AND status = 'pending' AND NOT manual")

_SET_DUTY = Sql("""
UPDATE driver_dispatch SET duty = :duty, staff_busy = :staff_busy,
    duty_since = CASE WHEN duty = :duty THEN duty_since ELSE :at END, state_version = state_version + 1
WHERE driver_id = :driver_id
""")

_HEARTBEAT = Sql("""
INSERT INTO driver_positions (driver_id, organization_id, lat, lng, accuracy_m, position_at, last_seen_at)
VALUES (:driver_id, :organization_id, :lat, :lng, :accuracy_m, CASE WHEN CAST(:lat AS float8) IS NULL THEN NULL
    ELSE clock_timestamp() END, clock_timestamp())
ON CONFLICT (driver_id) DO UPDATE SET
    lat = coalesce(excluded.lat, driver_positions.lat), lng = coalesce(excluded.lng, driver_positions.lng),
    accuracy_m = CASE WHEN excluded.lat IS NULL THEN driver_positions.accuracy_m ELSE excluded.accuracy_m END,
    position_at = coalesce(excluded.position_at, driver_positions.position_at),
    last_seen_at = excluded.last_seen_at
RETURNING new.last_seen_at,
    old.last_seen_at IS NULL OR new.last_seen_at - old.last_seen_at > interval '60 seconds' AS was_silent
""")


async def set_status(session: Session, driver_id: UUID, status: str, *, by_staff: bool) -> None:
    """Set what a driver may or will do: `available`, `break`, `offline` (staff also `unavailable`, `busy`).

    Leaving duty closes the pending exclusive offer at once; work already held stays. Raises NotFound.
    """
    leaves = status not in ("available", "busy")
    work_order = await _work_order_on_offer(session, driver_id) if leaves else None
    driver = await lock_driver(session, driver_id)
    busy = status == "busy" if by_staff else driver.staff_busy
    duty = driver.duty if status == "busy" else DUTY_OF[status].value
    if duty == driver.duty and busy == driver.staff_busy:
        return
    at = driver.now
    if leaves:
        await _withdraw(session, driver, work_order, at)
    if duty == Duty.ON and not busy:
        wake_head(session, driver.organization_id)
    session.write(_SET_DUTY, {"driver_id": driver_id, "duty": duty, "staff_busy": busy, "at": at}, row=driver_id)
    record(
        session, "USER_STATUS_CHANGED", organization_id=driver.organization_id, entity_type="driver",
        entity_id=driver_id,
        **{"from": driver.duty, "to": duty, "busy": busy},
    )  # fmt: skip


async def _work_order_on_offer(session: Session, driver_id: UUID) -> Row[Any] | None:
    """Lock the work order that is exclusively offered to the driver. The lock order is work order before driver, so
    the offer is looked up first without a lock."""
    offer = await session.row(_PENDING_EXCLUSIVE, {"driver_id": driver_id})
    return await lock_work_order(session, offer.work_order_id) if offer is not None else None


async def _withdraw(session: Session, driver: Row[Any], work_order: Row[Any] | None, at: datetime) -> None:
    closed = await session.row(_PENDING_EXCLUSIVE, {"driver_id": driver.driver_id})
    if closed is None:
        return
    if work_order is None or closed.work_order_id != work_order.id:
        # An offer arrived between the look and the lock. Its work order's next look finds the driver off duty.
        raise_wake(session, closed.work_order_id, driver.organization_id, Wake.DRIVER_AVAILABLE)
        return
    reason = OfferReason.DRIVER_UNAVAILABLE.value
    session.write(_CLOSE, {"id": closed.id, "reason": reason, "at": at}, row=closed.id)
    session.write(_BACK_IN_LINE, {"id": work_order.id, "at": at}, row=work_order.id)
    record(
        session, "OFFER_EXPIRED", organization_id=driver.organization_id, entity_type="offer", entity_id=closed.id,
        work_order_id=work_order.id, reason=reason,
    )  # fmt: skip
    raise_wake(session, work_order.id, work_order.organization_id, Wake.REJECTED)


async def heartbeat(
    session: Session,
    driver_id: UUID,
    organization_id: UUID,
    *,
    lat: float | None = None,
    lng: float | None = None,
    accuracy_m: float | None = None,
) -> datetime:
    """The driver is alive, and perhaps here. One who had fallen silent is capacity again: the lane's head is woken.
    Returns the instant as it is stored."""
    row = await session.row(
        _HEARTBEAT,
        {
            "driver_id": driver_id,
            "organization_id": organization_id,
            "lat": lat,
            "lng": lng,
            "accuracy_m": accuracy_m,
        },
    )
    if row is None:
        raise NotFound
    if row.was_silent:
        wake_head(session, organization_id)
    seen_at: datetime = row.last_seen_at
    return seen_at


_SILENT = Sql("""
SELECT d.driver_id FROM driver_dispatch d JOIN driver_positions p ON p.driver_id = d.driver_id
WHERE d.duty = 'on' AND d.active_count = 0 AND p.last_seen_at > d.duty_since
    AND p.last_seen_at < clock_timestamp() - make_interval(secs => :after_s)
    AND NOT EXISTS (SELECT FROM offers o WHERE o.driver_id = d.driver_id AND o.status = 'pending' AND o.exclusive)
    AND NOT EXISTS (SELECT FROM assignments a WHERE a.driver_id = d.driver_id AND a.ends_at IS NULL)
ORDER BY d.driver_id LIMIT :limit
""")


async def silent_drivers(session: Session, *, after_s: float, limit: int = 500) -> list[UUID]:
    """Drivers on duty who sent heartbeats since coming on, then fell silent for `after_s`, and hold nothing."""
    return [row.driver_id for row in await session.rows(_SILENT, {"after_s": after_s, "limit": limit})]
