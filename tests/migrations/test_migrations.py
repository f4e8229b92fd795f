"""The schema: its history runs both ways, and what it forbids is forbidden in the database itself."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

import migrations
from activities.sweeps import SweepActivities
from models.audit.tables import audit_log
from models.drivers.rules import Duty
from models.kit.base import metadata
from models.kit.database import Database
from models.notifications.rules import Channel, NotificationStatus
from models.offers.rules import EndedBy, OfferMode, OfferReason, OfferStatus
from models.schema import PARTITIONED
from models.work.rules import Source, WorkKind, WorkOrderStatus
from tests.conftest import Databases
from tests.factories.work import World

pytestmark = pytest.mark.anyio


@pytest.fixture
async def world(database: Database) -> World:
    return await World.make(database)


@pytest.fixture
async def empty(databases: Databases, postgres: Any) -> AsyncIterator[str]:
    """A database without a schema."""
    name = f"empty_{uuid4().hex[:8]}"
    administrator = await asyncpg.connect(postgres.dsn)
    await administrator.execute(f"CREATE DATABASE {name}")
    yield databases.url(name)
    await administrator.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await administrator.close()


async def on_connection(url: str, work: Any) -> Any:
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"), poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            result = await connection.run_sync(work)
            await connection.commit()
            return result
    finally:
        await engine.dispose()


def things(connection: Connection) -> set[tuple[str, str]]:
    """All that a migration makes: tables, indexes, constraints, functions, triggers and extensions."""
    rows = connection.execute(
        text("""
        SELECT relkind::text, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT 'constraint', conrelid::regclass || '.' || conname FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT 'function', proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT 'trigger', tgrelid::regclass || '.' || tgname FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL SELECT 'extension', extname FROM pg_extension""")
    )
    return {(kind, name) for kind, name in rows if not name.startswith("alembic_version")}


async def test_up_down_and_up_again_give_the_same_schema(empty: str) -> None:
    def down(connection: Connection) -> None:
        config = migrations.alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")

    before = await on_connection(empty, things)
    await migrations.upgrade(empty)
    first = await on_connection(empty, things)
    assert await migrations.current(empty) == migrations.head()
    assert first > before
    await on_connection(empty, down)
    left = {thing for thing in await on_connection(empty, things) if "alembic_version" not in thing[1]}
    assert left == before
    await migrations.upgrade(empty)
    assert await on_connection(empty, things) == first


async def test_upgrading_twice_changes_nothing(empty: str) -> None:
    await migrations.upgrade(empty)
    first = await on_connection(empty, things)
    await migrations.upgrade(empty)
    assert await on_connection(empty, things) == first


async def test_the_migrations_make_what_the_tables_say(database_url: str) -> None:
    """No drift: `alembic revision --autogenerate` would find nothing to do."""

    def drift(connection: Connection) -> list[Any]:
        partitions = set(connection.scalars(text("SELECT relname FROM pg_class WHERE relispartition")))

        def include_name(name: str | None, kind: str, _: Any) -> bool:
            return kind != "table" or name not in partitions

        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "include_name": include_name, "target_metadata": metadata}
        )
        return list(compare_metadata(context, metadata))

    from sqlalchemy.dialects.postgresql.base import ischema_names

    ischema_names["xid8"] = type(audit_log.c.transaction_id.type)
    assert await on_connection(database_url, drift) == []


#: Column -> the enumeration its CHECK must list.
CHECKED: dict[str, type[StrEnum]] = {
    "ck_work_orders_kind": WorkKind,
    "ck_work_orders_status": WorkOrderStatus,
    "ck_work_orders_source": Source,
    "ck_work_order_events_new_status": WorkOrderStatus,
    "ck_work_order_events_previous_status": WorkOrderStatus,
    "ck_offers_status": OfferStatus,
    "ck_offers_mode": OfferMode,
    "ck_offers_reason": OfferReason,
    "ck_assignments_ended_by": EndedBy,
    "ck_driver_dispatch_duty": Duty,
    "ck_dispatch_policies_kind": WorkKind,
    "ck_notifications_status": NotificationStatus,
    "ck_notifications_channel": Channel,
}


async def test_every_status_check_lists_its_enumeration(world: World) -> None:
    rows = await world.all(
        "SELECT DISTINCT conname, pg_get_constraintdef(oid) AS says FROM pg_constraint WHERE contype = 'c' "
        "AND conrelid IN (SELECT oid FROM pg_class WHERE NOT relispartition)"
    )
    checks = {row.conname: set(re.findall(r"'(\w+)'", row.says)) for row in rows}
    for name, values in CHECKED.items():
        assert checks[name] == {value.value for value in values}, name


# Partitions


async def test_the_months_ahead_have_partitions_and_a_sweep_adds_what_is_missing(world: World) -> None:
    months = """
        SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' AND relname IN (
            SELECT t || '_' || to_char(date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => m),
                'YYYY_MM') FROM unnest(CAST(:tables AS text[])) t, generate_series(-1, 3) m)"""
    assert len(await world.all(months, tables=list(PARTITIONED))) == 5 * len(PARTITIONED)
    sweeps = SweepActivities(world.database)
    assert await sweeps.make_partitions() == 0
    (last,) = await world.all(
        "SELECT 'notifications_' || to_char(date_trunc('month', now() AT TIME ZONE 'UTC') + interval '3 months', "
        "'YYYY_MM') AS name"
    )
    async with world.database.transaction() as session:
        await session.run(text(f"DROP TABLE {last.name}"))
    assert await sweeps.make_partitions() == 1
    assert len(await world.all(months, tables=list(PARTITIONED))) == 5 * len(PARTITIONED)


async def test_a_row_of_next_month_finds_its_partition(world: World) -> None:
    work = await world.enrollment()
    await world.all(
        "INSERT INTO work_order_events (organization_id, work_order_id, new_status, created_at) "
        "VALUES (:organization, :work, 'pending', now() + interval '2 months') RETURNING 1",
        organization=world.organization_id,
        work=work,
    )


# What the database refuses


async def refused(world: World, sql: str, **values: Any) -> str:
    """The database's own word for it."""
    with pytest.raises(DBAPIError) as error:
        await world.all(f"{sql} RETURNING 1", **values)
    return str(error.value.orig)


