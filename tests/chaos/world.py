"""The organization of a run: few drivers for much work, and policies so short that every timer fires often."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import text

from models.drivers.commands import heartbeat, set_status
from models.identity.rules import Role
from models.kit.database import Database
from models.policies.commands import replace_policy
from models.policies.queries import current_policies
from models.work.rules import WorkKind
from tests.chaos.client import Account
from tests.factories.people import People

PLACE = {"lat": 42.36, "lng": -71.06}

_SHORT: dict[str, Any] = {"recheck_s": 2, "lapse_pause_s": 4, "escalate_after_s": 15}
POLICIES: dict[WorkKind, dict[str, Any]] = {
    # Ignoring one costs the driver's duty, and busy drivers are asked too.
    WorkKind.ENROLLMENT: _SHORT | {"offer_ttl_s": 4, "offer_ttl_max_s": 8},
    WorkKind.JOB: _SHORT
    | {"offer_ttl_s": 5, "offer_ttl_max_s": 8, "nudge_after_s": 5, "late_after_s": 12, "lead_time_s": 2},
    # To eight at once; who is best placed gets it when nobody takes it.
    WorkKind.ORDER: _SHORT
    | {
        "offer_ttl_s": 6, "offer_ttl_max_s": 6, "broadcast_window_s": 4, "broadcast_limit": 8, "nudge_after_s": 5,
        "late_after_s": 12,
    },
}  # fmt: skip


class World(msgspec.Struct):
    organization_id: UUID
    dispatchers: list[Account]
    customers: list[Account]
    drivers: list[Account]


async def make_world(database: Database, *, drivers: int, dispatchers: int = 2, customers: int = 2) -> World:
    """All drivers are on duty at one place. Half of the drivers and customers have a verified phone."""
    people = People(database)
    organization_id = await people.organization()
    for kind, changes in POLICIES.items():
        async with database.transaction() as session:
            current = (await current_policies(session, organization_id))[kind]
            await replace_policy(
                session, organization_id, kind, msgspec.structs.replace(current.policy, **changes), expected_version=1
            )

    async def accounts(role: Role, count: int) -> list[Account]:
        return [Account((await people.person(role, organization_id)).caller) for _ in range(count)]

    world = World(
        organization_id,
        await accounts(Role.DISPATCHER, dispatchers),
        await accounts(Role.CUSTOMER, customers),
        await accounts(Role.DRIVER, drivers),
    )
    async with database.transaction() as session:
        for number, account in enumerate(world.drivers + world.customers):
            if number % 2 == 0:
                await session.run(
                    text("UPDATE users SET phone = :phone, phone_verified_at = now() WHERE id = :id"),
                    {"phone": f"+1555010{number:04d}", "id": account.caller.user_id},
                )
    for account in world.drivers:
        driver_id = account.caller.driver_id
        assert driver_id is not None
        async with database.transaction() as session:
            await set_status(session, driver_id, "available", by_staff=False)
            await heartbeat(session, driver_id, organization_id, **PLACE)
    return world
