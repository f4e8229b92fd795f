"""The first schema: everything that is hard to change later is right from here on.

Ids, tenant keys, drivers split by heat, monthly partitions, append-only journals, and the guards that make double
dispatch impossible in the database itself.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import UserDefinedType

revision = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None

EXTENSIONS = ("cube", "earthdistance", "citext", "pg_trgm")
PARTITIONED = ("audit_log", "notifications", "decisions", "work_order_events")
APPEND_ONLY = ("audit_log", "work_order_events")


class Xid8(UserDefinedType[int]):
    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "xid8"


#: Makes the partitions of one parent from last month to `ahead` months from now; returns how many were new.
ENSURE_PARTITIONS = """
CREATE FUNCTION ensure_month_partitions(parent regclass, ahead integer DEFAULT 3) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    month date;
    partition text;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('ensure_month_partitions:' || parent::text));
    FOR i IN -1..ahead LOOP
        month := (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => i))::date;
        partition := format('%s_%s', (SELECT relname FROM pg_class WHERE oid = parent), to_char(month, 'YYYY_MM'));
        IF to_regclass(partition) IS NULL THEN
            EXECUTE format('CREATE TABLE %I PARTITION OF %s FOR VALUES FROM (%L) TO (%L)', partition, parent,
                month::text || ' 00:00+00', (month + interval '1 month')::date::text || ' 00:00+00');
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END $$
"""

#: A journal's rows are never changed or removed one by one; retention drops whole partitions.
APPEND_ONLY_GUARD = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$
"""

#: A decision's bodies may be cleared by retention and erasure; what proves the chain may not change.
DECISION_GUARD = """
CREATE FUNCTION guard_decision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR (NEW.id, NEW.organization_id, NEW.number, NEW.work_order_id, NEW.policy_id, NEW.rule_version,
        NEW.decided_at, NEW.body_hash, NEW.previous_hash, NEW.hash, NEW.created_at)
       IS DISTINCT FROM (OLD.id, OLD.organization_id, OLD.number, OLD.work_order_id, OLD.policy_id, OLD.rule_version,
        OLD.decided_at, OLD.body_hash, OLD.previous_hash, OLD.hash, OLD.created_at) THEN
        RAISE EXCEPTION 'decisions are append-only' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$
"""

#: An answered offer is history: neither its state nor its expiry moves again.
OFFER_GUARD = """
CREATE FUNCTION guard_offer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status <> 'pending' AND (NEW.status, NEW.reason, NEW.expires_at, NEW.responded_at, NEW.driver_id)
        IS DISTINCT FROM (OLD.status, OLD.reason, OLD.expires_at, OLD.responded_at, OLD.driver_id) THEN
        RAISE EXCEPTION 'offer % is closed', OLD.id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$
"""


