"""Organizations and people of every role, signed in without the cost of a password."""

from __future__ import annotations

from itertools import count
from uuid import UUID

import msgspec

from models.identity.commands import Profile, create_user
from models.identity.passwords import hash_password
from models.identity.permissions import Caller
from models.identity.queries import sign_in_by_id
from models.identity.rules import Role
from models.identity.tokens import AccessTokens
from models.kit.database import Database
from models.kit.ids import new_id
from models.kit.settings import DEVELOPMENT_SECRET
from models.organizations.commands import create_organization

PASSWORD = "correct horse battery"
_numbers = count(1)


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """An account and a token of theirs."""

    caller: Caller
    email: str
    token: str

    @property
    def user_id(self) -> UUID:
        return self.caller.user_id

    @property
    def organization_id(self) -> UUID:
        return self.caller.organization_id

    @property
    def driver_id(self) -> UUID:
        assert self.caller.driver_id is not None, "not a driver"
        return self.caller.driver_id

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


class People:
    """Makes organizations and accounts in one database."""

    def __init__(self, database: Database, secret_key: str = DEVELOPMENT_SECRET) -> None:
        self.database = database
        self.tokens = AccessTokens(secret_key)

    async def organization(self, kind: str = "operator", *, parent_id: UUID | None = None) -> UUID:
        number = next(_numbers)
        async with self.database.transaction() as session:
            return await create_organization(
                session, name=f"Organization {number}", slug=f"organization-{number}", kind=kind, parent_id=parent_id
            )

    async def person(
        self,
        role: Role | str,
        organization_id: UUID,
        *,
        name: str | None = None,
        password: str | None = None,
        profile: Profile | None = None,
    ) -> Person:
        """An account of this role. Only with a `password` can it sign in by one; drivers start off duty."""
        role, number = Role(role), next(_numbers)
        email = f"{role}{number}@demo.test"
        async with self.database.transaction() as session:
            user_id = await create_user(
                session,
                None,
                organization_id=organization_id,
                role=role,
                full_name=name or f"{role.value.replace('_', ' ').title()} {number}",
                email=email,
                password_hash=await hash_password(password) if password else None,
                driver=profile,
            )
            account = await sign_in_by_id(session, user_id)
        assert account is not None
        caller = Caller(
            user_id=user_id,
            role=role,
            organization_id=organization_id,
            name=account.full_name,
            session_id=new_id(),
            driver_id=account.driver_id,
        )
        return Person(caller=caller, email=email, token=self.tokens.issue(caller))
