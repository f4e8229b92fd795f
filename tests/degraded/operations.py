"""Every operation of the API with a request that succeeds on a healthy system, generated from the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import msgspec

from api.app import create_app
from api.openapi import openapi_document
from models.identity.permissions import MATRIX
from models.identity.rules import Role
from models.kit.ids import new_id
from models.work.commands import assign_driver, report_status
from models.work.rules import WorkOrderStatus
from tests.factories.api import settings
from tests.factories.people import PASSWORD, Person
from tests.factories.work import World

DOCUMENT: Final = openapi_document(create_app(settings(), with_relay=False))
OPERATIONS: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
}
#: What answers without Postgres. A line more here is a decision.
WITHOUT_POSTGRES: Final = {"Health", "HealthV1", "ListPermissions"}
#: Says by itself, and in its own shape, what is out.
READY: Final = "Ready"

#: The first of these that the matrix lets in is who asks.
_PREFERRED: Final = (Role.DISPATCHER, Role.BOARD_ADMIN, Role.DRIVER, Role.AUDITOR, Role.CUSTOMER, Role.SUPER_ADMIN)
#: Fields of a body that name something which a plain request leaves out.
_LEFT_OUT: Final = {
    "customer_id", "service_location_id", "driveway_tier_id", "requested_by", "completion_photo_key", "scheduled_for",
    "occurred_at", "expires_in_s", "password", "priority",
}  # fmt: skip
#: What a path ends in where it is about work that a driver holds already; other work is waiting.
_OF_HELD_WORK: Final = {"complete", "unassign", "hand-back", "status"}
_ON_THE_WAY: Final = (WorkOrderStatus.EN_ROUTE, WorkOrderStatus.ARRIVED, WorkOrderStatus.IN_PROGRESS)


class Ask(msgspec.Struct, frozen=True):
    """One request, ready to be sent."""

    name: str
    method: str
    path: str
    headers: dict[str, str]
    body: Any

    @property
    def options(self) -> dict[str, Any]:
        return {"headers": self.headers} | ({} if self.body is None else {"json": self.body})


class Asks:
    """Makes requests in one organization; each that changes something has people and work of its own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.people: dict[Role, Person] = {Role.DISPATCHER: world.dispatcher}
        self.refresh_token = ""

    @classmethod
    async def make(cls, world: World) -> Asks:
        asks = cls(world)
        for role in _PREFERRED[1:]:
            if role is not Role.DRIVER:
                asks.people[role] = await world.people.person(role, world.organization_id)
        return asks

    async def all(self) -> list[Ask]:
        return [await self.of(name) for name in OPERATIONS]

    async def of(self, name: str) -> Ask:
        method, path, operation = OPERATIONS[name]
        driver = await self.world.driver()
        person = driver
        if (role := self._role(operation)) is not Role.DRIVER:
            person = self.people[role]
        headers = dict(person.headers) if "x-permission" in operation else {}
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                value = await self._value_of(parameter["name"], path, driver)
                path = path.replace(f"{{{parameter['name']}}}", value)
        if "428" in operation["responses"]:
            headers["If-Match"] = f'"{await self._version(path)}"'
        return Ask(name, method, path, headers, await self._body(name, operation, driver))

    def _role(self, operation: dict[str, Any]) -> Role:
        permitted = MATRIX[operation["x-permission"]] if "x-permission" in operation else set(Role)
        return next(role for role in _PREFERRED if role in permitted)

    async def _value_of(self, parameter: str, path: str, driver: Person) -> str:
        world = self.world
        if parameter == "work_order_id":
            return str(await self._work(path, driver))
        if parameter == "offer_id":
            work = await world.enrollment()
            async with world.database.transaction() as session:
                await assign_driver(session, work, driver.driver_id, "offer")
            return str((await world.pending(work)).id)
        if parameter == "entry_id":
            entry = "SELECT id FROM audit_log WHERE organization_id = :id LIMIT 1"
            return str((await world.one(entry, id=world.organization_id)).id)
        known = {"driver_id": driver.driver_id, "user_id": driver.user_id, "kind": "job"}
        return str(known.get(parameter, new_id()))

    async def _work(self, path: str, driver: Person) -> UUID:
        """Waiting work, or work that this driver holds where the operation needs that."""
        make = {"jobs": self.world.job, "orders": self.world.order}
        words = path.strip("/").split("/")
        kind = next((word for word in words if word in (*make, "routes")), "")
        if kind == "routes":
            work = await self.world.route(driver)
        else:
            work = await make.get(kind, self.world.enrollment)()
        if words[-1] in _OF_HELD_WORK:
            async with self.world.database.transaction() as session:
                await assign_driver(session, work, driver.driver_id, "force")
            for status in _ON_THE_WAY if words[-1] == "complete" else ():
                async with self.world.database.transaction() as session:
                    await report_status(session, work, driver.driver_id, status)
        return work

    async def _version(self, path: str) -> int:
        last = path.rpartition("/")[2]
        if last == "job":
            versions = (
                "SELECT version FROM dispatch_policies WHERE organization_id = :id AND kind = 'job' AND is_current"
            )
            return int((await self.world.one(versions, id=self.world.organization_id)).version)
        return int((await self.world.work_order(UUID(last))).version)

    async def _body(self, name: str, operation: dict[str, Any], driver: Person) -> Any:
        if "requestBody" not in operation:
            return None
        content = next(iter(operation["requestBody"]["content"].values()))
        example = content["example"] if "example" in content else next(iter(content["examples"].values()))["value"]
        if name == "Login":
            person = await self.world.people.person("dispatcher", self.world.organization_id, password=PASSWORD)
            return {"email": person.email, "password": PASSWORD}
        if name == "RefreshTokens":
            return {"refresh_token": self.refresh_token or example["refresh_token"]}
        if name == "CreateUser":
            return {"full_name": "Ada Field", "role": "driver", "email": f"{new_id()}@demo.test"}
        if name == "ReplaceDispatchPolicy":
            policies = (
                "SELECT settings FROM dispatch_policies WHERE organization_id = :id AND kind = 'job' AND is_current"
            )
            return (await self.world.one(policies, id=self.world.organization_id)).settings
        if name == "ReportJobStatus":
            return {"status": "en_route"}
        body = {key: value for key, value in example.items() if key not in _LEFT_OUT}
        if "driver_id" in body:
            body["driver_id"] = str(driver.driver_id)
        return body
