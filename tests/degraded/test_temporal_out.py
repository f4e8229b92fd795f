"""Temporal is gone: every operation works as ever, and what it missed arrives when it is back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from api.cli.services import EmbeddedTemporal
from models.kit.database import Database
from models.kit.ids import UUID
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from models.work.wakes import workflow_id
from tests.conftest import Databases
from tests.degraded.operations import OPERATIONS, READY, Asks
from tests.degraded.probing import HealthProbe
from tests.degraded.processes import Fairlead, up
from tests.factories import invariants
from tests.factories.people import Person
from tests.factories.proxy import Proxy
from tests.factories.work import World
from tests.factories.workers import until
from workflows.client import connect

pytestmark = pytest.mark.anyio

#: What was measured; seen with `--log-cli-level=info`.
log = logging.getLogger(__name__)

WITHIN_S = 2.0
#: Beyond it lie the relay's pauses, the workers' own and a start of the server.
RECOVERY_S = 30.0


class Outage:
    def __init__(self, how: str, proxy: Proxy, server: EmbeddedTemporal) -> None:
        self.how = how
        self.proxy = proxy
        self.server = server

    async def begin(self) -> None:
        if self.how == "killed":
            await asyncio.to_thread(self.server.kill)
        else:
            await {"refuses": self.proxy.refuse, "hangs": self.proxy.hang}[self.how]()

    async def end(self) -> None:
        if self.how == "killed":
            self.server.start()
        else:
            await self.proxy.resume()


class Served(msgspec.Struct, frozen=True):
    """An API and a worker that run through all the outages, and the way from them to Temporal."""

    api: Fairlead
    proxy: Proxy
    client: httpx.AsyncClient
    database: Database


@pytest.fixture(scope="module")
async def served(
    databases: Databases, stoppable_temporal: EmbeddedTemporal, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    logs = tmp_path_factory.mktemp("served")
    url = await databases.create()
    database = Database(url, name="fairlead-test")
    async with Proxy(f"http://{stoppable_temporal.address}") as proxy:
        options: dict[str, Any] = {"database_url": url, "temporal": proxy.address}
        api = Fairlead("api", logs / "api.log", **options)
        worker = Fairlead("worker", logs / "worker.log", **options)
        async with up(api, worker), httpx.AsyncClient(base_url=api.url, timeout=10) as client:
            yield Served(api, proxy, client, database)
    await database.close()


@pytest.mark.parametrize("how", ["refuses", "hangs", "killed"])
async def test_every_operation_works_and_the_lifecycle_completes_after_its_return(
    how: str, served: Served, stoppable_temporal: EmbeddedTemporal
) -> None:
    client = served.client
    world = await World.make(served.database)
    outage = Outage(how, served.proxy, stoppable_temporal)
    await until(lambda: _ready(client), within_s=RECOVERY_S)
    driver, other = await world.driver(waited_h=2), await world.driver(waited_h=1)
    before = await _create(client, world)
    await until(lambda: world.offers(before), within_s=RECOVERY_S)
    await outage.begin()
    try:
        with HealthProbe(served.api.url) as probe:
            await _everything_works(client, world)
        ready = await client.get("/health/ready")
        assert (ready.status_code, set(ready.json()["out"])) == (503, {"temporal"})
        # Nobody tells the workflow of either.
        await _accept(client, world, before, driver)
        during = await _create(client, world)
    finally:
        await outage.end()
    back = time.monotonic()
    await until(lambda: _ready(client), within_s=RECOVERY_S)
    await until(lambda: world.offers(during), within_s=RECOVERY_S)
    log.info("%s: offer for work made meanwhile %.1f s after the return", how, time.monotonic() - back)
    await _accept(client, world, during, other)
    for work in (before, during):
        done = await client.post(f"/api/v1/enrollments/{work}/complete", headers=world.dispatcher.headers)
        assert done.is_success, done.text
    temporal = await connect(
        Settings(temporal_address=stoppable_temporal.address, secret_key=DEVELOPMENT_SECRET, dev_mode=True)
    )
    for work in (before, during):
        result = temporal.get_workflow_handle(workflow_id(work)).result()
        assert await asyncio.wait_for(result, RECOVERY_S) == "completed"
    probe.check()
    await invariants.check(served.database)


async def _everything_works(client: httpx.AsyncClient, world: World) -> None:
    """In an organization of its own, so that its work leaves this test's drivers alone."""
    asks = await Asks.make(await World.make(world.database))
    for name in OPERATIONS:
        ask = await asks.of(name)
        began = time.perf_counter()
        response = await client.request(ask.method, ask.path, **ask.options)
        took_s = time.perf_counter() - began
        assert response.is_success == (name != READY), (name, response.status_code, response.text)
        assert took_s < WITHIN_S, (name, took_s)
        if name == "Login":
            asks.refresh_token = response.json()["refresh_token"]


async def _ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/health/ready")).status_code == 200


async def _create(client: httpx.AsyncClient, world: World) -> UUID:
    body = {"premise_id": "P-1", "timeslot": "08:00"}
    made = await client.post("/api/v1/enrollments", json=body, headers=world.dispatcher.headers)
    assert made.status_code == 201, made.text
    return UUID(made.json()["id"])


async def _accept(client: httpx.AsyncClient, world: World, work: UUID, driver: Person) -> None:
    offer = await world.pending(work)
    assert offer.driver_id == driver.driver_id
    accepted = await client.post(f"/api/v1/offers/{offer.id}/accept", headers=driver.headers)
    assert accepted.is_success, accepted.text
