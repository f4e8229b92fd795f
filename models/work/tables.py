"""Work orders: one table for what every kind shares, a side table for what only one has."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from models.kit.base import (
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
from models.work.rules import Source, WorkKind, WorkOrderStatus

work_orders = Table(
    "work_orders",
    metadata,
    id_column(),
    Column("organization_id", Uuid, ForeignKey("organizations.id"), nullable=False),
    *status_column(WorkKind, name="kind"),
    Column("reference", Text, nullable=False),
    *status_column(WorkOrderStatus, server_default=text("'pending'")),
    Column("priority", SmallInteger, nullable=False, server_default=text("5")),
    Column("required_skills", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("required_vehicle_type", Text),
    Column("address", Text),
    *latitude_longitude(),
    Column("scheduled_for", Timestamp),
    Column("timeslot", Text),
    Column("special_instructions", Text),
    Column("requested_by_user_id", Uuid),
    *status_column(Source, name="source"),
    Column("policy_id", Uuid, nullable=False),
    #: Nothing is offered until a person names a driver.
    Column("manual", Boolean, nullable=False, server_default=text("false")),
    #: In the lane since; kept while it is passed on from driver to driver, so that bad luck never costs its place.
    Column("waiting_since", Timestamp, nullable=False),
    #: Not null while the lane may serve it: from this instant on. Null while an offer is out or a person must act.
    Column("match_from", Timestamp),
    Column("round", Integer, nullable=False, server_default=text("1")),
    Column("next_round_at", Timestamp),
    #: When a broadcast's window ends and the best-ranked driver is assigned.
    Column("broadcast_until", Timestamp),
    #: Why nobody was eligible at the last look, as `reason:count,..`; a decision is recorded when it changes.
    Column("nobody_reasons", Text),
    Column("escalations", SmallInteger, nullable=False, server_default=text("0")),
    Column("escalate_from", Timestamp, nullable=False),
    Column("nudged_at", Timestamp),
    Column("late_alerted_at", Timestamp),
    Column("assigned_driver_id", Uuid),
    Column("offered_at", Timestamp),
    Column("assigned_at", Timestamp),
    Column("en_route_at", Timestamp),
    Column("arrived_at", Timestamp),
    Column("in_progress_at", Timestamp),
    Column("completed_at", Timestamp),
    Column("cancelled_at", Timestamp),
    Column("expired_at", Timestamp),
    Column("disputed_at", Timestamp),
    Column("cancellation_reason", Text),
    Column("completion_photo_key", Text),
    Column("completion_notes", Text),
    Column("version", Integer, nullable=False, server_default=text("1")),
    created_at(),
    updated_at(),
    UniqueConstraint("organization_id", "id"),
    UniqueConstraint("organization_id", "reference"),
    CheckConstraint("priority BETWEEN 0 AND 9", name="priority"),
    CheckConstraint(
        "(assigned_driver_id IS NOT NULL) OR status NOT IN ('assigned', 'en_route', 'arrived', 'in_progress')",
        name="assignee",
    ),
    CheckConstraint("match_from IS NULL OR status = 'pending'", name="match_from"),
    tenant_key("requested_by_user_id", "users"),
    tenant_key("assigned_driver_id", "driver_profiles"),
    tenant_key("policy_id", "dispatch_policies"),
    Index(
        "ix_work_orders_lane",
        "organization_id",
        text("priority DESC"),
        "waiting_since",
        "id",
        postgresql_where=text("match_from IS NOT NULL"),
    ),
    Index("ix_work_orders_board", "organization_id", "status", text("created_at DESC")),
    Index(
        "ix_work_orders_completed", "organization_id", "completed_at", postgresql_where=text("completed_at IS NOT NULL")
    ),
    Index(
        "ix_work_orders_cancelled", "organization_id", "cancelled_at", postgresql_where=text("cancelled_at IS NOT NULL")
    ),
    Index("ix_work_orders_kind", "organization_id", "kind", text("created_at DESC")),
    Index(None, "assigned_driver_id", postgresql_where=text("assigned_driver_id IS NOT NULL")),
    Index(None, "requested_by_user_id", postgresql_where=text("requested_by_user_id IS NOT NULL")),
    postgresql_with={"fillfactor": 80},
)


def _side_key() -> list[Column]:  # type: ignore[type-arg]
    return [Column("work_order_id", Uuid, primary_key=True), tenant_column()]


enrollments = Table(
    "enrollments",
    metadata,
    *_side_key(),
    Column("premise_id", Text, nullable=False),
    Column("meter_id", Uuid),
    tenant_key("work_order_id", "work_orders"),
    Index(None, "organization_id", "premise_id"),
)

jobs = Table(
    "jobs",
    metadata,
    *_side_key(),
    Column("customer_id", Uuid),
    Column("service_location_id", Uuid),
    Column("service_type", Text),
    Column("driveway_tier_id", Uuid),
    Column("quoted_price_cents", BigInteger),
    Column("final_price_cents", BigInteger),
    Column("discount_cents", BigInteger, nullable=False, server_default=text("0")),
    Column("pricing_model", Text),
    tenant_key("work_order_id", "work_orders"),
    tenant_key("customer_id", "users"),
    Index(None, "customer_id", postgresql_where=text("customer_id IS NOT NULL")),
)

orders = Table(
    "orders",
    metadata,
    *_side_key(),
    Column("pickup_address", Text, nullable=False),
    *latitude_longitude("pickup_", nullable=False),
    Column("dropoff_address", Text, nullable=False),
    *latitude_longitude("dropoff_", nullable=False),
    Column("expires_at", Timestamp, nullable=False),
    Column("notes", Text),
    tenant_key("work_order_id", "work_orders"),
)

routes = Table(
    "routes",
    metadata,
    *_side_key(),
    Column("driver_id", Uuid, nullable=False),
    Column("notes", Text),
    UniqueConstraint("organization_id", "work_order_id"),
    tenant_key("work_order_id", "work_orders"),
    tenant_key("driver_id", "driver_profiles"),
)

route_stops = Table(
    "route_stops",
    metadata,
    Column("work_order_id", Uuid, nullable=False),
    Column("position", Integer, nullable=False),
    tenant_column(),
    Column("address", Text, nullable=False),
    *latitude_longitude(),
    Column("notes", Text),
    PrimaryKeyConstraint("work_order_id", "position"),
    tenant_key("work_order_id", "routes", "work_order_id"),
)

#: One row per work order: what is still to be told to its workflow. `seq > sent_seq` means a wake is owed.
workflow_wakes = Table(
    "workflow_wakes",
    metadata,
    Column("work_order_id", Uuid, primary_key=True),
    tenant_column(),
    Column("seq", BigInteger, nullable=False, server_default=text("1")),
    Column("sent_seq", BigInteger, nullable=False, server_default=text("0")),
    Column("reason", Text, nullable=False),
    Column("due_at", Timestamp, nullable=False),
    Column("claimed_until", Timestamp),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    #: Has the workflow been started once? Until then a wake starts it; afterwards it signals.
    Column("started", Boolean, nullable=False, server_default=text("false")),
    tenant_key("work_order_id", "work_orders"),
    Index("ix_workflow_wakes_owed", "due_at", postgresql_where=text("seq > sent_seq")),
    postgresql_with={"fillfactor": 70},
)

#: Work orders whose `advance` fails by a mistake of ours, not by an outage. From `parked_at` on nothing is tried any
#: more until somebody says `fairlead stuck retry` or `drop`.
stuck_work = Table(
    "stuck_work",
    metadata,
    Column("work_order_id", Uuid, primary_key=True),
    tenant_column(),
    Column("failures", Integer, nullable=False),
    #: The last error's class and text, without values of rows.
    Column("error", Text, nullable=False),
    Column("first_failed_at", Timestamp, nullable=False),
    Column("last_failed_at", Timestamp, nullable=False),
    Column("parked_at", Timestamp),
    tenant_key("work_order_id", "work_orders"),
    Index("ix_stuck_work_parked", "parked_at", postgresql_where=text("parked_at IS NOT NULL")),
)

work_order_events = Table(
    "work_order_events",
    metadata,
    Column("id", Uuid, nullable=False, server_default=text("uuidv7()")),
    tenant_column(),
    Column("work_order_id", Uuid, nullable=False),
    *status_column(WorkOrderStatus, name="previous_status", nullable=True),
    *status_column(WorkOrderStatus, name="new_status"),
    Column("changed_by_user_id", Uuid),
    Column("driver_id", Uuid),
    Column("lat", Double),
    Column("lng", Double),
    Column("notes", Text),
    #: The device's own time, where a device reported it; ours is `created_at`.
    Column("occurred_at", Timestamp),
    created_at(),
    PrimaryKeyConstraint("id", "created_at"),
    tenant_key("work_order_id", "work_orders"),
    Index(None, "work_order_id", "created_at"),
    postgresql_partition_by="RANGE (created_at)",
)
