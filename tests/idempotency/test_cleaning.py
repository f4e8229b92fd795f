"""Keys are kept a day, by the database's clock."""

from __future__ import annotations

from sqlalchemy import text

from activities.sweeps import KEYS_AT_ONCE, SweepActivities
from models.kit.database import Database
from models.kit.ids import new_id
from tests.factories.api import settings
from tests.factories.desk import Desk
from workflows.client import DISPATCH_QUEUE, connect
from workflows.schedules import SWEEPS
from workflows.sweeps import SweepWorkflow
from workflows.worker import running_worker

_MANY_OLD = text("""
INSERT INTO idempotency_keys (
    organization_id, caller_id, method, route, key, fingerprint, status, headers, body, created_at
)
SELECT organization_id, caller_id, method, route, 'old ' || n, fingerprint, status, headers, body,
    clock_timestamp() - interval '24 hours 1 second'
FROM idempotency_keys, generate_series(1, CAST(:number AS int)) AS n WHERE key = 'kept'
""")


async def keys(database: Database) -> set[str]:
    async with database.transaction() as session:
        return {row.key for row in await session.rows(text("SELECT key FROM idempotency_keys"))}


async def test_keys_are_forgotten_after_a_day_and_no_earlier(desk: Desk, database: Database) -> None:
    body = await desk.body("jobs")
    made = {}
    for key in ("kept", "nearly", "over"):
        made[key] = await desk.ask("POST", "/jobs", json=body, headers={"Idempotency-Key": key})
    number = 2 * KEYS_AT_ONCE + 1
    async with database.transaction() as session:
        await session.run(_MANY_OLD, {"number": number})
        for key, hours in (("nearly", 23.99), ("over", 24.01)):
            await session.run(
                text("UPDATE idempotency_keys SET created_at = clock_timestamp() - make_interval(secs => :s) "
                     "WHERE key = :key"), {"key": key, "s": hours * 3600}
            )  # fmt: skip
    sweeps = SweepActivities(database)
    assert await sweeps.clean_idempotency_keys() == number + 1
    assert await keys(database) == {"kept", "nearly"}
    assert await sweeps.clean_idempotency_keys() == 0
    # What is forgotten is new again; what is kept is not.
    for key, is_new in (("over", True), ("nearly", False)):
        again = await desk.ask("POST", "/jobs", json=body, headers={"Idempotency-Key": key})
        assert (again.json()["id"] != made[key].json()["id"]) == is_new


async def test_the_sweep_is_scheduled_and_a_worker_runs_it(
    desk: Desk, database: Database, temporal_address: str
) -> None:
    sweep = SweepActivities.clean_idempotency_keys.__name__
    assert SWEEPS[sweep].total_seconds() == 3600
    await desk.ask("POST", "/jobs", json=await desk.body("jobs"), headers={"Idempotency-Key": "kept"})
    async with database.transaction() as session:
        await session.run(_MANY_OLD, {"number": 3})
    configured = settings(temporal_address=temporal_address)
    client = await connect(configured)
    async with running_worker(client, database, configured):
        await client.execute_workflow(SweepWorkflow.run, sweep, id=f"try-{new_id()}", task_queue=DISPATCH_QUEUE)
    assert await keys(database) == {"kept"}
