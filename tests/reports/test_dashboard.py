"""The board's figures and the fairness report, counted on real rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import httpx
import pytest
from sqlalchemy import text

from models.kit.database import Database
from models.work.commands import cancel, complete
from models.work.commands import report_status as report
from models.work.rules import WorkOrderStatus
from tests.factories.people import People, Person
from tests.factories.statements import Statements
from tests.factories.work import World

DASHBOARD = "/api/v1/dashboard"
REPORT = "/api/v1/reports/fairness"
NOTHING = {
    "work_orders": {
        "pending": 0, "offered": 0, "assigned": 0, "in_progress": 0, "completed_today": 0, "cancelled_today": 0,
    },
    "drivers": {"available": 0, "busy": 0, "unavailable": 0},
    "pending_offers": 0,
    "oldest_waiting_s": None,
}  # fmt: skip


@pytest.fixture
async def world(database: Database) -> World:
    return await World.make(database)


async def figures(client: httpx.AsyncClient, by: Person) -> dict[str, Any]:
    response = await client.get(DASHBOARD, headers=by.headers)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def fairness(client: httpx.AsyncClient, by: Person, **query: Any) -> dict[str, Any]:
    response = await client.get(REPORT, headers=by.headers, params=query)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def taken(world: World, driver: Person, *steps: str) -> UUID:
    """An enrollment that `driver`, whom no one precedes, has accepted and brought so far."""
    work = await world.enrollment()
    await world.advance(work)
    await world.accept((await world.pending(work)).id, driver)
    for step in steps:
        async with world.database.transaction() as session:
            await report(session, work, driver.driver_id, WorkOrderStatus(step))
    return work


async def cancelled(world: World, work: UUID) -> None:
    async with world.database.transaction() as session:
        await cancel(session, work, None)


async def test_an_empty_board_is_all_zeros(client: httpx.AsyncClient, world: World) -> None:
    assert await figures(client, world.dispatcher) == NOTHING


async def test_every_work_order_and_driver_is_counted_once(
    client: httpx.AsyncClient, world: World, people: People
) -> None:
    await cancelled(world, await world.enrollment())
    await taken(world, await world.driver(), "completed")
    for steps in ((), ("en_route",), ("en_route", "arrived"), ("en_route", "arrived", "in_progress")):
        await taken(world, await world.driver(), *steps)
    await world.set_status(await world.driver(), "break")
    await world.driver(status="offline")
    # The one who completed is free again, and goes where no work can follow.
    async with world.database.transaction() as session:
        await session.run(text("UPDATE driver_dispatch SET duty = 'break' WHERE duty = 'on' AND active_count = 0"))
    # Nobody can do the first, one is asked for the second, and two at once for the third.
    await world.job(required_skills=("crane",))
    await world.pass_time(600)
    asked = await world.driver()
    enrollment = await world.enrollment()
    await world.advance(enrollment)
    for _ in range(2):
        await world.driver()
    order = await world.order()
    await world.advance(order)

    found = await figures(client, world.dispatcher)
    assert found["work_orders"] == {
        "pending": 1, "offered": 2, "assigned": 2, "in_progress": 2, "completed_today": 1, "cancelled_today": 1,
    }  # fmt: skip
    assert found["drivers"] == {"available": 3, "busy": 4, "unavailable": 3}
    assert found["pending_offers"] == 3
    assert 600 <= found["oldest_waiting_s"] < 630
    assert (await world.pending(enrollment)).driver_id == asked.driver_id

    stranger = await people.person("dispatcher", await people.organization())
    assert await figures(client, stranger) == NOTHING
    for role in ("driver", "customer"):
        outsider = await people.person(role, world.organization_id)
        for path in (DASHBOARD, REPORT):
            assert (await client.get(path, headers=outsider.headers)).status_code == 403


async def test_a_state_sees_its_boards_together(client: httpx.AsyncClient, people: People, database: Database) -> None:
    state = await people.organization("state")
    admin = await people.person("state_admin", state)
    for _ in range(2):
        board = await people.organization("board", parent_id=state)
        world = World(database, board, await people.person("dispatcher", board))
        driver = await world.driver()
        await world.enrollment()
        own = await figures(client, world.dispatcher)
        assert (own["work_orders"]["pending"], own["drivers"]["available"]) == (1, 1)
        listed = (await fairness(client, world.dispatcher))["drivers"]
        assert [share["driver_id"] for share in listed] == [str(driver.driver_id)]
    both = await figures(client, admin)
    assert (both["work_orders"]["pending"], both["drivers"]["available"]) == (2, 2)
    assert len((await fairness(client, admin))["drivers"]) == 2


@pytest.mark.parametrize("zone", ["UTC", "America/Denver", "Asia/Kathmandu", "Pacific/Kiritimati"])
async def test_today_begins_at_midnight_where_the_organization_is(
    client: httpx.AsyncClient, world: World, zone: str
) -> None:
    work = await taken(world, await world.driver(), "completed")
    midnight = datetime.now(ZoneInfo(zone)).replace(hour=0, minute=0, second=0, microsecond=0)
    counts = []
    for at in (midnight, midnight - timedelta(microseconds=1)):
        async with world.database.transaction() as session:
            await session.run(text("UPDATE organizations SET time_zone = :zone"), {"zone": zone})
            await session.run(text("UPDATE work_orders SET completed_at = :at WHERE id = :id"), {"at": at, "id": work})
        counts.append((await figures(client, world.dispatcher))["work_orders"]["completed_today"])
    assert counts == [1, 0]


async def test_the_board_costs_two_statements_whatever_stands_on_it(
    client: httpx.AsyncClient, world: World, database: Database
) -> None:
    for _ in range(5):
        await world.enrollment()
    statements = Statements(database)
    await figures(client, world.dispatcher)
    assert len(statements) == 2


async def test_the_report_counts_each_drivers_share(client: httpx.AsyncClient, world: World) -> None:
    first, second, third = await world.line(3)
    rejected = await world.enrollment()
    await world.advance(rejected)
    await world.reject((await world.pending(rejected)).id, first)
    await world.advance(rejected)
    await world.accept((await world.pending(rejected)).id, second)
    expired = await world.enrollment()
    await world.advance(expired)
    assert (await world.pending(expired)).driver_id == first.driver_id
    await world.set_status(first, "break")
    # Off since long before the range: was not there to be asked.
    away = await world.driver(status="offline")
    async with world.database.transaction() as session:
        await session.run(
            text("UPDATE driver_dispatch SET duty_since = duty_since - interval '40 days' WHERE driver_id = :id"),
            {"id": away.driver_id},
        )

    report = await fairness(client, world.dispatcher)
    by_driver = {share["driver_id"]: share for share in report["drivers"]}
    columns = ("offered", "accepted", "rejected", "expired", "assignments")
    assert {i: tuple(share[name] for name in columns) for i, share in by_driver.items()} == {
        str(first.driver_id): (2, 0, 1, 1, 0),
        str(second.driver_id): (1, 1, 0, 0, 1),
        str(third.driver_id): (0, 0, 0, 0, 0),
    }
    assert report["jain_index"]["offers"] == pytest.approx(9 / (3 * 5))
    assert report["jain_index"]["assignments"] == pytest.approx(1 / 3)
    shares = by_driver[str(first.driver_id)], by_driver[str(second.driver_id)]
    assert 3 * 3600 <= shares[0]["since_last_assignment_s"] < 3 * 3600 + 60
    assert 0 <= shares[1]["since_last_assignment_s"] < 60
    assert shares[0]["full_name"] == first.caller.name

    # Nothing happened tomorrow, and whoever is on duty may be there; nobody shares out nothing.
    now = datetime.now(UTC)
    later = {"from": (now + timedelta(hours=2)).isoformat(), "to": (now + timedelta(days=1)).isoformat()}
    empty = await fairness(client, world.dispatcher, **later)
    assert {share["driver_id"] for share in empty["drivers"]} == {str(second.driver_id), str(third.driver_id)}
    assert all(share["offered"] == share["assignments"] == 0 for share in empty["drivers"])
    assert empty["jain_index"] == {"offers": None, "assignments": None}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"from": "2026-02-01T00:00:00Z", "to": "2026-02-01T00:00:00Z"}, "from"),
        ({"from": "2026-02-02T00:00:00Z", "to": "2026-02-01T00:00:00Z"}, "from"),
        ({"from": "2024-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "from"),
        ({"from": "yesterday"}, "from"),
        ({"to": "0001-01-01T00:00:00Z"}, "to"),
        ({"to": "9999-12-31T23:59:59-14:00"}, "to"),
    ],
)
async def test_a_range_that_is_none_is_refused(
    client: httpx.AsyncClient, world: World, query: dict[str, str], field: str
) -> None:
    response = await client.get(REPORT, headers=world.dispatcher.headers, params=query)
    assert (response.status_code, response.json()["code"]) == (400, "VALIDATION_FAILED")
    assert list(response.json()["details"]["fieldErrors"]) == [field]


async def test_a_completed_work_order_stays_in_todays_figures_when_staff_complete_it(
    client: httpx.AsyncClient, world: World
) -> None:
    work = await taken(world, await world.driver())
    async with world.database.transaction() as session:
        await complete(session, work)
    assert (await figures(client, world.dispatcher))["work_orders"]["completed_today"] == 1
