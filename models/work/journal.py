"""A state change and what always goes with it: the row, its event, its audit row."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.engine import Row

from models.audit.commands import record
from models.kit.database import Session
from models.kit.ids import new_id
from models.kit.sql import Sql
from models.work.rules import ENDED, WorkKind, WorkOrderStatus, check_transition
from models.work.tables import work_order_events

#: Columns that a transition may set besides the status, its timestamp and the version.
_SETTABLE = frozenset(
    {
        "assigned_driver_id", "match_from", "round", "next_round_at", "broadcast_until", "nobody_reasons",
        "escalations", "escalate_from", "nudged_at", "late_alerted_at", "cancellation_reason",
        "completion_photo_key", "completion_notes", "assigned_at",
    }
)  # fmt: skip
_statements: dict[tuple[str, ...], Any] = {}

_FORGET = Sql("DELETE FROM stuck_work WHERE work_order_id = :id")


def change_status(
    session: Session,
    work_order: Row[Any],
    target: WorkOrderStatus,
    *,
    at: datetime,
    action: str | None = None,
    driver_id: UUID | None = None,
    lat: float | None = None,
    lng: float | None = None,
    notes: str | None = None,
    occurred_at: datetime | None = None,
    details: dict[str, Any] | None = None,
    **columns: Any,
) -> None:
    """Move the locked `work_order` to `target`. `columns` are set with it; `action` names the audit row (default
    `ENROLLMENT_COMPLETED` and the like). Raises IllegalTransition."""
    kind, current = WorkKind(work_order.kind), WorkOrderStatus(work_order.status)
    check_transition(kind, current, target)
    session.write(
        _update(target, tuple(sorted(columns))),
        {"id": work_order.id, "status": target.value, "at": at, **columns},
        row=work_order.id,
    )
    note_event(
        session, work_order.organization_id, work_order.id, current, target,
        driver_id=driver_id, lat=lat, lng=lng, notes=notes, occurred_at=occurred_at,
    )  # fmt: skip
    record(
        session,
        action or f"{kind.value}_{target.value}".upper(),
        organization_id=work_order.organization_id,
        entity_type="work_order",
        entity_id=work_order.id,
        **{"from": current.value, "to": target.value, **(details or {})},
    )
    if target in ENDED:
        forget_failures(session, work_order.id)


def forget_failures(session: Session, work_order_id: UUID) -> None:
    """Whatever went wrong with it before does not count any more, and where it was parked, it no longer is."""
    session.write(_FORGET, {"id": work_order_id}, row=work_order_id)


def note_event(
    session: Session,
    organization_id: UUID,
    work_order_id: UUID,
    previous: WorkOrderStatus | None,
    new: WorkOrderStatus,
    *,
    driver_id: UUID | None = None,
    lat: float | None = None,
    lng: float | None = None,
    notes: str | None = None,
    occurred_at: datetime | None = None,
) -> None:
    """Stage one row of the work order's history."""
    session.stage(
        work_order_events,
        id=new_id(),
        organization_id=organization_id,
        work_order_id=work_order_id,
        previous_status=previous,
        new_status=new,
        changed_by_user_id=session.actor.user_id,
        driver_id=driver_id,
        lat=lat,
        lng=lng,
        notes=notes,
        occurred_at=occurred_at,
    )


def _update(target: WorkOrderStatus, columns: tuple[str, ...]) -> Any:
    key = (target.value, *columns)
    statement = _statements.get(key)
    if statement is None:
        assert _SETTABLE.issuperset(columns), columns
        sets = [f"{name} = :{name}" for name in columns]
        if target is not WorkOrderStatus.PENDING and "assigned_at" not in columns:
            sets.append(f"{target.value}_at = :at")
        statement = _statements[key] = Sql(
            f"UPDATE work_orders SET status = :status, version = version + 1, updated_at = :at, {', '.join(sets)} "  # noqa: S608 - names come from the set above
            "WHERE id = :id"
        )
    return statement
