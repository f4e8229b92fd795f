"""People and their sign-ins."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)

from models.identity.rules import Role
from models.kit.base import CaseInsensitive, Timestamp, created_at, id_column, metadata, status_column, updated_at

users = Table(
    "users",
    metadata,
    id_column(),
    Column("organization_id", Uuid, ForeignKey("organizations.id"), nullable=False),
    Column("email", CaseInsensitive, unique=True),
    Column("phone", Text, unique=True),
    Column("full_name", Text, nullable=False),
    *status_column(Role, name="role"),
    Column("is_active", Boolean, nullable=False, server_default=text("true")),
    Column("password_hash", Text),
    Column("email_verified_at", Timestamp),
    Column("phone_verified_at", Timestamp),
    Column("totp_secret", Text),
    Column("last_login_at", Timestamp),
    Column("version", Integer, nullable=False, server_default=text("1")),
    created_at(),
    updated_at(),
    Column("deleted_at", Timestamp),
    CheckConstraint("email IS NOT NULL OR phone IS NOT NULL OR deleted_at IS NOT NULL", name="reachable"),
    UniqueConstraint("organization_id", "id"),
    Index(None, "organization_id", "role"),
)
#: Refresh tokens, by the SHA-256 of their value; a family is one sign-in.
sessions = Table(
    "sessions",
    metadata,
    id_column(),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    Column("family_id", Uuid, nullable=False),
    Column("token_hash", Text, nullable=False, unique=True),
    Column("device_info", Text),
    Column("ip", Text),
    created_at(),
    Column("expires_at", Timestamp, nullable=False),
    Column("revoked_at", Timestamp),
    Column("replaced_by", Uuid),
    Index(None, "user_id"),
    Index(None, "family_id"),
    Index("uq_sessions_live", "family_id", unique=True, postgresql_where=text("revoked_at IS NULL")),
)
