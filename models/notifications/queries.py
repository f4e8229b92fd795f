"""Reading messages: the outbox that development shows, and how far sending is behind."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec
from sqlalchemy import func, select

from models.kit.database import Session
from models.notifications.rules import NotificationStatus
from models.notifications.tables import notifications


class OutboxMessage(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A message that was rendered and kept because its channel has no provider; it was never delivered."""

    id: UUID
    organization_id: UUID
    user_id: UUID
    event: str
    channel: str
    subject: str | None
    body: str | None
    created_at: datetime
    sent_at: datetime | None


async def outbox(session: Session, *, limit: int = 50) -> list[OutboxMessage]:
    """The newest messages that the outbox took, over all organizations: for development only."""
    columns = [notifications.c[field.name] for field in msgspec.structs.fields(OutboxMessage)]
    # Ids are UUIDv7, so that the primary key gives the newest first without a sort.
    newest = select(*columns).where(notifications.c.sent_by == "outbox").order_by(notifications.c.id.desc())
    return [OutboxMessage(**row._asdict()) for row in await session.rows(newest.limit(limit))]


async def unsent_over(session: Session, seconds: float) -> int:
    """How many messages were caused more than `seconds` ago and are neither sent nor given up."""
    waiting = select(func.count()).where(
        notifications.c.status.in_([NotificationStatus.PENDING, NotificationStatus.SENDING]),
        notifications.c.created_at < func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, float(seconds)),
    )
    return int(await session.value(waiting))
