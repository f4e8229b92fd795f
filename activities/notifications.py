"""Sending the messages that transactions left behind: lease, send, record, again and again.

No transaction is open while a provider is asked. A sender that dies between sending and recording leaves its lease to
run out; the next one sends again, which an idempotency key makes harmless where the provider has one.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import structlog
from jinja2 import TemplateError
from temporalio import activity

from activities.channels.base import ChannelAdapter, Misconfigured, Outgoing, SendError, TemporarilyFailed
from activities.channels.outbox import Outbox
from activities.renderers.messages import Rendered, render
from models.kit.crashes import crash_at
from models.kit.database import Database
from models.kit.outages import is_outage, without_values
from models.notifications.commands import (
    DueMessage,
    Outcome,
    lease_due,
    lease_unread,
    read_leased,
    record_outcomes,
)
from models.notifications.rules import (
    MAX_ATTEMPTS,
    Channel,
    Event,
    NotificationStatus,
    choose_channel,
    retry_delay,
    too_late,
)

logger = structlog.get_logger(__name__)
T = TypeVar("T")

KNOWN_EVENTS = frozenset(event.value for event in Event)
#: Looking costs a transaction, so an idle sender looks less often; a message never waits longer than the last of these.
IDLE_WAITS_S = (0.5, 0.75, 1.0)
#: How long to let the database recover between attempts to reach it.
OUTAGE_WAITS_S = (0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class DrainInput:
    """`batch` messages are leased at once and sent side by side. `run_for_s` ends the activity, not the sending."""

    batch: int = 50
    lease_s: float = 40.0
    run_for_s: float = 600.0


@dataclass(frozen=True)
class DrainReport:
    """What one run of the activity did, by the outcome of each attempt."""

    sent: int = 0
    put_off: int = 0
    failed: int = 0


class NotificationActivities:
    """`app_url` is linked from messages where it is set."""

    def __init__(self, database: Database, adapters: Mapping[Channel, ChannelAdapter], *, app_url: str = "") -> None:
        self.database = database
        self.adapters = adapters
        self.app_url = app_url
        self.connected = frozenset(channel for channel, adapter in adapters.items() if not isinstance(adapter, Outbox))

    @activity.defn
    async def drain(self, input: DrainInput) -> DrainReport:
        """Send what is due until `run_for_s` is over or the worker stops.

        Heartbeats. A batch that has been leased is sent and recorded even when the activity is cancelled meanwhile;
        an outage of the database is waited out here.
        """
        counts: Counter[NotificationStatus] = Counter()
        until = time.monotonic() + input.run_for_s
        idle = 0
        while time.monotonic() < until and not activity.is_worker_shutdown():
            activity.heartbeat()
            statuses = await _to_its_end(self._one_batch(input))
            counts.update(statuses)
            if len(statuses) == input.batch:
                idle = 0  # More is likely waiting.
                continue
            await _pause(IDLE_WAITS_S[idle])
            idle = 0 if statuses else min(idle + 1, len(IDLE_WAITS_S) - 1)
        return DrainReport(
            sent=counts[NotificationStatus.SENT],
            put_off=counts[NotificationStatus.PENDING],
            failed=counts[NotificationStatus.FAILED],
        )

    async def _one_batch(self, input: DrainInput) -> list[NotificationStatus]:
        messages, unreadable = await _through_outages(lambda: self._lease(input))
        if not messages and not unreadable:
            return []
        crash_at("drain.leased")
        outcomes = unreadable + await asyncio.gather(*(self._deliver(message) for message in messages))
        crash_at("drain.sent")
        await _through_outages(lambda: self._record(outcomes))
        crash_at("drain.recorded")
        return [outcome.status for outcome in outcomes]

    async def _lease(self, input: DrainInput) -> tuple[list[DueMessage], list[Outcome]]:
        """What is due, and the end of what is due but cannot be read."""
        try:
            async with self.database.transaction() as session:
                return await lease_due(session, limit=input.batch, lease_s=input.lease_s), []
        except Exception as error:
            if is_outage(error):
                raise
            logger.error("batch_not_readable", error=without_values(error))  # noqa: TRY400 - it would repeat the rows
        return await self._lease_one_by_one(input)

    async def _lease_one_by_one(self, input: DrainInput) -> tuple[list[DueMessage], list[Outcome]]:
        async with self.database.transaction() as session:
            leased = await lease_unread(session, limit=input.batch, lease_s=input.lease_s)
        messages: list[DueMessage] = []
        unreadable: list[Outcome] = []
        for lease in leased:
            try:
                async with self.database.reading() as session:
                    messages.append(await read_leased(session, lease))
            except Exception as error:
                if is_outage(error):
                    raise
                told = without_values(error)
                logger.error("message_not_readable", id=str(lease.id), error=told)  # noqa: TRY400 - it would repeat the row
                unreadable.append(
                    Outcome(
                        id=lease.id,
                        created_at=lease.created_at,
                        attempt=lease.attempt,
                        status=NotificationStatus.FAILED,
                        error=f"cannot be read: {told}",
                    )
                )
        return messages, unreadable

    async def _record(self, outcomes: list[Outcome]) -> None:
        """Together; where that fails by one of them, each by itself, and at worst without anybody's words."""
        try:
            async with self.database.transaction() as session:
                await record_outcomes(session, outcomes)
        except Exception as error:
            if is_outage(error):
                raise
            told = without_values(error)
            if len(outcomes) > 1:
                for outcome in outcomes:
                    await self._record([outcome])
            elif (plain := _without_words(outcomes[0], told)) != outcomes[0]:
                await self._record([plain])
            else:
                # Its lease runs out, and its attempts do in the end.
                logger.critical("outcome_not_recorded", id=str(outcomes[0].id), error=told)

    async def _deliver(self, message: DueMessage) -> Outcome:
        """One attempt at one message. Whatever goes wrong is this message's outcome, not the batch's."""
        try:
            return await self._attempt(message)
        except Exception as error:
            told = without_values(error)
            logger.error("message_broke", id=str(message.id), notification_event=message.event, error=told)  # noqa: TRY400 - it would repeat the message
            return _failed(message, message.channel, f"cannot be sent: {told}")

    async def _attempt(self, message: DueMessage) -> Outcome:
        if message.event not in KNOWN_EVENTS:
            # Written by a newer release than ours, whose sender will know it.
            return _put_off(message, message.channel, None, f"this sender does not know {message.event}", None)
        event = Event(message.event)
        channel = message.channel or self._channel_for(message, event)
        reason = self._reason_not_to_send(message, event, channel)
        if reason is not None or channel is None:
            return _failed(message, channel, reason or "nothing reaches this person")
        try:
            rendered = render(message, channel, app_url=self.app_url)
        except (TemplateError, ValueError, TypeError) as error:
            logger.exception("message_not_rendered", id=str(message.id), notification_event=message.event)
            return _failed(message, channel, f"cannot be rendered: {type(error).__name__}: {error}")
        adapter = self.adapters[channel]
        outgoing = _addressed(message, channel, rendered)
        try:
            provider_id = await adapter.send(outgoing)
        except TemporarilyFailed as error:
            return _put_off(message, channel, adapter, _without_address(error, outgoing), error)
        except SendError as error:
            return _failed(message, channel, _without_address(error, outgoing), sent_by=adapter.name)
        except Exception as error:
            # An error that the adapter does not know must not take the batch down, whose other messages are out.
            logger.exception("channel_broke", id=str(message.id), channel=channel.value, adapter=adapter.name)
            return _put_off(message, channel, adapter, f"{adapter.name} broke: {type(error).__name__}", None)
        kept = isinstance(adapter, Outbox)
        return Outcome(
            id=message.id,
            created_at=message.created_at,
            attempt=message.attempt,
            status=NotificationStatus.SENT,
            channel=channel,
            sent_by=adapter.name,
            provider_id=provider_id or None,
            subject=rendered.subject or None if kept else None,
            body=rendered.text if kept else None,
        )

    def _channel_for(self, message: DueMessage, event: Event) -> Channel | None:
        return choose_channel(
            event,
            email=message.recipient_email,
            phone=message.recipient_phone,
            phone_verified=message.phone_verified,
            connected=self.connected,
        )

    def _reason_not_to_send(self, message: DueMessage, event: Event, channel: Channel | None) -> str | None:
        if message.attempt > MAX_ATTEMPTS:
            return f"given up: {MAX_ATTEMPTS} senders took it and none came back"
        if not message.recipient_active:
            return "the recipient's account is closed"
        if too_late(event, now=message.now, offer_expires_at=message.offer_expires_at):
            earlier = "; an earlier attempt may have arrived" if message.attempt > 1 else ""
            return f"the offer's time was up before the message could be sent{earlier}"
        if channel is None:
            return "nothing reaches this person: no verified phone and no e-mail address"
        if not _address(message, channel):
            return f"the person has no address for {channel.value} any more"
        return None


