"""What every response carries, what is logged of it, and health."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import text, update

from api.app import create_app
from models.identity.passwords import verify_password
from models.kit.database import Database
from models.kit.ids import new_id
from models.kit.settings import Settings
from models.notifications.tables import notifications
from tests.factories.api import settings
from tests.factories.people import PASSWORD, People
from tests.factories.proxy import Proxy


@asynccontextmanager
async def serving(settings: Settings, database: Database | None = None) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, database=database, with_relay=False)
    transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
    async with app.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://fairlead.test") as http:
        yield http


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/nowhere", 404), ("/api/v1/users", 401)])
async def test_every_response_has_the_security_headers(database: Database, path: str, status: int) -> None:
    async with serving(settings(dev_mode=False, secret_key="x" * 40), database) as client:
        response = await client.get(path)
    assert response.status_code == status
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    assert response.headers["strict-transport-security"].startswith("max-age=")
    assert response.headers["x-request-id"]


async def test_only_configured_origins_may_read_answers(database: Database) -> None:
    async with serving(settings(cors_origins="https://a.example, https://b.example/"), database) as client:
        for origin, allowed in [("https://b.example", True), ("https://evil.example", False)]:
            answer = await client.get("/health", headers={"Origin": origin})
            assert (answer.headers.get("access-control-allow-origin") == origin) == allowed
            ahead = await client.options(
                "/api/v1/users", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}
            )
            assert (ahead.headers.get("access-control-allow-origin") == origin) == allowed
    async with serving(settings(), database) as client:
        answer = await client.get("/health", headers={"Origin": "https://a.example"})
        assert "access-control-allow-origin" not in answer.headers


async def test_the_access_log_names_ids_and_no_person(database: Database, capsys: Any) -> None:
    people = People(database)
    person = await people.person("dispatcher", await people.organization(), name="Vera Visible", password=PASSWORD)
    async with serving(settings(log_level="info"), database) as client:
        await client.post("/api/v1/auth/login", json={"email": person.email, "password": PASSWORD})
        await client.get(f"/api/v1/users/{person.user_id}?q=Vera", headers=person.headers)
        await client.get("/Vera", headers=person.headers)
        await client.get("/health")
    output = capsys.readouterr().out
    login, user, nowhere = [json.loads(line) for line in output.splitlines()]
    assert user["event"] == "request"
    assert (user["method"], user["path"], user["status"]) == ("GET", "/api/v1/users/{user_id}", 200)
    assert (user["user_id"], user["organization_id"]) == (str(person.user_id), str(person.organization_id))
    assert user["ms"] > 0
    assert user["request_id"]
    assert (login["status"], login["user_id"]) == (200, None)
    assert (nowhere["status"], nowhere["path"]) == (404, None)
    for private in ("Vera", person.email, PASSWORD, person.token):
        assert private not in output


async def test_ready_when_all_is_up(database: Database, temporal_address: str) -> None:
    async with serving(settings(temporal_address=temporal_address), database) as client:
        response = await client.get("/health/ready")
    assert (response.status_code, response.json()) == (200, {"status": "ok", "out": {}})


async def test_not_ready_on_an_older_schema(database: Database, temporal_address: str) -> None:
    async with database.transaction() as session:
        await session.run(text("UPDATE alembic_version SET version_num = '0000'"))
    async with serving(settings(temporal_address=temporal_address), database) as client:
        response = await client.get("/health/ready")
    assert response.status_code == 503
    assert list(response.json()["out"]) == ["migrations"]
    assert "fairlead migrate" in response.json()["out"]["migrations"]


@pytest.mark.parametrize("how", ["refuses", "hangs"])
async def test_not_ready_is_said_within_a_second_and_a_half(database_url: str, how: str) -> None:
    async with (
        Proxy(database_url) as postgres,
        Proxy(database_url) as temporal,
        serving(
            settings(database_url=postgres.url, temporal_address=temporal.url.rpartition("@")[2].partition("/")[0])
        ) as client,
    ):
        for proxy in (postgres, temporal):
            await (proxy.refuse() if how == "refuses" else proxy.hang())
        began = time.perf_counter()
        response = await client.get("/health/ready")
        assert time.perf_counter() - began < 1.5
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert set(response.json()["out"]) == {"postgres", "temporal"}
        assert "127.0.0.1" not in response.text
        assert (await client.get("/health")).status_code == 200


async def test_the_outbox_is_shown_in_development_only(database: Database) -> None:
    people = People(database)
    person = await people.person("driver", await people.organization())
    async with database.transaction() as session:
        now = await session.value(text("SELECT clock_timestamp()"))
        session.stage(
            notifications, id=new_id(), organization_id=person.organization_id, user_id=person.user_id, event="x",
            dedupe_key="x", next_at=now, created_at=now, channel="sms", body="Hello",
        )  # fmt: skip
        await session.flush()
        await session.run(update(notifications).values(sent_by="outbox", status="sent", sent_at=now))
    async with serving(settings(), database) as client:
        (message,) = (await client.get("/dev/outbox")).json()["data"]
    assert (message["body"], message["channel"], message["user_id"]) == ("Hello", "sms", str(person.user_id))
    async with serving(settings(dev_mode=False, secret_key="x" * 40), database) as client:
        assert (await client.get("/dev/outbox")).status_code == 404


async def test_unknown_accounts_cost_a_verification_too() -> None:
    began = time.perf_counter()
    assert not await verify_password(None, PASSWORD)
    assert time.perf_counter() - began > 0.005
