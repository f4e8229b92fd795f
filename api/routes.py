"""Planned assignments of several stops, each made for one driver: `/routes`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from api.guards import needs
from api.instants import Instant, checked_instant
from api.locations import Location
from api.new_work import made, point_of
from api.work_orders import Address, KindController, Notes
from api.work_shapes import Route, RouteDetail
from models.identity.permissions import Caller
from models.kit.database import Database, Session
from models.kit.ids import UUID
from models.work.creating import NewWork, Stop, create_route
from models.work.rules import WorkKind


class NewRouteStop(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    address: Address
    location: Location | None = None
    notes: Notes | None = None


class CreateRouteRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """It is offered to its driver and to nobody else, at once or when its time comes."""

    driver_id: UUID
    stops: Annotated[list[NewRouteStop], msgspec.Meta(min_length=1, max_length=200)]
    notes: Notes | None = None
    scheduled_for: Instant | None = None


#: What the names in KindController stand for here.
_STRUCTS: Final[dict[str, Any]] = {"WorkOrder": Route, "WorkOrderDetail": RouteDetail}


class RouteController(KindController):
    path = "/routes"
    tags = ("Routes",)
    kind: ClassVar[WorkKind | None] = WorkKind.ROUTE
    signature_namespace = _STRUCTS

    @post(operation_id="CreateRoute", summary="Plan a route for a driver", opt=needs("work:create"))
    async def create(
        self,
        request: Request[Any, Any, Any],
        database: NamedDependency[Database],
        caller: NamedDependency[Caller],
        data: JSONBody[CreateRouteRequest],
    ) -> Response[RouteDetail]:
        """At once; with `Prefer: wait=N` when the offer is out, or after N seconds (at most 5)."""
        work = NewWork(scheduled_for=checked_instant("scheduled_for", data.scheduled_for))

        async def create(session: Session) -> UUID:
            return await create_route(
                session,
                caller.organization_id,
                work,
                driver_id=data.driver_id,
                stops=[
                    Stop(address=stop.address, location=point_of(stop.location), notes=stop.notes)
                    for stop in data.stops
                ],
                notes=data.notes,
            )

        return await made(request, database, caller, create)
