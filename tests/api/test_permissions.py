"""Every endpoint states a permission, and every role gets exactly what the matrix says."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import httpx
import pytest
from litestar import Litestar, get

from api.app import create_app
from api.guards import PUBLIC, UnguardedRoute, check_routes, needs
from api.openapi import openapi_document
from models.identity.permissions import LEVEL, MATRIX, permissions_of
from models.identity.rules import STAFF, Role
from models.kit.ids import new_id
from tests.factories.api import settings
from tests.factories.people import People

#: All that answers without signing in. A line more here is a decision.
PUBLIC_OPERATIONS = {"Health", "HealthV1", "Ready", "Login", "RefreshTokens", "DevOutbox"}

DOCUMENT = openapi_document(create_app(settings(), with_relay=False))
OPERATIONS = [
    (method, path, operation) for path, item in DOCUMENT["paths"].items() for method, operation in item.items()
]


def test_every_operation_states_a_permission_or_is_known_to_be_public() -> None:
    public = {op["operationId"] for _, _, op in OPERATIONS if "x-permission" not in op}
    assert public == PUBLIC_OPERATIONS
    assert all(op["security"] == [{}] for _, _, op in OPERATIONS if op["operationId"] in public)
    assert {op["x-permission"] for _, _, op in OPERATIONS if "x-permission" in op} <= set(MATRIX)


@pytest.mark.parametrize("role", Role)
async def test_the_matrix_decides_for_every_endpoint(client: httpx.AsyncClient, people: People, role: Role) -> None:
    person = await people.person(role, await people.organization())
    for method, path, operation in OPERATIONS:
        if "x-permission" not in operation:
            continue
        url = path
        for parameter in operation.get("parameters", ()):
            url = url.replace(f"{{{parameter['name']}}}", str(new_id()))
        anonymous = await client.request(method, url)
        assert (anonymous.status_code, anonymous.json()["code"]) == (401, "UNAUTHENTICATED"), (method, path)
        answer = await client.request(method, url, headers=person.headers)
        permitted = role in MATRIX[operation["x-permission"]]
        assert (answer.status_code != 403) == permitted, (method, path, answer.text)
        assert answer.status_code < 500, (method, path, answer.text)


def test_a_route_without_a_permission_stops_the_start() -> None:
    @get("/forgotten")
    async def forgotten() -> None: ...

    @get("/misspelt", opt={"permission": "work:crate"})
    async def misspelt() -> None: ...

    @get("/open", opt=PUBLIC)
    async def opened() -> None: ...

    for handler in (forgotten, misspelt):
        with pytest.raises(UnguardedRoute, match=str(handler.fn.__name__)):
            check_routes(Litestar([handler], openapi_config=None))
    check_routes(Litestar([opened], openapi_config=None))
    with pytest.raises(UnguardedRoute):
        needs("work:crate")


def test_the_matrix_holds_what_was_agreed() -> None:
    """Spot checks against the table in the specification, written out by hand."""
    expected: dict[str, set[str]] = {
        "work:assign": {"super_admin", "state_admin", "board_admin", "dispatcher"},
        "work:read": {role.value for role in STAFF},
        "policy:write": {"super_admin", "state_admin", "board_admin"},
        "offer:respond": {"driver"},
        "job:create": {"super_admin", "state_admin", "board_admin", "dispatcher", "customer"},
        "audit:read": {"super_admin", "state_admin", "auditor"},
        "user:manage": {"super_admin", "state_admin", "board_admin"},
        "meter:delete": {"super_admin"},
        "query:manage": {"super_admin", "state_admin", "board_admin", "support_agent"},
        "own:profile": {"customer"},
    }
    assert {name: {role.value for role in MATRIX[name]} for name in expected} == expected
    assert all(roles for roles in MATRIX.values())
    assert set(LEVEL) == set(Role)
    assert "offer:respond" not in permissions_of(Role.SUPER_ADMIN)


async def test_the_matrix_is_shown(client: httpx.AsyncClient, people: People) -> None:
    driver = await people.person("driver", await people.organization())
    rows: list[dict[str, Any]] = (await client.get("/api/v1/permissions", headers=driver.headers)).json()["data"]
    assert {row["permission"] for row in rows} == set(MATRIX)


async def test_public_pages_work_beside_a_stale_token(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/v1/health", headers={"Authorization": "Bearer stale"})
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_the_audit_log_has_the_scope_of_the_caller(client: httpx.AsyncClient, people: People) -> None:
    state = await people.organization("state")
    board = await people.organization("board", parent_id=state)
    elsewhere = await people.organization()
    auditor = await people.person("auditor", board)
    above = await people.person("state_admin", state)
    stranger = await people.person("auditor", elsewhere)
    super_admin = await people.person("super_admin", elsewhere)
    await client.post("/api/v1/auth/login", json={"email": "nobody@demo.test", "password": "wrong"})

    async def organizations_seen(person: Any) -> set[str | None]:
        response = await client.get("/api/v1/audit?limit=100", headers=person.headers)
        return {entry["organization_id"] for entry in response.json()["data"]}

    assert await organizations_seen(auditor) == {str(board)}
    assert await organizations_seen(above) == {str(board), str(state)}
    assert await organizations_seen(super_admin) == {str(board), str(state), str(elsewhere), None}
    entry = (await client.get("/api/v1/audit", headers=auditor.headers)).json()["data"][0]
    path = f"/api/v1/audit/{entry['id']}"
    assert (await client.get(path, headers=auditor.headers)).json() == entry
    assert (await client.get(path, headers=stranger.headers)).status_code == 404


async def test_the_audit_log_is_filtered_and_followed_by_cursor(client: httpx.AsyncClient, people: People) -> None:
    organization = await people.organization()
    auditor = await people.person("auditor", organization)
    made = [await people.person("driver", organization) for _ in range(5)]

    async def listed(**query: object) -> dict[str, Any]:
        response = await client.get("/api/v1/audit", headers=auditor.headers, params=query)  # type: ignore[arg-type]
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    wanted = {"action": "USER_CREATED", "entity_type": "user", "limit": 2}
    first = await listed(**wanted)
    assert (first["total"], first["page"], first["totalPages"]) == (6, 1, 3)
    await people.person("driver", organization)
    ids, page = [entry["entity_id"] for entry in first["data"]], first
    while page["nextCursor"]:
        page = await listed(**wanted, cursor=page["nextCursor"])
        assert page["total"] is None
        ids += [entry["entity_id"] for entry in page["data"]]
    # The one added in between moves nothing: newest first, from where the first page began.
    assert [UUID(i) for i in ids] == [person.user_id for person in reversed(made)] + [auditor.user_id]
    entry = first["data"][0]
    assert [e["id"] for e in (await listed(entity_id=entry["entity_id"]))["data"]] == [entry["id"]]
    assert (await listed(to=entry["created_at"], action="USER_CREATED"))["total"] == 5
    assert (await listed(**{"from": entry["created_at"]}, action="USER_CREATED"))["total"] == 2
    assert (await listed(user_id=str(new_id())))["data"] == []
    bad = await client.get("/api/v1/audit?cursor=nonsense", headers=auditor.headers)
    assert list(bad.json()["details"]["fieldErrors"]) == ["cursor"]
