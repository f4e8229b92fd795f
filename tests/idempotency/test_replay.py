"""A POST that is sent again under its Idempotency-Key: one effect, and the first answer again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec
import pytest

from api.app import create_app
from api.openapi import openapi_document
from models.identity.permissions import MATRIX
from models.identity.rules import Role
from models.kit.ids import UUID, new_id
from tests.factories.api import settings
from tests.factories.contents import changed, contents
from tests.factories.desk import KINDS, Desk, field_errors
from tests.factories.people import Person
from tests.factories.workers import until

DOCUMENT = openapi_document(create_app(settings(dev_mode=False), with_relay=False))
POSTS: dict[str, tuple[str, dict[str, Any]]] = {
    item["post"]["operationId"]: (path, item["post"]) for path, item in DOCUMENT["paths"].items() if "post" in item
}
#: Their answers hold secrets, or their requests have a key of their own.
EXEMPT = ("/api/v1/auth/", "/api/v1/api-keys", "/api/v1/webhooks/incoming/")
KEYED = {name: post for name, post in POSTS.items() if not post[0].startswith(EXEMPT)}
KEY = "a key of the client's own, 1"

Asked = tuple[str, Person, dict[str, Any]]


async def send(desk: Desk, path: str, by: Person | None = None, *, key: str = KEY, **options: Any) -> httpx.Response:
    return await desk.ask("POST", path, by, headers={"Idempotency-Key": key} | options.pop("headers", {}), **options)


def code(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json().get("code")


def left(answer: httpx.Response) -> tuple[int, bytes, dict[str, str | None]]:
    """What must be the same in a replay."""
    names = ("etag", "location", "content-type", "content-length", "preference-applied", "retry-after")
    return answer.status_code, answer.content, {name: answer.headers.get(name) for name in names}


async def replayed(desk: Desk, first: httpx.Response, path: str, by: Person | None = None, **options: Any) -> None:
    """Sent again, it leaves no trace and gets the same answer."""
    assert "idempotency-replayed" not in first.headers
    before = await contents(desk.world.database)
    again = await send(desk, path, by, **options)
    assert left(again) == left(first)
    assert again.headers["idempotency-replayed"] == "true"
    assert changed(before, await contents(desk.world.database)) == {}


async def create(desk: Desk, path: str) -> Asked:
    return f"/{path}", desk.world.dispatcher, await desk.body(path)


async def make_user(desk: Desk) -> Asked:
    return "/users", desk.world.dispatcher, {"full_name": "Ada", "role": "driver", "email": "ada@demo.test"}


async def answer_offer(desk: Desk, how: str) -> Asked:
    driver = await desk.world.driver()
    work = await desk.world.enrollment()
    await desk.world.advance(work)
    return f"/offers/{(await desk.world.pending(work)).id}/{how}", driver, {}


async def act(desk: Desk, path: str, action: str) -> Asked:
    """An action on work of this kind that has come to where it may be done."""
    made = await desk.create("jobs" if path == "work-orders" else path)
    driver = await desk.world.driver()
    named = {"driver_id": str(driver.driver_id)}
    if action in ("unassign", "complete"):
        await desk.post(f"/work-orders/{made['id']}/assign", **named, mode="force")
    for step in ("en_route", "arrived", "in_progress") if action == "complete" else ():
        await desk.ask("PATCH", f"/drivers/me/jobs/{made['id']}/status", driver, json={"status": step})
    return f"/{path}/{made['id']}/{action}", desk.world.dispatcher, named if action == "assign" else {}


async def beat(desk: Desk) -> Asked:
    return "/drivers/me/heartbeat", await desk.world.driver(), {"location": {"lat": 1, "lng": 2}}


async def give_back(desk: Desk) -> Asked:
    driver = await desk.world.driver()
    made = await desk.create("jobs")
    await desk.post(f"/jobs/{made['id']}/assign", driver_id=str(driver.driver_id), mode="force")
    return f"/drivers/me/jobs/{made['id']}/hand-back", driver, {"reason": "Flat tyre"}


_NOUNS = {"WorkOrder": "work-orders"} | {path.removesuffix("s").title(): path for path in KINDS}
CASES: dict[str, Callable[[Desk], Awaitable[Asked]]] = {
    **{f"Create{path.removesuffix('s').title()}": lambda desk, path=path: create(desk, path) for path in KINDS},
    **{
        f"{action.title()}{noun}": lambda desk, path=path, action=action: act(desk, path, action)
        for noun, path in _NOUNS.items()
        for action in ("assign", "unassign", "reoffer", "cancel", "complete")
    },
    "CreateUser": make_user,
    "AcceptOffer": lambda desk: answer_offer(desk, "accept"),
    "RejectOffer": lambda desk: answer_offer(desk, "reject"),
    "SendHeartbeat": beat,
    "HandBackJob": give_back,
}


def test_every_post_documents_the_header_or_is_exempt() -> None:
    for name, (path, operation) in POSTS.items():
        headers = [p["name"] for p in operation.get("parameters", ()) if p["in"] == "header"]
        assert ("Idempotency-Key" in headers) == (name in KEYED), path
        if name in KEYED:
            codes = operation["responses"]
            assert {"400", "409", "422"} <= codes.keys(), path
            assert "IDEMPOTENCY_IN_PROGRESS" in str(_resolved(codes["409"])), path
            assert "Retry-After" in _resolved(codes["409"])["headers"], path
            assert "IDEMPOTENCY_KEY_REUSED" in str(_resolved(codes["422"])), path
    others = [op for item in DOCUMENT["paths"].values() for method, op in item.items() if method != "post"]
    assert "Idempotency-Key" not in str([operation.get("parameters") for operation in others])
    assert {"422"} & {code for operation in others for code in operation["responses"]} == set()


def _resolved(response: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in response:
        return response
    found: dict[str, Any] = DOCUMENT["components"]["responses"][response["$ref"].rpartition("/")[2]]
    return found


@pytest.mark.parametrize("operation", sorted(KEYED))
async def test_what_is_sent_again_has_one_effect_and_one_answer(desk: Desk, operation: str) -> None:
    path, by, body = await asked(desk, operation)
    before = await contents(desk.world.database)
    first = await send(desk, path, by, json=body)
    gained = changed(before, await contents(desk.world.database))
    assert gained.pop("idempotency_keys") == 1
    if operation in CASES:
        assert first.status_code in (200, 201), first.text
        assert gained
        if first.status_code == 201 and operation != "CreateUser":
            assert (gained["work_orders"], gained["work_order_events"], gained["workflow_wakes"]) == (1, 1, 1)
            assert gained["audit_log"] == 1
    await replayed(desk, first, path, by, json=body)


async def asked(desk: Desk, operation: str) -> Asked:
    """The operation's own case; one without a case is asked with its documented example, by one who may."""
    if operation in CASES:
        return await CASES[operation](desk)
    path, documented = KEYED[operation]
    roles = sorted(MATRIX[documented["x-permission"]], key=list(Role).index)
    by = await desk.world.people.person(roles[0], desk.world.organization_id)
    for parameter in documented["parameters"]:
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", str(new_id()))
    content = documented.get("requestBody", {}).get("content", {}).get("application/json", {})
    return path.removeprefix("/api/v1"), by, content.get("example") or {}


