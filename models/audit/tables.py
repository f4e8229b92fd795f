"""The audit log: one row per change, written with the change, never updated."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import Column, Index, PrimaryKeyConstraint, Table, Text, Uuid, text
from sqlalchemy.types import UserDefinedType

from models.kit.base import Json, created_at, metadata, status_column


class ActorKind(StrEnum):
    USER = "user"
    API_KEY = "api_key"
    SYSTEM = "system"
    WORKFLOW = "workflow"


class Xid8(UserDefinedType[int]):
    """Postgres's 64-bit transaction id: the sealer takes only rows whose writers have all ended."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "xid8"


audit_log = Table(
    "audit_log",
    metadata,
    Column("id", Uuid, nullable=False, server_default=text("uuidv7()")),
    #: Null for what belongs to no tenant, such as a failed sign-in.
    Column("organization_id", Uuid),
    Column("user_id", Uuid),
    *status_column(ActorKind, name="actor_kind"),
    Column("action", Text, nullable=False),
    Column("entity_type", Text, nullable=False),
    Column("entity_id", Uuid, nullable=False),
    Column("metadata", Json, nullable=False, server_default=text("'{}'")),
    Column("ip", Text),
    Column("request_id", Text),
    #: Random; personal values enter a hash only as SHA-256(salt || value), so that erasing them breaks no chain.
    Column("salt", Text, nullable=False, server_default=text("encode(uuid_send(gen_random_uuid()), 'hex')")),
    Column("transaction_id", Xid8, nullable=False, server_default=text("pg_current_xact_id()")),
    created_at(),
    PrimaryKeyConstraint("id", "created_at"),
    Index(None, "organization_id", text("id DESC")),
    Index(None, "entity_type", "entity_id"),
    Index(None, "transaction_id"),
    postgresql_partition_by="RANGE (created_at)",
)
