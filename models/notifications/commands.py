"""Writing messages to people, handing them out to be sent, and keeping what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import String, cast, func, literal, or_, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Row

from models.identity.rules import Role
from models.identity.tables import users
from models.kit.base import Json, Timestamp
from models.kit.database import Session
from models.kit.errors import NotFound
from models.kit.ids import new_id
from models.notifications.rules import Channel, Event, NotificationStatus
from models.notifications.tables import notifications

#: Told to the listeners after a commit that wrote messages.
TOPIC = "notifications"


def _dedupe_prefix(event: Event, about: UUID | None) -> str:
    return f"{event.value}:{about or '-'}:"


def _suffix(key: str) -> str:
    return f":{key}" if key else ""


def notify(
    session: Session,
    event: Event,
    *,
    organization_id: UUID,
    user_id: UUID,
    at: datetime,
    work_order_id: UUID | None = None,
    offer_id: UUID | None = None,
    params: dict[str, Any] | None = None,
    key: str = "",
) -> None:
    """Stage one message, to be written with the commit and sent after it.

    `at` is the instant of the cause: with the dedupe key it makes a repeated command collide instead of telling the
    person twice. `params` go to the template and hold no personal data. `key` tells apart messages of one event about
    one thing, such as the second escalation from the first.
    """
    if not session.messages_enabled:
        return
    session.stage(
        notifications,
        id=new_id(),
        organization_id=organization_id,
        user_id=user_id,
        event=event.value,
        # What makes a message one: its event, what it is about, whom it tells, and `key` where that is not enough.
        dedupe_key=f"{_dedupe_prefix(event, offer_id or work_order_id)}{user_id}{_suffix(key)}",
        work_order_id=work_order_id,
        offer_id=offer_id,
        params=params or {},
        next_at=at,
        created_at=at,
    )
    session.topics.add(TOPIC)


async def notify_dispatchers(
    session: Session,
    event: Event,
    *,
    organization_id: UUID,
    at: datetime,
    work_order_id: UUID | None = None,
    params: dict[str, Any] | None = None,
    key: str = "",
) -> None:
    """One message to each active dispatcher of the organization; where it has none, to its board and state admins."""
    if not session.messages_enabled:
        return
    office = (
        select(users.c.id, users.c.role, func.bool_or(users.c.role == Role.DISPATCHER).over().label("has_dispatcher"))
        .where(
            users.c.organization_id == organization_id,
            users.c.role.in_([Role.DISPATCHER, Role.BOARD_ADMIN, Role.STATE_ADMIN]),
            users.c.is_active,
            users.c.deleted_at.is_(None),
        )
        .cte("office")
    )
    recipients = select(
        literal(organization_id),
        office.c.id,
        literal(event.value),
        literal(_dedupe_prefix(event, work_order_id)) + cast(office.c.id, String) + literal(_suffix(key)),
        cast(literal(work_order_id), notifications.c.work_order_id.type),
        cast(literal(params or {}, Json), Json),
        cast(literal(at), Timestamp),
        cast(literal(at), Timestamp),
    ).where(or_(office.c.role == Role.DISPATCHER, ~office.c.has_dispatcher))
    columns = ("organization_id", "user_id", "event", "dedupe_key", "work_order_id", "params", "next_at", "created_at")
    # The same cause reported twice tells nobody twice.
    await session.run(insert(notifications).from_select(columns, recipients).on_conflict_do_nothing())
    session.topics.add(TOPIC)


class DueMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A leased message with all that addressing and rendering need. Personal data: never log it whole.

    `attempt` counts this lease: 1 for the first. `now` is the database's clock at the lease. Fields of the recipient,
    the work order and the offer are None where there is none (any more).
    """

    id: UUID
    created_at: datetime
    organization_id: UUID
    user_id: UUID
    event: str
    channel: Channel | None
    attempt: int
    params: dict[str, Any]
    now: datetime

    recipient_name: str | None
    recipient_email: str | None
    recipient_phone: str | None
    recipient_role: str | None
    phone_verified: bool
    #: False once the person's account is closed; nobody writes to them then.
    recipient_active: bool

    organization_name: str
    time_zone: str
    locale: str
    driver_label: str

    work_order_id: UUID | None
    reference: str | None
    kind: str | None
    address: str | None
    timeslot: str | None
    scheduled_for: datetime | None
    offer_expires_at: datetime | None


class Lease(msgspec.Struct, frozen=True):
    """A message that was taken, by what it is found by."""

    id: UUID
    created_at: datetime
    attempt: int


