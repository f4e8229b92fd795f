"""The storm: everything at once, over and over, and afterwards every invariant holds."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from activities.dispatch import DispatchActivities, WorkOrderRef
from models.drivers.commands import heartbeat, set_status
from models.kit.database import Database, Session
from models.kit.errors import Refusal
from models.offers.commands import accept, reject
from models.policies.rules import OnTimeout
from models.work.commands import assign_driver, cancel, complete, hand_back, reoffer, report_status, unassign
from models.work.rules import HELD, WorkKind, WorkOrderStatus
from models.work.wakes import lease_wakes, record_sent
from tests.factories import invariants
from tests.factories.people import Person
from tests.factories.work import HERE, World

pytestmark = pytest.mark.anyio

S = WorkOrderStatus
WORK_ORDERS = 1_500
DRIVERS = 18
#: By then every work order has ended, or something hangs.
PATIENCE_S = 150

NEXT_STEP = {S.ASSIGNED: S.EN_ROUTE, S.EN_ROUTE: S.ARRIVED, S.ARRIVED: S.IN_PROGRESS, S.IN_PROGRESS: S.COMPLETED}


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    # Messages cost a third of the time, and are tested elsewhere.
    pool = Database(database_url, pool_size=20, name="storm", messages_enabled=False)
    yield pool
    await pool.close()


class Storm:
    """People, time and the relay, all acting on one database; counts what each act answered."""

    def __init__(self, world: World, drivers: list[Person], seed: int) -> None:
        self.world = world
        self.drivers = {driver.driver_id: driver for driver in drivers}
        self.activities = DispatchActivities(world.database)
        self.random = random.Random(seed)
        self.answers: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        self.made = 0
        self.over = False
        # No more at once than there are connections.
        self.turn = asyncio.Semaphore(16)

    async def act(self, name: str, command: Callable[..., Awaitable[Any]], *args: Any, **named: Any) -> None:
        async with self.turn:
            try:
                async with self.world.database.transaction() as session:
                    await command(session, *args, **named)
            except Refusal as refusal:
                self.answers[f"{name} {refusal.code}"] += 1
            except Exception as error:
                self.errors.append(error)
            else:
                self.answers[name] += 1

    async def advance(self, work: UUID) -> None:
        async with self.turn:
            try:
                await self.activities.advance(WorkOrderRef(work_order_id=str(work)))
            except Exception as error:
                self.errors.append(error)
            else:
                self.answers["advance"] += 1

    async def rows(self, sql: str) -> list[Any]:
        async with self.turn:
            return await self.world.all(sql)

    # The four sides of the storm

    async def customers(self) -> None:
        while self.made < WORK_ORDERS:
            batch = [self.one_more() for _ in range(12)]
            await asyncio.gather(*batch)
            # Not more waiting than the drivers can work off.
            while len(await self.rows("SELECT 1 FROM work_orders WHERE status = 'pending' LIMIT 80")) == 80:
                await asyncio.sleep(0.02)

    async def one_more(self) -> None:
        self.made += 1
        make = self.random.choices([self.world.enrollment, self.world.job, self.world.order], [80, 14, 6])[0]
        async with self.turn:
            await make(priority=self.random.choice([1, 5, 5, 5, 9]))

    async def relay(self) -> None:
        """What relay, workflows and timers do together: wakes are leased, advanced and recorded; what is due by the
        clock is advanced."""
        while not self.over:
            async with self.turn, self.world.database.transaction() as session:
                wakes = await lease_wakes(session, limit=40, lease_s=15)
            late = await self.rows(
                "SELECT work_order_id AS id FROM offers WHERE status = 'pending' AND expires_at <= clock_timestamp() "
                "UNION SELECT id FROM work_orders WHERE status = 'pending' AND next_round_at <= clock_timestamp() "
                "UNION SELECT id FROM work_orders WHERE broadcast_until <= clock_timestamp() "
                "AND match_from IS NOT NULL LIMIT 60"
            )
            await asyncio.gather(
                *(self.advance(work) for work in {w.work_order_id for w in wakes} | {r.id for r in late})
            )
            if wakes:
                async with self.turn, self.world.database.transaction() as session:
                    await record_sent(session, [(wake.work_order_id, wake.seq) for wake in wakes])
            if not wakes and not late:
                await asyncio.sleep(0.02)

    async def road(self) -> None:
        """The drivers: twice at once, too late, not at all."""
        while not self.over:
            acts = [*await self.answering(), *await self.working()]
            off = await self.rows("SELECT driver_id FROM driver_dispatch WHERE duty <> 'on'")
            acts += [self.act("on duty", set_duty, row.driver_id, "available") for row in off]
            self.random.shuffle(acts)
            await asyncio.gather(*acts)
            await asyncio.sleep(0.01)

    async def answering(self) -> list[Awaitable[None]]:
        calm = self.made >= WORK_ORDERS
        acts: list[Awaitable[None]] = []
        for offer in await self.rows("SELECT * FROM offers WHERE status = 'pending' ORDER BY id LIMIT 120"):
            if offer.exclusive and offer.id.int % 12 == 0:
                continue  # ignored until it expires
            dice = self.random.random()
            if dice < (0.9 if calm else 0.55):
                acts += [self.act("accept", accept, offer.id, offer.driver_id) for _ in range(2)]
            elif dice < 0.7 and not calm:
                acts.append(self.act("reject", reject, offer.id, offer.driver_id, None))
            if dice > 0.95:
                acts.append(self.act("off duty", set_duty, offer.driver_id, self.random.choice(["break", "offline"])))
            if dice > 0.985:
                acts.append(self.act("cancel", cancel, offer.work_order_id, "storm"))
        return acts

    async def working(self) -> list[Awaitable[None]]:
        calm = self.made >= WORK_ORDERS
        held = ", ".join(repr(status.value) for status in HELD)
        acts: list[Awaitable[None]] = []
        for row in await self.rows(
            f"SELECT id, kind, status, assigned_driver_id AS driver FROM work_orders WHERE status IN ({held})"
        ):
            dice = self.random.random()
            if dice < 0.03 and not calm:
                acts.append(self.act("hand back", hand_back, row.id, row.driver, "storm"))
            elif dice < 0.06 and not calm:
                acts.append(self.act("unassign", unassign, row.id))
            elif dice < 0.08:
                acts.append(self.act("cancel", cancel, row.id, "storm"))
            elif dice < 0.8 and row.kind == WorkKind.ENROLLMENT:
                acts.append(self.act("complete", complete, row.id, by_driver=row.driver))
            elif dice < 0.8:
                acts.append(self.act("report", report_status, row.id, row.driver, NEXT_STEP[S(row.status)]))
        return acts

    async def desk(self) -> None:
        """The dispatchers, who name drivers, reoffer and cancel whatever they see; and the heartbeats."""
        heard_at = time.monotonic()
        while not self.over:
            for row in await self.rows("SELECT id FROM work_orders WHERE status = 'pending' ORDER BY random() LIMIT 3"):
                driver_id = self.random.choice(list(self.drivers))
                dice = self.random.random()
                if dice < 0.3:
                    await self.act("force", assign_driver, row.id, driver_id, "force")
                elif dice < 0.6:
                    await self.act("name", assign_driver, row.id, driver_id, "offer")
                elif dice < 0.8:
                    await self.act("reoffer", reoffer, row.id)
                else:
                    await self.act("cancel", cancel, row.id, "storm")
            if time.monotonic() - heard_at < 15:
                await asyncio.sleep(0.2)
                continue
            heard_at = time.monotonic()
            for driver_id in self.drivers:
                await self.act(
                    "heartbeat", heartbeat, driver_id, self.world.organization_id, lat=HERE.lat, lng=HERE.lng
                )

    async def watch(self) -> None:
        """No commit in between breaks a rule either; ends the storm when all work has ended."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            async with self.turn:
                assert await invariants.broken(self.world.database) == {}
            if self.made >= WORK_ORDERS:
                # What every driver has rejected has nobody left.
                for row in await self.rows("SELECT id FROM work_orders WHERE status = 'pending' "
                                           "AND nobody_reasons LIKE 'rejected%'"):  # fmt: skip
                    await self.act("cancel", cancel, row.id, "nobody wants it")
                if not await self.rows("SELECT 1 FROM work_orders WHERE status IN ('pending', 'assigned', 'en_route', "
                                       "'arrived', 'in_progress') LIMIT 1"):  # fmt: skip
                    self.over = True
                    return
            assert time.monotonic() < give_up, await self.rows(
                "SELECT status, count(*) AS n, min(nobody_reasons) AS why FROM work_orders GROUP BY 1"
            )
            await asyncio.sleep(0.5 if self.made >= WORK_ORDERS else 4)


