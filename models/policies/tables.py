"""Dispatch policies: immutable versions, one of them current for each organization and kind."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, ForeignKey, Index, Integer, Table, UniqueConstraint, Uuid, text

from models.kit.base import Json, created_at, id_column, metadata, status_column
from models.work.rules import WorkKind

dispatch_policies = Table(
    "dispatch_policies",
    metadata,
    id_column(),
    Column("organization_id", Uuid, ForeignKey("organizations.id"), nullable=False),
    *status_column(WorkKind, name="kind"),
    Column("version", Integer, nullable=False),
    Column("settings", Json, nullable=False),
    Column("is_current", Boolean, nullable=False),
    Column("created_by_user_id", Uuid),
    created_at(),
    UniqueConstraint("organization_id", "id"),
    UniqueConstraint("organization_id", "kind", "version"),
    Index(
        "uq_dispatch_policies_current",
        "organization_id",
        "kind",
        unique=True,
        postgresql_where=text("is_current"),
    ),
)
