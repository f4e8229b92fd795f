"""Who drives lifecycles: ours over HTTP, bare workflows, and DBOS in a process of its own."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from sqlalchemy import text
from temporalio.client import Client

from bench import bare_worker, dbos_peer
from bench.bare import PORT_VARIABLE, BareDispatch, Word, none_running
from bench.dispatching import Dispatching, OfferWatch, OverHttp
from bench.rounds import WORK_S, Round, Sizes, Stopwatch, until
from bench.system import Services, System
from bench.world import World
from models.kit.database import Database
from models.work.wakes import workflow_id

_UNSENT = text("SELECT count(*) FROM notifications WHERE status IN ('pending', 'sending')")


class FullDispatch:
    """Drives our lifecycles: create, learn of the offer, accept, work, complete."""

    def __init__(self, dispatching: Dispatching, watch: OfferWatch, client: Client, database: Database) -> None:
        self.dispatching = dispatching
        self.watch = watch
        self.client = client
        self.stopwatch = Stopwatch()
        #: Workflow ids, oldest first.
        self.done: list[str] = []
        self._database = database

    async def lifecycle(self, *skills: str) -> None:
        began = time.perf_counter()
        work_order_id = await self.dispatching.create(*skills)
        self.stopwatch.note("create", time.perf_counter() - began)
        offer = await self.watch.offer_of(work_order_id)
        accepting = time.perf_counter()
        self.stopwatch.note("offer", accepting - began)
        await self.dispatching.accept(offer)
        self.stopwatch.note("accept", time.perf_counter() - accepting)
        await asyncio.sleep(WORK_S)
        completing = time.perf_counter()
        await self.dispatching.complete(work_order_id, offer.driver_id)
        self.stopwatch.note("complete", time.perf_counter() - completing)
        self.done.append(workflow_id(work_order_id))

    async def closed(self) -> None:
        """Every workflow has ended, and every message has been taken by its channel."""
        await none_running(self.client, "DispatchWorkflow")
        await until(self._all_sent)

    async def _all_sent(self) -> bool:
        async with self._database.transaction() as session:
            return int(await session.value(_UNSENT)) == 0


@asynccontextmanager
async def full_dispatch(system: System, world: World, *, every_s: float = 0.015) -> AsyncIterator[FullDispatch]:
    """Over HTTP, against the running system; offers are looked for every `every_s` seconds."""
    over_http = OverHttp(system.base_url, world)
    try:
        async with OfferWatch(system.postgres.dsn, every_s=every_s) as watch:
            yield FullDispatch(over_http, watch, await system.connect(), world.database)
    finally:
        await over_http.close()


@asynccontextmanager
async def bare_dispatch(services: Services) -> AsyncIterator[BareDispatch]:
    """Bare workflows with a worker process of their own, on the same Temporal."""
    async with Word.listening() as word:
        worker = services.launch(
            "bare worker", "bench.bare_worker", services.temporal.address, environment={PORT_VARIABLE: str(word.port)}
        )
        await services.until(lambda: bare_worker.READY in worker.output(), worker)
        yield BareDispatch(await services.connect(), word)
        await services.stop_children("bare worker")


class DbosPeer:
    """One process a round, on databases that earlier rounds have used."""

    def __init__(self, services: Services, url: str, sizes: Sizes) -> None:
        self._services = services
        self._url = url
        self._sizes = sizes
        self._numbers = itertools.count(1)

    async def round(self, *, messages: bool) -> Round:
        server = self._url.rpartition("/")[0].replace("+asyncpg", "", 1)
        request = dbos_peer.Request(
            url=self._url,
            system_url=f"{server}/dbos",
            postgres=self._services.postgres.child.pid,
            sizes=self._sizes,
            messages=messages,
        )
        name = f"dbos-{next(self._numbers)}"
        child = self._services.launch(name, "bench.dbos_peer", msgspec.json.encode(request).decode())
        await self._services.until(lambda: dbos_peer.READY in child.output(), child, patience=900)
        await self._services.stop_children(name)
        last = child.output().rpartition(dbos_peer.READY)[2]
        return msgspec.json.decode(last, type=Round)
