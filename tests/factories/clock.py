"""Letting time pass also for what is closed already."""

from __future__ import annotations

from sqlalchemy import text

from tests.factories.work import World

_CLOSED = (
    "UPDATE offers SET offered_at = {0}(offered_at), responded_at = {0}(responded_at) WHERE status <> 'pending'",
    "UPDATE offers SET queue_at_before = {0}(queue_at_before)",
    "UPDATE assignments SET starts_at = {0}(starts_at)",
    "UPDATE work_orders SET nudged_at = {0}(nudged_at), late_alerted_at = {0}(late_alerted_at)",
)


async def later(world: World, seconds: float, *, silent: bool = False) -> None:
    """`World.pass_time`, and the past of closed offers and of assignments moves with it. Drivers keep sending
    heartbeats meanwhile, unless they are `silent`."""
    await world.pass_time(seconds)
    async with world.database.transaction() as session:
        # What is closed is guarded against every change; here it is not changed, only longer ago.
        await session.run(text("SET LOCAL session_replication_role = replica"))
        await session.run(
            text(
                "CREATE FUNCTION pg_temp.moved(t timestamptz) RETURNS timestamptz LANGUAGE sql AS "
                f"'SELECT t - make_interval(secs => {float(seconds)})'"
            )
        )
        for statement in _CLOSED:
            await session.run(text(statement.format("pg_temp.moved")))
        if silent:
            await session.run(text("UPDATE driver_positions SET last_seen_at = pg_temp.moved(last_seen_at)"))
        await session.run(text("DROP FUNCTION pg_temp.moved"))