async def test_a_key_stands_for_one_request(desk: Desk) -> None:
    body = await desk.body("enrollments")
    first = await send(desk, "/enrollments", json=body)
    assert first.status_code == 201
    before = await contents(desk.world.database)
    for other in (body | {"priority": 9}, {}, [], body | {"premise_id": "P-101"}):
        assert code(await send(desk, "/enrollments", json=other)) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert code(await send(desk, "/enrollments?x=1", json=body)) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert changed(before, await contents(desk.world.database)) == {}
    await replayed(desk, first, "/enrollments", json=body)


async def test_a_key_for_one_offer_is_not_one_for_another(desk: Desk) -> None:
    (first, driver, _), (other, _, _) = [await answer_offer(desk, "accept") for _ in range(2)]
    assert (await send(desk, first, driver)).status_code == 200
    assert code(await send(desk, other, driver)) == (422, "IDEMPOTENCY_KEY_REUSED")


async def test_keys_of_others_and_of_other_routes_are_other_keys(desk: Desk) -> None:
    people = desk.world.people
    stranger = await people.person("dispatcher", await people.organization())
    colleague = await people.person("dispatcher", desk.world.organization_id)
    body = await desk.body("enrollments")
    answers = [await send(desk, "/enrollments", by, json=body) for by in (None, colleague, stranger)]
    answers.append(await send(desk, "/jobs", json=await desk.body("jobs")))
    assert [answer.status_code for answer in answers] == [201] * 4
    assert len({answer.json()["id"] for answer in answers}) == 4
    for by, first in zip((None, colleague, stranger), answers, strict=False):
        await replayed(desk, first, "/enrollments", by, json=body)


