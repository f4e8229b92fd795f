"""Drivers over HTTP: the office's list, and everything a driver does for themselves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from uuid import UUID

import httpx
import msgspec
import pytest
from sqlalchemy import text

from api.drivers import OwnStatus
from models.drivers.queries import AVAILABILITY_CONDITIONS, STATUS_CONDITIONS
from models.drivers.rules import DRIVER_MAY_SET, Availability, DriverStatus
from models.kit.database import Database
from models.kit.ids import new_id
from models.work.creating import Point
from models.work.rules import WorkKind
from tests.factories.people import People, Person
from tests.factories.work import HERE, World

DRIVERS = "/api/v1/drivers"
ME = f"{DRIVERS}/me"


@pytest.fixture
async def world(database: Database) -> World:
    return await World.make(database)


async def read(client: httpx.AsyncClient, by: Person, path: str = ME, **query: Any) -> httpx.Response:
    return await client.get(path, headers=by.headers, params=query)


async def report(client: httpx.AsyncClient, by: Person, work: UUID, status: str, **body: Any) -> httpx.Response:
    return await client.patch(f"{ME}/jobs/{work}/status", headers=by.headers, json={"status": status} | body)


async def set_status(client: httpx.AsyncClient, by: Person, status: str) -> httpx.Response:
    return await client.patch(f"{ME}/status", headers=by.headers, json={"status": status})


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


async def taken(world: World, driver: Person, kind: str = "job") -> UUID:
    """New work that `driver` has accepted."""
    work: UUID = await (world.job() if kind == "job" else world.enrollment())
    await world.advance(work)
    await world.accept((await world.pending(work)).id, driver)
    return work


def test_the_statuses_a_driver_may_set_are_the_ones_in_the_rules() -> None:
    assert get_args(OwnStatus) == DRIVER_MAY_SET
    assert set(STATUS_CONDITIONS) == set(DriverStatus)
    assert set(AVAILABILITY_CONDITIONS) == set(Availability)


async def test_a_driver_sees_themselves(client: httpx.AsyncClient, world: World) -> None:
    driver = await world.driver(waited_h=2, skills=["meter"])
    me = (await read(client, driver)).json()
    assert set(me) == {
        "id", "reference", "user_id", "organization_id", "full_name", "status", "availability", "skills",
        "vehicle_type", "service_radius_km", "location", "last_seen_at", "is_online", "last_assigned_at",
        "active_count", "duty_since",
    }  # fmt: skip
    assert (me["id"], me["user_id"]) == (str(driver.driver_id), str(driver.user_id))
    assert (me["status"], me["availability"], me["is_online"]) == ("available", "available", True)
    assert (me["skills"], me["location"]) == (["meter"], {"lat": HERE.lat, "lng": HERE.lng})
    assert (me["active_count"], me["reference"]) == (0, "DR-1001")
    assert me == (await read(client, world.dispatcher, f"{DRIVERS}/{driver.driver_id}")).json()


async def test_only_an_account_with_a_driver_profile_is_a_driver(
    client: httpx.AsyncClient, world: World, people: People
) -> None:
    for path in (ME, f"{ME}/offers/current", f"{ME}/jobs", "/api/v1/orders/feed"):
        assert refusal(await read(client, world.dispatcher, path)) == (403, "FORBIDDEN")
    driver = await world.driver()
    without = msgspec.structs.replace(driver.caller, driver_id=None)
    headers = {"Authorization": f"Bearer {people.tokens.issue(without)}"}
    for path in (ME, f"{ME}/offers/current", f"{ME}/jobs", "/api/v1/orders/feed", "/api/v1/offers"):
        assert refusal(await client.get(path, headers=headers)) == (403, "FORBIDDEN")


async def test_a_driver_comes_and_goes_and_takes_breaks(client: httpx.AsyncClient, world: World) -> None:
    driver = await world.driver(status="offline")
    for word, availability in (("available", "available"), ("break", "unavailable"), ("offline", "unavailable")):
        shown = (await set_status(client, driver, word)).json()
        assert (shown["status"], shown["availability"]) == (word, availability)
        assert shown == (await read(client, driver)).json()
    for word in ("busy", "unavailable", "on_job", ""):
        assert refusal(await set_status(client, driver, word)) == (400, "VALIDATION_FAILED")


async def test_going_on_a_break_gives_up_the_offer_and_keeps_the_work(client: httpx.AsyncClient, world: World) -> None:
    await world.policy(WorkKind.JOB, busy_fallback=True)
    driver = await world.driver()
    held = await taken(world, driver)
    asked = await world.job()
    await world.advance(asked)
    offer = (await read(client, driver, f"{ME}/offers/current")).json()
    assert offer["work_order_id"] == str(asked)
    shown = (await set_status(client, driver, "break")).json()
    assert (shown["status"], shown["availability"], shown["active_count"]) == ("break", "unavailable", 1)
    assert (await read(client, driver, f"{ME}/offers/current")).status_code == 204
    (closed,) = await world.offers(asked)
    assert (closed.status, closed.reason) == ("expired", "driver_unavailable")
    late = await client.post(f"/api/v1/offers/{closed.id}/accept", headers=driver.headers)
    assert refusal(late) == (409, "OFFER_EXPIRED")
    assert [job["id"] for job in (await read(client, driver, f"{ME}/jobs")).json()["data"]] == [str(held)]


async def test_a_heartbeat_says_where_the_driver_is(client: httpx.AsyncClient, world: World) -> None:
    driver = await world.driver(at=None)
    before = (await read(client, driver)).json()
    assert (before["is_online"], before["location"], before["last_seen_at"]) == (False, None, None)
    body = {"location": {"lat": 1.5, "lng": -2.5}, "accuracy_m": 12}
    beat = await client.post(f"{ME}/heartbeat", headers=driver.headers, json=body)
    assert beat.status_code == 200, beat.text
    me = (await read(client, driver)).json()
    assert beat.json() == {"last_seen_at": me["last_seen_at"]}
    assert (me["is_online"], me["location"]) == (True, {"lat": 1.5, "lng": -2.5})
    # One that only says "still here" leaves the place as it was.
    again = await client.post(f"{ME}/heartbeat", headers=driver.headers)
    assert again.json()["last_seen_at"] > beat.json()["last_seen_at"]
    assert (await read(client, driver)).json()["location"] == {"lat": 1.5, "lng": -2.5}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"location": {"lat": 91, "lng": 0}}, "location.lat"),
        ({"location": {"lat": 0, "lng": -180.1}}, "location.lng"),
        ({"location": {"lat": 0}}, "location.lng"),
        ({"location": {"lat": "0", "lng": 0}}, "location.lat"),
        ({"accuracy_m": -1}, "accuracy_m"),
        ({"driver_id": str(new_id())}, "driver_id"),
    ],
)
async def test_a_bad_heartbeat_names_the_field(
    client: httpx.AsyncClient, world: World, body: dict[str, Any], field: str
) -> None:
    driver = await world.driver()
    response = await client.post(f"{ME}/heartbeat", headers=driver.headers, json=body)
    assert refusal(response) == (400, "VALIDATION_FAILED")
    assert list(response.json()["details"]["fieldErrors"]) == [field]


async def test_the_one_offer_to_answer_is_current_and_the_others_are_in_the_feed(
    client: httpx.AsyncClient, world: World
) -> None:
    driver = await world.driver()
    assert (await read(client, driver, f"{ME}/offers/current")).status_code == 204
    assert (await read(client, driver, "/api/v1/orders/feed")).json() == {"data": []}
    # A driver who has an exclusive offer is left out of broadcasts, so the order comes first.
    order, route = await world.order(), await world.route(driver)
    await world.advance(order)
    await world.advance(route)
    enrollment = await world.enrollment()
    await world.advance(enrollment)
    current = await read(client, driver, f"{ME}/offers/current")
    assert (current.status_code, current.json()["work_order_id"]) == (200, str(enrollment))
    feed = (await read(client, driver, "/api/v1/orders/feed")).json()["data"]
    assert {offer["work_order_id"] for offer in feed} == {str(order), str(route)}
    assert {offer["work_order"]["kind"] for offer in feed} == {"order", "route"}
    other = await world.driver()
    assert (await read(client, other, f"{ME}/offers/current")).status_code == 204
    assert (await read(client, other, "/api/v1/orders/feed")).json() == {"data": []}
    # What has run out is not shown, though nobody has closed it yet.
    await world.pass_time(301)
    assert (await read(client, driver, f"{ME}/offers/current")).status_code == 204
    feed = (await read(client, driver, "/api/v1/orders/feed")).json()["data"]
    assert [offer["work_order_id"] for offer in feed] == [str(route)]


async def test_the_work_climbs_its_ladder_step_by_step(client: httpx.AsyncClient, world: World) -> None:
    driver = await world.driver()
    work = await taken(world, driver)
    shown = {"assigned": "assigned", "en_route": "en_route", "arrived": "on_job", "in_progress": "on_job"}
    assert (await read(client, driver)).json()["status"] == "assigned"
    happened = (datetime.now(UTC) - timedelta(minutes=7)).replace(microsecond=0)
    for step in ("en_route", "arrived", "in_progress"):
        response = await report(
            client, driver, work, step, location={"lat": 1, "lng": 2}, occurred_at=happened.isoformat()
        )
        assert response.status_code == 200, response.text
        assert (response.json()["id"], response.json()["status"]) == (str(work), step)
        me = (await read(client, driver)).json()
        assert (me["status"], me["availability"]) == (shown[step], "busy")
    done = await report(client, driver, work, "completed", notes="swept", completion_photo_key="uploads/1.jpg")
    assert done.status_code == 200, done.text
    assert (done.json()["completion_notes"], done.json()["completion_photo_key"]) == ("swept", "uploads/1.jpg")
    assert done.json()["assigned_driver_id"] == str(driver.driver_id)
    assert (await read(client, driver)).json()["status"] == "available"
    event = await world.one("SELECT * FROM work_order_events WHERE new_status = 'arrived'")
    assert (event.lat, event.lng, event.occurred_at) == (1, 2, happened)
    assert event.changed_by_user_id == driver.user_id


async def test_a_step_out_of_order_is_refused_with_what_is_allowed(client: httpx.AsyncClient, world: World) -> None:
    driver = await world.driver()
    work = await taken(world, driver)
    for step in ("assigned", "arrived", "in_progress", "completed", "pending", "cancelled", "expired", "disputed"):
        refused = await report(client, driver, work, step)
        assert refusal(refused) == (409, "ILLEGAL_TRANSITION"), step
        details = refused.json()["details"]
        assert (details["from"], details["to"]) == ("assigned", step)
        assert details["allowed"] == ["en_route", "pending", "cancelled"]
    for step in ("en_route", "arrived", "in_progress", "completed"):
        assert (await report(client, driver, work, step)).status_code == 200
        repeated = await report(client, driver, work, step)
        assert refusal(repeated) == (409, "ILLEGAL_TRANSITION")
    assert refusal(await report(client, driver, work, "flying")) == (400, "VALIDATION_FAILED")


async def test_an_enrollment_may_be_completed_at_once(client: httpx.AsyncClient, world: World) -> None:
    driver = await world.driver()
    work = await taken(world, driver, "enrollment")
    done = await report(client, driver, work, "completed")
    assert (done.status_code, done.json()["premise_id"]) == (200, "P-1")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"notes": "x" * 2001}, "notes"),
        ({"location": {"lat": -91, "lng": 0}}, "location.lat"),
        ({"completion_photo_key": "uploads/1.jpg"}, "completion_photo_key"),
        ({"occurred_at": "2026-01-01T08:00:00"}, "occurred_at"),
        ({"occurred_at": "0001-01-01T00:00:00+14:00"}, "occurred_at"),
        ({"occurred_at": "9999-12-31T23:59:59-14:00"}, "occurred_at"),
        ({"assigned_driver_id": str(new_id())}, "assigned_driver_id"),
    ],
)
async def test_a_bad_report_names_the_field(
    client: httpx.AsyncClient, world: World, body: dict[str, Any], field: str
) -> None:
    driver = await world.driver()
    response = await report(client, driver, await taken(world, driver), "en_route", **body)
    assert refusal(response) == (400, "VALIDATION_FAILED")
    assert list(response.json()["details"]["fieldErrors"]) == [field]


async def test_nobody_reports_on_or_hands_back_anothers_work(
    client: httpx.AsyncClient, world: World, people: People
) -> None:
    driver = await world.driver()
    work = await taken(world, driver)
    other = await world.driver()
    stranger = await people.person("driver", await people.organization())
    for somebody in (other, stranger):
        assert refusal(await report(client, somebody, work, "en_route")) == (404, "NOT_FOUND")
        back = await client.post(f"{ME}/jobs/{work}/hand-back", headers=somebody.headers, json={"reason": "mine?"})
        assert refusal(back) == (404, "NOT_FOUND")
    assert refusal(await report(client, world.dispatcher, work, "en_route")) == (403, "FORBIDDEN")
    assert refusal(await report(client, driver, new_id(), "en_route")) == (404, "NOT_FOUND")


async def test_handed_back_work_goes_to_another_driver(client: httpx.AsyncClient, world: World) -> None:
    first, second = await world.line(2)
    work = await taken(world, first)
    url = f"{ME}/jobs/{work}/hand-back"
    for reason in ("", " ", None):
        unsaid = await client.post(url, headers=first.headers, json={"reason": reason})
        assert refusal(unsaid) == (400, "VALIDATION_FAILED")
    response = await client.post(url, headers=first.headers, json={"reason": "the van broke down"})
    assert response.status_code == 200, response.text
    assert (response.json()["status"], response.json()["assigned_driver_id"]) == ("pending", None)
    assert (await read(client, first)).json()["active_count"] == 0
    await world.advance(work)
    offer = await world.pending(work)
    assert (offer.driver_id, offer.round) == (second.driver_id, 2)
    again = await client.post(url, headers=first.headers, json={"reason": "again"})
    assert refusal(again) == (404, "NOT_FOUND")
    await world.accept(offer.id, second)
    for step in ("en_route", "arrived"):
        await report(client, second, work, step)
    too_late = await client.post(url, headers=second.headers, json={"reason": "too icy"})
    assert refusal(too_late) == (409, "ILLEGAL_TRANSITION")


async def test_a_driver_lists_the_work_they_hold_and_held(client: httpx.AsyncClient, world: World) -> None:
    driver = await world.driver()
    done = await taken(world, driver, "enrollment")
    await report(client, driver, done, "completed")
    held = await taken(world, driver)
    other = await world.driver()
    await taken(world, other, "enrollment")

    async def ids(**query: Any) -> list[str]:
        page = (await read(client, driver, f"{ME}/jobs", **query)).json()
        assert page["total"] == len(page["data"])
        return [job["id"] for job in page["data"]]

    assert await ids() == await ids(status="active") == [str(held)]
    assert await ids(status="ended") == [str(done)]
    assert await ids(status="all") == [str(held), str(done)]
    page = (await read(client, driver, f"{ME}/jobs", status="all", limit=1, page=2)).json()
    assert ([job["id"] for job in page["data"]], page["total"]) == ([str(done)], 2)
    assert refusal(await read(client, driver, f"{ME}/jobs", status="lost")) == (400, "VALIDATION_FAILED")


async def test_staff_find_drivers_by_status_availability_life_and_name(
    client: httpx.AsyncClient, world: World, people: People
) -> None:
    names: dict[str, Person] = {}
    for name in ("free", "away", "gone", "flagged"):
        names[name] = await world.driver(status={"away": "break", "gone": "offline"}.get(name, "available"), at=None)
    await client.patch(
        f"/api/v1/users/{names['flagged'].user_id}/status", headers=world.dispatcher.headers, json={"status": "busy"}
    )
    for name, steps in (
        ("has_work", ()),
        ("driving", ("en_route",)),
        ("there", ("en_route", "arrived")),
        ("working", ("en_route", "arrived", "in_progress")),
    ):
        # Only they are within reach of the work, which is asked for by place.
        far = Point(10 + len(names), 20)
        names[name] = await world.driver(at=far)
        work = await world.job(far)
        await world.advance(work)
        await world.accept((await world.pending(work)).id, names[name])
        for step in steps:
            assert (await report(client, names[name], work, step)).status_code == 200
    by_id = {str(person.driver_id): name for name, person in names.items()}

    async def found(**query: Any) -> set[str]:
        page = (await read(client, world.dispatcher, DRIVERS, limit=50, **query)).json()
        assert page["total"] == len(page["data"])
        for driver in page["data"]:
            assert all(driver[key] == value for key, value in query.items() if key in ("status", "availability"))
        return {by_id[driver["id"]] for driver in page["data"]}

    assert await found() == set(names)
    assert await found(status="available") == {"free"}
    assert await found(status="break") == {"away"}
    assert await found(status="offline") == {"gone"}
    assert await found(status="assigned") == {"flagged", "has_work"}
    assert await found(status="en_route") == {"driving"}
    assert await found(status="on_job") == {"there", "working"}
    busy = {"flagged", "has_work", "driving", "there", "working"}
    assert await found(availability="available") == {"free"}
    assert await found(availability="busy") == busy
    assert await found(availability="unavailable") == {"away", "gone"}
    assert await found(live="true") == busy - {"flagged"}
    assert await found(live="false") == {"free", "away", "gone", "flagged"}
    async with world.database.transaction() as session:
        await session.run(text("UPDATE driver_positions SET last_seen_at = clock_timestamp() - interval '61 seconds'"))
    assert await found(live="true") == set()
    assert await found(q=names["gone"].caller.name.upper()) == {"gone"}
    assert await found(q="dr-1001") == {"free"}
    assert await found(q="%") == set()
    assert refusal(await read(client, world.dispatcher, DRIVERS, status="lost")) == (400, "VALIDATION_FAILED")

    stranger = await people.person("dispatcher", await people.organization())
    assert (await read(client, stranger, DRIVERS)).json()["data"] == []
    one = f"{DRIVERS}/{names['free'].driver_id}"
    assert refusal(await read(client, stranger, one)) == (404, "NOT_FOUND")
    assert refusal(await read(client, names["free"], one)) == (403, "FORBIDDEN")
    assert refusal(await read(client, names["free"], DRIVERS)) == (403, "FORBIDDEN")


async def test_work_for_later_makes_nobody_busy(client: httpx.AsyncClient, world: World) -> None:
    driver = await world.driver()
    work = await world.job(scheduled_for=datetime.now(UTC) + timedelta(days=3))
    forced = {"driver_id": str(driver.driver_id), "mode": "force"}
    url = f"/api/v1/work-orders/{work}/assign"
    assert (await client.post(url, headers=world.dispatcher.headers, json=forced)).status_code == 200
    me = (await read(client, driver)).json()
    assert (me["status"], me["availability"], me["active_count"]) == ("available", "available", 0)
    page = (await read(client, world.dispatcher, DRIVERS, status="available")).json()
    assert [found["id"] for found in page["data"]] == [me["id"]]
