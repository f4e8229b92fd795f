"""Reading work orders: the board, one of them, and its history. What each caller may see is decided here."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, Row, and_, bindparam, exists, false, func, or_, select

from models.identity.permissions import Caller
from models.identity.rules import Role
from models.kit.database import Session
from models.kit.errors import NotFound
from models.kit.sql import Sql, compiled
from models.offers.rules import OfferStatus
from models.offers.tables import offers
from models.work.rules import WorkKind, WorkOrderStatus
from models.work.tables import enrollments, jobs, orders, route_stops, routes, work_order_events, work_orders

_OPEN_OFFER: Final = exists().where(
    offers.c.work_order_id == work_orders.c.id, offers.c.status == OfferStatus.PENDING.value
)

#: `?status=offered`: work that waits for a driver's answer. Not a state, but a column of every dispatcher's board.
OFFERED: Final = "offered"
#: What `?sort=` takes. The id breaks ties, and has the age of its row in it.
SORTS: Final[dict[str, tuple[ColumnElement[Any], ...]]] = {
    "created_at": (work_orders.c.created_at, work_orders.c.id),
    "-created_at": (work_orders.c.created_at.desc(), work_orders.c.id.desc()),
    "priority": (work_orders.c.priority, work_orders.c.created_at, work_orders.c.id),
    "-priority": (work_orders.c.priority.desc(), work_orders.c.created_at, work_orders.c.id),
    "scheduled_for": (work_orders.c.scheduled_for.asc().nulls_last(), work_orders.c.created_at, work_orders.c.id),
    "reference": (work_orders.c.reference, work_orders.c.id),
}

# As one value of the route's row, so that a page of routes costs no query for each.
_STOPS: Final = (
    select(
        func.jsonb_agg(
            func.jsonb_build_object(
                "address", route_stops.c.address, "lat", route_stops.c.lat, "lng", route_stops.c.lng,
                "notes", route_stops.c.notes,
            ).op("ORDER BY")(route_stops.c.position)
        )
    )
    .where(route_stops.c.work_order_id == work_orders.c.id)
    .scalar_subquery()
)  # fmt: skip

_WITH_SIDES: Final = (
    work_orders.outerjoin(enrollments, enrollments.c.work_order_id == work_orders.c.id)
    .outerjoin(jobs, jobs.c.work_order_id == work_orders.c.id)
    .outerjoin(orders, orders.c.work_order_id == work_orders.c.id)
    .outerjoin(routes, routes.c.work_order_id == work_orders.c.id)
)
_SIDE_KEYS: Final = frozenset({"work_order_id", "organization_id"})
_COLUMNS: Final = (
    *work_orders.c,
    *(
        column
        for side in (enrollments, jobs, orders)
        for column in side.c
        if column.name not in _SIDE_KEYS and column.name != "notes"
    ),
    orders.c.notes.label("order_notes"),
    routes.c.driver_id.label("route_driver_id"),
    routes.c.notes.label("route_notes"),
    _STOPS.label("stops"),
)

_EVENTS: Final = compiled(
    select(work_order_events)
    .where(
        work_order_events.c.work_order_id == bindparam("id"),
        # True of every event; it spares the partitions of the months before.
        work_order_events.c.created_at >= bindparam("since"),
    )
    .order_by(work_order_events.c.created_at, work_order_events.c.id)
)
_PROGRESS: Final = Sql("SELECT offered_at IS NOT NULL OR status <> 'pending' FROM work_orders WHERE id = :id")


class WorkFilter(msgspec.Struct, frozen=True, kw_only=True):
    """`status` is a state or OFFERED, `statuses` are states of which any will do, `since` (included) and `until` (not)
    are about its creation, `search` is looked for in reference, address and premise; `sort` is a key of SORTS."""

    kind: WorkKind | None = None
    status: str | None = None
    statuses: frozenset[WorkOrderStatus] | None = None
    driver_id: UUID | None = None
    search: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    sort: str = "-created_at"


async def work_orders_page(
    session: Session, caller: Caller, wanted: WorkFilter, *, offset: int = 0, limit: int = 20
) -> tuple[Sequence[Row[Any]], int]:
    """Work orders with their kinds' own columns, and how many there are in all."""
    found = [seen_by(caller), *_conditions(wanted)]
    # Counting needs a side table only where the search looks into it.
    counted = work_orders if wanted.search is None else _WITH_SIDES
    total = await session.value(select(func.count()).select_from(counted).where(*found))
    rows = await session.rows(
        select(*_COLUMNS)
        .select_from(_WITH_SIDES)
        .where(*found)
        .order_by(*SORTS[wanted.sort])
        .offset(offset)
        .limit(limit)
    )
    return rows, total


