"""A morning's work: drivers on duty in a known order, work orders of every kind, and the means to move time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.engine import Row

from activities.dispatch import DispatchActivities, Step, WorkOrderRef
from models.drivers.commands import heartbeat, set_status
from models.identity.commands import Profile
from models.kit.database import Database
from models.offers.commands import accept, reject
from models.policies.commands import replace_policy
from models.policies.queries import current_policies
from models.work.creating import NewWork, Point, Stop, create_enrollment, create_job, create_order, create_route
from models.work.rules import WorkKind
from tests.factories.people import People, Person

HERE = Point(42.36, -71.06)


class World:
    """One organization over one database."""

    def __init__(self, database: Database, organization_id: UUID, dispatcher: Person) -> None:
        self.database = database
        self.organization_id = organization_id
        self.dispatcher = dispatcher
        self.activities = DispatchActivities(database)
        self.people = People(database)

    @classmethod
    async def make(cls, database: Database) -> World:
        people = People(database)
        organization_id = await people.organization()
        return cls(database, organization_id, await people.person("dispatcher", organization_id))

    async def driver(
        self,
        *,
        waited_h: float | None = None,
        skills: list[str] | None = None,
        status: str = "available",
        at: Point | None = HERE,
    ) -> Person:
        """A driver who was last assigned `waited_h` hours ago (None: never), heard from just now at `at`."""
        profile = Profile(skills=tuple(skills or ()))
        person = await self.people.person("driver", self.organization_id, profile=profile)
        async with self.database.transaction() as session:
            await set_status(session, person.driver_id, status, by_staff=False)
            if at is not None:
                await heartbeat(session, person.driver_id, self.organization_id, lat=at.lat, lng=at.lng)
            if waited_h is not None:
                queue_at = datetime.now(UTC) - timedelta(hours=waited_h)
                await session.run(
                    text("UPDATE driver_dispatch SET queue_at = :at, last_assigned_at = :at WHERE driver_id = :id"),
                    {"id": person.driver_id, "at": queue_at},
                )
        return person

    async def line(self, count: int) -> list[Person]:
        """Drivers in fairness order: the first has waited longest."""
        return [await self.driver(waited_h=count - i) for i in range(count)]

    async def enrollment(self, **work: Any) -> UUID:
        async with self.database.transaction() as session:
            return await create_enrollment(session, self.organization_id, NewWork(**work), premise_id="P-1")

    async def job(self, location: Point = HERE, **work: Any) -> UUID:
        async with self.database.transaction() as session:
            return await create_job(session, self.organization_id, NewWork(location=location, address="1 Elm", **work))

    async def order(self, *, expires_in_s: int | None = None, **work: Any) -> UUID:
        stop = Stop(address="1 Elm", location=HERE)
        async with self.database.transaction() as session:
            return await create_order(
                session, self.organization_id, NewWork(**work), pickup=stop, dropoff=stop, expires_in_s=expires_in_s
            )

    async def route(self, driver: Person, **work: Any) -> UUID:
        async with self.database.transaction() as session:
            return await create_route(
                session,
                self.organization_id,
                NewWork(**work),
                driver_id=driver.driver_id,
                stops=[Stop(address="1 Elm")],
            )

    async def advance(self, work_order_id: UUID) -> Step:
        """What the workflow's activity does when it is woken."""
        return await self.activities.advance(WorkOrderRef(work_order_id=str(work_order_id)))

    async def accept(self, offer_id: UUID, driver: Person) -> None:
        async with self.database.transaction() as session:
            await accept(session, offer_id, driver.driver_id)

    async def reject(self, offer_id: UUID, driver: Person, reason: str | None = None) -> None:
        async with self.database.transaction() as session:
            await reject(session, offer_id, driver.driver_id, reason)

    async def set_status(self, driver: Person, status: str) -> None:
        async with self.database.transaction() as session:
            await set_status(session, driver.driver_id, status, by_staff=False)

    async def policy(self, kind: WorkKind, **changes: Any) -> None:
        """Change the policy in force, as an admin would, without a version check."""
        async with self.database.transaction() as session:
            current = (await current_policies(session, self.organization_id))[kind]
            version = await session.value(
                text("SELECT version FROM dispatch_policies WHERE id = :id"), {"id": current.id}
            )
            await replace_policy(
                session, self.organization_id, kind, msgspec.structs.replace(current.policy, **changes),
                expected_version=version,
            )  # fmt: skip

    async def pass_time(self, seconds: float) -> None:
        """Let this much time have passed: everything that has happened or is due moves into the past."""
        columns = {
            "work_orders": ("waiting_since", "match_from", "next_round_at", "broadcast_until", "escalate_from",
                            "assigned_at", "created_at", "scheduled_for"),
            "offers": ("offered_at", "expires_at", "expires_max_at"),
            "orders": ("expires_at",),
            "workflow_wakes": ("due_at",),
            "driver_dispatch": ("queue_at", "last_assigned_at", "last_offered_at", "duty_since"),
        }  # fmt: skip
        async with self.database.transaction() as session:
            for table, names in columns.items():
                sets = ", ".join(f"{name} = {name} - make_interval(secs => {float(seconds)})" for name in names)
                where = "WHERE status = 'pending'" if table == "offers" else ""
                await session.run(text(f"UPDATE {table} SET {sets} {where}"))

    async def one(self, sql: str, **values: Any) -> Row[Any]:
        async with self.database.transaction() as session:
            row = await session.row(text(sql), values)
        assert row is not None
        return row

    async def all(self, sql: str, **values: Any) -> list[Row[Any]]:
        async with self.database.transaction() as session:
            return list(await session.rows(text(sql), values))

    async def work_order(self, work_order_id: UUID) -> Row[Any]:
        return await self.one("SELECT * FROM work_orders WHERE id = :id", id=work_order_id)

    async def offers(self, work_order_id: UUID) -> list[Row[Any]]:
        return await self.all("SELECT * FROM offers WHERE work_order_id = :id ORDER BY sequence", id=work_order_id)

    async def pending(self, work_order_id: UUID) -> Row[Any]:
        """The one open offer."""
        (offer,) = [offer for offer in await self.offers(work_order_id) if offer.status == "pending"]
        return offer

    async def dispatch(self, driver: Person) -> Row[Any]:
        return await self.one("SELECT * FROM driver_dispatch WHERE driver_id = :id", id=driver.driver_id)
