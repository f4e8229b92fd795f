"""Set-based sweeps, run by Temporal Schedules: what no single work order's workflow would notice."""

from __future__ import annotations

from sqlalchemy import text
from temporalio import activity

from models.drivers.commands import set_status, silent_drivers
from models.fairness.candidates import first_servable
from models.kit.database import Database
from models.schema import PARTITIONED
from models.work.wakes import Wake, raise_wake

SILENT_OFFLINE_AFTER_S = 900

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
        woken = 0
        for organization_id in lanes:
            async with self.database.transaction() as session:
                head = await first_servable(session, organization_id)
                if head is not None:
                    raise_wake(session, head, organization_id, Wake.DRIVER_AVAILABLE)
                    woken += 1
        return woken

    @activity.defn
    async def sweep_silent_drivers(self) -> int:
        """Mark offline who has sent heartbeats, fell silent and holds nothing."""
        async with self.database.transaction() as session:
            silent = await silent_drivers(session, after_s=SILENT_OFFLINE_AFTER_S)
        for driver_id in silent:
            async with self.database.transaction() as session:
                await set_status(session, driver_id, "offline", by_staff=False)
        return len(silent)

    @activity.defn
    async def make_partitions(self) -> int:
        """Make the monthly partitions of the months ahead."""
        made = 0
        for table in PARTITIONED:
            async with self.database.transaction() as session:
                made += await session.value(
                    text("SELECT ensure_month_partitions(CAST(:name AS regclass))"), {"name": table}
                )
        return made
