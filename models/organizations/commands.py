"""Making organizations."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import insert
from sqlalchemy.dialects.postgresql import insert as upsert

from models.audit.commands import record
from models.fairness.tables import dispatch_lanes
from models.kit.database import Session
from models.kit.errors import Refusal
from models.kit.ids import new_id
from models.organizations.tables import OrganizationKind, organizations
from models.policies.commands import create_defaults


class SlugTaken(Refusal):
    message = "An organization with this slug exists already"


async def create_organization(
    session: Session,
    *,
    name: str,
    slug: str,
    kind: OrganizationKind | str,
    parent_id: UUID | None = None,
    currency: str = "USD",
    time_zone: str = "UTC",
    driver_label: str = "Driver",
) -> UUID:
    """Make a tenant that can dispatch at once: with its lane and the default policies. Raises SlugTaken."""
    organization_id = new_id()
    added = await session.run(
        upsert(organizations)
        .values(
            id=organization_id,
            parent_id=parent_id,
            kind=OrganizationKind(kind).value,
            name=name,
            slug=slug,
            currency=currency,
            time_zone=time_zone,
            driver_label=driver_label,
        )
        .on_conflict_do_nothing(index_elements=[organizations.c.slug])
    )
    if not added:
        raise SlugTaken()
    await session.run(insert(dispatch_lanes).values(organization_id=organization_id))
    await create_defaults(session, organization_id)
    record(
        session,
        "ORGANIZATION_CREATED",
        organization_id=organization_id,
        entity_type="organization",
        entity_id=organization_id,
    )
    return organization_id
