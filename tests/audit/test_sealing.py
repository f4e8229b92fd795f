"""The sealer: gap-free numbers for what is committed, outside the transactions that write, and one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from temporalio.client import Client

from activities import sealing
from activities.sealing import AuditSealer
from models.audit.invariants import AUDIT_INVARIANTS
from models.audit.rules import LONGEST_TRANSACTION_S, NO_ORGANIZATION
from models.audit.sealing import seal_batch, something_to_seal
from models.audit.signing import SealingKey
from models.audit.verification import Kind
from models.kit.database import Database
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from tests.audit.factories import KEY, Log, note, tampering, until_cancelled
from tests.factories.people import People
from tests.factories.proxy import Proxy
from tests.factories.statements import Statements
from tests.factories.workers import until
from workflows.client import connect
from workflows.worker import running_worker

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def running(sealer: AuditSealer) -> AsyncIterator[None]:
    task = asyncio.create_task(sealer.run())
    try:
        yield
    finally:
        await until_cancelled(task)


async def assert_sealed(log: Log) -> None:
    """Every row has its place, and every chain fits."""
    assert await log.findings() == []
    assert (await log.unsealed()).rows == 0
    for name, query in AUDIT_INVARIANTS.items():
        assert await log.all(query) == [], name


async def test_rows_get_numbers_and_seals_per_organization(log: Log) -> None:
    people = People(log.database)
    ours, theirs = await people.organization(), await people.organization()
    await log.seal()
    before = {chain: (await log.chain(chain)).last for chain in (ours, theirs)}
    await log.write(ours, 3)
    await log.write(theirs, 2)
    await log.write(None)
    assert await log.seal() == 6
    assert (await log.chain(ours)).last == before[ours] + 3
    assert (await log.chain(theirs)).last == before[theirs] + 2
    assert (await log.chain(NO_ORGANIZATION)).last == 1
    await log.write(ours)
    assert await log.seal() == 1
    assert await log.seal() == 0
    seals = await log.all("SELECT * FROM audit_seals WHERE organization_id = :id ORDER BY first_number", id=ours)
    assert [(seal.first_number, seal.last_number) for seal in seals[-2:]] == [
        (before[ours] + 1, before[ours] + 3),
        (before[ours] + 4, before[ours] + 4),
    ]
    assert seals[-1].previous_hash == seals[-2].hash
    await assert_sealed(log)


async def test_leaves_and_seals_are_never_changed(log: Log, organization_id: UUID) -> None:
    for statement in ("UPDATE audit_leaves SET number = 9", "DELETE FROM audit_leaves", "DELETE FROM audit_seals"):
        with pytest.raises(DBAPIError, match="append-only"):
            await log.all(statement)


async def test_numbers_have_no_gap_under_concurrent_writers_of_whom_some_roll_back(
    log: Log, organization_id: UUID
) -> None:
    async def writer(n: int) -> None:
        for i in range(10):
            with contextlib.suppress(ZeroDivisionError):
                async with log.database.transaction() as session:
                    note(session, organization_id if n % 2 else None)
                    await session.flush()
                    if (n + i) % 3 == 0:
                        raise ZeroDivisionError

    async def sealers() -> None:
        while True:
            await asyncio.gather(log.seal(), AuditSealer(log.database, KEY, at_most=3).seal_all())

    sealing_beside = asyncio.create_task(sealers())
    await asyncio.gather(*(writer(n) for n in range(10)))
    await until_cancelled(sealing_beside)
    await log.seal()
    rows = (await log.all("SELECT count(*) AS n FROM audit_log WHERE organization_id = :id", id=organization_id))[0].n
    assert await log.numbers(organization_id) == list(range(1, rows + 1))
    await assert_sealed(log)


async def test_rows_of_a_long_transaction_come_when_it_ends_and_nobody_waits(log: Log, organization_id: UUID) -> None:
    last = (await log.chain(organization_id)).last
    await log.write(organization_id, 4)
    async with log.database.transaction() as long:
        note(long, organization_id, which="long")
        await long.flush()
        await log.write(organization_id, 2)
        assert await log.seal() == 4, "the others are younger than the transaction that is still open"
        assert await log.seal() == 0
        assert (await log.unsealed()).rows == 2
    assert await log.seal() == 3
    assert await log.numbers(organization_id) == list(range(1, last + 8))
    await assert_sealed(log)


async def test_of_two_sealers_one_seals_and_the_other_goes_on(log: Log, organization_id: UUID) -> None:
    await log.write(organization_id, 3)
    async with log.database.transaction() as session:
        assert (await seal_batch(session, KEY)).rows == 3
        other = AuditSealer(log.database, KEY)
        assert await other.seal_all() == 0
    assert await other.seal_all() == 0
    await assert_sealed(log)


async def test_writers_wait_for_no_lock_of_the_sealer(log: Log, organization_id: UUID) -> None:
    """Fifty commit while the sealer's transaction is open, after all that it does."""
    await log.write(organization_id, 3)
    blocked: list[object] = []
    at_once = asyncio.Semaphore(10)

    async def watch(sealer: int) -> None:
        while True:
            blocked.extend(
                await log.all(
                    "SELECT pid, query FROM pg_stat_activity WHERE :sealer = ANY(pg_blocking_pids(pid))", sealer=sealer
                )
            )
            await asyncio.sleep(0.001)

    async def write() -> None:
        async with at_once:
            await log.write(organization_id)

    async with log.database.transaction() as session:
        assert (await seal_batch(session, KEY)).rows == 3
        watching = asyncio.create_task(watch(await session.value(text("SELECT pg_backend_pid()"))))
        async with asyncio.timeout(20):
            await asyncio.gather(*(write() for _ in range(50)))
        await until_cancelled(watching)
        held = await session.rows(
            text("SELECT relation::regclass::text AS name, mode FROM pg_locks WHERE pid = pg_backend_pid()")
        )
    assert blocked == []
    assert {row.mode for row in held if row.name and row.name.startswith("audit_log")} == {"AccessShareLock"}
    assert await log.seal() == 50
    await assert_sealed(log)


