"""Taking a driver's lock, the last in the order, and what changes under it."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.engine import Row

from models.kit.database import Session
from models.kit.errors import NotFound
from models.kit.sql import Sql

_LOCK = Sql("""
WITH locked AS MATERIALIZED (SELECT * FROM driver_dispatch WHERE driver_id = :driver_id FOR NO KEY UPDATE)
SELECT locked.*, clock_timestamp() AS now FROM locked
""")

_TAKE = Sql("""
UPDATE driver_dispatch SET active_count = active_count + :counts, queue_at = :at, last_assigned_at = :at,
    last_offered_at = greatest(last_offered_at, :offered_at), reject_streak = 0, state_version = state_version + 1
WHERE driver_id = :driver_id
""")

_FREE = Sql("""
UPDATE driver_dispatch SET active_count = active_count - :counted,
    queue_at = CASE WHEN :restore AND queue_at = :taken_at THEN :queue_at_before ELSE queue_at END,
    state_version = state_version + 1
WHERE driver_id = :driver_id
""")

_TOUCH = Sql("UPDATE driver_dispatch SET state_version = state_version + 1 WHERE driver_id = :driver_id")


async def lock_driver(session: Session, driver_id: UUID) -> Row[Any]:
    """The driver's dispatch row, locked, with `now` after the wait. Raises NotFound."""
    row = await session.row(_LOCK, {"driver_id": driver_id})
    if row is None:
        raise NotFound
    return row


def take_work(session: Session, driver_id: UUID, *, at: datetime, offered_at: datetime, counts: bool) -> None:
    """An assignment: the driver goes to the end of the line and, where the work is due, holds one more."""
    values = {"driver_id": driver_id, "at": at, "offered_at": offered_at, "counts": int(counts)}
    session.write(_TAKE, values, row=driver_id)


def free_work(
    session: Session,
    driver_id: UUID,
    *,
    counted: bool,
    restore: bool,
    taken_at: datetime,
    queue_at_before: datetime | None,
) -> None:
    """Work ended. With `restore`, give the driver back the place in line that this work cost them, unless another
    assignment has set a new one since."""
    values = {
        "driver_id": driver_id,
        "counted": int(counted),
        "restore": restore,
        "taken_at": taken_at,
        "queue_at_before": queue_at_before,
    }
    session.write(_FREE, values, row=driver_id)


def touch_driver(session: Session, driver_id: UUID) -> None:
    """Something that ranking sees has changed for this driver: an exclusive offer was opened or closed."""
    session.write(_TOUCH, {"driver_id": driver_id}, row=driver_id)
