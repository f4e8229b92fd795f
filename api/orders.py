"""Deliveries: `/orders`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from api.guards import needs
from api.locations import Location
from api.new_work import made, point_of
from api.work_orders import Address, KindController, Notes, Priority, Skills
from api.work_shapes import Order, OrderDetail
from models.identity.permissions import Caller
from models.kit.database import Database, Session
from models.kit.ids import UUID
from models.policies.rules import ORDER_EXPIRES_S
from models.work.creating import NewWork, Stop, create_order
from models.work.rules import WorkKind


class OrderEnd(msgspec.Struct, forbid_unknown_fields=True):
    """Where it is picked up, or dropped off."""

    address: Address
    location: Location


class CreateOrderRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Nobody may take it after `expires_in_s` seconds."""

    pickup: OrderEnd
    dropoff: OrderEnd
    expires_in_s: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = ORDER_EXPIRES_S
    required_skills: Skills = []
    priority: Priority = 5
    notes: Notes | None = None


#: What the names in KindController stand for here.
_STRUCTS: Final[dict[str, Any]] = {"WorkOrder": Order, "WorkOrderDetail": OrderDetail}


class OrderController(KindController):
    path = "/orders"
    tags = ("Orders",)
    kind: ClassVar[WorkKind | None] = WorkKind.ORDER
    signature_namespace = _STRUCTS

    @post(operation_id="CreateOrder", summary="Have something delivered", opt=needs("work:create"))
    async def create(
        self,
        request: Request[Any, Any, Any],
        database: NamedDependency[Database],
        caller: NamedDependency[Caller],
        data: JSONBody[CreateOrderRequest],
    ) -> Response[OrderDetail]:
        """At once; with `Prefer: wait=N` when the first offer is out, or after N seconds (at most 5)."""
        work = NewWork(required_skills=tuple(data.required_skills), priority=data.priority)

        async def create(session: Session) -> UUID:
            return await create_order(
                session,
                caller.organization_id,
                work,
                pickup=Stop(address=data.pickup.address, location=point_of(data.pickup.location)),
                dropoff=Stop(address=data.dropoff.address, location=point_of(data.dropoff.location)),
                expires_in_s=data.expires_in_s,
                notes=data.notes,
            )

        return await made(request, database, caller, create)
