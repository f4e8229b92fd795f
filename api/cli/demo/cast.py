"""The drivers of the demo. Each knows only what the app on their own phone would show, and acts on that."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from api.cli.demo.client import Account, Driver, Location, Offer, Page, Refused, WorkOrder
from api.cli.demo.morning import DriverLine, Morning, Pace

HEARTBEAT_S: Final = 15.0
#: The phone is looked at about once a second, however fast the morning passes.
_LOOK_S: Final = (0.8, 1.2)
_LOOK_AT_LEAST_S: Final = 0.3
#: Own status and own work are asked for at every third look: they change without an offer only now and then.
_THOROUGH_EVERY: Final = 3
_EXCUSES: Final = ("Too far for me", "No parking there", "My shift ends soon", "The ladder is at the shop")
_STEPS: Final = {"assigned": "en_route", "en_route": "arrived", "arrived": "in_progress", "in_progress": "completed"}
_DIRECTLY: Final = 0.6


class Temperament(msgspec.Struct, frozen=True, kw_only=True):
    """How somebody answers: after how many seconds, and how often with no."""

    name: str
    answers_after_s: tuple[float, float] = (0.3, 1.5)
    rejects: float = 0.0
    ignores: bool = False
    takes_breaks: bool = False


PROMPT: Final = Temperament(name="prompt")
PICKY: Final = Temperament(name="picky", answers_after_s=(0.5, 2.0), rejects=0.4)
ABSENT: Final = Temperament(name="ignores offers", ignores=True)
COFFEE: Final = Temperament(name="takes breaks", takes_breaks=True)


def temperaments(drivers: int, pace: Pace) -> list[Temperament]:
    """One for each driver: two ignore everything, one takes breaks, four are picky, the others are prompt."""
    special = [ABSENT, ABSENT, COFFEE, PICKY, PICKY, PICKY, PICKY]
    cast = special[:drivers] + [PROMPT] * max(0, drivers - len(special))
    pace.chance.shuffle(cast)
    return cast


class PlayedDriver:
    """One driver at their phone, on the road and at work: three tasks of one life."""

    def __init__(
        self, account: Account, temperament: Temperament, line: DriverLine, morning: Morning, pace: Pace, home: Location
    ) -> None:
        self.account = account
        self.line = line
        self._temperament = temperament
        self._morning = morning
        self._pace = pace
        self._here = home
        self._was_on_duty = True
        #: Away on purpose: the phone stays in the pocket.
        self._on_break = False
        self._seen: set[str] = set()
        #: The exclusive offer that is on the screen, unanswered.
        self._open: Offer | None = None
        self._known_work: set[str] = set()
        self._to_do: asyncio.Queue[WorkOrder] = asyncio.Queue()
        self._holding = 0

    async def come_on_duty(self) -> None:
        """Sign in, say where, be available. Raises Refused, Unreachable."""
        await self.account.sign_in()
        me = await self._me()
        self.line.driver_id, self.line.name = me.id, me.full_name
        # Whoever is at work is on duty too: what they hold is worked off first.
        self._was_on_duty = me.status not in ("offline", "break")
        await self._beat()
        self.line.status = (await self._set_status("available")).status

    async def live(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._heart())
            group.create_task(self._phone())
            group.create_task(self._work())
            if self._temperament.takes_breaks:
                group.create_task(self._breaks())

    async def leave(self) -> None:
        """As they were found. Off duty first: who comes on duty after their last heartbeat is not taken for one who
        fell silent at work, and is still there for whoever tries the system next."""
        await self._set_status("offline")
        if self._was_on_duty:
            await self._set_status("available")

    async def _heart(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S * self._pace.chance.uniform(0.9, 1.1))
            await self._beat()

    async def _beat(self) -> None:
        wander = self._pace.chance.uniform
        self._here = Location(self._here.lat + wander(-2e-4, 2e-4), self._here.lng + wander(-2e-4, 2e-4))
        await self.account.ask("POST", "/drivers/me/heartbeat", {"location": self._here, "accuracy_m": 12.0})

    async def _breaks(self) -> None:
        while True:
            await self._pace.wait(8, 14)
            # Not in the middle of something.
            while self._holding or self._open is not None:
                await self._pace.wait(0.3)
            self._on_break = True
            self.line.always_there = False
            await self._set_status("break")
            self._morning.say(f"{self.line.name} takes a break")
            await self._pace.wait(6, 9)
            await self._set_status("available")
            self._on_break = False
            self._morning.say(f"{self.line.name} is back from the break")

    async def _phone(self) -> None:
        looks = self._pace.chance.randrange(_THOROUGH_EVERY)
        while True:
            await self._pace.wait(*_LOOK_S, at_least=_LOOK_AT_LEAST_S)
            if self._on_break:
                continue
            looks += 1
            if looks % _THOROUGH_EVERY == 0:
                await self._look_at_myself()
            await self._look_at_current()
            if not self._holding:
                await self._look_at_feed()

    async def _look_at_current(self) -> None:
        answer = await self.account.ask("GET", "/drivers/me/offers/current")
        offer = None if answer.status_code == 204 else msgspec.json.decode(answer.content, type=Offer)
        if self._open is not None and (offer is None or offer.id != self._open.id):
            await self._find_out_what_became_of(self._open)
            self._open = None
        if offer is None:
            return
        if offer.id in self._seen:
            return
        self._note(offer)
        self._open = offer
        if self._temperament.ignores:
            return
        await self._pace.wait(*self._temperament.answers_after_s)
        if self._on_break:
            return
        if self._pace.chance.random() < self._temperament.rejects:
            await self._reject(offer, self._pace.chance.choice(_EXCUSES))
        else:
            await self._accept(offer)
        self._open = None

    async def _look_at_feed(self) -> None:
        """What several drivers see at once: take the first, or leave them all to the others."""
        answer = await self.account.ask("GET", "/orders/feed")
        feed = msgspec.json.decode(answer.content, type=dict[str, list[Offer]])["data"]
        fresh = [offer for offer in feed if offer.id not in self._seen]
        for offer in fresh:
            self._note(offer)
        if self._temperament.ignores or not feed:
            return
        if self._pace.chance.random() < self._temperament.rejects:
            return
        await self._pace.wait(0.1, 1.0)
        if not self._on_break and not self._holding:
            await self._accept(self._pace.chance.choice(feed))

    def _note(self, offer: Offer) -> None:
        self._seen.add(offer.id)
        self.line.offered += 1

    async def _accept(self, offer: Offer) -> None:
        reference = offer.work_order.reference
        try:
            await self.account.ask("POST", f"/offers/{offer.id}/accept")
        except Refused as error:
            if error.code == "OFFER_TAKEN":
                self._too_late(reference)
            elif error.code == "OFFER_EXPIRED":
                self._lapsed(offer)
            elif error.code == "DRIVER_BUSY" and offer.exclusive:
                await self._reject(offer, "My hands are full")
            return
        self.line.accepted += 1
        self._morning.say(f"{self.line.name} accepts {reference}")
        await self._find_own_work()

    def _too_late(self, reference: str) -> None:
        """Said of the first only: a broadcast has a dozen of them."""
        if reference not in self._morning.contested:
            self._morning.contested.add(reference)
            self._morning.say(f"{self.line.name} reaches for {reference}, and somebody was quicker")

    async def _reject(self, offer: Offer, why: str) -> None:
        try:
            await self.account.ask("POST", f"/offers/{offer.id}/reject", {"reason": why})
        except Refused as error:
            if error.code == "OFFER_EXPIRED":
                self._lapsed(offer)
            return
        self.line.rejected += 1
        self._morning.say(f'{self.line.name} rejects {offer.work_order.reference}: "{why}"')

    async def _find_out_what_became_of(self, offer: Offer) -> None:
        answer = await self.account.ask("GET", f"/offers/{offer.id}")
        now = msgspec.json.decode(answer.content, type=Offer)
        if now.status == "expired" and now.reason == "timeout":
            self._lapsed(offer)

    def _lapsed(self, offer: Offer) -> None:
        self.line.lapsed += 1
        self._morning.say(f"{self.line.name} lets {offer.work_order.reference} pass: it goes to the next")

    async def _look_at_myself(self) -> None:
        me = await self._me()
        self.line.status = me.status
        if me.status == "offline":
            # An enrollment that was let pass: whoever does not answer is taken for gone, and told how to come back.
            self.line.always_there = False
            self._morning.say(f"{self.line.name} is off duty after an offer without answer, and told how to come back")
            await self._pace.wait(7, 12)
            await self._beat()
            await self._set_status("available")
            self._morning.say(f"{self.line.name} goes on duty again")
        await self._find_own_work()

    async def _find_own_work(self) -> None:
        """What was accepted, and what the system or a dispatcher assigned without asking."""
        answer = await self.account.ask("GET", "/drivers/me/jobs?limit=100")
        for work_order in msgspec.json.decode(answer.content, type=Page).data:
            if work_order.id in self._known_work:
                continue
            self._known_work.add(work_order.id)
            self._holding += 1
            self.line.holding = [*self.line.holding, work_order.reference]
            self._to_do.put_nowait(work_order)

    async def _work(self) -> None:
        """One thing after the other."""
        while True:
            work_order = await self._to_do.get()
            try:
                await self._work_off(work_order)
            except Refused as error:
                # Called off, or taken away, while the driver was at it. If it still is theirs, it will be found again.
                self._morning.say(f"{self.line.name} stops work on {work_order.reference}: {error}")
                self._known_work.discard(work_order.id)
            self._holding -= 1
            self.line.holding = [each for each in self.line.holding if each != work_order.reference]

    async def _work_off(self, work_order: WorkOrder) -> None:
        status = work_order.status
        directly = work_order.kind == "enrollment" and self._pace.chance.random() < _DIRECTLY
        while status in _STEPS:
            await self._pace.wait(1.8, 3.2) if directly else await self._pace.wait(0.7, 1.6)
            status = "completed" if directly and status == "assigned" else _STEPS[status]
            if status in ("arrived", "completed") and work_order.location is not None:
                self._here = work_order.location
            await self.account.ask(
                "PATCH",
                f"/drivers/me/jobs/{work_order.id}/status",
                {"status": status, "location": self._here},
            )
            self.line.status = {"en_route": "en_route", "completed": "available"}.get(status, "on_job")
        self._morning.say(f"{self.line.name} completes {work_order.reference}")

    async def _me(self) -> Driver:
        return msgspec.json.decode((await self.account.ask("GET", "/drivers/me")).content, type=Driver)

    async def _set_status(self, status: str) -> Driver:
        answer = await self.account.ask("PATCH", "/drivers/me/status", {"status": status})
        return msgspec.json.decode(answer.content, type=Driver)
