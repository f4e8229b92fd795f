"""Fairlead as it is deployed, on free ports and a directory of its own: Postgres, Temporal, API process, worker."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import asyncpg
from temporalio.client import Client

import migrations
from api.cli.services import Child, EmbeddedPostgres, EmbeddedTemporal, ServiceError, free_port
from bench.world import SECRET_KEY
from models.kit.database import Database
from models.kit.settings import Settings
from workflows.client import connect

#: Rates that no run reaches: the limiter works, and lets everything pass.
UNLIMITED = str(10**9)
PATIENCE_S = 60.0


class Services:
    """Postgres and Temporal, durable as in `make dev`, in a temporary directory that `stop` removes."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="fairlead-bench-"))
        self.postgres = EmbeddedPostgres(self.directory / "postgres", durable=True)
        self.temporal = EmbeddedTemporal(self.directory / "temporal.db", log=self.directory / "temporal.log")
        self.children: list[Child] = []

    @property
    def pids(self) -> dict[str, int]:
        named = {child.name: child.pid for child in self.children if child.running}
        return {"postgres": self.postgres.child.pid, "temporal": self.temporal.child.pid} | named

    @property
    def settings(self) -> Settings:
        return Settings(
            database_url=self.postgres.url, temporal_address=self.temporal.address, secret_key=SECRET_KEY,
            log_level="warning",
        )  # fmt: skip

    def start(self) -> None:
        self.temporal.launch()
        self.postgres.start()
        give_up = time.monotonic() + PATIENCE_S
        while not self.temporal.is_ready():
            self.temporal.child.check()
            if time.monotonic() > give_up:
                raise ServiceError(f"Temporal was not ready.\n{self.temporal.child.tail()}")
            time.sleep(0.05)

    async def connect(self) -> Client:
        return await connect(self.settings)

    async def make_database(self, name: str) -> str:
        """A migrated database beside the main one, on which no relay runs; its URL for SQLAlchemy."""
        connection = await asyncpg.connect(self.postgres.dsn)
        try:
            await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()
        url = f"{self.postgres.url.rpartition('/')[0]}/{name}"
        await migrations.upgrade(url)
        return url

    def launch(self, name: str, *arguments: str, environment: dict[str, str] | None = None) -> Child:
        """A Python process of ours: `python -m arguments ..`."""
        child = Child(
            name,
            [sys.executable, "-m", *arguments],
            log=self.directory / f"{name}.log",
            environment=dict(os.environ) | (environment or {}) | {"PYTHONUNBUFFERED": "1"},
        )
        child.launch()
        self.children.append(child)
        return child

    async def until(self, ready: Callable[[], bool], child: Child, *, patience: float = PATIENCE_S) -> None:
        """Wait for `ready()`. Raises ServiceError when the child dies first or `patience` seconds pass."""
        give_up = time.monotonic() + patience
        while not ready():
            child.check()
            if time.monotonic() > give_up:
                raise ServiceError(f"{child.name} was not ready after {patience:.0f} s.\n{child.tail()}")
            await asyncio.sleep(0.02)

    async def stop_children(self, *names: str) -> None:
        """Stop these, gently, or all."""
        chosen = [child for child in self.children if not names or child.name in names]
        for child in chosen:
            child.ask_to_stop()
        for child in chosen:
            await asyncio.to_thread(child.wait, 10)
            self.children.remove(child)

    def kill(self) -> None:
        """End all at once; nothing is worth an orderly end."""
        for child in self.children:
            child.kill()
        self.temporal.kill()
        self.postgres.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


class System(Services):
    """The services with API and worker on top, as two processes or (`together`) as one."""

    def __init__(self, *, together: bool = False) -> None:
        super().__init__()
        self._together = together
        self._port = free_port()
        self.base_url = f"http://127.0.0.1:{self._port}"

    async def start_fairlead(self, *, messages: bool) -> None:
        """Start API and worker with or without messages; they are warm when this returns."""
        environment = {
            "DATABASE_URL": self.postgres.url,
            "DATABASE_DIRECT_URL": "",
            "TEMPORAL_ADDRESS": self.temporal.address,
            "SECRET_KEY": SECRET_KEY,
            "PORT": str(self._port),
            "LOG_LEVEL": "warning",
            "MESSAGES_ENABLED": "true" if messages else "false",
            "RATE_LIMIT_ANON": UNLIMITED,
            "RATE_LIMIT_USER": UNLIMITED,
            "RATE_LIMIT_AUTH": UNLIMITED,
            # Of whoever runs this: no providers, so that messages end in the outbox.
            **dict.fromkeys(("TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN", "TWILIO_FROM", "RESEND_API_KEY"), ""),
        }
        if self._together:
            self.launch("api+worker", "api.cli", "all", environment=environment)
        else:
            self.launch("worker", "api.cli", "worker", environment=environment)
            self.launch("api", "api.cli", "api", environment=environment)
        await self._until_ready()

    async def stop_fairlead(self) -> None:
        await self.stop_children("api", "worker", "api+worker")

    async def _until_ready(self) -> None:
        give_up = time.monotonic() + PATIENCE_S
        async with aiohttp.ClientSession() as http:
            while True:
                for child in self.children:
                    child.check()
                try:
                    async with http.get(f"{self.base_url}/health/ready") as response:
                        if response.status == 200:
                            return
                        answer = await response.text()
                except aiohttp.ClientError as error:
                    answer = str(error)
                if time.monotonic() > give_up:
                    raise ServiceError(f"The API was not ready after {PATIENCE_S:.0f} s: {answer}")
                await asyncio.sleep(0.1)


@asynccontextmanager
async def running_services() -> AsyncIterator[Services]:
    services = Services()
    try:
        services.start()
        yield services
    finally:
        services.kill()


@asynccontextmanager
async def running_system(*, together: bool = False, messages: bool = True) -> AsyncIterator[System]:
    """Up with the newest schema, and gone with its directory afterwards, whatever happens."""
    system = System(together=together)
    try:
        system.start()
        await migrations.upgrade(system.postgres.url)
        await system.start_fairlead(messages=messages)
        yield system
    finally:
        system.kill()


@asynccontextmanager
async def open_database(url: str, *, messages: bool = True) -> AsyncIterator[Database]:
    database = Database(url, name="fairlead-bench", messages_enabled=messages)
    try:
        yield database
    finally:
        await database.close()
