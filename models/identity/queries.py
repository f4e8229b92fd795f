"""Reading people."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, Row, Select, and_, func, or_, select

from models.drivers.rules import Availability, DriverStatus, Duty, availability, shown_status
from models.drivers.tables import driver_dispatch, driver_profiles
from models.identity.rules import Role
from models.identity.tables import sessions, users
from models.kit.database import Session
from models.kit.errors import NotFound
from models.organizations.scope import Scope
from models.work.rules import HELD, WorkOrderStatus
from models.work.tables import work_orders

_ON: Final = driver_dispatch.c.duty == Duty.ON
_LOADED: Final = or_(driver_dispatch.c.active_count > 0, driver_dispatch.c.staff_busy)
#: What `GET /users?status=` takes, as conditions on a driver's stored duty and load.
STATUS_FILTERS: Final[dict[str, ColumnElement[bool]]] = {
    "available": and_(_ON, ~_LOADED),
    "busy": and_(_ON, _LOADED),
    "break": driver_dispatch.c.duty == Duty.BREAK,
    "offline": driver_dispatch.c.duty == Duty.OFF,
    "unavailable": driver_dispatch.c.duty != Duty.ON,
}

_held: Final = (
    select(func.array_agg(work_orders.c.status))
    .where(work_orders.c.assigned_driver_id == driver_profiles.c.id, work_orders.c.status.in_(sorted(HELD)))
    .scalar_subquery()
)
_PEOPLE: Final = users.outerjoin(
    driver_profiles,
    and_(
        driver_profiles.c.user_id == users.c.id,
        driver_profiles.c.organization_id == users.c.organization_id,
    ),
).outerjoin(driver_dispatch, driver_dispatch.c.driver_id == driver_profiles.c.id)
_COLUMNS: Final = (
    users.c.id,
    users.c.email,
    users.c.phone,
    users.c.full_name,
    users.c.role,
    users.c.is_active,
    users.c.organization_id,
    users.c.version,
    users.c.created_at,
    users.c.updated_at,
    driver_profiles.c.id.label("driver_id"),
    driver_dispatch.c.duty,
    driver_dispatch.c.active_count,
    driver_dispatch.c.staff_busy,
)


class SignIn(msgspec.Struct, frozen=True, kw_only=True):
    """An account as signing in needs it."""

    user_id: UUID
    organization_id: UUID
    email: str | None
    full_name: str
    role: Role
    is_active: bool
    password_hash: str | None
    driver_id: UUID | None


def _sign_in() -> Select[Any]:
    return select(
        users.c.id,
        users.c.organization_id,
        users.c.email,
        users.c.full_name,
        users.c.role,
        users.c.is_active,
        users.c.password_hash,
        driver_profiles.c.id.label("driver_id"),
    ).select_from(_PEOPLE)


def _as_sign_in(row: Row[Any] | None) -> SignIn | None:
    if row is None:
        return None
    return SignIn(
        user_id=row.id,
        organization_id=row.organization_id,
        email=row.email,
        full_name=row.full_name,
        role=Role(row.role),
        is_active=row.is_active,
        password_hash=row.password_hash,
        driver_id=row.driver_id,
    )


async def sign_in_by_email(session: Session, email: str) -> SignIn | None:
    """The account with this e-mail, whatever its case. Outside any scope: signing in comes before having one."""
    return _as_sign_in(await session.row(_sign_in().where(users.c.email == email, users.c.deleted_at.is_(None))))


async def sign_in_by_id(session: Session, user_id: UUID) -> SignIn | None:
    return _as_sign_in(await session.row(_sign_in().where(users.c.id == user_id, users.c.deleted_at.is_(None))))


async def family_of(session: Session, token_hash: str) -> UUID | None:
    """The sign-in that the refresh token with this hash was given out for."""
    family: UUID | None = await session.value(select(sessions.c.family_id).where(sessions.c.token_hash == token_hash))
    return family


async def user(session: Session, scope: Scope, user_id: UUID) -> Row[Any]:
    """One person with their driver state. Raises NotFound, also for a person of another tenant."""
    row = await session.row(
        select(*_COLUMNS, _held.label("held"))
        .select_from(_PEOPLE)
        .where(users.c.id == user_id, users.c.deleted_at.is_(None), scope.covers(users.c.organization_id))
    )
    if row is None:
        raise NotFound("No such user")
    return row


async def users_page(
    session: Session,
    scope: Scope,
    *,
    role: Role | None = None,
    status: str | None = None,
    search: str | None = None,
    offset: int = 0,
    limit: int = 20,
) -> tuple[list[Row[Any]], int]:
    """People by name, and how many there are in all. `status` is a key of STATUS_FILTERS and leaves only drivers."""
    found = [scope.covers(users.c.organization_id), users.c.deleted_at.is_(None)]
    if role is not None:
        found.append(users.c.role == role.value)
    if status is not None:
        found.append(STATUS_FILTERS[status])
    if search:
        found.append(
            or_(
                users.c.full_name.icontains(search, autoescape=True),
                users.c.email.icontains(search, autoescape=True),
                users.c.phone.contains(search, autoescape=True),
            )
        )
    total = await session.value(select(func.count()).select_from(_PEOPLE).where(*found))
    rows = await session.rows(
        select(*_COLUMNS, _held.label("held"))
        .select_from(_PEOPLE)
        .where(*found)
        .order_by(users.c.full_name, users.c.id)
        .offset(offset)
        .limit(limit)
    )
    return list(rows), total


def driver_state(row: Row[Any]) -> tuple[DriverStatus | None, Availability | None]:
    """What to show for a row of `user` or `users_page`; (None, None) for who is no driver."""
    if row.duty is None:
        return None, None
    duty = Duty(row.duty)
    # Work scheduled for later is held but not yet due: it makes nobody busy, and shows as nothing.
    held = [WorkOrderStatus(status) for status in row.held or ()] if row.active_count else []
    return (
        shown_status(duty, held, staff_busy=row.staff_busy),
        availability(duty, row.active_count, staff_busy=row.staff_busy),
    )
