"""What time brings to a work order: one pure function gives everything that is due, now or later.

`advance` does what is due and then waits for the first of the rest. So a timer that fires early, late or twice does no
harm: what counts is what the timeline says at the database's instant.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from models.drivers.rules import Duty
from models.offers.rules import OfferMode, OfferStatus
from models.policies.rules import Policy
from models.work.rules import HELD, WorkKind, WorkOrderStatus


class Due(StrEnum):
    ORDER_EXPIRES = "order expires"
    OFFER_EXPIRES = "offer expires"
    DRIVER_GONE = "driver gone"
    BACK_IN_LINE = "back in line"
    NEW_ROUND = "next round"
    NAMED_DRIVER = "offer to the named driver"
    MATCH = "match"
    ESCALATION = "escalation"
    LOAD = "work is due"
    NUDGE = "nudge"
    LATE_ALERT = "late alert"


#: These follow from how things stand, not from the time; their instant is the look's.
_WHATEVER_THE_TIME = frozenset({Due.DRIVER_GONE, Due.BACK_IN_LINE, Due.NAMED_DRIVER})
#: An escalation is told once per step, at these multiples of `escalate_after_s`.
ESCALATION_STEPS = (1, 2, 4)


class OfferView(msgspec.Struct, frozen=True, kw_only=True):
    """One offer as `look` reads it, with its driver's state."""

    id: str
    driver_id: str
    driver: str
    round: int
    sequence: int
    mode: OfferMode
    exclusive: bool
    status: OfferStatus
    reason: str | None
    offered_at: datetime
    expires_at: datetime
    responded_at: datetime | None
    duty: Duty
    active_count: int


class WorkView(msgspec.Struct, frozen=True, kw_only=True):
    """A work order and its offers at the instant `now` of the database's clock."""

    id: str
    organization_id: str
    kind: WorkKind
    reference: str
    status: WorkOrderStatus
    now: datetime
    manual: bool
    round: int
    match_from: datetime | None
    next_round_at: datetime | None
    broadcast_until: datetime | None
    nobody_reasons: str | None
    escalate_from: datetime
    escalations: int
    scheduled_for: datetime | None
    assigned_driver_id: str | None
    assigned_at: datetime | None
    nudged: bool
    late_alerted: bool
    counted: bool | None
    order_expires_at: datetime | None
    offers: list[OfferView]
    #: How often it failed lately by a mistake of ours; the error that it is parked for.
    failures: int = 0
    parked_for: str | None = None

    @property
    def pending(self) -> list[OfferView]:
        return [offer for offer in self.offers if offer.status is OfferStatus.PENDING]


def timeline(view: WorkView, policy: Policy) -> list[tuple[datetime, Due]]:
    """Everything that time will bring, each with its instant; what is due has an instant not after `view.now`.
    To parked work it brings nothing."""
    if view.parked_for is not None:
        return []
    if view.status is WorkOrderStatus.PENDING:
        return _while_pending(view, policy)
    if view.status in HELD:
        return _while_held(view, policy)
    return []


def _while_pending(view: WorkView, policy: Policy) -> list[tuple[datetime, Due]]:
    found: list[tuple[datetime, Due]] = []
    pending = view.pending
    if view.order_expires_at is not None:
        found.append((view.order_expires_at, Due.ORDER_EXPIRES))
    for offer in pending:
        found.append((offer.expires_at, Due.OFFER_EXPIRES))
        if driver_is_gone(offer, policy):
            found.append((view.now, Due.DRIVER_GONE))
    if view.match_from is not None:
        found.append((view.match_from, Due.MATCH))
    elif not pending and not view.manual and view.next_round_at is None:
        found.append((view.now, Due.BACK_IN_LINE))
    if not pending and view.next_round_at is not None:
        found.append((view.next_round_at, Due.NEW_ROUND))
    if view.kind is WorkKind.ROUTE and not any(_was_asked_or_gave_it_up(offer, view.round) for offer in view.offers):
        found.append((starts_at(view, policy) or view.now, Due.NAMED_DRIVER))
    if view.escalations < len(ESCALATION_STEPS):
        after = policy.escalate_after_s * ESCALATION_STEPS[view.escalations]
        found.append((view.escalate_from + timedelta(seconds=after), Due.ESCALATION))
    return found


def _was_asked_or_gave_it_up(offer: OfferView, round_: int) -> bool:
    """A route is offered to its named driver once a round; one that came back to us waits for a person instead."""
    return offer.round == round_ or (offer.round == round_ - 1 and offer.status is OfferStatus.ACCEPTED)


def _while_held(view: WorkView, policy: Policy) -> list[tuple[datetime, Due]]:
    found: list[tuple[datetime, Due]] = []
    starts = starts_at(view, policy)
    if view.counted is False and starts is not None:
        found.append((starts, Due.LOAD))
    if view.assigned_at is None:
        return found
    # Work taken ahead of its schedule is not late before the schedule.
    base = max(view.assigned_at, view.scheduled_for or view.assigned_at)
    if policy.nudge_after_s is not None and not view.nudged and view.status is WorkOrderStatus.ASSIGNED:
        found.append((base + timedelta(seconds=policy.nudge_after_s), Due.NUDGE))
    not_there = (WorkOrderStatus.ASSIGNED, WorkOrderStatus.EN_ROUTE)
    if policy.late_after_s is not None and not view.late_alerted and view.status in not_there:
        found.append((base + timedelta(seconds=policy.late_after_s), Due.LATE_ALERT))
    return found


def starts_at(view: WorkView, policy: Policy) -> datetime | None:
    """From when on scheduled work is offered and counts as load; None for work to be done now."""
    if view.scheduled_for is None:
        return None
    return view.scheduled_for - timedelta(seconds=policy.lead_time_s)


def driver_is_gone(offer: OfferView, policy: Policy) -> bool:
    """Can the driver no longer take what they were offered? A person's own choice of driver stands."""
    if offer.mode not in (OfferMode.SEQUENTIAL, OfferMode.BROADCAST):
        return False
    return offer.active_count >= policy.most_held or (offer.exclusive and offer.duty is not Duty.ON)


def due_now(view: WorkView, policy: Policy) -> set[Due]:
    return {due for at, due in timeline(view, policy) if at <= view.now}


def next_due(view: WorkView, policy: Policy, *, since: datetime | None = None) -> tuple[datetime, Due] | None:
    """The first thing still to come; None when only a person can move this work order on.

    `since` is the instant of an earlier look, upon which all was done that was due then. What has come due after it is
    still to come, its instant in the past: an offer whose time ran out while it was being made is waited for by nobody
    else. What has no instant but the look's own is no news.
    """
    done_until = view.now if since is None else since
    ahead = [
        (at, due)
        for at, due in timeline(view, policy)
        if at > done_until and not (at == view.now and due in _WHATEVER_THE_TIME)
    ]
    return min(ahead, default=None)
