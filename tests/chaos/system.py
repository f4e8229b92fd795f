"""The system under test: four processes of ours, a proxy on each way between them, and two providers.

Everything lives below one scratch directory and on free ports. Nothing outlives the supervisor, however it ends: each
child dies with it, and a guardian sees to what was stopped at that moment.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
import psutil

import migrations
from api.cli.services import Child, EmbeddedPostgres, EmbeddedTemporal, ServiceError, free_port
from models.kit.settings import DEVELOPMENT_SECRET, Settings
from tests.factories.proxy import Proxy
from tests.notifications.provider_servers import (
    ACCOUNT_SID,
    API_KEY,
    AUTH_TOKEN,
    FROM_ADDRESS,
    FROM_NUMBER,
    ProviderServer,
    ResendServer,
    TwilioServer,
)

ROOT = Path(__file__).resolve().parents[2]
READY_PATIENCE_S = 90.0
#: A graceful end that takes longer is cut short, and counted.
GRACE_S = 15.0
#: Rates that no run reaches: the limiter works, and lets everything pass.
UNLIMITED = str(10**9)

API, WORKER, POSTGRES, TEMPORAL = "API", "worker", "Postgres", "Temporal"
PARTS = (API, WORKER, POSTGRES, TEMPORAL)
TWILIO, RESEND = "Twilio", "Resend"


def link(source: str, target: str) -> str:
    return f"{source} to {target}"


LINKS = (
    link("client", API),
    link(API, POSTGRES),
    link(WORKER, POSTGRES),
    link(API, TEMPORAL),
    link(WORKER, TEMPORAL),
    link(WORKER, TWILIO),
    link(WORKER, RESEND),
)


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """A process that ended by itself."""

    part: str
    at: float
    ending: str
    tail: str


class Part:
    """One process, with its descendants, and how to start it again."""

    def __init__(
        self,
        name: str,
        *,
        launch: Callable[[], None],
        child: Callable[[], Child],
        is_ready: Callable[[], Any],
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.launch = launch
        self._child = child
        self._is_ready = is_ready
        self._release = release
        #: A fault is being done to it: whoever watches over it leaves it alone.
        self.under_fault = False
        self.overdue_ends = 0

    @property
    def child(self) -> Child:
        return self._child()

    async def is_ready(self) -> bool:
        ready = self._is_ready()
        return bool(await ready if asyncio.iscoroutine(ready) else ready)

    async def until_ready(self, patience_s: float) -> bool:
        give_up = time.monotonic() + patience_s
        while not await self.is_ready():
            if time.monotonic() > give_up or not self.child.running:
                return False
            await asyncio.sleep(0.05)
        return True

    def kill(self) -> None:
        """SIGKILL, with every descendant."""
        self.child.kill()
        self._release()

    async def end(self) -> None:
        """Ask it to end and wait, as an orderly restart does."""
        self.child.ask_to_stop()
        give_up = time.monotonic() + GRACE_S
        while self.child.running:
            if time.monotonic() > give_up:
                self.overdue_ends += 1
                break
            await asyncio.sleep(0.02)
        self.kill()

    def freeze(self) -> None:
        for pid in (self.child.pid, *_descendants(self.child.pid)):
            _signal(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in (*_descendants(self.child.pid), self.child.pid):
            _signal(pid, signal.SIGCONT)


class Timed(list[Any]):
    """A ledger of what was taken for delivery that also notes when."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def append(self, item: Any) -> None:
        self.times.append(time.time())
        super().append(item)


