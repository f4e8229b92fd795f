"""The wake relay: carries owed wakes from Postgres to Temporal. One task in every process.

Nudged by the commits of its own process and sweeping each second for those of others, it leases due wakes, sends them,
and records what was sent. It never holds a transaction across a call, and no request ever waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy.engine import Row
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

from models.kit.crashes import crash_at
from models.kit.database import Database
from models.kit.outages import is_outage, without_values
from models.kit.settings import Settings
from models.work.rules import ENDED
from models.work.wakes import TOPIC, Wake, lease_wakes, record_sent, record_unsent, workflow_id
from workflows.client import DISPATCH_QUEUE, RPC_TIMEOUT, connect
from workflows.offers import DRIVER, KIND, ORGANIZATION, REFERENCE, STATUS, DispatchInput, DispatchWorkflow

log = logging.getLogger(__name__)

LEASE_S = 8.0
BATCH = 50
#: What the batch in hand gets when the process stops, to be sent and again to be recorded.
LAST_BATCH_S = 1.0
SWEEP_S = 1.0
RETRY_S = 1.0
#: A wake that fails for a reason of its own, while others get through, is tried after 1 s, 2, 4 .. so many; and is
#: told of as an error from this attempt on.
MOST_RETRY_S = 60.0
ERROR_FROM_ATTEMPT = 10
#: What Temporal says of a call that it would refuse from anybody at any time.
_OUR_MISTAKE = frozenset({RPCStatusCode.INVALID_ARGUMENT, RPCStatusCode.OUT_OF_RANGE})
#: After a nudge: lets the answer that caused it go out first, and gathers what commits at the same time.
GATHER_S = 0.01


class Attempt(NamedTuple):
    """What became of one wake: None once Temporal has it, else seconds until the next attempt."""

    retry_s: float | None
    unreachable: bool = False


class WakeRelay:
    """Run `run()` as a task; `nudge` tells it that this process has committed a wake."""

    def __init__(self, database: Database, settings: Settings, client: Client | None = None) -> None:
        self.database = database
        self.settings = settings
        self.client = client
        self._owed = asyncio.Event()
        self._sends: list[asyncio.Future[Attempt]] = []
        #: Wakes that fail for a reason of their own, and were told of.
        self._told: set[UUID] = set()
        database.listen(TOPIC, self.nudge)

    def nudge(self) -> None:
        self._owed.set()

    async def run(self) -> None:
        """Until cancelled. An outage on either side is waited out, and nothing else ends it either."""
        delay = RETRY_S
        while True:
            try:
                if self.client is None:
                    self.client = await connect(self.settings, lazy=True)
                busy = await self._relay_to_the_end()
                delay = RETRY_S
                if not busy:
                    await self._wait()
            except Exception as error:
                if is_outage(error):
                    log.warning("relay_database_unavailable error=%s", type(error).__name__)
                else:
                    log.error("relay_failed error=%s", without_values(error))  # noqa: TRY400 - a traceback would repeat the values of rows
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5)

    async def _relay_to_the_end(self) -> bool:
        """`relay_once`, which a cancellation lets finish: wakes that stay leased, neither recorded as sent nor freed,
        wait until the lease runs out. Temporal gets a second to answer, and Postgres another to write that down."""
        batch = asyncio.ensure_future(self.relay_once())
        try:
            return await asyncio.shield(batch)
        except asyncio.CancelledError:
            await asyncio.wait((batch,), timeout=LAST_BATCH_S)
            for send in self._sends:
                send.cancel()
            await asyncio.wait((batch,), timeout=LAST_BATCH_S)
            batch.cancel()
            await asyncio.gather(batch, return_exceptions=True)
            raise

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
        crash_at("relay.leased")
        started = time.monotonic()
        self._sends = [asyncio.ensure_future(self._attempt(row)) for row in due]
        answers = await asyncio.gather(*self._sends, return_exceptions=True)
        # One that was cancelled may be sent by another relay at once. Twice does no harm.
        attempts = [answer if isinstance(answer, Attempt) else Attempt(0.0) for answer in answers]
        crash_at("relay.sent")
        outcomes = list(zip(due, attempts, strict=True))
        sent = [(row.work_order_id, row.seq) for row, attempt in outcomes if attempt.retry_s is None]
        unsent = [(row.work_order_id, attempt.retry_s) for row, attempt in outcomes if attempt.retry_s is not None]
        async with self.database.reading() as session:
            if sent:
                await record_sent(session, sent)
            if unsent:
                await record_unsent(session, unsent)
        crash_at("relay.recorded")
        unreachable = sum(attempt.unreachable for attempt in attempts)
        if unreachable:
            log.warning("relay_temporal_unavailable unsent=%d after_s=%.1f", unreachable, time.monotonic() - started)
        return len(due) == BATCH or self._owed.is_set()

    async def _attempt(self, row: Row[Any]) -> Attempt:
        """Send one wake. Whatever goes wrong with it is its own affair, not the batch's."""
        try:
            reached = await self._send(row)
        except Exception as error:
            retry_s = min(RETRY_S * 2 ** min(row.attempts - 1, 10), MOST_RETRY_S)
            if row.attempts >= ERROR_FROM_ATTEMPT:
                level = logging.ERROR
            else:
                level = logging.DEBUG if row.work_order_id in self._told else logging.WARNING
            self._told.add(row.work_order_id)
            told = f"{error.status.name} " if isinstance(error, RPCError) else ""
            log.log(
                level, "relay_wake_failed work_order_id=%s attempt=%d retry_s=%.0f error=%s",
                row.work_order_id, row.attempts, retry_s, told + without_values(error),
            )  # fmt: skip
            return Attempt(retry_s)
        self._told.discard(row.work_order_id)
        return Attempt(None) if reached else Attempt(RETRY_S, unreachable=True)

    async def _send(self, row: Row[Any]) -> bool:
        """Start or signal one workflow. True once Temporal has it, or has nothing left to wake; False when Temporal
        cannot be reached."""
        try:
            async with asyncio.timeout(RPC_TIMEOUT.total_seconds() * 2):
                # A plain signal is the cheaper call, and enough for a workflow that was reached before.
                if row.sent_seq == 0 or not await self._signal(row):
                    await self._start(row)
        except WorkflowAlreadyStartedError:
            # The work has ended and its workflow with it: there is nothing to wake.
            return True
        except (RPCError, RuntimeError, TimeoutError) as error:
            if isinstance(error, RPCError) and error.status in _OUR_MISTAKE:
                raise
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
        """Start the workflow, or signal the running one. A terminated one comes back; a completed one only where its
        work order is open: Postgres was restored to a time before the end. (Where the work has ended since the lease,
        the run that this makes looks once and completes.)"""
        assert self.client is not None
        await self.client.start_workflow(
            DispatchWorkflow.run,
            DispatchInput(work_order_id=str(row.work_order_id)),
            id=workflow_id(row.work_order_id),
            task_queue=DISPATCH_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=(
                WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY
                if row.status in ENDED
                else WorkflowIDReusePolicy.ALLOW_DUPLICATE
            ),
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
