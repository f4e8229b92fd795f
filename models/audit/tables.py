"""The audit log: one row per change, written with the change, never updated."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.types import UserDefinedType

from models.kit.base import Json, Timestamp, created_at, metadata, status_column, tenant_column


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

#: The place that the sealer gave a row. `organization_id` is all zeros for rows of no tenant.
audit_leaves = Table(
    "audit_leaves",
    metadata,
    Column("audit_id", Uuid, primary_key=True),
    tenant_column(),
    #: Without a gap, from 1 in each organization.
    Column("number", BigInteger, nullable=False),
    #: The row's own, which tells its partition.
    Column("created_at", Timestamp, nullable=False),
    #: SHA-256(salt || personal values): what enters the hash in their place, and stays when they are erased.
    Column("commitment", LargeBinary, nullable=False),
    #: Of the row with its commitment. The seal's root is over these; kept here, it tells which row of a batch changed.
    Column("hash", LargeBinary, nullable=False),
    UniqueConstraint("organization_id", "number"),
)

#: One batch of rows, `first_number` to `last_number`, under one Merkle root; each chained to the one before.
audit_seals = Table(
    "audit_seals",
    metadata,
    tenant_column(),
    Column("first_number", BigInteger, nullable=False),
    Column("last_number", BigInteger, nullable=False),
    Column("root", LargeBinary, nullable=False),
    Column("previous_hash", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    #: Ed25519 over `hash`, by a key outside the database.
    Column("signature", LargeBinary, nullable=False),
    Column("key_id", Text, nullable=False),
    #: When the sealer had last left nothing unsealed, of any organization: no row in here is of a transaction that had
    #: ended by then, so that one dated long before it is backdated.
    Column("since", Timestamp, nullable=False),
    Column("sealed_at", Timestamp, nullable=False),
    PrimaryKeyConstraint("organization_id", "first_number"),
)

#: How far the sealer has come: every row of a transaction below `horizon` has its leaf. Transaction ids mean something
#: in one cluster only, which `system_identifier` names: after a restore into another one, the sealer looks at all rows.
audit_sealer = Table(
    "audit_sealer",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("system_identifier", BigInteger, nullable=False),
    Column("horizon", Xid8, nullable=False),
    #: When it last came to the end of what there was to seal: `since` of the seals to come.
    Column("complete_at", Timestamp, nullable=False),
)
