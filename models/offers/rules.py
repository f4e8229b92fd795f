"""Offers: states, modes, and what answering one may be refused with."""

from __future__ import annotations

from enum import StrEnum

from models.kit.errors import Refusal
from models.work.rules import WorkOrderCancelled


class OfferStatus(StrEnum):
    PENDING = "pending"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    EXPIRED = "expired"


class OfferMode(StrEnum):
    SEQUENTIAL = "sequential"
    BROADCAST = "broadcast"
    MANUAL = "manual"
    #: Assigned by the system after a broadcast, and by a person; accepted from the start.
    AUTO = "auto"
    FORCE = "force"


class OfferReason(StrEnum):
    """Why an offer expired."""

    TIMEOUT = "timeout"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    DRIVER_UNAVAILABLE = "driver_unavailable"


class EndedBy(StrEnum):
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    UNASSIGNED = "unassigned"
    HANDED_BACK = "handed_back"


class OfferTaken(Refusal):
    message = "Another driver took this work"


class OfferExpired(Refusal):
    message = "The offer has expired"


class OfferAlreadyAccepted(Refusal):
    message = "You accepted this offer already; hand the work back instead"


class OfferAlreadyRejected(Refusal):
    message = "You rejected this offer already"


#: A third rejection in a row sends the driver to the end of the line.
REJECTIONS_IN_A_ROW = 3

_CLOSED_AS: dict[OfferReason, type[Refusal]] = {
    OfferReason.TIMEOUT: OfferExpired,
    OfferReason.DRIVER_UNAVAILABLE: OfferExpired,
    OfferReason.SUPERSEDED: OfferTaken,
    OfferReason.CANCELLED: WorkOrderCancelled,
}


def refusal_of_late_answer(status: OfferStatus, reason: OfferReason | None, *, answer: OfferStatus) -> Refusal | None:
    """What a driver hears who answers an offer that is no longer pending; None where the answer only repeats itself."""
    if status is answer:
        return None
    if status is OfferStatus.ACCEPTED:
        return OfferAlreadyAccepted()
    if status is OfferStatus.REJECTED:
        return OfferAlreadyRejected()
    return _CLOSED_AS[reason or OfferReason.TIMEOUT]()