def upgrade() -> None:  # noqa: PLR0915 - a schema is long
    for extension in EXTENSIONS:
        op.execute(f"CREATE EXTENSION IF NOT EXISTS {extension}")
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=True),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("actor_kind", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("entity_type", sa.Text(), nullable=False),
        sa.Column("entity_id", sa.Uuid(), nullable=False),
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("ip", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column(
            "salt", sa.Text(), server_default=sa.text("encode(uuid_send(gen_random_uuid()), 'hex')"), nullable=False
        ),
        sa.Column("transaction_id", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint(
            "actor_kind IN ('user', 'api_key', 'system', 'workflow')", name=op.f("ck_audit_log_actor_kind")
        ),
        sa.PrimaryKeyConstraint("id", "created_at", name=op.f("pk_audit_log")),
        postgresql_partition_by="RANGE (created_at)",
    )
    op.create_index(op.f("ix_audit_log_entity_type_entity_id"), "audit_log", ["entity_type", "entity_id"], unique=False)
    op.create_index(
        op.f("ix_audit_log_organization_id"),
        "audit_log",
        ["organization_id", sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index(op.f("ix_audit_log_transaction_id"), "audit_log", ["transaction_id"], unique=False)
    op.create_table(
        "notifications",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=True),
        sa.Column("dedupe_key", sa.Text(), nullable=False),
        sa.Column("work_order_id", sa.Uuid(), nullable=True),
        sa.Column("offer_id", sa.Uuid(), nullable=True),
        sa.Column("params", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("sent_by", sa.Text(), nullable=True),
        sa.Column("provider_id", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("read_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("channel IN ('sms', 'email')", name=op.f("ck_notifications_channel")),
        sa.CheckConstraint(
            "status IN ('pending', 'sending', 'sent', 'delivered', 'failed')", name=op.f("ck_notifications_status")
        ),
        sa.PrimaryKeyConstraint("id", "created_at", name=op.f("pk_notifications")),
        sa.UniqueConstraint("dedupe_key", "created_at", name=op.f("uq_notifications_dedupe_key_created_at")),
        postgresql_partition_by="RANGE (created_at)",
    )
    op.create_index(
        "ix_notifications_due",
        "notifications",
        ["next_at"],
        unique=False,
        postgresql_where=sa.text("status IN ('pending', 'sending')"),
    )
    op.create_index(
        op.f("ix_notifications_user_id"),
        "notifications",
        ["user_id", sa.literal_column("created_at DESC")],
        unique=False,
    )
    op.create_table(
        "organizations",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), server_default=sa.text("'USD'"), nullable=False),
        sa.Column("time_zone", sa.Text(), server_default=sa.text("'UTC'"), nullable=False),
        sa.Column("locale", sa.Text(), server_default=sa.text("'en'"), nullable=False),
        sa.Column("driver_label", sa.Text(), server_default=sa.text("'Driver'"), nullable=False),
        sa.Column("settings", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column(
            "updated_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint("kind IN ('state', 'board', 'operator')", name=op.f("ck_organizations_kind")),
        sa.ForeignKeyConstraint(["parent_id"], ["organizations.id"], name=op.f("fk_organizations_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organizations")),
        sa.UniqueConstraint("slug", name=op.f("uq_organizations_slug")),
    )
    op.create_index(op.f("ix_organizations_parent_id"), "organizations", ["parent_id"], unique=False)
    op.create_table(
        "dispatch_lanes",
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("last_number", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_hash", sa.LargeBinary(), server_default=sa.text("'\\x'::bytea"), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_dispatch_lanes_organization_id")
        ),
        sa.PrimaryKeyConstraint("organization_id", name=op.f("pk_dispatch_lanes")),
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "dispatch_policies",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("settings", postgresql.JSONB(), nullable=False),
        sa.Column("is_current", sa.Boolean(), nullable=False),
        sa.Column("created_by_user_id", sa.Uuid(), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint("kind IN ('enrollment', 'job', 'order', 'route')", name=op.f("ck_dispatch_policies_kind")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_dispatch_policies_organization_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dispatch_policies")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_dispatch_policies_organization_id_id")),
        sa.UniqueConstraint(
            "organization_id", "kind", "version", name=op.f("uq_dispatch_policies_organization_id_kind_version")
        ),
    )
    op.create_index(
        "uq_dispatch_policies_current",
        "dispatch_policies",
        ["organization_id", "kind"],
        unique=True,
        postgresql_where=sa.text("is_current"),
    )
    op.create_table(
        "reference_counters",
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("next_number", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_reference_counters_organization_id")
        ),
        sa.PrimaryKeyConstraint("organization_id", "prefix", name=op.f("pk_reference_counters")),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("email", postgresql.CITEXT(), nullable=True),
        sa.Column("phone", sa.Text(), nullable=True),
        sa.Column("full_name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("is_active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("email_verified_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("phone_verified_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("totp_secret", sa.Text(), nullable=True),
        sa.Column("last_login_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column(
            "updated_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "role IN ('super_admin', 'state_admin', 'board_admin', 'dispatcher', 'support_agent', 'auditor', 'driver', 'customer')",
            name=op.f("ck_users_role"),
        ),
        sa.CheckConstraint(
            "email IS NOT NULL OR phone IS NOT NULL OR deleted_at IS NOT NULL", name=op.f("ck_users_reachable")
        ),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_users_organization_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_users_organization_id_id")),
        sa.UniqueConstraint("phone", name=op.f("uq_users_phone")),
    )
    op.create_index(op.f("ix_users_organization_id_role"), "users", ["organization_id", "role"], unique=False)
    op.create_table(
        "driver_profiles",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("skills", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("vehicle_type", sa.Text(), nullable=True),
        sa.Column("vehicle", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("service_radius_km", sa.Double(), server_default=sa.text("25"), nullable=False),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column(
            "updated_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint("service_radius_km > 0", name=op.f("ck_driver_profiles_service_radius")),
        sa.ForeignKeyConstraint(
            ["organization_id", "user_id"],
            ["users.organization_id", "users.id"],
            name=op.f("fk_driver_profiles_organization_id_user_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_driver_profiles")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_driver_profiles_organization_id_id")),
        sa.UniqueConstraint("organization_id", "reference", name=op.f("uq_driver_profiles_organization_id_reference")),
        sa.UniqueConstraint("organization_id", "user_id", name=op.f("uq_driver_profiles_organization_id_user_id")),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("family_id", sa.Uuid(), nullable=False),
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("device_info", sa.Text(), nullable=True),
        sa.Column("ip", sa.Text(), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("replaced_by", sa.Uuid(), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_sessions_token_hash")),
    )
    op.create_index(op.f("ix_sessions_family_id"), "sessions", ["family_id"], unique=False)
    op.create_index(op.f("ix_sessions_user_id"), "sessions", ["user_id"], unique=False)
    op.create_index(
        "uq_sessions_live", "sessions", ["family_id"], unique=True, postgresql_where=sa.text("revoked_at IS NULL")
    )
    op.create_table(
        "driver_dispatch",
        sa.Column("driver_id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("duty", sa.Text(), server_default=sa.text("'off'"), nullable=False),
        sa.Column(
            "duty_since", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("staff_busy", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("active_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("queue_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_assigned_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_offered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reject_streak", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("state_version", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("duty IN ('on', 'break', 'off')", name=op.f("ck_driver_dispatch_duty")),
        sa.CheckConstraint("active_count >= 0", name=op.f("ck_driver_dispatch_active_count")),
        sa.ForeignKeyConstraint(
            ["organization_id", "driver_id"],
            ["driver_profiles.organization_id", "driver_profiles.id"],
            name=op.f("fk_driver_dispatch_organization_id_driver_id"),
        ),
        sa.PrimaryKeyConstraint("driver_id", name=op.f("pk_driver_dispatch")),
        sa.UniqueConstraint("organization_id", "driver_id", name=op.f("uq_driver_dispatch_organization_id_driver_id")),
        postgresql_with={"fillfactor": 70},
    )
    op.create_index(
        "ix_driver_dispatch_on_duty",
        "driver_dispatch",
        ["organization_id", "queue_at"],
        unique=False,
        postgresql_where=sa.text("duty = 'on'"),
    )
    op.create_table(
        "driver_positions",
        sa.Column("driver_id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("lat", sa.Double(), nullable=True),
        sa.Column("lng", sa.Double(), nullable=True),
        sa.Column("accuracy_m", sa.Double(), nullable=True),
        sa.Column("position_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(lat IS NULL) = (lng IS NULL) AND lat BETWEEN -90 AND 90 AND lng BETWEEN -180 AND 180",
            name=op.f("ck_driver_positions_location"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "driver_id"],
            ["driver_profiles.organization_id", "driver_profiles.id"],
            name=op.f("fk_driver_positions_organization_id_driver_id"),
        ),
        sa.PrimaryKeyConstraint("driver_id", name=op.f("pk_driver_positions")),
        postgresql_with={"fillfactor": 70},
    )
    op.create_index(
        "ix_driver_positions_earth",
        "driver_positions",
        [sa.literal_column("ll_to_earth(lat, lng)")],
        unique=False,
        postgresql_using="gist",
    )
    op.create_table(
        "work_orders",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default=sa.text("5"), nullable=False),
        sa.Column("required_skills", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("required_vehicle_type", sa.Text(), nullable=True),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("lat", sa.Double(), nullable=True),
        sa.Column("lng", sa.Double(), nullable=True),
        sa.Column("scheduled_for", sa.DateTime(timezone=True), nullable=True),
        sa.Column("timeslot", sa.Text(), nullable=True),
        sa.Column("special_instructions", sa.Text(), nullable=True),
        sa.Column("requested_by_user_id", sa.Uuid(), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("policy_id", sa.Uuid(), nullable=False),
        sa.Column("manual", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("waiting_since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("match_from", sa.DateTime(timezone=True), nullable=True),
        sa.Column("round", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("next_round_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("broadcast_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("nobody_reasons", sa.Text(), nullable=True),
        sa.Column("escalations", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("escalate_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("nudged_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("late_alerted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("assigned_driver_id", sa.Uuid(), nullable=True),
        sa.Column("offered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("assigned_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("en_route_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("arrived_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("in_progress_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disputed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancellation_reason", sa.Text(), nullable=True),
        sa.Column("completion_photo_key", sa.Text(), nullable=True),
        sa.Column("completion_notes", sa.Text(), nullable=True),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column(
            "updated_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint(
            "(assigned_driver_id IS NOT NULL) OR status NOT IN ('assigned', 'en_route', 'arrived', 'in_progress')",
            name=op.f("ck_work_orders_assignee"),
        ),
        sa.CheckConstraint("kind IN ('enrollment', 'job', 'order', 'route')", name=op.f("ck_work_orders_kind")),
        sa.CheckConstraint("match_from IS NULL OR status = 'pending'", name=op.f("ck_work_orders_match_from")),
        sa.CheckConstraint("source IN ('customer', 'dispatcher', 'api', 'import')", name=op.f("ck_work_orders_source")),
        sa.CheckConstraint(
            "status IN ('pending', 'assigned', 'en_route', 'arrived', 'in_progress', 'completed', 'cancelled', 'expired', 'disputed')",
            name=op.f("ck_work_orders_status"),
        ),
        sa.CheckConstraint(
            "(lat IS NULL) = (lng IS NULL) AND lat BETWEEN -90 AND 90 AND lng BETWEEN -180 AND 180",
            name=op.f("ck_work_orders_location"),
        ),
        sa.CheckConstraint("priority BETWEEN 0 AND 9", name=op.f("ck_work_orders_priority")),
        sa.ForeignKeyConstraint(
            ["organization_id", "assigned_driver_id"],
            ["driver_profiles.organization_id", "driver_profiles.id"],
            name=op.f("fk_work_orders_organization_id_assigned_driver_id"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "policy_id"],
            ["dispatch_policies.organization_id", "dispatch_policies.id"],
            name=op.f("fk_work_orders_organization_id_policy_id"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "requested_by_user_id"],
            ["users.organization_id", "users.id"],
            name=op.f("fk_work_orders_organization_id_requested_by_user_id"),
        ),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_work_orders_organization_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_work_orders")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_work_orders_organization_id_id")),
        sa.UniqueConstraint("organization_id", "reference", name=op.f("uq_work_orders_organization_id_reference")),
        postgresql_with={"fillfactor": 80},
    )
    op.create_index(
        op.f("ix_work_orders_assigned_driver_id"),
        "work_orders",
        ["assigned_driver_id"],
        unique=False,
        postgresql_where=sa.text("assigned_driver_id IS NOT NULL"),
    )
    op.create_index(
        "ix_work_orders_board",
        "work_orders",
        ["organization_id", "status", sa.literal_column("created_at DESC")],
        unique=False,
    )
    op.create_index(
        "ix_work_orders_cancelled",
        "work_orders",
        ["organization_id", "cancelled_at"],
        unique=False,
        postgresql_where=sa.text("cancelled_at IS NOT NULL"),
    )
    op.create_index(
        "ix_work_orders_completed",
        "work_orders",
        ["organization_id", "completed_at"],
        unique=False,
        postgresql_where=sa.text("completed_at IS NOT NULL"),
    )
    op.create_index(
        "ix_work_orders_kind",
        "work_orders",
        ["organization_id", "kind", sa.literal_column("created_at DESC")],
        unique=False,
    )
    op.create_index(
        "ix_work_orders_lane",
        "work_orders",
        ["organization_id", sa.literal_column("priority DESC"), "waiting_since", "id"],
        unique=False,
        postgresql_where=sa.text("match_from IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_work_orders_requested_by_user_id"),
        "work_orders",
        ["requested_by_user_id"],
        unique=False,
        postgresql_where=sa.text("requested_by_user_id IS NOT NULL"),
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("work_order_id", sa.Uuid(), nullable=False),
        sa.Column("driver_id", sa.Uuid(), nullable=True),
        sa.Column("policy_id", sa.Uuid(), nullable=False),
        sa.Column("rule_version", sa.SmallInteger(), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("header", sa.LargeBinary(), nullable=True),
        sa.Column("candidates", sa.LargeBinary(), nullable=True),
        sa.Column("salts", sa.LargeBinary(), nullable=True),
        sa.Column("body_hash", sa.LargeBinary(), nullable=False),
        sa.Column("previous_hash", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "work_order_id"],
            ["work_orders.organization_id", "work_orders.id"],
            name=op.f("fk_decisions_organization_id_work_order_id"),
        ),
        sa.PrimaryKeyConstraint("id", "created_at", name=op.f("pk_decisions")),
        postgresql_partition_by="RANGE (created_at)",
    )
    op.create_index(
        op.f("ix_decisions_organization_id_number"), "decisions", ["organization_id", "number"], unique=False
    )
    op.create_index(op.f("ix_decisions_work_order_id"), "decisions", ["work_order_id"], unique=False)
    op.create_table(
        "enrollments",
        sa.Column("work_order_id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("premise_id", sa.Text(), nullable=False),
        sa.Column("meter_id", sa.Uuid(), nullable=True),
        sa.ForeignKeyConstraint(
            ["organization_id", "work_order_id"],
            ["work_orders.organization_id", "work_orders.id"],
            name=op.f("fk_enrollments_organization_id_work_order_id"),
        ),
        sa.PrimaryKeyConstraint("work_order_id", name=op.f("pk_enrollments")),
    )
    op.create_index(
        op.f("ix_enrollments_organization_id_premise_id"),
        "enrollments",
        ["organization_id", "premise_id"],
        unique=False,
    )
    op.create_table(
        "jobs",
        sa.Column("work_order_id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=True),
        sa.Column("service_location_id", sa.Uuid(), nullable=True),
        sa.Column("service_type", sa.Text(), nullable=True),
        sa.Column("driveway_tier_id", sa.Uuid(), nullable=True),
        sa.Column("quoted_price_cents", sa.BigInteger(), nullable=True),
        sa.Column("final_price_cents", sa.BigInteger(), nullable=True),
        sa.Column("discount_cents", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("pricing_model", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["organization_id", "customer_id"],
            ["users.organization_id", "users.id"],
            name=op.f("fk_jobs_organization_id_customer_id"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "work_order_id"],
            ["work_orders.organization_id", "work_orders.id"],
            name=op.f("fk_jobs_organization_id_work_order_id"),
        ),
        sa.PrimaryKeyConstraint("work_order_id", name=op.f("pk_jobs")),
    )
    op.create_index(
        op.f("ix_jobs_customer_id"),
        "jobs",
        ["customer_id"],
        unique=False,
        postgresql_where=sa.text("customer_id IS NOT NULL"),
    )
    op.create_table(
        "offers",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("work_order_id", sa.Uuid(), nullable=False),
        sa.Column("driver_id", sa.Uuid(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("exclusive", sa.Boolean(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("reject_reason", sa.Text(), nullable=True),
        sa.Column("offered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_max_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reminded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("responded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("queue_at_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("policy_id", sa.Uuid(), nullable=False),
        sa.Column("decision_id", sa.Uuid(), nullable=True),
        sa.CheckConstraint("(status = 'expired') = (reason IS NOT NULL)", name=op.f("ck_offers_expired_has_reason")),
        sa.CheckConstraint("(status = 'pending') = (responded_at IS NULL)", name=op.f("ck_offers_responded_at")),
        sa.CheckConstraint(
            "mode IN ('sequential', 'broadcast', 'manual', 'auto', 'force')", name=op.f("ck_offers_mode")
        ),
        sa.CheckConstraint(
            "reason IN ('timeout', 'superseded', 'cancelled', 'driver_unavailable')", name=op.f("ck_offers_reason")
        ),
        sa.CheckConstraint("status IN ('pending', 'accepted', 'rejected', 'expired')", name=op.f("ck_offers_status")),
        sa.CheckConstraint("expires_at <= expires_max_at", name=op.f("ck_offers_expires_max_at")),
        sa.ForeignKeyConstraint(
            ["organization_id", "driver_id"],
            ["driver_profiles.organization_id", "driver_profiles.id"],
            name=op.f("fk_offers_organization_id_driver_id"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "policy_id"],
            ["dispatch_policies.organization_id", "dispatch_policies.id"],
            name=op.f("fk_offers_organization_id_policy_id"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "work_order_id"],
            ["work_orders.organization_id", "work_orders.id"],
            name=op.f("fk_offers_organization_id_work_order_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_offers")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_offers_organization_id_id")),
        sa.UniqueConstraint(
            "work_order_id", "round", "driver_id", name=op.f("uq_offers_work_order_id_round_driver_id")
        ),
        sa.UniqueConstraint("work_order_id", "sequence", name=op.f("uq_offers_work_order_id_sequence")),
        postgresql_with={"fillfactor": 80},
    )
    op.create_index("ix_offers_driver", "offers", ["driver_id", sa.literal_column("id DESC")], unique=False)
    op.create_index(
        "ix_offers_pending", "offers", ["work_order_id"], unique=False, postgresql_where=sa.text("status = 'pending'")
    )
    op.create_index(
        "ix_offers_pending_driver",
        "offers",
        ["driver_id"],
        unique=False,
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index("ix_offers_recent", "offers", ["organization_id", sa.literal_column("id DESC")], unique=False)
    op.create_index(
        "uq_offers_pending_exclusive_driver",
        "offers",
        ["driver_id"],
        unique=True,
        postgresql_where=sa.text("status = 'pending' AND exclusive"),
    )
    op.create_index(
        "uq_offers_pending_exclusive_work_order",
        "offers",
        ["work_order_id"],
        unique=True,
        postgresql_where=sa.text("status = 'pending' AND exclusive"),
    )
    op.create_table(
        "orders",
        sa.Column("work_order_id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("pickup_address", sa.Text(), nullable=False),
        sa.Column("pickup_lat", sa.Double(), nullable=False),
        sa.Column("pickup_lng", sa.Double(), nullable=False),
        sa.Column("dropoff_address", sa.Text(), nullable=False),
        sa.Column("dropoff_lat", sa.Double(), nullable=False),
        sa.Column("dropoff_lng", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("notes", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(dropoff_lat IS NULL) = (dropoff_lng IS NULL) AND dropoff_lat BETWEEN -90 AND 90 AND dropoff_lng BETWEEN -180 AND 180",
            name=op.f("ck_orders_dropoff_location"),
        ),
        sa.CheckConstraint(
            "(pickup_lat IS NULL) = (pickup_lng IS NULL) AND pickup_lat BETWEEN -90 AND 90 AND pickup_lng BETWEEN -180 AND 180",
            name=op.f("ck_orders_pickup_location"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "work_order_id"],
            ["work_orders.organization_id", "work_orders.id"],
            name=op.f("fk_orders_organization_id_work_order_id"),
        ),
        sa.PrimaryKeyConstraint("work_order_id", name=op.f("pk_orders")),
    )
    op.create_table(
        "routes",
        sa.Column("work_order_id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("driver_id", sa.Uuid(), nullable=False),
        sa.Column("notes", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["organization_id", "driver_id"],
            ["driver_profiles.organization_id", "driver_profiles.id"],
            name=op.f("fk_routes_organization_id_driver_id"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "work_order_id"],
            ["work_orders.organization_id", "work_orders.id"],
            name=op.f("fk_routes_organization_id_work_order_id"),
        ),
        sa.PrimaryKeyConstraint("work_order_id", name=op.f("pk_routes")),
        sa.UniqueConstraint("organization_id", "work_order_id", name=op.f("uq_routes_organization_id_work_order_id")),
    )
    op.create_table(
        "work_order_events",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("work_order_id", sa.Uuid(), nullable=False),
        sa.Column("previous_status", sa.Text(), nullable=True),
        sa.Column("new_status", sa.Text(), nullable=False),
        sa.Column("changed_by_user_id", sa.Uuid(), nullable=True),
        sa.Column("driver_id", sa.Uuid(), nullable=True),
        sa.Column("lat", sa.Double(), nullable=True),
        sa.Column("lng", sa.Double(), nullable=True),
        sa.Column("notes", sa.Text(), nullable=True),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint(
            "new_status IN ('pending', 'assigned', 'en_route', 'arrived', 'in_progress', 'completed', 'cancelled', 'expired', 'disputed')",
            name=op.f("ck_work_order_events_new_status"),
        ),
        sa.CheckConstraint(
            "previous_status IN ('pending', 'assigned', 'en_route', 'arrived', 'in_progress', 'completed', 'cancelled', 'expired', 'disputed')",
            name=op.f("ck_work_order_events_previous_status"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "work_order_id"],
            ["work_orders.organization_id", "work_orders.id"],
            name=op.f("fk_work_order_events_organization_id_work_order_id"),
        ),
        sa.PrimaryKeyConstraint("id", "created_at", name=op.f("pk_work_order_events")),
        postgresql_partition_by="RANGE (created_at)",
    )
    op.create_index(
        op.f("ix_work_order_events_work_order_id_created_at"),
        "work_order_events",
        ["work_order_id", "created_at"],
        unique=False,
    )
    op.create_table(
        "workflow_wakes",
        sa.Column("work_order_id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("sent_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("started", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "work_order_id"],
            ["work_orders.organization_id", "work_orders.id"],
            name=op.f("fk_workflow_wakes_organization_id_work_order_id"),
        ),
        sa.PrimaryKeyConstraint("work_order_id", name=op.f("pk_workflow_wakes")),
        postgresql_with={"fillfactor": 70},
    )
    op.create_index(
        "ix_workflow_wakes_owed", "workflow_wakes", ["due_at"], unique=False, postgresql_where=sa.text("seq > sent_seq")
    )
    op.create_table(
        "assignments",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("work_order_id", sa.Uuid(), nullable=False),
        sa.Column("driver_id", sa.Uuid(), nullable=False),
        sa.Column("offer_id", sa.Uuid(), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_by", sa.Text(), nullable=True),
        sa.Column("counted", sa.Boolean(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint(
            "ended_by IN ('completed', 'cancelled', 'unassigned', 'handed_back')", name=op.f("ck_assignments_ended_by")
        ),
        sa.CheckConstraint("(ends_at IS NULL) = (ended_by IS NULL)", name=op.f("ck_assignments_ended")),
        sa.ForeignKeyConstraint(
            ["organization_id", "driver_id"],
            ["driver_profiles.organization_id", "driver_profiles.id"],
            name=op.f("fk_assignments_organization_id_driver_id"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "offer_id"],
            ["offers.organization_id", "offers.id"],
            name=op.f("fk_assignments_organization_id_offer_id"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "work_order_id"],
            ["work_orders.organization_id", "work_orders.id"],
            name=op.f("fk_assignments_organization_id_work_order_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assignments")),
        sa.UniqueConstraint("offer_id", name=op.f("uq_assignments_offer_id")),
    )
    op.create_index(
        "ix_assignments_driver", "assignments", ["driver_id", sa.literal_column("starts_at DESC")], unique=False
    )
    op.create_index(
        "ix_assignments_held", "assignments", ["driver_id"], unique=False, postgresql_where=sa.text("ends_at IS NULL")
    )
    op.create_index(
        "uq_assignments_open",
        "assignments",
        ["work_order_id"],
        unique=True,
        postgresql_where=sa.text("ends_at IS NULL"),
    )
    op.create_table(
        "route_stops",
        sa.Column("work_order_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("lat", sa.Double(), nullable=True),
        sa.Column("lng", sa.Double(), nullable=True),
        sa.Column("notes", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(lat IS NULL) = (lng IS NULL) AND lat BETWEEN -90 AND 90 AND lng BETWEEN -180 AND 180",
            name=op.f("ck_route_stops_location"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "work_order_id"],
            ["routes.organization_id", "routes.work_order_id"],
            name=op.f("fk_route_stops_organization_id_work_order_id"),
        ),
        sa.PrimaryKeyConstraint("work_order_id", "position", name=op.f("pk_route_stops")),
    )
    op.execute(ENSURE_PARTITIONS)
    for table in PARTITIONED:
        op.execute(f"SELECT ensure_month_partitions('{table}')")
    op.execute(APPEND_ONLY_GUARD)
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        )
    op.execute(DECISION_GUARD)
    op.execute(
        "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON decisions FOR EACH ROW EXECUTE FUNCTION guard_decision()"
    )
    op.execute(OFFER_GUARD)
    op.execute("CREATE TRIGGER closed_is_closed BEFORE UPDATE ON offers FOR EACH ROW EXECUTE FUNCTION guard_offer()")


def downgrade() -> None:
    for table in (
        "route_stops",
        "assignments",
        "workflow_wakes",
        "work_order_events",
        "routes",
        "orders",
        "offers",
        "jobs",
        "enrollments",
        "decisions",
        "work_orders",
        "driver_positions",
        "driver_dispatch",
        "sessions",
        "driver_profiles",
        "users",
        "reference_counters",
        "dispatch_policies",
        "dispatch_lanes",
        "organizations",
        "notifications",
        "audit_log",
    ):
        op.drop_table(table)
    for function in (
        "guard_offer()",
        "guard_decision()",
        "refuse_change()",
        "ensure_month_partitions(regclass, integer)",
    ):
        op.execute(f"DROP FUNCTION {function}")
    for extension in reversed(EXTENSIONS):
        op.execute(f"DROP EXTENSION IF EXISTS {extension}")