@pytest.mark.parametrize("delay_s", [0, 0.002, 0.005, 0.01, 0.02, 0.05])
async def test_a_sealer_that_is_cut_off_leaves_all_of_a_batch_or_nothing(
    log: Log, database_url: str, organization_id: UUID, delay_s: float
) -> None:
    await log.write(organization_id, 40)
    async with Proxy(database_url) as proxy:
        cut = Database(proxy.url, name="fairlead-test-cut")
        task = asyncio.create_task(AuditSealer(cut, KEY, at_most=10).seal_all())
        await asyncio.sleep(delay_s)
        await proxy.refuse()
        await asyncio.gather(task, return_exceptions=True)
        await cut.close()
    await until(lambda: nobody_seals(log))
    assert await log.findings() == [], "what is there fits, whatever is missing"
    await log.seal()
    await assert_sealed(log)


async def nobody_seals(log: Log) -> bool:
    return not await log.all("SELECT pid FROM pg_stat_activity WHERE application_name = 'fairlead-test-cut'")


async def test_a_batch_that_is_cut_off_before_its_commit_is_sealed_by_the_next(
    log: Log, database_url: str, organization_id: UUID
) -> None:
    await log.write(organization_id, 3)
    async with Proxy(database_url) as proxy:
        cut = Database(proxy.url, name="fairlead-test-cut")
        with pytest.raises((DBAPIError, OSError)):
            async with cut.transaction() as session:
                assert (await seal_batch(session, KEY)).rows == 3
                await proxy.refuse()
        await cut.close()
    await until(lambda: nobody_seals(log))
    assert await log.seal() == 3
    await assert_sealed(log)


