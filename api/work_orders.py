"""Work orders of every kind: the board at `/work-orders`, and what all kinds answer to under their own paths.

`/enrollments`, `/jobs`, `/orders` and `/routes` are `KindController`s: they get their list, detail, changes and actions
from here, and add how each is made.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
from litestar import Controller, Request, Response, get, patch, post
from litestar.di import NamedDependency, Provide
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.types import Method
from msgspec import UNSET, UnsetType
from sqlalchemy import Row

from api.dependencies import Page, Paged, etagged, expected_version, paged
from api.guards import needs
from api.instants import Instant, checked_instant
from api.locations import Location
from api.offers import own_only
from api.openapi import VERSIONED, refuses
from api.work_shapes import WorkOrder, WorkOrderDetail, detailed, listed
from models.drivers.rules import DriverBusy, DriverHasOffer, DriverNotEligible
from models.identity.permissions import Caller
from models.identity.rules import Role
from models.kit.database import Session
from models.kit.ids import UUID
from models.offers.queries import offers_of_work_order
from models.work import commands, queries
from models.work.details import change_details
from models.work.rules import IllegalTransition, WorkKind, WorkOrderNotWaiting

Line = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"\S")]
Address = Annotated[str, msgspec.Meta(min_length=1, max_length=300, pattern=r"\S")]
Notes = Annotated[str, msgspec.Meta(max_length=2000)]
Reason = Annotated[str, msgspec.Meta(max_length=500)]
Priority = Annotated[int, msgspec.Meta(ge=0, le=9, description="9 goes first")]
Skill = Annotated[str, msgspec.Meta(min_length=1, max_length=60, pattern=r"\S")]
Skills = Annotated[list[Skill], msgspec.Meta(max_length=50, examples=[["meter", "ladder"]])]

#: The states of models/work/rules.py and `queries.OFFERED`; a test holds them together.
StatusToFind = Literal[
    "pending", "offered", "assigned", "en_route", "arrived", "in_progress", "completed", "cancelled", "expired",
    "disputed",
]  # fmt: skip
#: The keys of `queries.SORTS`, held together by a test too.
Sort = Literal["created_at", "-created_at", "priority", "-priority", "scheduled_for", "reference"]

_NOUNS: Final = {
    "work-orders": "WorkOrder",
    "enrollments": "Enrollment",
    "jobs": "Job",
    "orders": "Order",
    "routes": "Route",
}


class ChangeWorkRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What is left out stays. Where it is done belongs to the stops of an order or a route, and cannot be changed."""

    priority: Priority | UnsetType = UNSET
    required_skills: Skills | UnsetType = UNSET
    scheduled_for: Instant | UnsetType | None = UNSET
    timeslot: Line | UnsetType | None = UNSET
    special_instructions: Notes | UnsetType | None = UNSET


class AssignRequest(msgspec.Struct, forbid_unknown_fields=True):
    """`offer` asks this driver alone; `force` assigns without asking."""

    driver_id: UUID
    mode: Literal["offer", "force"] = "offer"


class UnassignRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body may be left out."""

    reason: Reason | None = None


class ReofferRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Nothing to say; the body may be left out."""


class CancelRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body may be left out."""

    reason: Annotated[str, msgspec.Meta(max_length=500, examples=["The customer called it off"])] | None = None


class CompleteRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body may be left out."""

    notes: Notes | None = None
    completion_photo_key: Annotated[str, msgspec.Meta(min_length=1, max_length=500)] | None = None


def named(pattern: str) -> Callable[[HTTPRouteHandler, Method, list[Any]], str]:
    """An operation id for each path that a handler stands under: `Assign{}` becomes AssignJob, AssignRoute, .."""

    def name(handler: HTTPRouteHandler, method: Method, path: list[Any]) -> str:
        return pattern.format(next(_NOUNS[part] for part in path if part in _NOUNS))

    return name


async def detail(
    session: Session, caller: Caller, work_order_id: UUID, kind: WorkKind | None = None, *, is_new: bool = False
) -> WorkOrderDetail:
    """The work order as this caller may see it; in a transaction that changed it, with what it has written so far.
    Nobody has been asked yet about what `is_new`. Raises NotFound."""
    await session.flush()
    row = await queries.work_order(session, caller, work_order_id, kind)
    offers: list[Row[Any]] = []
    if caller.role is not Role.CUSTOMER and not is_new:
        offers = list(await offers_of_work_order(session, work_order_id, driver_id=own_only(caller)))
    return detailed(row, offers, await queries.events_of(session, row), caller)