async def set_duty(session: Session, driver_id: UUID, status: str) -> None:
    await set_status(session, driver_id, status, by_staff=False)


async def test_a_storm_of_1500_work_orders_breaks_nothing(database: Database) -> None:
    world = await World.make(database)
    for kind in (WorkKind.ENROLLMENT, WorkKind.JOB, WorkKind.ORDER):
        await world.policy(
            kind, offer_ttl_s=1, offer_ttl_max_s=1, recheck_s=1, lapse_pause_s=1, broadcast_window_s=1, radius_km=None,
            on_timeout=OnTimeout.OFF_DUTY if kind is WorkKind.ENROLLMENT else OnTimeout.NEXT,
        )  # fmt: skip
    storm = Storm(world, [await world.driver() for _ in range(DRIVERS)], seed=7)
    async with asyncio.TaskGroup() as tasks:
        for side in (storm.customers, storm.relay, storm.relay, storm.road, storm.road, storm.desk, storm.watch):
            tasks.create_task(side())

    assert storm.errors == [], (Counter(str(e)[:200] for e in storm.errors), storm.answers)
    await invariants.check(database)
    assert await invariants.check_decisions(database) > WORK_ORDERS / 2
    ended = Counter(row.status for row in await world.all("SELECT status FROM work_orders"))
    assert ended.total() == WORK_ORDERS
    assert ended["completed"] > WORK_ORDERS / 2, ended
    expected = {"accept", "reject", "cancel", "off duty", "complete", "unassign", "hand back", "force", "name"}
    assert expected <= set(storm.answers), storm.answers
    refusals = {"accept OFFER_TAKEN", "accept OFFER_EXPIRED", "accept WORK_ORDER_CANCELLED"}
    assert refusals & set(storm.answers), storm.answers
    expired = await world.all("SELECT 1 FROM offers WHERE reason = 'timeout' LIMIT 1")
    assert expired, "some let it lapse"


