"""An organization, its people, and a work order on offer, written straight into the tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select

from models.drivers.tables import driver_profiles
from models.identity.rules import Role
from models.identity.tables import users
from models.kit.database import Database
from models.kit.ids import new_id
from models.notifications.tables import notifications
from models.offers.tables import offers
from models.organizations.tables import organizations
from models.policies.tables import dispatch_policies
from models.work.tables import work_orders

PHONE = "+15005550006"


async def an_organization(database: Database, **changes: Any) -> UUID:
    id_ = new_id()
    values = {"kind": "board", "name": "Northside", "slug": f"northside-{id_}", "time_zone": "America/Chicago"}
    async with database.transaction() as session:
        await session.run(insert(organizations).values(id=id_, **values | changes))
    return id_


async def a_person(database: Database, organization_id: UUID, role: Role = Role.DRIVER, **changes: Any) -> UUID:
    """Reachable by e-mail alone, unless `changes` say otherwise."""
    id_ = new_id()
    values = {"email": f"{id_}@example.org", "full_name": "Ada Example", "role": role.value}
    async with database.transaction() as session:
        await session.run(insert(users).values(id=id_, organization_id=organization_id, **values | changes))
    return id_


async def a_person_with_phone(database: Database, organization_id: UUID, phone: str = PHONE) -> UUID:
    return await a_person(database, organization_id, email=None, phone=phone, phone_verified_at=datetime.now(UTC))


async def an_offer(
    database: Database, organization_id: UUID, user_id: UUID, *, expires_in: timedelta = timedelta(minutes=5)
) -> tuple[UUID, UUID]:
    """A pending work order and its offer to this user; gives both ids."""
    policy_id, driver_id, work_order_id, offer_id = (new_id() for _ in range(4))
    now = datetime.now(UTC)
    scope = {"organization_id": organization_id}
    async with database.transaction() as session:
        await session.run(
            insert(dispatch_policies).values(id=policy_id, kind="job", version=1, settings={}, is_current=True, **scope)
        )
        await session.run(insert(driver_profiles).values(id=driver_id, user_id=user_id, reference="DR-1", **scope))
        await session.run(
            insert(work_orders).values(
                id=work_order_id,
                kind="job",
                reference="JB-1",
                source="dispatcher",
                policy_id=policy_id,
                waiting_since=now,
                escalate_from=now,
                address="1 Main St",
                **scope,
            )
        )
        await session.run(
            insert(offers).values(
                id=offer_id,
                work_order_id=work_order_id,
                driver_id=driver_id,
                round=1,
                sequence=1,
                mode="sequential",
                exclusive=True,
                offered_at=now - timedelta(minutes=10),
                expires_at=now + expires_in,
                expires_max_at=now + expires_in,
                policy_id=policy_id,
                **scope,
            )
        )
    return work_order_id, offer_id


async def all_messages(database: Database) -> list[Any]:
    """Every notification row, in the order of their writing."""
    async with database.transaction() as session:
        return list(await session.rows(select(notifications).order_by(notifications.c.id)))
