"""Signing in: `/auth/login`, `/auth/refresh`, `/auth/me`; and the permission matrix, for whoever builds a screen."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import Controller, Request, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from api.dependencies import actor_of
from api.guards import KEYLESS, PUBLIC, needs
from api.openapi import refuses
from api.users import User, shown
from models.identity import commands, queries
from models.identity.passwords import MAXIMUM_LENGTH, verify_password
from models.identity.permissions import MATRIX, Caller, permissions_of
from models.identity.rules import InvalidCredentials, Role, Unauthenticated
from models.identity.tokens import ACCESS_LIFETIME, AccessTokens
from models.kit.database import Database, Session
from models.kit.ids import UUID

_BEARER: Final = "Bearer"


class LoginRequest(msgspec.Struct, forbid_unknown_fields=True):
    email: Annotated[str, msgspec.Meta(min_length=3, max_length=254, examples=["dispatcher@demo.test"])]
    password: Annotated[str, msgspec.Meta(min_length=1, max_length=MAXIMUM_LENGTH, examples=["fairlead-demo"])]


class RefreshRequest(msgspec.Struct, forbid_unknown_fields=True):
    refresh_token: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class SignedInUser(msgspec.Struct):
    """Whom the tokens are for. `driver_id` is what every other resource calls a driver by."""

    id: UUID
    email: str | None
    full_name: str
    role: Role
    organization_id: UUID
    driver_id: UUID | None


class TokensResponse(msgspec.Struct):
    """`expires_in` is the access token's life in seconds; the refresh token lives 30 days and works once."""

    access_token: str
    refresh_token: str
    token_type: Literal["Bearer"]
    expires_in: int
    user: SignedInUser


class Me(User):
    """The signed-in user, with everything their role may do."""

    permissions: list[str]


class PermissionRow(msgspec.Struct):
    permission: str
    roles: list[Role]


class PermissionMatrix(msgspec.Struct):
    data: list[PermissionRow]


class AuthController(Controller):
    path = "/auth"
    tags = ("Sign-in",)
    opt = KEYLESS

    @post(
        "/login",
        operation_id="Login",
        summary="Sign in with e-mail and password",
        status_code=200,
        opt=PUBLIC,
        responses=refuses(InvalidCredentials),
    )
    async def login(
        self, request: Request[Any, Any, Any], database: NamedDependency[Database], data: JSONBody[LoginRequest]
    ) -> TokensResponse:
        """The answer is the same, and takes as long, whether the account exists or not."""
        actor = actor_of(request)
        # No connection is held while the password is hashed: a burst of sign-ins must not keep dispatch waiting.
        async with database.transaction(actor) as session:
            account = await queries.sign_in_by_email(session, data.email.strip())
        genuine = await verify_password(account.password_hash if account else None, data.password)
        async with database.transaction(actor) as session:
            if account is None or not genuine or not account.is_active:
                commands.sign_in_refused(session, account)
                grant = None
            else:
                grant = await commands.sign_in(session, account, password=data.password, device=_device(request))
        if grant is None:
            raise InvalidCredentials()
        return _tokens(request, grant)

    @post(
        "/refresh",
        operation_id="RefreshTokens",
        summary="Exchange a refresh token for the next one",
        status_code=200,
        opt=PUBLIC,
        responses=refuses(Unauthenticated),
    )
    async def refresh(
        self, request: Request[Any, Any, Any], database: NamedDependency[Database], data: JSONBody[RefreshRequest]
    ) -> TokensResponse:
        """A token works once. Where the answer was lost, the old token may be sent again within 30 seconds; any other
        repeat ends the sign-in."""
        async with database.transaction(actor_of(request)) as session:
            grant = await commands.refresh(session, data.refresh_token, device=_device(request))
        # Only now: a refusal may have revoked the sign-in, and raising inside would have undone that.
        if grant is None:
            raise Unauthenticated("The refresh token is not valid any more: sign in again")
        return _tokens(request, grant)

    @get("/me", operation_id="Me", summary="Who am I, and what may I do", opt=needs("account:read"))
    async def me(self, session: NamedDependency[Session], caller: NamedDependency[Caller]) -> Me:
        row = await queries.user(session, caller.scope, caller.user_id)
        return Me(**msgspec.structs.asdict(shown(row)), permissions=permissions_of(Role(row.role)))


@get(
    "/permissions",
    operation_id="ListPermissions",
    summary="The permission matrix",
    tags=["Sign-in"],
    opt=needs("account:read"),
)
async def permissions() -> PermissionMatrix:
    return PermissionMatrix(
        data=[
            PermissionRow(permission=permission, roles=sorted(roles, key=list(Role).index))
            for permission, roles in MATRIX.items()
        ]
    )


def _tokens(request: Request[Any, Any, Any], grant: commands.Grant) -> TokensResponse:
    tokens: AccessTokens = request.app.state.tokens
    account = grant.account
    caller = Caller(
        user_id=account.user_id,
        role=account.role,
        organization_id=account.organization_id,
        name=account.full_name,
        session_id=grant.session_id,
        driver_id=account.driver_id,
    )
    return TokensResponse(
        access_token=tokens.issue(caller),
        refresh_token=grant.refresh_token,
        token_type=_BEARER,
        expires_in=int(ACCESS_LIFETIME.total_seconds()),
        user=SignedInUser(
            id=account.user_id,
            email=account.email,
            full_name=account.full_name,
            role=account.role,
            organization_id=account.organization_id,
            driver_id=account.driver_id,
        ),
    )


def _device(request: Request[Any, Any, Any]) -> str | None:
    agent = request.headers.get("user-agent")
    return agent[:200] if agent else None
