"""Wakes: how a transaction tells a work order's workflow that something happened, without waiting for Temporal.

One row per work order. Raising a wake increments `seq` in the transaction of the cause; the relay sends it and records
`sent_seq`. It coalesces, needs no order, and a crash between the two only sends again: the workflow reads the truth
from Postgres whatever the signal says.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy.engine import Row

from models.kit.database import Database, Session
from models.kit.sql import Sql


class Wake(StrEnum):
    """Why; each but `created`, which starts the workflow, names the signal that carries it."""

    CREATED = "created"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    ASSIGNED = "assigned"
    UNASSIGNED = "unassigned"
    REOFFERED = "reoffered"
    STATUS_CHANGED = "status_changed"
    CANCELLED = "cancelled"
    DRIVER_AVAILABLE = "driver_available"


TOPIC = "wakes"
_OF_WORK_ORDER = "work-order-"


def workflow_id(work_order_id: UUID | str) -> str:
    return f"{_OF_WORK_ORDER}{work_order_id}"


def work_order_id_of(workflow_id: str) -> UUID | None:
    """The other way round; None for a workflow that somebody gave an id of another kind."""
    try:
        return UUID(workflow_id.removeprefix(_OF_WORK_ORDER)) if workflow_id.startswith(_OF_WORK_ORDER) else None
    except ValueError:
        return None


# Sorted and at the very end, when the transaction holds every lock it needs: so two never wait for each other's wakes.
_RAISE = Sql("""
INSERT INTO workflow_wakes (work_order_id, organization_id, reason, due_at)
SELECT work_order_id, organization_id, reason, coalesce(due_at, clock_timestamp())
FROM unnest(CAST(:ids AS uuid[]), CAST(:organizations AS uuid[]), CAST(:reasons AS text[]), CAST(:due AS timestamptz[]))
    AS raised (work_order_id, organization_id, reason, due_at)
ORDER BY work_order_id
ON CONFLICT (work_order_id) DO UPDATE SET
    seq = workflow_wakes.seq + 1, reason = excluded.reason,
    due_at = coalesce(excluded.due_at, clock_timestamp()), attempts = 0
""")


def raise_wake(
    session: Session, work_order_id: UUID, organization_id: UUID, reason: Wake, *, due_at: datetime | None = None
) -> None:
    """Owe the work order's workflow a signal, now or at `due_at`. Written right before the commit."""
    raised: dict[UUID, tuple[UUID, Wake, datetime | None]] = session.scratch.setdefault(TOPIC, {})
    raised[work_order_id] = (organization_id, reason, due_at)
    session.topics.add(TOPIC)

    def write() -> None:
        session.write(
            _RAISE,
            {
                "ids": list(raised),
                "organizations": [organization for organization, _, _ in raised.values()],
                "reasons": [reason.value for _, reason, _ in raised.values()],
                "due": [due for _, _, due in raised.values()],
            },
            row=work_order_id,
        )

    session.before_commit(TOPIC, write)


# The first of those that have looked and found nobody. Work that has not looked yet is about to.
_WAKE_HEAD = Sql("""
WITH head AS (
    SELECT id, organization_id FROM work_orders
    WHERE organization_id = :organization_id AND match_from <= clock_timestamp() AND nobody_reasons IS NOT NULL
        AND NOT id = ANY(ARRAY(SELECT work_order_id FROM stuck_work WHERE parked_at IS NOT NULL))
    ORDER BY priority DESC, waiting_since, id LIMIT 1
)
INSERT INTO workflow_wakes (work_order_id, organization_id, reason, due_at)
SELECT id, organization_id, 'driver_available', clock_timestamp() FROM head
ON CONFLICT (work_order_id) DO UPDATE SET
    seq = workflow_wakes.seq + 1, reason = excluded.reason, due_at = excluded.due_at, attempts = 0
""")


def wake_head(session: Session, organization_id: UUID) -> None:
    """Capacity is freed by this transaction: then wake one work order, the head of the lane; its matching serves
    whoever can be served.

    After the commit, not in it: a work order that looks meanwhile either sees the capacity or has noted, by the time
    we ask, that it found nobody.
    """

    async def wake(database: Database) -> None:
        async with database.reading() as reading:
            if await reading.run(_WAKE_HEAD, {"organization_id": organization_id}):
                database.tell([TOPIC])

    session.follow_up(f"wake head {organization_id}", wake)


_LEASE = Sql("""
WITH due AS (
    SELECT work_order_id FROM workflow_wakes
    WHERE seq > sent_seq AND due_at <= clock_timestamp()
        AND (claimed_until IS NULL OR claimed_until <= clock_timestamp())
    ORDER BY due_at LIMIT :limit
    FOR UPDATE SKIP LOCKED
)
UPDATE workflow_wakes k
SET claimed_until = clock_timestamp() + make_interval(secs => :lease_s), attempts = k.attempts + 1
FROM due JOIN work_orders w ON w.id = due.work_order_id
WHERE k.work_order_id = due.work_order_id
RETURNING k.work_order_id, k.organization_id, k.seq, k.sent_seq, k.reason, k.attempts,
    w.kind, w.reference, w.status, w.priority, w.assigned_driver_id
""")

# Locked in the order in which wakes are raised, so that the two never wait for each other.
_SENT = Sql("""
WITH locked AS MATERIALIZED (
    SELECT work_order_id FROM workflow_wakes WHERE work_order_id = ANY(CAST(:ids AS uuid[]))
    ORDER BY work_order_id FOR NO KEY UPDATE
)
UPDATE workflow_wakes k SET sent_seq = greatest(k.sent_seq, sent.seq), claimed_until = NULL, attempts = 0
FROM unnest(CAST(:ids AS uuid[]), CAST(:seqs AS bigint[])) AS sent (work_order_id, seq)
    JOIN locked USING (work_order_id)
WHERE k.work_order_id = sent.work_order_id
""")

_UNSENT = Sql("""
WITH locked AS MATERIALIZED (
    SELECT work_order_id FROM workflow_wakes WHERE work_order_id = ANY(CAST(:ids AS uuid[]))
    ORDER BY work_order_id FOR NO KEY UPDATE
)
UPDATE workflow_wakes k SET claimed_until = clock_timestamp() + make_interval(secs => unsent.delay_s)
FROM unnest(CAST(:ids AS uuid[]), CAST(:delays AS float8[])) AS unsent (work_order_id, delay_s)
    JOIN locked USING (work_order_id)
WHERE k.work_order_id = unsent.work_order_id
""")


async def lease_wakes(session: Session, *, limit: int, lease_s: float) -> Sequence[Row[Any]]:
    """Claim due wakes for `lease_s` seconds; other relays pass over them meanwhile."""
    return await session.rows(_LEASE, {"limit": limit, "lease_s": lease_s})


async def record_sent(session: Session, sent: Sequence[tuple[UUID, int]]) -> None:
    """These were delivered up to `seq`. A wake raised meanwhile has a higher seq and stays owed."""
    await session.run(_SENT, {"ids": [i for i, _ in sent], "seqs": [seq for _, seq in sent]})


async def record_unsent(session: Session, unsent: Sequence[tuple[UUID, float]]) -> None:
    """These could not be delivered: free each after its seconds."""
    await session.run(_UNSENT, {"ids": [i for i, _ in unsent], "delays": [delay_s for _, delay_s in unsent]})
