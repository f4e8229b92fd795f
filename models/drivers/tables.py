"""Drivers, split by heat: heartbeats never touch the rows that an accept needs."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from models.drivers.rules import Duty
from models.kit.base import (
    Json,
    Timestamp,
    created_at,
    id_column,
    latitude_longitude,
    metadata,
    status_column,
    tenant_column,
    tenant_key,
    updated_at,
)

driver_profiles = Table(
    "driver_profiles",
    metadata,
    id_column(),
    tenant_column(),
    Column("user_id", Uuid, nullable=False),
    #: `DR-1001`: names the driver to ops and in the Temporal UI without naming the person.
    Column("reference", Text, nullable=False),
    Column("skills", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("vehicle_type", Text),
    Column("vehicle", Json, nullable=False, server_default=text("'{}'")),
    Column("service_radius_km", Double, nullable=False, server_default=text("25")),
    Column("version", Integer, nullable=False, server_default=text("1")),
    created_at(),
    updated_at(),
    UniqueConstraint("organization_id", "id"),
    UniqueConstraint("organization_id", "user_id"),
    UniqueConstraint("organization_id", "reference"),
    CheckConstraint("service_radius_km > 0", name="service_radius"),
    tenant_key("user_id", "users"),
)

#: What choosing and accepting read and lock. `state_version` moves with every change that ranking could see.
driver_dispatch = Table(
    "driver_dispatch",
    metadata,
    Column("driver_id", Uuid, primary_key=True),
    tenant_column(),
    *status_column(Duty, name="duty", server_default=text("'off'")),
    Column("duty_since", Timestamp, nullable=False, server_default=text("clock_timestamp()")),
    Column("staff_busy", Boolean, nullable=False, server_default=text("false")),
    Column("active_count", Integer, nullable=False, server_default=text("0")),
    Column("queue_at", Timestamp),
    Column("last_assigned_at", Timestamp),
    Column("last_offered_at", Timestamp),
    Column("reject_streak", Integer, nullable=False, server_default=text("0")),
    Column("state_version", BigInteger, nullable=False, server_default=text("0")),
    CheckConstraint("active_count >= 0", name="active_count"),
    ForeignKeyConstraint(["organization_id", "driver_id"], ["driver_profiles.organization_id", "driver_profiles.id"]),
    UniqueConstraint("organization_id", "driver_id"),
    Index(
        "ix_driver_dispatch_on_duty",
        "organization_id",
        "queue_at",
        postgresql_where=text("duty = 'on'"),
    ),
    postgresql_with={"fillfactor": 70},
)

driver_positions = Table(
    "driver_positions",
    metadata,
    Column("driver_id", Uuid, primary_key=True),
    tenant_column(),
    *latitude_longitude(),
    Column("accuracy_m", Double),
    Column("position_at", Timestamp),
    Column("last_seen_at", Timestamp, nullable=False),
    ForeignKeyConstraint(["organization_id", "driver_id"], ["driver_profiles.organization_id", "driver_profiles.id"]),
    Index("ix_driver_positions_earth", text("ll_to_earth(lat, lng)"), postgresql_using="gist"),
    postgresql_with={"fillfactor": 70},
)
