"""Who uses the system: people who create work, dispatchers who interfere, drivers who do it.

Each acts as a real client would: it knows only what it was told, asks again when it was told nothing, and keeps the
same idempotency key while it does. What each chooses comes from a generator of its own, made from the seed.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from models.work.rules import DRIVER_REPORTS, ENDED, WorkKind, WorkOrderStatus
from tests.chaos.client import Answer, Client
from tests.chaos.ledger import Certain, Creation, Fact, Ledger
from tests.chaos.world import PLACE

S = WorkOrderStatus
#: A driver's next step from each state.
_NEXT = dict(zip((S.ASSIGNED, *DRIVER_REPORTS[:-1]), DRIVER_REPORTS, strict=True))
_ENDED = frozenset(status.value for status in ENDED)
#: What a report is refused with when the work is no longer this driver's.
_NOT_MINE = frozenset({"NOT_FOUND", "WORK_ORDER_CANCELLED"})


#: How often a driver's app sends a heartbeat, and asks what it holds.
BEAT_S, SYNC_S = 8.0, 4.0


class Stage(msgspec.Struct):
    """What all actors heed. `wanted_open`: how much unfinished work they keep."""

    creating: bool = True
    #: Every offer is taken and nobody interferes: what is open gets finished.
    finishing: bool = False
    stopped: bool = False
    wanted_open: int = 45


class Actor:
    def __init__(self, client: Client, stage: Stage) -> None:
        self.client = client
        self.ledger: Ledger = client.ledger
        self.rng = client.rng
        self.stage = stage
        self.me = client.account

    def new_key(self) -> str:
        return str(UUID(int=self.rng.getrandbits(128), version=4))

    async def pause(self, least_s: float, most_s: float) -> None:
        await asyncio.sleep(self.rng.uniform(least_s, most_s))

    def know(self, what: Certain, answer: Answer, work_order_id: str, **more: str) -> None:
        self.ledger.know(Fact(what=what, work_order_id=work_order_id, since=answer.since, told_at=answer.at, **more))


class Creator(Actor):
    """Creates work of the kinds it may, as long as not too much is open, and never gives up on one it has begun."""

    numbers = itertools.count(1)

    def __init__(self, client: Client, stage: Stage, kinds: tuple[WorkKind, ...], *, every_s: float) -> None:
        super().__init__(client, stage)
        self.kinds = kinds
        self.every_s = every_s

    async def live(self) -> None:
        while self.stage.creating:
            if len(self.ledger.open) + self.ledger.owed < self.stage.wanted_open:
                await self.create()
            await asyncio.sleep(self.rng.expovariate(1 / self.every_s))

    async def create(self) -> None:
        kind = self.rng.choice(self.kinds)
        marker = f"chaos-{next(self.numbers):05d}"
        path, body = self.request(kind, marker)
        creation = Creation(
            marker=marker, kind=kind.value, path=path, body=body, key=self.new_key(), creator=self.client
        )
        self.ledger.creations[marker] = creation
        answer = await self.ask_for(creation)
        if not answer.ok:
            # Left unanswered in the ledger, which the checks report.
            return
        self.ledger.created(creation, answer.body["id"])
        self.know(Certain.CREATED, answer, answer.body["id"], marker=marker)
        if self.rng.random() < 0.1:
            # A client that lost its memory asks once more.
            await self.pause(0.1, 2.0)
            await check_replay(creation)

    async def ask_for(self, creation: Creation) -> Answer:
        return await self.client.insist(
            f"create {creation.kind}", "POST", creation.path, subject=creation.marker, body=creation.body,
            key=creation.key,
        )  # fmt: skip

    def request(self, kind: WorkKind, marker: str) -> tuple[str, dict[str, Any]]:
        place = {name: value + self.rng.uniform(-0.02, 0.02) for name, value in PLACE.items()}
        priority = self.rng.choice((5, 5, 5, 7, 9))
        if kind is WorkKind.ENROLLMENT:
            return "/enrollments", {"premise_id": marker, "timeslot": "09:00-11:00", "priority": priority}
        if kind is WorkKind.JOB:
            job: dict[str, Any] = {"address": marker, "location": place}
            if self.rng.random() < 0.15:
                starts = datetime.now(UTC) + timedelta(seconds=self.rng.uniform(3, 8))
                job["scheduled_for"] = starts.isoformat()
            return "/jobs", job
        return "/orders", {
            "pickup": {"address": marker, "location": place},
            "dropoff": {"address": "2 Oak St", "location": PLACE},
            "expires_in_s": self.rng.choice((15, 40, 60)),
            "priority": priority,
        }


async def check_replay(creation: Creation) -> None:
    """Send an acknowledged creation once more and note which work order the answer names."""
    client: Client = creation.creator
    answer = await client.insist(
        "replay creation", "POST", creation.path, subject=creation.marker, body=creation.body, key=creation.key
    )
    if answer.ok:
        client.ledger.replayed.setdefault(creation.marker, set()).add(answer.body["id"])


class Watcher(Actor):
    """A dispatcher's board: looks at open work, so that the others know what has ended."""

    async def live(self) -> None:
        while not self.stage.stopped:
            for creation in self.ledger.open[:20]:
                if creation.kind == WorkKind.ORDER or self.rng.random() < 0.3:
                    answer = await self.client.ask(
                        "look", "GET", f"/work-orders/{creation.work_order_id}", subject=creation.marker
                    )
                    if answer.ok and answer.body["status"] in _ENDED and creation.work_order_id:
                        self.ledger.ended(creation.work_order_id)
                    await asyncio.sleep(0.25)
            await asyncio.sleep(0.5)


