"""The dispatcher of the demo: creates the morning's work, watches the board, and clears the desk at the end."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from api.cli.demo.client import Account, Explanation, Location, Page, Refused, WorkOrder
from api.cli.demo.morning import ENDED, Morning, Pace

CENTER: Final = Location(42.3601, -71.0589)
#: Beyond every driver's reach, for the one order that is to show what becomes of such.
_OUT_OF_REACH: Final = Location(42.2626, -71.8023)
_OUT_OF_REACH_ADDRESS: Final = "50 Front St, Worcester"
_STREETS: Final = ("Beacon St", "Elm St", "Cambridge St", "Tremont St", "Summer St", "Harvard Ave", "Hanover St")
_TIMESLOTS: Final = ("08:00-10:00", "09:00-11:00", "10:00-12:00")
#: With the skills that they need.
_SERVICES: Final[tuple[tuple[str, list[str]], ...]] = (
    ("plowing", ["plow"]),
    ("gutter cleaning", ["ladder"]),
    ("de-icing", []),
    ("storm cleanup", []),
)
_GOODS: Final = ("two coffees and a bagel", "a box of filters", "spare meters", "documents to sign", "road salt")
#: So many orders are planned before one of them goes out of reach.
_ORDERS_FOR_ONE_LOST: Final = 5
_MORNING_S: Final = (6.0, 55.0)
_CANCELS_AT_ONCE: Final = 8


class PlannedWork(msgspec.Struct, frozen=True):
    """What to create, and how many seconds into the morning."""

    at_s: float
    path: str
    body: dict[str, Any]


def plan(pace: Pace, *, enrollments: int, jobs: int, orders: int) -> list[PlannedWork]:
    """The morning's work in order of time, at full length: about two a second, sometimes in bursts, as it comes."""
    chance = pace.chance
    shortest, longest = _MORNING_S
    length = min(longest, max(shortest, 0.48 * (enrollments + jobs + orders)))
    planned = [PlannedWork(chance.uniform(0, length), "/enrollments", _enrollment(pace)) for _ in range(enrollments)]
    planned += [PlannedWork(chance.uniform(0, length), "/jobs", _job(pace)) for _ in range(jobs)]
    planned += [PlannedWork(chance.uniform(0, length), "/orders", _order(pace)) for _ in range(orders)]
    if orders >= _ORDERS_FOR_ONE_LOST:
        # The last of the list, early enough that nobody waits for its end.
        planned[-1] = PlannedWork(length / 4, "/orders", _lost_order(pace))
    return sorted(planned, key=lambda work: work.at_s)


def place_near(pace: Pace) -> Location:
    """Within some 3 km of the centre."""
    spread = pace.chance.uniform
    return Location(round(CENTER.lat + spread(-0.025, 0.025), 6), round(CENTER.lng + spread(-0.03, 0.03), 6))


def _address(pace: Pace) -> str:
    return f"{pace.chance.randint(1, 400)} {pace.chance.choice(_STREETS)}, Boston"


def _enrollment(pace: Pace) -> dict[str, Any]:
    return {
        "premise_id": f"P-{pace.chance.randint(10_000, 99_999)}",
        "timeslot": pace.chance.choice(_TIMESLOTS),
        "address": _address(pace),
        "location": place_near(pace),
        "required_skills": pace.chance.choice(([], [], ["meter"], ["ladder"])),
        "priority": pace.chance.choice((5, 5, 5, 7)),
    }


def _job(pace: Pace) -> dict[str, Any]:
    service, skills = pace.chance.choice(_SERVICES)
    return {
        "address": _address(pace),
        "location": place_near(pace),
        "service_type": service,
        "required_skills": skills,
    }


def _order(pace: Pace) -> dict[str, Any]:
    return {
        "pickup": {"address": _address(pace), "location": place_near(pace)},
        "dropoff": {"address": _address(pace), "location": place_near(pace)},
        "notes": pace.chance.choice(_GOODS),
    }


def _lost_order(pace: Pace) -> dict[str, Any]:
    pickup = {"address": _OUT_OF_REACH_ADDRESS, "location": _OUT_OF_REACH}
    return _order(pace) | {"pickup": pickup, "expires_in_s": pace.whole(25, at_least=6)}


class Dispatcher:
    """Acts with the dispatcher's account, and reports to the morning."""

    def __init__(self, account: Account, morning: Morning, pace: Pace) -> None:
        self.account = account
        self._morning = morning
        self._pace = pace

    async def create_all(self, planned: list[PlannedWork]) -> None:
        """Each at its time; returns when the last is created. Raises Refused."""
        for work in planned:
            await asyncio.sleep(max(0.0, work.at_s / self._pace.speed - self._morning.elapsed))
            answer = await self.account.ask("POST", work.path, work.body)
            work_order = msgspec.json.decode(answer.content, type=WorkOrder)
            self._morning.see(work_order)
            skills = f", needs {' and '.join(work_order.required_skills)}" if work_order.required_skills else ""
            self._morning.say(f"New {work_order.kind} {work_order.reference}, {work_order.address}{skills}")

    async def watch_board(self) -> None:
        """Until cancelled: what has become of everything, about once a second."""
        while True:
            await self._pace.wait(1.0, at_least=0.4)
            await self.look_at_board()

    async def look_at_board(self) -> None:
        """Pages of the newest work, back to the first of ours; others' work in between is passed over."""
        unseen = {work_order.id for work_order in self._morning.work.values() if work_order.status not in ENDED}
        page = 1
        while unseen:
            answer = await self.account.ask("GET", f"/work-orders?limit=100&page={page}")
            found = msgspec.json.decode(answer.content, type=Page)
            for work_order in found.data:
                if work_order.id in unseen:
                    unseen.discard(work_order.id)
                    self._compare(work_order)
            if page >= found.total_pages:
                return
            page += 1

    def _compare(self, work_order: WorkOrder) -> None:
        """Say what nobody of the cast did: endings by the clock or by another person at another screen."""
        self._morning.see(work_order)
        if work_order.status == "expired":
            self._morning.say(f"{work_order.reference} expires: nobody took it")
        elif work_order.status == "cancelled":
            self._morning.say(f"{work_order.reference} was called off: {work_order.cancellation_reason or 'no reason'}")

    async def call_off(self, reason: str) -> list[WorkOrder]:
        """Cancel what has not ended; gives what was cancelled. What ends meanwhile is left as it is."""
        await self.look_at_board()
        found = [work_order for work_order in self._morning.work.values() if work_order.status not in ENDED]
        at_once = asyncio.Semaphore(_CANCELS_AT_ONCE)

        async def cancel(work_order: WorkOrder) -> WorkOrder | None:
            async with at_once:
                try:
                    answer = await self.account.ask("POST", f"/work-orders/{work_order.id}/cancel", {"reason": reason})
                except Refused:
                    return None
            self._morning.see(msgspec.json.decode(answer.content, type=WorkOrder))
            return work_order

        return [each for each in await asyncio.gather(*map(cancel, found)) if each is not None]

    async def details(self) -> list[WorkOrder]:
        """All of the morning's work with its offers, oldest first."""
        found = []
        for work_order_id in self._morning.work:
            answer = await self.account.ask("GET", f"/work-orders/{work_order_id}")
            found.append(msgspec.json.decode(answer.content, type=WorkOrder))
        return found

    async def explanation(self, offer_id: str) -> Explanation:
        answer = await self.account.ask("GET", f"/offers/{offer_id}/explanation")
        return msgspec.json.decode(answer.content, type=Explanation)
