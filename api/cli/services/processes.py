"""Child processes under supervision: launched through `child_exec`, logged to a file, stopped gently and then not."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

CHILD_EXEC = Path(__file__).with_name("child_exec.py")


class ServiceError(Exception):
    """A child did not start or died; the text says which, and ends with the last lines of its log."""


def through_child_exec(
    command: Sequence[str | Path],
    *,
    directory: Path,
    death_signal: signal.Signals = signal.SIGTERM,
    user: tuple[int, int] | None = None,
) -> list[str]:
    """The command line that runs `command` in `directory` as `user` (uid, gid) and ends it when this thread ends."""
    who = "-" if user is None else f"{user[0]}:{user[1]}"
    shim = [sys.executable, "-I", "-S", str(CHILD_EXEC), str(int(death_signal)), str(os.getpid()), who]
    return [*shim, str(directory), *map(str, command)]


class Child:
    """One process and its log.

    Launch it from a thread that lives as long as the child should (the main one): the kernel counts the end of the
    launching thread as the parent's death.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        death_signal: signal.Signals = signal.SIGTERM,
        user: tuple[int, int] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._command = through_child_exec(
            command, directory=directory or Path.cwd(), death_signal=death_signal, user=user
        )
        self._environment = environment
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def launch(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                # Ctrl-C goes to the terminal's foreground group: we alone get it, and stop the children in order.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServiceError(f"{self.name} has not been launched")
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs, and before it was launched."""
        return None if self._process is None else self._process.poll()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def check(self) -> None:
        """Raise ServiceError when it has died."""
        if self.returncode is not None:
            raise ServiceError(f"{self.name} {self.ending}.\n{self.tail()}".rstrip())

    @property
    def ending(self) -> str:
        code = self.returncode
        if code is None:
            return "is running"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"

    def output(self) -> str:
        """What this launch has logged so far."""
        return self.output_since(0).decode(errors="replace")

    def output_since(self, position: int) -> bytes:
        """What this launch has logged after its first `position` bytes."""
        if not self.log.exists():
            return b""
        with self.log.open("rb") as file:
            file.seek(self._log_start + position)
            return file.read()

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.output().rstrip().splitlines()[-lines:])

    def ask_to_stop(self) -> None:
        self._signal(self._stop_signal)

    def stop(self, patience: float = 8) -> None:
        """Ask, wait up to `patience` seconds, then kill."""
        self.ask_to_stop()
        self.wait(patience)

    def wait(self, patience: float) -> None:
        """Wait for its end, and bring it about when that takes longer than `patience` seconds."""
        if self._process is None:
            return
        try:
            self._process.wait(max(patience, 0))
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, with every descendant: what the machine's sudden end would do."""
        if self._process is None:
            return
        descendants = _descendants(self._process.pid)
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pid in descendants:
            _kill(pid)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


def _descendants(pid: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


class DirectoryLock:
    """One owner at a time of a place on disk. The kernel gives it back when the owner dies, however it dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self, refusal: str) -> None:
        """Raise ServiceError(`refusal`, with the owner's process id in place of `{pid}`) when somebody has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip() or "?"
            file.close()
            raise ServiceError(refusal.format(pid=owner)) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def wait_until(ready: Callable[[], bool], child: Child, *, patience: float) -> None:
    """Poll `ready()` until it is true. Raises ServiceError when the child dies first or `patience` seconds pass."""
    give_up = time.monotonic() + patience
    while not ready():
        child.check()
        if time.monotonic() > give_up:
            raise ServiceError(f"{child.name} was not ready after {patience:.0f} s.\n{child.tail()}")
        time.sleep(0.02)
