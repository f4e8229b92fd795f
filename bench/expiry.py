"""From an offer's expiry to the next driver's offer, with many offers open that expire close together."""

from __future__ import annotations

import asyncio
import random
import time

from sqlalchemy import text

from bench.bare import Work
from bench.generators import bare_dispatch, full_dispatch
from bench.report import Report, milliseconds
from bench.rounds import Round, Sizes, drive, percentile, until
from bench.system import Services, System, open_database, running_system
from bench.usage import Meter
from bench.world import World

P50_GOAL_S, P99_GOAL_S = 0.3, 2.0
#: Parts in which offers are made: each gets a time limit of its own, so that all expire within the spread.
PARTS = 20
CREATING = 30

# By the database's clock throughout. A first offer's `expires_at` stays as it was made.
_LATENCIES = text("""
SELECT extract(epoch FROM n.offered_at - o.expires_at)::float8
FROM offers o JOIN offers n ON n.work_order_id = o.work_order_id AND n.sequence = 2 WHERE o.sequence = 1
""")
_OPEN_AT_ONCE = text("""
SELECT count(*) FROM offers WHERE sequence = 1 AND offered_at < (SELECT min(expires_at) FROM offers WHERE sequence = 1)
""")


def lead_s(sizes: Sizes) -> float:
    """Until the first expiry: long enough to open all offers on a slow machine."""
    return 10 + sizes.open_offers / 15


async def measure_expiry(report: Report, sizes: Sizes, *, together: bool) -> None:
    async with running_system(together=together, messages=True) as system, open_database(system.postgres.url) as main:
        report.say(f"expiry: {sizes.open_offers} bare workflows")
        floor, floor_cpu = await _bare(system, sizes)
        report.say(f"expiry: {sizes.open_offers} open offers")
        # A fifth more drivers than offers: whoever's offer expires, somebody else is free.
        world = await World.make(main, drivers=sizes.open_offers * 6 // 5)
        ours, cpu = await _ours(report, system, world, sizes)
    p50, p99 = percentile(ours, 0.5), percentile(ours, 0.99)
    base50, base99 = percentile(floor, 0.5), percentile(floor, 0.99)
    what = f"expiry to next offer, {sizes.open_offers} open, all within {sizes.spread_s:.0f} s"
    for name, value, base, goal in (("p50", p50, base50, P50_GOAL_S), ("p99", p99, base99, P99_GOAL_S)):
        report.add(
            what=f"{what}, {name}", ours=milliseconds(value), floor=f"bare timer: {milliseconds(base)}",
            ratio=value / base, goal=f"<= {milliseconds(goal)}", met=value <= goal,
        )  # fmt: skip
    report.note_cpu("expiries, ours", [cpu], "expiry")
    report.note_cpu("expiries, bare", [floor_cpu], "expiry")


async def _bare(services: Services, sizes: Sizes) -> tuple[list[float], Round]:
    chance = random.Random(1)
    async with bare_dispatch(services) as bare:
        first = time.time() + lead_s(sizes)
        deadlines = {f"expiry-{i}": first + chance.random() * sizes.spread_s for i in range(sizes.open_offers)}
        left = iter(deadlines.items())

        async def open_one() -> None:
            await bare.open(Work(*next(left)), expiring=True)

        await drive(open_one, sizes.open_offers, CREATING)
        if time.time() > first:
            raise TimeoutError(f"{sizes.open_offers} bare workflows took longer than {lead_s(sizes):.0f} s to start")
        await asyncio.sleep(first - time.time())
        meter = Meter(services.pids)

        async def all_heard() -> bool:
            return len(bare.word.next_at) >= sizes.open_offers

        await until(all_heard, within_s=sizes.spread_s + 120)
        cpu = _round_of(meter, sizes)
        return [at - deadlines[work_id] for work_id, at in bare.word.next_at.items()], cpu


async def _ours(report: Report, system: System, world: World, sizes: Sizes) -> tuple[list[float], Round]:
    async with full_dispatch(system, world) as ours:
        first = time.time() + lead_s(sizes)

        async def open_one() -> None:
            await ours.watch.offer_of(await ours.dispatching.create())

        for part in range(PARTS):
            count = sizes.open_offers * (part + 1) // PARTS - sizes.open_offers * part // PARTS
            ttl = max(1, round(first + sizes.spread_s * (part + 1) / PARTS - time.time()))
            await world.change_policy(offer_ttl_s=ttl, offer_ttl_max_s=ttl, on_timeout="next")
            await drive(open_one, count, CREATING)
        # The next offers stay open: what is measured is how soon they come.
        await world.change_policy(offer_ttl_s=3600, offer_ttl_max_s=3600)
        if time.time() > first:
            report.note(f"expiry: opening the offers took longer than {lead_s(sizes):.0f} s; some had expired by then")
        await asyncio.sleep(max(0.0, first - time.time()))
        meter = Meter(system.pids)
        latencies: list[float] = []

        async def all_offered() -> bool:
            nonlocal latencies
            async with world.database.transaction() as session:
                latencies = [row[0] for row in await session.rows(_LATENCIES)]
            return len(latencies) >= sizes.open_offers

        await until(all_offered, every_s=0.5, within_s=sizes.spread_s + 180)
        cpu = _round_of(meter, sizes)
        async with world.database.transaction() as session:
            report.note(f"expiry: {await session.value(_OPEN_AT_ONCE)} offers were open when the first expired")
        return latencies, cpu


def _round_of(meter: Meter, sizes: Sizes) -> Round:
    usage = meter.read()
    return Round(
        rate=sizes.open_offers / usage.seconds,
        latencies={},
        cpu_ms={name: seconds / sizes.open_offers * 1e3 for name, seconds in usage.cpu_s.items()},
        others=usage.others,
    )
