"""The launcher behind `make dev` and these tests: nothing outlives its parent, nothing is lost, one clear line."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from api.cli.services import (
    Child,
    DirectoryLock,
    EmbeddedPostgres,
    EmbeddedTemporal,
    PortTakenError,
    ServiceError,
    check_port,
    free_port,
)
from api.cli.services.processes import through_child_exec

PARENT_OF_POSTGRES = """
import sys, time
from pathlib import Path
from api.cli.services import EmbeddedPostgres
postgres = EmbeddedPostgres(Path(sys.argv[1]), durable=True)
postgres.start()
print(postgres.child.pid, postgres.dsn, flush=True)
time.sleep(600)
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Below directories that only their owner may enter: the hard case when the tests run as root."""
    return tmp_path / "data" / "postgres"


@pytest.fixture
def postgres(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(data_dir, durable=True)
    server.start()
    yield server
    server.stop()


def wait_for_end(pid: int, seconds: float) -> bool:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


async def test_postgres_ends_when_its_parent_is_killed_and_the_next_start_keeps_the_rows(data_dir: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT_OF_POSTGRES, str(data_dir)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid, dsn = parent.stdout.readline().decode().split()
    connection = await asyncpg.connect(dsn)
    await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    backends = [child.pid for child in psutil.Process(int(pid)).children(recursive=True)]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    connection.terminate()

    assert wait_for_end(int(pid), 10)
    assert all(wait_for_end(backend, 5) for backend in backends)

    again = EmbeddedPostgres(data_dir, durable=True)
    again.start()
    try:
        connection = await asyncpg.connect(again.dsn)
        assert await connection.fetchval("SELECT answer FROM kept") == 42
        await connection.close()
    finally:
        again.stop()


async def test_a_crash_and_a_stale_pid_file_of_a_living_stranger_do_not_stop_the_next_start(
    data_dir: Path, postgres: EmbeddedPostgres
) -> None:
    connection = await asyncpg.connect(postgres.dsn)
    await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    connection.terminate()
    postgres.kill()
    pid_file = data_dir / "postmaster.pid"
    assert pid_file.exists()
    # The number has gone to another process meanwhile, as happens soon in a container.
    lines = pid_file.read_text().split("\n")
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]))

    postgres.start()

    connection = await asyncpg.connect(postgres.dsn)
    assert await connection.fetchval("SELECT answer FROM kept") == 42
    await connection.close()
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


async def test_the_server_speaks_utf8_and_utc_and_wants_its_password(postgres: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(postgres.dsn)
    try:
        assert await connection.fetchval("SHOW server_encoding") == "UTF8"
        assert await connection.fetchval("SHOW timezone") == "UTC"
        assert await connection.fetchval("SHOW data_directory") == str(postgres.data_dir)
        assert await connection.fetchval("SELECT lower('ÄÖ') || uuid_extract_version(uuidv7())") == "äö7"
    finally:
        await connection.close()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(postgres.dsn, password="guessed")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_another_user_reaches_what_root_unpacked_below_a_closed_directory(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    program = closed / "program"
    program.touch(mode=0o755)
    look = f"import os; print(os.getuid(), os.access({str(program)!r}, os.X_OK))"
    command = through_child_exec([sys.executable, "-c", look], directory=closed, user=(65534, 65534))
    assert subprocess.check_output(command, text=True) == "65534 True\n"


def test_one_data_directory_has_one_server(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    with pytest.raises(ServiceError, match=f"is in use by process {os.getpid()}"):
        EmbeddedPostgres(data_dir, durable=True).start()
    assert postgres.child.running


def test_a_port_that_is_taken_gives_one_line_with_its_variable() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(PortTakenError) as caught:
            check_port(port, "PORT")
    assert str(caught.value) == f"Port {port} is taken: set PORT to another one"


def test_a_free_port_can_be_listened_on() -> None:
    check_port(free_port(), "PORT")


def test_temporal_keeps_its_state_and_its_search_attributes(tmp_path: Path) -> None:
    log = tmp_path / "temporal.log"
    for _ in range(2):
        temporal = EmbeddedTemporal(tmp_path / "temporal.db", log=log)
        temporal.start()
        try:
            with pytest.raises(ServiceError, match="is in use by process"):
                EmbeddedTemporal(tmp_path / "temporal.db", log=log).launch()
        finally:
            temporal.stop()
    assert (tmp_path / "temporal.db").stat().st_size > 0


def test_a_child_that_dies_says_how_and_with_which_last_words(tmp_path: Path) -> None:
    child = Child("Worker", [sys.executable, "-c", "print('no such host'); exit(3)"], log=tmp_path / "worker.log")
    child.launch()
    child.wait(10)
    with pytest.raises(ServiceError, match=r"^Worker exited with 3\.\nno such host$"):
        child.check()


def test_a_child_that_ignores_the_request_to_stop_is_killed(tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    child = Child("Stubborn", [sys.executable, "-c", stubborn], log=tmp_path / "stubborn.log")
    child.launch()
    while "up" not in child.output():
        time.sleep(0.02)
    child.stop(patience=0.2)
    assert child.returncode == -signal.SIGKILL


def test_a_lock_is_given_back(tmp_path: Path) -> None:
    first, second = DirectoryLock(tmp_path / "lock"), DirectoryLock(tmp_path / "lock")
    first.acquire("taken by {pid}")
    with pytest.raises(ServiceError, match=f"^taken by {os.getpid()}$"):
        second.acquire("taken by {pid}")
    first.release()
    second.acquire("taken by {pid}")
    second.release()
