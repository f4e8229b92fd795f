"""The audit log: `/audit`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter
from sqlalchemy import Row

from api.dependencies import Feed, Page, decode_cursor, feed
from api.guards import needs
from models.audit import queries
from models.audit.tables import ActorKind
from models.identity.permissions import Caller
from models.kit.database import Session
from models.kit.ids import UUID


class AuditEntry(msgspec.Struct):
    """One change: who (null: time or the system), what, to what. `metadata` holds old and new values and reasons."""

    id: UUID
    organization_id: UUID | None
    user_id: UUID | None
    actor_kind: ActorKind
    action: str
    entity_type: str
    entity_id: UUID
    metadata: dict[str, Any]
    ip: str | None
    request_id: str | None
    created_at: datetime


class AuditController(Controller):
    path = "/audit"
    tags = ("Audit",)

    @get(operation_id="ListAudit", summary="Changes, newest first", opt=needs("audit:read"))
    async def list_audit(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        paging: NamedDependency[Page],
        entity_type: Annotated[str | None, QueryParameter(max_length=60)] = None,
        entity_id: Annotated[UUID | None, QueryParameter()] = None,
        action: Annotated[str | None, QueryParameter(max_length=60, description="Such as OFFER_ACCEPTED")] = None,
        user_id: Annotated[UUID | None, QueryParameter()] = None,
        from_: Annotated[datetime | None, QueryParameter(name="from", description="Included")] = None,
        to: Annotated[datetime | None, QueryParameter(description="Not included")] = None,
        cursor: Annotated[str | None, QueryParameter(max_length=60, description="`nextCursor` of a page")] = None,
    ) -> Feed[AuditEntry]:
        wanted = queries.AuditFilter(
            entity_type=entity_type,
            entity_id=entity_id,
            action=action,
            user_id=user_id,
            since=_in_utc(from_),
            until=_in_utc(to),
        )
        before = decode_cursor(cursor)
        total = None if before else await queries.count_audit_entries(session, caller.scope, wanted)
        rows = await queries.audit_entries(
            session,
            caller.scope,
            wanted,
            limit=paging.limit + 1,
            offset=0 if before else paging.offset,
            before=before,
        )
        return feed([_shown(row) for row in rows], [row.id for row in rows], page=paging, total=total)

    @get("/{entry_id:uuid}", operation_id="GetAuditEntry", summary="One change", opt=needs("audit:read"))
    async def get_audit_entry(
        self, session: NamedDependency[Session], caller: NamedDependency[Caller], entry_id: FromPath[UUID]
    ) -> AuditEntry:
        return _shown(await queries.audit_entry(session, caller.scope, entry_id))


def _in_utc(instant: datetime | None) -> datetime | None:
    return instant.replace(tzinfo=UTC) if instant is not None and instant.tzinfo is None else instant


def _shown(row: Row[Any]) -> AuditEntry:
    return AuditEntry(
        id=row.id,
        organization_id=row.organization_id,
        user_id=row.user_id,
        actor_kind=ActorKind(row.actor_kind),
        action=row.action,
        entity_type=row.entity_type,
        entity_id=row.entity_id,
        metadata=row.details,
        ip=row.ip,
        request_id=row.request_id,
        created_at=row.created_at,
    )
