"""Twilio and Resend are out, in each of the ways in which they go: work goes on, and every message is sent once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from sqlalchemy import text

from api.cli.services import EmbeddedTemporal
from models.kit.database import Database
from tests.degraded.processes import Fairlead, up
from tests.factories import invariants
from tests.factories.people import Person
from tests.factories.proxy import Proxy
from tests.factories.work import World
from tests.factories.workers import until
from tests.notifications.provider_servers import (
    ACCOUNT_SID,
    API_KEY,
    AUTH_TOKEN,
    FROM_ADDRESS,
    FROM_NUMBER,
    Behaviour,
    ProviderServer,
    ResendServer,
    TwilioServer,
    fail,
    throttle,
)

pytestmark = pytest.mark.anyio

#: Longer than what a sender waits for a provider.
HANGS_S: Final = 11
TROUBLES: Final[dict[str, Behaviour | None]] = {
    "refuse": None,
    "answer 500": fail(500),
    "answer 429": throttle("1"),
    "hang": Behaviour(hang_s=HANGS_S, status=503),
}


class Providers:
    """Both, each behind a proxy that can refuse for it."""

    def __init__(self, servers: list[ProviderServer], proxies: list[Proxy]) -> None:
        self.servers = servers
        self.proxies = proxies

    @property
    def delivered(self) -> list[dict[str, Any]]:
        return [message for server in self.servers for message in server.delivered]

    async def fail(self, behaviour: Behaviour | None) -> None:
        for server, proxy in zip(self.servers, self.proxies, strict=True):
            if behaviour is None:
                await proxy.refuse()
            else:
                server.plan(*[behaviour] * 500)

    async def come_back(self) -> None:
        for server, proxy in zip(self.servers, self.proxies, strict=True):
            server.script.clear()
            await proxy.resume()


@asynccontextmanager
async def providers() -> AsyncIterator[Providers]:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(server) for server in (TwilioServer(), ResendServer())]
        proxies = [await stack.enter_async_context(Proxy(server.url)) for server in servers]
        yield Providers(servers, proxies)


async def test_offers_and_accepts_go_on_and_each_message_is_sent_once_afterwards(
    database: Database, database_url: str, stoppable_temporal: EmbeddedTemporal, tmp_path: Path
) -> None:
    world = await World.make(database)
    by_mail = await world.driver()
    by_phone = await world.driver()
    async with database.transaction() as session:
        await session.run(
            text("UPDATE users SET phone = '+15005550006', phone_verified_at = clock_timestamp() WHERE id = :id"),
            {"id": by_phone.user_id},
        )
    async with providers() as them:
        twilio, resend = them.proxies
        worker = Fairlead(
            "worker", tmp_path / "worker.log", database_url=database_url, temporal=stoppable_temporal.address,
            TWILIO_ACCOUNT_SID=ACCOUNT_SID, TWILIO_AUTH_TOKEN=AUTH_TOKEN, TWILIO_FROM=FROM_NUMBER,
            TWILIO_BASE_URL=twilio.url, RESEND_API_KEY=API_KEY, RESEND_BASE_URL=resend.url, EMAIL_FROM=FROM_ADDRESS,
        )  # fmt: skip
        api = Fairlead("api", tmp_path / "api.log", database_url=database_url, temporal=stoppable_temporal.address)
        async with up(api, worker), httpx.AsyncClient(base_url=api.url, timeout=10) as client:
            await _lifecycle(client, world, {by_mail.driver_id: by_mail, by_phone.driver_id: by_phone})
            await until(lambda: _all_sent(world), within_s=20)
            for name, behaviour in TROUBLES.items():
                sent_before = len(them.delivered)
                await them.fail(behaviour)
                for _ in range(2):
                    took_s = await _lifecycle(client, world, {by_mail.driver_id: by_mail, by_phone.driver_id: by_phone})
                    # What it takes without a provider: nobody waits for one.
                    assert took_s < HANGS_S / 2, name
                await until(lambda: _put_off(world), within_s=30)
                assert len(them.delivered) == sent_before, name
                await them.come_back()
                await until(lambda: _all_sent_soon(world), within_s=30)
                await _each_once(world, them)
    await invariants.check(database)


async def _lifecycle(client: httpx.AsyncClient, world: World, drivers: dict[Any, Person]) -> float:
    """Created, offered, accepted and completed; the seconds that it took."""
    began = time.monotonic()
    body = {"premise_id": "P-1", "timeslot": "08:00"}
    made = await client.post("/api/v1/enrollments", json=body, headers=world.dispatcher.headers)
    assert made.status_code == 201, made.text
    work = made.json()["id"]
    await until(lambda: world.offers(work))
    (offer,) = await world.offers(work)
    accepted = await client.post(f"/api/v1/offers/{offer.id}/accept", headers=drivers[offer.driver_id].headers)
    assert accepted.is_success, accepted.text
    done = await client.post(f"/api/v1/enrollments/{work}/complete", headers=world.dispatcher.headers)
    assert done.is_success, done.text
    return time.monotonic() - began


async def _put_off(world: World) -> bool:
    """A message has been tried and waits for its next attempt; none has been given up."""
    rows = await world.all("SELECT status, attempt FROM notifications WHERE status <> 'sent'")
    assert all(row.status in ("pending", "sending") for row in rows)
    return any(row.status == "pending" and row.attempt > 0 for row in rows)


async def _all_sent_soon(world: World) -> bool:
    """The time until the next attempt passes."""
    async with world.database.transaction() as session:
        await session.run(
            text("UPDATE notifications SET next_at = clock_timestamp() WHERE status = 'pending' AND next_at > now()")
        )
    return await _all_sent(world)


async def _all_sent(world: World) -> bool:
    return not await world.all("SELECT 1 FROM notifications WHERE status <> 'sent'")


async def _each_once(world: World, them: Providers) -> None:
    twilio, resend = them.servers
    rows = await world.all(
        "SELECT n.id, n.channel, u.phone FROM notifications n JOIN users u ON u.id = n.user_id WHERE n.status = 'sent'"
    )
    keys = [message["key"] for message in resend.delivered]
    assert sorted(keys) == sorted(str(row.id) for row in rows if row.channel == "email")
    texts = Counter(message["to"] for message in twilio.delivered)
    assert texts == Counter(row.phone for row in rows if row.channel == "sms")
    assert keys
    assert texts
