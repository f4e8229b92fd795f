"""What open work orders cost: memory by process, and how soon one more is offered while thousands wait."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import msgspec
from sqlalchemy import text

from bench.bare import Work
from bench.generators import FullDispatch, bare_dispatch, full_dispatch
from bench.report import Report, milliseconds
from bench.rounds import Sizes, drive, percentile
from bench.system import open_database, running_services, running_system
from bench.usage import memory_mb
from bench.world import World
from models.kit.database import Database

ONE_MORE_GOAL_S = 0.050
#: Linear: an open work order added later takes at most so much more memory than one added first.
STEEPER = 1.5
#: Nobody can do the first; the one driver on duty can do the second.
ABSENT, PROBED = "absent", "probed"
OPENING = 30

_UNSETTLED = text("""
SELECT (SELECT count(*) FROM work_orders WHERE status = 'pending' AND nobody_reasons IS NULL)
    + (SELECT count(*) FROM workflow_wakes WHERE seq > sent_seq)
""")


class Level(msgspec.Struct, frozen=True):
    """At one number of open work orders: memory by process in MB, starts a second up to it, and the seconds from one
    more's request to its offer and of its accept."""

    open: int
    memory: dict[str, float]
    rate: float
    one_more: list[float]
    accept: list[float] = []

    @property
    def total(self) -> float:
        return sum(self.memory.values())


async def measure_growth(report: Report, sizes: Sizes, *, together: bool) -> None:
    floor = await _bare_levels(report, sizes)
    ours = await _our_levels(report, sizes, together=together)
    for level, base in zip(ours, floor, strict=True):
        if not level.open:
            continue
        p50, base50 = percentile(level.one_more, 0.5), percentile(base.one_more, 0.5)
        judged = level.open == ours[-1].open
        report.add(
            what=f"one more beside {level.open:,} open: request to offer, p50",
            ours=milliseconds(p50), floor=f"bare workflow: {milliseconds(base50)}", ratio=p50 / base50,
            goal=f"<= {milliseconds(ONE_MORE_GOAL_S)}" if judged else "",
            met=p50 <= ONE_MORE_GOAL_S if judged else None,
        )  # fmt: skip
    _tell_memory(report, ours, floor)


def _tell_memory(report: Report, ours: list[Level], floor: list[Level]) -> None:
    each, base = _kilobytes_each(ours[0], ours[-1]), _kilobytes_each(floor[0], floor[-1])
    early, late = _kilobytes_each(ours[0], ours[-2]), _kilobytes_each(ours[-2], ours[-1])
    report.add(
        what=f"memory of each open work order, of {ours[-1].open:,}", ours=f"{each:.0f} kB",
        floor=f"bare workflow: {base:.0f} kB", ratio=each / base,
    )  # fmt: skip
    report.add(
        what=f"memory is linear: each of the last {ours[-1].open - ours[-2].open:,} to each before",
        ours=f"{late:.0f} kB to {early:.0f} kB", ratio=late / early, goal=f"ratio <= {STEEPER}",
        met=late <= STEEPER * early,
    )  # fmt: skip
    for name, levels in (("ours", ours), ("bare", floor)):
        for level in levels:
            parts = ", ".join(f"{process} {value:.0f}" for process, value in level.memory.items())
            accept = f", accept p50 {milliseconds(percentile(level.accept, 0.5))}" if level.accept else ""
            report.note(
                f"growth, {name}, {level.open:,} open: {level.total:.0f} MB = {parts}; opened at {level.rate:.0f}/s; "
                f"one more {milliseconds(percentile(level.one_more, 0.5))}, "
                f"worst {milliseconds(max(level.one_more))}{accept}"
            )


def _kilobytes_each(less: Level, more: Level) -> float:
    return (more.total - less.total) * 1e3 / (more.open - less.open)


async def _bare_levels(report: Report, sizes: Sizes) -> list[Level]:
    levels: list[Level] = []
    async with running_services() as services, bare_dispatch(services) as bare:

        async def open_one() -> None:
            await bare.open(Work(f"open-{uuid4()}"))

        done = 0
        for wanted in (0, *sizes.levels):
            report.say(f"growth: {wanted} bare workflows")
            began = time.perf_counter()
            await drive(open_one, wanted - done, OPENING)
            rate = (wanted - done) / (time.perf_counter() - began)
            done = wanted
            await asyncio.sleep(1)
            memory = {name: memory_mb(pid) for name, pid in services.pids.items() if name != "postgres"}
            one_more = [await bare.open(Work(f"probe-{uuid4()}")) for _ in range(sizes.probes)]
            levels.append(Level(wanted, memory, rate, one_more))
    return levels


async def _our_levels(report: Report, sizes: Sizes, *, together: bool) -> list[Level]:
    levels: list[Level] = []
    async with running_system(together=together, messages=True) as system, open_database(system.postgres.url) as main:
        world = await World.make(main, drivers=1, skills=(PROBED,))
        # No escalation is to fall into the measuring.
        await world.change_policy(escalate_after_s=86_400)
        async with full_dispatch(system, world, every_s=0.002) as ours:

            async def open_one() -> None:
                await ours.dispatching.create(ABSENT)

            # Connections, caches and compiled statements are there before the first level.
            await _probe(ours, main, sizes.probes)
            done = 0
            for wanted in (0, *sizes.levels):
                report.say(f"growth: {wanted} open work orders")
                began = time.perf_counter()
                await drive(open_one, wanted - done, OPENING)
                await _settled(main)
                rate = (wanted - done) / (time.perf_counter() - began)
                done = wanted
                await asyncio.sleep(1)
                memory = {name: memory_mb(pid) for name, pid in system.pids.items()}
                latencies = await _probe(ours, main, sizes.probes)
                levels.append(Level(wanted, memory, rate, latencies["offer"], latencies["accept"]))
    return levels


async def _probe(ours: FullDispatch, database: Database, probes: int) -> dict[str, list[float]]:
    """One after the other: a work order that the free driver can take, from request to completion."""
    await ours.lifecycle(PROBED)
    await _settled(database)
    ours.stopwatch.take()
    for _ in range(probes):
        await ours.lifecycle(PROBED)
        await _settled(database)
    return ours.stopwatch.take()


async def _settled(database: Database) -> None:
    """Every workflow has looked at its work order, and no wake is owed."""
    last, since = -1, time.monotonic()
    while True:
        async with database.transaction() as session:
            left = int(await session.value(_UNSETTLED))
        if not left:
            return
        if left != last:
            last, since = left, time.monotonic()
        elif time.monotonic() - since > 60:
            raise TimeoutError(f"{left} work orders have not settled, and nothing moves")
        await asyncio.sleep(0.05)
