"""One error shape, whatever layer an error comes from."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

import httpx
import msgspec
import pytest
from litestar import Litestar, Request, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from sqlalchemy import insert, select, text

from api.app import create_app
from api.bodies import errors_in
from api.dependencies import wait_preference
from api.errors import STATUS
from api.guards import PUBLIC, needs
from models.identity.permissions import Caller
from models.identity.tables import users
from models.kit.database import Database, Session
from models.kit.errors import Refusal
from models.organizations.tables import organizations
from tests.factories.api import settings
from tests.factories.people import People, Person
from tests.factories.proxy import Proxy


class Stop(msgspec.Struct, forbid_unknown_fields=True):
    address: Annotated[str, msgspec.Meta(min_length=1)]
    lat: Annotated[float, msgspec.Meta(ge=-90, le=90)]


class Plan(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(max_length=5)]
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)]
    stops: list[Stop] = []
    home: Stop | None = None
    notes: dict[str, str] = {}


@post("/try/plan", opt=needs("account:read"))
async def make_plan(data: JSONBody[Plan]) -> Plan:
    return data


@get("/try/boom", opt=PUBLIC)
async def boom() -> None:
    raise RuntimeError("the secret of the house")


@get("/try/refused", opt=PUBLIC)
async def refused() -> None:
    class TryAgainTomorrow(Refusal):
        message = "Not today"

    raise TryAgainTomorrow(days=1)


@post("/try/broken", opt=needs("account:read"))
async def breaks_a_constraint(session: NamedDependency[Session], caller: NamedDependency[Caller]) -> None:
    await session.run(
        insert(users).values(organization_id=caller.organization_id, full_name="No way to reach", role="driver")
    )


@post("/try/half", opt=needs("account:read"))
async def writes_then_fails(session: NamedDependency[Session], caller: NamedDependency[Caller]) -> None:
    await session.run(insert(organizations).values(kind="operator", name="Half", slug="half"))
    raise Refusal()


@post("/try/late", opt=needs("account:read"))
async def fails_at_commit(session: NamedDependency[Session], caller: NamedDependency[Caller]) -> None:
    await session.run(text("CREATE TEMP TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP"))
    await session.run(text("INSERT INTO t VALUES (1), (1)"))


@post("/try/number", opt=needs("account:read"))
async def overflows(session: NamedDependency[Session], caller: NamedDependency[Caller]) -> None:
    await session.run(text("SELECT (2147483647 + :one)::int4"), {"one": 1})


@get("/try/slow", opt=needs("account:read", time_limit_s=0.2))
async def sleeps(session: NamedDependency[Session], caller: NamedDependency[Caller]) -> None:
    await session.run(text("SELECT pg_sleep(5)"))


TRIED = [
    make_plan, boom, refused, breaks_a_constraint, writes_then_fails, fails_at_commit, overflows, sleeps
]  # fmt: skip


@pytest.fixture
async def app(database: Database) -> AsyncIterator[Litestar]:
    application = create_app(settings(), database=database, with_relay=False)
    for handler in TRIED:
        application.register(handler)
    async with application.lifespan():
        yield application


@pytest.fixture
async def person(people: People) -> Person:
    return await people.person("dispatcher", await people.organization())


def checked(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The details of an error in our shape."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error", "code", "details", "request_id"}
    assert body["code"] == code
    assert body["error"]
    assert body["request_id"] == response.headers["x-request-id"]
    assert response.headers["x-content-type-options"] == "nosniff"
    details: dict[str, Any] = body["details"]
    return details


@pytest.mark.parametrize("path", ["/api/v1/nothing", "/nothing", "/api/v1/users/not-an-id", "/api/v2/users"])
async def test_unknown_paths(client: httpx.AsyncClient, person: Person, path: str) -> None:
    checked(await client.get(path, headers=person.headers), 404, "NOT_FOUND")


async def test_wrong_methods(client: httpx.AsyncClient) -> None:
    response = await client.put("/api/v1/users")
    checked(response, 405, "METHOD_NOT_ALLOWED")
    assert set(response.headers["allow"].split(", ")) == {"GET", "POST", "OPTIONS"}


@pytest.mark.parametrize("sent", ["declared", "streamed"])
async def test_bodies_beyond_a_mebibyte(client: httpx.AsyncClient, person: Person, sent: str) -> None:
    body = b'"' + b"x" * 1024 * 1024 + b'"'

    async def pieces() -> AsyncIterator[bytes]:
        yield body[:1000]
        yield body[1000:]

    content: Any = body if sent == "declared" else pieces()
    response = await client.post("/try/plan", headers=person.headers, content=content)
    checked(response, 413, "PAYLOAD_TOO_LARGE")


async def test_bodies_that_are_not_json(client: httpx.AsyncClient, person: Person) -> None:
    response = await client.post("/try/plan", headers=person.headers, data={"name": "x"})
    checked(response, 415, "UNSUPPORTED_MEDIA_TYPE")
    upload = await client.post("/try/plan", headers=person.headers, files={"name": b"x"})
    checked(upload, 415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize(
    "body",
    [b"{", b"nonsense", b'{"name": "\xff"}', b'{"name": NaN}', b"[" * 100_000, b'{"a": 1e999}', b'{"name": "\x00"}'],
)
async def test_bodies_that_are_broken(client: httpx.AsyncClient, person: Person, body: bytes) -> None:
    details = checked(await client.post("/try/plan", headers=person.headers, content=body), 400, "VALIDATION_FAILED")
    assert details["fieldErrors"]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"name", "priority"}),
        ({"name": "toolong", "priority": "5", "color": 1}, {"name", "priority", "color"}),
        ({"name": None, "priority": 1.5}, {"name", "priority"}),
        ({"name": "x", "priority": True}, {"priority"}),
        ({"name": "x", "priority": 10, "stops": [{"address": ""}, {}, 7]},
         {"priority", "stops.0.address", "stops.0.lat", "stops.1.address", "stops.1.lat", "stops.2"}),
        ({"name": "x", "priority": 1, "home": {"address": "a", "lat": 91, "lng": 1}}, {"home.lat", "home.lng"}),
        ({"name": "x", "priority": 1, "home": 1}, {"home"}),
        ({"name": "x", "priority": 1, "notes": {"a": 1}}, {"notes"}),
        ({"name": "a\0b", "priority": 1, "stops": [{"address": "\0", "lat": 1}]}, {"name", "stops.0.address"}),
        ({"name": "x", "priority": 1, "notes": {"a": "\0"}}, {"notes.a"}),
        ([], {"body"}),
        (None, {"body"}),
    ],
)  # fmt: skip
async def test_every_wrong_field_is_named(
    client: httpx.AsyncClient, person: Person, body: Any, fields: set[str]
) -> None:
    response = await client.post("/try/plan", headers=person.headers, content=json.dumps(body))
    found = checked(response, 400, "VALIDATION_FAILED")["fieldErrors"]
    assert {name.removesuffix(".a" if "notes" in fields else "!") for name in found} == fields
    assert all(isinstance(message, str) for messages in found.values() for message in messages)


async def test_a_missing_body_is_named(client: httpx.AsyncClient, person: Person) -> None:
    details = checked(await client.post("/try/plan", headers=person.headers), 400, "VALIDATION_FAILED")
    assert details == {"fieldErrors": {"body": ["A JSON body is required"]}}


async def test_a_right_body_arrives(client: httpx.AsyncClient, person: Person) -> None:
    plan = {"name": "x", "priority": 1, "stops": [{"address": "\\u0000 spelt out", "lat": 1.0}]}
    response = await client.post("/try/plan", headers=person.headers, json=plan)
    assert response.status_code == 201
    assert response.json()["stops"] == plan["stops"]


def test_a_rule_over_several_fields_is_reported_for_the_body() -> None:
    class Both(msgspec.Struct):
        a: int
        b: int

        def __post_init__(self) -> None:
            if self.a > self.b:
                raise ValueError("a must not be above b")

    assert errors_in({"a": 2, "b": 1}, Both) == {"body": ["a must not be above b"]}
    assert errors_in([{"a": 2, "b": 1}], list[Both]) == {"0": ["a must not be above b"]}


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("page=0", {"page"}),
        ("limit=101", {"limit"}),
        ("page=x&limit=-1", {"page", "limit"}),
        ("page=99999999999999999999", {"page"}),
        ("role=emperor&status=asleep", {"role", "status"}),
        ("q=%00", {"body"}),
        (f"q={'x' * 121}", {"q"}),
    ],
)
async def test_bad_query_parameters(client: httpx.AsyncClient, person: Person, query: str, fields: set[str]) -> None:
    response = await client.get(f"/api/v1/users?{query}", headers=person.headers)
    assert set(checked(response, 400, "VALIDATION_FAILED")["fieldErrors"]) == fields


async def test_parameters_named_for_a_keyword_are_reported_by_their_name(
    client: httpx.AsyncClient, people: People
) -> None:
    auditor = await people.person("auditor", await people.organization())
    response = await client.get("/api/v1/audit?from=yesterday", headers=auditor.headers)
    assert set(checked(response, 400, "VALIDATION_FAILED")["fieldErrors"]) == {"from"}


async def test_refusals_have_their_own_code(client: httpx.AsyncClient) -> None:
    assert checked(await client.get("/try/refused"), 409, "TRY_AGAIN_TOMORROW") == {"days": 1}
    assert all(400 <= status < 600 for status in STATUS.values())


async def test_bugs_are_answered_without_a_word_of_them(client: httpx.AsyncClient, capsys: Any) -> None:
    response = await client.get("/try/boom", headers={"X-Request-ID": "request-12345"})
    assert checked(response, 500, "INTERNAL_ERROR") == {}
    assert response.json()["error"] == "Internal server error"
    assert "secret" not in response.text
    logged = json.loads(capsys.readouterr().out.strip().splitlines()[0])
    assert (logged["event"], logged["request_id"]) == ("request failed", "request-12345")
    assert "the secret of the house" in logged["exception"]


async def test_a_broken_constraint_is_a_conflict(client: httpx.AsyncClient, person: Person) -> None:
    for path in ("/try/broken", "/try/late"):
        response = await client.post(path, headers=person.headers)
        checked(response, 409, "CONFLICT")
        assert "constraint" not in response.text


async def test_a_value_beyond_a_column_is_bad_input(client: httpx.AsyncClient, person: Person) -> None:
    checked(await client.post("/try/number", headers=person.headers), 400, "VALIDATION_FAILED")


async def test_a_refused_request_leaves_nothing_behind(
    client: httpx.AsyncClient, person: Person, database: Database
) -> None:
    checked(await client.post("/try/half", headers=person.headers), 409, "REFUSED")
    async with database.transaction() as session:
        assert await session.value(select(organizations.c.id).where(organizations.c.slug == "half")) is None


async def test_a_request_beyond_its_time_is_given_up(client: httpx.AsyncClient, person: Person) -> None:
    began = time.perf_counter()
    response = await client.get("/try/slow", headers=person.headers)
    checked(response, 503, "UNAVAILABLE")
    assert response.headers["retry-after"] == "1"
    assert time.perf_counter() - began < 2
    # The connection that was cut off in the middle is not handed to the next request.
    assert (await client.get("/api/v1/auth/me", headers=person.headers)).status_code == 200


@pytest.mark.parametrize("how", ["refuses", "hangs", "hung up"])
async def test_without_postgres_the_answer_is_503_within_3_seconds(
    database: Database, database_url: str, how: str
) -> None:
    people = People(database)
    person = await people.person("dispatcher", await people.organization())
    async with Proxy(database_url) as proxy:
        app = create_app(settings(database_url=proxy.url), with_relay=False)
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with app.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://fairlead.test") as client:
            assert (await client.get("/api/v1/auth/me", headers=person.headers)).status_code == 200
            await {"refuses": proxy.refuse, "hangs": proxy.hang, "hung up": proxy.hang_up}[how]()
            began = time.perf_counter()
            response = await client.get("/api/v1/auth/me", headers=person.headers)
            took = time.perf_counter() - began
            if how == "hung up":
                assert response.status_code in (200, 503)
            else:
                checked(response, 503, "UNAVAILABLE")
                assert response.headers["retry-after"] == "1"
            assert took < 3
            await proxy.resume()
            await _until_it_answers(client, person)


async def test_a_creation_that_may_wait_for_its_offer_does_not_wait_for_postgres(
    database: Database, database_url: str
) -> None:
    people = People(database)
    person = await people.person("dispatcher", await people.organization())
    async with Proxy(database_url) as proxy:
        app = create_app(settings(database_url=proxy.url), with_relay=False)
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with app.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://fairlead.test") as client:
            await _until_it_answers(client, person)
            await proxy.hang()
            began = time.perf_counter()
            response = await client.post(
                "/api/v1/enrollments",
                json={"premise_id": "P-1", "timeslot": "08:00"},
                headers=person.headers | {"Prefer": "wait=5"},
            )
            assert time.perf_counter() - began < 3
            checked(response, 503, "UNAVAILABLE")
            await proxy.resume()
            await _until_it_answers(client, person)


async def _until_it_answers(client: httpx.AsyncClient, person: Person) -> None:
    for _ in range(5):
        if (await client.get("/api/v1/auth/me", headers=person.headers)).status_code == 200:
            return
    raise AssertionError("Postgres is back, and the API does not see it")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("wait=3", 3), ("respond-async, wait=99", 5), ('wait="2"', 2), ("Wait=1; x", 1), ("wait=x", 0), ("await=3", 0)],
)
def test_the_preference_to_wait(header: str, seconds: int) -> None:
    scope = {"type": "http", "headers": [(b"prefer", header.encode())]}
    assert wait_preference(Request(scope)) == seconds  # type: ignore[arg-type]


async def test_request_ids_are_taken_over_where_they_are_sane(client: httpx.AsyncClient) -> None:
    given = (await client.get("/health", headers={"X-Request-ID": "trace-1234.a_b"})).headers["x-request-id"]
    assert given == "trace-1234.a_b"
    for bad in ("short", "x" * 65, "with space in it", "<script>alert(1)</script>", ""):
        made = (await client.get("/health", headers={"X-Request-ID": bad})).headers["x-request-id"]
        assert UUID(made).version == 7
