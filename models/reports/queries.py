"""Figures for the board and about fairness; each is one or two statements over sets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, and_, extract, func, or_, select
from sqlalchemy.sql.functions import Function

from models.drivers.queries import AVAILABILITY_CONDITIONS
from models.drivers.rules import Duty
from models.drivers.tables import driver_dispatch, driver_profiles
from models.identity.rules import Role
from models.identity.tables import users
from models.kit.database import Session
from models.offers.rules import OfferStatus
from models.offers.tables import assignments, offers
from models.organizations.scope import Scope
from models.organizations.tables import organizations
from models.work.rules import HELD, WorkOrderStatus
from models.work.tables import work_orders

_S: Final = WorkOrderStatus
#: How far the clock of a process that makes ids may be off, for narrowing by id what the exact time then decides.
_CLOCKS_APART: Final = timedelta(hours=1)


async def work_figures(session: Session, scope: Scope) -> Row[Any]:
    """Work orders by state, and the offers out: pending, offered, assigned, in_progress, completed_today,
    cancelled_today, pending_offers, oldest_waiting_s. A day is one of the asking organization's time zone."""
    # Grouped once for all: a subquery in each row would run again for every figure that reads it.
    open_offers = (
        select(offers.c.work_order_id, func.count().label("count"))
        .where(scope.covers(offers.c.organization_id), offers.c.status == OfferStatus.PENDING.value)
        .group_by(offers.c.work_order_id)
        .cte("open_offers")
    )
    out = func.coalesce(open_offers.c["count"], 0)
    waiting = (
        select(out.label("offers"), work_orders.c.waiting_since)
        .select_from(work_orders.outerjoin(open_offers, open_offers.c.work_order_id == work_orders.c.id))
        .where(scope.covers(work_orders.c.organization_id), work_orders.c.status == _S.PENDING.value)
        .cte("waiting")
    )
    held = (
        select(work_orders.c.status, func.count().label("count"))
        .where(
            scope.covers(work_orders.c.organization_id),
            work_orders.c.status.in_([status.value for status in sorted(HELD)]),
        )
        .group_by(work_orders.c.status)
        .cte("held")
    )
    midnight = (
        select(func.date_trunc("day", func.clock_timestamp(), organizations.c.time_zone))
        .where(organizations.c.id == scope.organization_id)
        .scalar_subquery()
    )
    waited = extract("epoch", func.clock_timestamp() - func.min(waiting.c.waiting_since))

    def count_held(*statuses: WorkOrderStatus) -> Any:
        counted = select(func.coalesce(func.sum(held.c["count"]), 0))
        return counted.where(held.c.status.in_([status.value for status in statuses])).scalar_subquery()

    def count_since_midnight(column: str) -> Any:
        return (
            select(func.count())
            .where(scope.covers(work_orders.c.organization_id), work_orders.c[column] >= midnight)
            .scalar_subquery()
        )

    row = await session.row(
        select(
            func.count().filter(waiting.c.offers == 0).label("pending"),
            func.count().filter(waiting.c.offers > 0).label("offered"),
            count_held(_S.ASSIGNED, _S.EN_ROUTE).label("assigned"),
            count_held(_S.ARRIVED, _S.IN_PROGRESS).label("in_progress"),
            count_since_midnight("completed_at").label("completed_today"),
            count_since_midnight("cancelled_at").label("cancelled_today"),
            func.coalesce(func.sum(waiting.c.offers), 0).label("pending_offers"),
            waited.label("oldest_waiting_s"),
        ).select_from(waiting)
    )
    assert row is not None, "an aggregate gives one row"
    return row


async def driver_figures(session: Session, scope: Scope) -> Row[Any]:
    """Drivers with an active account, by availability: available, busy, unavailable."""
    row = await session.row(
        select(
            *(func.count().filter(condition).label(name.value) for name, condition in AVAILABILITY_CONDITIONS.items())
        )
        .select_from(_DRIVERS)
        .where(
            scope.covers(driver_profiles.c.organization_id),
            users.c.role == Role.DRIVER.value,
            users.c.is_active,
            users.c.deleted_at.is_(None),
        )
    )
    assert row is not None, "an aggregate gives one row"
    return row


_DRIVERS: Final = driver_profiles.join(users, users.c.id == driver_profiles.c.user_id).join(
    driver_dispatch, driver_dispatch.c.driver_id == driver_profiles.c.id
)


async def fairness_by_driver(session: Session, scope: Scope, since: datetime, until: datetime) -> Sequence[Row[Any]]:
    """What each driver was offered and assigned from `since` (included) to `until` (not).

    Listed are the drivers who were asked, and those who may have been on duty: whoever is on, or has come or gone since
    `since`. Off or on a break ever since before, one was not there to be asked, and says nothing about fairness.
    """
    asked = (
        select(
            offers.c.driver_id,
            func.count().label("offered"),
            *(
                func.count().filter(offers.c.status == status.value).label(status.value)
                for status in (OfferStatus.ACCEPTED, OfferStatus.REJECTED, OfferStatus.EXPIRED)
            ),
        )
        .where(
            scope.covers(offers.c.organization_id),
            offers.c.offered_at >= since,
            offers.c.offered_at < until,
            # Ids are in the order of time and have the index.
            offers.c.id >= _first_id(since - _CLOCKS_APART),
            offers.c.id < _first_id(until + _CLOCKS_APART),
        )
        .group_by(offers.c.driver_id)
        .cte("asked")
    )
    given = (
        select(assignments.c.driver_id, func.count().label("assignments"))
        .where(
            scope.covers(assignments.c.organization_id),
            assignments.c.starts_at >= since,
            assignments.c.starts_at < until,
        )
        .group_by(assignments.c.driver_id)
        .cte("given")
    )

    def none_is_0(column: Any) -> Function[int]:
        return func.coalesce(column, 0)

    may_have_been_there = and_(
        users.c.role == Role.DRIVER.value,
        users.c.is_active,
        users.c.deleted_at.is_(None),
        or_(driver_dispatch.c.duty == Duty.ON.value, driver_dispatch.c.duty_since >= since),
    )
    return await session.rows(
        select(
            driver_profiles.c.id.label("driver_id"),
            driver_profiles.c.organization_id,
            driver_profiles.c.reference,
            users.c.full_name,
            none_is_0(asked.c.offered).label("offered"),
            none_is_0(asked.c.accepted).label("accepted"),
            none_is_0(asked.c.rejected).label("rejected"),
            none_is_0(asked.c.expired).label("expired"),
            none_is_0(given.c.assignments).label("assignments"),
            driver_dispatch.c.last_assigned_at,
            extract("epoch", func.clock_timestamp() - driver_dispatch.c.last_assigned_at).label(
                "since_last_assignment_s"
            ),
        )
        .select_from(
            _DRIVERS.outerjoin(asked, asked.c.driver_id == driver_profiles.c.id).outerjoin(
                given, given.c.driver_id == driver_profiles.c.id
            )
        )
        .where(
            scope.covers(driver_profiles.c.organization_id),
            or_(asked.c.driver_id.is_not(None), given.c.driver_id.is_not(None), may_have_been_there),
        )
        .order_by(users.c.full_name, driver_profiles.c.id)
    )


def _first_id(instant: datetime) -> UUID:
    """The lowest UUIDv7 of this millisecond: RFC 9562 puts the time into the first 48 bits."""
    milliseconds = int(instant.astimezone(UTC).timestamp() * 1000)
    return UUID(int=(milliseconds << 80) | (0x7 << 76) | (0x2 << 62))
