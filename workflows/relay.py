"""The wake relay: carries owed wakes from Postgres to Temporal. One task in every process.

Nudged by the commits of its own process and sweeping each second for those of others, it leases due wakes, sends them,
and records what was sent. It never holds a transaction across a call, and no request ever waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

from sqlalchemy.engine import Row
from sqlalchemy.exc import SQLAlchemyError
from temporalio.client import Client
from temporalio.common import (
    Priority,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from models.kit.database import Database
from models.kit.settings import Settings
from models.work.wakes import TOPIC, Wake, lease_wakes, record_sent, record_unsent
from workflows.client import DISPATCH_QUEUE, RPC_TIMEOUT, connect, workflow_id
from workflows.offers import DRIVER, KIND, ORGANIZATION, REFERENCE, STATUS, DispatchInput, DispatchWorkflow

log = logging.getLogger(__name__)

LEASE_S = 8.0
BATCH = 50
SWEEP_S = 1.0
RETRY_S = 1.0
#: After a nudge: lets the answer that caused it go out first, and gathers what commits at the same time.
GATHER_S = 0.01


class WakeRelay:
    """Run `run()` as a task; `nudge` tells it that this process has committed a wake."""

    def __init__(self, database: Database, settings: Settings, client: Client | None = None) -> None:
        self.database = database
        self.settings = settings
        self.client = client
        self._owed = asyncio.Event()
        database.listen(TOPIC, self.nudge)

    def nudge(self) -> None:
        self._owed.set()

    async def run(self) -> None:
        """Until cancelled. An outage on either side is waited out."""
        delay = RETRY_S
        while True:
            try:
                if self.client is None:
                    self.client = await connect(self.settings, lazy=True)
                busy = await self.relay_once()
                delay = RETRY_S
                if not busy:
                    await self._wait()
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.warning("relay_database_unavailable error=%s", type(error).__name__)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5)

    async def _wait(self) -> None:
        """Until this process commits a wake, or the next sweep."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._owed.wait(), SWEEP_S)
            await asyncio.sleep(GATHER_S)

    async def relay_once(self) -> bool:
        """Send one batch. True when there may be more to send at once."""
        self._owed.clear()
        async with self.database.reading() as session:
            due = await lease_wakes(session, limit=BATCH, lease_s=LEASE_S)
        if not due:
            return False
        started = time.monotonic()
        outcomes = await asyncio.gather(*(self._send(row) for row in due))
        sent = [(row.work_order_id, row.seq) for row, ok in zip(due, outcomes, strict=True) if ok]
        unsent = [row.work_order_id for row, ok in zip(due, outcomes, strict=True) if not ok]
        async with self.database.reading() as session:
            if sent:
                await record_sent(session, sent)
            if unsent:
                await record_unsent(session, unsent, delay_s=RETRY_S)
        if unsent:
            log.warning("relay_temporal_unavailable unsent=%d after_s=%.1f", len(unsent), time.monotonic() - started)
        return len(due) == BATCH or self._owed.is_set()

    async def _send(self, row: Row[Any]) -> bool:
        """Start or signal one workflow. True once Temporal has it, or has nothing left to wake."""
        try:
            async with asyncio.timeout(RPC_TIMEOUT.total_seconds() * 2):
                # A plain signal is the cheaper call, and enough for a workflow that was reached before.
                if row.sent_seq == 0 or not await self._signal(row):
                    await self._start(row)
        except WorkflowAlreadyStartedError:
            # It ran to its end: there is nothing to wake.
            return True
        except (RPCError, RuntimeError, TimeoutError) as error:
            log.debug("relay_send_failed work_order_id=%s error=%s", row.work_order_id, error)
            return False
        return True

    async def _signal(self, row: Row[Any]) -> bool:
        """False when no such workflow runs: never started, ended, or terminated by somebody."""
        assert self.client is not None
        handle = self.client.get_workflow_handle(workflow_id(row.work_order_id))
        try:
            await handle.signal(row.reason, rpc_timeout=RPC_TIMEOUT)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise
        return True

    async def _start(self, row: Row[Any]) -> None:
        """Start the workflow, or signal the running one; a terminated one comes back, a completed one does not."""
        assert self.client is not None
        await self.client.start_workflow(
            DispatchWorkflow.run,
            DispatchInput(work_order_id=str(row.work_order_id)),
            id=workflow_id(row.work_order_id),
            task_queue=DISPATCH_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
            search_attributes=_search_attributes(row),
            static_summary=f"{row.reference} ({row.kind})",
            # Temporal's 1 is the most urgent, of 5; ours is 9, of 10.
            priority=Priority(priority_key=5 - row.priority // 2),
            # A creation needs no signal: the start itself makes the workflow look. What comes later says its name.
            start_signal=None if row.reason == Wake.CREATED else row.reason,
            rpc_timeout=RPC_TIMEOUT,
        )


def _search_attributes(row: Row[Any]) -> TypedSearchAttributes:
    pairs: list[SearchAttributePair[Any]] = [
        SearchAttributePair(ORGANIZATION, str(row.organization_id)),
        SearchAttributePair(KIND, row.kind),
        SearchAttributePair(STATUS, "pending"),
        SearchAttributePair(REFERENCE, row.reference),
    ]
    if row.assigned_driver_id is not None:
        pairs.append(SearchAttributePair(DRIVER, str(row.assigned_driver_id)))
    return TypedSearchAttributes(pairs)