class Meddler(Actor):
    """A dispatcher who now and then cancels, unassigns, reoffers and assigns by hand."""

    def __init__(self, client: Client, stage: Stage, drivers: list[str], *, every_s: float) -> None:
        super().__init__(client, stage)
        self.drivers = drivers
        self.every_s = every_s

    async def live(self) -> None:
        actions = (self.cancel, self.unassign, self.reoffer, self.offer, self.force, self.force)
        while not self.stage.finishing:
            await asyncio.sleep(self.rng.expovariate(1 / self.every_s))
            work = self.ledger.open
            if work and not self.stage.finishing:
                work_order_id = self.rng.choice(work).work_order_id
                assert work_order_id is not None
                await self.rng.choice(actions)(work_order_id)

    async def act(self, action: str, work_order_id: str, **body: Any) -> Answer:
        return await self.client.insist(
            body.get("mode", action), "POST", f"/work-orders/{work_order_id}/{action}", subject=work_order_id,
            body=body, key=self.new_key(),
        )  # fmt: skip

    async def cancel(self, work_order_id: str) -> None:
        answer = await self.act("cancel", work_order_id, reason="the customer called it off")
        if answer.ok:
            self.know(Certain.CANCELLED, answer, work_order_id)
            self.ledger.ended(work_order_id)

    async def unassign(self, work_order_id: str) -> None:
        await self.act("unassign", work_order_id, reason="another is nearer")

    async def reoffer(self, work_order_id: str) -> None:
        await self.act("reoffer", work_order_id)

    async def offer(self, work_order_id: str) -> None:
        await self.act("assign", work_order_id, driver_id=self.rng.choice(self.drivers), mode="offer")

    async def force(self, work_order_id: str) -> None:
        driver_id = self.rng.choice(self.drivers)
        answer = await self.act("assign", work_order_id, driver_id=driver_id, mode="force")
        if answer.ok:
            self.know(Certain.FORCED, answer, work_order_id, driver_id=driver_id)


