"""Every named instant at which a crash could tear two steps apart: the process dies there, another takes its place, and
the work is done once."""

from __future__ import annotations

import asyncio
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from temporalio.client import Client
from temporalio.service import RPCError

from activities.dispatch import OpsAction
from api.cli.services import EmbeddedTemporal
from models.kit.crashes import POINTS
from models.kit.database import Database
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from models.policies.rules import OnTimeout
from models.work.commands import complete
from models.work.rules import WorkKind
from models.work.wakes import workflow_id
from tests.conftest import Databases
from tests.degraded.processes import Fairlead
from tests.factories import invariants
from tests.factories.work import World
from tests.factories.workers import until
from tests.notifications.provider_servers import API_KEY, FROM_ADDRESS, ResendServer
from workflows.client import connect
from workflows.offers import DispatchWorkflow

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
OF_THE_API = ("transaction.flushed", "transaction.committed", "answer.committed")
#: Together, since each spends most of its time waiting for time-outs that a dead worker leaves behind.
OF_THE_WORKER = {
    "dispatch": ("advance.settled", "advance.matched", "advance.done", "ops.committed"),
    "relay and sealer": ("relay.leased", "relay.sent", "relay.recorded", "sealer.sealed", "sealer.committed"),
    "messages": ("drain.leased", "drain.sent", "drain.recorded"),
}


def test_every_point_stands_once_in_the_code_and_once_in_these_tests() -> None:
    named = [
        point
        for layer in ("api", "workflows", "activities", "models")
        for path in sorted((ROOT / layer).rglob("*.py"))
        for point in re.findall(r'crash_at\("([\w.]+)"\)', path.read_text())
    ]
    assert sorted(named) == sorted(POINTS)
    tested = [*OF_THE_API, *(point for points in OF_THE_WORKER.values() for point in points)]
    assert sorted(tested) == sorted(POINTS)


class Stage:
    """A database and a Temporal of one scene's own, and its e-mail provider."""

    def __init__(self, world: World, url: str, temporal: EmbeddedTemporal, client: Client, mail: ResendServer) -> None:
        self.world = world
        self.url = url
        self.temporal = temporal
        self.client = client
        self.mail = mail

    def process(self, command: str, log: Path, **changes: str) -> Fairlead:
        mail = {"RESEND_API_KEY": API_KEY, "RESEND_BASE_URL": self.mail.url, "EMAIL_FROM": FROM_ADDRESS}
        return Fairlead(command, log, database_url=self.url, temporal=self.temporal.address, **mail, **changes)


@asynccontextmanager
async def stage(url: str, directory: Path) -> AsyncIterator[Stage]:
    database = Database(url, name="fairlead-test")
    temporal = EmbeddedTemporal(None, log=directory / "temporal.log")
    temporal.start()
    try:
        settings = Settings(temporal_address=temporal.address, secret_key=DEVELOPMENT_SECRET, dev_mode=True)
        async with ResendServer() as mail:
            yield Stage(await World.make(database), url, temporal, await connect(settings), mail)
    finally:
        temporal.kill()
        await database.close()


async def dies(process: Fairlead) -> None:
    async def dead() -> bool:
        return not process.child.running

    await until(dead, within_s=60)
    assert process.child.returncode == -signal.SIGKILL, process.child.tail()


async def lapse_then_accept(stage: Stage) -> UUID:
    """The first driver lets the offer lapse, the next one takes it, and it is done."""
    world = stage.world
    await world.policy(WorkKind.ENROLLMENT, offer_ttl_s=2, on_timeout=OnTimeout.NEXT)
    drivers = {driver.driver_id: driver for driver in await world.line(3)}
    work = await world.enrollment()

    async def second() -> list[Any]:
        return [o for o in await world.offers(work) if o.status == "pending" and o.sequence > 1]

    async def accepted() -> bool:
        for offer in await second():
            await world.accept(offer.id, drivers[offer.driver_id])
            return True
        return False

    await until(accepted, within_s=90)
    async with world.database.transaction() as session:
        await complete(session, work)
    return work