async def test_an_idle_look_is_one_statement(log: Log, organization_id: UUID) -> None:
    statements = Statements(log.database)
    assert await log.seal() == 0
    assert len(statements) == 1
    async with log.database.transaction() as session:
        await session.run(text("SET LOCAL enable_seqscan = off"))
        plan = await session.rows(text(f"EXPLAIN {statements[0][0]}"))
    assert not any("Seq Scan on audit_log" in row[0] for row in plan), plan


async def test_after_a_stop_the_rows_are_sealed_in_bounded_batches_and_none_counts_as_backdated(
    log: Log, database_url: str, organization_id: UUID
) -> None:
    """The sealer was down for hours: later batches of what has gathered come after seals of a minute ago."""
    last = (await log.chain(organization_id)).last
    await log.write(organization_id, 25)
    async with tampering(database_url) as tamper:
        # As if all this had begun five hours ago.
        hours = timedelta(seconds=30 * LONGEST_TRANSACTION_S)
        await tamper.execute("UPDATE audit_log SET created_at = created_at - $1::interval WHERE metadata ? 'n'", hours)
        await tamper.execute("UPDATE audit_sealer SET complete_at = complete_at - $1::interval", hours)
    sealer = AuditSealer(log.database, KEY, at_most=10)
    assert await sealer.seal_all() == 25
    seals = await log.all(
        "SELECT last_number - first_number + 1 AS size FROM audit_seals WHERE organization_id = :id"
        " ORDER BY first_number DESC LIMIT 3",
        id=organization_id,
    )
    assert [seal.size for seal in seals] == [5, 10, 10]
    assert (await log.chain(organization_id)).last == last + 25
    await assert_sealed_but_for_age(log)


async def assert_sealed_but_for_age(log: Log) -> None:
    assert await log.findings() == []
    assert (await log.unsealed()).rows == 0


async def test_rows_of_one_large_transaction_are_sealed_in_several_batches(log: Log, organization_id: UUID) -> None:
    await log.write(organization_id, 23)
    assert await AuditSealer(log.database, KEY, at_most=5).seal_all() == 23
    await assert_sealed(log)


async def test_in_another_cluster_all_rows_are_looked_at_once(
    log: Log, database_url: str, organization_id: UUID
) -> None:
    """A dump is restored where transaction ids are lower, with rows that were not sealed yet."""
    await log.write(organization_id, 7)
    async with tampering(database_url) as tamper:
        await tamper.execute("UPDATE audit_sealer SET system_identifier = 1, horizon = '5000000000'")
        await tamper.execute("UPDATE audit_log SET transaction_id = '4999999999' WHERE metadata->>'n' = '1'")
        await tamper.execute("UPDATE audit_log SET transaction_id = '5000000007' WHERE metadata->>'n' = '2'")
    async with log.database.reading() as session:
        assert await something_to_seal(session)
    assert await AuditSealer(log.database, KEY, at_most=2).seal_all() == 7
    (sealer,) = await log.all(
        "SELECT s.system_identifier = here.system_identifier AS own, s.horizon <= pg_current_xact_id() AS present"
        " FROM audit_sealer s, pg_control_system() here"
    )
    assert sealer.own
    assert sealer.present
    await log.write(organization_id, 2)
    assert await log.seal() == 2
    await assert_sealed(log)


async def test_an_interrupted_look_at_all_rows_begins_again(log: Log, database_url: str, organization_id: UUID) -> None:
    await log.write(organization_id, 7)
    async with tampering(database_url) as tamper:
        await tamper.execute("UPDATE audit_sealer SET system_identifier = 1")
    async with log.database.transaction() as session:
        assert (await seal_batch(session, KEY, at_most=3)).more
    # It ends here, and another one takes over.
    await log.write(organization_id)
    assert await log.seal() == 5
    await assert_sealed(log)