async def test_journals_are_append_only(world: World) -> None:
    await world.enrollment()
    for table in ("work_order_events", "audit_log"):
        assert f"{table}" in await refused(world, f"UPDATE {table} SET created_at = created_at")
        assert "append-only" in await refused(world, f"DELETE FROM {table}")


async def test_a_decision_may_lose_its_body_but_never_its_place_in_the_chain(world: World) -> None:
    work = await world.enrollment()
    await world.advance(work)
    for change in ("hash = 'x'", "previous_hash = 'x'", "body_hash = 'x'", "number = 9", "rule_version = 9",
                   "decided_at = now()", "work_order_id = gen_random_uuid()"):  # fmt: skip
        assert "append-only" in await refused(world, f"UPDATE decisions SET {change}"), change
    assert "append-only" in await refused(world, "DELETE FROM decisions")
    await world.all("UPDATE decisions SET header = NULL, candidates = NULL, salts = NULL RETURNING 1")


async def offered(world: World) -> tuple[UUID, Any]:
    work = await world.enrollment()
    await world.advance(work)
    return work, await world.pending(work)


async def test_a_closed_offer_does_not_change(world: World) -> None:
    driver = await world.driver()
    _, offer = await offered(world)
    await world.reject(offer.id, driver)
    other = await world.driver()
    for change in ("status = 'accepted'", "expires_at = expires_at - interval '1 s'", "responded_at = now()",
                   f"driver_id = '{other.driver_id}'", "status = 'expired', reason = 'timeout'",
                   "status = 'pending', responded_at = NULL"):  # fmt: skip
        assert "is closed" in await refused(world, f"UPDATE offers SET {change}"), change


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("responded_at = now()", "ck_offers_responded_at"),
        ("status = 'rejected'", "ck_offers_responded_at"),
        ("status = 'expired', responded_at = now()", "ck_offers_expired_has_reason"),
        ("reason = 'timeout'", "ck_offers_expired_has_reason"),
        ("expires_at = expires_max_at + interval '1 s'", "ck_offers_expires_max_at"),
        ("status = 'lost', responded_at = now()", "ck_offers_status"),
    ],
)
async def test_an_offer_cannot_be_half_answered(world: World, change: str, constraint: str) -> None:
    await world.driver()
    await offered(world)
    assert constraint in await refused(world, f"UPDATE offers SET {change}")


async def copy_offer(world: World, offer: Any, **changes: Any) -> str:
    columns = {
        "work_order_id": offer.work_order_id, "driver_id": offer.driver_id, "round": offer.round + 1,
        "sequence": offer.sequence + 1, "organization_id": offer.organization_id, "exclusive": True,
    } | changes  # fmt: skip
    names = ", ".join(columns)
    return await refused(
        world,
        f"INSERT INTO offers ({names}, mode, offered_at, expires_at, expires_max_at, policy_id) "
        f"SELECT {', '.join(f':{name}' for name in columns)}, 'sequential', now(), now(), now(), policy_id "
        "FROM offers WHERE id = :source",
        source=offer.id,
        **columns,
    )