def _address(message: DueMessage, channel: Channel) -> str | None:
    if channel is Channel.EMAIL:
        return message.recipient_email
    return message.recipient_phone if message.phone_verified else None


def _addressed(message: DueMessage, channel: Channel, rendered: Rendered) -> Outgoing:
    return Outgoing(
        id=message.id,
        channel=channel,
        to=_address(message, channel) or "",
        text=rendered.text,
        subject=rendered.subject,
        html=rendered.html,
        tried_since=message.created_at if message.attempt > 1 else None,
    )


def _without_address(error: SendError, outgoing: Outgoing) -> str:
    """The provider's words without the phone number or the address that they like to repeat."""
    return str(error).replace(outgoing.to, "the recipient")


def _failed(message: DueMessage, channel: Channel | None, error: str, *, sent_by: str | None = None) -> Outcome:
    logger.warning("message_failed", id=str(message.id), notification_event=message.event, attempt=message.attempt)
    return Outcome(
        id=message.id,
        created_at=message.created_at,
        attempt=message.attempt,
        status=NotificationStatus.FAILED,
        channel=channel,
        error=error,
        sent_by=sent_by,
    )


def _without_words(outcome: Outcome, error: str) -> Outcome:
    """The same outcome without what a provider or a template put into it."""
    return msgspec.structs.replace(
        outcome, error=f"cannot be recorded in full: {error}", provider_id=None, subject=None, body=None
    )


