"""Two APIs and two workers, each stopped and started again and again under a load that does not pause: a deploy."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import pytest

from api.cli.services import EmbeddedTemporal
from models.kit.database import Database
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from tests.degraded.processes import Fairlead, up
from tests.degraded.wire import Answer, Wire
from tests.factories import invariants
from tests.factories.people import Person
from tests.factories.work import World
from tests.factories.workers import until
from workflows.client import connect

pytestmark = pytest.mark.anyio

#: What was measured; seen with `--log-cli-level=info`.
log = logging.getLogger(__name__)

ROLLS: Final = 10
CREATORS: Final = 2
DRIVERS: Final = 6
#: Work orders under way at once: the load is steady, and no more than the machine carries.
OPEN: Final = 4
PAUSE_S: Final = 0.2
#: Everything converges within this time of the last roll.
CONVERGES_S: Final = 60.0


class Clients:
    """Everybody who uses the two APIs: whoever is refused, or told to come back, goes to the other one. Anything else
    that is no answer (`CutOff`), and every 5xx but 503, ends the test."""

    def __init__(self, world: World, apis: list[Fairlead]) -> None:
        self.world = world
        self.apis = apis
        self.rolling = True
        self.created: list[UUID] = []
        self.accepted: list[UUID] = []
        self.completed: set[UUID] = set()
        self.elsewhere: Counter[str] = Counter()
        self._turn = 0

    async def call(self, method: str, path: str, by: Person, body: Any = None, **headers: str) -> Answer:
        while True:
            self._turn += 1
            try:
                wire = await Wire.open(self.apis[self._turn % len(self.apis)].url)
            except ConnectionRefusedError:
                self.elsewhere["refused"] += 1
                await asyncio.sleep(0.05)
                continue
            answer = await wire.ask(method, f"/api/v1{path}", by.headers | headers, body)
            if answer.status == 503 or (answer.status == 409 and answer.json()["code"] == "IDEMPOTENCY_IN_PROGRESS"):
                self.elsewhere[str(answer.status)] += 1
                assert int(answer.headers["retry-after"]) >= 1
                await asyncio.sleep(PAUSE_S)
                continue
            assert answer.status < 500, answer
            return answer

    async def create(self) -> None:
        while self.rolling:
            await asyncio.sleep(PAUSE_S)
            if len(self.created) - len(self.completed) >= OPEN:
                continue
            answer = await self.call(
                "POST", "/enrollments", self.world.dispatcher, {"premise_id": "P-1", "timeslot": "08:00"},
                **{"Idempotency-Key": str(uuid4())},
            )  # fmt: skip
            assert answer.status == 201, answer
            self.created.append(UUID(answer.json()["id"]))

    async def drive(self, driver: Person) -> None:
        """Take whatever is offered, and have it completed."""
        while True:
            answer = await self.call("GET", "/drivers/me/offers/current", driver)
            assert answer.is_ok, answer
            if answer.status == 204:
                await asyncio.sleep(PAUSE_S)
                continue
            offer = answer.json()
            answer = await self.call("POST", f"/offers/{offer['id']}/accept", driver)
            assert answer.is_ok, answer
            self.accepted.append(UUID(offer["id"]))
            work = offer["work_order_id"]
            answer = await self.call("POST", f"/enrollments/{work}/complete", self.world.dispatcher)
            # Told to come back and having been heard all the same, the second time there is nothing left to do.
            assert answer.is_ok or answer.json()["code"] == "ILLEGAL_TRANSITION", answer
            self.completed.add(UUID(work))

    async def all_completed(self) -> bool:
        return self.completed >= set(self.created)


async def test_a_deploy_under_load_fails_no_request_and_loses_nothing(
    database: Database, database_url: str, stoppable_temporal: EmbeddedTemporal, tmp_path: Path
) -> None:
    world = await World.make(database)
    drivers = await world.line(DRIVERS)
    options: dict[str, Any] = {"database_url": database_url, "temporal": stoppable_temporal.address}
    apis = [Fairlead("api", tmp_path / f"api{number}.log", **options) for number in range(2)]
    workers = [Fairlead("worker", tmp_path / f"worker{number}.log", **options) for number in range(2)]
    clients = Clients(world, apis)
    async with up(*apis, *workers):
        creating = [asyncio.create_task(clients.create()) for _ in range(CREATORS)]
        driving = [asyncio.create_task(clients.drive(driver)) for driver in drivers]
        load = asyncio.gather(*creating, *driving)
        for number in range(ROLLS):
            began = time.monotonic()
            await asyncio.gather(apis[number % 2].restart(), workers[number % 2].restart())
            log.info("roll %d: %.1f s, %d created", number, time.monotonic() - began, len(clients.created))
            assert not load.done(), load.exception()
        clients.rolling = False
        await asyncio.gather(*creating)
        await until(clients.all_completed, within_s=CONVERGES_S)
        for task in driving:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await load
        settings = Settings(temporal_address=stoppable_temporal.address, secret_key=DEVELOPMENT_SECRET, dev_mode=True)
        temporal = await connect(settings)
        running = f"ExecutionStatus = 'Running' AND OrganizationId = '{world.organization_id}'"

        async def none_runs() -> bool:
            return (await temporal.count_workflows(running)).count == 0

        await until(none_runs, within_s=CONVERGES_S)
    log.info("%d lifecycles over %d rolls; sent elsewhere: %s", len(clients.created), ROLLS, dict(clients.elsewhere))
    assert len(clients.created) >= ROLLS
    rows = {row.id: row.status for row in await world.all("SELECT id, status FROM work_orders")}
    assert sorted(rows) == sorted(clients.created), "each creation that was acknowledged is there once, and no other"
    assert set(rows.values()) == {"completed"}
    taken = await world.all("SELECT id FROM offers WHERE status = 'accepted'")
    assert sorted(row.id for row in taken) == sorted(clients.accepted)
    for process in (*apis, *workers):
        written = process.child.log.read_text()
        assert "nondeterminism" not in written.lower()
        grave = [line for line in written.splitlines() if '"level":"error"' in line or '"level":"critical"' in line]
        assert grave == []
    await invariants.check(database)
