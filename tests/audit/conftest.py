from __future__ import annotations

from uuid import UUID

import pytest

from models.kit.database import Database
from tests.audit.factories import Log
from tests.factories.people import People


@pytest.fixture
async def log(database: Database) -> Log:
    return Log(database)


@pytest.fixture
async def organization_id(log: Log) -> UUID:
    """One whose making is sealed already."""
    made = await People(log.database).organization()
    await log.seal()
    return made
