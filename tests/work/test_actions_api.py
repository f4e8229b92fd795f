"""What is done about work over HTTP: changed, assigned, taken off, offered again, cancelled, completed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest

from models.kit.ids import new_id
from tests.factories.desk import KINDS, PLACE, Desk, field_errors
from tests.factories.people import Person

ACTIONS = ("assign", "unassign", "reoffer", "cancel", "complete")


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code", answer.json().get("status"))


async def change(
    desk: Desk, path: str, work_order: dict[str, Any], version: object = None, **body: Any
) -> httpx.Response:
    """PATCH with the version that the work order shows, unless told another one."""
    version = work_order["version"] if version is None else version
    return await desk.ask("PATCH", f"/{path}/{work_order['id']}", json=body, headers={"If-Match": f'"{version}"'})


async def assigned(desk: Desk, path: str, driver: Person) -> dict[str, Any]:
    made = await desk.create(path)
    answer = await desk.post(f"/{path}/{made['id']}/assign", driver_id=str(driver.driver_id), mode="force")
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


@pytest.mark.parametrize("under", [*KINDS, "work-orders"])
async def test_the_life_of_work_under_each_path(desk: Desk, under: str) -> None:
    path = "enrollments" if under == "work-orders" else under
    driver = await desk.world.driver()
    made = await desk.create(path)
    where = f"/{under}/{made['id']}"

    offered = await desk.post(f"{where}/assign", driver_id=str(driver.driver_id))
    assert offered.status_code == 200, offered.text
    (offer,) = offered.json()["offers"]
    assert (offer["status"], offer["mode"], offer["driver_id"]) == ("pending", "manual", str(driver.driver_id))
    assert offered.json()["status"] == "pending"
    assert offered.headers["etag"] == f'"{offered.json()["version"]}"'

    again = await desk.ask("POST", f"{where}/reoffer")
    assert (again.status_code, again.json()["round"]) == (200, 2)
    assert [offer["status"] for offer in again.json()["offers"]] == ["expired"]

    forced = await desk.post(f"{where}/assign", driver_id=str(driver.driver_id), mode="force")
    assert (forced.json()["status"], forced.json()["assigned_driver_id"]) == ("assigned", str(driver.driver_id))
    assert forced.json()["offers"][-1]["status"] == "accepted"
    assert forced.json()["events"][-1]["new_status"] == "assigned"

    back = await desk.post(f"{where}/unassign", reason="Van broke down")
    assert (back.json()["status"], back.json()["assigned_driver_id"]) == ("pending", None)
    assert back.json()["events"][-1]["notes"] == "Van broke down"

    gone = await desk.post(f"{where}/cancel", reason="Called off")
    assert (gone.json()["status"], gone.json()["cancellation_reason"]) == ("cancelled", "Called off")
    assert gone.json()["cancelled_at"] is not None
    assert gone.json() == (await desk.get(where)).json()
    for action in ACTIONS:
        body = {"driver_id": str(driver.driver_id)} if action == "assign" else {}
        expected = "WORK_ORDER_NOT_WAITING" if action == "reoffer" else "ILLEGAL_TRANSITION"
        refused = await desk.post(f"{where}/{action}", **body)
        assert code(refused) == (409, expected), action
        if action == "cancel":
            assert refused.json()["details"]["from"] == "cancelled"
            assert refused.json()["details"]["allowed"] == []


async def test_staff_or_the_assigned_driver_complete_work(desk: Desk) -> None:
    driver, other = await desk.world.driver(), await desk.world.driver()
    first = await assigned(desk, "enrollments", driver)
    where = f"/enrollments/{first['id']}/complete"
    assert code(await desk.post(where, other)) == (404, "NOT_FOUND")
    done = await desk.post(where, driver, notes="Meter fitted", completion_photo_key="photos/1.jpg")
    assert code(done) == (200, "completed")
    assert (done.json()["completion_notes"], done.json()["completion_photo_key"]) == ("Meter fitted", "photos/1.jpg")
    assert (await desk.world.dispatch(driver)).active_count == 0
    second = await assigned(desk, "enrollments", driver)
    assert code(await desk.ask("POST", f"/work-orders/{second['id']}/complete")) == (200, "completed")
    # A job has steps before its end.
    job = await assigned(desk, "jobs", driver)
    early = await desk.ask("POST", f"/jobs/{job['id']}/complete")
    assert code(early) == (409, "ILLEGAL_TRANSITION")
    assert early.json()["details"] == {
        "from": "assigned", "to": "completed", "allowed": ["en_route", "pending", "cancelled"],
    }  # fmt: skip


async def test_a_completion_by_a_driver_who_was_only_asked_is_not_found(desk: Desk) -> None:
    first, second = await desk.world.line(2)
    made = await desk.create("enrollments")
    (offer,) = (await desk.offered(made["id"]))["offers"]
    await desk.world.reject(UUID(offer["id"]), first)
    await desk.post(f"/work-orders/{made['id']}/assign", driver_id=str(second.driver_id), mode="force")
    assert (await desk.get(f"/enrollments/{made['id']}", first)).status_code == 200
    assert code(await desk.post(f"/enrollments/{made['id']}/complete", first)) == (404, "NOT_FOUND")


async def test_why_a_driver_cannot_be_named(desk: Desk) -> None:
    made = await desk.create("jobs")
    where = f"/jobs/{made['id']}/assign"
    stranger = await desk.world.people.person("driver", await desk.world.people.organization())
    for driver_id in (str(stranger.driver_id), str(new_id())):
        assert code(await desk.post(where, driver_id=driver_id)) == (404, "NOT_FOUND")
    off = await desk.world.driver(status="offline")
    assert code(await desk.post(where, driver_id=str(off.driver_id))) == (409, "DRIVER_NOT_ELIGIBLE")
    asked = await desk.world.driver()
    elsewhere = await desk.create("jobs")
    await desk.post(f"/jobs/{elsewhere['id']}/assign", driver_id=str(asked.driver_id))
    assert code(await desk.post(where, driver_id=str(asked.driver_id))) == (409, "DRIVER_HAS_OFFER")
    busy = await desk.world.driver()
    await assigned(desk, "jobs", busy)
    assert code(await desk.post(where, driver_id=str(busy.driver_id))) == (409, "DRIVER_BUSY")
    assert code(await desk.post(where, driver_id=str(off.driver_id), mode="force")) == (200, "assigned")
    taken = await desk.post(where, driver_id=str(asked.driver_id), mode="force")
    assert code(taken) == (409, "ILLEGAL_TRANSITION")


async def test_bad_actions_name_the_field(desk: Desk) -> None:
    made = await desk.create("jobs")
    where = f"/work-orders/{made['id']}"
    driver_id = str(new_id())
    for action, body, field in (
        ("assign", {}, "driver_id"),
        ("assign", {"driver_id": "nobody"}, "driver_id"),
        ("assign", {"driver_id": driver_id, "mode": "auto"}, "mode"),
        ("assign", {"driver_id": driver_id, "why": "x"}, "why"),
        ("unassign", {"reason": "x" * 501}, "reason"),
        ("unassign", {"reason": "\0"}, "reason"),
        ("reoffer", {"round": 9}, "round"),
        ("cancel", {"reason": 1}, "reason"),
        ("complete", {"notes": "x" * 2001}, "notes"),
        ("complete", {"completion_photo_key": ""}, "completion_photo_key"),
    ):
        assert field_errors(await desk.post(f"{where}/{action}", **body)) == [field], action
    assert field_errors(await desk.ask("POST", f"{where}/assign")) == ["body"]
    assert (await desk.get(where)).json()["version"] == 1


@pytest.mark.parametrize(
    ("role", "permitted"),
    [
        ("auditor", {}),
        ("support_agent", {}),
        ("customer", {}),
        ("driver", {"complete": 404}),
        ("board_admin", {"assign": 200, "unassign": 409, "reoffer": 200, "cancel": 200, "complete": 409}),
    ],
)
async def test_who_may_do_what(desk: Desk, role: str, permitted: dict[str, int]) -> None:
    person = await desk.world.people.person(role, desk.world.organization_id)
    driver = await desk.world.driver()
    made = await desk.create("orders")
    for action in ("reoffer", "unassign", "complete", "assign", "cancel"):
        body = {"driver_id": str(driver.driver_id)} if action == "assign" else {}
        answer = await desk.post(f"/orders/{made['id']}/{action}", person, **body)
        assert answer.status_code == permitted.get(action, 403), (action, answer.text)
    edited = await desk.ask("PATCH", f"/orders/{made['id']}", person, json={"priority": 9})
    assert edited.status_code == (428 if permitted.get("cancel") else 403)


async def test_nothing_is_done_to_work_of_another_tenant_or_kind(desk: Desk) -> None:
    stranger = await desk.world.people.person("dispatcher", await desk.world.people.organization())
    driver = await desk.world.people.person("driver", stranger.organization_id)
    made = await desk.create("jobs")
    for path, by in (("jobs", stranger), ("work-orders", stranger), ("orders", None)):
        for action in ACTIONS:
            body = {"driver_id": str(driver.driver_id)} if action == "assign" else {}
            answer = await desk.post(f"/{path}/{made['id']}/{action}", by, **body)
            assert code(answer) == (404, "NOT_FOUND"), (path, action)
    headers = {"If-Match": '"1"'}
    for path, by in (("jobs", stranger), ("orders", None)):
        answer = await desk.ask("PATCH", f"/{path}/{made['id']}", by, json={"priority": 9}, headers=headers)
        assert code(answer) == (404, "NOT_FOUND")
    assert code(await desk.ask("DELETE", f"/jobs/{made['id']}", stranger)) == (404, "NOT_FOUND")
    assert code(await desk.get(f"/jobs/{made['id']}/status-history", stranger)) == (404, "NOT_FOUND")
    assert (await desk.get(f"/jobs/{made['id']}")).json() == made


async def test_a_deleted_job_is_a_cancelled_one(desk: Desk) -> None:
    customer = await desk.world.people.person("customer", desk.world.organization_id)
    theirs, staffs = await desk.create("jobs", customer), await desk.create("jobs")
    answer = await desk.ask("DELETE", f"/jobs/{theirs['id']}", customer)
    assert (code(answer), answer.json()["cancellation_reason"]) == ((200, "cancelled"), None)
    assert code(await desk.ask("DELETE", f"/jobs/{theirs['id']}", customer)) == (409, "ILLEGAL_TRANSITION")
    assert code(await desk.ask("DELETE", f"/jobs/{staffs['id']}", customer)) == (404, "NOT_FOUND")
    assert code(await desk.post(f"/jobs/{staffs['id']}/cancel", customer)) == (404, "NOT_FOUND")
    assert code(await desk.ask("DELETE", f"/jobs/{staffs['id']}")) == (200, "cancelled")
    third = await desk.create("jobs", customer)
    assert code(await desk.post(f"/jobs/{third['id']}/cancel", customer, reason="No snow")) == (200, "cancelled")


async def test_a_change_needs_the_version_that_was_read(desk: Desk) -> None:
    made = await desk.create("enrollments")
    where = f"/enrollments/{made['id']}"
    assert code(await desk.ask("PATCH", where, json={"priority": 9})) == (428, "PRECONDITION_REQUIRED")
    for version in (2, 0, "99999999999999999999", "x"):
        assert code(await change(desk, "enrollments", made, version, priority=9)) == (412, "PRECONDITION_FAILED")
    weak = await desk.ask("PATCH", where, json={"priority": 9}, headers={"If-Match": 'W/"1"'})
    assert code(weak) == (412, "PRECONDITION_FAILED")
    changed = await change(desk, "enrollments", made, priority=9)
    assert (changed.status_code, changed.json()["priority"], changed.json()["version"]) == (200, 9, 2)
    assert changed.headers["etag"] == '"2"'
    assert code(await change(desk, "enrollments", made, priority=1)) == (412, "PRECONDITION_FAILED")
    nothing = await change(desk, "enrollments", changed.json())
    assert (nothing.status_code, nothing.json()["version"]) == (200, 2)


async def test_what_is_left_out_of_a_change_stays(desk: Desk) -> None:
    made = await desk.create("enrollments", address="1 Elm St", location=PLACE, special_instructions="Ring")
    moved = await change(desk, "enrollments", made, location={"lat": 10, "lng": 20}, required_skills=["b", "a", "b"])
    assert moved.json()["location"] == {"lat": 10.0, "lng": 20.0}
    assert moved.json()["required_skills"] == ["a", "b"]
    assert (moved.json()["address"], moved.json()["special_instructions"]) == ("1 Elm St", "Ring")
    cleared = await change(
        desk, "enrollments", moved.json(), address=None, location=None, special_instructions=None, timeslot="noon"
    )
    assert cleared.status_code == 200, cleared.text
    for name, value in (("address", None), ("location", None), ("special_instructions", None), ("timeslot", "noon")):
        assert cleared.json()[name] == value


async def test_bad_changes_name_the_field(desk: Desk) -> None:
    for path, body, field in (
        ("enrollments", {"timeslot": None}, "timeslot"),
        ("enrollments", {"priority": None}, "priority"),
        ("enrollments", {"priority": 2**63}, "priority"),
        ("enrollments", {"status": "completed"}, "status"),
        ("enrollments", {"premise_id": "P-2"}, "premise_id"),
        ("enrollments", {"scheduled_for": "9999-12-31T23:59:59-14:00"}, "scheduled_for"),
        ("enrollments", {"scheduled_for": "2026-01-01"}, "scheduled_for"),
        ("jobs", {"address": None}, "address"),
        ("jobs", {"location": None}, "location"),
        ("jobs", {"location": {"lat": 91, "lng": 0}}, "location.lat"),
        # Its place is that of its pick-up, or of its first stop.
        ("orders", {"address": "elsewhere"}, "address"),
        ("routes", {"location": PLACE}, "location"),
    ):
        assert field_errors(await change(desk, path, await desk.create(path), **body)) == [field], (path, body)


async def test_ended_work_is_history(desk: Desk) -> None:
    made = await desk.create("jobs")
    gone = await desk.post(f"/jobs/{made['id']}/cancel")
    assert code(await change(desk, "jobs", gone.json(), priority=9)) == (409, "ILLEGAL_TRANSITION")


async def test_rescheduled_work_goes_out_when_its_new_time_comes(desk: Desk) -> None:
    await desk.world.line(1)
    made = await desk.create("jobs")
    offered = await desk.offered(made["id"])
    assert [offer["status"] for offer in offered["offers"]] == ["pending"]
    later = datetime.now(UTC) + timedelta(days=2)
    moved = await change(desk, "jobs", offered, scheduled_for=later.isoformat())
    assert [offer["status"] for offer in moved.json()["offers"]] == ["expired"]
    assert [offer["reason"] for offer in moved.json()["offers"]] == ["cancelled"]
    assert len((await desk.offered(made["id"]))["offers"]) == 1
    now = await change(desk, "jobs", await desk.offered(made["id"]), scheduled_for=None)
    assert now.json()["scheduled_for"] is None


async def test_a_rescheduled_order_may_be_taken_as_long_as_before(desk: Desk) -> None:
    made = await desk.create("orders", expires_in_s=600)
    later = (datetime.now(UTC) + timedelta(days=2)).replace(microsecond=0)
    moved = (await change(desk, "orders", made, scheduled_for=later.isoformat())).json()
    assert datetime.fromisoformat(moved["expires_at"]) == later + timedelta(seconds=600)
    assert (await desk.offered(made["id"]))["status"] == "pending"
    sooner = (await change(desk, "orders", moved, scheduled_for=None)).json()
    lasts = datetime.fromisoformat(sooner["expires_at"]) - datetime.fromisoformat(sooner["updated_at"])
    assert abs(lasts.total_seconds() - 600) < 1
