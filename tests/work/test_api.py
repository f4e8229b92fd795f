"""Creating work over HTTP, and reading one piece of it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from models.kit.ids import new_id
from tests.factories.desk import API, KINDS, PLACE, Desk, field_errors

SHARED = {
    "id", "kind", "reference", "status", "priority", "organization_id", "address", "location", "scheduled_for",
    "timeslot", "special_instructions", "required_skills", "requested_by_user_id", "source", "round",
    "waiting_reasons", "assigned_driver_id", "version", "created_at", "updated_at", "offered_at", "assigned_at",
    "en_route_at", "arrived_at", "in_progress_at", "completed_at", "cancelled_at", "expired_at", "disputed_at",
    "cancellation_reason", "completion_notes", "completion_photo_key", "offers", "events",
}  # fmt: skip
OWN = {
    "enrollments": {"premise_id", "meter_id"},
    "jobs": {
        "customer_id", "service_location_id", "service_type", "driveway_tier_id", "quoted_price_cents",
        "final_price_cents", "discount_cents", "pricing_model",
    },
    "orders": {"pickup", "dropoff", "expires_at", "notes"},
    "routes": {"driver_id", "stops", "notes"},
}  # fmt: skip
TOMORROW = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)


@pytest.mark.parametrize("path", KINDS)
async def test_new_work_is_answered_at_once_with_all_it_has(desk: Desk, path: str) -> None:
    answer = await desk.ask("POST", f"/{path}", json=await desk.body(path))
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert set(made) == SHARED | OWN[path]
    assert (made["kind"], made["status"], made["version"], made["source"]) == (path[:-1], "pending", 1, "dispatcher")
    assert made["reference"].endswith("-1001")
    assert made["organization_id"] == str(desk.world.organization_id)
    assert (made["offers"], made["priority"], made["round"]) == ([], 5, 1)
    (event,) = made["events"]
    assert (event["previous_status"], event["new_status"]) == (None, "pending")
    assert event["changed_by_user_id"] == str(desk.world.dispatcher.user_id)
    assert answer.headers["etag"] == '"1"'
    assert answer.headers["location"] == f"{API}/{path}/{made['id']}"
    for where in (f"/{path}/{made['id']}", f"/work-orders/{made['id']}"):
        read = await desk.get(where)
        assert (read.status_code, read.json(), read.headers["etag"]) == (200, made, '"1"')
    audit = await desk.world.one("SELECT * FROM audit_log WHERE entity_id = :id", id=UUID(made["id"]))
    assert audit.user_id == desk.world.dispatcher.user_id
    wake = await desk.world.one("SELECT * FROM workflow_wakes WHERE work_order_id = :id", id=UUID(made["id"]))
    assert (wake.reason, wake.seq, wake.sent_seq) == ("created", 1, 0)


async def test_an_enrollment_keeps_everything_it_was_given(desk: Desk) -> None:
    customer = await desk.world.people.person("customer", desk.world.organization_id)
    made = await desk.create(
        "enrollments",
        address="7 Pine St",
        location=PLACE,
        required_skills=["meter", "ladder", "meter"],
        priority=0,
        scheduled_for=TOMORROW.astimezone().isoformat(),
        requested_by=str(customer.user_id),
        special_instructions="Ring twice — büro",
    )
    assert (made["premise_id"], made["timeslot"], made["meter_id"]) == ("P-100", "09:00-11:00", None)
    assert (made["address"], made["location"]) == ("7 Pine St", PLACE)
    assert (made["required_skills"], made["priority"]) == (["ladder", "meter"], 0)
    assert datetime.fromisoformat(made["scheduled_for"]) == TOMORROW
    assert made["scheduled_for"].endswith("Z")
    assert made["requested_by_user_id"] == str(customer.user_id)
    assert made["special_instructions"] == "Ring twice — büro"


async def test_an_order_has_two_ends_and_an_expiry(desk: Desk) -> None:
    far = {"address": "2 Oak St", "location": {"lat": 1, "lng": -180}}
    made = await desk.create("orders", dropoff=far, expires_in_s=600, notes="Fragile", required_skills=["cold"])
    assert (made["address"], made["location"]) == ("1 Elm St", PLACE)
    assert made["pickup"] == {"address": "1 Elm St", "location": PLACE}
    assert made["dropoff"] == {"address": "2 Oak St", "location": {"lat": 1.0, "lng": -180.0}}
    lasts = datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"])
    assert lasts.total_seconds() == 600
    assert made["notes"] == "Fragile"


async def test_a_route_keeps_its_stops_in_order(desk: Desk) -> None:
    stops: list[dict[str, Any]] = [{"address": f"{n} Elm St", "notes": f"stop {n}"} for n in range(1, 13)]
    stops[3]["location"] = PLACE
    made = await desk.create("routes", stops=stops, notes="North side")
    assert [stop["address"] for stop in made["stops"]] == [f"{n} Elm St" for n in range(1, 13)]
    assert made["stops"][3] == {"address": "4 Elm St", "location": PLACE, "notes": "stop 4"}
    assert made["stops"][0] == {"address": "1 Elm St", "location": None, "notes": "stop 1"}
    assert (made["address"], made["notes"]) == ("1 Elm St", "North side")
    shown = await desk.offered(made["id"])
    assert [offer["driver_id"] for offer in shown["offers"]] == [made["driver_id"]]


async def test_a_job_may_wait_for_a_person_to_name_its_driver(desk: Desk) -> None:
    await desk.world.line(1)
    made = await desk.create("jobs", dispatch="manual", service_type="plow")
    assert made["service_type"] == "plow"
    assert (await desk.offered(made["id"]))["offers"] == []
    auto = await desk.create("jobs")
    (offer,) = (await desk.offered(auto["id"]))["offers"]
    assert (offer["status"], offer["work_order"]["reference"]) == ("pending", auto["reference"])


async def test_staff_see_why_nobody_was_eligible(desk: Desk) -> None:
    made = await desk.create("enrollments", required_skills=["climbing"])
    assert (await desk.offered(made["id"]))["waiting_reasons"] == [{"reason": "nobody_on_duty", "count": 0}]
    await desk.world.line(2)
    assert (await desk.post(f"/work-orders/{made['id']}/reoffer")).status_code == 200
    (reason,) = (await desk.offered(made["id"]))["waiting_reasons"]
    assert reason["count"] == 2
    assert (await desk.create("enrollments"))["waiting_reasons"] is None


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("enrollments", {"premise_id": ""}, "premise_id"),
    ("enrollments", {"premise_id": " "}, "premise_id"),
    ("enrollments", {"premise_id": "x" * 201}, "premise_id"),
    ("enrollments", {"premise_id": "a\0b"}, "premise_id"),
    ("enrollments", {"timeslot": None}, "timeslot"),
    ("enrollments", {"priority": 10}, "priority"),
    ("enrollments", {"priority": -1}, "priority"),
    ("enrollments", {"priority": 10**30}, "priority"),
    ("enrollments", {"priority": "5"}, "priority"),
    ("enrollments", {"priority": 5.5}, "priority"),
    ("enrollments", {"required_skills": ["x"] * 51}, "required_skills"),
    ("enrollments", {"required_skills": ["ok", ""]}, "required_skills.1"),
    ("enrollments", {"required_skills": "meter"}, "required_skills"),
    ("enrollments", {"location": {"lat": 90.1, "lng": 0}}, "location.lat"),
    ("enrollments", {"location": {"lat": 0, "lng": 181}}, "location.lng"),
    ("enrollments", {"location": {"lat": 0}}, "location.lng"),
    ("enrollments", {"location": {"lat": 0, "lng": 0, "alt": 1}}, "location.alt"),
    ("enrollments", {"location": [0, 0]}, "location"),
    ("enrollments", {"scheduled_for": "2026-01-01T08:00:00"}, "scheduled_for"),
    ("enrollments", {"scheduled_for": "tomorrow"}, "scheduled_for"),
    ("enrollments", {"scheduled_for": "0001-01-01T00:00:00+14:00"}, "scheduled_for"),
    ("enrollments", {"scheduled_for": "9999-12-31T23:59:59-14:00"}, "scheduled_for"),
    ("enrollments", {"scheduled_for": 1767254400}, "scheduled_for"),
    ("enrollments", {"requested_by": str(new_id())}, "requested_by"),
    ("enrollments", {"requested_by": "me"}, "requested_by"),
    ("enrollments", {"special_instructions": "x" * 2001}, "special_instructions"),
    ("enrollments", {"status": "completed"}, "status"),
    ("enrollments", {"organization_id": str(new_id())}, "organization_id"),
    ("jobs", {"address": None}, "address"),
    ("jobs", {"location": None}, "location"),
    ("jobs", {"service_location_id": str(new_id())}, "service_location_id"),
    ("jobs", {"driveway_tier_id": str(new_id())}, "driveway_tier_id"),
    ("jobs", {"customer_id": str(new_id())}, "customer_id"),
    ("jobs", {"dispatch": "later"}, "dispatch"),
    ("jobs", {"final_price_cents": 1}, "final_price_cents"),
    ("orders", {"pickup": {"address": "1 Elm St"}}, "pickup.location"),
    ("orders", {"dropoff": None}, "dropoff"),
    ("orders", {"expires_in_s": 0}, "expires_in_s"),
    ("orders", {"expires_in_s": 86_401}, "expires_in_s"),
    ("orders", {"expires_in_s": 2**70}, "expires_in_s"),
    ("routes", {"stops": []}, "stops"),
    ("routes", {"stops": [{"address": "1 Elm St"}] * 201}, "stops"),
    ("routes", {"stops": [{"address": "1 Elm St"}, {"notes": "?"}]}, "stops.1.address"),
    ("routes", {"driver_id": str(new_id())}, "driver_id"),
    ("routes", {"scheduled_for": "10000-01-01T00:00:00Z"}, "scheduled_for"),
]


@pytest.mark.parametrize("path", KINDS)
async def test_bad_work_names_the_field(desk: Desk, path: str) -> None:
    good = await desk.body(path)
    for changes, field in [(changes, field) for kind, changes, field in BAD if kind == path]:
        assert field_errors(await desk.ask("POST", f"/{path}", json=good | changes)) == [field], changes
    assert await desk.world.all("SELECT id FROM work_orders") == []


async def test_what_json_or_postgres_cannot_hold_is_refused(desk: Desk) -> None:
    for body in (
        '{"premise_id": "P", "timeslot": "t", "location": {"lat": NaN, "lng": 0}}',
        '{"premise_id": "P", "timeslot": "t", "location": {"lat": 1e999, "lng": 0}}',
        '{"premise_id": "P", "timeslot": "t", "location": {"lat": -Infinity, "lng": 0}}',
        '{"premise_id": "\\ud800", "timeslot": "t"}',
        '["P", "t"]',
        "",
    ):
        answer = await desk.ask("POST", "/enrollments", content=body, headers={"Content-Type": "application/json"})
        assert field_errors(answer), body


async def test_a_job_without_a_place_names_all_that_is_missing(desk: Desk) -> None:
    assert field_errors(await desk.post("/jobs")) == ["address", "location"]
    only = await desk.post("/jobs", service_location_id=str(new_id()))
    assert only.json()["details"]["fieldErrors"] == {"service_location_id": ["does not exist"]}


async def test_a_route_for_another_tenants_driver_is_refused(desk: Desk) -> None:
    stranger = await desk.world.people.person("driver", await desk.world.people.organization())
    body = await desk.body("routes") | {"driver_id": str(stranger.driver_id)}
    assert field_errors(await desk.ask("POST", "/routes", json=body)) == ["driver_id"]


@pytest.mark.parametrize(
    ("role", "made"),
    [("auditor", ()), ("support_agent", ()), ("driver", ()), ("customer", ("jobs",)), ("board_admin", KINDS)],
)
async def test_who_may_create_work(desk: Desk, role: str, made: tuple[str, ...]) -> None:
    person = await desk.world.people.person(role, desk.world.organization_id)
    for path in KINDS:
        answer = await desk.ask("POST", f"/{path}", person, json=await desk.body(path))
        assert answer.status_code == (201 if path in made else 403), (path, answer.text)


async def test_a_customer_orders_for_themselves(desk: Desk) -> None:
    customer = await desk.world.people.person("customer", desk.world.organization_id)
    other = await desk.world.people.person("customer", desk.world.organization_id)
    job = await desk.create("jobs", customer)
    assert (job["customer_id"], job["requested_by_user_id"]) == (str(customer.user_id), str(customer.user_id))
    assert (job["source"], job["waiting_reasons"]) == ("customer", None)
    assert [set(event) for event in job["events"]] == [{"new_status", "created_at"}]
    assert (await desk.create("jobs", customer, customer_id=str(customer.user_id)))["customer_id"] == job["customer_id"]
    for_other = await desk.ask(
        "POST", "/jobs", customer, json=await desk.body("jobs") | {"customer_id": str(other.user_id)}
    )
    assert (for_other.status_code, for_other.json()["code"]) == (403, "FORBIDDEN")
    first = await desk.ask("POST", "/jobs", customer, json=await desk.body("jobs") | {"priority": 9})
    assert field_errors(first) == ["priority"]
    by_staff = await desk.create("jobs", customer_id=str(other.user_id))
    assert (by_staff["customer_id"], by_staff["source"]) == (str(other.user_id), "dispatcher")
    assert (await desk.get(f"/jobs/{by_staff['id']}", other)).status_code == 200
    assert (await desk.get(f"/jobs/{by_staff['id']}", customer)).status_code == 404
    mine = (await desk.get("/jobs", customer)).json()
    assert mine["total"] == 2
    assert {row["customer_id"] for row in mine["data"]} == {str(customer.user_id)}
    assert (await desk.get("/work-orders", customer)).status_code == 403


async def test_a_customer_sees_how_far_their_job_is_and_no_offers(desk: Desk) -> None:
    customer = await desk.world.people.person("customer", desk.world.organization_id)
    (driver,) = await desk.world.line(1)
    job = await desk.create("jobs", customer)
    (offer,) = (await desk.offered(job["id"]))["offers"]
    await desk.world.accept(UUID(offer["id"]), driver)
    seen = (await desk.get(f"/jobs/{job['id']}", customer)).json()
    assert (seen["status"], seen["offers"]) == ("assigned", [])
    history = (await desk.get(f"/jobs/{job['id']}/status-history", customer)).json()["data"]
    assert history == seen["events"]
    assert [event["new_status"] for event in history] == ["pending", "assigned"]
    assert set(history[1]) == {"new_status", "created_at"}
    full = (await desk.get(f"/jobs/{job['id']}/status-history")).json()["data"]
    assert full[1]["driver_id"] == str(driver.driver_id)


async def test_a_driver_sees_what_was_offered_to_them_and_their_own_offers(desk: Desk) -> None:
    first, second = await desk.world.line(2)
    bystander = await desk.world.driver(status="offline")
    made = await desk.create("enrollments")
    assert (await desk.get(f"/work-orders/{made['id']}", first)).status_code == 404
    (offer,) = (await desk.offered(made["id"]))["offers"]
    await desk.world.reject(UUID(offer["id"]), first)
    shown = await desk.offered(made["id"])
    assert [o["driver_id"] for o in shown["offers"]] == [str(first.driver_id), str(second.driver_id)]
    for driver in (first, second):
        own = (await desk.get(f"/enrollments/{made['id']}", driver)).json()["offers"]
        assert [o["driver_id"] for o in own] == [str(driver.driver_id)]
    await desk.world.accept((await desk.world.pending(UUID(made["id"]))).id, second)
    # What another driver does with the work is a status to the first, without the way there.
    assert [set(event) for event in (await desk.get(f"/work-orders/{made['id']}", first)).json()["events"]][1:] == [
        {"new_status", "created_at"}
    ]
    assert "driver_id" in (await desk.get(f"/work-orders/{made['id']}", second)).json()["events"][1]
    assert (await desk.get(f"/enrollments/{made['id']}", bystander)).status_code == 404
    for path in ("/enrollments", "/work-orders"):
        assert (await desk.get(path, first)).status_code == 403
    assert (await desk.get("/jobs", first)).json()["total"] == 0


async def test_work_of_another_tenant_or_kind_is_not_found(desk: Desk) -> None:
    stranger = await desk.world.people.person("dispatcher", await desk.world.people.organization())
    for path in KINDS:
        made = await desk.create(path)
        other = next(kind for kind in KINDS if kind != path)
        for where, by in (
            (f"/{path}/{made['id']}", stranger),
            (f"/work-orders/{made['id']}", stranger),
            (f"/{other}/{made['id']}", None),
            (f"/{path}/{new_id()}", None),
        ):
            answer = await desk.get(where, by)
            assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND"), where
    assert (await desk.get("/work-orders", stranger)).json()["total"] == 0


async def test_prefer_wait_answers_with_the_first_offer(desk: Desk) -> None:
    (driver,) = await desk.world.line(1)

    async def work() -> None:
        """The workflow, a little later."""
        while not (found := await desk.world.all("SELECT id FROM work_orders")):
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.15)
        await desk.world.advance(found[0].id)

    began = time.monotonic()
    worker = asyncio.create_task(work())
    answer = await desk.ask("POST", "/enrollments", json=await desk.body("enrollments"), headers={"Prefer": "wait=4"})
    await worker
    assert answer.status_code == 201
    assert time.monotonic() - began < 3
    made = answer.json()
    assert [offer["driver_id"] for offer in made["offers"]] == [str(driver.driver_id)]
    assert made["offered_at"] is not None
    assert answer.headers["preference-applied"] == "wait=4"
    assert answer.headers["etag"] == f'"{made["version"]}"'


async def test_prefer_wait_answers_anyway_when_the_time_is_over(desk: Desk) -> None:
    began = time.monotonic()
    answer = await desk.ask("POST", "/jobs", json=await desk.body("jobs"), headers={"Prefer": "wait=1"})
    assert 0.9 < time.monotonic() - began < 2.5
    assert (answer.status_code, answer.json()["offers"]) == (201, [])
    unasked = await desk.ask("POST", "/jobs", json=await desk.body("jobs"), headers={"Prefer": "wait=soon"})
    assert "preference-applied" not in unasked.headers
