"""Reading offers, and why each was made."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, Row, Select, bindparam, func, select

from models.fairness.explain import Explanation, explain, named_by_a_person
from models.fairness.records import read_record
from models.fairness.tables import decisions
from models.kit.database import Session
from models.kit.errors import NotFound
from models.kit.sql import compiled
from models.offers.rules import OfferStatus
from models.offers.tables import offers
from models.organizations.scope import Scope
from models.work.tables import work_orders

#: An offer with what it says of its work order. Built once: the statements below only add to it.
_OFFERS: Final[Select[Any]] = select(
    offers.c.id,
    offers.c.organization_id,
    offers.c.work_order_id,
    offers.c.driver_id,
    offers.c.status,
    offers.c.reason,
    offers.c.mode,
    offers.c.exclusive,
    offers.c.round,
    offers.c.sequence,
    offers.c.offered_at,
    offers.c.expires_at,
    offers.c.responded_at,
    offers.c.reject_reason,
    offers.c.decision_id,
    work_orders.c.kind,
    work_orders.c.reference,
    work_orders.c.address,
    work_orders.c.lat,
    work_orders.c.lng,
    work_orders.c.status.label("work_order_status"),
).join_from(offers, work_orders, work_orders.c.id == offers.c.work_order_id)

#: What accept and reject answer with; complete, so that the hottest path builds no statement.
_OWN: Final = compiled(
    _OFFERS.where(
        offers.c.id == bindparam("offer_id"),
        offers.c.driver_id == bindparam("driver_id"),
    )
)
_OF_WORK_ORDER: Final = _OFFERS.where(offers.c.work_order_id == bindparam("id")).order_by(offers.c.sequence)
_ALL_OF_WORK_ORDER: Final = compiled(_OF_WORK_ORDER)
_OWN_OF_WORK_ORDER: Final = compiled(_OF_WORK_ORDER.where(offers.c.driver_id == bindparam("driver_id")))
#: What a driver may answer now. One that has run out, though nobody has closed it yet, can no longer be accepted.
_OPEN: Final = _OFFERS.where(
    offers.c.driver_id == bindparam("driver_id"),
    offers.c.status == OfferStatus.PENDING.value,
    offers.c.expires_at > func.clock_timestamp(),
)
_CURRENT: Final = _OPEN.where(offers.c.exclusive)
_FEED: Final = _OPEN.where(~offers.c.exclusive).order_by(offers.c.offered_at, offers.c.id)

#: An offer and its decision are of one transaction, and both times are the database's. The bound only has to be wide
#: enough for the waits inside it, and narrow enough to leave one monthly partition to read.
_DECIDED_WITHIN: Final = timedelta(minutes=5)


class OfferFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What to look for; None leaves it open."""

    driver_id: UUID | None = None
    work_order_id: UUID | None = None
    status: OfferStatus | None = None

    def conditions(self, scope: Scope, own: UUID | None) -> list[ColumnElement[bool]]:
        wanted = [scope.covers(offers.c.organization_id)]
        if own is not None:
            wanted.append(offers.c.driver_id == own)
        for column in ("driver_id", "work_order_id", "status"):
            value = getattr(self, column)
            if value is not None:
                wanted.append(offers.c[column] == value)
        return wanted


async def offer(session: Session, scope: Scope, offer_id: UUID, *, own: UUID | None = None) -> Row[Any]:
    """One offer; with `own`, only if it was made to that driver. Raises NotFound, also outside the scope."""
    conditions = [offers.c.id == offer_id, *OfferFilter().conditions(scope, own)]
    row = await session.row(_OFFERS.where(*conditions))
    if row is None:
        raise NotFound("No such offer")
    return row


async def own_offer(session: Session, offer_id: UUID, driver_id: UUID) -> Row[Any]:
    """A driver's offer as their answer left it. Raises NotFound."""
    row = await session.row(_OWN, {"offer_id": offer_id, "driver_id": driver_id})
    if row is None:
        raise NotFound("No such offer")
    return row


async def offers_of_work_order(
    session: Session, work_order_id: UUID, *, driver_id: UUID | None = None
) -> Sequence[Row[Any]]:
    """A work order's offers in the order they were made; with `driver_id`, that driver's only. The caller has found
    the work order within their scope."""
    if driver_id is None:
        return await session.rows(_ALL_OF_WORK_ORDER, {"id": work_order_id})
    return await session.rows(_OWN_OF_WORK_ORDER, {"id": work_order_id, "driver_id": driver_id})


async def offers_page(
    session: Session,
    scope: Scope,
    wanted: OfferFilter,
    *,
    own: UUID | None = None,
    limit: int,
    offset: int = 0,
    before: UUID | None = None,
) -> Sequence[Row[Any]]:
    """Offers by id descending, which is newest first; `before` starts below that id, whatever was added since."""
    conditions = wanted.conditions(scope, own)
    if before is not None:
        conditions.append(offers.c.id < before)
    return await session.rows(_OFFERS.where(*conditions).order_by(offers.c.id.desc()).offset(offset).limit(limit))


async def count_offers(session: Session, scope: Scope, wanted: OfferFilter, *, own: UUID | None = None) -> int:
    count: int = await session.value(select(func.count()).select_from(offers).where(*wanted.conditions(scope, own)))
    return count


async def current_offer(session: Session, driver_id: UUID) -> Row[Any] | None:
    """The exclusive offer that the driver may answer now; a driver has one at most."""
    return await session.row(_CURRENT, {"driver_id": driver_id})


async def feed_of(session: Session, driver_id: UUID) -> Sequence[Row[Any]]:
    """Everything else that the driver may take now, oldest first: broadcasts and routes."""
    return await session.rows(_FEED, {"driver_id": driver_id})


async def explanation_of(session: Session, made: Row[Any]) -> Explanation:
    """Why a row of `offer` went to its driver, from the decision that was stored with it."""
    if made.decision_id is None:
        return named_by_a_person(made.mode)
    record = await session.row(
        select(decisions.c.header, decisions.c.candidates).where(
            decisions.c.id == made.decision_id,
            decisions.c.created_at.between(made.offered_at - _DECIDED_WITHIN, made.offered_at + _DECIDED_WITHIN),
        )
    )
    if record is None or record.header is None or record.candidates is None:
        return _NO_LONGER_KEPT
    header, candidates = read_record(record.header, record.candidates)
    return explain(header, candidates, str(made.driver_id))


#: Retention clears what a decision was made from; its hashes stay, and say nothing in words.
_NO_LONGER_KEPT: Final = Explanation(
    summary="What this decision was made from is no longer kept.",
    position=None,
    candidates_considered=0,
    factors=[],
    excluded=[],
    policy_version=None,
    rule_version=None,
)
