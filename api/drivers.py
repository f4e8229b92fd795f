"""Drivers, and what a driver does for themselves: `/drivers`, `/drivers/me`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import Controller, Response, get, patch, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody, QueryParameter
from sqlalchemy import Row

from api.dependencies import Page, Paged, paged
from api.guards import needs
from api.instants import Instant
from api.locations import Location, location_of
from api.offers import Offer, offer_of, own_driver
from api.openapi import refuses
from api.work_shapes import WorkOrder, listed
from models.drivers import queries
from models.drivers.commands import heartbeat, set_status
from models.drivers.rules import Availability, DriverStatus
from models.identity.permissions import Caller
from models.kit.database import Session
from models.kit.errors import ValidationFailed
from models.kit.ids import UUID
from models.offers.queries import current_offer
from models.work.commands import hand_back, report_status
from models.work.queries import WorkFilter, work_order, work_orders_page
from models.work.rules import ENDED, HELD, IllegalTransition, WorkOrderCancelled, WorkOrderStatus

#: `DRIVER_MAY_SET` of models/drivers/rules.py; a test holds the two together.
OwnStatus = Literal["available", "break", "offline"]
_JOBS: Final[dict[str, frozenset[WorkOrderStatus] | None]] = {"active": HELD, "ended": ENDED, "all": None}
#: A device's clock may be wrong, and its report may have waited for a network; beyond this it tells nothing.
_REPORTED_WITHIN: Final = timedelta(days=30)
_CLOCK_AHEAD: Final = timedelta(days=1)


class Driver(msgspec.Struct):
    """`status` and `availability` are computed from duty and held work. `is_online`: heard from in the last 60 s.
    `active_count` is the work that is due or under way; `duty_since` is when they last came, left or took a break."""

    id: UUID
    reference: str
    user_id: UUID
    organization_id: UUID
    full_name: str
    status: DriverStatus
    availability: Availability
    skills: list[str]
    vehicle_type: str | None
    service_radius_km: float
    location: Location | None
    last_seen_at: datetime | None
    is_online: bool
    last_assigned_at: datetime | None
    active_count: int
    duty_since: datetime


class SetOwnStatusRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The busy states follow from the work."""

    status: OwnStatus


class HeartbeatRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Every 20 s; `location` only where the device knows it."""

    location: Location | None = None
    accuracy_m: Annotated[float, msgspec.Meta(ge=0, le=100_000)] | None = None


class Heartbeat(msgspec.Struct):
    last_seen_at: datetime


class ReportStatusRequest(msgspec.Struct, forbid_unknown_fields=True):
    """`occurred_at` is the device's own time, for a report that waited for a network; `completion_photo_key` names an
    upload."""

    status: WorkOrderStatus
    notes: Annotated[str, msgspec.Meta(max_length=2000)] | None = None
    location: Location | None = None
    completion_photo_key: Annotated[str, msgspec.Meta(min_length=1, max_length=300)] | None = None
    occurred_at: Instant | None = None


class HandBackRequest(msgspec.Struct, forbid_unknown_fields=True):
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=500, examples=["The van broke down"])]


class DriverController(Controller):
    path = "/drivers"
    tags = ("Drivers",)

    @get(operation_id="ListDrivers", summary="Drivers, by name", opt=needs("driver:read"))
    async def list_drivers(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        paging: NamedDependency[Page],
        status: Annotated[DriverStatus | None, QueryParameter()] = None,
        availability: Annotated[Availability | None, QueryParameter()] = None,
        live: Annotated[bool | None, QueryParameter(description="Heard from in the last 60 s, or not")] = None,
        q: Annotated[str | None, QueryParameter(max_length=120, description="In name and reference")] = None,
    ) -> Paged[Driver]:
        wanted = queries.DriverFilter(status=status, availability=availability, live=live, search=q)
        rows, total = await queries.drivers_page(
            session, caller.scope, wanted, offset=paging.offset, limit=paging.limit
        )
        return paged([_shown(row) for row in rows], total, paging)

    @get("/{driver_id:uuid}", operation_id="GetDriver", summary="One driver", opt=needs("driver:read"))
    async def get_driver(
        self, session: NamedDependency[Session], caller: NamedDependency[Caller], driver_id: FromPath[UUID]
    ) -> Driver:
        return _shown(await queries.driver(session, caller.scope, driver_id))


class OwnDriverController(Controller):
    path = "/drivers/me"
    tags = ("Drivers",)

    @get(operation_id="GetOwnDriver", summary="The driver who asks", opt=needs("driver:self"))
    async def get_me(self, session: NamedDependency[Session], caller: NamedDependency[Caller]) -> Driver:
        return _shown(await queries.own_profile(session, own_driver(caller)))

    @patch("/status", operation_id="SetOwnStatus", summary="Come, go, take a break", opt=needs("driver:self"))
    async def set_own_status(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        data: JSONBody[SetOwnStatusRequest],
    ) -> Driver:
        """Leaving duty closes the driver's exclusive offer at once; work already held stays theirs."""
        driver_id = own_driver(caller)
        await set_status(session, driver_id, data.status, by_staff=False)
        return _shown(await queries.own_profile(session, driver_id))

    @post(
        "/heartbeat",
        operation_id="SendHeartbeat",
        summary="Still here",
        status_code=200,
        opt=needs("location:write"),
    )
    async def send_heartbeat(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        data: JSONBody[HeartbeatRequest | None] = None,
    ) -> Heartbeat:
        """Without a location the last one stands."""
        here = data.location if data else None
        seen_at = await heartbeat(
            session,
            own_driver(caller),
            caller.organization_id,
            lat=here.lat if here else None,
            lng=here.lng if here else None,
            accuracy_m=data.accuracy_m if data and here else None,
        )
        return Heartbeat(seen_at)

    @get(
        "/offers/current",
        operation_id="GetCurrentOffer",
        summary="The offer to answer now",
        opt=needs("driver:self"),
        responses={204: ResponseSpec(None, description="None is open")},
    )
    async def get_current_offer(
        self, session: NamedDependency[Session], caller: NamedDependency[Caller]
    ) -> Response[Offer | None]:
        """The exclusive one. Broadcasts and routes are in `GET /orders/feed`."""
        row = await current_offer(session, own_driver(caller))
        return Response(None, status_code=204) if row is None else Response(offer_of(row))

    @get("/jobs", operation_id="ListOwnJobs", summary="The driver's work, of every kind", opt=needs("driver:self"))
    async def list_own_jobs(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        paging: NamedDependency[Page],
        status: Annotated[
            Literal["active", "ended", "all"], QueryParameter(description="`active` is what the driver holds now")
        ] = "active",
    ) -> Paged[WorkOrder]:
        wanted = WorkFilter(driver_id=own_driver(caller), statuses=_JOBS[status])
        rows, total = await work_orders_page(session, caller, wanted, offset=paging.offset, limit=paging.limit)
        return paged([listed(row, caller) for row in rows], total, paging)

    @patch(
        "/jobs/{work_order_id:uuid}/status",
        operation_id="ReportJobStatus",
        summary="Report a step",
        opt=needs("job:status"),
        responses=refuses(IllegalTransition, WorkOrderCancelled),
    )
    async def report_job_status(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        work_order_id: FromPath[UUID],
        data: JSONBody[ReportStatusRequest],
    ) -> WorkOrder:
        """`en_route`, `arrived`, `in_progress`, `completed`, in this order; an enrollment may be completed at once."""
        _check_report(data)
        await report_status(
            session,
            work_order_id,
            own_driver(caller),
            data.status,
            notes=data.notes,
            lat=data.location.lat if data.location else None,
            lng=data.location.lng if data.location else None,
            completion_photo_key=data.completion_photo_key,
            occurred_at=data.occurred_at,
        )
        return listed(await work_order(session, caller, work_order_id), caller)

    @post(
        "/jobs/{work_order_id:uuid}/hand-back",
        operation_id="HandBackJob",
        summary="Give the work back",
        status_code=200,
        opt=needs("job:status"),
        responses=refuses(IllegalTransition),
    )
    async def hand_back_job(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        work_order_id: FromPath[UUID],
        data: JSONBody[HandBackRequest],
    ) -> WorkOrder:
        """Before arriving. It goes to another driver, and counts as a rejection of this work."""
        if not data.reason.strip():
            raise ValidationFailed({"reason": ["Must not be blank"]})
        await hand_back(session, work_order_id, own_driver(caller), data.reason.strip())
        return listed(await work_order(session, caller, work_order_id), caller)


def _shown(row: Row[Any]) -> Driver:
    """A row of models/drivers/queries.py as the API shows it."""
    status, availability = queries.state_of(row)
    return Driver(
        id=row.id,
        reference=row.reference,
        user_id=row.user_id,
        organization_id=row.organization_id,
        full_name=row.full_name,
        status=status,
        availability=availability,
        skills=row.skills,
        vehicle_type=row.vehicle_type,
        service_radius_km=row.service_radius_km,
        location=location_of(row.lat, row.lng),
        last_seen_at=row.last_seen_at,
        is_online=row.is_live,
        last_assigned_at=row.last_assigned_at,
        active_count=row.active_count,
        duty_since=row.duty_since,
    )


def _check_report(data: ReportStatusRequest) -> None:
    errors: dict[str, list[str]] = {}
    if data.completion_photo_key is not None and data.status is not WorkOrderStatus.COMPLETED:
        errors["completion_photo_key"] = ["Only with `completed`"]
    if data.occurred_at is not None:
        now = datetime.now(UTC)
        if not now - _REPORTED_WITHIN <= data.occurred_at <= now + _CLOCK_AHEAD:
            errors["occurred_at"] = ["Must be within the last 30 days"]
    if errors:
        raise ValidationFailed(errors)
