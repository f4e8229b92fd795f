"""Signing in and keeping signed in; making accounts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from models.audit.commands import record
from models.drivers.tables import driver_dispatch, driver_profiles
from models.identity.passwords import hash_password, is_outdated
from models.identity.permissions import Caller
from models.identity.queries import SignIn, family_of, sign_in_by_id
from models.identity.rules import EmailTaken, PhoneTaken, Role
from models.identity.tables import sessions, users
from models.identity.tokens import REFRESH_GRACE, REFRESH_LIFETIME, hash_of, new_refresh_token
from models.kit.database import Session
from models.kit.errors import Forbidden, ValidationFailed
from models.kit.ids import new_id
from models.organizations.references import next_reference
from models.organizations.tables import organizations


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What a sign-in or a refresh gives: who, in which sign-in, and the next refresh token."""

    account: SignIn
    session_id: UUID
    refresh_token: str


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver's account has beyond others'."""

    skills: Sequence[str] = ()
    vehicle_type: str | None = None
    service_radius_km: float | None = None


async def sign_in(session: Session, account: SignIn, *, password: str, device: str | None = None) -> Grant:
    """Begin a sign-in for an account whose password has just been verified; `password` only serves to hash it anew
    where the parameters have changed."""
    family = new_id()
    token = await _give_token(session, account.user_id, family, device=device)
    changes: dict[str, Any] = {"last_login_at": func.clock_timestamp()}
    if account.password_hash is not None and is_outdated(account.password_hash):
        changes["password_hash"] = await hash_password(password)
    await session.run(update(users).where(users.c.id == account.user_id).values(**changes))
    record(
        session,
        "SIGNED_IN",
        organization_id=account.organization_id,
        entity_type="user",
        entity_id=account.user_id,
        session_id=str(family),
    )
    return Grant(account=account, session_id=family, refresh_token=token)


def sign_in_refused(session: Session, account: SignIn | None) -> None:
    """Audit a failed sign-in. An attempt on an unknown account is written too, under an id of its own, so that both
    take the same time; the e-mail that was tried is not kept."""
    record(
        session,
        "SIGN_IN_REFUSED",
        organization_id=account.organization_id if account else None,
        entity_type="user" if account else "sign_in",
        entity_id=account.user_id if account else new_id(),
    )


async def refresh(session: Session, token: str, *, device: str | None = None) -> Grant | None:
    """Exchange a refresh token for the next one. None where it is refused; the caller must commit all the same, since
    a refusal may have revoked the sign-in.

    A token works once. A repeat within REFRESH_GRACE, while the successor is unused, is an answer lost on the way and
    replaces that successor; any other repeat may be a thief's, and revokes the whole family.
    """
    token_hash = hash_of(token)
    family = await family_of(session, token_hash)
    if family is None:
        return None
    # One at a time per family: the row read below is then the newest, and no successor slips past a revocation.
    await session.run(select(func.pg_advisory_xact_lock(func.hashtextextended(str(family), 0))))
    successor = sessions.alias("successor")
    presented = await session.row(
        select(
            sessions.c.id,
            sessions.c.user_id,
            sessions.c.revoked_at,
            sessions.c.replaced_by,
            (sessions.c.expires_at <= func.clock_timestamp()).label("is_expired"),
            (sessions.c.revoked_at > func.clock_timestamp() - REFRESH_GRACE).label("is_recent"),
            successor.c.revoked_at.is_(None).label("successor_is_unused"),
        )
        .select_from(sessions.outerjoin(successor, successor.c.id == sessions.c.replaced_by))
        .where(sessions.c.token_hash == token_hash)
    )
    if presented is None or presented.is_expired:
        return None
    account = await sign_in_by_id(session, presented.user_id)
    if account is None or not account.is_active:
        return None
    if presented.revoked_at is not None:
        answer_was_lost = presented.replaced_by is not None and presented.is_recent and presented.successor_is_unused
        if not answer_was_lost:
            await _revoke_family(session, account, family, why="REFRESH_TOKEN_REUSED")
            return None
        await session.run(
            update(sessions).where(sessions.c.id == presented.replaced_by).values(revoked_at=func.clock_timestamp())
        )
    else:
        await session.run(
            update(sessions).where(sessions.c.id == presented.id).values(revoked_at=func.clock_timestamp())
        )
    following = await _give_token(session, account.user_id, family, device=device, replaces=presented.id)
    return Grant(account=account, session_id=family, refresh_token=following)


async def _give_token(
    session: Session, user_id: UUID, family: UUID, *, device: str | None, replaces: UUID | None = None
) -> str:
    token, session_id = new_refresh_token(), new_id()
    await session.run(
        insert(sessions).values(
            id=session_id,
            user_id=user_id,
            family_id=family,
            token_hash=hash_of(token),
            device_info=device,
            ip=session.actor.ip,
            expires_at=func.clock_timestamp() + REFRESH_LIFETIME,
        )
    )
    if replaces is not None:
        await session.run(update(sessions).where(sessions.c.id == replaces).values(replaced_by=session_id))
    return token


async def _revoke_family(session: Session, account: SignIn, family: UUID, *, why: str) -> None:
    """End a sign-in. Repeats of a dead token in a family that is dead already are not audited again."""
    ended = await session.run(
        update(sessions)
        .where(sessions.c.family_id == family, sessions.c.revoked_at.is_(None))
        .values(revoked_at=func.clock_timestamp())
    )
    if ended:
        record(
            session,
            why,
            organization_id=account.organization_id,
            entity_type="user",
            entity_id=account.user_id,
            session_id=str(family),
        )


async def create_user(
    session: Session,
    caller: Caller | None,
    *,
    organization_id: UUID,
    role: Role,
    full_name: str,
    email: str | None = None,
    phone: str | None = None,
    password_hash: str | None = None,
    driver: Profile | None = None,
) -> UUID:
    """Make an account; for the role driver also its profile, off duty. `caller` is None for the system (seeds).

    Raises Forbidden above the caller's level or where they may only make drivers, ValidationFailed for an organization
    outside their scope, EmailTaken, PhoneTaken.
    """
    if caller is not None:
        if not caller.may_act_on(role) or not caller.may("driver:manage" if role is Role.DRIVER else "user:manage"):
            raise Forbidden("You may not make accounts of this role")
        visible = select(organizations.c.id).where(
            organizations.c.id == organization_id, caller.scope.covers(organizations.c.id)
        )
        if await session.value(visible) is None:
            raise ValidationFailed({"organization_id": ["No such organization"]})
    user_id = new_id()
    added = await session.run(
        # No target: either unique index may refuse, and a refusal must not abort the transaction.
        upsert(users)
        .values(
            id=user_id,
            organization_id=organization_id,
            role=role.value,
            full_name=full_name,
            email=email,
            phone=phone,
            password_hash=password_hash,
        )
        .on_conflict_do_nothing()
    )
    if not added:
        raise await _which_is_taken(session, email)
    if role is Role.DRIVER:
        await _create_driver(session, user_id, organization_id, driver or Profile())
    record(
        session, "USER_CREATED", organization_id=organization_id, entity_type="user", entity_id=user_id, role=role.value
    )
    return user_id


async def _which_is_taken(session: Session, email: str | None) -> EmailTaken | PhoneTaken:
    if email is not None and await session.value(select(users.c.id).where(users.c.email == email)) is not None:
        return EmailTaken()
    return PhoneTaken()


async def _create_driver(session: Session, user_id: UUID, organization_id: UUID, profile: Profile) -> None:
    driver_id = new_id()
    reference = await next_reference(session, organization_id, "DR")
    values: dict[str, Any] = {"skills": list(profile.skills), "vehicle_type": profile.vehicle_type}
    if profile.service_radius_km is not None:
        values["service_radius_km"] = profile.service_radius_km
    await session.run(
        insert(driver_profiles).values(
            id=driver_id, organization_id=organization_id, user_id=user_id, reference=reference, **values
        )
    )
    await session.run(insert(driver_dispatch).values(driver_id=driver_id, organization_id=organization_id))
