"""`python -m tests.chaos --seed 1 --minutes 10`: a fault run. run.py has its course, report.py what it tells."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from api.cli.services import ServiceError
from tests.chaos.faults import SHORT, Severity
from tests.chaos.report import markdown, verdict
from tests.chaos.run import Options, Result, Run

#: Shorter runs have milder faults, so that more of them fit.
SHORT_MINUTES = 3.0


def _arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Kill, freeze and cut off every process and link under load, then check that nothing was lost.",
    )
    parser.add_argument("--seed", type=int, default=1, help="another seed gives other faults and other choices")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long faults come")
    parser.add_argument(
        "--work-orders", type=int, default=0, help="go on creating work until there are so many, whatever the time"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="keep the report")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the result for programs")
    parser.add_argument("--keep", action="store_true", help="keep logs, ledger and data even when all is well")
    return parser.parse_args(given)


def options_of(arguments: argparse.Namespace) -> Options:
    is_short = arguments.minutes <= SHORT_MINUTES
    return Options(
        seed=arguments.seed,
        seconds=arguments.minutes * 60,
        severity=SHORT if is_short else Severity(),
        pace=2.5 if is_short else 1.2,
        least_work=arguments.work_orders,
    )


async def _run(options: Options, directory: Path, began: float) -> Result:
    # Every `finally` ends what was started.
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {text}", flush=True)

    return await Run(options, directory, say)()


def main(given: Sequence[str]) -> int:
    arguments = _arguments(given)
    # Postgres, which is not root, has to get to its own below it.
    directory = Path(tempfile.mkdtemp(prefix="fairlead-chaos-"))
    directory.chmod(0o755)
    print(f"pid {os.getpid()}, seed {arguments.seed}, {arguments.minutes:g} minutes, scratch {directory}", flush=True)
    try:
        result = asyncio.run(_run(options_of(arguments), directory, time.monotonic()))
    except asyncio.CancelledError:
        shutil.rmtree(directory, ignore_errors=True)
        print("Stopped.")
        return 130
    except ServiceError as error:
        print(f"{error}\nKept: {directory}")
        return 1
    report = markdown(result)
    (directory / "report.md").write_text(report)
    print(f"\n{report}")
    if arguments.output is not None:
        arguments.output.write_text(report)
    if arguments.json is not None:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(result)))
    if result.violations or arguments.keep:
        print(f"Kept: {directory} (logs, ledger.jsonl, faults.jsonl, database.sql)")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    print(verdict(result))
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