async def test_a_refusal_is_given_again_though_it_would_no_longer_be_one(desk: Desk) -> None:
    made = await desk.create("enrollments")
    where = f"/enrollments/{made['id']}"
    refused = await send(desk, f"{where}/unassign", json={"reason": "ill"})
    assert code(refused) == (409, "ILLEGAL_TRANSITION")
    driver = await desk.world.driver()
    forced = await desk.post(f"{where}/assign", driver_id=str(driver.driver_id), mode="force")
    assert forced.json()["status"] == "assigned"
    await replayed(desk, refused, f"{where}/unassign", json={"reason": "ill"})
    assert (await desk.get(where)).json()["status"] == "assigned"
    assert (await send(desk, f"{where}/unassign", key="another", json={"reason": "ill"})).status_code == 200


async def test_an_offer_that_came_too_late_stays_too_late(desk: Desk) -> None:
    path, driver, _ = await answer_offer(desk, "accept")
    await desk.world.pass_time(301)
    refused = await send(desk, path, driver)
    assert code(refused) == (409, "OFFER_EXPIRED")
    await desk.world.pass_time(-301)
    await replayed(desk, refused, path, driver)
    assert (await send(desk, path, driver, key="another")).status_code == 200


async def test_what_was_not_found_or_wrong_is_told_again(desk: Desk) -> None:
    for path, body, expected in (
        (f"/jobs/{new_id()}/cancel", {}, (404, "NOT_FOUND")),
        ("/jobs", {}, (400, "VALIDATION_FAILED")),
        ("/jobs", {"address": 7}, (400, "VALIDATION_FAILED")),
    ):
        key = f"{path} {body}"
        refused = await send(desk, path, key=key, json=body)
        assert code(refused) == expected
        await replayed(desk, refused, path, key=key, json=body)


async def test_complaints_about_headers_and_size_are_not_kept(desk: Desk) -> None:
    body = b'{"premise_id": "P-1", "timeslot": "9"}'
    wrong = await send(desk, "/enrollments", content=body, headers={"Content-Type": "text/plain"})
    assert code(wrong) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert (await send(desk, "/enrollments", content=body)).status_code == 201
    large = await send(desk, "/enrollments", key="large", content=b" " * 1024 * 1024 + body)
    assert code(large) == (413, "PAYLOAD_TOO_LARGE")
    assert (await send(desk, "/enrollments", key="large", content=body)).status_code == 201


@pytest.mark.parametrize(
    "key", [b"", b"x" * 256, b"caf\xc3\xa9", b"caf\xe9", b"a\tb", b"a\x7fb"], ids=lambda key: repr(key[:8])
)
async def test_odd_keys_are_bad_input(desk: Desk, key: bytes) -> None:
    before = await contents(desk.world.database)
    answer = await desk.ask("POST", "/jobs", json=await desk.body("jobs"), headers={"Idempotency-Key": key})
    assert field_errors(answer) == ["Idempotency-Key"]
    assert changed(before, await contents(desk.world.database)) == {}


