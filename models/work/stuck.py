"""Stuck work: what fails by a mistake of ours time after time is parked, with an alert, and blocks nobody.

Parked means that time and the lane leave the work order alone: no offers, reminders or alerts. People may do with it
what they always may. `retry` and `drop` are for ops; whoever starts a new round or names a driver lifts it as well, and
so does its end (`journal.forget_failures`).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy.engine import Row

from models.audit.commands import record
from models.kit.database import Session
from models.kit.errors import NotFound
from models.kit.sql import Sql
from models.notifications.commands import notify_dispatchers
from models.notifications.rules import Event
from models.offers.commands import close_pending
from models.offers.rules import OfferReason
from models.work.journal import forget_failures, note_event
from models.work.rules import ENDED, WorkOrderStatus
from models.work.wakes import Wake, raise_wake, wake_head

PARK_AFTER: Final = 3
#: A failure after so long a quiet is the first of its own row.
QUIET_S: Final = 600

# Few columns: what cannot be decoded must not keep its own work order from being parked or dropped.
_LOCK = Sql("""
WITH locked AS MATERIALIZED (
    SELECT id, organization_id, kind, status, assigned_driver_id FROM work_orders WHERE id = :id FOR NO KEY UPDATE
)
SELECT locked.*, clock_timestamp() AS now FROM locked
""")

_STANDING = Sql("""
SELECT w.status, w.assigned_driver_id::text AS driver_id, coalesce(s.failures, 0) AS failures,
    CASE WHEN s.parked_at IS NOT NULL THEN s.error END AS parked_for
FROM work_orders w LEFT JOIN stuck_work s ON s.work_order_id = w.id WHERE w.id = :id
""")

_COUNT = Sql("""
INSERT INTO stuck_work AS s (work_order_id, organization_id, failures, error, first_failed_at, last_failed_at)
VALUES (:id, :organization_id, 1, :error, :at, :at)
ON CONFLICT (work_order_id) DO UPDATE SET
    failures = CASE WHEN s.parked_at IS NULL AND s.last_failed_at < CAST(:anew_before AS timestamptz) THEN 1
        ELSE s.failures + 1 END,
    first_failed_at = CASE WHEN s.parked_at IS NULL AND s.last_failed_at < CAST(:anew_before AS timestamptz) THEN :at
        ELSE s.first_failed_at END,
    last_failed_at = :at, error = excluded.error
RETURNING failures, parked_at
""")

_PARK = Sql("UPDATE stuck_work SET parked_at = :at WHERE work_order_id = :id")
_OUT_OF_THE_LANE = Sql("""
UPDATE work_orders SET match_from = NULL, next_round_at = NULL WHERE id = :id AND status = 'pending'
""")

_SUCCEEDED = Sql("DELETE FROM stuck_work WHERE work_order_id = :id AND parked_at IS NULL")
_IS_STUCK = Sql("SELECT failures FROM stuck_work WHERE work_order_id = :id")

# Whoever had an offer in this round was never rightly asked, so it is a round of its own. Work for later keeps its
# time; a policy that cannot be read has no lead time.
_BACK_IN_LINE = Sql("""
UPDATE work_orders w SET
    match_from = CASE WHEN NOT w.manual THEN greatest(:at, w.scheduled_for - make_interval(secs =>
        CASE WHEN jsonb_typeof(p.settings->'lead_time_s') = 'number'
            THEN least((p.settings->>'lead_time_s')::numeric, 31536000)::float8 ELSE 0 END)) END,
    round = w.round + EXISTS (SELECT FROM offers o WHERE o.work_order_id = w.id AND o.round = w.round)::int,
    next_round_at = NULL, broadcast_until = NULL, nobody_reasons = NULL
FROM dispatch_policies p
WHERE w.id = :id AND p.id = w.policy_id AND w.status = 'pending'
    AND NOT EXISTS (SELECT FROM offers o WHERE o.work_order_id = w.id AND o.status = 'pending')
""")

# Reads nothing of the work order that it does not need, and counts its driver's load anew instead of trusting it.
_FORCE = Sql("""
WITH ended AS (
    UPDATE work_orders SET status = 'cancelled', cancelled_at = :at, updated_at = :at, version = version + 1,
        match_from = NULL, next_round_at = NULL, broadcast_until = NULL, cancellation_reason = :reason
    WHERE id = :id AND status IN ('pending', 'assigned', 'en_route', 'arrived', 'in_progress')
    RETURNING id
), closed AS (
    UPDATE offers o SET status = 'expired', reason = 'cancelled', responded_at = :at
    FROM ended WHERE o.work_order_id = ended.id AND o.status = 'pending'
    RETURNING o.driver_id
), freed AS (
    UPDATE assignments a SET ends_at = greatest(:at, a.starts_at), ended_by = 'cancelled'
    FROM ended WHERE a.work_order_id = ended.id AND a.ends_at IS NULL
    RETURNING a.driver_id
), touched AS (
    UPDATE driver_dispatch d SET state_version = state_version + 1, active_count = (
        SELECT count(*) FROM assignments a
        WHERE a.driver_id = d.driver_id AND a.ends_at IS NULL AND a.counted AND a.work_order_id <> :id)
    WHERE d.driver_id IN (SELECT driver_id FROM closed UNION SELECT driver_id FROM freed)
)
SELECT id FROM ended
""")

_PARKED = """
SELECT w.id, w.reference, w.organization_id, o.name AS organization, w.kind, w.status, s.error, s.failures, s.parked_at
FROM stuck_work s JOIN work_orders w ON w.id = s.work_order_id JOIN organizations o ON o.id = w.organization_id
WHERE s.parked_at IS NOT NULL AND w.status IN ('pending', 'assigned', 'en_route', 'arrived', 'in_progress')
"""
_ALL_PARKED = Sql(f"{_PARKED} ORDER BY s.parked_at, w.id")
_PARKED_AS = Sql(f"{_PARKED} AND (w.id::text = :name OR w.reference = :name) ORDER BY s.parked_at, w.id")


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What can be said of a work order whose row as a whole may not be readable. `parked_for` is the error."""

    status: WorkOrderStatus
    driver_id: str | None
    failures: int
    parked_for: str | None

    @property
    def is_over(self) -> bool:
        """Is there nothing to try, since it has ended or is parked?"""
        return self.status in ENDED or self.parked_for is not None


