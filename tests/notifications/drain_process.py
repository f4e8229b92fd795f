"""A sender in a process of its own, for the test that kills it: `drain_process.py <database> <twilio> <resend>`."""

from __future__ import annotations

import asyncio
import sys

from temporalio.testing import ActivityEnvironment

from activities.channels.base import ChannelAdapter
from activities.channels.email import ResendEmail
from activities.channels.sms import TwilioSms
from activities.notifications import DrainInput, NotificationActivities
from models.kit.database import Database
from models.notifications.rules import Channel
from tests.notifications.provider_servers import ACCOUNT_SID, API_KEY, AUTH_TOKEN, FROM_ADDRESS, FROM_NUMBER


async def main(database_url: str, twilio_url: str, resend_url: str) -> None:
    adapters: dict[Channel, ChannelAdapter] = {
        Channel.SMS: TwilioSms(account_sid=ACCOUNT_SID, auth_token=AUTH_TOKEN, sender=FROM_NUMBER, base_url=twilio_url),
        Channel.EMAIL: ResendEmail(api_key=API_KEY, sender=FROM_ADDRESS, base_url=resend_url),
    }
    sender = NotificationActivities(Database(database_url), adapters)
    await ActivityEnvironment().run(sender.drain, DrainInput(lease_s=1))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
