"""Messages are written with their cause, handed out once, and remember what became of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from models.identity.rules import Role
from models.kit.database import Database
from models.notifications.commands import (
    _LEASE,
    DueMessage,
    Outcome,
    lease_due,
    notify,
    notify_dispatchers,
    record_outcomes,
)
from models.notifications.queries import outbox, unsent_over
from models.notifications.rules import Channel, Event, NotificationStatus
from tests.notifications.factories import a_person, a_person_with_phone, all_messages, an_offer, an_organization

pytestmark = pytest.mark.anyio


def earlier(seconds: float = 1) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


async def a_message(database: Database, *, at: datetime | None = None, key: str = "") -> UUID:
    """A message to a driver who can be reached by SMS; gives the user."""
    organization = await an_organization(database)
    user = await a_person_with_phone(database, organization, phone=f"+1500555{organization.int % 10000:04}")
    async with database.transaction() as session:
        notify(session, Event.ASSIGNED, organization_id=organization, user_id=user, at=at or earlier(), key=key)
    return user


async def leased(database: Database, *, limit: int = 50, lease_s: float = 60) -> list[DueMessage]:
    async with database.transaction() as session:
        return await lease_due(session, limit=limit, lease_s=lease_s)


async def recorded(database: Database, *outcomes: Outcome) -> None:
    async with database.transaction() as session:
        await record_outcomes(session, outcomes)


def outcome(message: DueMessage, status: NotificationStatus, **changes: object) -> Outcome:
    values: dict[str, object] = {"channel": Channel.SMS, "sent_by": "twilio", **changes}
    return Outcome(id=message.id, created_at=message.created_at, attempt=message.attempt, status=status, **values)  # type: ignore[arg-type]


async def test_a_message_carries_what_sending_needs(database: Database) -> None:
    organization = await an_organization(database)
    user = await a_person(database, organization)
    work_order_id, offer_id = await an_offer(database, organization, user)
    at = earlier()
    async with database.transaction() as session:
        notify(
            session,
            Event.OFFER_MADE,
            organization_id=organization,
            user_id=user,
            at=at,
            work_order_id=work_order_id,
            offer_id=offer_id,
            params={"km": 3},
        )
        assert "notifications" in session.topics

    (message,) = await leased(database)

    assert (message.event, message.attempt, message.channel, message.params) == ("offer_made", 1, None, {"km": 3})
    assert (message.recipient_name, message.recipient_email) == ("Ada Example", f"{user}@example.org")
    assert (message.recipient_active, message.phone_verified, message.recipient_role) == (True, False, "driver")
    assert (message.reference, message.kind, message.address) == ("JB-1", "job", "1 Main St")
    assert message.offer_expires_at is not None
    assert (message.organization_name, message.time_zone, message.locale) == ("Northside", "America/Chicago", "en")
    (row,) = await all_messages(database)
    assert (row.dedupe_key, row.created_at, row.status) == (f"offer_made:{offer_id}:{user}", at, "sending")


async def test_the_same_cause_cannot_tell_a_person_twice(database: Database) -> None:
    organization = await an_organization(database)
    user = await a_person(database, organization)
    at = earlier()

    async def tell(key: str) -> None:
        async with database.transaction() as session:
            notify(session, Event.NUDGE, organization_id=organization, user_id=user, at=at, key=key)

    await tell("1")
    await tell("2")
    with pytest.raises(IntegrityError):
        await tell("2")

    assert len(await all_messages(database)) == 2


async def test_messages_can_be_switched_off(database_url: str) -> None:
    database = Database(database_url, messages_enabled=False)
    await a_message(database)
    async with database.transaction() as session:
        await notify_dispatchers(
            session, Event.ESCALATION, organization_id=await an_organization(database), at=earlier()
        )

    assert await all_messages(database) == []
    await database.close()


async def test_a_rolled_back_cause_leaves_no_message(database: Database) -> None:
    organization = await an_organization(database)
    user = await a_person(database, organization)

    with pytest.raises(RuntimeError):
        async with database.transaction() as session:
            notify(session, Event.NUDGE, organization_id=organization, user_id=user, at=earlier())
            await session.flush()
            raise RuntimeError

    assert await all_messages(database) == []


async def test_dispatchers_are_told_and_admins_only_where_there_are_none(database: Database) -> None:
    organization, other = await an_organization(database), await an_organization(database)
    admin = await a_person(database, organization, Role.BOARD_ADMIN)
    await a_person(database, organization, Role.DRIVER)
    await a_person(database, organization, Role.DISPATCHER, is_active=False)
    await a_person(database, other, Role.DISPATCHER)

    async def told(at: datetime) -> set[UUID]:
        async with database.transaction() as session:
            await notify_dispatchers(
                session, Event.ESCALATION, organization_id=organization, at=at, params={"waiting_minutes": 20}, key="1"
            )
        return {row.user_id for row in await all_messages(database) if row.created_at == at}

    first, second = earlier(3), earlier(2)
    assert await told(first) == {admin}
    dispatchers = {await a_person(database, organization, Role.DISPATCHER) for _ in range(2)}
    assert await told(second) == dispatchers
    assert await told(second) == dispatchers, "repeating tells nobody twice"
    message = (await all_messages(database))[-1]
    assert message.params == {"waiting_minutes": 20}
    assert message.dedupe_key == f"escalation:-:{message.user_id}:1"


async def test_a_lease_goes_to_one_sender_oldest_first(database: Database) -> None:
    users = [await a_message(database, at=earlier(age)) for age in (10, 30, 20)]

    async with database.transaction() as one, database.transaction() as other:
        first = await lease_due(one, limit=2)
        second = await lease_due(other, limit=2)

    assert {message.user_id for message in first} == {users[1], users[2]}
    assert [message.user_id for message in second] == [users[0]]
    assert await leased(database) == []


async def test_what_is_due_later_waits(database: Database) -> None:
    await a_message(database, at=datetime.now(UTC) + timedelta(minutes=1))

    assert await leased(database) == []


async def test_a_lease_that_ran_out_is_taken_again(database: Database) -> None:
    await a_message(database)
    (lost,) = await leased(database, lease_s=0)

    (again,) = await leased(database)

    assert (again.id, again.attempt) == (lost.id, 2)


async def test_outcomes_are_written_together(database: Database) -> None:
    for _ in range(3):
        await a_message(database)
    first, second, third = await leased(database)

    await recorded(
        database,
        outcome(first, NotificationStatus.SENT, provider_id="SM1"),
        outcome(second, NotificationStatus.FAILED, error="21211"),
        outcome(third, NotificationStatus.PENDING, error="429", delay_s=30),
    )

    rows = {row.id: row for row in await all_messages(database)}
    assert (rows[first.id].status, rows[first.id].provider_id, rows[first.id].sent_by) == ("sent", "SM1", "twilio")
    assert rows[first.id].sent_at is not None
    assert (rows[second.id].status, rows[second.id].error, rows[second.id].sent_at) == ("failed", "21211", None)
    assert (rows[third.id].status, rows[third.id].error, rows[third.id].leased_until) == ("pending", "429", None)
    wait = rows[third.id].next_at - datetime.now(UTC)
    assert timedelta(seconds=25) < wait <= timedelta(seconds=30)
    assert rows[third.id].channel == "sms"


async def test_a_late_report_of_success_counts_and_one_of_failure_does_not(database: Database) -> None:
    await a_message(database)
    (lost,) = await leased(database, lease_s=0)
    (held,) = await leased(database)

    await recorded(database, outcome(lost, NotificationStatus.FAILED, error="too late"))
    assert [row.status for row in await all_messages(database)] == ["sending"]
    await recorded(database, outcome(lost, NotificationStatus.SENT, provider_id="SM1"))
    await recorded(database, outcome(held, NotificationStatus.FAILED, error="second opinion"))

    assert [(row.status, row.provider_id) for row in await all_messages(database)] == [("sent", "SM1")]


async def test_the_outbox_shows_what_it_took_newest_first(database: Database) -> None:
    for _ in range(3):
        await a_message(database)
    first, second, third = sorted(await leased(database), key=lambda message: message.id)
    await recorded(
        database,
        outcome(first, NotificationStatus.SENT, sent_by="outbox", body="one"),
        outcome(second, NotificationStatus.SENT, provider_id="SM1"),
        outcome(third, NotificationStatus.SENT, sent_by="outbox", body="three"),
    )

    async with database.transaction() as session:
        assert [message.body for message in await outbox(session, limit=10)] == ["three", "one"]
        assert [message.body for message in await outbox(session, limit=1)] == ["three"]


async def test_unsent_messages_are_counted_by_their_age(database: Database) -> None:
    await a_message(database, at=earlier(100))
    await a_message(database, at=earlier(5))

    async with database.transaction() as session:
        assert await unsent_over(session, 60) == 1
        assert await unsent_over(session, 1) == 2
    await recorded(database, *[outcome(m, NotificationStatus.SENT) for m in await leased(database)])
    async with database.transaction() as session:
        assert await unsent_over(session, 1) == 0


async def test_leasing_reads_the_index_of_what_is_due(database: Database) -> None:
    async with database.transaction() as session:
        # On an almost empty table any plan is cheap.
        await session.run(text("SET LOCAL enable_seqscan = off"))
        await session.run(text("SET LOCAL enable_bitmapscan = off"))
        plan = await session.rows(text(f"EXPLAIN {_LEASE.element}"), {"limit": 50, "lease_s": 60.0})

    assert "Index Cond: (next_at <= statement_timestamp())" in "\n".join(row[0] for row in plan)
