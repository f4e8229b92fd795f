"""People over HTTP: who sees, makes and sets whom."""

from __future__ import annotations

import asyncio
from typing import Any, get_args
from uuid import UUID

import httpx
import pytest
from sqlalchemy import select

from api.users import StatusToFind, StatusToSet
from models.audit.tables import audit_log
from models.drivers.rules import STAFF_MAY_SET
from models.drivers.tables import driver_profiles
from models.identity.queries import STATUS_FILTERS
from models.kit.database import Database
from models.kit.ids import new_id
from tests.factories.people import PASSWORD, People, Person
from tests.factories.statements import Statements

USERS = "/api/v1/users"


async def make(client: httpx.AsyncClient, by: Person, **body: Any) -> httpx.Response:
    body = {"full_name": "Ada Field", "role": "driver", "email": f"{new_id()}@demo.test"} | body
    return await client.post(USERS, headers=by.headers, json=body)


def test_the_statuses_offered_are_the_ones_in_the_rules() -> None:
    assert set(get_args(StatusToSet)) == set(STAFF_MAY_SET)
    assert set(get_args(StatusToFind)) == set(STATUS_FILTERS)


async def test_a_new_driver_has_a_profile_and_is_off_duty(
    client: httpx.AsyncClient, people: People, database: Database
) -> None:
    dispatcher = await people.person("dispatcher", await people.organization())
    response = await make(
        client,
        dispatcher,
        email="Ada.Field@Demo.Test",
        phone="+1 415 555 2671",
        skills=["meter", "ladder", "meter"],
        vehicle_type="van",
        service_radius_km=12.5,
    )
    assert response.status_code == 201, response.text
    user = response.json()
    assert response.headers["etag"] == '"1"'
    assert set(user) == {
        "id", "email", "phone", "full_name", "role", "is_active", "organization_id", "driver_id", "status",
        "availability", "version", "created_at", "updated_at",
    }  # fmt: skip
    assert (user["status"], user["availability"], user["phone"]) == ("offline", "unavailable", "+14155552671")
    assert user["email"].lower() == "ada.field@demo.test"
    async with database.transaction() as session:
        profile = await session.row(select(driver_profiles).where(driver_profiles.c.id == UUID(user["driver_id"])))
        audit = await session.row(select(audit_log).where(audit_log.c.entity_id == UUID(user["id"])))
    assert profile is not None
    assert (profile.reference, profile.skills, profile.vehicle_type, profile.service_radius_km) == (
        "DR-1001", ["ladder", "meter"], "van", 12.5,
    )  # fmt: skip
    assert audit is not None
    assert (audit.action, audit.user_id, audit.metadata) == ("USER_CREATED", dispatcher.user_id, {"role": "driver"})
    assert audit.request_id == response.headers["x-request-id"]


async def test_a_new_account_with_a_password_can_sign_in(client: httpx.AsyncClient, people: People) -> None:
    admin = await people.person("board_admin", await people.organization())
    made = await make(client, admin, role="dispatcher", password=PASSWORD)
    login = await client.post("/api/v1/auth/login", json={"email": made.json()["email"], "password": PASSWORD})
    assert login.status_code == 200
    assert login.json()["user"]["driver_id"] is None


async def test_an_email_or_phone_can_be_taken_once(client: httpx.AsyncClient, people: People) -> None:
    dispatcher = await people.person("dispatcher", await people.organization())
    await make(client, dispatcher, email="ada@demo.test", phone="+14155552671")
    again = await make(client, dispatcher, email="ADA@demo.test")
    assert (again.status_code, again.json()["code"]) == (409, "EMAIL_TAKEN")
    phone = await make(client, dispatcher, phone="+1 (415) 555-2671")
    assert (phone.status_code, phone.json()["code"]) == (409, "PHONE_TAKEN")


async def test_of_simultaneous_accounts_with_one_email_one_is_made(client: httpx.AsyncClient, people: People) -> None:
    dispatcher = await people.person("dispatcher", await people.organization())
    answers = await asyncio.gather(*(make(client, dispatcher, email="ada@demo.test") for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7


@pytest.mark.parametrize(
    ("by", "role", "status"),
    [
        ("dispatcher", "driver", 201),
        ("dispatcher", "customer", 403),
        ("dispatcher", "dispatcher", 403),
        ("dispatcher", "board_admin", 403),
        ("board_admin", "board_admin", 201),
        ("board_admin", "dispatcher", 201),
        ("board_admin", "state_admin", 403),
        ("state_admin", "state_admin", 201),
        ("state_admin", "super_admin", 403),
        ("super_admin", "super_admin", 201),
        ("auditor", "driver", 403),
        ("support_agent", "driver", 403),
        ("driver", "driver", 403),
        ("customer", "customer", 403),
    ],
)
async def test_nobody_makes_accounts_above_their_own_level(
    client: httpx.AsyncClient, people: People, by: str, role: str, status: int
) -> None:
    caller = await people.person(by, await people.organization())
    assert (await make(client, caller, role=role)).status_code == status


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"email": "not an address"}, "email"),
        ({"email": None}, "email"),
        ({"phone": "555"}, "phone"),
        ({"phone": "12345678901234567890"}, "phone"),
        ({"full_name": "   "}, "full_name"),
        ({"full_name": "x" * 121}, "full_name"),
        ({"role": "emperor"}, "role"),
        ({"password": "too short"}, "password"),
        ({"service_radius_km": 0}, "service_radius_km"),
        ({"skills": ["", "ok"]}, "skills.0"),
        ({"role": "customer", "skills": ["meter"]}, "skills"),
        ({"is_active": True}, "is_active"),
        ({"organization_id": str(new_id())}, "organization_id"),
    ],
)
async def test_bad_accounts_name_the_field(
    client: httpx.AsyncClient, people: People, body: dict[str, Any], field: str
) -> None:
    admin = await people.person("board_admin", await people.organization())
    response = await make(client, admin, **body)
    assert (response.status_code, response.json()["code"]) == (400, "VALIDATION_FAILED")
    assert list(response.json()["details"]["fieldErrors"]) == [field]


