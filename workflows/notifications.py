"""The sender of messages: one workflow that lives for ever and keeps a `drain` running."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from temporalio import workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.common import RetryPolicy, WorkflowIDConflictPolicy

with workflow.unsafe.imports_passed_through():
    from activities.notifications import DrainInput, NotificationActivities

#: A drain heartbeats at every turn, a few seconds apart; a worker that died is replaced after this.
DRAIN_HEARTBEAT = timedelta(seconds=20)
#: More than a drain's ten minutes by the time that a last batch may take.
DRAIN_TIMEOUT = timedelta(minutes=15)
#: A drain waits out outages by itself; what fails it is a mistake of ours, retried for ever, but not in a spin.
DRAIN_RETRY = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=30))


@dataclass(frozen=True)
class SenderInput:
    """`shard` numbers the senders. Any number may run side by side: they never take the same message."""

    shard: int = 0
    drain: DrainInput = field(default_factory=DrainInput)


def sender_id(shard: int = 0) -> str:
    return f"notification-sender-{shard}"


@workflow.defn
class NotificationSender:
    @workflow.run
    async def run(self, input: SenderInput) -> None:
        await self.keep_sending(input.drain)
        workflow.continue_as_new(input)

    async def keep_sending(self, drain: DrainInput) -> None:
        await workflow.execute_activity_method(
            NotificationActivities.drain,
            drain,
            start_to_close_timeout=DRAIN_TIMEOUT,
            heartbeat_timeout=DRAIN_HEARTBEAT,
            retry_policy=DRAIN_RETRY,
            summary="send what is due",
        )


async def ensure_sender(
    client: Client, task_queue: str, input: SenderInput = SenderInput()
) -> WorkflowHandle[NotificationSender, None]:
    """Start the sender, or find it running."""
    return await client.start_workflow(
        NotificationSender.run,
        input,
        id=sender_id(input.shard),
        task_queue=task_queue,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        static_summary="Sends the messages that transactions left behind",
    )
