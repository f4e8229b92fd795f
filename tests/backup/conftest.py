"""A system that is worth a backup: Postgres as it comes, a Temporal, and a worker process, all of the test's own."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from api.cli.services import Child, EmbeddedPostgres, EmbeddedTemporal, free_port
from api.cli.services.postgres import PASSWORD_FILE, _binary
from models.kit.settings import DEVELOPMENT_SECRET

ROOT = Path(__file__).parents[2]


def tool(name: str, *arguments: str | Path, password: str) -> None:
    """Run one of Postgres's own programs to its end."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_", "LANG"))}
    done = subprocess.run(
        [_binary(name), *arguments],
        env=environment | {"PGPASSWORD": password},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{name}: {done.stderr}"


class Site:
    """Where a system runs. `close` ends what is still running."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._running: list[Child | EmbeddedPostgres | EmbeddedTemporal] = []
        self._number = 0

    def postgres(self, name: str) -> EmbeddedPostgres:
        server = EmbeddedPostgres(self.directory / name, durable=True)
        self._running.append(server)
        return server

    def temporal(self) -> EmbeddedTemporal:
        self._number += 1
        server = EmbeddedTemporal(None, log=self.directory / f"temporal{self._number}.log")
        server.start()
        self._running.append(server)
        return server

    def worker(self, database_url: str, temporal: EmbeddedTemporal) -> Child:
        self._number += 1
        worker = Child(
            "worker",
            [sys.executable, "-m", "api.cli", "worker"],
            log=self.directory / f"worker{self._number}.log",
            directory=ROOT,
            environment=settings_of(database_url, temporal),
        )
        worker.launch()
        self._running.append(worker)
        return worker

    def owned_directory(self, name: str) -> Path:
        """One that Postgres may write to, also where it runs as somebody else."""
        made = self.directory / name
        made.mkdir()
        own(made)
        return made

    def close(self) -> None:
        for one in reversed(self._running):
            one.kill()


def own(path: Path) -> None:
    """Give it to the user whom Postgres runs as in place of root."""
    if os.geteuid() == 0:
        for one in (path, *path.rglob("*")):
            shutil.chown(one, "nobody")


def settings_of(database_url: str, temporal: EmbeddedTemporal) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    return kept | {
        "DATABASE_URL": database_url,
        "TEMPORAL_ADDRESS": temporal.address,
        "SECRET_KEY": DEVELOPMENT_SECRET,
        "DEV_MODE": "true",
        "COLUMNS": "200",
        "PORT": str(free_port()),
    }


async def fairlead(*arguments: str, database_url: str, temporal: EmbeddedTemporal) -> str:
    """Run a `fairlead` command that has to succeed; what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "api.cli", *arguments, cwd=ROOT, env=settings_of(database_url, temporal),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


def password_of(server: EmbeddedPostgres) -> str:
    return (server.data_dir / PASSWORD_FILE).read_text().strip()


async def ask(server: EmbeddedPostgres, *statements: str) -> object:
    """The value that the last of these gives."""
    connection = await asyncpg.connect(server.dsn)
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        await connection.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()
