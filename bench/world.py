"""The organization that is measured: a dispatcher, drivers on duty, and their tokens."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import text

from models.drivers.commands import set_status
from models.identity.commands import Profile, create_user
from models.identity.permissions import Caller
from models.identity.queries import sign_in_by_id
from models.identity.rules import Role
from models.identity.tokens import AccessTokens
from models.kit.database import Database, Session
from models.kit.ids import new_id
from models.organizations.commands import create_organization
from models.policies.commands import replace_policy
from models.policies.queries import current_policies
from models.work.rules import WorkKind

SECRET_KEY = "benchmark-only-secret-key-of-more-than-32-bytes"
#: Access tokens live for 15 minutes; they are minted anew before that.
TOKEN_AGE_S = 600.0
#: Accounts made in one transaction.
BATCH = 100


class Tokens:
    """Access tokens by caller, as signing in would give them, without the cost of a password each."""

    def __init__(self) -> None:
        self._issuer = AccessTokens(SECRET_KEY)
        self._issued: dict[UUID, tuple[float, dict[str, str]]] = {}

    def headers(self, caller: Caller) -> dict[str, str]:
        at, headers = self._issued.get(caller.user_id, (float("-inf"), {}))
        if time.monotonic() - at > TOKEN_AGE_S:
            headers = {"Authorization": f"Bearer {self._issuer.issue(caller)}"}
            self._issued[caller.user_id] = (time.monotonic(), headers)
        return headers


class World:
    """One organization in one database."""

    def __init__(self, database: Database, organization_id: UUID, dispatcher: Caller) -> None:
        self.database = database
        self.organization_id = organization_id
        self.dispatcher = dispatcher
        self.drivers: dict[UUID, Caller] = {}
        self.tokens = Tokens()

    @classmethod
    async def make(cls, database: Database, *, drivers: int, skills: tuple[str, ...] = ()) -> World:
        """An organization with `drivers` on duty who can all do `skills`."""
        async with database.transaction() as session:
            slug = f"bench-{new_id().hex}"
            organization_id = await create_organization(session, name="Bench", slug=slug, kind="operator")
            dispatcher = await _person(session, organization_id, Role.DISPATCHER, slug)
        world = cls(database, organization_id, dispatcher)
        await world.add_drivers(drivers, skills=skills)
        return world

    async def add_drivers(self, count: int, *, skills: tuple[str, ...] = ()) -> None:
        for first in range(0, count, BATCH):
            async with self.database.transaction() as session:
                for _ in range(min(BATCH, count - first)):
                    profile = Profile(skills=list(skills))
                    driver = await _person(session, self.organization_id, Role.DRIVER, f"d{new_id().hex}", profile)
                    assert driver.driver_id is not None
                    await set_status(session, driver.driver_id, "available", by_staff=False)
                    self.drivers[driver.driver_id] = driver
        async with self.database.transaction() as session:
            # What autovacuum would know a minute later.
            await session.run(text("ANALYZE"))

    async def change_policy(self, **changes: Any) -> None:
        """A new version of the enrollment policy, as an admin would make it."""
        async with self.database.transaction() as session:
            current = (await current_policies(session, self.organization_id))[WorkKind.ENROLLMENT]
            version = await session.value(
                text("SELECT version FROM dispatch_policies WHERE id = :id"), {"id": current.id}
            )
            await replace_policy(
                session, self.organization_id, WorkKind.ENROLLMENT, msgspec.structs.replace(current.policy, **changes),
                expected_version=version,
            )  # fmt: skip


async def _person(
    session: Session, organization_id: UUID, role: Role, name: str, profile: Profile | None = None
) -> Caller:
    user_id = await create_user(
        session, None, organization_id=organization_id, role=role, full_name=name, email=f"{name}@bench.test",
        driver=profile,
    )  # fmt: skip
    account = await sign_in_by_id(session, user_id)
    assert account is not None
    return Caller(
        user_id=user_id, role=role, organization_id=organization_id, name=name, session_id=new_id(),
        driver_id=account.driver_id,
    )  # fmt: skip
