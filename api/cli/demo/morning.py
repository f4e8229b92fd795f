"""What the demo knows at any moment: the pace, the drivers, the work, and what has happened."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

import msgspec

from api.cli.demo.client import WorkOrder

ENDED: Final = frozenset({"completed", "cancelled", "expired", "disputed"})
KINDS: Final = ("enrollment", "job", "order")
_EVENTS_KEPT: Final = 200
#: The reasons of the API in words; one that is new to us stands for itself.
_WHY_NOT: Final = {
    "missing_skill": "without the skill",
    "wrong_vehicle": "with another kind of vehicle",
    "rejected": "had rejected it",
    "already_offered": "had been asked before",
    "lapse_pause": "had let it pass",
    "has_offer": "answering another offer",
    "busy": "busy",
    "silent": "not heard from",
    "out_of_radius": "too far away",
}


class Pace:
    """How quickly the morning passes: `speed` 2 halves every wait. `chance` is where choices come from."""

    def __init__(self, speed: float, seed: str) -> None:
        self.speed = speed
        self.chance = random.Random(seed)  # noqa: S311 - made-up drivers need no cryptography
        self._seed = seed

    def of(self, who: str) -> Pace:
        """For somebody who chooses on their own: what others do does not change what they choose."""
        return Pace(self.speed, f"{self._seed}/{who}")

    def seconds(self, shortest: float, longest: float | None = None, *, at_least: float = 0.0) -> float:
        """A time between the two, at this speed."""
        return max(at_least, self.chance.uniform(shortest, longest or shortest) / self.speed)

    async def wait(self, shortest: float, longest: float | None = None, *, at_least: float = 0.0) -> None:
        await asyncio.sleep(self.seconds(shortest, longest, at_least=at_least))

    def whole(self, seconds: float, *, at_least: int) -> int:
        """For the settings of the system, which count in whole seconds."""
        return max(at_least, round(seconds / self.speed))


class DriverLine(msgspec.Struct, kw_only=True):
    """A driver as the view shows them: what they have seen and done since the morning began."""

    number: int
    name: str
    temperament: str
    driver_id: str = ""
    status: str = "offline"
    offered: int = 0
    accepted: int = 0
    rejected: int = 0
    lapsed: int = 0
    holding: list[str] = []
    #: On duty from the first offer to the last: nobody else can have had an equal share.
    always_there: bool = True


class Morning:
    """The state of the whole show."""

    def __init__(self, planned: int) -> None:
        self.planned = planned
        self.began = time.monotonic()
        self.drivers: dict[str, DriverLine] = {}
        self.work: dict[str, WorkOrder] = {}
        #: Why nobody could be asked while it waited, and of how many drivers at most that was true: a look tells only
        #: of its own moment, and an ended work order nothing any more.
        self.reasons: dict[str, Counter[str]] = {}
        #: Orders that more than one driver reached for.
        self.contested: set[str] = set()
        #: Given up on when the patience ran out.
        self.undeliverable: set[str] = set()
        self.events: deque[tuple[float, str]] = deque(maxlen=_EVENTS_KEPT)
        self.listener: Callable[[float, str], None] | None = None

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def say(self, sentence: str) -> None:
        """Something happened."""
        at = self.elapsed
        self.events.append((at, sentence))
        if self.listener is not None:
            self.listener(at, sentence)

    def see(self, work_order: WorkOrder) -> None:
        """The newest state of a work order of ours, from whichever answer it came."""
        self.work[work_order.id] = work_order
        if work_order.status == "pending":
            seen = Counter({each.reason: each.count for each in work_order.waiting_reasons or ()})
            # The union of counters keeps the larger count.
            self.reasons[work_order.id] = self.reasons.get(work_order.id, Counter()) | seen

    def why_nobody(self, work_order_id: str) -> str:
        """`up to 17 too far away, 11 busy`; empty where somebody could always be asked."""
        reasons = self.reasons.get(work_order_id, Counter()).most_common()
        listed = ", ".join(f"{count} {_WHY_NOT.get(reason, reason)}" for reason, count in reasons)
        return f"up to {listed}" if listed else ""

    @property
    def ended(self) -> int:
        return sum(work_order.status in ENDED for work_order in self.work.values())

    @property
    def is_over(self) -> bool:
        return self.ended == self.planned

    def counts(self) -> dict[str, Counter[str]]:
        """Work orders by kind and status."""
        found = {kind: Counter[str]() for kind in KINDS}
        for work_order in self.work.values():
            found[work_order.kind][work_order.status] += 1
        return found
