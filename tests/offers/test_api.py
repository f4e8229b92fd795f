"""Offers over HTTP: who sees them, why they were made, and what every answer is answered with."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from models.kit.database import Database
from models.kit.ids import new_id
from models.work.commands import cancel
from models.work.creating import Point
from tests.factories.people import People, Person
from tests.factories.statements import Statements
from tests.factories.work import World

OFFERS = "/api/v1/offers"


@pytest.fixture
async def world(database: Database) -> World:
    return await World.make(database)


async def read(client: httpx.AsyncClient, by: Person, path: str = "", **query: Any) -> httpx.Response:
    return await client.get(f"{OFFERS}{path}", headers=by.headers, params=query)


async def answer(
    client: httpx.AsyncClient, by: Person, offer_id: UUID, word: str, body: dict[str, Any] | None = None
) -> httpx.Response:
    return await client.post(f"{OFFERS}/{offer_id}/{word}", headers=by.headers, json=body)


async def offered(world: World) -> UUID:
    """The offer of a new enrollment to whoever is first in line."""
    work = await world.enrollment()
    await world.advance(work)
    offer_id: UUID = (await world.pending(work)).id
    return offer_id


async def call_off(world: World, offer_id: UUID) -> None:
    work = await world.one("SELECT work_order_id AS id FROM offers WHERE id = :id", id=offer_id)
    async with world.database.transaction() as session:
        await cancel(session, work.id, "the customer called it off")


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


async def test_an_accept_answers_with_the_offer_as_it_then_is(client: httpx.AsyncClient, world: World) -> None:
    driver = await world.driver(waited_h=1)
    work = await world.job()
    await world.advance(work)
    offer = await world.pending(work)
    response = await client.post(f"{OFFERS}/{offer.id}/accept", headers=driver.headers)
    assert response.status_code == 200, response.text
    shown = response.json()
    row = await world.work_order(work)
    accepted = (await world.offers(work))[0]
    assert set(shown) == {
        "id", "work_order_id", "work_order", "driver_id", "status", "reason", "mode", "exclusive", "round", "sequence",
        "offered_at", "expires_at", "responded_at", "reject_reason",
    }  # fmt: skip
    assert shown["work_order"] == {
        "kind": "job",
        "reference": row.reference,
        "address": "1 Elm",
        "location": {"lat": 42.36, "lng": -71.06},
        "status": "assigned",
    }
    assert (shown["status"], shown["reason"], shown["mode"]) == ("accepted", None, "sequential")
    assert (shown["exclusive"], shown["round"], shown["sequence"]) == (True, 1, 1)
    assert shown["responded_at"] is not None
    assert (row.assigned_driver_id, accepted.status) == (driver.driver_id, "accepted")
    # Once more, now with an empty object: the same answer.
    again = await answer(client, driver, offer.id, "accept", {})
    assert (again.status_code, again.json()) == (200, shown)


async def test_an_accept_costs_one_statement_more_than_its_command(
    client: httpx.AsyncClient, world: World, database: Database
) -> None:
    driver = await world.driver()
    # The first accept of a process also learns the policy.
    await world.accept(await offered(world), driver)
    statements = Statements(database)
    other = await world.driver()
    offer_id = await offered(world)
    statements.clear()
    await world.accept(offer_id, other)
    command = len(statements)
    another = await world.driver()
    offer_id = await offered(world)
    statements.clear()
    assert (await answer(client, another, offer_id, "accept")).status_code == 200
    assert len(statements) == command + 1


async def test_a_reject_keeps_the_drivers_words_and_passes_the_work_on(client: httpx.AsyncClient, world: World) -> None:
    first, second = await world.line(2)
    work = await world.enrollment()
    await world.advance(work)
    offer = await world.pending(work)
    response = await answer(client, first, offer.id, "reject", {"reason": "too far"})
    assert response.status_code == 200, response.text
    shown = response.json()
    assert (shown["status"], shown["reject_reason"]) == ("rejected", "too far")
    assert shown["work_order"]["status"] == "pending"
    repeated = await client.post(f"{OFFERS}/{offer.id}/reject", headers=first.headers)
    assert (repeated.status_code, repeated.json()) == (200, shown)
    await world.advance(work)
    assert (await world.pending(work)).driver_id == second.driver_id


async def test_every_answer_that_comes_too_late_has_its_code(client: httpx.AsyncClient, world: World) -> None:
    driver, other = await world.line(2)
    accepted = await offered(world)
    assert refusal(await answer(client, other, accepted, "accept")) == (404, "NOT_FOUND")
    assert refusal(await answer(client, other, accepted, "reject")) == (404, "NOT_FOUND")
    assert (await answer(client, driver, accepted, "accept")).status_code == 200
    assert refusal(await answer(client, driver, accepted, "reject")) == (409, "OFFER_ALREADY_ACCEPTED")

    rejected = await offered(world)
    assert (await answer(client, other, rejected, "reject")).status_code == 200
    assert refusal(await answer(client, other, rejected, "accept")) == (409, "OFFER_ALREADY_REJECTED")
    await call_off(world, rejected)

    third = await world.driver()
    cancelled = await offered(world)
    await call_off(world, cancelled)
    assert refusal(await answer(client, third, cancelled, "accept")) == (409, "WORK_ORDER_CANCELLED")

    late = await offered(world)
    await world.pass_time(301)
    assert refusal(await answer(client, third, late, "accept")) == (409, "OFFER_EXPIRED")
    assert refusal(await answer(client, third, late, "reject")) == (409, "OFFER_EXPIRED")


async def test_of_a_broadcast_the_first_gets_the_work_and_may_take_no_second(
    client: httpx.AsyncClient, world: World
) -> None:
    first, second = await world.line(2)
    one, two = await world.order(), await world.order()
    offers: dict[tuple[UUID, UUID], UUID] = {}
    for work in (one, two):
        await world.advance(work)
        offers |= {(work, offer.driver_id): offer.id for offer in await world.offers(work)}
    assert (await answer(client, first, offers[one, first.driver_id], "accept")).status_code == 200
    taken = await answer(client, second, offers[one, second.driver_id], "accept")
    assert refusal(taken) == (409, "OFFER_TAKEN")
    busy = await answer(client, first, offers[two, first.driver_id], "accept")
    assert refusal(busy) == (409, "DRIVER_BUSY")


@pytest.mark.parametrize(
    ("word", "body", "field"),
    [
        ("accept", {"driver_id": str(new_id())}, "driver_id"),
        ("reject", {"reason": "x" * 501}, "reason"),
        ("reject", {"reason": 7}, "reason"),
        ("reject", {"why": "far"}, "why"),
    ],
)
async def test_a_bad_answer_names_the_field(
    client: httpx.AsyncClient, world: World, word: str, body: dict[str, Any], field: str
) -> None:
    driver = await world.driver()
    response = await answer(client, driver, await offered(world), word, body)
    assert refusal(response) == (400, "VALIDATION_FAILED")
    assert list(response.json()["details"]["fieldErrors"]) == [field]


async def test_only_drivers_answer_offers(client: httpx.AsyncClient, world: World) -> None:
    await world.driver()
    offer_id = await offered(world)
    assert refusal(await answer(client, world.dispatcher, offer_id, "accept")) == (403, "FORBIDDEN")
    assert refusal(await answer(client, world.dispatcher, offer_id, "reject")) == (403, "FORBIDDEN")


async def test_staff_see_all_offers_and_a_driver_their_own(
    client: httpx.AsyncClient, world: World, people: People
) -> None:
    first, second = await world.line(2)
    rejected = await offered(world)
    await world.reject(rejected, first)
    work = (await world.one("SELECT work_order_id FROM offers")).work_order_id
    await world.advance(work)
    open_ = (await world.pending(work)).id

    def ids(response: httpx.Response) -> list[str]:
        assert response.status_code == 200, response.text
        assert response.json()["total"] == len(response.json()["data"])
        return [offer["id"] for offer in response.json()["data"]]

    newest, oldest = str(open_), str(rejected)
    assert ids(await read(client, world.dispatcher)) == [newest, oldest]
    assert ids(await read(client, world.dispatcher, status="rejected")) == [oldest]
    assert ids(await read(client, world.dispatcher, driver_id=str(second.driver_id))) == [newest]
    assert ids(await read(client, world.dispatcher, work_order_id=str(work))) == [newest, oldest]
    assert ids(await read(client, world.dispatcher, work_order_id=str(new_id()))) == []
    assert ids(await read(client, first)) == [oldest]
    assert ids(await read(client, first, driver_id=str(second.driver_id))) == []
    assert (await read(client, first, f"/{rejected}")).json()["id"] == oldest

    stranger = await people.person("dispatcher", await people.organization())
    assert ids(await read(client, stranger)) == []
    for path in (f"/{open_}", f"/{open_}/explanation"):
        assert (await read(client, world.dispatcher, path)).status_code == 200
        assert (await read(client, second, path)).status_code == 200
        assert refusal(await read(client, first, path)) == (404, "NOT_FOUND")
        assert refusal(await read(client, stranger, path)) == (404, "NOT_FOUND")
    customer = await people.person("customer", world.organization_id)
    assert refusal(await read(client, customer)) == (403, "FORBIDDEN")
    assert refusal(await read(client, world.dispatcher, status="lost")) == (400, "VALIDATION_FAILED")
    assert refusal(await read(client, world.dispatcher, cursor="?")) == (400, "VALIDATION_FAILED")


async def test_following_the_cursor_misses_and_repeats_nothing(client: httpx.AsyncClient, world: World) -> None:
    drivers = await world.line(5)
    made = [await offered(world) for _ in drivers]
    page = (await read(client, world.dispatcher, limit=2)).json()
    assert (page["total"], page["totalPages"]) == (5, 3)
    seen = [offer["id"] for offer in page["data"]]
    await world.driver()
    await offered(world)
    while page["nextCursor"]:
        page = (await read(client, world.dispatcher, limit=2, cursor=page["nextCursor"])).json()
        seen += [offer["id"] for offer in page["data"]]
    assert seen == [str(offer_id) for offer_id in reversed(made)]


async def test_the_explanation_says_what_the_decision_was_made_from(client: httpx.AsyncClient, world: World) -> None:
    await world.driver(waited_h=1)
    longest = await world.driver(waited_h=3.2)
    await world.driver(waited_h=2)
    on_a_job = await world.driver(waited_h=5, at=Point(42.361, -71.06))
    await world.driver(waited_h=9, at=None)
    await world.driver(waited_h=9, status="break")
    force = f"/api/v1/work-orders/{await world.job()}/assign"
    forced = await client.post(
        force, headers=world.dispatcher.headers, json={"driver_id": str(on_a_job.driver_id), "mode": "force"}
    )
    assert forced.status_code == 200, forced.text
    work = await world.job(Point(42.37, -71.06))
    await world.advance(work)
    offer = await world.pending(work)
    assert offer.driver_id == longest.driver_id

    explained = (await read(client, longest, f"/{offer.id}/explanation")).json()
    assert explained == (await read(client, world.dispatcher, f"/{offer.id}/explanation")).json()
    assert set(explained) == {
        "offer_id", "summary", "position", "candidates_considered", "factors", "excluded", "policy_version",
        "rule_version",
    }  # fmt: skip
    assert explained["offer_id"] == str(offer.id)
    # On duty were five; the one on a break was not there to be considered.
    assert (explained["position"], explained["candidates_considered"]) == (1, 5)
    assert sorted((e["reason"], e["count"]) for e in explained["excluded"]) == [("busy", 1), ("silent", 1)]
    assert (explained["policy_version"], explained["rule_version"]) == (1, 1)
    assert "Longest since last assignment: 3 h 12 min" in explained["summary"]
    assert "1 nearer driver was busy" in explained["summary"]
    factors = {factor["name"]: factor for factor in explained["factors"]}
    assert 3.2 * 3600 <= factors["waited_s"]["value"] < 3.2 * 3600 + 60
    assert factors["distance_m"]["value"] == pytest.approx(1_112, abs=5)
    assert (factors["distance_m"]["text"], factors["last_offered_s"]["value"]) == ("1.1 km away", None)
    assert factors["active_count"]["value"] == 0

    # The second in line gets the work next, for what the second decision says and not the first.
    await world.reject(offer.id, longest)
    await world.advance(work)
    following = (await read(client, world.dispatcher, f"/{(await world.pending(work)).id}/explanation")).json()
    assert "2 h" in following["summary"]
    assert ("rejected", 1) in [(e["reason"], e["count"]) for e in following["excluded"]]


async def test_a_driver_whom_a_person_named_is_told_so(client: httpx.AsyncClient, world: World) -> None:
    driver = await world.driver()
    route = await world.route(driver)
    await world.advance(route)
    offer = await world.pending(route)
    explained = (await read(client, driver, f"/{offer.id}/explanation")).json()
    assert (explained["position"], explained["candidates_considered"], explained["factors"]) == (None, 0, [])
    assert "by name" in explained["summary"]


async def test_a_decision_beyond_its_retention_is_explained_as_such(client: httpx.AsyncClient, world: World) -> None:
    driver = await world.driver()
    offer_id = await offered(world)
    async with world.database.transaction() as session:
        await session.run(text("UPDATE decisions SET header = NULL, candidates = NULL, salts = NULL"))
    explained = (await read(client, driver, f"/{offer_id}/explanation")).json()
    assert "no longer kept" in explained["summary"]
    assert (explained["policy_version"], explained["position"]) == (None, None)
