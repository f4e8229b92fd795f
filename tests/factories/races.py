"""Two at once, by a transaction that is held open and not by luck of timing."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.factories.work import World
from tests.factories.workers import until


async def once_it_waits_or_ends(world: World, other: asyncio.Task[Any]) -> None:
    """Let `other` go as far as it gets while the caller's transaction stays open: to a lock, or to its end."""

    async def either() -> bool:
        waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return other.done() or bool(await world.all(waits))

    await until(either)
