"""A worker that starts while Temporal comes and goes."""

from __future__ import annotations

import asyncio

import pytest

from models.kit.database import Database
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from tests.factories.proxy import Proxy
from tests.factories.work import World
from tests.factories.workers import until
from workflows import worker
from workflows.worker import serve

pytestmark = pytest.mark.anyio


def settings(proxy: Proxy) -> Settings:
    return Settings(temporal_address=proxy.address, secret_key=DEVELOPMENT_SECRET, dev_mode=True)


async def test_temporal_going_again_while_the_worker_comes_up_is_waited_out(
    database: Database, temporal_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = asyncio.Event()
    async with Proxy(f"tcp://{temporal_address}") as proxy:
        connect = worker.connect_when_up
        starts = 0

        async def connect_and_lose_it(settings: Settings) -> object:
            nonlocal starts
            starts += 1
            client = await connect(settings)
            if starts == 1:
                await proxy.refuse()
                # Longer than the client tries by itself.
                asyncio.get_running_loop().call_later(5, lambda: asyncio.ensure_future(proxy.resume()))
            return client

        monkeypatch.setattr(worker, "connect_when_up", connect_and_lose_it)
        world = await World.make(database)
        await world.driver()
        work = await world.enrollment()
        serving = asyncio.create_task(serve(database, settings(proxy), stop))
        try:
            await until(lambda: world.offers(work), within_s=60)
            assert starts > 1, "it had to begin anew"
        finally:
            stop.set()
            await serving


async def test_a_worker_that_is_told_to_stop_before_temporal_is_up_stops(database: Database) -> None:
    stop = asyncio.Event()
    async with Proxy("tcp://127.0.0.1:1") as proxy:
        serving = asyncio.create_task(serve(database, settings(proxy), stop))
        await asyncio.sleep(0.5)
        assert not serving.done(), "it waits for Temporal"
        stop.set()
        async with asyncio.timeout(5):
            await serving
