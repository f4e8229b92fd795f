"""The board's figures and the fairness report: `/dashboard`, `/reports/fairness`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import msgspec
from litestar import get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from api.guards import needs
from api.instants import checked_instant
from models.identity.permissions import Caller
from models.kit.database import Session
from models.kit.errors import ValidationFailed
from models.kit.ids import UUID
from models.reports import queries
from models.reports.rules import jain_index

_USUAL_SPAN: Final = timedelta(days=30)
_LONGEST_SPAN: Final = timedelta(days=366)


class WorkFigures(msgspec.Struct):
    """`pending`: waiting with no offer out. `offered`: waiting with one. `assigned` includes those under way,
    `in_progress` those who have arrived."""

    pending: int
    offered: int
    assigned: int
    in_progress: int
    completed_today: int
    cancelled_today: int


class DriverFigures(msgspec.Struct):
    """Drivers with an active account."""

    available: int
    busy: int
    unavailable: int


class Dashboard(msgspec.Struct):
    """`oldest_waiting_s`: how long the longest-waiting work order has had no driver, offered or not; null when none
    waits."""

    work_orders: WorkFigures
    drivers: DriverFigures
    pending_offers: int
    oldest_waiting_s: int | None


class DriverShare(msgspec.Struct):
    """One driver's part. `offered` includes offers still open and work assigned without asking;
    `since_last_assignment_s` is up to now, whatever the report's range, and null for one never assigned."""

    driver_id: UUID
    organization_id: UUID
    reference: str
    full_name: str
    offered: int
    accepted: int
    rejected: int
    expired: int
    assignments: int
    last_assigned_at: datetime | None
    since_last_assignment_s: int | None


class JainIndex(msgspec.Struct):
    """(sum x)^2 / (n * sum x^2) over the drivers listed: 1 when all had the same, 1/n when one had everything, null
    when there was nothing to share."""

    offers: float | None
    assignments: float | None


class FairnessReport(msgspec.Struct, rename={"since": "from", "until": "to"}):
    """Drivers by name: those who were asked in the range, and those who may have been on duty in it."""

    since: datetime
    until: datetime
    drivers: list[DriverShare]
    jain_index: JainIndex


@get(
    "/dashboard",
    operation_id="GetDashboard",
    summary="The board's figures",
    tags=["Reports"],
    opt=needs("dashboard:read"),
)
async def dashboard(session: NamedDependency[Session], caller: NamedDependency[Caller]) -> Dashboard:
    """Of everything within the caller's reach. Today is a day in the time zone of the caller's organization."""
    work = await queries.work_figures(session, caller.scope)
    drivers = await queries.driver_figures(session, caller.scope)
    return Dashboard(
        work_orders=WorkFigures(
            pending=work.pending,
            offered=work.offered,
            assigned=int(work.assigned),
            in_progress=int(work.in_progress),
            completed_today=work.completed_today,
            cancelled_today=work.cancelled_today,
        ),
        drivers=DriverFigures(available=drivers.available, busy=drivers.busy, unavailable=drivers.unavailable),
        pending_offers=int(work.pending_offers),
        oldest_waiting_s=_seconds(work.oldest_waiting_s),
    )


@get(
    "/reports/fairness",
    operation_id="GetFairnessReport",
    summary="How evenly offers and work were shared",
    tags=["Reports"],
    opt=needs("report:read"),
)
async def fairness_report(
    session: NamedDependency[Session],
    caller: NamedDependency[Caller],
    from_: Annotated[
        datetime | None, QueryParameter(name="from", description="Included; 30 days before `to` by default")
    ] = None,
    to: Annotated[datetime | None, QueryParameter(description="Not included; now by default")] = None,
) -> FairnessReport:
    """A year at most."""
    since, until = _span(from_, to)
    rows = await queries.fairness_by_driver(session, caller.scope, since, until)
    return FairnessReport(
        since=since,
        until=until,
        drivers=[
            DriverShare(
                driver_id=row.driver_id,
                organization_id=row.organization_id,
                reference=row.reference,
                full_name=row.full_name,
                offered=row.offered,
                accepted=row.accepted,
                rejected=row.rejected,
                expired=row.expired,
                assignments=row.assignments,
                last_assigned_at=row.last_assigned_at,
                since_last_assignment_s=_seconds(row.since_last_assignment_s),
            )
            for row in rows
        ],
        jain_index=JainIndex(
            offers=jain_index([row.offered for row in rows]),
            assignments=jain_index([row.assignments for row in rows]),
        ),
    )


def _span(since: datetime | None, until: datetime | None) -> tuple[datetime, datetime]:
    """The range asked for, in UTC. Raises ValidationFailed."""
    until = checked_instant("to", until) or datetime.now(UTC)
    since = checked_instant("from", since) or until - _USUAL_SPAN
    if not since < until:
        raise ValidationFailed({"from": ["Must be before `to`"]})
    if until - since > _LONGEST_SPAN:
        raise ValidationFailed({"from": [f"At most {_LONGEST_SPAN.days} days before `to`"]})
    return since, until


def _seconds(passed: float | None) -> int | None:
    """Whole seconds. Work that is to be offered later has not waited yet."""
    return None if passed is None else max(0, int(passed))
