"""The floor: our own transactions alone, in this process, without Temporal and HTTP."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

import asyncpg

from activities.dispatch import DispatchActivities, Step, WorkOrderRef
from bench.dispatching import InProcess, Offer
from bench.rounds import Stopwatch
from bench.world import World

_OFFER = "SELECT id, driver_id FROM offers WHERE work_order_id = $1 AND status = 'pending'"


class Transactions:
    """Create, match, accept, complete, with the looks that the workflow takes in between."""

    def __init__(self, world: World, offers: asyncpg.Pool) -> None:
        self.commands = InProcess(world)
        self._activities = DispatchActivities(world.database)
        self._offers = offers
        self.stopwatch = Stopwatch()

    async def lifecycle(self) -> None:
        began = time.perf_counter()
        work_order_id = await self.commands.create()
        await self.advance(work_order_id)
        offer = await self.offer_of(work_order_id)
        accepting = time.perf_counter()
        self.stopwatch.note("offer", accepting - began)
        await self.commands.accept(offer)
        self.stopwatch.note("accept", time.perf_counter() - accepting)
        await self.advance(work_order_id)
        await self.commands.complete(work_order_id, offer.driver_id)
        await self.advance(work_order_id)

    async def advance(self, work_order_id: UUID) -> Step:
        return await self._activities.advance(WorkOrderRef(work_order_id=str(work_order_id)))

    async def offer_of(self, work_order_id: UUID) -> Offer:
        """The offer that `advance` made; with more drivers than pairs there is one, at the latest when another pair
        has freed its own."""
        async with asyncio.timeout(60):
            while True:
                row = await self._offers.fetchrow(_OFFER, work_order_id)
                if row is not None:
                    return Offer(row["id"], row["driver_id"])
                await self.advance(work_order_id)
