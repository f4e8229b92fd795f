"""One message that cannot be read, rendered, sent or recorded fails alone: the others of its batch go out."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs
from temporalio.testing import ActivityEnvironment

from activities.channels.base import Outgoing, PermanentlyFailed
from activities.channels.outbox import Outbox
from activities.notifications import DrainInput, NotificationActivities
from models.kit.database import Database
from models.notifications.commands import notify
from models.notifications.rules import Channel, Event
from tests.factories.workers import until
from tests.notifications.factories import a_person, all_messages, an_offer, an_organization

pytestmark = pytest.mark.anyio

OTHERS = 5


class Provider(Outbox):
    """Takes every message but those whose text has `refuses` in it; answers with `says`."""

    name = "provider"

    def __init__(self, says: str, refuses: str) -> None:
        super().__init__(Channel.EMAIL)
        self.says = says
        self.refuses = refuses

    async def send(self, message: Outgoing) -> str:
        if self.refuses in message.text:
            raise PermanentlyFailed(self.says)
        return ""


def sender(database: Database, adapter: Outbox | None = None) -> NotificationActivities:
    return NotificationActivities(database, {Channel.EMAIL: adapter or Outbox(Channel.EMAIL)})


async def run(database: Database, sql: str, **values: Any) -> None:
    async with database.transaction() as session:
        await session.run(text(sql), values)


async def a_batch(database: Database, **bad: Any) -> UUID:
    """Messages to five people, and before them one about a work order of its own, whose id is returned. `bad` are
    columns of that message."""
    organization = await an_organization(database)
    person = await a_person(database, organization)
    work_order_id, _ = await an_offer(database, organization, person)
    async with database.transaction() as session:
        notify(
            session, Event.ESCALATION, organization_id=organization, user_id=person, at=datetime.now(UTC),
            work_order_id=work_order_id, params=bad.get("params"),
        )  # fmt: skip
    for _ in range(OTHERS):
        other = await a_person(database, organization)
        async with database.transaction() as session:
            notify(session, Event.NUDGE, organization_id=organization, user_id=other, at=datetime.now(UTC))
    return work_order_id


async def drained(activities: NotificationActivities, database: Database) -> list[Any]:
    """Drain until every message has its outcome; the messages, the bad one first."""
    environment = ActivityEnvironment()
    drain = asyncio.create_task(environment.run(activities.drain, DrainInput(batch=OTHERS + 1)))

    async def over() -> bool:
        assert not drain.done() or drain.result()
        return all(row.status in ("sent", "failed") for row in await all_messages(database))

    await until(over)
    environment.worker_shutdown()
    await drain
    return await all_messages(database)


def check(rows: list[Any], reason: str) -> None:
    bad, *others = rows
    assert bad.status == "failed"
    assert reason in bad.error
    assert [(row.status, row.attempt) for row in others] == [("sent", 1)] * OTHERS


async def test_one_whose_work_order_cannot_be_read(database: Database) -> None:
    work_order_id = await a_batch(database)
    await run(database, "UPDATE work_orders SET scheduled_for = '20000-01-01' WHERE id = :id", id=work_order_id)

    with capture_logs() as logs:
        rows = await drained(sender(database), database)

    check(rows, "cannot be read: OverflowError")
    assert [log["id"] for log in logs if log["event"] == "message_not_readable"] == [str(rows[0].id)]


async def test_one_whose_instant_has_no_local_time(database: Database) -> None:
    work_order_id = await a_batch(database)
    await run(database, "UPDATE organizations SET time_zone = 'Asia/Tokyo'")
    await run(database, "UPDATE work_orders SET scheduled_for = 'infinity' WHERE id = :id", id=work_order_id)

    check(await drained(sender(database), database), "cannot be sent: OverflowError")


async def test_one_whose_template_stumbles_over_its_parameters(database: Database) -> None:
    await a_batch(database, params={"reasons": 7})

    check(await drained(sender(database), database), "cannot be sent: AttributeError")


async def test_one_whose_parameters_are_no_object(database: Database) -> None:
    await a_batch(database)
    await run(database, "UPDATE notifications SET params = '[1]' WHERE event = 'escalation'")

    check(await drained(sender(database), database), "cannot be rendered: UndefinedError")


@pytest.mark.parametrize("words", ["no such\0address", "no such \ud800 address"], ids=["nul", "lone surrogate"])
async def test_one_whose_outcome_cannot_be_recorded(database: Database, words: str) -> None:
    """What a provider says may hold what Postgres does not take."""
    await a_batch(database)

    with capture_logs() as logs:
        rows = await drained(sender(database, Provider(words, refuses="JB-1")), database)

    check(rows, "cannot be recorded in full")
    assert "no such" not in str([row.error for row in rows]) + str([log for log in logs if "error" in log])
