"""What goes wrong, when: a schedule made from the seed alone, and the hand that carries it out."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from tests.chaos.system import API, LINKS, PARTS, POSTGRES, TEMPORAL, WORKER, Part, System
from tests.factories.proxy import Proxy, Way

KILL, END, FREEZE = "SIGKILL", "graceful end", "SIGSTOP"
RESET, HOLE, SLOW, ANSWERS_LOST, REQUESTS_LOST, HALF_CLOSED = (
    "reset", "black hole", "slow", "answers lost", "requests lost", "half-closed",
)  # fmt: skip

#: Of all faults, the share of each process; the links have the rest in equal parts.
PROCESS_SHARE = 0.125
#: How often each way to fail comes, by process. Starting Python or Temporal costs a second of CPU and more, so those
#: are frozen more often than killed.
_OF_PROCESS: dict[str, dict[str, int]] = {
    API: {KILL: 2, END: 1, FREEZE: 7},
    WORKER: {KILL: 2, END: 1, FREEZE: 7},
    POSTGRES: {KILL: 3, END: 1, FREEZE: 3},
    TEMPORAL: {KILL: 2, END: 1, FREEZE: 5},
}
_OF_LINK = {RESET: 3, HOLE: 2, SLOW: 2, ANSWERS_LOST: 2, REQUESTS_LOST: 1, HALF_CLOSED: 2}
LATENCY_S = 0.5
#: Between the end of one fault and the next one of the same target.
BREATH_S = 0.5
#: A process that is not back so long after its start is fair game again.
BACK_PATIENCE_S = 30.0


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """`at`: seconds from the start; `lasts_s`: how long it is frozen or cut off, or stays down."""

    number: int
    at: float
    target: str
    kind: str
    lasts_s: float


class Done(msgspec.Struct, kw_only=True):
    """A fault that was carried out. Times are seconds since 1970; `ended_at` is when the cause was gone: the process
    was started again or went on, the link passed everything."""

    fault: Fault
    began_at: float
    ended_at: float = 0.0
    #: Requests of clients on their way when it began, by kind.
    in_flight: dict[str, int]
    #: What was open in the system at the last look before it.
    open: dict[str, int]


class Severity(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, at most: frozen processes, cut links, and now and then a long black hole."""

    rate: float = 1.1
    freeze_s: float = 6.0
    cut_s: float = 5.0
    long_hole_s: float = 30.0
    long_hole_chance: float = 0.1


SHORT = Severity(rate=1.15, freeze_s=3.0, cut_s=3.0, long_hole_s=6.0)


def plan(seed: int, seconds: float, severity: Severity) -> list[Fault]:
    """The faults of a run, by time. The same seed gives the same faults; every target gets its share."""
    rng = random.Random(f"faults {seed}")
    count = round(seconds * severity.rate)
    of_each_process = -(-count * PROCESS_SHARE // 1)
    targets = [name for name in PARTS for _ in range(int(of_each_process))]
    links = list(LINKS)
    rng.shuffle(links)
    targets += [links[i % len(links)] for i in range(count - len(targets))]
    rng.shuffle(targets)
    deal = {name: _deck(rng, kinds) for name, kinds in _OF_PROCESS.items()}
    deal |= dict.fromkeys(LINKS, _deck(rng, _OF_LINK))
    faults = []
    for number, target in enumerate(targets, start=1):
        kind = next(deal[target])
        at = (number - rng.random()) * seconds / count
        faults.append(Fault(number=number, at=at, target=target, kind=kind, lasts_s=_lasts(rng, kind, severity)))
    return sorted(faults, key=lambda fault: fault.at)


def _deck(rng: random.Random, kinds: dict[str, int]) -> Iterator[str]:
    """Every kind as often as its weight, in some order, again and again."""
    cards = [kind for kind, weight in kinds.items() for _ in range(weight)]
    while True:
        rng.shuffle(cards)
        yield from list(cards)


def _lasts(rng: random.Random, kind: str, severity: Severity) -> float:
    if kind in (KILL, END):
        return rng.uniform(0, 1)
    if kind == FREEZE:
        # Mostly short: a second hurts almost as much as six, and leaves time for more.
        return 0.3 + (severity.freeze_s - 0.3) * rng.random() ** 3
    if kind == RESET:
        return 0.0
    if kind == HOLE and rng.random() < severity.long_hole_chance:
        return rng.uniform(severity.cut_s, severity.long_hole_s)
    return 0.3 + (severity.cut_s - 0.3) * rng.random() ** 2


class Havoc:
    """Carries the faults out. Those of one target come one after the other, each once the last is over; those of
    different targets overlap as they fall."""

    def __init__(
        self, system: System, flying: Callable[[], dict[str, int]], open_now: Callable[[], dict[str, int]]
    ) -> None:
        self._system = system
        self._flying = flying
        self._open_now = open_now
        self.done: list[Done] = []

    async def wreak(self, faults: list[Fault], log: Callable[[Done], Any]) -> None:
        began = time.monotonic()

        async def visit(target: str) -> None:
            for fault in faults:
                if fault.target == target:
                    await asyncio.sleep(max(0.0, began + fault.at - time.monotonic()))
                    await self._do(fault, log)
                    await asyncio.sleep(BREATH_S)

        async with asyncio.TaskGroup() as group:
            for target in (*PARTS, *LINKS):
                group.create_task(visit(target))

    async def _do(self, fault: Fault, log: Callable[[Done], Any]) -> None:
        done = Done(fault=fault, began_at=time.time(), in_flight=self._flying(), open=self._open_now())
        self.done.append(done)
        part = self._system.parts.get(fault.target)
        if part is None:
            await _on_link(self._system.links[fault.target], fault)
            done.ended_at = time.time()
        else:
            part.under_fault = True
            try:
                await _on_process(part, fault)
                done.ended_at = time.time()
                await part.until_ready(BACK_PATIENCE_S)
            finally:
                part.under_fault = False
        log(done)


async def _on_process(part: Part, fault: Fault) -> None:
    if fault.kind == FREEZE:
        part.freeze()
        try:
            await asyncio.sleep(fault.lasts_s)
        finally:
            part.thaw()
        return
    if fault.kind == KILL:
        part.kill()
    else:
        await part.end()
    await asyncio.sleep(fault.lasts_s)
    part.launch()


async def _on_link(proxy: Proxy, fault: Fault) -> None:
    if fault.kind == RESET:
        await proxy.reset()
        return
    if fault.kind == HALF_CLOSED:
        await proxy.half_close()
    elif fault.kind == HOLE:
        await proxy.hang()
    elif fault.kind == SLOW:
        await proxy.slow(LATENCY_S)
    else:
        await proxy.lose(Way.ANSWERS if fault.kind == ANSWERS_LOST else Way.REQUESTS)
    try:
        await asyncio.sleep(fault.lasts_s)
    finally:
        await proxy.resume()
