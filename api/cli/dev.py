"""`fairlead dev`: everything up together on this machine, and down together."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import msgspec
from dotenv import dotenv_values
from rich.console import Console
from rich.markup import escape

from api.cli.services import Child, DirectoryLock, EmbeddedPostgres, EmbeddedTemporal, ServiceError, check_port
from models.kit.settings import Settings, load_settings

#: What an earlier run's processes, told to stop when it was killed, may still need for giving their ports back.
PORT_PATIENCE = 2.0
#: Seconds from "stop" to the last process's end: first API and worker, then what they stand on.
FRONT_PATIENCE, BACK_PATIENCE = 6.0, 3.0
READY_PATIENCE = 60.0
#: A part that dies is started again, but not more than so often within a minute.
REVIVALS = 5
PASSWORD = "fairlead-demo"  # noqa: S105 - published, for demo accounts only
ACCOUNTS = (
    ("admin@demo.test", "administrator"),
    ("dispatcher@demo.test", "dispatcher"),
    ("driver01@demo.test .. driver20@demo.test", "drivers"),
    ("customer@demo.test", "customer"),
    ("auditor@demo.test", "auditor"),
    ("dispatcher@other.test, driver01@other.test", "a second organization"),
)
LEVEL = re.compile(
    r'"level": ?"(?P<json>\w+)"'
    r"|\[(?P<console>debug|info|warning|error|critical)\s*\]"
    r"|\b(?P<std>WARNING|ERROR|CRITICAL)\b"
)
GRAVE = frozenset({"warning", "error", "critical"})


def run() -> int:
    """The process's exit code: 0 after a requested stop, 1 when a part could not be kept up."""
    environ = {k: v for k, v in dotenv_values(Path(".env")).items() if v is not None} | dict(os.environ)
    environ["DEV_MODE"] = "true"
    return asyncio.run(Stack(environ).run())


