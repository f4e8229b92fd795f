"""Writing the audit log, in the transaction of the change."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from models.audit.tables import audit_log
from models.kit.database import Session
from models.kit.ids import new_id


def record(
    session: Session,
    action: str,
    *,
    organization_id: UUID | None,
    entity_type: str,
    entity_id: UUID,
    **metadata: Any,
) -> None:
    """Stage one audit row. `action` is e.g. `OFFER_ACCEPTED`; `metadata` holds old and new values and the reason,
    never personal data."""
    actor = session.actor
    session.stage(
        audit_log,
        id=new_id(),
        organization_id=organization_id,
        user_id=actor.user_id,
        actor_kind=actor.kind,
        action=action,
        entity_type=entity_type,
        entity_id=entity_id,
        metadata=metadata,
        ip=actor.ip,
        request_id=actor.request_id,
    )
