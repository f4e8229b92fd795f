"""Each invariant can fail: a break of its rule, and of no other, is named by it alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from sqlalchemy import text

from activities.sealing import AuditSealer
from api.cli.services import EmbeddedPostgres
from models.audit.signing import SealingKey
from models.fairness.chain import walk_lanes
from models.fairness.records import Header, make_record, read_record
from models.invariants import INVARIANTS, Invariant, tenant_references
from models.kit.database import Database
from models.work.commands import cancel, complete
from tests.conftest import Databases
from tests.factories import invariants
from tests.factories.work import World

pytestmark = pytest.mark.anyio

#: Invariant -> the statements that break it and no other. `{held}` and the like are ids of work orders.
BREAKS: dict[str, str] = {
    "a driver answers one exclusive offer at a time": """
        DROP INDEX uq_offers_pending_exclusive_driver;
        UPDATE offers SET driver_id = (SELECT driver_id FROM offers WHERE work_order_id = '{offered_too}')
        WHERE work_order_id = '{offered}';
        UPDATE decisions d SET driver_id = o.driver_id FROM offers o WHERE o.decision_id = d.id""",
    "a work order has one exclusive offer at a time": """
        DROP INDEX uq_offers_pending_exclusive_work_order;
        UPDATE offers SET work_order_id = '{offered}', sequence = 9 WHERE work_order_id = '{offered_too}';
        UPDATE decisions SET work_order_id = '{offered}' WHERE work_order_id = '{offered_too}';
        UPDATE work_orders SET match_from = now() WHERE id = '{offered_too}'""",
    "a work order has at most one open assignment": """
        DROP INDEX uq_assignments_open;
        INSERT INTO offers SELECT (jsonb_populate_record(o, jsonb_build_object(
            'id', uuidv7(), 'sequence', 9, 'round', 9, 'mode', 'force', 'decision_id', NULL))).*
        FROM offers o WHERE work_order_id = '{held}';
        INSERT INTO assignments SELECT (jsonb_populate_record(a, jsonb_build_object(
            'id', uuidv7(), 'counted', false,
            'offer_id', (SELECT id FROM offers WHERE work_order_id = '{held}' AND sequence = 9)))).*
        FROM assignments a WHERE work_order_id = '{held}'""",
    "active_count is the number of open counted assignments": """
        UPDATE driver_dispatch SET active_count = active_count + 1
        WHERE driver_id = (SELECT driver_id FROM offers WHERE work_order_id = '{offered}')""",
    "no driver holds more than the widest policy allows": """
        UPDATE dispatch_policies SET settings = settings || '{{"capacity": 0, "busy_fallback": false}}'""",
    "an offer of the lane goes to the driver of its decision": """
        UPDATE decisions SET driver_id = (SELECT driver_id FROM offers WHERE work_order_id = '{offered_too}')
        WHERE work_order_id = '{offered}'""",
    "each decision but `nobody` made an offer": """
        UPDATE offers SET decision_id = NULL WHERE work_order_id = '{offered}'""",
    "the lane counts its decisions without a gap": "UPDATE dispatch_lanes SET last_number = last_number + 1",
    "each decision is chained to the one before, and the last to its lane": """
        UPDATE decisions SET previous_hash = 'other' WHERE number = 2""",
    "held work has an open assignment to its driver, other work none": """
        UPDATE work_orders SET assigned_driver_id = (SELECT driver_id FROM offers WHERE work_order_id = '{offered}')
        WHERE id = '{held}'""",
    "completed work has one completed assignment, to its driver": """
        UPDATE assignments SET ended_by = 'unassigned' WHERE work_order_id = '{done}'""",
    "every accepted offer made one assignment": """
        UPDATE offers SET status = 'accepted', responded_at = now() WHERE work_order_id = '{offered}';
        UPDATE work_orders SET match_from = now() WHERE id = '{offered}'""",
    "only waiting work has open offers": """
        INSERT INTO offers SELECT (jsonb_populate_record(o, jsonb_build_object('id', uuidv7(), 'sequence', 9,
            'round', 9, 'status', 'pending', 'responded_at', NULL, 'exclusive', false, 'decision_id', NULL))).*
        FROM offers o WHERE work_order_id = '{held}'""",
    "waiting work is in the lane, on offer, due for a round, a person's, or parked": """
        UPDATE work_orders SET match_from = NULL, next_round_at = NULL WHERE id = '{waiting}'""",
    "a kept answer can be read": "UPDATE idempotency_keys SET body = '{{\"id\": '",
    "what a kept answer says was created exists": """
        UPDATE idempotency_keys SET body = convert_to('{{"id": "' || gen_random_uuid() || '"}}', 'UTF8')""",
    "one kept answer alone created what it says": """
        INSERT INTO idempotency_keys SELECT (jsonb_populate_record(k, '{{"key": "another"}}')).*
        FROM idempotency_keys k""",
    "each event begins where the one before ended": """
        UPDATE work_order_events SET created_at = (SELECT created_at + interval '1 us' FROM work_order_events
            WHERE work_order_id = '{done}' AND new_status = 'assigned')
        WHERE work_order_id = '{done}' AND previous_status IS NULL""",
    # Only an enrollment may go from assigned to completed.
    "every event is a step of the table": "UPDATE work_orders SET kind = 'job' WHERE id = '{done}'",
    "the last event is the status": "UPDATE work_orders SET status = 'en_route' WHERE id = '{held}'",
    "a state change has one event and one audit row": """
        UPDATE audit_log SET metadata = metadata - 'to' WHERE entity_id = '{held}'""",
    "the numbers of an audit chain have no gap": """
        DELETE FROM audit_leaves WHERE audit_id = (
            SELECT id FROM audit_log WHERE entity_type = 'user' ORDER BY id LIMIT 1);
        DELETE FROM audit_log WHERE id = (SELECT id FROM audit_log WHERE entity_type = 'user' ORDER BY id LIMIT 1)""",
    "audit seals follow each other from 1 without a gap, and each carries the hash before it": """
        UPDATE audit_seals SET previous_hash = 'other'""",
    "audit seals cover the numbers that were given": """
        UPDATE audit_seals SET last_number = last_number + 1
        WHERE first_number = (SELECT max(first_number) FROM audit_seals)""",
    "each number of an audit chain belongs to a row of its organization": """
        DELETE FROM audit_log WHERE entity_type = 'offer'""",
    "no audit row waits for its seal for over 60 s": """
        INSERT INTO audit_log (actor_kind, action, entity_type, entity_id, created_at)
        VALUES ('system', 'SIGN_IN_FAILED', 'user', uuidv7(), now() - interval '2 min')""",
    "every audit row of a transaction that the sealer has passed has its place": """
        INSERT INTO audit_log (actor_kind, action, entity_type, entity_id, transaction_id)
        VALUES ('system', 'SIGN_IN_FAILED', 'user', uuidv7(), '3')""",
    "nothing was sent that was not owed": "UPDATE workflow_wakes SET sent_seq = seq + 1",
    "every open work order has its wakes": "DELETE FROM workflow_wakes WHERE work_order_id = '{held}'",
    "a wake is sent within 60 s of being due": """
        UPDATE workflow_wakes SET sent_seq = seq - 1, due_at = now() - interval '2 min'""",
    "a message is sent within 60 s of being due": """
        UPDATE notifications SET status = 'pending', next_at = now() - interval '2 min'""",
    "no message is being sent for over 5 minutes": """
        UPDATE notifications SET status = 'sending', leased_until = now() - interval '5 min'""",
    "a row and what it refers to have one organization": """
        UPDATE driver_positions SET organization_id = (SELECT id FROM organizations WHERE name = 'Elsewhere')""",
    "what a row refers to exists": "UPDATE driver_positions SET driver_id = uuidv7()",
    "a sign-in has one live refresh token": """
        DROP INDEX uq_sessions_live;
        INSERT INTO sessions SELECT (jsonb_populate_record(s, jsonb_build_object('id', uuidv7(), 'token_hash', 'x'))).*
        FROM sessions s""",
    "a sign-in is one person's": """
        INSERT INTO sessions SELECT (jsonb_populate_record(s, jsonb_build_object('id', uuidv7(), 'token_hash', 'x',
            'revoked_at', now(), 'user_id', (SELECT id FROM users WHERE id <> s.user_id LIMIT 1)))).*
        FROM sessions s""",
}  # fmt: skip


async def a_morning(database: Database) -> dict[str, UUID]:
    """Work in every state, everything told, sent and sealed: nothing is broken or owed."""
    world = await World.make(database)
    drivers = await world.line(4)
    works = {name: await world.enrollment() for name in ("done", "held")}
    for name, driver in zip(("done", "held"), drivers, strict=False):
        await world.advance(works[name])
        await world.accept((await world.pending(works[name])).id, driver)
    # One after the other, so that none takes another's driver.
    for name in ("offered", "offered_too", "waiting"):
        works[name] = await world.enrollment(required_skills=("welding",) if name == "waiting" else ())
        await world.advance(works[name])
    cancelled, job = await world.enrollment(), await world.job()
    await world.order()
    await world.route(drivers[0])
    async with database.transaction() as session:
        await complete(session, works["done"])
    async with database.transaction() as session:
        await cancel(session, cancelled, None)
    async with database.transaction() as session:
        parked = {"id": job, "organization_id": world.organization_id}
        await session.run(
            text(
                "INSERT INTO stuck_work (work_order_id, organization_id, failures, error, first_failed_at, "
                "last_failed_at) VALUES (:id, :organization_id, 1, 'E', now(), now())"
            ),
            parked,
        )
        by = {"id": world.dispatcher.user_id, "job": job}
        await session.run(text("UPDATE work_orders SET requested_by_user_id = :id WHERE id = :job"), by)
        await session.run(text("UPDATE jobs SET customer_id = :id WHERE work_order_id = :job"), by)
        answered = {"organization_id": world.organization_id, "id": works["held"]}
        await session.run(
            text(
                "INSERT INTO idempotency_keys (organization_id, caller_id, method, route, key, fingerprint, status, "
                "headers, body) VALUES (:organization_id, uuidv7(), 'POST', '/enrollments', 'k', '', 201, '[]', "
                "convert_to(jsonb_build_object('id', CAST(:id AS uuid))::text, 'UTF8'))"
            ),
            answered,
        )
        await session.run(
            text(
                "INSERT INTO sessions (user_id, family_id, token_hash, expires_at) "
                "SELECT id, uuidv7(), 'hash', now() + interval '1 day' FROM users LIMIT 1"
            )
        )
        await session.run(text("INSERT INTO organizations (name, slug, kind) VALUES ('Elsewhere', 'else', 'operator')"))
        await session.run(text("UPDATE notifications SET status = 'sent', sent_at = now()"))
        await session.run(text("UPDATE workflow_wakes SET sent_seq = seq"))
    await AuditSealer(database, SealingKey("a key " * 8)).seal_all()
    return works


class Prepared(msgspec.Struct, frozen=True):
    """The database in which a morning has passed, to be cloned, and its work orders by name."""

    name: str
    works: dict[str, UUID]


@pytest.fixture(scope="module")
async def prepared(databases: Databases) -> AsyncIterator[Prepared]:
    url = await databases.create()
    database = Database(url, name="fairlead-test")
    works = await a_morning(database)
    await database.close()
    yield Prepared(url.rpartition("/")[2], works)
    await databases.drop(url)


@pytest.fixture
async def morning(databases: Databases, postgres: EmbeddedPostgres, prepared: Prepared) -> AsyncIterator[Database]:
    name = f"morning_{uuid4().hex[:8]}"
    administrator = await asyncpg.connect(postgres.dsn)
    await administrator.execute(f"CREATE DATABASE {name} TEMPLATE {prepared.name} STRATEGY FILE_COPY")
    database = Database(databases.url(name), name="fairlead-test", pool_size=2)
    yield database
    await database.close()
    await administrator.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await administrator.close()


async def by_force(database: Database, statements: str) -> None:
    """Past triggers and foreign keys, as a bug of Postgres, a careless hand or a bad restore would."""
    async with database.transaction() as session:
        for statement in ("SET LOCAL session_replication_role = replica", *statements.split(";")):
            await session.connection.exec_driver_sql(statement)


async def test_nothing_is_broken_to_begin_with(morning: Database) -> None:
    assert await invariants.broken(morning, quiet=True) == {}
    assert (await walk_lanes(morning)).decisions > 4


def test_each_invariant_has_a_break() -> None:
    assert [invariant.name for invariant in INVARIANTS if invariant.name not in BREAKS] == []
    assert len({invariant.name for invariant in INVARIANTS}) == len(INVARIANTS) == len(BREAKS)


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.name)
async def test_a_break_is_named_by_its_invariant_alone(
    morning: Database, prepared: Prepared, invariant: Invariant
) -> None:
    name, when = invariant.name, invariant.when
    await by_force(morning, BREAKS[name].format(**prepared.works))
    if when == "when_quiet":
        assert await invariants.broken(morning) == {}, "what takes time is not asked before there was any"
    broken = await invariants.broken(morning, quiet=when == "when_quiet")
    assert list(broken) == [name], broken
    assert 1 <= len(broken[name]) <= 5


# The lanes' decisions


async def faults(database: Database) -> list[tuple[int, str]]:
    return [(fault.number, fault.what) for fault in (await walk_lanes(database, batch=2)).faults]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("DELETE FROM decisions WHERE number = 2", [(3, "follows 1")]),
        ("DELETE FROM decisions WHERE number > 3", [(4, "missing, the lane counts 5")]),
        ("UPDATE dispatch_lanes SET last_hash = 'other'", [(5, "not the hash that the lane ends with")]),
        ("UPDATE decisions SET previous_hash = 'other' WHERE number = 3", [(3, "not chained to the one before")]),
        ("UPDATE decisions SET body_hash = 'other' WHERE number = 3",
         [(3, "its hash is not that of its number and body")]),
        ("UPDATE decisions SET candidates = (SELECT candidates FROM decisions WHERE number = 1) WHERE number = 3",
         [(3, "its body is not the one that was hashed")]),
        ("UPDATE decisions SET candidates = 'a line' WHERE number = 3", [(3, "its body cannot be read")]),
        ("UPDATE decisions SET policy_id = uuidv7() WHERE number = 3", [(3, "its columns are not what its body says")]),
        ("UPDATE decisions SET driver_id = uuidv7() WHERE number = 3", [(3, "its driver is not the one chosen")]),
        ("UPDATE decisions SET header = NULL, candidates = NULL, salts = NULL", []),
    ],
)  # fmt: skip
async def test_a_decision_that_is_not_as_it_was_made_is_found(
    morning: Database, change: str, found: list[tuple[int, str]]
) -> None:
    await by_force(morning, change)
    assert await faults(morning) == found


async def test_a_decision_that_its_inputs_do_not_give_is_found_though_its_hashes_fit(morning: Database) -> None:
    async with morning.transaction() as session:
        row = await session.row(text("SELECT * FROM decisions ORDER BY number DESC LIMIT 1"))
        assert row is not None
        header, candidates = read_record(row.header, row.candidates)
        # Somebody who was left out was not, says whoever can write the database.
        forged: Header = msgspec.structs.replace(header, order=(0,), excluded=header.excluded[1:])
        made = make_record(forged, candidates, row.previous_hash)
        await session.run(text("SET LOCAL session_replication_role = replica"))
        await session.run(
            text(
                "UPDATE decisions SET header = :header, candidates = :candidates, salts = :salts, "
                "body_hash = :body_hash, hash = :hash WHERE number = :number"
            ),
            msgspec.structs.asdict(made) | {"number": row.number},
        )
        await session.run(text("UPDATE dispatch_lanes SET last_hash = :hash"), {"hash": made.hash})
    assert await faults(morning) == [(5, "its inputs give another choice")]


# References


async def test_each_reference_to_another_organization_is_named(morning: Database) -> None:
    (tenancy,) = [one for one in INVARIANTS if one.name == "a row and what it refers to have one organization"]
    without_rows = set()
    for child, column, _, _ in tenant_references():
        async with morning.engine.connect() as connection, connection.begin() as transaction:
            await connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
            changed = await connection.exec_driver_sql(
                f"UPDATE {child} SET organization_id = (SELECT id FROM organizations WHERE name = 'Elsewhere') "
                f"WHERE {column} IS NOT NULL"
            )
            found = {row.reference for row in await connection.execute(text(tenancy.query))}
            assert (f"{child}.{column}" in found) == (changed.rowcount > 0), (child, column)
            if not changed.rowcount:
                without_rows.add(f"{child}.{column}")
            await transaction.rollback()
    assert without_rows == set(), "the morning has a row for each"