@pytest.mark.parametrize("key", ["x", "x" * 255, '"0198-quoted"', "'; DROP TABLE users; --", "%00 {} \\ ~"])
async def test_any_other_key_is_one(desk: Desk, key: str) -> None:
    body = await desk.body("jobs")
    first = await send(desk, "/jobs", key=key, json=body)
    assert first.status_code == 201
    await replayed(desk, first, "/jobs", key=key, json=body)


async def test_two_keys_are_none(desk: Desk) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b"), *desk.world.dispatcher.headers.items()]
    answer = await desk.client.post("/api/v1/jobs", json=await desk.body("jobs"), headers=headers)
    assert field_errors(answer) == ["Idempotency-Key"]


async def test_who_lost_the_right_is_refused_and_not_answered(desk: Desk) -> None:
    person = desk.world.dispatcher
    body = await desk.body("jobs")
    first = await send(desk, "/jobs", json=body)
    assert first.status_code == 201
    caller = msgspec.structs.replace(person.caller, role=Role.AUDITOR)
    demoted = msgspec.structs.replace(person, caller=caller, token=desk.world.people.tokens.issue(caller))
    assert code(await send(desk, "/jobs", demoted, json=body)) == (403, "FORBIDDEN")
    anonymous = await desk.client.post("/api/v1/jobs", json=body, headers={"Idempotency-Key": KEY})
    assert code(anonymous) == (401, "UNAUTHENTICATED")
    await replayed(desk, first, "/jobs", json=body)
    # Nor is a lack of right kept for when it is granted.
    assert code(await send(desk, "/jobs", demoted, key="denied", json=body)) == (403, "FORBIDDEN")
    assert (await send(desk, "/jobs", key="denied", json=body)).status_code == 201


async def test_other_methods_and_signing_in_have_no_use_for_a_key(desk: Desk) -> None:
    made = await desk.create("jobs")
    headers = {"Idempotency-Key": "\t not even a good one" * 20, "If-Match": '"1"'}
    before = await contents(desk.world.database)
    assert (await desk.ask("GET", f"/jobs/{made['id']}", headers=headers)).status_code == 200
    assert changed(before, await contents(desk.world.database)) == {}
    assert (await desk.ask("PATCH", f"/jobs/{made['id']}", json={"priority": 9}, headers=headers)).status_code == 200
    login = {"email": "nobody@demo.test", "password": "wrong"}
    for _ in range(2):
        answer = await desk.client.post("/api/v1/auth/login", json=login, headers=headers)
        assert code(answer) == (401, "INVALID_CREDENTIALS")
    assert (await desk.world.one("SELECT count(*) AS n FROM idempotency_keys")).n == 0


async def test_an_answer_that_waited_for_its_offer_is_kept_as_it_left(desk: Desk) -> None:
    driver = await desk.world.driver()
    body = await desk.body("enrollments")
    waiting = asyncio.create_task(send(desk, "/enrollments", json=body, headers={"Prefer": "wait=5"}))

    async def made() -> Any:
        rows = await desk.world.all("SELECT id FROM work_orders")
        return rows and rows[0].id

    work_order_id = await until(made)
    # Its work is committed, and so is its answer so far.
    meanwhile = await send(desk, "/enrollments", json=body)
    assert meanwhile.headers["idempotency-replayed"] == "true"
    assert (meanwhile.status_code, meanwhile.json()["offers"]) == (201, [])
    await desk.world.advance(work_order_id)
    first = await waiting
    assert (first.status_code, first.headers["preference-applied"]) == (201, "wait=5")
    (offer,) = first.json()["offers"]
    assert offer["driver_id"] == str(driver.driver_id)
    assert UUID(first.json()["id"]) == work_order_id
    await replayed(desk, first, "/enrollments", json=body)
