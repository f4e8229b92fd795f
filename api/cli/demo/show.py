"""The show from curtain to curtain: who comes, what happens meanwhile, and how everything is left as it was found."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

import httpx
import msgspec
from rich.console import Console

from api.cli.demo.cast import PlayedDriver, temperaments
from api.cli.demo.client import Account, Refused, Unreachable, connect
from api.cli.demo.dispatcher import Dispatcher, place_near, plan
from api.cli.demo.morning import DriverLine, Morning, Pace
from api.cli.demo.policies import ShowPolicies
from api.cli.demo.summary import summarize
from api.cli.demo.view import show
from migrations.demo import DRIVERS, PASSWORD

#: At the start and the end nobody wants to wait for a system that is not there.
_SHORT_PATIENCE_S: Final = 4.0


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for on the command line. `patience_s`: so long may pass without any work order ending."""

    url: str
    enrollments: int
    jobs: int
    orders: int
    speed: float
    seed: int
    patience_s: float


class Show:
    """One run of `fairlead demo`."""

    def __init__(self, script: Script, console: Console, http: httpx.AsyncClient) -> None:
        self._script = script
        self._console = console
        pace = self._pace = Pace(script.speed, str(script.seed))
        self._planned = plan(pace.of("plan"), enrollments=script.enrollments, jobs=script.jobs, orders=script.orders)
        self._morning = Morning(len(self._planned))
        self._admin = Account(http, "admin@demo.test", PASSWORD)
        self._policies = ShowPolicies(self._admin, pace)
        self._dispatcher = Dispatcher(Account(http, "dispatcher@demo.test", PASSWORD), self._morning, pace)
        cast = temperaments(DRIVERS, pace.of("cast"))
        self._drivers: list[PlayedDriver] = []
        for number, temperament in enumerate(cast, start=1):
            email = f"driver{number:02}@demo.test"
            line = DriverLine(number=number, name=email, temperament=temperament.name)
            self._morning.drivers[email] = line
            own = pace.of(email)
            self._drivers.append(
                PlayedDriver(Account(http, email, PASSWORD), temperament, line, self._morning, own, place_near(own))
            )

    async def run(self) -> bool:
        """Whether every work order reached an end by itself. Raises Refused, Unreachable; may be cancelled."""
        self._say(f"A morning at {self._script.url}: {self._morning.planned} work orders, {DRIVERS} drivers")
        self._say(f"Choices by --seed {self._script.seed}")
        try:
            await self._open()
            await self._play()
            await self._declare_undeliverable()
        finally:
            await self._close()
        await summarize(self._console, self._morning, self._dispatcher)
        return self._morning.is_over and not self._morning.undeliverable

    async def _open(self) -> None:
        accounts = [self._dispatcher.account, self._admin]
        for account in [*accounts, *(driver.account for driver in self._drivers)]:
            account.patience = _SHORT_PATIENCE_S
        for account in accounts:
            await account.sign_in()
        self._say(await self._policies.shorten())
        await asyncio.gather(*(driver.come_on_duty() for driver in self._drivers))
        self._say(f"{self._dispatcher.account.full_name} and {DRIVERS} drivers have signed in and are on duty")
        for account in [*accounts, *(driver.account for driver in self._drivers)]:
            account.patience = self._script.patience_s

    async def _play(self) -> None:
        self._morning.began = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                beside = [group.create_task(show(self._console, self._morning), name="view")]
                beside += [group.create_task(driver.live(), name=driver.line.name) for driver in self._drivers]
                beside.append(group.create_task(self._dispatcher.watch_board(), name="board"))
                await self._dispatcher.create_all(self._planned)
                await self._until_over()
                for task in beside:
                    task.cancel()
        except BaseExceptionGroup as errors:
            expected, others = errors.split((Refused, Unreachable))
            if expected is None or others is not None:
                raise
            # One is enough to tell: when the system is gone, it is gone for all of them.
            raise _first_of(expected) from None

    async def _until_over(self) -> None:
        """All has ended, or nothing has for as long as patience lasts."""
        ended, since = self._morning.ended, time.monotonic()
        while not self._morning.is_over and time.monotonic() - since < self._script.patience_s:
            await asyncio.sleep(0.1)
            if self._morning.ended > ended:
                ended, since = self._morning.ended, time.monotonic()

    async def _declare_undeliverable(self) -> None:
        """Called off, so that nothing of the show waits on after it."""
        if self._morning.is_over:
            return
        reason = f"undeliverable: nothing moved for {self._script.patience_s:.0f} s"
        for work_order in await self._dispatcher.call_off(reason):
            self._morning.undeliverable.add(work_order.id)
            self._say(f"{work_order.reference} is declared undeliverable")

    async def _close(self) -> None:
        """Leave everything as it was found, also when interrupted or refused half-way. Never raises."""
        for account in (self._admin, self._dispatcher.account, *(driver.account for driver in self._drivers)):
            account.patience = _SHORT_PATIENCE_S
        for sentence in await self._policies.restore():
            self._say(sentence)
        with contextlib.suppress(Refused, Unreachable):
            left = await self._dispatcher.call_off("the demo was stopped")
            if left:
                self._say(f"{len(left)} work orders that had not ended are called off")
        there = [driver for driver in self._drivers if driver.line.driver_id]
        await asyncio.gather(*(driver.leave() for driver in there), return_exceptions=True)

    def _say(self, sentence: str) -> None:
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first: BaseException = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


async def play(script: Script, console: Console) -> bool:
    """As `Show.run`."""
    async with connect(script.url) as http:
        return await Show(script, console, http).run()
