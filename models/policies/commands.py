"""Writing policies: a change is a new version; the old one stays for the work that ran under it."""

from __future__ import annotations

from uuid import UUID

import msgspec
from sqlalchemy import insert, select, update

from models.audit.commands import record
from models.kit.database import Session
from models.kit.errors import NotFound, PreconditionFailed, ValidationFailed
from models.kit.ids import new_id
from models.policies.rules import DEFAULTS, Policy, problems
from models.policies.tables import dispatch_policies
from models.work.rules import WorkKind


async def create_defaults(session: Session, organization_id: UUID) -> None:
    """The first version for each kind, for a new organization."""
    await session.run(
        insert(dispatch_policies),
        [
            {
                "id": new_id(),
                "organization_id": organization_id,
                "kind": kind,
                "version": 1,
                "settings": msgspec.to_builtins(policy),
                "is_current": True,
            }
            for kind, policy in DEFAULTS.items()
        ],
    )


async def replace_policy(
    session: Session, organization_id: UUID, kind: WorkKind, policy: Policy, *, expected_version: int
) -> None:
    """Make `policy` the one in force. Raises ValidationFailed, NotFound, PreconditionFailed (another was quicker)."""
    found = problems(policy)
    if found:
        raise ValidationFailed(found)
    table = dispatch_policies
    current = await session.row(
        select(table.c.id, table.c.version, table.c.settings)
        .where(table.c.organization_id == organization_id, table.c.kind == kind, table.c.is_current)
        .with_for_update(key_share=True)
    )
    if current is None:
        # Either there is none, or another change replaced it while we waited for its lock.
        version = await session.value(
            select(table.c.version).where(
                table.c.organization_id == organization_id, table.c.kind == kind, table.c.is_current
            )
        )
        if version is None:
            raise NotFound
        raise PreconditionFailed(version=version)
    if current.version != expected_version:
        raise PreconditionFailed(version=current.version)
    settings = msgspec.to_builtins(policy)
    policy_id = new_id()
    await session.run(update(table).where(table.c.id == current.id).values(is_current=False))
    await session.run(
        insert(table).values(
            id=policy_id,
            organization_id=organization_id,
            kind=kind,
            version=current.version + 1,
            settings=settings,
            is_current=True,
            created_by_user_id=session.actor.user_id,
        )
    )
    changed = {
        name: [current.settings.get(name), value]
        for name, value in settings.items()
        if current.settings.get(name) != value
    }
    record(
        session,
        "DISPATCH_POLICY_CHANGED",
        organization_id=organization_id,
        entity_type="dispatch_policy",
        entity_id=policy_id,
        kind=kind,
        version=current.version + 1,
        changed=changed,
    )
