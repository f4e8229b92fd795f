"""The Schedules: sweeps that Temporal starts on time, wherever a worker runs."""

from __future__ import annotations

from datetime import timedelta

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
)

from workflows.client import DISPATCH_QUEUE
from workflows.sweeps import SweepWorkflow

#: Activity name -> how often.
SWEEPS = {
    "sweep_lanes": timedelta(seconds=30),
    "sweep_silent_drivers": timedelta(minutes=1),
    "sweep_abandoned": timedelta(minutes=5),
    "clean_idempotency_keys": timedelta(hours=1),
    "make_partitions": timedelta(days=1),
}


async def ensure_schedules(client: Client) -> None:
    """Create the Schedules that are missing. Safe from any number of workers at once."""
    for sweep, every in SWEEPS.items():
        schedule = Schedule(
            action=ScheduleActionStartWorkflow(
                SweepWorkflow.run, sweep, id=sweep.replace("_", "-"), task_queue=DISPATCH_QUEUE
            ),
            spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=every)]),
            policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=timedelta(minutes=1)),
        )
        try:
            await client.create_schedule(f"schedule-{sweep.replace('_', '-')}", schedule)
        except ScheduleAlreadyRunningError:
            continue
