"""The peer: the same transactions of ours as the steps of a DBOS workflow, as its documentation would have them.

    python -m bench.dbos_peer REQUEST    (JSON; prints one round as JSON)

A process of its own, because DBOS is global to one. Generator and workflows share it, and no HTTP comes in between:
both are to DBOS's advantage.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import warnings
from uuid import UUID

import asyncpg
import msgspec

from bench.dispatching import Offer
from bench.rounds import WORK_S, Round, Sizes, measure
from bench.transactions import Transactions
from bench.world import World
from models.kit.database import Database

READY = "round: "


class Request(msgspec.Struct, frozen=True):
    """`url` is our database, `system_url` DBOS's own, both on the server whose process is `postgres`."""

    url: str
    system_url: str
    postgres: int
    sizes: Sizes
    messages: bool


class Peer:
    """Registers the workflow, and drives lifecycles through it."""

    def __init__(self, transactions: Transactions) -> None:
        from dbos import DBOS, SetWorkflowID

        self._dbos = DBOS
        self._with_id = SetWorkflowID
        self.transactions = transactions
        self.stopwatch = transactions.stopwatch
        self._offers: dict[str, asyncio.Future[Offer]] = {}

        @DBOS.step()
        async def make_offer(work_order_id: str) -> list[str]:
            await transactions.advance(UUID(work_order_id))
            offer = await transactions.offer_of(UUID(work_order_id))
            self._offers[work_order_id].set_result(offer)
            return [str(offer.offer_id), str(offer.driver_id)]

        @DBOS.step()
        async def take(offer_id: str, driver_id: str) -> None:
            await transactions.commands.accept(Offer(UUID(offer_id), UUID(driver_id)))

        @DBOS.step()
        async def finish(work_order_id: str, driver_id: str) -> None:
            await transactions.commands.complete(UUID(work_order_id), UUID(driver_id))

        @DBOS.workflow()
        async def dispatch(work_order_id: str) -> None:
            offer_id, driver_id = await make_offer(work_order_id)
            await DBOS.recv_async("accept", timeout_seconds=300)
            await take(offer_id, driver_id)
            await DBOS.recv_async("complete", timeout_seconds=300)
            await finish(work_order_id, driver_id)

        self._dispatch = dispatch

    async def lifecycle(self) -> None:
        began = time.perf_counter()
        work_order_id = str(await self.transactions.commands.create())
        offered = self._offers[work_order_id] = asyncio.get_running_loop().create_future()
        with self._with_id(work_order_id):
            handle = await self._dbos.start_workflow_async(self._dispatch, work_order_id)
        async with asyncio.timeout(60):
            await offered
        del self._offers[work_order_id]
        self.stopwatch.note("offer", time.perf_counter() - began)
        began = time.perf_counter()
        await self._dbos.send_async(work_order_id, "accept", topic="accept")
        self.stopwatch.note("accept", time.perf_counter() - began)
        await asyncio.sleep(WORK_S)
        await self._dbos.send_async(work_order_id, "complete", topic="complete")
        await handle.get_result()


async def run(request: Request) -> Round:
    from dbos import DBOS

    DBOS(
        config={
            "name": "bench",
            "system_database_url": request.system_url,
            "run_admin_server": False,
            "log_level": "ERROR",
            "sys_db_pool_size": 20,
        }  # type: ignore[typeddict-unknown-key]
    )
    database = Database(request.url, name="fairlead-bench", messages_enabled=request.messages)
    dsn = request.url.replace("postgresql+asyncpg", "postgresql", 1)
    try:
        async with asyncpg.create_pool(dsn, min_size=2, max_size=4) as offers:
            world = await World.make(database, drivers=request.sizes.concurrency * 5 // 4)
            peer = Peer(Transactions(world, offers))
            DBOS.launch()
            try:
                return await measure(peer.lifecycle, peer.stopwatch, request.sizes, {"postgres": request.postgres})
            finally:
                DBOS.destroy()
    finally:
        await database.close()


def main() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    logging.getLogger("dbos").setLevel(logging.ERROR)
    result = asyncio.run(run(msgspec.json.decode(sys.argv[1], type=Request)))
    print(READY + msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    main()