async def test_the_list_has_the_scope_of_the_caller(client: httpx.AsyncClient, people: People) -> None:
    state = await people.organization("state")
    board = await people.organization("board", parent_id=state)
    elsewhere = await people.organization()
    in_state = await people.person("state_admin", state)
    in_board = await people.person("board_admin", board)
    outside = await people.person("driver", elsewhere)
    above = await people.person("super_admin", elsewhere)

    async def seen_by(person: Person) -> set[str]:
        response = await client.get(USERS, headers=person.headers, params={"limit": 100})
        return {user["id"] for user in response.json()["data"]}

    assert await seen_by(in_board) == {str(in_board.user_id)}
    assert await seen_by(in_state) == {str(in_board.user_id), str(in_state.user_id)}
    assert len(await seen_by(above)) == 4
    assert (await client.get(f"{USERS}/{outside.user_id}", headers=in_state.headers)).status_code == 404
    assert (await client.get(f"{USERS}/{outside.user_id}", headers=above.headers)).status_code == 200
    made = await make(client, in_state, organization_id=str(board))
    assert made.json()["organization_id"] == str(board)
    assert (await make(client, in_board, organization_id=str(state))).status_code == 400
    # Who reads what they made by a token of the state, of which the made one is part.
    assert (await client.get(f"{USERS}/{made.json()['id']}", headers=in_board.headers)).status_code == 200


async def test_the_list_is_paged_filtered_and_searched(client: httpx.AsyncClient, people: People) -> None:
    organization = await people.organization()
    dispatcher = await people.person("dispatcher", organization, name="Zoe")
    drivers = [await people.person("driver", organization, name=name) for name in ("Ann 100%", "Ben", "Cat")]

    async def found(**query: object) -> list[str]:
        response = await client.get(USERS, headers=dispatcher.headers, params=query)  # type: ignore[arg-type]
        assert response.status_code == 200, response.text
        return [user["full_name"] for user in response.json()["data"]]

    second = (await client.get(USERS, headers=dispatcher.headers, params={"page": 2, "limit": 3})).json()
    assert [user["full_name"] for user in second["data"]] == ["Zoe"]
    assert (second["total"], second["page"], second["limit"], second["totalPages"]) == (4, 2, 3, 2)
    assert await found(role="driver") == ["Ann 100%", "Ben", "Cat"]
    assert await found(q="BE") == ["Ben"]
    assert await found(q="0%") == ["Ann 100%"]
    assert await found(q="_") == []
    for person, status in zip(drivers, ("available", "break", "busy"), strict=True):
        path = f"{USERS}/{person.user_id}/status"
        if status == "busy":
            await client.patch(path, headers=dispatcher.headers, json={"status": "available"})
        answer = await client.patch(path, headers=dispatcher.headers, json={"status": status})
        assert answer.status_code == 200, answer.text
    assert await found(status="available") == ["Ann 100%"]
    assert await found(status="break") == ["Ben"]
    assert await found(status="busy") == ["Cat"]
    assert await found(status="unavailable") == ["Ben"]
    assert await found(page=9) == []


async def test_staff_set_a_drivers_status(client: httpx.AsyncClient, people: People) -> None:
    organization = await people.organization()
    dispatcher = await people.person("dispatcher", organization)
    driver = await people.person("driver", organization)
    path = f"{USERS}/{driver.user_id}/status"

    async def shown_after(status: str) -> tuple[str, str]:
        answer = await client.patch(path, headers=dispatcher.headers, json={"status": status})
        assert answer.status_code == 200, answer.text
        return answer.json()["status"], answer.json()["availability"]

    assert await shown_after("available") == ("available", "available")
    assert (await shown_after("busy"))[1] == "busy"
    assert await shown_after("available") == ("available", "available")
    assert await shown_after("break") == ("break", "unavailable")
    assert await shown_after("unavailable") == ("offline", "unavailable")
    unknown = await client.patch(path, headers=dispatcher.headers, json={"status": "asleep"})
    assert list(unknown.json()["details"]["fieldErrors"]) == ["status"]
    no_driver = await client.patch(
        f"{USERS}/{dispatcher.user_id}/status", headers=dispatcher.headers, json={"status": "available"}
    )
    assert no_driver.status_code == 400
    stranger = await people.person("dispatcher", await people.organization())
    assert (await client.patch(path, headers=stranger.headers, json={"status": "break"})).status_code == 404
    assert (await client.patch(path, headers=driver.headers, json={"status": "break"})).status_code == 403


async def test_a_page_of_people_costs_two_queries(
    client: httpx.AsyncClient, people: People, database: Database
) -> None:
    organization = await people.organization()
    dispatcher = await people.person("dispatcher", organization)
    for _ in range(5):
        await people.person("driver", organization)
    statements = Statements(database)
    await client.get(USERS, headers=dispatcher.headers)
    assert len(statements) == 2
