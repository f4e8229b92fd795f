"""A round: some lifecycles in a closed loop, and what they took."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from bench.usage import Meter

#: Seconds between a driver's accept and the completion, in every closed loop. Without a pause the two changes could
#: reach a workflow as one signal, which would flatter whoever coalesces them.
WORK_S = 0.2


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much to measure. `levels` are open work orders, `spread_s` is the time over which the open offers expire."""

    lifecycles: int = 600
    warm_up: int = 80
    concurrency: int = 40
    rounds: int = 3
    idle: int = 150
    open_offers: int = 1000
    #: Offers stay open for minutes, so a thousand of them end over a minute or more; 10 s is a storm.
    spread_s: float = 60.0
    levels: tuple[int, ...] = (1000, 5000, 10_000)
    probes: int = 15


QUICK = Sizes(
    lifecycles=40, warm_up=10, concurrency=8, rounds=1, idle=10, open_offers=40, spread_s=3.0, levels=(20, 60, 120),
    probes=4,
)  # fmt: skip


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """`rate` is lifecycles a second until the last had closed; `latencies` are in seconds, by step; `cpu_ms` is by
    process and lifecycle; `others` is the share of the machine that others used."""

    rate: float
    latencies: dict[str, list[float]]
    cpu_ms: dict[str, float]
    others: float


class Stopwatch:
    """Gathers latencies by step."""

    def __init__(self) -> None:
        self.latencies: dict[str, list[float]] = {}

    def note(self, step: str, seconds: float) -> None:
        self.latencies.setdefault(step, []).append(seconds)

    def take(self) -> dict[str, list[float]]:
        taken, self.latencies = self.latencies, {}
        return taken


async def drive(one: Callable[[], Awaitable[None]], count: int, concurrency: int) -> None:
    """Run `one` `count` times, `concurrency` at a time; the first failure ends them all."""
    left = iter(range(count))

    async def pair() -> None:
        for _ in left:
            await one()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, count)):
            group.create_task(pair())


async def until(ready: Callable[[], Awaitable[bool]], *, every_s: float = 0.05, within_s: float = 120) -> None:
    """Ask `ready` again and again. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while True:
            if await ready():
                return
            await asyncio.sleep(every_s)


async def measure(
    one: Callable[[], Awaitable[None]],
    stopwatch: Stopwatch,
    sizes: Sizes,
    pids: Mapping[str, int],
    *,
    closed: Callable[[], Awaitable[None]] | None = None,
) -> Round:
    """Warm up, then measure `sizes.lifecycles` of `one`, up to when `closed` says that nothing of them is left open."""
    await drive(one, sizes.warm_up, sizes.concurrency)
    if closed is not None:
        await closed()
    stopwatch.take()
    meter = Meter(pids)
    await drive(one, sizes.lifecycles, sizes.concurrency)
    if closed is not None:
        await closed()
    usage = meter.read()
    return Round(
        rate=sizes.lifecycles / usage.seconds,
        latencies=stopwatch.take(),
        cpu_ms={name: seconds / sizes.lifecycles * 1e3 for name, seconds in usage.cpu_s.items()},
        others=usage.others,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of them lie; NaN without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def pooled(rounds: Sequence[Round], step: str, share: float) -> float:
    """The percentile over the latencies of all rounds, in seconds."""
    return percentile([value for round_ in rounds for value in round_.latencies.get(step, [])], share)


def median_rate(rounds: Sequence[Round]) -> float:
    return statistics.median(round_.rate for round_ in rounds)


def paired_ratio(ours: Sequence[Round], floor: Sequence[Round]) -> float:
    """The median over rounds of ours to the floor measured right before it: noise that lasts hits both."""
    return statistics.median(a.rate / b.rate for a, b in zip(ours, floor, strict=True))
