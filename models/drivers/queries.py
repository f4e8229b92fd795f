"""Reading drivers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, Row, Select, and_, bindparam, exists, false, func, or_, select, text

from models.drivers.rules import Availability, DriverStatus, Duty, availability, shown_status
from models.drivers.tables import driver_dispatch, driver_positions, driver_profiles
from models.identity.rules import Role
from models.identity.tables import users
from models.kit.database import Session
from models.kit.errors import NotFound
from models.organizations.scope import Scope
from models.work.rules import HELD, UNDER_WAY, WorkOrderStatus
from models.work.tables import work_orders

#: A driver heard from within so long is live.
LIVE_S: Final = 60

_live: Final = func.coalesce(
    driver_positions.c.last_seen_at > func.clock_timestamp() - text(f"interval '{LIVE_S} seconds'"), false()
)
_held: Final = (
    select(func.array_agg(work_orders.c.status))
    .where(work_orders.c.assigned_driver_id == driver_profiles.c.id, work_orders.c.status.in_(sorted(HELD)))
    .correlate(driver_profiles)
    .scalar_subquery()
)
_DRIVERS: Final = (
    driver_profiles.join(users, users.c.id == driver_profiles.c.user_id)
    .join(driver_dispatch, driver_dispatch.c.driver_id == driver_profiles.c.id)
    .outerjoin(driver_positions, driver_positions.c.driver_id == driver_profiles.c.id)
)
_SELECT: Final[Select[Any]] = select(
    driver_profiles.c.id,
    driver_profiles.c.organization_id,
    driver_profiles.c.user_id,
    driver_profiles.c.reference,
    driver_profiles.c.skills,
    driver_profiles.c.vehicle_type,
    driver_profiles.c.service_radius_km,
    users.c.full_name,
    driver_dispatch.c.duty,
    driver_dispatch.c.duty_since,
    driver_dispatch.c.staff_busy,
    driver_dispatch.c.active_count,
    driver_dispatch.c.last_assigned_at,
    driver_positions.c.lat,
    driver_positions.c.lng,
    driver_positions.c.last_seen_at,
    _live.label("is_live"),
    _held.label("held"),
).select_from(_DRIVERS)
#: Complete, because every driver's app asks for it again and again.
_OWN: Final = _SELECT.where(driver_profiles.c.id == bindparam("driver_id"), users.c.deleted_at.is_(None))

_ON: Final = driver_dispatch.c.duty == Duty.ON.value
_COUNTS: Final = driver_dispatch.c.active_count > 0
_LOADED: Final = or_(_COUNTS, driver_dispatch.c.staff_busy)


def _holds(*statuses: WorkOrderStatus) -> ColumnElement[bool]:
    return exists().where(
        work_orders.c.assigned_driver_id == driver_profiles.c.id,
        work_orders.c.status.in_([status.value for status in statuses]),
    )


_ON_SITE: Final = _holds(WorkOrderStatus.ARRIVED, WorkOrderStatus.IN_PROGRESS)
#: `shown_status` and `availability` of rules.py as conditions; a test holds the two together.
STATUS_CONDITIONS: Final[dict[DriverStatus, ColumnElement[bool]]] = {
    DriverStatus.OFFLINE: driver_dispatch.c.duty == Duty.OFF.value,
    DriverStatus.BREAK: driver_dispatch.c.duty == Duty.BREAK.value,
    DriverStatus.AVAILABLE: and_(_ON, ~_LOADED),
    DriverStatus.ASSIGNED: and_(_ON, _LOADED, ~and_(_COUNTS, _holds(*UNDER_WAY))),
    DriverStatus.EN_ROUTE: and_(_ON, _COUNTS, _holds(WorkOrderStatus.EN_ROUTE), ~_ON_SITE),
    DriverStatus.ON_JOB: and_(_ON, _COUNTS, _ON_SITE),
}
AVAILABILITY_CONDITIONS: Final[dict[Availability, ColumnElement[bool]]] = {
    Availability.AVAILABLE: and_(_ON, ~_LOADED),
    Availability.BUSY: and_(_ON, _LOADED),
    Availability.UNAVAILABLE: ~_ON,
}


class DriverFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What to look for; None leaves it open. `live`: heard from within LIVE_S, or not."""

    status: DriverStatus | None = None
    availability: Availability | None = None
    live: bool | None = None
    search: str | None = None

    def conditions(self, scope: Scope) -> list[ColumnElement[bool]]:
        wanted = [
            scope.covers(driver_profiles.c.organization_id),
            users.c.deleted_at.is_(None),
            users.c.role == Role.DRIVER.value,
        ]
        if self.status is not None:
            wanted.append(STATUS_CONDITIONS[self.status])
        if self.availability is not None:
            wanted.append(AVAILABILITY_CONDITIONS[self.availability])
        if self.live is not None:
            wanted.append(_live if self.live else ~_live)
        if self.search:
            wanted.append(
                or_(
                    users.c.full_name.icontains(self.search, autoescape=True),
                    driver_profiles.c.reference.icontains(self.search, autoescape=True),
                )
            )
        return wanted


async def own_profile(session: Session, driver_id: UUID) -> Row[Any]:
    """The driver who asks. Raises NotFound where the account is gone."""
    row = await session.row(_OWN, {"driver_id": driver_id})
    if row is None:
        raise NotFound("No such driver")
    return row


async def driver(session: Session, scope: Scope, driver_id: UUID) -> Row[Any]:
    """One driver. Raises NotFound, also outside the scope."""
    row = await session.row(
        _SELECT.where(
            driver_profiles.c.id == driver_id,
            users.c.deleted_at.is_(None),
            scope.covers(driver_profiles.c.organization_id),
        )
    )
    if row is None:
        raise NotFound("No such driver")
    return row


async def drivers_page(
    session: Session, scope: Scope, wanted: DriverFilter, *, offset: int = 0, limit: int = 20
) -> tuple[Sequence[Row[Any]], int]:
    """Drivers by name, and how many there are in all."""
    conditions = wanted.conditions(scope)
    total = await session.value(select(func.count()).select_from(_DRIVERS).where(*conditions))
    rows = await session.rows(
        _SELECT.where(*conditions).order_by(users.c.full_name, driver_profiles.c.id).offset(offset).limit(limit)
    )
    return rows, total


def state_of(row: Row[Any]) -> tuple[DriverStatus, Availability]:
    """What to show for a row of this module."""
    duty = Duty(row.duty)
    # Work scheduled for later is held but not yet due: it makes nobody busy, and shows as nothing.
    held = [WorkOrderStatus(status) for status in row.held or ()] if row.active_count else []
    return (
        shown_status(duty, held, staff_busy=row.staff_busy),
        availability(duty, row.active_count, staff_busy=row.staff_busy),
    )
