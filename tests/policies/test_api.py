"""Dispatch policies over HTTP: versions, their tags, and every value that is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import select

from api.policies import DispatchPolicy
from models.audit.tables import audit_log
from models.kit.database import Database
from models.kit.ids import new_id
from models.policies.rules import DEFAULTS, Policy
from models.work.rules import WorkKind
from tests.factories.people import People, Person
from tests.factories.work import World

POLICIES = "/api/v1/dispatch-policies"
OWN_FIELDS = {"kind", "version", "organization_id", "created_at"}


@pytest.fixture
async def admin(people: People) -> Person:
    return await people.person("board_admin", await people.organization())


async def read(client: httpx.AsyncClient, by: Person, kind: str = "job", **query: Any) -> httpx.Response:
    return await client.get(f"{POLICIES}/{kind}", headers=by.headers, params=query)


async def put(
    client: httpx.AsyncClient, by: Person, body: dict[str, Any], *, version: str | None = '"1"', kind: str = "job",
    **query: Any,
) -> httpx.Response:  # fmt: skip
    headers = by.headers | ({"If-Match": version} if version else {})
    return await client.put(f"{POLICIES}/{kind}", headers=headers, json=body, params=query)


def body(**changes: Any) -> dict[str, Any]:
    return msgspec.to_builtins(DEFAULTS[WorkKind.JOB]) | changes


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


async def test_every_kind_has_a_policy_from_the_start(client: httpx.AsyncClient, admin: Person) -> None:
    listed = (await client.get(POLICIES, headers=admin.headers)).json()["data"]
    assert [policy["kind"] for policy in listed] == ["enrollment", "job", "order", "route"]
    for policy in listed:
        assert set(policy) == OWN_FIELDS | set(Policy.__struct_fields__)
        assert (policy["version"], policy["organization_id"]) == (1, str(admin.organization_id))
        one = await read(client, admin, policy["kind"])
        assert (one.json(), one.headers["etag"]) == (policy, '"1"')
        settings = {name: value for name, value in policy.items() if name not in OWN_FIELDS}
        assert msgspec.convert(settings, Policy) == DEFAULTS[WorkKind(policy["kind"])]
    assert refusal(await read(client, admin, "parcel")) == (400, "VALIDATION_FAILED")


def test_an_answer_adds_only_what_is_not_the_policys() -> None:
    assert set(DispatchPolicy.__struct_fields__) == OWN_FIELDS | set(Policy.__struct_fields__)


async def test_a_change_is_a_new_version_and_the_old_one_stays(
    client: httpx.AsyncClient, admin: Person, database: Database
) -> None:
    changed = await put(client, admin, body(offer_ttl_s=60, radius_km=None, ranking="weighted", capacity=2))
    assert changed.status_code == 200, changed.text
    assert changed.headers["etag"] == '"2"'
    shown = changed.json()
    assert (shown["version"], shown["offer_ttl_s"], shown["radius_km"]) == (2, 60, None)
    assert (shown["ranking"], shown["weights"], shown["capacity"]) == ("weighted", {"fairness": 1, "distance": 1}, 2)
    assert (await read(client, admin)).json() == shown
    assert (await read(client, admin, "route")).json()["version"] == 1
    world = World(database, admin.organization_id, admin)
    rows = await world.all("SELECT * FROM dispatch_policies WHERE kind = 'job' ORDER BY version")
    assert [(row.version, row.is_current) for row in rows] == [(1, False), (2, True)]
    assert rows[1].created_by_user_id == admin.user_id
    async with database.transaction() as session:
        changed_by = await session.row(select(audit_log).where(audit_log.c.action == "DISPATCH_POLICY_CHANGED"))
    assert changed_by is not None
    assert (changed_by.entity_id, changed_by.metadata["version"]) == (rows[1].id, 2)
    assert changed_by.metadata["changed"] == {
        "offer_ttl_s": [120, 60], "radius_km": [25, None], "ranking": ["fair", "weighted"], "capacity": [1, 2],
    }  # fmt: skip


async def test_an_offer_names_the_version_that_made_it(client: httpx.AsyncClient, database: Database) -> None:
    world = await World.make(database)
    admin = await world.people.person("board_admin", world.organization_id)
    first, second = await world.line(2)
    work = await world.job()
    await world.advance(work)
    offer = await world.pending(work)
    assert (await put(client, admin, body(offer_ttl_s=30))).status_code == 200
    await world.reject(offer.id, first)
    await world.advance(work)
    following = await world.pending(work)
    assert following.driver_id == second.driver_id
    assert (following.expires_at - following.offered_at).total_seconds() == 30
    for offer_id, version in ((offer.id, 1), (following.id, 2)):
        explained = await client.get(f"/api/v1/offers/{offer_id}/explanation", headers=admin.headers)
        assert explained.json()["policy_version"] == version


async def test_a_change_names_the_version_it_was_made_from(client: httpx.AsyncClient, admin: Person) -> None:
    assert refusal(await put(client, admin, body(), version=None)) == (428, "PRECONDITION_REQUIRED")
    for wrong in ('"2"', 'W/"1"', "*", '"x"'):
        assert refusal(await put(client, admin, body(), version=wrong)) == (412, "PRECONDITION_FAILED")
    answers = await asyncio.gather(*(put(client, admin, body(capacity=i)) for i in range(2, 8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 5
    assert (await read(client, admin)).json()["version"] == 2


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"mode": "lottery"}, "mode"),
        ({"offer_ttl_s": 0}, "offer_ttl_s"),
        ({"offer_ttl_s": 1.5}, "offer_ttl_s"),
        ({"offer_ttl_s": "60"}, "offer_ttl_s"),
        ({"offer_ttl_s": 86_401, "offer_ttl_max_s": 86_400}, "offer_ttl_s"),
        ({"offer_ttl_max_s": 119}, "offer_ttl_max_s"),
        ({"radius_km": 0}, "radius_km"),
        ({"radius_km": 20_001}, "radius_km"),
        ({"heartbeat_max_age_s": 0}, "heartbeat_max_age_s"),
        ({"on_timeout": "shout"}, "on_timeout"),
        ({"broadcast_window_s": 0}, "broadcast_window_s"),
        ({"broadcast_limit": 501}, "broadcast_limit"),
        ({"max_rounds": 0}, "max_rounds"),
        ({"recheck_s": 0}, "recheck_s"),
        ({"escalate_after_s": 0}, "escalate_after_s"),
        ({"lead_time_s": -1}, "lead_time_s"),
        ({"nudge_after_s": 0}, "nudge_after_s"),
        ({"late_after_s": 600}, "late_after_s"),
        ({"ranking": "alphabet"}, "ranking"),
        ({"weights": {"fairness": -1}}, "weights.fairness"),
        ({"weights": {"luck": 1}}, "weights.luck"),
        ({"ranking": "weighted", "weights": {"fairness": 0, "distance": 0}}, "weights"),
        ({"lapse_pause_s": 0}, "lapse_pause_s"),
        ({"capacity": 0}, "capacity"),
        ({"capacity": 21}, "capacity"),
        ({"auto_assign": "yes"}, "auto_assign"),
        ({"version": 7}, "version"),
        ({"favourites_first": True}, "favourites_first"),
    ],
)
async def test_a_bad_value_names_its_field(
    client: httpx.AsyncClient, admin: Person, changes: dict[str, Any], field: str
) -> None:
    response = await put(client, admin, body(**changes))
    assert refusal(response) == (400, "VALIDATION_FAILED")
    assert list(response.json()["details"]["fieldErrors"]) == [field]


async def test_all_bad_and_missing_fields_are_named_at_once(client: httpx.AsyncClient, admin: Person) -> None:
    response = await put(client, admin, {"mode": "lottery", "capacity": 0, "offer_ttl_s": 60})
    assert set(response.json()["details"]["fieldErrors"]) == {"mode", "capacity", "offer_ttl_max_s"}
    assert refusal(await put(client, admin, [])) == (400, "VALIDATION_FAILED")  # type: ignore[arg-type]


async def test_staff_read_and_admins_write(client: httpx.AsyncClient, people: People, admin: Person) -> None:
    for role in ("dispatcher", "support_agent", "auditor"):
        person = await people.person(role, admin.organization_id)
        assert (await read(client, person)).status_code == 200
        assert refusal(await put(client, person, body())) == (403, "FORBIDDEN")
    for role in ("driver", "customer"):
        person = await people.person(role, admin.organization_id)
        assert refusal(await read(client, person)) == (403, "FORBIDDEN")


async def test_whose_policies_are_read_and_written_stays_within_reach(
    client: httpx.AsyncClient, people: People
) -> None:
    state = await people.organization("state")
    board = await people.organization("board", parent_id=state)
    elsewhere = await people.organization()
    in_state = await people.person("state_admin", state)
    in_board = await people.person("board_admin", board)
    assert (await put(client, in_state, body(), organization_id=str(board))).json()["organization_id"] == str(board)
    assert (await read(client, in_state, organization_id=str(board))).json()["version"] == 2
    assert (await read(client, in_state)).json()["version"] == 1
    assert (await read(client, in_board)).json()["version"] == 2
    of_board = await client.get(POLICIES, headers=in_state.headers, params={"organization_id": str(board)})
    assert [policy["version"] for policy in of_board.json()["data"]] == [1, 2, 1, 1]
    for caller, target in ((in_board, state), (in_board, elsewhere), (in_state, elsewhere), (in_state, new_id())):
        params = {"organization_id": str(target)}
        assert refusal(await client.get(POLICIES, headers=caller.headers, params=params)) == (404, "NOT_FOUND")
        assert refusal(await read(client, caller, **params)) == (404, "NOT_FOUND")
        assert refusal(await put(client, caller, body(), **params)) == (404, "NOT_FOUND")