class System:
    """Use as a context: up, with the newest schema, when entered; gone when left."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.postgres = EmbeddedPostgres(directory / "postgres", durable=True, log=directory / "postgres.log")
        self.temporal = EmbeddedTemporal(directory / "temporal.db", log=directory / "temporal.log")
        self.twilio = TwilioServer()
        self.resend = ResendServer()
        for provider in (self.twilio, self.resend):
            provider.delivered = Timed()
        self.links: dict[str, Proxy] = {}
        self.parts: dict[str, Part] = {}
        self.exits: list[Exit] = []
        self._port = free_port()
        self._guardian: subprocess.Popen[bytes] | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def base_url(self) -> str:
        """The API as clients reach it."""
        return self.links[link("client", API)].url

    @property
    def settings(self) -> Settings:
        """For whoever looks at Postgres and Temporal directly, past every proxy."""
        return Settings(
            database_url=self.postgres.url, temporal_address=self.temporal.address, secret_key=DEVELOPMENT_SECRET,
            dev_mode=True,
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("guardian.py")), str(self.directory)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            await self._bring_up()
        except BaseException:
            await self._bring_down()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._bring_down()

    async def _bring_up(self) -> None:
        self.temporal.launch()
        self.postgres.start()
        await migrations.upgrade(self.postgres.url)
        await self._open_links()
        self.parts = {
            POSTGRES: Part(
                POSTGRES, launch=self.postgres.launch, child=lambda: self.postgres.child,
                is_ready=self.postgres.is_ready, release=self.postgres.kill,
            ),
            TEMPORAL: Part(
                TEMPORAL, launch=self.temporal.launch, child=lambda: self.temporal.child,
                is_ready=self.temporal.is_ready, release=self.temporal.kill,
            ),
            API: self._of_ours(API, "api", self._api_answers),
            WORKER: self._of_ours(WORKER, "worker", lambda: "worker_running" in self.parts[WORKER].child.output()),
        }  # fmt: skip
        await self._until_ready(TEMPORAL)
        for name in (API, WORKER):
            self.parts[name].launch()
        for name in (API, WORKER):
            await self._until_ready(name)
        self._keeper = asyncio.create_task(self._keep_up())

    async def _until_ready(self, name: str) -> None:
        part = self.parts[name]
        if not await part.until_ready(READY_PATIENCE_S):
            raise ServiceError(f"{name} did not come up ({part.child.ending}).\n{part.child.tail()}")

    async def _open_links(self) -> None:
        for provider in (self.twilio, self.resend):
            await provider.__aenter__()
        ends = {
            API: f"http://127.0.0.1:{self._port}",
            POSTGRES: self.postgres.url,
            TEMPORAL: f"tcp://{self.temporal.address}",
            TWILIO: self.twilio.url,
            RESEND: self.resend.url,
        }
        for name in LINKS:
            self.links[name] = await Proxy(ends[name.rpartition(" to ")[2]]).__aenter__()

    def _of_ours(self, name: str, command: str, is_ready: Callable[[], Any]) -> Part:
        child = Child(
            name,
            [sys.executable, "-m", "api.cli", command],
            log=self.directory / f"{command}.log",
            # Where no `.env` of whoever runs this is read.
            directory=self.directory,
            environment=self._environment(name),
            death_signal=signal.SIGKILL,
        )
        return Part(name, launch=child.launch, child=lambda: child, is_ready=is_ready)

    def _environment(self, name: str) -> dict[str, str]:
        known = {field.encode_name for field in msgspec.structs.fields(Settings)}
        inherited = {key: value for key, value in os.environ.items() if key not in known}
        return inherited | {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "DATABASE_URL": self.links[link(name, POSTGRES)].url,
            "TEMPORAL_ADDRESS": self.links[link(name, TEMPORAL)].address,
            "PORT": str(self._port),
            "SECRET_KEY": DEVELOPMENT_SECRET,
            "DEV_MODE": "true",
            "LOG_LEVEL": "info",
            "LOG_FORMAT": "json",
            "RATE_LIMIT_ANON": UNLIMITED,
            "RATE_LIMIT_USER": UNLIMITED,
            "RATE_LIMIT_AUTH": UNLIMITED,
            "TWILIO_ACCOUNT_SID": ACCOUNT_SID,
            "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
            "TWILIO_FROM": FROM_NUMBER,
            "TWILIO_BASE_URL": self.links[link(WORKER, TWILIO)].url,
            "RESEND_API_KEY": API_KEY,
            "RESEND_BASE_URL": self.links[link(WORKER, RESEND)].url,
            "EMAIL_FROM": FROM_ADDRESS,
        }

    async def _api_answers(self) -> bool:
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as http,
                http.get(f"http://127.0.0.1:{self._port}/health") as answer,
            ):
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def _keep_up(self) -> None:
        """What ends by itself is noted and started again, as a process manager does."""
        while True:
            for part in self.parts.values():
                if not part.under_fault and not part.child.running:
                    self.exits.append(
                        Exit(part=part.name, at=time.time(), ending=part.child.ending, tail=part.child.tail(40))
                    )
                    part.kill()
                    part.launch()
            await asyncio.sleep(0.5)

    async def _bring_down(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        for name in (API, WORKER):
            if name in self.parts:
                self.parts[name].child.kill()
        self.temporal.kill()
        self.postgres.kill()
        for proxy in self.links.values():
            await proxy.__aexit__(None, None, None)
        providers: tuple[ProviderServer, ...] = (self.twilio, self.resend)
        for provider in providers:
            if provider.url:
                await provider.__aexit__(None, None, None)
        if self._guardian is not None:
            assert self._guardian.stdin is not None
            self._guardian.stdin.close()
            self._guardian.wait()


def _descendants(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