def _put_off(
    message: DueMessage,
    channel: Channel | None,
    adapter: ChannelAdapter | None,
    error: str,
    cause: TemporarilyFailed | None,
) -> Outcome:
    sent_by = adapter.name if adapter else None
    delay = retry_delay(message.attempt, cause.retry_after if cause else None)
    if delay is None:
        return _failed(message, channel, f"given up after {message.attempt} attempts: {error}", sent_by=sent_by)
    logger.info(
        "message_put_off",
        id=str(message.id),
        channel=channel and channel.value,
        attempt=message.attempt,
        delay_s=delay,
        misconfigured=isinstance(cause, Misconfigured),
    )
    return Outcome(
        id=message.id,
        created_at=message.created_at,
        attempt=message.attempt,
        status=NotificationStatus.PENDING,
        channel=channel,
        delay_s=delay,
        error=error,
        sent_by=sent_by,
    )


async def _to_its_end(work: Awaitable[T]) -> T:
    """Await `work` to its end even when cancelled meanwhile, then be cancelled: what was sent gets recorded."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("batch_ended_by", error=type(error).__name__)
        raise


async def _pause(seconds: float) -> None:
    """Wait, but no longer than the worker lives."""
    try:
        async with asyncio.timeout(seconds):
            await activity.wait_for_worker_shutdown()
    except TimeoutError:
        return


async def _through_outages(attempt: Callable[[], Awaitable[T]]) -> T:
    """Repeat `attempt` while the database is out. Heartbeats; gives up, raising the outage, when the worker stops."""
    failures = 0
    while True:
        try:
            return await attempt()
        except Exception as error:
            if not is_outage(error):
                raise  # Our mistake, which waiting does not mend.
            if activity.is_worker_shutdown() or activity.is_cancelled():
                raise
            wait = OUTAGE_WAITS_S[min(failures, len(OUTAGE_WAITS_S) - 1)]
            failures += 1
            logger.warning("database_out", error=type(error).__name__, failures=failures, next_attempt_s=wait)
            activity.heartbeat()
            await _pause(wait)
