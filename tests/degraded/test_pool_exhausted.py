"""Every connection of the pool is held: requests give up in good time, and health does not notice."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from models.kit.database import Database
from tests.degraded.probing import HealthProbe
from tests.degraded.processes import ROOT, Fairlead
from tests.degraded.wire import Answer, Wire, ask
from tests.factories.people import Person
from tests.factories.work import World
from tests.factories.workers import until

pytestmark = pytest.mark.anyio

#: What was measured; seen with `--log-cli-level=info`.
log = logging.getLogger(__name__)

REQUESTS = 200
#: Three times what the pool has: none of its connections is lost.
AFTERWARDS = 48
WITHIN_S = 2.0


async def test_200_requests_on_an_exhausted_pool_get_503_within_2_s_and_health_answers_as_ever(
    database: Database, database_url: str, temporal_address: str, tmp_path: Path
) -> None:
    world = await World.make(database)
    person = world.dispatcher
    async with Fairlead("api", tmp_path / "api.log", database_url=database_url, temporal=temporal_address) as api:
        wires = [await Wire.open(api.url) for _ in range(REQUESTS)]
        with HealthProbe(api.url) as probe:
            async with database.engine.connect() as holder, holder.begin():
                # The first to ask wait here, each with a connection; the others wait for a connection.
                await holder.execute(text("LOCK TABLE users IN ACCESS EXCLUSIVE MODE"))
                answers = await asyncio.gather(*(timed(wire, person) for wire in wires))
            released = time.monotonic()
            await until(lambda: _me(api.url, person), within_s=5)
            recovered_s = time.monotonic() - released
            wires = [await Wire.open(api.url) for _ in range(AFTERWARDS)]
            afterwards = await asyncio.gather(*(timed(wire, person) for wire in wires))
    for answer, took_s in answers:
        assert (answer.status, answer.json()["code"]) == (503, "UNAVAILABLE")
        assert int(answer.headers["retry-after"]) >= 1
        assert took_s < WITHIN_S
    assert {answer.status for answer, _ in afterwards} == {200}
    slowest = max(took for _, took in answers)
    log.info("slowest 503 %.2f s, %s, recovered after %.2f s", slowest, probe.told, recovered_s)
    probe.check()


#: How long the longest garbage collection holds up everything, in seconds.
_PAUSE = """
import gc, time
from api.app import create_app
from api.cli.serving import without_pauses
from models.kit.settings import Settings
app = without_pauses(create_app(Settings(secret_key="unused " * 8)))
began = time.perf_counter()
gc.collect()
print(time.perf_counter() - began)
"""


def test_a_full_garbage_collection_does_not_hold_up_health() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", _PAUSE], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert float(printed) < 0.05


async def timed(wire: Wire, person: Person) -> tuple[Answer, float]:
    began = time.perf_counter()
    answer = await wire.ask("GET", "/api/v1/auth/me", person.headers)
    return answer, time.perf_counter() - began


async def _me(url: str, person: Person) -> bool:
    return (await ask(url, "GET", "/api/v1/auth/me", person.headers)).status == 200
