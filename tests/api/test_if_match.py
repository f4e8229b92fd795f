"""Changes to what is shared name the version that they were made from: generated from the OpenAPI document."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec
import pytest

from api.app import create_app
from api.openapi import openapi_document
from models.kit.database import Database
from models.policies.rules import DEFAULTS
from models.work.rules import WorkKind
from tests.factories.api import settings
from tests.factories.desk import KINDS, Desk
from tests.factories.people import Person
from tests.factories.work import World

DOCUMENT = openapi_document(create_app(settings(dev_mode=False), with_relay=False))
CHANGES = {
    (method.upper(), path): operation
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method in ("put", "patch")
}
#: One's own things and a status are changed by whoever comes last.
UNSHARED = {change for change in CHANGES if "/me" in change[1] or change[1].endswith("/status")}
SHARED = sorted(CHANGES.keys() - UNSHARED)

Shared = tuple[str, Person, dict[str, Any]]


@pytest.fixture
async def desk(client: httpx.AsyncClient, database: Database) -> Desk:
    return Desk(client, await World.make(database))


async def work(desk: Desk, path: str) -> Shared:
    made = await desk.create(path)
    return f"/{path}/{made['id']}", desk.world.dispatcher, {"priority": 9}


async def policy(desk: Desk) -> Shared:
    admin = await desk.world.people.person("board_admin", desk.world.organization_id)
    return "/dispatch-policies/job", admin, msgspec.to_builtins(DEFAULTS[WorkKind.JOB]) | {"capacity": 7}


#: By the path's noun: one resource, who may change it, and a change.
MAKERS: dict[str, Callable[[Desk], Awaitable[Shared]]] = {
    **{path: lambda desk, path=path: work(desk, path) for path in KINDS},
    "dispatch-policies": policy,
}


async def shared(desk: Desk, path: str) -> Shared:
    noun = path.removeprefix("/api/v1/").split("/")[0]
    assert noun in MAKERS, f"say in MAKERS how a resource of {path} is made and changed"
    return await MAKERS[noun](desk)


def code(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json().get("code")


def test_only_changes_of_what_is_shared_document_the_precondition() -> None:
    for change, operation in CHANGES.items():
        assert ({"412", "428"} <= operation["responses"].keys()) == (change in SHARED), change
    others = [
        operation for path, item in DOCUMENT["paths"].items() for method, operation in item.items()
        if (method.upper(), path) not in CHANGES
    ]  # fmt: skip
    assert not {"412", "428"} & {status for operation in others for status in operation["responses"]}


@pytest.mark.parametrize(("method", "path"), SHARED)
async def test_a_change_is_made_to_the_version_that_was_read(desk: Desk, method: str, path: str) -> None:
    where, by, body = await shared(desk, path)
    read = await desk.get(where, by)
    etag = read.headers["etag"]
    assert etag == f'"{read.json()["version"]}"'
    assert code(await desk.ask(method, where, by, json=body)) == (428, "PRECONDITION_REQUIRED")
    for wrong in ('"0"', '"999"', f"W/{etag}", "*", f'{etag}, "999"', f"{etag}, {etag}", etag.strip('"'), '""', "x"):
        answer = await desk.ask(method, where, by, json=body, headers={"If-Match": wrong})
        assert code(answer) == (412, "PRECONDITION_FAILED"), wrong
    assert (await desk.get(where, by)).json() == read.json()
    changed = await desk.ask(method, where, by, json=body, headers={"If-Match": etag})
    assert changed.status_code == 200, changed.text
    assert changed.headers["etag"] == f'"{changed.json()["version"]}"' != etag
    assert changed.json() | body == changed.json()
    again = await desk.get(where, by)
    assert (again.json(), again.headers["etag"]) == (changed.json(), changed.headers["etag"])
    assert code(await desk.ask(method, where, by, json=body, headers={"If-Match": etag})) == (
        412, "PRECONDITION_FAILED"
    )  # fmt: skip


@pytest.mark.parametrize(("method", "path"), SHARED)
async def test_of_twenty_changes_to_one_version_one_is_made(desk: Desk, method: str, path: str) -> None:
    where, by, body = await shared(desk, path)
    headers = {"If-Match": (await desk.get(where, by)).headers["etag"]}
    answers = await asyncio.gather(*(desk.ask(method, where, by, json=body, headers=headers) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 19
    (made,) = [answer for answer in answers if answer.status_code == 200]
    assert (await desk.get(where, by)).json() == made.json()


@pytest.mark.parametrize(("method", "path"), sorted(UNSHARED))
def test_ones_own_and_a_status_need_no_version(method: str, path: str) -> None:
    assert not {"412", "428"} & CHANGES[method, path]["responses"].keys()


@pytest.mark.parametrize("kind", KINDS)
async def test_every_answer_about_work_has_the_version_to_send_next(desk: Desk, kind: str) -> None:
    driver = await desk.world.driver()
    named = {"driver_id": str(driver.driver_id)}
    made = await desk.ask("POST", f"/{kind}", json=await desk.body(kind))
    where = f"/{kind}/{made.json()['id']}"
    etag, priority = made.headers["etag"], 0

    async def patched() -> str:
        """Changed with the version that the last answer had."""
        nonlocal priority
        priority += 1
        answer = await desk.ask("PATCH", where, json={"priority": priority}, headers={"If-Match": etag})
        assert answer.status_code == 200, answer.text
        return answer.headers["etag"]

    etag = await patched()
    for action, body in (
        ("assign", named | {"mode": "offer"}), ("reoffer", {}), ("assign", named | {"mode": "force"}),
        ("unassign", {}),
    ):  # fmt: skip
        answer = await desk.post(f"{where}/{action}", **body)
        assert answer.status_code == 200, (action, answer.text)
        etag = answer.headers["etag"]
        assert etag == f'"{answer.json()["version"]}"'
        etag = await patched()
    cancelled = await desk.post(f"{where}/cancel")
    assert cancelled.headers["etag"] == f'"{cancelled.json()["version"]}"' != etag
    assert cancelled.headers["etag"] == (await desk.get(where)).headers["etag"]
