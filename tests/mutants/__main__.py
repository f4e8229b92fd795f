"""`python -m tests.mutants [NAME..]`: takes one guard away at a time and sees whether a test notices.

Each mutant is made in a copy of the project, two copies side by side, so that the checkout is never touched. A mutant
is caught when its tests run and fail; a run that cannot start or collects nothing is a mistake in the catalogue.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.catalogue import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
#: pytest's exit codes: tests ran and all passed; tests ran and some failed.
ALL_PASSED, SOME_FAILED = 0, 1
PATIENCE_S = 300


class Outcome:
    """What became of one mutant."""

    def __init__(self, mutant: Mutant, code: int, output: str, seconds: float) -> None:
        self.mutant = mutant
        self.code = code
        self.output = output
        self.seconds = seconds

    @property
    def caught(self) -> bool:
        return self.code == SOME_FAILED

    @property
    def by(self) -> str:
        """The first test that failed."""
        failed = [line for line in self.output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        return failed[0].split(" ")[1].partition("::")[2].partition("[")[0] if failed else ""


def copy_project(place: Path) -> None:
    """Every file that git knows or would take, so that a run does not depend on what is committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, place / name)


def try_mutant(mutant: Mutant, copies: SimpleQueue[Path]) -> Outcome:
    place = copies.get()
    file = place / mutant.path
    original = file.read_text()
    began = time.monotonic()
    try:
        if original.count(mutant.guard) != 1:
            return Outcome(mutant, -1, f"the guard stands {original.count(mutant.guard)} times in {mutant.path}", 0)
        file.write_text(original.replace(mutant.guard, mutant.without))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider", *mutant.tests],
            cwd=place,
            env=os.environ | {"PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return Outcome(mutant, done.returncode, done.stdout + done.stderr, time.monotonic() - began)
    except subprocess.TimeoutExpired:
        # Something waits for ever that did not before: that is noticed, too.
        return Outcome(mutant, SOME_FAILED, "FAILED ::no_end_within_its_time", time.monotonic() - began)
    finally:
        file.write_text(original)
        copies.put(place)


def table(outcomes: Sequence[Outcome]) -> str:
    lines = ["| guard taken away | kind | noticed by |", "|---|---|---|"]
    lines += [f"| {o.mutant.name} | {o.mutant.kind} | {f'`{o.by}`' if o.caught else '**nothing**'} |" for o in outcomes]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("names", nargs="*", help="only mutants whose name contains one of these")
    parser.add_argument("--side-by-side", type=int, default=2, help="copies of the project to work in")
    parser.add_argument("--output", type=Path, help="keep the table, as docs/mutants.md")
    options = parser.parse_args(arguments)
    chosen = [m for m in MUTANTS if not options.names or any(name in m.name for name in options.names)]
    with tempfile.TemporaryDirectory(prefix="fairlead-mutants-") as scratch:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.side_by_side):
            place = Path(scratch) / str(number)
            copy_project(place)
            copies.put(place)
        with ThreadPoolExecutor(options.side_by_side) as pool:
            outcomes = []
            for outcome in pool.map(lambda mutant: try_mutant(mutant, copies), chosen):
                outcomes.append(outcome)
                verdict = f"caught by {outcome.by}" if outcome.caught else f"NOT CAUGHT (exit {outcome.code})"
                print(f"{outcome.mutant.name}: {verdict}, {outcome.seconds:.0f} s", flush=True)
                if not outcome.caught:
                    print("\n".join(f"    {line}" for line in outcome.output.splitlines()[-12:]), flush=True)
    caught = sum(outcome.caught for outcome in outcomes)
    print(f"{caught} of {len(outcomes)} mutants caught")
    if options.output is not None and not options.names:
        options.output.write_text(HEAD.format(caught=caught, all=len(outcomes)) + table(outcomes) + "\n")
    return 0 if caught == len(outcomes) else 1


HEAD = """\
# Mutants

`make mutants` takes one guard away at a time, in a copy of the project, and runs the tests that should notice. Its last
run, which wrote this: {caught} of {all} caught. The guards are listed in
[tests/mutants/catalogue.py](../tests/mutants/catalogue.py).

"""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