class Counted(msgspec.Struct, frozen=True):
    """`parks`: this failure is the one that parks the work order."""

    failures: int
    parks: bool


async def standing_of(session: Session, work_order_id: UUID) -> Standing | None:
    row = await session.row(_STANDING, {"id": work_order_id})
    return None if row is None else msgspec.convert(row._asdict(), Standing)


async def count_failure(session: Session, work_order_id: UUID, error: str) -> Counted:
    """One more failure by a mistake. `error` holds no values of rows. Raises NotFound.

    The one that parks the work order is to be followed by `take_out` and `alert`."""
    work_order = await _locked(session, work_order_id)
    at: datetime = work_order.now
    counted = await session.row(
        _COUNT,
        {
            "id": work_order_id,
            "organization_id": work_order.organization_id,
            "error": error,
            "at": at,
            "anew_before": at - timedelta(seconds=QUIET_S),
        },
    )
    assert counted is not None
    parks = counted.parked_at is None and counted.failures >= PARK_AFTER
    if parks:
        await session.run(_PARK, {"id": work_order_id, "at": at})
        record(
            session, "WORK_ORDER_PARKED", organization_id=work_order.organization_id, entity_type="work_order",
            entity_id=work_order_id, failures=counted.failures, error=error,
        )  # fmt: skip
    return Counted(counted.failures, parks)


async def take_out(session: Session, work_order_id: UUID) -> None:
    """Out of the lane; and nobody is kept busy by an offer that nothing would end. Held work stays held."""
    work_order = await _locked(session, work_order_id)
    if work_order.status != WorkOrderStatus.PENDING:
        return
    if await close_pending(session, work_order, OfferReason.CANCELLED, at=work_order.now):
        wake_head(session, work_order.organization_id)
    await session.run(_OUT_OF_THE_LANE, {"id": work_order_id})


async def alert(session: Session, work_order_id: UUID) -> None:
    """Tell the organization's dispatchers that this work order needs a person."""
    work_order = await _locked(session, work_order_id)
    await notify_dispatchers(
        session, Event.WORK_PARKED, organization_id=work_order.organization_id, at=work_order.now,
        work_order_id=work_order_id,
    )  # fmt: skip


async def note_success(session: Session, work_order_id: UUID) -> None:
    """It goes on: the failures before were no poison."""
    await session.run(_SUCCEEDED, {"id": work_order_id})


async def retry(session: Session, work_order_id: UUID) -> bool:
    """Forget the failures and try again: waiting work is back in line. False when it was not stuck. Raises NotFound."""
    work_order = await _locked(session, work_order_id)
    if await session.row(_IS_STUCK, {"id": work_order_id}) is None:
        return False
    forget_failures(session, work_order_id)
    await session.run(_BACK_IN_LINE, {"id": work_order_id, "at": work_order.now})
    record(
        session, "WORK_ORDER_RETRIED", organization_id=work_order.organization_id, entity_type="work_order",
        entity_id=work_order_id,
    )  # fmt: skip
    raise_wake(session, work_order_id, work_order.organization_id, Wake.REOFFERED)
    return True


async def drop_by_force(session: Session, work_order_id: UUID, reason: str | None) -> bool:
    """Cancel it where the command that cancels fails too: the least that leaves everything consistent. Nobody is told.
    False when it had ended already. Raises NotFound."""
    work_order = await _locked(session, work_order_id)
    values = {"id": work_order_id, "at": work_order.now, "reason": reason}
    if await session.row(_FORCE, values) is None:
        return False
    previous = WorkOrderStatus(work_order.status)
    note_event(
        session, work_order.organization_id, work_order_id, previous, WorkOrderStatus.CANCELLED,
        driver_id=work_order.assigned_driver_id, notes=reason,
    )  # fmt: skip
    record(
        session, f"{work_order.kind}_CANCELLED".upper(), organization_id=work_order.organization_id,
        entity_type="work_order", entity_id=work_order_id,
        **{"from": previous.value, "to": WorkOrderStatus.CANCELLED.value, "reason": reason, "forced": True},
    )  # fmt: skip
    forget_failures(session, work_order_id)
    wake_head(session, work_order.organization_id)
    raise_wake(session, work_order_id, work_order.organization_id, Wake.CANCELLED)
    return True


async def all_parked(session: Session) -> list[Row[Any]]:
    """Over all organizations, the longest parked first: `{id, reference, organization_id, organization (its name),
    kind, status, error, failures, parked_at}` each."""
    return list(await session.rows(_ALL_PARKED))


async def parked_as(session: Session, name: str) -> list[Row[Any]]:
    """Parked work orders with this id or reference: several where organizations use the same reference."""
    return list(await session.rows(_PARKED_AS, {"name": name}))


async def _locked(session: Session, work_order_id: UUID) -> Row[Any]:
    row = await session.row(_LOCK, {"id": work_order_id})
    if row is None:
        raise NotFound("No such work order")
    return row
