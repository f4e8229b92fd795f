"""Backup and restore as docs/backup.md has them: what was committed by then goes on, and what was lost ends."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

import migrations
from api.cli.services import EmbeddedPostgres, EmbeddedTemporal
from api.cli.services.postgres import PASSWORD_FILE
from models.kit.database import Database
from models.kit.errors import Refusal
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from models.work.commands import cancel, complete, report_status
from models.work.rules import WorkOrderStatus as S
from models.work.wakes import workflow_id
from tests.backup.conftest import Site, ask, fairlead, own, password_of, tool
from tests.factories import invariants
from tests.factories.people import Person
from tests.factories.work import World
from tests.factories.workers import until
from workflows.client import connect
from workflows.reconcile import differences

pytestmark = pytest.mark.anyio

DRIVERS = 12


class Town:
    """Work in every state, and more all the time."""

    def __init__(self, world: World, drivers: list[Person]) -> None:
        self.world = world
        self.drivers = drivers
        self.random = random.Random(7)
        #: Assigned when the backup is made, and completed after it.
        self.completed_after: UUID
        #: Offered when the backup is made.
        self.offered: UUID
        self.offered_to: Person

    @classmethod
    async def make(cls, database: Database) -> Town:
        world = await World.make(database)
        town = cls(world, await world.line(DRIVERS))
        held, en_route, in_progress, completed, offered = works = [await world.enrollment() for _ in range(5)]
        for work in works:
            await until(lambda work=work: world.offers(work), within_s=30)
            if work is not offered:
                await world.accept((await world.pending(work)).id, await town.person_offered(work))
        await town.report(en_route, S.EN_ROUTE)
        await town.report(in_progress, S.EN_ROUTE, S.ARRIVED, S.IN_PROGRESS)
        await town.report(completed, S.COMPLETED)
        town.completed_after, town.offered = held, offered
        town.offered_to = await town.person_offered(offered)
        cancelled = await world.enrollment()
        async with database.transaction() as session:
            await cancel(session, cancelled, None)
        # Waiting, for a driver who knows how, for its time, and for a person; and the other kinds.
        await world.enrollment(required_skills=("welding",))
        await world.enrollment(scheduled_for=datetime.now(UTC) + timedelta(days=2))
        await world.enrollment(manual=True)
        await world.job()
        await world.order()
        await world.route(town.drivers[1])
        return town

    def on(self, database: Database) -> Town:
        """The same people before another database."""
        return Town(World(database, self.world.organization_id, self.world.dispatcher), self.drivers)

    async def person_offered(self, work: UUID) -> Person:
        offer = await self.world.pending(work)
        return next(driver for driver in self.drivers if driver.driver_id == offer.driver_id)

    async def report(self, work: UUID, *steps: S) -> None:
        driver_id = (await self.world.work_order(work)).assigned_driver_id
        for step in steps:
            async with self.world.database.transaction() as session:
                await report_status(session, work, driver_id, step)

    @contextlib.asynccontextmanager
    async def traffic(self, *, new_work: bool = True) -> AsyncIterator[None]:
        """The second half of the drivers at work; with the others the test has plans."""
        tasks = [asyncio.create_task(self._drive(driver)) for driver in self.drivers[DRIVERS // 2 :]]
        if new_work:
            tasks.append(asyncio.create_task(self._desk()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert [one for one in ended if not isinstance(one, asyncio.CancelledError)] == []

    async def _desk(self) -> None:
        while True:
            await (self.world.enrollment() if self.random.random() < 0.8 else self.world.job())
            await asyncio.sleep(0.3)

    async def _drive(self, driver: Person) -> None:
        """Answer what is offered, and see to what is held."""
        while True:
            await asyncio.sleep(self.random.uniform(0.05, 0.3))
            with contextlib.suppress(Refusal):
                for offer in await self.world.all(
                    "SELECT id FROM offers WHERE driver_id = :id AND status = 'pending'", id=driver.driver_id
                ):
                    await (self.world.accept if self.random.random() < 0.8 else self.world.reject)(offer.id, driver)
                for held in await self.world.all(
                    "SELECT work_order_id FROM assignments WHERE driver_id = :id AND ends_at IS NULL",
                    id=driver.driver_id,
                ):
                    async with self.world.database.transaction() as session:
                        await complete(session, held.work_order_id)


class System:
    """What runs, and what it is asked through."""

    def __init__(self, site: Site, temporal: EmbeddedTemporal, client: Client, postgres: EmbeddedPostgres) -> None:
        self.site = site
        self.temporal = temporal
        self.client = client
        self.postgres = postgres
        self.worker = site.worker(postgres.url, temporal)

    @classmethod
    async def start(cls, site: Site, postgres: EmbeddedPostgres) -> System:
        temporal = site.temporal()
        return cls(site, temporal, await client_of(temporal), postgres)

    async def lose_postgres(self) -> None:
        """Gone, with all that it has written; whoever used it is restarted with what takes its place."""
        self.worker.kill()
        self.postgres.kill()
        shutil.rmtree(self.postgres.data_dir)


async def client_of(temporal: EmbeddedTemporal) -> Client:
    return await connect(Settings(temporal_address=temporal.address, secret_key=DEVELOPMENT_SECRET, dev_mode=True))


@contextlib.asynccontextmanager
async def pool(url: str) -> AsyncIterator[Database]:
    database = Database(url, name="fairlead-test")
    try:
        yield database
    finally:
        await database.close()


async def status_of(client: Client, work: UUID) -> WorkflowExecutionStatus | None:
    """None where there is no such workflow."""
    try:
        return (await client.get_workflow_handle(workflow_id(work)).describe()).status
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise


async def after_the_backup(system: System, town: Town) -> UUID:
    """What the backup does not have: a work order, whose workflow Temporal has, and a completion."""
    lost = await town.world.enrollment(required_skills=("welding",))
    await town.report(town.completed_after, S.COMPLETED)

    async def known_to_temporal() -> bool:
        running, completed = WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.COMPLETED
        return (
            await status_of(system.client, lost) is running
            and await status_of(system.client, town.completed_after) is completed
        )

    await until(known_to_temporal, within_s=30)
    return lost


async def goes_on(town: Town, database: Database, url: str, system: System) -> Town:
    """The steps of docs/backup.md once Postgres is restored, until a life that the backup has half of is complete."""
    restored = town.on(database)
    assert await invariants.broken(database) == {}
    assert (await restored.world.pending(town.offered)).driver_id == town.offered_to.driver_id
    assert (await restored.world.work_order(town.completed_after)).status == "assigned"
    open_work = await restored.world.all(
        "SELECT id FROM work_orders WHERE status NOT IN ('completed', 'cancelled', 'expired', 'disputed') "
        "AND (scheduled_for IS NULL OR scheduled_for < now())"
    )
    system.worker = system.site.worker(url, system.temporal)
    said = await fairlead("resume", database_url=url, temporal=system.temporal)
    # The one that is scheduled keeps its hour.
    assert said.startswith(f"{len(open_work) + 1} open work orders: "), said

    async def all_run() -> bool:
        answers = await asyncio.gather(*(status_of(system.client, row.id) for row in open_work))
        return set(answers) == {WorkflowExecutionStatus.RUNNING}

    await until(all_run, within_s=30)
    await restored.world.accept((await restored.world.pending(town.offered)).id, town.offered_to)
    for work in (town.offered, town.completed_after):
        await restored.report(work, S.COMPLETED)
        assert await system.client.get_workflow_handle(workflow_id(work)).result() == "completed"
    return restored


async def is_whole(restored: Town, url: str, system: System) -> None:
    """Nothing is lost, doubled or at odds, and work goes on as before."""
    database = restored.world.database
    # New work is served, before what has waited since then.
    fresh = await restored.world.enrollment(priority=9)
    async with restored.traffic(new_work=False):
        await until(lambda: restored.world.offers(fresh), within_s=30)

    async def agree() -> bool:
        return await differences(system.client, database, settled_s=0.5, again_after_s=0.5) == []

    await until(agree, within_s=30)
    await until(lambda: _all_sealed(restored.world), within_s=30)
    assert await invariants.broken(database, quiet=True) == {}
    assert await invariants.check_decisions(database) > 4
    assert "Nothing was changed." in await fairlead("audit", "verify", database_url=url, temporal=system.temporal)


async def _all_sealed(world: World) -> bool:
    return not await world.all("SELECT 1 FROM audit_log a LEFT JOIN audit_leaves l ON l.audit_id = a.id "
                               "WHERE l.audit_id IS NULL")  # fmt: skip


@contextlib.asynccontextmanager
async def a_working_town(site: Site, **settings: str) -> AsyncIterator[tuple[System, Town]]:
    """On Postgres with these settings; traffic goes on until the block ends."""
    postgres = site.postgres("postgres")
    postgres.start()
    if settings:
        await ask(postgres, *(f"ALTER SYSTEM SET {name} = '{value}'" for name, value in settings.items()), "SELECT 1")
        postgres.stop()
        postgres.start()
    await migrations.upgrade(postgres.url)
    system = await System.start(site, postgres)
    async with pool(postgres.url) as database:
        town = await Town.make(database)
        async with town.traffic():
            yield system, town


def dump(postgres: EmbeddedPostgres, file: Path) -> None:
    tool("pg_dump", "--format=custom", f"--file={file}", "--dbname", postgres.dsn, password=password_of(postgres))


def restored_from(file: Path, site: Site) -> EmbeddedPostgres:
    """A new server with what the dump holds."""
    postgres = site.postgres("restored")
    postgres.start()
    tool(
        "pg_restore", "--dbname", postgres.dsn, "--exit-on-error", "--no-owner", "--jobs=2", file,
        password=password_of(postgres),
    )  # fmt: skip
    return postgres


async def test_a_dump_taken_while_work_goes_on_is_restored_and_the_same_temporal_goes_on(
    site: Site, tmp_path: Path
) -> None:
    file = tmp_path / "fairlead.dump"
    async with a_working_town(site) as (system, town):
        await asyncio.to_thread(dump, system.postgres, file)
        lost = await after_the_backup(system, town)
    await system.lose_postgres()
    postgres = restored_from(file, site)
    async with pool(postgres.url) as database:
        await is_whole(await goes_on(town, database, postgres.url, system), postgres.url, system)
        assert await system.client.get_workflow_handle(workflow_id(lost)).result() == "gone"


async def test_work_that_a_new_temporal_knows_nothing_of_comes_back(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "fairlead.dump"
    async with a_working_town(site) as (system, town):
        await asyncio.to_thread(dump, system.postgres, file)
        await after_the_backup(system, town)
    await system.lose_postgres()
    system.temporal.kill()
    system.temporal = site.temporal()
    system.client = await client_of(system.temporal)
    postgres = restored_from(file, site)
    async with pool(postgres.url) as database:
        await goes_on(town, database, postgres.url, system)


async def test_a_base_backup_and_the_archived_log_give_the_state_of_a_chosen_instant(
    site: Site, tmp_path: Path
) -> None:
    archive = site.owned_directory("archive")
    base = site.directory / "restored"
    async with a_working_town(
        site,
        archive_mode="on",
        archive_timeout="300s",
        archive_command=f"test ! -f {archive}/%f && cp %p {archive}/%f",
    ) as (system, town):
        old = system.postgres
        password = password_of(old)
        where = ("--host=127.0.0.1", f"--port={old.port}", "--username=postgres", "--no-password")
        await asyncio.to_thread(
            tool, "pg_basebackup", f"--pgdata={base}", "--checkpoint=fast", "--wal-method=none", *where,
            password=password,
        )  # fmt: skip
        # The backup is older than this work order, which only the log has.
        logged = await town.world.enrollment(manual=True)
        instant = await ask(old, "SELECT clock_timestamp()")
        lost = await after_the_backup(system, town)
        last = await ask(old, "SELECT pg_walfile_name(pg_switch_wal())")

        async def archived() -> bool:
            return (archive / str(last)).exists()

        await until(archived, within_s=30)
    await system.lose_postgres()
    with (base / "postgresql.auto.conf").open("a") as file:
        file.write(
            f"restore_command = 'cp {archive}/%f %p'\n"
            f"recovery_target_time = '{instant}'\n"
            "recovery_target_action = 'promote'\n"
            # Its own log goes nowhere: the archive is that of the server before it.
            "archive_mode = off\n"
        )
    (base / "recovery.signal").touch()
    own(base)
    assert (base / PASSWORD_FILE).read_text().strip() == password
    postgres = site.postgres("restored")
    postgres.start()
    async with pool(postgres.url) as database:
        assert (await town.on(database).world.work_order(logged)).status == "pending", "the log has it"
        await is_whole(await goes_on(town, database, postgres.url, system), postgres.url, system)
        assert await system.client.get_workflow_handle(workflow_id(lost)).result() == "gone"
