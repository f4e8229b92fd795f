"""What must hold in every database at every commit, as named queries: each finds the rows that break its rule."""

from __future__ import annotations

from sqlalchemy import text

from models.fairness.records import chain_hash, read_record, replays, verify_body
from models.kit.database import Database
from models.work.rules import KIND_TRANSITIONS, TRANSITIONS, WorkKind

_LEGAL = ", ".join(
    f"('{kind}', '{current}', '{target}')"
    for kind in WorkKind
    for steps in (TRANSITIONS, KIND_TRANSITIONS.get(kind, {}))
    for current, targets in steps.items()
    for target in targets
)

INVARIANTS: dict[str, str] = {
    "a driver answers one exclusive offer at a time": """
        SELECT driver_id FROM offers WHERE status = 'pending' AND exclusive GROUP BY 1 HAVING count(*) > 1""",
    "a work order has one exclusive offer at a time": """
        SELECT work_order_id FROM offers WHERE status = 'pending' AND exclusive GROUP BY 1 HAVING count(*) > 1""",
    "a work order has at most one open assignment": """
        SELECT work_order_id FROM assignments WHERE ends_at IS NULL GROUP BY 1 HAVING count(*) > 1""",
    "held work has an open assignment to its driver, other work none": """
        SELECT w.id, w.status FROM work_orders w
        LEFT JOIN assignments a ON a.work_order_id = w.id AND a.ends_at IS NULL
        WHERE (w.status IN ('assigned', 'en_route', 'arrived', 'in_progress')) <> (a.id IS NOT NULL)
            OR a.driver_id <> w.assigned_driver_id""",
    "active_count is the number of open counted assignments": """
        SELECT d.driver_id, d.active_count, count(a.id) FROM driver_dispatch d
        LEFT JOIN assignments a ON a.driver_id = d.driver_id AND a.ends_at IS NULL AND a.counted
        GROUP BY d.driver_id, d.active_count HAVING d.active_count <> count(a.id)""",
    "no driver holds more than the widest policy allows": """
        SELECT driver_id, active_count FROM driver_dispatch d WHERE active_count > (
            SELECT max(coalesce((settings->>'capacity')::int, 1)
                + coalesce((settings->>'busy_fallback')::bool, false)::int)
            FROM dispatch_policies p WHERE p.organization_id = d.organization_id)""",
    "every accepted offer made one assignment": """
        SELECT o.id FROM offers o LEFT JOIN assignments a ON a.offer_id = o.id AND a.driver_id = o.driver_id
        WHERE (o.status = 'accepted') <> (a.id IS NOT NULL)""",
    "only waiting work has open offers": """
        SELECT o.id, w.status FROM offers o JOIN work_orders w ON w.id = o.work_order_id
        WHERE o.status = 'pending' AND w.status <> 'pending'""",
    "waiting work is in the lane, on offer, due for a round, or a person's": """
        SELECT w.id FROM work_orders w WHERE w.status = 'pending' AND NOT w.manual AND w.match_from IS NULL
            AND w.next_round_at IS NULL AND NOT EXISTS (
                SELECT FROM offers o WHERE o.work_order_id = w.id AND o.status = 'pending')""",
    "each event begins where the one before ended": """
        SELECT work_order_id, previous_status, before FROM (
            SELECT work_order_id, previous_status,
                lag(new_status) OVER (PARTITION BY work_order_id ORDER BY created_at, id) AS before
            FROM work_order_events) e
        WHERE previous_status IS DISTINCT FROM before""",
    "every event is a step of the table": f"""
        SELECT e.work_order_id, e.previous_status, e.new_status
        FROM work_order_events e JOIN work_orders w ON w.id = e.work_order_id
        WHERE e.previous_status IS NOT NULL
            AND (w.kind, e.previous_status, e.new_status) NOT IN (VALUES {_LEGAL})""",
    "the last event is the status": """
        SELECT w.id, w.status, e.new_status FROM work_orders w LEFT JOIN LATERAL (
            SELECT new_status FROM work_order_events WHERE work_order_id = w.id
            ORDER BY created_at DESC, id DESC LIMIT 1
        ) e ON true WHERE e.new_status IS DISTINCT FROM w.status""",
    "a state change has one event and one audit row": """
        SELECT work_order_id, sum(n), kind FROM (
            SELECT work_order_id, 1 AS n, coalesce(previous_status, '-') || '>' || new_status AS kind
            FROM work_order_events
            UNION ALL
            SELECT entity_id, -1, coalesce(metadata->>'from', '-') || '>' || coalesce(metadata->>'to', 'pending')
            FROM audit_log WHERE entity_type = 'work_order' AND (metadata ? 'to' OR action LIKE '%\\_CREATED')
        ) both_sides GROUP BY work_order_id, kind HAVING sum(n) <> 0""",
    "an offer of the lane goes to the driver of its decision": """
        SELECT o.id FROM offers o JOIN decisions d ON d.id = o.decision_id
        WHERE (o.mode <> 'broadcast' AND o.driver_id <> d.driver_id) OR o.work_order_id <> d.work_order_id""",
    "each decision but `nobody` made an offer": """
        SELECT d.number FROM decisions d LEFT JOIN offers o ON o.decision_id = d.id
        WHERE (d.driver_id IS NOT NULL) <> (o.id IS NOT NULL)""",
    "the lane counts its decisions without a gap": """
        SELECT l.organization_id FROM dispatch_lanes l LEFT JOIN decisions d USING (organization_id)
        GROUP BY l.organization_id, l.last_number
        HAVING count(DISTINCT d.number) <> l.last_number OR count(d.number) <> l.last_number
            OR coalesce(max(d.number), 0) <> l.last_number""",
    "nothing was sent that was not owed": "SELECT work_order_id FROM workflow_wakes WHERE sent_seq > seq",
}  # fmt: skip


async def broken(database: Database) -> dict[str, list[tuple[object, ...]]]:
    """The invariants that do not hold, each with up to five rows that show it."""
    found: dict[str, list[tuple[object, ...]]] = {}
    async with database.transaction() as session:
        for name, query in INVARIANTS.items():
            rows = await session.rows(text(query))
            if rows:
                found[name] = [tuple(row) for row in rows[:5]]
    return found


async def check(database: Database) -> None:
    assert await broken(database) == {}


async def check_decisions(database: Database) -> int:
    """Every recorded decision follows from its inputs, and each lane's chain has no gap and no break. Their number."""
    async with database.transaction() as session:
        rows = await session.rows(text("SELECT * FROM decisions ORDER BY organization_id, number"))
    previous: dict[object, tuple[int, bytes]] = {}
    for row in rows:
        number, hash_before = previous.get(row.organization_id, (0, b""))
        assert row.number == number + 1
        assert row.previous_hash == hash_before
        assert verify_body(row.header, row.candidates, row.salts, row.body_hash)
        assert row.hash == chain_hash(hash_before, row.number, row.body_hash)
        header, candidates = read_record(row.header, row.candidates)
        assert header.number == row.number
        assert replays(header, candidates), f"decision {row.number} does not replay"
        chosen = candidates[header.order[0]].driver_id if header.chosen else None
        assert chosen == (None if row.driver_id is None else str(row.driver_id))
        previous[row.organization_id] = (row.number, row.hash)
    return len(rows)
