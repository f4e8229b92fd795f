"""What the lane reads: the first work order that somebody could take, and every driver on duty for it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.engine import Row

from models.fairness.rules import Candidate, Work
from models.kit.database import Session
from models.kit.sql import Sql
from models.policies.queries import CurrentPolicy, current_policies
from models.work.rules import WorkKind

# Narrows, never decides: the pure rule ranks what is found here. Without a driver who could take anything at all, it
# ends before it looks at a single work order, so ten thousand that wait cost nothing.
_FIRST_SERVABLE = Sql("""
WITH policy AS MATERIALIZED (
    SELECT * FROM unnest(CAST(:kinds AS text[]), CAST(:most_held AS int[]), CAST(:busy_fallback AS bool[]),
        CAST(:reject_memory AS bool[]), CAST(:seen_within_s AS int[]), CAST(:radius_m AS float8[]))
        AS p (kind, most_held, busy_fallback, reject_memory, seen_within_s, radius_m)
),
free AS MATERIALIZED (
    SELECT d.driver_id, d.active_count, d.staff_busy, f.skills, f.vehicle_type, f.service_radius_km * 1000 AS radius_m,
        p.last_seen_at, p.lat, p.lng
    FROM driver_dispatch d
    JOIN driver_profiles f ON f.id = d.driver_id
    JOIN users u ON u.id = f.user_id AND u.is_active AND u.deleted_at IS NULL AND u.role = 'driver'
    LEFT JOIN driver_positions p ON p.driver_id = d.driver_id
    WHERE d.organization_id = :organization_id AND d.duty = 'on'
        AND d.active_count < (SELECT max(most_held) FROM policy)
        AND (NOT d.staff_busy OR (SELECT bool_or(busy_fallback) FROM policy))
        AND NOT EXISTS (SELECT FROM offers o WHERE o.driver_id = d.driver_id AND o.status = 'pending' AND o.exclusive)
)
SELECT w.id
FROM work_orders w JOIN policy ON policy.kind = w.kind
WHERE w.organization_id = :organization_id AND w.match_from <= clock_timestamp()
    AND EXISTS (SELECT FROM free)
    AND NOT w.id = ANY(:passed)
    -- Whatever brought it back here. An array, so that it is read once and leaves the plan as it is.
    AND NOT w.id = ANY(ARRAY(SELECT work_order_id FROM stuck_work WHERE parked_at IS NOT NULL))
    AND EXISTS (
        SELECT FROM free
        WHERE free.active_count < policy.most_held AND (NOT free.staff_busy OR policy.busy_fallback)
            AND free.skills @> w.required_skills
            AND (w.required_vehicle_type IS NULL OR free.vehicle_type = w.required_vehicle_type)
            AND (policy.seen_within_s IS NULL
                OR free.last_seen_at >= clock_timestamp() - make_interval(secs => policy.seen_within_s))
            AND (policy.radius_m IS NULL OR w.lat IS NULL OR (free.lat IS NOT NULL
                AND earth_distance(ll_to_earth(w.lat, w.lng), ll_to_earth(free.lat, free.lng))
                    <= least(policy.radius_m, free.radius_m) + 1))
            AND NOT EXISTS (
                SELECT FROM offers o WHERE o.work_order_id = w.id AND o.driver_id = free.driver_id
                    AND ((o.round = w.round AND (w.broadcast_until IS NULL OR o.status = 'rejected'))
                        OR (policy.reject_memory AND o.status = 'rejected')))
    )
