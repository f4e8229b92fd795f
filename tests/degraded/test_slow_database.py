"""A database that is far away: an answer in time or none, and nothing piles up."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import httpx
import pytest

from api import guards
from api.app import create_app
from models.kit.database import Database
from tests.degraded.operations import WITHOUT_POSTGRES, Asks
from tests.degraded.probing import HealthProbe
from tests.degraded.processes import Fairlead
from tests.degraded.wire import ask
from tests.factories import invariants
from tests.factories.api import settings
from tests.factories.proxy import Proxy
from tests.factories.work import World
from tests.factories.workers import until

pytestmark = pytest.mark.anyio

#: What was measured; seen with `--log-cli-level=info`.
log = logging.getLogger(__name__)

LATENCY_S = 0.5
NEAR_S = 0.02
WITHIN_S = 2.0
EVERY_S = 0.01


async def test_every_operation_answers_in_time_or_503(
    database: Database, database_url: str, temporal_address: str, tmp_path: Path
) -> None:
    world = await World.make(database)
    asks = await (await Asks.make(world)).all()
    async with (
        Proxy(database_url) as proxy,
        Fairlead("api", tmp_path / "api.log", database_url=proxy.url, temporal=temporal_address) as api,
    ):
        me = next(one for one in asks if one.name == "Me")
        await until(lambda: _succeeds(api.url, me.headers))
        # At a distance that databases do have, everything works.
        await proxy.slow(NEAR_S)
        body = {"premise_id": "P-1", "timeslot": "08:00"}
        made = await ask(api.url, "POST", "/api/v1/enrollments", world.dispatcher.headers, body)
        assert made.status == 201, made
        await proxy.slow(LATENCY_S)

        async def timed(number: int) -> tuple[int, float]:
            one = asks[number]
            await asyncio.sleep(number * EVERY_S)
            began = time.perf_counter()
            answer = await ask(api.url, one.method, one.path, one.headers, one.body)
            return answer.status, time.perf_counter() - began

        with HealthProbe(api.url) as probe:
            answers = await asyncio.gather(*(timed(number) for number in range(len(asks))))
        for one, (status, took_s) in zip(asks, answers, strict=True):
            assert took_s < WITHIN_S, (one.name, status, took_s)
            assert status == 503 or 200 <= status < 300, (one.name, status)
            assert status != 503 or one.name not in WITHOUT_POSTGRES
        in_time = sum(status < 300 for status, _ in answers)
        slowest = max(took for _, took in answers)
        log.info("%d of %d in time, slowest answer %.2f s, %s", in_time, len(answers), slowest, probe.told)
        probe.check()
        await proxy.resume()
        await until(lambda: _succeeds(api.url, me.headers), within_s=5)
    await invariants.check(database)


async def _succeeds(url: str, headers: dict[str, str]) -> bool:
    return (await ask(url, "GET", "/api/v1/auth/me", headers)).status == 200


async def test_requests_that_were_given_up_do_not_pile_up(database: Database, database_url: str) -> None:
    """Under a load that goes on, only those that hold a connection of the pool are left behind for a while."""
    world = await World.make(database)
    connections = 4
    async with Proxy(database_url) as proxy:
        pool = Database(proxy.url, pool_size=connections)
        app = create_app(settings(), database=pool, with_relay=False)
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with app.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://fairlead.test") as client:

            async def me(after_s: float = 0) -> int:
                await asyncio.sleep(after_s)
                return (await client.get("/api/v1/auth/me", headers=world.dispatcher.headers)).status_code

            assert await me() == 200
            await proxy.slow(LATENCY_S)
            load = asyncio.gather(*(me(number * 0.02) for number in range(250)))
            most = 0
            while not load.done():
                most = max(most, len(guards._abandoned))
                await asyncio.sleep(0.01)
            assert set(await load) <= {200, 503}
            # A turn of the loop may pass until one that waited for a connection has heard that it was given up.
            assert most <= 2 * connections
            await proxy.resume()
            await until(_all_undone, within_s=10)
            await until(lambda: _is_back(me))
        await pool.close()


async def _all_undone() -> bool:
    return not guards._abandoned


async def _is_back(me: object) -> bool:
    return await me() == 200  # type: ignore[operator]
