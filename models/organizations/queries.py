"""Reading organizations."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Row, select

from models.kit.database import Session
from models.kit.errors import NotFound
from models.organizations.scope import Scope
from models.organizations.tables import organizations


async def organization(session: Session, scope: Scope, organization_id: UUID) -> Row[Any]:
    """One organization. Raises NotFound, also outside the scope."""
    row = await session.row(
        select(organizations).where(organizations.c.id == organization_id, scope.covers(organizations.c.id))
    )
    if row is None:
        raise NotFound("No such organization")
    return row


async def organization_by_slug(session: Session, slug: str) -> Row[Any] | None:
    """For sign-up and seeds, which have no scope yet."""
    return await session.row(select(organizations).where(organizations.c.slug == slug))
