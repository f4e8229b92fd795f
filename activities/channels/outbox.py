"""Where messages end that no provider will take: rendered, kept, shown to developers, never called delivered."""

from __future__ import annotations

import structlog

from activities.channels.base import Outgoing
from models.notifications.rules import Channel

logger = structlog.get_logger(__name__)


class Outbox:
    """Stands in for a channel without credentials. The drain stores what it takes, for `GET /dev/outbox`."""

    name = "outbox"

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    async def send(self, message: Outgoing) -> str:
        # Ids and sizes only: the text names people and places.
        logger.info("outbox_message", id=str(message.id), channel=self.channel.value, characters=len(message.text))
        return ""

    async def close(self) -> None:
        """Nothing is open."""
