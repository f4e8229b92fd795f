"""The morning on a terminal: figures, drivers and the newest events, several times a second; plain lines elsewhere."""

from __future__ import annotations

import asyncio
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from api.cli.demo.morning import KINDS, DriverLine, Morning

_REFRESH_S: Final = 0.25
_FIGURES_EVERY_S: Final = 5.0
_BAR_WIDTH: Final = 12
#: The board's columns, and the states that each counts.
_COLUMNS: Final = {
    "waiting": ("pending",),
    "assigned": ("assigned", "en_route"),
    "at work": ("arrived", "in_progress"),
    "done": ("completed", "disputed"),
    "expired": ("expired",),
    "called off": ("cancelled",),
}
_STYLES: Final = {"available": "green", "offline": "red", "break": "yellow"}
#: Lines that are not events: title, progress, figures and the spaces between.
_FRAME_LINES: Final = 11
_TWO_COLUMNS_FROM: Final = 100


async def show(console: Console, morning: Morning) -> None:
    """Until cancelled. The last picture stays on the terminal."""
    if not console.is_terminal:
        await _show_lines(console, morning)
        return
    with Live(console=console, auto_refresh=False, transient=False) as live:
        try:
            while True:
                live.update(picture(morning, console.width, console.height), refresh=True)
                await asyncio.sleep(_REFRESH_S)
        finally:
            live.update(picture(morning, console.width, console.height), refresh=True)


async def _show_lines(console: Console, morning: Morning) -> None:
    """For a log: each event when it happens, and the figures now and then."""

    def line(at: float, sentence: str) -> None:
        console.print(f"{at:6.1f} s  {sentence}", markup=False, highlight=False, soft_wrap=True)

    morning.listener = line
    try:
        while True:
            await asyncio.sleep(_FIGURES_EVERY_S)
            line(morning.elapsed, f"-- {figures(morning)}")
    finally:
        morning.listener = None


def figures(morning: Morning) -> str:
    """`41 of 100 ended: 12 waiting, 9 assigned, ..`"""
    totals = _totals(morning)
    parts = ", ".join(f"{count} {name}" for name, count in totals.items() if count)
    return f"{morning.ended} of {morning.planned} have ended: {parts or 'nothing yet'}"


def _totals(morning: Morning) -> dict[str, int]:
    counts = morning.counts().values()
    return {name: sum(kind[state] for kind in counts for state in states) for name, states in _COLUMNS.items()}


def picture(morning: Morning, width: int, height: int) -> RenderableType:
    """As much of it as fits: on a narrow terminal the drivers make way, on a low one the oldest events."""
    newest = max(3, height - _FRAME_LINES)
    top = Table.grid(padding=(0, 1))
    top.add_row(
        Text("Fairlead, a morning", style="bold"),
        ProgressBar(total=max(1, morning.planned), completed=morning.ended, width=30),
        Text(f"{morning.ended}/{morning.planned}"),
        Text(f"{morning.elapsed:.0f} s", style="dim"),
    )
    right = Group(_board(morning), Text(""), _events(morning, newest))
    if width < _TWO_COLUMNS_FROM:
        return Group(top, Text(""), right)
    both = Table.grid(padding=(0, 2), expand=True)
    both.add_column(width=54, no_wrap=True)
    both.add_column(ratio=1)
    both.add_row(_drivers(morning), right)
    return Group(top, Text(""), both)


def _board(morning: Morning) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    counts = morning.counts()
    for kind in KINDS:
        cells = (sum(counts[kind][state] for state in states) for states in _COLUMNS.values())
        table.add_row(f"{kind}s", *(Text(str(cell), style="" if cell else "dim") for cell in cells))
    return table


def _drivers(morning: Morning) -> Table:
    """Offers as bars: how even they are is seen at a glance."""
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("driver", no_wrap=True)
    table.add_column("offers", no_wrap=True)
    table.add_column("yes", justify="right")
    table.add_column("now", no_wrap=True)
    most = max((line.offered for line in morning.drivers.values()), default=0) or 1
    for line in morning.drivers.values():
        bar = "█" * max(1 if line.offered else 0, round(_BAR_WIDTH * line.offered / most))
        table.add_row(line.name, Text(f"{bar} {line.offered}", style="cyan"), str(line.accepted), _now(line))
    return table


def _now(line: DriverLine) -> Text:
    if line.holding:
        return Text(" ".join(line.holding))
    return Text(line.status, style=_STYLES.get(line.status, ""))


def _events(morning: Morning, newest: int) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="dim", no_wrap=True, min_width=5)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for at, sentence in list(morning.events)[-newest:]:
        table.add_row(f"{at:.0f} s", Text(sentence))
    return table
