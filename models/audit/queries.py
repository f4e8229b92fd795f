"""Reading the audit log, newest first."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, Row, func, select

from models.audit.tables import audit_log
from models.kit.database import Session
from models.kit.errors import NotFound
from models.organizations.scope import Scope

_COLUMNS: Final = (
    audit_log.c.id,
    audit_log.c.organization_id,
    audit_log.c.user_id,
    audit_log.c.actor_kind,
    audit_log.c.action,
    audit_log.c.entity_type,
    audit_log.c.entity_id,
    audit_log.c.metadata.label("details"),
    audit_log.c.ip,
    audit_log.c.request_id,
    audit_log.c.created_at,
)


class AuditFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What to look for; None leaves it open. `since` is included, `until` is not."""

    entity_type: str | None = None
    entity_id: UUID | None = None
    action: str | None = None
    user_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self, scope: Scope) -> list[ColumnElement[bool]]:
        # Rows of no tenant, such as an attempt to sign in to no account, are only within reach of `all`.
        wanted = [scope.covers(audit_log.c.organization_id)]
        for column in ("entity_type", "entity_id", "action", "user_id"):
            value = getattr(self, column)
            if value is not None:
                wanted.append(audit_log.c[column] == value)
        if self.since is not None:
            wanted.append(audit_log.c.created_at >= self.since)
        if self.until is not None:
            wanted.append(audit_log.c.created_at < self.until)
        return wanted


async def audit_entry(session: Session, scope: Scope, entry_id: UUID) -> Row[Any]:
    """One row. Raises NotFound, also outside the scope."""
    row = await session.row(
        select(*_COLUMNS).where(audit_log.c.id == entry_id, scope.covers(audit_log.c.organization_id))
    )
    if row is None:
        raise NotFound("No such audit entry")
    return row


async def audit_entries(
    session: Session, scope: Scope, wanted: AuditFilter, *, limit: int, offset: int = 0, before: UUID | None = None
) -> list[Row[Any]]:
    """Rows by id descending, which is by time; `before` starts below that id, whatever was added since."""
    conditions = wanted.conditions(scope)
    if before is not None:
        conditions.append(audit_log.c.id < before)
    rows = await session.rows(
        select(*_COLUMNS).where(*conditions).order_by(audit_log.c.id.desc()).offset(offset).limit(limit)
    )
    return list(rows)


async def count_audit_entries(session: Session, scope: Scope, wanted: AuditFilter) -> int:
    count: int = await session.value(select(func.count()).select_from(audit_log).where(*wanted.conditions(scope)))
    return count
