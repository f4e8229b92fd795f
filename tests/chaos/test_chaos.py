"""A short fault run over the real processes, as a user runs it: `make chaos SEED=1 MINUTES=1`."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.chaos.faults import FREEZE, KILL
from tests.chaos.run import CONVERGENCE_S, Result
from tests.chaos.system import LINKS, PARTS

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
LIFECYCLES, FAULTS = 100, 60


async def test_a_minute_of_faults_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "result.json"
    command = ["-m", "tests.chaos", "--seed", "1", "--minutes", "1", "--work-orders", str(LIFECYCLES)]
    run = await asyncio.create_subprocess_exec(
        sys.executable, *command, "--json", str(kept), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await run.communicate()
    told = output.decode()
    assert kept.exists(), told[-8000:]
    result = msgspec.json.decode(kept.read_bytes(), type=Result)
    assert result.violations == [], told[-8000:]
    assert run.returncode == 0
    assert result.lifecycles >= LIFECYCLES
    assert len(result.faults) >= FAULTS
    assert result.converged_s is not None
    assert result.converged_s <= CONVERGENCE_S
    targets = Counter(done.fault.target for done in result.faults)
    assert min(targets[part] for part in PARTS) >= len(result.faults) / 10
    assert set(LINKS) <= set(targets)
    assert {KILL, FREEZE} <= {done.fault.kind for done in result.faults}
    assert any(done.in_flight for done in result.faults)


async def test_a_killed_supervisor_leaves_nothing_behind() -> None:
    """In the worst moment: with Postgres and its backends stopped, which no death signal reaches."""
    script = (
        "import asyncio, sys, tempfile\nfrom pathlib import Path\nfrom tests.chaos.system import System\n"
        "async def main():\n"
        "    directory = Path(tempfile.mkdtemp(prefix='fairlead-chaos-'))\n"
        "    directory.chmod(0o755)\n"
        "    async with System(directory / 'system') as system:\n"
        "        for part in system.parts.values():\n"
        "            part.freeze()\n"
        "        print(directory, flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert supervisor.stdout is not None
    async with asyncio.timeout(120):
        directory = Path((await supervisor.stdout.readline()).decode().strip())
    family = psutil.Process(supervisor.pid).children(recursive=True)
    assert len(family) >= 8, "API and its server, worker, Postgres with its backends, Temporal, guardian"
    os.kill(supervisor.pid, signal.SIGKILL)
    await supervisor.wait()
    give_up = time.monotonic() + 10
    while left := [process for process in family if _lives(process)]:
        assert time.monotonic() < give_up, left
        await asyncio.sleep(0.05)
    subprocess.run(["rm", "-rf", directory], check=True)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
