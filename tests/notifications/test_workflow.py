"""The sender on a real Temporal server."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.worker import Worker

from activities.channels.email import ResendEmail
from activities.channels.sms import TwilioSms
from activities.notifications import DrainInput, NotificationActivities
from models.kit.database import Database
from models.notifications.commands import notify
from models.notifications.rules import Channel, Event
from tests.notifications.factories import a_person, all_messages, an_organization
from tests.notifications.provider_servers import ResendServer
from workflows.notifications import NotificationSender, SenderInput, ensure_sender, sender_id

pytestmark = pytest.mark.anyio


async def test_the_sender_sends_and_renews_itself(
    temporal_address: str, database: Database, sms: TwilioSms, email: ResendEmail, resend_server: ResendServer
) -> None:
    client = await Client.connect(temporal_address)
    queue = f"notifications-{uuid4()}"
    activities = NotificationActivities(database, {Channel.SMS: sms, Channel.EMAIL: email})
    organization = await an_organization(database)
    # Other tests share the server, hence a shard of its own.
    start = SenderInput(shard=7, drain=DrainInput(run_for_s=1))

    async def sent(count: int) -> None:
        user = await a_person(database, organization)
        async with database.transaction() as session:
            notify(session, Event.NUDGE, organization_id=organization, user_id=user, at=datetime.now(UTC))
        async with asyncio.timeout(15):
            while len(resend_server.delivered) < count:
                await asyncio.sleep(0.05)

    async with Worker(client, task_queue=queue, workflows=[NotificationSender], activities=[activities.drain]):
        first = await ensure_sender(client, queue, start)
        again = await ensure_sender(client, queue, start)
        assert (first.id, first.first_execution_run_id) == (sender_id(7), again.first_execution_run_id)

        await sent(1)
        begun = (await client.get_workflow_handle(first.id).describe()).run_id
        async with asyncio.timeout(15):
            while (await client.get_workflow_handle(first.id).describe()).run_id == begun:
                await asyncio.sleep(0.1)
        await sent(2)

        now = await client.get_workflow_handle(first.id).describe()
        assert now.status is WorkflowExecutionStatus.RUNNING
        await client.get_workflow_handle(first.id).cancel()
        async with asyncio.timeout(15):
            while (await client.get_workflow_handle(first.id).describe()).status is WorkflowExecutionStatus.RUNNING:
                await asyncio.sleep(0.1)

    assert [row.status for row in await all_messages(database)] == ["sent", "sent"]


async def test_a_stopping_worker_hands_the_drain_on(
    temporal_address: str, database: Database, sms: TwilioSms, email: ResendEmail, resend_server: ResendServer
) -> None:
    client = await Client.connect(temporal_address)
    queue = f"notifications-{uuid4()}"
    activities = NotificationActivities(database, {Channel.SMS: sms, Channel.EMAIL: email})
    organization = await an_organization(database)
    handle = await ensure_sender(client, queue, SenderInput(shard=8))
    user = await a_person(database, organization)

    for count in (1, 2):
        async with (
            asyncio.timeout(30),
            Worker(client, task_queue=queue, workflows=[NotificationSender], activities=[activities.drain]),
        ):
            async with database.transaction() as session:
                notify(session, Event.NUDGE, organization_id=organization, user_id=user, at=datetime.now(UTC))
            while len(resend_server.delivered) < count:
                await asyncio.sleep(0.05)

    await handle.terminate()
    assert [row.status for row in await all_messages(database)] == ["sent", "sent"]