class Driver(Actor):
    """Looks for offers, answers most of them, and does the work; some drivers ignore, refuse or give back."""

    def __init__(self, client: Client, stage: Stage) -> None:
        super().__init__(client, stage)
        #: What this driver believes to hold: work order -> (kind, state).
        self.held: dict[str, tuple[str, WorkOrderStatus]] = {}
        self.ignored: set[str] = set()
        self._beat_at = self._synced_at = 0.0

    async def live(self) -> None:
        await self.pause(0, 1)
        while not self.stage.stopped:
            now = time.monotonic()
            if now - self._beat_at > BEAT_S:
                self._beat_at = now
                await self.stay()
            if now - self._synced_at > SYNC_S:
                self._synced_at = now
                await self.sync()
            for work_order_id in list(self.held):
                await self.work_on(work_order_id)
            if len(self.held) < 2:
                await self.look()
            await self.pause(0.4, 1.0)

    async def sync(self) -> None:
        """Learn what was assigned without asking."""
        answer = await self.client.ask("own jobs", "GET", "/drivers/me/jobs?status=active&limit=100")
        if answer.ok:
            self.held = {job["id"]: (job["kind"], S(job["status"])) for job in answer.body["data"]}

    async def stay(self) -> None:
        """Be heard from, and come back after a time-out put the driver off duty."""
        await self.client.ask("heartbeat", "POST", "/drivers/me/heartbeat", body={"location": PLACE})
        answer = await self.client.ask("own state", "GET", "/drivers/me")
        if answer.ok and answer.body["status"] == "offline":
            await self.client.insist("come back", "PATCH", "/drivers/me/status", body={"status": "available"})

    async def look(self) -> None:
        if self.rng.random() < 0.6:
            answer = await self.client.ask("look for offer", "GET", "/drivers/me/offers/current")
            offers = [answer.body] if answer.ok and answer.body else []
        else:
            answer = await self.client.ask("look at feed", "GET", "/orders/feed")
            offers = answer.body["data"] if answer.ok else []
        for offer in offers:
            if self.stage.finishing or offer["id"] not in self.ignored:
                await self.answer(offer)
                return

    async def answer(self, offer: dict[str, Any]) -> None:
        chance = 0.0 if self.stage.finishing else self.rng.random()
        offer_id, work_order_id = offer["id"], offer["work_order_id"]
        if chance < 0.8:
            answer = await self.client.insist("accept", "POST", f"/offers/{offer_id}/accept", subject=offer_id)
            if answer.ok:
                self.know(Certain.ACCEPTED, answer, work_order_id, offer_id=offer_id, driver_id=self.me.driver_id)
                self.held.setdefault(work_order_id, (offer["work_order"]["kind"], S.ASSIGNED))
        elif chance < 0.9:
            answer = await self.client.insist("reject", "POST", f"/offers/{offer_id}/reject", subject=offer_id)
            if answer.ok:
                self.know(Certain.REJECTED, answer, work_order_id, offer_id=offer_id, driver_id=self.me.driver_id)
        else:
            self.ignored.add(offer_id)

    async def work_on(self, work_order_id: str) -> None:
        kind, status = self.held[work_order_id]
        if status not in _NEXT:
            self.held.pop(work_order_id, None)
            return
        if status in (S.ASSIGNED, S.EN_ROUTE) and not self.stage.finishing and self.rng.random() < 0.03:
            await self.hand_back(work_order_id)
            return
        at_once = kind == WorkKind.ENROLLMENT and status is S.ASSIGNED and self.rng.random() < 0.3
        await self.report(work_order_id, S.COMPLETED if at_once else _NEXT[status])

    async def report(self, work_order_id: str, status: WorkOrderStatus) -> None:
        kind = self.held[work_order_id][0]
        answer = await self.client.insist(
            f"report {status}", "PATCH", f"/drivers/me/jobs/{work_order_id}/status", subject=work_order_id,
            body={"status": status.value},
        )  # fmt: skip
        done = answer.ok or (answer.code == "ILLEGAL_TRANSITION" and answer.body["details"]["from"] == status)
        if done:
            # By this attempt, or by an earlier one whose answer was lost.
            self.know(Certain.REPORTED, answer, work_order_id, driver_id=self.me.driver_id, status=status.value)
            self.held[work_order_id] = (kind, status)
        if status is S.COMPLETED and done:
            self.ledger.ended(work_order_id)
        if answer.code in _NOT_MINE or (done and status is S.COMPLETED):
            self.held.pop(work_order_id, None)
        elif not done:
            # It stands elsewhere than this driver believes.
            self._synced_at = 0

    async def hand_back(self, work_order_id: str) -> None:
        answer = await self.client.insist(
            "hand back", "POST", f"/drivers/me/jobs/{work_order_id}/hand-back", subject=work_order_id,
            body={"reason": "the van broke down"}, key=self.new_key(),
        )  # fmt: skip
        if answer.ok:
            self.know(Certain.HANDED_BACK, answer, work_order_id, driver_id=self.me.driver_id)
        self.held.pop(work_order_id, None)
