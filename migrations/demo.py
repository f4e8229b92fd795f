"""The demo organization: enough to make every screen interesting, made once, by the product's own commands."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select, text

from models.drivers.commands import heartbeat, set_status
from models.drivers.tables import driver_profiles
from models.identity.commands import Profile, create_user
from models.identity.passwords import hash_password
from models.identity.rules import Role
from models.kit.database import Database, Session
from models.organizations.commands import create_organization
from models.organizations.tables import organizations
from models.work.commands import assign_driver, cancel, complete, report_status
from models.work.creating import NewWork, Point, Stop, create_enrollment, create_job, create_order
from models.work.rules import WorkOrderStatus

PASSWORD = "fairlead-demo"  # noqa: S105 - printed at every `make dev`; the accounts exist nowhere else
DRIVERS = 20

_NAMES = (
    "Ada Brooks", "Ben Castillo", "Cara Dunn", "Dev Patel", "Elena Rossi", "Femi Adeyemi", "Grace Kim", "Hugo Meyer",
    "Ines Duarte", "Jonas Berg", "Kira Novak", "Liam Walsh", "Maya Singh", "Noah Fischer", "Olga Petrova",
    "Pablo Ruiz", "Quinn Taylor", "Rosa Alvarez", "Sami Haddad", "Tara O'Neil",
)  # fmt: skip
_STREETS = ("Beacon St", "Elm St", "Cambridge St", "Tremont St", "Summer St", "Harvard Ave")
_CENTER = Point(42.3601, -71.0589)
_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('fairlead demo data'))")


async def seed(database: Database) -> bool:
    """Make the demo data unless it is there. True when it was made now."""
    password_hash = await hash_password(PASSWORD)
    async with database.transaction() as session:
        await session.run(_LOCK)
        if await session.value(select(organizations.c.id).where(organizations.c.slug == "demo")):
            return False
        await _demo_organization(session, password_hash)
        await _other_organization(session, password_hash)
    await _finished_work(database)
    return True


async def _demo_organization(session: Session, password_hash: str) -> None:
    organization_id = await create_organization(
        session, name="Demo Field Services", slug="demo", kind="operator", time_zone="America/New_York",
        driver_label="Energy Specialist",
    )  # fmt: skip
    for email, name, role in (
        ("admin@demo.test", "Alex Admin", Role.STATE_ADMIN),
        ("dispatcher@demo.test", "Dana Dispatch", Role.DISPATCHER),
        ("auditor@demo.test", "Avery Audit", Role.AUDITOR),
        ("customer@demo.test", "Casey Customer", Role.CUSTOMER),
    ):
        await create_user(
            session, None, organization_id=organization_id, role=role, full_name=name, email=email,
            password_hash=password_hash,
        )  # fmt: skip
    for number, name in enumerate(_NAMES[:DRIVERS], start=1):
        await _driver(session, organization_id, f"driver{number:02}@demo.test", name, number, password_hash)


async def _other_organization(session: Session, password_hash: str) -> None:
    """A second tenant, so that one can see that it cannot be seen."""
    organization_id = await create_organization(session, name="Other Couriers", slug="other", kind="operator")
    await create_user(
        session, None, organization_id=organization_id, role=Role.DISPATCHER, full_name="Oda Other",
        email="dispatcher@other.test", password_hash=password_hash,
    )  # fmt: skip
    await _driver(session, organization_id, "driver01@other.test", "Otto Other", 1, password_hash)


async def _driver(
    session: Session, organization_id: UUID, email: str, name: str, number: int, password_hash: str
) -> None:
    skills = [skill for skill, every in (("meter", 1), ("ladder", 2), ("plow", 3)) if number % every == 0]
    user_id = await create_user(
        session, None, organization_id=organization_id, role=Role.DRIVER, full_name=name, email=email,
        password_hash=password_hash,
        driver=Profile(skills=skills, vehicle_type="truck" if number % 3 == 0 else "van"),
    )  # fmt: skip
    driver_id = await session.value(select(driver_profiles.c.id).where(driver_profiles.c.user_id == user_id))
    # Seen before they came on duty: so the sweep does not take them for drivers who fell silent at work.
    await heartbeat(session, driver_id, organization_id, lat=_near(number).lat, lng=_near(number).lng)
    await set_status(session, driver_id, "available", by_staff=False)


def _near(number: int) -> Point:
    """Points on a spiral within some 4 km of the centre."""
    return Point(_CENTER.lat + 0.002 * number * (-1) ** number, _CENTER.lng + 0.0023 * number * (-1) ** (number // 2))


async def _finished_work(database: Database) -> None:
    """Work that has been done already: history to look at, and a line in which not everybody is new."""
    async with database.transaction() as session:
        organization_id = await session.value(select(organizations.c.id).where(organizations.c.slug == "demo"))
        drivers = [
            row.id
            for row in await session.rows(
                select(driver_profiles.c.id)
                .where(driver_profiles.c.organization_id == organization_id)
                .order_by(driver_profiles.c.reference)
            )
        ]
    for number in range(1, 13):
        driver_id = drivers[number - 1]
        async with database.transaction() as session:
            work_order_id = await _work(session, organization_id, number)
        async with database.transaction() as session:
            if number % 6 == 0:
                await cancel(session, work_order_id, "customer called it off")
                continue
            await assign_driver(session, work_order_id, driver_id, "force")
        for status in (WorkOrderStatus.EN_ROUTE, WorkOrderStatus.ARRIVED, WorkOrderStatus.IN_PROGRESS):
            async with database.transaction() as session:
                await report_status(session, work_order_id, driver_id, status)
        async with database.transaction() as session:
            await complete(session, work_order_id, notes="Done", by_driver=driver_id)


async def _work(session: Session, organization_id: UUID, number: int) -> UUID:
    address = f"{number * 7} {_STREETS[number % len(_STREETS)]}, Boston"
    work = NewWork(address=address, location=_near(number), timeslot="08:00-10:00")
    if number % 3 == 0:
        return await create_order(
            session, organization_id, work, pickup=Stop(address=address, location=_near(number)),
            dropoff=Stop(address="1 Congress St, Boston", location=_CENTER), expires_in_s=3600,
        )  # fmt: skip
    if number % 3 == 1:
        return await create_enrollment(session, organization_id, work, premise_id=f"P-{1000 + number}")
    return await create_job(session, organization_id, work, service_type="plowing")
