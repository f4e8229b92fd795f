"""The application over a fresh database, and a client that speaks to it in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from litestar import Litestar

from api.app import create_app
from models.kit.database import Database
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from tests.factories.people import People


def settings(**changes: object) -> Settings:
    values: dict[str, object] = {"secret_key": DEVELOPMENT_SECRET, "dev_mode": True, "log_level": "error"}
    return Settings(**values | changes)  # type: ignore[arg-type]


@pytest.fixture
async def app(database: Database) -> AsyncIterator[Litestar]:
    application = create_app(settings(), database=database, with_relay=False)
    async with application.lifespan():
        yield application


@pytest.fixture
async def client(app: Litestar) -> AsyncIterator[httpx.AsyncClient]:
    # An error that the application lets through would be raised here, instead of answered: none may.
    transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://fairlead.test") as http:
        yield http


@pytest.fixture
def people(database: Database) -> People:
    return People(database)
