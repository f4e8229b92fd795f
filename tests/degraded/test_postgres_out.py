"""Postgres is gone, in each of the ways in which it goes: 503 from every operation, and by itself back to work."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator

import httpx
import msgspec
import psutil
import pytest
from sqlalchemy import text

from api.app import create_app
from api.cli.services import EmbeddedPostgres, EmbeddedTemporal
from models.kit.database import Database
from tests.degraded import wire
from tests.degraded.operations import DOCUMENT, OPERATIONS, READY, WITHOUT_POSTGRES, Ask, Asks
from tests.degraded.probing import HealthProbe
from tests.degraded.processes import Fairlead, up
from tests.degraded.wire import Answer
from tests.factories import invariants
from tests.factories.api import settings
from tests.factories.proxy import Proxy
from tests.factories.work import World
from tests.factories.workers import until

pytestmark = pytest.mark.anyio

#: What was measured; seen with `--log-cli-level=info`.
log = logging.getLogger(__name__)

#: What callers are promised.
WITHIN_S = 2.0
RECOVERY_S = 5.0
#: A hundred requests a second, most of which are under way at once.
EVERY_S = 0.01


class Served(msgspec.Struct, frozen=True):
    """An API that runs through all the outages, and the way from it to Postgres."""

    api: Fairlead
    proxy: Proxy


@pytest.fixture(scope="module")
async def served(
    stoppable_url: str, stoppable_temporal: EmbeddedTemporal, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    log_file = tmp_path_factory.mktemp("served") / "api.log"
    async with Proxy(stoppable_url) as proxy:
        api = Fairlead("api", log_file, database_url=proxy.url, temporal=stoppable_temporal.address)
        async with up(api):
            yield Served(api, proxy)


class Outage:
    """A way for Postgres to go, and to come back."""

    def __init__(self, how: str, proxy: Proxy, server: EmbeddedPostgres) -> None:
        self.how = how
        self.proxy = proxy
        self.server = server

    async def begin(self) -> None:
        if self.how == "refuses":
            await self.proxy.refuse()
        elif self.how == "hangs":
            await self.proxy.hang()
        elif self.how == "stopped":
            self._signal(signal.SIGSTOP)
        else:
            await asyncio.to_thread(self.server.stop)

    async def end(self) -> None:
        if self.how == "stopped":
            self._signal(signal.SIGCONT)
        elif self.how == "shut down":
            # From this thread: its end would be the server's.
            self.server.start()
        else:
            await self.proxy.resume()

    def _signal(self, number: signal.Signals) -> None:
        postmaster = psutil.Process(self.server.child.pid)
        for process in (postmaster, *postmaster.children(recursive=True)):
            process.send_signal(number)


async def answered(api: Fairlead, ask: Ask, after_s: float = 0) -> tuple[Answer, float]:
    await asyncio.sleep(after_s)
    began = time.perf_counter()
    answer = await wire.ask(api.url, ask.method, ask.path, ask.headers, ask.body)
    return answer, time.perf_counter() - began


def test_every_operation_is_known_to_need_postgres_or_not_to() -> None:
    assert WITHOUT_POSTGRES | {READY} <= set(OPERATIONS)
    silent = {
        name
        for name, (_, path, operation) in OPERATIONS.items()
        if "503" not in operation["responses"] and not path.startswith("/dev/")
    }
    assert silent <= WITHOUT_POSTGRES
    assert "Retry-After" in DOCUMENT["components"]["responses"]["Unavailable"]["headers"]


@pytest.mark.parametrize("how", ["refuses", "hangs", "stopped", "shut down"])
async def test_every_operation_answers_503_within_2_s_and_health_as_ever(
    how: str, served: Served, stoppable: Database, stoppable_postgres: EmbeddedPostgres
) -> None:
    world = await World.make(stoppable)
    asks = await (await Asks.make(world)).all()
    me = next(ask for ask in asks if ask.name == "Me")
    await stoppable.engine.dispose()
    api = served.api
    outage = Outage(how, served.proxy, stoppable_postgres)
    await until(lambda: _is(api, me, 200))
    with HealthProbe(api.url) as probe:
        await outage.begin()
        try:
            answers = await asyncio.gather(*(answered(api, ask, i * EVERY_S) for i, ask in enumerate(asks)))
        finally:
            await outage.end()
        back = time.monotonic()
        await until(lambda: _is(api, me, 200), within_s=RECOVERY_S)
        recovered_s = time.monotonic() - back
    for ask, (answer, took_s) in zip(asks, answers, strict=True):
        where = (ask.name, answer.status, answer.body, took_s)
        assert took_s < WITHIN_S, where
        if ask.name in WITHOUT_POSTGRES:
            assert answer.status == 200, where
            continue
        assert answer.status == 503, where
        assert int(answer.headers["retry-after"]) >= 1, where
        if ask.name == READY:
            assert set(answer.json()["out"]) == {"postgres"}, where
        else:
            assert answer.json()["code"] == "UNAVAILABLE", where
    slowest = max(answers, key=lambda answer: answer[1])[1]
    probe.check()
    log.info("%s: slowest answer %.2f s, %s, recovered after %.2f s", how, slowest, probe.told, recovered_s)
    # More at once than the pool has: none of its connections is lost, and all the ways lead through again.
    again = await asyncio.gather(*(answered(api, me) for _ in range(48)))
    assert {answer.status for answer, _ in again} == {200}
    body = {"premise_id": "P-1", "timeslot": "08:00"}
    made = await wire.ask(api.url, "POST", "/api/v1/enrollments", world.dispatcher.headers, body)
    assert made.status == 201, made
    await until(lambda: _idle(stoppable))
    await invariants.check(stoppable)


async def _is(api: Fairlead, ask: Ask, status: int) -> bool:
    answer, _ = await answered(api, ask)
    return answer.status == status


async def _idle(database: Database) -> bool:
    """The API has no more connections than its pool has, and none of them is in the middle of anything."""
    statement = (
        "SELECT count(*) AS all, count(*) FILTER (WHERE state <> 'idle') AS busy FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'fairlead-api'"
    )
    async with database.reading() as session:
        row = await session.row(text(statement))
    assert row is not None
    return row.all <= settings().database_pool_size and row.busy == 0


async def test_an_outage_leaves_no_connection_checked_out(database: Database, database_url: str) -> None:
    world = await World.make(database)
    async with Proxy(database_url) as proxy:
        pool = Database(proxy.url, pool_size=4)
        app = create_app(settings(), database=pool, with_relay=False)
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with app.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://fairlead.test") as client:

            async def ask() -> int:
                return (await client.get("/api/v1/auth/me", headers=world.dispatcher.headers)).status_code

            async def several() -> set[int]:
                return set(await asyncio.gather(*(ask() for _ in range(12))))

            assert await several() == {200}
            for cut in (proxy.refuse, proxy.hang, proxy.reset, proxy.hang):
                await cut()
                assert await several() <= {200, 503}
                await proxy.resume()
                await until(lambda: _all_back(pool))
                await until(lambda: _succeeds(ask))
                assert await several() == {200}
            assert pool.engine.pool.checkedin() == 4  # type: ignore[attr-defined]
        await pool.close()


async def _all_back(pool: Database) -> bool:
    checked_out: int = pool.engine.pool.checkedout()  # type: ignore[attr-defined]
    return checked_out == 0


async def _succeeds(ask: object) -> bool:
    return await ask() == 200  # type: ignore[operator]
