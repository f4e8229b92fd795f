"""What people are told, over which channel, and how long we try."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum


class NotificationStatus(StrEnum):
    PENDING = "pending"
    SENDING = "sending"
    SENT = "sent"
    DELIVERED = "delivered"
    FAILED = "failed"


class Channel(StrEnum):
    SMS = "sms"
    EMAIL = "email"


class Event(StrEnum):
    """What a message is about; each has a template per channel."""

    OFFER_MADE = "offer_made"
    #: A reminder: the offer is still open and its time runs out.
    OFFER_EXPIRING = "offer_expiring"
    OFFER_WITHDRAWN = "offer_withdrawn"
    ASSIGNED = "assigned"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    #: To dispatchers: the work order has waited too long.
    ESCALATION = "escalation"
    #: To dispatchers: the lane looked and found nobody.
    NOBODY_ELIGIBLE = "nobody_eligible"
    #: A time-out put the driver off duty; says how to come back.
    MADE_UNAVAILABLE = "made_unavailable"
    #: The driver holds the work and has not moved.
    NUDGE = "nudge"
    #: To dispatchers: the driver will be late, or is.
    LATE_ALERT = "late_alert"
    #: To dispatchers: the work order fails by a mistake of ours, and is left alone from now on.
    WORK_PARKED = "work_parked"


#: These find a driver on the road, away from any inbox; the others are read at a desk.
ON_THE_ROAD = frozenset(
    {
        Event.OFFER_MADE,
        Event.OFFER_EXPIRING,
        Event.OFFER_WITHDRAWN,
        Event.ASSIGNED,
        Event.CANCELLED,
        Event.MADE_UNAVAILABLE,
        Event.NUDGE,
    }
)
#: These invite an answer, so they are worth nothing once the offer's time is up.
INVITES_AN_ANSWER = frozenset({Event.OFFER_MADE, Event.OFFER_EXPIRING})

#: Seconds to wait after the first, second, .. failed attempt. The first steps suit an offer of a few minutes, the whole
#: spans 58 minutes: longer than most outages of a provider, and shorter than its idempotency keys live (24 h).
BACK_OFF_S = (5.0, 15.0, 45.0, 120.0, 300.0, 900.0, 2100.0)
MAX_ATTEMPTS = len(BACK_OFF_S) + 1
#: What we believe of a provider's Retry-After: at least a second, at most an hour.
RETRY_AFTER_BOUNDS_S = (1.0, 3600.0)


def retry_delay(attempt: int, retry_after_s: float | None = None) -> float | None:
    """Seconds until the next attempt after `attempt` (1 for the first) failed for now; None where it was the last.

    A provider that names a time is taken at its word, within bounds.
    """
    if attempt >= MAX_ATTEMPTS:
        return None
    if retry_after_s is not None:
        least, most = RETRY_AFTER_BOUNDS_S
        return min(max(retry_after_s, least), most)
    return BACK_OFF_S[max(attempt, 1) - 1]


def choose_channel(
    event: Event,
    *,
    email: str | None,
    phone: str | None,
    phone_verified: bool,
    connected: frozenset[Channel] = frozenset(Channel),
) -> Channel | None:
    """The channel that reaches the person best for this event, or None where nothing does.

    SMS goes to verified phones only: an unverified number may be a stranger's. `connected` are the channels that have
    a provider behind them; one of those is preferred to a channel that would only end in the outbox.
    """
    reachable = {
        Channel.SMS: bool(phone) and phone_verified,
        Channel.EMAIL: bool(email),
    }
    order = (Channel.SMS, Channel.EMAIL) if event in ON_THE_ROAD else (Channel.EMAIL, Channel.SMS)
    candidates = [channel for channel in order if reachable[channel]]
    return next((channel for channel in candidates if channel in connected), candidates[0] if candidates else None)


def too_late(event: Event, *, now: datetime, offer_expires_at: datetime | None) -> bool:
    """Would the message invite an answer that can only be refused?"""
    return event in INVITES_AN_ANSWER and offer_expires_at is not None and offer_expires_at <= now
