"""Taking a work order's lock, the second in the order: lane, work order, offer, driver.

A command locks at most one work order. NO KEY, because foreign keys of offers and events hold a share lock on it.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy.engine import Row

from models.kit.database import Session
from models.kit.errors import NotFound
from models.kit.sql import Sql

COLUMNS = """id, organization_id, kind, reference, status, priority, required_skills, required_vehicle_type, lat, lng,
    scheduled_for, requested_by_user_id, source, policy_id, manual, waiting_since, match_from, round, next_round_at,
    broadcast_until, nobody_reasons, escalations, escalate_from, nudged_at, late_alerted_at, assigned_driver_id,
    assigned_at, en_route_at, version"""

# The clock is read above the CTE, so that it shows the instant after the wait for the lock.
_LOCK = Sql(f"""
WITH locked AS MATERIALIZED (SELECT {COLUMNS} FROM work_orders WHERE id = :id FOR NO KEY UPDATE)
SELECT locked.*, clock_timestamp() AS now FROM locked
""")  # noqa: S608 - the columns are ours

_LOCK_OF_OFFER = Sql(f"""
WITH locked AS MATERIALIZED (
    SELECT {COLUMNS} FROM work_orders
    WHERE id = (SELECT work_order_id FROM offers WHERE id = :offer_id AND driver_id = :driver_id)
    FOR NO KEY UPDATE
)
SELECT locked.*, clock_timestamp() AS now FROM locked
""")  # noqa: S608 - the columns are ours


async def lock_work_order(session: Session, work_order_id: UUID) -> Row[Any]:
    """The locked row, with `now` by the database's clock after the wait. Raises NotFound."""
    row = await session.row(_LOCK, {"id": work_order_id})
    if row is None:
        raise NotFound
    return row


async def lock_work_order_of_offer(session: Session, offer_id: UUID, driver_id: UUID) -> Row[Any]:
    """The work order behind a driver's own offer, locked. Raises NotFound, also for another driver's offer."""
    row = await session.row(_LOCK_OF_OFFER, {"offer_id": offer_id, "driver_id": driver_id})
    if row is None:
        raise NotFound
    return row
