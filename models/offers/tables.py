"""Offers and assignments, with the guards that make double dispatch impossible."""

from __future__ import annotations

from sqlalchemy import Boolean, CheckConstraint, Column, Index, Integer, Table, Text, UniqueConstraint, Uuid, text

from models.kit.base import Timestamp, created_at, id_column, metadata, status_column, tenant_column, tenant_key
from models.offers.rules import EndedBy, OfferMode, OfferReason, OfferStatus

offers = Table(
    "offers",
    metadata,
    id_column(),
    tenant_column(),
    Column("work_order_id", Uuid, nullable=False),
    Column("driver_id", Uuid, nullable=False),
    Column("round", Integer, nullable=False),
    Column("sequence", Integer, nullable=False),
    *status_column(OfferMode, name="mode"),
    Column("exclusive", Boolean, nullable=False),
    *status_column(OfferStatus, server_default=text("'pending'")),
    *status_column(OfferReason, name="reason", nullable=True),
    Column("reject_reason", Text),
    Column("offered_at", Timestamp, nullable=False),
    Column("delivered_at", Timestamp),
    Column("expires_at", Timestamp, nullable=False),
    Column("expires_max_at", Timestamp, nullable=False),
    Column("reminded_at", Timestamp),
    Column("responded_at", Timestamp),
    #: The driver's place in line when the offer was made; restored where losing the work was not their doing.
    Column("queue_at_before", Timestamp),
    Column("policy_id", Uuid, nullable=False),
    #: The lane's decision that made it; null for a driver named by a person.
    Column("decision_id", Uuid),
    UniqueConstraint("organization_id", "id"),
    UniqueConstraint("work_order_id", "sequence"),
    UniqueConstraint("work_order_id", "round", "driver_id"),
    CheckConstraint("(status = 'pending') = (responded_at IS NULL)", name="responded_at"),
    CheckConstraint("(status = 'expired') = (reason IS NOT NULL)", name="expired_has_reason"),
    CheckConstraint("expires_at <= expires_max_at", name="expires_max_at"),
    tenant_key("work_order_id", "work_orders"),
    tenant_key("driver_id", "driver_profiles"),
    tenant_key("policy_id", "dispatch_policies"),
    Index(
        "uq_offers_pending_exclusive_driver",
        "driver_id",
        unique=True,
        postgresql_where=text("status = 'pending' AND exclusive"),
    ),
    Index(
        "uq_offers_pending_exclusive_work_order",
        "work_order_id",
        unique=True,
        postgresql_where=text("status = 'pending' AND exclusive"),
    ),
    Index("ix_offers_pending", "work_order_id", postgresql_where=text("status = 'pending'")),
    Index("ix_offers_pending_driver", "driver_id", postgresql_where=text("status = 'pending'")),
    Index("ix_offers_recent", "organization_id", text("id DESC")),
    Index("ix_offers_driver", "driver_id", text("id DESC")),
    postgresql_with={"fillfactor": 80},
)

assignments = Table(
    "assignments",
    metadata,
    id_column(),
    tenant_column(),
    Column("work_order_id", Uuid, nullable=False),
    Column("driver_id", Uuid, nullable=False),
    Column("offer_id", Uuid, nullable=False),
    Column("starts_at", Timestamp, nullable=False),
    Column("ends_at", Timestamp),
    *status_column(EndedBy, name="ended_by", nullable=True),
    #: Does it count in the driver's `active_count`? Work scheduled ahead counts from its lead time on.
    Column("counted", Boolean, nullable=False),
    created_at(),
    UniqueConstraint("offer_id"),
    CheckConstraint("(ends_at IS NULL) = (ended_by IS NULL)", name="ended"),
    tenant_key("work_order_id", "work_orders"),
    tenant_key("driver_id", "driver_profiles"),
    tenant_key("offer_id", "offers"),
    Index("uq_assignments_open", "work_order_id", unique=True, postgresql_where=text("ends_at IS NULL")),
    Index("ix_assignments_held", "driver_id", postgresql_where=text("ends_at IS NULL")),
    Index("ix_assignments_driver", "driver_id", text("starts_at DESC")),
)
