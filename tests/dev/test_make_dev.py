"""`make dev` as a newcomer has it: one command, a lifecycle, Ctrl-C, the same again tomorrow; and the demo on it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil
from temporalio.client import Client, WorkflowExecutionStatus

from api.cli.services import free_port
from migrations.demo import PASSWORD

ROOT = Path(__file__).parents[2]
UP = "Fairlead is up"
#: The first start makes a database cluster and compiles what nobody has imported yet.
START_S = 60.0
STOP_S = 15.0
#: What the environment of whoever runs the tests must not lend to the system under test; ARGS are those of their make.
FOREIGN = (
    "DATABASE_URL", "DATABASE_DIRECT_URL", "TEMPORAL_ADDRESS", "TEMPORAL_UI_URL", "SECRET_KEY", "HOST",
    "ARGS", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES",
)  # fmt: skip


class MakeDev:
    """One run of `make dev`, on ports of its own."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.port, self.temporal_port, ui_port = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {name: value for name, value in os.environ.items() if name not in FOREIGN} | {
            "PORT": str(self.port),
            "DEV_TEMPORAL_PORT": str(self.temporal_port),
            "DEV_TEMPORAL_UI_PORT": str(ui_port),
            "DEV_DATA_DIR": str(data_dir),
            "PYTHONUNBUFFERED": "1",
        }
        self._output = data_dir.parent / "make-dev.log"
        with self._output.open("wb") as output:
            # A session of its own, as a terminal's foreground job has a process group of its own.
            self.make = subprocess.Popen(
                ["make", "dev"],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def until_up(self) -> None:
        give_up = time.monotonic() + START_S
        while UP not in self.output:
            assert self.make.poll() is None, f"make dev ended:\n{self.output}"
            assert time.monotonic() < give_up, f"make dev was not up after {START_S} s:\n{self.output}"
            time.sleep(0.1)

    def control_c(self) -> float:
        """What a terminal sends: SIGINT to the whole foreground group. Seconds until `make` has ended."""
        began = time.monotonic()
        os.killpg(self.make.pid, signal.SIGINT)
        self.make.wait(STOP_S)
        return time.monotonic() - began

    def processes(self) -> list[psutil.Process]:
        """Everything that belongs to it: what it has started, and what names its data directory."""
        return [each for each in psutil.process_iter() if each.pid == self.make.pid or self._is_ours(each)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            named = any(str(self.data_dir) in word for word in process.cmdline())
            return named or process.environ().get("DEV_DATA_DIR") == str(self.data_dir)
        except psutil.Error:
            return False


@contextmanager
def make_dev(data_dir: Path) -> Iterator[MakeDev]:
    run = MakeDev(data_dir)
    try:
        run.until_up()
        yield run
    finally:
        if run.make.poll() is None:
            run.control_c()
        for process in run.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()


def demo(run: MakeDev, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "api.cli", "demo", "--url", run.url, "--seed", "7", *arguments],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@asynccontextmanager
async def signed_in(run: MakeDev, email: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"{run.url}/api/v1", timeout=15, trust_env=False) as client:
        answer = await client.post("/auth/login", json={"email": email, "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        yield client


async def account_of(dispatcher: httpx.AsyncClient, driver_id: str) -> str:
    """The e-mail address that this driver signs in with."""
    driver = (await dispatcher.get(f"/drivers/{driver_id}")).json()
    email: str = (await dispatcher.get(f"/users/{driver['user_id']}")).json()["email"]
    return email


async def live_through_an_enrollment(run: MakeDev) -> str:
    """A dispatcher asks, the driver in turn takes it and does it. Gives the work order's id."""
    async with signed_in(run, "dispatcher@demo.test") as dispatcher:
        answer = await dispatcher.post(
            "/enrollments",
            json={"premise_id": "P-4711", "timeslot": "08:00-10:00", "address": "1 Beacon St, Boston"},
            headers={"Prefer": "wait=5"},
        )
        assert answer.status_code == 201, answer.text
        created = answer.json()
        [offer] = created["offers"]
        assert offer["status"] == "pending"
        async with signed_in(run, await account_of(dispatcher, offer["driver_id"])) as driver:
            current = await driver.get("/drivers/me/offers/current")
            assert current.status_code == 200
            assert current.json()["id"] == offer["id"]
            accepted = await driver.post(f"/offers/{offer['id']}/accept")
            assert accepted.status_code == 200, accepted.text
            assert accepted.json()["status"] == "accepted"
            completed = await driver.post(f"/work-orders/{created['id']}/complete", json={"notes": "Enrolled"})
            assert completed.status_code == 200, completed.text
            assert (await driver.get("/drivers/me/offers/current")).status_code == 204
    work_order_id: str = created["id"]
    return work_order_id


def the_readmes_walk_works_as_written(run: MakeDev) -> None:
    """Every shell block of README.md, in order, as one script."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    walk = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        env=os.environ | {"BASE": run.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert walk.returncode == 0, walk.stdout + walk.stderr
    steps = iter(walk.stdout.splitlines())
    for step in ("accepted", "accepted", "en_route", "arrived", "in_progress", "completed"):
        assert any(line.endswith(step) for line in steps), f"{step} is missing from:\n{walk.stdout}"
    assert "one work order: " in walk.stdout
    for code in ("OFFER_ALREADY_ACCEPTED", "FORBIDDEN", "VALIDATION_FAILED"):
        assert f'"code":"{code}"' in walk.stdout


async def workflow_completes(run: MakeDev, work_order_id: str) -> bool:
    temporal = await Client.connect(f"127.0.0.1:{run.temporal_port}")
    handle = temporal.get_workflow_handle(f"work-order-{work_order_id}")

    async def is_completed() -> bool:
        return (await handle.describe()).status is WorkflowExecutionStatus.COMPLETED

    return await holds_within(10, is_completed)


async def holds_within(seconds: float, condition: Callable[[], Awaitable[bool]]) -> bool:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if await condition():
            return True
        await anyio.sleep(0.1)
    return False


async def policy(run: MakeDev, kind: str) -> dict[str, Any]:
    async with signed_in(run, "admin@demo.test") as admin:
        found: dict[str, Any] = (await admin.get(f"/dispatch-policies/{kind}")).json()
        return {name: value for name, value in found.items() if name not in ("version", "created_at")}


async def interrupted_demo_leaves_nothing_behind(run: MakeDev) -> None:
    before = {kind: await policy(run, kind) for kind in ("enrollment", "job", "order")}
    played = demo(run)
    assert played.stdout is not None
    for line in played.stdout:
        if " accepts " in line:
            break
    assert await policy(run, "enrollment") != before["enrollment"]
    os.killpg(played.pid, signal.SIGINT)
    output, _ = played.communicate(timeout=15)
    assert played.returncode == 130, output
    assert {kind: await policy(run, kind) for kind in before} == before
    async with signed_in(run, "dispatcher@demo.test") as dispatcher:
        figures = (await dispatcher.get("/dashboard")).json()
    work = figures["work_orders"]
    assert (work["pending"], work["offered"], work["assigned"], work["in_progress"]) == (0, 0, 0, 0)
    assert figures["drivers"]["available"] == 20


def demo_plays_to_its_end(run: MakeDev) -> None:
    played = demo(run, "--speed", "4", "--enrollments", "6", "--jobs", "2", "--orders", "3", "--patience", "30")
    output, _ = played.communicate(timeout=60)
    assert played.returncode == 0, output
    for part in ("temperament", "Jain's index", "Seconds to assign", "Who got what, and why", "11 work orders in"):
        assert part in output
    explained = output.partition("Who got what, and why\n")[2].partition("\n\n")[0].splitlines()
    assert len(explained) == 5
    assert all(re.match(r"  (EN|JB|OR)-\d+ to .+ \(\w+\).*\. \S", line) for line in explained)


async def test_make_dev_lives_a_day_ends_on_control_c_and_goes_on_where_it_was(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with make_dev(data_dir) as run:
        assert httpx.get(f"{run.url}/health/ready", trust_env=False).status_code == 200
        work_order_id = await live_through_an_enrollment(run)
        assert await workflow_completes(run, work_order_id)
        the_readmes_walk_works_as_written(run)
        await interrupted_demo_leaves_nothing_behind(run)

        assert len(run.processes()) > 5
        assert run.control_c() < STOP_S
        assert "Stopped." in run.output
        assert run.processes() == []

    with make_dev(data_dir) as again:
        async with signed_in(again, "dispatcher@demo.test") as dispatcher:
            kept = (await dispatcher.get(f"/work-orders/{work_order_id}")).json()
        assert (kept["status"], kept["completion_notes"]) == ("completed", "Enrolled")
        demo_plays_to_its_end(again)