async def test_one_exclusive_offer_is_open_per_driver_and_per_work_order(world: World) -> None:
    await world.driver()
    work, offer = await offered(world)
    other = await world.driver()
    elsewhere = await world.enrollment(manual=True)
    assert "uq_offers_pending_exclusive_work_order" in await copy_offer(world, offer, driver_id=other.driver_id)
    assert "uq_offers_pending_exclusive_driver" in await copy_offer(world, offer, work_order_id=elsewhere)
    assert "uq_offers_work_order_id" in await copy_offer(world, offer, round=offer.round, exclusive=False)
    assert "uq_offers_work_order_id" in await copy_offer(world, offer, sequence=offer.sequence, exclusive=False)
    assert work == offer.work_order_id


async def test_a_work_order_has_one_open_assignment(world: World) -> None:
    driver = await world.driver()
    _, offer = await offered(world)
    await world.accept(offer.id, driver)
    with pytest.raises(IntegrityError, match="uq_assignments_offer_id"):
        await world.all(
            "INSERT INTO assignments (organization_id, work_order_id, driver_id, offer_id, starts_at, ends_at, "
            "ended_by, counted) SELECT organization_id, work_order_id, driver_id, offer_id, now(), now(), 'cancelled', "
            "true FROM assignments RETURNING 1"
        )
    with pytest.raises(IntegrityError, match="uq_assignments_open"):
        await world.all(
            """
            WITH other AS (
                INSERT INTO offers (organization_id, work_order_id, driver_id, round, sequence, mode, exclusive, status,
                    offered_at, expires_at, expires_max_at, responded_at, policy_id)
                SELECT organization_id, work_order_id, driver_id, round + 1, sequence + 1, mode, false, 'accepted',
                    now(), now(), now(), now(), policy_id FROM offers
                RETURNING *)
            INSERT INTO assignments (organization_id, work_order_id, driver_id, offer_id, starts_at, counted)
            SELECT organization_id, work_order_id, driver_id, id, now(), true FROM other RETURNING 1"""
        )
    assert "ck_assignments_ended" in await refused(world, "UPDATE assignments SET ends_at = now()")
    assert "ck_driver_dispatch_active_count" in await refused(world, "UPDATE driver_dispatch SET active_count = -1")
    assert "ck_work_orders_assignee" in await refused(world, "UPDATE work_orders SET assigned_driver_id = NULL")
    assert "ck_work_orders_match_from" in await refused(world, "UPDATE work_orders SET match_from = now()")


async def test_no_row_points_into_another_tenant(world: World, database: Database) -> None:
    """Every child of a tenant carries the organization in its foreign key: a row of ours and a parent of theirs do
    not go together, whatever the application does."""
    theirs = await World.make(database)
    their_driver = await theirs.driver()
    their_work = await theirs.enrollment(manual=True)
    await world.driver()
    work, offer = await offered(world)
    assert "fk_offers" in await copy_offer(world, offer, driver_id=their_driver.driver_id, exclusive=False)
    assert "fk_offers" in await copy_offer(world, offer, work_order_id=their_work, exclusive=False)
    assert "fk_offers" in await copy_offer(
        world, offer, work_order_id=their_work, organization_id=theirs.organization_id, exclusive=False
    ), "the driver is ours"
    for change, value in (
        ("assigned_driver_id", their_driver.driver_id),
        ("requested_by_user_id", their_driver.user_id),
    ):
        assert "fk_work_orders" in await refused(
            world, f"UPDATE work_orders SET {change} = :value WHERE id = :work", value=value, work=work
        )
    for table, key in (("enrollments", "premise_id"), ("workflow_wakes", "reason")):
        assert "fk_" in await refused(
            world, f"UPDATE {table} SET organization_id = :other, {key} = {key} WHERE work_order_id = :work",
            other=theirs.organization_id, work=work,
        )  # fmt: skip


async def test_every_foreign_key_between_tenants_rows_carries_the_organization() -> None:
    for table in metadata.sorted_tables:
        if "organization_id" not in table.c:
            continue
        for key in table.foreign_key_constraints:
            parent = key.referred_table
            if "organization_id" in parent.c and parent.name != "organizations":
                assert "organization_id" in key.column_keys, f"{table.name} -> {parent.name}"
