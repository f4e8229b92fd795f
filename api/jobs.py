"""Site service for customers, such as plowing: `/jobs`."""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, UnsetType

from api.guards import needs
from api.instants import Instant, checked_instant
from api.locations import Location
from api.new_work import made, point_of
from api.openapi import refuses
from api.work_orders import (
    Address,
    ChangeWorkRequest,
    KindController,
    Line,
    Notes,
    Priority,
    Skills,
    cancel_handler,
    list_handler,
)
from api.work_shapes import Job, JobDetail, WorkOrderDetail, WorkOrderEvent, event_of
from models.identity.permissions import Caller
from models.identity.rules import Role
from models.kit.database import Database, Session
from models.kit.errors import Forbidden, ValidationFailed
from models.kit.ids import UUID
from models.work import commands, queries
from models.work.creating import NewWork, create_job
from models.work.rules import IllegalTransition, Source, WorkKind


class CreateJobRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A place of the customer's, or `address` and `location`. Customers order for themselves, and leave priority and
    dispatch to the staff; `dispatch: manual` offers it to nobody until a driver is named."""

    customer_id: UUID | None = None
    service_location_id: UUID | None = None
    address: Address | None = None
    location: Location | None = None
    service_type: Line | None = None
    driveway_tier_id: UUID | None = None
    scheduled_for: Instant | None = None
    special_instructions: Notes | None = None
    required_skills: Skills = []
    priority: Priority = 5
    dispatch: Literal["auto", "manual"] = "auto"


class ChangeJobRequest(ChangeWorkRequest, forbid_unknown_fields=True, kw_only=True):
    """What is left out stays."""

    address: Address | UnsetType = UNSET
    location: Location | UnsetType = UNSET


class StatusHistory(msgspec.Struct):
    """The steps, oldest first."""

    data: list[WorkOrderEvent]


#: What the names in KindController stand for here.
_STRUCTS: Final[dict[str, Any]] = {
    "WorkOrder": Job,
    "WorkOrderDetail": JobDetail,
    "ChangeWorkRequest": ChangeJobRequest,
}


class JobController(KindController):
    path = "/jobs"
    tags = ("Jobs",)
    kind: ClassVar[WorkKind | None] = WorkKind.JOB
    signature_namespace = _STRUCTS
    cancel = cancel_handler("job:cancel")
    list_kind = list_handler("job:read")

    @post(operation_id="CreateJob", summary="Order a service", opt=needs("job:create"))
    async def create(
        self,
        request: Request[Any, Any, Any],
        database: NamedDependency[Database],
        caller: NamedDependency[Caller],
        data: JSONBody[CreateJobRequest],
    ) -> Response[JobDetail]:
        """At once; with `Prefer: wait=N` when the first offer is out, or after N seconds (at most 5)."""
        _check_new_job(data, caller)
        by_customer = caller.role is Role.CUSTOMER
        customer_id = caller.user_id if by_customer else data.customer_id
        work = NewWork(
            address=data.address,
            location=point_of(data.location),
            required_skills=tuple(data.required_skills),
            priority=data.priority,
            scheduled_for=checked_instant("scheduled_for", data.scheduled_for),
            special_instructions=data.special_instructions,
            requested_by_user_id=customer_id,
            source=Source.CUSTOMER if by_customer else Source.DISPATCHER,
            manual=data.dispatch == "manual",
        )

        async def create(session: Session) -> UUID:
            return await create_job(
                session, caller.organization_id, work, customer_id=customer_id, service_type=data.service_type
            )

        return await made(request, database, caller, create)

    @delete(
        "/{work_order_id:uuid}",
        operation_id="DeleteJob",
        summary="Call it off",
        status_code=200,
        opt=needs("job:cancel"),
        responses=refuses(IllegalTransition),
    )
    async def delete_job(
        self, session: NamedDependency[Session], caller: NamedDependency[Caller], work_order_id: FromPath[UUID]
    ) -> Response[WorkOrderDetail]:
        """As `POST ../cancel` without a reason. The job stays, and answers with status `cancelled`."""
        await queries.visible(session, caller, work_order_id, self.kind)
        await commands.cancel(session, work_order_id, None)
        return await self.answer(session, caller, work_order_id)

    @get(
        "/{work_order_id:uuid}/status-history",
        operation_id="ListJobStatusHistory",
        summary="The job's steps",
        opt=needs("job:read"),
    )
    async def list_status_history(
        self, session: NamedDependency[Session], caller: NamedDependency[Caller], work_order_id: FromPath[UUID]
    ) -> StatusHistory:
        """A customer sees each status and when it came."""
        row = await queries.work_order(session, caller, work_order_id, self.kind)
        return StatusHistory([event_of(event, caller) for event in await queries.events_of(session, row)])


def _check_new_job(data: CreateJobRequest, caller: Caller) -> None:
    """Raises Forbidden for a job in another customer's name, ValidationFailed for what does not fit together."""
    errors: dict[str, list[str]] = {}
    if caller.role is Role.CUSTOMER:
        if data.customer_id not in (None, caller.user_id):
            raise Forbidden("Customers order for themselves")
        # Otherwise whoever knows of it would go before everyone who does not.
        errors = {
            name: ["Only staff set this"]
            for name, given in (("priority", data.priority != 5), ("dispatch", data.dispatch != "auto"))
            if given
        }
    # Customers' places and price tiers have no rows yet that these could name.
    for name in ("service_location_id", "driveway_tier_id"):
        if getattr(data, name) is not None:
            errors[name] = ["does not exist"]
    if data.service_location_id is None:
        errors |= {
            name: ["Required without service_location_id"]
            for name in ("address", "location")
            if getattr(data, name) is None
        }
    if errors:
        raise ValidationFailed(errors)
