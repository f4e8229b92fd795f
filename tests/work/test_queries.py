"""The lists of work: filters, order, pages, and what they cost."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from sqlalchemy import text

from api.work_orders import Sort, StatusToFind
from models.kit.database import Database
from models.kit.ids import UUID, new_id
from models.work.queries import OFFERED, SORTS
from models.work.rules import WorkOrderStatus
from tests.factories.desk import KINDS, Desk, field_errors
from tests.factories.statements import Statements


def test_the_filters_offered_are_the_ones_in_the_rules() -> None:
    assert set(get_args(StatusToFind)) == {status.value for status in WorkOrderStatus} | {OFFERED}
    assert set(get_args(Sort)) == set(SORTS)


async def references(desk: Desk, path: str = "/work-orders", **query: Any) -> list[str]:
    answer = await desk.get(path, **query)
    assert answer.status_code == 200, answer.text
    return [row["reference"] for row in answer.json()["data"]]


async def test_the_board_shows_every_kind_newest_first(desk: Desk) -> None:
    made = [await desk.create(path) for path in KINDS]
    board = (await desk.get("/work-orders")).json()
    assert (board["total"], board["page"], board["limit"], board["totalPages"]) == (4, 1, 20, 1)
    for row, created in zip(board["data"], reversed(made), strict=True):
        assert row == {name: value for name, value in created.items() if name not in ("offers", "events")}
    for path, created in zip(KINDS, made, strict=True):
        assert await references(desk, f"/{path}") == [created["reference"]]
        assert await references(desk, kind=path[:-1]) == [created["reference"]]
        assert await references(desk, f"/{path}", kind="job") == [created["reference"]]


async def test_the_lists_are_filtered_and_searched(desk: Desk) -> None:
    (driver,) = await desk.world.line(1)
    offered = await desk.create("enrollments", premise_id="PREM_7%", address="1 Birch Ave")
    await desk.offered(offered["id"])
    waiting = await desk.create("enrollments", premise_id="PREM-8", address="2 Cedar Ave", priority=8)
    held = await desk.create("jobs", dispatch="manual", address="3 Birch Ave", priority=2)
    busy = await desk.world.driver()
    await desk.post(f"/jobs/{held['id']}/assign", driver_id=str(busy.driver_id), mode="force")
    names = {work["reference"]: name for work, name in ((offered, "offered"), (waiting, "waiting"), (held, "held"))}

    async def found(path: str = "/work-orders", **query: Any) -> list[str]:
        return [names[reference] for reference in await references(desk, path, **query)]

    assert await found() == ["held", "waiting", "offered"]
    assert await found(status="pending") == ["waiting", "offered"]
    assert await found(status="offered") == ["offered"]
    assert await found(status="assigned") == ["held"]
    assert await found("/jobs", status="pending") == []
    assert await found(driver_id=str(busy.driver_id)) == ["held"]
    assert await found(driver_id=str(driver.driver_id)) == []
    assert await found(q="birch") == ["held", "offered"]
    assert await found("/enrollments", q="birch") == ["offered"]
    assert await found(q="prem_7%") == ["offered"]
    assert await found(q="%") == ["offered"]
    assert await found(q=waiting["reference"].lower()) == ["waiting"]
    assert await found(q="nowhere") == []
    assert await found(q="") == ["held", "waiting", "offered"]
    assert await found(sort="created_at") == ["offered", "waiting", "held"]
    assert await found(sort="-priority") == ["waiting", "offered", "held"]
    assert await found(sort="priority") == ["held", "offered", "waiting"]
    assert await found(sort="reference") == ["offered", "waiting", "held"]
    at = waiting["created_at"]
    assert await found(**{"from": at}) == ["held", "waiting"]
    assert await found(to=at) == ["offered"]
    assert await found(**{"from": at, "to": at}) == []
    assert await found(limit=1, page=2) == ["waiting"]
    assert await found(page=1_000_000, limit=100) == []


async def test_work_to_be_done_now_comes_after_what_has_a_time(desk: Desk) -> None:
    now = await desk.create("enrollments")
    late = await desk.create("enrollments", scheduled_for="2031-02-01T00:00:00+02:00")
    soon = await desk.create("enrollments", scheduled_for="2031-01-31T23:00:00+02:00")
    expected = [work["reference"] for work in (soon, late, now)]
    assert await references(desk, sort="scheduled_for") == expected


@pytest.mark.parametrize("path", ["work-orders", *KINDS])
async def test_bad_filters_name_the_parameter(desk: Desk, path: str) -> None:
    for name, value in (
        ("status", "lost"),
        ("driver_id", "someone"),
        ("q", "x" * 121),
        ("from", "yesterday"),
        ("from", "0001-01-01T00:00:00+14:00"),
        ("to", "9999-12-31T23:59:59-14:00"),
        ("sort", "address"),
        ("page", "0"),
        ("page", str(10**20)),
        ("limit", "101"),
        ("limit", "all"),
    ):
        assert field_errors(await desk.get(f"/{path}", **{name: value})) == [name], (name, value)
    assert (await desk.get(f"/{path}", q="a\0b")).status_code == 400
    for broken in ("%FF", "%ED%A0%80", "%"):
        assert (await desk.ask("GET", f"/{path}?q={broken}")).status_code in (200, 400), broken
    assert (await desk.get(f"/{path}/not-an-id")).status_code == 404
    if path == "work-orders":
        assert field_errors(await desk.get("/work-orders", kind="errand")) == ["kind"]


async def test_the_lists_have_the_scope_of_the_caller(desk: Desk) -> None:
    people = desk.world.people
    state = await people.organization("state")
    board = await people.organization("board", parent_id=state)
    above, below = await people.person("state_admin", state), await people.person("dispatcher", board)
    auditor = await people.person("auditor", desk.world.organization_id)
    everywhere = await people.person("super_admin", desk.world.organization_id)
    theirs = await desk.create("enrollments", below)
    ours = await desk.create("enrollments")

    async def seen_by(person: Any) -> set[str]:
        return {row["id"] for row in (await desk.get("/work-orders", person)).json()["data"]}

    assert await seen_by(above) == await seen_by(below) == {theirs["id"]}
    assert await seen_by(auditor) == {ours["id"]}
    assert await seen_by(everywhere) == {theirs["id"], ours["id"]}
    answer = await desk.post(f"/enrollments/{theirs['id']}/cancel", above)
    assert (answer.status_code, answer.json()["organization_id"]) == (200, str(board))


async def test_a_page_costs_two_queries_and_a_detail_three(desk: Desk, database: Database) -> None:
    await desk.world.line(2)
    customer = await desk.world.people.person("customer", desk.world.organization_id)
    made = [await desk.create(path) for path in KINDS for _ in range(3)]
    for work_order in made:
        await desk.world.advance(UUID(work_order["id"]))
    await desk.create("jobs", customer)
    statements = Statements(database)

    async def cost(path: str, by: Any = None, **query: Any) -> int:
        statements.clear()
        answer = await desk.get(path, by, **query)
        assert answer.status_code == 200, answer.text
        return len(statements)

    for path in ("/work-orders", *(f"/{kind}" for kind in KINDS)):
        for query in ({}, {"limit": 1}, {"limit": 100, "q": "elm", "status": "offered"}):
            assert await cost(path, **query) == 2, (path, query)
    assert await cost("/jobs", customer) == 2
    for work_order in made[::3]:
        assert await cost(f"/work-orders/{work_order['id']}") == 3


async def test_reading_one_uses_its_indexes(desk: Desk, database: Database) -> None:
    """Work of a customer is found by theirs, however many others there are."""
    customer = await desk.world.people.person("customer", desk.world.organization_id)
    made = await desk.create("jobs", customer)
    statements = Statements(database)
    await desk.get(f"/jobs/{made['id']}", customer)
    statement, values = statements[0]
    assert "work_orders" in statement
    async with database.engine.connect() as connection:
        await connection.execute(text("SET enable_seqscan = off"))
        plan = (await connection.exec_driver_sql(f"EXPLAIN {statement}", tuple(values))).scalars().all()
    assert not [line for line in plan if "Seq Scan" in line], "\n".join(plan)
    assert (await desk.get(f"/jobs/{new_id()}", customer)).status_code == 404