def cancel_handler(permission: str) -> HTTPRouteHandler:
    """`POST ../cancel`: of jobs, customers may cancel their own."""

    @post(
        "/{work_order_id:uuid}/cancel",
        operation_id=named("Cancel{}"),
        summary="Call it off",
        status_code=200,
        opt=needs(permission),
        responses=refuses(IllegalTransition),
    )
    async def cancel(
        self: WorkActions,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        work_order_id: FromPath[UUID],
        data: JSONBody[CancelRequest | None] = None,
    ) -> Response[WorkOrderDetail]:
        """From any state before `completed`. Open offers close; an assigned driver is free again."""
        await queries.visible(session, caller, work_order_id, self.kind)
        await commands.cancel(session, work_order_id, data.reason if data else None)
        return await self.answer(session, caller, work_order_id)

    return cancel


class WorkActions(Controller):
    """What may be read and done about one work order. `kind` is None where the path stands for all kinds."""

    kind: ClassVar[WorkKind | None] = None

    async def answer(self, session: Session, caller: Caller, work_order_id: UUID) -> Response[WorkOrderDetail]:
        work_order = await detail(session, caller, work_order_id, self.kind)
        return etagged(work_order, work_order.version)

    @get(
        "/{work_order_id:uuid}",
        operation_id=named("Get{}"),
        summary="One, with its offers and history",
        opt=needs("job:read"),
    )
    async def get_work_order(
        self, session: NamedDependency[Session], caller: NamedDependency[Caller], work_order_id: FromPath[UUID]
    ) -> Response[WorkOrderDetail]:
        """A driver sees what was offered or assigned to them, a customer what they asked for."""
        return await self.answer(session, caller, work_order_id)

    @post(
        "/{work_order_id:uuid}/assign",
        operation_id=named("Assign{}"),
        summary="Name a driver",
        status_code=200,
        opt=needs("work:assign"),
        responses=refuses(IllegalTransition, DriverBusy, DriverNotEligible, DriverHasOffer),
    )
    async def assign(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        work_order_id: FromPath[UUID],
        data: JSONBody[AssignRequest],
    ) -> Response[WorkOrderDetail]:
        """Open offers to others are withdrawn. A driver of another organization is not found."""
        await queries.visible(session, caller, work_order_id, self.kind)
        await commands.assign_driver(session, work_order_id, data.driver_id, data.mode)
        return await self.answer(session, caller, work_order_id)

    @post(
        "/{work_order_id:uuid}/unassign",
        operation_id=named("Unassign{}"),
        summary="Take it off its driver",
        status_code=200,
        opt=needs("work:assign"),
        responses=refuses(IllegalTransition),
    )
    async def unassign(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        work_order_id: FromPath[UUID],
        data: JSONBody[UnassignRequest | None] = None,
    ) -> Response[WorkOrderDetail]:
        """Before the driver arrives. A new round starts, and who had not set out keeps their place in line."""
        await queries.visible(session, caller, work_order_id, self.kind)
        await commands.unassign(session, work_order_id, data.reason if data else None)
        return await self.answer(session, caller, work_order_id)

    @post(
        "/{work_order_id:uuid}/reoffer",
        operation_id=named("Reoffer{}"),
        summary="Start a new round now",
        status_code=200,
        opt=needs("work:assign"),
        responses=refuses(WorkOrderNotWaiting),
    )
    async def reoffer(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        work_order_id: FromPath[UUID],
        data: JSONBody[ReofferRequest | None] = None,
    ) -> Response[WorkOrderDetail]:
        """An open offer is withdrawn."""
        await queries.visible(session, caller, work_order_id, self.kind)
        await commands.reoffer(session, work_order_id)
        return await self.answer(session, caller, work_order_id)

    @post(
        "/{work_order_id:uuid}/complete",
        operation_id=named("Complete{}"),
        summary="Say that it is done",
        status_code=200,
        opt=needs("work:complete"),
        responses=refuses(IllegalTransition),
    )
    async def complete(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        work_order_id: FromPath[UUID],
        data: JSONBody[CompleteRequest | None] = None,
    ) -> Response[WorkOrderDetail]:
        """For staff and for the assigned driver. The driver is free, and the next work goes out."""
        await queries.visible(session, caller, work_order_id, self.kind)
        done = data or CompleteRequest()
        await commands.complete(
            session,
            work_order_id,
            notes=done.notes,
            completion_photo_key=done.completion_photo_key,
            by_driver=own_only(caller),
        )
        return await self.answer(session, caller, work_order_id)


