"""Lifecycles a second: ours over HTTP beside the bare workflow, our transactions alone, and DBOS.

Every round measures the floors and then ours, so that what disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import asyncpg
import msgspec
from temporalio.client import Client

from bench.bare import Shape, shape_of
from bench.generators import DbosPeer, bare_dispatch, full_dispatch
from bench.report import Report, milliseconds
from bench.rounds import Round, Sizes, measure, median_rate, paired_ratio, pooled
from bench.system import System, open_database, running_system
from bench.transactions import Transactions
from bench.world import World

RATIO_GOAL = 0.7
EVENTS_GOAL = 20
SATURATED_P99_GOAL_S = 0.100
IDLE_P50_GOAL_S = 0.010
#: Work orders whose histories are read for their shape.
SAMPLE = 8


class Rounds(msgspec.Struct):
    """By who was measured, in order."""

    ours: list[Round] = []
    bare: list[Round] = []
    transactions: list[Round] = []
    dbos: list[Round] = []


async def measure_lifecycles(report: Report, sizes: Sizes, *, together: bool) -> None:
    """With messages on, then off."""
    drivers = sizes.concurrency * 5 // 4
    async with running_system(together=together, messages=True) as system, open_database(system.postgres.url) as main:
        world = await World.make(main, drivers=drivers)
        floors_url = await system.make_database("floors")
        for messages in (True, False):
            if not messages:
                await system.stop_fairlead()
                await system.start_fairlead(messages=False)
            rounds = await _measure(report, sizes, system, world, floors_url, messages=messages)
            _tell(report, rounds, "messages on" if messages else "messages off")


async def _measure(
    report: Report, sizes: Sizes, system: System, world: World, floors_url: str, *, messages: bool
) -> Rounds:
    rounds = Rounds()
    dsn = floors_url.replace("+asyncpg", "", 1)
    dbos = DbosPeer(system, floors_url, sizes)
    async with (
        open_database(floors_url, messages=messages) as floors,
        asyncpg.create_pool(dsn, min_size=2, max_size=4) as offers,
        bare_dispatch(system) as bare,
        full_dispatch(system, world) as ours,
    ):
        alone = Transactions(await World.make(floors, drivers=len(world.drivers)), offers)
        for number in range(1, sizes.rounds + 1):
            report.say(f"round {number} of {sizes.rounds}: transactions, bare, ours, DBOS")
            rounds.transactions.append(await measure(alone.lifecycle, alone.stopwatch, sizes, system.pids))
            rounds.bare.append(await measure(bare.lifecycle, bare.stopwatch, sizes, system.pids, closed=bare.closed))
            rounds.ours.append(await measure(ours.lifecycle, ours.stopwatch, sizes, system.pids, closed=ours.closed))
            rounds.dbos.append(await dbos.round(messages=messages))
        if messages:
            await _tell_shapes(report, ours.client, ours.done[-SAMPLE:], bare.last_id)
    return rounds


def _tell(report: Report, rounds: Rounds, how: str) -> None:
    ours, rate = rounds.ours, f"{median_rate(rounds.ours):.1f}/s"
    for name, floor, goal in (
        ("bare workflow", rounds.bare, RATIO_GOAL),
        ("DBOS, no HTTP", rounds.dbos, 1.0),
        ("our transactions alone", rounds.transactions, None),
    ):
        ratio = paired_ratio(ours, floor)
        report.add(
            what=f"lifecycles over HTTP, {how}", ours=rate, floor=f"{name}: {median_rate(floor):.1f}/s", ratio=ratio,
            goal="" if goal is None else f"ratio >= {goal}" if goal < 1 else "ratio > 1",
            met=None if goal is None else ratio >= goal,
        )  # fmt: skip
    for step in ("create", "offer", "accept"):
        _tell_latency(report, rounds, step, how)
    report.note_cpu(f"ours, {how}", ours)
    report.note_cpu("bare workflow", rounds.bare)
    report.note_cpu(f"transactions alone, {how}", rounds.transactions)
    report.note_cpu(f"DBOS, {how}", rounds.dbos)


def _tell_latency(report: Report, rounds: Rounds, step: str, how: str) -> None:
    p99 = pooled(rounds.ours, step, 0.99)
    floors = [("bare", rounds.bare), ("transactions", rounds.transactions)]
    with_step = [(name, floor) for name, floor in floors if step in floor[0].latencies]
    judged = step == "accept"
    report.add(
        what=f"{step} at saturation, p50 / p99, {how}",
        ours=f"{milliseconds(pooled(rounds.ours, step, 0.5))} / {milliseconds(p99)}",
        floor="; ".join(
            f"{name}: {milliseconds(pooled(floor, step, 0.5))} / {milliseconds(pooled(floor, step, 0.99))}"
            for name, floor in with_step
        ),
        goal=f"p99 <= {milliseconds(SATURATED_P99_GOAL_S)}" if judged else "",
        met=p99 <= SATURATED_P99_GOAL_S if judged else None,
    )


async def _tell_shapes(report: Report, client: Client, ours: Sequence[str], bare: str) -> None:
    shapes = [await shape_of(client, workflow_id) for workflow_id in ours]
    floor = await shape_of(client, bare)
    # Under load a neighbour's freed driver may wake a work order once more: that is no plain lifecycle's history.
    usual, most = statistics.median(shape.events for shape in shapes), max(shape.events for shape in shapes)
    report.add(
        what="events in a lifecycle's history, median and most", ours=f"{usual:.0f}, {most}",
        floor=f"bare workflow: {floor.events}", ratio=usual / floor.events, goal=f"median <= {EVENTS_GOAL}",
        met=usual <= EVENTS_GOAL,
    )  # fmt: skip
    report.note(f"a lifecycle's history: ours {_mean(shapes)}; bare {_mean([floor])}")
    report.note(f"events of ours: {shapes[-1]}")
    report.note(f"events of the bare workflow: {floor}")


def _mean(shapes: Sequence[Shape]) -> str:
    def mean(name: str) -> str:
        return f"{statistics.mean(getattr(shape, name) for shape in shapes):.1f}"

    return f"{mean('events')} events, {mean('signals')} signals, {mean('local_activities')} local activities"


async def measure_idle(report: Report, sizes: Sizes, *, together: bool) -> None:
    """One lifecycle after the other: what a driver feels when nothing else goes on."""
    one_by_one = msgspec.structs.replace(sizes, lifecycles=sizes.idle, warm_up=max(10, sizes.idle // 5), concurrency=1)
    async with running_system(together=together, messages=True) as system, open_database(system.postgres.url) as main:
        world = await World.make(main, drivers=sizes.concurrency)
        floors_url = await system.make_database("floors")
        async with (
            open_database(floors_url) as floors,
            asyncpg.create_pool(floors_url.replace("+asyncpg", "", 1), min_size=1, max_size=1) as offers,
            full_dispatch(system, world, every_s=0.005) as ours,
        ):
            alone = Transactions(await World.make(floors, drivers=sizes.concurrency), offers)
            floor = await measure(alone.lifecycle, alone.stopwatch, one_by_one, system.pids)
            round_ = await measure(ours.lifecycle, ours.stopwatch, one_by_one, system.pids, closed=ours.closed)
    for step in ("create", "offer", "accept", "complete"):
        p50, p99 = pooled([round_], step, 0.5), pooled([round_], step, 0.99)
        known = step in floor.latencies
        base = pooled([floor], step, 0.5)
        judged = step == "accept"
        report.add(
            what=f"{step} on an idle system, p50 / p99",
            ours=f"{milliseconds(p50)} / {milliseconds(p99)}",
            floor=f"transactions: {milliseconds(base)} / {milliseconds(pooled([floor], step, 0.99))}" if known else "",
            ratio=p50 / base if known else None,
            goal=f"p50 <= {milliseconds(IDLE_P50_GOAL_S)}" if judged else "",
            met=p50 <= IDLE_P50_GOAL_S if judged else None,
        )
