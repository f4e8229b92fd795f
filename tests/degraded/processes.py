"""Real `fairlead api` and `fairlead worker` processes over a test's database, as a host's process manager runs them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from api.cli.services import Child, free_port
from models.kit.settings import DEVELOPMENT_SECRET
from tests.factories.workers import until

ROOT = Path(__file__).resolve().parents[2]
#: Longer than any start on a busy machine.
START_S = 40


class Fairlead:
    """One process of ours; `command` is `api` or `worker`, `changes` are further environment variables."""

    def __init__(self, command: str, log: Path, *, database_url: str, temporal: str, **changes: str) -> None:
        self.command = command
        self.port = free_port()
        environment = {
            "DATABASE_URL": database_url,
            "TEMPORAL_ADDRESS": temporal,
            "PORT": str(self.port),
            "SECRET_KEY": DEVELOPMENT_SECRET,
            "DEV_MODE": "true",
            "LOG_LEVEL": "info",
            "PYTHONUNBUFFERED": "1",
        }
        self.child = Child(
            command,
            [sys.executable, "-m", "api.cli", command],
            log=log,
            directory=ROOT,
            environment=dict(os.environ) | environment | changes,
        )

    async def __aenter__(self) -> Self:
        self.child.launch()
        await self.is_up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _end(self)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def is_up(self) -> None:
        """Wait until it serves: the API answers, the worker polls."""
        if self.command == "worker":
            await until(self._worker_runs, within_s=START_S)
            return
        async with httpx.AsyncClient(base_url=self.url) as client:
            await until(lambda: self._answers(client), within_s=START_S)

    async def _worker_runs(self) -> bool:
        self.child.check()
        return "worker_running" in self.child.output()

    async def _answers(self, client: httpx.AsyncClient) -> bool:
        self.child.check()
        try:
            return (await client.get("/health")).status_code == 200
        except httpx.TransportError:
            return False

    async def stop(self, patience_s: float = 30) -> float:
        """SIGTERM, and the seconds until it has ended. Its exit code has to be 0."""
        began = time.monotonic()
        self.child.ask_to_stop()
        async with asyncio.timeout(patience_s):
            while self.child.running:
                await asyncio.sleep(0.01)
        assert self.child.returncode == 0, f"{self.child.name} {self.child.ending}\n{self.child.tail()}"
        return time.monotonic() - began

    async def restart(self) -> None:
        """What a rolling deploy does with one process."""
        await self.stop()
        self.child.launch()
        await self.is_up()


@asynccontextmanager
async def up(*processes: Fairlead) -> AsyncIterator[None]:
    """All of them, started at once."""
    try:
        for process in processes:
            process.child.launch()
        for process in processes:
            await process.is_up()
        yield
    finally:
        await _end(*processes)


async def _end(*processes: Fairlead) -> None:
    """Gently, where that is quick: the activities of a worker that is killed are missed only by their heartbeats, for
    which the next test's worker would wait."""
    for process in processes:
        process.child.ask_to_stop()
    give_up = time.monotonic() + 5
    while any(process.child.running for process in processes) and time.monotonic() < give_up:
        await asyncio.sleep(0.02)
    for process in processes:
        process.child.kill()
