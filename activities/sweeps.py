"""Set-based sweeps, run by Temporal Schedules: what no single work order's workflow would notice.

An organization or a driver for whom a sweep fails by a mistake keeps nobody else from being swept; the sweep fails at
its end and says for how many.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar
from uuid import UUID

import structlog
from sqlalchemy import text
from temporalio import activity
from temporalio.exceptions import ApplicationError

from models.drivers.commands import set_status, silent_drivers
from models.fairness.candidates import first_servable
from models.idempotency.commands import delete_old
from models.kit.database import Database, Session
from models.kit.outages import is_outage, without_values
from models.kit.sql import Sql
from models.schema import PARTITIONED
from models.work.open_work import wake_if_open
from models.work.wakes import Wake, raise_wake, work_order_id_of

log = structlog.get_logger(__name__)
T = TypeVar("T")

SILENT_OFFLINE_AFTER_S = 900
#: So that no transaction takes long: this many take less than a tenth of a second.
KEYS_AT_ONCE = 5_000
WOKEN_AT_ONCE = 500
#: Three of the sweep's intervals: one that was missed, or that read a list lagging behind, is made up for.
ABANDONED_SINCE_S = 900
_AGO = Sql("SELECT clock_timestamp() - make_interval(secs => :seconds)")
_ABANDONED = (
    "WorkflowType = 'DispatchWorkflow' AND ExecutionStatus IN ('Failed', 'Terminated', 'TimedOut', 'Canceled') "
    "AND CloseTime > '{since}'"
)

_LANES_THAT_WAIT = text("""
SELECT DISTINCT organization_id FROM work_orders WHERE match_from <= clock_timestamp()
""")


class SweepActivities:
    """Activities of the sweeps, over one database. Each returns how much it found to do."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @activity.defn
    async def sweep_lanes(self) -> int:
        """Wake the head of each lane that has become servable by movement, a heartbeat or the end of a pause."""
        async with self.database.transaction() as session:
            lanes = [row.organization_id for row in await session.rows(_LANES_THAT_WAIT)]
        return await self._each(lanes, _wake_first_servable)

    @activity.defn
    async def sweep_silent_drivers(self) -> int:
        """Mark offline who has sent heartbeats, fell silent and holds nothing."""
        async with self.database.transaction() as session:
            silent = await silent_drivers(session, after_s=SILENT_OFFLINE_AFTER_S)
        return await self._each(silent, _mark_offline)

    @activity.defn
    async def sweep_abandoned(self) -> int:
        """Wake open work whose workflow did not come to its own end: failed, or terminated by somebody. The relay then
        starts another."""
        async with self.database.reading() as session:
            since = await session.value(_AGO, {"seconds": float(ABANDONED_SINCE_S)})
        abandoned = activity.client().list_workflows(_ABANDONED.format(since=since.isoformat()))
        ids = [one for one in [work_order_id_of(run.id) async for run in abandoned] if one is not None]
        woken = 0
        for start in range(0, len(ids), WOKEN_AT_ONCE):
            async with self.database.transaction() as session:
                woken += len(await wake_if_open(session, ids[start : start + WOKEN_AT_ONCE]))
        if woken:
            log.error("abandoned_work_woken", count=woken)
        return woken

    @activity.defn
    async def clean_idempotency_keys(self) -> int:
        """Delete the answers that have been kept for their time."""
        deleted, batch = 0, KEYS_AT_ONCE
        while batch == KEYS_AT_ONCE:
            async with self.database.transaction() as session:
                batch = await delete_old(session, limit=KEYS_AT_ONCE)
            deleted += batch
        return deleted

    @activity.defn
    async def make_partitions(self) -> int:
        """Make the monthly partitions of the months ahead."""
        return await self._each(PARTITIONED, _make_partitions)

    async def _each(self, subjects: Sequence[T], sweep: Callable[[Session, T], Awaitable[int]]) -> int:
        """Sweep each in a transaction of its own; the sum of what there was to do."""
        done = failed = 0
        for subject in subjects:
            try:
                async with self.database.transaction() as session:
                    found = await sweep(session, subject)
                done += found
            except Exception as error:
                if is_outage(error):
                    raise
                failed += 1
                name = sweep.__name__.strip("_")
                log.error("sweep_failed", sweep=name, subject=str(subject), error=without_values(error))  # noqa: TRY400 - a traceback would repeat the values of rows
        if failed:
            told = f"failed for {failed} of {len(subjects)}, see the log; {done} found for the others"
            # It runs again soon anyway.
            raise ApplicationError(told, type="SweepIncomplete", non_retryable=True)
        return done


async def _wake_first_servable(session: Session, organization_id: UUID) -> int:
    head = await first_servable(session, organization_id)
    if head is None:
        return 0
    raise_wake(session, head, organization_id, Wake.DRIVER_AVAILABLE)
    return 1


async def _mark_offline(session: Session, driver_id: UUID) -> int:
    await set_status(session, driver_id, "offline", by_staff=False)
    return 1


async def _make_partitions(session: Session, table: str) -> int:
    made: int = await session.value(text("SELECT ensure_month_partitions(CAST(:name AS regclass))"), {"name": table})
    return made