class Stack:
    """The processes of one `fairlead dev`, in the order they start; they stop in the reverse."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = dict(environ)
        self.settings: Settings = load_settings(self.environ)
        self.data = Path(self.settings.dev_data_dir).absolute()
        self.logs = self.data / "logs"
        self.lock = DirectoryLock(self.data / "dev.lock")
        self.postgres: EmbeddedPostgres | None = None
        self.temporal: EmbeddedTemporal | None = None
        self.worker: Child | None = None
        self.api: Child | None = None
        self.console = Console(highlight=False)
        self._revived: list[float] = []
        self._stop = asyncio.Event()
        self._hurry = False

    async def run(self) -> int:
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._asked_to_stop)
        try:
            self._claim()
            await self._bring_up()
            if not self._stop.is_set():
                self._announce(time.monotonic() - began)
                await self._watch()
        except ServiceError as error:
            self.console.print(f"[red]{escape(str(error))}[/]\nLogs: {self.logs}", soft_wrap=True)
            return 1
        finally:
            await self._bring_down()
            self.lock.release()
        self.console.print("Stopped.")
        return 0

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            self._hurry = True
        else:
            self._stop.set()
            self.console.print("\nStopping ..")

    def _claim(self) -> None:
        """Fail before anything starts: somebody else's place or port."""
        self.lock.acquire(f"Another `fairlead dev` (process {{pid}}) runs on {self.data}: stop it, or set DEV_DATA_DIR")
        settings = self.settings
        check_port(settings.port, "PORT", host=settings.host, patience=PORT_PATIENCE)
        if "TEMPORAL_ADDRESS" not in self._given:
            check_port(settings.dev_temporal_port, "DEV_TEMPORAL_PORT", patience=PORT_PATIENCE)
            check_port(settings.dev_temporal_ui_port, "DEV_TEMPORAL_UI_PORT", patience=PORT_PATIENCE)
        if "DATABASE_URL" not in self._given and settings.dev_postgres_port:
            check_port(settings.dev_postgres_port, "DEV_POSTGRES_PORT", patience=PORT_PATIENCE)

    @property
    def _given(self) -> set[str]:
        return {name for name, value in self.environ.items() if value.strip()}

    async def _bring_up(self) -> None:
        """Temporal starts while Postgres comes up, is migrated and seeded; then worker and API, at once."""
        settings, given = self.settings, self._given
        if "TEMPORAL_ADDRESS" not in given:
            self.temporal = EmbeddedTemporal(
                self.data / "temporal.db",
                settings.dev_temporal_port,
                settings.dev_temporal_ui_port,
                log=self.logs / "temporal.log",
            )
            self.temporal.launch()
            self.environ["TEMPORAL_ADDRESS"] = self.temporal.address
            self.environ.setdefault("TEMPORAL_UI_URL", f"http://127.0.0.1:{settings.dev_temporal_ui_port}")
        if "DATABASE_URL" not in given:
            self._say("Starting Postgres and Temporal ..")
            self.postgres = EmbeddedPostgres(
                self.data / "postgres", settings.dev_postgres_port, durable=True, log=self.logs / "postgres.log"
            )
            self.postgres.start()
            self.environ["DATABASE_URL"] = self.postgres.url
            # One meant for another database; empty rather than absent, so that `.env` does not bring it back.
            self.environ["DATABASE_DIRECT_URL"] = ""
        self.settings = load_settings(self.environ)
        await self._migrate_and_seed()
        if self.temporal is not None:
            await self._until(self.temporal.is_ready, self.temporal.child)
        if self._stop.is_set():
            return

        self._say("Starting worker and API ..")
        self.worker = self._launch("Worker", "worker")
        self.api = self._launch("API", "api")
        await self._until_ready()

    async def _migrate_and_seed(self) -> None:
        import migrations
        from migrations.demo import seed
        from models.kit.database import Database

        self._say("Migrating and seeding ..")
        await migrations.upgrade(self.settings.database_direct_url or self.settings.sqlalchemy_url)
        database = Database(self.settings.sqlalchemy_url, pool_size=2, name="fairlead-seed")
        try:
            await seed(database)
        finally:
            await database.close()

    def _launch(self, name: str, command: str) -> Child:
        defaults = {"LOG_FORMAT": "console"}
        child = Child(
            name,
            [sys.executable, "-m", "api.cli", command],
            log=self.logs / f"{command}.log",
            environment=defaults | self.environ | {"PYTHONUNBUFFERED": "1"},
        )
        child.launch()
        return child

    @property
    def _children(self) -> list[Child]:
        services = [service.child for service in (self.temporal, self.postgres) if service is not None]
        return [*services, *(child for child in (self.worker, self.api) if child is not None)]

    async def _until(self, ready: Callable[[], bool], child: Child) -> None:
        give_up = time.monotonic() + READY_PATIENCE
        while not self._stop.is_set() and not ready():
            child.check()
            if time.monotonic() > give_up:
                raise ServiceError(f"{child.name} was not ready after {READY_PATIENCE:.0f} s.\n{child.tail()}")
            await asyncio.sleep(0.05)

    async def _until_ready(self) -> None:
        """GET /health/ready answers 200: database, migrations, Temporal and API are all in working order."""
        give_up = time.monotonic() + READY_PATIENCE
        while not self._stop.is_set():
            for child in self._children:
                child.check()
            status, answer = await asyncio.to_thread(self._health)
            if status == 200:
                return
            if time.monotonic() > give_up:
                raise ServiceError(f"Not ready after {READY_PATIENCE:.0f} s; /health/ready says: {answer}")
            await asyncio.sleep(0.1)

    def _health(self) -> tuple[int, str]:
        # Not urlopen, which would ask a configured proxy for it.
        connection = HTTPConnection(self._host, self.settings.port, timeout=3)
        try:
            connection.request("GET", "/health/ready")
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except (OSError, HTTPException) as error:
            return 0, str(error)
        finally:
            connection.close()

    @property
    def _host(self) -> str:
        host = self.settings.host
        return "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not listened on

    @property
    def _base_url(self) -> str:
        return f"http://{self._host}:{self.settings.port}"

    async def _watch(self) -> None:
        """Until asked to stop. Shows what worker and API complain about, and starts a part again that has died: the
        others wait for it, as they would in production. Raises ServiceError when one does not stay up."""
        followers = [Follower(child) for child in (self.worker, self.api) if child is not None]
        while not self._stop.is_set():
            for follower in followers:
                for line in follower.grave_lines():
                    self.console.print(f"[dim]{follower.child.name.lower():>6}[/] {escape(line)}", soft_wrap=True)
            for child in self._children:
                if not child.running:
                    self._revive(child)
                    for follower in followers:
                        follower.seen = 0 if follower.child is child else follower.seen
            try:
                await asyncio.wait_for(self._stop.wait(), 0.3)
            except TimeoutError:
                continue

    def _revive(self, child: Child) -> None:
        now = time.monotonic()
        self._revived = [at for at in self._revived if now - at < 60] + [now]
        if len(self._revived) > REVIVALS:
            child.check()
        self.console.print(f"[yellow]{child.name} {child.ending}; starting it again.[/] Log: {child.log}")
        if self.postgres is not None and child is self.postgres.child:
            self.postgres.stop(0)
            self.postgres.start()
        elif self.temporal is not None and child is self.temporal.child:
            self.temporal.stop(0)
            self.temporal.launch()
        else:
            child.launch()

    async def _bring_down(self) -> None:
        await self._stop_together([child for child in (self.api, self.worker) if child is not None], FRONT_PATIENCE)
        services = [service for service in (self.postgres, self.temporal) if service is not None]
        await self._stop_together([service.child for service in services], BACK_PATIENCE)
        for service in services:
            service.stop(0)

    async def _stop_together(self, children: list[Child], patience: float) -> None:
        for child in children:
            child.ask_to_stop()
        give_up = time.monotonic() + patience
        while (  # noqa: ASYNC110 - processes end without an event to wait for
            any(child.running for child in children) and time.monotonic() < give_up and not self._hurry
        ):
            await asyncio.sleep(0.05)
        for child in children:
            child.wait(0)

    def _say(self, text: str) -> None:
        self.console.print(f"[dim]{text}[/]")

    def _announce(self, seconds: float) -> None:
        ui = self.settings.temporal_ui_url
        lines = [
            f"[bold green]Fairlead is up[/] after {seconds:.1f} s. Ctrl-C stops all of it.",
            "",
            f"  API          {self._base_url}",
            f"  Reference    {self._base_url}/docs",
            *([f"  Temporal UI  {ui}"] if ui else []),
            f"  Logs         {self.logs}",
            "",
            f"  Sign in with the password [bold]{PASSWORD}[/] as",
            *(f"    {account:<44}[dim]{role}[/]" for account, role in ACCOUNTS),
            "",
        ]
        self.console.print("\n".join(lines), soft_wrap=True)


class Follower(msgspec.Struct):
    """Reads on in a child's log, for the lines that matter on the terminal."""

    child: Child
    seen: int = 0
    within: bool = False

    def grave_lines(self) -> list[str]:
        """Warnings and errors since the last call, with the traceback lines that follow them."""
        return [line for line in self._new_lines() if self._is_grave(line)]

    def _new_lines(self) -> list[str]:
        new = self.child.output_since(self.seen)
        # The last line may be half written; it waits for its end.
        whole = new[: new.rfind(b"\n") + 1]
        self.seen += len(whole)
        return whole.decode(errors="replace").splitlines()

    def _is_grave(self, line: str) -> bool:
        found = LEVEL.search(line)
        if found is not None:
            self.within = (found["json"] or found["console"] or found["std"]).lower() in GRAVE
        elif line.startswith("Traceback "):
            self.within = True
        return self.within and bool(line.strip())
