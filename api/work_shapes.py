"""What work orders look like in answers: a struct per kind over what all kinds share, in lists and in detail."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Row

from api.locations import Location, location_of
from api.offers import Offer, offer_of
from models.fairness.explain import ExcludedCount
from models.identity.permissions import Caller
from models.identity.rules import Role
from models.kit.ids import UUID
from models.work import queries
from models.work.rules import Source, WorkKind, WorkOrderStatus


class Work(msgspec.Struct, kw_only=True):
    """What every kind has. A timestamp tells when the state was last entered; `offered_at` when work last went out.
    `waiting_reasons` tells staff why nobody was eligible at the last look."""

    id: UUID
    kind: WorkKind
    reference: str
    status: WorkOrderStatus
    priority: int
    organization_id: UUID
    address: str | None
    location: Location | None
    scheduled_for: datetime | None
    timeslot: str | None
    special_instructions: str | None
    required_skills: list[str]
    requested_by_user_id: UUID | None
    source: Source
    round: int
    waiting_reasons: list[ExcludedCount] | None
    assigned_driver_id: UUID | None
    version: int
    created_at: datetime
    updated_at: datetime
    offered_at: datetime | None
    assigned_at: datetime | None
    en_route_at: datetime | None
    arrived_at: datetime | None
    in_progress_at: datetime | None
    completed_at: datetime | None
    cancelled_at: datetime | None
    expired_at: datetime | None
    disputed_at: datetime | None
    cancellation_reason: str | None
    completion_notes: str | None
    completion_photo_key: str | None


class WorkOrderEvent(msgspec.Struct, kw_only=True):
    """One step of the history. `occurred_at` is the device's time, `created_at` ours. Customers get the new status and
    when; so does a driver, of what another driver did."""

    new_status: WorkOrderStatus
    created_at: datetime
    id: UUID | UnsetType = UNSET
    previous_status: WorkOrderStatus | UnsetType | None = UNSET
    changed_by_user_id: UUID | UnsetType | None = UNSET
    driver_id: UUID | UnsetType | None = UNSET
    location: Location | UnsetType | None = UNSET
    notes: str | UnsetType | None = UNSET
    occurred_at: datetime | UnsetType | None = UNSET


class Enrollment(Work, kw_only=True):
    """A premise visit by an energy specialist."""

    premise_id: str
    meter_id: UUID | None


class Job(Work, kw_only=True):
    """Site service for a customer. Prices are in cents of the organization's currency."""

    customer_id: UUID | None
    service_location_id: UUID | None
    service_type: str | None
    driveway_tier_id: UUID | None
    quoted_price_cents: int | None
    final_price_cents: int | None
    discount_cents: int
    pricing_model: str | None


class Place(msgspec.Struct):
    """An end of a delivery."""

    address: str
    location: Location


class Order(Work, kw_only=True):
    """A delivery. Its own address and location are the pick-up's. Nobody may take it after `expires_at`."""

    pickup: Place
    dropoff: Place
    expires_at: datetime
    notes: str | None


class RouteStop(msgspec.Struct):
    """A stop, in the order of the list."""

    address: str
    location: Location | None
    notes: str | None


class Route(Work, kw_only=True):
    """A planned assignment of several stops, made for one driver. Its own address is the first stop's."""

    driver_id: UUID
    stops: list[RouteStop]
    notes: str | None


class EnrollmentDetail(Enrollment, kw_only=True):
    """With its offers in order (a driver's own, a customer none) and its history."""

    offers: list[Offer]
    events: list[WorkOrderEvent]


class JobDetail(Job, kw_only=True):
    """With its offers in order (a driver's own, a customer none) and its history."""

    offers: list[Offer]
    events: list[WorkOrderEvent]


class OrderDetail(Order, kw_only=True):
    """With its offers in order (a driver's own, a customer none) and its history."""

    offers: list[Offer]
    events: list[WorkOrderEvent]


class RouteDetail(Route, kw_only=True):
    """With its offers in order (a driver's own, a customer none) and its history."""

    offers: list[Offer]
    events: list[WorkOrderEvent]


WorkOrder: TypeAlias = Enrollment | Job | Order | Route
WorkOrderDetail: TypeAlias = EnrollmentDetail | JobDetail | OrderDetail | RouteDetail

