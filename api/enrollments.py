"""Premise visits by energy specialists: `/enrollments`."""

from __future__ import annotations

from typing import Any, ClassVar, Final

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from msgspec import UNSET, UnsetType

from api.guards import needs
from api.instants import Instant, checked_instant
from api.locations import Location
from api.new_work import made, point_of
from api.work_orders import Address, ChangeWorkRequest, KindController, Line, Notes, Priority, Skills
from api.work_shapes import Enrollment, EnrollmentDetail
from models.identity.permissions import Caller
from models.kit.database import Database, Session
from models.kit.ids import UUID
from models.work.creating import NewWork, create_enrollment
from models.work.rules import WorkKind


class CreateEnrollmentRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`requested_by` is a user of the organization. Without `scheduled_for` it goes out at once."""

    premise_id: Line
    timeslot: Line
    address: Address | None = None
    location: Location | None = None
    required_skills: Skills = []
    priority: Priority = 5
    scheduled_for: Instant | None = None
    requested_by: UUID | None = None
    special_instructions: Notes | None = None


class ChangeEnrollmentRequest(ChangeWorkRequest, forbid_unknown_fields=True, kw_only=True):
    """What is left out stays."""

    timeslot: Line | UnsetType = UNSET
    address: Address | UnsetType | None = UNSET
    location: Location | UnsetType | None = UNSET


#: What the names in KindController stand for here.
_STRUCTS: Final[dict[str, Any]] = {
    "WorkOrder": Enrollment,
    "WorkOrderDetail": EnrollmentDetail,
    "ChangeWorkRequest": ChangeEnrollmentRequest,
}


class EnrollmentController(KindController):
    path = "/enrollments"
    tags = ("Enrollments",)
    kind: ClassVar[WorkKind | None] = WorkKind.ENROLLMENT
    signature_namespace = _STRUCTS

    @post(operation_id="CreateEnrollment", summary="Ask for a premise visit", opt=needs("work:create"))
    async def create(
        self,
        request: Request[Any, Any, Any],
        database: NamedDependency[Database],
        caller: NamedDependency[Caller],
        data: JSONBody[CreateEnrollmentRequest],
    ) -> Response[EnrollmentDetail]:
        """At once; with `Prefer: wait=N` when the first offer is out, or after N seconds (at most 5)."""
        work = NewWork(
            address=data.address,
            location=point_of(data.location),
            required_skills=tuple(data.required_skills),
            priority=data.priority,
            scheduled_for=checked_instant("scheduled_for", data.scheduled_for),
            timeslot=data.timeslot,
            special_instructions=data.special_instructions,
            requested_by_user_id=data.requested_by,
        )

        async def create(session: Session) -> UUID:
            return await create_enrollment(session, caller.organization_id, work, premise_id=data.premise_id)

        return await made(request, database, caller, create)
