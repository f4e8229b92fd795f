"""Offers, why they were made, and their answers: `/offers`, `/orders/feed`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from sqlalchemy import Row

from api.dependencies import Feed, Page, decode_cursor, feed
from api.guards import needs
from api.locations import Location, location_of
from api.openapi import refuses
from models.drivers.rules import DriverBusy
from models.fairness.explain import ExcludedCount, Factor
from models.identity.permissions import Caller
from models.kit.database import Session
from models.kit.errors import Forbidden
from models.kit.ids import UUID
from models.offers import queries
from models.offers.commands import accept, reject
from models.offers.rules import (
    OfferAlreadyAccepted,
    OfferAlreadyRejected,
    OfferExpired,
    OfferMode,
    OfferReason,
    OfferStatus,
    OfferTaken,
)
from models.work.rules import WorkKind, WorkOrderCancelled, WorkOrderStatus

_TOO_LATE: Final = (OfferTaken, OfferExpired, WorkOrderCancelled)


class OfferedWork(msgspec.Struct):
    """What an offer says of its work order."""

    kind: WorkKind
    reference: str
    address: str | None
    location: Location | None
    status: WorkOrderStatus


class Offer(msgspec.Struct):
    """An invitation to one driver to take one work order. `reason` tells why it expired, `reject_reason` is in the
    driver's words; `exclusive` means that nobody else is asked meanwhile; `sequence` counts from 1 in the work order.
    """

    id: UUID
    work_order_id: UUID
    work_order: OfferedWork
    driver_id: UUID
    status: OfferStatus
    reason: OfferReason | None
    mode: OfferMode
    exclusive: bool
    round: int
    sequence: int
    offered_at: datetime
    expires_at: datetime
    responded_at: datetime | None
    reject_reason: str | None


class OfferFeed(msgspec.Struct):
    """What may be taken now, oldest first."""

    data: list[Offer]


class OfferExplanation(msgspec.Struct):
    """Why this driver, in words and in the stored numbers. `position` counts from 1 among the eligible; it and the
    versions are null for a driver whom a person named, and where the decision's content is no longer kept."""

    offer_id: UUID
    summary: str
    position: int | None
    candidates_considered: int
    factors: list[Factor]
    excluded: list[ExcludedCount]
    policy_version: int | None
    rule_version: int | None


class AcceptRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Nothing to say; the body may be left out."""


class RejectRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body may be left out."""

    reason: Annotated[str, msgspec.Meta(max_length=500, examples=["Too far away"])] | None = None


