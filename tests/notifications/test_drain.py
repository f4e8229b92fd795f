"""Sending end to end: real Postgres, the real SDKs, providers that misbehave, senders that die."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import update
from structlog.testing import capture_logs
from temporalio.testing import ActivityEnvironment

from activities.channels.email import ResendEmail
from activities.channels.outbox import Outbox
from activities.channels.sms import TwilioSms
from activities.notifications import DrainInput, DrainReport, NotificationActivities
from models.identity.tables import users
from models.kit.database import Database
from models.notifications.commands import notify
from models.notifications.rules import MAX_ATTEMPTS, Channel, Event
from models.notifications.tables import notifications
from tests.notifications.factories import PHONE, a_person, a_person_with_phone, all_messages, an_offer, an_organization
from tests.notifications.provider_servers import (
    INVALID_NUMBER,
    ResendServer,
    TwilioServer,
    fail,
    hang,
    throttle,
)

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]


@pytest.fixture
def sender(database: Database, sms: TwilioSms, email: ResendEmail) -> NotificationActivities:
    return NotificationActivities(database, {Channel.SMS: sms, Channel.EMAIL: email})


async def tell(database: Database, user: UUID, organization: UUID, event: Event = Event.NUDGE, **about: Any) -> None:
    async with database.transaction() as session:
        notify(session, event, organization_id=organization, user_id=user, at=datetime.now(UTC), **about)


async def eventually(condition: Callable[[], Awaitable[bool]], *, within_s: float = 10) -> None:
    give_up = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < give_up, "did not happen in time"
        await asyncio.sleep(0.05)


async def statuses(database: Database) -> list[str]:
    return [row.status for row in await all_messages(database)]


@asynccontextmanager
async def running(sender: NotificationActivities, **options: Any) -> AsyncIterator[ActivityEnvironment]:
    """A drain beside the block, stopped after it as a stopping worker stops it."""
    environment = ActivityEnvironment()
    drain = asyncio.create_task(environment.run(sender.drain, DrainInput(**options)))
    try:
        yield environment
    finally:
        environment.worker_shutdown()
        await drain


async def drained(sender: NotificationActivities, database: Database) -> DrainReport:
    """Run until nothing is due, and give the report."""
    environment = ActivityEnvironment()
    drain = asyncio.create_task(environment.run(sender.drain, DrainInput()))

    async def nothing_is_due() -> bool:
        now = datetime.now(UTC)
        rows = await all_messages(database)
        return not any(row.status == "sending" or (row.status == "pending" and row.next_at <= now) for row in rows)

    await eventually(nothing_is_due)
    environment.worker_shutdown()
    return await drain


async def test_every_message_goes_out_once(
    sender: NotificationActivities, database: Database, twilio: TwilioServer, resend_server: ResendServer
) -> None:
    organization = await an_organization(database)
    texted = await a_person_with_phone(database, organization)
    mailed = [await a_person(database, organization) for _ in range(60)]
    for user in (texted, *mailed):
        await tell(database, user, organization)

    report = await drained(sender, database)

    assert report == DrainReport(sent=61)
    assert [message["to"] for message in twilio.delivered] == [PHONE]
    assert sorted(to for message in resend_server.delivered for to in message["to"]) == sorted(
        f"{user}@example.org" for user in mailed
    )
    rows = await all_messages(database)
    assert {row.status for row in rows} == {"sent"}
    assert {row.provider_id for row in rows} == {m["sid"] for m in twilio.delivered} | {
        m["id"] for m in resend_server.delivered
    }
    assert {(row.sent_by, row.channel, row.body) for row in rows} == {
        ("twilio", "sms", None),
        ("resend", "email", None),
    }


async def test_two_senders_never_send_the_same(
    sender: NotificationActivities, database: Database, resend_server: ResendServer
) -> None:
    organization = await an_organization(database)
    for _ in range(40):
        await tell(database, await a_person(database, organization), organization)

    async with running(sender, batch=5), running(sender, batch=5):
        await eventually(lambda: _all_sent(database))

    assert resend_server.requests == 40


async def _all_sent(database: Database) -> bool:
    return set(await statuses(database)) == {"sent"}


async def test_a_throttled_message_is_sent_when_the_provider_says_so(
    sender: NotificationActivities, database: Database, twilio: TwilioServer
) -> None:
    organization = await an_organization(database)
    await tell(database, await a_person_with_phone(database, organization), organization)
    twilio.plan(throttle("1"))

    async with running(sender):
        await eventually(lambda: _all_sent(database))

    (row,) = await all_messages(database)
    assert (row.attempt, row.error, len(twilio.delivered), twilio.requests) == (2, None, 1, 2)


async def test_a_server_error_is_put_off_by_the_back_off(
    sender: NotificationActivities, database: Database, twilio: TwilioServer
) -> None:
    organization = await an_organization(database)
    await tell(database, await a_person_with_phone(database, organization), organization)
    twilio.plan(fail(503))

    report = await drained(sender, database)

    (row,) = await all_messages(database)
    assert report == DrainReport(put_off=1)
    assert (row.status, row.attempt, row.error) == ("pending", 1, "Twilio answered 503")
    assert timedelta(seconds=3) < row.next_at - datetime.now(UTC) <= timedelta(seconds=5)


async def test_the_last_attempt_ends_it(
    sender: NotificationActivities, database: Database, twilio: TwilioServer
) -> None:
    organization = await an_organization(database)
    await tell(database, await a_person_with_phone(database, organization), organization)
    async with database.transaction() as session:
        await session.run(update(notifications).values(attempt=MAX_ATTEMPTS - 1))
    twilio.plan(fail(503))

    await drained(sender, database)

    (row,) = await all_messages(database)
    assert (row.status, row.error) == ("failed", "given up after 8 attempts: Twilio answered 503")


async def test_a_permanent_failure_ends_at_once_with_its_error(
    sender: NotificationActivities, database: Database, twilio: TwilioServer
) -> None:
    organization = await an_organization(database)
    await tell(database, await a_person_with_phone(database, organization, INVALID_NUMBER), organization)

    assert await drained(sender, database) == DrainReport(failed=1)

    (row,) = await all_messages(database)
    assert (row.status, row.attempt, twilio.requests) == ("failed", 1, 1)
    assert "21211" in row.error


async def test_one_bad_message_does_not_hold_up_the_batch(
    sender: NotificationActivities, database: Database, twilio: TwilioServer, resend_server: ResendServer
) -> None:
    organization = await an_organization(database)
    await tell(database, await a_person_with_phone(database, organization), organization)
    for _ in range(5):
        await tell(database, await a_person(database, organization), organization)
    async with database.transaction() as session:
        # Written by a release that knows more than ours.
        first = (await all_messages(database))[1].id
        await session.run(update(notifications).where(notifications.c.id == first).values(event="from_the_future"))
    twilio.plan(hang(30))

    report = await drained(sender, database)

    assert report == DrainReport(sent=4, put_off=2)
    assert len(resend_server.delivered) == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"is_active": False}, "account is closed"),
        ({"email": None, "phone": "+15005550007"}, "no verified phone and no e-mail address"),
    ],
)
async def test_who_cannot_be_told_is_not(
    sender: NotificationActivities, database: Database, twilio: TwilioServer, change: dict[str, Any], reason: str
) -> None:
    organization = await an_organization(database)
    user = await a_person(database, organization)
    await tell(database, user, organization)
    async with database.transaction() as session:
        await session.run(update(users).where(users.c.id == user).values(**change))

    assert await drained(sender, database) == DrainReport(failed=1)

    (row,) = await all_messages(database)
    assert reason in row.error
    assert twilio.requests == 0


async def test_an_offer_whose_time_is_up_is_not_announced(
    sender: NotificationActivities, database: Database, resend_server: ResendServer
) -> None:
    organization = await an_organization(database)
    user = await a_person(database, organization)
    work_order_id, offer_id = await an_offer(database, organization, user, expires_in=timedelta(seconds=-1))
    about = {"work_order_id": work_order_id, "offer_id": offer_id}
    await tell(database, user, organization, Event.OFFER_MADE, **about)
    await tell(database, user, organization, Event.OFFER_WITHDRAWN, **about)

    assert await drained(sender, database) == DrainReport(sent=1, failed=1)

    assert [message["subject"] for message in resend_server.delivered] == ["JB-1 is no longer on offer"]


async def test_the_outbox_keeps_the_text_and_logs_nobodys_data(database: Database) -> None:
    organization = await an_organization(database)
    texted, mailed = await a_person_with_phone(database, organization), await a_person(database, organization)
    work_order_id, _ = await an_offer(database, organization, mailed)
    for user in (texted, mailed):
        await tell(database, user, organization, Event.ASSIGNED, work_order_id=work_order_id)
    sender = NotificationActivities(database, {channel: Outbox(channel) for channel in Channel})

    with capture_logs() as logs:
        await drained(sender, database)

    rows = {row.channel: row for row in await all_messages(database)}
    assert {(row.status, row.sent_by, row.provider_id) for row in rows.values()} == {("sent", "outbox", None)}
    assert rows["sms"].body == "JB-1 is yours: 1 Main St. Drive safely."
    assert rows["email"].subject == "JB-1 is yours"
    assert len(logs) == 2
    for private in ("1 Main St", "Ada", "example.org", PHONE):
        assert private not in str(logs)


async def test_errors_and_logs_do_not_repeat_the_address(
    sender: NotificationActivities, database: Database, twilio: TwilioServer
) -> None:
    organization = await an_organization(database)
    number = "+15005550010"
    await tell(database, await a_person_with_phone(database, organization, number), organization)

    with capture_logs() as logs:
        await drained(sender, database)

    (row,) = await all_messages(database)
    assert "unsubscribed recipient the recipient" in row.error
    assert number not in row.error + str(logs)


async def test_a_cancelled_drain_records_what_it_sent(
    sender: NotificationActivities, database: Database, twilio: TwilioServer
) -> None:
    organization = await an_organization(database)
    await tell(database, await a_person_with_phone(database, organization), organization)
    twilio.plan(hang(0.3))
    environment = ActivityEnvironment()
    drain = asyncio.create_task(environment.run(sender.drain, DrainInput()))

    async def asked() -> bool:
        return twilio.requests == 1

    await eventually(asked)
    environment.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drain

    assert await statuses(database) == ["sent"]


async def test_an_outage_of_the_database_is_waited_out(
    sender: NotificationActivities, database: Database, twilio: TwilioServer, database_url: str
) -> None:
    organization = await an_organization(database)
    await tell(database, await a_person_with_phone(database, organization), organization)
    address, _, name = database_url.replace("+asyncpg", "").rpartition("/")
    administrator = await asyncpg.connect(f"{address}/postgres")
    twilio.plan(hang(0.3))

    async with running(sender) as environment:
        heartbeats: list[float] = []
        environment.on_heartbeat = lambda *_: heartbeats.append(time.monotonic())

        async def asked() -> bool:
            return twilio.requests == 1

        await eventually(asked)
        # The message is with the provider; from here on there is no database to record it in.
        await administrator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await administrator.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        await asyncio.sleep(1.5)
        assert heartbeats, "it lives on"
        await administrator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await eventually(lambda: _all_sent(database))

    await administrator.close()
    assert (twilio.requests, len(twilio.delivered)) == (1, 1)


async def test_a_sender_killed_between_sending_and_recording(
    sender: NotificationActivities,
    database: Database,
    database_url: str,
    twilio: TwilioServer,
    resend_server: ResendServer,
) -> None:
    """None arrives twice: of the SMS Twilio is asked what it has taken, and the e-mail has its idempotency key."""
    organization = await an_organization(database)
    await tell(database, await a_person_with_phone(database, organization), organization)
    await tell(database, await a_person(database, organization), organization)
    # The providers take the messages, and the answers are on their way for ever.
    twilio.plan(hang(30, deliver_first=True))
    resend_server.plan(hang(30, deliver_first=True))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.notifications.drain_process", database_url, twilio.url, resend_server.url, cwd=ROOT
    )

    async def both_taken() -> bool:
        return len(twilio.delivered) == len(resend_server.delivered) == 1

    await eventually(both_taken, within_s=30)
    process.kill()
    await process.wait()
    assert await statuses(database) == ["sending", "sending"]

    async with running(sender):
        await eventually(lambda: _all_sent(database))

    assert len(twilio.delivered) == 1
    assert len(resend_server.delivered) == 1
    sms = next(row for row in await all_messages(database) if row.channel == "sms")
    assert (sms.provider_id, sms.attempt) == (twilio.delivered[0]["sid"], 2)
    mail = next(row for row in await all_messages(database) if row.channel == "email")
    assert (mail.provider_id, mail.attempt) == (resend_server.delivered[0]["id"], 2)
