import httpx
import pytest

from models.kit.database import Database
from tests.factories.api import app, client, people
from tests.factories.desk import Desk
from tests.factories.work import World

__all__ = ["app", "client", "people"]


@pytest.fixture
async def world(database: Database) -> World:
    return await World.make(database)


@pytest.fixture
def desk(client: httpx.AsyncClient, world: World) -> Desk:
    return Desk(client, world)
