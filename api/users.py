"""People: `/users`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
import phonenumbers
from email_validator import EmailNotValidError, validate_email
from litestar import Controller, Response, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from sqlalchemy import Row

from api.dependencies import Page, Paged, etagged, paged
from api.guards import needs
from api.openapi import refuses
from models.drivers.commands import set_status
from models.drivers.rules import Availability, DriverStatus
from models.identity import commands, queries
from models.identity.passwords import MAXIMUM_LENGTH, MINIMUM_LENGTH, hash_password
from models.identity.permissions import Caller
from models.identity.rules import EmailTaken, PhoneTaken, Role
from models.kit.database import Session
from models.kit.errors import ValidationFailed
from models.kit.ids import UUID

#: `STAFF_MAY_SET` of models/drivers/rules.py; a test holds the two together.
StatusToSet = Literal["available", "break", "offline", "unavailable", "busy"]
StatusToFind = Literal["available", "busy", "break", "offline", "unavailable"]
Skill = Annotated[str, msgspec.Meta(min_length=1, max_length=60)]

_DRIVERS_ONLY: Final = ("skills", "vehicle_type", "service_radius_km")


class User(msgspec.Struct):
    """A person. `status` and `availability` are a driver's, computed from duty and held work; null for others."""

    id: UUID
    email: str | None
    phone: str | None
    full_name: str
    role: Role
    is_active: bool
    organization_id: UUID
    driver_id: UUID | None
    status: DriverStatus | None
    availability: Availability | None
    version: int
    created_at: datetime
    updated_at: datetime


class CreateUserRequest(msgspec.Struct, forbid_unknown_fields=True):
    """An e-mail or a phone number, or both. `organization_id` defaults to the caller's own."""

    full_name: Annotated[str, msgspec.Meta(min_length=1, max_length=120, examples=["Ada Field"])]
    role: Role
    email: Annotated[str, msgspec.Meta(min_length=3, max_length=254, examples=["ada@example.com"])] | None = None
    phone: Annotated[str, msgspec.Meta(max_length=32, description="E.164", examples=["+14155552671"])] | None = None
    organization_id: UUID | None = None
    password: (
        Annotated[
            str,
            msgspec.Meta(
                min_length=MINIMUM_LENGTH,
                max_length=MAXIMUM_LENGTH,
                description="Without one the account cannot sign in by password",
            ),
        ]
        | None
    ) = None
    skills: Annotated[list[Skill], msgspec.Meta(max_length=50, examples=[["meter", "ladder"]])] | None = None
    vehicle_type: Annotated[str, msgspec.Meta(min_length=1, max_length=60, examples=["van"])] | None = None
    service_radius_km: Annotated[float, msgspec.Meta(gt=0, le=1000)] | None = None


class SetStatusRequest(msgspec.Struct, forbid_unknown_fields=True):
    status: StatusToSet


class UserController(Controller):
    path = "/users"
    tags = ("Users",)

    @get(operation_id="ListUsers", summary="People of the organization, by name", opt=needs("user:read"))
    async def list_users(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        paging: NamedDependency[Page],
        role: Annotated[Role | None, QueryParameter()] = None,
        status: Annotated[StatusToFind | None, QueryParameter(description="Of drivers; leaves only them")] = None,
        q: Annotated[str | None, QueryParameter(max_length=120, description="In name, e-mail or phone")] = None,
    ) -> Paged[User]:
        rows, total = await queries.users_page(
            session, caller.scope, role=role, status=status, search=q, offset=paging.offset, limit=paging.limit
        )
        return paged([shown(row) for row in rows], total, paging)

    @get("/{user_id:uuid}", operation_id="GetUser", summary="One person", opt=needs("user:read"))
    async def get_user(
        self, session: NamedDependency[Session], caller: NamedDependency[Caller], user_id: FromPath[UUID]
    ) -> Response[User]:
        user = shown(await queries.user(session, caller.scope, user_id))
        return etagged(user, user.version)

    @post(
        operation_id="CreateUser",
        summary="Make an account",
        opt=needs("driver:manage"),
        responses=refuses(EmailTaken, PhoneTaken),
    )
    async def create_user(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        data: JSONBody[CreateUserRequest],
    ) -> Response[User]:
        """Dispatchers make drivers; admins make everyone up to their own level. A driver starts off duty."""
        email, phone = _reachable(data)
        _check_driver_fields(data)
        user_id = await commands.create_user(
            session,
            caller,
            organization_id=data.organization_id or caller.organization_id,
            role=data.role,
            full_name=data.full_name.strip(),
            email=email,
            phone=phone,
            password_hash=await hash_password(data.password) if data.password else None,
            driver=commands.Profile(
                skills=sorted(set(data.skills or ())),
                vehicle_type=data.vehicle_type,
                service_radius_km=data.service_radius_km,
            ),
        )
        user = shown(await queries.user(session, caller.scope, user_id))
        return etagged(user, user.version, status_code=201)

    @patch(
        "/{user_id:uuid}/status",
        operation_id="SetUserStatus",
        summary="Set a driver's status",
        opt=needs("driver:set_status"),
    )
    async def set_user_status(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        user_id: FromPath[UUID],
        data: JSONBody[SetStatusRequest],
    ) -> User:
        """`offline` and `unavailable` are one; `busy` is a flag that staff set here and clear with `available`."""
        row = await queries.user(session, caller.scope, user_id)
        if row.driver_id is None:
            raise ValidationFailed({"status": ["Only drivers have a status"]})
        await set_status(session, row.driver_id, data.status, by_staff=True)
        return shown(await queries.user(session, caller.scope, user_id))


def shown(row: Row[Any]) -> User:
    """A row of `queries.user` or `queries.users_page` as the API shows it."""
    status, availability = queries.driver_state(row)
    return User(
        id=row.id,
        email=row.email,
        phone=row.phone,
        full_name=row.full_name,
        role=Role(row.role),
        is_active=row.is_active,
        organization_id=row.organization_id,
        driver_id=row.driver_id,
        status=status,
        availability=availability,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _reachable(data: CreateUserRequest) -> tuple[str | None, str | None]:
    """The e-mail and the phone number in their normal forms. Raises ValidationFailed for wrong ones, or for none."""
    errors: dict[str, list[str]] = {}
    email, phone = data.email, data.phone
    if email is None and phone is None:
        errors["email"] = ["Give an e-mail or a phone number"]
    if not data.full_name.strip():
        errors["full_name"] = ["Must not be blank"]
    if email is not None:
        try:
            # `test_environment` lets `.test` domains pass, which the demo accounts have and nobody can own.
            email = validate_email(email.strip(), check_deliverability=False, test_environment=True).normalized
        except EmailNotValidError as error:
            errors["email"] = [str(error)]
    if phone is not None:
        try:
            number = phonenumbers.parse(phone, None)
            if not phonenumbers.is_possible_number(number):
                raise phonenumbers.NumberParseException(phonenumbers.NumberParseException.NOT_A_NUMBER, "impossible")
            phone = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
        except phonenumbers.NumberParseException:
            errors["phone"] = ["Not a phone number in international form, such as +14155552671"]
    if errors:
        raise ValidationFailed(errors)
    return email, phone


def _check_driver_fields(data: CreateUserRequest) -> None:
    given = [name for name in _DRIVERS_ONLY if getattr(data, name) is not None]
    if given and data.role is not Role.DRIVER:
        raise ValidationFailed({name: ["Only drivers have this"] for name in given})