async def test_another_row_with_the_id_of_one_stops_nobody(log: Log, database_url: str, organization_id: UUID) -> None:
    await log.write(organization_id)
    async with tampering(database_url) as tamper:
        await tamper.execute(
            "INSERT INTO audit_log (id, organization_id, actor_kind, action, entity_type, entity_id, created_at)"
            " SELECT id, organization_id, actor_kind, 'OTHER', entity_type, entity_id, created_at + interval '1 ms'"
            " FROM audit_log WHERE metadata ? 'n'"
        )
    await log.seal()
    await log.write(organization_id)
    assert await log.seal() == 1
    assert await log.kinds() == {Kind.INSERTED}


# The loop


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "EVERY_S", 0.02)
    monkeypatch.setattr(sealing, "LONGEST_DELAY_S", 0.05)


async def test_the_loop_waits_out_an_outage(
    log: Log, database_url: str, organization_id: UUID, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def sealed() -> bool:
        return (await log.unsealed()).rows == 0

    async with Proxy(database_url) as proxy:
        beyond = Database(proxy.url, name="fairlead-test-cut")
        async with running(AuditSealer(beyond, KEY)):
            await log.write(organization_id)
            await until(sealed)
            await proxy.refuse()
            await log.write(organization_id)
            await until(warned(caplog, "sealer_database_unavailable"))
            assert not await sealed()
            await proxy.resume()
            await until(sealed)
        await beyond.close()
    await assert_sealed(log)


async def test_a_batch_that_fails_does_not_end_the_loop(
    log: Log, database_url: str, organization_id: UUID, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody has taken the next number. That is said, and sealing goes on once it is free."""
    last = (await log.chain(organization_id)).last
    async with tampering(database_url) as tamper:
        await tamper.execute(
            "INSERT INTO audit_leaves SELECT gen_random_uuid(), organization_id, $1, created_at, commitment, hash"
            " FROM audit_leaves WHERE organization_id = $2 AND number = 1",
            last + 1, organization_id,
        )  # fmt: skip
        await log.write(organization_id)
        with pytest.raises(IntegrityError):
            await log.seal()
        async with running(log.sealer):
            await until(warned(caplog, "sealer_refused"))
            assert (await log.unsealed()).rows == 1
            assert await log.kinds() == {Kind.INSERTED}
            await tamper.execute("DELETE FROM audit_leaves WHERE number = $1", last + 1)
            await until(lambda: sealed_up_to(log, organization_id, last + 1))
    await assert_sealed(log)


class KeyThatFailsOnce(SealingKey):
    def __init__(self) -> None:
        super().__init__(DEVELOPMENT_SECRET)
        self.failed = False

    def sign(self, hash: bytes) -> bytes:
        if not self.failed:
            self.failed = True
            raise ValueError("out of order")
        return super().sign(hash)


async def test_an_error_that_nobody_thought_of_does_not_end_the_loop(
    log: Log, organization_id: UUID, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def sealed() -> bool:
        return (await log.unsealed()).rows == 0

    await log.write(organization_id)
    async with running(AuditSealer(log.database, KeyThatFailsOnce())):
        await until(warned(caplog, "sealer_failed"))
        await until(sealed)
    await assert_sealed(log)


async def sealed_up_to(log: Log, organization_id: UUID, number: int) -> bool:
    return number in await log.numbers(organization_id)


def warned(caplog: pytest.LogCaptureFixture, text: str):  # type: ignore[no-untyped-def]
    async def so() -> bool:
        return any(text in record.getMessage() and record.levelno >= logging.WARNING for record in caplog.records)

    return so


async def test_a_worker_seals(log: Log, temporal_address: str, organization_id: UUID) -> None:
    settings = Settings(temporal_address=temporal_address, secret_key=DEVELOPMENT_SECRET, dev_mode=True)
    client: Client = await connect(settings)
    await log.write(organization_id)
    async with running_worker(client, log.database, settings):

        async def sealed() -> bool:
            return (await log.unsealed()).rows == 0

        await until(sealed)
    await assert_sealed(log)
