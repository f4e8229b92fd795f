"""The sweeps' procedure: one activity, started by its Schedule."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows.policies import SWEEP


@workflow.defn
class SweepWorkflow:
    """Runs the sweep activity of the given name and returns what it found to do."""

    @workflow.run
    async def run(self, sweep: str) -> int:
        found: int = await workflow.execute_activity(sweep, result_type=int, **SWEEP)
        return found
