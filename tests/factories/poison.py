"""Poison made in the database: a work order that Postgres or our own decoding trips over, and the cure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import UUID

from sqlalchemy import text

from models.kit.ids import new_id
from models.work.rules import WorkKind
from tests.factories.work import World

#: What a poison says of itself must never be shown: it stands for the values of rows.
SECRET = "Ada Example, +15005550006"


async def run(world: World, sql: str, **values: object) -> None:
    async with world.database.transaction() as session:
        await session.run(text(sql), values)


async def trip(
    world: World,
    subject: UUID,
    table: str,
    when: str,
    *,
    key: str = "work_order_id",
    and_when: str = "true",
    state: str = "P0001",
    saying: str = "",
) -> None:
    """Every `when` (INSERT, UPDATE) of this table about this work order, or whatever `key` names, raises `state`;
    `saying` adds what else Postgres says of an error (`CONSTRAINT = 'name'`)."""
    using = f"ERRCODE = '{state}', {saying}" if saying else f"ERRCODE = '{state}'"
    await run(
        world,
        "CREATE FUNCTION trip() RETURNS trigger LANGUAGE plpgsql AS $$ "
        f"BEGIN RAISE EXCEPTION '{SECRET}' USING {using}; END $$",
    )
    await run(
        world,
        f"CREATE TRIGGER trip BEFORE {when} ON {table} FOR EACH ROW "
        f"WHEN (NEW.{key} = '{subject}' AND {and_when}) EXECUTE FUNCTION trip()",
    )


async def cure_trip(world: World, work: UUID) -> None:
    await run(world, "DROP FUNCTION trip CASCADE")


async def offers_trip(world: World, work: UUID) -> None:
    await trip(world, work, "offers", "INSERT")


async def decisions_trip(world: World, work: UUID) -> None:
    await trip(world, work, "decisions", "INSERT")


async def itself_trips(world: World, work: UUID) -> None:
    """Not even parking can write it."""
    await trip(world, work, "work_orders", "UPDATE", key="id")


async def cannot_be_decoded(world: World, work: UUID) -> None:
    """A year that Postgres knows and Python does not. The lock that everything takes fails on it."""
    await run(world, "UPDATE work_orders SET scheduled_for = '20000-01-01' WHERE id = :id", id=work)


async def cure_decoding(world: World, work: UUID) -> None:
    await run(world, "UPDATE work_orders SET scheduled_for = NULL WHERE id = :id", id=work)


async def has_no_policy(world: World, work: UUID) -> None:
    """It runs under a version whose settings lack what they must have: its own look fails on it."""
    policy = new_id()
    await run(
        world,
        """INSERT INTO dispatch_policies (id, organization_id, kind, version, settings, is_current)
        SELECT :policy, organization_id, kind, 1000 + (SELECT count(*) FROM dispatch_policies), settings - 'mode', false
        FROM dispatch_policies WHERE id = (SELECT policy_id FROM work_orders WHERE id = :id)""",
        policy=policy,
        id=work,
    )
    await run(world, "UPDATE work_orders SET policy_id = :policy WHERE id = :id", policy=policy, id=work)


async def a_policy_in_force_that_cannot_be_read(world: World, kind: WorkKind) -> None:
    """As a newer release, or a hand in the database, may leave it."""
    old = await world.one(
        "SELECT id FROM dispatch_policies WHERE organization_id = :organization AND kind = :kind AND is_current",
        organization=world.organization_id, kind=kind,
    )  # fmt: skip
    await run(world, "UPDATE dispatch_policies SET is_current = false WHERE id = :id", id=old.id)
    await run(
        world,
        """INSERT INTO dispatch_policies (id, organization_id, kind, version, settings, is_current)
        SELECT uuidv7(), organization_id, kind, version + 1, settings || '{"from_the_future": 1}', true
        FROM dispatch_policies WHERE id = :id""",
        id=old.id,
    )


async def cure_policy(world: World, work: UUID) -> None:
    await run(
        world,
        "UPDATE work_orders w SET policy_id = p.id FROM dispatch_policies p "
        "WHERE w.id = :id AND p.is_current AND p.kind = w.kind AND p.organization_id = w.organization_id",
        id=work,
    )


Step = Callable[[World, UUID], Awaitable[None]]

#: Poisons that strike whoever serves the work order, each with its cure.
IN_THE_LANE: dict[Step, Step] = {
    offers_trip: cure_trip,
    decisions_trip: cure_trip,
    itself_trips: cure_trip,
    cannot_be_decoded: cure_decoding,
}