async def work_order(session: Session, caller: Caller, work_order_id: UUID, kind: WorkKind | None = None) -> Row[Any]:
    """One work order with its kind's own columns. Raises NotFound as `visible` does."""
    row = await session.row(_one(caller, kind), {"id": work_order_id})
    if row is None:
        raise NotFound("No such work order")
    return row


async def visible(session: Session, caller: Caller, work_order_id: UUID, kind: WorkKind | None = None) -> None:
    """The check before a command, which locks by id alone. Raises NotFound for work of another tenant, of another
    kind, or that this driver or customer has nothing to do with."""
    if await session.row(_whether_one(caller, kind), {"id": work_order_id}) is None:
        raise NotFound("No such work order")


async def events_of(session: Session, work_order: Row[Any]) -> Sequence[Row[Any]]:
    """The history of a row of `work_order`, oldest first."""
    return await session.rows(_EVENTS, {"id": work_order.id, "since": work_order.created_at})


def stops_of(work_order: Row[Any]) -> list[dict[str, Any]]:
    """A route's stops in order: `{address, lat, lng, notes}` each."""
    stops: list[dict[str, Any]] | str | None = work_order.stops
    # A compiled query gives jsonb as its text.
    return msgspec.json.decode(stops) if isinstance(stops, str) else stops or []


async def is_under_way(session: Session, work_order_id: UUID) -> bool:
    """Has its first offer been out, or was it assigned or ended without one?"""
    return bool(await session.value(_PROGRESS, {"id": work_order_id}))


def seen_by(caller: Caller) -> ColumnElement[bool]:
    """Staff see the work of their scope; a driver what was offered or assigned to them; a customer what they asked
    for or what is done for them."""
    mine = _of_party(caller)
    in_scope = caller.scope.covers(work_orders.c.organization_id)
    return in_scope if mine is None else and_(in_scope, mine)


def _of_party(caller: Caller) -> ColumnElement[bool] | None:
    if caller.is_staff:
        return None
    if caller.role is Role.DRIVER and caller.driver_id is not None:
        offered = exists().where(offers.c.work_order_id == work_orders.c.id, offers.c.driver_id == caller.driver_id)
        return or_(work_orders.c.assigned_driver_id == caller.driver_id, offered)
    if caller.role is Role.CUSTOMER:
        # A query of its own, so that it can use the customer's index whatever tables surround it.
        served = select(jobs.c.work_order_id).where(jobs.c.customer_id == caller.user_id).correlate(None)
        return or_(work_orders.c.requested_by_user_id == caller.user_id, work_orders.c.id.in_(served))
    return false()


# Building these takes longer than running them, and one person asks for one piece of work after the other.
@lru_cache(maxsize=256)
def _one(caller: Caller, kind: WorkKind | None) -> Sql:
    return compiled(select(*_COLUMNS).select_from(_WITH_SIDES).where(*_this(caller, kind)))


@lru_cache(maxsize=256)
def _whether_one(caller: Caller, kind: WorkKind | None) -> Sql:
    return compiled(select(work_orders.c.id).where(*_this(caller, kind)))


def _this(caller: Caller, kind: WorkKind | None) -> list[ColumnElement[bool]]:
    found = [work_orders.c.id == bindparam("id"), seen_by(caller)]
    if kind is not None:
        found.append(work_orders.c.kind == kind.value)
    return found


def _conditions(wanted: WorkFilter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if wanted.kind is not None:
        found.append(work_orders.c.kind == wanted.kind.value)
    if wanted.status == OFFERED:
        found.append(and_(work_orders.c.status == WorkOrderStatus.PENDING.value, _OPEN_OFFER))
    elif wanted.status is not None:
        found.append(work_orders.c.status == wanted.status)
    if wanted.statuses is not None:
        found.append(work_orders.c.status.in_(sorted(wanted.statuses)))
    if wanted.driver_id is not None:
        found.append(work_orders.c.assigned_driver_id == wanted.driver_id)
    if wanted.search:
        found.append(
            or_(
                work_orders.c.reference.icontains(wanted.search, autoescape=True),
                work_orders.c.address.icontains(wanted.search, autoescape=True),
                enrollments.c.premise_id.icontains(wanted.search, autoescape=True),
            )
        )
    if wanted.since is not None:
        found.append(work_orders.c.created_at >= wanted.since)
    if wanted.until is not None:
        found.append(work_orders.c.created_at < wanted.until)
    return found
