"""Open work as a whole, for those who compare it with the workflows that run and wake it after a restore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from models.kit.database import Session
from models.kit.sql import Sql
from models.work.rules import ENDED, WorkOrderStatus
from models.work.wakes import TOPIC, Wake

_OPEN: Final = [status.value for status in WorkOrderStatus if status not in ENDED]

# Settled: nothing has changed for a while, and its workflow has been told of all that had.
_SETTLED: Final = """(w.updated_at < clock_timestamp() - make_interval(secs => :settled_s)
    AND NOT EXISTS (SELECT FROM workflow_wakes k WHERE k.work_order_id = w.id AND k.seq > k.sent_seq))"""

_SETTLED_OPEN = Sql(f"""
SELECT w.id FROM work_orders w
WHERE w.id > :after AND w.status = ANY(CAST(:open AS text[])) AND {_SETTLED}
ORDER BY w.id LIMIT :limit
""")  # noqa: S608 - the condition is ours

_STANDING = Sql(f"""
SELECT w.id, w.status, {_SETTLED} AS settled FROM work_orders w WHERE w.id = ANY(CAST(:ids AS uuid[]))
""")  # noqa: S608 - the condition is ours

# In the order of ids, in which all wakes are raised. Work whose time has not come keeps its hour: nothing is to be done
# for it before.
_WAKE_OPEN = """
INSERT INTO workflow_wakes (work_order_id, organization_id, reason, due_at)
SELECT id, organization_id, :reason, clock_timestamp() FROM work_orders
WHERE {those} AND status = ANY(CAST(:open AS text[])) ORDER BY id LIMIT :limit
ON CONFLICT (work_order_id) DO UPDATE SET
    seq = workflow_wakes.seq + 1, reason = excluded.reason, attempts = 0,
    due_at = CASE WHEN workflow_wakes.seq > workflow_wakes.sent_seq
        THEN greatest(workflow_wakes.due_at, excluded.due_at) ELSE excluded.due_at END
RETURNING work_order_id
"""
_WAKE_NEXT = Sql(_WAKE_OPEN.format(those="id > :after"))
_WAKE_THESE = Sql(_WAKE_OPEN.format(those="id = ANY(CAST(:ids AS uuid[]))"))

#: Before every id of ours.
FIRST: Final = UUID(int=0)


class Standing(msgspec.Struct, frozen=True):
    """Where a work order stands. `settled`: unchanged for a while, and no wake is owed."""

    status: WorkOrderStatus
    settled: bool

    @property
    def is_open(self) -> bool:
        return self.status not in ENDED


async def settled_open_work(session: Session, *, after: UUID, limit: int, settled_s: float) -> list[UUID]:
    """The next `limit` open work orders by id which have been as they are for `settled_s`, and whose workflow has been
    told so: by now it runs, and waits."""
    rows = await session.rows(_SETTLED_OPEN, {"after": after, "limit": limit, "open": _OPEN, "settled_s": settled_s})
    return [row.id for row in rows]


async def standing_of(session: Session, ids: Sequence[UUID], *, settled_s: float) -> dict[UUID, Standing]:
    """Those of `ids` that exist."""
    rows = await session.rows(_STANDING, {"ids": list(ids), "settled_s": settled_s})
    return {row.id: Standing(WorkOrderStatus(row.status), row.settled) for row in rows}


async def wake_open_work(session: Session, *, after: UUID, limit: int) -> list[UUID]:
    """Owe a wake to the next `limit` open work orders by id; empty when there are no more."""
    return await _wake(session, _WAKE_NEXT, after=after, limit=limit)


async def wake_if_open(session: Session, ids: Sequence[UUID]) -> list[UUID]:
    """Owe a wake to those of `ids` that are open."""
    return await _wake(session, _WAKE_THESE, ids=list(ids), limit=len(ids))


async def _wake(session: Session, statement: Sql, **values: Any) -> list[UUID]:
    # A signal, and not `created`: there may be a workflow already, and it has to look.
    rows = await session.rows(statement, values | {"open": _OPEN, "reason": Wake.STATUS_CHANGED.value})
    session.topics.add(TOPIC)
    return sorted(row.work_order_id for row in rows)