_LISTED: Final[dict[WorkKind, type[WorkOrder]]] = {
    WorkKind.ENROLLMENT: Enrollment,
    WorkKind.JOB: Job,
    WorkKind.ORDER: Order,
    WorkKind.ROUTE: Route,
}
_DETAILED: Final[dict[WorkKind, type[WorkOrderDetail]]] = {
    WorkKind.ENROLLMENT: EnrollmentDetail,
    WorkKind.JOB: JobDetail,
    WorkKind.ORDER: OrderDetail,
    WorkKind.ROUTE: RouteDetail,
}

#: Fields that show their column as it is; `_values` makes the others.
_PLAIN_ENROLLMENT: Final = ("premise_id", "meter_id")
_PLAIN_JOB: Final = (
    "customer_id", "service_location_id", "service_type", "driveway_tier_id", "quoted_price_cents",
    "final_price_cents", "discount_cents", "pricing_model",
)  # fmt: skip
_PLAIN: Final = tuple(
    name for name in Work.__struct_fields__ if name not in {"kind", "status", "location", "source", "waiting_reasons"}
)


def listed(row: Row[Any], caller: Caller) -> WorkOrder:
    """A row of models/work/queries.py as lists show it."""
    return _LISTED[WorkKind(row.kind)](**_values(row, caller))


def detailed(row: Row[Any], offers: Sequence[Row[Any]], events: Sequence[Row[Any]], caller: Caller) -> WorkOrderDetail:
    """A row of models/work/queries.py with its offers and events, as far as the caller may see them."""
    return _DETAILED[WorkKind(row.kind)](
        **_values(row, caller),
        offers=[offer_of(offer) for offer in offers],
        events=[event_of(event, caller) for event in events],
    )


def event_of(row: Row[Any], caller: Caller) -> WorkOrderEvent:
    """A row of `events_of` as this caller may see it."""
    own = caller.role is Role.DRIVER and row.driver_id in (None, caller.driver_id)
    status = WorkOrderStatus(row.new_status)
    if not caller.is_staff and not own:
        return WorkOrderEvent(new_status=status, created_at=row.created_at)
    return WorkOrderEvent(
        new_status=status,
        created_at=row.created_at,
        id=row.id,
        previous_status=WorkOrderStatus(row.previous_status) if row.previous_status else None,
        changed_by_user_id=row.changed_by_user_id,
        driver_id=row.driver_id,
        location=location_of(row.lat, row.lng),
        notes=row.notes,
        occurred_at=row.occurred_at,
    )


def _values(row: Row[Any], caller: Caller) -> dict[str, Any]:
    kind = WorkKind(row.kind)
    shared = {name: getattr(row, name) for name in _PLAIN} | {
        "kind": kind,
        "status": WorkOrderStatus(row.status),
        "location": location_of(row.lat, row.lng),
        "source": Source(row.source),
        "waiting_reasons": _reasons(row.nobody_reasons) if caller.is_staff else None,
    }
    if kind is WorkKind.ENROLLMENT:
        return shared | {name: getattr(row, name) for name in _PLAIN_ENROLLMENT}
    if kind is WorkKind.JOB:
        return shared | {name: getattr(row, name) for name in _PLAIN_JOB}
    if kind is WorkKind.ORDER:
        return shared | {
            "pickup": Place(row.pickup_address, Location(row.pickup_lat, row.pickup_lng)),
            "dropoff": Place(row.dropoff_address, Location(row.dropoff_lat, row.dropoff_lng)),
            "expires_at": row.expires_at,
            "notes": row.order_notes,
        }
    return shared | {
        "driver_id": row.route_driver_id,
        "stops": [
            RouteStop(stop["address"], location_of(stop["lat"], stop["lng"]), stop["notes"])
            for stop in queries.stops_of(row)
        ],
        "notes": row.route_notes,
    }


def _reasons(stored: str | None) -> list[ExcludedCount] | None:
    """`busy:3,too_far:1`, as the last look left it; a reason that is about no driver in particular has no number."""
    if not stored:
        return None
    pairs = (part.partition(":") for part in stored.split(","))
    return [ExcludedCount(reason=reason, count=int(count or 0)) for reason, _, count in pairs]
