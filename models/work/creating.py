"""New work orders: the row, its side row, its first event and audit row, and the wake that starts its workflow."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from models.audit.commands import record
from models.kit.database import Session
from models.kit.errors import ValidationFailed
from models.kit.ids import new_id
from models.kit.sql import Sql
from models.organizations.references import next_reference
from models.policies.queries import policy_in_force
from models.policies.rules import ORDER_EXPIRES_S, Mode
from models.work.journal import note_event
from models.work.rules import REFERENCE_PREFIX, Source, WorkKind, WorkOrderStatus
from models.work.tables import enrollments, jobs, orders, route_stops, routes, work_orders
from models.work.wakes import Wake, raise_wake


class Point(msgspec.Struct, frozen=True):
    """WGS 84 degrees."""

    lat: float
    lng: float


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    address: str
    location: Point | None = None
    notes: str | None = None


class NewWork(msgspec.Struct, frozen=True, kw_only=True):
    """What every kind is created from. `dispatch` overrides the policy's mode with `manual`."""

    address: str | None = None
    location: Point | None = None
    required_skills: tuple[str, ...] = ()
    required_vehicle_type: str | None = None
    priority: int = 5
    scheduled_for: datetime | None = None
    timeslot: str | None = None
    special_instructions: str | None = None
    requested_by_user_id: UUID | None = None
    source: Source = Source.DISPATCHER
    manual: bool = False


_IN_ORGANIZATION = Sql(
    "SELECT EXISTS (SELECT FROM users WHERE id = :id AND organization_id = :organization_id AND deleted_at IS NULL)"
)
_DRIVER_IN_ORGANIZATION = Sql(
    "SELECT EXISTS (SELECT FROM driver_profiles WHERE id = :id AND organization_id = :organization_id)"
)


async def create_enrollment(
    session: Session, organization_id: UUID, work: NewWork, *, premise_id: str, meter_id: UUID | None = None
) -> UUID:
    """Raises ValidationFailed."""
    work_order_id, _ = await _create(session, organization_id, WorkKind.ENROLLMENT, work)
    _side(session, enrollments, work_order_id, organization_id, premise_id=premise_id, meter_id=meter_id)
    return work_order_id


async def create_job(
    session: Session,
    organization_id: UUID,
    work: NewWork,
    *,
    customer_id: UUID | None = None,
    service_location_id: UUID | None = None,
    service_type: str | None = None,
    driveway_tier_id: UUID | None = None,
) -> UUID:
    """Raises ValidationFailed."""
    if customer_id is not None:
        await _must_belong(session, _IN_ORGANIZATION, organization_id, customer_id, "customer_id")
    work_order_id, _ = await _create(session, organization_id, WorkKind.JOB, work)
    _side(
        session, jobs, work_order_id, organization_id, customer_id=customer_id,
        service_location_id=service_location_id, service_type=service_type, driveway_tier_id=driveway_tier_id,
    )  # fmt: skip
    return work_order_id


async def create_order(
    session: Session,
    organization_id: UUID,
    work: NewWork,
    *,
    pickup: Stop,
    dropoff: Stop,
    expires_in_s: int | None = None,
    notes: str | None = None,
) -> UUID:
    """The work's own place is the pick-up. Raises ValidationFailed."""
    assert pickup.location is not None
    assert dropoff.location is not None
    work = msgspec.structs.replace(work, address=pickup.address, location=pickup.location)
    work_order_id, now = await _create(session, organization_id, WorkKind.ORDER, work)
    starts = max(now, work.scheduled_for or now)
    _side(
        session, orders, work_order_id, organization_id,
        pickup_address=pickup.address, pickup_lat=pickup.location.lat, pickup_lng=pickup.location.lng,
        dropoff_address=dropoff.address, dropoff_lat=dropoff.location.lat, dropoff_lng=dropoff.location.lng,
        expires_at=starts + timedelta(seconds=expires_in_s or ORDER_EXPIRES_S), notes=notes,
    )  # fmt: skip
    return work_order_id


async def create_route(
    session: Session,
    organization_id: UUID,
    work: NewWork,
    *,
    driver_id: UUID,
    stops: list[Stop],
    notes: str | None = None,
) -> UUID:
    """A route is offered to its driver by its workflow. Raises ValidationFailed."""
    await _must_belong(session, _DRIVER_IN_ORGANIZATION, organization_id, driver_id, "driver_id")
    first = stops[0]
    work = msgspec.structs.replace(work, address=first.address, location=first.location)
    work_order_id, _ = await _create(session, organization_id, WorkKind.ROUTE, work)
    _side(session, routes, work_order_id, organization_id, driver_id=driver_id, notes=notes)
    for position, stop in enumerate(stops, start=1):
        session.stage(
            route_stops,
            work_order_id=work_order_id,
            position=position,
            organization_id=organization_id,
            address=stop.address,
            lat=stop.location.lat if stop.location else None,
            lng=stop.location.lng if stop.location else None,
            notes=stop.notes,
        )
    return work_order_id


async def _create(session: Session, organization_id: UUID, kind: WorkKind, work: NewWork) -> tuple[UUID, datetime]:
    current, now = await policy_in_force(session, organization_id, kind)
    if work.requested_by_user_id is not None and work.requested_by_user_id != session.actor.user_id:
        await _must_belong(session, _IN_ORGANIZATION, organization_id, work.requested_by_user_id, "requested_by")
    starts = now
    if work.scheduled_for is not None:
        starts = max(now, work.scheduled_for - timedelta(seconds=current.policy.lead_time_s))
    manual = work.manual or current.policy.mode is Mode.MANUAL
    work_order_id = new_id()
    reference = await next_reference(session, organization_id, REFERENCE_PREFIX[kind])
    session.stage(
        work_orders,
        id=work_order_id,
        organization_id=organization_id,
        kind=kind,
        reference=reference,
        priority=work.priority,
        required_skills=sorted(set(work.required_skills)),
        required_vehicle_type=work.required_vehicle_type,
        address=work.address,
        lat=work.location.lat if work.location else None,
        lng=work.location.lng if work.location else None,
        scheduled_for=work.scheduled_for,
        timeslot=work.timeslot,
        special_instructions=work.special_instructions,
        requested_by_user_id=work.requested_by_user_id,
        source=work.source,
        policy_id=current.id,
        manual=manual,
        waiting_since=now,
        match_from=None if manual else starts,
        escalate_from=starts,
        created_at=now,
        updated_at=now,
    )
    note_event(session, organization_id, work_order_id, None, WorkOrderStatus.PENDING)
    record(
        session, f"{kind.value}_CREATED".upper(), organization_id=organization_id, entity_type="work_order",
        entity_id=work_order_id, reference=reference, source=work.source,
    )  # fmt: skip
    raise_wake(session, work_order_id, organization_id, Wake.CREATED, due_at=starts if starts > now else None)
    return work_order_id, now


def _side(session: Session, table: Any, work_order_id: UUID, organization_id: UUID, **values: Any) -> None:
    session.stage(table, work_order_id=work_order_id, organization_id=organization_id, **values)


async def _must_belong(session: Session, statement: Any, organization_id: UUID, reference_id: UUID, field: str) -> None:
    if not await session.value(statement, {"id": reference_id, "organization_id": organization_id}):
        raise ValidationFailed({field: ["does not exist in this organization"]})
