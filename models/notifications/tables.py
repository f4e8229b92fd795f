"""Messages to people: rows written by the transaction that caused them, sent afterwards."""

from __future__ import annotations

from sqlalchemy import Column, Index, Integer, PrimaryKeyConstraint, Table, Text, UniqueConstraint, Uuid, text

from models.kit.base import Json, Timestamp, metadata, status_column, tenant_column
from models.notifications.rules import Channel, NotificationStatus

notifications = Table(
    "notifications",
    metadata,
    Column("id", Uuid, nullable=False, server_default=text("uuidv7()")),
    tenant_column(),
    Column("user_id", Uuid, nullable=False),
    Column("event", Text, nullable=False),
    #: Null lets the sender choose by what the person can be reached with.
    *status_column(Channel, name="channel", nullable=True),
    Column("dedupe_key", Text, nullable=False),
    Column("work_order_id", Uuid),
    Column("offer_id", Uuid),
    #: What the template needs beyond the work order; no personal data.
    Column("params", Json, nullable=False, server_default=text("'{}'")),
    *status_column(NotificationStatus, server_default=text("'pending'")),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("next_at", Timestamp, nullable=False),
    Column("leased_until", Timestamp),
    Column("subject", Text),
    Column("body", Text),
    #: Which adapter took it: twilio, resend, or outbox (rendered and shown, never delivered).
    Column("sent_by", Text),
    Column("provider_id", Text),
    Column("error", Text),
    Column("sent_at", Timestamp),
    Column("read_at", Timestamp),
    #: The instant of the cause, not of the insert: with the key it makes a repeat collide inside its partition.
    Column("created_at", Timestamp, nullable=False),
    PrimaryKeyConstraint("id", "created_at"),
    UniqueConstraint("dedupe_key", "created_at"),
    Index(
        "ix_notifications_due",
        "next_at",
        postgresql_where=text("status IN ('pending', 'sending')"),
    ),
    Index(None, "user_id", text("created_at DESC")),
    postgresql_partition_by="RANGE (created_at)",
)
