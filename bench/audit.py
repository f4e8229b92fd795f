"""What sealing the audit log costs: those who write while it runs, and the sealer itself."""

from __future__ import annotations

import time
from uuid import UUID

import msgspec
from sqlalchemy import text

import migrations
from activities.sealing import AuditSealer
from bench.report import Report, milliseconds
from bench.rounds import QUICK, Round, Sizes, Stopwatch, measure, median_rate, paired_ratio, pooled, until
from bench.system import open_database, running_services
from bench.usage import Meter
from bench.world import SECRET_KEY
from models.audit.commands import record
from models.audit.signing import SealingKey
from models.kit.database import Actor, Database
from models.kit.ids import new_id

#: Transactions for each lifecycle that other sections drive, and rounds for each of theirs: these are short, so that
#: what disturbs the machine hits both sides.
TRANSACTIONS = 5
ROUNDS = 4
WRITERS = 8
#: Of a transaction that does nothing but write its audit row, so that sealing weighs as much as it can.
CPU_GOAL = 1.2

_UNSEALED = text("""
SELECT count(*) FROM audit_log a WHERE NOT EXISTS (SELECT FROM audit_leaves l WHERE l.audit_id = a.id)
""")


async def measure_audit(report: Report, sizes: Sizes, **_: object) -> None:
    """The same writers on two databases of one server, of which a sealer serves one; then the other's rows at once."""
    writing = msgspec.structs.replace(
        sizes, lifecycles=sizes.lifecycles * TRANSACTIONS, warm_up=sizes.warm_up * TRANSACTIONS, concurrency=WRITERS
    )
    async with running_services() as services:
        await migrations.upgrade(services.postgres.url)
        url = await services.make_database("without_sealer")
        environment = {"DATABASE_URL": services.postgres.url, "SECRET_KEY": SECRET_KEY, "LOG_LEVEL": "warning"}
        services.launch("sealer", "bench.sealer", environment=environment)
        async with open_database(services.postgres.url) as sealed, open_database(url) as plain:
            ours: list[Round] = []
            floor: list[Round] = []
            await _write(sealed, QUICK, services.pids)
            await until(lambda: _all_sealed(sealed))
            for number in range(sizes.rounds * ROUNDS):
                report.say(f"audit: round {number + 1}")
                floor.append(await _write(plain, writing, services.pids))
                ours.append(await _write(sealed, writing, services.pids))
                await until(lambda: _all_sealed(sealed))
            await services.stop_children()
            _tell_writers(report, ours, floor)
            await _seal_backlog(report, plain, services.pids)


async def _write(database: Database, sizes: Sizes, pids: dict[str, int]) -> Round:
    stopwatch = Stopwatch()
    organizations = [UUID(int=n) for n in range(1, 21)]
    actor = Actor(kind="user", user_id=new_id(), ip="192.0.2.7", request_id="bench-0001")

    async def one() -> None:
        began = time.perf_counter()
        entity_id = new_id()
        async with database.transaction(actor) as session:
            record(
                session, "THING_CHANGED", organization_id=organizations[entity_id.int % len(organizations)],
                entity_type="thing", entity_id=entity_id, **{"from": "pending", "to": "assigned"},
            )  # fmt: skip
        stopwatch.note("write", time.perf_counter() - began)

    return await measure(one, stopwatch, sizes, pids)


async def _all_sealed(database: Database) -> bool:
    async with database.reading() as session:
        return not await session.value(_UNSEALED)


def _tell_writers(report: Report, ours: list[Round], floor: list[Round]) -> None:
    report.add(
        what=f"transactions of one audit row, {WRITERS} writers, sealer running", ours=f"{median_rate(ours):.0f}/s",
        floor=f"no sealer: {median_rate(floor):.0f}/s", ratio=paired_ratio(ours, floor),
    )  # fmt: skip
    with_sealer, without = _cpu_ms(ours), _cpu_ms(floor)
    ratio = with_sealer / without
    report.add(
        what="CPU of such a transaction, all processes, the sealer's included", ours=f"{with_sealer:.3f} ms",
        floor=f"no sealer: {without:.3f} ms", ratio=ratio, goal=f"ratio <= {CPU_GOAL}", met=ratio <= CPU_GOAL,
    )  # fmt: skip
    for share, name in ((0.5, "p50"), (0.99, "p99")):
        report.add(
            what=f"such a transaction, sealer running, {name}", ours=milliseconds(pooled(ours, "write", share)),
            floor=f"no sealer: {milliseconds(pooled(floor, 'write', share))}",
        )  # fmt: skip
    report.note_cpu("audit rows, sealer running", ours, "row")
    report.note_cpu("audit rows, no sealer", floor, "row")


def _cpu_ms(rounds: list[Round]) -> float:
    return sum(sum(round_.cpu_ms.values()) for round_ in rounds) / len(rounds)


async def _seal_backlog(report: Report, database: Database, pids: dict[str, int]) -> None:
    """All that was written without a sealer, at once, in this process."""
    meter = Meter(pids)
    rows = await AuditSealer(database, SealingKey(SECRET_KEY)).seal_all()
    usage = meter.read()
    cpu = {name: seconds / rows * 1e6 for name, seconds in usage.cpu_s.items()}
    report.add(what=f"sealing a backlog of {rows:,} rows", ours=f"{rows / usage.seconds:,.0f} rows/s")
    report.note(
        f"sealing: CPU ms a thousand rows: {cpu['generator']:.0f} in the sealer's process, "
        f"{cpu['postgres']:.0f} in Postgres"
    )
