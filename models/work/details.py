"""Correcting what a work order says, its schedule included."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.audit.commands import record
from models.kit.database import Session
from models.kit.errors import PreconditionFailed
from models.kit.sql import Sql
from models.offers.commands import close_pending
from models.offers.rules import OfferReason
from models.policies.queries import policy_by_id
from models.work.locking import lock_work_order
from models.work.rules import HELD, IllegalTransition, WorkKind, WorkOrderStatus
from models.work.wakes import Wake, raise_wake, wake_head

S = WorkOrderStatus

_MOVE_EXPIRY = Sql("""
UPDATE orders o SET expires_at = CAST(:starts AS timestamptz)
    + (o.expires_at - greatest(w.created_at, coalesce(w.scheduled_for, w.created_at)))
FROM work_orders w WHERE w.id = o.work_order_id AND o.work_order_id = :id
""")

_RESCHEDULE = Sql("""
UPDATE work_orders SET escalate_from = :starts,
    match_from = CASE WHEN match_from IS NULL THEN NULL ELSE CAST(:starts AS timestamptz) END
WHERE id = :id
""")

# A round of its own, so that whoever had the withdrawn offer is asked again.
_POSTPONE = Sql("""
UPDATE work_orders SET match_from = CASE WHEN manual THEN NULL ELSE CAST(:starts AS timestamptz) END,
    round = round + 1, next_round_at = NULL, broadcast_until = NULL, nobody_reasons = NULL
WHERE id = :id
""")

_PATCHABLE = {
    "address", "lat", "lng", "priority", "required_skills", "required_vehicle_type", "scheduled_for", "timeslot",
    "special_instructions",
}  # fmt: skip


async def change_details(
    session: Session, work_order_id: UUID, *, expected_version: int, values: dict[str, Any]
) -> None:
    """Correct what the work order says. Rescheduling pending work moves its wake; ended work is history.
    `values` holds only columns of `_PATCHABLE`. Raises NotFound, PreconditionFailed, IllegalTransition."""
    assert values.keys() <= _PATCHABLE, values.keys()
    work_order = await lock_work_order(session, work_order_id)
    if work_order.version != expected_version:
        raise PreconditionFailed(version=work_order.version)
    status = S(work_order.status)
    if status is not S.PENDING and status not in HELD:
        raise IllegalTransition(WorkKind(work_order.kind), status, status)
    if not values:
        return
    if "required_skills" in values:
        values = values | {"required_skills": sorted(set(values["required_skills"]))}
    if "scheduled_for" in values and work_order.kind == WorkKind.ORDER and status is S.PENDING:
        starts_at = max(work_order.now, values["scheduled_for"] or work_order.now)
        await session.run(_MOVE_EXPIRY, {"id": work_order.id, "starts": starts_at})
    sets = ", ".join(f"{name} = :{name}" for name in sorted(values))
    await session.run(
        text(f"UPDATE work_orders SET {sets}, version = version + 1, updated_at = :at WHERE id = :id"),  # noqa: S608 - names checked above
        {"id": work_order.id, "at": work_order.now, **values},
    )
    record(
        session, f"{work_order.kind}_UPDATED".upper(), organization_id=work_order.organization_id,
        entity_type="work_order", entity_id=work_order.id, changed=sorted(values),
    )  # fmt: skip
    if status is S.PENDING:
        due_at: datetime | None = None
        if "scheduled_for" in values:
            policy = await policy_by_id(session, work_order.policy_id)
            scheduled = values["scheduled_for"]
            starts = work_order.now
            if scheduled is not None:
                starts = max(starts, scheduled - timedelta(seconds=policy.lead_time_s))
            await session.run(_RESCHEDULE, {"id": work_order.id, "starts": starts})
            if starts > work_order.now:
                due_at = starts
                # Too early now: an offer that is out is withdrawn and made again when its time comes.
                if await close_pending(session, work_order, OfferReason.CANCELLED, at=work_order.now):
                    wake_head(session, work_order.organization_id)
                await session.run(_POSTPONE, {"id": work_order.id, "starts": starts})
        raise_wake(session, work_order.id, work_order.organization_id, Wake.STATUS_CHANGED, due_at=due_at)
