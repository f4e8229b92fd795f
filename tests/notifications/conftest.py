"""Local providers and the real adapters that talk to them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from activities.channels.email import ResendEmail
from activities.channels.sms import TwilioSms
from tests.notifications.provider_servers import (
    ACCOUNT_SID,
    API_KEY,
    AUTH_TOKEN,
    FROM_ADDRESS,
    FROM_NUMBER,
    ResendServer,
    TwilioServer,
)

#: Short, so that a provider that hangs costs the tests little.
TIMEOUT_S = 0.5


@pytest.fixture
async def twilio() -> AsyncIterator[TwilioServer]:
    async with TwilioServer() as server:
        yield server


@pytest.fixture
async def resend_server() -> AsyncIterator[ResendServer]:
    async with ResendServer() as server:
        yield server


@pytest.fixture
async def sms(twilio: TwilioServer) -> AsyncIterator[TwilioSms]:
    adapter = TwilioSms(
        account_sid=ACCOUNT_SID,
        auth_token=AUTH_TOKEN,
        sender=FROM_NUMBER,
        base_url=twilio.url,
        timeout_s=TIMEOUT_S,
    )
    yield adapter
    await adapter.close()


@pytest.fixture
async def email(resend_server: ResendServer) -> AsyncIterator[ResendEmail]:
    adapter = ResendEmail(api_key=API_KEY, sender=FROM_ADDRESS, base_url=resend_server.url, timeout_s=TIMEOUT_S)
    yield adapter
    await adapter.close()
