"""What development shows and production does not have."""

from __future__ import annotations

from datetime import datetime

import msgspec
from litestar import get
from litestar.di import NamedDependency

from api.guards import PUBLIC
from models.kit.database import Database
from models.kit.ids import UUID
from models.notifications.queries import outbox


class DevMessage(msgspec.Struct):
    id: UUID
    organization_id: UUID
    user_id: UUID
    event: str
    channel: str
    subject: str | None
    body: str | None
    created_at: datetime
    sent_at: datetime | None


class DevOutbox(msgspec.Struct):
    data: list[DevMessage]


@get(
    "/dev/outbox",
    operation_id="DevOutbox",
    summary="The newest messages that had no provider to go to",
    tags=["Development"],
    opt=PUBLIC,
)
async def dev_outbox(database: NamedDependency[Database]) -> DevOutbox:
    async with database.transaction() as session:
        messages = await outbox(session, limit=50)
    return DevOutbox(data=[DevMessage(**msgspec.structs.asdict(message)) for message in messages])