def provide_filter(
    status: Annotated[StatusToFind | None, QueryParameter(description="`offered`: pending, with an open offer")] = None,
    driver_id: Annotated[UUID | None, QueryParameter(description="The assigned driver")] = None,
    q: Annotated[str | None, QueryParameter(max_length=120, description="In reference, address and premise")] = None,
    from_: Annotated[datetime | None, QueryParameter(name="from", description="Created then or later")] = None,
    to: Annotated[datetime | None, QueryParameter(description="Created before")] = None,
    sort: Annotated[Sort, QueryParameter()] = "-created_at",
) -> queries.WorkFilter:
    return queries.WorkFilter(
        status=status,
        driver_id=driver_id,
        search=q or None,
        since=checked_instant("from", from_),
        until=checked_instant("to", to),
        sort=sort,
    )


FILTER: Final = {"wanted": Provide(provide_filter, sync_to_thread=False)}


def list_handler(permission: str) -> HTTPRouteHandler:
    """`GET` of one kind: of jobs, drivers and customers have a list of their own."""

    @get(
        operation_id=named("List{}s"),
        summary="Newest first, or as sorted",
        opt=needs(permission),
        dependencies=FILTER,
    )
    async def list_kind(
        self: KindController,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        paging: NamedDependency[Page],
        wanted: NamedDependency[queries.WorkFilter],
    ) -> Paged[WorkOrder]:
        return await work_orders_page(session, caller, paging, msgspec.structs.replace(wanted, kind=self.kind))

    return list_kind


async def work_orders_page(
    session: Session, caller: Caller, paging: Page, wanted: queries.WorkFilter
) -> Paged[WorkOrder]:
    rows, total = await queries.work_orders_page(session, caller, wanted, offset=paging.offset, limit=paging.limit)
    return paged([listed(row, caller) for row in rows], total, paging)


class KindController(WorkActions):
    """A kind's own path. A subclass tells the names below which structs they stand for, by `signature_namespace`."""

    cancel = cancel_handler("work:cancel")
    list_kind = list_handler("work:read")

    @patch(
        "/{work_order_id:uuid}",
        operation_id=named("Update{}"),
        summary="Correct it",
        opt=needs("work:edit"),
        responses=refuses(*VERSIONED, IllegalTransition),
    )
    async def update(
        self,
        request: Request[Any, Any, Any],
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        work_order_id: FromPath[UUID],
        data: JSONBody[ChangeWorkRequest],
    ) -> Response[WorkOrderDetail]:
        """Until it has ended, with If-Match. Work that is rescheduled goes out when its new time comes."""
        await queries.visible(session, caller, work_order_id, self.kind)
        await change_details(session, work_order_id, expected_version=expected_version(request), values=_columns(data))
        return await self.answer(session, caller, work_order_id)


def _columns(changes: ChangeWorkRequest) -> dict[str, Any]:
    given = {name: value for name in changes.__struct_fields__ if (value := getattr(changes, name)) is not UNSET}
    if "location" in given:
        location: Location | None = given.pop("location")
        given |= {"lat": location and location.lat, "lng": location and location.lng}
    if "scheduled_for" in given:
        given["scheduled_for"] = checked_instant("scheduled_for", given["scheduled_for"])
    if "required_skills" in given:
        given["required_skills"] = sorted(set(given["required_skills"]))
    return given


class WorkOrderController(WorkActions):
    """All kinds on one board."""

    path = "/work-orders"
    tags = ("Work orders",)
    cancel = cancel_handler("work:cancel")

    @get(
        operation_id="ListWorkOrders",
        summary="Work of every kind, newest first or as sorted",
        opt=needs("work:read"),
        dependencies=FILTER,
    )
    async def list_work_orders(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        paging: NamedDependency[Page],
        wanted: NamedDependency[queries.WorkFilter],
        kind: Annotated[WorkKind | None, QueryParameter()] = None,
    ) -> Paged[WorkOrder]:
        return await work_orders_page(session, caller, paging, msgspec.structs.replace(wanted, kind=kind))