ORDER BY w.priority DESC, w.waiting_since, w.id
LIMIT 1
""")

# Every driver on duty, with all that the rule reads: first the fields of a Candidate in their order, then what an offer
# needs. `history`: what this work order already went through with them.
_CANDIDATES = Sql("""
WITH history AS (
    SELECT o.driver_id,
        bool_or(o.round = :round AND (NOT :broadcast_is_out OR o.status = 'rejected')
            OR o.round = :round - 1 AND a.ended_by IN ('unassigned', 'handed_back')) AS already_offered,
        bool_or(o.status = 'rejected' OR a.ended_by = 'handed_back') AS rejected,
        count(*) FILTER (WHERE o.reason = 'timeout') AS lapses,
        max(o.responded_at) FILTER (WHERE o.reason = 'timeout') AS lapsed_at
    FROM offers o LEFT JOIN assignments a ON a.offer_id = o.id
    WHERE o.work_order_id = :work_order_id GROUP BY o.driver_id
)
SELECT d.driver_id::text AS id,
    (extract(epoch FROM d.queue_at) * 1000000)::bigint AS queued_us,
    (extract(epoch FROM d.last_offered_at) * 1000000)::bigint AS last_offered_us,
    d.active_count, d.staff_busy,
    EXISTS (SELECT FROM offers o WHERE o.driver_id = d.driver_id AND o.status = 'pending' AND o.exclusive) AS has_offer,
    CASE WHEN CAST(:skills AS text[]) = '{}' THEN '{}'
        ELSE ARRAY(SELECT DISTINCT s FROM unnest(f.skills) s WHERE s = ANY(CAST(:skills AS text[])) ORDER BY s)
    END AS skills,
    f.vehicle_type,
    coalesce(h.already_offered, false) AS already_offered, coalesce(h.rejected, false) AS rejected,
    coalesce(h.lapses, 0) AS lapses, (extract(epoch FROM h.lapsed_at) * 1000000)::bigint AS lapsed_at,
    (extract(epoch FROM p.last_seen_at) * 1000000)::bigint AS seen_at,
    CASE WHEN p.lat IS NOT NULL AND CAST(:lat AS float8) IS NOT NULL THEN
        round(earth_distance(ll_to_earth(:lat, :lng), ll_to_earth(p.lat, p.lng)))::bigint END AS distance_m,
    (f.service_radius_km * 1000)::bigint AS service_radius_m,
    d.driver_id, f.user_id, d.state_version, d.queue_at,
    (SELECT coalesce(max(sequence), 0) + 1 FROM offers WHERE work_order_id = :work_order_id) AS next_sequence,
    (SELECT expires_at FROM orders WHERE work_order_id = :work_order_id) AS latest_expiry
FROM driver_dispatch d
JOIN driver_profiles f ON f.id = d.driver_id
JOIN users u ON u.id = f.user_id AND u.is_active AND u.deleted_at IS NULL AND u.role = 'driver'
LEFT JOIN driver_positions p ON p.driver_id = d.driver_id
LEFT JOIN history h ON h.driver_id = d.driver_id
WHERE d.organization_id = :organization_id AND d.duty = 'on'
ORDER BY d.driver_id
""")


async def first_servable(
    session: Session,
    organization_id: UUID,
    *,
    policies: dict[WorkKind, CurrentPolicy] | None = None,
    passed: list[UUID] | None = None,
) -> UUID | None:
    """The work order that the lane would serve next, those in `passed` left out; None when there is none."""
    policies = policies or await current_policies(session, organization_id)
    found: UUID | None = await session.value(_FIRST_SERVABLE, _narrowing(organization_id, policies, passed or []))
    return found


def _narrowing(organization_id: UUID, policies: dict[WorkKind, CurrentPolicy], passed: list[UUID]) -> dict[str, Any]:
    rules = [current.policy for current in policies.values()]
    return {
        "organization_id": organization_id,
        "kinds": [kind.value for kind in policies],
        "most_held": [p.most_held for p in rules],
        "busy_fallback": [p.busy_fallback for p in rules],
        "reject_memory": [p.reject_memory for p in rules],
        "seen_within_s": [p.heartbeat_max_age_s if p.require_heartbeat else None for p in rules],
        "radius_m": [None if p.radius_km is None else p.radius_km * 1000 for p in rules],
        "passed": passed,
    }


async def read_candidates(session: Session, work_order: Row[Any]) -> list[Row[Any]]:
    return list(
        await session.rows(
            _CANDIDATES,
            {
                "organization_id": work_order.organization_id,
                "work_order_id": work_order.id,
                "round": work_order.round,
                "broadcast_is_out": work_order.broadcast_until is not None,
                "skills": work_order.required_skills,
                "lat": work_order.lat,
                "lng": work_order.lng,
            },
        )
    )


_make: Callable[..., Candidate] = Candidate
_FIELDS = len(Candidate.__struct_fields__)
_SKILLS = Candidate.__struct_fields__.index("skills")


def candidate_of(row: Row[Any]) -> Candidate:
    # By position: with a thousand on duty the names would cost more than the choice.
    skills = row[_SKILLS]
    return _make(*row[:_SKILLS], tuple(skills) if skills else (), *row[_SKILLS + 1 : _FIELDS])


def facts_of(work_order: Row[Any]) -> Work:
    return Work(
        work_order_id=str(work_order.id),
        kind=work_order.kind,
        priority=work_order.priority,
        round=work_order.round,
        required_skills=tuple(work_order.required_skills),
        required_vehicle_type=work_order.required_vehicle_type,
        has_location=work_order.lat is not None,
    )


def micros(instant: datetime) -> int:
    return round(instant.timestamp() * 1_000_000)
