"""The three steps that people take, over HTTP or straight on the database, and how the generator learns of offers."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Any, Protocol, Self
from uuid import UUID

import aiohttp
import asyncpg
import msgspec

from bench.world import World
from models.kit.database import Actor
from models.offers.commands import accept
from models.work.commands import complete
from models.work.creating import NewWork, create_enrollment


class RefusedError(Exception):
    """A request that should have succeeded did not; the text has the answer."""


class Offer(msgspec.Struct, frozen=True):
    offer_id: UUID
    driver_id: UUID


class Dispatching(Protocol):
    """Create, accept, complete: what a lifecycle asks for."""

    async def create(self, *skills: str) -> UUID:
        """A new enrollment that asks for `skills`; its id."""

    async def accept(self, offer: Offer) -> None:
        """The offered driver accepts."""

    async def complete(self, work_order_id: UUID, driver_id: UUID) -> None:
        """The driver who holds the work completes it."""


class OverHttp:
    """Through the API, on kept-alive connections. aiohttp: a request costs the generator a quarter of httpx's."""

    def __init__(self, base_url: str, world: World) -> None:
        self._world = world
        self._http = aiohttp.ClientSession(
            base_url, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=30)
        )

    async def create(self, *skills: str) -> UUID:
        body = {"premise_id": "P-1", "timeslot": "08:00-10:00", "required_skills": list(skills)}
        created = await self._post("/api/v1/enrollments", self._world.dispatcher, body)
        return UUID(created["id"])

    async def accept(self, offer: Offer) -> None:
        await self._post(f"/api/v1/offers/{offer.offer_id}/accept", self._world.drivers[offer.driver_id])

    async def complete(self, work_order_id: UUID, driver_id: UUID) -> None:
        await self._post(f"/api/v1/enrollments/{work_order_id}/complete", self._world.drivers[driver_id], {})

    async def close(self) -> None:
        await self._http.close()

    async def _post(self, path: str, caller: Any, body: Any = None) -> Any:
        headers = self._world.tokens.headers(caller)
        data = None if body is None else msgspec.json.encode(body)
        if data is not None:
            headers = headers | {"Content-Type": "application/json"}
        async with self._http.post(path, data=data, headers=headers) as response:
            answer = await response.read()
        if response.status >= 300:
            raise RefusedError(f"POST {path}: {response.status} {answer.decode(errors='replace')[:500]}")
        return msgspec.json.decode(answer) if answer else None


class InProcess:
    """The same commands as the endpoints' in transactions of this process: no HTTP, no tokens."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._staff = Actor(kind="user", user_id=world.dispatcher.user_id)

    async def create(self, *skills: str) -> UUID:
        async with self._world.database.transaction(self._staff) as session:
            work = NewWork(required_skills=skills, timeslot="08:00-10:00")
            return await create_enrollment(session, self._world.organization_id, work, premise_id="P-1")

    async def accept(self, offer: Offer) -> None:
        async with self._world.database.transaction(self._driver(offer.driver_id)) as session:
            await accept(session, offer.offer_id, offer.driver_id)

    async def complete(self, work_order_id: UUID, driver_id: UUID) -> None:
        async with self._world.database.transaction(self._driver(driver_id)) as session:
            await complete(session, work_order_id, by_driver=driver_id)

    def _driver(self, driver_id: UUID) -> Actor:
        return Actor(kind="user", user_id=self._world.drivers[driver_id].user_id)


_OPEN_OFFERS = """
SELECT work_order_id, id, driver_id FROM offers WHERE work_order_id = ANY($1) AND status = 'pending'
"""


class OfferWatch:
    """Tells a pair of its offer. One query for all who wait, every `every_s` seconds, stands for the push that real
    drivers get: a poll of the API by each would load it with what no floor pays."""

    def __init__(self, dsn: str, *, every_s: float = 0.015) -> None:
        self._dsn = dsn
        self._every_s = every_s
        self._waiting: dict[UUID, asyncio.Future[Offer]] = {}
        self._some = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def offer_of(self, work_order_id: UUID, *, within_s: float = 60) -> Offer:
        """Wait for the work order's open offer. Raises TimeoutError, or what ended the watch."""
        assert self._task is not None
        if self._task.done():
            self._task.result()
        future = self._waiting[work_order_id] = asyncio.get_running_loop().create_future()
        self._some.set()
        try:
            async with asyncio.timeout(within_s):
                offer: Offer = await future
                return offer
        finally:
            self._waiting.pop(work_order_id, None)

    async def _watch(self) -> None:
        connection = await asyncpg.connect(self._dsn)
        try:
            while True:
                if not self._waiting:
                    self._some.clear()
                    await self._some.wait()
                for row in await connection.fetch(_OPEN_OFFERS, list(self._waiting)):
                    future = self._waiting.get(row["work_order_id"])
                    if future is not None and not future.done():
                        future.set_result(Offer(row["id"], row["driver_id"]))
                await asyncio.sleep(self._every_s)
        finally:
            await connection.close()