async def forced_by_ops(stage: Stage) -> UUID:
    """Ops name a driver in the Temporal UI."""
    world = stage.world
    driver = await world.driver()
    work = await world.enrollment(manual=True)
    handle = stage.client.get_workflow_handle(workflow_id(work))

    async def exists() -> bool:
        return await described(handle)

    await until(exists, within_s=60)
    asked = OpsAction(actor="night-shift", driver_id=str(driver.driver_id), mode="offer")
    async with asyncio.timeout(90):
        await handle.execute_update(DispatchWorkflow.assign, asked)
    (offer,) = await world.offers(work)
    await world.accept(offer.id, driver)
    async with world.database.transaction() as session:
        await complete(session, work)
    return work


async def described(handle: Any) -> bool:
    try:
        await handle.describe()
    except RPCError:
        return False
    return True


async def crash_of_a_worker(point: str, url: str, directory: Path) -> None:
    directory.mkdir()
    async with stage(url, directory) as scene:
        armed = scene.process("worker", directory / "armed.log", DEV_CRASH_AT=point)
        successor = scene.process("worker", directory / "successor.log")
        tale = forced_by_ops if point == "ops.committed" else lapse_then_accept
        try:
            armed.child.launch()
            told = asyncio.create_task(tale(scene))
            await dies(armed)
            async with successor:
                work = await told
                handle = scene.client.get_workflow_handle(workflow_id(work))
                async with asyncio.timeout(90):
                    assert await handle.result() == "completed"
                if point.startswith("drain."):
                    await messages_arrive_once(scene)
                await invariants.check(scene.world.database)
                await invariants.check_decisions(scene.world.database)
        finally:
            armed.child.kill()


async def messages_arrive_once(scene: Stage) -> None:
    async def all_are_out() -> bool:
        left = "SELECT 1 FROM notifications WHERE status IN ('pending', 'sending')"
        return not await scene.world.all(left)

    await until(all_are_out, within_s=90)
    delivered = Counter(mail["key"] for mail in scene.mail.delivered)
    assert set(delivered.values()) <= {1}
    messages = await scene.world.all("SELECT id, status, error FROM notifications")
    for message in messages:
        arrived = str(message.id) in delivered
        # The dead worker's offer may have lapsed before anybody could tell whether its message had gone out.
        assert arrived or message.status != "sent"
        assert not arrived or message.status == "sent" or "may have arrived" in message.error


@pytest.mark.parametrize("points", OF_THE_WORKER.values(), ids=OF_THE_WORKER)
async def test_a_worker_that_dies_there_loses_and_doubles_nothing(
    points: Sequence[str], databases: Databases, tmp_path: Path
) -> None:
    urls = {point: await databases.create() for point in points}
    ends = await asyncio.gather(
        *(crash_of_a_worker(point, urls[point], tmp_path / point) for point in points), return_exceptions=True
    )
    for url in urls.values():
        await databases.drop(url)
    failed = {point: end for point, end in zip(points, ends, strict=True) if end is not None}
    assert failed == {}


@pytest.mark.parametrize("point", OF_THE_API)
async def test_an_api_that_dies_there_has_done_it_once_when_it_is_asked_again(
    point: str, database_url: str, tmp_path: Path
) -> None:
    async with stage(database_url, tmp_path) as scene:
        armed = scene.process("api", tmp_path / "armed.log", DEV_CRASH_AT=point)
        successor = scene.process("api", tmp_path / "successor.log")
        headers = scene.world.dispatcher.headers | {"Idempotency-Key": str(uuid4())}
        body = {"premise_id": "P-1", "timeslot": "08:00"}
        try:
            armed.child.launch()
            await armed.is_up()
            async with httpx.AsyncClient(base_url=armed.url) as client:
                with pytest.raises(httpx.TransportError):
                    await client.post("/api/v1/enrollments", json=body, headers=headers)
        finally:
            armed.child.kill()
        committed = point != "transaction.flushed"
        assert len(await scene.world.all("SELECT 1 FROM work_orders")) == committed
        async with successor, httpx.AsyncClient(base_url=successor.url) as client:
            answer = await client.post("/api/v1/enrollments", json=body, headers=headers)
            assert answer.status_code == 201
            assert ("Idempotency-Replayed" in answer.headers) == committed
            (made,) = await scene.world.all("SELECT id FROM work_orders")
            assert answer.json()["id"] == str(made.id)
            # The relay of the one that died may have the wake; the successor's sends it when the lease is over.
            handle = scene.client.get_workflow_handle(workflow_id(made.id))
            await until(lambda: described(handle), within_s=30)
        await invariants.check(scene.world.database)
