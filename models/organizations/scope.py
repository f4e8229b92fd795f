"""The one door of tenancy: a Scope says which organizations a caller may see, and every query takes one."""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

import msgspec
from sqlalchemy import Column, ColumnElement, or_, select, true

from models.identity.rules import Role
from models.organizations.tables import organizations


class Scope(msgspec.Struct, frozen=True):
    """`reach`: `own` organization, `tree` (it and its boards) or `all`."""

    organization_id: UUID
    reach: Literal["own", "tree", "all"] = "own"

    def covers(self, column: Column[Any]) -> ColumnElement[bool]:
        """The condition that keeps `column` (an organization id) inside this scope."""
        if self.reach == "all":
            return true()
        if self.reach == "own":
            return column == self.organization_id
        boards = select(organizations.c.id).where(organizations.c.parent_id == self.organization_id)
        return or_(column == self.organization_id, column.in_(boards))


def scope_of(role: Role, organization_id: UUID) -> Scope:
    """The scope of a signed-in user."""
    if role is Role.SUPER_ADMIN:
        return Scope(organization_id, "all")
    if role is Role.STATE_ADMIN:
        return Scope(organization_id, "tree")
    return Scope(organization_id, "own")
