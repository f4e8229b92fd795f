"""A host's clock is wrong by ten minutes: Postgres's clock and Temporal's timers decide, so that nothing is early, late
or out of order, and people stay signed in."""

from __future__ import annotations

import asyncio
import json
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import httpx
import pytest

from api.cli.services import EmbeddedTemporal
from models.kit.database import Database
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from models.policies.rules import OnTimeout
from models.work.rules import WorkKind
from models.work.wakes import workflow_id
from tests.degraded.processes import Fairlead, up
from tests.degraded.skew import clocks, skewed
from tests.factories import invariants
from tests.factories.people import PASSWORD
from tests.factories.work import World
from tests.factories.workers import until
from workflows.client import connect

pytestmark = pytest.mark.anyio

TEN_MINUTES: Final = 600
TTL_S: Final = 4
#: How late an offer may end on a busy machine, beside a timer that aims 50 ms past the instant.
LATE_S: Final = 2.0

BOTH_WAYS: Final = pytest.mark.parametrize("off_s", [TEN_MINUTES, -TEN_MINUTES], ids=["ahead", "behind"])


@BOTH_WAYS
def test_the_skew_reaches_python_and_compiled_code(off_s: int) -> None:
    python, compiled = clocks({**os.environ, **skewed(off_s)})
    assert python - time.time() == pytest.approx(off_s, abs=30)
    assert compiled - time.time() == pytest.approx(off_s, abs=30)


@BOTH_WAYS
async def test_a_worker_offers_and_expires_by_the_databases_clock(
    off_s: int, database: Database, database_url: str, stoppable_temporal: EmbeddedTemporal, tmp_path: Path
) -> None:
    world = await World.make(database)
    await world.policy(WorkKind.ENROLLMENT, offer_ttl_s=TTL_S, offer_ttl_max_s=TTL_S, on_timeout=OnTimeout.NEXT)
    line = await world.line(4)
    names = {driver.driver_id: driver for driver in line}
    worker = Fairlead(
        "worker", tmp_path / "worker.log", database_url=database_url, temporal=stoppable_temporal.address,
        **skewed(off_s),
    )  # fmt: skip
    async with up(worker):
        first, second = await world.enrollment(), await world.enrollment()
        await until(lambda: _offers(world, first, 1), within_s=20)
        await until(lambda: _offers(world, second, 1), within_s=20)

        # Neither is answered: each goes on to the next in line, who takes it.
        async def taken_by_the_next(work: UUID) -> None:
            await until(lambda: _offers(world, work, 2), within_s=20)
            offer = await world.pending(work)
            await world.accept(offer.id, names[offer.driver_id])

        await asyncio.gather(taken_by_the_next(first), taken_by_the_next(second))
        settings = Settings(temporal_address=stoppable_temporal.address, secret_key=DEVELOPMENT_SECRET, dev_mode=True)
        temporal = await connect(settings)
        for work in (first, second):
            handle = temporal.get_workflow_handle(workflow_id(work))

            async def knows(handle: Any = handle) -> bool:
                return (await handle.query("state"))["status"] == "assigned"

            await until(knows, within_s=20)
        assert off_s == pytest.approx(_off_by_its_log(worker), abs=30)
    offers = [offer for work in (first, second) for offer in await world.offers(work)]
    lapsed = [offer for offer in offers if offer.status == "expired"]
    assert [(offer.driver_id, offer.sequence) for offer in lapsed] == [(line[0].driver_id, 1), (line[1].driver_id, 1)]
    for offer in lapsed:
        late_s = (offer.responded_at - offer.expires_at).total_seconds()
        assert 0 <= late_s < LATE_S
        assert (offer.expires_at - offer.offered_at).total_seconds() == TTL_S
    taken = [offer.driver_id for offer in offers if offer.status == "accepted"]
    assert taken == [line[2].driver_id, line[3].driver_id]
    assert await invariants.check_decisions(database) == 4
    await invariants.check(database)


async def _offers(world: World, work: Any, count: int) -> bool:
    return len(await world.offers(work)) >= count


def _off_by_its_log(process: Fairlead) -> float:
    """How far the instants in the process's own log are from those at which its log was last written."""
    last = json.loads(process.child.output().strip().splitlines()[-1])
    logged = datetime.fromisoformat(last["timestamp"]).timestamp()
    return logged - process.child.log.stat().st_mtime


async def test_tokens_are_good_on_every_side_of_a_skew(
    database: Database, database_url: str, temporal_address: str, tmp_path: Path
) -> None:
    world = await World.make(database)
    person = await world.people.person("dispatcher", world.organization_id, password=PASSWORD)
    options: dict[str, Any] = {"database_url": database_url, "temporal": temporal_address}
    right = Fairlead("api", tmp_path / "right.log", **options)
    ahead = Fairlead("api", tmp_path / "ahead.log", **options, **skewed(TEN_MINUTES))
    behind = Fairlead("api", tmp_path / "behind.log", **options, **skewed(-TEN_MINUTES))
    async with up(right, ahead, behind), httpx.AsyncClient(timeout=10) as client:
        signed_in = {"email": person.email, "password": PASSWORD}
        # Signed in through a host that is right by its clock, ahead or behind, and used at any: five minutes of a
        # token's fifteen are left between the furthest two that agree with the right one.
        for issuer, verifiers in ((right, (right, ahead, behind)), (ahead, (right, ahead)), (behind, (right, behind))):
            answer = await client.post(f"{issuer.url}/api/v1/auth/login", json=signed_in)
            assert answer.status_code == 200, answer.text
            for verifier in verifiers:
                tokens = answer.json()
                headers = {"Authorization": f"Bearer {tokens['access_token']}"}
                me = await client.get(f"{verifier.url}/api/v1/auth/me", headers=headers)
                assert me.status_code == 200, (issuer.child.log, verifier.child.log)
            for verifier in (right, ahead, behind):
                # Refresh tokens live by the database's clock.
                token = {"refresh_token": answer.json()["refresh_token"]}
                answer = await client.post(f"{verifier.url}/api/v1/auth/refresh", json=token)
                assert answer.status_code == 200, answer.text
        body = {"premise_id": "P-1", "timeslot": "08:00"}
        for api in (ahead, right, behind):
            made = await client.post(f"{api.url}/api/v1/enrollments", json=body, headers=person.headers)
            assert made.status_code == 201, made.text
        # In the order in which they were made, whatever the clock of their maker.
        listed = await client.get(f"{right.url}/api/v1/work-orders?sort=created_at", headers=person.headers)
        references = [work["reference"] for work in listed.json()["data"]]
        assert references == sorted(references)
        assert _off_by_its_log(ahead) == pytest.approx(TEN_MINUTES, abs=30)
        assert _off_by_its_log(behind) == pytest.approx(-TEN_MINUTES, abs=30)
    await invariants.check(database)