class OfferController(Controller):
    path = "/offers"
    tags = ("Offers",)

    @get(operation_id="ListOffers", summary="Offers, newest first", opt=needs("offer:read"))
    async def list_offers(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        paging: NamedDependency[Page],
        driver_id: Annotated[UUID | None, QueryParameter()] = None,
        work_order_id: Annotated[UUID | None, QueryParameter()] = None,
        status: Annotated[OfferStatus | None, QueryParameter()] = None,
        cursor: Annotated[str | None, QueryParameter(max_length=60, description="`nextCursor` of a page")] = None,
    ) -> Feed[Offer]:
        """A driver sees their own."""
        own = own_only(caller)
        wanted = queries.OfferFilter(driver_id=driver_id, work_order_id=work_order_id, status=status)
        before = decode_cursor(cursor)
        total = None if before else await queries.count_offers(session, caller.scope, wanted, own=own)
        rows = await queries.offers_page(
            session,
            caller.scope,
            wanted,
            own=own,
            limit=paging.limit + 1,
            offset=0 if before else paging.offset,
            before=before,
        )
        return feed([offer_of(row) for row in rows], [row.id for row in rows], page=paging, total=total)

    @get("/{offer_id:uuid}", operation_id="GetOffer", summary="One offer", opt=needs("offer:read"))
    async def get_offer(
        self, session: NamedDependency[Session], caller: NamedDependency[Caller], offer_id: FromPath[UUID]
    ) -> Offer:
        return offer_of(await queries.offer(session, caller.scope, offer_id, own=own_only(caller)))

    @get(
        "/{offer_id:uuid}/explanation",
        operation_id="ExplainOffer",
        summary="Why it was made to this driver",
        opt=needs("offer:read"),
    )
    async def explain_offer(
        self, session: NamedDependency[Session], caller: NamedDependency[Caller], offer_id: FromPath[UUID]
    ) -> OfferExplanation:
        """For the driver and for staff. Every number comes from the decision as it was stored."""
        row = await queries.offer(session, caller.scope, offer_id, own=own_only(caller))
        explanation = await queries.explanation_of(session, row)
        return OfferExplanation(offer_id=offer_id, **msgspec.structs.asdict(explanation))

    @post(
        "/{offer_id:uuid}/accept",
        operation_id="AcceptOffer",
        summary="Take the work",
        status_code=200,
        opt=needs("offer:respond"),
        responses=refuses(*_TOO_LATE, OfferAlreadyRejected, DriverBusy),
    )
    async def accept_offer(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        offer_id: FromPath[UUID],
        data: JSONBody[AcceptRequest | None] = None,
    ) -> Offer:
        """All or nothing, in one transaction. Repeating one's own accept gives the same answer again."""
        driver_id = own_driver(caller)
        await accept(session, offer_id, driver_id)
        return await _as_it_now_is(session, offer_id, driver_id)

    @post(
        "/{offer_id:uuid}/reject",
        operation_id="RejectOffer",
        summary="Pass on the work",
        status_code=200,
        opt=needs("offer:respond"),
        responses=refuses(*_TOO_LATE, OfferAlreadyAccepted),
    )
    async def reject_offer(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        offer_id: FromPath[UUID],
        data: JSONBody[RejectRequest | None] = None,
    ) -> Offer:
        """The work goes to the next driver. A third rejection in a row costs the place in line."""
        driver_id = own_driver(caller)
        await reject(session, offer_id, driver_id, data.reason if data else None)
        return await _as_it_now_is(session, offer_id, driver_id)


@get(
    "/orders/feed",
    operation_id="ListOrdersFeed",
    summary="What the driver may take now",
    tags=["Offers"],
    opt=needs("driver:self"),
)
async def orders_feed(session: NamedDependency[Session], caller: NamedDependency[Caller]) -> OfferFeed:
    """Every open offer but the exclusive one, which is `GET /drivers/me/offers/current`."""
    return OfferFeed([offer_of(row) for row in await queries.feed_of(session, own_driver(caller))])


def offer_of(row: Row[Any]) -> Offer:
    """A row of models/offers/queries.py as the API shows it."""
    return Offer(
        id=row.id,
        work_order_id=row.work_order_id,
        work_order=OfferedWork(
            kind=WorkKind(row.kind),
            reference=row.reference,
            address=row.address,
            location=location_of(row.lat, row.lng),
            status=WorkOrderStatus(row.work_order_status),
        ),
        driver_id=row.driver_id,
        status=OfferStatus(row.status),
        reason=OfferReason(row.reason) if row.reason else None,
        mode=OfferMode(row.mode),
        exclusive=row.exclusive,
        round=row.round,
        sequence=row.sequence,
        offered_at=row.offered_at,
        expires_at=row.expires_at,
        responded_at=row.responded_at,
        reject_reason=row.reject_reason,
    )


async def _as_it_now_is(session: Session, offer_id: UUID, driver_id: UUID) -> Offer:
    # Written in one go, wakes included, instead of once for this read and once more at the commit.
    await session.flush()
    return offer_of(await queries.own_offer(session, offer_id, driver_id))


def own_driver(caller: Caller) -> UUID:
    """The caller's id as a driver. Raises Forbidden for an account that has no driver profile."""
    if caller.driver_id is None:
        raise Forbidden("This account has no driver profile")
    return caller.driver_id


def own_only(caller: Caller) -> UUID | None:
    """Staff see every driver's rows (None); anybody else their own as a driver. Raises Forbidden without a profile."""
    return None if caller.is_staff else own_driver(caller)