async def test_a_driver_who_moves_on_while_the_lane_waits_for_them_deadlocks_nobody(database: Database) -> None:
    """The lane waits for a driver's lock while a dispatcher, who holds the next work order in line, wants the same
    driver. If the lane, finding the driver changed, went on to that work order with the driver in hand, neither could
    move."""
    world = await World.make(database)
    wanted, other = await world.driver(skills=["crane"], waited_h=9), await world.driver()
    crane = await world.enrollment(priority=9, required_skills=("crane",))
    plain = await world.enrollment(priority=1)

    async def blocked() -> int:
        return len(await world.all("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
                                   "AND wait_event_type = 'Lock'"))  # fmt: skip

    async def until_blocked(count: int) -> None:
        async with asyncio.timeout(5):
            while await blocked() < count:
                await asyncio.sleep(0.01)

    async def name_them() -> None:
        async with database.transaction() as session:
            await assign_driver(session, plain, wanted.driver_id, "force")

    async with asyncio.TaskGroup() as tasks, database.transaction() as session:
        await session.run(
            text("UPDATE driver_dispatch SET duty = 'off', state_version = state_version + 1 WHERE driver_id = :id"),
            {"id": wanted.driver_id},
        )
        tasks.create_task(world.advance(crane))
        await until_blocked(1)
        tasks.create_task(name_them())
        await until_blocked(2)
    assert (await world.work_order(plain)).assigned_driver_id in (wanted.driver_id, None)
    await world.advance(plain)
    assert (await world.work_order(crane)).nobody_reasons is not None
    assert [o.driver_id for o in await world.offers(plain) if o.status != "expired"] in (
        [wanted.driver_id],
        [other.driver_id],
    )
    await invariants.check(database)
