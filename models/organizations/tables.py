"""Tenants: a tree of states and boards, or a single operator that is both."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, Table, Text, Uuid, text

from models.kit.base import Json, created_at, id_column, metadata, status_column, updated_at


class OrganizationKind(StrEnum):
    STATE = "state"
    BOARD = "board"
    OPERATOR = "operator"


organizations = Table(
    "organizations",
    metadata,
    id_column(),
    Column("parent_id", Uuid, ForeignKey("organizations.id")),
    *status_column(OrganizationKind, name="kind"),
    Column("name", Text, nullable=False),
    Column("slug", Text, nullable=False, unique=True),
    Column("currency", Text, nullable=False, server_default=text("'USD'")),
    Column("time_zone", Text, nullable=False, server_default=text("'UTC'")),
    Column("locale", Text, nullable=False, server_default=text("'en'")),
    Column("driver_label", Text, nullable=False, server_default=text("'Driver'")),
    Column("settings", Json, nullable=False, server_default=text("'{}'")),
    Column("version", Integer, nullable=False, server_default=text("1")),
    created_at(),
    updated_at(),
    Index(None, "parent_id"),
)

#: The next free number behind each reference prefix. Processes take blocks, so that creations never queue here.
reference_counters = Table(
    "reference_counters",
    metadata,
    Column("organization_id", Uuid, ForeignKey("organizations.id"), primary_key=True),
    Column("prefix", Text, primary_key=True),
    Column("next_number", BigInteger, nullable=False),
)
