"""`python -m bench`: measures, prints one table, and with `--output` keeps it."""

from __future__ import annotations

import argparse
import asyncio
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from api.cli.services import ServiceError
from bench.audit import measure_audit
from bench.expiry import measure_expiry
from bench.growth import measure_growth
from bench.lifecycle import measure_idle, measure_lifecycles
from bench.report import Report, machine
from bench.rounds import QUICK, Sizes

Section = Callable[..., Awaitable[None]]
SECTIONS: dict[str, Section] = {
    "accept": measure_idle,
    "lifecycle": measure_lifecycles,
    "expiry": measure_expiry,
    "growth": measure_growth,
    "audit": measure_audit,
}


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Throughput, latency and growth, each beside its floor measured in the same run.",
        epilog="A full run takes about 25 minutes on two cores that have nothing else to do.",
    )
    parser.add_argument(
        "--only", type=_sections, default=list(SECTIONS), metavar="A,B", help=f"of {', '.join(SECTIONS)}"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything works; no numbers")
    parser.add_argument("--lifecycles", type=int, help="lifecycles a round")
    parser.add_argument("--concurrency", type=int, help="pairs of dispatcher and driver at once")
    parser.add_argument("--rounds", type=int, help="rounds of each floor and ours")
    parser.add_argument("--open", type=int, dest="open_offers", help="offers open at once in `expiry`")
    parser.add_argument("--spread", type=float, dest="spread_s", help="seconds over which those offers expire")
    parser.add_argument("--together", action="store_true", help="API and worker in one process (`fairlead all`)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="keep the run, as bench/RESULTS.md")
    return parser.parse_args(arguments)


def _sections(given: str) -> list[str]:
    names = [name.strip() for name in given.split(",")]
    unknown = set(names) - set(SECTIONS)
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return names


def _sizes(options: argparse.Namespace) -> Sizes:
    names = ("lifecycles", "concurrency", "rounds", "open_offers", "spread_s")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return msgspec.structs.replace(QUICK if options.quick else Sizes(), **given)


async def _run(report: Report, options: argparse.Namespace) -> None:
    # SIGTERM, like Ctrl-C, lets every `finally` end what was started.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    for name in options.only:
        began = time.monotonic()
        report.say(f"== {name}")
        await SECTIONS[name](report, _sizes(options), together=options.together)
        report.say(f"{name} took {time.monotonic() - began:.0f} s")


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    # Ten thousand open workflows need no more files, but a small soft limit meets the servers' own.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    report = Report()
    for line in machine():
        report.say(line)
    try:
        asyncio.run(_run(report, options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        report.say("Stopped.")
        return 130
    except ServiceError as error:
        report.say(str(error))
        return 1
    report.print()
    if options.output is not None:
        report.write(options.output, " ".join(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
