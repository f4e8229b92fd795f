"""The lanes and what they decided."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)

from models.kit.base import Timestamp, created_at, metadata, tenant_column, tenant_key

#: Choosing a driver locks the organization's row: one decision at a time, numbered and chained.
dispatch_lanes = Table(
    "dispatch_lanes",
    metadata,
    Column("organization_id", Uuid, ForeignKey("organizations.id"), primary_key=True),
    Column("last_number", BigInteger, nullable=False, server_default=text("0")),
    Column("last_hash", LargeBinary, nullable=False, server_default=text("'\\x'::bytea")),
    postgresql_with={"fillfactor": 50},
)

#: Every choice with all it was made from; see models/fairness/records.py for the bytes.
decisions = Table(
    "decisions",
    metadata,
    Column("id", Uuid, nullable=False, server_default=text("uuidv7()")),
    tenant_column(),
    Column("number", BigInteger, nullable=False),
    Column("work_order_id", Uuid, nullable=False),
    #: The chosen driver; null where nobody was eligible.
    Column("driver_id", Uuid),
    Column("policy_id", Uuid, nullable=False),
    Column("rule_version", SmallInteger, nullable=False),
    Column("decided_at", Timestamp, nullable=False),
    #: Null once the body is older than its retention; the hashes stay.
    Column("header", LargeBinary),
    Column("candidates", LargeBinary),
    Column("salts", LargeBinary),
    Column("body_hash", LargeBinary, nullable=False),
    Column("previous_hash", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    #: How many of each exclusion reason, for lists that need not open the body.
    Column("summary", Text),
    created_at(),
    PrimaryKeyConstraint("id", "created_at"),
    tenant_key("work_order_id", "work_orders"),
    Index(None, "organization_id", "number"),
    Index(None, "work_order_id"),
    postgresql_partition_by="RANGE (created_at)",
)
