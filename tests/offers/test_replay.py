"""Workflow code of today runs what earlier releases have begun: recorded histories replay, and a change that would
break them is caught."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

from models.kit.database import Database
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from models.work.wakes import workflow_id
from tests.factories import invariants
from tests.factories.work import World
from tests.factories.workers import dispatch_worker
from tests.histories.record import RECORDERS, Scene, continued_as_new, suggesting_server
from workflows.client import DATA_CONVERTER, connect
from workflows.notifications import NotificationSender
from workflows.offers import DispatchInput, DispatchWorkflow
from workflows.relay import WakeRelay
from workflows.sweeps import SweepWorkflow
from workflows.worker import sandbox

pytestmark = pytest.mark.anyio

WORKFLOWS = [DispatchWorkflow, NotificationSender, SweepWorkflow]
HISTORIES = sorted((Path(__file__).resolve().parents[1] / "histories").glob("*.json"))


def read(path: Path) -> WorkflowHistory:
    return WorkflowHistory.from_json(f"work-order-{path.stem}", path.read_text())


def test_every_path_has_a_recorded_history() -> None:
    assert {path.stem for path in HISTORIES} >= set(RECORDERS)


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_a_recorded_history_replays(path: Path) -> None:
    replayer = Replayer(workflows=WORKFLOWS, data_converter=DATA_CONVERTER, workflow_runner=sandbox())
    result = await replayer.replay_workflow(read(path))
    assert result.replay_failure is None


@workflow.defn(name="DispatchWorkflow", sandboxed=False)
class ThinksFirst(DispatchWorkflow):
    """The workflow with another order of commands: a timer before its first look."""

    @workflow.init
    def __init__(self, work: DispatchInput) -> None:
        super().__init__(work)

    @workflow.run
    async def run(self, work: DispatchInput) -> str:
        await workflow.sleep(1)
        return await super().run(work)


@workflow.defn(name="DispatchWorkflow", sandboxed=False)
class ShowsNothing(DispatchWorkflow):
    """The workflow without the search attributes that it used to set."""

    @workflow.init
    def __init__(self, work: DispatchInput) -> None:
        super().__init__(work)

    @workflow.run
    async def run(self, work: DispatchInput) -> str:
        return await super().run(work)

    def show(self) -> None:
        return


@pytest.mark.parametrize("changed", [ThinksFirst, ShowsNothing])
async def test_a_changed_order_of_commands_is_caught(changed: type) -> None:
    replayer = Replayer(workflows=[changed], data_converter=DATA_CONVERTER)
    history = read(next(path for path in HISTORIES if path.stem == "accept"))
    result = await replayer.replay_workflow(history, raise_on_replay_failure=False)
    assert isinstance(result.replay_failure, NondeterminismError)


@pytest.fixture
async def suggesting(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Settings]:
    """A server that suggests after a few events to continue as new."""
    directory = tmp_path_factory.mktemp("suggesting")
    server = suggesting_server(directory)
    server.start()
    yield Settings(temporal_address=server.address, secret_key=DEVELOPMENT_SECRET, dev_mode=True)
    server.kill()
    shutil.rmtree(directory)


async def test_a_long_life_continues_as_new_and_forgets_nothing(database: Database, suggesting: Settings) -> None:
    client = await connect(suggesting)
    async with dispatch_worker(database, client):
        relaying = asyncio.create_task(WakeRelay(database, suggesting, client).run())
        try:
            work = await continued_as_new(Scene(await World.make(database), client))
            handle = client.get_workflow_handle(workflow_id(work))
            assert await handle.result() == "completed"
            description = await handle.describe()
            shown = {pair.key.name: pair.value for pair in description.typed_search_attributes}
            assert (shown["WorkOrderStatus"], shown["WorkOrderKind"]) == ("completed", "enrollment")
            assert shown["Reference"].startswith("EN-")
            first = description.raw_description.workflow_execution_info.first_run_id
            assert first != description.run_id
            history = await client.get_workflow_handle(workflow_id(work), run_id=first).fetch_history()
            assert history.events[-1].event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW
            chain = await handle.query(DispatchWorkflow.offer_chain)
            offers = await database_offers(database)
            assert len(chain) == min(offers, 20), "the chain is read from Postgres, so it spans the runs"
        finally:
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)
    await invariants.check(database)


async def database_offers(database: Database) -> int:
    from sqlalchemy import text

    async with database.transaction() as session:
        count: int = await session.value(text("SELECT count(*) FROM offers"))
        return count
