"""The dispatcher's desk: work orders over HTTP, as the organization's dispatcher or as anyone else."""

from __future__ import annotations

from typing import Any, Final

import httpx

from models.kit.ids import UUID
from tests.factories.people import Person
from tests.factories.work import World

API: Final = "/api/v1"
PLACE: Final = {"lat": 42.36, "lng": -71.06}
KINDS: Final = ("enrollments", "jobs", "orders", "routes")


class Desk:
    """Speaks for `world.dispatcher` unless told `by` whom."""

    def __init__(self, client: httpx.AsyncClient, world: World) -> None:
        self.client = client
        self.world = world

    async def ask(self, method: str, path: str, by: Person | None = None, **options: Any) -> httpx.Response:
        headers = (by or self.world.dispatcher).headers | options.pop("headers", {})
        return await self.client.request(method, f"{API}{path}", headers=headers, **options)

    async def get(self, path: str, by: Person | None = None, **query: Any) -> httpx.Response:
        return await self.ask("GET", path, by, params=query)

    async def post(self, path: str, by: Person | None = None, **body: Any) -> httpx.Response:
        return await self.ask("POST", path, by, json=body)

    async def create(self, path: str, by: Person | None = None, **changes: Any) -> dict[str, Any]:
        """A work order of the kind whose path this is, made and answered with 201."""
        answer = await self.ask("POST", f"/{path}", by, json=await self.body(path) | changes)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    async def body(self, path: str) -> dict[str, Any]:
        """The least that creating a work order under this path takes."""
        if path == "enrollments":
            return {"premise_id": "P-100", "timeslot": "09:00-11:00"}
        if path == "jobs":
            return {"address": "1 Elm St", "location": PLACE}
        if path == "orders":
            return {"pickup": {"address": "1 Elm St", "location": PLACE},
                    "dropoff": {"address": "2 Oak St", "location": PLACE}}  # fmt: skip
        driver = await self.world.driver()
        return {"driver_id": str(driver.driver_id), "stops": [{"address": "1 Elm St"}]}

    async def offered(self, work_order_id: str) -> dict[str, Any]:
        """Let the workflow's activity run once; the work order as it is then."""
        await self.world.advance(UUID(work_order_id))
        answer = await self.get(f"/work-orders/{work_order_id}")
        assert answer.status_code == 200, answer.text
        work_order: dict[str, Any] = answer.json()
        return work_order


def field_errors(answer: httpx.Response) -> list[str]:
    """The fields that a 400 names."""
    assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_FAILED"), answer.text
    return list(answer.json()["details"]["fieldErrors"])