# A lease moves `next_at` to its own end, so that one index condition finds both what is due and whose sender died.
# The statement's time, since an index cannot be searched by a clock that moves.
_TAKE = """
WITH due AS (
    SELECT id, created_at FROM notifications
    WHERE status IN ('pending', 'sending') AND next_at <= statement_timestamp()
    ORDER BY next_at
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
), leased AS (
    UPDATE notifications n
    SET status = 'sending',
        attempt = n.attempt + 1,
        next_at = statement_timestamp() + make_interval(secs => :lease_s),
        leased_until = statement_timestamp() + make_interval(secs => :lease_s)
    FROM due
    WHERE n.id = due.id AND n.created_at = due.created_at
    RETURNING n.id, n.created_at, n.organization_id, n.user_id, n.event, n.channel, n.attempt, n.params,
              n.work_order_id, n.offer_id
)
"""
_READ = """
SELECT m.id, m.created_at, m.organization_id, m.user_id, m.event, m.channel, m.attempt, m.params,
       statement_timestamp() AS now,
       u.full_name AS recipient_name, CAST(u.email AS text) AS recipient_email, u.phone AS recipient_phone,
       u.role AS recipient_role,
       u.phone_verified_at IS NOT NULL AS phone_verified,
       coalesce(u.is_active AND u.deleted_at IS NULL, false) AS recipient_active,
       o.name AS organization_name, o.time_zone, o.locale, o.driver_label,
       m.work_order_id, w.reference, w.kind, w.address, w.timeslot, w.scheduled_for,
       f.expires_at AS offer_expires_at
FROM {messages} m
JOIN organizations o ON o.id = m.organization_id
LEFT JOIN users u ON u.id = m.user_id AND u.organization_id = m.organization_id
LEFT JOIN work_orders w ON w.id = m.work_order_id AND w.organization_id = m.organization_id
LEFT JOIN offers f ON f.id = m.offer_id AND f.organization_id = m.organization_id
"""
_LEASE = text(_TAKE + _READ.format(messages="leased")).columns(params=Json)
_LEASE_UNREAD = text(_TAKE + "SELECT id, created_at, attempt FROM leased")  # noqa: S608 - both halves are ours
_READ_LEASED = text(
    _READ.format(messages="(SELECT * FROM notifications WHERE id = :id AND created_at = :created_at)")
).columns(params=Json)


async def lease_due(session: Session, *, limit: int = 50, lease_s: float = 60) -> list[DueMessage]:
    """Take up to `limit` messages that are due, longest due first, for `lease_s` seconds.

    A message whose lease ran out is due again: its sender died, and nobody knows whether it was sent.
    """
    return [_due(row) for row in await session.rows(_LEASE, {"limit": limit, "lease_s": float(lease_s)})]


async def lease_unread(session: Session, *, limit: int, lease_s: float) -> list[Lease]:
    """The same for messages of which one cannot be read, and takes all the others down with it."""
    rows = await session.rows(_LEASE_UNREAD, {"limit": limit, "lease_s": float(lease_s)})
    return [Lease(row.id, row.created_at, row.attempt) for row in rows]


async def read_leased(session: Session, lease: Lease) -> DueMessage:
    """One of `lease_unread`. Raises whatever is wrong with it."""
    row = await session.row(_READ_LEASED, {"id": lease.id, "created_at": lease.created_at})
    if row is None:
        raise NotFound
    return _due(row)


def _due(row: Row[Any]) -> DueMessage:
    return DueMessage(**{**row._asdict(), "channel": Channel(row.channel) if row.channel else None})


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one attempt.

    `status` is sent, failed, or pending with `delay_s` seconds until the next attempt. `subject` and `body` are kept
    for the outbox only: what a provider has taken is not stored a second time.
    """

    id: UUID
    created_at: datetime
    attempt: int
    status: NotificationStatus
    channel: Channel | None = None
    delay_s: float = 0
    sent_by: str | None = None
    provider_id: str | None = None
    error: str | None = None
    subject: str | None = None
    body: str | None = None


# "Sent" is true whoever holds the lease by now; a failure counts only if nobody has taken the message over since.
_RECORD = text("""
UPDATE notifications n
SET status = o.status,
    channel = coalesce(o.channel, n.channel),
    next_at = CASE WHEN o.status = 'pending' THEN clock_timestamp() + make_interval(secs => o.delay_s)
                   ELSE n.next_at END,
    leased_until = NULL,
    sent_at = CASE WHEN o.status = 'sent' THEN clock_timestamp() END,
    sent_by = o.sent_by,
    provider_id = o.provider_id,
    error = o.error,
    subject = o.subject,
    body = o.body
FROM unnest(
    CAST(:ids AS uuid[]), CAST(:created AS timestamptz[]), CAST(:attempts AS integer[]), CAST(:statuses AS text[]),
    CAST(:channels AS text[]), CAST(:delays AS double precision[]), CAST(:senders AS text[]),
    CAST(:provider_ids AS text[]), CAST(:errors AS text[]), CAST(:subjects AS text[]), CAST(:bodies AS text[])
) AS o(id, created_at, attempt, status, channel, delay_s, sent_by, provider_id, error, subject, body)
WHERE n.id = o.id AND n.created_at = o.created_at
  AND (n.status = 'sending' AND n.attempt = o.attempt OR o.status = 'sent' AND n.status IN ('pending', 'sending'))
""")


async def record_outcomes(session: Session, outcomes: Sequence[Outcome]) -> None:
    """Write what became of a batch, in one statement. Recording the same outcome twice changes nothing."""
    if not outcomes:
        return
    await session.run(
        _RECORD,
        {
            "ids": [o.id for o in outcomes],
            "created": [o.created_at for o in outcomes],
            "attempts": [o.attempt for o in outcomes],
            "statuses": [o.status.value for o in outcomes],
            "channels": [o.channel and o.channel.value for o in outcomes],
            "delays": [float(o.delay_s) for o in outcomes],
            "senders": [o.sent_by for o in outcomes],
            "provider_ids": [o.provider_id for o in outcomes],
            "errors": [o.error for o in outcomes],
            "subjects": [o.subject for o in outcomes],
            "bodies": [o.body for o in outcomes],
        },
    )
